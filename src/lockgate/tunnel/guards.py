"""What ingress rules with `access` ask of a request before its origin is asked."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lockgate.tunnel import policy
from lockgate.tunnel.http2 import Headers
from lockgate.tunnel.ingress import Access, Ingress, Rule
from lockgate.tunnel.jwks import Keeping, urls
from lockgate.tunnel.policy import ASSERTION_HEADER, Policy, Request


class Guards:
    """The policies of the rules in force; the keys they need are kept fresh."""

    def __init__(self) -> None:
        self._policies: dict[Access, Policy | None] = {}
        self._keys = Keeping()

    def follow(self, ingress: Ingress) -> None:
        """Guard these rules from now on; keys that are known stay known."""
        wanted = {rule.request.access for rule in ingress.rules if rule.request.access is not None}
        self._policies = {one: self._policies.get(one) or policy.of_access(one) for one in wanted}
        self._keys.want(urls(policy.sources(list(self._policies.values()))))

    def problem(self, rule: Rule, target: str, fields: Headers) -> str:
        """Why a request may not pass, empty if it may. Without keys, nobody passes."""
        access = rule.request.access
        if access is None or not access.required:
            return ""
        guard = self._policies.get(access)
        if guard is None:
            return "its rule is not guarded yet"
        said = _only(fields, ASSERTION_HEADER)
        if said is None:
            return f"policy {guard.name}: one JWT is wanted"
        decision = guard.decide(Request(target, "", {ASSERTION_HEADER: said}), time.time())
        return "" if decision.allowed else decision.reason

    def close(self) -> None:
        """Keep no more keys."""
        self._keys.close()


def _only(fields: Sequence[tuple[bytes, bytes]], name: str) -> str | None:
    """A header's value where there is just one: the origin might look at another one than we do."""
    said = [value for key, value in fields if key.lower() == name.encode()]
    return said[0].decode("latin-1") if len(said) == 1 else None
