"""All benchmarks, one after the other: `make bench`."""

from __future__ import annotations

from benchmarks import (
    attacks,
    bridges,
    doors,
    durable,
    floor,
    footprint,
    latency,
    rules,
    sessions,
    subscriptions,
    throughput,
    tunnel,
)

for program in (
    throughput,
    latency,
    floor,
    sessions,
    durable,
    footprint,
    subscriptions,
    doors,
    bridges,
    attacks,
    rules,
    tunnel,
):
    program.main()
    print()
