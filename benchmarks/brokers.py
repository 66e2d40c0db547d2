"""Starts Lockgate's and Debian's brokers, each on one core, and reads what they cost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BROKER_CORE = 0
LOAD_CORE = min(1, (os.cpu_count() or 1) - 1)

# The same file for both. Queues are unbounded in count so that neither drops what the other delivers.
CONFIGURATION = """\
listener {port} 127.0.0.1
allow_anonymous true
max_queued_messages 0
log_type error
"""


@dataclass(frozen=True)
class Program:
    """A broker's name, how it is started, and what its mosquitto.conf says more than that of the others."""

    name: str
    command: tuple[str, ...]  # `{folder}` stands for the one it runs in, `{port}` for where it listens
    more: str = ""  # `{folder}` here, too

    def saying(self, name: str, more: str) -> Program:
        """Give the same broker with more in its file, under another name."""
        return Program(name, self.command, self.more + more)


def lockgate(name: str = "lockgate", python: str = sys.executable) -> Program:
    """Give our own broker, as it is installed beside a Python interpreter."""
    return Program(name, (python, "-m", "lockgate", "run", "--config", "{folder}/lockgate.toml", "broker"))


def mosquitto() -> Program | None:
    """Give Debian's mosquitto, where it is installed."""
    path = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Program("mosquitto", (path, "-c", "{folder}/mosquitto.conf")) if path else None


def both() -> list[Program]:
    """Give our broker and the peer, as far as it is installed; without it there is nothing to compare with."""
    peer = mosquitto()
    if peer is None:
        print("mosquitto is not installed (Debian: apt-get install mosquitto): no comparison")
        return [lockgate()]
    return [lockgate(), peer]


def without_nagle() -> list[Program]:
    """Give the peer as an owner configures it to whom delay matters; empty where it is not installed."""
    peer = mosquitto()
    return [Program("its nodelay", peer.command, "set_tcp_nodelay true\n")] if peer is not None else []


@dataclass(frozen=True)
class Running:
    """A broker that accepts connections."""

    name: str
    pid: int
    port: int
    ready_seconds: float
    folder: Path

    def cpu_seconds(self) -> float:
        """Give the processor time of all its threads so far, to the nanosecond."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def bytes_written(self) -> int:
        """Give what it has written to the disk so far, as the kernel counts it (write_bytes)."""
        for line in Path(f"/proc/{self.pid}/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
        raise RuntimeError("no write_bytes")

    def kill(self) -> None:
        """End it as a power cut would."""
        os.kill(self.pid, signal.SIGKILL)

    def resident_bytes(self) -> int:
        """Give its resident memory (VmRSS)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no VmRSS")


def free_port() -> int:
    """Give a TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(program: Program, again: Path | None = None) -> Iterator[Running]:
    """Start a broker in a folder of its own on one core, wait until it accepts, and end it afterwards.

    `again` is the folder of an earlier run, which is then not removed.
    """
    port = free_port()
    new = tempfile.TemporaryDirectory(prefix="lockgate-bench-") if again is None else contextlib.nullcontext(str(again))
    with new as folder:
        Path(folder, "mosquitto.conf").write_text(CONFIGURATION.format(port=port) + program.more.format(folder=folder))
        Path(folder, "lockgate.toml").write_text(
            f'[gateway]\nid = "bench"\ndata_dir = "{folder}"\n[broker]\nmosquitto_conf = "mosquitto.conf"\n'
        )
        command = [part.format(folder=folder, port=port) for part in program.command]
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=folder,
            preexec_fn=lambda: os.sched_setaffinity(0, {BROKER_CORE}),
        )
        try:
            ready = _wait(port, process) - started
            yield Running(program.name, process.pid, port, ready, Path(folder))
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()


def _wait(port: int, process: subprocess.Popen[bytes]) -> float:
    deadline = time.perf_counter() + 10
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            error = process.stderr.read().decode(errors="replace") if process.stderr is not None else ""
            raise RuntimeError(f"{process.args!r} ended at once: {error}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return time.perf_counter()
        time.sleep(0.002)
    raise RuntimeError(f"{process.args!r} does not accept connections")
