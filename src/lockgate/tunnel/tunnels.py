"""What an edge knows of its tunnels: one JSON file, written by `lockgate edge tunnel` or by hand.

{
  "tunnels": {
    "<tunnel id>": {
      "name": "home", "account_tag": "lockgate", "created": "2026-…Z",
      "tokens": {"1": {"hash": "sha256:…", "created": "2026-…Z", "expires": null, "revoked": null}},
      "hosts": {"home.example.org": {"policy": "people", "paths": {"/health": null}, "devices": "sensors"}},
      "mqtts": {"mqtt.example.org": {"target": "mosquitto:1883", "devices": "sensors"}},
      "users": {"home/": {"target": "mosquitto:1883", "devices": "sensors"}},
      "limits": {"connections": 16, "streams": 10000, "bytes_per_second": 0},
      "configuration": {"version": 1, "config": {"ingress": […]}}
    }
  },
  "policies": {"people": {…}},
  "devices": {"sensors": {…}}
}

A token's secret is 32 bytes of chance, so that its SHA-256 is as good as a slow hash: there is nothing to guess.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import json
import logging
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from lockgate.access import secret_file
from lockgate.config import values
from lockgate.config.errors import ConfigError, did_you_mean, raise_all
from lockgate.config.values import BadValue, Kind
from lockgate.files import Stamp, stamp
from lockgate.tunnel import device_policy, json_tables, management, policy
from lockgate.tunnel.device_policy import DevicePolicy
from lockgate.tunnel.ingress import host_without_port
from lockgate.tunnel.ingress_files import from_json
from lockgate.tunnel.json_tables import Table
from lockgate.tunnel.jwks import Keys, KeyUrl, urls
from lockgate.tunnel.policy import MOMENT, SHA256, HostAccess, Policy
from lockgate.tunnel.token import check_address

log = logging.getLogger(__name__)

ACCOUNT_TAG: Final = "lockgate"


class Refusal(enum.Enum):
    """Why a token is not accepted."""

    WRONG = "wrong"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class TunnelToken:
    """One of the tokens of a tunnel. Times in Unix seconds."""

    number: str
    digest: bytes = field(repr=False)
    expires: float | None = None
    revoked: float | None = None

    def refusal(self, now: float) -> Refusal | None:
        """Say why it does not count any more, None where it does."""
        if self.revoked is not None:
            return Refusal.REVOKED
        return Refusal.EXPIRED if self.expires is not None and now >= self.expires else None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one tunnel, over all its connections; 0 is no limit."""

    connections: int = 16
    streams: int = 10_000
    bytes_per_second: int = 0  # each way


@dataclass(frozen=True, slots=True)
class Host:
    """What belongs to a host name: who may pass, and whether MQTT in its WebSockets is looked at."""

    name: str
    access: HostAccess = field(default_factory=HostAccess)
    devices: DevicePolicy | None = None


@dataclass(frozen=True, slots=True)
class Mqtts:
    """Where MQTT over TLS goes: HOST:PORT as the connector dials it; none: the rule for the host name decides."""

    name: str  # the SNI, or the beginning of user names
    target: str = ""
    devices: DevicePolicy | None = None


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One tunnel. `configuration` is what its connectors are pushed, as JSON: version and ingress rules."""

    id: uuid.UUID
    name: str
    account_tag: str
    tokens: tuple[TunnelToken, ...]
    hosts: tuple[Host, ...] = ()
    mqtts: tuple[Mqtts, ...] = ()
    users: tuple[Mqtts, ...] = ()
    limits: Limits = Limits()
    configuration: bytes | None = None


class Tunnels:
    """All tunnels of one reading of the file; never changed."""

    def __init__(self, tunnels: Mapping[uuid.UUID, Tunnel] | None = None, keys: tuple[KeyUrl, ...] = ()) -> None:
        self.by_id = dict(tunnels or {})
        self.keys = keys  # JWK Sets at addresses: somebody has to run `keep` of each; the same ones after a change
        everything = self.by_id.values()
        self._hosts = {host.name: (tunnel, host) for tunnel in everything for host in tunnel.hosts}
        self._mqtts = {one.name: (tunnel, one) for tunnel in everything for one in tunnel.mqtts}
        self._users = sorted(
            ((one.name, tunnel, one) for tunnel in everything for one in tunnel.users), key=lambda row: -len(row[0])
        )

    def __iter__(self) -> Iterator[Tunnel]:
        return iter(self.by_id.values())

    def named(self, name: str) -> Tunnel | None:
        """Give the tunnel with this name or id."""
        return next((tunnel for tunnel in self if name in (tunnel.name, str(tunnel.id))), None)

    def authenticate(self, account_tag: str, tunnel_id: uuid.UUID, secret: bytes, now: float) -> Tunnel | Refusal:
        """Say whose token this is, or why it does not count; how long it takes tells nothing of the secret.

        `now` in Unix seconds. A tunnel that is not there and a wrong secret are the same to whoever asks.
        """
        tunnel = self.by_id.get(tunnel_id)
        digest = digest_of(account_tag, tunnel_id, secret)
        found: TunnelToken | None = None
        for token in tunnel.tokens if tunnel is not None else (_NO_TOKEN,):
            if hmac.compare_digest(token.digest, digest):
                found = token
        if tunnel is None or found is None:
            return Refusal.WRONG
        return found.refusal(now) or tunnel

    def host(self, name: str) -> tuple[Tunnel, Host] | None:
        """Give where requests for a host go, by the name in the Host header or SNI; an exact name goes before `*.`.

        No name leads to what connectors answer themselves.
        """
        host = host_without_port(name)
        return _by_name(self._hosts, host) if host != management.HOST else None

    def mqtts(self, server_name: str) -> tuple[Tunnel, Mqtts] | None:
        """Give where MQTT over TLS goes, by SNI."""
        return _by_name(self._mqtts, host_without_port(server_name))

    def user(self, username: str) -> tuple[Tunnel, Mqtts] | None:
        """Give where MQTT goes by the beginning of the user name, the longest that fits."""
        return next(((tunnel, one) for prefix, tunnel, one in self._users if username.startswith(prefix)), None)

    @property
    def by_user(self) -> bool:
        """Whether user names lead anywhere: then a CONNECT has to be read before it is known where it goes."""
        return bool(self._users)


def _by_name(table: Mapping[str, tuple[Tunnel, Any]], name: str) -> tuple[Tunnel, Any] | None:
    found = table.get(name)
    while found is None and name:
        _, _, name = name.partition(".")
        found = table.get(f"*.{name}")
    return found


def digest_of(account_tag: str, tunnel_id: uuid.UUID, secret: bytes) -> bytes:
    """Give what is kept of a token: it is of no use for another tunnel."""
    tag = account_tag.encode("utf-8", "backslashreplace")
    return hashlib.sha256(len(tag).to_bytes(4, "big") + tag + tunnel_id.bytes + secret).digest()


_NO_TOKEN: Final = TunnelToken("", bytes(32))


class TunnelsFile:
    """The file as it is now. One that cannot be used leaves what was read before, and the log says why."""

    def __init__(self, path: Path) -> None:
        """Read it; none there is none of the tunnels. Raises ConfigError with every mistake."""
        self.path = path
        self._state = _state(path)
        self.current = load(path)

    def refresh(self) -> bool:
        """Look whether the file has changed, and read it again; whether there is something new. Never raises."""
        try:
            state = _state(self.path)
            if state == self._state:
                return False
            self._state = state  # also when it cannot be used: that is told once
            self.current = load(self.path, self.current)
        except ConfigError as error:
            log.warning("the tunnels stay what they were: %s", error)
            return False
        except OSError as error:
            log.warning("the tunnels stay what they were: %s: %s", self.path, error.strerror)
            return False
        log.info("%d tunnels are known, from %s", len(self.current.by_id), self.path)
        return True


def _state(path: Path) -> Stamp | None:
    try:
        return stamp(path)
    except FileNotFoundError:
        return None


# --- reading ------------------------------------------------------------------------------------------------------


def load(path: Path, before: Tunnels | None = None) -> Tunnels:
    """Read the file; keys that were fetched `before` stay known. Raises ConfigError with every mistake in it."""
    return parse(secret_file.read_text(path), path, before) if path.exists() or path.is_symlink() else Tunnels()


def parse(text: str, path: Path, before: Tunnels | None = None) -> Tunnels:
    """Read the text of the file at `path`, to whose folder names in it are relative. Raises ConfigError."""
    table = json_tables.read(path, text, {one.url: one for one in before.keys} if before is not None else None)
    reading = _Reading(
        {name: policy.read(name, one) for name, one in table.named("policies").items()},
        {name: device_policy.read(name, one) for name, one in table.named("devices").items()},
    )
    tunnels: dict[uuid.UUID, Tunnel] = {}
    for name, one in table.named("tunnels").items():
        tunnel = reading.tunnel(name, one)
        if tunnel.id in tunnels:
            one.wrong("", f"has the id of {tunnels[tunnel.id].name}, too", "each id once")
        tunnels[tunnel.id] = tunnel
    table.done()
    raise_all(table.errors)
    return Tunnels(tunnels, tuple(urls(reading.keys())))


class _Reading:
    def __init__(self, policies: Mapping[str, Policy | None], devices: Mapping[str, DevicePolicy | None]) -> None:
        self._policies = policies
        self._devices = devices
        self._taken: dict[tuple[str, str], str] = {}  # names that have a tunnel

    def keys(self) -> Iterator[Keys]:
        yield from policy.sources(list(self._policies.values()))
        yield from (one.jwt.keys for one in self._devices.values() if one is not None and one.jwt is not None)

    def tunnel(self, text: str, table: Table) -> Tunnel:
        tunnel_id = uuid.UUID(int=0)
        try:
            tunnel_id = uuid.UUID(text)
        except ValueError:
            table.wrong("", f"{text!r} is no id of a tunnel", "a UUID")
        name = table.get("name", _NAME, "", required=True)
        self._once(table, "name", "tunnel", name, name)
        tunnel = Tunnel(
            tunnel_id,
            name,
            table.get("account_tag", values.TEXT, ACCOUNT_TAG),
            tuple(self._token(number, one) for number, one in table.named("tokens").items()),
            tuple(self._host(name, host, one) for host, one in table.named("hosts").items()),
            tuple(self._mqtts(name, "mqtts", host, one) for host, one in table.named("mqtts").items()),
            tuple(self._mqtts(name, "users", prefix, one) for prefix, one in table.named("users").items()),
            self._limits(table.table("limits")),
            table.get("configuration", _CONFIGURATION, None),
        )
        table.get("created", MOMENT, None)
        table.done()
        return tunnel

    def _token(self, number: str, table: Table) -> TunnelToken:
        token = TunnelToken(
            number,
            table.get("hash", SHA256, bytes(32), required=True),
            table.get("expires", MOMENT, None),
            table.get("revoked", MOMENT, None),
        )
        table.get("created", MOMENT, None)
        table.done()
        return token

    def _host(self, tunnel: str, name: str, table: Table) -> Host:
        self._check_name(tunnel, "host", name, table)
        paths_table = table.table("paths")
        paths: list[tuple[str, Policy | None]] = []
        for path in paths_table.said if paths_table is not None else ():
            assert paths_table is not None
            paths.append((path, self._policy(paths_table, path)))
            if not path.startswith("/") or "//" in path or set(path) & set("?#%"):
                paths_table.wrong(path, "is no beginning of a path", "as /admin, decoded")
        host = Host(name.lower(), HostAccess(self._policy(table, "policy"), tuple(paths)), self._device_policy(table))
        table.done()
        return host

    def _mqtts(self, tunnel: str, kind: str, name: str, table: Table) -> Mqtts:
        if kind == "users":
            self._once(table, "", "beginning of user names", name, tunnel)
            if not name:
                table.wrong("", "is empty", "the beginning of user names, as home/")
        else:
            self._check_name(tunnel, "mqtts", name, table)
            name = name.lower()
        one = Mqtts(name, table.get("target", _TARGET, "", required=kind == "users"), self._device_policy(table))
        table.done()
        return one

    def _check_name(self, tunnel: str, kind: str, name: str, table: Table) -> None:
        try:
            values.HOSTS.read([name])
        except BadValue as bad:
            table.wrong("", str(bad), "a.example or *.example")
        if name.lower() == management.HOST:
            table.wrong("", "is the management of connectors, where nobody from outside may be", "another name")
        self._once(table, "", kind, name.lower(), tunnel)

    def _once(self, table: Table, key: str, kind: str, name: str, tunnel: str) -> None:
        if (kind, name) in self._taken:
            table.wrong(key, f"{name!r} belongs to tunnel {self._taken[kind, name]}", f"each {kind} once")
        elif name:
            self._taken[kind, name] = tunnel

    def _policy(self, table: Table, key: str) -> Policy | None:
        return _of_name(table, key, self._policies)

    def _device_policy(self, table: Table) -> DevicePolicy | None:
        return _of_name(table, "devices", self._devices)

    def _limits(self, table: Table | None) -> Limits:
        if table is None:
            return Limits()
        limits = Limits(
            table.get("connections", values.COUNT, Limits().connections),
            table.get("streams", values.COUNT, Limits().streams),
            table.get("bytes_per_second", values.SIZE_OR_NONE, Limits().bytes_per_second),
        )
        table.done()
        return limits


_Named = TypeVar("_Named", Policy, DevicePolicy)


def _of_name(table: Table, key: str, known: Mapping[str, _Named | None]) -> _Named | None:
    """Give the policy that is named there; None also where its own mistakes are told already."""
    name = table.get(key, values.TEXT, None)
    if name is not None and name not in known:
        table.wrong(key, f"there is no {name!r}.{did_you_mean(name, known)}", ", ".join(known) or "first a policy")
    return known.get(name)


_TUNNEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _name(value: object) -> str:
    if not isinstance(value, str) or not _TUNNEL_NAME.fullmatch(value):
        raise BadValue
    return value


def _target(value: object) -> str:
    try:
        check_address(value, "")
    except ConfigError:
        raise BadValue from None
    return str(value)


def _configuration(value: object) -> bytes:
    if not isinstance(value, dict) or value.keys() != {"version", "config"}:
        raise BadValue("it has not the keys version and config")
    version = value["version"]
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 2**31:
        raise BadValue(f"version {version!r} is no whole number")
    try:
        from_json(value["config"])
    except ConfigError as error:
        raise BadValue(str(error)) from None
    return json.dumps(value).encode()


_NAME: Final = Kind("1 to 64 letters, digits, ., - and _", _name)
_TARGET: Final = Kind("HOST:PORT or [IPV6]:PORT", _target)
_CONFIGURATION: Final = Kind('{"version": N, "config": {"ingress": […]}}', _configuration)
