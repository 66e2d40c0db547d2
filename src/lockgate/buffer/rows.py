"""What is appended to the log, and what is read from it."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from lockgate.telemetry.clock import Moment


class Row(NamedTuple):
    """One message in the log."""

    seq: int  # strictly increasing over all segments and restarts
    number: int  # counts the rows of its class from 1; a gap shows where damage took rows
    boot_id: str
    boottime_ns: int
    wall_ns: int
    clock_ok: bool
    device_ts: int | None  # what the device or the rule says, Unix milliseconds
    topic: str
    message_class: str
    schema: str
    payload: bytes


class Entry(NamedTuple):
    """A row before it has a place."""

    topic: str
    message_class: str
    schema: str
    payload: bytes
    device_ts: int | None = None


class Quarantined(NamedTuple):
    """A message kept aside with the reason; `reason` is one of a few (it is counted), `detail` is free."""

    topic: str
    schema: str
    reason: str
    detail: str
    payload: bytes


class Kept(NamedTuple):
    """A row of the quarantine."""

    id: int
    wall_ns: int
    message: Quarantined


class PacketRecord(NamedTuple):
    """The last message that came under a Packet Identifier."""

    arrival: int  # counts the messages of the session, from 1
    digest: bytes  # 8 bytes


class PacketRecords:
    """A record for each Packet Identifier that was used: 1 MiB for all 65,535, as tuples they would be 15."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._arrivals = array("Q", bytes(8 * 65_536))
        self._digests = bytearray(8 * 65_536)

    def get(self, packet_id: int) -> PacketRecord | None:
        arrival = self._arrivals[packet_id]
        return PacketRecord(arrival, bytes(self._digests[8 * packet_id : 8 * packet_id + 8])) if arrival else None

    def update(self, records: Iterable[tuple[int, PacketRecord]]) -> None:
        for packet_id, (arrival, digest) in records:
            self._arrivals[packet_id] = arrival
            self._digests[8 * packet_id : 8 * packet_id + 8] = digest


class RuleCursor(NamedTuple):
    """How far a window rule has come in the log, and what it needs of the log to go on from there."""

    schema: str
    needed: int  # rows of the schema after this seq are needed again; purge keeps them
    seq: int = 0  # of the last row that the rule has taken
    boot_id: str = ""  # whose clock `until` is of, for a window by arrival
    until: int | None = None  # the windows up to this time, in nanoseconds, are settled
    shape: str = ""  # what the window was when this was written


class LastValue(NamedTuple):
    """What a topic said last, for rules that ask."""

    topic: str
    schema: str
    received_at: int  # Unix milliseconds
    value: str  # its fields, as a JSON object


@dataclass(slots=True, kw_only=True)
class Batch:
    """Everything that is committed together; `intake` is keyed by term and detail, as (“filtered”, “hot”)."""

    moment: Moment
    entries: list[Entry] = field(default_factory=list)
    intake: Counter[tuple[str, str]] = field(default_factory=Counter)
    quarantined: list[Quarantined] = field(default_factory=list)
    replayed: list[int] = field(default_factory=list)  # of the quarantine: taken out of it
    session_lost: bool = False  # forget all Packet Identifiers stored before this batch
    packets: dict[int, PacketRecord] = field(default_factory=dict)
    arrivals: int | None = None  # how many messages the session has brought, this batch included
    rule_cursors: dict[str, RuleCursor] = field(default_factory=dict)  # by rule
    forget_rules: list[str] = field(default_factory=list)
    last_values: list[LastValue] = field(default_factory=list)  # in the place of those of their topics
    forget_values: list[str] = field(default_factory=list)  # topics; one that is in both stays
