"""`lockgate migrate --from PLACE`: what a configuration of Mosquitto will mean here. It only reads."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lockgate.cli.migrate_checks import Finding, Section, as_json, look_at
from lockgate.cli.migrate_setup import Setup, paths_here

GOOD, IN_THE_WAY, UNREADABLE = 0, 1, 3

_TITLES: dict[Section, str] = {
    "same": "The same",
    "different": "Different",
    "unseen": "Not looked at",
    "unsafe": "Unsafe now",
    "cannot": "Cannot be taken over",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="place", type=Path, default=Path("/etc/mosquitto"), metavar="PLACE",
        help="a mosquitto.conf, or the folder it is in (default: /etc/mosquitto)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the findings, as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    """Exit status 1 if something cannot be taken over, 3 if the configuration cannot be read, else 0."""
    # What the readers of files would log is found again, with its line and what to do.
    logging.getLogger("lockgate").addHandler(logging.NullHandler())
    place: Path = arguments.place
    path = find(place)
    try:
        path.open("rb").close()
    except OSError as error:
        print(f"Error: {path} cannot be read: {error.strerror}.", file=sys.stderr)
        return UNREADABLE
    setup = Setup(path, paths_here(path.parent))
    found = look_at(setup, time.time())
    if arguments.json:
        print(json.dumps({"configuration": str(path), **as_json(found)}, indent=2))
    else:
        print("\n".join(as_text(setup, found)))
    return IN_THE_WAY if any(one.section == "cannot" for one in found) else GOOD


def find(place: Path) -> Path:
    """Give the mosquitto.conf of a folder, or of the `config` folder in it, as people mount it."""
    if not place.is_dir():
        return place
    tries = (place / "mosquitto.conf", place / "config" / "mosquitto.conf")
    return next((one for one in tries if one.exists()), tries[0])


def as_text(setup: Setup, found: list[Finding]) -> Iterator[str]:
    """Give the lines for people; what stands in the way comes last, next to the prompt."""
    files = list(dict.fromkeys([setup.path, *(line.path for line in setup.lines)]))
    yield ", ".join(map(str, files))
    for section, title in _TITLES.items():
        rows = [one for one in found if one.section == section]
        if not rows and section == "unseen":
            continue
        yield f"\n{title}"
        if not rows:
            yield "  nothing"
        elif section == "same":
            yield from _same(rows)
        else:
            yield from (line for row in rows for line in _told(row))
    ways = sum(one.section == "cannot" for one in found)
    unsafe = sum(one.section == "unsafe" for one in found)
    yield ""
    if ways:
        then = "Correct what is in the way first."
    elif any(one.section == "unseen" for one in found):
        then = "The broker starts with this configuration where what was not looked at is good."
    else:
        then = "The broker starts with this configuration."
    yield f"In the way: {ways or 'nothing'}. Unsafe: {unsafe or 'nothing'}. {then}"


def _same(rows: Iterable[Finding]) -> Iterator[str]:
    """Options in one line for each file, and what more there is to say."""
    plain: dict[Path, dict[str, list[int]]] = {}
    for row in rows:
        if not row.problem and row.line is not None:
            plain.setdefault(row.path, {}).setdefault(row.option, []).append(row.line)
        else:
            yield from _told(row)
    for path, options in plain.items():
        yield f"  {path}: " + ", ".join(f"{name} ({', '.join(map(str, at))})" for name, at in options.items())


def _told(row: Finding) -> Iterator[str]:
    place = f"{row.path}:{row.line}" if row.line is not None else str(row.path)
    yield f"  {place}: {row.option}: {row.problem}" if row.option else f"  {place}: {row.problem}"
    if row.advice:
        yield f"      → {row.advice}"
