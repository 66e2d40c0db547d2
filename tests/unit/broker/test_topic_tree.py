"""The topic tree holds what is subscribed, and no node longer than it is needed."""

from __future__ import annotations

import pytest

from lockgate.broker.routing import Router
from lockgate.broker.session import Session, Subscription
from lockgate.broker.topic_tree import SharedGroup, TopicTree


def subscription(client_id: str, topic_filter: str = "t", share_name: str = "") -> Subscription:
    requested = f"$share/{share_name}/{topic_filter}" if share_name else topic_filter
    return Subscription(Session(client_id, 0, None), requested, topic_filter, share_name, 0, False, False, 0)


def clients(tree: TopicTree, topic: str) -> list[str]:
    return sorted(one.session.client_id for one in tree.match(topic).subscriptions)


FILTERS = ["a", "a/b", "a/c", "a/d", "a/+", "a/#", "+", "#", "/", "+/b/#", "a/b/c/d"]


@pytest.mark.parametrize("share_name", ["", "group"])
def test_what_is_removed_leaves_no_node_behind(share_name: str) -> None:
    tree = TopicTree()
    for order in (FILTERS, FILTERS[::-1]):
        for topic_filter in FILTERS:
            for client_id in ("1", "2", "3"):
                tree.add(topic_filter, share_name, subscription(client_id, topic_filter, share_name))
        assert (tree.count, tree.shared_count) == ((33, 0) if not share_name else (0, 33))
        for topic_filter in order:
            assert not tree._root.is_empty()
            for client_id in ("2", "1", "3"):
                tree.remove(topic_filter, share_name, client_id)
        assert (tree.count, tree.shared_count) == (0, 0)
        root = tree._root
        assert root.is_empty()
        assert (root.single, root.children, root.plus, root.rest) == (None, None, None, None)


def test_names_beside_each_other_come_and_go() -> None:
    tree = TopicTree()
    for name in "abc":
        tree.add(name, "", subscription(name, name))
    tree.remove("b", "", "b")
    assert [clients(tree, name) for name in "abc"] == [["a"], [], ["c"]]
    tree.remove("a", "", "a")
    assert [clients(tree, name) for name in "abc"] == [[], [], ["c"]]
    assert tree._root.children is None  # one name alone needs no dictionary
    tree.add("b", "", subscription("b", "b"))
    assert [clients(tree, name) for name in "abc"] == [[], ["b"], ["c"]]


def test_subscribers_of_one_filter_come_and_go() -> None:
    tree = TopicTree()
    for client_id in ("1", "2", "1", "3"):
        tree.add("t", "", subscription(client_id))
    assert (tree.count, clients(tree, "t")) == (3, ["1", "2", "3"])
    tree.remove("t", "", "nobody")
    for client_id, left in (("2", ["1", "3"]), ("1", ["3"]), ("nobody", ["3"]), ("3", [])):
        tree.remove("t", "", client_id)
        assert (tree.count, clients(tree, "t")) == (len(left), left)


def test_removing_what_is_not_there_removes_nothing() -> None:
    tree = TopicTree()
    tree.add("a/b", "", subscription("1", "a/b"))
    tree.add("a/b", "g", subscription("1", "a/b", "g"))
    for topic_filter, share_name in (("a", ""), ("a/b/c", ""), ("x", ""), ("a/b", "other"), ("a", "g")):
        tree.remove(topic_filter, share_name, "1")
    tree.remove("a/b", "g", "2")
    assert (tree.count, tree.shared_count) == (1, 1)
    assert clients(tree, "a/b") == ["1"]


def test_a_group_is_found_by_its_filter_and_name() -> None:
    tree = TopicTree()
    one, other = subscription("1", "a/+", "g"), subscription("2", "a/+", "h")
    tree.add("a/+", "g", one)
    tree.add("a/+", "h", other)
    group = tree.group("a/+", "g")
    assert group is not None
    assert group.in_turn() == [one]
    assert [tree.group("a/b", "g"), tree.group("a", "g"), tree.group("a/+", "x"), tree.group("b/+", "g")] == [None] * 4
    route = tree.match("a/b")
    assert [len(group.in_turn()) for group in route.groups] == [1, 1]
    assert not route.is_empty()
    assert tree.match("b").is_empty()


def test_members_are_in_the_order_in_which_they_joined() -> None:
    group = SharedGroup()
    first, second = subscription("1"), subscription("2")
    assert group.is_empty()
    assert [group.add("1", first), group.add("2", second), group.add("1", first)] == [True, True, False]
    assert group.in_turn() == [first, second]
    newer = subscription("1")
    group.add("1", newer)
    assert group.in_turn() == [newer, second]
    assert [group.remove("1"), group.remove("1")] == [True, False]
    assert group.in_turn() == [second]
    assert not group.is_empty()


def test_a_route_is_remembered_until_something_touches_it() -> None:
    router = Router(100)
    for topic_filter in ("a/b", "a/+", "c"):
        router.add(subscription("1", topic_filter))
    before = {topic: router.route(topic) for topic in ("a/b", "a/x", "c", "d")}
    assert all(router.route(topic) is route for topic, route in before.items())
    router.add(subscription("2", "c"))  # no wildcard: that topic alone
    assert [router.route(topic) is route for topic, route in before.items()] == [True, True, False, True]
    before["c"] = router.route("c")
    router.add(subscription("2", "a/#"))  # a wildcard behind a name: what begins with it
    assert [router.route(topic) is route for topic, route in before.items()] == [False, False, True, True]
    for topic_filter in ("+/b", "#"):  # one at the first level: all
        before = {topic: router.route(topic) for topic in before}
        router.add(subscription("3", topic_filter))
        assert [router.route(topic) is route for topic, route in before.items()] == [False] * 4


def test_as_many_routes_are_remembered_as_the_limit_says() -> None:
    router = Router(3)
    routes = [router.route(str(number)) for number in range(3)]
    assert [router.route(str(number)) is routes[number] for number in range(3)] == [True] * 3
    for number in (3, 4, 5):  # the fourth forgets the three before it
        router.route(str(number))
    assert list(router._routes) == list(router._by_first_level) == ["3", "4", "5"]
    router.route("6")
    assert list(router._routes) == ["6"]


def test_long_topics_and_those_of_many_receivers_are_not_remembered() -> None:
    router = Router(4)  # 128 receivers in all, 32 of one
    assert router.route("x" * 512) is router.route("x" * 512)
    assert router.route("x" * 513) is not router.route("x" * 513)
    for number in range(32):
        router.add(subscription(str(number)))
    assert router.route("t") is router.route("t")
    router.add(subscription("g", "t", "group"))
    assert len(router.route("t").subscriptions) + len(router.route("t").groups) == 33
    assert router.route("t") is not router.route("t")


def test_the_receivers_remembered_are_bounded_in_all() -> None:
    router = Router(8)
    for topic in "01234567":
        for number in range(64):
            router.add(subscription(str(number), topic))
    routes = [router.route(topic) for topic in "0123"]  # 256 receivers: all there is room for
    assert [router.route(topic) is route for topic, route in zip("0123", routes, strict=True)] == [True] * 4
    for topic in "4567":
        router.route(topic)
    assert list(router._routes) == ["4", "5", "6", "7"]


def test_the_work_of_finding_receivers_is_known() -> None:
    tree = TopicTree()
    for topic_filter in ("a/b/c", "a/+/c", "x", "a/#"):
        tree.add(topic_filter, "", subscription("1", topic_filter))
    for topic, visits in (("a/b/c", 6), ("a/b", 4), ("a/z/c", 4), ("x", 2), ("z", 1), ("$z", 0)):
        tree.match(topic)
        assert tree.visits == visits, topic
    router = Router(10)
    router.add(subscription("1", "a/b/c"))
    assert router.visits == 0
    for visits in (4, 4):  # the second time the route is remembered
        router.route("a/b/c")
        assert router.visits == visits
    router.route("a/x")
    assert router.visits == 4 + 2
