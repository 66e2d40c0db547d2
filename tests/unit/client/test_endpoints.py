"""URLs of Servers, with TLS and WebSocket or without."""

from __future__ import annotations

import pytest

from lockgate.client import parse_endpoint


@pytest.mark.parametrize(
    ("url", "port", "tls", "path"),
    [
        ("mqtt://h", 1883, False, None),
        ("mqtts://h", 8883, True, None),
        ("mqtts://u:p%2F@h:443", 443, True, None),
        ("ws://h", 80, False, "/mqtt"),
        ("wss://h/", 443, True, "/mqtt"),
        ("wss://u@h:8084/ws/v5", 8084, True, "/ws/v5"),
    ],
)
def test_the_scheme_says_what_lies_under_mqtt(url: str, port: int, tls: bool, path: str | None) -> None:
    endpoint, address = parse_endpoint(url)
    assert (endpoint.host, endpoint.port, endpoint.tls is not None, endpoint.websocket_path) == ("h", port, tls, path)
    assert address.port == port
    assert (address.username is not None) == ("@" in url)


@pytest.mark.parametrize("url", ["http://h", "mqtts://h/path", "mqtts://", "wss://h:0/mqtt"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL|port"):
        parse_endpoint(url)
