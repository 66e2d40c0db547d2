"""Streams of one connection: back-pressure, fairness, ends, and peers that break the rules."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import h2.config
import h2.connection
import h2.settings
import pytest

from lockgate.tunnel.h2_session import (
    Session,
    SessionBusy,
    SessionLimits,
    Stream,
    StreamClosed,
    StreamProtocol,
)
from lockgate.tunnel.http2 import ErrorCode, Headers
from tests.support.http2 import OK, REQUEST, frame
from tests.support.loops import event_loop_policy  # noqa: F401, a fixture


class Recorder(StreamProtocol):
    """Keeps what a stream says."""

    def __init__(self) -> None:
        self.headers: list[Headers] = []
        self.data = bytearray()
        self.ended = False
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    def headers_received(self, headers: Headers) -> None:
        self.headers.append(headers)
        self.changed.set()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed.set()

    def eof_received(self) -> bool:
        self.ended = True
        self.changed.set()
        return True

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)
        self.changed.set()

    async def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Pair:
    """A client and a server session on one loopback connection."""

    def __init__(self, client_limits: SessionLimits, server_limits: SessionLimits) -> None:
        self.client_limits = client_limits
        self.server_limits = server_limits
        self.accepted: asyncio.Queue[tuple[Stream, Headers, Recorder]] = asyncio.Queue()
        self.reasons: dict[str, asyncio.Future[str]] = {}
        self.client: Session
        self.server: Session

    def session(self, name: str) -> Session:
        loop = asyncio.get_running_loop()
        self.reasons[name] = loop.create_future()

        def opened(stream: Stream, headers: Headers) -> None:
            recorder = Recorder()
            stream.set_protocol(recorder)
            self.accepted.put_nowait((stream, headers, recorder))

        session = Session(
            client=name == "client",
            limits=self.client_limits if name == "client" else self.server_limits,
            opened=None if name == "client" else opened,
            made=lambda _: None,
            lost=lambda _, reason: self.reasons[name].set_result(reason),
        )
        setattr(self, name, session)
        return session

    async def request(self, headers: Headers = REQUEST) -> tuple[Stream, Recorder, Stream, Recorder]:
        here = Recorder()
        stream = self.client.open(headers, here)
        there, _, recorder = await asyncio.wait_for(self.accepted.get(), 5)
        return stream, here, there, recorder


@contextlib.asynccontextmanager
async def pair(client: SessionLimits | None = None, server: SessionLimits | None = None) -> AsyncIterator[Pair]:
    loop = asyncio.get_running_loop()
    both = Pair(client or SessionLimits(), server or SessionLimits())
    listener = await loop.create_server(lambda: both.session("server"), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    await loop.create_connection(lambda: both.session("client"), "127.0.0.1", port)
    try:
        yield both
    finally:
        listener.close()
        for name in ("client", "server"):
            with contextlib.suppress(AttributeError):
                getattr(both, name).abort("the test is over")


async def test_a_request_and_its_response() -> None:
    async with pair() as both:
        stream, here, there, recorder = await both.request()
        stream.write(b"question")
        stream.write_eof()
        await recorder.until(lambda: recorder.ended)
        assert bytes(recorder.data) == b"question"
        there.send_headers(OK)
        there.write(b"answer")
        there.write_eof(trailers=[(b"x-t", b"1")])
        assert await asyncio.wait_for(here.lost, 5) is None
        assert await asyncio.wait_for(recorder.lost, 5) is None
        assert bytes(here.data) == b"answer"
        assert [dict(headers) for headers in here.headers] == [{b":status": b"200"}, {b"x-t": b"1"}]
        assert (both.client.stream_count, both.server.stream_count) == (0, 0)


async def test_twenty_megabytes_each_way_at_once() -> None:
    async with pair() as both:
        stream, here, there, recorder = await both.request()
        there.send_headers(OK)
        chunk, count = bytes(range(256)) * 1024, 80

        async def send(end: Stream, protocol: Recorder) -> None:
            for _ in range(count):
                await protocol.writable.wait()
                end.write(chunk)
            end.write_eof()

        await asyncio.gather(send(stream, here), send(there, recorder))
        await asyncio.gather(here.until(lambda: here.ended, 30), recorder.until(lambda: recorder.ended, 30))
        assert bytes(here.data) == bytes(recorder.data) == chunk * count


async def test_who_does_not_read_stops_his_writer_and_nobody_else() -> None:
    async with pair() as both:
        stream, here, there, recorder = await both.request()
        there.pause_reading()
        sent = 0
        while here.writable.is_set():
            stream.write(b"x" * 4096)
            sent += 4096
            await asyncio.sleep(0)
        assert sent < 2 * both.client.limits.stream_outstanding
        other, _, _, neighbour = await both.request()
        other.write(b"through")
        await neighbour.until(lambda: bytes(neighbour.data) == b"through")
        there.resume_reading()
        await recorder.until(lambda: len(recorder.data) == sent)
        await asyncio.wait_for(here.writable.wait(), 5)


async def test_a_stalled_stream_does_not_take_the_window_all_share() -> None:
    """The peer offers streams the whole window of the connection, as cloudflared does."""
    generous = SessionLimits(window=1024 * 1024, connection_window=1024 * 1024)
    async with pair(server=generous) as both:
        stalled = []
        for _ in range(4):
            stream, here, there, _ = await both.request()
            there.pause_reading()
            stalled.append((stream, here))
            stream.write(b"x" * 4 * 1024 * 1024)
        other, _, _, neighbour = await both.request()
        other.write(b"through")
        await neighbour.until(lambda: bytes(neighbour.data) == b"through")


async def test_a_reset_reaches_the_other_end() -> None:
    async with pair() as both:
        stream, here, there, recorder = await both.request()
        there.pause_reading()
        stream.write(b"x" * 50_000)
        stream.abort()
        cause = await asyncio.wait_for(recorder.lost, 5)
        assert isinstance(cause, StreamClosed)
        assert "CANCEL" in str(cause)
        assert await asyncio.wait_for(here.lost, 5) is None
        there.write(b"nobody hears this")
        await both.request()  # the connection goes on


async def test_data_of_a_reset_stream_gives_its_credit_back() -> None:
    async with pair(server=SessionLimits(connection_window=256 * 1024)) as both:
        for _ in range(20):
            stream, _, there, recorder = await both.request()
            there.pause_reading()
            stream.write(b"x" * 60_000)
            await both.request()  # the bytes before it have arrived
            there.abort(ErrorCode.CANCEL)
            await asyncio.wait_for(recorder.lost, 5)
        stream, _, _, recorder = await both.request()
        stream.write(b"y" * 60_000)
        await recorder.until(lambda: len(recorder.data) == 60_000)


async def test_a_lost_connection_ends_its_streams() -> None:
    async with pair() as both:
        _, here, _, recorder = await both.request()
        both.server.abort("gone")
        assert isinstance(await asyncio.wait_for(here.lost, 5), StreamClosed)
        assert isinstance(await asyncio.wait_for(recorder.lost, 5), StreamClosed)
        await asyncio.wait_for(both.reasons["client"], 5)
        with pytest.raises(SessionBusy):
            both.client.open(REQUEST, Recorder())


async def test_no_more_streams_than_the_peer_takes() -> None:
    async with pair(server=SessionLimits(streams=3)) as both:
        for _ in range(3):
            await both.request()
        with pytest.raises(SessionBusy, match="3 are open"):
            both.client.open(REQUEST, Recorder())


async def test_a_dead_peer_is_found_out() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    both = Pair(SessionLimits(ping_interval=0.05, ping_deadline=0.2), SessionLimits())
    port = server.sockets[0].getsockname()[1]
    await asyncio.get_running_loop().create_connection(lambda: both.session("client"), "127.0.0.1", port)
    assert "has said nothing" in await asyncio.wait_for(both.reasons["client"], 5)
    server.close()


async def test_a_live_peer_that_has_nothing_to_say_is_kept() -> None:
    quick = SessionLimits(ping_interval=0.02, ping_deadline=2)
    async with pair(quick, quick) as both:
        await asyncio.sleep(2.5)
        assert not both.client.is_closing
        assert both.client.round_trip is not None
        await both.request()


async def test_a_closed_stream_that_the_peer_does_not_end_is_reset() -> None:
    async with pair(SessionLimits(linger=0.05)) as both:
        stream, _, there, recorder = await both.request()
        there.send_headers(OK)
        stream.close()
        assert isinstance(await asyncio.wait_for(recorder.lost, 5), StreamClosed)
        assert both.client.stream_count == 0


async def test_who_comes_to_a_stream_that_has_ended_is_told() -> None:
    async with pair() as both:
        stream, _, there, recorder = await both.request()
        there.abort()
        await asyncio.wait_for(recorder.lost, 5)
        async with asyncio.timeout(5):
            while both.client.stream_count:
                await asyncio.sleep(0.01)
        late = Recorder()
        stream.set_protocol(late)
        assert isinstance(await asyncio.wait_for(late.lost, 5), StreamClosed)


async def test_a_response_to_a_stream_that_was_reset_with_its_request_harms_nobody() -> None:
    async with attacked(SessionLimits()) as (both, hostile):

        def opened(stream: Stream, headers: Headers) -> None:
            recorder = Recorder()
            stream.set_protocol(recorder)
            stream.send_headers(OK)
            stream.write(b"answer")
            both.accepted.put_nowait((stream, headers, recorder))

        hostile.h2.send_headers(1, REQUEST)
        hostile.send()
        await asyncio.wait_for(both.accepted.get(), 5)
        both.server._opened = opened
        hostile.h2.send_headers(3, REQUEST)
        hostile.h2.reset_stream(3)
        hostile.send()
        *_, recorder = await asyncio.wait_for(both.accepted.get(), 5)
        assert isinstance(await asyncio.wait_for(recorder.lost, 5), StreamClosed)
        assert not both.server.is_closing
        assert both.server.stream_count == 1


class Hostile:
    """A peer of a server session that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        config = h2.config.H2Configuration(client_side=True, header_encoding=None, validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()

    def send(self, raw: bytes = b"") -> None:
        self.writer.write(self.h2.data_to_send() + raw)


@contextlib.asynccontextmanager
async def attacked(limits: SessionLimits) -> AsyncIterator[tuple[Pair, Hostile]]:
    both = Pair(SessionLimits(), limits)
    listener = await asyncio.get_running_loop().create_server(lambda: both.session("server"), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname()[:2])
    hostile = Hostile(reader, writer)
    hostile.send()
    try:
        yield both, hostile
    finally:
        listener.close()
        writer.close()
        both.server.abort("the test is over")


STRICT = SessionLimits(control_frames=10, control_burst=100)


async def ends_for(both: Pair, hostile: Hostile) -> str:
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(hostile.writer.drain(), 5)
    return await asyncio.wait_for(both.reasons["server"], 5)


async def test_rapid_reset_is_stopped() -> None:
    async with attacked(STRICT) as (both, hostile):
        for n in range(200):
            hostile.h2.send_headers(2 * n + 1, REQUEST)
            hostile.h2.reset_stream(2 * n + 1)
        hostile.send()
        assert "floods" in await ends_for(both, hostile)


@pytest.mark.parametrize(
    "one",
    [frame(6, 0, 0, b"12345678"), frame(4, 0, 0, b""), frame(0x42, 0, 0, b"what"), frame(2, 0, 1, b"\0\0\0\3\1")],
    ids=["ping", "settings", "unknown", "priority"],
)
async def test_a_flood_of_control_frames_is_stopped(one: bytes) -> None:
    async with attacked(STRICT) as (both, hostile):
        hostile.send(one * 300)
        assert "floods" in await ends_for(both, hostile)


async def test_a_flood_of_empty_data_is_stopped() -> None:
    async with attacked(STRICT) as (both, hostile):
        hostile.h2.send_headers(1, REQUEST)
        hostile.send(frame(0, 0, 1, b"") * 300)
        assert "floods" in await ends_for(both, hostile)


@pytest.mark.parametrize("stream", [0, 1, 3])
async def test_a_flood_of_credit_for_nothing_is_stopped(stream: int) -> None:
    async with attacked(STRICT) as (both, hostile):
        hostile.h2.send_headers(1, REQUEST)
        hostile.h2.send_headers(3, REQUEST)
        hostile.h2.reset_stream(3)
        hostile.send(frame(8, 0, stream, b"\0\0\0\1") * 300)
        assert "floods" in await ends_for(both, hostile)


async def test_credit_for_what_was_sent_is_no_flood() -> None:
    async with pair(server=STRICT) as both:
        _, here, there, _ = await both.request()
        there.send_headers(OK)
        for n in range(1, 401):
            there.write(b"x" * 1000)
            await here.until(lambda n=n: len(here.data) == n * 1000)  # type: ignore[misc]
        assert not both.reasons["server"].done()


async def test_a_flood_of_continuation_is_stopped() -> None:
    async with attacked(SessionLimits()) as (both, hostile):
        hostile.send(frame(1, 0, 1, b"\x82") + frame(9, 0, 1, b"\x82") * 10_000)
        assert "broke HTTP/2" in await ends_for(both, hostile)


async def test_a_header_bomb_is_not_unpacked() -> None:
    async with attacked(SessionLimits()) as (both, hostile):
        value = b"x" * 4000
        # One entry of the dynamic table, then four thousand references of a byte each: 16 MB of header fields.
        entry = b"\x40\x01a\x7f" + bytes([(4000 - 127) & 0x7F | 0x80, (4000 - 127) >> 7]) + value
        hostile.send(frame(1, 4, 1, b"\x82\x84\x87" + entry + b"\xbe" * 4000))
        assert "broke HTTP/2" in await ends_for(both, hostile)


@pytest.mark.parametrize(
    "raw",
    [
        frame(8, 0, 0, b"\0\0\0\0"),
        frame(8, 0, 0, b"\x7f\xff\xff\xff"),
        frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"),
        frame(0, 0, 9, b"for a stream that never was"),
        frame(1, 4, 2, b"\x82\x84\x87"),
        b"GET / HTTP/1.1\r\n\r\n" * 10,
    ],
    ids=["window of zero", "window too far", "window setting", "data of no stream", "even stream", "HTTP/1.1"],
)
async def test_a_peer_that_breaks_the_rules_is_closed(raw: bytes) -> None:
    async with attacked(SessionLimits()) as (both, hostile):
        hostile.send(raw)
        assert "broke HTTP/2" in await ends_for(both, hostile)


async def test_more_data_than_the_window_allows_ends_the_connection() -> None:
    async with attacked(SessionLimits()) as (both, hostile):
        hostile.h2.send_headers(1, REQUEST)
        hostile.send()
        stream, _, _ = await asyncio.wait_for(both.accepted.get(), 5)
        stream.pause_reading()
        hostile.send(frame(0, 0, 1, b"x" * 16_384) * 9)
        assert "broke HTTP/2" in await ends_for(both, hostile)


async def test_credit_of_a_hundred_thousand_small_messages_comes_back() -> None:
    async with pair(SessionLimits(window=4096)) as both:
        _, here, there, recorder = await both.request()
        there.send_headers(OK)
        for n in range(100_000):
            there.write(b"x" * (n % 7 + 1))
            if not recorder.writable.is_set():
                await asyncio.wait_for(recorder.writable.wait(), 10)
        there.write_eof()
        await here.until(lambda: here.ended, 30)
        assert len(here.data) == sum(n % 7 + 1 for n in range(100_000))


async def test_who_keeps_talking_to_a_connection_that_ends_does_not_keep_it() -> None:
    quick = SessionLimits(ping_interval=0.05, ping_deadline=0.2)
    async with attacked(quick) as (both, hostile):
        hostile.send(frame(0, 0, 9, b"for a stream that never was"))
        async with asyncio.timeout(5):
            while not both.reasons["server"].done():
                with contextlib.suppress(ConnectionError):
                    hostile.writer.write(frame(6, 1, 0, b"12345678"))
                await asyncio.sleep(0.01)
