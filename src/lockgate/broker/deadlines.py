"""What has to happen at a time: one heap, checked again when an entry comes due, so that nothing is ever cancelled."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, final

CONNECTION: Final = 0  # subject: the connection's number
SESSION: Final = 1  # subject: the client id
WILL: Final = 2  # subject: the client id
THROTTLE: Final = 3  # subject: the connection's number
RETAINED: Final = 4  # no subject: all retained messages
STORE: Final = 5  # no subject: clients that wait for a store that cannot be written

_SWEEP_FROM: Final = 512  # entries; below, the ones that have lost their meaning may lie there


@final
class Deadlines:
    """Points in time, in seconds of the broker's clock, each with a kind and a subject.

    `is_live` says whether an entry still means something. Those that do not are swept out whenever the heap has
    doubled: a client that comes and goes would otherwise leave one behind each time, for as long as its expiry is.
    """

    __slots__ = ("_added", "_heap", "_is_live", "_sweep_at", "moved")

    def __init__(self, is_live: Callable[[float, int, str], bool]) -> None:
        self._is_live = is_live
        self._sweep_at = _SWEEP_FROM
        self._heap: list[tuple[float, int, int, str]] = []
        self._added = 0
        self.moved = False  # the earliest point in time has come nearer; whoever set a timer by it clears this

    def add(self, at: float, kind: int, subject: str) -> None:
        """Note that a subject has to be looked at; whether it is still due is decided then."""
        self._added += 1
        if not self._heap or at < self._heap[0][0]:
            self.moved = True
        heapq.heappush(self._heap, (at, self._added, kind, subject))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if self._is_live(entry[0], entry[2], entry[3])]
            heapq.heapify(self._heap)
            self._sweep_at = max(_SWEEP_FROM, 2 * len(self._heap))

    def __len__(self) -> int:
        return len(self._heap)

    def next(self) -> float | None:
        """Give the earliest point in time, or None."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[tuple[float, int, str]]:
        """Take the entries that are due, the earliest first, each as its time, kind and subject.

        What is added while they are handled is for the next call, even if it is due at once.
        """
        taken: list[tuple[float, int, str]] = []
        while self._heap and self._heap[0][0] <= now:
            at, _order, kind, subject = heapq.heappop(self._heap)
            taken.append((at, kind, subject))
        return taken
