"""What was read from another broker's store, as plain values that a test can compare."""

from __future__ import annotations

from typing import Any

from lockgate.broker.ports import StoredSubscription
from lockgate.storage.imported import Imported, ImportedDelivery, ImportedMessage, ImportedSession


def plain(imported: Imported) -> dict[str, Any]:
    """Sessions and retained messages; not from which file and what was skipped."""
    return {
        "sessions": {client_id: _session(session) for client_id, session in imported.sessions.items()},
        "retained": {topic: _message(message) for topic, message in imported.retained.items()},
        "wills": {client_id: (_message(will.message), will.delay) for client_id, will in imported.wills.items()},
    }


def options(subscription: StoredSubscription) -> tuple[int, bool, bool, int]:
    """QoS, No Local, Retain As Published, Subscription Identifier."""
    return subscription.qos, subscription.no_local, subscription.retain_as_published, subscription.identifier


def _session(session: ImportedSession) -> dict[str, Any]:
    return {
        "username": session.username,
        "interval": session.expiry_interval,
        "expires_at": session.expires_at,
        "subscriptions": {wanted: options(subscription) for wanted, subscription in session.subscriptions.items()},
        "received": {packet_id: _message(message) for packet_id, message in session.received.items()},
        "in flight": [_delivery(delivery) for delivery in session.in_flight.values()],
        "queued": [_delivery(delivery) for delivery in session.queued],
    }


def _delivery(delivery: ImportedDelivery) -> tuple[Any, ...]:
    flight = (delivery.packet_id, delivery.state)
    return (_message(delivery.message), delivery.qos, delivery.retain, delivery.identifier, *flight)


def _message(message: ImportedMessage) -> tuple[Any, ...]:
    return (
        message.topic,
        message.payload,
        message.qos,
        message.retain,
        repr(message.properties),
        message.expires_at,
        message.publisher,
    )
