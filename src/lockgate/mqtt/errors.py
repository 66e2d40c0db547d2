"""What a peer can do wrong, each with the Reason Code that MQTT 5 lets us tell it."""

from __future__ import annotations

from lockgate.mqtt import reason_codes


class MqttError(Exception):
    """The peer broke the protocol; `reason_code` is what version 5 answers (§4.13)."""

    def __init__(self, detail: str, reason_code: int = reason_codes.UNSPECIFIED_ERROR) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason_code = reason_code


class MalformedPacket(MqttError):
    """Bytes that cannot be read as the packet they claim to be (0x81)."""

    def __init__(self, detail: str, reason_code: int = reason_codes.MALFORMED_PACKET) -> None:
        super().__init__(detail, reason_code)


class ProtocolError(MqttError):
    """A packet that can be read but is not allowed here (0x82)."""

    def __init__(self, detail: str, reason_code: int = reason_codes.PROTOCOL_ERROR) -> None:
        super().__init__(detail, reason_code)


class PacketTooLarge(MqttError):
    """A packet beyond the Maximum Packet Size that was announced (0x95)."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"packet of {size} bytes, at most {limit} are accepted", reason_codes.PACKET_TOO_LARGE)


class UnsupportedVersion(MqttError):
    """A CONNECT for a protocol or a level that we do not speak (0x84).

    `known_protocol` says whether the Protocol Name was one of MQTT's, so that an answer can be understood at all.
    """

    def __init__(self, protocol_name: str, protocol_level: int, known_protocol: bool) -> None:
        super().__init__(
            f"protocol {protocol_name!r} level {protocol_level} is not MQTT 3.1, 3.1.1 or 5.0",
            reason_codes.UNSUPPORTED_PROTOCOL_VERSION,
        )
        self.protocol_name = protocol_name
        self.protocol_level = protocol_level
        self.known_protocol = known_protocol
