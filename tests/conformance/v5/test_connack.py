"""CONNACK (MQTT 5 §3.2)."""

from __future__ import annotations

from lockgate.broker.limits import Limits, ListenerLimits, ServerInformation
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import (
    V5,
    ConnAck,
    Connect,
    PingReq,
    Publish,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.conformance import scenarios
from tests.support.server import Server


def test_mqtt_3_2_0_1_connack_comes_before_any_other_packet() -> None:
    scenarios.connack_comes_first(V5)


def test_mqtt_3_2_0_2_a_connection_gets_one_connack() -> None:
    server = Server()
    peer = server.client("a")
    peer.send(PingReq(), Connect("a"))
    assert scenarios.first_bytes(peer.output) == [0x20, 0xD0, 0xE0]


def test_mqtt_3_2_2_1_reserved_flags_are_0() -> None:
    server = Server()
    for client_id, present in (("a", 0), ("a", 1)):
        peer = scenarios.durable(server, client_id, V5)
        assert peer.output[2] == present
        scenarios.leave(peer)
    assert scenarios.refusal(Server(), V5).output[2] == 0


def test_mqtt_3_2_2_2_clean_start_1_has_session_present_0() -> None:
    server = Server()
    scenarios.leave(scenarios.durable(server, "a", V5))
    peer = scenarios.durable(server, "a", V5, clean_start=True)
    assert peer.output[2:4] == bytes((0, 0))


def test_mqtt_3_2_2_3_clean_start_0_has_session_present_1_exactly_if_there_was_one() -> None:
    server = Server()
    peer = scenarios.durable(server, "a", V5)
    assert peer.output[2:4] == bytes((0, 0))
    scenarios.leave(peer)
    peer = scenarios.durable(server, "a", V5)
    assert peer.output[2:4] == bytes((1, 0))
    scenarios.leave(peer)
    server.advance(101)
    peer = scenarios.durable(server, "a", V5)
    assert peer.output[2:4] == bytes((0, 0))


def test_mqtt_3_2_2_6_a_refusal_has_session_present_0() -> None:
    peer = scenarios.refusal(Server(), V5)
    assert peer.output[2:4] == bytes((0, reason_codes.NOT_AUTHORIZED))


def test_mqtt_3_2_2_7_a_refusal_is_followed_by_closing() -> None:
    peer = scenarios.refusal(Server(), V5)
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code >= 0x80
    assert peer.closed


def test_mqtt_3_2_2_8_refusals_carry_codes_of_the_table() -> None:
    refused = []
    for connect, listener in (
        (Connect("a"), ListenerLimits(allow_anonymous=False)),
        (Connect("a", will=Will("w", b"", 2)), ListenerLimits(allow_anonymous=True, max_qos=1)),
        (Connect("a", properties=Properties(authentication_method="x")), ListenerLimits(allow_anonymous=True)),
    ):
        peer = Server(listener=listener).peer()
        peer.send(connect)
        refused.append(peer.output[3])
    assert refused == [
        reason_codes.NOT_AUTHORIZED,
        reason_codes.QOS_NOT_SUPPORTED,
        reason_codes.BAD_AUTHENTICATION_METHOD,
    ]
    assert set(refused) <= reason_codes.CONNACK_CODES


def test_mqtt_3_2_2_9_a_server_below_qos_2_announces_its_maximum() -> None:
    for max_qos in (0, 1, 2):
        peer = Server(listener=ListenerLimits(allow_anonymous=True, max_qos=max_qos)).client("a")
        assert peer.connack.properties is not None
        assert peer.connack.properties.maximum_qos == (None if max_qos == 2 else max_qos)


def test_mqtt_3_2_2_10_a_server_below_qos_2_accepts_subscribe_at_any_qos() -> None:
    scenarios.granted_qos_is_told(V5)


def test_mqtt_3_2_2_11_a_publish_above_the_maximum_qos_ends_the_connection() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_qos=1))
    peer = server.client("a")
    peer.send(Publish("t", b"x", 2, packet_id=1))
    scenarios.assert_ended(peer, reason_codes.QOS_NOT_SUPPORTED)


def test_mqtt_3_2_2_12_a_will_above_the_maximum_qos_is_refused() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_qos=1))
    peer = server.peer()
    peer.send(Connect("a", will=Will("will", b"gone", 2)))
    assert peer.one() == ConnAck(reason_codes.QOS_NOT_SUPPORTED)
    assert peer.closed


def test_mqtt_3_2_2_15_a_packet_above_the_maximum_packet_size_ends_the_connection() -> None:
    server = Server(Limits(max_packet_size=100))
    watcher = server.client("w")
    watcher.subscribe("t")
    peer = server.client("a")
    assert peer.connack.properties is not None
    assert peer.connack.properties.maximum_packet_size == 100
    peer.send(Publish("t", b"x" * 94))
    assert len(watcher.publishes()) == 1
    peer.send(Publish("t", b"x" * 95))
    scenarios.assert_ended(peer, reason_codes.PACKET_TOO_LARGE)
    assert watcher.received() == []


def test_mqtt_3_2_2_16_assigned_client_ids_are_new_ones() -> None:
    server = Server()
    server.client("invented-1")
    server.client("")
    server.client("")
    assert len(server.broker.sessions) == 3


def test_mqtt_3_2_2_17_an_alias_above_the_announced_maximum_ends_the_connection() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_topic_alias=3))
    peer = server.client("a")
    assert peer.connack.properties is not None
    assert peer.connack.properties.topic_alias_maximum == 3
    peer.send(Publish("t", properties=Properties(topic_alias=4)))
    scenarios.assert_ended(peer, reason_codes.TOPIC_ALIAS_INVALID)


def test_mqtt_3_2_2_18_an_alias_where_none_is_allowed_ends_the_connection() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_topic_alias=0))
    peer = server.client("a")
    assert peer.connack.properties is not None
    assert peer.connack.properties.topic_alias_maximum is None
    peer.send(Publish("t", properties=Properties(topic_alias=1)))
    scenarios.assert_ended(peer, reason_codes.TOPIC_ALIAS_INVALID)


def test_mqtt_3_2_2_21_silence_is_measured_by_the_server_keep_alive() -> None:
    server = Server(Limits(max_keepalive=10))
    peer = server.client("a", keep_alive=60)
    assert peer.connack.properties is not None
    assert peer.connack.properties.server_keep_alive == 10
    server.advance(14.9)
    assert not peer.closed
    server.advance(0.2)
    assert peer.closed


def test_mqtt_3_2_2_22_without_server_keep_alive_the_client_s_holds() -> None:
    server = Server(Limits(max_keepalive=100))
    peer = server.client("a", keep_alive=60)
    assert peer.connack.properties is not None
    assert peer.connack.properties.server_keep_alive is None
    server.advance(89.9)
    assert not peer.closed
    server.advance(0.2)
    assert peer.closed


def test_mqtt_3_2_2_19_a_reason_string_that_does_not_fit_is_left_out() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_qos=1))
    will = Will("will", b"gone", 2)
    peer = server.peer()
    peer.send(Connect("a", will=will))
    assert peer.one() == ConnAck(reason_codes.QOS_NOT_SUPPORTED)
    assert peer.reasons == ["the Will's QoS is above max_qos"]
    whole = len(peer.output)
    for maximum, sent in ((whole, whole), (whole - 1, 5), (5, 5), (4, 0)):
        peer = server.peer()
        peer.send(Connect("a", will=will, properties=Properties(maximum_packet_size=maximum)))
        assert len(peer.output) == sent
        assert peer.closed


def test_mqtt_3_2_2_19_a_server_reference_goes_before_the_reason_string() -> None:
    reference = "other.example:1883"
    server = Server(Limits(connections=1), information=ServerInformation(reference))
    server.client("first")
    peer = server.peer()
    peer.send(Connect("a"))
    refusal = ConnAck(reason_codes.USE_ANOTHER_SERVER, False, Properties(server_reference=reference))
    assert peer.one() == refusal
    assert peer.reasons == ["1 clients are connected"]
    for maximum, told in ((len(peer.output) - 1, refusal), (5, ConnAck(reason_codes.USE_ANOTHER_SERVER))):
        small = server.peer()
        small.send(Connect("a", properties=Properties(maximum_packet_size=maximum)))
        assert small.one() == told
        assert small.reasons == []


def test_mqtt_3_2_2_19_why_somebody_may_not_is_not_told() -> None:
    peer = scenarios.refusal(Server(), V5)
    assert peer.one() == ConnAck(reason_codes.NOT_AUTHORIZED)
    assert peer.reasons == []


def test_mqtt_3_2_2_20_connack_has_no_user_properties_to_leave_out() -> None:
    answers = [Server().client("a").connack]
    peer = Server(listener=ListenerLimits(allow_anonymous=True, max_qos=1)).peer()
    peer.send(Connect("a", will=Will("will", b"gone", 2)))
    assert peer.output.count(b"\x26") == 0
    for answer in answers:
        assert answer.properties is not None
        assert answer.properties.user_properties == ()
