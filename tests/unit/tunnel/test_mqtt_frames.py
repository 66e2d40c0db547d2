"""MQTT that the edge follows within WebSocket frames: what it answers in a gap, and that it changes nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.mqtt.encoder import PINGREQ_FRAME, encode
from lockgate.mqtt.packets import V5, ConnAck, Connect, Publish
from lockgate.transport.websocket_frames import apply_mask
from lockgate.tunnel.frame_boundaries import FrameBoundaries
from lockgate.tunnel.mqtt_frames import MqttFrames
from tests.support.pieces import in_pieces

PINGRESP = b"\x82\x02\xd0\x00"
CONNECT, CONNACK = encode(Connect("c1", V5), V5), encode(ConnAck(), V5)
PUBLISH = encode(Publish("t", PINGREQ_FRAME * 100), V5)
CONTINUATION, BINARY, PING, PONG = 0, 2, 9, 10


def frame(payload: bytes, opcode: int = BINARY, *, fin: bool = True, mask: bytes = b"\x81\x02\x83\x04") -> bytes:
    """A frame; an empty mask for one of the server's."""
    size = len(payload)
    code, length = (127, size.to_bytes(8, "big")) if size > 65_535 else (126, size.to_bytes(2, "big"))
    if size < 126:
        code, length = size, b""
    head = bytes([opcode | (0x80 if fin else 0), code | (0x80 if mask else 0)]) + length
    return head + (mask + apply_mask(payload, mask) if mask else payload)


def from_server(payload: bytes, opcode: int = BINARY, *, fin: bool = True) -> bytes:
    return frame(payload, opcode, fin=fin, mask=b"")


def greeted() -> MqttFrames:
    """A device that has its CONNACK."""
    device = MqttFrames()
    assert device.from_device(frame(CONNECT)) == frame(CONNECT)
    device.from_broker(from_server(CONNACK))
    return device


FRAGMENTED = frame(PINGREQ_FRAME[:1], fin=False) + frame(PINGREQ_FRAME[1:], CONTINUATION)
SIZES = pytest.mark.parametrize("sizes", [[1], [2], [3], [7], [1000]])


@SIZES
@pytest.mark.parametrize("ping", [frame(PINGREQ_FRAME), FRAGMENTED], ids=["one frame", "two frames"])
def test_pings_are_answered_here_during_a_gap_and_go_no_further(ping: bytes, sizes: list[int]) -> None:
    device = greeted()
    device.begin_gap()
    said = frame(PUBLISH) + ping + frame(b"", PONG) + frame(PUBLISH[:9], fin=False) + frame(PUBLISH[9:], CONTINUATION)
    passed, answers = [], []
    for piece in in_pieces(said + ping, sizes):
        passed.append(device.from_device(piece))
        answers.append(device.answer())
    assert b"".join(passed) == said.replace(ping, b"", 1)
    assert b"".join(answers) == PINGRESP * 2
    assert device.end_gap() == b""
    assert device.from_device(ping) == ping
    assert device.answer() == b""


@SIZES
@pytest.mark.parametrize(
    "said",
    [
        frame(PINGREQ_FRAME + PUBLISH),
        frame(PUBLISH + PINGREQ_FRAME),
        frame(PINGREQ_FRAME * 2),
        frame(PINGREQ_FRAME[:1], fin=False) + frame(b"", PING) + frame(PINGREQ_FRAME[1:], CONTINUATION),
        frame(b"\xc0\x01\x00"),
        frame(b"", fin=False) + frame(b"", CONTINUATION, fin=False) * 100,
        frame(PUBLISH, 1) + frame(PINGREQ_FRAME),  # a text frame
        frame(b"\xc0\xff\xff\xff\xff\xff") + frame(PINGREQ_FRAME),
    ],
)
def test_what_is_no_ping_of_its_own_is_passed_on_unanswered(said: bytes, sizes: list[int]) -> None:
    device = greeted()
    device.begin_gap()
    passed = b"".join(device.from_device(piece) for piece in in_pieces(said, sizes))
    assert device.answer() == b""
    assert passed + device.end_gap() == said


@pytest.mark.parametrize(
    "half",
    [
        b"",
        from_server(CONNACK)[:3],
        from_server(CONNACK, fin=False),
        from_server(CONNACK) + from_server(PUBLISH)[:20],
        from_server(CONNACK) + from_server(PUBLISH[:20]),
        from_server(CONNACK) + from_server(PUBLISH, fin=False),
    ],
)
def test_nothing_is_said_before_connack_or_within_a_message(half: bytes) -> None:
    device = MqttFrames()
    device.from_device(frame(CONNECT))
    device.from_broker(half)
    device.begin_gap()
    assert device.from_device(frame(PINGREQ_FRAME)) == frame(PINGREQ_FRAME)
    assert device.answer() == b""


def test_a_ping_whose_end_comes_after_the_gap_is_the_brokers() -> None:
    device, ping = greeted(), frame(PINGREQ_FRAME)
    device.begin_gap()
    assert device.from_device(ping[:5]) == b""
    assert device.end_gap() == ping[:5]
    assert device.from_device(ping[5:]) == ping[5:]
    assert device.answer() == b""


frames = st.lists(
    st.tuples(
        st.binary(max_size=300) | st.just(bytes(70_000)),
        st.sampled_from([b"", b"\x01\x02\x03\x04"]),
        st.booleans(),
    ),
    max_size=6,
)
cuts = st.lists(st.integers(1, 7000), min_size=1, max_size=5)


@given(frames, cuts)
def test_boundaries_are_where_frames_begin(said: list[tuple[bytes, bytes, bool]], sizes: list[int]) -> None:
    stream, ends, total = [], {0}, 0
    for payload, mask, with_ping in said:
        if with_ping:
            stream.append(frame(payload[:125], PING, mask=mask))
        stream.append(frame(payload, mask=mask))
    for one in stream:
        total += len(one)
        ends.add(total)
    boundaries, count, payloads = FrameBoundaries(), 0, []
    for piece in in_pieces(b"".join(stream), sizes):
        at = 0
        while at < len(piece):
            at, payload = boundaries.step(piece, at)
            payloads.append(payload)
        count += len(piece)
        assert boundaries.between_messages is (count in ends)
    assert b"".join(payloads) == b"".join(payload for payload, _, _ in said)
