"""Patterns of names, and Topic Filters that cover others."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.mqtt.topics import matches
from lockgate.tunnel.patterns import covers, wildcard


@given(st.text("ab*", max_size=8), st.text("abc\n", max_size=10))
def test_a_wildcard_stands_for_any_characters(pattern: str, text: str) -> None:
    assert bool(wildcard(pattern)(text)) is fnmatch.fnmatchcase(text, pattern)


def test_no_pattern_takes_long() -> None:
    begin = time.monotonic()
    assert not wildcard("*a" * 30 + "b")("a" * 20_000)
    assert time.monotonic() - begin < 5


def test_names_are_put_in_as_they_are() -> None:
    names = {"%u": "a*", "%c": "%u"}
    assert wildcard("%u-*", names)("a*-1")
    assert not wildcard("%u-*", names)("ab-1")
    assert wildcard("%c", names)("%u")
    assert not wildcard("%c", names)("a*")


@pytest.mark.parametrize(
    ("allowed", "asked", "does"),
    [
        ("#", "#", True),
        ("#", "a/+/#", True),
        ("#", "$SYS/#", False),
        ("+/a", "$SYS/a", False),
        ("$SYS/#", "$SYS/a", True),
        ("a/#", "a", True),
        ("a/#", "a/#", True),
        ("a/#", "#", False),
        ("a/+", "a/#", False),
        ("a/+", "a/+", True),
        ("a/+", "a/b", True),
        ("a/b", "a/+", False),
        ("a/+", "a/b/c", False),
        ("a/+/c", "a/b", False),
        ("a", "a/", False),
    ],
)
def test_a_filter_covers_another(allowed: str, asked: str, does: bool) -> None:
    assert covers(allowed, asked) is does


levels = st.sampled_from(["a", "b", "", "+", "$x"])
filters = st.builds(
    lambda parts, rest: "/".join([*parts, *rest]),
    st.lists(levels, min_size=1, max_size=3),
    st.sampled_from([[], ["#"]]),
) | st.just("#")
names = st.lists(st.sampled_from(["a", "b", "", "$x", "c"]), min_size=1, max_size=4).map("/".join)


@given(filters, filters, st.lists(names, max_size=20))
def test_what_is_covered_matches_nothing_more(allowed: str, asked: str, topics: list[str]) -> None:
    if covers(allowed, asked):
        assert all(matches(allowed, topic) for topic in topics if topic and matches(asked, topic))
