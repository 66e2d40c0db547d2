"""What knocks at the wrong door is named in one line, and repetition does not grow the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from pathlib import Path

import pytest

from lockgate.config.model import ListenerConfig, TlsConfig
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V5, Connect
from lockgate.net.complaints import Complaints
from lockgate.net.service import BrokerService
from tests.support.certificates import Authority
from tests.support.wires import PROXY_V1, PROXY_V2, Wire, doors, serving

PLAIN = ListenerConfig(port=0, address="127.0.0.1")
HELLO = bytes.fromhex("160301020001")
UPGRADE = b"GET /mqtt HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def knock(service: BrokerService, data: bytes) -> bytes:
    """Send bytes and give all that comes back until the broker closes."""
    wire = await Wire.open(service, handshake=False)
    wire.writer.write(data)
    got = b""
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(10):
            got = await wire.reader.read()
    wire.writer.close()
    async with asyncio.timeout(10):
        while service.broker.connections:
            await asyncio.sleep(0.001)
    return got


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is told of peers, not of how the broker was started."""
    found = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in found if record.name != "lockgate.net.service"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "heard HTTP; this listener speaks MQTT"),
        (b"POST /x HTTP/1.1\r\n", "heard HTTP; this listener speaks MQTT"),
        (b"GE", "heard HTTP; this listener speaks MQTT"),
        (UPGRADE, "heard a WebSocket upgrade, but this listener speaks MQTT; set `protocol websockets`"),
        (HELLO, "heard a TLS handshake, but this listener has no certificate; connect without TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "heard SSH; this is the port of an MQTT broker"),
        (PROXY_V1, "heard a PROXY header; set enable_proxy_protocol 1"),
        (PROXY_V2, "heard a PROXY header; set enable_proxy_protocol 2"),
        (b"\x00" * 50, "the first packet must be CONNECT"),
    ],
)
async def test_the_plain_port_names_what_it_hears(data: bytes, says: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(PLAIN) as service:
        assert await knock(service, data) == b""
    [line] = warnings(caplog)
    assert says in line
    assert line.startswith("Client [127.0.0.1:")


async def test_other_doors_name_what_they_hear(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path)
    certfile, keyfile = authority.issue("server", "localhost")
    every = doors(tmp_path, TlsConfig(certfile=certfile, keyfile=keyfile), authority.cafile)
    mqtt = encode(Connect("c"), V5)
    for name, data, says in [
        ("tls", mqtt, "heard plain MQTT, but this listener speaks TLS"),
        ("tls", UPGRADE, "heard plain HTTP, but this listener speaks TLS"),
        ("websocket", mqtt, "heard plain MQTT, but this listener speaks WebSocket"),
        ("websocket", HELLO, "heard a TLS handshake, but this listener has no certificate"),
        ("secure websocket", mqtt, "heard plain MQTT, but this listener speaks TLS"),
        ("proxy 1 before tls", mqtt, "no PROXY header; only proxies may connect"),
        ("proxy 1 before tls", PROXY_V2, "set enable_proxy_protocol 2"),
        ("proxy 2 before websocket", PROXY_V1, "set enable_proxy_protocol 1"),
    ]:
        caplog.clear()
        async with serving(every[name].listener) as service:
            await knock(service, data)
        [line] = warnings(caplog)
        assert says in line


async def test_a_browser_at_the_websocket_port_is_told(caplog: pytest.LogCaptureFixture) -> None:
    listener = ListenerConfig(port=0, address="127.0.0.1", websockets=True)
    async with serving(listener) as service:
        answer = await knock(service, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    [line] = warnings(caplog)
    assert "the WebSocket handshake was refused" in line


async def test_repetition_does_not_grow_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(PLAIN) as service:
        for _number in range(100):
            await knock(service, HELLO)
        assert len([line for line in caplog.messages if "127.0.0.1:" in line]) < 6
        await Wire.client(service, "good")
        assert "New client connected from 127.0.0.1:" in caplog.messages[-1]


async def test_connections_without_a_word_do_not_grow_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(PLAIN) as service:
        for _number in range(100):
            wire = await Wire.open(service, handshake=False)
            wire.writer.close()
            async with asyncio.timeout(10):
                while not service.broker.statistics.connections_accepted or service.broker.connections:
                    await asyncio.sleep(0.001)
        assert len([line for line in caplog.messages if "127.0.0.1:" in line]) < 6
    assert re.fullmatch(r"\d+ more connections from 127\.0\.0\.1 ended before they were let in\.", caplog.messages[-1])


def test_complaints_are_told_once_a_minute_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    for second in range(130):
        complaints.tell(f"192.0.2.1:{second}", "bad", float(second))
        complaints.tell("192.0.2.2:1", "other", 0.0)
    assert [line for line in caplog.messages if ".2:" not in line] == [
        "Client [192.0.2.1:0] disconnected: bad.",
        "59 more connections from 192.0.2.1 ended before they were let in.",
        "Client [192.0.2.1:60] disconnected: bad.",
        "59 more connections from 192.0.2.1 ended before they were let in.",
        "Client [192.0.2.1:120] disconnected: bad.",
    ]
    assert complaints.is_repeating("192.0.2.1:7", 130.0)
    assert not complaints.is_repeating("192.0.2.1:7", 181.0)
    assert not complaints.is_repeating("192.0.2.3:7", 130.0)


def test_reasons_and_addresses_without_end_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    for number in range(1000):
        complaints.tell("192.0.2.1:1", f"reason {number}", 0.0)
        complaints.tell(f"2001:db8::{number:x}:9", "bad", 0.0)  # one network
    assert len(caplog.messages) == 11
    for number in range(10_000):
        complaints.tell(f"10.0.{number >> 8}.{number & 255}:1", "bad", 1.0)
    assert len(caplog.messages) < 300
    caplog.clear()
    complaints.tell("192.0.2.9:1", "bad", 100.0)
    assert "more connections from other addresses" in " ".join(caplog.messages)
    assert len(complaints._addresses) < 300
