"""Writes stores as Mosquitto does: mosquitto.db in each of its versions, and the database of persist-sqlite."""

from __future__ import annotations

import json
import sqlite3
import struct
from pathlib import Path
from typing import Any

from lockgate.mqtt.properties import Properties, encode_properties

HEADER = b"\x00\xb5\x00mosquitto db"
IN, OUT = 0, 1
WAIT_PUBACK, WAIT_PUBREC, WAIT_PUBREL, RESEND_PUBCOMP, WAIT_PUBCOMP, QUEUED = 3, 5, 7, 8, 9, 11


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">H", len(data)) + data


class DbWriter:
    """One mosquitto.db. `order` is the machine's byte order, `time_bytes` its time_t in versions 3 and 4."""

    def __init__(self, version: int, order: str = "<", time_bytes: int = 8, padded: bool = True) -> None:
        self.version = version
        self.order = order
        self.time_bytes = time_bytes
        self.padded = padded
        self.data = HEADER + struct.pack(">II", 0, version)
        self.ends = [len(self.data)]  # of the header and of each chunk

    def chunk(self, kind: int, body: bytes) -> None:
        self.data += struct.pack(">II" if self.version >= 5 else ">HI", kind, len(body)) + body
        self.ends.append(len(self.data))

    def eight(self, value: int) -> bytes:
        return struct.pack(f"{self.order}q", value)

    def configuration(self, last_id: int = 99, id_bytes: int = 8) -> None:
        pad = bytes(6) if self.padded else bytes(2)
        if self.version >= 5:
            self.chunk(1, self.eight(last_id) + bytes((1, id_bytes)) + pad)
        else:
            self.chunk(1, bytes((1, id_bytes)) + self.eight(last_id))

    def message(
        self,
        store_id: int,
        topic: str,
        payload: bytes,
        qos: int = 1,
        retain: bool = False,
        *,
        publisher: str = "publisher",
        username: str = "",
        expires_at: int = 0,
        properties: Properties | None = None,
    ) -> None:
        source, user, name = publisher.encode(), username.encode(), topic.encode()
        if self.version < 5:
            body = self.eight(store_id) + string(publisher)
            if self.version == 4:
                body += string(username) + struct.pack(">H", 1883)
            body += struct.pack(">HH", 7, 0) + string(topic)
            self.chunk(2, body + struct.pack(">BBI", qos, retain, len(payload)) + payload)
            return
        lengths = struct.pack(">IHHHHH", len(payload), 7, len(source), len(user), len(name), 1883)
        body = self.eight(store_id) + self.eight(expires_at) + lengths + bytes((qos, retain))
        tail = encode_properties(properties) if properties is not None else b""
        self.chunk(2, body + source + user + name + payload + tail)

    def client(
        self,
        client_id: str,
        username: bytes = b"",
        interval: int = 0xFFFF_FFFF,
        expires_at: int = 0,
        port: int = 1883,
    ) -> None:
        name = client_id.encode()
        if self.version < 5:
            time = bytes(self.time_bytes) if self.version >= 3 else b""
            self.chunk(6, string(client_id) + struct.pack(">H", 12) + time)
            return
        body = self.eight(expires_at) + struct.pack(">IHH", interval, 12, len(name))
        if self.version >= 6:
            body += struct.pack(">HH", port, len(username)) + (bytes(4) if self.padded else b"")
        self.chunk(6, body + name + (username if self.version >= 6 else b""))

    def client_message(
        self,
        client_id: str,
        store_id: int,
        packet_id: int,
        qos: int,
        state: int,
        direction: int = OUT,
        retain: bool = False,
        identifier: int = 0,
    ) -> None:
        name = client_id.encode()
        if self.version < 5:
            numbers = struct.pack(">HBBBBB", packet_id, qos, retain, direction, state, 0)
            self.chunk(3, string(client_id) + self.eight(store_id) + numbers)
            return
        flags = bytes((qos, state, retain << 4, direction))
        tail = encode_properties(Properties(subscription_identifiers=(identifier,))) if identifier else b""
        self.chunk(3, self.eight(store_id) + struct.pack(">HH", packet_id, len(name)) + flags + name + tail)

    def subscription(self, client_id: str, topic_filter: str, qos: int, options: int = 0, identifier: int = 0) -> None:
        name, wanted = client_id.encode(), topic_filter.encode()
        if self.version < 5:
            self.chunk(5, string(client_id) + string(topic_filter) + bytes((qos,)))
            return
        numbers = struct.pack(">IHHBB2x", identifier, len(name), len(wanted), qos, options)
        self.chunk(5, numbers + name + wanted)

    def retained(self, store_id: int) -> None:
        self.chunk(4, self.eight(store_id))


TABLES = """
CREATE TABLE base_msgs (store_id INT64 PRIMARY KEY, expiry_time INT64, topic STRING NOT NULL, payload BLOB,
    source_id STRING, source_username STRING, payloadlen INTEGER, source_mid INTEGER, source_port INTEGER, qos INTEGER,
    retain INTEGER, properties STRING);
CREATE TABLE retains (topic STRING PRIMARY KEY, store_id INT64);
CREATE TABLE clients (client_id TEXT PRIMARY KEY, username TEXT, connection_time INT64, will_delay_time INT64,
    session_expiry_time INT64, listener_port INT, max_packet_size INT, max_qos INT, retain_available INT,
    session_expiry_interval INT, will_delay_interval INT);
CREATE TABLE subscriptions (client_id TEXT NOT NULL, topic TEXT NOT NULL, subscription_options INTEGER,
    subscription_identifier INTEGER, PRIMARY KEY (client_id, topic));
CREATE TABLE client_msgs (client_id TEXT NOT NULL, cmsg_id INT64, store_id INT64, dup INTEGER, direction INTEGER,
    mid INTEGER, qos INTEGER, retain INTEGER, state INTEGER, subscription_identifier INTEGER);
CREATE INDEX client_msgs_client_id ON client_msgs(client_id);
CREATE INDEX client_msgs_store_id ON client_msgs(store_id, client_id);
CREATE INDEX retains_storeid ON retains(store_id);
CREATE TABLE version_info (component TEXT NOT NULL, major INTEGER NOT NULL, minor INTEGER NOT NULL,
    patch INTEGER NOT NULL);
"""
WILLS = """
CREATE TABLE wills (client_id TEXT PRIMARY KEY, payload BLOB, topic STRING NOT NULL, payloadlen INTEGER, qos INTEGER,
    retain INTEGER, properties STRING);
"""


class SqliteWriter:
    """One mosquitto.sqlite3; `connection` is there for what no method says."""

    def __init__(self, path: Path, minor: int = 1, major: int = 1) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.executescript(TABLES + (WILLS if minor else ""))
        self.connection.execute("INSERT INTO version_info VALUES ('database_schema', ?, ?, 0)", (major, minor))

    def close(self) -> None:
        self.connection.close()

    def _insert(self, table: str, **values: Any) -> None:
        marks = ", ".join("?" * len(values))
        self.connection.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))

    def message(
        self,
        store_id: int,
        topic: str,
        payload: bytes,
        qos: int = 1,
        retain: bool = False,
        *,
        publisher: str = "publisher",
        expires_at: int = 0,
        properties: Properties | None = None,
    ) -> None:
        self._insert(
            "base_msgs",
            store_id=store_id,
            expiry_time=expires_at,
            topic=topic,
            payload=payload or None,
            source_id=publisher,
            payloadlen=len(payload),
            qos=qos,
            retain=int(retain),
            properties=properties_json(properties),
        )

    def client(
        self,
        client_id: str,
        username: str | None = None,
        interval: int = -1,
        expires_at: int = 0,
        will_delay: int = 0,
        port: int = 1883,
    ) -> None:
        self._insert(
            "clients",
            listener_port=port,
            client_id=client_id,
            username=username,
            session_expiry_interval=interval,
            session_expiry_time=expires_at,
            will_delay_interval=will_delay,
        )

    def client_message(
        self,
        client_id: str,
        store_id: int,
        packet_id: int,
        qos: int,
        state: int,
        direction: int = OUT,
        retain: bool = False,
        identifier: int = 0,
    ) -> None:
        self._insert(
            "client_msgs",
            client_id=client_id,
            store_id=store_id,
            mid=packet_id,
            qos=qos,
            state=state,
            direction=direction,
            retain=int(retain),
            subscription_identifier=identifier,
        )

    def subscription(self, client_id: str, topic_filter: str, qos: int, options: int = 0, identifier: int = 0) -> None:
        self._insert(
            "subscriptions",
            client_id=client_id,
            topic=topic_filter,
            subscription_options=qos | options,
            subscription_identifier=identifier,
        )

    def retained(self, store_id: int) -> None:
        self.connection.execute(
            "INSERT INTO retains SELECT topic, store_id FROM base_msgs WHERE store_id = ?", (store_id,)
        )

    def will(
        self, client_id: str, topic: str, payload: bytes, qos: int = 0, properties: Properties | None = None
    ) -> None:
        self._insert(
            "wills",
            client_id=client_id,
            topic=topic,
            payload=payload,
            payloadlen=len(payload),
            qos=qos,
            retain=0,
            properties=properties_json(properties),
        )


def properties_json(properties: Properties | None) -> str | None:
    if properties is None:
        return None
    items: list[dict[str, object]] = []
    for name in ("payload_format_indicator", "content_type", "response_topic", "message_expiry_interval"):
        if (value := getattr(properties, name)) is not None:
            items.append({"identifier": name.replace("_", "-"), "value": value})
    if properties.correlation_data is not None:
        items.append({"identifier": "correlation-data", "value": properties.correlation_data.hex().upper()})
    items += ({"identifier": "user-property", "name": key, "value": value} for key, value in properties.user_properties)
    return json.dumps(items)


EVERYTHING = Properties(
    payload_format_indicator=1,
    content_type="text/plain",
    response_topic="answers/1",
    correlation_data=b"\x00\xff",
    user_properties=(("k", "v"), ("k", "ü")),
)


def fill(store: DbWriter | SqliteWriter, modern: bool) -> None:
    """Write a little of everything; `modern` is what no file before version 5 can hold."""
    properties = EVERYTHING if modern else None
    store.message(1, "house/a", b"first", 1, properties=properties, expires_at=2_000_000_000 if modern else 0)
    store.message(2, "house/b", b"second", 2)
    store.message(3, "house/c", b"", 1, publisher="")
    store.message(4, "state", b"on \x00\xff", 1, True, properties=properties)
    store.message(5, "half", b"way", 2)
    if isinstance(store, DbWriter):
        store.client("durable", b"ann", *((3600, 2_000_000_000) if modern else ()))
    else:
        store.client("durable", "ann", 3600, 2_000_000_000)
    store.client_message("durable", 1, 21, 1, WAIT_PUBACK)
    store.client_message("durable", 2, 22, 2, WAIT_PUBREC)
    store.client_message("durable", 2, 23, 2, WAIT_PUBCOMP, identifier=9 if modern else 0)
    store.client_message("durable", 3, 24, 1, QUEUED, retain=True)
    store.client_message("durable", 1, 0, 1, QUEUED)
    store.client_message("durable", 5, 31, 2, WAIT_PUBREL, IN)
    store.client("other")
    store.client_message("other", 1, 1, 1, QUEUED)
    store.subscription("durable", "house/+", 2, 0x0C if modern else 0, 9 if modern else 0)
    store.subscription("durable", "$share/group/jobs/#", 1)
    store.subscription("other", "#", 0)
    store.retained(4)
