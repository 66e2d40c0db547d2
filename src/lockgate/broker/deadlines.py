"""What has to happen at a time: one heap, checked again when an entry comes due, so that nothing is ever cancelled."""

from __future__ import annotations

import heapq
from typing import Final, final

CONNECTION: Final = 0  # subject: the connection's number
SESSION: Final = 1  # subject: the client id
WILL: Final = 2  # subject: the client id
THROTTLE: Final = 3  # subject: the connection's number
RETAINED: Final = 4  # no subject: all retained messages

_MANY: Final = 256  # entries below which nobody minds the stale ones


@final
class Deadlines:
    """Points in time, in seconds of the broker's clock, each with a kind and a subject."""

    __slots__ = ("_added", "_heap", "_stale", "moved")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, str]] = []
        self._added = 0
        self._stale = 0
        self.moved = False  # the earliest point in time has come nearer; whoever set a timer by it clears this

    def add(self, at: float, kind: int, subject: str) -> None:
        """Note that a subject has to be looked at; whether it is still due is decided then."""
        self._added += 1
        if not self._heap or at < self._heap[0][0]:
            self.moved = True
        heapq.heappush(self._heap, (at, self._added, kind, subject))

    def forget(self) -> None:
        """Say that the subject of one entry is gone; the entry stays until it is due or `is_stale`."""
        self._stale += 1

    def is_stale(self) -> bool:
        """Whether most entries are of subjects that are gone: then `clear`, and add those of the others again."""
        return self._stale > _MANY and self._stale * 2 > len(self._heap)

    def clear(self) -> None:
        """Forget all entries."""
        self._heap.clear()
        self._stale = 0

    def next(self) -> float | None:
        """Give the earliest point in time, or None."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> tuple[float, int, str] | None:
        """Take the earliest entry that is due, as its time, kind and subject, or None."""
        if not self._heap or self._heap[0][0] > now:
            return None
        at, _order, kind, subject = heapq.heappop(self._heap)
        return at, kind, subject
