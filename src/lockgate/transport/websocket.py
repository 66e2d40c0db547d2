"""The server's side of WebSocket (RFC 6455) as MQTT uses it: binary frames, subprotocol `mqtt` (MQTT 5 §6).

The opening handshake is the `websockets` library's. The frames are ours: its parser gives a frame when it is whole,
which would hold up to 256 MiB that the MQTT decoder refuses after the first few bytes (docs/decisions/0004).
"""

from __future__ import annotations

import http
import logging
from collections.abc import Sequence
from typing import Final, cast

from websockets.exceptions import NegotiationError
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from lockgate.transport.layer import TransportError
from lockgate.transport.mistakes import WEBSOCKET, likely_mistake
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
    TEXT,
    apply_mask,
    frame,
    read_head,
    turn_mask,
)

SUBPROTOCOLS: Final = ("mqtt", "mqttv3.1")  # the older name is what MQTT 3.1 clients offer

_NORMAL, _PROTOCOL_ERROR, _UNSUPPORTED_DATA, _INVALID_DATA = 1000, 1002, 1003, 1007

# The library tells at info what the broker tells itself; its errors are ours.
_library_log = logging.getLogger(f"{__name__}.library")
_library_log.setLevel(logging.ERROR)


class WebSocket:
    """One connection: the handshake, then payloads up as they arrive and one binary frame for each `send`."""

    __slots__ = (
        "_answer",
        "_close_code",
        "_echo",
        "_head_bytes",
        "_left",
        "_mask",
        "_opened",
        "_origins",
        "_pong",
        "_rest",
        "_within",
        "ended",
    )

    opening = "WebSocket handshake"
    memory_bytes = 400
    identity = None

    def __init__(self, origins: Sequence[str], head_bytes: int) -> None:
        """`origins`: those let in, empty for all. `head_bytes`: largest handshake request."""
        self._origins = origins
        self._head_bytes = head_bytes
        self._opened = False
        self._rest = b""  # of the request, or of the head of a frame
        self._left = 0  # bytes of the payload of this frame still to come
        self._mask = b""  # for the next of them
        self._within = False  # a fragmented message has begun
        self._answer = b""  # to the handshake
        self._pong = b""
        self._echo = b""  # of the peer's Close frame
        self._close_code = _NORMAL  # 0: our Close frame is said
        self.ended = False

    @classmethod
    def accepted(cls) -> WebSocket:
        """A connection whose handshake somebody else has seen to."""
        frames = cls((), 0)
        frames._opened = True
        return frames

    @property
    def is_open(self) -> bool:
        """Whether the handshake was accepted."""
        return self._opened

    @property
    def awaits_goodbye(self) -> bool:
        """Whether the peer's Close frame has still to come (§7.1.1)."""
        return self._opened and not self.ended

    @property
    def has_output(self) -> bool:
        """Whether an answer to the handshake, a Pong or a Close waits to be sent."""
        return bool(self._answer or self._pong or self._echo)

    def receive(self, data: bytes) -> bytes:
        """Give the payload of binary frames; raises TransportError for a refused handshake or a broken frame."""
        if self.ended:
            return b""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not self._opened:
            data = self._open(data)
        return self._payloads(data) if data else b""

    def send(self, data: bytes) -> bytes:
        """Give `data` as one binary frame, behind what the layer itself has to say."""
        said = self._answer + self._pong
        if data and self._opened and self._close_code:
            said += frame(BINARY, data)
        said += self._echo
        self._answer = self._pong = self._echo = b""
        return said

    def finish(self, data: bytes) -> bytes:
        """Give `data` as a frame and the Close frame, unless that was sent (§7.1.1)."""
        out = self.send(data)
        if self._opened and self._close_code:
            out += frame(CLOSE, self._close_code.to_bytes(2, "big"))
            self._close_code = 0
        return out

    # --- opening (§4.2) ------------------------------------------------------------------------------------------

    def _open(self, data: bytes) -> bytes:
        """Answer the request once it is whole; give what came behind it."""
        if not data[:1].isupper():
            mistake = (
                likely_mistake(data, WEBSOCKET) or "bytes that are no HTTP request, but this listener speaks WebSocket"
            )
            raise TransportError(f"heard {mistake}")
        end = data.find(b"\r\n\r\n", 0, self._head_bytes) + 4
        if end < 4:
            if len(data) < self._head_bytes:
                self._rest = data
                return b""
            self._refuse(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too large")
            raise TransportError(
                f"a WebSocket handshake of more than {self._head_bytes} bytes (websockets_headers_size)"
            )
        protocol = ServerProtocol(
            origins=cast(Sequence[Origin], self._origins) or None,
            subprotocols=cast(Sequence[Subprotocol], SUBPROTOCOLS),
            select_subprotocol=_choose_subprotocol,
            logger=_library_log,
        )
        protocol.receive_data(data[:end])
        for event in protocol.events_received():
            if isinstance(event, Request):
                protocol.send_response(protocol.accept(event))
        self._answer = b"".join(protocol.data_to_send())
        if protocol.handshake_exc is not None:
            if not self._answer:
                self._refuse(http.HTTPStatus.BAD_REQUEST, str(protocol.handshake_exc))
            cause = protocol.handshake_exc.__cause__ or protocol.handshake_exc
            raise TransportError(f"the WebSocket handshake was refused: {_printable(str(cause))}")
        self._opened = True
        return data[end:]

    def _refuse(self, status: http.HTTPStatus, text: str) -> None:
        body = f"Failed to open a WebSocket connection: {_printable(text)}.\n".encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nContent-Type: text/plain\r\n"
        self._answer = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body

    # --- frames (§5) ---------------------------------------------------------------------------------------------

    def _payloads(self, data: bytes) -> bytes:
        """Give what these bytes bring of the payloads of data frames."""
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            left = self._left
            if left == 0:
                begin = self._read_head(data, at)
                if begin == 0:
                    self._rest = data[at:]
                    break
                at = begin
                if self.ended:
                    break
                continue
            piece = data[at : at + left] if at or left < size else data
            at += len(piece)
            self._left = left = left - len(piece)
            pieces.append(apply_mask(piece, self._mask))
            if left:
                self._mask = turn_mask(self._mask, len(piece))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_head(self, data: bytes, at: int) -> int:
        """Read the head of a frame, and all of a control frame; give where the next bytes begin, 0 if some miss."""
        head = read_head(data, at)
        if head is None:
            return 0
        first, length, mask, begin = head
        opcode = first & OPCODE
        if first & RESERVED:
            raise self._broken("a frame with reserved bits, and no extension was agreed on")
        if not mask:
            raise self._broken("a frame that is not masked")
        if opcode >= CLOSE:
            if length > LONGEST_CONTROL or not first & FIN:
                raise self._broken("a control frame that is fragmented or longer than 125 bytes")
            if len(data) < begin + length:
                return 0
            self._control(opcode, apply_mask(data[begin : begin + length], mask))
            return begin + length
        if opcode == TEXT:
            raise self._broken("a text frame; MQTT needs binary frames", _UNSUPPORTED_DATA)  # [MQTT-6.0.0-1]
        if opcode > BINARY:
            raise self._broken(f"a frame with the unknown opcode {opcode}")
        if (opcode == CONTINUATION) != self._within:
            raise self._broken("a continuation without a message" if opcode == CONTINUATION else "two messages in one")
        if length >> 63:
            raise self._broken("a frame of more than 2^63 bytes")
        self._within = not first & FIN
        self._left = length
        self._mask = mask
        return begin

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            if self._close_code:
                self._pong = frame(PONG, payload)  # to the latest one only, which §5.5.3 allows: this stays small
        elif opcode == CLOSE:
            self._check_close(payload)
            if self._close_code:
                self._echo = frame(CLOSE, payload[:2])
                self._close_code = 0
            self.ended = True
        elif opcode != PONG:
            raise self._broken(f"a frame with the unknown opcode {opcode}")

    def _check_close(self, payload: bytes) -> None:
        if not payload:
            return
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or not (1000 <= code <= 1014 or 3000 <= code <= 4999) or code in (1004, 1005, 1006):
            raise self._broken("a Close frame with a code that is not allowed")
        try:
            payload[2:].decode("utf-8")
        except UnicodeDecodeError:
            raise self._broken("a Close frame whose reason is not UTF-8", _INVALID_DATA) from None

    def _broken(self, problem: str, code: int = _PROTOCOL_ERROR) -> TransportError:
        """Have the Close frame say the code, unless it was sent already, and listen no more (§7.1.7)."""
        self.ended = True
        if self._close_code:
            self._close_code = code
        return TransportError(f"WebSocket: {problem}")


def _choose_subprotocol(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    for name in SUBPROTOCOLS:
        if name in offered:
            return Subprotocol(name)
    told = f"only {', '.join(offered)}" if offered else "none"
    raise NegotiationError(f"the client must offer the subprotocol mqtt, and offers {told}")


def _printable(text: str) -> str:
    """What a peer had a part in, as a line of the log may show it."""
    text = text if len(text) <= 200 else text[:200] + "…"
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
