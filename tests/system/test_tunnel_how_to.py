"""docs/how-to/tunnel.md: every command of the page that can run on this machine is run, in the order of the page.

`home.example.org` is localhost here, and the ports are free ones; nothing else of a command is changed. What the page
says of containers is tried by tests/containers/test_tunnel_stacks.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from paho.mqtt.publish import single as publish_by_paho
from paho.mqtt.subscribe import simple as subscribe_by_paho

from tests.support.certificates import Authority
from tests.support.peers import free_port, program

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "tunnel.md").read_text()
WAIT_SECONDS = 30.0
SERVING = {
    "lockgate run edge": "edge is ready",
    "lockgate connector --token-file token --url http://127.0.0.1:9001": "connector is ready",
}


def shown(kind: str, part: str) -> list[str]:
    """Give the blocks of a kind below a heading."""
    (text,) = re.findall(rf"^##+ {part}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    return re.findall(rf"^```{kind}\n(.*?)^```", str(text), re.M | re.S)


def commands(part: str) -> list[str]:
    lines = [line for block in shown("sh", part) for line in block.splitlines()]
    return [line.partition(" #")[0].strip() for line in lines]


class Machine:
    """A folder in which the page's commands are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("tunnel", "https", "mqtts", "broker", "plain")}
        places = {
            f"LOCKGATE_EDGE_LISTEN_{name.upper()}": f'["127.0.0.1:{self.ports[name]}"]'
            for name in ("tunnel", "https", "mqtts")
        }
        self.environment = {
            **{name: value for name, value in os.environ.items() if "TUNNEL" not in name},
            **places,
            "LOCKGATE_CONNECTOR_METRICS": f"127.0.0.1:{free_port()}",
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }
        (folder / "bin").mkdir()
        for name in ("lockgate", "cloudflared"):
            words = "" if name == "lockgate" else f" {name}"
            script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m lockgate{words} "$@"\n'
            (folder / "bin" / name).write_text(script)
            (folder / "bin" / name).chmod(0o755)
        self.running: list[subprocess.Popen[str]] = []

    def here(self, text: str) -> str:
        """Put this machine's name and ports for those of the page."""
        text = text.replace("home.example.org", "localhost").replace(":9001", f":{self.ports['broker']}")
        return text.replace(":7844", f":{self.ports['tunnel']}").replace("8883", str(self.ports["mqtts"]))

    def run(self, command: str, **variables: str) -> str:
        done = subprocess.run(
            self.here(command), shell=True, cwd=self.folder, env=self.environment | variables,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def serve(self, command: str, line: str) -> subprocess.Popen[str]:
        """Start what goes on until it is ended; return when it has said something."""
        service = subprocess.Popen(
            shlex.split(self.here(command)), cwd=self.folder, env=self.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.running.append(service)
        said: list[str] = []
        heard = threading.Event()

        def listen() -> None:
            assert service.stderr is not None
            for one in service.stderr:
                said.append(one)
                if line in one:
                    heard.set()

        threading.Thread(target=listen, daemon=True).start()
        assert heard.wait(WAIT_SECONDS), (command, said)
        return service

    def end(self, service: subprocess.Popen[str]) -> None:
        self.running.remove(service)
        service.terminate()
        service.wait(WAIT_SECONDS)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        for service in reversed(made.running):
            service.kill()
            service.wait()


def test_the_two_stacks_are_written_as_the_page_says(machine: Machine) -> None:
    (edge,), (home,) = commands("1. The server"), commands("2. Home")
    token = re.findall(r"^[A-Za-z0-9+/=]{100,}$", machine.run(edge), re.M)[0]
    for name in ("ca.crt", "secrets/ca.key", "data/edge/certificates/public.pem", "data/edge/tunnel.pem"):
        assert (machine.folder / "edge" / name).exists()
        assert f"`{name}`" in PAGE or f"`{Path(name).parent}/`" in PAGE
    said = machine.run(home, LOCKGATE_TUNNEL_TOKEN=token)
    assert "device-1" in said
    ours = r"image: \$\{LOCKGATE_IMAGE:-lockgate:[0-9.]+\}"
    compose = (machine.folder / "home" / "docker-compose.yml").read_text()
    assert len(re.findall(rf"^ +{ours}$", compose, re.M)) == 2
    (again,) = commands("With the vendor's service")
    assert again == home


def test_a_phone_sees_the_sensor_by_the_commands_of_the_page(machine: Machine) -> None:
    folder = machine.folder
    authority = Authority(folder)
    for source, target in zip(authority.issue("public", "localhost"), ("fullchain.pem", "privkey.pem"), strict=True):
        source.rename(folder / target)
    (toml,) = shown("toml", "Without containers")
    (folder / "lockgate.toml").write_text(machine.here(toml))
    machine.environment["LOCKGATE_GATEWAY_RUN_DIR"] = str(folder / "run-edge")

    (folder / "home.conf").write_text(
        f"listener {machine.ports['broker']} 127.0.0.1\nprotocol websockets\nallow_anonymous false\n"
        f"password_file {folder / 'passwords'}\npersistence false\n"
    )
    machine.run("lockgate mosquitto_passwd -c -b passwords device-1 PASSWORD")
    machine.serve("lockgate run broker -c home.conf", "broker is ready")

    words = commands("Without containers")
    assert {one for one in words if one in SERVING} == set(SERVING)
    for command in words:
        if command in SERVING:
            if "connector" in command:  # another machine
                machine.environment["LOCKGATE_GATEWAY_RUN_DIR"] = str(folder / "run-home")
                (folder / "lockgate.toml").rename(folder / "edge.toml")
            connector = machine.serve(command, SERVING[command])
        else:
            machine.run(command)
    sees_the_sensor(machine, authority.cafile)

    machine.end(connector)
    (theirs,) = commands("cloudflared in the place of our connector")
    (folder / "edge").mkdir()
    copy(folder / "data" / "edge" / "ca.crt", folder / "edge" / "ca.crt")
    machine.environment["TUNNEL_URL"] = f"http://127.0.0.1:{machine.ports['broker']}"
    machine.serve(theirs, "connector is ready")
    sees_the_sensor(machine, authority.cafile)


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def sees_the_sensor(machine: Machine, cafile: Path) -> None:
    """By WSS and by MQTT over TLS, as the page's table says."""
    auth: dict[str, str] = {"username": "device-1", "password": "PASSWORD"}
    tls = {"ca_certs": str(cafile)}
    place = {"hostname": "localhost", "port": machine.ports["https"], "transport": "websockets"}
    publish_by_paho("device-1/temperature", "21.5", qos=1, retain=True, auth=auth, tls=tls, **place)  # type: ignore[arg-type]
    heard = subscribe_by_paho("device-1/#", auth=auth, tls=tls, **place)
    assert heard.payload == b"21.5"
    (command,) = commands("3. The phone")
    command = command.replace("mosquitto_sub", program("mosquitto_sub"), 1).replace("edge/ca.crt", str(cafile))
    assert machine.run(f"{command} -C 1 -W 20") == "device-1/temperature 21.5\n"
