"""What was read from another broker's store, and what became of it, as plain values that a test can compare."""

from __future__ import annotations

from typing import Any

from lockgate.broker.ports import Delivery, StoredSubscription
from lockgate.storage.imported import Imported, ImportedDelivery, ImportedMessage, ImportedSession


class Rows:
    """A `ports.Store` that keeps what it was told."""

    def __init__(self) -> None:
        self.commits: set[int] = set()
        self.rows: dict[tuple[str, tuple[str, ...]], Any] = {}
        self.queues: dict[str, list[Delivery]] = {}
        self.appended: list[Delivery] = []

    def append(self, commit: int, client_id: str, delivery: Delivery) -> None:
        self.commits.add(commit)
        assert ("sessions", (client_id,)) in self.rows
        self.queues.setdefault(client_id, []).append(delivery)
        self.appended.append(delivery)

    def update(self, commit: int, client_id: str, delivery: Delivery) -> None:
        raise AssertionError

    def set(self, commit: int, table: str, key: tuple[str, ...], value: object) -> None:
        self.commits.add(commit)
        self.rows[table, key] = value

    def acknowledge(self, commit: int, client_id: str, position: int) -> None:
        raise AssertionError

    def delete(self, commit: int, table: str, key: tuple[str, ...]) -> None:
        raise AssertionError

    def end_session(self, commit: int, client_id: str) -> None:
        raise AssertionError

    def want(self, client_id: str, after: int, limit: int) -> None:
        raise AssertionError


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
