"""A broker, two clients and a clock, and what must be true of them whatever the clients say.

A `World` carries out steps. Each step ends with the checks that need no knowledge of what was sent on purpose: what
arrives is decoded by our decoder in the client's place and held against what was negotiated; what leaves is read by a
second decoder, undivided, to know which acknowledgements are due and whether the connection must end.
"""

from __future__ import annotations

from collections import deque
from typing import Final, cast

from lockgate.broker.limits import CONNECT_PACKET_BYTES, Limits, ListenerLimits
from lockgate.broker.topic_tree import TopicTree
from lockgate.mqtt.decoder import Decoder, PacketRules
from lockgate.mqtt.errors import MqttError, ProtocolError
from lockgate.mqtt.packets import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
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
    V3_1_1,
    V5,
    Acknowledgement,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
)
from lockgate.mqtt.topics import SHARE_PREFIX, matches, split_shared
from tests.support.server import Peer, Server

# Bounds so small that a short conversation meets them, and the defaults. The ring of decisions is soon full: filling it
# would look like growth.
_SMALL: Final = Limits(
    max_inflight_messages=3, max_queued_messages=6, queue_head=4, output_bytes=2_000, max_packet_size=2_000, routes=6,
    decisions=32,
)  # fmt: skip
_BY_BYTES: Final = Limits(max_inflight_bytes=300, max_queued_bytes=900, queue_head=2, routes=64, decisions=32)
_ORDINARY: Final = Limits(max_keepalive=30, output_bytes=600, decisions=32)
_QUOTAS: Final = Limits(
    subscriptions=3, retained_messages=4, retained_bytes=300, user_properties=1, topic_levels=3, topic_bytes=30,
    sessions=3, connections=3, total_queued_messages=8, max_queued_messages=6, decisions=32,
)  # fmt: skip
_SCARCE: Final = Limits(
    memory_budget=30_000, output_bytes=4_000, max_queued_messages=0, alarms=("a/b",), queue_head=3, decisions=32
)
HOUSES: Final = (  # and whether the store answers late
    (_SMALL, False),
    (_BY_BYTES, True),
    (_ORDINARY, False),
    (_QUOTAS, True),
    (_SCARCE, False),
)
LISTENERS: Final = (
    ListenerLimits(allow_anonymous=True),
    ListenerLimits(allow_anonymous=True, max_topic_alias=2, max_topic_alias_broker=2),
    ListenerLimits(allow_anonymous=True, max_qos=1, max_topic_alias=0),
)

# What a client does about what arrived (`answer`)
ALL: Final = 0
FIRST: Final = 1
BACKWARDS: Final = 2
REFUSING: Final = 3
TWICE: Final = 4

_ANSWERS: Final = {PUBLISH: (0x40, 0x50), PUBREL: (0x70, 0x70)}
_DUE: Final = {PUBREL: PUBCOMP, SUBSCRIBE: SUBACK, UNSUBSCRIBE: UNSUBACK}
_AWAITING_PUBACK: Final = 1
_AWAITING_PUBREC: Final = 2
_AWAITING_PUBCOMP: Final = 3
# A packet the broker had begun when it learnt that the reader is slow, and what a turn may add to it
_SLACK_BYTES: Final = 300_000

Step = tuple[object, ...]


class Watcher(Peer):
    """One connection seen from the client's side; every failed check is an AssertionError."""

    def __init__(self, world: World, slot: int) -> None:
        super().__init__(world.server, 0)
        self.world = world
        self.slot = slot
        self.client_id: str | None = None
        self.connected = False
        self.said_goodbye = False
        self.must_end: MqttError | None = None  # what we sent cannot be read
        self.window = 65535
        self.maximum_packet_size = 0
        self.alias_maximum = 0
        self.aliases: dict[int, str] = {}
        self.unanswered: deque[bytes] = deque()
        self.due: deque[int] = deque()  # acknowledgements in their order, as type << 16 | Packet Identifier
        self.pings_due = 0
        self.states: dict[int, int] = {}  # of deliveries to us, by Packet Identifier
        self.pubrecs: set[int] = set()  # identifiers we sent PUBREC for
        self.early: set[int] = set()  # identifiers we acknowledged before we had seen them
        self.last: Packet | None = None
        limits = world.server.broker.limits
        rules = PacketRules(limits.topic_bytes, limits.topic_levels, limits.user_properties)
        self._sent = Decoder(0, CONNECT_PACKET_BYTES, False, rules)

    # --- what leaves ---------------------------------------------------------------------------------------------

    def speak(self, data: bytes, piece: int) -> None:
        """Send bytes, in pieces of one size where it is not 0."""
        self._read_own(data)
        receive = self.connection.receive
        now = self.server.now
        if piece == 0:
            receive(data, now)
        else:
            for start in range(0, len(data), piece):
                receive(data[start : start + piece], now)
        assert self.must_end is None or self.connection.is_closing, f"unreadable, and still open: {self.must_end}"

    def _read_own(self, data: bytes) -> None:
        """Note what is due for these bytes: the same packets whatever the pieces."""
        if self.must_end is not None or self.said_goodbye:
            return
        sent = self._sent
        due = self.due
        sent.feed(data)
        try:
            while (packet := sent.next_packet()) is not None:
                kind = packet.type
                if kind == PUBLISH:
                    publish = cast(Publish, packet)
                    if publish.qos:
                        due.append((PUBACK if publish.qos == 1 else PUBREC) << 16 | publish.packet_id)
                elif kind == PINGREQ:
                    self.pings_due += 1
                elif kind in _DUE:
                    due.append(_DUE[kind] << 16 | cast(Subscribe, packet).packet_id)
                    if kind == SUBSCRIBE:
                        self.world.note_filters(self.client_id, cast(Subscribe, packet).requests)
                elif PUBACK <= kind <= PUBCOMP:
                    self._note_acknowledgement(cast(Acknowledgement, packet))
                elif kind == CONNECT:
                    if self.client_id is not None:
                        raise ProtocolError("a second CONNECT")
                    connect = cast(Connect, packet)
                    self.version = sent.version = connect.version
                    self._decoder.version = connect.version
                    sent.maximum_packet_size = self.server.broker.limits.max_packet_size
                    self.client_id = connect.client_id
                    self.world.taken_over.add(connect.client_id)
                    own = connect.properties
                    if own is not None:
                        self.window = own.receive_maximum or 65535
                        self.maximum_packet_size = own.maximum_packet_size or 0
                        self.alias_maximum = own.topic_alias_maximum or 0
                        self._decoder.maximum_packet_size = self.maximum_packet_size
                elif kind == DISCONNECT:
                    self.said_goodbye = True
                    return
        except MqttError as error:
            self.must_end = error

    def _note_acknowledgement(self, packet: Acknowledgement) -> None:
        packet_id = packet.packet_id
        state = self.states.get(packet_id)
        if packet.type == PUBREC:
            self.pubrecs.add(packet_id)
        if state is None:
            self.early.add(packet_id)
        elif packet.type == PUBACK:
            if state == _AWAITING_PUBACK:
                del self.states[packet_id]
        elif packet.type == PUBREC:
            if state != _AWAITING_PUBACK:
                if packet.reason_code >= 0x80:
                    del self.states[packet_id]
                else:
                    self.states[packet_id] = _AWAITING_PUBCOMP
        elif state == _AWAITING_PUBCOMP:
            del self.states[packet_id]

    def answer(self, manner: int) -> None:
        """Acknowledge what arrived."""
        unanswered = self.unanswered
        if not unanswered:
            return
        if manner == FIRST:
            data = unanswered.popleft()
        else:
            if manner == BACKWARDS:
                unanswered.reverse()
            data = b"".join(unanswered)
            unanswered.clear()
        if manner == TWICE:
            data += data
        elif manner == REFUSING and self.version == V5:
            data = b"".join(
                bytes((data[at], 3)) + data[at + 2 : at + 4] + (b"\x80" if data[at] <= 0x50 else b"\x92")
                for at in range(0, len(data), 4)
            )
        self.world.packets += len(data) // 4
        self.speak(data, 0)

    # --- what arrives --------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Take and check what the broker has written, and close with it."""
        if self.closed:
            return
        connection = self.connection
        limit = self.server.broker.limits.output_bytes
        assert connection.output_bytes <= limit + _SLACK_BYTES, f"{connection.output_bytes} bytes for one slow reader"
        if connection.output and (self.reading or connection.is_closing):
            decoder = self._decoder
            data = connection.take_output()
            if decoder.version == 0:  # a CONNECT that cannot be read; the form of the answer tells its version
                decoder.version = V5 if data[1] > 2 else V3_1_1
            decoder.feed(data)
            if connection.has_more and connection.writable:
                connection.set_writable(True, self.server.now)
            while (packet := decoder.next_packet()) is not None:
                self._check(packet)
        if connection.is_closing and not self.closed:
            self.closed = True
            self.server.broker.connection_lost(connection, self.server.now)
            if self.connected and self.version == V5 and not self.said_goodbye and not self.world.time_passes:
                assert isinstance(self.last, Disconnect), f"closed without a word after {self.last}"
                assert self.last.reason_code >= 0x80, self.last
            if self.slot not in self.world.speaking:
                assert self.client_id in self.world.taken_over or self.world.time_passes, "closed for another's bytes"

    def _check(self, packet: Packet) -> None:
        kind = packet.type
        last = self.last
        self.last = packet
        self.world.arrived += 1
        assert not isinstance(last, Disconnect), f"{packet} after {last}"
        if kind == PUBLISH:
            assert self.connected, "PUBLISH before CONNACK"
            self._check_publish(cast(Publish, packet))
        elif kind == CONNACK:
            assert last is None, f"CONNACK after {last}"
            connack = cast(ConnAck, packet)
            self.connack = connack
            self.connected = connack.reason_code == 0
            if self.connected:
                own = connack.properties
                if own is not None and own.assigned_client_identifier:
                    self.client_id = own.assigned_client_identifier
                self.window = min(self.window, self.server.broker.limits.max_inflight_messages or 65535)
            else:
                assert self.connection.is_closing, "refused, and still open"
                assert not connack.session_present
        elif kind == PUBREL:
            assert self.connected
            released = cast(Acknowledgement, packet)
            known = released.packet_id in self.pubrecs or released.packet_id in self.early
            if released.reason_code == 0 and not known:  # from an earlier connection
                self.states[released.packet_id] = _AWAITING_PUBCOMP
            self.unanswered.append(b"\x70\2" + released.packet_id.to_bytes(2, "big"))
        elif kind == PINGRESP:
            self.pings_due -= 1
            assert self.pings_due >= 0, "PINGRESP that nobody asked for"
        elif kind in (PUBACK, PUBREC, PUBCOMP, SUBACK, UNSUBACK):
            packet_id = cast(SubAck, packet).packet_id
            due = self.due.popleft() if self.due else 0
            assert due == kind << 16 | packet_id, (
                f"{packet} where {TYPE_NAMES[due >> 16]} {due & 0xFFFF} was due"  # [MQTT-4.6.0-2 to 4]
            )
        else:
            assert kind == DISCONNECT, f"a Server must not send {packet}"
            assert self.version == V5
            assert self.connected

    def _check_publish(self, packet: Publish) -> None:
        topic = packet.topic
        properties = packet.properties
        if properties is not None:
            alias = properties.topic_alias
            if alias is not None:
                assert alias <= self.alias_maximum, f"Topic Alias {alias}, at most {self.alias_maximum}"
                if topic:
                    self.aliases[alias] = topic
                else:
                    assert alias in self.aliases, f"Topic Alias {alias} was never set up"
                    topic = self.aliases[alias]
        qos = packet.qos
        assert qos <= self.connection.limits.max_qos, "above max_qos"
        if qos:
            packet_id = packet.packet_id
            states = self.states
            assert not packet.dup or self.connack.session_present or self.version == V3_1, "DUP in a new Session"
            if packet_id in self.early:
                states.pop(packet_id, None)
            else:
                assert packet_id not in states, f"Packet Identifier {packet_id} is in use"
                states[packet_id] = qos
                assert len(states) <= self.window, f"{len(states)} in flight, Receive Maximum {self.window}"
            self.unanswered.append((b"\x40\2" if qos == 1 else b"\x50\2") + packet_id.to_bytes(2, "big"))
        self.world.check_subscribed(self.client_id, topic)

    def check_quiet(self) -> None:
        """Check that nothing is owed when the broker has done all it could."""
        if self.closed:
            return
        assert self.connection.writable is self.reading
        if self.reading:
            assert not self.connection.output
            assert self.pings_due == 0, "PINGREQ without an answer"
            if not self.connection.acknowledgements_wait:
                assert not self.due, f"{len(self.due)} packets without their acknowledgement"
                self.early.clear()


class World:
    """One broker for many cases, and the two clients of the case at hand."""

    def __init__(self, house: int, listener: int) -> None:
        limits, slow_store = HOUSES[house]
        self.server = Server(limits, LISTENERS[listener], slow_store)
        self.clients: list[Watcher | None] = [None, None]
        self.old: list[Watcher] = []  # connections a client left open for a new one
        self.speaking: set[int] = set()
        self.taken_over: set[str | None] = set()
        self.time_passes = False
        self.packets = 0  # sent, as near as can be said of broken ones
        self.arrived = 0  # sent back by the broker
        self._filters: dict[str | None, set[str]] = {}
        self._known: set[tuple[str | None, str]] = set()

    # --- steps ---------------------------------------------------------------------------------------------------

    def run(self, step: Step) -> None:
        """Carry out one step and check everything."""
        name = step[0]
        self.taken_over.clear()
        self.speaking.clear()
        self.time_passes = False
        if name == "wait":
            self.time_passes = True
            self.server.advance(cast(float, step[1]))
        elif name == "settle":
            self.server.settle()
        else:
            slot = cast(int, step[1])
            self.speaking.add(slot)
            if name == "open":
                self._open(slot)
            else:
                client = self.clients[slot]
                if client is not None and not client.closed:
                    self._act(client, name, step)
        self.server.flush()
        for client in self.clients:
            if client is not None:
                client.check_quiet()

    def _open(self, slot: int) -> None:
        former = self.clients[slot]
        if former is not None and not former.closed:
            self.old.append(former)
        self.clients[slot] = Watcher(self, slot)

    def _act(self, client: Watcher, name: object, step: Step) -> None:
        if name == "send":
            if client.connection.wants_input:  # else the shell has stopped reading, too
                client.speak(cast(bytes, step[2]), cast(int, step[3]))
        elif name == "answer":
            if client.reading:
                client.answer(cast(int, step[2]))
        elif name == "lose":
            client.lose()
        elif name == "pause":
            client.stop_reading()
        elif name == "read":
            client.read_again()
        else:
            raise ValueError(f"no step is called {name!r}")

    # --- messages only where there was a Subscription ---------------------------------------------------------------

    def note_filters(self, client_id: str | None, requests: list[SubscriptionRequest]) -> None:
        """Remember what a client ever asked for, granted or not: a queue may outlive the Subscription."""
        known = self._filters.setdefault(client_id, set())
        for request in requests:
            topic_filter = request.topic_filter
            known.add(split_shared(topic_filter)[1] if topic_filter.startswith(SHARE_PREFIX) else topic_filter)

    def check_subscribed(self, client_id: str | None, topic: str) -> None:
        """Check that a client has asked for this topic at some time."""
        key = (client_id, topic)
        if key in self._known:
            return
        # one that had no Client Identifier yet asked under an empty one
        filters = self._filters.get(client_id, set()) | self._filters.get("", set())
        assert any(matches(topic_filter, topic) for topic_filter in filters), f"{topic!r} to {client_id!r}: {filters}"
        self._known.add(key)

    # --- the end of a case -----------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Let everybody leave and everything expire, and check that nothing is left."""
        server, broker = self.server, self.server.broker
        self.time_passes = True
        for client in [*self.old, *self.clients]:
            if client is not None and not client.closed:
                client.lose()
        server.settle()
        server.advance(200.0)
        broker.memory.budget = 0  # the retained messages alone may fill it, and nobody is let in then
        for session in list(broker.sessions.values()):
            server.client(session.client_id, clean_start=True).lose()
        self._clear_retained()
        server.settle()
        for line in server.log.lines:
            assert line.isprintable(), f"not escaped in the log: {line!r}"
        assert len(server.log.lines) <= 60 + 4 * len(server.peers), f"{len(server.log.lines)} log lines"
        server.log.lines.clear()
        server.peers.clear()
        self.clients = [None, None]
        self.old = []
        self._filters.clear()
        self._known.clear()
        left = {
            "sessions": len(broker.sessions),
            "connections": len(broker.connections),
            "wills": len(broker.wills),
            "waiting": len(broker.waiting),
            "touched": len(broker.touched),
            "pending logins": len(broker.pending),
            "queued": broker.queued_count,
            "memory": broker.memory.used,
            "subscriptions": broker.router.tree.count + broker.router.tree.shared_count,
            "tree": not _is_bare(broker.router.tree),
            "retained": broker.retained.count + broker.retained.size_bytes,
            "queues": len(server.store._queues),
        }
        assert not any(left.values()), f"left behind: {left}"
        assert len(broker.deadlines) <= 1024, f"{len(broker.deadlines)} deadlines for nobody"

    def _clear_retained(self) -> None:
        """Have a client remove every retained message, so that all books are kept."""
        retained = self.server.broker.retained
        levels = [level for level in retained._root.children or () if level.startswith("$")]
        filters = ["#", *(f"{level}/#" for level in levels)]  # wildcards do not reach topics that begin with $
        messages = [message for one in filters for message in retained.match(one, 0.0)]
        if messages:
            memory = self.server.broker.memory
            budget, memory.budget = memory.budget, 0  # what is retained may leave no room for one more client
            janitor = self.server.client("janitor")
            memory.budget = budget
            for message in messages:
                janitor.send(Publish(message.topic, b"", 0, True))
            janitor.lose()


def _is_bare(tree: TopicTree) -> bool:
    return tree._root.is_empty()
