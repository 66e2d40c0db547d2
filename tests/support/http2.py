"""HTTP/2 as a test writes it by hand."""

from __future__ import annotations

from lockgate.tunnel.http2 import Headers

REQUEST: Headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"x")]
OK: Headers = [(b":status", b"200")]


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of any type (RFC 9113 §4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
