"""Fan-in, fan-out and pairs at each QoS, batched and one send per message: rates, and the broker's cost per message."""

from __future__ import annotations

import os
import sys

from benchmarks import brokers, load
from benchmarks.machine import describe

SHAPES = (("fan-out", 1, 100), ("fan-in", 100, 1), ("pairs", 100, 100))


def main(seconds: float = 2.0, rounds: int = 1) -> None:
    """Run every scenario on both brokers in turn and print one line for each, with our cost over theirs."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    programs = brokers.both()
    print(describe())
    print(
        f"{'scenario':<26}"
        + "".join(f"{p.name + ' msg/s':>18}{'CPU s/M':>10}{'busy':>6}" for p in programs)
        + "   CPU ratio"
    )
    notes: list[str] = []
    for name, publishers, subscribers in SHAPES:
        for qos in (0, 1, 2):
            for batched in (True, False):
                scenario = load.Scenario(name, publishers, subscribers, qos, batched, seconds)
                line = f"{name:<8} QoS {qos} {'batched' if batched else 'one a send':<12}"
                costs: list[float] = []
                for program in programs:
                    result = _best(program, scenario, rounds)
                    busy = result.broker_cpu_seconds / result.seconds
                    line += f"{result.rate:>18,.0f}{result.cpu_per_million:>10.2f}{busy:>6.0%}"
                    costs.append(result.cpu_per_million)
                    if result.missing:
                        notes.append(f"{program.name}: {result.missing} of {scenario.name} QoS {qos} were 10 s late")
                ratio = f"{costs[0] / costs[1]:>12.2f}" if len(costs) == 2 else ""
                print(line + ratio, flush=True)
    for note in notes:
        print(note)


def _best(program: brokers.Program, scenario: load.Scenario, rounds: int) -> load.Result:
    """Give the cheapest of some runs: noise only ever adds."""
    results: list[load.Result] = []
    for _round in range(rounds):
        with brokers.running(program) as broker:
            before = broker.cpu_seconds()
            result = load.run(scenario, broker.port)
            result.broker_cpu_seconds = broker.cpu_seconds() - before
            results.append(result)
    return min(results, key=lambda result: result.cpu_per_million)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)
