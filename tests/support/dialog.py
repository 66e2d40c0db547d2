"""One MQTT client, one packet after the other, on a blocking socket."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Self, TypeVar

import scramp

from lockgate.access.scram import METHOD
from lockgate.mqtt import reason_codes
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V5,
    Auth,
    ConnAck,
    Connect,
    Packet,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from lockgate.mqtt.properties import Properties
from lockgate.transport.proxy_protocol import SIGNATURE_V2

P = TypeVar("P", bound=Packet)


class Dialog:
    """A connection with a Session that outlives it, unless `clean`."""

    def __init__(
        self,
        port: int,
        client_id: str,
        version: int = V5,
        *,
        clean: bool = False,
        expiry: int = 3600,
        username: str | None = None,
        password: bytes | None = None,
        answer: int = 0,
        opening: bytes = b"",
        keep_alive: int = 0,
        will: Will | None = None,
    ) -> None:
        """Connect; `answer` is the code that CONNACK is to have, `opening` what stands before CONNECT."""
        self.version = version
        self.open(port)
        self._socket.sendall(opening)
        properties = Properties(session_expiry_interval=expiry) if version == V5 and not clean else None
        self.send(Connect(client_id, version, clean, keep_alive, username, password, will, properties))
        self.connack = self.expect(ConnAck)
        assert self.connack.reason_code == answer, self.connack

    def open(self, port: int) -> None:
        """Open the socket."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._decoder = Decoder(self.version)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *packets: Packet) -> None:
        """Write packets in one piece."""
        self._socket.sendall(b"".join(encode(packet, self.version) for packet in packets))

    def receive(self, seconds: float = 10.0) -> Packet | None:
        """Give the next packet, None when the broker has closed; TimeoutError when nothing comes."""
        self._socket.settimeout(seconds)
        while (packet := self._decoder.next_packet()) is None:
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._decoder.feed(data)
        return packet

    def expect(self, kind: type[P], seconds: float = 10.0) -> P:
        """Give the next packet, which must be of this kind."""
        packet = self.receive(seconds)
        assert isinstance(packet, kind), packet
        return packet

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        self.send(Subscribe(1, [SubscriptionRequest(topic_filter, qos)]))
        assert self.expect(SubAck).reason_codes == [qos]

    def publish(self, topic: str, payload: bytes, packet_id: int = 1, retain: bool = False) -> int:
        """Publish at QoS 1 and give the Reason Code of the answer."""
        self.send(Publish(topic, payload, 1, retain, packet_id=packet_id))
        answer = self.expect(PubAck)
        assert answer.packet_id == packet_id
        return answer.reason_code

    def message(self, seconds: float = 10.0) -> Publish:
        """Give the next message and acknowledge it; answers to what was sent are passed over."""
        while not isinstance(packet := self.receive(seconds), Publish):
            assert isinstance(packet, PubAck | SubAck), packet
        if packet.qos:
            self.send(PubAck(packet.packet_id))
        return packet

    def messages(self, count: int, first: float = 3.0) -> list[Publish]:
        """Give so many messages, or as many as come until half a second is quiet, and acknowledge each.

        `first` is how many seconds the first may take.
        """
        found: list[Publish] = []
        with contextlib.suppress(TimeoutError):
            while len(found) < count:
                found.append(self.message(0.5 if found else first))
        return found


class ScramDialog(Dialog):
    """A client that proves with SCRAM who it is."""

    def __init__(self, port: int, client_id: str, username: str, password: str) -> None:
        self.version = V5
        self.open(port)
        client = scramp.ScramClient([METHOD], username, password)

        def said(data: str) -> Properties:
            return Properties(authentication_method=METHOD, authentication_data=data.encode())

        self.send(Connect(client_id, properties=said(client.get_client_first())))
        asked = self.expect(Auth).properties
        assert asked is not None
        assert asked.authentication_data is not None
        client.set_server_first(asked.authentication_data.decode())
        self.send(Auth(reason_codes.CONTINUE_AUTHENTICATION, said(client.get_client_final())))
        self.connack = self.expect(ConnAck)
        assert self.connack.reason_code == 0


def proxied(common_name: bytes | None) -> bytes:
    """A PROXY header, version 2, of a client whose certificate, if it has one, the proxy has verified."""
    body = bytes([127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 2])
    if common_name is not None:
        tls = struct.pack("!BIBH", 0x07, 0, 0x22, len(common_name)) + common_name
        body += struct.pack("!BH", 0x20, len(tls)) + tls
    return SIGNATURE_V2 + struct.pack("!BBH", 0x21, 0x11, len(body)) + body
