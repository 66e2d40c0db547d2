"""Appending, rotating, purging and mending the log."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lockgate.buffer import Cursor, DamagedSegment, Log, LogReader, PacketRecord, Quarantined, RuleCursor
from lockgate.buffer.ledger import read_ledger
from lockgate.buffer.segments import list_files, list_segments, segment_path
from lockgate.sqlite import CommitFailed, FolderInUse
from tests.support.buffers import SINKS, batch, config, open_log

KILOBYTE = b"x" * 1000


async def settle_all(folder: Path, reader: LogReader, classes: tuple[str, ...] = SINKS["cloud"]) -> None:
    cursor = await Cursor.open(folder, "cloud", classes, reader)
    for message_class in classes:
        while rows := reader.read(message_class, cursor.position(message_class).seq, 1000):
            await cursor.settle(rows)
    await cursor.close()


def overwrite_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xa5" * 8192)


async def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    appended = batch(b"one", b"two", topic="a/b", schema="temperature")
    assert await log.append(appended) == 1
    assert await log.append(batch(b"fire", message_class="alarm")) == 3
    reader = LogReader(tmp_path)
    one, two = reader.read("telemetry", 0, 10)
    assert (one.seq, one.number, one.payload, one.topic, one.schema) == (1, 1, b"one", "a/b", "temperature")
    assert (one.boot_id, one.boottime_ns, one.wall_ns, one.clock_ok) == appended.moment
    assert (two.seq, two.number, two.payload, two.device_ts) == (2, 2, b"two", None)
    assert [row.seq for row in reader.read("alarm", 0, 10)] == [3]
    assert reader.read("telemetry", 2, 10) == []
    assert reader.pending("telemetry", 1) == 1
    assert reader.last_seq() == 3
    await log.close()


async def test_seq_goes_on_over_rotation_and_restart(tmp_path: Path) -> None:
    expected: list[bytes] = []
    for _ in range(3):
        log = await open_log(tmp_path)
        for _ in range(5):
            payloads = [b"%d" % (len(expected) + n) + KILOBYTE for n in range(30)]
            expected += payloads
            await log.append(batch(*payloads))
        await log.close()
    assert len(list_segments(tmp_path)) > 2
    reader = LogReader(tmp_path)
    rows = reader.read("telemetry", 0, 10_000)
    assert [row.payload for row in rows] == expected
    assert [row.seq for row in rows] == [row.number for row in rows] == list(range(1, len(expected) + 1))
    assert reader.read("telemetry", 0, 10_000, limit_bytes=2100) == rows[:2]
    assert reader.pending("telemetry", 7) == len(expected) - 7


async def test_sealed_segments_are_plain_files(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    for _ in range(4):
        await log.append(batch(*[KILOBYTE] * 100))
    await log.maintain()
    assert {p.name for p in tmp_path.glob("segment-*") if "000004" not in p.name and "000005" not in p.name} == {
        "segment-000001.sqlite",
        "segment-000002.sqlite",
        "segment-000003.sqlite",
    }
    await log.close()


async def test_the_state_moves_to_the_next_segment_and_over_a_restart(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    first = batch(*[KILOBYTE] * 100)
    first.packets = {1: PacketRecord(1, b"digest-a"), 65_535: PacketRecord(2, b"digest-b")}
    first.rule_cursors = {"mean": RuleCursor("s", 5), "old": RuleCursor("s", 4)}
    first.arrivals = 100
    first.quarantined = [Quarantined("t", "s", "not JSON", "line 1", b"{")]
    await log.append(first)
    second = batch(b"")
    second.packets = {1: PacketRecord(3, b"digest-c")}
    second.forget_rules = ["old"]
    await log.append(second)
    await log.close()
    assert list_segments(tmp_path) == [1, 2]

    log = await open_log(tmp_path)
    assert log.packets.get(1) == PacketRecord(3, b"digest-c")
    assert log.packets.get(65_535) == PacketRecord(2, b"digest-b")
    assert log.state.rule_cursors == {"mean": RuleCursor("s", 5)}
    assert log.state.arrivals == 100
    assert log.state.intake == {"received": {"": 101}, "logged": {"": 101}}
    lost = batch()
    lost.session_lost = True
    lost.packets = {9: PacketRecord(4, b"digest-d")}
    await log.append(lost)
    assert log.packets.get(9) == PacketRecord(4, b"digest-d")
    assert log.packets.get(1) is None
    await log.close()
    log = await open_log(tmp_path)
    assert log.packets.get(9) == PacketRecord(4, b"digest-d")
    assert log.packets.get(1) is None
    await log.close()
    with sqlite3.connect(segment_path(tmp_path, 2)) as connection:
        assert connection.execute("SELECT reason, payload FROM quarantine").fetchall() == [("not JSON", b"{")]


async def test_the_quarantine_keeps_the_newest_and_counts_the_others(tmp_path: Path) -> None:
    limits = replace(config(), quarantine_messages=3, quarantine_bytes=100)
    log = await Log.open(tmp_path, limits, SINKS)
    refused = batch()
    refused.quarantined = [Quarantined("t", "s", "r", f"{n}", b"p" * 40) for n in range(4)]
    await log.append(refused)
    refused.quarantined = [Quarantined("t", "s", "r", "long", b"p" * 101)]
    await log.append(refused)
    assert log.state.quarantine_dropped == 2
    assert log.status()["quarantine_dropped"] == 2
    await log.close()
    with sqlite3.connect(segment_path(tmp_path, 1)) as connection:
        kept = connection.execute("SELECT detail, length(payload) FROM quarantine ORDER BY id").fetchall()
    assert kept == [("2", 40), ("3", 40), ("long; payload of 101 bytes not kept", 0)]


async def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    with pytest.raises(FolderInUse):
        await open_log(tmp_path)
    await log.append(batch(b"still mine"))
    await log.close()


async def test_purge_removes_what_every_sink_has_passed(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    for _ in range(3):
        await log.append(batch(*[KILOBYTE] * 100))
    await log.append(batch(b"last"))
    await log.maintain()
    assert list_segments(tmp_path) == [1, 2, 3, 4]
    assert "'cloud' is missing" in str(log.status()["purge_blocked"])
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await cursor.settle(reader.read("telemetry", 0, 150))
    await log.maintain()
    assert list_segments(tmp_path) == [2, 3, 4]
    assert log.status()["purge_blocked"] is None
    other = await Cursor.open(tmp_path, "gone-from-the-configuration", ("telemetry",), reader)
    await cursor.settle(reader.read("telemetry", 150, 1000))
    await log.maintain()
    assert list_segments(tmp_path) == [2, 3, 4]
    await other.settle(reader.read("telemetry", 0, 1000))
    await log.maintain()
    assert list_segments(tmp_path) == [4]
    assert [row.seq for row in reader.read("telemetry", 0, 10)] == [301]
    assert read_ledger(tmp_path).closes
    for closing in (cursor, other, log):
        await closing.close()


@pytest.mark.parametrize("opened", [True, False], ids=["opened before", "never opened"])
async def test_a_reader_keeps_up_with_a_purge_that_is_always_quicker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    log = await open_log(tmp_path)
    for _ in range(20):
        await log.append(batch(*[KILOBYTE] * 100))
    await log.append(batch(b"last"))
    reader = LogReader(tmp_path)
    if opened:
        assert reader.pending("telemetry", 0) == 2001

    def list_and_purge(folder: Path) -> dict[int, str]:
        listed = list_files(folder)
        if len(listed) > 1:
            segment_path(folder, min(listed)).unlink()
        return listed

    monkeypatch.setattr("lockgate.buffer.reader.list_files", list_and_purge)
    assert [row.seq for row in reader.read("telemetry", 0, 10)] == [2001]
    assert list_segments(tmp_path) == [21]
    reader.close()
    await log.close()


async def test_a_segment_that_is_a_dead_link_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    await log.append(batch(b"row"))
    segment_path(tmp_path, 2).symlink_to(tmp_path / "nowhere")
    reader = LogReader(tmp_path)
    with pytest.raises(FileNotFoundError, match="segment-000002"):
        reader.read("telemetry", 0, 10)
    segment_path(tmp_path, 2).unlink()
    assert [row.payload for row in reader.read("telemetry", 0, 10)] == [b"row"]
    reader.close()
    await log.close()


async def test_an_unreadable_cursor_blocks_purge(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    await log.append(batch(*[KILOBYTE] * 100))
    await log.append(batch(b"last"))
    reader = LogReader(tmp_path)
    await settle_all(tmp_path, reader)
    (tmp_path / "cursor-cloud.sqlite").write_bytes(b"\xa5" * 8192)
    await log.maintain()
    assert list_segments(tmp_path) == [1, 2]
    assert "unreadable" in str(log.status()["purge_blocked"])
    assert not read_ledger(tmp_path).closes
    await settle_all(tmp_path, reader)  # the forwarder mends it at its start, and sends again what it no longer knows
    await log.maintain()
    assert list_segments(tmp_path) == [2]
    await log.close()


async def test_purge_waits_for_window_rules(tmp_path: Path) -> None:
    log = await open_log(tmp_path, sinks={})
    inputs = batch(*[KILOBYTE] * 100, message_class="window-input")
    inputs.rule_cursors = {"mean": RuleCursor("s", 0)}
    await log.append(inputs)
    await log.append(batch(b"x"))
    await log.maintain()
    assert list_segments(tmp_path) == [1, 2]
    passed = batch()
    passed.rule_cursors = {"mean": RuleCursor("s", 100)}
    await log.append(passed)
    await log.maintain()
    assert list_segments(tmp_path) == [2]
    await log.close()


async def test_at_its_limit_append_waits_until_purge_makes_room(tmp_path: Path) -> None:
    log = await open_log(tmp_path, segment_bytes=32 * 1024, limit_bytes=256 * 1024)
    written = 0
    while log.bytes() < 256 * 1024:
        await log.append(batch(*[KILOBYTE] * 20))
        written += 20
    waiting = asyncio.create_task(log.append(batch(b"more")))
    done, _ = await asyncio.wait({waiting}, timeout=0.7)
    assert not done
    assert "full" in str(log.status()["waiting"])
    reader = LogReader(tmp_path)
    assert reader.pending("telemetry", 0) == written
    await settle_all(tmp_path, reader)
    assert await asyncio.wait_for(waiting, 10) == written + 1
    assert log.status()["waiting"] is None
    assert [row.payload for row in reader.read("telemetry", written, 10)] == [b"more"]
    await log.close()


async def test_a_limit_below_one_segment_does_not_lock_up(tmp_path: Path) -> None:
    log = await open_log(tmp_path, segment_bytes=1024 * 1024, limit_bytes=200 * 1024)
    while log.bytes() < 200 * 1024:
        await log.append(batch(*[KILOBYTE] * 20))
    reader = LogReader(tmp_path)
    await settle_all(tmp_path, reader)
    await asyncio.wait_for(log.append(batch(b"more")), 10)
    await log.close()


async def test_a_failing_commit_is_tried_again_and_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await open_log(tmp_path)
    await log.append(batch(b"before"))
    real = log._write
    failures = iter([sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR])

    def write(*arguments: Any) -> None:
        real(*arguments)
        if (code := next(failures, None)) is not None:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = code
            raise error

    monkeypatch.setattr(log, "_write", write)
    assert await log.append(batch(b"kept", b"kept too")) == 2
    assert [row.payload for row in LogReader(tmp_path).read("telemetry", 0, 10)] == [b"before", b"kept", b"kept too"]
    assert log.state.intake["received"] == {"": 3}
    await log.close()


async def test_an_append_that_landed_although_its_commit_failed_is_not_repeated(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    landed = log._writer.submit(lambda c: log._append(c, batch(b"once"), "token")).result(10)
    again = log._writer.submit(lambda c: log._append(c, batch(b"once"), "token")).result(10)
    assert landed[0] == again[0] == 1
    assert LogReader(tmp_path).pending("telemetry", 0) == 1
    await log.close()


async def test_a_damaged_sealed_segment_costs_its_damaged_rows_only(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    for n in range(4):
        await log.append(batch(*[b"%d " % n + KILOBYTE] * 100))
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await cursor.settle(reader.read("telemetry", 0, 90))
    other = LogReader(tmp_path)
    other.segments()
    overwrite_middle(segment_path(tmp_path, 2))
    reader.close()
    with pytest.raises(DamagedSegment):
        reader.read("telemetry", 100, 100)
    assert not other.segments()[1].stale(segment_path(tmp_path, 2).name, 99)
    await log.maintain()
    assert log.status()["damaged"]
    assert other.segments()[1].inode == segment_path(tmp_path, 2).stat().st_ino
    book = next(b for b in read_ledger(tmp_path).deliveries if b.message_class == "telemetry")
    lost = book.dropped["damaged"]
    assert 0 < lost < 50
    assert book.closes
    assert book.pending == 310 - lost
    delivered = 90
    while rows := reader.read("telemetry", cursor.position("telemetry").seq, 37):
        await cursor.settle(rows)
        delivered += len(rows)
        assert read_ledger(tmp_path).closes
    book = next(b for b in read_ledger(tmp_path).deliveries if b.message_class == "telemetry")
    assert (book.addressed, book.delivered, book.pending) == (400, delivered, 0)
    assert book.dropped == {"damaged": lost}
    await cursor.close()
    await log.close()


async def test_a_newest_segment_found_damaged_by_a_reader_is_mended_while_it_is_written(tmp_path: Path) -> None:
    log = await open_log(tmp_path, segment_bytes=1024 * 1024)
    await log.append(batch(*[KILOBYTE] * 300))
    await log._writer.write(lambda c: None)
    await asyncio.wrap_future(log._writer.between(lambda c: c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()))
    await (await Cursor.open(tmp_path, "cloud", SINKS["cloud"], LogReader(tmp_path))).close()
    overwrite_middle(segment_path(tmp_path, 1))
    reader = LogReader(tmp_path)
    with pytest.raises(DamagedSegment):
        reader.read("telemetry", 0, 1000)
    await log.maintain()
    kept = len(reader.read("telemetry", 0, 1000))
    assert 200 < kept < 300
    assert await log.append(batch(b"after")) == 301
    assert reader.read("telemetry", 300, 10)[0].payload == b"after"
    ledger = read_ledger(tmp_path)
    assert ledger.closes
    assert ledger.deliveries[1].dropped == {"damaged": 300 - kept}
    await log.close()


async def test_damage_is_found_at_start_and_the_newest_segment_goes_on(tmp_path: Path) -> None:
    log = await open_log(tmp_path, segment_bytes=1024 * 1024)
    await log.append(batch(*[KILOBYTE] * 200))
    await log.close()
    reader = LogReader(tmp_path)
    await (await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)).close()
    reader.close()
    overwrite_middle(segment_path(tmp_path, 1))
    log = await open_log(tmp_path)
    assert log.state.next_seq == 201
    assert await log.append(batch(b"after")) == 201
    ledger = read_ledger(tmp_path)
    assert ledger.closes
    assert ledger.deliveries[1].dropped["damaged"] == 201 - ledger.deliveries[1].pending > 0
    await log.close()


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("interrupted", [False, True])
async def test_seq_is_never_given_out_twice_even_if_the_newest_segment_is_lost(
    tmp_path: Path, segments: int, interrupted: bool
) -> None:
    log = await open_log(tmp_path)
    for _ in range(segments - 1):
        await log.append(batch(*[KILOBYTE] * 100))
    await log.append(batch(*[b"small"] * 200))
    highest = log.state.next_seq - 1
    await log.close()
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    if segments == 3:
        await cursor.settle(reader.read("telemetry", 0, 250))
    await cursor.close()
    reader.close()
    path = segment_path(tmp_path, segments)
    path.write_bytes(b"\xa5" * path.stat().st_size)
    if interrupted:
        path.rename(path.with_name(path.name + ".salvaging-20200101T000000Z"))
    log = await open_log(tmp_path)
    assert await log.append(batch(b"after")) > highest
    ledger = read_ledger(tmp_path)
    assert ledger.intake.closes
    assert ledger.closes
    await log.close()


async def test_a_log_that_is_behind_its_sinks_goes_on_after_them(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    for _ in range(3):
        await log.append(batch(*[KILOBYTE] * 100))
    await log.close()
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await cursor.settle(reader.read("telemetry", 0, 250))
    await cursor.close()
    for number in list_segments(tmp_path)[1:]:
        segment_path(tmp_path, number).unlink()
    log = await open_log(tmp_path)
    assert await log.append(batch(b"after")) == 251
    book = read_ledger(tmp_path).deliveries[1]
    assert (book.addressed, book.delivered, book.pending, book.closes) == (251, 250, 1, True)
    await log.close()


async def test_a_reader_goes_on_while_the_writer_rotates_and_purges(tmp_path: Path) -> None:
    log = await open_log(tmp_path, segment_bytes=32 * 1024)
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    read: list[int] = []
    for _ in range(20):
        await log.append(batch(*[KILOBYTE] * 25))
        for rows in (reader.read("telemetry", cursor.position("telemetry").seq, 20),):
            read += [row.seq for row in rows]
            await cursor.settle(rows)
        await log.maintain()
        assert read_ledger(tmp_path).closes
        segments = reader.segments()
        assert all(segment.immutable for segment in segments[:-1])
    while rows := reader.read("telemetry", cursor.position("telemetry").seq, 100):
        read += [row.seq for row in rows]
        await cursor.settle(rows)
    assert read == list(range(1, 501))
    await log.maintain()
    assert len(list_segments(tmp_path)) <= 2
    await cursor.close()
    await log.close()


async def test_a_purge_that_cannot_be_is_told_when_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lockgate.buffer.log")
    log = await open_log(tmp_path)
    await log.append(batch(b"x"))
    await log.maintain()
    await log.maintain()
    assert "'cloud' is missing" in str(log.status()["purge_blocked"])
    assert not caplog.messages  # a forwarder that starts a moment later is no news
    monkeypatch.setattr("lockgate.buffer.log._BLOCKED_SECONDS", 0.0)
    for _ in range(2):
        await log.maintain()
    await settle_all(tmp_path, LogReader(tmp_path))
    await log.maintain()
    await log.close()
    assert caplog.messages == [
        "nothing is purged from the buffer: the cursor of sink 'cloud' is missing or unreadable",
        "the buffer can be purged again",
    ]


async def test_a_log_that_is_behind_the_live_lane_of_a_sink_goes_on_after_it(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    await log.append(batch(*[KILOBYTE] * 100))
    await log.append(batch(*[b"newer"] * 10))
    await log.close()
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await cursor.settle(reader.newest("telemetry", 0, 5), jump=True)
    live = cursor.position("telemetry").live_seq
    assert (live, cursor.position("telemetry").seq) == (110, 0)
    await cursor.close()
    reader.close()
    segment_path(tmp_path, list_segments(tmp_path)[-1]).unlink()
    log = await open_log(tmp_path)
    seq = await log.append(batch(b"must be seen"))
    reader = LogReader(tmp_path)
    [row] = reader.read("telemetry", live, 10)
    assert (row.seq, row.payload) == (seq, b"must be seen")
    assert row.number > 110
    await log.close()


@pytest.mark.parametrize("makes_room", [True, False])
async def test_a_full_disk_is_not_tried_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makes_room: bool
) -> None:
    log = await open_log(tmp_path)
    tries = 0
    reported = asyncio.Event()

    async def full(work: Any) -> Any:
        nonlocal tries
        tries += 1
        reported.set()
        await asyncio.sleep(0)
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise CommitFailed("disk full") from error

    pauses: list[float] = []
    enough = asyncio.Event()
    real_sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        if len(pauses) >= 3 or tries > 50:
            enough.set()
        await real_sleep(0)

    monkeypatch.setattr(log._writer, "write", full)
    monkeypatch.setattr("lockgate.buffer.log.asyncio.sleep", note)
    append = asyncio.create_task(log.append(batch(b"one"), makes_room=makes_room))
    async with asyncio.timeout(10):
        await enough.wait()
    append.cancel()
    monkeypatch.undo()
    await asyncio.wait([append])
    assert tries <= len(pauses) + 1
    await log.close()
