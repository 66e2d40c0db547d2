"""Who may push: secrets from files, compared in a time that tells nothing of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from lockgate.config.errors import ConfigError
from lockgate.config.model import HttpClientConfig
from lockgate.config.secrets import first_line


class Clients:
    """Knows clients by `Authorization: Bearer SECRET`, or Basic with their name and secret."""

    def __init__(self, configs: Sequence[HttpClientConfig]) -> None:
        """Read the secrets. Raises ConfigError, which does not repeat them."""
        self._clients = [(config, _digest(first_line(config.secret_file))) for config in configs]
        known: dict[bytes, HttpClientConfig] = {}
        for config, digest in self._clients:
            if digest in known:
                problem = f"is the secret of {known[digest].name} too"
                raise ConfigError(problem, path=config.secret_file, accepted="a secret for each client")
            known[digest] = config

    def who(self, authorization: str) -> HttpClientConfig | None:
        """Give the client of a header, or None."""
        scheme, _, said = authorization.partition(" ")
        if scheme.lower() == "bearer":
            return self._find(_digest(said.strip().encode(errors="replace")), None)
        if scheme.lower() == "basic":
            try:
                name, _, secret = base64.b64decode(said.strip(), validate=True).partition(b":")
            except binascii.Error:
                return None
            return self._find(_digest(secret), name)
        return None

    def _find(self, digest: bytes, name: bytes | None) -> HttpClientConfig | None:
        found = None
        for config, known in self._clients:  # all of them: the time must not tell which one came near
            if hmac.compare_digest(digest, known) and name in (None, config.name.encode()):
                found = config
        return found


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
