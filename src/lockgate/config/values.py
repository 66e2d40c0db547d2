"""Kinds of values in lockgate.toml: what is accepted, and what becomes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lockgate.config import placeholders
from lockgate.config.model import ExpectedMessage, GivenMessage, HttpBodyConfig, RuleTest, Window

_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


class BadValue(Exception):
    """A value that cannot be used. The text says why where `accepted` of its kind does not say it all.

    `below` names the member of it that is at fault.
    """

    def __init__(self, *arguments: object, below: tuple[str, ...] = ()) -> None:
        super().__init__(*arguments)
        self.below = below


@dataclass(frozen=True, slots=True)
class Kind:
    """`read` turns what TOML gave into what the model wants, or raises BadValue."""

    accepted: str
    read: Callable[[object], object]
    text: bool = False  # an environment variable is taken as it stands, not as a TOML value
    secret: bool = False  # may hold a password, so messages do not repeat it


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise BadValue
    return value


def _any_text(value: object) -> str:
    if not isinstance(value, str):
        raise BadValue
    return value


def _path(value: object) -> Path:
    text = _text(value)
    if "\0" in text:
        raise BadValue("a path holds no NUL")
    return Path(text)


def _number_with_unit(value: object, units: dict[str, float] | dict[str, int]) -> float:
    if isinstance(value, bool):
        raise BadValue
    if isinstance(value, int | float):
        return float(value)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise BadValue
    return float(match[1]) * units[match[2]]


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise BadValue
    if len(set(value)) != len(value):
        raise BadValue("a name stands there twice")
    return tuple(value)


def _some_names(value: object) -> tuple[str, ...]:
    if not (names := _names(value)):
        raise BadValue("the list is empty")
    return names


def _hosts(value: object) -> tuple[str, ...]:
    hosts = _some_names(value)
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise BadValue(f"{host!r} is no host name")
    return hosts


def _dns_names(value: object) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.lower() for name in _hosts(value)))
    for name in names:
        if name.startswith("*.") or name.rpartition(".")[2].isdigit() or len(name) > _LONGEST_NAME:
            raise BadValue(f"{name!r} is not the name of one host")
    return names


_LONGEST_NAME = 253  # in text, RFC 1035 §2.3.4
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def _topic_filters(value: object) -> tuple[str, ...]:
    filters = _some_names(value)
    for topic_filter in filters:
        check_topic_filter(topic_filter)
    return filters


def check_topic_filter(topic_filter: str) -> None:
    """Raise BadValue unless `topic_filter` is a Topic Filter (MQTT 5 §4.7.1)."""
    levels = topic_filter.split("/")
    if "\0" in topic_filter or len(topic_filter.encode()) > 65535:
        raise BadValue(f"{topic_filter!r} is no Topic Filter: a NUL, or longer than 65535 bytes")
    if levels[0] == "$share":
        if len(levels) < 3 or not levels[1] or set(levels[1]) & set("+#"):
            raise BadValue(f"{topic_filter!r} is no Topic Filter: $share/GROUP/FILTER")
        levels = levels[2:]
    for number, level in enumerate(levels):
        if "#" in level and (level != "#" or number != len(levels) - 1):
            raise BadValue(f"{topic_filter!r} is no Topic Filter: # must be the whole last level")
        if "+" in level and level != "+":
            raise BadValue(f"{topic_filter!r} is no Topic Filter: + must be a whole level")


def _topic_name(value: object) -> str:
    name = _text(value)
    if set(name) & set("+#\0") or len(name.encode()) > 65535:
        raise BadValue(f"{name!r} is no Topic Name")
    return name


def _fields(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not value:
        raise BadValue
    for name, type_ in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise BadValue(f"{name!r} is no name of a column: letters, digits and _")
        if type_ not in ("integer", "real", "text"):
            raise BadValue(f"{name} = {type_!r} is no type")
    return tuple(value.items())


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise BadValue
    for name, content in value.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise BadValue(f"{name!r} is no name of a header")
        if not isinstance(content, str) or set(content) & set("\r\n\0"):
            raise BadValue(f"{name} must be text in one line")
    return tuple(value.items())


def _email(value: object) -> str:
    text = _text(value)
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", text):
        raise BadValue
    return text


_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def _address(value: object) -> str:
    text = _text(value)
    match = _ADDRESS.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise BadValue(f"{text!r} is no address")
    return text


def _tables(value: object) -> tuple[dict[str, object], ...]:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise BadValue
    return tuple(value)


def _header_files(value: object) -> tuple[tuple[str, Path], ...]:
    return tuple((name, _path(path)) for name, path in _headers(value))


def _json_body(value: object) -> HttpBodyConfig:
    _check_texts(value)
    return HttpBodyConfig("json", value)


def _form_body(value: object) -> HttpBodyConfig:
    if not isinstance(value, dict) or not value or not all(isinstance(one, str) for one in value.values()):
        raise BadValue
    _check_texts(value)
    return HttpBodyConfig("form", value)


def _check_texts(value: object) -> None:
    """Raise BadValue for a placeholder that means nothing, and for what JSON cannot say."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _check_texts(one)
    elif isinstance(value, str):
        try:
            placeholders.parse(value)
        except ValueError as error:
            raise BadValue(str(error)) from None
    elif isinstance(value, float) and not isfinite(value):
        raise BadValue(f"JSON has no {value}")
    elif not isinstance(value, bool | int | float):
        raise BadValue("JSON has no dates; write text")
    elif abs(value) >= 1 << 63:
        raise BadValue(f"{value} is too large")


def url(*schemes: str) -> Kind:
    accepted = " or ".join(f"{scheme}://HOST[:PORT]" for scheme in schemes)

    def read(value: object) -> str:
        text = _text(value)
        try:
            parts = urlsplit(text)
            if parts.scheme not in schemes or not parts.hostname or parts.port == 0:
                raise BadValue
        except ValueError as error:  # a port that is no number, a broken IPv6 address
            raise BadValue(str(error)) from None
        return text

    return Kind(accepted, read, text=True, secret=True)


def whole_number(low: int, high: int) -> Kind:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadValue
        return value

    return Kind(f"{low} to {high}", read)


def rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise BadValue
    return float(value)


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadValue
    return value


def _networks(value: object) -> tuple[IPv4Network | IPv6Network, ...]:
    found = []
    for one in _names(value):
        try:
            found.append(ip_network(one))
        except ValueError as error:
            raise BadValue(str(error)) from None
    return tuple(found)


def duration(low: float, high: float) -> Kind:
    def read(value: object) -> float:
        seconds = _number_with_unit(value, _DURATIONS)
        if not low <= seconds <= high:
            raise BadValue
        return seconds

    return Kind(f'{spell_duration(low)} to {spell_duration(high)}, as "500ms", "10s", "5m", "1h" or seconds', read)


def whole_seconds(low: int, high: int) -> Kind:
    seconds = duration(low, high)

    def read(value: object) -> int:
        count = seconds.read(value)
        if not isinstance(count, float) or not count.is_integer():
            raise BadValue
        return int(count)

    return Kind(f"{seconds.accepted}, without fractions", read)


def size(low: int, high: int) -> Kind:
    def read(value: object) -> int:
        count = _number_with_unit(value, _SIZES)
        if not low <= count <= high or count != int(count):
            raise BadValue
        return int(count)

    return Kind(f'{spell_size(low)} to {spell_size(high)}, as "64MiB" or bytes', read)


def one_of(*choices: str) -> Kind:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise BadValue
        return value

    return Kind(" or ".join(f'"{choice}"' for choice in choices), read, text=True)


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"(?:([a-z,-]+) )?([0-2]\d):([0-5]\d)-([0-2]\d):([0-5]\d)")


def _windows(value: object) -> tuple[Window, ...]:
    return tuple(_window(text) for text in _some_names(value))


def _window(text: str) -> Window:
    match = _WINDOW.fullmatch(text)
    hours = [int(match[group]) * 60 + int(match[group + 1]) for group in (2, 4)] if match is not None else []
    if match is None or max(hours) > 24 * 60:
        raise BadValue(f"{text!r} is no window")
    days: set[int] = set()
    for part in (match[1] or "mon-sun").split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise BadValue(f"{part!r} of {text!r} is no day (mon, tue, wed, thu, fri, sat, sun)")
        day = _DAYS.index(first)
        days.add(day)
        while _DAYS[day] != (last or first):
            day = (day + 1) % 7
            days.add(day)
    return Window(frozenset(days), *hours)


def _time_zone(value: object) -> str:
    from zoneinfo import ZoneInfo  # a broker has no use for it

    name = _text(value)
    try:
        ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise BadValue("this machine does not know it (tzdata)") from None
    return name


def spell_duration(seconds: float) -> str:
    for unit, length in reversed(_DURATIONS.items()):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds * 1000:g}ms"


def spell_size(count: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if count >= _SIZES[unit] and count % _SIZES[unit] == 0:
            return f"{count // _SIZES[unit]}{unit}"
    return f"{count}B"


def _delimiter(value: object) -> str:
    if not isinstance(value, str) or len(value) != 1 or value in '"\r\n':
        raise BadValue
    return value


def _rule_tests(value: object) -> tuple[RuleTest, ...]:
    if not isinstance(value, list):
        raise BadValue
    return tuple(_rule_test(one, number) for number, one in enumerate(value, start=1))


def _rule_test(value: object, number: int) -> RuleTest:
    if not isinstance(value, dict) or value.keys() != {"given", "expect"}:
        raise BadValue(f"test {number} has not the keys given and expect")
    messages: dict[str, list[Any]] = {
        key: value[key] if isinstance(value[key], list) else [None] for key in ("given", "expect")
    }
    for key, known in (("given", {"topic", "payload", "hex", "at"}), ("expect", {"topic", "payload", "device_ts"})):
        for one in messages[key]:
            if not isinstance(one, dict) or not isinstance(one.get("topic"), str) or one.keys() - known:
                raise BadValue(f"in test {number}, {key} is no list of tables with {', '.join(sorted(known))}")
    return RuleTest(
        given=tuple(_given(one, number) for one in messages["given"]),
        expect=tuple(_expected(one, number) for one in messages["expect"]),
    )


def _given(one: dict[str, object], number: int) -> GivenMessage:
    said, digits = one.get("payload"), one.get("hex")
    if isinstance(digits, str) and said is None:
        try:
            payload = bytes.fromhex(digits)
        except ValueError as error:
            raise BadValue(f"in test {number}: hex: {error}") from None
    elif isinstance(said, str):
        payload = said.encode()
    elif said is not None:
        try:
            payload = json.dumps(said).encode()
        except TypeError as error:  # a date
            raise BadValue(f"in test {number}: payload: {error}") from None
    else:
        raise BadValue(f"in test {number} a message that is given has neither payload nor hex")
    at = _number_with_unit(one.get("at", 0), _DURATIONS)
    return GivenMessage(topic=str(one["topic"]), payload=payload, at_seconds=at)


def _expected(one: dict[str, object], number: int) -> ExpectedMessage:
    payload, device_ts = one.get("payload", {}), one.get("device_ts")
    if not isinstance(payload, dict) or not isinstance(device_ts, int | None):
        raise BadValue(f"in test {number}, payload of expect is no table, or device_ts no integer")
    return ExpectedMessage(topic=str(one["topic"]), payload=payload, device_ts=device_ts)


RULE_TESTS = Kind("tables [[rules.NAME.test]] with `given` and `expect`, lists of messages", _rule_tests)
DELIMITER = Kind("one character", _delimiter, text=True)
TEXT = Kind("text that is not empty", _text, text=True)
COUNT = Kind("0 to 1000000000", whole_number(0, 1_000_000_000).read)
RATE = Kind("0 or more, fractions too", rate)
YES_OR_NO = Kind("true or false", _yes_or_no)
SIZE_OR_NONE = Kind('0, or a size as "64MiB" or bytes', size(0, 1024**5).read)
NETWORKS = Kind('addresses or networks, as ["192.0.2.1", "10.0.0.0/8"]', _networks)
ADDRESS = Kind("HOST:PORT or [IPV6]:PORT", _address, text=True)
ADDRESSES = Kind(
    'a list of addresses, as ["edge.example:7844", "[2001:db8::1]:7844"]',
    lambda value: tuple(_address(one) for one in _some_names(value)),
)
TABLES = Kind("tables, as [[connector.ingress]]", _tables)
ANY_TEXT = Kind("text", _any_text, text=True)
PATH = Kind("a path, from the folder of lockgate.toml if it is relative", _path, text=True)
NAMES = Kind("a list of names, each once", _some_names)
NAMES_OR_NONE = Kind("a list of names, each once", lambda value: frozenset(_names(value)))
HOSTS = Kind('a list of host names, as ["a.example", "*.b.example"]', _hosts)
DNS_NAMES = Kind('a list of host names without *, as ["a.example", "b.example"]', _dns_names)
EMAIL = Kind("an address, as admin@example.org", _email, text=True)
TOPIC_FILTERS = Kind('a list of Topic Filters, as ["sensors/#"]', _topic_filters)
TOPIC_NAME = Kind("a Topic Name, without + and #", _topic_name, text=True)
FIELDS = Kind('columns and their types, as { value = "real", unit = "text", count = "integer" }', _fields)
WINDOWS = Kind('a list of windows, as ["22:00-06:00", "sat,sun 12:00-14:00"]', _windows)
TIME_ZONE = Kind("a time zone, as Europe/Vienna", _time_zone, text=True)
HEADER_FILES = Kind('paths by name, as { Authorization = "/run/secrets/api" }', _header_files)
JSON_BODY = Kind(
    f'what the JSON is to be, as {{ to = "+49…", text = "{{payload.text}}" }}: {placeholders.ACCEPTED}', _json_body
)
FORM_BODY = Kind(f'text by name, as {{ to = "+49…", text = "{{payload.text}}" }}: {placeholders.ACCEPTED}', _form_body)
HEADERS = Kind('text by name, as { Authorization = "Bearer …" }', _headers, secret=True)
