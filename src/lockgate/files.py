"""Files that are whole, old or new, whenever the power fails; and whether one is still the one that was read."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

Stamp = tuple[int, int, int, int]


def replace(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put `data` in the place of a file: written, synced, renamed, the folder synced. Raises OSError.

    A new file has `mode`, less what the process's umask takes; one that was there keeps its owner and who may read it.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # of a program that was killed; a new one cannot be somebody else's link
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                _keep_owner(descriptor, os.stat(path))
            os.fsync(descriptor)
        try:
            os.replace(new, path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # one file mounted into a container cannot be replaced, only written over; the new one stays until it is
            _write_over(path, data)
            new.unlink()
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stamp(path: Path) -> Stamp:
    """What changes with a file: another one in its place, other contents, another size. Raises OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def stamp_if_there(path: Path) -> Stamp | None:
    """The same, None for a file that cannot be looked at."""
    try:
        return stamp(path)
    except OSError:
        return None


def _write_over(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _keep_owner(descriptor: int, old: os.stat_result) -> None:
    ours = os.fstat(descriptor)
    if (ours.st_uid, ours.st_gid) != (old.st_uid, old.st_gid):
        # as root, else the file of a broker would become one it cannot read; others cannot, and keep it themselves
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
