"""An SQLite of its own for each rule, in which its SELECT can only compute: no file, no write, no endless run."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lockgate.processor.schemas import Value

MAX_ROWS: Final = 10_000  # of one evaluation
MAX_RESULT_BYTES: Final = 16 * 1024 * 1024
_PROGRESS_STEPS: Final = 2000  # virtual machine instructions between two looks at the clock
_ALLOWED: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)


class RuleError(Exception):
    """The rule failed on these data; `reason` is one of a few, to be counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Sandbox:
    """One rule's query and the table it may read."""

    def __init__(self, sql: str, budget_seconds: float, table: tuple[str, Sequence[tuple[str, str]]] | None) -> None:
        self._sql = sql.strip().rstrip(";")
        self._budget = budget_seconds
        self._deadline = 0.0
        self._filling = False
        # An unnamed database is private and spills into temporary files when a window outgrows its cache.
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_RESULT_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.create_function("topic_level", 2, topic_level, deterministic=True)
        if table is not None:
            name, columns = table
            definitions = ", ".join(f'"{column}" {kind}' for column, kind in columns)
            self._connection.execute(f'CREATE TABLE "{name}" ({definitions})')
            self._insert = f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(columns))})'
            self._delete = f'DELETE FROM "{name}"'
        for function in ("json_each", "json_tree"):  # registering them writes the catalogue, which is denied later
            self._connection.execute(f"SELECT * FROM {function}('[]')").fetchall()
        self._connection.set_authorizer(self._authorize)
        self._connection.set_progress_handler(self._out_of_time, _PROGRESS_STEPS)

    def result_columns(self, parameters: Mapping[str, Value]) -> list[str]:
        """Prepare the query without running it; raises sqlite3.Error or sqlite3.Warning for what is wrong with it."""
        self._deadline = time.monotonic() + self._budget
        query = f"SELECT * FROM (\n{self._sql}\n) LIMIT 0"
        return [column[0] for column in self._connection.execute(query, dict(parameters)).description]

    def insert(self, values: Sequence[Value]) -> None:
        self._fill(self._insert, values)

    def clear(self) -> None:
        self._fill(self._delete, ())

    def run(self, parameters: dict[str, Value]) -> list[tuple[Any, ...]]:
        """The rows of the result; raises RuleError."""
        self._deadline = time.monotonic() + self._budget
        try:
            return self._fetch(self._connection.execute(self._sql, parameters))
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise RuleError("time", f"it ran for more than {self._budget:g} s") from None
            raise RuleError("SQL error", str(error)) from None

    def close(self) -> None:
        self._connection.close()

    def _fetch(self, cursor: sqlite3.Cursor) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        size = 0
        for row in cursor:
            rows.append(row)
            size += sum(len(value) for value in row if isinstance(value, str | bytes))
            if len(rows) > MAX_ROWS or size > MAX_RESULT_BYTES:
                cursor.close()
                raise RuleError("result too large", f"more than {MAX_ROWS} rows or {MAX_RESULT_BYTES} bytes")
        return rows

    def _fill(self, statement: str, values: Sequence[Value]) -> None:
        self._deadline = float("inf")
        self._filling = True
        try:
            self._connection.execute(statement, values)
        finally:
            self._filling = False

    def _authorize(self, action: int, *_: str | None) -> int:
        return sqlite3.SQLITE_OK if self._filling or action in _ALLOWED else sqlite3.SQLITE_DENY

    def _out_of_time(self) -> bool:
        return time.monotonic() > self._deadline


def topic_level(topic: object, level: object) -> str | None:
    """The n-th level of a topic, counted from 1, or from the end with -1; NULL where there is none."""
    if not isinstance(topic, str) or not isinstance(level, int) or level == 0:
        return None
    levels = topic.split("/")
    place = level - 1 if level > 0 else len(levels) + level
    return levels[place] if 0 <= place < len(levels) else None
