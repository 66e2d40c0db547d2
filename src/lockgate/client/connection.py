"""One Network Connection to a Server: bytes to and from a Session, keep-alive, and why it ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

from lockgate.client.errors import ConnectionLost, ConnectionRefused
from lockgate.mqtt import reason_codes
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import PINGREQ_FRAME, encode
from lockgate.mqtt.errors import MqttError, ProtocolError
from lockgate.mqtt.packets import TYPE_NAMES, V5, ConnAck, Connect, Disconnect, Packet, PingResp
from lockgate.transport.layer import TransportError
from lockgate.transport.stack import Stack

_PING_TIMEOUT_SECONDS: Final = 10.0  # how long a PINGRESP may take, if the keep-alive is not shorter
_GOODBYE_SECONDS: Final = 1.0  # for the Server to close after DISCONNECT


def now() -> float:
    """Seconds on the clock that also counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Conversation(Protocol):
    """What the packets of a connection mean: the client's Session, or whoever stands in its place."""

    @property
    def is_connected(self) -> bool:
        """Whether the Server has accepted us."""

    def connected(self, connack: ConnAck) -> None:
        """Begin: the Server accepts us."""

    def receive(self, packet: Packet) -> None:
        """Take any packet but those of the connection itself; raises MqttError for one that must not come."""

    def take_output(self) -> bytes:
        """Give the bytes to write now."""


class Connection(asyncio.Protocol):
    """Handles every packet of a read, then writes once.

    `accepted` ends with an accepting CONNACK or raises ConnectionRefused, ConnectionLost or MqttError; `closed` gives,
    when the connection has ended, why it did.
    """

    def __init__(
        self,
        session: Conversation,
        connect: Connect,
        maximum_packet_size: int,
        on_accepted: Callable[[ConnAck], None],
        stack: Stack | None = None,
    ) -> None:
        """`stack` lies between the socket and MQTT, if anything does."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._session = session
        self._connect = connect
        self._on_accepted = on_accepted
        self._stack = stack
        self._decoder = Decoder(connect.version, maximum_packet_size)
        self._transport: asyncio.Transport | None = None
        self._flush_scheduled = False
        self._finished = False  # nothing more is written
        self._why: str | None = None  # the first reason known for the end
        self._keep_alive = float(connect.keep_alive)
        self._timer: asyncio.TimerHandle | None = None
        self._last_sent = self._last_received = now()
        self._ping_sent: float | None = None
        self._reading = True
        self._writable = asyncio.Event()
        self._writable.set()
        self.disconnect_code = 0  # of the Server's DISCONNECT
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.accepted.add_done_callback(lambda future: future.cancelled() or future.exception())  # may be nobody waits
        self.closed: asyncio.Future[str] = loop.create_future()

    # --- asyncio ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write(encode(self._connect, self._connect.version))

    def data_received(self, data: bytes) -> None:
        if self._why is not None:
            return
        self._last_received = now()
        self._ping_sent = None
        if self._stack is not None:
            data = self._receive_below(self._stack, data)
        try:
            self._decoder.feed(data)
            while self._why is None and (packet := self._decoder.next_packet()) is not None:
                if self._session.is_connected:
                    self._established(packet)
                else:
                    self._awaiting_connack(packet)
        except MqttError as error:
            self._why = f"the server broke the protocol: {error}"
            self._fail(error)
            self.flush()
            if self._connect.version == V5:
                self._write(encode(Disconnect(error.reason_code), V5))
            self._close()
            return
        self.flush()

    def _receive_below(self, stack: Stack, data: bytes) -> bytes:
        """Give what came for MQTT, and let the layers below answer."""
        try:
            data = stack.receive(data)
            self._write(b"")
        except TransportError as error:
            self._why = str(error)
            self._fail(ConnectionLost(self._why))
            self._close()
            return b""
        if stack.ended and self._transport is not None:
            self._transport.close()
        return data

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        why = self._why or (f"the connection was lost: {error}" if error else "the server closed the connection")
        if self._why is None and self._stack is not None and not self._stack.is_open:
            why += " within the handshake below MQTT"
        self._why = why
        self._fail(ConnectionLost(why))
        self._writable.set()
        if not self.closed.done():
            self.closed.set_result(why)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- packets ---------------------------------------------------------------------------------------------------

    def _awaiting_connack(self, packet: Packet) -> None:
        if not isinstance(packet, ConnAck):
            raise ProtocolError(f"{TYPE_NAMES[packet.type]} before CONNACK")
        properties = packet.properties
        if packet.reason_code:
            reason_string = properties.reason_string if properties is not None else None
            refusal = ConnectionRefused(packet.reason_code, self._connect.version, reason_string)
            self._why = str(refusal)
            self._fail(refusal)
            self._close()
            return
        if properties is not None and properties.server_keep_alive is not None:
            self._keep_alive = float(properties.server_keep_alive)
        # The rest of this read may hold messages already: everyone is told before them.
        self._session.connected(packet)
        if not self.accepted.done():
            self.accepted.set_result(None)
        self._on_accepted(packet)
        if self._keep_alive:
            self._timer = self._loop.call_later(self._keep_alive / 4, self._watch)

    def _established(self, packet: Packet) -> None:
        if isinstance(packet, PingResp):
            return
        if isinstance(packet, Disconnect) and self._connect.version == V5:
            self.disconnect_code = packet.reason_code
            reason_string = packet.properties.reason_string if packet.properties is not None else None
            self._why = f"the server disconnected: {reason_codes.describe(packet.reason_code)}" + (
                f" ({reason_string})" if reason_string else ""
            )
            self._close()
            return
        self._session.receive(packet)

    # --- writing ---------------------------------------------------------------------------------------------------

    def schedule_flush(self) -> None:
        """Write what the Session has to say at the end of this turn of the loop, however many calls ask for it."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what the Session has to say."""
        self._flush_scheduled = False
        if self._session.is_connected:
            output = self._session.take_output()
            if output:
                self._write(output)

    async def drain(self) -> None:
        """Wait until the Server takes what was written, or the connection is gone."""
        await self._writable.wait()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._finished and not self._transport.is_closing():
            self._last_sent = now()
            if self._stack is not None:
                data = self._stack.send(data)
            if data:
                self._transport.write(data)

    def pause_reading(self) -> None:
        """Stop reading while the user is slow; nothing from the Server, not even a PINGRESP, is seen meanwhile."""
        if self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if not self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = True
            self._last_received = now()  # silence while we did not listen proves nothing
            self._ping_sent = None
            self._transport.resume_reading()

    # --- keep-alive ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        moment = now()
        timeout = min(_PING_TIMEOUT_SECONDS, self._keep_alive)
        if self._ping_sent is not None and self._reading and moment - self._ping_sent >= timeout:
            self.abort(f"the server did not answer PINGREQ within {timeout:g} seconds")
            return
        quiet = max(moment - self._last_sent, moment - self._last_received if self._reading else 0.0)
        # A quarter early: the next look comes a quarter later, and the Server must not wait longer than the keep-alive.
        if self._ping_sent is None and quiet >= self._keep_alive * 0.75:
            if self._reading:
                self._ping_sent = moment
            self._write(PINGREQ_FRAME)
        self._timer = self._loop.call_later(min(timeout, self._keep_alive) / 4, self._watch)

    # --- the end ---------------------------------------------------------------------------------------------------

    def disconnect(self, reason_code: int) -> None:
        """Send what is left and DISCONNECT, and let the Server close, for a moment.

        Closed by us at once, the connection would answer whatever is still on its way here with a reset. That takes
        an unread DISCONNECT with it, and the Server would publish the Will.
        """
        self.flush()
        if self._why is not None:
            self._close()
            return
        self._why = "disconnected"
        self._write(encode(Disconnect(reason_code), self._connect.version))
        transport = self._transport
        if transport is None or transport.is_closing() or not transport.can_write_eof():
            self._close()
            return
        self.resume_reading()  # what still comes is read and passed over
        self._finish_below(transport)
        with contextlib.suppress(OSError):  # the Server has closed already, of which we have not been told yet
            transport.write_eof()
        self._finished = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_GOODBYE_SECONDS, transport.close)

    def abort(self, why: str) -> None:
        """Drop the connection at once."""
        if self._why is None:
            self._why = why
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._finish_below(self._transport)
            self._transport.close()

    def _finish_below(self, transport: asyncio.Transport) -> None:
        if self._stack is not None and not self._finished:
            with contextlib.suppress(TransportError):
                transport.write(self._stack.finish())

    def _fail(self, error: Exception) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error)
