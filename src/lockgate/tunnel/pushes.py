"""The ingress rules a connector has in force, and what an edge may make of them."""

from __future__ import annotations

import json
import logging
from typing import Final

from lockgate.config.errors import ConfigError
from lockgate.tunnel.ingress import NOTHING, Ingress
from lockgate.tunnel.ingress_files import from_json
from lockgate.tunnel.services import AllowList

log = logging.getLogger(__name__)

_PUSH_BYTES: Final = 1 << 20


class Configurations:
    """Only a greater version counts, and one that cannot be used changes nothing.

    Where the owner has an allow-list, a push that leads anywhere else is refused as a whole.
    """

    def __init__(self, ingress: Ingress = NOTHING, allow: AllowList = AllowList()) -> None:  # noqa: B008
        self.ingress = ingress
        self.version = -1
        self._allow = allow

    def push(self, body: bytes) -> bytes:
        """Take what an edge sent and give the answer to it."""
        problem: str | None = None
        try:
            version, said = _pushed(body)
            if version > self.version:
                ingress = from_json(said)
                self._check_allowed(ingress)
                self.ingress = ingress
                self.version = version
                log.info("version %d of the configuration is in force, with %d rules", version, len(ingress.rules))
        except ConfigError as error:
            problem = str(error)
            log.warning("the edge pushed a configuration that cannot be used, the old one stays: %s", problem)
        return json.dumps({"lastAppliedVersion": self.version, "err": problem}).encode()

    def _check_allowed(self, ingress: Ingress) -> None:
        if not self._allow:
            return
        for rule in ingress.rules:
            if not self._allow.permits_service(rule.service):
                raise ConfigError(
                    f"{rule.service.text!r} is not on this connector's allow-list",
                    key=f"ingress rule {rule.number}: service",
                    accepted="what connector.allow of its lockgate.toml names",
                )


def _pushed(body: bytes) -> tuple[int, object]:
    if len(body) > _PUSH_BYTES:
        raise ConfigError(f"has {len(body)} bytes", key="push", accepted=f"at most {_PUSH_BYTES} bytes")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is no JSON: {error}", key="push", accepted='{"version":N,"config":{…}}') from None
    version = said.get("version") if isinstance(said, dict) else None
    if isinstance(version, bool) or not isinstance(version, int) or not -(2**31) <= version < 2**31:
        raise ConfigError(f"{version!r} is no version", key="push: version", accepted="a whole number of 32 bits")
    return version, said.get("config")
