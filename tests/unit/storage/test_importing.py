"""Mosquitto's store in the data folder is taken over, once."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from lockgate.broker.ports import RETAINED, SESSIONS, SUBSCRIPTIONS
from lockgate.storage.imported import UnreadableStore
from lockgate.storage.importing import ImportReport, import_once
from tests.support.imports import Rows
from tests.support.mosquitto_stores import DbWriter, SqliteWriter, fill

WALL = 1_900_000_000.0


def db(path: Path, version: int = 6) -> bytes:
    writer = DbWriter(version)
    writer.configuration()
    fill(writer, version >= 5)
    path.write_bytes(writer.data)
    return writer.data


def run(folder: Path, rows: Rows, name: str = "mosquitto.db") -> ImportReport | None:
    def sync() -> None:
        assert rows.rows  # written before
        assert (folder / name).exists()  # and not yet renamed

    return import_once(folder, name, rows, 3, 10.0, WALL, sync)


def test_a_folder_without_one_gives_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, Rows()) is None
    (tmp_path / "mosquitto.db").mkdir()
    assert run(tmp_path, Rows()) is None


def test_it_is_imported_once_and_renamed_when_the_change_is_safe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = db(tmp_path / "kept.db")
    rows = Rows()
    report = run(tmp_path, rows, "kept.db")
    assert report is not None
    assert (SESSIONS, ("durable",)) in rows.rows
    assert (RETAINED, ("state",)) in rows.rows
    assert report.path == tmp_path / "kept.db.imported"
    assert report.path.read_bytes() == data
    assert (report.form, report.damage, report.skipped) == ("mosquitto.db of version 6", "", {})
    assert report.counts.queued == 3
    assert "sessions 2, subscriptions 3, queued 3, in flight 3, received 1, retained 1" in caplog.text
    assert run(tmp_path, Rows(), "kept.db") is None


def test_an_earlier_import_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mosquitto.db.imported").write_text("from the last time")
    db(tmp_path / "mosquitto.db")
    report = run(tmp_path, Rows())
    assert report is not None
    assert report.path.name == "mosquitto.db.imported-2"
    assert (tmp_path / "mosquitto.db.imported").read_text() == "from the last time"


def test_a_database_is_renamed_with_what_lies_beside_it(tmp_path: Path) -> None:
    writer = SqliteWriter(tmp_path / "mosquitto.sqlite3")
    fill(writer, True)
    rows = Rows()
    report = import_once(tmp_path, "mosquitto.db", rows, 3, 10.0, WALL, lambda: None)
    assert report is not None
    assert report.form == "mosquitto.sqlite3 of schema 1.1"
    assert (SUBSCRIPTIONS, ("durable", "house/+")) in rows.rows
    assert (tmp_path / "mosquitto.sqlite3.imported-wal").exists()
    assert not list(tmp_path.glob("mosquitto.sqlite3-*"))
    writer.close()


@pytest.mark.parametrize("newer", ["mosquitto.db", "mosquitto.sqlite3"])
def test_of_two_the_newer_one_is_imported(tmp_path: Path, newer: str, caplog: pytest.LogCaptureFixture) -> None:
    writer = SqliteWriter(tmp_path / "mosquitto.sqlite3")
    fill(writer, True)
    writer.close()
    db(tmp_path / "mosquitto.db")
    for name in ("mosquitto.db", "mosquitto.sqlite3"):
        time = 2000 if name == newer else 1000
        os.utime(tmp_path / name, (time, time))
    report = import_once(tmp_path, "mosquitto.db", Rows(), 3, 10.0, WALL, lambda: None)
    assert report is not None
    assert report.path == tmp_path / f"{newer}.imported"
    older = "mosquitto.sqlite3" if newer == "mosquitto.db" else "mosquitto.db"
    assert (tmp_path / f"{older}.older").exists()
    assert f"{older} was not imported: {newer} is newer" in caplog.text
    assert import_once(tmp_path, "mosquitto.db", Rows(), 3, 10.0, WALL, lambda: None) is None


def test_of_a_damaged_one_all_before_the_damage_is_imported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = db(tmp_path / "mosquitto.db")
    (tmp_path / "mosquitto.db").write_bytes(data[:-5])
    rows = Rows()
    report = run(tmp_path, rows)
    assert report is not None
    assert (SESSIONS, ("durable",)) in rows.rows
    assert (RETAINED, ("state",)) not in rows.rows
    assert f"byte {len(data) - 16} of {len(data) - 5}: " in report.damage
    assert "is damaged, all before the damage was imported" in caplog.text
    assert report.path.read_bytes() == data[:-5]


def test_a_version_that_is_not_known_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.db"
    path.write_bytes(DbWriter(9).data)
    with pytest.raises(UnreadableStore, match=rf"{path} is a mosquitto.db of version 9"):
        run(tmp_path, Rows())
    assert [file.name for file in tmp_path.iterdir()] == ["mosquitto.db"]


def test_a_store_that_cannot_take_it_leaves_the_file_for_the_next_start(tmp_path: Path) -> None:
    data = db(tmp_path / "mosquitto.db")

    def full() -> None:
        raise OSError(28, "no space left on device")

    with pytest.raises(OSError, match="no space left"):
        import_once(tmp_path, "mosquitto.db", Rows(), 3, 10.0, WALL, full)
    assert [file.name for file in tmp_path.iterdir()] == ["mosquitto.db"]
    assert (tmp_path / "mosquitto.db").read_bytes() == data
