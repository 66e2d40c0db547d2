"""The properties of MQTT 5 (§2.2.2): one typed attribute for each, None or empty where it is absent."""

from __future__ import annotations

from typing import Final

from lockgate.mqtt import reason_codes
from lockgate.mqtt.errors import MalformedPacket, MqttError, ProtocolError
from lockgate.mqtt.wire import (
    decode_utf8,
    encode_binary,
    encode_string,
    encode_variable_byte_integer,
    read_variable_byte_integer,
)

# Identifiers (§2.2.2.2)
PAYLOAD_FORMAT_INDICATOR: Final = 0x01
MESSAGE_EXPIRY_INTERVAL: Final = 0x02
CONTENT_TYPE: Final = 0x03
RESPONSE_TOPIC: Final = 0x08
CORRELATION_DATA: Final = 0x09
SUBSCRIPTION_IDENTIFIER: Final = 0x0B
SESSION_EXPIRY_INTERVAL: Final = 0x11
ASSIGNED_CLIENT_IDENTIFIER: Final = 0x12
SERVER_KEEP_ALIVE: Final = 0x13
AUTHENTICATION_METHOD: Final = 0x15
AUTHENTICATION_DATA: Final = 0x16
REQUEST_PROBLEM_INFORMATION: Final = 0x17
WILL_DELAY_INTERVAL: Final = 0x18
REQUEST_RESPONSE_INFORMATION: Final = 0x19
RESPONSE_INFORMATION: Final = 0x1A
SERVER_REFERENCE: Final = 0x1C
REASON_STRING: Final = 0x1F
RECEIVE_MAXIMUM: Final = 0x21
TOPIC_ALIAS_MAXIMUM: Final = 0x22
TOPIC_ALIAS: Final = 0x23
MAXIMUM_QOS: Final = 0x24
RETAIN_AVAILABLE: Final = 0x25
USER_PROPERTY: Final = 0x26
MAXIMUM_PACKET_SIZE: Final = 0x27
WILDCARD_SUBSCRIPTION_AVAILABLE: Final = 0x28
SUBSCRIPTION_IDENTIFIER_AVAILABLE: Final = 0x29
SHARED_SUBSCRIPTION_AVAILABLE: Final = 0x2A

# Where a property may stand: bit n for Control Packet type n, bit 0 for the Will Properties (table 2-4)
IN_WILL: Final = 1 << 0
_CONNECT: Final = 1 << 1
_CONNACK: Final = 1 << 2
_PUBLISH: Final = 1 << 3
_PUBACK: Final = 1 << 4
_PUBREC: Final = 1 << 5
_PUBREL: Final = 1 << 6
_PUBCOMP: Final = 1 << 7
_SUBSCRIBE: Final = 1 << 8
_SUBACK: Final = 1 << 9
_UNSUBSCRIBE: Final = 1 << 10
_UNSUBACK: Final = 1 << 11
_DISCONNECT: Final = 1 << 14
_AUTH: Final = 1 << 15
_REASON: Final = _CONNACK | _PUBACK | _PUBREC | _PUBREL | _PUBCOMP | _SUBACK | _UNSUBACK | _DISCONNECT | _AUTH
_ANYWHERE: Final = _REASON | IN_WILL | _CONNECT | _PUBLISH | _SUBSCRIBE | _UNSUBSCRIBE

_BYTE: Final = 0
_TWO_BYTES: Final = 1
_FOUR_BYTES: Final = 2
_VARIABLE: Final = 3
_STRING: Final = 4
_BINARY: Final = 5
_PAIR: Final = 6


class PropertyKind:
    """One row of table 2-4: the attribute's name, its type on the wire, and the packets that may carry it."""

    __slots__ = ("allowed", "identifier", "name", "wire_type")

    def __init__(self, identifier: int, name: str, wire_type: int, allowed: int) -> None:
        self.identifier = identifier
        self.name = name
        self.wire_type = wire_type
        self.allowed = allowed


KINDS: Final[dict[int, PropertyKind]] = {
    kind.identifier: kind
    for kind in (
        # The order is that in which Mosquitto writes CONNACK; no other packet's order is ever looked at.
        PropertyKind(SERVER_KEEP_ALIVE, "server_keep_alive", _TWO_BYTES, _CONNACK),
        PropertyKind(TOPIC_ALIAS_MAXIMUM, "topic_alias_maximum", _TWO_BYTES, _CONNECT | _CONNACK),
        PropertyKind(ASSIGNED_CLIENT_IDENTIFIER, "assigned_client_identifier", _STRING, _CONNACK),
        PropertyKind(RETAIN_AVAILABLE, "retain_available", _BYTE, _CONNACK),
        PropertyKind(MAXIMUM_PACKET_SIZE, "maximum_packet_size", _FOUR_BYTES, _CONNECT | _CONNACK),
        PropertyKind(RECEIVE_MAXIMUM, "receive_maximum", _TWO_BYTES, _CONNECT | _CONNACK),
        PropertyKind(MAXIMUM_QOS, "maximum_qos", _BYTE, _CONNACK),
        PropertyKind(
            SESSION_EXPIRY_INTERVAL, "session_expiry_interval", _FOUR_BYTES, _CONNECT | _CONNACK | _DISCONNECT
        ),
        PropertyKind(REQUEST_PROBLEM_INFORMATION, "request_problem_information", _BYTE, _CONNECT),
        PropertyKind(REQUEST_RESPONSE_INFORMATION, "request_response_information", _BYTE, _CONNECT),
        PropertyKind(WILL_DELAY_INTERVAL, "will_delay_interval", _FOUR_BYTES, IN_WILL),
        PropertyKind(PAYLOAD_FORMAT_INDICATOR, "payload_format_indicator", _BYTE, _PUBLISH | IN_WILL),
        PropertyKind(MESSAGE_EXPIRY_INTERVAL, "message_expiry_interval", _FOUR_BYTES, _PUBLISH | IN_WILL),
        PropertyKind(TOPIC_ALIAS, "topic_alias", _TWO_BYTES, _PUBLISH),
        PropertyKind(CONTENT_TYPE, "content_type", _STRING, _PUBLISH | IN_WILL),
        PropertyKind(RESPONSE_TOPIC, "response_topic", _STRING, _PUBLISH | IN_WILL),
        PropertyKind(CORRELATION_DATA, "correlation_data", _BINARY, _PUBLISH | IN_WILL),
        PropertyKind(SUBSCRIPTION_IDENTIFIER, "subscription_identifiers", _VARIABLE, _PUBLISH | _SUBSCRIBE),
        PropertyKind(WILDCARD_SUBSCRIPTION_AVAILABLE, "wildcard_subscription_available", _BYTE, _CONNACK),
        PropertyKind(SUBSCRIPTION_IDENTIFIER_AVAILABLE, "subscription_identifier_available", _BYTE, _CONNACK),
        PropertyKind(SHARED_SUBSCRIPTION_AVAILABLE, "shared_subscription_available", _BYTE, _CONNACK),
        PropertyKind(RESPONSE_INFORMATION, "response_information", _STRING, _CONNACK),
        PropertyKind(SERVER_REFERENCE, "server_reference", _STRING, _CONNACK | _DISCONNECT),
        PropertyKind(AUTHENTICATION_METHOD, "authentication_method", _STRING, _CONNECT | _CONNACK | _AUTH),
        PropertyKind(AUTHENTICATION_DATA, "authentication_data", _BINARY, _CONNECT | _CONNACK | _AUTH),
        PropertyKind(REASON_STRING, "reason_string", _STRING, _REASON),
        PropertyKind(USER_PROPERTY, "user_properties", _PAIR, _ANYWHERE),
    )
}

_FLAGS: Final[frozenset[int]] = frozenset(
    {PAYLOAD_FORMAT_INDICATOR, REQUEST_PROBLEM_INFORMATION, REQUEST_RESPONSE_INFORMATION, MAXIMUM_QOS}
    | {RETAIN_AVAILABLE, WILDCARD_SUBSCRIPTION_AVAILABLE, SUBSCRIPTION_IDENTIFIER_AVAILABLE}
    | {SHARED_SUBSCRIPTION_AVAILABLE}
)
_NOT_ZERO: Final[frozenset[int]] = frozenset(
    {RECEIVE_MAXIMUM, MAXIMUM_PACKET_SIZE, SUBSCRIPTION_IDENTIFIER, TOPIC_ALIAS}
)


class Properties:
    """The properties of one packet; times are in seconds, sizes in bytes, as in the specification."""

    __slots__ = (
        "assigned_client_identifier",
        "authentication_data",
        "authentication_method",
        "content_type",
        "correlation_data",
        "maximum_packet_size",
        "maximum_qos",
        "message_expiry_interval",
        "payload_format_indicator",
        "reason_string",
        "receive_maximum",
        "request_problem_information",
        "request_response_information",
        "response_information",
        "response_topic",
        "retain_available",
        "server_keep_alive",
        "server_reference",
        "session_expiry_interval",
        "shared_subscription_available",
        "subscription_identifier_available",
        "subscription_identifiers",
        "topic_alias",
        "topic_alias_maximum",
        "user_properties",
        "wildcard_subscription_available",
        "will_delay_interval",
    )

    def __init__(
        self,
        *,
        payload_format_indicator: int | None = None,
        message_expiry_interval: int | None = None,
        content_type: str | None = None,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
        subscription_identifiers: tuple[int, ...] = (),
        session_expiry_interval: int | None = None,
        assigned_client_identifier: str | None = None,
        server_keep_alive: int | None = None,
        authentication_method: str | None = None,
        authentication_data: bytes | None = None,
        request_problem_information: int | None = None,
        will_delay_interval: int | None = None,
        request_response_information: int | None = None,
        response_information: str | None = None,
        server_reference: str | None = None,
        reason_string: str | None = None,
        receive_maximum: int | None = None,
        topic_alias_maximum: int | None = None,
        topic_alias: int | None = None,
        maximum_qos: int | None = None,
        retain_available: int | None = None,
        user_properties: tuple[tuple[str, str], ...] = (),
        maximum_packet_size: int | None = None,
        wildcard_subscription_available: int | None = None,
        subscription_identifier_available: int | None = None,
        shared_subscription_available: int | None = None,
    ) -> None:
        self.payload_format_indicator = payload_format_indicator
        self.message_expiry_interval = message_expiry_interval
        self.content_type = content_type
        self.response_topic = response_topic
        self.correlation_data = correlation_data
        self.subscription_identifiers = subscription_identifiers
        self.session_expiry_interval = session_expiry_interval
        self.assigned_client_identifier = assigned_client_identifier
        self.server_keep_alive = server_keep_alive
        self.authentication_method = authentication_method
        self.authentication_data = authentication_data
        self.request_problem_information = request_problem_information
        self.will_delay_interval = will_delay_interval
        self.request_response_information = request_response_information
        self.response_information = response_information
        self.server_reference = server_reference
        self.reason_string = reason_string
        self.receive_maximum = receive_maximum
        self.topic_alias_maximum = topic_alias_maximum
        self.topic_alias = topic_alias
        self.maximum_qos = maximum_qos
        self.retain_available = retain_available
        self.user_properties = user_properties
        self.maximum_packet_size = maximum_packet_size
        self.wildcard_subscription_available = wildcard_subscription_available
        self.subscription_identifier_available = subscription_identifier_available
        self.shared_subscription_available = shared_subscription_available

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Properties):
            return NotImplemented
        return all(getattr(self, kind.name) == getattr(other, kind.name) for kind in KINDS.values())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        present = [
            f"{kind.name}={value!r}" for kind in KINDS.values() if (value := getattr(self, kind.name)) not in (None, ())
        ]
        return f"Properties({', '.join(present)})"


def decode_properties(
    data: bytes, at: int, end: int, where: int, user_properties: int = 0
) -> tuple[Properties | None, int]:
    """Read a property length and its properties from data[at:end]; give them (None when empty) and where they end.

    `where` is the bit of the packet they stand in, `user_properties` how many it may have (0: no limit). Raises
    MalformedPacket, ProtocolError or, beyond that number, MqttError (§2.2.2.2).
    """
    length, at = read_variable_byte_integer(data, at, end)
    if length == 0:
        return None, at
    stop = at + length
    if stop > end:
        raise MalformedPacket("the properties are longer than their packet")
    properties = Properties()
    seen = 0
    pairs: list[tuple[str, str]] = []
    identifiers: list[int] = []
    while at < stop:
        identifier, at = read_variable_byte_integer(data, at, stop)
        kind = KINDS.get(identifier)
        if kind is None:
            raise MalformedPacket(f"unknown property 0x{identifier:02X}")
        if not kind.allowed & where:
            raise ProtocolError(f"property {kind.name} does not belong into this packet")
        wire_type = kind.wire_type
        if wire_type == _PAIR:
            key, at = _read_string(data, at, stop)
            value, at = _read_string(data, at, stop)
            pairs.append((key, value))
            if user_properties and len(pairs) > user_properties:
                raise MqttError(f"more than {user_properties} User Properties", reason_codes.QUOTA_EXCEEDED)
            continue
        if wire_type == _VARIABLE:
            number, at = read_variable_byte_integer(data, at, stop)
            if number == 0:
                raise ProtocolError("property subscription_identifiers must not be 0")
            if identifiers and where == _SUBSCRIBE:
                raise ProtocolError("property subscription_identifiers appears twice")
            identifiers.append(number)
            continue
        if seen >> identifier & 1:
            raise ProtocolError(f"property {kind.name} appears twice")
        seen |= 1 << identifier
        if wire_type == _STRING:
            text, at = _read_string(data, at, stop)
            setattr(properties, kind.name, text)
        elif wire_type == _BINARY:
            binary, at = _read_binary(data, at, stop)
            setattr(properties, kind.name, binary)
        else:
            size = 1 if wire_type == _BYTE else 2 if wire_type == _TWO_BYTES else 4
            if at + size > stop:
                raise MalformedPacket(f"property {kind.name} ends too early")
            number = int.from_bytes(data[at : at + size], "big")
            at += size
            if identifier in _FLAGS and number > 1:
                raise ProtocolError(f"property {kind.name} must be 0 or 1, not {number}")
            if number == 0 and identifier in _NOT_ZERO:
                if identifier == TOPIC_ALIAS:
                    raise ProtocolError("topic alias 0", reason_codes.TOPIC_ALIAS_INVALID)
                raise ProtocolError(f"property {kind.name} must not be 0")
            setattr(properties, kind.name, number)
    properties.user_properties = tuple(pairs)
    properties.subscription_identifiers = tuple(identifiers)
    return properties, at


def encode_properties(properties: Properties | None) -> bytes:
    """Give the property length and the properties as they stand in a packet; a single zero when there are none."""
    if properties is None:
        return b"\x00"
    parts: list[bytes] = []
    for identifier, kind in KINDS.items():
        value = getattr(properties, kind.name)
        if value is None:
            continue
        wire_type = kind.wire_type
        head = bytes((identifier,))
        if wire_type == _PAIR:
            for key, text in value:
                parts += (head, encode_string(key), encode_string(text))
        elif wire_type == _VARIABLE:
            for number in value:
                parts += (head, encode_variable_byte_integer(number))
        elif wire_type == _STRING:
            parts += (head, encode_string(value))
        elif wire_type == _BINARY:
            parts += (head, encode_binary(value))
        else:
            size = 1 if wire_type == _BYTE else 2 if wire_type == _TWO_BYTES else 4
            parts += (head, value.to_bytes(size, "big"))
    body = b"".join(parts)
    return encode_variable_byte_integer(len(body)) + body


def _read_binary(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    start = at + 2
    if start > end:
        raise MalformedPacket("a length field ends too early")
    stop = start + (data[at] << 8 | data[at + 1])
    if stop > end:
        raise MalformedPacket("a string or binary field is longer than its packet")
    return data[start:stop], stop


def _read_string(data: bytes, at: int, end: int) -> tuple[str, int]:
    binary, at = _read_binary(data, at, end)
    return decode_utf8(binary), at
