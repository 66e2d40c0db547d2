"""Files of secrets: who else can read them, and how they are replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lockgate.access import secret_file
from lockgate.config.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    path.write_bytes(b"old\n")
    path.chmod(0o640)
    return path


def test_a_link_is_refused_unless_the_environment_allows_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(ConfigError, match="is a symbolic link.*MOSQUITTO_UNSAFE_ALLOW_SYMLINKS"):
        secret_file.read(link)
    with pytest.raises(OSError, match="symbolic link"):
        secret_file.replace(link, b"new\n")
    monkeypatch.setenv(secret_file.SYMLINKS_VARIABLE, "1")
    assert secret_file.read(link) == b"old\n"
    secret_file.replace(link, b"new\n")
    assert link.is_symlink()
    assert file.read_bytes() == b"new\n"


def test_a_file_everybody_can_read_is_warned_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret_file.read(file)
    assert not caplog.records
    file.chmod(0o644)
    secret_file.read(file)
    assert "readable by everybody" in caplog.text


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: cannot be read: No such file"):
        secret_file.read(tmp_path / "nowhere")


def test_the_line_that_is_not_utf8_is_named(file: Path) -> None:
    file.write_bytes(b"one\ntwo\nth\xffree\n")
    with pytest.raises(ConfigError, match="passwords:3: is not UTF-8"):
        secret_file.read_text(file)


def test_replacing_keeps_who_may_read_and_leaves_nothing_beside_it(file: Path) -> None:
    secret_file.replace(file, b"new\n")
    assert file.read_bytes() == b"new\n"
    assert file.stat().st_mode & 0o777 == 0o640
    secret_file.replace(file.with_name("other"), b"x")
    assert file.with_name("other").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["other", "passwords"]


def test_a_link_laid_where_the_new_file_is_written_is_not_followed(file: Path) -> None:
    victim = file.with_name("victim")
    victim.write_bytes(b"mine")
    file.with_name("passwords.new").symlink_to(victim)
    secret_file.replace(file, b"new\n")
    assert victim.read_bytes() == b"mine"
    assert not file.is_symlink()


def test_what_cannot_be_written_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        secret_file.replace(file, b"new\n")
    assert file.read_bytes() == b"old\n"
    assert [path.name for path in file.parent.iterdir()] == ["passwords"]
