"""The client's side of WebSocket (RFC 6455) as MQTT uses it: masked binary frames, subprotocol `mqtt` (MQTT 5 §6)."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Final

from lockgate.transport.layer import TransportError
from lockgate.transport.websocket_frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    LONGEST_CONTROL,
    OPCODE,
    PING,
    PONG,
    RESERVED,
    masked_frame,
    read_head,
)

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HEAD_BYTES: Final = 8192  # of the answer to the handshake


class WebSocketLayer:
    """One connection: the handshake, then payloads up as they arrive and one masked binary frame for each `send`."""

    __slots__ = ("_begun", "_closing", "_held", "_key", "_left", "_pong", "_request", "_rest", "ended", "is_open")

    def __init__(self, host: str, port: int | None = None, path: str = "/mqtt", protocol: str = "mqtt") -> None:
        """`host` and `port` are for the Host header; no port: the scheme's own."""
        self._key = base64.b64encode(os.urandom(16))
        name = f"[{host}]" if ":" in host else host
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {name}{f':{port}' if port else ''}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {self._key.decode()}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        ).encode()
        self._begun = False
        self._held = b""  # for the peer, until it has agreed
        self._rest = b""  # of the answer, or of the head of a frame
        self._left = 0  # bytes of the payload of this frame still to come
        self._pong = b""
        self._closing = False  # our Close frame is said
        self.is_open = False
        self.ended = False

    @classmethod
    def accepted(cls) -> WebSocketLayer:
        """A connection whose handshake somebody else has seen to."""
        frames = cls("")
        frames._begun = frames.is_open = True
        return frames

    @property
    def has_output(self) -> bool:
        """Whether a Pong waits to be sent."""
        return bool(self._pong)

    def receive(self, data: bytes) -> bytes:
        """Give the payload of binary frames; raises TransportError for a refusal or a broken frame."""
        if self.ended:
            return b""
        data, self._rest = self._rest + data, b""
        if not self.is_open:
            data = self._open(data)
        return self._payloads(data)

    def send(self, data: bytes) -> bytes:
        """Give the request of the handshake first; later `data` as one frame."""
        said = self._pong
        self._pong = b""
        if not self._begun:
            self._begun = True
            said += self._request
        if not self.is_open:
            self._held += data
        elif not self._closing:
            data, self._held = self._held + data, b""
            if data:
                said += masked_frame(BINARY, data)
        return said

    def finish(self, data: bytes) -> bytes:
        """Give `data` as a frame, and the Close frame."""
        said = self.send(data)
        if self.is_open and not self._closing:
            self._closing = True
            said += masked_frame(CLOSE, (1000).to_bytes(2, "big"))
        return said

    def _open(self, data: bytes) -> bytes:
        """Read the answer once it is whole (§4.1); give what came behind it."""
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(data) > _HEAD_BYTES or not b"HTTP/1.1 ".startswith(data[:9]):
                raise TransportError("the server does not speak WebSocket on this port")
            self._rest = data
            return b""
        status, *lines = data[: end - 4].decode("latin-1").split("\r\n")
        code = status.split(" ", 2)[1:2]
        if not status.startswith("HTTP/1.1 ") or code != ["101"]:
            raise TransportError(f"the server refused the WebSocket: {status[:200]!r}")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        accept = base64.b64encode(hashlib.sha1(self._key + _GUID).digest()).decode()
        if headers.get("upgrade", "").lower() != "websocket" or headers.get("sec-websocket-accept") != accept:
            raise TransportError("the answer to the WebSocket handshake is not one")
        if headers.get("sec-websocket-protocol") not in ("mqtt", "mqttv3.1"):
            raise TransportError("the server did not agree to MQTT over its WebSocket")
        self.is_open = True
        return data[end:]

    def _payloads(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size and not self.ended:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                pieces.append(piece)
                continue
            begin = self._read_head(data, at)
            if begin == 0:
                self._rest = data[at:]
                break
            at = begin
        return b"".join(pieces)

    def _read_head(self, data: bytes, at: int) -> int:
        """Read the head of a frame, and all of a control frame; give where the next bytes begin, 0 if some miss."""
        head = read_head(data, at)
        if head is None:
            return 0
        first, length, mask, begin = head
        opcode = first & OPCODE
        if first & RESERVED or mask or opcode not in (CONTINUATION, BINARY, CLOSE, PING, PONG):
            raise TransportError("WebSocket: a frame that MQTT does not use, or none")
        if opcode < CLOSE:
            self._left = length
            return begin
        if length > LONGEST_CONTROL or not first & FIN:
            raise TransportError("WebSocket: a control frame that is fragmented or longer than 125 bytes")
        if len(data) < begin + length:
            return 0
        payload = data[begin : begin + length]
        if opcode == PING:
            self._pong = masked_frame(PONG, payload)
        elif opcode == CLOSE:
            if not self._closing:
                self._closing = True
                self._pong = masked_frame(CLOSE, payload[:2])
            self.ended = True
        return begin + length
