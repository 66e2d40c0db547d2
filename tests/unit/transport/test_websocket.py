"""The WebSocket layer by RFC 6455 and MQTT 5 §6, without a socket; the peer is the `websockets` library's client."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.typing import Origin, Subprotocol
from websockets.uri import parse_uri

from lockgate.transport.layer import TransportError
from lockgate.transport.websocket import WebSocket

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # for that key (RFC 6455 §1.3)


def request(
    protocol: str | None = "mqtt", origin: str | None = None, path: str = "/", method: str = "GET", version: str = "13"
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: h", "Upgrade: websocket", "Connection: keep-alive, Upgrade"]
    lines += [f"Sec-WebSocket-Key: {KEY}", f"Sec-WebSocket-Version: {version}"]
    lines += [f"Sec-WebSocket-Protocol: {protocol}"] if protocol is not None else []
    lines += [f"Origin: {origin}"] if origin is not None else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(opcode: Opcode, data: bytes = b"", fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def opened(origins: tuple[str, ...] = ()) -> WebSocket:
    layer = WebSocket(origins, 4096)
    assert layer.receive(request()) == b""
    assert layer.send(b"").startswith(b"HTTP/1.1 101 ")
    return layer


def refused(data: bytes, *, origins: tuple[str, ...] = ()) -> tuple[str, str]:
    """What the log is told, and what the peer is told."""
    layer = WebSocket(origins, 4096)
    with pytest.raises(TransportError) as caught:
        layer.receive(data)
    return str(caught.value), layer.finish(b"").decode()


# --- opening ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/mqtt", "/a/b?c=d"])
@pytest.mark.parametrize(
    ("offered", "chosen"), [("mqtt", "mqtt"), ("mqttv3.1", "mqttv3.1"), ("x, mqttv3.1, mqtt", "mqtt")]
)
def test_the_handshake_takes_any_path_and_chooses_the_subprotocol(path: str, offered: str, chosen: str) -> None:
    layer = WebSocket((), 4096)
    layer.receive(request(offered, path=path))
    answer = layer.send(b"").decode()
    assert answer.startswith("HTTP/1.1 101 Switching Protocols\r\n")
    assert f"Sec-WebSocket-Accept: {ACCEPT}\r\n" in answer
    assert f"Sec-WebSocket-Protocol: {chosen}\r\n" in answer
    assert not layer.has_output


def test_compression_is_never_agreed_on() -> None:
    layer = WebSocket((), 4096)
    layer.receive(request()[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
    assert b"Extensions" not in layer.send(b"")


@pytest.mark.parametrize(("offered", "told"), [(None, "none"), ("other", "only other")])
def test_a_client_that_does_not_offer_mqtt_is_refused(offered: str | None, told: str) -> None:
    log, answer = refused(request(offered))
    assert "must offer the subprotocol mqtt, and offers " + told in log
    assert answer.startswith("HTTP/1.1 400 ")
    assert "subprotocol mqtt" in answer


def test_the_origin_is_compared_whole() -> None:
    allowed = ("https://a.example", "https://b.example")
    for origin in allowed:
        layer = WebSocket(allowed, 4096)
        layer.receive(request(origin=origin))
        assert layer.send(b"").startswith(b"HTTP/1.1 101")
    for bad in ("https://a.exampl", "https://a.example.evil", "https://A.example", None):
        log, answer = refused(request(origin=bad), origins=allowed)
        assert "rigin" in log
        assert answer.startswith("HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(method="POST"), 405),
        (request(version="8"), 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 426),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 4096, 431),
    ],
)
def test_other_requests_get_an_http_answer(data: bytes, status: int) -> None:
    _log, answer = refused(data)
    assert answer.startswith(f"HTTP/1.1 {status} ")


@pytest.mark.parametrize(
    ("data", "mistake"),
    [
        (b"\x10\x0c\x00\x04MQTT", "plain MQTT"),
        (b"\x16\x03\x01\x02\x00", "TLS handshake"),
        (b"\x00\x00", "no HTTP request"),
    ],
)
def test_what_is_no_http_is_named(data: bytes, mistake: str) -> None:
    log, answer = refused(data)
    assert mistake in log
    assert answer == ""


def test_what_a_peer_chose_is_escaped_in_the_log() -> None:
    log, _answer = refused(request(origin="https://a\x85b" + "c" * 500), origins=("https://a",))
    assert log.isprintable()
    assert len(log) < 400


@given(st.lists(st.integers(1, 40), min_size=1))
def test_frames_may_come_right_behind_the_request_in_any_pieces(cuts: list[int]) -> None:
    stream = request() + frame(Opcode.PING, b"?") + frame(Opcode.BINARY, b"hello")
    layer, got, sent = WebSocket((), 4096), b"", b""
    while stream:
        size = cuts[len(stream) % len(cuts)]
        got += layer.receive(stream[:size])
        stream = stream[size:]
        sent += layer.send(b"")
    assert got == b"hello"
    assert sent.startswith(b"HTTP/1.1 101")
    assert sent.endswith(b"\r\n\r\n\x8a\x01?")


@given(st.binary(max_size=300))
def test_no_bytes_are_more_than_a_refusal(data: bytes) -> None:
    told: list[str] = []
    for layer in (WebSocket((), 200), opened()):
        try:
            layer.receive(data)
            layer.receive(data)
        except TransportError as error:
            told.append(str(error))
            layer.finish(b"")
    assert all(one.isprintable() for one in told)


@given(st.integers(0, len(request(origin="https://a")) - 1), st.binary(max_size=8), st.integers(0, 20))
def test_a_request_with_any_damage_is_accepted_or_refused(at: int, junk: bytes, cut: int) -> None:
    whole = request(origin="https://a")
    layer = WebSocket(("https://a",), 4096)
    told = ""
    try:
        layer.receive(whole[:at] + junk + whole[at + cut :] + b"\r\n\r\n")
    except TransportError as error:
        told = str(error)
    assert told.isprintable()
    assert layer.finish(b"").startswith(b"HTTP/1.1 ") or not layer.is_open


# --- frames -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans())), st.lists(st.integers(1, 50), min_size=1))
def test_any_framing_and_any_chunking_give_the_same_bytes(parts: list[tuple[bytes, bool]], cuts: list[int]) -> None:
    stream, within = b"", False
    for data, fin in parts:
        stream += frame(Opcode.CONT if within else Opcode.BINARY, data, fin) + frame(Opcode.PONG, b"in between")
        within = not fin
    layer, got = opened(), b""
    while stream:
        size = cuts[len(stream) % len(cuts)]
        got += layer.receive(stream[:size])
        stream = stream[size:]
    assert got == b"".join(data for data, _fin in parts)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300_000])
def test_the_library_understands_our_frames_and_we_its(size: int) -> None:
    client = ClientProtocol(parse_uri("ws://h/"), subprotocols=[Subprotocol("mqtt")], origin=Origin("x"), max_size=None)
    client.send_request(client.connect())
    layer = WebSocket((), 4096)
    assert layer.receive(b"".join(client.data_to_send())) == b""
    client.receive_data(layer.send(b""))
    client.events_received()
    data = bytes(range(256)) * (size // 256 + 1)
    client.send_binary(data[:size])
    assert layer.receive(b"".join(client.data_to_send())) == data[:size]
    if size:
        client.receive_data(layer.send(data[:size]))
        [event] = client.events_received()
        assert isinstance(event, Frame)
        assert bytes(event.data) == data[:size]
    client.receive_data(layer.finish(b"last"))
    assert [event.opcode for event in client.events_received() if isinstance(event, Frame)] == [
        Opcode.BINARY,
        Opcode.CLOSE,
    ]
    layer.receive(b"".join(client.data_to_send()))
    assert layer.ended
    assert not layer.has_output


def test_a_payload_is_given_as_it_arrives_and_nothing_is_held() -> None:
    layer = opened()
    head = b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"\x01\x02\x03\x04"
    assert layer.receive(head) == b""
    assert layer.receive(b"\x01\x02\x03\x04\x01") == b"\0\0\0\0\0"
    assert layer.receive(b"\x02\x03\x04") == b"\0\0\0"


@pytest.mark.parametrize(
    ("data", "code", "problem"),
    [
        (frame(Opcode.TEXT, b"x"), 1003, "a text frame"),
        (b"\xc2\x80\0\0\0\0", 1002, "reserved bits"),
        (b"\x82\x01xxxxx", 1002, "not masked"),
        (b"\x83\x80\0\0\0\0", 1002, "opcode 3"),
        (b"\x8b\x80\0\0\0\0", 1002, "opcode 11"),
        (frame(Opcode.CONT, b"x"), 1002, "a continuation without"),
        (frame(Opcode.BINARY, b"x", fin=False) + frame(Opcode.BINARY, b"x"), 1002, "two messages"),
        (b"\x09\x80\0\0\0\0", 1002, "control frame"),
        (b"\x89\xfe\0\x7e\0\0\0\0", 1002, "control frame"),
        (b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0", 1002, "2^63"),
        (b"\x88\x81\0\0\0\0x", 1002, "Close frame"),
        (frame(Opcode.CLOSE, b"\x03\xed"), 1002, "Close frame"),
        (frame(Opcode.CLOSE, b"\x03\xe8\xff"), 1007, "not UTF-8"),
    ],
)
def test_a_broken_frame_is_closed_with_its_code(data: bytes, code: int, problem: str) -> None:
    layer = opened()
    with pytest.raises(TransportError, match=problem.replace("^", r"\^")):
        layer.receive(data)
    assert layer.finish(b"") == b"\x88\x02" + code.to_bytes(2, "big")


def test_only_the_latest_ping_is_answered_when_answers_cannot_leave() -> None:
    layer = opened()
    for number in range(1000):
        layer.receive(frame(Opcode.PING, b"%d" % number))
    assert layer.has_output
    assert layer.send(b"") == b"\x8a\x03999"


def test_a_close_is_echoed_once_and_nothing_is_sent_behind_it() -> None:
    layer = opened()
    close = frame(Opcode.CLOSE, b"\x03\xe8bye")
    assert layer.receive(frame(Opcode.BINARY, b"last") + close + frame(Opcode.BINARY, b"more")) == b"last"
    assert layer.ended
    assert layer.finish(b"late") == b"\x88\x02\x03\xe8"
    assert layer.finish(b"late") == b""


def test_our_close_comes_first_and_the_echo_ends_it() -> None:
    layer = opened()
    assert layer.finish(b"bye") == b"\x82\x03bye\x88\x02\x03\xe8"
    assert not layer.ended
    layer.receive(frame(Opcode.BINARY, b"crossing") + frame(Opcode.PING) + frame(Opcode.CLOSE, b"\x03\xe8"))
    assert layer.ended
    assert not layer.has_output
