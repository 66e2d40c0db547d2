"""Messages in, one commit out: resends, schemas, rules and windows."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from lockgate.buffer import (
    Batch,
    Entry,
    Kept,
    Log,
    LogReader,
    PacketRecord,
    PacketRecords,
    Quarantined,
    Row,
    RuleCursor,
)
from lockgate.buffer.log import FULL_POLL_SECONDS
from lockgate.buffer.segments import WINDOW_INPUT
from lockgate.config.errors import ConfigError
from lockgate.config.model import BufferConfig, ProcessorConfig, RuleConfig
from lockgate.processor.functions import find_functions
from lockgate.processor.keeping import Keeping, cursor_name
from lockgate.processor.references import Reference, check_tables
from lockgate.processor.rules import Decoded, MessageRule, Rules, check_class
from lockgate.processor.sandbox import RuleError
from lockgate.processor.schemas import NotAccepted, Schemas, Value
from lockgate.processor.state import MEMORY, TABLE
from lockgate.processor.tables import Logged, WindowTable
from lockgate.processor.trial import run_tests
from lockgate.telemetry.clock import Moment

log = logging.getLogger(__name__)

NO_RULE: Final = "(no rule)"  # under this name messages are counted filtered whose schema no rule reads
_READ_ROWS: Final = 1000
_TURN_SECONDS: Final = 0.2  # of rules in one go, and what the last of them takes
_TOGETHER: Final = 256  # messages that the rules are run on at once
# A resend comes fewer messages after the first PUBLISH: half of all Packet Identifiers. A Server that counts them up
# has reused none by then, and none has more in flight.
_RESEND_WINDOW: Final = 32_768


class Message(Protocol):
    """What the runner needs of a PUBLISH."""

    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def qos(self) -> int: ...
    @property
    def duplicate(self) -> bool: ...
    @property
    def packet_id(self) -> int | None: ...


class SessionLost:
    """Stands between the messages where the broker said session_present = 0."""


class Rulebook:
    """Schemas and rules, checked. Raises ConfigError."""

    rejected: Mapping[str, str] = {}  # why a rule is not the one of the configuration, by its name

    def __init__(self, config: ProcessorConfig, buffer: BufferConfig) -> None:
        self.config = config
        self.schemas = Schemas(config.schemas)
        check_tables(config.tables, [*self.schemas.by_name, TABLE])
        self.references = [Reference(table) for table in config.tables]
        self.functions = find_functions(config.functions, config.function_packages)
        self.rules = Rules(
            config.rules, self.schemas, buffer.classes, self.references, config.state_topics, self.functions
        )
        self.filter_names = {
            name: "+".join(rule.name for rule in rules) or NO_RULE for name, rules in self.rules.by_message.items()
        }

    def close(self) -> None:
        self.rules.close()

    def successor(self, config: ProcessorConfig, buffer: BufferConfig) -> Rulebook:
        """The book of another configuration. A rule that is wrong or fails its tests stays as it is in this one.

        Raises ConfigError for schemas and tables that are wrong, or that do not fit a rule that has to stay.
        """
        before = {rule.name: rule for rule in self.config.rules}
        references = [Reference(table) for table in config.tables]
        functions = find_functions(config.functions, config.function_packages)
        check_tables(config.tables, [*Schemas(config.schemas).by_name, TABLE])
        chosen: list[RuleConfig] = []
        rejected: dict[str, str] = {}
        for rule in config.rules:
            try:
                check_class(rule, buffer.classes)
                problems = [str(failure) for failure in run_tests(rule, config, references, functions)]
            except ConfigError as error:
                problems = [str(error)]
            old = before.get(rule.name)
            if not problems:
                chosen.append(rule)
                continue
            rejected[rule.name] = problems[0]
            if old is not None:
                chosen.append(old)
            stays = "stays as it was" if old is not None else "is left out"
            log.error("Rule %s %s. %s", rule.name, stays, problems[0])
        book = Rulebook(dataclasses.replace(config, rules=tuple(chosen)), buffer)
        book.rejected = rejected
        book.rules.inherit(self.rules)
        return book


class Runner:
    """Turns messages into commits of the log; its calls must not overlap."""

    def __init__(self, config: ProcessorConfig, book: Rulebook, buffer: Log, reader: LogReader) -> None:
        self._schemas = book.schemas
        self._rules = book.rules
        self._rejected = book.rejected
        self._filter_names = book.filter_names
        self._tables = book.rules.all_tables()
        self._kept: list[Keeping] = []
        self._together = 1  # messages at once, as many as the rules are quick
        self._buffer = buffer
        self._reader = reader

    async def start(self) -> None:
        """Fill the windows from the log, and settle those that ended while nobody ran."""
        await self._match_cursors()
        kept = self._reader.last_values()
        self._rules.state.load(value for value in kept if value.schema != MEMORY)
        names = {rule.name for rule in self._rules.all()} | {f"#{name}" for name in self._schemas.by_name}
        self._rules.memory.load((value for value in kept if value.schema == MEMORY), names)
        await self._fill()
        await self.close_windows()

    async def process(self, messages: Sequence[Message | SessionLost]) -> int:
        """Commit what these messages give rise to; gives how many, from the first on, that was.

        Those may be acknowledged then, duplicates too. It is less than all where the rules are slow: the loop has
        others to serve.
        """
        await self._room()
        batch = Batch(moment=self._buffer.clock.now())
        self._settle(batch)
        inputs: list[tuple[int, Decoded]] = []  # place among the entries, message
        session = _Session(self._buffer)
        give_up = time.monotonic() + _TURN_SECONDS
        taken = 0
        while taken < len(messages) and (not taken or time.monotonic() < give_up):
            some = messages[taken : taken + self._together]
            taken += len(some)
            began = time.monotonic()
            self._take(self._decoded(some, session, batch), batch, inputs)
            took = time.monotonic() - began
            if took > _TURN_SECONDS / 2:
                self._together = max(1, self._together // 4)
            elif took < _TURN_SECONDS / 8 and len(some) == self._together:
                self._together = min(_TOGETHER, 2 * self._together)
        session.write(batch)
        await self._commit(batch, inputs)
        return taken

    async def _room(self) -> None:
        """Wait while the buffer is full; what fills it may be windows that end meanwhile."""
        while (self._tables or self._kept) and await self._buffer.room() is not None:
            for kept in self._kept:
                kept.give_way(self._buffer.state.next_seq - 1)
            await self.close_windows(even_cursors=True)
            await asyncio.sleep(FULL_POLL_SECONDS)

    async def _commit(self, batch: Batch, inputs: Sequence[tuple[int, Decoded]]) -> None:
        """Commit a batch; then the windows take what is logged for them."""
        self._note_cursors(batch)
        self._rules.state.note(batch)
        self._rules.memory.note(batch)
        first_seq = await self._buffer.append(batch)
        if inputs:
            out = Batch(moment=batch.moment)
            by_schema: dict[str, list[tuple[int, Decoded]]] = {}
            for place, message in inputs:
                by_schema.setdefault(message.schema.name, []).append((first_seq + place, message))
            for name, some_inputs in by_schema.items():
                for table in self._rules.tables[name]:
                    rows = [
                        _stamped(table, seq, batch.moment, one.topic, one.payload, one.values, out)
                        for seq, one in some_inputs
                    ]
                    if some_rows := [row for row in rows if row is not None]:
                        table.take(some_rows, out)
            await self._write(out)

    def replayable(self, reason: str) -> list[Kept]:
        """What is kept aside for a reason that begins so, and can be taken once more."""
        kept = self._reader.quarantine()
        return [one for one in kept if one.message.reason.startswith(reason) and self._takes_again(one.message)]

    async def replay(self, kept: Sequence[Kept]) -> None:
        """Take quarantined messages once more, as if they came now. What fails again is kept aside again."""
        still = set(self._reader.quarantine())  # an id alone may be that of another message by now
        kept = [one for one in kept if one in still]
        for start in range(0, len(kept), _TOGETHER):
            await self._room()
            batch = Batch(moment=self._buffer.clock.now())
            inputs: list[tuple[int, Decoded]] = []
            for one in kept[start : start + _TOGETHER]:
                batch.replayed.append(one.id)
                batch.intake["received", ""] += 1
                message = self._decode(one.message.topic, one.message.payload, batch)
                if message is None:
                    continue
                rule = self._failed_rule(one.message.reason)
                if rule is None:
                    self._take([message], batch, inputs)
                else:
                    rule.evaluate(message)
                    batch.entries += message.entries
                    self._count(message, rule.name, batch)
            await self._commit(batch, inputs)

    def _takes_again(self, message: Quarantined) -> bool:
        schema = self._schemas.by_name.get(message.schema)
        if schema is not None and schema.in_parts:  # it means something only in its place among the others
            return False
        if "bytes not kept" in message.detail and not message.payload:
            return False
        return not message.reason.startswith("rule ") or self._failed_rule(message.reason) is not None

    def _failed_rule(self, reason: str) -> MessageRule | None:
        """The rule that a reason names, if it runs for each message."""
        name = reason.removeprefix("rule ").partition(":")[0] if reason.startswith("rule ") else None
        rules = (rule for rules in self._rules.by_message.values() for rule in rules)
        return next((rule for rule in rules if rule.name == name), None)

    async def close_windows(self, *, even_cursors: bool = False) -> None:
        """Settle the windows that are over. Cursors that have moved without a result are committed if it is asked."""
        batch = Batch(moment=self._buffer.clock.now())
        for kept in self._kept:
            kept.let_go(self._reader, batch.moment)
        self._settle(batch)
        await self._write(batch, even_cursors)

    def seconds_to_window_end(self) -> float | None:
        """Until the next open window is over, None without one."""
        ends = [end for table in self._tables if (end := table.deadline()) is not None]
        if not ends:
            return None
        return max(0.0, (min(ends) - self._buffer.clock.now().boottime_ns) / 1e9)

    def status(self) -> dict[str, object]:
        shown = {rule.name: rule.status() for rule in self._rules.all()}
        for name, why in self._rejected.items():
            shown.setdefault(name, {})["rejected"] = why
        return dict(shown)

    def _decoded(self, messages: Sequence[Message | SessionLost], session: _Session, batch: Batch) -> list[Decoded]:
        """Those of the messages that have a schema and fit it; the others are counted."""
        found: list[Decoded] = []
        for message in messages:
            if isinstance(message, SessionLost):
                session.lose()
                continue
            batch.intake["received", ""] += 1
            if session.is_resend(message):
                batch.intake["duplicate", ""] += 1
                continue
            decoded = self._decode(message.topic, message.payload, batch)
            if decoded is not None:
                found.append(decoded)
        return found

    def _decode(self, topic: str, payload: bytes, batch: Batch) -> Decoded | None:
        """The message if it has a schema and fits it; else it is counted."""
        schema = self._schemas.of(topic)
        if schema is None:
            batch.intake["refused", "no schema"] += 1
            return None
        try:
            rows = schema.decode_all(topic, payload, self._rules.memory)
        except NotAccepted as error:
            if schema.config.misfits == "refuse" or error.refused:
                batch.intake["refused", error.reason] += 1
            else:
                batch.intake["quarantined", error.reason] += 1
                batch.quarantined.append(Quarantined(topic, schema.name, error.reason, error.detail, payload))
            return None
        received_at = batch.moment.wall_ns // 1_000_000
        parts = [Decoded(topic, payload, schema, [*values, topic, received_at]) for values in rows]
        if not parts:
            batch.intake["refused", "nothing in it"] += 1
            return None
        parts[0].more = parts[1:]
        return parts[0]

    def _take(self, messages: list[Decoded], batch: Batch, inputs: list[tuple[int, Decoded]]) -> None:
        """Decide what becomes of these messages, and count each once."""
        self._rules.evaluate([part for message in messages for part in (message, *message.more)])
        for message in messages:
            name = message.schema.name
            for part in (message, *message.more):
                if self._rules.tables[name] or message.schema.config.keep_seconds is not None:
                    logged = message.schema.to_log(part.payload, part.values)
                    inputs.append((len(batch.entries) + len(part.entries), part))
                    part.entries.append(Entry(part.topic, WINDOW_INPUT, name, logged))
                batch.entries += part.entries
            self._count(message, self._filter_names[name], batch)

    def _count(self, message: Decoded, filtered_by: str, batch: Batch) -> None:
        parts = (message, *message.more)
        failures = dict(failure for part in parts for failure in part.failures)  # a reason once for a message
        for reason, detail in failures.items():
            batch.quarantined.append(Quarantined(message.topic, message.schema.name, reason, detail, message.payload))
        if failures:  # what the other rules made of it goes on
            batch.intake["quarantined", next(iter(failures))] += 1
        elif any(part.entries for part in parts):
            batch.intake["logged", ""] += 1
        else:
            batch.intake["filtered", filtered_by] += 1

    def _settle(self, batch: Batch) -> None:
        for table in self._tables:
            deadline = table.deadline()
            if deadline is not None and batch.moment.boottime_ns >= deadline:
                table.settle(batch.moment, batch)

    async def _write(self, out: Batch, even_cursors: bool = False) -> None:
        """Commit what windows gave, if anything; cursors alone wait for the next commit if they may."""
        if out.entries or out.quarantined or (even_cursors and self._cursors_moved()):
            self._note_cursors(out)
            self._rules.memory.note(out)
            await self._buffer.append(out, makes_room=True)

    def _cursors_moved(self) -> bool:
        return any(rule.moved for rule in self._rules.windows) or any(kept.moved for kept in self._kept)

    def _note_cursors(self, batch: Batch) -> None:
        for rule in self._rules.windows:
            if rule.moved:
                batch.rule_cursors[rule.name] = rule.cursor()
        for kept in self._kept:
            if kept.moved:
                batch.rule_cursors[kept.name] = kept.cursor()

    async def _match_cursors(self) -> None:
        """Every window rule has a cursor, and nobody else: a new rule begins with the next message."""
        known = self._buffer.state.rule_cursors
        configured = {rule.name: rule for rule in self._rules.windows}
        batch = Batch(moment=self._buffer.clock.now())
        schemas = [schema for schema in self._schemas.by_name.values() if schema.config.keep_seconds is not None]
        last_seq = self._buffer.state.next_seq - 1
        self._kept = [Keeping(schema, known.get(cursor_name(schema)), last_seq) for schema in schemas]
        wanted = configured.keys() | {kept.name for kept in self._kept}
        batch.forget_rules = [name for name in known if name not in wanted]
        for name, rule in configured.items():
            cursor = known.get(name)
            if cursor is not None and cursor.schema == rule.schema.name and cursor.shape in ("", rule.shape):
                rule.resume(cursor)
                continue
            seq = self._buffer.state.next_seq - 1
            rule.resume(RuleCursor(rule.schema.name, seq, seq))
            batch.rule_cursors[name] = rule.cursor()
            log.info("rule %s begins after seq %d", name, seq)
        self._note_cursors(batch)
        if batch.forget_rules:
            log.info("rules no longer configured: %s", ", ".join(batch.forget_rules))
        if batch.forget_rules or batch.rule_cursors:
            await self._buffer.append(batch)

    async def _fill(self) -> None:
        """Read again what the windows need of the log, and go on from there."""
        after = min((rule.window.after for rule in self._rules.windows), default=0)
        while self._tables and (rows := self._reader.read(WINDOW_INPUT, after, _READ_ROWS)):
            out = Batch(moment=self._buffer.clock.now())
            values = {row.seq: self._decoded_again(row) for row in rows}
            for table in self._tables:
                logged = []
                for row in rows:
                    if row.schema == table.schema.name and (decoded := values[row.seq]) is not None:
                        moment = Moment(row.boot_id, row.boottime_ns, row.wall_ns, row.clock_ok)
                        logged.append(_stamped(table, row.seq, moment, row.topic, row.payload, decoded, out))
                if some_rows := [one for one in logged if one is not None]:
                    table.take(some_rows, out)
            await self._write(out)
            after = rows[-1].seq
        out = Batch(moment=self._buffer.clock.now())
        for table in self._tables:
            table.settle(out.moment, out)
        await self._write(out)

    def _decoded_again(self, row: Row) -> list[Value] | None:
        """What a logged message says to the windows over its schema; None where no window can use it."""
        tables = [table for table in self._tables if table.schema.name == row.schema]
        if not tables:
            return None
        try:
            values: list[Value] = tables[0].schema.decode_logged(row.payload)
        except NotAccepted as error:  # the schema has been changed since
            log.warning("a window over %s cannot use message %d any more: %s", row.schema, row.seq, error)
            for table in tables:
                for rule in table.rules:
                    rule.note_error(RuleError("logged message not usable", str(error)))
            return None
        return [*values, row.topic, row.wall_ns // 1_000_000]


def _stamped(
    table: WindowTable, seq: int, moment: Moment, topic: str, payload: bytes, values: Sequence[Value], out: Batch
) -> Logged | None:
    row = table.stamp(seq, moment, topic, payload, values)
    if isinstance(row, Logged):
        return row
    for rule in table.rules:
        rule.refuse(seq, topic, payload, row, out)
    return None


class _Session:
    """Which Packet Identifiers have been seen, as it will be after this batch."""

    def __init__(self, buffer: Log) -> None:
        self._known = buffer.packets
        self._new: dict[int, PacketRecord] = {}
        self._lost = False
        self._arrivals = buffer.state.arrivals

    def lose(self) -> None:
        self._lost = True
        self._known = PacketRecords()
        self._new = {}

    def is_resend(self, message: Message) -> bool:
        """Whether the message has been taken already; else it is noted as taken.

        The identifier alone is not enough: a message that was sent under a reused identifier and not yet committed when
        we were killed comes back with DUP too. It differs in content, or came too late to be a resend.
        """
        if message.qos == 0 or message.packet_id is None:
            return False
        digest = hashlib.blake2b(message.topic.encode() + b"\0" + message.payload, digest_size=8).digest()
        if message.duplicate:
            record = self._new.get(message.packet_id) or self._known.get(message.packet_id)
            if record is not None and record.digest == digest and self._arrivals - record.arrival < _RESEND_WINDOW:
                return True
        self._arrivals += 1
        self._new[message.packet_id] = PacketRecord(self._arrivals, digest)
        return False

    def write(self, batch: Batch) -> None:
        batch.session_lost = self._lost
        batch.packets = self._new
        batch.arrivals = self._arrivals


def intake_of(state_intake: dict[str, dict[str, int]]) -> dict[str, object]:
    """The intake book as status() shows it."""
    shown: dict[str, object] = {
        term: sum(state_intake.get(term, {}).values()) for term in ("received", "logged", "duplicate")
    }
    return shown | {term: dict(state_intake.get(term, {})) for term in ("refused", "quarantined", "filtered")}
