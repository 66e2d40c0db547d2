"""The image as one who runs eclipse-mosquitto would use it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.docker import Container, image
from tests.support.peers import program

pytestmark = [pytest.mark.containers, pytest.mark.timeout(120)]

OPEN = "listener 1883\nallow_anonymous true\n"
PUBLISHED = ("-p", "127.0.0.1:0:1883")


@pytest.fixture(autouse=True)
def _image() -> str:
    return image()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A folder to be mounted over /mosquitto/config, which lets everybody in."""
    tmp_path.chmod(0o755)
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "mosquitto.conf").write_text(OPEN)
    return folder


def publish(port: int, topic: str, text: str, *words: str) -> None:
    command = [program("mosquitto_pub"), "-p", str(port), "-t", topic, "-m", text, "-q", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


def receive(port: int, topic: str, *words: str) -> str:
    """Give one retained message."""
    command = [program("mosquitto_sub"), "-p", str(port), "-t", topic, "-C", "1", "-W", "10", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout


def test_the_documented_line_serves_debians_clients_through_a_published_port(config: Path, tmp_path: Path) -> None:
    mounts = ("-v", f"{config}:/mosquitto/config", "-v", "/mosquitto/data", "-v", "/mosquitto/log")
    with Container(*PUBLISHED, "-p", "127.0.0.1:0:9001", *mounts) as broker:
        broker.wait_for("running")
        publish(broker.port(), "here", "a word", "-r")
        assert receive(broker.port(), "here") == "a word\n"
