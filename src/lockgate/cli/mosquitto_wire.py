"""What mosquitto_pub, _sub and _rr do on the wire: one thread and no event loop, so that they start fast.

The texts of `Failure` and of the lines of `-d` are those of Mosquitto's programs, whose output people parse.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Final, NoReturn

from lockgate.mqtt import reason_codes
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import (
    PUBACK,
    PUBREC,
    V3_1,
    V3_1_1,
    V5,
    Acknowledgement,
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
)
from lockgate.transport.endpoint import Endpoint
from lockgate.transport.layer import TransportError

if TYPE_CHECKING:
    import ssl

    from lockgate.mqtt.properties import Properties
    from lockgate.transport.stack import Stack

PROTOCOL: Final = 2
NOT_CONNECTED: Final = 4
REFUSED: Final = 5
LOST: Final = 7
TLS: Final = 8
SYSTEM: Final = 14
TIMED_OUT: Final = 27
INTERRUPTED: Final = 255  # before there was a connection

_TEXTS: Final = {
    PROTOCOL: "A network protocol error occurred when communicating with the broker.",
    NOT_CONNECTED: "The client is not currently connected.",
    REFUSED: "The connection was refused.",
    LOST: "The connection was lost.",
    TLS: "A TLS error occurred.",
}
_REFUSALS_V3: Final = {
    1: "unacceptable protocol version",
    2: "identifier rejected",
    3: "broker unavailable",
    4: "bad user name or password",
    5: "not authorised",
}
_IN_FLIGHT: Final = 20  # QoS 1 and 2 messages sent and not acknowledged, unless the server allows less
_RECONNECT_SECONDS: Final = 1.0
_GOODBYE_SECONDS: Final = 1.0
_READ_BYTES: Final = 65_536


class Failure(Exception):
    """The program ends with `status`; the text is for standard error."""

    def __init__(self, status: int, text: str | None = None) -> None:
        super().__init__(_TEXTS.get(status, "") if text is None else text)
        self.status = status

    @property
    def line(self) -> str:
        """What is said of it."""
        return str(self) if str(self).startswith("Unable") else f"Error: {self}"


class Stopped(Exception):
    """A signal or the time of `-W` ends the program."""

    def __init__(self, timed_out: bool = False) -> None:
        super().__init__()
        self.timed_out = timed_out


def reason_text(code: int, version: int = V5) -> str:
    """Give a Reason Code, or a return code of CONNACK before version 5, as Mosquitto's programs say it."""
    if version != V5:
        return f"Connection Refused: {_REFUSALS_V3.get(code, 'unknown reason')}."
    if code == reason_codes.BAD_USER_NAME_OR_PASSWORD:
        return "Bad username or password"
    name = reason_codes.NAMES.get(code, "Unknown reason")
    return name[0].upper() + name[1:]


def end_quietly_on_a_closed_pipe() -> None:
    """`mosquitto_sub … | head` ends like any program of the shell."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def put(text: bytes) -> bool:
    """Write to standard output at once; say whether that went well, which is complained about once."""
    try:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        complain(f"Error: Unable to write: {error.strerror}")
        return False
    return True


def stop_on_signals() -> None:
    """Have SIGINT and SIGTERM raise Stopped."""

    def stop(_number: int, _frame: object) -> NoReturn:
        raise Stopped

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def listen(program: Wire, timeout: float, *, quiet: bool, unconnected: int = 0) -> int:
    """Run a program that waits for messages, until `timeout` seconds are over if that is not 0; give its exit status.

    `unconnected`, if not 0, is that of one that is stopped before the server has answered it.
    """
    try:
        stop_on_signals()
        program.open()
        if timeout:
            program.deadline = time.monotonic() + timeout
        program.run()
    except Stopped as stopped:
        if unconnected and program.connack is None:
            return unconnected
        program.leave()
        if not stopped.timed_out:
            return 0
        if not quiet:
            complain("Timed out")
        return TIMED_OUT
    except Failure as failure:
        if program.status or failure.status == NOT_CONNECTED:  # refused, or the server said goodbye
            return program.status
        if not quiet:
            complain(failure.line)
        return failure.status
    return program.status


class Wire:
    """One client. A program overloads what it wants to hear of: `connected`, `subscribed`, `published`, `received`.

    With `reconnect` a lost connection is made again, every second, and what was not acknowledged is sent anew.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        connect: Connect,
        *,
        debug: bool = False,
        quiet: bool = False,
        reconnect: bool = False,
        in_flight: int = _IN_FLIGHT,
        disconnect_properties: Properties | None = None,
    ) -> None:
        self.version = connect.version
        self.deadline: float | None = None  # of CLOCK_MONOTONIC; then Stopped is raised
        self.alarm: float | None = None  # then `alarmed` is called, once
        self.connack: ConnAck | None = None
        self.status = 0  # of a refusing CONNACK
        self._quiet = quiet
        self._debug = debug
        self._endpoint = endpoint
        self._connect = connect
        self._reconnect = reconnect
        self._in_flight_limit = self._quota = in_flight
        self._disconnect_properties = disconnect_properties
        self._context: ssl.SSLContext | None = None
        self._client_id = connect.client_id
        self._socket: socket.socket | None = None
        self._stack: Stack | None = None
        self._decoder = Decoder(self.version)
        self._poll = select.poll()
        self._inputs: set[int] = set()  # further file descriptors, see `watch`
        self._out = bytearray()
        self._leaving = False
        self._packet_id = 0
        self._waiting: collections.deque[Publish] = collections.deque()
        self._sent: dict[int, Publish] = {}  # QoS 1 and 2, not acknowledged
        self._released: set[int] = set()  # of those: PUBREL is sent
        self._held: dict[int, Publish] = {}  # QoS 2 from the server, until PUBREL
        self._aliases: dict[int, str] = {}
        self._last_out = self._last_in = 0.0
        self._pinged = False

    # --- what a program overloads ------------------------------------------------------------------------------------

    def connected(self) -> None:
        """The server accepted, for the first time or again."""

    def subscribed(self, packet: SubAck) -> None:
        """The answer to `subscribe`."""

    def published(self, packet_id: int, reason_code: int) -> None:
        """A message is out of our hands: written at QoS 0, else acknowledged or refused."""

    def received(self, message: Publish) -> None:
        """A message; at QoS 2 when it is complete."""

    def readable(self, descriptor: int) -> None:
        """Something to read, see `watch`."""

    def alarmed(self) -> None:
        """`alarm` has come."""

    # --- what a program calls ----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect and say CONNECT. Raises Failure."""
        if self._endpoint.tls is not None and self._context is None:
            from lockgate.transport.tls_client import TlsSetupError

            try:
                self._context = self._endpoint.context()
            except TlsSetupError as error:
                place = f"{os.fspath(error.path)}: " if error.path is not None else ""
                raise Failure(1, f"Problem setting TLS options: {place}{error}.") from None
        try:
            self._socket = self._endpoint.connect(None)
        except socket.gaierror:
            raise Failure(1, "Unable to connect (Lookup error.).") from None
        except OSError as error:
            raise Failure(1, error.strerror or str(error)) from None
        except (UnicodeError, OverflowError):
            raise Failure(1, "Unable to connect (Lookup error.).") from None
        self._socket.setblocking(False)
        self._stack = self._endpoint.stack(self._context)
        self._decoder = Decoder(self.version)
        self._poll.register(self._socket, select.POLLIN)
        self._last_out = self._last_in = time.monotonic()
        self._pinged = False
        self._tell("sending CONNECT")
        self._send(self._connect)
        self._flush()

    def run(self) -> None:
        """Serve until `disconnect`. Raises Failure, and Stopped at the deadline."""
        while not (self._leaving and not self._out):
            try:
                if self._socket is None:
                    self._again()
                else:
                    self._turn()
            except Failure as failure:
                self._drop()
                if self._leaving:
                    return
                if not self._reconnect or failure.status not in (LOST, SYSTEM, 1):
                    raise
        self._part()

    def leave(self) -> None:
        """Say what is left and DISCONNECT, as far as the server still listens."""
        with contextlib.suppress(Failure, Stopped):
            if self.connack is not None:
                self.disconnect()
            self.deadline = self.alarm = None
            self._inputs.clear()
            while self._socket is not None and self._out:
                self._turn()
            self._part()
        self._drop()

    def watch(self, descriptor: int, wanted: bool) -> None:
        """Call `readable` when this one has something, or no longer."""
        if wanted and descriptor not in self._inputs:
            self._poll.register(descriptor, select.POLLIN)
            self._inputs.add(descriptor)
        elif not wanted and descriptor in self._inputs:
            self._poll.unregister(descriptor)
            self._inputs.discard(descriptor)

    @property
    def unsent(self) -> int:
        """How many messages wait for their acknowledgement, or to be sent at all."""
        return len(self._sent) + len(self._waiting)

    def disconnect(self) -> None:
        """Say DISCONNECT; `run` returns when it is written."""
        if not self._leaving:
            self._leaving = True
            self._tell("sending DISCONNECT")
            self._send(Disconnect(0, self._disconnect_properties if self.version == V5 else None))

    def subscribe(self, requests: list[SubscriptionRequest], properties: Properties | None) -> None:
        packet_id = self._next_packet_id()
        for request in requests:
            options = request.no_local << 2 | request.retain_as_published << 3 | request.retain_handling << 4
            if self.version != V5:
                options = 0
            self._tell(
                f"sending SUBSCRIBE (Mid: {packet_id}, Topic: {request.topic_filter}, QoS: {request.qos}, "
                f"Options: 0x{options:02x})"
            )
        self._send(Subscribe(packet_id, requests, properties if self.version == V5 else None))

    def unsubscribe(self, topic_filters: list[str], properties: Properties | None) -> None:
        packet_id = self._next_packet_id()
        for topic_filter in topic_filters:
            self._tell(f"sending UNSUBSCRIBE (Mid: {packet_id}, Topic: {topic_filter})")
        self._send(Unsubscribe(packet_id, topic_filters, properties if self.version == V5 else None))

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties | None = None) -> int:
        """Publish as soon as the server takes it; gives the number by which `published` tells of it. Raises Failure."""
        granted = self.connack.properties if self.connack is not None else None
        if granted is not None:
            if granted.maximum_qos is not None and qos > granted.maximum_qos:
                raise Failure(1, "Message QoS not supported on broker, try a lower QoS.")
            if granted.retain_available == 0 and retain:
                raise Failure(1, "Retained messages are not supported by the broker.")
        message = Publish(topic, payload, qos, retain, properties=properties if self.version == V5 else None)
        message.packet_id = self._next_packet_id()  # at QoS 0 it only counts, as Mosquitto does
        if granted is not None and granted.maximum_packet_size is not None:
            if len(encode(message, self.version)) > granted.maximum_packet_size:
                raise Failure(1, "Message is larger than the broker accepts.")
        if qos:
            self._waiting.append(message)
            self._pump()
        else:
            self._write_message(message)
            self.published(message.packet_id, 0)
        return message.packet_id

    # --- the connection ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Wait for something and handle it."""
        assert self._socket is not None
        self._poll.modify(self._socket, select.POLLIN | (select.POLLOUT if self._out else 0))
        try:
            ready = self._poll.poll(self._patience())
        except InterruptedError:
            return
        now = time.monotonic()
        if self.deadline is not None and now >= self.deadline:
            raise Stopped(timed_out=True)
        if self.alarm is not None and now >= self.alarm:
            self.alarm = None
            self.alarmed()
        ours = self._socket.fileno()
        for descriptor, event in ready:
            if descriptor != ours:
                self.readable(descriptor)
            elif event & ~select.POLLOUT:
                self._read()
        if self._socket is not None:
            self._keep_alive(now)
            self._flush()

    def _patience(self) -> float | None:
        """Milliseconds until there is something to do without being asked."""
        moments = [moment for moment in (self.deadline, self.alarm) if moment is not None]
        if self._connect.keep_alive and self._socket is not None:
            moments.append(min(self._last_out, self._last_in) + self._connect.keep_alive)
        if not moments:
            return None
        return max(0.0, min(moments) - time.monotonic()) * 1000 + 1

    def _keep_alive(self, now: float) -> None:
        seconds = self._connect.keep_alive
        if not seconds or self.connack is None:
            return
        if self._pinged and now - self._last_in >= 2 * seconds:
            raise Failure(LOST)
        if not self._pinged and now - min(self._last_out, self._last_in) >= seconds:
            self._pinged = True
            self._last_in = now  # the answer has as long again
            self._tell("sending PINGREQ")
            self._send(PingReq())

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise Failure(LOST)
        self._last_in = time.monotonic()
        try:
            if self._stack is not None:
                data = self._stack.receive(data)
                self._out += self._stack.send()
            self._decoder.feed(data)
            while (packet := self._decoder.next_packet()) is not None and self._socket is not None:
                self._handle(packet)
        except TransportError as error:
            text = str(error)
            raise Failure(TLS, f"A TLS error occurred: {text}." if self._context is not None else f"{text}.") from None
        except MqttError as error:
            raise Failure(PROTOCOL, f"{_TEXTS[PROTOCOL]} ({error})") from None

    def _send(self, packet: Packet) -> None:
        data = encode(packet, self.version)
        self._out += data if self._stack is None else self._stack.send(data)

    def _flush(self) -> None:
        if not self._out or self._socket is None:
            return
        try:
            sent = self._socket.send(self._out, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            raise Failure(LOST) from None
        del self._out[:sent]
        self._last_out = time.monotonic()

    def _part(self) -> None:
        """Close without losing what the server has not read yet: an unread answer would make the close a reset."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError, TransportError):
            if self._stack is not None:
                self._socket.settimeout(_GOODBYE_SECONDS)
                self._socket.sendall(self._stack.finish(), socket.MSG_NOSIGNAL)
            self._socket.shutdown(socket.SHUT_WR)
            until = time.monotonic() + _GOODBYE_SECONDS
            while (left := until - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv(_READ_BYTES):
                    break
        self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._poll.unregister(self._socket)
            self._socket.close()
            self._socket = None
        self._out.clear()
        self._held.clear()
        self._aliases.clear()

    def _again(self) -> None:
        """Wait a second and connect again."""
        now = time.monotonic()
        until = now + _RECONNECT_SECONDS
        if self.deadline is not None and self.deadline <= until:
            time.sleep(max(0.0, self.deadline - now))
            raise Stopped(timed_out=True)
        time.sleep(_RECONNECT_SECONDS)
        self._waiting.extendleft(self._sent[packet_id] for packet_id in reversed(self._sent))
        self._sent.clear()
        self._released.clear()
        self.connack = None
        self.open()

    # --- packets -----------------------------------------------------------------------------------------------------

    def _handle(self, packet: Packet) -> None:
        if isinstance(packet, Publish):
            self._publish_received(packet)
        elif isinstance(packet, ConnAck):
            self._connack_received(packet)
        elif isinstance(packet, (PubAck, PubRec, PubComp, PubRel)):
            self._acknowledged(packet)
        elif isinstance(packet, SubAck):
            self._tell("received SUBACK")
            self.subscribed(packet)
        elif isinstance(packet, UnsubAck):
            self._tell("received UNSUBACK")
        elif isinstance(packet, PingResp):
            self._pinged = False
            self._tell("received PINGRESP")
        elif isinstance(packet, Disconnect) and self.version == V5:
            self._tell(f"received DISCONNECT ({packet.reason_code})")
            raise Failure(NOT_CONNECTED)
        else:
            raise Failure(PROTOCOL)

    def _connack_received(self, packet: ConnAck) -> None:
        properties = packet.properties
        assigned = properties.assigned_client_identifier if properties is not None else None
        if assigned:
            self._client_id = assigned
        self._tell(f"received CONNACK ({packet.reason_code})")
        if packet.reason_code:
            self.status = packet.reason_code
            if not self._quiet:
                complain(f"Connection error: {reason_text(packet.reason_code, self.version)}")
            raise Failure(PROTOCOL if self.version == V5 else REFUSED)
        self.connack = packet
        if properties is not None and properties.server_keep_alive is not None:
            self._connect.keep_alive = properties.server_keep_alive
        limit = properties.receive_maximum if properties is not None else None
        self._quota = min(self._in_flight_limit, limit or self._in_flight_limit)
        self._pump()
        self.connected()

    def _publish_received(self, message: Publish) -> None:
        alias = message.properties.topic_alias if message.properties is not None else None
        if alias is not None:
            if message.topic:
                self._aliases[alias] = message.topic
            elif alias in self._aliases:
                message.topic = self._aliases[alias]
            else:
                raise Failure(PROTOCOL)
        self._tell(
            f"received PUBLISH (d{message.dup:d}, q{message.qos}, r{message.retain:d}, m{message.packet_id}, "
            f"'{message.topic}', ... ({len(message.payload)} bytes))"
        )
        if message.qos == 0:
            self.received(message)
            return
        name, packet = (
            ("PUBACK", PubAck(message.packet_id)) if message.qos == 1 else ("PUBREC", PubRec(message.packet_id))
        )
        self._tell(f"sending {name} (m{message.packet_id}, rc0)")
        self._send(packet)
        if message.qos == 1:
            self.received(message)
        else:
            self._held.setdefault(message.packet_id, message)

    def _acknowledged(self, packet: Acknowledgement) -> None:
        packet_id, code = packet.packet_id, packet.reason_code
        if isinstance(packet, PubRel):
            self._tell(f"received PUBREL (Mid: {packet_id})")
            self._tell(f"sending PUBCOMP (m{packet_id})")
            self._send(PubComp(packet_id))
            message = self._held.pop(packet_id, None)
            if message is not None:
                self.received(message)
            return
        if packet.type == PUBREC:
            self._tell(f"received PUBREC (Mid: {packet_id})")
            if code < 0x80:
                self._released.add(packet_id)
                self._tell(f"sending PUBREL (m{packet_id})")
                self._send(PubRel(packet_id))
                return
        else:
            name = "PUBACK" if packet.type == PUBACK else "PUBCOMP"
            self._tell(f"received {name} (Mid: {packet_id}, RC:{code})")
        self._released.discard(packet_id)
        if self._sent.pop(packet_id, None) is not None:
            self._pump()
            self.published(packet_id, code)

    def _pump(self) -> None:
        while self._waiting and len(self._sent) < self._quota and self.connack is not None:
            message = self._waiting.popleft()
            self._sent[message.packet_id] = message
            self._write_message(message)

    def _write_message(self, message: Publish) -> None:
        self._tell(
            f"sending PUBLISH (d0, q{message.qos}, r{message.retain:d}, m{message.packet_id}, "
            f"'{message.topic}', ... ({len(message.payload)} bytes))"
        )
        self._send(message)

    def _next_packet_id(self) -> int:
        while True:
            self._packet_id = self._packet_id % 65_535 + 1
            if self._packet_id not in self._sent:
                return self._packet_id

    def _tell(self, what: str) -> None:
        if self._debug:
            print(f"Client {self._client_id or '(null)'} {what}", flush=True)


def complain(text: str) -> None:
    """Say something on standard error, behind what was printed."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


VERSIONS: Final = {"31": V3_1, "311": V3_1_1, "5": V5, "mqttv31": V3_1, "mqttv311": V3_1_1, "mqttv5": V5}
