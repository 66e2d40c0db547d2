"""The OPC UA source, with asyncua's own server and the real broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from asyncua import ua

from lockgate.config.errors import ConfigError
from lockgate.config.model import ConnectionConfig, OpcuaSourceConfig
from lockgate.config.templates import parse
from lockgate.sources import build
from lockgate.sources.opcua import OpcuaSource
from lockgate.sources.opcua_values import message, to_json
from tests.support.gateway import Gateway
from tests.support.modbus import misbehaving
from tests.support.opcua import CLIENT_URI, certificate, opcua_server
from tests.support.peers import free_port
from tests.support.sources import WAIT, Heard, heard

NODES = (("temperature", "ns=2;s=temperature"), ("running", "ns=2;s=running"))


def config(url: str, endpoint: str, **more: Any) -> OpcuaSourceConfig:
    defaults: dict[str, Any] = {
        "nodes": NODES, "topic": parse("plant/{node}"), "interval_seconds": 0.1, "retry_min_seconds": 0.05,
        "retry_max_seconds": 0.2, "timeout_seconds": 2.0,
    }  # fmt: skip
    connection = ConnectionConfig(url=url, client_id="plc")
    return OpcuaSourceConfig(name="plc", connection=connection, endpoint=endpoint, **(defaults | more))


class Running:
    """A source that runs, and what arrives of it."""

    def __init__(self, source: OpcuaSource, heard: Heard) -> None:
        self.source = source
        self.next = heard.next
        self._heard = heard

    async def value(self, name: str = "temperature") -> dict[str, Any]:
        said: dict[str, Any] = json.loads((await self.next(f"plant/{name}")).payload)
        return said

    async def until_value(self, value: object, status: str = "Good", name: str = "temperature") -> dict[str, Any]:
        while True:
            said = await self.value(name)
            if (said["value"], said["status"]) == (value, status):
                return said

    async def state(self, expected: bytes) -> None:
        await self._heard.state(expected, "server")

    async def until(self, problem: str) -> None:
        async with asyncio.timeout(WAIT):
            while problem not in str(self.source.status()):
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(config: OpcuaSourceConfig) -> AsyncIterator[Running]:
    source = OpcuaSource(config)
    async with heard(source, config, "plant/#") as what:
        yield Running(source, what)


@pytest.mark.parametrize("mode", ["subscribe", "poll"])
async def test_values_arrive_with_the_time_and_the_status_of_the_server(broker: Gateway, mode: str) -> None:
    async with opcua_server(free_port()) as plant, running(config(broker.url, plant.url, mode=mode)) as source:
        assert (await source.until_value(21.5))["status"] == "Good"
        assert (await source.value("running"))["value"] is True
        at = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
        await plant.write("temperature", 22.5, at=at)
        assert (await source.until_value(22.5))["time"] == round(at.timestamp() * 1000)
        await source.state(b"online")


@pytest.mark.parametrize("mode", ["subscribe", "poll"])
async def test_a_bad_value_is_null_with_its_status_and_never_as_good(broker: Gateway, mode: str) -> None:
    async with opcua_server(free_port()) as plant, running(config(broker.url, plant.url, mode=mode)) as source:
        await source.until_value(21.5)
        await plant.write("temperature", 99.0, "BadSensorFailure")
        await source.until_value(None, "BadSensorFailure")
        assert source.source.status()["bad"] == {"temperature": "BadSensorFailure"}
        await plant.write("temperature", 23.0, "UncertainLastUsableValue")
        await source.until_value(23.0, "UncertainLastUsableValue")
        await plant.write("temperature", 24.0)
        await source.until_value(24.0)
        assert "bad" not in source.source.status()


async def test_a_change_between_two_publishes_is_not_lost(broker: Gateway) -> None:
    async with opcua_server(free_port()) as plant:
        every = config(broker.url, plant.url, interval_seconds=0.5, sampling_seconds=0.0, queue_size=100)
        async with running(every) as source:
            await source.until_value(21.5)
            for number in range(20):
                await plant.write("temperature", float(number))
            assert [(await source.value())["value"] for _ in range(20)] == [float(number) for number in range(20)]


async def test_a_namespace_by_its_name_and_a_node_that_is_not_there(broker: Gateway) -> None:
    nodes = (
        ("temperature", "nsu=urn:first;s=temperature"),
        ("ghost", "ns=2;s=ghost"),
        ("stranger", "nsu=urn:nowhere;s=x"),
    )
    async with opcua_server(free_port()) as plant, running(config(broker.url, plant.url, nodes=nodes)) as source:
        assert (await source.value())["value"] == 21.5
        said = await source.value("ghost")
        assert (said["value"], said["status"]) == (None, "BadNodeIdUnknown")
        assert (await source.value("stranger"))["status"] == "the server has no namespace urn:nowhere"
        missing: Any = source.source.status()["missing"]
        assert missing.keys() == {"ghost", "stranger"}


async def test_a_server_that_goes_and_comes_back_is_found_again(broker: Gateway) -> None:
    port = free_port()
    async with running(config(broker.url, f"opc.tcp://127.0.0.1:{port}/plant")) as source:
        await source.state(b"offline")
        async with opcua_server(port) as plant:
            await source.until_value(21.5)
            await source.state(b"online")
            assert "problem" not in source.source.status()
            assert plant.url
        await source.state(b"offline")
        async with opcua_server(port) as plant:
            await source.until_value(21.5)
            await plant.write("temperature", 5.0)
            await source.until_value(5.0)


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(8)
    writer.write(b"ACKF\xff\xff\xff\xff" + bytes(range(256)) * 10)
    await reader.read()


async def closing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read(8)


@pytest.mark.parametrize("talk", [silent, garbage, closing], ids=lambda one: one.__name__)
async def test_what_is_no_server_is_offline_and_is_tried_again(broker: Gateway, talk: Any) -> None:
    tried = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tried
        tried += 1
        await talk(reader, writer)

    async with misbehaving(counted) as port:
        deaf = config(broker.url, f"opc.tcp://127.0.0.1:{port}", timeout_seconds=0.2)
        async with running(deaf) as source:
            await source.state(b"offline")
            async with asyncio.timeout(WAIT):
                while tried < 3:
                    await asyncio.sleep(0.01)
            assert source.source.status()["online"] is False
            assert source.source.status()["problem"]


async def test_signed_and_encrypted_with_certificates_and_a_user(broker: Gateway, tmp_path: Path) -> None:
    certfile, keyfile = await certificate(tmp_path, "client", CLIENT_URI)
    (tmp_path / "password").write_text("s3cret\n")
    async with opcua_server(free_port(), tmp_path, anonymous=False) as plant:
        secure: dict[str, Any] = {
            "security_policy": "Basic256Sha256",
            "certfile": certfile,
            "keyfile": keyfile,
            "user": "plant",
            "user_password_file": tmp_path / "password",
        }
        async with running(config(broker.url, plant.url, **secure)) as source:
            await source.until_value(21.5)
        async with running(config(broker.url, plant.url, **secure, server_certfile=tmp_path / "server.der")) as source:
            await source.until_value(21.5)
        async with running(config(broker.url, plant.url, **secure, server_certfile=certfile)) as source:
            await source.until("problem")
            assert source.source.status()["values"] == 0
        (tmp_path / "password").write_text("wrong\n")
        async with running(config(broker.url, plant.url, **secure)) as source:
            await source.until("problem")
        async with running(config(broker.url, plant.url)) as source:  # without any security
            await source.until("problem")


async def test_a_certificate_that_is_none_is_a_mistake_of_the_configuration(broker: Gateway, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("-----BEGIN nonsense")
    files = {"certfile": tmp_path / "bad.pem", "keyfile": tmp_path / "bad.pem"}
    source = OpcuaSource(config(broker.url, "opc.tcp://127.0.0.1:1", security_policy="Basic256Sha256", **files))
    with pytest.raises(ConfigError, match=r"sources.plc.certfile: cannot be used"):
        await asyncio.wait_for(source.run(lambda: None), WAIT)
    with pytest.raises(ConfigError, match=r"sources.plc.keyfile.*none: cannot be read"):
        OpcuaSource(config(broker.url, "opc.tcp://127.0.0.1:1", keyfile=tmp_path / "none"))


async def test_it_is_read_once_and_browsed_for_people() -> None:
    async with opcua_server(free_port()) as plant:
        source = OpcuaSource(config("mqtt://127.0.0.1", plant.url, nodes=(*NODES, ("ghost", "ns=2;s=ghost"))))
        readings = await source.read_once()
        assert [(one.name, one.message["value"], one.message["status"]) for one in readings] == [
            ("temperature", 21.5, "Good"),
            ("running", True, "Good"),
            ("ghost", None, "BadNodeIdUnknown"),
        ]
        assert ("ns=2;s=temperature", "Variable", "temperature") in await source.browse(None)


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (2**63, 2**63),
        (float("nan"), None),
        (float("inf"), None),
        (b"\x00\xff", "AP8="),
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05Z"),
        ([1, [2.5, float("nan")]], [1, [2.5, None]]),
        (Colour.RED, 1),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (ua.LocalizedText("heiß"), "heiß"),
        (ua.QualifiedName("q", 2), "q"),
        (ua.NodeId.from_string("ns=2;s=x"), "ns=2;s=x"),
        (ua.Range(Low=1.0, High=2.0), {"Low": 1.0, "High": 2.0}),
    ],
)
def test_values_as_json(value: object, expected: object) -> None:
    assert to_json(value) == expected
    json.dumps(to_json(value), allow_nan=False)


def test_a_value_without_times_has_ours() -> None:
    now = round(time.time() * 1000)
    data = SimpleNamespace(Value=None, StatusCode=None, SourceTimestamp=None, ServerTimestamp=None)
    assert message(data, now) == {"value": None, "status": "Good", "time": now}


def test_without_its_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncua", None)
    with pytest.raises(ConfigError, match=r"sources.plc: needs the library asyncua.*lockgate\[opcua\]"):
        build(config("mqtt://localhost", "opc.tcp://localhost"))
