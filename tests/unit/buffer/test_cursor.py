"""A sink's cursor: positions and counts that cannot disagree, and the books made from them."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest

from lockgate.buffer import Cursor, LogReader
from lockgate.buffer import cursor as cursors
from lockgate.buffer.ledger import DeliveryBook, IntakeBook, read_ledger
from lockgate.buffer.segments import list_segments
from lockgate.sqlite import FolderInUse
from tests.support.buffers import SINKS, batch, open_log


async def test_settling_moves_and_counts_in_one_step_and_survives_a_restart(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    await log.append(batch(*[b"p"] * 10))
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    rows = reader.read("telemetry", 0, 6)
    await cursor.settle(rows, dead_letters={2: ("gw/2", "400 bad")}, dropped={3: "too large"}, retried=2)
    await cursor.count_retries("telemetry", 3)
    await cursor.close()
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    position = cursor.position("telemetry")
    assert (position.seq, position.delivered, position.dead_lettered, position.dropped) == (6, 4, 1, {"too large": 1})
    assert position.retried == 5
    with pytest.raises(ValueError, match="follow the cursor"):
        await cursor.settle(rows)
    await cursor.close()
    with sqlite3.connect(tmp_path / "cursor-cloud.sqlite") as connection:
        letters = connection.execute("SELECT seq, id, class, topic, reason, payload FROM dead_letters").fetchall()
    assert letters == [(2, "gw/2", "telemetry", "t", "400 bad", b"p")]
    assert read_ledger(tmp_path).deliveries == (
        DeliveryBook("cloud", "alarm"),
        DeliveryBook(
            "cloud",
            "telemetry",
            addressed=10,
            delivered=4,
            pending=4,
            dropped={"too large": 1},
            dead_lettered=1,
            retried=5,
        ),
    )
    await log.close()


async def test_dead_letters_are_bounded_and_all_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursors, "DEAD_LETTERS_KEPT", 3)
    monkeypatch.setattr(cursors, "DEAD_LETTER_BYTES_KEPT", 25)
    log = await open_log(tmp_path)
    await log.append(batch(*[b"0123456789"] * 4, *[b"x"] * 5))
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    kept = []
    for until in (4, 9):
        rows = reader.read("telemetry", cursor.position("telemetry").seq, until)
        await cursor.settle(
            rows[:until], dead_letters={row.seq: (f"gw/{row.seq}", "no") for row in rows if row.seq <= until}
        )
        with sqlite3.connect(tmp_path / "cursor-cloud.sqlite") as connection:
            kept.append([seq for (seq,) in connection.execute("SELECT seq FROM dead_letters ORDER BY seq")])
    assert kept == [[3, 4], [7, 8, 9]]
    assert cursor.position("telemetry").dead_lettered == 9
    await cursor.close()
    await log.close()


async def test_a_new_sink_begins_at_the_oldest_row_kept(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    reader = LogReader(tmp_path)
    first = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await log.append(batch(*[b"x" * 1000] * 100))
    await log.append(batch(b"kept", b"kept"))
    await first.settle(reader.read("telemetry", 0, 1000))
    await log.maintain()
    second = await Cursor.open(tmp_path, "new", ("telemetry", "alarm"), reader)
    assert second.position("telemetry").seq == 100
    assert second.position("alarm").seq == 0
    book = read_ledger(tmp_path).deliveries[-1]
    assert (book.sink, book.addressed, book.pending, book.closes) == ("new", 2, 2, True)
    for closing in (first, second, log):
        await closing.close()


async def test_the_books_are_made_up_while_nothing_runs(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "nowhere").closes
    log = await open_log(tmp_path)
    await log.append(batch(b"1", b"2"))
    await log.close()
    ledger = read_ledger(tmp_path)
    assert ledger.intake == IntakeBook(received=2, logged=2)
    assert ledger.deliveries == ()
    assert ledger.closes


def test_a_book_that_does_not_close_says_by_how_much() -> None:
    intake = IntakeBook(received=10, logged=4, refused={"a": 1}, quarantined={"b": 1}, filtered={"c": 1}, duplicate=1)
    assert (intake.closes, intake.difference) == (False, 2)
    book = DeliveryBook("s", "c", addressed=10, delivered=4, pending=3, dropped={"x": 1}, dead_lettered=3)
    assert (book.closes, book.difference) == (False, -1)


async def test_the_books_close_at_every_moment_of_a_busy_buffer(tmp_path: Path) -> None:
    log = await open_log(tmp_path, segment_bytes=48 * 1024)
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    writing = True

    async def write() -> None:
        nonlocal writing
        try:
            for n in range(150):
                await log.append(batch(*[b"x" * 700] * 9, message_class=SINKS["cloud"][n % 2]))
                if n % 10 == 0:
                    await log.maintain()
        finally:
            writing = False

    async def settle() -> None:
        while writing:
            for message_class in SINKS["cloud"]:
                if rows := reader.read(message_class, cursor.position(message_class).seq, 20):
                    await cursor.settle(rows, dropped={rows[0].seq: "because"})
            await asyncio.sleep(0.001)  # nobody is to be starved of the interpreter

    def look() -> int:
        looks = 0
        while writing:
            ledger = read_ledger(tmp_path)
            assert ledger.closes, ledger
            looks += 1
            time.sleep(0.001)
        return looks

    looks, _, _ = await asyncio.gather(asyncio.to_thread(look), write(), settle())
    assert looks > 5
    assert list_segments(tmp_path)[0] > 1  # it was purged meanwhile
    reader.close()
    await cursor.close()
    await log.close()


async def test_a_lost_row_the_writer_does_not_know_of_shows_in_the_book(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    await log.append(batch(*[b"p"] * 10))
    reader = LogReader(tmp_path)
    await (await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)).close()
    await log.close()
    with sqlite3.connect(tmp_path / "segment-000001.sqlite") as connection:
        connection.execute("DELETE FROM log WHERE seq = 5")
    book = read_ledger(tmp_path).deliveries[1]
    assert (book.closes, book.difference) == (False, 1)


async def test_a_second_forwarder_does_not_move_the_same_cursor(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    reader = LogReader(tmp_path)
    first = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    with pytest.raises(FolderInUse, match="one writer at a time"):
        await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await first.close()
    second = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await second.close()
    reader.close()
    await log.close()
