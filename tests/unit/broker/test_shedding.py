"""Who gives way, in which order, and how far."""

from __future__ import annotations

from collections import deque

import pytest

from lockgate.broker.limits import Limits, StandingSession
from lockgate.broker.ports import NEVER, Delivery, Message
from lockgate.broker.session import Session
from lockgate.mqtt.packets import PubAck, Publish
from tests.support.server import Peer, Server


def absent(server: Server, client_id: str, topic_filter: str = "#") -> None:
    peer = server.client(client_id, session_expiry_interval=3600)
    peer.subscribe(topic_filter, 1)
    peer.lose()


def drained(peer: Peer) -> list[bytes]:
    seen = []
    while waiting := peer.publishes():
        seen += [one.payload for one in waiting]
        peer.send(*(PubAck(one.packet_id) for one in waiting if one.qos))
    return seen


def test_a_sixty_fourth_gives_way_when_too_many_are_queued() -> None:
    server = Server(Limits(total_queued_messages=640, max_queued_messages=0, queue_head=0))
    absent(server, "a")
    publisher = server.client("p")
    for number in range(640):
        publisher.publish("t", b"%d" % number, 1)
    assert server.broker.queued_count == 640
    publisher.publish("t", b"640", 1)
    assert server.broker.queued_count == 630
    assert drained(server.client("a", clean_start=False)) == [b"%d" % number for number in range(11, 641)]


def test_the_oldest_gives_way_whoever_it_waits_for() -> None:
    server = Server(Limits(total_queued_messages=16, max_queued_messages=0, queue_head=0))
    absent(server, "late", "late")
    absent(server, "early", "early")
    publisher = server.client("p")
    for topic in ("early", "late"):
        for number in range(8):
            server.now += 1
            publisher.publish(topic, b"%d" % number, 1)
    publisher.publish("late", b"8", 1)
    assert server.broker.sessions["early"].queued_count == 7
    assert server.broker.sessions["late"].queued_count == 9
    assert drained(server.client("early", clean_start=False)) == [b"%d" % number for number in range(1, 8)]


def test_qos_0_gives_way_before_anything_queued_and_alarms_after_all() -> None:
    server = Server(Limits(total_queued_messages=16, max_queued_messages=0, queue_head=0, alarms=("alarm/#", "fire")))
    slow = server.client("slow")
    slow.subscribe("live")
    slow.stop_reading()
    absent(server, "a")
    publisher = server.client("p")
    publisher.publish("live", b"x")
    for topic in ("alarm/1", "fire", *["t"] * 14):
        publisher.publish(topic, topic.encode(), 1)
    assert len(slow.connection.late or ()) == 1
    publisher.publish("fire", b"again", 1)
    assert not slow.connection.late
    assert drained(server.client("a", clean_start=False)) == [b"alarm/1", b"fire", *[b"t"] * 13, b"again"]


def test_alarms_give_way_to_alarms() -> None:
    server = Server(Limits(total_queued_messages=16, max_queued_messages=0, queue_head=0, alarms=("#",)))
    absent(server, "a")
    publisher = server.client("p")
    for number in range(17):
        publisher.publish("t", b"%d" % number, 1)
    assert drained(server.client("a", clean_start=False)) == [b"%d" % number for number in range(1, 17)]


def test_no_more_qos_0_gives_way_than_has_to() -> None:
    server = Server(Limits(memory_budget=200_000))
    slow = [server.client(f"slow{number}") for number in range(5)]
    for peer in slow:
        peer.subscribe("live")
        peer.stop_reading()
    publisher = server.client("p")
    for _ in range(1000):
        publisher.publish("live", b"x")
        if server.broker.statistics.dropped_shed:
            break
    assert 0 < server.broker.statistics.dropped_shed < sum(len(peer.connection.late or ()) for peer in slow)
    assert 180_000 < server.broker.memory.used <= 200_000 - 200_000 // 16


def test_what_was_sent_once_does_not_give_way() -> None:
    server = Server(Limits(total_queued_messages=16, max_queued_messages=0, max_inflight_messages=4, queue_head=0))
    peer = server.client("a", session_expiry_interval=3600)
    peer.subscribe("t", 1)
    publisher = server.client("p")
    for number in range(4):
        publisher.publish("t", b"%d" % number, 1)
    assert len(peer.publishes()) == 4
    peer.lose()
    back = server.client("a", clean_start=False, session_expiry_interval=3600, receive_maximum=1)
    for number in range(4, 20):
        publisher.publish("t", b"%d" % number, 1)
    seen = drained(back)
    assert seen[:4] == [b"0", b"1", b"2", b"3"]
    assert server.broker.statistics.dropped_shed == 20 - len(seen) > 0


@pytest.mark.parametrize("budget", [0, 200_000])
def test_when_all_has_given_way_what_comes_is_refused_until_there_is_room(budget: int) -> None:
    server = Server(Limits(memory_budget=budget, max_queued_messages=0, queue_head=0))
    publisher = server.client("p")
    for number in range(300):
        publisher.publish(f"r/{number}", b"x" * 500, 1, True)
    assert server.broker.memory.is_exhausted() is (budget > 0)
    kept = server.broker.retained.count
    assert kept == 300 or (100 < kept < 300)
    for number in range(300):
        publisher.publish(f"r/{number}", b"", 1, True)
    assert not server.broker.memory.is_exhausted()
    publisher.publish("again", b"x", 1, True)
    assert server.broker.retained.count == 1


def test_a_queue_may_give_way_whole() -> None:
    server = Server(Limits(total_queued_messages=128, max_queued_messages=0, queue_head=0))
    absent(server, "one", "one")
    absent(server, "many", "many")
    publisher = server.client("p")
    publisher.publish("one", b"first", 1)
    server.now += 1
    for number in range(128):
        publisher.publish("many", b"%d" % number, 1)
    assert [server.broker.sessions[name].queued_count for name in ("one", "many")] == [0, 126]
    assert drained(server.client("one", clean_start=False)) == []
    assert drained(server.client("many", clean_start=False)) == [b"%d" % number for number in range(2, 128)]


def test_what_gives_way_is_taken_out_of_the_queue_wherever_it_stands() -> None:
    session = Session("c", 100, None)
    deliveries = [Delivery(Message("t", b"%d" % at, 1, False, None, NEVER, ""), 1, False, 0, at) for at in range(5)]
    for at in (0, 3):
        deliveries[at].dropped = True
    session.queue = deque(deliveries)
    session.remove_dropped(2)
    assert [one.position for one in session.queue] == [1, 2, 4]


def test_while_all_is_spent_who_would_wait_gets_nothing_and_who_reads_goes_on() -> None:
    server = Server(Limits(memory_budget=200_000, max_queued_messages=0, queue_head=0), slow_store=True)
    reader, waiting = server.client("r"), server.client("w", receive_maximum=1)
    for peer in (reader, waiting):
        peer.subscribe("t", 1)
    publisher = server.client("p")
    publisher.publish("t", b"first", 1)
    publisher.send(*(Publish(f"r/{number}", b"x" * 500, 0, True) for number in range(300)))
    assert server.broker.memory.is_exhausted()
    publisher.publish("t", b"second", 1)  # acknowledged without a commit: nothing was stored
    assert reader.messages() == [("t", b"first"), ("t", b"second")]
    assert waiting.messages() == [("t", b"first")]
    assert server.broker.statistics.dropped_shed == 1
    assert server.broker.queued_count == 0


def test_what_lies_in_the_store_makes_nothing_give_way() -> None:
    standing = StandingSession("a", ("t",))
    server = Server(Limits(total_queued_messages=4, queue_head=4, memory_budget=100_000, standing_sessions=(standing,)))
    publisher = server.client("p")
    for _ in range(8):
        publisher.publish("t", bytes(5000), 1)
    publisher.publish("retained", bytes(27_500), 1, True)
    queue = server.broker.sessions["a"].queue
    assert queue is not None
    assert len(queue) == 3
    assert not server.broker.memory.is_exhausted()
