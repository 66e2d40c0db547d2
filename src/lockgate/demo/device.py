"""The devices: this machine's processor, memory, disk and network, one QoS 1 message each a second."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from lockgate.client.client import Client
from lockgate.client.errors import ClientError
from lockgate.config.model import ConnectionConfig

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
UNACKNOWLEDGED = 500  # readings kept while the broker is away; those beyond are not made


class Readings:
    """What this machine measures about itself; each call of `take` covers the time since the one before."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first call has no time to look back on
        self._network = psutil.net_io_counters()
        self._taken = time.monotonic()

    def take(self) -> Iterator[tuple[str, float, str]]:
        """Quantity, value, unit."""
        now = time.monotonic()
        seconds, self._taken = max(now - self._taken, 1e-3), now
        network, before = psutil.net_io_counters(), self._network
        self._network = network
        yield "cpu", psutil.cpu_percent(), "%"
        yield "memory", psutil.virtual_memory().percent, "%"
        yield "disk", psutil.disk_usage(Path.cwd().anchor).percent, "%"
        if network is not None and before is not None:  # a container may have no network at all
            yield "network/received", round((network.bytes_recv - before.bytes_recv) / seconds / 1e6, 6), "MB/s"
            yield "network/sent", round((network.bytes_sent - before.bytes_sent) / seconds / 1e6, 6), "MB/s"


class Device:
    """Publishes the readings until cancelled."""

    name = "demo-device"

    def __init__(self, url: str) -> None:
        self._host = socket.gethostname().translate(str.maketrans("+#/", "___")) or "here"
        self._connection = ConnectionConfig(url=url, client_id=f"demo-{self._host}")
        self._publishing: set[asyncio.Task[None]] = set()
        self._made = self._acknowledged = self._left_out = self._connects = 0

    async def run(self, ready: Callable[[], None]) -> None:
        client = Client(self._connection, session_expiry_seconds=3600, on_connected=self._count_connect)
        async with client:
            ready()
            readings = Readings()
            due = asyncio.get_running_loop().time()
            while True:
                for quantity, value, unit in readings.take():
                    self._publish(client, f"sensors/{self._host}/{quantity}", value, unit)
                due += INTERVAL_SECONDS
                await asyncio.sleep(due - asyncio.get_running_loop().time())

    def status(self) -> dict[str, object]:
        return {
            "made": self._made,
            "acknowledged": self._acknowledged,
            "pending": len(self._publishing),
            "left_out": self._left_out,
            "reconnects": max(0, self._connects - 1),
        }

    def _publish(self, client: Client, topic: str, value: float, unit: str) -> None:
        if len(self._publishing) >= UNACKNOWLEDGED:
            self._left_out += 1
            return
        self._made += 1
        payload = json.dumps({"value": value, "unit": unit}).encode()
        task = asyncio.create_task(self._deliver(client, topic, payload))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _deliver(self, client: Client, topic: str, payload: bytes) -> None:
        try:
            await client.publish(topic, payload, qos=1)
        except ClientError as error:
            log.warning("a reading was not accepted: %s", error)
        else:
            self._acknowledged += 1

    def _count_connect(self, _session_present: bool) -> None:
        self._connects += 1
