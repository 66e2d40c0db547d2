"""An outage in miniature: the cloud is away while messages arrive, writer and forwarder are killed, the clock jumps.

What arrives in the end is every message, alarms first, each topic in its order, repeats known by their ids, and the
books close.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks.wall_clock import WallClock
from lockgate.buffer.ledger import DeliveryBook, read_ledger
from tests.support.peers import free_port

ROWS = 4_800
TOPICS = 8

# Appends what follows the last number it finds, as far as it is told to, an alarm after every hundred messages.
WRITER = """
import asyncio, sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from lockgate.buffer import Batch, Entry, Log
from lockgate.config.model import ClassConfig
from lockgate.telemetry.clock import Clock
from tests.support.buffers import config

folder, rows, topics = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
limits = tuple(ClassConfig(name="telemetry", order=order, keep_seconds=3600) for order in sys.argv[4:])

async def main():
    settings = replace(config(segment_bytes=1 << 20), limits=limits)
    log = await Log.open(folder, settings, {"cloud": ("alarm", "telemetry")}, maintain_seconds=0.2)
    print("open", flush=True)
    n = log.state.appended.get("telemetry", 0)
    allowed = 0
    while n < rows:
        while n >= allowed:
            allowed = int(await asyncio.to_thread(sys.stdin.readline))
        entries = [Entry(f"t{k % topics}", "telemetry", "s", b'{"n": %d}' % k) for k in range(n, n + 50)]
        n += 50
        if n % 100 == 0:
            entries.append(Entry("fire", "alarm", "s", b'{"n": %d}' % n))
        count = len(entries)
        await log.append(Batch(moment=Clock().now(), entries=entries,
                               intake=Counter({("received", ""): count, ("logged", ""): count})))
        print(n, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
FORWARDER = """
import asyncio, sys
from pathlib import Path
from lockgate.config.model import *
from lockgate.forwarder.service import Forwarder

folder, url = Path(sys.argv[1]), sys.argv[2]
limits = tuple(ClassConfig(name="telemetry", order=order) for order in sys.argv[3:])
sink = HttpSinkConfig(name="cloud", classes=("alarm", "telemetry"), url=url, batch=100,
                      retry_min_seconds=0.01, retry_max_seconds=0.2)
forwarder = Forwarder(GatewayConfig(id="gw", data_dir=folder), BufferConfig(limits=limits),
                      ForwarderConfig(sinks=(sink,)))
asyncio.run(forwarder.run(lambda: print("open", flush=True)))
"""


class Receiver:
    """A cloud that is away at first."""

    def __init__(self) -> None:
        self.arrived: list[tuple[str, str, int]] = []  # id, topic, number; in order, repeats too
        self.is_away = True
        self.progress = asyncio.Event()
        self.port = free_port()

    async def take(self, request: web.Request) -> web.Response:
        messages = await request.json()
        if self.is_away:
            return web.Response(status=503)
        self.arrived += [(one["id"], one["topic"], one["payload"]["n"]) for one in messages]
        self.progress.set()
        return web.Response()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.arrived) < count:
                self.progress.clear()
                await self.progress.wait()


@pytest.fixture
async def cloud() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/in", receiver.take)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", receiver.port).start()
    yield receiver
    await runner.cleanup()


async def started(code: str, *words: str, environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"open\n"
    return process


async def ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def written(process: asyncio.subprocess.Process, count: int) -> None:
    """Wait until so many are written; some hundreds more may follow, so that a kill finds the writer at work."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"%d\n" % min(ROWS, count + 400))
    async with asyncio.timeout(40):
        while int(await process.stdout.readline()) < count:
            pass


def books(folder: Path) -> dict[str, DeliveryBook]:
    ledger = read_ledger(folder / "buffer")
    assert ledger.closes, ledger
    return {book.message_class: book for book in ledger.deliveries}


@pytest.mark.timeout(120)
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler for the clock that jumps")
@pytest.mark.parametrize("order", ["ordered", "latest-first"])
async def test_everything_arrives_after_an_outage_with_kills_and_a_jump(
    tmp_path: Path, cloud: Receiver, order: str
) -> None:
    clock = WallClock(tmp_path)
    environment = clock.environment
    write = (WRITER, str(tmp_path / "buffer"), str(ROWS), str(TOPICS), order)
    send = (FORWARDER, str(tmp_path), f"http://127.0.0.1:{cloud.port}/in", order)
    writer = await started(*write, environment=environment)
    forwarder = await started(*send, environment=environment)
    try:
        await written(writer, ROWS // 3)
        await ended(writer)
        clock.jump(-400)
        writer = await started(*write, environment=environment)
        await written(writer, ROWS // 2)
        clock.jump(800)
        await ended(forwarder)
        forwarder = await started(*send, environment=environment)
        await written(writer, ROWS)
        assert books(tmp_path)["telemetry"].delivered == 0
        cloud.is_away = False
        for _ in range(2):
            await cloud.until(len(cloud.arrived) + random.randrange(500, 2000))
            await ended(forwarder)
            forwarder = await started(*send, environment=environment)
        async with asyncio.timeout(40):
            while any(book.pending for book in books(tmp_path).values()):
                await asyncio.sleep(0.1)
    finally:
        await ended(forwarder)
        await ended(writer)
    arrived = dict.fromkeys(cloud.arrived)  # as they came first
    numbers: dict[str, list[int]] = {}
    for _, topic, number in arrived:
        numbers.setdefault(topic, []).append(number)
    alarms = ROWS // 100
    assert numbers.pop("fire") == [n * 100 for n in range(1, alarms + 1)]
    assert [topic for _, topic, _ in arrived][:alarms] == ["fire"] * alarms  # before everything else
    every = {f"t{k}": list(range(k, ROWS, TOPICS)) for k in range(TOPICS)}
    if order == "ordered":
        assert numbers == every
    else:
        assert {topic: sorted(seen) for topic, seen in numbers.items()} == every
    assert len(cloud.arrived) - len(arrived) <= 2 * 100  # a kill repeats the batch under way, no more
    telemetry = books(tmp_path)["telemetry"]
    assert (telemetry.addressed, telemetry.delivered, telemetry.expired) == (ROWS, ROWS, 0)
