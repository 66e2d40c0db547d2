"""What is raised for a configuration a person has to correct."""

from __future__ import annotations

from pathlib import Path


class ConfigError(Exception):
    """One mistake in a configuration: where it stands, what it says, and what would be accepted.

    `line` counts from 1 and is None where the mistake is the absence of a line; `key` is the dotted
    name of the key (lockgate.toml) or the option (mosquitto.conf).
    """

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
