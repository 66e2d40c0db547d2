"""How often somebody may do something, by name and in bounded memory: token buckets, and a hold-off for flapping."""

from __future__ import annotations

from typing import Final, final

_NAMES: Final = 10_000  # remembered at once


@final
class TokenBucket:
    """Lets `rate` events a second pass, and a burst of as many as come in one second, at least one."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._burst = rate if rate > 1.0 else 1.0
        self._tokens = self._burst
        self._at = now

    def spend(self, now: float) -> float:
        """Take one token; give the seconds until the next event may pass, 0 when it may at once."""
        self._refill(now)
        self._tokens -= 1.0
        return 0.0 if self._tokens >= 1.0 else (1.0 - self._tokens) / self._rate

    def allows(self, now: float) -> bool:
        """Take one token if there is one."""
        self._refill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def is_full(self, now: float) -> bool:
        """Whether nothing would change if this bucket were new."""
        self._refill(now)
        return self._tokens >= self._burst

    def _refill(self, now: float) -> None:
        tokens = self._tokens + (now - self._at) * self._rate
        self._tokens = tokens if tokens < self._burst else self._burst
        self._at = now


@final
class Rate:
    """One rate for each name."""

    __slots__ = ("_buckets", "_rate")

    def __init__(self, rate: float) -> None:
        self._rate = rate  # events a second; 0: no limit
        self._buckets: dict[int, TokenBucket] = {}  # by the hash of a name: a peer may choose a long one

    def allows(self, name: str, now: float) -> bool:
        """Count an event and say whether it may pass."""
        if not self._rate:
            return True
        key = hash(name)
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= _NAMES:
                self._forget(now)
            bucket = self._buckets[key] = TokenBucket(self._rate, now)
        return bucket.allows(now)

    def _forget(self, now: float) -> None:
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if not bucket.is_full(now)}
        for name in list(self._buckets)[: max(0, len(self._buckets) - _NAMES // 2)]:
            del self._buckets[name]


@final
class _Window:
    __slots__ = ("count", "held_until", "started_at")

    def __init__(self, now: float) -> None:
        self.started_at = now
        self.count = 0
        self.held_until = 0.0


@final
class Flapping:
    """Holds a name off for a time when it came too often within a window."""

    __slots__ = ("_connects", "_hold_off", "_window", "_windows")

    def __init__(self, connects: int, window: float, hold_off: float) -> None:
        self._connects = connects  # in a window that are still accepted; 0: no limit
        self._window = window
        self._hold_off = hold_off
        self._windows: dict[int, _Window] = {}  # by the hash of a name

    def held_off(self, name: str, now: float) -> float:
        """Count a connect and give the seconds for which the name is held off, 0 when it may come in."""
        if not self._connects:
            return 0.0
        key = hash(name)
        window = self._windows.get(key)
        if window is None or (now - window.started_at >= self._window and now >= window.held_until):
            if window is None and len(self._windows) >= _NAMES:
                self._forget(now)
            window = self._windows[key] = _Window(now)
        if now < window.held_until:
            return window.held_until - now
        window.count += 1
        if window.count > self._connects:
            window.held_until = now + self._hold_off
            return self._hold_off
        return 0.0

    def _forget(self, now: float) -> None:
        window = self._window
        self._windows = {
            name: one for name, one in self._windows.items() if now < one.held_until or now - one.started_at < window
        }
        for name in list(self._windows)[: max(0, len(self._windows) - _NAMES // 2)]:
            del self._windows[name]
