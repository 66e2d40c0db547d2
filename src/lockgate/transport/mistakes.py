"""What somebody meant whose first bytes are not those that a listener expects."""

from __future__ import annotations

from typing import Final

from lockgate.transport.proxy_protocol import SIGNATURE_V1, SIGNATURE_V2

MQTT: Final = "plain MQTT"
TLS: Final = "TLS"
WEBSOCKET: Final = "WebSocket"

_METHODS: Final = tuple(b"%s " % name for name in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT"))
_HTTP2: Final = b"PRI * HTTP/2"


def likely_mistake(data: bytes, expected: str) -> str | None:
    """Give what these first bytes (two are enough to guess) seem to be and what to do about it; None: no idea.

    `expected` is what the listener speaks: MQTT, TLS or WEBSOCKET.
    """
    if _begins(data, (SIGNATURE_V1, SIGNATURE_V2)):
        version = 2 if _begins(data, (SIGNATURE_V2,)) else 1
        return f"a PROXY header; set enable_proxy_protocol {version} on this listener, or turn it off in the proxy"
    if _begins(data, (b"SSH-",)):
        return "SSH; this is the port of an MQTT broker"
    if data[:1] == b"\x16" and (len(data) < 2 or data[1] == 3):
        return (
            "a TLS handshake, but this listener has no certificate; "
            "connect without TLS (mqtt:// or ws://), or set certfile and keyfile on it"
        )
    if _begins(data, (*_METHODS, _HTTP2)):
        upgrade = b"upgrade: websocket" in data.lower()
        if expected == TLS:
            return "plain HTTP, but this listener speaks TLS; connect with https:// or wss://"
        if upgrade:
            return "a WebSocket upgrade, but this listener speaks MQTT; set `protocol websockets` on it"
        return "HTTP; this listener speaks MQTT, and WebSocket only where `protocol websockets` is set"
    if data[:1] == b"\x10" and expected != MQTT:
        if expected == TLS:
            return "plain MQTT, but this listener speaks TLS; connect with mqtts:// (for example --cafile)"
        return "plain MQTT, but this listener speaks WebSocket; connect with ws://, or remove `protocol websockets`"
    return None


def _begins(data: bytes, openings: tuple[bytes, ...]) -> bool:
    """Whether the bytes are the beginning of one of these, at least two bytes of it."""
    return len(data) >= 2 and any(data[: len(one)] == one[: len(data)] for one in openings)
