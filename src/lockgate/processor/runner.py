"""Messages in, one commit out: resends, schemas, rules and windows."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from typing import Final, Protocol

from lockgate.buffer import Batch, Entry, Log, LogReader, PacketRecord, PacketRecords, Quarantined
from lockgate.buffer.log import WINDOW_INPUT
from lockgate.config.model import BufferConfig, ProcessorConfig
from lockgate.processor.rules import Rules, WindowKey, WindowRule, parameters_of
from lockgate.processor.sandbox import RuleError
from lockgate.processor.schemas import NotAccepted, Schema, Schemas, Value

log = logging.getLogger(__name__)

NO_RULE: Final = "(no rule)"  # under this name messages are counted filtered whose schema no rule reads
_READ_ROWS: Final = 1000
_TURN_SECONDS: Final = 0.2  # of rules in one go, and what the last of them takes
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

    def __init__(self, config: ProcessorConfig, buffer: BufferConfig) -> None:
        self.schemas = Schemas(config.schemas)
        self.rules = Rules(config.rules, self.schemas, buffer.classes)
        self.filter_names = {
            name: "+".join(rule.name for rule in rules) or NO_RULE for name, rules in self.rules.by_message.items()
        }


class Runner:
    """Turns messages into commits of the log; its calls must not overlap."""

    def __init__(self, config: ProcessorConfig, book: Rulebook, buffer: Log, reader: LogReader) -> None:
        self._schemas = book.schemas
        self._rules = book.rules
        self._filter_names = book.filter_names
        self._buffer = buffer
        self._reader = reader

    async def start(self) -> None:
        """Fill the windows from the log, and settle those that ended while nobody ran."""
        await self._match_cursors()
        for rule in self._rules.windows:
            await self._fill(rule)
        await self.close_windows()

    async def process(self, messages: Sequence[Message | SessionLost]) -> int:
        """Commit what these messages give rise to; gives how many, from the first on, that was.

        Those may be acknowledged then, duplicates too. It is less than all where the rules are slow: the loop has
        others to serve.
        """
        batch = Batch(moment=self._buffer.clock.now())
        for rule in self._rules.windows:
            if rule.open is not None and rule.open != rule.key(batch.moment.boot_id, batch.moment.boottime_ns):
                self._settle(rule, batch)
        settled = dict(batch.rule_cursors)
        received_at = batch.moment.wall_ns // 1_000_000
        inputs: list[tuple[int, Schema, list[Value]]] = []  # place among the entries
        session = _Session(self._buffer)
        give_up = time.monotonic() + _TURN_SECONDS
        taken = 0
        for message in messages:
            if taken and time.monotonic() > give_up:
                break
            taken += 1
            if isinstance(message, SessionLost):
                session.lose()
                continue
            batch.intake["received", ""] += 1
            if session.is_resend(message):
                batch.intake["duplicate", ""] += 1
            else:
                self._take(message, received_at, batch, inputs)
        session.write(batch)
        first_seq = await self._buffer.append(batch)
        for rule in self._rules.windows:
            if rule.name in settled:
                rule.clear()
        boot_id, boottime_ns = batch.moment.boot_id, batch.moment.boottime_ns
        for place, schema, values in inputs:
            for rule in self._rules.by_window[schema.name]:
                rule.add(rule.key(boot_id, boottime_ns), first_seq + place, values)
        return taken

    async def close_windows(self) -> None:
        """Settle the windows that are over."""
        batch = Batch(moment=self._buffer.clock.now())
        over = [
            r
            for r in self._rules.windows
            if r.open not in (None, r.key(batch.moment.boot_id, batch.moment.boottime_ns))
        ]
        if over:
            await self._close(over, batch)

    def seconds_to_window_end(self) -> float | None:
        """Until the next open window is over, None without one."""
        ends = [end for rule in self._rules.windows if (end := rule.end_ns()) is not None]
        if not ends:
            return None
        return max(0.0, (min(ends) - self._buffer.clock.now().boottime_ns) / 1e9)

    def status(self) -> dict[str, object]:
        return {
            rule.name: rule.status() | ({"window_messages": rule.messages} if isinstance(rule, WindowRule) else {})
            for rule in self._rules.all()
        }

    def _take(
        self, message: Message, received_at: int, batch: Batch, inputs: list[tuple[int, Schema, list[Value]]]
    ) -> None:
        """Decide what becomes of one message, and count it once."""
        schema = self._schemas.of(message.topic)
        if schema is None:
            batch.intake["refused", "no schema"] += 1
            return
        try:
            values = schema.decode(message.payload)
        except NotAccepted as error:
            batch.intake["quarantined", error.reason] += 1
            batch.quarantined.append(
                Quarantined(message.topic, schema.name, error.reason, error.detail, message.payload)
            )
            return
        values += (message.topic, received_at)
        made = len(batch.entries)
        failed: RuleError | None = None
        rules = self._rules.by_message[schema.name]
        if rules:
            parameters = parameters_of(schema, values)
            for rule in rules:
                try:
                    batch.entries += rule.evaluate(parameters)
                except RuleError as error:
                    reason = f"rule {rule.name}: {error.reason}"
                    batch.quarantined.append(
                        Quarantined(message.topic, schema.name, reason, error.detail, message.payload)
                    )
                    if failed is None:
                        batch.intake["quarantined", reason] += 1
                    failed = error
        if self._rules.by_window[schema.name]:
            inputs.append((len(batch.entries), schema, values))
            batch.entries.append(Entry(message.topic, WINDOW_INPUT, schema.name, message.payload))
        if failed is not None:
            return  # counted; what the other rules made of it goes on
        if len(batch.entries) > made:
            batch.intake["logged", ""] += 1
        else:
            batch.intake["filtered", self._filter_names[schema.name]] += 1

    def _settle(self, rule: WindowRule, batch: Batch) -> None:
        """Put the outcome of the open window into the batch. The caller clears the rule once that is committed."""
        moment = batch.moment
        end_ms: int | None = None
        end_ns = rule.end_ns()
        if rule.open is not None and end_ns is not None and rule.open.boot_id == moment.boot_id:
            end_ms = (moment.wall_ns - (moment.boottime_ns - end_ns)) // 1_000_000
        try:
            batch.entries += rule.evaluate(end_ms)
        except RuleError as error:
            log.warning("rule %s failed on a window of %d messages: %s", rule.name, rule.messages, error)
            detail = f"{error.detail}; a window of {rule.messages} messages up to seq {rule.last_seq}"
            reason = f"rule {rule.name}: {error.reason}"
            batch.quarantined.append(Quarantined("", rule.schema.name, reason, detail, b""))
        batch.rule_cursors[rule.name] = (rule.schema.name, rule.last_seq)

    async def _close(self, rules: Sequence[WindowRule], batch: Batch) -> None:
        for rule in rules:
            self._settle(rule, batch)
        await self._buffer.append(batch)
        for rule in rules:
            rule.clear()

    async def _match_cursors(self) -> None:
        """Every window rule has a cursor, and nobody else: a new rule begins with the next message."""
        known = self._buffer.state.rule_cursors
        configured = {rule.name: rule for rule in self._rules.windows}
        batch = Batch(moment=self._buffer.clock.now())
        batch.forget_rules = [name for name in known if name not in configured]
        for name, rule in configured.items():
            if name not in known or known[name][0] != rule.schema.name:
                seq = self._buffer.state.next_seq - 1
                batch.rule_cursors[name] = (rule.schema.name, seq)
                log.info("rule %s begins after seq %d", name, seq)
        if batch.forget_rules:
            log.info("rules no longer configured: %s", ", ".join(batch.forget_rules))
        if batch.forget_rules or batch.rule_cursors:
            await self._buffer.append(batch)

    async def _fill(self, rule: WindowRule) -> None:
        after = self._buffer.state.rule_cursors[rule.name][1]
        while rows := self._reader.read(WINDOW_INPUT, after, _READ_ROWS):
            for row in rows:
                if row.schema != rule.schema.name:
                    continue
                key = rule.key(row.boot_id, row.boottime_ns)
                if rule.open not in (None, key):
                    await self._close([rule], Batch(moment=self._buffer.clock.now()))
                self._add_logged(rule, key, row.seq, row.topic, row.wall_ns // 1_000_000, row.payload)
            after = rows[-1].seq

    def _add_logged(
        self, rule: WindowRule, key: WindowKey, seq: int, topic: str, received_at: int, payload: bytes
    ) -> None:
        try:
            values = rule.schema.decode(payload)
        except NotAccepted as error:  # the schema has been changed since
            rule.counts.errors += 1
            rule.counts.last_error = str(error)
            log.warning("rule %s cannot use the logged message %d any more: %s", rule.name, seq, error)
            return
        rule.add(key, seq, [*values, topic, received_at])


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
