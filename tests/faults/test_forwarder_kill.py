"""kill -9 of a forwarder while it sends: every row arrives, and what arrives twice has the id it had before."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from aiohttp import web

from lockgate.buffer.ledger import read_ledger
from tests.support.buffers import batch, open_log
from tests.support.peers import free_port

FORWARDER = """
import asyncio, sys
from pathlib import Path
from lockgate.config.model import *
from lockgate.forwarder.service import Forwarder

folder, url = Path(sys.argv[1]), sys.argv[2]
classes = ("alarm", "telemetry")
sinks = (
    HttpSinkConfig(name="http", classes=classes, url=url, batch=7, retry_min_seconds=0.01),
    FileSinkConfig(name="file", classes=classes, path=folder / "out.jsonl", batch=7, retry_min_seconds=0.01),
)
forwarder = Forwarder(GatewayConfig(id="gw", data_dir=folder), BufferConfig(), ForwarderConfig(sinks=sinks))
asyncio.run(forwarder.run(lambda: print("ready", flush=True)))
"""
ROWS, KILLS = 1500, 6


async def test_every_row_arrives_at_least_once_over_kills(tmp_path: Path) -> None:
    arrived: Counter[str] = Counter()
    progress = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        arrived.update(message["id"] for message in await request.json())
        progress.set()
        return web.Response()

    application = web.Application()
    application.router.add_post("/in", take)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    log = await open_log(tmp_path / "buffer", {})
    await log.append(batch(*(b'{"n": %d, "fill": "%s"}' % (n, b"x" * 50) for n in range(ROWS))))
    out = tmp_path / "out.jsonl"
    try:
        for attempt in range(KILLS + 1):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", FORWARDER, str(tmp_path), f"http://127.0.0.1:{port}/in",
                stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
            try:
                assert process.stdout is not None
                async with asyncio.timeout(20):
                    assert await process.stdout.readline() == b"ready\n"
                    if attempt < KILLS:
                        goal = len(arrived) + random.randrange(20, 120)
                        while len(arrived) < min(goal, ROWS):
                            progress.clear()
                            await progress.wait()
                    else:
                        while True:
                            if not any(book.pending for book in read_ledger(tmp_path / "buffer").deliveries):
                                break
                            await asyncio.sleep(0.05)
            finally:
                process.kill()
                await process.wait()
    finally:
        await log.close()
        await runner.cleanup()
    expected = {f"gw/{seq}" for seq in range(1, ROWS + 1)}
    assert set(arrived) == expected
    # A kill can repeat the batch that was under way, no more.
    assert sum(count - 1 for count in arrived.values()) <= KILLS * 7
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert {line["id"] for line in lines} == expected
    assert len(lines) - ROWS <= KILLS * 7
    ledger = read_ledger(tmp_path / "buffer")
    assert ledger.closes
    assert {book.sink: book.delivered for book in ledger.deliveries if book.delivered} == {"http": ROWS, "file": ROWS}
