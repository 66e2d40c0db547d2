"""What a connector says of an origin's answer, as the edge reads it."""

from __future__ import annotations

from dataclasses import dataclass

from lockgate.tunnel.headers import META, SERIALISED, HeaderError, deserialise
from lockgate.tunnel.http2 import Headers


@dataclass(frozen=True, slots=True)
class Response:
    """`fields`: the origin's, names in lower case. `cause`: why the connector itself could not answer."""

    status: int
    fields: Headers
    from_origin: bool
    cause: str = ""

    @property
    def switches(self) -> bool:
        """Whether the origin agreed to a WebSocket: 101 travels as 200, and a real 200 has no such field."""
        return self.status == 200 and any(name == b"sec-websocket-accept" for name, _ in self.fields)


def read_response(headers: Headers) -> Response:
    """Read the header fields of a stream's response; HeaderError for what is none."""
    fields = dict(headers)
    status = fields.get(b":status", b"")
    if not (len(status) == 3 and status.isdigit() and b"200" <= status <= b"599"):
        raise HeaderError(f"a response with the status {status[:10]!r}")
    # Fields of its HTTP/2 library, such as a date, are no part of the origin's answer.
    said = deserialise(fields.get(SERIALISED, b""))
    from_origin = b'"origin"' in fields.get(META, b"")
    return Response(int(status), said, from_origin, fields.get(b"lockgate-cause", b"").decode("latin-1"))
