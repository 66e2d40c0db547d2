"""All benchmarks, one after the other: `make bench`."""

from __future__ import annotations

from benchmarks import doors, footprint, latency, subscriptions, throughput

for program in (throughput, latency, footprint, subscriptions, doors):
    program.main()
    print()
