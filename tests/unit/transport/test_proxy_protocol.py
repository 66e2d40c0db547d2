"""The PROXY header by its specification, whole and in pieces, good and broken."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.transport.layer import TransportError
from lockgate.transport.proxy_protocol import (
    BLOCK_BYTES,
    SIGNATURE_V2,
    ProxiedTls,
    ProxyHeader,
    ProxyProtocol,
    crc32c,
)

INET = b"\x01\x02\x03\x04\x05\x06\x07\x08\x10\x00\x20\x00"
INET6 = ipaddress.IPv6Address("2001:db8::1").packed + ipaddress.IPv6Address("::2").packed + b"\x10\x00\x20\x00"


def block(body: bytes = INET, family: int = 0x11, command: int = 0x21) -> bytes:
    return SIGNATURE_V2 + struct.pack("!BBH", command, family, len(body)) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def ssl_tlv(client: int = 7, verify: int = 0, name: bytes = b"device-1") -> bytes:
    inner = tlv(0x21, b"TLSv1.3") + tlv(0x22, name) + tlv(0x23, b"TLS_AES_256_GCM_SHA384") + tlv(0x7E, b"unknown")
    return tlv(0x20, struct.pack("!BI", client, verify) + inner)


def with_crc(data: bytes) -> bytes:
    """The block `data`, whose length already counts it, with a CRC32c behind it."""
    length = int.from_bytes(data[14:16], "big") + 7
    data = data[:14] + length.to_bytes(2, "big") + data[16:] + tlv(0x03, bytes(4))
    return data[:-4] + crc32c(data).to_bytes(4, "big")


GOOD: list[tuple[str, int, bytes, ProxyHeader]] = [
    ("v1 IPv4", 1, b"PROXY TCP4 1.2.3.4 5.6.7.8 4096 1883\r\n", ProxyHeader("1.2.3.4:4096")),
    ("v1 IPv6", 1, b"PROXY TCP6 2001:db8::1 ::2 4096 1883\r\n", ProxyHeader("2001:db8::1:4096")),
    (
        "v1 longest",
        1,
        b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n",
        ProxyHeader("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff:65535"),
    ),
    ("v1 unknown", 1, b"PROXY UNKNOWN\r\n", ProxyHeader()),
    ("v1 unknown with more", 1, b"PROXY UNKNOWN ffff::1 whatever\r\n", ProxyHeader()),
    ("v2 IPv4", 2, block(), ProxyHeader("1.2.3.4:4096")),
    ("v2 IPv6", 2, block(INET6, 0x21), ProxyHeader("2001:db8::1:4096")),
    ("v2 Unix", 2, block(b"/run/x".ljust(108, b"\0") + bytes(108), 0x31), ProxyHeader("unix socket '/run/x'")),
    ("v2 Unix without a path", 2, block(bytes(216), 0x31), ProxyHeader("unix socket")),
    ("v2 unspecified", 2, block(b"", 0x00), ProxyHeader()),
    ("v2 local", 2, block(b"anything", 0x11, 0x20), ProxyHeader()),
    (
        "v2 TLS",
        2,
        block(INET + ssl_tlv()),
        ProxyHeader("1.2.3.4:4096", ProxiedTls("TLSv1.3", "TLS_AES_256_GCM_SHA384", "device-1", True)),
    ),
    (
        "v2 TLS behind a Unix address",
        2,
        block(bytes(216) + ssl_tlv(verify=1), 0x31),
        ProxyHeader("unix socket", ProxiedTls("TLSv1.3", "TLS_AES_256_GCM_SHA384", "device-1", False)),
    ),
    (
        "v2 TLS without a client certificate",
        2,
        block(INET + tlv(0x20, b"\x01\0\0\0\0")),
        ProxyHeader("1.2.3.4:4096", ProxiedTls()),
    ),
    ("v2 not over TLS", 2, block(INET + ssl_tlv(client=0)), ProxyHeader("1.2.3.4:4096")),
    ("v2 with unknown TLVs", 2, block(INET + tlv(0x04, b"x" * 9) + tlv(0xE0, b"")), ProxyHeader("1.2.3.4:4096")),
    ("v2 with a checksum", 2, with_crc(block(INET + tlv(0x02, b"a.example"))), ProxyHeader("1.2.3.4:4096")),
]
good = pytest.mark.parametrize(("version", "data", "header"), [pytest.param(*case[1:], id=case[0]) for case in GOOD])


@good
def test_a_header_is_read_and_what_follows_is_the_clients(version: int, data: bytes, header: ProxyHeader) -> None:
    layer = ProxyProtocol(version)
    assert layer.receive(data + b"\x10rest") == b"\x10rest"
    assert layer.header == header
    assert layer.receive(b"more") == b"more"


@good
def test_a_header_may_arrive_byte_by_byte(version: int, data: bytes, header: ProxyHeader) -> None:
    layer = ProxyProtocol(version)
    for at in range(len(data)):
        assert layer.header is None
        assert layer.receive(data[at : at + 1]) == b""
    assert layer.header == header


@pytest.mark.parametrize(
    ("version", "data", "problem"),
    [
        (1, b"\x10\x0c\x00\x04MQTT", "no PROXY header"),
        (2, b"\x10\x0c\x00\x04MQTT", "no PROXY header"),
        (1, block(), "set enable_proxy_protocol 2"),
        (2, b"PROXY TCP4 ", "set enable_proxy_protocol 1"),
        (1, b"PROXY " + b"x" * 101, "longer than 107 bytes"),
        (1, b"PROXY TCP4 1.2.3.4 5.6.7.8 4096 1883\n", "cannot be read"),
        (1, b"PROXY TCP4 1.2.3.4 5.6.7.8 04096 1883\r\n", "cannot be read"),
        (1, b"PROXY  TCP4 1.2.3.4 5.6.7.8 4096 1883\r\n", "cannot be read"),
        (1, b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 1883\r\n", "bad address"),
        (1, b"PROXY TCP4 1.2.3.4 5.6.7.256 1 1\r\n", "bad address"),
        (1, b"PROXY TCP4 ::1 ::2 1 1\r\n", "bad address"),
        (1, b"PROXY UDP4 1.2.3.4 5.6.7.8 1 1\r\n", "cannot be read"),
        (2, block(command=0x11), "version 1"),
        (2, block(command=0x22), "unknown command 2"),
        (2, block(family=0x41), "unknown address family 0x41"),
        (2, block(family=0x13), "unknown address family 0x13"),
        (2, block(INET[:-1]), "too short for its addresses"),
        (2, block(bytes(BLOCK_BYTES + 1))[:16], "at most 4096"),
        (2, block(INET + b"\x04\x00"), "ends within a TLV"),
        (2, block(INET + b"\x04\x00\x02x"), "ends within a TLV"),
        (2, block(INET + tlv(0x20, b"\x01\0\0\0")), "SSL TLV that is too short"),
        (2, block(INET + tlv(0x20, b"\x01\0\0\0\0\x22\xff\xffx")), "ends within a TLV"),
        (2, block(INET + ssl_tlv(name=b"\xff")), "not UTF-8"),
        (2, block(INET + tlv(0x03, b"1234")), "CRC32c is wrong"),
        (2, block(INET + tlv(0x03, b"")), "CRC32c is wrong"),
    ],
)
def test_a_broken_header_is_refused_with_its_reason(version: int, data: bytes, problem: str) -> None:
    with pytest.raises(TransportError, match=problem):
        ProxyProtocol(version).receive(data)


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of its definition


@given(st.integers(1, 2), st.binary(max_size=200), st.lists(st.integers(1, 9), min_size=1))
def test_any_bytes_in_any_pieces_are_a_header_or_an_error(version: int, tail: bytes, cuts: list[int]) -> None:
    stream = (b"PROXY " if version == 1 else SIGNATURE_V2) + tail
    whole, pieces = ProxyProtocol(version), ProxyProtocol(version)
    results: list[tuple[bytes, ProxyHeader | None] | str] = []
    for layer, sizes in ((whole, [len(stream)]), (pieces, cuts)):
        rest, got = stream, b""
        try:
            while rest:
                size = sizes[len(rest) % len(sizes)]
                got += layer.receive(rest[:size])
                rest = rest[size:]
            results.append((got, layer.header))
        except TransportError as error:
            results.append(str(error))
    assert all(isinstance(one, tuple) or one.isprintable() for one in results)
    assert [one if isinstance(one, tuple) else "refused" for one in results[:1]] == [
        one if isinstance(one, tuple) else "refused" for one in results[1:]
    ]
