"""What a class at its limit does: block, give up its oldest, take nothing new; and what the books say of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lockgate.buffer import Cursor, Log, LogReader
from lockgate.buffer.ledger import DeliveryBook, read_ledger
from lockgate.buffer.limits import Limits
from lockgate.buffer.missing import DISK_BUDGET, OVER_LIMIT
from lockgate.buffer.segments import State, list_segments, segment_path
from lockgate.config.errors import ConfigError
from lockgate.config.model import ClassConfig
from lockgate.telemetry.clock import Clock, Moment
from tests.support.buffers import SINKS, batch, config

KILOBYTE = b"x" * 899  # with topic `t` and what a row takes besides, 1000 bytes


class TestClock(Clock):
    """A clock that a test moves."""

    __test__ = False

    def __init__(self) -> None:
        super().__init__()
        self.moment = Moment("boot", 10**12, 1_700_000_000 * 10**9, True)

    def now(self) -> Moment:
        return self.moment

    def pass_seconds(self, seconds: float) -> None:
        ns = round(seconds * 1e9)
        self.moment = self.moment._replace(boottime_ns=self.moment.boottime_ns + ns, wall_ns=self.moment.wall_ns + ns)


async def open_limited(
    folder: Path, *limits: ClassConfig, clock: Clock | None = None, limit_bytes: int = 1 << 30, **others: Any
) -> Log:
    settings = replace(config(limit_bytes=limit_bytes), limits=limits, **others)
    return await Log.open(folder, settings, SINKS, clock=clock, maintain_seconds=3600)


def book_of(folder: Path, message_class: str = "telemetry") -> DeliveryBook:
    ledger = read_ledger(folder)
    assert ledger.closes, ledger
    return next(book for book in ledger.deliveries if book.message_class == message_class)


async def drain(cursor: Cursor, reader: LogReader, message_class: str = "telemetry") -> list[int]:
    """Settle as a forwarder does; gives the numbers that were delivered."""
    delivered: list[int] = []
    while True:
        rows = reader.read(message_class, cursor.position(message_class).seq, 37)
        missing = reader.missing(message_class)
        if missing.line > cursor.position(message_class).number:
            await cursor.give_up(message_class, missing)
            continue
        if not rows:
            return delivered
        await cursor.settle(rows, missing=missing)
        delivered += [row.number for row in rows]


async def test_the_oldest_rows_of_a_class_at_its_limit_give_way(tmp_path: Path) -> None:
    log = await open_limited(tmp_path, ClassConfig(name="telemetry", limit_bytes=160_000, when_full="drop-oldest"))
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await log.append(batch(b"fire", message_class="alarm"))
    for _ in range(50):
        await log.append(batch(*[KILOBYTE] * 10))
        assert read_ledger(tmp_path).closes
    assert log.bytes() > 400_000
    await log.maintain()
    book = book_of(tmp_path)
    # The alarm keeps its segment; telemetry behind the line is pending while it is on disk, dropped when it is not.
    assert (book.addressed, book.delivered) == (500, 0)
    assert reader.missing("telemetry").lines[-1].reason == OVER_LIMIT
    line = reader.missing("telemetry").line
    assert 340 <= line <= 350  # 150 to 160 rows fit
    assert await drain(cursor, reader, "alarm") == [1]
    await log.maintain()
    assert list_segments(tmp_path)[0] > 10
    book = book_of(tmp_path)
    assert book.dropped[OVER_LIMIT] + book.pending == 500
    assert await drain(cursor, reader) == list(range(line + 1, 501))
    book = book_of(tmp_path)
    assert (book.delivered, book.dropped, book.pending) == (500 - line, {OVER_LIMIT: line}, 0)
    await cursor.close()
    await log.close()


async def test_rows_on_their_way_below_the_line_end_delivered_and_not_dropped(tmp_path: Path) -> None:
    log = await open_limited(tmp_path, ClassConfig(name="telemetry", limit_bytes=64_000, when_full="drop-oldest"))
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await log.append(batch(*[KILOBYTE] * 10))
    under_way = reader.read("telemetry", 0, 10)
    await log.append(batch(*[KILOBYTE] * 90))
    assert reader.missing("telemetry").line > 30
    await cursor.settle(under_way)
    line = reader.missing("telemetry").line
    await drain(cursor, reader)
    book = book_of(tmp_path)
    assert (book.delivered, book.dropped) == (10 + 100 - line, {OVER_LIMIT: line - 10})
    await cursor.close()
    await log.close()


async def test_a_class_may_refuse_what_is_new(tmp_path: Path) -> None:
    log = await open_limited(tmp_path, ClassConfig(name="telemetry", limit_bytes=64_000, when_full="drop-newest"))
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    for n in range(10):
        assert await log.append(batch(*[KILOBYTE] * 9, b"fire")) == n * 10 + 1
    kept = [row.number for row in reader.read("telemetry", 0, 1000)]
    book = book_of(tmp_path)
    assert (book.addressed, book.pending, book.dropped) == (100, len(kept), {OVER_LIMIT: 100 - len(kept)})
    assert kept[:60] == list(range(1, 61))
    assert await drain(cursor, reader) == kept
    await log.maintain()
    await log.append(batch(b"room again"))
    assert len(await drain(cursor, reader)) == 1
    book = book_of(tmp_path)
    assert (book.delivered, book.dropped) == (len(kept) + 1, {OVER_LIMIT: 100 - len(kept)})
    await log.maintain()
    assert reader.missing("telemetry").holes == ()  # everybody has passed them
    await cursor.close()
    await log.close()


async def test_a_class_that_blocks_waits_for_its_sinks(tmp_path: Path) -> None:
    log = await open_limited(tmp_path, ClassConfig(name="telemetry", limit_bytes=64_000))
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await log.append(batch(*[KILOBYTE] * 64))
    await log.append(batch(b"alarms have room", message_class="alarm"))
    waiting = asyncio.create_task(log.append(batch(b"more")))
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not done
    assert "class telemetry is at its limit (64000 bytes)" in str(log.status()["waiting"])
    await cursor.settle(reader.read("telemetry", 0, 10))
    assert await asyncio.wait_for(waiting, 10) == 66
    await cursor.close()
    await log.close()


async def test_old_rows_expire_by_the_clock_that_does_not_jump(tmp_path: Path) -> None:
    clock = TestClock()
    log = await open_limited(tmp_path, ClassConfig(name="telemetry", keep_seconds=60), clock=clock)
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)

    async def append(*payloads: bytes) -> None:
        appended = batch(*payloads)
        appended.moment = clock.now()
        await log.append(appended)

    await append(b"1", b"2")
    clock.pass_seconds(30)
    await append(b"3")
    clock.moment = clock.moment._replace(wall_ns=0)  # the wall clock jumps
    await log.maintain()
    assert book_of(tmp_path).pending == 3
    clock.pass_seconds(32)
    await log.maintain()
    assert await drain(cursor, reader) == [3]
    book = book_of(tmp_path)
    assert (book.delivered, book.expired, book.dropped) == (1, 2, {})
    await cursor.close()
    await log.close()


async def test_after_a_boot_nothing_expires_before_the_clock_is_right(tmp_path: Path) -> None:
    clock = TestClock()
    log = await open_limited(tmp_path, ClassConfig(name="telemetry", keep_seconds=60), clock=clock)
    reader = LogReader(tmp_path)
    await (await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)).close()
    first = batch(b"1")
    clock.moment = clock.moment._replace(clock_ok=False)
    first.moment = clock.now()._replace(wall_ns=5)
    await log.append(first)
    clock.moment = clock.moment._replace(clock_ok=True)
    await log.maintain()  # the clock of that boot has been set: its rows have a wall time
    assert reader.boots() == {"boot": clock.moment.wall_ns - clock.moment.boottime_ns}
    clock.pass_seconds(3600)
    clock.moment = clock.moment._replace(boot_id="next", boottime_ns=10**10, clock_ok=False)
    await log.maintain()
    assert reader.missing("telemetry").line == 0
    clock.moment = clock.moment._replace(clock_ok=True)
    await log.maintain()
    assert reader.missing("telemetry").line == 1
    assert set(reader.boots()) == {"boot", "next"}
    await log.close()


async def test_at_the_disk_budget_the_class_that_may_gives_way_and_alarms_stay(tmp_path: Path) -> None:
    log = await open_limited(
        tmp_path,
        ClassConfig(name="telemetry", when_full="drop-oldest"),
        segment_bytes=256 * 1024,
        limit_bytes=2_000_000,
    )
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    for n in range(200):
        await asyncio.wait_for(log.append(batch(*[KILOBYTE] * 20)), 10)
        await log.append(batch(b"%d" % n, message_class="alarm"))
    assert log.bytes() < 2_100_000
    assert [row.payload for row in reader.read("alarm", 0, 1000)] == [b"%d" % n for n in range(200)]
    book = book_of(tmp_path)
    assert book.dropped[DISK_BUDGET] > 1000
    delivered = await drain(cursor, reader)
    assert delivered[-1] == 4000
    assert len(await drain(cursor, reader, "alarm")) == 200
    book = book_of(tmp_path)
    assert book.delivered + book.dropped[DISK_BUDGET] == 4000
    await cursor.close()
    await log.close()


async def test_limits_go_on_after_a_restart(tmp_path: Path) -> None:
    limit = ClassConfig(name="telemetry", limit_bytes=64_000, when_full="drop-oldest")
    reader = LogReader(tmp_path)
    log = await open_limited(tmp_path, limit)
    await (await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)).close()
    for _ in range(10):
        await log.append(batch(*[KILOBYTE] * 10))
        before = reader.missing("telemetry").line
        await log.close()
        log = await open_limited(tmp_path, limit)
        assert reader.missing("telemetry").line == before
        await log.maintain()
    assert 36 <= reader.missing("telemetry").line <= 44
    assert read_ledger(tmp_path).closes
    await log.close()


@pytest.mark.parametrize("jumps", [1, 3])
async def test_the_live_lane_leaves_a_history_that_is_drained_behind_it(tmp_path: Path, jumps: int) -> None:
    log = await open_limited(tmp_path)
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    for jump in range(jumps):
        await log.append(batch(*[b"old"] * 20))
        await log.append(batch(*[b"new %d" % jump] * 3))
        rows = reader.newest("telemetry", cursor.position("telemetry").live_seq, 3)
        assert {row.payload for row in rows} == {b"new %d" % jump}
        await cursor.settle(rows[:2], jump=True)
        await cursor.settle(reader.read("telemetry", cursor.position("telemetry").live_seq, 10))
        book = book_of(tmp_path)
        assert (book.delivered, book.pending) == (3 * (jump + 1), 20 * (jump + 1))
    position = cursor.position("telemetry")
    assert (position.seq, len(position.islands), position.settled) == (0, jumps, 3 * jumps)
    await cursor.close()
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    assert cursor.position("telemetry") == position
    for _ in range(jumps):
        until = cursor.position("telemetry").islands[0].first_seq - 1
        rows = reader.read("telemetry", cursor.position("telemetry").seq, 100, until=until)
        assert [row.payload for row in rows] == [b"old"] * 20
        await cursor.settle(rows)
        await cursor.join("telemetry", reader.missing("telemetry"))
    book = book_of(tmp_path)
    assert (book.delivered, book.pending, book.dropped) == (23 * jumps, 0, {})
    assert cursor.position("telemetry").islands == ()
    await cursor.close()
    await log.close()


async def test_a_line_over_islands_drops_only_what_was_not_sent(tmp_path: Path) -> None:
    clock = TestClock()
    log = await open_limited(tmp_path, ClassConfig(name="telemetry", keep_seconds=60), clock=clock)
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    appended = batch(*[b"old"] * 20, *[b"new"] * 5)
    appended.moment = clock.now()
    await log.append(appended)
    await cursor.settle(reader.newest("telemetry", 0, 5)[:3], jump=True)
    clock.pass_seconds(100)
    await log.maintain()
    assert book_of(tmp_path).pending == 22
    await cursor.give_up("telemetry", reader.missing("telemetry"))
    book = book_of(tmp_path)
    assert (book.delivered, book.expired, book.pending) == (3, 22, 0)
    await cursor.close()
    await log.close()


ROLL_UP = (
    "SELECT topic, max(device_time) AS device_ts, sum(payload ->> 'v') AS total, count(*) AS n FROM rows GROUP BY topic"
)


def rolled(sql: str = ROLL_UP) -> ClassConfig:
    return ClassConfig(
        name="telemetry", limit_bytes=64_000, when_full="roll-up", roll_up=sql, roll_up_into="alarm"
    )  # fmt: skip


async def test_old_rows_are_rolled_up_and_the_books_say_so(tmp_path: Path) -> None:
    log = await open_limited(tmp_path, rolled())
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    appended = 0
    for n in range(40):
        await log.append(batch(*(b'{"v": 1, "pad": "%s"}' % (b"x" * 880) for _ in range(10)), topic=f"t{n % 2}"))
        appended += 10
        assert read_ledger(tmp_path).closes
        if n == 20:
            await log.close()
            log = await open_limited(tmp_path, rolled())
    delivered = len(await drain(cursor, reader))
    book = book_of(tmp_path)
    assert (book.delivered + book.rolled_up, book.dropped) == (appended, {})
    assert book.rolled_up > 300
    made = [json.loads(row.payload) for row in reader.read("alarm", 0, 1000)]
    assert sum(one["total"] for one in made) == sum(one["n"] for one in made) == book.rolled_up
    assert 4 < len(made) < 60
    assert {row.topic for row in reader.read("alarm", 0, 1000)} == {"t0", "t1"}
    assert delivered <= 64
    await cursor.close()
    await log.close()


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("SELECT nosuch FROM rows", "no such column: nosuch; there is rows (topic, time, device_time"),
        ("SELECT count(*) AS n FROM rows", "its result has no column `topic`"),
        ("DELETE FROM rows", "not authorized"),
        ("SELEKT", "syntax error"),
    ],
)
async def test_a_roll_up_that_cannot_be_run_is_a_mistake_of_the_configuration(
    tmp_path: Path, sql: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)) as error:
        await open_limited(tmp_path, rolled(sql))
    assert error.value.key == "classes.telemetry.roll_up"


async def test_a_roll_up_that_fails_over_its_rows_drops_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = await open_limited(tmp_path, rolled())
    reader = LogReader(tmp_path)
    cursor = await Cursor.open(tmp_path, "cloud", SINKS["cloud"], reader)
    await log.append(batch(*[b"no JSON" * 120] * 100))
    await drain(cursor, reader)
    book = book_of(tmp_path)
    assert book.dropped[OVER_LIMIT] > 30
    assert book.rolled_up == 0
    assert "the roll-up of class telemetry failed, so its rows are dropped: malformed JSON" in caplog.text
    await cursor.close()
    await log.close()


async def test_rows_gone_from_a_sealed_segment_are_not_counted_as_kept(tmp_path: Path) -> None:
    limit = ClassConfig(name="telemetry", limit_bytes=1 << 20, when_full="drop-oldest")
    log = await open_limited(tmp_path, limit)
    await log.append(batch(*[KILOBYTE] * 80))
    await log.maintain(seal=True)
    await log.append(batch(*[KILOBYTE] * 20))
    await log.close()
    with sqlite3.connect(segment_path(tmp_path, list_segments(tmp_path)[0])) as segment:
        segment.execute("DELETE FROM log WHERE seq <= 60")  # as when it is written anew
    segment.close()
    with contextlib.closing(sqlite3.connect(segment_path(tmp_path, list_segments(tmp_path)[-1]))) as newest:
        state = State.load(newest)
        assert state is not None
        limits = Limits(tmp_path, replace(config(), limits=(limit,)), Clock(), lambda: {"telemetry": 60})
        assert limits.kept(newest, state, "telemetry", look=True) == 40_000
