"""All benchmarks, one after the other: `make bench`."""

from __future__ import annotations

from benchmarks import footprint, latency, subscriptions, throughput

throughput.main()
print()
latency.main()
print()
footprint.main()
print()
subscriptions.main()
