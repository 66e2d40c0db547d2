"""What time it is: CLOCK_BOOTTIME within a boot, wall time beside it, and whether that may be believed."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Final, NamedTuple

_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
_ASK_AGAIN_NS: Final = 1_000_000_000


class Moment(NamedTuple):
    """One instant on all our clocks."""

    boot_id: str
    boottime_ns: int
    wall_ns: int
    clock_ok: bool  # the kernel says that the wall clock is synchronised


class Clock:
    """Reads the machine's clocks."""

    def __init__(self) -> None:
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._synchronised = False
        self._asked_ns: int | None = None

    def now(self) -> Moment:
        boottime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if self._asked_ns is None or boottime_ns - self._asked_ns >= _ASK_AGAIN_NS:
            self._asked_ns = boottime_ns
            answer = self._libc.adjtimex(ctypes.create_string_buffer(512))  # all zero: only ask
            self._synchronised = 0 <= answer < _TIME_ERROR
        return Moment(self.boot_id, boottime_ns, time.time_ns(), self._synchronised)
