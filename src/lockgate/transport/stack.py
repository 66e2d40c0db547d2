"""What lies between a client's socket and its MQTT: layers that hold back what they are given until they are open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ClientLayer(Protocol):
    """One protocol below MQTT, seen from the client.

    It speaks first: the first `send` gives its opening words. Data for the peer waits in it until it is open.
    """

    def receive(self, data: bytes) -> bytes:
        """Give what these bytes from below mean for the layer above; raises TransportError."""

    def send(self, data: bytes) -> bytes:
        """Give the bytes for below: what the layer has to say itself, then `data` in its form."""

    def finish(self, data: bytes) -> bytes:
        """Like `send`, and say goodbye; the last call."""

    @property
    def is_open(self) -> bool:
        """Whether the peer has agreed, so that data goes through."""

    @property
    def ended(self) -> bool:
        """Whether the peer said goodbye: nothing more will come."""


class Stack:
    """Layers, the socket's first. Whoever owns the socket writes what `send` gives, also after each `receive`."""

    __slots__ = ("_layers",)

    def __init__(self, layers: Sequence[ClientLayer]) -> None:
        self._layers = tuple(layers)

    def receive(self, data: bytes) -> bytes:
        """Give what came for MQTT; raises TransportError."""
        for layer in self._layers:
            if not data:
                break
            data = layer.receive(data)
        return data

    def send(self, data: bytes = b"") -> bytes:
        """Give the bytes for the socket; without `data` what the layers have to say themselves."""
        for layer in reversed(self._layers):
            data = layer.send(data)
        return data

    def finish(self) -> bytes:
        """Give the goodbyes of all layers."""
        data = b""
        for layer in reversed(self._layers):
            data = layer.finish(data)
        return data

    @property
    def is_open(self) -> bool:
        """Whether every layer is."""
        return all(layer.is_open for layer in self._layers)

    @property
    def ended(self) -> bool:
        """Whether the peer said goodbye in one of them."""
        return any(layer.ended for layer in self._layers)
