"""The two books of the gateway, computed from the buffer folder alone, whether or not its services run.

The terms are counted apart: `addressed` from the writer's counters, outcomes from the cursors, `pending` from the rows.
Each cursor is read before the log, so a row may be counted pending that has just been delivered, never the reverse.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lockgate.buffer.cursor import DAMAGED, Position, cursor_names, read_positions
from lockgate.buffer.reader import LogReader, SegmentFile
from lockgate.buffer.segments import State, list_segments

_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class IntakeBook:
    """received = logged + refused + quarantined + filtered(rule) + duplicate."""

    received: int = 0
    logged: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)  # by reason
    quarantined: Mapping[str, int] = field(default_factory=dict)  # by reason
    filtered: Mapping[str, int] = field(default_factory=dict)  # by rule
    duplicate: int = 0

    @property
    def difference(self) -> int:
        """received − the rest; 0 in a book that closes."""
        kept_or_not = sum(self.refused.values()) + sum(self.quarantined.values()) + sum(self.filtered.values())
        return self.received - self.logged - kept_or_not - self.duplicate

    @property
    def closes(self) -> bool:
        return self.difference == 0

    @classmethod
    def of(cls, state: State) -> IntakeBook:
        terms = state.intake
        return cls(
            received=sum(terms.get("received", {}).values()),
            logged=sum(terms.get("logged", {}).values()),
            refused=terms.get("refused", {}),
            quarantined=terms.get("quarantined", {}),
            filtered=terms.get("filtered", {}),
            duplicate=sum(terms.get("duplicate", {}).values()),
        )


@dataclass(frozen=True, slots=True)
class DeliveryBook:
    """addressed = delivered + pending + expired + dropped(reason) + dead-lettered + rolled-up, per class and sink."""

    sink: str
    message_class: str
    addressed: int = 0
    delivered: int = 0
    pending: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)  # by reason
    dead_lettered: int = 0
    expired: int = 0  # nothing expires or is rolled up yet
    rolled_up: int = 0
    retried: int = 0  # no term of the sum
    problem: str | None = None  # why the book could not be made up

    @property
    def difference(self) -> int:
        """addressed − the rest; 0 in a book that closes."""
        gone = self.expired + sum(self.dropped.values()) + self.dead_lettered + self.rolled_up
        return self.addressed - self.delivered - self.pending - gone

    @property
    def closes(self) -> bool:
        return self.problem is None and self.difference == 0


@dataclass(frozen=True, slots=True)
class Ledger:
    """Both books."""

    intake: IntakeBook
    deliveries: tuple[DeliveryBook, ...]  # by sink, then class

    @property
    def closes(self) -> bool:
        return self.intake.closes and all(book.closes for book in self.deliveries)


class _Moved(Exception):
    """The folder changed while it was read."""


def read_ledger(folder: Path) -> Ledger:
    """Make up the books. Raises DamagedSegment where rows cannot be read; the processor mends that."""
    for attempt in range(_ATTEMPTS):
        try:
            return _read(folder)
        except _Moved:
            continue
        except sqlite3.OperationalError as error:  # a segment that is sealed loses its write-ahead log while it is read
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_IOERR or attempt == _ATTEMPTS - 1:
                raise
    raise TimeoutError(f"{folder} changed faster than it could be read; try again")


def _read(folder: Path) -> Ledger:
    try:
        before = set(list_segments(folder))
    except FileNotFoundError:
        return Ledger(IntakeBook(), ())
    cursors = {sink: read_positions(folder, sink) for sink in sorted(cursor_names(folder))}
    with contextlib.closing(LogReader(folder)) as reader:
        try:
            segments = reader.segments()
        except (FileNotFoundError, sqlite3.OperationalError) as error:
            raise _Moved from error
        if before - {segment.number for segment in segments}:
            raise _Moved  # purged since the cursors were read
        if not segments:
            return Ledger(IntakeBook(), ())
        segments[-1].connection.execute("BEGIN")  # its counters and its rows are of one moment
        state = reader.of(segments[-1], lambda s: State.load(s.connection)) or State()
        lost = reader.of(segments[-1], _load_damage)
        books: list[DeliveryBook] = []
        for sink, positions in cursors.items():
            if positions is None:
                books.append(DeliveryBook(sink, "", problem="the cursor cannot be read"))
                continue
            for message_class, position in sorted(positions.items()):
                count = _counting(message_class, position.seq)
                pending = sum(reader.of(segment, count) for segment in segments)
                books.append(_book(sink, message_class, position, state, pending, lost))
        return Ledger(IntakeBook.of(state), tuple(books))


def _book(
    sink: str, message_class: str, p: Position, state: State, pending: int, lost: list[tuple[str, int, int]]
) -> DeliveryBook:
    dropped = dict(p.dropped)
    ahead = sum(
        last - max(first, p.number + 1) + 1 for c, first, last in lost if c == message_class and last > p.number
    )
    if ahead:
        dropped[DAMAGED] = dropped.get(DAMAGED, 0) + ahead
    return DeliveryBook(
        sink=sink,
        message_class=message_class,
        addressed=state.appended.get(message_class, 0) - p.start_number,
        delivered=p.delivered,
        pending=pending,
        dropped=dropped,
        dead_lettered=p.dead_lettered,
        retried=p.retried,
    )


def _counting(message_class: str, after: int) -> Callable[[SegmentFile], int]:
    return lambda segment: segment.count(message_class, after)


def _load_damage(segment: SegmentFile) -> list[tuple[str, int, int]]:
    return segment.connection.execute("SELECT class, first, last FROM damage").fetchall()
