"""Who may reach an HTTP origin: service tokens, JWTs, address ranges, hours, put together with `any` and `all`.

A host name without a policy is open to everybody: then the origin decides alone.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import posixpath
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, Protocol
from urllib.parse import unquote

from lockgate.config import values
from lockgate.config.model import Window
from lockgate.config.values import BadValue, Kind
from lockgate.tunnel import jwt_rule
from lockgate.tunnel.ingress import Access
from lockgate.tunnel.json_tables import Table
from lockgate.tunnel.jwks import Keys, KeyUrl
from lockgate.tunnel.jwt_rule import JwtRule

# Header names: ours, and those that clients of the vendor's service tokens send
SERVICE_TOKEN_HEADERS: Final = (
    ("lockgate-client-id", "lockgate-client-secret"),
    ("cf-access-client-id", "cf-access-client-secret"),
)
ASSERTION_HEADER: Final = "cf-access-jwt-assertion"  # where the vendor's login puts a JWT
_NESTED: Final = 8  # `any` and `all` within each other
_SECRET_CHARACTERS: Final = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """What a policy looks at. Header names in lower case; the target as it came."""

    target: str
    address: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Decision:
    """`identity` is who it is, as far as a rule proved it; `reason` is for the log.

    `secrets` are headers that were meant for the edge: they are not passed on to the origin. `status` is 401 where
    credentials are missing or wrong, 403 where no credentials would help, 200 else.
    """

    allowed: bool
    status: int
    reason: str
    identity: str = ""
    secrets: frozenset[str] = frozenset()


class Word(enum.Enum):
    """What one rule says."""

    ALLOW = "allow"
    ASK = "ask"  # for credentials, or better ones
    FORBID = "forbid"


@dataclass(frozen=True, slots=True)
class Answer:
    """A rule's word, why, who it is, and the header that proved it."""

    word: Word
    reason: str
    identity: str = ""
    header: str = ""


class Rule(Protocol):
    """One condition."""

    def ask(self, request: Request, now: float) -> Answer: ...


@dataclass(frozen=True, slots=True)
class ServiceToken:
    """An id and a secret in two headers; kept is the secret's SHA-256, for it is made of chance and long."""

    id: str
    digest: bytes = field(repr=False)
    expires: float | None = None  # Unix seconds

    def ask(self, request: Request, now: float) -> Answer:
        for id_header, secret_header in SERVICE_TOKEN_HEADERS:
            said, secret = request.headers.get(id_header), request.headers.get(secret_header)
            if said is None or secret is None or len(secret) > _SECRET_CHARACTERS:
                continue
            fits = hmac.compare_digest(digest_of(secret), self.digest)
            if not (digest_of(said) == digest_of(self.id) and fits):
                continue
            if self.expires is not None and now >= self.expires:
                return Answer(Word.ASK, f"service token {self.id} has expired")
            return Answer(Word.ALLOW, f"service token {self.id}", self.id, secret_header)
        return Answer(Word.ASK, "no service token that is known")


@dataclass(frozen=True, slots=True)
class Jwt:
    """A JWT as bearer in Authorization, or in the header named."""

    rule: JwtRule
    header: str = "authorization"

    def ask(self, request: Request, now: float) -> Answer:
        said = request.headers.get(self.header)
        if said is None:
            return Answer(Word.ASK, "no JWT")
        scheme, _, token = said.partition(" ")
        if not token:
            token = scheme
        elif scheme.lower() != "bearer":
            return Answer(Word.ASK, "no JWT")
        try:
            who = self.rule.verify(token.strip(), now)
        except jwt_rule.Refused as refused:
            return Answer(Word.ASK, f"the JWT is refused: {refused}")
        return Answer(Word.ALLOW, f"JWT of {self.rule.issuer}", who, self.header)


@dataclass(frozen=True, slots=True)
class Networks:
    """The address the request came from."""

    networks: tuple[IPv4Network | IPv6Network, ...]

    def ask(self, request: Request, now: float) -> Answer:
        try:
            address = ip_address(request.address)
        except ValueError:
            return Answer(Word.FORBID, "its address is not known")
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self.networks):
            return Answer(Word.ALLOW, "its address")
        return Answer(Word.FORBID, "its address is in none of the networks")


@dataclass(frozen=True, slots=True)
class Hours:
    """Hours of the week, in a time zone or in this machine's."""

    windows: tuple[Window, ...]
    zone: tzinfo | None = None

    def ask(self, request: Request, now: float) -> Answer:
        local = datetime.fromtimestamp(now, self.zone)
        if any(window.holds(local) for window in self.windows):
            return Answer(Word.ALLOW, "its hours")
        return Answer(Word.FORBID, "outside its hours")


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of them is enough; credentials are asked for where they would help."""

    rules: tuple[Rule, ...]

    def ask(self, request: Request, now: float) -> Answer:
        refused: list[Answer] = []
        for rule in self.rules:
            answer = rule.ask(request, now)
            if answer.word is Word.ALLOW:
                return answer
            refused.append(answer)
        word = Word.ASK if any(answer.word is Word.ASK for answer in refused) else Word.FORBID
        return Answer(word, "; ".join(answer.reason for answer in refused))


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of them; what forbids goes before what asks."""

    rules: tuple[Rule, ...]

    def ask(self, request: Request, now: float) -> Answer:
        answers: list[Answer] = []
        for rule in self.rules:
            answers.append(rule.ask(request, now))
            if answers[-1].word is Word.FORBID:
                return answers[-1]
        asks = next((answer for answer in answers if answer.word is Word.ASK), None)
        if asks is not None:
            return asks
        who = " ".join(answer.identity for answer in answers if answer.identity)
        header = " ".join(answer.header for answer in answers if answer.header)
        return Answer(Word.ALLOW, ", ".join(answer.reason for answer in answers), who, header)


@dataclass(frozen=True, slots=True)
class Policy:
    """A named rule."""

    name: str
    rule: Rule

    def decide(self, request: Request, now: float) -> Decision:
        """`now` in Unix seconds."""
        answer = self.rule.ask(request, now)
        reason = f"policy {self.name}: {answer.reason}"
        # those that proved nothing are no business of the origin's, either
        told = {header for pair in SERVICE_TOKEN_HEADERS for header in pair} & request.headers.keys()
        if answer.word is Word.ALLOW:
            return Decision(True, 200, reason, answer.identity, frozenset(told | set(answer.header.split())))
        return Decision(False, 401 if answer.word is Word.ASK else 403, reason)


@dataclass(frozen=True, slots=True)
class HostAccess:
    """The policies of a host name: one for everything, others for paths that begin in some way; None lets in all."""

    policy: Policy | None = None
    paths: tuple[tuple[str, Policy | None], ...] = ()  # the longest that fits counts; each is whole levels

    def decide(self, request: Request, now: float) -> Decision:
        """Ask the policy of the path. Where servers may disagree what a path means, all that could count have to allow.

        `now` in Unix seconds.
        """
        found = map(self._of_path, readings(request.target)) if self.paths else [self.policy]
        policies = {policy.name: policy for policy in found if policy is not None}
        if not policies:
            return Decision(True, 200, "no policy")
        decided = [policy.decide(request, now) for policy in policies.values()]
        refused = next((one for one in decided if not one.allowed), None)
        if refused is not None:
            return refused
        who = " ".join(dict.fromkeys(one.identity for one in decided if one.identity))
        told = frozenset(header for one in decided for header in one.secrets)
        return Decision(True, 200, "; ".join(one.reason for one in decided), who, told)

    def _of_path(self, path: str) -> Policy | None:
        fitting = [pair for pair in self.paths if path == pair[0] or path.startswith(pair[0].rstrip("/") + "/")]
        return max(fitting, key=lambda pair: len(pair[0]))[1] if fitting else self.policy


def readings(target: str) -> set[str]:
    """Give what a server may take the path of a request target for: as it came, decoded once or twice, tidied."""
    path = target.partition("?")[0].partition("#")[0]
    if "://" in path:  # the absolute form
        path = "/" + path.partition("://")[2].partition("/")[2]
    found: set[str] = set()
    for _ in range(3):
        for one in (path, path.replace("\\", "/")):
            found.add(one)
            # some servers cut `;…` off each level
            for plain in (one, "/".join(level.partition(";")[0] for level in one.split("/"))):
                found.add("/" + posixpath.normpath("/" + plain).lstrip("/"))
        path = unquote(path)
    return found


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "backslashreplace")).digest()


def new_service_token() -> tuple[str, str, dict[str, str]]:
    """Give a new id and secret, and the rule that accepts them."""
    identifier, secret = f"{secrets.token_hex(16)}.access", secrets.token_hex(32)
    return identifier, secret, {"id": identifier, "hash": f"sha256:{digest_of(secret).hex()}"}


# --- reading ------------------------------------------------------------------------------------------------------


def sha256(value: object) -> bytes:
    """Read `sha256:` and 64 digits; raises BadValue."""
    if not isinstance(value, str) or not value.startswith("sha256:"):
        raise BadValue
    try:
        digest = bytes.fromhex(value.removeprefix("sha256:"))
    except ValueError:
        raise BadValue from None
    if len(digest) != 32:
        raise BadValue
    return digest


def moment(value: object) -> float:
    """Read a time with its zone, as 2027-01-31T12:00:00Z, into Unix seconds; raises BadValue."""
    if not isinstance(value, str):
        raise BadValue
    try:
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            raise BadValue("it has no time zone")
        return at.timestamp()
    except (ValueError, OverflowError) as error:
        raise BadValue(str(error)) from None


SHA256: Final = Kind("sha256: and 64 hexadecimal digits", sha256, secret=True)
MOMENT: Final = Kind("a time with its zone, as 2027-01-31T12:00:00Z", moment)
_HEADER: Final = Kind("a header's name, as Cf-Access-Jwt-Assertion", lambda value: _header(value))
_KINDS: Final = ("any", "all", "service_token", "jwt", "networks", "hours")


def read(name: str, table: Table) -> Policy | None:
    """Read the policy of a name; mistakes are kept in the table, and None is given for them."""
    before = len(table.errors)
    rule = _rule(table, 0)
    return Policy(name, rule) if rule is not None and len(table.errors) == before else None


def _rule(table: Table, depth: int) -> Rule | None:
    kind = table.one_of(_KINDS)
    rule: Rule | None = None
    if kind in ("any", "all"):
        rule = _combined(table, kind, depth)
    elif kind == "service_token":
        rule = _service_token(table.table("service_token"))
    elif kind == "jwt":
        rule = _jwt(table.table("jwt"))
    elif kind == "networks":
        rule = Networks(table.get("networks", values.NETWORKS, ()))
    elif kind == "hours":
        zone = table.get("time_zone", values.TIME_ZONE, "")
        rule = Hours(table.get("hours", values.WINDOWS, ()), _zone(zone))
    table.done()
    return rule


def _combined(table: Table, kind: str, depth: int) -> Rule | None:
    inner = table.tables(kind)
    if depth >= _NESTED:
        table.wrong(kind, "lies too deep", f"any and all within each other at most {_NESTED} times")
        return None
    if not inner:
        table.wrong(kind, "has no rules", "a list of rules")
    rules = tuple(rule for rule in (_rule(one, depth + 1) for one in inner) if rule is not None)
    return AnyOf(rules) if kind == "any" else AllOf(rules)


def _service_token(table: Table | None) -> Rule | None:
    if table is None:
        return None
    token = ServiceToken(
        table.get("id", values.TEXT, "", required=True),
        table.get("hash", SHA256, b"", required=True),
        table.get("expires", MOMENT, None),
    )
    table.done()
    return token


def _jwt(table: Table | None) -> Rule | None:
    if table is None:
        return None
    header = table.get("header", _HEADER, "authorization")
    rule = jwt_rule.read(table)
    return Jwt(rule, header) if rule is not None else None


def _header(value: object) -> str:
    if not isinstance(value, str) or not value or not value.replace("-", "").isalnum() or not value.isascii():
        raise BadValue
    return value.lower()


def _zone(name: str) -> tzinfo | None:
    if not name:
        return None
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def of_access(access: Access) -> Policy | None:
    """Give the policy that a rule's `access` asks for: a JWT of the vendor's login; None where it asks for nothing."""
    if not access.required:
        return None
    team = f"https://{access.team_name}.cloudflareaccess.com"
    rule = JwtRule(team, access.audiences, KeyUrl(f"{team}/cdn-cgi/access/certs"), ("RS256",), identity="email")
    return Policy(f"access of {access.team_name}", Jwt(rule, ASSERTION_HEADER))


def sources(rules: Sequence[Policy | None]) -> Iterator[Keys]:
    """Give where the keys of all JWTs are."""
    waiting: list[Any] = [policy.rule for policy in rules if policy is not None]
    while waiting:
        rule = waiting.pop()
        if isinstance(rule, AnyOf | AllOf):
            waiting.extend(rule.rules)
        elif isinstance(rule, Jwt):
            yield rule.rule.keys
