"""What a State allows: the first ACL that matches decides, else the default access."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lockgate.access.acl_file import fill_in
from lockgate.access.authority import Verdict
from lockgate.access.dynamic_security.model import (
    PUBLISH_RECEIVE,
    PUBLISH_SEND,
    SUBSCRIBE_LITERAL,
    SUBSCRIBE_PATTERN,
    UNSUBSCRIBE_LITERAL,
    UNSUBSCRIBE_PATTERN,
    Acl,
    Role,
    State,
)
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.topics import matches, without_share

_CONTROL = "$CONTROL"


class Rules:
    """The rules of one State."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._roles: dict[str | None, tuple[Role, ...]] = {}  # of those who asked

    def may_publish(self, client_id: str, username: str | None, topic: str) -> Verdict:
        return self._decide(
            username,
            topic,
            PUBLISH_SEND,
            lambda role: _first(role, PUBLISH_SEND, client_id, username, lambda rule: matches(rule, topic)),
        )

    def may_receive(self, client_id: str, username: str | None, topic: str) -> Verdict:
        return self._decide(
            username,
            topic,
            PUBLISH_RECEIVE,
            lambda role: _first(role, PUBLISH_RECEIVE, client_id, username, lambda rule: matches(rule, topic)),
        )

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> Verdict:
        inner = _without_share(topic_filter)
        wild = "+" in inner or "#" in inner

        def decide(role: Role) -> bool | None:
            if wild and not role.allow_wildcard_subs:
                return False
            literal = _literal(role, SUBSCRIBE_LITERAL, (topic_filter, inner))
            if literal is not None:
                return literal
            return _first(role, SUBSCRIBE_PATTERN, client_id, username, lambda rule: covers(rule, inner))

        return self._decide(username, inner, "subscribe", decide)

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> Verdict:
        inner = _without_share(topic_filter)

        def decide(role: Role) -> bool | None:
            literal = _literal(role, UNSUBSCRIBE_LITERAL, (topic_filter, inner))
            if literal is not None:
                return literal
            return _first(role, UNSUBSCRIBE_PATTERN, client_id, username, lambda rule: covers(rule, inner))

        return self._decide(username, inner, "unsubscribe", decide)

    def _decide(self, username: str | None, topic: str, access: str, ask: Callable[[Role], bool | None]) -> Verdict:
        if username is not None:
            client = self.state.clients.get(username)
            if client is None:
                return Verdict.DEFER
            if client.disabled:
                return Verdict.DENY
        for role in self._roles_of(username):
            word = ask(role)
            if word is not None:
                return Verdict.ALLOW if word else Verdict.DENY
        if self.state.default_access[access] and topic != _CONTROL and not topic.startswith(f"{_CONTROL}/"):
            return Verdict.ALLOW
        return Verdict.DEFER

    def _roles_of(self, username: str | None) -> tuple[Role, ...]:
        roles = self._roles.get(username)
        if roles is None:
            roles = self.state.anonymous_roles if username is None else self.state.roles_of(username)
            self._roles[username] = roles  # one for each client of the file at most
        return roles


def covers(rule: str, topic_filter: str) -> bool:
    """Say whether every topic that `topic_filter` matches is matched by the filter `rule` too."""
    if topic_filter.startswith("$") and rule[:1] in ("+", "#"):
        return False
    wanted = topic_filter.split("/")
    levels = rule.split("/")
    for position, level in enumerate(levels):
        if level == "#":
            return True
        if position >= len(wanted) or wanted[position] == "#":
            return False
        if level != "+" and level != wanted[position]:
            return False
    return len(levels) == len(wanted)


def _first(role: Role, acl_type: str, client_id: str, username: str | None, fits: Callable[[str], bool]) -> bool | None:
    """Give what the first ACL of a type that fits says; None where none does."""
    for acl in role.acls:
        if acl.acl_type == acl_type:
            rule = _filled(acl, client_id, username)
            if rule is not None and fits(rule):
                return acl.allow
    return None


def _literal(role: Role, acl_type: str, topic_filters: Iterable[str]) -> bool | None:
    for acl in role.acls:
        if acl.acl_type == acl_type and acl.topic in topic_filters:
            return acl.allow
    return None


def _filled(acl: Acl, client_id: str, username: str | None) -> str | None:
    """Put client id and user name in; a wildcard in them opens nothing, and closes all that it could stand for."""
    if "%" not in acl.topic:
        return acl.topic
    levels = acl.topic.split("/")
    for level, name in (("%c", client_id), ("%u", username)):
        if name is not None and ("+" in name or "#" in name) and level in levels:
            if acl.allow:
                return None
            levels = ["+" if one == level else one for one in levels]
    return fill_in("/".join(levels), client_id, username)


def _without_share(topic_filter: str) -> str:
    try:
        return without_share(topic_filter)
    except MqttError:
        return topic_filter  # no broker grants it
