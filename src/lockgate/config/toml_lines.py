"""Where in a TOML text each key stands, for messages: tomllib reads values and forgets their lines."""

from __future__ import annotations

import re

_BARE = r"[A-Za-z0-9_-]+"
_PART = rf"(?:{_BARE}|\"(?:[^\"\\]|\\.)*\"|'[^']*')"
_KEY = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_KEY})\s*\]")
_PAIR = re.compile(rf"\s*({_KEY})\s*=")
_TOKEN = re.compile(r"\"\"\"|'''|\"(?:[^\"\\]|\\.)*\"|'[^']*'|#.*|[\[\]{}]")


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Line, from 1, of each table header and each key outside of inline values. Expects text that tomllib accepts."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    inside = ""  # the quotes of a multi-line string we are in
    depth = 0  # brackets that are still open
    for number, line in enumerate(text.splitlines(), start=1):
        rest = line
        if not inside and not depth:
            if header := _HEADER.match(line):
                table = _parts(header[1])
                lines.setdefault(table, number)
                continue
            if pair := _PAIR.match(line):
                key = table + _parts(pair[1])
                for end in range(len(table) + 1, len(key) + 1):
                    lines.setdefault(key[:end], number)
                rest = line[pair.end() :]
        inside, depth = _scan(rest, inside, depth)
    return lines


def line_of(lines: dict[tuple[str, ...], int], key: tuple[str, ...]) -> int | None:
    """The line of `key`, or of the innermost table or value around it that has one."""
    for end in range(len(key), 0, -1):
        if key[:end] in lines:
            return lines[key[:end]]
    return None


def _scan(rest: str, inside: str, depth: int) -> tuple[str, int]:
    """What is open after `rest`: the quotes of a multi-line string, and a number of brackets."""
    position = 0
    while True:
        if inside:
            end = rest.find(inside, position)
            if end < 0:
                return inside, depth
            position = end + 3
            inside = ""
        token = _TOKEN.search(rest, position)
        if token is None or token[0].startswith("#"):
            return inside, depth
        position = token.end()
        if token[0] in ('"""', "'''"):
            inside = token[0]
        elif token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1


def _parts(key: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_PART, key))
