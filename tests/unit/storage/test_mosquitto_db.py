"""mosquitto.db, versions 2 to 6."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.broker.ports import AWAITING_PUBACK, AWAITING_PUBCOMP, AWAITING_PUBREC, QUEUED
from lockgate.storage import mosquitto_db
from lockgate.storage.imported import NEVER_EXPIRES, Imported, UnreadableStore
from tests.support.imports import plain
from tests.support.mosquitto_stores import (
    EVERYTHING,
    HEADER,
    IN,
    OUT,
    RESEND_PUBCOMP,
    WAIT_PUBACK,
    WAIT_PUBCOMP,
    DbWriter,
    fill,
)
from tests.support.mosquitto_stores import QUEUED as FILE_QUEUED

VERSIONS = [2, 3, 4, 5, 6]
PATH = Path("mosquitto.db")


def read(data: bytes) -> Imported:
    return mosquitto_db.read_stream(io.BytesIO(data), len(data), PATH)


def filled(version: int, **machine: Any) -> bytes:
    writer = DbWriter(version, **machine)
    writer.configuration()
    fill(writer, version >= 5)
    return writer.data


def expected(version: int) -> dict[str, Any]:
    modern = version >= 5
    properties = repr(EVERYTHING if modern else None)
    expires_at = 2_000_000_000 if modern else 0
    first = ("house/a", b"first", 1, False, properties, expires_at, "publisher")
    second = ("house/b", b"second", 2, False, "None", 0, "publisher")
    third = ("house/c", b"", 1, False, "None", 0, "")
    identifier = 9 if modern else 0
    durable = {
        "username": "ann" if version == 6 else None,
        "interval": 3600 if modern else NEVER_EXPIRES,
        "expires_at": expires_at,
        "subscriptions": {
            "house/+": (2, modern, modern, identifier),
            "$share/group/jobs/#": (1, False, False, 0),
        },
        "received": {31: ("half", b"way", 2, False, "None", 0, "publisher")},
        "in flight": [
            (first, 1, False, 0, 21, AWAITING_PUBACK),
            (second, 2, False, 0, 22, AWAITING_PUBREC),
            (second, 2, False, identifier, 23, AWAITING_PUBCOMP),
        ],
        "queued": [(third, 1, True, 0, 0, QUEUED), (first, 1, False, 0, 0, QUEUED)],
    }
    other = {
        "username": None,
        "interval": NEVER_EXPIRES,
        "expires_at": 0,
        "subscriptions": {"#": (0, False, False, 0)},
        "received": {},
        "in flight": [],
        "queued": [(first, 1, False, 0, 0, QUEUED)],
    }
    state = ("state", b"on \x00\xff", 1, True, properties, 0, "publisher")
    return {"sessions": {"durable": durable, "other": other}, "retained": {"state": state}, "wills": {}}


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_in_a_file_is_read(version: int) -> None:
    imported = read(filled(version))
    assert imported.damage == ""
    assert imported.skipped == {}
    assert imported.form == f"mosquitto.db of version {version}"
    assert plain(imported) == expected(version)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_byte_order_and_the_paddings_of_other_machines_are_read(version: int) -> None:
    assert plain(read(filled(version, order=">"))) == expected(version)
    assert plain(read(filled(version, padded=False))) == expected(version)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("wrong", [0, 4, 8, 77])
def test_times_of_four_bytes_are_read_whatever_the_length_of_the_chunk_says(version: int, wrong: int) -> None:
    for time_bytes in (4, 8):
        writer = DbWriter(version, time_bytes=time_bytes)
        writer.configuration()
        before = len(writer.data)
        fill(writer, False)
        data = bytearray(writer.data)
        at = data.index(b"\x00\x06", before, data.index(b"\x00\x07durable"))
        while data[at + 6 : at + 15] != b"\x00\x07durable":
            at = data.index(b"\x00\x06", at + 1)
        data[at + 2 : at + 6] = (11 + wrong).to_bytes(4, "big")
        assert plain(read(bytes(data))) == expected(version)


def test_where_times_of_four_and_of_eight_bytes_both_lead_to_a_chunk_its_length_decides() -> None:
    writer = DbWriter(4, time_bytes=4)
    writer.client("a")
    writer.subscription("", "x", 1)  # its length of 6 and its first strings look like a header of type 6
    writer.client("b")
    imported = read(writer.data)
    assert imported.damage == ""
    assert list(imported.sessions) == ["a", "b"]


def test_a_fixed_part_of_a_size_that_no_machine_has_is_damage() -> None:
    writer = DbWriter(6)
    writer.client("c", b"user")
    data = bytearray(writer.data)
    at = writer.ends[0] + 8 + 18  # the length of the user name
    assert data[at : at + 2] == b"\x00\x04"
    data[at + 1] = 1
    assert "a client id of 1 bytes and a user name of 1 do not fit" in read(bytes(data)).damage


def test_a_user_name_that_mosquitto_2_0_took_from_the_client_before_is_nobodys() -> None:
    writer = DbWriter(6)
    for client_id, username in (
        ("a", b"bob"),
        ("b", b"bob\0" + b"\xff" * 764),  # as Debian's 2.0.11 writes clients without a user
        ("c", b"bob"),
        ("d", b"bob"),  # this is one of his again: else the length would be swapped
        ("e", b"eve"),
    ):
        writer.client(client_id, username)
    imported = read(writer.data)
    assert [session.username for session in imported.sessions.values()] == ["bob", None, None, "bob", "eve"]
    assert imported.skipped == {"user names of another client, which Mosquitto 2.0 mixes up": 2}


def test_a_session_without_an_interval_is_one_of_an_older_file_unless_it_was_connected() -> None:
    writer = DbWriter(6)
    writer.client("connected", interval=0)
    writer.client("older", interval=0, port=0)
    sessions = read(writer.data).sessions
    assert sessions["connected"].expiry_interval == 0
    assert sessions["older"].expiry_interval == NEVER_EXPIRES


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_cut_off_anywhere_gives_what_stands_before_the_cut(version: int) -> None:
    writer = DbWriter(version)
    fill(writer, version >= 5)
    whole = plain(read(writer.data))
    for length in range(writer.ends[0], len(writer.data)):
        imported = read(writer.data[:length])
        last_end = max(end for end in writer.ends if end <= length)
        if imported.damage:
            found = re.match(rf"mosquitto.db, byte (\d+) of {length}: ", imported.damage)
            assert found is not None
            assert last_end <= int(found[1]) <= length
        else:
            # A client's time of 8 bytes of which 4 are left looks like one of 4 bytes.
            assert last_end == length or (version in (3, 4) and length + 4 in writer.ends)
        part = plain(imported)
        assert part == plain(read(writer.data[:last_end])) or not imported.damage
        for client_id, session in part["sessions"].items():
            known = whole["sessions"][client_id]
            for name in ("in flight", "queued"):
                assert session[name] == known[name][: len(session[name])]
            assert session["subscriptions"].items() <= known["subscriptions"].items()
        assert part["retained"].items() <= whole["retained"].items()


@pytest.mark.parametrize("version", VERSIONS)
def test_chunks_of_unknown_type_are_skipped_and_counted(version: int) -> None:
    writer = DbWriter(version)
    writer.chunk(77, b"from the future")
    writer.configuration()
    writer.chunk(7, b"")
    fill(writer, version >= 5)
    imported = read(writer.data)
    assert imported.skipped == {"chunks of unknown type": 2}
    assert plain(imported) == expected(version)


@pytest.mark.parametrize("version", [0, 1, 7, 0xFFFF_FFFF])
def test_another_version_is_an_error_that_names_it(version: int) -> None:
    with pytest.raises(UnreadableStore, match=rf"mosquitto.db of version {version}; versions 2 to 6 are read"):
        read(DbWriter(version).data)


@pytest.mark.parametrize("data", [b"x", HEADER, b"SQLite format 3\0" + bytes(100), HEADER + bytes(7)])
def test_another_kind_of_file_is_an_error(data: bytes) -> None:
    with pytest.raises(UnreadableStore, match=r"mosquitto.db is not a store of Mosquitto"):
        read(data)


def test_an_empty_file_holds_nothing() -> None:
    assert plain(read(b"")) == {"sessions": {}, "retained": {}, "wills": {}}


@pytest.mark.parametrize("version", VERSIONS)
def test_identifiers_of_another_size_are_damage(version: int) -> None:
    writer = DbWriter(version)
    writer.configuration(id_bytes=4)
    assert "identifiers of 4 bytes, of 8 are read" in read(writer.data).damage


@pytest.mark.parametrize("version", [5, 6])
def test_lengths_beyond_their_chunk_are_damage_at_their_place(version: int) -> None:
    writer = DbWriter(version)
    at = len(writer.data)
    writer.message(1, "t", b"payload")
    writer.retained(1)
    data = bytearray(writer.data)
    data[at + 8 + 16 : at + 8 + 20] = b"\xff\xff\xff\xff"  # the length of the payload
    place = at + 8 + 32 + len(b"publisher") + 1
    assert (
        f"byte {place} of {len(data)}: a payload needs 4294967295 bytes, the chunk has 7 more"
        in read(bytes(data)).damage
    )


def test_what_no_client_could_be_given_is_skipped_and_counted() -> None:
    writer = DbWriter(6)
    writer.message(1, "wild/+", b"x")
    writer.message(2, "t", b"x", 3)
    writer.message(3, "t", b"")
    writer.message(4, "$SYS/broker/uptime", b"1")
    writer.message(5, "ok", b"x", 0)
    writer.client("")
    writer.client("c")
    for store_id, qos, state, direction in (
        (1, 1, FILE_QUEUED, OUT),
        (99, 1, FILE_QUEUED, OUT),
        (5, 3, FILE_QUEUED, OUT),
        (5, 1, 12, OUT),
        (5, 0, FILE_QUEUED, OUT),
        (5, 1, 2, IN),
        (5, 2, RESEND_PUBCOMP, IN),
    ):
        writer.client_message("c", store_id, 5, qos, state, direction)
    writer.client_message("c", 5, 0, 2, 7, IN)
    writer.client_message("nobody", 5, 5, 1, FILE_QUEUED)
    writer.subscription("nobody", "t", 0)
    writer.subscription("c", "t/#/u", 0)
    writer.subscription("c", "t", 3)
    writer.subscription("c", "t", 0, 0, 0xFFFF_FFFF)
    for store_id in (1, 2, 3, 4, 99):
        writer.retained(store_id)
    imported = read(writer.data)
    assert imported.damage == ""
    assert plain(imported)["sessions"]["c"]["queued"] == []
    assert imported.retained == {}
    assert imported.skipped == {
        "messages with an invalid topic": 1,
        "messages with an invalid QoS": 1,
        "sessions without a client id": 1,
        "deliveries without their message": 2,
        "deliveries without their session": 1,
        "deliveries with an invalid QoS or state": 2,
        "queued messages with QoS 0": 1,
        "incoming messages that were handed on already": 2,
        "incoming messages without a packet identifier": 1,
        "subscriptions without their session": 1,
        "subscriptions with an invalid filter": 1,
        "subscriptions with invalid options": 2,
        "retained without their message": 3,
        "retained without a payload": 1,
        "retained of $SYS": 1,
    }


def test_names_that_are_not_utf_8_cost_only_their_own_chunk() -> None:
    writer = DbWriter(6)
    writer.message(1, "t", b"x")
    writer.client("cöl")
    writer.data = writer.data.replace("ö".encode(), b"\xff\xfe")
    writer.client("d", b"\xff")
    writer.retained(1)
    imported = read(writer.data)
    assert imported.damage == ""
    assert list(imported.sessions) == ["d"]
    assert imported.sessions["d"].username is None
    assert list(imported.retained) == ["t"]
    assert imported.skipped == {"names that are not UTF-8": 2}


def test_properties_that_cannot_be_read_leave_the_message() -> None:
    writer = DbWriter(6)
    writer.message(1, "t", b"x", properties=EVERYTHING)
    writer.data = writer.data.replace(b"text/plain", b"text\xffplain")
    writer.retained(1)
    imported = read(writer.data)
    assert imported.retained["t"].properties is None
    assert imported.skipped == {"properties that cannot be read": 1}


def test_a_packet_identifier_is_in_flight_once() -> None:
    writer = DbWriter(6)
    writer.message(1, "t", b"1")
    writer.message(2, "t", b"2")
    writer.client("c")
    writer.client_message("c", 1, 5, 1, WAIT_PUBACK)
    writer.client_message("c", 2, 5, 1, WAIT_PUBACK)
    writer.client_message("c", 2, 0, 1, WAIT_PUBACK)
    writer.client_message("c", 2, 6, 1, WAIT_PUBCOMP)  # no state of a message at QoS 1
    session = read(writer.data).sessions["c"]
    assert [(delivery.packet_id, delivery.message.payload) for delivery in session.in_flight.values()] == [(5, b"1")]
    assert [(delivery.packet_id, delivery.message.payload) for delivery in session.queued] == [(0, b"2")] * 3


def check_bounded(data: bytes) -> None:
    """Reading ends, raises only its own error, and gives no more than the file has room for."""
    try:
        imported = read(data)
    except UnreadableStore:
        return
    held = {id(m): len(m.payload) for m in imported.retained.values()}
    items = len(imported.retained) + len(imported.sessions) + imported.skipped.total()
    for session in imported.sessions.values():
        for delivery in [*session.in_flight.values(), *session.queued]:
            held[id(delivery.message)] = len(delivery.message.payload)
            items += 1
        items += len(session.subscriptions) + len(session.received)
    assert sum(held.values()) <= len(data)
    assert items <= len(data)


@given(st.sampled_from(VERSIONS), st.binary(max_size=300))
def test_random_bytes_are_read_to_an_end(version: int, data: bytes) -> None:
    check_bounded(DbWriter(version).data + data)
    check_bounded(data)


FILLED = {version: filled(version) for version in VERSIONS}


@given(st.sampled_from(VERSIONS), st.data())
def test_mutated_files_are_read_to_an_end(version: int, draw: st.DataObject) -> None:
    data = bytearray(FILLED[version])
    for _change in range(draw.draw(st.integers(1, 6))):
        at = draw.draw(st.integers(0, len(data) - 1))
        piece = draw.draw(st.binary(max_size=8))
        if draw.draw(st.booleans()):
            data[at : at + len(piece)] = piece
        else:
            del data[at : at + draw.draw(st.integers(0, 40))]
        if not data:
            break
    check_bounded(bytes(data))
