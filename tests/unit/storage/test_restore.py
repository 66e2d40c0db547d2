"""What is read at the start, what is left out of a damaged store, and what becomes of that."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from lockgate.broker.ports import AWAITING_PUBACK, AWAITING_PUBCOMP, NEVER, RETAINED, SESSIONS, Delivery, StoredSession
from lockgate.storage.restore import open_stored
from lockgate.storage.rows import HIGHEST_NUMBER
from lockgate.storage.store import FILE_NAME, SqliteStore
from lockgate.telemetry.clock import Clock, Moment
from tests.support.stores import Owner, StoreDamaged, fill, message, open_store, settle

Change = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a store with something of everything, closed."""
    store, owner = open_store(tmp_path / "data")
    settle(store, owner, fill(store))
    store.close()
    return store.folder


def change(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
    for statement in statements:
        assert connection.execute(statement).rowcount != 0
    connection.close()


def rows(folder: Path, select: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(folder / FILE_NAME)
    try:
        return connection.execute(select).fetchall()
    finally:
        connection.close()


def ask(store: SqliteStore, owner: Owner, client_id: str, after: int = 0, limit: int = 1000) -> list[Delivery]:
    owner.asked += 1
    store.want(client_id, after, limit)
    settle(store, owner, 0)
    return owner.found[-1][1]


def test_a_store_of_the_first_format_is_brought_up_to_date(folder: Path) -> None:
    tables = ("messages", "deliveries", "received", "retained", "wills")
    change(folder, *(f"ALTER TABLE {table} DROP COLUMN checksum" for table in tables), "PRAGMA user_version = 1")
    store, owner = open_store(folder)
    assert store.damage is None
    assert len(owner.retained) == 40
    assert len(ask(store, owner, "client-0")) == 78
    store.set(7, RETAINED, ("new",), message("new", b"x"))
    store.flush()
    settle(store, owner, 7)
    store.close()
    assert rows(folder, "SELECT count(*) FROM retained WHERE checksum IS NULL") == [(40,)]
    assert rows(folder, "SELECT count(*) FROM retained WHERE checksum IS NOT NULL") == [(1,)]
    store, owner = open_store(folder)
    assert (store.damage, len(owner.retained)) == (None, 41)
    store.close()


def test_everything_comes_back(folder: Path) -> None:
    store, owner = open_store(folder)
    assert list(owner.queues) == [f"client-{n}" for n in range(6)]
    queue = owner.queues["client-0"]
    assert [(d.packet_id, d.state, d.position) for d in queue.in_flight] == [
        (1, AWAITING_PUBACK, 1),
        (2, AWAITING_PUBCOMP, 3),
    ]
    assert (queue.count, queue.head_position, queue.last_position) == (78, 1, 80)
    waiting = [d for d in ask(store, owner, "client-0", queue.head_position) if not d.packet_id]
    assert queue.size_bytes == sum(d.message.size() for d in waiting)
    assert [d.position for d in waiting] == [2, *range(4, 81)]
    assert owner.queues["client-1"].head_position == 4
    assert list(owner.subscriptions["client-3"]) == ["a/#", "b/3/+", "$share/g/c"]
    assert list(owner.received["client-3"]) == [10]
    assert len(owner.retained) == 40
    assert owner.wills["client-5"].delay == 30
    assert store.status()["left_out"] == {}
    assert store.damage is None
    store.close()


UNSUMMED = ("subscriptions",)
BAD_ROWS = [
    ("retained", "UPDATE retained SET topic = CAST(x'ff41' AS TEXT) WHERE id = 3"),
    ("retained", "UPDATE retained SET topic = 'a/+' WHERE id = 3"),
    ("retained", "UPDATE retained SET topic = 'a' || char(0) WHERE id = 3"),
    ("retained", "UPDATE retained SET topic = '' WHERE id = 3"),
    ("retained", "UPDATE retained SET payload = 'text' WHERE id = 3"),
    ("retained", "UPDATE retained SET payload = 7 WHERE id = 3"),
    ("retained", "UPDATE retained SET properties = x'0261' WHERE id = 3"),
    ("retained", "UPDATE retained SET properties = 'text' WHERE id = 3"),
    ("retained", "UPDATE retained SET properties = x'0001' WHERE id = 3"),
    ("retained", "UPDATE retained SET properties = x'03230007' WHERE id = 3"),  # a Topic Alias
    ("retained", "UPDATE retained SET qos = -1 WHERE id = 3"),
    ("retained", "UPDATE retained SET qos = 1.5 WHERE id = 3"),
    ("retained", "UPDATE retained SET retain = 7 WHERE id = 3"),
    ("retained", "UPDATE retained SET expires_at = 1e999 WHERE id = 3"),
    ("retained", "UPDATE retained SET arrived_at = x'00' WHERE id = 3"),
    ("retained", "UPDATE retained SET publisher = x'00' WHERE id = 3"),
    ("wills", "UPDATE wills SET keep_alive = 65536 WHERE id = 3"),
    ("wills", "UPDATE wills SET due_at = 'now' WHERE id = 3"),
    ("wills", "UPDATE wills SET client_id = x'ff' WHERE id = 3"),
    ("received", "UPDATE received SET id = 1 << 16 WHERE id >> 16 = 1"),  # Packet Identifier 0
    ("received", "UPDATE received SET id = 99 << 16 | 1 WHERE id >> 16 = 1"),
    ("subscriptions", "UPDATE subscriptions SET topic_filter = 'a/#/b' WHERE id = 3"),
    ("subscriptions", "UPDATE subscriptions SET qos = 3 WHERE id = 3"),
    ("subscriptions", "UPDATE subscriptions SET identifier = 268435456 WHERE id = 3"),
    ("subscriptions", "UPDATE subscriptions SET session = x'01' WHERE id = 3"),
    ("subscriptions", "UPDATE subscriptions SET session = 99 WHERE id = 3"),
    ("deliveries", "UPDATE deliveries SET packet_id = 70000 WHERE id = 1 << 36 | 1"),
    ("deliveries", "UPDATE deliveries SET packet_id = x'01' WHERE id = 1 << 36 | 1"),
    ("deliveries", "UPDATE deliveries SET packet_id = 2 WHERE id = 1 << 36 | 1"),  # a Packet Identifier twice
    ("deliveries", "UPDATE deliveries SET state = 4 WHERE id = 1 << 36 | 1"),
    ("deliveries", "UPDATE deliveries SET share = CAST(x'ff' AS TEXT) WHERE id = 1 << 36 | 1"),
    ("deliveries", "UPDATE deliveries SET message = 9999 WHERE id = 1 << 36 | 1"),
]
CHANGED_ROWS = [  # into what could have been written, but was not
    ("retained", "UPDATE retained SET topic = topic || '/' WHERE id = 3"),
    ("retained", "UPDATE retained SET payload = x'00' WHERE id = 3"),
    ("retained", "UPDATE retained SET properties = x'020101' WHERE id = 3"),
    ("retained", "UPDATE retained SET qos = (qos + 1) % 3 WHERE id = 3"),
    ("retained", "UPDATE retained SET retain = NOT retain WHERE id = 3"),
    ("retained", "UPDATE retained SET expires_at = expires_at + 1 WHERE id = 3"),
    ("retained", "UPDATE retained SET arrived_at = arrived_at + 1 WHERE id = 3"),
    ("retained", "UPDATE retained SET publisher = publisher || 'x' WHERE id = 3"),
    ("retained", "UPDATE retained SET publisher_user = 'x' WHERE id = 3"),
    ("wills", "UPDATE wills SET payload = x'00' WHERE id = 3"),
    ("received", "UPDATE received SET payload = x'00' WHERE id >> 16 = 1"),
    ("deliveries", "UPDATE deliveries SET message = message + 1 WHERE id = 1 << 36 | 1"),
    ("deliveries", "UPDATE deliveries SET shared = NOT shared WHERE id = 1 << 36 | 1"),
    ("deliveries", "UPDATE deliveries SET size = size + 1 WHERE id = 1 << 36 | 1"),
    ("deliveries", "UPDATE deliveries SET qos = (qos + 1) % 3 WHERE id = 1 << 36 | 1"),
    ("deliveries", "UPDATE deliveries SET retain = NOT retain WHERE id = 1 << 36 | 1"),
    ("deliveries", "UPDATE deliveries SET identifier = identifier + 1 WHERE id = 1 << 36 | 1"),
    ("deliveries", "UPDATE deliveries SET share = share || 'x' WHERE id = 1 << 36 | 1"),
]
WITHOUT_CHECKSUM = [  # what makes no sense is found in rows of the first format too
    (table, statement.replace(" SET ", " SET checksum = NULL, ") if table not in UNSUMMED else statement)
    for table, statement in BAD_ROWS
]


@pytest.mark.parametrize(
    ("table", "statement"),
    [*WITHOUT_CHECKSUM, *CHANGED_ROWS],
    ids=[statement for _, statement in [*WITHOUT_CHECKSUM, *CHANGED_ROWS]],
)
def test_a_row_that_nobody_wrote_is_left_out_and_the_rest_restored(
    table: str, statement: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder, statement)
    before = (folder / FILE_NAME).read_bytes()
    store, owner = open_store(folder)
    assert store.status()["left_out"] == {table: 1}
    assert f"rows by table: {{'{table}': 1}}" in caplog.text
    assert store.damage is not None
    assert f"table {table}, row " in store.damage.finding
    assert store.damage.path.read_bytes() == before, "the file as it was is kept"
    left = {
        "retained": 40 - len(owner.retained),
        "wills": 6 - len(owner.wills),
        "received": 6 - sum(map(len, owner.received.values())),
        "subscriptions": 18 - sum(map(len, owner.subscriptions.values())),
        "deliveries": 280 - sum(len(queue.in_flight) + queue.count for queue in owner.queues.values()),
    }
    assert left == dict.fromkeys(left, 0) | {table: 1}
    store.close()
    store, _ = open_store(folder)
    assert store.status()["left_out"] == {}, "they are gone"
    assert store.damage is None
    store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sessions SET client_id = x'ff' WHERE number = 2",
        "UPDATE sessions SET client_id = '' WHERE number = 2",
        "UPDATE sessions SET username = x'ff' WHERE number = 2",
        "UPDATE sessions SET expiry_interval = 4294967296 WHERE number = 2",
        "UPDATE sessions SET number = -2 WHERE number = 2",
        "UPDATE sessions SET number = 1 << 36 WHERE number = 2",
    ],
)
def test_a_session_that_cannot_be_read_is_left_out_with_what_it_had(statement: str, folder: Path) -> None:
    change(folder, statement)
    store, owner = open_store(folder)
    assert len(owner.queues) == 5
    assert store.status()["left_out"] == {"sessions": 1, "subscriptions": 3, "received": 1}
    store.flush()
    for number in range(100, 103):  # its deliveries go with the next commits
        store.set(number, SESSIONS, (f"s{number}",), StoredSession(9, NEVER, None))
        settle(store, owner, number)
    assert rows(folder, "SELECT count(*) FROM deliveries WHERE id >> 36 = 2") == [(0,)]
    store.close()


def test_a_queued_message_that_cannot_be_read_is_left_out_when_its_turn_comes(folder: Path) -> None:
    change(folder, "UPDATE messages SET properties = x'7f' WHERE topic IN ('a/5', 'a/6')",
           "UPDATE deliveries SET message = 9999 WHERE id = 2 << 36 | 15")  # fmt: skip
    store, owner = open_store(folder)
    assert store.status()["left_out"] == {}
    found = ask(store, owner, "client-1", 4, 5)
    assert [d.position for d in found] == [5, 7, 9, 17, 19]
    assert store.status()["left_out"] == {"deliveries": 3}
    assert [d.position for d in ask(store, owner, "client-1", 4, 5)] == [5, 7, 9, 17, 19]
    assert store.status()["left_out"] == {"deliveries": 3}
    store.close()


def test_a_page_of_rows_that_cannot_be_read_does_not_hide_those_behind_it(folder: Path) -> None:
    change(folder, "UPDATE deliveries SET qos = 3 WHERE id > 2 << 36 | 4 AND id < 2 << 36 | 40")
    store, owner = open_store(folder)
    assert [d.position for d in ask(store, owner, "client-1", 4, 3)] == [41, 43, 45]
    store.close()


def test_sizes_that_nobody_wrote_do_not_stop_the_start(folder: Path) -> None:
    change(folder, f"UPDATE deliveries SET size = {(1 << 63) - 1} WHERE id >> 36 = 1",
           "UPDATE deliveries SET size = x'ff' WHERE id >> 36 = 2",
           "UPDATE deliveries SET size = -5 WHERE id >> 36 = 3")  # fmt: skip
    store, owner = open_store(folder)
    assert [owner.queues[f"client-{n}"].size_bytes for n in range(3)] == [0, 0, 0]
    assert owner.queues["client-3"].size_bytes > 0
    store.close()


def test_an_index_that_contradicts_its_table_is_made_anew(folder: Path) -> None:
    data = (folder / FILE_NAME).read_bytes()
    assert data.count(b"retained/17") == 2
    (folder / FILE_NAME).write_bytes(data.replace(b"retained/17", b"retained/xy", 1))  # in one of both
    store, owner = open_store(folder)
    assert store.damage is not None
    for topic in owner.retained:
        store.delete(7, RETAINED, (topic,))
    settle(store, owner, 7)
    store.close()
    assert rows(folder, "SELECT topic FROM retained") == []


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("UPDATE deliveries SET message = message + 2 WHERE id = 1 << 36 | 7", [1, 0]),  # that of others
        ("UPDATE deliveries SET shared = NOT shared WHERE id = 1 << 36 | 7", [1, 0]),
        ("UPDATE messages SET payload = x'00' WHERE topic = 'a/3'", [1, 1]),
        ("UPDATE messages SET expires_at = 1 WHERE topic = 'b/0/3'", [1, 0]),
    ],
)
def test_what_waits_is_looked_at_when_its_turn_comes(
    statement: str, lost: list[int], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder, statement)
    store, owner = open_store(folder)
    assert store.damage is None
    counts = [len(ask(store, owner, client_id)) for client_id in ("client-0", "client-1")]
    assert counts == [78 - lost[0], 38 - lost[1]]
    assert "messages that waited in the store are damaged, first row" in caplog.text
    assert "its checksum is that of something else" in caplog.text
    store.close()
    assert rows(folder, "SELECT count(*) FROM messages WHERE id NOT IN (SELECT message FROM deliveries)") == [(0,)]


def test_after_a_commit_has_met_damage_the_next_start_looks_at_all_indexes(folder: Path) -> None:
    spelled = "UPDATE sqlite_schema SET sql = replace(sql, '{}', '{}') WHERE name = 'shared_deliveries'"
    change(folder, "PRAGMA writable_schema = ON", spelled.format("WHERE shared", "WHERE size = -1"))
    columns = "message, shared, size, qos, retain, identifier, share, 0, 0, NULL"
    change(folder, f"INSERT INTO deliveries SELECT id + 1000, {columns} FROM deliveries WHERE shared")
    change(folder, "PRAGMA writable_schema = ON", spelled.format("WHERE size = -1", "WHERE shared"))
    store, owner = open_store(folder)
    assert store.damage is None
    for client_id in owner.queues:
        for delivery in (*owner.queues[client_id].in_flight, *ask(store, owner, client_id)):
            store.acknowledge(7, client_id, delivery.position)
    with pytest.raises(StoreDamaged, match="malformed"):
        settle(store, owner, 7)
    store.close()
    store, owner = open_store(folder)
    assert store.damage is not None
    for client_id in owner.queues:
        for delivery in (*owner.queues[client_id].in_flight, *ask(store, owner, client_id)):
            store.acknowledge(7, client_id, delivery.position)
    settle(store, owner, 7)
    store.close()
    store, owner = open_store(folder)
    assert store.damage is None, "it was made anew"
    assert rows(folder, "SELECT count(*) FROM messages") == [(0,)]
    store.close()


def test_a_session_number_that_nobody_wrote_leaves_room_for_new_ones(folder: Path) -> None:
    change(folder, f"UPDATE sessions SET number = {HIGHEST_NUMBER} WHERE number = 6",
           "UPDATE messages SET id = 9223372036854775807 WHERE id = 80",
           "UPDATE deliveries SET message = 9223372036854775807 WHERE message = 80")  # fmt: skip
    store, owner = open_store(folder)
    store.set(2, SESSIONS, ("new",), StoredSession(9, NEVER, None))
    store.append(2, "new", Delivery(message("t", b"x"), 1, False, 0, 1))
    settle(store, owner, 2)
    assert ask(store, owner, "new")[0].message.payload == b"x"
    store.close()


class NextBoot:
    """The clocks of a machine that was off for a time nobody knows."""

    def now(self) -> Moment:
        return Moment("next", 10_000_000_000, 0, False)


def test_when_nobody_knows_how_long_the_machine_was_off_messages_with_an_expiry_are_expired(folder: Path) -> None:
    stored, damage = open_stored(folder / FILE_NAME, NextBoot())
    assert damage is None
    assert stored.summary.expired == 20
    assert stored.summary.messages == 260
    assert rows(folder, "SELECT count(*) FROM messages WHERE expires_at != 0") == [(0,)]
    assert open_stored(folder / FILE_NAME, NextBoot())[0].summary.expired == 0


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM clock",
        "UPDATE clock SET boot_id = x'ff'",
        "UPDATE clock SET store_time = -1",
        "UPDATE clock SET wall_time = 1e999",
        "UPDATE clock SET boottime = 'x'",
    ],
)
def test_without_the_clocks_note_nobody_knows_either(statement: str, folder: Path) -> None:
    change(folder, "UPDATE retained SET arrived_at = 5000, checksum = NULL WHERE id = 1", statement)
    stored, _ = open_stored(folder / FILE_NAME, Clock())
    assert stored.clock.off_seconds is None
    assert stored.summary.expired == 20
    assert stored.clock.to_store(Clock().now().boottime_ns / 1e9) == pytest.approx(5000, abs=5)
