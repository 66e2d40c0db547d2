"""The Server's own figures below $SYS: retained, said when they change, never written and for nobody who is away."""

from __future__ import annotations

from lockgate.broker.ports import Message
from lockgate.broker.sys_topics import publish_figures
from lockgate.mqtt.packets import V3_1_1, Subscribe, SubscriptionRequest
from tests.support.server import Server


def test_a_figure_is_said_when_it_changes() -> None:
    server = Server()
    peer = server.client("a")
    peer.subscribe("$SYS/#", 2)
    for value in ("1", "1", "2"):
        publish_figures(server.broker, {"uptime": value}, server.now)
        server.flush()
    assert [(one.topic, one.payload, one.qos, one.retain) for one in peer.publishes()] == [
        ("$SYS/broker/uptime", b"1", 2, False),
        ("$SYS/broker/uptime", b"2", 2, False),
    ]


def test_who_subscribes_later_gets_the_last_one() -> None:
    server = Server()
    publish_figures(server.broker, {"uptime": "1"}, server.now)
    peer = server.client("a")
    peer.subscribe("#", 2)
    assert peer.publishes() == []  # a wildcard at the start never means $SYS
    peer.subscribe("$SYS/broker/+", 0)
    assert [(one.payload, one.retain) for one in peer.publishes()] == [(b"1", True)]


def test_nothing_of_it_goes_to_the_store() -> None:
    server = Server()
    peer = server.client("a", V3_1_1, clean_start=False)
    peer.subscribe("$SYS/#", 2)
    before = server.broker.last_change
    publish_figures(server.broker, {"uptime": "1"}, server.now)
    server.flush()
    assert [one.qos for one in peer.publishes()] == [0]
    peer.lose()
    publish_figures(server.broker, {"uptime": "2"}, server.now)
    assert server.broker.sessions["a"].queued_count == 0
    assert server.broker.last_change == before
    kept = server.broker.retained.get("$SYS/broker/uptime")
    assert isinstance(kept, Message)
    assert kept.payload == b"2"


def test_who_keeps_retain_as_published_sees_it() -> None:
    server = Server()
    for interval in (0, 100):
        peer = server.client("X", session_expiry_interval=interval)
        peer.subscribe("$SYS/#", 2, retain_as_published=True, no_local=True)
        peer.received()
        publish_figures(server.broker, {"uptime": f"interval {interval}"}, server.now)
        server.flush()
        assert [one.retain for one in peer.publishes()] == [True]


def test_what_comes_behind_subscribe_comes_once() -> None:
    server = Server()
    peer = server.client("a")
    peer.stop_reading()
    peer.send(Subscribe(1, [SubscriptionRequest("$SYS/#", 0)]))
    server.advance(1)
    publish_figures(server.broker, {"uptime": "1"}, server.now)
    peer.read_again()
    assert [type(packet).__name__ for packet in peer.received()] == ["SubAck", "Publish"]
