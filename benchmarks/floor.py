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

from benchmarks import brokers, latency, load
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
        notes: list[str] = []
        for qos in (0, 1):
            scenario = load.Scenario(name, publishers, subscribers, qos, False, seconds)
            medians = latency.at_rate(programs, scenario, rate, rounds, notes)
            title = f"{scenario.title} QoS {scenario.qos}"
            figures = "".join(f"{p50:>20.0f}{p99:>8.0f}{cost:>9.1f}" for p50, p99, cost in medians)
            print(f"{title:<28}{figures}", flush=True)
    for note in notes:
        print(note)


def _flat_out(programs: list[brokers.Program], scenario: load.Scenario, rounds: int) -> None:
    results = load.in_turn(programs, rounds, lambda broker: load.run(scenario, broker))
    medians = [statistics.median(result.cpu_per_million for result in mine) for mine in results]
    ratio = f"{medians[0] / medians[2]:>20.2f}" if len(medians) > 2 else ""
    title = f"{scenario.title} QoS {scenario.qos}"
    print(f"{title:<28}" + "".join(f"{cost:>20.2f}" for cost in medians) + ratio, flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 1.0, int(given[1]) if given[1:] else 5)
