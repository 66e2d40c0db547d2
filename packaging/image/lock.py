"""Give the part of requirements.lock that an image needs, with its hashes: `lock.py build|runtime|small`.

pip-compile writes one file for all extras and says above each package `# via` whom it is there for; the part is what
the roots need, theirs need, and so on. Run where pyproject.toml and requirements.lock lie.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

# What the broker alone imports: loop, WebSocket handshakes, Argon2id hashes
_SMALL = ("uvloop", "websockets", "argon2-cffi")
# Nobody installs into an image, so that the gateway's has what any configuration may ask for
_EXTRAS = ("acme", "formats", "kafka", "modbus", "nats", "objects", "opcua", "postgres", "tunnel", "zstd")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def name_of(requirement: str) -> str:
    """Give the name of a requirement, spelled as the index does."""
    found = _NAME.match(requirement)
    if found is None:
        raise SystemExit(f"lock.py: {requirement!r} is no requirement")
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def roots(part: str, pyproject: Path) -> list[str]:
    """Give the names a part begins with."""
    project = tomllib.loads(pyproject.read_text())
    wanted = {
        "build": [*project["build-system"]["requires"], "wheel"],
        "runtime": [
            *project["project"]["dependencies"],
            *(one for extra in _EXTRAS for one in project["project"]["optional-dependencies"][extra]),
        ],
        "small": list(_SMALL),
    }
    if part not in wanted:
        raise SystemExit(f"lock.py: {part!r} is none of {', '.join(wanted)}")
    return [name_of(requirement) for requirement in wanted[part]]


def entries(text: str) -> dict[str, tuple[str, set[str]]]:
    """Give the lines of each package and the names it is there for."""
    found: dict[str, tuple[str, set[str]]] = {}
    name = ""
    for line in text.splitlines(keepends=True):
        if line[:1].isalnum():
            name = name_of(line)
            found[name] = ("", set())
        if not name:
            continue
        lines, needed_by = found[name]
        if line.strip().startswith("#"):
            needed_by.update(re.findall(_NAME, line.strip("# \n").removeprefix("via "))[:1])
        elif line.strip():
            lines += line
        found[name] = (lines, needed_by)
    return found


def part(text: str, names: list[str]) -> str:
    """Give the lines of a lock file for packages and all they need."""
    locked = entries(text)
    missing = [name for name in names if name not in locked]
    if missing:
        raise SystemExit(f"lock.py: requirements.lock does not have {', '.join(missing)}; run `make lock`")
    kept = set(names)
    while True:
        more = {name for name, (_, needed_by) in locked.items() if needed_by & kept} - kept
        if not more:
            return "".join(lines for name, (lines, _) in locked.items() if name in kept)
        kept |= more


if __name__ == "__main__":
    print(part(Path("requirements.lock").read_text(), roots(sys.argv[1], Path("pyproject.toml"))), end="")
