"""Integers, strings and binary data (MQTT 5 §1.5)."""

from __future__ import annotations

import pytest

from lockgate.mqtt.errors import MalformedPacket
from lockgate.mqtt.wire import (
    decode_utf8,
    encode_binary,
    encode_string,
    encode_variable_byte_integer,
    read_variable_byte_integer,
)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (16_383, "ff7f"),
        (16_384, "808001"),
        (2_097_151, "ffff7f"),
        (2_097_152, "80808001"),
        (0x0ABC_DEFF, "ffbdf355"),
        (268_435_455, "ffffff7f"),
    ],
)
def test_variable_byte_integers_at_their_limits(value: int, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert encode_variable_byte_integer(value) == data
    assert read_variable_byte_integer(b"x" + data + b"x", 1, len(data) + 2) == (value, len(data) + 1)


@pytest.mark.parametrize("value", [-1, 268_435_456])
def test_what_does_not_fit_is_the_caller_s_mistake(value: int) -> None:
    with pytest.raises(ValueError, match="0 to 268435455"):
        encode_variable_byte_integer(value)


@pytest.mark.parametrize("encoded", ["", "80", "8000", "ffffffff01", "ff80"])
def test_what_is_no_variable_byte_integer_is_the_peer_s(encoded: str) -> None:
    data = bytes.fromhex(encoded)
    with pytest.raises(MalformedPacket):
        read_variable_byte_integer(data, 0, len(data))


@pytest.mark.parametrize(
    "data", [b"\x00", b"a\x00b", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
)
def test_strings_that_are_not_well_formed(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        decode_utf8(data)


def test_strings_and_binary_data_beyond_65535_bytes() -> None:
    assert len(encode_string("x" * 65_535)) == len(encode_binary(b"x" * 65_535)) == 65_537
    with pytest.raises(ValueError, match="65535"):
        encode_string("ä" * 32_768)
    with pytest.raises(ValueError, match="65535"):
        encode_binary(b"x" * 65_536)
    with pytest.raises(ValueError, match=r"U\+0000"):
        encode_string("\0")
