"""Enhanced authentication (MQTT 5 §3.15, §4.12), with a method made for the test."""

from __future__ import annotations

from dataclasses import dataclass

from lockgate.broker.limits import ListenerLimits
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import Auth, ConnAck, Connect, Disconnect, Packet, PingReq, PingResp, Publish
from lockgate.mqtt.properties import Properties
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Peer, Server


@dataclass
class _Step:
    reason_code: int
    data: bytes = b""
    username: str = ""
    detail: str = ""


class _Exchange:
    """Asks once; lets in who answers `yes`."""

    def step(self, data: bytes) -> _Step:
        if data == b"":
            return _Step(reason_codes.CONTINUE_AUTHENTICATION, b"well?")
        if data == b"yes":
            return _Step(reason_codes.SUCCESS, b"welcome", "ann")
        return _Step(reason_codes.NOT_AUTHORIZED, detail="it did not say yes")


class _Authority:
    def begin(self, method: str) -> _Exchange | None:
        return _Exchange() if method == "ask" else None


def _server() -> Server:
    return Server(listener=ListenerLimits(allow_anonymous=False), authenticator=_Authority())


def _auth(data: bytes | None, code: int = reason_codes.CONTINUE_AUTHENTICATION, method: str | None = "ask") -> Auth:
    return Auth(code, Properties(authentication_method=method, authentication_data=data))


def _asked(server: Server) -> Peer:
    """Give a client that was asked and has not answered yet."""
    peer = server.peer()
    peer.send(Connect("a", properties=Properties(authentication_method="ask")))
    return peer


def _let_in(server: Server) -> Peer:
    peer = _asked(server)
    peer.send(_auth(b"yes"))
    packets = peer.received()
    assert isinstance(packets[-1], ConnAck)
    assert packets[-1].reason_code == 0
    return peer


def test_mqtt_3_1_2_30_anything_but_auth_and_disconnect_before_connack_ends_the_connection() -> None:
    others: list[Packet] = [PingReq(), Publish("t"), Connect("a")]
    for other in others:
        peer = _asked(_server())
        peer.received()
        peer.send(other)
        scenarios.assert_not_let_in(peer)
    peer = _asked(_server())
    peer.received()
    peer.send(Disconnect())
    assert peer.closed
    assert peer.received() == []


def test_mqtt_3_15_1_1_auth_with_other_flags_is_malformed() -> None:
    for flags in range(1, 16):
        peer = _let_in(_server())
        peer.send_bytes(bytes((0xF0 | flags, 0)))
        scenarios.assert_ended(peer)


def test_mqtt_3_15_2_1_auth_of_the_server_has_a_code_of_the_table() -> None:
    server = _server()
    peer = _asked(server)
    question = peer.one()
    assert isinstance(question, Auth)
    assert question.reason_code == reason_codes.CONTINUE_AUTHENTICATION
    peer = _let_in(server)
    peer.send(_auth(b"yes", reason_codes.RE_AUTHENTICATE))
    answer = peer.one()
    assert isinstance(answer, Auth)
    assert answer.reason_code == reason_codes.SUCCESS


def test_mqtt_3_15_2_1_auth_of_a_client_with_another_code_is_a_protocol_error() -> None:
    server = _server()
    for code in range(256):
        if code != reason_codes.RE_AUTHENTICATE:
            peer = _let_in(server)
            peer.send_bytes(raw.packet(0xF0, bytes((code, 6, 0x15)) + raw.string(b"ask")))
            scenarios.assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def test_mqtt_3_15_2_2_auth_has_no_reason_string_to_leave_out() -> None:
    question = _asked(_server()).one()
    assert isinstance(question, Auth)
    assert question.properties == Properties(authentication_method="ask", authentication_data=b"well?")


def test_mqtt_3_15_2_3_auth_has_no_user_properties_to_leave_out() -> None:
    question = _asked(_server()).one()
    assert isinstance(question, Auth)
    assert question.properties == Properties(authentication_method="ask", authentication_data=b"well?")


def test_mqtt_3_1_2_24_an_auth_that_is_too_large_is_not_sent() -> None:
    for maximum, sent in ((17, 0), (18, 18)):
        peer = _server().peer()
        peer.send(Connect("a", properties=Properties(authentication_method="ask", maximum_packet_size=maximum)))
        assert len(peer.output) == sent
        assert peer.closed == (sent == 0)


def test_mqtt_4_12_0_1_a_method_that_is_not_offered_ends_the_connection() -> None:
    for server in (Server(), _server()):
        peer = server.peer()
        peer.send(Connect("a", properties=Properties(authentication_method="other")))
        assert peer.one() == ConnAck(reason_codes.BAD_AUTHENTICATION_METHOD)
        assert peer.closed


def test_mqtt_4_12_0_2_an_auth_that_asks_for_more_carries_0x18() -> None:
    question = _asked(_server()).one()
    assert isinstance(question, Auth)
    assert question.reason_code == 0x18


def test_mqtt_4_12_0_3_a_client_that_answers_with_another_code_ends_the_connection() -> None:
    for code in (reason_codes.SUCCESS, reason_codes.RE_AUTHENTICATE):
        peer = _asked(_server())
        peer.received()
        peer.send(_auth(b"yes", code))
        scenarios.assert_not_let_in(peer)


def test_mqtt_4_12_0_4_a_rejected_authentication_ends_the_connection() -> None:
    server = _server()
    peer = _asked(server)
    peer.received()
    peer.send(_auth(b"no"))
    assert peer.one() == ConnAck(reason_codes.NOT_AUTHORIZED)
    assert peer.closed
    assert server.broker.sessions == {}


def test_mqtt_4_12_0_5_every_auth_and_connack_name_the_method() -> None:
    server = _server()
    peer = _asked(server)
    peer.send(_auth(b"yes"))
    question, answer = peer.received()
    assert isinstance(question, Auth)
    assert isinstance(answer, ConnAck)
    assert question.properties is not None
    assert question.properties.authentication_method == "ask"
    assert answer.properties is not None
    assert answer.properties.authentication_method == "ask"


def test_mqtt_4_12_0_5_an_auth_of_a_client_with_another_method_ends_the_connection() -> None:
    for method in ("other", None):
        peer = _asked(_server())
        peer.received()
        peer.send(_auth(b"yes" if method else None, method=method))
        scenarios.assert_not_let_in(peer)


def test_mqtt_4_12_0_6_without_a_method_connack_has_none_and_there_is_no_auth() -> None:
    server = _server()
    server.listener = ListenerLimits(allow_anonymous=True)
    peer = server.client("a")
    assert peer.connack.properties is not None
    assert peer.connack.properties.authentication_method is None
    assert peer.connack.properties.authentication_data is None
    assert 0xF0 not in scenarios.first_bytes(peer.output)


def test_mqtt_4_12_0_7_auth_without_a_method_in_connect_ends_the_connection() -> None:
    for data in (b"\xf0\x00", raw.packet(0xF0, bytes((0x18, 6, 0x15)) + raw.string(b"ask"))):
        peer = Server(authenticator=_Authority()).client("a")
        peer.send_bytes(data)
        scenarios.assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def test_mqtt_4_12_1_1_re_authentication_by_another_method_ends_the_connection() -> None:
    for method in ("other", None):
        peer = _let_in(_server())
        peer.send(_auth(b"yes" if method else None, reason_codes.RE_AUTHENTICATE, method))
        scenarios.assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def test_mqtt_4_12_1_1_re_authentication_leaves_the_connection_working() -> None:
    peer = _let_in(_server())
    peer.send(_auth(None, reason_codes.RE_AUTHENTICATE), PingReq())
    question, ping = peer.received()
    assert isinstance(question, Auth)
    assert ping == PingResp()
    peer.send(_auth(b"yes"))
    assert peer.one() == Auth(0, Properties(authentication_method="ask", authentication_data=b"welcome"))


def test_mqtt_4_12_1_2_a_failed_re_authentication_ends_the_connection() -> None:
    peer = _let_in(_server())
    peer.send(_auth(b"no", reason_codes.RE_AUTHENTICATE))
    scenarios.assert_ended(peer, reason_codes.NOT_AUTHORIZED)
