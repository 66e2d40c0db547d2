"""`lockgate sources` and what other commands say of sources."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from lockgate.cli import main
from tests.support.modbus import misbehaving, modbus_server
from tests.support.opcua import opcua_server
from tests.support.peers import free_port

MODBUS = """\
[sources.meters]
type = "modbus"
[sources.meters.devices.main]
address = "127.0.0.1:{port}"
timeout = "2s"
[sources.meters.groups.power]
interval = "1s"
[sources.meters.groups.power.values]
volts = {{ holding = 0, scale = 0.1 }}
serial = {{ holding = 17, type = "string", length = 4 }}
running = {{ coil = 0 }}
[sources.meters.groups.bad.values]
none = {{ holding = 45 }}
"""
OPCUA = """\
[sources.plc]
type = "opcua"
endpoint = "{url}"
timeout = "2s"
[sources.plc.nodes]
temperature = "ns=2;s=temperature"
ghost = "ns=2;s=ghost"
"""
HTTP = """\
[sources.push]
type = "http"
listen = "0.0.0.0:8081"
[sources.push.routes.r]
path = "/r/{device}"
topic = "push/{device}"
[sources.push.clients.plant]
secret_file = "secret"
"""


async def say(path: Path, *words: str) -> int:
    """Run a command in a thread: a server that it talks to runs in our loop."""
    return await asyncio.to_thread(main, [words[0], "-c", str(path), *words[1:]])


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "lockgate.toml"


async def test_modbus_is_read_once_with_the_registers_as_they_came(
    toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    toml.write_text(MODBUS.format(port=port))
    async with modbus_server(port):
        assert await say(toml, "sources", "test") == 1
    out = capsys.readouterr().out
    rows = [line.split(maxsplit=2) for line in out.splitlines()[1:4]]
    assert [(row[0], row[1]) for row in rows] == [("main", "power")] * 3
    assert "volts" in out
    assert "08fd" in out
    assert "230.1" in out
    assert '"meter-7"' in out
    assert "main bad: holding 45: exception 2, illegal data address" in out
    assert "power: every 1s to modbus/main/power" in out


async def test_each_value_as_json(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    toml.write_text(MODBUS.format(port=port).partition("[sources.meters.groups.bad")[0])
    async with modbus_server(port):
        assert await say(toml, "sources", "test", "meters", "--json") == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["name"], one["value"]) for one in said] == [("volts", 230.1), ("serial", "meter-7"), ("running", True)]
    assert said[0]["topic"] == "modbus/main/power"


async def test_a_device_that_is_away_is_told_once(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text(MODBUS.format(port=free_port()))
    assert await say(toml, "sources", "test") == 1
    out = capsys.readouterr().out
    assert out.count("cannot be reached") == 1


async def test_opcua_is_read_once_and_browsed(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with opcua_server(free_port()) as plant:
        toml.write_text(OPCUA.format(url=plant.url))
        assert await say(toml, "sources", "test", "plc") == 1
        out = capsys.readouterr().out
        assert "temperature  ns=2;s=temperature  Good" in out
        assert "ghost: BadNodeIdUnknown" in out
        assert await say(toml, "sources", "browse", "plc") == 0
        assert "ns=2;s=running      Variable  running" in capsys.readouterr().out
        assert await say(toml, "sources", "browse", "plc", "ns=2;s=nowhere") == 1
        assert "node id" in capsys.readouterr().out
    assert await say(toml, "sources", "browse", "plc") == 1


async def test_a_server_that_says_nothing_is_given_up(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with misbehaving(silent) as port:
        toml.write_text(OPCUA.format(url=f"opc.tcp://127.0.0.1:{port}").replace("2s", "300ms"))
        assert await say(toml, "sources", "test") == 1
    assert "no answer in time" in capsys.readouterr().out


async def test_http_is_shown_as_the_line_that_pushes(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text(HTTP)
    assert await say(toml, "sources", "test") == 0
    out = capsys.readouterr().out
    assert "curl http://127.0.0.1:8081/r/{device} -H 'Content-Type: application/json'" in out
    assert "Authorization: Bearer" in out


async def test_names_that_are_wrong(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text(HTTP)
    assert await say(toml, "sources", "test", "pish") == 3
    assert "there is no [sources.pish]. Did you mean push?" in capsys.readouterr().err
    assert await say(toml, "sources", "browse", "push") == 3
    assert await say(toml, "run", "source:pish") == 3
    assert "'source:pish' is no service. Did you mean source:push?" in capsys.readouterr().err
    toml.write_text("")
    assert await say(toml, "sources", "test") == 3


def test_check_knows_sources(toml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text(HTTP + MODBUS.format(port=502))
    assert main(["check", str(toml)]) == 0
    out = capsys.readouterr().out
    assert "sources    push (http), meters (modbus)" in out
    assert "Warning: sources.push.clients.plant.secret_file: " in out
    assert "Warning: sources.push: its clients send their secrets as they are: there is no certfile." in out
    for name in [name for name in sys.modules if name.partition(".")[0] == "pymodbus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pymodbus", None)
    assert main(["check", str(toml)]) == 3
    assert "sources.meters: needs the library pymodbus" in capsys.readouterr().err


def test_status_shows_each_source(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text(HTTP)
    assert main(["status", "-c", str(toml)]) == 1
    assert "source:push  down" in capsys.readouterr().out
