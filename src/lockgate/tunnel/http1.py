"""HTTP/1.1 on a socket: h11's events, one after the other, and the socket itself after an upgrade (RFC 9112)."""

from __future__ import annotations

import asyncio
from typing import Final, cast

import h11

from lockgate.tunnel.h2_session import StreamProtocol

_HEAD_BYTES: Final = 64 * 1024
_READ_AHEAD: Final = 64 * 1024  # bytes kept before the peer is paused


class Flow(StreamProtocol):
    """Lets a task read and write a transport: chunks in, and `drain` to wait for room."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._ended = False
        self._lost: Exception | None = None
        self._gone = False
        self._room = asyncio.Event()
        self._room.set()
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def attach(self, transport: asyncio.Transport) -> None:
        """Sit on a transport that is there already."""
        self.transport = transport
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        self._news.set()
        if self._size > _READ_AHEAD and self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._ended = True
        self._news.set()
        return self.transport is not None and self.transport.can_write_eof()  # TLS is over for both sides

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._lost = exc
        self._room.set()
        self._news.set()

    @property
    def is_gone(self) -> bool:
        return self._gone

    async def read(self) -> bytes:
        """What came, b"" at the end; ConnectionError where it broke off."""
        while not self._chunks and not self._ended and not self._gone:
            await self.news()
        if self._chunks:
            data = b"".join(self._chunks)
            self.unread_nothing()
            return data
        if self._ended:
            return b""
        raise ConnectionError(str(self._lost or "the connection was closed"))

    def unread_nothing(self) -> None:
        """Forget what was read, and let the peer go on."""
        self._chunks.clear()
        self._size = 0
        if self.transport is not None and not self._gone:
            self.transport.resume_reading()

    async def write(self, data: bytes) -> None:
        """Write and wait for room; ConnectionError where nobody reads any more."""
        if self._gone or self.transport is None:
            raise ConnectionError(str(self._lost or "the connection was closed"))
        self.transport.write(data)
        await self._room.wait()

    def wake(self) -> None:
        """Something has come that is not bytes."""
        self._news.set()

    async def news(self) -> None:
        """Wait for anything."""
        self._news.clear()
        await self._news.wait()

    async def until_gone(self) -> None:
        """Wait until the transport is lost."""
        while not self._gone:
            await self.news()


class Http1(Flow):
    """One connection of HTTP/1.1, at either end of it."""

    def __init__(self, *, client: bool) -> None:
        """`client`: we ask; otherwise we answer."""
        super().__init__()
        self.bytes_out = 0
        self.was_kept = False  # it has served another request before
        self.has_heard = False  # something of the peer's, since it was last kept
        self.h11 = h11.Connection(h11.CLIENT if client else h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)

    def eof_received(self) -> bool:
        kept = super().eof_received()
        return kept and not (self.was_kept and self.h11.our_state is h11.IDLE)

    @property
    def is_idle(self) -> bool:
        """Whether it may be used for another request: it is there, and nobody has said anything meanwhile."""
        silent = not (self._chunks or self._ended or self.h11.trailing_data[0] or self.h11.trailing_data[1])
        return silent and not self._gone and self.transport is not None and not self.transport.is_closing()

    def keep(self) -> None:
        """Be there for the next request."""
        self.h11.start_next_cycle()
        self.was_kept = True
        self.has_heard = False

    async def event(self) -> h11.Event | None:
        """The next one, None where something else than HTTP may follow or the next request has to wait.

        Raises h11.RemoteProtocolError for what is no HTTP, ConnectionError where it breaks off.
        """
        while True:
            event = self.h11.next_event()
            if event is h11.PAUSED:
                return None
            if event is not h11.NEED_DATA:
                return cast("h11.Event", event)
            if self.h11.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            data = await self.read()
            self.has_heard = self.has_heard or bool(data)
            self.h11.receive_data(data)

    async def send(self, event: h11.Event) -> None:
        """Say one event, and wait for room."""
        data = self.h11.send(event)
        if data:
            self.bytes_out += len(data)
            await self.write(data)

    def take_over(self) -> bytes:
        """What came behind the upgrade; from now on the socket speaks something else."""
        if self.transport is not None:
            self.transport.pause_reading()
        rest = bytes(self.h11.trailing_data[0]) + b"".join(self._chunks)
        self._chunks.clear()
        return rest
