"""Who gives way when the memory budget is spent, or too many messages are queued in all.

In this order: QoS 0 for clients that do not read, the oldest queued messages, and last the oldest queued alarms. What
then still does not fit is refused when it comes. Unfinished packets have a part of the budget that they cannot exceed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
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


def most_queued(broker: Broker) -> int:
    """Give how many messages may be queued in all before some give way (0: any), where they all lie in memory.

    Where most of them lie in the store, those that come are dropped instead.
    """
    return broker.limits.total_queued_messages if not broker.limits.queue_head else 0


def _is_enough(broker: Broker) -> bool:
    limit = most_queued(broker)
    few = not limit or broker.queued_count <= limit - limit // 64
    return broker.memory.is_enough() and few


def _shed_qos_0(broker: Broker, now: float) -> None:
    for connection in broker.connections.values():
        late = connection.late
        while late:
            outbound.drop_late(broker, connection, late.popleft(), SHED, now)
            if _is_enough(broker):
                return


def _shed_queues(broker: Broker, alarms: bool, now: float) -> None:
    """Drop queued messages of one kind, the oldest first, whoever they wait for.

    Every queue is in order, so that only its oldest is compared with those of the others: there may be a million.
    """
    is_alarm: dict[str, bool] = {}
    sessions: list[Session] = []
    queues: list[Iterator[Delivery]] = []
    oldest: list[tuple[float, int, Delivery]] = []
    for session in broker.sessions.values():
        if session.queue:
            queue = iter(session.queue)
            first = _next(broker, queue, alarms, is_alarm)
            if first is not None:
                oldest.append((first.message.arrived_at, len(queues), first))
                sessions.append(session)
                queues.append(queue)
    heapq.heapify(oldest)
    dropped = [0] * len(queues)
    while oldest and not _is_enough(broker):
        _arrived_at, place, delivery = oldest[0]
        delivery.dropped = True
        dropped[place] += 1
        outbound.drop_queued(broker, sessions[place], delivery, SHED, now)
        following = _next(broker, queues[place], alarms, is_alarm)
        if following is None:
            heapq.heappop(oldest)
        else:
            heapq.heapreplace(oldest, (following.message.arrived_at, place, following))
    for place, count in enumerate(dropped):
        if count:
            sessions[place].remove_dropped(count)


def _next(broker: Broker, queue: Iterator[Delivery], alarms: bool, is_alarm: dict[str, bool]) -> Delivery | None:
    """Give the next delivery of one kind in a queue; `is_alarm` remembers what was found of a topic."""
    for delivery in queue:
        if delivery.packet_id:  # what was sent once belongs to the client's window
            continue
        topic = delivery.message.topic
        known = is_alarm.get(topic)
        if known is None:
            known = is_alarm[topic] = any(matches(one, topic) for one in broker.limits.alarms)
        if known == alarms:
            return delivery
    return None
