"""Reference tables: CSV files and tables of SQLite files that rules can join with, read again when they change."""

from __future__ import annotations

import csv
import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Final, NamedTuple
from urllib.parse import quote

from lockgate.config.errors import ConfigError
from lockgate.config.model import TableConfig
from lockgate.files import stamp_if_there
from lockgate.processor.sandbox import Sandbox
from lockgate.processor.schemas import SQL_TYPES, Value, check_name

log = logging.getLogger(__name__)

MAX_ROWS: Final = 1_000_000
MAX_BYTES: Final = 256 * 1024 * 1024
_SQLITE_HEAD: Final = b"SQLite format 3\0"


class BadTable(Exception):
    """The file cannot be used as it is; the text tells where and why."""


class Content(NamedTuple):
    """What a file held."""

    columns: tuple[tuple[str, str], ...]  # names and SQL types
    rows: list[tuple[Value, ...]]


class Reference:
    """One [tables.NAME]. Its first column is indexed."""

    def __init__(self, config: TableConfig) -> None:
        self.name = config.name
        self.config = config
        self.problem: str | None = None  # why the file as it is now is not used
        self._stamp = stamp_if_there(self.config.path)
        try:
            self.content = read_table(config)
        except BadTable as error:
            raise ConfigError(str(error), key=f"tables.{config.name}.path", line=config.line) from None

    def define(self, sandbox: Sandbox) -> None:
        columns = [(name, "" if kind == "BLOB" else kind) for name, kind in self.content.columns]
        sandbox.define(self.name, columns)
        sandbox.execute(f'CREATE INDEX "#{self.name}_first" ON "{self.name}" ("{columns[0][0]}")')

    def fill(self, sandbox: Sandbox) -> None:
        """Put the content in the place of what was there; raises sqlite3.Error, and leaves that, where it cannot."""
        insert = f'INSERT INTO "{self.name}" VALUES ({", ".join("?" * len(self.content.columns))})'
        sandbox.execute_many(insert, self.content.rows, before=f'DELETE FROM "{self.name}"')

    def changed(self) -> bool:
        """Whether the file is another one than when it was looked at last."""
        stamp = stamp_if_there(self.config.path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        return True

    def read_again(self) -> bool:
        """Take the changed file; where it is broken the old content stays, which is logged. Any thread may call it."""
        try:
            content = read_table(self.config)
            if content.columns != self.content.columns:
                had = ", ".join(name for name, _ in self.content.columns)
                raise BadTable(f"its columns are not {had} any more; SIGHUP takes it with the rules as they are then")
        except BadTable as error:
            self.problem = str(error)
            log.error("table %s stays as it was: %s", self.name, error)
            return False
        self.problem = None
        self.content = content
        log.info("table %s read again: %d rows", self.name, len(content.rows))
        return True

    def status(self) -> dict[str, object]:
        return {"rows": len(self.content.rows), "problem": self.problem}


def read_table(config: TableConfig) -> Content:
    """The content of the file. Raises BadTable."""
    path = config.path
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadTable(f"{path} is larger than {MAX_BYTES} bytes")
        with path.open("rb") as file:
            head = file.read(len(_SQLITE_HEAD))
        content = _read_sqlite(config) if head == _SQLITE_HEAD else _read_csv(config)
    except OSError as error:
        raise BadTable(f"{path} cannot be read: {error.strerror}") from None
    for name, _ in content.columns:
        if problem := check_name(name):
            raise BadTable(f"{path}: {problem}")
    if len({name.lower() for name, _ in content.columns}) < len(content.columns):
        raise BadTable(f"{path}: a column stands twice (case does not count)")
    return content


def _read_csv(config: TableConfig) -> Content:
    path = config.path
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=config.delimiter, strict=True)
            head = next(reader, None)
            if not head:
                raise BadTable(f"{path} has no first line with the names of its columns")
            fields = dict(config.fields) or dict.fromkeys(head, "text")
            for name in fields:
                if name not in head:
                    raise BadTable(f"{path}:1: there is no column {name!r}; there are {', '.join(head)}")
            places = [(head.index(name), name, kind) for name, kind in fields.items()]
            rows: list[tuple[Value, ...]] = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(head):
                    raise BadTable(f"{path}:{reader.line_num}: {len(row)} values for {len(head)} columns")
                rows.append(
                    tuple(_value(row[place], name, kind, config, reader.line_num) for place, name, kind in places)
                )
                if len(rows) > MAX_ROWS:
                    raise BadTable(f"{path} has more than {MAX_ROWS} rows")
    except UnicodeDecodeError:
        raise BadTable(f"{path} is not valid UTF-8") from None
    except csv.Error as error:
        raise BadTable(f"{path}:{reader.line_num}: {error}") from None
    return Content(tuple((name, SQL_TYPES[kind]) for name, kind in fields.items()), rows)


def _value(text: str, name: str, kind: str, config: TableConfig, line: int) -> Value:
    if kind == "text":
        return text
    if not text:
        return None
    try:
        number = int(text) if kind == "integer" else float(text)
    except ValueError:
        number = 1 << 64
    if isinstance(number, int) and not -(1 << 63) <= number < 1 << 63:
        raise BadTable(f"{config.path}:{line}: {name} = {text!r} is no {kind}")
    return number


def _read_sqlite(config: TableConfig) -> Content:
    path, table = config.path, config.table or config.name
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=1.0)) as connection:
            found = connection.execute("SELECT name, type FROM pragma_table_info(?)", (table,)).fetchall()
            if not found:
                names = connection.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")
                there_is = ", ".join(name for (name,) in names) or "none"
                raise BadTable(f"{path} has no table {table!r}; there are {there_is}")
            columns = tuple((config.fields and ((name, SQL_TYPES[kind]) for name, kind in config.fields)) or found)
            missing = [name for name, _ in columns if name not in dict(found)]
            if missing:
                raise BadTable(f"{path}: {table} has no column {missing[0]!r}; there are {', '.join(dict(found))}")
            names_sql = ", ".join(f'"{name}"' for name, _ in columns)
            rows = connection.execute(f'SELECT {names_sql} FROM "{table}"').fetchmany(MAX_ROWS + 1)
    except sqlite3.Error as error:
        raise BadTable(f"{path} cannot be read: {error}") from None
    if len(rows) > MAX_ROWS:
        raise BadTable(f"{path} has more than {MAX_ROWS} rows")
    return Content(columns, rows)


def check_tables(configs: Sequence[TableConfig], taken: Sequence[str]) -> None:
    """Raise ConfigError for a table that cannot have its name."""
    for config in configs:
        key = f"tables.{config.name}"
        if problem := check_name(config.name):
            raise ConfigError(problem, key=key, line=config.line, accepted="letters, digits and _")
        if config.name.lower() in {name.lower() for name in taken}:
            raise ConfigError("a schema or table of that name exists", key=key, line=config.line)
