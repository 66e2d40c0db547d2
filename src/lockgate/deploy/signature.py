"""Signatures as cosign makes them with a key pair: of a payload that names the repository and the manifest's digest."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from lockgate.deploy.errors import DeployError, Refused

MEDIA_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"
_TYPE = "cosign container image signature"
_KEYS = "ECDSA P-256 or Ed25519, in PEM"

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Signature:
    """What was signed, and the signature of it."""

    payload: bytes
    signature: bytes

    def as_json(self) -> dict[str, str]:
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "signature": base64.b64encode(self.signature).decode(),
        }


def from_json(said: object) -> Signature:
    """Read what `as_json` gave. Raises ValueError."""
    if not isinstance(said, dict):
        raise ValueError("a signature is an object")
    return Signature(*(base64.b64decode(str(said.get(name, "")), validate=True) for name in ("payload", "signature")))


def tag_of(digest: str) -> str:
    """Give the tag under which the signatures of a digest lie, beside the image."""
    return digest.replace(":", "-") + ".sig"


def payload_for(repository: str, digest: str) -> bytes:
    """Give what is signed."""
    critical = {
        "identity": {"docker-reference": repository},
        "image": {"docker-manifest-digest": digest},
        "type": _TYPE,
    }
    return json.dumps({"critical": critical, "optional": None}, separators=(",", ":")).encode()


def load_public_key(path: Path) -> PublicKey:
    """Read the key that an image has to be signed with. Raises DeployError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DeployError(f"deploy.public_key: {path}: {error.strerror}") from None
    if b"PRIVATE KEY" in data:
        raise DeployError(f"deploy.public_key: {path} is a private key; it does not belong on a gateway")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise DeployError(f"deploy.public_key: {path} is no public key (accepted: {_KEYS})") from None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise DeployError(f"deploy.public_key: {path} is a key of another kind (accepted: {_KEYS})")


def sign(payload: bytes, path: Path, password: bytes | None = None) -> Signature:
    """Sign with the private key in a file (PKCS 8, PEM). Raises DeployError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DeployError(f"{path}: {error.strerror}") from None
    if b"ENCRYPTED COSIGN" in data or b"ENCRYPTED SIGSTORE" in data:
        raise DeployError(f"{path} is in cosign's own encryption: sign with `cosign sign --key`")
    try:
        key = serialization.load_pem_private_key(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DeployError(f"{path} is no private key that can be used ({error}); accepted: {_KEYS}") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return Signature(payload, key.sign(payload))
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return Signature(payload, key.sign(payload, ec.ECDSA(hashes.SHA256())))
    raise DeployError(f"{path} is a key of another kind (accepted: {_KEYS})")


def verify(key: PublicKey, signatures: Sequence[Signature], repository: str, digest: str) -> None:
    """Raise Refused unless one of these signatures is by this key, for this digest in this repository."""
    if not signatures:
        raise Refused(f"{repository}@{digest} is not signed: there is no {tag_of(digest)} beside it")
    reasons = [_trouble(key, one, repository, digest) for one in signatures]
    if all(reasons):
        raise Refused(f"{repository}@{digest} is not signed as it has to be: {'; '.join(dict.fromkeys(reasons))}")


def _trouble(key: PublicKey, one: Signature, repository: str, digest: str) -> str:
    """Why a signature does not count; empty when it does."""
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(one.signature, one.payload)
        else:
            key.verify(one.signature, one.payload, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return "the signature is not by the key in deploy.public_key"
    try:
        critical = json.loads(one.payload)["critical"]
        found = critical["type"], critical["identity"]["docker-reference"], critical["image"]["docker-manifest-digest"]
    except (ValueError, LookupError, TypeError):
        return "what is signed makes no sense"
    for wanted, said, what in zip((_TYPE, repository, digest), found, ("a", "repository", "digest"), strict=True):
        if said != wanted:
            return f"it is a signature for {what} {str(said)[:200]!r}"
    return ""


def of_layer(layer: object, payload: bytes) -> Signature | None:
    """Give the signature in a layer of cosign's manifest; None where the layer is something else."""
    if not isinstance(layer, dict) or layer.get("mediaType") != MEDIA_TYPE:
        return None
    try:
        return Signature(payload, base64.b64decode(layer["annotations"][ANNOTATION], validate=True))
    except (KeyError, TypeError, binascii.Error):
        return None
