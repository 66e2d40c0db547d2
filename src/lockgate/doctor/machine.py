"""What this machine or container tells of itself: mounts, users, limits."""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_CONTAINER = re.compile(r"docker|containerd|kubepods|libpod|lxc")
_ANONYMOUS = re.compile(r"/volumes/[0-9a-f]{64}/_data$")
_READ, _WRITE, _ENTER = 4, 2, 1


class User(NamedTuple):
    """Whoever the broker runs as, or will."""

    name: str
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return self.name if self.name == f"uid {self.uid}" else f"{self.name} (uid {self.uid})"

    def may(self, status: os.stat_result, wanted: int) -> bool:
        """Whether the mode of a file lets this user do what is `wanted`, bits as in one digit of chmod."""
        if self.uid == 0:
            return True
        mode = status.st_mode
        if status.st_uid == self.uid:
            return mode >> 6 & wanted == wanted
        if status.st_gid == self.gid or status.st_gid in self.groups:
            return mode >> 3 & wanted == wanted
        return mode & wanted == wanted


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo."""

    point: Path
    kind: str
    read_only: bool
    source: str = ""  # within its file system

    @property
    def is_anonymous(self) -> bool:
        """Whether the engine made this volume, because the image asks for one and nobody named any."""
        return bool(_ANONYMOUS.search(self.source))


class Machine:
    """The machine as it is below `root`, which a test may make of its own."""

    def __init__(self, root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> None:
        self.root = root
        self.environment = environment
        self.proc = root / "proc"
        self.sys = root / "sys"
        self.docker_socket = root / "var/run/docker.sock"

    @property
    def in_container(self) -> bool:
        """Whether this process runs in a container."""
        if (self.root / ".dockerenv").exists() or (self.root / "run/.containerenv").exists():
            return True
        return bool(_CONTAINER.search(self.text("proc/self/cgroup")))

    @property
    def has_networks_of_others(self) -> bool:
        """Whether the network of this process is the machine's own, where containers hang on bridges."""
        try:
            names = os.listdir(self.sys / "class/net")
        except OSError:
            return False
        return any(name.startswith(("docker", "veth", "cni", "podman", "br-")) for name in names)

    def text(self, name: str) -> str:
        """Give a small file of the system's, empty where there is none or it may not be read."""
        try:
            return (self.root / name).read_text(errors="replace").strip()
        except OSError:
            return ""

    def number(self, *names: str) -> int | None:
        """Give the number in the first of these files that holds one."""
        for name in names:
            words = self.text(name).split()
            if words and words[0].isdecimal():
                return int(words[0])
        return None

    def mounts(self) -> list[Mount]:
        """Give what is mounted, later mounts behind those they cover."""
        found = []
        for line in self.text("proc/self/mountinfo").splitlines():
            words = line.split()
            if "-" not in words:
                continue
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), words[4])
            found.append(Mount(Path(point), words[words.index("-") + 1], "ro" in words[5].split(","), words[3]))
        return found

    def mount_of(self, path: Path) -> Mount | None:
        """Give what a path lies on."""
        real = PurePosixPath(os.path.realpath(path))
        holding = [one for one in self.mounts() if real.is_relative_to(one.point)]
        return max(holding, key=lambda one: len(one.point.parts), default=None)

    def user_of(self, pid: int) -> User | None:
        """Give whom a process runs as."""
        found = dict(line.partition(":")[::2] for line in self.text(f"proc/{pid}/status").splitlines())
        try:
            uid, gid = int(found["Uid"].split()[1]), int(found["Gid"].split()[1])
        except (KeyError, IndexError, ValueError):
            return None
        return User(_name(uid), uid, gid, frozenset(map(int, found.get("Groups", "").split())))


def user_named(entry: pwd.struct_passwd) -> User:
    """Make a user of what the system, or PUID, says of one."""
    groups: frozenset[int] = frozenset()
    if not entry.pw_name.startswith("#"):
        groups = frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    name = f"uid {entry.pw_uid}" if entry.pw_name.startswith("#") else entry.pw_name
    return User(name, entry.pw_uid, entry.pw_gid, groups)


def ourselves() -> User:
    """Give whom this process runs as."""
    return User(_name(os.geteuid()), os.geteuid(), os.getegid(), frozenset(os.getgroups()))


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def obstacle(path: Path, user: User, *, write: bool = False) -> tuple[Path, os.stat_result] | None:
    """Give the file or folder whose mode keeps a user from reading or writing `path`; None: nothing does.

    Raises OSError where that cannot be seen.
    """
    for folder in reversed(path.absolute().parents):
        status = folder.stat()
        if not user.may(status, _ENTER):
            return folder, status
    status = path.stat()
    wanted = _READ | (_WRITE if write else 0) | (_ENTER if stat.S_ISDIR(status.st_mode) else 0)
    return None if user.may(status, wanted) else (path, status)
