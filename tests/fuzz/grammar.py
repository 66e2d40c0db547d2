"""What two clients may say, as bytes: valid, nearly valid and broken, drawn from a seeded source.

Packets are put together from parts in the wire's own form, not by our encoder, so that nothing stands between the
grammar and the decoder. `badness` is the share of packets that are spoilt; at 0 a client keeps to the specification
where a single packet can.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, TypeVar

from lockgate.mqtt.packets import V3_1, V3_1_1, V5

T = TypeVar("T")


def _s(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return len(data).to_bytes(2, "big") + data


def _four(identifier: int, *values: int) -> list[bytes]:
    return [bytes((identifier,)) + value.to_bytes(4, "big") for value in values]


def _two(identifier: int, *values: int) -> list[bytes]:
    return [bytes((identifier,)) + value.to_bytes(2, "big") for value in values]


def _length(size: int) -> bytes:
    parts = bytearray()
    while True:
        size, low = size >> 7, size & 0x7F
        if not size:
            return bytes((*parts, low))
        parts.append(low | 0x80)


# Few names, so that clients meet; the last ones are at the bounds.
_DEEPEST: Final = "/".join("d" * 200)
TOPICS: Final = [
    *map(_s, ("a", "a", "a/b", "a/b", "a/b/c", "b", "b/b", "/", "a//b", "/a", "ü/€/𝄞", "$x/a", "$SYS/x", "x" * 60)),
    _s(_DEEPEST),
]
ODD_TOPICS: Final = [
    *map(_s, ("", "a/#", "+", "+/b", "#", _DEEPEST + "/d")),
    *map(_s, (b"a\0", b"\xff\xfe", b"\xed\xa0\x80")),
]
FILTERS: Final = [
    *TOPICS,
    *map(_s, ("#", "+", "a/#", "+/b", "a/+/c", "+/+", "/#", "$SYS/#", "$x/+", "a/b/#", "+/#")),
    *map(_s, ("$share/g/a/#", "$share/g/#", "$share/h/+/b", "$share/g/a", "$share/g//")),
]
ODD_FILTERS: Final = [
    *map(_s, ("", "a#", "#/a", "a+", "+a/b", "a/#/b", _DEEPEST + "/#")),
    _s(b"a\0"),
    _s(b"\xc3"),
    *map(_s, ("$share/g", "$share//a", "$share/+/a", "$share/g/", "$share/g/a#", "$share/")),
]
PACKET_IDS: Final = [bytes((0, number)) for number in (1, 2, 3, 4, 5, 6, 7, 8)] + [b"\x01\x00", b"\xff\xff"]
PAYLOADS: Final = [b"", b"", b"1", b"22", b"payload", b"\0\xff" * 40, b"p" * 200]
_LARGE_PAYLOAD: Final = b"L" * 3000
CLIENT_IDS: Final = [_s("same"), _s("other"), _s("ü\n"), _s("c" * 80)]

USER_PROPERTY: Final = [b"\x26" + _s("k") + _s("v"), b"\x26" + _s("") + _s(""), b"\x26" + _s("kü") + _s("w" * 30)]
PUBLISH_PROPERTIES: Final = [
    b"\x01\x00", b"\x01\x01", *_four(2, 0, 1, 5, 60), b"\x03" + _s("text"), b"\x08" + _s("r/e"), b"\x09" + _s(b"\0\1"),
    *_two(0x23, 1, 2, 3), *USER_PROPERTY,
]  # fmt: skip
WILL_PROPERTIES: Final = [
    *_four(0x18, 0, 1, 5, 60), b"\x01\x01", *_four(2, 1, 60), b"\x03" + _s("t"), b"\x08" + _s("r"), *USER_PROPERTY,
]  # fmt: skip
CONNECT_PROPERTIES: Final = [
    *_four(0x11, 0, 1, 5, 60, 100, 0xFFFF_FFFF), *_two(0x21, 1, 2, 3, 20, 65535), *_two(0x22, 0, 1, 2, 65535),
    *_four(0x27, 30, 100, 1000, 0xFFFF_FFFF), b"\x17\x00", b"\x17\x01", b"\x19\x01", *USER_PROPERTY,
]  # fmt: skip
SUBSCRIBE_PROPERTIES: Final = [b"\x0b\x01", b"\x0b\x02", b"\x0b\xff\xff\xff\x7f", *USER_PROPERTY]
REASON_PROPERTIES: Final = [b"\x1f" + _s("why"), *USER_PROPERTY]
DISCONNECT_PROPERTIES: Final = [*_four(0x11, 0, 5, 60, 0xFFFF_FFFF), *REASON_PROPERTIES]
ODD_PROPERTIES: Final = [
    b"\x01\x02", b"\x23\x00\x00", b"\x23\xff\xff", b"\x0b\x00", b"\x0b\x05", b"\x7f", b"\x00", b"\x80\x00",
    b"\x1f\xff\xff",
    b"\x11\x00", b"\x26\x00\x01k", b"\x08" + _s("a/#"), b"\x12" + _s("id"), b"\x16" + _s("d"), b"\x15" + _s("m"),
    b"\x21\x00\x00", b"\x27\x00\x00\x00\x00", b"\x19\x02", b"\x03" + _s(b"\xff"),
]  # fmt: skip

_PROTOCOLS: Final = {V3_1: _s("MQIsdp"), V3_1_1: _s("MQTT"), V5: _s("MQTT")}
_PREFIXES: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n", b"\0" * 16, b"\xff" * 16,
)  # fmt: skip
_ACK_CODES: Final = (0x00, 0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x92, 0x97, 0x99)


class Grammar:
    """Draws packets from a seeded source; the tables are what a narrower grammar replaces."""

    topics: Sequence[bytes] = TOPICS
    filters: Sequence[bytes] = FILTERS
    publish_properties: Sequence[bytes] = PUBLISH_PROPERTIES
    will_properties: Sequence[bytes] = WILL_PROPERTIES
    connect_properties: Sequence[bytes] = CONNECT_PROPERTIES
    disconnect_properties: Sequence[bytes] = DISCONNECT_PROPERTIES
    no_local: Sequence[int] = (0, 0, 4)
    retain_options: Sequence[int] = (0, 0x08, 0x10, 0x20)
    usernames: Sequence[bytes] = (_s("user"), _s(""), _s("ü\n"))
    keep_alives: Sequence[bytes] = (b"\0\0", b"\0\0", b"\0\1", b"\0\x0a", b"\xff\xff")

    def __init__(self, source: random.Random, badness: float) -> None:
        self.random = source.random
        self.badness = badness

    def pick(self, choices: Sequence[T]) -> T:
        """Choose one with equal chances; several times quicker than `random.choice`."""
        return choices[int(self.random() * len(choices))]

    def spoilt(self) -> bool:
        """Whether this part of a packet is to be wrong."""
        return self.random() < self.badness

    # --- packets -------------------------------------------------------------------------------------------------

    def packet(self, version: int) -> bytes:
        """Draw any packet a client may send after CONNECT, once in a while a wrong one."""
        kind = self.random()
        if kind < 0.56:
            data = self.publish(version)
        elif kind < 0.70:
            data = self.acknowledgement(version, 0x62)
        elif kind < 0.78:
            data = self.acknowledgement(version, self.pick((0x40, 0x50, 0x70)))
        elif kind < 0.88:
            data = self.subscribe(version)
        elif kind < 0.92:
            data = self.unsubscribe(version)
        elif kind < 0.985:
            data = b"\xc0\x00"
        elif kind < 0.99:
            data = self.disconnect(version)
        elif self.spoilt():
            data = self.pick((self.connect(version, b"\0\1c"), self.stray(version), self.pick(_PREFIXES)))
        else:
            data = b"\xc0\x00"
        return self.spoil(data) if self.random() < self.badness * 0.5 else data

    def publish(self, version: int) -> bytes:
        """Draw a PUBLISH."""
        rand = self.random
        qos = int(rand() * 3)
        first = 0x30 | qos << 1
        if rand() < 0.15:
            first |= 1
        if qos and rand() < 0.1:
            first |= 8
        body = self.pick(self.topics)
        bad = rand() < self.badness
        if bad:
            choice = int(rand() * 4)
            if choice == 0:
                body = self.pick(ODD_TOPICS)
            elif choice == 1:
                first = self.pick((0x36, 0x37, 0x38, 0x39))
        if version == V5 and rand() < 0.12:
            # set an alias up, use it, or both
            alias = self.pick((b"\x23\0\1", b"\x23\0\2", b"\x23\0\x0a"))
            if rand() < 0.5 and (bad or rand() < 0.5):
                body = b"\0\0"
            middle = self.pick(PACKET_IDS) if first & 6 else b""
            return self._frame(first, body + middle + b"\x03" + alias + self.pick(PAYLOADS))
        if first & 6:
            body += b"\0\0" if bad and rand() < 0.2 else self.pick(PACKET_IDS)
        if version == V5:
            body += b"\0" if rand() < 0.5 else self._properties(self.publish_properties)
        return self._frame(first, body + (_LARGE_PAYLOAD if rand() < 0.002 else self.pick(PAYLOADS)))

    def subscribe(self, version: int) -> bytes:
        """Draw a SUBSCRIBE of one or more filters."""
        body = self.pick(PACKET_IDS)
        if version == V5:
            body += self._properties(SUBSCRIBE_PROPERTIES) if self.random() < 0.3 else b"\0"
        for _ in range(self.pick((1, 1, 1, 2, 3))):
            if self.spoilt():
                body += self.pick(ODD_FILTERS) + bytes((self.pick((0, 1, 2, 3, 0x40, 0x34, 0xFF)),))
                continue
            topic_filter = self.pick(self.filters)
            options = int(self.random() * 3)
            if version == V5:
                options |= self.pick(self.retain_options) | (
                    self.pick(self.no_local) if topic_filter[2:3] != b"$" or self.spoilt() else 0
                )
            body += topic_filter + bytes((options,))
        if self.spoilt():
            body = body[: self.pick((0, 1, 2, 3))]
        return self._frame(0x82, body)

    def unsubscribe(self, version: int) -> bytes:
        """Draw an UNSUBSCRIBE."""
        body = self.pick(PACKET_IDS) + (b"\0" if version == V5 else b"")
        for _ in range(self.pick((1, 1, 2))):
            body += self.pick(ODD_FILTERS) if self.spoilt() else self.pick(self.filters)
        return self._frame(0xA2, body)

    def acknowledgement(self, version: int, first: int) -> bytes:
        """Draw a PUBACK, PUBREC, PUBREL or PUBCOMP that may or may not answer anything."""
        packet_id = b"\0\0" if self.spoilt() else self.pick(PACKET_IDS)
        if version != V5 or self.random() < 0.7:
            return bytes((first, 2)) + packet_id
        codes = (0x00, 0x92) if first in (0x62, 0x70) and not self.spoilt() else _ACK_CODES
        code = bytes((self.pick(codes),))
        if self.random() < 0.7:
            return bytes((first, 3)) + packet_id + code
        return self._frame(first, packet_id + code + self._properties(REASON_PROPERTIES))

    def disconnect(self, version: int) -> bytes:
        """Draw a DISCONNECT."""
        if version != V5 or self.random() < 0.4:
            return b"\xe0\x00"
        code = bytes((self.pick((0, 0, 4, 0x81, 0x93)),))
        return self._frame(0xE0, code + self._properties(self.disconnect_properties))

    def stray(self, version: int) -> bytes:
        """Draw a packet that only a Server sends, AUTH, or a reserved type."""
        kinds = (b"\x20\x02\0\0", b"\x90\x03\0\1\0", b"\xb0\x02\0\1", b"\xd0\0", b"\xf0\0", b"\xf0\x02\x18\0", b"\0\0")
        return self.pick(kinds)

    def connect(self, version: int, client_id: bytes) -> bytes:
        """Draw a CONNECT; with some badness also one of a protocol we do not speak."""
        rand = self.random
        flags = 2 if rand() < 0.4 else 0
        protocol, level = _PROTOCOLS[version], version
        if self.spoilt():
            protocol = self.pick((_s("MQTT"), _s("MQIsdp"), _s("mqtt"), _s(""), _s(b"\xff")))
            level = self.pick((0, 2, 3, 4, 5, 6, 0x83, 0x84, 0x85, 255))
        rest = b""
        if rand() < 0.4:
            qos = int(rand() * 3)
            flags |= 0x04 | qos << 3 | (0x20 if rand() < 0.3 else 0)
            if version == V5:
                rest += self._properties(self.will_properties)
            rest += self.pick(ODD_TOPICS) if self.spoilt() else self.pick(self.topics)
            rest += _s(self.pick(PAYLOADS))
        if rand() < 0.1:
            flags |= 0x80
            rest += self.pick(self.usernames)
            if rand() < 0.5:
                flags |= 0x40
                rest += _s(b"\0secret")
        if self.spoilt():
            flags ^= self.pick((0x01, 0x04, 0x18, 0x20, 0x40, 0x80))
        keep_alive = self.pick(self.keep_alives)
        body = protocol + bytes((level & 0xFF, flags)) + keep_alive
        if version == V5:
            body += self._properties(self.connect_properties)
        return self._frame(0x10, body + client_id + rest)

    # --- parts ---------------------------------------------------------------------------------------------------

    def _properties(self, table: Sequence[bytes]) -> bytes:
        chosen: dict[int, bytes] = {}  # one of each, but User Properties as they come
        rest = b""
        for _ in range(self.pick((0, 1, 1, 2, 4))):
            part = self.pick(table)
            if part[0] == 0x26:
                rest += part
            else:
                chosen[part[0]] = part
        body = b"".join(chosen.values()) + rest
        if self.spoilt():
            body += self.pick(ODD_PROPERTIES) if self.random() < 0.7 else self.pick(table)
        return _length(len(body)) + body

    def _frame(self, first: int, body: bytes) -> bytes:
        size = len(body)
        if size < 0x80:
            return bytes((first, size)) + body
        return bytes((first,)) + _length(size) + body

    def spoil(self, data: bytes) -> bytes:
        """Break a packet somewhere."""
        way = int(self.random() * 9)
        at = int(self.random() * len(data))
        if way == 0:  # another bit
            return data[:at] + bytes((data[at] ^ 1 << int(self.random() * 8),)) + data[at + 1 :]
        if way == 1:  # another byte
            return data[:at] + bytes((int(self.random() * 256),)) + data[at + 1 :]
        if way == 2:  # a byte gone
            return data[:at] + data[at + 1 :]
        if way == 3:  # bytes too many
            return data[:at] + bytes(int(self.random() * 256) for _ in range(self.pick((1, 2, 7)))) + data[at:]
        if way == 4:  # cut, so that the next packet stands inside it
            return data[:at]
        if way == 5:  # wrong flags
            return bytes((data[0] ^ int(self.random() * 16),)) + data[1:]
        if way == 6:  # a length that is not its own
            return (
                data[:1] + self.pick((b"\0", b"\1", b"\x7f", b"\xff\xff\xff\x7f", b"\x80\x01", b"\xff\x7f")) + data[2:]
            )
        if way == 7:  # a length in more bytes than it needs, or that never ends
            if data[1] < 0x80:
                padded = self.pick((b"\x80\0", b"\x80\x80\0"))
                return data[:1] + bytes((data[1] | 0x80,)) + padded[1:] + data[2:]
            return data[:1] + b"\x80\x80\x80\x80\x01" + data[2:]
        return data[:at] + data[at:][::-1]
