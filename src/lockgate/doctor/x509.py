"""What a certificate says (RFC 5280 §4.1), which Python tells only of a connection's peer."""

from __future__ import annotations

import calendar
import ipaddress
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass

_INTEGER_VERSION, _UTC_TIME, _GENERALIZED_TIME, _EXTENSIONS = 0xA0, 0x17, 0x18, 0xA3
_BOOLEAN, _OCTETS = 0x01, 0x04
_COMMON_NAME = bytes.fromhex("0603550403")
_SUBJECT_KEY, _NAMES, _CONSTRAINTS, _AUTHORITY_KEY, _ACCESS, _USAGE = (
    bytes.fromhex(one) for one in ("551d0e", "551d11", "551d13", "551d23", "2b06010505070101", "551d25")
)
_CA_ISSUERS = bytes.fromhex("2b06010505073002")
_CLIENT_USAGE = bytes.fromhex("2b06010505070302")
_DNS, _ADDRESS = 0x82, 0x87
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s.+?-----END CERTIFICATE-----", re.S)


@dataclass(frozen=True)
class Certificate:
    """One certificate. Names are compared as they are encoded; times are seconds since 1970."""

    der: bytes
    subject: bytes
    issuer: bytes
    begins_at: int
    ends_at: int
    common_name: str
    issuer_name: str  # its common name
    hosts: tuple[str, ...]  # of the subjectAltName
    is_authority: bool
    is_client: bool  # made for clients alone, or for them too
    key_id: bytes
    issuer_key_id: bytes
    fetches_issuer: bool  # it says where its issuer's certificate can be had: a public authority made it

    @property
    def is_self_signed(self) -> bool:
        return self.subject == self.issuer

    def issued(self, other: Certificate) -> bool:
        """Whether this one may have issued the other: the names fit, and the key where both name it."""
        same_key = not self.key_id or not other.issuer_key_id or self.key_id == other.issuer_key_id
        return self.subject == other.issuer and same_key

    def covers(self, host: str) -> bool:
        """Whether the names are for this host (RFC 6125 §6.4)."""
        try:
            return str(ipaddress.ip_address(host.strip("[]"))) in self.hosts
        except ValueError:
            pass
        wanted = host.lower().rstrip(".")
        parent = wanted.partition(".")[2]
        return any(name == wanted or (bool(parent) and name == f"*.{parent}") for name in map(str.lower, self.hosts))


def read(pem: str) -> list[Certificate]:
    """Give the certificates of a PEM file, in its order. Raises ValueError."""
    try:
        return [_certificate(ssl.PEM_cert_to_DER_cert(block)) for block in _PEM.findall(pem)]
    except IndexError:
        raise ValueError("a certificate is cut off") from None


def _certificate(der: bytes) -> Certificate:
    body = list(_elements(_content(_content(der))))
    if body and body[0][0] == _INTEGER_VERSION:
        body.pop(0)
    if len(body) < 6:
        raise ValueError("it is no certificate")
    issuer, validity, subject = body[2][1], body[3][1], body[4][1]
    begins, ends = (_time(tag, _content(whole)) for tag, whole in _elements(_content(validity)))
    found = _extensions(body)
    return Certificate(
        der=der,
        subject=subject,
        issuer=issuer,
        begins_at=begins,
        ends_at=ends,
        common_name=_common_name(subject),
        issuer_name=_common_name(issuer),
        hosts=tuple(_hosts(found.get(_NAMES, b""))),
        is_authority=b"\x01\x01\xff" in found.get(_CONSTRAINTS, b""),
        is_client=_CLIENT_USAGE in found.get(_USAGE, b""),
        key_id=_content(found[_SUBJECT_KEY]) if _SUBJECT_KEY in found else b"",
        issuer_key_id=_authority_key(found.get(_AUTHORITY_KEY, b"")),
        fetches_issuer=_CA_ISSUERS in found.get(_ACCESS, b""),
    )


def _extensions(body: list[tuple[int, bytes]]) -> dict[bytes, bytes]:
    """Give the value of each extension by its object identifier."""
    found: dict[bytes, bytes] = {}
    for tag, whole in body:
        if tag == _EXTENSIONS:
            for _, one in _elements(_content(_content(whole))):
                parts = list(_elements(_content(one)))
                if len(parts) >= 2 and parts[-1][0] == _OCTETS:
                    found[_content(parts[0][1])] = _content(parts[-1][1])
    return found


def _hosts(value: bytes) -> Iterator[str]:
    for tag, whole in _elements(_content(value)) if value else ():
        if tag == _DNS:
            yield _content(whole).decode("ascii", "replace")
        elif tag == _ADDRESS and len(_content(whole)) in (4, 16):
            yield str(ipaddress.ip_address(_content(whole)))


def _authority_key(value: bytes) -> bytes:
    return next((_content(whole) for tag, whole in _elements(_content(value)) if tag == 0x80), b"") if value else b""


def _common_name(name: bytes) -> str:
    at = name.find(_COMMON_NAME)
    return (
        _content(name[at + len(_COMMON_NAME) :]).decode("utf-8", "replace") if at >= 0 else "a certificate without CN"
    )


def _time(tag: int, content: bytes) -> int:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time where the certificate has its validity")
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))


def _length(der: bytes, at: int) -> tuple[int, int]:
    """Give where the content of an element begins, and its length."""
    first = der[at + 1]
    if first < 0x80:
        return at + 2, first
    count = first & 0x7F
    return at + 2 + count, int.from_bytes(der[at + 2 : at + 2 + count], "big")


def _content(element: bytes) -> bytes:
    begin, size = _length(element, 0)
    if len(element) < begin + size:
        raise IndexError
    return element[begin : begin + size]


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Give tag and whole of each element in a sequence."""
    at = 0
    while at < len(content):
        end = sum(_length(content, at))
        yield content[at], content[at:end]
        at = end
