"""The PROXY protocol: what a proxy in front of us tells about the client, before the client's own bytes.

The specification is HAProxy's `proxy-protocol.txt`; §2.1 is version 1 (a line), §2.2 version 2 (a binary block).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from lockgate.transport.layer import TransportError

SIGNATURE_V1: Final = b"PROXY "
SIGNATURE_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_LINE_BYTES: Final = 107  # of version 1, with its CR LF
_HEAD_BYTES: Final = 16  # of version 2: signature, version and command, family, length
# The specification allows 64 KiB; addresses and every registered TLV together need less than a tenth of that.
BLOCK_BYTES: Final = 4096

_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _INET, _INET6, _UNIX = 0, 1, 2, 3
_ADDRESS_BYTES: Final = {_UNSPECIFIED: 0, _INET: 12, _INET6: 36, _UNIX: 216}
_UNIX_PATH_BYTES: Final = 108

_CRC32C, _SSL = 0x03, 0x20
_SSL_VERSION, _SSL_CN, _SSL_CIPHER = 0x21, 0x22, 0x23
_CLIENT_SSL, _CLIENT_CERTIFICATE_IN_CONNECTION, _CLIENT_CERTIFICATE_IN_SESSION = 1, 2, 4

_V1 = re.compile(rb"PROXY (TCP4|TCP6) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n")
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN( [^\r\n]*)?\r\n")


@dataclass(frozen=True, slots=True)
class ProxiedTls:
    """What the proxy says of the TLS connection it ended (§2.2.5)."""

    version: str = ""
    cipher: str = ""
    common_name: str | None = None  # of the client's certificate
    certificate_verified: bool = False  # the client showed one in this session, and the proxy found it good


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Who the client is. `source` is as it is logged; None: the proxy speaks for itself or does not know."""

    source: str | None = None
    tls: ProxiedTls | None = None


class ProxyProtocol:
    """Reads the header of one connection, of the version that the listener expects, in pieces of any size.

    `header` is set once it has arrived; the layer has then nothing more to do and may be left out. What the proxy says
    of TLS and of the client's certificate may be demanded.
    """

    __slots__ = ("_buffer", "_require_certificate", "_require_tls", "_version", "header")

    opening = "PROXY header"
    memory_bytes = 300
    has_output = False
    ended = False
    awaits_goodbye = False

    def __init__(self, version: int, require_tls: bool = False, require_certificate: bool = False) -> None:
        self._version = version
        self._require_tls = require_tls
        self._require_certificate = require_certificate
        self._buffer = b""
        self.header: ProxyHeader | None = None

    def receive(self, data: bytes) -> bytes:
        """Give the client's own bytes; raises TransportError for a header that is not one."""
        if self.header is not None:
            return data
        data = self._buffer + data
        size = self._whole(data)
        if size == 0:
            self._buffer = data
            return b""
        self._buffer = b""
        header = parse_v1(data[:size]) if self._version == 1 else parse_v2(data[:size])
        if self._require_tls and header.tls is None:
            raise TransportError("the client spoke no TLS to the proxy (proxy_protocol_v2_require_tls)")
        if self._require_certificate and (header.tls is None or not header.tls.certificate_verified):
            raise TransportError("the client showed the proxy no good certificate (require_certificate)")
        self.header = header
        return data[size:]

    @property
    def is_open(self) -> bool:
        """Whether the header has arrived."""
        return self.header is not None

    @property
    def identity(self) -> str | None:
        """The CN of the certificate that the client showed the proxy."""
        tls = self.header.tls if self.header is not None else None
        return tls.common_name if tls is not None and tls.certificate_verified else None

    def send(self, data: bytes) -> bytes:
        """Give the bytes as they are: a server sends no header."""
        return data

    finish = send

    def _whole(self, data: bytes) -> int:
        """Give the size of the header at the start of `data`, 0 while some of it is missing."""
        signature = SIGNATURE_V1 if self._version == 1 else SIGNATURE_V2
        begun = data[: len(signature)]
        if not signature.startswith(begun):
            raise TransportError(_not_a_header(data, self._version))
        if self._version == 1:
            end = data.find(b"\n", 0, _LINE_BYTES) + 1
            if end == 0 and len(data) >= _LINE_BYTES:
                raise TransportError(f"the PROXY line is longer than {_LINE_BYTES} bytes")
            return end
        if len(data) < _HEAD_BYTES:
            return 0
        length = int.from_bytes(data[14:16], "big")
        if length > BLOCK_BYTES:
            raise TransportError(f"a PROXY block of {length} bytes, at most {BLOCK_BYTES} are accepted")
        return _HEAD_BYTES + length if len(data) >= _HEAD_BYTES + length else 0


def _not_a_header(data: bytes, version: int) -> str:
    other, signature = (2, SIGNATURE_V2) if version == 1 else (1, SIGNATURE_V1)
    if signature.startswith(data[: len(signature)]):
        return f"the proxy speaks version {other} of the PROXY protocol; set enable_proxy_protocol {other}"
    return (
        "no PROXY header; only proxies may connect to a listener with enable_proxy_protocol, "
        "and the proxy must be set to send that header"
    )


def parse_v1(line: bytes) -> ProxyHeader:
    """Read the line of version 1, with its CR LF; raises TransportError."""
    if _V1_UNKNOWN.fullmatch(line):
        return ProxyHeader()
    match = _V1.fullmatch(line)
    if match is None:
        raise TransportError(f"a PROXY line that cannot be read: {_shown(line)}")
    family, source, destination, port, to_port = (part.decode("ascii") for part in match.groups())
    version = 4 if family == "TCP4" else 6
    try:
        addresses = [ipaddress.ip_address(one) for one in (source, destination)]
    except ValueError:
        raise TransportError(f"a PROXY line with a bad address: {_shown(line)}") from None
    if any(one.version != version for one in addresses) or int(port) > 65535 or int(to_port) > 65535:
        raise TransportError(f"a PROXY line with a bad address: {_shown(line)}")
    return ProxyHeader(f"{addresses[0]}:{port}")


def header_v2(source: str, destination: tuple[object, ...] | str | None) -> bytes:
    """Give the block of version 2 that names a client, `IP:PORT` or `IP`, of which `destination` is a socket's name.

    A client that is no address is left unknown (§2.2, LOCAL).
    """
    host, _, port = source.rpartition(":") if source.count(":") == 1 or source.startswith("[") else (source, "", "0")
    try:
        client = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        client_port = int(port)
        served = ipaddress.ip_address(str(destination[0])) if isinstance(destination, tuple) else None
    except ValueError:
        return SIGNATURE_V2 + bytes((0x20, _UNSPECIFIED << 4, 0, 0))
    family = _INET if client.version == 4 else _INET6
    if served is None or served.version != client.version:
        served = ipaddress.ip_address(0) if family == _INET else ipaddress.IPv6Address(0)
    served_port = int(str(destination[1])) if isinstance(destination, tuple) else 0
    body = client.packed + served.packed + client_port.to_bytes(2, "big") + served_port.to_bytes(2, "big")
    return SIGNATURE_V2 + bytes((0x21, family << 4 | 1)) + len(body).to_bytes(2, "big") + body


def parse_v2(block: bytes) -> ProxyHeader:
    """Read the whole block of version 2; raises TransportError."""
    if block[12] >> 4 != 2:
        raise TransportError(f"a PROXY block of version {block[12] >> 4}")
    command, family = block[12] & 0x0F, block[13] >> 4
    if command == _LOCAL:  # a health check of the proxy: addresses are to be ignored
        return ProxyHeader()
    if command != _PROXY:
        raise TransportError(f"a PROXY block with the unknown command {command}")
    size = _ADDRESS_BYTES.get(family)
    if size is None or block[13] & 0x0F > 2:
        raise TransportError(f"a PROXY block with the unknown address family 0x{block[13]:02x}")
    body = block[_HEAD_BYTES:]
    if len(body) < size:
        raise TransportError("a PROXY block that is too short for its addresses")
    tls = None
    for kind, value, at in _tlvs(body, size):
        if kind == _CRC32C:
            _check_crc(block, value, _HEAD_BYTES + at)
        elif kind == _SSL:
            tls = _tls(value)
    return ProxyHeader(_source(family, body), tls)


def _source(family: int, body: bytes) -> str | None:
    if family == _INET:
        return f"{ipaddress.IPv4Address(body[:4])}:{int.from_bytes(body[8:10], 'big')}"
    if family == _INET6:
        return f"{ipaddress.IPv6Address(body[:16])}:{int.from_bytes(body[32:34], 'big')}"
    if family == _UNIX:
        path = body[:_UNIX_PATH_BYTES].rstrip(b"\0")
        return f"unix socket {_shown(path)}" if path else "unix socket"
    return None


def _tlvs(data: bytes, at: int) -> list[tuple[int, bytes, int]]:
    """Give type, value and place of the value of each TLV from `at` to the end."""
    found: list[tuple[int, bytes, int]] = []
    while at < len(data):
        if at + 3 > len(data):
            raise TransportError("a PROXY block that ends within a TLV")
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        value = data[at + 3 : at + 3 + length]
        if len(value) < length:
            raise TransportError("a PROXY block that ends within a TLV")
        found.append((data[at], value, at + 3))
        at += 3 + length
    return found


def _tls(value: bytes) -> ProxiedTls | None:
    """Read PP2_TYPE_SSL: a bit field, the result of the verification, then TLVs of its own."""
    if len(value) < 5:
        raise TransportError("a PROXY block with an SSL TLV that is too short")
    client, verify = value[0], int.from_bytes(value[1:5], "big")
    inner = {kind: one for kind, one, _at in _tlvs(value, 5)}
    if not client & _CLIENT_SSL:
        return None
    try:
        version, cipher = (inner.get(kind, b"").decode("ascii") for kind in (_SSL_VERSION, _SSL_CIPHER))
        name = inner.get(_SSL_CN)
        common_name = name.decode("utf-8") if name else None
    except UnicodeDecodeError:
        raise TransportError("a PROXY block whose SSL TLV holds text that is not UTF-8") from None
    shown = client & (_CLIENT_CERTIFICATE_IN_CONNECTION | _CLIENT_CERTIFICATE_IN_SESSION) != 0
    return ProxiedTls(version, cipher, common_name, shown and verify == 0)


def _check_crc(block: bytes, value: bytes, at: int) -> None:
    """Hold the checksum against the block, in which it counts as zeros (§2.2.3)."""
    if len(value) != 4 or crc32c(block[:at] + bytes(4) + block[at + 4 :]) != int.from_bytes(value, "big"):
        raise TransportError("a PROXY block whose CRC32c is wrong")


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _bit in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC_TABLE: Final = _crc_table()


def crc32c(data: bytes) -> int:
    """Give the Castagnoli checksum (RFC 3720)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _shown(data: bytes) -> str:
    """What a peer sent, as a line of the log may show it."""
    return repr(data[:_LINE_BYTES])[1:]
