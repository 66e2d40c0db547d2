"""WebSocket frames within a stream: bytes on one side of this transport, frames on the other (RFC 6455 §5).

A request for a WebSocket whose rule leads to plain TCP makes the connector the server of the frames, and the edge, or
whoever asked, their client.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol, cast

from lockgate.transport.layer import TransportError

WEBSOCKET_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
UP_FRAME_BYTES: Final = 16 * 1024  # of a message to cloudflared, which drops what is beyond


class Frames(Protocol):
    """What `transport.websocket` and `transport.websocket_client` have in common, once they are open."""

    @property
    def has_output(self) -> bool: ...

    @property
    def ended(self) -> bool: ...

    def receive(self, data: bytes) -> bytes: ...

    def send(self, data: bytes) -> bytes: ...

    def finish(self, data: bytes) -> bytes: ...


class Framed(asyncio.Transport, asyncio.Protocol):
    """The protocol of what carries frames, and the transport of whoever wants the bytes within."""

    def __init__(self, below: asyncio.Transport, frames: Frames, limit: int = 1 << 20) -> None:
        """`limit`: bytes of one frame that we send."""
        super().__init__()
        self._below = below
        self._frames = frames
        self._limit = limit
        self._protocol: asyncio.Protocol | None = None
        self._ended = False
        self._paused = False
        below.set_protocol(self)

    # --- to whoever wants the bytes ------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._ended or self._below.is_closing()

    def can_write_eof(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        whole = bytes(data)
        for at in range(0, len(whole), self._limit):
            self._below.write(self._frames.send(whole[at : at + self._limit]))

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._below.write(self._frames.finish(b""))
            self._below.close()

    def abort(self) -> None:
        self._ended = True
        self._below.abort()

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()

    def pause_reading(self) -> None:
        self._below.pause_reading()

    def resume_reading(self) -> None:
        self._below.resume_reading()

    # --- of what carries frames ----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            payload = self._frames.receive(data)
        except TransportError:
            self.close()
            return
        self._answer()
        if payload and self._protocol is not None:
            self._protocol.data_received(payload)
        if self._frames.ended:
            self.close()

    def headers_received(self, headers: object) -> None:
        """Trailers mean nothing here."""

    def eof_received(self) -> bool:
        if self._protocol is not None and not self._ended:
            self._protocol.eof_received()
        return True

    def _answer(self) -> None:
        """Say Pong, the last one alone to who does not read."""
        if self._frames.has_output and not self._paused:
            self._below.write(self._frames.send(b""))

    def pause_writing(self) -> None:
        self._paused = True
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        self._answer()
        if self._protocol is not None:
            self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connection_lost(exc)
