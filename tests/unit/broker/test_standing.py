"""Standing Sessions: they exist before their client, and at their limit publishers wait (DESIGN §6)."""

from __future__ import annotations

import pytest

from lockgate.broker.limits import Limits, StandingSession
from lockgate.broker.session import NEVER_EXPIRES
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    Disconnect,
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
    Will,
)
from tests.support.disk import Disk
from tests.support.rules import Rules
from tests.support.server import Peer, Server


def standing(*sessions: StandingSession, **limits: int) -> Limits:
    return Limits(standing_sessions=sessions, **limits)  # type: ignore[arg-type]


S = StandingSession("s", ("s/#",), 1, 20)  # a message of ten bytes fits, and what comes when one waits is withheld
U = StandingSession("u", ("u/#",), 1, 20)


def ten(topic: str) -> bytes:
    return b"x" * (10 - len(topic))


def fill(publisher: Peer, topic: str) -> None:
    """Let 30 bytes wait, 10 more than the limit; the last acknowledgement is withheld."""
    for packet_id in (101, 102, 103):
        publisher.send(Publish(topic, ten(topic), 1, packet_id=packet_id))
    acknowledged = [packet.packet_id for packet in publisher.received() if isinstance(packet, PubAck)]
    assert acknowledged == [101, 102]


def take(client: Peer, count: int) -> None:
    """Acknowledge so many messages, as they come."""
    waiting: list[Publish] = []
    for _ in range(count):
        waiting = waiting or client.publishes()
        client.send(PubAck(waiting.pop(0).packet_id))


def test_what_comes_before_the_first_connect_waits() -> None:
    server = Server(standing(StandingSession("s", ("a/#", "b"), 2)))
    publisher = server.client("p")
    publisher.publish("a/1", b"1", 1, True)
    publisher.publish("b", b"2", 2)
    client = server.client("s", V5, clean_start=False)
    assert client.connack.session_present
    first, second = client.publishes()
    assert (first.topic, first.qos, first.dup) == ("a/1", 1, False)
    assert (first.retain, first.properties) == (False, None)
    assert (second.topic, second.qos) == ("b", 2)


def test_it_has_qos_1_unless_another_is_declared() -> None:
    server = Server(standing(StandingSession("s", ("s",))))
    server.client("p").publish("s", b"1", 2)
    [message] = server.client("s", V5, clean_start=False).publishes()
    assert message.qos == 1


def test_it_is_behind_no_limit_of_messages() -> None:
    limits = standing(StandingSession("s", ("s",)), max_queued_messages=2, max_queued_bytes=3, total_queued_messages=3)
    server = Server(limits)
    publisher = server.client("p")
    for _ in range(10):
        publisher.publish("s", b"12", 1)
    assert server.broker.sessions["s"].queued_count == 10


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_at_its_limit_puback_is_withheld_until_less_waits(version: int) -> None:
    server = Server(standing(S, max_inflight_messages=1))
    publisher = server.client("p", version)
    fill(publisher, "s/1")
    publisher.send(Publish("nobody", b"", 1, packet_id=1), PingReq())  # in the order of arrival
    assert publisher.received() == [PingResp()]
    client = server.client("s", V3_1_1, clean_start=False)
    assert [type(packet) for packet in publisher.received()] == [PubAck, PubAck]  # one is in flight
    take(client, 3)
    assert publisher.received() == []
    assert server.broker.withheld == {}


def test_everybody_waits_until_no_more_waits_than_may() -> None:
    server = Server(standing(S, max_inflight_messages=1))
    first, second = server.client("p"), server.client("q")
    fill(first, "s/1")
    second.send(Publish("s/1", ten("s/1"), 1, packet_id=1))
    client = server.client("s", V3_1_1, clean_start=False)  # 30 bytes wait beside the one in flight
    assert (first.received(), second.received()) == ([], [])
    take(client, 1)
    assert (first.received(), second.received()) == ([PubAck(103)], [PubAck(1)])


def test_the_smallest_limit_is_one() -> None:
    publisher = Server(standing(StandingSession("s", ("s",), 1, 1))).client("p")
    publisher.send(Publish("s", b"", 1, packet_id=1), Publish("s", b"", 1, packet_id=2))
    assert publisher.received() == []


def test_pubcomp_is_withheld_where_puback_would_be() -> None:
    server = Server(standing(S, max_inflight_messages=1))
    publisher = server.client("p", V3_1_1)
    for packet_id in (1, 2, 3):
        publisher.send(Publish("s/1", ten("s/1"), 2, packet_id=packet_id))
        assert publisher.one() == PubRec(packet_id)
    for packet_id in (1, 2, 3):
        publisher.send(PubRel(packet_id))
    assert publisher.received() == [PubComp(1), PubComp(2)]
    server.client("s", V3_1_1, clean_start=False)
    assert publisher.received() == [PubComp(3)]


def test_without_a_limit_nobody_waits() -> None:
    server = Server(standing(StandingSession("s", ("s/#",))))
    publisher = server.client("p")
    for _ in range(100):
        publisher.publish("s/1", b"x" * 1000, 1)


def test_others_and_other_topics_do_not_wait() -> None:
    server = Server(standing(S))
    fill(server.client("p"), "s/1")
    other = server.client("q")
    other.publish("nobody", b"", 1)
    other.publish("s/1", b"", 0)


def test_a_will_for_a_full_standing_session_withholds_nothing_from_others() -> None:
    server = Server(standing(S))
    fill(server.client("p"), "s/1")
    server.client("dies", will=Will("s/will", b"gone", 1)).lose()
    server.client("q").publish("nobody", b"", 1)


def test_what_its_client_hands_on_withholds_nothing_from_others() -> None:
    server = Server(standing(StandingSession("s", ("$share/g/s",), 1, 2)))
    other = server.client("other", session_expiry_interval=100, receive_maximum=1)
    other.send(Subscribe(1, [SubscriptionRequest("$share/g/s", 1)]))
    publisher = server.client("p")
    for _ in range(4):  # two for each, and its limit is reached by one more
        publisher.publish("s", b"", 1)
    server.client("other")  # clean: what it had goes to the standing Session
    server.client("q").publish("nobody", b"", 1)


def test_whoever_waits_for_two_waits_for_both() -> None:
    server = Server(standing(S, U, max_inflight_messages=1))
    publisher = server.client("p")
    fill(publisher, "s/1")
    publisher.send(*(Publish("u/1", ten("u/1"), 1, packet_id=packet_id) for packet_id in (1, 2, 3)))
    take(server.client("s", V3_1_1, clean_start=False), 3)
    assert publisher.received() == []
    server.client("u", V3_1_1, clean_start=False)
    assert publisher.received() == [PubAck(103), PubAck(1), PubAck(2), PubAck(3)]


def test_a_message_for_two_that_are_full_waits_for_both() -> None:
    both = (StandingSession("s", ("t",), 1, 5), StandingSession("u", ("t",), 1, 5))
    server = Server(standing(*both, max_inflight_messages=1))
    publisher = server.client("p")
    publisher.send(Publish("t", b"large", 1, packet_id=1))
    server.client("u", V3_1_1, clean_start=False)
    assert publisher.received() == []
    server.client("s", V3_1_1, clean_start=False)
    assert publisher.one() == PubAck(1)


def test_a_message_that_is_refused_is_not_withheld_for_the_one_before_it() -> None:
    server = Server(standing(S))
    server.client("dies", will=Will("s/will", b"x" * 30, 1)).lose()
    client = server.client("q")
    client.send(Publish("$SYS/x", b"", 1, packet_id=1), Publish("s", b"", 2, packet_id=2))
    assert [type(packet) for packet in client.received()] == [PubAck, PubRec]


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_publishers_go_on_when_its_client_starts_clean(version: int) -> None:
    server = Server(standing(S))
    publisher = server.client("p")
    fill(publisher, "s/1")
    server.client("s", version, clean_start=True)
    assert publisher.one() == PubAck(103)
    assert server.broker.withheld == {}


def test_publishers_go_on_when_its_client_ends_it() -> None:
    server = Server(standing(S, max_inflight_messages=1))
    publisher = server.client("p", V3_1_1)
    client = server.client("s", V5, clean_start=False)
    for packet_id in (1, 2, 3, 4):
        publisher.send(Publish("s/1", ten("s/1"), 1, packet_id=packet_id))
    assert publisher.received() == [PubAck(1), PubAck(2), PubAck(3)]
    client.send(Disconnect())  # its Session Expiry Interval is 0
    assert publisher.one() == PubAck(4)


def test_a_withheld_connection_that_closes_is_forgotten() -> None:
    server = Server(standing(S))
    used = server.broker.memory.used
    for _ in range(3):
        publisher = server.client("p")
        publisher.send(*(Publish("s/1", ten("s/1"), 1, packet_id=packet_id) for packet_id in (1, 2, 3)))
        publisher.lose()
    assert all(not connections for connections in server.broker.withheld.values())
    server.client("s", V5).lose()
    assert server.broker.memory.used == used


def test_a_closing_connection_gets_no_acknowledgement_behind_disconnect() -> None:
    server = Server(standing(S))
    publisher = server.client("p")
    fill(publisher, "s/1")
    publisher.connection.receive(encode(Disconnect(), V5), server.now)  # its socket is not closed yet
    server.client("s", V3_1_1, clean_start=False)
    assert publisher.received() == []


def test_a_client_may_wait_for_itself() -> None:
    server = Server(standing(S, max_inflight_messages=1))
    client = server.client("s", V3_1_1, clean_start=False)
    for packet_id in (1, 2, 3, 4):
        client.send(Publish("s/1", ten("s/1"), 1, packet_id=packet_id))
    first, *acknowledged = client.received()
    assert isinstance(first, Publish)
    assert acknowledged == [PubAck(1), PubAck(2), PubAck(3)]
    client.send(PubAck(first.packet_id))
    assert PubAck(4) in client.received()


def test_a_withheld_client_is_not_read_beyond_a_bound() -> None:
    server = Server(standing(S, withheld=3))
    publisher = server.client("p", V3_1_1)
    fill(publisher, "s/1")
    publisher.send(PingReq())
    publisher.send(Publish("t", b"", 1, packet_id=1), Publish("t", b"", 1, packet_id=2))
    assert publisher.connection.wants_input
    publisher.send(Publish("t", b"", 1, packet_id=3))
    assert not publisher.connection.wants_input
    server.client("s", V3_1_1, clean_start=False)
    assert publisher.connection.wants_input


# --- what its client does ---------------------------------------------------------------------------------------------


def test_it_stands_again_when_its_client_leaves_it_without_an_interval() -> None:
    server = Server(standing(S))
    server.client("s", V5, clean_start=False).lose()
    server.client("p").publish("s/1", b"kept", 1)
    back = server.client("s", V5, clean_start=False)
    assert back.connack.session_present
    assert back.messages() == [("s/1", b"kept")]


def test_it_stands_again_when_it_expires() -> None:
    server = Server(standing(S))
    server.client("s", V5, clean_start=False, session_expiry_interval=10).lose()
    server.client("p").publish("s/1", b"lost with it", 1)
    server.advance(11)
    assert server.broker.sessions["s"].expires_at == 0
    server.client("p").publish("s/1", b"kept", 1)
    assert server.client("s", V5, clean_start=False).messages() == [("s/1", b"kept")]


def test_whoever_takes_over_a_client_without_an_interval_gets_the_session_that_stands() -> None:
    server = Server(standing(S))
    first = server.client("s", V5, clean_start=False)
    second = server.client("s", V5, clean_start=False)
    assert first.closed
    assert second.connack.session_present
    server.client("p").publish("s/1", b"x", 1)
    assert second.messages() == [("s/1", b"x")]


@pytest.mark.parametrize("max_bytes", [0, 20])
def test_it_does_not_expire_with_the_sessions_that_never_do(max_bytes: int) -> None:
    server = Server(standing(StandingSession("s", ("s/1",), 1, max_bytes), persistent_client_expiration=100))
    server.client("s", V3_1_1, clean_start=False).lose()
    assert server.broker.sessions["s"].watched_at == float("inf")
    server.client("p").publish("s/1", b"kept", 1)
    server.advance(1000)
    assert server.client("s", V3_1_1, clean_start=False).messages() == [("s/1", b"kept")]


def test_a_client_that_starts_clean_has_no_subscription_and_the_same_bounds() -> None:
    server = Server(standing(S, max_queued_messages=1))
    client = server.client("s", V5, session_expiry_interval=100)
    assert not client.connack.session_present
    assert server.broker.sessions["s"].subscriptions == {}
    client.subscribe("s/#", 1)
    client.lose()
    publisher = server.client("p")
    fill(publisher, "s/1")
    assert server.broker.sessions["s"].queued_count == 3


def test_its_client_may_unsubscribe_until_the_broker_starts_again() -> None:
    server = Server(standing(StandingSession("s", ("a", "b"))), disk=Disk())
    client = server.client("s", V3_1_1, clean_start=False)
    client.send(Unsubscribe(1, ["a"]), Subscribe(2, [SubscriptionRequest("c", 2)]))
    assert client.received() == [UnsubAck(1, []), SubAck(2, [2])]
    client.lose()
    assert set(server.broker.sessions["s"].subscriptions) == {"b", "c"}
    assert set(server.crash().broker.sessions["s"].subscriptions) == {"a", "b", "c"}


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_it_keeps_what_it_holds_and_its_bounds() -> None:
    server = Server(standing(S, max_queued_messages=1), disk=Disk())
    publisher = server.client("p")
    publisher.publish("s/1", b"1", 1)
    publisher.publish("s/1", b"2", 1)
    server = server.crash()
    session = server.broker.sessions["s"]
    assert (session.expiry_interval, session.queued_count, session.queued_bytes) == (NEVER_EXPIRES, 2, 8)
    publisher = server.client("p")
    publisher.publish("s/1", b"3", 1)
    publisher.send(Publish("s/1", b"much more", 1, packet_id=1))
    assert publisher.received() == []
    client = server.client("s", V3_1_1, clean_start=False)
    assert [payload for _topic, payload in client.messages()] == [b"1", b"2", b"3", b"much more"]
    assert publisher.one() == PubAck(1)


def test_it_is_stored_as_one_that_never_expires() -> None:
    server = Server(standing(S), disk=Disk())
    server.client("s", V5, clean_start=False)  # with an interval of 0
    server = server.crash()
    server.settle()
    server = server.crash(Limits())
    server.advance(1000)
    assert "s" in server.broker.sessions


def test_it_says_since_when_nobody_is_there() -> None:
    server = Server(standing(S))
    assert server.broker.sessions["s"].disconnected_at == server.now


def test_a_late_answer_for_what_its_client_ended_leaves_no_gap() -> None:
    server = Server(standing(StandingSession("s", ("s",)), queue_head=2, max_inflight_messages=1), slow_store=True)
    publisher = server.client("p")
    publisher.send(*(Publish("s", b"old", 1, packet_id=packet_id) for packet_id in range(1, 9)))
    server.settle()
    client = server.client("s", V5, clean_start=False)
    for _ in range(4):
        server.settle()
        client.send(PubAck(client.publishes()[0].packet_id))
    assert server.broker.sessions["s"].asked_position  # the store has not answered
    client.send(Disconnect())
    publisher.send(*(Publish("s", b"%d" % number, 1, packet_id=10 + number) for number in range(8)))
    server.settle()
    client = server.client("s", V3_1_1, clean_start=False)
    seen: list[bytes] = []
    for _ in range(8):
        [message] = client.publishes()
        seen.append(message.payload)
        client.send(PubAck(message.packet_id))
        server.settle()
    assert seen == [b"%d" % number for number in range(8)]


def test_its_client_was_there_without_an_interval_when_the_broker_died() -> None:
    server = Server(standing(S), disk=Disk())
    server.client("s", V5, clean_start=False)
    server = server.crash()
    server.client("p").publish("s/1", b"kept", 1)
    server.advance(1000)
    assert server.client("s", V5, clean_start=False).messages() == [("s/1", b"kept")]


def test_it_keeps_its_owner() -> None:
    server = Server(standing(S), Rules().listener(), disk=Disk())
    server.client("s", V3_1_1, clean_start=False, username="owner").lose()
    assert server.crash().broker.sessions["s"].username == "owner"


def test_one_that_is_declared_no_more_is_a_session_like_any_other() -> None:
    server = Server(standing(S), disk=Disk())
    server.client("p").publish("s/1", b"1", 1)
    server = server.crash(Limits(max_queued_messages=2))
    for _ in range(3):
        server.client("p").publish("s/1", b"2", 1)
    assert server.broker.sessions["s"].queued_count == 2


def test_what_stands_is_in_the_store_before_anything_else() -> None:
    disk = Disk()
    server = Server(standing(S), disk=disk)
    server.settle()
    assert disk.rows("sessions") == 1
    assert disk.rows("subscriptions") == 1
    assert server.broker.memory.used == server.crash().broker.memory.used


def test_what_a_damaged_store_has_lost_is_waited_for_by_nobody() -> None:
    server = Server(standing(S, queue_head=1, max_inflight_messages=1), disk=Disk(), slow_store=True)
    server.settle()
    publisher = server.client("p", V3_1_1)
    for packet_id in (1, 2, 3, 4):
        publisher.send(Publish("s/1", ten("s/1"), 1, packet_id=packet_id))
        server.settle()
    assert publisher.received() == [PubAck(1), PubAck(2)]
    assert server.disk is not None
    server.disk.connection.execute("DELETE FROM deliveries WHERE id & 1023 > 1")
    client = server.client("s", V3_1_1, clean_start=False)
    server.settle()
    assert client.messages() == [("s/1", ten("s/1"))]
    assert publisher.received() == [PubAck(3), PubAck(4)]
    session = server.broker.sessions["s"]
    assert (session.queued_count, session.queued_bytes, server.broker.queued_count) == (0, 0, 0)
    assert server.broker.statistics.lost == 3
    assert server.log.lines[-1] == "The store has lost 3 messages that waited for client s."


def test_what_is_left_of_a_damaged_queue_is_counted() -> None:
    server = Server(standing(S, queue_head=4, max_inflight_messages=1), disk=Disk(), slow_store=True)
    publisher = server.client("p", V3_1_1)
    for packet_id in range(1, 7):
        publisher.send(Publish("s/1", ten("s/1"), 1, packet_id=packet_id))
        server.settle()
    assert publisher.received() == [PubAck(1), PubAck(2)]
    assert server.disk is not None
    server.disk.connection.execute("DELETE FROM deliveries WHERE id & 1023 > 4")
    client = server.client("s", V3_1_1, clean_start=False)
    take(client, 1)
    assert publisher.received() == []
    server.settle()
    assert [packet for packet in publisher.received() if isinstance(packet, PubAck)] == [
        PubAck(packet_id) for packet_id in (3, 4, 5, 6)
    ]
    session = server.broker.sessions["s"]
    assert (session.queued_count, session.queued_bytes, server.broker.queued_count) == (2, 20, 2)


def test_a_whole_queue_that_comes_from_the_store_is_no_loss() -> None:
    server = Server(standing(StandingSession("s", ("s",)), queue_head=2, max_inflight_messages=1), disk=Disk())
    for _ in range(9):
        server.client("p").publish("s", b"", 1)
    take(server.client("s", V3_1_1, clean_start=False), 9)
    assert not [line for line in server.log.lines if "lost" in line]
