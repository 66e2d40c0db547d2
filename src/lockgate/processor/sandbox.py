"""An SQLite database in which the SELECTs of rules can only compute: no file, no write, no endless run."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from lockgate.config.errors import ConfigError
from lockgate.processor.functions import Function, OverBudget, guarded
from lockgate.processor.ready import ready_functions
from lockgate.processor.schemas import Value
from lockgate.processor.state import Memory

MAX_ROWS: Final = 10_000  # of one evaluation
MAX_RESULT_BYTES: Final = 16 * 1024 * 1024
TIME: Final = "time"  # the reason of a RuleError for a run that took too long
_PROGRESS_STEPS: Final = 2000  # virtual machine instructions between two looks at the clock
_CACHED_STATEMENTS: Final = 512
_ALLOWED: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)

Columns = Sequence[tuple[str, str]]  # names and SQL types


class RuleError(Exception):
    """The rule failed on these data; `reason` is one of a few, to be counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Sandbox:
    """A private database. We define and fill tables in it; queries of rules read them."""

    def __init__(self, memory: Memory | None = None, functions: Iterable[Function] = ()) -> None:
        self.memory = memory or Memory(limit=0)
        self._function_error: str | None = None
        self._deadline = float("inf")
        self._trusted = False
        self._reads: set[str] = set()
        # An unnamed database is private and spills into temporary files when a window outgrows its cache.
        self._connection = sqlite3.connect("", isolation_level=None, cached_statements=_CACHED_STATEMENTS)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_RESULT_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.execute("PRAGMA journal_mode = MEMORY")
        self._connection.execute("PRAGMA synchronous = OFF")
        for one in (*ready_functions(self.memory), *functions):
            try:
                self._add(one)
            except sqlite3.Error:
                problem = f"{one.name} with {one.arguments} arguments cannot be a function of SQL"
                accepted = "a name of at most 255 bytes, and at most 127 arguments"
                raise ConfigError(problem, key="processor.functions", accepted=accepted) from None
        for function in ("json_each", "json_tree"):  # registering them writes the catalogue, which is denied later
            self._connection.execute(f"SELECT * FROM {function}('[]')").fetchall()
        self._connection.set_authorizer(self._authorize)
        self._connection.set_progress_handler(self._out_of_time, _PROGRESS_STEPS)

    # --- ours -----------------------------------------------------------------------------------------------------

    def define(self, table: str, columns: Columns) -> None:
        definitions = ", ".join(f'"{name}" {kind}' for name, kind in columns)
        self.execute(f'CREATE TABLE "{table}" ({definitions})')

    def execute(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Run a statement of ours; raises sqlite3.Error."""
        with self._trusting():
            return self._connection.execute(statement, values).fetchall()

    def execute_many(self, statement: str, rows: Iterable[Sequence[Value]], *, before: str = "") -> None:
        """Raises sqlite3.Error; nothing has happened then, nor what `before` says."""
        with self._trusting():
            self._connection.execute("BEGIN")
            try:
                if before:
                    self._connection.execute(before)
                self._connection.executemany(statement, rows)
            except BaseException:
                if self._connection.in_transaction:  # SQLite has not rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _trusting(self) -> Iterator[None]:
        self._trusted = True
        try:
            yield
        finally:
            self._trusted = False

    def readable(self) -> list[tuple[str, list[str]]]:
        """The tables that rules may know of, with their columns."""
        names = self.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE '#%'")
        return [
            (name, [row[0] for row in self.execute("SELECT name FROM pragma_table_info(?)", (name,))])
            for (name,) in names
        ]

    # --- the rules' ----------------------------------------------------------------------------------------------

    def check(self, sql: str, parameters: Iterable[str], budget: float) -> tuple[list[str], frozenset[str]]:
        """The result columns of a query and the tables it reads, without running it.

        Raises sqlite3.Error or sqlite3.Warning for what is wrong with it.
        """
        self._deadline = time.monotonic() + budget
        self._reads.clear()
        query = f"SELECT * FROM (\n{sql}\n) LIMIT 0"
        try:
            cursor = self._connection.execute(query, dict.fromkeys(parameters))
        finally:
            self._deadline = float("inf")
        return [column[0] for column in cursor.description], frozenset(self._reads)

    def prepare(self, sql: str, parameters: Iterable[str]) -> None:
        """Compile a text and nothing more; raises sqlite3.Error or sqlite3.Warning for what is wrong with it."""
        self._connection.execute(f"EXPLAIN {sql}", dict.fromkeys(parameters)).close()

    def plan(self, sql: str, parameters: Iterable[str]) -> list[str]:
        """How SQLite goes about a query, step by step."""
        rows = self._connection.execute(f"EXPLAIN QUERY PLAN {sql}", dict.fromkeys(parameters))
        return [str(row[3]) for row in rows]

    def aggregates(self, sql: str) -> bool:
        """Whether a query makes one row of several; raises sqlite3.Error."""
        return any(row[1].startswith("Agg") for row in self._connection.execute(f"EXPLAIN {sql}"))

    def run(self, sql: str, parameters: Mapping[str, Value], budget: float, owner: str = "") -> list[tuple[Any, ...]]:
        """The rows of the result; raises RuleError. What functions remember of it counts with `memory.keep`."""
        self._deadline = time.monotonic() + budget
        self._function_error = None
        self.memory.begin(owner)
        try:
            return self._fetch(self._connection.execute(sql, parameters))
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT or self._function_error == TIME:
                raise RuleError(TIME, f"it ran for more than {budget:g} s") from None
            if self._function_error is not None:
                raise RuleError("function error", self._function_error) from None
            raise RuleError("SQL error", str(error)) from None
        finally:
            self._deadline = float("inf")

    def close(self) -> None:
        self._connection.close()

    def _add(self, function: Function) -> None:
        name, kind, arguments, implementation, deterministic, trusted = function
        if kind == "scalar":
            self._connection.create_function(
                name, arguments, self._reporting(name, implementation, trusted), deterministic=deterministic
            )
            return
        report = self._reporting

        class Group:
            """One group or frame; its methods are those of the implementation, watched."""

            def __init__(self) -> None:
                made = report(name, implementation, trusted)()
                for method in ("step", "finalize", "value", "inverse"):
                    if hasattr(made, method):
                        setattr(self, method, report(name, getattr(made, method), trusted))

        if kind == "window":
            self._connection.create_window_function(name, arguments, Group)  # type: ignore[arg-type]
        else:
            self._connection.create_aggregate(name, arguments, Group)  # type: ignore[arg-type]

    def _reporting(self, name: str, called: Callable[..., Any], trusted: bool) -> Callable[..., Any]:
        """The same, but what it raises can be told: SQLite says only that it raised something."""
        watched = called if trusted else guarded(called, self._out_of_time)

        def run(*arguments: Any) -> Any:
            try:
                return watched(*arguments)
            except OverBudget:
                self._function_error = TIME
                raise
            except Exception as error:
                self._function_error = f"{name}: {type(error).__name__}: {error}"
                raise

        return run

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

    def _authorize(self, action: int, first: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_READ and first is not None:
            self._reads.add(first)
        return sqlite3.SQLITE_OK if self._trusted or action in _ALLOWED else sqlite3.SQLITE_DENY

    def _out_of_time(self) -> bool:
        return not self._trusted and time.monotonic() > self._deadline
