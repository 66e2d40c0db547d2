"""The data representations of MQTT (5.0 §1.5, 3.1.1 §1.5): integers, strings and binary data as bytes."""

from __future__ import annotations

from typing import Final

from lockgate.mqtt.errors import MalformedPacket

MAXIMUM_REMAINING_LENGTH: Final = 268_435_455


def encode_variable_byte_integer(value: int) -> bytes:
    """Encode 0 to 268,435,455 in one to four bytes (MQTT 5 §1.5.5, 3.1.1 §2.2.3).

    Raises ValueError outside that range: the caller chose the size, the peer did not.
    """
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value <= MAXIMUM_REMAINING_LENGTH:
        raise ValueError(f"{value} does not fit into a variable byte integer (0 to {MAXIMUM_REMAINING_LENGTH})")
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x20_0000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21))


def read_variable_byte_integer(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Read a variable byte integer that lies wholly in data[at:end]; give it and where it ends.

    Raises MalformedPacket when it is cut off, needs a fifth byte or uses more bytes than it needs (§1.5.5-1).
    """
    value = 0
    shift = 0
    while shift < 28:
        if at >= end:
            raise MalformedPacket("a variable byte integer ends too early")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise MalformedPacket("a variable byte integer uses more bytes than it needs")
            return value, at
        shift += 7
    raise MalformedPacket("a variable byte integer needs a fifth byte")


def decode_utf8(data: bytes) -> str:
    """Decode an UTF-8 Encoded String (§1.5.4); raises MalformedPacket for ill-formed UTF-8 and U+0000."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedPacket(f"a string is not UTF-8: {error.reason} at byte {error.start}") from None
    if "\0" in text:
        raise MalformedPacket("a string contains U+0000")
    return text


def encode_string(text: str) -> bytes:
    """Encode an UTF-8 Encoded String with its length; raises ValueError beyond 65,535 bytes or with U+0000."""
    data = text.encode("utf-8")
    if len(data) > 0xFFFF:
        raise ValueError(f"a string of {len(data)} bytes is too long for MQTT (at most 65535)")
    if b"\0" in data:
        raise ValueError("a string for MQTT must not contain U+0000")
    return len(data).to_bytes(2, "big") + data


def encode_binary(data: bytes) -> bytes:
    """Encode Binary Data with its length; raises ValueError beyond 65,535 bytes."""
    if len(data) > 0xFFFF:
        raise ValueError(f"binary data of {len(data)} bytes is too long for MQTT (at most 65535)")
    return len(data).to_bytes(2, "big") + data
