"""What an edge may ask of a connector itself, under a host name of its own: how it is, and its log as it is written.

Both ends are here: `Management` in the connector, `LogFollower` at the edge. The paths and messages are cloudflared's,
so that an edge of ours follows the log of an unmodified cloudflared, and the vendor's tools that of ours. Whoever asks
brings a JWT whose signature the connector does not check: only the edge can ask, and it never lets the public in here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs
from uuid import UUID

from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

from lockgate.tunnel.framed import WEBSOCKET_MAGIC
from lockgate.tunnel.h2_session import Stream, StreamProtocol
from lockgate.tunnel.headers import response
from lockgate.tunnel.http2 import Headers

log = logging.getLogger(__name__)

HOST: Final = "management.argotunnel.com"
_BAD_FIRST, _TOO_MANY = 4001, 4002
_MESSAGE_BYTES: Final = 64 * 1024
_BUFFER_BYTES: Final = 256 * 1024  # of log lines that wait for an edge that reads slowly; then they are left out
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_FOLLOW_SECONDS: Final = 30.0  # after the last question the edge stops following
_REMEMBERED: Final = 2000  # lines at the edge


class Management:
    """The connector's end."""

    def __init__(self, tunnel_id: UUID, details: Mapping[str, object]) -> None:
        self._tunnel_id = tunnel_id
        self._details = details
        self._following: _LogSender | None = None

    def serve(self, stream: Stream, fields: Mapping[bytes, bytes]) -> None:
        """Answer one request."""
        path, _, query = fields.get(b":path", b"/").decode("latin-1").partition("?")
        if not self._is_allowed(parse_qs(query).get("access_token", [""])[0]):
            self._say(stream, 400, {"errors": [{"code": 1001, "message": "no usable access_token"}]})
        elif path == "/ping":
            self._say(stream, 200, {})
        elif path == "/host_details":
            self._say(stream, 200, self._details)
        elif path == "/logs" and b"sec-websocket-key" in fields:
            self._send_log(stream, fields[b"sec-websocket-key"])
        else:
            self._say(stream, 404, {"errors": [{"code": 404, "message": "no such page"}]})

    def _is_allowed(self, token: str) -> bool:
        """Whether it is a token for this tunnel, and names who asks."""
        try:
            claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
            return bool(claims["actor"]["id"]) and UUID(claims["tun"]["id"]) == self._tunnel_id
        except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
            return False

    def _say(self, stream: Stream, status: int, said: Mapping[str, object]) -> None:
        body = json.dumps(said).encode()
        fields = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
        stream.send_headers(response(status, fields))
        stream.write(body)
        stream.close()

    def _send_log(self, stream: Stream, key: bytes) -> None:
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_MAGIC).digest())
        fields = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Sec-WebSocket-Accept", accept)]
        stream.send_headers(response(101, fields))
        if self._following is not None:
            self._following.end(_TOO_MANY, "somebody else follows the log now")
        self._following = _LogSender(stream)
        stream.set_protocol(self._following)
        stream.resume_reading()


class _Talk(StreamProtocol):
    """Messages in WebSocket frames on a stream."""

    def __init__(self, stream: Stream, protocol: Protocol) -> None:
        self._stream = stream
        self._frames = protocol

    def data_received(self, data: bytes) -> None:
        try:
            self._frames.receive_data(data)
            for event in self._frames.events_received():
                if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                    said = json.loads(bytes(event.data))
                    self.heard(said if isinstance(said, dict) else {})
        except (ProtocolError, ValueError):
            self._frames.fail(1002)
        self.flush()

    def heard(self, said: Mapping[str, Any]) -> None:
        """A message has come."""
        raise NotImplementedError

    def flush(self) -> None:
        for data in self._frames.data_to_send():
            if data:
                self._stream.write(data)
            else:
                self._stream.write_eof()

    def eof_received(self) -> bool:
        return False


class _LogSender(_Talk, logging.Handler):
    """Sends what is logged to the edge that follows, as much as it reads."""

    def __init__(self, stream: Stream) -> None:
        logging.Handler.__init__(self)
        _Talk.__init__(self, stream, Protocol(SERVER, state=OPEN, max_size=_MESSAGE_BYTES))
        self._loop = asyncio.get_running_loop()
        self._attached = False

    def heard(self, said: Mapping[str, Any]) -> None:
        if said.get("type") == "start_streaming":
            filters = said.get("filters")
            level = filters.get("level") if isinstance(filters, dict) else None
            self.setLevel(_LEVELS.get(str(level), logging.INFO))
            if not self._attached:
                self._attached = True
                logging.getLogger("lockgate").addHandler(self)
        elif said.get("type") == "stop_streaming":
            self._detach()
        elif not self._attached:
            self.end(_BAD_FIRST, "start_streaming comes first")

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._send, record)

    def _send(self, record: logging.LogRecord) -> None:
        if not self._attached or self._stream.get_write_buffer_size() > _BUFFER_BYTES:
            return
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": next((name for name, level in _LEVELS.items() if record.levelno <= level), "error"),
            "message": record.getMessage(),
            "event": "cloudflared",
            "fields": {"logger": record.name},
        }
        self._frames.send_text(json.dumps({"type": "logs", "logs": [line]}).encode())
        self.flush()

    def end(self, code: int, why: str) -> None:
        """Send no more."""
        self._detach()
        with contextlib.suppress(Exception):  # it is closing already
            self._frames.send_close(code, why)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._detach()

    def _detach(self) -> None:
        self._attached = False
        logging.getLogger("lockgate").removeHandler(self)


# --- at the edge --------------------------------------------------------------------------------------------------


def access_token(tunnel_id: UUID, account_tag: str) -> str:
    """A token as connectors want one: of the right form, with a signature that nobody checks."""
    claims = {"tun": {"id": str(tunnel_id), "account_tag": account_tag}, "actor": {"id": "edge", "support": False}}
    parts = (json.dumps({"alg": "ES256", "typ": "JWT"}).encode(), json.dumps(claims).encode(), bytes(64))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def request(tunnel_id: UUID, account_tag: str, path: str) -> Headers:
    """The header fields of a request to a connector itself."""
    target = f"{path}?access_token={access_token(tunnel_id, account_tag)}".encode()
    return [
        (b":method", b"GET"), (b":scheme", b"https"), (b":authority", HOST.encode()), (b":path", target),
    ]  # fmt: skip


class LogFollower(_Talk):
    """Remembers what one connector logs, as long as somebody asks."""

    def __init__(self, stream: Stream, level: str) -> None:
        super().__init__(stream, Protocol(CLIENT, state=OPEN, max_size=1 << 20))
        self.lines: deque[tuple[int, dict[str, Any]]] = deque(maxlen=_REMEMBERED)
        self.is_over = False
        self._number = 0
        self._asked = time.monotonic()
        said = {"type": "start_streaming", "filters": {"level": level}}
        self._frames.send_text(json.dumps(said).encode())
        stream.set_protocol(self)
        stream.resume_reading()
        self.flush()

    def after(self, number: int) -> list[dict[str, Any]]:
        """The lines behind this one, each with its number."""
        self._asked = time.monotonic()
        return [{"number": at, **line} for at, line in self.lines if at > number]

    def heard(self, said: Mapping[str, Any]) -> None:
        lines = said.get("logs")
        for line in lines if isinstance(lines, list) else ():
            if isinstance(line, dict):
                self._number += 1
                self.lines.append((self._number, line))
        if time.monotonic() - self._asked > _FOLLOW_SECONDS:
            self._stream.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
