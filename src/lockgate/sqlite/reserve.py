"""Room on the disk that is kept free for the moment when there is none left: to write what makes room again.

There are two pieces. The first one is for what was taken when the disk turned out to be full. The other one is for the
case that even what makes room finds none: what a commit that failed left behind lies in the way of the checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MOST_BYTES: Final = 8 * 1024 * 1024
_SHARE: Final = 8  # of what is free at the start, at most one part of so many
_PAGE: Final = 4096


class Reserve:
    """Files that are given up when the disk is full, and made again when there is room."""

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / "lockgate.reserve", folder / "lockgate.reserve-2"]
        kept = [path.stat().st_size for path in self._paths if path.exists()]
        if kept:
            self.size_bytes = max(_PAGE, *kept)
        else:
            disk = os.statvfs(folder)
            free = disk.f_bavail * disk.f_frsize
            self.size_bytes = max(_PAGE, min(_MOST_BYTES, free // _SHARE) // _PAGE * _PAGE)

    @property
    def lacking_bytes(self) -> int:
        """What has been given up and not been made again."""
        return sum(self.size_bytes for path in self._paths if not path.exists())

    def keep(self) -> bool:
        """See to it that all of it is there, the last resort first; say whether it is."""
        return all(self._allocate(path) for path in reversed(self._paths))

    def _allocate(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            os.posix_fallocate(handle, 0, self.size_bytes)
        except OSError:
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(handle)
        return True

    def release(self) -> bool:
        """Give up a piece; say whether there was one left."""
        for path in self._paths:
            try:
                path.unlink()
            except OSError:
                continue
            return True
        return False
