"""Opening, checking and salvaging a database file."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from lockgate.sqlite import NewerFile, Schema, open_database
from lockgate.sqlite.database import find_damage, interrupted_salvages

SCHEMA = Schema(1, "CREATE TABLE t (id INTEGER PRIMARY KEY, x); CREATE INDEX t_x ON t (x)", ("t",))
ROWS = 3000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.sqlite"
    connection, damage = open_database(path, SCHEMA)
    assert damage is None
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, f"{n:06}" * 10) for n in range(1, ROWS + 1)])
    connection.close()
    return path


def overwrite(path: Path, offset: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * length)


def test_a_file_comes_back_as_it_was(path: Path) -> None:
    connection, damage = open_database(path, SCHEMA)
    assert damage is None
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (ROWS,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_damage_in_the_middle_costs_only_what_it_hit(path: Path, place: float) -> None:
    overwrite(path, int(path.stat().st_size * place) // 4096 * 4096, 8192)
    connection, damage = open_database(path, SCHEMA)
    assert damage is not None
    saved = connection.execute("SELECT id, x FROM t ORDER BY id").fetchall()
    assert damage.rows == {"t": len(saved)}
    assert ROWS - 200 <= len(saved) <= ROWS
    assert all(x == f"{n:06}" * 10 for n, x in saved)
    assert saved[0][0] == 1
    assert saved[-1][0] == ROWS
    assert damage.path.exists()
    assert ".damaged-" in damage.path.name
    assert "\n" not in damage.finding
    assert find_damage(path) is None


def test_a_file_without_a_readable_header_is_set_aside_and_begun_anew(path: Path) -> None:
    overwrite(path, 0, 4096)
    connection, damage = open_database(path, SCHEMA)
    assert damage is not None
    assert damage.rows == {"t": 0}
    connection.execute("INSERT INTO t (x) VALUES ('new')")


def test_rows_still_in_the_write_ahead_log_are_saved_too(path: Path) -> None:
    connection, _ = open_database(path, SCHEMA)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("INSERT INTO t VALUES (99999, 'in the log')")
    wal = path.with_name(path.name + "-wal")
    saved = wal.read_bytes()
    main = path.read_bytes()
    connection.close()
    path.write_bytes(main)
    wal.write_bytes(saved)
    overwrite(path, path.stat().st_size // 2 // 4096 * 4096, 4096)
    connection, damage = open_database(path, SCHEMA)
    assert damage is not None
    assert connection.execute("SELECT x FROM t WHERE id = 99999").fetchone() == ("in the log",)


def test_a_salvage_cut_short_is_taken_up_again(path: Path) -> None:
    os.rename(path, path.with_name("a.sqlite.salvaging-20200101T000000Z"))
    path.with_name("a.sqlite.new").write_bytes(b"half")
    assert interrupted_salvages(path.parent) == [path]
    connection, damage = open_database(path, SCHEMA)
    assert damage is not None
    assert damage.rows == {"t": ROWS}
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (ROWS,)
    assert interrupted_salvages(path.parent) == []
    connection.close()
    assert open_database(path, SCHEMA)[1] is None


def test_a_file_above_the_limit_is_not_read_through(path: Path) -> None:
    overwrite(path, int(path.stat().st_size * 0.9) // 4096 * 4096, 4096)
    assert find_damage(path) is not None
    assert find_damage(path, path.stat().st_size - 1) is None
    overwrite(path, 0, 4096)
    assert find_damage(path, path.stat().st_size - 1) is not None


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(NewerFile, match="format 7"):
        open_database(path, SCHEMA)
