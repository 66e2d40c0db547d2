"""What waits for a client: retained messages it has not got yet, identifiers, QoS 0 it does not read."""

from __future__ import annotations

from collections import deque

import pytest

from lockgate.broker.limits import Limits
from lockgate.broker.outbound import AWAY, BUSY, CANNOT_TAKE, READY, readiness, to_hand_on
from lockgate.broker.ports import NEVER, Delivery, Message
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
)
from lockgate.mqtt.properties import Properties
from tests.support.server import Peer, Server


def acknowledge_all(peer: Peer) -> list[tuple[str, int, bool]]:
    """Take all that a client gets at QoS 0 and 1: topic, QoS and RETAIN."""
    seen = []
    while waiting := peer.publishes():
        seen += [(one.topic, one.qos, one.retain) for one in waiting]
        peer.send(*(PubAck(one.packet_id) for one in waiting if one.qos))
    return seen


# --- retained messages that a connection did not get --------------------------------------------------------------


def interrupted(limits: Limits | None = None, requests: list[SubscriptionRequest] | None = None) -> Server:
    """A durable client `s` that subscribed while it did not read, and was lost: nothing retained has reached it."""
    server = Server(limits)
    publisher = server.client("p")
    for topic, qos in (("a/0", 0), ("a/1", 1), ("a/2", 2), ("b/1", 1)):
        publisher.publish(topic, b"x", qos, True)
    peer = server.client("s", session_expiry_interval=100)
    peer.stop_reading()
    peer.send(Subscribe(1, requests or [SubscriptionRequest("a/#", 1), SubscriptionRequest("b/#", 2)]))
    return server


def test_a_durable_session_keeps_the_retained_messages_it_has_not_got() -> None:
    server = interrupted()
    server.peers[2].lose()
    assert server.broker.sessions["s"].queued_count == 3
    back = server.client("s", clean_start=False)
    waiting = {(one.topic, one.qos, one.retain): one for one in back.publishes()}
    assert set(waiting) == {("a/1", 1, True), ("a/2", 1, True), ("b/1", 1, True)}


def test_a_session_that_ends_keeps_none() -> None:
    server = Server()
    server.client("p").publish("a", b"x", 1, True)
    peer = server.client("s")
    peer.stop_reading()
    peer.send(Subscribe(1, [SubscriptionRequest("#", 1)]))
    peer.lose()
    assert server.broker.queued_count == 0
    assert server.broker.statistics.dropped_queue_full == 0


def test_only_retained_messages_still_wanted_are_kept() -> None:
    own = SubscriptionRequest("a/#", 1, no_local=True)
    server = interrupted(requests=[own, SubscriptionRequest("b/#", 1)])
    peer = server.peers[2]
    peer.send(Publish("a/2", b"mine", 1, True, packet_id=5))
    server.advance(1)
    server.client("q").publish("a/1", b"new", 1, True)  # it arrives as a message of its own
    peer.lose()
    back = server.client("s", clean_start=False)
    assert sorted((one.topic, one.payload, one.retain) for one in back.publishes()) == [
        ("a/1", b"new", False),
        ("b/1", b"x", True),
    ]


def test_retained_messages_are_kept_as_far_as_the_queue_goes() -> None:
    server = interrupted(Limits(max_queued_messages=2))
    server.peers[2].lose()
    assert server.broker.sessions["s"].queued_count == 2
    assert server.broker.statistics.dropped_queue_full == 1


def test_looking_for_retained_messages_to_keep_is_bounded() -> None:
    for filters, kept in ((5, 1), (100, 0)):
        server = Server()
        publisher = server.client("p")
        for number in range(500):
            publisher.publish(f"t{number}/a", b"x", 0, True)
        publisher.publish("found", b"x", 1, True)
        peer = server.client("s", session_expiry_interval=100)
        peer.stop_reading()
        requests = [SubscriptionRequest(f"+/{number}", 1) for number in range(filters)]
        peer.send(Subscribe(1, [*requests, SubscriptionRequest("found", 1)]))
        peer.lose()
        assert server.broker.sessions["s"].queued_count == kept


# --- retained messages for new subscriptions ----------------------------------------------------------------------


@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_retained_messages_come_at_the_lower_qos_with_the_identifier(subscribed: int) -> None:
    server = Server()
    publisher = server.client("p")
    for qos in range(3):
        publisher.publish(f"t/{qos}", b"x", qos, True)
    peer = server.client("s")
    own = Properties(subscription_identifiers=(7,))
    peer.send(Subscribe(1, [SubscriptionRequest("t/+", subscribed)], own))
    assert isinstance(peer.first(), SubAck)
    seen = sorted((one.topic, one.qos, one.retain, one.properties) for one in peer.publishes())
    assert [one[:3] for one in seen] == [(f"t/{qos}", min(qos, subscribed), True) for qos in range(3)]
    assert all(one[3] == own for one in seen)


def test_retained_messages_wait_for_a_queue_to_empty_and_a_window_to_open() -> None:
    server = Server(Limits(max_inflight_messages=1))
    publisher = server.client("p")
    for number in range(4):
        publisher.publish(f"r/{number}", b"x", number % 2, True)
    peer = server.client("s")
    peer.subscribe("live", 1)
    for _ in range(3):
        publisher.publish("live", b"x", 1)
    assert len(peer.publishes()) == 1
    peer.subscribe("r/#", 1)
    peer.send(PubAck(1))
    seen = acknowledge_all(peer)
    assert [one[0] for one in seen if one[0] == "live"] == ["live"] * 2
    assert sorted(one for one in seen if one[0] != "live") == [(f"r/{number}", number % 2, True) for number in range(4)]


def test_a_subscription_made_again_begins_its_retained_messages_anew() -> None:
    server = Server(Limits(max_inflight_messages=1))
    publisher = server.client("p")
    for number in range(3):
        publisher.publish(f"r/{number}", b"x", 1, True)
    peer = server.client("s")
    peer.subscribe("r/#", 1)
    [first] = peer.publishes()
    peer.send(Subscribe(2, [SubscriptionRequest("r/#", 1)]))
    peer.expect(SubAck)
    peer.send(PubAck(first.packet_id))
    assert sorted(one[0] for one in acknowledge_all(peer)) == ["r/0", "r/1", "r/2"]
    assert not peer.connection.has_more


def test_another_filter_s_retained_messages_survive_an_unsubscribe() -> None:
    server = Server(Limits(max_inflight_messages=1))
    publisher = server.client("p")
    for topic in ("a/1", "a/2", "b/1"):
        publisher.publish(topic, b"x", 1, True)
    peer = server.client("s")
    peer.send(Subscribe(1, [SubscriptionRequest("a/+", 1), SubscriptionRequest("b/+", 1), SubscriptionRequest("c", 1)]))
    peer.expect(SubAck)
    [first] = peer.publishes()
    peer.send(Unsubscribe(2, ["c"]))
    peer.received()
    peer.send(PubAck(first.packet_id))
    assert sorted([first.topic, *(one[0] for one in acknowledge_all(peer))]) == ["a/1", "a/2", "b/1"]


# --- what the store answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("successor", [False, True])
def test_an_answer_for_a_session_that_is_no_more_is_let_be(successor: bool) -> None:
    server = Server(Limits(max_queued_messages=0, queue_head=2, max_inflight_messages=1), slow_store=True)
    peer = server.client("s", session_expiry_interval=100)
    peer.send(Subscribe(1, [SubscriptionRequest("t", 1)]))
    server.settle()
    peer.received()
    publisher = server.client("p")
    publisher.send(*(Publish("t", b"x", 1, packet_id=1) for _ in range(10)))
    for _ in range(3):
        peer.send(PubAck(peer.publishes()[0].packet_id))
    assert server.broker.sessions["s"].asked_position
    new = server.client("s")
    if not successor:
        new.lose()
    server.settle()
    assert new.received() == []
    assert (("s" in server.broker.sessions), server.broker.queued_count) == (successor, 0)


# --- identifiers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("receive_maximum", "highest"), [(10, 1023), (600, 65_535)])
def test_identifiers_go_round_and_pass_over_those_in_use(receive_maximum: int, highest: int) -> None:
    server = Server(Limits(max_inflight_messages=600))
    peer = server.client("s", receive_maximum=receive_maximum)
    peer.subscribe("t", 1)
    publisher = server.client("p")
    publisher.publish("t", b"x", 1)
    [held] = peer.publishes()
    assert held.packet_id == 1
    session = server.broker.sessions["s"]
    session.next_packet_id = highest - 1
    seen = []
    for _ in range(4):
        publisher.publish("t", b"x", 1)
        [one] = peer.publishes()
        seen.append(one.packet_id)
        peer.send(PubAck(one.packet_id))
    assert seen == [highest - 1, highest, 2, 3]


@pytest.mark.parametrize(("receive_maximum", "highest"), [(10, 1023), (600, 65_535)])
def test_behind_the_last_identifier_in_use_comes_the_first(receive_maximum: int, highest: int) -> None:
    server = Server(Limits(max_inflight_messages=600))
    peer = server.client("s", receive_maximum=receive_maximum)
    peer.subscribe("t", 1)
    publisher = server.client("p")
    session = server.broker.sessions["s"]
    for expected in (highest, 1):
        session.next_packet_id = highest
        publisher.publish("t", b"x", 1)
        assert [one.packet_id for one in peer.publishes()] == [expected]


def test_identifiers_begin_anew_when_the_window_became_small() -> None:
    server = Server(Limits(max_inflight_messages=600))
    peer = server.client("s", session_expiry_interval=100, receive_maximum=600)
    peer.subscribe("t", 1)
    server.broker.sessions["s"].next_packet_id = 40_000
    peer.lose()
    back = server.client("s", clean_start=False, receive_maximum=10)
    server.client("p").publish("t", b"x", 1)
    assert [one.packet_id for one in back.publishes()] == [1]


# --- QoS 0 for who does not read ----------------------------------------------------------------------------------


def test_qos_0_is_kept_up_to_the_bytes_allowed() -> None:
    server = Server(Limits(output_bytes=500))
    peer = server.client("s")
    peer.subscribe("t")
    peer.stop_reading()
    publisher = server.client("p")
    for size in (49, 49):  # with their topics and what each costs 500 bytes
        publisher.publish("t", b"x" * size)
    assert peer.connection.late_bytes == 500
    publisher.publish("t", b"")
    assert server.broker.statistics.dropped_slow == 1
    peer.read_again()
    assert len(peer.publishes()) == 2
    assert peer.connection.late_bytes == 0


def test_what_is_kept_comes_in_order_and_as_it_was_subscribed() -> None:
    server = Server()
    peer = server.client("s")
    own = Properties(subscription_identifiers=(3,))
    peer.send(Subscribe(1, [SubscriptionRequest("t", 0, retain_as_published=True)], own))
    peer.received()
    peer.stop_reading()
    publisher = server.client("p")
    publisher.publish("t", b"1", 0, True)
    publisher.publish("t", b"2", 2)
    publisher.send(Publish("t", b"3", properties=Properties(message_expiry_interval=5)))
    server.advance(6)
    peer.read_again()
    assert [(one.payload, one.retain, one.properties) for one in peer.publishes()] == [
        (b"1", True, own),
        (b"2", False, own),
    ]
    assert server.broker.statistics.dropped_expired == 1


def test_qos_1_behind_kept_qos_0_waits_its_turn() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("t", 1)
    peer.stop_reading()
    publisher = server.client("p")
    publisher.publish("t", b"0", 0)
    publisher.publish("t", b"1", 1)
    assert peer.connection.output_bytes == 0
    peer.read_again()
    zero, one = peer.publishes()
    assert (zero.payload, zero.retain, zero.properties) == (b"0", False, None)
    assert one.payload == b"1"


@pytest.mark.parametrize("qos", [0, 1])
def test_a_receiver_s_own_encoding_keeps_what_the_publisher_said(qos: int) -> None:
    server = Server()
    peer = server.client("s")
    peer.send(Subscribe(1, [SubscriptionRequest("t", 1)], Properties(subscription_identifiers=(3,))))
    peer.received()
    said = {
        "payload_format_indicator": 1,
        "content_type": "c",
        "response_topic": "r",
        "correlation_data": b"d",
        "user_properties": (("k", "v"), ("k", "w")),
    }
    server.client("p").send(Publish("t", b"x", qos, packet_id=qos, properties=Properties(**said)))  # type: ignore[arg-type]
    [one] = peer.publishes()
    assert one.properties == Properties(**said, subscription_identifiers=(3,))  # type: ignore[arg-type]


def test_a_queue_that_has_emptied_warns_again_when_it_is_full_again() -> None:
    server = Server(Limits(max_inflight_messages=1, max_queued_messages=1))
    peer = server.client("s")
    peer.subscribe("t", 1)
    publisher = server.client("p")
    for warned in (1, 2):
        for _ in range(4):
            publisher.publish("t", b"x", 1)
        assert sum("being dropped" in line for line in server.log.lines) == warned
        acknowledge_all(peer)
        publisher.publish("t", b"x", 1)
        acknowledge_all(peer)


def test_an_expired_message_gives_its_memory_back() -> None:
    server = Server()
    peer = server.client("s", session_expiry_interval=100)
    peer.subscribe("t", 1)
    peer.lose()
    used = server.broker.memory.used
    own = Properties(message_expiry_interval=5)
    server.client("p").send(Publish("t", b"x", 1, packet_id=1, properties=own))
    server.advance(6)
    server.peers[max(server.peers)].lose()
    server.client("s", clean_start=False, session_expiry_interval=100).lose()
    assert server.broker.statistics.dropped_expired == 1
    assert server.broker.memory.used == used


# --- shared subscriptions -----------------------------------------------------------------------------------------


def test_how_well_a_member_could_take_a_message() -> None:
    server = Server(Limits(max_inflight_messages=1, max_queued_messages=1))
    peer = server.client("s", session_expiry_interval=100)
    peer.subscribe("t", 1)
    peer.subscribe("u", 0)
    session = server.broker.sessions["s"]

    def ready(topic: str, qos: int) -> int:
        return readiness(server.broker, session.subscriptions[topic], Message(topic, b"", qos, False, None, NEVER, ""))

    assert [ready("t", 1), ready("t", 0), ready("u", 1)] == [READY, READY, READY]
    peer.stop_reading()
    assert [ready("t", 0), ready("u", 1)] == [BUSY, BUSY]
    assert ready("t", 1) == READY  # it may lie in the output
    peer.read_again()
    publisher = server.client("p")
    publisher.publish("t", b"", 1)
    assert [ready("t", 1), ready("t", 0)] == [BUSY, READY]
    publisher.publish("t", b"", 1)
    assert [ready("t", 1), ready("t", 0)] == [CANNOT_TAKE, READY]
    peer.lose()
    assert [ready("t", 1), ready("t", 0), ready("u", 1)] == [CANNOT_TAKE, CANNOT_TAKE, CANNOT_TAKE]
    server.client("s", session_expiry_interval=100).subscribe("t", 1)
    server.peers[max(server.peers)].lose()
    session = server.broker.sessions["s"]
    assert ready("t", 1) == AWAY


def test_what_a_session_that_ends_has_not_got_goes_to_another_member() -> None:
    server = Server(Limits(max_inflight_messages=3))
    first = server.client("1", session_expiry_interval=10)
    first.subscribe("$share/g/t", 2)
    publisher = server.client("p")
    for payload, qos in (
        (b"acknowledged", 1),
        (b"sent 1", 1),
        (b"sent 2", 2),
        (b"begun 2", 2),
        (b"queued 1", 1),
        (b"queued 2", 2),
    ):
        publisher.publish("t", payload, qos)
        if payload == b"acknowledged":
            first.send(PubAck(first.publishes()[0].packet_id))
    sent = first.publishes()
    assert [one.payload for one in sent] == [b"sent 1", b"sent 2", b"begun 2"]
    first.send(PubRec(sent[2].packet_id))
    second = server.client("2")
    second.subscribe("$share/g/t", 2)
    first.lose()
    server.advance(10)
    assert "1" not in server.broker.sessions
    assert sorted(one.payload for one in second.publishes()) == [b"queued 1", b"queued 2", b"sent 1"]


def test_what_waits_again_behind_a_smaller_window_is_handed_on_unless_it_was_sent_at_qos_2() -> None:
    server = Server(Limits(max_inflight_messages=3))
    first = server.client("1", session_expiry_interval=10)
    first.subscribe("$share/g/t", 2)
    publisher = server.client("p")
    for payload, qos in ((b"sent 2", 2), (b"again 2", 2), (b"again 1", 1), (b"new 2", 2), (b"new 1", 1)):
        publisher.publish("t", payload, qos)
    assert len(first.publishes()) == 3
    first.lose()
    second = server.client("2")
    second.subscribe("$share/g/t", 2)
    again = server.client("1", clean_start=False, session_expiry_interval=10, receive_maximum=1)
    assert [one.payload for one in again.publishes()] == [b"sent 2"]
    again.lose()
    server.advance(10)
    assert sorted(one.payload for one in second.publishes()) == [b"again 1", b"new 1", b"new 2"]


@pytest.mark.parametrize("qos", [0, 1])
def test_members_that_would_all_have_to_wait_take_turns(qos: int) -> None:
    server = Server(Limits(output_bytes=1000))
    members = [server.client(f"{number}") for number in range(2)]
    for member in members:
        member.subscribe("$share/g/t", 1)
        member.subscribe("fill", 1)
        member.stop_reading()
    publisher = server.client("p")
    publisher.publish("fill", b"x" * 1000, 1)
    for number in range(6):
        publisher.publish("t", b"%d" % number, qos)
    for member in members:
        member.read_again()
    seen = [[one.payload for one in member.publishes() if one.topic == "t"] for member in members]
    assert sorted(seen) == ([[b"0", b"2", b"4"], [b"1", b"3", b"5"]] if qos else [[], []])


@pytest.mark.parametrize(("place", "found"), [(63, True), (64, False)])
def test_64_members_are_asked_whether_they_are_ready(place: int, found: bool) -> None:
    server = Server()
    members = [server.client(f"{number}") for number in range(70)]
    for number, member in enumerate(members):
        member.subscribe("$share/g/t")
        if number != place:
            member.stop_reading()
    server.client("p").publish("t")
    assert (len(members[place].publishes()) == 1) is found
    assert sum(len(member.connection.late or ()) for member in members) == (not found)


def test_what_was_sent_and_waits_again_stays_with_its_client_at_qos_2() -> None:
    server = Server(Limits(max_inflight_messages=3))
    first = server.client("1", session_expiry_interval=10)
    first.subscribe("$share/g/t", 2)
    publisher = server.client("p")
    for qos in (1, 2):
        publisher.publish("t", b"%d" % qos, qos)
    first.lose()
    second = server.client("2")
    second.subscribe("$share/g/t", 2)
    server.client("1", clean_start=False, session_expiry_interval=10).lose()
    server.advance(10)
    assert [one.payload for one in second.publishes()] == [b"1"]


# --- acknowledgements ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_acknowledgements_out_of_place_change_nothing(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 2)
    publisher = server.client("p")
    publisher.publish("t", b"1", 1)
    publisher.publish("t", b"2", 2)
    one, two = peer.publishes()
    session = server.broker.sessions["s"]
    for packet in (PubComp(one.packet_id), PubAck(two.packet_id), PubComp(two.packet_id), PubAck(99), PubComp(99)):
        peer.send(packet)
        assert peer.received() == []
        assert set(session.in_flight) == {one.packet_id, two.packet_id}
    used = server.broker.memory.used
    peer.send(PubAck(one.packet_id))
    assert server.broker.memory.used < used
    peer.send(PubRec(two.packet_id), PubRec(two.packet_id))
    assert peer.received() == [PubRel(two.packet_id)] * 2
    peer.send(PubComp(two.packet_id))
    assert session.in_flight == {}
    assert session.in_flight_bytes == 0


def test_a_message_that_cannot_be_sent_again_is_released_at_qos_2_and_dropped_at_qos_1() -> None:
    server = Server()
    peer = server.client("s", session_expiry_interval=100)
    peer.subscribe("t", 2)
    publisher = server.client("p")
    for qos in (1, 2):
        publisher.publish("t", b"x" * 100, qos)
    two = peer.publishes()[1]
    peer.lose()
    back = server.client("s", clean_start=False, maximum_packet_size=50)
    assert back.received() == [PubRel(two.packet_id)]
    assert server.broker.statistics.dropped_too_large == 2
    session = server.broker.sessions["s"]
    assert list(session.in_flight) == [two.packet_id]
    back.send(PubComp(two.packet_id))
    assert (session.in_flight, session.in_flight_bytes, server.broker.queued_count) == ({}, 0, 0)
    publisher.publish("t", b"x", 1)
    assert len(back.publishes()) == 1


# --- windows and pieces -------------------------------------------------------------------------------------------


def test_a_window_in_bytes_is_full_when_as_many_are_in_flight() -> None:
    server = Server(Limits(max_inflight_bytes=10))
    peer = server.client("s")
    peer.subscribe("t", 1)
    publisher = server.client("p")
    for size in (8, 0, 0):  # and the topic's one byte each
        publisher.publish("t", b"x" * size, 1)
    assert len(peer.publishes()) == 2
    assert server.broker.sessions["s"].queued_count == 1


def test_messages_of_one_turn_are_not_queued_for_who_reads() -> None:
    server = Server(Limits(output_bytes=100))
    peer = server.client("s")
    peer.subscribe("t", 1)
    publisher = server.client("p")
    publisher.send(*(Publish("t", b"x" * 50, 1, packet_id=number) for number in range(1, 11)))
    assert len(peer.publishes()) == 10


@pytest.mark.parametrize(("after", "left"), [(4.0, 1), (4.5, 1), (3.5, 2)])
def test_the_expiry_that_is_left_is_rounded_up(after: float, left: int) -> None:
    server = Server()
    peer = server.client("s", session_expiry_interval=100)
    peer.subscribe("t", 1)
    peer.lose()
    own = Properties(message_expiry_interval=5)
    server.client("p").send(Publish("t", b"x", 1, packet_id=1, properties=own))
    server.advance(after)
    [one] = server.client("s", clean_start=False).publishes()
    assert one.properties == Properties(message_expiry_interval=left)


def test_retained_messages_come_in_pieces() -> None:
    server = Server()
    publisher = server.client("p")
    for number in range(300):
        publisher.publish(f"t/{number}", b"x" * 1000, 0, True)
    peer = server.client("s")
    peer.connection.receive(encode(Subscribe(1, [SubscriptionRequest("#", 0)]), V5), server.now)
    assert 131_072 < peer.connection.output_bytes < 131_072 + 1100
    server.flush()
    assert isinstance(peer.first(), SubAck)
    assert len(peer.publishes()) == 300


def test_filters_that_find_nothing_are_looked_for_in_pieces_too() -> None:
    server = Server()
    publisher = server.client("p")
    for number in range(500):
        publisher.publish(f"t{number}/a", b"x", 0, True)
    publisher.publish("found", b"x", 0, True)
    peer = server.client("s")
    peer.stop_reading()
    filters = [f"+/{number}" for number in range(100)]  # each of them visits more than 500 nodes
    peer.send(Subscribe(1, [SubscriptionRequest(one, 0) for one in [*filters, "found"]]))
    peer.connection.take_output()
    backlog = peer.connection.backlog
    assert backlog is not None
    for waiting in (61, 21):
        server.broker.take_touched()
        peer.connection.set_writable(True, server.now)
        assert len(backlog.waiting) == waiting
        assert server.broker.take_touched() == [peer.connection]  # the shell goes on in its next turn
    peer.connection.set_writable(True, server.now)
    peer.reading = True
    peer.take()
    assert [one.topic for one in peer.publishes()] == ["found"]


def test_a_delivery_belongs_to_no_shared_subscription_unless_it_says_so() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("t", 1)
    session = server.broker.sessions["s"]
    message = Message("t", b"", 1, False, None, NEVER, "")
    session.queue = deque([Delivery(message, 1, False, 0, 1), Delivery(message, 1, False, 0, 2, "$share/g/t")])
    assert [one.position for one in to_hand_on(session)] == [2]
