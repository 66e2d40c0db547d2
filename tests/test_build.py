"""The build under test is the one that was meant: `make test` runs the suite on both, named by EXPECT_COMPILED."""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

import pytest

import lockgate.broker
import lockgate.mqtt

REPOSITORY = Path(__file__).parent.parent
COMPILED_PACKAGES = (lockgate.mqtt, lockgate.broker)
COMPILED_MODULES = ("lockgate.storage.changes",)
EXTENSIONS = (".so", ".pyd")


def modules() -> dict[str, str]:
    """Name and file of every module that the compiled build compiles, as this run imports it."""
    names = [
        info.name
        for package in COMPILED_PACKAGES
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return {name: importlib.import_module(name).__file__ or "" for name in (*names, *COMPILED_MODULES)}


def test_every_module_comes_from_the_build_that_was_asked_for() -> None:
    expected = os.environ.get("EXPECT_COMPILED")
    if expected is None:
        pytest.skip("EXPECT_COMPILED is not set: any build will do")
    files = modules()
    assert files, "there is nothing to compile"
    compiled = {name for name, file in files.items() if file.endswith(EXTENSIONS)}
    print(f"lockgate is imported from {Path(lockgate.__file__).parent}; {len(compiled)} of {len(files)} compiled")
    assert compiled == (set(files) if expected == "1" else set())


def test_no_extension_lies_beside_the_sources() -> None:
    assert not [path for suffix in EXTENSIONS for path in (REPOSITORY / "src").rglob(f"*{suffix}")]
