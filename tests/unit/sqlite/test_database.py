"""Opening, checking and salvaging a database file."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from lockgate.buffer.cursor import CURSOR
from lockgate.buffer.segments import SEGMENT
from lockgate.sqlite import NewerFile, Schema, open_database
from lockgate.sqlite.database import find_damage, first_page, interrupted_salvages
from lockgate.storage.schema import SCHEMA as STORE

SCHEMA = Schema(1, "CREATE TABLE t (id INTEGER PRIMARY KEY, x); CREATE INDEX t_x ON t (x)", ("t",))
ROWS = 3000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.sqlite"
    connection, damage = open_database(path, SCHEMA)
    assert damage is None
    insert(connection, [(n, f"{n:06}" * 10) for n in range(1, ROWS + 1)])
    connection.close()
    return path


def insert(connection: sqlite3.Connection, rows: list[tuple[int, str]]) -> None:
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    connection.execute("COMMIT")


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


@pytest.mark.parametrize("sector", [None, *range(8)])
@pytest.mark.parametrize("killed", [False, True])
def test_damage_to_the_first_page_costs_no_row(path: Path, tmp_path: Path, sector: int | None, killed: bool) -> None:
    if killed:
        running, _ = open_database(path, SCHEMA)
        insert(running, [(n, f"{n:06}" * 10) for n in range(ROWS + 1, ROWS + 101)])
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", tmp_path / f"killed.sqlite{suffix}")
        path = tmp_path / "killed.sqlite"
    data = bytearray(path.read_bytes())
    place = slice(0, 4096) if sector is None else slice(512 * sector, 512 * sector + 512)
    is_in_use = any(data[place])
    data[place] = bytes(place.stop - place.start)
    path.write_bytes(data)
    connection, damage = open_database(path, SCHEMA)
    assert connection.execute("SELECT count(*), max(x) FROM t").fetchone()[0] == ROWS + 100 * killed
    assert (damage is not None) == (is_in_use and not killed)
    connection.execute("INSERT INTO t (x) VALUES ('new')")
    assert not list(tmp_path.glob("*.copy*"))


def test_a_file_that_is_no_database_is_set_aside_and_begun_anew(path: Path) -> None:
    path.write_text("a letter\n" * 1000)
    connection, damage = open_database(path, SCHEMA)
    assert damage is not None
    assert damage.rows == {"t": 0}
    assert damage.path.read_text() == "a letter\n" * 1000
    connection.execute("INSERT INTO t (x) VALUES ('new')")


@pytest.mark.parametrize("schema", [STORE, SEGMENT, CURSOR], ids=["store", "segment", "cursor"])
def test_a_schema_fits_into_the_first_page(schema: Schema) -> None:
    assert first_page(schema)[100] == 13, "a leaf of a table"


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


SECOND = Schema(
    2,
    """
        CREATE TABLE t (id INTEGER PRIMARY KEY, x, y TEXT NOT NULL DEFAULT '');
        CREATE INDEX t_x ON t (x);
        CREATE TABLE u (id INTEGER PRIMARY KEY);
        CREATE TRIGGER added AFTER INSERT ON t BEGIN INSERT INTO u VALUES (NEW.id); SELECT 1; END;
    """,
    ("t", "u"),
    {
        1: """
            ALTER TABLE t ADD COLUMN y TEXT NOT NULL DEFAULT '';
            CREATE TABLE u (id INTEGER PRIMARY KEY);
            CREATE TRIGGER added AFTER INSERT ON t BEGIN INSERT INTO u VALUES (NEW.id); SELECT 1; END;
        """
    },
)


def test_an_older_file_is_brought_up_to_date(path: Path) -> None:
    for _ in range(2):
        connection, damage = open_database(path, SECOND)
        assert damage is None
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT count(*), max(y) FROM t").fetchone() == (ROWS, "")
        connection.close()
    connection, _ = open_database(path, SECOND)
    connection.execute("INSERT INTO t (id) VALUES (99999)")
    assert connection.execute("SELECT id FROM u").fetchall() == [(99999,)]
    connection.close()
    with pytest.raises(NewerFile, match="format 2; this program knows formats up to 1"):
        open_database(path, SCHEMA)


def test_a_migration_that_fails_half_way_changes_nothing(path: Path) -> None:
    failing = Schema(2, SECOND.statements, SECOND.tables, {1: SECOND.migrations[1] + "INSERT INTO nowhere VALUES (1);"})
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        open_database(path, failing)
    connection, damage = open_database(path, SCHEMA)
    assert damage is None
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert [row[1] for row in connection.execute("PRAGMA table_info(t)")] == ["id", "x"]
    connection.close()
    assert open_database(path, SECOND)[0].execute("SELECT count(*) FROM t").fetchone() == (ROWS,)


def test_a_damaged_older_file_is_salvaged_into_this_version(path: Path) -> None:
    overwrite(path, path.stat().st_size // 2 // 4096 * 4096, 4096)
    connection, damage = open_database(path, SECOND)
    assert damage is not None
    assert ROWS - 100 <= damage.rows["t"] < ROWS
    assert connection.execute("SELECT max(y) FROM t").fetchone() == ("",)


@pytest.mark.parametrize(
    ("wanted", "damaged"),
    [
        (b"CREATE TABLE t", b"CR\xff\xfeTE TABLE t"),  # no UTF-8
        (b"CREATE TABLE t", b"CREAtX TABLE t"),  # no SQL
        (b"PRIMARY KEY, x)", b"PRIMARY KEY, z)"),  # another column
        (b"CREATE INDEX t_x ON t (x)", b"CREATE INDEX t_x ON t (2)"),  # another index
        (b"tablett", b"tableut"),  # another name
    ],
)
def test_a_damaged_schema_costs_no_row(path: Path, wanted: bytes, damaged: bytes) -> None:
    data = path.read_bytes()
    assert data.count(wanted) == 1
    path.write_bytes(data.replace(wanted, damaged))
    connection, damage = open_database(path, SCHEMA)
    assert damage is not None
    assert damage.rows == {"t": ROWS}
    assert connection.execute("SELECT x FROM t ORDER BY id LIMIT 1").fetchone() == ("000001" * 10,)
    assert damage.path.read_bytes() == data.replace(wanted, damaged)


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_cannot_be_is_damage(path: Path, version: int) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    damage = open_database(path, SCHEMA)[1]
    assert damage is not None
    assert damage.rows == {"t": ROWS}
    assert f"the format {version} of this file does not exist" in damage.finding


def test_a_shortened_file_gives_what_is_left(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)
    damage = open_database(path, SCHEMA)[1]
    assert damage is not None
    assert ROWS // 4 < damage.rows["t"] < ROWS


def test_rows_behind_two_gaps_far_apart_are_found(tmp_path: Path) -> None:
    path = tmp_path / "sparse.sqlite"
    connection, _ = open_database(path, SCHEMA)
    ids = [queue << 40 | place for queue in range(0, 400, 4) for place in range(20)]
    insert(connection, [(n, "x" * 60) for n in ids])
    connection.close()
    for place in (0.25, 0.7):
        overwrite(path, int(path.stat().st_size * place) // 4096 * 4096, 8192)
    connection, damage = open_database(path, SCHEMA)
    assert damage is not None
    saved = [row[0] for row in connection.execute("SELECT id FROM t ORDER BY id")]
    assert len(ids) - 300 <= len(saved) < len(ids)
    assert saved[-1] == ids[-1]


def test_an_index_that_contradicts_its_table_is_found_by_a_thorough_look(path: Path) -> None:
    data = path.read_bytes()
    assert data.count(b"000100" * 10) == 2  # in the table and in the index
    path.write_bytes(data.replace(b"000100" * 10, b"900100" + b"000100" * 9, 1))
    connection, damage = open_database(path, SCHEMA)
    assert damage is None
    connection.close()
    connection, damage = open_database(path, SCHEMA, thorough=True)
    assert damage is not None
    assert damage.rows == {"t": ROWS}
    assert find_damage(path, thorough=True) is None
