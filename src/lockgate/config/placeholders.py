"""Text with {placeholders}: what a message brings to the body of a request."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from lockgate.config.errors import did_you_mean

NAMES: Final = ("payload", "payload_base64", "topic", "class", "id", "gateway", "time", "time_iso", "device_time")
ACCEPTED: Final = f"text, in which {', '.join(f'{{{name}}}' for name in NAMES)} and {{payload.MEMBER}} stand for them"
_PIECE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Placeholder(NamedTuple):
    """What stands in braces; the members lead into the JSON of the payload."""

    name: str
    members: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "{" + ".".join((self.name, *self.members)) + "}"


Template = tuple[str | Placeholder, ...]


def parse(text: str) -> Template:
    """Part a text at its placeholders; `{{` and `}}` are braces. Raises ValueError for one that means nothing."""
    parts: list[str | Placeholder] = []
    literal, end = "", 0
    for match in _PIECE.finditer(text):
        literal += text[end : match.start()]
        end = match.end()
        if match[0] in ("{{", "}}"):
            literal += match[0][0]
            continue
        if match[1] is None:
            raise ValueError(f"{match[0]} stands alone in {text!r}; a brace itself is written twice")
        name, *members = match[1].split(".")
        if name not in NAMES or (members and name != "payload") or not all(members):
            known = [f"{{{one}}}" for one in NAMES]
            raise ValueError(f"{match[0]} in {text!r} is no placeholder.{did_you_mean(match[0], known)}")
        if literal:
            parts.append(literal)
        parts.append(Placeholder(name, tuple(members)))
        literal = ""
    literal += text[end:]
    if literal or not parts:
        parts.append(literal)
    return tuple(parts)
