"""CONNECT (MQTT 3.1.1 §3.1)."""

from __future__ import annotations

from lockgate.mqtt.packets import V3_1_1, ConnAck, Connect, Will
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def test_mqtt_3_1_0_1_any_other_first_packet_ends_the_connection() -> None:
    for data in (raw.publish(V3_1_1, b"t"), raw.subscribe(V3_1_1, b"t"), b"\xc0\x00", b"\xe0\x00", b"\x20\x02\x00\x00"):
        server = Server()
        peer = server.peer(V3_1_1)
        peer.send_bytes(data + raw.connect(V3_1_1))
        scenarios.assert_not_let_in(peer)
        assert peer.output == b""


def test_mqtt_3_1_0_2_a_second_connect_ends_the_connection() -> None:
    scenarios.second_connect_ends_the_connection(V3_1_1)


def test_mqtt_3_1_2_1_another_protocol_name_is_not_let_in() -> None:
    for name in (b"MQTTX", b"mqtt", b"", b"MQIsdp", b"HTTP"):
        server = Server()
        peer = server.peer(V3_1_1)
        peer.send_bytes(raw.connect(V3_1_1, name=name))
        scenarios.assert_not_let_in(peer)


def test_mqtt_3_1_2_2_an_unsupported_level_below_5_is_answered_by_return_code_1() -> None:
    for level in (0, 1, 2, 3):
        server = Server()
        peer = server.peer(V3_1_1)
        peer.send_bytes(raw.connect(V3_1_1, level=level))
        assert peer.output == bytes.fromhex("20020001")
        scenarios.assert_not_let_in(peer)


def test_mqtt_3_1_2_3_the_reserved_connect_flag_ends_the_connection() -> None:
    scenarios.connect_is_refused(V3_1_1, raw.CLEAN | 1, raw.string(b"c"), raw.CLEAN, raw.string(b"c"))


def test_mqtt_3_1_2_4_clean_session_0_goes_on_with_the_session() -> None:
    scenarios.session_is_resumed(V3_1_1)


def test_mqtt_3_1_2_4_clean_session_0_creates_a_session_that_stays() -> None:
    scenarios.session_is_created(V3_1_1)


def test_mqtt_3_1_2_4_a_session_without_expiry_is_there_after_a_year() -> None:
    server = Server()
    peer = server.client("a", V3_1_1, clean_start=False)
    peer.lose()
    server.advance(365 * 86_400)
    assert server.client("a", V3_1_1, clean_start=False).connack.session_present


def test_mqtt_3_1_2_5_messages_are_kept_for_a_client_that_is_away() -> None:
    server = Server()
    peer = server.client("a", V3_1_1, clean_start=False)
    peer.subscribe("t/#", 2)
    scenarios.leave(peer)
    publisher = server.client("p", V3_1_1)
    for count in range(50):
        publisher.publish(f"t/{count}", b"x", 1 + count % 2)
    peer = server.client("a", V3_1_1, clean_start=False)
    assert [message.topic for message in scenarios.acknowledge_all(peer)] == [f"t/{count}" for count in range(50)]


def test_mqtt_3_1_2_6_clean_session_1_drops_the_old_session() -> None:
    scenarios.clean_start_drops_the_session(V3_1_1)


def test_mqtt_3_1_2_6_a_clean_session_ends_with_its_connection() -> None:
    server = Server()
    peer = server.client("a", V3_1_1, clean_start=True)
    peer.subscribe("t", 1)
    peer.lose()
    server.client("p", V3_1_1).publish("t", b"x", 1)
    peer = server.client("a", V3_1_1, clean_start=False)
    assert not peer.connack.session_present
    assert peer.received() == []
    server.client("q", V3_1_1).publish("t", b"y", 1)
    assert peer.received() == []


def test_mqtt_3_1_2_7_retained_messages_outlive_the_session_that_sent_them() -> None:
    server = Server()
    peer = server.client("a", V3_1_1)
    peer.publish("t", b"kept", 1, retain=True)
    peer.lose()
    server.client("a", V3_1_1).lose()
    reader = server.client("s", V3_1_1)
    reader.subscribe("t", 1)
    assert reader.messages() == [("t", b"kept")]


def test_mqtt_3_1_2_8_a_will_is_published_when_the_connection_breaks() -> None:
    scenarios.will_comes_when_the_connection_breaks(V3_1_1)


def test_mqtt_3_1_2_8_a_will_is_published_however_the_connection_ends() -> None:
    scenarios.will_comes_however_the_connection_ends(V3_1_1)


def test_mqtt_3_1_2_9_will_flag_without_will_fields_ends_the_connection() -> None:
    scenarios.connect_is_refused(
        V3_1_1,
        raw.CLEAN | raw.WILL,
        raw.string(b"c"),
        raw.CLEAN | raw.WILL,
        raw.string(b"c") + scenarios.will_payload(V3_1_1),
    )


def test_mqtt_3_1_2_9_the_will_has_its_own_qos_and_retain() -> None:
    server = Server()
    watcher = server.client("w", V3_1_1)
    watcher.subscribe("#", 2)
    server.client("a", V3_1_1, will=Will("will", b"gone", 2, True)).lose()
    [message] = watcher.publishes()
    assert message.qos == 2
    assert server.broker.retained.count == 1


def test_mqtt_3_1_2_10_a_will_is_published_once() -> None:
    scenarios.will_comes_once(V3_1_1)


def test_mqtt_3_1_2_10_disconnect_removes_the_will() -> None:
    scenarios.disconnect_discards_the_will(V3_1_1)


def test_mqtt_3_1_2_11_will_fields_without_will_flag_end_the_connection() -> None:
    scenarios.connect_is_refused(
        V3_1_1, raw.CLEAN, raw.string(b"c") + scenarios.will_payload(V3_1_1), raw.CLEAN, raw.string(b"c")
    )


def test_mqtt_3_1_2_12_without_a_will_nothing_is_published() -> None:
    scenarios.no_will_no_message(V3_1_1)


def test_mqtt_3_1_2_13_will_qos_without_a_will_ends_the_connection() -> None:
    for qos in (raw.WILL_QOS_1, raw.WILL_QOS_2, raw.WILL_QOS_1 | raw.WILL_QOS_2):
        scenarios.connect_is_refused(V3_1_1, raw.CLEAN | qos, raw.string(b"c"), raw.CLEAN, raw.string(b"c"))


def test_mqtt_3_1_2_14_will_qos_3_ends_the_connection() -> None:
    payload = raw.string(b"c") + scenarios.will_payload(V3_1_1)
    flags = raw.CLEAN | raw.WILL
    for good in (0, raw.WILL_QOS_1, raw.WILL_QOS_2):
        scenarios.connect_is_refused(V3_1_1, flags | raw.WILL_QOS_1 | raw.WILL_QOS_2, payload, flags | good, payload)


def test_mqtt_3_1_2_15_will_retain_without_a_will_ends_the_connection() -> None:
    scenarios.connect_is_refused(V3_1_1, raw.CLEAN | raw.WILL_RETAIN, raw.string(b"c"), raw.CLEAN, raw.string(b"c"))


def test_mqtt_3_1_2_16_a_will_without_retain_is_not_retained() -> None:
    scenarios.will_is_retained(V3_1_1, False)


def test_mqtt_3_1_2_17_a_will_with_retain_is_retained() -> None:
    scenarios.will_is_retained(V3_1_1, True)


def test_mqtt_3_1_2_18_a_user_name_without_its_flag_ends_the_connection() -> None:
    scenarios.connect_is_refused(V3_1_1, raw.CLEAN, raw.string(b"c") + raw.string(b"user"), raw.CLEAN, raw.string(b"c"))


def test_mqtt_3_1_2_19_a_user_name_flag_without_user_name_ends_the_connection() -> None:
    scenarios.connect_is_refused(
        V3_1_1,
        raw.CLEAN | raw.USERNAME,
        raw.string(b"c"),
        raw.CLEAN | raw.USERNAME,
        raw.string(b"c") + raw.string(b"user"),
    )


def test_mqtt_3_1_2_20_a_password_without_its_flag_ends_the_connection() -> None:
    scenarios.connect_is_refused(
        V3_1_1,
        raw.CLEAN | raw.USERNAME,
        raw.string(b"c") + raw.string(b"user") + raw.string(b"secret"),
        raw.CLEAN | raw.USERNAME,
        raw.string(b"c") + raw.string(b"user"),
    )


def test_mqtt_3_1_2_21_a_password_flag_without_password_ends_the_connection() -> None:
    scenarios.connect_is_refused(
        V3_1_1,
        raw.CLEAN | raw.USERNAME | raw.PASSWORD,
        raw.string(b"c") + raw.string(b"user"),
        raw.CLEAN | raw.USERNAME | raw.PASSWORD,
        raw.string(b"c") + raw.string(b"user") + raw.string(b"secret"),
    )


def test_mqtt_3_1_2_22_a_password_without_a_user_name_ends_the_connection() -> None:
    scenarios.connect_is_refused(
        V3_1_1,
        raw.CLEAN | raw.PASSWORD,
        raw.string(b"c") + raw.string(b"secret"),
        raw.CLEAN | raw.USERNAME | raw.PASSWORD,
        raw.string(b"c") + raw.string(b"") + raw.string(b"secret"),
    )


def test_mqtt_3_1_2_24_a_silent_client_is_closed_after_one_and_a_half_keep_alives() -> None:
    scenarios.silence_ends_the_connection(V3_1_1)


def test_mqtt_3_1_2_24_a_keep_alive_of_zero_never_closes() -> None:
    server = Server()
    peer = server.client("a", V3_1_1, keep_alive=0)
    server.advance(10 * 86_400)
    assert not peer.closed


def test_mqtt_3_1_3_1_the_fields_of_the_payload_are_read_in_order() -> None:
    scenarios.fields_keep_their_order(V3_1_1)


def test_mqtt_3_1_3_2_the_client_id_names_the_session() -> None:
    scenarios.client_id_names_the_session(V3_1_1)


def test_mqtt_3_1_3_3_the_client_id_is_the_first_field() -> None:
    scenarios.client_id_comes_first(V3_1_1)


def test_mqtt_3_1_3_4_the_client_id_is_a_proper_string() -> None:
    scenarios.connect_string_is_checked(V3_1_1, lambda text: raw.connect(V3_1_1, raw.string(text)))


def test_mqtt_3_1_3_5_ordinary_client_ids_are_accepted() -> None:
    scenarios.ordinary_client_ids_are_accepted(V3_1_1)


def test_mqtt_3_1_3_6_an_empty_client_id_gets_one_of_its_own() -> None:
    scenarios.empty_client_id_gets_one(V3_1_1)


def test_mqtt_3_1_3_8_an_empty_client_id_with_clean_session_0_is_rejected() -> None:
    server = Server()
    peer = server.peer(V3_1_1)
    peer.send_bytes(raw.connect(V3_1_1, raw.string(b""), flags=0))
    assert peer.output == bytes.fromhex("20020002")
    scenarios.assert_not_let_in(peer)


def test_mqtt_3_1_3_9_a_rejected_client_id_is_told_so_before_closing() -> None:
    server = Server()
    peer = server.peer(V3_1_1)
    peer.send(Connect("", V3_1_1, clean_start=False))
    assert peer.one() == ConnAck(2)
    assert peer.closed


def test_mqtt_3_1_3_10_the_will_topic_is_a_proper_string() -> None:
    flags = raw.CLEAN | raw.WILL
    scenarios.connect_string_is_checked(
        V3_1_1, lambda text: raw.connect(V3_1_1, raw.string(b"c") + scenarios.will_payload(V3_1_1, text), flags)
    )


def test_mqtt_3_1_3_11_the_user_name_is_a_proper_string() -> None:
    flags = raw.CLEAN | raw.USERNAME
    scenarios.connect_string_is_checked(
        V3_1_1, lambda text: raw.connect(V3_1_1, raw.string(b"c") + raw.string(text), flags)
    )


def test_mqtt_3_1_4_1_a_connect_that_does_not_conform_is_closed_without_a_connack() -> None:
    good = raw.connect(V3_1_1)
    for bad in (
        good[:1] + bytes((good[1] + 1,)) + good[2:] + b"x",  # one byte too many
        raw.packet(0x10, good[2:-1]),  # one too few
        raw.packet(0x10, b""),
        raw.connect(V3_1_1, raw.string(b"c"), raw.CLEAN | raw.WILL | raw.WILL_QOS_1 | raw.WILL_QOS_2),
    ):
        peer = Server().peer(V3_1_1)
        peer.send_bytes(bad)
        scenarios.assert_not_let_in(peer)
        assert peer.output == b""


def test_mqtt_3_1_4_2_a_client_already_connected_is_disconnected() -> None:
    scenarios.takeover_ends_the_old_connection(V3_1_1)


def test_mqtt_3_1_4_3_clean_session_is_processed() -> None:
    scenarios.clean_start_drops_the_session(V3_1_1)


def test_mqtt_3_1_4_3_clean_session_0_is_processed() -> None:
    scenarios.session_is_resumed(V3_1_1)


def test_mqtt_3_1_4_4_an_accepted_connect_is_answered_by_return_code_0() -> None:
    scenarios.accepted_connect_gets_connack_0(V3_1_1)


def test_mqtt_3_1_4_5_nothing_is_processed_after_a_refusal() -> None:
    scenarios.nothing_is_processed_after_a_refusal(V3_1_1)
