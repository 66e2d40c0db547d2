"""Opening a database file of ours: WAL, checked, and salvaged where it is damaged."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lockgate.files import sync_folder

log = logging.getLogger(__name__)

BUSY_TIMEOUT_SECONDS: Final = 5.0
CHECK_LIMIT_BYTES: Final = 256 * 1024 * 1024
_DAMAGE_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNREADABLE_CODES: Final = frozenset({sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ})
_COMMENT: Final = re.compile(r"\s*--.*")
_NOTHING: Final = "cannot be read from row"
READ_ALL: Final = "PRAGMA writable_schema = ON"  # or a file shorter than its header says is not read at all
_LAST_ROWID: Final = (1 << 63) - 1
# Of the database header (SQLite: Database File Format, 1.3)
_WRITE_AND_READ_VERSION: Final = slice(18, 20)
_SIZE_IN_PAGES: Final = slice(28, 32)

# What a damaged file can raise; sqlite3 does not get to its own error where the text of it repeats damaged bytes.
FAILURES: Final = (sqlite3.Error, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one kind of file, all with a rowid, which is how salvage walks them."""

    version: int  # kept as user_version
    statements: str  # CREATE …; without comments they have to fit into one page, for `open_copy`
    tables: tuple[str, ...]
    migrations: Mapping[int, str] = field(default_factory=dict)  # statements that lead from a version to the next
    # Text that is not UTF-8: salvage keeps it, as bytes, for who looks at each row; else with replacement characters.
    keeps_bad_text: bool = False


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
    path: Path, schema: Schema, *, check_limit_bytes: int = CHECK_LIMIT_BYTES, thorough: bool = False
) -> tuple[sqlite3.Connection, Damage | None]:
    """Open for writing, creating it where it is missing; of a damaged file what can be read moves to a new one.

    Files above `check_limit_bytes` are trusted without `PRAGMA quick_check`, which reads all of them; `thorough` as in
    `find_damage`. For one writer only. Raises NewerFile, and sqlite3.Error where the disk does not let us.
    """
    damage = _finish_salvage(path, schema)
    if damage is None and path.exists():
        finding = find_damage(path, check_limit_bytes, thorough=thorough) or find_wrong_schema(path, schema)
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
    """Part a script, without its comments: SQLite would keep them. The semicolons within a trigger do not part it."""
    statement = ""
    for piece in _COMMENT.sub("", script).split(";"):
        statement += f"{piece};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file itself is broken or cannot be read."""
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF in _DAMAGE_CODES or code in _UNREADABLE_CODES)


def find_damage(path: Path, check_limit_bytes: int = CHECK_LIMIT_BYTES, *, thorough: bool = False) -> str | None:
    """The first thing wrong with the file, None if nothing was found; above the limit only its schema is read.

    `thorough` compares the indexes with their tables too, which takes several times as long.
    """

    def look(connection: sqlite3.Connection) -> str | None:
        connection.text_factory = _legible
        if path.stat().st_size > check_limit_bytes and not thorough:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            return None
        return next(findings(connection, 1, thorough=thorough), None)

    return _found_by(look, path)


def _found_by(look: Callable[[sqlite3.Connection], str | None], path: Path) -> str | None:
    """What a look at a file finds, or that it cannot be looked at because it is damaged."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    try:
        return look(connection)
    except FAILURES as error:
        if is_damage(error):
            return told(error)
        raise
    finally:
        connection.close()


def findings(connection: sqlite3.Connection, limit: int, *, thorough: bool) -> Iterator[str]:
    """What SQLite's own check finds, at most `limit`. Raises sqlite3.Error or UnicodeDecodeError."""
    for (finding,) in connection.execute(f"PRAGMA {'integrity_check' if thorough else 'quick_check'}({limit})"):
        if finding != "ok":
            yield " ".join(str(finding).split())


def find_wrong_schema(path: Path, schema: Schema) -> str | None:
    """What of a file's tables, indexes and triggers is not as this version makes it; an older version is not looked at.

    With a damaged byte their text may still be SQL that can be read, and fail, or do the wrong thing, when it is run.
    """
    return _found_by(lambda connection: compare_schema(connection, schema), path)


def compare_schema(connection: sqlite3.Connection, schema: Schema) -> str | None:
    """`find_wrong_schema` of an open file."""
    connection.text_factory = bytes
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    found = _objects(connection, schema)
    if version < 0 or (version == 0 and found):
        return f"the format {version} of this file does not exist"
    if version != schema.version:
        return None
    model = sqlite3.connect(":memory:", isolation_level=None)
    with contextlib.closing(model):
        create_tables(model, schema, Path(":memory:"))
        model.text_factory = bytes
        wrong = _objects(model, schema) - found
    names = sorted({str(name, "utf-8", "replace") for name, *_ in wrong})
    return f"damaged in the schema: {', '.join(names)}" if names else None


def _objects(connection: sqlite3.Connection, schema: Schema) -> set[tuple[Any, ...]]:
    """Indexes and triggers with their text; of tables the columns, for a migration may spell a table otherwise."""
    found = set(connection.execute("SELECT name, type, tbl_name, sql FROM sqlite_schema WHERE type != 'table'"))
    for table in schema.tables:
        columns = 'SELECT ?, cid, name, type, "notnull", pk FROM pragma_table_info(?)'
        found.update(connection.execute(columns, (table.encode(), table)))
    return found


def told(error: BaseException) -> str:
    """What an error of a damaged file says."""
    return "the text of the file is damaged" if isinstance(error, UnicodeDecodeError) else str(error)


def text_or_bytes(raw: bytes) -> str | bytes:
    """Decode a column of text; one that is not UTF-8 is left as it is, for the row's own check to find."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _legible(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


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
    copy = path.with_name(path.name + ".copy")
    source = open_copy(aside, copy, schema) if find_wrong_schema(aside, schema) else sqlite3.connect(aside)
    source.text_factory = text_or_bytes if schema.keeps_bad_text else _legible
    try:
        source.execute(READ_ALL)
        target.execute("PRAGMA synchronous = FULL")
        create_tables(target, schema, fresh)
        target.execute("BEGIN")
        rows = {table: _copy_readable(source, target, table) for table in schema.tables}
        target.execute("COMMIT")
    finally:
        source.close()
        target.close()
        _remove_database(copy)
    os.rename(fresh, path)
    _rename_database(aside, _final_name(aside))
    sync_folder(path.parent)
    aside = _final_name(aside)
    log.error("database %s is damaged (%s): set aside as %s, saved %s", path.name, finding, aside.name, rows)
    return Damage(aside, finding, aside.stat().st_size, rows)


def open_copy(path: Path, copy: Path, schema: Schema) -> sqlite3.Connection:
    """Copy a file whose schema is damaged, give the copy the first page of a new file, and open it.

    Header and schema lie in that page, and the tables of all files of a kind begin where those of a new one do. It is
    also the page that is written most often.
    """
    _remove_database(copy)  # of a salvage that was cut short
    shutil.copyfile(path, copy)
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists():
        shutil.copyfile(wal, copy.with_name(f"{copy.name}-wal"))
    page = bytearray(first_page(schema))
    pages = copy.stat().st_size // len(page)
    page[_WRITE_AND_READ_VERSION] = b"\2\2"  # of a file with a write-ahead log
    page[_SIZE_IN_PAGES] = pages.to_bytes(4, "big")
    with copy.open("r+b") as file:
        file.write(page)
    return sqlite3.connect(copy, isolation_level=None)


def first_page(schema: Schema) -> bytes:
    """The first page of a new file."""
    model = sqlite3.connect(":memory:", isolation_level=None)
    with contextlib.closing(model):
        create_tables(model, schema, Path(":memory:"))
        size: int = model.execute("PRAGMA page_size").fetchone()[0]
        return bytes(model.serialize()[:size])


def _remove_database(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _rename_database(old: Path, new: Path) -> None:
    os.rename(old, new)
    for suffix in ("-wal", "-shm"):
        if old.with_name(old.name + suffix).exists():
            os.rename(old.with_name(old.name + suffix), new.with_name(new.name + suffix))


def _copy_readable(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> int:
    columns = [row[1] for row in target.execute(f"PRAGMA table_info({table})")]
    with contextlib.suppress(*FAILURES):  # a file of an older version may lack some
        there = {row[1] for row in source.execute(f"PRAGMA table_info({table})")}
        columns = [column for column in columns if column in there] or columns
    marks = ", ".join("?" * (len(columns) + 1))
    insert = f"INSERT OR IGNORE INTO {table} (rowid, {', '.join(columns)}) VALUES ({marks})"
    obstacles: list[str] = []
    copied = 0
    for row in readable_rows(source, table, ", ".join(columns), obstacles):
        copied += target.execute(insert, row).rowcount
    for obstacle in obstacles:
        log.debug("salvage of %s: %s", table, obstacle)
    return copied


def readable_rows(
    source: sqlite3.Connection, table: str, columns: str, obstacles: list[str]
) -> Iterator[tuple[Any, ...]]:
    """Every row that can be reached, its rowid first: upwards to damage, over it, and back down to its other edge.

    What stood in the way is added to `obstacles`; without any, the rows come in order and are all there are.
    """
    select = f"SELECT rowid, {columns} FROM {table} NOT INDEXED WHERE rowid > ? AND rowid < ? ORDER BY rowid "

    def walk(above: int, below: int, order: str) -> Generator[tuple[Any, ...], None, tuple[int | None, bool]]:
        """Give rows; then the last rowid reached, and whether the walk came to its end."""
        last: int | None = None
        low, high = above, below
        try:
            for row in source.execute(select + order, (above, below)):
                if not low < row[0] < high:
                    obstacles.append(f"row {row[0]} is out of order")
                    return last, False  # perhaps a loop in the tree
                last = row[0]
                if order == "ASC":
                    low = row[0]
                else:
                    high = row[0]
                yield row
        except FAILURES as error:
            if last is not None:
                obstacles.append(f"after row {last}: {told(error)}")
            elif not obstacles or not obstacles[-1].startswith(_NOTHING):  # else a jump into the same
                obstacles.append(f"{_NOTHING} {max(above + 1, 0)} on: {told(error)}")
            return last, False
        return last, True

    edge = -1  # where jumps begin; numbers below are nobody's
    beyond = _LAST_ROWID
    reached, complete = yield from walk(-_LAST_ROWID, _LAST_ROWID, "ASC")
    while not complete:
        edge = max(edge, reached) if reached is not None else edge
        step = 1
        while edge + step < _LAST_ROWID:
            step *= 2
            beyond = min(edge + step, _LAST_ROWID)
            landed, complete = yield from walk(beyond, _LAST_ROWID, "ASC")
            if landed is not None or complete:
                break
        yield from walk(edge, min(edge + step, _LAST_ROWID - 1) + 1, "DESC")
        if beyond == _LAST_ROWID:
            break
        reached = landed if landed is not None else beyond
