"""Segments that nobody reads soon lie compressed, and nobody who reads the buffer notices."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lockgate.buffer import Cursor, DamagedSegment, Log, LogReader
from lockgate.buffer import packed as packed_module
from lockgate.buffer.ledger import read_ledger
from lockgate.buffer.missing import DAMAGED
from lockgate.buffer.offline import last_rows, query
from lockgate.buffer.packed import PACKING, UNPACKED, check_packed, segment_file
from lockgate.buffer.segments import list_files, list_segments, packed_path, segment_path
from lockgate.config.errors import ConfigError
from tests.support.buffers import SINKS, batch, open_log

BIG = 3 * 1024 * 1024


async def filled(folder: Path, *, segment_bytes: int = 64 * 1024, rows: int = 700, size: int = 900) -> Log:
    """A log of several segments, the alarms at its beginning alone."""
    log = await open_log(folder, segment_bytes=segment_bytes, compressed=True)
    await log.append(batch(b"fire", message_class="alarm", topic="a"))
    for start in range(0, rows, 50):
        await log.append(batch(*(b"%06d" % n + os.urandom(size // 2).hex().encode() for n in range(start, start + 50))))
        await log.maintain()
    return log


async def pack_all(log: Log) -> None:
    while await log.pack():
        pass


def packed(folder: Path) -> list[int]:
    return [number for number in list_segments(folder) if segment_file(folder, number).suffix == ".zst"]


def read_all(folder: Path, message_class: str = "telemetry") -> list[int]:
    """The numbers in the payloads, read in small batches."""
    found: list[int] = []
    reader = LogReader(folder)
    after = 0
    while rows := reader.read(message_class, after, 37):
        found += [int(row.payload[:6]) for row in rows]
        after = rows[-1].seq
    reader.close()
    return found


async def test_what_nobody_reads_soon_is_compressed_and_reads_as_before(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    plain = {number: segment_path(tmp_path, number).read_bytes() for number in list_segments(tmp_path)[:-1]}
    size = log.bytes()
    await pack_all(log)
    numbers = list_segments(tmp_path)
    assert packed(tmp_path) == numbers[2:-2]  # first: here a sink begins; last: the newest and the last sealed one
    assert len(packed(tmp_path)) > 5
    assert log.bytes() < size
    assert log.status()["compressed"] == len(packed(tmp_path))
    for number in packed(tmp_path):
        with packed_path(segment_path(tmp_path, number)).open("rb") as file:
            reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            assert reader.read() == plain[number]
    assert read_all(tmp_path) == [*range(700)]
    assert not list(tmp_path.glob(f"*{UNPACKED}"))
    with query(tmp_path, "SELECT count(*), sum(class = 'alarm') FROM log") as cursor:
        assert cursor.fetchall() == [(701, 1)]
    assert last_rows(tmp_path, "telemetry", 600) == [*range(102, 702)]
    newest = LogReader(tmp_path)
    assert [int(row.payload[:6]) for row in newest.newest("telemetry", 0, 300)] == [*range(400, 700)]
    assert newest.pending("telemetry", 350) == 351
    newest.close()
    await log.close()


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not installed")
async def test_the_standard_tool_gives_the_sqlite_file_back(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    await pack_all(log)
    file = segment_file(tmp_path, packed(tmp_path)[0])
    subprocess.run(["zstd", "-q", "-d", str(file), "-o", str(tmp_path / "plain.sqlite")], check=True, timeout=30)
    with sqlite3.connect(tmp_path / "plain.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    await log.close()


async def test_a_sink_drains_it_and_it_is_purged_and_the_books_close(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await pack_all(log)
    before = packed(tmp_path)
    assert before
    [book, alarms] = sorted(read_ledger(tmp_path).deliveries, key=lambda book: -book.pending)
    assert (book.pending, alarms.pending) == (700, 1)
    await cursor.settle(reader.read("alarm", 0, 10))
    seen: list[int] = []
    while rows := reader.read("telemetry", cursor.position("telemetry").seq, 90):
        seen += [int(row.payload[:6]) for row in rows]
        await cursor.settle(rows)
        await log.maintain()
        await pack_all(log)
        assert list_segments(tmp_path)[0] not in packed(tmp_path)  # it was made plain before it is needed
        assert read_ledger(tmp_path).closes
    assert seen == [*range(700)]
    assert len(list_segments(tmp_path)) <= 2
    assert not packed(tmp_path)
    assert read_ledger(tmp_path).closes
    await cursor.close()
    reader.close()
    await log.close()


async def test_one_that_others_still_need_is_purged_when_they_are_done(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await pack_all(log)
    rows = reader.read("telemetry", 0, 10_000, limit_bytes=1 << 30)
    await cursor.settle(rows)
    await log.maintain()
    assert list_segments(tmp_path)[0] == 1  # the alarm lies there
    await pack_all(log)
    assert packed(tmp_path)
    await cursor.settle(reader.read("alarm", 0, 10))
    await log.maintain()
    assert not packed(tmp_path)
    assert read_ledger(tmp_path).closes
    await cursor.close()
    reader.close()
    await log.close()


async def test_without_compression_what_is_compressed_is_read_and_made_plain_when_it_is_needed(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    await pack_all(log)
    await log.close()
    for number in (1, 2):  # as if a sink had been there
        segment_path(tmp_path, number).unlink()
    log = await open_log(tmp_path)
    before = packed(tmp_path)
    await pack_all(log)
    assert packed(tmp_path) == before[2:]
    assert read_all(tmp_path)[-600:] == [*range(100, 700)]
    await log.close()


async def test_a_plain_one_beside_it_counts(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    await pack_all(log)
    await log.close()
    number = packed(tmp_path)[0]
    plain = segment_path(tmp_path, number)
    with packed_path(plain).open("rb") as file:
        plain.write_bytes(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read())
    packed_path(plain).write_bytes(b"of another day")
    assert read_all(tmp_path) == [*range(700)]
    log = await open_log(tmp_path, compressed=True)
    assert not packed_path(plain).exists()
    assert read_all(tmp_path) == [*range(700)]
    assert not log.status()["damaged"]
    await log.close()


@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("place", ["head", "frame"])
async def test_damage_costs_a_frame_at_most(tmp_path: Path, place: str, at_start: bool) -> None:
    log = await filled(tmp_path, segment_bytes=BIG, rows=18_000, size=900)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], LogReader(tmp_path))
    await cursor.close()
    await pack_all(log)
    if at_start:
        await log.close()
    file = segment_file(tmp_path, packed(tmp_path)[0])
    content = bytearray(file.read_bytes())
    content[40 if place == "head" else len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    assert check_packed(file) is not None
    if at_start:
        log = await open_log(tmp_path, segment_bytes=BIG, compressed=True)
    else:
        with pytest.raises(DamagedSegment):
            read_all(tmp_path)
        await log.maintain()
    assert len(log.status()["damaged"]) == 1  # type: ignore[arg-type]
    found = read_all(tmp_path)
    assert found == sorted(set(found))
    lost = 18_000 - len(found)
    assert lost == 0 if place == "head" else 0 < lost < 256 * 1024 // 900 + 30
    ledger = read_ledger(tmp_path)
    assert ledger.closes, ledger
    book = next(book for book in ledger.deliveries if book.message_class == "telemetry")
    assert book.dropped.get(DAMAGED, 0) == lost
    assert len(list(tmp_path.glob("segment-*.damaged-*.zst"))) == 1
    await log.close()


async def test_where_the_folder_takes_no_file_it_is_read_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await filled(tmp_path)
    await pack_all(log)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packed_module, "_open_unpacked", full)
    assert read_all(tmp_path) == [*range(700)]
    await log.close()


async def test_a_start_removes_what_kills_left_and_nothing_that_is_used(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    await pack_all(log)
    await log.close()
    left = tmp_path / f"segment-000002.sqlite{PACKING}"
    stale, used = (
        tmp_path / f"segment-000003.sqlite.zst.a{UNPACKED}",
        tmp_path / f"segment-000003.sqlite.zst.b{UNPACKED}",
    )
    for path in (left, stale, used):
        path.write_bytes(b"x")
    with used.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        log = await open_log(tmp_path, compressed=True)
        assert (left.exists(), stale.exists(), used.exists()) == (False, False, True)
        await log.close()


async def test_a_segment_that_is_damaged_is_mended_and_not_compressed(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    path = segment_path(tmp_path, 5)
    content = bytearray(path.read_bytes())
    content[20_000:24_000] = os.urandom(4000)
    path.write_bytes(content)
    while await log.pack():
        pass
    await log.maintain()
    await pack_all(log)
    assert len(log.status()["damaged"]) == 1  # type: ignore[arg-type]
    assert 5 in packed(tmp_path)  # once it was mended
    await log.close()


async def test_without_the_library_it_is_a_mistake_in_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigError, match=r"pip install 'lockgate\[zstd\]'"):
        await open_log(tmp_path, compressed=True)


@pytest.mark.parametrize("opened", [True, False], ids=["opened before", "never opened"])
async def test_a_reader_keeps_up_with_compression_that_is_always_quicker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    log = await filled(tmp_path)
    reader = LogReader(tmp_path)
    if opened:
        assert reader.pending("telemetry", 0) == 700

    def list_and_compress(folder: Path) -> dict[int, str]:
        listed = list_files(folder)
        plain = [name for name in listed.values() if name.endswith(".sqlite")]
        if len(plain) > 1:
            source = folder / min(plain)
            fresh = source.with_name(source.name + PACKING)
            assert packed_module.pack(source, fresh)
            fresh.rename(packed_path(source))
            source.unlink()
        return listed

    monkeypatch.setattr("lockgate.buffer.reader.list_files", list_and_compress)
    rows = reader.read("telemetry", 0, 1000, limit_bytes=1 << 30)
    assert [int(row.payload[:6]) for row in rows] == [*range(700)]
    assert len(packed(tmp_path)) == len(list_segments(tmp_path)) - 1
    reader.close()
    await log.close()
