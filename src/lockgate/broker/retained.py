"""Retained messages: the last value of each topic (MQTT 5 §3.3.1.3)."""

from __future__ import annotations

import heapq
from typing import final

from lockgate.broker.ports import NEVER, Message


@final
class _Node:
    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[str, _Node] | None = None
        self.message: Message | None = None

    def is_empty(self) -> bool:
        return self.message is None and not self.children


@final
class Retained:
    """At most one Message for each Topic Name, found by name or by filter."""

    __slots__ = ("_expiring", "_expiry_heap", "_root", "count", "size_bytes", "visited")

    def __init__(self) -> None:
        self._root = _Node()
        self._expiring: dict[str, float] = {}  # when each message with an expiry ends, by topic
        self._expiry_heap: list[tuple[float, str]] = []  # the same by time, with entries that no longer hold
        self.count = 0
        self.visited = 0  # nodes, by the last `match`
        self.size_bytes = 0

    def get(self, topic_name: str) -> Message | None:
        """Give the retained Message of a topic."""
        node = self._root
        for level in topic_name.split("/"):
            child = node.children.get(level) if node.children is not None else None
            if child is None:
                return None
            node = child
        return node.message

    def set(self, message: Message) -> None:
        """Keep a Message as the last of its topic."""
        node = self._root
        for level in message.topic.split("/"):
            if node.children is None:
                node.children = {}
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        if node.message is None:
            self.count += 1
        else:
            self.size_bytes -= node.message.size()
        self.size_bytes += message.size()
        node.message = message
        if message.expires_at != NEVER:
            self._expire_at(message.topic, message.expires_at)
        elif self._expiring:
            self._expiring.pop(message.topic, None)

    def _expire_at(self, topic: str, at: float) -> None:
        expiring = self._expiring
        expiring[topic] = at
        heap = self._expiry_heap
        heapq.heappush(heap, (at, topic))
        if len(heap) > 2 * len(expiring) + 64:  # more entries are void than hold: start afresh
            heap = [(time, name) for name, time in expiring.items()]
            heapq.heapify(heap)
            self._expiry_heap = heap

    @property
    def any_expires(self) -> bool:
        """Whether there is a message that `next_expired` will give one day."""
        return len(self._expiring) > 0

    def next_expired(self, now: float) -> Message | None:
        """Give a Message whose time is over, to be removed, or None when there is none."""
        heap = self._expiry_heap
        while heap and heap[0][0] <= now:
            at, topic = heap[0]
            if self._expiring.get(topic) == at:
                return self.get(topic)
            heapq.heappop(heap)
        return None

    def remove(self, topic_name: str) -> bool:
        """Forget the retained Message of a topic; say whether there was one."""
        path: list[tuple[_Node, str]] = []
        node = self._root
        for level in topic_name.split("/"):
            child = node.children.get(level) if node.children is not None else None
            if child is None:
                return False
            path.append((node, level))
            node = child
        if node.message is None:
            return False
        self.count -= 1
        self.size_bytes -= node.message.size()
        node.message = None
        self._expiring.pop(topic_name, None)
        # Asked by a method: compiled, `node.message` would keep the type it was just given, for any later node.
        while path and node.is_empty():
            node, level = path.pop()
            if node.children is not None:
                del node.children[level]
        return True

    def match(self, topic_filter: str, now: float) -> list[Message]:
        """Give the retained Messages that match a filter and have not expired."""
        found: list[Message] = []
        self.visited = _collect(self._root, topic_filter.split("/"), 0, found, True)
        return [message for message in found if message.expires_at == NEVER or message.expires_at > now]


def _collect(node: _Node, levels: list[str], depth: int, found: list[Message], first: bool) -> int:
    """Add the messages below a node that match; give the number of nodes visited."""
    if depth == len(levels):
        if node.message is not None:
            found.append(node.message)
        return 1
    level = levels[depth]
    if level == "#":
        return _collect_all(node, found, first)
    visited = 1
    if node.children is None:
        return visited
    if level == "+":
        for name, child in node.children.items():
            if not (first and name.startswith("$")):
                visited += _collect(child, levels, depth + 1, found, False)
        return visited
    named = node.children.get(level)
    if named is not None:
        visited += _collect(named, levels, depth + 1, found, False)
    return visited


def _collect_all(node: _Node, found: list[Message], first: bool) -> int:
    visited = 1
    if node.message is not None:
        found.append(node.message)
    if node.children is not None:
        for name, child in node.children.items():
            if not (first and name.startswith("$")):
                visited += _collect_all(child, found, False)
    return visited
