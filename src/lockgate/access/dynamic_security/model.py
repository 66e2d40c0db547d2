"""What dynamic security knows: clients, groups and roles. Nothing here is ever changed, a change makes a new State."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from lockgate.access.hashes import PasswordHash

PUBLISH_SEND: Final = "publishClientSend"
PUBLISH_RECEIVE: Final = "publishClientReceive"
SUBSCRIBE_LITERAL: Final = "subscribeLiteral"
SUBSCRIBE_PATTERN: Final = "subscribePattern"
UNSUBSCRIBE_LITERAL: Final = "unsubscribeLiteral"
UNSUBSCRIBE_PATTERN: Final = "unsubscribePattern"
ACL_TYPES: Final = (
    PUBLISH_SEND, PUBLISH_RECEIVE, SUBSCRIBE_LITERAL, SUBSCRIBE_PATTERN, UNSUBSCRIBE_LITERAL, UNSUBSCRIBE_PATTERN,
)  # fmt: skip
DEFAULT_ACCESS: Final = {PUBLISH_SEND: False, PUBLISH_RECEIVE: True, "subscribe": False, "unsubscribe": True}

MAXIMUM_PRIORITY: Final = 100_000
LIST_PRIORITY: Final = -1  # of roles and groups that are given none
ACL_PRIORITY: Final = 0

Extra = Mapping[str, Any]  # members of the file that nobody here knows; they are kept


@dataclass(frozen=True, slots=True)
class Reference:
    """A role's or a client's name in a list, with the priority it has there."""

    name: str
    priority: int = LIST_PRIORITY


@dataclass(frozen=True, slots=True)
class Acl:
    acl_type: str
    topic: str
    allow: bool = False
    priority: int = ACL_PRIORITY
    extra: Extra = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Role:
    """`acls` are in the order of ACL_TYPES, and in each by falling priority (`sorted_acls`)."""

    name: str
    acls: tuple[Acl, ...] = ()
    text_name: str | None = None
    text_description: str | None = None
    allow_wildcard_subs: bool = True
    extra: Extra = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Client:
    """`stored_password` are the members that hold the password in the file, in the form in which they came."""

    name: str
    client_id: str | None = None
    text_name: str | None = None
    text_description: str | None = None
    disabled: bool = False
    roles: tuple[Reference, ...] = ()  # by falling priority
    password: PasswordHash | None = None
    stored_password: Extra = field(default_factory=dict)
    extra: Extra = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    text_name: str | None = None
    text_description: str | None = None
    roles: tuple[Reference, ...] = ()  # by falling priority
    clients: Mapping[str, int] = field(default_factory=dict)  # user name → the group's priority for this client
    extra: Extra = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """Everything. Every name that is referred to is there."""

    default_access: Mapping[str, bool] = field(default_factory=lambda: dict(DEFAULT_ACCESS))
    clients: Mapping[str, Client] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    anonymous_group: str | None = None
    change_index: int = 0
    extra: Extra = field(default_factory=dict)

    @cached_property
    def memberships(self) -> Mapping[str, tuple[Reference, ...]]:
        """Give the groups of each client that has any, by falling priority, then by name."""
        found: dict[str, list[Reference]] = {}
        for name in sorted(self.groups):
            for username, priority in self.groups[name].clients.items():
                found.setdefault(username, []).append(Reference(name, priority))
        return {username: by_priority(groups) for username, groups in found.items()}

    def roles_of(self, username: str) -> tuple[Role, ...]:
        """Give a client's roles in the order in which they are asked: its own, then those of its groups."""
        references = list(self.clients[username].roles)
        for group in self.memberships.get(username, ()):
            references += self.groups[group.name].roles
        return tuple(self.roles[reference.name] for reference in references)

    @property
    def anonymous_roles(self) -> tuple[Role, ...]:
        """Give the roles of clients without a user name."""
        if self.anonymous_group is None:
            return ()
        return tuple(self.roles[reference.name] for reference in self.groups[self.anonymous_group].roles)


def by_priority(references: list[Reference]) -> tuple[Reference, ...]:
    """Sort by falling priority; what is equal stays in its order."""
    return tuple(sorted(references, key=lambda reference: -reference.priority))


def sorted_acls(acls: list[Acl]) -> tuple[Acl, ...]:
    """Sort by type, then by falling priority; what is equal stays in its order."""
    return tuple(sorted(acls, key=lambda acl: (ACL_TYPES.index(acl.acl_type), -acl.priority)))


def clamped(priority: float) -> int:
    """Bring a priority between the least and the greatest."""
    return int(max(-MAXIMUM_PRIORITY, min(MAXIMUM_PRIORITY, priority)))


def acl_type_of(text: str) -> str | None:
    """Give the type a text names, whatever its letter case."""
    lowered = text.lower()
    return next((known for known in ACL_TYPES if known.lower() == lowered), None)
