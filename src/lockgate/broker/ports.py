"""What the broker asks of others: a store that keeps, a log that tells, an authority that knows users.

The core never waits. It tags each change it hands to the store with a commit number; the store's owner calls
`Broker.committed(number)` once that change and all before it are safe, and only then the packets leave that confirm it.
"""

from __future__ import annotations

from typing import Final, Protocol, final

from lockgate.mqtt.encoder import encode_publish_parts
from lockgate.mqtt.packets import V5
from lockgate.mqtt.properties import Properties

# Tables of `Store.set` and `Store.delete`, with their keys and values
SESSIONS: Final = "sessions"  # client id → StoredSession
SUBSCRIPTIONS: Final = "subscriptions"  # client id, Topic Filter → StoredSubscription
RETAINED: Final = "retained"  # Topic Name → Message
WILLS: Final = "wills"  # client id → StoredWill, of every Session, stored or not
RECEIVED: Final = "received"  # client id, Packet Identifier → Message

_MESSAGE_BYTES: Final = 450
_PROPERTIES_BYTES: Final = 400
_PAIR_BYTES: Final = 200
_PRINTED_CHARACTERS: Final = 256  # of a name that a peer chose

NEVER: Final = 0.0  # of a point in time: it never comes


def text_bytes(text: str) -> int:
    """Give what the characters of a string take in memory, at most: one that is not ASCII may make all of them wide."""
    return len(text) if text.isascii() else 4 * len(text)


@final
class Message:
    """An Application Message on its way through the broker, with its encodings, each made at most once.

    `expires_at` is in seconds of the broker's clock, NEVER without a Message Expiry Interval. `publisher` is the client
    id it came from, for No Local, empty for the Server itself; `publisher_user` is whose client that was.
    """

    __slots__ = (
        "_v3_frame",
        "_v3_head",
        "_v3_tail",
        "_v3_variant",
        "_v5_frame",
        "_v5_head",
        "_v5_tail",
        "_v5_variant",
        "arrived_at",
        "expires_at",
        "held_bytes",
        "holders",
        "payload",
        "properties",
        "publisher",
        "publisher_user",
        "qos",
        "retain",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        properties: Properties | None,
        expires_at: float,
        publisher: str,
        frame: bytes = b"",
        frame_version: int = 0,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties
        self.expires_at = expires_at
        self.publisher = publisher
        self.publisher_user: str | None = None
        self.arrived_at = 0.0
        self.holders = 0  # queues, windows, retained, … that hold it; counted by `broker.memory`
        self.held_bytes = 0
        self._v3_frame = b""
        self._v5_frame = b""
        if frame:
            if frame_version == V5:
                self._v5_frame = frame
            else:
                self._v3_frame = frame
        self._v3_variant = -1
        self._v3_head = b""
        self._v3_tail = b""
        self._v5_variant = -1
        self._v5_head = b""
        self._v5_tail = b""

    def size(self) -> int:
        """Give the bytes that count against limits: topic and payload."""
        return len(self.topic) + len(self.payload)

    def memory_bytes(self) -> int:
        """Give what it costs to hold, about: an encoding repeats the payload."""
        size = _MESSAGE_BYTES + 2 * text_bytes(self.topic) + 2 * len(self.payload)
        properties = self.properties
        if properties is not None:
            size += _PROPERTIES_BYTES
            for name, value in properties.user_properties:
                size += _PAIR_BYTES + text_bytes(name) + text_bytes(value)
            if properties.correlation_data is not None:
                size += len(properties.correlation_data)
            if properties.content_type is not None:
                size += text_bytes(properties.content_type)
            if properties.response_topic is not None:
                size += text_bytes(properties.response_topic)
        return size

    def frame_qos_0(self, version: int) -> bytes:
        """Give the QoS 0 PUBLISH without RETAIN for a version; a message with an expiry has none for version 5."""
        if version == V5:
            if not self._v5_frame:
                self._v5_frame = encode_publish_parts(
                    self.topic.encode("utf-8"), self.payload, 0, False, V5, self.properties
                )[0]
            return self._v5_frame
        if not self._v3_frame:
            self._v3_frame = encode_publish_parts(self.topic.encode("utf-8"), self.payload, 0, False, version, None)[0]
        return self._v3_frame

    def parts(self, version: int, qos: int, retain: bool) -> tuple[bytes, bytes]:
        """Give the PUBLISH of a version before and after its Packet Identifier."""
        variant = qos << 1 | (1 if retain else 0)
        if version == V5:
            if self._v5_variant != variant:
                self._v5_head, self._v5_tail = encode_publish_parts(
                    self.topic.encode("utf-8"), self.payload, qos, retain, V5, self.properties
                )
                self._v5_variant = variant
            return self._v5_head, self._v5_tail
        if self._v3_variant != variant:
            self._v3_head, self._v3_tail = encode_publish_parts(
                self.topic.encode("utf-8"), self.payload, qos, retain, version, None
            )
            self._v3_variant = variant
        return self._v3_head, self._v3_tail


# States of a Delivery (MQTT 5 §4.3)
QUEUED: Final = 0
AWAITING_PUBACK: Final = 1
AWAITING_PUBREC: Final = 2
AWAITING_PUBCOMP: Final = 3


@final
class Delivery:
    """One Message for one Session, from its queue until it is acknowledged.

    `position` orders the queue of a durable Session and names the row in the store; `packet_id` is 0 until it is sent.
    """

    __slots__ = (
        "dropped",
        "identifier",
        "message",
        "packet_id",
        "position",
        "qos",
        "retain",
        "share",
        "state",
        "stored_message",
    )

    def __init__(
        self, message: Message, qos: int, retain: bool, identifier: int, position: int, share: str = ""
    ) -> None:
        self.message = message
        self.qos = qos
        self.retain = retain
        self.identifier = identifier  # the Subscription Identifier, 0 without one
        self.position = position
        self.share = share  # the filter of the Shared Subscription that brought it, with $share; else empty
        self.packet_id = 0
        self.state = QUEUED
        self.dropped = False
        self.stored_message = 0  # the store's own number of the message


@final
class StoredSession:
    """What survives of a Session; `expires_at` is NEVER while it is connected or when it never expires."""

    __slots__ = ("expires_at", "expiry_interval", "username")

    def __init__(self, expiry_interval: int, expires_at: float, username: str | None) -> None:
        self.expiry_interval = expiry_interval
        self.expires_at = expires_at
        self.username = username


@final
class StoredSubscription:
    """The Subscription Options and Subscription Identifier (0: none) of one Topic Filter."""

    __slots__ = ("identifier", "no_local", "qos", "retain_as_published")

    def __init__(self, qos: int, no_local: bool, retain_as_published: bool, identifier: int) -> None:
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.identifier = identifier


@final
class StoredWill:
    """A Will, how long it waits after the connection and that connection's Keep Alive, both in seconds.

    `due_at` is NEVER as long as the connection lasts.
    """

    __slots__ = ("delay", "due_at", "keep_alive", "message")

    def __init__(self, message: Message, delay: int, keep_alive: int, due_at: float) -> None:
        self.message = message
        self.delay = delay
        self.keep_alive = keep_alive
        self.due_at = due_at


@final
class StoredQueue:
    """What `Broker.restore_session` has to know of a Session's deliveries; most of them stay in the store.

    `in_flight` are those that have a Packet Identifier, in order; the others lie behind `head_position`, up to
    `last_position`, and `count` and `size_bytes` are theirs.
    """

    __slots__ = ("count", "head_position", "in_flight", "last_position", "size_bytes")

    def __init__(self) -> None:
        self.in_flight: list[Delivery] = []
        self.count = 0
        self.size_bytes = 0
        self.head_position = 0
        self.last_position = 0


# Instead of the bytes that a store holds: there are none, its answers told it nothing that it has not looked at since,
# and until it is told something it has nothing to do.
RESTS: Final = -1


class Store(Protocol):
    """Keeps what must survive. No call waits or raises; answers come later, by commit number or `Broker.loaded`."""

    def append(self, commit: int, client_id: str, delivery: Delivery) -> None:
        """Add a delivery at the end of a Session's queue; its position is greater than all before it."""

    def update(self, commit: int, client_id: str, delivery: Delivery) -> None:
        """Note the Packet Identifier and the state of a delivery."""

    def acknowledge(self, commit: int, client_id: str, position: int) -> None:
        """Remove a delivery that is done or dropped."""

    def set(self, commit: int, table: str, key: tuple[str, ...], value: object) -> None:
        """Insert or replace one row."""

    def delete(self, commit: int, table: str, key: tuple[str, ...]) -> None:
        """Remove one row."""

    def end_session(self, commit: int, client_id: str) -> None:
        """Remove a Session with its Subscriptions, its deliveries and what it received; its Will is a row apart."""

    def want(self, client_id: str, after: int, limit: int) -> None:
        """Ask for at most `limit` queued deliveries after a position; the answer is `Broker.loaded`."""


class StoreAnswers(Protocol):
    """What a store tells its owner, in the thread of the core."""

    @property
    def awaited(self) -> int:
        """The highest commit number that a packet waits for."""

    def committed(self, number: int) -> None:
        """Every change up to this number is safe."""

    def loaded(self, client_id: str, deliveries: list[Delivery]) -> None:
        """These are the deliveries that were wanted."""

    def store_failed(self, reason_code: int) -> None:
        """Nothing can be written, for a reason that is told version 5 clients, until the next `committed`."""

    def store_damaged(self, problem: str) -> None:
        """What is stored cannot be relied on: only a new start, with what can be salvaged, leads on."""

    def wake(self) -> None:
        """End a turn: the store has an answer. Called by the event loop."""


class Keeper(Protocol):
    """Takes over what was stored, before the first client is let in: the Sessions come first."""

    def restore_session(
        self,
        client_id: str,
        stored: StoredSession,
        subscriptions: list[tuple[str, StoredSubscription]],
        received: dict[int, Message],
        queue: StoredQueue,
    ) -> None:
        """Take a Session."""

    def restore_retained(self, message: Message) -> None:
        """Take a retained message."""

    def restore_will(self, client_id: str, will: StoredWill) -> None:
        """Take a Will."""


def printable(name: str) -> str:
    """Give a name that a peer chose as a line of the log may show it, the beginning of one that would fill the log."""
    if len(name) > _PRINTED_CHARACTERS:
        name = name[:_PRINTED_CHARACTERS] + "…"
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


class Log(Protocol):
    """Where the broker tells what happened, in Mosquitto's log types."""

    def notice(self, text: str) -> None:
        """Say what an operator wants to know: connections, takeovers."""

    def warning(self, text: str) -> None:
        """Say what a peer did wrong."""

    def debug(self, text: str) -> None:
        """Say what only who looks for a mistake wants to know."""

    def subscribed(self, client: str, qos: int, topic_filter: str) -> None:
        """Say who subscribed to what."""

    def unsubscribed(self, client: str, topic_filter: str) -> None:
        """Say who ended a Subscription."""


# Answers to `Authority.ask_login`
DENIED: Final = 0
PERMITTED: Final = 1
LATER: Final = 2


class Authority(Protocol):
    """Knows who may come in and what each may do. `username` is None for an anonymous client. No call waits."""

    def ask_login(
        self, number: int, client_id: str, username: str | None, password: bytes | None, certified: bool
    ) -> int:
        """Say whether a client is let in: PERMITTED, DENIED, or LATER, and then by `Broker.login_answered(number, …)`.

        `certified`: its certificate has proved the user name, and there is no password. An empty client id is one that
        the Server has still to assign.
        """

    def may_publish(self, client_id: str, username: str | None, topic: str) -> bool:
        """Whether a client may publish to a topic."""

    def may_receive(self, client_id: str, username: str | None, topic: str) -> bool:
        """Whether a client may be sent a message of a topic."""

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        """Whether a client may subscribe to a filter, which stands without its `$share/NAME/`."""

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        """Whether a client may end a Subscription."""


class Control(Protocol):
    """Serves what clients publish below `$CONTROL/`."""

    def request(self, number: int, client_id: str, username: str | None, topic: str, payload: bytes) -> None:
        """Take a request of a client that may publish it, of the connection with that number. Answers come later."""


class AuthenticationStep(Protocol):
    """What an exchange answers."""

    @property
    def reason_code(self) -> int:
        """CONTINUE_AUTHENTICATION, SUCCESS, or the code of a refusal."""

    @property
    def data(self) -> bytes:
        """The Authentication Data for the client."""

    @property
    def username(self) -> str:
        """Who it is, with SUCCESS."""

    @property
    def detail(self) -> str:
        """For the log, with a refusal."""


class AuthenticationExchange(Protocol):
    """The Server's side of one exchange of an Authentication Method (MQTT 5 §4.12)."""

    def step(self, data: bytes) -> AuthenticationStep:
        """Answer the client's Authentication Data, which is empty where a packet had none. Does not raise or wait."""


class Authenticator(Protocol):
    """Knows Authentication Methods."""

    def begin(self, method: str) -> AuthenticationExchange | None:
        """Begin an exchange, or give None for a method that is not offered."""
