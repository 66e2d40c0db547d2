"""Bridges in this process, and remote brokers that do what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self, TypeVar

from lockgate.app import make_access
from lockgate.bridge.bridges import Bridges
from lockgate.config.model import BridgeConfig, BrokerConfig, ListenerConfig
from lockgate.config.mosquitto_conf import read_mosquitto_conf
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import ConnAck, Connect, Packet, SubAck, Subscribe, UnsubAck, Unsubscribe
from lockgate.net.service import BrokerService
from lockgate.storage.memory import MemoryStore

P = TypeVar("P", bound=Packet)
SECONDS = 10.0


def read_config(folder: Path, *lines: str) -> BrokerConfig:
    """A broker on a free port of the loopback, with these lines of configuration behind its listener's."""
    path = folder / "bridged.conf"
    path.write_text("\n".join(["listener 1883 127.0.0.1", "allow_anonymous true", *lines]) + "\n")
    return read_mosquitto_conf(path)


def read_bridges(folder: Path, *lines: str) -> tuple[BridgeConfig, ...]:
    return read_config(folder, *lines).bridges


class Bridged:
    """A broker of ours with its bridges."""

    def __init__(self, service: BrokerService, bridges: Bridges) -> None:
        self.service = service
        self.broker = service.broker
        self.bridges = bridges

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.service.listeners[0].port}"

    def status(self, name: str = "b") -> dict[str, object]:
        found = self.bridges.status()[name]
        assert isinstance(found, dict)
        return found

    async def until(self, holds: Callable[[dict[str, object]], object], name: str = "b") -> dict[str, object]:
        """Give the status of a bridge once something holds of it."""
        async with asyncio.timeout(SECONDS):
            while not holds(status := self.status(name)):
                await asyncio.sleep(0.005)
        return status


@contextlib.asynccontextmanager
async def bridged(folder: Path, *lines: str, port: int = 0) -> AsyncIterator[Bridged]:
    """Serve with a configuration of bridges; what is durable lasts as long as this."""
    config = read_config(folder, *lines)
    listener = ListenerConfig(port=port, address="127.0.0.1")
    config = dataclasses.replace(config, listeners=(listener,), sys_interval=0)
    service = BrokerService(config, MemoryStore, make_access, Bridges)
    bridges = service.bridges
    assert isinstance(bridges, Bridges)
    ready = asyncio.Event()
    running = asyncio.create_task(service.run(ready.set))
    starting = asyncio.create_task(ready.wait())
    await asyncio.wait({running, starting}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    try:
        yield Bridged(service, bridges)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


class Remote:
    """A port where bridges connect; `connection` gives them one after the other."""

    def __init__(self) -> None:
        self.port = 0
        self._server: asyncio.Server | None = None
        self._arrived: asyncio.Queue[Link] = asyncio.Queue()
        self._links: list[Link] = []

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        for link in self._links:
            link.cut()

    async def listen(self) -> None:
        """Take connections, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Take no more connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        self._links.append(link)
        self._arrived.put_nowait(link)

    async def connection(self) -> Link:
        """Give the next connection, with its CONNECT read."""
        async with asyncio.timeout(SECONDS):
            link = await self._arrived.get()
        link.connect = await link.expect(Connect)
        link.version = link.connect.version
        return link

    async def accept(self, connack: ConnAck | None = None) -> Link:
        """Accept the next connection and grant what it subscribes to."""
        link = await self.connection()
        link.send(connack if connack is not None else ConnAck())
        return link


class Link:
    """The remote broker's end of one connection."""

    connect: Connect

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.version = 0
        self.subscribed: dict[str, int] = {}
        self.options: dict[str, tuple[bool, bool]] = {}  # No Local, Retain As Published
        self.unsubscribed: list[str] = []
        self.packet_ids: list[int] = []  # of SUBSCRIBE and UNSUBSCRIBE
        self.grants = True  # and answers them
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()

    def send(self, *packets: Packet) -> None:
        self._writer.write(b"".join(encode(packet, self.version) for packet in packets))

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    async def receive(self) -> Packet | None:
        """Give the next packet, None at the end; SUBSCRIBE and UNSUBSCRIBE are granted by the way."""
        async with asyncio.timeout(SECONDS):
            while True:
                while (packet := self._decoder.next_packet()) is None:
                    try:
                        data = await self._reader.read(65536)
                    except ConnectionResetError:
                        return None
                    if not data:
                        return None
                    self._decoder.feed(data)
                    self._decoder.version = self.version
                if isinstance(packet, Connect):
                    self._decoder.version = packet.version
                elif isinstance(packet, Subscribe):
                    self.packet_ids.append(packet.packet_id)
                    if not self.grants:
                        continue
                    for one in packet.requests:
                        self.subscribed[one.topic_filter] = one.qos
                        self.options[one.topic_filter] = (one.no_local, one.retain_as_published)
                    self.send(SubAck(packet.packet_id, [one.qos for one in packet.requests]))
                    continue
                elif isinstance(packet, Unsubscribe):
                    self.packet_ids.append(packet.packet_id)
                    self.unsubscribed += packet.topic_filters
                    self.send(UnsubAck(packet.packet_id, [0] * len(packet.topic_filters)))
                    continue
                return packet

    async def expect(self, kind: type[P]) -> P:
        packet = await self.receive()
        assert isinstance(packet, kind), packet
        return packet

    async def closed(self) -> None:
        """Wait until the bridge has closed."""
        while await self.receive() is not None:
            pass

    def cut(self) -> None:
        self._writer.transport.abort()
