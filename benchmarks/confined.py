"""Holds a program and its children to one core and some memory, and watches what each of them takes."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup/memory")  # control groups of version 1
_LOOK_SECONDS = 0.1
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Use:
    """What one service took, all its processes of the run together."""

    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    resident_bytes: int = 0
    starts: int = 0


class Confined:
    """A program that runs, its children named by the last word of their command line."""

    def __init__(self, process: subprocess.Popen[bytes], core: int, limit_bytes: int, group: Path | None) -> None:
        self.process = process
        self.uses: dict[str, Use] = {}
        self.peak_together = 0  # resident memory of all at one moment
        self._core = core
        self._limit = limit_bytes
        self._group = group
        self._peak_anonymous = 0
        self._cpu: dict[int, float] = {}
        self._lock = threading.Lock()

    def pid(self, name: str) -> int:
        """Give the process of a child that runs; raises LookupError when there is none."""
        for pid, its_name in self._processes():
            if its_name == name:
                return pid
        raise LookupError(name)

    def look(self) -> None:
        """Note what each process takes now."""
        with self._lock:
            together: dict[str, int] = {}
            for pid, name in self._processes():
                with contextlib.suppress(OSError, ProcessLookupError):
                    together[name] = together.get(name, 0) + self._look_at(pid, name)
            for name, bytes_now in together.items():
                self.uses[name].resident_bytes = bytes_now
            self.peak_together = max(self.peak_together, sum(together.values()))
            if self._group is not None:
                stat = dict(line.split() for line in (self._group / "memory.stat").read_text().splitlines())
                self._peak_anonymous = max(self._peak_anonymous, int(stat["rss"]))

    def limits(self) -> str:
        """Say how the program was held, and what it came to."""
        where = f"core {self._core} alone, {_mib(self._limit)} MiB "
        if self._group is None:
            return (
                f"{where}of data for each process (RLIMIT_DATA: no control group of memory could be made); "
                f"all together took {_mib(self.peak_together)} MiB at most"
            )
        said = [int((self._group / f"memory.{name}").read_text()) for name in ("max_usage_in_bytes", "failcnt")]
        return (
            f"{where}for all together (control group), pages of files included; at most {_mib(said[0])} MiB were used, "
            f"{_mib(self._peak_anonymous)} of them not pages of files; the limit was met {said[1]:,} times"
        )

    def out_of_memory(self) -> int:
        """How many processes the kernel has ended for want of memory; without a group: 1 if all took too much."""
        if self._group is None:
            return int(self.peak_together > self._limit)
        lines = (self._group / "memory.oom_control").read_text().splitlines()
        return int(dict(line.split() for line in lines).get("oom_kill", "0"))

    def _processes(self) -> Iterator[tuple[int, str]]:
        top = self.process.pid
        yield top, "up"
        with contextlib.suppress(OSError):
            for pid in map(int, Path(f"/proc/{top}/task/{top}/children").read_text().split()):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    if b"run" in words:  # not one that has yet to become a service
                        yield pid, words[-2].decode()

    def _look_at(self, pid: int, name: str) -> int:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status if line.startswith("Vm")}
        if "VmRSS" not in sizes:  # it has ended
            return 0
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(times[11]) + int(times[12])) / _TICK
        use = self.uses.setdefault(name, Use())
        use.starts += pid not in self._cpu
        use.cpu_seconds += cpu - self._cpu.get(pid, 0.0)
        self._cpu[pid] = cpu
        use.peak_bytes = max(use.peak_bytes, sizes["VmHWM"])
        return sizes["VmRSS"]


@contextlib.contextmanager
def confined(
    command: Sequence[str], core: int, limit_bytes: int, environment: Mapping[str, str], log: Path
) -> Iterator[Confined]:
    """Run a program on one core and within this memory; SIGTERM ends it afterwards."""
    group = _make_group(limit_bytes)

    def before_exec() -> None:
        os.sched_setaffinity(0, {core})
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))
        else:
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

    stopping = threading.Event()
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=os.environ | dict(environment), preexec_fn=before_exec
            )
        running = Confined(process, core, limit_bytes, group)

        def watch() -> None:
            while not stopping.wait(_LOOK_SECONDS):
                running.look()

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield running
        finally:
            stopping.set()
            watching.join()
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        if group is not None:
            _remove(group)


def _make_group(limit_bytes: int) -> Path | None:
    group = _GROUPS / f"lockgate-outage-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError:
        group.rmdir()
        return None
    return group


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 5
    while True:  # the kernel takes a moment after the last process
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f}"
