"""After a crash or a stop: what was committed is there, and goes on (DESIGN §6)."""

from __future__ import annotations

import pytest

from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.broker.ports import NEVER, Message, StoredQueue, StoredSession, StoredWill
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import (
    V3_1_1,
    Disconnect,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.support.disk import Disk
from tests.support.rules import Rules
from tests.support.server import Peer, Server


def a_server(limits: Limits | None = None, slow_store: bool = False, listener: ListenerLimits | None = None) -> Server:
    return Server(limits, listener, slow_store=slow_store, disk=Disk())


def durable(server: Server, topic_filter: str = "t", qos: int = 2, client_id: str = "s") -> Peer:
    peer = server.client(client_id, session_expiry_interval=1000)
    peer.send(Subscribe(1, [SubscriptionRequest(topic_filter, qos)]))
    server.settle()
    peer.expect(SubAck)
    return peer


def back(server: Server, client_id: str = "s", username: str | None = None) -> Peer:
    peer = server.client(client_id, clean_start=False, session_expiry_interval=1000, username=username)
    server.settle()
    return peer


# --- sessions and their subscriptions ---------------------------------------------------------------------------------


def test_a_session_comes_back_with_its_subscriptions_and_their_options() -> None:
    server = a_server(listener=Rules().listener())
    peer = server.client("s", session_expiry_interval=1000, username="owner")
    request = SubscriptionRequest("a/+", 1, no_local=True, retain_as_published=True)
    peer.send(Subscribe(1, [request], Properties(subscription_identifiers=(7,))))
    peer.send(Subscribe(2, [SubscriptionRequest("$share/g/b", 2)]))
    server = server.crash()
    session = server.broker.sessions["s"]
    assert (session.username, session.expiry_interval, session.durable) == ("owner", 1000, True)
    assert list(session.subscriptions) == ["a/+", "$share/g/b"]
    peer = back(server, username="owner")
    assert peer.connack.session_present
    server.client("p").publish("a/1", b"x", 1, True)
    [message] = peer.publishes()
    assert (message.qos, message.retain) == (1, True)
    assert message.properties == Properties(subscription_identifiers=(7,))
    peer.send(Publish("a/2", b"its own", 0))
    assert peer.received() == []
    server.client("p").publish("b", b"shared", 2)
    assert peer.messages() == [("b", b"shared")]


def test_a_session_without_an_interval_does_not_come_back() -> None:
    server = a_server()
    server.client("s").subscribe("t", 1)
    assert server.crash().broker.sessions == {}


def test_a_session_that_was_unsubscribed_and_ended_leaves_nothing() -> None:
    server = a_server()
    durable(server)
    server.client("p").publish("t", b"1", 1)
    server.client("s")
    server.settle()
    disk = server.disk
    assert disk is not None
    assert [disk.rows(table) for table in ("sessions", "subscriptions", "deliveries", "messages")] == [0, 0, 0, 0]
    assert server.crash().broker.memory.used == 0


def test_the_expiry_of_a_connected_session_begins_with_the_restart() -> None:
    server = a_server()
    durable(server)
    server.advance(5000)
    server = server.crash(off_seconds=5000)
    server.advance(999)
    assert "s" in server.broker.sessions
    server.advance(1)
    assert server.broker.sessions == {}
    assert server.crash().broker.sessions == {}


def test_the_expiry_of_a_session_without_its_client_goes_on() -> None:
    server = a_server()
    durable(server).lose()
    server.advance(400)
    server = server.crash(off_seconds=400)
    server.advance(199)
    assert "s" in server.broker.sessions
    server.advance(1)
    assert server.broker.sessions == {}


def test_a_session_that_expired_while_the_broker_was_down_ends_at_once() -> None:
    server = a_server()
    durable(server).lose()
    server = server.crash(off_seconds=1001)
    server.advance(0)
    assert server.broker.sessions == {}
    assert server.broker.memory.used == 0


def test_a_session_that_was_to_end_with_its_connection_has_ended() -> None:
    server = a_server()
    durable(server).lose()
    server.client("s", clean_start=False)  # with an interval of 0, and the Session there was
    server = server.crash()
    server.advance(0)
    assert server.broker.sessions == {}


def test_a_session_that_never_expires_stays() -> None:
    server = a_server()
    server.client("s", V3_1_1, clean_start=False)
    server = server.crash(off_seconds=1e6)
    server.advance(1e6)
    assert server.broker.sessions["s"].expires_at == NEVER


def test_persistent_client_expiration_goes_on_and_its_removal_counts() -> None:
    limits = Limits(persistent_client_expiration=100)
    server = a_server(limits)
    server.client("s", V3_1_1, clean_start=False).lose()
    server.client("connected", V3_1_1, clean_start=False)
    server.advance(60)
    assert server.crash(Limits()).broker.next_deadline() is None
    server = server.crash()
    server.advance(40)
    assert set(server.broker.sessions) == {"connected"}
    server.advance(60)
    assert server.broker.sessions == {}


def test_a_restored_session_says_since_when_nobody_is_there() -> None:
    server = a_server()
    durable(server)
    server = server.crash(off_seconds=10)
    assert server.broker.sessions["s"].disconnected_at == server.now


# --- messages to clients ----------------------------------------------------------------------------------------------


def test_what_waited_comes_in_order_behind_what_was_in_flight() -> None:
    server = a_server(Limits(max_inflight_messages=2, queue_head=2))
    first = durable(server)
    publisher = server.client("p")
    for number in range(9):
        publisher.publish("t", b"%d" % number, 1 + number % 2)
    in_flight = first.publishes()
    assert [message.payload for message in in_flight] == [b"0", b"1"]
    server = server.crash()
    session = server.broker.sessions["s"]
    assert (session.queued_count, server.broker.queued_count, session.queued_bytes) == (7, 7, 14)
    assert session.in_flight_bytes == 4
    assert session.head_position == 2  # what is asked of the store lies behind it
    second = back(server)
    again = second.publishes()
    assert [(one.payload, one.packet_id, one.dup) for one in again] == [
        (one.payload, one.packet_id, True) for one in in_flight
    ]
    server.client("p").publish("t", b"9", 1)
    assert take_all(server, second, again) == [b"%d" % number for number in range(10)]
    assert (session.queued_count, session.queued_bytes, server.broker.queued_count) == (0, 0, 0)


def take_all(server: Server, peer: Peer, waiting: list[Publish]) -> list[bytes]:
    seen: list[bytes] = []
    while waiting:
        for message in waiting:
            seen.append(message.payload)
            if message.qos == 1:
                peer.send(PubAck(message.packet_id))
        packets = peer.received()
        for message in waiting:
            if message.qos == 2:
                peer.send(PubRec(message.packet_id))
                server.settle()
                packets += peer.received()
                packets.remove(PubRel(message.packet_id))
                peer.send(PubComp(message.packet_id))
                packets += peer.received()
        server.settle()
        packets += peer.received()
        waiting = [packet for packet in packets if isinstance(packet, Publish)]
        assert len(waiting) == len(packets)
    return seen


def test_a_release_is_sent_again() -> None:
    server = a_server()
    peer = durable(server)
    server.client("p").publish("t", b"1", 2)
    [message] = peer.publishes()
    peer.send(PubRec(message.packet_id))
    assert peer.one() == PubRel(message.packet_id)
    server = server.crash()
    peer = back(server)
    assert peer.one() == PubRel(message.packet_id)
    peer.send(PubComp(message.packet_id))
    assert server.broker.sessions["s"].in_flight == {}
    assert back(server.crash()).received() == []


def test_an_identifier_in_use_is_not_given_to_another_message() -> None:
    server = a_server()
    peer = durable(server)
    publisher = server.client("p")
    for _ in range(3):
        publisher.publish("t", b"1", 2)
    first, second, _third = peer.publishes()
    peer.send(PubRec(second.packet_id), PubComp(second.packet_id))
    server = server.crash()
    peer = back(server)
    peer.received()
    server.client("p").publish("t", b"2", 2)
    server.client("p").publish("t", b"3", 2)
    assert [message.packet_id for message in peer.publishes()] == [second.packet_id, 4]
    assert first.packet_id == 1


def test_an_empty_queue_begins_with_the_next_message() -> None:
    server = a_server()
    durable(server)
    server = server.crash()
    server.client("p").publish("t", b"1", 1)
    queue = server.broker.sessions["s"].queue
    assert queue is not None
    assert [delivery.position for delivery in queue] == [1]


def test_a_message_that_was_not_committed_was_not_acknowledged() -> None:
    server = a_server(slow_store=True)
    durable(server).lose()
    publisher = server.client("p", V3_1_1)
    publisher.send(Publish("t", b"1", 1, packet_id=1))
    assert publisher.received() == []
    server = server.crash()
    assert back(server).received() == []


def test_a_shared_message_comes_back_for_each_and_what_it_takes_is_given_back() -> None:
    server = a_server()
    for client_id in ("s", "u"):
        durable(server, client_id=client_id, qos=1).lose()
    server.client("p").publish("t", b"x", 1)
    server = server.crash()
    for client_id in ("s", "u"):
        peer = back(server, client_id)
        [message] = peer.publishes()
        peer.send(PubAck(message.packet_id), Disconnect(0, Properties(session_expiry_interval=0)))
    assert server.broker.memory.used == 0
    assert server.disk is not None
    assert server.disk.rows("messages") == 0


def test_a_member_of_a_group_that_ends_hands_on_what_it_had_in_flight() -> None:
    server = a_server()
    durable(server, "$share/g/t", 1)
    server.client("p").publish("t", b"x", 1)
    server = server.crash()
    other = durable(server, "$share/g/t", 1, "other")
    server.client("s")  # clean
    assert other.messages() == [("t", b"x")]


def test_a_message_that_expired_while_the_broker_was_down_is_not_sent() -> None:
    server = a_server()
    durable(server).lose()
    publisher = server.client("p")
    publisher.send(Publish("t", b"1", 1, packet_id=1, properties=Properties(message_expiry_interval=10)))
    publisher.send(Publish("t", b"2", 1, packet_id=2, properties=Properties(message_expiry_interval=100)))
    server = server.crash(off_seconds=30)
    [message] = back(server).publishes()
    assert message.payload == b"2"
    assert message.properties == Properties(message_expiry_interval=70)


# --- messages from clients --------------------------------------------------------------------------------------------


def test_qos_2_goes_on_after_pubrec_and_is_routed_once() -> None:
    server = a_server()
    durable(server)
    publisher = durable(server, "nothing", client_id="p")
    publisher.send(Publish("t", b"1", 2, packet_id=7))
    assert publisher.one() == PubRec(7)
    server = server.crash()
    receiver = back(server)
    publisher = back(server, "p")
    publisher.send(Publish("t", b"1", 2, dup=True, packet_id=7))
    assert publisher.one() == PubRec(7)
    assert receiver.received() == []
    publisher.send(PubRel(7))
    assert publisher.one() == PubComp(7)
    assert receiver.messages() == [("t", b"1")]
    server = server.crash()
    publisher = back(server, "p")
    publisher.send(PubRel(7))
    assert publisher.one() == PubComp(7, reason_codes.PACKET_IDENTIFIER_NOT_FOUND)
    assert server.broker.sessions["s"].queued_count == 0


def test_a_received_message_that_expired_is_answered_and_not_routed() -> None:
    server = a_server()
    durable(server).lose()
    publisher = durable(server, "nothing", client_id="p")
    publisher.send(Publish("t", b"1", 2, packet_id=7, properties=Properties(message_expiry_interval=10)))
    server = server.crash(off_seconds=11)
    publisher = back(server, "p")
    publisher.send(PubRel(7))
    assert publisher.one() == PubComp(7)
    assert server.broker.sessions["s"].queued_count == 0


# --- retained messages ------------------------------------------------------------------------------------------------


def test_retained_messages_come_back_and_what_was_removed_does_not() -> None:
    server = a_server()
    publisher = server.client("p")
    publisher.publish("a", b"old", 1, True)
    publisher.publish("a", b"new", 0, True)
    publisher.publish("b", b"1", 1, True)
    publisher.publish("b", b"", 1, True)
    server.settle()
    server = server.crash()
    assert (server.broker.retained.count, server.broker.retained.size_bytes) == (1, 4)
    peer = server.client("s")
    peer.subscribe("#", 1)
    [message] = peer.publishes()
    assert (message.topic, message.payload, message.qos, message.retain) == ("a", b"new", 0, True)
    server.client("p").publish("a", b"", 1, True)
    peer.lose()
    server.advance(0)
    connected = server.client("p")
    connected.lose()
    for peer in server.peers.values():
        if not peer.closed:
            peer.lose()
    assert server.broker.memory.used == 0


def test_a_retained_message_that_expired_gives_its_memory_back() -> None:
    server = a_server()
    publisher = server.client("p")
    expiry = Properties(message_expiry_interval=10)
    publisher.send(Publish("a", b"x", 1, True, packet_id=1, properties=expiry))
    server = server.crash(off_seconds=11)
    peer = server.client("s")
    peer.subscribe("#")
    assert peer.received() == []
    peer.lose()
    server.advance(60)
    assert server.broker.memory.used == 0
    assert server.broker.retained.count == 0
    assert server.crash().broker.retained.count == 0


# --- Wills ------------------------------------------------------------------------------------------------------------


def listener(server: Server) -> Peer:
    peer = server.client("listener")
    peer.subscribe("will", 2)
    return peer


@pytest.mark.parametrize(("keep_alive", "seconds"), [(0, 60.0), (10, 15.0), (1, 1.5), (40, 60.0), (600, 60.0)])
def test_who_was_connected_has_one_and_a_half_keep_alives_to_return(keep_alive: int, seconds: float) -> None:
    server = a_server()
    server.client("a", keep_alive=keep_alive, will=Will("will", b"gone", 1))
    server = server.crash(off_seconds=5)
    peer = listener(server)
    server.advance(seconds - 0.01)
    assert peer.received() == []
    server.advance(0.01)
    assert peer.messages() == [("will", b"gone")]
    assert server.crash().broker.wills == {}


def test_a_will_comes_after_its_delay() -> None:
    server = a_server()
    will = Will("will", b"gone", 1, properties=Properties(will_delay_interval=100, content_type="text"))
    server.client("a", session_expiry_interval=1000, keep_alive=10, will=will)
    server = server.crash()
    peer = listener(server)
    server.advance(99)
    assert peer.received() == []
    server.advance(1)
    [message] = peer.publishes()
    assert message.properties == Properties(content_type="text")


def test_a_will_of_a_session_that_is_over_does_not_wait_for_its_delay() -> None:
    server = a_server()
    will = Will("will", b"gone", 1, properties=Properties(will_delay_interval=1000))
    server.client("a", keep_alive=10, will=will)
    server.client("b", session_expiry_interval=50, keep_alive=10, will=will)
    server = server.crash()
    peer = listener(server)
    server.advance(15)
    assert len(peer.publishes()) == 1
    server.advance(35)
    assert len(peer.publishes()) == 1


def test_a_will_that_waits_already_comes_when_it_is_due() -> None:
    server = a_server()
    will = Will("will", b"gone", 1, properties=Properties(will_delay_interval=100))
    server.client("a", session_expiry_interval=1000, will=will).lose()
    server.advance(60)
    server = server.crash()
    peer = listener(server)
    server.advance(39)
    assert peer.received() == []
    server.advance(1)
    assert len(peer.publishes()) == 1


def test_the_expiry_of_a_will_begins_when_it_is_published() -> None:
    server = a_server()
    will = Will("will", b"gone", 1, properties=Properties(message_expiry_interval=10))
    server.client("a", keep_alive=20, will=will)
    server = server.crash(off_seconds=100)
    peer = listener(server)
    server.advance(30)
    [message] = peer.publishes()
    assert message.properties == Properties(message_expiry_interval=10)


@pytest.mark.parametrize("interval", [0, 1000])
@pytest.mark.parametrize("clean_start", [False, True])
def test_a_client_that_returns_has_a_will_of_its_own(interval: int, clean_start: bool) -> None:
    server = a_server()
    server.client("a", session_expiry_interval=interval, keep_alive=10, will=Will("will", b"old", 1))
    server = server.crash()
    peer = listener(server)
    again = server.client(
        "a", clean_start=clean_start, session_expiry_interval=interval, keep_alive=10, will=Will("will", b"new", 1)
    )
    server.advance(14)
    again.lose()
    server.advance(100)
    # A Session that its client ends takes its Will along, now as ever [MQTT-3.1.3-9].
    expected = [b"old", b"new"] if clean_start and interval else [b"new"]
    assert [message.payload for message in peer.publishes()] == expected
    peer.lose()
    server.advance(1000)
    assert server.broker.memory.used == 0
    assert server.disk is not None
    assert server.disk.rows("wills") == 0


def test_a_client_that_left_in_order_has_no_will_after_a_crash() -> None:
    server = a_server()
    server.client("a", will=Will("will", b"gone", 1)).send(Disconnect())
    server.settle()
    assert server.crash().broker.wills == {}


def test_a_stop_in_order_publishes_wills_and_leaves_none() -> None:
    server = a_server()
    durable(server, "will").lose()
    delayed = Will("will", b"delayed", 1, properties=Properties(will_delay_interval=100))
    server.client("a", will=Will("will", b"connected", 1))
    server.client("b", session_expiry_interval=1000, will=delayed).lose()
    server.broker.stop(server.now)
    server.settle()
    server = server.crash()
    assert server.broker.wills == {}
    assert back(server).messages() == [("will", b"connected"), ("will", b"delayed")]


def test_a_stop_that_keeps_wills_publishes_them_after_the_next_start() -> None:
    server = a_server(Limits(keep_wills=True))
    delayed = Will("will", b"delayed", 1, properties=Properties(will_delay_interval=100))
    connected = server.client("a", keep_alive=10, will=Will("will", b"connected", 1))
    server.client("b", session_expiry_interval=1000, will=delayed).lose()
    peer = listener(server)
    server.broker.stop(server.now)
    server.settle()
    assert peer.received() == []
    connected.lose()
    peer.lose()
    assert server.broker.wills == {}
    server = server.crash()
    peer = listener(server)
    server.advance(15)
    assert peer.messages() == [("will", b"connected")]
    server.advance(85)
    assert peer.messages() == [("will", b"delayed")]


def test_a_stop_that_keeps_wills_gives_their_memory_back() -> None:
    server = a_server(Limits(keep_wills=True))
    connected = server.client("a", will=Will("will", b"x", 1))
    delayed = Will("will", b"x", 1, properties=Properties(will_delay_interval=100))
    server.client("b", session_expiry_interval=1, will=delayed).lose()
    server.broker.stop(server.now)
    connected.lose()
    server.advance(1)
    assert server.broker.memory.used == 0


def test_a_stop_with_nothing_to_say_leaves_a_connection_without_a_session_alone() -> None:
    server = a_server()
    server.peer()
    server.broker.stop(server.now)


# --- what comes from the store as it is -------------------------------------------------------------------------------


def test_everything_is_counted_as_it_comes_back_and_as_it_goes() -> None:
    server = a_server()
    receiver = durable(server)
    publisher = durable(server, "nothing", client_id="p")
    publisher.send(Publish("t", b"1", 1, packet_id=1), Publish("t", b"2", 2, packet_id=2))
    server.client("w", will=Will("will", b"gone", 1))
    assert receiver.publishes()
    server = server.crash()
    used = server.broker.memory.used
    assert used > 0
    assert used == server.crash().broker.memory.used
    server.advance(2000)
    assert server.broker.memory.used == 0
    assert server.broker.queued_count == 0


def test_what_one_receiver_has_takes_as_much_memory_as_before() -> None:
    server = a_server()
    receiver = durable(server)
    server.client("p", session_expiry_interval=100).publish("t", b"in flight", 1)
    receiver.lose()
    publisher = durable(server, "nothing", client_id="p")
    publisher.send(Publish("t", b"received", 2, packet_id=2), Publish("r", b"retained", 1, True, packet_id=3))
    publisher.lose()
    will = Will("will", b"gone", 1, properties=Properties(will_delay_interval=100, content_type="text"))
    server.client("w", session_expiry_interval=1000, will=will).lose()
    assert server.broker.memory.used == server.crash().broker.memory.used


def test_a_session_is_durable_whatever_its_interval_was() -> None:
    server = a_server()
    server.settle()
    stored = StoredSession(0, 2000.0, None)
    server.broker.store.set(server.broker.change(), "sessions", ("s",), stored)
    server.restore_session("s", stored, [], {}, StoredQueue())
    assert server.broker.sessions["s"].durable
    server.advance(999)
    assert "s" in server.broker.sessions
    server.advance(1)
    assert server.broker.sessions == {}


def test_a_will_without_a_session_is_published_and_goes() -> None:
    server = a_server()
    peer = listener(server)
    message = Message("will", b"x", 1, False, None, NEVER, "a")
    server.restore_will("a", StoredWill(message, 0, 0, server.now + 5))
    server.advance(5)
    assert peer.messages() == [("will", b"x")]
