"""How long a bridge waits before it tries again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import final

from lockgate.config.model import RestartTimeout


@final
class Backoff:
    """Decorrelated jitter: each wait is random between the base and three times the one before, up to the cap.

    Bridges that lost the same broker come back spread out, and ever less often while it stays away.
    """

    def __init__(self, timeout: RestartTimeout, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._timeout = timeout
        self._uniform = uniform
        self._last = float(timeout.base)

    def next_seconds(self) -> float:
        """Give the next wait."""
        base, cap, _stable = self._timeout
        self._last = min(float(cap), self._uniform(base, 3 * self._last))
        return self._last

    def connected_for(self, seconds: float) -> None:
        """Say how long a connection lived; one that was stable begins the waits anew."""
        if seconds >= self._timeout.stable:
            self._last = float(self._timeout.base)
