"""The specifications' numbered statements, and which test speaks of which: by its name."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
VERSIONS = ("v5", "v3_1_1", "v3_1")
BINDS = ("Server", "Client", "both")

_CLAUSE_OF_TEST = re.compile(r"test_mqtt_((?:\d+_)+)")


@dataclass(frozen=True)
class Clause:
    """One statement: its identifier (`3.1.2-24`), whom it binds, what it asks, and why it has no test."""

    identifier: str
    binds: str
    asks: str
    reason: str


@dataclass(frozen=True)
class Test:
    """One test function and the clause its name speaks of."""

    __test__ = False  # of pytest's own

    path: Path
    name: str
    clause: str

    @property
    def words(self) -> str:
        """Give what the name says behind the clause, as words."""
        return _CLAUSE_OF_TEST.sub("", self.name).replace("_", " ")


def clauses(version: str) -> dict[str, Clause]:
    """Give all clauses of a version by identifier, in the specification's order."""
    rows = tomllib.loads((HERE / version / "clauses.toml").read_text())
    return {
        identifier: Clause(identifier, row["binds"], row["asks"], row.get("reason", ""))
        for identifier, row in rows.items()
    }


def clause_of(name: str) -> str:
    """Give the clause that a test's name speaks of: test_mqtt_3_1_2_24_… → 3.1.2-24; empty for any other name."""
    found = _CLAUSE_OF_TEST.match(name)
    if found is None:
        return ""
    *section, number = found.group(1).rstrip("_").split("_")
    return ".".join(section) + "-" + number


def named_tests(version: str) -> Iterator[Test]:
    """Give the tests of a version, file by file in their order."""
    for path in sorted((HERE / version).glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield Test(path, node.name, clause_of(node.name))


def by_clause(version: str) -> dict[str, list[Test]]:
    """Give the tests of a version by the clause they speak of."""
    found: dict[str, list[Test]] = defaultdict(list)
    for test in named_tests(version):
        found[test.clause].append(test)
    return found


def open_clauses(version: str) -> list[str]:
    """Give the clauses that bind a Server and have neither a test nor a reason."""
    tested = by_clause(version)
    return [
        clause.identifier
        for clause in clauses(version).values()
        if clause.binds != "Client" and not clause.reason and clause.identifier not in tested
    ]
