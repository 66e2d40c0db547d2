"""What a connection counts, asks for and leaves behind."""

from __future__ import annotations

import pytest

from lockgate.broker import explain
from lockgate.broker.deadlines import CONNECTION, RETAINED, SESSION, THROTTLE, WILL
from lockgate.broker.limits import Limits, ServerInformation
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    Connect,
    Disconnect,
    PingReq,
    Publish,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.support.rules import Rules
from tests.support.server import Server


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_output_is_counted_to_the_byte(version: int) -> None:
    server = Server()
    peer = server.client("c", version)
    peer.subscribe("t", 2)
    peer.stop_reading()
    peer.connection.writable = True
    publisher = server.client("p")
    for step in range(4):
        if step < 3:
            publisher.publish("t", b"x" * 100, step)
        else:
            peer.send(PingReq())
        assert peer.connection.output_bytes == len(b"".join(peer.connection.output)) > 100 * min(step + 1, 3)
    peer.connection.take_output()
    assert peer.connection.output_bytes == 0


def test_a_client_whose_output_grows_is_not_read() -> None:
    server = Server(Limits(output_bytes=100))
    peer = server.client("c")
    peer.reading = False
    peer.send(*[PingReq()] * 50)
    assert peer.connection.output_bytes == 100
    assert peer.connection.wants_input
    peer.send(PingReq())
    assert not peer.connection.wants_input
    peer.reading = True
    peer.take()
    assert peer.connection.wants_input


def test_what_the_transport_keeps_is_counted_until_the_connection_is_gone() -> None:
    server = Server()
    peer = server.client("c")
    before = server.broker.memory.used
    peer.connection.count_unsent(5000)
    assert server.broker.memory.used == before + 5000
    peer.connection.count_unsent(3000)
    assert server.broker.memory.used == before + 3000
    peer.reading = False
    peer.send(PingReq())
    peer.connection.count_unsent(3000)
    assert server.broker.memory.used == before + 3002
    peer.lose()
    server.client("d").lose()
    assert server.broker.memory.used == 0


def test_more_output_is_made_while_something_waits() -> None:
    server = Server()
    publisher = server.client("p")
    publisher.publish("r", b"x", 0, True)
    peer = server.client("c")
    assert not peer.connection.has_more
    peer.stop_reading()
    peer.send(Subscribe(1, [SubscriptionRequest("r", 0)]))
    assert peer.connection.has_more  # a retained message
    peer.read_again()
    assert not peer.connection.has_more
    peer.stop_reading()
    publisher.publish("r", b"x")
    assert peer.connection.has_more  # one that waits for its reading
    peer.read_again()
    assert not peer.connection.has_more


def test_a_connection_is_handed_to_the_shell_once_each_turn() -> None:
    server = Server()
    peer = server.client("c")
    for _ in range(2):
        peer.connection.receive(b"\xc0\x00" * 3, server.now)
        assert server.broker.take_touched() == [peer.connection]
        assert server.broker.take_touched() == []


def test_a_throttled_connection_is_handed_to_the_shell_when_it_stops_and_goes_on() -> None:
    server = Server(Limits(publish_rate=1))
    peer = server.client("c")
    peer.connection.receive(b"\x30\x04\x00\x01t\x00", server.now)
    assert server.broker.take_touched() == [peer.connection]
    assert not peer.connection.wants_input
    server.now += 2
    server.broker.expire(server.now)
    assert server.broker.take_touched() == [peer.connection]
    assert peer.connection.wants_input


def test_unfinished_bytes_are_counted_as_they_come_and_go() -> None:
    server = Server()
    peer = server.client("c")
    publish = b"\x30\x80\x01\x00\x01t\x00" + b"x" * 124
    before = server.broker.memory.used
    for at in range(0, len(publish), 10):
        peer.send_bytes(publish[at : at + 10])
        expected = at + 10 if at + 10 < len(publish) else 0
        assert server.broker.memory.unfinished == expected
        assert server.broker.memory.used == before + expected
    peer.send_bytes(publish + publish[:50])
    assert server.broker.memory.unfinished == 50
    peer.send_bytes(publish[50:] + publish[:20])
    assert server.broker.memory.unfinished == 20
    peer.lose()
    assert server.broker.memory.unfinished == 0


@pytest.mark.parametrize(("more", "closed"), [(0, False), (1, True)])
def test_unfinished_packets_may_fill_their_part(more: int, closed: bool) -> None:
    server = Server(Limits(memory_budget=400_000))
    peer = server.client("c")
    peer.send_bytes(b"\x30\x80\x80\x40" + b"\x00" * (100_000 - 4 + more))
    assert peer.closed is closed


# --- the end ------------------------------------------------------------------------------------------------------


def test_why_a_connection_ended_is_told_in_log_and_explanation() -> None:
    server = Server()
    server.client("c", session_expiry_interval=100).lose()
    assert server.log.lines[-1] == "Client c [192.0.2.1:5000] disconnected."
    told = [one.text for one in explain.explain(server.broker, "c", "t") if one.reason == "disconnected"]
    assert told == ["it was disconnected"]
    peer = server.client("c", keep_alive=10, session_expiry_interval=100)
    server.advance(15)
    assert peer.closed
    assert server.log.lines[-1].endswith("disconnected: exceeded timeout.")
    told = [one.text for one in explain.explain(server.broker, "c", "t") if one.reason == "disconnected"]
    assert told == ["it was disconnected: exceeded timeout"]
    server.peer()
    server.advance(30)
    assert server.log.lines[-1] == "Client [192.0.2.1:5000] disconnected: it was not let in in time."
    count = len(server.log.lines)
    server.peer().lose()
    assert len(server.log.lines) == count  # who says nothing and goes is not worth a line


def test_a_silent_client_s_session_does_not_wait_for_its_socket() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("#")
    will = Will("will", b"x", properties=Properties(will_delay_interval=10))
    peer = server.client("c", keep_alive=10, session_expiry_interval=100, will=will)
    server.now += 15
    server.broker.expire(server.now)
    assert peer.connection.is_closing
    assert server.broker.sessions["c"].connection is None  # and the shell has not heard of it yet
    server.flush()
    assert watcher.received() == []
    server.advance(10)
    assert watcher.messages() == [("will", b"x")]


def test_a_will_has_its_expiry_counted_from_when_it_is_published() -> None:
    server = Server()
    watcher = server.client("w", session_expiry_interval=100)
    watcher.subscribe("will", 1)
    own = Properties(will_delay_interval=5, message_expiry_interval=10)
    server.client("c", session_expiry_interval=50, will=Will("will", b"x", 1, True, own)).lose()
    server.advance(7)
    [will] = watcher.publishes()
    assert will.properties == Properties(message_expiry_interval=10)
    for later, count in ((7, 1), (2, 0)):
        server.advance(later)
        late = server.client(f"late{later}")
        late.subscribe("will")
        assert len(late.publishes()) == count


def test_a_will_without_a_delay_is_published_at_once() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("#")
    own = Properties(content_type="c")
    server.client("c", session_expiry_interval=100, will=Will("will", b"x", properties=own)).lose()
    assert [(one.topic, one.properties) for one in watcher.publishes()] == [("will", own)]


def test_a_session_belongs_to_the_user_who_came_last() -> None:
    server = Server(Limits(session_owner=False), Rules().listener())
    server.client("c", session_expiry_interval=100, username="first").lose()
    server.client("c", clean_start=False, session_expiry_interval=100, username="second").lose()
    assert server.broker.sessions["c"].username == "second"
    server.client("c", clean_start=False, username="a much longer name").lose()
    assert server.broker.memory.used == 0


def test_a_will_at_its_end_is_published_once() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("#")
    server.client("c", will=Will("will", b"x"))
    server.client("d", will=Will("will", b"y")).lose()
    server.broker.stop(server.now)
    server.flush()
    for peer in list(server.peers.values()):
        if not peer.closed and peer is not watcher:
            peer.lose()
    assert watcher.messages() == [("will", b"y"), ("will", b"x")]


def test_a_stop_is_told_only_to_who_can_understand_it() -> None:
    server = Server(information=ServerInformation("other"))
    new, old, small, waiting = server.client("a"), server.client("b", V3_1_1), server.client("c"), server.peer()
    small.connection.maximum_packet_size = 5
    server.broker.stop(server.now)
    server.flush()
    assert [len(peer.received()) for peer in (new, old, small, waiting)] == [1, 0, 0, 0]


# --- deadlines ----------------------------------------------------------------------------------------------------


def test_what_is_due_is_done_though_the_deadlines_were_swept_in_between() -> None:
    server = Server(Limits(publish_rate=0.1, connect_timeout=1000))
    silent = server.client("silent", keep_alive=100)
    throttled = server.client("throttled")
    throttled.send(Publish("t", b"1"), Publish("t", b"2"))
    will = Will("will", b"gone", properties=Properties(will_delay_interval=50))
    server.client("gone", session_expiry_interval=100, will=will).lose()
    publisher = server.client("p")
    publisher.send(Publish("r", b"x", 0, True, properties=Properties(message_expiry_interval=10)))
    watcher = server.client("w")
    watcher.subscribe("#")
    watcher.received()
    deadlines = server.broker.deadlines
    before = len(deadlines)
    subjects = (
        (CONNECTION, str(silent.connection.number)),
        (CONNECTION, "999"),
        (THROTTLE, str(throttled.connection.number)),
        (THROTTLE, str(silent.connection.number)),
        (THROTTLE, "999"),
        (SESSION, "gone"),
        (SESSION, "nobody"),
        (WILL, "gone"),
        (WILL, "nobody"),
        (RETAINED, ""),
    )
    for number in range(1100):
        kind, subject = subjects[number % len(subjects)]
        deadlines.add(5000.0 + number, kind, subject)  # none of these holds
    assert len(deadlines) < before + 100
    server.advance(20)
    assert watcher.messages() == [("t", b"2")]
    server.advance(40)
    assert watcher.messages() == [("will", b"gone")]
    server.advance(10)
    assert server.broker.retained.count == 0
    assert "gone" in server.broker.sessions
    server.advance(40)
    assert "gone" not in server.broker.sessions
    assert not silent.closed
    server.advance(50)
    assert silent.closed


def test_a_deadline_does_not_come_back_when_it_was_passed() -> None:
    server = Server()
    peer = server.client("c", session_expiry_interval=10)
    peer.lose()
    server.advance(5)
    back = server.client("c", clean_start=False, session_expiry_interval=10)
    server.advance(6)
    assert "c" in server.broker.sessions
    back.lose()
    server.advance(9)
    assert "c" in server.broker.sessions
    server.advance(1)
    assert "c" not in server.broker.sessions
    assert server.broker.next_deadline() is None or server.broker.next_deadline() == 1030.0


def test_a_second_connect_after_disconnect_is_not_heard() -> None:
    server = Server()
    peer = server.peer()
    peer.send(Connect("c"), Disconnect(), Connect("d"))
    assert "d" not in server.broker.sessions
    assert peer.closed


def test_a_turn_s_messages_hand_a_connection_to_the_shell_once() -> None:
    server = Server()
    peer = server.client("c")
    peer.subscribe("t")
    publisher = server.client("p")
    publisher.connection.receive(encode(Publish("t", b"x"), V5) * 3, server.now)
    assert server.broker.take_touched() == [peer.connection]
    assert not peer.connection.touched


def test_the_log_names_who_is_gone_by_what_is_known_of_it() -> None:
    server = Server()
    server.client("c").lose()
    assert server.log.lines[-1] == "Client c [192.0.2.1:5000] disconnected."
    server.peer().send_bytes(b"\xc0\x00")
    assert server.log.lines[-1].startswith("Client [192.0.2.1:5000] disconnected: ")
    told = len(server.log.lines)
    server.peer().lose()
    assert len(server.log.lines) == told


def test_a_connection_that_closes_before_it_is_let_in_may_linger() -> None:
    server = Server()
    peer = server.peer()
    peer.connection.close("refused")
    server.now += 100
    server.broker.expire(server.now)
    assert peer.connection.closing_reason == "refused"
    server.flush()
    assert peer.closed


@pytest.mark.parametrize(("size", "accepted"), [(100_000, True), (100_001, False)])
def test_the_first_packet_may_have_100_000_bytes(size: int, accepted: bool) -> None:
    will = Will("w", b"x" * 60_000)
    bare = len(encode(Connect("c", will=will, username="u", password=b""), V5))
    peer = Server().peer()
    peer.send(Connect("c", will=will, username="u", password=b"x" * (size - bare)))
    assert peer.closed is not accepted
