"""Signatures in cosign's format: whose, of what, for which repository."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from lockgate.deploy import signature
from lockgate.deploy.errors import DeployError, Refused
from lockgate.deploy.signature import Signature

DIGEST = "sha256:" + "ab" * 32
REPOSITORY = "registry.example/lockgate"
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def write(folder: Path, key: PrivateKey, password: bytes | None = None) -> tuple[Path, Path]:
    """Write a key pair; gives the private and the public one."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / "a.key", folder / "a.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.mark.parametrize("kind", ["ecdsa", "ed25519"])
def test_what_is_signed_is_verified(tmp_path: Path, kind: str) -> None:
    key: PrivateKey = (
        ec.generate_private_key(ec.SECP256R1()) if kind == "ecdsa" else ed25519.Ed25519PrivateKey.generate()
    )
    private, public = write(tmp_path, key, b"a passphrase")
    made = signature.sign(signature.payload_for(REPOSITORY, DIGEST), private, b"a passphrase")
    loaded = signature.load_public_key(public)
    signature.verify(loaded, [made], REPOSITORY, DIGEST)
    junk = Signature(made.payload, b"junk")
    signature.verify(loaded, [junk, made], REPOSITORY, DIGEST)  # one is enough
    for repository, digest, text in (
        ("registry.example/other", DIGEST, "for repository 'registry.example/lockgate'"),
        (REPOSITORY, "sha256:" + "cd" * 32, f"for digest '{DIGEST}'"),
    ):
        with pytest.raises(Refused, match=text):
            signature.verify(loaded, [made], repository, digest)
    for other in (junk, Signature(made.payload + b" ", made.signature), Signature(made.payload, made.signature[:-1])):
        with pytest.raises(Refused, match="not by the key"):
            signature.verify(loaded, [other], REPOSITORY, DIGEST)
    with pytest.raises(Refused, match=r"is not signed: there is no sha256-abab.*\.sig"):
        signature.verify(loaded, [], REPOSITORY, DIGEST)


def test_a_signed_payload_of_another_kind_does_not_count(tmp_path: Path) -> None:
    private, public = write(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    loaded = signature.load_public_key(public)
    other = json.loads(signature.payload_for(REPOSITORY, DIGEST))
    other["critical"]["type"] = "an invoice"
    for payload, text in (
        (json.dumps(other).encode(), "'an invoice'"),
        (b"{}", "no sense"),
        (b"\xff", "no sense"),
        (b"[]", "no sense"),
    ):
        with pytest.raises(Refused, match=text):
            signature.verify(loaded, [signature.sign(payload, private)], REPOSITORY, DIGEST)


def test_the_payload_and_the_signature_are_as_cosign_makes_them() -> None:
    """Its payload's members, SHA-256 and DER for ECDSA, the tag, the layer."""
    assert json.loads(signature.payload_for(REPOSITORY, DIGEST)) == {
        "critical": {
            "identity": {"docker-reference": REPOSITORY},
            "image": {"docker-manifest-digest": DIGEST},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    assert signature.tag_of(DIGEST) == f"sha256-{'ab' * 32}.sig"
    key = ec.generate_private_key(ec.SECP256R1())
    payload = signature.payload_for(REPOSITORY, DIGEST)
    der = key.sign(payload, ec.ECDSA(hashes.SHA256()))
    layer = {
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
        "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(der).decode()},
    }
    found = signature.of_layer(layer, payload)
    assert found is not None
    signature.verify(key.public_key(), [found], REPOSITORY, DIGEST)
    for broken in ({}, "text", {**layer, "annotations": None}, {**layer, "mediaType": "x"},
                   {**layer, "annotations": {"dev.cosignproject.cosign/signature": "?"}}):  # fmt: skip
        assert signature.of_layer(broken, payload) is None


def test_keys_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    private, public = write(tmp_path, rsa.generate_private_key(65537, 2048))
    with pytest.raises(DeployError, match="a key of another kind .*P-256 or Ed25519"):
        signature.load_public_key(public)
    with pytest.raises(DeployError, match="a key of another kind"):
        signature.sign(b"x", private)
    write(tmp_path, ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(DeployError, match="a key of another kind"):
        signature.load_public_key(public)
    with pytest.raises(DeployError, match="is a private key; it does not belong on a gateway"):
        signature.load_public_key(private)
    public.write_text("-----BEGIN PUBLIC KEY-----\nnothing\n-----END PUBLIC KEY-----\n")
    with pytest.raises(DeployError, match=r"a\.pub is no public key"):
        signature.load_public_key(public)
    with pytest.raises(DeployError, match="No such file"):
        signature.load_public_key(tmp_path / "none")
    write(tmp_path, ed25519.Ed25519PrivateKey.generate(), b"secret")
    for password in (None, b"guessed"):
        with pytest.raises(DeployError, match="is no private key that can be used"):
            signature.sign(b"x", private, password)
    private.write_text("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n")
    with pytest.raises(DeployError, match="sign with `cosign sign --key`"):
        signature.sign(b"x", private)


def test_signatures_go_through_json() -> None:
    one = Signature(b"\0payload", b"\xffsignature")
    assert signature.from_json(one.as_json()) == one
    for broken in (None, {"payload": "?", "signature": ""}):
        with pytest.raises(ValueError, match=r"."):
            signature.from_json(broken)
