"""The schema gate."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.config.errors import ConfigError
from lockgate.config.model import SchemaConfig
from lockgate.mqtt.topics import matches
from lockgate.processor.schemas import NotAccepted, Schema, Schemas, overlap

FIELDS = (("value", "real"), ("count", "integer"), ("unit", "text"))


def schema(name: str = "s", topics: tuple[str, ...] = ("#",), **other: Any) -> SchemaConfig:
    return SchemaConfig(name=name, topics=topics, **({"fields": FIELDS} | other))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b'{"count": 1, "unit": "C"}', "field value missing"),
        (b'{"value": null, "count": 1, "unit": "C"}', "field value missing"),
        (b'{"value": "1", "count": 1, "unit": "C"}', "field value not real"),
        (b'{"value": true, "count": 1, "unit": "C"}', "field value not real"),
        (b'{"value": 1, "count": 1.5, "unit": "C"}', "field count not integer"),
        (b'{"value": 1, "count": 18446744073709551615, "unit": "C"}', "field count not integer"),
        (b'{"value": 1, "count": 1, "unit": 3}', "field unit not text"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(NotAccepted) as caught:
        Schema(schema()).decode(payload)
    assert caught.value.reason == reason


def test_fields_are_typed_in_their_order() -> None:
    decode = Schema(schema(optional=frozenset({"unit"}))).decode
    assert decode(b'{"unit": "C", "count": -1, "value": 2, "more": [1]}') == [2.0, -1, "C"]
    assert decode(b'{"count": 1, "value": 2.5}') == [2.5, 1, None]


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b", False),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("+", "", True),
    ],
)
def test_topic_filters(topic_filter: str, topic: str, matches: bool) -> None:
    assert (Schemas([schema(topics=(topic_filter,))]).of(topic) is not None) == matches


def test_the_first_schema_that_matches_has_the_message() -> None:
    schemas = Schemas([schema("first", ("a/b",)), schema("second", ("a/#",))])
    found = [schemas.of(topic) for topic in ("a/b", "a/c", "b", "a/b")]
    assert [one and one.name for one in found] == ["first", "second", None, "first"]


def test_a_filter_within_another_is_not_subscribed() -> None:
    schemas = Schemas([schema("first", ("a/b", "a/+/c", "b/#")), schema("second", ("a/#", "b", "+/x", "$SYS/a", "c"))])
    assert schemas.topic_filters == ("b/#", "a/#", "+/x", "$SYS/a", "c")
    assert schemas.covered == ("a/b", "a/+/c", "b")
    assert Schemas([schema(topics=("#", "$SYS/#", "+/#"))]).covered == ("+/#",)
    assert Schemas([schema(topics=("a/+", "a/#", "a/+/+"))]).topic_filters == ("a/#",)


FILTER_LEVELS = st.sampled_from(("a", "b", "+", "#"))


@given(st.lists(FILTER_LEVELS, min_size=1, max_size=4), st.lists(FILTER_LEVELS, min_size=1, max_size=4))
def test_what_filters_have_in_common_agrees_with_the_topics_they_match(left: list[str], right: list[str]) -> None:
    one, other = _filter(left), _filter(right)
    topics = ["/".join(levels) for count in range(1, 6) for levels in product("ab", repeat=count)]
    both = [matches(one, topic) and matches(other, topic) for topic in topics]
    assert overlap(one, other) == any(both)
    covered = one in Schemas([schema(topics=(one, other))]).covered
    assert covered <= (sum(both) == sum(matches(one, topic) for topic in topics))


def _filter(levels: list[str]) -> str:
    """`#` may only be the last level."""
    return "/".join(levels[: levels.index("#") + 1] if "#" in levels else levels)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"name": "a b"}, "cannot name a table"),
        ({"fields": (("a-b", "real"),)}, "cannot name a column"),
        ({"fields": (("Topic", "text"),)}, "column of every message"),
        ({"fields": (("x", "text"), ("X", "real"))}, "twice"),
        ({"optional": frozenset({"nope"})}, "not among the fields"),
    ],
)
def test_a_schema_that_cannot_be_a_table_is_a_configuration_error(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Schema(schema(**wrong))
