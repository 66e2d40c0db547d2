"""What is counted is what happened."""

from __future__ import annotations

from lockgate.broker.limits import Limits
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V5, Connect, PingReq, Publish
from lockgate.mqtt.properties import Properties
from tests.support.server import Server


def totals(server: Server) -> dict[str, int]:
    """Everything that is not 0."""
    statistics = server.broker.statistics
    names = [name for name in dir(statistics) if not name.startswith("_")]
    values = {name: getattr(statistics, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int) and value}


def test_what_was_dropped_is_the_sum_of_the_reasons() -> None:
    statistics = Server().broker.statistics
    for place, name in enumerate(["lost", *sorted(name for name in dir(statistics) if name.startswith("dropped_"))]):
        setattr(statistics, name, 10**place)
    assert statistics.dropped == 1111111


def test_each_reason_has_its_name() -> None:
    statistics = Server().broker.statistics
    fields = ("queue_full", "slow", "expired", "not_permitted", "too_large", "shed")
    for place, name in enumerate(fields):
        setattr(statistics, f"dropped_{name}", place)
    statistics.lost = 6
    names = ("queue_full", "slow_reader", "expired", "not_permitted", "too_large", "memory", "lost")
    assert statistics.reasons() == dict(zip(names, range(7), strict=True))


def test_bytes_of_payloads_both_ways() -> None:
    server = Server()
    receivers = [server.client(str(qos)) for qos in range(3)]
    for qos, receiver in enumerate(receivers):
        receiver.subscribe("t", qos)
    retained = server.client("retained")
    publisher = server.client("p")
    publisher.publish("t", b"12345", 0)  # three go out at QoS 0
    publisher.publish("t", b"123", 2, True)  # and three at each one's own
    retained.subscribe("t", 1)
    statistics = server.broker.statistics
    assert (statistics.publish_bytes_received, statistics.publish_bytes_sent) == (8, 3 * 5 + 4 * 3)
    aliased = server.client("a", topic_alias_maximum=1)
    aliased.subscribe("u")
    publisher.publish("u", b"1", 0)
    assert (statistics.publish_bytes_received, statistics.publish_bytes_sent) == (9, 28)


def test_sessions_that_expired_are_counted() -> None:
    server = Server()
    for client_id in ("a", "b"):
        server.client(client_id, session_expiry_interval=10).lose()
    server.client("c").lose()
    assert server.broker.statistics.sessions_expired == 0
    server.advance(10)
    assert server.broker.statistics.sessions_expired == 2


def test_packets_and_bytes_both_ways() -> None:
    server = Server()
    client = server.client("c")
    assert totals(server) == {
        "bytes_received": len(encode(Connect("c", keep_alive=0), V5)),
        "bytes_sent": len(client.output),
        "packets_received": 1,
        "packets_sent": 1,
        "connections_accepted": 1,
    }
    client.subscribe("t", 1)
    before = totals(server)
    publish = encode(Publish("t", b"x", 1, packet_id=1), V5)
    client.send_bytes(publish + encode(PingReq(), V5))
    after = totals(server)
    assert after["bytes_received"] - before["bytes_received"] == len(publish) + 2
    assert after["bytes_sent"] == len(client.output)
    assert after["packets_received"] - before["packets_received"] == 2
    assert (after["publish_received"], after["publish_sent"], after["connections_accepted"]) == (1, 1, 1)
    server.client("d")
    assert totals(server)["connections_accepted"] == 2


def test_each_receiver_counts() -> None:
    server = Server()
    for number in range(3):
        server.client(str(number)).subscribe("t", number)
    publisher = server.client("p")
    for qos in range(3):
        publisher.publish("t", qos=qos)
    assert server.broker.statistics.publish_received == 3
    assert server.broker.statistics.publish_sent == 9


def test_each_drop_counts_by_its_reason() -> None:
    server = Server(Limits(max_queued_messages=1, max_inflight_messages=1, output_bytes=500, retained_messages=1))
    client = server.client("c", maximum_packet_size=150)
    client.subscribe("t", 1)
    publisher = server.client("p")
    publisher.publish("t", b"x" * 200, 1)
    publisher.publish("t", b"x" * 200, 0)
    assert server.broker.statistics.dropped_too_large == 2
    for _ in range(4):
        publisher.publish("t", b"x", 1)
    assert server.broker.statistics.dropped_queue_full == 2
    client.stop_reading()
    for _ in range(3):
        publisher.publish("t", b"x" * 40, 0)
    assert server.broker.statistics.dropped_slow == 1
    client.lose()
    assert server.broker.statistics.dropped_slow == 3  # what was kept for it goes with it
    for topic in ("r", "s", "t"):
        publisher.publish(topic, b"x", 1, True)
    assert server.broker.statistics.not_retained == 2
    away = server.client("away", session_expiry_interval=60)
    away.subscribe("u", 1)
    away.lose()
    soon = Properties(message_expiry_interval=1)
    publisher.send(Publish("u", b"x", 1, packet_id=1, properties=soon))
    server.advance(2)
    server.client("away", clean_start=False)
    assert server.broker.statistics.dropped_expired == 1
    assert server.broker.statistics.dropped_shed == 0
