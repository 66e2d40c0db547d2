"""The gate: which schema a message belongs to, and its payload as typed columns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from lockgate.config.errors import ConfigError
from lockgate.config.model import SchemaConfig
from lockgate.processor.formats import NotAccepted, decoder, gate

if TYPE_CHECKING:
    from lockgate.processor.sparkplug import Sparkplug
    from lockgate.processor.state import Memory

__all__ = ["GIVEN_COLUMNS", "NotAccepted", "Schema", "Schemas", "Value"]

Value = int | float | str | None

GIVEN_COLUMNS: Final = (("topic", "TEXT"), ("received_at", "INTEGER"))  # what every message has beside its fields
_RESERVED: Final = frozenset({"topic", "received_at", "window_start", "window_end"})
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SQL_TYPES: Final = {"integer": "INTEGER", "real": "REAL", "text": "TEXT"}
_INT64: Final = range(-(1 << 63), 1 << 63)
_CACHED_TOPICS: Final = 10_000
_LONGEST_TEXT: Final = 2_000_000  # characters of all fields: as JSON too less than what the sandbox of rules can hold


class Schema:
    """One [schemas.NAME]."""

    def __init__(self, config: SchemaConfig) -> None:
        self.name = config.name
        self.config = config
        _check(config)
        self._decode = decoder(config)
        self._gate = gate(config)
        self._optional = config.optional
        self._sparkplug: Sparkplug | None = None
        if config.format == "sparkplug":
            from lockgate.processor.sparkplug import MAY_BE_NULL, Sparkplug

            self._sparkplug = Sparkplug()
            self._optional |= MAY_BE_NULL
        self.columns = tuple((name, SQL_TYPES[kind]) for name, kind in config.fields) + GIVEN_COLUMNS

    def place(self, field: str) -> int:
        """Where a field stands among the columns."""
        return [name for name, _ in self.columns].index(field)

    def decode(self, payload: bytes) -> list[Value]:
        """The fields in the order of `columns`; raises NotAccepted."""
        document = self._decode(payload)
        if self._gate is not None:
            self._gate(document)
        return self._typed(document)

    @property
    def in_parts(self) -> bool:
        """Whether a message may be several rows, of which each depends on messages before."""
        return self._sparkplug is not None

    def decode_all(self, topic: str, payload: bytes, memory: Memory) -> list[list[Value]]:
        """The rows of a message, mostly one; raises NotAccepted. `memory` has what messages before have said."""
        if self._sparkplug is None:
            return [self.decode(payload)]
        memory.begin(f"#{self.name}")
        documents = self._sparkplug.decode(topic, payload, memory)
        rows = []
        for document in documents:
            if self._gate is not None:
                self._gate(document)
            rows.append(self._typed(document))
        memory.keep()
        return rows

    def to_log(self, payload: bytes, values: Sequence[Value]) -> bytes:
        """What is logged of a message for windows: a JSON object, whatever its format."""
        if self.config.format == "json":
            return payload
        return orjson.dumps({name: value for (name, _), value in zip(self.config.fields, values, strict=False)})

    def decode_logged(self, payload: bytes) -> list[Value]:
        """The fields of what was logged; raises NotAccepted where the schema is another one since, or a bit flipped."""
        try:
            document = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise NotAccepted("not JSON", str(error)) from None
        return self._typed(document)

    def _typed(self, document: object) -> list[Value]:
        if not isinstance(document, dict):
            reason = "not a JSON object" if self.config.format == "json" else "not an object"
            raise NotAccepted(reason, f"it is {_json_type(document)}")
        values: list[Value] = []
        characters = 0
        for name, kind in self.config.fields:
            value = document.get(name)
            if self.config.misfits == "coerce":
                value = _coerced(value, kind)
            if type(value) is float and not math.isfinite(value):
                value = None  # neither SQL nor the log, which is JSON, knows it
            if value is None:
                if name not in self._optional:
                    detail = "null, NaN and infinity count as missing" if name in document else ""
                    raise NotAccepted(f"field {name} missing", detail)
                values.append(None)
            elif kind == "real" and (type(value) is float or (type(value) is int and value.bit_length() < 1024)):
                values.append(float(value))
            elif (kind == "integer" and type(value) is int and value in _INT64) or (
                kind == "text" and type(value) is str
            ):
                values.append(value)
            else:
                raise NotAccepted(f"field {name} not {kind}", f"it is {_json_type(value)}")
            if type(value) is str:
                characters += len(value)
                if characters > _LONGEST_TEXT:
                    raise NotAccepted(f"field {name} too long", f"more than {_LONGEST_TEXT} characters")
        return values


def _coerced(value: Any, kind: str) -> Any:
    """The value as the kind of its column where nothing of it is lost, else as it is."""
    try:
        if kind == "text" and type(value) in (int, float):
            return str(value)
        if kind != "text" and type(value) is bool:
            return int(value)
        if kind == "integer" and type(value) in (str, float):
            number = float(value)
            return (
                int(value)
                if type(value) is str and abs(number) >= 2**53
                else int(number)
                if number.is_integer()
                else value
            )
        if kind == "real" and type(value) is str:
            number = float(value)
            return number if math.isfinite(number) else value
    except (ValueError, OverflowError):
        pass
    return value


class Schemas:
    """Finds the schema of a topic."""

    def __init__(self, configs: Sequence[SchemaConfig]) -> None:
        self.by_name = {config.name: Schema(config) for config in configs}
        named = tuple(dict.fromkeys(f for config in configs for f in config.topics))
        # A broker sends a message once for each filter that matches, so one that lies within another is not subscribed.
        self.covered = tuple(f for f in named if any(f != other and _covers(other, f) for other in named))
        self.topic_filters = tuple(f for f in named if f not in self.covered)
        self._levels = [(f.split("/"), self.by_name[config.name]) for config in configs for f in config.topics]
        self._found: dict[str, Schema | None] = {}

    def of(self, topic: str) -> Schema | None:
        """The first that matches, in the order of the configuration."""
        try:
            return self._found[topic]
        except KeyError:
            pass
        levels = topic.split("/")
        found = next((schema for pattern, schema in self._levels if _matches(pattern, levels)), None)
        if len(self._found) >= _CACHED_TOPICS:
            self._found.clear()
        self._found[topic] = found
        return found


def _covers(general: str, special: str) -> bool:
    """Whether a Topic Filter matches every topic that the other one does."""
    within = special.split("/")
    levels = general.split("/")
    if levels[0] in ("+", "#") and within[0].startswith("$"):
        return False
    for place, level in enumerate(levels):
        if level == "#":
            return True
        if place >= len(within) or within[place] == "#" or level not in ("+", within[place]):
            return False
    return len(levels) == len(within)


def overlap(one: str, other: str) -> bool:
    """Whether there are topics that both Topic Filters match."""
    first, second = one.split("/"), other.split("/")
    for mine, its in ((first[0], second[0]), (second[0], first[0])):
        if mine in ("+", "#") and its.startswith("$"):
            return False
    for left, right in zip(first, second, strict=False):
        if "#" in (left, right):
            return True
        if left != right and "+" not in (left, right):
            return False
    shorter, longer = sorted((first, second), key=len)
    return len(shorter) == len(longer) or longer[len(shorter) :] == ["#"]


def _matches(pattern: list[str], levels: list[str]) -> bool:
    if levels[0].startswith("$") and pattern[0] in ("+", "#"):
        return False
    for place, level in enumerate(pattern):
        if level == "#":
            return True
        if place >= len(levels) or level not in ("+", levels[place]):
            return False
    return len(pattern) == len(levels)


def check_name(name: str) -> str | None:
    """Why SQL cannot know something by this name; None where it can."""
    return None if _NAME.fullmatch(name) else f"{name!r} cannot name a table or a column: letters, digits and _"


def _check(config: SchemaConfig) -> None:
    key = f"schemas.{config.name}"
    if not _NAME.fullmatch(config.name):
        raise ConfigError(f"{config.name!r} cannot name a table", key=key, accepted="letters, digits and _")
    seen: set[str] = set()
    for name, _ in config.fields:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a column", key=f"{key}.fields", accepted="letters, digits and _")
        if name.lower() in _RESERVED:
            taken = ", ".join(sorted(_RESERVED))
            raise ConfigError(f"{name!r} is a column of every message", key=f"{key}.fields", accepted=f"not {taken}")
        if name.lower() in seen:
            raise ConfigError(f"{name!r} stands twice (case does not count)", key=f"{key}.fields")
        seen.add(name.lower())
    unknown = config.optional - {name for name, _ in config.fields}
    if unknown:
        raise ConfigError(f"{sorted(unknown)} are not among the fields", key=f"{key}.optional")


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() if value not in _INT64:
            return "an integer beyond 64 bits"
        case int():
            return "an integer"
        case float():
            return "a real"
        case str():
            return "a text"
        case bytes():
            return "bytes"
        case list():
            return "an array"
        case _:
            return "an object"
