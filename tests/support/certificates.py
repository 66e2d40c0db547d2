"""Certificates for tests: an authority, what it signed, and what it took back."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization


class Authority:
    """A certificate authority whose files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ca = trustme.CA()
        self.cafile = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.cafile)

    def issue(self, name: str, *hosts: str, common_name: str | None = None, expired: bool = False) -> tuple[Path, Path]:
        """Write NAME.pem and NAME.key, for `hosts` or as a client's."""
        over = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC) if expired else None
        made = self._ca.issue_cert(*(hosts or (f"{name}@example.org",)), common_name=common_name, not_after=over)
        certfile, keyfile = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certfile.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(keyfile)
        return certfile, keyfile

    def revoke(self, *certfiles: Path) -> Path:
        """Write crl.pem, which revokes these certificates."""
        now = datetime.datetime.now(datetime.UTC)
        key = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        issuer = x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer)
        builder = builder.last_update(now - datetime.timedelta(days=1)).next_update(now + datetime.timedelta(days=1))
        for certfile in certfiles:
            serial = x509.load_pem_x509_certificate(certfile.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        crl = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
        path = self.folder / "crl.pem"
        path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        return path
