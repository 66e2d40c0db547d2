"""How a Batch is written, and how rows become what the broker knows again."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from lockgate.broker.ports import Delivery, Message
from lockgate.mqtt.packets import PUBLISH
from lockgate.mqtt.properties import decode_properties
from lockgate.sqlite.bulk import Statement, execute_rows
from lockgate.storage.changes import Batch
from lockgate.storage.clock import ClockRow, StoreClock
from lockgate.storage.schema import MESSAGE_COLUMNS, PACKET_ID_BITS, POSITION_BITS


def _insert(table: str, key: str, columns: str) -> Statement:
    """Insert rows, or change those that have a key already: their other indexes stay as they are."""
    names = columns.split(", ")
    changed = ", ".join(f"{name} = excluded.{name}" for name in names if name not in key.split(", "))
    row = f"({', '.join('?' * len(names))})"
    return Statement(f"INSERT INTO {table} ({columns}) VALUES ", row, f" ON CONFLICT ({key}) DO UPDATE SET {changed}")


# In the order in which they are run: what ended makes room for what has the same name.
STATEMENTS: Final = {
    "sessions": _insert("sessions", "number", "number, client_id, username, expiry_interval, expires_at"),
    "unsubscribe": Statement("DELETE FROM subscriptions WHERE (session, topic_filter) IN (VALUES ", "(?, ?)", ")"),
    "subscriptions": _insert(
        "subscriptions",
        "session, topic_filter",
        "session, topic_filter, qos, no_local, retain_as_published, identifier",
    ),
    "released": Statement("DELETE FROM received WHERE id IN (", "?", ")"),
    "received": _insert("received", "id", f"id, {MESSAGE_COLUMNS}"),
    "not retained": Statement("DELETE FROM retained WHERE topic IN (", "?", ")"),
    "retained": _insert("retained", "topic", MESSAGE_COLUMNS),
    "no wills": Statement("DELETE FROM wills WHERE client_id IN (", "?", ")"),
    "wills": _insert("wills", "client_id", f"client_id, delay, keep_alive, due_at, {MESSAGE_COLUMNS}"),
    "messages": _insert("messages", "id", f"id, {MESSAGE_COLUMNS}"),
    "deliveries": _insert(
        "deliveries", "id", "id, message, shared, size, qos, retain, identifier, share, packet_id, state"
    ),
    "flights": Statement(
        "UPDATE deliveries SET packet_id = flight.column2, state = flight.column3 FROM (VALUES ",
        "(?, ?, ?)",
        ") AS flight WHERE deliveries.id = flight.column1",
    ),
    "delivered": Statement("DELETE FROM deliveries WHERE id IN (", "?", ")"),
}
_END_SESSIONS: Final = (
    Statement("DELETE FROM sessions WHERE number IN (", "?", ")"),
    Statement("DELETE FROM subscriptions WHERE session IN (", "?", ")"),
    Statement(f"DELETE FROM received WHERE id >> {PACKET_ID_BITS} IN (", "?", ")"),
)
# Its deliveries, a piece at a time: there may be a million, and others wait for the next commit.
_PURGE: Final = """
    DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE id >= ? AND id < ? ORDER BY id LIMIT ?)
"""
_WANTED: Final = """
    SELECT deliveries.id, deliveries.qos, deliveries.retain, identifier, share, packet_id, state, message,
        topic, payload, properties, messages.qos, messages.retain, expires_at, arrived_at, publisher
    FROM deliveries JOIN messages ON messages.id = message
    WHERE deliveries.id > ? AND deliveries.id < ? ORDER BY deliveries.id LIMIT ?
"""
IN_FLIGHT: Final = _WANTED.replace(
    "WHERE deliveries.id > ? AND deliveries.id < ? ORDER BY deliveries.id LIMIT ?",
    "WHERE packet_id != 0 ORDER BY deliveries.id",
)


def write(connection: sqlite3.Connection, batch: Batch) -> None:
    """Write a Batch within the transaction that is open; writing it again changes nothing. Raises sqlite3.Error."""
    ended = batch.values.get("end sessions")
    if ended:
        for statement in _END_SESSIONS:
            execute_rows(connection, statement, ended)
    for name, statement in STATEMENTS.items():
        values = batch.values[name]
        if values:
            execute_rows(connection, statement, values)


def note_clock(connection: sqlite3.Connection, row: ClockRow) -> None:
    """Write the one row of the clock."""
    connection.execute("INSERT OR REPLACE INTO clock VALUES (1, ?, ?, ?, ?, ?)", row)


def purge(connection: sqlite3.Connection, number: int, limit: int) -> bool:
    """Remove deliveries of a Session that ended; say whether that was all."""
    first = number << POSITION_BITS
    return connection.execute(_PURGE, (first, first + (1 << POSITION_BITS), limit)).rowcount < limit


def wanted(connection: sqlite3.Connection, number: int, after: int, limit: int) -> list[Sequence[Any]]:
    """Read rows of a queue behind a position, for `read_delivery`."""
    first = number << POSITION_BITS
    return connection.execute(_WANTED, (first + after, first + (1 << POSITION_BITS), limit)).fetchall()


def read_delivery(row: Sequence[Any], clock: StoreClock) -> Delivery:
    """Make a Delivery of a row."""
    number, qos, retain, identifier, share, packet_id, state, stored_message = row[:8]
    position = number & (1 << POSITION_BITS) - 1
    delivery = Delivery(read_message(row[8:], clock), qos, bool(retain), identifier, position, share)
    delivery.packet_id = packet_id
    delivery.state = state
    delivery.stored_message = stored_message
    return delivery


def read_message(row: Sequence[Any], clock: StoreClock) -> Message:
    """Make a Message of the columns of one."""
    topic, payload, encoded, qos, retain, expires_at, arrived_at, publisher = row
    properties = decode_properties(encoded, 0, len(encoded), 1 << PUBLISH)[0] if encoded is not None else None
    expires_at = clock.from_store(expires_at)
    message = Message(topic, payload, qos, bool(retain), properties, expires_at, publisher)
    message.arrived_at = clock.from_store(arrived_at)
    return message
