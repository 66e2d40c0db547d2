"""The writer thread: group commit, savepoints, failed commits."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lockgate.sqlite import CommitFailed, Schema, Writer, open_database

SCHEMA = Schema(1, "CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE)", ("t",))


def insert(x: object) -> Callable[[sqlite3.Connection], int | None]:
    return lambda connection: connection.execute("INSERT INTO t (x) VALUES (?)", (x,)).lastrowid


def rows(path: Path) -> list[object]:
    return [x for (x,) in sqlite3.connect(path).execute("SELECT x FROM t ORDER BY id")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.sqlite"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(lambda: open_database(path, SCHEMA)[0], "test")
    yield writer
    writer.close()


def hold(writer: Writer) -> threading.Event:
    """Keep the thread busy until the event, so that what is submitted meanwhile shares one transaction."""
    release = threading.Event()
    running = threading.Event()

    def wait(_: sqlite3.Connection) -> None:
        running.set()
        release.wait(10)

    writer.between(wait)
    assert running.wait(10)
    return release


async def test_what_waits_shares_one_commit(writer: Writer, path: Path) -> None:
    release = hold(writer)
    writes = [asyncio.ensure_future(writer.write(insert(n))) for n in range(50)]
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(*writes) == list(range(1, 51))
    assert writer.commits == 1
    assert rows(path) == list(range(50))


def test_a_failing_submission_does_not_take_the_others(writer: Writer, path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        insert("half")(connection)
        insert("a")(connection)

    release = hold(writer)
    first, second, third = writer.submit(insert("a")), writer.submit(half), writer.submit(insert("b"))
    release.set()
    assert first.result(10) == 1
    with pytest.raises(sqlite3.IntegrityError):
        second.result(10)
    third.result(10)
    assert rows(path) == ["a", "b"]


def test_a_cancelled_submission_is_not_run(writer: Writer, path: Path) -> None:
    release = hold(writer)
    first, second = writer.submit(insert("a")), writer.submit(insert("b"))
    assert first.cancel()
    release.set()
    second.result(10)
    assert rows(path) == ["b"]


class FailingCommit(sqlite3.Connection):
    failures = 0

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and FailingCommit.failures:
            FailingCommit.failures -= 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return super().execute(sql, *parameters)


def test_a_failed_commit_fails_all_of_it_and_opens_the_file_anew(path: Path) -> None:
    opened = []

    def open_connection() -> sqlite3.Connection:
        open_database(path, SCHEMA)[0].close()
        opened.append(sqlite3.connect(path, factory=FailingCommit, isolation_level=None))
        return opened[-1]

    writer = Writer(open_connection, "test")
    FailingCommit.failures = 1
    release = hold(writer)
    doomed = [writer.submit(insert("a")), writer.submit(insert("b"))]
    release.set()
    for future in doomed:
        with pytest.raises(CommitFailed):
            future.result(10)
    writer.submit(insert("c")).result(10)
    writer.close()
    assert rows(path) == ["c"]
    assert len(opened) == 2


def test_a_full_disk_fails_the_transaction_and_is_recovered_from(path: Path) -> None:
    pages = 8

    def open_connection() -> sqlite3.Connection:
        connection = open_database(path, SCHEMA)[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    writer = Writer(open_connection, "test")
    writer.submit(insert("small")).result(10)
    with pytest.raises(CommitFailed, match="full"):
        writer.submit(insert("x" * 100_000)).result(10)
    pages = 1000
    writer.submit(insert("y" * 100_000)).result(10)
    writer.close()
    assert rows(path) == ["small", "y" * 100_000]


def test_work_between_transactions_may_fail_after_closing_the_file(writer: Writer, path: Path) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        connection.close()
        raise OSError("no new file")

    failing, following = writer.between(fail), writer.submit(insert("a"))
    with pytest.raises(OSError, match="no new file"):
        failing.result(10)
    following.result(10)
    assert rows(path) == ["a"]


def test_a_file_that_cannot_be_opened_fails_submissions_until_it_can(tmp_path: Path) -> None:
    path = tmp_path / "later" / "a.sqlite"
    writer = Writer(lambda: open_database(path, SCHEMA)[0], "test")
    with pytest.raises(CommitFailed):
        writer.submit(insert("a")).result(10)
    path.parent.mkdir()
    writer.submit(insert("b")).result(10)
    writer.close()
    assert rows(path) == ["b"]
    with pytest.raises(RuntimeError):
        writer.submit(insert("c"))
