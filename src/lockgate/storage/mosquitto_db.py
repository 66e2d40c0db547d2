"""Reads `mosquitto.db`, the file Mosquitto writes with `persistence true`: versions 2 to 6 (1.x to 2.x).

A header of 23 bytes, then chunks. Fields are big-endian, but those of 64 bits are in the byte order of the machine that
wrote them. Versions 5 and 6 say how long each chunk is, and its strings stand at its end; before, that length is not to
be relied on, and each chunk is read field by field.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import PUBLISH
from lockgate.mqtt.properties import Properties, decode_properties
from lockgate.mqtt.wire import decode_utf8
from lockgate.storage.imported import NEVER_EXPIRES, Imported, ImportedMessage, UnreadableStore

OLDEST_VERSION: Final = 2
NEWEST_VERSION: Final = 6

_MAGIC: Final = b"\x00\xb5\x00mosquitto db"
_HEADER: Final = struct.Struct(">15sII")  # magic, checksum (always 0), version
_CHUNK: Final = struct.Struct(">II")
_OLD_CHUNK: Final = struct.Struct(">HI")

_CONFIGURATION: Final = 1
_MESSAGE: Final = 2
_CLIENT_MESSAGE: Final = 3
_RETAINED: Final = 4
_SUBSCRIPTION: Final = 5
_CLIENT: Final = 6
_CHUNKS: Final = range(_CONFIGURATION, _CLIENT + 1)

# The fixed parts of versions 5 and 6. Eight bytes in machine order stay bytes here.
_MESSAGE_PART: Final = struct.Struct(">8s8sIHHHHHBB")
_CLIENT_MESSAGE_PART: Final = struct.Struct(">8sHHBBBB")
_SUBSCRIPTION_PART: Final = struct.Struct(">IHHBB2x")
_CLIENT_PART: Final = struct.Struct(">8sIHHHH")
_CLIENT_PART_5: Final = struct.Struct(">8sIHH")

_ID_BYTES: Final = 8
_OUT: Final = 1  # the direction of a client message
_LATEST: Final = 1 << 40  # no time of ours, in seconds since 1970: the year 36812
_IN_PUBLISH: Final = 1 << PUBLISH


def read(path: Path) -> Imported:
    """Give what is in the file; of a damaged one what stands before the damage.

    Raises UnreadableStore for another kind of file or an unknown version, and OSError.
    """
    with path.open("rb") as stream:
        return read_stream(stream, os.fstat(stream.fileno()).st_size, path)


def read_stream(stream: BinaryIO, size: int, path: Path) -> Imported:
    """Give what is in `size` bytes of a stream; `path` is for errors."""
    imported = Imported(path, "mosquitto.db, empty")
    if size == 0:  # Mosquitto was stopped before it wrote anything
        return imported
    header = stream.read(_HEADER.size)
    if not header.startswith(_MAGIC) or len(header) < _HEADER.size:
        raise UnreadableStore(f"{path} is not a store of Mosquitto: it does not begin as mosquitto.db does")
    version: int = _HEADER.unpack(header)[2]
    if not OLDEST_VERSION <= version <= NEWEST_VERSION:
        raise UnreadableStore(
            f"{path} is a mosquitto.db of version {version};"
            f" versions {OLDEST_VERSION} to {NEWEST_VERSION} are read (Mosquitto 1.x to 2.x)"
        )
    imported.form = f"mosquitto.db of version {version}"
    fields = _Fields(stream, len(header), size)
    reader = _Reader(imported, fields) if version >= 5 else _OldReader(imported, fields)
    reader.version = version
    try:
        reader.read_chunks()
    except _Damage as damage:
        imported.damage = f"{path}, byte {damage.offset} of {size}: {damage}"
    return imported


class _Damage(Exception):
    """The bytes from an offset on make no sense."""

    def __init__(self, offset: int, detail: str) -> None:
        super().__init__(detail)
        self.offset = offset


class _Fields:
    """The bytes of the file one after the other, never beyond `limit`."""

    def __init__(self, stream: BinaryIO, at: int, end: int) -> None:
        self.at = at
        self.end = end
        self.limit = end  # of the chunk, where that is known
        self._stream = stream

    def take(self, count: int, what: str) -> bytes:
        if count > self.limit - self.at:
            where = "file" if self.limit == self.end else "chunk"
            raise _Damage(self.at, f"{what} needs {count} bytes, the {where} has {self.limit - self.at} more")
        data = self._stream.read(count)
        if len(data) < count:
            raise _Damage(self.at, f"{what} needs {count} bytes, the file ends after {len(data)}")
        self.at += count
        return data

    def number(self, count: int, what: str) -> int:
        return int.from_bytes(self.take(count, what), "big")

    def string(self, what: str) -> bytes:
        return self.take(self.number(2, what), what)

    def skip(self, count: int, what: str) -> None:
        if count > self.limit - self.at:
            raise _Damage(self.at, f"{what} says it has {count} bytes, the file has {self.limit - self.at} more")
        self.go_to(self.at + count)

    def go_to(self, at: int) -> None:
        self._stream.seek(at)
        self.at = at


class _Reader:
    """Versions 5 and 6."""

    version = 0

    def __init__(self, imported: Imported, fields: _Fields) -> None:
        self._imported = imported
        self._fields = fields
        self._messages: dict[bytes, ImportedMessage | None] = {}
        self._foreign_name = b""

    def read_chunks(self) -> None:
        fields = self._fields
        while fields.at < fields.end:
            start = fields.at
            kind, length = _CHUNK.unpack(fields.take(_CHUNK.size, "a chunk's header"))
            if length > fields.end - fields.at:
                raise _Damage(
                    start, f"a chunk of type {kind} and {length} bytes, the file has {fields.end - fields.at}"
                )
            stop = fields.limit = fields.at + length
            if kind in _CHUNKS:
                self._read_chunk(kind, stop)
            else:
                self._imported.skipped["chunks of unknown type"] += 1
            fields.limit = fields.end
            if fields.at < stop:
                fields.go_to(stop)

    def _read_chunk(self, kind: int, stop: int) -> None:
        fields = self._fields
        if kind == _CONFIGURATION:
            fields.take(9, "the configuration")  # the last id, how it was stopped
            _check_id_size(fields)
        elif kind == _MESSAGE:
            self._read_message(stop)
        elif kind == _CLIENT_MESSAGE:
            self._read_client_message(stop)
        elif kind == _RETAINED:
            self._imported.retain(self._messages.get(fields.take(_ID_BYTES, "a retained message")))
        elif kind == _SUBSCRIPTION:
            identifier, id_length, filter_length, qos, options = _SUBSCRIPTION_PART.unpack(
                fields.take(_SUBSCRIPTION_PART.size, "a subscription")
            )
            client_id = fields.take(id_length, "a client id")
            topic_filter = fields.take(filter_length, "a Topic Filter")
            self._add_subscription(client_id, topic_filter, qos & 3 | options & 0x3C, identifier)
        else:
            self._read_client(stop)

    def _read_message(self, stop: int) -> None:
        fields = self._fields
        (
            store_id, expires_at, payload_length, _packet_id, publisher_length, username_length, topic_length, _port,
            qos, retain,
        ) = _MESSAGE_PART.unpack(fields.take(_MESSAGE_PART.size, "a message"))  # fmt: skip
        publisher = fields.take(publisher_length, "a client id")
        user = fields.take(username_length, "a user name")
        topic = fields.take(topic_length, "a Topic Name")
        payload = fields.take(payload_length, "a payload")
        properties = self._read_properties(stop)
        self._add_message(store_id, topic, payload, qos, retain, properties, _wall_time(expires_at), publisher, user)

    def _read_client_message(self, stop: int) -> None:
        fields = self._fields
        store_id, packet_id, id_length, qos, state, flags, direction = _CLIENT_MESSAGE_PART.unpack(
            fields.take(_CLIENT_MESSAGE_PART.size, "a message of a client")
        )
        client_id = fields.take(id_length, "a client id")
        properties = self._read_properties(stop)
        identifier = 0
        if properties is not None and properties.subscription_identifiers:
            identifier = properties.subscription_identifiers[0]
        self._add_client_message(client_id, store_id, packet_id, qos, state, bool(flags & 0xF0), direction, identifier)

    def _read_client(self, stop: int) -> None:
        fields = self._fields
        part = _CLIENT_PART if self.version >= 6 else _CLIENT_PART_5
        values = part.unpack(fields.take(part.size, "a client"))
        expires_at, expiry_interval, _last_packet_id, id_length = values[:4]
        port, username_length = values[4:] if self.version >= 6 else (0, 0)
        if expiry_interval == 0 and port == 0:
            # Not a Session that ended with its connection: its broker read it from a file of version 4 or older, which
            # has no intervals, and the client has not come back since.
            expiry_interval = NEVER_EXPIRES
        # Where 64 bits are aligned to 8 bytes the fixed part is padded: the strings are what stands at the end.
        padding = stop - fields.at - id_length - username_length
        if padding not in (0, 4):
            raise _Damage(
                fields.at, f"a client id of {id_length} bytes and a user name of {username_length} do not fit"
            )
        fields.take(padding, "a client")
        client_id = fields.take(id_length, "a client id")
        username = fields.take(username_length, "a user name")
        self._add_session(client_id, self._username(username), expiry_interval, _wall_time(expires_at))

    def _username(self, data: bytes) -> str | None:
        """Give the user of a client, None for a user name that it has from another one.

        Mosquitto 2.0 keeps the name and its length when it goes on from a client with a user to one without, and swaps
        the two bytes of the length each time: every other client without a user has a name that runs on behind its end,
        and the one behind it the same name, as if it were its own.
        """
        name, runs_on, _rest = data.partition(b"\0")
        if runs_on or (name and name == self._foreign_name):
            self._foreign_name = name if runs_on else b""
            self._imported.skipped["user names of another client, which Mosquitto 2.0 mixes up"] += 1
            return None
        self._foreign_name = b""
        return self._text(name) or None

    def _read_properties(self, stop: int) -> Properties | None:
        fields = self._fields
        data = fields.take(stop - fields.at, "properties")
        if not data:
            return None
        try:
            return decode_properties(data, 0, len(data), _IN_PUBLISH)[0]
        except MqttError:
            self._imported.skipped["properties that cannot be read"] += 1
            return None

    # --- what all versions have in common ---------------------------------------------------------------------------

    def _add_message(
        self,
        store_id: bytes,
        topic: bytes,
        payload: bytes,
        qos: int,
        retain: int,
        properties: Properties | None,
        expires_at: int,
        publisher: bytes,
        user: bytes,
    ) -> None:
        name = self._text(topic)
        if name is not None:
            self._messages[store_id] = self._imported.message(
                name,
                payload,
                qos,
                retain != 0,
                properties,
                expires_at,
                publisher.decode("utf-8", "replace"),
                user.decode("utf-8", "replace"),
            )

    def _add_client_message(
        self,
        client_id: bytes,
        store_id: bytes,
        packet_id: int,
        qos: int,
        state: int,
        retain: bool,
        direction: int,
        identifier: int,
    ) -> None:
        name = self._text(client_id)
        if name is None:
            return
        message = self._messages.get(store_id)
        if direction == _OUT:
            self._imported.outgoing(name, message, packet_id, qos, retain, identifier, state)
        else:
            self._imported.incoming(name, message, packet_id, qos, state)

    def _add_subscription(self, client_id: bytes, topic_filter: bytes, options: int, identifier: int) -> None:
        name = self._text(client_id)
        wanted = self._text(topic_filter)
        if name is not None and wanted is not None:
            self._imported.subscription(name, wanted, options, identifier)

    def _add_session(self, client_id: bytes, username: str | None, expiry_interval: int, expires_at: int) -> None:
        name = self._text(client_id)
        if name is not None:
            self._imported.session(name, username, expiry_interval, expires_at)

    def _text(self, data: bytes) -> str | None:
        try:
            return decode_utf8(data)
        except MqttError:
            self._imported.skipped["names that are not UTF-8"] += 1
            return None


class _OldReader(_Reader):
    """Versions 2 to 4: Sessions last for ever, messages have no properties and do not expire."""

    def read_chunks(self) -> None:
        fields = self._fields
        while fields.at < fields.end:
            kind, length = _OLD_CHUNK.unpack(fields.take(_OLD_CHUNK.size, "a chunk's header"))
            if kind in _CHUNKS:
                self._read_old_chunk(kind, length)
            else:
                self._imported.skipped["chunks of unknown type"] += 1
                fields.skip(length, f"a chunk of unknown type {kind}")

    def _read_old_chunk(self, kind: int, length: int) -> None:
        fields = self._fields
        if kind == _CONFIGURATION:
            fields.take(1, "the configuration")
            _check_id_size(fields)
            fields.take(_ID_BYTES, "the configuration")
        elif kind == _MESSAGE:
            store_id = fields.take(_ID_BYTES, "a message")
            publisher = fields.string("a client id")
            user = b""
            if self.version == 4:
                user = fields.string("a user name")
                fields.take(2, "a port")
            fields.take(4, "packet identifiers")
            topic = fields.string("a Topic Name")
            qos = fields.number(1, "a QoS")
            retain = fields.number(1, "a retain flag")
            payload = fields.take(fields.number(4, "a payload"), "a payload")
            self._add_message(store_id, topic, payload, qos, retain, None, 0, publisher, user)
        elif kind == _CLIENT_MESSAGE:
            client_id = fields.string("a client id")
            store_id = fields.take(_ID_BYTES, "a message of a client")
            packet_id = fields.number(2, "a packet identifier")
            qos, retain, direction, state, _dup = fields.take(5, "a message of a client")
            self._add_client_message(client_id, store_id, packet_id, qos, state, retain != 0, direction, 0)
        elif kind == _RETAINED:
            self._imported.retain(self._messages.get(fields.take(_ID_BYTES, "a retained message")))
        elif kind == _SUBSCRIPTION:
            client_id = fields.string("a client id")
            topic_filter = fields.string("a Topic Filter")
            self._add_subscription(client_id, topic_filter, fields.number(1, "a QoS"), 0)
        else:
            start = fields.at
            client_id = fields.string("a client id")
            fields.take(2, "a packet identifier")
            if self.version >= 3:
                fields.take(self._time_bytes(length - (fields.at - start)), "the time of a client")
            self._add_session(client_id, None, NEVER_EXPIRES, 0)

    def _time_bytes(self, rest: int) -> int:
        """Say whether the machine's time_t had 4 or 8 bytes: what the chunk's length says, if a chunk follows there."""
        likely = (4, 8) if rest == 4 else (8, 4)
        for count in likely:
            if self._is_chunk(self._fields.at + count):
                return count
        return likely[0]

    def _is_chunk(self, at: int) -> bool:
        """Whether the file ends there or the header of a chunk follows."""
        fields = self._fields
        if at >= fields.end:
            return at == fields.end
        here = fields.at
        fields.go_to(at)
        try:
            kind, length = _OLD_CHUNK.unpack(fields.take(_OLD_CHUNK.size, "a chunk's header"))
        except _Damage:
            return False
        finally:
            fields.go_to(here)
        return kind in _CHUNKS and length <= fields.end


def _check_id_size(fields: _Fields) -> None:
    at = fields.at
    size = fields.number(1, "the configuration")
    if size != _ID_BYTES:
        raise _Damage(at, f"identifiers of {size} bytes, of {_ID_BYTES} are read")


def _wall_time(data: bytes) -> int:
    """Read a time in the byte order of the machine that wrote it, most probably a little-endian one."""
    time = int.from_bytes(data, "little", signed=True)
    return time if abs(time) < _LATEST else int.from_bytes(data, "big", signed=True)
