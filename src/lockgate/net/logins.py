"""The broker's authority: rules that are asked at once, and passwords that a thread looks at."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from lockgate.broker.ports import DENIED, LATER, PERMITTED, Authenticator
from lockgate.config.model import BrokerConfig, ListenerConfig

if TYPE_CHECKING:
    from lockgate.net.control import Endpoint

log = logging.getLogger(__name__)


class Rules(Protocol):
    """Who may come in and what each may do, as `access.authority.Chain` knows it."""

    def login(
        self, client_id: str, username: str | None, password: bytes | None, by_certificate: bool = False
    ) -> bool: ...

    def may_publish(self, client_id: str, username: str | None, topic: str) -> bool: ...

    def may_receive(self, client_id: str, username: str | None, topic: str) -> bool: ...

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool: ...

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool: ...

    def endpoints(self) -> Mapping[str, Endpoint]:
        """What clients that these rules let in may ask of who makes them, by topics below `$CONTROL/`."""

    def readmits(self, client_id: str, username: str | None, by_certificate: bool, before: Any) -> bool:
        """Whether a client that the rules `before`, of the same kind, let in may stay under these."""


class Access(Protocol):
    """The authorities of a configuration, as `access.authorities.Authorities` has them."""

    def rules(self, listener: ListenerConfig) -> Rules | None:
        """Whom a listener asks; None where there is nobody to ask."""


class Methods(Authenticator, Protocol):
    """The Authentication Methods of a configuration."""

    def credential(self, username: str) -> object:
        """What a user is known by, which is equal as long as nothing about the login changes; None: not known."""


# Makes what a configuration names, and keeps of what was there what belongs to the running broker; raises ConfigError.
MakeAccess = Callable[[BrokerConfig, Access | None], tuple[Methods | None, Access]]


class _Nobody:
    def rules(self, listener: ListenerConfig) -> None:
        return None


def no_access(config: BrokerConfig, before: Access | None) -> tuple[None, Access]:
    """Give what there is where no authority is wanted."""
    return None, _Nobody()


class Logins:
    """An `Authority` of the core over Rules; a password is looked at in a thread.

    One thread, for all listeners: a hash takes a core, and the broker needs one too. Whoever waits for it is bounded by
    `Limits.pending_logins`, and its connection is closed with `connect_timeout`.
    """

    def __init__(self, rules: Rules, hashing: Hashing) -> None:
        self.rules = rules
        self._hashing = hashing

    def ask_login(
        self, number: int, client_id: str, username: str | None, password: bytes | None, certified: bool
    ) -> int:
        """Say whether a client is let in, at once where there is no password to look at."""
        if password is None or username is None:
            return PERMITTED if self.rules.login(client_id, username, password, certified) else DENIED
        self._hashing.begin(self, number, client_id, username, password)
        return LATER

    def may_publish(self, client_id: str, username: str | None, topic: str) -> bool:
        """Whether a client may publish to a topic."""
        return self.rules.may_publish(client_id, username, topic)

    def may_receive(self, client_id: str, username: str | None, topic: str) -> bool:
        """Whether a client may be sent a message of a topic."""
        return self.rules.may_receive(client_id, username, topic)

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        """Whether a client may subscribe to a filter."""
        return self.rules.may_subscribe(client_id, username, topic_filter)

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        """Whether a client may end a Subscription."""
        return self.rules.may_unsubscribe(client_id, username, topic_filter)


class SomeListener:
    """An `Authority` over clients whose listener is not known: they may do what the rules of one of them allow.

    A listener without rules lets do everything: `anonymous` says whether there is one, `users` whether it proves names.
    """

    def __init__(self, authorities: Iterable[Logins], *, anonymous: bool, users: bool) -> None:
        self._authorities = tuple(authorities)
        self._anonymous = anonymous
        self._users = users

    def ask_login(
        self, number: int, client_id: str, username: str | None, password: bytes | None, certified: bool
    ) -> int:
        """Let nobody in: that is for a listener's own authority to do."""
        return DENIED

    def _unruled(self, username: str | None) -> bool:
        return self._anonymous if username is None else self._users

    def may_publish(self, client_id: str, username: str | None, topic: str) -> bool:
        """Whether a client may publish to a topic."""
        return self._unruled(username) or any(one.may_publish(client_id, username, topic) for one in self._authorities)

    def may_receive(self, client_id: str, username: str | None, topic: str) -> bool:
        """Whether a client may be sent a message of a topic."""
        return self._unruled(username) or any(one.may_receive(client_id, username, topic) for one in self._authorities)

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        """Whether a client may subscribe to a filter."""
        return self._unruled(username) or any(
            one.may_subscribe(client_id, username, topic_filter) for one in self._authorities
        )

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        """Whether a client may end a Subscription."""
        return self._unruled(username) or any(
            one.may_unsubscribe(client_id, username, topic_filter) for one in self._authorities
        )


class Hashing:
    """The thread that looks at passwords; `answer` is called on the loop with a connection's number."""

    def __init__(self, is_there: Callable[[int], bool], answer: Callable[[int, bool], None]) -> None:
        self._is_there = is_there  # asked in the thread
        self._answer = answer
        self._executor: ThreadPoolExecutor | None = None  # made for the first password

    def begin(self, logins: Logins, number: int, client_id: str, username: str, password: bytes) -> None:
        """Look at a password; the answer comes to the running event loop."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            if not self._is_there(number):  # it has given up
                return
            try:
                permitted = logins.rules.login(client_id, username, password)
            except Exception:
                log.exception("a login could not be looked at")
                permitted = False
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._answer, number, permitted)

        self.submit(look)

    def run(self, work: Callable[[], bool]) -> asyncio.Future[bool]:
        """Have the thread find something out."""
        return asyncio.get_running_loop().run_in_executor(self._thread(), work)

    def submit(self, work: Callable[[], None]) -> None:
        """Have the thread do something that may take long, after what it has to do already."""
        self._thread().submit(work)

    def _thread(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "passwords")
        return self._executor

    def close(self) -> None:
        """End the thread, without waiting for the hash it is at."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
