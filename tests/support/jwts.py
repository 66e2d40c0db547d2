"""Keys and JWTs for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

NOW = 1_800_000_000.0
ISSUER = "https://login.example"
AUDIENCE = "gateway"


class Issuer:
    """Somebody who signs tokens with one key (ES256)."""

    def __init__(self, kid: str = "one") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.kid = kid

    def jwk(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return said | {"kid": self.kid, "use": "sig", "alg": "ES256"}

    def write(self, path: Path, *others: dict[str, Any]) -> Path:
        path.write_text(json.dumps({"keys": [self.jwk(), *others]}))
        return path

    def token(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that is good at NOW, but for what `claims` say; None leaves a claim out."""
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna", "exp": NOW + 60} | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, self.key, algorithm="ES256", headers={"kid": self.kid} | (headers or {}))
