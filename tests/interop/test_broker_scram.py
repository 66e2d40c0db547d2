"""Enhanced authentication with SCRAM-SHA-256, by mqtt.js with node's own cryptography."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.peers import program

pytestmark = pytest.mark.peers
HERE = Path(__file__).parent


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    if not (HERE / "node_modules" / "mqtt").is_dir():
        message = "mqtt.js is not installed (make test-peers)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    file = tmp_path / "users"
    add = [sys.executable, "-m", "lockgate", "scram", str(file), "ann"]
    subprocess.run(add, input=b"open sesame\n", check=True)
    monkeypatch.setenv("LOCKGATE_BROKER_SCRAM_FILE", str(file))
    gateway = Gateway(tmp_path, mosquitto_conf=["allow_anonymous false"])
    gateway.start("broker")
    yield gateway
    gateway.stop_all()


@pytest.mark.parametrize(
    ("user", "password", "told"),
    [
        ("ann", "open sesame", {"code": 0, "signed": True}),
        ("ann", "open", {"code": 0x87}),
        ("bob", "open sesame", {"code": 0x87}),
    ],
)
def test_mqtt_js_logs_in(broker: Gateway, user: str, password: str, told: dict[str, object]) -> None:
    assert log_in(broker, user, password) == told


def log_in(broker: Gateway, user: str, password: str) -> object:
    done = subprocess.run(
        [program("node"), str(HERE / "scram.cjs"), str(broker.port), user, password],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_users_are_read_again_on_sighup(broker: Gateway) -> None:
    users = broker.folder / "users"
    good = users.read_text()
    for text, told in (
        ("ann:secret\n", "The configuration stays as it was. "),
        (good.replace("ann:", "bob:"), "The new configuration is in use."),
    ):
        users.write_text(text)
        broker.signal("broker", signal.SIGHUP)
        wait_for_text(broker.log, told)
    assert log_in(broker, "bob", "open sesame") == {"code": 0, "signed": True}
    assert log_in(broker, "ann", "open sesame") == {"code": 0x87}


def wait_for_text(path: Path, text: str) -> None:
    deadline = time.monotonic() + 10
    while text not in path.read_text():
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.02)
