"""`-D COMMAND NAME VALUE`: properties of version 5 for the packets the programs send."""

from __future__ import annotations

from typing import Final

from lockgate.cli.mosquitto_options import UsageError, number
from lockgate.mqtt.properties import IN_WILL, KINDS, SESSION_EXPIRY_INTERVAL, USER_PROPERTY, Properties, PropertyKind

# Bits of `PropertyKind.allowed`
_COMMANDS: Final[dict[str, int]] = {
    "connect": 1 << 1,
    "publish": 1 << 3,
    "subscribe": 1 << 8,
    "unsubscribe": 1 << 10,
    "disconnect": 1 << 14,
    "will": IN_WILL,
}
_NOT_SUPPORTED: Final[dict[str, int]] = {
    "puback": 1 << 4,
    "pubrec": 1 << 5,
    "pubrel": 1 << 6,
    "pubcomp": 1 << 7,
    "auth": 1 << 15,
}
_PLURALS: Final = {"user_properties": "user-property", "subscription_identifiers": "subscription-identifier"}
_BY_NAME: Final[dict[str, PropertyKind]] = {
    _PLURALS.get(kind.name, kind.name.replace("_", "-")): kind for kind in KINDS.values()
}
_HIGHEST: Final = {0: 0xFF, 1: 0xFFFF, 2: 0xFFFF_FFFF, 3: 268_435_455}  # by type on the wire, where it is a number
_STRING: Final = 4
_BINARY: Final = 5
_NOT_ZERO: Final = frozenset({"receive_maximum", "maximum_packet_size", "topic_alias"})
_FLAGS: Final = frozenset({"request_problem_information", "request_response_information"})


class PropertyList:
    """The properties given for one command, and what is wrong with them."""

    def __init__(self) -> None:
        self.properties = Properties()
        self.problem: str | None = None

    def add(self, kind: PropertyKind, value: object) -> None:
        given = getattr(self.properties, kind.name)
        if isinstance(given, tuple):
            setattr(self.properties, kind.name, (*given, value))
            return
        if given is not None:
            self.problem = "Duplicate property in property list"
        if (kind.name in _NOT_ZERO and value == 0) or (kind.name in _FLAGS and value not in (0, 1)):
            self.problem = "A network protocol error occurred when communicating with the broker."
        setattr(self.properties, kind.name, value)


def take_property(lists: dict[str, PropertyList], words: list[str]) -> int:
    """Take one property from the front of `words`; gives how many it used. Raises UsageError."""
    pair = len(words) > 1 and words[1] == "user-property"
    if len(words) < (4 if pair else 3):
        raise UsageError("Error: --property argument given but not enough arguments specified.\n\n")
    given, name, value = words[:3]
    command = given.lower()
    bit = _COMMANDS.get(command, 0) or _NOT_SUPPORTED.get(command, 0)
    if not bit:
        raise UsageError("Error: Invalid command given in --property argument.\n\n")
    kind = _BY_NAME.get(name)
    if kind is None:
        raise UsageError("Error: Invalid property name given in --property argument.\n\n")
    if not kind.allowed & bit:
        raise UsageError(f"Error: {name} property not allowed for {given} in --property argument.\n\n")
    if command in _NOT_SUPPORTED or (command == "publish" and kind.name == "subscription_identifiers"):
        raise UsageError(f"Error: {name} property not supported for {given} in --property argument.\n\n")
    properties = lists.setdefault(command, PropertyList())
    if kind.identifier == USER_PROPERTY:
        properties.add(kind, (_text(value), _text(words[3])))
        return 4
    if kind.wire_type == _STRING:
        properties.add(kind, _text(value))
    elif kind.wire_type == _BINARY:
        properties.add(kind, value.encode("utf-8", "surrogateescape"))
    else:
        amount = number(value)
        if not 0 <= amount <= _HIGHEST[kind.wire_type]:
            raise UsageError(f"Error: Property value ({amount}) out of range for property {name}.\n\n")
        properties.add(kind, amount)
    return 3


def check_properties(lists: dict[str, PropertyList], session_expiry: int | None) -> None:
    """Put `-x` to the others of CONNECT. Raises UsageError for a list that MQTT does not allow."""
    if session_expiry is not None:
        lists.setdefault("connect", PropertyList()).add(KINDS[SESSION_EXPIRY_INTERVAL], session_expiry)
    for command, properties in lists.items():
        if properties.problem is not None:
            raise UsageError(f"Error in {command.upper()} properties: {properties.problem}\n")


def _text(value: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UsageError("Error: Malformed UTF-8 in --property argument.\n\n")
    return value
