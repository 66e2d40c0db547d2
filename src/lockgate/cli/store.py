"""`lockgate store check|export [FOLDER]`: look at what the broker keeps on disk; nothing is changed."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from lockgate.app import persistence_folder
from lockgate.cli.common import add_config_argument, load_config
from lockgate.sqlite import NewerFile
from lockgate.sqlite.database import FAILURES, told
from lockgate.storage.store import FILE_NAME
from lockgate.storage.viewing import View, open_view
from lockgate.telemetry.clock import Clock

WHOLE, DAMAGED, MISUSED = 0, 1, 3
_KINDS = ("session", "subscription", "message", "delivery", "received", "retained", "will")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="is the store whole?", description="Is the store whole?")
    export = actions.add_parser(
        "export", help="everything in it, as JSON lines", description="Everything in the store, as JSON lines."
    )
    for action in (check, export):
        action.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="default: that of the broker")
        add_config_argument(action)
    check.add_argument("--json", action="store_true", help="what was found, as one JSON object")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0 for a store that is whole, 1 for a damaged one, 3 where there is none of this version."""
    folder = arguments.folder if arguments.folder is not None else persistence_folder(load_config(arguments))
    path = Path(folder) / FILE_NAME
    try:
        with open_view(path, Clock()) as view:
            if arguments.action == "check":
                return check(view, arguments.json)
            with open_output(arguments.output) as out:
                return export(view, out)
    except (FileNotFoundError, NewerFile) as error:
        print(f"Error: {error}", file=sys.stderr)
        return MISUSED
    except FAILURES as error:
        print(f"{path} cannot be read: {told(error)}", file=sys.stderr)
        return DAMAGED


def check(view: View, as_json: bool) -> int:
    counts: Counter[str] = Counter()
    for found in view.objects():
        counts[str(found["type"])] += 1
        if found["type"] == "delivery" and found["client_id"] is None:
            counts["delivery of ended sessions"] += 1
    view.examine()
    size = view.path.stat().st_size
    wal = view.path.with_name(f"{view.path.name}-wal")
    said = {
        "path": str(view.path),
        "version": view.version,
        "size_bytes": size,
        "wal_bytes": wal.stat().st_size if wal.exists() else 0,
        "clock_noted_at": view.noted_at(),
        "rows": {kind: counts[kind] for kind in _KINDS},
        "of_ended_sessions": counts["delivery of ended sessions"],  # the broker removes them a piece at a time
        "problems": dict(view.problems),
    }
    print(json.dumps(said, indent=2) if as_json else as_text(said, counts, view))
    return DAMAGED if view.problems else WHOLE


def as_text(said: Mapping[str, object], counts: Counter[str], view: View) -> str:
    noted = "never"
    if view.noted is not None:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.noted.wall_time))
        noted = at if view.noted.clock_ok else f"{at}, by a clock that was not set"
    ended = counts["delivery of ended sessions"]
    lines = [
        f"{said['path']}: {'DAMAGED' if view.problems else 'whole'}",
        f"format {said['version']}, {said['size_bytes']} bytes and {said['wal_bytes']} in the write-ahead log",
        f"clock noted last: {noted}",
        *(f"  {kind:<14}{counts[kind]:>10}" for kind in _KINDS),
    ]
    if ended:
        lines.append(f"{ended} deliveries are of sessions that have ended, and about to be removed")
    lines += [f"{count} × {problem}" if count > 1 else problem for problem, count in view.problems.items()]
    return "\n".join(lines)


def export(view: View, out: TextIO) -> int:
    for found in view.objects():
        out.write(json.dumps(found, ensure_ascii=False))
        out.write("\n")
    for problem, count in view.problems.items():
        print(f"damaged: {count} × {problem}", file=sys.stderr)
    return DAMAGED if view.problems else WHOLE


def open_output(path: Path | None) -> contextlib.AbstractContextManager[TextIO]:
    """UTF-8, wherever it goes: that is what JSON lines are."""
    if path is not None:
        return path.open("w", encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return contextlib.nullcontext(sys.stdout)
