"""Bounds: what each of them answers when it is reached (DESIGN §12)."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from lockgate.broker.limits import Limits, ListenerLimits, ServerInformation
from lockgate.config.model import BrokerConfig, ListenerConfig
from lockgate.mqtt import reason_codes as rc
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1,
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
)
from lockgate.mqtt.properties import Properties
from lockgate.net.service import broker_limits
from tests.support import raw
from tests.support.rules import Rules
from tests.support.server import Peer, Server

VERSIONS = [V3_1, V3_1_1, V5]


def refused(server: Server, client_id: str, version: int = V5) -> ConnAck:
    peer = server.peer(version)
    peer.send(Connect(client_id, version))
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code != 0
    assert peer.closed
    return answer


# --- connections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "code"), [(V3_1, 3), (V3_1_1, 3), (V5, rc.SERVER_BUSY)])
def test_the_number_of_connected_clients_is_bounded(version: int, code: int) -> None:
    server = Server(Limits(connections=2))
    first = server.client("a", version)
    server.client("b", version)
    assert refused(server, "c", version).reason_code == code
    server.client("a", version)  # who takes over his own Session needs no room
    assert first.closed
    assert refused(server, "c", version).reason_code == code


@pytest.mark.parametrize(("moved", "code"), [(False, rc.USE_ANOTHER_SERVER), (True, rc.SERVER_MOVED)])
def test_a_full_server_names_another(moved: bool, code: int) -> None:
    server = Server(Limits(connections=1), information=ServerInformation("other.example:1883", moved))
    client = server.client("a")
    answer = refused(server, "b")
    assert answer.reason_code == code
    assert answer.properties == Properties(server_reference="other.example:1883")
    assert refused(server, "b", V3_1_1).reason_code == 3
    server.broker.stop(server.now)
    server.flush()
    assert client.received() == [Disconnect(code, Properties(server_reference="other.example:1883"))]


def test_the_number_of_sessions_is_bounded() -> None:
    server = Server(Limits(sessions=2))
    server.client("a", session_expiry_interval=60).lose()
    server.client("b")
    assert refused(server, "c").reason_code == rc.QUOTA_EXCEEDED
    server.client("a", clean_start=False)
    server.client("a")
    assert refused(server, "c", V3_1_1).reason_code == 3


def test_the_oldest_connection_that_was_not_let_in_gives_way() -> None:
    server = Server(Limits(pending_logins=2))
    let_in = server.client("a")
    waiting = [server.peer() for _ in range(2)]
    server.client("b")
    assert [peer.closed for peer in (let_in, *waiting)] == [False, True, False]
    assert any("oldest" in line for line in server.log.lines)


def test_connections_of_one_address_are_bounded() -> None:
    server = Server(Limits(connections_per_address=2))
    first = server.peer(address="192.0.2.1")
    server.peer(address="192.0.2.1")
    server.peer(address="192.0.2.2")
    third = server.peer(address="192.0.2.1")
    assert third.closed
    assert "connections_per_address" in server.log.lines[-1]
    first.lose()
    assert not server.peer(address="192.0.2.1").closed
    assert not server.peer().closed  # a trusted proxy has no address that counts
    for peer in list(server.peers.values()):
        if not peer.closed:
            peer.lose()
    assert not server.broker._addresses


def test_the_rate_of_connections_of_one_address_is_bounded() -> None:
    server = Server(Limits(connect_rate_per_address=2))
    assert [server.peer(address="192.0.2.1").closed for _ in range(3)] == [False, False, True]
    assert not server.peer(address="192.0.2.2").closed
    server.advance(0.5)
    assert [server.peer(address="192.0.2.1").closed for _ in range(2)] == [False, True]


@pytest.mark.parametrize(("version", "code"), [(V3_1_1, 3), (V5, rc.CONNECTION_RATE_EXCEEDED)])
def test_the_rate_of_one_client_id_is_bounded(version: int, code: int) -> None:
    server = Server(Limits(connect_rate=0.1))
    first = server.client("a", version)
    assert refused(server, "a", version).reason_code == code
    assert not first.closed
    server.client("b", version)
    server.advance(10)
    server.client("a", version)


def test_a_flapping_client_is_held_off() -> None:
    server = Server(Limits(flapping_connects=3, flapping_window=60, flapping_hold_off=300))
    for _ in range(3):
        server.client("a").lose()
    assert refused(server, "a").reason_code == rc.CONNECTION_RATE_EXCEEDED
    assert "held off for 300 s" in server.log.lines[-1]
    server.client("b")
    server.advance(299)
    assert refused(server, "a").reason_code == rc.CONNECTION_RATE_EXCEEDED
    server.advance(1)
    for _ in range(3):
        server.client("a").lose()
    refused(server, "a")


def test_who_connects_seldom_does_not_flap() -> None:
    server = Server(Limits(flapping_connects=2, flapping_window=60))
    for _ in range(10):
        server.client("a").lose()
        server.advance(31)


# --- publishing ---------------------------------------------------------------------------------------------------


def test_who_publishes_too_fast_is_read_no_faster() -> None:
    server = Server(Limits(publish_rate=10))
    subscriber = server.client("s")
    subscriber.subscribe("t", 0)
    publisher = server.client("p", keep_alive=1)
    publisher.send(*(Publish("t", bytes((number,)), 1, packet_id=number + 1) for number in range(30)))
    assert len(subscriber.publishes()) == 10
    assert not publisher.connection.wants_input
    publisher.send(Publish("t", b"last", 0))  # the shell may have read it already
    server.advance(1.0)
    assert len(subscriber.publishes()) == 10
    server.advance(1.3)
    assert [payload for _topic, payload in subscriber.messages()] == [*(bytes((n,)) for n in range(20, 30)), b"last"]
    assert len(publisher.received()) == 30
    assert publisher.connection.wants_input
    assert not publisher.closed


def test_the_end_of_a_throttled_connection_is_the_end() -> None:
    server = Server(Limits(publish_rate=1))
    publisher = server.client("p")
    publisher.send(*(Publish("t", b"x") for _ in range(5)))
    publisher.lose()
    server.advance(60)
    assert server.broker.statistics.publish_received == 1
    assert server.broker.memory.unfinished == 0


# --- packets ------------------------------------------------------------------------------------------------------


def test_topics_are_bounded_in_bytes_and_levels() -> None:
    for topic, good in (("a/b/c", True), ("a/b/c/d", False), ("ä" * 10, True), ("ä" * 11, False)):
        server = Server(Limits(topic_bytes=20, topic_levels=3))
        peer = server.client("a")
        peer.send(Publish(topic, b"x"))
        assert peer.received() == ([] if good else [Disconnect(rc.TOPIC_NAME_INVALID)])
        peer = server.client("a")
        peer.send(Subscribe(1, [SubscriptionRequest(topic, 0)]))
        assert peer.received() == ([SubAck(1, [0])] if good else [Disconnect(rc.TOPIC_FILTER_INVALID)])


def test_user_properties_are_bounded() -> None:
    server = Server(Limits(user_properties=2))
    peer = server.client("a")
    peer.send(Publish("t", b"x", properties=Properties(user_properties=(("k", "v"),) * 2)))
    assert not peer.closed
    peer.send(Publish("t", b"x", properties=Properties(user_properties=(("k", "v"),) * 3)))
    assert peer.received() == [Disconnect(rc.QUOTA_EXCEEDED)]


@pytest.mark.parametrize("version", VERSIONS)
def test_topic_filters_of_one_packet_are_bounded(version: int) -> None:
    server = Server(Limits(subscriptions=3))
    for packet in (
        Subscribe(1, [SubscriptionRequest(f"t/{number}", 0) for number in range(1004)]),
        Unsubscribe(1, [f"t/{number}" for number in range(1004)]),
    ):
        peer = server.client("a", version)
        peer.send(packet)
        assert peer.closed
        assert [getattr(one, "reason_code", None) for one in peer.received()] == [rc.QUOTA_EXCEEDED] * (version == V5)


def test_who_has_much_to_do_lets_others_come_in_between() -> None:
    server = Server(Limits(subscriptions=0))
    for number in range(1000):
        server.client(f"s{number}").subscribe("t")
    publisher = server.client("p")
    publisher.send(*(Publish("t", bytes((number,))) for number in range(250)))
    assert 30 < server.broker.statistics.publish_received < 50
    assert not publisher.connection.wants_input
    server.client("between").publish("other")
    server.advance(0)
    assert server.broker.statistics.publish_received == 251
    assert len(server.peers[1].messages()) == 250
    assert publisher.connection.wants_input
    filters = [f"x/{number}" for number in range(5000)]
    for packet, answer in (
        (Subscribe(1, [SubscriptionRequest(one, 0) for one in filters]), SubAck),
        (Unsubscribe(1, filters), UnsubAck),
    ):
        publisher.send(packet, PingReq())
        assert [type(one) for one in publisher.received()] == [answer]
        server.advance(0)
        assert publisher.received() == [PingResp()]
    publisher.send(*(Publish("t", bytes((number,)), 1, packet_id=number) for number in range(1, 250)))
    assert 251 < server.broker.statistics.publish_received <= 251 + 6  # QoS 1 is more work
    server.advance(0)
    publisher.send(*(Publish(f"{number}", b"x") for number in range(1000)))
    assert server.broker.statistics.publish_received == 251 + 249 + 1000
    assert server.broker.router.visits == 0  # counted, message by message
    assert publisher.connection.wants_input


@pytest.mark.parametrize(("version", "code"), [(V3_1, 1), (V3_1_1, 0x80), (V5, rc.QUOTA_EXCEEDED)])
def test_subscriptions_of_a_client_are_bounded(version: int, code: int) -> None:
    server = Server(Limits(subscriptions=2))
    peer = server.client("a", version)
    peer.send(Subscribe(1, [SubscriptionRequest(topic, 1) for topic in ("a", "b")]))
    peer.send(Subscribe(2, [SubscriptionRequest(topic, 1) for topic in ("c", "a")]))
    assert peer.received() == [SubAck(1, [1, 1]), SubAck(2, [code, 1])]
    server.client("p").publish("c")
    assert peer.received() == []


@pytest.mark.parametrize(("count", "size"), [(10, 15), (124, 129), (125, 131), (16_380, 16_386), (16_381, 16_388)])
def test_unsuback_fits_or_nothing_is_unsubscribed(count: int, size: int) -> None:
    for maximum, fits in ((size, True), (size - 1, False)):
        server = Server(Limits(subscriptions=0))
        peer = server.client("a", session_expiry_interval=60)
        peer.send(Subscribe(1, [SubscriptionRequest(f"t/{number}", 0) for number in range(count)]))
        server.advance(0)  # so many filters are more than one turn's work
        peer.received()
        peer.connection.maximum_packet_size = maximum
        used = server.broker.memory.used
        peer.send(Unsubscribe(2, [f"t/{number}" for number in range(count)]))
        assert peer.closed is not fits
        assert len(server.broker.sessions["a"].subscriptions) == (0 if fits else count)
        if fits:
            assert len(peer.output) - peer.output.rindex(b"\xb0") == size
            server.advance(0)
            peer.send(Subscribe(3, [SubscriptionRequest(f"t/{number}", 0) for number in range(count)]))
            assert server.broker.memory.used == used


# --- retained -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(retained_messages=2), Limits(retained_bytes=12)])
def test_retained_messages_are_bounded(limits: Limits) -> None:
    server = Server(limits)
    live = server.client("live")
    live.subscribe("#")
    publisher = server.client("p")
    publisher.publish("a", b"12345", 1, True)
    publisher.publish("b", b"12345", 1, True)
    publisher.publish("a", b"54321", 1, True)  # a new value needs no room
    live.received()
    publisher.send(Publish("c", b"12345", 1, True, packet_id=3))
    assert publisher.received() == [PubAck(3, rc.QUOTA_EXCEEDED)]
    assert live.received() == []
    older = server.client("o", V3_1_1)
    older.publish("c", b"12345", 1, True)  # it cannot be told
    assert [message.topic for message in live.publishes()] == ["c"]
    assert server.broker.retained.count == 2
    assert server.broker.statistics.not_retained == 2
    publisher.publish("a", b"", 1, True)
    publisher.publish("c", b"12345", 1, True)
    assert server.broker.retained.count == 2


def test_retained_bytes_are_bounded_to_the_byte_and_what_does_not_grow_needs_no_room() -> None:
    server = Server(Limits(retained_bytes=10))
    publisher = server.client("p")

    def kept(payload: bytes) -> bool:
        publisher.publish("t", payload, 0, True)
        found = server.broker.retained.get("t")
        return found is not None and found.payload == payload

    assert not kept(b"x" * 10)
    assert kept(b"x" * 9)
    assert not kept(b"y" * 10)
    assert kept(b"y" * 9)
    server.broker.limits = Limits(retained_bytes=5)  # as after a restart with less
    assert kept(b"z" * 9)
    assert not kept(b"z" * 10)
    assert kept(b"z" * 8)


# --- queues in all ------------------------------------------------------------------------------------------------


def test_what_is_queued_in_all_is_bounded_and_the_oldest_goes_first() -> None:
    server = Server(Limits(total_queued_messages=16, max_queued_messages=0, queue_head=0))
    subscribers = [server.client(f"s{number}", session_expiry_interval=60) for number in range(2)]
    for subscriber in subscribers:
        subscriber.subscribe("#", 1)
        subscriber.lose()
    publisher = server.client("p")
    for number in range(20):
        server.advance(1)
        publisher.publish("t", bytes((number,)), 1)
    seen = [Peer.messages(server.client(f"s{number}", clean_start=False)) for number in range(2)]
    assert all(messages[-1] == ("t", b"\x13") for messages in seen)
    assert abs(len(seen[0]) - len(seen[1])) <= 1
    assert server.broker.statistics.dropped_shed == 40 - sum(map(len, seen))


@pytest.mark.parametrize("character", ["x", "ü", "\x01"])
def test_no_name_of_a_peer_makes_the_log_long(character: str) -> None:
    server = Server()
    long = character * (60_000 // len(character.encode()))
    server.client(long, username=long[:10_000]).lose()
    server.client("a").send(Publish(f"{long}#", b"x"))
    server.client("b").send(Subscribe(1, [SubscriptionRequest(f"x{long}#", 0)]))
    assert len(server.log.lines) == 6
    assert max(len(line) for line in server.log.lines) < 3000


@pytest.mark.parametrize("options", [{}, {"retain_as_published": True}], ids=["plain", "own"])
def test_overlapping_subscriptions_do_not_multiply_a_message_beyond_bounds(options: dict[str, bool]) -> None:
    server = Server(Limits(output_bytes=10_000))
    client = server.client("c")
    requests = [SubscriptionRequest("/".join(one), 0, **options) for one in itertools.product("t+", repeat=9)]
    client.send(Subscribe(1, requests))
    other = server.client("other")
    other.subscribe("#")
    data = encode(Publish("/".join("t" * 9), b"x" * 5000), V5)
    server.client("p").connection.receive(data, server.now)
    assert client.connection.output_bytes < 17 * 10_000
    server.flush()
    assert len(client.received()) == 1 + 32  # SUBACK first
    assert server.broker.statistics.dropped_slow == 512 - 32
    assert len(other.publishes()) == 1


def test_refused_identifiers_of_qos_2_are_bounded_too() -> None:
    server = Server(Limits(max_inflight_messages=2, max_queued_messages=3))
    client = server.client("c", V3_1_1)
    for number in range(1, 7):
        assert not client.closed
        client.send(Publish("$SYS/no", b"x", 2, packet_id=number))
    assert client.closed


def test_long_names_do_not_fill_the_log_nor_the_decisions() -> None:
    server = Server()
    long = "x" * 60_000
    client = server.client(long)
    client.send_bytes(raw.publish(V5, long.encode() + b"#"))
    assert client.closed
    client = server.peer(V3_1_1)
    client.send_bytes(raw.connect(V3_1_1, name=b"\x01" * 60_000))
    assert client.closed
    assert max(map(len, server.log.lines)) < 1000
    found = server.broker.decisions.find(long, None)
    assert found
    assert max(len(one.client_id) + len(one.detail) for one in found) < 2000


def test_a_bare_broker_has_the_limits_of_a_bare_configuration() -> None:
    config = BrokerConfig()
    limits = dataclasses.replace(broker_limits(config), memory_budget=0)
    own = Limits()
    assert dataclasses.replace(limits, queue_head=own.queue_head) == own
    information = ServerInformation(config.server_reference, config.server_moved, config.response_information)
    assert information == ServerInformation()
    listener = ListenerConfig()
    assert ListenerLimits() == ListenerLimits(
        listener.port,
        False,  # as soon as a listener is configured
        listener.max_qos,
        listener.max_topic_alias,
        listener.max_topic_alias_broker,
        listener.protocol_versions,
    )


def test_other_limits_count_from_the_reload_on() -> None:
    server = Server(Limits(message_size=5, memory_budget=10_000_000))
    peer = server.client("c", V3_1_1)
    watcher = server.client("w")
    watcher.subscribe("t")
    peer.publish("t", b"123456")
    server.broker.reload(Limits(connections=2, memory_budget=20_000_000), ServerInformation("mqtt://elsewhere"))
    peer.publish("t", b"1234567")
    assert watcher.messages() == [("t", b"1234567")]
    assert server.broker.memory.budget == 20_000_000
    third = server.peer()
    third.send(Connect("d", V5))
    answer = third.one()
    assert isinstance(answer, ConnAck)
    assert answer.properties == Properties(server_reference="mqtt://elsewhere")


def test_a_reload_forgets_what_followed_from_the_old_limits_and_rules() -> None:
    rules = Rules()
    server = Server(Limits(ack_after=(("t/#", False),)), rules.listener())
    watcher = server.client("w")
    watcher.subscribe("t/#")
    away = server.client("away", session_expiry_interval=60)
    away.subscribe("t/#")
    away.lose()
    publisher = server.client("p")
    publisher.publish("t/1", b"1")
    assert not server.broker.router.acknowledges_on_disk("t/1")
    rules.deny("publish", "t/1")
    server.broker.reload(Limits(queue_qos_0=True), ServerInformation())
    assert server.broker.router.acknowledges_on_disk("t/1")
    publisher.publish("t/1", b"2")
    publisher.publish("t/2", b"3")
    assert watcher.messages() == [("t/1", b"1"), ("t/2", b"3")]
    assert server.broker.sessions["away"].queued_count == 1


def test_connections_without_an_address_count_for_none() -> None:
    server = Server(Limits(connections_per_address=1))
    made = [server.broker.connect("192.0.2.1:5000", server.listener, server.now) for _ in range(2)]
    assert [connection.is_closing for connection in made] == [False, False]


def test_who_sends_to_many_that_do_not_read_lets_others_come_in_between() -> None:
    server = Server(Limits(subscriptions=0))
    for number in range(1000):
        peer = server.client(f"s{number}")
        peer.subscribe("t")
        peer.stop_reading()
    publisher = server.client("p")
    publisher.send(*(Publish("t", bytes((number,))) for number in range(30)))
    assert 1 < server.broker.statistics.publish_received < 10
    assert not publisher.connection.wants_input
