"""What a store kept comes back before the first client is let in: Sessions, retained messages, Wills (DESIGN §6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lockgate.broker import routing
from lockgate.broker.memory import session_bytes, subscription_bytes
from lockgate.broker.permissions import Permissions
from lockgate.broker.ports import (
    NEVER,
    SESSIONS,
    SUBSCRIPTIONS,
    Message,
    StoredQueue,
    StoredSession,
    StoredSubscription,
    StoredWill,
)
from lockgate.broker.session import NEVER_EXPIRES, Session
from lockgate.broker.subscribing import subscribe

if TYPE_CHECKING:
    from lockgate.broker.broker import Broker
    from lockgate.broker.limits import StandingSession

# Of a client that was connected when the broker died: what it has to come back before its Will is published
_LONGEST_RETURN_SECONDS: Final = 60.0


def restore_session(
    broker: Broker,
    client_id: str,
    stored: StoredSession,
    subscriptions: list[tuple[str, StoredSubscription]],
    received: dict[int, Message],
    queue: StoredQueue,
    now: float,
) -> None:
    """Take a Session back; its expiry begins now if it was connected when it was last stored."""
    session = Session(client_id, stored.expiry_interval, stored.username)
    session.durable = True
    session.disconnected_at = now
    authority = broker.absent_authority
    if authority is not None and client_id not in broker.own_sessions:
        session.permissions = Permissions(authority, client_id, stored.username, broker.memory)
    broker.sessions[client_id] = session
    broker.memory.used += session_bytes(client_id, stored.username)
    for requested_filter, options in subscriptions:
        broker.memory.used += subscription_bytes(requested_filter)
        subscribe(broker, session, requested_filter, options)
    for packet_id, message in received.items():
        session.received[packet_id] = message
        broker.memory.hold(message)
    for delivery in queue.in_flight:
        session.in_flight[delivery.packet_id] = delivery
        session.in_flight_bytes += delivery.message.size()
        broker.memory.hold_delivery(delivery.message)
    session.head_position = queue.head_position
    session.last_position = queue.last_position
    session.queued_count = queue.count
    session.queued_bytes = queue.size_bytes
    broker.queued_count += queue.count
    if broker.expire_later(session, now):
        if stored.expires_at != NEVER:
            session.expires_at = stored.expires_at
        broker.watch_session(session)


def restore_retained(broker: Broker, message: Message, now: float) -> None:
    """Take a retained message back."""
    routing.keep_in_memory(broker, message)
    broker.watch_retained(now)


def restore_will(broker: Broker, client_id: str, will: StoredWill, now: float) -> None:
    """Take a Will back, to be published after its delay unless its client returns.

    Whoever was connected when the broker died has one and a half times its Keep Alive for that, up to a minute.
    """
    if will.due_at != NEVER:
        due_at = will.due_at
    else:
        keep_alive = 1.5 * will.keep_alive if will.keep_alive else _LONGEST_RETURN_SECONDS
        due_at = now + max(float(will.delay), min(keep_alive, _LONGEST_RETURN_SECONDS))
    broker.memory.hold(will.message)
    broker.defer_will(client_id, will.message, due_at)


def stand(broker: Broker, now: float) -> None:
    """See to it that the standing Sessions exist, with the Subscriptions that are declared and those they had."""
    for standing in broker.limits.standing_sessions:
        _stand(broker, standing, now)


def stand_again(broker: Broker, client_id: str, now: float) -> None:
    """Open a standing Session anew after its client has ended it."""
    standing = _declared(broker, client_id)
    if standing is not None and client_id not in broker.sessions:
        _stand(broker, standing, now)


def standing_bytes(broker: Broker, client_id: str) -> int:
    """Give how much may wait for a client before publishers have to; -1 when its Session is no standing one."""
    standing = _declared(broker, client_id)
    return standing.max_bytes if standing is not None else -1


def _declared(broker: Broker, client_id: str) -> StandingSession | None:
    for standing in broker.limits.standing_sessions:
        if standing.client_id == client_id:
            return standing
    return None


def _stand(broker: Broker, standing: StandingSession, now: float) -> None:
    client_id = standing.client_id
    session = broker.sessions.get(client_id)
    if session is None:
        session = Session(client_id, NEVER_EXPIRES, None)
        session.head_position = session.last_position = broker.spent_position
        session.disconnected_at = now
        broker.sessions[client_id] = session
        broker.memory.used += session_bytes(client_id, None)
    session.expires_at = NEVER
    session.standing_bytes = standing.max_bytes
    stored = StoredSession(NEVER_EXPIRES, NEVER, session.username)
    broker.store.set(broker.change(), SESSIONS, (client_id,), stored)
    for topic_filter in standing.topic_filters:
        if topic_filter not in session.subscriptions:
            options = StoredSubscription(standing.qos, False, False, 0)
            broker.memory.used += subscription_bytes(topic_filter)
            subscribe(broker, session, topic_filter, options)
            broker.store.set(broker.change(), SUBSCRIPTIONS, (client_id, topic_filter), options)
