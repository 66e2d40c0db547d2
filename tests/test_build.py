"""The build under test is the one that was meant: `make test` runs the suite on both, named by EXPECT_COMPILED."""

from __future__ import annotations

import importlib
import os
import runpy
from pathlib import Path

import pytest

import lockgate

REPOSITORY = Path(__file__).parent.parent
EXTENSIONS = (".so", ".pyd")


def modules() -> dict[str, str]:
    """Name and file of every module that the compiled build compiles, as this run imports it."""
    paths = runpy.run_path(str(REPOSITORY / "setup.py"), run_name="asked")["modules"]()
    names = [".".join(Path(path).relative_to("src").with_suffix("").parts) for path in paths]
    return {name: importlib.import_module(name).__file__ or "" for name in names}


def test_every_module_comes_from_the_build_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
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
