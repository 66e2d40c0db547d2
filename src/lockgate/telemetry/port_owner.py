"""Which program holds a TCP port, as far as /proc tells us."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

_LISTEN = "0A"
_PROC = Path("/proc")


class Holder(NamedTuple):
    """A socket that listens; `pid` is None where its process cannot be seen."""

    address: str
    pid: int | None
    name: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def who_listens(port: int) -> str | None:
    """`mosquitto (pid 812)` for the process that listens on TCP `port`, or None where that cannot be seen.

    Another user's processes show their sockets only to root.
    """
    return next((str(one) for one in holders(port) if one.pid is not None), None)


def holders(port: int, proc: Path = _PROC) -> list[Holder]:
    """Give every socket that listens on TCP `port`, with its process where that can be seen."""
    sockets = _listening(port, proc)
    if not sockets:
        return []
    owners = _owners({f"socket:[{inode}]" for _, inode in sockets}, proc)
    found = []
    for address, inode in sockets:
        process = owners.get(f"socket:[{inode}]")
        if process is None:
            found.append(Holder(address, None, "a program", ()))
        else:
            found.append(Holder(address, int(process.name), _name(process), _command(process)))
    return found


def _listening(port: int, proc: Path) -> list[tuple[str, str]]:
    """Give address and inode of each socket."""
    found = []
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()  # 1: local address, 3: state, 9: inode
            address, _, number = columns[1].rpartition(":")
            if columns[3] == _LISTEN and int(number, 16) == port:
                found.append((_spelled(address), columns[9]))
    return found


def _spelled(address: str) -> str:
    """Give an address as people write it; the kernel prints words of the machine's byte order."""
    words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))


def _owners(sockets: set[str], proc: Path) -> dict[str, Path]:
    owners: dict[str, Path] = {}
    for process in proc.iterdir():
        if process.name.isdecimal():
            for target in _targets(process) & sockets:
                owners.setdefault(target, process)
            if len(owners) == len(sockets):
                break
    return owners


def _targets(process: Path) -> set[str]:
    try:
        return {_target(descriptor) for descriptor in (process / "fd").iterdir()}
    except OSError:  # it ended, or it is not ours to look at
        return set()


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


def _command(process: Path) -> tuple[str, ...]:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ()
    return tuple(word.decode(errors="replace") for word in words if word)
