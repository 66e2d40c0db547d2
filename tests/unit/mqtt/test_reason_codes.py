"""Reason Codes as people read them."""

from __future__ import annotations

from lockgate.mqtt import reason_codes as rc


def test_a_code_is_described_by_number_and_name() -> None:
    assert rc.describe(rc.NOT_AUTHORIZED) == "0x87 not authorized"
    assert rc.describe(0x7F) == "0x7F unknown"


def test_the_codes_are_those_of_the_specification() -> None:
    """MQTT 5 §2.4, table 2-6, and 3.1.1 table 3.1."""
    assert (rc.SUCCESS, rc.DISCONNECT_WITH_WILL_MESSAGE, rc.NO_MATCHING_SUBSCRIBERS) == (0x00, 0x04, 0x10)
    assert (rc.NO_SUBSCRIPTION_EXISTED, rc.CONTINUE_AUTHENTICATION, rc.RE_AUTHENTICATE) == (0x11, 0x18, 0x19)
    assert (rc.ACCEPTED_V3, rc.UNACCEPTABLE_PROTOCOL_VERSION_V3, rc.IDENTIFIER_REJECTED_V3) == (0, 1, 2)
    assert (rc.SERVER_UNAVAILABLE_V3, rc.BAD_USER_NAME_OR_PASSWORD_V3, rc.NOT_AUTHORIZED_V3) == (3, 4, 5)
    failures = {code: name for name, code in vars(rc).items() if isinstance(code, int) and code >= 0x80}
    assert failures == FAILURES


FAILURES = {
    0x80: "UNSPECIFIED_ERROR",
    0x81: "MALFORMED_PACKET",
    0x82: "PROTOCOL_ERROR",
    0x83: "IMPLEMENTATION_SPECIFIC_ERROR",
    0x84: "UNSUPPORTED_PROTOCOL_VERSION",
    0x85: "CLIENT_IDENTIFIER_NOT_VALID",
    0x86: "BAD_USER_NAME_OR_PASSWORD",
    0x87: "NOT_AUTHORIZED",
    0x88: "SERVER_UNAVAILABLE",
    0x89: "SERVER_BUSY",
    0x8A: "BANNED",
    0x8B: "SERVER_SHUTTING_DOWN",
    0x8C: "BAD_AUTHENTICATION_METHOD",
    0x8D: "KEEP_ALIVE_TIMEOUT",
    0x8E: "SESSION_TAKEN_OVER",
    0x8F: "TOPIC_FILTER_INVALID",
    0x90: "TOPIC_NAME_INVALID",
    0x91: "PACKET_IDENTIFIER_IN_USE",
    0x92: "PACKET_IDENTIFIER_NOT_FOUND",
    0x93: "RECEIVE_MAXIMUM_EXCEEDED",
    0x94: "TOPIC_ALIAS_INVALID",
    0x95: "PACKET_TOO_LARGE",
    0x96: "MESSAGE_RATE_TOO_HIGH",
    0x97: "QUOTA_EXCEEDED",
    0x98: "ADMINISTRATIVE_ACTION",
    0x99: "PAYLOAD_FORMAT_INVALID",
    0x9A: "RETAIN_NOT_SUPPORTED",
    0x9B: "QOS_NOT_SUPPORTED",
    0x9C: "USE_ANOTHER_SERVER",
    0x9D: "SERVER_MOVED",
    0x9E: "SHARED_SUBSCRIPTIONS_NOT_SUPPORTED",
    0x9F: "CONNECTION_RATE_EXCEEDED",
    0xA0: "MAXIMUM_CONNECT_TIME",
    0xA1: "SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED",
    0xA2: "WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED",
}
