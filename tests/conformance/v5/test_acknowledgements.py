"""PUBACK, PUBREC, PUBREL and PUBCOMP (MQTT 5 §3.4 to §3.7)."""

from __future__ import annotations

from lockgate.broker.limits import Limits
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import V5, Acknowledgement, Packet, PubAck, PubComp, Publish, PubRec, PubRel
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def _answers(kind: type[Acknowledgement]) -> list[Acknowledgement]:
    """Give all acknowledgements of one kind in an exchange that knows every outcome we have for it."""
    server = Server()
    server.client("s").subscribe("heard", 2)
    peer = server.client("p")
    peer.subscribe("own", 2)
    packets: list[Packet] = []
    for number, topic in enumerate(("heard", "nobody", "$SYS/forbidden")):
        peer.send(Publish(topic, b"x", 1, packet_id=1 + number), Publish(topic, b"x", 2, packet_id=11 + number))
    packets += peer.received()
    peer.send(PubRel(11), PubRel(12), PubRel(13), PubRel(99))
    packets += peer.received()
    server.client("q").publish("own", b"x", 2)
    [message] = peer.publishes()
    peer.send(PubRec(message.packet_id), PubRec(77))
    packets += peer.received()
    return [packet for packet in packets if isinstance(packet, kind)]


def _codes(kind: type[Acknowledgement]) -> list[int]:
    return [packet.reason_code for packet in _answers(kind)]


def _code_is_checked(make: int, first: int, allowed: frozenset[int]) -> None:
    """Every code of the table is taken from a client, any other ends the connection."""
    server = Server()
    for code in range(256):
        peer = server.client("a")
        peer.send_bytes(raw.packet(first, raw.number(make) + bytes((code,))))
        if code in allowed:
            assert not peer.closed
        else:
            scenarios.assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def test_mqtt_3_4_2_1_puback_carries_codes_of_its_table() -> None:
    assert _codes(PubAck) == [0, reason_codes.NO_MATCHING_SUBSCRIBERS, reason_codes.NOT_AUTHORIZED]


def test_mqtt_3_4_2_1_puback_of_a_client_carries_codes_of_its_table() -> None:
    _code_is_checked(5, 0x40, reason_codes.PUBACK_CODES)


def test_mqtt_3_4_2_2_puback_has_no_reason_string_to_leave_out() -> None:
    assert [packet.properties for packet in _answers(PubAck)] == [None] * 3


def test_mqtt_3_4_2_3_puback_has_no_user_properties_to_leave_out() -> None:
    assert [packet.properties for packet in _answers(PubAck)] == [None] * 3


def test_mqtt_3_5_2_1_pubrec_carries_codes_of_its_table() -> None:
    assert _codes(PubRec) == [0, reason_codes.NO_MATCHING_SUBSCRIBERS, reason_codes.NOT_AUTHORIZED]


def test_mqtt_3_5_2_1_pubrec_of_a_client_carries_codes_of_its_table() -> None:
    _code_is_checked(5, 0x50, reason_codes.PUBACK_CODES)


def test_mqtt_3_5_2_2_pubrec_has_no_reason_string_to_leave_out() -> None:
    assert [packet.properties for packet in _answers(PubRec)] == [None] * 3


def test_mqtt_3_5_2_3_pubrec_has_no_user_properties_to_leave_out() -> None:
    assert [packet.properties for packet in _answers(PubRec)] == [None] * 3


def test_mqtt_3_6_1_1_pubrel_with_other_flags_is_malformed() -> None:
    scenarios.reserved_flags_end_the_connection(V5, lambda flags: raw.packet(0x60 | flags, raw.number(1)), 2)


def test_mqtt_3_6_2_1_pubrel_carries_codes_of_its_table() -> None:
    assert _codes(PubRel) == [0, reason_codes.PACKET_IDENTIFIER_NOT_FOUND]


def test_mqtt_3_6_2_1_pubrel_of_a_client_carries_codes_of_its_table() -> None:
    _code_is_checked(5, 0x62, reason_codes.PUBREL_CODES)


def test_mqtt_3_6_2_2_pubrel_has_no_reason_string_to_leave_out() -> None:
    assert [packet.properties for packet in _answers(PubRel)] == [None] * 2


def test_mqtt_3_6_2_3_pubrel_has_no_user_properties_to_leave_out() -> None:
    assert [packet.properties for packet in _answers(PubRel)] == [None] * 2


def test_mqtt_3_7_2_1_pubcomp_carries_codes_of_its_table() -> None:
    assert _codes(PubComp) == [0, 0, *[reason_codes.PACKET_IDENTIFIER_NOT_FOUND] * 2]


def test_mqtt_3_7_2_1_pubcomp_of_a_client_carries_codes_of_its_table() -> None:
    _code_is_checked(5, 0x70, reason_codes.PUBREL_CODES)


def test_mqtt_3_7_2_2_pubcomp_has_no_reason_string_to_leave_out() -> None:
    assert [packet.properties for packet in _answers(PubComp)] == [None] * 4


def test_mqtt_3_7_2_3_pubcomp_has_no_user_properties_to_leave_out() -> None:
    assert [packet.properties for packet in _answers(PubComp)] == [None] * 4


def test_mqtt_3_4_2_1_a_retained_message_beyond_the_limit_is_refused_with_a_code_of_the_table() -> None:
    peer = Server(Limits(retained_messages=1)).client("p")
    peer.publish("a", b"x", 1, retain=True)
    peer.send(Publish("b", b"x", 1, True, packet_id=4), Publish("b", b"x", 2, True, packet_id=5))
    assert peer.received() == [PubAck(4, reason_codes.QUOTA_EXCEEDED), PubRec(5, reason_codes.QUOTA_EXCEEDED)]
