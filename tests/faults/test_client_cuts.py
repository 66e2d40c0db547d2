"""The client over a line that is cut, stalls and refuses: nothing is lost, and QoS 2 comes exactly once."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import pytest

from lockgate.client import Client, Message
from lockgate.config.model import ConnectionConfig
from lockgate.mqtt.packets import V3_1_1, V5
from tests.support.peers import Mosquitto
from tests.support.proxy import Proxy
from tests.support.sent_again import SentAgain

pytestmark = pytest.mark.peers
BOTH = pytest.mark.parametrize("version", ["3.1.1", "5"])
Version = Literal["3.1.1", "5"]
COUNT = 400


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    peer = Mosquitto(tmp_path_factory.mktemp("mosquitto"), ["max_queued_messages 0"])
    yield peer
    peer.stop()


def client_of(url: str, version: Version, *, keep_alive: int = 30, manual_ack: bool = False) -> Client:
    connection = ConnectionConfig(url=url, client_id=uuid.uuid4().hex, version=version, keep_alive_seconds=keep_alive)
    return Client(
        connection,
        session_expiry_seconds=60,
        manual_ack=manual_ack,
        retry_min_seconds=0.01,
        retry_max_seconds=0.05,
        connect_timeout_seconds=2.0,
    )


async def cutting(proxy: Proxy, cuts: int, up: int, down: int, done: asyncio.Event) -> None:
    """Cut the line again and again, at random bytes either way."""
    for _ in range(cuts):
        before = proxy.connections
        proxy.cut_after(up=random.randrange(100, up), down=random.randrange(10, down))
        while proxy.connections == before and not done.is_set():
            await asyncio.sleep(0.005)
    proxy.cut_after()


@BOTH
@pytest.mark.parametrize("qos", [1, 2])
async def test_publishes_survive_cuts(mosquitto: Mosquitto, version: Version, qos: int) -> None:
    topic = uuid.uuid4().hex
    done = asyncio.Event()
    async with Proxy(mosquitto.port) as proxy, client_of(mosquitto.url, version) as receiver, asyncio.timeout(30):
        await receiver.subscribe([(topic, qos)])
        async with client_of(proxy.url, version) as sender:
            cutter = asyncio.create_task(cutting(proxy, 15, 2000, 200, done))
            await asyncio.gather(*(sender.publish(topic, b"%d" % number, qos) for number in range(COUNT)))
            done.set()
            await cutter
            assert proxy.connections > 1
            assert sender.unacknowledged == 0
            await sender.publish(topic, b"end", qos)
        got: list[bytes] = []
        async for message in receiver.messages():
            if message.payload == b"end":
                break
            got.append(message.payload)
    expected = [b"%d" % number for number in range(COUNT)]
    if qos == 2:
        assert got == expected  # exactly once, in order
    else:
        assert set(got) == set(expected)
        assert list(dict.fromkeys(got)) == expected  # the first copies are in order


@BOTH
@pytest.mark.parametrize("qos", [1, 2])
async def test_a_subscriber_hears_everything_over_cuts(mosquitto: Mosquitto, version: Version, qos: int) -> None:
    topic = uuid.uuid4().hex
    done = asyncio.Event()
    got: Counter[bytes] = Counter()
    sent_again = SentAgain(V5 if version == "5" else V3_1_1)
    async with Proxy(mosquitto.port, sent_again.hear) as proxy, client_of(mosquitto.url, version) as sender:  # noqa: SIM117
        async with client_of(proxy.url, version, manual_ack=True) as receiver, asyncio.timeout(30):
            await receiver.subscribe([(topic, qos)])
            held: list[Message] = []

            async def hear() -> None:
                """Acknowledge in bunches, in reverse, so that cuts fall between receiving and acknowledging."""
                async for message in receiver.messages():
                    got[message.payload] += 1
                    held.append(message)
                    if len(held) == 5 or len(got) >= COUNT - 5:
                        while held:
                            receiver.acknowledge(held.pop())
                        await asyncio.sleep(0)
                    if len(got) == COUNT:
                        return

            hearing = asyncio.create_task(hear())
            cutter = asyncio.create_task(cutting(proxy, 15, 1000, 1500, done))
            for start in range(0, COUNT, 50):
                bunch = range(start, start + 50)
                await asyncio.gather(*(sender.publish(topic, b"%d" % number, qos) for number in bunch))
                proxy.cut()
            await hearing
            done.set()
            await cutter
            assert proxy.connections > 1
    assert set(got) == {b"%d" % number for number in range(COUNT)}
    if qos == 2:
        assert {payload for payload, count in got.items() if count > 1} <= sent_again.payloads


@BOTH
async def test_a_dead_line_is_noticed_by_keep_alive(mosquitto: Mosquitto, version: Version) -> None:
    reasons: list[str] = []
    lost = asyncio.Event()
    again = asyncio.Event()

    def on_disconnected(reason: str) -> None:
        reasons.append(reason)
        lost.set()

    async with Proxy(mosquitto.port) as proxy, client_of(proxy.url, version, keep_alive=1) as client:
        client.on_disconnected = on_disconnected
        client.on_connected = lambda _: again.set()
        proxy.stall()
        async with asyncio.timeout(10):
            await lost.wait()
            proxy.cut()
            proxy.flow()
            await again.wait()
            await client.publish("t", b"alive", 1)
    assert reasons[0] == "the server did not answer PINGREQ within 1 seconds"


@BOTH
async def test_a_server_that_forgot_everything_gets_it_again(
    tmp_path_factory: pytest.TempPathFactory, version: Version
) -> None:
    peer = Mosquitto(tmp_path_factory.mktemp("forgetful"))
    try:
        async with client_of(peer.url, version) as client:
            await client.subscribe([("t/#", 1), ("u", 2)])
            lost = asyncio.Event()
            client.on_disconnected = lambda _: lost.set()
            await asyncio.to_thread(peer.kill)
            async with asyncio.timeout(10):
                await lost.wait()
            waiting = asyncio.gather(client.publish("t/1", b"one", 1), client.publish("u", b"two", 2))
            await asyncio.to_thread(peer.start)
            async with asyncio.timeout(10):
                await waiting
                assert not client.session_present
                got: set[tuple[str, bytes, bool]] = set()
                async for message in client.messages():
                    got.add((message.topic, message.payload, message.duplicate))
                    if len(got) == 2:
                        break
        assert got == {("t/1", b"one", False), ("u", b"two", False)}
    finally:
        peer.stop()


async def test_a_slow_consumer_stops_the_reading_not_the_memory(mosquitto: Mosquitto) -> None:
    topic = uuid.uuid4().hex
    connection = ConnectionConfig(url=mosquitto.url, client_id=uuid.uuid4().hex, keep_alive_seconds=1)
    slow = Client(connection, queue_maximum=50)
    async with client_of(mosquitto.url, "5") as sender, slow, asyncio.timeout(30):
        await slow.subscribe([(topic, 0)])
        for number in range(200):
            await sender.publish(topic, b"%06d" % number + b"x" * 10_000)
        await asyncio.sleep(2.5)  # longer than the keep-alive: silence while we do not read kills nothing
        assert len(slow._queue) < 100
        got = 0
        async for message in slow.messages():
            assert message.payload.startswith(b"%06d" % got)
            got += 1
            if got == 200:
                break
