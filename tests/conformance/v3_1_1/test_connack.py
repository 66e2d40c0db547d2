"""CONNACK (MQTT 3.1.1 §3.2)."""

from __future__ import annotations

from lockgate.broker.limits import ListenerLimits
from lockgate.mqtt.packets import V3_1_1, ConnAck, Connect, Will
from tests.conformance import scenarios
from tests.support import raw
from tests.support.server import Server


def test_mqtt_3_2_0_1_connack_is_the_first_packet() -> None:
    scenarios.connack_comes_first(V3_1_1)


def test_mqtt_3_2_2_1_clean_session_1_has_session_present_0() -> None:
    server = Server()
    scenarios.leave(scenarios.durable(server, "a", V3_1_1))
    peer = server.peer(V3_1_1)
    peer.send_bytes(raw.connect(V3_1_1, raw.string(b"a"), raw.CLEAN))
    assert peer.output == bytes.fromhex("20020000")


def test_mqtt_3_2_2_2_clean_session_0_with_a_session_has_session_present_1() -> None:
    server = Server()
    scenarios.leave(scenarios.durable(server, "a", V3_1_1))
    peer = server.peer(V3_1_1)
    peer.send_bytes(raw.connect(V3_1_1, raw.string(b"a"), 0))
    assert peer.output == bytes.fromhex("20020100")


def test_mqtt_3_2_2_3_clean_session_0_without_a_session_has_session_present_0() -> None:
    server = Server()
    scenarios.leave(server.client("a", V3_1_1, clean_start=True))
    peer = server.peer(V3_1_1)
    peer.send_bytes(raw.connect(V3_1_1, raw.string(b"a"), 0))
    assert peer.output == bytes.fromhex("20020000")


def test_mqtt_3_2_2_4_a_refusal_has_session_present_0() -> None:
    peer = scenarios.refusal(Server(), V3_1_1)
    assert peer.output == bytes.fromhex("20020005")


def test_mqtt_3_2_2_5_a_refusal_is_followed_by_closing() -> None:
    peer = scenarios.refusal(Server(), V3_1_1)
    assert peer.one() == ConnAck(5)
    assert peer.closed


def test_mqtt_3_2_2_6_where_no_return_code_fits_there_is_no_connack() -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=True, max_qos=0))
    peer = server.peer(V3_1_1)
    peer.send(Connect("a", V3_1_1, will=Will("will", b"gone", 1)))
    assert peer.output == b""
    assert peer.closed
