"""Where MQTT 3.1 differs from 3.1.1."""

from __future__ import annotations

from lockgate.broker.limits import Limits
from lockgate.mqtt.packets import V3_1, PubAck, PubComp, Publish, PubRec, PubRel, SubAck, Subscribe, SubscriptionRequest
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def test_mqtt_2_1_1_dup_in_subscribe_unsubscribe_and_pubrel_is_taken() -> None:
    server = Server()
    peer = server.client("s", V3_1)
    peer.send_bytes(raw.subscribe(V3_1, b"t", 1, first=0x8A))
    assert peer.one() == SubAck(7, [1])
    peer.send_bytes(raw.unsubscribe(V3_1, b"t", first=0xAA))
    assert len(peer.received()) == 1
    peer.send(Publish("t", b"x", 2, packet_id=3))
    assert peer.one() == PubRec(3)
    peer.send_bytes(raw.packet(0x6A, raw.number(3)))
    assert peer.one() == PubComp(3)


def test_mqtt_2_1_2_flags_without_a_meaning_are_not_looked_at() -> None:
    peer = Server().client("s", V3_1)
    for flags in range(16):
        peer.send_bytes(bytes((0xC0 | flags, 0)))
    assert scenarios.first_bytes(peer.output) == [0x20] + [0xD0] * 16
    peer.received()
    peer.send_bytes(raw.subscribe(V3_1, b"t", 1, first=0x80))
    assert peer.one() == SubAck(7, [1])
    fresh = Server().peer(V3_1)
    fresh.send_bytes(raw.connect(V3_1, flags=raw.CLEAN | 1))
    scenarios.let_in(fresh)


def test_mqtt_3_1_1_mqisdp_at_level_3_is_let_in() -> None:
    peer = Server().peer(V3_1)
    peer.send_bytes(bytes.fromhex("100f00064d51497364700302003c000163"))
    assert peer.output == bytes.fromhex("20020000")


def test_mqtt_3_1_2_another_level_is_answered_by_return_code_1() -> None:
    for level in (0, 2, 4, 5):
        peer = Server().peer(V3_1)
        peer.send_bytes(raw.connect(V3_1, level=level))
        assert peer.output == bytes.fromhex("20020001")
        scenarios.assert_not_let_in(peer)


def test_mqtt_3_1_3_an_empty_client_identifier_is_rejected() -> None:
    for flags in (0, raw.CLEAN):
        peer = Server().peer(V3_1)
        peer.send_bytes(raw.connect(V3_1, raw.string(b""), flags))
        assert peer.output == bytes.fromhex("20020002")
        scenarios.assert_not_let_in(peer)


def test_mqtt_3_1_4_client_identifiers_of_up_to_23_characters_are_accepted() -> None:
    scenarios.ordinary_client_ids_are_accepted(V3_1)


def test_mqtt_3_1_5_a_longer_client_identifier_is_accepted() -> None:
    server = Server()
    server.client("x" * 24, V3_1)
    server.client("x" * 1000, V3_1)
    assert sorted(map(len, server.broker.sessions)) == [24, 1000]


def test_mqtt_3_1_6_user_name_and_password_may_be_left_out() -> None:
    flags = raw.CLEAN | raw.USERNAME | raw.PASSWORD
    for payload in (b"", raw.string(b"user"), raw.string(b"user") + raw.string(b"secret")):
        peer = Server().peer(V3_1)
        peer.send_bytes(raw.connect(V3_1, raw.string(b"c") + payload, flags))
        scenarios.let_in(peer)


def test_mqtt_3_1_7_the_will_comes_after_one_and_a_half_keep_alives_of_silence() -> None:
    scenarios.silence_ends_the_connection(V3_1)


def test_mqtt_3_1_8_a_client_that_connects_again_takes_the_place_of_its_old_connection() -> None:
    scenarios.takeover_ends_the_old_connection(V3_1)


def test_mqtt_3_1_9_clean_session_0_keeps_subscriptions_and_messages() -> None:
    scenarios.every_matching_session_gets_the_message(V3_1)


def test_mqtt_3_1_9_clean_session_1_drops_them() -> None:
    scenarios.clean_start_drops_the_session(V3_1)


def test_mqtt_3_2_1_connack_has_no_session_present_flag() -> None:
    server = Server()
    for _time in range(2):
        peer = server.client("a", V3_1, clean_start=False)
        assert peer.output == bytes.fromhex("20020000")
        scenarios.leave(peer)


def test_mqtt_3_3_1_a_publish_that_is_not_authorised_is_acknowledged_like_any_other() -> None:
    server = Server()
    peer = server.client("p", V3_1)
    peer.send(Publish("$SYS/x", b"x", 1, packet_id=4), Publish("$SYS/x", b"x", 2, packet_id=5), PubRel(5))
    assert peer.received() == [PubAck(4), PubRec(5), PubComp(5)]


def test_mqtt_3_8_1_a_subscription_brings_retained_messages_with_retain() -> None:
    server = Server()
    server.client("p", V3_1).publish("t", b"kept", 1, retain=True)
    peer = server.client("s", V3_1)
    peer.subscribe("t", 1)
    [message] = peer.publishes()
    assert (message.payload, message.retain) == (b"kept", True)


def test_mqtt_3_9_1_suback_grants_a_qos_and_nothing_else() -> None:
    scenarios.granted_qos_is_told(V3_1)


def test_mqtt_4_1_1_qos_2_is_delivered_once() -> None:
    scenarios.qos_2_repetition_is_answered_and_delivered_once(V3_1)


def test_mqtt_4_2_1_unacknowledged_messages_are_sent_again_with_dup() -> None:
    scenarios.unacknowledged_packets_are_sent_again(V3_1)


def test_mqtt_3_9_1_a_subscription_beyond_the_limit_shows_a_granted_qos() -> None:
    server = Server(Limits(subscriptions=1))
    peer = server.client("s", V3_1)
    peer.send(Subscribe(1, [SubscriptionRequest("a", 1), SubscriptionRequest("b", 1)]))
    assert peer.one() == SubAck(1, [1, 1])
    server.client("p", V3_1).publish("b")
    assert peer.received() == []
