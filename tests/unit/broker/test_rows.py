"""What the store is told to keep, row by row: that is what a restart would find."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.broker.ports import (
    AWAITING_PUBACK,
    AWAITING_PUBCOMP,
    AWAITING_PUBREC,
    NEVER,
    RECEIVED,
    RETAINED,
    SESSIONS,
    SUBSCRIPTIONS,
    WILLS,
    Delivery,
    Message,
    StoredSession,
    StoredSubscription,
    StoredWill,
)
from lockgate.broker.session import NEVER_EXPIRES
from lockgate.mqtt.packets import (
    V3_1_1,
    Disconnect,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.support.rules import Rules as Authority
from tests.support.server import Server

IN_FLIGHT = "in flight"  # deliveries that were sent: client id, position → Packet Identifier, state

Key = tuple[str, tuple[str, ...]]


class Rows:
    """A server, and beside its store the rows and queues that a disk would hold."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, limits: Limits | None = None, listener: ListenerLimits | None = None
    ) -> None:
        self.server = Server(limits, listener)
        self.rows: dict[Key, object] = {}
        self.queues: dict[str, list[int]] = {}
        self.last = 0
        store = self.server.store
        for name in ("set", "delete", "append", "update", "acknowledge", "end_session"):
            monkeypatch.setattr(store, name, self._noting(getattr(self, f"_{name}"), getattr(store, name)))

    def _noting(self, note: Callable[..., None], tell: Callable[..., None]) -> Callable[..., None]:
        def both(commit: int, *arguments: object) -> None:
            assert commit >= self.last  # commit numbers never go back
            self.last = commit
            note(*arguments)
            tell(commit, *arguments)

        return both

    def _set(self, table: str, key: tuple[str, ...], value: object) -> None:
        self.rows[table, key] = value

    def _delete(self, table: str, key: tuple[str, ...]) -> None:
        self.rows = {row: value for row, value in self.rows.items() if row[0] != table or row[1][: len(key)] != key}

    def _append(self, client_id: str, delivery: Delivery) -> None:
        queue = self.queues.setdefault(client_id, [])
        assert not queue or delivery.position > queue[-1]
        queue.append(delivery.position)

    def _update(self, client_id: str, delivery: Delivery) -> None:
        self.rows[IN_FLIGHT, (client_id, str(delivery.position))] = (delivery.packet_id, delivery.state)

    def _acknowledge(self, client_id: str, position: int) -> None:
        self.queues[client_id].remove(position)
        self._delete(IN_FLIGHT, (client_id, str(position)))

    def _end_session(self, client_id: str) -> None:
        self.queues.pop(client_id, None)
        for table in (SESSIONS, SUBSCRIPTIONS, RECEIVED, IN_FLIGHT):
            self._delete(table, (client_id,))

    def session(self, client_id: str) -> tuple[int, float, str | None]:
        row = self.rows[SESSIONS, (client_id,)]
        assert isinstance(row, StoredSession)
        return row.expiry_interval, row.expires_at, row.username

    def of(self, table: str) -> dict[tuple[str, ...], object]:
        return {key: value for (name, key), value in self.rows.items() if name == table}


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    return Rows(monkeypatch)


def test_a_session_and_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(monkeypatch, Limits(session_owner=False), Authority().listener())
    peer = rows.server.client("a", session_expiry_interval=100, username="u")
    assert rows.session("a") == (100, NEVER, "u")
    rows.server.advance(5)
    peer.lose()
    assert rows.session("a") == (100, 1105.0, "u")
    back = rows.server.client("a", clean_start=False, session_expiry_interval=NEVER_EXPIRES)
    assert rows.session("a") == (NEVER_EXPIRES, NEVER, None)
    back.lose()
    assert rows.session("a") == (NEVER_EXPIRES, NEVER, None)
    rows.server.client("b").lose()
    assert set(rows.of(SESSIONS)) == {("a",)}


@pytest.mark.parametrize("ends", ["clean start", "expiry", "no interval"])
def test_a_session_that_ends_leaves_nothing(rows: Rows, ends: str) -> None:
    server = rows.server
    will = Will("w", b"gone", properties=Properties(will_delay_interval=50))
    peer = server.client("a", session_expiry_interval=20, will=will)
    peer.send(Subscribe(1, [SubscriptionRequest("t/#", 2), SubscriptionRequest("u", 1)]))
    peer.send(Publish("x", b"", 2, packet_id=7))
    publisher = server.client("p")
    for qos in (1, 2):
        publisher.publish("t/1", b"x", qos)
    peer.lose()
    publisher.publish("t/2", b"x", 1)
    assert {table for table, _key in rows.rows} == {SESSIONS, SUBSCRIPTIONS, RECEIVED, WILLS, IN_FLIGHT}
    assert len(rows.queues["a"]) == 3
    if ends == "expiry":
        server.advance(20)
    else:
        server.client("a", clean_start=ends == "clean start").lose()
    assert rows.rows == {}
    assert not rows.queues.get("a")
    assert server.broker.sessions.keys() == {"p"}
    publisher.publish("t/3", b"x", 1)
    assert not rows.queues.get("a")


def test_subscriptions(rows: Rows) -> None:
    peer = rows.server.client("a", session_expiry_interval=20)
    own = Properties(subscription_identifiers=(9,))
    peer.send(Subscribe(1, [SubscriptionRequest("t", 1, True, True), SubscriptionRequest("$share/g/t", 2)], own))
    stored = {}
    for key, row in rows.of(SUBSCRIPTIONS).items():
        assert isinstance(row, StoredSubscription)
        stored[key] = (row.qos, row.no_local, row.retain_as_published, row.identifier)
    assert stored == {("a", "t"): (1, True, True, 9), ("a", "$share/g/t"): (2, False, False, 9)}
    peer.send(Unsubscribe(2, ["t"]))
    assert set(rows.of(SUBSCRIPTIONS)) == {("a", "$share/g/t")}
    rows.server.client("b").subscribe("t")
    assert set(rows.of(SUBSCRIPTIONS)) == {("a", "$share/g/t")}


@pytest.mark.parametrize("returns", [False, True])
def test_a_will_until_it_is_published_or_given_up(rows: Rows, returns: bool) -> None:
    will = Will("w", b"gone", properties=Properties(will_delay_interval=10))
    peer = rows.server.client("a", session_expiry_interval=100, will=will)
    [row] = rows.of(WILLS).values()
    assert isinstance(row, StoredWill)
    assert (row.delay, row.message.topic, row.message.payload) == (10, "w", b"gone")
    peer.lose()
    assert set(rows.of(WILLS)) == {("a",)}
    if returns:
        rows.server.client("a", clean_start=False, session_expiry_interval=100)
    else:
        rows.server.advance(10)
    assert rows.of(WILLS) == {}


def test_a_will_is_gone_with_a_normal_disconnect(rows: Rows) -> None:
    for code, left in ((0, False), (4, False)):
        peer = rows.server.client("a", session_expiry_interval=100, will=Will("w", b"gone"))
        assert rows.of(WILLS)
        peer.send(Disconnect(code))
        assert bool(rows.of(WILLS)) is left


def test_a_qos_2_message_that_waits_for_its_release(rows: Rows) -> None:
    peer = rows.server.client("a", session_expiry_interval=100)
    peer.send(Publish("t", b"x", 2, packet_id=7))
    [(key, row)] = rows.of(RECEIVED).items()
    assert key == ("a", "7")
    assert isinstance(row, Message)
    assert row.payload == b"x"
    peer.send(PubRel(7))
    assert rows.of(RECEIVED) == {}


def test_an_identifier_that_is_refused_the_second_time_keeps_nothing(rows: Rows) -> None:
    peer = rows.server.client("a", session_expiry_interval=100)
    used = rows.server.broker.memory.used
    peer.send(Publish("t", b"x", 2, packet_id=7), Publish("t", b"y" * 50, 2, packet_id=7))
    [row] = rows.of(RECEIVED).values()
    assert isinstance(row, Message)
    assert row.payload == b"y" * 50
    assert rows.server.broker.memory.used == used + row.memory_bytes()  # and no more of the first
    before = rows.last
    peer.send(Publish("$SYS/x", b"x", 2, packet_id=7))
    assert rows.of(RECEIVED) == {}
    assert rows.server.broker.memory.used == used
    after = rows.last
    assert after > before
    peer.send(Publish("$SYS/x", b"x", 2, packet_id=7))  # there is nothing left to tell the store
    rows.server.client("b").send(Publish("t", b"x", 2, packet_id=7), Publish("$SYS/x", b"x", 2, packet_id=7))
    assert rows.last == after


def test_what_is_in_flight_and_how_far_it_is(rows: Rows) -> None:
    peer = rows.server.client("a", session_expiry_interval=100)
    peer.subscribe("t", 2)
    publisher = rows.server.client("p")
    publisher.publish("t", b"x", 1)
    publisher.publish("t", b"x", 2)
    first, second = peer.publishes()
    assert rows.of(IN_FLIGHT) == {
        ("a", "1"): (first.packet_id, AWAITING_PUBACK),
        ("a", "2"): (second.packet_id, AWAITING_PUBREC),
    }
    peer.send(PubAck(first.packet_id), PubRec(second.packet_id))
    assert rows.of(IN_FLIGHT) == {("a", "2"): (second.packet_id, AWAITING_PUBCOMP)}
    peer.send(PubComp(second.packet_id))
    assert (rows.of(IN_FLIGHT), rows.queues) == ({}, {"a": []})


def test_the_last_value_of_a_topic(rows: Rows) -> None:
    publisher = rows.server.client("p")
    for payload in (b"1", b"2"):
        publisher.publish("t", payload, 1, True)
    publisher.send(Publish("u", b"x", 1, True, packet_id=1, properties=Properties(message_expiry_interval=10)))
    kept = {key: row.payload for key, row in rows.of(RETAINED).items() if isinstance(row, Message)}
    assert kept == {("t",): b"2", ("u",): b"x"}
    rows.server.advance(100)
    assert set(rows.of(RETAINED)) == {("t",)}
    publisher.publish("t", b"", 1, True)
    assert rows.of(RETAINED) == {}


def test_what_expires_or_is_dropped_from_a_queue_leaves_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(monkeypatch, Limits(total_queued_messages=16, max_queued_messages=0, queue_head=0))
    peer = rows.server.client("a", session_expiry_interval=1000)
    peer.subscribe("t", 1)
    peer.lose()
    publisher = rows.server.client("p")
    for _ in range(20):
        publisher.publish("t", b"x", 1)
    assert len(rows.queues["a"]) == rows.server.broker.queued_count <= 16
    publisher.send(Publish("t", b"x", 1, packet_id=1, properties=Properties(message_expiry_interval=10)))
    rows.server.advance(20)
    back = rows.server.client("a", clean_start=False, session_expiry_interval=1000)
    while waiting := back.publishes():
        back.send(*(PubAck(one.packet_id) for one in waiting))
    assert rows.queues == {"a": []}


# --- commits that come one by one ---------------------------------------------------------------------------------


def test_each_commit_lets_go_what_waited_for_it() -> None:
    server = Server(slow_store=True)
    durable = server.client("s", V3_1_1, clean_start=False)
    durable.send(Subscribe(1, [SubscriptionRequest("t", 1)]))
    server.settle()
    publisher = server.client("p")
    other = server.client("o")
    base = server.broker.last_change
    publisher.send(*(Publish("t", b"x", 1, packet_id=number) for number in (1, 2, 3)))
    other.send(Publish("t", b"x", 1, packet_id=9))
    behind = list(range(base + 1, server.broker.last_change + 1))
    seen = []
    for number in behind:
        server.broker.committed(number, server.now)
        server.flush()
        seen += [
            packet.packet_id for peer in (publisher, other) for packet in peer.received() if isinstance(packet, PubAck)
        ]
        if number == behind[0]:
            assert seen == [1]
        assert len(server.broker.waiting) == (1 if len(seen) == 3 else 2 if len(seen) < 3 else 0)
    assert seen == [1, 2, 3, 9]
    publisher.send(Publish("t", b"x", 1, packet_id=4))
    server.broker.committed(behind[0], server.now)  # an older number means nothing new
    server.flush()
    assert publisher.received() == []
    server.broker.committed(server.broker.last_change, server.now)
    server.flush()
    assert publisher.one() == PubAck(4)


def test_retained_messages_go_on_when_suback_has_left() -> None:
    server = Server(slow_store=True)
    server.client("p").send(*(Publish(f"r/{number}", b"x", 0, True) for number in range(3)))
    server.settle()
    peer = server.client("s", V3_1_1, clean_start=False)
    server.settle()
    peer.send(Subscribe(1, [SubscriptionRequest("r/#", 0)]))
    assert peer.received() == []
    last = server.broker.last_change
    server.broker.committed(last - 1, server.now)
    server.flush()
    assert peer.received() == []
    server.broker.committed(last, server.now)
    assert len(peer.connection.output) == 4  # with nobody asking for more
    server.flush()
    assert [type(packet).__name__ for packet in peer.received()] == ["SubAck", "Publish", "Publish", "Publish"]


def test_a_connection_that_closes_gets_nothing_that_waited() -> None:
    server = Server(slow_store=True)
    durable = server.client("s", V3_1_1, clean_start=False)
    durable.send(Subscribe(1, [SubscriptionRequest("t", 1)]))
    server.settle()
    publisher = server.client("p")
    publisher.send(Publish("t", b"x", 1, packet_id=1))
    publisher.lose()
    output = publisher.connection.output_bytes
    server.settle()
    assert publisher.connection.output_bytes == output
    assert server.broker.waiting == []
