"""mqtt.js against our broker."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.peers import program

pytestmark = pytest.mark.peers
HERE = Path(__file__).parent


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_conversation(broker: Gateway, version: int) -> None:
    if not (HERE / "node_modules" / "mqtt").is_dir():
        message = "mqtt.js is not installed (make test-peers)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    done = subprocess.run(
        [program("node"), str(HERE / "conversation.cjs"), str(broker.port), str(version)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["granted"] == [2]
    assert told["seen"] == [
        ["js/retained", "kept", 1, True],
        ["js/0", "m0", 0, False],
        ["js/1", "m1", 1, False],
        ["js/2", "m2", 2, False],
        ["js/end", "", 2, False],
    ]
