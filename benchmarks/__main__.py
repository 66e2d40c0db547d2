"""All benchmarks, one after the other: `make bench`."""

from __future__ import annotations

from benchmarks import attacks, doors, footprint, latency, sessions, subscriptions, throughput

for program in (throughput, latency, sessions, footprint, subscriptions, doors, attacks):
    program.main()
    print()
