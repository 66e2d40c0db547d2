"""`lockgate check` and bridges."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.cli import main


def check(folder: Path, *lines: str) -> int:
    (folder / "mosquitto.conf").write_text("\n".join(["connection b", "address h:1884 i", "topic #", *lines]) + "\n")
    toml = folder / "lockgate.toml"
    toml.write_text('[broker]\nmosquitto_conf = "mosquitto.conf"\n')
    return main(["check", str(toml)])


def test_bridges_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path) == 0
    assert "bridge     b: h:1884, i:1883" in capsys.readouterr().out


def test_a_file_that_cannot_be_used_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("nothing")
    assert check(tmp_path, f"bridge_cafile {broken}") != 0
    told = capsys.readouterr().err
    assert f"bridge_cafile: {broken} no certificates in PEM." in told
    assert "mosquitto.conf:4" in told
