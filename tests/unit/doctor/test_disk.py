from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.doctor import disk
from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding
from tests.support.machines import MadeUp, case_of
from tests.support.stores import fill, open_store, settle


def stored(folder: Path) -> Case:
    data = folder / "data"
    data.mkdir()
    return case_of(folder, "persistence true", f"persistence_location {data}")


def bad(found: Iterator[Finding]) -> list[Finding]:
    return [one for one in found if one.severity != "ok"]


def with_room(monkeypatch: pytest.MonkeyPatch, free: int, files: int = 10_000) -> None:
    real = os.statvfs

    def told(path: os.PathLike[str]) -> os.statvfs_result:
        values = list(real(path))
        values[1], values[4], values[5], values[7] = 4096, free // 4096, 100_000, files
        values[6] = files
        values[7] = files
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", told)


@pytest.mark.parametrize(("free", "severity"), [(10 << 20, "error"), (100 << 20, "warning")])
def test_little_room_is_told(free: int, severity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = stored(tmp_path)
    with_room(monkeypatch, free)
    (found,) = bad(disk.space(case))
    assert (found.check, found.severity, found.where) == ("disk-space", severity, str(tmp_path / "data"))


def test_few_inodes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = stored(tmp_path)
    with_room(monkeypatch, 10 << 30, files=5)
    (found,) = bad(disk.space(case))
    assert (found.check, found.severity) == ("inodes", "error")


def test_a_reserve_that_was_given_up_is_told(tmp_path: Path) -> None:
    case = dataclasses.replace(stored(tmp_path), status={"pid": 1, "status": {"store": {"persistence": True}}})
    assert [one.check for one in bad(disk.space(case))] == ["reserve"]
    for name in ("lockgate.reserve", "lockgate.reserve-2"):
        (tmp_path / "data" / name).touch()
    assert not bad(disk.space(case))


@pytest.mark.parametrize(
    ("kind", "severity"),
    [("overlay", "warning"), ("tmpfs", "warning"), ("nfs4", "error"), ("cifs", "error"), ("9p", "error"), ("ext4", "")],
)
def test_a_file_system_that_is_a_trap_is_told(kind: str, severity: str, tmp_path: Path) -> None:
    case = stored(tmp_path)
    assert isinstance(case.machine, MadeUp)
    case.machine.make_container()
    case.machine.mount(("/", "ext4"), (str(tmp_path / "data"), kind))
    assert [one.severity for one in disk.kind(case)] == ([severity] if severity else [])


def test_a_volume_that_nobody_named_is_told(tmp_path: Path) -> None:
    case = stored(tmp_path)
    assert isinstance(case.machine, MadeUp)
    source = f"/var/lib/docker/volumes/{'0f' * 32}/_data"
    case.machine.mount(("/", "overlay"), (str(tmp_path / "data"), "ext4"), source=source)
    (found,) = disk.kind(case)
    assert "without a name" in found.problem
    assert f"./data:{tmp_path / 'data'}" in found.advice


def test_sync_time_is_measured_and_nothing_remains(tmp_path: Path) -> None:
    (found,) = disk.sync_time(stored(tmp_path))
    assert found.severity in ("ok", "warning")
    assert "ms to keep a write" in found.problem
    assert not list((tmp_path / "data").iterdir())


def test_a_slow_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "measure", lambda _: 0.2)
    (found,) = disk.sync_time(stored(tmp_path))
    assert found.severity == "warning"
    assert "5 acknowledgements a second" in found.problem
    assert "ack_after" in found.advice


def test_a_disk_that_does_not_take_a_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    (found,) = disk.sync_time(stored(tmp_path))
    assert found.severity == "error"
    assert "Input/output error" in found.problem


def test_persistence_that_is_off_is_told(tmp_path: Path) -> None:
    (found,) = disk.kept(case_of(tmp_path, "listener 1883", "persistence false"))
    assert found.where == f"{tmp_path / 'mosquitto.conf'}:2"


def test_a_whole_store_is_good_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    case = stored(tmp_path)
    assert not list(disk.store(case))
    path = tmp_path / "data" / "lockgate.db"
    store, owner = open_store(tmp_path / "data")
    settle(store, owner, fill(store))
    store.close()
    assert [one.severity for one in disk.store(case)] == ["ok"]
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 3] = b"\xff" * 4096
    path.write_bytes(content)
    (found,) = disk.store(case)
    assert (found.severity, found.where) == ("error", str(path))
    assert "lockgate store check" in found.advice


def test_what_the_broker_says_of_its_store_is_told(tmp_path: Path) -> None:
    store = {"persistence": True, "path": "p", "error": "the disk is full", "damage": None}
    case = dataclasses.replace(stored(tmp_path), status={"pid": 1, "status": {"store": store}})
    (found,) = disk.store(case)
    assert (found.severity, found.where, found.problem) == ("error", "p", "the disk is full")
