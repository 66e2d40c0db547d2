"""One table of packets, good and broken, in the bytes of the wire; shared by every test of the codec."""

# ruff: noqa: E501 (a row of the table is a line)

from __future__ import annotations

from typing import NamedTuple

from lockgate.mqtt import reason_codes as rc
from lockgate.mqtt.errors import MalformedPacket, MqttError, PacketTooLarge, ProtocolError, UnsupportedVersion
from lockgate.mqtt.packets import (
    V3_1,
    V3_1_1,
    V5,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Will,
)
from lockgate.mqtt.properties import Properties


class Good(NamedTuple):
    """Bytes and the packet they are. `canonical`: encoding the packet gives these very bytes."""

    name: str
    version: int  # 0: the connection does not know it yet
    data: bytes
    packet: Packet
    canonical: bool = True


class Bad(NamedTuple):
    """Bytes and what is wrong with them."""

    name: str
    version: int
    data: bytes
    error: type[MqttError] = MalformedPacket
    reason_code: int = rc.MALFORMED_PACKET


def h(text: str) -> bytes:
    return bytes.fromhex(text)


def with_properties(first: int, before: str, properties: str, after: str = "") -> bytes:
    """A version 5 packet around these properties, all in hexadecimal."""
    inner = h(properties)
    body = h(before) + bytes((len(inner),)) + inner + h(after)
    return bytes((first, len(body))) + body


EVERY_PROPERTY = (
    # packet kind, property bytes, the attribute it becomes
    ("publish", "01 01", Properties(payload_format_indicator=1)),
    ("publish", "02 00000e10", Properties(message_expiry_interval=3600)),
    ("publish", "03 0001 74", Properties(content_type="t")),
    ("publish", "08 0001 72", Properties(response_topic="r")),
    ("publish", "09 0002 00ff", Properties(correlation_data=b"\x00\xff")),
    ("publish", "0b 01 0b ffffff7f", Properties(subscription_identifiers=(1, 268_435_455))),
    ("publish", "23 0001", Properties(topic_alias=1)),
    ("publish", "26 0001 6b 0001 76 26 0001 6b 0000", Properties(user_properties=(("k", "v"), ("k", "")))),
    ("connect", "11 ffffffff", Properties(session_expiry_interval=0xFFFF_FFFF)),
    ("connect", "15 0001 6d 16 0001 64", Properties(authentication_method="m", authentication_data=b"d")),
    ("connect", "17 00", Properties(request_problem_information=0)),
    ("connect", "19 01", Properties(request_response_information=1)),
    ("connect", "21 0001", Properties(receive_maximum=1)),
    ("connect", "22 ffff", Properties(topic_alias_maximum=65_535)),
    ("connect", "27 00000001", Properties(maximum_packet_size=1)),
    ("will", "18 0000003c", Properties(will_delay_interval=60)),
    ("connack", "12 0002 6964", Properties(assigned_client_identifier="id")),
    ("connack", "13 000a", Properties(server_keep_alive=10)),
    ("connack", "1a 0001 69", Properties(response_information="i")),
    ("connack", "1c 0001 73", Properties(server_reference="s")),
    ("connack", "1f 0003 776879", Properties(reason_string="why")),
    ("connack", "24 01", Properties(maximum_qos=1)),
    ("connack", "25 00", Properties(retain_available=0)),
    ("connack", "28 00", Properties(wildcard_subscription_available=0)),
    ("connack", "29 00", Properties(subscription_identifier_available=0)),
    ("connack", "2a 00", Properties(shared_subscription_available=0)),
)


def _around(kind: str, properties: str, value: Properties) -> tuple[bytes, Packet]:
    if kind == "publish":
        return with_properties(0x30, "0001 61", properties, "78"), Publish("a", b"x", properties=value)
    if kind == "connect":
        data = with_properties(0x10, "0004 4d515454 05 02 003c", properties, "0000")
        return data, Connect("", properties=value)
    if kind == "will":
        inner = h(properties)
        body = h("0004 4d515454 05 06 003c 00 0000") + bytes((len(inner),)) + inner + h("0001 77 0000")
        return bytes((0x10, len(body))) + body, Connect("", will=Will("w", b"", properties=value))
    return with_properties(0x20, "00 00", properties), ConnAck(properties=value)


GOOD = [
    Good("connect 3.1", 0, h("10 0e 0006 4d5149736470 03 02 003c 0000"), Connect("", V3_1)),
    Good("connect 3.1.1", 0, h("10 0d 0004 4d515454 04 02 003c 0001 63"), Connect("c", V3_1_1)),
    Good("connect 3.1.1, keeping its session", 0, h("10 0d 0004 4d515454 04 00 0000 0001 63"),
         Connect("c", V3_1_1, clean_start=False, keep_alive=0)),
    Good("connect 3.1.1 of a bridge", 0, h("10 0d 0004 4d515454 84 02 003c 0001 63"), Connect("c", V3_1_1, bridge=True)),
    Good("connect 3.1.1 with everything", 0, h("10 1a 0004 4d515454 04 f6 000a 0001 63 0001 77 0002 6279 0001 75 0001 70"),
         Connect("c", V3_1_1, True, 10, "u", b"p", Will("w", b"by", 2, True))),
    Good("connect 3.1, the flagged password left out", 0, h("10 12 0006 4d5149736470 03 c2 003c 0001 63 0001 75"),
         Connect("c", V3_1, username="u"), canonical=False),
    Good("connect 3.1, the reserved flag set", 0, h("10 0e 0006 4d5149736470 03 01 003c 0000"),
         Connect("", V3_1, clean_start=False), canonical=False),
    Good("connect 5", 0, h("10 0e 0004 4d515454 05 02 003c 00 0001 63"), Connect("c")),
    Good("connect 5, a password alone", 0, h("10 11 0004 4d515454 05 42 003c 00 0001 63 0001 70"), Connect("c", password=b"p")),
    Good("connack 3.1.1", V3_1_1, h("20 02 01 00"), ConnAck(0, True)),
    Good("connack 3.1.1, refused", V3_1_1, h("20 02 00 05"), ConnAck(5)),
    Good("connack 5", V5, h("20 03 00 00 00"), ConnAck()),
    Good("connack 5, refused", V5, h("20 03 00 87 00"), ConnAck(rc.NOT_AUTHORIZED)),
    Good("connack 5 from a server of version 3", V5, h("20 02 00 01"), ConnAck(rc.UNSUPPORTED_PROTOCOL_VERSION),
         canonical=False),
    Good("publish 3.1.1 QoS 0", V3_1_1, h("30 04 0001 61 78"), Publish("a", b"x")),
    Good("publish 3.1.1, empty", V3_1_1, h("31 03 0001 61"), Publish("a", retain=True)),
    Good("publish 3.1.1 QoS 1", V3_1_1, h("32 06 0001 61 0001 78"), Publish("a", b"x", 1, packet_id=1)),
    Good("publish 3.1.1 QoS 2, everything set", V3_1_1, h("3d 05 0001 61 ffff"), Publish("a", b"", 2, True, True, 65_535)),
    Good("publish 3.1 QoS 1", V3_1, h("32 06 0001 61 0001 78"), Publish("a", b"x", 1, packet_id=1)),
    Good("publish 5", V5, h("30 05 0001 61 00 78"), Publish("a", b"x")),
    Good("publish 5 QoS 2", V5, h("34 07 0001 61 0400 00 78"), Publish("a", b"x", 2, packet_id=1024)),
    Good("publish 5, an alias alone", V5, h("30 06 0000 03 230001"), Publish("", properties=Properties(topic_alias=1))),
    Good("publish 5, a topic beyond the first plane", V5, h("30 07 0004 f09f8c8a 00"), Publish("🌊")),
    Good("puback 3.1.1", V3_1_1, h("40 02 0001"), PubAck(1)),
    Good("puback 5, reason left out", V5, h("40 02 0001"), PubAck(1)),
    Good("puback 5, reason", V5, h("40 03 0001 10"), PubAck(1, rc.NO_MATCHING_SUBSCRIBERS)),
    Good("puback 5, reason 0 spelled out", V5, h("40 03 0001 00"), PubAck(1), canonical=False),
    Good("puback 5, no properties spelled out", V5, h("40 04 0001 97 00"), PubAck(1, rc.QUOTA_EXCEEDED), canonical=False),
    Good("puback 5, properties", V5, h("40 08 0001 87 04 1f 0001 6e"),
         PubAck(1, rc.NOT_AUTHORIZED, Properties(reason_string="n"))),
    Good("pubrec", V3_1_1, h("50 02 0002"), PubRec(2)),
    Good("pubrec 5", V5, h("50 03 0002 91"), PubRec(2, rc.PACKET_IDENTIFIER_IN_USE)),
    Good("pubrel", V3_1_1, h("62 02 0002"), PubRel(2)),
    Good("pubrel 3.1 without its flag", V3_1, h("60 02 0002"), PubRel(2), canonical=False),
    Good("pubrel 5", V5, h("62 03 0002 92"), PubRel(2, rc.PACKET_IDENTIFIER_NOT_FOUND)),
    Good("pubcomp", V3_1_1, h("70 02 0002"), PubComp(2)),
    Good("pubcomp 5", V5, h("70 03 0002 92"), PubComp(2, rc.PACKET_IDENTIFIER_NOT_FOUND)),
    Good("subscribe 3.1.1", V3_1_1, h("82 0a 0001 0001 61 01 0001 23 02"),
         Subscribe(1, [SubscriptionRequest("a", 1), SubscriptionRequest("#", 2)])),
    Good("subscribe 5, all options", V5, h("82 07 0001 00 0001 61 2e"),
         Subscribe(1, [SubscriptionRequest("a", 2, True, True, 2)])),
    Good("subscribe 5, an identifier", V5, h("82 09 0001 02 0b07 0001 61 00"),
         Subscribe(1, [SubscriptionRequest("a")], Properties(subscription_identifiers=(7,)))),
    Good("subscribe 5, shared", V5, h("82 10 0001 00 000a 2473686172652f672f61 00"),
         Subscribe(1, [SubscriptionRequest("$share/g/a")])),
    Good("suback 3.1.1", V3_1_1, h("90 04 0001 01 80"), SubAck(1, [1, 0x80])),
    Good("suback 5", V5, h("90 05 0001 00 02 97"), SubAck(1, [2, rc.QUOTA_EXCEEDED])),
    Good("unsubscribe 3.1.1", V3_1_1, h("a2 05 0001 0001 61"), Unsubscribe(1, ["a"])),
    Good("unsubscribe 5", V5, h("a2 09 0001 00 0001 61 0001 62"), Unsubscribe(1, ["a", "b"])),
    Good("unsubscribe 5, a user property", V5, h("a2 0d 0001 07 26 0001 6b 0001 76 0001 61"),
         Unsubscribe(1, ["a"], Properties(user_properties=(("k", "v"),)))),
    Good("suback 5, a reason string", V5, h("90 08 0001 04 1f 0001 6e 00"),
         SubAck(1, [0], Properties(reason_string="n"))),
    Good("unsuback 5, a reason string", V5, h("b0 08 0001 04 1f 0001 6e 00"),
         UnsubAck(1, [0], Properties(reason_string="n"))),
    Good("pubrec 5, a reason string", V5, h("50 08 0002 91 04 1f 0001 6e"),
         PubRec(2, rc.PACKET_IDENTIFIER_IN_USE, Properties(reason_string="n"))),
    Good("pubrel 5, a reason string", V5, h("62 08 0002 92 04 1f 0001 6e"),
         PubRel(2, rc.PACKET_IDENTIFIER_NOT_FOUND, Properties(reason_string="n"))),
    Good("pubcomp 5, a reason string", V5, h("70 08 0002 92 04 1f 0001 6e"),
         PubComp(2, rc.PACKET_IDENTIFIER_NOT_FOUND, Properties(reason_string="n"))),
    Good("unsuback 3.1.1", V3_1_1, h("b0 02 0001"), UnsubAck(1, [])),
    Good("unsuback 5", V5, h("b0 05 0001 00 00 11"), UnsubAck(1, [0, rc.NO_SUBSCRIPTION_EXISTED])),
    Good("pingreq", V3_1_1, h("c0 00"), PingReq()),
    Good("pingresp", V5, h("d0 00"), PingResp()),
    Good("disconnect 3.1.1", V3_1_1, h("e0 00"), Disconnect()),
    Good("disconnect 5", V5, h("e0 00"), Disconnect()),
    Good("disconnect 5, with will", V5, h("e0 01 04"), Disconnect(rc.DISCONNECT_WITH_WILL_MESSAGE)),
    Good("disconnect 5, properties", V5, h("e0 07 00 05 11 00000000"),
         Disconnect(0, Properties(session_expiry_interval=0))),
    Good("auth 5, empty", V5, h("f0 00"), Auth()),
    Good("auth 5", V5, h("f0 06 18 04 15 0001 6d"), Auth(rc.CONTINUE_AUTHENTICATION, Properties(authentication_method="m"))),
    *(
        Good(f"{kind} 5 with {value!r}", 0 if kind in ("connect", "will") else V5, *_around(kind, properties, value))
        for kind, properties, value in EVERY_PROPERTY
    ),
]  # fmt: skip

_P = (ProtocolError, rc.PROTOCOL_ERROR)
_UNSUPPORTED = (UnsupportedVersion, rc.UNSUPPORTED_PROTOCOL_VERSION)

BAD = [
    Bad("the first packet is no CONNECT", 0, h("c0 00"), *_P),
    Bad("CONNECT with flags", 0, h("11 0d 0004 4d515454 04 02 003c 0001 61")),
    Bad("packet type 0", V3_1_1, h("00 00")),
    Bad("a filter with # behind letters", V5, h("82 08 0001 00 0002 6123 00")),
    Bad("a filter with # before the end", V5, h("82 0b 0001 00 0005 612f232f62 00")),
    Bad("a filter with + beside letters", V5, h("82 08 0001 00 0002 612b 00")),
    Bad("a wildcard in a share name", V5, h("82 10 0001 00 000a 2473686172652f2b2f74 00"), *_P),
    Bad("a Topic Name with U+0000", V3_1_1, h("30 05 0003 610062")),
    Bad("a Topic Name with a surrogate", V3_1_1, h("30 05 0003 eda080")),
    Bad("a content type twice", V5, h("30 0c 0001 61 08 03 0001 78 03 0001 78"), *_P),
    Bad("a property length longer than needed", V5, h("30 05 0001 61 80 00")),
    Bad("AUTH before version 5", V3_1_1, h("f0 00")),
    Bad("a Remaining Length of five bytes", V5, h("30 ffffffff01")),
    Bad("version 5: a Remaining Length longer than needed", V5, h("c0 8000")),
    Bad("connect: an unknown protocol", 0, h("10 0c 0004 4d515458 04 02 003c 0000"), *_UNSUPPORTED),
    Bad("connect: an unknown level", 0, h("10 0c 0004 4d515454 06 02 003c 0000"), *_UNSUPPORTED),
    Bad("connect: a bridge of version 5", 0, h("10 0d 0004 4d515454 85 02 003c 00 0000"), *_UNSUPPORTED),
    Bad("connect: the reserved flag", 0, h("10 0c 0004 4d515454 04 03 003c 0000")),
    Bad("connect: Will QoS 3", 0, h("10 10 0004 4d515454 04 1e 003c 0000 0000 0000")),
    Bad("connect: Will QoS without a Will", 0, h("10 0c 0004 4d515454 04 0a 003c 0000")),
    Bad("connect: Will Retain without a Will", 0, h("10 0c 0004 4d515454 04 22 003c 0000")),
    Bad("connect: a will topic with a wildcard", 0, h("10 11 0004 4d515454 04 06 003c 0000 0001 23 0000")),
    Bad("unsubscribe 5: a reason string", V5, h("a2 0a 0001 04 1f 0001 6e 0001 61"), *_P),
    Bad("connect 3.1: a password without a user name, the reserved flag set", 0,
        h("10 11 0006 4d5149736470 03 41 003c 0000 0001 70")),
    Bad("connect 5: a will's response topic with a wildcard", 0,
        h("10 17 0004 4d515454 05 06 003c 00 0000 04 08 0001 23 0001 77 0000")),
    Bad("connect 3.1.1: a password without a user name", 0, h("10 0f 0004 4d515454 04 42 003c 0000 0001 70")),
    Bad("connect: ends in its keep-alive", 0, h("10 09 0004 4d515454 04 02 00")),
    Bad("connect: bytes too many", 0, h("10 0d 0004 4d515454 04 02 003c 0000 ff")),
    Bad("connect: a client id that is not UTF-8", 0, h("10 0d 0004 4d515454 04 02 003c 0001 ff")),
    Bad("connect: a client id with U+0000", 0, h("10 0d 0004 4d515454 04 02 003c 0001 00")),
    Bad("connect: a surrogate", 0, h("10 0f 0004 4d515454 04 02 003c 0003 eda080")),
    Bad("connect: data without a method", 0, with_properties(0x10, "0004 4d515454 05 02 003c", "16 0000", "0000"), *_P),
    Bad("connect 5: a Will Delay without a Will", 0,
        with_properties(0x10, "0004 4d515454 05 02 003c", "18 00000001", "0000"), *_P),
    Bad("connect 5: a Will with a Session Expiry", 0,
        h("10 18 0004 4d515454 05 06 003c 00 0000 05 11 00000001 0001 77 0000"), *_P),
    Bad("connack: reserved flags", V3_1_1, h("20 02 02 00")),
    Bad("connack 5: an unknown code", V5, h("20 03 00 20 00"), *_P),
    Bad("publish: QoS 3", V3_1_1, h("36 05 0001 61 0001")),
    Bad("publish: DUP at QoS 0", V3_1_1, h("38 03 0001 61")),
    Bad("publish: no topic", V3_1_1, h("30 01 00")),
    Bad("publish: a topic longer than the packet", V3_1_1, h("30 03 0002 61")),
    Bad("publish: a wildcard", V5, h("30 04 0001 2b 00")),
    Bad("publish: an empty topic", V3_1_1, h("30 02 0000"), MalformedPacket, rc.TOPIC_NAME_INVALID),
    Bad("publish 5: neither topic nor alias", V5, h("30 03 0000 00"), *_P),
    Bad("publish: too many levels", V3_1_1, h("30 ca01 00c8") + b"/" * 200, MalformedPacket, rc.TOPIC_NAME_INVALID),
    Bad("publish: a topic that is not UTF-8", V3_1_1, h("30 04 0002 c328")),
    Bad("publish: ends before its identifier", V3_1_1, h("32 04 0001 61 00")),
    Bad("publish: identifier 0", V3_1_1, h("32 05 0001 61 0000"), *_P),
    Bad("publish 5: no properties at all", V5, h("30 03 0001 61")),
    Bad("publish 5: properties longer than the packet", V5, h("30 05 0001 61 05 01")),
    Bad("publish 5: alias 0", V5, with_properties(0x30, "0001 61", "23 0000"), ProtocolError, rc.TOPIC_ALIAS_INVALID),
    Bad("publish 5: a property twice", V5, with_properties(0x30, "0001 61", "01 00 01 00"), *_P),
    Bad("publish 5: an unknown property", V5, with_properties(0x30, "0001 61", "04 00")),
    Bad("publish 5: a property of CONNECT", V5, with_properties(0x30, "0001 61", "21 0001"), *_P),
    Bad("publish 5: a flag of 2", V5, with_properties(0x30, "0001 61", "01 02"), *_P),
    Bad("publish 5: a number cut off", V5, with_properties(0x30, "0001 61", "02 000000")),
    Bad("publish 5: a string cut off", V5, with_properties(0x30, "0001 61", "03 0002 61")),
    Bad("publish 5: subscription identifier 0", V5, with_properties(0x30, "0001 61", "0b 00"), *_P),
    Bad("publish 5: a response topic with a wildcard", V5, with_properties(0x30, "0001 61", "08 0001 23")),
    Bad("publish 5: half a user property", V5, with_properties(0x30, "0001 61", "26 0001 61")),
    Bad("connect 5: Receive Maximum 0", 0, with_properties(0x10, "0004 4d515454 05 02 003c", "21 0000", "0000"), *_P),
    Bad("connect 5: Maximum Packet Size 0", 0, with_properties(0x10, "0004 4d515454 05 02 003c", "27 00000000", "0000"), *_P),
    Bad("puback: one byte short", V5, h("40 01 00")),
    Bad("puback: identifier 0", V5, h("40 02 0000"), *_P),
    Bad("puback 3.1.1 with a reason", V3_1_1, h("40 03 0001 00")),
    Bad("puback 5: a reason of another packet", V5, h("40 03 0001 92"), *_P),
    Bad("puback: flags", V3_1_1, h("42 02 0001")),
    Bad("pubrel 3.1.1 without its flag", V3_1_1, h("60 02 0001")),
    Bad("pubrel 5: a reason of PUBACK", V5, h("62 03 0001 10"), *_P),
    Bad("subscribe: no flag", V3_1_1, h("80 06 0001 0001 61 00")),
    Bad("subscribe: no filter", V3_1_1, h("82 02 0001"), *_P),
    Bad("subscribe: identifier 0", V3_1_1, h("82 06 0000 0001 61 00"), *_P),
    Bad("subscribe: QoS 3", V3_1_1, h("82 06 0001 0001 61 03")),
    Bad("subscribe 3.1.1: options of version 5", V3_1_1, h("82 06 0001 0001 61 04")),
    Bad("subscribe 5: reserved options", V5, h("82 07 0001 00 0001 61 40")),
    Bad("subscribe 5: Retain Handling 3", V5, h("82 07 0001 00 0001 61 30")),
    Bad("subscribe 5: No Local and shared", V5, h("82 10 0001 00 000a 2473686172652f672f61 04"), *_P),
    Bad("subscribe 5: two identifiers", V5, h("82 0b 0001 04 0b01 0b02 0001 61 00"), *_P),
    Bad("subscribe 5: a share without a filter", V5, h("82 0e 0001 00 0008 2473686172652f67 00"), *_P),
    Bad("subscribe: # not last", V3_1_1, h("82 08 0001 0003 232f61 00")),
    Bad("subscribe: + in a level", V3_1_1, h("82 07 0001 0002 612b 00")),
    Bad("subscribe: an empty filter", V3_1_1, h("82 05 0001 0000 00")),
    Bad("subscribe: no options", V3_1_1, h("82 05 0001 0001 61")),
    Bad("suback 3.1.1: an unknown code", V3_1_1, h("90 03 0001 03"), *_P),
    Bad("suback: no code", V3_1_1, h("90 02 0001"), *_P),
    Bad("unsubscribe: no filter", V3_1_1, h("a2 02 0001"), *_P),
    Bad("unsubscribe: no flag", V5, h("a0 06 0001 00 0001 61")),
    Bad("unsuback 5: an unknown code", V5, h("b0 04 0001 00 01"), *_P),
    Bad("pingreq with a body", V3_1_1, h("c0 01 00")),
    Bad("pingresp with flags", V5, h("d1 00")),
    Bad("disconnect 3.1.1 with a body", V3_1_1, h("e0 01 00")),
    Bad("disconnect 5: an unknown code", V5, h("e0 01 01"), *_P),
    Bad("auth 5: an unknown code", V5, h("f0 01 87"), *_P),
]  # fmt: skip

TOO_LARGE = Bad("beyond the Maximum Packet Size", V5, b"\x30\x80\x01", PacketTooLarge, rc.PACKET_TOO_LARGE)
