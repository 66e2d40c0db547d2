"""What is asked of the store's file: how a Batch is written, how a queue is read."""

from __future__ import annotations

import logging
import sqlite3
from typing import Final

from lockgate.broker.ports import Delivery
from lockgate.sqlite.bulk import Statement, execute_rows
from lockgate.sqlite.database import text_or_bytes
from lockgate.storage.changes import PACKET_ID_BITS, POSITION_BITS, Batch
from lockgate.storage.clock import ClockRow, StoreClock
from lockgate.storage.rows import (
    DELIVERY_COLUMNS,
    SESSION_COLUMNS,
    SUBSCRIPTION_COLUMNS,
    WILL_COLUMNS,
    UnusableRow,
    read_delivery,
)
from lockgate.storage.schema import MESSAGE_COLUMNS

log = logging.getLogger(__name__)


def _insert(table: str, key: str, columns: str) -> Statement:
    """Insert rows, or change those that have a key already: their other indexes stay as they are."""
    names = columns.split(", ")
    changed = ", ".join(f"{name} = excluded.{name}" for name in names if name not in key.split(", "))
    row = f"({', '.join('?' * len(names))})"
    return Statement(f"INSERT INTO {table} ({columns}) VALUES ", row, f" ON CONFLICT ({key}) DO UPDATE SET {changed}")


def _of(table: str, columns: str) -> str:
    return ", ".join(f"{table}.{column}" for column in columns.split(", "))


# In the order in which they are run: what ended makes room for what has the same name.
STATEMENTS: Final = {
    "sessions": _insert("sessions", "number", f"number, {SESSION_COLUMNS}"),
    "unsubscribe": Statement("DELETE FROM subscriptions WHERE (session, topic_filter) IN (VALUES ", "(?, ?)", ")"),
    "subscriptions": _insert("subscriptions", "session, topic_filter", SUBSCRIPTION_COLUMNS),
    "released": Statement("DELETE FROM received WHERE id IN (", "?", ")"),
    "received": _insert("received", "id", f"id, {MESSAGE_COLUMNS}"),
    "not retained": Statement("DELETE FROM retained WHERE topic IN (", "?", ")"),
    "retained": _insert("retained", "topic", MESSAGE_COLUMNS),
    "no wills": Statement("DELETE FROM wills WHERE client_id IN (", "?", ")"),
    "wills": _insert("wills", "client_id", WILL_COLUMNS),
    "messages": _insert("messages", "id", f"id, {MESSAGE_COLUMNS}"),
    "deliveries": _insert("deliveries", "id", f"id, {DELIVERY_COLUMNS}"),
    "flights": Statement(
        "UPDATE deliveries SET packet_id = flight.column2, state = flight.column3 FROM (VALUES ",
        "(?, ?, ?)",
        ") AS flight WHERE deliveries.id = flight.column1",
    ),
    "delivered": Statement("DELETE FROM deliveries WHERE id IN (", "?", ")"),
}
DELIVERY_WIDTH: Final = STATEMENTS["deliveries"].row.count("?")  # values of a row; the first one is its id
_APART: Final = Statement("UPDATE deliveries SET message = -1 WHERE id IN (", "?", ")")  # no trigger follows it then
_END_SESSIONS: Final = (
    Statement("DELETE FROM sessions WHERE number IN (", "?", ")"),
    Statement("DELETE FROM subscriptions WHERE session IN (", "?", ")"),
    Statement(f"DELETE FROM received WHERE id >> {PACKET_ID_BITS} IN (", "?", ")"),
)
# Its deliveries, a piece at a time: there may be a million, and others wait for the next commit.
_PURGE: Final = """
    DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE id >= ? AND id < ? ORDER BY id LIMIT ?)
"""
# The message of a delivery may be missing where the file was damaged.
DELIVERIES: Final = f"""
    SELECT deliveries.id, {_of("deliveries", DELIVERY_COLUMNS)}, {_of("messages", MESSAGE_COLUMNS)}
    FROM deliveries LEFT JOIN messages ON messages.id = deliveries.message
"""
# What has a Packet Identifier is in the core already, wherever it stands in the queue: it would be sent twice.
_WANTED: Final = f"""
    {DELIVERIES} WHERE deliveries.id > ? AND deliveries.id < ? AND packet_id = 0 ORDER BY deliveries.id LIMIT ?
"""
IN_FLIGHT: Final = f"{DELIVERIES} WHERE packet_id != 0 ORDER BY deliveries.id"


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


def wanted(
    connection: sqlite3.Connection, number: int, after: int, limit: int, clock: StoreClock
) -> tuple[list[Delivery], list[int]]:
    """Read deliveries of a queue behind a position; rows that are of no use are removed, and given apart."""
    connection.text_factory = text_or_bytes
    first = number << POSITION_BITS
    at, end = first + after, first + (1 << POSITION_BITS)
    found: list[Delivery] = []
    unusable: list[int] = []
    while len(found) < limit:
        rows = connection.execute(_WANTED, (at, end, limit - len(found))).fetchall()
        asked = limit - len(found)
        for row in rows:
            try:
                found.append(read_delivery(row, clock))
            except UnusableRow as error:
                if not unusable:
                    log.error("messages that waited in the store are damaged, first row %d: %s", row[0], error)
                unusable.append(row[0])
        if len(rows) < asked:
            break
        at = rows[-1][0]
    if unusable:
        remove_unusable(connection, unusable)
    return found, unusable


def remove_unusable(connection: sqlite3.Connection, rowids: list[int]) -> None:
    """Remove deliveries that nobody wrote so, and messages that are left without any.

    Not by what they say of their messages: others may be waiting for those.
    """
    execute_rows(connection, _APART, rowids)
    execute_rows(connection, STATEMENTS["delivered"], rowids)
    connection.execute("DELETE FROM messages WHERE id NOT IN (SELECT message FROM deliveries)")
