"""The units of packaging/systemd, as far as they can be tried without a systemd that runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lockgate import app

UNITS = Path(__file__).parents[2] / "packaging" / "systemd"
MOST_EXPOSED = 20  # tenths; systemd-analyze calls everything below "OK"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine"),
]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a program that is there, in a folder of their own."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/lockgate/bin/lockgate ", "/bin/true ")
        (tmp_path / unit.name).write_text(text)
    (tmp_path / "lockgate@broker.service").write_text((tmp_path / "lockgate@.service").read_text())
    return tmp_path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_understands_them(units: Path) -> None:
    for name in ("lockgate@broker.service", "lockgate.target"):
        said = analyze("verify", "--man=no", str(units / name))
        ours = [line for line in said.stderr.splitlines() if "lockgate" in line and "not executable" not in line]
        assert ours == []


def test_a_service_is_little_exposed(units: Path) -> None:
    unit = str(units / "lockgate@broker.service")
    said = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", unit)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "Overall exposure level" in said.stdout
    open_door = units / "lockgate@open.service"
    open_door.write_text("[Service]\nExecStart=/bin/true\n")
    assert analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(open_door)).returncode != 0


def test_the_target_wants_every_service_there_is() -> None:
    wanted = re.findall(r"lockgate@(\w+)\.service", (UNITS / "lockgate.target").read_text())
    assert wanted == list(app.SERVICES)
