"""MQTT over WebSocket (§6 of 3.1.1 and 5.0), through a socket: the clauses speak of the network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from lockgate.config.model import BrokerConfig, ListenerConfig
from lockgate.net.service import BrokerService
from lockgate.storage.memory import MemoryStore
from tests.support import raw

_SECONDS = 10


@contextlib.asynccontextmanager
async def client(version: int) -> AsyncIterator[ClientConnection]:
    """Give a WebSocket to a broker of its own, whose client is let in; the answer is taken."""
    listener = ListenerConfig(port=0, address="127.0.0.1", websockets=True)
    service = BrokerService(BrokerConfig(listeners=(listener,), allow_anonymous=True), MemoryStore)
    ready = asyncio.Event()
    running = asyncio.create_task(service.run(ready.set))
    await ready.wait()
    try:
        uri = f"ws://127.0.0.1:{service.listeners[0].port}/mqtt"
        async with connect(uri, subprotocols=[Subprotocol("mqtt")], compression=None) as socket:
            await socket.send(raw.connect(version))
            assert (await read(socket, 1))[0] == 0x20
            yield socket
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def read(socket: ClientConnection, count: int) -> bytes:
    """Give at least so many bytes of MQTT, which must all have come in binary frames."""
    found = b""
    while len(found) < count:
        data = await asyncio.wait_for(socket.recv(), _SECONDS)
        assert isinstance(data, bytes)
        found += data
    return found


async def is_closed(socket: ClientConnection) -> bool:
    """Wait for the end of the connection; what comes before it is passed over."""
    try:
        while True:
            await asyncio.wait_for(socket.recv(), _SECONDS)
    except ConnectionClosed:
        return True
    except TimeoutError:
        return False


async def only_binary_frames_are_taken(version: int) -> None:
    """What is said in them is answered in them; a text frame ends the connection."""
    async with client(version) as socket:
        await socket.send(b"\xc0\x00")
        assert await read(socket, 2) == b"\xd0\x00"
    async with client(version) as socket:
        await socket.send("\x40\x02")  # bytes that could be read as MQTT
        assert await is_closed(socket)


async def packets_and_frames_need_not_be_aligned(version: int) -> None:
    """Two packets in a frame, a packet in two frames, a frame that ends within the next packet."""
    publish = raw.publish(version, b"t", b"x" * 300)
    subscribe = raw.subscribe(version, b"t")
    async with client(version) as socket:
        await socket.send(subscribe + b"\xc0\x00")
        suback = 6 if version == 5 else 5
        assert (await read(socket, suback + 2))[suback:] == b"\xd0\x00"
        await socket.send(publish[:1])
        await socket.send(publish[1:200])
        await socket.send(publish[200:] + publish[:3])
        await socket.send([publish[3:9], publish[9:]])  # a fragmented message
        assert await read(socket, 2 * len(publish)) == 2 * publish


async def the_subprotocol_is_mqtt(version: int) -> None:
    async with client(version) as socket:
        assert socket.subprotocol == "mqtt"
