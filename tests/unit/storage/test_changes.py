"""What a commit writes: of each row the last state, and nothing of what came and went."""

from __future__ import annotations

from lockgate.broker.ports import (
    AWAITING_PUBACK,
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
from lockgate.mqtt.properties import Properties, decode_properties
from lockgate.storage.changes import Changes

_ROW = 1 << 36  # the first Session's first position is _ROW | 1


def message(topic: str = "a/b", payload: bytes = b"x", expires_at: float = NEVER) -> Message:
    made = Message(topic, payload, 1, False, None, expires_at, "p")
    made.arrived_at = 10.0
    return made


def changes(*client_ids: str) -> Changes:
    """Changes for some Sessions that were written before: their numbers are 1, 2, …"""
    return Changes({client_id: place for place, client_id in enumerate(client_ids, 1)}, len(client_ids) + 1, 100)


def delivery(position: int, of: Message | None = None) -> Delivery:
    return Delivery(of if of is not None else message(), 1, False, 0, position)


def test_a_delivery_is_a_row_beside_its_message() -> None:
    new = changes("s")
    new.append(1, "s", delivery(1))
    batch = new.take(1000.0)
    assert batch.number == 1
    assert batch.values["messages"] == [101, "a/b", b"x", None, 1, False, NEVER, 1010.0, "p", None, 226971211]
    assert batch.values["deliveries"] == [_ROW | 1, 101, False, 4, 1, False, 0, "", 0, 0, 2003496293]
    assert new.is_void


def test_a_message_for_several_is_written_once() -> None:
    new = changes("s", "t")
    shared = message()
    new.append(1, "s", delivery(1, shared))
    new.append(2, "t", delivery(1, shared))
    new.append(3, "s", delivery(2))
    batch = new.take(0.0)
    assert batch.values["messages"][::11] == [101, 102]
    rows = batch.values["deliveries"]
    assert [tuple(rows[at : at + 3]) for at in range(0, len(rows), 11)] == [
        (_ROW | 1, 101, True),
        (_ROW | 2, 102, False),
        (2 * _ROW | 1, 101, True),
    ]


def test_what_was_acknowledged_before_the_commit_is_never_written() -> None:
    new = changes("s")
    new.append(1, "s", delivery(1))
    assert new.wakes
    new.acknowledge(2, "s", 1)
    assert new.is_void
    assert new.last_change == 2
    assert new.size_bytes == 0


def test_one_of_several_receivers_may_be_done_before_the_commit() -> None:
    new = changes("s", "t")
    shared = message()
    new.append(1, "s", delivery(1, shared))
    new.append(2, "t", delivery(1, shared))
    new.acknowledge(3, "s", 1)
    batch = new.take(0.0)
    assert batch.values["messages"][0] == 101
    assert batch.values["deliveries"][0] == 2 * _ROW | 1
    assert batch.values["delivered"] == []


def test_the_state_of_a_new_delivery_is_written_with_it() -> None:
    new = changes("s")
    sent = delivery(1)
    new.append(1, "s", sent)
    sent.packet_id = 7
    sent.state = AWAITING_PUBACK
    new.update(2, "s", sent)
    batch = new.take(0.0)
    assert batch.values["deliveries"][8:10] == [7, AWAITING_PUBACK]
    assert batch.values["flights"] == []


def test_the_state_of_one_that_was_written_is_a_change_of_its_row() -> None:
    new = changes("s")
    sent = delivery(1)
    new.append(1, "s", sent)
    new.take(0.0)
    sent.packet_id = 7
    sent.state = AWAITING_PUBACK
    new.update(2, "s", sent)
    assert not new.wakes  # nobody needs it soon
    assert not new.is_void
    assert new.take(0.0).values["flights"] == [_ROW | 1, 7, AWAITING_PUBACK]
    new.update(3, "s", sent)
    new.acknowledge(4, "s", 1)
    assert not new.wakes
    batch = new.take(0.0)
    assert (batch.values["flights"], batch.values["delivered"]) == ([], [_ROW | 1])


def test_of_a_retained_message_only_the_last_value_is_written() -> None:
    new = changes()
    for number in range(3):
        new.set(number, RETAINED, ("a",), message("a", b"%d" % number))
    new.set(3, RETAINED, ("b",), message("b"))
    new.delete(4, RETAINED, ("b",))
    assert new.size_bytes == new.take(0.0).size_bytes
    for number in range(2):
        new.set(number, RETAINED, ("a",), message("a", b"%d" % number))
    batch = new.take(0.0)
    assert batch.values["retained"][:2] == ["a", b"1"]
    assert batch.size_bytes == 1 + 1 + 64


def test_properties_are_stored_as_they_are_sent() -> None:
    new = changes()
    full = message()
    full.properties = Properties(content_type="text", user_properties=(("a", "1"), ("a", "2")))
    new.set(1, RETAINED, ("a/b",), full)
    encoded = new.take(0.0).values["retained"][2]
    assert isinstance(encoded, bytes)
    assert decode_properties(encoded, 0, len(encoded), 1 << 3)[0] == full.properties


def test_a_session_gets_a_number_when_it_is_first_written() -> None:
    new = changes("s")
    new.set(1, SESSIONS, ("t",), StoredSession(60, 12.0, "user"))
    new.set(2, SUBSCRIPTIONS, ("t", "f"), StoredSubscription(1, True, False, 5))
    batch = new.take(100.0)
    assert batch.values["sessions"] == [2, "t", "user", 60, 112.0]
    assert batch.values["subscriptions"] == [2, "f", 1, True, False, 5]
    new.set(3, SESSIONS, ("t",), StoredSession(60, NEVER, None))
    new.delete(4, SUBSCRIPTIONS, ("t", "f"))
    batch = new.take(100.0)
    assert batch.values["sessions"] == [2, "t", None, 60, NEVER]
    assert (batch.values["subscriptions"], batch.values["unsubscribe"]) == ([], [2, "f"])


def test_a_session_that_ends_takes_what_was_not_written_along() -> None:
    new = changes("s")
    new.set(1, SUBSCRIPTIONS, ("s", "f"), StoredSubscription(1, False, False, 0))
    new.set(2, RECEIVED, ("s", "9"), message())
    new.append(3, "s", delivery(1))
    new.end_session(4, "s")
    new.set(5, SESSIONS, ("s",), StoredSession(60, NEVER, None))
    batch = new.take(0.0)
    assert batch.values["end sessions"] == [1]
    assert batch.values["sessions"] == [2, "s", None, 60, NEVER]
    for name in ("subscriptions", "received", "deliveries", "messages"):
        assert batch.values[name] == []


def test_what_was_received_is_named_by_session_and_packet_identifier() -> None:
    new = changes("s")
    new.set(1, RECEIVED, ("s", "9"), message())
    assert new.take(0.0).values["received"][0] == 1 << 16 | 9
    new.delete(2, RECEIVED, ("s", "9"))
    batch = new.take(0.0)
    assert (batch.values["received"], batch.values["released"]) == ([], [1 << 16 | 9])


def test_a_will_has_its_delay_its_keep_alive_and_when_it_is_due() -> None:
    new = changes()
    new.set(1, WILLS, ("c",), StoredWill(message(), 5, 60, 20.0))
    assert new.take(100.0).values["wills"][:4] == ["c", 5, 60, 120.0]
    new.set(2, WILLS, ("c",), StoredWill(message(), 5, 60, NEVER))
    new.delete(3, WILLS, ("c",))
    batch = new.take(100.0)
    assert (batch.values["wills"], batch.values["no wills"]) == ([], ["c"])


def test_bytes_are_counted_by_the_first_level_of_topics() -> None:
    new = changes("s")
    new.append(1, "s", delivery(1, message("a/1", b"xx")))
    new.append(2, "s", delivery(2, message("a/2", b"xx")))
    new.set(3, RETAINED, ("b",), message("b", b""))
    assert new.take(0.0).bytes_by_prefix == {"a": 2 * (5 + 64), "b": 1 + 64}
