"""What people run beside their broker: Home Assistant and Zigbee2MQTT, by the files in examples/."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.peers import free_port, program, wait_for_port

pytestmark = pytest.mark.peers
HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
WAIT = 10.0
DISCOVERIES = 20


class Installation:
    """The broker of an example in a folder that stands for `/mosquitto`; its two ports are free ones."""

    def __init__(self, example: Path, folder: Path) -> None:
        self.ports = {1883: free_port(), 9001: free_port()}
        self.passwords = folder / "config" / "passwords"
        self.log = folder / "log"
        self.conf = folder / "config" / "mosquitto.conf"
        for place in ("config", "data"):
            (folder / place).mkdir()
        for file in (example / "mosquitto").iterdir():
            text = file.read_text().replace("/mosquitto/", f"{folder}/")
            for said, port in self.ports.items():
                text = re.sub(rf"^listener {said}$", f"listener {port} 127.0.0.1", text, flags=re.M)
            if file.name == "mosquitto.conf" and os.geteuid() == 0:
                text += "user root\n"  # another one could not read the test's files
            (folder / "config" / file.name).write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def add_user(self, name: str, first: bool = False) -> None:
        """As the page of the example says, but for the password on the command line, which is the name backwards."""
        options = ["-c", "-b"] if first else ["-b"]
        command = ["mosquitto_passwd", *options, str(self.passwords), name, name[::-1]]
        subprocess.run([sys.executable, "-m", "lockgate", *command], check=True, timeout=30)

    def start(self) -> None:
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lockgate", "mosquitto", "-c", str(self.conf)], stdout=stream, stderr=stream
            )
        for port in self.ports.values():
            wait_for_port(port, self._process, self.log)

    def end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None

    def hang_up(self) -> None:
        """SIGHUP, until the new files count."""
        assert self._process is not None
        seen = len(self.log.read_text())
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + WAIT
        while "The new configuration is in use." not in self.log.read_text()[seen:]:
            assert time.monotonic() < deadline, self.log.read_text()[seen:]
            time.sleep(0.01)


class Client:
    """A client in Home Assistant's library; it logs in with its name and that backwards, unless told otherwise."""

    def __init__(
        self, port: int, name: str, *, password: str | None = None, will: tuple[str, str, bool] | None = None
    ) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"{name}-id", protocol=paho.MQTTv311)
        self.messages: queue.Queue[tuple[str, str, bool]] = queue.Queue()
        self.connected: queue.Queue[object] = queue.Queue()
        self.subscribed: queue.Queue[object] = queue.Queue()
        self.client.on_message = lambda _c, _d, one: self.messages.put((one.topic, one.payload.decode(), one.retain))
        self.client.on_connect = lambda _c, _d, _flags, reason, _p: self.connected.put(reason)
        self.client.on_subscribe = lambda _c, _d, _mid, reasons, _p: self.subscribed.put(reasons)
        if name:
            self.client.username_pw_set(name, password if password is not None else name[::-1])
        if will is not None:
            self.client.will_set(*will[:2], qos=0, retain=will[2])
        self.client.connect("127.0.0.1", port, 30)
        self.client.loop_start()
        self.reason = str(self.connected.get(timeout=WAIT))

    def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        self.client.subscribe(topic_filter, qos)
        self.subscribed.get(timeout=WAIT)

    def publish(self, topic: str, payload: str, retain: bool = False, qos: int = 1) -> None:
        self.client.publish(topic, payload, qos, retain).wait_for_publish(WAIT)

    def wait_for(self, topic: str, payload: str) -> bool:
        """Whether a message was a retained one, once it is there; others are passed over."""
        while True:
            got = self.messages.get(timeout=WAIT)
            if got[:2] == (topic, payload):
                return got[2]

    def until(self, topic: str) -> dict[str, str]:
        """Every message up to one on a topic, by topic."""
        found: dict[str, str] = {}
        while topic not in found:
            at, payload, _retained = self.messages.get(timeout=WAIT)
            found[at] = payload
        return found

    def break_off(self) -> None:
        """Be gone without a DISCONNECT."""
        self.client.loop_stop()
        sock = self.client.socket()
        assert sock is not None
        sock.close()

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self.client.disconnect()
        self.client.loop_stop()


Meet = Callable[..., Client]


@pytest.fixture
def meet() -> Iterator[Meet]:
    """Make clients that end with the test."""
    clients: list[Client] = []

    def make(*arguments: Any, **more: Any) -> Client:
        clients.append(Client(*arguments, **more))
        return clients[-1]

    yield make
    for client in clients:
        client.stop()


class Script:
    """A program of mqtt.js; its lines land in a queue."""

    def __init__(self, name: str, *arguments: str) -> None:
        if not (HERE / "node_modules" / "mqtt").is_dir():
            message = "mqtt.js is not installed (make test-peers)"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        self.process = subprocess.Popen(
            [program("node"), str(HERE / name), *arguments], stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def line(self) -> str:
        return self._lines.get(timeout=WAIT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reading.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def installed(example: str, folder: Path, *users: str) -> Installation:
    installation = Installation(EXAMPLES / example, folder)
    for name in users:
        installation.add_user(name, first=name == users[0])
    return installation


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Installation]:
    """Home Assistant's broker, which runs."""
    installation = installed("home-assistant", tmp_path, "homeassistant", "kitchen")
    installation.start()
    yield installation
    installation.end(signal.SIGTERM)


def test_home_assistant_finds_its_devices_again_after_a_power_cut(home: Installation, meet: Meet) -> None:
    port = home.ports[1883]
    here = meet(port, "homeassistant", will=("homeassistant/status", "offline", False))
    here.subscribe("homeassistant/+/+/+/config")
    kitchen = meet(port, "kitchen", will=("kitchen/status", "offline", True))
    kitchen.publish("kitchen/status", "online", retain=True)
    sent = {f"homeassistant/sensor/kitchen/s{n}/config": json.dumps({"name": f"s{n}"}) for n in range(DISCOVERIES)}
    for topic, config in sent.items():
        kitchen.publish(topic, config, retain=True)
    last = list(sent)[-1]
    assert here.until(last) == sent
    for client in (here, kitchen):
        client.stop()  # it would come back by itself, and two clients of one id disconnect each other
    home.end(signal.SIGKILL)
    home.start()
    again = meet(port, "homeassistant", will=("homeassistant/status", "offline", False))
    again.subscribe("homeassistant/+/+/+/config")
    assert dict([again.messages.get(timeout=WAIT)[:2] for _ in sent]) == sent
    again.subscribe("kitchen/status")
    assert again.wait_for("kitchen/status", "online")


def test_birth_and_will_are_told_to_who_is_there(home: Installation, meet: Meet) -> None:
    port = home.ports[1883]
    watcher = meet(port, "homeassistant")
    watcher.subscribe("homeassistant/status")
    watcher.subscribe("kitchen/status")
    kitchen = meet(port, "kitchen", will=("kitchen/status", "offline", True))
    kitchen.publish("kitchen/status", "online", retain=True)
    assert not watcher.wait_for("kitchen/status", "online")
    watcher.publish("homeassistant/status", "online", qos=0)
    assert not watcher.wait_for("homeassistant/status", "online")
    kitchen.break_off()
    assert not watcher.wait_for("kitchen/status", "offline")
    watcher.subscribe("kitchen/status")
    assert watcher.wait_for("kitchen/status", "offline")


def test_a_device_stays_in_its_own_topics(home: Installation, meet: Meet) -> None:
    port = home.ports[1883]
    here, kitchen = meet(port, "homeassistant"), meet(port, "kitchen")
    here.subscribe("#")
    kitchen.subscribe("#")
    for topic in ("bath/light/set", "homeassistant/sensor/bath/x/config", "homeassistant/status", "kitchen"):
        kitchen.publish(topic, "x")
    kitchen.publish("kitchen/end", "x")
    assert here.until("kitchen/end") == {"kitchen": "x", "kitchen/end": "x"}
    here.publish("bath/light/state", "ON")
    here.publish("kitchen/light/set", "ON")
    assert kitchen.until("kitchen/light/set") == {"kitchen": "x", "kitchen/end": "x", "kitchen/light/set": "ON"}


def test_who_has_no_good_password_is_refused(home: Installation, meet: Meet) -> None:
    port = home.ports[1883]
    for name, password in (("kitchen", "wrong"), ("nobody", "x"), ("", None)):
        assert meet(port, name, password=password).reason == "Not authorized"
    assert meet(port, "kitchen").reason == "Success"


def test_a_new_user_counts_after_a_reload_and_nobody_is_disconnected(home: Installation, meet: Meet) -> None:
    port = home.ports[1883]
    here = meet(port, "homeassistant")
    here.subscribe("bath/#")
    home.add_user("bath")
    assert meet(port, "bath").reason == "Not authorized"
    home.hang_up()
    bath = meet(port, "bath")
    assert bath.reason == "Success"
    bath.publish("bath/humidity", "60")
    here.wait_for("bath/humidity", "60")
    assert here.connected.empty(), "it had to connect anew"


@contextlib.contextmanager
def page(
    installation: Installation, name: str, password: str, topic_filter: str, unwanted: str = ""
) -> Iterator[Script]:
    """A page in a browser."""
    url = f"ws://127.0.0.1:{installation.ports[9001]}"
    script = Script("display.cjs", url, name, password, topic_filter, unwanted)
    try:
        yield script
    finally:
        script.kill()


def test_a_page_in_a_browser_comes_in_by_websocket(home: Installation, meet: Meet) -> None:
    kitchen = meet(home.ports[1883], "kitchen")
    kitchen.publish("kitchen/status", "online", retain=True)
    with page(home, "homeassistant", "homeassistant"[::-1], "kitchen/#") as display:
        assert sorted(json.loads(display.line()) for _ in range(2)) == [
            ["message", "kitchen/status", "online", True],
            ["subscribed"],
        ]
        kitchen.publish("kitchen/light/state", "ON")
        assert json.loads(display.line()) == ["message", "kitchen/light/state", "ON", False]
    with page(home, "homeassistant", "wrong", "#") as refused:
        assert json.loads(refused.line()) == ["error", "Connection refused: Not authorized"]


def mqtt_settings(path: Path) -> dict[str, str]:
    """The `mqtt:` section of a configuration.yaml."""
    section = re.search(r"^mqtt:\n((?:  .*\n)+)", path.read_text(), re.M)
    assert section is not None
    lines = [line.strip() for line in section[1].splitlines() if not line.strip().startswith("#")]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("version", [4, 5])
def test_zigbee2mqtt_runs_over_a_power_cut(tmp_path: Path, meet: Meet, version: int) -> None:
    users = ("zigbee2mqtt", "homeassistant", "display")
    installation = installed("zigbee2mqtt", tmp_path, *users)
    port = installation.ports[1883]
    settings = mqtt_settings(EXAMPLES / "zigbee2mqtt" / "zigbee2mqtt" / "configuration.yaml")
    assert settings["server"] == "mqtt://mqtt:1883"
    assert settings["version"] == "4"
    settings |= {
        "server": f"mqtt://127.0.0.1:{port}",
        "password": settings["user"][::-1],  # of its secret.yaml
        "version": str(version),
    }
    installation.start()
    script: Script | None = None
    try:
        here = meet(port, "homeassistant")
        for topic_filter in ("homeassistant/+/+/+/config", "zigbee2mqtt/#"):
            here.subscribe(topic_filter)
        script = Script("zigbee2mqtt.cjs", json.dumps(settings))
        assert script.line() == "connected"
        found = here.until("zigbee2mqtt/lamp/kept")
        assert found["zigbee2mqtt/bridge/state"] == found["zigbee2mqtt/lamp/availability"] == '{"state":"online"}'
        assert len([topic for topic in found if topic.startswith("homeassistant/")]) == 3
        here.publish("zigbee2mqtt/lamp/set", '{"state": "ON"}')
        here.wait_for("zigbee2mqtt/lamp", '{"state": "ON"}')
        here.publish("homeassistant/status", "online", qos=0)
        assert script.line() == "homeassistant online"

        unwanted = "zigbee2mqtt/lamp/set"
        with page(installation, "display", "yalpsid", "zigbee2mqtt/bridge/state", unwanted) as display:
            seen = [json.loads(display.line()) for _ in range(2)]
            assert ["message", "zigbee2mqtt/bridge/state", '{"state":"online"}', True] in seen
        here.publish("zigbee2mqtt/lamp/set", "end")
        between = here.until("zigbee2mqtt/lamp")
        assert between == {"zigbee2mqtt/lamp/set": "end", "zigbee2mqtt/lamp": "end"}, "the display may only look"

        script.kill()
        here.wait_for("zigbee2mqtt/bridge/state", '{"state":"offline"}')
        here.publish("homeassistant/seen", "offline", retain=True)  # is acknowledged when all before it is on the disk
        here.stop()  # it would come back by itself, and two clients of one id disconnect each other
        installation.end(signal.SIGKILL)
        installation.start()
        again = meet(port, "homeassistant")
        again.subscribe("#")
        kept = dict([again.messages.get(timeout=WAIT)[:2] for _ in range(7)])
        assert kept.pop("homeassistant/seen") == "offline"
        assert kept.pop("zigbee2mqtt/bridge/state") == '{"state":"offline"}'
        assert kept == {topic: found[topic] for topic in found if topic != "zigbee2mqtt/bridge/state"}

        script = Script("zigbee2mqtt.cjs", json.dumps(settings))
        assert script.line() == "connected"
        again.wait_for("zigbee2mqtt/bridge/state", '{"state":"online"}')
        installation.end(signal.SIGKILL)
        installation.start()
        while (line := script.line()) != "connected":  # it comes back by itself
            assert line.startswith("error")
    finally:
        if script is not None:
            script.kill()
        installation.end(signal.SIGTERM)


@pytest.mark.parametrize("example", ["home-assistant", "zigbee2mqtt"])
def test_compose_mounts_what_the_configuration_names(example: str) -> None:
    folder = EXAMPLES / example
    compose = (folder / "docker-compose.yml").read_text()
    conf = (folder / "mosquitto" / "mosquitto.conf").read_text()
    mounted = dict(re.findall(r"- (\S+):(/mosquitto/\S+)$", compose, re.M))
    assert mounted == {"./mosquitto": "/mosquitto/config", "mqtt-data": "/mosquitto/data"}
    for path in re.findall(r" (/mosquitto/\S+)$", conf, re.M):
        assert path.startswith(tuple(mounted.values()))
    ports = re.findall(r'"(\d+):(\d+)"', compose)
    for port in re.findall(r"^listener (\d+)$", conf, re.M):
        assert (port, port) in ports
