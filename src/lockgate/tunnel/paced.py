"""How fast the devices of a tunnel may be: bytes per second, all of them together."""

from __future__ import annotations

import asyncio
import time

from lockgate.tunnel.relay import End


class Pace:
    """Bytes per second that all devices of a tunnel may send or be sent."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._left = float(rate)
        self._at = time.monotonic()

    def take(self, size: int) -> float:
        """Count bytes that have passed; for how long the one who sent them has to wait, seconds."""
        if not self.rate:
            return 0.0
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * self.rate, self.rate) - size
        self._at = now
        return max(0.0, -self._left / self.rate)


class PacedEnd(End):
    """An end of a relay that is slowed to its tunnel's pace."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace
        self._waits = False
        self._stopped = False  # by the other end

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        wait = self.pace.take(len(data))
        if wait > 0 and not self._waits and self.transport is not None:
            self._waits = True
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(wait, self._go_on)

    def pause_reading(self) -> None:
        self._stopped = True
        super().pause_reading()

    def resume_reading(self) -> None:
        self._stopped = False
        if not self._waits:
            super().resume_reading()

    def _go_on(self) -> None:
        self._waits = False
        if not self._stopped:
            super().resume_reading()
