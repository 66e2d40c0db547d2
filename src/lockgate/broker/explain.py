"""Why a client did not get a message on a topic: from the state that is, and the decisions that are remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from lockgate.broker import decisions
from lockgate.broker.ports import NEVER, printable
from lockgate.mqtt.topics import matches

if TYPE_CHECKING:
    from lockgate.broker.broker import Broker
    from lockgate.broker.connection import Connection
    from lockgate.broker.session import Session, Subscription

# Reasons that are seen in the state and not remembered as decisions
NO_SESSION: Final = "no session"
NO_MATCHING_SUBSCRIPTION: Final = "no matching subscription"
WINDOW_FULL: Final = "window full"
WAITING: Final = "waiting"
SHARED: Final = "shared subscription"
NOTHING_KNOWN: Final = "nothing known"

_FILTERS_TOLD: Final = 20

_TEXTS: Final[dict[int, str]] = {
    decisions.QUEUE_FULL: "its queue was full (max_queued_messages, max_queued_bytes)",
    decisions.SLOW_READER: "it did not read, and as much as is allowed waited for it already; QoS 0 is dropped then",
    decisions.EXPIRED: "the Message Expiry Interval had passed before it could be sent",
    decisions.TOO_LARGE: "it was larger than the Maximum Packet Size that the client accepts",
    decisions.NO_LOCAL: "the client published it itself, and its subscription says No Local",
    decisions.NOT_PERMITTED: "the rules do not let the client receive this topic",
    decisions.SHED: "the memory budget was spent, or too many messages were queued in all",
}


@final
class Finding:
    """One reason. `count` is 0 for what is so now; times are seconds of the broker's clock, 0 where there is none."""

    __slots__ = ("count", "first_at", "last_at", "reason", "text")

    def __init__(self, reason: str, text: str, count: int = 0, first_at: float = 0.0, last_at: float = 0.0) -> None:
        self.reason = reason
        self.text = text
        self.count = count
        self.first_at = first_at
        self.last_at = last_at


def explain(broker: Broker, client_id: str, topic: str) -> list[Finding]:
    """Give every reason that is known, what is so now first; never an empty list."""
    findings: list[Finding] = []
    name = printable(client_id)
    session = broker.sessions.get(client_id)
    if session is None:
        findings.append(Finding(NO_SESSION, f"there is no session of a client {name!r} now"))
    else:
        _explain_state(broker, session, topic, findings)
    for decision in broker.decisions.find(None, topic):
        if decision.reason == decisions.REFUSED or decision.reason == decisions.NOT_RETAINED:
            what = "refused" if decision.reason == decisions.REFUSED else "not retained"
            why = decision.detail or "retained_messages, retained_bytes or the memory budget is spent"
            text = f"a message on this topic from client {printable(decision.client_id)!r} was {what}: {why}"
        elif decision.reason == decisions.CLEARED or decision.reason == decisions.RETAINED_EXPIRED:
            if broker.retained.get(topic) is not None:
                continue
            what = "was cleared, with an empty one, by" if decision.reason == decisions.CLEARED else "expired, of"
            text = f"the retained message {what} client {printable(decision.client_id)!r}"
        elif decision.client_id == client_id:
            text = _TEXTS[decision.reason]
        else:
            continue
        findings.append(_finding(decision, text))
    for decision in broker.decisions.find(client_id, ""):
        if decision.reason == decisions.DISCONNECTED:
            why = f": {decision.detail}" if decision.detail else ""
            findings.append(_finding(decision, f"it was disconnected{why}"))
        elif decision.reason == decisions.SESSION_ENDED:
            text = f"its session ended ({decision.detail}), and with it its subscriptions and its queue"
            findings.append(_finding(decision, text))
    if not findings:
        text = "the client is connected, its subscription matches, and no message on this topic is known to be dropped"
        findings.append(Finding(NOTHING_KNOWN, text, 0, broker.decisions.since()))
    return findings


def session_list(broker: Broker, now: float) -> list[dict[str, object]]:
    """Tell of every Session, for people and JSON, by client id; times are seconds from now."""
    found: list[dict[str, object]] = []
    for client_id in sorted(broker.sessions):
        session = broker.sessions[client_id]
        connection = session.connection
        found.append(
            {
                "client_id": client_id,
                "user": session.username,
                "address": connection.peer if connection is not None else None,
                "durable": session.durable,
                "subscriptions": len(session.subscriptions),
                "queued": session.queued_count,
                "queued_bytes": session.queued_bytes,
                "in_flight": len(session.in_flight),
                "expires_in": session.expires_at - now if session.expires_at != NEVER else None,
            }
        )
    return found


def delivery(broker: Broker, client_id: str, topic: str, publisher: str, now: float) -> dict[str, object]:
    """Tell all that decides whether a client gets messages on a topic, for JSON; times are seconds from now.

    `publisher` is the client id of who publishes them, empty where it is not known.
    """
    session = broker.sessions.get(client_id)
    retained = broker.retained.get(topic)
    said: dict[str, object] = {"session": None, "retained": None, "publisher": None}
    if session is not None:
        said["session"] = _described(broker, session, topic, now)
    if retained is not None:
        said["retained"] = {
            "qos": retained.qos,
            "payload_bytes": len(retained.payload),
            "publisher": retained.publisher,
            "expires_in": retained.expires_at - now if retained.expires_at != NEVER else None,
        }
    sender = broker.sessions.get(publisher) if publisher else None
    if sender is not None:
        said["publisher"] = {
            "connected": sender.connection is not None,
            "user": sender.username,
            "may_publish": sender.permissions is None
            or sender.permissions.authority.may_publish(publisher, sender.username, topic),
        }
    return said


def _described(broker: Broker, session: Session, topic: str, now: float) -> dict[str, object]:
    connection, permissions = session.connection, session.permissions
    subscriptions: list[dict[str, object]] = []
    for one in session.subscriptions.values():
        others = [
            member.client_id
            for member in broker.sessions.values()
            if one.share_name and one.requested_filter in member.subscriptions and member is not session
        ]
        subscriptions.append(
            {
                "filter": one.requested_filter,
                "matches": matches(one.topic_filter, topic),
                "qos": one.qos,
                "no_local": one.no_local,
                "share": one.share_name,
                "others": sorted(others)[:_FILTERS_TOLD],
            }
        )
    return {
        "user": session.username,
        "address": connection.peer if connection is not None else None,
        "mount_point": connection.limits.mount_point if connection is not None else "",
        "disconnected_for": now - session.disconnected_at if connection is None else None,
        "durable": session.durable,
        "subscriptions": subscriptions,
        "may_receive": permissions is None or permissions.looks_receivable(topic),
        "queued": session.queued_count,
        "in_flight": len(session.in_flight),
    }


def subscription_tree(broker: Broker) -> str:
    """Give a line for each level of the filters there are, with client id and QoS of those who subscribed to it."""
    nodes: dict[tuple[str, ...], list[str]] = {}
    for session in broker.sessions.values():
        for one in session.subscriptions.values():
            levels = tuple(one.topic_filter.split("/"))
            for depth in range(1, len(levels)):
                nodes.setdefault(levels[:depth], [])
            nodes.setdefault(levels, []).append(f" ({printable(session.client_id)}, {one.qos})")
    return "".join(
        f"{'  ' * (len(levels) + 1)}{printable(levels[-1])}{''.join(nodes[levels])}\n" for levels in sorted(nodes)
    )


def _finding(decision: decisions.Decision, text: str) -> Finding:
    return Finding(decisions.NAMES[decision.reason], text, decision.count, decision.first_at, decision.last_at)


def _explain_state(broker: Broker, session: Session, topic: str, findings: list[Finding]) -> None:
    matching = [one for one in session.subscriptions.values() if matches(one.topic_filter, topic)]
    if not matching:
        findings.append(Finding(NO_MATCHING_SUBSCRIPTION, _no_match(session, topic)))
        return
    permissions = session.permissions
    if permissions is not None and not permissions.looks_receivable(topic):
        who = f"user {printable(session.username)!r}" if session.username is not None else "an anonymous client"
        text = f"the rules do not let {who} with client id {printable(session.client_id)!r} receive this topic"
        findings.append(Finding(decisions.NAMES[decisions.NOT_PERMITTED], text))
        return
    connection = session.connection
    if connection is None:
        text = "it is not connected; QoS 0 is not kept for it"
        if not any(one.qos for one in matching):
            text += ", and it subscribed with QoS 0"
        findings.append(Finding(decisions.NAMES[decisions.NOT_CONNECTED], text, 0, session.disconnected_at))
    else:
        _explain_connection(broker, session, connection, findings)
    if all(one.share_name for one in matching):
        findings.append(Finding(SHARED, _shared(matching)))


def _explain_connection(broker: Broker, session: Session, connection: Connection, findings: list[Finding]) -> None:
    if session.queued_count and len(session.in_flight) >= connection.window:
        text = (
            f"{session.queued_count} messages wait: the client has not acknowledged any of the {len(session.in_flight)}"
            f" that it was sent, and takes {connection.window} at once (Receive Maximum, max_inflight_messages)"
        )
        findings.append(Finding(WINDOW_FULL, text))
    elif session.queued_count or connection.late:
        late = len(connection.late) if connection.late is not None else 0
        text = f"{session.queued_count + late} messages wait: the client does not read what was sent to it"
        findings.append(Finding(WAITING, text))


def _shared(matching: list[Subscription]) -> str:
    filters = ", ".join(printable(one.requested_filter) for one in matching)
    return f"only shared subscriptions match ({filters}): another member of the group may have got it"


def _no_match(session: Session, topic: str) -> str:
    if not session.subscriptions:
        return "it has no subscriptions"
    filters = sorted(session.subscriptions)
    told = ", ".join([printable(one) for one in filters[:_FILTERS_TOLD]])
    more = f" and {len(filters) - _FILTERS_TOLD} more" if len(filters) > _FILTERS_TOLD else ""
    text = f"none of its subscriptions matches: {told}{more}"
    folded = topic.casefold().strip("/")
    for one in session.subscriptions.values():
        if matches(one.topic_filter.casefold().strip("/"), folded):
            return f"{text}; {printable(one.requested_filter)} differs only in letter case or in a / at an end"
    return text
