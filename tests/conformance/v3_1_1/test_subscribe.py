"""SUBSCRIBE, UNSUBSCRIBE and their answers (MQTT 3.1.1 §3.8 to §3.11)."""

from __future__ import annotations

from lockgate.broker.limits import Limits
from lockgate.mqtt.packets import V3_1_1, SubAck, Subscribe, SubscriptionRequest
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def test_mqtt_3_8_1_1_subscribe_with_other_flags_ends_the_connection() -> None:
    scenarios.reserved_flags_end_the_connection(
        V3_1_1, lambda flags: raw.subscribe(V3_1_1, b"t", first=0x80 | flags), 2
    )


def test_mqtt_3_8_3_1_filters_of_subscribe_are_proper_strings() -> None:
    scenarios.string_is_checked(V3_1_1, lambda text: raw.subscribe(V3_1_1, text))


def test_mqtt_3_8_3_3_subscribe_without_a_filter_ends_the_connection() -> None:
    scenarios.subscribe_without_a_filter_ends_the_connection(V3_1_1)


def test_mqtt_3_8_3_4_reserved_bits_and_qos_3_end_the_connection() -> None:
    server = Server()
    for options in range(256):
        peer = server.client("s", V3_1_1)
        peer.send_bytes(raw.subscribe(V3_1_1, b"t", options))
        if options <= 2:
            assert peer.one() == SubAck(7, [options])
        else:
            scenarios.assert_ended(peer)


def test_mqtt_3_8_4_1_subscribe_is_answered() -> None:
    scenarios.subscribe_is_answered(V3_1_1, 1)


def test_mqtt_3_8_4_2_suback_has_the_identifier_of_its_subscribe() -> None:
    scenarios.subscribe_is_answered(V3_1_1, 0xABCD)


def test_mqtt_3_8_4_3_an_identical_filter_replaces_the_subscription() -> None:
    scenarios.identical_filter_replaces(V3_1_1)


def test_mqtt_3_8_4_3_replacing_brings_retained_messages_and_loses_none() -> None:
    scenarios.replacing_brings_retained_messages_and_loses_none(V3_1_1)


def test_mqtt_3_8_4_4_several_filters_get_one_suback() -> None:
    scenarios.several_filters_one_suback(V3_1_1)


def test_mqtt_3_8_4_5_suback_tells_the_granted_qos_of_each_filter() -> None:
    scenarios.granted_qos_is_told(V3_1_1)


def test_mqtt_3_8_4_6_messages_come_at_the_lower_qos() -> None:
    scenarios.messages_come_at_the_lower_qos(V3_1_1)


def test_mqtt_3_9_3_1_return_codes_are_in_the_order_of_the_filters() -> None:
    scenarios.several_filters_one_suback(V3_1_1)


def test_mqtt_3_9_3_2_return_codes_are_those_of_the_table() -> None:
    scenarios.granted_qos_is_told(V3_1_1)


def test_mqtt_3_10_1_1_unsubscribe_with_other_flags_ends_the_connection() -> None:
    scenarios.reserved_flags_end_the_connection(V3_1_1, lambda flags: raw.unsubscribe(V3_1_1, b"t", 0xA0 | flags), 2)


def test_mqtt_3_10_3_1_filters_of_unsubscribe_are_proper_strings() -> None:
    scenarios.string_is_checked(V3_1_1, lambda text: raw.unsubscribe(V3_1_1, text))


def test_mqtt_3_10_3_2_unsubscribe_without_a_filter_ends_the_connection() -> None:
    scenarios.unsubscribe_without_a_filter_ends_the_connection(V3_1_1)


def test_mqtt_3_10_4_1_unsubscribe_compares_filters_exactly() -> None:
    scenarios.unsubscribe_compares_exactly(V3_1_1)


def test_mqtt_3_10_4_2_a_removed_subscription_brings_nothing_new() -> None:
    scenarios.unsubscribed_filter_brings_nothing_new(V3_1_1)


def test_mqtt_3_10_4_3_deliveries_that_began_are_completed() -> None:
    scenarios.deliveries_that_began_are_completed(V3_1_1)


def test_mqtt_3_10_4_4_unsubscribe_is_answered_under_its_identifier() -> None:
    scenarios.unsubscribe_is_answered(V3_1_1, 0xABCD, True)


def test_mqtt_3_10_4_5_unsubscribe_of_nothing_is_answered_too() -> None:
    scenarios.unsubscribe_is_answered(V3_1_1, 0xABCD, False)


def test_mqtt_3_10_4_6_several_filters_get_one_unsuback() -> None:
    scenarios.several_filters_one_unsuback(V3_1_1)


def test_mqtt_3_9_3_2_a_subscription_beyond_the_limit_is_refused_with_0x80() -> None:
    peer = Server(Limits(subscriptions=2)).client("s", V3_1_1)
    peer.send(Subscribe(1, [SubscriptionRequest(topic_filter, 1) for topic_filter in ("a", "b", "c", "a")]))
    assert peer.one() == SubAck(1, [1, 1, 0x80, 1])
