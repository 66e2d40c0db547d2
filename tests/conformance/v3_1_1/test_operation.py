"""Ping, leaving, Sessions, QoS, order, topics and errors (MQTT 3.1.1 §3.12 to §4.8, §7)."""

from __future__ import annotations

from lockgate.broker.limits import Limits
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import V3_1_1, Publish, Will
from tests.conformance import scenarios
from tests.support.server import Server


def test_mqtt_3_12_4_1_a_ping_is_answered() -> None:
    scenarios.ping_is_answered(V3_1_1)


def test_mqtt_3_14_1_1_disconnect_with_reserved_flags_ends_the_connection_like_a_broken_network() -> None:
    for flags in range(1, 16):
        server = Server()
        watcher = server.client("w", V3_1_1)
        watcher.subscribe("will")
        peer = server.client("a", V3_1_1, will=Will("will", b"gone"))
        peer.send_bytes(bytes((0xE0 | flags, 0)))
        scenarios.assert_ended(peer)
        assert watcher.messages() == [("will", b"gone")]


def test_mqtt_3_14_4_3_disconnect_discards_the_will() -> None:
    scenarios.disconnect_discards_the_will(V3_1_1)


def test_mqtt_4_1_0_1_session_state_is_kept_while_the_client_is_away() -> None:
    scenarios.session_is_resumed(V3_1_1)


def test_mqtt_4_1_0_2_a_session_lasts_as_long_as_its_connection() -> None:
    scenarios.session_lasts_while_connected(V3_1_1)


def test_mqtt_4_3_1_1_qos_0_is_sent_with_qos_0_and_no_dup() -> None:
    scenarios.qos_0_never_has_dup(V3_1_1)


def test_mqtt_4_3_2_1_qos_1_gets_a_free_identifier_and_no_dup() -> None:
    scenarios.identifiers_of_the_server_are_free(V3_1_1)


def test_mqtt_4_3_2_1_qos_1_is_unacknowledged_until_puback() -> None:
    scenarios.qos_1_is_unacknowledged_until_puback(V3_1_1)


def test_mqtt_4_3_2_2_qos_1_is_taken_over_and_acknowledged() -> None:
    scenarios.qos_1_is_taken_over_and_acknowledged(V3_1_1)


def test_mqtt_4_3_2_2_after_puback_the_identifier_means_a_new_message() -> None:
    scenarios.qos_1_identifier_means_a_new_message_after_puback(V3_1_1)


def test_mqtt_4_3_3_1_qos_2_gets_a_free_identifier_and_no_dup() -> None:
    scenarios.identifiers_of_the_server_are_free(V3_1_1)


def test_mqtt_4_3_3_1_qos_2_is_unacknowledged_until_pubrec() -> None:
    scenarios.qos_2_publish_is_unacknowledged_until_pubrec(V3_1_1)


def test_mqtt_4_3_3_1_pubrec_is_answered_by_pubrel() -> None:
    scenarios.qos_2_pubrec_is_answered_by_pubrel(V3_1_1)


def test_mqtt_4_3_3_1_pubrel_is_unacknowledged_until_pubcomp() -> None:
    scenarios.qos_2_pubrel_is_unacknowledged_until_pubcomp(V3_1_1)


def test_mqtt_4_3_3_1_publish_is_not_sent_again_after_pubrel() -> None:
    scenarios.qos_2_is_not_published_again_after_pubrel(V3_1_1)


def test_mqtt_4_3_3_2_qos_2_is_taken_over_and_answered_by_pubrec() -> None:
    scenarios.qos_2_is_taken_over_and_answered(V3_1_1)


def test_mqtt_4_3_3_2_a_repeated_publish_is_answered_and_delivered_once() -> None:
    scenarios.qos_2_repetition_is_answered_and_delivered_once(V3_1_1)


def test_mqtt_4_3_3_2_pubrel_is_answered_by_pubcomp() -> None:
    scenarios.qos_2_pubrel_is_answered_by_pubcomp(V3_1_1)


def test_mqtt_4_3_3_2_after_pubcomp_the_identifier_means_a_new_message() -> None:
    scenarios.qos_2_identifier_means_a_new_message_after_pubcomp(V3_1_1)


def test_mqtt_4_4_0_1_unacknowledged_packets_are_sent_again_with_their_identifiers() -> None:
    scenarios.unacknowledged_packets_are_sent_again(V3_1_1)


def test_mqtt_4_5_0_1_every_matching_session_gets_the_message() -> None:
    scenarios.every_matching_session_gets_the_message(V3_1_1)


def test_mqtt_4_6_0_1_messages_are_sent_again_in_their_first_order() -> None:
    scenarios.sent_again_in_the_first_order(V3_1_1)


def test_mqtt_4_6_0_2_pubacks_keep_the_order_of_the_messages() -> None:
    scenarios.acknowledgements_keep_the_order_of_messages(V3_1_1, 1)


def test_mqtt_4_6_0_3_pubrecs_keep_the_order_of_the_messages() -> None:
    scenarios.acknowledgements_keep_the_order_of_messages(V3_1_1, 2)


def test_mqtt_4_6_0_4_pubrels_keep_the_order_of_the_pubrecs() -> None:
    scenarios.pubrels_keep_the_order_of_pubrecs(V3_1_1)


def test_mqtt_4_6_0_5_every_topic_is_ordered() -> None:
    scenarios.messages_keep_their_order(V3_1_1)


def test_mqtt_4_6_0_6_messages_are_passed_on_in_their_order() -> None:
    scenarios.messages_keep_their_order(V3_1_1)


def test_mqtt_4_7_1_1_wildcards_in_a_topic_name_end_the_connection() -> None:
    scenarios.wildcards_in_a_topic_name_end_the_connection(V3_1_1)


def test_mqtt_4_7_1_2_the_multi_level_wildcard_is_the_last_level() -> None:
    scenarios.many_level_wildcard_is_the_last_level(V3_1_1)


def test_mqtt_4_7_1_3_the_single_level_wildcard_is_a_level() -> None:
    scenarios.one_level_wildcard_is_a_level(V3_1_1)


def test_mqtt_4_7_2_1_wildcards_do_not_match_topics_of_the_server() -> None:
    scenarios.wildcards_do_not_match_dollar_topics(V3_1_1)


def test_mqtt_4_7_3_1_topics_are_not_empty() -> None:
    scenarios.topics_are_not_empty(V3_1_1)


def test_mqtt_4_7_3_2_topics_have_no_null_character() -> None:
    scenarios.topics_have_no_nul(V3_1_1)


def test_mqtt_4_7_3_3_topics_of_65535_bytes_are_carried() -> None:
    scenarios.topics_of_65535_bytes_are_carried(V3_1_1)


def test_mqtt_4_7_3_4_nothing_is_normalised() -> None:
    scenarios.nothing_is_normalised(V3_1_1)


def test_mqtt_4_8_0_1_a_violation_ends_its_own_connection_only() -> None:
    scenarios.a_violation_ends_only_its_own_connection(V3_1_1)


def test_mqtt_4_8_0_2_a_client_beyond_the_bound_of_waiting_messages_is_closed() -> None:
    server = Server(Limits(max_inflight_messages=2, max_queued_messages=3))
    peer = server.client("p", V3_1_1)
    for packet_id in range(1, 6):
        peer.send(Publish("t", b"x", 2, packet_id=packet_id))
    assert not peer.closed
    peer.received()
    peer.send(Publish("t", b"x", 2, packet_id=6))
    scenarios.assert_ended(peer, reason_codes.RECEIVE_MAXIMUM_EXCEEDED)


def test_mqtt_7_0_0_2_a_client_that_knows_the_specification_alone_can_do_everything() -> None:
    scenarios.messages_come_at_the_lower_qos(V3_1_1)
    scenarios.session_is_resumed(V3_1_1)
    scenarios.retained_is_replaced_with_its_qos(V3_1_1)
    scenarios.will_comes_when_the_connection_breaks(V3_1_1)


def test_mqtt_7_1_1_1_bytes_may_come_in_any_pieces() -> None:
    scenarios.bytes_may_come_in_any_pieces(V3_1_1)
