"""`lockgate store check` and `export`, on stores that are in use, closed, killed, damaged or of another version."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lockgate import cli
from lockgate.broker.ports import RETAINED
from lockgate.storage.store import FILE_NAME, SqliteStore
from tests.support.stores import fill, message, open_store, settle

ROWS = {"session": 6, "subscription": 18, "message": 80, "delivery": 280, "received": 6, "retained": 40, "will": 6}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[SqliteStore]:
    store, owner = open_store(tmp_path / "data")
    settle(store, owner, fill(store))
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a store that was closed."""
    store, owner = open_store(tmp_path / "data")
    settle(store, owner, fill(store))
    store.close()
    return store.folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


def exported(folder: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> list[dict[str, Any]]:
    assert cli.main(["store", "export", str(folder)]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def change(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_a_store_that_is_whole_is_said_to_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    assert cli.main(["store", "check", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"{folder / FILE_NAME}: whole\nformat 2, " in said
    assert "clock noted last: 20" in said
    assert "  delivery             280\n" in said
    assert files(folder) == before
    assert not (folder / f"{FILE_NAME}-wal").exists()


def test_a_live_store_is_read_while_it_is_written(live: SqliteStore, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(live.folder)
    assert f"{FILE_NAME}-wal" in before
    assert cli.main(["store", "check", "--json", str(live.folder)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == ROWS
    assert said["wal_bytes"] > 0
    assert Counter(found["type"] for found in exported(live.folder, capsys)) == {"store": 1, **ROWS}
    assert files(live.folder) == before
    live.set(2, RETAINED, ("later",), message("later", b"x"))
    live.flush()
    live.settle()
    assert live._commit is not None
    live._commit.future.result(10)
    live.settle()
    assert len(exported(live.folder, capsys)) == 1 + sum(ROWS.values()) + 1


def test_a_killed_store_is_read_with_its_write_ahead_log(
    live: SqliteStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / "left"
    left.mkdir()
    for name in (FILE_NAME, f"{FILE_NAME}-wal"):
        shutil.copy(live.folder / name, left)
    before = files(left)
    assert Counter(found["type"] for found in exported(left, capsys)) == {"store": 1, **ROWS}
    assert cli.main(["store", "check", str(left)]) == 0
    assert files(left) == before


def test_everything_is_exported_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = exported(folder, capsys)
    by_type: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        by_type.setdefault(one["type"], []).append(one)
    session = by_type["session"][0]
    assert (session["client_id"], session["username"], session["expiry_interval"]) == ("client-0", "user", 3600)
    assert 3500 < session["expires_in"] <= 3600
    assert by_type["subscription"][2] == {
        "type": "subscription",
        "client_id": "client-0",
        "topic_filter": "$share/g/c",
        "qos": 2,
        "no_local": True,
        "retain_as_published": False,
        "subscription_identifier": None,
    }
    assert by_type["received"][0]["packet_id"] == 7
    assert base64.b64decode(by_type["received"][0]["payload_base64"]) == b"\xff\x00"
    assert by_type["will"][0]["delay"] == 30
    assert by_type["will"][0]["due_in"] is None
    messages = {one["id"]: one for one in by_type["message"]}
    mine = [one for one in by_type["delivery"] if one["client_id"] == "client-0"]
    assert [one["position"] for one in mine] == [*range(1, 81)]
    assert [(one["packet_id"], one["state"]) for one in mine[:3:2]] == [(1, "awaiting PUBACK"), (2, "awaiting PUBCOMP")]
    assert mine[1]["state"] == "queued"
    assert messages[mine[2]["message"]] | {"arrived_at": None} == {
        "type": "message",
        "id": mine[2]["message"],
        "topic": "a/1",
        "payload": "to all 1 " * 10,
        "qos": 1,
        "retain": False,
        "properties": {
            "content_type": "text/plain",
            "correlation_data_base64": base64.b64encode(b"\x00\xff").decode(),
            "user_properties": [["unit", "°C"], ["a", "b"]],
        },
        "expires_in": None,
        "arrived_at": None,
        "publisher": "publisher",
        "publisher_user": None,
    }
    assert 3500 < messages[mine[3]["message"]]["expires_in"] <= 3600


def test_times_are_those_of_the_wall_clock_where_it_was_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "UPDATE clock SET clock_ok = 1, wall_time = 1e9, store_time = 1000",
           "UPDATE retained SET arrived_at = 990.5, checksum = NULL WHERE topic = 'retained/1'")  # fmt: skip
    found = {one.get("topic"): one for one in exported(folder, capsys) if one["type"] in ("retained", "store")}
    assert found["retained/1"]["arrived_at"] == 1e9 - 9.5
    assert found[None]["noted_at"] == 1e9
    change(folder, "UPDATE clock SET clock_ok = 0")
    found = {one.get("topic"): one for one in exported(folder, capsys) if one["type"] in ("retained", "store")}
    assert found["retained/1"]["arrived_at"] is None


def test_an_export_goes_into_a_file(folder: Path, tmp_path: Path) -> None:
    assert cli.main(["store", "export", str(folder), "-o", str(tmp_path / "out.jsonl")]) == 0
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 1 + sum(ROWS.values())


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE retained SET properties = x'05ff' WHERE id = 3", "retained: properties: "),
        ("UPDATE received SET payload = 'text'", "6 × received: a payload that is none"),
        ("UPDATE retained SET topic = CAST(x'ff' AS TEXT) WHERE id = 3", "retained: text that is not UTF-8"),
        ("UPDATE messages SET qos = 3 WHERE id = 9", "messages: a number that is not from 0 to 2"),
        ("UPDATE messages SET expires_at = 'soon' WHERE id = 9", "messages: a time that is no number"),
        (
            "UPDATE deliveries SET state = 3 WHERE id = (SELECT max(id) FROM deliveries)",
            "deliveries: in flight without",
        ),
        ("UPDATE deliveries SET message = -1 WHERE message = 2", "deliveries without message"),
        ("INSERT INTO messages SELECT 9999, 't', x'', NULL, 0, 0, 0, 0, '', NULL, NULL", "messages without delivery"),
        ("UPDATE subscriptions SET session = 77 WHERE id = 1", "subscriptions: of a session that does not exist"),
        ("UPDATE subscriptions SET topic_filter = 'a/#/b' WHERE id = 1", "subscriptions: Topic Filter 'a/#/b'"),
        ("UPDATE sessions SET expiry_interval = -1 WHERE number = 6", "sessions: a number"),
        ("UPDATE wills SET delay = 'x' WHERE id = 1", "wills: a number"),
        ("DROP TRIGGER delivered", "damaged in the schema: delivered"),
    ],
)
def test_rows_that_nobody_wrote_are_found(
    statement: str, problem: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, statement)
    assert cli.main(["store", "check", str(folder)]) == 1
    said = capsys.readouterr().out
    assert ": DAMAGED\n" in said
    assert problem in said


def test_deliveries_of_ended_sessions_are_no_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "DELETE FROM sessions WHERE number = 6", "DELETE FROM subscriptions WHERE session = 6",
           "DELETE FROM received WHERE id >> 16 = 6")  # fmt: skip
    assert cli.main(["store", "check", str(folder)]) == 0
    assert "40 deliveries are of sessions that have ended" in capsys.readouterr().out


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_of_a_damaged_store_all_that_can_be_read_is_exported(
    place: float, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray((folder / FILE_NAME).read_bytes())
    at = int(len(data) * place) // 4096 * 4096
    data[at : at + 4096] = b"\xa5" * 4096
    (folder / FILE_NAME).write_bytes(data)
    code = cli.main(["store", "export", str(folder)])
    said = capsys.readouterr()
    count = len(said.out.splitlines())
    assert 100 < count <= 1 + sum(ROWS.values())
    assert code == (count <= sum(ROWS.values())), "an index was hit: nothing is missing"
    assert ("damaged: " in said.err) == code
    assert cli.main(["store", "check", str(folder)]) == 1
    assert (folder / FILE_NAME).read_bytes() == data


def test_a_store_whose_schema_is_damaged_is_exported_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((folder / FILE_NAME).read_bytes())
    at = data.index(b"CREATE TABLE retained")
    data[at + 3] = 0xFF
    (folder / FILE_NAME).write_bytes(data)
    assert cli.main(["store", "export", str(folder)]) == 1
    said = capsys.readouterr()
    assert Counter(json.loads(line)["type"] for line in said.out.splitlines()) == {"store": 1, **ROWS}
    assert "damaged in the schema: retained" in said.err
    assert (folder / FILE_NAME).read_bytes() == data


def test_a_file_that_is_no_database_is_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / FILE_NAME).write_bytes(b"\xa5" * 9000)
    assert cli.main(["store", "check", str(folder)]) == 1
    said = capsys.readouterr().out
    assert ": DAMAGED\n" in said
    assert "file is not a database" in said


@pytest.mark.parametrize("action", ["check", "export"])
@pytest.mark.parametrize(
    ("version", "said"),
    [(3, "has format 3, of a newer program"), (1, "has format 1, of an older one"), (0, "damaged"), (-5, "damaged")],
)
def test_a_store_of_another_version(
    action: str, version: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, f"PRAGMA user_version = {version}")
    assert cli.main(["store", action, str(folder)]) == (3 if version > 0 else 1)
    if version > 0:
        assert said in capsys.readouterr().err


def test_a_folder_without_a_store_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "check", str(tmp_path)]) == 3
    assert f"there is no store in {tmp_path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_that_of_the_broker(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOSQUITTO_PERSISTENCE_LOCATION", raising=False)
    (tmp_path / "mosquitto.conf").write_text(f"persistence true\npersistence_location {folder}/\n")
    toml = tmp_path / "lockgate.toml"
    toml.write_text('[broker]\nmosquitto_conf = "mosquitto.conf"\n')
    assert cli.main(["store", "check", "-c", str(toml)]) == 0
    assert f"{folder / FILE_NAME}: whole" in capsys.readouterr().out
