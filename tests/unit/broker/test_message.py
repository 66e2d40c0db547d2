"""A Message: its encodings, made once and used for many, and what it costs."""

from __future__ import annotations

import itertools

import pytest

from lockgate.broker.memory import Memory
from lockgate.broker.ports import NEVER, Message
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V3_1, V3_1_1, V5, Publish
from lockgate.mqtt.properties import Properties

OWN = Properties(content_type="c")


def message(properties: Properties | None = None, topic: str = "ä", payload: bytes = b"pay") -> Message:
    return Message(topic, payload, 2, False, properties, NEVER, "p")


def packet(version: int, qos: int, retain: bool) -> bytes:
    return encode(Publish("ä", b"pay", qos, retain, False, 7 if qos else 0, OWN if version == V5 else None), version)


def test_every_variant_is_right_whatever_came_before_it() -> None:
    variants = list(itertools.product((V3_1, V3_1_1, V5), (0, 1, 2), (False, True)))
    one = message(OWN)
    for version, qos, retain in [*variants, *variants[::-1], *variants[::5], *variants[::3]]:
        head, tail = one.parts(version, qos, retain)
        assert head + (b"\0\7" if qos else b"") + tail == packet(version, qos, retain)
        assert one.frame_qos_0(version) == packet(version, 0, False)


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_an_encoding_is_made_once(version: int) -> None:
    one = message(OWN)
    assert one.frame_qos_0(version) is one.frame_qos_0(version)
    assert one.parts(version, 1, False)[0] is one.parts(version, 1, False)[0]


@pytest.mark.parametrize("version", [V3_1_1, V5])
def test_the_frame_it_came_in_goes_on_to_receivers_of_its_version(version: int) -> None:
    frame = b"as it came"
    one = Message("ä", b"pay", 0, False, OWN, NEVER, "p", frame, version)
    assert one.frame_qos_0(version) is frame
    other = V3_1_1 if version == V5 else V5
    assert one.frame_qos_0(other) == packet(other, 0, False)


def test_what_a_message_costs_grows_with_all_that_a_peer_chose() -> None:
    base = message().memory_bytes()
    assert message(topic="ä" * 11).memory_bytes() == base + 80  # any character may take four, in two strings
    assert message(payload=b"x" * 13).memory_bytes() == base + 20  # an encoding repeats it
    empty = message(Properties()).memory_bytes()
    assert empty > base
    assert message(Properties(content_type="x" * 10)).memory_bytes() == empty + 10
    assert message(Properties(response_topic="x" * 10)).memory_bytes() == empty + 10
    assert message(Properties(correlation_data=b"x" * 10)).memory_bytes() == empty + 10
    pair = message(Properties(user_properties=(("", ""),))).memory_bytes() - empty
    assert pair > 0
    assert message(Properties(user_properties=(("k" * 3, "v" * 4),) * 2)).memory_bytes() == empty + 2 * (pair + 7)


def test_a_message_is_counted_once_however_many_hold_it() -> None:
    memory = Memory(0)
    one = message()
    memory.hold(one)
    memory.hold(one)
    assert memory.used == one.memory_bytes()
    memory.release(one)
    assert memory.used == one.memory_bytes()
    memory.release(one)
    assert memory.used == 0


def test_the_budget_and_its_parts() -> None:
    memory = Memory(1600)
    memory.used = 1600
    assert not memory.is_spent()
    memory.used = 1601
    assert memory.is_spent()
    memory.exhausted = True
    memory.used = 1501
    assert not memory.is_enough()
    assert memory.is_exhausted()
    memory.used = 1500  # a sixteenth below it is enough
    assert memory.is_enough()
    assert not memory.is_exhausted()
    memory.used = 1600
    assert not memory.is_exhausted()  # until somebody finds so again
    assert memory.unfinished_limit == 400


def test_without_a_budget_nothing_is_spent() -> None:
    memory = Memory(0)
    memory.used = 1 << 60
    assert (memory.is_spent(), memory.is_enough(), memory.output_bytes(1 << 20)) == (False, True, 1 << 20)


def test_output_shrinks_when_three_quarters_are_used() -> None:
    memory = Memory(1600)
    memory.used = 1200
    assert memory.output_bytes(1 << 20) == 1 << 20
    memory.used = 1201
    assert memory.output_bytes(1 << 20) == 65_536
    assert memory.output_bytes(1000) == 1000


def test_unfinished_packets_are_a_part_of_what_is_used() -> None:
    memory = Memory(1600)
    memory.hold_unfinished(100)
    memory.hold_unfinished(-40)
    assert (memory.used, memory.unfinished) == (60, 60)
