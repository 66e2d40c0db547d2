"""The path of a request and what its message says → the topic it is published to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from lockgate.config.model import HttpRouteConfig
from lockgate.config.templates import CONTROL
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.topics import check_topic_name

_BODY: Final = "body."
_TOPIC_BYTES: Final = 65_535


class NoTopic(Exception):
    """What a client said cannot be part of a topic."""


def find(routes: Sequence[HttpRouteConfig], raw_path: str) -> list[tuple[HttpRouteConfig, dict[str, str]]]:
    """Give the routes of a path as it stands in the request, with their variables.

    Raises NoTopic for a path whose levels could not be those of a topic: one that is empty, or holds what the escapes
    hide.
    """
    if not raw_path.startswith("/"):
        return []
    levels: list[str] = []
    for part in raw_path[1:].split("/"):
        try:
            levels.append(unquote_to_bytes(part).decode("utf-8"))
        except UnicodeDecodeError:
            raise NoTopic("the path is not valid UTF-8") from None
    found = [(route, match) for route in routes if (match := route.path.match(levels)) is not None]
    if any(match for _, match in found):
        for level in levels:
            check_level(level, "the path")
    return found


def topic_of(route: HttpRouteConfig, variables: Mapping[str, str], document: Mapping[str, object] | None) -> str:
    """Give the topic of a message. Raises NoTopic."""
    values = dict(variables)
    for name in route.topic.variables:
        if name not in values:
            values[name] = _member(document, name.removeprefix(_BODY))
    topic = route.topic.fill(values)
    try:
        check_topic_name(topic)
        length = len(topic.encode())
    except (MqttError, UnicodeEncodeError) as error:
        raise NoTopic(str(error)) from None
    if length > _TOPIC_BYTES:
        raise NoTopic(f"a topic of more than {_TOPIC_BYTES} bytes")
    return topic


def check_level(level: str, where: str) -> None:
    """Raise NoTopic unless a text can be one level of a topic."""
    if not level:
        raise NoTopic(f"{where} has an empty level")
    if set(level) & set("+#/") or CONTROL.search(level):
        raise NoTopic(f"{where} has a level with +, #, / or a control character")


def _member(document: Mapping[str, object] | None, path: str) -> str:
    value: object = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise NoTopic(f"the message has no text or whole number at {path}")
    text = str(value)
    check_level(text, f"{path} of the message")
    return text
