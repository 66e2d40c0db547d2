"""What can be told of a SELECT from its text: where a mistake stands, and whether it can ask many messages at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
  | (?P<text>'(?:[^']|'')*')
  | (?P<quoted>"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\])
  | (?P<parameter>[:@$][A-Za-z_][A-Za-z0-9_]*)
  | (?P<number>[0-9][0-9A-Za-z_.]*)
  | (?P<word>[A-Za-z_][A-Za-z0-9_$]*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
# A SELECT with one of these is no plain function of one message.
_NOT_ROW_BY_ROW: Final = frozenset(
    {"FROM", "GROUP", "HAVING", "ORDER", "LIMIT", "UNION", "EXCEPT", "INTERSECT"}
    | {"WINDOW", "OVER", "DISTINCT", "ALL", "VALUES", "FILTER"}
)
_NAMED: Final = re.compile(
    r"no such (?:column|table|function): (.+)|ambiguous column name: (.+)|.*binding parameter (.+)\.$"
)


class Token(NamedTuple):
    kind: str
    text: str
    start: int


def tokens(sql: str) -> Iterator[Token]:
    """The tokens of an SQL text, without spaces and comments."""
    for match in _TOKEN.finditer(sql):
        if match.lastgroup != "space":
            yield Token(match.lastgroup or "other", match[0], match.start())


def place_of(sql: str, message: str, complaint: Callable[[str], str]) -> tuple[int, int] | None:
    """Line and column, from 1, of what SQLite's message is about; None where that cannot be told.

    `complaint` gives what SQLite says of another text.
    """
    found = list(tokens(sql))
    if named := _NAMED.match(message):
        name = next(name for name in named.groups() if name).rsplit(".", 1)[-1]
        at = next((t.start for t in found if t.text.strip('"`[]').lower() == name.lower()), None)
    elif message.startswith("incomplete input"):
        at = len(sql)
    elif near := re.match(r'(?s)near "(.*)": syntax error', message):
        # The first of those tokens that SQLite stumbles over when the text ends with it
        candidates = [t.start for t in found if t.text.startswith(near[1]) or near[1].startswith(t.text)]
        ends = (start for start in candidates if complaint(sql[: start + len(near[1])]) == message)
        at = next(ends, len(sql) if not candidates or near[1] == ")" else None)
    else:
        return None
    if at is None:
        return None
    return sql.count("\n", 0, at) + 1, at - (sql.rfind("\n", 0, at) + 1) + 1


def row_by_row(sql: str, table: str, key: str, columns: Collection[str]) -> str | None:
    """The SELECT over a whole table of messages instead of one message's parameters; None where its form forbids it.

    Each row of its result begins with `key`.
    """
    found = list(tokens(sql))
    if not found or found[0].text.upper() != "SELECT":
        return None
    names = {column.lower(): column for column in columns}
    before = ""
    for token in found:
        # A name that the query gives, as in `round(:x) AS x WHERE x > 5`, would be the table's column of that name
        if token.kind in ("word", "quoted") and token.text.strip('"`[]').lower() in names and before not in ("AS", "."):
            return None
        before = token.text.upper()
    depth = 0
    where = False
    written: list[str] = []
    position = 0
    for place, token in enumerate(found):
        written.append(sql[position : token.start])
        position = token.start + len(token.text)
        text = token.text
        if token.text == "(":
            depth += 1
        elif token.text == ")":
            depth -= 1
        elif token.kind == "word" and depth == 0:
            word = token.text.upper()
            if word in _NOT_ROW_BY_ROW or (word == "SELECT" and place):
                return None
            if word == "WHERE":
                if where:
                    return None
                where = True
                text = f'FROM "{table}" AS "{table}" WHERE'
        elif token.kind == "parameter":
            column = names.get(token.text[1:].lower())
            if column is None:
                return None
            text = f'"{table}"."{column}"'
        written.append(text)
    if depth:
        return None
    select, rest = written[1], "".join(written[2:])
    tail = "" if where else f'\nFROM "{table}" AS "{table}"'
    return f'{select} "{table}"."{key}", {rest}{tail}'
