"""Rules: a SELECT for each message, or for each tumbling window."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from lockgate.buffer import Entry
from lockgate.buffer.log import WINDOW_INPUT
from lockgate.config.errors import ConfigError
from lockgate.config.model import RuleConfig
from lockgate.processor.sandbox import RuleError, Sandbox
from lockgate.processor.schemas import Schema, Schemas, Value

log = logging.getLogger(__name__)


class WindowKey(NamedTuple):
    """A tumbling window by arrival: CLOCK_BOOTTIME tells the windows of one boot apart, the boot id the boots."""

    boot_id: str
    number: int


@dataclass(slots=True)
class RuleCounts:
    """What a rule has done since the service started."""

    evaluated: int = 0
    rows: int = 0
    errors: int = 0
    seconds: float = 0.0
    last_error: str | None = None


class Rule:
    """What both kinds of rule share: the checked query, and rows that become messages."""

    def __init__(self, config: RuleConfig, schema: Schema, parameters: Sequence[str], table: bool) -> None:
        self.config = config
        self.name = config.name
        self.schema = schema
        self.counts = RuleCounts()
        self._sandbox = Sandbox(config.sql, config.budget_seconds, (schema.name, schema.columns) if table else None)
        self._columns = self._check(parameters, table)
        self._topic_place = _place(self._columns, "topic")
        self._time_place = _place(self._columns, "device_ts")
        if self._topic_place is None and config.topic is None:
            raise self._mistake("no topic", 'a result column named "topic", or the key topic', "topic")

    def close(self) -> None:
        self._sandbox.close()

    def status(self) -> dict[str, object]:
        c = self.counts
        mean_us = c.seconds / c.evaluated * 1e6 if c.evaluated else None
        return {
            "evaluated": c.evaluated,
            "rows": c.rows,
            "errors": c.errors,
            "cost_us": None if mean_us is None else round(mean_us, 1),
            "last_error": c.last_error,
        }

    def _evaluate(self, parameters: dict[str, Value]) -> list[Entry]:
        """Raises RuleError, counted."""
        started = time.perf_counter()
        self.counts.evaluated += 1
        try:
            entries = [self._entry(row) for row in self._sandbox.run(parameters)]
        except RuleError as error:
            self.counts.errors += 1
            self.counts.last_error = str(error)
            raise
        finally:
            self.counts.seconds += time.perf_counter() - started
        self.counts.rows += len(entries)
        return entries

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        topic = self.config.topic if self._topic_place is None else row[self._topic_place]
        if not isinstance(topic, str) or not topic or any(c in topic for c in "+#\0"):
            raise RuleError("no valid topic", f"{topic!r} cannot be a topic")
        device_ts = None if self._time_place is None else row[self._time_place]
        if device_ts is not None and not isinstance(device_ts, int):
            raise RuleError("device_ts not integer", f"{device_ts!r}")
        document = {
            column: value
            for place, (column, value) in enumerate(zip(self._columns, row, strict=True))
            if place not in (self._topic_place, self._time_place)
        }
        try:
            payload = orjson.dumps(document)
        except (TypeError, orjson.JSONEncodeError) as error:  # a BLOB
            raise RuleError("result not JSON", str(error)) from None
        return Entry(topic, self.config.message_class, self.schema.name, payload, device_ts)

    def _check(self, parameters: Sequence[str], table: bool) -> list[str]:
        try:
            return self._sandbox.result_columns(dict.fromkeys(parameters))
        except (sqlite3.Error, sqlite3.Warning) as error:
            message = str(error)
            if "not authorized" in message or "prohibited" in message:
                message = f"{message}: a rule is one SELECT and cannot reach files, settings or the catalogue"
            there_is = "parameters " + ", ".join(f":{name}" for name in parameters)
            if table:
                columns = ", ".join(name for name, _ in self.schema.columns)
                there_is = f"table {self.schema.name} with columns {columns}; {there_is}"
            raise self._mistake(message, there_is, "sql") from None

    def _mistake(self, problem: str, accepted: str, key: str) -> ConfigError:
        return ConfigError(problem, line=self.config.line, key=f"rules.{self.name}.{key}", accepted=accepted)


class MessageRule(Rule):
    """Runs once for each message."""

    def __init__(self, config: RuleConfig, schema: Schema) -> None:
        super().__init__(config, schema, [name for name, _ in schema.columns], table=False)

    def evaluate(self, parameters: dict[str, Value]) -> list[Entry]:
        """What the message gives rise to; raises RuleError."""
        return self._evaluate(parameters)


class WindowRule(Rule):
    """Gathers the messages of a tumbling window and runs when it is over."""

    def __init__(self, config: RuleConfig, schema: Schema) -> None:
        assert config.every_seconds is not None
        if config.every_seconds <= 0:
            raise ConfigError("a window needs a length", key=f"rules.{config.name}.every", line=config.line)
        super().__init__(config, schema, ["window_end"], table=True)
        self.every_ns = max(1, round(config.every_seconds * 1e9))
        self.open: WindowKey | None = None  # the window that holds messages
        self.last_seq = 0  # of its last message
        self.messages = 0
        self._last_received = 0

    def key(self, boot_id: str, boottime_ns: int) -> WindowKey:
        return WindowKey(boot_id, boottime_ns // self.every_ns)

    def end_ns(self) -> int | None:
        """When the open window is over, CLOCK_BOOTTIME; None without one."""
        return None if self.open is None else (self.open.number + 1) * self.every_ns

    def add(self, key: WindowKey, seq: int, values: Sequence[Value]) -> None:
        self.open = key
        self.last_seq = seq
        self.messages += 1
        received = values[-1]
        assert isinstance(received, int)
        self._last_received = received
        try:
            self._sandbox.insert(values)
        except sqlite3.Error as error:  # a value beyond the limits, a full disk for temporary files
            self.counts.errors += 1
            self.counts.last_error = str(error)
            log.warning("rule %s cannot take message %d into its window: %s", self.name, seq, error)

    def evaluate(self, window_end_ms: int | None = None) -> list[Entry]:
        """What the open window gives rise to; raises RuleError. An unknown end (another boot) is its last message."""
        return self._evaluate({"window_end": self._last_received if window_end_ms is None else window_end_ms})

    def clear(self) -> None:
        self.open = None
        self.messages = 0
        self._sandbox.clear()


class Rules:
    """All rules, by schema. Building them checks them: raises ConfigError for the first that is wrong."""

    def __init__(self, configs: Sequence[RuleConfig], schemas: Schemas, classes: Sequence[str]) -> None:
        self.by_message: dict[str, list[MessageRule]] = {name: [] for name in schemas.by_name}
        self.by_window: dict[str, list[WindowRule]] = {name: [] for name in schemas.by_name}
        for config in configs:
            schema = schemas.by_name.get(config.schema)
            key = f"rules.{config.name}"
            if schema is None:
                known = ", ".join(schemas.by_name) or "none is configured"
                raise ConfigError(f"no schema {config.schema!r}", key=f"{key}.schema", line=config.line, accepted=known)
            if config.message_class not in classes or config.message_class == WINDOW_INPUT:
                known = ", ".join(name for name in classes if name != WINDOW_INPUT)
                raise ConfigError(
                    f"no class {config.message_class!r}", key=f"{key}.class", line=config.line, accepted=known
                )
            if config.every_seconds is None:
                self.by_message[schema.name].append(MessageRule(config, schema))
            else:
                self.by_window[schema.name].append(WindowRule(config, schema))
        self.windows = [rule for rules in self.by_window.values() for rule in rules]

    def all(self) -> list[Rule]:
        return [*(rule for rules in self.by_message.values() for rule in rules), *self.windows]

    def close(self) -> None:
        for rule in self.all():
            rule.close()


def parameters_of(schema: Schema, values: Sequence[Value]) -> dict[str, Value]:
    """A message's columns by name, for binding."""
    return {name: value for (name, _), value in zip(schema.columns, values, strict=True)}


def _place(columns: Sequence[str], name: str) -> int | None:
    return next((place for place, column in enumerate(columns) if column.lower() == name), None)
