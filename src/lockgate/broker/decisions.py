"""Why messages were not delivered: a ring of decisions, allocated once, that can be asked afterwards."""

from __future__ import annotations

from typing import Final, final

# Decisions about a message for one receiver
QUEUE_FULL: Final = 0
SLOW_READER: Final = 1
EXPIRED: Final = 2
TOO_LARGE: Final = 3
NO_LOCAL: Final = 4
SHED: Final = 5
NOT_CONNECTED: Final = 6
NOT_PERMITTED: Final = 7
# Decisions about a message of one publisher
REFUSED: Final = 8
NOT_RETAINED: Final = 9
# What happened to a client
DISCONNECTED: Final = 10
SESSION_ENDED: Final = 11
# Why there is no retained message any more
CLEARED: Final = 12
RETAINED_EXPIRED: Final = 13

NAMES: Final = (
    "queue full",
    "slow reader",
    "expired",
    "too large",
    "no local",
    "memory budget spent",
    "not connected",
    "not permitted",
    "refused",
    "not retained",
    "disconnected",
    "session ended",
    "retained cleared",
    "retained expired",
)

_CHARACTERS: Final = 512  # of a topic, a client id or a detail that are kept


@final
class Decision:
    """One decision: the same for one client and topic counts up instead of taking another place."""

    __slots__ = ("client_id", "count", "detail", "first_at", "last_at", "reason", "topic")

    def __init__(self) -> None:
        self.reason = -1
        self.client_id = ""
        self.topic = ""  # empty for what happened to a client
        self.detail = ""
        self.count = 0
        self.first_at = 0.0  # broker's clock, like `last_at`
        self.last_at = 0.0


@final
class Decisions:
    """The last decisions, as many as there are places; the oldest gives its place to the next."""

    __slots__ = ("_known", "_next", "_places")

    def __init__(self, places: int) -> None:
        self._places = [Decision() for _place in range(places)]
        self._known: dict[tuple[int, str, str], Decision] = {}
        self._next = 0

    def record(self, reason: int, client_id: str, topic: str, now: float, detail: str = "") -> None:
        """Note a decision."""
        topic, client_id = _beginning(topic), _beginning(client_id)
        key = (reason, client_id, topic)
        decision = self._known.get(key)
        if decision is None:
            if not self._places:
                return
            decision = self._places[self._next]
            self._next = (self._next + 1) % len(self._places)
            if decision.count:
                del self._known[(decision.reason, decision.client_id, decision.topic)]
            self._known[key] = decision
            decision.reason = reason
            decision.client_id = client_id
            decision.topic = topic
            decision.count = 0
            decision.first_at = now
        decision.count += 1
        decision.last_at = now
        decision.detail = _beginning(detail)

    def find(self, client_id: str | None, topic: str | None) -> list[Decision]:
        """Give the decisions about a client and a topic, None for any, the latest first."""
        if topic is not None:
            topic = _beginning(topic)
        if client_id is not None:
            client_id = _beginning(client_id)
        found = [
            decision
            for decision in self._known.values()
            if (client_id is None or decision.client_id == client_id) and (topic is None or decision.topic == topic)
        ]
        found.sort(key=_last_at, reverse=True)
        return found

    def since(self) -> float:
        """Give the time of the oldest decision that is still known, 0 while nothing has been forgotten."""
        oldest = self._places[self._next] if self._places else None
        return oldest.first_at if oldest is not None and oldest.count else 0.0


def _beginning(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS]


def _last_at(decision: Decision) -> float:
    return decision.last_at
