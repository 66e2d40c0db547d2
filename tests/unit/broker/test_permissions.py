"""What an authority forbids happens on no path; who owns a Session keeps it (DESIGN §3.4)."""

from __future__ import annotations

import pytest

from lockgate.broker.limits import CONNECT_PACKET_BYTES, Limits, ListenerLimits, StandingSession
from lockgate.broker.session import NEVER_EXPIRES
from lockgate.broker.sys_topics import publish_figures
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1,
    V3_1_1,
    V5,
    ConnAck,
    Connect,
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
from lockgate.mqtt.properties import Properties
from tests.support.disk import Disk
from tests.support.rules import Rules
from tests.support.server import Peer, Server

BOTH = pytest.mark.parametrize("version", [V3_1_1, V5])


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture
def server(rules: Rules) -> Server:
    return Server(listener=rules.listener())


def subscribed(server: Server, client_id: str, topic_filter: str, qos: int = 0, **options: object) -> Peer:
    peer = server.client(client_id, **options)  # type: ignore[arg-type]
    peer.send(Subscribe(1, [SubscriptionRequest(topic_filter, qos)]))
    peer.expect(SubAck)
    return peer


# --- who comes in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "code"), [(V3_1, 5), (V3_1_1, 5), (V5, reason_codes.NOT_AUTHORIZED)])
def test_a_wrong_password_is_refused_in_the_words_of_each_version(
    server: Server, rules: Rules, version: int, code: int
) -> None:
    rules.passwords["u"] = b"right"
    peer = server.peer(version)
    peer.send(Connect("c", version, username="u", password=b"wrong"))
    assert peer.one() == ConnAck(code)
    assert peer.closed
    assert "'c' with user 'u' is not let in" in server.log.lines[-1]
    assert "wrong" not in "".join(server.log.lines)
    assert server.broker.sessions == {}


@BOTH
def test_what_follows_connect_waits_until_the_login_is_answered(server: Server, rules: Rules, version: int) -> None:
    watcher = subscribed(server, "w", "#")
    rules.later = True
    peer = server.peer(version)
    peer.send(Connect("c", version, username="u", password=b"p"), Publish("t", b"early", 0))
    peer.send(Publish("t", b"later", 0))
    assert peer.received() == []
    assert peer.connection.wants_input  # to see it leave
    peer.send(Publish("t", bytes(5000), 0))
    assert not peer.connection.wants_input
    assert watcher.messages() == []
    server.broker.login_answered(peer.connection.number, True, server.now)
    server.flush()
    peer.expect(ConnAck)
    assert watcher.messages() == [("t", b"early"), ("t", b"later"), ("t", bytes(5000))]
    assert peer.connection.wants_input


def test_a_login_answered_with_no_leaves_nothing(server: Server, rules: Rules) -> None:
    rules.later = True
    peer = server.peer(V5)
    peer.send(Connect("c", V5, username="u", password=b"p"), Publish("t", b"", 0))
    server.broker.login_answered(peer.connection.number, False, server.now)
    server.flush()
    assert peer.one() == ConnAck(reason_codes.NOT_AUTHORIZED)
    assert peer.closed
    assert server.broker.sessions == {}
    assert server.broker.memory.used == 0
    server.broker.login_answered(peer.connection.number, True, server.now)  # too late
    assert server.broker.sessions == {}


def test_a_login_nobody_answers_ends_with_the_connect_timeout(rules: Rules) -> None:
    server = Server(Limits(connect_timeout=10), rules.listener())
    rules.later = True
    peer = server.peer(V3_1_1)
    peer.send(Connect("c", V3_1_1, username="u", password=b"p"))
    server.advance(10)
    assert peer.closed
    assert server.broker.memory.used == 0


def test_the_old_connection_lasts_until_the_new_one_is_let_in(server: Server, rules: Rules) -> None:
    first = server.client("c")
    rules.later = True
    second = server.peer(V5)
    second.send(Connect("c", V5, username="u", password=b"p"))
    assert not first.closed
    server.broker.login_answered(second.connection.number, False, server.now)
    server.flush()
    assert not first.closed


def test_a_certificate_asks_without_a_password(rules: Rules) -> None:
    server = Server(listener=rules.listener(username_from_certificate=True))
    peer = server.peer(V5)
    peer.connection.identity = "device"
    peer.send(Connect("c", V5, username="other", password=b"p"))
    assert rules.logins == [(peer.connection.number, "c", "device", None, True)]
    assert server.broker.sessions["c"].username == "device"


# --- what may be done -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "code"), [(V3_1_1, 0), (V5, reason_codes.NOT_AUTHORIZED)])
def test_a_refused_publish_goes_nowhere(server: Server, rules: Rules, version: int, code: int) -> None:
    rules.deny("publish", "secret/#")
    watcher = subscribed(server, "w", "#", 2)
    peer = server.client("p", version)
    peer.send(Publish("secret/0", b"", 0), Publish("secret/1", b"", 1, retain=True, packet_id=1))
    assert peer.one() == PubAck(1, code)
    peer.send(Publish("secret/2", b"", 2, packet_id=2))
    answer = peer.one()
    assert isinstance(answer, PubRec)
    assert answer.reason_code == code
    if version != V5:
        peer.send(PubRel(2))
        assert peer.one() == PubComp(2)
    assert not peer.closed
    assert watcher.received() == []
    assert server.broker.retained.count == 0


def test_the_will_is_asked_about_when_it_is_sent(server: Server, rules: Rules) -> None:
    watcher = subscribed(server, "w", "#")
    peer = server.client("c", will=Will("will", b"x"))
    rules.deny("publish", "will")
    server.broker.rules_changed()
    peer.lose()
    assert watcher.messages() == []


def test_a_stored_will_is_asked_about_after_a_crash(rules: Rules) -> None:
    server = Server(listener=rules.listener(), disk=Disk())
    server.client("c", will=Will("will", b"x", properties=Properties(will_delay_interval=5)), session_expiry_interval=9)
    server.settle()
    rules.deny("publish", "will")
    server = server.crash()
    watcher = subscribed(server, "w", "#")
    server.advance(100)
    assert watcher.messages() == []
    assert ("publish", "c", None, "will") in rules.asked


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_live_message_reaches_only_who_may_receive_it(server: Server, rules: Rules, qos: int) -> None:
    rules.deny("receive", "secret")
    peer = subscribed(server, "c", "#", 2)
    server.client("p").publish("secret", b"x", qos)
    server.client("p").publish("open", b"y", qos)
    assert peer.messages() == [("open", b"y")]


def test_a_remembered_route_is_asked_about_again_when_the_rules_change(server: Server, rules: Rules) -> None:
    peer = subscribed(server, "c", "t")
    publisher = server.client("p")
    publisher.publish("t", b"1")
    rules.deny("receive", "t")
    server.broker.rules_changed()
    publisher.publish("t", b"2")
    rules.denied.clear()
    server.broker.rules_changed()
    publisher.publish("t", b"3")
    assert peer.messages() == [("t", b"1"), ("t", b"3")]


def test_what_is_retained_or_shared_is_asked_about(server: Server, rules: Rules) -> None:
    rules.deny("receive", "secret")
    publisher = server.client("p")
    publisher.publish("secret", b"x", retain=True)
    publisher.publish("open", b"y", retain=True)
    assert subscribed(server, "c", "+").messages() == [("open", b"y")]
    member = subscribed(server, "m", "$share/g/secret", 1)
    publisher.publish("secret", b"z", 1)
    assert member.messages() == []


def test_what_waits_is_asked_about_when_it_is_sent(server: Server, rules: Rules) -> None:
    subscribed(server, "c", "#", 1, session_expiry_interval=100).lose()
    publisher = server.client("p")
    for topic in ("a", "b", "c"):
        publisher.publish(topic, b"x", 1)
    rules.deny("receive", "b")
    server.broker.rules_changed()
    peer = server.client("c", clean_start=False, session_expiry_interval=100)
    assert [topic for topic, _payload in peer.messages()] == ["a", "c"]
    assert server.broker.statistics.dropped_not_permitted == 1


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_sent_already_is_asked_about_when_it_is_sent_again(server: Server, rules: Rules, qos: int) -> None:
    first = subscribed(server, "c", "t", qos, session_expiry_interval=100)
    server.client("p").publish("t", b"x", qos)
    packet_id = first.publishes()[0].packet_id
    first.lose()
    rules.deny("receive", "t")
    server.broker.rules_changed()
    again = server.client("c", clean_start=False, session_expiry_interval=100)
    if qos == 2:  # it holds the identifier, and has to be told that it is free
        assert again.one() == PubRel(packet_id)
        again.send(PubComp(packet_id))
    assert again.received() == []
    assert server.broker.sessions["c"].in_flight == {}


def test_a_retained_message_whose_author_may_not_write_it_any_more_stays_here(server: Server, rules: Rules) -> None:
    author = server.client("author", username="alice")
    author.publish("t", b"x", retain=True)
    assert subscribed(server, "one", "t").messages() == [("t", b"x")]
    rules.deny("publish", "t")
    server.broker.rules_changed()
    rules.asked.clear()
    assert subscribed(server, "two", "t").messages() == []
    assert ("publish", "author", "alice", "t") in rules.asked


def test_check_retain_source_may_be_turned_off(rules: Rules) -> None:
    server = Server(Limits(check_retain_source=False), rules.listener())
    server.client("author").publish("t", b"x", retain=True)
    rules.deny("publish", "t")
    assert subscribed(server, "c", "t").messages() == [("t", b"x")]


@pytest.mark.parametrize(("version", "code"), [(V3_1, 1), (V3_1_1, 0x80), (V5, reason_codes.NOT_AUTHORIZED)])
def test_a_refused_subscribe_is_told_in_the_words_of_each_version(
    server: Server, rules: Rules, version: int, code: int
) -> None:
    rules.deny("subscribe", "no")
    peer = server.client("c", version)
    peer.send(Subscribe(1, [SubscriptionRequest("no", 1), SubscriptionRequest("yes", 1)]))
    assert peer.one() == SubAck(1, [code, 1])
    assert list(server.broker.sessions["c"].subscriptions) == ["yes"]
    if version == V5:
        peer.send(Subscribe(2, [SubscriptionRequest("$share/g/no", 0)]))
        assert peer.one() == SubAck(2, [code])


@pytest.mark.parametrize("topic_filter", ["t", "$share/g/t"])
def test_a_subscription_that_was_revoked_brings_nothing_to_who_is_away_or_returns(
    rules: Rules, topic_filter: str
) -> None:
    server = Server(listener=rules.listener(), disk=Disk())
    subscribed(server, "c", topic_filter, 1, session_expiry_interval=100).lose()
    publisher = server.client("p")
    publisher.publish("t", b"before", 1)
    rules.deny("subscribe", "t")
    server.broker.rules_changed()
    publisher.publish("t", b"away", 1)
    server.settle()
    peer = server.client("c", clean_start=False, session_expiry_interval=100)
    publisher.publish("t", b"here", 1)
    server.settle()
    assert peer.messages() == [("t", b"before")]
    assert server.broker.sessions["c"].subscriptions == {}
    peer.lose()
    server.settle()
    assert server.crash().broker.sessions["c"].subscriptions == {}


def test_a_refused_unsubscribe_keeps_the_subscription(server: Server, rules: Rules) -> None:
    peer = subscribed(server, "c", "t")
    rules.deny("unsubscribe", "t")
    peer.send(Unsubscribe(2, ["t"]))
    assert peer.one() == UnsubAck(2, [reason_codes.NOT_AUTHORIZED])
    server.client("p").publish("t", b"still")
    assert peer.messages() == [("t", b"still")]


def test_a_client_that_waits_to_be_let_in_holds_memory_and_its_place(server: Server, rules: Rules) -> None:
    rules.later = True
    peer = server.peer(V5)
    before = server.broker.memory.used
    peer.send(Connect("c", V5, username="u", password=b"p"))
    assert server.broker.memory.used == before + CONNECT_PACKET_BYTES
    peer.connection.wait(server.now)  # it has sent much, and others are to have their turn
    server.advance(1)
    assert not peer.closed
    server.broker.login_answered(peer.connection.number, True, server.now)
    server.flush()
    peer.expect(ConnAck)
    used = server.broker.memory.used
    assert used < before + CONNECT_PACKET_BYTES
    peer.send(PingReq())
    assert peer.one() == PingResp()
    assert server.broker.memory.used == used
    peer.lose()
    assert server.broker.memory.used == 0


def test_what_follows_connect_is_read_up_to_a_bound(server: Server, rules: Rules) -> None:
    rules.later = True
    peer = server.peer(V5)
    peer.send(Connect("c", V5, username="u", password=b"p"))
    publish = encode(Publish("t", bytes(5000), 0), V5)
    peer.send_bytes(publish[:4095])
    assert peer.connection.wants_input
    peer.connection.receive(publish[4095:4096], server.now)
    assert peer.connection in server.broker.take_touched()  # for its shell to notice
    assert not peer.connection.wants_input


def test_who_waits_to_be_let_in_is_told_why_not_by_connack(server: Server, rules: Rules) -> None:
    rules.later = True
    peer = server.peer(V5)
    peer.send(Connect("c", V5, username="u", password=b"p"))
    peer.connection.close_with(reason_codes.QUOTA_EXCEEDED, "no memory for it")
    server.flush()
    assert peer.one() == ConnAck(reason_codes.QUOTA_EXCEEDED)


def test_an_answer_that_nobody_waits_for_lets_nobody_go_on(rules: Rules) -> None:
    server = Server(Limits(publish_rate=1), rules.listener())
    peer = server.client("c")
    watcher = subscribed(server, "w", "t")
    peer.send(*(Publish("t", b"%d" % number, 0) for number in range(9)))
    arrived = len(watcher.messages())
    assert arrived < 9
    server.broker.login_answered(peer.connection.number, True, server.now)
    server.flush()
    assert watcher.messages() == []


def test_others_rules_count_once_they_are_told_of(server: Server, rules: Rules) -> None:
    """By the same authority, by another one, by none, and by one where there was none."""
    nobody = Server().client("n")
    nobody.server.broker.rules_changed()  # there is nothing to forget
    peer, watcher = server.client("c", username="alice"), subscribed(server, "w", "t")
    sessions = server.broker.sessions
    first = sessions["c"].permissions
    peer.publish("t", b"1")
    used = server.broker.memory.used
    rules.deny("publish", "t")
    peer.publish("t", b"2")  # the answer is remembered
    server.broker.rules_changed()
    assert sessions["c"].permissions is first
    assert server.broker.memory.used < used
    peer.publish("t", b"3")
    assert watcher.messages() == [("t", b"1"), ("t", b"2")]
    others = Rules()
    peer.connection.limits = watcher.connection.limits = others.listener()
    server.broker.rules_changed()
    peer.publish("t", b"4")
    assert ("publish", "c", "alice", "t") in others.asked
    peer.connection.limits = ListenerLimits(allow_anonymous=True)
    server.broker.rules_changed()
    assert sessions["c"].permissions is None
    others.deny("publish", "t")
    peer.publish("t", b"5")
    assert watcher.messages() == [("t", b"4"), ("t", b"5")]
    peer.connection.limits = others.listener()
    server.broker.rules_changed()
    peer.publish("t", b"6")
    assert watcher.messages() == []


def test_what_was_remembered_for_another_user_is_forgotten(rules: Rules) -> None:
    server = Server(Limits(session_owner=False), rules.listener())
    peer = server.client("c", username="alice", session_expiry_interval=100)
    used = server.broker.memory.used
    peer.publish("t", b"x")
    assert server.broker.memory.used > used
    peer.lose()
    server.client("c", clean_start=False, username="bobby", session_expiry_interval=100)
    assert server.broker.memory.used == used


@pytest.mark.parametrize("denied", [True, False])
@pytest.mark.parametrize("expiry", [0, 9, 900], ids=["no session", "a session that ends", "a session"])
def test_a_will_that_a_crash_left_is_asked_about_for_its_user(rules: Rules, expiry: int, denied: bool) -> None:
    server = Server(listener=rules.listener(), disk=Disk())
    will = Will("will", b"x", properties=Properties(will_delay_interval=5))
    server.client("c", username="alice", will=will, session_expiry_interval=expiry)
    server.settle()
    if denied:
        rules.deny("publish", "will")
    server = server.crash()
    watcher = subscribed(server, "w", "#")
    server.advance(100)
    assert watcher.messages() == ([] if denied else [("will", b"x")])
    assert ("publish", "c", "alice", "will") in rules.asked


def test_a_retained_message_of_the_server_itself_needs_no_permission(server: Server, rules: Rules) -> None:
    publish_figures(server.broker, {"uptime": "1"}, server.now)
    rules.deny("publish", "#")
    rules.deny("publish", "$SYS/#")
    assert subscribed(server, "c", "$SYS/#").messages() == [("$SYS/broker/uptime", b"1")]


def test_a_refused_unsubscribe_keeps_no_other_filter(server: Server, rules: Rules) -> None:
    peer = server.client("c")
    peer.send(Subscribe(1, [SubscriptionRequest("no", 0), SubscriptionRequest("yes", 1)]))
    peer.expect(SubAck)
    rules.deny("unsubscribe", "no")
    peer.send(Unsubscribe(2, ["no", "yes"]))
    assert peer.one() == UnsubAck(2, [reason_codes.NOT_AUTHORIZED, 0])
    assert list(server.broker.sessions["c"].subscriptions) == ["no"]
    assert server.log.subscriptions == [("c", 0, "no"), ("c", 1, "yes"), ("c", None, "yes")]


def test_answers_are_remembered_and_counted(server: Server, rules: Rules) -> None:
    peer = server.client("p")
    before = server.broker.memory.used
    for number in range(200):
        peer.publish(f"t/{number % 50}", b"")
    assert 0 < server.broker.memory.used - before < 20_000
    rules.asked.clear()
    peer.publish("t/49", b"")
    assert rules.asked == []
    peer.publish("x" * 300, b"")
    peer.publish("x" * 300, b"")
    assert len(rules.asked) == 2
    peer.lose()
    assert server.broker.memory.used == 0


# --- owners -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "code"), [(V3_1_1, 5), (V5, reason_codes.NOT_AUTHORIZED)])
@pytest.mark.parametrize("other", ["mallory", None])
@pytest.mark.parametrize("connected", [True, False])
def test_another_user_gets_neither_session_nor_connection(
    server: Server, version: int, code: int, other: str | None, connected: bool
) -> None:
    owner = subscribed(server, "c", "t", 1, username="alice", session_expiry_interval=100)
    if not connected:
        owner.lose()
    thief = server.peer(version)
    thief.send(Connect("c", version, True, username=other))
    assert thief.one() == ConnAck(code)
    session = server.broker.sessions["c"]
    assert (session.username, list(session.subscriptions)) == ("alice", ["t"])
    if connected:
        assert not owner.closed
    back = server.client("c", clean_start=False, username="alice", session_expiry_interval=100)
    assert back.connack.session_present


def test_a_session_of_nobody_is_adopted_by_the_first_user(server: Server) -> None:
    server.client("c", session_expiry_interval=100).lose()
    server.client("c", clean_start=False, session_expiry_interval=100).lose()
    server.client("c", clean_start=False, session_expiry_interval=100, username="alice").lose()
    assert server.broker.sessions["c"].username == "alice"
    peer = server.peer(V5)
    peer.send(Connect("c", V5, False, username="bob"))
    assert peer.one() == ConnAck(reason_codes.NOT_AUTHORIZED)


def test_a_name_that_nobody_looked_at_owns_nothing() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True))
    server.client("c", session_expiry_interval=100, username="alice").lose()
    assert server.broker.sessions["c"].username is None
    server.client("c", clean_start=False, username="bob")


def test_where_nobody_looks_at_names_an_owner_is_believed() -> None:
    server = Server(listener=Rules().listener())
    server.client("c", session_expiry_interval=100, username="alice").lose()
    server.listener = ListenerLimits(allow_anonymous=True)
    server.client("c", clean_start=False, session_expiry_interval=100, username="alice").lose()
    assert server.broker.sessions["c"].username == "alice"
    peer = server.peer(V5)
    peer.send(Connect("c", V5, False))
    assert peer.one() == ConnAck(reason_codes.NOT_AUTHORIZED)


def test_the_owner_rule_may_be_turned_off(rules: Rules) -> None:
    server = Server(Limits(session_owner=False), rules.listener())
    first = server.client("c", username="alice", session_expiry_interval=100)
    server.client("c", clean_start=False, username="bob", session_expiry_interval=100)
    assert first.received()[-1] == Disconnect(reason_codes.SESSION_TAKEN_OVER)
    assert server.broker.sessions["c"].username == "bob"


def test_who_takes_a_session_over_gets_it_by_their_own_rules(rules: Rules) -> None:
    server = Server(Limits(session_owner=False), rules.listener())
    subscribed(server, "c", "t", username="alice", session_expiry_interval=100)
    publisher = server.client("p")
    publisher.publish("t", b"1")
    rules.asked.clear()
    server.client("c", clean_start=False, username="bob", session_expiry_interval=100)
    publisher.publish("t", b"2")
    assert ("receive", "c", "bob", "t") in rules.asked


def test_who_comes_back_by_another_listener_gets_it_by_the_rules_there(rules: Rules) -> None:
    elsewhere = Rules()
    server = Server(listener=rules.listener())
    subscribed(server, "c", "t", username="u", session_expiry_interval=100).lose()
    publisher = server.client("p")
    rules.deny("receive", "t")
    held = server.broker.memory.used
    server.listener = elsewhere.listener()
    back = server.client("c", clean_start=False, username="u", session_expiry_interval=100)
    publisher.publish("t", b"x")
    assert back.messages() == [("t", b"x")]
    assert ("receive", "c", "u", "t") in elsewhere.asked
    back.lose()
    server.listener = rules.listener()
    again = server.client("c", clean_start=False, username="u", session_expiry_interval=100)
    publisher.publish("t", b"y")
    assert again.messages() == []
    again.lose()
    assert server.broker.memory.used - held < 200, "what was remembered by other rules counts no more"


def test_a_retained_will_is_its_users(server: Server, rules: Rules) -> None:
    server.client("c", username="alice", will=Will("gone", b"x", retain=True)).lose()
    rules.asked.clear()
    assert subscribed(server, "w", "gone").messages() == [("gone", b"x")]
    assert ("publish", "c", "alice", "gone") in rules.asked


class Requests:
    """Notes what was asked of `$CONTROL`."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, str, str | None, str, bytes]] = []

    def request(self, number: int, client_id: str, username: str | None, topic: str, payload: bytes) -> None:
        self.taken.append((number, client_id, username, topic, payload))


def test_what_is_published_below_control_is_a_request_and_no_message(server: Server) -> None:
    requests = server.broker.control = Requests()
    watcher = subscribed(server, "w", "$CONTROL/#")
    peer = server.client("c", username="alice")
    peer.publish("plain", b"x", 1)  # nobody subscribes to it
    assert peer.received() == []
    peer.send(Publish("$CONTROL/broker/v1", b"{}", 1, packet_id=9))
    assert peer.one() == PubAck(9)
    peer.send(Publish("other", b"", 1, packet_id=10))
    assert peer.one() == PubAck(10, reason_codes.NO_MATCHING_SUBSCRIBERS)
    assert requests.taken == [(peer.connection.number, "c", "alice", "$CONTROL/broker/v1", b"{}")]
    assert watcher.messages() == []


def test_without_anybody_who_serves_it_control_is_a_topic_as_others(server: Server) -> None:
    watcher = subscribed(server, "w", "$CONTROL/#")
    server.client("c").publish("$CONTROL/broker/v1", b"{}", 1)
    assert watcher.messages() == [("$CONTROL/broker/v1", b"{}")]


def test_no_will_is_a_request(server: Server) -> None:
    peer = server.peer()
    peer.send(Connect("c", V5, will=Will("$CONTROL/dynamic-security/v1", b"{}")))
    assert peer.one() == ConnAck(reason_codes.NOT_AUTHORIZED)
    assert peer.closed
    assert server.broker.sessions == {}


def test_an_operator_may_give_a_session_to_somebody_else(rules: Rules) -> None:
    server = Server(listener=rules.listener(), disk=Disk())
    mine = subscribed(server, "c", "t", 1, username="alice", session_expiry_interval=100)
    assert server.broker.give_session("c", "bob", server.now)
    server.settle()
    assert mine.received() == [Disconnect(reason_codes.ADMINISTRATIVE_ACTION)]
    rules.asked.clear()
    server.client("p").publish("t", b"x", 1)
    assert ("receive", "c", "bob", "t") in rules.asked
    server.settle()
    server = server.crash()
    peer = server.client("c", clean_start=False, username="bob", session_expiry_interval=100)
    assert peer.connack.session_present
    assert peer.messages() == [("t", b"x")]
    assert not server.broker.give_session("nobody", None, server.now)
    assert server.broker.give_session("c", None, server.now)
    assert server.broker.sessions["c"].username is None


def test_an_operator_may_end_a_session(rules: Rules) -> None:
    server = Server(listener=rules.listener(), disk=Disk())
    watcher = subscribed(server, "w", "will")
    peer = subscribed(server, "c", "t", 1, session_expiry_interval=100, will=Will("will", b"x"))
    assert server.broker.drop_session("c", server.now)
    server.settle()
    assert peer.received() == [Disconnect(reason_codes.ADMINISTRATIVE_ACTION)]
    assert watcher.messages() == [("will", b"x")]
    assert "c" not in server.broker.sessions
    assert "c" not in server.crash().broker.sessions
    assert not server.broker.drop_session("c", server.now)


def test_a_session_may_be_given_away_while_its_client_is_not_there(rules: Rules) -> None:
    server = Server(listener=rules.listener(), disk=Disk())
    subscribed(server, "c", "t", 1, username="alice", session_expiry_interval=100).lose()
    used = server.broker.memory.used
    assert server.broker.give_session("c", "bobby-long", server.now)
    assert server.broker.memory.used == used + len("bobby-long") - len("alice")
    server.settle()
    server = server.crash()
    peer = server.peer(V5)
    peer.send(Connect("c", V5, False, username="alice"))
    assert peer.one() == ConnAck(reason_codes.NOT_AUTHORIZED)
    assert server.client("c", clean_start=False, username="bobby-long").connack.session_present


def test_a_session_that_ends_with_its_connection_is_given_to_nobody(rules: Rules) -> None:
    server = Server(listener=rules.listener(), disk=Disk())
    server.client("c", username="alice")
    assert server.broker.give_session("c", "bob", server.now)
    assert server.broker.sessions == {}
    server.settle()
    assert server.disk is not None
    assert server.disk.rows("sessions") == 0


def test_who_is_disconnected_had_to_be_connected(server: Server) -> None:
    peer = server.client(
        "c", session_expiry_interval=100, will=Will("w", b"x", properties=Properties(will_delay_interval=9))
    )
    watcher = subscribed(server, "watcher", "w")
    assert not server.broker.disconnect("nobody", reason_codes.ADMINISTRATIVE_ACTION, "a test", server.now)
    assert server.broker.disconnect("c", reason_codes.ADMINISTRATIVE_ACTION, "a test", server.now)
    server.flush()
    assert peer.one() == Disconnect(reason_codes.ADMINISTRATIVE_ACTION)
    assert not server.broker.disconnect("c", reason_codes.ADMINISTRATIVE_ACTION, "a test", server.now)
    assert watcher.messages() == []  # the Session goes on, so the Will waits
    server.advance(9)
    assert watcher.messages() == [("w", b"x")]


def test_a_standing_session_that_is_dropped_begins_anew() -> None:
    server = Server(Limits(standing_sessions=(StandingSession("s", ("s/#",), 1, 20),)))
    server.client("p").publish("s/1", b"x", 1)
    assert server.broker.sessions["s"].queued_count == 1
    assert server.broker.drop_session("s", server.now)
    assert server.broker.sessions["s"].queued_count == 0
    assert list(server.broker.sessions["s"].subscriptions) == ["s/#"]


# --- what a listener or the broker demands ----------------------------------------------------------------------------


def test_a_mount_point_is_seen_by_nobody_behind_it() -> None:
    server = Server()
    outside = subscribed(server, "out", "#", 2)
    mounted = ListenerLimits(allow_anonymous=True, mount_point="house/")
    server.listener = mounted
    for version in (V3_1_1, V5):
        peer = server.client(f"in{version}", version, will=Will("will", b"w"))
        peer.send(Subscribe(1, [SubscriptionRequest("t/#", 2)]))
        peer.expect(SubAck)
        peer.publish("t/1", b"0")
        peer.publish("t/2", b"1", 1)
        assert peer.messages() == [("t/1", b"0"), ("t/2", b"1")]
        assert [topic for topic, _payload in outside.messages()] == ["house/t/1", "house/t/2"]
        peer.send(Unsubscribe(2, ["t/#"]))
        peer.expect(UnsubAck)
        peer.publish("t/1", b"0")
        assert peer.messages() == []
        peer.lose()
        assert outside.messages() == [("house/t/1", b"0"), ("house/will", b"w")]


@BOTH
def test_properties_come_behind_a_mount_point_to_who_knows_them(version: int) -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, mount_point="house/"))
    peer = subscribed(server, "c", "t", 1, version=version)
    properties = Properties(content_type="text")
    server.client("p").send(Publish("t", b"x", 1, packet_id=1, properties=properties))
    [arrived] = peer.publishes()
    assert arrived.properties == (properties if version == V5 else None)


def test_a_mount_point_stands_behind_the_name_of_a_share() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, mount_point="house/"))
    peer = subscribed(server, "c", "$share/g/t", 1)
    assert list(server.broker.sessions["c"].subscriptions) == ["$share/g/house/t"]
    peer.publish("t", b"x", 1)
    assert peer.messages() == [("t", b"x")]


def test_the_user_name_may_be_the_client_id() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, username_as_client_id=True))
    server.client("ignored", username="alice")
    assert list(server.broker.sessions) == ["alice"]
    peer = server.peer(V5)
    peer.send(Connect("c", V5))
    assert peer.one() == ConnAck(reason_codes.NOT_AUTHORIZED)


@pytest.mark.parametrize(("version", "code"), [(V3_1_1, 2), (V5, reason_codes.UNSPECIFIED_ERROR)])
def test_an_empty_client_id_may_be_forbidden(version: int, code: int) -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, allow_zero_length_clientid=False))
    peer = server.peer(version)
    peer.send(Connect("", version))
    assert peer.one() == ConnAck(code)


def test_a_client_id_may_have_to_begin_with_one_of_some_prefixes() -> None:
    server = Server(Limits(clientid_prefixes=("dev-", "app-")))
    server.client("dev-1")
    server.client("")
    peer = server.peer(V3_1_1)
    peer.send(Connect("other", V3_1_1))
    assert peer.one() == ConnAck(5)


@BOTH
def test_retained_messages_may_be_forbidden(version: int) -> None:
    server = Server(Limits(retain_available=False))
    peer = server.client("c", version)
    if version == V5:
        assert peer.connack.properties is not None
        assert peer.connack.properties.retain_available == 0
    peer.publish("t", b"x", 0, True)
    assert peer.closed
    if version == V5:
        assert peer.received() == [Disconnect(reason_codes.RETAIN_NOT_SUPPORTED)]
    other = server.peer(version)
    other.send(Connect("w", version, will=Will("t", b"x", retain=True)))
    assert other.received() == ([ConnAck(reason_codes.RETAIN_NOT_SUPPORTED)] if version == V5 else [])
    assert other.closed


@pytest.mark.parametrize(("version", "code"), [(V3_1_1, 0), (V5, reason_codes.IMPLEMENTATION_SPECIFIC_ERROR)])
def test_a_payload_above_message_size_limit_goes_nowhere(version: int, code: int) -> None:
    server = Server(Limits(message_size=3))
    watcher = subscribed(server, "w", "#")
    peer = server.client("c", version)
    peer.send(Publish("t", b"1234", 1, packet_id=1))
    assert peer.one() == PubAck(1, code)
    peer.publish("t", b"123")
    assert watcher.messages() == [("t", b"123")]


def test_the_qos_of_the_subscription_may_count() -> None:
    server = Server(Limits(upgrade_outgoing_qos=True))
    peer = subscribed(server, "c", "t", 2)
    server.client("p").publish("t", b"x", 0)
    assert [one.qos for one in peer.publishes()] == [2]


def test_who_subscribed_at_qos_0_and_is_away_gets_nothing_later_for_all_that() -> None:
    server = Server(Limits(upgrade_outgoing_qos=True))
    subscribed(server, "c", "t", 0, session_expiry_interval=100).lose()
    peer = server.client("p")
    peer.send(Publish("t", b"x", 1, packet_id=1))
    assert peer.one() == PubAck(1)
    assert server.broker.sessions["c"].queued_count == 0


def test_what_goes_to_nobody_waits_for_no_commit() -> None:
    server = Server(Limits(upgrade_outgoing_qos=True), slow_store=True)
    away = server.client("c", session_expiry_interval=100)
    away.send(Subscribe(1, [SubscriptionRequest("t", 0)]))
    away.lose()
    peer = server.client("p")
    peer.send(Publish("t", b"x", 1, packet_id=1))
    assert peer.one() == PubAck(1)  # though nothing is committed yet


def test_one_copy_goes_to_who_has_not_come_back_since_a_crash_too() -> None:
    server = Server(Limits(allow_duplicate_messages=False), disk=Disk())
    peer = server.client("c", V3_1_1, False)
    peer.send(Subscribe(1, [SubscriptionRequest("t/+", 1), SubscriptionRequest("t/#", 1)]))
    server.settle()
    server = server.crash()
    server.client("p").publish("t/1", b"x", 1)
    assert server.broker.sessions["c"].queued_count == 1


def test_qos_0_that_was_queued_is_held_no_longer_than_it_waits() -> None:
    server = Server(Limits(queue_qos_0=True), disk=Disk())
    subscribed(server, "c", "t", 0, session_expiry_interval=100).lose()
    used = server.broker.memory.used
    server.client("p").publish("t", b"0")
    server.settle()
    assert server.broker.memory.used > used
    server = server.crash()
    peer = server.client("c", clean_start=False, session_expiry_interval=100)
    server.settle()
    assert peer.messages() == [("t", b"0")]
    peer.lose()
    assert server.broker.memory.used == used
    server.settle()
    peer = server.crash().client("c", clean_start=False, session_expiry_interval=100)
    peer.server.settle()
    assert peer.messages() == []


def test_qos_0_may_be_queued() -> None:
    server = Server(Limits(queue_qos_0=True))
    subscribed(server, "c", "t", 0, version=V3_1_1, clean_start=False).lose()
    publisher = server.client("p")
    publisher.publish("t", b"0")
    publisher.publish("t", b"1", 1)
    peer = server.client("c", V3_1_1, clean_start=False)
    assert [(one.payload, one.qos) for one in peer.publishes()] == [(b"0", 0), (b"1", 0)]
    assert server.broker.sessions["c"].queued_count == 0
    assert server.broker.sessions["c"].expiry_interval == NEVER_EXPIRES


@pytest.mark.parametrize(("version", "copies"), [(V3_1_1, 1), (V5, 2)])
def test_overlapping_subscriptions_may_bring_one_copy(version: int, copies: int) -> None:
    server = Server(Limits(allow_duplicate_messages=False))
    peer = server.client("c", version)
    peer.send(Subscribe(1, [SubscriptionRequest("t/+", 0), SubscriptionRequest("t/#", 1)]))
    peer.expect(SubAck)
    server.client("p").publish("t/1", b"x", 1)
    found = [one.qos for one in peer.publishes()]
    assert len(found) == copies
    assert max(found) == 1


def test_a_bridge_elsewhere_may_tell_its_state_below_sys() -> None:
    server = Server()
    watcher = subscribed(server, "w", "$SYS/broker/connection/#")
    peer = server.client("p")
    peer.publish("$SYS/broker/connection/there/state", b"1")
    peer.publish("$SYS/broker/connection/there/other", b"2")
    peer.publish("$SYS/broker/uptime", b"3")
    assert watcher.messages() == [("$SYS/broker/connection/there/state", b"1")]


def test_births_of_sparkplug_are_their_author_s(rules: Rules) -> None:
    server = Server(Limits(sparkplug=True), rules.listener())
    server.client("node", username="alice").publish("spBv1.0/g/NBIRTH/n", b"born", 1)
    subscribed(server, "late", "$sparkplug/certificates/#")
    assert ("publish", "node", "alice", "$sparkplug/certificates/spBv1.0/g/NBIRTH/n") in rules.asked


def test_births_are_not_retained_unless_that_is_wanted() -> None:
    server = Server()
    server.client("p").publish("spBv1.0/g/NBIRTH/n", b"born", 1)
    assert server.broker.retained.count == 0


def test_births_of_sparkplug_may_be_retained() -> None:
    server = Server(Limits(sparkplug=True))
    publisher = server.client("p")
    for topic in ("spBv1.0/g/NBIRTH/n", "spBv1.0/g/DBIRTH/n/d", "spBv1.0/g/NDATA/n", "spBv1.0/g/DBIRTH/n", "spBv1.0/x"):
        publisher.publish(topic, b"born", 1)
    late = subscribed(server, "late", "$sparkplug/certificates/#")
    assert {topic for topic, _payload in late.messages()} == {
        "$sparkplug/certificates/spBv1.0/g/NBIRTH/n",
        "$sparkplug/certificates/spBv1.0/g/DBIRTH/n/d",
    }
