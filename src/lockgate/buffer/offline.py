"""The buffer from outside, whether or not its services run: SQL over all of it, dead letters, sinks that are gone."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from lockgate.buffer.cursor import cursor_names, cursor_path
from lockgate.buffer.packed import open_sealed, segment_file
from lockgate.buffer.segments import LOG_COLUMNS, list_segments, segment_path
from lockgate.sqlite import FolderLock, open_readonly
from lockgate.sqlite.database import BUSY_TIMEOUT_SECONDS

_MOST_ATTACHED: Final = 10  # SQLite's own limit
_ALLOWED: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)


class Letter(NamedTuple):
    """A dead letter as it is listed."""

    seq: int
    identity: str
    message_class: str
    topic: str
    reason: str
    wall_ns: int  # when it was refused
    again: bool  # it has been asked to be sent again


class NoSuchSink(LookupError):
    """No cursor in the folder has this name."""

    def __init__(self, folder: Path, sink: str) -> None:
        known = ", ".join(sorted(cursor_names(folder))) or "none yet"
        super().__init__(f"no sink {sink!r} has a cursor in {folder} (those that have: {known})")


@contextlib.contextmanager
def query(folder: Path, sql: str) -> Iterator[sqlite3.Cursor]:
    """Run one SELECT over the tables `log`, `quarantine` and `damage` of the whole buffer.

    Raises sqlite3.Error for SQL that cannot be run. Ten segments are read where they lie; of more, or where
    some are compressed, the rows are copied to a temporary file first.
    """
    with contextlib.ExitStack() as stack:
        place = ":memory:"
        numbers = list_segments(folder)
        copied = len(numbers) > _MOST_ATTACHED or any(
            segment_file(folder, number) != segment_path(folder, number) for number in numbers
        )
        if copied:
            place = str(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockgate-sql-"))) / "buffer")
        connection = stack.enter_context(contextlib.closing(sqlite3.connect(place, uri=True, isolation_level=None)))
        if copied:
            connection.execute("PRAGMA synchronous = OFF")
            columns = LOG_COLUMNS.replace("seq,", "seq INTEGER PRIMARY KEY,", 1)
            connection.execute(f"CREATE TABLE log ({columns})")
            connection.execute("BEGIN")
            for number in numbers:
                with contextlib.closing(open_sealed(folder, number)) as segment:
                    marks = ", ".join("?" * 11)
                    connection.executemany(
                        f"INSERT OR IGNORE INTO log VALUES ({marks})", segment.execute(f"SELECT {LOG_COLUMNS} FROM log")
                    )
            connection.execute("COMMIT")
            numbers = numbers[-1:]
        selects = []
        for number in numbers:
            uri = f"{segment_path(folder, number).absolute().as_uri()}?mode=ro"
            connection.execute("ATTACH ? AS ?", (uri, f"segment_{number}"))
            selects.append(f"SELECT {LOG_COLUMNS} FROM segment_{number}.log")
        if selects and not copied:
            connection.execute(f"CREATE TEMP VIEW log AS {' UNION ALL '.join(selects)}")
        for table in ("quarantine", "damage") if numbers else ():
            connection.execute(f"CREATE TEMP VIEW {table} AS SELECT * FROM segment_{numbers[-1]}.{table}")
        connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY)
        yield connection.execute(sql)


def columns_of(folder: Path) -> str:
    """The columns a query may name, for people."""
    with query(folder, "SELECT * FROM log LIMIT 0") as log, query(folder, "SELECT * FROM quarantine LIMIT 0") as other:
        return "; ".join(
            f"{name} ({', '.join(column[0] for column in cursor.description)})"
            for name, cursor in (("log", log), ("quarantine", other))
        )


def letters(folder: Path, sink: str) -> list[Letter]:
    """The dead letters of a sink that are still kept. Raises NoSuchSink, sqlite3.Error."""
    if sink not in cursor_names(folder):
        raise NoSuchSink(folder, sink)
    with contextlib.closing(open_readonly(cursor_path(folder, sink))) as connection:
        query = "SELECT seq, id, class, topic, reason, wall_ns, again FROM dead_letters ORDER BY seq"
        return [Letter(*(*row[:6], bool(row[6]))) for row in connection.execute(query)]


def send_again(folder: Path, sink: str, identities: Sequence[str]) -> int:
    """Ask the forwarder to send dead letters again, all of them if none is named; gives how many there are.

    It does so when it runs; a letter that is refused again stays. Raises NoSuchSink, LookupError, sqlite3.Error.
    """
    known = {letter.identity for letter in letters(folder, sink)}
    for identity in identities:
        if identity not in known:
            raise LookupError(f"sink {sink!r} keeps no dead letter {identity}")
    connection = sqlite3.connect(cursor_path(folder, sink), timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    with contextlib.closing(connection):
        wanted = [(identity,) for identity in identities or known]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("UPDATE dead_letters SET again = 1 WHERE id = ?", wanted)
        connection.execute("COMMIT")
    return len(wanted)


def forget(folder: Path, sink: str) -> None:
    """Remove a sink's cursor and its dead letters: nothing waits for it any more.

    Raises NoSuchSink, and FolderInUse while a forwarder has the cursor.
    """
    if sink not in cursor_names(folder):
        raise NoSuchSink(folder, sink)
    lock = FolderLock(folder, f"cursor-{sink}.lock")
    lock.acquire()
    try:
        path = cursor_path(folder, sink)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    finally:
        lock.release()
    (folder / f"cursor-{sink}.lock").unlink(missing_ok=True)


def last_rows(folder: Path, message_class: str | None, limit: int) -> list[int]:
    """The seqs of the last rows, in order."""
    where = "WHERE class = ?" if message_class is not None else ""
    values = (message_class,) if message_class is not None else ()
    found: list[int] = []
    for number in reversed(list_segments(folder)):
        with contextlib.closing(open_sealed(folder, number)) as segment:
            rows: list[Any] = segment.execute(
                f"SELECT seq FROM log {where} ORDER BY seq DESC LIMIT ?", (*values, limit - len(found))
            ).fetchall()
        found += [seq for (seq,) in rows]
        if len(found) >= limit:
            break
    return found[::-1]
