"""What systemd is told by a broker that a unit of Mosquitto starts: `Type=notify`, with `WatchdogSec`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.telemetry.service_manager import ALIVE, READY, STOPPING, tell
from tests.support.peers import free_port


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What would be systemd's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(15)
        yield sock


@pytest.mark.parametrize("watchdog", [True, False])
def test_a_broker_tells_when_it_is_ready_alive_and_stopping(
    tmp_path: Path, manager: socket.socket, watchdog: bool
) -> None:
    conf, port = tmp_path / "mosquitto.conf", free_port()
    user = "user root\n" if os.geteuid() == 0 else ""
    conf.write_text(f"listener {port} 127.0.0.1\npersistence false\n{user}")
    environment = os.environ | {"NOTIFY_SOCKET": manager.getsockname()}
    if watchdog:
        environment["WATCHDOG_USEC"] = "100000"
    command = [sys.executable, "-m", "lockgate", "mosquitto", "-c", str(conf)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        told = [manager.recv(100).decode() for _ in range(4 if watchdog else 1)]
        assert sorted(told) == sorted([READY, *[ALIVE] * (len(told) - 1)])
        socket.create_connection(("127.0.0.1", port), 5).close()  # ready means that
        process.send_signal(signal.SIGTERM)
        last = ALIVE
        while last == ALIVE:
            last = manager.recv(100).decode()
        assert last == STOPPING
        assert process.wait(10) == 0


def test_a_manager_that_is_gone_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    tell(READY)
    monkeypatch.delenv("NOTIFY_SOCKET")
    tell(READY)


def test_an_abstract_socket_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"lockgate-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        tell(READY)
        assert sock.recv(100).decode() == READY
