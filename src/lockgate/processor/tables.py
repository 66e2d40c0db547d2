"""The messages that windows are made of: one table for all rules that see a schema by the same time."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from lockgate.buffer import Batch
from lockgate.processor.sandbox import RuleError, Sandbox
from lockgate.processor.schemas import Schema, Value
from lockgate.processor.windows import Frame
from lockgate.telemetry.clock import Moment

if TYPE_CHECKING:
    from lockgate.processor.rules import WindowRule

log = logging.getLogger(__name__)

# A device whose clock is this far ahead would make all the others late
_AHEAD_NS: Final = 60_000_000_000
_LONGEST_TIME: Final = 1 << 62


class Logged(NamedTuple):
    """A message that has been logged for windows. `time` is the table's: by arrival, or by a field."""

    seq: int
    time: int
    moment: Moment
    topic: str
    payload: bytes
    values: Sequence[Value]


class WindowTable:
    """Rows in the order of their seq, and the view of the schema's name through which a rule sees one frame of them."""

    def __init__(self, schema: Schema, time_field: str | None, sandbox: Sandbox, alone: bool) -> None:
        self.schema = schema
        self.alone = alone  # it is one rule's, which lets go of late messages
        self.sandbox = sandbox
        self.rules: list[WindowRule] = []
        self.time_field = time_field
        self._time_place = None if time_field is None else schema.place(time_field)
        self.moment: Moment | None = None  # of the last row, or of the last look at the clock
        names = ", ".join(f'"{name}"' for name, _ in schema.columns)
        sandbox.define("#rows", (("#seq", "INTEGER PRIMARY KEY"), ("#time", "INTEGER"), *schema.columns))
        sandbox.define("#frame", (("after", "INTEGER"), ("upto", "INTEGER"), ("low", "INTEGER"), ("high", "INTEGER")))
        sandbox.execute('INSERT INTO "#frame" VALUES (0, 0, 0, 0)')
        sandbox.execute(
            f'CREATE VIEW "{schema.name}" AS SELECT {names} FROM "#rows"'
            ' WHERE "#seq" > (SELECT after FROM "#frame") AND "#seq" <= (SELECT upto FROM "#frame")'
            ' AND "#time" >= (SELECT low FROM "#frame") AND "#time" < (SELECT high FROM "#frame")'
        )
        # By arrival the order of time is that of seq, so the first row that is found will do
        self._order = '"#seq"'
        if time_field is not None:
            sandbox.execute('CREATE INDEX "#by_time" ON "#rows" ("#time")')
            self._order = '"#time"'
        self._insert = f'INSERT INTO "#rows" VALUES ({", ".join("?" * (len(schema.columns) + 2))})'

    # --- what happens ---------------------------------------------------------------------------------------------

    def stamp(self, seq: int, moment: Moment, topic: str, payload: bytes, values: Sequence[Value]) -> Logged | str:
        """The row of a message; or why it has no place in time."""
        if self._time_place is None:
            return Logged(seq, moment.boottime_ns, moment, topic, payload, values)
        said = values[self._time_place]
        assert isinstance(said, int | float)  # `check_window`: a number, and not optional
        nanoseconds = said * 1_000_000 if isinstance(said, int) else said * 1e9  # which may be infinite
        if abs(nanoseconds) >= _LONGEST_TIME:
            return f"{self.time_field} = {said} is no time"
        time = round(nanoseconds)
        if moment.clock_ok and time > moment.wall_ns + _AHEAD_NS:
            return f"{self.time_field} = {said} is in the future"
        return Logged(seq, time, moment, topic, payload, values)

    def take(self, rows: Sequence[Logged], out: Batch) -> None:
        """Messages that have been logged, in the order of seq. What that gives rise to goes into the batch."""
        for _, group in groupby(rows, key=lambda row: row.moment.boot_id if self._time_place is None else ""):
            chunk = list(group)
            self._enter(chunk[0].moment, chunk[0].seq, out)
            self.moment = chunk[-1].moment
            self._store(chunk)
            for rule in self.rules:
                rule.take(chunk, out)
        self._trim()

    def settle(self, moment: Moment, out: Batch) -> None:
        """What is over by now."""
        if self.moment is not None:
            self._enter(moment, None, out)
        self.moment = moment
        emitted = [rule.settle(moment, out) for rule in self.rules]
        if any(emitted):
            self._trim()

    def deadline(self) -> int | None:
        """CLOCK_BOOTTIME at which `settle` will have something to do."""
        return min((rule.deadline for rule in self.rules if rule.deadline is not None), default=None)

    def evaluate(self, sql: str, frame: Frame, budget: float, owner: str) -> list[tuple[object, ...]]:
        """The result of a query over one frame; raises RuleError."""
        self.sandbox.execute('UPDATE "#frame" SET after = ?, upto = ?, low = ?, high = ?', frame[:4])
        bounds: dict[str, Value] = {"window_start": self.wall_ms(frame.start), "window_end": self.wall_ms(frame.end)}
        return self.sandbox.run(sql, bounds, budget, owner)

    def wall_ms(self, time: int) -> int | None:
        """A time of the table in Unix milliseconds; None for the beginning of all."""
        if abs(time) >= _LONGEST_TIME:
            return None
        if self._time_place is None and self.moment is not None:
            time += self.moment.wall_ns - self.moment.boottime_ns
        return time // 1_000_000

    def drop(self, seq: int) -> None:
        self.sandbox.execute('DELETE FROM "#rows" WHERE "#seq" = ?', (seq,))

    def count(self, after: int) -> int:
        """How many rows come after a seq."""
        count: int = self.sandbox.execute('SELECT count(*) FROM "#rows" WHERE "#seq" > ?', (after,))[0][0]
        return count

    # --- windows.Rows ---------------------------------------------------------------------------------------------

    def earliest(self, after: int, low: int) -> int | None:
        return self._first("#time", after, low, self._order)

    def oldest(self, after: int, low: int) -> int | None:
        return self._first("#seq", after, low, '"#seq"')

    def times(self, after: int, low: int) -> Iterator[int]:
        query = f'SELECT "#time" FROM "#rows" WHERE "#seq" > ? AND "#time" >= ? ORDER BY {self._order}'
        return (time for (time,) in self.sandbox.execute(query, (after, low)))

    def _first(self, column: str, after: int, low: int, order: str) -> int | None:
        query = f'SELECT "{column}" FROM "#rows" WHERE "#seq" > ? AND "#time" >= ? ORDER BY {order} LIMIT 1'
        found = self.sandbox.execute(query, (after, low))
        return found[0][0] if found else None

    # --- inside ---------------------------------------------------------------------------------------------------

    def _enter(self, moment: Moment, seq: int | None, out: Batch) -> None:
        """Another boot: what was held is moved to its clock where both wall clocks were good, else it is let go."""
        before = self.moment
        if self._time_place is not None:
            return
        offset: int | None = None
        if before is not None and before.boot_id != moment.boot_id:
            if before.clock_ok and moment.clock_ok:
                offset = moment.boottime_ns - before.boottime_ns - (moment.wall_ns - before.wall_ns)
            for rule in self.rules:
                if rule.lives_in(before.boot_id, moment.boot_id, seq):
                    rule.end_of_boot(offset is not None, out)
            if offset is None:
                last = self.sandbox.execute('SELECT coalesce(max("#seq"), 0) FROM "#rows"')[0][0]
                for rule in self.rules:
                    rule.window.let_go(last)
            else:
                self.sandbox.execute('UPDATE "#rows" SET "#time" = "#time" + ?', (offset,))
        for rule in self.rules:
            rule.enter(moment, seq, offset, moved=before is not None and before.boot_id != moment.boot_id)

    def _store(self, rows: Sequence[Logged]) -> None:
        try:
            self.sandbox.execute_many(self._insert, [(row.seq, row.time, *row.values) for row in rows])
        except sqlite3.Error as error:  # a full disk for temporary files
            log.error("a window over %s lacks %d messages: %s", self.schema.name, len(rows), error)
            for rule in self.rules:
                rule.note_error(RuleError("window not filled", str(error)))

    def _trim(self) -> None:
        self.sandbox.execute('DELETE FROM "#rows" WHERE "#seq" <= ?', (min(rule.window.after for rule in self.rules),))
