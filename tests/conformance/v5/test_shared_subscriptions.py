"""Shared Subscriptions (MQTT 5 §4.8.2)."""

from __future__ import annotations

from lockgate.broker.limits import Limits
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import V5, PubAck, PubComp, PubRec, PubRel
from tests.conformance import scenarios
from tests.support.server import Server


def test_mqtt_4_8_2_1_a_shared_filter_needs_a_share_name() -> None:
    scenarios.filter_is_accepted(V5, b"$share/g/t")
    for bad in (b"$share//t", b"$share/", b"$share/g"):
        scenarios.filter_ends_the_connection(V5, bad, reason_codes.PROTOCOL_ERROR)
    scenarios.filter_is_accepted(V5, b"$shares//t")


def test_mqtt_4_8_2_2_a_share_name_has_no_wildcard_and_a_filter_behind_it() -> None:
    for good in (b"$share/g/#", b"$share/g/+/t", b"$share/g//", b"$share/$SYS/t"):
        scenarios.filter_is_accepted(V5, good)
    for bad in (b"$share/g+/t", b"$share/#/t", b"$share/+/t", b"$share/g/", b"$share/g#/t"):
        scenarios.filter_ends_the_connection(V5, bad, reason_codes.PROTOCOL_ERROR)


def test_mqtt_4_8_2_3_each_member_gets_messages_at_its_own_qos() -> None:
    server = Server()
    members = [server.client(f"s{qos}") for qos in (0, 1, 2)]
    for qos, member in enumerate(members):
        member.subscribe("$share/g/t", qos)
    publisher = server.client("p")
    for _time in range(2):
        for _member in members:
            publisher.publish("t", b"x", 2)
    for qos, member in enumerate(members):
        assert [message.qos for message in member.publishes()] == [qos, qos]


def test_mqtt_4_8_2_3_one_member_of_each_group_gets_a_message() -> None:
    server = Server()
    members = [server.client(name) for name in ("a", "b", "c")]
    for member in members:
        member.subscribe("$share/g/t")
    other = server.client("d")
    other.subscribe("$share/h/t")
    plain = server.client("e")
    plain.subscribe("t")
    publisher = server.client("p")
    for count in range(6):
        publisher.publish("t", b"%d" % count)
    assert [scenarios.payloads(member.publishes()) for member in members] == [[b"0", b"3"], [b"1", b"4"], [b"2", b"5"]]
    assert len(other.publishes()) == 6
    assert len(plain.publishes()) == 6


def test_mqtt_4_8_2_3_members_that_are_away_or_full_are_passed_over() -> None:
    server = Server(Limits(max_inflight_messages=2, max_queued_messages=2))
    away = scenarios.durable(server, "away", V5)
    away.subscribe("$share/g/t", 1)
    away.lose()
    full = server.client("full")
    full.subscribe("$share/g/t", 1)
    free = server.client("free")
    free.subscribe("$share/g/t", 1)
    publisher = server.client("p")
    taken = []
    for count in range(10):
        publisher.publish("t", b"%d" % count, 1)
        taken += scenarios.acknowledge_all(free)
    assert scenarios.payloads(full.publishes()) == [b"0", b"2"]
    assert scenarios.payloads(taken) == [b"1", *(b"%d" % count for count in range(3, 10))]
    free.lose()
    for count in range(10, 15):  # two wait for the one that is connected, two for the one that is away, one is lost
        publisher.publish("t", b"%d" % count, 1)
    assert server.broker.sessions["full"].queued_count == 2
    assert scenarios.payloads(scenarios.acknowledge_all(scenarios.durable(server, "away", V5))) == [b"12", b"13"]
    assert server.broker.statistics.dropped_queue_full == 1


def test_mqtt_4_8_2_4_a_qos_2_delivery_is_completed_with_the_member_that_began_it() -> None:
    server = Server()
    first = scenarios.durable(server, "first", V5)
    first.subscribe("$share/g/t", 2)
    second = server.client("second")
    second.subscribe("$share/g/t", 2)
    server.client("p").publish("t", b"x", 2)
    [message] = first.publishes()
    first.lose()
    assert second.received() == []
    first = scenarios.durable(server, "first", V5)
    [again] = first.publishes()
    assert (again.packet_id, again.payload, again.dup) == (message.packet_id, b"x", True)
    first.send(PubRec(again.packet_id))
    assert first.one() == PubRel(again.packet_id)
    first.lose()
    first = scenarios.durable(server, "first", V5)
    assert first.one() == PubRel(again.packet_id)
    first.send(PubComp(again.packet_id))
    assert second.received() == []


def test_mqtt_4_8_2_5_a_qos_2_message_whose_member_ended_goes_to_no_other() -> None:
    server = Server()
    first = scenarios.durable(server, "first", V5)
    first.subscribe("$share/g/t", 2)
    second = server.client("second")
    second.subscribe("$share/g/t", 2)
    server.client("p").publish("t", b"x", 2)
    assert len(first.publishes()) == 1
    first.lose()
    server.advance(101)
    assert "first" not in server.broker.sessions
    assert second.received() == []


def test_mqtt_4_8_2_5_what_the_member_had_not_got_goes_to_another() -> None:
    server = Server(Limits(max_inflight_messages=3))
    first = scenarios.durable(server, "first", V5)
    first.subscribe("$share/g/t", 2)
    publisher = server.client("p")
    for payload, qos in ((b"at 1", 1), (b"at 2", 2), (b"done", 1), (b"waits at 1", 1), (b"waits at 2", 2)):
        publisher.publish("t", payload, qos)
    sent = first.publishes()
    assert scenarios.payloads(sent) == [b"at 1", b"at 2", b"done"]
    first.send(PubAck(sent[2].packet_id))
    assert scenarios.payloads(first.publishes()) == [b"waits at 1"]
    first.lose()
    second = server.client("second")
    second.subscribe("$share/g/t", 2)
    assert second.received() == []
    server.advance(101)
    assert scenarios.payloads(scenarios.acknowledge_all(second)) == [b"at 1", b"waits at 1", b"waits at 2"]


def test_mqtt_4_8_2_6_a_message_that_a_member_refuses_goes_to_no_other() -> None:
    server = Server()
    first = scenarios.durable(server, "first", V5)
    first.subscribe("$share/g/t", 2)
    second = server.client("second")
    publisher = server.client("p")
    for qos in (1, 2):
        publisher.publish("t", b"x", qos)
    second.subscribe("$share/g/t", 2)
    at_1, at_2 = first.publishes()
    first.send(
        PubAck(at_1.packet_id, reason_codes.QUOTA_EXCEEDED),
        PubRec(at_2.packet_id, reason_codes.UNSPECIFIED_ERROR),
    )
    assert first.received() == []
    first.lose()
    server.advance(101)
    assert second.received() == []


def test_mqtt_4_8_2_5_what_is_handed_on_finds_its_group_by_any_filter() -> None:
    for topic_filter in ("$share/g/a/b", "$share/g/+/b", "$share/g/a/#", "$share/g/#"):
        server = Server()
        first = server.client("first")
        first.subscribe(topic_filter, 1)
        second = server.client("second")
        second.subscribe(topic_filter, 1)
        other = server.client("other")
        other.subscribe(topic_filter.replace("/g/", "/h/"), 1)
        server.client("p").publish("a/b", b"x", 1)
        assert len(first.publishes()) == len(other.publishes()) == 1
        first.lose()
        assert scenarios.payloads(second.publishes()) == [b"x"]
        assert other.received() == []


def test_mqtt_4_8_2_3_a_member_that_does_not_read_is_passed_over_at_qos_0() -> None:
    for published, granted in ((0, 2), (2, 0)):
        server = Server()
        stuck = server.client("stuck")
        stuck.subscribe("$share/g/t", granted)
        free = server.client("free")
        free.subscribe("$share/g/t", granted)
        stuck.stop_reading()
        publisher = server.client("p")
        for _time in range(4):
            publisher.publish("t", b"x", published)
        assert len(free.publishes()) == 4
        stuck.read_again()
        assert stuck.received() == []


def test_mqtt_4_8_2_5_messages_that_wander_from_member_to_member_leave_no_memory_behind() -> None:
    server = Server()
    before = server.broker.memory.used
    members = [server.client(str(number)) for number in range(5)]
    for member in members:
        member.subscribe("$share/g/t", 2)
    publisher = server.client("p")
    for count in range(20):
        publisher.publish("t", b"%d" % count, 1 + count % 2)
    for member in members:
        member.lose()
    publisher.lose()
    assert server.broker.memory.used == before
