"""A port with TLS whose visitors do not all say something."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from lockgate.tunnel import doors
from lockgate.tunnel.doors import Door
from tests.support.certificates import Authority
from tests.support.loops import event_loop_policy  # noqa: F401, a fixture

MOST = 4


class Greeting(asyncio.Protocol):
    """Says one word to whoever is let in."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(b"hello")


@dataclass
class Plain:
    """A client that has connected, and no more."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def until_closed(self) -> None:
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(self.reader.read(), 20) == b""


@dataclass
class Opened:
    door: Door
    context: ssl.SSLContext  # of clients

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.door.sockets[0].getsockname()
        return host, port

    async def greeting(self) -> bytes:
        """What a client hears that speaks TLS."""
        reader, writer = await asyncio.open_connection(*self.address, ssl=self.context)
        try:
            return await reader.readexactly(5)
        finally:
            writer.transport.abort()

    async def plain(self) -> Plain:
        """A client without TLS."""
        return Plain(*await asyncio.open_connection(*self.address))

    async def full(self) -> None:
        """Wait until as many as may be are in their handshake."""
        async with asyncio.timeout(10):
            while self.door.handshakes < MOST:
                await asyncio.sleep(0.01)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("door", "127.0.0.1"))
    door = Door(Greeting, context, MOST)
    await door.open("127.0.0.1", 0)
    yield Opened(door, ssl.create_default_context(cafile=authority.cafile))
    door.close()
    async with asyncio.timeout(5):
        while any(sock.fileno() >= 0 for sock in door.sockets):
            await asyncio.sleep(0.01)


async def test_the_oldest_of_those_who_say_nothing_give_way(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "PATIENCE_SECONDS", 0.05)
    silent = [await opened.plain() for _ in range(3 * MOST)]
    assert await asyncio.wait_for(opened.greeting(), 20) == b"hello"
    for one in silent[: 2 * MOST]:
        await one.until_closed()
    assert opened.door.dropped > 2 * MOST
    assert opened.door.handshakes <= MOST


async def test_who_has_just_come_is_waited_for(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "PATIENCE_SECONDS", 3600.0)
    silent = [await opened.plain() for _ in range(MOST)]
    await opened.full()
    waiting = asyncio.create_task(opened.greeting())
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    silent[2].writer.transport.abort()
    assert await asyncio.wait_for(waiting, 20) == b"hello"
    assert opened.door.dropped == 0


async def test_many_at_once_are_all_let_in(opened: Opened) -> None:
    greetings = await asyncio.wait_for(asyncio.gather(*(opened.greeting() for _ in range(20 * MOST))), 60)
    assert set(greetings) == {b"hello"}
    assert opened.door.dropped == 0


async def test_who_speaks_no_tls_leaves_nothing_behind(opened: Opened) -> None:
    for _ in range(3 * MOST):
        one = await opened.plain()
        one.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await one.until_closed()
    assert await opened.greeting() == b"hello"
    assert (opened.door.handshakes, opened.door.dropped) == (0, 0)


async def test_a_port_that_is_taken_is_an_error_with_its_address(opened: Opened) -> None:
    host, port = opened.address
    with pytest.raises(OSError, match="already in use") as caught:
        await Door(Greeting, opened.context, MOST).open(host, port)
    assert str(port) in str(caught.value)


async def test_a_door_that_is_closed_lets_go_who_is_not_in(opened: Opened) -> None:
    silent = [await opened.plain() for _ in range(MOST)]
    await opened.full()
    opened.door.close()
    for one in silent:
        await one.until_closed()
