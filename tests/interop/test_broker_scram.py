"""Enhanced authentication with SCRAM-SHA-256, by mqtt.js with node's own cryptography."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.peers import program

pytestmark = pytest.mark.peers
HERE = Path(__file__).parent


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
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
    done = subprocess.run(
        [program("node"), str(HERE / "scram.cjs"), str(broker.port), user, password],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == told
