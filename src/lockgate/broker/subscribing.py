"""SUBSCRIBE and UNSUBSCRIBE (MQTT 5 §3.8 to §3.11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lockgate.broker import outbound, shedding
from lockgate.broker.backlog import Backlog
from lockgate.broker.memory import subscription_bytes
from lockgate.broker.ports import SUBSCRIPTIONS, StoredSubscription
from lockgate.broker.session import Subscription
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import V3_1_1, V5, SubAck, Subscribe, UnsubAck, Unsubscribe
from lockgate.mqtt.topics import SHARE_PREFIX, split_shared, without_share

if TYPE_CHECKING:
    from lockgate.broker.broker import Broker
    from lockgate.broker.connection import Connection
    from lockgate.broker.session import Session

_FILTER_WORK: Final = 30  # of one Topic Filter, in deliveries at QoS 0

# What SUBACK says when the limit is reached; MQTT 3.1 has no word for a refusal.
_QUOTA_CODES: Final[dict[int, int]] = {V3_1_1: reason_codes.UNSPECIFIED_ERROR, V5: reason_codes.QUOTA_EXCEEDED}
_DENIED_CODES: Final[dict[int, int]] = {V3_1_1: reason_codes.UNSPECIFIED_ERROR, V5: reason_codes.NOT_AUTHORIZED}


def handle_subscribe(broker: Broker, connection: Connection, session: Session, packet: Subscribe, now: float) -> None:
    """Add or replace Subscriptions, answer SUBACK, then send what is retained (§3.8.4)."""
    _check_answer(connection, len(packet.requests))
    broker.work += len(packet.requests) * _FILTER_WORK
    identifier = 0
    if packet.properties is not None and packet.properties.subscription_identifiers:
        identifier = packet.properties.subscription_identifiers[0]
    codes: list[int] = []
    commit = 0
    limit = broker.limits.subscriptions
    permissions = session.permissions
    mount_point = connection.limits.mount_point
    for request in packet.requests:
        qos = min(request.qos, connection.limits.max_qos)
        request.topic_filter = _mounted(mount_point, request.topic_filter)
        if permissions is not None and not permissions.may_subscribe(without_share(request.topic_filter)):
            codes.append(_DENIED_CODES.get(connection.version, qos))
            continue
        is_new = request.topic_filter not in session.subscriptions
        if is_new and ((limit and len(session.subscriptions) >= limit) or shedding.is_exhausted(broker, now)):
            codes.append(_QUOTA_CODES.get(connection.version, qos))
            continue
        codes.append(qos)
        broker.log.subscribed(connection.client_name, qos, request.topic_filter)
        if is_new:
            broker.memory.used += subscription_bytes(request.topic_filter)
        no_local, retain_as_published = request.no_local, request.retain_as_published
        if connection.bridge:  # a version before 5 has no words for what Mosquitto gives every bridge
            retain_as_published = True
            no_local = not request.topic_filter.startswith(SHARE_PREFIX)
        options = StoredSubscription(qos, no_local, retain_as_published, identifier)
        subscription = subscribe(broker, session, request.topic_filter, options)
        if session.durable:
            commit = broker.change()
            broker.store.set(commit, SUBSCRIPTIONS, (session.client_id, request.topic_filter), options)
        wants_retained = request.retain_handling == 0 or (request.retain_handling == 1 and is_new)
        if wants_retained and not subscription.share_name:  # §3.8.3.1, §4.8.2
            if connection.backlog is None:
                connection.backlog = Backlog(connection.has_retained)
            connection.backlog.add(request.topic_filter, now)
    connection.acknowledge(encode(SubAck(packet.packet_id, codes), connection.version), commit)
    if connection.backlog is not None:
        outbound.pump(broker, connection, session, now)


def _mounted(mount_point: str, requested_filter: str) -> str:
    """Put the mount point of a listener before a Topic Filter, behind `$share/NAME/`."""
    if not mount_point:
        return requested_filter
    if requested_filter.startswith(SHARE_PREFIX):
        share_name, topic_filter = split_shared(requested_filter)
        return f"{SHARE_PREFIX}{share_name}/{mount_point}{topic_filter}"
    return mount_point + requested_filter


def _check_answer(connection: Connection, codes: int) -> None:
    """Raise an error when the client leaves no room for an answer with so many codes [MQTT-3.1.2-24]."""
    remaining = 3 + codes
    size = remaining + (2 if remaining < 0x80 else 3 if remaining < 0x4000 else 4)
    if connection.maximum_packet_size and size > connection.maximum_packet_size:
        raise MqttError("its Maximum Packet Size leaves no room for the answer", reason_codes.PACKET_TOO_LARGE)


def subscribe(broker: Broker, session: Session, requested_filter: str, options: StoredSubscription) -> Subscription:
    """Add a Subscription to a Session, or replace the one it has to that filter."""
    topic_filter = requested_filter
    share_name = ""
    if topic_filter.startswith(SHARE_PREFIX):
        share_name, topic_filter = split_shared(topic_filter)
    subscription = Subscription(
        session,
        requested_filter,
        topic_filter,
        share_name,
        options.qos,
        options.no_local,
        options.retain_as_published,
        options.identifier,
    )
    session.subscriptions[requested_filter] = subscription
    broker.router.add(subscription)
    return subscription


def _remove(broker: Broker, session: Session, subscription: Subscription) -> None:
    requested_filter = subscription.requested_filter
    broker.router.remove(subscription)
    broker.memory.used -= subscription_bytes(requested_filter)
    if session.durable:
        broker.store.delete(broker.change(), SUBSCRIPTIONS, (session.client_id, requested_filter))


def end_revoked(broker: Broker, session: Session) -> None:
    """End the Subscriptions of a client that returns which it might not make any more."""
    permissions = session.permissions
    if permissions is None:
        return
    for subscription in list(session.subscriptions.values()):
        if not permissions.may_subscribe(subscription.topic_filter):
            del session.subscriptions[subscription.requested_filter]
            _remove(broker, session, subscription)


def handle_unsubscribe(broker: Broker, connection: Connection, session: Session, packet: Unsubscribe) -> None:
    """Remove Subscriptions and answer UNSUBACK (§3.10.4)."""
    _check_answer(connection, len(packet.topic_filters))
    broker.work += len(packet.topic_filters) * _FILTER_WORK
    codes: list[int] = []
    permissions = session.permissions
    for requested_filter in packet.topic_filters:
        topic_filter = _mounted(connection.limits.mount_point, requested_filter)
        if permissions is not None and not permissions.may_unsubscribe(without_share(topic_filter)):
            codes.append(reason_codes.NOT_AUTHORIZED)
            continue
        subscription = session.subscriptions.pop(topic_filter, None)
        if subscription is None:
            codes.append(reason_codes.NO_SUBSCRIPTION_EXISTED)
            continue
        codes.append(reason_codes.SUCCESS)
        broker.log.unsubscribed(connection.client_name, topic_filter)
        _remove(broker, session, subscription)
        if connection.backlog is not None:
            connection.backlog.discard(topic_filter)
    # A filter that is gone already may have gone with a change whose UNSUBACK the client never saw.
    commit = broker.last_change if session.durable else 0
    connection.acknowledge(encode(UnsubAck(packet.packet_id, codes), connection.version), commit)
