"""One configured listener: its sockets, its limits, and the streams it accepted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lockgate.broker.limits import ListenerLimits
from lockgate.broker.ports import Authority
from lockgate.config.model import BrokerConfig, ListenerConfig
from lockgate.net.stream import Stream

if TYPE_CHECKING:
    from lockgate.net.service import BrokerService
    from lockgate.transport.layer import Layer
    from lockgate.transport.tls import TlsServer

log = logging.getLogger(__name__)

_BACKLOG = 100  # Mosquitto's; the kernel queues what arrives while a turn lasts


class PortInUse(OSError):
    """A listener's port is taken by another program; `port` is its number."""

    def __init__(self, port: int, address: str) -> None:
        super().__init__(errno.EADDRINUSE, f"port {port} on {address} is in use")
        self.port = port


class ListenerSettings:
    """What a configuration says of one listener, ready for use: a reload makes all of them before it uses any."""

    def __init__(self, config: ListenerConfig, common: BrokerConfig, authority: Authority | None) -> None:
        """Raises ConfigError for a certificate or key that cannot be used."""
        self.config = config
        self.nodelay = common.set_tcp_nodelay
        self.layers: list[Callable[[], Layer]] = []
        self.tls: TlsServer | None = None
        anonymous = config.allow_anonymous
        prefix, empty = config.auto_id_prefix, config.allow_zero_length_clientid
        self.limits = ListenerLimits(
            port=config.port,
            allow_anonymous=anonymous if anonymous is not None else common.allow_anonymous,
            max_qos=config.max_qos,
            max_topic_alias=config.max_topic_alias,
            max_topic_alias_broker=config.max_topic_alias_broker,
            protocol_versions=config.protocol_versions,
            username_from_certificate=config.username_from is not None,
            authority=authority,
            allow_zero_length_clientid=empty if empty is not None else common.allow_zero_length_clientid,
            auto_id_prefix=prefix if prefix is not None else common.auto_id_prefix,
            username_as_client_id=config.use_username_as_clientid,
            mount_point=config.mount_point,
        )
        self._prepare_layers(common.websockets_headers_size)

    def _prepare_layers(self, headers_size: int) -> None:
        """Set up what lies between the socket and MQTT; its modules are loaded only where a listener asks for them."""
        config = self.config
        if config.proxy_protocol:
            from lockgate.transport.proxy_protocol import ProxyProtocol

            version, tls, certificate = config.proxy_protocol, config.proxy_require_tls, config.require_certificate
            self.layers.append(lambda: ProxyProtocol(version, tls, certificate and version == 2))
        if config.tls is not None:
            from lockgate.transport.tls import TlsServer

            self.tls = TlsServer(config.tls, config.username_from)
            self.layers.append(self.tls.layer)
        if config.websockets:
            from lockgate.transport.websocket import WebSocket

            self.layers.append(lambda: WebSocket(config.websockets_origins, headers_size))


Door = tuple[object, ...]


def door(config: ListenerConfig) -> Door:
    """Give what a listener opens: as long as that stays the same, its sockets do."""
    return (config.http_api, config.port, config.address, config.path, config.domain, config.interface)


class Listener:
    """Accepts connections on one port, on one address or on all of IPv4 and IPv6, or on a Unix socket."""

    def __init__(self, settings: ListenerSettings, broker: BrokerService) -> None:
        self.broker = broker
        self.streams: set[Stream] = set()
        self.is_closed = False
        self._servers: list[asyncio.AbstractServer] = []
        self._bound: list[socket.socket] = []
        self._inode = 0  # of our Unix socket
        self.use(settings)

    def use(self, settings: ListenerSettings) -> None:
        """Go on with other settings: limits count at once, what lies under MQTT for the connections that come."""
        self.config = settings.config
        self.nodelay = settings.nodelay
        self.limits = settings.limits
        self._layers = settings.layers
        if self._layers:
            from lockgate.net.layered import LayeredStream

            self._layered = LayeredStream
        for stream in self.streams:
            stream.connection.limits = settings.limits

    async def open(self) -> None:
        """Begin to accept; raises PortInUse, or OSError with the address in its text."""
        loop = asyncio.get_running_loop()
        kind = "websockets" if self.config.websockets else ""
        if self.config.path is not None:
            sock = bind_unix(self.config.path)
            self._inode = os.stat(self.config.path).st_ino
            self._bound.append(sock)
            log.info("Opening %s listen socket on path %s.", kind or "unix", self.config.path)
            self._servers.append(await loop.create_unix_server(self._accept, sock=sock, backlog=_BACKLOG))
            return
        self._bound = bind(self.config)
        for sock in self._bound:
            family = "ipv6" if sock.family == socket.AF_INET6 else "ipv4"
            log.info("Opening %s listen socket on port %d.", kind or family, sock.getsockname()[1])
            self._servers.append(await loop.create_server(self._accept, sock=sock, backlog=_BACKLOG))

    @property
    def is_open(self) -> bool:
        """Whether it accepts."""
        return bool(self._servers)

    async def rest(self) -> None:
        """Accept nothing more until `open`; who is connected stays."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._bound.clear()
        await asyncio.sleep(0)  # the loop closes the sockets in a turn of its own

    @property
    def port(self) -> int:
        """The port that was really opened: another than configured only if that was 0; 0 for a Unix socket."""
        return 0 if self.config.path is not None else int(self._bound[0].getsockname()[1])

    def is_full(self) -> bool:
        """Whether max_connections is reached."""
        return 0 <= self.config.max_connections <= len(self.streams)

    def announce(self, peer: str) -> None:
        """Log a new connection, unless lines about its address are being left out."""
        if not self.broker.complaints.is_repeating(peer, self.broker.clock()):
            place = self.config.path if self.config.path is not None else f"port {self.config.port}"
            log.info("New connection from %s on %s.", peer, place)

    def _accept(self) -> asyncio.Protocol:
        stream = self._layered(self, [make() for make in self._layers]) if self._layers else Stream(self)
        return cast(asyncio.Protocol, stream)

    def close(self) -> None:
        """Accept nothing more and close what was accepted."""
        self.is_closed = True
        for server in self._servers:
            server.close()
        for stream in list(self.streams):
            stream.close()
        if self.config.path is not None and self._inode:
            with contextlib.suppress(OSError):
                if os.stat(self.config.path).st_ino == self._inode:  # nobody else put another one there
                    os.unlink(self.config.path)


def bind_unix(path: Path) -> socket.socket:
    """Bind to a path; a socket that a dead program left there is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_behind(path):
            log.info("Removing %s, a socket that nobody listens on.", path)
            path.unlink()
        sock.bind(os.fspath(path))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on the Unix socket {path}: {error.strerror}") from None
    return sock


def _is_left_behind(path: Path) -> bool:
    """Whether there is a socket without a program; raises OSError if there is something else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except TimeoutError:  # somebody is there, and busy
            pass
    raise OSError(errno.EADDRINUSE, "another program listens there")


_FAMILIES = {None: socket.AF_UNSPEC, "ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


def bind(config: ListenerConfig) -> list[socket.socket]:
    """Bind to an address or host name, or to every address of the machine; IPv6 may be missing from the machine."""
    address, port, wanted = config.address, config.port, _FAMILIES[config.domain]
    places = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
    if address is not None:
        try:
            found = socket.getaddrinfo(address, port, wanted, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except socket.gaierror as error:
            raise OSError(f"listener address {address!r} cannot be resolved: {error.strerror}") from None
        places = list(dict.fromkeys((entry[0], str(entry[4][0])) for entry in found))
    places = [place for place in places if wanted in (socket.AF_UNSPEC, place[0])]
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
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if config.interface is not None:
                _bind_interface(sock, config.interface)
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
                log.warning("No IPv6 on this machine, port %d is opened on IPv4 only.", port)
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


def _bind_interface(sock: socket.socket, interface: str) -> None:
    """Let a socket hear one network device alone."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    except OSError as error:
        raise OSError(error.errno, f"bind_interface {interface}: {error.strerror}") from None
