"""The segment files: their names, their tables, and the small state that moves from each to the next."""

from __future__ import annotations

import os
import re
import sqlite3
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from lockgate.buffer.rows import RuleCursor
from lockgate.files import sync_folder
from lockgate.sqlite import Schema
from lockgate.sqlite.database import create_tables

SEGMENT: Final = Schema(
    version=1,
    statements="""
        CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL);
        CREATE TABLE log (
            seq INTEGER PRIMARY KEY, number INTEGER NOT NULL, boot_id TEXT NOT NULL, boottime_ns INTEGER NOT NULL,
            wall_ns INTEGER NOT NULL, clock_ok INTEGER NOT NULL, device_ts INTEGER, topic TEXT NOT NULL,
            class TEXT NOT NULL, schema TEXT NOT NULL, payload BLOB NOT NULL
        );
        CREATE INDEX log_class ON log (class, seq);
        CREATE TABLE packets (packet_id INTEGER PRIMARY KEY, arrival INTEGER NOT NULL, digest BLOB NOT NULL);
        CREATE TABLE quarantine (
            id INTEGER PRIMARY KEY, wall_ns INTEGER NOT NULL, topic TEXT NOT NULL, schema TEXT NOT NULL,
            reason TEXT NOT NULL, detail TEXT NOT NULL, payload BLOB NOT NULL
        );
        CREATE TABLE damage (
            segment INTEGER NOT NULL, class TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL
        );
        CREATE TABLE last_values (
            topic TEXT PRIMARY KEY, schema TEXT NOT NULL, received_at INTEGER NOT NULL, value TEXT NOT NULL
        );
        CREATE TABLE lines (
            class TEXT NOT NULL, until INTEGER NOT NULL, until_seq INTEGER NOT NULL, reason TEXT NOT NULL
        );
        CREATE TABLE holes (class TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, reason TEXT NOT NULL);
        CREATE TABLE boots (boot_id TEXT NOT NULL UNIQUE, offset_ns INTEGER NOT NULL)
    """,
    tables=("state", "log", "packets", "quarantine", "damage", "last_values", "lines", "holes", "boots"),
)
# Beside `state`, copied to the next segment
MOVED_TABLES: Final = ("packets", "quarantine", "damage", "last_values", "lines", "holes", "boots")
LOG_COLUMNS: Final = "seq, number, boot_id, boottime_ns, wall_ns, clock_ok, device_ts, topic, class, schema, payload"
INSERT_ROW: Final = f"INSERT INTO log ({LOG_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

ROW_OVERHEAD: Final = 100  # bytes of a row beside topic and payload, about
ROW_BYTES: Final = f"length(payload) + length(CAST(topic AS BLOB)) + {ROW_OVERHEAD}"

WINDOW_INPUT: Final = "window-input"  # the class of the messages that window rules read; no sink sends it

_NAME: Final = re.compile(r"segment-(\d{6,})\.sqlite")
_NAMES: Final = re.compile(r"segment-(\d{6,})\.sqlite(?:\.zst)?")


@dataclass(slots=True)
class State:
    """What the newest segment knows beside its rows; one row of one table, so that it is never half of it."""

    next_seq: int = 1
    appended: dict[str, int] = field(default_factory=dict)  # rows ever appended, by class
    opening: dict[str, int] = field(default_factory=dict)  # `appended` when this segment began
    bytes: dict[str, int] = field(default_factory=dict)  # what those rows took, by `row_bytes`
    opening_bytes: dict[str, int] = field(default_factory=dict)  # `bytes` when this segment began
    intake: dict[str, dict[str, int]] = field(default_factory=dict)  # term, detail
    arrivals: int = 0
    rule_cursors: dict[str, RuleCursor] = field(default_factory=dict)  # by rule
    quarantine_bytes: int = 0
    quarantine_dropped: int = 0
    token: str = ""  # the last append, so that trying it again does not do it twice
    token_first_seq: int = 0

    @classmethod
    def load(cls, connection: sqlite3.Connection) -> State | None:
        """None where the file has no state: it was never finished, or damage took it."""
        row = connection.execute("SELECT body FROM state").fetchone()
        if row is None:
            return None
        return cls.of(orjson.loads(row[0]))

    @classmethod
    def of(cls, body: dict[str, Any]) -> State:
        """As `body` gave it."""
        state = cls(**body)
        state.rule_cursors = {rule: RuleCursor(*cursor) for rule, cursor in state.rule_cursors.items()}
        return state

    def store(self, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR REPLACE INTO state VALUES (1, ?)", (orjson.dumps(self.body()),))

    def body(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"rule_cursors": {rule: list(cursor) for rule, cursor in self.rule_cursors.items()}}


def row_bytes(topic: str, payload: bytes) -> int:
    """What a row counts against the limit of its class; ROW_BYTES is the same in SQL."""
    return len(payload) + len(topic.encode()) + ROW_OVERHEAD


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"segment-{number:06}.sqlite"


def packed_path(path: Path) -> Path:
    """Where the segment lies if it is compressed."""
    return path.with_name(path.name + ".zst")


def is_checkpointed(path: Path) -> bool:
    """Whether nothing of a segment lies in its write-ahead log alone."""
    try:
        return wal_path(path).stat().st_size == 0
    except FileNotFoundError:
        return True


def wal_path(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def segment_number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def list_segments(folder: Path) -> list[int]:
    """The numbers of the segments, compressed or not, oldest first."""
    return sorted(list_files(folder))


def list_files(folder: Path) -> dict[int, str]:
    """The name of each segment's file; the plain one's where both are there."""
    files: dict[int, str] = {}
    for name in os.listdir(folder):
        if match := _NAMES.fullmatch(name):
            number = int(match[1])
            files[number] = min(name, files.get(number, name))  # the shorter one
    return files


def suspect_path(path: Path) -> Path:
    """The mark a reader leaves on a segment it could not read, for the writer to look at."""
    return path.with_name(path.name + ".suspect")


def create_segment(folder: Path, number: int, state: State, previous: sqlite3.Connection | None) -> None:
    """Make a segment that holds the state and the small tables of the one before; it appears whole or not at all."""
    path = segment_path(folder, number)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        create_tables(connection, SEGMENT, fresh)
        connection.execute("BEGIN")
        state.opening = dict(state.appended)
        state.opening_bytes = dict(state.bytes)
        state.store(connection)
        if previous is not None:
            copy_small_tables(previous, connection)
        connection.execute("COMMIT")
    finally:
        connection.close()
    os.rename(fresh, path)
    sync_folder(folder)


def copy_small_tables(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    for table in MOVED_TABLES:
        rows = source.execute(f"SELECT * FROM {table}")
        target.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(rows.description))})", rows)


def missing_numbers(connection: sqlite3.Connection, message_class: str, first: int, last: int) -> list[tuple[int, int]]:
    """The ranges of `first` to `last` that no row of the class has."""
    gaps: list[tuple[int, int]] = []
    expected = first
    for (number,) in connection.execute("SELECT number FROM log WHERE class = ? ORDER BY seq", (message_class,)):
        if number > expected:
            gaps.append((expected, min(number - 1, last)))
        expected = max(expected, number + 1)
    if expected <= last:
        gaps.append((expected, last))
    return gaps
