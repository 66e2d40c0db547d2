"""What every client saw of a broker, and what of it cannot be: lost, repeated, out of order, come back.

The oracle believes only what a client received: a message counts as acknowledged from the moment its PUBACK or PUBCOMP
was read, a subscription from its SUBACK on. It has no clock or socket; times are those of one process.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from lockgate.mqtt.topics import matches

REPORTED: Final = 12  # violations of one kind that are told in full
REMEMBERED: Final = 40  # of what happened to one client's connections

LOST: Final = "acknowledged and lost"
REPEATED: Final = "QoS 2 delivered twice"
DISORDERED: Final = "out of order"
INVENTED: Final = "nobody published this"
UNASKED: Final = "delivered after UNSUBACK"
SESSION_LOST: Final = "session lost"
UNSETTLED: Final = "an exchange does not end"
RETAINED: Final = "retained message older than acknowledged"
IDENTIFIER: Final = "packet identifier in use"
ACKNOWLEDGEMENT: Final = "acknowledgement out of order"
NONSENSE: Final = "a packet that no broker may send"


@dataclass(slots=True)
class Event:
    """Something one client saw or did."""

    at: float
    round: int
    client: str
    what: str
    packet_id: int

    def __str__(self) -> str:
        identifier = f" [{self.packet_id}]" if self.packet_id else ""
        return f"{self.at:.4f} round {self.round:3} {self.client}: {self.what}{identifier}"


@dataclass(slots=True, eq=False)
class Note:
    """A message, from its first PUBLISH on."""

    publisher: str
    topic: str
    seq: int  # counted by publisher and topic
    qos: int
    clears: bool  # a retained message without payload
    sent: float
    acknowledged: float | None = None
    refused: bool = False
    refusable: bool = False  # by an acknowledgement, in version 5
    deliveries: Counter[str] = field(default_factory=Counter)  # by client
    events: list[Event] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.publisher} {self.topic} #{self.seq} (QoS {self.qos})"


@dataclass(slots=True)
class Span:
    """One stay of a Topic Filter in a Session, from the first SUBSCRIBE to the UNSUBACK."""

    topic_filter: str
    asked: float
    granted: float | None = None
    leaving: float | None = None  # the first UNSUBSCRIBE
    gone: float | None = None

    def covers(self, moment: float) -> bool:
        """Whether the subscription has been there since that moment."""
        return self.granted is not None and self.granted <= moment and self.gone is None

    def must_have(self, note: Note) -> bool:
        """Whether the subscription was there for certain while the message went through the broker."""
        return (
            self.granted is not None
            and self.granted <= note.sent
            and note.acknowledged is not None
            and (self.leaving is None or note.acknowledged < self.leaving)
        )

    def may_have(self, note: Note) -> bool:
        """Whether it may have been there at some moment of that."""
        return (note.acknowledged is None or self.asked <= note.acknowledged) and (
            self.gone is None or note.sent <= self.gone
        )


class Oracle:
    """Takes every packet that matters, and tells what is wrong at once or when everything has settled."""

    def __init__(self) -> None:
        self.round = 0
        self.history: list[str] = []  # what was done to the broker
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()  # violations by kind
        self.sums: Counter[str] = Counter()
        self._notes: dict[tuple[str, str, int], Note] = {}
        self._settled: dict[tuple[str, str], int] = {}  # publisher, topic: sequence up to which all is forgotten
        self._spans: dict[str, list[Span]] = {}  # by client
        self._last: dict[tuple[str, str, str], int] = {}  # client, publisher, topic: last first delivery
        self._retained: dict[str, list[Note]] = {}  # by topic, the last acknowledged first
        self._cleared: dict[str, int] = {}  # by topic, the last sequence sent that clears
        self._lives: dict[str, deque[str]] = {}  # by client

    # --- what happens to connections ---

    def happened(self, at: float, what: str) -> None:
        """Something was done to the broker."""
        self.history.append(f"{at:.4f} round {self.round}: {what}")

    def lived(self, at: float, client: str, what: str) -> None:
        """Something happened to a client's connection."""
        self._lives.setdefault(client, deque(maxlen=REMEMBERED)).append(f"{at:.4f} round {self.round}: {what}")

    def session_lost(self, at: float, client: str, holding: str) -> None:
        """CONNACK said that there is no session, though it had been acknowledged."""
        self._violate(SESSION_LOST, f"{client} held {holding}", None, client)
        for span in self._spans.get(client, ()):
            if span.gone is None:
                span.leaving, span.gone = 0.0, at  # told once, not again for each message

    def nonsense(self, client: str, what: str) -> None:
        """A client could make nothing of a packet."""
        self._violate(NONSENSE, f"{client}: {what}", None, client)

    # --- publishers ---

    def sent(self, at: float, note: Note, packet_id: int, what: str) -> None:
        """A publisher wrote a PUBLISH or PUBREL."""
        key = (note.publisher, note.topic, note.seq)
        if key not in self._notes:
            self._notes[key] = note
            self.sums["sent"] += 1
            if note.topic.startswith("retained/"):
                self._retained.setdefault(note.topic, []).append(note)
                if note.clears:
                    self._cleared[note.topic] = note.seq
        note.events.append(Event(at, self.round, note.publisher, what, packet_id))

    def answered(self, at: float, note: Note, packet_id: int, what: str) -> None:
        """A publisher read PUBREC, or an answer that ended nothing."""
        note.events.append(Event(at, self.round, note.publisher, what, packet_id))

    def acknowledged(self, at: float, note: Note, packet_id: int, what: str) -> None:
        """A publisher read PUBACK or PUBCOMP: from now on the message must not be lost."""
        note.events.append(Event(at, self.round, note.publisher, what, packet_id))
        note.acknowledged = at
        self.sums["acknowledged"] += 1
        if note.topic.startswith("retained/"):
            history = self._retained[note.topic]
            if note in history:
                del history[: history.index(note)]

    def refused(self, at: float, note: Note, packet_id: int, what: str) -> None:
        """A publisher was told that its message is not taken."""
        note.events.append(Event(at, self.round, note.publisher, what, packet_id))
        note.refused = True
        self.sums["refused"] += 1
        if note.topic.startswith("retained/"):
            self._retained[note.topic].remove(note)

    def acknowledged_out_of_order(self, client: str, packet_id: int, expected: str) -> None:
        """An answer came before the one to an earlier packet of its kind."""
        self._violate(ACKNOWLEDGEMENT, f"{client} was answered to [{packet_id}] before {expected}", None, client)

    # --- subscribers ---

    def span(self, client: str, span: Span) -> None:
        """A subscriber sends SUBSCRIBE for the first time."""
        self._spans.setdefault(client, []).append(span)

    def delivered(
        self, at: float, client: str, publisher: str, topic: str, seq: int, qos: int, packet_id: int, dup: bool
    ) -> None:
        """A subscriber got a message, that no identifier it remembers names as one it already has."""
        self.sums["delivered"] += 1
        note = self._notes.get((publisher, topic, seq))
        if note is None:
            described = f"{client} got {publisher} {topic} #{seq} at QoS {qos} [{packet_id}]"
            if seq > self._settled.get((publisher, topic), 0):
                self._violate(INVENTED, described, None, client)
            elif qos == 2:
                self._violate(REPEATED, f"{described}, which was settled long ago", None, client)
            else:
                self.sums["repeated"] += 1
            return
        what = f"got it at QoS {qos}{', DUP' if dup else ''}"
        note.events.append(Event(at, self.round, client, what, packet_id))
        note.deliveries[client] += 1
        if note.deliveries[client] > 1:
            self.sums["repeated"] += 1
            if qos == 2:
                self._violate(REPEATED, f"{client} got {note} again", note, client)
            return
        spans = [span for span in self._spans.get(client, ()) if matches(span.topic_filter, topic)]
        if not any(span.may_have(note) for span in spans):
            self._violate(UNASKED, f"{client} got {note}, its subscriptions were {spans}", note, client)
        key = (client, publisher, topic)
        before = self._last.get(key, 0)
        self._last[key] = max(before, seq)
        # What was sent before the subscription may have been missed, and be heard when it is sent again.
        if seq < before and any(span.covers(note.sent) for span in spans):
            if self._may_have_been_refused(note):
                self.sums["late"] += 1
                return
            self._violate(DISORDERED, f"{client} got {note} after #{before}", note, client)

    def _may_have_been_refused(self, note: Note) -> bool:
        """Whether a broker that refuses some messages may have done so with this one, before the connection was cut.

        The publisher has not heard of it and sends it again, behind what was taken of it in the meantime.
        """
        sent = sum(event.client == note.publisher and event.what.startswith("PUBLISH") for event in note.events)
        return bool(note.refusable and self.sums["refused"] and sent > 1)

    def saw(self, at: float, client: str, publisher: str, topic: str, seq: int, what: str, packet_id: int) -> None:
        """A subscriber did something further about a message: acknowledged it, saw it again under its identifier."""
        note = self._notes.get((publisher, topic, seq))
        if note is not None:
            note.events.append(Event(at, self.round, client, what, packet_id))

    def identifier_in_use(self, client: str, packet_id: int, held: str, came: str) -> None:
        """A PUBLISH came under an identifier whose PUBREL has not come."""
        self._violate(IDENTIFIER, f"{client} holds {held} under [{packet_id}] and got {came}", None, client)

    def unreleased(self, client: str, packet_id: int, held: str) -> None:
        """A subscriber waits in vain for PUBREL."""
        self._violate(UNSETTLED, f"{client} has sent PUBREC for {held} [{packet_id}], no PUBREL comes", None, client)

    def unanswered(self, client: str, waiting: str, note: Note | None = None) -> None:
        """A client waits in vain for an answer."""
        self._violate(UNSETTLED, f"{client} waits for the answer to {waiting}", note, client)

    # --- retained messages ---

    def retained_floors(self) -> dict[str, int]:
        """By topic the lowest sequence that a subscription made now may bring; 0 where none was acknowledged."""
        return {
            topic: history[0].seq if history and history[0].acknowledged is not None else 0
            for topic, history in self._retained.items()
        }

    def may_be_absent(self, topic: str, floor: int) -> bool:
        """Whether a subscription may bring nothing: the message was cleared at `floor` or later, or there was none."""
        return floor == 0 or self._cleared.get(topic, 0) >= floor

    def check_retained(self, client: str, topic: str, floor: int, seq: int | None) -> None:
        """Compare what a new subscription brought, None for nothing, with what was acknowledged before it."""
        self.sums["retained"] += 1
        if seq is None and not self.may_be_absent(topic, floor):
            found = "nothing"
        elif seq is not None and seq < floor:
            found = f"#{seq}"
        else:
            return
        note = next((note for note in self._retained[topic] if note.seq == floor), None)
        self._violate(RETAINED, f"{client} got {found} for {topic}, #{floor} was acknowledged", note, client)

    # --- when everything has settled ---

    def missing(self) -> list[tuple[str, Note]]:
        """Whom an acknowledged message has not reached that must have it."""
        found: list[tuple[str, Note]] = []
        for note in self._notes.values():
            if note.acknowledged is None or note.topic.startswith("retained/"):
                continue
            for client, spans in self._spans.items():
                if not note.deliveries[client] and any(
                    span.must_have(note) and matches(span.topic_filter, note.topic) for span in spans
                ):
                    found.append((client, note))
        return found

    def settle(self) -> None:
        """Tell what is missing, and forget all messages that are done with; nothing may be under way."""
        for client, note in self.missing():
            self._violate(LOST, f"{client} never got {note}", note, client)
        for key, note in list(self._notes.items()):
            if note.acknowledged is not None or note.refused:
                del self._notes[key]
                stream = (note.publisher, note.topic)
                self._settled[stream] = max(self._settled.get(stream, 0), note.seq)
        for spans in self._spans.values():
            spans[:] = [span for span in spans if span.gone is None]

    def report(self) -> str:
        """All violations in words, the empty string when there are none."""
        if not self.counts:
            return ""
        totals = ", ".join(f"{kind}: {count}" for kind, count in self.counts.most_common())
        return "\n".join(
            [totals, f"in all: {dict(self.sums)}", *self.violations, "what was done:", *self.history[-60:]]
        )

    def _violate(self, kind: str, what: str, note: Note | None, client: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] > REPORTED:
            return
        lines = [f"round {self.round}: {kind}: {what}"]
        lives = [client]
        if note is not None:
            lives.insert(0, note.publisher)
            lines += [f"    {event}" for event in note.events if event.client in lives]
        for name in dict.fromkeys(lives):
            lines += [f"    {name}'s connections:", *(f"        {line}" for line in self._lives.get(name, ()))]
        self.violations.append("\n".join(lines))
