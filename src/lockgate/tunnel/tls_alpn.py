"""The server's side of tls-alpn-01 (RFC 8737): the proof that this edge has a name is shown at its own HTTPS port.

Python's callback for the name a client asks for is not told what else the client offers, so the ClientHello is looked
at as it arrives. Only a validating server offers `acme-tls/1` and nothing else; everybody else goes on as ever.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
from collections.abc import Iterator
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_PROTOCOL: Final = "acme-tls/1"
# The whole extension application_layer_protocol_negotiation (RFC 7301 §3.1) of who offers that protocol alone: its
# type 16, the lengths of its content, of the list and of the name
_OFFER: Final = b"\x00\x10\x00\x0d\x00\x0b\x0a" + _PROTOCOL.encode()
_ACME_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_OCTET_STRING: Final = b"\x04\x20"  # of 32 bytes, in DER
_DAY: Final = datetime.timedelta(days=1)


class Proofs:
    """The names that are being proved now. A thread may show a proof while another serves."""

    def __init__(self) -> None:
        self._contexts: dict[str, ssl.SSLContext] = {}

    @property
    def is_empty(self) -> bool:
        return not self._contexts

    @contextlib.contextmanager
    def showing(self, name: str, digest: bytes) -> Iterator[None]:
        """Show the SHA-256 of a key authorization to who validates `name`, until the block is left."""
        self._contexts[name] = _proof(name, digest)
        try:
            yield
        finally:
            del self._contexts[name]

    def context(self, name: str, client_hello: bytes) -> ssl.SSLContext | None:
        """The context for a client that validates `name`, None for everybody else."""
        return self._contexts.get(name) if _OFFER in client_hello else None


class LookedAt(ssl.SSLObject):
    """A TLS connection that keeps its ClientHello, if names are proved when it begins."""

    incoming: ssl.MemoryBIO | None = None  # what has arrived and is not read yet; none: nobody looks at it
    client_hello = b""

    def do_handshake(self) -> None:
        if self.incoming is not None and self.incoming.pending:
            arrived = self.incoming.read()
            self.incoming.write(arrived)
            self.client_hello += arrived
        super().do_handshake()

    def take_client_hello(self) -> bytes:
        """Give what was kept of it, once, and keep nothing more."""
        taken, self.client_hello, self.incoming = self.client_hello, b"", None
        return taken


class LookingContext(ssl.SSLContext):
    """Lets connections, which have to be `LookedAt`, see what arrives for them. Made by `looking`."""

    proofs: Proofs

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        tls = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        if not self.proofs.is_empty:
            cast("LookedAt", tls).incoming = incoming
        return tls


def looking(proofs: Proofs) -> LookingContext:
    """A server's context, without a certificate so far."""
    context = LookingContext(ssl.PROTOCOL_TLS_SERVER)
    context.proofs = proofs
    return context


def _proof(name: str, digest: bytes) -> ssl.SSLContext:
    """The self-signed certificate of RFC 8737 §3 in a context that speaks its protocol alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .add_extension(x509.UnrecognizedExtension(_ACME_IDENTIFIER, _OCTET_STRING + digest), critical=True)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([_PROTOCOL])
    with open(os.memfd_create("proof"), "wb") as file:  # ssl wants a path, and no disk has to have it
        file.write(certificate.public_bytes(serialization.Encoding.PEM) + private_key_pem(key))
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key in PKCS #8, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
