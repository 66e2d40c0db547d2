"""docs/how-to/doctor.md names every check there is, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from lockgate import doctor
from lockgate.doctor.delivery import _ADVICE

PAGE = Path(__file__).parents[3] / "docs/how-to/doctor.md"


def checks_in_the_source() -> set[str]:
    found = set()
    for path in Path(doctor.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Finding", "good"):
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.add(str(first.value))
    return found


def test_the_page_names_every_check() -> None:
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    remembered = {reason.replace(" ", "-") for reason in _ADVICE}
    assert checks_in_the_source() - named - {"configuration"} == set()
    assert named - checks_in_the_source() - remembered - {"configuration"} == set()
