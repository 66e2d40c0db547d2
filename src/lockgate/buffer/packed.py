"""Sealed segments that lie compressed: `segment-000017.sqlite.zst`, of which `zstd -d` makes the SQLite file again.

Such a file begins with a skippable frame that says what lies in it, so that nobody unpacks it to learn that it is not
needed; then come frames of 256 KiB each, so that damage costs no more than one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import itertools
import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import orjson

from lockgate.buffer.segments import (
    WINDOW_INPUT,
    State,
    is_checkpointed,
    packed_path,
    segment_path,
    suspect_path,
)
from lockgate.config.errors import ConfigError
from lockgate.sqlite import open_readonly
from lockgate.sqlite.database import findings, is_damage

_FRAME_BYTES: Final = 256 * 1024
_LEVEL: Final = 3
_SKIPPABLE: Final = 0x184D2A5C  # one of the magic numbers that decompressors pass over
_HEAD: Final = struct.Struct("<III")  # magic number, length of what follows, its CRC-32
PACKING: Final = ".packing"  # a segment that is being compressed, or made plain again
UNPACKED: Final = ".unpacked"  # one a reader is about to open; then it has no name
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES})
_numbers: Final = itertools.count()
_FRAME_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_LONGEST_SUMMARY: Final = 16 * 1024 * 1024


class Span(NamedTuple):
    """The rows of a class in a segment."""

    rows: int
    first: int  # seq
    last: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What lies in a sealed segment."""

    classes: dict[str, Span]
    window_inputs: dict[str, int]  # by schema: the last seq
    state: State | None  # None where damage took it
    size_bytes: int  # of the SQLite file
    frames: tuple[int, ...] = field(default=())  # their compressed lengths; none for a segment that is not packed

    @property
    def first_seq(self) -> int:
        return min((span.first for span in self.classes.values()), default=0)

    @property
    def last_seq(self) -> int:
        return max((span.last for span in self.classes.values()), default=0)

    def has(self, message_class: str, after: int, until: int) -> bool:
        """Whether rows of the class may lie after one seq and up to another."""
        span = self.classes.get(message_class)
        return span is not None and span.last > after and span.first <= until

    def needed(self, passed: dict[str, int], state: State) -> bool:
        """Whether a sink or a rule has yet to read a row of it."""
        if any(self.has(name, seq, self.last_seq) for name, seq in passed.items()):
            return True
        return any(self.window_inputs.get(one.schema, 0) > one.needed for one in state.rule_cursors.values())


class DamagedPack(sqlite3.DatabaseError):
    """A compressed segment cannot be unpacked; for all who ask it is like a damaged database."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class _NoLibrary(OSError):
    """Segments are compressed, and nothing here can unpack them."""

    def __init__(self) -> None:
        super().__init__("compressed segments need a library: pip install 'lockgate[zstd]'")


def check_library() -> None:
    """Raise ConfigError where segments are to be compressed and cannot be."""
    try:
        _zstandard()
    except _NoLibrary:
        problem = "zstd needs a library"
        raise ConfigError(problem, key="buffer.compression", accepted="pip install 'lockgate[zstd]'") from None


def _zstandard() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        raise _NoLibrary from None


def segment_file(folder: Path, number: int) -> Path:
    """Where a segment lies now; the plain file counts where both are there, for the other one is older or not whole."""
    plain = segment_path(folder, number)
    packed = packed_path(plain)
    return packed if not plain.exists() and packed.exists() else plain


def open_sealed(folder: Path, number: int) -> sqlite3.Connection:
    """Open a segment for reading, unpacked for this connection alone if it is compressed."""
    path = segment_path(folder, number)
    try:
        path.stat()
    except FileNotFoundError:
        if packed_path(path).exists():
            return open_packed(packed_path(path))
    return open_readonly(path, immutable=is_checkpointed(path))


def open_packed(path: Path) -> sqlite3.Connection:
    """Unpack a segment into a file that has no name any more; into memory where the folder takes none.

    Raises DamagedPack, and FileNotFoundError where it was purged meanwhile.
    """
    try:
        return _open_unpacked(path)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
    content = bytearray()
    for piece in _pieces(path):
        content += piece
    content[18:20] = b"\1\1"  # no write-ahead log: there is none in memory
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.deserialize(content)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _open_unpacked(path: Path) -> sqlite3.Connection:
    name = path.with_name(f"{path.name}.{os.getpid()}-{next(_numbers)}{UNPACKED}")
    with name.open("xb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # until then `clean` leaves it alone
            unpack(path, file)
            file.flush()
            connection = open_readonly(name, immutable=True)
            try:
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # now it is open
            except BaseException:
                connection.close()
                raise
            return connection
        finally:
            name.unlink(missing_ok=True)


def clean(folder: Path) -> None:
    """Remove what a kill left: files that were being made, and a compressed segment beside the plain one."""
    for path in folder.glob(f"segment-*{PACKING}"):
        path.unlink()
    for path in folder.glob(f"segment-*{UNPACKED}"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a reader that lives has it
            path.unlink()
    for path in folder.glob("segment-*.sqlite.zst"):
        if path.with_suffix("").exists():
            path.unlink()


def summary_of(connection: sqlite3.Connection, size_bytes: int) -> Summary:
    """Look what lies in an open segment."""
    spans = connection.execute("SELECT class, count(*), min(seq), max(seq) FROM log GROUP BY class").fetchall()
    inputs = "SELECT schema, max(seq) FROM log WHERE class = ? GROUP BY schema"
    return Summary(
        classes={name: Span(*span) for name, *span in spans},
        window_inputs=dict(connection.execute(inputs, (WINDOW_INPUT,)).fetchall()),
        state=State.load(connection),
        size_bytes=size_bytes,
    )


def read_summary(path: Path) -> Summary:
    """What a compressed segment says of itself. Raises DamagedPack, FileNotFoundError."""
    with path.open("rb") as file:
        return _read_summary(file)


def pack(source: Path, target: Path, stop: Callable[[], bool] = lambda: False) -> bool:
    """Compress a segment that nobody writes into a new file, sync it, and read it back; False where that was not done.

    A source that is damaged is left for the writer to mend. Raises OSError, sqlite3.Error.
    """
    compressor = _zstandard().ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
    size = source.stat().st_size
    with contextlib.closing(open_readonly(source, immutable=True)) as connection:
        try:
            if next(findings(connection, 1, thorough=False), None) is not None:
                suspect_path(source).touch()
                return False
            summary = summary_of(connection, size)
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                suspect_path(source).touch()
            raise
    count = -(-size // _FRAME_BYTES)
    room = len(_head(summary, [10 * _FRAME_BYTES] * count))
    with source.open("rb") as plain, target.open("wb") as packed:
        packed.write(bytes(room))
        frames = []
        while piece := plain.read(_FRAME_BYTES):
            if stop():
                return False
            frames.append(packed.write(compressor.compress(piece)))
        packed.seek(0)
        packed.write(_head(summary, frames, room))
        packed.flush()
        os.fsync(packed.fileno())
        plain.seek(0)
        for piece in _pieces(target):  # what is deleted next has to be in it
            if stop():
                return False
            if piece != plain.read(_FRAME_BYTES):
                raise DamagedPack(f"{target.name} is not what was to be in it")
        if plain.read(1):
            raise DamagedPack(f"{target.name} is shorter than what was to be in it")
    return True


def _head(summary: Summary, frames: Sequence[int], room: int = 0) -> bytes:
    """The skippable frame, with blanks behind its JSON up to `room` bytes."""
    said = {
        "classes": {name: list(span) for name, span in summary.classes.items()},
        "window_inputs": summary.window_inputs,
        "state": summary.state.body() if summary.state is not None else None,
        "size_bytes": summary.size_bytes,
        "frames": frames,
    }
    text = orjson.dumps(said).ljust(room - _HEAD.size)
    return _HEAD.pack(_SKIPPABLE, len(text) + 4, zlib.crc32(text)) + text


def unpack(path: Path, into: IO[bytes], *, mending: bool = False) -> list[str]:
    """Write the SQLite file that a compressed segment holds; where `mending`, zeros for frames that cannot be read.

    Gives what was wrong. Raises DamagedPack unless `mending`.
    """
    wrong: list[str] = []
    for piece in _pieces(path, wrong if mending else None):
        into.write(piece)
    return wrong


def check_packed(path: Path) -> str | None:
    """The first thing wrong with a compressed segment."""
    try:
        for _ in _pieces(path):
            pass
    except DamagedPack as error:
        return str(error)
    return None


def _read_summary(file: IO[bytes]) -> Summary:
    try:
        magic, length, crc = _HEAD.unpack(file.read(_HEAD.size))
        text = file.read(length - 4) if magic == _SKIPPABLE and 4 <= length <= _LONGEST_SUMMARY else b""
        if zlib.crc32(text) != crc or not text:
            raise DamagedPack("its head is damaged")
        said = orjson.loads(text)
        return Summary(
            classes={name: Span(*span) for name, span in said["classes"].items()},
            window_inputs=said["window_inputs"],
            state=State.of(said["state"]) if said["state"] is not None else None,
            size_bytes=said["size_bytes"],
            frames=tuple(said["frames"]),
        )
    except (struct.error, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DamagedPack(f"its head is damaged: {error}") from error


def _pieces(path: Path, wrong: list[str] | None = None) -> Iterator[bytes]:
    """The SQLite file, a frame at a time; with `wrong`, zeros for frames that cannot be read, which are told there."""
    zstandard = _zstandard()
    decompressor = zstandard.ZstdDecompressor()
    with path.open("rb") as file:
        try:
            summary = _read_summary(file)
        except DamagedPack as error:
            if wrong is None:
                raise
            wrong.append(str(error))
            yield from _without_head(path.read_bytes(), decompressor, zstandard.ZstdError)
            return
        left = summary.size_bytes
        for place, length in enumerate(summary.frames):
            expected = min(left, _FRAME_BYTES)
            left -= expected
            frame = file.read(length)
            try:
                piece: bytes = decompressor.decompress(frame, max_output_size=_FRAME_BYTES)
                if len(piece) != expected:
                    raise DamagedPack(f"frame {place} is cut short")
            except (zstandard.ZstdError, DamagedPack) as error:
                if wrong is None:
                    raise DamagedPack(f"frame {place}: {error}") from error
                wrong.append(f"frame {place}: {error}")
                piece = bytes(expected)
            yield piece
        if left:
            raise DamagedPack("frames are missing")


def _without_head(content: bytes, decompressor: Any, failure: type[Exception]) -> Iterator[bytes]:
    """The frames of a file that does not say any more where they lie."""
    start = content.find(_FRAME_MAGIC)
    while start >= 0:
        following = content.find(_FRAME_MAGIC, start + 1)
        try:
            one = decompressor.decompressobj()
            yield one.decompress(content[start:])
            following = len(content) - len(one.unused_data) if one.unused_data else -1
        except failure:
            yield bytes(_FRAME_BYTES)
        start = following
