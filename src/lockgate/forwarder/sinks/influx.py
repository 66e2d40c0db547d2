"""Points of InfluxDB's line protocol over HTTP."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import orjson

from lockgate.buffer import Row
from lockgate.config.errors import ConfigError
from lockgate.config.model import InfluxSinkConfig
from lockgate.config.secrets import first_line_text
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import Sent
from lockgate.forwarder.sinks.http import PostSink

_LONGEST_TEXT = 64 * 1024  # of a field


class InfluxSink(PostSink):
    """One point for a message: tags `topic` and those configured, fields the numbers, texts and booleans of its JSON.

    All numbers are written as floats, so that a field keeps its type. The nanoseconds of a point are its seq: messages
    of one millisecond stay apart, and a message that comes again lies on itself.
    """

    def __init__(self, config: InfluxSinkConfig, messages: Messages) -> None:
        super().__init__(config, messages, config.url, config.compression)
        self._influx = config
        self._token: str | None = None

    async def send(self, rows: Sequence[Row]) -> Sent:
        if self._influx.token_file is not None:
            try:
                self._token = first_line_text(self._influx.token_file)
            except ConfigError as error:
                return Sent(0, fault=str(error))
        poison = {row.seq: "nothing of its payload can be a field" for row in rows if not self._fields(row)}
        rest = [row for row in rows if row.seq not in poison]
        sent = await super().send(rest) if rest else Sent(0)
        if sent.fault is None:
            return Sent(len(rows), {**poison, **sent.poison})
        end = rows.index(rest[sent.settled])
        until = {row.seq for row in rows[:end]}
        poison = {seq: why for seq, why in {**poison, **sent.poison}.items() if seq in until}
        return Sent(end, poison, sent.fault, sent.answered)

    def body(self, rows: Sequence[Row]) -> bytes:
        return b"".join(self._line(row) for row in rows)

    def headers(self, rows: Sequence[Row]) -> dict[str, str]:
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        return headers | ({"Authorization": f"Token {self._token}"} if self._token is not None else {})

    def _line(self, row: Row) -> bytes:
        document = _document(row)
        tags = {"topic": row.topic, "class": row.message_class}
        for name in self._influx.tags:
            if isinstance(value := document.get(name), str | int | float) and not isinstance(value, bool):
                tags[name] = str(value)
        keys = "".join(f",{_key(name)}={_key(value)}" for name, value in tags.items() if value)
        measurement = (
            (self._influx.measurement or row.schema or row.message_class).replace(",", r"\,").replace(" ", r"\ ")
        )
        fields = ",".join(f"{_key(name)}={value}" for name, value in self._fields(row).items())
        wall_ns = self.messages.wall_time(row)[0]
        milliseconds = row.device_ts if row.device_ts is not None else wall_ns // 1_000_000
        return f"{measurement}{keys} {fields} {milliseconds * 1_000_000 + row.seq % 1_000_000}\n".encode()

    def _fields(self, row: Row) -> dict[str, str]:
        return {
            name: text
            for name, value in _flat(_document(row))
            if name not in self._influx.tags and (text := _field(value)) is not None
        }


def _document(row: Row) -> Mapping[str, object]:
    """The JSON object of a payload; another value is its `value`."""
    try:
        document = orjson.loads(row.payload)
    except orjson.JSONDecodeError:
        try:
            document = row.payload.decode()
        except UnicodeDecodeError:
            return {}
    return document if isinstance(document, dict) else {"value": document}


def _flat(document: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif name:
            yield prefix + name, value


def _field(value: object) -> str | None:
    """A value of the line protocol; null and lists have none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        number = float(value) if abs(value) < 1e308 else math.inf
        return repr(number) if math.isfinite(number) else None
    if isinstance(value, str) and len(value) <= _LONGEST_TEXT:
        text = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ").replace("\r", " ")
        return f'"{text}"'
    return None


def _key(name: str) -> str:
    """A tag, or the name of a field; a line break cannot be written."""
    text = name.replace("\n", " ").replace("\r", " ").rstrip("\\")
    for special in (",", "=", " "):
        text = text.replace(special, "\\" + special)
    return text
