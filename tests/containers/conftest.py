"""What the tests of containers share. `make test-containers` builds the images they ask for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docker import docker, image

OPEN = "listener 1883\nallow_anonymous true\n"


@pytest.fixture(autouse=True)
def _image() -> None:
    """Skip where there is no image."""
    image()


@pytest.fixture(params=["", "-small"], ids=["gateway", "broker-small"])
def either(request: pytest.FixtureRequest) -> str:
    """Each of the two images."""
    return image(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder to be mounted, which other users may look into."""
    for parent in (tmp_path, *tmp_path.parents):  # pytest keeps them to itself
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    yield tmp_path
    docker("run", "--rm", "-v", f"{tmp_path}:/left", "--entrypoint", "chown", image(), "-R", "0:0", "/left")
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def config(folder: Path) -> Path:
    """A folder for /mosquitto/config, which lets everybody in."""
    made = folder / "config"
    made.mkdir()
    (made / "mosquitto.conf").write_text(OPEN)
    return made
