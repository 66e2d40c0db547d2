"""Packets as bytes, for what no encoder of ours would write."""

from __future__ import annotations

from lockgate.mqtt.packets import PROTOCOL_NAMES, V5
from lockgate.mqtt.wire import encode_variable_byte_integer

# What must stand in no string (MQTT 5 §1.5.4, 3.1.1 §1.5.3).
ILL_FORMED = (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xc0\x80", b"\xf4\x90\x80\x80")
WITH_NUL = b"a\x00b"

USERNAME = 0x80
PASSWORD = 0x40
WILL_RETAIN = 0x20
WILL_QOS_1 = 0x08
WILL_QOS_2 = 0x10
WILL = 0x04
CLEAN = 0x02


def packet(first: int, body: bytes = b"") -> bytes:
    """Give a packet with this first byte."""
    return bytes((first,)) + encode_variable_byte_integer(len(body)) + body


def string(data: bytes) -> bytes:
    """Give bytes with their length before them."""
    return len(data).to_bytes(2, "big") + data


def number(value: int) -> bytes:
    """Give a Packet Identifier or another Two Byte Integer."""
    return value.to_bytes(2, "big")


def properties(version: int, data: bytes = b"") -> bytes:
    """Give properties with their length before them; nothing before version 5."""
    return encode_variable_byte_integer(len(data)) + data if version == V5 else b""


def connect(
    version: int = V5,
    payload: bytes = string(b"c"),
    flags: int = CLEAN,
    *,
    name: bytes | None = None,
    level: int | None = None,
    own: bytes = b"",
) -> bytes:
    """Give a CONNECT with a Keep Alive of 0; `own` are its properties, `payload` begins with the Client Identifier."""
    protocol_name = PROTOCOL_NAMES[version].encode() if name is None else name
    head = string(protocol_name) + bytes((version if level is None else level, flags)) + number(0)
    return packet(0x10, head + properties(version, own) + payload)


def publish(
    version: int, topic: bytes, payload: bytes = b"x", first: int = 0x30, packet_id: int = 0, own: bytes = b""
) -> bytes:
    """Give a PUBLISH; the identifier is left out at 0."""
    identifier = number(packet_id) if packet_id else b""
    return packet(first, string(topic) + identifier + properties(version, own) + payload)


def subscribe(version: int, topic_filter: bytes, options: int = 0, first: int = 0x82, own: bytes = b"") -> bytes:
    """Give a SUBSCRIBE for one filter under identifier 7."""
    return packet(first, number(7) + properties(version, own) + string(topic_filter) + bytes((options,)))


def unsubscribe(version: int, topic_filter: bytes, first: int = 0xA2) -> bytes:
    """Give an UNSUBSCRIBE for one filter under identifier 7."""
    return packet(first, number(7) + properties(version) + string(topic_filter))
