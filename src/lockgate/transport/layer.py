"""One protocol between the socket and MQTT, as a pair of functions on bytes."""

from __future__ import annotations

from typing import Protocol


class TransportError(Exception):
    """The peer broke a protocol below MQTT, or is no peer for it; the text is for the log and names the cause."""


class Layer(Protocol):
    """Bytes go up through `receive` and down through `send`; whoever owns the socket moves them."""

    def receive(self, data: bytes) -> bytes:
        """Give what these bytes from below mean for the layer above, maybe nothing.

        Raises TransportError, after which `finish` gives the layer's last words and nothing more may be received.
        """

    def send(self, data: bytes) -> bytes:
        """Give the bytes for below: what the layer has to say itself, then `data` in its form."""

    def finish(self, data: bytes) -> bytes:
        """Like `send`, and say goodbye; the last call."""

    @property
    def opening(self) -> str:
        """What comes first, for the log: its handshake or header."""

    @property
    def memory_bytes(self) -> int:
        """What it costs to hold, about."""

    @property
    def is_open(self) -> bool:
        """Whether that is over."""

    @property
    def identity(self) -> str | None:
        """Who the client proved to be, as far as this layer is to know; set before bytes for the layer above."""

    @property
    def has_output(self) -> bool:
        """Whether the layer has something to say itself."""

    @property
    def ended(self) -> bool:
        """Whether the peer said goodbye: nothing more will come."""

    @property
    def awaits_goodbye(self) -> bool:
        """Whether after `finish` the peer has to answer before the socket is closed."""
