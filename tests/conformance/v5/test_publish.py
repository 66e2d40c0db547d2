"""PUBLISH (MQTT 5 §3.3)."""

from __future__ import annotations

from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import (
    V5,
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
)
from lockgate.mqtt.properties import Properties
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def _passed_on(sent: Properties) -> Properties | None:
    """Give the properties that a subscriber gets, which are the same at every QoS, live and retained."""
    found: list[Properties | None] = []
    for qos in (0, 1, 2):
        for retained in (False, True):
            server = Server()
            peer = server.client("s")
            publisher = server.client("p")
            if not retained:
                peer.subscribe("t", qos)
            publisher.send(Publish("t", b"x", qos, retained, packet_id=1 if qos else 0, properties=sent))
            if qos == 2:
                publisher.send(PubRel(1))
            if retained:
                peer.subscribe("t", qos)
            [message] = peer.publishes()
            found.append(message.properties if message.properties is not None else Properties())
    assert all(one == found[0] for one in found)
    return found[0]


def test_mqtt_3_3_1_1_a_publish_sent_again_has_dup() -> None:
    scenarios.sent_again_with_dup(V5)


def test_mqtt_3_3_1_2_qos_0_goes_out_without_dup() -> None:
    scenarios.qos_0_never_has_dup(V5)


def test_mqtt_3_3_1_2_qos_0_with_dup_is_malformed() -> None:
    scenarios.qos_0_with_dup_ends_the_connection(V5)


def test_mqtt_3_3_1_3_dup_is_not_passed_on() -> None:
    scenarios.dup_is_not_passed_on(V5)


def test_mqtt_3_3_1_4_qos_3_is_malformed() -> None:
    scenarios.qos_3_ends_the_connection(V5)


def test_mqtt_3_3_1_5_a_retained_message_is_replaced_with_its_qos() -> None:
    scenarios.retained_is_replaced_with_its_qos(V5)


def test_mqtt_3_3_1_6_an_empty_retained_message_is_delivered_and_removes() -> None:
    scenarios.empty_retained_message_removes(V5)


def test_mqtt_3_3_1_7_an_empty_message_is_never_retained() -> None:
    scenarios.empty_message_is_never_retained(V5)


def test_mqtt_3_3_1_8_a_message_without_retain_leaves_the_retained_one() -> None:
    scenarios.unretained_message_leaves_the_retained_one(V5)


def test_mqtt_3_3_1_9_retain_handling_0_brings_retained_messages_each_time() -> None:
    server = Server()
    server.client("p").publish("t", b"kept", retain=True)
    peer = server.client("s")
    for _time in range(2):
        peer.subscribe("t", retain_handling=0)
        [message] = peer.publishes()
        assert (message.payload, message.retain) == (b"kept", True)


def test_mqtt_3_3_1_10_retain_handling_1_brings_them_to_a_new_subscription_only() -> None:
    server = Server()
    server.client("p").publish("t", b"kept", retain=True)
    peer = scenarios.durable(server, "s", V5)
    peer.subscribe("t", retain_handling=1)
    assert peer.messages() == [("t", b"kept")]
    peer.subscribe("t", retain_handling=1)
    assert peer.received() == []
    scenarios.leave(peer)
    peer = scenarios.durable(server, "s", V5)
    peer.subscribe("t", retain_handling=1)
    assert peer.received() == []


def test_mqtt_3_3_1_11_retain_handling_2_brings_none() -> None:
    server = Server()
    server.client("p").publish("t", b"kept", retain=True)
    peer = server.client("s")
    peer.subscribe("t", retain_handling=2)
    assert peer.received() == []
    server.client("q").publish("t", b"live", retain=True)
    assert peer.messages() == [("t", b"live")]


def test_mqtt_3_3_1_12_without_retain_as_published_retain_is_clear() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("t", 1)
    publisher = server.client("p")
    for qos in (0, 1):
        publisher.publish("t", b"x", qos, retain=True)
        publisher.publish("t", b"x", qos)
    assert [message.retain for message in peer.publishes()] == [False] * 4


def test_mqtt_3_3_1_13_with_retain_as_published_retain_is_as_it_came() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("t", 1, retain_as_published=True)
    publisher = server.client("p")
    for qos in (0, 1):
        publisher.publish("t", b"x", qos, retain=True)
        publisher.publish("t", b"x", qos)
    assert [message.retain for message in peer.publishes()] == [True, False] * 2


def test_mqtt_3_3_2_1_the_topic_name_is_a_proper_string() -> None:
    scenarios.topic_name_is_checked(V5)


def test_mqtt_3_3_2_2_wildcards_in_a_topic_name_are_malformed() -> None:
    scenarios.wildcards_in_a_topic_name_end_the_connection(V5)


def test_mqtt_3_3_2_3_what_a_subscription_brings_matches_it() -> None:
    scenarios.what_a_subscription_brings_matches_it(V5)


def test_mqtt_3_3_2_4_the_payload_format_indicator_is_passed_on() -> None:
    for indicator in (0, 1, None):
        assert _passed_on(Properties(payload_format_indicator=indicator)) == Properties(
            payload_format_indicator=indicator
        )


def test_mqtt_3_3_2_5_a_message_whose_time_is_over_is_not_delivered() -> None:
    server = Server()
    peer = scenarios.durable(server, "s", V5)
    peer.subscribe("t", 1)
    scenarios.leave(peer)
    publisher = server.client("p")
    for seconds in (10, 20):
        publisher.send(
            Publish("t", b"%d" % seconds, 1, packet_id=1, properties=Properties(message_expiry_interval=seconds))
        )
    server.advance(10)
    assert scenarios.payloads(scenarios.durable(server, "s", V5).publishes()) == [b"20"]
    assert server.broker.statistics.dropped_expired == 1


def test_mqtt_3_3_2_5_a_retained_message_whose_time_is_over_is_deleted() -> None:
    server = Server()
    publisher = server.client("p")
    for topic, seconds in (("a", 10), ("a/b", 10), ("c", 2000)):
        publisher.send(Publish(topic, b"x", 0, True, properties=Properties(message_expiry_interval=seconds)))
    publisher.publish("d", b"x", retain=True)
    assert server.broker.retained.count == 4
    server.advance(10)
    peer = server.client("s")
    peer.subscribe("#")
    assert sorted(topic for topic, _payload in peer.messages()) == ["c", "d"]
    server.advance(1000)
    assert server.broker.retained.count == 2
    assert server.broker.retained.size_bytes == 4


def test_mqtt_3_3_2_5_a_message_that_lives_for_no_time_at_all_reaches_nobody() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("t", 2)
    publisher = server.client("p")
    for qos in (0, 1, 2):
        publisher.send(Publish("t", b"x", qos, packet_id=qos, properties=Properties(message_expiry_interval=0)))
    publisher.send(PubRel(2))
    assert peer.received() == []
    assert [packet.type for packet in publisher.received()] == [PubAck(1).type, PubRec(2).type, PubComp(2).type]


def test_mqtt_3_3_2_6_the_time_of_waiting_is_taken_off() -> None:
    server = Server()
    peer = scenarios.durable(server, "s", V5)
    peer.subscribe("t", 1)
    scenarios.leave(peer)
    server.client("p").send(Publish("t", b"x", 1, packet_id=1, properties=Properties(message_expiry_interval=100)))
    server.advance(30)
    peer = scenarios.durable(server, "s", V5)
    [message] = peer.publishes()
    assert message.properties == Properties(message_expiry_interval=70)
    server.client("q").send(Publish("t", b"x", 0, properties=Properties(message_expiry_interval=100)))
    [message] = peer.publishes()
    assert message.properties == Properties(message_expiry_interval=100)


def test_mqtt_3_3_2_7_aliases_of_a_client_end_with_its_connection() -> None:
    server = Server()
    peer = scenarios.durable(server, "p", V5)
    peer.send(Publish("t", properties=Properties(topic_alias=1)))
    scenarios.leave(peer)
    peer = scenarios.durable(server, "p", V5)
    peer.send(Publish("", properties=Properties(topic_alias=1)))
    scenarios.assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def test_mqtt_3_3_2_7_aliases_of_the_server_end_with_the_connection() -> None:
    server = Server()
    publisher = server.client("p")
    for _time in range(2):
        peer = server.client("s", topic_alias_maximum=5)
        peer.subscribe("t")
        publisher.publish("t")
        publisher.publish("t")
        first, second = peer.publishes()
        assert (first.topic, second.topic) == ("t", "")


def test_mqtt_3_3_2_8_alias_0_ends_the_connection() -> None:
    peer = Server().client("p")
    peer.send_bytes(raw.publish(V5, b"t", own=b"\x23\x00\x00"))
    scenarios.assert_ended(peer, reason_codes.TOPIC_ALIAS_INVALID)


def test_mqtt_3_3_2_8_the_server_s_aliases_begin_at_1() -> None:
    server = Server()
    peer = server.client("s", topic_alias_maximum=0xFFFF)
    peer.subscribe("#")
    publisher = server.client("p")
    for topic in ("a", "b", "c"):
        publisher.publish(topic)
    assert [message.properties and message.properties.topic_alias for message in peer.publishes()] == [1, 2, 3]


def test_mqtt_3_3_2_9_an_alias_above_the_server_s_maximum_ends_the_connection() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_topic_alias=10))
    for alias in (11, 0xFFFF):
        peer = server.client("p")
        peer.send(Publish("t", properties=Properties(topic_alias=alias)))
        scenarios.assert_ended(peer, reason_codes.TOPIC_ALIAS_INVALID)


def test_mqtt_3_3_2_11_the_server_sends_no_alias_above_the_client_s_maximum() -> None:
    server = Server()
    peer = server.client("s", topic_alias_maximum=3)
    peer.subscribe("#", 1)
    publisher = server.client("p")
    for _time in range(2):
        for topic in ("a", "b", "c", "d", "e"):
            publisher.publish(topic)
            publisher.publish(topic, b"x", 1)
    for message in peer.publishes():
        alias = message.properties.topic_alias if message.properties is not None else None
        assert alias in (None, 1, 2, 3)
        assert message.topic or alias


def test_mqtt_3_3_2_12_every_alias_up_to_the_maximum_is_taken() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_topic_alias=5))
    peer = server.client("s")
    peer.subscribe("#")
    publisher = server.client("p")
    for alias in range(1, 6):
        publisher.send(Publish(f"t{alias}", b"set", properties=Properties(topic_alias=alias)))
    for alias in range(1, 6):
        publisher.send(Publish("", b"used", properties=Properties(topic_alias=alias)))
    publisher.send(Publish("new", b"set", 1, packet_id=1, properties=Properties(topic_alias=3)))
    publisher.send(Publish("", b"used", 1, packet_id=2, properties=Properties(topic_alias=3)))
    topics = [topic for topic, _payload in peer.messages()]
    assert topics == [*(f"t{alias}" for alias in range(1, 6)), *(f"t{alias}" for alias in range(1, 6)), "new", "new"]


def test_mqtt_3_3_2_13_the_response_topic_is_a_proper_string() -> None:
    scenarios.string_is_checked(V5, lambda text: raw.publish(V5, b"t", own=b"\x08" + raw.string(text)))


def test_mqtt_3_3_2_14_wildcards_in_a_response_topic_are_malformed() -> None:
    for topic in (b"a/+", b"#", b"+", b"a+b"):
        peer = Server().client("p")
        peer.send_bytes(raw.publish(V5, b"t", own=b"\x08" + raw.string(topic)))
        scenarios.assert_ended(peer)


def test_mqtt_3_3_2_15_the_response_topic_is_passed_on() -> None:
    assert _passed_on(Properties(response_topic="a//é ")) == Properties(response_topic="a//é ")


def test_mqtt_3_3_2_16_correlation_data_is_passed_on() -> None:
    for data in (b"", bytes(range(256)), b"x" * 65_535):
        assert _passed_on(Properties(correlation_data=data)) == Properties(correlation_data=data)


def test_mqtt_3_3_2_17_all_user_properties_are_passed_on() -> None:
    pairs = (*((f"name {count}", "é" * count) for count in range(50)), ("", ""))
    assert _passed_on(Properties(user_properties=pairs)) == Properties(user_properties=pairs)


def test_mqtt_3_3_2_18_user_properties_keep_their_order() -> None:
    pairs = (("b", "1"), ("a", "2"), ("b", "0"), ("a", "2"), ("c", "0"))
    passed = _passed_on(Properties(user_properties=pairs))
    assert passed is not None
    assert passed.user_properties == pairs


def test_mqtt_3_3_2_19_the_content_type_is_a_proper_string() -> None:
    scenarios.string_is_checked(V5, lambda text: raw.publish(V5, b"t", own=b"\x03" + raw.string(text)))


def test_mqtt_3_3_2_20_the_content_type_is_passed_on() -> None:
    assert _passed_on(Properties(content_type="text/é")) == Properties(content_type="text/é")


def test_mqtt_3_3_4_1_publish_is_answered_by_its_qos() -> None:
    scenarios.publish_is_answered_by_its_qos(V5)


def test_mqtt_3_3_4_2_overlapping_subscriptions_reach_the_highest_qos() -> None:
    scenarios.overlapping_subscriptions_reach_the_highest_qos(V5)


def test_mqtt_3_3_4_3_the_subscription_identifier_goes_along() -> None:
    for identifier in (1, 127, 128, 268_435_455):
        for qos in (0, 1, 2):
            server = Server()
            peer = server.client("s")
            own = Properties(subscription_identifiers=(identifier,))
            peer.send(Subscribe(1, [SubscriptionRequest("t/#", qos)], own))
            peer.expect(SubAck)
            server.client("p").publish("t", b"x", qos)
            [message] = peer.publishes()
            assert message.properties == own


def test_mqtt_3_3_4_3_the_subscription_identifier_goes_with_retained_messages() -> None:
    server = Server()
    server.client("p").publish("t", b"x", retain=True)
    peer = server.client("s")
    own = Properties(subscription_identifiers=(5,))
    peer.send(Subscribe(1, [SubscriptionRequest("t")], own))
    peer.expect(SubAck)
    [message] = peer.publishes()
    assert message.properties == own


def test_mqtt_3_3_4_5_each_copy_carries_its_own_identifier() -> None:
    server = Server()
    peer = server.client("s")
    for identifier, topic_filter in ((7, "t/#"), (8, "t/a"), (9, "+/a")):
        own = Properties(subscription_identifiers=(identifier,))
        peer.send(Subscribe(1, [SubscriptionRequest(topic_filter, 1)], own))
        peer.expect(SubAck)
    peer.subscribe("#")
    server.client("p").publish("t/a", b"x", 1)
    identifiers = [
        message.properties.subscription_identifiers if message.properties else () for message in peer.publishes()
    ]
    assert sorted(identifiers) == [(), (7,), (8,), (9,)]


def test_mqtt_3_3_4_6_a_subscription_identifier_from_a_client_ends_the_connection() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("t")
    peer = server.client("p")
    peer.send(Publish("t", properties=Properties(subscription_identifiers=(1,))))
    scenarios.assert_ended(peer, reason_codes.PROTOCOL_ERROR)
    assert watcher.received() == []


def test_mqtt_3_3_4_7_a_client_far_beyond_the_receive_maximum_is_closed() -> None:
    server = Server(Limits(max_inflight_messages=2, max_queued_messages=3))
    peer = server.client("p")
    assert peer.connack.properties is not None
    assert peer.connack.properties.receive_maximum == 2
    for packet_id in range(1, 6):
        peer.send(Publish("t", b"x", 2, packet_id=packet_id))
    assert len(peer.received()) == 5
    assert [line for line in server.log.lines if "Receive Maximum of 2" in line] == [
        "Client p has more QoS 2 messages open than the Receive Maximum of 2 (max_inflight_messages)."
    ]
    peer.send(Publish("t", b"x", 2, packet_id=6))
    scenarios.assert_ended(peer, reason_codes.RECEIVE_MAXIMUM_EXCEEDED)


def test_mqtt_3_3_4_9_the_client_s_receive_maximum_is_kept() -> None:
    server = Server(Limits(max_inflight_messages=20))
    peer = server.client("s", receive_maximum=3)
    peer.subscribe("t", 2)
    publisher = server.client("p")
    for count in range(10):
        publisher.publish("t", b"%d" % count, 1 + count % 2)
    first = peer.publishes()
    assert scenarios.payloads(first) == [b"0", b"1", b"2"]
    peer.send(PubRec(first[1].packet_id))  # still one of three: PUBCOMP ends it
    assert peer.one() == PubRel(first[1].packet_id)
    peer.send(PubComp(first[1].packet_id))
    assert scenarios.payloads(peer.publishes()) == [b"3"]
    peer.send(PubAck(first[0].packet_id))
    assert scenarios.payloads(peer.publishes()) == [b"4"]
    peer.send(PubRec(first[1].packet_id % 1000 + 2, reason_codes.UNSPECIFIED_ERROR))
    assert len(scenarios.publishes_among(peer.received())) <= 1


def test_mqtt_3_3_4_10_other_packets_are_sent_at_the_receive_maximum() -> None:
    server = Server()
    peer = server.client("s", receive_maximum=1)
    peer.subscribe("t", 2)
    publisher = server.client("p")
    for qos in (2, 2, 0):
        publisher.publish("t", b"%d" % qos, qos)
    first, at_qos_0 = peer.publishes()
    assert (first.qos, at_qos_0.qos) == (2, 0)
    peer.send(PingReq(), Subscribe(3, [SubscriptionRequest("u")]), PubRec(first.packet_id))
    assert peer.received() == [PingResp(), SubAck(3, [0]), PubRel(first.packet_id)]
    peer.send(Publish("t", b"own", 1, packet_id=9))
    assert PubAck(9) in peer.received()
