"""What a publisher may do, and what it is told (MQTT 5 §3.3, §4.3, §4.9)."""

from __future__ import annotations

import pytest

from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.mqtt import reason_codes as rc
from lockgate.mqtt.packets import V3_1_1, V5, Connect, Disconnect, PubAck, PubComp, Publish, PubRec, PubRel, Will
from lockgate.mqtt.properties import Properties
from tests.support.server import Server


def warned(server: Server) -> int:
    return sum("Receive Maximum of 2" in line for line in server.log.lines)


def test_more_open_messages_than_announced_are_told_of_once() -> None:
    server = Server(Limits(max_inflight_messages=2))
    peer = server.client("a", session_expiry_interval=100)
    for packet_id in (1, 2, 2):
        peer.send(Publish("t", b"x", 2, packet_id=packet_id))
    assert warned(server) == 0
    for packet_id in (3, 4):
        peer.send(Publish("t", b"x", 2, packet_id=packet_id))
        assert warned(server) == 1
    assert [type(packet) for packet in peer.received()] == [PubRec] * 5
    older = server.client("b", V3_1_1)
    older.send(*(Publish("t", b"x", 2, packet_id=number) for number in range(1, 6)))
    assert warned(server) == 1  # before version 5 nothing was announced
    unlimited = Server(Limits(max_inflight_messages=0))
    unlimited.client("a").send(*(Publish("t", b"x", 2, packet_id=number) for number in range(1, 30)))
    assert len(unlimited.log.lines) == 1


def test_as_many_messages_may_be_open_as_window_and_queue_hold() -> None:
    server = Server(Limits(max_inflight_messages=2, max_queued_messages=3))
    peer = server.client("a")
    peer.send(*(Publish("t", b"x", 2, packet_id=number) for number in range(1, 6)))
    peer.send(Publish("t", b"again", 2, dup=True, packet_id=5))
    assert [type(packet) for packet in peer.received()] == [PubRec] * 6
    peer.send(Publish("t", b"x", 2, packet_id=6))
    assert peer.received() == [Disconnect(rc.RECEIVE_MAXIMUM_EXCEEDED)]


@pytest.mark.parametrize(("later", "arrives"), [(9, True), (10, False)])
def test_a_message_may_expire_between_publish_and_release(later: int, arrives: bool) -> None:
    server = Server()
    subscriber = server.client("s")
    subscriber.subscribe("t")
    absent = server.client("absent", session_expiry_interval=100)
    absent.subscribe("t", 1)
    absent.lose()
    peer = server.client("a")
    peer.send(Publish("t", b"x", 2, packet_id=1, properties=Properties(message_expiry_interval=10)))
    assert peer.one() == PubRec(1)
    server.advance(later)
    peer.send(PubRel(1))
    assert peer.one() == PubComp(1)
    assert bool(subscriber.received()) is arrives
    assert server.broker.sessions["absent"].queued_count == arrives
    peer.send(PubRel(1))
    assert peer.one() == PubComp(1, rc.PACKET_IDENTIFIER_NOT_FOUND)


@pytest.mark.parametrize("version", [V3_1_1, V5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_below_sys_nothing_is_published_and_the_client_is_told_where_it_can_be(version: int, qos: int) -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("$SYS/#")
    peer = server.client("a", version)
    peer.send(Publish("$SYS/x", b"x", qos, True, packet_id=7 if qos else 0))
    code = rc.NOT_AUTHORIZED if version == V5 else 0
    assert peer.received() == [[], [PubAck(7, code)], [PubRec(7, code)]][qos]
    if qos == 2:
        peer.send(PubRel(7))
        assert peer.one() == PubComp(7, rc.PACKET_IDENTIFIER_NOT_FOUND if version == V5 else 0)
    assert watcher.received() == []
    assert server.broker.retained.count == 0
    peer.send(Publish("$SYSTEM", b"x", 1, packet_id=8))
    assert peer.one() == PubAck(8, rc.NO_MATCHING_SUBSCRIBERS if version == V5 else 0)


def test_aliases_up_to_the_maximum_are_taken_and_mean_the_topic_last_said() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_topic_alias=2))
    subscriber = server.client("s")
    subscriber.subscribe("#")
    peer = server.client("a")
    for topic, alias in (("a", 2), ("", 2), ("b", 1), ("c", 2), ("", 2), ("", 1)):
        peer.send(Publish(topic, b"x", properties=Properties(topic_alias=alias)))
    seen = subscriber.publishes()
    assert [one.topic for one in seen] == ["a", "a", "b", "c", "c", "b"]
    assert [one.properties for one in seen] == [None] * 6  # an alias is between two, and goes no further
    peer.send(Publish("d", b"x", properties=Properties(topic_alias=3)))
    assert peer.received() == [Disconnect(rc.TOPIC_ALIAS_INVALID)]


# --- connect ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "told"), [(0, None), (1, 1), (65_534, 65_534), (65_535, None), (70_000, None)])
def test_a_receive_maximum_is_told_where_it_is_less_than_mqtt_s(ours: int, told: int | None) -> None:
    properties = Server(Limits(max_inflight_messages=ours)).client("a").connack.properties
    assert properties is not None
    assert properties.receive_maximum == told


@pytest.mark.parametrize(
    ("ours", "theirs", "window"), [(10, 0, 10), (10, 5, 5), (10, 20, 10), (0, 0, 65_535), (0, 7, 7)]
)
def test_the_window_is_the_smaller_of_two(ours: int, theirs: int, window: int) -> None:
    server = Server(Limits(max_inflight_messages=ours))
    peer = server.client("a", receive_maximum=theirs) if theirs else server.client("a")
    assert peer.connection.window == window


@pytest.mark.parametrize(("ours", "theirs", "aliases"), [(10, 0, 0), (10, 3, 3), (10, 20, 10), (0, 5, 0)])
def test_aliases_towards_the_client_are_the_smaller_number(ours: int, theirs: int, aliases: int) -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_topic_alias_broker=ours))
    peer = server.client("a", topic_alias_maximum=theirs)
    assert peer.connection.topic_alias_maximum == aliases


@pytest.mark.parametrize(
    ("limit", "asked", "granted"), [(0, 0, 0), (0, 600, 600), (60, 60, 60), (60, 61, 60), (60, 0, 60)]
)
def test_a_keep_alive_beyond_the_longest_is_cut(limit: int, asked: int, granted: int) -> None:
    server = Server(Limits(max_keepalive=limit))
    peer = server.client("a", keep_alive=asked)
    assert peer.connection.keep_alive_seconds == granted
    properties = peer.connack.properties
    assert properties is not None
    assert properties.server_keep_alive == (granted if granted != asked else None)


@pytest.mark.parametrize("will_qos", [0, 1, 2])
def test_a_will_s_qos_is_bounded_like_any(will_qos: int) -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_qos=1))
    for version in (V3_1_1, V5):
        peer = server.peer(version)
        peer.send(Connect("a", version, will=Will("w", b"", will_qos)))
        assert peer.closed is (will_qos == 2)
        codes = [getattr(packet, "reason_code", None) for packet in peer.received()]
        assert codes == ([0] if will_qos < 2 else [rc.QOS_NOT_SUPPORTED] if version == V5 else [])


def test_a_bridge_of_version_5_is_answered_in_version_5() -> None:
    peer = Server().peer(V5)
    peer.send_bytes(bytes.fromhex("100d00044d5154548502003c000000"))
    assert peer.output == bytes.fromhex("2003008400")
    assert peer.closed


def test_a_login_that_waits_takes_no_client_s_place() -> None:
    server = Server(Limits(connections=1))
    server.peer()
    server.peer()
    first = server.client("a")
    assert not first.closed
    first.send(Disconnect())
    server.client("b")


@pytest.mark.parametrize("qos", [1, 2])
def test_who_hears_from_himself_alone_and_not_of_it_is_acknowledged(qos: int) -> None:
    server = Server()
    peer = server.client("a")
    peer.subscribe("t", qos, no_local=True)
    peer.publish("t", b"x", qos)  # acknowledged although no change was ever committed
    assert peer.received() == []


def test_a_code_for_nobody_is_not_that_of_the_next_message() -> None:
    server = Server()
    server.client("s").subscribe("t", 1)
    peer = server.client("a")
    peer.send(Publish("nobody", b"x", 1, packet_id=1), Publish("t", b"x", 1, packet_id=2))
    assert peer.received() == [PubAck(1, rc.NO_MATCHING_SUBSCRIBERS), PubAck(2)]
