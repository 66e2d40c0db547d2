"""Mosquitto's ACL file: which topics a user, or a client without a user name, may read and write.

topic [read|write|readwrite|deny] FILTER      of the last `user` above it, else of clients without a user name
user NAME
pattern [read|write|readwrite|deny] FILTER    of everybody; the levels %c and %u stand for client id and user name
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from lockgate.access import secret_file
from lockgate.access.authority import Verdict
from lockgate.config.errors import ConfigError, did_you_mean, raise_all
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.topics import check_topic_filter, matches

log = logging.getLogger(__name__)

READ: Final = 1
WRITE: Final = 2
DENY: Final = 4
ACCESS: Final = {"read": READ, "write": WRITE, "readwrite": READ | WRITE, "deny": DENY}
_BRIDGE_STATE: Final = "$SYS/broker/connection/+/state"  # a bridge tells its state below $SYS


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule: what it says (READ, WRITE, DENY) of the topics that match its filter."""

    access: int
    topic_filter: str


class Entries:
    """The rules of one user, found by topic: a deny goes before whatever else matches, the order is nothing."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._literal: dict[str, int] = {}
        self._by_first_level: dict[str, list[Entry]] = {}  # with wildcards; "+" and "#" are first levels too
        for entry in entries:
            if "+" in entry.topic_filter or "#" in entry.topic_filter:
                first = entry.topic_filter.partition("/")[0]
                self._by_first_level.setdefault(first, []).append(entry)
            else:
                self._literal[entry.topic_filter] = self._literal.get(entry.topic_filter, 0) | entry.access

    def access(self, topic: str) -> int:
        """Give all that the rules which match this Topic Name say of it."""
        access = self._literal.get(topic, 0)
        for first in (topic.partition("/")[0], "+", "#"):
            for entry in self._by_first_level.get(first, ()):
                if entry.access & ~access and matches(entry.topic_filter, topic):
                    access |= entry.access
        return access


class AclFile:
    """An authority over topics by the rules of one file. It is never changed: to reload is to make another.

    Subscribing and unsubscribing are not its matter: it is asked for every delivery instead.
    """

    def __init__(
        self, users: dict[str | None, list[Entry]], patterns: Iterable[Entry], deny_special_chars: bool = True
    ) -> None:
        """`users` has the rules of each user; None stands for clients without a user name."""
        self._users = {user: Entries(entries) for user, entries in users.items()}
        patterns = list(patterns)
        self._has_patterns = bool(patterns)
        self._deny_special_chars = deny_special_chars  # user names and client ids that a pattern would take for more
        self._patterns = Entries(entry for entry in patterns if not _is_template(entry))
        self._templates = [(entry.access, entry.topic_filter) for entry in patterns if _is_template(entry)]

    @classmethod
    def load(cls, path: Path, deny_special_chars: bool = True) -> Self:
        """Read a file; raises ConfigError with every mistake in it. A file without a rule allows nothing."""
        return cls(*parse(secret_file.read_text(path), path), deny_special_chars)

    def login(
        self, client_id: str, username: str | None, password: bytes | None, by_certificate: bool = False
    ) -> Verdict:
        """Have no opinion."""
        return Verdict.IGNORE

    def credential(self, username: str) -> object:
        """Know nobody."""
        return None

    def may_publish(self, client_id: str, username: str | None, topic: str) -> Verdict:
        """Say whether a rule lets this client write; below `$SYS` only a bridge's state can be allowed."""
        if (topic.startswith("$SYS/") or topic == "$SYS") and not matches(_BRIDGE_STATE, topic):
            return Verdict.DENY
        return self._decide(client_id, username, topic, WRITE)

    def may_receive(self, client_id: str, username: str | None, topic: str) -> Verdict:
        """Say whether a rule lets this client read."""
        return self._decide(client_id, username, topic, READ)

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> Verdict:
        """Have no opinion, as the next."""
        return Verdict.IGNORE

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> Verdict:
        return Verdict.IGNORE

    def _decide(self, client_id: str, username: str | None, topic: str, wanted: int) -> Verdict:
        own = self._users.get(username)
        if own is not None:
            access = own.access(topic)
            if access & DENY:
                return Verdict.DENY
            if access & wanted:
                return Verdict.ALLOW
        if not self._has_patterns:
            return Verdict.DEFER
        special = _has_wildcard(client_id) or (username is not None and _has_wildcard(username))
        if special and self._deny_special_chars:
            return Verdict.DENY  # in a pattern it would stand for others
        access = self._patterns.access(topic)
        for says, template in self._templates:
            if says & ~access:
                topic_filter = fill_in(template, client_id, username)
                if topic_filter is not None and matches(topic_filter, topic):
                    access |= says
        if access & DENY:
            return Verdict.DENY
        return Verdict.ALLOW if access & wanted else Verdict.DEFER


def fill_in(template: str, client_id: str, username: str | None) -> str | None:
    """Put client id and user name in the place of the levels %c and %u; None where there is no user name to put."""
    levels: list[str] = []
    for level in template.split("/"):
        if level == "%u":
            if username is None:
                return None
            level = username
        elif level == "%c":
            level = client_id
        levels.append(level)
    return "/".join(levels)


def parse(text: str, path: Path) -> tuple[dict[str | None, list[Entry]], list[Entry]]:
    """Read a file's text: the rules of each user, None being clients without a name, and the patterns.

    Raises ConfigError with every mistake: each names its line.
    """
    users: dict[str | None, list[Entry]] = {}
    patterns: list[Entry] = []
    errors: list[ConfigError] = []
    user: str | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.strip(" \r\t\v\f").split(" ", 1)
        word, rest = words[0], words[1].strip() if len(words) > 1 else ""
        if not word or line.startswith("#"):
            continue
        try:
            if word == "user":
                if not rest:
                    raise _mistake("a user line without a name", "user NAME")
                user = rest
                users.setdefault(user, [])
            elif word in ("topic", "pattern"):
                entry = _entry(word, rest)
                (patterns if word == "pattern" else users.setdefault(user, [])).append(entry)
                if word == "pattern" and not _is_template(entry):
                    # Mosquitto before 2.1 filled in parts of levels too, against its manual
                    log.warning("%s:%d: %%c and %%u are filled in only where they are a whole level: this pattern has "
                                "no such level and says the same for everybody", path, number)  # fmt: skip
            else:
                raise _mistake(
                    f"{word!r} is not a rule.{did_you_mean(word, ('topic', 'user', 'pattern'))}",
                    "topic, user or pattern, then a space; # as the first character of a comment",
                )
        except ConfigError as error:
            errors.append(ConfigError(error.problem, path=path, line=number, accepted=error.accepted))
    raise_all(errors)
    return users, patterns


def _entry(word: str, rest: str) -> Entry:
    first, space, topic_filter = rest.partition(" ")
    topic_filter = topic_filter.lstrip(" ")
    access = READ | WRITE
    if not space:
        topic_filter = first  # `topic read` is about the topic "read"
    elif first in ACCESS:
        access = ACCESS[first]
    else:
        raise _mistake(
            f"{first!r} is no access.{did_you_mean(first, ACCESS)}",
            f"{word} {'|'.join(ACCESS)} FILTER, or {word} FILTER",
        )
    if not topic_filter:
        raise _mistake(f"a {word} line without a filter", f"{word} [{'|'.join(ACCESS)}] FILTER")
    try:
        check_topic_filter(topic_filter)
        if "\0" in topic_filter:
            raise _mistake("a filter with a NUL character", "a Topic Filter")
    except MqttError as error:
        raise _mistake(str(error), "a Topic Filter: + is a whole level, # the whole last level") from None
    return Entry(access, topic_filter)


def _mistake(problem: str, accepted: str) -> ConfigError:
    return ConfigError(problem, accepted=accepted)


def _is_template(entry: Entry) -> bool:
    return any(level in ("%c", "%u") for level in entry.topic_filter.split("/"))


def _has_wildcard(text: str) -> bool:
    return "+" in text or "#" in text
