"""The message that asks whether the core is well reaches nobody and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lockgate.broker.limits import Limits
from lockgate.broker.probe import check, round_trip
from lockgate.mqtt.encoder import encode, encode_acknowledgement
from lockgate.mqtt.packets import PUBACK, V5, Publish
from lockgate.mqtt.reason_codes import UNSPECIFIED_ERROR
from tests.support.server import Server


def everything(server: Server) -> Mapping[str, Any]:
    """What anybody could count of a broker."""
    broker = server.broker
    statistics = broker.statistics
    counted = {name: str(getattr(statistics, name)) for name in dir(statistics) if not name.startswith("_")}
    return counted | {
        "connections": list(broker.connections),
        "sessions": list(broker.sessions),
        "subscriptions": broker.router.tree.count,
        "memory": broker.memory.used,
        "queued": broker.queued_count,
        "changes": broker.last_change,
        "touched": list(broker.touched),
        "deadline": broker.next_deadline(),
        "log": list(server.log.lines),
    }


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(publish_rate=0.001, message_size=1, topic_levels=1, topic_bytes=4, max_packet_size=20),
        Limits(sparkplug=True, allow_duplicate_messages=False, clientid_prefixes=("device-",)),
    ],
)
def test_it_comes_back_and_nothing_has_changed(limits: Limits) -> None:
    server = Server(limits)
    before = everything(server)
    for _ in range(3):
        assert round_trip(server.broker, server.now) == ""
    server.flush()
    assert everything(server) == before


def test_no_client_sees_it() -> None:
    server = Server()
    curious = server.client("curious")
    for topic_filter in ("#", "+", "+/#", "$SYS/#", "$/#"):
        curious.subscribe(topic_filter, 2)
    curious.received()
    assert round_trip(server.broker, server.now) == ""
    server.flush()
    assert not [packet for packet in curious.received() if isinstance(packet, Publish)]


def test_whoever_may_do_nothing_is_not_asked_about_it() -> None:
    class Nobody:
        """Fails whenever it is asked."""

        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    server = Server()
    server.broker.default_authority = Nobody()  # type: ignore[assignment]
    assert round_trip(server.broker, server.now) == ""


def test_the_store_that_cannot_be_written_is_not_its_concern() -> None:
    server = Server()
    server.broker.store_failed(UNSPECIFIED_ERROR, server.now)
    assert round_trip(server.broker, server.now) == ""


_DELIVERED = encode(Publish("$t", b"", 0), V5)
_ACKNOWLEDGED = encode_acknowledgement(PUBACK, 1, 0, V5)


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (_DELIVERED + _ACKNOWLEDGED, ""),
        (_ACKNOWLEDGED + _DELIVERED, ""),
        (b"", "of one message the core delivered 0 and acknowledged 0"),
        (_DELIVERED * 2 + _ACKNOWLEDGED, "of one message the core delivered 2 and acknowledged 1"),
        (encode(Publish("$u", b"", 0), V5) + _ACKNOWLEDGED, "of one message the core delivered 0 and acknowledged 1"),
        (b"\x30\x03\x00\x05a", "the core sent what is no packet: "),
    ],
)
def test_a_core_that_answers_otherwise_is_found_out(output: bytes, problem: str) -> None:
    found = check(output, "$t")
    assert found.startswith(problem)
    assert bool(found) == bool(problem)
