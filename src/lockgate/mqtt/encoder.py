"""Packets to bytes, for all three versions."""

from __future__ import annotations

from typing import Final, cast

from lockgate.mqtt.packets import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PROTOCOL_NAMES,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    V5,
    Acknowledgement,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    Publish,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
)
from lockgate.mqtt.properties import Properties, encode_properties
from lockgate.mqtt.wire import encode_binary, encode_string, encode_variable_byte_integer

PINGREQ_FRAME: Final = b"\xc0\x00"
PINGRESP_FRAME: Final = b"\xd0\x00"

PACKET_IDS: Final = tuple(number.to_bytes(2, "big") for number in range(1024))


def encode_packet_id(packet_id: int) -> bytes:
    """Encode a Packet Identifier; the small ones come from a table, which is several times quicker."""
    if packet_id < 1024:
        return PACKET_IDS[packet_id]
    return packet_id.to_bytes(2, "big")


def encode_publish_parts(
    topic: bytes, payload: bytes, qos: int, retain: bool, version: int, properties: Properties | None
) -> tuple[bytes, bytes]:
    """Encode a PUBLISH without DUP around its Packet Identifier; `topic` is a Topic Name in UTF-8.

    Gives what stands before and after the identifier, so that one encoding serves every receiver. At QoS 0, where
    there is none, the first part is the whole packet.
    """
    tail = payload
    if version == V5:
        tail = encode_properties(properties) + payload if properties is not None else b"\x00" + payload
    length = 2 + len(topic) + len(tail) + (2 if qos else 0)
    first = 0x30 | qos << 1 | (1 if retain else 0)
    size = len(topic)
    if length < 0x80:
        head = bytes((first, length, size >> 8, size & 0xFF)) + topic
    else:
        head = bytes((first,)) + encode_variable_byte_integer(length) + bytes((size >> 8, size & 0xFF)) + topic
    if qos:
        return head, tail
    return head + tail, b""


def encode_acknowledgement(
    packet_type: int, packet_id: int, reason_code: int, version: int, properties: Properties | None = None
) -> bytes:
    """Encode PUBACK, PUBREC, PUBREL or PUBCOMP; a Reason Code only exists in version 5 (§3.4.2.1)."""
    first = packet_type << 4 | (2 if packet_type == PUBREL else 0)
    if version != V5 or (reason_code == 0 and properties is None):
        return bytes((first, 2, packet_id >> 8, packet_id & 0xFF))
    if properties is None:
        return bytes((first, 3, packet_id >> 8, packet_id & 0xFF, reason_code))
    body = bytes((packet_id >> 8, packet_id & 0xFF, reason_code)) + encode_properties(properties)
    return _frame(first, body)


def encode(packet: Packet, version: int) -> bytes:
    """Encode any packet for a connection of this version.

    Raises ValueError for what no version can say: strings beyond 65,535 bytes, packets beyond 268,435,455.
    """
    packet_type = packet.type
    if packet_type == PUBLISH:
        return _publish(cast(Publish, packet), version)
    if PUBACK <= packet_type <= PUBCOMP:
        acknowledgement = cast(Acknowledgement, packet)
        return encode_acknowledgement(
            packet_type,
            acknowledgement.packet_id,
            acknowledgement.reason_code,
            version,
            acknowledgement.properties,
        )
    if packet_type == PINGREQ:
        return PINGREQ_FRAME
    if packet_type == PINGRESP:
        return PINGRESP_FRAME
    if packet_type == SUBSCRIBE:
        return _subscribe(cast(Subscribe, packet), version)
    if packet_type == SUBACK:
        suback = cast(SubAck, packet)
        return _frame(
            SUBACK << 4,
            suback.packet_id.to_bytes(2, "big") + _properties(suback.properties, version) + bytes(suback.reason_codes),
        )
    if packet_type == UNSUBSCRIBE:
        return _unsubscribe(cast(Unsubscribe, packet), version)
    if packet_type == UNSUBACK:
        unsuback = cast(UnsubAck, packet)
        body = unsuback.packet_id.to_bytes(2, "big")
        if version == V5:
            body += encode_properties(unsuback.properties) + bytes(unsuback.reason_codes)
        return _frame(UNSUBACK << 4, body)
    if packet_type == CONNECT:
        return _connect(cast(Connect, packet))
    if packet_type == CONNACK:
        connack = cast(ConnAck, packet)
        return _frame(
            CONNACK << 4,
            bytes((connack.session_present, connack.reason_code)) + _properties(connack.properties, version),
        )
    if packet_type == DISCONNECT:
        disconnect = cast(Disconnect, packet)
        if version != V5:
            return b"\xe0\x00"
        return _frame(DISCONNECT << 4, _reason(disconnect.reason_code, disconnect.properties))
    auth = cast(Auth, packet)
    return _frame(AUTH << 4, _reason(auth.reason_code, auth.properties))


def _frame(first: int, body: bytes) -> bytes:
    return bytes((first,)) + encode_variable_byte_integer(len(body)) + body


def _properties(properties: Properties | None, version: int) -> bytes:
    return encode_properties(properties) if version == V5 else b""


def _reason(reason_code: int, properties: Properties | None) -> bytes:
    """The body of DISCONNECT and AUTH, whose parts may be left out from the end (§3.14.2.1, §3.15.2.1)."""
    if properties is not None:
        return bytes((reason_code,)) + encode_properties(properties)
    return bytes((reason_code,)) if reason_code else b""


def _publish(publish: Publish, version: int) -> bytes:
    encoded_topic = encode_string(publish.topic)[2:]
    head, tail = encode_publish_parts(
        encoded_topic, publish.payload, publish.qos, publish.retain, version, publish.properties
    )
    if publish.qos == 0:
        return head
    if publish.dup:
        head = bytes((head[0] | 0x08,)) + head[1:]
    return head + encode_packet_id(publish.packet_id) + tail


def _connect(connect: Connect) -> bytes:
    version = connect.version
    will = connect.will
    flags = 2 if connect.clean_start else 0
    if will is not None:
        flags |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
    if connect.username is not None:
        flags |= 0x80
    if connect.password is not None:
        flags |= 0x40
    level = version | (0x80 if connect.bridge else 0)
    parts = [
        encode_string(PROTOCOL_NAMES[version]),
        bytes((level, flags)),
        connect.keep_alive.to_bytes(2, "big"),
        _properties(connect.properties, version),
        encode_string(connect.client_id),
    ]
    if will is not None:
        parts += (_properties(will.properties, version), encode_string(will.topic), encode_binary(will.payload))
    if connect.username is not None:
        parts.append(encode_string(connect.username))
    if connect.password is not None:
        parts.append(encode_binary(connect.password))
    return _frame(CONNECT << 4, b"".join(parts))


def _subscribe(subscribe: Subscribe, version: int) -> bytes:
    parts = [subscribe.packet_id.to_bytes(2, "big"), _properties(subscribe.properties, version)]
    for request in subscribe.requests:
        options = request.qos
        if version == V5:
            options |= (
                (4 if request.no_local else 0)
                | (8 if request.retain_as_published else 0)
                | request.retain_handling << 4
            )
        parts += (encode_string(request.topic_filter), bytes((options,)))
    return _frame(SUBSCRIBE << 4 | 2, b"".join(parts))


def _unsubscribe(unsubscribe: Unsubscribe, version: int) -> bytes:
    parts = [unsubscribe.packet_id.to_bytes(2, "big"), _properties(unsubscribe.properties, version)]
    parts += [encode_string(topic_filter) for topic_filter in unsubscribe.topic_filters]
    return _frame(UNSUBSCRIBE << 4 | 2, b"".join(parts))
