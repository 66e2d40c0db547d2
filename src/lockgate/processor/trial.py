"""A rule tried apart from the gateway: its own tests, messages of the log, what it costs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, NamedTuple

import orjson

from lockgate.buffer import Batch, Entry
from lockgate.config.model import ExpectedMessage, ProcessorConfig, RuleConfig, RuleTest
from lockgate.processor.functions import Function
from lockgate.processor.references import Reference
from lockgate.processor.rules import Decoded, Rules
from lockgate.processor.schemas import NotAccepted, Schemas
from lockgate.processor.tables import Logged
from lockgate.telemetry.clock import Moment

STARTS_NS: Final = 1_767_225_600 * 1_000_000_000  # 2026-01-01 00:00 UTC, when tests begin
_BOOT: Final = "trial"


class Failure(NamedTuple):
    """What a test of a rule found wrong."""

    rule: str
    number: int  # of the test, from 1
    problem: str

    def __str__(self) -> str:
        return f"rule {self.rule}, test {self.number}: {self.problem}"


class Trial(AbstractContextManager["Trial"]):
    """One rule with nothing beside it. Raises ConfigError for a rule that is wrong."""

    def __init__(
        self,
        rule: RuleConfig,
        config: ProcessorConfig,
        references: Sequence[Reference],
        functions: Sequence[Function] = (),
    ) -> None:
        self._schemas = Schemas(config.schemas)
        self._rules = Rules([rule], self._schemas, [rule.message_class], references, config.state_topics, functions)
        (self.rule,) = self._rules.all()
        self.messages = 0
        self._seq = 0
        self.seconds = 0.0  # what they took
        self.problems: list[str] = []
        self._out = Batch(moment=_moment(0))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._rules.close()

    def give(self, topic: str, payload: bytes, moment: Moment, *, logged: bool = False) -> list[Entry]:
        """Let a message arrive; gives what the rule makes of it, and of what was over before.

        `logged`: the payload is what the log holds of a message.
        """
        self.messages += 1
        before = time.perf_counter()
        self._settle(moment)
        schema = self._schemas.of(topic)
        if schema is None or schema.name != self.rule.schema.name:
            self.problems.append(f"{topic!r} is no topic of schema {self.rule.schema.name}")
            return self._made()
        try:
            memory = self._rules.memory
            rows = [schema.decode_logged(payload)] if logged else schema.decode_all(topic, payload, memory)
        except NotAccepted as error:
            self.problems.append(f"the schema does not take the message: {error}")
            return self._made()
        for values in rows:
            self._part(Decoded(topic, payload, schema, [*values, topic, moment.wall_ns // 1_000_000]), moment)
        self.seconds += time.perf_counter() - before
        return self._made()

    def _part(self, message: Decoded, moment: Moment) -> None:
        self._seq += 1
        self._rules.evaluate([message])
        self._out.entries += message.entries
        self.problems += [f"{reason}: {detail}" for reason, detail in message.failures]
        for table in self._rules.tables[message.schema.name]:
            row = table.stamp(self._seq, moment, message.topic, message.payload, message.values)
            if isinstance(row, Logged):
                table.take([row], self._out)
            else:
                self.problems.append(row)

    def finish(self) -> list[Entry]:
        """Let time go on until every window is over."""
        for table in self._rules.all_tables():
            while (deadline := table.deadline()) is not None:
                table.settle(_moment(deadline, table.moment), self._out)
        return self._made()

    def _settle(self, moment: Moment) -> None:
        for table in self._rules.all_tables():
            while (deadline := table.deadline()) is not None and deadline <= moment.boottime_ns:
                if table.moment is not None and table.moment.boot_id != moment.boot_id:
                    break
                table.settle(_moment(deadline, table.moment), self._out)

    def _made(self) -> list[Entry]:
        made, self._out.entries = self._out.entries, []
        self.problems += [f"{one.reason}: {one.detail}" for one in self._out.quarantined]
        self._out.quarantined = []
        return made


def run_tests(
    rule: RuleConfig, config: ProcessorConfig, references: Sequence[Reference], functions: Sequence[Function] = ()
) -> list[Failure]:
    """What the tests of a rule find. Raises ConfigError for a rule that is wrong."""
    found = []
    for number, test in enumerate(rule.tests, start=1):
        with Trial(rule, config, references, functions) as trial:
            problem = _run(trial, test)
        if problem is not None:
            found.append(Failure(rule.name, number, problem))
    if not rule.tests:
        Trial(rule, config, references, functions).__exit__(None, None, None)
    return found


def _run(trial: Trial, test: RuleTest) -> str | None:
    made: list[Entry] = []
    for given in sorted(test.given, key=lambda given: given.at_seconds):
        made += trial.give(given.topic, given.payload, _moment(round(given.at_seconds * 1e9)))
    made += trial.finish()
    if trial.problems:
        return trial.problems[0]
    for place, (entry, expected) in enumerate(zip(made, test.expect, strict=False), start=1):
        if not _fits(entry, expected):
            return f"message {place} is {show(entry)}, not {_show_expected(expected)}"
    if len(made) > len(test.expect):
        return f"{show(made[len(test.expect)])} was not expected"
    if len(made) < len(test.expect):
        return f"{_show_expected(test.expect[len(made)])} did not come"
    return None


def show(entry: Entry) -> str:
    """A message as JSON, for people."""
    said: dict[str, object] = {"topic": entry.topic, "payload": orjson.loads(entry.payload)}
    if entry.device_ts is not None:
        said["device_ts"] = entry.device_ts
    return orjson.dumps(said).decode()


def _fits(entry: Entry, expected: ExpectedMessage) -> bool:
    return (
        entry.topic == expected.topic
        and orjson.loads(entry.payload) == dict(expected.payload)
        and (expected.device_ts is None or entry.device_ts == expected.device_ts)
    )


def _show_expected(expected: ExpectedMessage) -> str:
    said = {key: value for key, value in dataclasses.asdict(expected).items() if value is not None}
    return orjson.dumps(said).decode()


def _moment(boottime_ns: int, like: Moment | None = None) -> Moment:
    """A moment of the tests' clock, or of the clock of another moment."""
    if like is None:
        return Moment(_BOOT, boottime_ns, STARTS_NS + boottime_ns, True)
    return like._replace(boottime_ns=boottime_ns, wall_ns=like.wall_ns + boottime_ns - like.boottime_ns)
