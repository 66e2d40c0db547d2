"""What was read from another broker's store, as rows of ours."""

from __future__ import annotations

import io
from pathlib import Path

from lockgate.broker.ports import (
    AWAITING_PUBACK,
    AWAITING_PUBCOMP,
    AWAITING_PUBREC,
    NEVER,
    QUEUED,
    RECEIVED,
    RETAINED,
    SESSIONS,
    SUBSCRIPTIONS,
    WILLS,
    Message,
    StoredSession,
    StoredSubscription,
    StoredWill,
)
from lockgate.mqtt.properties import Properties
from lockgate.storage import mosquitto_db
from lockgate.storage.imported import NEVER_EXPIRES, Imported, write
from tests.support.imports import Rows, options
from tests.support.mosquitto_stores import EVERYTHING, DbWriter, fill
from tests.support.mosquitto_stores import QUEUED as FILE_QUEUED
from tests.support.mosquitto_stores import WAIT_PUBACK as FILE_WAIT_PUBACK

NOW = 100.0
WALL = 2_000_000_000 - 50.0  # fifty seconds before the times in `fill`


def read(writer: DbWriter) -> Imported:
    return mosquitto_db.read_stream(io.BytesIO(writer.data), len(writer.data), Path("mosquitto.db"))


def filled() -> Imported:
    writer = DbWriter(6)
    fill(writer, True)
    return read(writer)


def test_everything_becomes_a_row_under_one_commit_number() -> None:
    rows = Rows()
    counts = write(rows, 7, filled(), NOW, WALL)
    assert rows.commits == {7}
    session = rows.rows[SESSIONS, ("durable",)]
    assert isinstance(session, StoredSession)
    assert (session.username, session.expiry_interval, session.expires_at) == ("ann", 3600, NOW + 50)
    other = rows.rows[SESSIONS, ("other",)]
    assert (other.username, other.expiry_interval, other.expires_at) == (None, NEVER_EXPIRES, NEVER)
    subscription = rows.rows[SUBSCRIPTIONS, ("durable", "house/+")]
    assert isinstance(subscription, StoredSubscription)
    assert options(subscription) == (2, True, True, 9)
    assert options(rows.rows[SUBSCRIPTIONS, ("durable", "$share/group/jobs/#")]) == (1, False, False, 0)
    received = rows.rows[RECEIVED, ("durable", "31")]
    assert isinstance(received, Message)
    assert (received.topic, received.payload, received.qos) == ("half", b"way", 2)
    retained = rows.rows[RETAINED, ("state",)]
    assert isinstance(retained, Message)
    assert (retained.payload, retained.retain, retained.publisher) == (b"on \x00\xff", True, "publisher")
    assert retained.properties == EVERYTHING
    assert [(d.position, d.message.payload, d.packet_id, d.state, d.qos, d.retain) for d in rows.queues["durable"]] == [
        (1, b"first", 21, AWAITING_PUBACK, 1, False),
        (2, b"second", 22, AWAITING_PUBREC, 2, False),
        (3, b"second", 23, AWAITING_PUBCOMP, 2, False),
        (4, b"", 0, QUEUED, 1, True),
        (5, b"first", 0, QUEUED, 1, False),
    ]
    assert rows.queues["durable"][2].identifier == 9
    assert rows.queues["other"][0].message is rows.queues["durable"][0].message  # kept once, however many wait for it
    assert rows.queues["other"][0].message.expires_at == NOW + 50
    assert (counts.sessions, counts.subscriptions, counts.in_flight, counts.queued) == (2, 3, 3, 3)
    assert (counts.received, counts.retained, counts.messages_expired) == (1, 1, 0)


def test_what_is_over_is_counted_but_what_a_client_has_seen_is_kept() -> None:
    rows = Rows()
    counts = write(rows, 1, filled(), NOW, WALL + 60)
    assert (SESSIONS, ("durable",)) not in rows.rows
    assert "durable" not in rows.queues
    assert (counts.sessions_expired, counts.messages_expired, counts.sessions) == (1, 1, 1)

    writer = DbWriter(6)
    writer.message(1, "t", b"x", expires_at=1000, retain=True)
    writer.client("c")
    writer.client_message("c", 1, 5, 1, FILE_WAIT_PUBACK)
    writer.client_message("c", 1, 6, 1, FILE_QUEUED)
    writer.retained(1)
    rows = Rows()
    counts = write(rows, 1, read(writer), 100.0, 1100.0)  # it was over when the broker's clock showed 0
    [delivery] = rows.queues["c"]
    assert delivery.packet_id == 5
    assert delivery.message.expires_at != NEVER
    assert delivery.message.expires_at < 1
    assert counts.messages_expired == 2
    assert (RETAINED, ("t",)) not in rows.rows


def test_without_a_wall_clock_messages_with_an_expiry_are_over_and_sessions_are_not() -> None:
    rows = Rows()
    counts = write(rows, 1, filled(), NOW, None)
    assert rows.rows[SESSIONS, ("durable",)].expires_at == NOW + 3600
    assert [delivery.message.payload for delivery in rows.queues["durable"]] == [b"first", b"second", b"second", b""]
    assert counts.messages_expired == 2
    assert (RETAINED, ("state",)) in rows.rows


def test_a_wall_clock_of_1970_gives_no_session_more_than_its_interval() -> None:
    rows = Rows()
    write(rows, 1, filled(), NOW, 10.0)
    assert rows.rows[SESSIONS, ("durable",)].expires_at == NOW + 3600


def test_a_session_that_was_connected_has_its_interval_from_now_and_one_without_an_interval_ended() -> None:
    writer = DbWriter(6)
    writer.client("connected", interval=60)
    writer.client("brief", interval=0)
    writer.subscription("brief", "t", 1)
    rows = Rows()
    counts = write(rows, 1, read(writer), NOW, WALL)
    assert rows.rows[SESSIONS, ("connected",)].expires_at == NOW + 60
    assert [key for _table, key in rows.rows] == [("connected",)]
    assert counts.sessions_ended == 1


def test_what_our_store_knows_stays_as_it_is() -> None:
    rows = Rows()
    imported = filled()
    message = imported.message("gone", b"bye", 0, False, None, 0, "durable")
    imported.will("durable", message, None, 0)
    counts = write(rows, 1, imported, NOW, WALL, known_sessions={"durable"}, known_retained={"state"})
    assert {key[0] for _table, key in rows.rows} == {"other"}
    assert set(rows.queues) == {"other"}
    assert (counts.sessions_known, counts.retained_known, counts.wills) == (1, 1, 0)


def test_deliveries_of_one_message_follow_each_other_where_the_order_of_each_queue_allows_it() -> None:
    writer = DbWriter(6)
    for number in range(4):
        writer.message(number, "t", b"%d" % number)
    queues = {"a": (0, 1, 2), "b": (1, 2, 3), "c": (2, 0, 3)}
    for client_id, queue in queues.items():
        writer.client(client_id)
        for number in queue:
            writer.client_message(client_id, number, 1, 1, FILE_QUEUED)
    rows = Rows()
    write(rows, 1, read(writer), NOW, WALL)
    assert [delivery.message.payload for delivery in rows.appended] == [
        b"0",
        b"1",
        b"1",
        b"2",
        b"2",
        b"2",
        b"0",
        b"3",
        b"3",
    ]
    for client_id, queue in queues.items():
        assert [int(delivery.message.payload) for delivery in rows.queues[client_id]] == list(queue)
        assert [delivery.position for delivery in rows.queues[client_id]] == [1, 2, 3]


def test_what_is_known_is_what_was_known_before() -> None:
    imported = filled()
    message = imported.message("gone", b"bye", 0, False, None, 0, "durable")
    imported.will("durable", message, None, 0)
    rows = Rows()

    class Known:
        def __contains__(self, client_id: object) -> bool:
            return ("sessions", (client_id,)) in rows.rows

    counts = write(rows, 1, imported, NOW, WALL, known_sessions=Known())
    assert (counts.sessions, counts.wills) == (2, 1)


def test_a_will_keeps_its_expiry_which_begins_when_it_is_published() -> None:
    imported = Imported(Path("mosquitto.sqlite3"))
    properties = Properties(message_expiry_interval=9, content_type="t")
    imported.will("c", imported.message("gone", b"bye", 1, False, properties, 0, "c"), properties, 30)
    rows = Rows()
    assert write(rows, 1, imported, NOW, WALL).wills == 1
    will = rows.rows[WILLS, ("c",)]
    assert isinstance(will, StoredWill)
    assert (will.delay, will.keep_alive, will.due_at) == (30, 0, NEVER)
    assert will.message.expires_at == NEVER
    assert will.message.properties == properties


def test_what_belongs_to_one_delivery_does_not_stay_with_the_message() -> None:
    imported = Imported(Path("mosquitto.db"))
    own = Properties(message_expiry_interval=5, topic_alias=3, subscription_identifiers=(7,))
    message = imported.message("t", b"x", 1, False, own, 0, "c")
    assert message is not None
    assert message.properties is None
