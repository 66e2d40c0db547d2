"""Packets compare by what they say."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest

from lockgate.mqtt.packets import (
    PUBACK,
    Acknowledgement,
    Auth,
    ConnAck,
    Disconnect,
    PingReq,
    PubAck,
    Publish,
    SubscriptionRequest,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.support.packets import GOOD, Good


def test_packets_that_say_different_things_differ() -> None:
    different = {(case.data, case.version): case.packet for case in GOOD if case.canonical}
    by_bytes = {data: packet for (data, _version), packet in different.items()}
    for (one_data, one), (other_data, other) in itertools.combinations(by_bytes.items(), 2):
        if _is_same_in_another_version(one_data, other_data):
            continue
        assert one != other, (one_data.hex(), other_data.hex())


def _is_same_in_another_version(one: bytes, other: bytes) -> bool:
    """Version 5 spells out properties where the others have nothing, and CONNACK a code where they have another."""
    return one[0] == other[0] and one.replace(b"\0", b"")[2:] == other.replace(b"\0", b"")[2:]


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_equal_packets_have_one_hash(case: Good) -> None:
    assert case.packet == case.packet
    assert hash(case.packet) == hash(case.packet)
    assert case.packet != case.data


def test_a_will_is_all_its_fields() -> None:
    def will(**changes: object) -> Will:
        fields = {"topic": "t", "payload": b"p", "qos": 1, "retain": True, "properties": None, **changes}
        return Will(**fields)  # type: ignore[arg-type]

    assert will() == will()
    for changes in ({"topic": "u"}, {"payload": b"q"}, {"qos": 2}, {"retain": False}, {"properties": Properties()}):
        assert will() != will(**changes)
    assert will() != "t"


def test_a_subscription_request_is_all_its_fields() -> None:
    request = SubscriptionRequest("t", 1, True, True, 1)
    assert request == SubscriptionRequest("t", 1, True, True, 1)
    assert hash(request) == hash(SubscriptionRequest("t", 1, True, True, 1))
    for other in (
        SubscriptionRequest("u", 1, True, True, 1),
        SubscriptionRequest("t", 2, True, True, 1),
        SubscriptionRequest("t", 1, False, True, 1),
        SubscriptionRequest("t", 1, True, False, 1),
        SubscriptionRequest("t", 1, True, True, 2),
        "t",
    ):
        assert request != other


def test_packets_of_one_shape_and_another_type_differ() -> None:
    assert ConnAck() == ConnAck(0, False, None)
    assert Disconnect(0) != Auth(0)
    assert PingReq() != PubAck(1)
    assert Acknowledgement(PUBACK, 1) == Acknowledgement(PUBACK, 1, 0, None)


def test_properties_leave_it_to_others_whether_they_are_equal() -> None:
    assert Properties() == Properties()
    assert Properties() != Properties(topic_alias=1)
    assert Properties() != "x"
    assert Properties() == mock.ANY


def test_a_packet_made_here_carries_no_bytes_it_arrived_in() -> None:
    assert Publish("t").frame == b""
