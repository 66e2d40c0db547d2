"""The edge's filter for MQTT: whom it lets in, what it passes on, what it says itself."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.access import hashes
from lockgate.access.password_file import PasswordFile
from lockgate.mqtt import reason_codes as rc
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import PINGREQ_FRAME, PINGRESP_FRAME, encode
from lockgate.mqtt.packets import (
    PUBLISH,
    SUBSCRIBE,
    V3_1,
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PubAck,
    Publish,
    PubRec,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from lockgate.mqtt.properties import Properties
from lockgate.mqtt.topics import matches
from lockgate.tunnel.boundaries import Boundaries
from lockgate.tunnel.device_policy import DevicePolicy, Peer
from lockgate.tunnel.devices import DeviceFilter, State
from lockgate.tunnel.patterns import covers
from tests.support.pieces import in_pieces
from tests.support.strategies import packets, small_filters, small_names

WALL = 1_800_000_000.0
PASSWORDS = PasswordFile({"anna": hashes.make(b"right", "sha512")})
VERSIONS = pytest.mark.parametrize("version", [V3_1, V3_1_1, V5])


def new(policy: DevicePolicy | None = None) -> DeviceFilter:
    return DeviceFilter(Peer("192.0.2.1"), policy or DevicePolicy(), 0.0)


def admitted(device: DeviceFilter) -> bytes:
    assert device.state is State.LOGIN
    return device.admit(device.log_in(WALL))


def opened(
    policy: DevicePolicy | None = None, version: int = V5, connack: ConnAck | None = None, **said: object
) -> DeviceFilter:
    """A device behind its CONNACK."""
    device = new(policy)
    connect = encode(Connect("c1", version, **said), version)  # type: ignore[arg-type]
    assert device.receive(connect) == b""
    assert admitted(device) == connect
    device.from_broker(encode(connack or ConnAck(), version))
    assert device.answer() == b""
    assert device.state is State.OPEN
    return device


def read(data: bytes, version: int) -> list[Packet]:
    decoder = Decoder(version)
    decoder.feed(data)
    found: list[Packet] = []
    while (packet := decoder.next_packet()) is not None:
        found.append(packet)
    assert decoder.pending == 0
    return found


cuts = st.lists(st.integers(1, 40), min_size=1, max_size=5)

# --- CONNECT ------------------------------------------------------------------------------------------------------


@VERSIONS
def test_connect_goes_on_as_it_came_with_what_follows(version: int) -> None:
    device = new()
    connect = encode(Connect("c1", version, keep_alive=7, username="anna", password=b"x"), version)
    behind = encode(Subscribe(1, [SubscriptionRequest("a/#")]), version) + PINGREQ_FRAME
    assert device.receive(connect[:5]) == b""
    assert device.version == 0
    assert device.receive(connect[5:] + behind[:3]) == b""
    assert device.receive(behind[3:]) == b""  # nothing goes on before it is let in
    assert (device.client_id, device.username, device.version, device.keep_alive) == ("c1", "anna", version, 7)
    assert admitted(device) == connect + behind
    assert device.state is State.OPEN
    assert device._up.at_boundary
    assert device.deadline is None


@pytest.mark.parametrize(
    ("version", "policy", "v5_code"),
    [
        (version, policy, code)
        for version in (V3_1, V3_1_1, V5)
        for policy, code in (
            (DevicePolicy(passwords=PASSWORDS), rc.BAD_USER_NAME_OR_PASSWORD),
            (DevicePolicy(users=("sensor-*",)), rc.NOT_AUTHORIZED),
            (DevicePolicy(certificates=("CN=%u",)), rc.NOT_AUTHORIZED),
            (DevicePolicy(client_ids=("x*",)), rc.CLIENT_IDENTIFIER_NOT_VALID),
            (DevicePolicy(publish=("b",)), rc.NOT_AUTHORIZED),
        )
    ],
)
def test_who_is_not_let_in_hears_it_in_the_connack_of_its_version(
    version: int, policy: DevicePolicy, v5_code: int
) -> None:
    device = new(policy)
    connect = Connect("c1", version, username="anna", password=b"wrong", will=Will("a", b"gone"))
    assert device.receive(encode(connect, version)) == b""
    assert admitted(device) == b""
    assert device.state is State.CLOSED
    expected = v5_code if version == V5 else rc.CONNACK_V3[v5_code]
    assert read(device.answer(), version) == [ConnAck(expected)]
    assert device.answer() == b""
    assert device.receive(b"\xc0\x00") == b""
    assert device.problem
    assert "wrong" not in device.problem.replace("wrong user", "")


def test_the_edge_may_refuse_for_its_own_reasons() -> None:
    for version, code in ((V5, rc.SERVER_UNAVAILABLE), (V3_1_1, rc.SERVER_UNAVAILABLE_V3)):
        device = new()
        device.receive(encode(Connect("c1", version), version))
        device.refuse(rc.SERVER_UNAVAILABLE, "no connector is there")
        assert read(device.answer(), version) == [ConnAck(code)]
        assert device.problem == "no connector is there"


def test_a_policy_may_be_chosen_by_the_user_name() -> None:
    device = new()
    device.receive(encode(Connect("c1", V5, username="anna"), V5))
    device.policy = DevicePolicy(passwords=PASSWORDS)
    assert device.is_slow
    assert admitted(device) == b""
    assert read(device.answer(), V5) == [ConnAck(rc.BAD_USER_NAME_OR_PASSWORD)]


@pytest.mark.parametrize(
    ("data", "answer", "problem"),
    [
        (b"GET / HTTP/1.1\r\n", b"", "CONNECT"),
        (b"\xc0\x00", b"", "first packet must be CONNECT"),
        (b"\x10\xff\xff\xff\xff\x01", b"", "fifth byte"),
        (b"\x10\xff\xff\xff\x7f", b"", "at most 131072"),
        (b"\x10\x0c\x00\x04MQTT\x06\x02\x00\x3c\x00\x00", b"\x20\x03\x00\x84\x00", "level 6"),
        (b"\x10\x0c\x00\x04MQTT\x02\x02\x00\x3c\x00\x00", b"\x20\x02\x00\x01", "level 2"),
        (b"\x10\x0c\x00\x04HTTP\x04\x02\x00\x3c\x00\x00", b"", "'HTTP'"),
    ],
)
def test_what_is_no_connect_is_closed(data: bytes, answer: bytes, problem: str) -> None:
    device = new()
    assert device.receive(data) == b""
    assert device.state is State.CLOSED
    assert device.answer() == answer
    assert problem in device.problem


def test_connect_has_to_come_in_time() -> None:
    device = new(DevicePolicy(connect_seconds=5.0))
    assert device.deadline == 5.0
    device.receive(b"\x10")
    device.expire(4.9)
    assert device.deadline == 5.0
    device.expire(5.0)
    assert device.state is State.CLOSED
    assert device.answer() == b""


def test_what_comes_before_the_login_is_bounded() -> None:
    device = new()
    device.receive(encode(Connect("c1", V5), V5))
    device.receive(bytes(1 << 20))
    assert device.state is State.CLOSED
    assert device.admit(device.log_in(WALL)) == b""


# --- what is allowed ----------------------------------------------------------------------------------------------


def test_without_a_policy_for_packets_the_very_bytes_go_on() -> None:
    device = opened()
    data = encode(Publish("any/topic", b"x" * 1000, 1, packet_id=1), V5)
    assert device.receive(data) is data
    assert device.from_broker(data) is data
    assert device.receive(data[:7]) == data[:7]
    assert not device._up.at_boundary
    device.receive(data[7:])
    assert device._up.at_boundary


ALL = DevicePolicy(publish=("#", "$s/#"), subscribe=("#", "$s/#"))


@pytest.mark.parametrize("version", [V3_1_1, V5])
@given(data=st.data(), sizes=cuts)
def test_what_is_allowed_goes_on_unchanged_whatever_the_pieces(
    version: int, data: st.DataObject, sizes: list[int]
) -> None:
    device = opened(ALL, version, ConnAck(properties=Properties(topic_alias_maximum=0xFFFF)) if version == V5 else None)
    kinds = packets(version).filter(lambda one: not (one.type in (PUBLISH, SUBSCRIBE) and _is_special(one)))
    stream = b"".join(encode(one, version) for one in data.draw(st.lists(kinds, max_size=5)))
    assert b"".join(device.receive(piece) for piece in in_pieces(stream, sizes)) == stream
    assert device.state is State.OPEN
    assert device._up.at_boundary
    assert device.answer() == b""


def _is_special(packet: Packet) -> bool:
    """Topics below other `$` than the policy's."""
    if isinstance(packet, Publish):
        return packet.topic.startswith("$")
    assert isinstance(packet, Subscribe)
    return any(request.topic_filter.startswith("$") for request in packet.requests)


def test_a_large_payload_is_not_collected() -> None:
    device = opened(DevicePolicy(publish=("a",), max_payload=200_000_000))
    head = bytes.fromhex("30 84 80 80 50 0001 61 00")  # 160 MiB of payload
    assert device.receive(head) == head
    piece = bytes(64 * 1024)
    tracemalloc.start()
    for _ in range(160 * 16):
        assert device.receive(piece) is piece
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert device._up.at_boundary


# --- PUBLISH ------------------------------------------------------------------------------------------------------

OWN = DevicePolicy(publish=("d/%c/#",), max_payload=10)


def test_v5_3_4_2_1_a_message_that_is_not_allowed_is_answered_and_goes_no_further() -> None:
    device = opened(OWN)
    good = encode(Publish("d/c1/x", b"ok"), V5)
    for qos, answer in ((1, [PubAck(7, rc.NOT_AUTHORIZED)]), (2, [PubRec(7, rc.NOT_AUTHORIZED)]), (0, [])):
        for bad in (Publish("d/c2/x", b""), Publish("d/c1/x", b"x" * 11)):
            bad.qos, bad.packet_id = qos, 7 if qos else 0
            assert device.receive(good + encode(bad, V5) + good) == good + good
            assert read(device.answer(), V5) == answer
    assert device.refused == 6
    assert device.state is State.OPEN


@pytest.mark.parametrize("version", [V3_1, V3_1_1])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_v3_has_no_word_for_it_and_the_connection_is_closed(version: int, qos: int) -> None:
    device = opened(OWN, version)
    good = encode(Publish("d/c1/x", b"ok"), version)
    bad = encode(Publish("d/c2/x", b"", qos, packet_id=7 if qos else 0), version)
    assert device.receive(good + bad + good) == good
    assert device.state is State.CLOSED
    assert device.answer() == b""
    assert "its topic is not allowed" in device.problem


def test_a_large_message_that_is_not_allowed_is_passed_over_as_it_comes() -> None:
    device = opened(OWN)
    bad = encode(Publish("other", b"x" * 100_000, 1, packet_id=9), V5)
    good = encode(Publish("d/c1/x", b"ok"), V5)
    assert b"".join(device.receive(piece) for piece in in_pieces(bad + good, [999])) == good
    assert read(device.answer(), V5) == [PubAck(9, rc.NOT_AUTHORIZED)]


def test_v5_what_connack_has_told_is_a_reason_to_disconnect() -> None:
    policy = DevicePolicy(max_qos=1, retain=False)
    device = new(policy)
    device.receive(encode(Connect("c1", V5), V5))
    admitted(device)
    theirs = ConnAck(properties=Properties(maximum_qos=None, receive_maximum=20, topic_alias_maximum=3))
    (connack,) = read(device.from_broker(encode(theirs, V5)), V5)
    assert isinstance(connack, ConnAck)
    assert connack.properties == Properties(
        maximum_qos=1, retain_available=0, receive_maximum=20, topic_alias_maximum=3
    )
    assert device.receive(encode(Publish("a", b"", 1, packet_id=1), V5))
    assert device.receive(encode(Publish("a", b"", 2, packet_id=2), V5)) == b""
    assert read(device.answer(), V5) == [Disconnect(rc.QOS_NOT_SUPPORTED)]
    assert device.state is State.CLOSED
    assert device.from_broker(PINGRESP_FRAME) == b""  # nothing follows a DISCONNECT
    device = opened(policy)
    assert device.receive(encode(Publish("a", b"", 0, retain=True), V5)) == b""
    assert read(device.answer(), V5) == [Disconnect(rc.RETAIN_NOT_SUPPORTED)]


def test_a_refusing_connack_is_not_changed() -> None:
    device = new(DevicePolicy(max_qos=1))
    device.receive(encode(Connect("c1", V5), V5))
    admitted(device)
    refusal = encode(ConnAck(rc.NOT_AUTHORIZED), V5)
    assert device.from_broker(refusal) == refusal


def alias(topic: str, number: int, payload: bytes = b"", qos: int = 0) -> bytes:
    properties = Properties(topic_alias=number)
    return encode(Publish(topic, payload, qos, packet_id=5 if qos else 0, properties=properties), V5)


def with_aliases(policy: DevicePolicy, maximum: int = 3) -> DeviceFilter:
    return opened(policy, connack=ConnAck(properties=Properties(topic_alias_maximum=maximum)))


def test_v5_3_3_2_3_4_topic_aliases_are_followed() -> None:
    device = with_aliases(OWN)
    assert device.receive(alias("d/c1/x", 1) + alias("", 1)) == alias("d/c1/x", 1) + alias("", 1)
    assert device.receive(alias("other", 2) + alias("", 2) + alias("", 2, qos=1)) == b""
    assert read(device.answer(), V5) == [PubAck(5, rc.NOT_AUTHORIZED)]
    assert device.receive(alias("d/c1/y", 2) + alias("", 2)) == alias("d/c1/y", 2) + alias("", 2)
    assert device.receive(alias("other", 1) + alias("", 1)) == b""  # for the broker it is d/c1/x still


def test_v5_an_alias_whose_packet_was_refused_is_told_to_the_broker() -> None:
    device = with_aliases(OWN)
    assert device.receive(alias("d/c1/x", 1, b"x" * 11, qos=1)) == b""  # too large, and it set the alias
    assert device.receive(alias("", 1, b"small", qos=1)) == alias("d/c1/x", 1, b"small", qos=1)
    assert device.receive(alias("", 1, b"small")) == alias("", 1, b"small")
    assert device._up.at_boundary
    assert device.receive(alias("d/c1/y", 1, b"x" * 11)) == b""
    stream = alias("", 1, b"0123456789")
    passed = b"".join(device.receive(piece) for piece in in_pieces(stream, [3]))
    assert passed == alias("d/c1/y", 1, b"0123456789")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (alias("d/c1/x", 4), rc.TOPIC_ALIAS_INVALID),
        (alias("", 2), rc.PROTOCOL_ERROR),
        (bytes.fromhex("30 06 0000 03 230000"), rc.TOPIC_ALIAS_INVALID),
        (bytes.fromhex("36 03 0001 61"), rc.MALFORMED_PACKET),
        (bytes.fromhex("30 00"), rc.MALFORMED_PACKET),
        (bytes.fromhex("30 04 0009 61 00"), rc.MALFORMED_PACKET),
        (bytes.fromhex("30 04 0001 61 09"), rc.MALFORMED_PACKET),
        (bytes.fromhex("30 04 0001 ff 00"), rc.MALFORMED_PACKET),
        (bytes.fromhex("30 03 0000 00"), rc.TOPIC_NAME_INVALID),
        (bytes.fromhex("30 04 0001 23 00"), rc.MALFORMED_PACKET),
        (bytes.fromhex("32 06 0001 7a 0000 00"), rc.PROTOCOL_ERROR),
        (bytes.fromhex("30 ffffffff 01"), rc.MALFORMED_PACKET),
        (bytes.fromhex("30 ff7f 0001 61 ffff7f"), rc.MALFORMED_PACKET),
        (bytes.fromhex("30 ffffff7f 0001 61 ffffff01") + bytes(10), rc.PACKET_TOO_LARGE),
    ],
)
def test_v5_a_broken_publish_ends_the_connection(data: bytes, code: int) -> None:
    for sizes in ([1], [len(data)]):
        device = with_aliases(OWN)
        for piece in in_pieces(data, sizes):
            assert device.receive(piece) == b""
        assert read(device.answer(), V5) == [Disconnect(code)]


def test_v5_an_alias_counts_only_once_the_broker_has_granted_some() -> None:
    device = new(OWN)
    device.receive(encode(Connect("c1", V5), V5))
    admitted(device)
    assert device.receive(alias("d/c1/x", 1)) == b""
    assert device.state is State.CLOSED
    assert device.answer() == b""  # no DISCONNECT goes before CONNACK [MQTT-3.14.0-1]


# --- SUBSCRIBE ----------------------------------------------------------------------------------------------------

READER = DevicePolicy(subscribe=("d/%c/#",))


def subscribe(packet_id: int, *filters: str, qos: int = 0) -> Subscribe:
    return Subscribe(packet_id, [SubscriptionRequest(one, qos) for one in filters])


@pytest.mark.parametrize(("version", "refusal"), [(V3_1_1, 0x80), (V5, rc.NOT_AUTHORIZED)])
def test_subscriptions_that_are_not_allowed_are_answered_here(version: int, refusal: int) -> None:
    device = opened(READER, version)
    good = encode(subscribe(1, "d/c1/a", "$share/g/d/c1/#"), version)
    assert device.receive(good + encode(subscribe(2, "#", "other"), version) + PINGREQ_FRAME) == good + PINGREQ_FRAME
    assert read(device.answer(), version) == [SubAck(2, [refusal, refusal])]


@pytest.mark.parametrize(("version", "refusal"), [(V3_1_1, 0x80), (V5, rc.NOT_AUTHORIZED)])
def test_those_that_are_allowed_go_on_and_the_suback_is_completed(version: int, refusal: int) -> None:
    device = opened(READER, version)
    asked = subscribe(3, "#", "d/c1/a", "x", "d/c1/b", qos=1)
    if version == V5:
        asked.properties = Properties(subscription_identifiers=(9,))
        asked.requests[1].no_local = True
    passed = b"".join(device.receive(piece) for piece in in_pieces(encode(asked, version), [2]))
    (forwarded,) = read(passed, version)
    assert isinstance(forwarded, Subscribe)
    assert forwarded == Subscribe(3, [asked.requests[1], asked.requests[3]], asked.properties)
    other = encode(SubAck(8, [0]), version)
    suback = encode(SubAck(3, [1, 0]), version)
    said = b"".join(device.from_broker(piece) for piece in in_pieces(other + suback + PINGRESP_FRAME, [3]))
    assert said == other + encode(SubAck(3, [refusal, 1, refusal, 0]), version) + PINGRESP_FRAME
    assert device.from_broker(suback) == suback


def test_a_subscription_is_asked_with_no_more_than_the_qos_that_is_allowed() -> None:
    device = opened(DevicePolicy(max_qos=1), V3_1_1)
    assert device.receive(encode(subscribe(1, "a", qos=1), V3_1_1)) == encode(subscribe(1, "a", qos=1), V3_1_1)
    assert device.receive(encode(subscribe(2, "a", qos=2), V3_1_1)) == encode(subscribe(2, "a", qos=1), V3_1_1)


def test_a_subscribe_that_cannot_be_read_ends_the_connection() -> None:
    for data, code in (
        (bytes.fromhex("82 04 0001 00 00"), rc.MALFORMED_PACKET),
        (bytes.fromhex("82 ffff7f"), rc.PACKET_TOO_LARGE),
        (bytes.fromhex("80 07 0001 00 0001 61 00"), rc.MALFORMED_PACKET),
    ):
        device = opened(READER)
        assert device.receive(data) == b""
        assert read(device.answer(), V5) == [Disconnect(code)]


# --- a plain model ------------------------------------------------------------------------------------------------

requests = st.builds(
    SubscriptionRequest, small_filters.filter(lambda one: not one.startswith("$share")), st.integers(0, 2)
)
sent = st.one_of(
    st.builds(Publish, small_names, st.binary(max_size=8), st.just(0)),
    st.builds(Publish, small_names, st.binary(max_size=8), st.sampled_from([1, 2]), packet_id=st.integers(1, 99)),
    st.builds(Subscribe, st.integers(1, 99), st.lists(requests, min_size=1, max_size=3)),
    st.just(PingReq()),
)


@given(st.lists(sent, max_size=8), st.lists(small_filters, max_size=2), cuts)
def test_it_passes_on_what_the_policy_says_and_nothing_else(
    stream: list[Packet], filters: list[str], sizes: list[int]
) -> None:
    allowed = tuple(filters)
    device = opened(DevicePolicy(publish=allowed, subscribe=allowed, max_payload=5))
    data = b"".join(encode(one, V5) for one in stream)
    passed = b"".join(device.receive(piece) for piece in in_pieces(data, sizes))
    expected: list[Packet] = []
    answers: list[Packet] = []
    for one in stream:
        if isinstance(one, Publish):
            if len(one.payload) <= 5 and any(matches(each, one.topic) for each in allowed):
                expected.append(one)
            elif one.qos:
                answers.append((PubAck if one.qos == 1 else PubRec)(one.packet_id, rc.NOT_AUTHORIZED))
        elif isinstance(one, Subscribe):
            kept = [each for each in one.requests if any(covers(mine, each.topic_filter) for mine in allowed)]
            if kept:
                expected.append(Subscribe(one.packet_id, kept))
            else:
                answers.append(SubAck(one.packet_id, [rc.NOT_AUTHORIZED] * len(one.requests)))
        else:
            expected.append(one)
    assert read(passed, V5) == expected
    assert read(device.answer(), V5) == answers


@given(st.lists(st.binary(max_size=60), max_size=5), st.sampled_from([V3_1_1, V5]))
def test_any_bytes_are_passed_on_or_end_the_connection(pieces: list[bytes], version: int) -> None:
    device = opened(OWN, version)
    for piece in pieces:
        device.receive(piece)
        assert device.state in (State.OPEN, State.CLOSED)
    device.from_broker(b"".join(pieces))
    device.answer()
    fresh = new(OWN)
    for piece in pieces:
        fresh.receive(piece)


# --- between the broker's packets ---------------------------------------------------------------------------------


@given(
    st.lists(packets(V5).filter(lambda one: not isinstance(one, ConnAck)), min_size=1, max_size=4),
    cuts,
    st.integers(0, 10),
)
def test_answers_go_between_the_packets_of_the_broker(stream: list[Packet], sizes: list[int], turn: int) -> None:
    device = opened(OWN)
    data = b"".join(encode(one, V5) for one in stream)
    said: list[bytes] = []
    for number, piece in enumerate(in_pieces(data, sizes)):
        said.append(device.from_broker(piece))
        if number == turn:
            device.receive(encode(Publish("other", b"", 1, packet_id=77), V5))
            said.append(device.answer())
    got = read(b"".join(said), V5)
    refusal = PubAck(77, rc.NOT_AUTHORIZED)
    if turn < len(in_pieces(data, sizes)):
        got.remove(refusal)
    assert got == stream


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_no_answer_goes_before_connack(version: int) -> None:
    device = new(READER)
    early = encode(subscribe(1, "#"), version)
    device.receive(encode(Connect("c1", version), version) + early)
    admitted(device)
    assert device.answer() == b""
    connack = encode(ConnAck(), version)
    assert device.from_broker(connack[:3]) in (b"", connack[:3])
    assert device.answer() == b""
    refusal = rc.NOT_AUTHORIZED if version == V5 else 0x80
    rest = device.from_broker(connack[3:])
    assert rest.endswith(encode(SubAck(1, [refusal]), version))


# --- while there is no way to the broker --------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [DevicePolicy(), OWN])
@pytest.mark.parametrize("sizes", [[1], [2], [3], [100]])
def test_pings_are_answered_here_during_a_gap_and_go_no_further(policy: DevicePolicy, sizes: list[int]) -> None:
    device = opened(policy)
    publish = encode(Publish("d/c1/x", b"\xc0\x00"), V5)
    passed = [device.receive(publish[:4])]
    device.answers_pings = True
    passed += [device.receive(piece) for piece in in_pieces(publish[4:] + PINGREQ_FRAME + publish + b"\xc0", sizes)]
    assert b"".join(passed) == publish + publish
    assert device.answer() == PINGRESP_FRAME
    device.answers_pings = False
    assert device.receive(b"\x00") == PINGREQ_FRAME
    assert device.receive(PINGREQ_FRAME) == PINGREQ_FRAME
    assert device.answer() == b""
    assert device._up.at_boundary


@given(st.lists(packets(V5), max_size=5), cuts)
def test_boundaries_are_where_packets_begin(stream: list[Packet], sizes: list[int]) -> None:
    ends, total = {0}, 0
    for one in stream:
        total += len(encode(one, V5))
        ends.add(total)
    boundaries, at = Boundaries(), 0
    for piece in in_pieces(b"".join(encode(one, V5) for one in stream), sizes):
        boundaries.advance(piece)
        at += len(piece)
        assert boundaries.at_boundary is (at in ends)
