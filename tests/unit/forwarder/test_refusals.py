"""What sinks make of an error their receiver has, without the receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from lockgate.buffer import Row
from lockgate.client import PublishRefused, reason_codes
from lockgate.config.model import (
    ConnectionConfig,
    InfluxSinkConfig,
    KafkaSinkConfig,
    MqttSinkConfig,
    PostgresSinkConfig,
)
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks.influx import InfluxSink
from lockgate.forwarder.sinks.kafka import KafkaSink
from lockgate.forwarder.sinks.mqtt import MqttSink
from lockgate.forwarder.sinks.postgres import PostgresSink

asyncpg = pytest.importorskip("asyncpg")
errors = pytest.importorskip("aiokafka.errors")


def rows(*numbers: int) -> list[Row]:
    return [Row(n, n, "boot", n, n, True, None, "t", "telemetry", "s", b'{"v": %d}' % n) for n in numbers]


class Producer:
    """A producer of Kafka whose record of one place fails, or never ends."""

    def __init__(self, failing: dict[bytes, Exception | None]) -> None:
        self.failing = failing
        self.stopped = False

    async def send(self, topic: str, value: bytes, **_: object) -> asyncio.Future[None]:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if value not in self.failing:
            answer.set_result(None)
        elif (error := self.failing[value]) is not None:
            answer.set_exception(error)
        return answer

    async def flush(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True


def kafka(failing: dict[bytes, Exception | None]) -> tuple[KafkaSink, Producer]:
    config = KafkaSinkConfig(name="k", classes=("telemetry",), servers=("x:9092",), topic="t", timeout_seconds=0.2)
    sink = KafkaSink(config, Messages("gw"))
    producer = sink._producer = Producer(failing)
    return sink, producer


async def test_a_broker_of_kafka_that_fails_over_a_record_is_a_fault_after_those_it_took() -> None:
    sink, producer = kafka({b'{"v": 2}': errors.NotEnoughReplicasError()})
    sent = await sink.send(rows(1, 2))
    assert (sent.settled, sent.answered, dict(sent.poison)) == (1, False, {})
    assert sent.fault is not None
    assert producer.stopped


async def test_a_record_kafka_calls_invalid_may_be_poison() -> None:
    sink, _ = kafka({b'{"v": 1}': errors.for_code(87)()})
    sent = await sink.send(rows(1, 2))
    assert (sent.settled, sent.answered) == (0, True)


async def test_a_broker_of_kafka_that_says_nothing_is_given_up_and_a_stop_is_a_stop() -> None:
    sink, producer = kafka({b'{"v": 1}': None})
    sent = await sink.send(rows(1))
    assert sent.fault == "no acknowledgement within 0.2 seconds"
    assert producer.stopped
    sink, _ = kafka({b'{"v": 1}': None})
    task = asyncio.create_task(sink.send(rows(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_influxdb_that_fails_over_a_point_is_known_to_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    config = InfluxSinkConfig(name="i", classes=("telemetry",), url="http://localhost/write")
    sink = InfluxSink(config, Messages("gw"))

    async def post(_: Sequence[Row]) -> tuple[int, str]:
        return 500, "HTTP 500"

    monkeypatch.setattr(sink, "_post", post)
    sent = await sink.send(rows(1, 2))
    assert (sent.settled, sent.fault, sent.answered) == (0, "HTTP 500", True)


@pytest.mark.parametrize(
    ("error", "answered"),
    [("RaiseError", True), ("InsufficientPrivilegeError", True), ("ProgramLimitExceededError", True),
     ("TooManyConnectionsError", False), ("AdminShutdownError", False)],
)  # fmt: skip
async def test_a_refusal_of_postgresql_may_be_for_one_row(
    monkeypatch: pytest.MonkeyPatch, error: str, answered: bool
) -> None:
    config = PostgresSinkConfig(name="p", classes=("telemetry",), url="postgresql://localhost/x")
    sink = PostgresSink(config, Messages("gw"))

    async def connected() -> None: ...

    async def write(connection: Any, rows: Sequence[Row]) -> None:
        raise getattr(asyncpg, error)("no")

    monkeypatch.setattr(sink, "_connected", connected)
    monkeypatch.setattr(sink, "_write", write)
    sent = await sink.send(rows(1, 2))
    assert (sent.settled, sent.answered, dict(sent.poison)) == (0, answered, {})


async def test_a_server_of_mqtt_that_fails_over_a_message_is_known_to_have_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = ConnectionConfig(url="mqtt://127.0.0.1:1")
    sink = MqttSink(MqttSinkConfig(name="m", classes=("telemetry",), connection=connection), Messages("gw"))

    async def connected() -> None: ...

    async def publish(client: Any, row: Row) -> None:
        if row.seq == 2:
            raise PublishRefused(reason_codes.UNSPECIFIED_ERROR)

    monkeypatch.setattr(sink, "_connected", connected)
    monkeypatch.setattr(sink, "_publish", publish)
    sent = await sink.send(rows(2, 3))
    assert (sent.settled, sent.answered, dict(sent.poison)) == (0, True, {})
    assert sent.fault is not None
