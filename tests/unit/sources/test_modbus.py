"""The Modbus source, with pymodbus's own server, servers that misbehave, and the real broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pymodbus.constants import ExcCodes
from pymodbus.framer import FramerType

from lockgate.client import Client, Message
from lockgate.config.errors import ConfigError
from lockgate.config.model import (
    ConnectionConfig,
    ModbusDeviceConfig,
    ModbusGroupConfig,
    ModbusSourceConfig,
    ModbusValueConfig,
)
from lockgate.sources import build
from lockgate.sources.modbus import ModbusSource
from tests.support.gateway import Gateway
from tests.support.modbus import meter, misbehaving, modbus_server, request, response
from tests.support.peers import free_port
from tests.support.sources import WAIT, Heard, heard


def group(name: str = "all", **more: Any) -> ModbusGroupConfig:
    values = (
        ModbusValueConfig(name="volts", holding=0, scale=0.1),
        ModbusValueConfig(name="float", holding=3, type="float32"),
        ModbusValueConfig(name="serial", holding=17, type="string", length=4),
        ModbusValueConfig(name="running", coil=0),
        ModbusValueConfig(name="alarm", discrete=1),
        ModbusValueConfig(name="in", input=3),
    )
    return ModbusGroupConfig(**({"name": name, "values": values} | more))


ONE = (ModbusValueConfig(name="v", holding=0),)
EXPECTED = {"volts": 230.1, "float": 230.1, "serial": "meter-7", "running": True, "alarm": False, "in": 14}


def device(port: int, name: str = "main", **more: Any) -> ModbusDeviceConfig:
    said: dict[str, Any] = {"name": name, "address": ("127.0.0.1", port), "timeout_seconds": 5.0}
    return ModbusDeviceConfig(**(said | more))


def config(url: str, *devices: ModbusDeviceConfig, **more: Any) -> ModbusSourceConfig:
    defaults: dict[str, Any] = {
        "groups": (group(),), "interval_seconds": 0.1, "retry_min_seconds": 0.05, "retry_max_seconds": 0.2,
    }  # fmt: skip
    connection = ConnectionConfig(url=url, client_id="meters")
    return ModbusSourceConfig(name="meters", connection=connection, devices=devices, **(defaults | more))


class Running:
    """A source that runs, and what arrives of it."""

    def __init__(self, source: ModbusSource, heard: Heard) -> None:
        self.source = source
        self.next = heard.next
        self._heard = heard

    async def values(self, topic: str = "modbus/main/all") -> dict[str, Any]:
        said: dict[str, Any] = json.loads((await self.next(topic)).payload)
        assert abs(time.time() * 1000 - said.pop("time")) < WAIT * 1000
        return said

    async def state(self, expected: bytes, name: str = "main") -> None:
        await self._heard.state(expected, name)

    def device(self, name: str = "main") -> dict[str, Any]:
        devices: Any = self.source.status()["devices"]
        said: dict[str, Any] = devices[name]
        return said

    async def until_count(self, figure: str, count: int) -> None:
        async with asyncio.timeout(WAIT):
            while self.device()[figure] < count:
                await asyncio.sleep(0.01)

    async def until(self, problem: str, name: str = "main") -> None:
        async with asyncio.timeout(WAIT):
            while problem not in str(self.device(name)):
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(config: ModbusSourceConfig) -> AsyncIterator[Running]:
    source = ModbusSource(config)
    async with heard(source, config, "modbus/#") as what:
        yield Running(source, what)


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["tcp", "rtu"])
async def test_a_group_becomes_a_message_with_its_time_and_the_device_is_online(broker: Gateway, framing: str) -> None:
    port = free_port()
    framer = FramerType.RTU if framing == "rtu" else FramerType.SOCKET
    async with (
        modbus_server(port, meter(7), framer=framer),
        running(config(broker.url, device(port, unit=7, framing=framing))) as source,
    ):
        assert await source.values() == EXPECTED
        await source.values()
        await source.state(b"online")
        assert source.device()["reads"] >= 2
        assert source.source.status()["error"] is None


async def test_groups_have_their_intervals_and_devices_of_one_address_share_a_connection(broker: Gateway) -> None:
    port = free_port()
    often = group("often", values=ONE, devices=("a",), interval_seconds=0.05)
    seldom = group("seldom", values=ONE, interval_seconds=3600.0)
    two = config(
        broker.url, device(port, "a", unit=1), device(port, "b", unit=2), groups=(often, seldom), interval_seconds=60.0
    )
    async with modbus_server(port, meter(1), meter(2)) as server, running(two) as source:
        for topic in ("modbus/a/often", "modbus/b/seldom", "modbus/a/often", "modbus/a/often"):
            assert await source.values(topic) == {"v": 2301}
        assert len(server.active_connections) == 1
        assert source.device("b")["reads"] == 1
        assert source.device("a")["reads"] >= 4


async def test_a_hole_between_two_values_is_asked_around_once_the_device_refuses_it(
    broker: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    port = free_port()
    asked: list[tuple[int, int]] = []

    async def action(_code: int, _start: int, address: int, count: int, *_: object) -> None:
        asked.append((address, count))

    values = (ModbusValueConfig(name="a", holding=39), ModbusValueConfig(name="b", holding=50))
    wide = config(broker.url, device(port), groups=(group(values=values, max_gap=20),))
    async with modbus_server(port, meter(1, action)), running(wide) as source:
        for _ in range(3):
            assert await source.values() == {"a": 0, "b": 7}
        assert asked[:4] == [(39, 1), (50, 1)] * 2  # the request across the hole never came so far
        assert source.device()["failed"] == 0
    assert caplog.text.count("takes no gaps") == 1


# --- devices that fail ------------------------------------------------------------------------------------------------


async def test_an_exception_is_told_once_and_the_other_groups_go_on(
    broker: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    answer: list[ExcCodes | None] = [None]

    async def action(_code: int, _start: int, address: int, *_: object) -> ExcCodes | None:
        return answer[0] if address == 50 else None

    good, bad = group("good", values=ONE), group("bad", values=(ModbusValueConfig(name="x", holding=50),))
    async with (
        modbus_server(port, meter(1, action)),
        running(config(broker.url, device(port), groups=(good, bad))) as source,
    ):
        assert await source.values("modbus/main/bad") == {"x": 7}
        answer[0] = ExcCodes.DEVICE_BUSY
        await source.until("holding 50: exception 6, server device busy")
        for _ in range(3):
            assert await source.values("modbus/main/good") == {"v": 2301}
        await source.until_count("failed", 2)
        assert source.device()["online"] is True
        assert caplog.text.count("exception 6") == 1
        answer[0] = None
        assert await source.values("modbus/main/bad") == {"x": 7}
        assert "groups" not in source.device()


async def test_a_device_that_hangs_holds_up_no_other_and_is_tried_again(
    broker: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    hung = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(12)
        hung.set()
        await reader.read()

    async with misbehaving(hang) as deaf, modbus_server(port):
        both = config(broker.url, device(port), device(deaf, "deaf", timeout_seconds=0.3))
        async with running(both) as source:
            await asyncio.wait_for(hung.wait(), WAIT)
            begun = time.monotonic()
            for _ in range(3):
                assert await source.values() == EXPECTED
            assert time.monotonic() - begun < 5  # ten intervals would do
            await source.state(b"offline", "deaf")
            hung.clear()
            await asyncio.wait_for(hung.wait(), WAIT)
            assert "no answer within 0.3 seconds" in str(source.device("deaf")["error"])
            assert source.device()["failed"] == 0
    assert caplog.text.count("device deaf is away") == 1


async def test_a_unit_that_is_silent_behind_a_gateway_leaves_its_neighbour_most_of_the_time(broker: Gateway) -> None:
    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            transaction, unit, function, _, _ = await request(reader)
            if unit == 1:
                writer.write(response(transaction, unit, function, 7))

    async with misbehaving(gateway) as port:
        units = [device(port, name, unit=unit, timeout_seconds=0.1) for name, unit in (("there", 1), ("silent", 2))]
        both = config(broker.url, *units, groups=(group(values=ONE),), interval_seconds=0.05, retry_max_seconds=60.0)
        async with running(both) as source:
            for _ in range(20):
                assert await source.values("modbus/there/all") == {"v": 7}
            await source.until("no answer within 0.1 seconds", "silent")
            assert source.device("there")["failed"] == 0
            assert source.device("silent")["failed"] < 20


async def test_a_device_that_comes_back_is_online_again(broker: Gateway) -> None:
    port = free_port()
    async with running(config(broker.url, device(port))) as source:
        await source.state(b"offline")
        assert "cannot be reached" in source.device()["error"]
        async with modbus_server(port):
            assert await source.values() == EXPECTED
            await source.state(b"online")
            assert "error" not in source.device()
        await source.state(b"offline")
        async with modbus_server(port):
            assert await source.values() == EXPECTED


async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        transaction, unit, function, _, _ = await request(reader)
        writer.write(response(transaction, unit, function, 1))


async def other_transaction(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        transaction, unit, function, _, count = await request(reader)
        writer.write(response(transaction + 1, unit, function, *range(count)))


async def other_unit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        transaction, unit, function, _, count = await request(reader)
        writer.write(response(transaction, unit + 1, function, *range(count)))


async def other_function(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        transaction, unit, function, _, count = await request(reader)
        writer.write(response(transaction, unit, 7 - function, *range(count)))


async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    transaction, unit, function, _, count = await request(reader)
    writer.write(response(transaction, unit, function, *range(count))[:-1])
    await writer.drain()
    await reader.read()


async def lying_count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        transaction, unit, function, _, count = await request(reader)
        answer = bytearray(response(transaction, unit, function, *range(count)))
        answer[8] = 250  # bytes that follow
        writer.write(answer)


async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)


async def text(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 welcome\r\n" * 1000)
    await reader.read()


@pytest.mark.parametrize(
    "talk",
    [short, other_transaction, other_unit, other_function, half, lying_count, closing, text],
    ids=lambda one: one.__name__,
)
async def test_what_is_no_answer_is_never_a_value(broker: Gateway, talk: Any) -> None:
    values = (ModbusValueConfig(name="a", holding=0, type="int32"),)
    async with misbehaving(talk) as port:
        wrong = config(broker.url, device(port, timeout_seconds=0.2), groups=(group(values=values),))
        async with running(wrong) as source:
            await source.until_count("failed", 3)
            assert source.device()["reads"] == 0
            assert source.device()["online"] is False


async def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(broker: Gateway) -> None:
    asked = 0

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while True:
            transaction, unit, function, _, _ = await request(reader)
            asked += 1
            if asked == 1:
                await asyncio.sleep(0.4)  # what it does meanwhile is of no matter: it is late
            writer.write(response(transaction, unit, function, asked))

    async with misbehaving(late) as port:
        slow = config(broker.url, device(port, timeout_seconds=0.2), groups=(group(values=ONE),))
        async with running(slow) as source:
            assert await source.values() == {"v": 2}
            assert await source.values() == {"v": 3}


# --- the broker is away -----------------------------------------------------------------------------------------------


async def test_what_was_read_while_the_broker_was_away_comes_with_its_time_and_what_had_no_room_is_counted(
    tmp_path: Path,
) -> None:
    port = free_port()
    broker = Gateway(tmp_path)
    away = config(broker.url, device(port), groups=(group(values=ONE),), interval_seconds=0.05, queue_messages=5)
    source = ModbusSource(away)
    async with modbus_server(port):
        task = asyncio.create_task(source.run(lambda: None))
        async with asyncio.timeout(WAIT):
            while not source.status()["dropped"]:
                await asyncio.sleep(0.01)
        assert source.status()["pending"] == 5
        before = time.time() * 1000
        with broker.running("broker"):
            async with Client(ConnectionConfig(url=broker.url, client_id="ear"), clean_start=True) as client:
                await client.subscribe([("modbus/#", 1)])
                times = [json.loads((await anext(client.messages())).payload)["time"] for _ in range(8)]
            assert times == sorted(times)
            status = source.status()
            assert isinstance(status["dropped"], int)
            read = sum(device.status()["reads"] for device in source.devices)  # type: ignore[misc]
            assert isinstance(status["published"], int)
            assert isinstance(status["pending"], int)
            assert read == status["dropped"] + status["published"] + status["pending"]
            assert before > 0
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, WAIT)


async def test_the_states_are_told_again_to_a_broker_that_forgot_them(broker: Gateway) -> None:
    port = free_port()
    async with modbus_server(port):
        async with running(config(broker.url, device(port))) as source:
            await source.state(b"online")
            broker.kill("broker")
            broker.start("broker")
            await source.state(b"online")
        async with Client(ConnectionConfig(url=broker.url, client_id="late"), clean_start=True) as client:
            await client.subscribe([("sources/#", 1)])
            said = {message.topic: message.payload async for message in _take(client, 2)}
        assert said == {"sources/meters/status": b"offline", "sources/meters/status/main": b"offline"}


async def _take(client: Client, count: int) -> AsyncIterator[Message]:
    messages = client.messages()
    for _ in range(count):
        yield await asyncio.wait_for(anext(messages), WAIT)


# --- the library ------------------------------------------------------------------------------------------------------


def test_without_its_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pymodbus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pymodbus", None)
    with pytest.raises(ConfigError, match=r"sources.meters: needs the library pymodbus.*lockgate\[modbus\]"):
        build(config("mqtt://localhost", device(502)))


def test_a_source_without_a_status_topic_has_no_will() -> None:
    assert replace(config("mqtt://localhost"), status_topic="").status_name == ""
