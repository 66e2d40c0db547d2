"""Who gives way when the memory budget is spent, or too many messages are queued in all.

In this order: QoS 0 for clients that do not read, the oldest queued messages, and last the oldest queued alarms. What
then still does not fit is refused when it comes. Unfinished packets have a part of the budget that they cannot exceed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockgate.broker import outbound
from lockgate.broker.decisions import SHED
from lockgate.broker.ports import Delivery
from lockgate.mqtt.topics import matches

if TYPE_CHECKING:
    from lockgate.broker.broker import Broker
    from lockgate.broker.session import Session


def shed(broker: Broker, now: float) -> None:
    """Let messages give way until enough memory is free and few enough are queued."""
    if broker.memory.is_exhausted():
        return
    _shed_qos_0(broker, now)
    if not _is_enough(broker):
        _shed_queues(broker, False, now)
    if not _is_enough(broker):
        _shed_queues(broker, True, now)
    broker.memory.exhausted = not _is_enough(broker)


def is_exhausted(broker: Broker, now: float) -> bool:
    """Whether there is no room for more, even after everything that may has given way."""
    if broker.memory.is_spent():
        shed(broker, now)
    return broker.memory.is_exhausted()


def _is_enough(broker: Broker) -> bool:
    limit = broker.limits.total_queued_messages
    few = not limit or broker.queued_count <= limit - limit // 16
    return broker.memory.is_enough() and few


def _shed_qos_0(broker: Broker, now: float) -> None:
    for connection in broker.connections.values():
        late = connection.late
        while late:
            outbound.drop_late(broker, connection, late.popleft(), SHED, now)
            if _is_enough(broker):
                return


def _shed_queues(broker: Broker, alarms: bool, now: float) -> None:
    """Drop queued messages of one kind, the oldest first, whoever they wait for."""
    is_alarm: dict[str, bool] = {}
    found: list[tuple[float, int, Delivery, Session]] = []
    for session in broker.sessions.values():
        if session.queue:
            for delivery in session.queue:
                topic = delivery.message.topic
                known = is_alarm.get(topic)
                if known is None:
                    known = is_alarm[topic] = any(matches(one, topic) for one in broker.limits.alarms)
                if known == alarms and not delivery.packet_id:  # what was sent once belongs to the client's window
                    found.append((delivery.message.arrived_at, len(found), delivery, session))
    found.sort()
    touched: dict[str, Session] = {}
    for _arrived_at, _order, delivery, session in found:
        if _is_enough(broker):
            break
        delivery.dropped = True
        touched[session.client_id] = session
        outbound.drop_queued(broker, session, delivery, SHED, now)
    for session in touched.values():
        session.remove_dropped()
