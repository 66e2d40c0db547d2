"""What a device may do at the edge: how it logs in, what it may be called, what it may publish and subscribe to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from lockgate.access.authority import Verdict
from lockgate.access.password_file import PasswordFile
from lockgate.config import values
from lockgate.config.errors import ConfigError
from lockgate.config.values import BadValue, Kind
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import Connect, Will
from lockgate.mqtt.topics import SHARE_PREFIX, matches, without_share
from lockgate.tunnel import jwt_rule
from lockgate.tunnel.json_tables import Table
from lockgate.tunnel.jwt_rule import JwtRule
from lockgate.tunnel.patterns import covers, fill, wildcard

CONNECT_SECONDS: Final = 10.0
CONNECT_BYTES: Final = 128 * 1024
_DENIED_IN_NAMES: Final = frozenset("+#/")  # of a name that stands for a level of a filter


class Refused(Exception):
    """A device that is not let in: a Reason Code of CONNACK (version 5's), and why, for the log."""

    def __init__(self, reason_code: int, detail: str) -> None:
        super().__init__(detail)
        self.reason_code = reason_code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a device comes from, and the attributes of the certificate it showed: CN=…, O=…, DNS:…, URI:…"""

    address: str = ""
    certificate: tuple[str, ...] = ()

    @classmethod
    def of(cls, address: str, certificate: Mapping[str, Any] | None) -> Self:
        """Take what `ssl.SSLSocket.getpeercert` gave of a certificate that was verified."""
        if not certificate:
            return cls(address)
        subject = [
            f"{_SHORT.get(name, name)}={value}" for part in certificate.get("subject", ()) for name, value in part
        ]
        names = [f"{kind}:{value}" for kind, value in certificate.get("subjectAltName", ()) if isinstance(value, str)]
        return cls(address, (*subject, *names))


_SHORT: Final = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "serialNumber": "SERIALNUMBER",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePolicy:
    """What one kind of device may do; None stands for no bound.

    Where there is more than one way to log in, one is enough; where there is none, the edge asks for none.
    """

    name: str = ""
    passwords: PasswordFile | None = None
    jwt: JwtRule | None = None  # in the password; its identity has to be the user name, if there is one
    certificates: tuple[str, ...] = ()  # patterns of an attribute, as CN=%u
    client_ids: tuple[str, ...] = ()  # patterns; none: any
    users: tuple[str, ...] = ()  # the same
    publish: tuple[str, ...] | None = None  # Topic Filters with %u and %c as whole levels
    subscribe: tuple[str, ...] | None = None
    max_payload: int | None = None
    max_qos: int = 2
    retain: bool = True
    connect_seconds: float = CONNECT_SECONDS  # from the beginning to a whole CONNECT
    connect_bytes: int = CONNECT_BYTES

    @property
    def watches_publish(self) -> bool:
        """Whether each PUBLISH has to be looked at."""
        return self.publish is not None or self.max_payload is not None or self.max_qos < 2 or not self.retain

    @property
    def watches_subscribe(self) -> bool:
        return self.subscribe is not None or self.max_qos < 2

    def login(self, connect: Connect, peer: Peer, now: float) -> Permissions:
        """Give what a device may that is let in. Raises Refused.

        `now` in Unix seconds. Takes as long as a password hash takes to compute: for a worker thread.
        """
        identity = self._identity(connect, peer, now)
        username = identity if identity is not None else connect.username
        names = {"%u": username or "", "%c": connect.client_id}
        if self.users and not any(wildcard(pattern)(username or "") for pattern in self.users):
            raise Refused(reason_codes.NOT_AUTHORIZED, "its user name is not one of those that are let in")
        for pattern in self.client_ids:
            if ("%u" not in pattern or username) and wildcard(pattern, names)(connect.client_id):
                break
        else:
            if self.client_ids:
                raise Refused(
                    reason_codes.CLIENT_IDENTIFIER_NOT_VALID, "its client id is not one of those that are let in"
                )
        permissions = Permissions(self, self._filled(self.publish, names), self._filled(self.subscribe, names))
        if connect.will is not None:
            problem = permissions.publish_problem(connect.will.topic, *_of_will(connect.will))
            if problem is not None:
                raise Refused(problem[0], f"its Will: {problem[1]}")
        return permissions

    def _identity(self, connect: Connect, peer: Peer, now: float) -> str | None:
        """Give who a certificate or a JWT vouches for, None where the user name counts. Raises Refused."""
        refused: Refused | None = None
        if self.certificates:
            names = {"%u": connect.username, "%c": connect.client_id}
            known = {name: value for name, value in names.items() if value}
            for pattern in self.certificates:
                if any(name in pattern and name not in known for name in names):
                    continue
                if any(wildcard(pattern, known)(attribute) for attribute in peer.certificate):
                    return connect.username if "%u" in pattern else _common_name(peer)
            refused = Refused(reason_codes.NOT_AUTHORIZED, "its certificate is not one of those that are let in")
        if self.jwt is not None and connect.password is not None:
            try:
                identity = self.jwt.verify(connect.password.decode("ascii"), now)
            except UnicodeDecodeError:
                refused = Refused(reason_codes.BAD_USER_NAME_OR_PASSWORD, "its password is no JWT")
            except jwt_rule.Refused as error:
                refused = Refused(reason_codes.BAD_USER_NAME_OR_PASSWORD, f"its JWT is refused: {error}")
            else:
                if connect.username in (None, identity):
                    return identity
                refused = Refused(reason_codes.BAD_USER_NAME_OR_PASSWORD, "its JWT is of another user")
        if self.passwords is not None:
            verdict = self.passwords.login(connect.client_id, connect.username, connect.password)
            if verdict is Verdict.ALLOW:
                return None
            refused = refused or Refused(reason_codes.BAD_USER_NAME_OR_PASSWORD, "wrong user name or password")
        if refused is None and self.jwt is not None:
            refused = Refused(reason_codes.BAD_USER_NAME_OR_PASSWORD, "no JWT in its password")
        if refused is not None:
            raise refused
        return None

    def _filled(self, filters: tuple[str, ...] | None, names: Mapping[str, str]) -> tuple[str, ...] | None:
        if filters is None:
            return None
        for place, what, code in (
            ("%u", "user name", reason_codes.NOT_AUTHORIZED),
            ("%c", "client id", reason_codes.CLIENT_IDENTIFIER_NOT_VALID),
        ):
            name = names[place]
            if any(place in one for one in filters) and (not name or set(name) & _DENIED_IN_NAMES):
                raise Refused(code, f"its {what} cannot be a level of a topic")
        return tuple(fill(one, names) for one in filters)


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one device may publish and subscribe to, its names filled in."""

    policy: DevicePolicy
    publish: tuple[str, ...] | None = None
    subscribe: tuple[str, ...] | None = None

    def publish_problem(self, topic_name: str, payload_bytes: int, qos: int, retain: bool) -> tuple[int, str] | None:
        """Give a Reason Code and why, for a message that may not be published."""
        policy = self.policy
        if qos > policy.max_qos:
            return reason_codes.QOS_NOT_SUPPORTED, f"QoS {qos}, at most {policy.max_qos} is allowed"
        if retain and not policy.retain:
            return reason_codes.RETAIN_NOT_SUPPORTED, "Retain is not allowed"
        if policy.max_payload is not None and payload_bytes > policy.max_payload:
            return reason_codes.NOT_AUTHORIZED, f"{payload_bytes} bytes, at most {policy.max_payload} are allowed"
        if self.publish is not None and not any(matches(one, topic_name) for one in self.publish):
            return reason_codes.NOT_AUTHORIZED, "its topic is not allowed"
        return None

    def may_subscribe(self, topic_filter: str) -> bool:
        """Say whether this Topic Filter, shared or not, is within those allowed; one that is none is not."""
        if self.subscribe is None:
            return True
        if topic_filter.startswith(SHARE_PREFIX):
            topic_filter = without_share(topic_filter)
        return any(covers(one, topic_filter) for one in self.subscribe)


def _of_will(will: Will) -> tuple[int, int, bool]:
    return len(will.payload), will.qos, will.retain


def _common_name(peer: Peer) -> str:
    return next((one.removeprefix("CN=") for one in peer.certificate if one.startswith("CN=")), "")


# --- reading ------------------------------------------------------------------------------------------------------


def _templates(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise BadValue
    if not value:
        return ()  # nothing is allowed
    filters: Any = values.TOPIC_FILTERS.read(value)
    for one in filters:
        if one.startswith(SHARE_PREFIX):
            raise BadValue(f"{one!r}: a shared one is held against the filter behind $share/NAME/")
        if any(("%u" in level or "%c" in level) and level not in ("%u", "%c") for level in one.split("/")):
            raise BadValue(f"{one!r}: %u and %c stand for whole levels")
    return tuple(filters)


def _patterns(place: Sequence[str]) -> Callable[[object], tuple[str, ...]]:
    def read(value: object) -> tuple[str, ...]:
        patterns: Any = values.NAMES.read(value)
        for one in patterns:
            if "%" in one and not any(name in one for name in place):
                known = " and ".join(place) or "no names"
                raise BadValue(f"{one!r}: % is for {known}")
        return tuple(patterns)

    return read


_TEMPLATES: Final = Kind('a list of Topic Filters, as ["sensors/%u/#"]; an empty one allows nothing', _templates)
_CLIENT_IDS: Final = Kind('a list of patterns, as ["%u-*"]', _patterns(("%u",)))
_USERS: Final = Kind('a list of patterns, as ["sensor-*"]', _patterns(()))
_CERTIFICATES: Final = Kind('a list of patterns, as ["CN=%u", "DNS:*.devices.example"]', _patterns(("%u", "%c")))


def read(name: str, table: Table) -> DevicePolicy | None:
    """Read the policy of a name; mistakes are kept in the table, and None is given for them."""
    before = len(table.errors)
    password_file = table.get("password_file", values.TEXT, "")
    passwords: PasswordFile | None = None
    if password_file:
        try:
            passwords = PasswordFile.load(table.path.parent / Path(password_file))
        except ConfigError as error:
            table.wrong("password_file", str(error), "a file made by mosquitto_passwd")
    jwt_table = table.table("jwt")
    said: dict[str, Any] = {
        "certificates": table.get("certificates", _CERTIFICATES, ()),
        "client_ids": table.get("client_ids", _CLIENT_IDS, ()),
        "users": table.get("users", _USERS, ()),
        "publish": table.get("publish", _TEMPLATES, None),
        "subscribe": table.get("subscribe", _TEMPLATES, None),
        "max_payload": table.get("max_payload", values.size(0, 268_435_455), None),
        "max_qos": table.get("max_qos", values.whole_number(0, 2), 2),
        "retain": table.get("retain", values.YES_OR_NO, True),
        "connect_seconds": table.get("connect_timeout", values.duration(1, 600), CONNECT_SECONDS),
        "connect_bytes": table.get("connect_bytes", values.size(128, 1024**2), CONNECT_BYTES),
    }
    jwt = jwt_rule.read(jwt_table) if jwt_table is not None else None
    table.done()
    if len(table.errors) > before:
        return None
    return DevicePolicy(name=name, passwords=passwords, jwt=jwt, **said)
