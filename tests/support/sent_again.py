"""What a Server sends a second time as a new message."""

from __future__ import annotations

from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.packets import Publish, PubRel


class SentAgain:
    """Notes the QoS 2 messages that a Server sends again after their PUBREL, which makes new messages of them (§4.3.3).

    Mosquitto 2.0.11 does that when a connection ends before the PUBREL that it had to send again has left.
    """

    def __init__(self, version: int) -> None:
        self._version = version
        self.payloads: set[bytes] = set()
        self._released: dict[int, bytes] = {}
        self._sent: dict[int, bytes] = {}
        self._decoders: dict[int, Decoder] = {}

    def hear(self, connection: int, data: bytes) -> None:
        decoder = self._decoders.setdefault(connection, Decoder(self._version))
        decoder.feed(data)
        while (packet := decoder.next_packet()) is not None:
            if isinstance(packet, PubRel):
                self._released[packet.packet_id] = self._sent.get(packet.packet_id, b"")
            elif isinstance(packet, Publish) and packet.packet_id:
                self._sent[packet.packet_id] = packet.payload
                if packet.dup and self._released.get(packet.packet_id) == packet.payload:
                    self.payloads.add(packet.payload)
