"""`lockgate up`, with and without the demo: the whole gateway as processes, from a PUBLISH to what a sink received."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from lockgate.client.client import Client
from lockgate.config.model import ConnectionConfig
from lockgate.telemetry import health

TOML = """\
[gateway]
id = "g"
data_dir = "data"
[broker]
mosquitto_conf = "mosquitto.conf"
[processor]
url = "mqtt://127.0.0.1:{port}"
[schemas.reading]
topics = ["sensors/#"]
fields = {{ value = "real" }}
[rules.alarm]
schema = "reading"
class = "alarm"
sql = "SELECT 'alarm/' || :topic AS topic, :value AS value WHERE :value > 90"
[sinks.disk]
type = "file"
path = "out.jsonl"
"""


class Gateway:
    """A `lockgate up` and what it prints."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.log = folder / "output"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lockgate", "up", *arguments], stdout=output, stderr=output
            )

    def answer(self, name: str) -> dict[str, object] | None:
        return health.ask(self.folder / "data" / "run" / f"{name}.sock")

    def pid(self, name: str) -> int:
        answer = self.answer(name)
        assert answer is not None
        assert isinstance(answer["pid"], int)
        return answer["pid"]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Other processes set no event of ours: look until `holds`, or fail with all that was printed."""
        try:
            async with asyncio.timeout(40):
                while not await asyncio.to_thread(holds):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(self.log.read_text()) from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Seconds until everything had ended."""
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - started

    def close(self) -> None:
        if self.process.poll() is None:
            self.stop()


@pytest.fixture
def gateways() -> Iterator[list[Gateway]]:
    started: list[Gateway] = []
    yield started
    for gateway in started:
        gateway.close()


@pytest.fixture
def folder(tmp_path: Path, unused_tcp_port: int) -> Path:
    (tmp_path / "mosquitto.conf").write_text(f"listener {unused_tcp_port} 127.0.0.1\nallow_anonymous true\n")
    (tmp_path / "lockgate.toml").write_text(TOML.format(port=unused_tcp_port))
    return tmp_path


@pytest.fixture
async def device(unused_tcp_port: int) -> AsyncIterator[Client]:
    client = Client(ConnectionConfig(url=f"mqtt://127.0.0.1:{unused_tcp_port}", client_id="d"), retry_max_seconds=1.0)
    yield client
    await client.disconnect()


def delivered(folder: Path) -> list[str]:
    path = folder / "out.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def books_close(folder: Path) -> bool:
    command = [sys.executable, "-m", "lockgate", "ledger", "-c", str(folder / "lockgate.toml")]
    return subprocess.run(command, capture_output=True).returncode == 0


async def test_a_message_reaches_the_sink_and_goes_on_after_any_kill_and_restart(
    folder: Path, device: Client, gateways: list[Gateway]
) -> None:
    gateway = Gateway(folder, "-c", str(folder / "lockgate.toml"))
    gateways.append(gateway)
    await gateway.until(lambda: gateway.answer("processor") is not None and gateway.answer("forwarder") is not None)
    await device.connect()
    await device.publish("sensors/a", b'{"value": 91}', qos=1)
    await gateway.until(lambda: len(delivered(folder)) == 1)

    for name in ("processor", "forwarder", "broker"):
        before = {one: gateway.pid(one) for one in ("broker", "processor", "forwarder")}
        os.kill(before[name], signal.SIGKILL)
        await gateway.until(lambda name=name, old=before[name]: (gateway.answer(name) or {}).get("pid", old) != old)  # type: ignore[misc]
        assert all(gateway.pid(one) == before[one] for one in before if one != name)
    # What the broker alone held is gone with it; the processor subscribes again when it has reconnected.
    seen = len(delivered(folder))

    async def publish_until_delivered() -> None:
        while len(delivered(folder)) == seen:
            await device.publish("sensors/a", b'{"value": 92}', qos=1)
            await asyncio.sleep(0.1)

    await asyncio.wait_for(publish_until_delivered(), 30)
    assert gateway.stop() < 4  # 3 s, and what a loaded machine adds
    assert gateway.process.returncode == 0
    assert gateway.answer("broker") is None
    assert books_close(folder)

    count = len(delivered(folder))
    again = Gateway(folder, "-c", str(folder / "lockgate.toml"))
    gateways.append(again)
    await again.until(lambda: again.answer("processor") is not None and again.answer("forwarder") is not None)
    await again.until(lambda: len(delivered(folder)) >= count)
    ids = [json.loads(line)["id"] for line in delivered(folder)]
    assert all(one.startswith("g/") for one in ids)
    assert again.stop(signal.SIGINT) < 4
    assert books_close(folder)


async def test_sighup_changes_the_rules_one_by_one(folder: Path, device: Client, gateways: list[Gateway]) -> None:
    toml = folder / "lockgate.toml"
    gateway = Gateway(folder, "-c", str(toml))
    gateways.append(gateway)
    await gateway.until(lambda: gateway.answer("processor") is not None and gateway.answer("forwarder") is not None)
    await device.connect()
    await device.publish("sensors/a", b'{"value": 50}', qos=1)
    before = gateway.pid("processor")
    broken = '[rules.new]\nschema = "reading"\nclass = "alarm"\ntopic = "x"\nsql = "SELECT :valu AS v"\n'
    toml.write_text(toml.read_text().replace("> 90", "> 40") + broken)
    gateway.process.send_signal(signal.SIGHUP)

    def rules() -> dict[str, dict[str, object]]:
        status = (gateway.answer("processor") or {}).get("status")
        return status["rules"] if isinstance(status, dict) else {}

    await gateway.until(lambda: "new" in rules())
    assert "no such parameter: :valu" in str(rules()["new"]["rejected"])
    await device.publish("sensors/a", b'{"value": 51}', qos=1)
    await gateway.until(lambda: len(delivered(folder)) == 1)
    assert json.loads(delivered(folder)[0])["payload"] == {"value": 51.0}
    assert gateway.pid("processor") == before
    gateway.stop()
    assert books_close(folder)


async def test_nothing_is_left_running_when_the_parent_is_killed(folder: Path, gateways: list[Gateway]) -> None:
    gateway = Gateway(folder, "-c", str(folder / "lockgate.toml"))
    gateways.append(gateway)
    names = ("broker", "processor", "forwarder")
    await gateway.until(lambda: all(gateway.answer(name) for name in names))
    gateway.process.kill()
    gateway.process.wait()
    await gateway.until(lambda: not any(gateway.answer(name) for name in names))


async def test_the_demo_brings_readings_and_a_guests_message_to_the_cloud(
    folder: Path, device: Client, gateways: list[Gateway], unused_tcp_port_factory: Callable[[], int]
) -> None:
    pytest.importorskip("psutil")
    toml = (folder / "lockgate.toml").read_text()
    cloud = f'[sinks.cloud]\ntype = "http"\nurl = "http://127.0.0.1:{unused_tcp_port_factory()}/messages"\n'
    (folder / "lockgate.toml").write_text(toml + cloud)
    gateway = Gateway(folder, "--demo", "--dir", str(folder))
    gateways.append(gateway)
    await gateway.until(lambda: gateway.answer("demo-device") is not None)
    await device.connect()
    await device.publish("sensors/guest", b'{"value": 91}', qos=1)

    def kept() -> int:
        answer = gateway.answer("demo-cloud")
        status = answer["status"] if answer else {}
        assert isinstance(status, dict)
        return int(status.get("kept", 0))

    await gateway.until(lambda: kept() >= 1)
    await gateway.until(lambda: "cloud received alarm/sensors/guest" in gateway.log.read_text())
    assert "books close" in gateway.log.read_text()
    assert "lets in everybody" in gateway.log.read_text()
    assert gateway.stop(signal.SIGINT) < 4
    assert gateway.process.returncode == 0
