"""What the disk has to bear: commits and bytes, in all, in the last hour, and by the first level of topics."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from lockgate.storage.changes import Batch

_HOUR: Final = 60  # minutes
_MOST_PREFIXES: Final = 100
_OTHERS: Final = "…"


def written_by_thread() -> int | None:
    """Give the bytes that the calling thread has written, to any file, since it was started."""
    try:
        with open("/proc/thread-self/io", "rb") as file:
            return int(file.read().split()[3])  # wchar
    except (OSError, IndexError, ValueError):  # some containers hide it
        return None


class _Minute:
    __slots__ = ("commits", "number", "prefixes", "written")

    def __init__(self, number: int) -> None:
        self.number = number
        self.commits = 0
        self.written = 0
        self.prefixes: dict[str, int] = {}


class Wear:
    """Counts; minutes are those of CLOCK_BOOTTIME."""

    def __init__(self) -> None:
        self.commits = 0
        self.bytes_written = 0
        self.prefixes: dict[str, int] = {}  # bytes of messages by the first level of their topics
        self._minutes: deque[_Minute] = deque()

    def count(self, batches: Sequence[Batch], written: int | None) -> None:
        """Count a commit; `written` is what its thread had given to the disk in all, before it."""
        minute = self._now()
        self.commits += 1
        minute.commits += 1
        if written is not None:
            minute.written += written - self.bytes_written
            self.bytes_written = written
        for batch in batches:
            for prefix, size in batch.bytes_by_prefix.items():
                for place in (self.prefixes, minute.prefixes):
                    name = prefix if prefix in place or len(place) < _MOST_PREFIXES else _OTHERS
                    place[name] = place.get(name, 0) + size

    def last_hour(self) -> dict[str, object]:
        """Give the figures of the last sixty minutes, the busiest prefixes first."""
        self._now()
        prefixes: dict[str, int] = {}
        for minute in self._minutes:
            for prefix, size in minute.prefixes.items():
                prefixes[prefix] = prefixes.get(prefix, 0) + size
        return {
            "syncs": sum(minute.commits for minute in self._minutes),
            "bytes_written": sum(minute.written for minute in self._minutes),
            "message_bytes": dict(sorted(prefixes.items(), key=lambda item: -item[1])),
        }

    def _now(self) -> _Minute:
        number = int(time.clock_gettime(time.CLOCK_BOOTTIME)) // 60
        minutes = self._minutes
        while minutes and minutes[0].number <= number - _HOUR:
            minutes.popleft()
        if not minutes or minutes[-1].number != number:
            minutes.append(_Minute(number))
        return minutes[-1]
