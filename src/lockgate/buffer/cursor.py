"""How far a sink has come: one small file for each, written by the forwarder alone, read by all."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from lockgate.buffer.missing import NOTHING_MISSING, Missing
from lockgate.buffer.reader import ENDLESS, LogReader
from lockgate.buffer.rows import Row
from lockgate.sqlite import CommitFailed, Damage, FolderLock, Schema, Writer, open_database, open_readonly

DEAD_LETTERS_KEPT: Final = 10_000  # the oldest go first; all stay counted
DEAD_LETTER_BYTES_KEPT: Final = 64 * 1024 * 1024

CURSOR: Final = Schema(
    version=1,
    statements="""
        CREATE TABLE lanes (
            id INTEGER PRIMARY KEY, class TEXT NOT NULL UNIQUE, seq INTEGER NOT NULL, number INTEGER NOT NULL,
            start_number INTEGER NOT NULL, delivered INTEGER NOT NULL, retried INTEGER NOT NULL,
            dead_lettered INTEGER NOT NULL, dropped BLOB NOT NULL, islands BLOB NOT NULL
        );
        CREATE TABLE dead_letters (
            seq INTEGER PRIMARY KEY, id TEXT NOT NULL, class TEXT NOT NULL, topic TEXT NOT NULL, reason TEXT NOT NULL,
            wall_ns INTEGER NOT NULL, payload BLOB NOT NULL, boot_id TEXT NOT NULL, boottime_ns INTEGER NOT NULL,
            appended_wall_ns INTEGER NOT NULL, clock_ok INTEGER NOT NULL, device_ts INTEGER, schema TEXT NOT NULL,
            again INTEGER NOT NULL DEFAULT 0
        );
        CREATE TABLE spent (
            period TEXT NOT NULL UNIQUE, start_ns INTEGER NOT NULL, messages INTEGER NOT NULL, bytes INTEGER NOT NULL
        )
    """,
    tables=("lanes", "dead_letters", "spent"),
)
_FORGET_OLD_LETTERS: Final = """
    DELETE FROM dead_letters WHERE seq IN (
        SELECT seq FROM (
            SELECT seq, row_number() OVER newest AS place, sum(length(payload)) OVER newest AS bytes
            FROM dead_letters WINDOW newest AS (ORDER BY seq DESC)
        ) WHERE place > ? OR bytes > ?
    )
"""
_LANE_COLUMNS: Final = "class, seq, number, start_number, delivered, retried, dead_lettered, dropped, islands"
_LETTER_COLUMNS: Final = (
    "seq, id, class, topic, reason, wall_ns, payload,"
    " boot_id, boottime_ns, appended_wall_ns, clock_ok, device_ts, schema"
)
_LETTERS: Final = f"""
    SELECT {_LETTER_COLUMNS} FROM dead_letters JOIN (
        SELECT seq, sum(length(payload)) OVER (ORDER BY seq) - length(payload) AS before FROM dead_letters WHERE again
    ) USING (seq) WHERE before < ? ORDER BY seq LIMIT ?
"""
MOST_ISLANDS: Final = 64  # then the live lane goes on in order until the history lane has caught up
_NAME: Final = re.compile(r"cursor-(.+)\.sqlite")


class Island(NamedTuple):
    """Rows beyond the position that the live lane has settled, all of them from first to last."""

    first: int  # number in the class
    first_seq: int
    last: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Position:
    """Where a sink stands in one class, and what became of the rows up to there and on its islands."""

    seq: int  # the last row settled, 0 for none
    number: int  # its number in the class
    start_number: int  # the row before the first one this sink was addressed
    delivered: int = 0
    retried: int = 0  # attempts that had to be repeated; no term of the sum
    dead_lettered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)  # by reason
    islands: tuple[Island, ...] = ()  # ascending; only a class that is sent latest first has some

    @property
    def live_seq(self) -> int:
        """The last row of the live lane."""
        return self.islands[-1].last_seq if self.islands else self.seq

    @property
    def live_number(self) -> int:
        """The number of that row in the class."""
        return self.islands[-1].last if self.islands else self.number

    @property
    def settled(self) -> int:
        """How many numbers are settled beyond the position."""
        return sum(island.last - island.first + 1 for island in self.islands)

    def unsettled(self, appended: int) -> Iterator[tuple[int, int, int, int]]:
        """Where rows are pending, up to a number: first and last number; the seqs before and after which they lie."""
        number, seq = self.number, self.seq
        for island in self.islands:
            if island.first > number + 1:
                yield number + 1, island.first - 1, seq, island.first_seq - 1
            number, seq = island.last, island.last_seq
        if appended > number:
            yield number + 1, appended, seq, ENDLESS


class Spent(NamedTuple):
    """What was sent in a period that began at a wall time."""

    start_ns: int
    messages: int
    bytes: int


class Cursor:
    """The durable cursor of one sink; one writer at a time, on one loop.

    A class that is new to the sink begins at the oldest row still kept: a new sink is sent what the buffer holds.
    """

    def __init__(self, folder: Path, sink: str) -> None:
        self.sink = sink
        self.damage: Damage | None = None  # found when it was opened
        self._path = cursor_path(folder, sink)
        self._lock = FolderLock(folder, f"cursor-{sink}.lock")
        self._positions: dict[str, Position] = {}
        self._writer = Writer(self._open_file, name=f"cursor {sink}")

    @classmethod
    async def open(cls, folder: Path, sink: str, classes: Sequence[str], reader: LogReader) -> Cursor:
        """Open or create the file; raises FolderInUse while another forwarder has it, OSError where it is unusable."""
        folder.mkdir(parents=True, exist_ok=True)
        self = cls(folder, sink)
        try:
            self._lock.acquire()
            await self._writer.write(lambda connection: self._begin(connection, classes, reader))
        except BaseException as error:
            await self.close()
            if isinstance(error, CommitFailed):
                raise OSError(f"{self._path} cannot be used: {error}") from error
            raise
        return self

    async def close(self) -> None:
        await asyncio.to_thread(self._writer.close)
        self._lock.release()

    def position(self, message_class: str) -> Position:
        return self._positions[message_class]

    def positions(self) -> dict[str, Position]:
        return dict(self._positions)

    async def settle(
        self,
        rows: Sequence[Row],
        *,
        dead_letters: Mapping[int, tuple[str, str]] | None = None,
        dropped: Mapping[int, str] | None = None,
        retried: int = 0,
        missing: Missing = NOTHING_MISSING,
        jump: bool = False,
        spent: Mapping[str, Spent] | None = None,
    ) -> None:
        """Count the outcomes of these rows (of one class, in order) and move past them, in one commit.

        They follow the position, or the last island; with `jump` they begin a new island. Rows are delivered unless
        `dead_letters` (seq: message id and reason) or `dropped` (seq: reason) names them. Numbers without a row before
        or between them are counted as `missing` tells. `spent` is what budgets have come to. Raises CommitFailed; then
        nothing was settled and the same call may be repeated.
        """
        dead_letters, dropped = dead_letters or {}, dropped or {}
        message_class = rows[0].message_class
        before = self._positions[message_class]
        if any(row.message_class != message_class for row in rows) or rows[0].seq <= before.seq:
            raise ValueError("rows to settle are of one class and follow the cursor")
        seq, expected, islands = _moved(before, rows, jump)
        reasons = Counter(before.dropped)
        reasons.update(dropped.values())
        for row in rows:
            if row.number > expected:
                reasons.update(missing.count(expected, row.number - 1))
            expected = row.number + 1
        after = replace(
            before,
            seq=seq if seq is not None else before.seq,
            number=rows[-1].number if seq is not None else before.number,
            delivered=before.delivered + sum(row.seq not in dead_letters and row.seq not in dropped for row in rows),
            retried=before.retried + retried,
            dead_lettered=before.dead_lettered + len(dead_letters),
            dropped=dict(reasons),
            islands=islands,
        )
        now_ns = time.time_ns()
        letters = [
            (row.seq, dead_letters[row.seq][0], message_class, row.topic, dead_letters[row.seq][1], now_ns, row.payload,
             row.boot_id, row.boottime_ns, row.wall_ns, row.clock_ok, row.device_ts, row.schema)
            for row in rows
            if row.seq in dead_letters
        ]  # fmt: skip

        def write(connection: sqlite3.Connection) -> None:
            _store(connection, message_class, after)
            store_spent(connection, spent)
            if letters:
                marks = ", ".join("?" * 13)
                connection.executemany(
                    f"INSERT OR REPLACE INTO dead_letters ({_LETTER_COLUMNS}) VALUES ({marks})", letters
                )
                connection.execute(_FORGET_OLD_LETTERS, (DEAD_LETTERS_KEPT, DEAD_LETTER_BYTES_KEPT))

        await self._writer.write(write)
        self._positions[message_class] = after

    async def give_up(self, message_class: str, missing: Missing) -> None:
        """Move past the line of the class: what was not settled up to there is counted for the reasons it tells."""
        before = self._positions[message_class]
        if missing.line > before.number:
            await self._pass(before, message_class, missing.line, missing.line_seq, missing)

    async def join(self, message_class: str, missing: Missing) -> None:
        """Move on to the first island: no row is left before it."""
        before = self._positions[message_class]
        if before.islands:
            island = before.islands[0]
            await self._pass(before, message_class, island.last, island.last_seq, missing)

    async def _pass(self, before: Position, message_class: str, number: int, seq: int, missing: Missing) -> None:
        reasons = Counter(before.dropped)
        rest = list(before.islands)
        expected = before.number + 1
        while rest and rest[0].first <= number + 1:
            island = rest.pop(0)
            if island.first > expected:
                reasons.update(missing.count(expected, island.first - 1))
            expected = island.last + 1
            if island.last >= number:
                number, seq = island.last, island.last_seq
        if number >= expected:
            reasons.update(missing.count(expected, number))
        after = replace(before, seq=seq, number=number, dropped=dict(reasons), islands=tuple(rest))
        await self._writer.write(lambda connection: _store(connection, message_class, after))
        self._positions[message_class] = after

    async def letters_to_send(self, limit: int, limit_bytes: int) -> list[Row]:
        """Dead letters that somebody asked to send again, oldest first; one at least, however large."""
        values = limit_bytes, limit
        found = await self._writer.write(lambda connection: connection.execute(_LETTERS, values).fetchall())
        return [
            Row(seq, 0, boot_id, boottime, wall, bool(clock_ok), device_ts, topic, name, schema, payload)
            for seq, _, name, topic, _, _, payload, boot_id, boottime, wall, clock_ok, device_ts, schema in found
        ]

    async def settle_letters(self, rows: Sequence[Row], refused: Mapping[int, str]) -> None:
        """Count these dead letters delivered, or keep those that were refused again, with the new reason."""
        after = dict(self._positions)
        for row in rows:
            if row.seq not in refused:
                p = after[row.message_class]
                after[row.message_class] = replace(p, delivered=p.delivered + 1, dead_lettered=p.dead_lettered - 1)

        def write(connection: sqlite3.Connection) -> None:
            for row in rows:
                if row.seq in refused:
                    connection.execute(
                        "UPDATE dead_letters SET again = 0, reason = ? WHERE seq = ?", (refused[row.seq], row.seq)
                    )
                else:
                    connection.execute("DELETE FROM dead_letters WHERE seq = ?", (row.seq,))
            for name in {row.message_class for row in rows}:
                _store(connection, name, after[name])

        await self._writer.write(write)
        self._positions = after

    async def spent(self) -> dict[str, Spent]:
        """What was sent in each period of a budget."""
        query = "SELECT period, start_ns, messages, bytes FROM spent"
        rows = await self._writer.write(lambda connection: connection.execute(query).fetchall())
        return {period: Spent(*values) for period, *values in rows}

    async def note_spent(self, spent: Mapping[str, Spent]) -> None:
        """Keep what was sent, where nothing was settled."""
        await self._writer.write(lambda connection: store_spent(connection, spent))

    async def count_retries(self, message_class: str, retried: int) -> None:
        """Count attempts that failed while nothing could be settled."""
        before = self._positions[message_class]
        after = replace(before, retried=before.retried + retried)
        await self._writer.write(lambda connection: _store(connection, message_class, after))
        self._positions[message_class] = after

    def status(self) -> dict[str, object]:
        return {
            message_class: {
                "seq": p.seq,
                "delivered": p.delivered,
                "retried": p.retried,
                "dead_lettered": p.dead_lettered,
                "dropped": dict(p.dropped),
            }
            for message_class, p in self._positions.items()
        }

    def _open_file(self) -> sqlite3.Connection:
        connection, damage = open_database(self._path, CURSOR)
        self.damage = damage or self.damage
        return connection

    def _begin(self, connection: sqlite3.Connection, classes: Sequence[str], reader: LogReader) -> None:
        self._positions = _load(connection)
        for message_class in classes:
            if message_class in self._positions:
                continue
            appended = reader.state().appended.get(message_class, 0)  # before `oldest`, which may then be younger
            oldest = reader.oldest(message_class)
            start = oldest.number - 1 if oldest is not None else appended
            seq = oldest.seq - 1 if oldest is not None else 0
            self._positions[message_class] = Position(seq=seq, number=start, start_number=start)
            _store(connection, message_class, self._positions[message_class])


def cursor_path(folder: Path, sink: str) -> Path:
    return folder / f"cursor-{sink}.sqlite"


def cursor_names(folder: Path) -> set[str]:
    """The sinks that have a cursor in the folder, configured or not."""
    return {match[1] for path in folder.glob("cursor-*.sqlite") if (match := _NAME.fullmatch(path.name))}


def read_positions(folder: Path, sink: str) -> dict[str, Position] | None:
    """Read a cursor from outside, None where it is missing or cannot be read."""
    try:
        with contextlib.closing(open_readonly(cursor_path(folder, sink))) as connection:
            return _load(connection)
    except (sqlite3.Error, orjson.JSONDecodeError):
        return None


def _load(connection: sqlite3.Connection) -> dict[str, Position]:
    rows = connection.execute(f"SELECT {_LANE_COLUMNS} FROM lanes")
    return {row[0]: Position(*(*row[1:7], orjson.loads(row[7]), _islands(row[8]))) for row in rows}


def _islands(kept: bytes) -> tuple[Island, ...]:
    return tuple(Island(*island) for island in orjson.loads(kept))


def _store(connection: sqlite3.Connection, message_class: str, p: Position) -> None:
    connection.execute(
        f"INSERT INTO lanes ({_LANE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (class) DO UPDATE SET"
        " seq = excluded.seq, number = excluded.number, start_number = excluded.start_number,"
        " delivered = excluded.delivered, retried = excluded.retried, dead_lettered = excluded.dead_lettered,"
        " dropped = excluded.dropped, islands = excluded.islands",
        (
            message_class, p.seq, p.number, p.start_number, p.delivered, p.retried, p.dead_lettered,
            orjson.dumps(dict(p.dropped)), orjson.dumps([list(island) for island in p.islands]),
        ),
    )  # fmt: skip


def store_spent(connection: sqlite3.Connection, spent: Mapping[str, Spent] | None) -> None:
    for period, values in (spent or {}).items():
        connection.execute("INSERT OR REPLACE INTO spent VALUES (?, ?, ?, ?)", (period, *values))


def _moved(p: Position, rows: Sequence[Row], jump: bool) -> tuple[int | None, int, tuple[Island, ...]]:
    """The position's new seq (None where an island grows), the number expected first, and the islands."""
    first, last = rows[0], rows[-1]
    islands = p.islands
    if jump and first.number > p.number + 1 and (not islands or first.number > islands[-1].last + 1):
        return None, first.number, (*islands, Island(first.number, first.seq, last.number, last.seq))
    if islands and first.seq > islands[-1].last_seq:
        top = islands[-1]
        return None, top.last + 1, (*islands[:-1], top._replace(last=last.number, last_seq=last.seq))
    if islands and last.seq >= islands[0].first_seq:
        raise ValueError("rows of the history end before the first island")
    return last.seq, p.number + 1, islands
