"""Opening a database file of ours: WAL, checked, and salvaged where it is damaged."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

BUSY_TIMEOUT_SECONDS: Final = 5.0
CHECK_LIMIT_BYTES: Final = 256 * 1024 * 1024
_DAMAGE_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNREADABLE_CODES: Final = frozenset({sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ})
_SKIP_LIMIT: Final = 1 << 40  # rows; how far salvage jumps over what it cannot read


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one kind of file, all with a rowid, which is how salvage walks them."""

    version: int  # kept as user_version
    statements: str  # CREATE … IF NOT EXISTS
    tables: tuple[str, ...]
    migrations: Mapping[int, str] = field(default_factory=dict)  # statements that lead from a version to the next


@dataclass(frozen=True, slots=True)
class Damage:
    """What was wrong with a file, where it lies now and what was saved from it."""

    path: Path  # the damaged file, set aside
    finding: str
    size_bytes: int
    rows: dict[str, int] = field(default_factory=dict)  # saved, by table


class NewerFile(OSError):
    """The file was made by a newer version of this program."""


def open_database(
    path: Path, schema: Schema, *, check_limit_bytes: int = CHECK_LIMIT_BYTES
) -> tuple[sqlite3.Connection, Damage | None]:
    """Open for writing, creating it where it is missing; of a damaged file what can be read moves to a new one.

    Files above `check_limit_bytes` are trusted without `PRAGMA quick_check`, which reads all of them. For one writer
    only. Raises NewerFile, and sqlite3.Error where the disk does not let us.
    """
    damage = _finish_salvage(path, schema)
    if damage is None and path.exists():
        finding = find_damage(path, check_limit_bytes)
        if finding is not None:
            damage = salvage(path, schema, finding)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        create_tables(connection, schema, path)
    except BaseException:
        connection.close()
        raise
    return connection, damage


def open_readonly(path: Path, *, immutable: bool = False, timeout: float = BUSY_TIMEOUT_SECONDS) -> sqlite3.Connection:
    """Open for reading from any thread; `immutable` only where nobody writes and no `-wal` file lies beside it.

    Raises sqlite3.OperationalError where there is no such file.
    """
    mode = "mode=ro&immutable=1" if immutable else "mode=ro"
    uri = f"{path.absolute().as_uri()}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def create_tables(connection: sqlite3.Connection, schema: Schema, path: Path) -> None:
    """Create what is missing, or bring an older file up to this version, in one transaction."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > schema.version:
        raise NewerFile(f"{path} has format {version}; this program knows formats up to {schema.version}")
    if version == schema.version:
        return
    scripts = [schema.migrations[step] for step in range(version, schema.version)] if version else [schema.statements]
    connection.execute("BEGIN IMMEDIATE")
    try:
        for script in scripts:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {schema.version}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """Part a script; the semicolons within a trigger do not part it."""
    statement = ""
    for piece in script.split(";"):
        statement += f"{piece};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file itself is broken or cannot be read."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF in _DAMAGE_CODES or code in _UNREADABLE_CODES)


def find_damage(path: Path, check_limit_bytes: int = CHECK_LIMIT_BYTES, *, thorough: bool = False) -> str | None:
    """The first thing wrong with the file, None if nothing was found; above the limit only its schema is read.

    `thorough` compares the indexes with their tables too, which takes several times as long.
    """
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    try:
        if path.stat().st_size > check_limit_bytes:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            return None
        check = "integrity_check" if thorough else "quick_check"
        finding: str = connection.execute(f"PRAGMA {check}(1)").fetchone()[0]
        return None if finding == "ok" else " ".join(finding.split())
    except sqlite3.Error as error:
        if is_damage(error):
            return str(error)
        raise
    finally:
        connection.close()


def salvage(path: Path, schema: Schema, finding: str) -> Damage:
    """Set the file aside and put what can be read of it into a new one under its name.

    Nobody else may write the file. A salvage that is cut short is taken up again by `open_database`.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.salvaging-{stamp}")
    number = 1
    while aside.exists() or _final_name(aside).exists():
        number += 1
        aside = path.with_name(f"{path.name}.salvaging-{stamp}-{number}")
    os.rename(path, aside)
    return _salvage_from(aside, path, schema, finding)


def interrupted_salvages(folder: Path) -> list[Path]:
    """The database files of a folder that are missing because their salvage was cut short."""
    found = {aside.with_name(aside.name.split(".salvaging-")[0]) for aside in _salvaging(folder, "*")}
    return sorted(path for path in found if not path.exists())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _finish_salvage(path: Path, schema: Schema) -> Damage | None:
    for aside in _salvaging(path.parent, path.name):
        if not path.exists():
            return _salvage_from(aside, path, schema, "its salvage was cut short")
        _rename_database(aside, _final_name(aside))
    return None


def _salvaging(folder: Path, name: str) -> list[Path]:
    return sorted(p for p in folder.glob(f"{name}.salvaging-*") if not p.name.endswith(("-wal", "-shm")))


def _final_name(aside: Path) -> Path:
    return aside.with_name(aside.name.replace(".salvaging-", ".damaged-"))


def _salvage_from(aside: Path, path: Path, schema: Schema, finding: str) -> Damage:
    for suffix in ("-wal", "-shm"):  # the main file was renamed first
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            os.rename(beside, aside.with_name(aside.name + suffix))
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    target = sqlite3.connect(fresh, isolation_level=None)
    source = sqlite3.connect(aside, isolation_level=None)
    source.text_factory = lambda raw: raw.decode("utf-8", "replace")
    source.execute("PRAGMA writable_schema = ON")  # or a file that is shorter than its header says is not read at all
    try:
        target.execute("PRAGMA synchronous = FULL")
        create_tables(target, schema, fresh)
        target.execute("BEGIN")
        rows = {table: _copy_readable(source, target, table) for table in schema.tables}
        target.execute("COMMIT")
    finally:
        source.close()
        target.close()
    os.rename(fresh, path)
    _rename_database(aside, _final_name(aside))
    sync_folder(path.parent)
    aside = _final_name(aside)
    log.error("database %s is damaged (%s): set aside as %s, saved %s", path.name, finding, aside.name, rows)
    return Damage(aside, finding, aside.stat().st_size, rows)


def _rename_database(old: Path, new: Path) -> None:
    os.rename(old, new)
    for suffix in ("-wal", "-shm"):
        if old.with_name(old.name + suffix).exists():
            os.rename(old.with_name(old.name + suffix), new.with_name(new.name + suffix))


def _copy_readable(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> int:
    """Copy every row that can be reached: upwards to the damage, over it, and back down to its other edge."""
    width = len(target.execute(f"PRAGMA table_info({table})").fetchall())
    insert = f"INSERT OR IGNORE INTO {table} (rowid, {{}}) VALUES ({', '.join('?' * (width + 1))})"
    columns = ", ".join(row[1] for row in target.execute(f"PRAGMA table_info({table})"))
    insert = insert.format(columns)
    copied = 0

    def copy(condition: str, bound: int, order: str) -> tuple[int | None, bool]:
        """The last rowid reached, and whether the walk came to its end."""
        nonlocal copied
        last: int | None = None
        try:
            for row in source.execute(
                f"SELECT rowid, {columns} FROM {table} NOT INDEXED WHERE rowid {condition} ? ORDER BY rowid {order}",
                (bound,),
            ):
                if last is not None and (row[0] <= last if order == "ASC" else row[0] >= last):
                    return last, False  # a loop in the tree
                last = row[0]
                copied += target.execute(insert, row).rowcount
        except sqlite3.Error as error:
            log.debug("salvage of %s stopped at row %s: %s", table, last, error)
            return last, False
        return last, True

    reached, complete = copy(">", -1, "ASC")
    while not complete:
        edge = reached if reached is not None else -1
        step = 1
        while step < _SKIP_LIMIT:
            step *= 2
            landed, complete = copy(">", edge + step, "ASC")
            if landed is not None or complete:
                break
        else:
            break
        reached = landed if landed is not None else edge + step
        copy("<", edge + step + 1, "DESC")
    return copied
