"""Certificates of the edge, chosen by the name a client asks for, and read again when their files change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from lockgate.config.errors import ConfigError
from lockgate.files import Stamp, stamp_if_there

log = logging.getLogger(__name__)

_LIKE: Final = "NAME.pem (certificate and chain) with NAME.key beside it"


class NamedTls(ssl.SSLObject):
    """A TLS connection that remembers which name it was asked for."""

    asked_name = ""


class NamedSocket(ssl.SSLSocket):
    """The same, for sockets."""

    asked_name = ""


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: ssl.SSLContext
    names: tuple[str, ...]


class Certificates:
    """The certificates of a folder, or of pairs of files; the first is for those who ask for no name that is here."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]], *, client_ca: Path | None, alpn: Sequence[str]) -> None:
        """`client_ca`: authorities of devices' certificates, which are then asked for. Raises ConfigError."""
        self._pairs = pairs
        self._client_ca = client_ca
        self._alpn = alpn
        self._seen = self._state()
        self._load()

    def refresh(self) -> bool:
        """Read the files again if they have changed; what cannot be used leaves what was there. Never raises."""
        seen = self._state()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self._load()
        except ConfigError as error:
            log.error("The certificates stay what they were: %s", error)
            return False
        log.info("The certificates were read again; connections that are open go on")
        return True

    def _load(self) -> None:
        loaded = [self._read(chain, key) for chain, key in self._pairs]
        self._by_name = {name: one.context for one in reversed(loaded) for name in one.names}
        self.context = loaded[0].context

    def _read(self, chain: Path, key: Path) -> _Loaded:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslobject_class = NamedTls
        context.sslsocket_class = NamedSocket
        if self._alpn:
            context.set_alpn_protocols(list(self._alpn))
        try:
            context.load_cert_chain(chain, key)
            certificate = x509.load_pem_x509_certificate(chain.read_bytes())
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot be used: {error}", path=chain, accepted=_LIKE) from None
        context.sni_callback = self._choose  # type: ignore[assignment]
        return _Loaded(context, _names(certificate))

    def _choose(self, tls: NamedTls | NamedSocket, name: str | None, _: ssl.SSLContext) -> None:
        tls.asked_name = (name or "").lower()
        tls.context = self.lookup(tls.asked_name)

    def lookup(self, name: str) -> ssl.SSLContext:
        """The context for a name."""
        found = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        return found or self.context

    def _state(self) -> list[Stamp | None]:
        files = [file for pair in self._pairs for file in pair]
        files += [self._client_ca] if self._client_ca is not None else []
        return [stamp_if_there(file) for file in files]


def pairs_of(folder: Path) -> list[tuple[Path, Path]]:
    """The certificates of a folder, in the order of their names; ConfigError where there is none."""
    chains = sorted(folder.glob("*.pem"))
    if not chains:
        raise ConfigError(f"no certificate is in {folder}", key="edge.certificates_dir", accepted=_LIKE)
    return [(chain, chain.with_suffix(".key")) for chain in chains]


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))
