"""A subscriber that gets nothing: the way of a message to it, step by step, to where it stops."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding, good
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.topics import check_topic_filter, check_topic_name, matches, without_share
from lockgate.telemetry import health

Facts = Mapping[str, Any]

_NOTHING_ARRIVES = "it gets nothing"
# What the broker remembers of messages that were not delivered, and what to do about it
_ADVICE = {
    "queue full": "let it read faster or stay connected, or raise max_queued_messages and max_queued_bytes",
    "slow reader": "use QoS 1 for what must arrive, or publish less to it",
    "expired": "a longer Message Expiry Interval at the publisher",
    "too large": "a larger Maximum Packet Size at the client, or smaller messages",
    "no local": "subscribe without No Local, or publish from another client",
    "memory budget spent": "more memory_budget in lockgate.toml, or fewer messages that wait: `lockgate session list`",
    "not permitted": "`topic read` for it in the acl_file, or its role in dynamic security; then SIGHUP",
    "refused": "`topic write` for the publisher in the acl_file, or its role in dynamic security; then SIGHUP",
    "not retained": "raise retained_messages and retained_bytes in lockgate.toml, and publish it again",
    "window full": "let the client acknowledge: its program hangs in its message callback, or never sends PUBACK",
    "waiting": "look at the client: its program hangs, or its network is slower than what is published",
}


def walk(case: Case, client: str, topic: str, topic_filter: str | None, publisher: str | None) -> list[Finding]:
    """Ask the broker, and say what it answers, in the order of a message's way."""
    try:
        check_topic_name(topic)
    except MqttError as error:
        return [
            Finding(
                "topic",
                "error",
                topic,
                f"nobody can publish to it: {error}",
                "wildcards are for filters alone",
                "--topic names one topic, as in a PUBLISH; the filter is --filter",
            )
        ]
    if case.socket is not None:
        said = health.ask(case.socket, ask="delivery", client=client, topic=topic, publisher=publisher or "")
        if said is not None and "findings" in said:
            sessions = health.ask(case.socket, ask="sessions", action="list") or {}
            return list(stations(said, sessions, client, topic, topic_filter, publisher))
    return [
        Finding(
            "broker",
            "error",
            f"client {client}",
            "the broker does not answer",
            _NOTHING_ARRIVES,
            "start it; if it runs, ask as a user who may use its status socket, and with the same -c FILE",
        )
    ]


def stations(
    said: Facts, sessions: Facts, client: str, topic: str, topic_filter: str | None, publisher: str | None
) -> Iterator[Finding]:
    """Give a finding for each step; behind the one where it stops there is no other."""
    where = f"client {client}"
    steps = (
        _asked(where, topic, topic_filter),
        _connection(where, said, sessions, client),
        _subscription(where, said, topic, topic_filter),
        _permission(where, said, topic),
        _publisher(said, topic, publisher),
        _decisions(where, said),
        _shared(where, said),
    )
    for step in steps:
        for finding in step:
            yield finding
            if finding.severity == "error":
                return
    yield _retained(said, topic)
    yield Finding(
        "delivery", "ok", where, f"nothing is in the way of a message on {topic}: if none comes, none is published",
        "", f"mosquitto_sub -v -t '{topic}' shows what is",
    )  # fmt: skip


def _asked(where: str, topic: str, topic_filter: str | None) -> Iterator[Finding]:
    """Look at the filter itself."""
    if topic_filter is None:
        return
    try:
        check_topic_filter(topic_filter)
    except MqttError as error:
        yield Finding(
            "filter", "error", where, f"{topic_filter!r} is no Topic Filter: {error}",
            "the broker refuses a SUBSCRIBE of it, or ends the connection",
            f"a filter like {_proposal(topic_filter)!r}",
        )  # fmt: skip
        return
    plain = without_share(topic_filter)
    if not matches(plain, topic):
        why = near_miss(plain, topic) or "their levels differ"
        yield Finding(
            "filter", "error", where, f"{topic_filter!r} does not match {topic!r}: {why}", _NOTHING_ARRIVES,
            f"a filter that matches, as {topic!r}",
        )  # fmt: skip


def _connection(where: str, said: Facts, sessions: Facts, client: str) -> Iterator[Finding]:
    session = said["session"]
    if session is None:
        known = [str(one["client_id"]) for one in sessions.get("sessions", ())]
        close = [one for one in known if one.casefold() == client.casefold()] or difflib.get_close_matches(
            client, known
        )
        alike = f"; there is {', '.join(map(repr, close))}" if close else ""
        past = "; ".join(_last(one) for one in said["findings"] if one["count"])
        yield Finding(
            "connection", "error", where, f"the broker knows no session of it now{alike}",
            past or "it never connected, its login was refused, or it ended with its connection (clean session)",
            "look for its client id and address in the log; `lockgate verify --username U` tries its login",
        )  # fmt: skip
        return
    if session["address"] is None:
        seconds = session["disconnected_for"]
        past = "; ".join(_last(one) for one in said["findings"] if one["reason"] == "disconnected")
        keeps = "QoS 1 and 2 wait for it, QoS 0 is gone" if session["durable"] else "nothing waits for it"
        yield Finding(
            "connection", "error", where, f"it is not connected, for {_span(seconds)} now", f"{keeps}. {past}".strip(),
            "look at the client: is it switched on, does it reach this machine, is its password still right?",
        )  # fmt: skip
        return
    yield good("connection", where, f"it is connected, from {session['address']}")
    who = f"as user {session['user']!r}" if session["user"] is not None else "without a user name (anonymous)"
    yield good("authentication", where, f"it was let in {who}")


def _subscription(where: str, said: Facts, topic: str, topic_filter: str | None) -> Iterator[Finding]:
    subscriptions = said["session"]["subscriptions"]
    filters = [str(one["filter"]) for one in subscriptions]
    fitting = [one for one in subscriptions if one["matches"]]
    if topic_filter is not None and topic_filter not in filters:
        yield Finding(
            "subscription", "warning" if fitting else "error", where,
            f"it has no subscription to {topic_filter!r}; {_has(filters)}",
            "its SUBSCRIBE did not come, was refused (look at its SUBACK), or it unsubscribed",
            "have it subscribe after each CONNACK without Session Present, and look at the codes of SUBACK",
        )  # fmt: skip
        if not fitting:
            return
    if not fitting:
        misses = [f"{one!r}: {why}" for one in filters if (why := near_miss(without_share(one), topic))]
        mount = said["session"]["mount_point"]
        below = f"; its listener puts {mount!r} before its topics (mount_point)" if mount else ""
        told = f". Nearly: {'; '.join(misses[:5])}" if misses else ""
        yield Finding(
            "filter", "error", where, f"none of its filters matches {topic!r}; {_has(filters)}{told}{below}",
            _NOTHING_ARRIVES, f"subscribe to {topic!r}, or publish to what it subscribed to",
        )  # fmt: skip
        return
    named = ", ".join(f"{one['filter']!r} (QoS {one['qos']})" for one in fitting)
    yield good("filter", where, f"{named} matches")
    if not any(one["qos"] for one in fitting):
        yield Finding(
            "qos", "warning", where, "it subscribed with QoS 0",
            "what is published while it is away, or faster than it reads, is lost for it",
            "subscribe with QoS 1 and a session that lasts (clean session false, or a Session Expiry Interval)",
        )  # fmt: skip
    if all(one["no_local"] for one in fitting):
        yield good("no-local", where, "it does not get what it publishes itself (No Local)")


def _permission(where: str, said: Facts, topic: str) -> Iterator[Finding]:
    session = said["session"]
    if session["may_receive"]:
        yield good("acl", where, f"it may receive {topic}")
        return
    who = f"user {session['user']!r}" if session["user"] is not None else "a client without a user name"
    yield Finding(
        "acl", "error", where, f"the rules do not let {who} receive {topic}",
        "its subscription is accepted all the same, and nothing arrives", _ADVICE["not permitted"],
    )  # fmt: skip


def _publisher(said: Facts, topic: str, publisher: str | None) -> Iterator[Finding]:
    if publisher is None:
        return
    where, sender = f"publisher {publisher}", said["publisher"]
    if sender is None or not sender["connected"]:
        yield Finding(
            "publisher", "error", where, "it is not connected" if sender is not None else "the broker does not know it",
            "it publishes nothing", "look at the publisher; `lockgate session list` shows who is there",
        )  # fmt: skip
    elif not sender["may_publish"]:
        yield Finding(
            "publisher-acl", "error", where, f"the rules do not let it publish to {topic}",
            "before MQTT 5 it is not told: PUBACK comes and the message is gone", _ADVICE["refused"],
        )  # fmt: skip
    else:
        yield good("publisher", where, f"it is connected, and may publish to {topic}")


def _decisions(where: str, said: Facts) -> Iterator[Finding]:
    """Say what the broker remembers of messages on this topic; what lasts now stops them."""
    for one in said["findings"]:
        reason = str(one["reason"])
        if reason in _ADVICE:
            now = reason in ("window full", "waiting")
            yield Finding(
                reason.replace(" ", "-"), "error" if now else "warning", where, _last(one),
                "messages wait" if now else "that message did not arrive", _ADVICE[reason],
            )  # fmt: skip


def _shared(where: str, said: Facts) -> Iterator[Finding]:
    fitting = [one for one in said["session"]["subscriptions"] if one["matches"]]
    if not fitting or not all(one["share"] for one in fitting):
        return
    others = sorted({str(name) for one in fitting for name in one["others"]})
    if others:
        yield Finding(
            "shared", "warning", where,
            f"only shared subscriptions match: others of its group ({', '.join(others)}) get part of the messages",
            "each message goes to one member of a group", "a filter without $share/, if it should get all",
        )  # fmt: skip


def _retained(said: Facts, topic: str) -> Finding:
    retained = said["retained"]
    if retained is None:
        past = [_last(one) for one in said["findings"] if one["reason"] in ("retained cleared", "retained expired")]
        why = past[0] if past else "as far as is remembered none was"
        text = f"no message is retained on {topic}, so who subscribes waits for the next one: {why}"
        return good("retained", f"topic {topic}", text)
    by = f" by client {retained['publisher']!r}" if retained["publisher"] else ""
    return good(
        "retained", f"topic {topic}", f"{retained['payload_bytes']} bytes are retained{by}, QoS {retained['qos']}"
    )


def near_miss(topic_filter: str, topic: str) -> str | None:
    """Say what small thing keeps a filter from matching; None: it matches, or is about something else."""
    if matches(topic_filter, topic):
        return None
    if topic.startswith("$") and topic_filter[:1] in ("#", "+"):
        return f"# and + at the start do not stand for topics with $ ({topic.partition('/')[0]}/# does)"
    if matches(topic_filter.casefold(), topic.casefold()):
        return "only the case of letters differs"
    if topic_filter.startswith("/") != topic.startswith("/"):
        if matches(topic_filter.strip("/"), topic.strip("/")):
            side = "the filter" if topic_filter.startswith("/") else "the topic"
            return f"{side} begins with a slash, which makes one more level, an empty one"
    if matches(topic_filter.rstrip("/"), topic.rstrip("/")):
        return "one of them ends with a slash, which makes one more level, an empty one"
    if matches(topic_filter.strip(), topic) or _spaceless(topic_filter, topic):
        return "a space is in one of them alone"
    if "*" in topic_filter:
        return "* is no wildcard of MQTT: + stands for one level, # for all that follow"
    levels, wanted = topic_filter.split("/"), topic.split("/")
    if "#" in levels[:-1]:
        return "# may only be the last level"
    if "+" in levels and len(levels) != len(wanted):
        shortened = [*levels[:-1], "#"] if levels[-1] == "+" else levels
        if levels[-1] == "+" and matches("/".join(shortened), topic):
            return "+ stands for exactly one level, and there are more: # stands for all that follow"
    if len(levels) < len(wanted) and matches(f"{topic_filter}/#", topic):
        return f"it is for that one topic, not for those below it: {topic_filter}/# is"
    if len(levels) == len(wanted):
        apart = [(a, b) for a, b in zip(levels, wanted, strict=True) if a not in ("+", "#", b)]
        if len(apart) == 1 and difflib.SequenceMatcher(None, *apart[0]).ratio() > 0.7:
            return f"{apart[0][0]!r} is not {apart[0][1]!r}"
    return None


def _spaceless(topic_filter: str, topic: str) -> bool:
    return matches(topic_filter.replace(" ", ""), topic.replace(" ", ""))


def _proposal(topic_filter: str) -> str:
    """Give a valid filter near a wrong one."""
    levels = []
    for level in topic_filter.split("/"):
        if "#" in level:
            levels.append("#")
            break
        levels.append("+" if "+" in level else level)
    return "/".join(levels) or "#"


def _has(filters: list[str]) -> str:
    if not filters:
        return "it has no subscriptions"
    more = f" and {len(filters) - 10} more" if len(filters) > 10 else ""
    return f"it subscribed to {', '.join(map(repr, filters[:10]))}{more}"


def _last(finding: Facts) -> str:
    at, count = finding["last_at"], finding["count"]
    text = str(finding["text"])
    if count and isinstance(at, int | float):
        often = f"{count} times, last" if count > 1 else "once"
        text += f" ({often} at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))})"
    return text


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"
