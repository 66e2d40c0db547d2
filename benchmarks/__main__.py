"""All benchmarks, one after the other: `make bench`."""

from __future__ import annotations

from benchmarks import doors, footprint, latency, throughput

throughput.main()
print()
latency.main()
print()
footprint.main()
print()
doors.main()
