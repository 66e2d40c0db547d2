"""The memory budget: what counts, what comes back, and who gives way in which order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.broker.limits import Limits
from lockgate.broker.memory import Memory
from lockgate.mqtt import reason_codes as rc
from lockgate.mqtt.packets import V3_1_1, V5, Connect, Disconnect, Publish, Subscribe, SubscriptionRequest, Will
from lockgate.mqtt.properties import Properties
from tests.support.rules import Rules
from tests.support.server import Peer, Server

BUDGET = 1_000_000


def absent(server: Server, client_id: str, topic_filter: str = "#") -> None:
    peer = server.client(client_id, session_expiry_interval=3600)
    peer.subscribe(topic_filter, 1)
    peer.lose()


def test_everything_that_was_held_is_given_back() -> None:
    server = Server(Limits(memory_budget=BUDGET, max_queued_messages=20, max_inflight_messages=5, queue_head=0))
    absent(server, "absent")
    slow = server.client("slow")
    slow.subscribe("t/#", 2)
    slow.stop_reading()
    half = server.client("half", session_expiry_interval=3600)
    half.subscribe("t/#", 2)
    publisher = server.client("p", will=Will("w", b"gone", 1, True))
    for number in range(100):
        publisher.send(Publish("t/a", b"x" * 1000, number % 3, number % 7 == 0, packet_id=number + 1))
    server.client("w", will=Will("w", b"late", 1, properties=Properties(will_delay_interval=10))).lose()
    publisher.send_bytes(b"\x30\xff\x7fhalf a packet")
    assert server.broker.memory.used > 50_000
    for peer in list(server.peers.values()):
        if not peer.closed:
            peer.lose()
    server.client("p").publish("t/a", b"", 1, True)
    server.client("p").publish("w", b"", 1, True)
    for client_id in ("absent", "half", "p"):
        server.client(client_id).lose()
    assert not server.broker.sessions
    assert server.broker.retained.count == 0
    assert server.broker.memory.unfinished == 0
    assert server.broker.memory.used == 0
    assert server.broker.queued_count == 0


def test_the_budget_bounds_the_queues_and_the_oldest_message_goes_first() -> None:
    server = Server(Limits(memory_budget=BUDGET, max_queued_messages=0, queue_head=0))
    absent(server, "a")
    absent(server, "b", "t")
    publisher = server.client("p")
    for number in range(1000):
        server.now += 1
        publisher.publish("t" if number % 2 else "u", number.to_bytes(2, "big") + b"x" * 1000, 1)
        assert server.broker.memory.used <= BUDGET
    kept = [int.from_bytes(payload[:2], "big") for _topic, payload in server.client("a", clean_start=False).messages()]
    assert kept  # the window; the rest follows
    assert server.broker.statistics.dropped_shed > 500


def drain(peer: Peer) -> list[tuple[str, bytes]]:
    """Take everything that a client gets, acknowledging as it goes."""
    from lockgate.mqtt.packets import PubAck

    seen: list[tuple[str, bytes]] = []
    while publishes := peer.publishes():
        seen += [(packet.topic, packet.payload) for packet in publishes]
        peer.send(*(PubAck(packet.packet_id) for packet in publishes if packet.qos))
    return seen


def test_alarms_give_way_last() -> None:
    server = Server(Limits(memory_budget=BUDGET, max_queued_messages=0, alarms=("alarm/#",), queue_head=0))
    absent(server, "a")
    publisher = server.client("p")
    for number in range(100):
        publisher.publish(f"alarm/{number}", b"!" * 500, 1)
    for number in range(2000):
        publisher.publish(f"t/{number}", b"x" * 500, 1)
    seen = [topic for topic, _payload in drain(server.client("a", clean_start=False))]
    assert [topic for topic in seen if topic.startswith("alarm/")] == [f"alarm/{number}" for number in range(100)]
    telemetry = [topic for topic in seen if topic.startswith("t/")]
    assert telemetry == [f"t/{number}" for number in range(2000 - len(telemetry), 2000)]


def test_alarms_alone_give_way_too() -> None:
    server = Server(Limits(memory_budget=BUDGET, max_queued_messages=0, alarms=("alarm/#",), queue_head=0))
    absent(server, "a")
    publisher = server.client("p")
    for number in range(2000):
        publisher.publish(f"alarm/{number}", b"!" * 500, 1)
    seen = [topic for topic, _payload in drain(server.client("a", clean_start=False))]
    assert seen == [f"alarm/{number}" for number in range(2000 - len(seen), 2000)]
    assert 300 < len(seen) < 2000


def test_qos_0_for_a_slow_reader_gives_way_first() -> None:
    server = Server(Limits(memory_budget=BUDGET, max_queued_messages=0, queue_head=0))
    absent(server, "a")
    slow = server.client("slow")
    slow.subscribe("#", 0)
    slow.stop_reading()
    publisher = server.client("p")
    for _number in range(100):
        publisher.publish("live", b"x" * 1000, 0)
    assert len(slow.connection.late or ()) == 100
    for _number in range(350):
        publisher.publish("t", b"x" * 1000, 1)
    assert server.broker.statistics.dropped_shed > 50
    assert server.broker.sessions["a"].queued_count == 450 - 100


def test_an_unread_client_gets_little_when_memory_runs_short() -> None:
    server = Server(Limits(memory_budget=BUDGET, max_queued_messages=0, queue_head=0))
    absent(server, "a", "t")
    publisher = server.client("p")
    while server.broker.memory.used < BUDGET * 4 // 5:
        publisher.publish("t", b"x" * 1000, 1)
    slow = server.client("slow")
    slow.subscribe("live", 0)
    slow.stop_reading()
    for _number in range(100):
        publisher.publish("live", b"x" * 1000, 0)
    assert slow.connection.late_bytes <= 65_536


def test_when_nothing_may_give_way_what_comes_is_refused() -> None:
    server = Server(Limits(memory_budget=BUDGET, max_queued_messages=0, queue_head=0))
    publisher = server.client("p")
    number = 0
    while not server.broker.memory.is_exhausted():
        number += 1
        publisher.publish(f"r/{number}", b"x" * 1000, 1, True)
        assert number < 2000
    publisher.send(Publish("r/more", b"x", 1, True, packet_id=5))
    [answer] = publisher.received()
    assert getattr(answer, "reason_code", 0) == rc.QUOTA_EXCEEDED
    older = server.peer(V3_1_1)
    older.send(Connect("new", V3_1_1))
    assert older.closed
    publisher.send(Subscribe(1, [SubscriptionRequest("a", 0)]))
    [answer] = publisher.received()
    assert getattr(answer, "reason_codes", 0) == [rc.QUOTA_EXCEEDED]
    for place in range(1, 200):
        publisher.publish(f"r/{place}", b"", 1, True)
    server.client("new")


def test_unfinished_packets_have_a_part_of_the_budget_only() -> None:
    server = Server(Limits(memory_budget=BUDGET))
    peers = [server.client(f"c{number}") for number in range(4)]
    for peer in peers:
        peer.send_bytes(b"\x30\x80\x80\x40" + b"\x00" * 80_000)
    assert [peer.closed for peer in peers] == [False, False, False, True]
    assert peers[3].received() == [Disconnect(rc.QUOTA_EXCEEDED)]
    assert server.broker.memory.unfinished < BUDGET // 4


def test_without_a_budget_nothing_gives_way() -> None:
    server = Server(Limits(max_queued_messages=0, queue_head=0))
    absent(server, "a")
    publisher = server.client("p")
    for _number in range(500):
        publisher.publish("t", b"x" * 10_000, 1)
    assert server.broker.sessions["a"].queued_count == 500


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_a_will_is_held_until_it_is_published_or_given_up(version: int) -> None:
    server = Server()
    before = server.broker.memory.used
    peer = server.client("c", version, will=Will("w", b"x" * 10_000))
    assert server.broker.memory.used > before + 10_000
    peer.send(Disconnect())
    assert server.broker.memory.used == before
    server.client("c", version, will=Will("w", b"x" * 10_000)).lose()
    assert server.broker.memory.used == before


_ACTION = st.tuples(st.sampled_from(["publish", "lose", "connect", "stop", "read", "later"]), st.integers(0, 2))


@settings(max_examples=200, deadline=None)
@given(st.lists(_ACTION, max_size=40))
def test_the_sum_is_right_whatever_happens(actions: list[tuple[str, int]]) -> None:
    server = Server(Limits(memory_budget=60_000, max_queued_messages=10, max_inflight_messages=2, queue_head=0))
    names = ["a", "b", "c"]
    peers: dict[str, Peer] = {}
    for action, which in actions:
        peer = peers.get(names[which])
        if action == "connect":
            new = server.peer()
            will = Will("t/w", b"w" * 500, which, properties=Properties(will_delay_interval=5))
            properties = Properties(session_expiry_interval=[0, 10, 100][which])
            new.send(Connect(names[which], clean_start=which == 1, will=will, properties=properties))
            if not new.closed:
                peers[names[which]] = new
                new.send(Subscribe(1, [SubscriptionRequest("t/#", which)]))
        elif action == "later":
            server.advance(7)
        elif peer is None or peer.closed:
            continue
        elif action == "publish":
            peer.send(Publish(f"t/{which}", b"x" * 2000, which, which == 1, packet_id=which))
        elif action == "lose":
            peer.lose()
        elif action == "stop":
            peer.stop_reading()
        else:
            peer.read_again()
        assert server.broker.memory.used >= 0
    for peer in list(server.peers.values()):
        if not peer.closed:
            peer.lose()
    server.advance(1000)
    server.broker.limits = Limits()
    last = server.client("last")
    for topic in ("t/0", "t/1", "t/2", "t/w"):
        last.publish(topic, b"", 0, True)
    last.lose()
    assert not server.broker.sessions
    assert (server.broker.memory.used, server.broker.queued_count) == (0, 0)


def test_subscriptions_and_sessions_end_at_the_budget() -> None:
    server = Server(Limits(memory_budget=BUDGET))
    client = server.client("c")
    client.send(Subscribe(1, [SubscriptionRequest(f"a/{number}", 0) for number in range(5000)]))
    [answer] = client.received()
    codes = getattr(answer, "reason_codes", [])
    assert codes[0] == 0
    assert codes[-1] == rc.QUOTA_EXCEEDED
    assert server.broker.memory.used < BUDGET + 10_000
    client.lose()
    for number in range(5000):
        peer = server.peer()
        peer.send(Connect(f"c{number}", properties=Properties(session_expiry_interval=100)))
        if peer.closed:
            break
        peer.lose()
    assert peer.closed
    assert server.broker.memory.used < BUDGET + 10_000


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_messages_that_wait_for_pubrel_end_at_the_budget(version: int) -> None:
    server = Server(Limits(memory_budget=BUDGET))
    client = server.client("c", version)
    for number in range(1, 50):
        if not client.closed:
            client.send(Publish("t", b"x" * 50_000, 2, packet_id=number))
    assert server.broker.memory.used < BUDGET + 200_000
    answers = [getattr(packet, "reason_code", -1) for packet in client.received()]
    if version == V5:  # it may try again
        assert answers[-1] == rc.QUOTA_EXCEEDED
        assert not client.closed
    else:  # it must not believe that we have the message
        assert client.closed
        assert answers == [0] * len(answers)


def test_who_does_not_read_is_closed_when_the_budget_is_spent() -> None:
    server = Server(Limits(memory_budget=BUDGET))
    slow, quick = server.client("slow"), server.client("quick")
    slow.connection.count_unsent(BUDGET // 2)
    quick.connection.count_unsent(10_000)
    assert not slow.connection.is_closing
    slow.connection.count_unsent(BUDGET)
    quick.connection.count_unsent(20_000)
    server.flush()
    assert slow.closed
    assert not quick.closed
    assert "does not read" in server.log.lines[-1]
    assert server.broker.memory.used < 100_000


LONG = "x" * 40_000


def test_the_name_of_an_owner_counts_and_is_given_back() -> None:
    server = Server(listener=Rules().listener())
    client = server.client("c", username=LONG)
    assert server.broker.memory.used >= 40_000
    client.lose()
    assert server.broker.memory.used == 0


@pytest.mark.parametrize(
    "name", [LONG, LONG + "\N{GRINNING FACE}", "/".join(["x"] * 200)], ids=["long", "wide", "deep"]
)
def test_names_that_a_peer_chose_count_and_are_given_back(name: str) -> None:
    server = Server()
    least = 40_000 if name.isascii() else 160_000
    used = server.broker.memory.used

    def grown() -> int:
        nonlocal used
        before, used = used, server.broker.memory.used
        return used - before

    client = server.client(name)
    assert grown() >= (least if not name.count("/") else 0)
    client.send(Subscribe(1, [SubscriptionRequest(name, 0)]))
    assert grown() >= least
    client.send(Publish(name, b"x", 0, properties=Properties(topic_alias=1)))
    assert grown() >= (least if not name.count("/") else 399)
    client.send(Publish("t", b"x", 0, properties=Properties(topic_alias=1)))
    client.send(Publish(name, b"x", 0, properties=Properties(topic_alias=1)))
    assert grown() == 0
    client.publish(name, b"x", 0, True)
    assert grown() >= least
    client.publish(name, b"", 0, True)
    other = server.client("other", topic_alias_maximum=1)
    other.subscribe(name)
    client.publish(name)
    for peer in (client, other):
        peer.lose()
    assert server.broker.memory.used == 0


def test_the_oldest_of_all_queues_give_way_and_alarms_within_them_stay() -> None:
    server = Server(Limits(total_queued_messages=64, max_queued_messages=0, alarms=("alarm",), queue_head=0))
    absent(server, "a", "a")
    absent(server, "b", "b")
    absent(server, "c", "alarm")
    publisher = server.client("p")
    for number in range(200):
        server.now += 1
        publisher.publish(("a", "b", "b", "alarm" if number < 20 else "a")[number % 4], bytes((number,)), 1)
    kept = [payload[0] for name in ("a", "b", "c") for _topic, payload in drain(server.client(name, clean_start=False))]
    alarms = [3, 7, 11, 15, 19]
    assert 60 < len(kept) <= 64
    assert sorted(kept) == alarms + list(range(200 - len(kept) + len(alarms), 200))


def test_a_budget_that_is_spent_is_not_exhausted_before_anybody_was_asked_to_give_way() -> None:
    memory = Memory(1000)
    memory.used = 2000
    assert memory.is_spent()
    assert not memory.is_exhausted()


def test_a_message_too_large_for_its_receiver_is_not_held() -> None:
    server = Server()
    peer = server.client("c", session_expiry_interval=60, maximum_packet_size=50)
    peer.subscribe("t", 1)
    publisher = server.client("p")
    used = server.broker.memory.used
    publisher.publish("t", b"x" * 100, 1)
    assert server.broker.statistics.dropped_too_large == 1
    assert server.broker.memory.used == used


def test_the_topic_behind_an_alias_towards_a_client_is_counted() -> None:
    server = Server()
    peer = server.client("c", topic_alias_maximum=1)
    peer.subscribe("#")
    publisher = server.client("p")
    used = server.broker.memory.used
    for _ in range(2):
        publisher.publish("some/topic")
    assert server.broker.memory.used == used + len("some/topic")


def test_a_will_that_its_own_client_would_hear_is_held_by_nobody() -> None:
    server = Server()
    peer = server.client("c", will=Will("w", b"gone", 1))
    peer.subscribe("w", 1)
    peer.subscribe("$share/g/w", 1)
    peer.lose()
    assert (server.broker.memory.used, server.broker.queued_count) == (0, 0)


@pytest.mark.parametrize(("payload", "retained"), [(b"y" * 500, True), (b"y" * 501, False), (b"y" * 499, True)])
def test_a_retained_message_gives_place_to_one_no_larger_when_all_is_spent(payload: bytes, retained: bool) -> None:
    server = Server(Limits(memory_budget=200_000))
    publisher = server.client("p")
    for number in range(100, 400):
        publisher.publish(f"r/{number}", b"x" * 500, 0, True)
    assert server.broker.memory.is_exhausted()
    publisher.publish("r/100", payload, 0, True)
    found = server.broker.retained.get("r/100")
    assert found is not None
    assert (found.payload == payload) is retained
