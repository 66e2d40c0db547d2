"""The ring of decisions: bounded, counted, and found by client and topic."""

from __future__ import annotations

from lockgate.broker.decisions import EXPIRED, QUEUE_FULL, Decisions


def test_the_same_decision_counts_up() -> None:
    decisions = Decisions(4)
    decisions.record(EXPIRED, "c", "t", 10.0, "first")
    decisions.record(EXPIRED, "c", "t", 12.0, "second")
    [found] = decisions.find("c", "t")
    assert (found.reason, found.client_id, found.topic, found.detail) == (EXPIRED, "c", "t", "second")
    assert (found.count, found.first_at, found.last_at) == (2, 10.0, 12.0)


def test_decisions_differ_by_reason_client_and_topic() -> None:
    decisions = Decisions(8)
    for reason, client_id, topic in (
        (EXPIRED, "c", "t"),
        (QUEUE_FULL, "c", "t"),
        (EXPIRED, "d", "t"),
        (EXPIRED, "c", "u"),
    ):
        decisions.record(reason, client_id, topic, 1.0)
    assert [one.count for one in decisions.find(None, None)] == [1] * 4
    assert {(one.reason, one.topic) for one in decisions.find("c", None)} == {
        (EXPIRED, "t"),
        (QUEUE_FULL, "t"),
        (EXPIRED, "u"),
    }
    assert {(one.reason, one.client_id) for one in decisions.find(None, "t")} == {
        (EXPIRED, "c"),
        (QUEUE_FULL, "c"),
        (EXPIRED, "d"),
    }


def test_the_latest_comes_first() -> None:
    decisions = Decisions(4)
    for at, topic in ((3.0, "a"), (1.0, "b"), (2.0, "c")):
        decisions.record(EXPIRED, "c", topic, at)
    assert [one.topic for one in decisions.find("c", None)] == ["a", "c", "b"]


def test_the_oldest_gives_its_place_to_the_next() -> None:
    decisions = Decisions(3)
    for number in range(3):
        decisions.record(EXPIRED, "c", str(number), float(number + 1))
        assert decisions.since() == (0.0 if number < 2 else 1.0)
    decisions.record(EXPIRED, "c", "0", 9.0)
    decisions.record(EXPIRED, "c", "3", 10.0)
    assert decisions.since() == 2.0
    assert [(one.topic, one.count, one.first_at) for one in decisions.find("c", None)] == [
        ("3", 1, 10.0),
        ("2", 1, 3.0),
        ("1", 1, 2.0),
    ]
    decisions.record(EXPIRED, "c", "0", 11.0)
    assert [one.topic for one in decisions.find("c", None)] == ["0", "3", "2"]


def test_a_long_topic_is_known_by_its_beginning() -> None:
    decisions = Decisions(4)
    decisions.record(EXPIRED, "c", "x" * 512 + "1", 1.0)
    decisions.record(EXPIRED, "c", "x" * 512 + "2", 2.0)
    [found] = decisions.find("c", "x" * 600)
    assert (found.topic, found.count) == ("x" * 512, 2)


def test_without_places_nothing_is_remembered() -> None:
    decisions = Decisions(0)
    decisions.record(EXPIRED, "c", "t", 1.0)
    assert decisions.find(None, None) == []
    assert decisions.since() == 0.0
