"""The store on disk, with a broker's part played by the test: what is committed when, and what is there afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.broker.ports import (
    AWAITING_PUBREC,
    NEVER,
    RECEIVED,
    RETAINED,
    SESSIONS,
    SUBSCRIPTIONS,
    WILLS,
    Delivery,
    Message,
    StoredSession,
    StoredSubscription,
    StoredWill,
)
from lockgate.mqtt import reason_codes
from lockgate.mqtt.properties import Properties
from lockgate.sqlite import FolderInUse
from lockgate.storage.store import SqliteStore
from lockgate.telemetry.clock import Clock
from tests.support.stores import Owner


class Disk:
    """A folder whose store is opened again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = Owner()
        self.store: SqliteStore
        self._open: list[SqliteStore] = []

    def start(self) -> SqliteStore:
        self.owner = Owner()
        self.store = SqliteStore(self.folder, self.owner, Clock(), flush_seconds=5.0)
        self.store.open()
        self._open.append(self.store)
        self.store.restore(self.owner)
        return self.store

    def stop(self) -> None:
        self._open.remove(self.store)
        self.store.close()

    def commit(self, awaited: int) -> None:
        """Let one commit happen, as a turn of the loop and the thread's answer would."""
        self.owner.awaited = awaited
        self.store.settle()
        self.wait()

    def wait(self) -> None:
        commit = self.store._commit
        if commit is not None:
            commit.future.exception(10)
            self.store.settle()

    def rows(self, table: str) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(self.folder / "lockgate.db")
        try:
            return connection.execute(f"SELECT * FROM {table}").fetchall()
        finally:
            connection.close()

    def end(self) -> None:
        for store in self._open:
            store.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "data")
    yield made
    made.end()


def message(payload: bytes = b"x", topic: str = "a/b", properties: Properties | None = None) -> Message:
    return Message(topic, payload, 2, False, properties, NEVER, "p")


def append(store: SqliteStore, commit: int, client_id: str, position: int, of: Message) -> Delivery:
    delivery = Delivery(of, 1, False, 3, position, "$share/g/a")
    store.append(commit, client_id, delivery)
    return delivery


def session(store: SqliteStore, commit: int, client_id: str = "s") -> None:
    store.set(commit, SESSIONS, (client_id,), StoredSession(100, NEVER, "user"))


def test_nothing_is_committed_before_somebody_waits_for_it(disk: Disk) -> None:
    store = disk.start()
    session(store, 1)
    disk.commit(awaited=0)
    assert disk.owner.commits == []
    disk.commit(awaited=1)
    assert disk.owner.commits == [1]
    assert store.status()["commits"] == 1


def test_what_came_and_went_is_committed_without_the_disk(disk: Disk) -> None:
    store = disk.start()
    session(store, 1)
    disk.commit(1)
    append(store, 2, "s", 1, message())
    store.acknowledge(3, "s", 1)
    disk.commit(2)
    assert disk.owner.commits == [1, 3]
    assert store.status()["commits"] == 1


def test_a_flush_writes_what_nobody_waits_for(disk: Disk) -> None:
    store = disk.start()
    store.set(1, RETAINED, ("t",), message(topic="t"))
    store.flush()
    disk.commit(0)
    assert disk.owner.commits == [1]


def test_everything_is_there_after_a_restart(disk: Disk) -> None:
    store = disk.start()
    full = Properties(content_type="text", user_properties=(("k", "v"), ("k", "w")), correlation_data=b"\x00")
    session(store, 1)
    store.set(2, SUBSCRIPTIONS, ("s", "a/#"), StoredSubscription(2, True, True, 7))
    store.set(3, RECEIVED, ("s", "65535"), message(b"half"))
    sent = append(store, 4, "s", 1, message(b"sent", properties=full))
    sent.packet_id, sent.state = 9, AWAITING_PUBREC
    store.update(5, "s", sent)
    for position in (2, 3):
        append(store, 4 + position, "s", position, message(b"%d" % position))
    store.set(8, RETAINED, ("r",), message(b"kept", "r", full))
    store.set(9, WILLS, ("s",), StoredWill(message(b"gone"), 4, 30, NEVER))
    disk.commit(9)
    disk.stop()
    store = disk.start()
    owner = disk.owner
    stored, subscriptions, received = owner.sessions["s"], owner.subscriptions["s"], owner.received["s"]
    assert (stored.expiry_interval, stored.expires_at, stored.username) == (100, NEVER, "user")
    options = subscriptions["a/#"]
    assert (options.qos, options.no_local, options.retain_as_published, options.identifier) == (2, True, True, 7)
    assert received[65535].payload == b"half"
    queue = owner.queues["s"]
    [flying] = queue.in_flight
    assert (flying.position, flying.packet_id, flying.state) == (1, 9, AWAITING_PUBREC)
    assert (flying.qos, flying.identifier, flying.share) == (1, 3, "$share/g/a")
    assert flying.message.properties == full
    assert (queue.count, queue.size_bytes, queue.head_position, queue.last_position) == (2, 8, 1, 3)
    assert (owner.retained["r"].payload, owner.retained["r"].properties) == (b"kept", full)
    will = owner.wills["s"]
    assert (will.message.payload, will.delay, will.keep_alive, will.due_at) == (b"gone", 4, 30, NEVER)
    store.want("s", 1, 1)
    store.want("s", 2, 10)
    disk.commit(0)
    assert [(client_id, [one.message.payload for one in found]) for client_id, found in owner.found] == [
        ("s", [b"2"]),
        ("s", [b"3"]),
    ]


def test_what_is_wanted_may_have_come_in_the_same_turn(disk: Disk) -> None:
    store = disk.start()
    session(store, 1)
    append(store, 2, "s", 1, message(b"new"))
    store.want("s", 0, 10)
    disk.commit(0)
    [(_client_id, [found])] = disk.owner.found
    assert found.message.payload == b"new"


def test_what_is_in_flight_is_not_found_again(disk: Disk) -> None:
    """Even if something before it waits: a row that should be gone, in a store that was salvaged."""
    store = disk.start()
    session(store, 1)
    append(store, 2, "s", 1, message(b"waits"))
    flight = append(store, 3, "s", 2, message(b"flies"))
    append(store, 4, "s", 3, message(b"waits, too"))
    flight.packet_id, flight.state = 7, AWAITING_PUBREC
    store.update(5, "s", flight)
    disk.commit(5)
    disk.stop()
    store = disk.start()
    assert [one.packet_id for one in disk.owner.queues["s"].in_flight] == [7]
    store.want("s", disk.owner.queues["s"].head_position, 10)
    disk.commit(0)
    ((_client_id, found),) = disk.owner.found
    assert [one.message.payload for one in found] == [b"waits", b"waits, too"]


def test_a_session_that_ended_gets_no_answer_and_leaves_nothing(disk: Disk) -> None:
    store = disk.start()
    session(store, 1)
    store.set(2, SUBSCRIPTIONS, ("s", "a"), StoredSubscription(1, False, False, 0))
    store.set(3, RECEIVED, ("s", "1"), message())
    for position in range(1, 12_001):  # more than are removed at once
        append(store, 3 + position, "s", position, message())
    disk.commit(12_003)
    store.want("s", 0, 1)
    store.end_session(12_004, "s")
    session(store, 12_005)
    append(store, 12_006, "s", 1, message(b"of the new one"))
    disk.commit(12_006)
    assert disk.owner.found == []
    for _piece in range(5):
        disk.commit(0)
    assert [row[1] for row in disk.rows("sessions")] == ["s"]
    assert len(disk.rows("deliveries")) == len(disk.rows("messages")) == 1
    assert disk.rows("subscriptions") == disk.rows("received") == []


def test_what_is_left_of_an_ended_session_goes_after_a_restart(disk: Disk) -> None:
    store = disk.start()
    session(store, 1)
    session(store, 2, "t")
    append(store, 3, "s", 1, message())
    append(store, 4, "t", 1, message())
    disk.commit(4)
    disk.stop()
    connection = sqlite3.connect(disk.folder / "lockgate.db")
    connection.execute("DELETE FROM sessions WHERE client_id = 's'")
    connection.commit()
    connection.close()
    disk.start()
    assert set(disk.owner.queues) == {"t"}
    disk.commit(0)
    disk.wait()
    assert len(disk.rows("deliveries")) == len(disk.rows("messages")) == 1


def test_a_message_stays_until_its_last_receiver_has_it(disk: Disk) -> None:
    store = disk.start()
    session(store, 1, "s")
    session(store, 2, "t")
    shared = message()
    append(store, 3, "s", 1, shared)
    append(store, 4, "t", 1, shared)
    disk.commit(4)
    assert len(disk.rows("messages")) == 1
    store.acknowledge(5, "s", 1)
    store.flush()
    disk.commit(0)
    assert len(disk.rows("messages")) == 1
    store.acknowledge(6, "t", 1)
    store.flush()
    disk.commit(0)
    assert disk.rows("messages") == disk.rows("deliveries") == []


def test_a_second_owner_is_refused(disk: Disk) -> None:
    disk.start()
    with pytest.raises(FolderInUse, match="is written by process"):
        SqliteStore(disk.folder, Owner(), Clock(), flush_seconds=5.0).open()


def test_a_commit_that_fails_confirms_nothing_and_is_made_again(disk: Disk) -> None:
    store = disk.start()
    session(store, 1)
    disk.commit(1)
    blocker = sqlite3.connect(disk.folder / "lockgate.db", isolation_level=None)
    blocker.execute("PRAGMA max_page_count")
    connect = store._writer._open_connection

    def small() -> sqlite3.Connection:
        connection = connect()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    store._writer._open_connection = small
    store._writer.between(lambda _connection: 1 / 0).exception(10)  # it is opened anew, with no room left
    append(store, 2, "s", 1, message(b"x" * 100_000))
    for _piece in range(3):  # the reserve has two, which help nothing here
        disk.commit(2)
    assert disk.owner.commits == [1]
    assert disk.owner.failures == [reason_codes.QUOTA_EXCEEDED]
    assert store.status()["failing"] is True
    assert store.held_bytes > 100_000
    append(store, 3, "s", 2, message(b"later"))
    store._writer._open_connection = connect
    store._retry_at = 0.0
    disk.commit(3)
    assert set(disk.owner.commits) == {1, 3}
    assert store.status()["failing"] is False
    assert store.held_bytes == 0
    assert len(disk.rows("deliveries")) == 2
    blocker.close()


def test_what_is_done_before_it_could_be_written_leaves_nothing(disk: Disk) -> None:
    """On a full disk what is done is removed first: not what an earlier commit that failed has still to write."""
    store = disk.start()
    session(store, 1)
    for position in (1, 2):
        append(store, position + 1, "s", position, message(b"old"))
    disk.commit(3)
    connect = store._writer._open_connection

    def small() -> sqlite3.Connection:
        connection = connect()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    store._writer._open_connection = small
    store._writer.between(lambda _connection: 1 / 0).exception(10)  # it is opened anew, with no room left
    append(store, 4, "s", 3, message(b"x" * 100_000))
    disk.commit(4)
    for position in (1, 3):
        store.acknowledge(4 + position, "s", position)
    for _try in range(4):
        store._retry_at = 0.0
        disk.commit(7)
    assert len(disk.rows("deliveries")) == 1  # what was written and is done made room
    store._writer._open_connection = connect
    store._writer.between(lambda _connection: 1 / 0).exception(10)
    for _try in range(4):
        store._retry_at = 0.0
        disk.commit(7)
    assert disk.owner.commits[-1] == 7
    assert [row[0] for row in disk.rows("deliveries")] == [1 << 36 | 2]


def test_a_question_that_fails_is_asked_again_after_a_while_and_ends_the_failure(disk: Disk) -> None:
    store = disk.start()
    session(store, 1)
    session(store, 2, "ended")
    append(store, 3, "s", 1, message())
    append(store, 4, "ended", 1, message())
    disk.commit(4)
    connect = store._writer._open_connection

    def broken() -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    store._writer._open_connection = broken
    store._writer.between(lambda _connection: 1 / 0).exception(10)  # it is opened anew
    store.want("s", 0, 10)
    disk.commit(4)
    assert len(disk.owner.failures) == 1
    store.settle()
    assert store._commit is None  # not at once
    store._writer._open_connection = connect
    store._retry_at = 0.0
    disk.commit(4)
    assert disk.owner.commits == [4, 4]  # the second one says that it can be written again
    assert [len(deliveries) for _client_id, deliveries in disk.owner.found] == [1]


def test_what_is_left_of_an_ended_session_is_tried_again_after_a_while(disk: Disk) -> None:
    store = disk.start()
    session(store, 1)
    append(store, 2, "s", 1, message())
    disk.commit(2)
    connect = store._writer._open_connection

    def broken() -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    store._purging.append(store.changes.numbers["s"])
    store._writer._open_connection = broken
    store._writer.between(lambda _connection: 1 / 0).exception(10)
    disk.commit(2)
    assert len(disk.owner.failures) == 1
    store.settle()
    assert store._commit is None
    store._writer._open_connection = connect
    store._retry_at = 0.0
    disk.commit(2)
    assert disk.owner.commits == [2, 2]
    assert disk.rows("deliveries") == []


def test_the_end_writes_what_is_left(disk: Disk) -> None:
    store = disk.start()
    store.set(1, RETAINED, ("t",), message(topic="t"))
    disk.stop()
    disk.start()
    assert set(disk.owner.retained) == {"t"}


def test_damage_while_it_serves_is_told(disk: Disk) -> None:
    store = disk.start()
    session(store, 1)
    for position in range(1, 2001):
        append(store, 1 + position, "s", position, message(b"x" * 100))
    disk.commit(2001)
    store._writer.between(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")).result(10)
    with (disk.folder / "lockgate.db").open("r+b") as file:
        file.seek(4096 * 2)
        file.write(b"\xff" * 4096 * 20)
    store._writer.between(lambda _connection: 1 / 0).exception(10)  # it is opened anew, and nothing is remembered
    for position in range(1, 2001):
        store.acknowledge(2001 + position, "s", position)
    store.flush()
    disk.commit(4001)
    assert "is damaged: database disk image is malformed" in disk.owner.damaged
    assert disk.owner.commits == [2001]


def test_acknowledgements_alone_do_not_sync_for_what_is_wanted(disk: Disk) -> None:
    store = disk.start()
    session(store, 1)
    for position in range(1, 11):
        append(store, 1 + position, "s", position, message(b"%d" % position))
    disk.commit(11)
    for position in range(1, 6):
        store.acknowledge(11 + position, "s", position)
    store.want("s", 5, 10)
    disk.commit(0)
    assert [one.message.payload for one in disk.owner.found[0][1]] == [b"6", b"7", b"8", b"9", b"10"]
    assert store.status()["commits"] == 1
    append(store, 17, "s", 11, message(b"11"))
    store.want("s", 10, 10)
    disk.commit(0)
    assert [one.message.payload for one in disk.owner.found[1][1]] == [b"11"]
    assert store.status()["commits"] == 2
    assert len(disk.rows("deliveries")) == 6
