"""The tables of the broker's store.

Each message that waits for somebody is a row of `messages`, however many wait for it: a row of `deliveries` each. What
is delivered takes its message along when nobody else waits for it; only messages with more than one receiver (`shared`)
have to be looked up for that.
"""

from __future__ import annotations

from typing import Final

from lockgate.sqlite import Schema
from lockgate.storage.changes import PACKET_ID_BITS, POSITION_BITS

# A message, in whatever table it lies
MESSAGE_COLUMNS: Final = (
    "topic, payload, properties, qos, retain, expires_at, arrived_at, publisher, publisher_user, checksum"
)
_MESSAGE: Final = """
    topic TEXT NOT NULL, payload BLOB NOT NULL,
    properties BLOB,  -- as in a PUBLISH of version 5, with their length before them
    qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    expires_at REAL NOT NULL,  -- of the store's clock; 0: never
    arrived_at REAL NOT NULL, publisher TEXT NOT NULL, publisher_user TEXT,
    checksum INTEGER  -- of these columns; NULL: written before there were any
"""

SCHEMA: Final = Schema(
    version=2,
    statements=f"""
        CREATE TABLE clock (
            id INTEGER PRIMARY KEY CHECK (id = 1), store_time REAL NOT NULL, boottime REAL NOT NULL,
            boot_id TEXT NOT NULL, wall_time REAL NOT NULL, clock_ok INTEGER NOT NULL
        );
        CREATE TABLE sessions (
            number INTEGER PRIMARY KEY, client_id TEXT NOT NULL UNIQUE, username TEXT,
            expiry_interval INTEGER NOT NULL,  -- seconds; 4294967295: never
            expires_at REAL NOT NULL  -- 0: it was connected, or never
        );
        CREATE TABLE subscriptions (
            id INTEGER PRIMARY KEY, session INTEGER NOT NULL, topic_filter TEXT NOT NULL, qos INTEGER NOT NULL,
            no_local INTEGER NOT NULL, retain_as_published INTEGER NOT NULL, identifier INTEGER NOT NULL,
            UNIQUE (session, topic_filter)
        );
        CREATE TABLE messages (id INTEGER PRIMARY KEY, {_MESSAGE});
        CREATE TABLE deliveries (
            id INTEGER PRIMARY KEY,  -- session << {POSITION_BITS} | position
            message INTEGER NOT NULL, shared INTEGER NOT NULL, size INTEGER NOT NULL, qos INTEGER NOT NULL,
            retain INTEGER NOT NULL, identifier INTEGER NOT NULL, share TEXT NOT NULL,
            packet_id INTEGER NOT NULL,  -- 0: not sent yet
            state INTEGER NOT NULL,
            checksum INTEGER  -- without packet_id and state
        );
        CREATE INDEX shared_deliveries ON deliveries (message) WHERE shared;
        CREATE TRIGGER delivered AFTER DELETE ON deliveries BEGIN
            DELETE FROM messages WHERE id = OLD.message AND (NOT OLD.shared
                OR NOT EXISTS (SELECT 1 FROM deliveries WHERE shared AND message = OLD.message));
        END;
        CREATE TABLE received (
            id INTEGER PRIMARY KEY,  -- session << {PACKET_ID_BITS} | packet identifier
            {_MESSAGE}
        );
        CREATE TABLE retained (id INTEGER PRIMARY KEY, {_MESSAGE}, UNIQUE (topic));
        CREATE TABLE wills (
            id INTEGER PRIMARY KEY, client_id TEXT NOT NULL UNIQUE, delay INTEGER NOT NULL,
            keep_alive INTEGER NOT NULL, due_at REAL NOT NULL,  -- 0: it was connected
            {_MESSAGE}
        );
    """,
    tables=("clock", "sessions", "subscriptions", "messages", "deliveries", "received", "retained", "wills"),
    migrations={
        1: "".join(
            f"ALTER TABLE {table} ADD COLUMN checksum INTEGER;"
            for table in ("messages", "deliveries", "received", "retained", "wills")
        ),
    },
    keeps_bad_text=True,
)
