"""How far a sink has come: one small file for each, written by the forwarder alone, read by all."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import orjson

from lockgate.buffer.reader import LogReader
from lockgate.buffer.rows import Row
from lockgate.sqlite import CommitFailed, Damage, FolderLock, Schema, Writer, open_database, open_readonly

DEAD_LETTERS_KEPT: Final = 10_000  # the oldest go first; all stay counted
DEAD_LETTER_BYTES_KEPT: Final = 64 * 1024 * 1024
DAMAGED: Final = "damaged"  # the reason under which rows lost to a damaged file are counted

CURSOR: Final = Schema(
    version=1,
    statements="""
        CREATE TABLE lanes (
            id INTEGER PRIMARY KEY, class TEXT NOT NULL UNIQUE, seq INTEGER NOT NULL, number INTEGER NOT NULL,
            start_number INTEGER NOT NULL, delivered INTEGER NOT NULL, retried INTEGER NOT NULL,
            dead_lettered INTEGER NOT NULL, dropped BLOB NOT NULL
        );
        CREATE TABLE dead_letters (
            seq INTEGER PRIMARY KEY, id TEXT NOT NULL, class TEXT NOT NULL, topic TEXT NOT NULL, reason TEXT NOT NULL,
            wall_ns INTEGER NOT NULL, payload BLOB NOT NULL
        )
    """,
    tables=("lanes", "dead_letters"),
)
_FORGET_OLD_LETTERS: Final = """
    DELETE FROM dead_letters WHERE seq IN (
        SELECT seq FROM (
            SELECT seq, row_number() OVER newest AS place, sum(length(payload)) OVER newest AS bytes
            FROM dead_letters WINDOW newest AS (ORDER BY seq DESC)
        ) WHERE place > ? OR bytes > ?
    )
"""
_LANE_COLUMNS: Final = "class, seq, number, start_number, delivered, retried, dead_lettered, dropped"
_NAME: Final = re.compile(r"cursor-(.+)\.sqlite")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a sink stands in one class, and what became of the rows up to there."""

    seq: int  # the last row settled, 0 for none
    number: int  # its number in the class
    start_number: int  # the row before the first one this sink was addressed
    delivered: int = 0
    retried: int = 0  # attempts that had to be repeated; no term of the sum
    dead_lettered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)  # by reason


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
    ) -> None:
        """Move past these rows (of one class, in order, after the position) and count their outcomes, in one commit.

        Rows are delivered unless `dead_letters` (seq: message id and reason) or `dropped` (seq: reason) names them.
        Numbers missing before or between the rows were lost to damage and are counted so. Raises CommitFailed; then
        nothing was settled and the same call may be repeated.
        """
        dead_letters, dropped = dead_letters or {}, dropped or {}
        message_class = rows[0].message_class
        before = self._positions[message_class]
        if any(row.message_class != message_class for row in rows) or rows[0].seq <= before.seq:
            raise ValueError("rows to settle are of one class and follow the cursor")
        reasons = Counter(before.dropped)
        reasons.update(dropped.values())
        lost = rows[-1].number - before.number - len(rows)
        if lost:
            reasons[DAMAGED] += lost
        after = Position(
            seq=rows[-1].seq,
            number=rows[-1].number,
            start_number=before.start_number,
            delivered=before.delivered + sum(row.seq not in dead_letters and row.seq not in dropped for row in rows),
            retried=before.retried + retried,
            dead_lettered=before.dead_lettered + len(dead_letters),
            dropped=dict(reasons),
        )
        now_ns = time.time_ns()
        letters = [
            (row.seq, dead_letters[row.seq][0], message_class, row.topic, dead_letters[row.seq][1], now_ns, row.payload)
            for row in rows
            if row.seq in dead_letters
        ]

        def write(connection: sqlite3.Connection) -> None:
            _store(connection, message_class, after)
            if letters:
                connection.executemany("INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?, ?, ?, ?)", letters)
                connection.execute(_FORGET_OLD_LETTERS, (DEAD_LETTERS_KEPT, DEAD_LETTER_BYTES_KEPT))

        await self._writer.write(write)
        self._positions[message_class] = after

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
    return {row[0]: Position(*(*row[1:7], orjson.loads(row[7]))) for row in rows}


def _store(connection: sqlite3.Connection, message_class: str, p: Position) -> None:
    connection.execute(
        f"INSERT INTO lanes ({_LANE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (class) DO UPDATE SET"
        " seq = excluded.seq, number = excluded.number, start_number = excluded.start_number,"
        " delivered = excluded.delivered, retried = excluded.retried, dead_lettered = excluded.dead_lettered,"
        " dropped = excluded.dropped",
        (
            message_class, p.seq, p.number, p.start_number, p.delivered, p.retried, p.dead_lettered,
            orjson.dumps(dict(p.dropped)),
        ),
    )  # fmt: skip
