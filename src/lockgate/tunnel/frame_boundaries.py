"""Where WebSocket frames begin in a stream of bytes that is only passed on (RFC 6455 §5.2)."""

from __future__ import annotations

from typing import Final

from lockgate.transport.layer import TransportError
from lockgate.transport.websocket import apply_mask

_FIN, _RESERVED, _OPCODE, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_CONTINUATION, _BINARY, _CLOSE = 0x0, 0x2, 0x8
_MQTT: Final = frozenset((_CONTINUATION, _BINARY))
_EXTENDED: Final = {126: 2, 127: 8}  # bytes of a length that is behind the second byte
_LONGEST_HEAD: Final = 14  # bytes


class FrameBoundaries:
    """Follows the heads of the frames, masked or not; keeps no payload."""

    __slots__ = ("_head", "_left", "_mask", "_within", "is_control")

    def __init__(self) -> None:
        self._head = b""  # of a frame, as far as it was read
        self._left = 0  # bytes of this frame's payload still to come
        self._mask = b""  # for the next of them; empty: there is none
        self._within = False  # a fragmented message has begun
        self.is_control = False  # the frame that `step` was in last is a Ping, Pong or Close

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte begins a frame."""
        return not (self._left or self._head)

    @property
    def between_messages(self) -> bool:
        """Whether another message may begin here."""
        return self.at_boundary and not self._within

    def step(self, data: bytes, at: int) -> tuple[int, bytes]:
        """Go on to the end of the frame that data[at] is in, or of `data`.

        Gives where that is, and what these bytes bring of a message's payload. Raises TransportError for a frame that
        MQTT does not use.
        """
        if not self._left:
            at = self._read_head(data, at)
        end = min(at + self._left, len(data))
        self._left -= end - at
        if self.is_control:
            return end, b""
        payload = data[at:end]
        if self._mask and payload:
            turn = len(payload) & 3
            payload, self._mask = apply_mask(payload, self._mask), self._mask[turn:] + self._mask[:turn]
        return end, payload

    def _read_head(self, data: bytes, at: int) -> int:
        """Give where the payload begins, or the end of `data` where that is not there yet."""
        before = len(self._head)
        head = self._head + data[at : at + _LONGEST_HEAD - before]
        size = 2
        if len(head) >= 2:
            extended = _EXTENDED.get(head[1] & _LENGTH, 0)
            size += extended + (4 if head[1] & _MASKED else 0)
        if len(head) < size:
            self._head = head
            self.is_control = False
            return len(data)
        self._head = b""
        first, length = head[0], head[1] & _LENGTH
        opcode = first & _OPCODE
        self.is_control = opcode >= _CLOSE
        if first & _RESERVED or not (self.is_control or opcode in _MQTT):
            raise TransportError("WebSocket: a frame that MQTT does not use")
        if not self.is_control:
            self._within = not first & _FIN
        self._left = int.from_bytes(head[2 : 2 + extended], "big") if extended else length
        self._mask = head[size - 4 : size] if head[1] & _MASKED else b""
        return at + size - before
