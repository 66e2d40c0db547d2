"""Sinks against the real thing: what arrives, what comes twice, what is refused, and what an outage costs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import aiokafka
import asyncpg
import boto3
import nats
import pytest
import zstandard
from nats.js.api import StreamConfig

from lockgate.buffer import Log, Row
from lockgate.buffer.ledger import DeliveryBook, read_ledger
from lockgate.buffer.offline import letters
from lockgate.config.model import (
    InfluxSinkConfig,
    KafkaSinkConfig,
    NatsSinkConfig,
    ObjectSinkConfig,
    PostgresSinkConfig,
)
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import build
from lockgate.forwarder.sinks.nats import subject_of
from tests.support import servers
from tests.support.buffers import batch, open_log
from tests.support.proxy import Proxy
from tests.unit.forwarder.test_forwarder import CLASSES, forwarding, numbers, settled, until

pytestmark = pytest.mark.peers
QUICK = {"classes": CLASSES, "retry_min_seconds": 0.01, "retry_max_seconds": 0.2, "timeout_seconds": 5.0}


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    opened = await open_log(tmp_path / "buffer", {})
    yield opened
    await opened.close()


def book_of(tmp_path: Path, message_class: str = "telemetry") -> DeliveryBook:
    ledger = read_ledger(tmp_path / "buffer")
    assert ledger.closes, ledger
    return next(book for book in ledger.deliveries if book.message_class == message_class)


def rows(count: int, topic: str = "t") -> list[Row]:
    return [
        Row(n, n, "boot", 0, 1_700_000_000_000_000_000, True, None, topic, "telemetry", "s", b'{"n": %d}' % n)
        for n in range(1, count + 1)
    ]


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


async def test_postgres_holds_every_message_once_over_an_outage(tmp_path: Path, log: Log) -> None:
    server = await asyncio.to_thread(servers.Postgres, tmp_path)
    await asyncio.to_thread(server.start)
    sink = PostgresSinkConfig(name="cloud", url=server.url, batch=100, **QUICK)  # type: ignore[arg-type]
    try:
        await log.append(batch(*numbers(*range(250)), topic="a/b"))
        async with forwarding(tmp_path, sink) as forwarder:
            await settled(tmp_path, forwarder)
            await asyncio.to_thread(server.stop)
            await log.append(batch(*numbers(*range(250, 500)), topic="a/b"))
            await until(lambda: "retrying" in str(forwarder.status()))
            await asyncio.to_thread(server.start)
            await settled(tmp_path, forwarder)
        connection = await asyncpg.connect(server.url)
        stored = await connection.fetch("SELECT * FROM lockgate_messages ORDER BY time, (payload)::int")
        await connection.close()
        assert [int(row["payload"]) for row in stored] == [*range(500)]
        assert (stored[0]["id"], stored[0]["class"], stored[0]["topic"]) == ("gw/1", "telemetry", "a/b")
        again = build(sink, Messages("gw"))
        assert (await again.send(rows(20))).settled == 20  # ids that are there already
        await again.close()
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT count(*) FROM lockgate_messages") == 500
        await connection.close()
    finally:
        await asyncio.to_thread(server.remove)


async def test_postgres_names_the_row_it_will_not_have_and_keeps_bytes_that_are_no_json(
    tmp_path: Path, log: Log
) -> None:
    server = await asyncio.to_thread(servers.Postgres, tmp_path)
    await asyncio.to_thread(server.start)
    sink = PostgresSinkConfig(name="cloud", url=server.url, table="public.readings", **QUICK)  # type: ignore[arg-type]
    try:
        await log.append(batch(b'{"a": 1}', b'{"nul": "\\u0000"}', b"\xff\x00raw", b'{"a": 2}'))
        async with forwarding(tmp_path, sink) as forwarder:
            await settled(tmp_path, forwarder)
            [letter] = letters(tmp_path / "buffer", "cloud")
            assert letter.identity == "gw/2"
            assert "\\u0000 cannot be converted to text" in letter.reason or "SQLSTATE 22" in letter.reason
            connection = await asyncpg.connect(server.url)
            stored = await connection.fetch("SELECT id, payload, payload_raw FROM readings ORDER BY id")
            assert [tuple(row) for row in stored] == [
                ("gw/1", '{"a": 1}', None),
                ("gw/3", None, b"\xff\x00raw"),
                ("gw/4", '{"a": 2}', None),
            ]
            await connection.execute("DROP TABLE readings")
            await log.append(batch(b"5"))
            await until(lambda: "retrying" in str(forwarder.status()) or book_of(tmp_path).delivered == 4)
            await settled(tmp_path, forwarder)  # made anew
            assert await connection.fetchval("SELECT payload FROM readings") == "5"
            await connection.close()
    finally:
        await asyncio.to_thread(server.remove)


# --- NATS -----------------------------------------------------------------------------------------------------------


async def test_nats_stores_what_is_sent_twice_once(tmp_path: Path, log: Log) -> None:
    with servers.nats(tmp_path) as url:
        client = await nats.connect(url)
        stream = client.jetstream()
        sink = NatsSinkConfig(name="cloud", url=url, **QUICK)  # type: ignore[arg-type]
        await log.append(batch(*numbers(*range(150)), topic="site/a b/+temp"))
        async with forwarding(tmp_path, sink) as forwarder:
            await until(lambda: "no stream takes the subjects lockgate." in str(forwarder.status()))
            await stream.add_stream(StreamConfig(name="GW", subjects=["lockgate.>"], max_msg_size=1000))
            await settled(tmp_path, forwarder)
            await log.append(batch(b"x" * 2000, b'"after"', topic="large"))
            await settled(tmp_path, forwarder)
        again = build(sink, Messages("gw"))
        assert (await again.send(rows(20, "site/a b/+temp"))).settled == 20
        await again.close()
        info = await stream.stream_info("GW")
        assert info.state.messages == 151
        subscription = await stream.subscribe("lockgate.>", ordered_consumer=True)
        got = [await subscription.next_msg(5) for _ in range(151)]
        assert [message.data for message in got[:150]] == numbers(*range(150))
        assert got[0].subject == "lockgate.site.a%20b.+temp"
        assert got[0].headers is not None
        assert got[0].headers["Nats-Msg-Id"] == "gw/1"
        [letter] = letters(tmp_path / "buffer", "cloud")
        assert letter.identity == "gw/151"
        assert "exceeds maximum" in letter.reason
        await client.close()


@pytest.mark.parametrize(
    ("topic", "subject"),
    [("a/b", "a.b"), ("a.b/c", "a%2Eb.c"), ("/a//", "%.a.%.%"), ("ä b", "%C3%A4%20b"), ("100%/>*", "100%25.%3E%2A")],
)
def test_every_topic_has_a_subject_of_its_own(topic: str, subject: str) -> None:
    assert subject_of(topic) == subject


# --- InfluxDB -------------------------------------------------------------------------------------------------------


def ask_influx(url: str, query: str) -> list[dict[str, object]]:
    words = urllib.parse.urlencode({"db": "gw", "q": query, "epoch": "ns"})
    with urllib.request.urlopen(f"{url}/query?{words}", timeout=10) as answer:
        series = json.load(answer)["results"][0].get("series", [])
    return [dict(zip(one["columns"], values, strict=True)) for one in series for values in one["values"]]


async def test_influx_holds_a_point_for_each_message_with_tags_and_fields(tmp_path: Path, log: Log) -> None:
    with servers.influx(tmp_path) as url:
        sink = InfluxSinkConfig(
            name="cloud", url=f"{url}/write?db=gw&precision=ns", tags=("room",), **QUICK  # type: ignore[arg-type]
        )  # fmt: skip
        readings = [
            b'{"room": "a, b=c", "t": %d, "ok": true, "in": {"x": 1.5}, "s": "say \\"hi\\"\\\\"}' % n
            for n in range(300)
        ]
        await log.append(batch(*readings, topic="site/one two", schema="air temp"))
        await log.append(batch(b'{"only": null}', b"21.5", topic="plain"))
        async with forwarding(tmp_path, sink) as forwarder:
            await settled(tmp_path, forwarder)
        again = build(sink, Messages("gw"))
        await again.close()
        found = await asyncio.to_thread(ask_influx, url, 'SELECT * FROM "air temp"')
        assert sorted(float(str(point["t"])) for point in found) == [float(n) for n in range(300)]
        assert {(p["room"], p["topic"], p["ok"], p["in.x"], p["s"]) for p in found} == {
            ("a, b=c", "site/one two", True, 1.5, 'say "hi"\\')
        }
        [plain] = await asyncio.to_thread(ask_influx, url, 'SELECT value FROM "s"')
        assert plain["value"] == 21.5
        [letter] = letters(tmp_path / "buffer", "cloud")
        assert letter.reason == "nothing of its payload can be a field"
        assert book_of(tmp_path).delivered == 301


async def test_influx_says_which_point_it_will_not_have(tmp_path: Path, log: Log) -> None:
    with servers.influx(tmp_path) as url:
        sink = InfluxSinkConfig(
            name="cloud", url=f"{url}/write?db=gw&precision=ns", compression="none", **QUICK  # type: ignore[arg-type]
        )  # fmt: skip
        await log.append(batch(b'{"v": 1}', b'{"v": "a text now"}', b'{"v": 2}', topic="t"))
        async with forwarding(tmp_path, sink) as forwarder:
            await settled(tmp_path, forwarder)
        [letter] = letters(tmp_path / "buffer", "cloud")
        assert letter.identity == "gw/2"
        assert "field type conflict" in letter.reason
        found = await asyncio.to_thread(ask_influx, url, 'SELECT v FROM "s"')
        assert sorted(float(str(point["v"])) for point in found) == [1.0, 2.0]


# --- an S3-compatible store -------------------------------------------------------------------------------------------


async def test_objects_hold_every_message_and_a_bucket_that_is_missing_is_waited_for(tmp_path: Path, log: Log) -> None:
    (tmp_path / "secret").write_text("secret\n")
    with servers.s3(tmp_path) as url:
        sink = ObjectSinkConfig(
            name="cloud", bucket="gateway", endpoint=url, access_key_id="me", secret_key_file=tmp_path / "secret",
            prefix="site/1", batch=100, gather_seconds=0.5, **QUICK,  # type: ignore[arg-type]
        )  # fmt: skip
        store = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="me", aws_secret_access_key="secret"
        )
        await log.append(batch(*numbers(*range(250))))
        async with forwarding(tmp_path, sink) as forwarder:
            await until(lambda: "NoSuchBucket" in str(forwarder.status()) or "404" in str(forwarder.status()))
            await asyncio.to_thread(lambda: store.create_bucket(Bucket="gateway"))
            await settled(tmp_path, forwarder)
        listed = await asyncio.to_thread(lambda: store.list_objects_v2(Bucket="gateway"))
        names = [one["Key"] for one in listed["Contents"]]
        assert [name.rpartition("/")[2] for name in names] == [
            "gw-000000000001-000000000100.jsonl.zst",
            "gw-000000000101-000000000200.jsonl.zst",
            "gw-000000000201-000000000250.jsonl.zst",
        ]
        assert all(name.startswith("site/1/telemetry/20") for name in names)
        found: list[int] = []
        for name in names:
            body = await asyncio.to_thread(lambda key: store.get_object(Bucket="gateway", Key=key)["Body"].read(), name)
            text = zstandard.ZstdDecompressor().decompressobj().decompress(body)
            found += [json.loads(line)["payload"] for line in text.splitlines()]
        assert found == [*range(250)]


async def test_objects_of_parquet_have_every_message(tmp_path: Path, log: Log) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "secret").write_text("secret\n")
    with servers.s3(tmp_path) as url:
        sink = ObjectSinkConfig(
            name="cloud", bucket="gateway", endpoint=url, access_key_id="me", secret_key_file=tmp_path / "secret",
            batch=100, gather_seconds=0.5, format="parquet", **QUICK,  # type: ignore[arg-type]
        )  # fmt: skip
        store = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="me", aws_secret_access_key="secret"
        )
        await asyncio.to_thread(lambda: store.create_bucket(Bucket="gateway"))
        await log.append(batch(*numbers(*range(150))))
        async with forwarding(tmp_path, sink) as forwarder:
            await settled(tmp_path, forwarder)
        listed = await asyncio.to_thread(lambda: store.list_objects_v2(Bucket="gateway"))
        names = [one["Key"] for one in listed["Contents"]]
        assert [name.rpartition("/")[2] for name in names] == [
            "gw-000000000001-000000000100.parquet", "gw-000000000101-000000000150.parquet"
        ]  # fmt: skip
        found: list[str] = []
        for name in names:
            body = await asyncio.to_thread(lambda key: store.get_object(Bucket="gateway", Key=key)["Body"].read(), name)
            found += parquet.read_table(io.BytesIO(body))["payload"].to_pylist()
        assert found == [str(n) for n in range(150)]


# --- Kafka ------------------------------------------------------------------------------------------------------------


async def test_kafka_gets_records_in_order_with_key_and_id(tmp_path: Path, log: Log) -> None:
    with servers.kafka(tmp_path) as server:
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=server)
        await admin.start()
        await admin.create_topics([NewTopic("readings", 3, 1)])
        await admin.close()
        sink = KafkaSinkConfig(name="cloud", servers=(server,), topic="readings", **QUICK)  # type: ignore[arg-type]
        for n in range(40):
            for topic in ("a", "b", "c"):
                await log.append(batch(b"%d" % n, topic=topic))
        async with forwarding(tmp_path, sink) as forwarder:
            await settled(tmp_path, forwarder)
        consumer = aiokafka.AIOKafkaConsumer("readings", bootstrap_servers=server, auto_offset_reset="earliest")
        await consumer.start()
        by_key: dict[bytes, list[int]] = {}
        ids: set[bytes] = set()
        async with asyncio.timeout(20):
            while len(ids) < 120:
                record = await consumer.getone()
                by_key.setdefault(record.key, []).append(int(record.value))
                ids.add(dict(record.headers)["lockgate-id"])
        await consumer.stop()
        assert by_key == {key: [*range(40)] for key in (b"a", b"b", b"c")}
        assert b"gw/120" in ids


# --- servers that hang in the middle ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["postgres", "nats", "kafka"])
async def test_a_server_that_hangs_in_the_middle_is_left_and_tried_again(tmp_path: Path, log: Log, kind: str) -> None:
    options = {**QUICK, "timeout_seconds": 0.5, "name": "cloud"}
    server: contextlib.AbstractContextManager[str]
    if kind == "postgres":
        database = await asyncio.to_thread(servers.Postgres, tmp_path)
        await asyncio.to_thread(database.start)
        port = database.port
        server = database.running()
    else:
        server = {"nats": servers.nats, "kafka": servers.kafka}[kind](tmp_path)
    with server as url:
        if kind != "postgres":
            port = int(url.rpartition(":")[2])
        async with Proxy(port) as proxy:
            sink: PostgresSinkConfig | NatsSinkConfig | KafkaSinkConfig
            if kind == "postgres":
                through = f"postgresql://lockgate@127.0.0.1:{proxy.port}/postgres?sslmode=disable"
                sink = PostgresSinkConfig(url=through, **options)  # type: ignore[arg-type]
            elif kind == "nats":
                client = await nats.connect(url)
                await client.jetstream().add_stream(StreamConfig(name="GW", subjects=["lockgate.>"]))
                await client.close()
                sink = NatsSinkConfig(url=f"nats://127.0.0.1:{proxy.port}", **options)  # type: ignore[arg-type]
            else:  # the broker names itself, so only the first question goes through the proxy
                sink = KafkaSinkConfig(
                    servers=(f"127.0.0.1:{proxy.port}",), topic="readings", **options  # type: ignore[arg-type]
                )  # fmt: skip
            if kind == "kafka":
                proxy.stall()
            else:
                await log.append(batch(b"1"))
            async with forwarding(tmp_path, sink) as forwarder:
                if kind != "kafka":
                    await settled(tmp_path, forwarder)
                proxy.stall()
                await log.append(batch(*numbers(*range(2, 50))))
                await until(lambda: "retrying" in str(forwarder.status()))
                tried = proxy.connections
                await until(lambda: proxy.connections > tried + 1)  # it does not wait for what hangs
                proxy.flow()
                await settled(tmp_path, forwarder)
