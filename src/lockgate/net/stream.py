"""One socket: its bytes go to a `Connection`, what the broker has for it goes out in one write."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING, cast

from lockgate.broker.connection import Connection
from lockgate.net.turns import Turns, clock

if TYPE_CHECKING:
    from lockgate.net.listener import Listener

# The transport reports itself full beyond this; output then gathers in the connection, where it is bounded. What lies
# in the transport below that is not counted against the memory budget.
_WRITE_BUFFER_BYTES = 65_536
# What is read at once of a peer that sends more than anybody could take
LARGE_READ = 65_536
# How long a peer may take to read the last packets before its socket is closed.
_LINGER_SECONDS = 5.0


class Stream:
    """The asyncio side of one Network Connection.

    It is an `asyncio.Protocol` by its methods alone: a compiled class has no interpreted base.
    """

    __slots__ = (
        "_broker",
        "_handed_over",
        "_linger",
        "_listener",
        "_reading",
        "_socket",
        "_transport",
        "_turns",
        "connection",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._broker = listener.broker
        self._turns: Turns = listener.broker.turns
        self._reading = True
        self._socket = -1
        self._handed_over = False  # bytes to the transport, which may still have them
        self._linger: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self.connection: Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce an accepted socket to the broker."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._socket = transport.get_extra_info("socket").fileno()
        listener = self._listener
        if not listener.nodelay:
            _set_delay(self._socket)
        name = transport.get_extra_info("peername")
        is_network = isinstance(name, tuple)
        peer = f"{name[0]}:{name[1]}" if is_network else _process(self._socket)
        self._announce(peer)
        # Behind a PROXY header stands another address, which is counted then.
        address = name[0] if is_network and not listener.config.proxy_protocol else ""
        self.connection = self._broker.admit(self, peer, listener.limits, address)
        if listener.is_full():
            self.connection.close("max_connections of the listener is reached")
        listener.streams.add(self)
        if self.connection.is_closing:
            self._turns.flush()
        if listener.is_closed:  # it was accepted just before
            self.close()

    def _announce(self, peer: str) -> None:
        self._listener.announce(peer)

    def data_received(self, data: bytes) -> None:
        """Handle everything that was read, then write once for each connection it touched."""
        now = clock()
        connection = self.connection
        connection.receive(data, now)
        if len(data) >= LARGE_READ and self._turns.takes_too_much(self, len(data)):
            self._give_way(now)
        if connection.closing_reason and connection.version == 0:
            self._name_mistake(data)
        self._turns.end_read(now)

    def _name_mistake(self, data: bytes) -> None:
        """Say what bytes that are no CONNECT seem to be."""
        from lockgate.transport.mistakes import MQTT, likely_mistake

        mistake = likely_mistake(data, MQTT)
        if mistake is not None:
            self.connection.closing_reason = f"heard {mistake}"

    def pause_writing(self) -> None:
        """Note that the peer reads too slowly."""
        self.connection.set_writable(False, clock())
        self.connection.count_unsent(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Go on with what gathered meanwhile."""
        self.connection.set_writable(True, clock())
        self.connection.touch()
        self._turns.flush()

    def eof_received(self) -> bool:
        """Let the transport close: a client that has stopped sending is gone."""
        self._abort_later()  # it waits for the peer to read what is left, which may be never
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the broker."""
        if self._linger is not None:
            self._linger.cancel()  # it would keep all of this for as long
        self._listener.streams.discard(self)
        self._broker.dismiss(self, clock())

    def write(self) -> None:
        """Write what the connection has, if the peer takes it, and close the socket when that is over."""
        connection = self.connection
        if connection.output:
            if connection.writable or connection.is_closing:
                self._write(connection.take_output())
            if not connection.writable:
                connection.count_unsent(self._transport.get_write_buffer_size())
        if connection.has_more and connection.writable:
            self._turns.continue_later(connection)
        if connection.is_closing:
            if not self._transport.is_closing():
                self._transport.close()
                self._abort_later()
        elif connection.wants_input != self._reading:
            self._read(not self._reading)

    def _abort_later(self) -> None:
        if self._linger is None:
            seconds = 0.0 if self._broker.broker.memory.is_spent() else _LINGER_SECONDS
            self._linger = asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    def _give_way(self, now: float) -> None:
        """Read nothing more before others had their turn; at once, for the loop is about to read again."""
        self.connection.wait(now)
        if self._reading:
            self._read(False)

    def _read(self, reading: bool) -> None:
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _write(self, data: bytes) -> None:
        """Write to the socket at once, and leave only what it does not take to the transport.

        The transport's own way puts each write off to the end of the loop's turn, which costs more than the write.
        """
        if not self._handed_over or self._transport.get_write_buffer_size() == 0:
            self._handed_over = False
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
        self._handed_over = True
        self._transport.write(data)

    def close(self) -> None:
        """Close after what was written has left."""
        self._transport.close()


def _set_delay(number: int) -> None:
    """Let small packets wait for each other (Nagle), which the loops turn off for every socket."""
    sock = socket.socket(fileno=number)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    sock.detach()


def _process(number: int) -> str:
    """Name the process at the other end of a Unix socket, as it is logged."""
    sock = socket.socket(fileno=number)
    try:
        pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except (OSError, AttributeError):  # no such thing on this system
        return "unix socket"
    finally:
        sock.detach()
    return f"unix socket (pid {pid}, uid {uid})"
