"""Reading the log while another process writes, rotates and purges it."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from lockgate.buffer.missing import NOTHING_MISSING, Missing, load_missing
from lockgate.buffer.packed import DamagedPack, open_packed, read_summary
from lockgate.buffer.rows import Kept, LastValue, Quarantined, Row
from lockgate.buffer.segments import LOG_COLUMNS, State, is_checkpointed, list_files, segment_path, suspect_path
from lockgate.sqlite import open_readonly
from lockgate.sqlite.database import is_damage

log = logging.getLogger(__name__)

T = TypeVar("T")

_PASSING: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR})  # primary codes
_RETRIES = 5
_MOST_UNPACKED: Final = 2
_CACHE_KIB: Final = 128  # for each open segment; rows are read once, in order, and the kernel keeps the pages anyway
ENDLESS: Final = (1 << 63) - 1  # after every seq


class DamagedSegment(OSError):
    """A segment cannot be read. The writer has been told and will save what it can; try again later."""

    def __init__(self, path: Path, finding: str) -> None:
        super().__init__(f"{path.name} is damaged ({finding}); the processor saves what can be read of it")
        self.path = path


class SegmentFile:
    """One open segment."""

    def __init__(self, folder: Path, number: int, name: str, sealed: bool) -> None:
        self.number = number
        self.path = segment_path(folder, number)
        self.name = name
        self.file = folder / name
        self.inode = self.file.stat().st_ino
        self._packed = read_summary(self.file) if self.file != self.path else None
        self.immutable = self._packed is not None or (sealed and is_checkpointed(self.path))
        self._connection: sqlite3.Connection | None = None
        self._last_seq: int | None = None
        self._counts: dict[str, int] = {}
        if self._packed is None:
            self._connect()

    @property
    def connection(self) -> sqlite3.Connection:
        """Unpacks a segment that lies compressed."""
        return self._connection if self._connection is not None else self._connect()

    @property
    def is_unpacked(self) -> bool:
        return self._packed is not None and self._connection is not None

    def _connect(self) -> sqlite3.Connection:
        if self._packed is None:
            self._connection = open_readonly(self.path, immutable=self.immutable)
        else:
            self._connection = open_packed(self.file)
        self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return self._connection

    def may_have(self, message_class: str, after: int, until: int = ENDLESS) -> bool:
        """Whether it is worth a look for rows of the class after a seq, up to another one."""
        if self._packed is not None:
            return self._packed.has(message_class, after, until)
        return self.last_seq() > after

    def last_seq(self) -> int:
        """The last row's, 0 without rows."""
        if self._packed is not None:
            return self._packed.last_seq
        if self._last_seq is not None:
            return self._last_seq
        last: int = self.connection.execute("SELECT coalesce(max(seq), 0) FROM log").fetchone()[0]
        if self.immutable:
            self._last_seq = last
        return last

    def first_seq(self) -> int:
        if self._packed is not None:
            return self._packed.first_seq
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
        if self._packed is not None:
            span = self._packed.classes.get(message_class)
            if span is None or not self._packed.has(message_class, after, until):
                return 0
            if after < span.first and span.last <= until:
                return span.rows
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

    def stale(self, name: str, newest: int) -> bool:
        """Replaced by its salvage, or sealed or compressed since it was opened.

        Raises FileNotFoundError where it was purged.
        """
        if name != self.name or self.file.stat().st_ino != self.inode:
            return True
        return not self.immutable and self.number != newest and is_checkpointed(self.path)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


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
        self._unpacked: list[SegmentFile] = []  # the one used last at the end

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
        files = self._files()
        while True:
            try:
                return self._opened(files)
            except (FileNotFoundError, sqlite3.OperationalError):
                listed, files = files, self._files()
                if listed.items() <= files.items():
                    raise  # it was neither purged nor compressed meanwhile

    def _files(self) -> dict[int, str]:
        try:
            return list_files(self._folder)
        except FileNotFoundError:
            return {}

    def _opened(self, files: dict[int, str]) -> list[SegmentFile]:
        for gone in self._open.keys() - files.keys():
            self._open.pop(gone).close()
        numbers = sorted(files)
        for number in numbers:
            segment = self._open.get(number)
            if segment is not None and segment.stale(files[number], numbers[-1]):
                self._open.pop(number).close()
                segment = None
            if segment is None:
                self._open[number] = self._open_file(number, files[number], number != numbers[-1])
        return [self._open[number] for number in numbers]

    def _open_file(self, number: int, name: str, sealed: bool) -> SegmentFile:
        try:
            return SegmentFile(self._folder, number, name, sealed)
        except DamagedPack as error:
            raise self._tell(segment_path(self._folder, number), error) from error

    def close(self) -> None:
        for segment in self._open.values():
            segment.close()
        self._open.clear()

    def _read(self, message_class: str, after: int, limit: int, limit_bytes: int, until: int) -> list[Row]:
        rows = _Rows(limit, limit_bytes)
        for segment in self.segments():
            if not self.of(segment, lambda s: s.may_have(message_class, after, until)):
                continue
            if self.of(segment, lambda s: rows.take(s.rows(message_class, after, rows.left, until))):
                break
        return rows.taken

    def _newest(self, message_class: str, after: int, limit: int, limit_bytes: int) -> list[Row]:
        rows = _Rows(limit, limit_bytes)
        for segment in reversed(self.segments()):
            if 0 < self.of(segment, SegmentFile.last_seq) <= after:  # the newest may have no rows yet
                break
            if not self.of(segment, lambda s: s.may_have(message_class, after)):
                continue
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
            found = read(segment)
            if segment.is_unpacked:
                self._note_unpacked(segment)
            return found
        except sqlite3.DatabaseError as error:
            self._open.pop(segment.number, None)
            segment.close()
            if not is_damage(error):
                raise
            raise self._tell(segment.path, error) from error

    def _tell(self, path: Path, error: Exception) -> DamagedSegment:
        """Leave a mark for the writer."""
        with contextlib.suppress(OSError):
            suspect_path(path).touch()
        return DamagedSegment(path, str(error))

    def _note_unpacked(self, segment: SegmentFile) -> None:
        """Each takes the room of a whole segment: only those used last stay."""
        self._unpacked = [one for one in self._unpacked if one is not segment and one.is_unpacked]
        self._unpacked.append(segment)
        while len(self._unpacked) > _MOST_UNPACKED:
            self._unpacked.pop(0).close()

    def _retrying(self, read: Callable[[], T]) -> T:
        """Run again when a segment was purged or sealed while it was read."""
        for _ in range(_RETRIES):
            try:
                return read()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _PASSING:
                    raise
        return read()
