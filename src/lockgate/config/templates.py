"""Texts with `{variables}`: the topics that a source publishes to, and the paths of its HTTP routes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_VARIABLE: Final = re.compile(r"\{([^{}]*)\}")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[^{}./]+)*")
# C0 and C1 control characters: MQTT lets a Server refuse them, and a terminal obeys them.
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Template:
    """Literals and the variables between them: `literals` has one more element than `variables`."""

    text: str
    literals: tuple[str, ...]
    variables: tuple[str, ...]

    def fill(self, values: Mapping[str, str]) -> str:
        """Give the text with the variables' values in their places. Raises KeyError for one that is missing."""
        parts = [self.literals[0]]
        for variable, literal in zip(self.variables, self.literals[1:], strict=True):
            parts += [values[variable], literal]
        return "".join(parts)

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> Template:
    """Read a template of a topic. Raises ValueError for what can be none."""
    pieces = _VARIABLE.split(text)
    literals, variables = tuple(pieces[::2]), tuple(pieces[1::2])
    for literal in literals:
        if set(literal) & set("+#{}") or CONTROL.search(literal):
            raise ValueError(f"{literal!r} of it holds + or #, a single brace or a control character")
    for variable in variables:
        if not _NAME.fullmatch(variable):
            raise ValueError(f"{{{variable}}} is no variable")
    if not text or text.startswith("$"):
        raise ValueError("a topic is not empty and does not begin with $")
    return Template(text, literals, variables)


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """The path of a route: levels that are literals or `{variables}`; `{name*}` at the end is one level or more."""

    text: str
    levels: tuple[tuple[bool, str], ...]  # whether it is a variable, and the literal or the name
    rest: str | None = None  # the variable that takes all further levels

    def match(self, levels: list[str]) -> dict[str, str] | None:
        """Give the variables' values, or None where it is another path."""
        if len(levels) < len(self.levels) + (self.rest is not None):
            return None
        if self.rest is None and len(levels) != len(self.levels):
            return None
        found: dict[str, str] = {}
        for (is_variable, name), level in zip(self.levels, levels, strict=False):
            if is_variable:
                found[name] = level
            elif name != level:
                return None
        if self.rest is not None:
            found[self.rest] = "/".join(levels[len(self.levels) :])
        return found

    @property
    def variables(self) -> tuple[str, ...]:
        names = tuple(name for is_variable, name in self.levels if is_variable)
        return (*names, self.rest) if self.rest is not None else names

    def __str__(self) -> str:
        return self.text


def parse_path(text: str) -> PathTemplate:
    """Read the path of a route. Raises ValueError for what can be none."""
    if not text.startswith("/") or set(text) & set("?#%") or CONTROL.search(text):
        raise ValueError("a path begins with / and has no ?, # or %")
    levels: list[tuple[bool, str]] = []
    rest = None
    parts = text[1:].split("/")
    for number, part in enumerate(parts):
        if not part.startswith("{"):
            if set(part) & set("{}"):
                raise ValueError(f"{part!r}: a variable is a whole level")
            levels.append((False, part))
            continue
        name = part.removeprefix("{").removesuffix("}").removesuffix("*")
        if not part.endswith("}") or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{part} is no variable")
        if part.endswith("*}"):
            if number != len(parts) - 1:
                raise ValueError(f"{part} must be the last level")
            rest = name
        else:
            levels.append((True, name))
    made = PathTemplate(text, tuple(levels), rest)
    if len(set(made.variables)) != len(made.variables):
        raise ValueError("a variable stands there twice")
    return made
