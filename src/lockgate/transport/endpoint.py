"""Where a Server is, and what lies between it and MQTT."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from lockgate.transport.stack import ClientLayer, Stack

if TYPE_CHECKING:
    import asyncio
    import ssl

    from lockgate.transport.tls_client import ClientTls


class Proxy(NamedTuple):
    """A SOCKS 5 proxy, which resolves the Server's name itself."""

    host: str
    port: int = 1080
    username: str | None = None
    password: str | None = None


class Endpoint(NamedTuple):
    """How to reach a Server: a TCP port or a Unix socket, then proxy, TLS and WebSocket, as many as are named.

    A NamedTuple and no dataclass, because programs that start often import it.
    """

    host: str = "localhost"
    port: int = 1883
    unix: str | None = None  # path of a socket, in place of host and port
    tls: ClientTls | None = None
    websocket_path: str | None = None  # MQTT over WebSocket, asking for this path
    bind: str | None = None  # our own address
    proxy: Proxy | None = None
    nodelay: bool = True  # send small packets at once, instead of waiting for what they could be joined with

    def __str__(self) -> str:
        if self.unix is not None:
            return self.unix
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def dialled(self) -> tuple[str, int]:
        """Host and port of the TCP connection: the proxy's, if there is one."""
        return (self.proxy.host, self.proxy.port) if self.proxy is not None else (self.host, self.port)

    def context(self) -> ssl.SSLContext | None:
        """Read the files of TLS, once for any number of connections. Raises TlsSetupError."""
        return self.tls.context() if self.tls is not None else None

    def stack(self, context: ssl.SSLContext | None) -> Stack | None:
        """Give what lies above the socket of one connection; None: nothing does."""
        layers: list[ClientLayer] = []
        if self.proxy is not None:
            from lockgate.transport.socks5 import Socks5Layer

            layers.append(Socks5Layer(self.host, self.port, self.proxy.username, self.proxy.password))
        if context is not None:
            from lockgate.transport.tls_client import TlsLayer

            layers.append(TlsLayer(context, self.host))
        if self.websocket_path is not None:
            from lockgate.transport.websocket_client import WebSocketLayer

            usual = 443 if context is not None else 80
            port = None if self.unix is not None or self.port == usual else self.port
            layers.append(WebSocketLayer(self.host, port, self.websocket_path))
        return Stack(layers) if layers else None

    async def open(self, loop: asyncio.AbstractEventLoop, make: Callable[[], asyncio.Protocol]) -> None:
        """Open the socket for a protocol of asyncio. Raises OSError."""
        if self.unix is not None:
            await loop.create_unix_connection(make, self.unix)
            return
        host, port = self.dialled
        local = (self.bind, 0) if self.bind is not None else None
        transport, _ = await loop.create_connection(make, host, port, local_addr=local)
        if not self.nodelay:  # asyncio always sets it
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)

    def connect(self, timeout_seconds: float | None) -> socket.socket:
        """Open the socket, for programs without a loop; no timeout: the system's. Raises OSError."""
        if self.unix is not None:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(timeout_seconds)
                sock.connect(self.unix)
            except BaseException:
                sock.close()
                raise
            return sock
        source = (self.bind, 0) if self.bind is not None else None
        sock = socket.create_connection(self.dialled, timeout_seconds, source)
        if self.nodelay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
