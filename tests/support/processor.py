"""A processor over a folder, driven by a clock that stands still until it is moved."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from lockgate.buffer import Log, LogReader, Row
from lockgate.buffer.ledger import IntakeBook, read_ledger
from lockgate.config.model import BufferConfig, ConnectionConfig, ProcessorConfig, RuleConfig, SchemaConfig
from lockgate.processor.runner import Rulebook, Runner
from lockgate.telemetry.clock import Moment

SECOND = 1_000_000_000
SCHEMA = SchemaConfig(name="temperature", topics=("sensors/+/temp",), fields=(("value", "real"),))
HOT = RuleConfig(
    name="hot",
    schema="temperature",
    sql="SELECT :topic AS topic, :value AS value WHERE :value > 90",
    message_class="alarm",
)
MEAN = RuleConfig(
    name="mean",
    schema="temperature",
    sql="SELECT avg(value) AS mean, count(*) AS n, group_concat(value) AS all_values FROM temperature",
    message_class="telemetry",
    topic="mean",
    every_seconds=10,
)
BROKEN = RuleConfig(
    name="broken",
    schema="temperature",
    sql="SELECT abs(-9223372036854775807 - 1) AS a WHERE :value = 13",
    message_class="alarm",
    topic="x",
)


class Publish(NamedTuple):
    payload: bytes
    topic: str = "sensors/a/temp"
    packet_id: int | None = None
    duplicate: bool = False
    qos: int = 1


def reading(value: float, packet_id: int | None = None, duplicate: bool = False) -> Publish:
    return Publish(orjson.dumps({"value": value}), packet_id=packet_id, duplicate=duplicate)


class ScriptedClock:
    """A clock that stands still until it is moved."""

    def __init__(
        self, boot_id: str = "boot-1", boottime_s: int = 1000, wall_jump_s: int = 0, clock_ok: bool = True
    ) -> None:
        self.boot_id = boot_id
        self.boottime_ns = boottime_s * SECOND
        self.wall_jump_ns = wall_jump_s * SECOND
        self.clock_ok = clock_ok

    def now(self) -> Moment:
        wall_ns = 1_700_000_000 * SECOND + self.boottime_ns + self.wall_jump_ns
        return Moment(self.boot_id, self.boottime_ns, wall_ns, self.clock_ok)


class Gateway:
    """A processor that can be stopped, killed and started again over one folder."""

    def __init__(
        self,
        folder: Path,
        rules: Sequence[RuleConfig],
        schemas: Sequence[SchemaConfig] = (SCHEMA,),
        buffer: BufferConfig | None = None,
        **keys: Any,
    ) -> None:
        self.folder = folder
        self.clock = ScriptedClock()
        self.config = ProcessorConfig(
            connection=ConnectionConfig(client_id="p"),
            schemas=tuple(schemas),
            rules=tuple(rules),
            **keys,
        )
        self.buffer = buffer or BufferConfig()
        self.reader = LogReader(folder)
        self.log: Log
        self.book: Rulebook

    def set_rules(self, rules: Sequence[RuleConfig]) -> None:
        """Of the next start."""
        self.config = dataclasses.replace(self.config, rules=tuple(rules))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Runner]:
        buffer = self.buffer
        log = self.log = await Log.open(self.folder, buffer, {}, clock=self.clock)  # type: ignore[arg-type]
        self.book = book = Rulebook(self.config, buffer)
        runner = Runner(self.config, book, log, self.reader)
        await runner.start()
        try:
            yield runner
        finally:
            await log.close()
            self.book.close()

    async def go_on_with(self, book: Rulebook) -> Runner:
        """Reload."""
        self.book.close()
        self.book = book
        runner = Runner(book.config, book, self.log, self.reader)
        await runner.start()
        return runner

    def rows(self, message_class: str) -> list[Row]:
        return self.reader.read(message_class, 0, 10_000)

    def means(self) -> list[dict[str, object]]:
        return [orjson.loads(row.payload) for row in self.rows("telemetry")]

    def intake(self) -> IntakeBook:
        book = read_ledger(self.folder).intake
        assert book.closes
        return book
