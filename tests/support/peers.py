"""Debian's mosquitto as a peer: a real process on a free port."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest


def program(name: str) -> str:
    """Where a peer's program is; without it the test is skipped, but never in CI."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        message = f"{name} is not installed (Debian: apt-get install mosquitto mosquitto-clients)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


# Ports below those of outgoing connections, one after the other from anywhere on
_FIRST_PORT = 10_000
_PORTS = max(20_000, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])) - _FIRST_PORT
_turns = itertools.count(random.SystemRandom().randrange(_PORTS))


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now, that nobody else was given, and no outgoing connection takes."""
    while True:
        port = _FIRST_PORT + next(_turns) % _PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for_port(
    port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 10.0, host: str = "127.0.0.1"
) -> None:
    """Return once something accepts connections there; fails with the log when the process ends or takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"nothing listens on port {port}: {log.read_text(errors='replace')}")
            time.sleep(0.01)


class Mosquitto:
    """One mosquitto; `extra` are further lines of its configuration."""

    def __init__(
        self,
        folder: Path,
        extra: Sequence[str] = (),
        *,
        anonymous: bool = True,
        port: int = 0,
        started: bool = True,
    ) -> None:
        self.port = port or free_port()
        self.folder = folder
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.log = folder / f"mosquitto-{self.port}.log"  # everything it says
        self._conf = folder / f"mosquitto-{self.port}.conf"
        lines = [
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'true' if anonymous else 'false'}",
            "log_dest stdout",
            "log_type all",
            *(["user root"] if os.geteuid() == 0 else []),  # it could not read the test's files otherwise
            *extra,
        ]
        self._conf.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        if started:
            self.start()

    def start(self) -> None:
        """Start it, on the same port as before."""
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                [program("mosquitto"), "-c", str(self._conf)], stdout=stream, stderr=stream, cwd=self.folder
            )
        wait_for_port(self.port, self._process, self.log)

    def kill(self) -> None:
        """kill -9: whatever was not on disk is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as an administrator would."""
        self._end(signal.SIGTERM)

    def save(self, path: Path, seconds: float = 10.0) -> None:
        """SIGUSR1: have it write its store, which must not be there yet, and wait until it is."""
        assert self._process is not None
        assert not path.exists()
        self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + seconds
        while not path.exists():  # it appears whole, by a rename
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no {path}: {self.log.read_text(errors='replace')}")
            time.sleep(0.01)

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(10)
        self._process = None
