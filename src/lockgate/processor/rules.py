"""Rules: a SELECT for each message, or over a window of them."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from lockgate.buffer import Batch, Entry, Quarantined, RuleCursor
from lockgate.buffer.segments import WINDOW_INPUT
from lockgate.config.errors import ConfigError
from lockgate.config.model import RuleConfig
from lockgate.processor import sql_text
from lockgate.processor.functions import Function
from lockgate.processor.references import Reference
from lockgate.processor.sandbox import TIME, RuleError, Sandbox
from lockgate.processor.schemas import Schema, Schemas, Value
from lockgate.processor.state import TABLE, LastValues, Memory, define_state
from lockgate.processor.tables import Logged, WindowTable
from lockgate.processor.windows import Frame, Sliding, Window, check_window, shape_of, window_of
from lockgate.telemetry.clock import Moment

log = logging.getLogger(__name__)

_OVERRUNS: Final = 3  # within _STOP_SECONDS, and a rule is stopped for so long
_STOP_SECONDS: Final = 60.0
_PLACE: Final = "#place"  # column of a table of messages: which of the batch it is


@dataclass(slots=True)
class RuleCounts:
    """What a rule has done since the service started."""

    evaluated: int = 0
    rows: int = 0
    errors: int = 0
    late: int = 0
    seconds: float = 0.0
    last_error: str | None = None


@dataclass(slots=True)
class Decoded:
    """A message on its way through the rules."""

    topic: str
    payload: bytes
    schema: Schema
    values: list[Value]  # as the schema's columns
    entries: list[Entry] = field(default_factory=list)  # what it gives rise to
    failures: list[tuple[str, str]] = field(default_factory=list)  # reason and detail
    more: list[Decoded] = field(default_factory=list)  # other parts of the same message

    def parameters(self) -> dict[str, Value]:
        return {name: value for (name, _), value in zip(self.schema.columns, self.values, strict=True)}


class Rule:
    """What both kinds of rule share: the checked query, and rows that become messages."""

    def __init__(self, config: RuleConfig, schema: Schema, sandbox: Sandbox, parameters: Sequence[str]) -> None:
        self.config = config
        self.name = config.name
        self.schema = schema
        self.counts = RuleCounts()
        self.sql = config.sql.strip().rstrip(";")
        self._overruns: list[float] = []  # when, of late
        self._stopped_until = 0.0
        self._sandbox = sandbox
        self._parameters = tuple(parameters)
        self.columns, self.reads = self._check(parameters)
        self._topic_place = _place(self.columns, "topic")
        self._time_place = _place(self.columns, "device_ts")
        if self._topic_place is None and config.topic is None:
            raise self._mistake("no topic", 'a result column named "topic", or the key topic', "topic")

    def plan(self) -> list[str]:
        """How SQLite goes about it, step by step."""
        return self._sandbox.plan(self.sql, self._parameters)

    def status(self) -> dict[str, object]:
        c = self.counts
        mean_us = c.seconds / c.evaluated * 1e6 if c.evaluated else None
        return {
            "evaluated": c.evaluated,
            "rows": c.rows,
            "errors": c.errors,
            "cost_us": None if mean_us is None else round(mean_us, 1),
            "last_error": c.last_error,
            "stopped": bool(self._stopped_until),
        }

    def note_error(self, error: RuleError) -> None:
        """Count it. A rule that runs away again and again is stopped for a while, so that the others go on."""
        self.counts.errors += 1
        self.counts.last_error = str(error)
        if error.reason == TIME:
            now = time.monotonic()
            self._overruns = [then for then in self._overruns if now - then < _STOP_SECONDS] + [now]
            if len(self._overruns) >= _OVERRUNS:
                self._overruns.clear()
                self._stopped_until = now + _STOP_SECONDS
                log.error("rule %s is stopped for %g s: %s", self.name, _STOP_SECONDS, error)

    def _run_or_stop(self) -> None:
        """Raise RuleError while the rule is stopped."""
        if self._stopped_until and time.monotonic() < self._stopped_until:
            raise RuleError("stopped", f"it ran for more than {self.config.budget_seconds:g} s {_OVERRUNS} times")
        self._stopped_until = 0.0

    def _entry(self, row: Sequence[Any]) -> Entry:
        topic = self.config.topic if self._topic_place is None else row[self._topic_place]
        if not isinstance(topic, str) or not topic or any(c in topic for c in "+#\0"):
            raise RuleError("no valid topic", f"{topic!r} cannot be a topic")
        device_ts = None if self._time_place is None else row[self._time_place]
        if device_ts is not None and not isinstance(device_ts, int):
            raise RuleError("device_ts not integer", f"{device_ts!r}")
        document = {
            column: value
            for place, (column, value) in enumerate(zip(self.columns, row, strict=True))
            if place not in (self._topic_place, self._time_place)
        }
        try:
            payload = orjson.dumps(document)
        except (TypeError, orjson.JSONEncodeError) as error:  # a BLOB
            raise RuleError("result not JSON", str(error)) from None
        return Entry(topic, self.config.message_class, self.schema.name, payload, device_ts)

    def _check(self, parameters: Sequence[str]) -> tuple[list[str], frozenset[str]]:
        try:
            return self._sandbox.check(self.sql, parameters, self.config.budget_seconds)
        except (sqlite3.Error, sqlite3.Warning) as error:
            message = str(error)
        mistake = message if "parameter" in message else self._complaint(self.sql, parameters)
        place = sql_text.place_of(self.sql, mistake, lambda text: self._complaint(text, parameters))
        if "not authorized" in message or "prohibited" in message:
            message = f"{message}: a rule is one SELECT and cannot reach files, settings or the catalogue"
        there_is = ["parameters " + ", ".join(f":{name}" for name in parameters)]
        there_is += [f"table {name} with columns {', '.join(columns)}" for name, columns in self._sandbox.readable()]
        message = message.replace("You did not supply a value for binding parameter ", "no such parameter: ").rstrip(
            "."
        )
        line = self.config.sql_line or self.config.line
        if place is not None:
            message = f"line {place[0]}, column {place[1]} of the SELECT: {message}"
            leading = self.config.sql[: len(self.config.sql) - len(self.config.sql.lstrip())].count("\n")
            line = None if line is None else line + leading + place[0] - 1
        raise self._mistake(message, "; ".join(there_is), "sql", line)

    def _complaint(self, sql: str, parameters: Sequence[str]) -> str:
        """What SQLite says of a text that stands alone, as far as the text itself is at fault."""
        try:
            self._sandbox.prepare(sql, parameters)
        except (sqlite3.Error, sqlite3.Warning) as error:
            return str(error)
        return ""

    def _mistake(self, problem: str, accepted: str, key: str, line: int | None = None) -> ConfigError:
        return ConfigError(problem, line=line or self.config.line, key=f"rules.{self.name}.{key}", accepted=accepted)


class MessageRule(Rule):
    """Runs for each message: for a whole batch at once where its SELECT has that form, else one by one."""

    def __init__(self, config: RuleConfig, schema: Schema, sandbox: Sandbox) -> None:
        names = [name for name, _ in schema.columns]
        super().__init__(config, schema, sandbox, names)
        self._for_all = None
        if TABLE not in self.reads:  # which changes from one message to the next
            self._for_all = sql_text.row_by_row(self.sql, _batch_table(schema), _PLACE, names)
        try:
            if self._for_all is not None and sandbox.aggregates(self._for_all):
                self._for_all = None
        except (sqlite3.Error, sqlite3.Warning):
            self._for_all = None

    @property
    def at_once(self) -> bool:
        """Whether a batch is one run."""
        return self._for_all is not None

    def evaluate_all(self, messages: Sequence[Decoded]) -> None:
        """What the messages, which lie in the batch table, give rise to."""
        if self._for_all is not None and len(messages) > 1:
            started = time.perf_counter()
            try:
                self._run_or_stop()
                found = self._sandbox.run(self._for_all, {}, self.config.budget_seconds, self.name)
                made = [(row[0], self._entry(row[1:])) for row in found]
            except RuleError:  # one of them is at fault: the slow way shows which
                self.counts.seconds += time.perf_counter() - started
            else:
                self._sandbox.memory.keep()
                for place, entry in made:
                    messages[place].entries.append(entry)
                self.counts.seconds += time.perf_counter() - started
                self.counts.evaluated += len(messages)
                self.counts.rows += len(made)
                return
        for message in messages:
            self.evaluate(message)

    def evaluate(self, message: Decoded) -> None:
        """What one message gives rise to; where the rule fails on it the message is told so."""
        started = time.perf_counter()
        self.counts.evaluated += 1
        try:
            self._run_or_stop()
            found = self._sandbox.run(self.sql, message.parameters(), self.config.budget_seconds, self.name)
            entries = [self._entry(row) for row in found]
        except RuleError as error:
            self.note_error(error)
            message.failures.append((f"rule {self.name}: {error.reason}", error.detail))
        else:
            self._sandbox.memory.keep()
            message.entries += entries
            self.counts.rows += len(entries)
        finally:
            self.counts.seconds += time.perf_counter() - started


class WindowRule(Rule):
    """Runs over the frames that its window makes of the logged messages."""

    def __init__(self, config: RuleConfig, schema: Schema, table: WindowTable, window: Window) -> None:
        super().__init__(config, schema, table.sandbox, ["window_start", "window_end"])
        self.table = table
        self.window = window
        self.shape = shape_of(config)
        self.deadline: int | None = None  # CLOCK_BOOTTIME at which something will be over
        self.boot_id = ""  # whose clock the window goes by
        self.moved = False  # since the cursor was written
        self._heard_boot = ""
        table.rules.append(self)

    def resume(self, cursor: RuleCursor) -> None:
        self.window.after = cursor.needed
        self.window.seq = max(cursor.seq, cursor.needed)
        self.window.until = cursor.until
        self.boot_id = cursor.boot_id

    def cursor(self) -> RuleCursor:
        self.moved = False
        w = self.window
        return RuleCursor(self.schema.name, w.after, w.seq, self.boot_id, w.until, self.shape)

    def status(self) -> dict[str, object]:
        return super().status() | {"late": self.counts.late, "window_messages": self.table.count(self.window.after)}

    # --- as the table tells -------------------------------------------------------------------------------------

    def take(self, rows: Sequence[Logged], out: Batch) -> None:
        w = self.window
        upto = rows[-1].seq
        self._heard(rows[-1].moment)
        if rows[0].seq <= w.seq:
            again = [row for row in rows if w.after < row.seq <= w.seq]
            w.replay(self._in_time(again, out) if self.table.alone else again)
            rows = [row for row in rows if row.seq > w.seq]
        if rows:
            in_time = self._in_time(rows, out) if w.by_field else rows
            w.seq = rows[-1].seq
            if not w.by_field:
                w.note(rows[-1].time)
            self._emit(w.taken(in_time), out)
            until = w.watermark(rows[-1].time)
            if until is not None:
                self._emit(w.over(self.table, until), out)
        self._trim(upto)

    def settle(self, moment: Moment, out: Batch) -> bool:
        """Run over what is over by the clock; gives whether anything was."""
        if self._heard_boot != moment.boot_id and self.window.latest is not None:
            self._heard(moment)
            self.deadline = self.window.deadline(self.table)
        if self.deadline is None or moment.boottime_ns < self.deadline:
            return False
        until = self.window.last_end() if self.window.by_field else moment.boottime_ns
        if until is not None:
            self._emit(self.window.over(self.table, until), out)
        self._trim(self.window.seq)
        return True

    def lives_in(self, boot_id: str, following: str, seq: int | None) -> bool:
        """Whether the rule had come to a boot's end before it takes a row; None: all rows have been taken."""
        if seq is not None and seq <= self.window.seq:
            return False
        # Boots that brought no message are not in the log; what was open when they began is open still
        passed = self.window.outlasts_boots and self.boot_id not in ("", following)
        return self.boot_id == boot_id or passed

    def end_of_boot(self, known: bool, out: Batch) -> None:
        """The window ends with what it has, if it is of that kind."""
        end = self.window.last_end()
        if end is not None and self.window.closes_with_boot(known):
            self._emit(self.window.over(self.table, end), out)

    def enter(self, moment: Moment, seq: int | None, offset: int | None, moved: bool) -> None:
        """Go on in a boot. `moved`: the table's rows have been moved by `offset`, or let go."""
        w = self.window
        if moved:
            w.latest = None if offset is None or w.latest is None else w.latest + offset
        if seq is not None and seq <= w.seq:
            return
        if self.boot_id not in ("", moment.boot_id):
            w.reboot(offset, moment.boottime_ns)
            self.moved = True
        self.boot_id = moment.boot_id

    # --- inside -------------------------------------------------------------------------------------------------

    def _heard(self, moment: Moment) -> None:
        self.window.heard, self._heard_boot = moment.boottime_ns, moment.boot_id

    def refuse(self, seq: int, topic: str, payload: bytes, detail: str, out: Batch) -> None:
        """Leave a message out of the windows, once."""
        if seq <= self.window.seq:  # done before the last restart
            return
        self.counts.late += 1
        if self.config.late == "quarantine":
            reason = f"rule {self.name}: late"
            out.quarantined.append(Quarantined(topic, self.schema.name, reason, f"seq {seq}: {detail}", payload))
            self.moved = True

    def _in_time(self, rows: Sequence[Logged], out: Batch) -> list[Logged]:
        in_time = []
        for row in rows:
            if self.window.is_late(row.time):
                self.refuse(row.seq, row.topic, row.payload, f"what was at its {self.config.time} is settled", out)
                if self.table.alone:
                    self.table.drop(row.seq)
            else:
                in_time.append(row)
                self.window.note(row.time)
        return in_time

    def _emit(self, frames: Any, out: Batch) -> None:
        for frame in frames:
            self.moved = True
            self._evaluate(frame, out)

    def _evaluate(self, frame: Frame, out: Batch) -> None:
        started = time.perf_counter()
        self.counts.evaluated += 1
        try:
            self._run_or_stop()
            found = self.table.evaluate(self.sql, frame, self.config.budget_seconds, self.name)
            entries = [self._entry(row) for row in found]
        except RuleError as error:
            self.note_error(error)
            log.warning("rule %s failed on a window: %s", self.name, error)
            detail = f"{error.detail}; a window over {self.schema.name} up to seq {self.window.seq}"
            out.quarantined.append(Quarantined("", self.schema.name, f"rule {self.name}: {error.reason}", detail, b""))
        else:
            self._sandbox.memory.keep()
            out.entries += entries
            self.counts.rows += len(entries)
        finally:
            self.counts.seconds += time.perf_counter() - started

    def _trim(self, upto: int) -> None:
        self.window.trim(self.table, upto)
        self.deadline = self.window.deadline(self.table)


class Rules:
    """All rules, by schema. Building them checks them: raises ConfigError for the first that is wrong."""

    def __init__(
        self,
        configs: Sequence[RuleConfig],
        schemas: Schemas,
        classes: Sequence[str],
        references: Sequence[Reference] = (),
        state_topics: int = 0,
        functions: Sequence[Function] = (),
    ) -> None:
        self.memory = Memory(state_topics)
        self._functions = functions
        self._references = references
        self.by_message: dict[str, list[MessageRule]] = {name: [] for name in schemas.by_name}
        self.tables: dict[str, list[WindowTable]] = {name: [] for name in schemas.by_name}
        self._messages = self._new_sandbox()
        self._inserts: dict[str, str] = {}
        for schema in schemas.by_name.values():
            # Columns without a type, so that they compare as bound parameters do
            names = [_PLACE, *(name for name, _ in schema.columns)]
            self._messages.define(_batch_table(schema), [(name, "") for name in names])
            self._inserts[schema.name] = f'INSERT INTO "{_batch_table(schema)}" VALUES ({", ".join("?" * len(names))})'
        try:
            for config in configs:
                self._add(config, schemas, classes)
        except ConfigError:
            self.close()
            raise
        self.windows = [rule for table in self.all_tables() for rule in table.rules]
        reading: list[tuple[Sandbox, Sequence[Rule]]] = [
            (self._messages, [rule for rules in self.by_message.values() for rule in rules]),
            *((table.sandbox, table.rules) for table in self.all_tables()),
        ]
        self._readers = [(sandbox, {name for rule in rules for name in rule.reads}) for sandbox, rules in reading]
        self.state = LastValues((sandbox for sandbox, reads in self._readers if TABLE in reads), state_topics)
        for reference in references:
            self.fill(reference)

    def fill(self, reference: Reference) -> None:
        """Hand what a reference table holds to the rules that read it."""
        for sandbox, reads in self._readers:
            if reference.name in reads:
                try:
                    reference.fill(sandbox)
                except sqlite3.Error as error:
                    log.error("table %s stays as it was: %s", reference.name, error)

    def inherit(self, before: Rules) -> None:
        """Go on counting for the rules that are the same as before; say what is new."""
        known = {rule.name: rule for rule in before.all()}
        for rule in self.all():
            old = known.pop(rule.name, None)
            if old is not None and old.config == rule.config and old.schema.config == rule.schema.config:
                rule.counts = old.counts
            else:
                log.info("rule %s is %s", rule.name, "new" if old is None else "another one")
        for name in known:
            log.info("rule %s is gone", name)

    def all(self) -> list[Rule]:
        return [*(rule for rules in self.by_message.values() for rule in rules), *self.windows]

    def all_tables(self) -> list[WindowTable]:
        return [table for tables in self.tables.values() for table in tables]

    def evaluate(self, messages: Sequence[Decoded]) -> None:
        """Run the rules for each message on some, which then know what they give rise to."""
        if self.state.wanted:
            for message in messages:
                for rule in self.by_message[message.schema.name]:
                    if TABLE in rule.reads:
                        rule.evaluate(message)
                self.state.remember(message.topic, message.schema.name, message.schema.columns, message.values)
        by_schema: dict[str, list[Decoded]] = {}
        for message in messages:
            by_schema.setdefault(message.schema.name, []).append(message)
        for name, some in by_schema.items():
            rules = [rule for rule in self.by_message[name] if TABLE not in rule.reads]
            together = len(some) > 1 and any(rule.at_once for rule in rules)
            if together:
                rows = ((place, *message.values) for place, message in enumerate(some))
                self._messages.execute_many(self._inserts[name], rows)
            for rule in rules:
                rule.evaluate_all(some)
            if together:
                self._messages.execute(f'DELETE FROM "{_batch_table(some[0].schema)}"')

    def close(self) -> None:
        self._messages.close()
        for table in self.all_tables():
            table.sandbox.close()

    def _add(self, config: RuleConfig, schemas: Schemas, classes: Sequence[str]) -> None:
        schema = schemas.by_name.get(config.schema)
        key = f"rules.{config.name}"
        if schema is None:
            known = ", ".join(schemas.by_name) or "none is configured"
            raise ConfigError(f"no schema {config.schema!r}", key=f"{key}.schema", line=config.line, accepted=known)
        check_class(config, classes)
        check_window(config, dict(schema.config.fields), schema.config.optional)
        window = window_of(config)
        if window is None:
            self.by_message[schema.name].append(MessageRule(config, schema, self._messages))
        else:
            # Who looks back from each message must not see what was late, which is another for each lateness
            alone = config.time is not None and isinstance(window, Sliding)
            WindowRule(config, schema, self._table(schema, config.time, alone), window)

    def _new_sandbox(self) -> Sandbox:
        sandbox = Sandbox(self.memory, self._functions)
        define_state(sandbox)
        for reference in self._references:
            reference.define(sandbox)
        return sandbox

    def _table(self, schema: Schema, time_field: str | None, alone: bool) -> WindowTable:
        tables = self.tables[schema.name]
        for table in tables:
            if table.time_field == time_field and not alone and not table.alone:
                return table
        tables.append(WindowTable(schema, time_field, self._new_sandbox(), alone))
        return tables[-1]


def check_class(config: RuleConfig, classes: Sequence[str]) -> None:
    """Raise ConfigError for a class that there is not, or that is no rule's."""
    if config.message_class not in classes or config.message_class == WINDOW_INPUT:
        known = ", ".join(name for name in classes if name != WINDOW_INPUT)
        problem = f"no class {config.message_class!r}"
        raise ConfigError(problem, key=f"rules.{config.name}.class", line=config.line, accepted=known)


def _batch_table(schema: Schema) -> str:
    return f"#{schema.name}"


def _place(columns: Sequence[str], name: str) -> int | None:
    return next((place for place, column in enumerate(columns) if column.lower() == name), None)
