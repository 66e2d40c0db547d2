"""Many rows in few calls.

Each step of a statement gives up the interpreter lock and has to get it back from a busy loop, which may take
milliseconds. A statement of many rows is one step.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

_ROWS: Final = (512, 64, 8, 1)  # of one statement; each kind is prepared once and remembered by the connection
_MOST_VARIABLES: Final = 32_766  # SQLite's own bound


class Statement(NamedTuple):
    """A statement around a list of rows: `head` row, row, … `tail`; `row` has a question mark for each value."""

    head: str
    row: str
    tail: str = ""


def execute_rows(connection: sqlite3.Connection, statement: Statement, values: Sequence[object]) -> None:
    """Run a statement for rows whose values stand one after the other in `values`. Raises sqlite3.Error."""
    width = statement.row.count("?")
    at = 0
    for rows in _ROWS:
        step = rows * width
        if step > _MOST_VARIABLES:
            continue
        while len(values) - at >= step:
            connection.execute(_text(statement, rows), values[at : at + step])
            at += step


@lru_cache(maxsize=256)
def _text(statement: Statement, rows: int) -> str:
    return statement.head + ", ".join([statement.row] * rows) + statement.tail
