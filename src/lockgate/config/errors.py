"""What is raised for a configuration a person has to correct."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class ConfigError(Exception):
    """One mistake in a configuration: where it stands, what it says, and what would be accepted.

    `line` counts from 1 and is None where the mistake is the absence of a line; `key` is the dotted
    name of the key (lockgate.toml) or the option (mosquitto.conf). `exit_code` is Mosquitto's for such a mistake.
    """

    exit_code = 3

    def __init__(
        self,
        problem: str,
        *,
        path: Path | None = None,
        line: int | None = None,
        key: str | None = None,
        accepted: str | None = None,
    ) -> None:
        self.problem = problem
        self.path = path
        self.line = line
        self.key = key
        self.accepted = accepted
        super().__init__(self.__str__())

    def __str__(self) -> str:
        place = ""
        if self.path is not None:
            place = f"{self.path}:{self.line}: " if self.line is not None else f"{self.path}: "
        key = f"{self.key}: " if self.key else ""
        accepted = f" (accepted: {self.accepted})" if self.accepted else ""
        return f"{place}{key}{self.problem}{accepted}"


class ConfigErrors(ConfigError):
    """All mistakes found in one reading, so that a person can correct them in one go."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__(f"{len(self.errors)} mistakes")

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class MosquittoConfError(ConfigError):
    """A mistake in mosquitto.conf, worded in Mosquitto's two lines."""

    def __str__(self) -> str:
        accepted = f" Accepted: {self.accepted}." if self.accepted else ""
        text = f"Error: {self.problem}{accepted}"
        return f"{text}\nError found at {self.path}:{self.line}." if self.line is not None else text


def raise_all(errors: Sequence[ConfigError]) -> None:
    """Raise what was found: nothing, the one mistake, or all of them together."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigErrors(errors)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " Did you mean X?" for the known name that looks most like `name`, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""
