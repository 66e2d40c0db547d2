"""Whatever a client asks for, a topic keeps the form that its route gives it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockgate.config.model import HttpRouteConfig
from lockgate.config.templates import parse, parse_path
from lockgate.sources.repeats import OtherRequest, Repeats
from lockgate.sources.routes import NoTopic, find, topic_of

ROUTES = (
    HttpRouteConfig(name="two", path=parse_path("/p/{a}/{b}"), topic=parse("fixed/{b}/x-{a}/end")),
    HttpRouteConfig(name="rest", path=parse_path("/r/{rest*}"), topic=parse("fixed/{rest}")),
    HttpRouteConfig(name="body", path=parse_path("/b"), topic=parse("fixed/{body.id}/{body.deep.er}")),
)
HOSTILE = st.text(st.sampled_from("ab/+#$%\x00\x01\x7f\x85\u2028. é\ud800"), max_size=12)


def allowed(topic: str) -> bool:
    return not any(character in "+#" or ord(character) < 32 or 127 <= ord(character) < 160 for character in topic)


@given(st.sampled_from(["/p/", "/r/", "/p/a/", "/", ""]), HOSTILE, st.booleans())
@example("/p/a/", "%2f", False)
@example("/r/", "../../$SYS", False)
def test_a_path_never_makes_another_topic_than_its_route_means(start: str, text: str, escaped: bool) -> None:
    path = start + (quote(text.encode("utf-8", "replace")) if escaped else text.encode("utf-8", "replace").decode())
    try:
        found = find(ROUTES, path)
        topics = [topic_of(route, variables, None) for route, variables in found]
    except NoTopic:
        return
    for (route, _), topic in zip(found, topics, strict=True):
        levels = topic.split("/")
        assert levels[0] == "fixed"
        assert all(levels)
        assert allowed(topic)
        assert route.name != "two" or (len(levels) == 4 and levels[3] == "end")
        assert route.name != "rest" or len(levels) == len(path.split("/")) - 1


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | HOSTILE,
    lambda inner: st.dictionaries(st.sampled_from(["id", "deep", "er"]), inner) | st.lists(inner, max_size=2),
    max_leaves=6,
)


@given(DOCUMENTS)
@example({"id": 1, "deep": {"er": "x"}})
@example({"id": "a/b", "deep": {"er": "x"}})
def test_a_document_never_makes_another_topic_than_its_route_means(document: Any) -> None:
    try:
        topic = topic_of(ROUTES[2], {}, document if isinstance(document, dict) else None)
    except NoTopic:
        return
    first, identifier, deep = topic.split("/")
    assert (first, identifier, deep) == ("fixed", str(document["id"]), str(document["deep"]["er"]))
    assert identifier
    assert deep
    assert allowed(topic)


def test_a_key_is_remembered_for_its_time_and_no_more_than_so_many() -> None:
    repeats = Repeats(10, 2)
    first, again = repeats.attempt("a", b"1", 1, now=0)
    assert (again, first.left) == (False, {0})
    assert repeats.attempt("a", b"1", 1, now=9.9) == (first, True)
    with pytest.raises(OtherRequest):
        repeats.attempt("a", b"2", 1, now=9.9)
    renewed, again = repeats.attempt("a", b"2", 1, now=10)  # its time is over
    assert (again, renewed is first) == (False, False)
    repeats.attempt("b", b"1", 1, now=11)
    repeats.attempt("c", b"1", 1, now=12)  # "a" gives way
    assert repeats.attempt("b", b"1", 1, now=12)[1]
    assert not repeats.attempt("a", b"9", 1, now=12)[1]
