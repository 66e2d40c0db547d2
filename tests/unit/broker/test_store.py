"""The contract with the store: what is confirmed was committed first (DESIGN §3.1, §6)."""

from __future__ import annotations

import pytest

from lockgate.broker.limits import Limits
from lockgate.broker.ports import NEVER, WILLS, Delivery, Message, StoredSession
from lockgate.broker.session import NEVER_EXPIRES
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
    UnsubAck,
    Unsubscribe,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.support.server import Peer, Server


def durable(server: Server, client_id: str = "s", qos: int = 2) -> Peer:
    """A subscriber to `t` whose Session outlives it, with everything so far committed."""
    peer = server.client(client_id, V3_1_1, clean_start=False)
    peer.send(Subscribe(1, [SubscriptionRequest("t", qos)]))
    server.settle()
    peer.expect(SubAck)
    return peer


def test_a_publisher_is_acknowledged_after_the_commit_for_a_durable_receiver() -> None:
    server = Server(slow_store=True)
    durable(server)
    publisher = server.client("p")
    publisher.send(Publish("t", b"", 1, packet_id=1))
    assert publisher.received() == []
    server.settle()
    assert publisher.one() == PubAck(1)


def test_with_no_durable_receiver_nothing_waits() -> None:
    server = Server(slow_store=True)
    server.client("s").subscribe("t", 2)
    publisher = server.client("p")
    publisher.send(Publish("t", b"", 1, packet_id=1))
    assert publisher.one() == PubAck(1)


def test_a_retained_message_counts_as_a_durable_receiver_at_qos_1_and_2() -> None:
    server = Server(slow_store=True)
    publisher = server.client("p", V3_1_1)
    publisher.send(Publish("t", b"x", 1, True, packet_id=1))
    assert publisher.received() == []
    server.settle()
    assert publisher.one() == PubAck(1)
    publisher.send(Publish("u", b"x", 0, True), Publish("v", b"x", 1, packet_id=2))
    assert publisher.one() == PubAck(2)


def test_acknowledgements_leave_in_the_order_of_arrival() -> None:
    server = Server(slow_store=True)
    durable(server)
    publisher = server.client("p", V3_1_1)
    publisher.send(
        Publish("t", b"", 1, packet_id=1), Publish("nobody", b"", 1, packet_id=2), PingReq(), Publish("t", b"", 0)
    )
    assert publisher.received() == [PingResp()]
    server.settle()
    assert publisher.received() == [PubAck(1), PubAck(2)]


def test_qos_2_waits_at_each_step_on_both_sides() -> None:
    server = Server(slow_store=True)
    subscriber = durable(server)
    publisher = server.client("p", V3_1_1, clean_start=False)
    publisher.send(Publish("t", b"1", 2, packet_id=1))
    assert publisher.received() == []
    server.settle()
    assert publisher.one() == PubRec(1)
    publisher.send(PubRel(1))
    assert publisher.received() == []
    assert subscriber.received() == []  # its packet identifier is not safe yet
    server.settle()
    assert publisher.one() == PubComp(1)
    [message] = subscriber.publishes()
    subscriber.send(PubRec(message.packet_id))
    assert subscriber.received() == []
    server.settle()
    assert subscriber.one() == PubRel(message.packet_id)


def test_a_qos_1_publish_to_a_durable_receiver_does_not_wait() -> None:
    server = Server(slow_store=True)
    subscriber = durable(server, qos=1)
    server.client("p").send(Publish("t", b"1", 1, packet_id=1))
    assert subscriber.messages() == [("t", b"1")]


def test_suback_and_unsuback_of_a_durable_session_wait() -> None:
    server = Server(slow_store=True)
    peer = server.client("s", V5, session_expiry_interval=10)
    peer.send(Subscribe(1, [SubscriptionRequest("t", 1)]))
    assert peer.received() == []
    server.settle()
    assert peer.one() == SubAck(1, [1])
    peer.send(Unsubscribe(2, ["t"]))
    assert peer.received() == []
    server.settle()
    assert peer.one() == UnsubAck(2, [0])


def test_retained_messages_come_after_a_suback_that_waits() -> None:
    server = Server(slow_store=True)
    server.client("p").send(Publish("t", b"x", 0, True))
    peer = server.client("s", V3_1_1, clean_start=False)
    peer.send(Subscribe(1, [SubscriptionRequest("t", 1)]))
    assert peer.received() == []
    server.settle()
    assert peer.received() == [SubAck(1, [1]), Publish("t", b"x", 0, True)]


def test_a_long_queue_lies_in_the_store_and_comes_back_in_order() -> None:
    server = Server(Limits(max_queued_messages=0, queue_head=8, max_inflight_messages=4), slow_store=True)
    durable(server, qos=1).lose()
    publisher = server.client("p", V3_1_1)
    sent = [b"%d" % number for number in range(100)]
    for payload in sent:
        publisher.send(Publish("t", payload, 1, packet_id=1))
    server.settle()
    queue = server.broker.sessions["s"].queue
    assert queue is not None
    assert len(queue) == 8
    assert server.broker.sessions["s"].queued_count == 100
    back = server.client("s", V3_1_1, clean_start=False)
    seen: list[bytes] = []
    while True:
        waiting = back.publishes()
        if not waiting:
            server.settle()
            waiting = back.publishes()
            if not waiting:
                break
        for message in waiting:
            seen.append(message.payload)
            back.send(PubAck(message.packet_id))
    assert seen == sent
    assert server.broker.sessions["s"].queued_count == 0


def test_an_answer_for_a_session_that_ended_is_ignored() -> None:
    server = Server(Limits(max_queued_messages=0, queue_head=2, max_inflight_messages=1), slow_store=True)
    durable(server, qos=1).lose()
    publisher = server.client("p", V3_1_1)
    for number in range(10):
        publisher.send(Publish("t", b"%d" % number, 1, packet_id=1))
    server.client("s", V3_1_1, clean_start=False)
    server.client("s", V3_1_1, clean_start=True)
    server.settle()
    assert server.broker.sessions["s"].queued_count == 0


def test_a_release_that_was_held_back_waits_on_the_next_connection_too() -> None:
    server = Server(slow_store=True)
    subscriber = durable(server)
    server.client("p").send(Publish("t", b"1", 2, packet_id=1), PubRel(1))
    server.settle()
    [message] = subscriber.publishes()
    subscriber.send(PubRec(message.packet_id))
    subscriber.lose()
    back = server.client("s", V3_1_1, clean_start=False)
    assert back.received() == []
    server.settle()
    assert back.one() == PubRel(message.packet_id)
    back.send(PubComp(message.packet_id))
    assert server.broker.sessions["s"].in_flight_bytes == 0


def test_pubcomp_and_unsuback_for_what_is_gone_already_wait_until_it_is_safely_gone() -> None:
    server = Server(slow_store=True)
    client = durable(server, "c")
    client.send(Publish("u", b"1", 2, packet_id=7))
    server.settle()
    client.expect(PubRec)
    client.send(PubRel(7), Unsubscribe(2, ["t"]))
    client.lose()  # both answers were held back
    client = server.client("c", V3_1_1, clean_start=False)
    client.send(PubRel(7), Unsubscribe(2, ["t"]))
    assert client.received() == []
    server.settle()
    assert client.received() == [PubComp(7), UnsubAck(2, [])]


def test_an_answer_for_a_session_that_ended_leaves_no_gap_in_its_successor() -> None:
    server = Server(Limits(max_queued_messages=0, queue_head=2, max_inflight_messages=1), slow_store=True)
    publisher = server.client("p", V3_1_1)
    durable(server, qos=1).lose()
    for _ in range(20):
        publisher.send(Publish("t", b"old", 1, packet_id=1))
    back = server.client("s", V3_1_1, clean_start=False)
    for _ in range(8):
        server.settle()
        back.send(PubAck(back.publishes()[0].packet_id))
    assert server.broker.sessions["s"].asked_position  # the store was asked and has not answered
    server.client("s", V3_1_1, clean_start=True)
    back = server.client("s", V3_1_1, clean_start=False)
    back.send(Subscribe(1, [SubscriptionRequest("t", 1)]))
    back.lose()
    sent = [b"%d" % number for number in range(20)]
    for payload in sent:
        publisher.send(Publish("t", payload, 1, packet_id=1))
    server.settle()  # answers the question of the Session that ended, too
    assert take_all(server, server.client("s", V3_1_1, clean_start=False)) == sent


def test_a_session_that_will_end_with_its_connection_still_gets_its_whole_queue() -> None:
    server = Server(Limits(max_queued_messages=0, queue_head=2, max_inflight_messages=1), slow_store=True)
    first = server.client("s", V5, session_expiry_interval=100)
    first.send(Subscribe(1, [SubscriptionRequest("t", 1)]))
    first.lose()
    sent = [b"%d" % number for number in range(8)]
    for payload in sent:
        server.client("p").send(Publish("t", payload, 1, packet_id=1))
    server.settle()
    back = server.client("s", V5, clean_start=False)
    assert back.connack.session_present
    assert take_all(server, back) == sent
    back.lose()
    assert "s" not in server.broker.sessions


def take_all(server: Server, peer: Peer) -> list[bytes]:
    """Acknowledge everything that arrives until nothing more does; give the payloads."""
    seen: list[bytes] = []
    while True:
        waiting = peer.publishes()
        if not waiting:
            server.settle()
            waiting = peer.publishes()
            if not waiting:
                return seen
        for message in waiting:
            seen.append(message.payload)
            peer.send(PubAck(message.packet_id))


def test_a_client_that_returns_in_time_leaves_no_will_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    will = Will("will", b"gone", properties=Properties(will_delay_interval=10))
    server.client("a", session_expiry_interval=100, will=will).lose()
    deleted: list[tuple[str, tuple[str, ...]]] = []
    monkeypatch.setattr(server.store, "delete", lambda _commit, table, key: deleted.append((table, key)))
    server.client("a", clean_start=False, session_expiry_interval=100)
    assert deleted == [(WILLS, ("a",))]


def test_an_expiry_interval_that_disconnect_sets_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    peer = server.client("a", session_expiry_interval=100)
    stored: list[object] = []
    monkeypatch.setattr(server.store, "set", lambda _commit, _table, _key, value: stored.append(value))
    peer.send(Disconnect(0, Properties(session_expiry_interval=NEVER_EXPIRES)))
    assert [row.expiry_interval for row in stored if isinstance(row, StoredSession)] == [NEVER_EXPIRES]


def test_a_release_in_a_session_that_is_not_stored_waits_for_nothing() -> None:
    server = Server(slow_store=True)
    client = server.client("c", V3_1_1)
    client.send(Publish("t", b"1", 2, packet_id=1), PubRel(1))
    assert client.received() == [PubRec(1), PubComp(1)]


def test_a_release_of_what_was_refused_waits_for_nothing() -> None:
    server = Server(slow_store=True)
    client = server.client("c", V3_1_1, clean_start=False)
    server.settle()
    client.send(Publish("$SYS/t", b"1", 2, packet_id=1), PubRel(1))
    assert client.received() == [PubRec(1), PubComp(1)]


@pytest.mark.parametrize(("limits", "payload"), [(Limits(), b""), (Limits(retained_bytes=5), b"too much")])
def test_what_changes_nothing_retained_waits_for_nothing(limits: Limits, payload: bytes) -> None:
    client = Server(limits, slow_store=True).client("c", V3_1_1)
    client.send(Publish("t", payload, 1, True, packet_id=1))
    assert client.one() == PubAck(1)


def test_a_publisher_waits_for_the_member_of_a_shared_subscription_that_got_it() -> None:
    server = Server(slow_store=True)
    member = server.client("s", V5, session_expiry_interval=100)
    member.send(Subscribe(1, [SubscriptionRequest("$share/g/t", 1)]))
    server.settle()
    publisher = server.client("p", V3_1_1)
    publisher.send(Publish("t", b"1", 1, packet_id=1))
    assert publisher.received() == []
    server.settle()
    assert publisher.one() == PubAck(1)


def test_the_shortest_session_lies_in_the_store() -> None:
    server = Server()
    peer = server.client("s", session_expiry_interval=1)
    peer.subscribe("t", 1)
    peer.lose()
    server.client("p").publish("t", b"kept", 1)
    back = server.client("s", clean_start=False)
    assert back.connack.session_present
    assert back.messages() == [("t", b"kept")]


def test_a_session_that_is_not_stored_asks_the_store_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    asked: list[str] = []
    monkeypatch.setattr(server.store, "want", lambda client_id, _after, _limit: asked.append(client_id))
    peer = server.client("s")
    peer.subscribe("t", 1)
    server.client("p").publish("t", b"x", 1)
    peer.send(PubAck(peer.publishes()[0].packet_id))
    assert asked == []


def test_what_the_store_gives_goes_to_a_session_whose_queue_held_nothing_yet() -> None:
    server = Server()
    peer = server.client("s", session_expiry_interval=100)
    message = Message("t", b"x", 1, False, None, NEVER, "p")
    session = server.broker.sessions["s"]
    used = server.broker.memory.used
    # as it is when the process begins: the queue is counted, and none of it is in memory
    session.last_position = session.queued_count = server.broker.queued_count = 1
    session.queued_bytes = message.size()
    server.broker.loaded("s", [Delivery(message, 1, False, 0, 1)], server.now)
    server.flush()
    [one] = peer.publishes()
    assert server.broker.memory.used > used
    peer.send(PubAck(one.packet_id))
    assert (session.queued_count, session.queued_bytes, server.broker.queued_count) == (0, 0, 0)
    assert server.broker.memory.used == used


def test_retained_messages_that_wait_for_a_suback_keep_nobody_busy() -> None:
    server = Server(slow_store=True)
    server.client("p").send(Publish("t", b"x", 0, True))
    peer = server.client("s", V3_1_1, clean_start=False)
    server.settle()
    assert server.broker.take_touched() == []
    peer.connection.receive(encode(Subscribe(1, [SubscriptionRequest("t", 1)]), V3_1_1), server.now)
    peer.connection.set_writable(True, server.now)
    assert peer.connection.has_more
    assert server.broker.take_touched() == []


def test_what_a_store_has_to_do_from_the_start_waits_for_no_change() -> None:
    server = Server(slow_store=True)
    assert server.broker.store_is_awake
    server.settle()
    assert not server.broker.store_is_awake


def test_the_store_is_told_the_highest_commit_that_somebody_waits_for() -> None:
    server = Server(slow_store=True)
    assert server.awaited == 0
    durable(server).lose()
    publisher = server.client("p", V3_1_1)
    publisher.send(Publish("t", b"", 1, packet_id=1))
    awaited = server.awaited
    assert awaited == server.broker.last_change
    publisher.send(Publish("nobody", b"", 1, packet_id=2), Publish("nobody", b"x", 0, True))
    assert server.awaited == awaited
    assert server.broker.last_change > awaited


def test_a_connection_that_is_read_no_more_is_looked_at_once() -> None:
    server = Server(Limits(withheld=2), slow_store=True)
    durable(server)
    publisher = server.client("p", V3_1_1)
    looked_at: list[int] = []
    for packet_id in range(1, 6):
        publisher.connection.receive(encode(Publish("t", b"", 1, packet_id=packet_id), V3_1_1), server.now)
        looked_at += [packet_id for one in server.broker.take_touched() if one is publisher.connection]
    assert looked_at == [3]


def test_a_topic_that_is_acknowledged_from_memory_waits_for_nothing() -> None:
    limits = Limits(ack_after=(("fast/slow", True), ("fast/#", False)))
    server = Server(limits, slow_store=True)
    client = server.client("c", V3_1_1, clean_start=False)
    client.connection.receive(encode(Subscribe(1, [SubscriptionRequest("#", 1)]), V3_1_1), server.now)
    client.lose()
    client = server.client("c", V3_1_1, clean_start=False)
    client.send(Publish("fast/1", b"1", 2, packet_id=1), PubRel(1), Publish("fast/1", b"2", 1, True, packet_id=2))
    assert server.broker.committed_number == 0
    acknowledged = [packet for packet in client.received() if not isinstance(packet, Publish)]
    assert acknowledged == [PubRec(1), PubComp(1), PubAck(2)]
    for topic in ("fast/slow", "other"):
        client.send(Publish(topic, b"3", 1, packet_id=3))
        assert [packet for packet in client.received() if not isinstance(packet, Publish)] == []


def test_more_than_may_be_queued_in_all_is_dropped_where_the_others_lie_in_the_store() -> None:
    server = Server(Limits(total_queued_messages=3, queue_head=2))
    durable(server, qos=1).lose()
    for number in range(5):
        server.client("p").publish("t", b"%d" % number, 1)
    assert server.broker.queued_count == 3
    assert server.broker.statistics.dropped_queue_full == 2
    peer = server.client("s", V3_1_1, clean_start=False)
    assert [message.payload for message in peer.publishes()] == [b"0", b"1", b"2"]
