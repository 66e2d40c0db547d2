"""docs/reference/conformance.md, made from the clauses, the names of their tests and the points where sources differ.

`python -m tests.conformance.page` prints it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.conformance.clauses import HERE, VERSIONS, Clause, Test, by_clause, clauses, open_clauses

_TITLES = {
    "v5": ("MQTT 5.0", "OASIS Standard, 7 March 2019; its appendix B numbers the statements."),
    "v3_1_1": ("MQTT 3.1.1", "OASIS Standard with Errata 01; its appendix B numbers the statements."),
    "v3_1": (
        "MQTT 3.1",
        "Where it differs from 3.1.1. It numbers no statements: the sections are its own, the last number ours.",
    ),
}

_HEAD = """\
# Conformance

<!-- Made by `make docs` from tests/conformance; do not edit. -->

What the MQTT specifications ask of a Server, statement by statement, and the tests that hold the broker to it. A test
is named by its statement. A statement that has none says why. The wording is ours and short: read the specification
beside it.

"""

_DIFFERENCES = """
## Where sources differ

The order that decides: what the project set out to do, a MUST of the specification, what Mosquitto is documented and
measured to do, what Debian's Mosquitto 2.0 does.
"""


@dataclass(frozen=True)
class Difference:
    """A point on which specification and Mosquitto, or two of their places, do not agree."""

    subject: str
    sources: tuple[str, ...]
    ours: str
    why: str
    tests: tuple[str, ...]


def differences() -> list[Difference]:
    """Give the points where sources differ, in the order of their file."""
    rows = tomllib.loads((HERE / "differences.toml").read_text())["difference"]
    return [
        Difference(row["subject"], tuple(row["sources"]), row["ours"], row["why"], tuple(row["tests"])) for row in rows
    ]


def page() -> str:
    """Give the whole page."""
    return "".join(_parts())


def _parts() -> Iterator[str]:
    yield _HEAD
    yield "| version | statements | tested | not tested, with a reason | bind the Client only | open |\n"
    yield "|---|---|---|---|---|---|\n"
    for version in VERSIONS:
        yield _counts(version)
    for version in VERSIONS:
        title, note = _TITLES[version]
        yield f"\n## {title}\n\n{note}\n\n| clause | binds | asks | tests, or why there is none |\n|---|---|---|---|\n"
        found = by_clause(version)
        for clause in clauses(version).values():
            evidence = _evidence(version, clause, found)
            yield f"| {clause.identifier} | {clause.binds} | {_cell(clause.asks)} | {evidence} |\n"
    yield _DIFFERENCES
    paths = {test.name: _link(version, test) for version in VERSIONS for test in _all_tests(version)}
    for difference in differences():
        yield f"\n### {difference.subject}\n\n"
        for source in difference.sources:
            yield f"* {source}\n"
        yield f"\n**Lockgate**: {difference.ours} {difference.why}\n\n"
        yield "Tests: " + ", ".join(paths[name] for name in difference.tests) + ".\n"


def _counts(version: str) -> str:
    found = by_clause(version)
    rows = list(clauses(version).values())
    tested = sum(1 for row in rows if row.identifier in found)
    reasoned = sum(1 for row in rows if row.identifier not in found and row.reason)
    opened = len(open_clauses(version))
    client = len(rows) - tested - reasoned - opened
    return f"| {_TITLES[version][0]} | {len(rows)} | {tested} | {reasoned} | {client} | {opened} |\n"


def _all_tests(version: str) -> Iterator[Test]:
    for found in by_clause(version).values():
        yield from found


def _evidence(version: str, clause: Clause, found: dict[str, list[Test]]) -> str:
    tests = found.get(clause.identifier, [])
    parts = [_link(version, test) for test in tests]
    if clause.reason:
        parts.append(_cell(clause.reason))
    if not parts:
        parts.append("Binds the Client only." if clause.binds == "Client" else "**open**")
    return "<br>".join(parts)


def _link(version: str, test: Test) -> str:
    return f"[{test.words}](../../tests/conformance/{version}/{test.path.name})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(page(), end="")
