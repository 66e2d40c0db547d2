"""Does the wall clock tell the time?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import lockgate
from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding, good
from lockgate.sqlite import NewerFile
from lockgate.sqlite.database import FAILURES
from lockgate.storage.clock import ClockRow
from lockgate.storage.store import FILE_NAME
from lockgate.storage.viewing import open_view
from lockgate.telemetry.clock import Clock, Moment

_THIS_PROGRAM = 1_767_225_600.0  # 2026-01-01: it was not written before
_AHEAD_SECONDS = 5.0
_JUMP_SECONDS = 2.0
_TIME = "certificates are refused, and times in logs and data are wrong"


def wall_clock(case: Case) -> Iterator[Finding]:
    """Hold the clock against what cannot be younger, and ask the kernel whether it is kept in step."""
    earliest, what = _THIS_PROGRAM, "this program was written"
    for path, told in (
        (Path(lockgate.__file__), "this program was installed"),
        (case.path, f"{case.path} was written"),
    ):
        if path.exists() and earliest < path.stat().st_mtime:
            earliest, what = path.stat().st_mtime, told
    if case.now < earliest - _AHEAD_SECONDS:
        yield Finding(
            "clock", "error", "this machine's clock", f"it says {_date(case.now)}, and {what} on {_date(earliest)}",
            _TIME, "set it: `timedatectl set-ntp true`; a machine without a clock chip needs NTP after each start",
        )  # fmt: skip
    yield synchronised(case.machine.in_container, Clock().now())


def synchronised(in_container: bool, moment: Moment) -> Finding:
    """Say whether the kernel believes its clock."""
    if moment.clock_ok:
        return good("clock", "this machine's clock", "kept in step with others (NTP)")
    return Finding(
        "clock-free", "warning", "this machine's clock", "nothing keeps it in step (the kernel says: not synchronised)",
        "it drifts; after a power cut nobody knows how long the machine was off, so messages with an expiry expire",
        f"`timedatectl set-ntp true`, or chrony{', on the machine, not in the container' if in_container else ''}",
    )  # fmt: skip


def jumps(case: Case) -> Iterator[Finding]:
    """Say if the clock was set since the broker noted it last, within this boot."""
    folder = case.store_folder()
    path = folder / FILE_NAME if folder is not None else None
    if path is None or not path.is_file() or not os.access(path, os.R_OK):
        return
    try:
        with open_view(path, Clock()) as view:
            noted = view.noted
    except (*FAILURES, NewerFile, OSError):  # said of the store
        return
    if noted is not None:
        yield from jump(noted, Clock().now())


def jump(noted: ClockRow, moment: Moment) -> Iterator[Finding]:
    """Compare two moments of one boot: the wall clock goes on as the clock that nobody can set."""
    if noted.boot_id != moment.boot_id:
        return
    jumped = (moment.wall_ns - moment.boottime_ns) / 1e9 - (noted.wall_time - noted.boottime)
    if abs(jumped) > _JUMP_SECONDS:
        way = "forward" if jumped > 0 else "back"
        yield Finding(
            "clock-jump", "warning", "this machine's clock",
            f"it was set {way} by {abs(jumped):.0f} s since the broker noted it at {_date(noted.wall_time)}",
            "expiry and keep alive do not follow it; times in logs and data do",
            "nothing, if it was wrong before; if this comes again, let one program alone set the clock",
        )  # fmt: skip


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))
