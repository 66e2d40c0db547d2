"""`kill -9` of the processor behind Debian's mosquitto: every acknowledged message is in the log, once."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson
import pytest

from lockgate.buffer import LogReader
from lockgate.buffer.ledger import read_ledger
from lockgate.client import Client
from lockgate.config.model import ConnectionConfig

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
MESSAGES = 1500
KILLS = 5

PROCESSOR = """
import asyncio, sys
from pathlib import Path
from lockgate.buffer import Log
from lockgate.config.model import *
from lockgate.processor.service import Processor

CLASSES = ("alarm", "telemetry", "sevens", "slides", "hops")
schema = SchemaConfig(name="s", topics=("in/#",), fields=(("value", "integer"),))
copy = RuleConfig(name="copy", schema="s", sql="SELECT :value AS value", message_class="telemetry", topic="out")
count = RuleConfig(
    name="count", schema="s", sql="SELECT count(*) AS n FROM s", message_class="alarm", topic="n", every_seconds=0.3
)
values = "SELECT json_group_array(value) AS v FROM (SELECT value FROM s ORDER BY value)"
windows = (
    RuleConfig(name="sevens", schema="s", sql=values, message_class="sevens", topic="w", count=7),
    RuleConfig(name="slides", schema="s", sql="SELECT max(value) AS v, count(*) AS n FROM s", message_class="slides",
               topic="w", keep_seconds=0.1),
    RuleConfig(name="hops", schema="s", sql=values, message_class="hops", topic="w", every_seconds=0.2,
               keep_seconds=0.6),
)
processor = Processor(
    GatewayConfig(id="g", data_dir=Path(sys.argv[1])),
    ProcessorConfig(
        connection=ConnectionConfig(url=sys.argv[2], client_id="processor"),
        schemas=(schema,),
        rules=(copy, count, *windows),
    ),
    BufferConfig(segment_bytes=65536, classes=CLASSES),
    ForwarderConfig(sinks=(FileSinkConfig(name="none yet", classes=CLASSES, path=Path("/nowhere")),)),
)
append = Log.append

async def noted_append(self, batch, **how):
    first_seq = await append(self, batch, **how)
    if ready:
        print(self.state.appended.get("telemetry", 0), flush=True)
    return first_seq

def tell_ready():
    ready.append(True)
    print("ready", flush=True)
    print(processor._log.state.appended.get("telemetry", 0), flush=True)

ready = []
Log.append = noted_append
asyncio.run(processor.run(tell_ready))
"""


@contextmanager
def mosquitto(folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (folder / "m.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nset_tcp_nodelay true\n"
    )
    assert MOSQUITTO is not None
    broker = subprocess.Popen([MOSQUITTO, "-c", str(folder / "m.conf")], stderr=subprocess.PIPE, text=True)
    try:
        assert broker.stderr is not None
        for line in broker.stderr:
            if "running" in line:
                break
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        broker.kill()
        broker.communicate(timeout=10)


@contextmanager
def processor(folder: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", PROCESSOR, str(folder), url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


@pytest.mark.peers
@pytest.mark.skipif(MOSQUITTO is None, reason="no mosquitto")
async def test_every_acknowledged_message_is_logged_once(tmp_path: Path) -> None:
    chance = random.Random(20)
    acknowledged: set[int] = set()
    with mosquitto(tmp_path) as url, ExitStack() as running:
        process = await asyncio.to_thread(running.enter_context, processor(tmp_path, url))
        stops = sorted(chance.sample(range(50, MESSAGES), KILLS))
        async with Client(ConnectionConfig(url=url, client_id="device"), clean_start=True) as device:

            async def publish(value: int) -> None:
                await device.publish(f"in/{value % 3}", b'{"value": %d}' % value, qos=1)
                acknowledged.add(value)

            publishing: list[asyncio.Task[None]] = []
            for value in range(MESSAGES):
                publishing.append(asyncio.create_task(publish(value)))
                if value % 10 == 0:
                    await publishing[-1]
                if value in stops:
                    await asyncio.to_thread(running.close)  # kill -9
                    process = await asyncio.to_thread(running.enter_context, processor(tmp_path, url))
            await asyncio.gather(*publishing)
        assert acknowledged == set(range(MESSAGES))
        async with asyncio.timeout(20):
            await asyncio.to_thread(logged, process, MESSAGES)
        await asyncio.to_thread(running.close)
        with processor(tmp_path, url):
            pass  # what the windows had not yet made of the log is made of it at the start

    reader = LogReader(tmp_path / "buffer")
    values = [orjson.loads(row.payload)["value"] for row in reader.read("telemetry", 0, 10 * MESSAGES)]
    assert sorted(values) == list(range(MESSAGES))
    closed = sum(orjson.loads(row.payload)["n"] for row in reader.read("alarm", 0, 10 * MESSAGES))
    cursor = reader.state().rule_cursors["count"]
    assert cursor.schema == "s"
    assert closed + reader.pending("window-input", cursor.needed) == MESSAGES  # no message in two windows or in none

    def gathered(message_class: str) -> list[list[int]]:
        found = reader.read(message_class, 0, 10 * MESSAGES, limit_bytes=1 << 30)
        return [orjson.loads(orjson.loads(row.payload)["v"]) for row in found]

    sevens = gathered("sevens")
    assert all(len(seven) == 7 for seven in sevens)
    assert len({value for seven in sevens for value in seven}) == 7 * len(sevens) == MESSAGES // 7 * 7
    assert len(reader.read("slides", 0, 10 * MESSAGES)) == MESSAGES  # one for each message, not one more
    hops = [value for hop in gathered("hops") for value in hop]
    assert max(map(hops.count, set(hops))) == 3  # a message lives in as many windows as `keep` holds periods
    book = read_ledger(tmp_path / "buffer").intake
    assert book.closes
    assert book.logged == MESSAGES


def logged(process: subprocess.Popen[str], count: int) -> None:
    """Read what the processor says about its commits until it has that many."""
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= count:
            return
    raise AssertionError("the processor ended before it had everything")
