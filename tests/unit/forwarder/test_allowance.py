"""Hours, budgets and a metered link; what was spent survives restarts and a clock that jumps."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from lockgate.buffer import Row
from lockgate.config.model import FileSinkConfig, Window
from lockgate.forwarder.allowance import Allowance
from tests.unit.buffer.test_limits import TestClock

NOON = round(datetime(2026, 5, 14, 12, 0).timestamp()) * 10**9


def row(seq: int, message_class: str = "telemetry", size: int = 99) -> Row:
    return Row(seq, seq, "boot", 0, 0, True, None, "t", message_class, "", b"x" * size)


DAILY = frozenset(range(7))


def sink(**options: object) -> FileSinkConfig:
    return FileSinkConfig(name="s", classes=("alarm", "telemetry"), path=Path("x"), **options)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> TestClock:
    made = TestClock()
    made.moment = made.moment._replace(wall_ns=NOON)
    return made


def test_a_batch_is_cut_to_what_the_budgets_have_left(clock: TestClock) -> None:
    allowance = Allowance(sink(messages_per_hour=7, bytes_per_day=600), {}, clock)
    rows = [row(n) for n in range(1, 11)]
    cut = allowance.cut(rows)
    assert len(cut) == 6  # 100 bytes each
    allowance.spend(cut)
    assert allowance.refusal("telemetry") == "the bytes of this day are spent"
    clock.pass_seconds(13 * 3600)
    assert allowance.refusal("telemetry") is None
    assert len(allowance.cut(rows)) == 6
    allowance.spend(rows[:5])
    assert len(allowance.cut(rows)) == 1
    assert len(allowance.cut([row(1, size=5000)])) == 1  # one goes, however large


def test_what_is_always_sent_is_held_by_nothing_but_counts(clock: TestClock, tmp_path: Path) -> None:
    flag = tmp_path / "metered"
    allowance = Allowance(
        sink(messages_per_month=2, hours=(Window(DAILY, 0, 60),), metered_while=flag, always=("alarm",)), {}, clock
    )
    assert allowance.refusal("telemetry") == "outside its hours"
    assert allowance.refusal("alarm") is None
    assert len(allowance.cut([row(n, "alarm") for n in range(5)])) == 5
    clock.pass_seconds(12.5 * 3600)
    assert allowance.refusal("telemetry") is None
    flag.touch()
    assert allowance.refusal("telemetry") == "the link is metered"
    flag.unlink()
    allowance.spend([row(n, "alarm") for n in range(5)])
    assert allowance.refusal("telemetry") == "the messages of this month are spent"
    assert allowance.refusal("alarm") is None


@pytest.mark.parametrize(
    ("hours", "at_noon"),
    [((600, 720), False), ((720, 721), True), ((1320, 360), False), ((1320, 721), True)],
)
def test_hours_may_go_over_midnight(clock: TestClock, hours: tuple[int, int], at_noon: bool) -> None:
    assert (Allowance(sink(hours=(Window(DAILY, *hours),)), {}, clock).refusal("telemetry") is None) == at_noon


def test_a_restart_forgets_nothing_that_was_spent(clock: TestClock) -> None:
    first = Allowance(sink(messages_per_hour=3), {}, clock)
    first.spend([row(1), row(2)])
    second = Allowance(sink(messages_per_hour=3), first.spent, clock)
    assert len(second.cut([row(n) for n in range(5)])) == 1


def test_a_clock_that_jumps_and_comes_back_gives_at_most_one_budget_more(clock: TestClock) -> None:
    allowance = Allowance(sink(messages_per_hour=1), {}, clock)
    allowance.spend([row(1)])
    clock.moment = clock.moment._replace(wall_ns=NOON + 30 * 86400 * 10**9)
    assert allowance.refusal("telemetry") is None
    allowance.spend([row(2)])
    clock.moment = clock.moment._replace(wall_ns=NOON)
    assert allowance.refusal("telemetry") is not None
    clock.pass_seconds(3600)
    assert allowance.refusal("telemetry") is None


def test_without_a_clock_that_is_right_a_period_lasts_its_full_length(clock: TestClock) -> None:
    clock.moment = clock.moment._replace(clock_ok=False)
    allowance = Allowance(sink(messages_per_hour=1), {}, clock)
    allowance.spend([row(1)])
    clock.moment = clock.moment._replace(wall_ns=0)
    assert allowance.refusal("telemetry") is not None
    clock.pass_seconds(3599)
    assert allowance.refusal("telemetry") is not None
    clock.pass_seconds(2)
    assert allowance.refusal("telemetry") is None
