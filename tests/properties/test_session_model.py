"""One durable subscriber that comes and goes: whatever the order of events, every message arrives (MQTT 5 §4.3, §4.4).

The store answers late. The subscriber acknowledges in any order, loses its connection at any time, and returns with
another Receive Maximum.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lockgate.broker.limits import Limits
from lockgate.mqtt.packets import V5, PubAck, PubComp, Publish, PubRec, PubRel, SubAck, Subscribe, SubscriptionRequest
from tests.support.server import Peer, Server

_LIMITS = Limits(max_inflight_messages=6, max_inflight_bytes=24, max_queued_messages=0, queue_head=4)
_RECEIVE_MAXIMUM = st.integers(1, 8)


class DurableSubscriber(RuleBasedStateMachine):
    """Messages are numbered for each QoS; `seen` is what the application behind the subscriber was handed."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server(_LIMITS, slow_store=True)
        self.subscriber: Peer | None = None
        self.receive_maximum = 0
        self.sent: dict[int, list[int]] = {1: [], 2: []}
        self.seen: dict[int, list[int]] = {1: [], 2: []}
        self.held_identifiers: set[int] = set()  # QoS 2, between PUBLISH and PUBREL: part of the client's Session
        self.unanswered: dict[type, list[int]] = {PubAck: [], PubRec: [], PubComp: []}
        self.open: set[int] = set()  # sent on this connection and not acknowledged in full
        self.publisher = self.server.client("p")
        self.connect(8, True)
        assert self.subscriber is not None
        self.subscriber.send(Subscribe(1, [SubscriptionRequest("t/#", 2)]))
        self.server.settle()
        self.subscriber.expect(SubAck)

    def connect(self, receive_maximum: int, first: bool = False) -> None:
        self.receive_maximum = min(receive_maximum, _LIMITS.max_inflight_messages)
        self.unanswered = {PubAck: [], PubRec: [], PubComp: []}
        self.open = set()
        self.subscriber = self.server.client(
            "s", V5, clean_start=first, session_expiry_interval=1000, receive_maximum=receive_maximum
        )
        assert self.subscriber.connack.session_present is not first
        self.read()

    def read(self) -> None:
        if self.subscriber is None:
            return
        for packet in self.subscriber.received():
            if isinstance(packet, Publish):
                number = int(packet.payload)
                self.open.add(packet.packet_id)
                assert len(self.open) <= self.receive_maximum  # [MQTT-3.3.4-9]
                if packet.qos == 1:
                    self.seen[1].append(number)
                    self.unanswered[PubAck].append(packet.packet_id)
                    continue
                if packet.packet_id not in self.held_identifiers:
                    self.held_identifiers.add(packet.packet_id)
                    self.seen[2].append(number)
                self.unanswered[PubRec].append(packet.packet_id)
            else:
                assert isinstance(packet, PubRel), packet
                assert packet.reason_code == 0, packet
                self.held_identifiers.discard(packet.packet_id)
                self.unanswered[PubComp].append(packet.packet_id)

    def acknowledge(self, kind: type, place: int) -> None:
        assert self.subscriber is not None
        waiting = self.unanswered[kind]
        packet_id = waiting.pop(place % len(waiting))
        if kind is not PubRec:
            self.open.discard(packet_id)
        self.subscriber.send(kind(packet_id))
        self.read()

    @rule(qos=st.sampled_from([1, 2]), count=st.integers(1, 12))
    def publish(self, qos: int, count: int) -> None:
        for _ in range(count):
            number = len(self.sent[qos])
            self.sent[qos].append(number)
            self.publisher.send(Publish(f"t/{qos}", b"%06d" % number, qos, packet_id=1))
            if qos == 2:
                self.publisher.send(PubRel(1))
        self.read()

    @rule()
    def settle(self) -> None:
        self.server.settle()
        self.read()

    @precondition(lambda self: self.subscriber is not None)
    @rule()
    def lose(self) -> None:
        assert self.subscriber is not None
        self.subscriber.lose()
        self.subscriber = None

    @rule(receive_maximum=_RECEIVE_MAXIMUM)
    def return_or_take_over(self, receive_maximum: int) -> None:
        self.connect(receive_maximum)

    @precondition(lambda self: self.subscriber is not None)
    @rule(kind=st.sampled_from([PubAck, PubRec, PubComp]), place=st.integers(0, 7), times=st.integers(1, 6))
    def answer(self, kind: type, place: int, times: int) -> None:
        for _ in range(times):
            if self.unanswered[kind]:
                self.acknowledge(kind, place)

    @invariant()
    def the_counters_are_those_of_what_is_there(self) -> None:
        session = self.server.broker.sessions["s"]
        assert session.in_flight_bytes == sum(delivery.message.size() for delivery in session.in_flight.values())
        kept = sum(len(numbers) for numbers in self.server.store._queues.values())
        assert session.queued_count + len(session.in_flight) == kept
        assert session.queued_count >= len(session.queue or ())

    @invariant()
    def every_message_is_first_seen_in_its_turn(self) -> None:
        for qos, seen in self.seen.items():
            first_seen = list(dict.fromkeys(seen))
            assert first_seen == self.sent[qos][: len(first_seen)]
        assert len(set(self.seen[2])) == len(self.seen[2])  # exactly once

    def teardown(self) -> None:
        self.connect(6)
        while True:
            self.server.settle()
            self.read()
            kinds = [kind for kind, waiting in self.unanswered.items() if waiting]
            if not kinds:
                break
            self.acknowledge(kinds[0], 0)
        assert {qos: sorted(set(seen)) for qos, seen in self.seen.items()} == self.sent
        session = self.server.broker.sessions["s"]
        assert (session.in_flight, session.in_flight_bytes) == ({}, 0)
        assert (session.queued_count, session.queued_bytes, len(session.queue or ())) == (0, 0, 0)


TestDurableSubscriber = DurableSubscriber.TestCase
TestDurableSubscriber.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
