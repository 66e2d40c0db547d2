"""When an update may begin by itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol


class Window(Protocol):
    """Hours of some days; minutes of the day."""

    @property
    def days(self) -> frozenset[int]: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...


def is_open(windows: Sequence[Window], at: datetime) -> bool:
    """Whether a local time lies in one of the windows; without windows every time does."""
    minute, today = at.hour * 60 + at.minute, at.weekday()
    yesterday = (today - 1) % 7
    for window in windows:
        if window.begin < window.end:
            if today in window.days and window.begin <= minute < window.end:
                return True
        elif (today in window.days and minute >= window.begin) or (yesterday in window.days and minute < window.end):
            return True
    return not windows
