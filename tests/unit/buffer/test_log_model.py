"""The log agrees with a plain list under any order of events."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate.buffer import Cursor, Log, LogReader
from lockgate.buffer.ledger import read_ledger
from lockgate.buffer.segments import list_segments
from tests.support.buffers import SINKS, batch, open_log

CLASSES = SINKS["cloud"]
KILLED: list[object] = []
EVENTS = st.one_of(
    st.tuples(st.just("append"), st.sampled_from(CLASSES), st.lists(st.integers(0, 9000), max_size=8)),
    st.tuples(st.just("read"), st.sampled_from(CLASSES), st.integers(0, 30)),
    st.tuples(st.just("settle"), st.sampled_from(CLASSES), st.integers(1, 12)),
    st.tuples(st.sampled_from(["purge", "seal", "pack", "reopen", "kill", "new reader"]), st.none(), st.none()),
)


async def kill(log: Log) -> None:
    """Leave as a killed process does: no close and no checkpoint; only the lock goes with the process.

    A thread cannot be killed, and a rotation it still did would be a second writer's: what was begun is waited for.
    `tests/faults` kills real processes in the middle of it.
    """
    assert log._maintenance is not None
    log._maintenance.cancel()
    await asyncio.wrap_future(log._writer.between(lambda _connection: None))
    KILLED.append(log._writer._connection)  # closing it would checkpoint
    log._lock.release()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=40), st.booleans())
def test_the_log_agrees_with_a_list(events: list[tuple[str, str, object]], compressed: bool) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        asyncio.run(play(folder, events, compressed))
    finally:
        shutil.rmtree(folder)


async def play(folder: Path, events: list[tuple[str, str, object]], compressed: bool) -> None:
    model: dict[str, list[tuple[int, bytes]]] = {message_class: [] for message_class in CLASSES}
    next_seq = 1
    settled = dict.fromkeys(CLASSES, 0)  # position
    log = await open_log(folder, segment_bytes=49152, compressed=compressed)
    reader = LogReader(folder)
    cursor = await Cursor.open(folder, "cloud", CLASSES, reader)
    for name, message_class, argument in events:
        match name, argument:
            case "append", list():
                payloads = [b"%d " % n + b"x" * n for n in argument]
                first = await log.append(batch(*payloads, message_class=message_class))
                assert first == next_seq
                model[message_class] += [(first + n, payload) for n, payload in enumerate(payloads)]
                next_seq += len(payloads)
            case "read", int():
                after = max(argument, settled[message_class])  # what all have passed may be gone
                expected = [row for row in model[message_class] if row[0] > after]
                rows = reader.read(message_class, after, 1000)
                assert [(row.seq, row.payload) for row in rows] == expected
                assert reader.pending(message_class, after) == len(expected)
            case "settle", int():
                rows = reader.read(message_class, settled[message_class], argument)
                if rows:
                    await cursor.settle(rows)
                    settled[message_class] = rows[-1].seq
            case "purge", _:
                await log.maintain()
            case "seal", _:
                await log.maintain(seal=True)
            case "pack", _:
                while await log.pack():
                    pass
            case "reopen", _:
                await log.close()
                log = await open_log(folder, segment_bytes=49152, compressed=compressed)
            case "kill", _:
                await kill(log)
                log = await open_log(folder, segment_bytes=49152, compressed=compressed)
            case "new reader", _:
                reader.close()
                reader = LogReader(folder)
        ledger = read_ledger(folder)
        assert ledger.closes
        assert log.state.next_seq == next_seq
        assert {book.message_class: book.pending for book in ledger.deliveries} == {
            c: sum(seq > settled[c] for seq, _ in model[c]) for c in CLASSES
        }
    for message_class in CLASSES:
        while rows := reader.read(message_class, cursor.position(message_class).seq, 100):
            await cursor.settle(rows)
    await log.maintain()
    assert len(list_segments(folder)) == 1
    reader.close()
    await cursor.close()
    await log.close()
