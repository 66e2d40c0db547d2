"""The benchmarks run and print their lines: as small as they go, for what they measure is no matter here."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("trustme")

from benchmarks import (
    attacks,
    bridges,
    brokers,
    doors,
    floor,
    footprint,
    latency,
    rules,
    sessions,
    subscriptions,
    throughput,
)


@pytest.fixture(autouse=True)
def own_core() -> Iterator[None]:
    """A benchmark keeps its process on one core."""
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(
    ("run", "lines"),
    [
        (
            lambda: throughput.main(0.02, 1, None, [("shared", 4, 2)], [1]),
            ["shared 4→2 +QoS 1 (batched|one a send)"] * 2,
        ),
        (lambda: latency.main(0.1, [("pairs", 2, 2, 2, 100)]), ["pairs 2→2"]),
        pytest.param(
            lambda: floor.main(0.05, 1, [("fan-in", 2, 1)], ("pairs", 2, 2, 100)),
            ["fan-in 2→1 QoS 0", "fan-in 2→1 QoS 1", "pairs 2→2 QoS 0", "pairs 2→2 QoS 1"],
            marks=pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
        ),
        (lambda: sessions.main(20, 400), ["connect, subscribe", "pairs .*enqueue", "pairs .*drain", "fan-out .*drain"]),
        (lambda: footprint.main(50, starts=1), ["lockgate +[0-9]"]),
        (lambda: subscriptions.main(1_000), [" 1,000 "]),
        (lambda: doors.main(5, messages=100), [r"lockgate +tcp", r"lockgate +tls", r"lockgate +secure websocket"]),
        (lambda: bridges.main(200), [r"lockgate +0 ", r"lockgate +1 ", r"lockgate +2 "]),
        (lambda: attacks.main(0.1, ["garbage"]), ["none ", "garbage "]),
        (lambda: rules.main(500), ["for each message", "tumbling windows"]),
    ],
    ids=[
        "throughput",
        "latency",
        "floor",
        "sessions",
        "footprint",
        "subscriptions",
        "doors",
        "bridges",
        "attacks",
        "rules",
    ],
)
def test_a_benchmark_prints_its_table(
    run: Callable[[], None],
    lines: list[str],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if request.node.callspec.id != "throughput":  # one comparison is enough here
        monkeypatch.setattr(brokers, "mosquitto", lambda: None)
    run()
    printed = capsys.readouterr().out
    assert "lockgate 0." in printed  # the machine and the commit
    for line in set(lines):
        assert len(re.findall(rf"^ *{line}.*\d", printed, re.MULTILINE)) >= lines.count(line), printed
    assert "never arrived" not in printed
    assert "late" not in printed
