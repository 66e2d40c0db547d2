"""One configured listener: its sockets, its limits, and the streams it accepted."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import TYPE_CHECKING

from lockgate.broker.limits import ListenerLimits
from lockgate.config.model import ListenerConfig
from lockgate.net.stream import Stream

if TYPE_CHECKING:
    from lockgate.net.service import BrokerService

log = logging.getLogger(__name__)

_BACKLOG = 100  # Mosquitto's; the kernel queues what arrives while a turn lasts


class PortInUse(OSError):
    """A listener's port is taken by another program; `port` is its number."""

    def __init__(self, port: int, address: str) -> None:
        super().__init__(errno.EADDRINUSE, f"port {port} on {address} is in use")
        self.port = port


class Listener:
    """Accepts connections on one port, on one address or on all of IPv4 and IPv6."""

    def __init__(self, config: ListenerConfig, allow_anonymous: bool, broker: BrokerService) -> None:
        self.config = config
        self.streams: set[Stream] = set()
        self._broker = broker
        self._servers: list[asyncio.Server] = []
        anonymous = config.allow_anonymous if config.allow_anonymous is not None else allow_anonymous
        self._limits = ListenerLimits(
            port=config.port,
            allow_anonymous=anonymous,
            max_qos=config.max_qos,
            max_topic_alias=config.max_topic_alias,
            max_topic_alias_broker=config.max_topic_alias_broker,
        )

    async def open(self) -> None:
        """Begin to accept; raises PortInUse, or OSError with the address in its text."""
        loop = asyncio.get_running_loop()
        for sock in _bind(self.config.address, self.config.port):
            family = "ipv6" if sock.family == socket.AF_INET6 else "ipv4"
            log.info("Opening %s listen socket on port %d.", family, sock.getsockname()[1])
            self._servers.append(await loop.create_server(self._accept, sock=sock, backlog=_BACKLOG))

    @property
    def port(self) -> int:
        """The port that was really opened: another than configured only if that was 0."""
        return int(self._servers[0].sockets[0].getsockname()[1])

    def is_full(self) -> bool:
        """Whether max_connections is reached."""
        return 0 <= self.config.max_connections <= len(self.streams)

    def _accept(self) -> Stream:
        stream = Stream(self._broker, self._limits, self.streams.discard)
        stream.refused = self.is_full()
        self.streams.add(stream)
        return stream

    def close(self) -> None:
        """Accept nothing more and close what was accepted."""
        for server in self._servers:
            server.close()
        for stream in list(self.streams):
            stream.close()


def _bind(address: str | None, port: int) -> list[socket.socket]:
    """Bind to an address or host name, or to every address of the machine; IPv6 may be missing from the machine."""
    places = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
    if address is not None:
        try:
            found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except socket.gaierror as error:
            raise OSError(f"listener address {address!r} cannot be resolved: {error.strerror}") from None
        places = list(dict.fromkeys((entry[0], str(entry[4][0])) for entry in found))
    sockets: list[socket.socket] = []
    for family, host in places:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            if sockets and family == socket.AF_INET6:
                continue
            raise
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
                log.warning("Warning: no IPv6 on this machine, port %d is opened on IPv4 only.", port)
                continue
            for other in sockets:
                other.close()
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(port, host) from None
            raise OSError(error.errno, f"cannot listen on {host} port {port}: {error.strerror}") from None
        if port == 0:
            port = int(sock.getsockname()[1])  # the same for both families
        sockets.append(sock)
    if not sockets:
        raise OSError(errno.EADDRNOTAVAIL, f"no address to listen on for port {port}")
    return sockets
