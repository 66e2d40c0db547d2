"""The broker behind real sockets, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from ipaddress import ip_network

import pytest

from lockgate.config.model import (
    BrokerConfig,
    BrokerLimitsConfig,
    BufferConfig,
    Config,
    ForwarderConfig,
    GatewayConfig,
    ListenerConfig,
    ProcessorConfig,
)
from lockgate.config.mosquitto_conf import LOCAL_ADDRESSES
from lockgate.mqtt import reason_codes
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from lockgate.net import listener
from lockgate.net.listener import PortInUse
from lockgate.net.service import BrokerService, broker_limits, machine_memory
from lockgate.storage.memory import MemoryStore


@contextlib.asynccontextmanager
async def serving(config: BrokerConfig | None = None, **options: int) -> AsyncIterator[BrokerService]:
    """A broker on a free port of the loopback; `options` are its listener's."""
    door = ListenerConfig(port=0, address="127.0.0.1", **options)  # type: ignore[arg-type]
    config = dataclasses.replace(config or BrokerConfig(), listeners=(door,), allow_anonymous=True)
    service = BrokerService(config, MemoryStore)
    ready = asyncio.Event()
    running = asyncio.create_task(service.run(ready.set))
    await ready.wait()
    try:
        yield service
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


class Wire:
    """A socket and the packets on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: int) -> None:
        self.reader = reader
        self.writer = writer
        self.version = version
        self._decoder = Decoder(version)

    @classmethod
    async def open(cls, service: BrokerService, version: int = V5) -> Wire:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)  # so that not reading is soon felt
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", service.listeners[0].port))
        reader, writer = await asyncio.open_connection(sock=sock)
        return cls(reader, writer, version)

    @classmethod
    async def client(
        cls, service: BrokerService, client_id: str, version: int = V5, keep_alive: int = 0, will: Will | None = None
    ) -> Wire:
        wire = await cls.open(service, version)
        wire.send(Connect(client_id, version, keep_alive=keep_alive, will=will))
        assert isinstance(await wire.receive(), ConnAck)
        return wire

    async def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        self.send(Subscribe(1, [SubscriptionRequest(topic_filter, qos)]))
        assert isinstance(await self.receive(), SubAck)

    def send(self, *packets: Packet) -> None:
        self.writer.write(b"".join(encode(packet, self.version) for packet in packets))

    async def receive(self) -> Packet | None:
        """Give the next packet, or None when the broker closed."""
        while (packet := self._decoder.next_packet()) is None:
            try:
                data = await self.reader.read(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._decoder.feed(data)
        return packet


async def test_bytes_may_arrive_one_by_one() -> None:
    async with serving() as service:
        subscriber = await Wire.client(service, "s")
        await subscriber.subscribe("t")
        wire = await Wire.open(service)
        for byte in encode(Connect("p"), V5) + encode(Publish("t", b"x"), V5):
            wire.writer.write(bytes((byte,)))
            await wire.writer.drain()
        assert await subscriber.receive() == Publish("t", b"x")


async def test_bad_bytes_close_one_connection_with_its_reason_and_no_other() -> None:
    async with serving() as service:
        other, bad = await Wire.client(service, "other"), await Wire.client(service, "bad")
        await other.subscribe("t")
        bad.writer.write(b"\x36\x00")
        farewell = await bad.receive()
        assert isinstance(farewell, Disconnect)
        assert farewell.reason_code == reason_codes.MALFORMED_PACKET
        assert await bad.receive() is None
        other.send(Publish("t", b"x"))
        assert await other.receive() == Publish("t", b"x")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\x00" * 50])
async def test_bytes_that_are_not_mqtt_are_closed_at_once(data: bytes) -> None:
    async with serving() as service:
        wire = await Wire.open(service)
        wire.writer.write(data)
        assert await wire.receive() is None


async def test_a_first_packet_that_is_too_large_is_refused_before_it_arrives() -> None:
    async with serving() as service:
        wire = await Wire.open(service)
        wire.writer.write(b"\x10\xff\xff\xff\x7f")
        assert await wire.receive() is None


async def test_max_connections_holds_on_its_listener() -> None:
    async with serving(max_connections=1) as service:
        first = await Wire.client(service, "first")
        second = await Wire.open(service)
        second.send(Connect("second"))
        assert await second.receive() is None
        first.writer.close()
        await first.writer.wait_closed()
        while service.listeners[0].is_full():
            await asyncio.sleep(0)
        await Wire.client(service, "third")


async def test_a_takeover_closes_the_old_socket() -> None:
    async with serving() as service:
        old = await Wire.client(service, "same")
        await Wire.client(service, "same")
        farewell = await old.receive()
        assert isinstance(farewell, Disconnect)
        assert farewell.reason_code == reason_codes.SESSION_TAKEN_OVER
        assert await old.receive() is None


async def test_silence_ends_a_connection_and_publishes_its_will() -> None:
    async with serving() as service:
        watcher = await Wire.client(service, "watcher")
        await watcher.subscribe("will")
        silent = await Wire.client(service, "silent", keep_alive=1, will=Will("will", b"gone"))
        assert await silent.receive() is None
        assert await watcher.receive() == Publish("will", b"gone")


async def test_a_subscriber_that_does_not_read_costs_a_bounded_amount_and_nobody_else() -> None:
    async with serving() as service:
        stalled, reading = await Wire.client(service, "stalled", V3_1_1), await Wire.client(service, "reading", V3_1_1)
        for wire in (stalled, reading):
            await wire.subscribe("t")
        publisher = await Wire.client(service, "p", V3_1_1)
        stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
        total, payload = 400, b"x" * 50_000
        for _number in range(total):
            publisher.send(Publish("t", payload))
            await publisher.writer.drain()
            assert isinstance(await reading.receive(), Publish)
        statistics = service.broker.statistics
        connection = service.broker.sessions["stalled"].connection
        assert connection is not None
        assert statistics.dropped_slow > 0
        assert connection.output_bytes < service.broker.limits.output_bytes + 100_000
        stalled.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _number in range(total - statistics.dropped_slow):
            assert isinstance(await stalled.receive(), Publish)
        publisher.send(Publish("t", b"last"))
        assert await stalled.receive() == Publish("t", b"last")


async def test_a_publisher_that_reads_no_acknowledgements_is_not_read_for_ever() -> None:
    async with serving() as service:
        publisher = await Wire.client(service, "p", V3_1_1)
        publisher.writer.transport.pause_reading()  # type: ignore[attr-defined]
        batch = encode(Publish("t", b"", 1, packet_id=1), V3_1_1) * 20_000
        connection = service.broker.sessions["p"].connection
        assert connection is not None
        for _round in range(200):
            publisher.writer.write(batch)
            try:
                await asyncio.wait_for(publisher.writer.drain(), 1)
            except TimeoutError:
                break
        else:
            pytest.fail("the broker never stopped reading")
        assert connection.output_bytes < service.broker.limits.output_bytes + 500_000
        publisher.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _number in range(1000):
            assert await publisher.receive() == PubAck(1)
        publisher.writer.transport.abort()


async def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listener = ListenerConfig(port=port, address="127.0.0.1")
        service = BrokerService(BrokerConfig(listeners=(listener,)), MemoryStore)
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use"):
            await service.run(lambda: None)


async def test_an_address_that_cannot_be_resolved_is_named() -> None:
    service = BrokerService(
        BrokerConfig(listeners=(ListenerConfig(port=0, address="no.such.host.invalid"),)), MemoryStore
    )
    with pytest.raises(OSError, match=r"no\.such\.host\.invalid.*cannot be resolved"):
        await service.run(lambda: None)


async def test_stopping_publishes_wills_and_closes_everybody() -> None:
    async with serving() as service:
        watcher = await Wire.client(service, "watcher")
        await watcher.subscribe("will")
        await Wire.client(service, "dying", will=Will("will", b"gone"))
    assert await watcher.receive() == Publish("will", b"gone")
    assert await watcher.receive() is None


async def test_a_stop_that_was_told_beforehand_keeps_wills() -> None:
    async with serving() as service:
        watcher = await Wire.client(service, "watcher")
        await watcher.subscribe("will")
        await Wire.client(service, "dying", will=Will("will", b"gone"))
        assert service.answers()["keep_wills"]({}) == {}
    assert await watcher.receive() is None


async def test_wills_cannot_be_kept_where_nothing_is() -> None:
    async with serving(BrokerConfig(persistence=False)) as service:
        assert "persistence false" in str(service.answers()["keep_wills"]({})["problem"])


async def test_the_status_counts_what_happened() -> None:
    async with serving() as service:
        subscriber = await Wire.client(service, "s")
        await subscriber.subscribe("t", 1)
        publisher = await Wire.client(service, "p")
        publisher.send(Publish("t", b"x", 1, packet_id=1))
        assert await publisher.receive() == PubAck(1)
        status = service.status()
        assert (status["connections"], status["sessions"], status["subscriptions"]) == (2, 2, 1)
        assert (status["publish_received"], status["publish_sent"], status["queued"]) == (1, 1, 1)


async def test_a_flood_of_retained_messages_arrives_whole_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as service:
        publisher = await Wire.client(service, "p")
        count = 600
        for number in range(count):
            publisher.send(Publish(f"t/{number}", b"x" * 10_000, 0, True))
        publisher.send(Publish("end", b"", 1, packet_id=1))
        assert isinstance(await publisher.receive(), PubAck)
        written: list[int] = []
        write = os.write

        def measured(number: int, data: bytes) -> int:
            written.append(len(data))
            return write(number, data)

        monkeypatch.setattr(os, "write", measured)
        subscriber = await Wire.client(service, "s")
        await subscriber.subscribe("t/#")
        topics = set()
        for _number in range(count):
            packet = await subscriber.receive()
            assert isinstance(packet, Publish)
            topics.add(packet.topic)
        assert len(topics) == count
        assert max(written) <= service.broker.limits.output_bytes + 20_000


async def test_explain_gives_reasons_with_the_time_of_day() -> None:
    async with serving() as service:
        client = await Wire.client(service, "c")
        await client.subscribe("t", 0)
        client.writer.close()
        while service.broker.sessions:
            await asyncio.sleep(0.01)
        findings = service.explain({"client": "c", "topic": "t"})["findings"]
    assert isinstance(findings, list)
    assert sorted(one["reason"] for one in findings) == ["disconnected", "no session", "session ended"]
    assert abs(findings[1]["last_at"] - time.time()) < 5


def test_the_limits_of_a_configuration_are_those_of_the_core() -> None:
    ours = BrokerLimitsConfig(pending_logins=7, flapping_window_seconds=9.0, queued_messages=11)
    config = BrokerConfig(limits=ours, alarms=("a/#",), memory_limit=5_000_000, global_max_connections=3)
    limits = broker_limits(config)
    assert (limits.pending_logins, limits.flapping_window, limits.total_queued_messages) == (7, 9.0, 11)
    assert (limits.alarms, limits.memory_budget, limits.connections, limits.sessions) == (("a/#",), 5_000_000, 3, 0)
    assert broker_limits(BrokerConfig(memory_budget=1_000_000, memory_limit=5_000_000)).memory_budget == 1_000_000
    assert broker_limits(BrokerConfig(memory_budget=0)).memory_budget == 0
    assert 0 < broker_limits(BrokerConfig()).memory_budget <= machine_memory() // 4


async def test_a_trusted_proxy_is_not_counted_by_its_address() -> None:
    limits = BrokerLimitsConfig(connections_per_address=1)
    async with serving(BrokerConfig(limits=limits)) as service:
        first = await Wire.client(service, "a")
        second = await Wire.open(service)
        assert await second.receive() is None
        first.writer.close()
    proxies = (ip_network("127.0.0.0/8"),)
    async with serving(BrokerConfig(limits=limits, trusted_proxies=proxies)) as service:
        for client_id in ("a", "b", "c"):
            await Wire.client(service, client_id)


async def test_many_that_search_at_length_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.net.turns._CONTINUE_SECONDS", -1.0)  # one in each turn
    async with serving() as service:
        publisher = await Wire.client(service, "p")
        for number in range(100):
            publisher.send(Publish(f"t/{number}", b"x" * 10_000, 0, True))
        publisher.send(Publish("end", b"", 1, packet_id=1))
        assert isinstance(await publisher.receive(), PubAck)
        readers = [await Wire.client(service, f"r{number}") for number in range(4)]
        for reader in readers:
            await reader.subscribe("t/#")
        for reader in readers:
            topics = [await reader.receive() for _number in range(100)]
            assert len({one.topic for one in topics if isinstance(one, Publish)}) == 100


@pytest.mark.parametrize("turns", range(8))
async def test_a_stop_may_come_while_a_connection_is_accepted(turns: int) -> None:
    """At some turn of the loop the socket is accepted and its stream does not know it yet."""
    async with serving() as service:
        client = socket.create_connection(("127.0.0.1", service.listeners[0].port))
        for _turn in range(turns):
            await asyncio.sleep(0)
    client.close()  # `serving` has raised what went wrong with the stop


def without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose loopback has no ::1, as in most containers."""
    real = listener.bind

    def bind(config: ListenerConfig) -> list[socket.socket]:
        if config.address == "::1":
            raise OSError(errno.EADDRNOTAVAIL, "no address to listen on")
        return real(config)

    monkeypatch.setattr(listener, "bind", bind)


LOCAL_ONLY = BrokerConfig(listeners=tuple(ListenerConfig(port=0, address=one) for one in LOCAL_ADDRESSES))


@contextlib.asynccontextmanager
async def running(config: BrokerConfig) -> AsyncIterator[BrokerService]:
    service = BrokerService(config, MemoryStore)
    ready = asyncio.Event()
    task = asyncio.create_task(service.run(ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        if task.done():
            task.result()
        yield service
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_local_only_mode_is_content_with_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ipv6(monkeypatch)
    async with running(LOCAL_ONLY) as service:
        assert [one.config.address for one in service.listeners] == ["127.0.0.1"]
        await Wire.client(service, "c")
        whole = Config(
            path=None,
            gateway=GatewayConfig(id="g"),
            broker=LOCAL_ONLY,
            processor=ProcessorConfig(),
            buffer=BufferConfig(),
            forwarder=ForwarderConfig(),
        )
        await service.reload(whole)
        assert [one.config.address for one in service.listeners] == ["127.0.0.1"]


async def test_an_address_that_was_asked_for_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ipv6(monkeypatch)
    with pytest.raises(OSError, match="no address"):
        async with running(dataclasses.replace(LOCAL_ONLY, listeners_said=True)):
            pass


@pytest.mark.parametrize(
    ("open_door", "is_warned"),
    [
        (ListenerConfig(port=0), True),
        (ListenerConfig(port=0, address="0.0.0.0"), True),
        (ListenerConfig(port=0, address="127.0.0.2"), False),
        (ListenerConfig(port=0, address="localhost"), False),
        (ListenerConfig(port=0, allow_anonymous=False), False),
        (ListenerConfig(port=0, proxy_protocol=2, require_certificate=True), False),
    ],
)
async def test_a_door_open_to_everybody_is_named_at_the_start(
    open_door: ListenerConfig, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = BrokerConfig(listeners=(open_door,), listeners_said=True, allow_anonymous=True)
    async with running(config):
        assert ("Everybody who reaches port 0 is let in" in caplog.text) is is_warned
        assert "local only" not in caplog.text


async def test_a_broker_that_is_well_says_so_and_counts_nothing_of_it() -> None:
    async with serving() as service:
        before = service.figures.numbers()
        said = service.health()
        assert said["problems"] == []
        assert said["last_commit_seconds_ago"] is None  # nothing is kept
        assert service.figures.numbers() == before


class _SickStore(MemoryStore):
    """A store with troubles."""

    troubles: Mapping[str, object] = {}

    def status(self) -> dict[str, object]:
        return {**super().status(), **self.troubles}


@pytest.mark.parametrize(
    ("troubles", "problem"),
    [
        ({"failing": True, "error": "disk I/O error"}, "the store cannot be written: disk I/O error"),
        ({"commit_running_seconds": 11.0}, "a commit has not ended for 11 s: the disk does not answer"),
        ({"commit_running_seconds": 9.0}, None),
    ],
)
def test_a_store_that_does_not_commit_is_a_problem(troubles: Mapping[str, object], problem: str | None) -> None:
    service = BrokerService(BrokerConfig(), _SickStore)
    _SickStore.troubles = troubles
    assert service.health()["problems"] == ([problem] if problem else [])
