"""What an authority says, and how the word of several is put together (Mosquitto's rules)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from lockgate.access.dynamic_security.security import ControlAnswer

Endpoint = Callable[[bytes, str, Callable[[str], list[str]]], "ControlAnswer"]


class Verdict(enum.Enum):
    """An authority's word on one question."""

    ALLOW = "allow"
    DENY = "deny"
    DEFER = "defer"  # ask the next; when all defer, it is refused
    IGNORE = "ignore"  # as if this authority were not there


class Authority(Protocol):
    """Says who may connect, and who may do what.

    `login` is called in a worker thread and may take as long as a hash takes; the others are called on the broker's
    loop, are quick and do not raise. With `by_certificate` the user name is the word of a certificate that the listener
    has verified: there is no password to ask for, and only a user who is known and may not connect is refused.
    """

    def login(
        self, client_id: str, username: str | None, password: bytes | None, by_certificate: bool = False
    ) -> Verdict: ...

    def may_publish(self, client_id: str, username: str | None, topic: str) -> Verdict: ...

    def may_receive(self, client_id: str, username: str | None, topic: str) -> Verdict: ...

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> Verdict: ...

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> Verdict: ...

    def credential(self, username: str) -> object:
        """Give what a user is known by, which is equal as long as nothing about the login changes; None: not known."""


@runtime_checkable
class Administered(Protocol):
    """An authority that is changed by requests which clients publish to its topic."""

    topic: str

    def handle(self, payload: bytes, requester: str, connected: Callable[[str], list[str]]) -> ControlAnswer:
        """Do what is asked; called in a worker thread."""


class Chain:
    """Several authorities, asked in their order: the first that allows or denies decides."""

    def __init__(self, authorities: Sequence[Authority] = (), *, allow_anonymous: bool) -> None:
        self.authorities = tuple(authorities)
        self.allow_anonymous = allow_anonymous

    def endpoints(self) -> Mapping[str, Endpoint]:
        """Give what those whom these authorities rule may ask of them, by topic."""
        return {one.topic: one.handle for one in reversed(self.authorities) if isinstance(one, Administered)}

    def login(self, client_id: str, username: str | None, password: bytes | None, by_certificate: bool = False) -> bool:
        """Say whether this client may connect; called in a worker thread.

        Where nobody decides: a certificate is a login, and `allow_anonymous` lets in who gives no user name, and who
        gives one if there is no authority that would know it.
        """
        verdict = _decide(
            authority.login(client_id, username, password, by_certificate) for authority in self.authorities
        )
        if verdict is Verdict.ALLOW or verdict is Verdict.DENY:
            return verdict is Verdict.ALLOW
        if by_certificate:
            return True
        return self.allow_anonymous and (username is None or verdict is Verdict.IGNORE)

    def readmits(self, client_id: str, username: str | None, by_certificate: bool, before: Chain) -> bool:
        """Say whether a client whom the authorities `before` let in may stay: nobody keeps its password to ask again.

        Who is known by something else now has to log in anew.
        """
        if username is None or by_certificate:
            return self.login(client_id, username, None, by_certificate)
        known = self._credential(username)
        if known != before._credential(username):
            return False
        return known is not None or self.login(client_id, username, None)

    def _credential(self, username: str) -> object:
        found = (authority.credential(username) for authority in self.authorities)
        return next((one for one in found if one is not None), None)

    def may_publish(self, client_id: str, username: str | None, topic: str) -> bool:
        """Say whether this client may write to a Topic Name: live, as a will, or as a retained message's author."""
        return _allows(authority.may_publish(client_id, username, topic) for authority in self.authorities)

    def may_receive(self, client_id: str, username: str | None, topic: str) -> bool:
        """Say whether a message with this Topic Name may be delivered to this client."""
        return _allows(authority.may_receive(client_id, username, topic) for authority in self.authorities)

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        """Say whether this client may subscribe to a Topic Filter."""
        return _allows(authority.may_subscribe(client_id, username, topic_filter) for authority in self.authorities)

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        """Say whether this client may end a subscription."""
        return _allows(authority.may_unsubscribe(client_id, username, topic_filter) for authority in self.authorities)


def _allows(verdicts: Iterable[Verdict]) -> bool:
    verdict = _decide(verdicts)
    return verdict is Verdict.ALLOW or verdict is Verdict.IGNORE


def _decide(verdicts: Iterable[Verdict]) -> Verdict:
    """Give the first ALLOW or DENY, else DEFER if anybody deferred, else IGNORE."""
    nobody = Verdict.IGNORE
    for verdict in verdicts:
        if verdict is Verdict.ALLOW or verdict is Verdict.DENY:
            return verdict
        if verdict is Verdict.DEFER:
            nobody = Verdict.DEFER
    return nobody
