"""SOCKS version 5 (RFC 1928) with user name and password (RFC 1929), the client's side, as a layer.

The proxy resolves the host name (`socks5h`), so that nothing of it is asked here.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from lockgate.transport.layer import TransportError

_VERSION: Final = 5
_NO_LOGIN, _USERNAME, _NOTHING = 0, 2, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_REPLIES: Final = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "it took too long",
    7: "it does not know CONNECT",
    8: "it does not know this kind of address",
}


class Socks5Layer:
    """Asks the proxy on the other end of the socket for a connection to `host` and `port`; then it is not there."""

    __slots__ = ("_held", "_host", "_login", "_port", "_rest", "_said", "_step", "is_open")

    ended = False

    def __init__(self, host: str, port: int, username: str | None = None, password: str | None = None) -> None:
        """Raises ValueError for a name too long to be said (255 bytes)."""
        self._host = _address(host)
        self._port = port
        self._login = b""
        if username is not None:
            user, secret = username.encode(), (password or "").encode()
            if not 1 <= len(user) <= 255 or len(secret) > 255:
                raise ValueError("user name and password for the proxy may have 255 bytes each")
            self._login = bytes((1, len(user))) + user + bytes((len(secret),)) + secret
        self._held = b""
        self._rest = b""
        self._said = bytes((_VERSION, 2, _NO_LOGIN, _USERNAME) if self._login else (_VERSION, 1, _NO_LOGIN))
        self._step = self._method
        self.is_open = False

    def receive(self, data: bytes) -> bytes:
        """Give what comes once the proxy has connected; raises TransportError when it will not."""
        if self.is_open:
            return data
        self._rest += data
        while not self.is_open and (used := self._step(self._rest)):
            self._rest = self._rest[used:]
        data = b""
        if self.is_open:
            data, self._rest = self._rest, b""
        return data

    def send(self, data: bytes) -> bytes:
        """Give our next words to the proxy, then `data`."""
        said, self._said = self._said, b""
        self._held += data
        if self.is_open:
            said += self._held
            self._held = b""
        return said

    finish = send

    # Each step gives how many bytes it used, 0 when some miss, and sets the next one.

    def _method(self, data: bytes) -> int:
        if len(data) < 2:
            return 0
        if data[0] != _VERSION:
            raise TransportError("the proxy does not speak SOCKS 5")
        if data[1] == _USERNAME and self._login:
            self._said += self._login
            self._step = self._logged_in
        elif data[1] == _NO_LOGIN:
            self._ask()
        else:
            raise TransportError("the proxy wants a login we cannot give")
        return 2

    def _logged_in(self, data: bytes) -> int:
        if len(data) < 2:
            return 0
        if data[1] != 0:
            raise TransportError("the proxy refused user name or password")
        self._ask()
        return 2

    def _ask(self) -> None:
        self._said += bytes((_VERSION, 1, 0)) + self._host + self._port.to_bytes(2, "big")
        self._step = self._connected

    def _connected(self, data: bytes) -> int:
        if len(data) < 5:
            return 0
        if data[1] != 0:
            raise TransportError(f"the proxy could not connect: {_REPLIES.get(data[1], f'code {data[1]}')}")
        size = {_IPV4: 4, _IPV6: 16, _NAME: 1 + data[4]}.get(data[3])
        if data[0] != _VERSION or size is None:
            raise TransportError("the proxy does not speak SOCKS 5")
        whole = 4 + size + 2
        if len(data) < whole:
            return 0
        self.is_open = True
        return whole


def _address(host: str) -> bytes:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("idna") if not host.isascii() else host.encode()
        if not 1 <= len(name) <= 255:
            raise ValueError("a host name has 1 to 255 bytes") from None
        return bytes((_NAME, len(name))) + name
    return bytes((_IPV4 if ip.version == 4 else _IPV6,)) + ip.packed
