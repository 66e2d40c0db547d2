"""Topic Names, Topic Filters and what matches (MQTT 5 §4.7, §4.8.2)."""

from __future__ import annotations

import pytest

from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.topics import MAXIMUM_LEVELS, check_topic_filter, check_topic_name, matches, split_shared


@pytest.mark.parametrize("topic_name", ["a", "/", "//", "a/b", "$SYS/x", " ", "ä/€", "a" * 1000])
def test_these_are_topic_names(topic_name: str) -> None:
    check_topic_name(topic_name)


@pytest.mark.parametrize("topic_name", ["", "#", "a/+", "a+b", "/" * MAXIMUM_LEVELS])
def test_these_are_not(topic_name: str) -> None:
    with pytest.raises(MqttError):
        check_topic_name(topic_name)


@pytest.mark.parametrize(
    "topic_filter", ["#", "+", "+/+", "a/#", "/#", "a/+/b", "$share/g/a/#", "$share/g//", "$shared"]
)
def test_these_are_topic_filters(topic_filter: str) -> None:
    check_topic_filter(topic_filter)


@pytest.mark.parametrize(
    "topic_filter",
    [
        "",
        "/" * MAXIMUM_LEVELS,
        "a#",
        "a/#/b",
        "#/",
        "a+",
        "+a/b",
        "$share/g",
        "$share//a",
        "$share/g/",
        "$share/+/a",
        "$share/g/a#",
    ],
)
def test_these_are_not_filters(topic_filter: str) -> None:
    with pytest.raises(MqttError):
        check_topic_filter(topic_filter)


def test_a_topic_has_at_most_200_levels() -> None:
    assert MAXIMUM_LEVELS == 200  # Mosquitto's bound
    check_topic_name("/" * 199)
    with pytest.raises(MqttError, match="200 levels"):
        check_topic_name("/" * 200)


def test_a_shared_filter_has_two_parts() -> None:
    assert split_shared("$share/group/a/#") == ("group", "a/#")


@pytest.mark.parametrize(
    ("topic_filter", "topic_name", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/x", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/x", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("ACCOUNTS", "Accounts", False),
    ],
)
def test_the_specification_s_own_examples(topic_filter: str, topic_name: str, expected: bool) -> None:
    assert matches(topic_filter, topic_name) is expected


def test_a_long_topic_does_not_fill_the_error() -> None:
    for length, told in ((20, 20), (5000, 0)):
        with pytest.raises(MqttError) as raised:
            check_topic_name("x" * length + "#")
        assert len(raised.value.detail) < 300
        assert ("x" * 20 + "#" in raised.value.detail) is bool(told)
