"""Bytes to packets, for all three versions, whatever the pieces they arrive in."""

from __future__ import annotations

from typing import Final, final

from lockgate.mqtt import reason_codes
from lockgate.mqtt.errors import MalformedPacket, MqttError, PacketTooLarge, ProtocolError, UnsupportedVersion
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
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    TYPE_NAMES,
    UNSUBACK,
    UNSUBSCRIBE,
    V3_1,
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
from lockgate.mqtt.properties import IN_WILL, Properties, decode_properties
from lockgate.mqtt.topics import MAXIMUM_LEVELS, check_topic_filter, check_topic_name
from lockgate.mqtt.wire import decode_utf8

_KNOWN_TOPICS_LIMIT: Final = 4096
_KNOWN_TOPIC_BYTES: Final = 512  # longer names are not remembered
_PIECE_BYTES: Final = 4096  # that pieces of a packet have at least


@final
class PacketRules:
    """Bounds of what a packet may hold, and the Topic Names already checked: most messages carry one seen before.

    One object may serve many decoders. It remembers at most 4,096 names and starts afresh when full.
    """

    __slots__ = ("_topic_bytes", "_topic_levels", "known", "topic_filters", "user_properties")

    def __init__(
        self,
        topic_bytes: int = 65_535,
        topic_levels: int = MAXIMUM_LEVELS,
        user_properties: int = 0,
        topic_filters: int = 0,
    ) -> None:
        self._topic_bytes = topic_bytes
        self._topic_levels = topic_levels
        self.user_properties = user_properties  # of one packet or Will; 0: no limit
        self.topic_filters = topic_filters  # of one SUBSCRIBE or UNSUBSCRIBE; 0: no limit
        self.known: dict[bytes, str] = {}

    def check_name(self, topic_name: str) -> None:
        """Raise MalformedPacket unless this is a Topic Name within the bounds."""
        check_topic_name(topic_name, self._topic_levels)
        if self._is_too_long(topic_name):
            detail = f"a Topic Name of more than {self._topic_bytes} bytes"
            raise MalformedPacket(detail, reason_codes.TOPIC_NAME_INVALID)

    def check_filter(self, topic_filter: str) -> None:
        """Raise an error unless this is a Topic Filter, shared or not, within the bounds."""
        check_topic_filter(topic_filter, self._topic_levels)
        if self._is_too_long(topic_filter):
            detail = f"a Topic Filter of more than {self._topic_bytes} bytes"
            raise MalformedPacket(detail, reason_codes.TOPIC_FILTER_INVALID)

    def _is_too_long(self, topic: str) -> bool:
        # a character takes four bytes at most, so that most need not be encoded to know
        return len(topic) * 4 > self._topic_bytes and len(topic.encode("utf-8")) > self._topic_bytes

    def check_count(self, topic_filters: int) -> None:
        """Raise MqttError when one packet has more Topic Filters than are accepted."""
        if self.topic_filters and topic_filters > self.topic_filters:
            detail = f"more than {self.topic_filters} Topic Filters in one packet"
            raise MqttError(detail, reason_codes.QUOTA_EXCEEDED)

    def topic_name(self, encoded: bytes) -> str:
        """Give the Topic Name of these bytes; raises MalformedPacket when it is not one."""
        topic_name = decode_utf8(encoded)
        self.check_name(topic_name)
        if len(encoded) <= _KNOWN_TOPIC_BYTES:
            if len(self.known) >= _KNOWN_TOPICS_LIMIT:
                self.known.clear()
            self.known[encoded] = topic_name
        return topic_name


@final
class Decoder:
    """Takes the bytes of one Network Connection and gives its packets.

    `version` is 0 until a CONNECT has told it: then only CONNECT is accepted. `maximum_packet_size` counts whole
    packets, 0 is no limit; both may be changed between packets. With `keep_frames`, a QoS 0 PUBLISH that any receiver
    of its version could get unchanged carries the bytes that it came in.
    """

    __slots__ = (
        "_at",
        "_buffer",
        "_gathered",
        "_missing",
        "_pieces",
        "_rules",
        "keep_frames",
        "maximum_packet_size",
        "version",
    )

    def __init__(
        self,
        version: int = 0,
        maximum_packet_size: int = 0,
        keep_frames: bool = False,
        rules: PacketRules | None = None,
    ) -> None:
        self.version = version
        self.maximum_packet_size = maximum_packet_size
        self.keep_frames = keep_frames
        self._rules = rules if rules is not None else PacketRules()
        self._buffer = b""
        self._at = 0
        self._pieces: list[bytes] | None = None  # of a packet that needs more than one feed
        self._missing = 0  # bytes until that packet is whole
        self._gathered = 0  # bytes in its pieces

    def feed(self, data: bytes) -> None:
        """Add bytes that arrived; then call `next_packet` until it gives None."""
        if self._pieces is not None:
            pieces = self._pieces
            if len(pieces[-1]) < _PIECE_BYTES:  # each costs more than a few bytes, and a peer may send few at a time
                pieces[-1] += data
            else:
                pieces.append(data)
            self._missing -= len(data)
            self._gathered += len(data)
            if self._missing > 0:
                return
            self._buffer = b"".join(self._pieces)
            self.clear_pieces()
        elif self._at < len(self._buffer):
            self._buffer = self._buffer[self._at :] + data
        else:
            self._buffer = data
        self._at = 0

    def clear_pieces(self) -> None:
        self._pieces = None
        self._missing = 0
        self._gathered = 0

    def clear(self) -> None:
        """Forget what has arrived."""
        self.clear_pieces()
        self._buffer = b""
        self._at = 0

    @property
    def pending(self) -> int:
        """How many bytes are kept that no packet has used yet."""
        return self._gathered + len(self._buffer) - self._at

    def next_packet(self) -> Packet | None:
        """Give the next whole packet, or None when more bytes are needed.

        Raises MqttError, after which the connection must be closed and nothing more be asked.
        """
        data = self._buffer
        start = self._at
        size = len(data)
        if start + 2 > size:
            self._drop_read()
            return None
        remaining = data[start + 1]
        at = start + 2
        if remaining >= 0x80:
            remaining &= 0x7F
            shift = 7
            while True:
                if shift == 28:
                    raise MalformedPacket("the Remaining Length needs a fifth byte")
                if at >= size:
                    self._drop_read()
                    return None
                byte = data[at]
                at += 1
                remaining |= (byte & 0x7F) << shift
                if byte < 0x80:
                    if byte == 0 and self.version == V5:
                        raise MalformedPacket("the Remaining Length uses more bytes than it needs")
                    break
                shift += 7
        first = data[start]
        if self.version == 0 and first >> 4 != CONNECT:
            raise ProtocolError(f"the first packet must be CONNECT, not {TYPE_NAMES[first >> 4]}")
        end = at + remaining
        limit = self.maximum_packet_size
        if limit and end - start > limit:
            raise PacketTooLarge(end - start, limit)
        if end > size:
            self._pieces = [data[start:]]
            self._missing = end - size
            self._gathered = size - start
            self._buffer = b""
            self._at = 0
            return None
        self._at = end
        if first >> 4 == PUBLISH:
            return self._publish(data, start, at, end)
        return self._other(first, data, at, end)

    def _drop_read(self) -> None:
        """What was read is not kept for the sake of its last bytes."""
        if self._at:
            self._buffer = self._buffer[self._at :]
            self._at = 0

    def _publish(self, data: bytes, start: int, at: int, end: int) -> Publish:
        first = data[start]
        is_padded = data[at - 1] == 0  # a Remaining Length with more bytes than it needs, which is not passed on
        qos = first >> 1 & 3
        if qos == 3:
            raise MalformedPacket("PUBLISH with QoS 3")
        if first & 8 and qos == 0:
            raise MalformedPacket("PUBLISH with DUP at QoS 0")
        if at + 2 > end:
            raise MalformedPacket("PUBLISH ends before its Topic Name")
        topic_end = at + 2 + (data[at] << 8 | data[at + 1])
        if topic_end > end:
            raise MalformedPacket("the Topic Name is longer than its packet")
        encoded = data[at + 2 : topic_end]
        topic_name = self._rules.known.get(encoded)
        if topic_name is None:
            topic_name = self._rules.topic_name(encoded) if encoded or self.version != V5 else ""
        at = topic_end
        packet_id = 0
        if qos:
            if at + 2 > end:
                raise MalformedPacket("PUBLISH ends before its Packet Identifier")
            packet_id = data[at] << 8 | data[at + 1]
            at += 2
            if packet_id == 0:
                raise ProtocolError("PUBLISH with Packet Identifier 0")
        properties: Properties | None = None
        if self.version == V5:
            if at < end and data[at] == 0:
                at += 1
            else:
                properties, at = decode_properties(data, at, end, 1 << PUBLISH, self._rules.user_properties)
                if properties is not None and properties.response_topic is not None:
                    self._rules.check_name(properties.response_topic)
            if not topic_name and (properties is None or properties.topic_alias is None):
                raise ProtocolError("PUBLISH with neither Topic Name nor Topic Alias")
        frame = b""
        if (
            self.keep_frames
            and first == 0x30
            and not is_padded
            and (properties is None or (properties.topic_alias is None and properties.message_expiry_interval is None))
        ):
            frame = data[start:end]
        return Publish(topic_name, data[at:end], qos, first & 1 != 0, first & 8 != 0, packet_id, properties, frame)

    def _other(self, first: int, data: bytes, at: int, end: int) -> Packet:
        packet_type = first >> 4
        flags = first & 0x0F
        expected = 2 if packet_type in (PUBREL, SUBSCRIBE, UNSUBSCRIBE) else 0
        if flags != expected and self.version != V3_1:
            raise MalformedPacket(f"{TYPE_NAMES[packet_type]} with flags {flags:04b}, must be {expected:04b}")
        if PUBACK <= packet_type <= PUBCOMP:
            return self._acknowledgement(packet_type, data, at, end)
        body = _Body(data, at, end, self._rules.user_properties)
        packet: Packet
        if packet_type == PINGREQ:
            packet = PingReq()
        elif packet_type == PINGRESP:
            packet = PingResp()
        elif packet_type == SUBSCRIBE:
            packet = self._subscribe(body)
        elif packet_type == UNSUBSCRIBE:
            packet = self._unsubscribe(body)
        elif packet_type == CONNECT:
            packet = self._connect(body)
        elif packet_type == DISCONNECT:
            packet = self._disconnect(body)
        elif packet_type == SUBACK:
            packet = self._suback(body)
        elif packet_type == UNSUBACK:
            packet = self._unsuback(body)
        elif packet_type == CONNACK:
            packet = self._connack(body)
        elif packet_type == AUTH and self.version == V5:
            packet = self._auth(body)
        else:
            raise MalformedPacket(f"packet type {packet_type} is reserved")
        if body.at != end:
            raise MalformedPacket(f"{TYPE_NAMES[packet_type]} has {end - body.at} bytes too many")
        return packet

    def _acknowledgement(self, packet_type: int, data: bytes, at: int, end: int) -> Packet:
        if end - at < 2:
            raise MalformedPacket(f"{TYPE_NAMES[packet_type]} ends before its Packet Identifier")
        packet_id = data[at] << 8 | data[at + 1]
        at += 2
        if packet_id == 0:
            raise ProtocolError(f"{TYPE_NAMES[packet_type]} with Packet Identifier 0")
        reason_code = 0
        properties: Properties | None = None
        if at < end and self.version == V5:
            reason_code = data[at]
            at += 1
            allowed = reason_codes.PUBREL_CODES if packet_type >= PUBREL else reason_codes.PUBACK_CODES
            if reason_code not in allowed:
                raise ProtocolError(f"{TYPE_NAMES[packet_type]} with Reason Code 0x{reason_code:02X}")
            if at < end:
                properties, at = decode_properties(data, at, end, 1 << packet_type, self._rules.user_properties)
        if at != end:
            raise MalformedPacket(f"{TYPE_NAMES[packet_type]} has {end - at} bytes too many")
        if packet_type == PUBACK:
            return PubAck(packet_id, reason_code, properties)
        if packet_type == PUBREC:
            return PubRec(packet_id, reason_code, properties)
        if packet_type == PUBREL:
            return PubRel(packet_id, reason_code, properties)
        return PubComp(packet_id, reason_code, properties)

    def _connect(self, body: _Body) -> Connect:
        start = body.at
        name = body.string("Protocol Name")
        level = body.byte("Protocol Version")
        version = level & 0x7F
        bridge = level >= 0x80  # Mosquitto's bridges, 3.1 and 3.1.1, announce themselves so
        if PROTOCOL_NAMES.get(version) != name or (bridge and version == V5):
            raise UnsupportedVersion(name, level, name in PROTOCOL_NAMES.values())
        if version == V5 and body.data[start - 1] == 0:  # no other packet comes before the version is known
            raise MalformedPacket("the Remaining Length uses more bytes than it needs")
        flags = body.byte("Connect Flags")
        if flags & 1 and version != V3_1:
            raise MalformedPacket("the reserved Connect Flag is set")
        has_will = flags & 0x04 != 0
        will_qos = flags >> 3 & 3
        will_retain = flags & 0x20 != 0
        if will_qos == 3:
            raise MalformedPacket("a Will with QoS 3")
        if not has_will and (will_qos or will_retain):
            raise MalformedPacket("Will QoS or Will Retain without a Will")
        has_username = flags & 0x80 != 0
        has_password = flags & 0x40 != 0
        if has_password and not has_username and version != V5:
            raise MalformedPacket("a Password without a User Name")
        keep_alive = body.two_bytes("Keep Alive")
        properties = body.properties(1 << CONNECT) if version == V5 else None
        if (
            properties is not None
            and properties.authentication_data is not None
            and properties.authentication_method is None
        ):
            raise ProtocolError("Authentication Data without an Authentication Method")
        client_id = body.string("Client Identifier")
        will: Will | None = None
        if has_will:
            will_properties = body.properties(IN_WILL) if version == V5 else None
            will_topic = body.string("Will Topic")
            self._rules.check_name(will_topic)
            if will_properties is not None and will_properties.response_topic is not None:
                self._rules.check_name(will_properties.response_topic)
            will = Will(will_topic, body.binary("Will Payload"), will_qos, will_retain, will_properties)
        username: str | None = None
        password: bytes | None = None
        # MQTT 3.1 allows the flags to be set with the fields left out at the end (3.1 §3.1)
        if has_username and not (version == V3_1 and body.at == body.end):
            username = body.string("User Name")
        if has_password and not (version == V3_1 and body.at == body.end):
            password = body.binary("Password")
        return Connect(client_id, version, flags & 2 != 0, keep_alive, username, password, will, properties, bridge)

    def _connack(self, body: _Body) -> ConnAck:
        flags = body.byte("Connect Acknowledge Flags")
        if flags > 1:
            raise MalformedPacket("a reserved Connect Acknowledge Flag is set")
        code = body.byte("Reason Code")
        if self.version != V5:
            return ConnAck(code, flags == 1)
        if body.at == body.end:  # a Server that does not speak version 5 refuses with a CONNACK of version 3
            code = reason_codes.CONNACK_V5.get(code, code)
        if code not in reason_codes.CONNACK_CODES:
            raise ProtocolError(f"CONNACK with Reason Code 0x{code:02X}")
        properties = body.properties(1 << CONNACK) if body.at < body.end else None
        return ConnAck(code, flags == 1, properties)

    def _subscribe(self, body: _Body) -> Subscribe:
        packet_id = body.packet_id()
        properties = body.properties(1 << SUBSCRIBE) if self.version == V5 else None
        requests: list[SubscriptionRequest] = []
        while body.at < body.end:
            topic_filter = body.string("Topic Filter")
            self._rules.check_filter(topic_filter)
            self._rules.check_count(len(requests) + 1)
            options = body.byte("Subscription Options")
            qos = options & 3
            if qos == 3:
                raise MalformedPacket("a subscription with QoS 3")
            if self.version != V5:
                if options > 2:
                    raise MalformedPacket("reserved bits of the requested QoS are set")
                requests.append(SubscriptionRequest(topic_filter, qos))
                continue
            if options & 0xC0:
                raise MalformedPacket("reserved bits of the Subscription Options are set")
            retain_handling = options >> 4
            if retain_handling == 3:
                raise MalformedPacket("Retain Handling 3")
            no_local = options & 4 != 0
            if no_local and topic_filter.startswith("$share/"):
                raise ProtocolError("No Local on a shared subscription")  # [MQTT-3.8.3-4]
            requests.append(SubscriptionRequest(topic_filter, qos, no_local, options & 8 != 0, retain_handling))
        if not requests:
            raise ProtocolError("SUBSCRIBE without a Topic Filter")
        return Subscribe(packet_id, requests, properties)

    def _suback(self, body: _Body) -> SubAck:
        packet_id = body.packet_id()
        if self.version == V5:
            properties = body.properties(1 << SUBACK)
            return SubAck(packet_id, body.codes(reason_codes.SUBACK_CODES), properties)
        return SubAck(packet_id, body.codes(frozenset({0, 1, 2, 0x80})))

    def _unsubscribe(self, body: _Body) -> Unsubscribe:
        packet_id = body.packet_id()
        properties = body.properties(1 << UNSUBSCRIBE) if self.version == V5 else None
        topic_filters: list[str] = []
        while body.at < body.end:
            topic_filter = body.string("Topic Filter")
            self._rules.check_filter(topic_filter)
            self._rules.check_count(len(topic_filters) + 1)
            topic_filters.append(topic_filter)
        if not topic_filters:
            raise ProtocolError("UNSUBSCRIBE without a Topic Filter")
        return Unsubscribe(packet_id, topic_filters, properties)

    def _unsuback(self, body: _Body) -> UnsubAck:
        packet_id = body.packet_id()
        if self.version != V5:
            return UnsubAck(packet_id, [])
        properties = body.properties(1 << UNSUBACK)
        return UnsubAck(packet_id, body.codes(reason_codes.UNSUBACK_CODES), properties)

    def _disconnect(self, body: _Body) -> Disconnect:
        if self.version != V5 or body.at == body.end:
            return Disconnect()
        code = body.byte("Reason Code")
        if code not in reason_codes.DISCONNECT_CODES:
            raise ProtocolError(f"DISCONNECT with Reason Code 0x{code:02X}")
        return Disconnect(code, body.properties(1 << DISCONNECT) if body.at < body.end else None)

    def _auth(self, body: _Body) -> Auth:
        if body.at == body.end:
            return Auth()
        code = body.byte("Reason Code")
        if code not in reason_codes.AUTH_CODES:
            raise ProtocolError(f"AUTH with Reason Code 0x{code:02X}")
        return Auth(code, body.properties(1 << AUTH) if body.at < body.end else None)


@final
class _Body:
    """The variable header and payload of one packet, read from front to back."""

    __slots__ = ("_user_properties", "at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int, user_properties: int) -> None:
        self.data = data
        self.at = at
        self.end = end
        self._user_properties = user_properties

    def byte(self, what: str) -> int:
        if self.at >= self.end:
            raise MalformedPacket(f"the packet ends before its {what}")
        value = self.data[self.at]
        self.at += 1
        return value

    def two_bytes(self, what: str) -> int:
        at = self.at
        if at + 2 > self.end:
            raise MalformedPacket(f"the packet ends before its {what}")
        self.at = at + 2
        return self.data[at] << 8 | self.data[at + 1]

    def packet_id(self) -> int:
        value = self.two_bytes("Packet Identifier")
        if value == 0:
            raise ProtocolError("Packet Identifier 0")
        return value

    def binary(self, what: str) -> bytes:
        start = self.at + 2
        stop = start + self.two_bytes(what)
        if stop > self.end:
            raise MalformedPacket(f"the {what} is longer than its packet")
        self.at = stop
        return self.data[start:stop]

    def string(self, what: str) -> str:
        return decode_utf8(self.binary(what))

    def properties(self, where: int) -> Properties | None:
        properties, self.at = decode_properties(self.data, self.at, self.end, where, self._user_properties)
        return properties

    def codes(self, allowed: frozenset[int]) -> list[int]:
        codes = list(self.data[self.at : self.end])
        self.at = self.end
        if not codes:
            raise ProtocolError("an acknowledgement without a Reason Code")
        for code in codes:
            if code not in allowed:
                raise ProtocolError(f"an acknowledgement with Reason Code 0x{code:02X}")
        return codes
