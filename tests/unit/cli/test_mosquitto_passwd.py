"""`mosquitto_passwd` where it is not Mosquitto's: what it keeps, refuses and writes."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from lockgate.access import hashes
from lockgate.access.password_file import PasswordFile
from lockgate.cli.mosquitto_passwd import main


class Stdin(io.TextIOWrapper):
    def __init__(self, text: bytes) -> None:
        super().__init__(io.BytesIO(text))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "passwords"


def test_argon2id_is_written_by_default_and_nobody_else_reads_the_file(file: Path) -> None:
    assert main(["-c", "-b", str(file), "anna", "secret"]) == 0
    assert file.read_text().startswith("anna:$argon2id$v=19$m=47104,t=1,p=1$")
    assert file.stat().st_mode & 0o777 == 0o600
    assert PasswordFile.load(file).users["anna"].verify(b"secret")


def test_other_lines_stay_as_they_are(file: Path) -> None:
    file.write_text("# the kitchen\n\nbert:$6$damaged\n")
    assert main(["-b", "-H", "sha512", str(file), "anna", "secret"]) == 0
    assert file.read_text().startswith("# the kitchen\n\nbert:$6$damaged\nanna:$6$")
    assert main(["-D", str(file), "anna"]) == 0
    assert file.read_text() == "# the kitchen\n\nbert:$6$damaged\n"


def test_an_upgrade_leaves_hashes_and_comments(file: Path) -> None:
    known = str(hashes.make(b"x", "sha512"))
    file.write_text(f"# c\nanna:secret\nbert:{known}\n")
    assert main(["-U", "-H", "sha512-pbkdf2", str(file)]) == 0
    assert file.read_text().splitlines()[::2] == ["# c", f"bert:{known}"]
    assert PasswordFile.load(file).users["anna"].verify(b"secret")


def test_an_upgrade_of_a_damaged_file_changes_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("anna:secret\nnonsense\n")
    assert main(["-U", str(file)]) == 1
    assert file.read_text() == "anna:secret\nnonsense\n"
    assert capsys.readouterr().err == "Error: Corrupt password file at line 2.\n"


@pytest.mark.parametrize("password", ["", None])
def test_an_empty_password_is_refused_in_batch_mode_too(
    file: Path, password: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(b""))
    words = ["-c", str(file), "anna"] if password is None else ["-c", "-b", str(file), "anna", password]
    assert main(words) == 1
    assert capsys.readouterr().err == "Error: Empty password.\n"
    assert not file.exists()


def test_the_file_may_be_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", "-b", "-H", "sha512", "-", "anna", "secret"]) == 0
    assert capsys.readouterr().out.startswith("anna:$6$")


def test_what_cannot_be_replaced_stays(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = file.with_name("target")
    target.write_text("")
    file.symlink_to(target)
    assert main(["-b", str(file), "anna", "secret"]) == 1
    assert "symbolic link" in capsys.readouterr().err
    assert target.read_text() == ""


def test_passwords_are_bytes(file: Path) -> None:
    assert main(["-c", "-b", "-H", "sha512", str(file), "anna", os.fsdecode(b"p\xff")]) == 0
    assert PasswordFile.load(file).users["anna"].verify(b"p\xff")


def test_iterations_that_no_login_should_wait_for_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for algorithm, most in (("argon2id", "356"), ("sha512-pbkdf2", "10000000")):
        assert main(["-H", algorithm, "-I", "10000001", "-c", "-b", "-", "u", "p"]) == 1
        assert f"must be at most {most}" in capsys.readouterr().err
