"""Cases the fuzzer has found, cut down; each failed once."""

from __future__ import annotations

from tests.fuzz.fuzzer import replay


def test_a_retained_message_below_another_is_cleared() -> None:
    replay(0, 0, [
        ("open", 0),
        ("send", 0, b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x00\x00\x02c0", 0),
        ("send", 0, b"1\x04\x00\x01a11\x06\x00\x03a/b11\x05\x00\x03a/b", 0),
    ])  # fmt: skip


def test_connack_is_within_the_maximum_packet_size() -> None:
    replay(2, 0, [
        ("open", 1),
        ("send", 1, b"\x10\x14\x00\x04MQTT\x05\x02\x00\x00\x05'\x00\x00\x00\x0a\x00\x02c1", 0),
    ])  # fmt: skip


def test_a_second_connect_of_an_unknown_version() -> None:
    replay(2, 1, [
        ("open", 1),
        ("send", 1, b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x02c1", 0),
        ("send", 1, b"\x10\x0e\x00\x04MQTT\x06\x02\x00\x00\x00\x02c1", 3),
    ])  # fmt: skip


def test_a_refused_message_takes_the_place_of_one_that_waits() -> None:
    replay(4, 1, [
        ("open", 0),
        ("send", 0, b"\x10\x10\x00\x06MQIsdp\x03\x00\x00\x00\x00\x02c0", 0),
        ("send", 0, b"4\x06\x00\x01b\x00\x061", 0),
        ("send", 0, b"4\x0a\x00\x06$SYS/x\x00\x06", 0),
    ])  # fmt: skip
