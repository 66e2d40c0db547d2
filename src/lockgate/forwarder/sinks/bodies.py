"""The body of a request as somebody else's API wants it, with what a message brings in its places."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import orjson

from lockgate.buffer import Row
from lockgate.config.model import HttpBodyConfig
from lockgate.config.placeholders import Placeholder, Template, parse
from lockgate.forwarder.messages import Messages

_EPOCH: Final = datetime.datetime.fromtimestamp(0, datetime.UTC)


class Unfit(ValueError):
    """A message lacks what the body asks for."""


class Body:
    """Writes the body for one message; what is put in is escaped by whoever writes the JSON or the form."""

    def __init__(self, config: HttpBodyConfig, messages: Messages) -> None:
        self.content_type = {"json": "application/json", "form": "application/x-www-form-urlencoded"}[config.encoding]
        self._is_form = config.encoding == "form"
        self._content = _parsed(config.content)
        self._messages = messages

    def of(self, row: Row) -> bytes:
        """Raises Unfit."""
        filled = _filled(self._content, _Values(row, self._messages))
        if self._is_form:
            return urlencode({name: _spelt(value) for name, value in filled.items()}).encode()
        return orjson.dumps(filled)


class _Values:
    """What the placeholders stand for in one message."""

    def __init__(self, row: Row, messages: Messages) -> None:
        self._row = row
        self._messages = messages
        self._payload: object = None
        self._is_parsed = False

    def of(self, placeholder: Placeholder) -> object:
        row = self._row
        match placeholder.name:
            case "payload":
                return self._member(placeholder)
            case "payload_base64":
                return base64.b64encode(row.payload).decode()
            case "topic":
                return row.topic
            case "class":
                return row.message_class
            case "id":
                return self._messages.id_of(row)
            case "gateway":
                return self._messages.gateway_id
            case "device_time":
                return row.device_ts
        milliseconds = self._messages.wall_time(row)[0] // 1_000_000
        if placeholder.name == "time":
            return milliseconds
        at = _EPOCH + datetime.timedelta(milliseconds=milliseconds)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _member(self, placeholder: Placeholder) -> object:
        if not self._is_parsed:
            self._payload, self._is_parsed = _payload(self._row.payload), True
        value = self._payload
        for member in placeholder.members:
            if isinstance(value, dict) and member in value:
                value = value[member]
            elif isinstance(value, list) and member.isdecimal() and int(member) < len(value):
                value = value[int(member)]
            else:
                raise Unfit(f"the payload has nothing for {placeholder}")
        return value


def _payload(payload: bytes) -> object:
    """The JSON, or else the text."""
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        try:
            return payload.decode()
        except UnicodeDecodeError:
            raise Unfit("the payload is neither JSON nor text") from None


def _parsed(node: object) -> Any:
    """The same with each text parted at its placeholders."""
    if isinstance(node, str):
        return parse(node)
    if isinstance(node, Mapping):
        return {name: _parsed(one) for name, one in node.items()}
    return [_parsed(one) for one in node] if isinstance(node, list) else node


def _filled(node: Any, values: _Values) -> Any:
    if isinstance(node, tuple):
        return _text(node, values)
    if isinstance(node, dict):
        return {name: _filled(one, values) for name, one in node.items()}
    return [_filled(one, values) for one in node] if isinstance(node, list) else node


def _text(template: Template, values: _Values) -> object:
    """A placeholder that stands alone keeps its type; within text it becomes text."""
    if len(template) == 1 and isinstance(template[0], Placeholder):
        return values.of(template[0])
    return "".join(part if isinstance(part, str) else _spelt(values.of(part)) for part in template)


def _spelt(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value).decode()
