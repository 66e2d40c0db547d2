"""Enhanced authentication: AUTH before CONNACK and afterwards (MQTT 5 §4.12), with a method made for the test."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lockgate.broker.limits import ListenerLimits
from lockgate.mqtt import reason_codes as rc
from lockgate.mqtt.packets import (
    V5,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    Publish,
    Subscribe,
    SubscriptionRequest,
)
from lockgate.mqtt.properties import Properties
from tests.support.server import Peer, Server


@dataclass
class Step:
    reason_code: int
    data: bytes = b""
    username: str = ""
    detail: str = ""


class Password:
    """`ask` is answered by a question; then the user's name lets in, `no` does not."""

    def step(self, data: bytes) -> Step:
        if data in (b"", b"ask"):
            return Step(rc.CONTINUE_AUTHENTICATION, b"who?")
        if data == b"no":
            return Step(rc.NOT_AUTHORIZED, detail="it said no")
        return Step(rc.SUCCESS, b"welcome", data.decode())


class Authority:
    def __init__(self) -> None:
        self.offers = True

    def begin(self, method: str) -> Password | None:
        return Password() if method == "password" and self.offers else None


@pytest.fixture
def server() -> Server:
    return Server(listener=ListenerLimits(allow_anonymous=False), authenticator=Authority())


def connect(peer: Peer, data: bytes | None, method: str = "password", client_id: str = "c") -> None:
    peer.send(
        Connect(client_id, properties=Properties(authentication_method=method, authentication_data=data)),
    )


def auth(data: bytes | None = None, code: int = rc.CONTINUE_AUTHENTICATION, method: str | None = "password") -> Auth:
    return Auth(code, Properties(authentication_method=method, authentication_data=data))


def let_in(server: Server, name: bytes = b"ann") -> Peer:
    peer = server.peer()
    connect(peer, name)
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == 0
    return peer


def test_a_client_is_let_in_after_an_exchange(server: Server) -> None:
    peer = server.peer()
    connect(peer, b"ask")
    question = peer.one()
    assert isinstance(question, Auth)
    assert question.reason_code == rc.CONTINUE_AUTHENTICATION
    assert question.properties == Properties(authentication_method="password", authentication_data=b"who?")
    peer.send(auth(b"ann"))
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == 0
    assert answer.properties is not None
    assert answer.properties.authentication_method == "password"
    assert answer.properties.authentication_data == b"welcome"
    assert server.broker.sessions["c"].username == "ann"
    assert "u'ann'" in server.log.lines[-1]


def test_the_user_of_the_exchange_counts_and_not_that_of_connect(server: Server) -> None:
    peer = server.peer()
    properties = Properties(authentication_method="password", authentication_data=b"ann")
    peer.send(Connect("c", username="bob", password=b"x", properties=properties))
    assert isinstance(peer.one(), ConnAck)
    assert server.broker.sessions["c"].username == "ann"


def test_an_empty_client_id_is_assigned_at_the_end(server: Server) -> None:
    peer = server.peer()
    connect(peer, b"ask", client_id="")
    peer.received()
    peer.send(auth(b"ann"))
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.properties is not None
    assert answer.properties.assigned_client_identifier == "invented-1"


@pytest.mark.parametrize("data", [b"no", b"ask"])
def test_who_is_refused_gets_connack_and_no_session(server: Server, data: bytes) -> None:
    peer = server.peer()
    connect(peer, data)
    if data == b"ask":
        peer.received()
        peer.send(auth(b"no"))
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == rc.NOT_AUTHORIZED
    assert peer.closed
    assert not server.broker.sessions
    assert "it said no" in server.log.lines[-1]


@pytest.mark.parametrize("authority", [True, False])
def test_a_method_that_is_not_offered(authority: bool) -> None:
    server = Server(authenticator=Authority() if authority else None)
    peer = server.peer()
    connect(peer, b"ann", "kerberos")
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == rc.BAD_AUTHENTICATION_METHOD
    assert peer.closed


@pytest.mark.parametrize(
    "packet",
    [
        PingReq(),
        Publish("a", b"x"),
        Subscribe(1, [SubscriptionRequest("a", 0)]),
        Connect("d"),
        auth(b"ann", method="other"),
        auth(b"ann", method=None),
        Auth(rc.CONTINUE_AUTHENTICATION),
        auth(b"ann", code=rc.RE_AUTHENTICATE),
        auth(b"ann", code=rc.SUCCESS),
    ],
)
def test_whatever_else_comes_during_the_exchange_ends_it(server: Server, packet: Packet) -> None:
    peer = server.peer()
    connect(peer, b"ask")
    peer.received()
    peer.send(packet)
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == rc.PROTOCOL_ERROR
    assert peer.closed
    assert not server.broker.sessions


def test_a_client_may_leave_during_the_exchange(server: Server) -> None:
    peer = server.peer()
    connect(peer, b"ask")
    peer.received()
    peer.send(Disconnect())
    assert peer.received() == []
    assert peer.closed


def test_the_exchange_ends_with_the_time_for_connect(server: Server) -> None:
    peer = server.peer()
    connect(peer, b"ask")
    server.advance(server.broker.limits.connect_timeout - 1)
    assert not peer.closed
    server.advance(1)
    assert peer.closed
    assert not server.broker.connections


def test_large_packets_wait_until_somebody_is_let_in(server: Server) -> None:
    peer = server.peer()
    connect(peer, b"ask")
    peer.received()
    peer.send_bytes(b"\xf0\xff\xff\x7f")
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == rc.PACKET_TOO_LARGE


def test_nobody_loses_a_session_to_an_exchange_that_has_not_ended(server: Server) -> None:
    first = let_in(server)
    second = server.peer()
    connect(second, b"ask")
    assert not first.closed
    second.received()
    second.send(auth(b"ann"))
    assert first.closed
    assert not second.closed


# --- re-authentication (§4.12.1) ----------------------------------------------------------------------------------


def test_a_client_authenticates_again_while_messages_flow(server: Server) -> None:
    peer = let_in(server)
    peer.subscribe("a")
    peer.send(auth(b"ask", rc.RE_AUTHENTICATE))
    question = peer.one()
    assert isinstance(question, Auth)
    peer.publish("a", b"meanwhile")
    assert peer.messages() == [("a", b"meanwhile")]
    peer.send(auth(b"ann"))
    answer = peer.one()
    assert isinstance(answer, Auth)
    assert answer.reason_code == rc.SUCCESS
    assert answer.properties == Properties(authentication_method="password", authentication_data=b"welcome")
    assert not peer.closed


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (auth(b"no", rc.RE_AUTHENTICATE), rc.NOT_AUTHORIZED),
        (auth(b"bob", rc.RE_AUTHENTICATE), rc.NOT_AUTHORIZED),  # another user
        (auth(b"ann", rc.RE_AUTHENTICATE, "other"), rc.PROTOCOL_ERROR),
        (auth(b"ann", rc.CONTINUE_AUTHENTICATION), rc.PROTOCOL_ERROR),
        (auth(b"ann", rc.SUCCESS), rc.PROTOCOL_ERROR),
        (Auth(), rc.PROTOCOL_ERROR),
    ],
)
def test_a_re_authentication_that_fails_ends_the_connection(server: Server, packet: Packet, code: int) -> None:
    peer = let_in(server)
    peer.send(packet)
    assert peer.received() == [Disconnect(code)]
    assert peer.closed


def test_a_second_beginning_is_a_protocol_error(server: Server) -> None:
    peer = let_in(server)
    peer.send(auth(b"ask", rc.RE_AUTHENTICATE), auth(b"ask", rc.RE_AUTHENTICATE))
    assert peer.received()[-1] == Disconnect(rc.PROTOCOL_ERROR)


def test_a_method_that_is_offered_no_longer(server: Server) -> None:
    peer = let_in(server)
    authority = server.broker.authenticator
    assert isinstance(authority, Authority)
    authority.offers = False
    peer.send(auth(b"ask", rc.RE_AUTHENTICATE))
    assert peer.received() == [Disconnect(rc.BAD_AUTHENTICATION_METHOD)]


def test_who_connected_without_a_method_must_not_send_auth() -> None:
    server = Server(authenticator=Authority())
    peer = server.client("c", V5)
    peer.send(auth(b"ann", rc.RE_AUTHENTICATE))
    assert peer.received() == [Disconnect(rc.PROTOCOL_ERROR)]


@pytest.mark.parametrize("identity", ["ann", "bob"])
def test_where_the_certificate_is_the_user_the_method_must_name_the_same(identity: str) -> None:
    server = Server(listener=ListenerLimits(username_from_certificate=True), authenticator=Authority())
    peer = server.peer()
    peer.connection.identity = identity
    connect(peer, b"ann")
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == (0 if identity == "ann" else rc.NOT_AUTHORIZED)
    assert peer.closed == (identity != "ann")


@pytest.mark.parametrize("claimed", ["ann", "bob"])
def test_where_the_user_is_the_client_id_the_method_must_name_the_same(claimed: str) -> None:
    server = Server(listener=ListenerLimits(username_as_client_id=True), authenticator=Authority())
    peer = server.peer()
    properties = Properties(authentication_method="password", authentication_data=b"ann")
    peer.send(Connect("c", username=claimed, properties=properties))
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == (0 if claimed == "ann" else rc.NOT_AUTHORIZED)
    assert list(server.broker.sessions) == (["ann"] if claimed == "ann" else [])


def test_a_connect_that_waits_counts_until_it_is_let_in(server: Server) -> None:
    peer = server.peer()
    before = server.broker.memory.used
    connect(peer, b"ask")
    assert server.broker.memory.used >= before + 100_000
    peer.send(auth(b"ann"))
    assert server.broker.memory.used < before + 2000
    peer.lose()
    other = server.peer()
    connect(other, b"ask")
    other.lose()
    assert server.broker.memory.used == 0
