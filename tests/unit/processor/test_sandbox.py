"""The budget is the rules', not ours."""

from __future__ import annotations

import sqlite3

import pytest

from lockgate.processor.sandbox import RuleError, Sandbox


def test_our_own_statements_have_all_the_time_they_need() -> None:
    sandbox = Sandbox()
    sandbox.define("t", [("a", "INTEGER")])
    sandbox.check("SELECT a FROM t", (), 0.0)  # whose budget is over now
    sandbox.execute_many("INSERT INTO t VALUES (?)", [(number,) for number in range(20_000)])
    with pytest.raises(RuleError):
        sandbox.run("SELECT count(*) FROM t AS x, t AS y", {}, 0.01)
    assert sandbox.execute("SELECT count(*) FROM t WHERE a % 7 < 9") == [(20_000,)]
    assert sandbox.run("SELECT count(*) FROM t", {}, 5.0) == [(20_000,)]


def test_what_fails_leaves_what_was_there() -> None:
    sandbox = Sandbox()
    sandbox.define("t", [("a", "INTEGER PRIMARY KEY")])
    sandbox.execute_many("INSERT INTO t VALUES (?)", [(1,), (2,)])
    with pytest.raises(sqlite3.IntegrityError):
        sandbox.execute_many("INSERT INTO t VALUES (?)", [(3,), (3,)], before="DELETE FROM t")
    assert sandbox.execute("SELECT a FROM t") == [(1,), (2,)]
