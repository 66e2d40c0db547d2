"""What a user of the client may have to decide about."""

from __future__ import annotations

from typing import Final

from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import V5

_PERMANENT: Final = frozenset(
    {
        reason_codes.UNSUPPORTED_PROTOCOL_VERSION,
        reason_codes.CLIENT_IDENTIFIER_NOT_VALID,
        reason_codes.BAD_USER_NAME_OR_PASSWORD,
        reason_codes.NOT_AUTHORIZED,
        reason_codes.BANNED,
        reason_codes.BAD_AUTHENTICATION_METHOD,
        reason_codes.MALFORMED_PACKET,
        reason_codes.PROTOCOL_ERROR,
        reason_codes.PACKET_TOO_LARGE,
        reason_codes.TOPIC_NAME_INVALID,
        reason_codes.PAYLOAD_FORMAT_INVALID,
        reason_codes.RETAIN_NOT_SUPPORTED,
        reason_codes.QOS_NOT_SUPPORTED,
    }
)
_PERMANENT_V3: Final = frozenset(reason_codes.NAMES_V3) - {reason_codes.SERVER_UNAVAILABLE_V3}


class ClientError(Exception):
    """What everything here has in common."""


class ConnectionRefused(ClientError):
    """The Server answered CONNECT with a refusal.

    `reason_code` is the code of its CONNACK: a return code 1 to 5 before version 5. `permanent` says that only a change
    of the configuration, here or there, can help.
    """

    def __init__(self, reason_code: int, version: int, reason_string: str | None = None) -> None:
        if version == V5:
            name = reason_codes.describe(reason_code)
            self.permanent = reason_code in _PERMANENT
        else:
            name = f"{reason_code} {reason_codes.NAMES_V3.get(reason_code, 'unknown')}"
            self.permanent = reason_code in _PERMANENT_V3
        super().__init__(
            f"the server refused the connection: {name}" + (f" ({reason_string})" if reason_string else "")
        )
        self.reason_code = reason_code


class ConnectionLost(ClientError):
    """The connection ended, or never came to be, and will not be made again."""


class NotConnected(ClientError):
    """There is no connection now; said only of QoS 0, which nobody keeps until there is one."""


class PublishRefused(ClientError):
    """The Server will not have this message, as its answer or the limits of its CONNACK say."""

    def __init__(self, reason_code: int, detail: str | None = None) -> None:
        super().__init__(f"{reason_codes.describe(reason_code)}" + (f": {detail}" if detail else ""))
        self.reason_code = reason_code


class SubscribeRefused(ClientError):
    """The Server refused some of the Topic Filters; the others are subscribed. `refused` gives filter and code."""

    def __init__(self, refused: list[tuple[str, int]]) -> None:
        listed = ", ".join(f"{topic_filter!r}: {reason_codes.describe(code)}" for topic_filter, code in refused)
        super().__init__(f"the server refused {listed}")
        self.refused = refused
