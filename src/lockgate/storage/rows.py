"""Rows of the store become what the broker knows, each looked at before: a damaged file may hold anything.

The connection they come from has `sqlite.database.text_or_bytes` for its `text_factory`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from lockgate.broker.ports import (
    AWAITING_PUBCOMP,
    NEVER,
    QUEUED,
    Delivery,
    Message,
    StoredSession,
    StoredSubscription,
    StoredWill,
)
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import PUBLISH
from lockgate.mqtt.properties import Properties, decode_properties
from lockgate.mqtt.topics import check_topic_filter, check_topic_name
from lockgate.mqtt.wire import MAXIMUM_REMAINING_LENGTH
from lockgate.storage import checksums
from lockgate.storage.changes import PACKET_ID_BITS, POSITION_BITS
from lockgate.storage.clock import ClockRow, StoreClock
from lockgate.storage.schema import MESSAGE_COLUMNS

# Columns of a table behind its rowid, in the order in which the functions here take them
CLOCK_COLUMNS: Final = "store_time, boottime, boot_id, wall_time, clock_ok"
SESSION_COLUMNS: Final = "client_id, username, expiry_interval, expires_at"
SUBSCRIPTION_COLUMNS: Final = "session, topic_filter, qos, no_local, retain_as_published, identifier"
DELIVERY_COLUMNS: Final = "message, shared, size, qos, retain, identifier, share, packet_id, state, checksum"
WILL_COLUMNS: Final = f"client_id, delay, keep_alive, due_at, {MESSAGE_COLUMNS}"

HIGHEST_NUMBER: Final = (1 << 63 - POSITION_BITS) - 2  # of a Session
_HIGHEST_POSITION: Final = (1 << POSITION_BITS) - 1
_HIGHEST_ROWID: Final = (1 << 63) - 1
_TWO_BYTES: Final = 0xFFFF
_FOUR_BYTES: Final = 0xFFFF_FFFF
HIGHEST_TIME: Final = 1e11  # seconds; about three thousand years

_DELIVERY_WIDTH: Final = 1 + DELIVERY_COLUMNS.count(",") + 1  # with the row's identifier before them
_WRONG_SUM: Final = "its checksum is that of something else: a bit has turned over"


class UnusableRow(Exception):
    """A row holds what nobody wrote."""


def read_clock_row(row: Sequence[Any]) -> ClockRow:
    """Make the clock's note of its columns. Raises UnusableRow, as all functions here do."""
    store_time, boottime, boot_id, wall_time, clock_ok = row
    if _time(store_time) < 0 or _time(boottime) < 0:
        raise UnusableRow("a time below 0")
    return ClockRow(store_time, boottime, _text(boot_id), _time(wall_time), bool(_number(clock_ok, 1)))


def read_session(row: Sequence[Any], clock: StoreClock) -> tuple[int, str, StoredSession]:
    """Make a Session, with its number and Client Identifier, of number and columns."""
    number, client_id, username, expiry_interval, expires_at = row
    if not _text(client_id):
        raise UnusableRow("an empty Client Identifier")
    if username is not None:
        _text(username)
    _number(expiry_interval, _FOUR_BYTES)
    stored = StoredSession(expiry_interval, clock.from_store(_time(expires_at)), username)
    return _number(number, HIGHEST_NUMBER, 1), client_id, stored


def read_subscription(row: Sequence[Any]) -> tuple[int, str, StoredSubscription]:
    """Make a Subscription, with the number of its Session and its Topic Filter, of the columns."""
    number, topic_filter, qos, no_local, retain_as_published, identifier = row
    try:
        check_topic_filter(_text(topic_filter))
    except MqttError as error:
        raise UnusableRow(str(error)) from None
    options = StoredSubscription(
        _number(qos, 2),
        bool(_number(no_local, 1)),
        bool(_number(retain_as_published, 1)),
        _number(identifier, MAXIMUM_REMAINING_LENGTH),
    )
    return number, topic_filter, options


def read_message(row: Sequence[Any], clock: StoreClock) -> Message:
    """Make a Message of the columns of one."""
    topic, payload, encoded, qos, retain, expires_at, arrived_at, publisher, publisher_user, checksum = row
    try:
        check_topic_name(_text(topic))
    except MqttError as error:
        raise UnusableRow(str(error)) from None
    if type(payload) is not bytes or len(payload) > MAXIMUM_REMAINING_LENGTH:
        raise UnusableRow("a payload that is none")
    properties = _properties(encoded) if encoded is not None else None
    message = Message(
        topic,
        payload,
        _number(qos, 2),
        bool(_number(retain, 1)),
        properties,
        clock.from_store(_time(expires_at)),
        _text(publisher),
    )
    message.arrived_at = clock.from_store(_time(arrived_at))
    message.publisher_user = _text(publisher_user) if publisher_user is not None else None
    if checksum is not None and checksum != checksums.of_message(*row[:-1]):
        raise UnusableRow(_WRONG_SUM)
    return message


def read_received(row: Sequence[Any], clock: StoreClock) -> tuple[int, int, Message]:
    """Make the number of a Session, a Packet Identifier and a Message of identifier and columns."""
    number, packet_id = row[0] >> PACKET_ID_BITS, row[0] & (1 << PACKET_ID_BITS) - 1
    if packet_id == 0:
        raise UnusableRow("Packet Identifier 0")
    return number, packet_id, read_message(row[1:], clock)


def read_delivery(row: Sequence[Any], clock: StoreClock) -> Delivery:
    """Make a Delivery of identifier, columns and the columns of its message, which are NULL where there is none."""
    if row[_DELIVERY_WIDTH] is None:
        raise UnusableRow("without its message")
    return delivery_of(row[:_DELIVERY_WIDTH], read_message(row[_DELIVERY_WIDTH:], clock))


def delivery_of(row: Sequence[Any], message: Message) -> Delivery:
    """Make a Delivery of identifier and columns, and its Message."""
    number, stored_message, shared, size, qos, retain, identifier, share, packet_id, state, checksum = row
    delivery = Delivery(
        message,
        _number(qos, 2),
        bool(_number(retain, 1)),
        _number(identifier, MAXIMUM_REMAINING_LENGTH),
        number & _HIGHEST_POSITION,
        _text(share),
    )
    delivery.packet_id = _number(packet_id, _TWO_BYTES)
    delivery.state = _number(state, AWAITING_PUBCOMP)
    if packet_id == 0 and state != QUEUED:
        raise UnusableRow("in flight without a Packet Identifier")
    _number(stored_message, _HIGHEST_ROWID)
    _number(size, _HIGHEST_ROWID)
    _number(shared, 1)
    if checksum is not None and checksum != checksums.of_delivery(*row[:8]):
        raise UnusableRow(_WRONG_SUM)
    delivery.stored_message = stored_message
    return delivery


def read_will(row: Sequence[Any], clock: StoreClock) -> tuple[str, StoredWill]:
    """Make a Will, with the Client Identifier it belongs to, of the columns."""
    client_id, delay, keep_alive, due_at = row[:4]
    message = read_message(row[4:], clock)
    due = clock.from_store(_time(due_at))
    return _text(client_id), StoredWill(message, _number(delay, _FOUR_BYTES), _number(keep_alive, _TWO_BYTES), due)


def _properties(encoded: object) -> Properties | None:
    if type(encoded) is not bytes:
        raise UnusableRow("properties that are no bytes")
    try:
        properties, end = decode_properties(encoded, 0, len(encoded), 1 << PUBLISH)
    except MqttError as error:
        raise UnusableRow(f"properties: {error}") from None
    if end != len(encoded):
        raise UnusableRow("properties with something behind them")
    if properties is not None and (properties.topic_alias is not None or properties.subscription_identifiers):
        raise UnusableRow("properties of one connection alone")
    return properties


def _text(value: object) -> str:
    if type(value) is not str:
        raise UnusableRow("text that is not UTF-8")
    if "\0" in value or len(value) > _TWO_BYTES or (not value.isascii() and len(value.encode("utf-8")) > _TWO_BYTES):
        raise UnusableRow("text that MQTT does not allow")
    return value


def _number(value: object, highest: int, lowest: int = 0) -> int:
    if type(value) is not int or not lowest <= value <= highest:
        raise UnusableRow(f"a number that is not from {lowest} to {highest}")
    return value


def _time(value: object) -> float:
    if type(value) is not float and type(value) is not int:
        raise UnusableRow("a time that is no number")
    if not math.isfinite(value) or abs(value) > HIGHEST_TIME:
        raise UnusableRow("a time that will never be")
    return float(value) if value else NEVER
