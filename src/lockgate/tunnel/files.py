"""Whether a file is still the one that was read."""

from __future__ import annotations

import os
from pathlib import Path

Stamp = tuple[int, int, int, int]


def stamp(path: Path) -> Stamp:
    """What changes with the file: another one in its place, other contents, another size. Raises OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def stamp_if_there(path: Path) -> Stamp | None:
    """The same, None for a file that cannot be looked at."""
    try:
        return stamp(path)
    except OSError:
        return None
