"""mosquitto.sqlite3, the store of persist-sqlite."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate.mqtt.properties import Properties
from lockgate.storage import mosquitto_db, mosquitto_sqlite
from lockgate.storage.imported import NEVER_EXPIRES, UnreadableStore
from tests.support.imports import plain
from tests.support.mosquitto_stores import EVERYTHING, DbWriter, SqliteWriter, fill


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mosquitto.sqlite3"


def write(path: Path, minor: int = 1) -> SqliteWriter:
    writer = SqliteWriter(path, minor)
    fill(writer, True)
    return writer


def overwrite_root(writer: SqliteWriter, path: Path, name: str, at: int, data: bytes) -> None:
    """Damage the first page of a table or an index, and close."""
    connection = writer.connection
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0]
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    writer.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * size + at)
        file.write(data)


@pytest.mark.parametrize("minor", [0, 1])
def test_it_holds_what_mosquitto_db_holds(path: Path, tmp_path: Path, minor: int) -> None:
    write(path, minor).close()
    imported = mosquitto_sqlite.read(path)
    assert (imported.damage, imported.skipped) == ("", {})
    assert imported.form == f"mosquitto.sqlite3 of schema 1.{minor}"
    other = DbWriter(6)
    fill(other, True)
    (tmp_path / "mosquitto.db").write_bytes(other.data)
    assert plain(imported) == plain(mosquitto_db.read(tmp_path / "mosquitto.db"))


def test_what_lies_in_the_log_beside_it_is_read_and_nothing_is_changed(path: Path, tmp_path: Path) -> None:
    writer = write(path)
    left = tmp_path / "left"  # by a broker that was killed: nothing was moved from the log into the database
    left.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        shutil.copy(tmp_path / name, left / name)
    writer.close()
    before = {file.name: file.read_bytes() for file in left.iterdir()}
    assert set(mosquitto_sqlite.read(left / path.name).sessions) == {"durable", "other"}
    assert {name: (left / name).read_bytes() for name in before} == before


def test_topics_and_names_that_sqlite_takes_for_numbers_are_texts(path: Path) -> None:
    writer = SqliteWriter(path)
    writer.message(1, "42", b"7", publisher="99")
    assert writer.connection.execute("SELECT typeof(topic) FROM base_msgs").fetchone() == ("integer",)
    writer.retained(1)
    writer.will("77", "5.5", b"x")
    writer.close()
    imported = mosquitto_sqlite.read(path)
    assert imported.retained["42"].publisher == "99"
    assert imported.wills["77"].message.topic == "5.5"


def test_intervals_are_read_from_signed_and_from_unsigned_numbers(path: Path) -> None:
    writer = SqliteWriter(path)
    for client_id, interval, port in (
        ("a", -1, 1883),
        ("b", 0xFFFF_FFFF, 1883),
        ("c", 60, 0),
        ("d", 0, 1883),
        ("e", 0, 0),
    ):
        writer.client(client_id, interval=interval, port=port)
    writer.close()
    intervals = [session.expiry_interval for session in mosquitto_sqlite.read(path).sessions.values()]
    assert intervals == [NEVER_EXPIRES, NEVER_EXPIRES, 60, 0, NEVER_EXPIRES]


def test_wills_are_read_with_their_delay_and_their_expiry(path: Path) -> None:
    writer = SqliteWriter(path)
    writer.client("c", will_delay=30)
    own = Properties(message_expiry_interval=9, user_properties=(("k", "v"),))
    writer.will("c", "gone/c", b"bye", 1, own)
    writer.will("d", "gone/d", b"bye")
    writer.close()
    wills = mosquitto_sqlite.read(path).wills
    assert {client_id: (will.message.topic, will.delay) for client_id, will in wills.items()} == {
        "c": ("gone/c", 30),
        "d": ("gone/d", 0),
    }
    assert wills["c"].message.properties == own
    assert wills["c"].message.publisher == "c"


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        '{"identifier": 1}',
        "[" * 100_000,
        '[{"identifier": "content-type", "value": 5}]',
        '[{"identifier": "correlation-data", "value": "zz"}]',
        '[{"identifier": "correlation-data", "value": 5}]',
        '[{"identifier": "payload-format-indicator", "value": 2}]',
        '[{"identifier": "user-property", "value": "no name"}]',
        '[{"identifier": "response-topic", "value": "a\\u0000b"}]',
        '[{"identifier": "response-topic", "value": "\\ud800"}]',
        "[5]",
        "[" + '{"identifier": "a property of the future", "value": 1}' + "]",
    ],
)
def test_properties_that_cannot_be_read_leave_the_message(path: Path, text: str) -> None:
    writer = SqliteWriter(path)
    writer.message(1, "t", b"x", properties=EVERYTHING)
    writer.connection.execute("UPDATE base_msgs SET properties = ?", (text,))
    writer.retained(1)
    writer.close()
    imported = mosquitto_sqlite.read(path)
    assert imported.damage == ""
    assert imported.retained["t"].payload == b"x"
    assert imported.retained["t"].properties is None


def test_a_property_that_cannot_be_read_leaves_the_others(path: Path) -> None:
    writer = SqliteWriter(path)
    writer.message(1, "t", b"x")
    both = '[{"identifier": "content-type", "value": 5}, {"identifier": "response-topic", "value": "r"}]'
    writer.connection.execute("UPDATE base_msgs SET properties = ?", (both,))
    writer.retained(1)
    writer.close()
    imported = mosquitto_sqlite.read(path)
    assert imported.retained["t"].properties == Properties(response_topic="r")
    assert imported.skipped == {"properties that cannot be read": 1}


@pytest.mark.parametrize(("major", "minor"), [(1, 2), (2, 0), (0, 9)])
def test_another_schema_is_an_error_that_names_it(path: Path, major: int, minor: int) -> None:
    SqliteWriter(path, minor, major).close()
    with pytest.raises(UnreadableStore, match=rf"schema {major}.{minor}; schemas 1.0 to 1.1 are read"):
        mosquitto_sqlite.read(path)


def test_another_kind_of_file_is_an_error(path: Path) -> None:
    path.write_bytes(b"hello")
    with pytest.raises(UnreadableStore, match=r"mosquitto.sqlite3 cannot be read: "):
        mosquitto_sqlite.read(path)
    path.unlink()
    with pytest.raises(UnreadableStore, match=r"mosquitto.sqlite3 cannot be opened: "):
        mosquitto_sqlite.read(path)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(UnreadableStore, match=r"is not a store of Mosquitto"):
        mosquitto_sqlite.read(path)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW base_msgs AS WITH RECURSIVE n(store_id) AS (SELECT 1 UNION ALL SELECT store_id + 1 FROM n)"
        " SELECT store_id FROM n",
        "CREATE VIRTUAL TABLE base_msgs USING fts5(topic)",
        "CREATE TABLE base_msgs (store_id, topic GENERATED ALWAYS AS (zeroblob(1000000000)))",
    ],
)
def test_what_a_crafted_table_says_it_holds_has_an_end(path: Path, statement: str) -> None:
    writer = write(path)
    writer.connection.execute("DROP TABLE base_msgs")
    writer.connection.execute(statement)
    if "GENERATED" in statement:
        writer.connection.execute("INSERT INTO base_msgs VALUES (1)")
    writer.close()
    imported = mosquitto_sqlite.read(path)
    assert set(imported.sessions) == {"durable", "other"}
    if "VIRTUAL" in statement:
        assert "table base_msgs after 0 rows: " in imported.damage
    assert imported.retained == {}


def test_damage_in_one_table_leaves_the_others(path: Path) -> None:
    writer = write(path)
    for number in range(100, 1100):
        writer.message(number, f"many/{number}", b"x" * 100)
    overwrite_root(writer, path, "base_msgs", 0, b"\xff" * 100)
    imported = mosquitto_sqlite.read(path)
    assert "mosquitto.sqlite3, table base_msgs after 0 rows: " in imported.damage
    assert set(imported.sessions) == {"durable", "other"}
    assert imported.skipped["deliveries without their message"] == 7
    assert set(imported.sessions["durable"].subscriptions) == {"house/+", "$share/group/jobs/#"}


def test_a_damaged_index_hides_nothing(path: Path) -> None:
    writer = write(path)
    overwrite_root(writer, path, "retains_storeid", 0, b"\xff" * 100)
    imported = mosquitto_sqlite.read(path)
    assert imported.damage == ""
    assert list(imported.retained) == ["state"]


def test_pages_that_lead_in_circles_have_an_end(path: Path) -> None:
    writer = write(path)
    for number in range(100, 1100):
        writer.message(number, f"many/{number}", b"x" * 100)
    root = writer.connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'base_msgs'").fetchone()[0]
    overwrite_root(writer, path, "base_msgs", 8, root.to_bytes(4, "big"))  # what follows the last page is the first one
    imported = mosquitto_sqlite.read(path)
    assert "it gives more than the file can hold" in imported.damage
    assert imported.message_count < 2100


def check_bounded(path: Path) -> None:
    try:
        imported = mosquitto_sqlite.read(path)
    except UnreadableStore:
        return
    size = path.stat().st_size
    items: list[Any] = [*imported.sessions, *imported.retained]
    for session in imported.sessions.values():
        items += [*session.subscriptions, *session.received, *session.in_flight, *session.queued]
    assert len(items) + imported.skipped.total() <= size


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=40)), min_size=1, max_size=8)
)
def test_mutated_files_are_read_to_an_end(tmp_path: Path, changes: list[tuple[float, bytes]]) -> None:
    template = tmp_path / "template"
    if not template.exists():
        write(template).close()
    data = bytearray(template.read_bytes())
    for place, piece in changes:
        at = int(place * len(data))
        data[at : at + len(piece)] = piece
    path = tmp_path / "mosquitto.sqlite3"
    path.write_bytes(data)
    check_bounded(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.floats(0, 1))
def test_files_that_are_cut_off_are_read_to_an_end(tmp_path: Path, place: float) -> None:
    template = tmp_path / "template"
    if not template.exists():
        write(template).close()
    data = template.read_bytes()
    path = tmp_path / "mosquitto.sqlite3"
    path.write_bytes(data[: int(place * len(data))])
    check_bounded(path)
