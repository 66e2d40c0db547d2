"""Reference tables: read, joined, read again, and kept when the new file is broken."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lockgate.config.errors import ConfigError
from lockgate.config.model import BufferConfig, ProcessorConfig, RuleConfig, TableConfig
from lockgate.processor.references import BadTable, Reference, check_tables, read_table
from lockgate.processor.runner import Rulebook
from tests.support.processor import SCHEMA, Gateway, reading

DEVICES = 'name,place,limit\na,hall,90.5\nb,"yard, north",\n'
FIELDS: Any = (("name", "text"), ("limit", "real"))
NAMED = RuleConfig(
    name="named",
    schema="temperature",
    sql="SELECT (SELECT place FROM devices WHERE name = topic_level(:topic, 2)) AS place",
    message_class="telemetry",
    topic="t",
)
JOINED = RuleConfig(
    name="joined",
    schema="temperature",
    sql="SELECT d.place, count(*) AS n FROM temperature t JOIN devices d ON name = topic_level(topic, 2) GROUP BY 1",
    message_class="telemetry",
    topic="t",
    count=2,
)


def table(path: Path, **keys: Any) -> TableConfig:
    return TableConfig(name="devices", path=path, **keys)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_csv_file_gives_its_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "\ufeff" + DEVICES)
    assert read_table(table(path)).rows == [("a", "hall", "90.5"), ("b", "yard, north", "")]
    content = read_table(table(path, fields=FIELDS))
    assert content.columns == (("name", "TEXT"), ("limit", "REAL"))
    assert content.rows == [("a", 90.5), ("b", None)]


def test_an_sqlite_file_gives_a_table(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "d.db") as database:
        database.execute("CREATE TABLE machines (name TEXT, place TEXT, x BLOB)")
        database.execute("INSERT INTO machines VALUES ('a', 'hall', x'00')")
    database.close()
    content = read_table(table(tmp_path / "d.db", table="machines", fields=(("name", "text"), ("place", "text"))))
    assert content.rows == [("a", "hall")]
    with pytest.raises(BadTable, match="no table 'devices'; there are machines"):
        read_table(table(tmp_path / "d.db"))
    with pytest.raises(BadTable, match="no column 'limit'; there are name, place, x"):
        read_table(table(tmp_path / "d.db", table="machines", fields=FIELDS))


@pytest.mark.parametrize(
    ("text", "keys", "problem"),
    [
        ("", {}, "no first line"),
        ("name,a b\n", {}, "'a b' cannot name"),
        ("name,Name\n", {}, "stands twice"),
        ("name,limit\na,1\nb\n", {}, "d.csv:3: 1 values for 2 columns"),
        ("name,limit\na,1\nb,hot\n", {"fields": FIELDS}, "d.csv:3: limit = 'hot' is no real"),
        ("name\na\n", {"fields": FIELDS}, "d.csv:1: there is no column 'limit'; there are name"),
        ('name\n"a\n', {}, "d.csv:2: unexpected end of data"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: str, keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadTable, match=problem):
        read_table(table(write(tmp_path / "d.csv", text), **keys))
    with pytest.raises(ConfigError, match=r"tables\.devices\.path"):
        Reference(table(tmp_path / "d.csv", **keys))


def test_names_are_kept_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists"):
        check_tables([table(tmp_path)], ["Devices"])


@pytest.mark.parametrize("rule", [NAMED, JOINED], ids=lambda rule: rule.name)
async def test_a_table_is_read_again_and_a_broken_file_keeps_the_old_one(tmp_path: Path, rule: RuleConfig) -> None:
    path = write(tmp_path / "d.csv", DEVICES)
    gateway = Gateway(tmp_path / "buffer", [rule], tables=(table(path),))

    def places() -> list[object]:
        return [row["place"] for row in gateway.means()]

    async with gateway.running() as runner:
        reference = gateway.book.references[0]
        await runner.process([reading(1), reading(2)])
        expected: list[object] = ["hall"] * (2 if rule is NAMED else 1)
        assert places() == expected
        assert not reference.changed()
        write(path, "name,place,limit\na,hall\n")
        assert reference.changed()
        assert not reference.read_again()
        assert "2 values for 3 columns" in str(reference.problem)
        write(path, "name,place\na,attic\n")
        assert reference.changed()
        assert not reference.read_again()
        assert "columns" in str(reference.problem)
        os.unlink(path)
        assert reference.changed()
        assert not reference.read_again()
        await runner.process([reading(1), reading(2)])
        assert places() == expected * 2
        write(path, "name,place,limit\na,attic,1\n")
        assert reference.changed()
        assert reference.read_again()
        assert reference.problem is None
        gateway.book.rules.fill(reference)
        await runner.process([reading(1), reading(2)])
        assert places()[len(expected) * 2 :] == ["attic"] * len(expected)


def test_a_rule_that_reads_no_such_table_is_told_which_there_are(tmp_path: Path) -> None:
    wrong = RuleConfig(
        name="w", schema="temperature", sql="SELECT * FROM device", message_class="telemetry", topic="t", line=3
    )
    config = ProcessorConfig(schemas=(SCHEMA,), rules=(wrong,), tables=(table(write(tmp_path / "d.csv", DEVICES)),))
    with pytest.raises(ConfigError) as caught:
        Rulebook(config, BufferConfig())
    assert "table devices with columns name, place, limit" in str(caught.value.accepted)
    assert "line 1, column 15" in caught.value.problem


def test_a_path_is_no_part_of_an_address(tmp_path: Path) -> None:
    """What means something in a URI means nothing in the name of a file."""
    path = tmp_path / "a?b#c%20.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE d (id TEXT)")
        database.execute("INSERT INTO d VALUES ('a')")
        database.commit()
    assert read_table(TableConfig(name="d", path=path)).rows == [("a",)]
