"""The broker's store on SQLite: what `broker.ports.Store` asks for, committed in groups by a thread of its own.

While one commit is being synced everything that comes gathers for the next; a commit begins when a packet waits for
one, or a while after a change that nobody waits for (DESIGN §6).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from lockgate.broker.ports import Keeper, StoreAnswers
from lockgate.mqtt import reason_codes
from lockgate.sqlite import CommitFailed, Damage, FolderLock, Writer, open_database
from lockgate.sqlite.database import is_damage
from lockgate.storage import statements
from lockgate.storage.changes import Batch, Changes
from lockgate.storage.clock import MomentSource, StoreClock
from lockgate.storage.importing import UnreadableStore, import_once
from lockgate.storage.restore import Summary, read_clock, read_numbers, restore
from lockgate.storage.schema import SCHEMA
from lockgate.storage.wear import Wear, written_by_thread

log = logging.getLogger(__name__)

FILE_NAME: Final = "lockgate.db"
# Changes that nobody waits for and that need not be written soon: more of them are written all the same.
_MOST_LAZY: Final = 10_000
_PURGED_AT_ONCE: Final = 5_000  # deliveries of Sessions that ended
_RETRY_SECONDS: Final = (0.1, 0.5, 1.0, 2.0)  # after a commit that failed; the last one again and again
_CHECKED_BYTES: Final = 64 * 1024 * 1024  # of a file that is read through at the start
_CACHE_KIB: Final = 4096
_JOURNAL_BYTES: Final = 16 * 1024 * 1024  # of the WAL file, between bursts


class _Commit:
    """What the writer thread is busy with."""

    __slots__ = ("batches", "future", "purging", "wanted")

    def __init__(self, batches: list[Batch], wanted: list[tuple[str, int, int, int]], purging: list[int]) -> None:
        self.batches = batches
        self.wanted = wanted  # client id, number, after, limit
        self.purging = purging
        self.future: Future[_Result]


class _Result:
    __slots__ = ("found", "purged", "written")

    def __init__(self) -> None:
        self.written: int | None = None  # bytes, by this thread before this commit; None where nobody tells
        self.found: list[list[Sequence[Any]]] = []
        self.purged: list[int] = []


class SqliteStore:
    """Keeps Sessions, queues, retained messages and Wills in `folder`; one process at a time.

    `open` first, then `restore` and `start`, then everything else, from one thread. `open` raises FolderInUse where
    another process has the folder, NewerFile for a newer program's store, OSError for a bad disk; so does `restore`.
    """

    def __init__(
        self,
        folder: Path,
        answers: StoreAnswers,
        clock: MomentSource,
        *,
        flush_seconds: float,
        flush_changes: int = 0,
        persistence_file: str = "mosquitto.db",
    ) -> None:
        self.folder = folder
        self.path = folder / FILE_NAME
        self.damage: Damage | None = None
        self.sync_seconds = 0.0  # of one small write on this disk, as measured at the start
        self._answers = answers
        self._source = clock
        self._persistence_file = persistence_file
        self._flush_seconds = flush_seconds
        self._flush_changes = flush_changes or _MOST_LAZY
        self._lock = FolderLock(folder, "lockgate.lock")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._committed = 0
        self._wanted: list[tuple[str, int, int]] = []
        self._purging: list[int] = []
        self._commit: _Commit | None = None
        self._unwritten: list[Batch] = []  # of commits that failed, the oldest first
        self._failures = 0  # in a row
        self._problem = ""  # of the last one
        self._retry_at = 0.0
        self._closing = False
        self.wear = Wear()

    # --- start and end -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the folder, open the file, setting a damaged one aside, and see how long the disk takes to sync."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            with self._explained():
                connection, self.damage = open_database(self.path, SCHEMA, check_limit_bytes=_CHECKED_BYTES)
                with contextlib.closing(connection):
                    self.clock = StoreClock(self._source, read_clock(connection))
                    numbers, next_number, next_message_id, orphans = read_numbers(connection, self.damage is not None)
            self.sync_seconds = _measure_sync(self.folder)
        except BaseException:
            self._lock.release()
            raise
        self._purging = orphans
        self.changes = Changes(numbers, next_number, next_message_id)
        self._writer = Writer(self._connect, "broker")
        # The calls that come most often go straight to where they are collected.
        self.append = self.changes.append
        self.update = self.changes.update
        self.acknowledge = self.changes.acknowledge
        self.set = self.changes.set
        self.delete = self.changes.delete

    def restore(self, keeper: Keeper) -> Summary:
        """Hand all that is stored to its keeper, also what Mosquitto left; deliveries that were not sent stay there."""
        with self._explained():
            self._take_over(self._persistence_file)
            with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
                summary = restore(connection, self.clock, keeper)
        log.info(
            "restored %d sessions, %d subscriptions, %d queued and %d retained messages from %s in %.1f s",
            summary.sessions,
            summary.subscriptions,
            summary.messages,
            summary.retained,
            self.path,
            summary.seconds,
        )
        if self.clock.off_seconds is None:
            log.warning(
                "nobody knows how long the machine was off, its clock was not set: %d queued messages with an expiry"
                " are expired",
                summary.expired,
            )
        return summary

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OSError(errno.EIO, f"the store {self.path} cannot be used: {error}") from error

    def _take_over(self, persistence_file: str) -> None:
        """Write what Mosquitto left in the folder into this store, once; a file that cannot be read is left alone."""
        moment = self._source.now()
        known = sqlite3.connect(self.path, isolation_level=None)
        with contextlib.closing(known):
            retained = {topic for (topic,) in known.execute("SELECT topic FROM retained")}
        try:
            import_once(
                self.folder,
                persistence_file,
                self,
                0,
                moment.boottime_ns / 1e9,
                moment.wall_ns / 1e9 if moment.clock_ok else None,
                self._sync,
                known_sessions=self.changes.numbers,
                known_retained=retained,
            )
        except UnreadableStore as error:
            log.error("Mosquitto's store is not taken over: %s; the broker starts without it", error)

    def _sync(self) -> None:
        """Write everything before returning. Raises sqlite3.Error."""
        self._is_due = True
        while True:
            self.settle()
            if self._commit is None:
                return
            try:
                self._commit.future.result()
            except CommitFailed as failed:
                raise failed.__cause__ or failed from None

    def start(self) -> None:
        """Go on with the running event loop, which is woken when commits are done."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Write what is left and give the folder free; takes as long as the disk does."""
        self._closing = True
        self._is_due = True
        deadline = time.monotonic() + 2.0
        failures = self._failures
        while time.monotonic() < deadline and self._failures <= failures:
            self.settle()
            if self._commit is None:
                break
            with contextlib.suppress(CommitFailed, TimeoutError):
                self._commit.future.result(max(0.0, deadline - time.monotonic()))
        if self._unwritten or not self.changes.is_void:
            log.error("%s could not be written at the end; what was acknowledged is safe", self.path)
        if self._timer is not None:
            self._timer.cancel()
        self._writer.close()
        self._lock.release()

    @property
    def held_bytes(self) -> int:
        """Bytes of messages that are not written yet."""
        batches = self._commit.batches if self._commit is not None else self._unwritten
        return self.changes.size_bytes + sum(batch.size_bytes for batch in batches)

    def status(self) -> dict[str, object]:
        """Give the store's figures, for JSON."""
        writer = self._writer
        return {
            "persistence": True,
            "path": str(self.path),
            "failing": self._failures > 0,
            "error": self._problem if self._failures else None,
            "sync_ms": round(self.sync_seconds * 1000, 3),
            "safe_rate": round(1 / self.sync_seconds) if self.sync_seconds else None,
            "last_commit_ms": round(writer.sync_ms, 3),
            "commits": self.wear.commits,
            "bytes_written": self.wear.bytes_written,
            "message_bytes": self.wear.prefixes,
            "last_hour": self.wear.last_hour(),
            "waiting_changes": self.changes.count,
            "damage": None if self.damage is None else f"{self.damage.finding}; set aside as {self.damage.path}",
        }

    def _connect(self) -> sqlite3.Connection:
        """Open the file in the writer's thread, at first and after a failure."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        return connection

    # --- the port ------------------------------------------------------------------------------------------------

    def end_session(self, commit: int, client_id: str) -> None:
        """Remove a Session and all it has."""
        self._purging.append(self.changes.numbers[client_id])
        if self._wanted:
            self._wanted = [question for question in self._wanted if question[0] != client_id]
        self.changes.end_session(commit, client_id)

    def want(self, client_id: str, after: int, limit: int) -> None:
        """Ask for deliveries of a queue; the commit that answers begins with the next `settle`."""
        self._wanted.append((client_id, after, limit))

    def flush(self) -> None:
        """Commit at the next `settle` even if nobody waits for it."""
        self._is_due = True

    def settle(self) -> None:
        """End a turn: tell what was committed and found since the last one, and begin the next commit if it is time."""
        while True:
            commit = self._commit
            if commit is not None:
                if not commit.future.done():
                    return
                self._commit = None
                self._finish(commit)
                continue
            changes = self.changes
            if changes.is_void and not self._wanted and not self._unwritten:
                changes.clear()
                if changes.last_change > self._committed:
                    self._committed = changes.last_change
                    self._answers.committed(self._committed)
                    continue
                if not self._purging or self._closing:
                    self._is_due = False
                    return
            elif not self._is_time():
                return
            if self._failures and time.monotonic() < self._retry_at and not self._closing:
                return
            self._begin()
            return

    def _is_time(self) -> bool:
        if self._wanted or self._must_write():
            return True
        if self.changes.wakes and self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(self._flush_seconds, self._flush_later)
        return False

    def _must_write(self) -> bool:
        if self._is_due or self._unwritten or self._answers.awaited > self._committed:
            return True
        return self.changes.count >= self._flush_changes

    def _flush_later(self) -> None:
        self._timer = None
        self._is_due = True
        self._answers.wake()

    # --- commits -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        changes = self.changes
        # What is wanted has to be found, also what is new; acknowledgements alone do not make the disk sync for that.
        writes = changes.wakes or self._must_write()
        self._is_due = False
        batches = self._unwritten
        self._unwritten = []
        if writes and not changes.is_void:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            batches.append(changes.take(self.clock.to_store(1.0) - 1.0))
        wanted = [
            (client_id, changes.numbers[client_id], after, limit)
            for client_id, after, limit in self._wanted
            if client_id in changes.numbers
        ]
        self._wanted = []
        commit = _Commit(batches, wanted, list(self._purging))
        noted = self.clock.note() if batches else None

        def work(connection: sqlite3.Connection) -> _Result:
            result = _Result()
            result.written = written_by_thread()
            for batch in batches:
                statements.write(connection, batch)
            if noted is not None:
                statements.note_clock(connection, noted)
            for number in commit.purging:
                if not statements.purge(connection, number, _PURGED_AT_ONCE):
                    break
                result.purged.append(number)
            for _client_id, number, after, limit in wanted:
                result.found.append(statements.wanted(connection, number, after, limit))
            return result

        commit.future = self._writer.submit(work)
        self._commit = commit
        commit.future.add_done_callback(self._wake)

    def _wake(self, _future: object) -> None:
        """Called in the writer's thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended; `close` looks itself
                loop.call_soon_threadsafe(self._answers.wake)

    def _finish(self, commit: _Commit) -> None:
        problem = commit.future.exception()
        if problem is not None:
            self._fail(commit, problem)
            return
        result = commit.future.result()
        for number in result.purged:
            self._purging.remove(number)
        recovers = self._failures > 0
        if recovers:
            log.info("%s can be written again", self.path)
            self._failures = 0
        if commit.batches:
            self._committed = commit.batches[-1].number
            self.wear.count(commit.batches, result.written)
        if commit.batches or recovers:
            self._answers.committed(self._committed)
        for (client_id, _number, _after, _limit), rows in zip(commit.wanted, result.found, strict=True):
            self._answers.loaded(client_id, [statements.read_delivery(row, self.clock) for row in rows])

    def _fail(self, commit: _Commit, problem: BaseException) -> None:
        """Keep everything to be written again: nothing of it was confirmed (DESIGN §6)."""
        self._unwritten = commit.batches
        self._wanted = [(client_id, after, limit) for client_id, _number, after, limit in commit.wanted] + self._wanted
        pause = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
        self._retry_at = time.monotonic() + pause
        if self._loop is not None and not self._closing:
            self._loop.call_later(pause, self._answers.wake)
        cause = problem.__cause__ if isinstance(problem, CommitFailed) else problem
        if cause is not None and is_damage(cause):
            self._answers.store_damaged(f"the store {self.path} is damaged: {cause}")
            return
        full = getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        if not self._failures:
            log.error("%s cannot be written: %s; nothing is acknowledged until it can", self.path, problem)
        self._failures += 1
        self._problem = str(problem)
        code = reason_codes.QUOTA_EXCEEDED if full else reason_codes.IMPLEMENTATION_SPECIFIC_ERROR
        self._answers.store_failed(code)


def _measure_sync(folder: Path) -> float:
    """Give the seconds that the disk takes to keep a small write, the median of a few."""
    path = folder / "lockgate.sync"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        taken = []
        for number in range(3):
            os.pwrite(handle, bytes(4096), number * 4096)
            before = time.monotonic()
            os.fdatasync(handle)
            taken.append(time.monotonic() - before)
        return sorted(taken)[1]
    finally:
        os.close(handle)
        path.unlink()
