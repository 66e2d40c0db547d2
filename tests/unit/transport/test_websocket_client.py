"""The client's WebSocket against our server's, and against servers that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.transport.layer import TransportError
from lockgate.transport.websocket import WebSocket
from lockgate.transport.websocket_client import WebSocketLayer


def opened() -> tuple[WebSocketLayer, WebSocket]:
    client, server = WebSocketLayer("host", 9001), WebSocket((), 4096)
    assert server.receive(client.send(b"")) == b""
    assert client.receive(server.send(b"")) == b""
    assert client.is_open
    assert server.is_open
    return client, server


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1), st.integers(1, 40))
def test_both_directions_give_what_was_sent_in_pieces_of_any_size(payloads: list[bytes], size: int) -> None:
    client, server = opened()
    upward = b"".join(client.send(payload) for payload in payloads)
    assert b"".join(server.receive(upward[at : at + size]) for at in range(0, len(upward), size)) == b"".join(payloads)
    downward = b"".join(server.send(payload) for payload in payloads)
    got = b"".join(client.receive(downward[at : at + size]) for at in range(0, len(downward), size))
    assert got == b"".join(payloads)


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 200_000])
def test_every_form_of_length(size: int) -> None:
    client, server = opened()
    payload = b"x" * size
    assert server.receive(client.send(payload)) == payload
    assert client.receive(server.send(payload)) == payload


def test_what_is_sent_before_the_server_agrees_waits() -> None:
    client, server = WebSocketLayer("host"), WebSocket((), 4096)
    server.receive(client.send(b"CONNECT"))
    client.receive(server.send(b""))
    assert server.receive(client.send(b"")) == b"CONNECT"


def test_a_ping_is_answered_and_a_close_echoed() -> None:
    client, server = opened()
    client.receive(b"\x89\x02hi")
    pong = client.send(b"")
    assert pong[:2] == b"\x8a\x82"
    assert bytes(a ^ b for a, b in zip(pong[6:], pong[2:6], strict=False)) == b"hi"
    client.receive(server.finish(b""))
    assert client.ended
    server.receive(client.send(b""))
    assert server.ended


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "404"),
        (b"\x20\x02\x00\x00", "does not speak WebSocket"),
        (b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n", "not one"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 9000, "does not speak WebSocket"),
    ],
)
def test_an_answer_that_is_no_agreement_is_refused(answer: bytes, told: str) -> None:
    client = WebSocketLayer("host")
    client.send(b"")
    with pytest.raises(TransportError, match=told):
        client.receive(answer)


@pytest.mark.parametrize("frame", [b"\x82\x81abcdx", b"\xc2\x01x", b"\x81\x01x", b"\x09\x00", b"\x89\x7e\x00\x80"])
def test_a_broken_frame_is_refused(frame: bytes) -> None:
    client, _ = opened()
    with pytest.raises(TransportError, match="WebSocket"):
        client.receive(frame)
