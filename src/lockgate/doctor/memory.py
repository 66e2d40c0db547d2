"""Does what the broker may hold fit into what the machine, or the container, gives it?"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator

from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding, good

_MIB = 1024 * 1024
_PROGRAM_BYTES = 48 * _MIB  # resident, with persistence and TLS and no client
_FILES = 64  # that are no clients: libraries, the store, listeners
_THROTTLED = 0.10
_FEW_PERIODS = 300  # of 0.1 s each in which it ran: of fewer, those of its start are too large a part
_UNLIMITED = 1 << 60  # of cgroup version 1


def limit_bytes(case: Case) -> int | None:
    """Give the memory limit of this container, or of this unit; None where there is none."""
    found = case.machine.number(
        *(f"sys/fs/cgroup{group}/memory.max" for group in _groups(case)),
        *(f"sys/fs/cgroup/memory{group}/memory.limit_in_bytes" for group in _groups(case, "memory")),
    )
    return found if found is not None and found < _UNLIMITED else None


def _groups(case: Case, controller: str = "") -> Iterator[str]:
    """Give where this process's group may be below the mount: a container sees its own group as the root."""
    pid = case.pid if case.pid is not None else "self"
    for line in case.machine.text(f"proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and path != "/" and ".." not in path:
            yield path
    yield ""


def budget(case: Case) -> Iterator[Finding]:
    """Hold memory_budget and memory_limit against the limit of the container or of the machine."""
    if case.config is None:
        return
    broker = case.config.broker
    limit = limit_bytes(case)
    total = _meminfo(case, "MemTotal")
    most = min((one for one in (limit, total) if one), default=0)
    if not most:
        return
    said = [one for one in (broker.memory_limit, broker.memory_budget) if one]
    if broker.memory_budget is None:
        said.append(most // 4)
    allowed = min(said, default=0)
    what = f"the {_mib(most)} of {'this container' if limit is not None else 'this machine'}"
    where = os.fspath(case.path)
    if not allowed:
        yield Finding(
            "memory", "warning", where, f"memory_budget is 0: nothing bounds what is held for clients within {what}",
            "under load the kernel ends the broker, instead of the broker shedding what matters least",
            f'[broker] memory_budget = "{most // 4 // _MIB}MiB" in lockgate.toml',
        )  # fmt: skip
    elif allowed + _PROGRAM_BYTES > most:
        room = max(8, (most - _PROGRAM_BYTES) // _MIB * 3 // 4)
        yield Finding(
            "memory", "error" if allowed > most else "warning", where,
            f"what may be held for clients ({_mib(allowed)}) and the program itself ({_mib(_PROGRAM_BYTES)}) are more "
            f"than {what}",
            "the kernel ends the broker before it begins to shed",
            f'[broker] memory_budget = "{room}MiB" in lockgate.toml, or a higher mem_limit',
        )  # fmt: skip
    else:
        yield good("memory", where, f"{_mib(allowed)} may be held for clients, of {what}")
    if allowed and broker.max_queued_bytes > allowed:
        yield Finding(
            "memory", "warning", case.place("max_queued_bytes"),
            f"max_queued_bytes lets one client's queue grow to {_mib(broker.max_queued_bytes)}, above the budget for "
            f"all of them ({_mib(allowed)})",
            "the budget sheds messages of other clients first", "a smaller max_queued_bytes, or more memory_budget",
        )  # fmt: skip


def swap(case: Case) -> Iterator[Finding]:
    """Say if part of the running broker lies in swap."""
    if case.pid is None:
        return
    match = re.search(r"^VmSwap:\s+(\d+) kB", case.machine.text(f"proc/{case.pid}/status"), re.M)
    swapped = int(match[1]) * 1024 if match else 0
    if swapped > _MIB:
        yield Finding(
            "swap", "warning", f"pid {case.pid}", f"{_mib(swapped)} of the broker lie in swap",
            "each message may then wait for the disk", "more memory, or memswap_limit equal to mem_limit: no swap",
        )  # fmt: skip


def open_files(case: Case) -> Iterator[Finding]:
    """Hold the limit of open files against the connections that are allowed."""
    if case.config is None:
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    who = "here"
    match = re.search(r"^Max open files\s+(\S+)", case.machine.text(f"proc/{case.pid or 'self'}/limits"), re.M)
    if match and match[1].isdecimal():
        soft, who = int(match[1]), f"pid {case.pid}" if case.pid else "here"
    broker = case.config.broker
    listeners = [one.max_connections for one in broker.listeners]
    wanted = sum(listeners) if listeners and min(listeners) >= 0 else -1
    if broker.global_max_connections >= 0:
        wanted = broker.global_max_connections if wanted < 0 else min(wanted, broker.global_max_connections)
    if soft == resource.RLIM_INFINITY:
        return
    room = soft - _FILES
    if wanted > room:
        yield Finding(
            "open-files", "error", case.place("global_max_connections", "max_connections"),
            f"{wanted} connections are allowed, but the limit of {soft} open files has room for {room}",
            "more clients than that are not accepted", _more_files(wanted + _FILES),
        )  # fmt: skip
    elif wanted < 0 and soft <= 1024:
        yield Finding(
            "open-files", "warning", who, f"{soft} files may be open, so {max(0, room)} clients at most connect",
            "connections above that are not accepted, though no limit is configured", _more_files(16_384),
        )  # fmt: skip
    else:
        yield good("open-files", who, f"{soft} files may be open")


def _more_files(wanted: int) -> str:
    return f"`ulimit -n {wanted}`; systemd: LimitNOFILE={wanted}; compose: ulimits: nofile: {wanted}"


def processor(case: Case) -> Iterator[Finding]:
    """Say if the container's share of the processor is less than the broker can use."""
    quota, period = 0, 100_000
    for group in _groups(case):
        words = case.machine.text(f"sys/fs/cgroup{group}/cpu.max").split()
        if len(words) == 2:
            quota, period = (int(words[0]) if words[0].isdecimal() else 0), int(words[1])
            break
    else:
        for group in _groups(case, "cpu"):
            quota = case.machine.number(f"sys/fs/cgroup/cpu{group}/cpu.cfs_quota_us") or 0
            period = case.machine.number(f"sys/fs/cgroup/cpu{group}/cpu.cfs_period_us") or period
            if quota:
                break
    if not quota:
        return
    cores = quota / period
    waited = _throttled(case)
    if cores < 1 or waited > _THROTTLED:
        held = f", and was held back in {waited:.0%} of its time slices" if waited > 0.01 else ""
        yield Finding(
            "processor", "warning", "this container", f"it may use {cores:.2g} of a processor core{held}",
            "the broker's loop is one thread: whenever its share is spent, every client waits up to 0.1 s",
            "cpus: 1 or more in the compose file, or none and a cpu_shares weight",
        )  # fmt: skip
    else:
        yield good("processor", "this container", f"it may use {cores:.2g} cores")


def _throttled(case: Case) -> float:
    for name in (
        *(f"sys/fs/cgroup{group}/cpu.stat" for group in _groups(case)),
        *(f"sys/fs/cgroup/cpu{group}/cpu.stat" for group in _groups(case, "cpu")),
    ):
        said = dict(line.split()[:2] for line in case.machine.text(name).splitlines() if len(line.split()) >= 2)
        if (periods := int(said.get("nr_periods", "0"))) >= _FEW_PERIODS:
            return int(said.get("nr_throttled", "0")) / periods
    return 0.0


def _meminfo(case: Case, name: str) -> int | None:
    match = re.search(rf"^{name}:\s+(\d+) kB", case.machine.text("proc/meminfo"), re.M)
    return int(match[1]) * 1024 if match else None


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB" if size >= _MIB else f"{size} bytes"
