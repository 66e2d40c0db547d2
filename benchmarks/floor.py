"""What the kernel alone takes to pass messages on as they come, beside us and mosquitto: one send for each message.

`floor.c` reads, acknowledges and writes, and does nothing else that a broker does. What it takes no broker goes below
that answers each packet when it is there, whatever it is written in.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import brokers, load
from benchmarks.machine import describe

FLAT_OUT = (("fan-in", 100, 1), ("pairs", 100, 100))
AT_RATE = ("pairs", 1_000, 1_000, 1_000.0)  # messages a second
_SOURCE = Path(__file__).with_suffix(".c")


def main(
    seconds: float = 1.0,
    rounds: int = 5,
    flat_out: Sequence[tuple[str, int, int]] = FLAT_OUT,
    at_rate: tuple[str, int, int, float] = AT_RATE,
) -> None:
    """Print processor time at full speed, then delays at a message a second from each of 1,000 clients; medians."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    name, publishers, subscribers, rate = at_rate
    load.allow_files(publishers + subscribers)
    print(describe())
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        print(f"{compiler} is not installed: nothing to compare with")
        return
    print(f"medians of {rounds} rounds of {seconds:g} s; one send per message")
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "floor")
        subprocess.run([compiler, "-O2", "-o", binary, _SOURCE], check=True)
        programs = [brokers.Program("floor", (str(binary), "{port}")), *brokers.both()]
        print(
            f"{'scenario':<28}" + "".join(f"{one.name + ' CPU s/M':>20}" for one in programs) + "   floor / mosquitto"
        )
        for shape in flat_out:
            for qos in (0, 1):
                _flat_out(programs, load.Scenario(*shape, qos, False, seconds), rounds)
        print(f"{'':<28}" + "".join(f"{one.name + ' p50 µs':>20}{'p99 µs':>8}{'CPU s/M':>9}" for one in programs))
        for qos in (0, 1):
            _at_rate(programs, load.Scenario(name, publishers, subscribers, qos, False, seconds), rate, rounds)


def _flat_out(programs: list[brokers.Program], scenario: load.Scenario, rounds: int) -> None:
    costs: list[list[float]] = [[] for _program in programs]
    for _round in range(rounds):
        for program, found in zip(programs, costs, strict=True):
            with brokers.running(program) as broker:
                found.append(load.run(scenario, broker).cpu_per_million)
    medians = [statistics.median(found) for found in costs]
    ratio = f"{medians[0] / medians[2]:>20.2f}" if len(medians) > 2 else ""
    title = f"{scenario.title} QoS {scenario.qos}"
    print(f"{title:<28}" + "".join(f"{cost:>20.2f}" for cost in medians) + ratio, flush=True)


def _at_rate(programs: list[brokers.Program], scenario: load.Scenario, rate: float, rounds: int) -> None:
    figures: list[list[tuple[float, float, float]]] = [[] for _program in programs]
    for _round in range(rounds):
        for program, found in zip(programs, figures, strict=True):
            with brokers.running(program) as broker:
                result = load.run_at_rate(broker, rate, scenario)
            found.append((result.percentile(0.5) * 1e6, result.percentile(0.99) * 1e6, result.cpu_per_million))
    medians = [[statistics.median(figure) for figure in zip(*found, strict=True)] for found in figures]
    title = f"{scenario.title} QoS {scenario.qos}"
    print(f"{title:<28}" + "".join(f"{p50:>20.0f}{p99:>8.0f}{cost:>9.1f}" for p50, p99, cost in medians), flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 1.0, int(given[1]) if given[1:] else 5)
