"""Patterns of names: `*` stands for any characters, `%u` and `%c` for a user name and a client id."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

NOBODY: Final[Mapping[str, str]] = {}


def fill(text: str, names: Mapping[str, str]) -> str:
    """Put the names into a text in one go, so that one name cannot bring in another."""
    return re.sub("%[uc]", lambda found: names.get(found[0], found[0]), text) if names else text


def wildcard(pattern: str, names: Mapping[str, str] = NOBODY) -> Callable[[str], object]:
    """Give what says whether a text is like a pattern; a `*` in a name is only itself."""
    parts = [re.escape(fill(part, names)) for part in pattern.split("*")]
    # each * takes as little as it can and never gives back: one pass, whatever the text
    middle = "".join(f"(?>.*?{part})" for part in parts[1:-1])
    return re.compile(parts[0] + middle + (f".*{parts[-1]}" if len(parts) > 1 else ""), re.DOTALL).fullmatch


def covers(allowed: str, asked: str) -> bool:
    """Say whether all topics that match the Topic Filter `asked` match `allowed`, too; neither is shared."""
    if asked.startswith("$") and allowed[:1] in ("+", "#"):
        return False  # [MQTT-4.7.2-1]
    allowed_levels, asked_levels = allowed.split("/"), asked.split("/")
    for position, level in enumerate(allowed_levels):
        if level == "#":
            return True
        if position >= len(asked_levels) or asked_levels[position] == "#":
            return False
        if level not in ("+", asked_levels[position]):
            return False
    return len(allowed_levels) == len(asked_levels)
