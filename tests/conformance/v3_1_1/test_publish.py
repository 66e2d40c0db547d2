"""PUBLISH and PUBREL (MQTT 3.1.1 §3.3, §3.6)."""

from __future__ import annotations

from lockgate.mqtt.packets import V3_1_1, PubAck, PubComp, Publish, PubRec, PubRel
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def test_mqtt_3_3_1_1_a_publish_sent_again_has_dup() -> None:
    scenarios.sent_again_with_dup(V3_1_1)


def test_mqtt_3_3_1_2_qos_0_goes_out_without_dup() -> None:
    scenarios.qos_0_never_has_dup(V3_1_1)


def test_mqtt_3_3_1_2_qos_0_with_dup_ends_the_connection() -> None:
    scenarios.qos_0_with_dup_ends_the_connection(V3_1_1)


def test_mqtt_3_3_1_3_dup_is_not_passed_on() -> None:
    scenarios.dup_is_not_passed_on(V3_1_1)


def test_mqtt_3_3_1_4_qos_3_ends_the_connection() -> None:
    scenarios.qos_3_ends_the_connection(V3_1_1)


def test_mqtt_3_3_1_5_a_retained_message_is_kept_with_its_qos() -> None:
    scenarios.retained_is_replaced_with_its_qos(V3_1_1)


def test_mqtt_3_3_1_6_a_new_subscription_brings_the_retained_message_of_each_topic() -> None:
    server = Server()
    publisher = server.client("p", V3_1_1)
    for topic in ("a/1", "a/2", "b/1"):
        publisher.publish(topic, topic.encode(), 1, retain=True)
    peer = server.client("s", V3_1_1)
    peer.subscribe("a/+", 1)
    assert sorted(peer.messages()) == [("a/1", b"a/1"), ("a/2", b"a/2")]


def test_mqtt_3_3_1_7_a_retained_qos_0_message_discards_the_one_before() -> None:
    server = Server()
    publisher = server.client("p", V3_1_1)
    publisher.publish("t", b"old", 2, retain=True)
    publisher.publish("t", b"new", 0, retain=True)
    peer = server.client("s", V3_1_1)
    peer.subscribe("t", 2)
    [message] = peer.publishes()
    assert (message.payload, message.qos) == (b"new", 0)


def test_mqtt_3_3_1_8_what_a_new_subscription_brings_has_retain() -> None:
    server = Server()
    server.client("p", V3_1_1).publish("t", b"kept", 1, retain=True)
    peer = server.client("s", V3_1_1)
    peer.subscribe("t", 1)
    [message] = peer.publishes()
    assert message.retain


def test_mqtt_3_3_1_9_what_a_standing_subscription_brings_has_no_retain() -> None:
    server = Server()
    peer = server.client("s", V3_1_1)
    peer.subscribe("t", 1)
    for qos in (0, 1, 2):
        server.client("p", V3_1_1).publish("t", b"x", qos, retain=True)
    assert [message.retain for message in peer.publishes()] == [False] * 3


def test_mqtt_3_3_1_10_an_empty_retained_message_is_delivered_and_removes() -> None:
    scenarios.empty_retained_message_removes(V3_1_1)


def test_mqtt_3_3_1_11_an_empty_message_is_never_retained() -> None:
    scenarios.empty_message_is_never_retained(V3_1_1)


def test_mqtt_3_3_1_12_a_message_without_retain_leaves_the_retained_one() -> None:
    scenarios.unretained_message_leaves_the_retained_one(V3_1_1)


def test_mqtt_3_3_2_1_the_topic_name_is_a_proper_string() -> None:
    scenarios.topic_name_is_checked(V3_1_1)


def test_mqtt_3_3_2_2_wildcards_in_a_topic_name_end_the_connection() -> None:
    scenarios.wildcards_in_a_topic_name_end_the_connection(V3_1_1)


def test_mqtt_3_3_2_3_what_a_subscription_brings_matches_it() -> None:
    scenarios.what_a_subscription_brings_matches_it(V3_1_1)


def test_mqtt_3_3_4_1_publish_is_answered_by_its_qos() -> None:
    scenarios.publish_is_answered_by_its_qos(V3_1_1)


def test_mqtt_3_3_5_1_overlapping_subscriptions_reach_the_highest_qos() -> None:
    scenarios.overlapping_subscriptions_reach_the_highest_qos(V3_1_1)


def test_mqtt_3_3_5_2_a_publish_that_is_not_authorised_is_acknowledged_like_any_other() -> None:
    server = Server()
    watcher = server.client("w", V3_1_1)
    watcher.subscribe("$SYS/#", 2)
    peer = server.client("p", V3_1_1)
    peer.send(Publish("$SYS/x", b"x", 1, packet_id=4), Publish("$SYS/x", b"x", 2, packet_id=5))
    assert peer.received() == [PubAck(4), PubRec(5)]
    peer.send(PubRel(5))
    assert peer.one() == PubComp(5)
    assert watcher.received() == []


def test_mqtt_3_6_1_1_pubrel_with_other_flags_ends_the_connection() -> None:
    scenarios.reserved_flags_end_the_connection(V3_1_1, lambda flags: raw.packet(0x60 | flags, raw.number(1)), 2)
