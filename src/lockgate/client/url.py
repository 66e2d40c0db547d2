"""`mqtt://[user[:password]@]host[:port]`: where a Server is and who we are there."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes, urlsplit

DEFAULT_PORT = 1883
_FORM = "mqtt://[user[:password]@]host[:port]"


class ServerAddress(NamedTuple):
    """What an URL says; its readable form never shows the password."""

    host: str
    port: int
    username: str | None
    password: bytes | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __repr__(self) -> str:
        return f"ServerAddress({self})"


def parse_url(url: str) -> ServerAddress:
    """Read an URL; user and password are percent-decoded, an IPv6 address stands in brackets.

    Raises ValueError, which says what is wrong without repeating the password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        # The text of urllib may hold part of the password where that contains a ":", "/" or "#" of its own.
        known = "IPv6" in str(error)
        detail = "the IPv6 address needs its brackets" if known else "the port must be a number from 1 to 65535"
        raise ValueError(f"the URL cannot be read: {detail}, in the form {_FORM}") from None
    if parts.scheme != "mqtt":
        raise ValueError(f"the URL must begin with mqtt:// and have the form {_FORM}")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(
            f"the URL goes on after host and port, must have the form {_FORM}; in user and password, / ? # are "
            "written as %2F %3F %23"
        )
    if not parts.hostname:
        raise ValueError(f"the URL names no host, must have the form {_FORM}")
    if parts.netloc.rpartition("@")[2].endswith(":") or port == 0:
        raise ValueError(f"the port must be a number from 1 to 65535, in the form {_FORM}")
    username = unquote(parts.username, errors="strict") if parts.username is not None else None
    password = unquote_to_bytes(parts.password) if parts.password is not None else None
    return ServerAddress(parts.hostname, port if port is not None else DEFAULT_PORT, username or None, password)
