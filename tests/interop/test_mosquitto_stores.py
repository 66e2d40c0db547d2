"""Stores that Debian's mosquitto wrote are read, and it reads what our tests write as older versions."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from lockgate.broker.ports import AWAITING_PUBACK, AWAITING_PUBCOMP, AWAITING_PUBREC, Delivery
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from lockgate.mqtt.properties import Properties
from lockgate.storage import mosquitto_db
from lockgate.storage.imported import NEVER_EXPIRES, Imported
from lockgate.storage.importing import import_once
from lockgate.storage.store import SqliteStore
from lockgate.telemetry.clock import Clock
from tests.support.gateway import Gateway
from tests.support.imports import options, plain
from tests.support.mosquitto_stores import EVERYTHING, DbWriter, fill
from tests.support.peers import Mosquitto

pytestmark = pytest.mark.peers
P = TypeVar("P", bound=Packet)


class RawClient:
    """Sends what it is told and acknowledges nothing by itself."""

    def __init__(self, port: int, connect: Connect) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._version = connect.version
        self._decoder = Decoder(connect.version)
        self.send(connect)
        self.session_present = self.expect(ConnAck).session_present

    def send(self, *packets: Packet) -> None:
        self._socket.sendall(b"".join(encode(packet, self._version) for packet in packets))

    def expect(self, kind: type[P]) -> P:
        """Give the next packet, which must be of this kind."""
        while (packet := self._decoder.next_packet()) is None:
            data = self._socket.recv(65536)
            assert data, "the broker closed the connection"
            self._decoder.feed(data)
        assert isinstance(packet, kind), packet
        return packet

    def take(self, count: int) -> list[Publish]:
        """Give so many messages and acknowledge them."""
        taken: list[Publish] = []
        open_ids: set[int] = set()
        while len(taken) < count or open_ids:
            packet = self.expect(Packet)
            if isinstance(packet, PubRel):
                self.send(PubComp(packet.packet_id))
                open_ids.remove(packet.packet_id)
            else:
                assert isinstance(packet, Publish), packet
                taken.append(packet)
                if packet.qos == 2:
                    open_ids.add(packet.packet_id)
                self.send(PubAck(packet.packet_id) if packet.qos == 1 else PubRec(packet.packet_id))
        return taken

    def subscribe(self, *requests: SubscriptionRequest, identifier: int = 0) -> None:
        properties = Properties(subscription_identifiers=(identifier,)) if identifier else None
        self.send(Subscribe(1, list(requests), properties))
        self.expect(SubAck)

    def publish(
        self, topic: str, payload: bytes, qos: int, retain: bool = False, properties: Properties | None = None
    ) -> None:
        self.send(Publish(topic, payload, qos, retain, packet_id=9 if qos else 0, properties=properties))
        if qos == 1:
            self.expect(PubAck)
        elif qos == 2:
            self.expect(PubRec)
            self.send(PubRel(9))
            self.expect(PubComp)

    def leave(self) -> None:
        """Disconnect, and return once the broker has seen it."""
        self.send(Disconnect())
        assert self._socket.recv(1) == b""
        self.lose()

    def lose(self) -> None:
        self._socket.close()


def durable(port: int, client_id: str, version: int = V3_1_1, username: str | None = None, **own: int) -> RawClient:
    properties = Properties(**own) if own else None  # type: ignore[arg-type]
    return RawClient(port, Connect(client_id, version, False, 0, username, properties=properties))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    return data


@pytest.fixture
def mosquitto(tmp_path: Path, folder: Path) -> Iterator[Mosquitto]:
    lines = ["persistence true", f"persistence_location {folder}/", "max_inflight_messages 3", "max_queued_messages 0"]
    broker = Mosquitto(tmp_path, lines)
    yield broker
    broker.kill()


def fill_broker(mosquitto: Mosquitto) -> list[RawClient]:
    """Make sessions, messages in every state and retained messages; give the clients that stay connected."""
    port = mosquitto.port
    old = durable(port, "old", username="bob")
    old.subscribe(SubscriptionRequest("house/+", 1), SubscriptionRequest("exact", 2))
    old.leave()
    new = durable(port, "new", V5, "ann", session_expiry_interval=3600)
    new.subscribe(SubscriptionRequest("house/#", 2, True, True, 1), identifier=7)
    new.subscribe(SubscriptionRequest("$share/group/jobs/#", 1))
    new.leave()
    stays = durable(port, "stays", V5, "eve", session_expiry_interval=NEVER_EXPIRES)
    stays.subscribe(SubscriptionRequest("none", 0))
    brief = durable(port, "brief", V5)
    slow = durable(port, "slow")
    slow.subscribe(SubscriptionRequest("exact", 2), SubscriptionRequest("once", 1))
    half = durable(port, "half")
    half.send(Publish("exact", b"not released", 2, packet_id=77))
    half.expect(PubRec)
    will = Will("will", b"gone", 1, True)
    publisher = RawClient(port, Connect("publisher", V5, True, 0, will=will))
    own = Properties(
        payload_format_indicator=1,
        content_type="text/plain",
        response_topic="answers/1",
        correlation_data=b"\x00\xff",
        user_properties=(("k", "v"), ("k", "ü")),
        message_expiry_interval=500,
    )
    publisher.publish("house/a", b"with properties", 1, True, own)
    publisher.publish("house/b", b"\x00\xff" * 20_000, 2)
    publisher.publish("exact", b"released", 2)
    publisher.publish("exact", b"received", 2)
    publisher.publish("once", b"once", 1)
    publisher.publish("exact", b"waits", 2)
    first = slow.expect(Publish)
    slow.send(PubRec(first.packet_id))
    assert [slow.expect(Publish).payload for _number in range(2)] == [b"received", b"once"]
    slow.expect(PubRel)
    publisher.publish("kept/0", b"zero", 0, True)
    publisher.publish("kept/2", b"two", 2, True)
    publisher.publish("kept/gone", b"x", 1, True)
    publisher.publish("kept/gone", b"", 1, True)
    return [stays, brief, slow, half, publisher]


def check(imported: Imported, began: float) -> None:
    """Compare with what `fill_broker` did."""
    assert imported.form == "mosquitto.db of version 6"
    assert imported.damage == ""
    assert list(imported.sessions) == ["old", "new", "stays", "brief", "slow", "half"]
    old, new, stays, brief, slow, half = imported.sessions.values()

    assert (old.username, old.expiry_interval, old.expires_at) == ("bob", NEVER_EXPIRES, 0)
    assert {name: options(wanted) for name, wanted in old.subscriptions.items()} == {
        "house/+": (1, False, False, 0),
        "exact": (2, False, False, 0),
    }
    waiting = [(d.message.topic, d.message.payload, d.qos, d.retain) for d in old.queued]
    assert waiting == [
        ("house/a", b"with properties", 1, False),
        ("house/b", b"\x00\xff" * 20_000, 1, False),
        ("exact", b"released", 2, False),
        ("exact", b"received", 2, False),
        ("exact", b"waits", 2, False),
    ]
    first = old.queued[0].message
    assert first.properties == EVERYTHING
    assert first.publisher == "publisher"
    assert began + 499 <= first.expires_at <= time.time() + 501

    assert (new.username, new.expiry_interval) == ("ann", 3600)
    assert began + 3599 <= new.expires_at <= time.time() + 3601
    assert {name: options(wanted) for name, wanted in new.subscriptions.items()} == {
        "house/#": (2, True, True, 7),  # 2.0.11 leaves Shared Subscriptions out
    }
    assert [(d.message.payload[:4], d.qos, d.retain, d.identifier) for d in new.queued] == [
        (b"with", 1, True, 7),
        (b"\x00\xff\x00\xff", 2, False, 7),
    ]
    assert new.queued[0].message is first

    assert (stays.username, stays.expiry_interval, stays.expires_at) == ("eve", NEVER_EXPIRES, 0)
    assert (brief.username, brief.expiry_interval) == (None, 0)
    assert slow.username is None  # the file says eve: 2.0.11 mixes them up
    assert [(d.message.payload, d.state) for d in slow.in_flight.values()] == [
        (b"released", AWAITING_PUBCOMP),
        (b"received", AWAITING_PUBREC),
        (b"once", AWAITING_PUBACK),
    ]
    assert list(slow.in_flight) == [delivery.packet_id for delivery in slow.in_flight.values()] == [1, 2, 3]
    assert [d.message.payload for d in slow.queued] == [b"waits"]
    assert {packet_id: (m.topic, m.payload, m.qos) for packet_id, m in half.received.items()} == {
        77: ("exact", b"not released", 2)
    }


def test_a_store_that_mosquitto_saves_while_it_runs(mosquitto: Mosquitto, folder: Path) -> None:
    began = time.time()
    clients = fill_broker(mosquitto)
    mosquitto.save(folder / "mosquitto.db")
    imported = mosquitto_db.read(folder / "mosquitto.db")
    check(imported, began)
    assert {topic: (m.payload, m.qos, m.retain) for topic, m in imported.retained.items()} == {
        "house/a": (b"with properties", 1, True),
        "kept/0": (b"zero", 0, True),
        "kept/2": (b"two", 2, True),
    }
    for client in clients:
        client.lose()


def test_a_store_that_mosquitto_leaves_when_it_stops(mosquitto: Mosquitto, folder: Path) -> None:
    began = time.time()
    clients = fill_broker(mosquitto)
    mosquitto.stop()
    imported = mosquitto_db.read(folder / "mosquitto.db")
    check(imported, began)
    assert imported.retained["will"].payload == b"gone"
    for client in clients:
        client.lose()


class Answers:
    """Hears of no answer: the store is closed before it is asked anything."""

    awaited = 0

    def committed(self, number: int) -> None: ...
    def loaded(self, client_id: str, deliveries: list[Delivery]) -> None: ...
    def store_failed(self, reason_code: int) -> None:
        raise AssertionError(reason_code)

    def store_damaged(self, problem: str) -> None:
        raise AssertionError(problem)

    def wake(self) -> None: ...


def test_clients_of_a_mosquitto_continue_with_us(mosquitto: Mosquitto, tmp_path: Path, folder: Path) -> None:
    clients = fill_broker(mosquitto)
    mosquitto.stop()
    for client in clients:
        client.lose()
    store = SqliteStore(folder, Answers(), Clock(), flush_seconds=1.0)
    store.open()
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    known = store.changes.numbers
    report = import_once(folder, "mosquitto.db", store, 1, now, time.time(), store.close, known_sessions=known)
    assert report is not None
    assert report.damage == ""
    gateway = Gateway(tmp_path, mosquitto_conf=["persistence true", f"persistence_location {folder}/"])
    gateway.start("broker")
    try:
        check_continued(gateway.port)
    finally:
        gateway.stop_all()


def check_continued(port: int) -> None:
    """Take up the Sessions of `fill_broker` where Mosquitto left them."""
    half = durable(port, "half")
    assert half.session_present
    half.send(PubRel(77))
    half.expect(PubComp)

    old = durable(port, "old", username="bob")
    assert old.session_present
    waiting = [b"with properties", b"\x00\xff" * 20_000, b"released", b"received", b"waits", b"not released"]
    assert [(message.payload, message.dup) for message in old.take(6)] == [(payload, False) for payload in waiting]

    new = durable(port, "new", V5, "ann", session_expiry_interval=3600)
    assert new.session_present
    message = new.expect(Publish)
    properties = message.properties
    assert properties is not None
    assert properties.message_expiry_interval is not None
    assert 400 < properties.message_expiry_interval <= 500
    properties.message_expiry_interval = None
    assert properties.subscription_identifiers == (7,)
    properties.subscription_identifiers = ()
    assert properties == EVERYTHING
    assert (message.payload, message.qos, message.retain) == (b"with properties", 1, True)
    assert new.expect(Publish).payload == b"\x00\xff" * 20_000

    slow = durable(port, "slow")
    assert slow.session_present
    assert slow.expect(PubRel).packet_id == 1
    received, once = slow.expect(Publish), slow.expect(Publish)
    assert (received.payload, received.packet_id, received.dup) == (b"received", 2, True)
    assert (once.payload, once.packet_id, once.dup) == (b"once", 3, True)
    assert [slow.expect(Publish).payload for _number in range(2)] == [b"waits", b"not released"]

    assert not durable(port, "brief", V5).session_present
    assert durable(port, "stays", V5, "eve", session_expiry_interval=NEVER_EXPIRES).session_present
    reader = RawClient(port, Connect("reader", V3_1_1))
    reader.subscribe(SubscriptionRequest("kept/#", 2), SubscriptionRequest("will", 1))
    found = [reader.expect(Publish) for _number in range(3)]
    assert {(message.topic, message.payload, message.qos, message.retain) for message in found} == {
        ("kept/0", b"zero", 0, True),
        ("kept/2", b"two", 2, True),
        ("will", b"gone", 1, True),
    }
    for client in (half, old, new, slow, reader):
        client.lose()


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
def test_mosquitto_reads_the_files_of_our_tests_as_we_do(tmp_path: Path, folder: Path, version: int) -> None:
    """Mosquitto is the judge of what older versions look like: what it makes of a file is what we read from it."""
    writer = DbWriter(version)
    writer.configuration()
    fill(writer, version >= 5)
    path = folder / "mosquitto.db"
    path.write_bytes(writer.data)
    ours = plain(mosquitto_db.read(path))
    broker = Mosquitto(tmp_path, ["persistence true", f"persistence_location {folder}/"])
    try:
        path.unlink()
        broker.save(path)
    finally:
        broker.kill()
    theirs = mosquitto_db.read(path)
    assert theirs.form == "mosquitto.db of version 6"
    assert theirs.damage == ""
    del ours["sessions"]["durable"]["subscriptions"]["$share/group/jobs/#"]  # 2.0.11 leaves these out
    assert plain(theirs) == ours
