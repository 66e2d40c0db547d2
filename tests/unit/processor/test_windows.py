"""Windows of every kind: what they give, when, and that restarts, boots and clocks change nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from lockgate.buffer import Batch, Log, Row
from lockgate.config.errors import ConfigError
from lockgate.config.model import BufferConfig, RuleConfig, SchemaConfig
from lockgate.processor.rules import Rules
from lockgate.processor.schemas import Schemas
from tests.support.processor import BROKEN, HOT, SCHEMA, SECOND, Gateway, Publish, ScriptedClock, reading

VALUES = "SELECT group_concat(CAST(value AS INTEGER), ' ') AS v FROM (SELECT value FROM temperature ORDER BY value)"
STAMPED = SchemaConfig(name="stamped", topics=("stamped/#",), fields=(("value", "integer"), ("ts", "real")))


def window(name: str = "w", sql: str = VALUES, **shape: Any) -> RuleConfig:
    keys: dict[str, Any] = {"schema": "temperature"} | shape
    return RuleConfig(name=name, sql=sql, message_class="telemetry", topic="w", **keys)


def stamped(**shape: Any) -> RuleConfig:
    sql = (
        "SELECT group_concat(value, ' ') AS v, :window_end / 1000 AS e FROM (SELECT value FROM stamped ORDER BY value)"
    )
    return window(sql=sql, schema="stamped", time="ts", **shape)


def at(value: int, ts: float) -> Publish:
    return Publish(orjson.dumps({"value": value, "ts": ts}), topic="stamped/x")


def values(gateway: Gateway) -> list[str]:
    return [orjson.loads(row.payload)["v"] for row in gateway.rows("telemetry")]


async def test_a_hopping_window_sees_the_messages_of_the_last_keep(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [window(every_seconds=10, keep_seconds=30)])
    async with gateway.running() as runner:
        for value in range(1, 5):
            await runner.process([reading(value)])
            gateway.clock.boottime_ns += 10 * SECOND
        await runner.close_windows()
        assert values(gateway) == ["1", "1 2", "1 2 3", "2 3 4"]
        for _ in range(4):
            gateway.clock.boottime_ns += 10 * SECOND
            await runner.close_windows()
        assert values(gateway)[4:] == ["3 4", "4"]
        assert runner.seconds_to_window_end() is None


async def test_a_window_shorter_than_its_period_is_a_sample(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [window(every_seconds=10, keep_seconds=2)])
    async with gateway.running() as runner:
        await runner.process([reading(1)])
        gateway.clock.boottime_ns += 9 * SECOND
        await runner.process([reading(2)])
        gateway.clock.boottime_ns += SECOND
        await runner.close_windows()
    assert values(gateway) == ["2"]


async def test_a_sliding_window_runs_at_each_message(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [window(keep_seconds=10)])
    async with gateway.running() as runner:
        await runner.process([reading(1), reading(2)])
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.process([reading(3)])
        gateway.clock.boottime_ns += SECOND
        await runner.process([reading(4)])
    assert values(gateway) == ["1", "1 2", "1 2 3", "3 4"]


async def test_a_session_ends_when_nothing_came_for_the_gap(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [window(gap_seconds=5)])
    async with gateway.running() as runner:
        for value in (1, 2, 3):
            await runner.process([reading(value)])
            gateway.clock.boottime_ns += 4 * SECOND
        assert values(gateway) == []
        assert runner.seconds_to_window_end() == 1.0
        gateway.clock.boottime_ns += SECOND
        await runner.close_windows()
        assert values(gateway) == ["1 2 3"]
        assert runner.seconds_to_window_end() is None
        await runner.process([reading(4)])
        gateway.clock.boottime_ns += 6 * SECOND
        await runner.process([reading(5)])
        assert values(gateway) == ["1 2 3", "4"]


async def test_a_session_without_end_is_cut_at_its_greatest_length(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [window(gap_seconds=5, keep_seconds=10)])
    async with gateway.running() as runner:
        for value in range(6):
            await runner.process([reading(value)])
            gateway.clock.boottime_ns += 4 * SECOND
    assert values(gateway) == ["0 1 2"]


async def test_a_count_window_takes_so_many_messages(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [window(count=3)])
    async with gateway.running() as runner:
        await runner.process([reading(value) for value in range(1, 9)])
        await runner.process([reading(9)])
    assert values(gateway) == ["1 2 3", "4 5 6", "7 8 9"]


async def test_rules_of_one_table_do_not_see_each_others_frames(tmp_path: Path) -> None:
    gateway = Gateway(
        tmp_path, [window("a", every_seconds=10), window("b", count=2), window("c", every_seconds=10, keep_seconds=20)]
    )
    async with gateway.running() as runner:
        await runner.process([reading(value) for value in (1, 2, 3)])
        assert values(gateway) == ["1 2"]
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.process([reading(4)])
        assert values(gateway) == ["1 2", "1 2 3", "1 2 3", "3 4"]
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.close_windows()
        assert values(gateway)[4:] == ["4", "1 2 3 4"]


# --- by a field -----------------------------------------------------------------------------------------------------


async def test_by_a_field_messages_go_where_their_time_says(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [stamped(every_seconds=10, lateness_seconds=5)], schemas=(STAMPED,))
    async with gateway.running() as runner:
        await runner.process([at(1, 1000), at(3, 1012), at(2, 1009)])
        assert values(gateway) == []
        await runner.process([at(4, 1015)])
        assert values(gateway) == ["1 2"]
        assert orjson.loads(gateway.rows("telemetry")[0].payload)["e"] == 1010
        await runner.process([at(5, 1003), at(6, 1010), at(7, 1030)])
        assert values(gateway) == ["1 2", "3 4 6"]
        assert runner.status()["w"]["late"] == 1  # type: ignore[index]
        assert runner.seconds_to_window_end() == 15.0
        gateway.clock.boottime_ns += 15 * SECOND
        await runner.close_windows()  # nobody said anything for so long: the last window ends too
        assert values(gateway) == ["1 2", "3 4 6", "7"]
        assert runner.seconds_to_window_end() is None
    assert gateway.intake().logged == 7


async def test_late_messages_can_be_kept_aside(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [stamped(every_seconds=10, late="quarantine")], schemas=(STAMPED,))
    async with gateway.running() as runner:
        await runner.process([at(1, 1000)])
        await runner.process([at(2, 1020)])
        await runner.process([at(3, 1001)])
    async with gateway.running():
        pass
    kept = gateway.reader.segments()[-1].connection.execute("SELECT reason, payload FROM quarantine").fetchall()
    assert kept == [("rule w: late", b'{"value":3,"ts":1001}')]


async def test_a_device_whose_clock_is_ahead_does_not_make_the_others_late(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [stamped(every_seconds=10)], schemas=(STAMPED,))
    now = gateway.clock.now().wall_ns // SECOND
    async with gateway.running() as runner:
        await runner.process([at(1, now), at(2, now + 86400)])
        await runner.process([at(3, now + 1)])
        await runner.process([at(4, now + 10)])
    assert values(gateway) == ["1 3"]


async def test_sessions_by_a_field_are_told_apart_in_any_order(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [stamped(gap_seconds=5, lateness_seconds=30)], schemas=(STAMPED,))
    async with gateway.running() as runner:
        await runner.process([at(1, 1000), at(4, 1020), at(2, 1003), at(5, 1023), at(3, 1007)])
        await runner.process([at(6, 1070)])
    assert values(gateway) == ["1 2 3", "4 5"]


# --- restarts, boots, clocks ----------------------------------------------------------------------------------------

SHAPES: list[dict[str, Any]] = [
    {"every_seconds": 10},
    {"every_seconds": 10, "keep_seconds": 25},
    {"keep_seconds": 10},
    {"gap_seconds": 3},
    {"count": 4},
    {"every_seconds": 10, "time": "ts", "lateness_seconds": 4},
    {"gap_seconds": 3, "time": "ts", "lateness_seconds": 4},
    {"keep_seconds": 10, "time": "ts", "lateness_seconds": 4},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
async def test_restarts_change_nothing(tmp_path: Path, shape: dict[str, Any]) -> None:
    """The same messages with and without restarts between them, and with clocks that jump, give the same."""
    schema = SchemaConfig(name="temperature", topics=("t",), fields=(("value", "real"), ("ts", "integer")))
    rows: list[list[Row]] = []
    for restarts, jumps in ((0.0, False), (0.3, False), (0.3, True)):
        chance = random.Random(5)
        gateway = Gateway(tmp_path / f"{restarts}-{jumps}", [window(**shape)], schemas=(schema,))
        unlucky = random.Random(6)
        running = gateway.running()
        runner = await running.__aenter__()
        for value in range(60):
            ts = gateway.clock.boottime_ns // 1_000_000 + chance.randrange(-5000, 1)
            await runner.process([Publish(orjson.dumps({"value": value, "ts": ts}), topic="t")])
            gateway.clock.boottime_ns += chance.choice([0, 1, 1, 2, 7]) * SECOND
            if unlucky.random() < restarts:
                await running.__aexit__(None, None, None)
                running = gateway.running()
                runner = await running.__aenter__()
            if jumps:
                gateway.clock.wall_jump_ns = unlucky.randrange(-(10**6), 10**6) * SECOND
            await runner.close_windows()
        gateway.clock.boottime_ns += 100 * SECOND
        await runner.close_windows()
        await running.__aexit__(None, None, None)
        rows.append(gateway.rows("telemetry"))
    assert len(rows[0]) > 5
    first, *others = [[row.payload for row in some] for some in rows]
    assert all(other == first for other in others)


async def test_a_hopping_window_reaches_back_over_a_boot_if_the_clocks_were_good(tmp_path: Path) -> None:
    for known in (True, False):
        gateway = Gateway(tmp_path / str(known), [window(every_seconds=10, keep_seconds=30)])
        async with gateway.running() as runner:
            await runner.process([reading(1)])
        gateway.clock = ScriptedClock("boot-2", boottime_s=5, wall_jump_s=1005, clock_ok=known)  # ten seconds later
        async with gateway.running() as runner:
            await runner.process([reading(2)])
            gateway.clock.boottime_ns += 5 * SECOND
            await runner.close_windows()
        assert values(gateway) == ["1", "1 2" if known else "2"]


async def test_a_session_goes_on_over_a_boot_if_the_clocks_were_good(tmp_path: Path) -> None:
    for known, expected in ((True, ["1 2"]), (False, ["1", "2"])):
        gateway = Gateway(tmp_path / str(known), [window(gap_seconds=60)])
        async with gateway.running() as runner:
            await runner.process([reading(1)])
        gateway.clock = ScriptedClock("boot-2", boottime_s=5, wall_jump_s=1005, clock_ok=known)
        async with gateway.running() as runner:
            await runner.process([reading(2)])
            gateway.clock.boottime_ns += 60 * SECOND
            await runner.close_windows()
        assert values(gateway) == expected


async def test_what_a_window_needs_is_not_purged_and_nothing_else_is_kept(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [window(every_seconds=10, keep_seconds=30)])
    async with gateway.running() as runner:
        for value in range(10):
            await runner.process([reading(value)])
            gateway.clock.boottime_ns += 10 * SECOND
        await runner.process([reading(10)])
        cursor = gateway.reader.state().rule_cursors["w"]
        kept = gateway.reader.read("window-input", cursor.needed, 100)
        assert [orjson.loads(row.payload)["value"] for row in kept] == [8, 9, 10]


async def test_a_window_that_fills_the_buffer_ends_and_lets_the_next_messages_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: asyncio.Queue[str] = asyncio.Queue()
    last = ["room"]
    room = Log.room

    async def noted_room(self: Log) -> str | None:
        reason = await room(self)
        now = "room" if reason is None else "full"
        if now != last[-1]:
            last.append(now)
            changes.put_nowait(now)
        return reason

    made: list[int] = []  # what is in the log alone may be purged: no sink wants it
    append = Log.append

    async def noted_append(self: Log, batch: Batch, **how: bool) -> int:
        first_seq = await append(self, batch, **how)
        made.extend(orjson.loads(e.payload)["v"] for e in batch.entries if e.message_class == "telemetry")
        return first_seq

    monkeypatch.setattr(Log, "append", noted_append)
    monkeypatch.setattr(Log, "room", noted_room)
    monkeypatch.setattr("lockgate.processor.runner.FULL_POLL_SECONDS", 0.01)
    count = window(sql="SELECT count(*) AS v FROM temperature", every_seconds=10)
    gateway = Gateway(tmp_path, [count], buffer=BufferConfig(segment_bytes=65536, limit_bytes=300_000))
    async with gateway.running() as runner:

        async def fill() -> None:
            while True:
                await runner.process([reading(value) for value in range(200)])

        filling = asyncio.create_task(fill())
        async with asyncio.timeout(40):
            for closed in range(2):
                assert await changes.get() == "full"
                assert len(made) == closed
                gateway.clock.boottime_ns += 10 * SECOND
                assert await changes.get() == "room"
            assert await changes.get() == "full"
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
        logged = gateway.intake().logged
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.close_windows()
    assert len(made) == 3
    assert sum(made) == logged


async def test_messages_are_kept_for_backtests_as_long_as_the_schema_says(tmp_path: Path) -> None:
    schema = dataclasses.replace(SCHEMA, keep_seconds=100.0)
    gateway = Gateway(tmp_path, [HOT], schemas=[schema])

    def kept() -> list[float]:
        cursor = gateway.reader.state().rule_cursors["#temperature"]
        rows = gateway.reader.read("window-input", cursor.needed, 100)
        return [orjson.loads(row.payload)["value"] for row in rows]

    for value in range(6):
        async with gateway.running() as runner:
            await runner.process([reading(value)])
            gateway.clock.boottime_ns += 40 * SECOND
            await runner.close_windows()
            await runner.process([reading(value + 0.5)])
    assert kept() == [2.5, 3, 3.5, 4, 4.5, 5, 5.5]  # as of the last start, a look a minute
    assert gateway.intake().logged == 12
    gateway.config = dataclasses.replace(gateway.config, schemas=(SCHEMA,))
    async with gateway.running():
        assert gateway.reader.state().rule_cursors == {}


async def test_what_is_kept_for_backtests_gives_way_when_the_buffer_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockgate.processor.runner.FULL_POLL_SECONDS", 0.001)
    schema = dataclasses.replace(SCHEMA, keep_seconds=1e6)
    limits = BufferConfig(segment_bytes=65536, limit_bytes=300_000)
    gateway = Gateway(tmp_path, [HOT], schemas=[schema], buffer=limits)
    async with gateway.running() as runner:
        async with asyncio.timeout(40):
            for _ in range(30):
                await runner.process([reading(value % 90) for value in range(200)])
    assert gateway.intake().logged == 6000
    assert gateway.reader.state().rule_cursors["#temperature"].needed > 3000


async def test_a_rule_with_another_window_begins_anew_and_one_with_another_select_goes_on(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [window("a", count=3), window("b", count=3)])
    async with gateway.running() as runner:
        await runner.process([reading(1), reading(2)])
    gateway.set_rules([window("a", count=2), window("b", sql="SELECT sum(value) AS v FROM temperature", count=3)])
    async with gateway.running() as runner:
        await runner.process([reading(3), reading(4)])
    assert values(gateway) == ["3 4", 6.0]


@pytest.mark.parametrize(
    ("shape", "key", "problem"),
    [
        ({"every_seconds": 0.0}, "every", "needs a length"),
        ({"every_seconds": 1.0, "gap_seconds": 1.0}, "gap", "another kind"),
        ({"count": 5, "keep_seconds": 5.0}, "keep", "no length"),
        ({"every_seconds": 0.1, "keep_seconds": 86400.0}, "keep", "10000 windows"),
        ({"keep_seconds": 1e10}, "keep", "nothing is held"),
        ({"every_seconds": float("inf")}, "every", "nothing is held"),
        ({"every_seconds": 1.0, "lateness_seconds": 1.0}, "lateness", "only by a field"),
        ({"time": "ts"}, "time", "without a window"),
        ({"count": 5, "time": "ts"}, "time", "order"),
        ({"every_seconds": 1.0, "time": "unit"}, "time", "'unit' is no field with a number"),
        ({"every_seconds": 1.0, "time": "other"}, "time", "'other' is optional"),
    ],
)
def test_windows_that_make_no_sense_are_named(shape: dict[str, Any], key: str, problem: str) -> None:
    fields = (("value", "real"), ("ts", "integer"), ("other", "integer"), ("unit", "text"))
    schema = SchemaConfig(name="temperature", topics=("t",), fields=fields, optional=frozenset({"other"}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=problem) as caught:
        Rules([window(**shape)], Schemas([schema]), ["telemetry"])
    assert caught.value.key == f"rules.w.{key}"
    assert caught.value.accepted


async def test_a_time_beyond_all_times_is_kept_aside_and_stops_nobody(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [stamped(every_seconds=10, late="quarantine")], schemas=(STAMPED,))
    async with gateway.running() as runner:
        await runner.process([at(1, 1e300), at(2, -1e308), at(3, 1e10), at(4, 100), at(5, 111)])
    async with gateway.running():
        assert values(gateway) == ["4"]
    details = [kept.message.detail for kept in gateway.reader.quarantine()]
    assert details == [
        "seq 1: ts = 1e+300 is no time",
        "seq 2: ts = -1e+308 is no time",
        "seq 3: ts = 10000000000.0 is no time",
    ]


@pytest.mark.parametrize("known", [True, False])
async def test_a_count_window_goes_on_over_a_boot_whatever_the_clocks_say(tmp_path: Path, known: bool) -> None:
    """Beside another one, which has to begin anew where the clocks were not good."""
    rules = [window(count=4), window("s", sql="SELECT count(*) AS n FROM temperature", keep_seconds=100)]
    gateway = Gateway(tmp_path, rules)
    async with gateway.running() as runner:
        await runner.process([reading(1), reading(2), reading(3)])
    for boot, value in (("boot-2", 4), ("boot-3", 5)):
        gateway.clock = ScriptedClock(boot, boottime_s=5, wall_jump_s=1005, clock_ok=known)
        async with gateway.running() as runner:
            await runner.process([reading(value), reading(value + 10)])
    async with gateway.running() as runner:
        await runner.process([reading(7)])
    said = [orjson.loads(row.payload) for row in gateway.rows("telemetry")]
    assert [one["v"] for one in said if "v" in one] == ["1 2 3 4", "5 7 14 15"]
    again = [1, 2, 3, 4, 5, 6, 7, 8] if known else [1, 2, 3, 1, 2, 1, 2, 3]
    assert [one["n"] for one in said if "n" in one] == again


async def test_a_window_is_filled_again_though_another_one_needs_older_messages(tmp_path: Path) -> None:
    """More of them than are read in one go."""
    counted = "SELECT 'n' || count(*) AS v FROM temperature"
    rules = [window("long", every_seconds=1000), window("short", sql=counted, keep_seconds=15)]
    gateway = Gateway(tmp_path, rules)
    async with gateway.running() as runner:
        messages = [reading(1)] * 1100
        while messages:
            del messages[: await runner.process(messages)]
        gateway.clock.boottime_ns += 100 * SECOND
        await runner.process([reading(2), reading(3)])
    async with gateway.running() as runner:
        await runner.process([reading(4)])
    assert values(gateway)[1100:] == ["n1", "n2", "n3"]


async def test_a_sliding_window_never_shows_what_was_late(tmp_path: Path) -> None:
    """Neither at once nor after a restart, and another one with more lateness has it."""
    rules = [
        stamped(keep_seconds=100, late="quarantine"),
        dataclasses.replace(stamped(keep_seconds=100, lateness_seconds=60), name="patient", topic="p"),
    ]
    gateway = Gateway(tmp_path, rules, schemas=(STAMPED,))
    async with gateway.running() as runner:
        await runner.process([at(1, 1000), at(2, 950)])
        await runner.process([at(3, 1001)])
    async with gateway.running() as runner:
        await runner.process([at(4, 1002)])
    said = [(row.topic, orjson.loads(row.payload)["v"]) for row in gateway.rows("telemetry")]
    assert [v for topic, v in said if topic == "w"] == ["1", "1 3", "1 3 4"]
    assert [v for topic, v in said if topic == "p"] == ["1", "2", "1 2 3", "1 2 3 4"]
    assert [kept.message.reason for kept in gateway.reader.quarantine()] == ["rule w: late"]


async def test_a_replay_makes_room_in_a_full_buffer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.processor.runner.FULL_POLL_SECONDS", 0.001)
    schema = dataclasses.replace(SCHEMA, keep_seconds=1e6)
    limits = BufferConfig(segment_bytes=65536, limit_bytes=300_000)
    gateway = Gateway(tmp_path, [BROKEN], schemas=[schema], buffer=limits)
    async with gateway.running() as runner:
        await runner.process([reading(13)])
        while gateway.log.bytes() < limits.limit_bytes:
            await runner.process([reading(1)] * 200)
        async with asyncio.timeout(20):
            await runner.replay(runner.replayable(""))
    assert gateway.intake().quarantined == {"rule broken: SQL error": 2}


async def test_a_session_ends_though_a_boot_without_a_message_lies_between(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [window(gap_seconds=60)])
    async with gateway.running() as runner:
        await runner.process([reading(1)])
    gateway.clock = ScriptedClock("boot-2", boottime_s=5, wall_jump_s=1005)
    async with gateway.running() as runner:
        await runner.close_windows(even_cursors=True)
    gateway.clock = ScriptedClock("boot-3", boottime_s=5, wall_jump_s=1015, clock_ok=False)
    async with gateway.running() as runner:
        await runner.process([reading(2)])
        gateway.clock.boottime_ns += 60 * SECOND
        await runner.close_windows()
    assert values(gateway) == ["1", "2"]
