"""What a service loads, and what it says when it cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Runs the command line as `lockgate` does, and leaves the names of all loaded modules in a file.
RECORDED = """
import sys
from lockgate.cli import main
try:
    code = main(sys.argv[2:])
finally:
    open(sys.argv[1], "w").write(" ".join(sys.modules))
sys.exit(code)
"""


@pytest.fixture
def toml(tmp_path: Path, unused_tcp_port: int) -> Path:
    (tmp_path / "mosquitto.conf").write_text(f"listener {unused_tcp_port} 127.0.0.1\nlog_dest stdout\n")
    path = tmp_path / "lockgate.toml"
    path.write_text('[gateway]\ndata_dir = "data"\n[broker]\nmosquitto_conf = "mosquitto.conf"\n')
    return path


def test_a_broker_alone_loads_none_of_what_others_need(toml: Path) -> None:
    with (toml.parent / "mosquitto.conf").open("a") as conf:
        conf.write("persistence false\n")
    modules = toml.parent / "modules"
    command = [sys.executable, "-c", RECORDED, str(modules), "run", "-c", str(toml), "broker"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("broker is ready" in line for line in process.stdout)
        os.kill(process.pid, signal.SIGTERM)
        process.stdout.read()  # or its last words would find nobody
    assert process.returncode == 0
    loaded = set(modules.read_text().split())
    assert "lockgate.net.service" in loaded
    heavy = {"aiohttp", "orjson", "rich", "sqlite3", "psutil", "ctypes", "argon2", "numpy", "lockgate.client"}
    heavy |= {"websockets", "lockgate.transport", "lockgate.net.layered"}
    assert not loaded & heavy


def test_a_port_in_use_is_named_with_the_program_that_holds_it(toml: Path) -> None:
    port = int((toml.parent / "mosquitto.conf").read_text().split()[1])
    with socket.create_server(("127.0.0.1", port)):
        command = [sys.executable, "-m", "lockgate", "run", "-c", str(toml), "broker"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"broker cannot run: port {port} on 127.0.0.1 is in use, held by " in done.stdout
    assert f"(pid {os.getpid()})" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
