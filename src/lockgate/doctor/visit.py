"""A client that tries one listener, stage by stage, and takes the time of each."""

from __future__ import annotations

import base64
import contextlib
import http
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from lockgate.client.errors import ConnectionRefused
from lockgate.mqtt import reason_codes
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
)
from lockgate.transport.endpoint import Endpoint
from lockgate.transport.layer import TransportError
from lockgate.transport.stack import ClientLayer, Stack

if TYPE_CHECKING:
    import ssl

VERSIONS: Final = {V3_1_1: "3.1.1", V5: "5"}
_MOST_PACKET_BYTES: Final = 1024 * 1024
_PAYLOAD: Final = b"lockgate verify"
_LOGIN: Final = "--username U --password-file FILE, of a user that the broker knows; or allow_anonymous"
_ADVICE_V3: Final = {
    reason_codes.UNACCEPTABLE_PROTOCOL_VERSION_V3: "accept_protocol_versions of the listener",
    reason_codes.IDENTIFIER_REJECTED_V3: "--client-id ID, of a form that the broker takes (clientid_prefixes)",
    reason_codes.SERVER_UNAVAILABLE_V3: "the broker is full or stops, or the rules deny it: its log says which",
    reason_codes.BAD_USER_NAME_OR_PASSWORD_V3: _LOGIN,
    reason_codes.NOT_AUTHORIZED_V3: _LOGIN,
}
_NOT_HEARD: Final = "look at the broker's log, which says why it closes connections"
_RULES: Final = "let this user write and read {}/# (acl_file, dynamic security), or name another place: --topic"

Wanted = TypeVar("Wanted", bound=Packet)


@dataclass(frozen=True)
class Door:
    """A listener, as a client reaches it."""

    name: str
    endpoint: Endpoint
    context: ssl.SSLContext | None = None
    tls_name: str = ""  # that the certificate has to be for; empty: the host
    proxy: int = 0  # version of the PROXY header that a proxy in front would send
    proxy_tls: bool = False  # and says that the client spoke TLS
    http: bool = False  # the HTTP API in place of MQTT
    most_qos: int = 2
    versions: tuple[int, ...] = (V3_1_1, V5)
    note: str = ""  # what is not tried
    tls_advice: str = "--cafile FILE with who issued the certificate, and a host name that it is for"


@dataclass(frozen=True)
class Login:
    """Who we say we are; the client id is made up where none is given."""

    username: str | None = None
    password: bytes | None = None
    client_id: str = ""
    topic: str = "lockgate/verify"


@dataclass
class Visited:
    """How it went: each stage that was passed with its seconds, then where it failed and why."""

    door: Door
    version: str
    stages: list[tuple[str, float]] = field(default_factory=list)
    failed_at: str = ""
    cause: str = ""
    advice: str = ""

    @property
    def passed(self) -> bool:
        return not self.failed_at


class _Failed(Exception):
    def __init__(self, cause: str, advice: str) -> None:
        super().__init__(cause)
        self.advice = advice


class Visit:
    """One connection. `go` never raises: what goes wrong is what it is there to find."""

    def __init__(self, door: Door, version: int, login: Login, timeout_seconds: float) -> None:
        name = "HTTP" if door.http else VERSIONS[version]
        self.visited = Visited(door, name)
        self._door = door
        self._version = version
        self._login = login
        self._timeout = timeout_seconds
        self._random = os.urandom(6).hex()
        self._topic = f"{login.topic}/{self._random}"
        self._sock: socket.socket | None = None
        self._layers: list[tuple[str, ClientLayer]] = []
        self._stack: Stack | None = None
        self._decoder = Decoder(version, _MOST_PACKET_BYTES)
        self._heard: list[Packet] = []
        self._deadline = 0.0
        self._packet_id = 0
        self._qos = min(1, door.most_qos)
        self._retains = True
        self._retained = False  # something of ours may be there

    def go(self) -> Visited:
        """Try everything, and leave nothing behind."""
        try:
            self._reach()
            if self._door.http:
                self._ask_http()
            else:
                self._talk()
        except _Failed as failed:
            self.visited.cause, self.visited.advice = str(failed), failed.advice
        finally:
            self._leave()
        return self.visited

    @contextlib.contextmanager
    def _stage(self, name: str, advice: str = _NOT_HEARD) -> Iterator[None]:
        begun = time.perf_counter()
        self._deadline = time.monotonic() + self._timeout
        self.visited.failed_at = name
        try:
            yield
        except TimeoutError:
            raise _Failed(f"no answer within {self._timeout:g} s", advice) from None
        except ConnectionRefusedError:
            raise _Failed("nobody listens there", "start the broker; `lockgate doctor` looks at the port") from None
        except TransportError as error:  # of TLS 1.3 the client hears only later that its certificate is refused
            raise _Failed(str(error), self._door.tls_advice if str(error).startswith("TLS") else advice) from None
        except MqttError as error:
            raise _Failed(f"the server broke the protocol: {error}", advice) from None
        except OSError as error:
            raise _Failed(error.strerror or str(error), advice) from None
        self.visited.stages.append((name, time.perf_counter() - begun))
        self.visited.failed_at = ""

    # --- below MQTT ------------------------------------------------------------------------------------------------

    def _reach(self) -> None:
        door, endpoint = self._door, self._door.endpoint
        if endpoint.unix is None:
            with self._stage("resolve", "a name that DNS or /etc/hosts knows, or an address"):
                socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        with self._stage("connect", "is the port open for this machine: firewall, `ports:`, the listener's address?"):
            self._sock = endpoint.connect(self._timeout)
            if door.proxy:
                self._sock.sendall(proxy_header(self._sock, door.proxy, door.proxy_tls))
        if door.context is not None:
            from lockgate.transport.tls_client import TlsLayer

            self._layers.append(("TLS", TlsLayer(door.context, door.tls_name or endpoint.host)))
        if endpoint.websocket_path is not None:
            host = door.tls_name or endpoint.host
            from lockgate.transport.websocket_client import WebSocketLayer

            self._layers.append(("WebSocket", WebSocketLayer(host, endpoint.port, endpoint.websocket_path)))
        if not self._layers:
            return
        self._stack = Stack([layer for _, layer in self._layers])
        self._send(b"")
        for name, layer in self._layers:
            advice = door.tls_advice if name == "TLS" else "`protocol websockets` at the listener, and its path"
            with self._stage(name, advice):
                while not layer.is_open:
                    self._receive()

    def _send(self, data: bytes) -> None:
        assert self._sock is not None
        self._sock.sendall(self._stack.send(data) if self._stack is not None else data)

    def _receive(self) -> bytes:
        """Give what came for MQTT, which may be nothing; raises ConnectionError when the server has closed."""
        assert self._sock is not None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        data = self._sock.recv(65_536)
        if not data:
            raise ConnectionError("the server closed the connection")
        if self._stack is None:
            return data
        try:
            data = self._stack.receive(data)
        finally:
            with contextlib.suppress(OSError):
                self._sock.sendall(self._stack.send())  # an alert too
        if not data and self._stack.ended:
            raise ConnectionError("the server closed the connection")
        return data

    # --- MQTT ------------------------------------------------------------------------------------------------------

    def _talk(self) -> None:
        with self._stage("CONNACK"):
            self._connect()
        with self._stage("SUBACK"):
            self._subscribe(self._topic)
        self._publish("PUBACK", self._topic, _PAYLOAD)
        advice = _RULES.format(self._login.topic)
        with self._stage("delivery", f"{advice}; an ACL that forbids one of them is not told before MQTT 5"):
            self._expect_message(self._topic, retained=False)
        if self._retains:
            self._retain(f"{self._topic}/retained", advice)

    def _retain(self, topic: str, advice: str) -> None:
        self._retained = True
        self._publish("retained PUBACK", topic, _PAYLOAD, retain=True)
        with self._stage("retained delivery", f"retain_available, retained_messages; {advice}"):
            self._subscribe(topic)
            self._expect_message(topic, retained=True)
        self._publish("clearing PUBACK", topic, b"", retain=True)
        with self._stage("cleared", f"mosquitto_pub -r -n -t {topic} clears it"):
            self._expect_message(topic, retained=False, payload=b"")  # we are subscribed: the clearing comes, too
            self._subscribe(topic)
            self._send_publish(topic, _PAYLOAD)
            self._expect_message(topic, retained=False)
            self._retained = False

    def _connect(self) -> None:
        login = self._login
        client_id = login.client_id or f"lockgate-verify-{self._random}"
        self._send(
            encode(
                Connect(client_id, self._version, keep_alive=60, username=login.username, password=login.password),
                self._version,
            )
        )
        connack = self._expect(ConnAck)
        if connack.reason_code:
            told = connack.properties.reason_string if connack.properties is not None else None
            refusal = ConnectionRefused(connack.reason_code, self._version, told)
            code = connack.reason_code
            if self._version == V5:
                code = reason_codes.CONNACK_V3.get(code, reason_codes.SERVER_UNAVAILABLE_V3)
            raise _Failed(str(refusal), _ADVICE_V3.get(code, _NOT_HEARD))
        if connack.properties is not None:
            if connack.properties.maximum_qos is not None:
                self._qos = min(self._qos, connack.properties.maximum_qos)
            self._retains = connack.properties.retain_available != 0

    def _subscribe(self, topic_filter: str) -> None:
        self._packet_id += 1
        packet = Subscribe(self._packet_id, [SubscriptionRequest(topic_filter, self._qos)])
        self._send(encode(packet, self._version))
        answer = self._expect(SubAck)
        code = answer.reason_codes[0]
        if code >= reason_codes.UNSPECIFIED_ERROR:
            told = reason_codes.describe(code) if self._version == V5 else "0x80 failure"
            raise _Failed(f"the server refused to subscribe: {told}", _RULES.format(self._login.topic))

    def _publish(self, stage: str, topic: str, payload: bytes, retain: bool = False) -> None:
        if not self._qos:
            self._send_publish(topic, payload, retain)
            return
        with self._stage(stage):
            self._send_publish(topic, payload, retain)
            answer = self._expect(PubAck)
            if answer.reason_code >= reason_codes.UNSPECIFIED_ERROR:
                told = reason_codes.describe(answer.reason_code)
                raise _Failed(f"the server refused the message: {told}", _RULES.format(self._login.topic))

    def _send_publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self._packet_id += 1
        packet_id = self._packet_id if self._qos else 0
        packet = Publish(topic, payload, qos=self._qos, retain=retain, packet_id=packet_id)
        self._send(encode(packet, self._version))

    def _expect_message(self, topic: str, *, retained: bool, payload: bytes = _PAYLOAD) -> None:
        message = self._expect(Publish, lambda one: one.topic == topic)
        if message.qos:
            self._send(encode(PubAck(message.packet_id), self._version))
        if message.retain != retained:
            is_not = "comes as one that was not" if retained else "is still"
            raise _Failed(f"the message on {topic} {is_not} retained", _NOT_HEARD)
        if message.payload != payload:
            raise _Failed(f"another message came on {topic} than was published", "is something else publishing there?")

    def _expect(self, kind: type[Wanted], fits: Callable[[Wanted], bool] = lambda _: True) -> Wanted:
        """Give the next packet of a kind; others wait. A DISCONNECT ends it."""
        while True:
            for place, packet in enumerate(self._heard):
                if isinstance(packet, kind) and fits(packet):
                    del self._heard[place]
                    return packet
                if isinstance(packet, Disconnect):
                    code = reason_codes.describe(packet.reason_code)
                    raise _Failed(f"the server disconnected: {code}", _NOT_HEARD)
            self._decoder.feed(self._receive())
            while (heard := self._decoder.next_packet()) is not None:
                self._heard.append(heard)

    # --- HTTP, and the end -------------------------------------------------------------------------------------------

    def _ask_http(self) -> None:
        login = self._login
        header = ""
        if login.username is not None:
            pair = base64.b64encode(login.username.encode() + b":" + (login.password or b"")).decode()
            header = f"Authorization: Basic {pair}\r\n"
        with self._stage("HTTP", "`protocol http_api` at the listener"):
            host = self._door.endpoint.host
            self._send(f"GET /api/v1/version HTTP/1.1\r\nHost: {host}\r\n{header}Connection: close\r\n\r\n".encode())
            answer = b""
            while b"\r\n" not in answer:
                answer += self._receive()
            status = answer.split(b"\r\n", 1)[0].decode("latin-1")
            words = status.split(" ", 2)
            if not status.startswith("HTTP/1.") or words[1:2] != [str(http.HTTPStatus.OK.value)]:
                advice = _LOGIN if words[1:2] == ["401"] else "`protocol http_api` at the listener"
                raise _Failed(f"it answers {status[:100]!r}", advice)

    def _leave(self) -> None:
        if self._sock is None:
            return
        with contextlib.suppress(OSError, TransportError, ValueError):
            self._sock.settimeout(self._timeout)
            if not self._door.http and (self._stack is None or self._stack.is_open):
                if self._retained:
                    self._qos = 0
                    self._send_publish(f"{self._topic}/retained", b"", retain=True)
                self._send(encode(Disconnect(), self._version))
            if self._stack is not None:
                self._sock.sendall(self._stack.finish())
            self._sock.shutdown(socket.SHUT_WR)
            while self._sock.recv(65_536):  # closed at once, what is unread would reset what we have just said
                pass
        self._sock.close()


def proxy_header(sock: socket.socket, version: int, tls: bool) -> bytes:
    """Give what a proxy on this machine would say of the connection (HAProxy's proxy-protocol.txt §2.1, §2.2)."""
    if sock.family == socket.AF_UNIX:
        source, target = ("127.0.0.1", 1), ("127.0.0.1", 1)
    else:
        source, target = sock.getsockname()[:2], sock.getpeername()[:2]
    family = 6 if ":" in source[0] else 4
    if version == 1:
        return f"PROXY TCP{family} {source[0]} {target[0]} {source[1]} {target[1]}\r\n".encode()
    body = b"".join(ipaddress.ip_address(one[0]).packed for one in (source, target))
    body += b"".join(one[1].to_bytes(2, "big") for one in (source, target))
    if tls:
        spoken = b"\x21\x00\x07TLSv1.3"
        value = b"\x01\x00\x00\x00\x00" + spoken  # the client spoke TLS and showed no certificate
        body += b"\x20" + len(value).to_bytes(2, "big") + value
    head = b"\r\n\r\n\x00\r\nQUIT\n\x21" + (b"\x11" if family == 4 else b"\x21")
    return head + len(body).to_bytes(2, "big") + body
