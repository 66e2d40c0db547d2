"""What an ingress rule leads to, and the list of what a connector may dial at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from lockgate.config.errors import ConfigError

_HTTP: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_TCP: Final = {"tcp": 7864, "ssh": 22, "rdp": 3389, "smb": 445, "mqtt": 1883}
ACCEPTED: Final = (
    "http://HOST[:PORT], https://, ws://, wss://, tcp://HOST:PORT, mqtt://HOST[:PORT], unix:/PATH, unix+tls:/PATH or "
    "http_status:200 to 599"
)
# cloudflared's, that are not offered here
_ANYWHERE: Final = "lets whoever asks choose the address, and is not offered here"
_SAMPLE: Final = "is cloudflared's page for a first try, and is not offered here"
_REFUSED: Final = {"hello_world": _SAMPLE, "hello-world": _SAMPLE, "socks-proxy": _ANYWHERE, "bastion": _ANYWHERE}


class BadService(ValueError):
    """A service that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Service:
    """Where requests go. `http`: a server of HTTP or WebSocket; `tcp`: bytes; `status`: an answer made here."""

    kind: Literal["http", "tcp", "status"]
    text: str  # as the rule says it
    scheme: str = ""
    host: str = ""  # without the brackets of an IPv6 address
    port: int = 0
    path: str = ""  # of a Unix socket, in place of host and port
    tls: bool = False
    status: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what a rule says; raises BadService."""
        name, _, rest = text.partition(":")
        if text in _REFUSED:
            raise BadService(_REFUSED[text])
        if name == "http_status":
            if not (rest.isascii() and rest.isdecimal() and 200 <= int(rest[:4]) <= 599):
                raise BadService("is no status")
            return cls("status", text, status=int(rest))
        if name in ("unix", "unix+tls"):
            if not rest.startswith("/") or rest.startswith("//") or "\0" in rest:
                raise BadService("needs the whole path of a socket")
            return cls("http", text, "https" if name == "unix+tls" else "http", path=rest, tls=name == "unix+tls")
        return cls._url(text)

    @classmethod
    def _url(cls, text: str) -> Self:
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:  # a port that is no number, a broken IPv6 address
            raise BadService(f"is no URL: {error}") from None
        if not parts.scheme or not host or "://" not in text:
            raise BadService("needs a scheme and a host")
        if parts.path or parts.query or parts.fragment or text.endswith(("?", "#")):
            raise BadService("must not have a path: requests keep their own")
        if "@" in parts.netloc or any(character <= " " or character == "\x7f" for character in text):
            raise BadService("must not have a user, spaces or control characters")
        if port is None:
            port = (_HTTP | _TCP).get(parts.scheme, 0)
        if not port:
            raise BadService("needs a port")
        kind: Literal["http", "tcp"] = "http" if parts.scheme in _HTTP else "tcp"
        return cls(kind, text, parts.scheme, host, port, tls=parts.scheme in ("https", "wss"))


@dataclass(frozen=True, slots=True)
class AllowList:
    """What a connector may dial: names, addresses and networks, each with a port or all of them, and Unix sockets.

    A name is compared as it is asked for and never looked up: who wants to reach an address by its name lists the name.
    """

    names: frozenset[tuple[str, int]] = frozenset()  # in lower case; port 0: any
    networks: tuple[tuple[IPv4Network | IPv6Network, int], ...] = ()
    sockets: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str], key: str = "connector.allow") -> Self:
        """Read `HOST:PORT`, `NETWORK:PORT`, `[IPV6]:PORT` with `*` for any port, and `unix:/PATH`.

        Raises ConfigError that names `key`.
        """
        names: set[tuple[str, int]] = set()
        networks: list[tuple[IPv4Network | IPv6Network, int]] = []
        sockets: set[str] = set()
        for entry in entries:
            if entry.startswith("unix:/"):
                sockets.add(entry.removeprefix("unix:"))
                continue
            host, colon, digits = entry.rpartition(":")
            bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
            numeric = digits.isascii() and digits.isdecimal()
            port = 0 if digits == "*" else int(digits[:6]) if numeric else -1
            if not colon or not bare or not (digits == "*" or 1 <= port <= 65_535) or (":" in bare and bare == host):
                raise _not_allowed(entry, key)
            try:
                networks.append((ip_network(bare), port))
            except ValueError as error:
                if "/" in bare or ":" in bare or bare.replace(".", "").isdecimal() or "*" in bare or " " in bare:
                    raise _not_allowed(entry, key, f": {error}") from None
                names.add((bare.lower(), port))
        return cls(frozenset(names), tuple(networks), frozenset(sockets))

    def permits(self, host: str, port: int) -> bool:
        """Say whether this target is on the list."""
        address = _address(host)
        if address is None:
            return (host.lower(), port) in self.names or (host.lower(), 0) in self.names
        return any(address in network and one in (0, port) for network, one in self.networks)

    def permits_service(self, service: Service) -> bool:
        """Say whether all that a service dials is on the list."""
        if service.kind == "status":
            return True
        return service.path in self.sockets if service.path else self.permits(service.host, service.port)

    def __bool__(self) -> bool:
        return bool(self.names or self.networks or self.sockets)


def host_and_port(address: str) -> tuple[str, int]:
    """Give the parts of `HOST:PORT` or `[IPV6]:PORT`, which was checked before."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Give the address that is written here; one of IPv4 within IPv6 is itself."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped if mapped is not None else address


def same_target(host: str, port: int, service: Service) -> bool:
    """Say whether a service dials this host and port."""
    if service.path or service.port != port:
        return False
    address = _address(host)
    return host.lower() == service.host.lower() if address is None else address == _address(service.host)


def _not_allowed(entry: str, key: str, why: str = "") -> ConfigError:
    return ConfigError(
        f"{entry!r} is no target{why}",
        key=key,
        accepted='"mosquitto:1883", "192.0.2.1:1883", "10.0.0.0/8:*", "[2001:db8::1]:1883" or "unix:/run/app.sock"',
    )
