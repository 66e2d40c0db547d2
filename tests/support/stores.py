"""A store of ours with something of everything, and a broker's part: what a test does with it."""

from __future__ import annotations

from pathlib import Path

from lockgate.broker.ports import (
    AWAITING_PUBCOMP,
    NEVER,
    RECEIVED,
    RETAINED,
    SESSIONS,
    SUBSCRIPTIONS,
    WILLS,
    Delivery,
    Message,
    StoredQueue,
    StoredSession,
    StoredSubscription,
    StoredWill,
)
from lockgate.mqtt.properties import Properties
from lockgate.storage.store import SqliteStore
from lockgate.telemetry.clock import Clock


class StoreDamaged(Exception):
    """A broker ends."""


class Owner:
    """Both the broker that answers are given to and the one that is restored."""

    def __init__(self) -> None:
        self.awaited = 0
        self.commits: list[int] = []
        self.found: list[tuple[str, list[Delivery]]] = []
        self.asked = 0  # questions that wait for an answer, where the test counts them
        self.failures: list[int] = []
        self.damaged = ""
        self.sessions: dict[str, StoredSession] = {}
        self.subscriptions: dict[str, dict[str, StoredSubscription]] = {}
        self.received: dict[str, dict[int, Message]] = {}
        self.queues: dict[str, StoredQueue] = {}
        self.retained: dict[str, Message] = {}
        self.wills: dict[str, StoredWill] = {}

    def committed(self, number: int) -> None:
        self.commits.append(number)

    def loaded(self, client_id: str, deliveries: list[Delivery]) -> None:
        self.asked -= 1
        self.found.append((client_id, deliveries))

    def store_failed(self, reason_code: int) -> None:
        self.failures.append(reason_code)

    def store_damaged(self, problem: str) -> None:
        self.damaged = problem

    def wake(self) -> None: ...

    def restore_session(
        self,
        client_id: str,
        stored: StoredSession,
        subscriptions: list[tuple[str, StoredSubscription]],
        received: dict[int, Message],
        queue: StoredQueue,
    ) -> None:
        self.sessions[client_id] = stored
        self.subscriptions[client_id] = dict(subscriptions)
        self.received[client_id] = received
        self.queues[client_id] = queue

    def restore_retained(self, message: Message) -> None:
        self.retained[message.topic] = message

    def restore_will(self, client_id: str, will: StoredWill) -> None:
        self.wills[client_id] = will


def open_store(folder: Path) -> tuple[SqliteStore, Owner]:
    """Open and restore, as a broker does at its start."""
    owner = Owner()
    store = SqliteStore(folder, owner, Clock(), flush_seconds=5.0)
    store.open()
    store.restore(owner)
    return store, owner


def settle(store: SqliteStore, owner: Owner, commit: int) -> None:
    """Let the store write up to a commit number, and answer all questions."""
    owner.awaited = commit
    store.settle()
    for _ in range(20):
        if max(owner.commits, default=0) >= commit and not owner.asked:
            return
        if owner.damaged:
            raise StoreDamaged(owner.damaged)
        if store._commit is not None:
            store._commit.future.exception(timeout=20)
        store._retry_at = 0.0  # a commit that failed is tried again at once
        store.settle()
    raise AssertionError(f"not written after {owner.failures}")


def message(topic: str, payload: bytes, properties: Properties | None = None, expires_at: float = NEVER) -> Message:
    made = Message(topic, payload, 1, False, properties, expires_at, "publisher")
    made.arrived_at = Clock().now().boottime_ns / 1e9
    return made


def fill(store: SqliteStore, sessions: int = 6, messages: int = 40) -> int:
    """Put something of everything into a store; gives the last commit number."""
    properties = Properties(
        content_type="text/plain", correlation_data=b"\x00\xff", user_properties=(("unit", "°C"), ("a", "b"))
    )
    soon = Clock().now().boottime_ns / 1e9 + 3600
    for number in range(sessions):
        client_id = f"client-{number}"
        store.set(1, SESSIONS, (client_id,), StoredSession(3600, soon, None if number % 2 else "user"))
        for topic_filter in ("a/#", f"b/{number}/+", "$share/g/c"):
            store.set(1, SUBSCRIPTIONS, (client_id, topic_filter), StoredSubscription(2, True, False, number))
        store.set(1, RECEIVED, (client_id, str(7 + number)), message("in/coming", b"\xff\x00", properties))
        store.set(1, WILLS, (client_id,), StoredWill(message(f"will/{number}", b"gone", properties), 30, 60, NEVER))
    for number in range(messages):
        shared = message(f"a/{number}", b"to all %d " % number * 10, properties if number % 3 else None)
        for client in range(sessions):
            delivery = Delivery(shared, 1 + number % 2, False, client, number * 2 + 1)
            if number < 2:
                delivery.packet_id, delivery.state = number + 1, AWAITING_PUBCOMP if number else 1
            store.append(1, f"client-{client}", delivery)
        own = message(f"b/0/{number}", b"to one" * number, None, soon if number % 2 else NEVER)
        store.append(1, "client-0", Delivery(own, 1, False, 0, number * 2 + 2))
        store.set(1, RETAINED, (f"retained/{number}",), message(f"retained/{number}", b"state" * number, properties))
    return 1
