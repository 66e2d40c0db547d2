"""The same conversation with us and with Debian's mosquitto, over TCP: what do two clients see?

Packets are valid or nearly so, and whole: a broker that waits for the rest of one could not be told from a silent one.
After each step the clients acknowledge all that arrived and make round trips until nothing more comes, so that what
they saw can be compared step by step. Nothing here depends on time passing.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lockgate.mqtt.decoder import Decoder, PacketRules
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import (
    CONNACK,
    PINGREQ,
    PINGRESP,
    SUBACK,
    UNSUBACK,
    V3_1,
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
)
from lockgate.mqtt.properties import Properties
from tests.fuzz.grammar import CONNECT_PROPERTIES, FILTERS, PUBLISH_PROPERTIES, TOPICS, WILL_PROPERTIES, Grammar

STEPS: Final = 60
_SECONDS: Final = 5.0
_PING: Final = b"\xc0\0"
_VERSIONS: Final = (V3_1_1, V3_1_1, V5, V5, V5, V3_1)

Step = tuple[str, int, bytes]  # "open", "send" or "lose", the client, and what it sends
Seen = list[str]


def _is_timeless(part: bytes) -> bool:
    """Whether a property says nothing that a few seconds could change."""
    if part[0] in (0x02, 0x18, 0x11):  # Message Expiry, Will Delay, Session Expiry
        return int.from_bytes(part[1:], "big") in {0x02: (60,), 0x18: (0,)}.get(part[0], (0, 60, 100, 0xFFFF_FFFF))
    # no aliases from the broker: which topics get one is its own affair
    return part[0] != 0x22 and not (part[0] == 0x27 and int.from_bytes(part[1:], "big") < 1000)


class TimelessGrammar(Grammar):
    """The grammar without what takes effect after seconds, and without what LEFT_OUT names."""

    topics = tuple(topic for topic in TOPICS if not topic[2:].startswith(b"$SYS") and len(topic) < 100)
    filters = tuple(one for one in FILTERS if not one[2:].startswith((b"$SYS", b"$share")) and len(one) < 100)
    publish_properties = tuple(part for part in PUBLISH_PROPERTIES if part[0] != 0x02 or _is_timeless(part))
    will_properties = tuple(part for part in WILL_PROPERTIES if _is_timeless(part))
    connect_properties = tuple(part for part in CONNECT_PROPERTIES if _is_timeless(part))
    no_local = (0,)
    retain_options = (0, 0x10, 0x20)
    usernames = (b"\0\4user", b"\0\0")
    keep_alives = (b"\0\0", b"\xff\xff")

    def __init__(self, source: random.Random, badness: float) -> None:
        super().__init__(source, badness)
        self._identifier = 0x100
        self._unreleased: list[bytes] = []

    def disconnect(self, version: int) -> bytes:
        """Draw a DISCONNECT that tells of no error."""
        data = super().disconnect(version)
        return data if len(data) < 3 or data[2] in (0x00, 0x04) else b"\xe0\x00"

    def packet(self, version: int) -> bytes:
        """Draw any packet but PINGREQ, whose answer ends a round trip."""
        data = super().packet(version)
        return data if data[0] >> 4 != PINGREQ else self.publish(version)

    def publish(self, version: int) -> bytes:
        """Draw a PUBLISH whose identifier is not in use: what a second message under it leads to is not agreed on."""
        data = super().publish(version)
        if not data[0] & 6:
            return data
        self._identifier = self._identifier % 0xFFFF + 1
        packet_id = self._identifier.to_bytes(2, "big")
        if data[0] & 4:
            self._unreleased.append(packet_id)
        head = 2 if data[1] < 0x80 else 3
        at = head + 2 + (data[head] << 8 | data[head + 1])
        return data[:at] + packet_id + data[at + 2 :]

    def subscribe(self, version: int) -> bytes:
        """Draw a SUBSCRIBE that names no filter twice: how often its retained messages come is not agreed on."""
        while True:
            data = super().subscribe(version)
            filters = [one for one in self.filters for _ in range(data.count(one))]
            if len(filters) == len(set(filters)):
                return data

    def acknowledgement(self, version: int, first: int) -> bytes:
        """Draw a PUBREL, of a message or of none: clients acknowledge what they get by themselves."""
        if self._unreleased and self.random() < 0.8:
            return b"\x62\2" + self._unreleased.pop(int(self.random() * len(self._unreleased)))
        return super().acknowledgement(version, 0x62)

    def spoil(self, data: bytes) -> bytes:
        """Break a packet without breaking its length."""
        at = int(self.random() * len(data))
        if at < 2 or data[1] >= 0x80:
            return bytes((data[0] ^ int(self.random() * 16),)) + data[1:]
        return data[:at] + bytes((data[at] ^ 1 << int(self.random() * 8),)) + data[at + 1 :]


class RawClient:
    """One socket, and what arrives on it as lines that can be compared."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = Decoder(0, rules=PacketRules(topic_levels=1_000))  # mosquitto takes one level more than we do
        self._version = 0
        self.connected = False
        self.closed = False
        self.retained_topics: list[str] = []

    def send(self, data: bytes) -> None:
        """Send bytes; that the broker has closed shows when its answer is read."""
        with contextlib.suppress(OSError):
            self._socket.sendall(data)

    def open(self, data: bytes, version: int) -> Seen:
        """Send CONNECT and read the answer."""
        self._version = version
        self._decoder.version = version
        self.send(data)
        return self._read(ConnAck)

    def round_trip(self) -> Seen:
        """Send PINGREQ and read up to its answer, acknowledging what comes."""
        if self.closed or not self.connected:
            return []
        self.send(_PING)
        return self._read(PingResp)

    def _read(self, last: type[Packet]) -> Seen:
        seen: Seen = []
        ended = False
        while not self.closed:
            try:
                # also what came with the last one: no select() would tell of it
                while (packet := self._decoder.next_packet()) is not None:
                    if isinstance(packet, ConnAck):
                        seen.append(self._connack(packet))
                    elif not isinstance(packet, PingResp):
                        seen.append(self._told(packet))
                    ended = ended or isinstance(packet, last)
                if ended:
                    return seen
                data = self._socket.recv(262_144)
            except MqttError as error:
                seen.append(f"unreadable: {error.detail}")
                data = b""
            except ConnectionError:
                data = b""
            except TimeoutError:
                seen.append("silent")
                data = b""
            if not data:
                self.closed = True
                self._socket.close()
                seen.append("closed")
                break
            self._decoder.feed(data)
        return seen

    def _connack(self, packet: ConnAck) -> str:
        self.connected = packet.reason_code == 0
        own = packet.properties or Properties()
        invented = " with an id" if own.assigned_client_identifier else ""
        return f"CONNACK {packet.reason_code} present={int(packet.session_present)}{invented}"

    def _told(self, packet: Packet) -> str:
        if isinstance(packet, Publish):
            if packet.qos:
                kind = b"\x40\2" if packet.qos == 1 else b"\x50\2"
                self.send(kind + packet.packet_id.to_bytes(2, "big"))
            if packet.retain:
                self.retained_topics.append(packet.topic)
            shown = f"{packet.payload!r}" if len(packet.payload) < 30 else f"{len(packet.payload)} bytes"
            if packet.properties is not None and packet.properties.message_expiry_interval is not None:
                packet.properties.message_expiry_interval = -(-packet.properties.message_expiry_interval // 10) * 10
            marks = f"{' retain' if packet.retain else ''}{' dup' if packet.dup else ''}"
            return f"PUBLISH {packet.topic[:40]} {shown} qos={packet.qos}{marks} {packet.properties or ''}"
        if isinstance(packet, PubRel):
            self.send(b"\x70\2" + packet.packet_id.to_bytes(2, "big"))
            return f"PUBREL {packet.reason_code}"
        if isinstance(packet, PubAck | PubRec | PubComp):
            return f"{type(packet).__name__.upper()} {packet.packet_id} {packet.reason_code}"
        if isinstance(packet, SubAck | UnsubAck):
            return f"{type(packet).__name__.upper()} {packet.packet_id} {packet.reason_codes}"
        if isinstance(packet, Disconnect):
            return f"DISCONNECT {packet.reason_code}"
        return repr(packet)

    def close(self) -> None:
        """Close without a word."""
        if not self.closed:
            self.closed = True
            with contextlib.suppress(OSError):  # the broker may have been faster
                self._socket.shutdown(socket.SHUT_RDWR)  # a program that another thread starts may hold the socket too
            self._socket.close()


class Side:
    """One of the two brokers, with the clients of the case and one that only makes round trips."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.clients: list[RawClient | None] = [None, None]
        self._old: list[RawClient] = []
        self._monitor = RawClient(port)
        self._monitor.open(b"\x10\x13\0\4MQTT\4\2\0\0\0\7monitor", V3_1_1)

    def run(self, step: Step, version: int) -> list[Seen]:
        """Carry out a step and give what each client saw, normalised."""
        name, slot, data = step
        seen: list[Seen] = [[], []]
        client = self.clients[slot]
        if name == "open":
            if client is not None:
                self._old.append(client)  # a takeover, where the Client Identifier is the same
            client = self.clients[slot] = RawClient(self._port)
            seen[slot] += client.open(data, version)
        elif client is not None and not client.closed:
            if name == "send":
                client.send(data)
            else:
                client.close()
                self._settle_broker()
        quiet = 0  # twice: an acknowledgement may wait for the store, PINGRESP does not
        while quiet < 2:
            quiet += 1
            for number, one in enumerate(self.clients):
                if one is not None and (more := one.round_trip()):
                    quiet = 0
                    seen[number] += more
        return [normalised(lines) for lines in seen]

    def _settle_broker(self) -> None:
        """Two round trips of another client: whatever had reached the broker's sockets before is handled."""
        self._monitor.round_trip()
        self._monitor.round_trip()

    def clear(self, client_ids: Sequence[bytes]) -> None:
        """Take back all that a case may have left."""
        for client in (*self.clients, *self._old):
            if client is not None:
                client.close()
        self._settle_broker()
        self.clients = [None, None]
        self._old = []
        for client_id in client_ids:
            body = b"\0\4MQTT\4\2\0\0" + client_id
            cleaner = RawClient(self._port)
            cleaner.open(bytes((0x10, len(body))) + body, V3_1_1)
            cleaner.close()
        cleaner = RawClient(self._port)
        cleaner.open(b"\x10\x13\0\4MQTT\4\2\0\0\0\7cleaner", V3_1_1)
        cleaner.send(b"\x82\x0d\0\1\0\1#\0\0\4$x/#\0")
        cleaner.round_trip()
        cleaner.round_trip()  # ours sends them behind SUBACK, in pieces
        for topic in cleaner.retained_topics:
            cleaner.send(encode(Publish(topic, retain=True), V3_1_1))
        cleaner.round_trip()
        cleaner.send(b"\xe0\0")
        cleaner.close()
        self._settle_broker()


def normalised(lines: Seen) -> Seen:
    """Order within a topic and QoS is kept, other messages are sorted; PUBREL has no order among other packets."""
    answers = [line for line in lines if not line.startswith(("PUBLISH", "PUBREL", "closed"))]
    messages = sorted((line for line in lines if line.startswith("PUBLISH")), key=_stream)
    released = sorted(line for line in lines if line.startswith("PUBREL"))
    return answers + messages + released + [line for line in lines if line == "closed"]


def _stream(line: str) -> tuple[str, str, bool, str]:
    """What has an order of its own; copies of one message for several Subscriptions come in any."""
    _publish, topic, rest = line.split(" ", 2)
    place = rest.find("qos=")
    identifier = rest.find("subscription_identifiers=")
    return topic, rest[place : place + 5], " retain " in rest, rest[identifier:] if identifier >= 0 else ""


# --- known differences ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A difference that is right: lines of ours that are counted as mosquitto's. `why` is the reason."""

    what: str
    why: str
    ours: re.Pattern[str]
    mosquitto: str


# What the grammar does not say, since the answers are known to differ; our side of each has tests of its own.
LEFT_OUT: Final = (
    ("shared Subscriptions", "which member gets a message is the broker's choice (MQTT 5 §4.8.2)"),
    ("Topic Aliases towards clients", "mosquitto 2.0 never sets any up"),
    ("topics at the bound of levels", "mosquitto 2.0 takes 201 levels, we take the 200 that its manual names"),
    (
        "acknowledgements that answer nothing",
        "mosquitto 2.0 ends some connections for them; we ignore them or say 0x92",
    ),
    ("a Packet Identifier that is in use", "the client breaks MQTT-2.2.1-3, and no answer is prescribed"),
    ("one filter twice in one SUBSCRIBE", "mosquitto sends its retained messages twice, we once"),
    ("No Local with retained messages", "mosquitto 2.0 sends a client its own ones against MQTT-3.8.3-3"),
    ("a changed Retain As Published", "mosquitto 2.0 keeps the first one against MQTT-3.8.4-3"),
    ("a Will Delay longer than its Session", "mosquitto 2.0 lets the Will wait on, against MQTT 5 §3.1.3.2.2"),
    ("small Maximum Packet Sizes", "mosquitto 2.0 leaves the fixed header out of what it measures"),
    ("a takeover of a client that has a Will", "mosquitto 2.0 keeps the Will back where the Session goes on"),
    ("a DISCONNECT that tells of an error", "mosquitto 2.0 then drops the Will, against MQTT-3.1.2-10"),
    ("control characters in topics and user names", "mosquitto refuses them, which MQTT 5 §1.5.4 leaves open"),
    ("several packets in one write", "retained messages may come behind messages published right after SUBSCRIBE"),
)

KNOWN: Final = (
    Known(
        "PUBREC tells that nobody is subscribed",
        "MQTT 5 §3.5.2.1 has 0x10 for PUBREC as for PUBACK; mosquitto 2.0 has it in PUBACK alone",
        re.compile(r"^PUBREC (\d+) 16$"),
        r"PUBREC \1 0",
    ),
    Known(
        "PUBCOMP tells that the identifier is unknown",
        "MQTT 5 §3.7.2.1, reason 0x92; mosquitto 2.0 says success",
        re.compile(r"^PUBCOMP (\d+) 146$"),
        r"PUBCOMP \1 0",
    ),
)


@dataclass(frozen=True)
class Found:
    """A step after which the two brokers parted."""

    seed: int
    steps: list[Step]
    mosquitto: list[Seen]
    ours: list[Seen]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}", *(repr(step) for step in self.steps[-6:])]
        for number in (0, 1):
            if self.mosquitto[number] != self.ours[number]:
                lines += [f"client {number} on mosquitto: {self.mosquitto[number]}"]
                lines += [f"client {number} on lockgate:  {self.ours[number]}"]
        return "\n".join(lines)


def _has_will(connect: bytes) -> bool:
    at = 2 if connect[1] < 0x80 else 3
    return connect[at + 2 + connect[at + 1] + 1] & 0x04 != 0


def _topics(packet: Packet) -> list[str]:
    if isinstance(packet, Subscribe):
        return [request.topic_filter for request in packet.requests]
    if isinstance(packet, Unsubscribe):
        return packet.topic_filters
    return [packet.topic] if isinstance(packet, Publish) else []


def _is_forbidden(data: bytes, version: int, is_first: bool) -> bool:
    """Whether a client must not send this, or says that it is a bridge."""
    decoder = Decoder(0 if is_first else version)
    decoder.feed(data)
    try:
        while (packet := decoder.next_packet()) is not None:
            if isinstance(packet, Connect):
                return packet.bridge or not is_first
            if packet.type in (CONNACK, SUBACK, UNSUBACK, PINGRESP):
                return True
            if isinstance(packet, Publish) and packet.properties and packet.properties.subscription_identifiers:
                return True
            if any(
                not text.isprintable() for text in _topics(packet)
            ):  # refused by mosquitto, which §1.5.4 leaves open
                return True
    except MqttError:
        return True
    return False


class Comparison:
    """Both brokers, and how often each known difference was met."""

    def __init__(self, mosquitto_port: int, our_port: int) -> None:
        self._sides = (Side(mosquitto_port), Side(our_port))
        self.met = dict.fromkeys(("stricter", *(known.what for known in KNOWN)), 0)
        self.steps = 0

    def play(self, seed: int) -> Found | None:
        """Run the case of a seed up to the first difference; give it unless it is known."""
        source = random.Random(seed)
        grammar = TimelessGrammar(source, (0.0, 0.0, 0.02, 0.1)[int(source.random() * 4)])
        client_ids = [len(name).to_bytes(2, "big") + name for name in (f"d{seed}-{slot}".encode() for slot in (0, 1))]
        versions = [V5, V5]
        wills = [False, False]
        steps: list[Step] = []
        try:
            for _ in range(STEPS):
                slot = int(source.random() * 2)
                clients = [side.clients[slot] for side in self._sides]
                gone = [client is None or client.closed for client in clients]
                chance = source.random()
                if any(gone) or chance < 0.08:
                    other = chance < 0.02
                    if any(wills):  # whether a takeover sends the Will is another thing since mosquitto 2.1
                        step: Step = ("lose", wills.index(True), b"")
                        wills[step[1]] = False
                    else:
                        versions[slot] = grammar.pick(_VERSIONS)
                        step = ("open", slot, grammar.connect(versions[slot], client_ids[slot ^ other]))
                        wills[slot] = _has_will(step[2])
                elif chance < 0.14:
                    step = ("lose", slot, b"")
                    wills[slot] = False
                else:
                    step = ("send", slot, grammar.packet(versions[slot]))
                steps.append(step)
                self.steps += 1
                mosquitto, ours = (side.run(step, versions[slot]) for side in self._sides)
                if step[0] != "lose" and _is_forbidden(step[2], versions[slot], step[0] == "open"):
                    # A packet that breaks a MUST ends its connection. Mosquitto 2.0 lets some pass: DUP at QoS 0, flags
                    # of PINGREQ, bytes too many behind an identifier, odd names of shared groups, a Server's packets,
                    # Subscription Identifiers in PUBLISH; of a SUBSCRIBE it has done what stands before the mistake.
                    self.met["stricter"] += mosquitto != ours
                    return None
                for number in (0, 1):
                    if not self._agree(mosquitto[number], ours[number]):
                        return Found(seed, steps, mosquitto, ours)
            return None
        finally:
            for side in self._sides:
                side.clear(client_ids)

    def _agree(self, mosquitto: Seen, ours: Seen) -> bool:
        """Whether two clients saw the same, but for what is known."""
        if mosquitto == ours:
            return True
        if "closed" in mosquitto and "closed" in ours:
            return True  # what was on its way when a broker closed may be lost, and the reasons' words are their own
        lines: Seen = []
        for line in ours:
            for known in KNOWN:
                replaced = known.ours.sub(known.mosquitto, line)
                if replaced != line and line not in mosquitto:
                    self.met[known.what] += 1
                    line = replaced
            lines.append(line)
        return mosquitto == lines
