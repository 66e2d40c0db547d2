"""A scenario is played by named actors, each behind a public client; what each of them sees becomes the transcript."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

WAIT_SECONDS = 10.0
_BARRIER = "nobody/is/subscribed/here"
# Property names are ours (those of `lockgate.mqtt.properties`), values those of the wire.
Told = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Will:
    """A Will Message."""

    topic: str
    payload: str = "gone"
    qos: int = 0
    retain: bool = False
    delay: int = 0
    properties: Told = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What CONNECT says. `properties` exist in version 5 only."""

    client_id: str
    clean: bool = True
    keep_alive: int = 60
    will: Will | None = None
    properties: Told = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One Topic Filter of SUBSCRIBE; all but the QoS is version 5's."""

    topic_filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0


@dataclass(frozen=True)
class Event:
    """Something a client saw; `stream` is empty for all but messages: what has an order of its own (§4.6)."""

    stream: tuple[object, ...]
    text: str


class Events:
    """What a client saw, filled by whatever thread the client has."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Event] = []
        self._done: dict[object, list[int] | None] = {}  # answers, by what the client calls the question
        self.seen = 0
        self.messages = 0
        self.closed = False

    def add(self, text: str, stream: tuple[object, ...] = ()) -> None:
        """Note an event."""
        with self._changed:
            self.seen += 1
            self.messages += 1 if stream else 0
            self._waiting.append(Event(stream, text))
            self._changed.notify_all()

    def message(self, topic: str, payload: bytes, qos: int, retain: bool, dup: bool, properties: Told) -> None:
        """Note a message."""
        shown = repr(payload) if len(payload) <= 64 else f"{len(payload)} bytes, the last {payload[-4:]!r}"
        marks = f"qos={qos}{' retain' if retain else ''}{' dup' if dup else ''}"
        stream = (topic, qos, str(properties.get("subscription_identifiers")))
        self.add(f"{topic} {shown} {marks}{tell(properties)}", stream)

    def answer(self, question: object, codes: list[int]) -> None:
        """Note that something the client asked for is over."""
        with self._changed:
            self._done[question] = codes
            self._changed.notify_all()

    def close(self, text: str) -> None:
        """Note the end of the connection, once."""
        with self._changed:
            if self.closed:
                return
            self.closed = True
            self.seen += 1
            self._waiting.append(Event((), text))
            self._changed.notify_all()

    def ask(self, question: object) -> list[int] | None:
        """Wait for an answer; None when the connection ended before."""
        with self._changed:
            self._changed.wait_for(lambda: question in self._done or self.closed, WAIT_SECONDS)
            if question not in self._done and not self.closed:
                raise TimeoutError(f"no answer to {question}")
            return self._done.pop(question, None)

    def wait_messages(self, count: int) -> None:
        """Wait until so many messages have come in all."""
        with self._changed:
            self._changed.wait_for(lambda: self.messages >= count or self.closed, WAIT_SECONDS)

    def wait_closed(self) -> None:
        """Wait for the end of the connection."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.closed, WAIT_SECONDS):
                self._waiting.append(Event((), "is still connected"))

    def take(self, messages: bool) -> list[Event]:
        """Give what was seen since the last call; messages may be left for later."""
        with self._changed:
            taken = [event for event in self._waiting if messages or not event.stream]
            self._waiting = [] if messages else [event for event in self._waiting if event.stream]
            return taken


class Client(Protocol):
    """A public client under one roof. Each call returns when the client says it is over or the connection has ended."""

    events: Events

    def connect(self, options: Options) -> None:
        """Connect and note CONNACK."""

    def subscribe(self, filters: list[Filter], identifier: int | None) -> list[int] | None:
        """Subscribe and give the codes of SUBACK."""

    def unsubscribe(self, topic_filters: list[str]) -> list[int] | None:
        """Unsubscribe and give the codes of UNSUBACK, none before version 5."""

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool, properties: Told) -> list[int] | None:
        """Publish and give the Reason Code the client tells, if any."""

    def disconnect(self, reason_code: int, properties: Told) -> None:
        """Send DISCONNECT and close."""

    def drop(self) -> None:
        """Close the socket without a word."""


@dataclass(frozen=True)
class Kind:
    """A public client in one version over one transport, and what it cannot do."""

    name: str
    version: int
    websocket: bool
    make: Callable[[Kind, int], Client]  # for a port
    lacks: frozenset[str] = frozenset()


def tell(properties: Told) -> str:
    """Show properties, normalised: an expiry is rounded up to tens, as seconds may pass."""
    shown: list[str] = []
    for name, value in sorted(properties.items()):
        if value in (None, (), []):
            continue
        if name == "message_expiry_interval" and isinstance(value, int):
            value = -(-value // 10) * 10
        shown.append(f" {name}={value!r}")
    return "".join(shown)


class Actor:
    """One participant: a client, its name in the transcript, and the topics of its scenario."""

    def __init__(self, scene: Scene, name: str, client: Client) -> None:
        self.name = name
        self.client = client
        self.left = False
        self._scene = scene
        self._expected = 0

    def subscribe(self, *filters: Filter | str, qos: int = 0, identifier: int | None = None) -> None:
        """Subscribe to filters below the scenario's own topic."""
        whole = [Filter(topic_filter=given, qos=qos) if isinstance(given, str) else given for given in filters]
        scene = self._scene
        asked = [
            Filter(
                topic_filter=scene.topic(one.topic_filter),
                qos=one.qos,
                no_local=one.no_local,
                retain_as_published=one.retain_as_published,
                retain_handling=one.retain_handling,
            )
            for one in whole
        ]
        codes = self.client.subscribe(asked, identifier)
        scene.say(f"{self.name} subscribes to {', '.join(one.topic_filter for one in whole)}: {codes}")

    def unsubscribe(self, *topic_filters: str) -> None:
        """Unsubscribe."""
        codes = self.client.unsubscribe([self._scene.topic(topic_filter) for topic_filter in topic_filters])
        self._scene.say(f"{self.name} unsubscribes from {', '.join(topic_filters)}: {codes}")

    def publish(
        self, topic: str, payload: str | bytes = "x", qos: int = 0, retain: bool = False, **properties: object
    ) -> None:
        """Publish and wait for the end of the handshake."""
        scene = self._scene
        data = payload.encode() if isinstance(payload, str) else payload
        codes = self.client.publish(scene.topic(topic) if topic else "", data, qos, retain, properties)
        scene.say(f"{self.name} publishes {topic or 'by alias'} at QoS {qos}: {codes}")

    def disconnect(self, reason_code: int = 0, **properties: object) -> None:
        """Leave in order."""
        self.left = True
        self.client.disconnect(reason_code, properties)
        self._scene.say(f"{self.name} disconnects")

    def drop(self) -> None:
        """Break the connection."""
        self.left = True
        self.client.drop()
        self._scene.say(f"{self.name} is cut off")

    def expect(self, count: int) -> None:
        """Wait until this many more messages have come; if fewer do, the transcript shows it."""
        self._expected += count
        self.client.events.wait_messages(self._expected)

    def expect_closed(self) -> None:
        """Wait for the broker to end the connection."""
        self.client.events.wait_closed()

    def barrier(self) -> None:
        """Make a round trip: what the broker had sent before has arrived then."""
        if not self.left and not self.client.events.closed:
            self.client.unsubscribe([_BARRIER])


class Scene:
    """One run of a scenario by one kind of client against one broker."""

    def __init__(self, scenario: str, kind: Kind, port: int) -> None:
        self.kind = kind
        self.version = kind.version
        self.lines: list[str] = []
        self._port = port
        self._prefix = f"{scenario}/{kind.name}"
        self._actors: list[Actor] = []

    def topic(self, name: str) -> str:
        """Give a name or filter its place below the scenario's topic; one that begins with ! is taken as it is."""
        if name.startswith("!"):
            return name[1:]
        if name.startswith("$share/"):
            _share, group, rest = name.split("/", 2)
            return f"$share/{group}/{self.topic(rest)}"
        return f"{self._prefix}/{name}"

    def say(self, line: str) -> None:
        """Add a line to the transcript."""
        self.lines.append(line)

    def connect(
        self,
        name: str,
        client_id: str | None = None,
        clean: bool = True,
        keep_alive: int = 60,
        will: Will | None = None,
        **properties: object,
    ) -> Actor:
        """Bring an actor in; its client id is its name unless another one is given."""
        actor = Actor(self, name, self.kind.make(self.kind, self._port))
        self._actors.append(actor)
        own_id = f"{self._prefix}/{name if client_id is None else client_id}" if client_id != "" else ""
        if will is not None:
            will = Will(
                topic=self.topic(will.topic),
                payload=will.payload,
                qos=will.qos,
                retain=will.retain,
                delay=will.delay,
                properties=will.properties,
            )
        actor.client.connect(
            Options(client_id=own_id, clean=clean, keep_alive=keep_alive, will=will, properties=properties)
        )
        self._collect(actor, messages=False)  # those of a Session may follow CONNACK at once or a little later
        return actor

    def durable(self, name: str, expiry: int = 1000) -> Actor:
        """Bring an actor in whose Session outlives its connection."""
        if self.version != 5:
            return self.connect(name, clean=False)
        return self.connect(name, clean=False, session_expiry_interval=expiry)

    def settle(self) -> None:
        """Wait until nothing more arrives, and write down what everybody saw.

        Two round trips without news: at QoS 2 a message takes two until the client shows it.
        """
        quiet = 0
        while quiet < 2:
            before = sum(actor.client.events.seen for actor in self._actors)
            for actor in self._actors:
                actor.barrier()
            quiet = quiet + 1 if sum(actor.client.events.seen for actor in self._actors) == before else 0
        for actor in self._actors:
            self._collect(actor, messages=True)

    def pass_time(self, seconds: float) -> None:
        """Let an interval of the protocol run out: there is nothing to wait for but time itself."""
        self.settle()
        time.sleep(seconds)

    def end(self) -> list[str]:
        """Let everybody leave, and give the transcript."""
        self.settle()
        for actor in self._actors:
            if not actor.left and not actor.client.events.closed:
                actor.client.disconnect(0, {})
        return self.lines

    def _collect(self, actor: Actor, messages: bool) -> None:
        """Write down what one actor saw: first what is no message, then messages stream by stream."""
        events = actor.client.events.take(messages)
        for event in [event for event in events if not event.stream]:
            if not (event.text == "is disconnected" and actor.left):
                self.say(f"  {actor.name}: {self._plain(event.text)}")
        for event in sorted((event for event in events if event.stream), key=lambda event: event.stream):
            self.say(f"  {actor.name} gets {self._plain(event.text)}")

    def _plain(self, text: str) -> str:
        text = text.replace(f"{self._prefix}/", "")
        return re.sub(r"auto-[0-9A-F-]{36}", "<invented>", text)
