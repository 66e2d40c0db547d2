"""How long a connector's calls and its dialling took, in the buckets that cloudflared has."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

# The methods of the control stream, as cloudflared's figures name them
REGISTER: Final = "register_connection"
UNREGISTER: Final = "unregister_connection"
REPORT: Final = "update_local_configuration"

_CONNECT_MS: Final = (1, 10, 25, 50, 100, 500, 1000, 5000)
_CALL_SECONDS: Final = (0.05, 0.15, 0.45, 1.35, 4.05)


class Histogram:
    """Values by their size; a bucket has those up to its bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # the last one: beyond all bounds
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        """Prometheus' text, without its TYPE; `labels` as `a="b",c="d"`."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{"," if labels else ""}le="{bound}"}} {total}'
        braced = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braced} {self._sum}"
        yield f"{name}_count{braced} {total}"


class Connects:
    """Origins dialled for a stream of bytes."""

    def __init__(self) -> None:
        self.latency = Histogram(_CONNECT_MS)  # of those that were reached
        self.errors = 0


class Calls:
    """What edges were asked on control streams, by method."""

    def __init__(self) -> None:
        self.latency: dict[str, Histogram] = defaultdict(lambda: Histogram(_CALL_SECONDS))
        self.failures: dict[str, int] = defaultdict(int)

    @property
    def operations(self) -> dict[str, int]:
        """How many there were."""
        return {method: latency.count for method, latency in self.latency.items()}

    def count(self, method: str, seconds: float, *, failed: bool) -> None:
        """One has been answered, or never will be."""
        self.failures[method] += failed
        self.latency[method].observe(seconds)
