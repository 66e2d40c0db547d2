"""The retained messages that new Subscriptions still have to get (MQTT 5 §3.3.1.3), filter by filter."""

from __future__ import annotations

from typing import final

from lockgate.broker.ports import Message


@final
class Backlog:
    """What a connection waits for: the messages found for one filter, and the filters whose turn has not come.

    Looking for them is put off until then: the messages of a thousand filters at once would be more than memory holds.
    """

    __slots__ = ("_at", "_found", "qos_0_only", "since", "topic_filter", "waiting")

    def __init__(self, qos_0_only: bool) -> None:
        self.qos_0_only = qos_0_only  # the Session has kept the others
        self.waiting: dict[str, float] = {}  # filters as they were requested, and when
        self.topic_filter = ""  # the one whose messages were found
        self.since = 0.0  # when it was subscribed to
        self._found: list[Message] = []
        self._at = 0

    def add(self, topic_filter: str, now: float) -> None:
        """Put a filter at the end; if it is there already, it begins anew."""
        self.discard(topic_filter)
        self.waiting[topic_filter] = now

    def discard(self, topic_filter: str) -> None:
        """Forget a filter and what was found for it."""
        if topic_filter == self.topic_filter:
            self.begin("", [])
        self.waiting.pop(topic_filter, None)

    def take_filter(self) -> str:
        """Take the next filter to look for; `begin` follows with what was found. Only while some are `waiting`."""
        topic_filter = next(iter(self.waiting))
        self.since = self.waiting.pop(topic_filter)
        return topic_filter

    def begin(self, topic_filter: str, found: list[Message]) -> None:
        """Set what was found for a filter."""
        self.topic_filter = topic_filter
        self._found = found
        self._at = 0

    def first(self) -> Message | None:
        """Give the next message of the current filter, None when there is none."""
        return self._found[self._at] if self._at < len(self._found) else None

    def step(self) -> None:
        """Go on to the message after it."""
        self._at += 1
        if self._at == len(self._found):
            self.begin("", [])
