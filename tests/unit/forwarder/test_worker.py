"""What a worker does beyond sending in order: lanes, budgets, poison, dead letters, receivers that talk rubbish."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from aiohttp import web

from lockgate.buffer import Log
from lockgate.buffer.ledger import DeliveryBook, read_ledger
from lockgate.buffer.missing import OVER_LIMIT
from lockgate.buffer.offline import letters, send_again
from lockgate.config.model import (
    AnySink,
    BufferConfig,
    ClassConfig,
    ConnectionConfig,
    FileSinkConfig,
    ForwarderConfig,
    GatewayConfig,
    HttpSinkConfig,
    MqttSinkConfig,
    NatsSinkConfig,
)
from lockgate.forwarder.service import Forwarder
from lockgate.telemetry.clock import Clock
from tests.support.buffers import SINKS, batch, config
from tests.support.peers import free_port
from tests.unit.forwarder.test_forwarder import CLASSES, Cloud, cloud, forwarding, log, numbers, settled, until

__all__ = ["cloud", "log"]


def book_of(tmp_path: Path, sink: str = "cloud", message_class: str = "telemetry") -> DeliveryBook:
    ledger = read_ledger(tmp_path / "buffer")
    assert ledger.closes, ledger
    return next(book for book in ledger.deliveries if (book.sink, book.message_class) == (sink, message_class))


@contextlib.asynccontextmanager
async def forwarding_with(tmp_path: Path, limits: tuple[ClassConfig, ...], *sinks: AnySink) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(
        GatewayConfig(id="gw", data_dir=tmp_path),
        BufferConfig(classes=CLASSES, limits=limits),
        ForwarderConfig(sinks=sinks),
    )
    ready = asyncio.Event()
    task = asyncio.create_task(forwarder.run(ready.set))
    try:
        async with asyncio.timeout(10):
            await ready.wait()
        yield forwarder
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_after_an_outage_what_is_live_comes_before_the_history(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    old = batch(*numbers(*range(40)))
    moment = Clock().now()
    old.moment = moment._replace(boottime_ns=moment.boottime_ns - 3600 * 10**9)
    await log.append(old)
    await log.append(batch(*numbers(100, 101)))
    latest = (ClassConfig(name="telemetry", order="latest-first"),)
    async with forwarding_with(tmp_path, latest, cloud.sink(batch=5)) as forwarder:
        await settled(tmp_path, forwarder)
        await log.append(batch(*numbers(102)))
        await cloud.until(lambda: 102 in cloud.payloads)
        await settled(tmp_path, forwarder)
    assert sorted(map(int, map(str, cloud.payloads))) == [*range(40), 100, 101, 102]
    assert cloud.payloads[:5] == [37, 38, 39, 100, 101]  # the newest batch, in order
    assert cloud.payloads[5:42] == [*range(37)]
    assert book_of(tmp_path).delivered == 43


async def test_what_the_writer_gave_up_is_counted_and_not_sent(tmp_path: Path, cloud: Cloud) -> None:
    limit = ClassConfig(name="telemetry", limit_bytes=64_000, when_full="drop-oldest")
    log = await Log.open(tmp_path / "buffer", replace(config(), limits=(limit,)), {"cloud": SINKS["cloud"]})
    async with forwarding(tmp_path, cloud.sink()) as forwarder:
        await log.append(batch(b"0"))
        await settled(tmp_path, forwarder)
    await log.append(batch(*(b'{"n": %d, "x": "%s"}' % (n, b"x" * 900) for n in range(1, 201))))
    async with forwarding(tmp_path, cloud.sink()) as forwarder:
        await settled(tmp_path, forwarder)
    book = book_of(tmp_path)
    assert book.dropped[OVER_LIMIT] > 130
    assert book.delivered + book.dropped[OVER_LIMIT] == 201
    assert len(cloud.payloads) == book.delivered
    await log.close()


async def test_a_budget_holds_the_rest_back_and_lets_alarms_through(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    await log.append(batch(*numbers(*range(20))))
    sink = cloud.sink(messages_per_month=8, always=("alarm",), batch=5)
    for _ in range(2):  # a restart brings no new budget
        async with forwarding(tmp_path, sink) as forwarder:
            await until(lambda: "the messages of this month are spent" in str(forwarder.status()))
            assert '"state": "held"' in json.dumps(forwarder.status())
            await log.append(batch(b'"fire"', message_class="alarm"))
            await cloud.until(lambda: cloud.payloads[-1] == "fire")
    assert cloud.payloads == [*range(8), "fire", "fire"]
    assert book_of(tmp_path).pending == 12


async def test_a_message_that_breaks_the_receiver_becomes_a_dead_letter_when_others_pass(
    tmp_path: Path, log: Log, cloud: Cloud
) -> None:
    async def stumble(messages: list[dict[str, object]]) -> web.Response | None:
        return web.Response(status=500, text="oops") if any(m["payload"] == 7 for m in messages) else None

    cloud.answer = stumble
    await log.append(batch(*numbers(*range(7, 20))))
    async with forwarding(tmp_path, cloud.sink(poison_after=3)) as forwarder:
        await settled(tmp_path, forwarder)
    assert list(dict.fromkeys(cloud.payloads)) == [*range(8, 20)]  # the one that was tried comes again
    book = book_of(tmp_path)
    assert (book.delivered, book.dead_lettered) == (12, 1)
    [letter] = letters(tmp_path / "buffer", "cloud")
    assert (letter.identity, letter.reason) == ("gw/1", "HTTP 500 Internal Server Error: oops")


async def test_a_receiver_that_fails_for_everything_makes_no_dead_letters(
    tmp_path: Path, log: Log, cloud: Cloud
) -> None:
    async def fail(_: object) -> web.Response | None:
        return web.Response(status=500) if cloud.requests < 25 else None

    cloud.answer = fail
    await log.append(batch(*numbers(1, 2), topic="a"))
    await log.append(batch(*numbers(3), topic="b"))
    async with forwarding(tmp_path, cloud.sink(poison_after=2)) as forwarder:
        await settled(tmp_path, forwarder)
    assert [number for number in cloud.payloads if number != 3] == [1, 2]
    assert 3 in cloud.payloads
    assert book_of(tmp_path).dead_lettered == 0


async def test_dead_letters_are_sent_again_when_asked(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    refusing = {3, 5}

    async def refuse(messages: list[dict[str, object]]) -> web.Response | None:
        return web.Response(status=422) if any(m["payload"] in refusing for m in messages) else None

    cloud.answer = refuse
    await log.append(batch(*numbers(*range(10)), topic="a/b"))
    async with forwarding(tmp_path, cloud.sink()) as forwarder:
        await settled(tmp_path, forwarder)
        assert book_of(tmp_path).dead_lettered == 2
        refusing.remove(5)
        assert send_again(tmp_path / "buffer", "cloud", ()) == 2
        await cloud.until(lambda: 5 in cloud.payloads)
        await until(lambda: not any(letter.again for letter in letters(tmp_path / "buffer", "cloud")))
    book = book_of(tmp_path)
    assert (book.delivered, book.dead_lettered) == (9, 1)
    assert cloud.batches[-1][0] | {"time": 0, "clock_ok": True} == {
        "id": "gw/6", "topic": "a/b", "class": "telemetry", "payload": 5, "time": 0, "clock_ok": True
    }  # fmt: skip
    [letter] = letters(tmp_path / "buffer", "cloud")
    assert letter.identity == "gw/4"


async def test_several_requests_at_once_keep_the_order_of_each_topic(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    under_way = most = 0

    async def slow(messages: list[dict[str, object]]) -> web.Response | None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01 * (len(messages) % 3))
        under_way -= 1
        return web.Response(status=503) if cloud.requests % 5 == 0 else None

    cloud.answer = slow
    for n in range(30):
        for topic in "abcdef":
            await log.append(batch(b"%d" % n, topic=topic))
    async with forwarding(tmp_path, cloud.sink(in_flight=4, batch=24)) as forwarder:
        await settled(tmp_path, forwarder)
    assert most > 1
    first_seen: dict[str, list[object]] = {}
    for one in (message for messages in cloud.batches for message in messages):
        seen = first_seen.setdefault(str(one["topic"]), [])
        if one["payload"] not in seen:  # what is sent twice has the id it had
            seen.append(one["payload"])
    assert first_seen == {topic: [*range(30)] for topic in "abcdef"}


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("taken", [True, False])
async def test_the_body_is_compressed_where_the_receiver_takes_it(
    tmp_path: Path, log: Log, compression: str, taken: bool
) -> None:
    bodies: list[tuple[str, bytes]] = []

    async def take(request: web.Request) -> web.Response:
        encoding = request.headers.get("Content-Encoding", "")
        if encoding and not taken:
            return web.Response(status=415)
        bodies.append((encoding, await request.content.read()))
        return web.Response()

    receiver = web.Server(lambda request: take(request), auto_decompress=False)  # type: ignore[arg-type]
    runner = web.ServerRunner(receiver, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    sink = HttpSinkConfig(
        name="cloud", classes=CLASSES, url=f"http://127.0.0.1:{port}/", compression=compression  # type: ignore[arg-type]
    )  # fmt: skip
    await log.append(batch(*numbers(*range(50))))
    async with forwarding(tmp_path, sink) as forwarder:
        await settled(tmp_path, forwarder)
    await runner.cleanup()
    [(encoding, body)] = bodies
    assert encoding == (compression if taken else "")
    if taken:
        body = gzip.decompress(body) if compression == "gzip" else zstandard.ZstdDecompressor().decompress(body)
    assert [message["payload"] for message in json.loads(body)] == [*range(50)]


@pytest.mark.parametrize("behaviour", ["silent", "closes", "rubbish", "half an answer"])
@pytest.mark.parametrize("kind", ["http", "mqtt"])
async def test_a_receiver_that_misbehaves_stops_no_other_sink(
    tmp_path: Path, log: Log, kind: str, behaviour: str
) -> None:
    connections: list[asyncio.StreamWriter] = []

    async def misbehave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        if behaviour == "closes":
            writer.close()
            return
        await reader.read(100)
        if behaviour == "rubbish":
            writer.write(b"\xff\x00\xa5 what? \r\n\r\n" * 20)
        elif behaviour == "half an answer":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Le" if kind == "http" else b"\x20\x03\x00")

    server = await asyncio.start_server(misbehave, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = {"name": "bad", "classes": CLASSES, "timeout_seconds": 0.3, "retry_min_seconds": 0.01,
               "retry_max_seconds": 0.05}  # fmt: skip
    bad: AnySink
    if kind == "http":
        bad = HttpSinkConfig(url=f"http://127.0.0.1:{port}/", **options)  # type: ignore[arg-type]
    else:
        to = ConnectionConfig(url=f"mqtt://127.0.0.1:{port}", client_id="sink")
        bad = MqttSinkConfig(connection=to, **options)  # type: ignore[arg-type]
    path = tmp_path / "good.jsonl"
    await log.append(batch(*numbers(*range(10))))
    async with forwarding(tmp_path, bad, FileSinkConfig(name="good", classes=CLASSES, path=path)) as forwarder:
        await settled(tmp_path, forwarder, "good")
        await until(lambda: "retrying" in str(forwarder.status()))
        await until(lambda: len(connections) >= 2)
        await log.append(batch(*numbers(*range(10, 20))))
        await settled(tmp_path, forwarder, "good")
    assert len(path.read_text().splitlines()) == 20
    assert book_of(tmp_path, "bad").pending == 20
    server.close()
    for writer in connections:
        writer.close()


async def test_poison_is_found_where_a_batch_is_one_message(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    async def stumble(messages: list[dict[str, object]]) -> web.Response | None:
        return web.Response(status=500, text="oops") if any(m["payload"] == 7 for m in messages) else None

    cloud.answer = stumble
    await log.append(batch(*numbers(7, 8, 9)))
    async with forwarding(tmp_path, cloud.sink(poison_after=2, batch=1)) as forwarder:
        await settled(tmp_path, forwarder)
    assert list(dict.fromkeys(cloud.payloads)) == [8, 9]
    book = book_of(tmp_path)
    assert (book.delivered, book.dead_lettered) == (2, 1)


async def test_a_dead_letter_that_is_an_error_again_holds_nothing_up_for_ever(
    tmp_path: Path, log: Log, cloud: Cloud
) -> None:
    async def stumble(messages: list[dict[str, object]]) -> web.Response | None:
        return web.Response(status=500, text="oops") if any(m["payload"] in (7, 8) for m in messages) else None

    cloud.answer = stumble
    await log.append(batch(*numbers(7, 8, 9)))
    async with forwarding(tmp_path, cloud.sink(poison_after=2)) as forwarder:
        await settled(tmp_path, forwarder)
        assert send_again(tmp_path / "buffer", "cloud", ()) == 2
        for number in range(10, 100):  # it takes others meanwhile
            await log.append(batch(*numbers(number)))
            await settled(tmp_path, forwarder)
            if not any(letter.again for letter in letters(tmp_path / "buffer", "cloud")):
                break
        assert [letter.again for letter in letters(tmp_path / "buffer", "cloud")] == [False, False]
    book = book_of(tmp_path)
    assert (book.pending, book.dead_lettered) == (0, 2)


async def test_two_poison_messages_in_a_row_do_not_vouch_for_each_other(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    async def stumble(messages: list[dict[str, object]]) -> web.Response | None:
        return web.Response(status=500) if any(m["payload"] in (7, 8) for m in messages) else None

    cloud.answer = stumble
    await log.append(batch(*numbers(7, 8, 9, 10)))
    async with forwarding(tmp_path, cloud.sink(poison_after=2)) as forwarder:
        await settled(tmp_path, forwarder)
    book = book_of(tmp_path)
    assert (book.delivered, book.dead_lettered) == (2, 2)


async def test_a_batch_ends_at_its_bytes_and_then_waits_for_no_more(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    await log.append(batch(*(b'"%s"' % (b"x" * 400) for _ in range(5)), b'"%s"' % (b"y" * 5000), b'"end"'))
    sink = cloud.sink(batch_bytes=1000, gather_seconds=3600.0)
    async with forwarding(tmp_path, sink):
        await cloud.until(lambda: len(cloud.batches) == 4)
    assert [len(messages) for messages in cloud.batches] == [2, 2, 1, 1]  # the last one gathers


async def test_dead_letters_are_sent_again_in_batches_of_bytes_too(tmp_path: Path, log: Log, cloud: Cloud) -> None:
    async def refuse(messages: list[dict[str, object]]) -> web.Response:
        return web.Response(status=400)

    cloud.answer, take = refuse, cloud.answer
    await log.append(batch(*(b'"%s"' % (b"x" * 400) for _ in range(5)), b'"%s"' % (b"y" * 5000)))
    async with forwarding(tmp_path, cloud.sink(batch_bytes=1000)) as forwarder:
        await until(lambda: '"dead_lettered": 6' in json.dumps(forwarder.status()))
    cloud.answer = take
    send_again(tmp_path / "buffer", "cloud", ())
    async with forwarding(tmp_path, cloud.sink(batch_bytes=1000)) as forwarder:
        await until(lambda: '"delivered": 6' in json.dumps(forwarder.status()))
    assert [len(messages) for messages in cloud.batches] == [3, 3]  # up to the one that goes beyond
    assert book_of(tmp_path).delivered == 6


async def test_an_error_on_the_way_out_does_not_keep_a_sink_from_ending(
    tmp_path: Path, log: Log, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = asyncio.Event()

    async def send(_self: object, _rows: object) -> None:
        sending.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise AttributeError("of a library, as it cleans up")

    monkeypatch.setattr("lockgate.forwarder.sinks.http.HttpSink.send", send)
    await log.append(batch(*numbers(1)))
    async with asyncio.timeout(10):
        async with forwarding(tmp_path, cloud.sink()):
            await sending.wait()


async def test_a_sink_whose_library_is_missing_fails_alone_and_keeps_its_backlog(
    tmp_path: Path, log: Log, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = importlib.import_module("nats")
    monkeypatch.setitem(sys.modules, "nats", None)
    url = f"nats://127.0.0.1:{free_port()}"
    nats = NatsSinkConfig(name="stream", classes=CLASSES, url=url, retry_min_seconds=0.01, retry_max_seconds=0.05)
    await log.append(batch(*numbers(*range(5))))
    async with forwarding(tmp_path, nats, cloud.sink()) as forwarder:
        await settled(tmp_path, forwarder)
        said = forwarder.status()["sinks"]
        assert isinstance(said, dict)
        assert said["stream"]["state"] == "retrying"
        assert "needs the library nats" in said["stream"]["error"]
        assert "pip install 'lockgate[nats]'" in said["stream"]["error"]
        assert said["stream"]["pending"] == {"telemetry": 5}
        monkeypatch.setitem(sys.modules, "nats", library)  # installed meanwhile
        await until(lambda: "it cannot be used" not in str(forwarder.status()))
    assert cloud.payloads == [*range(5)]
    assert len([one for one in caplog.messages if "needs the library nats" in one]) == 1
    assert book_of(tmp_path, "stream").pending == 5
