"""An authority of one's own and what it signs, made by openssl, which every image and nearly every machine has."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from lockgate.config.errors import ConfigError

# The names that cloudflared asks an edge for, whatever its address: over HTTP/2, over QUIC, and when it tries the way
CLOUDFLARED_NAMES: Final = ("h2.cftunnel.com", "quic.cftunnel.com", "probe.cftunnel.com")
_DAYS: Final = {"authority": 3650, "server": 825}
_HOST: Final = re.compile(
    r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?"
)


class Pair(NamedTuple):
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates for servers. To be had from `authority`."""

    def __init__(self, folder: Path, own: Pair) -> None:
        self.own = own
        self._folder = folder
        (folder / "ca.crt").write_bytes(own.certificate)
        (folder / "ca.key").write_bytes(own.key)

    def issue(self, names: Sequence[str]) -> Pair:
        """Give a server's certificate for host names and addresses, called by the first. Raises ConfigError."""
        names = list(dict.fromkeys(names))
        alternatives = ", ".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in names)
        config = _OPENSSL_CNF.format(host=names[0][:40], alternatives=alternatives)
        (self._folder / "openssl.cnf").write_text(config)
        _openssl(self._folder, "req", "-new", "-config", "openssl.cnf", "-section", "server", *_KEY,
                 "-keyout", "server.key", "-out", "server.csr")  # fmt: skip
        _openssl(self._folder, "x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", *_number(),
                 "-days", str(_DAYS["server"]), "-extfile", "openssl.cnf", "-extensions", "for_server",
                 "-out", "server.crt")  # fmt: skip
        return Pair((self._folder / "server.crt").read_bytes(), (self._folder / "server.key").read_bytes())


@contextlib.contextmanager
def authority(host: str, own: Pair | None = None) -> Iterator[Authority]:
    """Give an authority: the one whose certificate and key these are, else a new one, called by a host name.

    Raises ConfigError where there is no openssl, or it cannot do it.
    """
    if shutil.which("openssl") is None:
        raise ConfigError("openssl is needed to make certificates and is not installed", accepted="apt install openssl")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if own is None:
            (folder / "openssl.cnf").write_text(_OPENSSL_CNF.format(host=host[:40], alternatives="DNS:none.invalid"))
            _openssl(folder, "req", "-x509", "-config", "openssl.cnf", "-section", "authority", *_KEY, *_number(),
                     "-keyout", "ca.key", "-days", str(_DAYS["authority"]), "-out", "ca.crt")  # fmt: skip
            own = Pair((folder / "ca.crt").read_bytes(), (folder / "ca.key").read_bytes())
        yield Authority(folder, own)


def check_host(host: str) -> None:
    """Raise ConfigError unless a certificate can be made for this name or address."""
    if not is_address(host) and not (_HOST.fullmatch(host) and len(host) <= 253):
        raise ConfigError(f"{host!r} is no host name and no address", accepted="as gateway.example or 192.0.2.7")


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_OPENSSL_CNF: Final = """\
[authority]
prompt = no
distinguished_name = authority_name
x509_extensions = for_authority
[authority_name]
CN = Lockgate CA of {host}
[for_authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
prompt = no
distinguished_name = server_name
[server_name]
CN = {host}
[for_server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {alternatives}
"""


def _number() -> tuple[str, str]:
    return "-set_serial", str(secrets.randbits(127))


def _openssl(folder: Path, *words: str) -> None:
    done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"openssl {words[0]} failed: {done.stderr.strip()}")
