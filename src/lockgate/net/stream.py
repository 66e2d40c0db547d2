"""One socket: its bytes go to a `Connection`, what the broker has for it goes out in one write."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from lockgate.broker.connection import Connection
from lockgate.broker.limits import ListenerLimits

if TYPE_CHECKING:
    from lockgate.net.service import BrokerService

# The transport reports itself full beyond this; output then gathers in the connection, where it is bounded.
_WRITE_BUFFER_BYTES = 262_144
# How long a peer may take to read the last packets before its socket is closed.
_LINGER_SECONDS = 5.0


class Stream(asyncio.Protocol):
    """The asyncio side of one Network Connection."""

    __slots__ = ("_broker", "_clock", "_limits", "_lost", "_reading", "_socket", "_transport", "connection", "refused")

    def __init__(self, broker: BrokerService, limits: ListenerLimits, lost: Callable[[Stream], None]) -> None:
        self._broker = broker
        self._limits = limits
        self._lost = lost
        self._clock = broker.clock
        self._reading = True
        self._socket = -1
        self._transport: asyncio.Transport
        self.connection: Connection
        self.refused = False  # the listener has max_connections already

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce an accepted socket to the broker."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._socket = transport.get_extra_info("socket").fileno()
        peer = _address(transport.get_extra_info("peername"))
        self.connection = self._broker.admit(self, peer, self._limits)
        if self.refused:
            self.connection.close("max_connections of the listener is reached")
            self._broker.flush()

    def data_received(self, data: bytes) -> None:
        """Handle everything that was read, then write once for each connection it touched."""
        now = self._clock()
        self.connection.receive(data, now)
        self._broker.end_read(now)

    def pause_writing(self) -> None:
        """Note that the peer reads too slowly."""
        self.connection.set_writable(False, self._clock())
        self.connection.count_unsent(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Go on with what gathered meanwhile."""
        self.connection.set_writable(True, self._clock())
        self.connection.touch()
        self._broker.flush()

    def eof_received(self) -> bool:
        """Let the transport close: a client that has stopped sending is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the broker."""
        self._lost(self)
        self._broker.dismiss(self, self._clock())

    def write(self) -> None:
        """Write what the connection has, if the peer takes it, and close the socket when that is over."""
        connection = self.connection
        if connection.output:
            if connection.writable or connection.is_closing:
                self._write(connection.take_output())
                if connection.has_more and connection.writable:
                    connection.set_writable(True, self._clock())  # the next piece of what waits
            if not connection.writable:
                connection.count_unsent(self._transport.get_write_buffer_size())
        if connection.is_closing:
            if not self._transport.is_closing():
                self._transport.close()
                asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.abort)
        elif connection.wants_input != self._reading:
            self._reading = not self._reading
            if self._reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _write(self, data: bytes) -> None:
        """Write to the socket at once, and leave only what it does not take to the transport.

        The transport's own way puts each write off to the end of the loop's turn, which costs more than the write.
        """
        if self._socket >= 0 and self._transport.get_write_buffer_size() == 0:
            try:
                written = os.write(self._socket, data)
            except (BlockingIOError, InterruptedError):
                written = 0
            except OSError:
                self._transport.abort()
                return
            if written == len(data):
                return
            data = data[written:]
        self._transport.write(data)

    def close(self) -> None:
        """Close after what was written has left."""
        self._transport.close()


def _address(name: object) -> str:
    if isinstance(name, tuple):
        return f"{name[0]}:{name[1]}"
    return "unix socket" if name is not None else "unknown"
