"""The outage in miniature that `make outage` shows, with five thousand messages."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import outage
from benchmarks.cloud import Receipts

MESSAGES = 5_000


@pytest.fixture
def own_core() -> Iterator[None]:
    """The run keeps the gateway on one core."""
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.timeout(120)
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler for the clock that jumps")
def test_everything_arrives_after_an_outage_with_kills_and_jumps(own_core: None, tmp_path: Path) -> None:
    outcome = asyncio.run(outage.run(MESSAGES, tmp_path))
    assert not outcome.violations, (tmp_path / "gateway.log").read_text(errors="replace")
    assert [phase.messages for phase in outcome.phases] == [MESSAGES] * 3


def message(number: int, *, seq: int, message_class: str = "telemetry", topic: str = "t") -> dict[str, object]:
    return {"id": f"gw/{seq}", "topic": topic, "class": message_class, "time": 0, "payload": {"n": number}}


FIRST_ALARM = message(0, seq=1, message_class="alarm")


@pytest.mark.parametrize(
    ("came", "found"),
    [
        ([FIRST_ALARM, message(1, seq=2), message(2, seq=3)], []),
        ([FIRST_ALARM, message(1, seq=2), message(1, seq=2), message(2, seq=3)], []),
        ([FIRST_ALARM, message(2, seq=3), message(1, seq=2, topic="u")], []),
        ([FIRST_ALARM, message(1, seq=2), message(1, seq=4), message(2, seq=3)], ["came under two ids"]),
        ([FIRST_ALARM, message(1, seq=2), message(2, seq=2)], ["two messages under one id"]),
        ([FIRST_ALARM, message(2, seq=3), message(1, seq=2)], ["out of order"]),
        ([message(1, seq=2), FIRST_ALARM, message(2, seq=3)], ["came before an alarm"]),
        ([FIRST_ALARM, message(2, seq=3)], ["never arrived"]),
    ],
)
def test_the_receiver_sees_what_is_wrong(came: list[dict[str, object]], found: list[str]) -> None:
    receipts = Receipts(range(3), first_alarms=1)
    for one in came:
        receipts.take(one)
    assert [one.partition(":")[0] for one in receipts.violations()][: len(found) or None] == found
