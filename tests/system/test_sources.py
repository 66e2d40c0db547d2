"""Sources as processes under `lockgate up`: pushed and read values reach a sink, and any source may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.debian import receive
from tests.support.gateway import Gateway as Services
from tests.support.peers import Mosquitto, free_port, program, wait_for_port
from tests.system.test_up import Gateway, books_close, delivered

NAMES = ("source:push", "source:meters", "source:plc")
TOML = """\
[gateway]
id = "g"
data_dir = "data"
[broker]
mosquitto_conf = "mosquitto.conf"
[processor]
url = "mqtt://127.0.0.1:{port}"

[sources.push]
type = "http"
url = "mqtt://127.0.0.1:{port}"
listen = "127.0.0.1:{http}"
[sources.push.routes.readings]
path = "/readings/{{device}}"
topic = "sensors/push/{{device}}"
[sources.push.clients.plant]
secret_file = "token"

[sources.meters]
type = "modbus"
url = "mqtt://127.0.0.1:{port}"
topic = "sensors/{{device}}/{{group}}"
interval = "200ms"
[sources.meters.devices.main]
address = "127.0.0.1:{modbus}"
[sources.meters.groups.power.values]
value = {{ holding = 0, scale = 0.1 }}

[sources.plc]
type = "opcua"
url = "mqtt://127.0.0.1:{port}"
endpoint = "opc.tcp://127.0.0.1:{opcua}/plant"
topic = "sensors/plc/{{node}}"
interval = "100ms"
[sources.plc.nodes]
temperature = "ns=2;s=temperature"

[schemas.reading]
topics = ["sensors/#"]
fields = {{ value = "real" }}
[rules.all]
schema = "reading"
class = "telemetry"
sql = "SELECT :topic AS topic, :value AS value"
[sinks.disk]
type = "file"
path = "out.jsonl"
"""


class Devices:
    """A Modbus meter and an OPC UA server, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.ports = {"modbus": free_port(), "opcua": free_port()}
        self._log = folder / "devices"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Devices:
        for kind, port in self.ports.items():
            with self._log.open("ab") as log:
                command = [sys.executable, "-m", f"tests.support.{kind}", str(port)]
                process = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
            self._processes.append(process)
            wait_for_port(port, process, self._log, 30)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def gateways() -> Iterator[list[Gateway]]:
    started: list[Gateway] = []
    yield started
    for gateway in started:
        gateway.close()


def push(port: int, value: float, token: str = "s3cret") -> int:
    """Push a reading; gives the status, 0 where nobody answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/readings/d1",
        json.dumps({"value": value}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def topics(folder: Path, after: int = 0) -> set[str]:
    return {json.loads(line)["topic"] for line in delivered(folder)[after:]}


async def test_what_sources_say_reaches_the_sink_and_each_may_be_killed(
    tmp_path: Path, gateways: list[Gateway]
) -> None:
    port, http = free_port(), free_port()
    (tmp_path / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    (tmp_path / "token").write_text("s3cret\n")
    toml = tmp_path / "lockgate.toml"
    with Devices(tmp_path) as devices:
        toml.write_text(TOML.format(port=port, http=http, **devices.ports))
        gateway = Gateway(tmp_path, "-c", str(toml))
        gateways.append(gateway)
        await gateway.until(lambda: all(gateway.answer(name) for name in NAMES))
        await gateway.until(lambda: push(http, 21.5) == 204)
        assert push(http, 1, "wrong") == 401
        expected = {"sensors/push/d1", "sensors/main/power", "sensors/plc/temperature"}
        await gateway.until(lambda: topics(tmp_path) == expected)

        for name, topic in zip(
            NAMES, ("sensors/push/d1", "sensors/main/power", "sensors/plc/temperature"), strict=True
        ):
            before = {one: gateway.pid(one) for one in (*NAMES, "broker", "processor")}
            os.kill(before[name], signal.SIGKILL)
            await gateway.until(lambda name=name, old=before[name]: (gateway.answer(name) or {}).get("pid", old) != old)  # type: ignore[misc]
            assert all(gateway.pid(one) == before[one] for one in before if one != name)
            seen = len(delivered(tmp_path))
            await gateway.until(lambda: push(http, 22.5) == 204)
            await gateway.until(lambda seen=seen, topic=topic: topic in topics(tmp_path, seen))  # type: ignore[misc]

        shown = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "lockgate", "status", "-c", str(toml)],
            capture_output=True,
            text=True,
        )
        assert shown.returncode == 0, shown.stdout
        assert all(name in shown.stdout for name in NAMES)
        assert gateway.stop() < 5
        assert gateway.process.returncode == 0
    assert books_close(tmp_path)
    assert "Traceback" not in gateway.log.read_text()


async def test_a_source_whose_library_is_missing_fails_alone(
    tmp_path: Path, gateways: list[Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, http = free_port(), free_port()
    (tmp_path / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    (tmp_path / "token").write_text("s3cret\n")
    toml = tmp_path / "lockgate.toml"
    toml.write_text(TOML.format(port=port, http=http, modbus=free_port(), opcua=free_port()))
    missing = tmp_path / "missing"  # a package that cannot be imported, before the one that could
    (missing / "pymodbus").mkdir(parents=True)
    (missing / "pymodbus" / "__init__.py").write_text("raise ImportError('as if it were not installed')\n")
    monkeypatch.setenv("PYTHONPATH", f"{missing}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"))
    gateway = Gateway(tmp_path, "-c", str(toml))
    gateways.append(gateway)
    await gateway.until(lambda: "pip install 'lockgate[modbus]'" in gateway.log.read_text())
    await gateway.until(lambda: push(http, 1) == 204)
    await gateway.until(lambda: gateway.answer("source:plc") is not None)
    assert gateway.answer("source:meters") is None


@pytest.mark.peers
def test_a_source_publishes_to_debians_mosquitto_with_a_password_and_its_will_tells_of_its_end(tmp_path: Path) -> None:
    users = tmp_path / "users"
    subprocess.run(
        [program("mosquitto_passwd"), "-b", "-c", users, "meters", "s3cret"], check=True, capture_output=True
    )
    (tmp_path / "password").write_text("s3cret\n")
    broker = Mosquitto(tmp_path, [f"password_file {users}"], anonymous=False)
    who = ("-u", "meters", "-P", "s3cret")
    try:
        with Devices(tmp_path) as devices:
            toml = TOML.format(port=broker.port, http=free_port(), **devices.ports).partition("[gateway]")[2]
            section = toml[toml.index("[sources.meters]") : toml.index("[sources.plc]")]
            section = section.replace("mqtt://", "mqtt://meters@").replace(
                'interval = "200ms"', 'interval = "200ms"\npassword_file = "password"\nmqtt_version = "3.1.1"'
            )
            services = Services(tmp_path, section)
            with services.running("source:meters"):
                assert json.loads(receive(broker.port, "sensors/main/power", *who))["value"] == 230.1
                assert receive(broker.port, "sources/meters/status", *who) == "online"
                assert receive(broker.port, "sources/meters/status/main", *who) == "online"
                services.kill("source:meters")
                said: Any = ""
                while said != "offline":  # mosquitto has heard of it when it has
                    said = receive(broker.port, "sources/meters/status", *who)
                    assert said in ("online", "offline")
    finally:
        broker.stop()
