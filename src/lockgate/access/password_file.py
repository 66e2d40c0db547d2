"""Mosquitto's password file: one `user:hash` per line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from lockgate.access import hashes, secret_file
from lockgate.access.authority import Verdict
from lockgate.access.hashes import PasswordHash
from lockgate.config.errors import ConfigError, raise_all


class PasswordFile:
    """An authority that knows the users of one file. It is never changed: to reload is to make another."""

    def __init__(self, users: Mapping[str, PasswordHash]) -> None:
        self.users = dict(users)
        # Who asks for a user that does not exist waits as long as for most of those that do.
        kinds = Counter(type(known).__name__ for known in self.users.values())
        usual = kinds.most_common(1)[0][0] if kinds else ""
        self._nobody = hashes.like(
            next((known for known in self.users.values() if type(known).__name__ == usual), None)
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file; raises ConfigError with every mistake in it."""
        return cls(parse(secret_file.read_text(path), path))

    def login(
        self, client_id: str, username: str | None, password: bytes | None, by_certificate: bool = False
    ) -> Verdict:
        """Say whether this is the user's password; a user who is not in the file may be in the next authority."""
        if username is None or by_certificate:
            return Verdict.IGNORE
        known = self.users.get(username)
        if password is None:
            return Verdict.DEFER if known is None else Verdict.DENY
        fits = (known if known is not None else self._nobody).verify(password)
        if known is None:
            return Verdict.DEFER
        return Verdict.ALLOW if fits else Verdict.DENY

    def credential(self, username: str) -> object:
        """Give the hash of a user's password."""
        known = self.users.get(username)
        return str(known) if known is not None else None

    def may_publish(self, client_id: str, username: str | None, topic: str) -> Verdict:
        """Have no opinion, as the next three."""
        return Verdict.IGNORE

    def may_receive(self, client_id: str, username: str | None, topic: str) -> Verdict:
        return Verdict.IGNORE

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> Verdict:
        return Verdict.IGNORE

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> Verdict:
        return Verdict.IGNORE


def parse(text: str, path: Path) -> dict[str, PasswordHash]:
    """Read a file's text. Lines with # in front and lines without a colon are skipped, as Mosquitto does.

    Raises ConfigError with every mistake: each names its line.
    """
    users: dict[str, PasswordHash] = {}
    errors: list[ConfigError] = []
    for number, line in enumerate(text.split("\n"), start=1):
        name, colon, hashed = line.partition(":")
        name = name.strip()
        if line.startswith("#") or not colon:
            continue
        try:
            if not name:
                raise ValueError("the user name is missing")
            if name in users:
                raise ValueError(f"user {name!r} stands there twice")
            try:
                users[name] = hashes.parse(hashed.strip())
            except ValueError as error:
                raise ValueError(f"what follows user {name!r} {error}") from None
        except ValueError as error:
            accepted = f"USER:HASH, each user once, HASH being {hashes.ACCEPTED}"
            errors.append(ConfigError(str(error), path=path, line=number, accepted=accepted))
    raise_all(errors)
    return users


def check_username(username: str) -> None:
    """Raise ValueError for a name that cannot stand in a password file."""
    if not username or username != username.strip() or username.startswith("#"):
        raise ValueError("a user name must not be empty, begin with # or a space, or end with a space")
    if len(username.encode()) > 65_535:
        raise ValueError("a user name has at most 65535 bytes")
    if ":" in username or any(ord(character) < 0x20 or ord(character) == 0x7F for character in username):
        raise ValueError("a user name must not contain a colon or control characters")


def set_user(text: str, username: str, hashed: PasswordHash | None) -> tuple[str, bool]:
    """Give a file's text with a user's line set, or with None removed, and whether the user was there.

    Every other line stays as it is. Raises ValueError for a name that cannot stand there.
    """
    check_username(username)
    lines: list[str] = []
    known = False
    # Not splitlines: a name may hold what Python takes for the end of a line, and Mosquitto does not.
    for line in text.removesuffix("\n").split("\n") if text else ():
        name, colon, _hash = line.partition(":")
        if line.startswith("#") or not colon or name.strip() != username:
            lines.append(line)
            continue
        if hashed is not None and not known:
            lines.append(f"{username}:{hashed}")
        known = True
    if hashed is not None and not known:
        lines.append(f"{username}:{hashed}")
    return "".join(f"{line}\n" for line in lines), known
