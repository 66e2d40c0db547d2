"""SUBSCRIBE, UNSUBSCRIBE and their answers (MQTT 5 §3.8 to §3.11)."""

from __future__ import annotations

from lockgate.broker.limits import Limits
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import V5, Publish, SubAck, Subscribe, SubscriptionRequest, UnsubAck, Unsubscribe
from lockgate.mqtt.properties import Properties
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def test_mqtt_3_8_1_1_subscribe_with_other_flags_is_malformed() -> None:
    scenarios.reserved_flags_end_the_connection(V5, lambda flags: raw.subscribe(V5, b"t", first=0x80 | flags), 2)


def test_mqtt_3_8_3_1_filters_of_subscribe_are_proper_strings() -> None:
    scenarios.string_is_checked(V5, lambda text: raw.subscribe(V5, text))


def test_mqtt_3_8_3_2_subscribe_without_a_filter_is_a_protocol_error() -> None:
    scenarios.subscribe_without_a_filter_ends_the_connection(V5)


def test_mqtt_3_8_3_3_no_local_keeps_a_client_s_own_messages_from_it() -> None:
    server = Server()
    peer = scenarios.durable(server, "s", V5)
    peer.subscribe("t", 2, no_local=True)
    for qos in (0, 1, 2):
        peer.publish("t", b"own", qos)
        server.client("p").publish("t", b"other", qos)
    assert scenarios.payloads(scenarios.acknowledge_all(peer)) == [b"other"] * 3


def test_mqtt_3_8_3_3_no_local_goes_by_the_client_id_and_not_by_the_connection() -> None:
    server = Server()
    peer = scenarios.durable(server, "s", V5)
    peer.subscribe("t", 2, no_local=True)
    peer.send(Publish("t", b"own", 2, packet_id=4))
    peer.lose()
    peer = scenarios.durable(server, "s", V5)
    peer.send_bytes(bytes.fromhex("62020004"))
    assert scenarios.publishes_among(peer.received()) == []


def test_mqtt_3_8_3_3_no_local_holds_for_retained_messages() -> None:
    server = Server()
    peer = server.client("s")
    peer.publish("t", b"own", retain=True)
    server.client("p").publish("u", b"other", retain=True)
    peer.send(Subscribe(1, [SubscriptionRequest("#", 0, no_local=True)]))
    peer.expect(SubAck)
    assert peer.messages() == [("u", b"other")]


def test_mqtt_3_8_3_4_no_local_on_a_shared_subscription_is_a_protocol_error() -> None:
    peer = Server().client("s")
    peer.send(Subscribe(1, [SubscriptionRequest("$share/g/t", 0, no_local=True)]))
    scenarios.assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def test_mqtt_3_8_3_5_reserved_bits_of_the_options_are_malformed() -> None:
    server = Server()
    for options in range(256):
        peer = server.client("s")
        peer.send_bytes(raw.subscribe(V5, b"t", options))
        if options & 0xC0 or options & 0x03 == 0x03 or options & 0x30 == 0x30:
            scenarios.assert_ended(peer)
        else:
            assert peer.one() == SubAck(7, [options & 0x03])


def test_mqtt_3_8_4_1_subscribe_is_answered() -> None:
    scenarios.subscribe_is_answered(V5, 1)


def test_mqtt_3_8_4_2_suback_has_the_identifier_of_its_subscribe() -> None:
    scenarios.subscribe_is_answered(V5, 0xABCD)


def test_mqtt_3_8_4_3_an_identical_filter_replaces_the_subscription() -> None:
    scenarios.identical_filter_replaces(V5)


def test_mqtt_3_8_4_3_all_options_are_replaced() -> None:
    server = Server()
    peer = server.client("s")
    first = Properties(subscription_identifiers=(1,))
    peer.send(Subscribe(1, [SubscriptionRequest("t", 1, no_local=True, retain_as_published=True)], first))
    peer.expect(SubAck)
    peer.subscribe("t", 0)
    peer.send(Publish("t", b"own", 0, True))
    [message] = peer.publishes()
    assert (message.payload, message.retain, message.properties) == (b"own", False, None)


def test_mqtt_3_8_4_4_replacing_brings_retained_messages_and_loses_none() -> None:
    scenarios.replacing_brings_retained_messages_and_loses_none(V5)


def test_mqtt_3_8_4_5_several_filters_get_one_suback() -> None:
    scenarios.several_filters_one_suback(V5)


def test_mqtt_3_8_4_6_suback_has_a_code_for_each_filter() -> None:
    scenarios.several_filters_one_suback(V5)


def test_mqtt_3_8_4_7_suback_tells_the_granted_qos_of_each_filter() -> None:
    scenarios.granted_qos_is_told(V5)


def test_mqtt_3_8_4_8_messages_come_at_the_lower_qos() -> None:
    scenarios.messages_come_at_the_lower_qos(V5)


def test_mqtt_3_9_2_1_suback_has_no_reason_string_to_leave_out() -> None:
    peer = Server().client("s")
    peer.send(Subscribe(1, [SubscriptionRequest("t")]))
    assert peer.one() == SubAck(1, [0], None)


def test_mqtt_3_9_2_2_suback_has_no_user_properties_to_leave_out() -> None:
    peer = Server().client("s")
    peer.send(Subscribe(1, [SubscriptionRequest("t")]))
    assert peer.one() == SubAck(1, [0], None)


def test_mqtt_3_9_3_1_codes_of_suback_are_in_the_order_of_the_filters() -> None:
    scenarios.several_filters_one_suback(V5)


def test_mqtt_3_9_3_2_codes_of_suback_are_those_of_the_table() -> None:
    scenarios.granted_qos_is_told(V5)


def test_mqtt_3_10_1_1_unsubscribe_with_other_flags_is_malformed() -> None:
    scenarios.reserved_flags_end_the_connection(V5, lambda flags: raw.unsubscribe(V5, b"t", 0xA0 | flags), 2)


def test_mqtt_3_10_3_1_filters_of_unsubscribe_are_proper_strings() -> None:
    scenarios.string_is_checked(V5, lambda text: raw.unsubscribe(V5, text))


def test_mqtt_3_10_3_2_unsubscribe_without_a_filter_is_a_protocol_error() -> None:
    scenarios.unsubscribe_without_a_filter_ends_the_connection(V5)


def test_mqtt_3_10_4_1_unsubscribe_compares_filters_exactly() -> None:
    scenarios.unsubscribe_compares_exactly(V5)


def test_mqtt_3_10_4_1_a_shared_subscription_and_one_that_is_not_are_two() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("$share/g/t")
    peer.subscribe("t")
    peer.send(Unsubscribe(2, ["t", "$share/h/t"]))
    assert peer.one() == UnsubAck(2, [0, reason_codes.NO_SUBSCRIPTION_EXISTED])
    server.client("p").publish("t")
    assert len(peer.publishes()) == 1
    peer.send(Unsubscribe(3, ["$share/g/t"]))
    assert peer.one() == UnsubAck(3, [0])
    server.client("q").publish("t")
    assert peer.received() == []


def test_mqtt_3_10_4_2_a_removed_subscription_brings_nothing_new() -> None:
    scenarios.unsubscribed_filter_brings_nothing_new(V5)


def test_mqtt_3_10_4_3_deliveries_that_began_are_completed() -> None:
    scenarios.deliveries_that_began_are_completed(V5)


def test_mqtt_3_10_4_4_unsubscribe_is_answered() -> None:
    scenarios.unsubscribe_is_answered(V5, 1, True)


def test_mqtt_3_10_4_5_unsubscribe_of_nothing_is_answered_under_its_identifier() -> None:
    scenarios.unsubscribe_is_answered(V5, 0xABCD, False)


def test_mqtt_3_10_4_6_several_filters_get_one_unsuback() -> None:
    scenarios.several_filters_one_unsuback(V5)


def test_mqtt_3_11_2_1_unsuback_has_no_reason_string_to_leave_out() -> None:
    peer = Server().client("s")
    peer.send(Unsubscribe(1, ["t"]))
    assert peer.one() == UnsubAck(1, [reason_codes.NO_SUBSCRIPTION_EXISTED], None)


def test_mqtt_3_11_2_2_unsuback_has_no_user_properties_to_leave_out() -> None:
    peer = Server().client("s")
    peer.send(Unsubscribe(1, ["t"]))
    assert peer.one() == UnsubAck(1, [reason_codes.NO_SUBSCRIPTION_EXISTED], None)


def test_mqtt_3_11_3_1_codes_of_unsuback_are_in_the_order_of_the_filters() -> None:
    peer = Server().client("s")
    peer.subscribe("b")
    peer.send(Unsubscribe(1, ["a", "b", "c", "b"]))
    none = reason_codes.NO_SUBSCRIPTION_EXISTED
    assert peer.one() == UnsubAck(1, [none, 0, none, none])


def test_mqtt_3_11_3_2_codes_of_unsuback_are_those_of_the_table() -> None:
    peer = Server().client("s")
    peer.subscribe("a")
    peer.send(Unsubscribe(1, ["a", "a"]))
    answer = peer.one()
    assert isinstance(answer, UnsubAck)
    assert answer.reason_codes == [0x00, 0x11]


def test_mqtt_3_9_3_2_a_subscription_beyond_the_limit_is_refused_with_a_code_of_the_table() -> None:
    peer = Server(Limits(subscriptions=2)).client("s")
    peer.send(Subscribe(1, [SubscriptionRequest(topic_filter, 1) for topic_filter in ("a", "b", "c", "a")]))
    assert peer.one() == SubAck(1, [1, 1, reason_codes.QUOTA_EXCEEDED, 1])
