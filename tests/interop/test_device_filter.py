"""paho-mqtt and Debian's clients through the edge's filter, to Debian's mosquitto: what a policy does to real peers."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from lockgate.access import hashes
from lockgate.access.password_file import PasswordFile
from lockgate.tunnel.device_policy import DevicePolicy, Peer
from lockgate.tunnel.devices import DeviceFilter, State
from tests.support.peers import Mosquitto, program

pytestmark = pytest.mark.peers
WAIT = 10

POLICY = DevicePolicy(
    passwords=PasswordFile({"anna": hashes.make(b"right", "sha512")}),
    publish=("d/%u/#",),
    subscribe=("d/%u/#",),
    max_payload=1000,
    max_qos=1,
    retain=False,
)


class Edge:
    """A port whose devices pass the filter on their way to a broker."""

    def __init__(self, broker_port: int, policy: DevicePolicy) -> None:
        self._broker_port = broker_port
        self._policy = policy
        self.dialled = 0  # connections to the broker
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,))
        self._thread.start()
        assert ready.wait(WAIT)

    def _run(self, ready: threading.Event) -> None:
        self._loop.run_until_complete(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._device, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for one in open_ones:
            one.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT)

    async def _device(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        device = DeviceFilter(Peer("127.0.0.1"), self._policy, time.monotonic())
        up: asyncio.StreamWriter | None = None
        back: asyncio.Task[None] | None = None
        with contextlib.suppress(ConnectionError):
            while device.state is not State.CLOSED and (data := await reader.read(65_536)):
                passed = device.receive(data)
                if device.state is State.LOGIN:
                    passed = device.admit(device.log_in(time.time()))
                    if passed:
                        down, up = await asyncio.open_connection("127.0.0.1", self._broker_port)
                        self.dialled += 1
                        back = asyncio.create_task(self._back(device, down, writer))
                if up is not None:
                    up.write(passed)
                writer.write(device.answer())
        for one in (writer, up):
            if one is not None:
                one.close()
        if back is not None:
            await back

    async def _back(self, device: DeviceFilter, down: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await down.read(65_536):
                writer.write(device.from_broker(data))
        writer.close()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    mosquitto = Mosquitto(tmp_path)
    edge = Edge(mosquitto.port, POLICY)
    yield edge
    edge.stop()
    mosquitto.stop()


class Device:
    """A paho client whose callbacks land in a queue."""

    def __init__(self, port: int, protocol: int, password: str = "right") -> None:
        self.events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="c1", protocol=protocol)  # type: ignore[arg-type]
        self.client.username_pw_set("anna", password)
        self.client.on_connect = lambda _c, _d, _flags, reason, _p: self.events.put(("connect", reason))
        self.client.on_subscribe = lambda _c, _d, _mid, reasons, _p: self.events.put(("subscribe", reasons))
        self.client.on_publish = lambda _c, _d, _mid, reason, _p: self.events.put(("publish", reason))
        self.client.on_message = lambda _c, _d, message: self.events.put(("message", message.payload))
        self.client.on_disconnect = lambda _c, _d, _flags, reason, _p: self.events.put(("disconnect", reason))
        self.client.connect("127.0.0.1", port, 30)
        self.client.loop_start()

    def expect(self, name: str) -> Any:
        kind, value = self.events.get(timeout=WAIT)
        assert kind == name
        return value

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.mark.parametrize("protocol", [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5])
def test_a_device_that_keeps_to_its_policy_notices_nothing(edge: Edge, protocol: int) -> None:
    device = Device(edge.port, protocol)
    assert device.expect("connect") == "Success"
    device.client.subscribe("d/anna/#", 1)
    device.expect("subscribe")
    payloads = [bytes([number]) * number for number in range(200)]
    for payload in payloads:
        device.client.publish("d/anna/x", payload, 1)
    got: list[bytes] = []
    while len(got) < len(payloads):
        kind, value = device.events.get(timeout=WAIT)
        if kind == "message":
            got.append(value)
        else:
            assert (kind, value) == ("publish", "Success")
    assert got == payloads
    device.stop()


@pytest.mark.parametrize("protocol", [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5])
def test_a_wrong_password_never_reaches_the_broker(edge: Edge, protocol: int) -> None:
    device = Device(edge.port, protocol, "wrong")
    assert str(device.expect("connect")) in ("Bad user name or password", "Not authorized")
    device.stop()
    assert edge.dialled == 0


def test_v5_hears_what_it_may_not_and_goes_on(edge: Edge) -> None:
    device = Device(edge.port, paho.MQTTv5)
    device.expect("connect")
    device.client.subscribe([("#", 0), ("d/anna/#", 1), ("other", 0)])
    assert [str(one) for one in device.expect("subscribe")] == ["Not authorized", "Granted QoS 1", "Not authorized"]
    device.client.publish("other", b"", 1)
    assert device.expect("publish") == "Not authorized"
    device.client.publish("d/anna/x", b"x" * 1001, 1)
    assert device.expect("publish") == "Not authorized"
    device.client.publish("d/anna/x", b"good", 1)
    assert {device.events.get(timeout=WAIT)[0] for _ in range(2)} == {"publish", "message"}
    device.stop()


def test_v3_1_1_hears_0x80_and_is_closed_for_a_publish(edge: Edge) -> None:
    device = Device(edge.port, paho.MQTTv311)
    device.expect("connect")
    device.client.subscribe([("#", 0), ("d/anna/#", 2)])
    assert [one.value for one in device.expect("subscribe")] == [0x80, 1]
    device.client.publish("other", b"", 0)
    kinds = [device.events.get(timeout=WAIT)[0] for _ in range(2)]
    assert kinds == ["publish", "disconnect"]
    device.client.loop_stop()


def test_debians_clients_see_the_same(edge: Edge) -> None:
    command = [program("mosquitto_pub"), "-p", str(edge.port), "-u", "anna", "-P", "right", "-V", "5", "-q", "1"]
    for topic, said in (("d/anna/x", b""), ("other", b"Warning: Publish 1 failed: Not authorized.\n")):
        done = subprocess.run([*command, "-t", topic, "-m", "x"], capture_output=True, timeout=WAIT, check=False)
        assert (done.returncode, done.stderr) == (0, said), done
    command[command.index("right")] = "wrong"
    done = subprocess.run([*command, "-t", "d/anna/x", "-m", "x"], capture_output=True, timeout=WAIT, check=False)
    assert done.returncode != 0
