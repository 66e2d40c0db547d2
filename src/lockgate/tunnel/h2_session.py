"""One HTTP/2 connection of a tunnel (RFC 9113), with the edge as its client and the connector as its server.

A `Stream` is an asyncio transport: whoever writes to it is paused by `pause_writing`, and pausing it keeps the peer
from sending more, for credit is given back as bytes are handed on. A `Session` shares the connection among its streams:
each in turn sends at most one frame, and none has more than `stream_outstanding` bytes on the way, so that one receiver
who does not read cannot take the window that all share.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from lockgate.tunnel.http2 import Connection, ErrorCode, Headers, Http2Error, name_of

_QUANTUM: Final = 16 * 1024  # bytes of a stream in its turn
_FLUSH_AT: Final = 64 * 1024  # bytes given to the transport at a time
_MAX_OUTPUT: Final = 4 * 1024 * 1024  # bytes waiting in the transport of a peer that does not read
_CREDIT_BYTES: Final = 512  # a peer that gives credit for less at a time is counted


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one connection may take."""

    streams: int = 10_000  # that the peer may have open
    header_bytes: int = 256 * 1024  # of one header list
    window: int = 128 * 1024  # of a stream, to us
    connection_window: int = 16 * 1024 * 1024  # of all streams, to us
    stream_outstanding: int = 128 * 1024  # bytes of a stream on their way to a peer whose windows are larger
    stream_buffer: int = 64 * 1024  # bytes a stream keeps before its writer is paused
    # PING, SETTINGS, RST_STREAM, empty DATA and WINDOW_UPDATE for nothing of the peer per second, beyond a burst
    control_frames: int = 200
    control_burst: int = 20_000
    linger: float = 60.0  # seconds for the peer to end a stream that we have closed
    ping_interval: float = 4.0  # seconds
    ping_deadline: float = 10.0  # seconds without a byte after which the peer is taken for dead


class StreamClosed(ConnectionError):
    """The stream ended before its end: reset by the peer, or with its session."""


class HeadersTooLarge(ConnectionError):
    """A header list that the peer does not take: to say it would end the connection."""


class SessionBusy(ConnectionError):
    """The peer takes no more streams, or the session is at its end."""


def header_list_bytes(headers: Headers) -> int:
    """How large a header list is to its receiver (RFC 9113 §6.5.2)."""
    return sum(len(name) + len(value) + 32 for name, value in headers)


class StreamProtocol(asyncio.Protocol):
    """What sits on a stream: asyncio's Protocol, and what HTTP has beside bytes."""

    def headers_received(self, headers: Headers) -> None:
        """The header fields of a response, or trailers."""


class Stream(asyncio.Transport):
    """One stream of a session."""

    def __init__(self, session: Session, stream_id: int) -> None:
        super().__init__()
        self.id = stream_id
        self._session = session
        self._protocol: StreamProtocol | None = None
        self._outbox: list[bytes] = []
        self._sent_chunks = 0  # of the outbox
        self._sent_bytes = 0  # of its first chunk that was not sent whole
        self._outbox_bytes = 0
        self._inbox: list[tuple[bytes, int]] = []
        self._reading_paused = False
        self._writing_paused = False
        self._trailers: Headers | None = None
        self._ends = False  # write_eof was called
        self._said_end = False
        self._heard_end = False
        self._told_end = False
        self._closed = False
        self._cause: Exception | None = None  # of its end
        self.answered = False  # header fields were said
        self.queued = False  # in its session's round

    # --- what asyncio asks of a transport ------------------------------------------------------------------------

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast("asyncio.BaseProtocol", self._protocol)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the stream to a StreamProtocol; it is not told connection_made, but of an end that has come already."""
        if self._closed:
            asyncio.get_running_loop().call_soon(cast("StreamProtocol", protocol).connection_lost, self._cause)
            return
        self._protocol = cast("StreamProtocol", protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._session.transport.get_extra_info(name, default)

    @property
    def has_ended(self) -> bool:
        """Whether the peer has said everything, and all of it was handed on."""
        return self._heard_end and not self._inbox

    @property
    def session_is_lost(self) -> bool:
        """Whether the connection it was on has ended, or is ending."""
        return self._session.is_closing

    def is_closing(self) -> bool:
        return self._closed or self._ends

    def is_reading(self) -> bool:
        return not self._reading_paused

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        if self._reading_paused and not self._closed:
            self._reading_paused = False
            asyncio.get_running_loop().call_soon(self._deliver)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed or self._ends or not data:
            return
        self._outbox.append(bytes(data))
        self._outbox_bytes += len(data)
        self._session.enqueue(self)
        if self._outbox_bytes > self._session.limits.stream_buffer and not self._writing_paused:
            self._writing_paused = True
            if self._protocol is not None:
                self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self, trailers: Headers | None = None) -> None:
        """Say END_STREAM behind what was written, with trailers if there are any."""
        if not self._ends and not self._closed:
            self._ends = True
            self._trailers = trailers
            self._session.enqueue(self)

    def close(self) -> None:
        """Say the end behind what was written; what the peer still sends is not read."""
        self.write_eof()
        if self._heard_end or self._closed:
            return
        self._session.forgo(self)

    def abort(self, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """Reset the stream."""
        if not self._closed:
            self._session.reset(self, code)
            self._lose(None)

    def get_write_buffer_size(self) -> int:
        return self._outbox_bytes

    def give_up_session(self, reason: str) -> None:
        """End the connection this stream is on."""
        self._session.close(reason)

    # --- HTTP ----------------------------------------------------------------------------------------------------

    def send_headers(self, headers: Headers, *, end_stream: bool = False) -> None:
        """Say the header fields of a response; HeadersTooLarge."""
        if not self._closed:
            self._session.check_size(headers)
            self.answered = True
            self._ends = self._said_end = end_stream
            self._session.send_headers(self, headers, end_stream=end_stream)
            if end_stream:
                self._finish_if_done()

    # --- what the session says -----------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        return not self._closed and (bool(self._outbox) or (self._ends and not self._said_end))

    def take(self, limit: int) -> tuple[bytes, bool]:
        """Up to `limit` bytes to send, and whether they are the last; trailers come after the last."""
        chunks: list[bytes] = []
        left = limit
        while left and self._sent_chunks < len(self._outbox):
            chunk = self._outbox[self._sent_chunks]
            begin = self._sent_bytes
            if len(chunk) - begin > left:
                self._sent_bytes += left
                chunk = chunk[begin : begin + left]
            else:
                self._sent_bytes = 0
                self._sent_chunks += 1
                chunk = chunk[begin:]
            chunks.append(chunk)
            left -= len(chunk)
        if self._sent_chunks == len(self._outbox):
            self._outbox.clear()
            self._sent_chunks = 0
        self._outbox_bytes -= limit - left
        if self._writing_paused and self._outbox_bytes <= self._session.limits.stream_buffer // 4:
            self._writing_paused = False
            asyncio.get_running_loop().call_soon(self._resume_writing)
        ends = self._ends and not self._outbox
        return chunks[0] if len(chunks) == 1 else b"".join(chunks), ends

    def take_trailers(self) -> Headers | None:
        """What is said with the end of the stream; the end counts as said."""
        self._said_end = True
        return self._trailers

    def receive(self, data: bytes, credit: int) -> None:
        if self._reading_paused or self._inbox or self._protocol is None:
            self._inbox.append((data, credit))
            return
        self._session.give_credit(self, credit)
        if data:
            self._protocol.data_received(data)

    def receive_headers(self, headers: Headers) -> None:
        if self._protocol is not None:
            self._protocol.headers_received(headers)

    def receive_end(self) -> None:
        self._heard_end = True
        self._deliver()

    def lose(self, cause: Exception) -> None:
        """It was reset, or its session ended."""
        if not self._closed:
            self._lose(cause)

    def finish_if_done(self) -> None:
        self._finish_if_done()

    def _deliver(self) -> None:
        while self._inbox and not self._reading_paused and not self._closed and self._protocol is not None:
            data, credit = self._inbox.pop(0)
            self._session.give_credit(self, credit)
            if data:
                self._protocol.data_received(data)
        if self._heard_end and not (self._inbox or self._reading_paused or self._told_end or self._closed):
            self._told_end = True
            if self._protocol is not None and not self._protocol.eof_received():
                self.write_eof()
            self._finish_if_done()

    def _resume_writing(self) -> None:
        if not self._closed and not self._writing_paused and self._protocol is not None:
            self._protocol.resume_writing()

    def _finish_if_done(self) -> None:
        if self._said_end and self._told_end and not self._closed:
            self._lose(None)

    def _lose(self, cause: Exception | None) -> None:
        self._closed = True
        self._cause = cause
        for _, credit in self._inbox:
            self._session.give_credit(self, credit)
        self._inbox.clear()
        self._outbox.clear()
        self._outbox_bytes = 0
        self._session.forget(self)
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            asyncio.get_running_loop().call_soon(protocol.connection_lost, cause)


class Session(asyncio.Protocol):
    """One connection. `client`: we open the streams (the edge); otherwise we answer them (the connector)."""

    def __init__(
        self,
        *,
        client: bool,
        limits: SessionLimits,
        opened: Callable[[Stream, Headers], None] | None = None,
        made: Callable[[Session], None],
        lost: Callable[[Session, str], None],
    ) -> None:
        """`opened`: the peer opened a stream; it gives it a protocol.

        `made`, `lost`: the connection is up, has ended and why.
        """
        self._http2 = Connection(
            self,
            client=client,
            streams=limits.streams,
            header_bytes=limits.header_bytes,
            window=limits.window,
            connection_window=limits.connection_window,
        )
        self.limits = limits
        self._opened = opened
        self._made = made
        self._lost = lost
        self.transport: asyncio.Transport
        self._loop: asyncio.AbstractEventLoop
        self._streams: dict[int, Stream] = {}
        self._round: deque[Stream] = deque()  # streams that may send
        self._blocked: set[int] = set()  # streams whose own window is used up
        self._paused = False
        self._flush_planned = False
        self._reason: str | None = None  # why it ends
        self._heard = 0.0  # when the last bytes came
        self._timer: asyncio.TimerHandle | None = None
        self._control_left = float(limits.control_burst)
        self._control_at = 0.0
        self._credits_due = 0  # frames of WINDOW_UPDATE that what we sent explains
        self._ping_sent = 0.0
        self.round_trip: float | None = None  # seconds, of the last PING
        self.bytes_in = 0
        self.bytes_out = 0

    # --- for those who use it ------------------------------------------------------------------------------------

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    @property
    def is_closing(self) -> bool:
        return self._reason is not None

    def open(self, headers: Headers, protocol: StreamProtocol, *, end_stream: bool = False) -> Stream:
        """Open a stream by a request; SessionBusy where the peer takes no more, HeadersTooLarge."""
        if self._reason is not None:
            raise SessionBusy(self._reason)
        self.check_size(headers)
        if not self._http2.can_open:
            raise SessionBusy(f"the peer takes no more streams ({len(self._streams)} are open)")
        stream_id = self._http2.open(headers, end_stream=end_stream)
        stream = self._streams[stream_id] = Stream(self, stream_id)
        stream.set_protocol(protocol)
        stream._ends = stream._said_end = end_stream
        protocol.connection_made(stream)
        self._plan_flush()
        return stream

    def check_size(self, headers: Headers) -> None:
        """Raise HeadersTooLarge where the peer has said that it does not take as much."""
        limit, size = self._http2.peer_header_bytes, header_list_bytes(headers)
        if limit is not None and size > limit:
            raise HeadersTooLarge(f"header fields of {size} bytes, the peer takes {limit}")

    def close(self, reason: str) -> None:
        """End the connection, and with it every stream, when what was written is out."""
        if self._reason is None:
            self._flush()
        self._end(reason)

    def abort(self, reason: str) -> None:
        """End the connection at once."""
        self._reason = self._reason or reason
        self._http2.ended = True
        self.transport.abort()

    # --- what asyncio says ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._heard = self._control_at = self._loop.time()
        self._http2.begin()
        self._timer = self._loop.call_later(self.limits.ping_interval, self._look)
        self._made(self)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.bytes_in += len(data)
        if self._reason is not None:
            return  # and it does not live on by talking
        self._heard = self._loop.time()
        try:
            self._http2.receive(data)
        except Http2Error as error:
            self._http2.goodbye(error.code)
            self._end(f"the peer broke HTTP/2: {error}")
        if self._reason is not None:
            return
        self._credits_due -= self._http2.window_updates
        self._http2.window_updates = 0
        if self._credits_due < 0:
            self._count_control(-self._credits_due)
            self._credits_due = 0
        self._flush()

    def eof_received(self) -> bool:
        self._end("the peer closed the connection")
        return False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._reason = self._reason or (f"the connection broke ({exc})" if exc else "the peer closed the connection")
        for stream in list(self._streams.values()):
            stream.lose(StreamClosed(self._reason))
        self._round.clear()
        self._lost(self, self._reason)

    # --- for its streams -----------------------------------------------------------------------------------------

    def enqueue(self, stream: Stream) -> None:
        """The stream has something to send."""
        if not stream.queued and stream.id not in self._blocked:
            stream.queued = True
            self._round.append(stream)
            self._plan_flush()

    def send_headers(self, stream: Stream, headers: Headers, *, end_stream: bool) -> None:
        if self._reason is not None:
            return
        if stream.id not in self._http2.flows:  # it was reset, which is told in a moment
            self._loop.call_soon(stream.lose, StreamClosed("the stream was closed"))
            return
        self._http2.send_headers(stream.id, headers, end_stream=end_stream)
        self._plan_flush()

    def give_credit(self, stream: Stream, size: int) -> None:
        """So many bytes of the stream were handed on."""
        if size and self._reason is None:
            self._http2.credit(stream.id, size)
            self._plan_flush()

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        if self._reason is None:
            self._http2.reset(stream.id, code)
            self._plan_flush()

    def forgo(self, stream: Stream) -> None:
        """Nobody reads the stream any more: when the last is said, it is reset (RFC 9113 §8.1)."""
        stream.set_protocol(_Forgone(stream))
        stream.resume_reading()
        self._loop.call_later(self.limits.linger, stream.abort)

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)
        self._blocked.discard(stream.id)

    # --- sending -------------------------------------------------------------------------------------------------

    def _plan_flush(self) -> None:
        if not self._flush_planned and self._reason is None:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Let the streams send in turn, as far as windows and the transport allow."""
        self._flush_planned = False
        if self._reason is not None:
            return
        written = 0
        while self._round and not self._paused:
            room = self._http2.window
            stream = self._round[0]
            if room <= 0 and stream._outbox:
                break
            self._round.popleft()
            stream.queued = False
            if not stream.has_output:
                continue
            if stream._outbox:
                window = min(self._window(stream), room, _QUANTUM, self._http2.max_frame)
                if window <= 0:
                    self._blocked.add(stream.id)
                    continue
            else:
                window = 0
            written += self._send(stream, window)
            if written >= _FLUSH_AT:
                self._write()
                written = 0
            if stream.has_output:
                stream.queued = True
                self._round.append(stream)
        self._write()

    def _send(self, stream: Stream, window: int) -> int:
        data, ends = stream.take(window)
        self._credits_due += 2 + len(data) // _CREDIT_BYTES
        http2 = self._http2
        if stream.id not in http2.flows:  # it was reset, which is told in a moment
            self._loop.call_soon(stream.lose, StreamClosed("the stream was closed"))
            return 0
        if not ends:
            http2.send_data(stream.id, data, end_stream=False)
            return len(data)
        trailers = stream.take_trailers()
        if data or trailers is None:
            http2.send_data(stream.id, data, end_stream=trailers is None)
        if trailers is not None:
            try:
                self.check_size(trailers)
            except HeadersTooLarge as error:
                self.reset(stream, ErrorCode.INTERNAL_ERROR)
                stream.lose(StreamClosed(str(error)))
                return 0
            http2.send_headers(stream.id, trailers, end_stream=True)
        stream.finish_if_done()
        return len(data)

    def _window(self, stream: Stream) -> int:
        """Bytes the stream may send now: of its own window, with no more than the cap on the way.

        A window of up to twice the cap is its own cap: its receiver may give credit back by halves, as ours does.
        """
        flow = self._http2.flows.get(stream.id)
        if flow is None:
            return 0
        whole, cap = self._http2.peer_window, self.limits.stream_outstanding
        return flow.window if whole <= 2 * cap else min(flow.window, cap - (whole - flow.window))

    def _write(self) -> None:
        if self._http2.output:
            data = self._http2.take_output()
            self.bytes_out += len(data)
            self.transport.write(data)
            if self.transport.get_write_buffer_size() > _MAX_OUTPUT:
                self.abort("the peer reads nothing")

    # --- what the peer says --------------------------------------------------------------------------------------

    def on_request(self, stream_id: int, headers: Headers) -> None:
        stream = self._streams[stream_id] = Stream(self, stream_id)
        if self._opened is None:
            stream.abort(ErrorCode.REFUSED_STREAM)
            return
        self._opened(stream, headers)

    def on_headers(self, stream_id: int, headers: Headers) -> None:
        if stream := self._streams.get(stream_id):
            stream.receive_headers(headers)

    def on_data(self, stream_id: int, data: bytes, credit: int) -> None:
        if not credit:
            self._count_control()
        if stream := self._streams.get(stream_id):
            stream.receive(data, credit)
        else:
            self._http2.credit(stream_id, credit)

    def on_end(self, stream_id: int) -> None:
        if stream := self._streams.get(stream_id):
            stream.receive_end()

    def on_reset(self, stream_id: int, code: int) -> None:
        if stream := self._streams.get(stream_id):
            stream.lose(StreamClosed(f"the stream was reset ({name_of(code)})"))

    def on_window(self, stream_id: int) -> None:
        if stream_id in self._blocked:
            self._blocked.discard(stream_id)
            stream = self._streams[stream_id]
            if stream.has_output:
                self.enqueue(stream)

    def on_settings(self, *, window_changed: bool) -> None:
        self._count_control()
        if window_changed:
            blocked, self._blocked = self._blocked, set()
            for stream_id in blocked:
                self.enqueue(self._streams[stream_id])

    def on_control(self) -> None:
        self._count_control()

    def on_pong(self) -> None:
        if self._ping_sent:
            self.round_trip = self._loop.time() - self._ping_sent
            self._ping_sent = 0.0

    def on_goodbye(self, code: int) -> None:
        self._end(f"the peer said goodbye ({name_of(code)})")

    def _count_control(self, count: int = 1) -> None:
        """Frames that cost the peer nothing and us something are bounded (CVE-2023-44487 and its like)."""
        now = self._loop.time()
        limits = self.limits
        earned = (now - self._control_at) * limits.control_frames
        self._control_left = min(self._control_left + earned, limits.control_burst) - count
        self._control_at = now
        if self._control_left < 0:
            self._http2.goodbye(ErrorCode.ENHANCE_YOUR_CALM)
            self._end("the peer floods us with frames that carry nothing")

    # --- the end -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Ask for a sign of life, or give the peer up."""
        now = self._loop.time()
        if now - self._heard > self.limits.ping_deadline:
            self.abort(f"the peer has said nothing for {now - self._heard:.0f} s")
            return
        if self._reason is None:
            self._ping_sent = now
            self._http2.ping()
            self._write()
        self._timer = self._loop.call_later(self.limits.ping_interval, self._look)

    def _end(self, reason: str) -> None:
        if self._reason is not None:
            return
        self._write()  # a GOAWAY that says what was wrong, and what streams had said
        self._reason = reason
        self._http2.ended = True
        self.transport.close()


class _Forgone(StreamProtocol):
    """Reads what nobody wants until we have said the end, and resets a peer that goes on."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def data_received(self, _: bytes) -> None:
        if self._stream._said_end:
            self._stream.abort(ErrorCode.NO_ERROR)

    def eof_received(self) -> bool:
        return True
