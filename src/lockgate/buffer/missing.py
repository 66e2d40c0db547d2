"""Why numbers of a class have no row any more: what the writer gave up, and where damage took rows."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass
from typing import Final, NamedTuple

DAMAGED: Final = "damaged"
EXPIRED: Final = "expired"
ROLLED_UP: Final = "rolled-up"
OVER_LIMIT: Final = "over the limit"  # the oldest rows of a class, or the newest, gave way to its limit
DISK_BUDGET: Final = "over the disk budget"  # a class gave way to buffer.limit, or to a full disk


class Line(NamedTuple):
    """Every row of a class up to here, from the line before, is given up unless it is on its way already."""

    until: int  # number in the class
    until_seq: int
    reason: str


class Hole(NamedTuple):
    """Numbers that never got a row."""

    first: int
    last: int
    reason: str

    def within(self, first: int, last: int) -> int:
        """How many of its numbers lie in a range."""
        return max(0, min(last, self.last) - max(first, self.first) + 1)


@dataclass(frozen=True, slots=True)
class Missing:
    """What one class lacks; `lines` and `holes` ascend."""

    lines: tuple[Line, ...] = ()
    holes: tuple[Hole, ...] = ()

    @property
    def line(self) -> int:
        """The number up to which nothing is sent any more, 0 for none."""
        return self.lines[-1].until if self.lines else 0

    @property
    def line_seq(self) -> int:
        return self.lines[-1].until_seq if self.lines else 0

    def count(self, first: int, last: int) -> Counter[str]:
        """Why the numbers `first` to `last`, none of which has a row, are missing; damage where nothing tells."""
        reasons: Counter[str] = Counter()
        for line in self.lines:
            if first <= line.until:
                upto = min(last, line.until)
                if upto >= first:
                    reasons[line.reason] += upto - first + 1
                    first = upto + 1
        rest = last - first + 1
        for hole in self.holes:
            if length := hole.within(first, last):
                reasons[hole.reason] += length
                rest -= length
        if rest > 0:
            reasons[DAMAGED] += rest
        return reasons


NOTHING_MISSING: Final = Missing()


def load_missing(connection: sqlite3.Connection) -> dict[str, Missing]:
    """By class, of the newest segment."""
    lines: dict[str, list[Line]] = {}
    holes: dict[str, list[Hole]] = {}
    for name, *line in connection.execute("SELECT class, until, until_seq, reason FROM lines ORDER BY until"):
        lines.setdefault(name, []).append(Line(*line))
    for name, *hole in connection.execute("SELECT class, first, last, reason FROM holes ORDER BY first"):
        holes.setdefault(name, []).append(Hole(*hole))
    return {
        name: Missing(tuple(lines.get(name, ())), tuple(holes.get(name, ()))) for name in lines.keys() | holes.keys()
    }
