"""Retained messages, Wills and the Subscription Options (MQTT 5 §3.1.2.5, §3.3.1.3, §3.8.3.1)."""

from __future__ import annotations

import pytest

from lockgate.broker.limits import Limits
from lockgate.broker.ports import NEVER, Message
from lockgate.broker.retained import Retained
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    Disconnect,
    PingReq,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.support.server import Server


def test_a_new_subscriber_gets_the_last_value_with_retain_set() -> None:
    server = Server()
    publisher = server.client("p")
    for payload in (b"1", b"2"):
        publisher.publish("a/b", payload, 1, retain=True)
    subscriber = server.client("s")
    subscriber.subscribe("a/#", 0)
    assert subscriber.one() == Publish("a/b", b"2", 0, retain=True)


def test_a_message_for_a_standing_subscription_has_retain_clear_unless_asked_for() -> None:
    server = Server()
    plain = server.client("plain")
    plain.subscribe("t")
    asked = server.client("asked")
    asked.subscribe("t", 0, retain_as_published=True)
    publisher = server.client("p")
    publisher.publish("t", b"1", retain=True)
    publisher.publish("t", b"2")
    assert [message.retain for message in plain.publishes()] == [False, False]
    assert [message.retain for message in asked.publishes()] == [True, False]


def test_an_empty_payload_removes_the_retained_message_and_is_delivered() -> None:
    server = Server()
    standing = server.client("standing")
    standing.subscribe("t")
    publisher = server.client("p")
    publisher.publish("t", b"1", retain=True)
    publisher.publish("t", b"", retain=True)
    assert standing.messages() == [("t", b"1"), ("t", b"")]
    late = server.client("late")
    late.subscribe("t")
    assert late.received() == []
    assert server.broker.retained.count == 0


def test_a_retained_message_is_removed_from_below_another_one() -> None:
    server = Server()
    publisher = server.client("p")
    for topic in ("a", "a/b/c"):
        publisher.publish(topic, b"kept", 1, retain=True)
    publisher.publish("a/b/c", b"", 1, retain=True)
    subscriber = server.client("s")
    subscriber.subscribe("#")
    assert subscriber.messages() == [("a", b"kept")]


@pytest.mark.parametrize(("handling", "expected"), [(0, [1, 1]), (1, [1, 0]), (2, [0, 0])])
def test_retain_handling(handling: int, expected: list[int]) -> None:
    server = Server()
    server.client("p").publish("t", b"1", retain=True)
    subscriber = server.client("s")
    for count in expected:
        subscriber.subscribe("t", 0, retain_handling=handling)
        assert len(subscriber.messages()) == count


def test_a_shared_subscription_gets_no_retained_messages() -> None:
    server = Server()
    server.client("p").publish("t", b"1", retain=True)
    subscriber = server.client("s")
    subscriber.subscribe("$share/group/t")
    assert subscriber.received() == []


def test_retained_messages_beyond_every_limit_arrive_as_the_client_takes_them() -> None:
    server = Server(Limits(max_inflight_messages=5, max_queued_messages=10, output_bytes=2000))
    publisher = server.client("p")
    for number in range(200):
        publisher.publish(f"a/{number}", b"x" * 50, 1, retain=True)
    subscriber = server.client("s")
    subscriber.subscribe("a/#", 1)
    seen = set()
    while waiting := subscriber.publishes():
        for message in waiting:
            seen.add(message.topic)
            subscriber.send(PubAck(message.packet_id))
    assert len(seen) == 200
    assert server.broker.statistics.dropped_queue_full == 0


def test_a_retained_message_that_waits_is_not_sent_after_a_newer_one() -> None:
    server = Server(Limits(max_inflight_messages=1))
    publisher = server.client("p")
    publisher.publish("a", b"old", 1, retain=True)
    publisher.publish("b", b"old", 1, retain=True)
    subscriber = server.client("s")
    subscriber.subscribe("#", 1)
    [first] = subscriber.publishes()
    waiting = "b" if first.topic == "a" else "a"
    publisher.publish(waiting, b"new", 1, retain=True)
    subscriber.send(PubAck(first.packet_id))
    assert subscriber.messages() == [(waiting, b"new")]


def test_a_subscription_that_is_removed_takes_along_what_waits_for_it() -> None:
    server = Server(Limits(max_inflight_messages=1))
    for topic in ("a/1", "a/2", "b/1", "b/2"):
        server.client("p").publish(topic, b"x", 1, retain=True)
    subscriber = server.client("s")
    subscriber.subscribe("a/+", 1)
    [first] = subscriber.publishes()
    subscriber.subscribe("b/+", 1)
    subscriber.send(Unsubscribe(2, ["a/+"]))
    subscriber.expect(UnsubAck)
    subscriber.subscribe("b/+", 1)  # all over again: each comes once
    topics = []
    subscriber.send(PubAck(first.packet_id))
    while waiting := subscriber.publishes():
        topics += [message.topic for message in waiting]
        subscriber.send(PubAck(waiting[-1].packet_id))
    assert sorted(topics) == ["b/1", "b/2"]


def test_a_new_qos_holds_for_retained_messages_that_still_wait() -> None:
    server = Server(Limits(max_inflight_messages=1))
    for topic in ("a/1", "a/2"):
        server.client("p").publish(topic, b"x", 1, retain=True)
    subscriber = server.client("s")
    subscriber.subscribe("a/+", 1)
    [first] = subscriber.publishes()
    subscriber.subscribe("a/+", 0, retain_handling=1)
    subscriber.send(PubAck(first.packet_id))
    [second] = subscriber.publishes()
    assert (second.topic != first.topic, second.qos) == (True, 0)


def test_a_retained_message_expires() -> None:
    server = Server()
    publisher = server.client("p")
    publisher.send(Publish("t", b"1", retain=True, properties=Properties(message_expiry_interval=10)))
    server.advance(4)
    early = server.client("early")
    early.subscribe("t")
    assert early.one() == Publish("t", b"1", 0, True, properties=Properties(message_expiry_interval=6))
    server.advance(7)
    late = server.client("late")
    late.subscribe("t")
    assert late.received() == []


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_a_retained_message_expires_while_it_waits_for_a_slow_reader(version: int) -> None:
    server = Server(Limits(output_bytes=10))
    server.client("p").send(Publish("t", b"1", retain=True, properties=Properties(message_expiry_interval=10)))
    reader = server.client("s", version)
    reader.stop_reading()
    for _number in range(6):
        reader.send(PingReq())
    reader.send(Subscribe(1, [SubscriptionRequest("t")]))
    server.advance(11)
    reader.read_again()
    assert [packet for packet in reader.received() if isinstance(packet, Publish)] == []


def test_no_local_keeps_a_client_s_own_messages_from_it() -> None:
    server = Server()
    own = server.client("own")
    own.subscribe("t", 0, no_local=True)
    own.publish("t")
    assert own.received() == []
    server.client("p").publish("t", b"other")
    assert own.messages() == [("t", b"other")]


def test_each_overlapping_subscription_delivers_with_its_own_identifier() -> None:
    server = Server()
    subscriber = server.client("s")
    for number, topic_filter in enumerate(("a/+", "a/#"), 1):
        request = SubscriptionRequest(topic_filter)
        subscriber.send(Subscribe(number, [request], Properties(subscription_identifiers=(number * 1000,))))
    subscriber.received()
    server.client("p").publish("a/b")
    identifiers = [message.properties for message in subscriber.publishes()]
    assert sorted(repr(properties) for properties in identifiers) == [
        repr(Properties(subscription_identifiers=(number,))) for number in (1000, 2000)
    ]


def test_a_shared_group_takes_turns_and_skips_members_that_are_away() -> None:
    server = Server()
    members = [server.client(f"m{number}") for number in range(3)]
    for member in members:
        member.subscribe("$share/group/t", 1)
    outsider = server.client("outsider")
    outsider.subscribe("$share/other/t", 1)
    publisher = server.client("p")
    for _number in range(6):
        publisher.publish("t", b"x", 1)
    assert [len(member.messages()) for member in members] == [2, 2, 2]
    assert len(outsider.messages()) == 6
    members[1].lose()
    for _number in range(4):
        publisher.publish("t", b"x", 1)
    # and the two messages that it had not acknowledged
    assert [len(member.messages()) for member in (members[0], members[2])] == [3, 3]


def test_a_will_is_published_when_a_connection_breaks_and_not_after_disconnect() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will/#", 2)
    server.client("a", will=Will("will/a", b"gone", 1, True)).lose()
    assert [(m.topic, m.payload, m.qos) for m in watcher.publishes()] == [("will/a", b"gone", 1)]
    assert server.broker.retained.count == 1
    server.client("b", will=Will("will/b", b"gone")).send(Disconnect())
    assert watcher.received() == []
    server.client("c", will=Will("will/c", b"on request")).send(Disconnect(reason_codes.DISCONNECT_WITH_WILL_MESSAGE))
    assert watcher.messages() == [("will/c", b"on request")]


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_a_will_is_published_after_a_protocol_error_and_after_silence(version: int) -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will", 0)
    server.client("a", version, will=Will("will", b"error")).send_bytes(b"\xf0\x00" if version != V5 else b"\x00\x00")
    server.client("b", version, keep_alive=1, will=Will("will", b"silence"))
    server.advance(2)
    assert watcher.messages() == [("will", b"error"), ("will", b"silence")]


@pytest.mark.parametrize(("returns_after", "expected"), [(5, []), (15, [("will", b"gone")])])
def test_a_will_delay_gives_a_client_time_to_return(returns_after: float, expected: list[tuple[str, bytes]]) -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will")
    will = Will("will", b"gone", properties=Properties(will_delay_interval=10))
    server.client("a", session_expiry_interval=100, will=will).lose()
    server.advance(returns_after)
    server.client("a", clean_start=False, session_expiry_interval=100)
    server.advance(100)
    assert watcher.messages() == expected


def test_the_end_of_a_session_ends_the_will_delay() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will")
    will = Will("will", b"gone", properties=Properties(will_delay_interval=1000))
    server.client("a", session_expiry_interval=5, will=will).lose()
    server.advance(6)
    assert watcher.messages() == [("will", b"gone")]
    server.client("b", session_expiry_interval=500, will=will).lose()
    server.client("b", clean_start=True)
    assert watcher.messages() == [("will", b"gone")]


def test_a_takeover_publishes_the_will_unless_a_delay_covers_it() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will")
    server.client("a", session_expiry_interval=50, will=Will("will", b"at once"))
    server.client("a", clean_start=False, session_expiry_interval=50)
    assert watcher.messages() == [("will", b"at once")]
    delayed = Will("will", b"delayed", properties=Properties(will_delay_interval=10))
    server.client("b", session_expiry_interval=50, will=delayed)
    server.client("b", clean_start=False, session_expiry_interval=50)
    server.advance(20)
    assert watcher.messages() == []


def test_stopping_publishes_every_will() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will/#")
    delayed = Will("will/a", b"", properties=Properties(will_delay_interval=10))
    server.client("a", session_expiry_interval=50, will=delayed).lose()
    server.client("b", will=Will("will/b", b""))
    server.broker.stop(server.now)
    server.flush()
    assert sorted(watcher.messages()) == [("will/a", b""), ("will/b", b"")]


def test_a_will_never_writes_below_sys() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("$SYS/#")
    server.client("a", will=Will("$SYS/broker/version", b"mine", 0, True)).lose()
    assert watcher.received() == []
    assert server.broker.retained.count == 0


def test_what_is_noted_of_expiring_retained_messages_is_bounded() -> None:
    server = Server()
    publisher = server.client("p")
    for count in range(1000):
        own = Properties(message_expiry_interval=100_000 - count)
        publisher.send(Publish("t", b"x", 0, True, properties=own))
    publisher.send(Publish("u", b"x", 0, True, properties=Properties(message_expiry_interval=10)))
    publisher.publish("u", b"x", retain=True)
    used = server.broker.memory.used
    server.advance(98_000)
    assert server.broker.retained.count == 2
    server.advance(1100)
    assert server.broker.retained.count == 1
    assert server.broker.memory.used < used
    assert server.broker.next_deadline() is None


def test_clients_that_return_leave_no_deadlines_of_wills_behind() -> None:
    server = Server()
    will = Will("will", b"gone", properties=Properties(will_delay_interval=100_000))
    for _time in range(2000):
        will.properties = Properties(will_delay_interval=100_000)
        server.client("a", clean_start=False, will=will, session_expiry_interval=0xFFFFFFFF).lose()
        server.now += 0.01
    assert len(server.broker.deadlines.due(float("inf"))) < 600


# --- many retained messages ---------------------------------------------------------------------------------------


def test_what_many_filters_find_is_looked_for_one_after_the_other() -> None:
    server = Server()
    publisher = server.client("p")
    for number in range(300):
        publisher.publish(f"t/{number}", b"x", 0, True)
    subscriber = server.client("s")
    filters = ["#", "t/#", "t/+", "+/+", "+/#"]
    subscriber.stop_reading()
    subscriber.send(Subscribe(1, [SubscriptionRequest(one, 0) for one in filters]))
    backlog = subscriber.connection.backlog
    assert backlog is not None
    assert len(backlog.waiting) == 5
    subscriber.read_again()
    assert isinstance(subscriber.first(), SubAck)
    assert len(subscriber.publishes()) == 300 * 5
    assert subscriber.connection.backlog is None


def test_a_message_that_came_after_subscribe_is_not_sent_again_as_retained() -> None:
    server = Server()
    publisher = server.client("p")
    publisher.publish("a/1", b"old", 0, True)
    publisher.publish("b/1", b"old", 0, True)
    subscriber = server.client("s")
    subscriber.stop_reading()
    subscriber.send(Subscribe(1, [SubscriptionRequest(one, 0) for one in ("a/+", "b/+")]))
    server.now += 1
    publisher.publish("b/1", b"new", 0, True)
    publisher.publish("b/2", b"new", 0, True)
    subscriber.read_again()
    assert isinstance(subscriber.first(), SubAck)
    assert sorted((one.topic, one.payload, one.retain) for one in subscriber.publishes()) == [
        ("a/1", b"old", True),
        ("b/1", b"new", False),
        ("b/2", b"new", False),
    ]


def test_a_filter_given_up_is_not_looked_for() -> None:
    server = Server()
    server.client("p").publish("b/1", b"x", 0, True)
    subscriber = server.client("s")
    subscriber.stop_reading()
    subscriber.send(Subscribe(1, [SubscriptionRequest(one, 0) for one in ("a/+", "b/+")]))
    subscriber.send(Unsubscribe(2, ["b/+", "a/+"]))
    subscriber.read_again()
    assert [type(packet) for packet in subscriber.received()] == [SubAck, UnsubAck]


def test_a_search_that_finds_nothing_is_work_too() -> None:
    server = Server()
    publisher = server.client("p")
    publisher.send(*(Publish(f"a/{number}", b"x", 0, True) for number in range(3000)))
    client = server.client("c")
    client.connection.receive(encode(Subscribe(1, [SubscriptionRequest("+/+/none", 0)]), V5) * 100, server.now)
    server.flush()
    assert 0 < len(client.received()) < 30  # others come in between
    server.advance(1)
    assert len(client.received()) > 70


def test_messages_that_expire_together_are_removed_in_pieces() -> None:
    server = Server()
    publisher = server.client("p")
    short = Properties(message_expiry_interval=1)
    publisher.send(*(Publish(f"a/{number}", b"x", 0, True, properties=short) for number in range(2500)))
    server.now += 100
    server.broker.expire(server.now)
    assert server.broker.retained.count == 1500
    assert server.broker.next_deadline() == server.now
    server.advance(0)
    assert server.broker.retained.count == 0


def test_what_is_removed_leaves_no_node_behind() -> None:
    retained = Retained()
    names = ["a", "a/b", "a/b/c", "a/d", "$x/y", "/"]
    for name in names:
        retained.set(Message(name, b"x", 0, True, None, NEVER, ""))
    assert sorted(one.topic for one in retained.match("#", 0.0)) == ["/", "a", "a/b", "a/b/c", "a/d"]
    assert retained.visited == 7  # the root, the empty level above `/`, and what was found
    assert [one.topic for one in retained.match("a/+", 0.0)] == ["a/b", "a/d"]
    assert retained.visited == 4
    assert not retained.remove("a/x")
    assert not retained.remove("$x")
    for name in names:
        assert retained.remove(name)
    assert retained._root.is_empty()
    assert not retained._root.children


def retained_until(times: dict[str, float]) -> Retained:
    retained = Retained()
    for name, at in times.items():
        retained.set(Message(name, b"x", 0, True, None, at, ""))
    return retained


def test_a_retained_message_ends_when_its_time_has_come() -> None:
    retained = retained_until({"a": 10.0, "b": 20.0, "c": NEVER})
    assert [one.topic for one in retained.match("#", 9.9)] == ["a", "b", "c"]
    assert [one.topic for one in retained.match("#", 10.0)] == ["b", "c"]
    assert retained.next_expired(9.9) is None
    expired = retained.next_expired(10.0)
    assert expired is not None
    assert expired.topic == "a"


def test_the_first_to_expire_is_found_however_often_others_were_replaced() -> None:
    retained = retained_until({"late": 1000.0, "later": 2000.0, "first": 10.0, "second": 20.0})
    afresh = 0
    for _ in range(1000):
        before = retained._expiry_heap
        retained.set(Message("late", b"x", 0, True, None, 3000.0, ""))
        assert len(retained._expiry_heap) <= 2 * 4 + 64
        afresh += retained._expiry_heap is not before
    assert afresh < 20
    for name in ("first", "second"):
        expired = retained.next_expired(20.0)
        assert expired is not None
        assert expired.topic == name
        retained.remove(name)
    assert retained.next_expired(20.0) is None


@pytest.mark.parametrize(
    ("topic_filter", "found"),
    [
        ("#", ["a/$b", "a/$b/c"]),
        ("a/#", ["a/$b", "a/$b/c"]),
        ("a/+", ["a/$b"]),
        ("+/+", ["a/$b"]),
        ("+/+/c", ["a/$b/c"]),
        ("+/#", ["a/$b", "a/$b/c"]),
        ("$x/#", ["$x/$y"]),
        ("$x/+", ["$x/$y"]),
    ],
)
def test_a_dollar_hides_from_wildcards_at_the_first_level_alone(topic_filter: str, found: list[str]) -> None:
    retained = retained_until(dict.fromkeys(["a/$b", "a/$b/c", "$x/$y"], NEVER))
    assert [one.topic for one in retained.match(topic_filter, 0.0)] == found
