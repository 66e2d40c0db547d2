"""What gives way when a class is at its limit: which line is published, what is not taken, in the writer's thread.

A line is a promise of the writer: rows of the class up to it may vanish. The forwarder counts them as it passes.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lockgate.buffer.missing import EXPIRED, OVER_LIMIT, ROLLED_UP
from lockgate.buffer.packed import open_sealed, read_summary, segment_file
from lockgate.buffer.reader import ENDLESS
from lockgate.buffer.rollup import OldRow, RollUpError, roll_up
from lockgate.buffer.rows import Batch, Entry
from lockgate.buffer.segments import ROW_BYTES, State, list_segments, row_bytes
from lockgate.config.model import BufferConfig, ClassConfig
from lockgate.telemetry.clock import Clock, Moment

log = logging.getLogger(__name__)

GIVES_WAY: Final = frozenset({"drop-oldest", "roll-up"})  # policies under which old rows may vanish
_ROLL_UP_SLACK: Final = 4  # a roll-up makes the more of it, the more rows it sees
_SLACK: Final = 16  # below its limit a class is brought by one part in so many, so that it is not done for every row
_LOOK_SECONDS: Final = 0.2  # at the positions of sinks, while a class is at its limit
_MOST_LINES: Final = 10_000  # of a class; a sink that has not come by for longer finds the oldest two as one
_BOOTS_KEPT: Final = 64
_NS: Final = 1_000_000_000


class ClassFull(Exception):
    """A class whose policy is `block` has no room for the batch."""

    def __init__(self, message_class: str) -> None:
        super().__init__(f"class {message_class} is at its limit")
        self.message_class = message_class


@dataclass(slots=True)
class _Row:
    seq: int
    number: int
    boot_id: str
    boottime_ns: int
    wall_ns: int
    clock_ok: bool
    size: int


class Limits:
    """Bounds each class by bytes and by age. `positions`: the smallest seq that all sinks of a class have passed."""

    def __init__(self, folder: Path, config: BufferConfig, clock: Clock, positions: Callable[[], Mapping[str, int]]):
        self._folder = folder
        self._limits = {one.name: one for one in config.limits}
        self._clock = clock
        self._read_positions = positions
        self._positions: Mapping[str, int] = {}
        self._looked = 0.0
        # Sealed segment: its last seq, bytes before it, bytes up to its end
        self._ends: dict[int, tuple[int, dict[str, int], dict[str, int] | None]] = {}
        self._until: dict[str, tuple[int, int, int]] = {}  # class: segment, seq, bytes up to there

    def of(self, message_class: str) -> ClassConfig:
        return self._limits.get(message_class) or ClassConfig(name=message_class)

    # --- what is taken ----------------------------------------------------------------------------------------------

    def admit(self, connection: sqlite3.Connection, state: State, batch: Batch) -> set[int]:
        """The places of the entries that are not taken; raises ClassFull where the batch has to wait."""
        sizes: dict[str, int] = {}
        for entry in batch.entries:
            if entry.message_class in self._limits:
                sizes[entry.message_class] = sizes.get(entry.message_class, 0) + _size(entry)
        refused: set[int] = set()
        for name, size in sizes.items():
            limit = self._limits[name].limit_bytes
            if limit is None or self.kept(connection, state, name) + size <= limit:
                continue
            kept = self.kept(connection, state, name, look=True)
            match self._limits[name].when_full:
                case "block":
                    if kept and kept + size > limit:
                        raise ClassFull(name)
                case "drop-newest":
                    for place, entry in enumerate(batch.entries):
                        if entry.message_class == name:
                            kept += _size(entry)
                            if kept > limit:
                                refused.add(place)
                                kept -= _size(entry)
        return refused

    def record_hole(self, connection: sqlite3.Connection, message_class: str, number: int) -> None:
        """Remember a number that got no row."""
        row = connection.execute(
            "SELECT rowid, last FROM holes WHERE class = ? ORDER BY last DESC LIMIT 1", (message_class,)
        ).fetchone()
        if row is not None and row[1] == number - 1:
            connection.execute("UPDATE holes SET last = ? WHERE rowid = ?", (number, row[0]))
        else:
            connection.execute("INSERT INTO holes VALUES (?, ?, ?, ?)", (message_class, number, number, OVER_LIMIT))

    # --- what gives way ---------------------------------------------------------------------------------------------

    def enforce(
        self, connection: sqlite3.Connection, state: State, *, only: Sequence[str] | None = None
    ) -> list[Entry]:
        """Move lines as age and policies ask for, within a transaction; `only` looks at bytes of these alone.

        Gives what roll-ups made, which the caller appends in the same transaction.
        """
        now = self._clock.now()
        made: list[Entry] = []
        for name, config in self._limits.items():
            if only is None and config.keep_seconds is not None:
                self._expire(connection, name, round(config.keep_seconds * _NS), now)
            if config.limit_bytes is None or config.when_full not in GIVES_WAY:
                continue
            if only is not None and name not in only:
                continue
            over = self.kept(connection, state, name) - config.limit_bytes
            if over > 0:
                over = self.kept(connection, state, name, look=True) - config.limit_bytes
            if over > 0:
                share = _SLACK if config.when_full == "drop-oldest" else _ROLL_UP_SLACK
                last = self._after_bytes(connection, name, over + config.limit_bytes // share)
                if last is not None:
                    made += self._give_way(connection, name, last, OVER_LIMIT)
        return made

    def give_way_until(
        self, connection: sqlite3.Connection, message_class: str, seq: int, reason: str
    ) -> list[Entry] | None:
        """Give up the rows up to `seq`, as the class does; None where there are none. As for `enforce`."""
        last = None
        for row in self._rows(connection, message_class):
            if row.seq > seq:
                break
            last = row
        return None if last is None else self._give_way(connection, message_class, last, reason)

    def kept(self, connection: sqlite3.Connection, state: State, name: str, *, look: bool = False) -> int:
        """Bytes of the rows that a sink has yet to get; `look` at the positions of the sinks again first."""
        if look and time.monotonic() - self._looked >= _LOOK_SECONDS:
            self.look()
        base = self.base(connection, name, state)
        return max(0, state.bytes.get(name, 0) - self._bytes_until(connection, state, name, base))

    def look(self) -> None:
        self._positions = self._read_positions()
        self._looked = time.monotonic()

    def base(self, connection: sqlite3.Connection, name: str, state: State) -> int:
        """The seq up to which rows of the class are given up or delivered everywhere."""
        row = connection.execute("SELECT max(until_seq) FROM lines WHERE class = ?", (name,)).fetchone()
        return max(row[0] or 0, self._positions.get(name, 0))

    def note_boot(self, connection: sqlite3.Connection) -> None:
        """Once the clock is right: what wall time this boot's CLOCK_BOOTTIME counts from."""
        now = self._clock.now()
        if not now.clock_ok:
            return
        offset = now.wall_ns - now.boottime_ns
        row = connection.execute("SELECT offset_ns FROM boots WHERE boot_id = ?", (now.boot_id,)).fetchone()
        if row is None or abs(row[0] - offset) > _NS:
            connection.execute("INSERT OR REPLACE INTO boots VALUES (?, ?)", (now.boot_id, offset))
            connection.execute(
                "DELETE FROM boots WHERE rowid NOT IN (SELECT rowid FROM boots ORDER BY rowid DESC LIMIT ?)",
                (_BOOTS_KEPT,),
            )

    def forget_passed(self, connection: sqlite3.Connection, numbers: Mapping[str, int]) -> None:
        """Drop what is known of numbers that every sink has passed; the last line of a class always stays."""
        for name, number in numbers.items():
            connection.execute("DELETE FROM holes WHERE class = ? AND last <= ?", (name, number))
            connection.execute(
                "DELETE FROM lines WHERE class = ?1 AND until <= ?2"
                " AND until < (SELECT max(until) FROM lines WHERE class = ?1)",
                (name, number),
            )

    def segments_changed(self) -> None:
        """Files were replaced, or a batch was undone: forget what was remembered of them."""
        self._ends.clear()
        self._until.clear()

    def _expire(self, connection: sqlite3.Connection, name: str, keep_ns: int, now: Moment) -> None:
        boots = dict(connection.execute("SELECT boot_id, offset_ns FROM boots"))
        last = None
        step = max(_NS, keep_ns // 64)
        for row in self._rows(connection, name):
            age = age_ns(row.boot_id, row.boottime_ns, row.wall_ns, row.clock_ok, boots, now)
            if age <= keep_ns or (last is None and age <= keep_ns + step):  # not a line for every row
                break
            last = row
        if last is not None:
            self._move(connection, name, last, EXPIRED)

    def _after_bytes(self, connection: sqlite3.Connection, name: str, size: int) -> _Row | None:
        """The last of the oldest rows that take so many bytes together."""
        last = None
        for row in self._rows(connection, name):
            if size <= 0:
                break
            size -= row.size
            last = row
        return last

    def _give_way(self, connection: sqlite3.Connection, name: str, last: _Row, reason: str) -> list[Entry]:
        config = self._limits[name]
        made: list[Entry] = []
        if config.when_full == "roll-up":
            try:
                made = roll_up(config.roll_up, config.roll_up_into, self._old_rows(connection, name, last.seq))
                reason = ROLLED_UP
            except RollUpError as error:
                log.error("the roll-up of class %s failed, so its rows are dropped: %s", name, error)
        self._move(connection, name, last, reason)
        return made

    def _old_rows(self, connection: sqlite3.Connection, name: str, until: int) -> Iterator[OldRow]:
        boots = dict(connection.execute("SELECT boot_id, offset_ns FROM boots"))
        columns = "topic, wall_ns, clock_ok, boot_id, boottime_ns, device_ts, schema, payload"
        for row in self._select(connection, name, columns, until):
            topic, wall_ns, clock_ok, boot_id, boottime_ns, device_ts, schema, payload = row
            if not clock_ok and boot_id in boots:
                wall_ns = boottime_ns + boots[boot_id]
            yield topic, wall_ns // 1_000_000, device_ts, schema, payload

    def _move(self, connection: sqlite3.Connection, name: str, row: _Row, reason: str) -> None:
        last = connection.execute(
            "SELECT rowid, reason FROM lines WHERE class = ? ORDER BY until DESC LIMIT 1", (name,)
        ).fetchone()
        if last is not None and last[1] == reason:
            connection.execute(
                "UPDATE lines SET until = ?, until_seq = ? WHERE rowid = ?", (row.number, row.seq, last[0])
            )
            return
        connection.execute("INSERT INTO lines VALUES (?, ?, ?, ?)", (name, row.number, row.seq, reason))
        many = connection.execute("SELECT count(*) FROM lines WHERE class = ?", (name,)).fetchone()[0]
        if many > _MOST_LINES:
            oldest = "SELECT min(until) FROM lines WHERE class = ?1"
            connection.execute(f"DELETE FROM lines WHERE class = ?1 AND until = ({oldest})", (name,))

    def _rows(self, connection: sqlite3.Connection, name: str) -> Iterator[_Row]:
        """The rows above the base, in order; without their payloads."""
        columns = f"seq, number, boot_id, boottime_ns, wall_ns, clock_ok, {ROW_BYTES}"
        for values in self._select(connection, name, columns, ENDLESS):
            yield _Row(*values)

    def _select(self, connection: sqlite3.Connection, name: str, columns: str, until: int) -> Iterator[tuple[Any, ...]]:
        row = connection.execute("SELECT max(until_seq) FROM lines WHERE class = ?", (name,)).fetchone()
        base = max(row[0] or 0, self._positions.get(name, 0))
        query = f"SELECT {columns} FROM log WHERE class = ? AND seq > ? AND seq <= ? ORDER BY seq"
        numbers = list_segments(self._folder)
        for number in numbers[:-1]:
            if self._end(number)[0] <= base:
                continue
            file = segment_file(self._folder, number)
            if file.suffix == ".zst" and not read_summary(file).has(name, base, until):
                continue  # nothing that it would be unpacked for
            with contextlib.closing(open_sealed(self._folder, number)) as segment:
                yield from segment.execute(query, (name, base, until))
        yield from connection.execute(query, (name, base, until))

    def _bytes_until(self, connection: sqlite3.Connection, state: State, name: str, seq: int) -> int:
        """What the rows of a class up to a seq took, of all there ever were."""
        newest = list_segments(self._folder)[-1]
        number = next((n for n in list_segments(self._folder)[:-1] if self._end(n)[0] >= seq), newest)
        known = self._until.get(name)
        if known is not None and known[0] == number and known[1] <= seq:
            after, total = known[1:]
        elif number == newest or self._end(number)[2] is None:
            after, total = 0, (state.opening_bytes if number == newest else self._end(number)[1]).get(name, 0)
        else:  # from its end: rows before `seq` may be gone from it, those behind are not
            query = f"SELECT coalesce(sum({ROW_BYTES}), 0) FROM log WHERE class = ? AND seq > ?"
            with contextlib.closing(open_sealed(self._folder, number)) as segment:
                behind = segment.execute(query, (name, seq)).fetchone()[0]
            after, total = seq, (self._end(number)[2] or {}).get(name, 0) - behind
            self._until[name] = (number, seq, total)
        if seq > after:
            query = f"SELECT coalesce(sum({ROW_BYTES}), 0) FROM log WHERE class = ? AND seq > ? AND seq <= ?"
            if number == newest:
                total += connection.execute(query, (name, after, seq)).fetchone()[0]
            else:
                with contextlib.closing(open_sealed(self._folder, number)) as segment:
                    total += segment.execute(query, (name, after, seq)).fetchone()[0]
            self._until[name] = (number, seq, total)
        return total

    def _end(self, number: int) -> tuple[int, dict[str, int], dict[str, int] | None]:
        if number not in self._ends:
            file = segment_file(self._folder, number)
            if file.suffix == ".zst" and (packed := read_summary(file)).state is not None:
                self._ends[number] = (packed.state.next_seq - 1, packed.state.opening_bytes, packed.state.bytes)
                return self._ends[number]
            with contextlib.closing(open_sealed(self._folder, number)) as segment:
                state = State.load(segment)
                if state is None:  # damage took it
                    last = segment.execute("SELECT coalesce(max(seq), 0) FROM log").fetchone()[0]
                    return last, {}, None
                self._ends[number] = (state.next_seq - 1, state.opening_bytes, state.bytes)
        return self._ends[number]


def age_ns(boot_id: str, boottime_ns: int, wall_ns: int, clock_ok: bool, boots: Mapping[str, int], now: Moment) -> int:
    """How long ago a row was appended.

    Across boots by wall times that both are known to be right, else at least as long as this boot lasts: a clock that
    is not right yet lets nothing expire.
    """
    if boot_id == now.boot_id:
        return now.boottime_ns - boottime_ns
    if now.clock_ok:
        if boot_id in boots:
            return max(now.wall_ns - (boottime_ns + boots[boot_id]), now.boottime_ns)
        if clock_ok:
            return max(now.wall_ns - wall_ns, now.boottime_ns)
    return now.boottime_ns


def _size(entry: Entry) -> int:
    return row_bytes(entry.topic, entry.payload)
