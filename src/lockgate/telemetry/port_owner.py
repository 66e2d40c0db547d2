"""Which program holds a TCP port, as far as /proc tells us."""

from __future__ import annotations

import os
from pathlib import Path

_LISTEN = "0A"


def who_listens(port: int) -> str | None:
    """`mosquitto (pid 812)` for the process that listens on TCP `port`, or None where that cannot be seen.

    Another user's processes show their sockets only to root.
    """
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _holds(process, inodes):
            return f"{_name(process)} (pid {process.name})"
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()  # 1: local address, 3: state, 9: inode
            if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(columns[9])
    return inodes


def _holds(process: Path, inodes: set[str]) -> bool:
    sockets = {f"socket:[{inode}]" for inode in inodes}
    try:
        return any(_target(descriptor) in sockets for descriptor in (process / "fd").iterdir())
    except OSError:  # it ended, or it is not ours to look at
        return False


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except OSError:  # closed since it was listed; the others still count
        return ""


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a program"
