"""What the agent keeps in files."""

from __future__ import annotations

import json
from pathlib import Path

from lockgate import files


def read(path: Path) -> object:
    """Give what a file of ours says; None where there is none. Raises ValueError where it makes no sense."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None


def write(path: Path, value: object) -> None:
    """Put a value in the place of a file, whole and for good. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, f"{json.dumps(value, indent=1)}\n".encode())


def remove(path: Path) -> None:
    """Remove a file for good."""
    path.unlink(missing_ok=True)
    files.sync_folder(path.parent)
