"""A broker that is killed at any moment, on a disk that fails at times: what was acknowledged is kept (DESIGN §3.1).

Only what was committed survives. A publisher, a durable subscriber and the client of a standing Session come and go,
answer when they like, keep their own halves of the Sessions, and use Packet Identifiers again as soon as they may.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lockgate.broker.limits import Limits, StandingSession
from lockgate.broker.session import NEVER_EXPIRES
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    Disconnect,
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
from tests.support.disk import Disk
from tests.support.server import Peer, Server

_WINDOW = 5
_LIMITS = Limits(
    max_inflight_messages=_WINDOW,
    max_queued_messages=0,
    queue_head=3,
    standing_sessions=(StandingSession("z", ("t/#",), 1, 60),),
    store_patience=10,
)
_FILTERS = ("a", "b/+", "$share/g/c")
_OUTSTANDING = 12


class Client:
    """One end that keeps its Session; `peer` is None while it is not connected."""

    def __init__(self, client_id: str, version: int) -> None:
        self.client_id = client_id
        self.version = version
        self.peer: Peer | None = None

    def connect(self, server: Server, first: bool = False) -> None:
        if self.version == V5:
            self.peer = server.client(
                self.client_id, V5, first, session_expiry_interval=NEVER_EXPIRES, receive_maximum=_WINDOW
            )
        else:
            self.peer = server.client(self.client_id, self.version, clean_start=False)
        assert self.peer.connack.session_present is not first
        self.returned()

    def returned(self) -> None: ...

    def read(self) -> None: ...


class Publisher(Client):
    """Numbers its messages for each QoS; QoS 0 stands for retained messages, sent at QoS 1."""

    def __init__(self, version: int) -> None:
        super().__init__("p", version)
        self.numbers = [0, 0, 0]
        self.open: dict[int, tuple[int, int, bool]] = {}  # identifier: kind, number, whether PUBREC came; in order
        self.to_release: list[int] = []
        self.acknowledged: list[set[int]] = [set(), set(), set()]
        self.refused: list[set[int]] = [set(), set(), set()]

    def packet(self, packet_id: int, dup: bool = False) -> Publish | PubRel:
        kind, number, has_pubrec = self.open[packet_id]
        if has_pubrec:
            return PubRel(packet_id)
        return Publish(("r", "t/1", "t/2")[kind], b"%06d" % number, max(kind, 1), kind == 0, dup, packet_id)

    def publish(self, kind: int) -> None:
        assert self.peer is not None
        packet_id = next(one for one in range(1, 100) if one not in self.open)
        self.open[packet_id] = (kind, self.numbers[kind], False)
        self.numbers[kind] += 1
        self.peer.send(self.packet(packet_id))
        self.read()

    def release(self) -> None:
        """Send the PUBRELs that are due."""
        waiting, self.to_release = self.to_release, []
        for packet_id in waiting:
            if self.peer is not None and packet_id in self.open:
                self.peer.send(PubRel(packet_id))
        self.read()

    def returned(self) -> None:
        assert self.peer is not None
        self.to_release = []
        for packet_id in list(self.open):
            self.peer.send(self.packet(packet_id, True))

    def read(self) -> None:
        if self.peer is None:
            return
        for packet in self.peer.received():
            if isinstance(packet, Disconnect):
                continue
            assert isinstance(packet, PubAck | PubRec | PubComp), packet
            kind, number, _has_pubrec = self.open[packet.packet_id]
            if packet.reason_code in (reason_codes.QUOTA_EXCEEDED, reason_codes.IMPLEMENTATION_SPECIFIC_ERROR):
                assert self.version == V5
                self.refused[kind].add(number)
                del self.open[packet.packet_id]
            elif isinstance(packet, PubRec):
                self.open[packet.packet_id] = (kind, number, True)
                self.to_release.append(packet.packet_id)
            else:
                self.acknowledged[kind].add(number)
                del self.open[packet.packet_id]
        if self.peer.closed:
            self.peer = None


class Subscriber(Client):
    """`seen` is what the application behind it was handed, for each QoS of the publisher."""

    def __init__(self, client_id: str, version: int) -> None:
        super().__init__(client_id, version)
        self.seen: dict[str, list[int]] = {"t/1": [], "t/2": []}
        self.held_identifiers: set[int] = set()  # between PUBLISH and PUBREL
        self.unanswered: list[PubAck | PubRec | PubComp] = []
        self.window: set[int] = set()
        self.filters: dict[str, bool | None] = dict.fromkeys(_FILTERS, False)  # None: nobody can know

    def returned(self) -> None:
        self.unanswered = []
        self.window = set()
        self.read()

    def toggle(self, topic_filter: str, wanted: bool) -> None:
        assert self.peer is not None
        self.filters[topic_filter] = None
        packet_id = 1 + 2 * _FILTERS.index(topic_filter) + wanted
        if wanted:
            self.peer.send(Subscribe(packet_id, [SubscriptionRequest(topic_filter, 1)]))
        else:
            self.peer.send(Unsubscribe(packet_id, [topic_filter]))
        self.read()

    def read(self) -> None:
        if self.peer is None:
            return
        for packet in self.peer.received():
            if isinstance(packet, SubAck | UnsubAck):
                self.filters[_FILTERS[(packet.packet_id - 1) // 2]] = isinstance(packet, SubAck)
            elif isinstance(packet, Publish):
                self.take(packet)
            elif isinstance(packet, PubRel):
                assert packet.reason_code == 0
                self.held_identifiers.discard(packet.packet_id)
                self.unanswered.append(PubComp(packet.packet_id))
            else:
                assert isinstance(packet, Disconnect), packet
        if self.peer.closed:
            self.peer = None

    def take(self, packet: Publish) -> None:
        self.window.add(packet.packet_id)
        assert len(self.window) <= _WINDOW  # [MQTT-3.3.4-9]
        number = int(packet.payload)
        if packet.qos == 1:
            self.seen[packet.topic].append(number)
            self.unanswered.append(PubAck(packet.packet_id))
            return
        if packet.packet_id not in self.held_identifiers:
            self.held_identifiers.add(packet.packet_id)
            self.seen[packet.topic].append(number)
        self.unanswered.append(PubRec(packet.packet_id))

    def answer(self, count: int) -> None:
        for _ in range(count):
            if self.peer is None or not self.unanswered:
                return
            packet = self.unanswered.pop(0)
            if not isinstance(packet, PubRec):
                self.window.discard(packet.packet_id)
            self.peer.send(packet)
            self.read()


class Restarts(RuleBasedStateMachine):
    """The machine of hypothesis; the clients live on when the server does not."""

    @initialize(publisher=st.sampled_from([V3_1_1, V5]), subscriber=st.sampled_from([V3_1_1, V5]))
    def begin(self, publisher: int, subscriber: int) -> None:
        self.disk = Disk()
        self.server = Server(_LIMITS, slow_store=True, disk=self.disk)
        self.publisher = Publisher(publisher)
        self.subscriber = Subscriber("s", subscriber)
        self.standing = Subscriber("z", V3_1_1)
        self.clients: list[Client] = [self.publisher, self.subscriber, self.standing]
        self.publisher.connect(self.server, True)
        self.subscriber.connect(self.server, True)
        assert self.subscriber.peer is not None
        self.subscriber.peer.send(Subscribe(1, [SubscriptionRequest("t/#", 2)]))
        self.server.settle()
        self.subscriber.peer.expect(SubAck)

    def read(self) -> None:
        for client in self.clients:
            client.read()

    @precondition(lambda self: self.publisher.peer is not None and len(self.publisher.open) < _OUTSTANDING)
    @rule(kinds=st.lists(st.integers(0, 2), min_size=1, max_size=6))
    def publish(self, kinds: list[int]) -> None:
        for kind in kinds:
            if self.publisher.peer is not None:
                self.publisher.publish(kind)
        self.read()

    @rule()
    def release(self) -> None:
        self.publisher.release()
        self.read()

    @rule(who=st.integers(1, 2), count=st.integers(1, 9))
    def answer(self, who: int, count: int) -> None:
        subscriber = self.clients[who]
        assert isinstance(subscriber, Subscriber)
        subscriber.answer(count)
        self.read()

    @precondition(lambda self: self.subscriber.peer is not None)
    @rule(topic_filter=st.sampled_from(_FILTERS), wanted=st.booleans())
    def subscribe(self, topic_filter: str, wanted: bool) -> None:
        self.subscriber.toggle(topic_filter, wanted)

    @rule()
    def settle(self) -> None:
        self.server.settle()
        self.read()

    @rule(who=st.integers(0, 2))
    def connect_or_take_over(self, who: int) -> None:
        self.clients[who].connect(self.server)
        self.read()

    @rule(who=st.integers(0, 2), settles=st.booleans())
    def lose(self, who: int, settles: bool) -> None:
        """Break a connection; what was on its way is not read."""
        client = self.clients[who]
        if client.peer is not None:
            if settles:
                self.server.settle()
            if not client.peer.closed:
                client.peer.lose()
            client.peer = None
            self.read()

    @rule(problem=st.sampled_from([reason_codes.QUOTA_EXCEEDED, reason_codes.IMPLEMENTATION_SPECIFIC_ERROR]))
    def fail(self, problem: int) -> None:
        self.disk.problem = problem
        self.settle()

    @rule()
    def recover(self) -> None:
        self.disk.problem = 0
        self.settle()

    @rule(seconds=st.integers(1, 11))
    def wait(self, seconds: int) -> None:
        self.server.advance(seconds)
        self.read()

    @rule(keeps_failed=st.booleans())
    def crash(self, keeps_failed: bool) -> None:
        if self.disk.problem and keeps_failed:  # it said that it failed, and had written all the same
            self.disk.keeps_failed = True
            self.server.settle()
            self.disk.keeps_failed = False
            self.read()
        self.disk.problem = 0
        self.server = self.server.crash()
        for client in self.clients:
            client.peer = None
        self.check_what_is_restored()

    def check_what_is_restored(self) -> None:
        broker = self.server.broker
        session = broker.sessions["s"]
        for topic_filter, known in self.subscriber.filters.items():
            assert known is None or (topic_filter in session.subscriptions) == known
        assert "t/#" in session.subscriptions
        if self.publisher.acknowledged[0]:
            retained = broker.retained.get("r")
            assert retained is not None
            assert int(retained.payload) >= max(self.publisher.acknowledged[0])
        self.the_rows_are_what_is_there()

    @invariant()
    def the_rows_are_what_is_there(self) -> None:
        if not hasattr(self, "server"):
            return
        broker = self.server.broker
        if broker.committed_number < broker.last_change:
            return
        sessions = broker.sessions.values()
        assert self.disk.rows("deliveries") == sum(one.queued_count + len(one.in_flight) for one in sessions)
        assert self.disk.rows("received") == sum(len(one.received) for one in sessions)
        assert self.disk.rows("retained") == broker.retained.count
        assert broker.queued_count == sum(one.queued_count for one in sessions)
        for session in sessions:
            assert session.in_flight_bytes == sum(one.message.size() for one in session.in_flight.values())
            assert session.queued_bytes == 9 * session.queued_count

    @invariant()
    def messages_come_in_order_and_at_qos_2_once(self) -> None:
        if not hasattr(self, "server"):
            return
        for subscriber in (self.subscriber, self.standing):
            for seen in subscriber.seen.values():
                first_seen = list(dict.fromkeys(seen))
                assert first_seen == sorted(first_seen)
        assert len(set(self.subscriber.seen["t/2"])) == len(self.subscriber.seen["t/2"])
        for subscriber in (self.subscriber, self.standing):
            assert not self.publisher.refused[2].intersection(subscriber.seen["t/2"])

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        self.recover()
        for _ in range(500):
            for client in self.clients:
                if client.peer is None:
                    client.connect(self.server)
            self.server.settle()
            self.read()
            self.publisher.release()
            self.subscriber.answer(100)
            self.standing.answer(100)
            sessions = self.server.broker.sessions.values()
            if not self.publisher.open and not any(one.in_flight or one.queued_count for one in sessions):
                break
        assert not self.publisher.open
        for qos, topic in ((1, "t/1"), (2, "t/2")):
            for subscriber in (self.subscriber, self.standing):
                assert self.publisher.acknowledged[qos] <= set(subscriber.seen[topic])
        self.everything_is_given_back()

    def everything_is_given_back(self) -> None:
        self.server.settle()
        self.the_rows_are_what_is_there()
        broker = self.server.broker
        for session in broker.sessions.values():
            assert (session.queued_count, len(session.in_flight)) == (0, 0)
            # A refused one may be there after all, when its commit had not failed; its identifier is used again.
            kept = [int(message.payload) for message in session.received.values() if message is not None]
            assert self.publisher.refused[2].issuperset(kept)
        assert (broker.withheld, broker.queued_count) == ({}, 0)
        last = self.server.client("last")
        last.send(Publish("r", b"", 1, True, packet_id=1))
        self.server.settle()
        last.expect(PubAck)
        last.lose()
        for client_id in ("p", "s", "z"):
            self.server.client(client_id, V3_1_1).lose()
        self.server.settle()
        fresh = Server(_LIMITS)
        assert broker.memory.used == fresh.broker.memory.used  # the standing Session's own
        assert [self.disk.rows(table) for table in ("deliveries", "messages", "received", "retained")] == [0, 0, 0, 0]


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
