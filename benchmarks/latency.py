"""The way of a message at a fixed rate, where most are a wake-up of their own: p50 and p99, and the broker's cost."""

from __future__ import annotations

import os
import sys

from benchmarks import brokers, load
from benchmarks.machine import describe

RATES = (1_000, 5_000, 10_000)


def main(seconds: float = 4.0) -> None:
    """Publish QoS 0 over ten pairs at each rate and print the latencies of both brokers."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    print(describe())
    print(f"{'messages/s':<12}{'broker':<12}{'p50 µs':>8}{'p99 µs':>8}{'max µs':>9}{'CPU s/M':>10}")
    for rate in RATES:
        for program in brokers.both():
            with brokers.running(program) as broker:
                before = broker.cpu_seconds()
                result = load.run_at_rate(broker.port, rate, seconds)
                cost = (broker.cpu_seconds() - before) / result.delivered * 1e6
            if result.missing:
                raise RuntimeError(f"{result.missing} messages never arrived at {program.name}'s subscriber")
            p50, p99, longest = (result.percentile(share) * 1e6 for share in (0.5, 0.99, 1.0))
            print(f"{rate:<12,}{program.name:<12}{p50:>8.0f}{p99:>8.0f}{longest:>9.0f}{cost:>10.1f}", flush=True)


if __name__ == "__main__":
    main(*(float(argument) for argument in sys.argv[1:2]))
