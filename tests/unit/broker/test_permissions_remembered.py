"""Answers of an authority are remembered, counted in the memory budget, and forgotten when the rules change."""

from __future__ import annotations

import pytest

from lockgate.broker.memory import Memory
from lockgate.broker.permissions import Permissions
from tests.support.rules import Rules

PER_ANSWER = 100  # bytes, beside the topic's


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture
def memory() -> Memory:
    return Memory(0)


@pytest.fixture
def permissions(rules: Rules, memory: Memory) -> Permissions:
    return Permissions(rules, "c", "u", memory)


def test_a_topic_is_asked_about_once_in_each_direction(permissions: Permissions, rules: Rules) -> None:
    rules.deny("publish", "t")
    for _again in range(3):
        assert not permissions.may_publish("t")
        assert permissions.may_receive("t")
    assert rules.asked == [("publish", "c", "u", "t"), ("receive", "c", "u", "t")]


def test_what_is_forgotten_is_asked_about_anew(permissions: Permissions, rules: Rules, memory: Memory) -> None:
    assert permissions.may_publish("t")
    assert permissions.may_receive("t")
    assert memory.used == 2 * (PER_ANSWER + len("t"))
    rules.deny("publish", "t")
    rules.deny("receive", "t")
    permissions.forget()
    assert memory.used == 0
    assert not permissions.may_publish("t")
    assert not permissions.may_receive("t")
    permissions.forget()
    assert memory.used == 0


def test_so_many_are_remembered_and_then_all_are_forgotten(
    permissions: Permissions, rules: Rules, memory: Memory
) -> None:
    topics = [f"{number:02}" for number in range(32)]
    for topic in [*topics, *topics]:
        permissions.may_publish(topic)
    assert len(rules.asked) == 32
    assert memory.used == 32 * (PER_ANSWER + 2)
    permissions.may_publish("one more")
    assert memory.used == PER_ANSWER + len("one more")
    permissions.may_publish("00")
    assert len(rules.asked) == 34


def test_a_long_topic_is_asked_about_each_time(permissions: Permissions, rules: Rules, memory: Memory) -> None:
    for _again in range(2):
        permissions.may_receive("x" * 256)
        permissions.may_receive("x" * 257)
    assert [len(topic) for _what, _client, _user, topic in rules.asked] == [256, 257, 257]
    assert memory.used == PER_ANSWER + 256


def test_filters_are_asked_about_each_time(permissions: Permissions, rules: Rules) -> None:
    rules.deny("subscribe", "no/#")
    rules.deny("unsubscribe", "never")
    for _again in range(2):
        assert permissions.may_subscribe("a/+")
        assert not permissions.may_subscribe("no/#")
        assert permissions.may_unsubscribe("a/+") is True
        assert permissions.may_unsubscribe("never") is False
    assert len(rules.asked) == 8
