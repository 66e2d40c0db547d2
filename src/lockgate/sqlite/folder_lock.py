"""One writer process for each folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path


class FolderInUse(OSError):
    """Another process writes in this folder; `pid` is None where it could not be read."""

    def __init__(self, folder: Path, pid: int | None) -> None:
        holder = f"process {pid}{_command(pid)}" if pid else "another process"
        super().__init__(errno.EAGAIN, f"{folder} is written by {holder}; one writer at a time")
        self.pid = pid

    def __str__(self) -> str:
        return str(self.strerror)


class FolderLock:
    """Held from `acquire` to `release`, or until the process ends, however it ends."""

    def __init__(self, folder: Path, name: str = "writer.lock") -> None:
        self._folder = folder
        self._path = folder / name
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock; raises FolderInUse at once if another process (or another lock of this one) has it."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(file, 32, 0).strip()
            os.close(file)
            raise FolderInUse(self._folder, int(text) if text.isdigit() else None) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its holder cannot be named
            os.ftruncate(file, 0)
            os.pwrite(file, b"%d\n" % os.getpid(), 0)
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return f" ({b' '.join(words[:5]).decode(errors='replace').strip()})"
