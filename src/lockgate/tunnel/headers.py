"""The header fields by which edge and connector tell each other what a stream is, and what a response says.

A request of the edge carries its kind in header fields; the fields of the origin's response travel serialised in one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

from lockgate.tunnel.http2 import Headers

UPGRADE: Final = b"cf-cloudflared-proxy-connection-upgrade"
SOURCE: Final = b"cf-cloudflared-proxy-src"  # of a raw TCP stream: where the device is
META: Final = b"cf-cloudflared-response-meta"
SERIALISED: Final = b"cf-cloudflared-response-headers"
FROM_ORIGIN: Final = b'{"src":"origin"}'
FROM_CONNECTOR: Final = b'{"src":"cloudflared"}'

# Of one connection, and none of the next one's business (RFC 9110 §7.6.1, RFC 9113 §8.2.2)
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
     b"trailer", b"transfer-encoding", b"upgrade")
)  # fmt: skip
_INTERNAL: Final = (b"cf-int-", b"cf-cloudflared-", b"cf-proxy-", b":")
_WITHOUT_BODY: Final = frozenset((101, 204, 304))
_ALWAYS_KEPT: Final = frozenset((b"sec-websocket-accept", b"connection", b"upgrade"))


class Kind(Enum):
    """What the edge wants of a stream."""

    CONFIGURATION = "update-configuration"
    WEBSOCKET = "websocket"
    TCP = "tcp"
    CONTROL = "control-stream"
    HTTP = "http"


class HeaderError(ValueError):
    """Serialised header fields that are none."""


def kind_of(fields: Mapping[bytes, bytes]) -> Kind:
    """What a request is, by its header fields; the first that fits."""
    upgrade = fields.get(UPGRADE, b"")
    if upgrade == b"update-configuration":
        return Kind.CONFIGURATION
    if upgrade == b"websocket":
        return Kind.WEBSOCKET
    if fields.get(SOURCE):
        return Kind.TCP
    return Kind.CONTROL if upgrade == b"control-stream" else Kind.HTTP


def end_to_end(fields: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The fields, names in lower case, without those of one connection and those that Connection names."""
    fields = [(name.lower(), value) for name, value in fields]
    named = {name.strip() for key, value in fields if key == b"connection" for name in value.lower().split(b",")}
    return [field for field in fields if field[0] not in HOP_BY_HOP and field[0] not in named]


def serialise(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The fields of an origin's response in one value; those of the tunnel's own names are dropped."""
    return b";".join(
        _encoded(name) + b":" + _encoded(value)
        for name, value in fields
        if name.lower() in _ALWAYS_KEPT or not name.lower().startswith(_INTERNAL)
    )


def deserialise(value: bytes) -> Headers:
    """The fields, names in lower case; HeaderError for what is no such value, or would break out of a header."""
    fields: Headers = []
    for pair in value.split(b";") if value else ():
        name, colon, content = pair.partition(b":")
        if not colon:
            raise HeaderError("a serialised header field without a colon")
        name, content = _decoded(name).lower(), _decoded(content)
        if not name or any(byte in b"\r\n\0: " for byte in name) or any(byte in b"\r\n\0" for byte in content):
            raise HeaderError(f"a header field that cannot be one ({name[:50]!r})")
        fields.append((name, content))
    return fields


def response(
    status: int, fields: Headers, *, meta: bytes = FROM_ORIGIN, extra: Iterable[tuple[bytes, bytes]] = ()
) -> Headers:
    """The header fields of a stream's response; 101 travels as 200, for HTTP/2 has no 101."""
    said: Headers = [(b":status", b"%d" % (200 if status == 101 else status)), (META, meta)]
    if status not in _WITHOUT_BODY:  # where HTTP/2 libraries would wait for so much
        said += [(b"content-length", value) for name, value in fields if name.lower() == b"content-length"]
    said.append((SERIALISED, serialise(fields)))
    said += extra
    return said


def _encoded(value: bytes) -> bytes:
    return base64.b64encode(value).rstrip(b"=")


def _decoded(value: bytes) -> bytes:
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise HeaderError(f"a serialised header field that is not Base64 ({error})") from None
