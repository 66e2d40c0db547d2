"""The entry point of the container image: who may write the mounts, whom to be, then the command.

As root it gives what is mounted under /mosquitto to PUID:PGID, where they could not use it, and serves as them, for
good; as anybody else it names what they cannot use. What is no service runs as the container was started.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from lockgate import cli
from lockgate.cli import cloudflared, healthcheck, process

DEFAULT: Final = ("mosquitto", "-c", "/mosquitto/config/mosquitto.conf")
SERVICES: Final = ("broker", "processor", "forwarder")
TUNNEL: Final = ("connector", "edge")  # which are commands, too: alone they are services
VENDORS: Final = "cloudflared"  # in whose image the program's name is left out
SOURCE: Final = "source:"
WRITTEN: Final = ("data", "log")
READ: Final = "config"
_HOME: Final = Path("/mosquitto")
_USER: Final = 1883
_NOT_FOUND: Final = 127  # a shell's status, and Docker's


def main(words: Sequence[str]) -> int:
    """Do what the image's command says; `words` are a program, a command of lockgate, or the names of services."""
    words = list(words or DEFAULT)
    program = os.path.basename(words[0])
    if program == "lockgate" and words[1:]:
        words = words[1:]
        program = words[0]
    if program == "tunnel":
        words = [VENDORS, *words]
        program = VENDORS
    if program in cli.PROGRAMS:
        words[0] = program
    elif all(_is_service(word) for word in words):
        words = ["run", *words]
    elif program not in cli.COMMANDS:
        return _become(words)
    services = _services(words)
    if services:
        if services != ["broker"] and importlib.util.find_spec("orjson") is None:
            _say(f"Error: this image holds the broker alone, and cannot run {', '.join(services)}.")
            return 1
        status = _prepare(services)
        if status:
            return status
        expect(services, os.environ.get(healthcheck.VARIABLE, ""))
    if os.getpid() == 1:
        _be_init(words[0], bool(services))
    return cli.main(words)


def _services(words: list[str]) -> list[str]:
    """Give the services that a command hosts, none for any other."""
    if words[0] == "run":
        return [word for word in words[1:] if _is_service(word)]
    if words[0] == "up":
        return _configured(words[1:])
    if words[0] == "connector" or (words[0] == VENDORS and cloudflared.is_run(words[1:])):
        return ["connector"] if not {"-h", "--help"} & set(words) else []
    return ["broker"] if words[0] == "mosquitto" else []


def _configured(words: list[str]) -> list[str]:
    """Give the services of the configuration; it says itself what is wrong with it."""
    import argparse

    from lockgate import app
    from lockgate.cli.common import add_config_argument, load_config
    from lockgate.config.errors import ConfigError

    parser = argparse.ArgumentParser(add_help=False)
    add_config_argument(parser)
    try:
        return list(app.services(load_config(parser.parse_known_args(words)[0])))
    except ConfigError:
        return list(SERVICES)


def _is_service(word: str) -> bool:
    return word in (*SERVICES, *TUNNEL) or word.startswith(SOURCE)


def expect(services: list[str], folder: str) -> None:
    """Write down whom `lockgate healthcheck` has to find, where the status sockets will be."""
    if not folder:
        return
    try:
        os.makedirs(folder, mode=0o711, exist_ok=True)
        Path(folder, healthcheck.EXPECTED).write_text("".join(f"{name}\n" for name in services))
    except OSError as error:
        _say(f"Warning: {error.filename}: {error.strerror}; the health check will not find the services.")


def _become(words: list[str]) -> NoReturn:
    """Go on as a program that is none of ours."""
    try:
        os.execvp(words[0], words)
    except OSError as error:
        _say(f"{words[0]}: {error.strerror}")
        sys.exit(_NOT_FOUND)


def _be_init(command: str, serves: bool) -> None:
    """Do what the first process of a container owes the others, and what the kernel does for every other one."""
    if command == "up":
        _watch()
    elif serves:  # they have no children of their own
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whose parent has ended is gone when it ends
    else:  # the first process is not ended by a signal unless it says so
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def _watch() -> None:
    """Return in a child; stay behind, pass signals on, take leave of every process, and end as the child does."""
    passed_on = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN}
    awaited = {signal.SIGCHLD, *passed_on}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # for good: a handler would miss one just before a wait
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(awaited)
        if number in passed_on:
            os.kill(child, number)
            continue
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):  # one signal may stand for several
            if ended.si_pid == child:
                killed = ended.si_code != os.CLD_EXITED
                os._exit(128 + ended.si_status if killed else ended.si_status)


# --- mounts and the user ---------------------------------------------------------------------------------------------


def _prepare(services: list[str]) -> int:
    """Be who may use the mounts; gives an exit status if that cannot be."""
    if os.geteuid() == 0:
        uid = _number("PUID", _USER)
        gid = _number("PGID", uid)
        if uid == 0:
            _say("Warning: PUID is 0, so the services run as root.")
            return 0
        for line in give(_HOME, uid, gid):
            _say(line)
        try:
            process.become_for_good(uid, gid)
        except PermissionError as error:
            _say(
                f"Error: cannot become {uid}:{gid} ({error.strerror}). Start the container with user: {uid}:{gid}, or "
                "leave it the capabilities SETUID and SETGID (and CHOWN, for the owners of what is mounted)."
            )
            return 1
    written = WRITTEN if services != ["connector"] else ()  # it keeps nothing
    for line in unusable(_HOME, Path("/proc/self/mountinfo"), written):
        _say(f"Warning: {line}")
    return 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def give(home: Path, uid: int, gid: int) -> Iterator[str]:
    """Change the owner of what a user could not use below `home`: folders that are written, files that are read.

    Tells what was done, and what could not be. Links are left alone.
    """
    for name in (*WRITTEN, READ):
        given: list[str] = []
        for path in _below(home / name):
            found = os.lstat(path)
            is_fine = found.st_uid == uid if name != READ else _reads(found, uid, gid)
            if is_fine or stat.S_ISLNK(found.st_mode):
                continue
            try:
                os.chown(path, uid, gid, follow_symlinks=False)
            except OSError as error:
                yield f"Warning: {path} belongs to {found.st_uid}:{found.st_gid} and stays so: {error.strerror}."
                break  # the next ones would end the same way
            given.append(f"{path} ({found.st_uid}:{found.st_gid} before)")
        if given:
            others = f" and {len(given) - 1} below it" if len(given) > 1 else ""
            yield f"{given[0]}{others} now belongs to {uid}:{gid}."


def unusable(home: Path, mounts: Path, written: Sequence[str] = WRITTEN) -> Iterator[str]:
    """Tell what this process cannot write or read below `home`, whose it is, and how that is put right."""
    me = f"{os.geteuid()}:{os.getegid()}"
    for name in (*written, READ):
        verb, mode = ("read", os.R_OK) if name == READ else ("write", os.R_OK | os.W_OK)
        for path in _below(home / name):
            is_folder = path.is_dir()
            if not path.exists() or os.access(path, mode | (os.X_OK if is_folder else 0)):
                continue
            found = path.stat()
            owner = f"{found.st_uid}:{found.st_gid}"
            source = _source(path, mounts)
            whole = "-R " if is_folder else ""
            yield (
                f"{path} belongs to {owner}, mode {stat.S_IMODE(found.st_mode):04o}, and {me} cannot {verb} it. "
                f"On the host: chown {whole}{me} {source or 'what is mounted there'}"
            )
            break


def _below(top: Path) -> Iterator[Path]:
    """Give a folder, if it is there, and all that lies in it and can be seen."""
    if not top.is_dir():
        return
    yield top
    for folder, folders, files in os.walk(top):
        for name in sorted(folders) + sorted(files):
            yield Path(folder, name)


def _reads(found: os.stat_result, uid: int, gid: int) -> bool:
    """Whether a user may read a file, or look into a folder."""
    wanted = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    return (found.st_mode >> shift) & wanted == wanted


def _source(path: Path, mounts: Path) -> str:
    """Give where a mounted path lies on the file system it is mounted from, which mostly is its path on the host."""
    best, source = "", ""
    try:
        for line in mounts.read_text().splitlines():
            _id, _parent, _device, root, point, *_ = line.split(" ")
            inside = str(path) == point or str(path).startswith(f"{point}/")
            if inside and len(point) >= len(best) and root != "/":
                best, source = point, root + str(path)[len(point) :]
    except OSError:
        return ""
    return source


def _say(text: str) -> None:
    print(f"docker-entrypoint.sh: {text}", file=sys.stderr, flush=True)
