"""Disks whose power can be cut: ext4 on a loop device, and copies of it at any moment by XFS reflinks.

Needs root, loop devices, e2fsprogs and xfsprogs; `disk_trouble` says what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FS_IOC_SHUTDOWN: Final = 0x8004587D
NO_LOG_FLUSH: Final = 2
MEBIBYTE: Final = 1 << 20


@functools.cache
def disk_trouble(*programs: str) -> str:
    """Why this machine cannot make disks with these `mkfs.…`; empty when it can."""
    if os.geteuid() != 0:
        return "a disk of our own needs root"
    for name in ("losetup", "mount", "umount", *programs):
        if shutil.which(name, path=_PATH) is None:
            return f"{name} is not installed"
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in programs or ("mkfs.ext4",):
                kind = name.removeprefix("mkfs.")
                with mounted(make_image(Path(folder) / kind, 320, kind), Path(folder) / "mount"):
                    pass
            return ""
        except OSError as error:
            return f"no loop device can be mounted here: {error}"


def make_image(path: Path, mebibytes: int, kind: str = "ext4") -> Path:
    """A file with an empty file system."""
    with path.open("wb") as file:
        file.truncate(mebibytes * MEBIBYTE)
    options = ["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"] if kind == "ext4" else ["-q"]
    _run(f"mkfs.{kind}", *options, str(path))
    return path


@contextlib.contextmanager
def mounted(image: Path, point: Path) -> Iterator[Path]:
    """Mount an image on a folder, which is made, by a loop device that does not buffer what was synced."""
    point.mkdir(exist_ok=True)
    device = _run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
    try:
        _run("mount", device, str(point))
        try:
            yield point
        finally:
            _unmount(point)
    finally:
        _run("losetup", "--detach", device)


@contextlib.contextmanager
def memory_disk(point: Path, mebibytes: int) -> Iterator[Path]:
    """A disk of that size in memory."""
    point.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(point))
    try:
        yield point
    finally:
        _unmount(point)


def resize(point: Path, mebibytes: int) -> None:
    """Make a disk in memory larger."""
    _run("mount", "-o", f"remount,size={mebibytes}m", str(point))


def cut_power(point: Path) -> None:
    """Stop a mounted file system at once: what was not synced is not there when it is mounted again."""
    folder = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(folder, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(folder)


def _unmount(point: Path) -> None:
    for _attempt in range(50):  # what was killed just now may not have let go of its files
        if subprocess.run(["umount", str(point)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    _run("umount", "--lazy", str(point))


_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _run(*command: str) -> str:
    environment = os.environ | {"PATH": _PATH}
    done = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL, env=environment)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode()


def fill(path: Path) -> None:
    """Take all the room there is on a disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
