"""CONNECT, Sessions, takeover, expiry and Keep Alive (MQTT 5 §3.1, §3.2, §3.14, §4.1)."""

from __future__ import annotations

import pytest

from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1,
    V3_1_1,
    V5,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Unsubscribe,
)
from lockgate.mqtt.properties import Properties
from tests.support.server import Server


def test_connack_of_version_5_is_mosquitto_s_byte_for_byte() -> None:
    server = Server()
    peer = server.peer()
    peer.connection.receive(bytes.fromhex("101000044d5154540502003c000003") + b"abc", server.now)
    assert peer.connection.take_output() == bytes.fromhex("200e00000b22000a27001e8480210014")


@pytest.mark.parametrize(
    ("connect", "answer"),
    [
        ("100e00044d5154540202003c0002", "20020001"),  # MQTT, level 2
        ("100e00044d5154540602003c0002", "2003008400"),  # MQTT, level 6
        ("100e00044d5154540302003c0002", "20020001"),  # MQTT with the level of MQIsdp
        ("101000064d51497364700402003c0002", "20020001"),  # MQIsdp with the level of MQTT
        ("100e00045854545 50402003c0002".replace(" ", ""), ""),  # another protocol
    ],
)
def test_an_unknown_version_is_answered_in_the_form_that_fits(connect: str, answer: str) -> None:
    server = Server()
    peer = server.peer()
    peer.connection.receive(bytes.fromhex(connect) + b"ab", server.now)
    assert peer.connection.take_output().hex() == answer
    assert peer.connection.is_closing


def test_the_first_packet_must_be_connect() -> None:
    peer = Server().peer()
    peer.send(PingReq())
    assert peer.received() == []
    assert peer.closed


def test_a_second_connect_is_a_protocol_error_even_in_a_version_we_do_not_speak() -> None:
    client = Server().client("c")
    client.send_bytes(bytes.fromhex("100e00044d5154540602003c00026162"))
    assert client.one() == Disconnect(reason_codes.PROTOCOL_ERROR)
    assert client.closed


def test_a_second_connect_is_a_protocol_error() -> None:
    server = Server()
    for version, farewell in ((V3_1_1, []), (V5, [Disconnect(reason_codes.PROTOCOL_ERROR)])):
        peer = server.client("a", version)
        peer.send(Connect("a", version))
        assert peer.received() == farewell
        assert peer.closed


def test_packets_only_a_server_sends_are_a_protocol_error() -> None:
    peer = Server().client("a")
    peer.send(PingResp())
    assert peer.one() == Disconnect(reason_codes.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    ("version", "clean_start", "code"),
    [(V3_1, True, 2), (V3_1_1, False, 2), (V3_1_1, True, 0), (V5, True, 0), (V5, False, 0)],
)
def test_an_empty_client_identifier(version: int, clean_start: bool, code: int) -> None:
    server = Server()
    peer = server.peer(version)
    peer.send(Connect("", version, clean_start))
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == code
    if version == V5:
        assert answer.properties is not None
        assert answer.properties.assigned_client_identifier == "invented-1"


@pytest.mark.parametrize(("version", "code"), [(V3_1, 5), (V3_1_1, 5), (V5, reason_codes.NOT_AUTHORIZED)])
@pytest.mark.parametrize("username", [None, "somebody"])
def test_without_allow_anonymous_nobody_is_let_in(version: int, code: int, username: str | None) -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=False))
    peer = server.peer(version)
    peer.send(Connect("a", version, username=username, password=b"x" if username else None))
    assert peer.one() == ConnAck(code)
    assert peer.closed
    assert server.broker.sessions == {}


def test_an_unknown_authentication_method_is_refused() -> None:
    peer = Server().peer()
    peer.send(Connect("a", properties=Properties(authentication_method="SCRAM-SHA-1")))
    assert peer.one() == ConnAck(reason_codes.BAD_AUTHENTICATION_METHOD)


def test_auth_without_an_authentication_method_is_a_protocol_error() -> None:
    peer = Server().client("a")
    peer.send(Auth(reason_codes.RE_AUTHENTICATE))
    assert peer.one() == Disconnect(reason_codes.PROTOCOL_ERROR)


def test_a_takeover_ends_the_old_connection_and_keeps_the_session() -> None:
    server = Server()
    old = server.client("same", session_expiry_interval=100)
    old.subscribe("t", 1)
    new = server.client("same", clean_start=False, session_expiry_interval=100)
    assert old.one() == Disconnect(reason_codes.SESSION_TAKEN_OVER)
    assert old.closed
    assert new.connack.session_present
    server.client("p").publish("t", b"1", 1)
    assert new.messages() == [("t", b"1")]


def test_a_clean_start_forgets_the_session() -> None:
    server = Server()
    server.client("same", V3_1_1, clean_start=False).subscribe("t", 1)
    server.peers[1].lose()
    new = server.client("same", V3_1_1, clean_start=True)
    assert not new.connack.session_present
    server.client("p").publish("t", b"1", 1)
    assert new.received() == []


def test_version_3_1_has_no_session_present() -> None:
    server = Server()
    server.client("a", V3_1, clean_start=False).lose()
    assert not server.client("a", V3_1, clean_start=False).connack.session_present


@pytest.mark.parametrize(("waited", "present"), [(99, True), (101, False)])
def test_a_session_lives_as_long_as_its_expiry_interval(waited: float, present: bool) -> None:
    server = Server()
    server.client("a", session_expiry_interval=100).lose()
    server.advance(waited)
    assert server.client("a", clean_start=False).connack.session_present is present


def test_a_version_3_session_never_expires_and_one_without_interval_ends_at_once() -> None:
    server = Server()
    server.client("for ever", V3_1_1, clean_start=False).lose()
    server.client("brief", V5, clean_start=False).lose()
    server.advance(1e9)
    assert list(server.broker.sessions) == ["for ever"]


def test_disconnect_may_shorten_the_session_but_not_create_one() -> None:
    server = Server()
    peer = server.client("a", session_expiry_interval=100)
    peer.subscribe("t", 1)
    peer.send(Disconnect(0, Properties(session_expiry_interval=0)))
    assert server.broker.sessions == {}
    other = server.client("b")
    other.send(Disconnect(0, Properties(session_expiry_interval=10)))
    assert other.one() == Disconnect(reason_codes.PROTOCOL_ERROR)


def test_unacknowledged_messages_are_sent_again_in_order_with_dup_and_their_identifiers() -> None:
    server = Server()
    subscriber = server.client("s", session_expiry_interval=100)
    subscriber.subscribe("t", 2)
    publisher = server.client("p")
    publisher.publish("t", b"1", 1)
    publisher.publish("t", b"2", 2)
    publisher.publish("t", b"3", 2)
    one, two, three = subscriber.publishes()
    subscriber.send(PubRec(three.packet_id))
    assert subscriber.one() == PubRel(three.packet_id)
    subscriber.lose()
    publisher.publish("t", b"4", 1)
    back = server.client("s", clean_start=False, session_expiry_interval=100)
    release, first, second, fourth = back.received()
    assert release == PubRel(three.packet_id)
    assert first == Publish("t", b"1", 1, dup=True, packet_id=one.packet_id)
    assert second == Publish("t", b"2", 2, dup=True, packet_id=two.packet_id)
    assert isinstance(fourth, Publish)
    assert (fourth.payload, fourth.dup) == (b"4", False)
    back.send(PubAck(one.packet_id), PubComp(three.packet_id))
    assert back.received() == []


def test_a_smaller_window_after_the_return_is_respected() -> None:
    server = Server()
    subscriber = server.client("s", session_expiry_interval=100)
    subscriber.subscribe("t", 1)
    publisher = server.client("p")
    for number in range(3):
        publisher.publish("t", b"%d" % number, 1)
    ids = [message.packet_id for message in subscriber.publishes()]
    subscriber.lose()
    back = server.client("s", clean_start=False, session_expiry_interval=100, receive_maximum=1)
    for number, packet_id in enumerate(ids):
        assert back.one() == Publish("t", b"%d" % number, 1, dup=True, packet_id=packet_id)
        back.send(PubAck(packet_id))


def test_qos_2_identifiers_of_a_publisher_survive_its_connection() -> None:
    server = Server()
    subscriber = server.client("s")
    subscriber.subscribe("t", 2)
    publisher = server.client("p", V3_1_1, clean_start=False)
    publisher.send(Publish("t", b"1", 2, packet_id=7))
    publisher.expect(PubRec)
    publisher.lose()
    publisher = server.client("p", V3_1_1, clean_start=False)
    publisher.send(Publish("t", b"1", 2, dup=True, packet_id=7), PubRel(7))
    assert publisher.received() == [PubRec(7), PubComp(7)]
    assert subscriber.messages() == [("t", b"1")]


@pytest.mark.parametrize("version", [V3_1, V3_1_1, V5])
def test_silence_of_one_and_a_half_keep_alives_ends_a_connection(version: int) -> None:
    server = Server()
    peer = server.client("a", version, keep_alive=10)
    server.advance(14)
    peer.send(PingReq())
    assert peer.one() == PingResp()
    server.advance(14.9)
    assert not peer.closed
    server.advance(0.2)
    assert peer.closed
    assert peer.received() == []  # without a word, as Mosquitto


def test_a_keep_alive_of_zero_never_ends() -> None:
    server = Server()
    peer = server.client("a", keep_alive=0)
    server.advance(1e6)
    assert not peer.closed


def test_max_keepalive_is_told_to_version_5_and_refused_before() -> None:
    server = Server(Limits(max_keepalive=60))
    new = server.client("a", keep_alive=100)
    assert new.connack.properties is not None
    assert new.connack.properties.server_keep_alive == 60
    for keep_alive in (0, 100):
        old = server.peer(V3_1_1)
        old.send(Connect("b", V3_1_1, keep_alive=keep_alive))
        assert old.one() == ConnAck(2)


def test_a_connection_without_connect_is_closed_in_time() -> None:
    server = Server(Limits(connect_timeout=5))
    peer = server.peer()
    server.advance(3)
    peer.send_bytes(b"\x10")  # a byte now and then does not put it off
    server.advance(1.9)
    assert not peer.closed
    server.advance(0.2)
    assert peer.closed


def test_unsubscribe_tells_what_existed() -> None:
    server = Server()
    peer = server.client("a")
    peer.subscribe("t", 0)
    peer.send(Unsubscribe(3, ["t", "never"]))
    answer = peer.one()
    assert answer.fields()[:2] == (3, [0, reason_codes.NO_SUBSCRIPTION_EXISTED])
    server.client("p").publish("t")
    assert peer.received() == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x36\x00", reason_codes.MALFORMED_PACKET),  # QoS 3
        (b"\x30\x05\x00\x01#\x00x", reason_codes.MALFORMED_PACKET),  # a wildcard in a Topic Name
        (b"\x82\x03\x00\x01\x00", reason_codes.PROTOCOL_ERROR),  # nothing to subscribe to
        (b"\x30\xff\xff\xff\xff\x01", reason_codes.MALFORMED_PACKET),
        (b"\x30\xff\xff\xff\x7f", reason_codes.PACKET_TOO_LARGE),
    ],
)
def test_bad_bytes_end_only_their_own_connection_with_the_right_code(data: bytes, code: int) -> None:
    server = Server()
    other = server.client("other")
    other.subscribe("t")
    bad = server.client("bad")
    bad.send_bytes(data)
    assert bad.one() == Disconnect(code)
    assert bad.closed
    assert any("bad [192.0.2.1:5000] disconnected: " in line for line in server.log.lines)
    server.client("p").publish("t")
    assert other.messages() == [("t", b"x")]


def test_a_client_never_writes_below_sys() -> None:
    server = Server()
    peer = server.client("a")
    peer.send(Publish("$SYS/broker/version", b"x", 1, packet_id=1))
    assert peer.one() == PubAck(1, reason_codes.NOT_AUTHORIZED)


def test_names_that_peers_choose_are_escaped_in_the_log() -> None:
    server = Server()
    server.client("a\n1700000000: Error: forged", username="x\ty").lose()
    assert [line for line in server.log.lines if "\n" in line or "\t" in line] == []
    assert "a\\n1700000000: Error: forged [192.0.2.1:5000] disconnected" in server.log.lines[-1]


def test_a_full_queue_is_told_of_with_an_escaped_name() -> None:
    server = Server(Limits(max_queued_messages=1))
    server.client("a\nb", V3_1_1, clean_start=False).subscribe("t", 1)
    server.peers[1].lose()
    publisher = server.client("p")
    for number in range(2):
        publisher.publish("t", b"%d" % number, 1)
    [line] = [line for line in server.log.lines if "being dropped" in line]
    assert "a\\nb" in line
    assert line.isprintable()


@pytest.mark.parametrize("farewell", [b"\xe0\x00", b"\xf0\x00", b"\xc0\x01\x00"])
def test_a_client_that_left_gets_nothing_more_though_its_socket_is_still_open(farewell: bytes) -> None:
    server = Server()
    leaving = server.client("a", V5)
    leaving.subscribe("t", 1)
    leaving.subscribe("$share/group/t", 1)
    server.client("b").subscribe("$share/group/t", 1)
    staying = server.peers[2]
    publisher = server.client("p")
    leaving.connection.receive(farewell, server.now)
    assert leaving.connection.is_closing
    for _ in range(3):
        publisher.connection.receive(encode(Publish("t", b"", 1, packet_id=1), V5), server.now)
    server.flush()
    assert all(isinstance(packet, Disconnect) for packet in leaving.received())
    assert len(staying.received()) == 3


def test_the_log_shows_a_client_id_on_one_line() -> None:
    server = Server()
    server.client("a\u2028b", session_expiry_interval=10).lose()
    server.client("a\u2028b", session_expiry_interval=10)
    server.client("a\u2028b", session_expiry_interval=10)
    assert len(server.log.lines) == 5
    assert all("a\\u2028b" in line and line.isprintable() for line in server.log.lines)


def test_without_max_packet_size_a_packet_still_has_to_fit_with_what_receivers_add() -> None:
    peer = Server(Limits(max_packet_size=0)).client("a")
    peer.send_bytes(b"\x30\xff\xff\xff\x7f")
    assert peer.one() == Disconnect(reason_codes.PACKET_TOO_LARGE)
