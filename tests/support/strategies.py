"""Hypothesis strategies: any packet that each version can say."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from lockgate.mqtt import reason_codes as rc
from lockgate.mqtt.packets import (
    V3_1,
    V3_1_1,
    V5,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Will,
)
from lockgate.mqtt.properties import IN_WILL, KINDS, Properties

VERSIONS = st.sampled_from((V3_1, V3_1_1, V5))
_BYTE, _TWO, _FOUR, _VARIABLE, _STRING, _BINARY, _PAIR = range(7)  # the wire types of properties.py
_FLAGS = {
    "payload_format_indicator", "request_problem_information", "request_response_information", "maximum_qos",
    "retain_available", "wildcard_subscription_available", "subscription_identifier_available",
    "shared_subscription_available",
}  # fmt: skip
_NOT_ZERO = {"receive_maximum", "maximum_packet_size", "topic_alias"}

strings = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
binaries = st.binary(max_size=30)
packet_ids = st.integers(1, 65_535)
levels = st.text(st.characters(codec="utf-8", exclude_characters="\0/+#"), max_size=4)
topic_names = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)
# Few different levels, so that names and filters meet
small_names = st.lists(st.sampled_from(["", "a", "b", "$s"]), min_size=1, max_size=4).map("/".join).filter(bool)
small_filters = st.tuples(
    st.lists(st.sampled_from(["", "a", "b", "$s", "+"]), max_size=4), st.sampled_from([["#"], []])
).map(lambda parts: "/".join(parts[0] + parts[1])).filter(bool)  # fmt: skip


def properties(packet_type: int) -> st.SearchStrategy[Properties | None]:
    """Properties that may stand in a packet of this type, 0 for a Will; None where there are none."""
    where = 1 << packet_type
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for kind in KINDS.values():
        if not kind.allowed & where:
            continue
        if kind.name == "response_topic":
            value: st.SearchStrategy[Any] = topic_names
        elif kind.name in _FLAGS:
            value = st.integers(0, 1)
        elif kind.wire_type in (_BYTE, _TWO, _FOUR):
            value = st.integers(1 if kind.name in _NOT_ZERO else 0, (0xFF, 0xFFFF, 0xFFFF_FFFF)[kind.wire_type])
        elif kind.wire_type == _VARIABLE:
            most = 1 if packet_type == 8 else 3
            fields[kind.name] = st.lists(st.integers(1, 268_435_455), max_size=most).map(tuple)
            continue
        elif kind.wire_type == _STRING:
            value = strings
        elif kind.wire_type == _BINARY:
            value = binaries
        else:
            fields[kind.name] = st.lists(st.tuples(strings, strings), max_size=3).map(tuple)
            continue
        fields[kind.name] = st.none() | value
    return st.fixed_dictionaries(fields).map(lambda chosen: _none_if_empty(Properties(**chosen)))


def _none_if_empty(value: Properties) -> Properties | None:
    if value.authentication_method is None:
        value.authentication_data = None  # not allowed alone
    return None if value == Properties() else value


def packets(version: int) -> st.SearchStrategy[Packet]:
    """Any packet of a version."""
    v5 = version == V5

    def p(packet_type: int) -> st.SearchStrategy[Properties | None]:
        return properties(packet_type) if v5 else st.none()

    def codes(allowed: frozenset[int]) -> st.SearchStrategy[int]:
        return st.sampled_from(sorted(allowed)) if v5 else st.just(0)

    wills = st.builds(Will, topic_names, binaries, st.integers(0, 2), st.booleans(), p(IN_WILL.bit_length() - 1))
    usernames = st.none() | strings
    connects = st.builds(
        Connect, strings, st.just(version), st.booleans(), st.integers(0, 65_535), usernames, st.none() | binaries,
        st.none() | wills, p(1), st.booleans() if not v5 else st.just(False),
    ).filter(lambda c: v5 or c.username is not None or c.password is None)  # fmt: skip
    return st.one_of(
        connects,
        st.builds(ConnAck, codes(rc.CONNACK_CODES) if v5 else st.integers(0, 5), st.booleans(), p(2)),
        st.builds(Publish, topic_names, binaries, st.just(0), st.booleans(), st.just(False), st.just(0), p(3)),
        st.builds(Publish, topic_names, binaries, st.integers(1, 2), st.booleans(), st.booleans(), packet_ids, p(3)),
        st.builds(PubAck, packet_ids, codes(rc.PUBACK_CODES), p(4)),
        st.builds(PubRec, packet_ids, codes(rc.PUBACK_CODES), p(5)),
        st.builds(PubRel, packet_ids, codes(rc.PUBREL_CODES), p(6)),
        st.builds(PubComp, packet_ids, codes(rc.PUBREL_CODES), p(7)),
        st.builds(Subscribe, packet_ids, st.lists(_requests(v5), min_size=1, max_size=3), p(8)),
        st.builds(
            SubAck,
            packet_ids,
            st.lists(st.sampled_from(sorted(rc.SUBACK_CODES) if v5 else [0, 1, 2, 0x80]), min_size=1, max_size=4),
            p(9),
        ),
        st.builds(Unsubscribe, packet_ids, st.lists(small_filters, min_size=1, max_size=3), p(10)),
        st.builds(
            UnsubAck,
            packet_ids,
            st.lists(codes(rc.UNSUBACK_CODES), min_size=1, max_size=3) if v5 else st.just([]),
            p(11),
        ),
        st.just(PingReq()),
        st.just(PingResp()),
        st.builds(Disconnect, codes(rc.DISCONNECT_CODES), p(14)),
        *([st.builds(Auth, codes(rc.AUTH_CODES), p(15))] if v5 else []),
    )


def _requests(v5: bool) -> st.SearchStrategy[SubscriptionRequest]:
    if not v5:
        return st.builds(SubscriptionRequest, small_filters, st.integers(0, 2))
    return st.builds(
        SubscriptionRequest, small_filters, st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 2)
    )
