"""Can the broker read and write what it has to, and nobody else its secrets?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lockgate.config.model import ListenerConfig
from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding, good
from lockgate.doctor.machine import User, obstacle, ourselves

_PASSWORDS = ("remote_password", "password", "local_password")


@dataclass(frozen=True)
class Used:
    """A file or folder that the broker uses."""

    path: Path
    what: str
    where: str  # the line that names it
    write: bool = False
    secret: bool = False
    made: bool = False  # by the broker, where it is not there


def used(case: Case) -> Iterator[Used]:
    """Give every file and folder that the configuration names, or that the broker needs without being told."""
    if case.conf is not None:
        secret = any(True for _ in case.lines(*_PASSWORDS))
        for path in dict.fromkeys([case.conf, *(line.path for line in case.lines(*_names(case)))]):
            yield Used(path, "the configuration", os.fspath(path), secret=secret)
    if case.config is None:
        return
    broker = case.config.broker
    for authority in broker.every_authority():
        place = authority.place
        where = f"{place.path}:{place.line}" if place is not None else case.place(authority.kind)
        dynamic = authority.kind == "dynamic_security"
        what = authority.kind.replace("_", " ")
        path = case.locate(authority.path)
        yield Used(path, f"the {what} file", where, write=dynamic, secret=authority.kind != "acl_file", made=dynamic)
    for listener in broker.listeners:
        yield from _of_tls(case, listener)
        if listener.path is not None:
            yield Used(listener.path.absolute().parent, "the folder of the Unix socket", case.place_of(listener), True)
    for name in ("bridge_cafile", "bridge_certfile", "bridge_keyfile"):
        for line in case.lines(name):
            where = f"{line.path}:{line.number}"
            yield Used(case.locate(Path(line.value)), f"the {name}", where, secret=name == "bridge_keyfile")
    if broker.scram_file is not None:
        yield Used(broker.scram_file, "the SCRAM file", os.fspath(case.path), secret=True)
    folder = case.store_folder()
    if folder is not None:
        where = case.place("persistence_location")
        yield Used(folder, "the data folder", where, write=True, made=True)
        for name in ("lockgate.db", "lockgate.db-wal"):
            if (folder / name).exists():
                yield Used(folder / name, "the store", where, write=True)
        if (folder / broker.persistence_file).exists():
            yield Used(folder / broker.persistence_file, "Mosquitto's store", where)
    for destination in broker.log.destinations:
        kind, _, name = destination.partition(" ")
        if kind == "file":
            log = case.locate(Path(name).absolute())
            yield Used(log if log.exists() else log.parent, "the log", case.place("log_dest"), write=True)


def _names(case: Case) -> set[str]:
    return {line.name for line in case.setup.lines} if case.setup is not None else set()


def _of_tls(case: Case, listener: ListenerConfig) -> Iterator[Used]:
    if listener.tls is None:
        return
    for name in ("certfile", "keyfile", "cafile", "capath", "crlfile"):
        path = getattr(listener.tls, name)
        if path is not None:
            place = listener.tls.places.get(name)
            where = f"{place.path}:{place.line}" if place is not None else case.place(name)
            yield Used(case.locate(path), f"the {name}", where, secret=name == "keyfile")
    for one in listener.tls.certificates:
        where = f"{one.place.path}:{one.place.line}" if one.place is not None else os.fspath(case.path)
        yield Used(one.certfile, f"the certificate {one.name}", where)
        yield Used(one.keyfile, f"the key of {one.name}", where, secret=True)


def access(case: Case) -> Iterator[Finding]:
    """Say what the broker's user may not read or write, and which secrets everybody may."""
    user, count = case.user(), 0
    seen: set[tuple[Path, bool]] = set()
    for one in used(case):
        if (one.path, one.write) in seen:
            continue
        seen.add((one.path, one.write))
        count += 1
        found = list(_access(one, user))
        count -= bool(found)
        yield from found
    if count:
        yield good("access", str(user), f"may use {count} files and folders of this configuration")


def _access(one: Used, user: User) -> Iterator[Finding]:
    path = one.path
    try:
        if one.made and not path.exists():
            path = next(folder for folder in path.parents if folder.exists())
        status = path.stat()
        blocking = obstacle(path, user, write=one.write)
    except FileNotFoundError:
        yield Finding(
            "missing", "error", one.where, f"{one.what} {path} does not exist",
            "the broker does not start without it",
            "make it, or correct the path; in a container: mount it, and write the path it has in there",
        )  # fmt: skip
        return
    except OSError as error:
        yield Finding(
            "unseen", "warning", one.where, f"{one.what} {path} cannot be looked at: {error.strerror}",
            "nobody knows whether the broker can", "run this as root, or as the broker's user",
        )  # fmt: skip
        return
    if one.write and os.statvfs(path).f_flag & os.ST_RDONLY:
        yield Finding(
            "read-only", "error", one.where, f"{one.what} {path} lies on a file system that is read-only",
            "nothing can be kept there",
            "mount it for writing: no `:ro` behind the volume, no `read_only: true` without a volume there",
        )  # fmt: skip
    elif blocking is not None:
        yield _blocked(one, user, *blocking)
    elif user == ourselves() and not os.access(path, os.W_OK if one.write else os.R_OK, effective_ids=True):
        yield Finding(
            "owner", "error", one.where, f"{one.what} {path} may not be {'written' if one.write else 'read'} by {user}",
            "its mode would allow it: an access list, a missing capability or a security module forbids it",
            f"`getfacl {path}`; in a container without capabilities the owner has to be the user itself",
        )  # fmt: skip
    if one.secret and stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
        yield Finding(
            "secret", "warning", one.where, f"everybody on this machine can read {one.what} {path}",
            "it holds secrets", f"chmod o= {path}",
        )  # fmt: skip


def _blocked(one: Used, user: User, path: Path, status: os.stat_result) -> Finding:
    doing = "write" if one.write else "read"
    target = "" if path == one.path else f": {path}"
    mode = f"uid {status.st_uid}, gid {status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}"
    folder = stat.S_ISDIR(status.st_mode)
    if path == one.path or (one.path.is_relative_to(path) and path != one.path and one.made):
        recursive = "-R " if folder and one.made else ""  # a folder of others is not ours to change
        advice = f"chown {recursive}{user.uid}:{user.gid} {path}"
    else:
        advice = f"chmod o+x {path}"  # a folder above, which holds other things too
    if one.secret and path == one.path:
        advice += f" && chmod 0600 {path}"
    why = "nothing can be kept there" if one.write else "the broker does not start, or does not reload"
    return Finding(
        "owner", "error", one.where, f"{user} may not {doing} {one.what} {one.path}{target} ({mode})", why, advice
    )
