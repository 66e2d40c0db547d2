"""The store's time: seconds that go on over restarts and power cuts, by what is known of the time in between.

Within a boot it follows CLOCK_BOOTTIME. Across boots the difference of two wall times is added where both were known to
be good; else nobody knows how long the machine was off, and the store's time goes on where it stopped (DESIGN §3.5).
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from lockgate.broker.ports import NEVER
from lockgate.telemetry.clock import Moment

_FIRST_SECOND: Final = 1.0  # 0 is NEVER
_NOTE_AGAIN_SECONDS: Final = 60.0
_LONGEST_INTERVAL: Final = 0xFFFF_FFFF  # seconds


class MomentSource(Protocol):
    """Tells the time, as `telemetry.clock.Clock` does."""

    def now(self) -> Moment:
        """Give this instant on all clocks."""


class ClockRow(NamedTuple):
    """An instant that the store noted: its own time, and what the machine's clocks said."""

    store_time: float
    boottime: float
    boot_id: str
    wall_time: float
    clock_ok: bool


class StoreClock:
    """Translates between the broker's time (CLOCK_BOOTTIME of this boot, seconds) and the store's."""

    def __init__(self, source: MomentSource, noted: ClockRow | None) -> None:
        self._source = source
        self._noted = noted
        moment = source.now()
        boottime = moment.boottime_ns / 1e9
        self._latest = boottime + _LONGEST_INTERVAL
        self.off_seconds: float | None = 0.0  # between the last note and the start of this boot; None: unknown
        if noted is None:
            self._offset = _FIRST_SECOND - boottime
        elif noted.boot_id == moment.boot_id:
            self._offset = noted.store_time - noted.boottime
        else:
            off = moment.wall_ns / 1e9 - noted.wall_time
            self.off_seconds = off if noted.clock_ok and moment.clock_ok and off >= 0 else None
            self._offset = noted.store_time + (self.off_seconds or 0.0) - boottime

    def to_store(self, at: float) -> float:
        """Give the store's time of a point in the broker's time."""
        return at + self._offset if at != NEVER else NEVER

    def from_store(self, at: float) -> float:
        """Give the broker's time of a point in the store's, at most the longest interval of MQTT from the start."""
        return min(at - self._offset, self._latest) if at != NEVER else NEVER

    def forget_note(self) -> None:
        """Say that what `note` gave was not written: it is given again with the next commit."""
        self._noted = None

    def note(self) -> ClockRow | None:
        """Give the instant if it is time to note it again: it takes part in a commit that happens anyway."""
        moment = self._source.now()
        noted = self._noted
        boottime = moment.boottime_ns / 1e9
        if (
            noted is not None
            and noted.boot_id == moment.boot_id
            and noted.clock_ok == moment.clock_ok
            and boottime - noted.boottime < _NOTE_AGAIN_SECONDS
        ):
            return None
        row = ClockRow(boottime + self._offset, boottime, moment.boot_id, moment.wall_ns / 1e9, moment.clock_ok)
        self._noted = row
        return row
