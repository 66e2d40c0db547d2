"""A short run of the fuzzer on every test run; `make fuzz` is the long one."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.fuzzer import fuzz
from tests.fuzz.world import World

PACKETS = 60_000


@pytest.mark.parametrize("seed", [0, random.SystemRandom().randrange(1 << 40)], ids=["fixed", "drawn"])
def test_two_clients_find_nothing(seed: int) -> None:
    print(f"seed {seed}")
    worlds: dict[tuple[int, int], World] = {}
    failure = fuzz(range(seed, 1 << 41), PACKETS, worlds)
    assert failure is None, f"{failure.error}\n\n{failure.as_test()}"
    assert sum(world.packets for world in worlds.values()) >= PACKETS
