"""Logins with a password: a hash takes a core and, as Argon2, 46 MB, so that they are looked at one after the other."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")

_MOST_WAITING: Final = 1000


class TooManyLogins(Exception):
    """More wait than can be looked at in time."""


class Logins:
    """A thread, and who waits for it: the addresses take turns, so that one that floods waits for itself.

    Where too many wait, the last one of the address with the most gives way.
    """

    def __init__(self, most: int = _MOST_WAITING) -> None:
        self._most = most
        self._waiting: OrderedDict[str, deque[tuple[Callable[[], Any], asyncio.Future[Any]]]] = OrderedDict()
        self._count = 0
        self._executor: ThreadPoolExecutor | None = None  # made for the first password
        self._worker: asyncio.Task[None] | None = None

    async def run(self, address: str, work: Callable[[], T]) -> T:
        """Have the thread do it when it is this address's turn; TooManyLogins where there is no waiting for that."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(address, deque()).append((work, future))
        self._count += 1
        if self._count > self._most:
            self._turn_away()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())
        return await future

    def close(self) -> None:
        """Look at no more, without waiting for the one that is looked at."""
        if self._worker is not None:
            self._worker.cancel()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _turn_away(self) -> None:
        address = max(self._waiting, key=lambda one: len(self._waiting[one]))
        _, future = self._waiting[address].pop()
        self._count -= 1
        if not self._waiting[address]:
            del self._waiting[address]
        if not future.done():
            future.set_exception(TooManyLogins())

    def _next(self) -> tuple[Callable[[], Any], asyncio.Future[Any]] | None:
        while self._waiting:
            address, line = self._waiting.popitem(last=False)
            one = line.popleft()
            self._count -= 1
            if line:
                self._waiting[address] = line  # behind the others
            if not one[1].done():  # it has not given up
                return one
        return None

    async def _work(self) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "passwords")
        loop = asyncio.get_running_loop()
        while (one := self._next()) is not None:
            work, future = one
            try:
                outcome = await loop.run_in_executor(self._executor, work)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(outcome)
