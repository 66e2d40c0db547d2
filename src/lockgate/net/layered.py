"""One socket with something between it and MQTT: a PROXY header, TLS, WebSocket, or several of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lockgate.net.stream import LARGE_READ, Stream
from lockgate.net.turns import clock
from lockgate.transport.layer import Layer, TransportError
from lockgate.transport.proxy_protocol import ProxyProtocol

if TYPE_CHECKING:
    from lockgate.net.listener import Listener


class LayeredStream(Stream):
    """A Stream whose bytes go through layers, from the socket's to MQTT's; it counts as a connection from accept on."""

    __slots__ = ("_heard", "_layers", "_opening", "_parting")

    def __init__(self, listener: Listener, layers: list[Layer]) -> None:
        super().__init__(listener)
        self._layers = layers
        self._opening = True  # until the first bytes for MQTT arrive
        self._heard = False  # anything
        self._parting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce an accepted socket to the broker, with what its layers cost."""
        super().connection_made(transport)
        self.connection.hold(sum(layer.memory_bytes for layer in self._layers))

    def data_received(self, data: bytes) -> None:
        """Handle everything that was read, then write once for each connection it touched."""
        now = clock()
        connection = self.connection
        try:
            if self._opening:
                data = self._open(data)
            else:
                for layer in self._layers:
                    data = layer.receive(data)
                    if not data:
                        break
        except TransportError as error:
            data = b""
            connection.close(str(error))
        if data:
            connection.receive(data, now)
            if len(data) >= LARGE_READ and self._turns.takes_too_much(self, len(data)):
                self._give_way(now)
        for layer in self._layers:
            if layer.ended:
                connection.close("")
            if layer.ended or layer.has_output:
                connection.touch()
        self._turns.end_read(now)

    def _open(self, data: bytes) -> bytes:
        """Take the first bytes up to MQTT, and learn on the way who the client is."""
        self._heard = True
        for layer in tuple(self._layers):
            data = layer.receive(data)
            if layer.identity is not None and self.connection.limits.username_from_certificate:
                self.connection.identity = layer.identity
            if isinstance(layer, ProxyProtocol) and layer.header is not None:
                self._layers.remove(layer)
                if layer.header.source is not None:
                    self.connection.peer = layer.header.source
                    self._broker.count_address(self.connection, layer.header.source.rpartition(":")[0])
                self._listener.announce(self.connection.peer)
            if not data:
                return data
        self._opening = False
        return data

    def _announce(self, peer: str) -> None:
        if not self._listener.config.proxy_protocol:  # else the header tells from whom it is
            self._listener.announce(peer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the broker, and why if the peer left before it came to MQTT."""
        unopened = next((layer for layer in self._layers if not layer.is_open), None)
        if unopened is not None and self._heard:
            self._broker.handshakes_failed += 1
            if not self.connection.closing_reason:
                self.connection.closing_reason = f"the peer left within the {unopened.opening}"
        super().connection_lost(exc)

    def write(self) -> None:
        """Write what the connection and the layers have, if the peer takes it; say goodbye when that is over."""
        connection = self.connection
        if connection.is_closing:
            self._part()
        elif connection.writable:
            data = connection.take_output() if connection.output else b""
            for layer in reversed(self._layers):
                data = layer.send(data)
            if data:
                self._write(data)
            if connection.has_more:
                self._turns.continue_later(connection)
        if not connection.writable:
            connection.count_unsent(self._transport.get_write_buffer_size())
        if not connection.is_closing:
            stuck = not connection.writable and any(layer.has_output for layer in self._layers)
            wanted = connection.wants_input and not stuck
            if wanted != self._reading:
                self._read(wanted)

    def _part(self, wait: bool = True) -> None:
        """Say goodbye once, and close the socket when the peer has answered or need not."""
        if self._transport.is_closing():
            return
        if not self._parting:
            self._parting = True
            data = self.connection.take_output() if self.connection.output else b""
            for layer in reversed(self._layers):
                data = layer.finish(data)
            if data:
                self._write(data)
            if not self._reading:  # the answer has to be heard
                self._read(True)
            self._abort_later()
        if not wait or not any(layer.awaits_goodbye for layer in self._layers):
            self._transport.close()

    def close(self) -> None:
        """Say goodbye, and close after that has left."""
        self._part(wait=False)
