"""The decoder and the encoder against the shared table of packets."""

from __future__ import annotations

import pytest

from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import PacketTooLarge
from lockgate.mqtt.packets import V5, PingReq, Publish
from lockgate.mqtt.properties import KINDS
from tests.support.packets import BAD, EVERY_PROPERTY, GOOD, TOO_LARGE, Bad, Good


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_good_bytes_are_their_packet(case: Good) -> None:
    decoder = Decoder(case.version)
    decoder.feed(case.data)
    assert decoder.next_packet() == case.packet
    assert decoder.next_packet() is None


@pytest.mark.parametrize("case", [case for case in GOOD if case.canonical], ids=lambda case: case.name)
def test_a_packet_is_its_bytes(case: Good) -> None:
    assert encode(case.packet, case.version or V5) == case.data  # CONNECT brings its own version


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_broken_bytes_are_refused_with_their_reason(case: Bad) -> None:
    decoder = Decoder(case.version)
    decoder.feed(case.data)
    with pytest.raises(case.error) as raised:
        decoder.next_packet()
    assert raised.value.reason_code == case.reason_code


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_every_shorter_piece_waits_for_the_rest(case: Good) -> None:
    for cut in range(len(case.data)):
        decoder = Decoder(case.version)
        decoder.feed(case.data[:cut])
        assert decoder.next_packet() is None
        decoder.feed(case.data[cut:])
        assert decoder.next_packet() == case.packet


def test_the_table_has_every_property() -> None:
    seen = {
        kind.name
        for _, _, value in EVERY_PROPERTY
        for kind in KINDS.values()
        if getattr(value, kind.name) not in (None, ())
    }
    assert seen == {kind.name for kind in KINDS.values()}


def test_a_packet_too_large_is_refused_by_its_first_bytes() -> None:
    decoder = Decoder(TOO_LARGE.version, maximum_packet_size=130)
    decoder.feed(TOO_LARGE.data)
    with pytest.raises(PacketTooLarge) as raised:
        decoder.next_packet()
    assert raised.value.reason_code == TOO_LARGE.reason_code
    decoder = Decoder(TOO_LARGE.version, maximum_packet_size=131)
    decoder.feed(TOO_LARGE.data)
    assert decoder.next_packet() is None


def test_a_frame_is_kept_only_where_every_receiver_could_get_it() -> None:
    plain, retained = bytes.fromhex("300400016178"), bytes.fromhex("310400016178")
    decoder = Decoder(4, keep_frames=True)
    decoder.feed(plain + retained)
    first, second = decoder.next_packet(), decoder.next_packet()
    assert isinstance(first, Publish)
    assert isinstance(second, Publish)
    assert (first.frame, second.frame) == (plain, b"")


def test_a_frame_whose_length_is_padded_is_not_passed_on() -> None:
    decoder = Decoder(4, keep_frames=True)
    decoder.feed(b"\x30\x84\x00\x00\x01ab")
    packet = decoder.next_packet()
    assert isinstance(packet, Publish)
    assert (packet.payload, packet.frame) == (b"b", b"")


def test_a_packet_in_tiny_pieces_is_kept_in_large_ones() -> None:
    decoder = Decoder(V5)
    frame = encode(Publish("t", bytes(range(256)) * 200), V5)
    for at in range(0, len(frame), 2):
        assert decoder.next_packet() is None
        decoder.feed(frame[at : at + 2])
        assert len(decoder._pieces or ()) < 20
    packet = decoder.next_packet()
    assert isinstance(packet, Publish)
    assert packet.payload == bytes(range(256)) * 200


def test_what_was_read_is_not_kept_for_an_unfinished_length() -> None:
    decoder = Decoder(V5)
    decoder.feed(encode(PingReq(), V5) * 100 + b"\x30\x80")
    for _number in range(100):
        assert decoder.next_packet() is not None
    assert decoder.next_packet() is None
    assert len(decoder._buffer) == decoder.pending == 2


@pytest.mark.parametrize("retain", [False, True])
def test_dup_is_one_bit_of_the_first_byte(retain: bool) -> None:
    first = encode(Publish("t", b"x", 1, retain, dup=True, packet_id=1), V5)[0]
    assert first == 0x3A + retain
