"""What a bridge carries, and how each topic is called on the other side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, final

from lockgate.config.model import BridgeTopic
from lockgate.mqtt.topics import matches

_REMEMBERED: Final = 4096  # topics each way


@final
class Direction:
    """The `topic` lines of one direction; where several match a topic, the first counts."""

    def __init__(self, lines: Iterable[tuple[str, int, str, str, str]]) -> None:
        """`lines` are Topic Filter, QoS, the prefix that is taken off, the one put before what is left, and the Topic
        Filter of the other side.
        """
        self.filters: dict[str, int] = {}  # and the QoS of each
        self._lines = list(lines)
        for topic_filter, qos, *_others in self._lines:
            self.filters.setdefault(topic_filter, qos)
        self._known: dict[str, str | None] = {}

    def map(self, topic: str) -> str | None:
        """Give a topic's name on the other side; None when no line carries it."""
        try:
            return self._known[topic]
        except KeyError:
            pass
        mapped = self._map(topic)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[topic] = mapped
        return mapped

    def _map(self, topic: str) -> str | None:
        for topic_filter, _qos, off, on, other_filter in self._lines:
            if matches(topic_filter, topic):
                mapped = on + topic[len(off) :]
                # taking a prefix off must not make $CONTROL of it for a line that says "#" [MQTT-4.7.2-1]
                return None if mapped.startswith("$") and not other_filter.startswith("$") else mapped
        return None


@final
class TopicMap:
    """Both directions of one bridge."""

    def __init__(self, topics: Iterable[BridgeTopic]) -> None:
        topics = list(topics)
        self.out = Direction(
            (one.local_filter, one.qos, one.local_prefix, one.remote_prefix, one.remote_filter)
            for one in topics
            if one.direction in ("out", "both")
        )
        self.inwards = Direction(
            (one.remote_filter, one.qos, one.remote_prefix, one.local_prefix, one.local_filter)
            for one in topics
            if one.direction in ("in", "both")
        )
        # Remote filters in the order of their lines, each with the QoS we want it at; None: we do not want it, and may
        # have in an earlier configuration.
        self.remote = {one.remote_filter: self.inwards.filters.get(one.remote_filter) for one in topics}
