"""Certificates of the edge, chosen by the name a client asks for, and read again when their files change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from lockgate.config.errors import ConfigError
from lockgate.config.model import EdgeConfig, GatewayConfig
from lockgate.files import Stamp, stamp_if_there
from lockgate.tunnel.tls_alpn import LookedAt, LookingContext, Proofs, looking

log = logging.getLogger(__name__)

_LIKE: Final = "NAME.pem (certificate and chain) with NAME.key beside it"

Pair = tuple[Path, Path]  # certificate with its chain, and private key; one file may hold both


class NamedTls(LookedAt):
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
    """The certificates of pairs of files; the first is for those who ask for no name that is here.

    Where there is none, every client is refused in the handshake, but for those to whom a name is proved.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[Pair]],
        *,
        client_ca: Path | None,
        alpn: Sequence[str],
        proofs: Proofs | None = None,
    ) -> None:
        """`find` gives the pairs that are there now, and may raise ConfigError.

        `client_ca`: authorities of devices' certificates, which are then asked for. `proofs`: the names that are proved
        at this port. Raises ConfigError.
        """
        self._find = find
        self._client_ca = client_ca
        self._alpn = alpn
        self._proofs = proofs if proofs is not None else Proofs()
        self._told = ""  # why they could not be read again, last
        self._loaded: dict[Pair, _Loaded] = {}
        pairs = find()
        self._seen = self._state(pairs)
        self._load(pairs)

    def refresh(self) -> bool:
        """Read the files again if they have changed; a pair that cannot be used stays what it was. Never raises."""
        try:
            pairs = self._find()
            seen = self._state(pairs)
            if seen == self._seen:
                return False
            self._seen = seen
            self._load(pairs)
        except ConfigError as error:
            if str(error) != self._told:
                log.error("Certificates stay what they were: %s", error)
            self._told = str(error)
            return False
        self._told = ""
        log.info("The certificates were read again; connections that are open go on")
        return True

    def _load(self, pairs: Sequence[Pair]) -> None:
        """Read them all; a pair that cannot be used is what it was before, and the first such is raised in the end."""
        problem = None
        loaded: dict[Pair, _Loaded] = {}
        for pair in pairs:
            try:
                loaded[pair] = self._read(*pair)
            except ConfigError as error:
                problem = problem or error
                if pair in self._loaded:
                    loaded[pair] = self._loaded[pair]
        contexts = [one.context for one in loaded.values()]
        self.context = contexts[0] if contexts else self._new_context()
        self._by_name = {name: one.context for one in reversed(loaded.values()) for name in one.names}
        self._loaded = loaded
        if problem is not None:
            raise problem

    def _new_context(self) -> LookingContext:
        """Without a certificate. A port's first context decides for good whether its clients are asked for one."""
        context = looking(self._proofs)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslobject_class = NamedTls
        context.sslsocket_class = NamedSocket
        context.sni_callback = self._choose  # type: ignore[assignment]
        if self._alpn:
            context.set_alpn_protocols(list(self._alpn))
        if self._client_ca is not None:
            load_authorities(context, self._client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _read(self, chain: Path, key: Path) -> _Loaded:
        context = self._new_context()
        try:
            context.load_cert_chain(chain, key)
            certificate = x509.load_pem_x509_certificate(chain.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot be used: {error}", path=chain, accepted=_LIKE) from None
        return _Loaded(context, _names(certificate))

    def _choose(self, tls: NamedTls | NamedSocket, name: str | None, _: ssl.SSLContext) -> None:
        tls.asked_name = (name or "").lower()
        client_hello = tls.take_client_hello() if isinstance(tls, NamedTls) else b""
        tls.context = self._proofs.context(tls.asked_name, client_hello) or self.lookup(tls.asked_name)

    def lookup(self, name: str) -> ssl.SSLContext:
        """The context for a name."""
        found = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        return found or self.context

    def _state(self, pairs: Sequence[Pair]) -> list[tuple[Path, Stamp | None]]:
        files = [file for pair in pairs for file in pair]
        files += [self._client_ca] if self._client_ca is not None else []
        return [(file, stamp_if_there(file)) for file in files]


def load_authorities(context: ssl.SSLContext, ca_file: Path) -> None:
    """Trust what the authorities of a file have signed. Raises ConfigError."""
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:
        raise ConfigError(f"cannot be used: {error}", path=ca_file, accepted="certificates in PEM") from None


def public_pairs(config: EdgeConfig, gateway: GatewayConfig) -> list[Pair]:
    """The certificates of the public side: those of the folder, in the order of their names, then those of ACME.

    Raises ConfigError where there is none and none will come.
    """
    folder = config.certificates_folder(gateway)
    chains = sorted(folder.glob("*.pem"))
    if not chains and config.acme is None:
        raise ConfigError(f"no certificate is in {folder}", key="edge.certificates_dir", accepted=_LIKE)
    pairs = [(chain, chain.with_suffix(".key")) for chain in chains]
    fetched = config.acme.files(gateway).values() if config.acme is not None else ()
    return [*pairs, *((file, file) for file in fetched if stamp_if_there(file) is not None)]


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))
