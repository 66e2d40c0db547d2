"""Statements of many rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

import pytest

from lockgate.sqlite.bulk import Statement, execute_rows

INSERT = Statement("INSERT INTO t (a, b) VALUES ", "(?, ?)", " ON CONFLICT (a) DO UPDATE SET b = excluded.b")


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    opened.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
    yield opened
    opened.close()


def run(connection: sqlite3.Connection, statement: Statement, values: Sequence[object]) -> list[str]:
    """Run it and give the statements that were executed."""
    seen: list[str] = []
    connection.set_trace_callback(seen.append)
    execute_rows(connection, statement, values)
    connection.set_trace_callback(None)
    return seen


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 511, 512, 513, 1025, 2000])
def test_every_row_is_written_once_and_in_order(connection: sqlite3.Connection, count: int) -> None:
    values: list[object] = [value for row in range(count) for value in (row, f"b{row}")]
    statements = run(connection, INSERT, values)
    assert connection.execute("SELECT a, b FROM t").fetchall() == [(row, f"b{row}") for row in range(count)]
    assert len(statements) == count // 512 + count % 512 // 64 + count % 64 // 8 + count % 8


def test_rows_that_are_there_are_changed(connection: sqlite3.Connection) -> None:
    run(connection, INSERT, [1, "old", 2, "old"])
    run(connection, INSERT, [2, "new", 3, "new"])
    assert connection.execute("SELECT b FROM t ORDER BY a").fetchall() == [("old",), ("new",), ("new",)]


def test_a_list_stands_between_head_and_tail(connection: sqlite3.Connection) -> None:
    run(connection, INSERT, [value for row in range(20) for value in (row, row)])
    run(connection, Statement("DELETE FROM t WHERE a IN (", "?", ")"), [*range(1, 20)])
    assert connection.execute("SELECT a FROM t").fetchall() == [(0,)]


def test_no_statement_has_more_variables_than_sqlite_takes(connection: sqlite3.Connection) -> None:
    wide = 100
    connection.execute(f"CREATE TABLE wide ({', '.join(f'c{n}' for n in range(wide))})")
    statement = Statement("INSERT INTO wide VALUES ", f"({', '.join('?' * wide)})")
    run(connection, statement, [0] * wide * 600)
    assert connection.execute("SELECT count(*) FROM wide").fetchone() == (600,)


def test_an_error_is_raised(connection: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        execute_rows(connection, Statement("INSERT INTO t VALUES ", "(?, ?)"), [1, 1, 1, 1])
