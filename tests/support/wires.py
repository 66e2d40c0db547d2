"""Clients for every door, in pieces of any size: a socket, what a client puts on it, and the packets above."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol

from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from lockgate.config.model import BrokerConfig, ListenerConfig, TlsConfig
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V5, ConnAck, Connect, Packet, SubAck, Subscribe, SubscriptionRequest, Will
from lockgate.net.service import BrokerService
from lockgate.storage.memory import MemoryStore


@contextlib.asynccontextmanager
async def serving(*listeners: ListenerConfig, connect_timeout: float = 30.0) -> AsyncIterator[BrokerService]:
    """A broker that lets everybody in by these listeners."""
    service = BrokerService(BrokerConfig(listeners=listeners, allow_anonymous=True, sys_interval=0), MemoryStore)
    service.broker.limits = dataclasses.replace(service.broker.limits, connect_timeout=connect_timeout)
    ready = asyncio.Event()
    running = asyncio.create_task(service.run(ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if running.done():
        running.result()
    try:
        yield service
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


class ClientLayer(Protocol):
    """The client's side of what lies under MQTT."""

    def begin(self) -> bytes: ...
    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """Give what it means, and what has to be answered."""

    def send(self, data: bytes) -> bytes: ...
    @property
    def is_open(self) -> bool: ...


class ClientProxy:
    """A header in front of everything."""

    is_open = True

    def __init__(self, header: bytes) -> None:
        self._header = header

    def begin(self) -> bytes:
        return self._header

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""

    def send(self, data: bytes) -> bytes:
        return data


class ClientTls:
    """TLS that believes `cafile` and shows `certificate`."""

    def __init__(
        self, cafile: Path, certificate: tuple[Path, Path] | None = None, host: str = "localhost", tls12: bool = False
    ) -> None:
        context = ssl.create_default_context(cafile=str(cafile))
        if tls12:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            context.load_cert_chain(*certificate)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.is_open = False

    def begin(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.object.do_handshake()
        return self._outgoing.read()

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        self._incoming.write(data)
        got = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self.is_open:
                self.object.do_handshake()
                self.is_open = True
            while piece := self.object.read(65536):
                got += piece
        return got, self._outgoing.read()

    def send(self, data: bytes) -> bytes:
        if data:
            self.object.write(data)
        return self._outgoing.read()


class ClientWebSocket:
    """WebSocket; `pieces` is the size of the frames that a message is fragmented into."""

    def __init__(self, pieces: int = 1 << 30) -> None:
        self._protocol = ClientProtocol(
            parse_uri("ws://localhost/mqtt"), subprotocols=[Subprotocol("mqtt")], max_size=None
        )
        self._pieces = pieces
        self.is_open = False
        self.closed_with: int | None = None

    def begin(self) -> bytes:
        self._protocol.send_request(self._protocol.connect())
        return b"".join(self._protocol.data_to_send())

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        self._protocol.receive_data(data)
        got = b""
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                assert self._protocol.handshake_exc is None, self._protocol.handshake_exc
                self.is_open = True
            elif isinstance(event, Frame) and event.opcode in (Opcode.BINARY, Opcode.CONT):
                got += bytes(event.data)
        if self._protocol.close_rcvd is not None:
            self.closed_with = self._protocol.close_rcvd.code
        return got, b"".join(self._protocol.data_to_send())

    def send(self, data: bytes) -> bytes:
        if data:
            size = self._pieces
            parts = [data[at : at + size] for at in range(0, len(data), size)]
            for number, part in enumerate(parts):
                fin = number == len(parts) - 1
                if number == 0:
                    self._protocol.send_binary(part, fin)
                else:
                    self._protocol.send_continuation(part, fin)
                self._protocol.send_ping(b"between")
        return b"".join(self._protocol.data_to_send())

    def close(self) -> bytes:
        self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
        return b"".join(self._protocol.data_to_send())


PROXY_V1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 1883\r\n"
PROXY_V2 = b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH", 0x21, 0x11, 12) + b"\xc0\0\2\7\xc0\0\2\1\x12\x67\x07\x5b"


@dataclasses.dataclass
class Door:
    """A listener, and what its clients put on their sockets."""

    listener: ListenerConfig
    layers: Callable[[], Sequence[ClientLayer]] = list


def doors(folder: Path, tls: TlsConfig, cafile: Path) -> dict[str, Door]:
    """Every door by name."""
    plain = ListenerConfig(port=0, address="127.0.0.1")
    change = dataclasses.replace
    return {
        "tcp": Door(plain),
        "unix": Door(ListenerConfig(port=0, path=folder / "mqtt.sock")),
        "tls": Door(change(plain, tls=tls), lambda: [ClientTls(cafile)]),
        "tls 1.2": Door(change(plain, tls=tls), lambda: [ClientTls(cafile, tls12=True)]),
        "websocket": Door(change(plain, websockets=True), lambda: [ClientWebSocket()]),
        "websocket in fragments": Door(change(plain, websockets=True), lambda: [ClientWebSocket(1000)]),
        "secure websocket": Door(
            change(plain, websockets=True, tls=tls), lambda: [ClientTls(cafile), ClientWebSocket()]
        ),
        "proxy 1 before tls": Door(
            change(plain, proxy_protocol=1, tls=tls), lambda: [ClientProxy(PROXY_V1), ClientTls(cafile)]
        ),
        "proxy 2 before websocket": Door(
            change(plain, proxy_protocol=2, websockets=True), lambda: [ClientProxy(PROXY_V2), ClientWebSocket()]
        ),
    }


NAMES = [
    "tcp",
    "unix",
    "tls",
    "tls 1.2",
    "websocket",
    "websocket in fragments",
    "secure websocket",
    "proxy 1 before tls",
    "proxy 2 before websocket",
]


class Wire:
    """A socket and the packets on it. `piece` is the size of what is written to the socket at once, 0 for all."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        layers: Sequence[ClientLayer] = (),
        version: int = V5,
        piece: int = 0,
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.version = version
        self.layers = layers
        self.piece = piece
        self._decoder = Decoder(version)

    @classmethod
    async def open(
        cls,
        service: BrokerService,
        layers: Sequence[ClientLayer] = (),
        *,
        version: int = V5,
        piece: int = 0,
        listener: int = 0,
        handshake: bool = True,
    ) -> Wire:
        """Connect, and go through the handshakes of the layers."""
        door = service.listeners[listener]
        path = door.config.path
        sock = socket.socket(socket.AF_UNIX if path is not None else socket.AF_INET)
        if path is None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)  # so that not reading is soon felt
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(path) if path else ("127.0.0.1", door.port))
        reader, writer = await asyncio.open_connection(sock=sock)
        wire = cls(reader, writer, layers, version, piece)
        if handshake:
            await wire.handshake()
        return wire

    async def handshake(self) -> None:
        """Open one layer after the other."""
        for number, layer in enumerate(self.layers):
            data = layer.begin()
            for below in reversed(self.layers[:number]):
                data = below.send(data)
            await self.write(data)
            while not layer.is_open:
                assert await self._read() is not None, "closed within the handshake"

    @classmethod
    async def client(
        cls,
        service: BrokerService,
        client_id: str,
        layers: Sequence[ClientLayer] = (),
        *,
        will: Will | None = None,
        version: int = V5,
        piece: int = 0,
        listener: int = 0,
    ) -> Wire:
        """Connect and be let in."""
        wire = await cls.open(service, layers, version=version, piece=piece, listener=listener)
        await wire.send(Connect(client_id, version, will=will))
        answer = await wire.receive()
        assert isinstance(answer, ConnAck), answer
        assert answer.reason_code == 0, answer
        return wire

    async def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        await self.send(Subscribe(1, [SubscriptionRequest(topic_filter, qos)]))
        assert isinstance(await self.receive(), SubAck)

    async def send(self, *packets: Packet) -> None:
        data = b"".join(encode(packet, self.version) for packet in packets)
        for layer in reversed(self.layers):
            data = layer.send(data)
        await self.write(data)

    async def write(self, data: bytes) -> None:
        """Write to the socket, in pieces that the broker reads one by one."""
        if not self.piece:
            self.writer.write(data)
            await self.writer.drain()
            return
        for at in range(0, len(data), self.piece):
            self.writer.write(data[at : at + self.piece])
            await self.writer.drain()
            await asyncio.sleep(0)

    async def receive(self) -> Packet | None:
        """Give the next packet, or None when the broker closed."""
        while (packet := self._decoder.next_packet()) is None:
            data = await self._read()
            if data is None:
                return None
            if data:
                self._decoder.feed(data)
        return packet

    async def _read(self) -> bytes | None:
        """Give what the next bytes of the socket mean for MQTT, None at the end."""
        try:
            data = await self.reader.read(65536)
        except ConnectionResetError:
            return None
        if not data:
            return None
        for number, layer in enumerate(self.layers):
            data, answer = layer.receive(data)
            for below in reversed(self.layers[:number]):
                answer = below.send(answer)
            if answer:
                self.writer.write(answer)
            if not data:
                return b""
        return data

    async def closed(self) -> None:
        """Return when the broker has closed; there must not be a packet before."""
        assert await self.receive() is None
