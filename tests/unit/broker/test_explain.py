"""`explain` tells the right reason, for each reason there is."""

from __future__ import annotations

import pytest

from lockgate.broker import explain
from lockgate.broker.explain import Finding
from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.mqtt.packets import V3_1_1, Disconnect, Publish, Subscribe, SubscriptionRequest
from lockgate.mqtt.properties import Properties
from tests.support.rules import Rules
from tests.support.server import Server


def ask(server: Server, client_id: str = "c", topic: str = "t/a") -> list[Finding]:
    return explain.explain(server.broker, client_id, topic)


def only(server: Server, client_id: str = "c", topic: str = "t/a") -> Finding:
    findings = ask(server, client_id, topic)
    assert len(findings) == 1, [(one.reason, one.text) for one in findings]
    return findings[0]


def test_nothing_is_known_against_a_message_that_arrived() -> None:
    server = Server()
    client = server.client("c")
    client.subscribe("t/#")
    server.client("p").publish("t/a")
    assert len(client.publishes()) == 1
    assert only(server).reason == explain.NOTHING_KNOWN


def test_a_client_that_never_was() -> None:
    finding = only(Server(), "näver\n")
    assert finding.reason == explain.NO_SESSION
    assert "\\n" in finding.text


def test_no_matching_subscription() -> None:
    server = Server()
    client = server.client("c")
    assert "no subscriptions" in only(server).text
    client.subscribe("other/#")
    finding = only(server)
    assert finding.reason == explain.NO_MATCHING_SUBSCRIPTION
    assert finding.text.endswith("none of its subscriptions matches: other/#")
    client.subscribe("T/+")
    assert only(server).text.endswith("T/+ differs only in letter case or in a / at an end")


def test_many_subscriptions_are_not_all_listed() -> None:
    server = Server()
    client = server.client("c")
    client.send(Subscribe(1, [SubscriptionRequest(f"f/{number}", 0) for number in range(100)]))
    assert only(server).text.endswith("and 80 more")


def test_refused_by_a_rule() -> None:
    server = Server()
    client = server.client("c")
    client.subscribe("$SYS/#")
    publisher = server.client("p")
    publisher.send(Publish("$SYS/fake", b"x", 1, packet_id=1))
    finding = only(server, topic="$SYS/fake")
    assert finding.reason == "refused"
    assert finding.text == ("a message on this topic from client 'p' was refused: $SYS belongs to the Server")
    assert finding.count == 1


def test_refused_for_want_of_memory() -> None:
    server = Server(Limits(memory_budget=20_000))
    publisher = server.client("p")
    for number in range(30):
        publisher.send(Publish(f"r/{number}", b"x" * 1000, 0, True))
    publisher.send(Publish("t/a", b"x", 2, packet_id=1))
    refused = [one for one in ask(server, "p") if one.reason == "refused"]
    assert [one.text for one in refused] == [
        "a message on this topic from client 'p' was refused: the memory budget is spent"
    ]


def test_queue_full() -> None:
    server = Server(Limits(max_queued_messages=2, max_inflight_messages=1))
    client = server.client("c")
    client.subscribe("t/#", 1)
    publisher = server.client("p")
    for _ in range(5):
        publisher.publish("t/a", b"x", 1)
        server.advance(1)
    window, full = ask(server)
    assert window.reason == explain.WINDOW_FULL
    assert "2 messages wait" in window.text
    assert (full.reason, full.count, full.first_at, full.last_at) == ("queue full", 2, 1003.0, 1004.0)


def test_expired() -> None:
    server = Server()
    client = server.client("c", session_expiry_interval=60)
    client.subscribe("t/#", 1)
    client.lose()
    server.client("p").send(Publish("t/a", b"x", 1, packet_id=1, properties=Properties(message_expiry_interval=5)))
    server.advance(10)
    server.client("c", clean_start=False)
    assert [(one.reason, one.count) for one in ask(server)] == [("expired", 1), ("disconnected", 1)]


def test_no_local() -> None:
    server = Server()
    client = server.client("c")
    client.subscribe("t/#", no_local=True)
    client.publish("t/a")
    assert only(server).reason == "no local"
    assert only(server, topic="t/b").reason == explain.NOTHING_KNOWN


def test_too_large() -> None:
    server = Server()
    client = server.client("c", maximum_packet_size=100)
    client.subscribe("t/#", 1)
    publisher = server.client("p")
    publisher.publish("t/a", b"x" * 200, 1)
    publisher.publish("t/a", b"x" * 200, 0)
    finding = only(server)
    assert (finding.reason, finding.count) == ("too large", 2)


def test_window_full() -> None:
    server = Server()
    client = server.client("c", receive_maximum=3)
    client.subscribe("t/#", 1)
    publisher = server.client("p")
    for _ in range(5):
        publisher.publish("t/a", b"x", 1)
    finding = only(server)
    assert finding.reason == explain.WINDOW_FULL
    assert "2 messages wait" in finding.text
    assert "any of the 3" in finding.text


def test_a_slow_reader() -> None:
    server = Server(Limits(output_bytes=1500))
    client = server.client("c")
    client.subscribe("t/#")
    client.stop_reading()
    publisher = server.client("p")
    for _ in range(5):
        publisher.publish("t/a", b"x" * 400)
    waiting, dropped = ask(server)
    assert waiting.reason == explain.WAITING
    assert "2 messages wait" in waiting.text
    assert (dropped.reason, dropped.count) == ("slow reader", 3)


def test_disconnected_at() -> None:
    server = Server()
    client = server.client("c", session_expiry_interval=60)
    client.subscribe("t/#")
    server.advance(5)
    client.send(Disconnect())
    server.advance(5)
    now, then = ask(server)
    assert (now.reason, now.first_at) == ("not connected", 1005.0)
    assert now.text == "it is not connected; QoS 0 is not kept for it, and it subscribed with QoS 0"
    assert (then.reason, then.last_at, then.count) == ("disconnected", 1005.0, 1)


def test_a_session_that_ended() -> None:
    server = Server()
    client = server.client("c", session_expiry_interval=60)
    client.subscribe("t/#")
    server.peers[1].send_bytes(b"\x00\x00")
    server.advance(61)
    none, ended, lost = ask(server)
    assert none.reason == explain.NO_SESSION
    assert (ended.reason, ended.last_at) == ("session ended", 1060.0)
    assert "(it expired)" in ended.text
    assert "malformed packet" in lost.text


def test_shared_subscriptions() -> None:
    server = Server()
    server.client("c").subscribe("$share/g/t/#")
    finding = only(server)
    assert finding.reason == explain.SHARED
    assert "$share/g/t/#" in finding.text


def test_the_memory_budget() -> None:
    server = Server(Limits(memory_budget=60_000, max_queued_messages=0, queue_head=0))
    client = server.client("c", session_expiry_interval=60)
    client.subscribe("t/#", 1)
    client.lose()
    publisher = server.client("p")
    for _ in range(50):
        publisher.publish("t/a", b"x" * 1000, 1)
    assert "memory budget spent" in [one.reason for one in ask(server)]


def test_no_room_among_the_retained() -> None:
    server = Server(Limits(retained_messages=1))
    client = server.client("c")
    client.subscribe("t/#")
    publisher = server.client("p")
    publisher.publish("t/b", b"x", 0, True)
    publisher.publish("t/a", b"x", 0, True)
    finding = only(server)
    assert finding.reason == "not retained"
    assert "retained_messages" in finding.text


def test_another_client_s_decisions_say_nothing() -> None:
    server = Server()
    client = server.client("c")
    client.subscribe("t/#")
    other = server.client("d", maximum_packet_size=50)
    other.subscribe("t/#")
    server.client("p").publish("t/a", b"x" * 100)
    other.lose()
    assert only(server).reason == explain.NOTHING_KNOWN
    reasons = {one.reason for one in ask(server, "d")}
    assert reasons == {explain.NO_SESSION, "too large", "session ended", "disconnected"}


def test_nothing_known_says_since_when() -> None:
    server = Server(Limits(decisions=2))
    client = server.client("c")
    client.subscribe("t/#")
    finding = only(server)
    assert (finding.count, finding.first_at, finding.last_at) == (0, 0.0, 0.0)
    server.advance(5)
    server.client("d").lose()
    assert only(server).first_at == 1005.0


@pytest.mark.parametrize("topic_filter", ["/t/a", "t/a/", "/T/A/"])
def test_a_slash_too_many_is_found(topic_filter: str) -> None:
    server = Server()
    client = server.client("c")
    client.subscribe("other")
    client.subscribe(topic_filter)
    told = f"other, {topic_filter}" if topic_filter > "other" else f"{topic_filter}, other"
    assert only(server).text == (
        f"none of its subscriptions matches: {told}; {topic_filter} differs only in letter case or in a / at an end"
    )


@pytest.mark.parametrize(("count", "more"), [(20, ""), (21, " and 1 more")])
def test_twenty_subscriptions_are_listed(count: int, more: str) -> None:
    server = Server()
    names = [f"f/{number:02}" for number in range(count)]
    server.client("c").send(Subscribe(1, [SubscriptionRequest(name, 0) for name in names[::-1]]))
    assert only(server).text == f"none of its subscriptions matches: {', '.join(names[:20])}{more}"


def test_a_client_that_is_away_and_subscribed_above_qos_0() -> None:
    server = Server()
    client = server.client("c", session_expiry_interval=60)
    client.send(Subscribe(1, [SubscriptionRequest("t/a", 0), SubscriptionRequest("t/+", 1)]))
    client.lose()
    away, then = ask(server)
    assert away.text == "it is not connected; QoS 0 is not kept for it"
    assert (away.first_at, away.last_at, away.count) == (1000.0, 0.0, 0)
    assert then.text == "it was disconnected"


def test_a_shared_subscription_beside_a_plain_one_explains_nothing() -> None:
    server = Server()
    client = server.client("c")
    client.subscribe("$share/g/t/#")
    client.subscribe("t/#")
    assert only(server).reason == explain.NOTHING_KNOWN


def test_all_that_waits_is_counted() -> None:
    server = Server()
    client = server.client("c")
    client.subscribe("t/#", 1)
    client.stop_reading()
    publisher = server.client("p")
    for qos in (0, 0, 1, 1, 1):
        publisher.publish("t/a", b"x", qos)
    finding = only(server)
    assert finding.reason == explain.WAITING
    assert finding.text.startswith("5 messages wait")
    client.read_again()
    assert only(server).reason == explain.NOTHING_KNOWN


def test_others_decisions_on_the_topic_hide_none_of_its_own() -> None:
    server = Server()
    publisher = server.client("p")
    for name in ("before", "c", "after"):
        client = server.client(name, maximum_packet_size=50)
        client.subscribe("t/a")
    publisher.publish("t/a", b"x" * 100)
    assert only(server).reason == "too large"


def test_what_waits_at_qos_1_alone_is_counted() -> None:
    server = Server(Limits(output_bytes=10))
    client = server.client("c")
    client.subscribe("t/#", 1)
    client.stop_reading()
    publisher = server.client("p")
    for _ in range(3):
        publisher.publish("t/a", b"x", 1)
    finding = only(server)
    assert finding.reason == "waiting"
    assert finding.text.startswith("2 messages wait")
    assert (finding.count, finding.first_at, finding.last_at) == (0, 0.0, 0.0)


def test_a_retained_message_that_was_cleared() -> None:
    server = Server()
    publisher = server.client("p")
    publisher.publish("t/a", b"x", retain=True)
    server.client("c").subscribe("t/#")
    publisher.publish("t/a", b"", retain=True)
    finding = only(server)
    assert (finding.reason, finding.count) == ("retained cleared", 1)
    assert "by client 'p'" in finding.text
    publisher.publish("t/a", b"y", retain=True)
    assert only(server).reason == explain.NOTHING_KNOWN


def test_a_retained_message_that_expired() -> None:
    server = Server()
    publisher = server.client("p")
    publisher.send(Publish("t/a", b"x", retain=True, properties=Properties(message_expiry_interval=10)))
    server.client("c").subscribe("t/#")
    server.advance(100.0)
    finding = only(server)
    assert finding.reason == "retained expired"
    assert "client 'p'" in finding.text


def test_a_retained_message_that_is_there_again_hides_nothing_else() -> None:
    server = Server(Limits(message_size=5))
    publisher = server.client("p")
    server.client("c").subscribe("t/#")
    publisher.publish("t/a", b"123456")
    publisher.publish("t/a", b"x", retain=True)
    publisher.publish("t/a", b"", retain=True)
    publisher.publish("t/a", b"y", retain=True)
    server.client("q").publish("t/a", b"123456", 1)
    findings = ask(server)
    assert [one.reason for one in findings] == ["refused", "refused"]
    assert {one.text for one in findings} == {
        f"a message on this topic from client {who!r} was refused: it is larger than message_size_limit" for who in "pq"
    }


@pytest.mark.parametrize(("username", "who"), [("alice", "user 'alice'"), (None, "an anonymous client")])
def test_not_permitted(username: str | None, who: str) -> None:
    rules = Rules()
    server = Server(listener=rules.listener())
    server.client("c", username=username).subscribe("t/#")
    assert only(server).reason == explain.NOTHING_KNOWN
    rules.deny("receive", "t/a")
    finding = only(server)
    assert (finding.reason, finding.count) == ("not permitted", 0)
    assert finding.text == f"the rules do not let {who} with client id 'c' receive this topic"


def test_what_is_not_permitted_needs_no_other_reason() -> None:
    rules = Rules()
    server = Server(listener=rules.listener())
    client = server.client("c", session_expiry_interval=60)
    client.subscribe("t/#")
    client.lose()
    assert [one.reason for one in ask(server)] == ["not connected", "disconnected"]
    rules.deny("receive", "t/a")
    assert [one.reason for one in ask(server)] == ["not permitted", "disconnected"]


def test_a_publisher_that_is_not_permitted() -> None:
    rules = Rules()
    server = Server(listener=rules.listener())
    server.client("c").subscribe("t/#")
    rules.deny("publish", "t/a")
    server.client("p").publish("t/a")
    finding = only(server)
    text = "a message on this topic from client 'p' was refused: the rules do not let it publish here"
    assert (finding.reason, finding.text) == ("refused", text)


# --- what operators are told beside -----------------------------------------------------------------------------------


def test_the_list_of_sessions() -> None:
    server = Server(Limits(max_inflight_messages=1))
    away = server.client("a", session_expiry_interval=60, username="alice")
    away.subscribe("t/#", 1)
    server.client("b", V3_1_1, False).subscribe("u")
    for payload in (b"12345", b"123", b"12"):
        server.client("p").publish("t", payload, 1)
    away.lose()
    server.advance(10)
    unknown = {"queued": 0, "queued_bytes": 0, "in_flight": 0, "user": None, "expires_in": None}
    address = "192.0.2.1:5000"
    assert explain.session_list(server.broker, server.now) == [
        {"client_id": "a", "user": None, "address": None, "durable": True, "subscriptions": 1, "queued": 2}
        | {"queued_bytes": 7, "in_flight": 1, "expires_in": 50.0},
        {"client_id": "b", "address": address, "durable": True, "subscriptions": 1} | unknown,
        {"client_id": "p", "address": address, "durable": False, "subscriptions": 0} | unknown,
    ]


def test_all_that_decides_on_a_delivery() -> None:
    rules = Rules()
    server = Server(Limits(max_inflight_messages=1), rules.listener(mount_point="house/"))
    nothing = {"session": None, "retained": None, "publisher": None}
    assert explain.delivery(server.broker, "c", "house/t", "p", server.now) == nothing
    client = server.client("c", username="alice", session_expiry_interval=60)
    client.subscribe("t/#", 1, no_local=True)
    client.subscribe("$share/g/u", 2)
    for client_id in ("z", "y"):
        server.client(client_id).subscribe("$share/g/u", 2)
    publisher = server.client("p", username="bob")
    properties = Properties(message_expiry_interval=30)
    publisher.send(Publish("t", b"kept", 1, True, packet_id=1, properties=properties))
    publisher.publish("t", b"x", 1)
    rules.deny("publish", "house/t")
    rules.deny("receive", "house/t")
    server.advance(10)
    said = explain.delivery(server.broker, "c", "house/t", "p", server.now)
    first = {"filter": "house/t/#", "matches": True, "qos": 1, "no_local": True, "share": "", "others": []}
    shared = {"filter": "$share/g/house/u", "matches": False, "qos": 2, "no_local": False, "share": "g"}
    session = {
        "user": "alice", "address": "192.0.2.1:5000", "mount_point": "house/", "disconnected_for": None,
        "durable": True, "subscriptions": [first, shared | {"others": ["y", "z"]}], "may_receive": False, "queued": 1,
        "in_flight": 1,
    }  # fmt: skip
    assert said == {
        "session": session,
        "retained": {"qos": 1, "payload_bytes": 4, "publisher": "p", "expires_in": 20.0},
        "publisher": {"connected": True, "user": "bob", "may_publish": False},
    }
    rules.denied.clear()
    client.lose()
    publisher.publish("t", b"for good", retain=True)
    server.advance(5)
    said = explain.delivery(server.broker, "c", "house/t", "", server.now)
    gone = {"address": None, "mount_point": "", "disconnected_for": 5.0, "may_receive": True}
    assert said["session"] == session | gone
    assert said["publisher"] is None
    retained = said["retained"]
    assert isinstance(retained, dict)
    assert retained["expires_in"] is None
    away = server.client("away", session_expiry_interval=60)
    away.lose()
    said = explain.delivery(server.broker, "c", "t", "away", server.now)
    assert said["publisher"] == {"connected": False, "user": None, "may_publish": True}


def test_where_there_are_no_rules_everything_is_permitted() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True))
    server.client("c").subscribe("t")
    server.client("p")
    said = explain.delivery(server.broker, "c", "t", "p", server.now)
    assert isinstance(said["session"], dict)
    assert isinstance(said["publisher"], dict)
    assert (said["session"]["may_receive"], said["publisher"]["may_publish"]) == (True, True)


def test_the_tree_of_subscriptions() -> None:
    server = Server()
    for client_id, topic_filter, qos in (("a", "x/y/z", 1), ("b", "x/y/z", 2), ("c", "x", 0), ("c", "$share/g/w/#", 0)):
        server.client(client_id, V3_1_1, False).subscribe(topic_filter, qos)
    assert explain.subscription_tree(server.broker).splitlines() == [
        "    w",
        "      # (c, 0)",
        "    x (c, 0)",
        "      y",
        "        z (a, 1) (b, 2)",
    ]
