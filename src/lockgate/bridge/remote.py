"""The way to the remote broker: socket, TLS, and the connection that a relay listens to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final

from lockgate.bridge.relay import Relay
from lockgate.client.connection import Connection
from lockgate.config.model import BridgeConfig, BridgeTlsConfig
from lockgate.mqtt.packets import V5, ConnAck, Connect, Will
from lockgate.mqtt.properties import Properties
from lockgate.transport.tls_client import ClientTls

_NEVER: Final = 0xFFFFFFFF


class Remote(Connection):
    """The client's connection, which also tells how fast the remote broker reads."""

    def __init__(self, relay: Relay, connect: Connect) -> None:
        super().__init__(relay, connect, 0, _accepted)
        self._relay = relay
        relay.connection = self

    def pause_writing(self) -> None:
        super().pause_writing()
        self._relay.set_writable(False)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._relay.set_writable(True)

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.disconnected()
        super().connection_lost(error)


def _accepted(_connack: ConnAck) -> None:
    """Nothing: `Remote.accepted` tells."""


def connect_packet(
    config: BridgeConfig, version: int, is_private: bool, will: Will | None, maximum_packet_size: int
) -> Connect:
    """Give the CONNECT of a bridge. `is_private`: with the bit by which Mosquitto knows bridges."""
    properties: Properties | None = None
    if version == V5:
        interval = config.session_expiry_interval
        if interval is None:  # what cleansession false means in the versions before
            interval = 0 if config.cleansession else _NEVER
        properties = Properties(
            session_expiry_interval=interval or None,
            receive_maximum=config.receive_maximum,
            maximum_packet_size=maximum_packet_size or None,
            topic_alias_maximum=config.max_topic_alias or None,
        )
    return Connect(
        config.client_id,
        version,
        config.cleansession,
        config.keepalive_interval,
        config.username,
        config.password.encode() if config.password is not None else None,
        will,
        properties,
        is_private and version != V5,
    )


async def open_socket(config: BridgeConfig, host: str, port: int) -> socket.socket:
    """Connect to the first of a host's addresses that answers. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    refused: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _name, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            _set_options(sock, config)
            if config.bind_address is not None:
                own = await loop.getaddrinfo(config.bind_address, 0, family=family, type=socket.SOCK_STREAM)
                sock.bind(own[0][4])
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            refused = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise refused


def _set_options(sock: socket.socket, config: BridgeConfig) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if config.tcp_keepalive is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in zip(
            (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT), config.tcp_keepalive, strict=True
        ):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if config.tcp_user_timeout is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, config.tcp_user_timeout)


async def open_connection(config: BridgeConfig, host: str, port: int, remote: Remote) -> None:
    """Open the connection up to the accepting CONNACK.

    Raises what `Connection.accepted` does, OSError and TlsSetupError.
    """
    context = tls_context(config.tls) if config.tls is not None else None
    sock = await open_socket(config, host, port)
    try:
        await asyncio.get_running_loop().create_connection(
            lambda: remote, sock=sock, ssl=context, server_hostname=host if context is not None else None
        )
    except BaseException:
        sock.close()
        raise
    await remote.accepted


def tls_context(tls: BridgeTlsConfig) -> ssl.SSLContext:
    """Read the files of TLS, anew for each connection. Raises TlsSetupError."""
    return ClientTls(
        cafile=tls.cafile,
        capath=tls.capath,
        use_os_certs=tls.use_os_certs,
        certfile=tls.certfile,
        keyfile=tls.keyfile,
        insecure=tls.insecure,
        minimum_version=tls.tls_version,
        ciphers=tls.ciphers,
        alpn=(tls.alpn,) if tls.alpn is not None else (),
    ).context()
