"""The forwarder between a real log and real receivers, which behave badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from lockgate.buffer import Log
from lockgate.buffer.ledger import Ledger, read_ledger
from lockgate.client import Client
from lockgate.config.model import (
    AnySink,
    BufferConfig,
    ConnectionConfig,
    FileSinkConfig,
    ForwarderConfig,
    GatewayConfig,
    HttpSinkConfig,
    MqttSinkConfig,
)
from lockgate.forwarder.service import Forwarder
from tests.support.buffers import batch, open_log
from tests.support.peers import Mosquitto, free_port

CLASSES = ("alarm", "telemetry")


class Cloud:
    """An HTTP receiver; `answer` decides about each request, `batches` are those it was content with."""

    def __init__(self) -> None:
        self.port = free_port()
        self.batches: list[list[dict[str, object]]] = []
        self.keys: list[str] = []
        self.requests = 0
        self.answer: Callable[[list[dict[str, object]]], Awaitable[web.Response | None]] = self._content
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @staticmethod
    async def _content(_: list[dict[str, object]]) -> None:
        return None

    async def open(self) -> None:
        application = web.Application()
        application.router.add_post("/in", self._take)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.Response:
        self.requests += 1
        self._changed.set()
        messages = await request.json()
        refusal = await self.answer(messages)
        if refusal is not None:
            return refusal
        self.batches.append(messages)
        self.keys.append(request.headers["Idempotency-Key"])
        self._changed.set()
        return web.Response(status=204)

    @property
    def payloads(self) -> list[object]:
        return [message["payload"] for messages in self.batches for message in messages]

    async def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def sink(self, name: str = "cloud", **options: object) -> HttpSinkConfig:
        settings: dict[str, object] = {"retry_min_seconds": 0.01, "retry_max_seconds": 0.05, "timeout_seconds": 5.0}
        url = f"http://127.0.0.1:{self.port}/in"
        return HttpSinkConfig(name=name, classes=CLASSES, url=url, **{**settings, **options})  # type: ignore[arg-type]


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    receiver = Cloud()
    await receiver.open()
    yield receiver
    await receiver.close()


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    opened = await open_log(tmp_path / "buffer", {})
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def forwarding(tmp_path: Path, *sinks: AnySink) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(
        GatewayConfig(id="gw", data_dir=tmp_path), BufferConfig(classes=CLASSES), ForwarderConfig(sinks=sinks)
    )
    ready = asyncio.Event()
    task = asyncio.create_task(forwarder.run(ready.set))
    try:
        async with asyncio.timeout(10):
            await ready.wait()
        yield forwarder
    finally:
        task.cancel()
        async with asyncio.timeout(3):
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def settled(tmp_path: Path, forwarder: Forwarder, sink: str = "cloud") -> Ledger:
    """The ledger once nothing is pending for the sink."""
    async with asyncio.timeout(15):
        while True:
            ledger = read_ledger(tmp_path / "buffer")
            if not any(book.pending for book in ledger.deliveries if book.sink == sink):
                assert ledger.closes
                return ledger
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that nobody announces."""
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def numbers(*values: int) -> list[bytes]:
    return [b"%d" % value for value in values]


async def test_rows_arrive_in_batches_with_their_ids(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    await log.append(batch(*numbers(*range(25)), topic="sensors/a"))
    async with forwarding(tmp_path, cloud.sink(batch=10)) as forwarder:
        await settled(tmp_path, forwarder)
        status = forwarder.status()
    assert [len(messages) for messages in cloud.batches] == [10, 10, 5]
    assert cloud.keys == ["gw/1-10", "gw/11-20", "gw/21-25"]
    first = cloud.batches[0][0]
    assert (first["id"], first["topic"], first["class"], first["payload"]) == ("gw/1", "sensors/a", "telemetry", 0)
    sinks = status["sinks"]
    assert isinstance(sinks, dict)
    assert sinks["cloud"]["state"] == "ok"
    assert (sinks["cloud"]["delivered"], sinks["cloud"]["pending"]["telemetry"]) == (25, 0)


async def test_a_new_row_is_sent_within_a_second(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    async with forwarding(tmp_path, cloud.sink()):
        await log.append(batch(b"1"))
        await cloud.until(lambda: cloud.payloads == [1], 1.0)
        await log.append(batch(b"2"))
        await cloud.until(lambda: cloud.payloads == [1, 2], 1.0)


async def test_alarms_go_first(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    await log.append(batch(*numbers(*range(20))))
    await log.append(batch(b'"fire"', message_class="alarm"))
    async with forwarding(tmp_path, cloud.sink(batch=10)) as forwarder:
        await settled(tmp_path, forwarder)
    assert cloud.payloads == ["fire", *range(20)]


async def test_a_restart_goes_on_where_it_was(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    for start in (0, 10):
        await log.append(batch(*numbers(*range(start, start + 10))))
        async with forwarding(tmp_path, cloud.sink()) as forwarder:
            await settled(tmp_path, forwarder)
    assert cloud.payloads == [*range(20)]


@pytest.mark.parametrize("status", [500, 503, 429, 408, 401, 404, 302])
async def test_what_is_not_the_messages_fault_is_tried_again(
    tmp_path: Path, log: Log, cloud: Cloud, status: int
) -> None:
    async def refuse_twice(_: object) -> web.Response | None:
        return web.Response(status=status, headers={"Location": "/elsewhere"}) if cloud.requests <= 2 else None

    cloud.answer = refuse_twice
    await log.append(batch(*numbers(1, 2, 3)))
    async with forwarding(tmp_path, cloud.sink()) as forwarder:
        ledger = await settled(tmp_path, forwarder)
    book = next(book for book in ledger.deliveries if book.message_class == "telemetry")
    assert (book.delivered, book.retried, book.dead_lettered) == (3, 2, 0)


async def test_a_receiver_that_is_away_gets_everything_when_it_is_back(
    tmp_path: Path, log: Log, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    await cloud.close()
    await log.append(batch(*numbers(*range(5))))
    async with forwarding(tmp_path, cloud.sink()) as forwarder:
        await until(lambda: "Cannot connect" in str(forwarder.status()))
        await cloud.open()
        await cloud.until(lambda: cloud.payloads == [*range(5)])
        await settled(tmp_path, forwarder)
    assert sum("trying again" in record.getMessage() for record in caplog.records) == 1


async def test_a_poison_message_is_found_and_kept_with_the_reason(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    async def refuse_seven(messages: list[dict[str, object]]) -> web.Response | None:
        bad = any(message["payload"] == 7 for message in messages)
        return web.Response(status=422, text="seven is not a number we like") if bad else None

    cloud.answer = refuse_seven
    await log.append(batch(*numbers(*range(20))))
    async with forwarding(tmp_path, cloud.sink()) as forwarder:
        ledger = await settled(tmp_path, forwarder)
    assert cloud.payloads == [number for number in range(20) if number != 7]
    book = next(book for book in ledger.deliveries if book.message_class == "telemetry")
    assert (book.delivered, book.dead_lettered, book.retried) == (19, 1, 0)
    with contextlib.closing(sqlite3.connect(tmp_path / "buffer" / "cursor-cloud.sqlite")) as cursor:
        letters = cursor.execute("SELECT id, payload, reason FROM dead_letters").fetchall()
    assert letters == [("gw/8", b"7", "HTTP 422 Unprocessable Entity: seven is not a number we like")]


async def test_a_sink_that_hangs_blocks_no_other(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    released = asyncio.Event()

    async def hang(_: object) -> web.Response | None:
        await released.wait()
        return None

    cloud.answer = hang
    path = tmp_path / "out" / "messages.jsonl"
    await log.append(batch(*numbers(*range(10))))
    slow = cloud.sink("slow", timeout_seconds=0.2)
    async with forwarding(tmp_path, slow, FileSinkConfig(name="file", classes=CLASSES, path=path)) as forwarder:
        await settled(tmp_path, forwarder, "file")
        assert len(path.read_text().splitlines()) == 10
        await until(lambda: "no answer within 0.2 seconds" in str(forwarder.status()))
        released.set()
        await settled(tmp_path, forwarder, "slow")
    assert cloud.payloads[:10] == [*range(10)]


async def test_a_damaged_cursor_is_said_in_words_and_begins_again(
    tmp_path: Path, log: Log, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    await log.append(batch(*numbers(1, 2)))
    (tmp_path / "buffer" / "cursor-cloud.sqlite").write_bytes(b"rubbish" * 1000)
    async with forwarding(tmp_path, cloud.sink()) as forwarder:
        await settled(tmp_path, forwarder)
    [said] = [r.getMessage() for r in caplog.records if "its cursor was damaged" in r.getMessage()]
    assert "(file is not a database) and is set aside as " in said
    assert cloud.payloads == [1, 2]


async def test_a_half_line_does_not_stay_in_the_file(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "messages.jsonl"
    path.write_bytes(b'{"id": "gw/0"}\n{"id": "gw/1", "pay')
    await log.append(batch(b'{"a": 1}', b"\xff\x00 no JSON"))
    sink = FileSinkConfig(name="file", classes=CLASSES, path=path)
    async with forwarding(tmp_path, sink) as forwarder:
        await settled(tmp_path, forwarder, "file")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["gw/0", "gw/1", "gw/2"]
    assert lines[1]["payload"] == {"a": 1}
    assert lines[2]["payload_base64"] == "/wAgbm8gSlNPTg=="


async def test_a_file_that_cannot_be_written_is_said_clearly(tmp_path: Path, log: Log) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    sink = FileSinkConfig(
        name="file",
        classes=CLASSES,
        path=tmp_path / "taken" / "x.jsonl",
        retry_min_seconds=0.01,
        retry_max_seconds=0.02,
    )
    await log.append(batch(b"1"))
    async with forwarding(tmp_path, sink) as forwarder:
        await until(lambda: "Not a directory" in str(forwarder.status()) or "File exists" in str(forwarder.status()))
        (tmp_path / "taken").unlink()
        await settled(tmp_path, forwarder, "file")


@pytest.mark.peers
async def test_an_mqtt_sink_survives_its_server(tmp_path: Path, log: Log) -> None:
    peer = Mosquitto(tmp_path)
    to_peer = ConnectionConfig(url=peer.url, client_id="sink")
    sink = MqttSinkConfig(
        name="up", classes=CLASSES, connection=to_peer, topic_prefix="site/1/", retry_min_seconds=0.01,
        retry_max_seconds=0.2, timeout_seconds=5.0,
    )  # fmt: skip
    got: list[tuple[str, bytes, str]] = []
    try:
        watching = ConnectionConfig(url=peer.url, client_id="watcher")
        async with Client(watching, retry_max_seconds=0.5) as watcher, forwarding(tmp_path, sink) as forwarder:
            await watcher.subscribe([("site/1/#", 1)])
            await log.append(batch(*numbers(0, 1), topic="a"))
            await settled(tmp_path, forwarder, "up")
            await asyncio.to_thread(peer.kill)
            await log.append(batch(*numbers(2, 3), topic="b"))
            await until(lambda: "retrying" in str(forwarder.status()))
            await asyncio.to_thread(peer.start)
            await settled(tmp_path, forwarder, "up")
            async with asyncio.timeout(10):
                async for message in watcher.messages():
                    assert message.properties is not None
                    ((_, identifier),) = message.properties.user_properties
                    got.append((message.topic, message.payload, identifier))
                    if message.payload == b"1":
                        break
    finally:
        peer.stop()
    assert got[:2] == [("site/1/a", b"0", "gw/1"), ("site/1/a", b"1", "gw/2")]
