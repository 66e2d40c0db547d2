"""What a check of `lockgate doctor` has to say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a person should know: what is wrong, where, why it matters, what to do. Of what is good the first two.

    `check` is for programs and stays the same; `where` is a file with its line, a port, a path, or a client.
    """

    check: str
    severity: Severity
    where: str
    problem: str
    why: str = ""
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def good(check: str, where: str, told: str) -> Finding:
    """Make a finding about what is as it should be."""
    return Finding(check, "ok", where, told)
