"""What a sink is, and the one for each type of configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lockgate.buffer import Row
from lockgate.config.model import (
    AnySink,
    FileSinkConfig,
    HttpSinkConfig,
    InfluxSinkConfig,
    KafkaSinkConfig,
    NatsSinkConfig,
    ObjectSinkConfig,
    PostgresSinkConfig,
)
from lockgate.forwarder.messages import Messages


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of the rows given to `send`: the first `settled` are done with, delivered unless `poison` has them.

    `fault` is why the rest is to be tried again; None when there is no rest.
    """

    settled: int
    poison: Mapping[int, str] = field(default_factory=dict)  # seq: the receiver's reason
    fault: str | None = None
    answered: bool = False  # the fault is an error the receiver has with what it got, perhaps with one message alone


class Sink(Protocol):
    """One place messages go to. Calls do not overlap; none may take much longer than the sink's timeout."""

    async def send(self, rows: Sequence[Row]) -> Sent:
        """Send rows of one class, in order; only the receiver's own word makes one delivered."""

    async def close(self) -> None: ...


async def halve(send: Callable[[Sequence[Row]], Awaitable[Sent]], rows: Sequence[Row], reason: str) -> Sent:
    """What becomes of rows that the receiver refused together: the halves are sent until the one at fault is found."""
    if len(rows) == 1:
        return Sent(1, {rows[0].seq: reason})
    middle = len(rows) // 2
    first = await send(rows[:middle])
    if first.fault is not None:
        return first
    second = await send(rows[middle:])
    return Sent(middle + second.settled, {**first.poison, **second.poison}, second.fault, second.answered)


def build(config: AnySink, messages: Messages) -> Sink:
    """Make the sink; its libraries are imported only here, where one is configured."""
    if isinstance(config, HttpSinkConfig):
        from lockgate.forwarder.sinks.http import HttpSink, OwnBodySink

        return OwnBodySink(config, config.body, messages) if config.body is not None else HttpSink(config, messages)
    if isinstance(config, PostgresSinkConfig):
        from lockgate.forwarder.sinks.postgres import PostgresSink

        return PostgresSink(config, messages)
    if isinstance(config, NatsSinkConfig):
        from lockgate.forwarder.sinks.nats import NatsSink

        return NatsSink(config, messages)
    if isinstance(config, InfluxSinkConfig):
        from lockgate.forwarder.sinks.influx import InfluxSink

        return InfluxSink(config, messages)
    if isinstance(config, ObjectSinkConfig):
        from lockgate.forwarder.sinks.object_store import ObjectSink

        return ObjectSink(config, messages)
    if isinstance(config, KafkaSinkConfig):
        from lockgate.forwarder.sinks.kafka import KafkaSink

        return KafkaSink(config, messages)
    if isinstance(config, FileSinkConfig):
        from lockgate.forwarder.sinks.file import FileSink, ParquetFileSink

        return (ParquetFileSink if config.format == "parquet" else FileSink)(config, messages)
    from lockgate.forwarder.sinks.mqtt import MqttSink

    return MqttSink(config, messages)
