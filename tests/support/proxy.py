"""A TCP proxy that cuts, stalls and goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self


class Proxy:
    """Passes bytes between its port and an upstream port, until it is told to misbehave."""

    def __init__(self, upstream_port: int, on_down: Callable[[int, bytes], None] | None = None) -> None:
        """`on_down` hears what upstream sent: the number of its connection, and the bytes."""
        self._upstream_port = upstream_port
        self._on_down = on_down
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._budget: dict[str, int | None] = {"up": None, "down": None}
        self.port = 0
        self.connections = 0
        self.passed = {"up": 0, "down": 0}

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def listen(self) -> None:
        """Take connections, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Take no connections any more, and cut those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def cut_after(self, *, up: int | None = None, down: int | None = None) -> None:
        """Reset every connection when so many bytes more have gone to or come from upstream."""
        self._budget = {"up": up, "down": down}

    def stall(self) -> None:
        """Pass nothing on, and keep the connections."""
        self._flowing.clear()

    def flow(self) -> None:
        """Pass on again."""
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._writers.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(up_writer)
        for one in (self._pass(reader, up_writer, "up", number), self._pass(up_reader, writer, "down", number)):
            task = asyncio.create_task(one)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str, number: int
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if direction == "down" and self._on_down is not None:
                    self._on_down(number, data)
                await self._flowing.wait()
                budget = self._budget[direction]
                if budget is not None and len(data) >= budget:
                    self._budget[direction] = None
                    writer.write(data[:budget])
                    self.passed[direction] += budget
                    await writer.drain()
                    self.cut()
                    return
                if budget is not None:
                    self._budget[direction] = budget - len(data)
                writer.write(data)
                self.passed[direction] += len(data)
                await writer.drain()
        await self._flowing.wait()
        writer.close()
