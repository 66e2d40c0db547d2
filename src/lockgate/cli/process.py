"""What a daemon does to its own process: a pid file, another user, the background."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from lockgate.config.errors import ConfigError
from lockgate.config.model import BrokerConfig

USERS = ("mosquitto", "nobody")  # who to become as root where nobody is named, the first that exists
_PID_FILE = 14  # Mosquitto's exit status
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38  # prctl(2)


@contextlib.contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Write the process id to a file as long as this lasts. Raises ConfigError if it cannot be written."""
    if path is None:
        yield
        return
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        wrong = ConfigError(f"Unable to write pid file {path}: {error.strerror}.", key="pid_file")
        wrong.exit_code = _PID_FILE
        raise wrong from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # another user's folder by now
            path.unlink()


def service_user(config: BrokerConfig, default: bool) -> pwd.struct_passwd | None:
    """Give whom to become: None where nothing is to be done, or nobody may. `default`: also where nobody is named.

    Raises ConfigError for a user that does not exist.
    """
    if os.geteuid() != 0 or config.user == "root":
        return None
    number = os.environ.get("PUID", "")
    if default and number.isdecimal():
        group = os.environ.get("PGID", "")
        gid = int(group) if group.isdecimal() else int(number)
        return pwd.struct_passwd((f"#{number}", "x", int(number), gid, "", "/", ""))
    if config.user is None and not default:
        return None
    for name in (config.user,) if config.user is not None else USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ConfigError(
        f"Invalid user '{config.user or USERS[0]}': this system knows no such user.",
        path=config.path,
        key="user",
        accepted="the name of a user, or root",
    )


def become(user: pwd.struct_passwd) -> None:
    """Give up root's rights for good."""
    if user.pw_name.startswith("#"):  # only its number is known
        os.setgroups([])
    else:
        os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def become_for_good(uid: int, gid: int) -> None:
    """Be another user, in no group but its own, with no capability and no way to one. Raises PermissionError."""
    import ctypes  # a broker that gives up nothing does without it

    libc = ctypes.CDLL(None)
    for capability in range(64):  # of the bounding set, as long as that may be changed
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    become(pwd.struct_passwd((f"#{uid}", "x", uid, gid, "", "/", "")))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def daemonize() -> None:
    """Go on in the background, without a terminal; the process that was called ends here."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)
