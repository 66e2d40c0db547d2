"""What a store holds, as plain objects: of one that the broker writes meanwhile, and of one that is damaged.

Nothing is changed. The state is that of one instant; rows are read as they are asked for.
"""

from __future__ import annotations

import base64
import contextlib
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from lockgate.broker.ports import (
    AWAITING_PUBACK,
    AWAITING_PUBCOMP,
    AWAITING_PUBREC,
    NEVER,
    QUEUED,
    Message,
)
from lockgate.mqtt.properties import KINDS, Properties
from lockgate.sqlite import NewerFile, open_readonly
from lockgate.sqlite.database import (
    FAILURES,
    READ_ALL,
    compare_schema,
    findings,
    open_copy,
    readable_rows,
    text_or_bytes,
    told,
)
from lockgate.storage.changes import POSITION_BITS
from lockgate.storage.clock import ClockRow, MomentSource, StoreClock
from lockgate.storage.restore import read_clock
from lockgate.storage.rows import (
    DELIVERY_COLUMNS,
    SESSION_COLUMNS,
    SUBSCRIPTION_COLUMNS,
    WILL_COLUMNS,
    UnusableRow,
    delivery_of,
    read_message,
    read_received,
    read_session,
    read_subscription,
    read_will,
)
from lockgate.storage.schema import MESSAGE_COLUMNS, SCHEMA

STATES: Final = {
    QUEUED: "queued",
    AWAITING_PUBACK: "awaiting PUBACK",
    AWAITING_PUBREC: "awaiting PUBREC",
    AWAITING_PUBCOMP: "awaiting PUBCOMP",
}
_MOST_FINDINGS: Final = 20
_APART: Final = Message("-", b"", 0, False, None, NEVER, "")  # in place of one that is an object of its own

# Rows that nobody can reach: what they are, and how many
_ORPHANS: Final = {
    "deliveries without message": "SELECT count(*) FROM deliveries WHERE message NOT IN (SELECT id FROM messages)",
    "messages without delivery": "SELECT count(*) FROM messages WHERE id NOT IN (SELECT message FROM deliveries)",
}

Object = dict[str, object]


class View:
    """A store's file, open for reading. `problems` grows as rows are read: what was wrong, and how often."""

    def __init__(self, connection: sqlite3.Connection, path: Path, source: MomentSource) -> None:
        self.path = path
        self.version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        self.problems: Counter[str] = Counter()
        self.noted: ClockRow | None = None
        self._connection = connection
        self._clients: dict[int, str] = {}
        try:
            self.noted = read_clock(connection)
        except FAILURES as error:
            self.problems[f"clock: {told(error)}"] += 1
        self._clock = StoreClock(source, self.noted)
        self._now = source.now().boottime_ns / 1e9

    def objects(self) -> Iterator[Object]:
        """Give everything, one object after the other, with its `type`; to be called once."""
        yield self._store()
        yield from self._read("sessions", SESSION_COLUMNS, self._session)
        yield from self._read("subscriptions", SUBSCRIPTION_COLUMNS, self._subscription)
        yield from self._read("messages", MESSAGE_COLUMNS, self._message)
        yield from self._read("deliveries", DELIVERY_COLUMNS, self._delivery)
        yield from self._read("received", MESSAGE_COLUMNS, self._received)
        yield from self._read("retained", MESSAGE_COLUMNS, self._retained)
        yield from self._read("wills", WILL_COLUMNS, self._will)

    def glance(self) -> None:
        """Have SQLite check the file quickly, without its indexes, which `problems` then says."""
        try:
            self.problems.update(findings(self._connection, _MOST_FINDINGS, thorough=False))
        except FAILURES as error:
            self.problems[told(error)] += 1

    def examine(self) -> None:
        """Have SQLite check the file, and look for rows that belong to nothing, which `problems` then says."""
        try:
            self.problems.update(findings(self._connection, _MOST_FINDINGS, thorough=True))
        except FAILURES as error:
            self.problems[told(error)] += 1
        for what, select in _ORPHANS.items():
            try:
                count = self._connection.execute(select).fetchone()[0]
            except FAILURES as error:
                self.problems[f"{what}: {told(error)}"] += 1
            else:
                if count:
                    self.problems[what] += count

    def noted_at(self) -> float | None:
        """When the clock was noted last, in seconds since 1970; None where that was not known."""
        return self.noted.wall_time if self.noted is not None and self.noted.clock_ok else None

    def _read(self, table: str, columns: str, make: Callable[[Sequence[Any]], Object]) -> Iterator[Object]:
        obstacles: list[str] = []
        for row in readable_rows(self._connection, table, columns, obstacles):
            try:
                yield make(row)
            except UnusableRow as error:
                self.problems[f"{table}: {error}"] += 1
        for obstacle in obstacles:
            self.problems[f"{table} {obstacle}"] += 1

    def _store(self) -> Object:
        return {
            "type": "store",
            "path": str(self.path),
            "version": self.version,
            "noted_at": self.noted_at(),
            "off_seconds": self._clock.off_seconds,
        }

    def _session(self, row: Sequence[Any]) -> Object:
        number, client_id, stored = read_session(row, self._clock)
        self._clients[number] = client_id
        return {
            "type": "session",
            "client_id": client_id,
            "username": stored.username,
            "expiry_interval": stored.expiry_interval,
            "expires_in": self._left(stored.expires_at),
        }

    def _subscription(self, row: Sequence[Any]) -> Object:
        number, topic_filter, options = read_subscription(row[1:])
        return {
            "type": "subscription",
            "client_id": self._client(number),
            "topic_filter": topic_filter,
            "qos": options.qos,
            "no_local": options.no_local,
            "retain_as_published": options.retain_as_published,
            "subscription_identifier": options.identifier or None,
        }

    def _message(self, row: Sequence[Any]) -> Object:
        return {"type": "message", "id": row[0], **self._content(read_message(row[1:], self._clock))}

    def _delivery(self, row: Sequence[Any]) -> Object:
        delivery = delivery_of(row, _APART)
        number = row[0] >> POSITION_BITS
        return {
            "type": "delivery",
            "client_id": self._clients.get(number),  # None: its Session has ended, it is about to be removed
            "position": delivery.position,
            "message": delivery.stored_message,
            "qos": delivery.qos,
            "retain": delivery.retain,
            "subscription_identifier": delivery.identifier or None,
            "share": delivery.share or None,
            "packet_id": delivery.packet_id or None,
            "state": STATES[delivery.state],
        }

    def _received(self, row: Sequence[Any]) -> Object:
        number, packet_id, message = read_received(row, self._clock)
        client_id = self._client(number)
        return {"type": "received", "client_id": client_id, "packet_id": packet_id, **self._content(message)}

    def _retained(self, row: Sequence[Any]) -> Object:
        return {"type": "retained", **self._content(read_message(row[1:], self._clock))}

    def _will(self, row: Sequence[Any]) -> Object:
        client_id, will = read_will(row[1:], self._clock)
        return {
            "type": "will",
            "client_id": client_id,
            "delay": will.delay,
            "keep_alive": will.keep_alive,
            "due_in": self._left(will.due_at),
            **self._content(will.message),
        }

    def _content(self, message: Message) -> Object:
        return {
            "topic": message.topic,
            **_payload(message.payload),
            "qos": message.qos,
            "retain": message.retain,
            "properties": _properties(message.properties),
            "expires_in": self._left(message.expires_at),
            "arrived_at": self._since_1970(message.arrived_at),
            "publisher": message.publisher,
            "publisher_user": message.publisher_user,
        }

    def _client(self, number: object) -> str:
        client_id = self._clients.get(number) if isinstance(number, int) else None
        if client_id is None:
            raise UnusableRow("of a session that does not exist")
        return client_id

    def _left(self, at: float) -> float | None:
        return round(at - self._now, 3) if at != NEVER else None

    def _since_1970(self, at: float) -> float | None:
        noted = self.noted
        if noted is None or not noted.clock_ok or at == NEVER:
            return None
        return round(noted.wall_time + self._clock.to_store(at) - noted.store_time, 3)


@contextlib.contextmanager
def open_view(path: Path, source: MomentSource) -> Iterator[View]:
    """Open a store's file for reading. Where its schema is damaged a mended copy is read, in the folder for such files.

    Raises OSError where there is none or where it is of another version, and sqlite3.Error or UnicodeDecodeError where
    nothing at all can be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no store in {path.parent}: the broker makes {path.name} when it starts")
    with contextlib.ExitStack() as stack:
        connection = _open(path)
        stack.callback(lambda: connection.close())
        wrong = _wrong_schema(connection)
        if wrong:
            connection.close()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockgate-store-")))
            connection = open_copy(path, folder / path.name, SCHEMA)
            connection.execute(READ_ALL)
        connection.text_factory = text_or_bytes
        if not connection.in_transaction:
            connection.execute("BEGIN")
        view = View(connection, path, source)
        if wrong:
            view.problems[wrong] += 1
        elif view.version == 0:
            raise NewerFile(f"{path} is not a store of this program's")
        elif view.version != SCHEMA.version:
            age = (
                "a newer program"
                if view.version > SCHEMA.version
                else "an older one, whose broker brings it up to date"
            )
            raise NewerFile(f"{path} has format {view.version}, of {age}; here format {SCHEMA.version} is read")
        yield view


def _open(path: Path) -> sqlite3.Connection:
    """Open a file that somebody may be writing; a WAL file lies beside it as long as it is open for writing."""
    connection = open_readonly(path, immutable=not path.with_name(f"{path.name}-wal").exists())
    connection.execute(READ_ALL)
    return connection


def _wrong_schema(connection: sqlite3.Connection) -> str | None:
    try:
        return compare_schema(connection, SCHEMA)
    except FAILURES as error:
        return told(error)


def _payload(payload: bytes) -> Object:
    """Text where it is UTF-8, else base64 under another name."""
    try:
        return {"payload": payload.decode("utf-8")}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode("ascii")}


def _properties(properties: Properties | None) -> Object | None:
    if properties is None:
        return None
    named: Object = {}
    for kind in KINDS.values():
        value = getattr(properties, kind.name)
        if isinstance(value, bytes):
            named |= {f"{kind.name}_base64": base64.b64encode(value).decode("ascii")}
        elif value is not None and value != ():
            named[kind.name] = value
    return named
