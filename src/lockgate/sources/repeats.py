"""Requests that carry an Idempotency-Key: what became of each, as long as it may come again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable


class OtherRequest(Exception):
    """The key was that of another request."""


class Attempt:
    """One request with a key. `left` are its messages that the broker has yet to acknowledge."""

    __slots__ = ("expires", "fingerprint", "left", "task")

    def __init__(self, fingerprint: bytes, expires: float, count: int) -> None:
        self.fingerprint = fingerprint
        self.expires = expires
        self.left = set(range(count))
        self.task: asyncio.Task[None] | None = None  # that publishes them


class Repeats:
    """Remembers requests by their key for some time, and not more than `limit`: the oldest go first."""

    def __init__(self, seconds: float, limit: int) -> None:
        self._seconds = seconds
        self._limit = limit
        self._attempts: OrderedDict[Hashable, Attempt] = OrderedDict()

    def attempt(self, key: Hashable, fingerprint: bytes, count: int, now: float) -> tuple[Attempt, bool]:
        """Give what is remembered of a key, or begin with it; and whether it is a repeat. Raises OtherRequest."""
        known = self._attempts.get(key)
        if known is not None and known.expires > now:
            if known.fingerprint != fingerprint:
                raise OtherRequest
            return known, True
        self._attempts.pop(key, None)
        while self._attempts:
            oldest, first = next(iter(self._attempts.items()))
            if first.expires > now and len(self._attempts) < self._limit:
                break
            del self._attempts[oldest]
        begun = self._attempts[key] = Attempt(fingerprint, now + self._seconds, count)
        return begun, False
