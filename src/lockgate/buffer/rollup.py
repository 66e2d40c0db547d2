"""Roll-up: old rows of a class become the fewer rows that a SELECT makes of them."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable
from typing import Final

import orjson

from lockgate.buffer.rows import Entry

_BUDGET_SECONDS: Final = 5.0
_STEPS: Final = 10_000  # of SQLite's machine, between looks at the clock
_MOST_ROWS: Final = 10_000
_ALLOWED: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_TABLE: Final = "CREATE TABLE rows (topic TEXT, time INTEGER, device_time INTEGER, schema TEXT, payload TEXT)"

OldRow = tuple[str, int, int | None, str, bytes]  # topic, Unix milliseconds, device's, schema, payload


class RollUpError(Exception):
    """The SELECT cannot be run, or makes what cannot be a message."""


def roll_up(sql: str, into: str, rows: Iterable[OldRow]) -> list[Entry]:
    """Run the SELECT over these rows as the table `rows`; each row of its result is a message of the class `into`.

    The column `topic` is its topic, `device_ts` (Unix milliseconds) its time if there is one, the others its JSON.
    Raises RollUpError.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with contextlib.closing(connection):
        connection.execute(_TABLE)
        connection.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, ?, ?)",
            ((*row[:4], row[4].decode(errors="replace")) for row in rows),
        )
        give_up = time.monotonic() + _BUDGET_SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > give_up, _STEPS)
        connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY)
        try:
            cursor = connection.execute(sql)
            names = [column[0] for column in cursor.description or ()]
            if "topic" not in names:
                raise RollUpError("its result has no column `topic`")
            made = cursor.fetchmany(_MOST_ROWS + 1)
        except sqlite3.Error as error:
            raise RollUpError(f"{error}; there is rows (topic, time, device_time, schema, payload)") from None
    if len(made) > _MOST_ROWS:
        raise RollUpError(f"it makes more than {_MOST_ROWS} messages")
    return [_entry(dict(zip(names, values, strict=True)), into) for values in made]


def check(sql: str) -> str | None:
    """Why the SELECT cannot be a roll-up; None for one that can."""
    try:
        roll_up(sql, "", ())
    except RollUpError as error:
        return str(error)
    return None


def _entry(row: dict[str, object], into: str) -> Entry:
    topic, device_ts = row.pop("topic"), row.pop("device_ts", None)
    if not isinstance(topic, str) or not topic or set(topic) & set("+#\0"):
        raise RollUpError(f"{topic!r} is no Topic Name")
    if device_ts is not None and not isinstance(device_ts, int | float):
        raise RollUpError(f"device_ts is {device_ts!r}, must be Unix milliseconds")
    try:
        payload = orjson.dumps(row)
    except TypeError as error:
        raise RollUpError(str(error)) from None
    return Entry(topic, into, "", payload, None if device_ts is None else round(device_ts))
