"""What a listener demands of CONNECT: the versions it accepts, and the certificate as the login."""

from __future__ import annotations

import pytest

from lockgate.broker.limits import ListenerLimits
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import V3_1, V3_1_1, V5, ConnAck, Connect
from tests.support.server import Server

BY_CERTIFICATE = ListenerLimits(username_from_certificate=True)  # and nobody is let in without a name


@pytest.mark.parametrize("version", [V3_1, V3_1_1, V5])
def test_the_certificate_is_the_login_whatever_connect_says(version: int) -> None:
    server = Server(listener=BY_CERTIFICATE)
    peer = server.peer(version)
    peer.connection.identity = "device-1"
    peer.send(Connect("c", version, username="somebody else", password=b"wrong"))
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == 0
    assert server.broker.sessions["c"].username == "device-1"


@pytest.mark.parametrize(("version", "code"), [(V3_1_1, 4), (V5, reason_codes.BAD_USER_NAME_OR_PASSWORD)])
def test_without_a_name_in_a_certificate_nobody_gets_in(version: int, code: int) -> None:
    server = Server(listener=ListenerLimits(username_from_certificate=True, allow_anonymous=True))
    peer = server.peer(version)
    peer.send(Connect("c", version, username="u", password=b"p"))
    assert peer.one() == ConnAck(code)
    assert peer.closed
    assert "no certificate with a name in it" in server.log.lines[-1]


@pytest.mark.parametrize(("version", "code"), [(V3_1, 1), (V3_1_1, 1), (V5, reason_codes.UNSUPPORTED_PROTOCOL_VERSION)])
def test_a_version_the_listener_does_not_accept_is_refused(version: int, code: int) -> None:
    others = frozenset({V3_1, V3_1_1, V5}) - {version}
    server = Server(listener=ListenerLimits(allow_anonymous=True, protocol_versions=others))
    peer = server.peer(version)
    peer.send(Connect("c", version))
    assert peer.one() == ConnAck(code)
    assert peer.closed
    for other in others:
        server.client(f"c{other}", other)
