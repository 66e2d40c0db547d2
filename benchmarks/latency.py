"""The way of a message when both brokers get the same load, far from what they can bear: p50 and p99, and the cost.

A publisher sends one message at a time, so nearly every one is a wake-up of its own. The brokers take turns, several
times; of each figure the median is printed, for another tenant of the machine is worth more than any difference here.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence

from benchmarks import brokers, load
from benchmarks.machine import describe

# name, publishers, subscribers, QoS, messages published a second by all publishers together
LOADS = (
    ("pairs", 10, 10, 0, 1_000),
    ("pairs", 10, 10, 0, 5_000),
    ("pairs", 10, 10, 0, 10_000),
    ("pairs", 10, 10, 1, 1_000),
    ("pairs", 10, 10, 1, 5_000),
    ("pairs", 10, 10, 2, 2_000),
    ("fan-out", 1, 100, 0, 50),
    ("fan-out", 1, 100, 1, 50),
    ("fan-in", 100, 1, 0, 5_000),
    ("fan-in", 100, 1, 1, 5_000),
    ("shared", 100, 10, 1, 5_000),
    ("pairs", 1_000, 1_000, 0, 1_000),
    ("pairs", 1_000, 1_000, 1, 1_000),
)


_ROUNDS = 5


def main(
    seconds: float = 1.0, loads: Sequence[tuple[str, int, int, int, float]] = LOADS, rounds: int = _ROUNDS
) -> None:
    """Publish at each rate and print latencies and processor time of all brokers, and our ratios to mosquitto's."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    programs = [*brokers.both(), *brokers.without_nagle()]
    print(describe())
    heads = "".join(f"{program.name + ' p50 µs':>19}{'p99 µs':>8}{'CPU s/M':>9}" for program in programs)
    print(f"medians of {rounds} rounds of {seconds:g} s")
    print(f"{'scenario':<26}{'sent/s':>7}{heads}{'CPU ratio':>11}{'p99 ratio':>11}")
    notes: list[str] = []
    for name, publishers, subscribers, qos, rate in loads:
        scenario = load.Scenario(name, publishers, subscribers, qos, False, seconds)
        medians = at_rate(programs, scenario, rate, rounds, notes)
        line = f"{scenario.title:<20} QoS {qos}{rate:>8,.0f}"
        line += "".join(f"{p50:>19.0f}{p99:>8.0f}{cost:>9.1f}" for p50, p99, cost in medians)
        if len(medians) > 1:
            line += f"{medians[0][2] / medians[1][2]:>11.2f}{medians[0][1] / medians[1][1]:>11.2f}"
        print(line, flush=True)
    for note in notes:
        print(note)


def at_rate(
    programs: Sequence[brokers.Program], scenario: load.Scenario, rate: float, rounds: int, notes: list[str]
) -> list[list[float]]:
    """Give p50 and p99 in microseconds and processor seconds for a million, of each broker, in medians.

    What never arrived is told in `notes`.
    """
    medians: list[list[float]] = []
    found = load.in_turn(programs, rounds, lambda broker: load.run_at_rate(broker, rate, scenario))
    for program, results in zip(programs, found, strict=True):
        for result in results:
            if result.missing:
                notes.append(f"{program.name}: {result.missing} of {scenario.title} QoS {scenario.qos} never arrived")
        figures = [[one.percentile(0.5) * 1e6, one.percentile(0.99) * 1e6, one.cpu_per_million] for one in results]
        medians.append([statistics.median(figure) for figure in zip(*figures, strict=True)])
    return medians


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 1.0, rounds=int(given[1]) if given[1:] else _ROUNDS)
