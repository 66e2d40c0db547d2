"""Our own services as real processes, which a test may kill."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from lockgate.telemetry import health
from tests.support.peers import free_port, wait_for_port


class Gateway:
    """A folder with a configuration, and the services that run from it; `toml` is appended to lockgate.toml."""

    def __init__(self, folder: Path, toml: str = "", mosquitto_conf: Sequence[str] = ()) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.log = folder / "gateway.log"
        self.toml = folder / "lockgate.toml"
        lines = [f"listener {self.port} 127.0.0.1", "allow_anonymous true", *mosquitto_conf]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        # The sockets lie in a short path of their own: Unix allows 107 bytes, pytest's folders come close.
        self.toml.write_text(
            '[gateway]\nid = "gw"\ndata_dir = "data"\n'
            f'[broker]\nmosquitto_conf = "mosquitto.conf"\n[processor]\nurl = "{self.url}"\n{toml}\n'
        )
        self.sockets = folder / "data" / "run"
        self.environment: dict[str, str] = {}  # further variables of the services
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, service: str) -> subprocess.Popen[bytes]:
        """Start a service and do not wait."""
        with self.log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "lockgate", "run", "--config", str(self.toml), service],
                stdout=stream,
                stderr=stream,
                env=os.environ | self.environment,
            )
        self._processes[service] = process
        return process

    def start(self, service: str) -> None:
        """Start a service and wait until it says it is ready."""
        process = self.launch(service)
        if service == "broker":
            wait_for_port(self.port, process, self.log)
        deadline = time.monotonic() + 15
        while True:
            if health.ask(self.sockets / f"{service}.sock") is not None:
                return
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{service} does not get ready: {self.log.read_text(errors='replace')}")
            time.sleep(0.02)

    @contextlib.contextmanager
    def running(self, *services: str) -> Iterator[Self]:
        """Start services, and end all that run however this goes."""
        try:
            for service in services:
                self.start(service)
            yield self
        finally:
            self.stop_all()

    def kill(self, service: str) -> None:
        """kill -9 a service."""
        process = self._processes.pop(service)
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def freeze(self, service: str) -> None:
        """Stop a service where it stands: it says nothing any more. What its threads have asked the kernel for goes on.

        Only `kill` may follow.
        """
        process = self._processes[service]
        process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{process.pid}/stat")
        while stat.read_bytes().rpartition(b")")[2].split()[0] != b"T":
            assert process.poll() is None

    def pid(self, service: str) -> int:
        """Give the process id of a service."""
        return self._processes[service].pid

    def signal(self, service: str, number: signal.Signals) -> None:
        """Send a signal to a service."""
        self._processes[service].send_signal(number)

    def stop(self, service: str) -> None:
        """SIGTERM a service; it must end by itself within three seconds."""
        process = self._processes.pop(service)
        process.send_signal(signal.SIGTERM)
        assert process.wait(3) == 0, self.log.read_text(errors="replace")

    def stop_all(self) -> None:
        """Stop what still runs, the last started first; used when a test is over, however it went."""
        for service in list(self._processes)[::-1]:
            process = self._processes.pop(service)
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def durable_broker(folder: Path, store: Path, *mosquitto_conf: str) -> Gateway:
    """A broker, not started yet, that keeps everything in the folder `store` and limits no queue."""
    settings = ["persistence true", f"persistence_location {store}/", "max_queued_messages 0", *mosquitto_conf]
    return Gateway(folder, mosquitto_conf=settings)
