"""Two transports joined: what one end hears the other says, and who cannot be written to stops who writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from lockgate.tunnel.h2_session import Stream, StreamProtocol


class End(StreamProtocol):
    """One end of a relay, the protocol of a stream or a socket. Make two, and `join` them."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: End | None = None
        self.bytes_in = 0  # heard at this end
        self.gone: Callable[[], None] | None = None  # called once, when this end is lost
        self.how = ""  # it was lost, when it is
        self._waiting = bytearray()  # heard before there was another end
        self._eof = False
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def attach(self, transport: asyncio.Transport) -> None:
        """Sit on a transport that is there already; one that is ending may have told who sat there before."""
        self.transport = transport
        transport.set_protocol(self)
        if transport.is_closing():
            asyncio.get_running_loop().call_soon(self.connection_lost, None)

    def join(self, other: End) -> None:
        """Let both ends speak to each other from now on."""
        self.other, other.other = other, self
        for one in (self, other):
            one._tell_other()

    def _tell_other(self) -> None:
        if self._waiting:
            self._write(bytes(self._waiting))
            self._waiting.clear()
        if self._eof:
            self._end()
        if self._lost:
            self._leave(None)
        else:
            self.resume_reading()

    def data_received(self, data: bytes) -> None:
        self.bytes_in += len(data)
        if self.other is None:
            self._waiting += data
            self.pause_reading()
            return
        self._write(data)

    def eof_received(self) -> bool:
        self._eof = True
        if self.other is not None:
            self._end()
        return self.transport is not None and self.transport.can_write_eof()  # TLS is over for both sides

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.resume_reading()

    def pause_reading(self) -> None:
        """Hear no more for now."""
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Hear on."""
        if self.transport is not None:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self.transport = None
        self.how = str(exc) if exc is not None else "closed"
        if self.other is not None:
            self._leave(exc)
        if self.gone is not None:
            gone, self.gone = self.gone, None
            gone()

    def close(self) -> None:
        """End both, when what was written is out."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """End both at once."""
        if self.transport is not None:
            self.transport.abort()

    def _write(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def _end(self) -> None:
        """The other end hears that nothing more comes; one that cannot is closed."""
        transport = self.other.transport if self.other is not None else None
        if transport is None:
            return
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _leave(self, exc: Exception | None) -> None:
        other = self.other
        if other is None or other.transport is None:
            return
        if exc is not None and isinstance(other.transport, Stream):
            other.transport.abort()  # a stream that only ended would look whole
        else:
            other.transport.close()
