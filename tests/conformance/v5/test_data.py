"""Strings, integers, flags, Packet Identifiers and properties (MQTT 5 §1.5, §2)."""

from __future__ import annotations

from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import V5
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def test_mqtt_1_5_4_1_ill_formed_utf_8_ends_the_connection() -> None:
    scenarios.string_is_checked(V5, lambda text: raw.publish(V5, text), raw.ILL_FORMED)
    scenarios.string_is_checked(V5, lambda text: raw.subscribe(V5, text), raw.ILL_FORMED)
    scenarios.string_is_checked(V5, lambda text: raw.unsubscribe(V5, text), raw.ILL_FORMED)
    scenarios.connect_string_is_checked(V5, lambda text: raw.connect(V5, raw.string(text)))


def test_mqtt_1_5_4_2_a_null_character_ends_the_connection() -> None:
    scenarios.string_is_checked(V5, lambda text: raw.publish(V5, text), (raw.WITH_NUL, b"\x00"))
    scenarios.connect_string_is_checked(V5, lambda text: raw.connect(V5, raw.string(text)))


def test_mqtt_1_5_4_3_a_byte_order_mark_is_part_of_its_string() -> None:
    scenarios.byte_order_mark_is_kept(V5)


def test_mqtt_1_5_5_1_an_integer_with_more_bytes_than_it_needs_ends_the_connection() -> None:
    good = raw.publish(V5, b"t", b"x")
    for padded in (
        bytes((good[1] | 0x80, 0)),
        bytes((good[1] | 0x80, 0x80, 0)),
        bytes((good[1] | 0x80, 0x80, 0x80, 0)),
    ):
        peer = Server().client("p", V5)
        peer.send_bytes(good[:1] + padded + good[2:])
        scenarios.assert_ended(peer)
    for length in (b"\x80\x00", b"\x80\x80\x00"):  # the Property Length
        peer = Server().client("p", V5)
        peer.send_bytes(raw.packet(0x30, raw.string(b"t") + length + b"x"))
        scenarios.assert_ended(peer)
    for identifier in (b"\x0b\x81\x00", b"\x0b\xff\x80\x00"):  # a Subscription Identifier
        peer = Server().client("p", V5)
        peer.send_bytes(raw.subscribe(V5, b"t", own=identifier))
        scenarios.assert_ended(peer)


def test_mqtt_1_5_5_1_a_connect_with_a_padded_length_is_not_let_in() -> None:
    good = raw.connect(V5)
    peer = Server().peer(V5)
    peer.send_bytes(good[:1] + bytes((good[1] | 0x80, 0)) + good[2:])
    scenarios.assert_not_let_in(peer)


def test_mqtt_1_5_5_1_what_the_server_sends_uses_no_more_bytes_than_it_needs() -> None:
    server = Server()
    peer = server.client("s", V5)
    peer.subscribe("t")
    for size in (123, 124, 16_379, 16_380):  # Remaining Lengths of 127, 128, 16,383 and 16,384
        server.client("p", V5).publish("t", b"x" * size)
    frames = peer.output[peer.output.index(b"\x30") :]
    assert frames[:2] == b"\x30\x7f"
    frames = frames[2 + 127 :]
    assert frames[:3] == b"\x30\x80\x01"
    frames = frames[3 + 128 :]
    assert frames[:3] == b"\x30\xff\x7f"
    frames = frames[3 + 16_383 :]
    assert frames[:4] == b"\x30\x80\x80\x01"


def test_mqtt_1_5_7_1_both_strings_of_a_pair_are_checked() -> None:
    scenarios.string_is_checked(
        V5, lambda text: raw.publish(V5, b"t", own=b"\x26" + raw.string(text) + raw.string(b"value"))
    )
    scenarios.string_is_checked(
        V5, lambda text: raw.publish(V5, b"t", own=b"\x26" + raw.string(b"name") + raw.string(text))
    )


def test_mqtt_2_1_3_1_what_the_server_sends_has_the_listed_flags() -> None:
    scenarios.what_the_server_sends_has_the_listed_flags(V5)


def test_mqtt_2_1_3_1_wrong_flags_end_the_connection() -> None:
    scenarios.flags_are_checked(V5)


def test_mqtt_2_2_1_2_qos_0_has_no_identifier() -> None:
    server = Server()
    peer = server.client("s", V5)
    peer.subscribe("t")
    message = bytes.fromhex("3008000174000001 7879".replace(" ", ""))
    server.client("p", V5).send_bytes(message)
    assert peer.output.endswith(message)
    assert peer.messages() == [("t", bytes.fromhex("00017879"))]


def test_mqtt_2_2_1_3_an_identifier_of_zero_is_a_protocol_error() -> None:
    for data in (
        raw.packet(0x82, raw.number(0) + b"\x00" + raw.string(b"t") + b"\x00"),
        raw.packet(0xA2, raw.number(0) + b"\x00" + raw.string(b"t")),
        raw.packet(0x32, raw.string(b"t") + raw.number(0) + b"\x00"),
        raw.packet(0x34, raw.string(b"t") + raw.number(0) + b"\x00"),
    ):
        peer = Server().client("a", V5)
        peer.send_bytes(data)
        scenarios.assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def test_mqtt_2_2_1_4_identifiers_of_the_server_are_free_and_not_zero() -> None:
    scenarios.identifiers_of_the_server_are_free(V5)


def test_mqtt_2_2_1_5_acknowledgements_carry_the_identifier_of_their_publish() -> None:
    scenarios.publish_is_answered_by_its_qos(V5)


def test_mqtt_2_2_1_5_pubrel_carries_the_identifier_of_its_publish() -> None:
    scenarios.qos_2_pubrec_is_answered_by_pubrel(V5)


def test_mqtt_2_2_1_6_suback_carries_the_identifier_of_its_subscribe() -> None:
    scenarios.subscribe_is_answered(V5, 0xFEDC)


def test_mqtt_2_2_1_6_unsuback_carries_the_identifier_of_its_unsubscribe() -> None:
    scenarios.unsubscribe_is_answered(V5, 0xFEDC, True)


def test_mqtt_2_2_2_1_no_properties_means_a_property_length_of_zero() -> None:
    server = Server()
    peer = server.client("s", V5)
    peer.subscribe("t", 1)
    server.client("p").publish("t", b"x", 1)
    peer.send_bytes(raw.unsubscribe(V5, b"t"))
    assert bytes.fromhex("900400010001") in peer.output
    assert bytes.fromhex("320700017400010078") in peer.output
    assert bytes.fromhex("b00400070000") in peer.output


def test_mqtt_2_2_2_1_a_packet_without_a_property_length_ends_the_connection() -> None:
    for data in (
        raw.packet(0x82, raw.number(1) + raw.string(b"t") + b"\x00"),
        raw.packet(0x30, raw.string(b"t")),
        raw.packet(0x32, raw.string(b"t") + raw.number(1)),
    ):
        peer = Server().client("a", V5)
        peer.send_bytes(data)
        assert peer.closed
