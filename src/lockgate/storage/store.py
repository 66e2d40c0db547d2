"""The broker's store on SQLite: what `broker.ports.Store` asks for, committed in groups by a thread of its own.

While one commit is being synced everything that comes gathers for the next; a commit begins when a packet waits for
one, or a while after a change that nobody waits for (DESIGN §6).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from lockgate.broker.ports import RESTS, Delivery, Keeper, StoreAnswers
from lockgate.mqtt import reason_codes
from lockgate.sqlite import CommitFailed, Damage, FolderLock, Writer
from lockgate.sqlite.bulk import execute_rows
from lockgate.sqlite.database import FAILURES, is_damage, told
from lockgate.sqlite.reserve import Reserve
from lockgate.storage import statements
from lockgate.storage.changes import Batch, Changes
from lockgate.storage.clock import MomentSource
from lockgate.storage.importing import UnreadableStore, import_once
from lockgate.storage.restore import Stored, Summary, open_stored, read_stored
from lockgate.storage.wear import Wear, written_by_thread

log = logging.getLogger(__name__)

FILE_NAME: Final = "lockgate.db"
# Changes that nobody waits for and that need not be written soon: more of them are written all the same.
_MOST_LAZY: Final = 10_000
_PURGED_AT_ONCE: Final = 5_000  # deliveries of Sessions that ended
_PIECE: Final = 16  # deliveries that are removed at once from a full disk
_RETRY_SECONDS: Final = (0.1, 0.5, 1.0, 2.0)  # after a commit that failed; the last one again and again
_CHECKED_BYTES: Final = 64 * 1024 * 1024  # of a file that is read through at the start
_CACHE_KIB: Final = 4096
_MOST_PAGES: Final = 1000  # of the write-ahead log, before it is moved into the file
_FEWEST_PAGES: Final = 16
_PAGE_BYTES: Final = 4096
_ROOM_SECONDS: Final = 2.0  # between two looks for room on a disk that was full
# The second: no room for the file of shared memory beside the database, which comes to be with the first commit
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
_JOURNAL_BYTES: Final = 16 * 1024 * 1024  # of the WAL file, between bursts


class _Commit:
    """What the writer thread is busy with."""

    __slots__ = ("batches", "future", "makes_room", "purging", "removed", "wanted")

    def __init__(self, batches: list[Batch], wanted: list[tuple[str, int, int, int]], purging: list[int]) -> None:
        self.batches = batches
        self.wanted = wanted  # client id, number, after, limit
        self.purging = purging
        self.makes_room: Batch | None = None  # only a few deliveries that are done, of a batch that waits: `removed`
        self.removed: list[object] = []
        self.future: Future[_Result]


class _Result:
    __slots__ = ("found", "free_bytes", "left_out", "purged", "written")

    def __init__(self) -> None:
        self.written: int | None = None  # bytes, by this thread before this commit; None where nobody tells
        self.found: list[list[Delivery]] = []
        self.left_out = 0  # deliveries that could not be read
        self.purged: list[int] = []
        self.free_bytes = 0  # within the file


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
        # There after a commit met damage: the next start compares the indexes too, which takes long.
        self._doubt = folder / f"{FILE_NAME}.doubtful"
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
        self._begun_at = 0.0  # time.monotonic, of that commit
        self._unwritten: list[Batch] = []  # of commits that failed, the oldest first
        self._failures = 0  # in a row
        self._problem = ""  # of the last one
        self._retry_at = 0.0
        self._closing = False
        self._is_closed = False
        self.wear = Wear()

    # --- start and end -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the folder, open the file, setting a damaged one aside, and see how long the disk takes to sync."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            with self._explained():
                stored, self.damage = open_stored(
                    self.path, self._source, check_limit_bytes=_CHECKED_BYTES, thorough=self._doubt.exists()
                )
            self._doubt.unlink(missing_ok=True)
            self._reserve = Reserve(self.folder)
            self._is_short = not self._reserve.keep()
            self.sync_seconds = _measure_sync(self.folder)
        except BaseException:
            self._lock.release()
            raise
        self._stored: Stored | None = stored
        self.clock = stored.clock
        self.left_out = stored.summary.left_out
        self._purging = stored.orphans
        self.changes = Changes(stored.numbers, stored.next_number, stored.next_message_id)
        self._writer = Writer(self._connect, "broker")
        # The calls that come most often go straight to where they are collected.
        self.append = self.changes.append
        self.update = self.changes.update
        self.acknowledge = self.changes.acknowledge
        self.set = self.changes.set
        self.delete = self.changes.delete

    def restore(self, keeper: Keeper) -> Summary:
        """Hand all that is stored to its keeper, also what Mosquitto left; deliveries that were not sent stay there."""
        stored, self._stored = self._stored, None
        assert stored is not None, "restored twice"
        with self._explained():
            if self._take_over(self._persistence_file, stored):
                with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
                    stored = read_stored(connection, self._source)
        summary = stored.hand_over(keeper)
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
        except FAILURES as error:
            raise OSError(errno.EIO, f"the store {self.path} cannot be used: {told(error)}") from error

    def _take_over(self, persistence_file: str, stored: Stored) -> bool:
        """Write what Mosquitto left in the folder into this store, once; a file that cannot be read is left alone."""
        moment = self._source.now()
        try:
            report = import_once(
                self.folder,
                persistence_file,
                self,
                0,
                moment.boottime_ns / 1e9,
                moment.wall_ns / 1e9 if moment.clock_ok else None,
                self._sync,
                known_sessions=self.changes.numbers,
                known_retained=stored.retained,
            )
            return report is not None
        except UnreadableStore as error:
            log.error("Mosquitto's store is not taken over: %s; the broker starts without it", error)
            return False

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
        if self._is_short:
            self._tell_shortage()
            self._loop.call_soon(self._look_for_room)

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
        self._is_closed = True
        self._writer.close()
        self._lock.release()

    @property
    def held_bytes(self) -> int:
        """Bytes of messages that are not written yet."""
        held = self.changes.size_bytes
        for batch in self._commit.batches if self._commit is not None else self._unwritten:
            held += batch.size_bytes
        return held

    def status(self) -> dict[str, object]:
        """Give the store's figures, for JSON."""
        writer = self._writer
        last = writer.last_commit_ns
        return {
            "persistence": True,
            "path": str(self.path),
            "failing": self._failures > 0 or self._is_short,
            "error": self._problem if self._failures else "the disk is full" if self._is_short else None,
            "sync_ms": round(self.sync_seconds * 1000, 3),
            "safe_rate": round(1 / self.sync_seconds) if self.sync_seconds else None,
            "last_commit_ms": round(writer.sync_ms, 3),
            "last_commit_seconds_ago": None if last is None else round((_boottime_ns() - last) / 1e9, 3),
            "commit_running_seconds": round(time.monotonic() - self._begun_at, 3) if self._commit is not None else 0.0,
            "commits": self.wear.commits,
            "bytes_written": self.wear.bytes_written,
            "message_bytes": self.wear.prefixes,
            "last_hour": self.wear.last_hour(),
            "waiting_changes": self.changes.count,
            "damage": None if self.damage is None else f"{self.damage.finding}; set aside as {self.damage.path}",
            "left_out": dict(self.left_out),
        }

    def _connect(self) -> sqlite3.Connection:
        """Open the file in the writer's thread, at first and after a failure."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        # What the write-ahead log holds has to fit into the reserve, or a full disk could not be left behind.
        pages = max(_FEWEST_PAGES, min(_MOST_PAGES, self._reserve.size_bytes // 8192))
        connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
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

    def settle(self) -> int:
        """End a turn: tell what was committed and found since the last one, and begin the next commit if it is time.

        Gives `held_bytes`, or RESTS.
        """
        while not self._is_closed:
            commit = self._commit
            if commit is not None:
                if not commit.future.done():
                    break
                self._commit = None
                self._finish(commit)
                continue
            changes = self.changes
            if changes.is_void and not self._wanted and not self._unwritten:
                if changes.last_change > self._committed:  # what came has gone again
                    changes.clear()
                    self._committed = changes.last_change
                    self._answers.committed(self._committed)
                    continue
                if not self._purging or self._closing:
                    self._is_due = False
                    return RESTS
            elif not self._is_time():
                break
            if self._failures and time.monotonic() < self._retry_at and not self._closing:
                break
            self._begin()
            break
        return self.held_bytes

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

    def _make_room(self) -> bool:
        """Write only a few of the deliveries that are done, if there are any: on a full disk less is more."""
        unwritten: set[object] = set()  # to remove them now would leave them in the file when they are written
        for batch in self._unwritten:
            done = batch.values["delivered"]
            piece = list(itertools.islice((row for row in done if row not in unwritten), _PIECE))
            unwritten.update(batch.values["deliveries"][:: statements.DELIVERY_WIDTH])
            if piece:
                commit = _Commit([], [], [])
                commit.makes_room, commit.removed = batch, piece

                def work(connection: sqlite3.Connection, piece: list[object] = piece) -> _Result:
                    execute_rows(connection, statements.STATEMENTS["delivered"], piece)
                    return _Result()

                self._submit(commit, work)
                return True
        return False

    def _begin(self) -> None:
        if self._is_short and self._make_room():
            return
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
            if self._is_short:
                pages: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
                result.free_bytes = pages * _PAGE_BYTES
            for number in commit.purging:
                if not statements.purge(connection, number, _PURGED_AT_ONCE):
                    break
                result.purged.append(number)
            for _client_id, number, after, limit in wanted:
                found, unusable = statements.wanted(connection, number, after, limit, self.clock)
                result.found.append(found)
                result.left_out += len(unusable)
            return result

        self._submit(commit, work)

    def _submit(self, commit: _Commit, work: Callable[[sqlite3.Connection], _Result]) -> None:
        self._begun_at = time.monotonic()
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
        if commit.makes_room is not None:
            self._reserve.keep()
            removed = {*commit.removed}
            values = commit.makes_room.values
            values["delivered"] = [row for row in values["delivered"] if row not in removed]
            return
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
        if self._is_short:
            self._end_shortage(result.free_bytes)
        if result.left_out:
            self.left_out["deliveries"] += result.left_out
        for (client_id, _number, _after, _limit), found in zip(commit.wanted, result.found, strict=True):
            self._answers.loaded(client_id, found)

    def _tell_shortage(self) -> None:
        log.error("the disk of %s is full: only what makes room is written until there is some", self.path)

    def _look_for_room(self) -> None:
        if self._is_short and self._loop is not None and not self._closing:
            self._loop.call_later(_ROOM_SECONDS, self._look_for_room)
            if not self._failures:
                self._end_shortage(0)
                self._answers.wake()

    def _end_shortage(self, free_bytes: int) -> None:
        """Take what publishers say again if there is room on the disk or within the file; else refuse it."""
        if self._reserve.keep() or free_bytes >= self._reserve.size_bytes:
            log.info("the disk of %s has room again", self.path)
            self._is_short = False
            self._answers.committed(self._committed)
        else:
            self._answers.store_failed(reason_codes.QUOTA_EXCEEDED)

    def _fail(self, commit: _Commit, problem: BaseException) -> None:
        """Keep everything to be written again: nothing of it was confirmed (DESIGN §6)."""
        self.clock.forget_note()
        if commit.makes_room is None:
            self._unwritten = commit.batches
        self._wanted = [(client_id, after, limit) for client_id, _number, after, limit in commit.wanted] + self._wanted
        pause = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
        self._retry_at = time.monotonic() + pause
        if self._loop is not None and not self._closing:
            self._loop.call_later(pause, self._answers.wake)
        cause = problem.__cause__ if isinstance(problem, CommitFailed) else problem
        if cause is not None and is_damage(cause):
            with contextlib.suppress(OSError):
                self._doubt.touch()
            self._answers.store_damaged(f"the store {self.path} is damaged: {cause}")
            return
        full = getattr(cause, "sqlite_errorcode", None) in _FULL
        if full and self._reserve.release():  # room enough for what was taken already, and for what makes room
            self._retry_at = 0.0
            if self._loop is not None:
                self._loop.call_soon(self._answers.wake)
            if not self._is_short:
                self._is_short = True
                self._tell_shortage()
                if self._loop is not None:
                    self._loop.call_later(_ROOM_SECONDS, self._look_for_room)
            return
        if not self._failures:
            log.error("%s cannot be written: %s; nothing is acknowledged until it can", self.path, problem)
        self._failures += 1
        self._problem = str(problem)
        code = reason_codes.QUOTA_EXCEEDED if full or self._is_short else reason_codes.IMPLEMENTATION_SPECIFIC_ERROR
        self._answers.store_failed(code)


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _measure_sync(folder: Path) -> float:
    """Give the seconds that the disk takes to keep a small write, the median of a few; 0 where it has no room."""
    path = folder / "lockgate.sync"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # the disk is full
        return 0.0
    try:
        taken = []
        for number in range(3):
            os.pwrite(handle, bytes(4096), number * 4096)
            before = time.monotonic()
            os.fdatasync(handle)
            taken.append(time.monotonic() - before)
        return sorted(taken)[1]
    except OSError:
        return 0.0
    finally:
        os.close(handle)
        path.unlink()
