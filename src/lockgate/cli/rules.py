"""`lockgate rules test | explain | backtest | quarantine`: rules tried, and what they could not take."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from lockgate.buffer import LogReader, Row
from lockgate.buffer.segments import WINDOW_INPUT
from lockgate.cli.common import add_config_argument, load_config, table
from lockgate.config.errors import ConfigError, did_you_mean
from lockgate.config.model import Config, RuleConfig
from lockgate.processor.functions import Function, find_functions
from lockgate.processor.references import Reference, check_tables
from lockgate.processor.rules import MessageRule
from lockgate.processor.schemas import Schemas
from lockgate.processor.state import TABLE
from lockgate.processor.trial import STARTS_NS, Trial, run_tests, show
from lockgate.processor.windows import shape_of
from lockgate.telemetry import health
from lockgate.telemetry.clock import Moment

Beside = tuple[list[Reference], list[Function]]
_READ_ROWS: Final = 1000
_MEASURED: Final = 2000  # messages that the cost of a rule is measured with
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    test = commands.add_parser("test", help="run the tests of the rules; exit status 1 where one fails")
    explain = commands.add_parser("explain", help="what a rule reads and gives, when it runs, what it costs a message")
    backtest = commands.add_parser("backtest", help="what a rule would have made of the messages in the log")
    for command in (test, explain):
        command.add_argument("rules", nargs="*", metavar="RULE", help="default: all")
    backtest.add_argument("rule", metavar="RULE")
    backtest.add_argument(
        "--since", required=True, metavar="TIME", help="how far back, as 30m, 2h, 7d, or a time as 2026-11-21T08:00Z"
    )
    quarantine = commands.add_parser("quarantine", help="what is kept aside because no schema or rule could take it")
    quarantine.add_argument("--reason", default="", metavar="TEXT", help="only what has a reason that begins so")
    quarantine.add_argument("--json", action="store_true", help="every message, as JSON lines")
    quarantine.add_argument("--replay", action="store_true", help="let the running processor take them once more")
    for command in (test, explain, backtest, quarantine):
        add_config_argument(command)


def main(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    try:
        if arguments.what == "test":
            return _test(config, arguments.rules)
        if arguments.what == "explain":
            return _explain(config, arguments.rules)
        if arguments.what == "quarantine":
            return _quarantine(config, arguments)
        return _backtest(config, arguments.rule, arguments.since)
    except ConfigError as error:
        error.path = error.path or config.path  # the processor does not know the file
        raise
    except sqlite3.Error as error:
        print(f"Error: the buffer in {config.gateway.buffer_dir} cannot be read: {error}", file=sys.stderr)
        return 1


def _chosen(config: Config, names: Sequence[str]) -> list[RuleConfig]:
    known = {rule.name: rule for rule in config.processor.rules}
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no [rules.{name}].{did_you_mean(name, known)}", accepted=", ".join(known))
    return [known[name] for name in names or known]


def _beside(config: Config) -> Beside:
    """What rules have at hand: reference tables and functions."""
    processor = config.processor
    check_tables(processor.tables, [*Schemas(processor.schemas).by_name, TABLE])
    functions = find_functions(processor.functions, processor.function_packages)
    return [Reference(table) for table in processor.tables], functions


def _test(config: Config, names: Sequence[str]) -> int:
    beside = _beside(config)
    failed = 0
    for rule in _chosen(config, names):
        failures = run_tests(rule, config.processor, *beside)
        failed += len(failures)
        for failure in failures:
            print(f"{config.path}:{rule.line}: {failure}")
        if not failures:
            print(f"rule {rule.name}: {len(rule.tests)} tests good" if rule.tests else f"rule {rule.name}: no test")
    return 1 if failed else 0


def _explain(config: Config, names: Sequence[str]) -> int:
    beside = _beside(config)
    answer = health.ask(config.gateway.sockets_dir / "processor.sock")
    status = answer.get("status") if answer else None
    running = status.get("rules", {}) if isinstance(status, dict) else {}
    for rule in _chosen(config, names):
        print("\n".join(_explained(config, rule, beside, running.get(rule.name))))
    return 0


def _explained(config: Config, rule: RuleConfig, beside: Beside, running: object) -> Iterator[str]:
    with Trial(rule, config.processor, *beside) as trial:
        checked = trial.rule
        given = [column for column in checked.columns if column.lower() not in ("topic", "device_ts")]
        yield f"rule {rule.name}"
        yield f"  runs      {_when(rule, checked if isinstance(checked, MessageRule) else None)}"
        yield f"  over      schema {rule.schema}: {', '.join(checked.schema.config.topics)}"
        reads = sorted(name for name in checked.reads if not name.startswith("#") and name != rule.schema)
        yield f"  reads     {', '.join(reads) or 'nothing else'}"
        topic = rule.topic or "what the column topic says"
        yield f"  gives     {', '.join(given) or 'an empty object'}; to {topic}, class {rule.message_class}"
        for step in checked.plan():
            yield f"  plan      {step}"
    yield f"  costs     {_cost(config, rule, beside)}"
    if isinstance(running, dict):
        said = ", ".join(f"{name} {value}" for name, value in running.items() if value is not None)
        yield f"  running   {said}"


def _when(rule: RuleConfig, message_rule: MessageRule | None) -> str:
    if message_rule is not None:
        return "for each message" + (", many at once" if message_rule.at_once else ", one by one")
    return f"on a window: {shape_of(rule)}"


def _cost(config: Config, rule: RuleConfig, beside: Beside) -> str:
    """What a message costs, decoding included, measured on what can be had."""
    with contextlib.closing(LogReader(config.gateway.buffer_dir)) as reader:
        logged = list(islice(_logged(reader, rule, 0), _MEASURED))
    source = "the last messages of the log"
    messages = [(row.topic, row.payload, _moment(row)) for row in logged]
    if not messages:
        given = [one for test in rule.tests for one in test.given]
        source = "the messages of its tests"
        if not given:
            return "not known: the log holds no message of this schema, and the rule has no test"
        for number in range(_MEASURED):
            one = given[number % len(given)]
            messages.append((one.topic, one.payload, Moment("cost", number * 1_000_000, STARTS_NS, True)))
    with Trial(rule, config.processor, *beside) as trial:
        for topic, payload, moment in messages:
            trial.give(topic, payload, moment, logged=bool(logged))
        trial.finish()
        each = trial.seconds / len(messages) * 1e6
    return f"{each:.1f} µs a message, one by one and with its decoding ({len(messages)} measured, {source})"


def _backtest(config: Config, name: str, since: str) -> int:
    (rule,) = _chosen(config, [name])
    after = _time_of(since)
    made = 0
    with (
        contextlib.closing(LogReader(config.gateway.buffer_dir)) as reader,
        Trial(rule, config.processor, *_beside(config)) as trial,
    ):
        for row in _logged(reader, rule, after):
            for entry in trial.give(row.topic, row.payload, _moment(row), logged=True):
                made += 1
                print(show(entry))
        for entry in trial.finish():
            made += 1
            print(show(entry))
        if not trial.messages:
            print(
                f"the log holds no message of schema {rule.schema} since then: they stay while a window needs them, "
                "or as long as the schema's keep says",
                file=sys.stderr,
            )
            return 1
        late = trial.rule.counts.late
        print(
            f"rule {name}: {trial.messages} messages gave {made}; {late} were late; {len(trial.problems)} problems;"
            f" {trial.seconds:.2f} s",
            file=sys.stderr,
        )
        for problem in dict.fromkeys(trial.problems):
            print(f"  {problem}", file=sys.stderr)
    return 0


def _quarantine(config: Config, arguments: argparse.Namespace) -> int:
    if arguments.replay:
        answer = health.ask(config.gateway.sockets_dir / "processor.sock", ask="replay", reason=arguments.reason)
        if not answer or "messages" not in answer:
            print(f"the processor does not answer: {(answer or {}).get('error', 'is it running?')}", file=sys.stderr)
            return 1
        print(f"the processor takes {answer['messages']} messages once more")
        return 0
    with contextlib.closing(LogReader(config.gateway.buffer_dir)) as reader:
        kept = [one for one in reader.quarantine() if one.message.reason.startswith(arguments.reason)]
    if arguments.json:
        for one in kept:
            said = one.message._asdict() | {"id": one.id, "at": _spell(one.wall_ns)}
            try:
                said["payload"] = one.message.payload.decode()
            except UnicodeDecodeError:
                said["payload"], said["hex"] = None, one.message.payload.hex()
            print(json.dumps(said))
        return 0
    counts = Counter((one.message.schema, one.message.reason) for one in kept)
    last = {(one.message.schema, one.message.reason): one for one in kept}
    rows: list[tuple[str, ...]] = [
        (schema, reason, str(count), _spell(last[schema, reason].wall_ns), last[schema, reason].message.topic)
        for (schema, reason), count in counts.most_common()
    ]
    print(table(("schema", "reason", "count", "last", "topic"), rows) if rows else "nothing is kept aside")
    return 0


def _spell(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).isoformat()


def _logged(reader: LogReader, rule: RuleConfig, after_ns: int) -> Iterator[Row]:
    seq = 0
    while rows := reader.read(WINDOW_INPUT, seq, _READ_ROWS):
        seq = rows[-1].seq
        yield from (row for row in rows if row.schema == rule.schema and row.wall_ns >= after_ns)


def _moment(row: Row) -> Moment:
    return Moment(row.boot_id, row.boottime_ns, row.wall_ns, row.clock_ok)


def _time_of(text: str) -> int:
    """Unix nanoseconds of a duration before now, or of a time. Raises ConfigError."""
    if match := re.fullmatch(r"([0-9]+)([smhd])", text):
        return time.time_ns() - int(match[1]) * _UNITS[match[2]] * 1_000_000_000
    try:
        said = datetime.fromisoformat(text)
    except ValueError:
        accepted = "30m, 2h, 7d, or a time as 2026-11-21T08:00Z"
        raise ConfigError(f"{text!r} is no time", key="--since", accepted=accepted) from None
    return int((said if said.tzinfo is not None else said.replace(tzinfo=UTC)).timestamp() * 1e9)
