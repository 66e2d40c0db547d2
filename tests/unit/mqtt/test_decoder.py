"""What a decoder keeps between pieces, and what its rules remember."""

from __future__ import annotations

import contextlib

import pytest

from lockgate.mqtt import reason_codes as rc
from lockgate.mqtt.decoder import Decoder, PacketRules
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import MqttError, PacketTooLarge, ProtocolError
from lockgate.mqtt.packets import PUBLISH as PUBLISH_TYPE
from lockgate.mqtt.packets import V3_1_1, V5, PingReq, Publish, Subscribe, SubscriptionRequest, Unsubscribe
from lockgate.mqtt.properties import Properties, decode_properties, encode_properties

PUBLISH = encode(Publish("t", b"x" * 100), V3_1_1)
PINGREQ = b"\xc0\x00"


def test_pending_counts_what_no_packet_has_used() -> None:
    decoder = Decoder(V3_1_1)
    assert decoder.pending == 0
    decoder.feed(PINGREQ + PUBLISH[:1])
    assert decoder.pending == 3
    assert decoder.next_packet() == PingReq()
    assert decoder.pending == 1
    assert decoder.next_packet() is None
    seen = []
    for at in range(1, len(PUBLISH)):
        decoder.feed(PUBLISH[at : at + 1])
        seen.append(decoder.pending)
        if at < len(PUBLISH) - 1:
            assert decoder.next_packet() is None
            assert decoder.pending == at + 1
    assert seen == [*range(2, len(PUBLISH) + 1)]
    assert decoder.next_packet() is not None
    assert decoder.pending == 0


def test_a_packet_in_many_pieces_behind_another() -> None:
    decoder = Decoder(V3_1_1)
    decoder.feed(PINGREQ + PUBLISH[:50])
    assert decoder.next_packet() == PingReq()
    assert decoder.next_packet() is None
    assert decoder.pending == 50
    decoder.feed(PUBLISH[50:60])
    assert decoder.pending == 60
    assert decoder.next_packet() is None
    decoder.feed(PUBLISH[60:-1])
    assert decoder.next_packet() is None
    decoder.feed(PUBLISH[-1:] + PINGREQ)
    assert decoder.pending == len(PUBLISH) + 2
    assert decoder.next_packet() == Publish("t", b"x" * 100)
    assert decoder.pending == 2
    assert decoder.next_packet() == PingReq()
    assert decoder.pending == 0


@pytest.mark.parametrize("cut", [1, 50, len(PUBLISH)])
def test_what_was_forgotten_is_gone(cut: int) -> None:
    decoder = Decoder(V3_1_1)
    decoder.feed(PINGREQ + PUBLISH[:cut])
    assert decoder.next_packet() == PingReq()
    if cut < len(PUBLISH):
        assert decoder.next_packet() is None
    decoder.clear()
    assert decoder.pending == 0
    assert decoder.next_packet() is None
    decoder.feed(PUBLISH)
    assert decoder.pending == len(PUBLISH)
    assert decoder.next_packet() == Publish("t", b"x" * 100)


def test_the_size_is_that_of_one_packet_wherever_it_lies() -> None:
    decoder = Decoder(V3_1_1, maximum_packet_size=len(PUBLISH))
    decoder.feed(PUBLISH + PUBLISH)
    assert decoder.next_packet() == decoder.next_packet() == Publish("t", b"x" * 100)
    decoder.maximum_packet_size -= 1
    decoder.feed(PINGREQ + PUBLISH)
    assert decoder.next_packet() == PingReq()
    with pytest.raises(PacketTooLarge, match=f"of {len(PUBLISH)} bytes, at most {len(PUBLISH) - 1}"):
        decoder.next_packet()


def test_a_frame_with_what_is_the_sender_s_own_is_not_kept() -> None:
    for properties in (Properties(topic_alias=1), Properties(message_expiry_interval=1)):
        decoder = Decoder(V5, keep_frames=True)
        decoder.feed(encode(Publish("t", b"x", properties=properties), V5))
        packet = decoder.next_packet()
        assert isinstance(packet, Publish)
        assert packet.frame == b""
    decoder = Decoder(V5, keep_frames=True)
    decoder.feed(data := encode(Publish("t", b"x", properties=Properties(content_type="c")), V5))
    packet = decoder.next_packet()
    assert isinstance(packet, Publish)
    assert packet.frame == data


# --- rules --------------------------------------------------------------------------------------------------------


def test_names_that_were_checked_are_remembered_in_bounds() -> None:
    rules = PacketRules()
    long, longest = b"x" * 512, b"x" * 513
    assert rules.topic_name(long) == long.decode()
    assert rules.topic_name(longest) == longest.decode()
    assert rules.known == {long: long.decode()}
    for number in range(4095):
        rules.topic_name(b"%d" % number)
    assert len(rules.known) == 4096
    assert rules.topic_name(b"new") == "new"
    assert rules.known == {b"new": "new"}


def test_a_name_is_checked_once() -> None:
    rules = PacketRules(topic_levels=2)
    rules.known[b"a/b/c"] = "a/b/c"
    decoder = Decoder(V3_1_1, rules=rules)
    decoder.feed(encode(Publish("a/b/c"), V3_1_1))
    assert decoder.next_packet() == Publish("a/b/c")


@pytest.mark.parametrize("name", ["a" * 8, "ä" * 4, "🌊🌊"])
def test_topics_may_fill_their_bytes(name: str) -> None:
    rules = PacketRules(topic_bytes=8)
    rules.check_name(name)
    rules.check_filter(name)
    for check, code in ((rules.check_name, rc.TOPIC_NAME_INVALID), (rules.check_filter, rc.TOPIC_FILTER_INVALID)):
        with pytest.raises(MqttError) as raised:
            check(name + "a")
        assert raised.value.reason_code == code


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_as_many_filters_as_are_allowed_are_taken(version: int) -> None:
    for count, taken in ((3, True), (4, False)):
        for packet in (
            Subscribe(1, [SubscriptionRequest(str(number)) for number in range(count)]),
            Unsubscribe(1, [str(number) for number in range(count)]),
        ):
            decoder = Decoder(version, rules=PacketRules(topic_filters=3))
            decoder.feed(encode(packet, version))
            if taken:
                assert decoder.next_packet() == packet
            else:
                with pytest.raises(MqttError) as raised:
                    decoder.next_packet()
                assert raised.value.reason_code == rc.QUOTA_EXCEEDED


def test_without_a_bound_any_number_of_filters_is_taken() -> None:
    packet = Unsubscribe(1, [str(number) for number in range(1000)])
    decoder = Decoder(V5)
    decoder.feed(encode(packet, V5))
    assert decoder.next_packet() == packet


# --- what stands in a packet --------------------------------------------------------------------------------------

# MQTT 5 §2.4, table 2-6
CONNACK = {0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, *range(0x99, 0x9E), 0x9F}
DISCONNECT = {0x00, 0x04, *range(0x80, 0x84), 0x87, 0x89, *range(0x8B, 0x91), *range(0x93, 0xA3)}


@pytest.mark.parametrize(("before", "allowed"), [(b"\x20\x03\x00", CONNACK), (b"\xe0\x02", DISCONNECT)])
def test_a_reason_code_is_one_of_its_packet_s(before: bytes, allowed: set[int]) -> None:
    taken = set()
    for code in range(256):
        decoder = Decoder(V5)
        decoder.feed(before + bytes((code, 0)))
        with contextlib.suppress(ProtocolError):
            assert getattr(decoder.next_packet(), "reason_code", None) == code
            taken.add(code)
    assert taken == allowed


def test_a_decoder_keeps_no_frames_unless_it_is_asked_to() -> None:
    for decoder, kept in ((Decoder(V3_1_1), b""), (Decoder(V3_1_1, keep_frames=True), PUBLISH)):
        decoder.feed(PUBLISH)
        packet = decoder.next_packet()
        assert isinstance(packet, Publish)
        assert packet.frame == kept


def test_a_decoder_that_knows_no_version_takes_a_connect_alone() -> None:
    decoder = Decoder()
    decoder.feed(PINGREQ)
    with pytest.raises(ProtocolError, match="the first packet must be CONNECT"):
        decoder.next_packet()


def test_without_a_bound_any_number_of_user_properties_is_taken() -> None:
    own = Properties(user_properties=(("k", "v"),) * 1000)
    data = encode_properties(own)
    assert decode_properties(data, 0, len(data), 1 << PUBLISH_TYPE) == (own, len(data))
