"""The build under test is the one that was meant: `make test` runs the suite on both, named by EXPECT_COMPILED."""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lockgate

REPOSITORY = Path(__file__).parent.parent
EXTENSIONS = (".so", ".pyd")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py says."""
    monkeypatch.chdir(REPOSITORY)
    return runpy.run_path("setup.py", run_name="asked")


def modules(recipe: dict[str, Any]) -> dict[str, str]:
    """Name and file of every module that the compiled build compiles, as this run imports it."""
    names = [".".join(Path(path).relative_to("src").with_suffix("").parts) for path in recipe["modules"]()]
    return {name: importlib.import_module(name).__file__ or "" for name in names}


def test_every_module_comes_from_the_build_that_was_asked_for(recipe: dict[str, Any]) -> None:
    expected = os.environ.get("EXPECT_COMPILED")
    if expected is None:
        pytest.skip("EXPECT_COMPILED is not set: any build will do")
    files = modules(recipe)
    assert files, "there is nothing to compile"
    compiled = {name for name, file in files.items() if file.endswith(EXTENSIONS)}
    print(f"lockgate is imported from {Path(lockgate.__file__).parent}; {len(compiled)} of {len(files)} compiled")
    assert compiled == (set(files) if expected == "1" else set())


def test_a_build_needs_none_of_the_libraries(recipe: dict[str, Any], tmp_path: Path) -> None:
    """In the environment that pip makes for a build are setuptools and mypy alone."""
    alone = ["--no-site-packages", f"--cache-dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *alone, *recipe["MYPY_OPTIONS"], *recipe["modules"]()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_no_extension_lies_beside_the_sources() -> None:
    assert not [path for suffix in EXTENSIONS for path in (REPOSITORY / "src").rglob(f"*{suffix}")]
