"""Where MQTT packets begin in a stream of bytes that is only passed on."""

from __future__ import annotations

from lockgate.mqtt.errors import MalformedPacket


class Boundaries:
    """Follows the fixed headers; keeps no bytes."""

    __slots__ = ("_left", "_length", "_shift")

    def __init__(self) -> None:
        self._left = 0  # bytes of this packet still to come, behind its fixed header
        self._length = 0  # its Remaining Length, as far as it was read
        self._shift = -1  # of the next byte of that; -1: a packet's first byte comes next

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte begins a packet."""
        return self._left == 0 and self._shift < 0

    def advance(self, data: bytes) -> None:
        """Go on behind `data`. Raises MalformedPacket for a Remaining Length of more than four bytes."""
        at, size = 0, len(data)
        while at < size:
            at = self.step(data, at)

    def step(self, data: bytes, at: int) -> int:
        """Go on to the end of the packet that data[at] is in, or of `data`; give where that is. Raises as `advance`."""
        size = len(data)
        if self._left == 0:
            if self._shift < 0:
                at += 1
                self._shift = self._length = 0
            while True:
                if at >= size:
                    return at
                byte = data[at]
                at += 1
                self._length |= (byte & 0x7F) << self._shift
                if byte < 0x80:
                    break
                self._shift += 7
                if self._shift == 28:
                    raise MalformedPacket("the Remaining Length needs a fifth byte")
            self._left = self._length
            self._shift = -1
        end = min(at + self._left, size)
        self._left -= end - at
        return end
