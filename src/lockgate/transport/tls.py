"""The server's side of TLS without a socket: contexts from the configuration, one layer for each connection."""

from __future__ import annotations

import contextlib
import logging
import ssl
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from lockgate.config.errors import ConfigError, MosquittoConfError
from lockgate.config.model import CertificateConfig, Place, TlsConfig
from lockgate.transport.layer import TransportError
from lockgate.transport.mistakes import TLS, likely_mistake

log = logging.getLogger(__name__)

_RECORD_BYTES: Final = 16_384  # of one TLS record; a larger piece would leave OpenSSL with larger buffers for ever
_VERSIONS: Final = {"tlsv1.2": ssl.TLSVersion.TLSv1_2, "tlsv1.3": ssl.TLSVersion.TLSv1_3}
_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for

Certificate = Mapping[str, Any]  # as `ssl.SSLObject.getpeercert` gives it


# --- contexts -----------------------------------------------------------------------------------------------------


class TlsServer:
    """The certificates of one listener, as their files were when it was made."""

    def __init__(self, config: TlsConfig, username_from: Literal["identity", "subject"] | None = None) -> None:
        """Read the files. Raises ConfigError, with option and line, for one that cannot be used."""
        self._name = {None: None, "identity": common_name, "subject": subject}[username_from]
        self.context = _context(config)

    def layer(self) -> Tls:
        """Give a layer for one connection."""
        return Tls(self.context, self._name)


def _context(config: TlsConfig) -> ssl.SSLContext:
    context = _with_certificate(config, config.certfile, config.keyfile, config.places)
    by_name: dict[str, ssl.SSLContext] = {}
    for one in config.certificates:
        places = {} if one.place is None else {"certfile": one.place, "keyfile": one.place}
        other = _with_certificate(config, one.certfile, one.keyfile, places, one)
        by_name |= {name.lower(): other for name in one.hosts}
    if by_name:

        def choose(asking: ssl.SSLObject, name: str | None, _default: ssl.SSLContext) -> None:
            chosen = _for_name(by_name, name)
            if chosen is not None:
                asking.context = chosen

        context.sni_callback = choose
        _silence_unreadable_names()
    return context


def _silence_unreadable_names() -> None:
    """Keep the ssl module from printing a traceback for a peer's host name that is not ASCII: its handshake fails."""
    told = sys.unraisablehook
    if getattr(told, "silences_names", False):
        return

    def tell(unraisable: sys.UnraisableHookArgs) -> None:
        # The callback for a name is handed its bytes as the object; nothing else has bytes there.
        if not (isinstance(unraisable.exc_value, UnicodeDecodeError) and isinstance(unraisable.object, bytes)):
            told(unraisable)

    tell.silences_names = True  # type: ignore[attr-defined]
    sys.unraisablehook = tell


def _for_name(by_name: Mapping[str, ssl.SSLContext], name: str | None) -> ssl.SSLContext | None:
    """Give the context for a name as it is, else for its first label replaced by a star."""
    if name is None:
        return None
    name = name.lower()
    return by_name.get(name) or by_name.get(f"*.{name.partition('.')[2]}")


def _with_certificate(
    config: TlsConfig,
    certfile: Path,
    keyfile: Path,
    places: Mapping[str, Place],
    entry: CertificateConfig | None = None,
) -> ssl.SSLContext:
    def wrong(option: str, problem: str, accepted: str | None = None) -> ConfigError:
        place = places.get(option) or config.places.get(option)
        path, line = place if place is not None else (None, None)
        if entry is not None and option in ("certfile", "keyfile"):
            key = f"certificates.{entry.name}.{option}"
            return ConfigError(problem, path=path, line=line, key=key, accepted=accepted)
        return MosquittoConfError(f"{option}: {problem}", path=path, line=line, key=option, accepted=accepted)

    def readable(option: str, path: Path) -> Path:
        try:
            path.open("rb").close()
        except OSError as error:
            raise wrong(option, f"{path} cannot be read: {error.strerror}.") from None
        return path

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[config.tls_version]
    if config.keylog is not None:
        context.keylog_filename = str(config.keylog)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    encrypted = []

    def passphrase() -> bytes:  # without this OpenSSL would ask on the terminal and wait
        encrypted.append(True)
        return b""

    try:
        context.load_cert_chain(readable("certfile", certfile), readable("keyfile", keyfile), passphrase)
    except ssl.SSLError as error:
        if encrypted:
            problem = f"{keyfile} is encrypted, and nobody is there to type its passphrase."
            raise wrong("keyfile", problem, "a key without one (openssl pkey -in OLD -out NEW)") from None
        if error.reason == "KEY_VALUES_MISMATCH":
            raise wrong("keyfile", f"{keyfile} is not the key of {certfile}.") from None
        problem = f"cannot be used: {_reason(error)}."
        if _holds_certificates(certfile) and error.reason not in _ABOUT_THE_CERTIFICATE:
            raise wrong("keyfile", f"{keyfile} {problem}", "a private key in PEM") from None
        raise wrong("certfile", f"{certfile} {problem}", "a certificate and its chain in PEM") from None
    if config.ciphers is not None:
        try:
            context.set_ciphers(config.ciphers)
        except ssl.SSLError:
            problem = f"OpenSSL knows no cipher of {config.ciphers!r}."
            raise wrong("ciphers", problem, "a list as for `openssl ciphers`, for TLS 1.2") from None
    if config.require_certificate:
        _verify_clients(context, config, readable, wrong)
    return context


def _verify_clients(context: ssl.SSLContext, config: TlsConfig, readable: Any, wrong: Any) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    for option, path in (("cafile", config.cafile), ("crlfile", config.crlfile)):
        if path is None:
            continue
        try:
            context.load_verify_locations(readable(option, path))
        except ssl.SSLError as error:
            what = "certificates" if option == "cafile" else "a certificate revocation list"
            raise wrong(option, f"{path} cannot be used: {_reason(error)}.", f"{what} in PEM") from None
    if config.capath is not None:
        if not config.capath.is_dir():
            raise wrong("capath", f"{config.capath} is no folder.", "a folder made by `openssl rehash`")
        context.load_verify_locations(capath=config.capath)
    if config.crlfile is not None:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    if config.disable_client_cert_date_checks:
        context.verify_flags |= _NO_CHECK_TIME


# OpenSSL has read the certificate and does not like it (too short a key, too weak a signature).
_ABOUT_THE_CERTIFICATE: Final = frozenset({"EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"})


def _holds_certificates(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True


# --- one connection -----------------------------------------------------------------------------------------------


class Tls:
    """The TLS of one connection; the handshake is over when it `is_open`."""

    __slots__ = (
        "_begun",
        "_failed",
        "_finished",
        "_incoming",
        "_name",
        "_object",
        "_outgoing",
        "ended",
        "identity",
        "is_open",
    )

    opening = "TLS handshake"
    memory_bytes = 32_768  # OpenSSL's: measured as 20 KiB, and within the handshake as 50
    awaits_goodbye = False

    def __init__(self, context: ssl.SSLContext, name: Callable[[Certificate], str | None] | None = None) -> None:
        """`name` gives the identity of a client from its certificate."""
        self._name = name
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._begun = False
        self._failed = False
        self._finished = False
        self.is_open = False
        self.identity: str | None = None
        self.ended = False

    @property
    def has_output(self) -> bool:
        """Whether records of the handshake or an alert wait to be sent."""
        return self._outgoing.pending > 0

    def receive(self, data: bytes) -> bytes:
        """Give what the records held; raises TransportError for a failed handshake or a broken record."""
        if self._failed or self.ended:
            return b""
        if not self._begun:
            self._begun = True
            mistake = likely_mistake(data, TLS) if data[:1] != b"\x16" else None
            if mistake is not None:
                self._failed = True
                raise TransportError(f"heard {mistake}")
        pieces: list[bytes] = []
        try:
            for at in range(0, len(data), _RECORD_BYTES):
                self._incoming.write(data[at : at + _RECORD_BYTES] if len(data) > _RECORD_BYTES else data)
                self._read(pieces)
        except ssl.SSLError as error:
            self._failed = True
            raise TransportError(_explain(error, self.is_open)) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, pieces: list[bytes]) -> None:
        tls = self._object
        try:
            if not self.is_open:
                tls.do_handshake()
                self.is_open = True
                if self._name is not None:
                    self.identity = self._identify(self._name)
            while piece := tls.read(_RECORD_BYTES):
                pieces.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # both sides have said close_notify
            self.ended = True

    def _identify(self, name: Callable[[Certificate], str | None]) -> str | None:
        try:
            certificate = self._object.getpeercert()
        except ValueError:
            raise TransportError("TLS handshake failed: the client's certificate holds text that is no text") from None
        return name(certificate) if certificate else None

    def send(self, data: bytes) -> bytes:
        """Give the records for `data`, behind those of the handshake."""
        if not data or not self.is_open or self._failed or self._finished:
            return self._outgoing.read()
        records: list[bytes] = []
        try:
            for at in range(0, len(data), _RECORD_BYTES):
                self._object.write(data[at : at + _RECORD_BYTES])
                records.append(self._outgoing.read())
        except ssl.SSLError as error:
            log.debug("TLS write failed: %s", error.reason)
            self._failed = True
        return b"".join(records)

    def finish(self, data: bytes) -> bytes:
        """Give the records for `data` and the alert close_notify, or the alert that says why the handshake failed."""
        records = self.send(data)
        if self.is_open and not self._failed and not self._finished:
            self._finished = True  # what the peer still sends is read: the layer above may wait for it
            with contextlib.suppress(ssl.SSLError):  # the peer has not said its own close_notify yet
                self._object.unwrap()
        return records + self._outgoing.read()


_ADVICE: Final = {
    "NO_SHARED_CIPHER": "the client offers no cipher that is allowed here (ciphers)",
    "UNSUPPORTED_PROTOCOL": "the client speaks only TLS versions below tls_version",
    "WRONG_VERSION_NUMBER": "the client does not speak TLS, but this listener does",
    "HTTP_REQUEST": "plain HTTP, but this listener speaks TLS; connect with https:// or wss://",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client shows no certificate (require_certificate)",
    "TLSV1_ALERT_UNKNOWN_CA": "the client does not trust the issuer of our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the client refuses our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the client refuses our certificate; is it made for the name it connects to?",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the client says that our certificate has expired",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the client accepts none of our TLS versions",
}


def _explain(error: ssl.SSLError, established: bool) -> str:
    told = _ADVICE.get(error.reason or "")
    if isinstance(error, ssl.SSLCertVerificationError):
        told = f"the client's certificate is not accepted: {error.verify_message}"
    return f"{'TLS' if established else 'TLS handshake'} failed: {told or _reason(error)}"


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's reason in words."""
    if error.reason:
        return error.reason.lower().replace("_", " ")
    return "it is not in PEM" if "PEM" in str(error) or error.args[:1] == (136,) else str(error)


# --- who the client is --------------------------------------------------------------------------------------------

# Long names, as the ssl module gives them, to those of RFC 2253 and OpenSSL.
_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "domainComponent": "DC",
    "userId": "UID",
    "surname": "SN",
    "givenName": "GN",
}


def common_name(certificate: Certificate) -> str | None:
    """Give the first CN of the subject, if it has one."""
    for entry in certificate.get("subject", ()):
        for name, value in entry:
            if name == "commonName":
                return str(value)
    return None


def subject(certificate: Certificate) -> str:
    """Give the subject as RFC 2253 writes it: last entry first, with escapes; the same text as OpenSSL's."""
    parts = []
    for entry in certificate.get("subject", ())[::-1]:
        parts.append("+".join(f"{_SHORT.get(name, name)}={_escaped(value)}" for name, value in entry[::-1]))
    return ",".join(parts)


def _escaped(value: str) -> str:
    """Escape as OpenSSL's RFC2253 does: what is special, and every byte that is not printable ASCII, in hexadecimal."""
    escaped = ""
    for at, letter in enumerate(value):
        edge = (letter == " " and at in (0, len(value) - 1)) or (letter == "#" and at == 0)
        if letter in ',+"\\<>;' or edge:
            escaped += f"\\{letter}"
        elif " " <= letter <= "~":
            escaped += letter
        else:
            escaped += "".join(f"\\{byte:02X}" for byte in letter.encode())
    return escaped
