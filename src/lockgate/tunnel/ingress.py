"""Ingress rules: which host name and path lead to which service. The first rule that matches counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final
from urllib.parse import unquote

from lockgate.tunnel.services import AllowList, Service, same_target

_MATCHED_CHARACTERS: Final = 16_384  # of a path; what is longer matches no rule that asks for one


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """`access`: a JWT of the vendor's login that requests have to bring (header Cf-Access-Jwt-Assertion)."""

    required: bool = False
    team_name: str = ""
    audiences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginRequest:
    """How an origin is asked; times in seconds. `access` is to be enforced by whoever asks it."""

    connect_timeout: float = 30.0
    tls_timeout: float = 10.0
    tcp_keep_alive: float = 30.0
    keep_alive_timeout: float = 90.0
    keep_alive_connections: int = 100
    no_happy_eyeballs: bool = False
    http_host_header: str = ""
    origin_server_name: str = ""
    match_sni_to_host: bool = False
    ca_pool: str = ""
    no_tls_verify: bool = False
    disable_chunked_encoding: bool = False
    access: Access | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; `number` counts from 1. An empty host name or path matches all."""

    number: int
    hostname: str
    path: str  # a regular expression of RE2, looked for anywhere in the path
    service: Service
    request: OriginRequest
    _found: Callable[[str], object] | None = field(default=None, repr=False, compare=False)

    def matches(self, host: str, path: str) -> bool:
        """`host` in lower case and without a port, `path` decoded and without a query."""
        if self.hostname.startswith("*."):
            if not host.endswith(self.hostname[1:]) or len(host) < len(self.hostname):
                return False
        elif self.hostname and self.hostname != host:
            return False
        return self._found is None or (len(path) <= _MATCHED_CHARACTERS and self._found(path) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpRouting:
    """`warp-routing`: raw TCP streams; times in seconds."""

    connect_timeout: float = 5.0
    tcp_keep_alive: float = 30.0
    max_active_flows: int = 0  # 0: no limit


@dataclass(frozen=True, slots=True)
class Ingress:
    """All rules in their order; the last one matches everything."""

    rules: tuple[Rule, ...]
    warp_routing: WarpRouting = WarpRouting()

    def match(self, host: str, target: str) -> Rule:
        """Give the rule for a request: the Host header and the request target as they came."""
        host = host_without_port(host)
        path = unquote(target.partition("?")[0])
        for rule in self.rules:
            if rule.matches(host, path):
                return rule
        return self.rules[-1]

    def may_dial(self, host: str, port: int, allow: AllowList) -> bool:
        """Say whether a raw TCP stream may go there: what is on the list, and what a `tcp` rule leads to.

        Not what a rule with `access` leads to: a raw stream brings no JWT.
        """
        if allow.permits(host, port):
            return True
        return any(
            rule.service.kind == "tcp"
            and same_target(host, port, rule.service)
            and not (rule.request.access is not None and rule.request.access.required)
            for rule in self.rules
        )

    def as_json(self) -> dict[str, Any]:
        """Give the configuration as cloudflared reports its own, what is default left out."""
        return {
            "ingress": [
                {key: value for key, value in (("hostname", rule.hostname), ("path", rule.path)) if value}
                | {"service": rule.service.text, "originRequest": _spoken(rule.request, REQUEST_KEYS)}
                for rule in self.rules
            ],
            "warp-routing": _spoken(self.warp_routing, WARP_KEYS),
        }


def host_without_port(host: str) -> str:
    """Give a Host header's name in lower case, without port, brackets and the root's dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


NOTHING: Final = Ingress((Rule(1, "", "", Service.parse("http_status:503"), OriginRequest()),))


# --- its words -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """A key of originRequest or warp-routing: its names, and the kind of its value.

    A key of the kinds `never` and `passed over` is known so that its default may stand there. `wished` is what an
    origin may do without.
    """

    name: str
    target: str
    kind: str
    accepted: str = ""  # where the kind does not say it


REQUEST_KEYS: Final = (
    Key("connectTimeout", "connect_timeout", "seconds"),
    Key("tlsTimeout", "tls_timeout", "seconds"),
    Key("tcpKeepAlive", "tcp_keep_alive", "seconds"),
    Key("keepAliveTimeout", "keep_alive_timeout", "seconds"),
    Key("keepAliveConnections", "keep_alive_connections", "count"),
    Key("noHappyEyeballs", "no_happy_eyeballs", "bool"),
    Key("httpHostHeader", "http_host_header", "text"),
    Key("originServerName", "origin_server_name", "text"),
    Key("matchSNItoHost", "match_sni_to_host", "bool"),
    Key("caPool", "ca_pool", "text"),
    Key("noTLSVerify", "no_tls_verify", "bool"),
    Key("disableChunkedEncoding", "disable_chunked_encoding", "bool"),
    Key("http2Origin", "http2_origin", "wished", "false, for origins are asked over HTTP/1.1"),
    Key("access", "access", "access"),
    Key("bastionMode", "bastion_mode", "never", "false, for bastion is not offered here"),
    Key("proxyType", "proxy_type", "never", "nothing, for socks-proxy is not offered here"),
    Key("proxyAddress", "proxy_address", "passed over"),
    Key("proxyPort", "proxy_port", "passed over"),
    Key("ipRules", "ip_rules", "never", "nothing, for socks-proxy is not offered here"),
)
WARP_KEYS: Final = (
    Key("connectTimeout", "connect_timeout", "seconds"),
    Key("tcpKeepAlive", "tcp_keep_alive", "seconds"),
    Key("maxActiveFlows", "max_active_flows", "count"),
    Key("enabled", "enabled", "passed over"),  # of old versions of cloudflared
)


def _spoken(said: OriginRequest | WarpRouting, keys: Sequence[Key]) -> dict[str, Any]:
    """What is not default, in JSON's words."""
    defaults = {one.name: one.default for one in fields(said)}
    spoken: dict[str, Any] = {}
    for key in keys:
        value: Any = getattr(said, key.target, None)
        if key.target not in defaults or value == defaults[key.target]:
            continue
        if isinstance(value, Access):
            spoken[key.name] = {
                "required": value.required,
                "teamName": value.team_name,
                "audTag": list(value.audiences),
            }
        else:
            spoken[key.name] = round(value) if key.kind == "seconds" else value
    return spoken
