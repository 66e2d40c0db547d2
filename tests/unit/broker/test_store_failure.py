"""A store that cannot be written: nothing is confirmed, and everything goes on when it can be again (DESIGN §6)."""

from __future__ import annotations

import pytest

from lockgate.broker.deadlines import STORE, THROTTLE
from lockgate.broker.decisions import REFUSED
from lockgate.broker.limits import Limits, StandingSession
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.support.disk import Disk
from tests.support.server import Server

FULL = reason_codes.QUOTA_EXCEEDED
BROKEN = reason_codes.IMPLEMENTATION_SPECIFIC_ERROR


def a_server(limits: Limits | None = None) -> Server:
    """A server whose store answers at `settle`, with a durable Session `s` that subscribed to `t`."""
    server = Server(limits, slow_store=True, disk=Disk())
    peer = server.client("s", V3_1_1, clean_start=False)
    peer.send(Subscribe(1, [SubscriptionRequest("t", 2)]))
    server.settle()
    peer.lose()
    server.settle()
    return server


def fail(server: Server, reason_code: int = FULL) -> None:
    """Have the disk fail from now on, and let the store notice."""
    assert server.disk is not None
    server.disk.problem = reason_code
    server.broker.store.delete(server.broker.change(), "wills", ("nobody",))
    server.settle()


def recover(server: Server) -> None:
    assert server.disk is not None
    server.disk.problem = 0
    server.settle()


def queued(server: Server) -> int:
    return server.broker.sessions["s"].queued_count


# --- version 5 is told ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason_code", [FULL, BROKEN])
@pytest.mark.parametrize(("qos", "answer"), [(1, PubAck), (2, PubRec)])
def test_version_5_is_told_that_its_message_was_not_taken(
    reason_code: int, qos: int, answer: type[PubAck] | type[PubRec]
) -> None:
    server = a_server()
    publisher = server.client("p")
    fail(server, reason_code)
    publisher.send(Publish("t", b"", qos, packet_id=1))
    assert publisher.one() == answer(1, reason_code)
    assert queued(server) == 0
    assert server.broker.sessions["p"].received == {}
    recover(server)
    publisher.send(Publish("t", b"", qos, packet_id=1))
    server.settle()
    assert publisher.one() == answer(1)
    assert not publisher.closed


def test_the_reason_is_the_last_one() -> None:
    server = a_server()
    publisher = server.client("p")
    fail(server, FULL)
    fail(server, BROKEN)
    publisher.send(Publish("t", b"", 1, packet_id=1))
    assert publisher.one() == PubAck(1, BROKEN)


def test_a_refusal_can_be_explained_afterwards() -> None:
    server = a_server()
    publisher = server.client("p")
    fail(server)
    publisher.send(Publish("t", b"", 1, packet_id=1))
    [decision] = [one for one in server.broker.decisions.find("p", "t") if one.reason == REFUSED]
    assert decision.detail == "the store cannot be written"


@pytest.mark.parametrize(("topic", "qos", "retain"), [("nobody", 1, False), ("t", 0, False), ("nobody", 2, False)])
def test_what_need_not_be_stored_is_taken(topic: str, qos: int, retain: bool) -> None:
    server = a_server()
    publisher = server.client("p")
    fail(server)
    publisher.publish(topic, b"", qos, retain)


def test_a_receiver_whose_session_ends_with_it_needs_no_store() -> None:
    server = a_server()
    peer = server.client("q")
    peer.subscribe("u", 1)
    fail(server)
    server.client("p").publish("u", b"1", 1)
    assert peer.messages() == [("u", b"1")]


@pytest.mark.parametrize("qos", [1, 2])
def test_what_is_retained_has_to_be_stored(qos: int) -> None:
    server = a_server()
    publisher = server.client("p")
    fail(server)
    publisher.send(Publish("nobody", b"x", qos, True, packet_id=1))
    assert publisher.one().reason_code == FULL  # type: ignore[attr-defined]
    assert server.broker.retained.count == 0


def test_qos_2_of_a_durable_session_has_to_be_stored() -> None:
    server = a_server()
    publisher = server.client("p", session_expiry_interval=100)
    server.settle()
    fail(server)
    publisher.send(Publish("nobody", b"x", 2, packet_id=1), Publish("nobody", b"x", 1, packet_id=2))
    assert publisher.received() == [PubRec(1, FULL), PubAck(2, reason_codes.NO_MATCHING_SUBSCRIBERS)]


def test_a_durable_subscription_at_qos_0_needs_no_store() -> None:
    server = a_server()
    peer = server.client("z", session_expiry_interval=100)
    peer.send(Subscribe(1, [SubscriptionRequest("zero", 0)]))
    server.settle()
    fail(server)
    server.client("p").publish("zero", b"", 1)


def test_a_durable_member_of_a_group_has_to_be_stored_for() -> None:
    server = a_server()
    peer = server.client("z", session_expiry_interval=100)
    peer.send(Subscribe(1, [SubscriptionRequest("$share/g/u", 1)]))
    server.settle()
    publisher = server.client("p")
    fail(server)
    publisher.send(Publish("u", b"", 1, packet_id=1))
    assert publisher.one() == PubAck(1, FULL)


def test_what_is_acknowledged_from_memory_is_taken() -> None:
    server = a_server(Limits(ack_after=(("t", False),)))
    publisher = server.client("p")
    fail(server)
    publisher.publish("t", b"1", 1)
    publisher.publish("t", b"2", 2)
    assert queued(server) == 2


# --- what waited already ----------------------------------------------------------------------------------------------


def test_who_waits_is_told_and_order_is_kept() -> None:
    server = a_server()
    publisher = server.client("p", session_expiry_interval=100)
    server.settle()
    publisher.send(
        Publish("t", b"1", 1, packet_id=1), Publish("t", b"2", 2, packet_id=2), Publish("nobody", b"", 1, packet_id=3)
    )
    assert publisher.received() == []
    fail(server)
    code = reason_codes.NO_MATCHING_SUBSCRIBERS
    assert publisher.received() == [PubAck(1, FULL), PubRec(2, FULL), PubAck(3, code)]
    assert server.broker.sessions["p"].received == {}
    assert server.broker.waiting == []


def test_who_waits_for_the_first_commit_of_all_is_told() -> None:
    disk = Disk()
    server = Server(slow_store=True, disk=disk)
    publisher = server.client("p")
    publisher.send(Publish("r", b"x", 1, True, packet_id=300))
    disk.problem = FULL
    server.settle()
    assert publisher.one() == PubAck(300, FULL)


def test_a_refusal_takes_along_only_what_it_refuses() -> None:
    server = a_server()
    publisher = server.client("p", session_expiry_interval=100)
    publisher.send(Publish("t", b"1", 2, packet_id=1))
    server.settle()
    publisher.send(Publish("t", b"2", 1, packet_id=1))  # a client's mistake: the identifier is in use
    fail(server)
    assert publisher.received() == [PubRec(1), PubAck(1, FULL)]
    assert list(server.broker.sessions["p"].received) == [1]


def test_a_connection_that_closes_is_told_nothing_and_keeps_what_it_sent() -> None:
    server = a_server()
    publisher = server.client("p", session_expiry_interval=100)
    publisher.send(Publish("t", b"1", 2, packet_id=1))
    publisher.connection.receive(encode(Disconnect(), V5), server.now)  # its socket is not closed yet
    fail(server)
    assert publisher.received() == []
    assert list(server.broker.sessions["p"].received) == [1]


def test_a_release_waits_and_who_is_behind_it_is_told_when_it_is_done() -> None:
    server = a_server()
    publisher = server.client("p", session_expiry_interval=100)
    publisher.send(Publish("t", b"1", 2, packet_id=1))
    server.settle()
    assert publisher.one() == PubRec(1)
    publisher.send(PubRel(1), Publish("t", b"2", 1, packet_id=2))
    fail(server)
    assert publisher.received() == []
    publisher.send(Publish("t", b"3", 1, packet_id=3), PubRel(9))
    fail(server, BROKEN)  # again: what was refused with one code is not refused with another
    assert publisher.received() == []
    recover(server)
    assert publisher.received() == [
        PubComp(1),
        PubAck(2, FULL),
        PubAck(3, FULL),
        PubComp(9, reason_codes.PACKET_IDENTIFIER_NOT_FOUND),
    ]


def test_an_identifier_that_was_refused_is_free_and_what_it_named_is_gone() -> None:
    server = a_server()
    publisher = server.client("p", session_expiry_interval=100)
    server.settle()
    publisher.send(Publish("t", b"refused", 2, packet_id=1))
    fail(server)
    assert publisher.one() == PubRec(1, FULL)
    recover(server)
    publisher.send(Publish("t", b"taken", 2, packet_id=1))
    server.settle()
    assert publisher.one() == PubRec(1)
    publisher.send(PubRel(1))
    server.settle()
    assert publisher.one() == PubComp(1)
    assert queued(server) == 1
    assert server.disk is not None
    assert server.disk.rows("received") == 0
    [message] = server.crash().client("s", V3_1_1, clean_start=False).publishes() or take_stored(server)
    assert message.payload == b"taken"


def take_stored(server: Server) -> list[Publish]:
    """Give what waits for `s` after a crash."""
    server = server.crash()
    peer = server.client("s", V3_1_1, clean_start=False)
    server.settle()
    return peer.publishes()


def test_a_subscribe_waits_for_the_store() -> None:
    server = a_server()
    fail(server)
    peer = server.client("q", session_expiry_interval=100)
    peer.send(Subscribe(1, [SubscriptionRequest("u", 1)]), PingReq())
    assert peer.one() == PingResp()
    recover(server)
    assert peer.one() == SubAck(1, [1])


def test_a_message_for_a_receiver_that_is_there_goes_on_and_its_release_waits() -> None:
    server = a_server()
    peer = server.client("s", V3_1_1, clean_start=False)
    server.settle()
    publisher = server.client("p")
    publisher.send(Publish("t", b"1", 1, packet_id=1), Publish("t", b"2", 2, packet_id=2), PubRel(2))
    fail(server)
    assert publisher.received() == [PubAck(1, FULL), PubRec(2)]
    [message] = peer.publishes()
    assert message.payload == b"1"
    recover(server)
    assert publisher.one() == PubComp(2)
    [message] = peer.publishes()
    fail(server)
    peer.send(PubRec(message.packet_id))
    assert peer.received() == []
    recover(server)
    assert peer.one() == PubRel(message.packet_id)


# --- version 3 is not -------------------------------------------------------------------------------------------------


def test_version_3_gets_no_answer_and_is_closed_after_a_time() -> None:
    server = a_server(Limits(store_patience=10))
    publisher = server.client("p", V3_1_1)
    fail(server)
    publisher.send(Publish("nobody", b"", 1, packet_id=1))
    assert publisher.one() == PubAck(1)
    publisher.send(Publish("t", b"", 1, packet_id=2), Publish("nobody", b"", 1, packet_id=3), PingReq())
    assert publisher.received() == [PingResp()]
    server.advance(9)
    assert not publisher.closed
    server.advance(1)
    assert publisher.closed
    assert "p" not in server.broker.sessions
    assert queued(server) == 0
    assert "what it sent cannot be stored" in server.log.lines[-1]


def test_version_3_gets_qos_0_through() -> None:
    server = a_server()
    peer = server.client("q", V3_1_1)
    peer.subscribe("t", 0)
    publisher = server.client("p", V3_1_1)
    fail(server)
    publisher.send(Publish("t", b"1", 1, packet_id=2), Publish("t", b"2", 0))
    assert peer.messages() == [("t", b"2")]


def test_version_3_is_closed_when_the_store_recovers_and_sends_again() -> None:
    server = a_server()
    publisher = server.client("p", V3_1_1)
    publisher.send(Publish("t", b"1", 1, packet_id=1))
    fail(server)
    publisher.send(Publish("t", b"2", 1, packet_id=2))
    assert publisher.received() == []
    recover(server)
    assert publisher.received() == [PubAck(1)]  # it was taken before
    assert publisher.closed
    assert queued(server) == 1


def test_who_has_its_answers_stays_when_the_store_recovers() -> None:
    server = a_server()
    publisher = server.client("p", V3_1_1)
    publisher.send(Publish("t", b"1", 1, packet_id=1))
    fail(server)
    recover(server)
    assert publisher.one() == PubAck(1)
    assert not publisher.closed


def test_who_waits_too_long_for_what_was_taken_is_closed_too() -> None:
    server = a_server(Limits(store_patience=10))
    old = server.client("old", V3_1_1)
    old.send(Publish("t", b"1", 1, packet_id=1))
    new = server.client("new", session_expiry_interval=100)
    new.send(Subscribe(1, [SubscriptionRequest("u", 1)]))
    idle = server.client("idle")
    fail(server)
    server.advance(10)
    assert (old.closed, new.closed, idle.closed) == (True, True, False)
    assert new.received() == [Disconnect(FULL)]
    assert old.received() == []
    server.advance(9)
    again = server.client("new", clean_start=False, session_expiry_interval=100)
    again.send(Subscribe(1, [SubscriptionRequest("u", 1)]))
    server.advance(1)  # patience is counted from the failure on, again and again
    assert again.closed


def test_patience_begins_anew_with_each_failure() -> None:
    server = a_server(Limits(store_patience=10))
    fail(server)
    server.advance(1)
    recover(server)
    server.advance(8)
    fail(server)
    publisher = server.client("p", V3_1_1)
    publisher.send(Publish("t", b"", 1, packet_id=1))
    server.advance(9)
    assert not publisher.closed
    server.advance(1)
    assert publisher.closed


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_who_waits_for_a_standing_session_alone_stays(version: int) -> None:
    standing = StandingSession("stands", ("u",), 1, 5)
    server = a_server(Limits(store_patience=10, standing_sessions=(standing,)))
    publisher = server.client("p", version)
    publisher.send(Publish("u", b"much more", 1, packet_id=1))
    server.settle()
    server.store_failed(FULL)
    fail(server)
    server.advance(10)
    assert not publisher.closed
    recover(server)
    server.client("stands", V5)
    assert publisher.received() == [PubAck(1)]


def test_who_is_closed_parts_from_its_session_at_once_and_its_will_waits() -> None:
    server = a_server()
    receiver = server.client("receiver")
    receiver.subscribe("will")
    will = Will("will", b"gone", properties=Properties(will_delay_interval=30))
    peer = server.client("q", session_expiry_interval=100, will=will)
    peer.send(Subscribe(1, [SubscriptionRequest("u", 1)]))
    fail(server)
    server.now += 10
    server.broker.expire(server.now)
    assert server.broker.sessions["q"].connection is None
    server.flush()
    assert receiver.received() == []
    server.advance(30)
    assert receiver.messages() == [("will", b"gone")]


def test_the_deadline_stays_among_many_others_while_it_means_something() -> None:
    server = a_server()
    publisher = server.client("p", V3_1_1)
    fail(server)
    publisher.send(Publish("t", b"", 1, packet_id=1))
    for _ in range(600):
        server.broker.deadlines.add(server.now + 5, THROTTLE, "0")
    assert len(server.broker.deadlines) < 600  # swept
    server.advance(10)
    assert publisher.closed


def test_the_deadline_of_a_failure_that_is_over_is_swept_out() -> None:
    server = a_server(Limits(store_patience=10))
    for _ in range(3):
        fail(server)
        server.advance(1)
        recover(server)
    fail(server)
    before = len(server.broker.deadlines)
    for _ in range(600):
        server.broker.deadlines.add(server.now + 1000, THROTTLE, "0")
    assert before == 5
    assert [at for at, _order, kind, _subject in server.broker.deadlines._heap if kind == STORE] == [1013.0]
    recover(server)
    for _ in range(600):
        server.broker.deadlines.add(server.now + 1000, THROTTLE, "0")
    assert [kind for _at, _order, kind, _subject in server.broker.deadlines._heap if kind == STORE] == []


def test_connections_that_were_closed_are_not_kept_until_the_store_recovers() -> None:
    server = a_server(Limits(store_patience=10))
    fail(server)
    for _ in range(3):
        peer = server.client("q", V3_1_1, clean_start=False)
        peer.send(Subscribe(1, [SubscriptionRequest("u", 1)]))
        server.advance(10)
        assert peer.closed
    fail(server)
    assert server.broker.waiting == []


def test_it_fails_and_recovers_again_and_again() -> None:
    server = a_server()
    assert server.disk is not None
    server.disk.keeps_failed = True
    publisher = server.client("p", session_expiry_interval=100)
    server.settle()
    for number in range(5):
        publisher.send(Publish("t", b"%d" % number, 1, packet_id=1), Publish("t", b"", 2, packet_id=2))
        fail(server)
        assert publisher.received() == [PubAck(1, FULL), PubRec(2, FULL)]
        recover(server)
        publisher.send(Publish("t", b"%d again" % number, 1, packet_id=1))
        server.settle()
        assert publisher.one() == PubAck(1)
    assert queued(server) == 10  # a refused one may arrive all the same; it was handed on before
    assert not publisher.closed


def test_memory_is_given_back_when_all_that_was_refused_has_gone() -> None:
    server = a_server()
    used = server.broker.memory.used
    publisher = server.client("p", session_expiry_interval=100)
    server.settle()
    publisher.send(Publish("x", b"1", 2, packet_id=1), Publish("x", b"2", 2, packet_id=2))
    fail(server)
    publisher.send(Publish("x", b"1", 2, packet_id=1))
    assert [type(packet) for packet in publisher.received()] == [PubRec, PubRec, PubRec]
    recover(server)
    publisher.send(Disconnect())
    server.advance(101)
    assert server.broker.memory.used == used
