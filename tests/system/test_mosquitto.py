"""`lockgate mosquitto -c FILE`, and the commands that ask it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dialog import Dialog
from tests.support.peers import free_port, wait_for_port

LOCKGATE = [sys.executable, "-m", "lockgate"]
WAIT = 10.0


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def conf(tmp_path: Path, port: int) -> Path:
    path = tmp_path / "mosquitto.conf"
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence false", "sys_interval 0"]
    path.write_text("\n".join([*lines, "user root" if os.geteuid() == 0 else ""]) + "\n")
    return path


@pytest.fixture
def broker(conf: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    log = conf.with_name("log")
    with log.open("wb") as stream:
        process = subprocess.Popen([*LOCKGATE, "mosquitto", "-c", str(conf)], stdout=stream, stderr=stream)
    wait_for_port(port, process, log)
    yield process
    process.terminate()
    process.wait(WAIT)


def ask(*words: str) -> str:
    answer = subprocess.run([*LOCKGATE, *words], capture_output=True, text=True, timeout=WAIT, check=False)
    return answer.stdout + answer.stderr


@pytest.mark.skipif(
    not os.access("/run", os.W_OK) and "XDG_RUNTIME_DIR" not in os.environ, reason="no folder for status sockets"
)
def test_its_configuration_is_enough_to_ask_it(conf: Path, port: int, broker: subprocess.Popen[bytes]) -> None:
    with Dialog(port, "somebody"):
        assert "somebody" in ask("session", "list", "-c", str(conf))
        command = [*LOCKGATE, "mosquitto", "-c", str(conf)]
        second = subprocess.run(command, capture_output=True, timeout=WAIT, check=False)
        assert second.returncode != 0
        assert "somebody" in ask("session", "list", "-c", str(conf))
        assert "no session" in ask("explain", "-c", str(conf), "--client", "nobody", "--topic", "t").lower()
    broker.send_signal(signal.SIGKILL)
    broker.wait(WAIT)
    assert "does not answer" in ask("session", "list", "-c", str(conf))
