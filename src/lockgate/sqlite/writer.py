"""The writer thread of a database file: what was submitted while one commit was syncing is the next transaction."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

# After these nothing that the connection says is trusted: the whole transaction fails and the file is opened anew.
_SICK_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_NOMEM,
    }
)


class CommitFailed(Exception):
    """Nothing of the submission is promised to be on disk; its cause is the error of SQLite."""


class _Job:
    __slots__ = ("alone", "future", "work")

    def __init__(self, work: Work[Any], alone: bool) -> None:
        self.work = work
        self.alone = alone
        self.future: Future[Any] = Future()


class Writer:
    """Runs submitted functions on one connection in one thread, many to a transaction; any thread may submit.

    `open_connection` is called in that thread, at first use and after a failed commit.
    """

    def __init__(self, open_connection: Callable[[], sqlite3.Connection], name: str) -> None:
        self._open_connection = open_connection
        self._connection: sqlite3.Connection | None = None
        self._waiting: list[_Job] = []
        self._change = threading.Condition()
        self._closing = False
        self._distrusted = False
        self.commits = 0
        self.sync_ms = 0.0  # the last COMMIT
        self.last_commit_ns: int | None = None  # CLOCK_BOOTTIME
        self._thread = threading.Thread(target=self._run, name=f"sqlite {name}", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T]) -> Future[T]:
        """Run `work` in the next transaction; the result is there once COMMIT has succeeded.

        What `work` raises undoes its own changes alone and is the future's exception. Otherwise the exception is
        CommitFailed. Cancelling the future before its turn takes the submission back.
        """
        return self._enqueue(_Job(work, alone=False))

    def between(self, work: Work[T]) -> Future[T]:
        """Run `work` outside any transaction, after all that was submitted before it; it may call `replace`.

        If it raises, the file is opened anew for the next submission.
        """
        return self._enqueue(_Job(work, alone=True))

    async def write(self, work: Work[T]) -> T:
        """`submit`, awaited."""
        return await asyncio.wrap_future(self.submit(work))

    def replace(self, connection: sqlite3.Connection) -> None:
        """Go on with another connection (the old one is the caller's to close). Only within `between`."""
        self._connection = connection

    def close(self) -> None:
        """Finish what was submitted, close the file and end the thread."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()

    def _enqueue(self, job: _Job) -> Future[Any]:
        with self._change:
            if self._closing:
                raise RuntimeError("the writer is closed")
            self._waiting.append(job)
            self._change.notify()
        return job.future

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._closing:
                    self._change.wait()
                jobs, self._waiting = self._waiting, []
            if not jobs:
                break
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            together: list[_Job] = []
            for job in jobs:
                if not job.alone:
                    together.append(job)
                    continue
                self._commit_together(together)
                together = []
                self._run_alone(job)
            self._commit_together(together)
        self._drop_connection()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = self._open_connection()
            if self._distrusted:
                _settle_wal(connection)
                self._distrusted = False
            self._connection = connection
        return self._connection

    def _run_alone(self, job: _Job) -> None:
        try:
            result = job.work(self._connected())
        except BaseException as error:
            self._distrusted = self._distrusted or _is_sick(error)
            self._drop_connection()  # it may have been closed before what failed
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    def _commit_together(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        settled: list[tuple[_Job, Any, BaseException | None]] = []
        try:
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                settled.append((job, *_run_in_savepoint(connection, job.work)))
            started = time.monotonic()
            connection.execute("COMMIT")
        except BaseException as error:
            self._distrusted = True
            self._drop_connection()
            for job in jobs:
                failure = CommitFailed(str(error))
                failure.__cause__ = error
                job.future.set_exception(failure)
            return
        self.sync_ms = (time.monotonic() - started) * 1000
        self.commits += 1
        self.last_commit_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for job, result, refusal in settled:
            if refusal is not None:
                job.future.set_exception(refusal)
            else:
                job.future.set_result(result)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.close()  # rolls back what is open
        except sqlite3.Error:
            log.warning("closing a failed database connection", exc_info=True)


def _run_in_savepoint(connection: sqlite3.Connection, work: Work[T]) -> tuple[T | None, BaseException | None]:
    connection.execute("SAVEPOINT submission")
    try:
        result = work(connection)
    except BaseException as error:
        if _is_sick(error) or not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO submission")
        connection.execute("RELEASE submission")
        return None, error
    connection.execute("RELEASE submission")
    return result, None


def _settle_wal(connection: sqlite3.Connection) -> None:
    """Move the write-ahead log into the database file and sync that: after a failed sync nobody knows what it holds."""
    busy = True
    try:
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        if busy:
            connection.close()
    if busy:
        raise sqlite3.OperationalError("the write-ahead log is in use and cannot be emptied")


def _is_sick(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _SICK_CODES
