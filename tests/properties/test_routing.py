"""The topic tree and its memory of routes agree with a ten-line matcher under any order of changes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.broker.ports import NEVER, Message
from lockgate.broker.retained import Retained
from lockgate.broker.routing import Router
from lockgate.broker.session import Session, Subscription

LEVELS = st.sampled_from(["a", "b", "", "$x"])
NAMES = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = (
    st.tuples(st.lists(st.one_of(LEVELS, st.just("+")), max_size=3), st.sampled_from(["a", "+", "#", "b"]))
    .map(lambda parts: "/".join([*parts[0], parts[1]]))
    .filter(bool)
)


def matches(topic_filter: str, name: str) -> bool:
    """The specification's words, as directly as they can be said (§4.7)."""
    if name[0] == "$" and topic_filter[0] in "+#":
        return False
    wanted, given_levels = topic_filter.split("/"), name.split("/")
    if wanted[-1] == "#":
        wanted = wanted[:-1]
        given_levels = given_levels[: len(wanted)]
    return len(wanted) == len(given_levels) and all(w in ("+", g) for w, g in zip(wanted, given_levels, strict=True))


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), FILTERS),
        st.tuples(st.just("remove"), st.integers(0, 3), FILTERS),
        st.tuples(st.just("ask"), st.just(0), NAMES),
    ),
    max_size=40,
)


@given(CHANGES, st.integers(1, 4))
@settings(max_examples=300)
def test_a_route_is_what_the_subscriptions_say(changes: list[tuple[str, int, str]], remembered: int) -> None:
    router = Router(remembered)
    sessions = [Session(str(number), 0, None) for number in range(4)]
    model: dict[tuple[str, str], Subscription] = {}
    for kind, number, text in changes:
        session = sessions[number]
        key = (session.client_id, text)
        if kind == "add":
            subscription = Subscription(session, text, text, "", 0, False, False, 0)
            model[key] = subscription
            router.add(subscription)
        elif kind == "remove":
            known = model.pop(key, None)
            if known is not None:
                router.remove(known)
        else:
            expected = {id(subscription) for (_client, wanted), subscription in model.items() if matches(wanted, text)}
            found = [id(subscription) for subscription in router.route(text).subscriptions]
            assert len(found) == len(set(found))
            assert set(found) == expected
    assert router.tree.count == len(model)


@given(st.lists(st.tuples(NAMES, st.booleans()), max_size=30), FILTERS)
def test_retained_messages_are_found_by_filter(steps: list[tuple[str, bool]], topic_filter: str) -> None:
    retained = Retained()
    model: dict[str, Message] = {}
    for name, keep in steps:
        if keep:
            model[name] = Message(name, b"x", 0, True, None, NEVER, "")
            retained.set(model[name])
        else:
            assert retained.remove(name) == (model.pop(name, None) is not None)
    found = {message.topic for message in retained.match(topic_filter, 0.0)}
    assert found == {name for name in model if matches(topic_filter, name)}
    assert retained.count == len(model)
    assert retained.size_bytes == sum(len(name) + 1 for name in model)


def test_what_is_remembered_is_bounded_in_topics_receivers_and_length() -> None:
    router = Router(10)
    for number in range(100):
        router.add(Subscription(Session(str(number), 0, None), "a/#", "a/#", "", 0, False, False, 0))
    for number in range(50):
        assert len(router.route(f"a/{number}").subscriptions) == 100
        assert len(router.route("a/" + "x" * 600 + str(number)).subscriptions) == 100
    held = [route for topic, route in router._routes.items() if len(topic) < 600]
    assert len(held) == len(router._routes)
    assert sum(len(route.subscriptions) for route in held) <= 320
    for number in range(50):
        router.route(f"b/{number}")
    assert len(router._routes) <= 10
