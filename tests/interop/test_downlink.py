"""Mosquitto as the cloud: TLS, version 3.1.1, and commands that come back down to the local broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lockgate.client import Client, Message
from lockgate.config.model import (
    BufferConfig,
    ConnectionConfig,
    DownlinkConfig,
    ForwarderConfig,
    GatewayConfig,
    MqttSinkConfig,
)
from lockgate.forwarder.service import Forwarder
from tests.support.buffers import batch, open_log
from tests.support.certificates import Authority
from tests.support.debian import publish
from tests.support.peers import Mosquitto, free_port
from tests.unit.forwarder.test_forwarder import CLASSES, forwarding, numbers, settled, until

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_a_sink_speaks_tls_with_a_certificate_of_its_own(tmp_path: Path, version: str) -> None:
    authority = Authority(tmp_path)
    certfile, keyfile = authority.issue("server", "localhost")
    ours, our_key = authority.issue("gateway", common_name="gateway-7")
    port = free_port()
    cloud = Mosquitto(
        tmp_path,
        [
            f"listener {port} 127.0.0.1",
            f"cafile {authority.cafile}",
            f"certfile {certfile}",
            f"keyfile {keyfile}",
            "require_certificate true",
            "use_identity_as_username true",
        ],
    )
    log = await open_log(tmp_path / "buffer", {})
    connection = ConnectionConfig(
        url=f"mqtts://localhost:{port}", client_id="gw", version=version  # type: ignore[arg-type]
    )  # fmt: skip
    sink = MqttSinkConfig(
        name="cloud", classes=CLASSES, connection=connection, cafile=authority.cafile, certfile=ours, keyfile=our_key,
        topic_prefix="gw/", format="document", retry_min_seconds=0.01, retry_max_seconds=0.1,
    )  # fmt: skip
    try:
        async with Client(ConnectionConfig(url=cloud.url, client_id="watcher")) as watcher:
            await watcher.subscribe([("gw/#", 1)])
            await log.append(batch(*numbers(*range(20)), topic="a"))
            async with forwarding(tmp_path, sink) as forwarder:
                await settled(tmp_path, forwarder)
            got: list[dict[str, object]] = []
            async with asyncio.timeout(10):
                async for message in watcher.messages():
                    got.append(json.loads(message.payload))
                    if len(got) == 20:
                        break
        assert [one["id"] for one in got] == [f"gw/{seq}" for seq in range(1, 21)]
    finally:
        cloud.stop()
        await log.close()


async def test_a_certificate_file_that_is_missing_is_said(tmp_path: Path) -> None:
    log = await open_log(tmp_path / "buffer", {})
    await log.append(batch(b"1"))
    connection = ConnectionConfig(url="mqtts://localhost:1", client_id="gw")
    sink = MqttSinkConfig(name="cloud", classes=CLASSES, connection=connection, cafile=tmp_path / "none.pem")
    async with forwarding(tmp_path, sink) as forwarder:
        await until(lambda: "none.pem" in str(forwarder.status()))
    await log.close()


class Site:
    """A cloud, a local broker, the forwarder between them and a device that listens."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        (tmp_path / "cloud").mkdir()
        (tmp_path / "local").mkdir()
        acl = tmp_path / "acl"
        acl.write_text("topic readwrite devices/#\n")
        self.cloud = Mosquitto(tmp_path / "cloud", ["persistence true", f"persistence_location {tmp_path}/cloud/"])
        self.local = Mosquitto(tmp_path / "local", [f"acl_file {acl}"])
        self.got: list[tuple[str, bytes]] = []
        self._changed = asyncio.Event()

    def forwarder(self, *topics: str, filters: tuple[str, ...] = ("commands/gw-7/#",)) -> Forwarder:
        connection = ConnectionConfig(url=self.cloud.url, client_id="gw-7")
        sink = MqttSinkConfig(
            name="cloud", classes=CLASSES, connection=connection, downlink=filters, downlink_prefix="commands/gw-7/"
        )
        downlink = DownlinkConfig(connection=ConnectionConfig(url=self.local.url, client_id="downlink"), topics=topics)
        return Forwarder(
            GatewayConfig(id="gw", data_dir=self.path),
            BufferConfig(classes=CLASSES),
            ForwarderConfig(sinks=(sink,), downlink=downlink),
        )

    async def listen(self, device: Client) -> None:
        async for message in device.messages():
            self._take(message)

    def _take(self, message: Message) -> None:
        self.got.append((message.topic, message.payload))
        self._changed.set()

    async def command(self, topic: str, text: str, *words: str) -> None:
        await asyncio.to_thread(publish, self.cloud.port, topic, text, *words)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    log = await open_log(tmp_path / "buffer", {})
    made = Site(tmp_path)
    yield made
    made.cloud.stop()
    made.local.stop()
    await log.close()


def counts(forwarder: Forwarder) -> dict[str, object]:
    downlinks = forwarder.status()["downlinks"]
    assert isinstance(downlinks, dict)
    said: dict[str, object] = downlinks["cloud"]
    return said


async def running(forwarder: Forwarder) -> asyncio.Task[None]:
    ready = asyncio.Event()
    task = asyncio.create_task(forwarder.run(ready.set))
    async with asyncio.timeout(10):
        await ready.wait()
    await until(lambda: counts(forwarder)["error"] is None)
    return task


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.done()


async def test_commands_come_down_where_they_are_allowed_and_nowhere_else(site: Site) -> None:
    await site.command("commands/gw-7/devices/9/set", "stale", "-r")
    forwarder = site.forwarder("devices/+/set")
    task = await running(forwarder)
    async with Client(ConnectionConfig(url=site.local.url, client_id="device")) as device:
        await device.subscribe([("#", 1)])
        listening = asyncio.create_task(site.listen(device))
        await site.command("commands/gw-7/devices/1/set", "on")
        await site.command("commands/gw-7/devices/1/firmware", "evil")
        await site.command("commands/gw-7/$SYS/x", "evil")
        await site.command("commands/gw-8/devices/1/set", "another gateway's")
        await site.command("commands/gw-7/devices/2/set", "off")
        await until(lambda: len(site.got) == 2)
        assert site.got == [("devices/1/set", b"on"), ("devices/2/set", b"off")]
        said = counts(forwarder)
        assert (said["passed"], said["refused"], said["connected"]) == (2, 2, True)
        listening.cancel()
    await ended(task)


async def test_the_local_brokers_own_rules_count_too(site: Site) -> None:
    forwarder = site.forwarder("#")
    task = await running(forwarder)
    await site.command("commands/gw-7/elsewhere/x", "no")
    await site.command("commands/gw-7/devices/x", "yes")
    await until(lambda: counts(forwarder)["passed"] == 1)
    assert counts(forwarder)["refused"] == 1
    await ended(task)


async def test_a_command_waits_for_a_broker_that_is_away_and_for_a_gateway_that_is(site: Site) -> None:
    forwarder = site.forwarder("devices/#")
    task = await running(forwarder)
    await asyncio.to_thread(site.local.stop)
    await site.command("commands/gw-7/devices/1", "while the broker was away")
    await ended(task)
    await site.command("commands/gw-7/devices/1", "while the gateway was away")
    await asyncio.to_thread(site.local.start)
    async with Client(ConnectionConfig(url=site.local.url, client_id="device")) as device:
        await device.subscribe([("#", 1)])
        listening = asyncio.create_task(site.listen(device))
        task = await running(site.forwarder("devices/#"))
        await until(lambda: len(site.got) >= 2)
        assert [payload for _, payload in site.got] == [b"while the broker was away", b"while the gateway was away"]
        listening.cancel()
    await ended(task)


async def test_nothing_comes_down_by_default(site: Site) -> None:
    forwarder = site.forwarder()
    task = await running(forwarder)
    await site.command("commands/gw-7/devices/1/set", "on")
    await until(lambda: counts(forwarder)["refused"] == 1)
    assert counts(forwarder)["passed"] == 0
    await ended(task)
