"""MQTT in WebSocket frames that the edge passes on as they are: in a gap it answers PINGREQ all the same.

The edge follows where frames, and packets in them, begin. While no tunnel connection carries a device, a PINGREQ in
frames of its own, as a device that has nothing else to say sends it, is answered and goes no further. One that shares
its frame with other packets waits for the broker, as those do; and while the device has half a message, nothing can
be put behind that. A PINGREQ has one PINGRESP in any case.
"""

from __future__ import annotations

from typing import Final

from lockgate.mqtt.encoder import PINGREQ_FRAME, PINGRESP_FRAME
from lockgate.mqtt.errors import MqttError
from lockgate.transport.layer import TransportError
from lockgate.tunnel.boundaries import Boundaries
from lockgate.tunnel.frame_boundaries import FrameBoundaries

_HELD_BYTES: Final = 64  # a PINGREQ in two frames has at most 30
_PINGRESP: Final = b"\x82\x02" + PINGRESP_FRAME  # a binary message of one frame, which a server does not mask


class MqttFrames:
    """One device. Frames or packets that are broken are for the broker to judge: then nothing is answered any more."""

    __slots__ = (
        "_answers",
        "_down",
        "_down_frames",
        "_follows",
        "_greeted",
        "_held",
        "_in_gap",
        "_ping",
        "_up",
        "_up_frames",
    )

    def __init__(self) -> None:
        self._up, self._down = Boundaries(), Boundaries()
        self._up_frames, self._down_frames = FrameBoundaries(), FrameBoundaries()
        self._follows = True
        self._greeted = False  # a whole packet has gone to the device
        self._in_gap = False
        self._held = b""  # of the device: frames that may be a PINGREQ and nothing else
        self._ping = b""  # the payload in them
        self._answers = 0

    def begin_gap(self) -> None:
        """There is no way to the broker: answer PINGREQ."""
        self._in_gap = True

    def end_gap(self) -> bytes:
        """There is one again; gives what waited to be passed on."""
        self._in_gap = False
        return self._release()

    def from_device(self, data: bytes) -> bytes:
        """Take bytes of the device; gives what is passed on to the broker. In a gap `answer` may have something."""
        at, size = 0, len(data)
        passed: list[bytes] = []
        while self._follows and at < size:
            begin, may_be_ping = at, self._in_gap and self._may_be_ping
            try:
                at, payload = self._up_frames.step(data, at)
                self._up.advance(payload)
            except (TransportError, MqttError):
                self._follows = False
                passed.append(self._release())
                at = begin
            else:
                if self._in_gap:
                    passed.append(self._sift(data[begin:at], payload) if may_be_ping else data[begin:at])
        return b"".join((*passed, data[at:])) if self._in_gap else data

    def from_broker(self, data: bytes) -> None:
        """Take note of bytes of the broker, which all go to the device."""
        at, size = 0, len(data)
        while self._follows and at < size:
            try:
                at, payload = self._down_frames.step(data, at)
                self._down.advance(payload)
            except (TransportError, MqttError):
                self._follows = False
                return
            self._greeted = self._greeted or (self._down.at_boundary and bool(payload))

    def answer(self) -> bytes:
        """Give what the edge says to the device now, in frames."""
        said, self._answers = _PINGRESP * self._answers, 0
        return said

    @property
    def _may_be_ping(self) -> bool:
        """Whether a PINGREQ has begun, or could begin here and be answered."""
        there = self._up.at_boundary and self._up_frames.between_messages
        answerable = self._greeted and self._down.at_boundary and self._down_frames.between_messages
        return bool(self._held) or (there and answerable)

    def _sift(self, piece: bytes, payload: bytes) -> bytes:
        """Hold bytes of one frame as long as they may be a PINGREQ; gives what they and those held before were not."""
        self._held += piece
        self._ping += payload
        is_other = self._up_frames.is_control or not PINGREQ_FRAME.startswith(self._ping)
        if is_other or len(self._held) > _HELD_BYTES:
            return self._release()
        if self._ping == PINGREQ_FRAME and self._up_frames.between_messages:
            self._answers += 1
            self._release()
        return b""

    def _release(self) -> bytes:
        held, self._held, self._ping = self._held, b"", b""
        return held
