"""Logins with a password: one at a time, the addresses in turn, and not more than can be waited for."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from lockgate.tunnel.logins import Logins, TooManyLogins


class Hash:
    """Work that waits until it may end, and tells who was looked at, and how many at once."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun: list[str] = []
        self.most = 0
        self._now = 0

    def of(self, name: str) -> str:
        self._now += 1
        self.most = max(self.most, self._now)
        self.begun.append(name)
        assert self.go.wait(10)
        self._now -= 1
        return name


async def waiting(tasks: list[asyncio.Task[str]]) -> None:
    """Let each come to its place."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert not [task for task in tasks if task.done()]


async def test_addresses_take_turns_and_one_is_looked_at_at_a_time() -> None:
    logins, work = Logins(), Hash()
    names = [("flood", f"flood-{n}") for n in range(50)] + [("home", "home-0"), ("home", "home-1")]
    tasks = [asyncio.create_task(logins.run(address, partial(work.of, name))) for address, name in names]
    await waiting(tasks)
    tasks[3].cancel()  # it has given up
    work.go.set()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert work.most == 1
    assert work.begun.index("home-1") <= 4
    assert "flood-3" not in work.begun
    assert len(work.begun) == 51
    logins.close()


async def test_the_last_of_the_address_with_the_most_gives_way() -> None:
    logins, work = Logins(most=10), Hash()
    flood = [asyncio.create_task(logins.run("flood", partial(work.of, f"flood-{n}"))) for n in range(40)]
    for _ in range(3):
        await asyncio.sleep(0)
    home = asyncio.create_task(logins.run("home", lambda: work.of("home")))
    for _ in range(3):
        await asyncio.sleep(0)
    work.go.set()
    assert await asyncio.wait_for(home, 10) == "home"
    outcomes = await asyncio.wait_for(asyncio.gather(*flood, return_exceptions=True), 10)
    assert len([one for one in outcomes if isinstance(one, TooManyLogins)]) >= 30
    assert outcomes[0] == "flood-0"
    logins.close()


async def test_what_fails_is_told_and_the_next_one_is_looked_at() -> None:
    def fail() -> str:
        raise RuntimeError("a mistake")

    logins = Logins()
    with pytest.raises(RuntimeError, match="a mistake"):
        await logins.run("a", fail)
    assert await asyncio.wait_for(logins.run("a", lambda: "fine"), 5) == "fine"
    logins.close()
