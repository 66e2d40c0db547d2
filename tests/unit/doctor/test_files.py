from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.doctor import files
from lockgate.doctor.finding import Finding
from lockgate.doctor.machine import User, ourselves
from tests.support.machines import MadeUp, case_of

SOMEBODY = User("somebody", 54321, 54321)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def look(folder: Path, *lines: str, user: User | None = SOMEBODY) -> list[Finding]:
    case = case_of(folder, *lines, *([] if "persistence true" in lines else ["persistence false"]))
    if user is not None:
        assert isinstance(case.machine, MadeUp)
        ids = "\t".join([str(user.uid)] * 4)
        case.machine.write("proc/7/status", f"Uid:\t{ids}\nGid:\t{ids}\nGroups:\t\n")
        case = dataclasses.replace(case, status={"pid": 7, "status": {}})
    return list(files.access(case))


def bad(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.severity != "ok"]


def secret(folder: Path, mode: int) -> Path:
    path = folder / "passwords"
    path.write_text("")
    path.chmod(mode)
    return path


def data(folder: Path, mode: int) -> Path:
    path = folder / "data"
    path.mkdir()
    path.chmod(mode)
    return path


def test_what_the_user_may_use_is_good(folder: Path) -> None:
    place = data(folder, 0o777)
    assert not bad(look(folder, "persistence true", f"persistence_location {place}"))


def test_a_data_folder_of_another_user_is_told_with_chown(folder: Path) -> None:
    place = data(folder, 0o755)
    (found,) = bad(look(folder, "persistence true", f"persistence_location {place}"))
    assert (found.check, found.severity) == ("owner", "error")
    assert found.where == f"{folder / 'mosquitto.conf'}:2"
    assert f"uid {os.geteuid()}" in found.problem
    assert "mode 0755" in found.problem
    assert found.advice == f"chown -R 54321:54321 {place}"


def test_a_store_of_another_user_in_a_good_folder_is_told(folder: Path) -> None:
    place = data(folder, 0o777)
    (place / "lockgate.db").write_bytes(b"")
    (place / "lockgate.db").chmod(0o644)
    (found,) = bad(look(folder, "persistence true", f"persistence_location {place}"))
    assert found.advice == f"chown 54321:54321 {place / 'lockgate.db'}"


def test_a_data_folder_that_is_not_made_yet_is_looked_for_above(folder: Path) -> None:
    place = data(folder, 0o755)
    (found,) = bad(look(folder, "persistence true", f"persistence_location {place}/new"))
    assert f"{place}/new" in found.problem
    assert "chown" in found.advice


def test_a_folder_above_that_shuts_the_user_out_is_named(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir()
    (closed / "acl").write_text("")
    closed.chmod(0o700)
    (found,) = bad(look(folder, f"acl_file {closed / 'acl'}"))
    assert f": {closed} (" in found.problem
    assert found.advice == f"chmod o+x {closed}"


def test_secrets_that_the_user_may_not_read_are_told(folder: Path) -> None:
    path = secret(folder, 0o600)
    (found,) = bad(look(folder, f"password_file {path}"))
    assert "may not read" in found.problem
    assert found.advice == f"chown 54321:54321 {path} && chmod 0600 {path}"


def test_secrets_that_everybody_may_read_are_told(folder: Path) -> None:
    path = secret(folder, 0o644)
    (found,) = bad(look(folder, f"password_file {path}"))
    assert (found.check, found.severity) == ("secret", "warning")
    assert found.advice == f"chmod o= {path}"


def test_a_bridge_password_makes_the_configuration_a_secret(folder: Path) -> None:
    found = bad(
        look(folder, "connection c", "address example.org", "topic # out", "remote_username u", "remote_password p")
    )
    assert [one.check for one in found] == ["secret"]


def test_a_file_that_is_missing_is_told_with_its_line(folder: Path) -> None:
    (found,) = bad(look(folder, "# first", f"password_file {folder / 'none'}"))
    assert (found.check, found.where) == ("missing", f"{folder / 'mosquitto.conf'}:2")
    assert "mount" in found.advice


def test_a_file_that_is_missing_in_a_closed_folder_is_missing_first(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    found = bad(look(folder, f"acl_file {closed / 'none'}", f"log_dest file {closed}/log"))
    assert [one.check for one in found] == ["missing", "owner"]


def test_a_log_folder_that_may_not_be_written_is_told(folder: Path) -> None:
    (found,) = bad(look(folder, f"log_dest file {folder}/broker.log"))
    assert "the log" in found.problem


def test_the_group_may_do_what_its_bits_say(folder: Path) -> None:
    path = secret(folder, 0o640)
    status = path.stat()
    assert User("a", 54321, status.st_gid).may(status, 4)
    assert User("a", 54321, 54321, frozenset({status.st_gid})).may(status, 4)
    assert not User("a", 54321, status.st_gid).may(status, 2)
    assert not User("a", 54321, 54321).may(status, 4)


def test_a_read_only_file_system_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = data(folder, 0o777)
    real = os.statvfs

    def read_only(path: os.PathLike[str]) -> object:
        values = list(real(path))
        values[8] |= os.ST_RDONLY
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", read_only)
    (found,) = bad(look(folder, "persistence true", f"persistence_location {place}"))
    assert found.check == "read-only"
    assert ":ro" in found.advice


@pytest.mark.skipif(os.geteuid() == 0, reason="root may everything")
def test_our_own_user_is_asked_for_where_no_broker_runs(folder: Path) -> None:
    place = data(folder, 0o500)
    (found,) = bad(look(folder, "persistence true", f"persistence_location {place}", user=None))
    assert str(ourselves()) in found.problem
