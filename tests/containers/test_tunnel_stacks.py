"""An edge and homes behind it, as `lockgate init` writes them: what is at home is reached, and publishes no port.

Their networks have nothing in common but one, in which the edge has the name that connectors dial.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import paho.mqtt.client as paho
import pytest
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.publish import single as publish_by_paho
from paho.mqtt.subscribe import simple as subscribe_by_paho

from tests.support.compose import Stack
from tests.support.docker import docker, image
from tests.support.peers import free_port, program

pytestmark = [pytest.mark.containers, pytest.mark.timeout(180)]
image()

HOST = "home.example.org"
WAIT_SECONDS = 40.0
EDGE_IN_THE_WORLD = """\
services:
  edge:
    networks: {{default: {{aliases: [{host}]}}}}
networks:
  default: {{external: true, name: {world}}}
"""
HOME_IN_THE_WORLD = """\
networks:
  outside: {{external: true, name: {world}}}
"""


@pytest.fixture(scope="module")
def world() -> Iterator[str]:
    name = f"lockgate-test-{uuid4().hex[:8]}"
    docker("network", "create", name)
    yield name
    docker("network", "rm", name, check=False)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, world: str) -> Iterator[Stack]:
    ports = {f"EDGE_{name}_PORT": f"127.0.0.1:{free_port()}" for name in ("HTTPS", "MQTTS", "TUNNEL")}
    folder = tmp_path_factory.mktemp("stack") / "edge"
    stack = Stack(folder, "edge", ("--host", HOST, "--host", "localhost"), **ports)
    (folder / "docker-compose.override.yml").write_text(EDGE_IN_THE_WORLD.format(host=HOST, world=world))
    try:
        stack.up(["edge"])
        yield stack
    finally:
        stack.remove()


def port(edge: Stack, name: str) -> int:
    return int(edge.environment[f"EDGE_{name}_PORT"].partition(":")[2])


def door(edge: Stack, user: str, password: str) -> dict[str, Any]:
    """How paho-mqtt comes in by WSS."""
    return {
        "hostname": "localhost",
        "port": port(edge, "HTTPS"),
        "transport": "websockets",
        "tls": {"ca_certs": str(edge.folder / "ca.crt")},
        "auth": {"username": user, "password": password},
    }


@contextlib.contextmanager
def home(stack: Stack, world: str) -> Iterator[Stack]:
    (stack.folder / "docker-compose.override.yml").write_text(HOME_IN_THE_WORLD.format(world=world))
    try:
        yield stack
    finally:
        stack.remove()


class Phone:
    """A client that stays, and comes back by itself."""

    def __init__(self, edge: Stack, user: str, password: str) -> None:
        self.heard: set[str] = set()
        self._changed = threading.Condition()
        self.connects = 0
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "phone", transport="websockets")
        self._client.tls_set(str(edge.folder / "ca.crt"))
        self._client.username_pw_set(user, password)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.connect("localhost", port(edge, "HTTPS"), keepalive=5)
        self._client.loop_start()

    def _on_connect(self, client: paho.Client, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if not reason.is_failure:
            client.subscribe("#", 1)
            with self._changed:
                self.connects += 1
                self._changed.notify_all()

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.heard.add(message.payload.decode())
            self._changed.notify_all()

    def says_and_hears(self, text: str) -> None:
        """Publish, with the connection of now or the next one, and wait until it comes back."""
        self._client.publish("pump/said", text, 1, retain=True)
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.heard, WAIT_SECONDS), (text, self.connects)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def mosquitto(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Debian's clients."""
    return subprocess.run([program(name), *words], capture_output=True, text=True, timeout=30, check=False)


def token_of(said: str) -> str:
    return re.findall(r"^[A-Za-z0-9+/=]{100,}$", said, re.M)[-1]  # type: ignore[no-any-return]


def test_devices_reach_a_broker_that_publishes_nothing_and_come_back_after_kills(
    edge: Stack, world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = token_of(edge.said)
    with home(Stack(tmp_path / "home", "tunnel", (), LOCKGATE_TUNNEL_TOKEN=told), world) as stack:
        assert "LOCKGATE_TUNNEL_TOKEN" in stack.environment  # `init` took it; the containers have the file alone
        stack.up(["broker", "cloudflared"])
        for service in ("broker", "cloudflared"):
            assert not any((stack.inspect(service)["NetworkSettings"]["Ports"] or {}).values())
        assert told not in json.dumps(stack.inspect("cloudflared"))
        assert "Warning" not in stack.logs("cloudflared")
        password = stack.passwords["pump"]

        publish_by_paho("pump/state", "by WSS", qos=1, retain=True, **door(edge, "pump", password))
        assert subscribe_by_paho("pump/#", **door(edge, "pump", password)).payload == b"by WSS"
        mqtts = ("-h", "localhost", "-p", str(port(edge, "MQTTS")), "--cafile", str(edge.folder / "ca.crt"))
        who = ("-u", "pump", "-P", password)
        said = mosquitto("mosquitto_pub", *mqtts, *who, "-t", "pump/state", "-m", "by MQTTS", "-q", "1", "-r")
        assert (said.returncode, said.stderr) == (0, "")
        heard = mosquitto("mosquitto_sub", *mqtts, *who, "-t", "pump/#", "-C", "1", "-W", "10", "-v")
        assert heard.stdout == "pump/state by MQTTS\n"
        with pytest.raises(MQTTException, match="Not authorized"):
            publish_by_paho("pump/state", "x", qos=1, **door(edge, "pump", "guessed"))

        phone = Phone(edge, "pump", password)
        try:
            phone.says_and_hears("before")
            for where, service in ((stack, "cloudflared"), (edge, "edge")):
                pid = where.pid(service)
                assert pid > 1
                os.kill(pid, signal.SIGKILL)
                phone.says_and_hears(f"after {service}")
                where.wait_healthy(service, not_pid=pid)
                assert where.inspect(service)["RestartCount"] == 1
        finally:
            phone.close()
        assert "whole" in edge.execute("edge", "lockgate", "edge", "audit", "verify")
        assert "home" in edge.execute("edge", "lockgate", "edge", "tunnel", "list")
        rows = edge.execute("edge", "lockgate", "status", check=False)
        assert re.search(r"^edge +up ", rows, re.M), rows
        assert re.search(r"^connector +up ", stack.execute("cloudflared", "lockgate", "status", check=False), re.M)
        with capsys.disabled():
            print(
                f"\nresident: edge {resident(edge, 'edge'):.1f} MiB, connector {resident(stack, 'cloudflared'):.1f} MiB"
            )


def resident(stack: Stack, service: str) -> float:
    status = Path(f"/proc/{stack.pid(service)}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_the_gateway_has_a_connector_as_its_fourth_service(
    edge: Stack, world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = edge.execute("edge", "lockgate", "edge", "tunnel", "token", "home")
    files = "docker-compose.yml:tunnel.yml:docker-compose.override.yml"
    stack = Stack(tmp_path / "gateway", "gateway", COMPOSE_FILE=files)
    secret = stack.folder / "secrets" / "tunnel_token"
    secret.write_text(token_of(said))
    secret.chmod(0o400)
    os.chown(secret, 1883, 1883)
    services = ("broker", "processor", "forwarder", "connector")
    with home(stack, world):
        stack.up(services)
        pump = door(edge, "pump", stack.passwords["pump"])
        publish_by_paho("sensors/pump/t", '{"value": 1.5, "unit": "bar"}', qos=1, **pump)
        operator = door(edge, "operator", stack.passwords["operator"])
        publish_by_paho("commands/pump/set", "open", qos=1, retain=True, **operator)
        assert subscribe_by_paho("commands/#", **pump).payload == b"open"
        for service in services:
            found = stack.inspect(service)
            assert not any((found["NetworkSettings"]["Ports"] or {}).values())
            assert not found["State"]["OOMKilled"]
            assert "Warning" not in stack.logs(service)
        with capsys.disabled():
            print(f"\nresident: {', '.join(f'{one} {resident(stack, one):.1f} MiB' for one in services)}")
