"""paho-mqtt, 3.1.1 and 5, against our broker."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.support.gateway import Gateway

pytestmark = pytest.mark.peers
WAIT = 10


class Talker:
    """A paho client whose callbacks land in queues."""

    def __init__(self, broker: Gateway, protocol: int, client_id: str, clean: bool = True, **connect: object) -> None:
        old = protocol != paho.MQTTv5
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=protocol,  # type: ignore[arg-type]
            clean_session=clean if old else None,
        )
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.events: queue.Queue[tuple[str, object]] = queue.Queue()
        self.client.on_message = lambda _client, _data, message: self.messages.put(message)
        self.client.on_connect = lambda _c, _d, flags, reason, _p: self.events.put(("connect", (flags, reason)))
        self.client.on_subscribe = lambda _c, _d, _mid, reasons, _p: self.events.put(("subscribe", reasons))
        self.client.on_disconnect = lambda _c, _d, _flags, reason, _p: self.events.put(("disconnect", reason))
        if not old:
            connect["clean_start"] = clean
        self.client.connect("127.0.0.1", broker.port, 30, **connect)  # type: ignore[arg-type]
        self.client.loop_start()
        self.flags, self.reason = self.expect("connect")

    def expect(self, name: str) -> Any:
        kind, value = self.events.get(timeout=WAIT)
        assert kind == name
        return value

    def subscribe(self, *arguments: object, **more: object) -> None:
        self.client.subscribe(*arguments, **more)  # type: ignore[arg-type]
        self.expect("subscribe")

    def publish(self, topic: str, payload: bytes, qos: int = 1, **more: object) -> None:
        self.client.publish(topic, payload, qos, **more).wait_for_publish(WAIT)  # type: ignore[arg-type]

    def take(self, count: int) -> list[paho.MQTTMessage]:
        return [self.messages.get(timeout=WAIT) for _number in range(count)]

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def talkers() -> Iterator[list[Talker]]:
    started: list[Talker] = []
    yield started
    for talker in started:
        talker.stop()


@pytest.mark.parametrize("protocol", [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_two_hundred_messages_arrive_once_and_in_order(
    broker: Gateway, talkers: list[Talker], protocol: int, qos: int
) -> None:
    subscriber, publisher = Talker(broker, protocol, "s"), Talker(broker, protocol, "p")
    talkers += [subscriber, publisher]
    subscriber.subscribe("a/#", qos)
    for number in range(200):
        publisher.client.publish("a/b", b"%d" % number, qos)
    assert [int(message.payload) for message in subscriber.take(200)] == list(range(200))
    assert subscriber.messages.empty()


@pytest.mark.parametrize("protocol", [paho.MQTTv311, paho.MQTTv5])
def test_a_session_is_resumed(broker: Gateway, talkers: list[Talker], protocol: int) -> None:
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 100
    more = {"properties": properties} if protocol == paho.MQTTv5 else {}
    first = Talker(broker, protocol, "s", clean=False, **more)
    first.subscribe("t", 2)
    first.stop()
    publisher = Talker(broker, protocol, "p")
    for number in range(60):
        publisher.publish("t", b"%d" % number, 1 + number % 2)
    second = Talker(broker, protocol, "s", clean=False, **more)
    talkers += [publisher, second]
    assert second.flags.session_present
    numbers = [int(message.payload) for message in second.take(60)]
    # paho hands a QoS 2 message over when PUBREL arrives, so order holds within each QoS
    assert [number for number in numbers if number % 2 == 0] == list(range(0, 60, 2))
    assert [number for number in numbers if number % 2] == list(range(1, 60, 2))


def test_version_5_properties_and_options(broker: Gateway, talkers: list[Talker]) -> None:
    subscriber, publisher = Talker(broker, paho.MQTTv5, "s"), Talker(broker, paho.MQTTv5, "p")
    talkers += [subscriber, publisher]
    identifier = Properties(PacketTypes.SUBSCRIBE)
    identifier.SubscriptionIdentifier = 77
    subscriber.subscribe("t", options=SubscribeOptions(qos=1, noLocal=True), properties=identifier)
    subscriber.publish("t", b"own")
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = [("k", "1"), ("k", "2")]
    properties.ContentType = "text/plain"
    properties.MessageExpiryInterval = 60
    publisher.publish("t", b"other", properties=properties)
    [message] = subscriber.take(1)
    assert message.payload == b"other"
    assert message.properties.UserProperty == [("k", "1"), ("k", "2")]  # type: ignore[union-attr]
    assert message.properties.ContentType == "text/plain"  # type: ignore[union-attr]
    assert message.properties.SubscriptionIdentifier == [77]  # type: ignore[union-attr]
    assert 58 <= message.properties.MessageExpiryInterval <= 60  # type: ignore[union-attr]


def test_a_takeover_tells_a_version_5_client(broker: Gateway, talkers: list[Talker]) -> None:
    first = Talker(broker, paho.MQTTv5, "same")
    first.client.reconnect_delay_set(60)
    second = Talker(broker, paho.MQTTv5, "same")
    talkers += [first, second]
    assert "taken over" in str(first.expect("disconnect")).lower()


def test_a_large_message_passes_and_one_too_large_does_not(broker: Gateway, talkers: list[Talker]) -> None:
    subscriber, publisher = Talker(broker, paho.MQTTv5, "s"), Talker(broker, paho.MQTTv5, "p")
    talkers += [subscriber, publisher]
    subscriber.subscribe("t", 1)
    payload = bytes(range(256)) * 7000
    publisher.publish("t", payload)
    assert subscriber.take(1)[0].payload == payload
    publisher.client.reconnect_delay_set(60)
    publisher.client.publish("t", b"x" * 2_000_001, 0)
    assert "too large" in str(publisher.expect("disconnect")).lower()
