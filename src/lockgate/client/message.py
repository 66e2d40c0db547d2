"""An Application Message as it was received."""

from __future__ import annotations

from typing import final

from lockgate.mqtt.properties import Properties


@final
class Message:
    """One PUBLISH from the Server.

    `packet_id` is 0 at QoS 0. `duplicate` is the DUP flag: the Server has sent this one before, perhaps to an earlier
    run of this program. `session` counts the Sessions of this client: a Packet Identifier means nothing in another one.
    """

    __slots__ = (
        "acknowledged",
        "connection",
        "duplicate",
        "packet_id",
        "payload",
        "properties",
        "qos",
        "reason_code",
        "retain",
        "session",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        duplicate: bool = False,
        packet_id: int = 0,
        properties: Properties | None = None,
        connection: int = 0,
        session: int = 0,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.duplicate = duplicate
        self.packet_id = packet_id
        self.properties = properties
        self.connection = connection  # the Network Connection it arrived on last, counted from 1
        self.session = session
        self.acknowledged = False
        self.reason_code = 0  # of the acknowledgement

    def __repr__(self) -> str:
        return (
            f"Message({self.topic!r}, {len(self.payload)} bytes, qos={self.qos}, retain={self.retain}, "
            f"duplicate={self.duplicate}, packet_id={self.packet_id})"
        )
