"""`lockgate deploy` on a real engine: from a registry with TLS and login, signed, one service at a time, and back."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.compose import Stack
from tests.support.docker import docker, image
from tests.support.peers import free_port, program
from tests.support.registries import Registry

pytestmark = [pytest.mark.containers, pytest.mark.timeout(120)]
image()

SERVICES = ("broker", "processor", "forwarder")
KEEP_ALIVE = 4  # seconds; a Will that was kept comes after one and a half times that
MOST_SECONDS_AWAY = 10.0  # of a service, on a machine that does much else; 3 s are meant


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    made = Registry(tmp_path_factory.mktemp("registry"))
    try:
        yield made
    finally:
        made.close()


def build(name: str, *lines: str, of: str = "") -> str:
    """Build an image on that of the gateway; gives its name."""
    docker("build", "-q", "-t", name, "-", text="\n".join((f"FROM {of or image()}", *lines)) + "\n")
    return name


def release(registry: Registry, version: str, *lines: str, of: str = "") -> str:
    """Build a version and push it; gives its name in the registry."""
    label = f"LABEL org.opencontainers.image.version={version}"
    local = build(f"lockgate-deploy-test:{version}", label, *lines, of=of)
    try:
        return registry.push(local, f"lockgate:{version}")
    finally:
        docker("rmi", local)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two key pairs, of both kinds: ours, and somebody else's."""
    folder = tmp_path_factory.mktemp("keys")
    pairs: dict[str, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey] = {
        "ours": ec.generate_private_key(ec.SECP256R1()),
        "other": ed25519.Ed25519PrivateKey.generate(),
    }
    for name, key in pairs.items():
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        (folder / f"{name}.key").write_bytes(pem)
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, public))
    return folder


class Machine:
    """A gateway's machine: its lockgate.toml, and the command."""

    def __init__(self, place: Path, registry: Registry | None, **keys: str | Sequence[str]) -> None:
        self.place = place
        self._keys: dict[str, str | Sequence[str]] = {"health_limit": "20s", "watch": "2s", "request_limit": "10s"}
        if registry is not None:
            self._keys |= {"ca_file": str(registry.authority.cafile), "login_file": str(registry.login_file)}
        self.say(**keys)

    def say(self, **keys: str | Sequence[str]) -> None:
        """Set keys of [deploy]; an empty one is taken out."""
        self._keys = {name: value for name, value in (self._keys | keys).items() if value}
        lines = [f"{name} = {json.dumps(value)}" for name, value in self._keys.items()]
        self.toml = self.place / "lockgate.toml"
        self.toml.write_text(f'[gateway]\ndata_dir = "{self.place}/data"\n[deploy]\n' + "\n".join(lines) + "\n")

    def deploy(self, *words: str, status: int = 0) -> str:
        """Run `lockgate deploy`; gives what it says."""
        done = self.run(*words)
        assert done.returncode == status, done.stdout
        return done.stdout

    def run(
        self, *words: str, module: str = "lockgate", extra: Sequence[str] = ("deploy",)
    ) -> subprocess.CompletedProcess[str]:
        action, *rest = words
        command = [sys.executable, "-m", module, *extra, action, "-c", str(self.toml), *rest]
        out, both = subprocess.PIPE, subprocess.STDOUT
        return subprocess.run(command, stdout=out, stderr=both, text=True, check=False, timeout=110)

    def history(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.deploy("history", "--json"))
        return found


# --- the gateway of packaging/compose ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    port = free_port()
    made = Stack(
        tmp_path_factory.mktemp("stack") / "gateway", "gateway",
        GATEWAY_ID="hall-3", LOCKGATE_TLS_PORT=f"127.0.0.1:{port}", COMPOSE_FILE="docker-compose.yml:devices.yml",
    )  # fmt: skip
    made.environment["PORT"] = str(port)
    try:
        made.up(SERVICES)
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def machine(stack: Stack, registry: Registry, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    made = Machine(tmp_path_factory.mktemp("machine"), registry, project=stack.name, folder=str(stack.folder))
    made.say(public_key=str(keys / "ours.pub"))
    return made


class Publisher:
    """A device that publishes readings all the time, comes back whenever it is cut off, and has a Will."""

    def __init__(self, stack: Stack) -> None:
        self.connects = 0
        self._numbers: dict[int, int] = {}  # by Packet Identifier; fewer than there are of those
        self._acknowledged: list[int] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "pump-1", clean_session=False)
        self._client.username_pw_set("pump", stack.passwords["pump"])
        self._client.tls_set(str(stack.folder / "ca.crt"))
        self._client.will_set("sensors/pump/will", reading("the will of pump-1"), 1)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._connected
        self._client.on_publish = lambda _c, _u, packet_id, _r, _p: self._acknowledged.append(packet_id)
        self._client.connect("localhost", int(stack.environment["PORT"]), keepalive=KEEP_ALIVE)
        self._client.loop_start()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def _connected(self, *_: object) -> None:
        self.connects += 1

    def _publish(self) -> None:
        for number in itertools.count(1):
            if self._stop.wait(0.03):
                return
            info = self._client.publish("sensors/pump/t", reading(str(number)), 1)
            self._numbers[info.mid] = number

    @property
    def count(self) -> int:
        return len(self._acknowledged)

    def stop(self) -> set[str]:
        """Give the numbers that were acknowledged."""
        self._stop.set()
        self._thread.join()
        assert len(self._numbers) < 65535
        wait_until(lambda: len(self._acknowledged) >= len(self._numbers), "the last acknowledgements")
        self._client.disconnect()
        self._client.loop_stop()
        return {str(self._numbers[packet_id]) for packet_id in self._acknowledged}


def reading(unit: str) -> str:
    return json.dumps({"value": 1.5, "unit": unit})


def wait_until(true: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def delivered(stack: Stack) -> list[str]:
    """Give the units of the readings that came out at the other end."""
    text = docker("exec", f"{stack.name}_forwarder_1", "cat", "/mosquitto/log/delivered.jsonl", check=False).stdout
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line["payload"]["unit"] for line in lines if line["class"] == "telemetry"]


def running(project: str) -> dict[str, str]:
    """Give the image of each service's container that runs. There is no other container."""
    listed = docker("ps", "-a", "-q", "--filter", f"label=com.docker.compose.project={project}").stdout.split()
    found = json.loads(docker("inspect", *listed).stdout)
    assert all(one["State"]["Running"] for one in found), [one["Name"] for one in found]
    images = {one["Config"]["Labels"]["com.docker.compose.service"]: str(one["Image"]) for one in found}
    assert len(images) == len(found)
    return images


def what_compose_said(stack: Stack, service: str) -> dict[str, Any]:
    """Give all of a container that does not come from its image or from its start."""
    found = stack.inspect(service)
    config, host, networks = found["Config"], found["HostConfig"], found["NetworkSettings"]["Networks"]
    for name in ("Hostname", "Image"):
        del config[name]
    config["Env"].sort()
    config["Labels"] = {name: text for name, text in config["Labels"].items() if name.startswith("com.docker.compose.")}
    aliases = {name: [a for a in one["Aliases"] if a != found["Id"][:12]] for name, one in networks.items()}
    return {
        "config": config, "host": host, "aliases": aliases, "name": found["Name"],
        "mounts": sorted((one["Destination"], one.get("Name", one["Source"])) for one in found["Mounts"]),
    }  # fmt: skip


def test_an_update_and_the_way_back_lose_nothing_and_fire_no_will(
    stack: Stack, machine: Machine, registry: Registry, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = release(registry, "0.2.0", "LABEL org.lockgate.test=new")
    machine.say(image=new)
    assert "not signed" in machine.deploy("check", status=1)
    machine.deploy("sign", new, "--key", str(keys / "ours.key"))
    assert "there is something new" in machine.deploy("check")

    before = {service: what_compose_said(stack, service) for service in SERVICES}
    was = running(stack.name)
    stays_away = subprocess.Popen(
        [program("mosquitto_sub"), "-h", "localhost", "-p", stack.environment["PORT"], "-i", "lost", "-t", "none",
         "--cafile", str(stack.folder / "ca.crt"), "-u", "pump", "-P", stack.passwords["pump"], "-k", "10",
         "--will-topic", "sensors/pump/will", "--will-qos", "1", "--will-payload", reading("the will of lost")]
    )  # fmt: skip
    publisher = Publisher(stack)
    try:
        wait_until(lambda: " as lost " in stack.logs("broker") and publisher.count > 20, "both are connected")
        stays_away.send_signal(signal.SIGSTOP)
        assert "serves; before: 0.1.0" in machine.deploy("apply")
        assert (now := set(running(stack.name).values())) & set(was.values()) == set()
        assert len(now) == 1
        assert {service: what_compose_said(stack, service) for service in SERVICES} == before
        middle = publisher.count
        assert publisher.connects == 2
        wait_until(lambda: publisher.count > middle + 50, "it goes on with the new version")
        assert (
            (stack.folder / ".env").read_text().endswith(f"LOCKGATE_IMAGE={registry.host}/lockgate@{digest_of(new)}\n")
        )

        assert "serves again" in machine.deploy("rollback")
        assert running(stack.name) == was
        assert {service: what_compose_said(stack, service) for service in SERVICES} == before
        assert publisher.connects == 3
        wait_until(lambda: "the will of lost" in delivered(stack), "the Will of the device that stays away")
    finally:
        stays_away.kill()
        stays_away.wait()
        acknowledged = publisher.stop()
    assert len(acknowledged) > 200
    wait_until(lambda: acknowledged <= set(delivered(stack)), "every acknowledged reading comes out")
    assert "the will of pump-1" not in delivered(stack)
    assert delivered(stack).count("the will of lost") == 1
    assert json.loads(stack.execute("processor", "lockgate", "ledger", "--json"))["closes"]

    records = machine.history()
    assert [(one["kind"], one["outcome"], one["by"]) for one in records] == [
        ("update", "updated", "root"), ("rollback", "updated", "root"),
    ]  # fmt: skip
    assert [part["wills_kept"] for part in records[0]["services"]] == [True, None, None]
    status = json.loads(machine.deploy("status", "--json"))
    assert status["not_tried_again"] == {digest_of(new): "somebody went back from it"}
    with capsys.disabled():
        for one in records:
            gaps = {part["service"]: part["gap_seconds"] for part in one["services"]}
            told = ", ".join(f"{service} {gap:.2f} s" for service, gap in gaps.items())
            print(f"\n{one['kind']}: away for {told}; {len(acknowledged)} readings acknowledged meanwhile", end="")
            assert max(gaps.values()) < MOST_SECONDS_AWAY
        print()


def digest_of(name: str) -> str:
    """Give the digest that the engine has pulled under a name of the registry."""
    listed = docker("images", "--digests", "--format", "{{.Repository}} {{.Digest}}").stdout.splitlines()
    digests = [line.split()[1] for line in listed if line.split()[0] == name.rpartition(":")[0]]
    (found,) = (one for one in digests if one != "<none>")
    return found
