"""The seeds of every target hold, and a short guided run finds nothing; `make fuzz` is the long one."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.guided.targets import SEEDS, TARGETS

REPOSITORY = Path(__file__).parents[3]
RUNS = 8_000


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_hold(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)
        for cut in range(len(seed)):
            TARGETS[name](seed[:cut])


@pytest.mark.parametrize("name", TARGETS)
def test_a_guided_run_finds_nothing(name: str) -> None:
    if os.environ.get("EXPECT_COMPILED") == "1":
        pytest.skip("coverage can be watched only where the code is interpreted; the other run of the suite does")
    if importlib.util.find_spec("atheris") is None:
        message = "atheris is not installed (pip install lockgate[fuzz])"
        has_wheel = sys.platform == "linux" and platform.machine() == "x86_64"
        pytest.fail(message) if os.environ.get("CI") and has_wheel else pytest.skip(message)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", name, f"-atheris_runs={RUNS}", "-rss_limit_mb=1024", "-timeout=10"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"Done {RUNS}" in done.stderr, done.stderr[-1000:]
