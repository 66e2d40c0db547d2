"""What is stored becomes what the broker knows: at the start, before anybody is let in.

A file that is damaged, or that holds rows nobody can have written, is set aside and salvaged; the broker starts with
what can be read, and what was left out is counted.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from lockgate.broker.ports import Keeper, Message, StoredQueue, StoredSession, StoredSubscription, StoredWill
from lockgate.sqlite import Damage, open_database
from lockgate.sqlite.bulk import Statement, execute_rows
from lockgate.sqlite.database import CHECK_LIMIT_BYTES, FAILURES, is_damage, salvage, text_or_bytes, told
from lockgate.storage.changes import POSITION_BITS
from lockgate.storage.clock import ClockRow, MomentSource, StoreClock
from lockgate.storage.rows import (
    CLOCK_COLUMNS,
    HIGHEST_NUMBER,
    HIGHEST_TIME,
    SESSION_COLUMNS,
    SUBSCRIPTION_COLUMNS,
    WILL_COLUMNS,
    UnusableRow,
    read_clock_row,
    read_delivery,
    read_message,
    read_received,
    read_session,
    read_subscription,
    read_will,
)
from lockgate.storage.schema import MESSAGE_COLUMNS, SCHEMA
from lockgate.storage.statements import IN_FLIGHT, remove_unusable

log = logging.getLogger(__name__)

_TELL_SECONDS: Final = 1.0  # between lines that say how far it is
_POSITION: Final = (1 << POSITION_BITS) - 1
_HIGHEST_MESSAGE_ID: Final = 1 << 62
_MOST_BYTES: Final = 1 << 28  # of a message
_NAMED: Final = ("sessions", "subscriptions", "retained", "wills")  # rows are found by their names
_QUEUES: Final = f"""
    SELECT id >> {POSITION_BITS}, count(*) FILTER (WHERE packet_id = 0),
        sum(size) FILTER (WHERE packet_id = 0 AND size BETWEEN 0 AND {_MOST_BYTES}),
        min(id) FILTER (WHERE packet_id = 0), max(id)
    FROM deliveries GROUP BY id >> {POSITION_BITS}
"""


@dataclass(slots=True)
class Summary:
    """How much was restored."""

    sessions: int = 0
    subscriptions: int = 0
    messages: int = 0  # queued or in flight, for one Session each
    received: int = 0
    retained: int = 0
    wills: int = 0
    expired: int = 0  # because nobody knows how long the machine was off
    seconds: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)  # rows that cannot be used, by table


@dataclass(slots=True)
class _Session:
    client_id: str
    stored: StoredSession
    subscriptions: list[tuple[str, StoredSubscription]] = field(default_factory=list)
    received: dict[int, Message] = field(default_factory=dict)
    queue: StoredQueue = field(default_factory=StoredQueue)
    packet_ids: set[int] = field(default_factory=set)  # of those in flight


class Stored:
    """Everything a store holds but the queues' messages, read and then handed over."""

    def __init__(self, clock: StoreClock) -> None:
        self.clock = clock
        self.summary = Summary()
        self.numbers: dict[str, int] = {}  # of Sessions, by client id
        self.next_number = 1
        self.next_message_id = 0
        self.orphans: list[int] = []  # numbers of Sessions that have ended and left deliveries
        self.retained: dict[str, Message] = {}
        self.finding = ""  # about the first row that cannot be used
        self._unusable: dict[str, list[int]] = {}  # rowids, by table
        self._sessions: dict[int, _Session] = {}
        self._wills: dict[str, StoredWill] = {}
        self._told = time.monotonic()

    def hand_over(self, keeper: Keeper) -> Summary:
        """Give everything to its keeper, once."""
        for session in self._sessions.values():
            keeper.restore_session(
                session.client_id, session.stored, session.subscriptions, session.received, session.queue
            )
        for message in self.retained.values():
            keeper.restore_retained(message)
        for client_id, will in self._wills.items():
            keeper.restore_will(client_id, will)
        return self.summary

    def read(self, connection: sqlite3.Connection) -> None:
        """Read everything. Raises sqlite3.Error, and UnicodeDecodeError for a damaged file."""
        started = time.monotonic()
        connection.text_factory = text_or_bytes
        if self.clock.off_seconds is None:
            self.summary.expired = _expire_all(connection)
        self._take(connection, "sessions", SESSION_COLUMNS, self._take_session)
        self._take(connection, "subscriptions", SUBSCRIPTION_COLUMNS, self._take_subscription)
        self._take(connection, "received", MESSAGE_COLUMNS, self._take_received)
        self._take_queues(connection)
        self._take_all("deliveries", connection.execute(IN_FLIGHT), self._take_in_flight)
        self._take(connection, "retained", MESSAGE_COLUMNS, self._take_retained)
        self._take(connection, "wills", WILL_COLUMNS, self._take_will)
        self._find_numbers(connection)
        self._compare_indexes(connection)
        self.summary.seconds = time.monotonic() - started

    def remove_unusable(self, connection: sqlite3.Connection) -> None:
        """Remove the rows that cannot be used, deliveries without message and messages without delivery."""
        connection.execute("BEGIN IMMEDIATE")
        deliveries = self._unusable.pop("deliveries", [])
        for table, rowids in self._unusable.items():
            execute_rows(connection, Statement(f"DELETE FROM {table} WHERE rowid IN (", "?", ")"), rowids)
        remove_unusable(connection, deliveries)
        lost = connection.execute("DELETE FROM deliveries WHERE message NOT IN (SELECT id FROM messages)").rowcount
        connection.execute("COMMIT")
        if lost:
            self.summary.left_out["deliveries"] += lost

    def _take(
        self, connection: sqlite3.Connection, table: str, columns: str, take: Callable[[Sequence[Any]], None]
    ) -> None:
        # Not by an index: a damaged one must not hide rows.
        rows = connection.execute(f"SELECT rowid, {columns} FROM {table} NOT INDEXED ORDER BY rowid")
        self._take_all(table, rows, take)

    def _take_all(self, table: str, rows: sqlite3.Cursor, take: Callable[[Sequence[Any]], None]) -> None:
        for count, row in enumerate(rows, 1):
            try:
                take(row)
            except UnusableRow as error:
                self._unusable.setdefault(table, []).append(row[0])
                self.summary.left_out[table] += 1
                self.finding = self.finding or f"table {table}, row {row[0]}: {error}"
            if time.monotonic() - self._told > _TELL_SECONDS:
                self._told = time.monotonic()
                log.info("restoring %s: %d rows so far", table, count)

    def _take_session(self, row: Sequence[Any]) -> None:
        number, client_id, stored = read_session(row, self.clock)
        if client_id in self.numbers:
            raise UnusableRow("a Client Identifier twice")
        self.numbers[client_id] = number
        self._sessions[number] = _Session(client_id, stored)
        self.summary.sessions += 1

    def _take_subscription(self, row: Sequence[Any]) -> None:
        number, topic_filter, options = read_subscription(row[1:])
        self._session(number).subscriptions.append((topic_filter, options))
        self.summary.subscriptions += 1

    def _take_received(self, row: Sequence[Any]) -> None:
        number, packet_id, message = read_received(row, self.clock)
        self._session(number).received[packet_id] = message
        self.summary.received += 1

    def _take_queues(self, connection: sqlite3.Connection) -> None:
        for number, count, size, first, last in connection.execute(_QUEUES):
            session = self._sessions.get(number)
            if session is not None:
                queue = session.queue
                queue.count = count
                queue.size_bytes = int(size or 0)
                queue.last_position = last & _POSITION
                queue.head_position = (first & _POSITION) - 1 if first is not None else queue.last_position
                self.summary.messages += count

    def _take_in_flight(self, row: Sequence[Any]) -> None:
        session = self._sessions.get(row[0] >> POSITION_BITS)
        if session is None:
            return  # it has ended
        delivery = read_delivery(row, self.clock)
        if delivery.packet_id in session.packet_ids:
            raise UnusableRow("a Packet Identifier twice")
        session.packet_ids.add(delivery.packet_id)
        session.queue.in_flight.append(delivery)
        self.summary.messages += 1

    def _take_retained(self, row: Sequence[Any]) -> None:
        message = read_message(row[1:], self.clock)
        if message.topic in self.retained:
            raise UnusableRow("a topic twice")
        self.retained[message.topic] = message
        self.summary.retained += 1

    def _take_will(self, row: Sequence[Any]) -> None:
        client_id, will = read_will(row[1:], self.clock)
        if client_id in self._wills:
            raise UnusableRow("a Client Identifier twice")
        self._wills[client_id] = will
        self.summary.wills += 1

    def _session(self, number: object) -> _Session:
        session = self._sessions.get(number) if isinstance(number, int) else None
        if session is None:
            raise UnusableRow("of a Session that does not exist")
        return session

    def _compare_indexes(self, connection: sqlite3.Connection) -> None:
        """With an index that contradicts its table a row could not be changed by its name, and nobody would notice."""
        for table in _NAMED:
            for (found,) in connection.execute(f"PRAGMA integrity_check({table})"):
                if found != "ok":
                    self.finding = self.finding or f"table {table}: {found}"

    def _find_numbers(self, connection: sqlite3.Connection) -> None:
        used = set(self._sessions)
        at = 0
        while at <= HIGHEST_NUMBER:  # from Session to Session, without a look at all their deliveries
            row = connection.execute("SELECT min(id) FROM deliveries WHERE id >= ?", (at << POSITION_BITS,)).fetchone()
            if row[0] is None:
                break
            number = row[0] >> POSITION_BITS
            if number not in used:
                self.orphans.append(number)
            at = number + 1
        self.next_number = _first_free({0, *used, *self.orphans})
        found = connection.execute("SELECT max(id) FROM messages WHERE id < ?", (_HIGHEST_MESSAGE_ID,)).fetchone()
        self.next_message_id = max(0, found[0] or 0)


def open_stored(
    path: Path, source: MomentSource, *, check_limit_bytes: int = CHECK_LIMIT_BYTES, thorough: bool = False
) -> tuple[Stored, Damage | None]:
    """Open the store's file, salvage it where that is needed, and read what it holds; options of `open_database`.

    Raises NewerFile, and sqlite3.Error where the disk does not let us.
    """
    connection, damage = open_database(path, SCHEMA, check_limit_bytes=check_limit_bytes, thorough=thorough)
    stored: Stored | None = None
    finding = ""
    with contextlib.closing(connection):
        try:
            stored = read_stored(connection, source)
            finding = stored.finding
        except FAILURES as error:
            if not is_damage(error):
                raise
            finding = told(error)
    # What nobody wrote is evidence: the file is kept as it is, and in the new one the indexes are made anew.
    if finding and damage is None:
        damage = salvage(path, SCHEMA, finding)
    if stored is None or damage is not None:
        connection, _ = open_database(path, SCHEMA, check_limit_bytes=0)
        with contextlib.closing(connection):
            stored = read_stored(connection, source)
            stored.remove_unusable(connection)
    if stored.summary.left_out:
        log.error("%s: left out what cannot be read, rows by table: %s", path, dict(stored.summary.left_out))
    return stored, damage


def read_stored(connection: sqlite3.Connection, source: MomentSource) -> Stored:
    """Read what an open file holds. Raises sqlite3.Error, and UnicodeDecodeError for a damaged file."""
    stored = Stored(StoreClock(source, read_clock(connection)))
    stored.read(connection)
    return stored


def read_clock(connection: sqlite3.Connection) -> ClockRow | None:
    """Give the instant that was noted last, None in a new store.

    Where the note is damaged, an instant on no known boot takes its place: nobody knows how long the machine was off.
    """
    connection.text_factory = text_or_bytes
    row = connection.execute(f"SELECT {CLOCK_COLUMNS} FROM clock").fetchone()
    if row is not None:
        with contextlib.suppress(UnusableRow):
            return read_clock_row(row)
    elif not any(connection.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0] for table in SCHEMA.tables):
        return None
    latest = 1.0
    for table in ("messages", "received", "retained", "wills"):
        found = connection.execute(
            f"SELECT max(arrived_at) FROM {table} WHERE arrived_at BETWEEN 0 AND {HIGHEST_TIME}"
        ).fetchone()
        latest = max(latest, found[0] or 0.0)
    return ClockRow(latest, 0.0, "", 0.0, False)


def _first_free(used: set[int]) -> int:
    """Give the number behind the last one, or at the beginning of the widest gap when few are left."""
    last = max(used)
    if last < HIGHEST_NUMBER // 2:
        return last + 1
    numbers = [*sorted(used), HIGHEST_NUMBER + 1]
    return max((after - number, number) for number, after in pairwise(numbers))[1] + 1


def _expire_all(connection: sqlite3.Connection) -> int:
    """Remove queued messages with an expiry (§3.5); what was sent stays, its identifier is known to the client."""
    connection.execute("BEGIN IMMEDIATE")
    count = connection.execute(
        "DELETE FROM deliveries WHERE packet_id = 0 AND message IN (SELECT id FROM messages WHERE expires_at != 0)"
    ).rowcount
    count += connection.execute("DELETE FROM received WHERE expires_at != 0").rowcount
    connection.execute("COMMIT")
    return count
