"""What is stored becomes what the broker knows: at the start, before anybody is let in."""

from __future__ import annotations

import logging
import sqlite3
import time
from dataclasses import dataclass, field
from typing import Final

from lockgate.broker.ports import NEVER, Keeper, Message, StoredQueue, StoredSession, StoredSubscription, StoredWill
from lockgate.storage.clock import ClockRow, StoreClock
from lockgate.storage.schema import MESSAGE_COLUMNS, PACKET_ID_BITS, POSITION_BITS
from lockgate.storage.statements import IN_FLIGHT, read_delivery, read_message

log = logging.getLogger(__name__)

_TELL_SECONDS: Final = 1.0  # between lines that say how far it is
_POSITION: Final = (1 << POSITION_BITS) - 1
_PACKET_ID: Final = (1 << PACKET_ID_BITS) - 1
_QUEUES: Final = f"""
    SELECT id >> {POSITION_BITS}, count(*) FILTER (WHERE packet_id = 0), sum(size) FILTER (WHERE packet_id = 0),
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


@dataclass(slots=True)
class _Session:
    client_id: str
    stored: StoredSession
    subscriptions: list[tuple[str, StoredSubscription]] = field(default_factory=list)
    received: dict[int, Message] = field(default_factory=dict)
    queue: StoredQueue = field(default_factory=StoredQueue)


def read_clock(connection: sqlite3.Connection) -> ClockRow | None:
    """Give the instant that was noted last."""
    row = connection.execute("SELECT store_time, boottime, boot_id, wall_time, clock_ok FROM clock").fetchone()
    return ClockRow(row[0], row[1], row[2], row[3], bool(row[4])) if row is not None else None


def read_numbers(connection: sqlite3.Connection, damaged: bool) -> tuple[dict[str, int], int, int, list[int]]:
    """Give the Sessions' numbers, the next free ones for a Session and a message, and Sessions that left deliveries.

    After damage messages may lack their deliveries or the reverse: such rows are removed.
    """
    if damaged:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM deliveries WHERE message NOT IN (SELECT id FROM messages)")
        connection.execute("DELETE FROM messages WHERE id NOT IN (SELECT message FROM deliveries)")
        connection.execute("COMMIT")
    numbers: dict[str, int] = dict(connection.execute("SELECT client_id, number FROM sessions"))
    used = set(numbers.values())
    orphans: list[int] = []
    at = 0
    while True:  # from Session to Session, without a look at all their deliveries
        row = connection.execute("SELECT min(id) FROM deliveries WHERE id >= ?", (at << POSITION_BITS,)).fetchone()
        if row[0] is None:
            break
        number = row[0] >> POSITION_BITS
        if number not in used:
            orphans.append(number)
        at = number + 1
    next_number = max([0, *used, *orphans]) + 1
    next_message_id = connection.execute("SELECT coalesce(max(id), 0) FROM messages").fetchone()[0]
    return numbers, next_number, next_message_id, orphans


def restore(connection: sqlite3.Connection, clock: StoreClock, keeper: Keeper) -> Summary:
    """Read everything but the queues' messages and hand it to its keeper. Raises sqlite3.Error."""
    started = told = time.monotonic()
    summary = Summary()
    if clock.off_seconds is None:
        summary.expired = _expire_all(connection)
    sessions = _read_sessions(connection, clock, summary)
    for session in sessions.values():
        keeper.restore_session(
            session.client_id, session.stored, session.subscriptions, session.received, session.queue
        )
        summary.sessions += 1
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            log.info("restored %d of %d sessions", summary.sessions, len(sessions))
    for row in connection.execute(f"SELECT {MESSAGE_COLUMNS} FROM retained"):
        keeper.restore_retained(read_message(row, clock))
        summary.retained += 1
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            log.info("restored %d retained messages", summary.retained)
    for row in connection.execute(f"SELECT client_id, delay, keep_alive, due_at, {MESSAGE_COLUMNS} FROM wills"):
        client_id, delay, keep_alive, due_at = row[:4]
        will = StoredWill(read_message(row[4:], clock), delay, keep_alive, clock.from_store(due_at))
        keeper.restore_will(client_id, will)
        summary.wills += 1
    summary.seconds = time.monotonic() - started
    return summary


def _expire_all(connection: sqlite3.Connection) -> int:
    """Remove queued messages with an expiry (§3.5); what was sent stays, its identifier is known to the client."""
    connection.execute("BEGIN IMMEDIATE")
    count = connection.execute(
        "DELETE FROM deliveries WHERE packet_id = 0 AND message IN (SELECT id FROM messages WHERE expires_at != 0)"
    ).rowcount
    count += connection.execute("DELETE FROM received WHERE expires_at != 0").rowcount
    connection.execute("COMMIT")
    return count


def _read_sessions(connection: sqlite3.Connection, clock: StoreClock, summary: Summary) -> dict[int, _Session]:
    sessions: dict[int, _Session] = {}
    for number, client_id, username, interval, expires_at in connection.execute(
        "SELECT number, client_id, username, expiry_interval, expires_at FROM sessions"
    ):
        at = clock.from_store(expires_at) if expires_at else NEVER
        sessions[number] = _Session(client_id, StoredSession(interval, at, username))
    for number, topic_filter, qos, no_local, as_published, identifier in connection.execute(
        "SELECT session, topic_filter, qos, no_local, retain_as_published, identifier FROM subscriptions ORDER BY id"
    ):
        if number in sessions:
            options = StoredSubscription(qos, bool(no_local), bool(as_published), identifier)
            sessions[number].subscriptions.append((topic_filter, options))
            summary.subscriptions += 1
    for row in connection.execute(f"SELECT id, {MESSAGE_COLUMNS} FROM received ORDER BY id"):
        number = row[0] >> PACKET_ID_BITS
        if number in sessions:
            sessions[number].received[row[0] & _PACKET_ID] = read_message(row[1:], clock)
            summary.received += 1
    for number, count, size, first, last in connection.execute(_QUEUES):
        if number in sessions:
            queue = sessions[number].queue
            queue.count = count
            queue.size_bytes = size or 0
            queue.last_position = last & _POSITION
            queue.head_position = (first & _POSITION) - 1 if first is not None else queue.last_position
            summary.messages += count
    for row in connection.execute(IN_FLIGHT):
        number = row[0] >> POSITION_BITS
        if number in sessions:
            sessions[number].queue.in_flight.append(read_delivery(row, clock))
            summary.messages += 1
    return sessions
