"""Reading the log while another process writes, rotates and purges it."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from lockgate.buffer.missing import NOTHING_MISSING, Missing, load_missing
from lockgate.buffer.rows import Kept, LastValue, Quarantined, Row
from lockgate.buffer.segments import LOG_COLUMNS, State, is_checkpointed, list_segments, segment_path, suspect_path
from lockgate.sqlite import open_readonly
from lockgate.sqlite.database import is_damage

log = logging.getLogger(__name__)

T = TypeVar("T")

_PASSING: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR})  # primary codes
_RETRIES = 5
_CACHE_KIB: Final = 128  # for each open segment; rows are read once, in order, and the kernel keeps the pages anyway
ENDLESS: Final = (1 << 63) - 1  # after every seq


class DamagedSegment(OSError):
    """A segment cannot be read. The writer has been told and will save what it can; try again later."""

    def __init__(self, path: Path, finding: str) -> None:
        super().__init__(f"{path.name} is damaged ({finding}); the processor saves what can be read of it")
        self.path = path


class SegmentFile:
    """One open segment."""

    def __init__(self, folder: Path, number: int, sealed: bool) -> None:
        self.number = number
        self.path = segment_path(folder, number)
        self.immutable = sealed and is_checkpointed(self.path)
        self.inode = self.path.stat().st_ino
        self.connection = open_readonly(self.path, immutable=self.immutable)
        self.connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._last_seq: int | None = None
        self._counts: dict[str, int] = {}

    def last_seq(self) -> int:
        """The last row's, 0 without rows."""
        if self._last_seq is not None:
            return self._last_seq
        last: int = self.connection.execute("SELECT coalesce(max(seq), 0) FROM log").fetchone()[0]
        if self.immutable:
            self._last_seq = last
        return last

    def first_seq(self) -> int:
        first: int = self.connection.execute("SELECT coalesce(min(seq), 0) FROM log").fetchone()[0]
        return first

    def rows(self, message_class: str, after: int, limit: int, until: int = ENDLESS) -> sqlite3.Cursor:
        return self.connection.execute(
            f"SELECT {LOG_COLUMNS} FROM log WHERE class = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
            (message_class, after, until, limit),
        )

    def newest_rows(self, message_class: str, after: int, limit: int) -> sqlite3.Cursor:
        """The last rows after a seq, the newest first."""
        return self.connection.execute(
            f"SELECT {LOG_COLUMNS} FROM log WHERE class = ? AND seq > ? ORDER BY seq DESC LIMIT ?",
            (message_class, after, limit),
        )

    def count(self, message_class: str, after: int, until: int = ENDLESS) -> int:
        """Rows of the class after a seq, up to another one."""
        if until != ENDLESS:
            query = "SELECT count(*) FROM log WHERE class = ? AND seq > ? AND seq <= ?"
            between: int = self.connection.execute(query, (message_class, after, until)).fetchone()[0]
            return between
        if self.immutable and after < self.first_seq():
            if message_class not in self._counts:
                self._counts[message_class] = self._count(message_class, 0)
            return self._counts[message_class]
        return self._count(message_class, after)

    def _count(self, message_class: str, after: int) -> int:
        query = "SELECT count(*) FROM log WHERE class = ? AND seq > ?"
        count: int = self.connection.execute(query, (message_class, after)).fetchone()[0]
        return count

    def stale(self, newest: int) -> bool:
        """Replaced by its salvage, or sealed since it was opened, so that it could be read without its WAL."""
        if self.path.stat().st_ino != self.inode:
            return True
        return not self.immutable and self.number != newest and is_checkpointed(self.path)

    def close(self) -> None:
        self.connection.close()


class _Rows:
    """Rows as they are read, up to a number and to bytes of payload; one at least."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self.taken: list[Row] = []
        self.left = limit
        self._bytes_left = limit_bytes

    def take(self, found: sqlite3.Cursor) -> bool:
        """Take what there is room for; whether that is all there is room for. What is beyond it is not even read."""
        with contextlib.closing(found):
            for row in found:
                self._bytes_left -= len(row[10])
                if self.taken and self._bytes_left < 0:
                    return True
                self.taken.append(Row._make(row)._replace(clock_ok=bool(row[5])))
                self.left -= 1
        return self.left <= 0


class LogReader:
    """Reads the log of a buffer folder, read-only and in short transactions; calls must not overlap.

    Raises DamagedSegment where rows cannot be read: they are not skipped.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[int, SegmentFile] = {}

    def read(
        self,
        message_class: str,
        after: int,
        limit: int,
        limit_bytes: int = 4 * 1024 * 1024,
        *,
        until: int = ENDLESS,
    ) -> list[Row]:
        """Up to `limit` rows of the class after a seq, in order; at least one, however large, if there is one."""
        return self._retrying(lambda: self._read(message_class, after, limit, limit_bytes, until))

    def newest(self, message_class: str, after: int, limit: int, limit_bytes: int = 4 * 1024 * 1024) -> list[Row]:
        """The last rows of the class after a seq, in order; at least one, however large, if there is one."""
        return self._retrying(lambda: self._newest(message_class, after, limit, limit_bytes))

    def missing(self, message_class: str) -> Missing:
        """What the class lacks. What was read before this call and is behind its line may be dropped."""
        return self._retrying(self._missing).get(message_class, NOTHING_MISSING)

    def boots(self) -> dict[str, int]:
        """Of the boots whose clock was right once: the wall time their CLOCK_BOOTTIME counts from, nanoseconds."""
        return self._retrying(self._boots)

    def pending(self, message_class: str, after: int) -> int:
        """How many rows of the class come after a seq, by counting them."""
        return self._retrying(lambda: sum(self.of(s, lambda s: s.count(message_class, after)) for s in self.segments()))

    def state(self) -> State:
        """What the newest segment knows beside its rows."""
        return self._retrying(self._state)

    def last_values(self) -> list[LastValue]:
        """What topics said last, as far as a rule asked."""

        def read() -> list[LastValue]:
            newest = self.segments()[-1:]
            rows = [self.of(s, lambda s: s.connection.execute("SELECT * FROM last_values").fetchall()) for s in newest]
            return [LastValue._make(row) for some in rows for row in some]

        return self._retrying(read)

    def quarantine(self) -> list[Kept]:
        """What is kept aside, the oldest first."""

        def read() -> list[Kept]:
            query = "SELECT id, wall_ns, topic, schema, reason, detail, payload FROM quarantine ORDER BY id"
            newest = self.segments()[-1:]
            rows = [self.of(s, lambda s: s.connection.execute(query).fetchall()) for s in newest]
            return [Kept(row[0], row[1], Quarantined._make(row[2:])) for some in rows for row in some]

        return self._retrying(read)

    def last_seq(self) -> int:
        """The last seq given out, 0 for none; cheap enough to poll."""
        return self.state().next_seq - 1

    def oldest(self, message_class: str) -> Row | None:
        """The first row of the class that is still kept."""
        rows = self.read(message_class, 0, 1)
        return rows[0] if rows else None

    def segments(self) -> list[SegmentFile]:
        """The segments as they are now, oldest first, opened.

        Raises OSError where one is listed that is not there, sqlite3.Error where one cannot be opened.
        """
        numbers = self._numbers()
        while True:
            try:
                return self._opened(numbers)
            except (FileNotFoundError, sqlite3.OperationalError):
                listed, numbers = numbers, self._numbers()
                if set(listed) <= set(numbers):
                    raise  # it was not purged meanwhile

    def _numbers(self) -> list[int]:
        try:
            return list_segments(self._folder)
        except FileNotFoundError:
            return []

    def _opened(self, numbers: list[int]) -> list[SegmentFile]:
        for gone in self._open.keys() - set(numbers):
            self._open.pop(gone).close()
        for number in numbers:
            segment = self._open.get(number)
            if segment is not None and segment.stale(numbers[-1]):
                self._open.pop(number).close()
                segment = None
            if segment is None:
                self._open[number] = SegmentFile(self._folder, number, sealed=number != numbers[-1])
        return [self._open[number] for number in numbers]

    def close(self) -> None:
        for segment in self._open.values():
            segment.close()
        self._open.clear()

    def _read(self, message_class: str, after: int, limit: int, limit_bytes: int, until: int) -> list[Row]:
        rows = _Rows(limit, limit_bytes)
        for segment in self.segments():
            if self.of(segment, SegmentFile.last_seq) <= after:
                continue
            if self.of(segment, lambda s: rows.take(s.rows(message_class, after, rows.left, until))):
                break
        return rows.taken

    def _newest(self, message_class: str, after: int, limit: int, limit_bytes: int) -> list[Row]:
        rows = _Rows(limit, limit_bytes)
        for segment in reversed(self.segments()):
            if self.of(segment, SegmentFile.last_seq) <= after:
                break
            if self.of(segment, lambda s: rows.take(s.newest_rows(message_class, after, rows.left))):
                break
        return rows.taken[::-1]

    def _missing(self) -> dict[str, Missing]:
        segments = self.segments()
        return self.of(segments[-1], lambda s: load_missing(s.connection)) if segments else {}

    def _boots(self) -> dict[str, int]:
        segments = self.segments()
        if not segments:
            return {}
        query = "SELECT boot_id, offset_ns FROM boots"
        return dict(self.of(segments[-1], lambda s: s.connection.execute(query).fetchall()))

    def _state(self) -> State:
        for segment in reversed(self.segments()):
            state = self.of(segment, lambda s: State.load(s.connection))
            if state is not None:
                return state
        return State()

    def of(self, segment: SegmentFile, read: Callable[[SegmentFile], T]) -> T:
        """What `read` finds in a segment; damage is told to the writer."""
        try:
            return read(segment)
        except sqlite3.DatabaseError as error:
            self._open.pop(segment.number, None)
            segment.close()
            if not is_damage(error):
                raise
            with contextlib.suppress(OSError):
                suspect_path(segment.path).touch()
            raise DamagedSegment(segment.path, str(error)) from error

    def _retrying(self, read: Callable[[], T]) -> T:
        """Run again when a segment was purged or sealed while it was read."""
        for _ in range(_RETRIES):
            try:
                return read()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _PASSING:
                    raise
        return read()
