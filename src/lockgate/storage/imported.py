"""What another broker's store held, in one form for all its formats, and how it goes into ours."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lockgate.broker.ports import (
    AWAITING_PUBACK,
    AWAITING_PUBCOMP,
    AWAITING_PUBREC,
    NEVER,
    QUEUED,
    RECEIVED,
    RETAINED,
    SESSIONS,
    SUBSCRIPTIONS,
    WILLS,
    Delivery,
    Message,
    Store,
    StoredSession,
    StoredSubscription,
    StoredWill,
)
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.properties import Properties
from lockgate.mqtt.topics import check_topic_filter, check_topic_name
from lockgate.mqtt.wire import MAXIMUM_REMAINING_LENGTH

NEVER_EXPIRES: Final = 0xFFFF_FFFF  # a Session Expiry Interval (MQTT 5 §3.1.2.11.2)

_SOONEST: Final = 1e-3  # a point in time long ago that is not NEVER
_HEAD_BYTES: Final = 0x1_0000  # more than a PUBLISH needs beside topic, properties and payload

# States of a message towards or from a client, as both of Mosquitto's formats number them
_AWAITING_ACKNOWLEDGEMENT: Final = frozenset({2, 3, 4, 5})  # PUBLISH goes out, or its PUBACK or PUBREC is awaited
_RELEASED: Final = frozenset({6, 9})  # PUBREL goes out, or its PUBCOMP is awaited
_RESEND_PUBCOMP: Final = 8
_STATES: Final = range(1, 12)


class UnreadableStore(Exception):
    """The file is none of Mosquitto's stores, or of a version that is not known here; nothing was read."""


@dataclass(slots=True, eq=False)
class ImportedMessage:
    """An Application Message; `expires_at` is in seconds of the wall clock since 1970, 0 without an expiry.

    `number` is its place among all that were read.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties | None
    expires_at: int
    publisher: str
    publisher_user: str | None
    number: int


@dataclass(slots=True)
class ImportedDelivery:
    """A message on its way to a client: QUEUED, or in flight under its Packet Identifier."""

    message: ImportedMessage
    qos: int
    retain: bool
    identifier: int
    packet_id: int
    state: int


@dataclass(slots=True)
class ImportedSession:
    """A Session; `expires_at` is in seconds of the wall clock, 0 without one or while its client was connected."""

    client_id: str
    username: str | None
    expiry_interval: int
    expires_at: int
    subscriptions: dict[str, StoredSubscription] = field(default_factory=dict)
    received: dict[int, ImportedMessage] = field(default_factory=dict)
    in_flight: dict[int, ImportedDelivery] = field(default_factory=dict)
    queued: list[ImportedDelivery] = field(default_factory=list)


@dataclass(slots=True)
class ImportedWill:
    """A Will whose client was connected, or gone for less than its delay in seconds."""

    message: ImportedMessage
    delay: int


@dataclass(slots=True)
class Imported:
    """All that could be read. Where `damage` is not empty it says what stopped the reading and where."""

    path: Path
    form: str = ""  # and its version
    sessions: dict[str, ImportedSession] = field(default_factory=dict)
    retained: dict[str, ImportedMessage] = field(default_factory=dict)
    wills: dict[str, ImportedWill] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)  # by reason, what was read and is of no use
    damage: str = ""
    message_count: int = 0

    # The readers hand over what they find with these; what no broker could use is counted in `skipped`.

    def message(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        properties: Properties | None,
        expires_at: int,
        publisher: str,
        publisher_user: str | None = None,
    ) -> ImportedMessage | None:
        """Give a message, or None where no PUBLISH could carry it."""
        try:
            check_topic_name(topic)
        except MqttError:
            self.skipped["messages with an invalid topic"] += 1
            return None
        if qos > 2:
            self.skipped["messages with an invalid QoS"] += 1
            return None
        if len(payload) > MAXIMUM_REMAINING_LENGTH - _HEAD_BYTES:
            self.skipped["messages larger than MQTT allows"] += 1
            return None
        self.message_count += 1
        own = _of_message(properties)
        return ImportedMessage(
            topic, payload, qos, retain, own, max(expires_at, 0), publisher, publisher_user or None, self.message_count
        )

    def will(self, client_id: str, message: ImportedMessage | None, properties: Properties | None, delay: int) -> None:
        """Add a Will, whose Message Expiry Interval counts from when it is published."""
        if message is None:
            return
        if properties is not None and properties.message_expiry_interval is not None:
            message.properties = message.properties or Properties()
            message.properties.message_expiry_interval = properties.message_expiry_interval
        self.wills[client_id] = ImportedWill(message, delay)

    def session(self, client_id: str, username: str | None, expiry_interval: int, expires_at: int) -> None:
        """Add a Session, or replace what is known of it."""
        if not client_id:
            self.skipped["sessions without a client id"] += 1
            return
        known = self.sessions.get(client_id)
        if known is None:
            self.sessions[client_id] = ImportedSession(client_id, username, expiry_interval, max(expires_at, 0))
        else:
            known.username = username
            known.expiry_interval = expiry_interval
            known.expires_at = max(expires_at, 0)

    def subscription(self, client_id: str, topic_filter: str, options: int, identifier: int) -> None:
        """Add a subscription; `options` as in SUBSCRIBE (MQTT 5 §3.8.3.1)."""
        session = self.sessions.get(client_id)
        if session is None:
            self.skipped["subscriptions without their session"] += 1
            return
        try:
            check_topic_filter(topic_filter)
        except MqttError:
            self.skipped["subscriptions with an invalid filter"] += 1
            return
        qos = options & 3
        if qos > 2 or not 0 <= identifier <= MAXIMUM_REMAINING_LENGTH:
            self.skipped["subscriptions with invalid options"] += 1
            return
        session.subscriptions[topic_filter] = StoredSubscription(
            qos, bool(options & 0x04), bool(options & 0x08), identifier
        )

    def retain(self, message: ImportedMessage | None) -> None:
        """Add a retained message; None where the file does not have it (Mosquitto leaves out what has expired)."""
        if message is None:
            self.skipped["retained without their message"] += 1
        elif not message.payload:
            self.skipped["retained without a payload"] += 1
        elif message.topic.startswith("$SYS/"):
            self.skipped["retained of $SYS"] += 1
        else:
            self.retained[message.topic] = message

    def incoming(self, client_id: str, message: ImportedMessage | None, packet_id: int, qos: int, state: int) -> None:
        """Add a message that a client sent: at QoS 2 until its PUBREL; at QoS 1 it was handed on at once."""
        session = self._session_for(client_id, message, qos, state)
        if session is None or message is None:
            return
        if qos != 2 or state == _RESEND_PUBCOMP:
            self.skipped["incoming messages that were handed on already"] += 1
        elif packet_id == 0:
            self.skipped["incoming messages without a packet identifier"] += 1
        else:
            session.received[packet_id] = message

    def outgoing(
        self,
        client_id: str,
        message: ImportedMessage | None,
        packet_id: int,
        qos: int,
        retain: bool,
        identifier: int,
        state: int,
    ) -> None:
        """Add a message for a client, behind those added before."""
        session = self._session_for(client_id, message, qos, state)
        if session is None or message is None:
            return
        if qos == 0:
            self.skipped["queued messages with QoS 0"] += 1
            return
        if not 0 <= identifier <= MAXIMUM_REMAINING_LENGTH:
            identifier = 0
        delivery = ImportedDelivery(message, qos, retain, identifier, 0, QUEUED)
        if packet_id and packet_id not in session.in_flight:
            if qos == 2 and state in _RELEASED:
                delivery.state = AWAITING_PUBCOMP
            elif state in _AWAITING_ACKNOWLEDGEMENT:
                delivery.state = AWAITING_PUBACK if qos == 1 else AWAITING_PUBREC
        if delivery.state == QUEUED:  # Mosquitto gives identifiers to what it queues; nobody has seen them
            session.queued.append(delivery)
        else:
            delivery.packet_id = packet_id
            session.in_flight[packet_id] = delivery

    def _session_for(
        self, client_id: str, message: ImportedMessage | None, qos: int, state: int
    ) -> ImportedSession | None:
        session = self.sessions.get(client_id)
        if message is None:
            self.skipped["deliveries without their message"] += 1
        elif session is None:
            self.skipped["deliveries without their session"] += 1
        elif qos > 2 or state not in _STATES:
            self.skipped["deliveries with an invalid QoS or state"] += 1
        else:
            return session
        return None


@dataclass(slots=True)
class Counts:
    """What went into the store, and what was left out because its time is over or because ours is newer."""

    sessions: int = 0
    subscriptions: int = 0
    queued: int = 0
    in_flight: int = 0
    received: int = 0
    retained: int = 0
    wills: int = 0
    sessions_ended: int = 0  # they lasted as long as their connection
    sessions_expired: int = 0
    messages_expired: int = 0
    sessions_known: int = 0  # our store had them already
    retained_known: int = 0


def write(
    store: Store,
    commit: int,
    imported: Imported,
    now: float,
    wall_now: float | None,
    *,
    known_sessions: Container[str] = (),
    known_retained: Container[str] = (),
) -> Counts:
    """Put everything into a store under one commit number; sessions and topics that it knows stay as they are.

    `now` is the broker's clock, `wall_now` the time since 1970 or None where that is not known: messages with an expiry
    have then expired, and sessions have their whole interval before them.
    """
    writer = _Writer(store, commit, now, wall_now)
    wills = [item for item in imported.wills.items() if item[0] not in known_sessions]
    sessions = [session for session in imported.sessions.values() if session.client_id not in known_sessions]
    writer.counts.sessions_known = len(imported.sessions) - len(sessions)
    writer.write_queues([session for session in sessions if writer.write_session(session)])
    for topic, message in imported.retained.items():
        if topic in known_retained:
            writer.counts.retained_known += 1
        elif writer.is_over(message):
            writer.counts.messages_expired += 1
        else:
            store.set(commit, RETAINED, (topic,), writer.message(message))
            writer.counts.retained += 1
    for client_id, will in wills:  # how long the client may be silent is not known
        store.set(commit, WILLS, (client_id,), StoredWill(writer.message(will.message), will.delay, 0, NEVER))
        writer.counts.wills += 1
    return writer.counts


class _Writer:
    """Each message becomes one object, however many sessions wait for it, so that the store can keep it once."""

    def __init__(self, store: Store, commit: int, now: float, wall_now: float | None) -> None:
        self.counts = Counts()
        self._store = store
        self._commit = commit
        self._now = now
        self._wall_now = wall_now
        self._messages: dict[int, Message] = {}

    def message(self, imported: ImportedMessage) -> Message:
        message = self._messages.get(id(imported))
        if message is None:
            expires_at = NEVER
            if imported.expires_at:
                expires_at = max(self._now + self._left(imported.expires_at), _SOONEST)
            message = self._messages[id(imported)] = Message(
                imported.topic,
                imported.payload,
                imported.qos,
                imported.retain,
                imported.properties,
                expires_at,
                imported.publisher,
            )
            message.publisher_user = imported.publisher_user
        return message

    def is_over(self, message: ImportedMessage) -> bool:
        return message.expires_at != 0 and self._left(message.expires_at) <= 0

    def write_session(self, session: ImportedSession) -> bool:
        """Write what there is of a Session beside its queue, and say whether it lasts."""
        store, commit, counts = self._store, self._commit, self.counts
        client_id = session.client_id
        interval = session.expiry_interval
        if interval == 0:
            counts.sessions_ended += 1
            return False
        expires_at = NEVER
        if interval != NEVER_EXPIRES:
            left = float(interval)  # it was connected when the file was written, and is not now
            if session.expires_at and self._wall_now is not None:
                left = min(left, session.expires_at - self._wall_now)
            if left <= 0:
                counts.sessions_expired += 1
                return False
            expires_at = self._now + left
        store.set(commit, SESSIONS, (client_id,), StoredSession(interval, expires_at, session.username))
        counts.sessions += 1
        for topic_filter, subscription in session.subscriptions.items():
            store.set(commit, SUBSCRIPTIONS, (client_id, topic_filter), subscription)
            counts.subscriptions += 1
        for packet_id, message in session.received.items():
            store.set(commit, RECEIVED, (client_id, str(packet_id)), self.message(message))
            counts.received += 1
        return True

    def write_queues(self, sessions: list[ImportedSession]) -> None:
        """Write the deliveries of each Session in their order, and those of one message together where that allows it.

        A store keeps a message once for deliveries that follow each other.
        """
        for client_id, delivery, position in heapq.merge(*map(self._queue, sessions), key=_message_number):
            own = Delivery(self.message(delivery.message), delivery.qos, delivery.retain, delivery.identifier, position)
            own.packet_id = delivery.packet_id
            own.state = delivery.state
            self._store.append(self._commit, client_id, own)

    def _queue(self, session: ImportedSession) -> Iterator[tuple[str, ImportedDelivery, int]]:
        """Give the deliveries of a Session with their positions, those in flight first."""
        position = 0
        for delivery in session.in_flight.values():  # the client knows their identifiers: they do not expire any more
            position += 1
            self.counts.in_flight += 1
            yield session.client_id, delivery, position
        for delivery in session.queued:
            if self.is_over(delivery.message):
                self.counts.messages_expired += 1
                continue
            position += 1
            self.counts.queued += 1
            yield session.client_id, delivery, position

    def _left(self, expires_at: int) -> float:
        """How many seconds are left until a point in time, not more than an expiry can say."""
        if self._wall_now is None:
            return 0.0
        return min(expires_at - self._wall_now, float(NEVER_EXPIRES))


def _message_number(item: tuple[str, ImportedDelivery, int]) -> int:
    return item[1].message.number


def _of_message(properties: Properties | None) -> Properties | None:
    """Give what belongs to the message alone: expiry, alias and identifiers are said anew for each receiver."""
    if properties is None:
        return None
    own = Properties(
        payload_format_indicator=properties.payload_format_indicator,
        content_type=properties.content_type,
        response_topic=properties.response_topic,
        correlation_data=properties.correlation_data,
        user_properties=properties.user_properties,
    )
    return None if own == Properties() else own
