"""Fan-in, fan-out, pairs and shared at each QoS, batched and one send per message: rates, and what a message costs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from benchmarks import brokers, load
from benchmarks.machine import describe

SHAPES = (("fan-out", 1, 100), ("fan-in", 100, 1), ("pairs", 100, 100), ("shared", 100, 10))


def main(
    seconds: float = 1.0,
    rounds: int = 1,
    other: str | None = None,
    shapes: Sequence[tuple[str, int, int]] = SHAPES,
    levels: Sequence[int] = (0, 1, 2),
) -> None:
    """Run every scenario on both brokers in turn and print one line for each, with our cost over theirs.

    `other` is `NAME=PYTHON`: the interpreter of an environment with another build of Lockgate, which then stands in
    mosquitto's place.
    """
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    programs = brokers.both()
    if other is not None:
        name, _, python = other.partition("=")
        programs = [brokers.lockgate(), brokers.lockgate(name, python)]
    print(describe())
    print(
        f"{'scenario':<31}"
        + "".join(f"{p.name + ' msg/s':>17}{'CPU s/M':>9}{'busy':>6}" for p in programs)
        + "   CPU ratio"
    )
    notes: list[str] = []
    for name, publishers, subscribers in shapes:
        for qos in levels:
            for batched in (True, False):
                scenario = load.Scenario(name, publishers, subscribers, qos, batched, seconds)
                line = f"{scenario.title:<15} QoS {qos} {'batched' if batched else 'one a send':<10}"
                costs: list[float] = []
                for program, result in zip(programs, _best(programs, scenario, rounds), strict=True):
                    busy = result.broker_cpu_seconds / result.seconds
                    line += f"{result.rate:>17,.0f}{result.cpu_per_million:>9.2f}{busy:>6.0%}"
                    costs.append(result.cpu_per_million)
                    if result.missing:
                        notes.append(f"{program.name}: {result.missing} of {scenario.name} QoS {qos} were 10 s late")
                ratio = f"{costs[0] / costs[1]:>12.2f}" if len(costs) == 2 else ""
                print(line + ratio, flush=True)
    for note in notes:
        print(note)


def _best(programs: list[brokers.Program], scenario: load.Scenario, rounds: int) -> list[load.Result]:
    """Give for each program the cheapest of some runs, taken in turn: noise only ever adds."""
    results = load.in_turn(programs, rounds, lambda broker: load.run(scenario, broker))
    return [min(mine, key=lambda result: result.cpu_per_million) for mine in results]


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 1.0, int(given[1]) if given[1:] else 1, given[2] if given[2:] else None)
