"""The client's side of TLS without a socket: whom to trust, who we are, and the layer of one connection."""

from __future__ import annotations

import contextlib
import os
import ssl
from dataclasses import dataclass
from typing import Final, Literal

from lockgate.transport.layer import TransportError

_RECORD_BYTES: Final = 16_384
_VERSIONS: Final = {
    "tlsv1.1": ssl.TLSVersion.TLSv1_1,
    "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}

Path = str | os.PathLike[str]


class TlsSetupError(Exception):
    """Something of a ClientTls cannot be used. `what` is the name of its field, `path` the file if it is about one."""

    def __init__(self, what: str, problem: str, path: Path | None = None) -> None:
        super().__init__(problem)
        self.what = what
        self.path = path


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """Whom a client trusts and how it shows itself; trusts the system's authorities when no other is named."""

    cafile: Path | None = None  # authorities, in PEM
    capath: Path | None = None  # a folder of them, made by `openssl rehash`
    use_os_certs: bool = False  # the system's authorities beside those
    certfile: Path | None = None  # ours and its chain
    keyfile: Path | None = None
    password: str | None = None  # of the keyfile; None: nobody is asked, an encrypted one is refused
    insecure: bool = False  # any certificate of a trusted authority will do, whatever its host name
    minimum_version: Literal["tlsv1.1", "tlsv1.2", "tlsv1.3"] = "tlsv1.2"
    ciphers: str | None = None  # OpenSSL's list, for TLS 1.2
    alpn: tuple[str, ...] = ()
    keylog: Path | None = None  # secrets of the connections are appended, for Wireshark

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises TlsSetupError for what cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = not self.insecure
        context.minimum_version = _VERSIONS[self.minimum_version]
        self._trust(context)
        self._show(context)
        if self.ciphers is not None:
            try:
                context.set_ciphers(self.ciphers)
            except ssl.SSLError:
                raise TlsSetupError("ciphers", f"OpenSSL knows no cipher of {self.ciphers!r}") from None
        if self.alpn:
            context.set_alpn_protocols(list(self.alpn))
        if self.keylog is not None:
            try:
                context.keylog_filename = os.fspath(self.keylog)
            except OSError as error:
                raise TlsSetupError("keylog", f"cannot be written: {error.strerror}", self.keylog) from None
        return context

    def _trust(self, context: ssl.SSLContext) -> None:
        if self.cafile is not None:
            _readable("cafile", self.cafile)
            try:
                context.load_verify_locations(cafile=self.cafile)
            except ssl.SSLError:
                raise TlsSetupError("cafile", "no certificates in PEM", self.cafile) from None
        if self.capath is not None:
            if not os.path.isdir(self.capath):
                raise TlsSetupError("capath", "no folder", self.capath)
            context.load_verify_locations(capath=self.capath)
        if self.use_os_certs or (self.cafile is None and self.capath is None):
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)

    def _show(self, context: ssl.SSLContext) -> None:
        if self.certfile is None:
            return
        _readable("certfile", self.certfile)
        if self.keyfile is not None:
            _readable("keyfile", self.keyfile)
        encrypted = []

        def passphrase() -> str:  # without this OpenSSL would ask on the terminal and wait
            encrypted.append(True)
            return self.password or ""

        try:
            context.load_cert_chain(self.certfile, self.keyfile, passphrase)
        except ssl.SSLError as error:
            if encrypted:
                raise TlsSetupError(
                    "keyfile", "encrypted, and its password is not the right one", self.keyfile
                ) from None
            if error.reason == "KEY_VALUES_MISMATCH":
                raise TlsSetupError("keyfile", f"not the key of {os.fspath(self.certfile)}", self.keyfile) from None
            raise TlsSetupError("certfile", "no certificate and key in PEM", self.certfile) from None


class TlsLayer:
    """TLS of one connection to `host`, whose certificate must be for that name."""

    __slots__ = ("_held", "_incoming", "_object", "_outgoing", "ended", "is_open")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._held = b""
        self.is_open = False
        self.ended = False

    def receive(self, data: bytes) -> bytes:
        """Give what the records held; raises TransportError for a certificate we do not trust, or a broken record."""
        pieces: list[bytes] = []
        self._incoming.write(data)
        try:
            if not self.is_open:
                self._object.do_handshake()
                self.is_open = True
            while piece := self._object.read(_RECORD_BYTES):
                pieces.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            raise TransportError(_explain(error)) from None
        return b"".join(pieces)

    def send(self, data: bytes) -> bytes:
        """Give records: of the handshake, then of `data` once that is over."""
        if not self.is_open:
            self._held += data
            with contextlib.suppress(ssl.SSLError):  # it wants to read; what is wrong with it, `receive` tells
                self._object.do_handshake()
            return self._outgoing.read()
        if self._held:
            data, self._held = self._held + data, b""
        with contextlib.suppress(ssl.SSLError):  # broken or ended already, which `receive` told
            for at in range(0, len(data), _RECORD_BYTES):
                self._object.write(data[at : at + _RECORD_BYTES])
        return self._outgoing.read()

    def finish(self, data: bytes) -> bytes:
        """Give records for `data` and the alert close_notify; only an alert when the handshake failed."""
        if not self.is_open:
            return self._outgoing.read()
        records = self.send(data)
        with contextlib.suppress(ssl.SSLError):  # the peer has not said its own close_notify yet
            self._object.unwrap()
        return records + self._outgoing.read()


def _readable(what: str, path: Path) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TlsSetupError(what, f"cannot be read: {error.strerror}", path) from None


def _explain(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {error.verify_message}"
    if error.reason in ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"):
        return "the server does not speak TLS on this port"
    reason = (error.reason or str(error)).lower().replace("_", " ")
    return f"TLS failed: {reason}"
