"""The two books of the gateway, computed from the buffer folder alone, whether or not its services run.

The terms are counted apart: `addressed` from the writer's counters, outcomes from the cursors, `pending` from the rows.
Each cursor is read before the log, so a row may be counted pending that has just been delivered, never the reverse.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lockgate.buffer.cursor import Position, cursor_names, read_positions
from lockgate.buffer.missing import DAMAGED, EXPIRED, NOTHING_MISSING, ROLLED_UP, Missing, load_missing
from lockgate.buffer.packed import segment_file
from lockgate.buffer.reader import ENDLESS, LogReader, SegmentFile
from lockgate.buffer.segments import State, list_segments

_PATIENCE_SECONDS: Final = 5.0  # with a folder that changes while it is read


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
    expired: int = 0
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
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return _read(folder)
        except _Moved:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{folder} changed faster than it could be read; try again") from None
        except sqlite3.OperationalError as error:  # a segment that is sealed loses its write-ahead log while it is read
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_IOERR or time.monotonic() > give_up:
                raise


def _read(folder: Path) -> Ledger:
    try:
        before = _files(folder)
    except FileNotFoundError:
        return Ledger(IntakeBook(), ())
    cursors = {sink: read_positions(folder, sink) for sink in sorted(cursor_names(folder))}
    with contextlib.closing(LogReader(folder)) as reader:
        try:
            segments = reader.segments()
        except (FileNotFoundError, sqlite3.OperationalError) as error:
            raise _Moved from error
        if before - {(segment.number, segment.inode) for segment in segments}:
            raise _Moved  # purged or written anew since the cursors were read
        if not segments:
            return Ledger(IntakeBook(), ())
        segments[-1].connection.execute("BEGIN")  # its counters and its rows are of one moment
        state = reader.of(segments[-1], lambda s: State.load(s.connection)) or State()
        missing = reader.of(segments[-1], lambda s: load_missing(s.connection))
        lost = reader.of(segments[-1], _load_damage)
        books: list[DeliveryBook] = []
        for sink, positions in cursors.items():
            if positions is None:
                books.append(DeliveryBook(sink, "", problem="the cursor cannot be read"))
                continue
            for name, position in sorted(positions.items()):
                damage = [(first, last) for message_class, first, last in lost if message_class == name]
                maker = _Maker(name, reader, segments, missing.get(name, NOTHING_MISSING), damage)
                books.append(maker.book(sink, position, state))
        return Ledger(IntakeBook.of(state), tuple(books))


def _files(folder: Path) -> set[tuple[int, int]]:
    try:
        return {(number, segment_file(folder, number).stat().st_ino) for number in list_segments(folder)}
    except FileNotFoundError as error:
        if folder.is_dir():
            raise _Moved from error
        raise


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes up the book of a sink and a class: rows are counted, and what has none is accounted for."""

    name: str
    reader: LogReader
    segments: list[SegmentFile]
    missing: Missing
    damage: list[tuple[int, int]]

    def book(self, sink: str, p: Position, state: State) -> DeliveryBook:
        appended = state.appended.get(self.name, 0)
        pending = 0
        gone = Counter(p.dropped)
        for first, last, after, until in p.unsettled(appended):
            pending += self._count(after, until)
            gone.update(self._ahead(first, last, after))
        return DeliveryBook(
            sink=sink,
            message_class=self.name,
            addressed=appended - p.start_number,
            delivered=p.delivered,
            pending=pending,
            expired=gone.pop(EXPIRED, 0),
            rolled_up=gone.pop(ROLLED_UP, 0),
            dropped=dict(gone),
            dead_lettered=p.dead_lettered,
            retried=p.retried,
        )

    def _ahead(self, first: int, last: int, after: int) -> Counter[str]:
        """Numbers `first` to `last` that have no row any more, though the sink has not been there, by reason."""
        reasons: Counter[str] = Counter()
        for line in self.missing.lines:
            upto = min(last, line.until)
            if upto >= first:
                end = line.until_seq if line.until <= last else ENDLESS
                reasons[line.reason] += upto - first + 1 - self._count_numbers(after, end, upto)
                first, after = upto + 1, line.until_seq
        for hole in self.missing.holes:
            reasons[hole.reason] += hole.within(first, last)
        for lost_first, lost_last in self.damage:
            low, high = max(first, lost_first), min(last, lost_last)
            if high >= low:
                known = sum(hole.within(low, high) for hole in self.missing.holes)
                reasons[DAMAGED] += high - low + 1 - known
        return +reasons

    def _count(self, after: int, until: int) -> int:
        name = self.name
        return sum(self.reader.of(segment, lambda s: s.count(name, after, until)) for segment in self.segments)

    def _count_numbers(self, after: int, until: int, last: int) -> int:
        """Rows after a seq, up to a seq and a number."""
        query = "SELECT count(*) FROM log WHERE class = ? AND seq > ? AND seq <= ? AND number <= ?"
        values = (self.name, after, until, last)
        return sum(
            self.reader.of(
                segment,
                lambda s: int(s.connection.execute(query, values).fetchone()[0]) if s.may_have(*values[:3]) else 0,
            )
            for segment in self.segments
        )


def _load_damage(segment: SegmentFile) -> list[tuple[str, int, int]]:
    return segment.connection.execute("SELECT class, first, last FROM damage").fetchall()
