"""Ping, DISCONNECT, Sessions, QoS, order, topics, flow and errors (MQTT 5 §3.12 to §4.9, §4.13)."""

from __future__ import annotations

from lockgate.broker.limits import Limits, ListenerLimits, ServerInformation
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import (
    V5,
    ConnAck,
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
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Peer, Server


def _told_to_leave() -> list[Peer]:
    """Give clients that the server sends away, for as many reasons as it has."""
    found = []
    for data in (
        b"\x00\x00",
        raw.publish(V5, b"a/+"),
        raw.publish(V5, b"t", own=b"\x23\x00\xff"),
        raw.connect(V5),
        raw.publish(V5, b"t", b"x" * 200),
        raw.publish(V5, b"t", b"x", 0x34, 1),
    ):
        limits = Limits(max_packet_size=100)
        peer = Server(limits, ListenerLimits(allow_anonymous=True, max_qos=1)).client("a")
        peer.send_bytes(data)
        found.append(peer)
    server = Server()
    found.append(server.client("a"))
    server.client("a")
    return found


def test_mqtt_3_12_4_1_a_ping_is_answered() -> None:
    scenarios.ping_is_answered(V5)


def test_mqtt_3_14_0_1_before_connack_there_is_no_disconnect() -> None:
    for data in (raw.publish(V5, b"t"), b"\xe0\x00", b"\x10\x00", raw.connect(V5, own=b"\x21\x00\x00")):
        peer = Server().peer()
        peer.send_bytes(data)
        assert peer.closed
        assert 0xE0 not in scenarios.first_bytes(peer.output)
    peer = scenarios.refusal(Server(), V5)
    assert scenarios.first_bytes(peer.output) == [0x20]


def test_mqtt_3_14_1_1_disconnect_with_reserved_flags_is_malformed() -> None:
    for flags in range(1, 16):
        server = Server()
        watcher = server.client("w")
        watcher.subscribe("will")
        peer = server.client("a", will=Will("will", b"gone"))
        peer.send_bytes(bytes((0xE0 | flags, 0)))
        scenarios.assert_ended(peer)
        assert watcher.messages() == [("will", b"gone")]


def test_mqtt_3_14_2_1_disconnect_of_the_server_has_a_code_of_the_table() -> None:
    codes = []
    for peer in _told_to_leave():
        packet = peer.one()
        assert isinstance(packet, Disconnect)
        codes.append(packet.reason_code)
    assert codes == [
        reason_codes.MALFORMED_PACKET,
        reason_codes.MALFORMED_PACKET,
        reason_codes.TOPIC_ALIAS_INVALID,
        reason_codes.PROTOCOL_ERROR,
        reason_codes.PACKET_TOO_LARGE,
        reason_codes.QOS_NOT_SUPPORTED,
        reason_codes.SESSION_TAKEN_OVER,
    ]
    assert set(codes) <= reason_codes.DISCONNECT_CODES


def test_mqtt_3_14_2_1_disconnect_of_a_client_with_another_code_is_a_protocol_error() -> None:
    server = Server()
    for code in range(256):
        peer = server.client("a")
        peer.send_bytes(raw.packet(0xE0, bytes((code,))))
        if code in reason_codes.DISCONNECT_CODES:
            assert peer.received() == []
            assert peer.closed
        else:
            scenarios.assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def test_mqtt_3_14_2_2_disconnect_of_the_server_has_no_session_expiry_interval() -> None:
    for peer in _told_to_leave():
        packet = peer.one()
        assert isinstance(packet, Disconnect)
        assert packet.properties is None or packet.properties.session_expiry_interval is None


def test_mqtt_3_14_2_2_disconnect_of_a_client_may_change_the_session_expiry_interval() -> None:
    server = Server()
    peer = server.client("a", session_expiry_interval=10)
    peer.send(Disconnect(0, Properties(session_expiry_interval=100)))
    server.advance(99)
    peer = server.client("a", clean_start=False)
    assert peer.connack.session_present
    peer.send(Disconnect(0, Properties(session_expiry_interval=1)))
    scenarios.assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def test_mqtt_3_14_4_1_nothing_is_sent_after_disconnect() -> None:
    for peer in _told_to_leave():
        assert isinstance(peer.received()[-1], Disconnect)
        peer.send_bytes(b"\xc0\x00")
        assert peer.received() == []
    server = Server()
    peer = server.client("s")
    peer.subscribe("t", 1)
    peer.send_bytes(b"\xc0\x00" + raw.publish(V5, b"t", b"own") + b"\x00\x00" + b"\xc0\x00")
    server.client("p").publish("t", b"x", 1)
    assert scenarios.first_bytes(peer.output)[-1] == 0xE0


def test_mqtt_3_14_4_2_after_disconnect_the_server_closes() -> None:
    for peer in _told_to_leave():
        assert isinstance(peer.one(), Disconnect)
        assert peer.connection.is_closing


def test_mqtt_3_14_4_3_disconnect_0x00_discards_the_will() -> None:
    scenarios.disconnect_discards_the_will(V5)


def test_mqtt_4_1_0_1_session_state_is_kept_while_connected() -> None:
    scenarios.session_lasts_while_connected(V5)


def test_mqtt_4_1_0_1_a_long_connection_does_not_use_up_the_session_s_time() -> None:
    server = Server()
    peer = server.client("a", session_expiry_interval=10)
    peer.subscribe("t", 1)
    server.advance(1000)
    peer.lose()
    server.advance(9)
    assert server.client("a", clean_start=False).connack.session_present


def test_mqtt_4_1_0_2_session_state_is_dropped_when_its_time_is_over() -> None:
    server = Server()
    peer = server.client("a", session_expiry_interval=10)
    peer.subscribe("t", 1)
    peer.lose()
    server.client("p").publish("t", b"x", 1)
    server.advance(10)
    assert "a" not in server.broker.sessions
    peer = server.client("a", clean_start=False)
    assert not peer.connack.session_present
    server.client("q").publish("t", b"x", 1)
    assert peer.received() == []


def test_mqtt_4_1_0_2_without_an_interval_it_ends_with_the_connection() -> None:
    server = Server()
    server.client("a").lose()
    assert server.broker.sessions == {}


def test_mqtt_4_2_0_1_bytes_may_come_in_any_pieces() -> None:
    scenarios.bytes_may_come_in_any_pieces(V5)


def test_mqtt_4_3_1_1_qos_0_is_sent_with_qos_0_and_no_dup() -> None:
    scenarios.qos_0_never_has_dup(V5)


def test_mqtt_4_3_2_1_qos_1_gets_a_free_identifier() -> None:
    scenarios.identifiers_of_the_server_are_free(V5)


def test_mqtt_4_3_2_2_qos_1_is_sent_without_dup_at_first() -> None:
    scenarios.identifiers_of_the_server_are_free(V5)


def test_mqtt_4_3_2_3_qos_1_is_unacknowledged_until_puback() -> None:
    scenarios.qos_1_is_unacknowledged_until_puback(V5)


def test_mqtt_4_3_2_4_qos_1_is_taken_over_and_acknowledged() -> None:
    scenarios.qos_1_is_taken_over_and_acknowledged(V5)


def test_mqtt_4_3_2_5_after_puback_the_identifier_means_a_new_message() -> None:
    scenarios.qos_1_identifier_means_a_new_message_after_puback(V5)


def test_mqtt_4_3_3_1_qos_2_gets_a_free_identifier() -> None:
    scenarios.identifiers_of_the_server_are_free(V5)


def test_mqtt_4_3_3_2_qos_2_is_sent_without_dup_at_first() -> None:
    scenarios.identifiers_of_the_server_are_free(V5)


def test_mqtt_4_3_3_3_publish_is_unacknowledged_until_pubrec() -> None:
    scenarios.qos_2_publish_is_unacknowledged_until_pubrec(V5)


def test_mqtt_4_3_3_4_pubrec_is_answered_by_pubrel() -> None:
    scenarios.qos_2_pubrec_is_answered_by_pubrel(V5)


def test_mqtt_4_3_3_4_a_pubrec_that_refuses_is_not_answered() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("t", 2)
    server.client("p").publish("t", b"x", 2)
    [message] = peer.publishes()
    for _time in range(2):
        peer.send(PubRec(message.packet_id, reason_codes.UNSPECIFIED_ERROR))
        assert peer.received() == []
    assert server.broker.sessions["s"].in_flight == {}


def test_mqtt_4_3_3_5_pubrel_is_unacknowledged_until_pubcomp() -> None:
    scenarios.qos_2_pubrel_is_unacknowledged_until_pubcomp(V5)


def test_mqtt_4_3_3_6_publish_is_not_sent_again_after_pubrel() -> None:
    scenarios.qos_2_is_not_published_again_after_pubrel(V5)


def test_mqtt_4_3_3_7_what_was_sent_does_not_expire() -> None:
    for qos in (1, 2):
        server = Server()
        peer = scenarios.durable(server, "s", V5)
        peer.subscribe("t", qos)
        publisher = server.client("p")
        publisher.send(Publish("t", b"x", qos, packet_id=1, properties=Properties(message_expiry_interval=10)))
        if qos == 2:
            publisher.send(PubRel(1))
        [message] = peer.publishes()
        peer.lose()
        server.advance(50)
        [again] = scenarios.durable(server, "s", V5).publishes()
        assert (again.packet_id, again.dup) == (message.packet_id, True)


def test_mqtt_4_3_3_8_qos_2_is_taken_over_and_answered_by_pubrec() -> None:
    scenarios.qos_2_is_taken_over_and_answered(V5)


def test_mqtt_4_3_3_9_after_a_pubrec_that_refuses_the_identifier_means_a_new_message() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("t", 2)
    publisher = server.client("p")
    publisher.send(Publish("$SYS/forbidden", b"x", 2, packet_id=5))
    assert publisher.one() == PubRec(5, reason_codes.NOT_AUTHORIZED)
    publisher.send(Publish("t", b"new", 2, packet_id=5))
    assert publisher.one() == PubRec(5)
    publisher.send(PubRel(5))
    assert publisher.one() == PubComp(5)
    assert peer.messages() == [("t", b"new")]


def test_mqtt_4_3_3_10_a_repeated_publish_is_answered_and_delivered_once() -> None:
    scenarios.qos_2_repetition_is_answered_and_delivered_once(V5)


def test_mqtt_4_3_3_11_pubrel_is_answered_by_pubcomp() -> None:
    scenarios.qos_2_pubrel_is_answered_by_pubcomp(V5)


def test_mqtt_4_3_3_12_after_pubcomp_the_identifier_means_a_new_message() -> None:
    scenarios.qos_2_identifier_means_a_new_message_after_pubcomp(V5)


def test_mqtt_4_3_3_13_the_exchange_goes_on_although_the_message_expired() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("t", 2)
    publisher = server.client("p")
    publisher.send(Publish("t", b"x", 2, packet_id=1, properties=Properties(message_expiry_interval=10)))
    assert publisher.one() == PubRec(1)
    server.advance(20)
    publisher.send(Publish("t", b"x", 2, dup=True, packet_id=1, properties=Properties(message_expiry_interval=0)))
    assert publisher.one() == PubRec(1)
    publisher.send(PubRel(1))
    assert publisher.one() == PubComp(1)
    assert peer.received() == []


def test_mqtt_4_4_0_1_unacknowledged_packets_are_sent_again_with_their_identifiers() -> None:
    scenarios.unacknowledged_packets_are_sent_again(V5)


def test_mqtt_4_4_0_2_what_was_refused_is_not_sent_again() -> None:
    server = Server()
    peer = scenarios.durable(server, "s", V5)
    peer.subscribe("t", 2)
    publisher = server.client("p")
    for qos in (1, 2):
        publisher.publish("t", b"x", qos)
    at_1, at_2 = peer.publishes()
    peer.send(PubAck(at_1.packet_id, reason_codes.QUOTA_EXCEEDED), PubRec(at_2.packet_id, reason_codes.NOT_AUTHORIZED))
    peer.lose()
    assert scenarios.durable(server, "s", V5).received() == []


def test_mqtt_4_5_0_1_every_matching_session_gets_the_message() -> None:
    scenarios.every_matching_session_gets_the_message(V5)


def test_mqtt_4_6_0_2_pubacks_of_the_server_keep_the_order_of_the_messages() -> None:
    scenarios.acknowledgements_keep_the_order_of_messages(V5, 1)


def test_mqtt_4_6_0_3_pubrecs_of_the_server_keep_the_order_of_the_messages() -> None:
    scenarios.acknowledgements_keep_the_order_of_messages(V5, 2)


def test_mqtt_4_6_0_4_pubrels_of_the_server_keep_the_order_of_the_pubrecs() -> None:
    scenarios.pubrels_keep_the_order_of_pubrecs(V5)


def test_mqtt_4_6_0_1_the_server_sends_again_in_the_first_order() -> None:
    scenarios.sent_again_in_the_first_order(V5)


def test_mqtt_4_6_0_5_messages_are_passed_on_in_their_order() -> None:
    scenarios.messages_keep_their_order(V5)


def test_mqtt_4_6_0_6_every_topic_is_ordered() -> None:
    server = Server(Limits(max_inflight_messages=2))
    peer = scenarios.durable(server, "s", V5)
    peer.subscribe("#", 1)
    peer.lose()
    publishers = [server.client(name) for name in ("p", "q")]
    for count in range(20):
        publishers[count % 2].publish(f"t{count % 5}", b"%d" % count, 1 + count % 2)
    taken = scenarios.acknowledge_all(scenarios.durable(server, "s", V5))
    assert scenarios.payloads(taken) == [b"%d" % count for count in range(20)]


def test_mqtt_4_7_0_1_wildcards_in_a_topic_name_are_malformed() -> None:
    scenarios.wildcards_in_a_topic_name_end_the_connection(V5)


def test_mqtt_4_7_1_1_the_multi_level_wildcard_is_the_last_level() -> None:
    scenarios.many_level_wildcard_is_the_last_level(V5)


def test_mqtt_4_7_1_2_the_single_level_wildcard_is_a_level() -> None:
    scenarios.one_level_wildcard_is_a_level(V5)


def test_mqtt_4_7_2_1_wildcards_do_not_match_topics_of_the_server() -> None:
    scenarios.wildcards_do_not_match_dollar_topics(V5)


def test_mqtt_4_7_3_1_topics_are_not_empty() -> None:
    scenarios.topics_are_not_empty(V5)


def test_mqtt_4_7_3_2_topics_have_no_null_character() -> None:
    scenarios.topics_have_no_nul(V5)


def test_mqtt_4_7_3_3_topics_of_65535_bytes_are_carried() -> None:
    scenarios.topics_of_65535_bytes_are_carried(V5)


def test_mqtt_4_7_3_4_nothing_is_normalised() -> None:
    scenarios.nothing_is_normalised(V5)


def test_mqtt_4_9_0_1_the_first_send_quota_is_within_the_receive_maximum() -> None:
    for maximum, sent in ((1, 1), (5, 5), (100, 20), (65_535, 20)):
        server = Server(Limits(max_inflight_messages=20))
        peer = server.client("s", receive_maximum=maximum)
        peer.subscribe("t", 1)
        publisher = server.client("p")
        for _count in range(30):
            publisher.publish("t", b"x", 1)
        assert len(peer.publishes()) == sent


def test_mqtt_4_9_0_1_the_send_quota_begins_anew_with_each_connection() -> None:
    server = Server()
    peer = scenarios.durable(server, "s", V5)
    peer.subscribe("t", 1)
    publisher = server.client("p")
    for _count in range(5):
        publisher.publish("t", b"x", 1)
    assert len(peer.publishes()) == 5
    peer.lose()
    peer = server.client("s", clean_start=False, session_expiry_interval=100, receive_maximum=2)
    assert len(peer.publishes()) == 2


def test_mqtt_4_9_0_2_at_quota_0_nothing_is_sent_at_qos_1_and_2() -> None:
    server = Server()
    peer = server.client("s", receive_maximum=2)
    peer.subscribe("t", 2)
    publisher = server.client("p")
    for qos in (1, 2, 1, 2):
        publisher.publish("t", b"x", qos)
    first, second = peer.publishes()
    server.advance(1000)
    assert peer.received() == []
    peer.send(PubRec(second.packet_id))
    assert peer.received() == [PubRel(second.packet_id)]
    peer.send(PubAck(first.packet_id))
    assert [message.qos for message in peer.publishes()] == [1]
    peer.send(PubComp(second.packet_id))
    assert [message.qos for message in peer.publishes()] == [2]


def test_mqtt_4_9_0_2_an_acknowledgement_of_nothing_gives_no_quota() -> None:
    server = Server()
    peer = server.client("s", receive_maximum=1)
    peer.subscribe("t", 2)
    publisher = server.client("p")
    publisher.publish("t", b"x", 2)
    publisher.publish("t", b"x", 2)
    [message] = peer.publishes()
    peer.send(PubAck(message.packet_id), PubComp(message.packet_id), PubAck(message.packet_id + 1), PubRec(999))
    assert peer.received() == [PubRel(999, reason_codes.PACKET_IDENTIFIER_NOT_FOUND)]


def test_mqtt_4_9_0_3_at_quota_0_all_other_packets_are_handled() -> None:
    server = Server()
    peer = server.client("s", receive_maximum=1)
    peer.subscribe("t", 1)
    server.client("p").publish("t", b"x", 1)
    assert len(peer.publishes()) == 1
    watcher = server.client("w")
    watcher.subscribe("own", 2)
    peer.send(PingReq(), Subscribe(3, [SubscriptionRequest("u")]), Unsubscribe(4, ["u"]))
    assert peer.received() == [PingResp(), SubAck(3, [0]), UnsubAck(4, [0])]
    for qos in (0, 1, 2):
        peer.publish("own", b"x", qos)
    assert len(watcher.publishes()) == 3


def test_mqtt_4_13_1_1_a_violation_ends_its_own_connection_only() -> None:
    scenarios.a_violation_ends_only_its_own_connection(V5)


def test_mqtt_4_13_1_1_what_cannot_be_read_is_malformed_and_what_must_not_be_is_a_protocol_error() -> None:
    malformed, error = reason_codes.MALFORMED_PACKET, reason_codes.PROTOCOL_ERROR
    for data, code in (
        (b"\x00\x00", malformed),
        (b"\xc0\x01\x00", malformed),
        (b"\x40\x01\x00", malformed),
        (b"\x50\x00", malformed),
        (b"\x30\x01\x00", malformed),
        (b"\x32\x04\x00\x01t\x00", malformed),  # half an identifier
        (b"\x30\x04\x00\x09t\x00", malformed),  # a Topic Name beyond its packet
        (b"\x82\x02\x00\x01", malformed),
        (raw.publish(V5, b"t", own=b"\x7f\x00"), malformed),  # an unknown property
        (raw.publish(V5, b"t", own=b"\x01"), malformed),  # half a property
        (b"\x30\xff\xff\xff\xff\x01", malformed),
        (raw.publish(V5, b"t", own=b"\x01\x02"), error),  # Payload Format Indicator 2
        (raw.publish(V5, b"t", own=b"\x01\x00\x01\x00"), error),  # twice
        (raw.publish(V5, b"t", own=b"\x11\x00\x00\x00\x01"), error),  # a Session Expiry Interval
        (raw.publish(V5, b""), error),
        (raw.subscribe(V5, b"t", own=b"\x0b\x00"), error),  # Subscription Identifier 0
        (raw.subscribe(V5, b"t", own=b"\x0b\x01\x0b\x02"), error),
        (b"\xd0\x00", error),
        (b"\x90\x04\x00\x01\x00\x00", error),
    ):
        peer = Server().client("a")
        peer.send_bytes(data)
        scenarios.assert_ended(peer, code)


def test_mqtt_4_13_2_1_a_code_of_0x80_or_above_closes() -> None:
    for peer in (*_told_to_leave(), scenarios.refusal(Server(), V5)):
        packet = peer.one()
        assert isinstance(packet, Disconnect | ConnAck)
        assert packet.reason_code >= 0x80
        assert peer.closed


def test_mqtt_4_13_2_1_a_client_that_says_so_is_gone_and_others_are_not() -> None:
    server = Server()
    bystander = server.client("b")
    for code in sorted(reason_codes.DISCONNECT_CODES):
        peer = server.client("a")
        peer.send(Disconnect(code))
        assert peer.closed
        assert "a" not in server.broker.sessions
    bystander.send(PingReq())
    assert bystander.one() == PingResp()


def test_mqtt_3_14_4_1_wills_of_a_server_that_stops_come_before_its_disconnect() -> None:
    server = Server(information=ServerInformation("other.example:1883"))
    watcher = server.client("w")
    watcher.subscribe("will")
    server.client("a", will=Will("will", b"gone"))
    server.broker.stop(server.now)
    server.flush()
    will, farewell = watcher.received()
    assert isinstance(will, Publish)
    expected = Properties(server_reference="other.example:1883")
    assert farewell == Disconnect(reason_codes.USE_ANOTHER_SERVER, expected)


def test_mqtt_3_14_2_3_a_reason_string_that_does_not_fit_is_left_out() -> None:
    peer = Server().client("a")
    peer.send_bytes(raw.publish(V5, b"a/+"))
    assert peer.one() == Disconnect(reason_codes.MALFORMED_PACKET)
    [reason] = peer.reasons
    assert "wildcard" in reason
    size = len(peer.output) - 16  # behind CONNACK
    for maximum, told in ((size, True), (size - 1, False)):
        peer = Server().client("a", maximum_packet_size=maximum)
        before = len(peer.output)
        peer.send_bytes(raw.publish(V5, b"a/+"))
        assert peer.one() == Disconnect(reason_codes.MALFORMED_PACKET)
        assert bool(peer.reasons) == told
        assert len(peer.output) - before <= maximum


def test_mqtt_3_14_2_3_a_reason_string_is_short_and_printable_whatever_the_client_said() -> None:
    peer = Server().client("a")
    peer.send_bytes(raw.publish(V5, "+\n\u2028\u00e9".encode() * 8000))
    assert peer.one() == Disconnect(reason_codes.MALFORMED_PACKET)
    [reason] = peer.reasons
    assert len(reason) == 200
    assert reason.isprintable()


def test_mqtt_3_14_2_4_disconnect_has_no_user_properties_to_leave_out() -> None:
    for peer in _told_to_leave():
        packet = peer.one()
        assert isinstance(packet, Disconnect)
        assert packet.properties is None or packet.properties.user_properties == ()


def test_mqtt_4_3_3_8_a_qos_2_message_is_passed_on_when_pubrel_arrives() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("t", 2)
    publisher = server.client("p")
    publisher.send(Publish("t", b"x", 2, packet_id=3))
    assert publisher.one() == PubRec(3)
    assert peer.received() == []
    publisher.send(PubRel(3))
    assert peer.messages() == [("t", b"x")]


def test_mqtt_4_3_3_10_other_content_under_an_identifier_in_use_takes_its_place() -> None:
    server = Server()
    peer = server.client("s")
    peer.subscribe("#", 2)
    publisher = server.client("p")
    publisher.send(Publish("t", b"first", 2, packet_id=3), Publish("u", b"second", 2, packet_id=3), PubRel(3))
    assert publisher.received() == [PubRec(3), PubRec(3), PubComp(3)]
    assert peer.messages() == [("u", b"second")]
