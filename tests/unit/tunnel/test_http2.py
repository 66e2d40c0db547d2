"""HTTP/2 by itself: against another implementation of it, against its rules, and against bytes of all kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.tunnel.http2 import MAX_FRAME, PREFACE, Connection, ErrorCode, Headers, Http2Error, name_of
from tests.support.http2 import OK, REQUEST, frame
from tests.support.pieces import in_pieces

WINDOW = 128 * 1024


@dataclass
class Heard:
    """What a connection told; credit is given back at once unless `holds`."""

    holds: bool = False
    events: list[Any] = field(default_factory=list)
    control: int = 0
    connection: Connection = field(init=False)

    def on_request(self, stream_id: int, headers: Headers) -> None:
        self.events.append(("request", stream_id, headers))

    def on_headers(self, stream_id: int, headers: Headers) -> None:
        self.events.append(("headers", stream_id, headers))

    def on_data(self, stream_id: int, data: bytes, credit: int) -> None:
        last: Any = self.events[-1] if self.events else ()
        if last[:2] == ("data", stream_id):
            self.events[-1] = ("data", stream_id, last[2] + data)
        else:
            self.events.append(("data", stream_id, data))
        if not self.holds:
            self.connection.credit(stream_id, credit)

    def on_end(self, stream_id: int) -> None:
        self.events.append(("end", stream_id))

    def on_reset(self, stream_id: int, code: int) -> None:
        self.events.append(("reset", stream_id, name_of(code)))

    def on_window(self, stream_id: int) -> None:
        self.events.append(("window", stream_id))

    def on_settings(self, *, window_changed: bool) -> None:
        self.events.append(("settings", window_changed))

    def on_control(self) -> None:
        self.control += 1

    def on_pong(self) -> None:
        self.events.append(("pong",))

    def on_goodbye(self, code: int) -> None:
        self.events.append(("goodbye", name_of(code)))


def connection(
    *, client: bool = False, streams: int = 100, header_bytes: int = 65_536, window: int = WINDOW, holds: bool = False
) -> tuple[Connection, Heard]:
    heard = Heard(holds)
    heard.connection = Connection(
        heard, client=client, streams=streams, header_bytes=header_bytes, window=window, connection_window=1 << 20
    )
    heard.connection.begin()
    return heard.connection, heard


def head(stream: int, headers: Headers = REQUEST, flags: int = 4) -> bytes:
    """A HEADERS frame without the dynamic table."""
    block = b"".join(b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in headers)
    return frame(1, flags, stream, block)


SETTINGS = frame(4, 0, 0, b"")
HELLO = PREFACE + SETTINGS


def greeted(**options: Any) -> tuple[Connection, Heard]:
    """A server that has heard a client's first bytes."""
    one, heard = connection(**options)
    one.receive(HELLO + frame(4, 1, 0, b""))
    one.take_output()
    heard.events.clear()
    return one, heard


def asked(**options: Any) -> tuple[Connection, Heard, int]:
    """A client that has opened a stream."""
    one, heard = connection(client=True, **options)
    one.receive(SETTINGS + frame(4, 1, 0, b""))
    stream = one.open(REQUEST, end_stream=False)
    one.take_output()
    heard.events.clear()
    return one, heard, stream


# --- with another implementation --------------------------------------------------------------------------------------


class Other:
    """h2 on the other side."""

    def __init__(self, client: bool) -> None:
        config = h2.config.H2Configuration(client_side=client, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.events: list[Any] = []

    def receive(self, data: bytes) -> None:
        self.events += self.h2.receive_data(data)

    def heard(self) -> dict[int, tuple[list[Headers], bytes, bool]]:
        """What came on each stream: header lists, body, and whether it ended."""
        found: dict[int, tuple[list[Headers], bytes, bool]] = {}
        for event in self.events:
            stream = getattr(event, "stream_id", None)
            lists, body, ended = found.get(stream or 0, ([], b"", False))
            if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived | h2.events.TrailersReceived):
                lists = [*lists, [(bytes(name), bytes(value)) for name, value in event.headers]]
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                ended = True
            if stream:
                found[stream] = (lists, body, ended)
        self.events.clear()
        return found


_SPECIAL = {
    b"connection",
    b"te",
    b"host",
    b"content-length",
    b"upgrade",
    b"keep-alive",
    b"transfer-encoding",
    b"cookie",
}
FIELDS = st.lists(
    st.tuples(st.from_regex(rb"\A[a-z][a-z0-9-]{0,20}\Z"), st.from_regex(rb"\A([!-~]([ -~]{0,200}[!-~])?)?\Z")),
    max_size=8,
).map(lambda fields: [one for one in fields if one[0] not in _SPECIAL])
BODIES = st.lists(st.binary(max_size=5000), max_size=5)  # within the windows of h2
SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FIELDS, BODIES, FIELDS, BODIES), min_size=1, max_size=4), SIZES)
def test_as_a_client_of_another_server(exchanges: list[tuple[Any, Any, Any, Any]], sizes: list[int]) -> None:
    one, heard = connection(client=True)
    other = Other(client=False)

    def pass_on() -> None:
        while True:
            ours = one.take_output()
            other.receive(ours)
            theirs = other.h2.data_to_send()
            for piece in in_pieces(theirs, sizes):
                one.receive(piece)
            if not ours and not theirs:
                return

    pass_on()
    for fields, body, answer_fields, answer in exchanges:
        heard.events.clear()
        stream = one.open(REQUEST + fields, end_stream=not body)
        for chunk in body:
            for piece in in_pieces(chunk, [MAX_FRAME]) or [b""]:
                one.send_data(stream, piece, end_stream=False)
        if body:
            one.send_data(stream, b"", end_stream=True)
        pass_on()
        assert other.heard()[stream] == ([REQUEST + fields], b"".join(body), True)
        pass_on()
        other.h2.send_headers(stream, OK + answer_fields)
        for chunk in answer:
            for piece in in_pieces(chunk, [MAX_FRAME]):
                other.h2.send_data(stream, piece)
        other.h2.end_stream(stream)
        pass_on()
        told = [event for event in heard.events if event[0] in ("headers", "data", "end")]
        whole = b"".join(answer)
        assert told[0] == ("headers", stream, OK + answer_fields)
        assert b"".join(event[2] for event in told if event[0] == "data") == whole
        assert told[-1] == ("end", stream)
        assert not one.flows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FIELDS, BODIES, FIELDS, FIELDS), min_size=1, max_size=4), SIZES)
def test_as_a_server_of_another_client(exchanges: list[tuple[Any, Any, Any, Any]], sizes: list[int]) -> None:
    one, heard = connection()
    other = Other(client=True)
    for number, (fields, body, answer_fields, trailers) in enumerate(exchanges):
        stream = 2 * number + 1
        heard.events.clear()
        other.h2.send_headers(stream, REQUEST + fields)
        for chunk in body:
            for piece in in_pieces(chunk, [MAX_FRAME]):
                other.h2.send_data(stream, piece)
        other.h2.end_stream(stream)
        for piece in in_pieces(other.h2.data_to_send(), sizes):
            one.receive(piece)
        assert ("request", stream, REQUEST + fields) in heard.events
        assert b"".join(event[2] for event in heard.events if event[0] == "data") == b"".join(body)
        assert heard.events[-1] == ("end", stream)
        one.send_headers(stream, OK + answer_fields, end_stream=False)
        one.send_data(stream, b"answer", end_stream=not trailers)
        if trailers:
            one.send_headers(stream, trailers, end_stream=True)
        other.receive(one.take_output())
        expected = [OK + answer_fields, *([trailers] if trailers else [])]
        assert other.heard()[stream] == (expected, b"answer", True)
        assert not one.flows


def test_header_fields_that_take_many_frames() -> None:
    one, _ = connection(client=True)
    other = Other(client=False)
    fields = [(b"x-%d" % n, bytes([97 + n % 26]) * 1000) for n in range(60)]
    stream = one.open(REQUEST + fields, end_stream=True)
    other.receive(one.take_output())
    assert other.heard()[stream] == ([REQUEST + fields], b"", True)
    back, heard = connection()
    block = hpack.Encoder().encode(REQUEST + fields)
    parts = in_pieces(block, [9000])
    data = frame(1, 1, 1, parts[0])
    for part in parts[1:-1]:
        data += frame(9, 0, 1, part)
    back.receive(HELLO + data + frame(9, 4, 1, parts[-1]))
    assert heard.events[-2:] == [("request", 1, REQUEST + fields), ("end", 1)]


# --- the rules --------------------------------------------------------------------------------------------------------

LARGE = (1 << 31) - 1
BROKEN = {
    "a frame that is too long (4.2)": (b"\0\x40\x01\0\0\0\0\0\1", ErrorCode.FRAME_SIZE_ERROR),
    "DATA on stream 0 (6.1)": (frame(0, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA on an idle stream (5.1)": (frame(0, 0, 9, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA with more padding than frame (6.1)": (head(1) + frame(0, 8, 1, b"\5abcd"), ErrorCode.PROTOCOL_ERROR),
    "DATA that says it is padded and is empty (6.1)": (head(1) + frame(0, 8, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "DATA behind the end (5.1)": (head(1, flags=5) + frame(0, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
    "HEADERS behind the end (5.1)": (head(1, flags=5) + head(1), ErrorCode.STREAM_CLOSED),
    "HEADERS on stream 0 (6.2)": (head(0), ErrorCode.PROTOCOL_ERROR),
    "HEADERS on a stream of the server's (5.1.1)": (head(2), ErrorCode.PROTOCOL_ERROR),
    "HEADERS on a lower stream (5.1.1)": (head(5) + head(3), ErrorCode.STREAM_CLOSED),
    "HEADERS with more padding than frame (6.2)": (frame(1, 12, 1, b"\x40\x82"), ErrorCode.PROTOCOL_ERROR),
    "HEADERS cut off in their priority (6.2)": (frame(1, 0x24, 1, b"\0\0"), ErrorCode.FRAME_SIZE_ERROR),
    "header fields that are none (4.3)": (frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "a block cut off in a field (4.3)": (frame(1, 4, 1, b"\x10\x05ab"), ErrorCode.COMPRESSION_ERROR),
    "a block with another frame in it (6.10)": (head(1, flags=0) + frame(6, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "a block with an unknown frame in it (5.5)": (head(1, flags=0) + frame(0x42, 0, 0, b""), ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION of another stream (6.10)": (head(1, flags=0) + frame(9, 4, 3, b""), ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION of nothing (6.10)": (frame(9, 4, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION without end": (head(1, flags=0) + frame(9, 0, 1, b"") * 64, ErrorCode.ENHANCE_YOUR_CALM),
    "a block that is too long": (head(1, flags=0) + frame(9, 0, 1, bytes(16_000)) * 5, ErrorCode.ENHANCE_YOUR_CALM),
    "PRIORITY on stream 0 (6.3)": (frame(2, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    "PRIORITY of four bytes (6.3)": (frame(2, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    "RST_STREAM on stream 0 (6.4)": (frame(3, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM on an idle stream (6.4)": (frame(3, 0, 7, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM of three bytes (6.4)": (head(1) + frame(3, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS on a stream (6.5)": (frame(4, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "SETTINGS of five bytes (6.5)": (frame(4, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS acknowledged with something (6.5)": (frame(4, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "ENABLE_PUSH of 2 (6.5.2)": (frame(4, 0, 0, b"\0\2\0\0\0\2"), ErrorCode.PROTOCOL_ERROR),
    "a window setting that is too large (6.5.2)": (frame(4, 0, 0, b"\0\4\x80\0\0\0"), ErrorCode.FLOW_CONTROL_ERROR),
    "a frame size setting that is too small (6.5.2)": (frame(4, 0, 0, b"\0\5\0\0\x3f\xff"), ErrorCode.PROTOCOL_ERROR),
    "a frame size setting that is too large (6.5.2)": (frame(4, 0, 0, b"\0\5\1\0\0\0"), ErrorCode.PROTOCOL_ERROR),
    "a setting that lets a window overflow (6.9.2)": (
        head(1) + frame(8, 0, 1, (LARGE - 65_535).to_bytes(4, "big")) + frame(4, 0, 0, b"\0\4\0\1\0\0"),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "PUSH_PROMISE of a client (8.4)": (frame(5, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "PING on a stream (6.7)": (frame(6, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "PING of seven bytes (6.7)": (frame(6, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "GOAWAY on a stream (6.8)": (frame(7, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "GOAWAY of seven bytes (6.8)": (frame(7, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of three bytes (6.9)": (frame(8, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of nothing (6.9)": (frame(8, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE beyond the largest (6.9.1)": (
        frame(8, 0, 0, LARGE.to_bytes(4, "big")), ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "WINDOW_UPDATE on an idle stream (5.1)": (frame(8, 0, 9, b"\0\0\0\1"), ErrorCode.PROTOCOL_ERROR),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "code"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("size", [1, 10_000])
def test_what_breaks_a_rule_of_the_connection(raw: bytes, code: ErrorCode, size: int) -> None:
    one, _ = greeted()
    broken: Http2Error | None = None
    try:
        for piece in in_pieces(raw, [size]):
            one.receive(piece)
    except Http2Error as error:
        broken = error
    assert broken is not None
    assert broken.code is code
    one.goodbye(code)
    assert one.output[-1].endswith(code.to_bytes(4, "big"))


@pytest.mark.parametrize("first", [PREFACE + frame(6, 0, 0, bytes(8)), b"GET / HTTP/1.1\r\n\r\n", PREFACE[:-1] + b"x"])
def test_what_does_not_begin_as_it_must(first: bytes) -> None:
    one, _ = connection()
    with pytest.raises(Http2Error) as broken:
        one.receive(first)
    assert broken.value.code is ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "raw", [frame(5, 4, 1, bytes(4)), head(2), head(9), frame(0, 0, 1, b"x"), frame(4, 0, 0, b"\0\2\0\0\0\1")]
)
def test_what_a_server_may_not_say(raw: bytes) -> None:
    one, _, _ = asked()
    with pytest.raises(Http2Error) as broken:
        one.receive(raw)
    assert broken.value.code is ErrorCode.PROTOCOL_ERROR


STREAMS = {
    "trailers that do not end it (8.1)": (head(1) + head(1), "PROTOCOL_ERROR"),
    "WINDOW_UPDATE of nothing (6.9)": (head(1) + frame(8, 0, 1, bytes(4)), "PROTOCOL_ERROR"),
    "WINDOW_UPDATE beyond the largest (6.9.1)": (
        head(1) + frame(8, 0, 1, LARGE.to_bytes(4, "big")), "FLOW_CONTROL_ERROR",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "code"), STREAMS.values(), ids=STREAMS)
def test_what_breaks_a_rule_of_a_stream_resets_it_alone(raw: bytes, code: str) -> None:
    one, heard = greeted()
    one.receive(raw)
    assert heard.events[-1] == ("reset", 1, code)
    assert one.take_output()[3:9] == b"\3\0\0\0\0\1"
    assert not one.flows
    one.receive(frame(0, 0, 1, b"on its way") + head(3))
    assert heard.events[-1] == ("request", 3, REQUEST)


def test_more_streams_than_we_take_are_refused_one_by_one() -> None:
    one, heard = greeted(streams=2)
    one.receive(head(1) + head(3) + head(5) + frame(0, 0, 5, b"its body"))
    assert [event[1] for event in heard.events] == [1, 3]
    assert one.take_output() == frame(3, 0, 5, ErrorCode.REFUSED_STREAM.to_bytes(4, "big"))
    assert heard.control == 2
    one.receive(frame(3, 0, 1, bytes(4)) + head(7))
    assert heard.events[-1] == ("request", 7, REQUEST)


def test_no_more_streams_than_the_peer_takes() -> None:
    one, _ = connection(client=True)
    one.receive(frame(4, 0, 0, b"\0\3\0\0\0\1"))
    assert one.can_open
    one.open(REQUEST, end_stream=False)
    assert not one.can_open


def test_informational_responses_and_padding_are_passed_over() -> None:
    one, heard, stream = asked()
    one.receive(head(stream, [(b":status", b"103"), (b"link", b"x")]) + head(stream, OK))
    one.receive(frame(0, 8, stream, b"\3ab" + bytes(3)) + frame(0, 8, stream, b"\1c\0") + frame(0, 9, stream, b"\0"))
    assert heard.events == [("headers", stream, OK), ("data", stream, b"abc"), ("end", stream)]


def test_windows_are_kept_in_both_directions() -> None:
    one, heard = greeted(holds=True)
    one.receive(head(1))
    for _ in range(8):
        one.receive(frame(0, 0, 1, bytes(16_384)))
    with pytest.raises(Http2Error, match="more bytes than the window of stream 1"):
        one.receive(frame(0, 0, 1, b"x"))
    one, heard = greeted(holds=True)
    one.receive(head(1))
    one.receive(frame(0, 8, 1, b"\5abc" + bytes(5)))
    assert heard.events[-1] == ("data", 1, b"abc")
    one.credit(1, WINDOW // 2 - 1)
    assert not one.output, "half a window at a time"
    one.credit(1, 1)
    assert one.take_output() == frame(8, 0, 1, (WINDOW // 2).to_bytes(4, "big"))


def test_a_window_setting_changes_what_may_be_sent_on_open_streams() -> None:
    one, heard = greeted()
    one.receive(head(1))
    one.send_data(1, bytes(1000), end_stream=False)
    one.receive(frame(4, 0, 0, b"\0\4\0\0\0\x0a"))
    assert one.flows[1].window == 10 - 1000
    assert heard.events[-1] == ("settings", True)
    one.receive(frame(8, 0, 1, (1000).to_bytes(4, "big")))
    assert one.flows[1].window == 10
    assert one.window == 65_535 - 1000


def test_our_smaller_window_holds_when_the_peer_has_heard_of_it() -> None:
    one, heard = connection(window=4096, holds=True)
    one.receive(HELLO + head(1) + frame(0, 0, 1, bytes(16_000)))
    assert heard.events[-1][0] == "data"
    one.receive(frame(4, 1, 0, b""))
    with pytest.raises(Http2Error, match="window of stream 1"):
        one.receive(frame(0, 0, 1, b"x"))


def test_settings_and_pings_are_answered() -> None:
    one, heard = greeted()
    one.receive(frame(4, 0, 0, b"\0\1\0\0\0\0\0\6\0\0\1\0\0\x99\0\0\0\0") + frame(6, 0, 0, b"are you?"))
    assert one.take_output() == frame(4, 1, 0, b"") + frame(6, 1, 0, b"are you?")
    assert one.peer_header_bytes == 256
    one.ping()
    assert one.take_output() == frame(6, 0, 0, b"lockgate")
    one.receive(frame(6, 1, 0, b"lockgate") + frame(7, 0, 0, bytes(7) + b"\x0b" + b"why"))
    assert heard.events[-2:] == [("pong",), ("goodbye", "ENHANCE_YOUR_CALM")]


def test_nothing_is_heard_behind_the_end() -> None:
    class Ends(Heard):
        def on_request(self, stream_id: int, headers: Headers) -> None:
            super().on_request(stream_id, headers)
            self.connection.goodbye(ErrorCode.NO_ERROR)

    heard = Ends()
    heard.connection = one = Connection(
        heard, client=False, streams=9, header_bytes=9999, window=WINDOW, connection_window=WINDOW
    )
    one.receive(HELLO + head(1, flags=5) + head(3))
    assert heard.events[-1] == ("request", 1, REQUEST)


def test_who_is_reset_often_does_not_grow() -> None:
    one, _ = greeted(streams=10)
    for stream in range(1, 2001, 2):
        one.receive(head(stream))
        one.reset(stream, ErrorCode.CANCEL)
    assert len(one._reset) == 10
    assert not one.flows


# --- bytes of all kinds -----------------------------------------------------------------------------------------------

FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 7, 0x8000_0001]),
    st.one_of(st.binary(max_size=40), st.sampled_from([bytes(4), bytes(8), b"\0\4\0\0\1\0", head(1)[9:]])),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(FRAMES, st.sampled_from([head(1), head(3), head(5, flags=5)])), max_size=30),
    SIZES,
    st.booleans(),
)
def test_nothing_but_its_own_error_comes_of_any_frames(frames: list[bytes], sizes: list[int], client: bool) -> None:
    one, heard = connection(client=client)
    if client:
        one.open(REQUEST, end_stream=False)
        one.open(REQUEST, end_stream=True)
    try:
        for piece in in_pieces((SETTINGS if client else HELLO) + b"".join(frames), sizes):
            one.receive(piece)
    except Http2Error as error:
        one.goodbye(error.code)
    assert len(one._rest) < MAX_FRAME + 9
    for event in heard.events:
        assert event[0] not in ("request", "headers", "data", "end", "reset") or event[1] > 0


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAMES, max_size=10), SIZES)
def test_how_bytes_are_cut_makes_no_difference(frames: list[bytes], sizes: list[int]) -> None:
    told = []
    for pieces in ([HELLO + b"".join(frames)], in_pieces(HELLO + b"".join(frames), sizes)):
        one, heard = connection()
        end = None
        try:
            for piece in pieces:
                one.receive(piece)
        except Http2Error as error:
            end = (error.code, str(error))
        told.append((heard.events, heard.control, end, one.take_output()))
    assert told[0] == told[1]
