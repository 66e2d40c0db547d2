"""The service over a scripted broker: acknowledged only after the commit."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lockgate.buffer import Batch, Log, LogReader
from lockgate.buffer.ledger import read_ledger
from lockgate.client import ConnectionRefused, SubscriptionRequest
from lockgate.config.errors import ConfigError
from lockgate.config.model import (
    BrokerConfig,
    BufferConfig,
    Config,
    ForwarderConfig,
    GatewayConfig,
    ProcessorConfig,
    RuleConfig,
    SchemaConfig,
    TableConfig,
)
from lockgate.mqtt.packets import V5
from lockgate.mqtt.reason_codes import NOT_AUTHORIZED
from lockgate.processor.references import Reference
from lockgate.processor.rules import Rules
from lockgate.processor.service import Processor
from lockgate.sqlite import FolderInUse

SCHEMA = SchemaConfig(name="s", topics=("a/#", "b"), fields=(("value", "real"),))
RULE = RuleConfig(name="all", schema="s", sql="SELECT :value AS value", message_class="telemetry", topic="out")


class Publish(NamedTuple):
    payload: bytes
    packet_id: int
    topic: str = "a/x"
    qos: int = 1
    duplicate: bool = False


class ScriptedBroker:
    """Stands where the MQTT client does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.subscribed: list[tuple[str, int]] = []
        self.retain_handling: set[int] = set()
        self.acknowledged: list[int] = []
        self.committed_when_acknowledged: list[int] = []
        self.changed = asyncio.Event()
        self.ended = False
        self.on_connected: Callable[[bool], None] = lambda _: None
        self._messages: asyncio.Queue[Publish] = asyncio.Queue()

    def make(self, _: ProcessorConfig, on_connected: Callable[[bool], None]) -> ScriptedBroker:
        self.on_connected = on_connected
        return self

    def send(self, *messages: Publish) -> None:
        for message in messages:
            self._messages.put_nowait(message)

    async def acknowledgements(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.acknowledged) < count:
                self.changed.clear()
                await self.changed.wait()

    async def connect(self) -> None:
        self.on_connected(False)

    async def subscribe(self, requests: Sequence[SubscriptionRequest]) -> None:
        self.subscribed += [(one.topic_filter, one.qos) for one in requests]
        self.retain_handling |= {one.retain_handling for one in requests}

    async def unsubscribe(self, topic_filters: Sequence[str]) -> None:
        self.subscribed = [one for one in self.subscribed if one[0] not in topic_filters]

    async def messages(self) -> AsyncIterator[Publish]:
        while True:
            yield await self._messages.get()

    def acknowledge(self, message: Any) -> None:
        self.acknowledged.append(message.packet_id)
        self.committed_when_acknowledged.append(read_ledger(self.folder / "buffer").intake.received)
        self.changed.set()

    async def disconnect(self) -> None:
        self.ended = True


def processor(broker: ScriptedBroker, **changes: Any) -> Processor:
    config = {"schemas": (SCHEMA,), "rules": (RULE,)} | changes
    limits = {key: config.pop(key) for key in ("limit_bytes", "segment_bytes") if key in config}
    return Processor(
        GatewayConfig(id="g", data_dir=broker.folder),
        ProcessorConfig(**config),
        BufferConfig(**limits),
        ForwarderConfig(),
        make_source=broker.make,
    )


@asynccontextmanager
async def running(service: Processor) -> AsyncIterator[asyncio.Task[None]]:
    ready = asyncio.Event()
    task = asyncio.create_task(service.run(ready.set))
    async with asyncio.timeout(10):
        await ready.wait()
    yield task
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(3):
            await task


async def test_a_message_is_acknowledged_after_its_commit(tmp_path: Path) -> None:
    broker = ScriptedBroker(tmp_path)
    service = processor(broker)
    async with running(service):
        assert broker.subscribed == [("a/#", 1), ("b", 1)]
        assert broker.retain_handling == {1}  # a start does not bring retained messages again: they would count twice
        broker.send(Publish(b'{"value": 1}', 1), Publish(b"{", 2))
        broker.send(Publish(b'{"value": 0}', 0, qos=0), Publish(b'{"value": 1}', 1, duplicate=True))
        await broker.acknowledgements(3)
        assert broker.acknowledged == [1, 2, 1]
        assert broker.committed_when_acknowledged == [4, 4, 4]
        status = service.status()
        assert status["intake"] == {
            "received": 4, "logged": 2, "duplicate": 1, "refused": {}, "quarantined": {"not JSON": 1}, "filtered": {},
        }  # fmt: skip
        assert status["rules"]["all"]["rows"] == 2  # type: ignore[index]
    assert broker.ended
    assert [row.payload for row in LogReader(tmp_path / "buffer").read("telemetry", 0, 9)] == [
        b'{"value":1.0}',
        b'{"value":0.0}',
    ]


async def test_a_topic_that_two_schemas_name_is_subscribed_once(tmp_path: Path) -> None:
    broker = ScriptedBroker(tmp_path)
    broker.subscribed = [("a/b", 1)]  # the session has it from an earlier configuration
    special = dataclasses.replace(SCHEMA, name="special", topics=("a/b",))
    async with running(processor(broker, schemas=(special, SCHEMA))):
        assert broker.subscribed == [("a/#", 1), ("b", 1)]


async def test_slow_rules_do_not_keep_the_loop_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.processor.runner._TURN_SECONDS", 0.0)
    monkeypatch.setattr("lockgate.processor.runner._TOGETHER", 1)
    broker = ScriptedBroker(tmp_path)
    async with running(processor(broker)):
        broker.send(*(Publish(b'{"value": %d}' % number, number) for number in range(1, 6)))
        await broker.acknowledgements(5)
    assert broker.acknowledged == [1, 2, 3, 4, 5]
    assert broker.committed_when_acknowledged == [1, 2, 3, 4, 5]


async def test_a_window_ends_without_another_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = asyncio.Event()
    append = Log.append

    async def noted_append(self: Log, batch: Batch, **how: bool) -> int:
        first_seq = await append(self, batch, **how)
        if any(entry.message_class == "telemetry" for entry in batch.entries):
            committed.set()
        return first_seq

    monkeypatch.setattr(Log, "append", noted_append)
    window = RuleConfig(
        name="n", schema="s", sql="SELECT count(*) AS n FROM s", message_class="telemetry", topic="n", every_seconds=0.2
    )
    broker = ScriptedBroker(tmp_path)
    service = processor(broker, rules=(window,))
    async with running(service):
        broker.send(Publish(b'{"value": 1}', 1))
        await broker.acknowledgements(1)
        async with asyncio.timeout(10):
            await committed.wait()
    assert LogReader(tmp_path / "buffer").read("telemetry", 0, 9)[0].payload == b'{"n":1}'


async def test_at_the_limit_nothing_is_acknowledged_and_nothing_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = asyncio.Event()
    wait_because = Log._wait_because

    def noted_wait(self: Log, reason: str | None) -> None:
        wait_because(self, reason)
        if reason is not None:
            waits.set()

    monkeypatch.setattr(Log, "_wait_because", noted_wait)
    broker = ScriptedBroker(tmp_path)
    service = processor(broker, limit_bytes=1)
    async with running(service):
        broker.send(Publish(b'{"value": 1}', 1))
        async with asyncio.timeout(10):
            await waits.wait()
        assert "full" in service.status()["buffer"]["waiting"]  # type: ignore[index]
        assert broker.acknowledged == []
    assert read_ledger(tmp_path / "buffer").intake.received == 0
    broker = ScriptedBroker(tmp_path)
    async with running(processor(broker)):
        broker.send(Publish(b'{"value": 1}', 1, duplicate=True))
        await broker.acknowledgements(1)
    assert read_ledger(tmp_path / "buffer").intake.logged == 1


async def test_a_rule_with_an_sql_error_keeps_it_from_starting(tmp_path: Path) -> None:
    wrong = RuleConfig(name="all", schema="s", sql="SELECT :valeu", message_class="telemetry", topic="out")
    with pytest.raises(ConfigError, match="rules.all.sql"):
        await processor(ScriptedBroker(tmp_path), rules=(wrong,)).run(lambda: None)


def whole(broker: ScriptedBroker, **changes: Any) -> Config:
    keys = {"schemas": (SCHEMA,), "rules": (RULE,)} | changes
    return Config(
        path=None,
        gateway=GatewayConfig(id="g", data_dir=broker.folder),
        broker=BrokerConfig(),
        processor=ProcessorConfig(**keys),
        buffer=BufferConfig(),
        forwarder=ForwarderConfig(),
    )


async def test_a_reload_takes_new_rules_and_topics_and_keeps_windows(tmp_path: Path) -> None:
    pairs = RuleConfig(
        name="pairs", schema="s", sql="SELECT sum(value) AS v FROM s", message_class="alarm", topic="p", count=2
    )
    broker = ScriptedBroker(tmp_path)
    service = processor(broker, rules=(RULE, pairs))
    async with running(service):
        broker.send(Publish(b'{"value": 1}', 1))
        await broker.acknowledgements(1)
        twice = dataclasses.replace(RULE, sql="SELECT 2 * :value AS value")
        schema = dataclasses.replace(SCHEMA, topics=("a/#", "c"))
        await service.reload(whole(broker, rules=(twice, pairs), schemas=(schema,)))
        assert broker.subscribed == [("a/#", 1), ("c", 1)]
        broker.send(Publish(b'{"value": 5}', 2, topic="c"))
        await broker.acknowledgements(2)
        with pytest.raises(ConfigError, match="none.csv"):
            await service.reload(whole(broker, tables=(TableConfig(name="t", path=tmp_path / "none.csv"),)))
        broker.send(Publish(b'{"value": 6}', 3, topic="c"))
        await broker.acknowledgements(3)
    reader = LogReader(tmp_path / "buffer")
    assert [row.payload for row in reader.read("telemetry", 0, 9)] == [
        b'{"value":1.0}', b'{"value":10.0}', b'{"value":12.0}'
    ]  # fmt: skip
    assert [row.payload for row in reader.read("alarm", 0, 9)] == [b'{"v":6.0}']


async def test_a_reference_table_is_read_again_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.processor.service._LOOK_SECONDS", 0.01)
    looked = asyncio.Event()
    fill = Rules.fill

    def noted_fill(self: Rules, reference: Reference) -> None:
        fill(self, reference)
        if len(reference.content.rows) == 2:
            looked.set()

    monkeypatch.setattr(Rules, "fill", noted_fill)
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n")
    counting = dataclasses.replace(RULE, sql="SELECT count(*) AS n FROM t")
    broker = ScriptedBroker(tmp_path)
    tables = (TableConfig(name="t", path=path),)
    async with running(processor(broker, rules=(counting,), tables=tables)):
        path.write_text("a\n1\n2\n")
        async with asyncio.timeout(10):
            await looked.wait()
        broker.send(Publish(b'{"value": 5}', 1))
        await broker.acknowledgements(1)
    assert LogReader(tmp_path / "buffer").read("telemetry", 0, 9)[0].payload == b'{"n":2}'


async def test_the_quarantine_is_replayed_when_somebody_asks(tmp_path: Path) -> None:
    broker = ScriptedBroker(tmp_path)
    service = processor(broker)
    async with running(service):
        broker.send(Publish(b'{"value": "1"}', 1), Publish(b"{", 2))
        await broker.acknowledgements(2)
        await service.reload(whole(broker, schemas=(dataclasses.replace(SCHEMA, misfits="coerce"),)))
        assert service.answers()["replay"]({"reason": "field"}) == {"messages": 1}
        broker.send(Publish(b'{"value": 2}', 3), Publish(b'{"value": 3}', 4))
        await broker.acknowledgements(4)
        broker.send(Publish(b'{"value": 4}', 5))
        await broker.acknowledgements(5)
    reader = LogReader(tmp_path / "buffer")
    assert sorted(row.payload for row in reader.read("telemetry", 0, 9)) == [
        b'{"value":%d.0}' % n for n in (1, 2, 3, 4)
    ]
    assert [kept.message.reason for kept in reader.quarantine()] == ["not JSON"]


async def test_two_processors_on_one_folder_are_refused(tmp_path: Path) -> None:
    async with running(processor(ScriptedBroker(tmp_path))):
        with pytest.raises(FolderInUse):
            await processor(ScriptedBroker(tmp_path)).run(lambda: None)


async def test_what_ends_the_connection_ends_the_service(tmp_path: Path) -> None:
    class Broken(ScriptedBroker):
        async def messages(self) -> AsyncIterator[Publish]:
            raise RuntimeError("the client is broken")
            yield  # an iterator all the same

    broker = Broken(tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        async with asyncio.timeout(10):
            await processor(broker).run(lambda: None)
    assert broker.ended


async def test_a_broker_that_does_not_let_it_in_is_told_with_the_key_to_mend(tmp_path: Path) -> None:
    class Closed(ScriptedBroker):
        async def connect(self) -> None:
            raise ConnectionRefused(NOT_AUTHORIZED, V5)

    with pytest.raises(ConfigError, match=r"processor\.url.*not authorized.*password"):
        async with asyncio.timeout(10):
            await processor(Closed(tmp_path)).run(lambda: None)
