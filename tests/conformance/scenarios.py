"""Behaviour that several versions or clauses ask for alike. Each function asserts; a test per clause calls it."""

from __future__ import annotations

from collections.abc import Callable

from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import (
    V5,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Will,
)
from lockgate.mqtt.properties import Properties
from lockgate.mqtt.wire import read_variable_byte_integer
from tests.support import raw
from tests.support.rules import Rules
from tests.support.server import Peer, Server

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


# --- small words ---------------------------------------------------------------------------------------------------


def durable(server: Server, client_id: str, version: int, clean_start: bool = False) -> Peer:
    """Connect with a Session that outlives its connection."""
    if version == V5:
        return server.client(client_id, version, clean_start, session_expiry_interval=100)
    return server.client(client_id, version, clean_start)


def leave(peer: Peer) -> None:
    """Disconnect as one should."""
    peer.send(Disconnect())
    assert peer.closed


def assert_ended(peer: Peer, reason_code: int = reason_codes.MALFORMED_PACKET) -> None:
    """The connection is closed; a version 5 client that was let in was told why, and nothing else was said."""
    packets = peer.received()
    assert peer.closed
    if peer.version == V5:
        assert len(packets) == 1, packets
        assert isinstance(packets[0], Disconnect)
        assert packets[0].reason_code == reason_code
    else:
        assert packets == []


def assert_not_let_in(peer: Peer) -> None:
    """The connection is closed and no CONNACK said yes."""
    assert peer.closed
    for packet in peer.received():
        assert isinstance(packet, ConnAck)
        assert packet.reason_code
    assert peer.server.broker.sessions == {}


def let_in(peer: Peer) -> ConnAck:
    """The client got its CONNACK and nothing more."""
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == 0
    assert not peer.closed
    return answer


def ids(packets: list[Publish]) -> list[int]:
    """Give the Packet Identifiers of messages."""
    return [packet.packet_id for packet in packets]


def payloads(packets: list[Publish]) -> list[bytes]:
    """Give the payloads of messages."""
    return [packet.payload for packet in packets]


def publishes_among(packets: list[Packet]) -> list[Publish]:
    """Give the PUBLISH packets among others."""
    return [packet for packet in packets if isinstance(packet, Publish)]


def acknowledge_all(peer: Peer) -> list[Publish]:
    """Take and acknowledge every message, also those that an acknowledgement sets free; give them in order."""
    taken: list[Publish] = []
    while True:
        packets = peer.received()
        if not packets:
            return taken
        for packet in packets:
            if isinstance(packet, Publish):
                taken.append(packet)
                if packet.qos == 1:
                    peer.send(PubAck(packet.packet_id))
                elif packet.qos == 2:
                    peer.send(PubRec(packet.packet_id))
            elif isinstance(packet, PubRel):
                peer.send(PubComp(packet.packet_id))
            else:
                raise AssertionError(packet)


# --- strings and flags ---------------------------------------------------------------------------------------------


def string_is_checked(
    version: int,
    make: Callable[[bytes], bytes],
    bad: tuple[bytes, ...] = (*raw.ILL_FORMED, raw.WITH_NUL),
    good: bytes = b"good",
) -> None:
    """A packet with a bad string ends the connection; the same one with a good string does not."""
    server = Server()
    for text in (good, *bad):
        peer = server.client("client", version)
        peer.send_bytes(make(text))
        if text == good:
            assert not peer.closed
        else:
            assert_ended(peer)


def connect_string_is_checked(version: int, make: Callable[[bytes], bytes], good: bytes = b"good") -> None:
    """The same for a string in CONNECT."""
    for text in (good, *raw.ILL_FORMED, raw.WITH_NUL):
        peer = Server().peer(version)
        peer.send_bytes(make(text))
        if text == good:
            let_in(peer)
        else:
            assert_not_let_in(peer)


def reserved_flags_end_the_connection(version: int, make: Callable[[int], bytes], right: int) -> None:
    """Of the sixteen values of the flags only the right one is accepted."""
    server = Server()
    for flags in range(16):
        peer = server.client("client", version)
        peer.send_bytes(make(flags))
        if flags == right:
            for packet in peer.received():
                assert not isinstance(packet, Disconnect)
        else:
            assert_ended(peer)


def flags_are_checked(version: int) -> None:
    """Of every packet a client may send."""
    for kind, right in ((0x40, 0), (0x50, 0), (0x60, 2), (0x70, 0)):
        reserved_flags_end_the_connection(version, _acknowledgement_with_flags(kind), right)
    reserved_flags_end_the_connection(version, lambda flags: raw.subscribe(version, b"t", first=0x80 | flags), 2)
    reserved_flags_end_the_connection(version, lambda flags: raw.unsubscribe(version, b"t", 0xA0 | flags), 2)
    server = Server()
    for kind in (0xC0, 0xE0):
        for flags in range(1, 16):
            peer = server.client("a", version)
            peer.send_bytes(raw.packet(kind | flags))
            assert_ended(peer)
    for flags in range(1, 16):
        fresh = Server().peer(version)
        connect = raw.connect(version)
        fresh.send_bytes(bytes((connect[0] | flags,)) + connect[1:])
        assert_not_let_in(fresh)


def _acknowledgement_with_flags(kind: int) -> Callable[[int], bytes]:
    return lambda flags: raw.packet(kind | flags, raw.number(1))


def what_the_server_sends_has_the_listed_flags(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 2)
    publisher = server.client("p", version)
    for qos in (1, 2):
        publisher.publish("t", b"x", qos)
    acknowledge_all(peer)
    peer.send_bytes(raw.unsubscribe(version, b"t") + b"\xc0\x00")
    assert first_bytes(peer.output) == [0x20, 0x90, 0x32, 0x34, 0x62, 0xB0, 0xD0]
    assert first_bytes(publisher.output) == [0x20, 0x40, 0x50, 0x70]


def byte_order_mark_is_kept(version: int) -> None:
    server = Server()
    subscriber = server.client("s", version)
    subscriber.subscribe("\ufeffa")
    plain = server.client("plain", version)
    plain.subscribe("a")
    server.client("p", version).send_bytes(raw.publish(version, b"\xef\xbb\xbfa", b"x"))
    assert subscriber.messages() == [("\ufeffa", b"x")]
    assert b"\x00\x04\xef\xbb\xbfa" in subscriber.output
    assert plain.received() == []


# --- CONNECT -------------------------------------------------------------------------------------------------------


def second_connect_ends_the_connection(version: int) -> None:
    server = Server()
    peer = server.client("a", version)
    watcher = server.client("w", version)
    watcher.subscribe("a")
    peer.send(Connect("a", version), Publish("a", b"after"))
    assert_ended(peer, reason_codes.PROTOCOL_ERROR)
    assert watcher.received() == []
    for again in (raw.connect(version, level=2), raw.connect(version, level=6), raw.connect(version, name=b"HTTP")):
        peer = server.client("a", version)
        peer.send_bytes(again)
        assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def clean_start_drops_the_session(version: int) -> None:
    server = Server()
    first = durable(server, "a", version)
    first.subscribe("t", 1)
    leave(first)
    server.client("p", version).publish("t", b"waits", 1)
    second = durable(server, "a", version, clean_start=True)
    assert not second.connack.session_present
    assert second.received() == []
    server.client("q", version).publish("t", b"later", 1)
    assert second.received() == []


def session_is_resumed(version: int) -> None:
    server = Server()
    first = durable(server, "a", version)
    first.subscribe("t", 1)
    first.lose()
    server.client("p", version).publish("t", b"waits", 1)
    second = durable(server, "a", version)
    assert second.connack.session_present
    [message] = second.publishes()
    assert (message.topic, message.payload, message.qos, message.dup) == ("t", b"waits", 1, False)
    server.client("q", version).publish("t", b"later")
    assert second.messages() == [("t", b"later")]


def session_is_created(version: int) -> None:
    server = Server()
    first = durable(server, "a", version)
    assert not first.connack.session_present
    leave(first)
    assert durable(server, "a", version).connack.session_present


def will_comes_when_the_connection_breaks(version: int) -> None:
    server = Server()
    watcher = server.client("w", version)
    watcher.subscribe("#", 2)
    peer = server.client("a", version, will=Will("will", b"gone", 1))
    assert watcher.received() == []
    peer.lose()
    [message] = watcher.publishes()
    assert (message.topic, message.payload, message.qos) == ("will", b"gone", 1)


def will_comes_however_the_connection_ends(version: int) -> None:
    """By a broken network, a protocol error, silence, a takeover."""
    endings: list[Callable[[Server, Peer], object]] = [
        lambda server, peer: peer.lose(),
        lambda server, peer: peer.send_bytes(b"\x00\x00"),
        lambda server, peer: server.advance(16),
        lambda server, peer: server.client("a", version),
    ]
    for end in endings:
        server = Server()
        watcher = server.client("w", version)
        watcher.subscribe("will")
        end(server, server.client("a", version, keep_alive=10, will=Will("will", b"gone")))
        assert watcher.messages() == [("will", b"gone")]


def will_comes_once(version: int) -> None:
    server = Server()
    watcher = server.client("w", version)
    watcher.subscribe("will")
    first = durable(server, "a", version)
    leave(first)
    second = server.client("a", version, clean_start=False, will=Will("will", b"gone"))
    second.lose()
    assert watcher.messages() == [("will", b"gone")]
    durable(server, "a", version).lose()
    server.advance(1000)
    assert watcher.received() == []


def disconnect_discards_the_will(version: int) -> None:
    server = Server()
    watcher = server.client("w", version)
    watcher.subscribe("will")
    leave(server.client("a", version, will=Will("will", b"gone")))
    server.advance(1000)
    assert watcher.received() == []
    server.client("a", version).lose()
    assert watcher.received() == []


def no_will_no_message(version: int) -> None:
    server = Server()
    watcher = server.client("w", version)
    watcher.subscribe("#")
    server.client("a", version).lose()
    server.advance(1000)
    assert watcher.received() == []


def will_is_retained(version: int, retain: bool) -> None:
    server = Server()
    server.client("a", version, will=Will("will", b"gone", 1, retain)).lose()
    later = server.client("later", version)
    later.subscribe("will", 1)
    if retain:
        [message] = later.publishes()
        assert (message.payload, message.qos, message.retain) == (b"gone", 1, True)
    else:
        assert later.received() == []


def connect_is_refused(version: int, flags: int, payload: bytes, good_flags: int, good_payload: bytes) -> None:
    """These flags do not go with this payload; the control does."""
    server = Server()
    peer = server.peer(version)
    peer.send_bytes(raw.connect(version, good_payload, good_flags))
    let_in(peer)
    server = Server()
    peer = server.peer(version)
    peer.send_bytes(raw.connect(version, payload, flags))
    assert_not_let_in(peer)


def will_payload(version: int, topic: bytes = b"will", payload: bytes = b"gone") -> bytes:
    """Give what a Will adds to the payload of CONNECT."""
    return raw.properties(version) + raw.string(topic) + raw.string(payload)


def silence_ends_the_connection(version: int) -> None:
    server = Server()
    watcher = server.client("w", version)
    watcher.subscribe("will")
    peer = server.client("a", version, keep_alive=10, will=Will("will", b"gone"))
    server.advance(14.9)
    peer.send(PingReq())
    assert peer.one() == PingResp()
    server.advance(14.9)
    assert not peer.closed
    assert watcher.received() == []
    server.advance(0.2)
    assert peer.closed
    assert watcher.messages() == [("will", b"gone")]


def fields_keep_their_order(version: int) -> None:
    """Client Identifier, Will, User Name, Password: each is found where it stands."""
    rules = Rules()
    server = Server(listener=rules.listener())
    watcher = server.client("w", version)
    watcher.subscribe("#")
    peer = server.peer(version)
    flags = raw.USERNAME | raw.PASSWORD | raw.WILL | raw.CLEAN
    payload = raw.string(b"id") + will_payload(version) + raw.string(b"user") + raw.string(b"secret")
    peer.send_bytes(raw.connect(version, payload, flags))
    let_in(peer)
    assert rules.logins[-1][1:4] == ("id", "user", b"secret")
    peer.lose()
    assert watcher.messages() == [("will", b"gone")]


def client_id_names_the_session(version: int) -> None:
    server = Server()
    leave(durable(server, "a", version))
    assert not durable(server, "A", version).connack.session_present
    assert not durable(server, "a ", version).connack.session_present
    assert durable(server, "a", version).connack.session_present


def client_id_comes_first(version: int) -> None:
    server = Server()
    peer = server.peer(version)
    peer.send_bytes(raw.connect(version, b""))
    assert_not_let_in(peer)
    peer = server.peer(version)
    peer.send_bytes(raw.connect(version, raw.string(b"first")))
    let_in(peer)
    assert list(server.broker.sessions) == ["first"]


def ordinary_client_ids_are_accepted(version: int) -> None:
    server = Server()
    for length in range(1, 24):
        for start in range(0, len(ALPHABET), length):
            client_id = (ALPHABET + ALPHABET)[start : start + length]
            server.client(client_id, version)
            assert client_id in server.broker.sessions


def empty_client_id_gets_one(version: int) -> None:
    server = Server()
    first = server.client("", version)
    second = server.client("", version)
    assert len(server.broker.sessions) == 2
    first.subscribe("t")
    second.publish("t", b"x")
    assert first.messages() == [("t", b"x")]
    assert second.received() == []


def takeover_ends_the_old_connection(version: int) -> None:
    server = Server()
    old = server.client("a", version)
    new = server.client("a", version)
    assert_ended(old, reason_codes.SESSION_TAKEN_OVER)
    new.send(PingReq())
    assert new.one() == PingResp()


def accepted_connect_gets_connack_0(version: int) -> None:
    peer = Server().peer(version)
    peer.send(Connect("a", version))
    assert let_in(peer).reason_code == 0
    assert peer.output[0] == 0x20
    assert peer.output[3] == 0


def nothing_is_processed_after_a_refusal(version: int) -> None:
    server = Server(listener=ListenerLimits(allow_anonymous=False))
    server.listener = ListenerLimits(allow_anonymous=True)
    watcher = server.client("w", version)
    watcher.subscribe("#")
    server.listener = ListenerLimits(allow_anonymous=False)
    peer = server.peer(version)
    peer.send(Connect("a", version), Publish("t", b"x"), PingReq())
    answer = peer.one()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code
    peer.send(Publish("t", b"x"))
    assert peer.received() == []
    assert watcher.received() == []


def connack_comes_first(version: int) -> None:
    """Although messages wait for the client already."""
    server = Server()
    first = durable(server, "a", version)
    first.subscribe("t", 1)
    leave(first)
    server.client("p", version).publish("t", b"waits", 1)
    peer = server.peer(version)
    own = Properties(session_expiry_interval=100) if version == V5 else None
    peer.send(Connect("a", version, False, properties=own))
    packets = peer.received()
    assert isinstance(packets[0], ConnAck)
    assert len(publishes_among(packets)) == 1


def refusal(server: Server, version: int) -> Peer:
    """Give a client that was refused, by a server that lets nobody in though it holds a Session of that name."""
    leave(durable(server, "a", version))
    server.listener = ListenerLimits(allow_anonymous=False)
    peer = server.peer(version)
    own = Properties(session_expiry_interval=100) if version == V5 else None
    peer.send(Connect("a", version, False, properties=own))
    return peer


# --- PUBLISH -------------------------------------------------------------------------------------------------------


def sent_again_with_dup(version: int) -> None:
    for qos in (1, 2):
        server = Server()
        peer = durable(server, "a", version)
        peer.subscribe("t", qos)
        server.client("p", version).publish("t", b"x", qos)
        [first] = peer.publishes()
        assert not first.dup
        peer.lose()
        [again] = durable(server, "a", version).publishes()
        assert again.dup
        assert (again.packet_id, again.payload, again.qos) == (first.packet_id, b"x", qos)


def dup_is_not_passed_on(version: int) -> None:
    for qos in (1, 2):
        server = Server()
        peer = server.client("s", version)
        peer.subscribe("t", 2)
        publisher = server.client("p", version)
        publisher.send(Publish("t", b"x", qos, dup=True, packet_id=3))
        if qos == 2:
            publisher.send(PubRel(3))
        [message] = peer.publishes()
        assert not message.dup


def qos_0_never_has_dup(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 0)
    publisher = server.client("p", version)
    publisher.send(Publish("t", b"x", 1, dup=True, packet_id=3))
    publisher.publish("t", b"y")
    assert [(message.qos, message.dup) for message in peer.publishes()] == [(0, False), (0, False)]


def qos_0_with_dup_ends_the_connection(version: int) -> None:
    peer = Server().client("p", version)
    peer.send_bytes(raw.publish(version, b"t", first=0x38))
    assert_ended(peer)


def qos_3_ends_the_connection(version: int) -> None:
    for first in (0x36, 0x37, 0x3E, 0x3F):
        peer = Server().client("p", version)
        peer.send_bytes(raw.publish(version, b"t", first=first, packet_id=1))
        assert_ended(peer)


def retained_is_replaced_with_its_qos(version: int) -> None:
    server = Server()
    publisher = server.client("p", version)
    publisher.publish("t", b"old", 1, retain=True)
    publisher.publish("t", b"new", 2, retain=True)
    peer = server.client("s", version)
    peer.subscribe("t", 2)
    [message] = peer.publishes()
    assert (message.payload, message.qos) == (b"new", 2)


def empty_retained_message_removes(version: int) -> None:
    server = Server()
    publisher = server.client("p", version)
    standing = server.client("standing", version)
    standing.subscribe("t")
    publisher.publish("t", b"old", retain=True)
    standing.received()
    publisher.publish("t", b"", retain=True)
    assert standing.messages() == [("t", b"")]
    later = server.client("later", version)
    later.subscribe("t")
    assert later.received() == []


def empty_message_is_never_retained(version: int) -> None:
    server = Server()
    server.client("p", version).publish("t", b"", retain=True)
    peer = server.client("s", version)
    peer.subscribe("t")
    assert peer.received() == []
    assert server.broker.retained.count == 0


def unretained_message_leaves_the_retained_one(version: int) -> None:
    server = Server()
    publisher = server.client("p", version)
    publisher.publish("t", b"kept", retain=True)
    publisher.publish("t", b"passes")
    publisher.publish("t", b"")
    publisher.publish("other", b"passes")
    peer = server.client("s", version)
    peer.subscribe("#")
    assert peer.messages() == [("t", b"kept")]


def topic_name_is_checked(version: int) -> None:
    string_is_checked(version, lambda text: raw.publish(version, text))


def wildcards_in_a_topic_name_end_the_connection(version: int) -> None:
    for topic in (b"a/+", b"#", b"+", b"a/#", b"a+b", b"a#"):
        server = Server()
        watcher = server.client("w", version)
        watcher.subscribe("#")
        peer = server.client("p", version)
        peer.send_bytes(raw.publish(version, topic))
        assert_ended(peer)
        assert watcher.received() == []


def what_a_subscription_brings_matches_it(version: int) -> None:
    server = Server()
    publisher = server.client("p", version)
    topics = ["a", "a/b", "a/b/c", "b/a", "A/b", "a//b", "/a/b", "a/b/"]
    expected = {
        "a/b": ["a/b"],
        "a/+": ["a/b"],
        "a/#": ["a", "a/b", "a/b/c", "a//b", "a/b/"],
        "+/b": ["a/b", "A/b"],
        "+/+/+": ["a/b/c", "a//b", "/a/b", "a/b/"],
        "/#": ["/a/b"],
        "+": ["a"],
        "a/b/": ["a/b/"],
    }
    for topic_filter, wanted in expected.items():
        peer = server.client("s", version)
        peer.subscribe(topic_filter)
        for topic in topics:
            publisher.publish(topic)
        assert [topic for topic, _payload in peer.messages()] == wanted


def publish_is_answered_by_its_qos(version: int) -> None:
    server = Server()
    server.client("s", version).subscribe("t")
    peer = server.client("p", version)
    peer.send(Publish("t", b"x"))
    assert peer.received() == []
    peer.send(Publish("t", b"x", 1, packet_id=11))
    assert peer.one() == PubAck(11)
    peer.send(Publish("t", b"x", 2, packet_id=12))
    assert peer.one() == PubRec(12)
    peer.send(PubRel(12))
    assert peer.one() == PubComp(12)


def overlapping_subscriptions_reach_the_highest_qos(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    for topic_filter, qos in (("a/#", 0), ("a/+", 2), ("a/b", 1)):
        peer.subscribe(topic_filter, qos)
    server.client("p", version).publish("a/b", b"x", 2)
    assert max(message.qos for message in peer.publishes()) == 2


# --- SUBSCRIBE and UNSUBSCRIBE -------------------------------------------------------------------------------------


def subscribe_is_answered(version: int, packet_id: int) -> None:
    peer = Server().client("s", version)
    peer.send(Subscribe(packet_id, [SubscriptionRequest("a", 1)]))
    assert peer.one() == SubAck(packet_id, [1])


def subscribe_without_a_filter_ends_the_connection(version: int) -> None:
    peer = Server().client("s", version)
    peer.send_bytes(raw.packet(0x82, raw.number(7) + raw.properties(version)))
    assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def unsubscribe_without_a_filter_ends_the_connection(version: int) -> None:
    peer = Server().client("s", version)
    peer.send_bytes(raw.packet(0xA2, raw.number(7) + raw.properties(version)))
    assert_ended(peer, reason_codes.PROTOCOL_ERROR)


def identical_filter_replaces(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 2)
    peer.subscribe("t", 1)
    publisher = server.client("p", version)
    publisher.publish("t", b"x", 2)
    [message] = peer.publishes()
    assert message.qos == 1
    peer.send(PubAck(message.packet_id), Unsubscribe(2, ["t"]))
    peer.expect(UnsubAck)
    publisher.publish("t", b"y", 2)
    assert peer.received() == []


def replacing_brings_retained_messages_and_loses_none(version: int) -> None:
    server = Server()
    publisher = server.client("p", version)
    publisher.publish("t", b"kept", retain=True)
    peer = server.client("s", version)
    peer.subscribe("t", 1)
    assert peer.messages() == [("t", b"kept")]
    for count in range(5):
        publisher.publish("t", b"%d" % count, 1)
        peer.send(Subscribe(1, [SubscriptionRequest("t", 1)]))
    taken = publishes_among(peer.received())
    assert [message.payload for message in taken if not message.retain] == [b"0", b"1", b"2", b"3", b"4"]
    assert [message.payload for message in taken if message.retain] == [b"kept"] * 5


def several_filters_one_suback(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    requests = [SubscriptionRequest("a", 0), SubscriptionRequest("b", 2), SubscriptionRequest("c", 1)]
    peer.send(Subscribe(3, [*requests, SubscriptionRequest("a", 1)]))
    assert peer.one() == SubAck(3, [0, 2, 1, 1])
    publisher = server.client("p", version)
    for topic in ("a", "b", "c"):
        publisher.publish(topic, b"x", 2)
    assert [(message.topic, message.qos) for message in peer.publishes()] == [("a", 1), ("b", 2), ("c", 1)]


def granted_qos_is_told(version: int) -> None:
    for allowed in (0, 1, 2):
        peer = Server(listener=ListenerLimits(allow_anonymous=True, max_qos=allowed)).client("s", version)
        peer.send(Subscribe(3, [SubscriptionRequest("a", qos) for qos in (0, 1, 2)]))
        assert peer.one() == SubAck(3, [min(qos, allowed) for qos in (0, 1, 2)])


def messages_come_at_the_lower_qos(version: int) -> None:
    for published in (0, 1, 2):
        for granted in (0, 1, 2):
            server = Server()
            peer = server.client("s", version)
            peer.subscribe("t", granted)
            server.client("p", version).publish("t", b"x", published)
            [message] = peer.publishes()
            assert message.qos == min(published, granted)


def unsubscribe_compares_exactly(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    for topic_filter in ("a/+", "a/#", "a/b"):
        peer.subscribe(topic_filter)
    peer.send(Unsubscribe(2, ["a/b", "A/#", "a", "/a/b", "a/b ", "+/b"]))
    peer.expect(UnsubAck)
    server.client("p", version).publish("a/b")
    assert len(peer.publishes()) == 2


def unsubscribed_filter_brings_nothing_new(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("a/#", 1)
    peer.subscribe("b", 1)
    peer.send(Unsubscribe(2, ["a/#"]))
    peer.expect(UnsubAck)
    publisher = server.client("p", version)
    publisher.publish("a/b", b"x", 1)
    publisher.publish("b", b"y", 1)
    assert [message.topic for message in peer.publishes()] == ["b"]


def deliveries_that_began_are_completed(version: int) -> None:
    server = Server()
    peer = durable(server, "s", version)
    peer.subscribe("t", 2)
    publisher = server.client("p", version)
    publisher.publish("t", b"one", 1)
    publisher.publish("t", b"two", 2)
    first, second = peer.publishes()
    peer.send(Unsubscribe(2, ["t"]))
    peer.expect(UnsubAck)
    peer.lose()
    peer = durable(server, "s", version)
    assert [(message.packet_id, message.payload, message.dup) for message in peer.publishes()] == [
        (first.packet_id, b"one", True),
        (second.packet_id, b"two", True),
    ]
    peer.send(PubAck(first.packet_id), PubRec(second.packet_id))
    assert peer.one() == PubRel(second.packet_id)
    peer.send(PubComp(second.packet_id))
    assert server.broker.sessions["s"].in_flight == {}


def unsubscribe_is_answered(version: int, packet_id: int, subscribed: bool) -> None:
    peer = Server().client("s", version)
    if subscribed:
        peer.subscribe("a")
    peer.send(Unsubscribe(packet_id, ["a"]))
    answer = peer.one()
    assert isinstance(answer, UnsubAck)
    assert answer.packet_id == packet_id


def several_filters_one_unsuback(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    for topic_filter in ("a", "b", "c"):
        peer.subscribe(topic_filter)
    peer.send(Unsubscribe(3, ["a", "none", "c", "a"]))
    answer = peer.one()
    assert isinstance(answer, UnsubAck)
    assert answer.packet_id == 3
    publisher = server.client("p", version)
    for topic in ("a", "b", "c"):
        publisher.publish(topic)
    assert peer.messages() == [("b", b"x")]


def ping_is_answered(version: int) -> None:
    peer = Server().client("s", version)
    peer.send(PingReq(), PingReq())
    assert peer.received() == [PingResp(), PingResp()]


# --- sessions, QoS, order ------------------------------------------------------------------------------------------


def session_lasts_while_connected(version: int) -> None:
    server = Server()
    peer = server.client("a", version)
    peer.subscribe("t", 1)
    server.advance(1_000_000)
    server.client("p", version).publish("t", b"x", 1)
    assert peer.messages() == [("t", b"x")]


def identifiers_of_the_server_are_free(version: int) -> None:
    """More than a thousand messages, with one that is never acknowledged."""
    for qos in (1, 2):
        server = Server()
        peer = server.client("s", version)
        peer.subscribe("t", 2)
        publisher = server.client("p", version)
        publisher.publish("t", b"stays", qos)
        [stays] = peer.publishes()
        seen = set()
        for _count in range(1100):
            publisher.publish("t", b"x", qos)
            [message] = acknowledge_all(peer)
            assert message.packet_id != 0
            assert message.packet_id != stays.packet_id
            assert message.qos == qos
            assert not message.dup
            seen.add(message.packet_id)
        assert stays.packet_id in server.broker.sessions["s"].in_flight
        for _count in range(10):
            publisher.publish("t", b"x", qos)
        together = ids(peer.publishes())
        assert len(set(together)) == 10
        assert stays.packet_id not in together


def qos_1_is_unacknowledged_until_puback(version: int) -> None:
    server = Server()
    peer = durable(server, "s", version)
    peer.subscribe("t", 1)
    server.client("p", version).publish("t", b"x", 1)
    [first] = peer.publishes()
    peer.send(PubAck(first.packet_id % 65535 + 1))
    peer.lose()
    peer = durable(server, "s", version)
    [again] = peer.publishes()
    assert again.packet_id == first.packet_id
    peer.send(PubAck(again.packet_id))
    peer.lose()
    assert durable(server, "s", version).received() == []


def qos_1_is_taken_over_and_acknowledged(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 1)
    publisher = server.client("p", version)
    publisher.send(Publish("t", b"x", 1, packet_id=77))
    assert publisher.one() == PubAck(77)
    assert peer.messages() == [("t", b"x")]


def qos_1_identifier_means_a_new_message_after_puback(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 0)
    publisher = server.client("p", version)
    publisher.publish("t", b"x", 1, packet_id=5)
    publisher.send(Publish("t", b"x", 1, dup=True, packet_id=5))
    assert publisher.one() == PubAck(5)
    assert peer.messages() == [("t", b"x"), ("t", b"x")]


def qos_2_publish_is_unacknowledged_until_pubrec(version: int) -> None:
    server = Server()
    peer = durable(server, "s", version)
    peer.subscribe("t", 2)
    server.client("p", version).publish("t", b"x", 2)
    [first] = peer.publishes()
    assert first.packet_id != 0
    peer.send(PubAck(first.packet_id))  # the wrong acknowledgement
    peer.lose()
    peer = durable(server, "s", version)
    [again] = peer.publishes()
    assert (again.packet_id, again.dup) == (first.packet_id, True)
    peer.send(PubRec(again.packet_id))
    peer.expect(PubRel)
    peer.lose()
    assert publishes_among(durable(server, "s", version).received()) == []


def qos_2_pubrec_is_answered_by_pubrel(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 2)
    server.client("p", version).publish("t", b"x", 2)
    [message] = peer.publishes()
    peer.send(PubRec(message.packet_id))
    assert peer.one() == PubRel(message.packet_id)
    assert peer.output[-4] == 0x62
    peer.send(PubRec(message.packet_id))
    assert peer.one() == PubRel(message.packet_id)


def qos_2_pubrel_is_unacknowledged_until_pubcomp(version: int) -> None:
    server = Server()
    peer = durable(server, "s", version)
    peer.subscribe("t", 2)
    server.client("p", version).publish("t", b"x", 2)
    [message] = peer.publishes()
    peer.send(PubRec(message.packet_id))
    peer.expect(PubRel)
    for _time in range(2):
        peer.lose()
        peer = durable(server, "s", version)
        assert peer.one() == PubRel(message.packet_id)
    peer.send(PubComp(message.packet_id))
    peer.lose()
    assert durable(server, "s", version).received() == []


def qos_2_is_not_published_again_after_pubrel(version: int) -> None:
    server = Server()
    peer = durable(server, "s", version)
    peer.subscribe("t", 2)
    server.client("p", version).publish("t", b"x", 2)
    [message] = peer.publishes()
    peer.send(PubRec(message.packet_id))
    peer.expect(PubRel)
    peer.lose()
    assert durable(server, "s", version).received() == [PubRel(message.packet_id)]


def qos_2_is_taken_over_and_answered(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 2)
    publisher = durable(server, "p", version)
    publisher.send(Publish("t", b"x", 2, packet_id=77))
    assert publisher.one() == PubRec(77)
    publisher.lose()
    publisher = durable(server, "p", version)
    publisher.send(PubRel(77))
    assert publisher.one() == PubComp(77)
    assert peer.messages() == [("t", b"x")]


def qos_2_repetition_is_answered_and_delivered_once(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 2)
    publisher = durable(server, "p", version)
    publisher.send(Publish("t", b"x", 2, packet_id=77))
    publisher.send(Publish("t", b"x", 2, dup=True, packet_id=77))
    assert publisher.received() == [PubRec(77), PubRec(77)]
    publisher.lose()
    publisher = durable(server, "p", version)
    publisher.send(Publish("t", b"x", 2, dup=True, packet_id=77))
    assert publisher.one() == PubRec(77)
    publisher.send(PubRel(77), PubRel(77))
    assert [packet.type for packet in publisher.received()] == [PubComp(1).type] * 2
    assert peer.messages() == [("t", b"x")]


def qos_2_pubrel_is_answered_by_pubcomp(version: int) -> None:
    server = Server()
    server.client("s", version).subscribe("t", 2)
    publisher = server.client("p", version)
    publisher.send(Publish("t", b"x", 2, packet_id=0x1234), Publish("t", b"y", 2, packet_id=0x3412))
    publisher.received()
    publisher.send(PubRel(0x3412))
    assert publisher.one() == PubComp(0x3412)
    publisher.send(PubRel(0x1234))
    assert publisher.one() == PubComp(0x1234)


def qos_2_identifier_means_a_new_message_after_pubcomp(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 0)
    publisher = server.client("p", version)
    publisher.publish("t", b"x", 2, packet_id=5)
    publisher.publish("t", b"x", 2, packet_id=5)
    assert peer.messages() == [("t", b"x"), ("t", b"x")]


def unacknowledged_packets_are_sent_again(version: int) -> None:
    """PUBLISH at both QoS and PUBREL, with their identifiers, once and only on return."""
    server = Server()
    peer = durable(server, "s", version)
    peer.subscribe("t", 2)
    publisher = server.client("p", version)
    for payload, qos in ((b"a", 1), (b"b", 2), (b"c", 2), (b"d", 1)):
        publisher.publish("t", payload, qos)
    a, b, c, d = ids(peer.publishes())
    peer.send(PubRec(c))
    peer.expect(PubRel)
    server.advance(3600)
    assert peer.received() == []
    peer.lose()
    peer = durable(server, "s", version)
    packets = peer.received()
    assert [(p.packet_id, p.payload, p.dup) for p in publishes_among(packets)] == [
        (a, b"a", True),
        (b, b"b", True),
        (d, b"d", True),
    ]
    assert [packet.packet_id for packet in packets if isinstance(packet, PubRel)] == [c]
    server.advance(3600)
    peer.send(PingReq())
    assert peer.one() == PingResp()


def every_matching_session_gets_the_message(version: int) -> None:
    server = Server()
    away = durable(server, "away", version)
    away.subscribe("a/#", 1)
    leave(away)
    here = server.client("here", version)
    here.subscribe("+/b", 1)
    other = server.client("other", version)
    other.subscribe("b/#", 1)
    server.client("p", version).publish("a/b", b"x", 1)
    assert here.messages() == [("a/b", b"x")]
    assert other.received() == []
    assert durable(server, "away", version).messages() == [("a/b", b"x")]


def sent_again_in_the_first_order(version: int) -> None:
    """Also behind identifiers that came round again, and with some acknowledged in between."""
    server = Server()
    peer = durable(server, "s", version)
    peer.subscribe("t", 2)
    publisher = server.client("p", version)
    for _count in range(1015):
        publisher.publish("t", b"x", 1)
        acknowledge_all(peer)
    for count in range(30):
        publisher.publish("t", b"%d" % count, 1 + count % 2)
    first = peer.publishes()
    assert ids(first) != sorted(ids(first)), "the identifiers have to come round for this"
    for message in first[3:6]:
        peer.send(PubAck(message.packet_id) if message.qos == 1 else PubRec(message.packet_id, 0))
    peer.received()
    kept = [message for message in first if message not in first[3:6]]
    peer.lose()
    again = publishes_among(durable(server, "s", version).received())
    assert payloads(again)[: len(kept)] == payloads(kept)
    assert ids(again)[: len(kept)] == ids(kept)


def acknowledgements_keep_the_order_of_messages(version: int, qos: int) -> None:
    """Also where the first of them waits for the store and the others could go."""
    server = Server(slow_store=True)
    away = durable(server, "away", version)
    away.send(Subscribe(1, [SubscriptionRequest("slow", 2)]))
    publisher = durable(server, "p", version)
    server.settle()
    publisher.received()
    order = [3, 1, 2]
    for packet_id in order:
        publisher.send(Publish("slow" if packet_id == 3 else "quick", b"x", qos, packet_id=packet_id))
    server.settle()
    answers = publisher.received()
    kind = PubAck if qos == 1 else PubRec
    assert [packet.packet_id for packet in answers if isinstance(packet, kind)] == order


def pubrels_keep_the_order_of_pubrecs(version: int) -> None:
    server = Server()
    peer = server.client("s", version)
    peer.subscribe("t", 2)
    publisher = server.client("p", version)
    for _count in range(3):
        publisher.publish("t", b"x", 2)
    order = ids(peer.publishes())[::-1]
    peer.send(*(PubRec(packet_id) for packet_id in order))
    assert peer.received() == [PubRel(packet_id) for packet_id in order]


def messages_keep_their_order(version: int) -> None:
    """At each QoS, through the queue, the window and a return."""
    for qos in (0, 1, 2):
        server = Server(Limits(max_inflight_messages=3))
        peer = durable(server, "s", version)
        peer.subscribe("t/#", qos)
        publisher = server.client("p", version)
        taken: list[Publish] = []
        for count in range(10):
            publisher.publish("t/a", b"%d" % count, qos)
        if qos:
            taken += publishes_among(peer.received())[:0]
            peer.lose()
            peer = durable(server, "s", version)
        taken += acknowledge_all(peer)
        for count in range(10, 20):
            publisher.publish("t/a", b"%d" % count, qos)
        taken += acknowledge_all(peer)
        assert payloads(taken) == [b"%d" % count for count in range(20)]


# --- topics --------------------------------------------------------------------------------------------------------


def filter_ends_the_connection(version: int, topic_filter: bytes, reason_code: int | None = None) -> None:
    """SUBSCRIBE to this filter ends the connection."""
    peer = Server().client("s", version)
    peer.send_bytes(raw.subscribe(version, topic_filter))
    assert_ended(peer, reason_codes.MALFORMED_PACKET if reason_code is None else reason_code)
    assert peer.server.broker.router.tree.count == 0


def filter_is_accepted(version: int, topic_filter: bytes) -> None:
    """SUBSCRIBE to this filter is granted."""
    peer = Server().client("s", version)
    peer.send_bytes(raw.subscribe(version, topic_filter))
    assert peer.one() == SubAck(7, [0])


def many_level_wildcard_is_the_last_level(version: int) -> None:
    for good in (b"#", b"a/#", b"/#", b"+/#"):
        filter_is_accepted(version, good)
    for bad in (b"a#", b"#/a", b"a/#/b", b"##", b"a/b#", b"#a"):
        filter_ends_the_connection(version, bad)


def one_level_wildcard_is_a_level(version: int) -> None:
    for good in (b"+", b"a/+", b"+/a", b"a/+/b", b"/+", b"+/+"):
        filter_is_accepted(version, good)
    for bad in (b"a+", b"+a", b"a/+b", b"a/b+/c", b"++"):
        filter_ends_the_connection(version, bad)


def wildcards_do_not_match_dollar_topics(version: int) -> None:
    server = Server()
    publisher = server.client("p", version)
    publisher.publish("$own/a", b"kept", retain=True)
    expected = {"#": 0, "+/a": 0, "+/#": 0, "+/+": 0, "$own/a": 2, "$own/#": 2, "$own/+": 2}
    for topic_filter, count in expected.items():
        peer = server.client("s", version)
        peer.subscribe(topic_filter)
        publisher.publish("$own/a", b"live")
        assert len(peer.publishes()) == count, topic_filter


def topics_are_not_empty(version: int) -> None:
    peer = Server().client("p", version)
    peer.send_bytes(raw.publish(version, b""))
    assert_ended(peer, reason_codes.PROTOCOL_ERROR)
    filter_ends_the_connection(version, b"")
    peer = Server().client("s", version)
    peer.send_bytes(raw.unsubscribe(version, b""))
    assert_ended(peer)
    filter_is_accepted(version, b"/")


def topics_have_no_nul(version: int) -> None:
    string_is_checked(version, lambda text: raw.publish(version, text), (b"\x00", b"a\x00b"))
    string_is_checked(version, lambda text: raw.subscribe(version, text), (b"\x00", b"a\x00b"))
    string_is_checked(version, lambda text: raw.unsubscribe(version, text), (b"\x00", b"a\x00b"))


def topics_of_65535_bytes_are_carried(version: int) -> None:
    """The length field cannot say more; up to that nothing is cut off."""
    topic = "t" * 65_535
    server = Server()
    peer = server.client("s", version)
    peer.subscribe(topic)
    publisher = server.client("p", version)
    publisher.publish(topic)
    publisher.publish(topic[:-1])
    assert [name for name, _payload in peer.messages()] == [topic]


def nothing_is_normalised(version: int) -> None:
    topics = ["a/b", "A/b", "a//b", "a/b/", "/a/b", "a /b", "a/./b", "\u00e9", "e\u0301", "\ufb01", "fi", "a/\ufffd"]
    server = Server()
    publisher = server.client("p", version)
    for topic_filter in topics:
        peer = server.client("s", version)
        peer.subscribe(topic_filter)
        for topic in topics:
            publisher.publish(topic)
        assert [topic for topic, _payload in peer.messages()] == [topic_filter]


def bytes_may_come_in_any_pieces(version: int) -> None:
    """An ordered stream of bytes is all that is asked of the transport."""
    server = Server()
    watcher = server.client("w", version)
    watcher.subscribe("#")
    peer = server.peer(version)
    stream = raw.connect(version) + raw.publish(version, b"a", b"1" * 300) + raw.publish(version, b"b") + b"\xc0\x00"
    for at in range(len(stream)):
        peer.send_bytes(stream[at : at + 1])
    assert watcher.messages() == [("a", b"1" * 300), ("b", b"x")]
    answers = peer.received()
    assert isinstance(answers[0], ConnAck)
    assert answers[1:] == [PingResp()]


def a_violation_ends_only_its_own_connection(version: int) -> None:
    server = Server()
    bystander = server.client("b", version)
    bystander.subscribe("t")
    violations = [
        b"\x00\x00",
        b"\xf0\x01\x07",
        b"\x20\x02\x00\x00",
        b"\xd0\x00",
        b"\x82\x02\x00\x01",
        b"\x40\x02\x00\x00",
    ]
    for violation in violations:
        peer = server.client("p", version)
        peer.send(Publish("t", b"before"))
        peer.send_bytes(violation + raw.publish(version, b"t", b"after"))
        assert peer.closed
        assert bystander.messages() == [("t", b"before")]
    assert not bystander.closed


def first_bytes(data: bytes) -> list[int]:
    """Give the first byte of each packet in a stream."""
    found = []
    while data:
        found.append(data[0])
        length, at = read_variable_byte_integer(data, 1, len(data))
        data = data[at + length :]
    return found
