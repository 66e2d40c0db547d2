"""The mqtt sink before Servers that cannot say no."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lockgate.buffer import Log
from lockgate.buffer.offline import letters
from lockgate.config.model import ConnectionConfig, MqttSinkConfig
from tests.support.buffers import batch
from tests.support.peers import free_port
from tests.unit.forwarder.test_forwarder import CLASSES, forwarding, log, numbers, settled, until

__all__ = ["log"]


class Touchy:
    """An MQTT Server of version 3.1.1 that closes the connection over a payload, as AWS IoT does."""

    def __init__(self, *payloads: bytes) -> None:
        self.port = free_port()
        self.taken: list[bytes] = []
        self._bad = payloads

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Touchy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                first, length = await reader.readexactly(2)
                if length & 0x80:
                    length = (length & 0x7F) + (await reader.readexactly(1))[0] * 128
                body = await reader.readexactly(length)
                if first >> 4 == 1:
                    writer.write(b"\x20\x02\x00\x00")
                elif first >> 4 == 3:
                    end = 2 + int.from_bytes(body[:2], "big")
                    if body[end + 2 :] in self._bad:
                        break
                    self.taken.append(body[end + 2 :])
                    writer.write(b"\x40\x02" + body[end : end + 2])
                elif first >> 4 == 14:
                    break
        writer.close()


@pytest.mark.parametrize("places", [(0,), (37,), (10, 11, 12), (99,)])
async def test_a_message_over_which_a_server_closes_the_connection_becomes_a_dead_letter(
    tmp_path: Path, log: Log, places: tuple[int, ...]
) -> None:
    await log.append(batch(*numbers(*range(100)), topic="a"))
    await log.append(batch(*numbers(100), topic="b"))
    async with Touchy(*(b"%d" % place for place in places)).listening() as server:
        sink = MqttSinkConfig(
            name="cloud", classes=CLASSES, batch=100, poison_after=2, retry_min_seconds=0.01, retry_max_seconds=0.02,
            timeout_seconds=5.0, connection=ConnectionConfig(
                url=f"mqtt://127.0.0.1:{server.port}", client_id="up", version="3.1.1"
            ),
        )  # fmt: skip
        async with forwarding(tmp_path, sink) as forwarder:
            await settled(tmp_path, forwarder)
    found = letters(tmp_path / "buffer", "cloud")
    assert [letter.seq for letter in found] == [place + 1 for place in places]
    assert {letter.reason for letter in found} == {"the server closed the connection"}
    assert list(dict.fromkeys(server.taken)) == sorted(set(server.taken), key=server.taken.index)
    assert {int(payload) for payload in server.taken} == set(range(101)) - set(places)


async def test_a_server_that_closes_over_everything_makes_no_dead_letters(tmp_path: Path, log: Log) -> None:
    await log.append(batch(*numbers(*range(5)), topic="a"))
    async with Touchy(*numbers(*range(5))).listening() as server:
        sink = MqttSinkConfig(
            name="cloud", classes=CLASSES, poison_after=2, retry_min_seconds=0.01, retry_max_seconds=0.02,
            connection=ConnectionConfig(url=f"mqtt://127.0.0.1:{server.port}", client_id="up", version="3.1.1"),
        )  # fmt: skip
        async with forwarding(tmp_path, sink) as forwarder:
            await until(lambda: json.loads(json.dumps(forwarder.status()))["sinks"]["cloud"].get("retried", 0) > 20)
    assert letters(tmp_path / "buffer", "cloud") == []
