"""Which topics a bridge carries, and how they are called on the other side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.bridge.topics import TopicMap
from lockgate.config.model import BridgeTopic
from lockgate.mqtt.topics import matches

levels = st.text("abc é", min_size=0, max_size=3)
names = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)
prefixes = st.sampled_from(["", "a/", "b/c/", "é", "/"])
patterns = st.sampled_from(["#", "+/#", "a/#", "+", "a", "a/+/b", "b/c"])


@given(names, patterns, prefixes, prefixes)
def test_what_goes_out_comes_back_under_its_name(name: str, pattern: str, local: str, remote: str) -> None:
    line = BridgeTopic(pattern=pattern, direction="both", local_prefix=local, remote_prefix=remote)
    topics = TopicMap([line])
    topic = local + name
    there = topics.out.map(topic)
    assert (there is not None) == matches(local + pattern, topic)
    if there is not None:
        assert there == remote + name
        if matches(remote + pattern, there):  # not if the prefix made a $ topic of it
            assert topics.inwards.map(there) == topic


@given(names, patterns)
def test_without_prefixes_names_stay(name: str, pattern: str) -> None:
    topics = TopicMap([BridgeTopic(pattern=pattern, direction="both")])
    assert topics.out.map(name) == topics.inwards.map(name) == (name if matches(pattern, name) else None)


def test_an_empty_pattern_maps_exactly_one_topic() -> None:
    topics = TopicMap([BridgeTopic(pattern="", direction="both", local_prefix="a/b", remote_prefix="c/d")])
    assert topics.out.filters == {"a/b": 0}
    assert topics.inwards.filters == {"c/d": 0}
    assert topics.out.map("a/b") == "c/d"
    assert topics.inwards.map("c/d") == "a/b"
    assert topics.out.map("a/bc") is None


def test_taking_a_prefix_off_makes_no_topic_of_the_server_of_it() -> None:
    topics = TopicMap([BridgeTopic(pattern="#", direction="both", remote_prefix="site/")])
    assert topics.inwards.map("site/a") == "a"
    assert topics.inwards.map("site/$CONTROL/dynamic-security/v1") is None
    named = TopicMap([BridgeTopic(pattern="$CONTROL/#", direction="in", remote_prefix="site/")])
    assert named.inwards.map("site/$CONTROL/x") == "$CONTROL/x"


def test_the_first_line_that_matches_counts() -> None:
    topics = TopicMap(
        [
            BridgeTopic(pattern="a/#", qos=2, remote_prefix="x/"),
            BridgeTopic(pattern="#", qos=1, remote_prefix="y/"),
            BridgeTopic(pattern="a/#", qos=0, remote_prefix="z/"),
        ]
    )
    assert topics.out.filters == {"a/#": 2, "#": 1}
    assert topics.out.map("a/b") == "x/a/b"
    assert topics.out.map("b") == "y/b"
    assert topics.out.map("$SYS/x") is None


@pytest.mark.parametrize(("direction", "wanted"), [("out", None), ("in", 0), ("both", 0)])
def test_what_only_goes_out_is_not_wanted_from_there(direction: str, wanted: int | None) -> None:
    line = BridgeTopic(pattern="a", direction=direction, remote_prefix="r/")  # type: ignore[arg-type]
    assert TopicMap([line]).remote == {"r/a": wanted}
    assert TopicMap([line, BridgeTopic(pattern="a", direction="in", remote_prefix="r/")]).remote == {"r/a": 0}


def test_many_topics_do_not_fill_the_memory() -> None:
    topics = TopicMap([BridgeTopic(pattern="#", remote_prefix="r/")])
    for number in range(10_000):
        assert topics.out.map(f"t/{number}") == f"r/t/{number}"
    assert len(topics.out._known) <= 4096
