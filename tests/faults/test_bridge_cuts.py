"""Bridges over a line that is cut, and brokers that are killed: nothing is lost, and QoS 2 comes exactly once."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.client import Client
from lockgate.config.model import ConnectionConfig
from lockgate.telemetry import health
from tests.faults.test_client_cuts import cutting
from tests.support.bridged import bridged
from tests.support.gateway import Gateway
from tests.support.peers import Mosquitto, free_port
from tests.support.proxy import Proxy
from tests.support.sent_again import SentAgain

pytestmark = pytest.mark.peers
VERSIONS = {4: "mqttv311", 5: "mqttv50"}
QUIET = "notifications false"
COUNT = 300


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    peer = Mosquitto(tmp_path_factory.mktemp("mosquitto"), ["max_queued_messages 0"])
    yield peer
    peer.stop()


def client_of(url: str) -> Client:
    return Client(
        ConnectionConfig(url=url, client_id=uuid.uuid4().hex),
        session_expiry_seconds=600,
        retry_min_seconds=0.01,
        retry_max_seconds=0.05,
    )


async def heard(receiver: Client) -> list[bytes]:
    """What comes until the end."""
    got: list[bytes] = []
    async for message in receiver.messages():
        if message.payload == b"end":
            break
        got.append(message.payload)
    return got


def check(got: list[bytes], qos: int, sent_again: set[bytes] | None = None) -> None:
    expected = [b"%d" % number for number in range(COUNT)]
    assert set(got) == set(expected)
    assert list(dict.fromkeys(got)) == expected  # the first copies are in order
    if qos == 2:
        repeated = {payload for payload in got if got.count(payload) > 1}
        assert repeated <= (sent_again or set())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("direction", ["out", "in"])
async def test_a_line_that_is_cut(
    mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, qos: int, direction: str
) -> None:
    monkeypatch.setattr("lockgate.bridge.backoff.Backoff.next_seconds", lambda _: random.uniform(0.001, 0.02))
    name = uuid.uuid4().hex
    done = asyncio.Event()
    sent_again = SentAgain(version)
    async with Proxy(mosquitto.port, sent_again.hear) as proxy, asyncio.timeout(50):
        lines = ["connection b", f"address 127.0.0.1:{proxy.port}", f"clientid {name}", QUIET]
        lines += [f"topic {name} {direction} {qos}", f"bridge_protocol_version {VERSIONS[version]}"]
        async with bridged(tmp_path, "max_queued_messages 0", *lines) as bridge:
            await bridge.until(lambda status: status["state"] == "connected")
            ends = (bridge.url, mosquitto.url) if direction == "out" else (mosquitto.url, bridge.url)
            async with client_of(ends[0]) as sender, client_of(ends[1]) as receiver:
                await receiver.subscribe([(name, qos)])
                hearing = asyncio.create_task(heard(receiver))
                up, down = (2000, 300) if direction == "out" else (300, 2000)
                cutter = asyncio.create_task(cutting(proxy, 12, up, down, done))
                for start in range(0, COUNT, 30):
                    await asyncio.gather(*(sender.publish(name, b"%d" % n, qos) for n in range(start, start + 30)))
                    proxy.cut()
                await sender.publish(name, b"end", qos)
                got = await hearing
                done.set()
                await cutter
    assert proxy.connections > 2
    check(got, qos, sent_again.payloads)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("victim", ["ours", "theirs"])
@pytest.mark.parametrize("direction", ["out", "in"])
async def test_a_broker_that_is_killed(tmp_path: Path, version: int, victim: str, direction: str) -> None:
    """Both are ours and keep what they acknowledge."""
    remote_folder, folder = tmp_path / "remote", tmp_path / "local"
    remote_folder.mkdir()
    folder.mkdir()
    remote = Gateway(remote_folder, mosquitto_conf=["max_queued_messages 0"])
    lines = ["connection b", f"address 127.0.0.1:{remote.port}", "clientid gw", "restart_timeout 1", QUIET]
    lines += [f"topic t {direction} 2", f"bridge_protocol_version {VERSIONS[version]}"]
    local = Gateway(folder, mosquitto_conf=["max_queued_messages 0", *lines])
    with remote.running("broker"), local.running("broker"):
        async with asyncio.timeout(50):
            while health_of(local) != "connected":
                await asyncio.sleep(0.02)
            urls = (local.url, remote.url) if direction == "out" else (remote.url, local.url)
            async with client_of(urls[0]) as sender, client_of(urls[1]) as receiver:
                await receiver.subscribe([("t", 2)])
                hearing = asyncio.create_task(heard(receiver))
                killed = local if victim == "ours" else remote
                for start in range(0, COUNT, 100):
                    sending = [
                        asyncio.create_task(sender.publish("t", b"%d" % n, 2)) for n in range(start, start + 100)
                    ]
                    await sending[random.randrange(100)]
                    await asyncio.to_thread(killed.kill, "broker")
                    await asyncio.to_thread(killed.start, "broker")
                    await asyncio.gather(*sending)
                await sender.publish("t", b"end", 2)
                got = await hearing
    check(got, 2)


def health_of(gateway: Gateway) -> object:
    answer = health.ask(gateway.sockets / "broker.sock")
    assert answer is not None
    return answer["status"]["bridges"]["b"]["state"]  # type: ignore[index]


async def test_what_waited_for_mosquitto_reaches_it(tmp_path: Path) -> None:
    """It was not there when the messages were sent, and we were killed meanwhile."""
    port = free_port()
    lines = ["connection b", f"address 127.0.0.1:{port}", "clientid gw", "restart_timeout 1", "topic t out 2"]
    local = Gateway(tmp_path, mosquitto_conf=["max_queued_messages 0", *lines])
    with local.running("broker"):
        async with client_of(local.url) as sender:
            await asyncio.gather(*(sender.publish("t", b"%d" % number, 2) for number in range(COUNT)))
        local.kill("broker")
        peer = Mosquitto(tmp_path, port=port, started=False)
        async with asyncio.timeout(30):
            peer.start()
            try:
                async with client_of(peer.url) as receiver:
                    await receiver.subscribe([("t", 2)])
                    await asyncio.to_thread(local.start, "broker")
                    got: list[bytes] = []
                    async for message in receiver.messages():
                        got.append(message.payload)
                        if len(got) == COUNT:
                            break
            finally:
                peer.stop()
    check(got, 2)
