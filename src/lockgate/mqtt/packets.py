"""The fifteen MQTT Control Packets (MQTT 5 §3, 3.1.1 §3) as plain objects, in the specification's words.

`properties` is None where a packet carries none, which is always so before version 5.
"""

from __future__ import annotations

from typing import Final

from lockgate.mqtt.properties import Properties

# Protocol versions: the protocol level of CONNECT
V3_1: Final = 3
V3_1_1: Final = 4
V5: Final = 5

PROTOCOL_NAMES: Final[dict[int, str]] = {V3_1: "MQIsdp", V3_1_1: "MQTT", V5: "MQTT"}

# Control Packet types (§2.1.2)
CONNECT: Final = 1
CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
PUBREC: Final = 5
PUBREL: Final = 6
PUBCOMP: Final = 7
SUBSCRIBE: Final = 8
SUBACK: Final = 9
UNSUBSCRIBE: Final = 10
UNSUBACK: Final = 11
PINGREQ: Final = 12
PINGRESP: Final = 13
DISCONNECT: Final = 14
AUTH: Final = 15

TYPE_NAMES: Final = (
    "reserved",
    "CONNECT",
    "CONNACK",
    "PUBLISH",
    "PUBACK",
    "PUBREC",
    "PUBREL",
    "PUBCOMP",
    "SUBSCRIBE",
    "SUBACK",
    "UNSUBSCRIBE",
    "UNSUBACK",
    "PINGREQ",
    "PINGRESP",
    "DISCONNECT",
    "AUTH",
)


class Packet:
    """What all packets share: a type, equality by value, and a readable form that never shows payloads or passwords."""

    __slots__ = ("type",)

    def __init__(self, packet_type: int) -> None:
        self.type = packet_type

    def fields(self) -> tuple[object, ...]:
        """Everything that tells two packets of this type apart."""
        return ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packet) and self.type == other.type and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash(self.type)

    def __repr__(self) -> str:
        return f"{TYPE_NAMES[self.type]}{self.fields()!r}"


class Will:
    """The Will Message of a CONNECT (§3.1.3.2 to §3.1.3.4)."""

    __slots__ = ("payload", "properties", "qos", "retain", "topic")

    def __init__(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, properties: Properties | None = None
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Will)
            and self.topic == other.topic
            and self.payload == other.payload
            and self.qos == other.qos
            and self.retain == other.retain
            and self.properties == other.properties
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Will({self.topic!r}, {len(self.payload)} bytes, qos={self.qos}, retain={self.retain})"


class Connect(Packet):
    """CONNECT (§3.1). `clean_start` is Clean Session before version 5; `bridge` is bit 0x80 of the protocol level."""

    __slots__ = (
        "bridge",
        "clean_start",
        "client_id",
        "keep_alive",
        "password",
        "properties",
        "username",
        "version",
        "will",
    )

    def __init__(
        self,
        client_id: str,
        version: int = V5,
        clean_start: bool = True,
        keep_alive: int = 60,
        username: str | None = None,
        password: bytes | None = None,
        will: Will | None = None,
        properties: Properties | None = None,
        bridge: bool = False,
    ) -> None:
        super().__init__(CONNECT)
        self.client_id = client_id
        self.version = version
        self.clean_start = clean_start
        self.keep_alive = keep_alive
        self.username = username
        self.password = password
        self.will = will
        self.properties = properties
        self.bridge = bridge

    def fields(self) -> tuple[object, ...]:
        return (
            self.client_id,
            self.version,
            self.clean_start,
            self.keep_alive,
            self.username,
            self.password,
            self.will,
            self.properties,
            self.bridge,
        )

    def __repr__(self) -> str:
        return f"CONNECT({self.client_id!r}, version={self.version}, clean_start={self.clean_start})"


class ConnAck(Packet):
    """CONNACK (§3.2). `reason_code` is the return code 0 to 5 before version 5."""

    __slots__ = ("properties", "reason_code", "session_present")

    def __init__(
        self, reason_code: int = 0, session_present: bool = False, properties: Properties | None = None
    ) -> None:
        super().__init__(CONNACK)
        self.reason_code = reason_code
        self.session_present = session_present
        self.properties = properties

    def fields(self) -> tuple[object, ...]:
        return (self.reason_code, self.session_present, self.properties)


class Publish(Packet):
    """PUBLISH (§3.3). `packet_id` is 0 at QoS 0. `frame` is the packet as it arrived, empty when it was made here."""

    __slots__ = ("dup", "frame", "packet_id", "payload", "properties", "qos", "retain", "topic")

    def __init__(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int = 0,
        properties: Properties | None = None,
        frame: bytes = b"",
    ) -> None:
        self.type = PUBLISH
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.packet_id = packet_id
        self.properties = properties
        self.frame = frame

    def fields(self) -> tuple[object, ...]:
        return (self.topic, self.payload, self.qos, self.retain, self.dup, self.packet_id, self.properties)

    def __repr__(self) -> str:
        return (
            f"PUBLISH({self.topic!r}, {len(self.payload)} bytes, qos={self.qos}, retain={self.retain}, "
            f"dup={self.dup}, packet_id={self.packet_id})"
        )


class Acknowledgement(Packet):
    """What PUBACK, PUBREC, PUBREL and PUBCOMP share: a Packet Identifier and, in version 5, a Reason Code."""

    __slots__ = ("packet_id", "properties", "reason_code")

    def __init__(
        self, packet_type: int, packet_id: int, reason_code: int = 0, properties: Properties | None = None
    ) -> None:
        self.type = packet_type
        self.packet_id = packet_id
        self.reason_code = reason_code
        self.properties = properties

    def fields(self) -> tuple[object, ...]:
        return (self.packet_id, self.reason_code, self.properties)


class PubAck(Acknowledgement):
    """PUBACK (§3.4): the answer to a QoS 1 PUBLISH."""

    __slots__ = ()

    def __init__(self, packet_id: int, reason_code: int = 0, properties: Properties | None = None) -> None:
        super().__init__(PUBACK, packet_id, reason_code, properties)


class PubRec(Acknowledgement):
    """PUBREC (§3.5): QoS 2, part 1."""

    __slots__ = ()

    def __init__(self, packet_id: int, reason_code: int = 0, properties: Properties | None = None) -> None:
        super().__init__(PUBREC, packet_id, reason_code, properties)


class PubRel(Acknowledgement):
    """PUBREL (§3.6): QoS 2, part 2."""

    __slots__ = ()

    def __init__(self, packet_id: int, reason_code: int = 0, properties: Properties | None = None) -> None:
        super().__init__(PUBREL, packet_id, reason_code, properties)


class PubComp(Acknowledgement):
    """PUBCOMP (§3.7): QoS 2, part 3."""

    __slots__ = ()

    def __init__(self, packet_id: int, reason_code: int = 0, properties: Properties | None = None) -> None:
        super().__init__(PUBCOMP, packet_id, reason_code, properties)


class SubscriptionRequest:
    """One Topic Filter of a SUBSCRIBE with its Subscription Options (§3.8.3.1)."""

    __slots__ = ("no_local", "qos", "retain_as_published", "retain_handling", "topic_filter")

    def __init__(
        self,
        topic_filter: str,
        qos: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
    ) -> None:
        self.topic_filter = topic_filter
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.retain_handling = retain_handling

    def fields(self) -> tuple[object, ...]:
        return (self.topic_filter, self.qos, self.no_local, self.retain_as_published, self.retain_handling)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SubscriptionRequest) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash(self.fields())

    def __repr__(self) -> str:
        return f"SubscriptionRequest{self.fields()!r}"


class Subscribe(Packet):
    """SUBSCRIBE (§3.8)."""

    __slots__ = ("packet_id", "properties", "requests")

    def __init__(
        self, packet_id: int, requests: list[SubscriptionRequest], properties: Properties | None = None
    ) -> None:
        super().__init__(SUBSCRIBE)
        self.packet_id = packet_id
        self.requests = requests
        self.properties = properties

    def fields(self) -> tuple[object, ...]:
        return (self.packet_id, self.requests, self.properties)


class SubAck(Packet):
    """SUBACK (§3.9): one code for each Topic Filter, in order; 0x80 is the only refusal before version 5."""

    __slots__ = ("packet_id", "properties", "reason_codes")

    def __init__(self, packet_id: int, reason_codes: list[int], properties: Properties | None = None) -> None:
        super().__init__(SUBACK)
        self.packet_id = packet_id
        self.reason_codes = reason_codes
        self.properties = properties

    def fields(self) -> tuple[object, ...]:
        return (self.packet_id, self.reason_codes, self.properties)


class Unsubscribe(Packet):
    """UNSUBSCRIBE (§3.10)."""

    __slots__ = ("packet_id", "properties", "topic_filters")

    def __init__(self, packet_id: int, topic_filters: list[str], properties: Properties | None = None) -> None:
        super().__init__(UNSUBSCRIBE)
        self.packet_id = packet_id
        self.topic_filters = topic_filters
        self.properties = properties

    def fields(self) -> tuple[object, ...]:
        return (self.packet_id, self.topic_filters, self.properties)


class UnsubAck(Packet):
    """UNSUBACK (§3.11): one code for each Topic Filter in version 5, none before."""

    __slots__ = ("packet_id", "properties", "reason_codes")

    def __init__(self, packet_id: int, reason_codes: list[int], properties: Properties | None = None) -> None:
        super().__init__(UNSUBACK)
        self.packet_id = packet_id
        self.reason_codes = reason_codes
        self.properties = properties

    def fields(self) -> tuple[object, ...]:
        return (self.packet_id, self.reason_codes, self.properties)


class PingReq(Packet):
    """PINGREQ (§3.12)."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(PINGREQ)


class PingResp(Packet):
    """PINGRESP (§3.13)."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(PINGRESP)


class Disconnect(Packet):
    """DISCONNECT (§3.14)."""

    __slots__ = ("properties", "reason_code")

    def __init__(self, reason_code: int = 0, properties: Properties | None = None) -> None:
        super().__init__(DISCONNECT)
        self.reason_code = reason_code
        self.properties = properties

    def fields(self) -> tuple[object, ...]:
        return (self.reason_code, self.properties)


class Auth(Packet):
    """AUTH (§3.15), version 5 only."""

    __slots__ = ("properties", "reason_code")

    def __init__(self, reason_code: int = 0, properties: Properties | None = None) -> None:
        super().__init__(AUTH)
        self.reason_code = reason_code
        self.properties = properties

    def fields(self) -> tuple[object, ...]:
        return (self.reason_code, self.properties)
