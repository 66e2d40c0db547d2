"""Imports run one way: the table of ARCHITECTURE.md, held against the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "lockgate"

# Our own modules a part may import, besides itself and the leaves, which are open to all but `mqtt` and `broker`.
EVERYTHING = frozenset({""})
LEAVES = frozenset({"config", "telemetry", "files"})
MAY_IMPORT: dict[str, frozenset[str]] = {
    "mqtt": frozenset(),
    "transport": LEAVES,
    "sqlite": LEAVES,
    "broker": frozenset({"mqtt"}),
    "access": LEAVES | {"mqtt"},
    "net": LEAVES | {"mqtt", "broker", "transport"},
    "storage": LEAVES | {"mqtt", "broker.ports", "sqlite"},
    "cluster": LEAVES | {"mqtt", "broker.ports"},
    "client": LEAVES | {"mqtt", "transport"},
    "bridge": LEAVES | {"mqtt", "transport", "client", "broker"},
    "buffer": LEAVES | {"sqlite"},
    "processor": LEAVES | {"client", "buffer", "sqlite"},
    "forwarder": LEAVES | {"client", "buffer"},
    "sources": LEAVES | {"client", "mqtt.topics", "mqtt.errors"},
    "tunnel": LEAVES | {"mqtt", "access", "transport"},
    "console": LEAVES | {"client"},
    "deploy": LEAVES | {"client"},
    "config": frozenset(),
    "files": frozenset(),
    "telemetry": frozenset({"config"}),
    "app": EVERYTHING,
    "cli": EVERYTHING,
    "demo": EVERYTHING,
    "doctor": EVERYTHING,
    "supervisor": LEAVES,
    "__main__": EVERYTHING,
    "__init__": frozenset(),
}

# The language and the rules do no I/O and read no clock: time, chance and identifiers are arguments.
PURE = ("mqtt", "broker")
_IMPURE = """
asyncio socket ssl time os io select selectors signal threading subprocess multiprocessing concurrent random secrets
uuid datetime sqlite3 pathlib shutil tempfile logging uvloop aiohttp
"""
IMPURE = frozenset(_IMPURE.split())


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of what `path` imports, wherever in the file the import stands."""
    package = ("lockgate", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else ())))
            for alias in node.names:  # `from lockgate import mqtt` imports lockgate.mqtt
                yield node.lineno, f"{module}.{alias.name}"


def allowed(part: str, ours: str) -> bool:
    """Whether `part` may import `ours`, the name below `lockgate.`."""
    if ours.split(".")[0] == part or MAY_IMPORT[part] == EVERYTHING or ours == "__version__":
        return True
    return any(ours == name or ours.startswith(f"{name}.") for name in MAY_IMPORT[part])


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is not in the table of imports"
    wrong = []
    for line, name in imported_modules(path):
        top, _, below = name.partition(".")
        if (top == "lockgate" and not allowed(part, below)) or (part in PURE and top in IMPURE):
            wrong.append(f"line {line}: {name}")
    assert not wrong, f"{part} may not import these: {wrong}"


def test_the_rules_of_the_table_refuse_what_they_should() -> None:
    assert allowed("broker", "mqtt.packets.Publish")
    assert not allowed("broker", "net.stream")
    assert not allowed("mqtt", "config.model")
    assert allowed("storage", "broker.ports.Store")
    assert not allowed("storage", "broker.session")
    assert not allowed("forwarder", "sqlite")
    assert not allowed("config", "telemetry.logs")
