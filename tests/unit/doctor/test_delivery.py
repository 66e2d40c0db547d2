from __future__ import annotations

from typing import Any

import pytest

from lockgate.doctor.delivery import near_miss, stations
from lockgate.doctor.finding import Finding

TOPIC = "home/kitchen/temp"


def subscribed(topic_filter: str, matches: bool = True, **more: Any) -> dict[str, Any]:
    return {"filter": topic_filter, "matches": matches, "qos": 1, "no_local": False, "share": "", "others": [], **more}


def session(*subscriptions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "user": "panel",
        "address": "192.0.2.1:4711",
        "mount_point": "",
        "disconnected_for": None,
        "durable": True,
        "subscriptions": list(subscriptions),
        "may_receive": True,
        "queued": 0,
        "in_flight": 0,
        **more,
    }


def remembered(reason: str, text: str, count: int = 1) -> dict[str, Any]:
    return {"reason": reason, "text": text, "count": count, "first_at": 1.8e9, "last_at": 1.8e9}


def walk(
    state: dict[str, Any] | None,
    *findings: dict[str, Any],
    topic_filter: str | None = None,
    publisher: str | None = None,
    sender: dict[str, Any] | None = None,
    retained: dict[str, Any] | None = None,
    sessions: tuple[str, ...] = (),
) -> list[Finding]:
    said = {"session": state, "retained": retained, "publisher": sender, "findings": list(findings)}
    known = {"sessions": [{"client_id": one} for one in sessions]}
    return list(stations(said, known, "panel", TOPIC, topic_filter, publisher))


def stop(found: list[Finding]) -> Finding:
    """Where it stops: the last, and the only error."""
    assert [one.severity for one in found].count("error") == 1
    assert found[-1].severity == "error"
    return found[-1]


def test_nothing_in_the_way_is_said() -> None:
    found = walk(session(subscribed("home/#")))
    assert [one.check for one in found] == ["connection", "authentication", "filter", "acl", "retained", "delivery"]
    assert all(one.severity == "ok" for one in found)
    assert "waits for the next one: as far as is remembered none was" in found[-2].problem


def test_a_retained_message_that_was_cleared_is_told() -> None:
    text = "the retained message was cleared, with an empty one, by client 'x'"
    found = walk(session(subscribed("home/#")), remembered("retained cleared", text))
    assert f"{text} (once at" in found[-2].problem


def test_a_client_that_is_not_known_stops_it_and_its_likes_are_named() -> None:
    found = stop(walk(None, remembered("disconnected", "it was disconnected: keep alive"), sessions=("Panel", "x")))
    assert found.check == "connection"
    assert "'Panel'" in found.problem
    assert "keep alive (once at" in found.why


def test_a_client_that_is_away_stops_it() -> None:
    state = session(subscribed("home/#"), address=None, disconnected_for=7300.0)
    found = stop(walk(state, remembered("disconnected", "it was disconnected: session taken over", 3)))
    assert "for 2 hours" in found.problem
    assert "QoS 1 and 2 wait" in found.why
    assert "session taken over (3 times, last at" in found.why


@pytest.mark.parametrize(
    ("topic_filter", "told"),
    [
        ("Home/Kitchen/temp", "only the case of letters differs"),
        ("/home/kitchen/temp", "the filter begins with a slash"),
        ("home/kitchen/temp/", "ends with a slash"),
        ("home/kitchen", "home/kitchen/# is"),
        ("home/+", "+ stands for exactly one level"),
        ("home/*/temp", "* is no wildcard"),
        ("home/kitchn/temp", "'kitchn' is not 'kitchen'"),
        ("home/kitchen/temp ", "a space"),
    ],
)
def test_a_near_miss_is_explained(topic_filter: str, told: str) -> None:
    found = stop(walk(session(subscribed(topic_filter, matches=False))))
    assert found.check == "filter"
    assert told in found.problem


def test_filters_that_are_about_something_else_have_no_explanation() -> None:
    assert near_miss("garage/#", TOPIC) is None
    assert near_miss("home/#", TOPIC) is None
    found = stop(walk(session(subscribed("garage/#", matches=False))))
    assert "'garage/#'" in found.problem
    assert "Nearly" not in found.problem


def test_wildcards_do_not_stand_for_system_topics() -> None:
    told = near_miss("#", "$SYS/broker/uptime")
    assert told is not None
    assert "$SYS/# does" in told


@pytest.mark.parametrize(
    ("topic_filter", "proposed"), [("home/#/temp", "home/#"), ("home/kitch+/temp", "home/+/temp"), ("home#", "#")]
)
def test_a_filter_that_is_none_stops_it(topic_filter: str, proposed: str) -> None:
    found = stop(walk(session(), topic_filter=topic_filter))
    assert found.check == "filter"
    assert repr(proposed) in found.advice


def test_a_filter_that_is_not_subscribed_to_is_told() -> None:
    found = stop(walk(session(subscribed("garage/#", matches=False)), topic_filter="home/#"))
    assert found.check == "subscription"
    assert "SUBACK" in found.why
    others = walk(session(subscribed("home/+/temp")), topic_filter="home/#")
    assert "error" not in [one.severity for one in others]
    assert [one.check for one in others if one.severity == "warning"] == ["subscription"]


def test_a_shared_filter_is_matched_without_its_group() -> None:
    state = session(subscribed("$share/g/home/#", share="g", others=["other"]))
    found = walk(state, topic_filter="$share/g/home/#")
    (shared,) = (one for one in found if one.check == "shared")
    assert "other" in shared.problem


def test_a_mount_point_is_told() -> None:
    found = stop(walk(session(subscribed("home/#", matches=False), mount_point="east/")))
    assert "'east/'" in found.problem


def test_rules_that_forbid_receiving_stop_it() -> None:
    found = stop(walk(session(subscribed("home/#"), may_receive=False)))
    assert found.check == "acl"
    assert "user 'panel'" in found.problem
    assert "topic read" in found.advice


@pytest.mark.parametrize(
    ("sender", "check"),
    [
        (None, "publisher"),
        ({"connected": False, "user": None, "may_publish": True}, "publisher"),
        ({"connected": True, "user": None, "may_publish": False}, "publisher-acl"),
    ],
)
def test_a_publisher_that_is_away_or_may_not_stops_it(sender: dict[str, Any] | None, check: str) -> None:
    assert stop(walk(session(subscribed("home/#")), publisher="sensor", sender=sender)).check == check


@pytest.mark.parametrize(
    "reason", ["queue full", "slow reader", "expired", "too large", "no local", "memory budget spent", "not retained"]
)
def test_what_is_remembered_is_told_with_what_to_do(reason: str) -> None:
    found = walk(session(subscribed("home/#")), remembered(reason, "the reason"))
    (told,) = (one for one in found if one.severity == "warning")
    assert told.check == reason.replace(" ", "-")
    assert "the reason (once at" in told.problem
    assert told.advice


@pytest.mark.parametrize("reason", ["window full", "waiting"])
def test_messages_that_wait_now_stop_it(reason: str) -> None:
    finding = {"reason": reason, "text": "5 messages wait", "count": 0, "first_at": None, "last_at": None}
    assert stop(walk(session(subscribed("home/#")), finding)).problem == "5 messages wait"


def test_what_is_retained_is_told() -> None:
    retained = {"qos": 1, "payload_bytes": 4, "publisher": "sensor", "expires_in": None}
    found = walk(session(subscribed("home/#", qos=0)), retained=retained)
    assert [one.check for one in found if one.severity == "warning"] == ["qos"]
    assert any("4 bytes are retained by client 'sensor'" in one.problem for one in found)
