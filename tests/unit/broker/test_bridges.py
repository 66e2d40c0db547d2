"""What the core does for bridges: another broker's that connects to it, and our own."""

from __future__ import annotations

import pytest

from lockgate.broker import outbound
from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.broker.session import NEVER_EXPIRES
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import (
    V3_1,
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    PubAck,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    SubscriptionRequest,
)
from lockgate.mqtt.properties import Properties
from tests.support.disk import Disk
from tests.support.server import Peer, Server


def bridge(server: Server, version: int, is_bridge: bool = True) -> Peer:
    peer = Peer(server, version)
    peer.send(Connect("b", version, bridge=is_bridge))
    peer.expect(ConnAck)
    peer.send(Subscribe(1, [SubscriptionRequest("#", 1)]))
    peer.received()
    return peer


def own(server: Server, client_id: str = "local.b") -> Peer:
    """The local side of one of our bridges, as `bridge.local` opens it."""
    peer = Peer(server, V5)
    peer.connection.own = True
    properties = Properties(session_expiry_interval=NEVER_EXPIRES)
    peer.send(Connect(client_id, V5, False, 0, properties=properties))
    return peer


@pytest.mark.parametrize("version", [V3_1, V3_1_1])
def test_a_bridge_keeps_retain_and_gets_nothing_back(version: int) -> None:
    server = Server()
    peer = bridge(server, version)
    peer.publish("t", b"own", 1)
    assert peer.received() == []
    server.client("c").publish("t", b"theirs", 1, retain=True)
    (packet,) = peer.publishes()
    assert (packet.payload, packet.retain) == (b"theirs", True)


@pytest.mark.parametrize("version", [V3_1, V3_1_1])
def test_a_plain_client_gets_its_own_and_no_retain(version: int) -> None:
    server = Server()
    peer = bridge(server, version, is_bridge=False)
    peer.publish("t", b"own", 1, retain=True)
    (packet,) = peer.publishes()
    assert (packet.payload, packet.retain) == (b"own", False)


def test_the_session_of_our_own_bridge_is_nobody_elses() -> None:
    server = Server()
    assert isinstance(own(server).first(), ConnAck)
    peer = server.peer(V5)
    peer.send(Connect("local.b", V5))
    answer = peer.first()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == reason_codes.NOT_AUTHORIZED
    assert peer.closed
    assert peer.received() == []
    session = server.broker.sessions["local.b"]
    assert session.connection is not None
    assert session.connection.own


def test_the_session_of_our_own_bridge_does_not_expire() -> None:
    server = Server(Limits(persistent_client_expiration=60))
    own(server).lose()
    server.client("c", V3_1_1, clean_start=False).lose()
    server.advance(100)
    assert list(server.broker.sessions) == ["local.b"]


def test_our_own_bridge_is_let_in_by_limits_for_others() -> None:
    server = Server(Limits(connections=1), ListenerLimits(allow_anonymous=True))
    server.client("c")
    answer = own(server).first()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == 0


def test_what_was_in_flight_can_be_begun_anew_in_its_order() -> None:
    server = Server()
    peer = own(server)
    peer.expect(ConnAck)
    peer.subscribe("t", 2)
    publisher = server.client("p")
    for payload, qos in ((b"1", 2), (b"2", 1), (b"3", 2)):
        publisher.publish("t", payload, qos)
    first, _, third = peer.publishes()
    peer.send(PubRec(first.packet_id))
    assert peer.one() == PubRel(first.packet_id)
    peer.lose()
    publisher.publish("t", b"4", 1)
    outbound.begin_anew(server.broker, server.broker.sessions["local.b"])
    peer = own(server)
    peer.expect(ConnAck)
    packets = peer.publishes()
    assert [(packet.payload, packet.dup) for packet in packets] == [(one, False) for one in (b"1", b"2", b"3", b"4")]
    assert third.payload == b"3"
    peer.send(*(PubAck(packet.packet_id) for packet in packets if packet.qos == 1))
    assert len(server.broker.sessions["local.b"].in_flight) == 2


def test_what_was_begun_anew_is_new_after_a_crash_too() -> None:
    server = Server(disk=Disk())
    peer = own(server)
    peer.expect(ConnAck)
    peer.subscribe("t", 2)
    server.client("p").publish("t", b"1", 2)
    server.settle()
    peer.send(PubRec(peer.publishes()[0].packet_id))
    peer.lose()
    outbound.begin_anew(server.broker, server.broker.sessions["local.b"])
    server.settle()
    server = server.crash()
    peer = own(server)
    server.settle()
    peer.expect(ConnAck)
    assert [(packet.payload, packet.dup) for packet in peer.publishes()] == [(b"1", False)]


def test_what_a_session_that_is_not_kept_begins_anew_is_no_change_of_the_store() -> None:
    server = Server(disk=Disk())
    peer = server.client("c")
    peer.subscribe("t", 1)
    server.client("p").publish("t", b"1", 1)
    before = server.broker.last_change
    outbound.begin_anew(server.broker, server.broker.sessions["c"])
    assert server.broker.last_change == before


def test_what_a_queue_dropped_is_counted_for_its_session() -> None:
    server = Server(Limits(max_queued_messages=2))
    peer = own(server)
    peer.expect(ConnAck)
    peer.subscribe("t", 1)
    peer.lose()
    publisher = server.client("p")
    for _ in range(5):
        publisher.publish("t", b"", 1)
    assert server.broker.sessions["local.b"].dropped == 3


def test_qos_0_kept_for_one_who_does_not_read_can_be_taken() -> None:
    server = Server()
    peer = own(server)
    peer.expect(ConnAck)
    peer.subscribe("t", 1)
    publisher = server.client("p")
    used = server.broker.memory.used
    peer.stop_reading()
    publisher.send(Publish("t", b"late"))
    assert server.broker.memory.used > used
    taken = outbound.take_all_late(server.broker, peer.connection)
    assert [delivery.message.payload for delivery in taken] == [b"late"]
    assert outbound.take_all_late(server.broker, peer.connection) == []
    assert server.broker.memory.used == used
    peer.lose()
    assert server.broker.statistics.dropped == 0


def test_what_our_own_bridge_brings_is_bounded_by_the_identifiers_alone() -> None:
    """Mosquitto 2.0 sends a backlog of QoS 2 on and on; to close would only have it sent again."""
    server = Server(Limits(max_inflight_messages=2, max_queued_messages=3))
    peer = own(server)
    peer.expect(ConnAck)
    for packet_id in range(1, 101):
        peer.send(Publish("t", b"x", 2, packet_id=packet_id))
    answers = peer.received()
    assert [packet.packet_id for packet in answers if isinstance(packet, PubRec)] == list(range(1, 101))
    assert not any("Receive Maximum" in line for line in server.log.lines)
