"""The edge's ports: TLS from the first byte, and a bound on how many connections are in its handshake.

Who connects and says nothing costs memory and a file descriptor before there is anybody to ask whether he may. When as
many as may be are in their handshake, the one that began first gives way once it has had `PATIENCE_SECONDS`. Until then
nobody else is accepted and the kernel's queue waits: a thousand devices that come back at once are all let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 3.0
_HANDSHAKE_SECONDS: Final = 15.0
_BACKLOG: Final = 1024
_NO_DESCRIPTOR_SECONDS: Final = 1.0  # until the next try, where the process has none left


class Door:
    """One listening address."""

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol], context: ssl.SSLContext, most: int) -> None:
        """`factory` makes a protocol for a connection whose TLS is up; `most`: handshakes at a time."""
        self.dropped = 0  # handshakes that gave way
        self.sockets: list[socket.socket] = []
        self._factory = factory
        self._context = context
        self._most = most
        self._handshakes: dict[asyncio.Task[None], float] = {}  # and when each began, the oldest first
        self._left = asyncio.Event()  # one has come to its end
        self._accepting: list[asyncio.Task[None]] = []

    async def open(self, host: str, port: int) -> None:
        """Listen at every address of a host, empty for all there are; OSError where that cannot be."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((one[0], one[4]) for one in found):
            listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
            listening.setblocking(False)
            self.sockets.append(listening)
            self._accepting.append(loop.create_task(self._accept(listening)))

    def close(self) -> None:
        """Accept nobody else, and let go who is not in."""
        for task in (*self._accepting, *self._handshakes):
            task.cancel()

    @property
    def handshakes(self) -> int:
        """How many have connected and are not in."""
        return len(self._handshakes)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                await self._room()
                try:
                    sock, _ = await loop.sock_accept(listening)
                except ConnectionError:  # it has left again
                    continue
                except OSError as error:
                    log.error("No connection can be accepted: %s", error.strerror)
                    await asyncio.sleep(_NO_DESCRIPTOR_SECONDS)
                    continue
                task = loop.create_task(self._let_in(sock))
                self._handshakes[task] = time.monotonic()
                task.add_done_callback(self._done)

    async def _room(self) -> None:
        """Wait until another one may begin its handshake."""
        while len(self._handshakes) >= self._most:
            oldest, since = next(iter(self._handshakes.items()))
            self._left.clear()
            try:
                async with asyncio.timeout(since + PATIENCE_SECONDS - time.monotonic()):
                    await self._left.wait()
            except TimeoutError:
                if self._handshakes.pop(oldest, None) is not None:
                    self._drop(oldest)

    def _drop(self, handshake: asyncio.Task[None]) -> None:
        if not self.dropped:
            log.warning("%d connections are in their TLS handshake: the oldest give way", self._most)
        self.dropped += 1
        handshake.cancel()

    async def _let_in(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # no TLS, or not in time
            await asyncio.get_running_loop().connect_accepted_socket(
                self._factory, sock, ssl=self._context, ssl_handshake_timeout=_HANDSHAKE_SECONDS
            )

    def _done(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)
        self._left.set()
