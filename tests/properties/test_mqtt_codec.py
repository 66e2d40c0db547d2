"""What is true of all packets and of all bytes."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import V5, Connect, Packet
from lockgate.mqtt.topics import matches
from tests.support.packets import BAD, GOOD
from tests.support.pieces import in_pieces
from tests.support.strategies import VERSIONS, packets, small_filters, small_names

streams = VERSIONS.flatmap(
    lambda version: st.tuples(st.just(version), st.lists(packets(version), min_size=1, max_size=5))
)


def decode_all(decoder: Decoder) -> list[Packet]:
    decoded: list[Packet] = []
    while (packet := decoder.next_packet()) is not None:
        decoded.append(packet)
    return decoded


@given(streams)
def test_what_was_encoded_is_decoded(stream: tuple[int, list[Packet]]) -> None:
    version, expected = stream
    for packet in expected:
        decoder = Decoder(0 if isinstance(packet, Connect) else version)
        decoder.feed(encode(packet, version))
        assert decode_all(decoder) == [packet]


@given(streams, st.lists(st.integers(1, 9), min_size=1))
def test_any_chunking_gives_the_same_packets(stream: tuple[int, list[Packet]], sizes: list[int]) -> None:
    version, expected = stream
    data = b"".join(encode(packet, version) for packet in expected)
    decoder = Decoder(version)
    decoded: list[Packet] = []
    for piece in in_pieces(data, sizes):
        decoder.feed(piece)
        decoded += decode_all(decoder)
    assert decoded == expected


@given(st.sampled_from((0, 3, 4, V5)), st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_mqtt_errors(version: int, data: bytes) -> None:
    decoder = Decoder(version)
    decoder.feed(data)
    with contextlib.suppress(MqttError):
        decode_all(decoder)


@given(
    st.sampled_from([(case.version, case.data) for case in GOOD] + [(case.version, case.data) for case in BAD]),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutated_packets_raise_nothing_but_mqtt_errors(case: tuple[int, bytes], changes: list[tuple[int, int]]) -> None:
    version, data = case
    mutated = bytearray(data)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    for body in (bytes(mutated), bytes((mutated[0], max(0, len(mutated) - 2))) + bytes(mutated[2:])):
        decoder = Decoder(version)
        decoder.feed(body)
        with contextlib.suppress(MqttError):
            decode_all(decoder)


def model_matches(pattern: list[str], name: list[str]) -> bool:
    if pattern == ["#"]:
        return True
    if not pattern or not name:
        return not pattern and not name
    return pattern[0] in ("+", name[0]) and (
        model_matches(pattern[1:], name[1:]) if name[1:] or pattern[1:] != ["#"] else True
    )


@given(small_filters, small_names)
def test_matching_agrees_with_the_model(topic_filter: str, topic_name: str) -> None:
    expected = model_matches(topic_filter.split("/"), topic_name.split("/"))
    if topic_name[0] == "$" and topic_filter[0] in "+#":
        expected = False
    assert matches(topic_filter, topic_name) == expected
