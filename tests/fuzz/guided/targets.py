"""What coverage-guided fuzzing runs: each target takes any bytes and raises when something that must hold does not."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from lockgate.broker.ports import NEVER, Message
from lockgate.broker.retained import Retained
from lockgate.broker.session import Session, Subscription
from lockgate.broker.topic_tree import TopicTree
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import V3_1, V3_1_1, V5, Connect, Packet
from lockgate.mqtt.properties import decode_properties, encode_properties
from lockgate.mqtt.topics import check_topic_filter, check_topic_name, matches
from lockgate.transport.layer import TransportError
from lockgate.transport.proxy_protocol import BLOCK_BYTES, SIGNATURE_V1, SIGNATURE_V2, ProxyProtocol
from lockgate.transport.websocket import WebSocket
from tests.support.packets import BAD, EVERY_PROPERTY, GOOD

T = TypeVar("T")
_VERSIONS: Final = (0, V3_1, V3_1_1, V5)
_WHERE: Final = 16  # kinds of packet and the Will
_WEBSOCKET_HEAD: Final = 4096
_UPGRADE: Final = (
    b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
)


def _shown(text: str) -> str:
    """Check that a text with something of the peer's in it may stand in a log."""
    assert text.isprintable(), f"not escaped: {text!r}"
    return text


def _pieces(data: bytes, size: int) -> list[bytes]:
    size = size or len(data) or 1
    return [data[at : at + size] for at in range(0, len(data), size)]


# --- decoder --------------------------------------------------------------------------------------------------------


def _decode(data: bytes, version: int, limit: int, piece: int) -> tuple[list[Packet], str]:
    decoder = Decoder(version, limit, True)
    packets: list[Packet] = []
    try:
        for part in _pieces(data, piece):
            decoder.feed(part)
            while (packet := decoder.next_packet()) is not None:
                packets.append(packet)
                if isinstance(packet, Connect):
                    decoder.version = packet.version
    except MqttError as error:
        return packets, f"{type(error).__name__} {error.reason_code} {_shown(error.detail)}"
    return packets, ""


def decoder(data: bytes) -> None:
    """The same packets whatever the pieces, and each the same after it is encoded and decoded again."""
    if len(data) < 2:
        return
    version = _VERSIONS[data[0] & 3]
    limit = (0, 0, 20, 200)[data[0] >> 2 & 3]
    body = data[2:]
    packets, error = _decode(body, version, limit, 0)
    assert (packets, error) == _decode(body, version, limit, 1 + data[1] % 17)
    for packet in packets:
        if isinstance(packet, Connect):
            version = packet.version
        again, error = _decode(encode(packet, version), 0 if isinstance(packet, Connect) else version, 0, 0)
        assert again == [packet], (packet, again, error)
        assert not error


# --- properties -----------------------------------------------------------------------------------------------------


def properties(data: bytes) -> None:
    """Properties of any packet are read or refused, and survive being written."""
    if not data:
        return
    where = 1 << data[0] % _WHERE
    body = data[1:]
    try:
        found, end = decode_properties(body, 0, len(body), where)
    except MqttError:
        return
    assert 0 < end <= len(body)
    written = encode_properties(found)
    assert decode_properties(written, 0, len(written), where) == (found, len(written))
    repr(found)


# --- topics ---------------------------------------------------------------------------------------------------------


def _is_name(text: str) -> bool:
    return bool(text) and not set(text) & {"#", "+"} and len(text.split("/")) <= 200


def _is_filter(text: str) -> bool:
    if text.startswith("$share/"):
        _share, group, rest = [*text.split("/", 2), "", ""][:3]
        if not group or set(group) & {"#", "+"} or not rest:
            return False
        text = rest
    levels = text.split("/")
    if not text or len(levels) > 200 or "#" in levels[:-1]:
        return False
    return all(level in ("#", "+") or not set(level) & {"#", "+"} for level in levels)


def _matches(topic_filter: Sequence[str], name: Sequence[str]) -> bool:
    """The definition of §4.7 by recursion, level by level."""
    if not topic_filter:
        return not name
    if topic_filter[0] == "#":
        return True
    return bool(name) and topic_filter[0] in ("+", name[0]) and _matches(topic_filter[1:], name[1:])


def _allowed(check: Callable[[str], None], text: str) -> bool:
    try:
        check(text)
    except MqttError:
        return False
    return True


def topics(data: bytes) -> None:
    """Names and filters are judged as the specification words it, and tree and matcher agree with the definition."""
    texts = [text for text in data.decode("utf-8", "ignore").replace("\0", "").split("\n") if text]
    names: list[str] = []
    filters: list[str] = []
    for text in texts[:12]:
        name, topic_filter = _is_name(text), _is_filter(text)
        assert _allowed(check_topic_name, text) == name, f"as a name: {text!r}"
        assert _allowed(check_topic_filter, text) == topic_filter, f"as a filter: {text!r}"
        if name:
            names.append(text)
        if topic_filter and not text.startswith("$share/"):
            filters.append(text)
    tree, retained = TopicTree(), Retained()
    subscriptions = [_subscription(f"c{number}", one) for number, one in enumerate(filters)]
    for subscription in subscriptions:
        tree.add(subscription.topic_filter, "", subscription)
    for name_text in names:
        retained.set(Message(name_text, b"x", 0, True, None, NEVER, ""))
    for name_text in names:
        expected = [one for one in filters if _defined(one, name_text)]
        assert [one for one in filters if matches(one, name_text)] == expected, f"{name_text!r} in {filters}"
        found = sorted(one.topic_filter for one in tree.match(name_text).subscriptions)
        assert found == sorted(expected), f"{name_text!r} in {filters}"
    for one in filters:
        kept = {message.topic for message in retained.match(one, 0.0)}
        assert kept == {name_text for name_text in names if _defined(one, name_text)}, f"{one!r} in {names}"
    for number, subscription in enumerate(subscriptions):
        tree.remove(subscription.topic_filter, "", f"c{number}")
    for name_text in set(names):
        assert retained.remove(name_text)
    assert tree._root.is_empty()
    assert retained._root.is_empty()
    assert (tree.count, retained.count, retained.size_bytes) == (0, 0, 0)


def _defined(topic_filter: str, name: str) -> bool:
    if name.startswith("$") and topic_filter[0] in "#+":
        return False
    return _matches(topic_filter.split("/"), name.split("/"))


def _subscription(client_id: str, topic_filter: str) -> Subscription:
    return Subscription(Session(client_id, 0, None), topic_filter, topic_filter, "", 0, False, False, 0)


# --- WebSocket ------------------------------------------------------------------------------------------------------


def _receive(data: bytes, opened: bool, piece: int) -> tuple[bytes, bytes, bool, str]:
    layer = WebSocket((), _WEBSOCKET_HEAD)
    payload = b""
    error = ""
    try:
        if opened:
            layer.receive(_UPGRADE)
            layer.send(b"")
        for part in _pieces(data, piece):
            payload += layer.receive(part)
            assert len(layer._rest) <= max(_WEBSOCKET_HEAD, 140), f"{len(layer._rest)} bytes held back"
    except TransportError as problem:
        error = _shown(str(problem))
    said = layer.finish(b"")
    assert len(said) < 2_000, f"{len(said)} bytes for one peer"
    return payload, said, layer.ended, error


def websocket(data: bytes) -> None:
    """A handshake or frames: the same payload, answer and error whatever the pieces, and little ever held."""
    if len(data) < 2:
        return
    opened = data[0] & 1 == 1
    body = data[2:]
    whole = _receive(body, opened, 0)
    piecewise = _receive(body, opened, 1 + data[1] % 17)
    # What stands before a broken frame in the same piece goes down with it.
    assert whole[0] == piecewise[0] or (whole[3] and piecewise[0].startswith(whole[0])), (whole, piecewise)
    assert len(whole[0]) <= len(body)
    if opened:
        assert whole[1:] == piecewise[1:], (whole, piecewise)
    else:  # which mistake a handshake looks like may depend on how much was there to look at
        assert bool(whole[3]) == bool(piecewise[3]), (whole, piecewise)


# --- PROXY protocol -------------------------------------------------------------------------------------------------


def _read_header(data: bytes, version: int, piece: int) -> tuple[bytes, object, bool]:
    layer = ProxyProtocol(version)
    rest = b""
    try:
        for part in _pieces(data, piece):
            rest += layer.receive(part)
            assert len(layer._buffer) <= BLOCK_BYTES + 16
    except TransportError as problem:
        _shown(str(problem))  # which mistake it looks like may depend on how much was there to look at
        return b"", None, True
    if layer.header is not None and layer.header.source is not None:
        assert layer.header.source.isprintable()
    return rest, layer.header, False


def proxy(data: bytes) -> None:
    """A header of either version: the same client and the same bytes behind it, whatever the pieces."""
    if len(data) < 2:
        return
    version = 1 + (data[0] & 1)
    assert _read_header(data[2:], version, 0) == _read_header(data[2:], version, 1 + data[1] % 17)


# --- what they begin with -------------------------------------------------------------------------------------------


def _frame(first: int, payload: bytes) -> bytes:
    mask = b"\1\2\3\4"
    masked = bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))
    return bytes((first, 0x80 | len(payload))) + mask + masked


def _v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE_V2 + bytes((0x20 | command, family)) + len(body).to_bytes(2, "big") + body


def _seeds() -> dict[str, list[bytes]]:
    table = [(case.version, case.data) for case in GOOD] + [(case.version, case.data) for case in BAD]
    tls = b"\x20\x00\x14\x07\0\0\0\0\x21\0\x07TLSv1.3\x22\0\x02cn"
    return {
        "decoder": [bytes((_VERSIONS.index(version), 3)) + data for version, data in table],
        "properties": [
            bytes((number,)) + bytes((len(part),)) + part
            for number in range(_WHERE)
            for part in (bytes.fromhex(row[1].replace(" ", "")) for row in EVERY_PROPERTY)
        ],
        "topics": [
            text.encode()
            for text in (
                "a/b\na/+\na/#\n#\n+/b",
                "/\n//\n+/+\n/#",
                "$SYS/a\n#\n+/a\n$SYS/#",
                "$share/g/a\n$share//a\na#",
            )
        ],
        "websocket": [
            b"\0\2" + _UPGRADE + _frame(0x82, b"\x10\x0c"),
            b"\1\2" + _frame(0x02, b"ab") + _frame(0x89, b"ping") + _frame(0x80, b"cd") + _frame(0x88, b"\x03\xe8"),
            b"\1\1" + b"\x82\xfe\0\x80\1\2\3\4" + bytes(128) + _frame(0x8A, b""),
            b"\1\1" + b"\x82\xff\0\0\0\0\0\1\0\0\1\2\3\4" + bytes(64),
            b"\0\1GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        ],
        "proxy": [
            b"\0\1PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n\x10\x0c",
            b"\0\3PROXY TCP6 2001:db8::1 2001:db8::2 65535 1883\r\nrest",
            b"\0\5" + SIGNATURE_V1 + b"UNKNOWN ignored\r\n",
            b"\1\1" + _v2(1, 0x11, bytes(12) + tls) + b"rest",
            b"\1\7" + _v2(1, 0x21, bytes(36)),
            b"\1\7" + _v2(1, 0x31, b"/run/x" + bytes(210)),
            b"\1\2" + _v2(0, 0, b"") + b"rest",
        ],
    }


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "decoder": decoder,
    "properties": properties,
    "topics": topics,
    "websocket": websocket,
    "proxy": proxy,
}
SEEDS: Final = _seeds()
