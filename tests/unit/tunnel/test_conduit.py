"""Conduits: every byte arrives once and in order, whatever breaks when; who lies is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lockgate.tunnel import conduit as conduits
from lockgate.tunnel.conduit import Conduit, ConduitError
from lockgate.tunnel.h2_session import Stream, StreamClosed, StreamProtocol


class Pipe:
    """One end of a stream of the tunnel: its writes wait until `pass_on` carries them over, piece by piece."""

    def __init__(self) -> None:
        self.protocol: StreamProtocol | None = None
        self.other: Pipe
        self.waiting = bytearray()
        self.ends = False
        self.session_is_lost = False
        self.is_lost = False
        self.is_paused = False
        self.writer_paused = False
        self._told_end = False

    def set_protocol(self, protocol: StreamProtocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        if self.is_lost or self.ends:
            return
        self.waiting += data
        if len(self.waiting) > 64 * 1024 and not self.writer_paused and self.protocol is not None:
            self.writer_paused = True
            self.protocol.pause_writing()

    def write_eof(self) -> None:
        self.ends = True

    def abort(self) -> None:
        if not self.is_lost:
            self.lose(None)
            self.other.lose(StreamClosed("reset"))

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def lose(self, cause: Exception | None) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.waiting.clear()
            if self.protocol is not None:
                self.protocol.connection_lost(cause)

    def break_connection(self) -> None:
        self.session_is_lost = True
        self.lose(StreamClosed("its session ended"))

    def pass_on(self, size: int) -> bool:
        """Carry up to so many bytes to the other end; whether there was anything to carry."""
        other = self.other
        if self.is_lost or other.is_lost or other.is_paused or other.protocol is None:
            return False
        if self.waiting:
            data = bytes(self.waiting[:size])
            del self.waiting[:size]
            if self.writer_paused and len(self.waiting) < 16 * 1024 and self.protocol is not None:
                self.writer_paused = False
                self.protocol.resume_writing()
            other.protocol.data_received(data)
            return True
        if self.ends and not self._told_end:
            self._told_end = True
            other.protocol.eof_received()
            return True
        return False


def pipes() -> tuple[Pipe, Pipe]:
    one, two = Pipe(), Pipe()
    one.other, two.other = two, one
    return one, two


def as_stream(pipe: Pipe) -> Stream:
    return cast("Stream", pipe)


class Sink(asyncio.Protocol):
    """What sits on a conduit."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        self.paused = False
        self.lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        assert not self.ended
        self.ended = True
        return True

    def pause_writing(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_writing(self) -> None:
        assert self.paused
        self.paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Pair:
    """Two conduits, and the stream that joins them now, if there is one."""

    def __init__(self) -> None:
        self.sinks = (Sink(), Sink())
        self.ends = tuple(
            Conduit("c", sink, gap=lambda _: None, gone=lambda _: None) for sink in self.sinks
        )  # fmt: skip
        self.now: tuple[Pipe, Pipe] | None = None
        self.answered: tuple[tuple[Pipe, Pipe], int] | None = None  # one whose answer is on its way
        self.join()

    def join(self) -> None:
        """Join them, as the edge asks for it and the connector answers."""
        self.now = pipes()
        for end, pipe in zip(self.ends, self.now, strict=True):
            end.carry_on(as_stream(pipe), 0)

    def connector_hears(self) -> None:
        """The edge's request comes to the connector, which goes on at once; the answer is on its way."""
        edge, connector = self.ends
        if self.sinks[1].lost:
            edge.other_is_gone("it is not known here")
            return
        fresh = pipes()
        received = connector.received
        connector.carry_on(as_stream(fresh[1]), edge.received)
        self.answered = (fresh, received)

    def edge_hears(self) -> None:
        assert self.answered is not None
        (fresh, received), self.answered = self.answered, None
        if fresh[0].is_lost:
            return
        self.ends[0].carry_on(as_stream(fresh[0]), received)
        self.now = fresh


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1), st.integers(1, 90_000)),
    st.tuples(st.just("pass"), st.integers(0, 1), st.integers(1, 70_000)),
    st.tuples(st.sampled_from(["end", "lose", "pause", "resume"]), st.integers(0, 1), st.just(0)),
    st.tuples(st.sampled_from(["ask", "answer", "lose answer"]), st.just(0), st.just(0)),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, max_size=60))
@example([("end", 0, 0), ("pass", 0, 4), ("end", 1, 0), ("pass", 1, 8), ("lose", 0, 0)])  # with the last confirmation
def test_every_byte_arrives_once_and_in_order_whatever_breaks_when(steps: list[tuple[str, int, int]]) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[tuple[str, int, int]]) -> None:
    pair = Pair()
    written = (bytearray(), bytearray())
    ended = [False, False]
    for what, side, size in steps:
        end, sink = pair.ends[side], pair.sinks[side]
        if what == "write" and not ended[side] and not sink.paused:
            data = bytes((len(written[side]) + n) % 251 for n in range(size))
            written[side].extend(data)
            end.write(data)
        elif what == "end":
            ended[side] = True
            end.write_eof()
        elif what == "pause":
            end.pause_reading()
        elif what == "resume":
            end.resume_reading()
        else:
            _carry(pair, what, side, size)
        await asyncio.sleep(0)
    for end in pair.ends:
        end.resume_reading()
    for side in (0, 1):
        pair.ends[side].write_eof()
    for _ in range(10_000):
        if all(sink.lost for sink in pair.sinks):
            break
        if pair.ends[0].in_gap:
            if pair.answered is None:
                pair.connector_hears()
            if pair.answered is not None:
                pair.edge_hears()
        elif pair.sinks[0].lost and pair.ends[1].in_gap:
            pair.ends[1]._give_up()  # nobody will ask: its time is up some day
        if pair.now is not None:
            for pipe in pair.now:
                if pipe.other.session_is_lost:
                    pipe.break_connection()  # comes to be known in the end
                pipe.pass_on(100_000)
        await asyncio.sleep(0)
    for side in (0, 1):
        assert bytes(pair.sinks[1 - side].data) == bytes(written[side])
        assert pair.sinks[side].ended
        assert pair.sinks[side].lost == [None]


def _carry(pair: Pair, what: str, side: int, size: int) -> None:
    if what == "pass" and pair.now is not None:
        pair.now[side].pass_on(size)
    elif what == "lose" and pair.now is not None:
        pair.now[side].break_connection()
    elif what == "ask" and pair.ends[0].in_gap and pair.answered is None:
        pair.connector_hears()
    elif what == "answer" and pair.answered is not None and pair.ends[0].in_gap:
        pair.edge_hears()
    elif what == "lose answer" and pair.answered is not None:
        fresh, _ = pair.answered
        pair.answered = None
        for pipe in fresh:
            pipe.break_connection()


def records(*parts: bytes | int) -> bytes:
    """Bytes are a record of data, numbers the head of another one."""
    return b"".join(
        one.to_bytes(4, "big") if isinstance(one, int) else len(one).to_bytes(4, "big") + one for one in parts
    )


ACK = 1 << 31


@pytest.mark.parametrize(
    ("lie", "problem"),
    [
        (records(ACK | 6), "were on the way"),
        (records(ACK | 0x7FFFFFFF), "were on the way"),
        (records((1 << 20) + 1), "a record of"),
        (records(0x7FFFFFFF), "a record of"),
        (records(0, 0), "a second end"),
        (records(0, b"more"), "bytes behind the end"),
        (None, "its stream ended"),
    ],
    ids=["more than was said", "all there is", "long", "giant", "two ends", "behind the end", "no end"],
)
async def test_who_lies_about_records_ends_the_conduit(lie: bytes | None, problem: str) -> None:
    pair = Pair()
    end, sink = pair.ends[0], pair.sinks[0]
    assert pair.now is not None
    here = pair.now[0]
    end.write(b"hello")
    assert here.protocol is not None
    if lie is None:
        here.protocol.eof_received()
    else:
        for byte in lie:  # a head may come in pieces
            here.protocol.data_received(bytes([byte]))
    await asyncio.sleep(0)
    assert here.is_lost
    (cause,) = sink.lost
    assert problem in str(cause)


@pytest.mark.parametrize("received", [-1, 4, 9, 1 << 60])
async def test_a_resume_that_cannot_be_is_refused(received: int) -> None:
    pair = Pair()
    end = pair.ends[0]
    end.write(b"hello123")
    end.take_confirmation(5)
    with pytest.raises(ConduitError, match="cannot be"):
        end.carry_on(as_stream(pipes()[0]), received)


async def test_without_a_stream_it_ends_after_the_gap_and_so_does_who_waits_for_the_other_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conduits, "GAP_SECONDS", 0.05)
    monkeypatch.setattr(conduits, "_LINGER_SECONDS", 0.05)
    dead, alone = Pair(), Pair()
    assert dead.now is not None
    assert alone.now is not None
    dead.now[1].break_connection()  # the process of the edge has died
    alone.ends[0].pause_reading()
    alone.ends[0].close()
    await until(lambda: bool(dead.sinks[1].lost and alone.sinks[0].lost))
    assert "no tunnel connection" in str(dead.sinks[1].lost[0])
    assert alone.now[1].is_lost


async def test_an_end_that_is_paused_in_a_gap_goes_on_behind_it() -> None:
    pair = Pair()
    edge, connector = pair.ends
    assert pair.now is not None
    for pipe in pair.now:
        pipe.break_connection()
    edge.write(bytes(200_000))
    assert pair.sinks[0].paused
    pair.connector_hears()
    pair.edge_hears()
    assert pair.now is not None
    while pair.now[0].pass_on(10_000) or pair.now[1].pass_on(10_000):
        await asyncio.sleep(0)
    assert not pair.sinks[0].paused
    assert len(pair.sinks[1].data) == connector.received == 200_000


async def test_confirmations_do_not_pile_up_for_who_does_not_read_them() -> None:
    pair = Pair()
    edge, connector = pair.ends
    assert pair.now is not None
    edge.write(bytes(70_000))  # more than its stream takes
    pair.now[1].other.is_paused = True
    assert pair.sinks[0].paused
    before = len(pair.now[0].waiting)
    assert pair.now[0].protocol is not None
    for _ in range(1000):
        pair.now[0].protocol.data_received(records(bytes(8192)))
    assert len(pair.now[0].waiting) == before
    assert edge.received == 8_192_000
    connector.abort()


async def test_who_does_not_read_may_go_on_writing() -> None:
    """As over plain TCP: the confirmations of what it writes are not stuck behind what it does not read."""
    pair = Pair()
    edge, connector = pair.ends
    assert pair.now is not None
    edge.pause_reading()
    while not pair.sinks[1].paused:
        connector.write(bytes(4096))
        while pair.now[1].pass_on(10_000):
            await asyncio.sleep(0)
    for _ in range(100):
        assert not pair.sinks[0].paused
        edge.write(bytes(20_000))
        while pair.now[0].pass_on(100_000) or pair.now[1].pass_on(100_000):
            await asyncio.sleep(0)
    assert len(pair.sinks[1].data) == 2_000_000
    assert pair.sinks[0].data == b""
    edge.resume_reading()
    await until(lambda: len(pair.sinks[0].data) >= 128 * 1024)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)
