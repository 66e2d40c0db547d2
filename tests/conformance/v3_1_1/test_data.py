"""Strings, flags and Packet Identifiers (MQTT 3.1.1 §1.5, §2)."""

from __future__ import annotations

from lockgate.mqtt.packets import V3_1_1
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def test_mqtt_1_5_3_1_ill_formed_utf_8_ends_the_connection() -> None:
    scenarios.string_is_checked(V3_1_1, lambda text: raw.publish(V3_1_1, text), raw.ILL_FORMED)
    scenarios.string_is_checked(V3_1_1, lambda text: raw.subscribe(V3_1_1, text), raw.ILL_FORMED)
    scenarios.string_is_checked(V3_1_1, lambda text: raw.unsubscribe(V3_1_1, text), raw.ILL_FORMED)
    scenarios.connect_string_is_checked(V3_1_1, lambda text: raw.connect(V3_1_1, raw.string(text)))


def test_mqtt_1_5_3_2_a_null_character_ends_the_connection() -> None:
    scenarios.string_is_checked(V3_1_1, lambda text: raw.publish(V3_1_1, text), (raw.WITH_NUL, b"\x00"))
    scenarios.connect_string_is_checked(V3_1_1, lambda text: raw.connect(V3_1_1, raw.string(text)))


def test_mqtt_1_5_3_3_a_byte_order_mark_is_part_of_its_string() -> None:
    scenarios.byte_order_mark_is_kept(V3_1_1)


def test_mqtt_2_2_2_1_what_the_server_sends_has_the_listed_flags() -> None:
    scenarios.what_the_server_sends_has_the_listed_flags(V3_1_1)


def test_mqtt_2_2_2_2_wrong_flags_end_the_connection() -> None:
    scenarios.flags_are_checked(V3_1_1)


def test_mqtt_2_3_1_1_an_identifier_of_zero_ends_the_connection() -> None:
    for data in (
        raw.packet(0x82, raw.number(0) + raw.string(b"t") + b"\x00"),
        raw.packet(0xA2, raw.number(0) + raw.string(b"t")),
        raw.packet(0x32, raw.string(b"t") + raw.number(0)),
        raw.packet(0x34, raw.string(b"t") + raw.number(0)),
    ):
        peer = Server().client("a", V3_1_1)
        peer.send_bytes(data)
        scenarios.assert_ended(peer)


def test_mqtt_2_3_1_4_identifiers_of_the_server_are_free_and_not_zero() -> None:
    scenarios.identifiers_of_the_server_are_free(V3_1_1)


def test_mqtt_2_3_1_5_qos_0_has_no_identifier() -> None:
    server = Server()
    peer = server.client("s", V3_1_1)
    peer.subscribe("t")
    server.client("p", V3_1_1).send_bytes(bytes.fromhex("3007 0001 74 00017879".replace(" ", "")))
    assert peer.output.endswith(bytes.fromhex("3007 0001 74 00017879".replace(" ", "")))
    assert peer.messages() == [("t", bytes.fromhex("00017879"))]


def test_mqtt_2_3_1_6_acknowledgements_carry_the_identifier_of_their_publish() -> None:
    scenarios.publish_is_answered_by_its_qos(V3_1_1)


def test_mqtt_2_3_1_6_pubrel_carries_the_identifier_of_its_publish() -> None:
    scenarios.qos_2_pubrec_is_answered_by_pubrel(V3_1_1)


def test_mqtt_2_3_1_7_suback_carries_the_identifier_of_its_subscribe() -> None:
    scenarios.subscribe_is_answered(V3_1_1, 0xFEDC)


def test_mqtt_2_3_1_7_unsuback_carries_the_identifier_of_its_unsubscribe() -> None:
    scenarios.unsubscribe_is_answered(V3_1_1, 0xFEDC, True)
