"""The same conversations with us and with Debian's mosquitto; `make fuzz` plays many more of them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.fuzz.differential import Comparison
from tests.support.gateway import Gateway
from tests.support.peers import Mosquitto

pytestmark = pytest.mark.peers
CASES = int(os.environ.get("DIFFERENTIAL_CASES", "80"))
# A new conversation may show a difference that nobody has looked at yet: that is for `make fuzz` to find.
SEEDS = [0, random.SystemRandom().randrange(1 << 40) if "DIFFERENTIAL_CASES" in os.environ else 1 << 39]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """One process of each broker."""
    # allow_duplicate_messages is mosquitto's default by its manual, and not by what Debian's does
    lines = ["set_tcp_nodelay true", "sys_interval 0", "allow_duplicate_messages true"]
    mosquitto = Mosquitto(tmp_path_factory.mktemp("mosquitto"), lines)
    # A packet that waits for a sync of the disk comes later than the oracle looks.
    gateway = Gateway(tmp_path_factory.mktemp("lockgate"), mosquitto_conf=["persistence false", "sys_interval 0"])
    try:
        gateway.start("broker")
        yield Comparison(mosquitto.port, gateway.port)
    finally:
        gateway.stop_all()
        mosquitto.stop()


@pytest.mark.parametrize("seed", SEEDS)
def test_clients_see_the_same(comparison: Comparison, seed: int) -> None:
    before = comparison.steps
    for case in range(seed, seed + CASES):
        found = comparison.play(case)
        assert found is None, f"{found}"
    print(f"seed {seed}: {CASES} cases, {comparison.steps - before} steps; known differences: {comparison.met}")
    assert comparison.steps - before > CASES
