"""Whether a JWT is one we accept (RFC 7519): issuer, audience, time, claims, and a signature of an asymmetric key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lockgate.config import values
from lockgate.config.errors import ConfigError
from lockgate.config.values import BadValue, Kind
from lockgate.tunnel.json_tables import Table
from lockgate.tunnel.jwks import KeyFile, Keys, KeyUrl
from lockgate.tunnel.patterns import wildcard

# Those with a secret that both sides know are not among them: whoever could check a token could make one.
ALGORITHMS: Final = ("ES256", "ES384", "ES512", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
_DEFAULT_ALGORITHMS: Final = ("ES256", "EdDSA", "RS256")
TOKEN_CHARACTERS: Final = 16_384
IDENTITY_CHARACTERS: Final = 256
_MOST_TRIED: Final = 4  # keys, for a token that names none


class Refused(Exception):
    """A token that is not accepted; the text is for the log and shows nothing of it."""


@dataclass(frozen=True, slots=True)
class JwtRule:
    """What a token has to be. `claims`: each must have one of the texts, as they stand or with `*`."""

    issuer: str
    audiences: tuple[str, ...]
    keys: Keys
    algorithms: tuple[str, ...] = _DEFAULT_ALGORITHMS
    leeway_seconds: float = 30.0
    claims: tuple[tuple[str, tuple[str, ...]], ...] = ()
    identity: str = "sub"  # the claim that says who it is

    def verify(self, token: str, now: float) -> str:
        """Give who the token is of; `now` in Unix seconds. Raises Refused."""
        said = self._signed(token)
        self._check_time(said, now)
        for name, patterns in self.claims:
            value = said.get(name)
            texts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
            if not any(wildcard(pattern)(text) for pattern in patterns for text in texts):
                raise Refused(f"the claim {name} is not one of those that are let in")
        who = said.get(self.identity)
        if not isinstance(who, str) or not 1 <= len(who) <= IDENTITY_CHARACTERS or not who.isprintable():
            raise Refused(f"it does not say who it is of ({self.identity})")
        return who

    def _signed(self, token: str) -> dict[str, Any]:
        import jwt

        if len(token) > TOKEN_CHARACTERS:
            raise Refused("it is too long")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Refused("it is no JWT") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self.algorithms:
            raise Refused("its algorithm is not allowed")
        known = self.keys.get()
        tried = [key for key in known if (kid is None or key.kid == kid) and key.alg in ("", algorithm)]
        if not tried:
            self.keys.miss()
            raise Refused("its key is not known")
        for key in tried[:_MOST_TRIED]:
            try:
                return jwt.decode(
                    token,
                    key.key,
                    algorithms=[algorithm],
                    audience=self.audiences,
                    issuer=self.issuer,
                    options={"require": ["exp"], "verify_exp": False, "verify_nbf": False, "verify_iat": False},
                )
            except jwt.InvalidIssuerError:
                raise Refused("its issuer is another") from None
            except jwt.InvalidAudienceError:
                raise Refused("it is for another audience") from None
            except jwt.MissingRequiredClaimError as error:
                raise Refused(f"it has no {error.claim}") from None
            except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
                continue  # the key is of another kind, or not the one
        raise Refused("its signature is wrong")

    def _check_time(self, said: dict[str, Any], now: float) -> None:
        for name in ("exp", "nbf"):
            at = said.get(name, 0)
            if isinstance(at, bool) or not isinstance(at, int | float):
                raise Refused(f"its {name} is no time")
        if not said["exp"] > now - self.leeway_seconds:  # so that what is no number has expired
            raise Refused("it has expired")
        if not said.get("nbf", now) <= now + self.leeway_seconds:
            raise Refused("it is not valid yet")


def _algorithms(value: object) -> tuple[str, ...]:
    names: Any = values.NAMES.read(value)
    for name in names:
        if name not in ALGORITHMS:
            raise BadValue(f"{name!r} is not offered")
    return tuple(names)


def _claims(value: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(value, dict):
        raise BadValue
    found: list[tuple[str, tuple[str, ...]]] = []
    for name, texts in value.items():
        wanted = [texts] if isinstance(texts, str) else texts
        if not isinstance(wanted, list) or not wanted or not all(isinstance(one, str) and one for one in wanted):
            raise BadValue(f"{name} must be a text or a list of texts")
        found.append((name, tuple(wanted)))
    return tuple(found)


_ALGORITHMS_KIND: Final = Kind(f"some of {', '.join(ALGORITHMS)}", _algorithms)
_CLAIMS_KIND: Final = Kind('texts by claim, as {"email": "*@example.org"}', _claims)


def read(table: Table) -> JwtRule | None:
    """Read a rule; mistakes are kept in the table, and None is given for them."""
    before = len(table.errors)
    issuer = table.get("issuer", values.TEXT, "", required=True)
    audiences = table.get("audience", values.NAMES, (), required=True)
    said = table.get("keys", values.TEXT, "", required=True)
    algorithms = table.get("algorithms", _ALGORITHMS_KIND, _DEFAULT_ALGORITHMS)
    leeway = table.get("leeway", values.duration(0, 600), 30.0)
    claims = table.get("claims", _CLAIMS_KIND, ())
    identity = table.get("identity", values.TEXT, "sub")
    table.done()
    keys: Keys | None = None
    if said:
        try:
            if "://" in said:  # who asks one address for all keeps one set fresh
                keys = table.shared.get(said) or table.shared.setdefault(said, KeyUrl(said))
            else:
                keys = KeyFile(table.path.parent / Path(said))
        except (ConfigError, ValueError) as error:
            table.wrong("keys", str(error), "a file with a JWK Set, or its https:// address")
    if keys is None or len(table.errors) > before:
        return None
    return JwtRule(issuer, audiences, keys, algorithms, leeway, claims, identity)
