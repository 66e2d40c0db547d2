"""Under any order of events every row of a limited class has one outcome, and the books know which."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate.buffer import Cursor, Log, LogReader
from lockgate.buffer.ledger import read_ledger
from lockgate.config.model import BufferConfig, ClassConfig
from tests.support.buffers import SINKS, batch
from tests.unit.buffer.test_limits import TestClock
from tests.unit.buffer.test_log_model import kill

CLASSES = SINKS["cloud"]
LIMIT = 64 * 1024
EVENTS = st.one_of(
    st.tuples(st.just("append"), st.sampled_from(CLASSES), st.lists(st.integers(0, 9000), max_size=8)),
    st.tuples(st.just("history"), st.sampled_from(CLASSES), st.integers(1, 12)),
    st.tuples(st.just("live"), st.sampled_from(CLASSES), st.integers(1, 12)),
    st.tuples(st.just("jump"), st.sampled_from(CLASSES), st.integers(1, 12)),
    st.tuples(st.just("time"), st.none(), st.integers(1, 40)),
    st.tuples(st.sampled_from(["purge", "seal", "pack", "room", "reopen", "kill"]), st.none(), st.none()),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(EVENTS, max_size=40),
    st.sampled_from(["drop-oldest", "drop-newest", "roll-up"]),
    st.sampled_from([None, 60.0]),
    st.sampled_from(["none", "zstd"]),
)
def test_every_row_has_one_outcome(
    events: list[tuple[str, str, object]], policy: str, keep: float | None, compression: Literal["none", "zstd"]
) -> None:
    folder = Path(tempfile.mkdtemp())
    limit = ClassConfig(
        name="telemetry", limit_bytes=LIMIT, keep_seconds=keep, when_full=policy,  # type: ignore[arg-type]
        roll_up="SELECT topic, count(*) AS n FROM rows GROUP BY topic" if policy == "roll-up" else "",
        roll_up_into="history",
    )  # fmt: skip
    try:
        config = BufferConfig(
            segment_bytes=49152, limit_bytes=1 << 30, limits=(limit,), compression=compression
        )  # fmt: skip
        asyncio.run(play(folder, events, config))
    finally:
        shutil.rmtree(folder)


async def play(folder: Path, events: list[tuple[str, str, object]], config: BufferConfig) -> None:
    clock = TestClock()

    async def open_log() -> Log:
        return await Log.open(folder, config, SINKS, clock=clock, maintain_seconds=3600)

    log = await open_log()
    reader = LogReader(folder)
    cursor = await Cursor.open(folder, "cloud", CLASSES, reader)
    appended = dict.fromkeys(CLASSES, 0)
    delivered: dict[str, list[int]] = {message_class: [] for message_class in CLASSES}
    for name, message_class, argument in events:
        match name, argument:
            case "append", list():
                one = batch(*(b"x" * n for n in argument), message_class=message_class)
                one.moment = clock.now()
                await log.append(one)
                appended[message_class] += len(argument)
            case "history" | "live" | "jump", int():
                delivered[message_class] += await deliver(cursor, reader, message_class, name, argument)
            case "time", int():
                clock.pass_seconds(argument)
            case "purge", _:
                await log.maintain()
            case "seal", _:
                await log.maintain(seal=True)
            case "pack", _:
                while await log.pack():
                    pass
            case "room", _:
                await asyncio.wrap_future(log._writer.between(log._make_room))
            case "reopen", _:
                await log.close()
                log = await open_log()
            case "kill", _:
                await kill(log)
                log = await open_log()
        ledger = read_ledger(folder)
        assert ledger.closes, ledger
        for book in ledger.deliveries:
            assert book.addressed == appended[book.message_class]
            assert book.delivered == len(delivered[book.message_class])
    for message_class in CLASSES:
        while got := await deliver(cursor, reader, message_class, "history", 100):
            delivered[message_class] += got
        assert len(set(delivered[message_class])) == len(delivered[message_class])  # none twice
        assert cursor.position(message_class).islands == ()
    ledger = read_ledger(folder)
    assert ledger.closes
    for book in ledger.deliveries:
        gone = sum(book.dropped.values()) + book.expired + book.rolled_up
        assert (book.pending, book.delivered + gone) == (0, appended[book.message_class])
    assert ledger.deliveries[0].message_class == "alarm"
    assert ledger.deliveries[0].delivered == appended["alarm"]  # nothing limits it
    reader.close()
    await cursor.close()
    await log.close()


async def deliver(cursor: Cursor, reader: LogReader, message_class: str, lane: str, limit: int) -> list[int]:
    """One batch of a lane; gives the numbers of its rows."""
    while True:
        position = cursor.position(message_class)
        if lane == "jump":
            rows = reader.newest(message_class, position.live_seq, limit)
        elif lane == "live":
            rows = reader.read(message_class, position.live_seq, limit)
        else:
            until = position.islands[0].first_seq - 1 if position.islands else (1 << 63) - 1
            rows = reader.read(message_class, position.seq, limit, until=until)
        missing = reader.missing(message_class)
        if missing.line > position.number:
            await cursor.give_up(message_class, missing)
        elif not rows and lane == "history" and position.islands:
            await cursor.join(message_class, missing)
        else:
            break
    if rows:
        await cursor.settle(rows, missing=missing, jump=lane == "jump")
    return [row.number for row in rows]
