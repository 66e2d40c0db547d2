"""Whether the core still does its work: a message to itself, which nobody else can see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lockgate.broker import connection as connections
from lockgate.broker.limits import ListenerLimits
from lockgate.broker.rates import TokenBucket
from lockgate.broker.session import Session, Subscription
from lockgate.broker.statistics import Statistics
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import PUBACK, V5, Publish

if TYPE_CHECKING:
    from lockgate.broker.broker import Broker

_RATE: Final = 1000.0  # messages a second: never reached


def round_trip(broker: Broker, now: float) -> str:
    """Publish at QoS 1 and receive, from bytes to bytes; gives what went wrong, empty where nothing did.

    The client and its Subscription are there for this call alone and no part of what is counted, logged, remembered or
    stored. Its topic is its own: a wildcard does not match it [MQTT-4.7.2-1], and its name is new each time.
    """
    name = f"${broker.new_client_id()}"
    session = Session(name, 0, None)
    session.version = V5
    connection = connections.Connection(broker, 0, "", ListenerLimits(), now)
    connection.version = V5
    connection.decoder = Decoder(V5, 0, True)  # limits are for clients
    connection.publish_rate = TokenBucket(_RATE, now)
    connection.state = connections.CONNECTED
    connection.session = session
    session.connection = connection
    subscription = Subscription(session, f"{name}/#", f"{name}/#", "", 0, False, False, 0)
    counted = broker.statistics
    broker.statistics = Statistics()
    broker.router.add(subscription)
    try:
        connection.receive(encode(Publish(name, b"", 1, packet_id=1), V5), now)
        if connection.state != connections.CONNECTED:
            return f"the core closed a connection that did nothing wrong: {connection.closing_reason}"
        return check(connection.take_output(), name)
    finally:
        broker.router.remove(subscription)
        broker.statistics = counted
        broker.touched = [one for one in broker.touched if one is not connection]


def check(output: bytes, name: str) -> str:
    """Give what is wrong with the core's answer to one message with this topic."""
    decoder = Decoder(V5)
    decoder.feed(output)
    acknowledged = delivered = 0
    try:
        while (packet := decoder.next_packet()) is not None:
            if packet.type == PUBACK:
                acknowledged += 1
            elif isinstance(packet, Publish) and packet.topic == name:
                delivered += 1
    except MqttError as error:
        return f"the core sent what is no packet: {error.detail}"
    if acknowledged != 1 or delivered != 1:
        return f"of one message the core delivered {delivered} and acknowledged {acknowledged}"
    return ""
