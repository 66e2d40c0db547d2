"""CONNECT (MQTT 5 §3.1)."""

from __future__ import annotations

from lockgate.broker.limits import Limits, ListenerLimits, ServerInformation
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import (
    V5,
    ConnAck,
    Connect,
    Disconnect,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def test_mqtt_3_1_0_1_any_other_first_packet_ends_the_connection() -> None:
    for data in (raw.publish(V5, b"t"), raw.subscribe(V5, b"t"), b"\xc0\x00", b"\xe0\x00", b"\xf0\x00"):
        server = Server()
        peer = server.peer(V5)
        peer.send_bytes(data + raw.connect(V5))
        scenarios.assert_not_let_in(peer)
        assert peer.output == b""


def test_mqtt_3_1_0_2_a_second_connect_is_a_protocol_error() -> None:
    scenarios.second_connect_ends_the_connection(V5)


def test_mqtt_3_1_2_1_another_protocol_name_ends_the_connection() -> None:
    for name in (b"MQTTX", b"mqtt", b"", b"MQIsdp", b"HTTP"):
        peer = Server().peer(V5)
        peer.send_bytes(raw.connect(V5, name=name))
        scenarios.assert_not_let_in(peer)


def test_mqtt_3_1_2_2_a_level_above_5_is_answered_0x84() -> None:
    for level in (6, 7, 127):
        peer = Server().peer(V5)
        peer.send_bytes(raw.connect(V5, level=level))
        assert peer.output == bytes.fromhex("2003008400")
        scenarios.assert_not_let_in(peer)


def test_mqtt_3_1_2_3_the_reserved_connect_flag_ends_the_connection() -> None:
    scenarios.connect_is_refused(V5, raw.CLEAN | 1, raw.string(b"c"), raw.CLEAN, raw.string(b"c"))


def test_mqtt_3_1_2_4_clean_start_1_drops_the_old_session() -> None:
    scenarios.clean_start_drops_the_session(V5)


def test_mqtt_3_1_2_5_clean_start_0_goes_on_with_the_session() -> None:
    scenarios.session_is_resumed(V5)


def test_mqtt_3_1_2_6_clean_start_0_creates_a_session() -> None:
    scenarios.session_is_created(V5)


def test_mqtt_3_1_2_7_a_will_belongs_to_the_session_and_waits_with_it() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will")
    will = Will("will", b"gone", properties=Properties(will_delay_interval=60))
    server.client("a", clean_start=False, will=will, session_expiry_interval=30).lose()
    server.advance(29)
    assert watcher.received() == []
    server.advance(2)
    assert watcher.messages() == [("will", b"gone")]


def test_mqtt_3_1_2_8_a_will_is_published_however_the_connection_ends() -> None:
    scenarios.will_comes_however_the_connection_ends(V5)


def test_mqtt_3_1_2_8_a_will_waits_for_its_delay() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will")
    will = Will("will", b"gone", properties=Properties(will_delay_interval=10))
    server.client("a", clean_start=False, will=will, session_expiry_interval=100).lose()
    server.advance(9.9)
    assert watcher.received() == []
    server.advance(0.2)
    assert watcher.messages() == [("will", b"gone")]


def test_mqtt_3_1_2_8_a_will_is_published_at_the_latest_when_the_session_ends() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will")
    will = Will("will", b"gone", properties=Properties(will_delay_interval=1000))
    server.client("a", clean_start=False, will=will, session_expiry_interval=100).lose()
    server.client("a", clean_start=True)
    assert watcher.messages() == [("will", b"gone")]


def test_mqtt_3_1_2_8_disconnect_with_any_code_but_0x00_leaves_the_will() -> None:
    for code in sorted(reason_codes.DISCONNECT_CODES - {0}):
        server = Server()
        watcher = server.client("w")
        watcher.subscribe("will")
        peer = server.client("a", will=Will("will", b"gone"))
        peer.send(Disconnect(code))
        assert peer.closed
        assert watcher.messages() == [("will", b"gone")], hex(code)


def test_mqtt_3_1_2_8_disconnect_0x04_leaves_the_will_and_its_delay() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will")
    will = Will("will", b"gone", properties=Properties(will_delay_interval=10))
    server.client("a", clean_start=False, will=will, session_expiry_interval=100).send(
        Disconnect(reason_codes.DISCONNECT_WITH_WILL_MESSAGE)
    )
    assert watcher.received() == []
    server.advance(11)
    assert watcher.messages() == [("will", b"gone")]


def test_mqtt_3_1_2_9_will_flag_without_will_fields_ends_the_connection() -> None:
    scenarios.connect_is_refused(
        V5, raw.CLEAN | raw.WILL, raw.string(b"c"), raw.CLEAN | raw.WILL, raw.string(b"c") + scenarios.will_payload(V5)
    )


def test_mqtt_3_1_2_10_a_will_is_published_once() -> None:
    scenarios.will_comes_once(V5)


def test_mqtt_3_1_2_10_disconnect_0x00_removes_the_will() -> None:
    scenarios.disconnect_discards_the_will(V5)


def test_mqtt_3_1_2_11_will_qos_without_a_will_ends_the_connection() -> None:
    for qos in (raw.WILL_QOS_1, raw.WILL_QOS_2, raw.WILL_QOS_1 | raw.WILL_QOS_2):
        scenarios.connect_is_refused(V5, raw.CLEAN | qos, raw.string(b"c"), raw.CLEAN, raw.string(b"c"))


def test_mqtt_3_1_2_12_will_qos_3_ends_the_connection() -> None:
    payload = raw.string(b"c") + scenarios.will_payload(V5)
    flags = raw.CLEAN | raw.WILL
    for good in (0, raw.WILL_QOS_1, raw.WILL_QOS_2):
        scenarios.connect_is_refused(V5, flags | raw.WILL_QOS_1 | raw.WILL_QOS_2, payload, flags | good, payload)


def test_mqtt_3_1_2_13_will_retain_without_a_will_ends_the_connection() -> None:
    scenarios.connect_is_refused(V5, raw.CLEAN | raw.WILL_RETAIN, raw.string(b"c"), raw.CLEAN, raw.string(b"c"))


def test_mqtt_3_1_2_14_a_will_without_retain_is_not_retained() -> None:
    scenarios.will_is_retained(V5, False)


def test_mqtt_3_1_2_15_a_will_with_retain_is_retained() -> None:
    scenarios.will_is_retained(V5, True)


def test_mqtt_3_1_2_16_a_user_name_without_its_flag_ends_the_connection() -> None:
    scenarios.connect_is_refused(V5, raw.CLEAN, raw.string(b"c") + raw.string(b"user"), raw.CLEAN, raw.string(b"c"))


def test_mqtt_3_1_2_17_a_user_name_flag_without_user_name_ends_the_connection() -> None:
    scenarios.connect_is_refused(
        V5, raw.CLEAN | raw.USERNAME, raw.string(b"c"), raw.CLEAN | raw.USERNAME, raw.string(b"c") + raw.string(b"user")
    )


def test_mqtt_3_1_2_18_a_password_without_its_flag_ends_the_connection() -> None:
    scenarios.connect_is_refused(
        V5,
        raw.CLEAN | raw.USERNAME,
        raw.string(b"c") + raw.string(b"user") + raw.string(b"secret"),
        raw.CLEAN | raw.USERNAME,
        raw.string(b"c") + raw.string(b"user"),
    )


def test_mqtt_3_1_2_19_a_password_flag_without_password_ends_the_connection() -> None:
    scenarios.connect_is_refused(
        V5,
        raw.CLEAN | raw.PASSWORD,
        raw.string(b"c"),
        raw.CLEAN | raw.PASSWORD,
        raw.string(b"c") + raw.string(b"secret"),
    )


def test_mqtt_3_1_2_22_a_silent_client_is_closed_after_one_and_a_half_keep_alives() -> None:
    scenarios.silence_ends_the_connection(V5)


def test_mqtt_3_1_2_22_the_end_of_keep_alive_is_not_told() -> None:
    server = Server()
    peer = server.client("a", keep_alive=10)
    server.advance(16)
    assert peer.closed
    assert peer.received() == []


def test_mqtt_3_1_2_22_a_keep_alive_of_zero_never_closes() -> None:
    server = Server()
    peer = server.client("a", keep_alive=0)
    server.advance(10 * 86_400)
    assert not peer.closed


def test_mqtt_3_1_2_23_a_session_outlives_its_connection_by_its_expiry_interval() -> None:
    server = Server()
    peer = server.client("a", session_expiry_interval=100)
    peer.subscribe("t", 1)
    peer.lose()
    server.advance(99)
    server.client("p").publish("t", b"x", 1)
    peer = server.client("a", clean_start=False, session_expiry_interval=0xFFFFFFFF)
    assert peer.connack.session_present
    assert peer.messages() == [("t", b"x")]
    peer.lose()
    server.advance(0xFFFFFFFF * 2.0)
    assert server.client("a", clean_start=False).connack.session_present


def test_mqtt_3_1_2_24_no_publish_above_the_maximum_packet_size_is_sent() -> None:
    server = Server()
    peer = server.client("s", maximum_packet_size=40)
    peer.subscribe("t", 2)
    plain = server.client("plain")
    plain.subscribe("t", 2)
    publisher = server.client("p")
    for qos in (0, 1, 2):
        overhead = 6 if qos == 0 else 8
        publisher.publish("t", b"=" * (40 - overhead), qos)
        publisher.publish("t", b">" * (41 - overhead), qos)
    taken = scenarios.acknowledge_all(peer)
    assert [(message.qos, message.payload[:1]) for message in taken] == [(0, b"="), (1, b"="), (2, b"=")]
    assert len(plain.publishes()) == 6


def test_mqtt_3_1_2_24_a_client_that_cannot_take_connack_is_refused() -> None:
    server = Server()
    peer = server.peer()
    peer.send(Connect("a", properties=Properties(maximum_packet_size=15)))
    assert peer.closed
    assert peer.output == bytes.fromhex("2003009500")
    assert server.broker.sessions == {}
    peer = server.peer()
    peer.send(Connect("a", properties=Properties(maximum_packet_size=16)))
    scenarios.let_in(peer)
    assert len(peer.output) == 16


def test_mqtt_3_1_2_24_a_client_that_cannot_take_a_refusal_is_closed_without_a_word() -> None:
    for maximum, answer in ((4, ""), (5, "2003008700")):
        peer = Server(listener=ListenerLimits(allow_anonymous=False)).peer()
        peer.send(Connect("a", properties=Properties(maximum_packet_size=maximum)))
        assert peer.closed
        assert peer.output == bytes.fromhex(answer)


def test_mqtt_3_1_2_24_a_suback_that_is_too_large_is_not_sent() -> None:
    server = Server()
    peer = server.client("s", maximum_packet_size=20)
    peer.send(Subscribe(1, [SubscriptionRequest(f"t{count}") for count in range(16)]))
    assert peer.received() == [Disconnect(reason_codes.PACKET_TOO_LARGE)]
    assert peer.closed
    peer = server.client("s", maximum_packet_size=20)
    peer.send(Subscribe(2, [SubscriptionRequest(f"t{count}") for count in range(15)]))
    assert peer.one() == SubAck(2, [0] * 15)
    for filters, size in ((124, 129), (125, 131)):  # the Remaining Length takes a second byte
        for maximum in (size - 1, size):
            peer = server.client("s", maximum_packet_size=maximum)
            peer.send(Subscribe(2, [SubscriptionRequest(f"t{count}") for count in range(filters)]))
            assert peer.closed == (maximum < size)
            assert maximum < size or len(peer.output) == 16 + size  # behind CONNACK


def test_mqtt_3_1_2_25_what_is_too_large_counts_as_delivered() -> None:
    server = Server(Limits(max_inflight_messages=2))
    peer = scenarios.durable(server, "s", V5)
    peer.lose()
    peer = server.client("s", clean_start=False, maximum_packet_size=40, session_expiry_interval=100)
    peer.subscribe("t", 1)
    publisher = server.client("p")
    for count in range(10):
        publisher.publish("t", b"large" * 20, 1)
        publisher.publish("t", b"%d" % count, 1)
    assert scenarios.payloads(scenarios.acknowledge_all(peer)) == [b"%d" % count for count in range(10)]
    peer.lose()
    assert scenarios.durable(server, "s", V5).received() == []


def test_mqtt_3_1_2_25_a_qos_2_message_too_large_to_be_sent_again_is_ended_by_pubrel() -> None:
    server = Server()
    peer = scenarios.durable(server, "s", V5)
    peer.subscribe("t", 2)
    server.client("p").publish("t", b"large" * 20, 2)
    [message] = peer.publishes()
    peer.lose()
    peer = server.client("s", clean_start=False, maximum_packet_size=40, session_expiry_interval=100)
    assert peer.one() == PubRel(message.packet_id)
    peer.send(PubComp(message.packet_id))
    assert server.broker.sessions["s"].in_flight == {}


def test_mqtt_3_1_2_26_no_alias_above_the_client_s_maximum_is_sent() -> None:
    server = Server()
    peer = server.client("s", topic_alias_maximum=2)
    peer.subscribe("#")
    publisher = server.client("p")
    for _time in range(2):
        for topic in ("a", "b", "c", "d"):
            publisher.publish(topic)
    aliases = [message.properties and message.properties.topic_alias for message in peer.publishes()]
    assert aliases == [1, 2, None, None, 1, 2, None, None]


def test_mqtt_3_1_2_27_without_a_topic_alias_maximum_no_alias_is_sent() -> None:
    server = Server()
    zero = server.client("zero", topic_alias_maximum=0)
    absent = server.client("absent")
    publisher = server.client("p")
    for peer in (zero, absent):
        peer.subscribe("t")
    for _time in range(3):
        publisher.publish("t")
    for peer in (zero, absent):
        assert [(message.topic, message.properties) for message in peer.publishes()] == [("t", None)] * 3


def test_mqtt_3_1_2_28_response_information_is_not_returned_unasked() -> None:
    for wanted in (None, 0):
        peer = Server().peer()
        peer.send(Connect("a", properties=Properties(request_response_information=wanted)))
        properties = scenarios.let_in(peer).properties
        assert properties is not None
        assert properties.response_information is None


def test_mqtt_3_1_2_29_acknowledgements_have_neither_reason_string_nor_user_properties() -> None:
    server = Server()
    peer = server.client("a", request_problem_information=0)
    peer.send(
        Publish("nobody", b"x", 1, packet_id=1),
        Publish("$SYS/forbidden", b"x", 1, packet_id=2),
        Publish("$SYS/forbidden", b"x", 2, packet_id=3),
        PubRel(4),
        PubRec(5),
        Subscribe(6, [SubscriptionRequest("t")]),
    )
    packets = peer.received()
    assert len(packets) == 6
    for packet in packets:
        assert isinstance(packet, PubAck | PubRec | PubRel | PubComp | SubAck)
        assert packet.properties is None


def test_mqtt_3_1_2_29_a_client_that_wants_no_reasons_gets_none() -> None:
    for wanted, told in ((None, True), (1, True), (0, False)):
        peer = Server().peer()
        peer.send(Connect("a", properties=Properties(request_problem_information=wanted)))
        peer.received()
        peer.send(Connect("a"))
        assert peer.one() == Disconnect(reason_codes.PROTOCOL_ERROR)
        assert bool(peer.reasons) == told


def test_mqtt_3_1_2_28_response_information_is_returned_to_who_asks() -> None:
    server = Server(information=ServerInformation(response_information="answers/"))
    for wanted, answer in ((None, None), (0, None), (1, "answers/")):
        peer = server.peer()
        peer.send(Connect("a", properties=Properties(request_response_information=wanted)))
        properties = scenarios.let_in(peer).properties
        assert properties is not None
        assert properties.response_information == answer


def test_mqtt_3_1_3_1_the_fields_of_the_payload_are_read_in_order() -> None:
    scenarios.fields_keep_their_order(V5)


def test_mqtt_3_1_3_2_the_client_id_names_the_session() -> None:
    scenarios.client_id_names_the_session(V5)


def test_mqtt_3_1_3_3_the_client_id_is_the_first_field() -> None:
    scenarios.client_id_comes_first(V5)


def test_mqtt_3_1_3_4_the_client_id_is_a_proper_string() -> None:
    scenarios.connect_string_is_checked(V5, lambda text: raw.connect(V5, raw.string(text)))


def test_mqtt_3_1_3_5_ordinary_client_ids_are_accepted() -> None:
    scenarios.ordinary_client_ids_are_accepted(V5)


def test_mqtt_3_1_3_6_an_empty_client_id_gets_one_of_its_own() -> None:
    scenarios.empty_client_id_gets_one(V5)


def test_mqtt_3_1_3_7_the_assigned_client_id_is_told_and_used() -> None:
    server = Server()
    peer = server.client("", clean_start=False, session_expiry_interval=100)
    assert peer.connack.properties is not None
    assigned = peer.connack.properties.assigned_client_identifier
    assert assigned
    assert list(server.broker.sessions) == [assigned]
    peer.lose()
    again = server.client(assigned, clean_start=False)
    assert again.connack.session_present
    assert again.connack.properties is not None
    assert again.connack.properties.assigned_client_identifier is None


def test_mqtt_3_1_3_9_a_return_within_the_will_delay_keeps_the_will_back() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will")
    will = Will("will", b"gone", properties=Properties(will_delay_interval=10))
    server.client("a", clean_start=False, will=will, session_expiry_interval=100).lose()
    server.advance(9)
    server.client("a", clean_start=False, session_expiry_interval=100)
    server.advance(1000)
    assert watcher.received() == []


def test_mqtt_3_1_3_9_a_takeover_within_the_will_delay_keeps_the_will_back() -> None:
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will")
    will = Will("will", b"gone", properties=Properties(will_delay_interval=10))
    server.client("a", clean_start=False, will=will, session_expiry_interval=100)
    server.client("a", clean_start=False, session_expiry_interval=100)
    server.advance(1000)
    assert watcher.received() == []


def test_mqtt_3_1_3_10_user_properties_of_a_will_keep_their_order() -> None:
    pairs = (("b", "1"), ("a", "2"), ("b", "0"), ("a", "2"))
    server = Server()
    watcher = server.client("w")
    watcher.subscribe("will")
    server.client("a", will=Will("will", b"gone", properties=Properties(user_properties=pairs))).lose()
    [message] = watcher.publishes()
    assert message.properties == Properties(user_properties=pairs)


def test_mqtt_3_1_3_11_the_will_topic_is_a_proper_string() -> None:
    flags = raw.CLEAN | raw.WILL
    scenarios.connect_string_is_checked(
        V5, lambda text: raw.connect(V5, raw.string(b"c") + scenarios.will_payload(V5, text), flags)
    )


def test_mqtt_3_1_3_12_the_user_name_is_a_proper_string() -> None:
    flags = raw.CLEAN | raw.USERNAME
    scenarios.connect_string_is_checked(V5, lambda text: raw.connect(V5, raw.string(b"c") + raw.string(text), flags))


def test_mqtt_3_1_4_1_a_connect_that_does_not_conform_is_not_let_in() -> None:
    good = raw.connect(V5)
    twice = b"\x21\x00\x05" * 2
    for bad in (
        good[:1] + bytes((good[1] + 1,)) + good[2:] + b"x",  # one byte too many
        raw.packet(0x10, good[2:-1]),  # one too few
        raw.packet(0x10, b""),
        raw.connect(V5, own=b"\x21\x00\x00"),  # Receive Maximum 0
        raw.connect(V5, own=b"\x27\x00\x00\x00\x00"),  # Maximum Packet Size 0
        raw.connect(V5, own=twice),
        raw.connect(V5, own=b"\x17\x02"),  # Request Problem Information 2
        raw.connect(V5, own=b"\x19\x02"),  # Request Response Information 2
        raw.connect(V5, own=b"\x23\x00\x01"),  # a Topic Alias
        raw.connect(V5, own=b"\x7f\x00"),  # an unknown property
        raw.connect(V5, own=b"\x16" + raw.string(b"data")),  # Authentication Data without a method
        raw.connect(V5, raw.string(b"c") + b"\x02\x01\x02" + raw.string(b"t") * 2, raw.CLEAN | raw.WILL),
    ):
        peer = Server().peer(V5)
        peer.send_bytes(bad)
        scenarios.assert_not_let_in(peer)


def test_mqtt_3_1_4_2_a_client_that_may_not_is_refused() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=False))
    peer = server.peer()
    peer.send(Connect("a"))
    assert peer.one() == ConnAck(reason_codes.NOT_AUTHORIZED)
    assert peer.closed


def test_mqtt_3_1_4_3_a_client_already_connected_is_told_and_closed() -> None:
    scenarios.takeover_ends_the_old_connection(V5)


def test_mqtt_3_1_4_4_clean_start_is_processed() -> None:
    scenarios.clean_start_drops_the_session(V5)


def test_mqtt_3_1_4_4_a_missing_clean_start_is_processed() -> None:
    scenarios.session_is_resumed(V5)


def test_mqtt_3_1_4_5_an_accepted_connect_is_answered_by_0x00() -> None:
    scenarios.accepted_connect_gets_connack_0(V5)


def test_mqtt_3_1_4_6_nothing_is_processed_after_a_refusal() -> None:
    scenarios.nothing_is_processed_after_a_refusal(V5)
