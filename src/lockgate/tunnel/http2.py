"""HTTP/2 as bytes ⇄ what they mean: frames, header blocks, windows and the states of streams (RFC 9113).

No socket and no clock. A `Connection` hears bytes by `receive` and tells its `Listener` what they say, as they say it;
what it wants to say itself lies in `output`. A mistake of the peer that ends the connection is an `Http2Error`; one
that concerns a stream alone resets that stream. Header fields are given as they came: who uses them looks at them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final, Protocol

import hpack

Headers = list[tuple[bytes, bytes]]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME: Final = 16_384  # bytes of a frame to us, the least a peer must be allowed (§4.2)
_HIGHEST: Final = 0x7FFF_FFFF  # of stream identifiers and windows
_FIRST_WINDOW: Final = 65_535  # of a connection, and of streams before SETTINGS say otherwise (§6.9.2)
_CONTINUATIONS: Final = 64  # frames of one header block behind its first
_HEAD_BYTES: Final = 9

_DATA: Final = 0  # types of frames (§6)
_HEADERS: Final = 1
_RST_STREAM: Final = 3
_SETTINGS: Final = 4
_PING: Final = 6
_GOAWAY: Final = 7
_WINDOW_UPDATE: Final = 8
_CONTINUATION: Final = 9
_END_STREAM: Final = 0x1
_ACK: Final = 0x1
_END_HEADERS: Final = 0x4
_PADDED: Final = 0x8
_WITH_PRIORITY: Final = 0x20
_HEADER_TABLE_SIZE: Final = 1  # settings (§6.5.2)
_ENABLE_PUSH: Final = 2
_MAX_CONCURRENT_STREAMS: Final = 3
_INITIAL_WINDOW_SIZE: Final = 4
_MAX_FRAME_SIZE: Final = 5
_MAX_HEADER_LIST_SIZE: Final = 6
_SETTING: Final = struct.Struct(">HI")
_HEAD: Final = struct.Struct(">BHBBI")
_LONG: Final = struct.Struct(">I")


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (§7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


def name_of(code: int) -> str:
    """An error code's name, its number where it has none."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return str(code)


class Http2Error(Exception):
    """The peer broke the rules of the connection."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Listener(Protocol):
    """Who is told what the peer says. It may speak at once, and end the connection."""

    def on_request(self, stream_id: int, headers: Headers) -> None:
        """The peer opened a stream."""

    def on_headers(self, stream_id: int, headers: Headers) -> None:
        """Header fields of a response, or trailers."""

    def on_data(self, stream_id: int, data: bytes, credit: int) -> None:
        """Bytes of a body; `credit` of them, padding too, are to be given back by `Connection.credit`."""

    def on_end(self, stream_id: int) -> None:
        """The peer has said everything on a stream."""

    def on_reset(self, stream_id: int, code: int) -> None:
        """The peer reset a stream, or we did for a mistake of the peer's."""

    def on_window(self, stream_id: int) -> None:
        """More may be sent on a stream, with 0 on the connection."""

    def on_settings(self, *, window_changed: bool) -> None:
        """The peer changed its settings; with `window_changed` how much may be sent on all streams."""

    def on_control(self) -> None:
        """A frame that costs the peer nothing."""

    def on_pong(self) -> None:
        """The answer to a PING of ours."""

    def on_goodbye(self, code: int) -> None:
        """GOAWAY."""


class Flow:
    """One stream's windows, and which of its sides have ended."""

    __slots__ = ("answered", "local_ended", "remote_ended", "uncredited", "window", "window_in")

    def __init__(self, window: int, window_in: int) -> None:
        self.window = window  # bytes that may be sent
        self.window_in = window_in  # bytes that the peer may send
        self.uncredited = 0  # bytes that were handed on, and that the peer has no credit for yet
        self.local_ended = False
        self.remote_ended = False
        self.answered = False  # its first header fields have come


class Connection:
    """One side of a connection. `window` and `connection_window` are what the peer may send, in bytes."""

    def __init__(
        self,
        listener: Listener,
        *,
        client: bool,
        streams: int,
        header_bytes: int,
        window: int,
        connection_window: int,
    ) -> None:
        self.output: list[bytes] = []
        self.ended = False  # nothing more is heard
        self.flows: dict[int, Flow] = {}  # of streams that are not closed
        self.window = _FIRST_WINDOW  # bytes that may be sent, on all streams together
        self.max_frame = MAX_FRAME  # bytes of a frame to the peer
        self.peer_window = _FIRST_WINDOW  # that the peer gives a new stream
        self.peer_streams = _HIGHEST  # that we may open
        self.peer_header_bytes: int | None = None  # of a header list, where the peer has said it
        self.window_updates = 0  # frames of the peer's, for who counts them
        self._listener = listener
        self._client = client
        self._streams = streams
        self._header_bytes = header_bytes
        self._own_window = window
        self._granted = _FIRST_WINDOW  # that the peer takes for a new stream's, until it has heard of our settings
        self._whole_window = connection_window
        self._window_in = connection_window
        self._uncredited = 0
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder(header_bytes)
        self._next_id = 1
        self._highest_heard = 0
        self._reset: dict[int, None] = {}  # streams that we reset and the peer may not have heard of, oldest first
        self._preface = b"" if client else PREFACE  # what is still to come of it
        self._has_settings = False
        self._block: tuple[int, int, list[bytes]] | None = None  # header block that is not whole: stream, flags, parts
        self._rest = b""  # the beginning of a frame
        self._handlers: tuple[Callable[[int, int, bytes], None], ...] = (
            self._receive_data,
            self._receive_headers,
            self._receive_priority,
            self._receive_reset,
            self._receive_settings,
            self._receive_promise,
            self._receive_ping,
            self._receive_goaway,
            self._receive_window_update,
            self._receive_continuation,
        )

    # --- to the peer ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Say what comes first (§3.4)."""
        if self._client:
            self.output.append(PREFACE)
        settings = {
            _MAX_CONCURRENT_STREAMS: self._streams,
            _INITIAL_WINDOW_SIZE: self._own_window,
            _MAX_HEADER_LIST_SIZE: self._header_bytes,
        }
        if self._client:
            settings[_ENABLE_PUSH] = 0
        self._say(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*one) for one in settings.items()))
        if self._whole_window > _FIRST_WINDOW:
            self._say(_WINDOW_UPDATE, 0, 0, _LONG.pack(self._whole_window - _FIRST_WINDOW))

    def take_output(self) -> bytes:
        """Everything that is to be sent now."""
        data = b"".join(self.output)
        self.output.clear()
        return data

    @property
    def can_open(self) -> bool:
        """Whether the peer takes one more stream."""
        return len(self.flows) < self.peer_streams and self._next_id <= _HIGHEST

    def open(self, headers: Headers, *, end_stream: bool) -> int:
        """Open a stream by a request; gives its identifier. For a client, while `can_open`."""
        stream_id = self._next_id
        self._next_id += 2
        self.flows[stream_id] = Flow(self.peer_window, self._granted)
        self.send_headers(stream_id, headers, end_stream=end_stream)
        return stream_id

    def send_headers(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        """Say header fields of a stream that is open."""
        block = self._encoder.encode(headers)
        flags = _END_STREAM if end_stream else 0
        kind = _HEADERS
        at = self.max_frame
        while at < len(block):
            self._say(kind, flags, stream_id, block[at - self.max_frame : at])
            kind, flags = _CONTINUATION, 0
            at += self.max_frame
        self._say(kind, flags | _END_HEADERS, stream_id, block[at - self.max_frame :])
        if end_stream:
            self._end_locally(stream_id)

    def send_data(self, stream_id: int, data: bytes, *, end_stream: bool) -> None:
        """Say bytes of a stream that is open, no more than its windows and `max_frame` allow."""
        size = len(data)
        self.output.append(_HEAD.pack(size >> 16, size & 0xFFFF, _DATA, _END_STREAM if end_stream else 0, stream_id))
        self.output.append(data)
        self.window -= size
        self.flows[stream_id].window -= size
        if end_stream:
            self._end_locally(stream_id)

    def reset(self, stream_id: int, code: int) -> None:
        """Reset a stream, unless it is closed."""
        if self.flows.pop(stream_id, None) is not None:
            self._say_reset(stream_id, code)

    def credit(self, stream_id: int, size: int) -> None:
        """Let the peer send so many bytes more: they were handed on. It is told of half a window at a time."""
        self._uncredited += size
        if self._uncredited >= self._whole_window // 2:
            self._window_in += self._uncredited
            self._say(_WINDOW_UPDATE, 0, 0, _LONG.pack(self._uncredited))
            self._uncredited = 0
        flow = self.flows.get(stream_id)
        if flow is not None and not flow.remote_ended:
            flow.uncredited += size
            if flow.uncredited >= self._own_window // 2:
                flow.window_in += flow.uncredited
                self._say(_WINDOW_UPDATE, 0, stream_id, _LONG.pack(flow.uncredited))
                flow.uncredited = 0

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._say(_PING, 0, 0, b"lockgate")

    def goodbye(self, code: ErrorCode) -> None:
        """Say why the connection ends; nothing more is heard."""
        self.ended = True
        self._say(_GOAWAY, 0, 0, _LONG.pack(self._highest_heard) + _LONG.pack(code))

    def _say(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self.output.append(_HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + payload)

    def _say_reset(self, stream_id: int, code: int) -> None:
        self._say(_RST_STREAM, 0, stream_id, _LONG.pack(code))
        self._reset[stream_id] = None
        if len(self._reset) > self._streams:
            del self._reset[next(iter(self._reset))]

    def _end_locally(self, stream_id: int) -> None:
        flow = self.flows[stream_id]
        flow.local_ended = True
        if flow.remote_ended:
            del self.flows[stream_id]

    # --- from the peer -------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Hear bytes. Raises Http2Error; then, and once `ended` is set, nothing more is to be given."""
        if self._preface:
            data = self._without_preface(data)
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        while size - at >= _HEAD_BYTES and not self.ended:
            high, low, kind, flags, stream_id = _HEAD.unpack_from(data, at)
            length = high << 16 | low
            if length > MAX_FRAME:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            begin = at + _HEAD_BYTES
            if begin + length > size:
                break
            at = begin + length
            if kind != _CONTINUATION and self._block is not None:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
            if not self._has_settings and kind != _SETTINGS:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "its first frame is not SETTINGS")
            if kind < len(self._handlers):
                self._handlers[kind](flags, stream_id & _HIGHEST, data[begin:at])
            else:
                self._listener.on_control()
        self._rest = data[at:]

    def _without_preface(self, data: bytes) -> bytes:
        size = min(len(self._preface), len(data))
        if data[:size] != self._preface[:size]:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "its first bytes are not HTTP/2's")
        self._preface = self._preface[size:]
        return data[size:]

    def _flow(self, stream_id: int, what: str) -> Flow | None:
        """The stream of a frame, None for one that is closed. Raises Http2Error for one that never was."""
        flow = self.flows.get(stream_id)
        if flow is None and (stream_id == 0 or not self._was_open(stream_id)):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which was never open")
        return flow

    def _was_open(self, stream_id: int) -> bool:
        return stream_id % 2 == 1 and stream_id < (self._next_id if self._client else self._highest_heard + 1)

    def _receive_data(self, flags: int, stream_id: int, data: bytes) -> None:
        size = len(data)
        self._window_in -= size
        if self._window_in < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more bytes than the connection's window")
        flow = self._flow(stream_id, "DATA")
        if flow is None or flow.remote_ended:
            if flow is not None or stream_id not in self._reset:
                raise Http2Error(ErrorCode.STREAM_CLOSED, f"DATA on stream {stream_id}, which has ended")
            self._listener.on_control()
            self.credit(stream_id, size)
            return
        flow.window_in -= size
        if flow.window_in < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, f"more bytes than the window of stream {stream_id}")
        if flags & _PADDED:
            data = _without_padding(data)
        if not flow.answered:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"DATA on stream {stream_id} before its header fields")
        ends = flags & _END_STREAM
        if ends:
            self._end_remotely(stream_id, flow)
        if size or not ends:
            self._listener.on_data(stream_id, data, size)
        if ends and not self.ended:
            self._listener.on_end(stream_id)

    def _receive_headers(self, flags: int, stream_id: int, data: bytes) -> None:
        if stream_id == 0:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & _PADDED:
            data = _without_padding(data)
        if flags & _WITH_PRIORITY:
            if len(data) < 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "HEADERS that are cut off")
            data = data[5:]
        if flags & _END_HEADERS:
            self._receive_block(flags, stream_id, data)
        else:
            self._block = (stream_id, flags, [data])

    def _receive_continuation(self, flags: int, stream_id: int, data: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        _, first_flags, parts = self._block
        parts.append(data)
        if len(parts) > _CONTINUATIONS or sum(map(len, parts)) > self._header_bytes:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")
        if flags & _END_HEADERS:
            self._block = None
            self._receive_block(first_flags, stream_id, b"".join(parts))

    def _receive_block(self, flags: int, stream_id: int, block: bytes) -> None:
        try:
            headers: Headers = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except (hpack.HPACKError, IndexError, ValueError) as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, f"header fields: {error or type(error).__name__}") from None
        ends = bool(flags & _END_STREAM)
        flow = self.flows.get(stream_id)
        if flow is None:
            self._receive_first(stream_id, headers, ends=ends)
            return
        if flow.remote_ended:
            raise Http2Error(ErrorCode.STREAM_CLOSED, f"HEADERS on stream {stream_id}, which has ended")
        if self._client and not flow.answered:
            if _is_informational(headers):
                if ends:
                    self._fail(stream_id, ErrorCode.PROTOCOL_ERROR)
                return
            flow.answered = True
        elif not ends:
            self._fail(stream_id, ErrorCode.PROTOCOL_ERROR)  # trailers end the stream (§8.1)
            return
        if ends:
            self._end_remotely(stream_id, flow)
        self._listener.on_headers(stream_id, headers)
        if ends and not self.ended:
            self._listener.on_end(stream_id)

    def _receive_first(self, stream_id: int, headers: Headers, *, ends: bool) -> None:
        """Header fields of a stream that is not there."""
        if stream_id in self._reset:
            self._listener.on_control()
            return
        if self._client or stream_id % 2 == 0:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        if stream_id <= self._highest_heard:
            raise Http2Error(ErrorCode.STREAM_CLOSED, f"HEADERS on stream {stream_id}, which has ended")
        self._highest_heard = stream_id
        if len(self.flows) >= self._streams:
            self._listener.on_control()
            self._say_reset(stream_id, ErrorCode.REFUSED_STREAM)
            return
        flow = self.flows[stream_id] = Flow(self.peer_window, self._granted)
        flow.answered = True
        flow.remote_ended = ends
        self._listener.on_request(stream_id, headers)
        if ends and not self.ended:
            self._listener.on_end(stream_id)

    def _receive_priority(self, _: int, stream_id: int, data: bytes) -> None:
        if stream_id == 0:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(data) != 5:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(data)} bytes")
        self._listener.on_control()

    def _receive_reset(self, _: int, stream_id: int, data: bytes) -> None:
        if len(data) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"RST_STREAM of {len(data)} bytes")
        flow = self._flow(stream_id, "RST_STREAM")
        self._listener.on_control()
        if flow is not None:
            del self.flows[stream_id]
            self._listener.on_reset(stream_id, _LONG.unpack(data)[0])

    def _receive_settings(self, flags: int, stream_id: int, data: bytes) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        if len(data) % 6 or (flags & _ACK and data):
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(data)} bytes")
        if flags & _ACK:
            self._grant()
            return
        self._has_settings = True
        window = self.peer_window
        for key, value in _SETTING.iter_unpack(data):
            self._set(key, value)
        self._say(_SETTINGS, _ACK, 0, b"")
        changed = self.peer_window - window
        for flow in self.flows.values() if changed else ():
            flow.window += changed
            if flow.window > _HIGHEST:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window that is too large")
        self._listener.on_settings(window_changed=changed != 0)

    def _set(self, key: int, value: int) -> None:
        if key == _HEADER_TABLE_SIZE:
            self._encoder.header_table_size = min(value, 4096)
        elif key == _ENABLE_PUSH and (value > 1 or (value == 1 and self._client)):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH {value}")
        elif key == _MAX_CONCURRENT_STREAMS:
            self.peer_streams = value
        elif key == _INITIAL_WINDOW_SIZE:
            if value > _HIGHEST:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE {value}")
            self.peer_window = value
        elif key == _MAX_FRAME_SIZE:
            if not MAX_FRAME <= value < 1 << 24:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE {value}")
            self.max_frame = value
        elif key == _MAX_HEADER_LIST_SIZE:
            self.peer_header_bytes = value

    def _grant(self) -> None:
        """The peer has heard of our settings: streams that it began before have our window now too (§6.9.2)."""
        change, self._granted = self._own_window - self._granted, self._own_window
        for flow in self.flows.values() if change else ():
            flow.window_in += change

    def _receive_promise(self, _: int, stream_id: int, __: bytes) -> None:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"PUSH_PROMISE on stream {stream_id}")

    def _receive_ping(self, flags: int, stream_id: int, data: bytes) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"PING on stream {stream_id}")
        if len(data) != 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"PING of {len(data)} bytes")
        if flags & _ACK:
            self._listener.on_pong()
        else:
            self._say(_PING, _ACK, 0, data)
            self._listener.on_control()

    def _receive_goaway(self, _: int, stream_id: int, data: bytes) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"GOAWAY on stream {stream_id}")
        if len(data) < 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(data)} bytes")
        self._listener.on_goodbye(_LONG.unpack_from(data, 4)[0])

    def _receive_window_update(self, _: int, stream_id: int, data: bytes) -> None:
        self.window_updates += 1
        if len(data) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"WINDOW_UPDATE of {len(data)} bytes")
        size = _LONG.unpack(data)[0] & _HIGHEST
        if stream_id == 0:
            self.window += size
            if size == 0 or self.window > _HIGHEST:
                code = ErrorCode.FLOW_CONTROL_ERROR if size else ErrorCode.PROTOCOL_ERROR
                raise Http2Error(code, f"WINDOW_UPDATE of {size} bytes")
        else:
            flow = self._flow(stream_id, "WINDOW_UPDATE")
            if flow is None:
                return
            flow.window += size
            if size == 0 or flow.window > _HIGHEST:
                self._fail(stream_id, ErrorCode.FLOW_CONTROL_ERROR if size else ErrorCode.PROTOCOL_ERROR)
                return
        self._listener.on_window(stream_id)

    def _end_remotely(self, stream_id: int, flow: Flow) -> None:
        flow.remote_ended = True
        if flow.local_ended:
            del self.flows[stream_id]

    def _fail(self, stream_id: int, code: ErrorCode) -> None:
        """Reset a stream for a mistake of the peer's."""
        self.reset(stream_id, code)
        self._listener.on_reset(stream_id, code)


def _without_padding(data: bytes) -> bytes:
    if not data or data[0] >= len(data):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return data[1 : len(data) - data[0]]


def _is_informational(headers: Headers) -> bool:
    return any(name == b":status" and value.startswith(b"1") and len(value) == 3 for name, value in headers)
