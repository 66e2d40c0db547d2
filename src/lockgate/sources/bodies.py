"""The body of a pushed request → messages: one document, the elements of an array, or lines."""

from __future__ import annotations

from typing import Final, NamedTuple

import orjson

_LINES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-lines"})
# Payloads that schemas read and nobody here looks into
_OPAQUE: Final = frozenset(
    {
        "text/plain",
        "application/octet-stream",
        "application/cbor",
        "application/msgpack",
        "application/x-msgpack",
        "application/vnd.msgpack",
        "application/protobuf",
        "application/x-protobuf",
    }
)
ACCEPTED: Final = ("application/json", *sorted(_LINES), *sorted(_OPAQUE))


class Pushed(NamedTuple):
    """One message of a request; `document` is what its JSON says, None of what is no JSON object."""

    payload: bytes
    document: dict[str, object] | None


class UnknownType(Exception):
    """A Content-Type that no message is read from."""


def split(content_type: str, body: bytes) -> list[Pushed]:
    """Give the messages of a body, whose type is without parameters and may be empty: then it is JSON.

    Raises UnknownType, and ValueError with the place for JSON that is none.
    """
    if content_type in _OPAQUE:
        return [Pushed(body, None)]
    if content_type in _LINES:
        lines = [(number, line.strip()) for number, line in enumerate(body.split(b"\n"), start=1)]
        return [_pushed(line, f"line {number}: ") for number, line in lines if line]
    if content_type not in ("", "application/json") and not content_type.endswith("+json"):
        raise UnknownType(content_type)
    value = _load(body, "")
    if not isinstance(value, list):
        return [Pushed(body.strip(), value if isinstance(value, dict) else None)]
    return [Pushed(orjson.dumps(one), one if isinstance(one, dict) else None) for one in value]


def _pushed(line: bytes, place: str) -> Pushed:
    value = _load(line, place)
    return Pushed(line, value if isinstance(value, dict) else None)


def _load(text: bytes, place: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{place}{error}") from None
