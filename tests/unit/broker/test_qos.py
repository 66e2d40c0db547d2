"""Delivery at each QoS, both ways, for all three versions (MQTT 5 §4.3, §4.4, §4.6, §4.9)."""

from __future__ import annotations

import pytest

from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import (
    V3_1,
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    Disconnect,
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
)
from lockgate.mqtt.properties import Properties
from tests.support.server import Server

VERSIONS = [V3_1, V3_1_1, V5]


@pytest.mark.parametrize("publisher_version", VERSIONS)
@pytest.mark.parametrize("subscriber_version", VERSIONS)
@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_a_message_is_delivered_at_the_lower_qos(
    publisher_version: int, subscriber_version: int, published: int, subscribed: int
) -> None:
    server = Server()
    subscriber = server.client("s", subscriber_version)
    subscriber.subscribe("a/+", subscribed)
    server.client("p", publisher_version).publish("a/b", b"payload", published)
    [message] = subscriber.publishes()
    assert (message.topic, message.payload, message.qos) == ("a/b", b"payload", min(published, subscribed))
    assert not message.retain
    assert not message.dup


def test_qos_2_is_routed_when_pubrel_arrives_and_once() -> None:
    server = Server()
    subscriber = server.client("s")
    subscriber.subscribe("t", 2)
    publisher = server.client("p")
    publisher.send(Publish("t", b"1", 2, packet_id=7))
    assert publisher.one() == PubRec(7)
    publisher.send(Publish("t", b"1", 2, dup=True, packet_id=7))
    assert publisher.one() == PubRec(7)
    assert subscriber.received() == []
    publisher.send(PubRel(7))
    assert publisher.one() == PubComp(7)
    assert subscriber.messages() == [("t", b"1")]
    publisher.send(PubRel(7))
    assert publisher.one() == PubComp(7, reason_codes.PACKET_IDENTIFIER_NOT_FOUND)
    assert subscriber.received() == []


def test_qos_2_to_a_receiver_goes_through_all_four_packets() -> None:
    server = Server()
    subscriber = server.client("s")
    subscriber.subscribe("t", 2)
    server.client("p").publish("t", b"1", 2)
    [message] = subscriber.publishes()
    subscriber.send(PubRec(message.packet_id))
    assert subscriber.one() == PubRel(message.packet_id)
    subscriber.send(PubRec(message.packet_id))
    assert subscriber.one() == PubRel(message.packet_id)
    subscriber.send(PubComp(message.packet_id))
    assert subscriber.received() == []
    assert server.broker.sessions["s"].in_flight == {}


def test_pubrec_for_an_unknown_identifier_is_answered_0x92() -> None:
    peer = Server().client("s")
    peer.send(PubRec(5))
    assert peer.one() == PubRel(5, reason_codes.PACKET_IDENTIFIER_NOT_FOUND)


def test_a_qos_2_message_refused_by_the_receiver_ends_with_its_pubrec() -> None:
    server = Server()
    subscriber = server.client("s")
    subscriber.subscribe("t", 2)
    server.client("p").publish("t", b"1", 2)
    [message] = subscriber.publishes()
    subscriber.send(PubRec(message.packet_id, reason_codes.QUOTA_EXCEEDED))
    assert subscriber.received() == []
    assert server.broker.sessions["s"].in_flight == {}


@pytest.mark.parametrize("qos", [1, 2])
def test_version_5_hears_that_nobody_is_subscribed(qos: int) -> None:
    server = Server()
    for version, code in ((V3_1_1, 0), (V5, reason_codes.NO_MATCHING_SUBSCRIBERS)):
        publisher = server.client("p", version)
        publisher.send(Publish("nobody", b"", qos, packet_id=1))
        answer = publisher.one()
        assert answer == (PubAck(1, code) if qos == 1 else PubRec(1, code))


def test_the_window_holds_messages_back_and_acknowledgements_open_it() -> None:
    server = Server(Limits(max_inflight_messages=2))
    subscriber = server.client("s")
    subscriber.subscribe("t", 1)
    publisher = server.client("p")
    for number in range(5):
        publisher.publish("t", b"%d" % number, 1)
    first = subscriber.publishes()
    assert [message.payload for message in first] == [b"0", b"1"]
    subscriber.send(PubAck(first[0].packet_id))
    second = subscriber.publishes()
    assert [message.payload for message in second] == [b"2"]
    subscriber.send(PubAck(first[1].packet_id), PubAck(second[0].packet_id))
    assert [message.payload for message in subscriber.publishes()] == [b"3", b"4"]


def test_the_receiver_s_receive_maximum_bounds_the_window() -> None:
    server = Server()
    subscriber = server.client("s", receive_maximum=1)
    subscriber.subscribe("t", 2)
    publisher = server.client("p")
    publisher.publish("t", b"1", 2)
    publisher.publish("t", b"2", 2)
    [message] = subscriber.publishes()
    subscriber.send(PubRec(message.packet_id))
    assert subscriber.one() == PubRel(message.packet_id)  # not yet free
    subscriber.send(PubComp(message.packet_id))
    assert subscriber.messages() == [("t", b"2")]


def test_max_inflight_bytes_holds_back_but_never_for_ever() -> None:
    server = Server(Limits(max_inflight_bytes=10))
    subscriber = server.client("s")
    subscriber.subscribe("t", 1)
    publisher = server.client("p")
    publisher.publish("t", b"x" * 50, 1)
    publisher.publish("t", b"y", 1)
    [message] = subscriber.publishes()
    subscriber.send(PubAck(message.packet_id))
    assert subscriber.messages() == [("t", b"y")]


@pytest.mark.parametrize("limits", [Limits(max_queued_messages=2), Limits(max_queued_bytes=4)])
def test_a_full_queue_drops_the_newest_and_counts_it(limits: Limits) -> None:
    server = Server(limits)
    server.client("s", V3_1_1, clean_start=False).subscribe("t", 1)
    server.peers[1].lose()
    publisher = server.client("p")
    for number in range(4):
        publisher.publish("t", b"%d" % number, 1)
    assert server.broker.statistics.dropped_queue_full == 2
    assert sum("being dropped for client s:" in line for line in server.log.lines) == 1
    back = server.client("s", V3_1_1, clean_start=False)
    assert back.connack.session_present


def test_order_is_kept_across_queue_and_window() -> None:
    server = Server(Limits(max_inflight_messages=3, max_queued_messages=0, queue_head=4))
    subscriber = server.client("s", V3_1_1, clean_start=False)
    subscriber.subscribe("t", 1)
    publisher = server.client("p")
    sent = [b"%d" % number for number in range(40)]
    seen: list[bytes] = []
    for payload in sent[:20]:
        publisher.publish("t", payload, 1)
    subscriber.lose()
    for payload in sent[20:]:
        publisher.publish("t", payload, 1)
    subscriber = server.client("s", V3_1_1, clean_start=False)
    while waiting := subscriber.publishes():
        for message in waiting:
            if message.payload not in seen:
                seen.append(message.payload)
            subscriber.send(PubAck(message.packet_id))
    assert seen == sent


def test_a_publish_above_max_qos_ends_the_connection() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_qos=1))
    new = server.client("new")
    assert new.connack.properties is not None
    assert new.connack.properties.maximum_qos == 1
    new.send(Publish("t", b"", 2, packet_id=1))
    assert new.one() == Disconnect(reason_codes.QOS_NOT_SUPPORTED)
    assert new.closed
    old = server.client("old", V3_1_1)
    old.send(Publish("t", b"", 2, packet_id=1))
    assert old.received() == []
    assert old.closed


def test_a_client_that_never_releases_qos_2_messages_is_bounded() -> None:
    server = Server(Limits(max_inflight_messages=2, max_queued_messages=3))
    publisher = server.client("p")
    for number in range(1, 6):
        publisher.send(Publish("t", b"", 2, packet_id=number))
        publisher.expect(PubRec)
    publisher.send(Publish("t", b"", 2, packet_id=6))
    assert publisher.one() == Disconnect(reason_codes.RECEIVE_MAXIMUM_EXCEEDED)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_refused_message_replaces_the_one_that_waits_under_its_identifier(version: int) -> None:
    server = Server()
    subscriber = server.client("s")
    subscriber.subscribe("#", 2)
    publisher = server.client("p", version)
    before = server.broker.memory.used
    publisher.send(Publish("a", b"waits", 2, packet_id=6), Publish("$SYS/a", b"refused", 2, packet_id=6))
    assert server.broker.memory.used == before
    publisher.send(PubRel(6))
    assert subscriber.received() == []


def test_a_client_that_leaves_no_room_for_connack_is_refused() -> None:
    server = Server()
    small = server.peer()
    small.send(Connect("c", V5, properties=Properties(maximum_packet_size=10)))
    assert small.one() == ConnAck(reason_codes.PACKET_TOO_LARGE)
    assert small.closed
    assert not server.broker.sessions
    smallest = server.peer()
    smallest.send(Connect("c", V5, properties=Properties(maximum_packet_size=4)))
    assert smallest.received() == []
    assert smallest.closed


@pytest.mark.parametrize("count", [26, 200])
def test_a_client_that_leaves_no_room_for_suback_is_disconnected(count: int) -> None:
    server = Server()
    small = server.client("c", maximum_packet_size=30 if count == 26 else count + 5)
    topics = [f"t/{number}" for number in range(count)]
    small.send(Subscribe(1, [SubscriptionRequest(topic) for topic in topics[1:]]))
    assert isinstance(small.one(), SubAck)
    small.send(Unsubscribe(2, topics[1:]))
    assert isinstance(small.one(), UnsubAck)
    small.send(Subscribe(3, [SubscriptionRequest(topic) for topic in topics]))
    assert small.one() == Disconnect(reason_codes.PACKET_TOO_LARGE)
    assert small.closed


def test_a_message_beyond_the_receiver_s_maximum_packet_size_is_dropped_for_it_alone() -> None:
    server = Server()
    small = server.client("small", maximum_packet_size=30)
    large = server.client("large")
    for peer in (small, large):
        peer.subscribe("t", 1)
    publisher = server.client("p")
    for qos in (0, 1):
        publisher.publish("t", b"x" * 40, qos)
        publisher.publish("t", b"fits", qos)
    assert small.messages() == [("t", b"fits")] * 2
    assert len(large.messages()) == 4
    assert server.broker.statistics.dropped_too_large == 2
    assert len(server.broker.sessions["small"].in_flight) == 1


def test_message_expiry_is_shortened_by_waiting_and_ends_the_message() -> None:
    server = Server()
    server.client("s", session_expiry_interval=1000).subscribe("t", 1)
    server.peers[1].lose()
    publisher = server.client("p")
    for seconds in (5, 60):
        properties = Properties(message_expiry_interval=seconds, content_type="c")
        publisher.send(Publish("t", b"%d" % seconds, 1, packet_id=1, properties=properties))
    server.advance(10)
    [message] = server.client("s", clean_start=False, session_expiry_interval=1000).publishes()
    assert message.payload == b"60"
    assert message.properties == Properties(message_expiry_interval=50, content_type="c")
    assert server.broker.statistics.dropped_expired == 1


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_sent_once_does_not_expire(qos: int) -> None:
    server = Server()
    subscriber = server.client("s", session_expiry_interval=1000)
    subscriber.subscribe("t", qos)
    properties = Properties(message_expiry_interval=5)
    server.client("p").send(Publish("t", b"1", qos, packet_id=1, properties=properties), PubRel(1))
    [first] = subscriber.publishes()
    subscriber.lose()
    server.advance(10)
    [again] = server.client("s", clean_start=False, session_expiry_interval=1000).publishes()
    expired = Properties(message_expiry_interval=0)
    assert again == Publish("t", b"1", qos, dup=True, packet_id=first.packet_id, properties=expired)


def test_properties_travel_between_version_5_clients_in_order() -> None:
    server = Server()
    subscriber = server.client("s")
    subscriber.subscribe("t")
    old = server.client("old", V3_1_1)
    old.subscribe("t")
    properties = Properties(
        payload_format_indicator=1,
        response_topic="answer",
        correlation_data=b"\x00",
        user_properties=(("b", "1"), ("a", "2"), ("b", "1")),
    )
    server.client("p").send(Publish("t", b"x", properties=properties))
    assert subscriber.one() == Publish("t", b"x", properties=properties)
    assert old.one() == Publish("t", b"x")


def test_topic_aliases_of_a_client_are_resolved_and_bounded() -> None:
    server = Server()
    subscriber = server.client("s")
    subscriber.subscribe("t")
    publisher = server.client("p")
    publisher.send(
        Publish("t", b"1", properties=Properties(topic_alias=3)),
        Publish("", b"2", properties=Properties(topic_alias=3)),
    )
    assert subscriber.messages() == [("t", b"1"), ("t", b"2")]
    publisher.send(Publish("t", b"3", properties=Properties(topic_alias=11)))
    assert publisher.one() == Disconnect(reason_codes.TOPIC_ALIAS_INVALID)


def test_an_alias_never_set_up_is_a_protocol_error() -> None:
    publisher = Server().client("p")
    publisher.send(Publish("", b"", properties=Properties(topic_alias=1)))
    assert publisher.one() == Disconnect(reason_codes.PROTOCOL_ERROR)


def test_the_broker_sets_up_aliases_for_clients_that_allow_them() -> None:
    server = Server()
    subscriber = server.client("s", topic_alias_maximum=1)
    subscriber.subscribe("#", 1)
    publisher = server.client("p")
    publisher.publish("long/topic", b"1")
    publisher.publish("long/topic", b"2")
    publisher.publish("other", b"3")
    publisher.publish("long/topic", b"4", 1)
    first, second, third, fourth = subscriber.publishes()
    assert (first.topic, first.properties) == ("long/topic", Properties(topic_alias=1))
    assert (second.topic, second.properties) == ("", Properties(topic_alias=1))
    assert (third.topic, third.properties) == ("other", None)
    assert (fourth.topic, fourth.qos, fourth.properties) == ("", 1, Properties(topic_alias=1))


def test_a_slow_reader_s_qos_0_is_dropped_and_its_qos_1_waits() -> None:
    server = Server(Limits(output_bytes=1000, max_inflight_messages=5))
    slow = server.client("slow")
    quick = server.client("quick")
    for peer in (slow, quick):
        peer.subscribe("t", 1)
    slow.stop_reading()
    publisher = server.client("p")
    for _number in range(30):
        publisher.publish("t", b"x" * 100)
    publisher.publish("t", b"kept", 1)
    assert len(quick.messages()) == 31
    assert server.broker.statistics.dropped_slow > 0
    assert slow.connection.output_bytes < 1300
    slow.read_again()
    messages = slow.messages()
    assert messages[-1] == ("t", b"kept")
    assert len(messages) + server.broker.statistics.dropped_slow == 31
