"""Who subscribed to what, level by level: from a Topic Name to its receivers (MQTT 5 §4.7, §4.8)."""

from __future__ import annotations

import sys
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
    """One topic level. Most nodes hold little, so each container comes to be only when it is needed.

    Most filters have one subscriber: it stands in `one`, and `many` is for two and more; most names have one name below
    them, which stands in `single`, and `children` is for two and more. The children of the wildcards stand apart: a
    match asks for them at every level, and finds that there are none without a look into the others.
    """

    __slots__ = ("children", "groups", "many", "one", "plus", "rest", "single", "single_name")

    def __init__(self) -> None:
        self.single_name = ""  # of `single`; a name may be empty
        self.single: _Node | None = None
        self.children: dict[str, _Node] | None = None
        self.plus: _Node | None = None  # the child of `+`
        self.rest: _Node | None = None  # the child of `#`
        self.one: Subscription | None = None
        self.many: dict[str, Subscription] | None = None  # by client id
        self.groups: dict[str, SharedGroup] | None = None

    def is_empty(self) -> bool:
        below = self.single or self.children or self.plus or self.rest
        return not (below or self.one or self.many or self.groups)

    def child(self, level: str) -> _Node | None:
        if level == "+":
            return self.plus
        if level == "#":
            return self.rest
        if self.children is not None:
            return self.children.get(level)
        return self.single if self.single_name == level else None

    def make_child(self, level: str) -> _Node:
        child = self.child(level)
        if child is not None:
            return child
        new = _Node()
        if level == "+":
            self.plus = new
        elif level == "#":
            self.rest = new
        else:
            # One string for all nodes of a name: less memory, and a look-up compares with what is in the cache.
            name = sys.intern(level)
            if self.children is not None:
                self.children[name] = new
            elif self.single is None:
                self.single = new
                self.single_name = name
            else:
                self.children = {self.single_name: self.single, name: new}
                self.single = None
        return new

    def drop_child(self, level: str) -> None:
        if level == "+":
            self.plus = None
        elif level == "#":
            self.rest = None
        elif self.children is None:
            self.single = None
        else:
            del self.children[level]
            if len(self.children) == 1:
                self.single_name, self.single = next(iter(self.children.items()))
                self.children = None

    def put(self, client_id: str, subscription: Subscription) -> bool:
        """Add or replace a client's Subscription; say whether it is one more."""
        many = self.many
        if many is not None:
            is_new = client_id not in many
            many[client_id] = subscription
            return is_new
        one = self.one
        if one is None or one.session.client_id == client_id:
            self.one = subscription
            return one is None
        self.many = {one.session.client_id: one, client_id: subscription}
        self.one = None
        return True

    def take_out(self, client_id: str) -> bool:
        """Remove a client's Subscription; say whether there was one."""
        many = self.many
        if many is None:
            one = self.one
            if one is None or one.session.client_id != client_id:
                return False
            self.one = None
            return True
        if many.pop(client_id, None) is None:
            return False
        if len(many) == 1:
            self.one = next(iter(many.values()))
            self.many = None
        return True


@final
class TopicTree:
    """The Subscriptions of all Sessions; filters and names are taken as already checked."""

    __slots__ = ("_root", "count", "shared_count", "visits")

    def __init__(self) -> None:
        self._root = _Node()
        self.count = 0
        self.shared_count = 0
        self.visits = 0  # nodes, by the last `match`

    def add(self, topic_filter: str, share_name: str, subscription: Subscription) -> None:
        """Add a Session's Subscription to a filter (without $share), or replace the one it had."""
        node = self._root
        for level in topic_filter.split("/"):
            node = node.make_child(level)
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
        if node.put(client_id, subscription):
            self.count += 1

    def remove(self, topic_filter: str, share_name: str, client_id: str) -> None:
        """Remove a Session's Subscription and the nodes that only it needed."""
        path: list[tuple[_Node, str]] = []
        node = self._root
        for level in topic_filter.split("/"):
            child = node.child(level)
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
        elif node.take_out(client_id):
            self.count -= 1
        while path and node.is_empty():
            node, level = path.pop()
            node.drop_child(level)

    def group(self, topic_filter: str, share_name: str) -> SharedGroup | None:
        """Give the members of a Shared Subscription."""
        node = self._root
        for level in topic_filter.split("/"):
            child = node.child(level)
            if child is None:
                return None
            node = child
        return node.groups.get(share_name) if node.groups is not None else None

    def match(self, topic_name: str) -> Route:
        """Find all receivers of a Topic Name."""
        route = Route()
        levels = topic_name.split("/")
        if topic_name.startswith("$"):  # wildcards do not reach these at the first level [MQTT-4.7.2-1]
            child = self._root.child(levels[0])
            self.visits = _collect(child, levels, 1, route) if child is not None else 0
        else:
            self.visits = _collect(self._root, levels, 0, route)
        return route


def _collect(node: _Node, levels: list[str], depth: int, route: Route) -> int:
    """Add what matches below a node; give the number of nodes visited."""
    visits = 1
    rest = node.rest
    if rest is not None:  # `a/#` also matches `a` (§4.7.1.2)
        _take(rest, route)
    if depth == len(levels):
        _take(node, route)
        return visits
    single = node.single
    if single is not None:
        if node.single_name == levels[depth]:
            visits += _collect(single, levels, depth + 1, route)
    elif node.children is not None:
        child = node.children.get(levels[depth])
        if child is not None:
            visits += _collect(child, levels, depth + 1, route)
    plus = node.plus
    if plus is not None:
        visits += _collect(plus, levels, depth + 1, route)
    return visits


def _take(node: _Node, route: Route) -> None:
    one = node.one
    if one is not None:
        route.subscriptions.append(one)
    elif node.many is not None:
        route.subscriptions.extend(node.many.values())
    if node.groups is not None:
        route.groups.extend(node.groups.values())
