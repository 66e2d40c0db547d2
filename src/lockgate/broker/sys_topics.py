"""The Server's own figures as retained messages below `$SYS/broker/`, under Mosquitto's names where it has one.

They are said only when they changed, are never written to disk and wait for nobody who is away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from lockgate.broker import outbound, routing
from lockgate.broker.ports import NEVER, Message

if TYPE_CHECKING:
    from lockgate.broker.broker import Broker

PREFIX: Final = "$SYS/broker/"


def publish_figures(broker: Broker, figures: Mapping[str, str], now: float) -> None:
    """Say the figures that changed; `figures` are texts by topic, without the prefix."""
    for name, value in figures.items():
        topic = PREFIX + name
        payload = value.encode("utf-8")
        known = broker.retained.get(topic)
        if known is None or known.payload != payload:
            _publish(broker, topic, payload, now)


def _publish(broker: Broker, topic: str, payload: bytes, now: float) -> None:
    message = Message(topic, payload, 2, True, None, NEVER, "")
    message.arrived_at = now
    if routing.may_retain(broker, message):
        routing.keep_in_memory(broker, message)
    passing = Message(topic, payload, 0, True, None, NEVER, "")  # for a durable Session, whose queue is on disk
    for subscription in broker.router.route(topic).subscriptions:
        session = subscription.session
        if session.connection is not None:
            outbound.deliver(broker, subscription, passing if session.durable else message, now)
