"""Will clients accept the listeners' certificates, and the listeners theirs?"""

from __future__ import annotations

import os
import ssl
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from lockgate.config.errors import ConfigError
from lockgate.config.model import ListenerConfig, TlsConfig, is_local
from lockgate.doctor.case import Case, port_name
from lockgate.doctor.finding import Finding, good
from lockgate.doctor.x509 import Certificate, read

_DAY = 86_400
_SOON_DAYS = 30
_ENDINGS = (".pem", ".crt", ".cer")
_UNKNOWN = "clients do not find who issued it, and refuse to connect"
_WILDCARDS = ("0.0.0.0", "::")


def of_listeners(case: Case) -> Iterator[Finding]:
    """Look at the certificate, key and authorities of each listener."""
    for listener in case.listeners():
        if listener.tls is None:
            continue
        yield from _pair(case, listener, listener.tls)
        hosts = _hosts(case, listener)
        yield from chain(case, listener.tls.certfile, _place(case, listener.tls, "certfile"), hosts)
        for one in listener.tls.certificates:
            where = f"{one.place.path}:{one.place.line}" if one.place is not None else os.fspath(case.path)
            yield from chain(case, one.certfile, where, [name for name in one.hosts if "*" not in name])
        if listener.tls.require_certificate and listener.tls.cafile is not None:
            yield from clients(case, listener.tls)


def _place(case: Case, tls: TlsConfig, option: str) -> str:
    place = tls.places.get(option)
    return f"{place.path}:{place.line}" if place is not None else case.place(option)


def _hosts(case: Case, listener: ListenerConfig) -> list[str]:
    address = listener.address
    own = [address] if address is not None and address not in _WILDCARDS and not is_local(address) else []
    return [*case.hosts, *own]


def _pair(case: Case, listener: ListenerConfig, tls: TlsConfig) -> Iterator[Finding]:
    """Try to use the files as the broker does; of a chain in the wrong order say so."""
    from lockgate.transport.tls import TlsServer

    try:
        TlsServer(tls)
    except ConfigError as error:
        where = f"{error.path}:{error.line}" if error.line is not None else case.place_of(listener)
        number = _owner_of_key(case.locate(tls.certfile), case.locate(tls.keyfile))
        if number:
            yield Finding(
                "certificate-order", "error", where,
                f"{tls.certfile} is in the wrong order: the certificate of {tls.keyfile} is number {number + 1} in it",
                f"the broker cannot open {port_name(listener)}",
                "the server's own certificate first, then who issued it, and so on: cat server.pem ca.pem > chain.pem",
            )  # fmt: skip
            return
        yield Finding(
            "certificate", "error", where, error.problem.rstrip("."), f"the broker cannot open {port_name(listener)}",
            error.accepted or "a pair that was made together: `openssl x509 -pubkey -noout -in CERTFILE` and `openssl "
            "pkey -pubout -in KEYFILE` print the same",
        )  # fmt: skip


def _owner_of_key(certfile: Path, keyfile: Path) -> int:
    """Give which certificate of a file a key belongs to, from 0; 0 also where it is none of them."""
    for number, one in enumerate(_certificates(certfile)):
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as alone:
            alone.write(ssl.DER_cert_to_PEM_cert(one.der))
            alone.flush()
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(alone.name, keyfile, lambda: b"")
            except (ssl.SSLError, OSError):
                continue
            return number
    return 0


def chain(case: Case, certfile: Path, where: str, hosts: Sequence[str]) -> Iterator[Finding]:
    """Look at what a listener shows: order, missing issuers, names and times."""
    path = case.locate(certfile)
    shown = _certificates(path)
    if not shown:
        return
    found = [*order(path, shown, where), *names(path, shown[0], where, hosts)]
    found += [told for one in shown for told in times(path, one, where, case.now)]
    yield from found
    if not found:
        left = (min(one.ends_at for one in shown) - case.now) / _DAY
        yield good("certificate", where, f"{path} is for {', '.join(shown[0].hosts)} and lasts {left:.0f} days")


def order(path: Path, shown: Sequence[Certificate], where: str) -> Iterator[Finding]:
    """Say if a certificate is not followed by its issuer, or if the last one's issuer is not a root."""
    for number, (one, following) in enumerate(pairwise(shown), start=1):
        if not following.issued(one):
            yield Finding(
                "certificate-order", "error", where,
                f"{path}: certificate {number} ({one.common_name}) was issued by {one.issuer_name}, but "
                f"{following.common_name} follows",
                _UNKNOWN, "each certificate is followed by the one that issued it; others do not belong there",
            )  # fmt: skip
            return
    last = shown[-1]
    if last.is_self_signed:
        return
    beside = sorted(one for one in path.parent.iterdir() if one.suffix in _ENDINGS and one != path)
    for file in beside:
        issuers = [one for one in _certificates(file) if one.issued(last) and not one.is_self_signed]
        if issuers:
            advice = f"name {file} as certfile" if path.name == "cert.pem" and file.name == "fullchain.pem" else ""
            yield Finding(
                "certificate-chain", "error", where,
                f"{path} ends with {last.common_name}; its issuer {last.issuer_name} is an intermediate, which is in "
                f"{file} and not shown to clients",
                _UNKNOWN, advice or f"cat {path} {file} > chain.pem, and name that as certfile",
            )  # fmt: skip
            return
    if last.fetches_issuer and not _known_root(last):
        yield Finding(
            "certificate-chain", "error", where,
            f"{path} ends with {last.common_name}, and its issuer {last.issuer_name} is no root that systems know",
            _UNKNOWN, "the whole chain as certfile (Let's Encrypt: fullchain.pem, not cert.pem)",
        )  # fmt: skip


def _known_root(one: Certificate) -> bool:
    context = ssl.create_default_context()
    roots = (read(ssl.DER_cert_to_PEM_cert(der))[0] for der in context.get_ca_certs(binary_form=True))
    return any(root.issued(one) for root in roots)


def names(path: Path, one: Certificate, where: str, hosts: Sequence[str]) -> Iterator[Finding]:
    """Say which hosts a certificate is not for."""
    if not one.hosts:
        yield Finding(
            "certificate-name", "error", where,
            f"{path} names no host (it has no subjectAltName, only CN={one.common_name})",
            "today's clients do not look at the CN, and refuse it",
            f"a new one, made with -addext subjectAltName=DNS:{one.common_name}",
        )  # fmt: skip
        return
    wrong = [host for host in hosts if not one.covers(host)]
    if wrong:
        kind = "IP" if wrong[0].replace(".", "").isdecimal() or ":" in wrong[0] else "DNS"
        yield Finding(
            "certificate-name", "error", where,
            f"{path} is not for {', '.join(wrong)}, only for {', '.join(one.hosts)}",
            "clients that connect by that name refuse it",
            f"connect by one of its names, or a new one with subjectAltName={kind}:{wrong[0]}",
        )  # fmt: skip


def times(path: Path, one: Certificate, where: str, now: float) -> Iterator[Finding]:
    """Say if a certificate has ended, ends soon, or is for later.

    Soon is not before two thirds of its time are over: there are some for days, and ACME renews then.
    """
    what = f"{path} ({one.common_name})"
    if one.begins_at > now:
        yield Finding(
            "certificate-time", "error", where,
            f"{what} is not valid before {_date(one.begins_at)}, and this machine's clock says {_date(now)}",
            "clients refuse it", "look at the clock first (`date -u`): a new certificate is seldom from the future",
        )  # fmt: skip
    elif one.ends_at <= now:
        yield Finding(
            "certificate-time", "error", where, f"{what} ended on {_date(one.ends_at)}", "clients refuse it",
            "renew it; SIGHUP has the broker read it",
        )  # fmt: skip
    elif one.ends_at < now + min(_SOON_DAYS * _DAY, (one.ends_at - one.begins_at) / 3):
        left = (one.ends_at - now) / _DAY
        yield Finding(
            "certificate-time", "warning", where, f"{what} ends on {_date(one.ends_at)}, in {left:.0f} days",
            "clients refuse it then", "renew it; SIGHUP has the broker read it",
        )  # fmt: skip


def clients(case: Case, tls: TlsConfig) -> Iterator[Finding]:
    """Say which client certificates the authorities of a listener did not issue: those named, and those beside."""
    assert tls.cafile is not None
    path, where = case.locate(tls.cafile), _place(case, tls, "cafile")
    authorities = _certificates(path)
    if not authorities:
        return
    for one in authorities:
        yield from times(path, one, where, case.now)
        if not one.is_authority and not one.is_self_signed:
            yield Finding(
                "certificate-authority", "error", where, f"{path} holds {one.common_name}, which is no authority",
                "no client certificate can be checked by it",
                "cafile names who issued the client certificates, not a certificate of this server",
            )  # fmt: skip
    named = [case.locate(file) for file in case.client_certificates]
    beside = [file for file in sorted(path.parent.iterdir()) if file.suffix in _ENDINGS and file not in named]
    for file in (*named, *beside):
        shown = _certificates(file)[:1]
        if not shown or shown[0].is_authority or any(one.issued(shown[0]) for one in authorities):
            continue
        same_name = any(one.subject == shown[0].issuer for one in authorities)
        if file not in named and not (same_name and shown[0].is_client):
            continue  # it may be for something else
        again = ": an authority of the same name, but with another key, is in there" if same_name else ""
        yield Finding(
            "certificate-client", "error", where,
            f"the client certificate {file} ({shown[0].common_name}) was issued by {shown[0].issuer_name}, which is "
            f"not in {path}{again}",
            "that client is refused in the TLS handshake",
            f"add its authority to {path}, or issue the client's certificate anew with the authority in there",
        )  # fmt: skip
    for file in named:
        if not _certificates(file):
            yield Finding(
                "certificate-client", "error", os.fspath(file),
                f"{file} holds no certificate in PEM, or cannot be read",
                "it cannot be held against the authorities of the listener",
                "a file that begins with BEGIN CERTIFICATE",
            )  # fmt: skip
        for one in _certificates(file)[:1]:
            yield from times(file, one, os.fspath(file), case.now)


def _certificates(path: Path) -> list[Certificate]:
    """Give what a file holds; nothing for one that cannot be read, which others say."""
    try:
        return read(path.read_text("ascii"))
    except (OSError, ValueError):
        return []


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))
