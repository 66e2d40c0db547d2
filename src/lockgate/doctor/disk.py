"""Is there room on the disk, how fast is it, and is the store on it whole?"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding, good
from lockgate.sqlite import NewerFile
from lockgate.sqlite.database import FAILURES, told
from lockgate.storage.store import FILE_NAME
from lockgate.storage.viewing import open_view
from lockgate.telemetry.clock import Clock

_MIB = 1024 * 1024
_LITTLE, _TOO_LITTLE = 256 * _MIB, 16 * _MIB
_SYNCS = 5
_SLOW_SECONDS = 0.05
_CHECKED_BYTES = 64 * _MIB  # a larger store is left to `lockgate store check`

_LOST = "sessions, queues and retained messages are gone when the container is removed, as each update does"
_LOCKS = (
    "SQLite's write-ahead log needs memory that all its users share, and locks that hold: a store there gets damaged"
)
# What is wrong with keeping a store on a file system, by its kind
_KINDS = {
    "overlay": ("warning", "the container's own layer", _LOST, "a volume: `./data:/mosquitto/data` below `volumes:`"),
    "aufs": ("warning", "the container's own layer", _LOST, "a volume: `./data:/mosquitto/data` below `volumes:`"),
    "tmpfs": ("warning", "memory (tmpfs)", "everything acknowledged is gone after a restart of the machine", "a disk"),
    "ramfs": ("warning", "memory (ramfs)", "everything acknowledged is gone after a restart of the machine", "a disk"),
    **dict.fromkeys(
        ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.grpcfuse", "fuse.osxfs", "virtiofs"),
        ("error", "a network file system", _LOCKS, "a disk of this machine, or a named volume of Docker's"),
    ),
    **dict.fromkeys(
        ("vfat", "exfat", "msdos"),
        ("warning", "FAT", "it knows no owners, and a power cut may take more than the last write", "ext4"),
    ),
}


def _folder(case: Case) -> Path | None:
    """Give the folder of the store, or the one it will be made in."""
    folder = case.store_folder()
    return next(one for one in (folder, *folder.parents) if one.exists()) if folder is not None else None


def kept(case: Case) -> Iterator[Finding]:
    """Say if nothing is kept."""
    if case.config is not None and case.config.broker.persistence is False:
        yield Finding(
            "persistence", "warning", case.place("persistence", "retained_persistence"), "persistence is off",
            "sessions, queued and retained messages are lost when the broker ends",
            "persistence true, and persistence_location on a volume",
        )  # fmt: skip


def kind(case: Case) -> Iterator[Finding]:
    """Say if the store lies on a file system that loses or damages it."""
    folder = _folder(case)
    mount = case.machine.mount_of(folder) if folder is not None else None
    if folder is None or mount is None:
        return
    if mount.is_anonymous:
        yield Finding(
            "file-system", "warning", case.place("persistence_location"),
            f"the data folder {folder} lies on a volume without a name, which the engine made for this container alone",
            "a container that takes its place (docker run; down and up) begins with an empty store",
            f"a volume: `./data:{mount.point}` below `volumes:`",
        )  # fmt: skip
        return
    if mount.kind not in _KINDS:
        return
    severity, name, why, advice = _KINDS[mount.kind]
    if mount.kind in ("overlay", "aufs") and not case.machine.in_container:
        return
    where = case.place("persistence_location")
    problem = f"the data folder {folder} lies on {name} ({mount.kind} at {mount.point})"
    yield Finding("file-system", "error" if severity == "error" else "warning", where, problem, why, advice)


def space(case: Case) -> Iterator[Finding]:
    """Say how much room is left, and whether the broker still has its reserve."""
    folder = _folder(case)
    if folder is None:
        return
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < _LITTLE:
        yield Finding(
            "disk-space", "error" if free < _TOO_LITTLE else "warning", os.fspath(folder),
            f"{free / _MIB:.0f} MiB are free on the disk of the data folder",
            "when it is full nothing can be kept, and QoS 1 and 2 messages are refused",
            f"make room: `du -xh {folder} | sort -h | tail`, old logs, `docker system df`",
        )  # fmt: skip
    else:
        yield good("disk-space", os.fspath(folder), f"{free / _MIB:.0f} MiB are free")
    if disk.f_files and disk.f_favail < 1000:
        yield Finding(
            "inodes", "error" if disk.f_favail < 10 else "warning", os.fspath(folder),
            f"only {disk.f_favail} more files can be made on the disk of the data folder (inodes)",
            "it counts as full, whatever space is left",
            "remove folders of many small files: `du --inodes -x / | sort -n`",
        )  # fmt: skip
    store = case.figures.get("store")
    missing = [name for name in ("lockgate.reserve", "lockgate.reserve-2") if not (folder / name).exists()]
    if missing and isinstance(store, dict) and store.get("persistence"):
        yield Finding(
            "reserve", "error", os.fspath(folder / missing[0]), "the broker has given up its reserve on the disk",
            "the disk was full: with the reserve gone not even what makes room can be written",
            "make room: the broker takes its reserve again by itself",
        )  # fmt: skip


def sync_time(case: Case) -> Iterator[Finding]:
    """Measure how long the disk takes to keep something, with a file that is removed again."""
    folder = case.store_folder()
    if folder is None or not folder.is_dir():
        return
    try:
        seconds = measure(folder)
    except OSError as error:
        if not os.access(folder, os.W_OK):
            return  # whose folder it is, is said elsewhere
        yield Finding(
            "sync-time", "error", os.fspath(folder), f"nothing can be written and synced there: {error.strerror}",
            "what cannot be kept is not acknowledged", "look at the disk: `dmesg | tail`, `df -h`",
        )  # fmt: skip
        return
    rate = 1 / seconds
    told = f"the disk takes {seconds * 1000:.1f} ms to keep a write: {rate:.0f} acknowledgements a second, one by one"
    if seconds > _SLOW_SECONDS:
        yield Finding(
            "sync-time", "warning", os.fspath(folder), told,
            "a publisher that waits for each PUBACK gets no faster than that; many at once share a write",
            'a better disk (an SD card is slow), or `ack_after` "memory" in lockgate.toml for topics that may be lost',
        )  # fmt: skip
    else:
        yield good("sync-time", os.fspath(folder), told)


def measure(folder: Path) -> float:
    """Give the median of some syncs of one page, in seconds. Raises OSError."""
    times = []
    with tempfile.TemporaryFile(dir=folder, prefix="lockgate-doctor-") as file:
        for _ in range(_SYNCS):
            begun = time.perf_counter()
            os.pwrite(file.fileno(), b"\0" * 4096, 0)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
    return statistics.median(times) or 1e-6


def store(case: Case) -> Iterator[Finding]:
    """Say what the broker has noticed of its store, or what a quick look into the file shows."""
    said = case.figures.get("store")
    folder = case.store_folder()
    if isinstance(said, dict):
        for name in ("error", "damage"):
            if said.get(name):
                yield Finding(
                    "store", "error" if name == "error" else "warning", str(said.get("path", "")), str(said[name]),
                    "what is not kept is not acknowledged" if name == "error" else "what could be read was taken over",
                    "`lockgate store check`; free space and the kernel's log (`dmesg`) say more",
                )  # fmt: skip
    path = folder / FILE_NAME if folder is not None else None
    if path is None or not path.is_file() or not os.access(path, os.R_OK):
        return
    try:
        with open_view(path, Clock()) as view:
            if path.stat().st_size <= _CHECKED_BYTES:
                view.glance()
            problems = list(view.problems)
    except NewerFile as error:
        yield Finding(
            "store", "error", os.fspath(path), str(error), "the broker does not open it",
            "the version that wrote it; the store is not changed",
        )  # fmt: skip
        return
    except (*FAILURES, OSError) as error:
        problems = [told(error) if not isinstance(error, OSError) else str(error.strerror)]
    if problems:
        yield Finding(
            "store", "error", os.fspath(path), f"the store is damaged: {problems[0]}",
            "some of what was kept cannot be read",
            "`lockgate store check` says all; at its next start the broker keeps what can be read of it",
        )  # fmt: skip
    else:
        yield good("store", os.fspath(path), "whole, as far as a quick look shows")
