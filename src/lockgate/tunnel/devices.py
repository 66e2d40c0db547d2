"""The edge's filter between a device that speaks MQTT and the stream through the tunnel.

It reads CONNECT and decides before a stream is opened; afterwards it looks at each PUBLISH and SUBSCRIBE, if the policy
asks for that, and passes on the very bytes that came where it has nothing against them. It has no socket and no clock.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from lockgate.mqtt import reason_codes
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import PINGRESP_FRAME, encode, encode_acknowledgement
from lockgate.mqtt.errors import MalformedPacket, MqttError, PacketTooLarge, ProtocolError, UnsupportedVersion
from lockgate.mqtt.packets import (
    CONNACK,
    PINGREQ,
    PUBACK,
    PUBLISH,
    PUBREC,
    SUBACK,
    SUBSCRIBE,
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    Disconnect,
    SubAck,
    Subscribe,
    SubscriptionRequest,
)
from lockgate.mqtt.properties import Properties, decode_properties
from lockgate.mqtt.topics import check_topic_name
from lockgate.mqtt.wire import decode_utf8, encode_string, encode_variable_byte_integer, read_variable_byte_integer
from lockgate.tunnel.boundaries import Boundaries
from lockgate.tunnel.device_policy import DevicePolicy, Peer, Permissions, Refused

_HEAD_BYTES: Final = 256 * 1024  # of a PUBLISH up to its payload, and of a SUBSCRIBE
_COLLECTED_BYTES: Final = 1 << 20  # of a packet from the broker that is changed
_EARLY_BYTES: Final = 1 << 20
_OPEN_SUBSCRIBES: Final = 1000  # that wait for the broker's SUBACK to be completed
_SUBACK_REFUSED: Final = 0x80  # before version 5


class State(enum.Enum):
    """How far a device is."""

    AWAITING_CONNECT = "awaiting CONNECT"
    LOGIN = "logging in"  # `log_in` is to be called, then `admit`; nothing more should be read meanwhile
    OPEN = "open"
    CLOSED = "closed"  # send what `answer` gives, then close both sides


class _Verdict(NamedTuple):
    """What becomes of the packet that begins here."""

    need: int = 0  # so many of its bytes have to be there to decide
    instead: bytes | None = None  # what is passed on in place of its first `consumed` bytes; None: itself
    consumed: int = 0


_PASS: Final = _Verdict()


class DeviceFilter:
    """One device. Its bytes go in by `receive`, those of the broker by `from_broker`; both give what to pass on.

    `answer` gives what the edge itself has to say to the device; ask for it after `receive`, `admit`, `refuse` and
    `expire`. `policy` may be set until `log_in`, for a device whose user name says which it is. Times are seconds of
    any clock that only goes forward, but for `log_in`.
    """

    __slots__ = (
        "_alias_maximum",
        "_aliases",
        "_aliases_there",
        "_answers",
        "_begin",
        "_collected",
        "_decoder",
        "_down",
        "_greeted",
        "_held",
        "_need",
        "_permissions",
        "_skip",
        "_subacks",
        "_up",
        "_wants_connack",
        "_watches",
        "answers_pings",
        "connect",
        "deadline",
        "peer",
        "policy",
        "problem",
        "refused",
        "state",
    )

    def __init__(self, peer: Peer, policy: DevicePolicy, now: float) -> None:
        self.peer = peer
        self.policy = policy
        self.state = State.AWAITING_CONNECT
        self.connect: Connect | None = None
        self.deadline: float | None = now + policy.connect_seconds  # when `expire` is to be called
        self.problem = ""  # why it was closed, for the log
        self.refused = 0  # packets that were not passed on
        self.answers_pings = False  # while there is no way to the broker: then PINGREQ goes no further than here
        self._decoder: Decoder | None = Decoder(maximum_packet_size=policy.connect_bytes)
        self._begin = b""  # all that came until it was admitted
        self._permissions = Permissions(policy)
        self._watches = False  # each packet has to be looked at
        self._up = Boundaries()  # of what is passed on
        self._down = Boundaries()
        self._answers = b""
        self._greeted = False  # CONNACK has gone to the device
        self._held = bytearray()  # of a packet that cannot be judged yet
        self._need = 0
        self._skip = 0  # bytes still to come of a packet that is not passed on
        self._aliases: dict[int, str] = {}  # as the device has set them
        self._aliases_there: dict[int, str] = {}  # as the broker knows them
        self._alias_maximum = 0
        self._wants_connack = False
        self._subacks: dict[int, list[int | None]] = {}  # None: the broker's code, in order
        self._collected: bytearray | None = None  # a packet of the broker's

    @property
    def client_id(self) -> str:
        return self.connect.client_id if self.connect is not None else ""

    @property
    def username(self) -> str | None:
        return self.connect.username if self.connect is not None else None

    @property
    def version(self) -> int:
        """The protocol level, 0 before CONNECT."""
        return self.connect.version if self.connect is not None else 0

    @property
    def keep_alive(self) -> int:
        """In seconds; 0 is none."""
        return self.connect.keep_alive if self.connect is not None else 0

    @property
    def is_slow(self) -> bool:
        """Whether `log_in` has a password to hash, and belongs in a thread."""
        return self.policy.passwords is not None

    # --- letting it in --------------------------------------------------------------------------------------------

    def log_in(self, now: float) -> Permissions | Refused:
        """Say whether the device is let in; `now` in Unix seconds. Changes nothing, so that it can run in a thread."""
        assert self.connect is not None
        try:
            return self.policy.login(self.connect, self.peer, now)
        except Refused as refused:
            return refused

    def admit(self, outcome: Permissions | Refused) -> bytes:
        """Take what `log_in` gave; gives what is passed on: CONNECT as it came, and what came behind it."""
        if self.state is not State.LOGIN:
            return b""
        if isinstance(outcome, Refused):
            self.refuse(outcome.reason_code, outcome.detail)
            return b""
        self.state = State.OPEN
        self.deadline = None
        self._permissions = outcome
        policy = outcome.policy
        self._watches = policy.watches_publish or policy.watches_subscribe
        self._wants_connack = self.version == V5 and self._watches
        data, self._begin = self._begin, b""
        end = self._up.step(data, 0)  # CONNECT was looked at
        return data[:end] + (self.receive(data[end:]) if end < len(data) else b"")

    def refuse(self, reason_code: int, detail: str) -> None:
        """Have the device told in the CONNACK of its version; for the edge's own reasons, too."""
        if self.state is State.LOGIN:
            code = reason_code
            if self.version != V5:
                code = reason_codes.CONNACK_V3.get(reason_code, reason_codes.NOT_AUTHORIZED_V3)
            self._answers = encode(ConnAck(code), self.version)
            self._greeted = True
        self._close(detail)

    def expire(self, now: float) -> None:
        """Close when the deadline has passed."""
        if self.deadline is not None and now >= self.deadline:
            self._close("no whole CONNECT in time" if self.state is State.AWAITING_CONNECT else "no login in time")

    def _read_connect(self, data: bytes) -> None:
        self._begin += data
        decoder = self._decoder
        assert decoder is not None
        try:
            decoder.feed(data)
            packet = decoder.next_packet()
        except UnsupportedVersion as error:
            if error.known_protocol:
                is_later = error.protocol_name == "MQTT" and error.protocol_level & 0x7F >= V5
                code = reason_codes.UNSUPPORTED_PROTOCOL_VERSION
                connack = ConnAck(code if is_later else reason_codes.CONNACK_V3[code])
                self._answers = encode(connack, V5 if is_later else V3_1_1)
                self._greeted = True
            self._close(error.detail)
        except MqttError as error:
            self._close(error.detail)
        else:
            if isinstance(packet, Connect):
                self.connect = packet
                self.state = State.LOGIN
                self._decoder = None

    # --- from the device ------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the device; gives what is passed on to the broker."""
        if self.state is not State.OPEN:
            if self.state is State.AWAITING_CONNECT:
                self._read_connect(data)
            elif self.state is State.LOGIN:
                self._begin += data
                if len(self._begin) > _EARLY_BYTES:
                    self._close("too much behind CONNECT before it was let in")
            return b""
        if self._watches or self.answers_pings or self._held or self._skip:
            return self._look(data)
        try:
            self._up.advance(data)
        except MqttError as error:
            self._disconnect(error.reason_code, error.detail)
            return b""
        return data

    def _look(self, data: bytes) -> bytes:
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return b""
            data = bytes(self._held)
            self._held = bytearray()
        passed: list[bytes] = []
        try:
            self._pass(data, passed)
        except MqttError as error:  # what came before it is passed on all the same
            self._disconnect(error.reason_code, error.detail)
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def _pass(self, data: bytes, passed: list[bytes]) -> None:
        at, size = 0, len(data)
        while at < size and self.state is State.OPEN:
            if self._skip:
                step = min(self._skip, size - at)
                self._skip -= step
                at += step
                continue
            if self._up.at_boundary:
                verdict = self._judge(data, at)
                if verdict.need:
                    self._held += data[at:]
                    self._need = verdict.need
                    return
                if verdict.instead is not None:
                    passed.append(verdict.instead)
                    self._up.advance(verdict.instead)
                    self._skip = verdict.consumed
                    continue
            end = self._up.step(data, at)
            passed.append(data[at:end] if at or end < size else data)
            at = end

    def _judge(self, data: bytes, at: int) -> _Verdict:
        """Say what becomes of the packet at data[at]. Raises MqttError."""
        packet_type = data[at] >> 4
        if packet_type == PUBLISH and self._permissions.policy.watches_publish:
            return self._publish(data, at)
        if packet_type == SUBSCRIBE and self._permissions.policy.watches_subscribe:
            return self._subscribe(data, at)
        if packet_type == PINGREQ and self.answers_pings:
            if len(data) < at + 2:
                return _Verdict(need=2)
            self._answers += PINGRESP_FRAME
            return _Verdict(instead=b"", consumed=2)
        return _PASS

    def _publish(self, data: bytes, start: int) -> _Verdict:
        size = len(data)
        head = _fixed_header(data, start)
        if head is None:
            return _Verdict(need=size - start + 1)
        at, end = head
        qos = data[start] >> 1 & 3
        if qos == 3:
            raise MalformedPacket("PUBLISH with QoS 3")
        least = at + 2 + (2 if qos else 0) + (1 if self.version == V5 else 0)
        if end < least:
            raise MalformedPacket("PUBLISH ends before its payload")
        if size < least:
            return _Verdict(need=least - start)
        topic_at = at + 2
        at = topic_end = topic_at + (data[at] << 8 | data[at + 1])
        packet_id_at = at
        at += 2 if qos else 0
        properties_at = at
        properties: Properties | None = None
        if end < at + (1 if self.version == V5 else 0):
            raise MalformedPacket("the Topic Name is longer than its packet")
        if self.version == V5:
            length_end = _variable_end(data, at)
            if length_end > size:
                return _Verdict(need=length_end - start)
            length, at = read_variable_byte_integer(data, at, min(length_end, end))
            if at + length > end:
                raise MalformedPacket("the properties are longer than their packet")
            if at + length - start > _HEAD_BYTES:
                raise PacketTooLarge(at + length - start, _HEAD_BYTES)
            at += length
        if size < at:
            return _Verdict(need=at - start)
        if self.version == V5:
            properties, _ = decode_properties(data, properties_at, end, 1 << PUBLISH)
        topic, is_news = self._topic(data[topic_at:topic_end], properties)
        problem = self._permissions.publish_problem(topic, end - at, qos, data[start] & 1 != 0)
        if problem is not None:
            packet_id = data[packet_id_at] << 8 | data[packet_id_at + 1] if qos else 0
            self._refuse_publish(qos, packet_id, *problem)
            return _Verdict(instead=b"", consumed=end - start)
        if properties is not None and properties.topic_alias is not None:
            self._aliases_there[properties.topic_alias] = topic
        if not is_news:
            return _PASS
        # the broker never saw the packet that set this alias: it was refused
        body = encode_string(topic) + data[packet_id_at:at]
        remaining = len(body) + end - at
        instead = data[start : start + 1] + encode_variable_byte_integer(remaining) + body
        return _Verdict(instead=instead, consumed=at - start)

    def _topic(self, encoded: bytes, properties: Properties | None) -> tuple[str, bool]:
        """Give the Topic Name, and whether the broker has to be told it in place of an alias (§3.3.2.3.4)."""
        alias = properties.topic_alias if properties is not None else None
        topic = decode_utf8(encoded)
        if alias is None:
            check_topic_name(topic)
            return topic, False
        if alias > self._alias_maximum:
            detail = f"Topic Alias {alias}, at most {self._alias_maximum} is granted"
            raise ProtocolError(detail, reason_codes.TOPIC_ALIAS_INVALID)
        if topic:
            check_topic_name(topic)
            self._aliases[alias] = topic
            return topic, False
        if alias not in self._aliases:
            raise ProtocolError(f"Topic Alias {alias}, which stands for nothing")
        topic = self._aliases[alias]
        return topic, self._aliases_there.get(alias) != topic

    def _refuse_publish(self, qos: int, packet_id: int, reason_code: int, detail: str) -> None:
        self.refused += 1
        if qos and packet_id == 0:
            raise ProtocolError("PUBLISH with Packet Identifier 0")
        if self.version != V5:  # there is no word for it, and an acknowledgement would say that it was kept
            self._disconnect(reason_code, f"PUBLISH: {detail}")
        elif reason_code not in reason_codes.PUBACK_CODES:
            self._disconnect(reason_code, f"PUBLISH: {detail}")  # CONNACK had told it
        elif qos:
            self._answers += encode_acknowledgement(PUBACK if qos == 1 else PUBREC, packet_id, reason_code, V5)

    def _subscribe(self, data: bytes, start: int) -> _Verdict:
        head = _fixed_header(data, start)
        if head is None:
            return _Verdict(need=len(data) - start + 1)
        _, end = head
        if end - start > _HEAD_BYTES:
            raise PacketTooLarge(end - start, _HEAD_BYTES)
        if len(data) < end:
            return _Verdict(need=end - start)
        decoder = Decoder(self.version)
        decoder.feed(data[start:end])
        packet = decoder.next_packet()
        assert isinstance(packet, Subscribe)
        policy = self._permissions.policy
        allowed: list[SubscriptionRequest] = []
        codes: list[int | None] = []
        is_lowered = False
        for request in packet.requests:
            if not self._permissions.may_subscribe(request.topic_filter):
                codes.append(reason_codes.NOT_AUTHORIZED if self.version == V5 else _SUBACK_REFUSED)
                continue
            if request.qos > policy.max_qos:  # the broker grants no more than is asked for
                request.qos = policy.max_qos
                is_lowered = True
            allowed.append(request)
            codes.append(None)
        if len(allowed) == len(codes) and not is_lowered:
            return _PASS
        if not allowed:
            self.refused += 1
            self._answers += encode(
                SubAck(packet.packet_id, [code for code in codes if code is not None]), self.version
            )
            return _Verdict(instead=b"", consumed=end - start)
        if len(allowed) < len(codes):
            self.refused += 1
            if len(self._subacks) >= _OPEN_SUBSCRIBES:
                raise MqttError("too many SUBSCRIBE without an answer", reason_codes.QUOTA_EXCEEDED)
            self._subacks[packet.packet_id] = codes
        packet.requests = allowed
        return _Verdict(instead=encode(packet, self.version), consumed=end - start)

    # --- to the device --------------------------------------------------------------------------------------------

    def from_broker(self, data: bytes) -> bytes:
        """Take bytes of the broker; gives what is passed on to the device, the edge's own answers between packets."""
        if self.state is State.CLOSED:
            return b""
        try:
            if not (self._answers or self._wants_connack or self._subacks or self._collected is not None):
                self._down.advance(data)
                self._greeted = self._greeted or self._down.at_boundary
                return data
            return self._insert(data)
        except MqttError as error:
            self._close(f"the broker broke the protocol: {error.detail}")
            return b""

    @property
    def answer_bytes(self) -> int:
        """How much the edge has to say to the device, once that is possible."""
        return len(self._answers)

    def answer(self) -> bytes:
        """Give what the edge says to the device now: nothing in the middle of a packet, or before CONNACK."""
        if not (self._answers and self._greeted and self._down.at_boundary):
            return b""
        said, self._answers = self._answers, b""
        return said

    def _insert(self, data: bytes) -> bytes:
        passed: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if self._down.at_boundary:
                passed.append(self.answer())
                packet_type = data[at] >> 4
                if (packet_type == CONNACK and self._wants_connack) or (packet_type == SUBACK and self._subacks):
                    self._collected = bytearray()
            end = self._down.step(data, at)
            if self._collected is None:
                passed.append(data[at:end])
                # what comes before CONNACK in version 5 is AUTH
                self._greeted = self._greeted or (self._down.at_boundary and not self._wants_connack)
            else:
                self._collected += data[at:end]
                if len(self._collected) > _COLLECTED_BYTES:
                    raise MalformedPacket(f"a packet of more than {_COLLECTED_BYTES} bytes")
                if self._down.at_boundary:
                    passed.append(self._changed(bytes(self._collected)))
                    self._collected = None
            at = end
        passed.append(self.answer())
        return b"".join(passed)

    def _changed(self, data: bytes) -> bytes:
        """Give a packet of the broker's as the device has to see it. Raises MqttError."""
        decoder = Decoder(self.version)
        decoder.feed(data)
        packet = decoder.next_packet()
        if isinstance(packet, ConnAck):
            self._wants_connack = False
            self._greeted = True
            properties = packet.properties if packet.properties is not None else Properties()
            self._alias_maximum = properties.topic_alias_maximum or 0
            policy = self._permissions.policy
            if packet.reason_code or (policy.max_qos == 2 and policy.retain):
                return data
            if policy.max_qos < 2:
                said = properties.maximum_qos if properties.maximum_qos is not None else 2
                properties.maximum_qos = min(said, policy.max_qos)
            if not policy.retain:
                properties.retain_available = 0
            packet.properties = properties
            return encode(packet, self.version)
        if isinstance(packet, SubAck):
            codes = self._subacks.pop(packet.packet_id, None)
            if codes is None:
                return data
            granted = iter(packet.reason_codes)
            packet.reason_codes = [code if code is not None else next(granted, _SUBACK_REFUSED) for code in codes]
            return encode(packet, self.version)
        return data

    # --- the end --------------------------------------------------------------------------------------------------

    def _disconnect(self, reason_code: int, detail: str) -> None:
        """Close, with the word for it that version 5 has; before, closing is the only one."""
        if self.version == V5 and self._greeted:
            code = reason_code if reason_code in reason_codes.DISCONNECT_CODES else reason_codes.UNSPECIFIED_ERROR
            self._answers += encode(Disconnect(code), V5)
        self._close(detail)

    def _close(self, problem: str) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self.problem = problem
            self.deadline = None
            self._begin = b""
            self._held = bytearray()


def _fixed_header(data: bytes, start: int) -> tuple[int, int] | None:
    """Give where the packet at data[start] goes on behind its fixed header, and its end; None if that is not there."""
    remaining = shift = 0
    for at in range(start + 1, min(start + 5, len(data))):
        remaining |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            return at + 1, at + 1 + remaining
        shift += 7
    if shift == 28:
        raise MalformedPacket("the Remaining Length needs a fifth byte")
    return None


def _variable_end(data: bytes, at: int) -> int:
    """Give where a variable byte integer ends, or how far the data has to go to know that."""
    for end in range(at + 1, at + 5):
        if end > len(data) or data[end - 1] < 0x80:
            return end
    return at + 4
