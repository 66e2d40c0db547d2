"""Who subscribed to what, level by level: from a Topic Name to its receivers (MQTT 5 §4.7, §4.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from lockgate.broker.session import Subscription


@final
class SharedGroup:
    """The Subscriptions of one ShareName to one filter; each message goes to one of them (§4.8.2)."""

    __slots__ = ("_in_turn", "_members", "turn")

    def __init__(self) -> None:
        self._members: dict[str, Subscription] = {}
        self._in_turn: list[Subscription] | None = None  # made when it is asked for
        self.turn = 0  # place of the member whose turn is next; it may lie behind the last

    def add(self, client_id: str, subscription: Subscription) -> bool:
        """Add a member, or replace its Subscription; say whether it is new."""
        is_new = client_id not in self._members
        self._members[client_id] = subscription
        self._in_turn = None
        return is_new

    def remove(self, client_id: str) -> bool:
        """Remove a member; say whether it was one."""
        self._in_turn = None
        return self._members.pop(client_id, None) is not None

    def is_empty(self) -> bool:
        """Whether there is nobody left."""
        return not self._members

    def in_turn(self) -> list[Subscription]:
        """Give all members, in the order in which they joined."""
        members = self._in_turn
        if members is None:
            members = self._in_turn = list(self._members.values())
        return members


@final
class Route:
    """The receivers of one Topic Name: every Subscription that matches, and every group of which one member gets it."""

    __slots__ = ("groups", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions: list[Subscription] = []
        self.groups: list[SharedGroup] = []

    def is_empty(self) -> bool:
        """Whether nobody receives this topic."""
        return not self.subscriptions and not self.groups


@final
class _Node:
    """One topic level. Most nodes hold little, so each container comes to be only when it is needed."""

    __slots__ = ("children", "groups", "subscriptions")

    def __init__(self) -> None:
        self.children: dict[str, _Node] | None = None
        self.subscriptions: dict[str, Subscription] | None = None
        self.groups: dict[str, SharedGroup] | None = None

    def is_empty(self) -> bool:
        return not self.children and not self.subscriptions and not self.groups


@final
class TopicTree:
    """The Subscriptions of all Sessions; filters and names are taken as already checked."""

    __slots__ = ("_root", "count", "shared_count")

    def __init__(self) -> None:
        self._root = _Node()
        self.count = 0
        self.shared_count = 0

    def add(self, topic_filter: str, share_name: str, subscription: Subscription) -> None:
        """Add a Session's Subscription to a filter (without $share), or replace the one it had."""
        node = self._root
        for level in topic_filter.split("/"):
            children = node.children
            if children is None:
                children = node.children = {}
            child = children.get(level)
            if child is None:
                child = children[level] = _Node()
            node = child
        client_id = subscription.session.client_id
        if share_name:
            if node.groups is None:
                node.groups = {}
            group = node.groups.get(share_name)
            if group is None:
                group = node.groups[share_name] = SharedGroup()
            if group.add(client_id, subscription):
                self.shared_count += 1
            return
        if node.subscriptions is None:
            node.subscriptions = {}
        if client_id not in node.subscriptions:
            self.count += 1
        node.subscriptions[client_id] = subscription

    def remove(self, topic_filter: str, share_name: str, client_id: str) -> None:
        """Remove a Session's Subscription and the nodes that only it needed."""
        path: list[tuple[_Node, str]] = []
        node = self._root
        for level in topic_filter.split("/"):
            child = node.children.get(level) if node.children is not None else None
            if child is None:
                return
            path.append((node, level))
            node = child
        if share_name:
            group = node.groups.get(share_name) if node.groups is not None else None
            if group is not None and group.remove(client_id):
                self.shared_count -= 1
                if group.is_empty() and node.groups is not None:
                    del node.groups[share_name]
        elif node.subscriptions is not None and node.subscriptions.pop(client_id, None) is not None:
            self.count -= 1
        while path and node.is_empty():
            node, level = path.pop()
            if node.children is not None:
                del node.children[level]

    def group(self, topic_filter: str, share_name: str) -> SharedGroup | None:
        """Give the members of a Shared Subscription."""
        node = self._root
        for level in topic_filter.split("/"):
            child = node.children.get(level) if node.children is not None else None
            if child is None:
                return None
            node = child
        return node.groups.get(share_name) if node.groups is not None else None

    def match(self, topic_name: str) -> Route:
        """Find all receivers of a Topic Name."""
        route = Route()
        levels = topic_name.split("/")
        if topic_name.startswith("$"):  # wildcards do not reach these at the first level [MQTT-4.7.2-1]
            children = self._root.children
            child = children.get(levels[0]) if children is not None else None
            if child is not None:
                _collect(child, levels, 1, route)
        else:
            _collect(self._root, levels, 0, route)
        return route


def _collect(node: _Node, levels: list[str], depth: int, route: Route) -> None:
    children = node.children
    if depth == len(levels):
        _take(node, route)
        if children is not None:
            many = children.get("#")  # `a/#` also matches `a` (§4.7.1.2)
            if many is not None:
                _take(many, route)
        return
    if children is None:
        return
    many = children.get("#")
    if many is not None:
        _take(many, route)
    child = children.get(levels[depth])
    if child is not None:
        _collect(child, levels, depth + 1, route)
    single = children.get("+")
    if single is not None:
        _collect(single, levels, depth + 1, route)


def _take(node: _Node, route: Route) -> None:
    if node.subscriptions is not None:
        route.subscriptions.extend(node.subscriptions.values())
    if node.groups is not None:
        route.groups.extend(node.groups.values())
