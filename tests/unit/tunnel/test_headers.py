"""Header fields between edge and connector."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.tunnel.headers import HeaderError, Kind, deserialise, end_to_end, kind_of, response, serialise

SEEN = b"Q29udGVudC1UeXBl:YXBwbGljYXRpb24vb2N0ZXQtc3RyZWFt;Q29udGVudC1MZW5ndGg:NTAwMDAwMDA"


def test_fields_as_a_real_connector_sends_them() -> None:
    fields = [(b"Content-Type", b"application/octet-stream"), (b"Content-Length", b"50000000")]
    assert serialise(fields) == SEEN
    assert deserialise(SEEN) == [(name.lower(), value) for name, value in fields]
    assert deserialise(b"") == []


NAMES = st.binary(min_size=1).filter(lambda name: not set(name) & set(b"\r\n\0: "))
VALUES = st.binary().filter(lambda value: not set(value) & set(b"\r\n\0"))


@given(st.lists(st.tuples(NAMES.map(lambda name: b"x-" + name.lower()), VALUES)))
def test_any_fields_come_back(fields: list[tuple[bytes, bytes]]) -> None:
    assert deserialise(serialise(fields)) == fields


@pytest.mark.parametrize("value", [b"YQ", b"Y:YQ", b"YQ:YQ;", b"YQ:DQo", b"DQo:YQ", b":YQ", b"YTo:YQ", b"!!:YQ"])
def test_what_is_no_serialised_field_is_refused(value: bytes) -> None:
    with pytest.raises(HeaderError):
        deserialise(value)


@given(st.binary())
def test_any_bytes_are_fields_or_refused(value: bytes) -> None:
    try:
        fields = deserialise(value)
    except HeaderError:
        return
    assert all(b"\n" not in name + content for name, content in fields)


def test_an_origin_cannot_speak_for_the_tunnel() -> None:
    fields = [(b"Cf-Cloudflared-Response-Meta", b"x"), (b"cf-int-a", b"x"), (b"Sec-WebSocket-Accept", b"y")]
    assert deserialise(serialise(fields)) == [(b"sec-websocket-accept", b"y")]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, Kind.HTTP),
        ({b"cf-cloudflared-proxy-connection-upgrade": b"control-stream"}, Kind.CONTROL),
        ({b"cf-cloudflared-proxy-connection-upgrade": b"websocket", b"cf-cloudflared-proxy-src": b"a"}, Kind.WEBSOCKET),
        ({b"cf-cloudflared-proxy-connection-upgrade": b"update-configuration"}, Kind.CONFIGURATION),
        ({b"cf-cloudflared-proxy-src": b"10.0.0.1"}, Kind.TCP),
        ({b"cf-cloudflared-proxy-src": b""}, Kind.HTTP),
    ],
)
def test_a_request_is_what_its_fields_say(fields: dict[bytes, bytes], kind: Kind) -> None:
    assert kind_of(fields) is kind


def test_what_is_of_one_connection_stays_behind() -> None:
    fields = [(b"Connection", b"close, X-Mine"), (b"x-mine", b"1"), (b"TE", b"trailers"), (b"Accept", b"*/*")]
    assert end_to_end(fields) == [(b"accept", b"*/*")]


def test_switching_protocols_travels_as_200() -> None:
    said = dict(response(101, [(b"Sec-WebSocket-Accept", b"x")]))
    assert said[b":status"] == b"200"
    assert deserialise(said[b"cf-cloudflared-response-headers"]) == [(b"sec-websocket-accept", b"x")]
