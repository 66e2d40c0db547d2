"""Cap'n Proto messages, as far as the registration of a tunnel needs them: structs, lists of bytes and of pointers.

A word is 8 bytes, all integers are little-endian. A stream carries messages of one or more segments (`Framer`);
we write single-segment messages (`Builder`) and read any (`Struct.root`). What a peer sends is bounded: the size of
a message, how deep pointers go, and how much is read through them, so that no pointer can lead in circles.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct as Form
from typing import Final

MAX_MESSAGE_BYTES: Final = 1024 * 1024
MAX_SEGMENTS: Final = 512
_MAX_DEPTH: Final = 64
_MAX_TRAVERSED_WORDS: Final = 8 * MAX_MESSAGE_BYTES // 8

_U16, _U32, _U64, _I64 = Form("<H"), Form("<I"), Form("<Q"), Form("<q")
_STRUCT, _LIST, _FAR, _OTHER = 0, 1, 2, 3
_BYTES, _POINTERS, _COMPOSITE = 2, 6, 7  # sizes of a list's elements


class CapnpError(ValueError):
    """The bytes are no message, or lead nowhere."""


class Framer:
    """Cuts a stream into messages (Cap'n Proto, "Serialization Over a Stream")."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The messages that are whole by now, each as its segments; CapnpError for one that is too large."""
        self._rest += data
        messages = []
        while segments := self._take():
            messages.append(segments)
        return messages

    def _take(self) -> list[bytes]:
        rest = self._rest
        if len(rest) < 4:
            return []
        count = _U32.unpack_from(rest)[0] + 1
        if count > MAX_SEGMENTS:
            raise CapnpError(f"a message of {count} segments; at most {MAX_SEGMENTS} are read")
        head = (4 + 4 * count + 7) // 8 * 8
        if len(rest) < head:
            return []
        sizes = [8 * _U32.unpack_from(rest, 4 + 4 * n)[0] for n in range(count)]
        if head + sum(sizes) > MAX_MESSAGE_BYTES:
            raise CapnpError(f"a message of {head + sum(sizes)} bytes; at most {MAX_MESSAGE_BYTES} are read")
        if len(rest) < head + sum(sizes):
            return []
        segments, at = [], head
        for size in sizes:
            segments.append(bytes(rest[at : at + size]))
            at += size
        del rest[:at]
        return segments


class _Message:
    __slots__ = ("left", "segments")

    def __init__(self, segments: Sequence[bytes]) -> None:
        self.segments = segments
        self.left = _MAX_TRAVERSED_WORDS

    def word(self, segment: int, at: int) -> int:
        word: int = _U64.unpack(self.span(segment, at, 1))[0]
        return word

    def span(self, segment: int, at: int, words: int) -> bytes:
        """Words of a segment; CapnpError outside of it, or when too many were read."""
        self.left -= max(words, 1)
        if self.left < 0:
            raise CapnpError("a message whose pointers lead through more than it holds")
        if not 0 <= segment < len(self.segments) or at < 0 or (at + words) * 8 > len(self.segments[segment]):
            raise CapnpError("a pointer leads out of its message")
        return self.segments[segment][at * 8 : (at + words) * 8]

    def follow(self, segment: int, at: int) -> tuple[int, int, int]:
        """A pointer behind far pointers: its word, and the segment and word its offset counts from."""
        word = self.word(segment, at)
        if word & 3 != _FAR:
            return word, segment, at + 1
        pad, pad_at = word >> 32, (word >> 3) & 0x1FFFFFFF
        if not word & 4:
            word = self.word(pad, pad_at)
            if word & 3 == _FAR:
                raise CapnpError("a far pointer leads to another one")
            return word, pad, pad_at + 1
        first, tag = self.word(pad, pad_at), self.word(pad, pad_at + 1)
        if first & 7 != _FAR or tag & 3 == _FAR:
            raise CapnpError("the landing pad of a far pointer is none")
        return tag & ~0xFFFFFFFC, first >> 32, (first >> 3) & 0x1FFFFFFF


def _offset(word: int) -> int:
    """The signed 30 bits of a struct or list pointer, in words."""
    offset = (word >> 2) & 0x3FFFFFFF
    return offset - 0x40000000 if offset & 0x20000000 else offset


class Struct:
    """A struct of a message. What lies beyond what its writer knew reads as zero, null or empty."""

    __slots__ = ("_data", "_depth", "_message", "_pointers", "_pointers_at", "_segment")

    def __init__(self, message: _Message, segment: int, at: int, word: int, depth: int) -> None:
        """`at`: where its data begin; `word`: the pointer, for the sizes."""
        if depth > _MAX_DEPTH:
            raise CapnpError(f"pointers more than {_MAX_DEPTH} deep")
        words = (word >> 32) & 0xFFFF
        self._data = message.span(segment, at, words)
        self._message = message
        self._segment = segment
        self._pointers_at = at + words
        self._pointers = (word >> 48) & 0xFFFF
        self._depth = depth

    @classmethod
    def root(cls, segments: Sequence[bytes]) -> Struct:
        """The struct a message holds."""
        message = _Message(segments)
        word, segment, base = message.follow(0, 0)
        return cls._at(message, word, segment, base, 0)

    @classmethod
    def _at(cls, message: _Message, word: int, segment: int, base: int, depth: int) -> Struct:
        if word & 3 != _STRUCT:
            raise CapnpError("a pointer to something else than a struct")
        return cls(message, segment, base + _offset(word) if word else 0, word, depth)

    def u8(self, at: int) -> int:
        """A number at a byte of the data section; likewise below."""
        return self._data[at] if at < len(self._data) else 0

    def u16(self, at: int) -> int:
        return int(_U16.unpack_from(self._data, at)[0]) if at + 2 <= len(self._data) else 0

    def u32(self, at: int) -> int:
        return int(_U32.unpack_from(self._data, at)[0]) if at + 4 <= len(self._data) else 0

    def u64(self, at: int) -> int:
        return int(_U64.unpack_from(self._data, at)[0]) if at + 8 <= len(self._data) else 0

    def i64(self, at: int) -> int:
        return int(_I64.unpack_from(self._data, at)[0]) if at + 8 <= len(self._data) else 0

    def bit(self, n: int) -> bool:
        return bool(self.u8(n // 8) >> n % 8 & 1)

    def struct(self, n: int) -> Struct | None:
        """What pointer n leads to, None for null; CapnpError for what is no struct."""
        word, segment, base = self._pointer(n)
        return self._at(self._message, word, segment, base, self._depth + 1) if word else None

    def data(self, n: int) -> bytes:
        """The bytes pointer n leads to, none for null."""
        word, segment, base = self._pointer(n)
        if not word:
            return b""
        if word & 3 != _LIST or (word >> 32) & 7 != _BYTES:
            raise CapnpError("a pointer to something else than bytes")
        size = word >> 35
        return self._message.span(segment, base + _offset(word), (size + 7) // 8)[:size]

    def text(self, n: int) -> str:
        """The text pointer n leads to, empty for null."""
        return _decoded(self.data(n))

    def texts(self, n: int) -> list[str]:
        """The list of texts pointer n leads to, empty for null."""
        word, segment, base = self._pointer(n)
        if not word:
            return []
        if word & 3 != _LIST or (word >> 32) & 7 != _POINTERS:
            raise CapnpError("a pointer to something else than a list of texts")
        size = word >> 35
        self._message.span(segment, base + _offset(word), size)
        # A list of pointers is a struct of nothing but pointers, whose number may exceed 16 bits.
        row = Struct(self._message, segment, base + _offset(word), 0, self._depth + 1)
        row._pointers = size
        return [row.text(k) for k in range(size)]

    def _pointer(self, n: int) -> tuple[int, int, int]:
        if n >= self._pointers:
            return 0, 0, 0
        return self._message.follow(self._segment, self._pointers_at + n)


def _decoded(data: bytes) -> str:
    try:
        return data.removesuffix(b"\0").decode()
    except UnicodeDecodeError as error:
        raise CapnpError(f"a text that is not UTF-8 ({error})") from None


class Builder:
    """A struct of a message being written, each behind the one that points to it."""

    __slots__ = ("_at", "_data_words", "_words")

    def __init__(self, words: bytearray, at: int, data_words: int) -> None:
        self._words = words
        self._at = at  # bytes
        self._data_words = data_words

    @classmethod
    def root(cls, data_words: int, pointers: int) -> Builder:
        """Begin a message with its root struct."""
        words = bytearray(8)
        return cls._struct(words, 0, data_words, pointers)

    @classmethod
    def _struct(cls, words: bytearray, pointer: int, data_words: int, pointers: int) -> Builder:
        at = len(words)
        # An empty struct points at its own pointer, for a pointer of nothing but zeros is null.
        offset = (at - pointer) // 8 - 1 if data_words or pointers else -1
        _U64.pack_into(words, pointer, (offset << 2 & 0xFFFFFFFF) | _STRUCT | data_words << 32 | pointers << 48)
        words += bytes(8 * (data_words + pointers))
        return cls(words, at, data_words)

    def u8(self, at: int, value: int) -> None:
        self._words[self._at + at] = value

    def u16(self, at: int, value: int) -> None:
        _U16.pack_into(self._words, self._at + at, value)

    def u32(self, at: int, value: int) -> None:
        _U32.pack_into(self._words, self._at + at, value)

    def u64(self, at: int, value: int) -> None:
        _U64.pack_into(self._words, self._at + at, value)

    def i64(self, at: int, value: int) -> None:
        _I64.pack_into(self._words, self._at + at, value)

    def bit(self, n: int, value: bool) -> None:
        mask = 1 << n % 8
        byte = self._at + n // 8
        self._words[byte] = self._words[byte] & ~mask | (mask if value else 0)

    def struct(self, n: int, data_words: int, pointers: int) -> Builder:
        """A new struct at pointer n."""
        return self._struct(self._words, self._pointer(n), data_words, pointers)

    def composite(self, n: int, data_words: int, pointers: int) -> Builder:
        """A new list of one struct at pointer n: that struct."""
        self._list(n, _COMPOSITE, data_words + pointers)
        _U64.pack_into(self._words, len(self._words) - 8, 1 << 2 | data_words << 32 | pointers << 48)
        at = len(self._words)
        self._words += bytes(8 * (data_words + pointers))
        return Builder(self._words, at, data_words)

    def data(self, n: int, value: bytes) -> None:
        """Bytes at pointer n."""
        pointer = self._pointer(n)
        offset = (len(self._words) - pointer) // 8 - 1
        _U64.pack_into(self._words, pointer, offset << 2 | _LIST | _BYTES << 32 | len(value) << 35)
        self._words += value + bytes(-len(value) % 8)

    def text(self, n: int, value: str) -> None:
        self.data(n, value.encode() + b"\0")

    def texts(self, n: int, values: Sequence[str]) -> None:
        pointer = self._pointer(n)
        at = len(self._words)
        offset = (at - pointer) // 8 - 1
        _U64.pack_into(self._words, pointer, offset << 2 | _LIST | _POINTERS << 32 | len(values) << 35)
        self._words += bytes(8 * len(values))
        row = Builder(self._words, at, 0)
        for k, value in enumerate(values):
            row.text(k, value)

    def capability(self, n: int, index: int) -> None:
        """A reference to an entry of the message's table of capabilities at pointer n."""
        _U64.pack_into(self._words, self._pointer(n), _OTHER | index << 32)

    def message(self) -> bytes:
        """The whole message, framed for a stream."""
        return _U32.pack(0) + _U32.pack(len(self._words) // 8) + self._words

    def _list(self, n: int, element: int, words: int) -> None:
        """Point to a list of structs, whose tag comes next."""
        pointer = self._pointer(n)
        offset = (len(self._words) - pointer) // 8 - 1
        _U64.pack_into(self._words, pointer, offset << 2 | _LIST | element << 32 | words << 35)
        self._words += bytes(8)

    def _pointer(self, n: int) -> int:
        return self._at + 8 * (self._data_words + n)
