"""When certificates end, which Python tells only of a connection's peer."""

from __future__ import annotations

import calendar
import re
import ssl
import time
from collections.abc import Iterator

_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s.+?-----END CERTIFICATE-----", re.S)


def ends_at(pem: str) -> Iterator[int]:
    """Give the notAfter of each certificate (RFC 5280 §4.1.2.5), in seconds since 1970. Raises ValueError."""
    for block in _PEM.findall(pem):
        try:
            yield _not_after(ssl.PEM_cert_to_DER_cert(block))
        except IndexError:
            raise ValueError("the certificate is cut off") from None


def _not_after(certificate: bytes) -> int:
    at = _content(certificate, _content(certificate, 0, _SEQUENCE), _SEQUENCE)  # into the tbsCertificate
    if certificate[at] == _VERSION:
        at = _end(certificate, at)
    for _serial_signature_issuer in range(3):
        at = _end(certificate, at)
    at = _end(certificate, _content(certificate, at, _SEQUENCE))  # behind notBefore
    text = certificate[_content(certificate, at) : _end(certificate, at)].decode("ascii")
    if certificate[at] == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    elif certificate[at] != _GENERALIZED_TIME:
        raise ValueError("no time where the certificate has its notAfter")
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))


def _length(der: bytes, at: int) -> tuple[int, int]:
    """Give where the content of an element begins, and its length."""
    first = der[at + 1]
    if first < 0x80:
        return at + 2, first
    count = first & 0x7F
    return at + 2 + count, int.from_bytes(der[at + 2 : at + 2 + count], "big")


def _content(der: bytes, at: int, tag: int | None = None) -> int:
    if tag is not None and der[at] != tag:
        raise ValueError("not a certificate")
    return _length(der, at)[0]


def _end(der: bytes, at: int) -> int:
    return sum(_length(der, at))
