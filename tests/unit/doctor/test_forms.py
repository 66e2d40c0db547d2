from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockgate.cli import main
from lockgate.doctor import forms
from lockgate.doctor.case import Case
from tests.support.machines import MadeUp, case_of


@pytest.mark.parametrize(
    ("line", "inside"),
    [
        ("password_file C:\\mosquitto\\passwords", "/mosquitto/config/passwords"),
        ("acl_file C:/mosquitto/acl", "/mosquitto/config/acl"),
        ("acl_file /c/Users/me/acl", "/mosquitto/config/acl"),
        ("acl_file config\\acl", "/mosquitto/config/acl"),
        ("persistence_location D:\\data\\", "/mosquitto/data/"),
        ("log_dest file C:\\log\\mosquitto.log", "/mosquitto/log/mosquitto.log"),
    ],
)
def test_a_path_of_windows_is_told_with_the_one_inside(line: str, inside: str, tmp_path: Path) -> None:
    case = case_of(tmp_path, "listener 1883", line)
    (found,) = forms.paths(case)
    assert (found.severity, found.where) == ("error", f"{case.path}:2")
    assert line.split(" ")[-1] in found.problem
    assert inside in found.advice


def test_a_path_of_linux_is_nothing_to_tell(tmp_path: Path) -> None:
    assert not list(forms.paths(case_of(tmp_path, "acl_file /mosquitto/config/acl", "password_file p")))


def test_line_ends_of_windows_are_told_with_their_line(tmp_path: Path) -> None:
    case = case_of(tmp_path, "listener 1883", "allow_anonymous true\r")
    (found,) = forms.line_ends(case)
    assert (found.check, found.severity, found.where) == ("line-ends", "warning", f"{case.path}:2")
    assert "sed -i" in found.advice


def test_a_byte_order_mark_is_told(tmp_path: Path) -> None:
    conf = tmp_path / "mosquitto.conf"
    conf.write_bytes(b"\xef\xbb\xbflistener 1883\n")
    (found,) = forms.line_ends(Case(conf, None, MadeUp(tmp_path / "m"), conf))
    assert (found.check, found.severity, found.where) == ("byte-order-mark", "error", f"{conf}:1")


def test_utf_16_is_told(tmp_path: Path) -> None:
    conf = tmp_path / "mosquitto.conf"
    conf.write_bytes("listener 1883\n".encode("utf-16"))
    (found,) = forms.line_ends(Case(conf, None, MadeUp(tmp_path / "m"), conf))
    assert "iconv" in found.advice


def test_a_folder_for_a_password_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "passwords").mkdir()
    case = case_of(tmp_path, f"password_file {tmp_path / 'passwords'}")
    (found,) = forms.folders(case)
    assert (found.check, found.where) == ("folder", f"{case.path}:1")
    assert "Docker makes" in found.why


def test_a_folder_at_mosquitto_conf_is_the_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "mosquitto.conf"
    conf.mkdir()
    assert main(["doctor", "--json", "-c", str(conf)]) == 3
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["check"], found["where"]) == ("folder", str(conf))
    assert "rmdir" in found["advice"]


def test_a_folder_that_a_lockgate_toml_names_is_the_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mosquitto.conf").mkdir()
    toml = tmp_path / "lockgate.toml"
    toml.write_text('[broker]\nmosquitto_conf = "mosquitto.conf"\n')
    assert main(["doctor", "--json", "-c", str(toml)]) == 3
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert found["check"] == "folder"


@pytest.mark.parametrize(
    "line",
    [
        "      - C:\\mosquitto\\config:/mosquitto/config",
        '      - "/c/me/config:/mosquitto/config:ro"',
        "        source: C:/me",
    ],
)
def test_a_bind_mount_of_windows_beside_the_configuration_is_told(line: str, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(f"services:\n  broker:\n    volumes:\n{line}\n")
    (found,) = forms.compose(case_of(tmp_path, "listener 1883"))
    assert found.where == f"{tmp_path / 'compose.yaml'}:4"
    assert "makes a new, empty folder" in found.why


def test_bind_mounts_of_linux_are_nothing_to_tell(tmp_path: Path) -> None:
    lines = ["      - ./config:/mosquitto/config", "      - data:/mosquitto/data", '      - "1883:1883"']
    (tmp_path / "docker-compose.yml").write_text("\n".join(lines))
    assert not list(forms.compose(case_of(tmp_path, "listener 1883")))
