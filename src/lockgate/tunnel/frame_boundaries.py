"""Where WebSocket frames begin in a stream of bytes that is only passed on (RFC 6455 §5.2)."""

from __future__ import annotations

from lockgate.transport.layer import TransportError
from lockgate.transport.websocket_frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    LONGEST_HEAD,
    OPCODE,
    RESERVED,
    apply_mask,
    read_head,
    turn_mask,
)


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
            payload, self._mask = apply_mask(payload, self._mask), turn_mask(self._mask, len(payload))
        return end, payload

    def _read_head(self, data: bytes, at: int) -> int:
        """Give where the payload begins, or the end of `data` where that is not there yet."""
        before = len(self._head)
        begun = self._head + data[at : at + LONGEST_HEAD - before]
        head = read_head(begun, 0)
        if head is None:
            self._head = begun
            self.is_control = False
            return len(data)
        self._head = b""
        first, self._left, self._mask, begin = head
        opcode = first & OPCODE
        self.is_control = opcode >= CLOSE
        if first & RESERVED or not (self.is_control or opcode in (CONTINUATION, BINARY)):
            raise TransportError("WebSocket: a frame that MQTT does not use")
        if not self.is_control:
            self._within = not first & FIN
        return at + begin - before
