"""Every door behind real sockets: what holds for one holds for all. Each test runs on asyncio's own loop and uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from pathlib import Path

import pytest

from lockgate.config.model import TlsConfig
from lockgate.mqtt.packets import V3_1_1, V5, Disconnect, PubAck, PubComp, Publish, PubRec, PubRel, Will
from lockgate.mqtt.reason_codes import MALFORMED_PACKET, SESSION_TAKEN_OVER
from lockgate.net import stream
from tests.support.certificates import Authority
from tests.support.wires import NAMES, ClientWebSocket, Door, Wire, doors, serving

WAIT = 10.0
with_handshake = pytest.mark.parametrize("name", [one for one in NAMES if one not in ("tcp", "unix")])
every_door = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> TlsConfig:
    certfile, keyfile = authority.issue("server", "localhost", "127.0.0.1")
    return TlsConfig(certfile=certfile, keyfile=keyfile)


@pytest.fixture
def door(name: str, tmp_path: Path, tls: TlsConfig, authority: Authority) -> Door:
    return doors(tmp_path, tls, authority.cafile)[name]


@every_door
@pytest.mark.parametrize("version", [V3_1_1, V5])
async def test_messages_of_every_qos_pass(door: Door, version: int) -> None:
    async with serving(door.listener) as service:
        receiver = await Wire.client(service, "r", door.layers(), version=version)
        await receiver.subscribe("t", 2)
        sender = await Wire.client(service, "s", door.layers(), version=version)
        await sender.send(Publish("t", b"0"), Publish("t", b"1", 1, packet_id=1))
        assert await sender.receive() == PubAck(1)
        await sender.send(Publish("t", b"2", 2, packet_id=2))
        assert await sender.receive() == PubRec(2)
        await sender.send(PubRel(2))
        assert await sender.receive() == PubComp(2)
        assert await receiver.receive() == Publish("t", b"0")
        assert await receiver.receive() == Publish("t", b"1", 1, packet_id=1)
        assert await receiver.receive() == Publish("t", b"2", 2, packet_id=2)


@every_door
async def test_a_packet_of_a_megabyte_passes(door: Door) -> None:
    async with serving(door.listener) as service:
        receiver = await Wire.client(service, "r", door.layers())
        await receiver.subscribe("t")
        sender = await Wire.client(service, "s", door.layers())
        payload = bytes(range(256)) * 4096
        sending = asyncio.create_task(sender.send(Publish("t", payload)))
        assert await receiver.receive() == Publish("t", payload)
        await sending


@every_door
async def test_bytes_may_arrive_one_by_one(door: Door) -> None:
    async with serving(door.listener) as service:
        receiver = await Wire.client(service, "r", door.layers(), piece=1)
        await receiver.subscribe("t")
        sender = await Wire.client(service, "s", door.layers(), piece=3)
        await sender.send(Publish("t", b"x"), Publish("t", b"y" * 300))
        assert await receiver.receive() == Publish("t", b"x")
        assert await receiver.receive() == Publish("t", b"y" * 300)


@with_handshake
@pytest.mark.parametrize("abort", [False, True])
async def test_a_peer_that_dies_within_the_handshake_is_told_once_and_gone(
    door: Door, abort: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(door.listener) as service:
        other = await Wire.client(service, "other", door.layers())
        for _number in range(20):
            dying = await Wire.open(service, door.layers(), handshake=False)
            first = dying.layers[0].begin()
            await dying.write(first[: len(first) // 2])
            while len(service.listeners[0].streams) == 1:
                await asyncio.sleep(0)
            while not all(getattr(stream, "_heard", True) for stream in service.listeners[0].streams):
                await asyncio.sleep(0)
            if abort:
                dying.writer.transport.abort()
            else:
                dying.writer.close()
            async with asyncio.timeout(WAIT):
                while len(service.listeners[0].streams) > 1:
                    await asyncio.sleep(0.001)
        assert len(service.broker.connections) == 1
        assert service.status()["handshakes_failed"] == 20
        await other.subscribe("t")
        told = [record.getMessage() for record in caplog.records if "the peer left within the" in record.getMessage()]
        assert len(told) == 1
        assert not [record for record in caplog.records if record.exc_info]


@every_door
async def test_silence_after_accept_ends_at_the_connect_deadline(door: Door) -> None:
    async with serving(door.listener, connect_timeout=0.3) as service:
        async with asyncio.timeout(WAIT):
            silent = await Wire.open(service, door.layers(), handshake=False)
            opened = await Wire.open(service, door.layers())
            await silent.closed()
            await opened.closed()


@with_handshake
async def test_slow_bytes_of_a_handshake_do_not_move_the_deadline(door: Door) -> None:
    async with serving(door.listener, connect_timeout=0.5) as service:
        wire = await Wire.open(service, door.layers(), handshake=False)
        data = wire.layers[0].begin()
        loop = asyncio.get_running_loop()
        started = loop.time()
        reading = asyncio.create_task(wire.closed())
        for at in range(len(data) - 1):
            if reading.done():
                break
            wire.writer.write(data[at : at + 1])
            await asyncio.wait({reading}, timeout=0.1)
        async with asyncio.timeout(WAIT):
            await reading
        assert 0.4 < loop.time() - started < 5


@every_door
async def test_max_connections_holds(door: Door) -> None:
    async with serving(dataclasses.replace(door.listener, max_connections=1)) as service:
        first = await Wire.client(service, "first", door.layers())
        second = await Wire.open(service, door.layers(), handshake=False)
        await second.closed()
        first.writer.close()
        async with asyncio.timeout(WAIT):
            while service.listeners[0].is_full():
                await asyncio.sleep(0.001)
        await Wire.client(service, "third", door.layers())


@every_door
async def test_a_subscriber_that_does_not_read_costs_a_bounded_amount_and_nobody_else(door: Door) -> None:
    async with serving(door.listener) as service:
        stalled = await Wire.client(service, "stalled", door.layers(), version=V3_1_1)
        reading = await Wire.client(service, "reading", door.layers(), version=V3_1_1)
        for wire in (stalled, reading):
            await wire.subscribe("t")
        publisher = await Wire.client(service, "p", door.layers(), version=V3_1_1)
        stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
        total, payload = 200, b"x" * 50_000
        for _number in range(total):
            await publisher.send(Publish("t", payload))
            assert await reading.receive() == Publish("t", payload)
        statistics = service.broker.statistics
        connection = service.broker.sessions["stalled"].connection
        assert connection is not None
        assert statistics.dropped_slow > 0
        assert connection.output_bytes < service.broker.limits.output_bytes + 100_000
        stalled.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _number in range(total - statistics.dropped_slow):
            assert await stalled.receive() == Publish("t", payload)
        await publisher.send(Publish("t", b"last"))
        assert await stalled.receive() == Publish("t", b"last")


@pytest.mark.parametrize("name", ["tls", "websocket", "secure websocket"])
async def test_a_publisher_that_reads_no_acknowledgements_is_not_read_for_ever(door: Door) -> None:
    async with serving(door.listener) as service:
        publisher = await Wire.client(service, "p", door.layers(), version=V3_1_1)
        publisher.writer.transport.pause_reading()  # type: ignore[attr-defined]
        publishes = [Publish("t", b"", 1, packet_id=1)] * 10_000
        connection = service.broker.sessions["p"].connection
        assert connection is not None
        for _round in range(300):
            try:
                await asyncio.wait_for(publisher.send(*publishes), 1)
            except TimeoutError:
                break
        else:
            pytest.fail("the broker never stopped reading")
        assert connection.output_bytes < service.broker.limits.output_bytes + 500_000
        publisher.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _number in range(1000):
            assert await publisher.receive() == PubAck(1)
        publisher.writer.transport.abort()


@pytest.mark.parametrize("name", ["tls", "websocket", "secure websocket"])
async def test_a_flood_of_retained_messages_arrives_whole(door: Door) -> None:
    async with serving(door.listener) as service:
        publisher = await Wire.client(service, "p", door.layers())
        for number in range(300):
            await publisher.send(Publish(f"t/{number}", b"x" * 10_000, 0, True))
        await publisher.send(Publish("end", b"", 1, packet_id=1))
        assert isinstance(await publisher.receive(), PubAck)
        subscriber = await Wire.client(service, "s", door.layers())
        await subscriber.subscribe("t/#")
        topics = set()
        for _number in range(300):
            packet = await subscriber.receive()
            assert isinstance(packet, Publish)
            topics.add(packet.topic)
        assert len(topics) == 300


@every_door
async def test_a_mistake_ends_its_own_connection_with_the_reason(door: Door) -> None:
    async with serving(door.listener) as service:
        other = await Wire.client(service, "other", door.layers())
        bad = await Wire.client(service, "bad", door.layers())
        data = b"\x36\x00"
        for layer in reversed(bad.layers):
            data = layer.send(data)
        await bad.write(data)
        farewell = await bad.receive()
        assert isinstance(farewell, Disconnect)
        assert farewell.reason_code == MALFORMED_PACKET
        await bad.closed()
        await other.subscribe("t")


@every_door
async def test_a_takeover_closes_the_old_socket(door: Door) -> None:
    async with serving(door.listener) as service:
        old = await Wire.client(service, "same", door.layers())
        await Wire.client(service, "same", door.layers())
        farewell = await old.receive()
        assert isinstance(farewell, Disconnect)
        assert farewell.reason_code == SESSION_TAKEN_OVER
        await old.closed()


@every_door
async def test_a_peer_that_vanishes_leaves_its_will(door: Door) -> None:
    async with serving(door.listener) as service:
        watcher = await Wire.client(service, "watcher", door.layers())
        await watcher.subscribe("will")
        dying = await Wire.client(service, "dying", door.layers(), will=Will("will", b"gone"))
        dying.writer.transport.abort()
        assert await watcher.receive() == Publish("will", b"gone")


@every_door
async def test_stopping_says_goodbye(door: Door) -> None:
    async with serving(door.listener) as service:
        watcher = await Wire.client(service, "watcher", door.layers())
        await watcher.subscribe("will")
        await Wire.client(service, "dying", door.layers(), will=Will("will", b"gone"))
    assert await watcher.receive() == Publish("will", b"gone")
    await watcher.closed()
    for layer in watcher.layers:
        if isinstance(layer, ClientWebSocket):
            assert layer.closed_with == 1000
    assert door.listener.path is None or not door.listener.path.exists()


@pytest.mark.parametrize("name", [name for name in NAMES if "proxy" in name])
async def test_behind_a_proxy_the_true_address_counts(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(door.listener) as service:
        await Wire.client(service, "c", door.layers())
        connection = service.broker.sessions["c"].connection
        assert connection is not None
        assert connection.peer == "192.0.2.7:4711"
    lines = [record.getMessage() for record in caplog.records]
    assert "New connection from 192.0.2.7:4711 on port 0." in lines
    assert any(line.startswith("New client connected from 192.0.2.7:4711 as c ") for line in lines)
    assert not [line for line in lines if "from 127.0.0.1" in line]


@pytest.mark.parametrize("name", ["websocket", "secure websocket"])
async def test_a_websocket_client_that_closes_gets_its_close_back(door: Door) -> None:
    async with serving(door.listener) as service:
        wire = await Wire.client(service, "c", door.layers())
        top = wire.layers[-1]
        assert isinstance(top, ClientWebSocket)
        data = top.close()
        for layer in reversed(wire.layers[:-1]):
            data = layer.send(data)
        await wire.write(data)
        await wire.closed()
        assert top.closed_with == 1000


@pytest.mark.parametrize("name", ["websocket"])
async def test_pings_without_end_from_a_peer_that_reads_nothing_hold_nothing(door: Door) -> None:
    async with serving(door.listener) as service:
        wire = await Wire.client(service, "c", door.layers())
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        batch = (b"\x89\xfd" + bytes(4) + b"p" * 125) * 2000
        for _round in range(50):
            wire.writer.write(batch)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wire.writer.drain(), 1)
        [stream] = service.listeners[0].streams
        assert stream._transport.get_write_buffer_size() < 500_000
        other = await Wire.client(service, "other", door.layers())
        await other.subscribe("t")
        wire.writer.transport.abort()


async def test_several_listeners_serve_the_same_topics(tmp_path: Path, tls: TlsConfig, authority: Authority) -> None:
    every = doors(tmp_path, tls, authority.cafile)
    async with serving(*(door.listener for door in every.values())) as service:
        wires = [
            await Wire.client(service, name, door.layers(), listener=number)
            for number, (name, door) in enumerate(every.items())
        ]
        for wire in wires:
            await wire.subscribe("t")
        await wires[0].send(Publish("t", b"x"))
        for wire in wires:
            assert await wire.receive() == Publish("t", b"x")


@pytest.mark.parametrize("name", ["tcp", "tls", "websocket"])
async def test_a_client_that_ends_its_half_and_reads_nothing_is_gone_soon(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_LINGER_SECONDS", 0.05)
    async with serving(door.listener) as service:
        client = await Wire.client(service, "c", door.layers())
        await client.subscribe("t")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        sender = await Wire.client(service, "s", door.layers())
        connection = service.broker.sessions["c"].connection
        assert connection is not None
        while connection.writable:
            await sender.send(Publish("t", b"x" * 100_000, 1, packet_id=1))
            assert await asyncio.wait_for(sender.receive(), WAIT) == PubAck(1)
        client.writer.write_eof()
        async with asyncio.timeout(WAIT):
            while "c" in service.broker.sessions:
                await asyncio.sleep(0.01)
        assert service.broker.memory.used < 100_000


@pytest.mark.parametrize("name", ["tls", "secure websocket"])
async def test_what_lies_under_mqtt_counts_against_the_memory_budget(door: Door) -> None:
    async with serving(door.listener) as service:
        client = await Wire.client(service, "c", door.layers())
        assert service.broker.memory.used > 30_000
        client.writer.close()
        async with asyncio.timeout(WAIT):
            while service.broker.connections:
                await asyncio.sleep(0.01)
        assert service.broker.memory.used == 0
