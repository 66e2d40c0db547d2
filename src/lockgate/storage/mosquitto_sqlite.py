"""Reads `mosquitto.sqlite3`, the store of Mosquitto 2.1's persist-sqlite plugin: schemas 1.0 and 1.1.

Some of its columns are declared as STRING, which SQLite takes for numbers: the topic `42` lies there as an integer. The
columns are therefore cast to what they mean.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.properties import Properties
from lockgate.mqtt.wire import decode_utf8, encode_binary, encode_string
from lockgate.sqlite import open_readonly
from lockgate.storage.imported import NEVER_EXPIRES, Imported, ImportedMessage, UnreadableStore

_MAJOR: Final = 1
_NEWEST_MINOR: Final = 1
_INTEGER, _TEXT, _BLOB = "INTEGER", "TEXT", "BLOB"
_CLIENTS: Final = {
    "client_id": _TEXT,
    "username": _TEXT,
    "session_expiry_interval": _INTEGER,
    "session_expiry_time": _INTEGER,
    "listener_port": _INTEGER,
    "will_delay_interval": _INTEGER,
}
_MESSAGES: Final = {
    "store_id": _INTEGER,
    "topic": _TEXT,
    "payload": _BLOB,
    "qos": _INTEGER,
    "retain": _INTEGER,
    "properties": _TEXT,
    "expiry_time": _INTEGER,
    "source_id": _TEXT,
    "source_username": _TEXT,
}
_SUBSCRIPTIONS: Final = {
    "client_id": _TEXT,
    "topic": _TEXT,
    "subscription_options": _INTEGER,
    "subscription_identifier": _INTEGER,
}
_CLIENT_MESSAGES: Final = {
    "client_id": _TEXT,
    "store_id": _INTEGER,
    "direction": _INTEGER,
    "mid": _INTEGER,
    "qos": _INTEGER,
    "retain": _INTEGER,
    "state": _INTEGER,
    "subscription_identifier": _INTEGER,
}
_RETAINS: Final = {"store_id": _INTEGER}
_WILLS: Final = {
    "client_id": _TEXT,
    "topic": _TEXT,
    "payload": _BLOB,
    "qos": _INTEGER,
    "retain": _INTEGER,
    "properties": _TEXT,
}

# What a damaged file can raise; sqlite3 does not get to its own error where the text of it repeats damaged bytes.
_FAILURES: Final = (sqlite3.Error, UnicodeDecodeError)

_OUT: Final = 1  # the direction of a client's message
_FOUR_BYTES: Final = 0xFFFF_FFFF


def read(path: Path) -> Imported:
    """Give what is in the database; of a damaged one the rows of each table before its damage.

    Raises UnreadableStore for another kind of file or an unknown schema.
    """
    imported = Imported(path)
    size = sum(p.stat().st_size for p in (path, path.with_name(f"{path.name}-wal")) if p.exists())
    try:
        connection = open_readonly(path)
    except sqlite3.Error as error:
        raise UnreadableStore(f"{path} cannot be opened: {error}") from None
    try:
        connection.execute("PRAGMA cell_size_check = ON")
        connection.text_factory = bytes
        _Reader(imported, connection, size).read()
    finally:
        connection.close()
    return imported


class _Reader:
    def __init__(self, imported: Imported, connection: sqlite3.Connection, size: int) -> None:
        self._imported = imported
        self._connection = connection
        self._left = size  # bytes that may still be read: a damaged tree of pages may lead in circles
        self._messages: dict[int, ImportedMessage | None] = {}
        self._will_delays: dict[str, int] = {}

    def read(self) -> None:
        self._imported.form = f"mosquitto.sqlite3 of schema {self._schema()}"
        self._read_clients()
        self._read_messages()
        self._read_subscriptions()
        self._read_client_messages()
        for row in self._rows("retains", _RETAINS):
            self._imported.retain(self._messages.get(row["store_id"]))
        self._read_wills()

    def _schema(self) -> str:
        path = self._imported.path
        try:
            tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_schema")}
            if not {b"base_msgs", b"clients", b"client_msgs"} <= tables:
                raise UnreadableStore(f"{path} is not a store of Mosquitto: it lacks the tables of persist-sqlite")
            if b"version_info" not in tables:
                return "1.0"
            found = self._connection.execute(
                "SELECT CAST(major AS INTEGER), CAST(minor AS INTEGER) FROM version_info"
                " WHERE component = 'database_schema'"
            ).fetchone()
        except _FAILURES as error:
            raise UnreadableStore(f"{path} cannot be read: {error}") from None
        major, minor = found if found is not None else (1, 0)
        if major != _MAJOR or minor not in range(_NEWEST_MINOR + 1):
            raise UnreadableStore(
                f"{path} is a mosquitto.sqlite3 of schema {major}.{minor};"
                f" schemas {_MAJOR}.0 to {_MAJOR}.{_NEWEST_MINOR} are read (Mosquitto 2.1)"
            )
        return f"{major}.{minor}"

    def _read_clients(self) -> None:
        for row in self._rows("clients", _CLIENTS):
            client_id = row["client_id"] or ""
            interval = (row["session_expiry_interval"] or 0) & _FOUR_BYTES  # written as a signed number
            if interval == 0 and not row["listener_port"]:  # as in `mosquitto_db`
                interval = NEVER_EXPIRES
            self._imported.session(client_id, row["username"] or None, interval, row["session_expiry_time"] or 0)
            self._will_delays[client_id] = (row["will_delay_interval"] or 0) & _FOUR_BYTES

    def _read_messages(self) -> None:
        for row in self._rows("base_msgs", _MESSAGES):
            self._messages[row["store_id"]] = self._message(
                row, self._properties(row), row["expiry_time"] or 0, row["source_id"] or ""
            )

    def _read_subscriptions(self) -> None:
        for row in self._rows("subscriptions", _SUBSCRIPTIONS):
            self._imported.subscription(
                row["client_id"] or "",
                row["topic"] or "",
                row["subscription_options"] or 0,
                row["subscription_identifier"] or 0,
            )

    def _read_client_messages(self) -> None:
        for row in self._rows("client_msgs", _CLIENT_MESSAGES):
            client_id = row["client_id"] or ""
            message = self._messages.get(row["store_id"])
            packet_id, qos, state = row["mid"] or 0, row["qos"] or 0, row["state"] or 0
            if not 0 <= packet_id <= 0xFFFF:
                packet_id = 0
            if row["direction"] == _OUT:
                identifier = row["subscription_identifier"] or 0
                self._imported.outgoing(client_id, message, packet_id, qos, bool(row["retain"]), identifier, state)
            else:
                self._imported.incoming(client_id, message, packet_id, qos, state)

    def _read_wills(self) -> None:
        for row in self._rows("wills", _WILLS):
            client_id = row["client_id"] or ""
            properties = self._properties(row)
            message = self._message(row, properties, 0, client_id)
            self._imported.will(client_id, message, properties, self._will_delays.get(client_id, 0))

    def _message(
        self, row: dict[str, Any], properties: Properties | None, expires_at: int, publisher: str
    ) -> ImportedMessage | None:
        return self._imported.message(
            row["topic"] or "", row["payload"] or b"", row["qos"] or 0, bool(row["retain"]), properties, expires_at,
            publisher, row.get("source_username"),
        )  # fmt: skip

    def _rows(self, table: str, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Give the rows of a table in the order they were written, up to its damage; columns it lacks are None."""
        imported = self._imported
        count = 0
        try:
            declared = self._columns(table)
            if declared is None:
                return
            wanted = (f"CAST({name} AS {kind})" if name in declared else "NULL" for name, kind in columns.items())
            # Not by an index: a damaged one must not hide rows.
            for values in self._connection.execute(f"SELECT {', '.join(wanted)} FROM {table} NOT INDEXED"):
                count += 1
                self._left -= 1 + sum(len(value) for value in values if isinstance(value, bytes))
                if self._left < 0:
                    raise sqlite3.DatabaseError("it gives more than the file can hold")
                row = self._decoded(columns, values)
                if row is not None:
                    yield row
        except _FAILURES as error:
            detail = f"{imported.path}, table {table} after {count} rows: {error}"
            imported.damage = f"{imported.damage}; {detail}" if imported.damage else detail

    def _columns(self, table: str) -> set[str] | None:
        """Give the columns of an ordinary table, None where there is none: a view might have no end."""
        found = self._connection.execute(
            "SELECT CAST(sql AS TEXT) FROM sqlite_schema WHERE type = 'table' AND name = ?", (table,)
        ).fetchone()
        if found is None:
            return None
        if not isinstance(found[0], bytes) or b"VIRTUAL" in found[0].upper().split(b"(")[0].split():
            raise sqlite3.DatabaseError("it is not an ordinary table")
        return {
            name.decode("utf-8", "replace")
            for (name,) in self._connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        }

    def _decoded(self, columns: dict[str, str], values: tuple[Any, ...]) -> dict[str, Any] | None:
        row: dict[str, Any] = {}
        for (name, kind), value in zip(columns.items(), values, strict=True):
            if kind == _TEXT and value is not None:
                try:
                    value = decode_utf8(value)
                except MqttError:
                    self._imported.skipped["rows with names that are not UTF-8"] += 1
                    return None
            row[name] = value
        return row

    def _properties(self, row: dict[str, Any]) -> Properties | None:
        """Read the properties of a message; one that cannot be read is left out."""
        text: str | None = row["properties"]
        if not text:
            return None
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError):
            self._imported.skipped["properties that cannot be read"] += 1
            return None
        properties = Properties()
        for item in listed if isinstance(listed, list) else ():
            try:
                _add_property(properties, item)
            except (KeyError, TypeError, ValueError):
                self._imported.skipped["properties that cannot be read"] += 1
        return properties


def _add_property(properties: Properties, item: dict[str, Any]) -> None:
    """Add `{"identifier": …, "value": …}`, a User Property has a `name` too; binary values are in hexadecimal."""
    identifier, value = item["identifier"], item["value"]
    if identifier == "user-property":
        properties.user_properties += ((_string(item["name"]), _string(value)),)
    elif identifier == "content-type":
        properties.content_type = _string(value)
    elif identifier == "response-topic":
        properties.response_topic = _string(value)
    elif identifier == "correlation-data":
        data = bytes.fromhex(value)
        encode_binary(data)
        properties.correlation_data = data
    elif identifier == "payload-format-indicator":
        properties.payload_format_indicator = _number(value, 1)
    elif identifier == "message-expiry-interval":
        properties.message_expiry_interval = _number(value, _FOUR_BYTES)


def _string(value: object) -> str:
    """Give a string that a packet can carry; raises ValueError or TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    encode_string(value)
    return value


def _number(value: object, highest: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= highest:
        raise ValueError(f"{value!r} is not a number from 0 to {highest}")
    return int(value)
