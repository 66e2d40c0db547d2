"""`lockgate deploy` on a real engine: from a registry with TLS and login, signed, one service at a time, and back."""

from __future__ import annotations

import contextlib
import http.server
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
from uuid import uuid4

import paho.mqtt.client as paho
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from paho.mqtt.enums import CallbackAPIVersion

from lockgate.config import lockgate_toml
from lockgate.deploy.agent import Agent
from lockgate.deploy.engine import Engine
from tests.support.compose import Stack
from tests.support.docker import docker, image
from tests.support.other_engine import other_engine
from tests.support.peers import free_port, program
from tests.support.registries import Registry, digest, one_image, silent_peer

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

    def key(self, name: str) -> str | Sequence[str]:
        return self._keys[name]

    def agent(self) -> Agent:
        """Give the agent itself, which is quicker to ask."""
        config = lockgate_toml.load(self.toml, {})
        return Agent(config.deploy, config.gateway.data_dir / "deploy", Engine(config.deploy.engine), "test")

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


@pytest.fixture(scope="module")
def new(registry: Registry) -> str:
    return release(registry, "0.2.0", "LABEL org.lockgate.test=new")


def test_an_update_and_the_way_back_lose_nothing_and_fire_no_will(
    stack: Stack, machine: Machine, registry: Registry, new: str, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.say(image=new, watch="1s")
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
        said = machine.deploy("apply")
        assert "serves; before: 0.1.0" in said
        digest_new = said.split()[1].strip("()")
        assert (now := set(running(stack.name).values())) & set(was.values()) == set()
        assert len(now) == 1
        assert {service: what_compose_said(stack, service) for service in SERVICES} == before
        middle = publisher.count
        assert publisher.connects == 2
        wait_until(lambda: publisher.count > middle + 50, "it goes on with the new version")
        assert (stack.folder / ".env").read_text().endswith(f"LOCKGATE_IMAGE={registry.host}/lockgate@{digest_new}\n")

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
    assert status["not_tried_again"] == {digest_new: "somebody went back from it"}
    with capsys.disabled():
        for one in records:
            gaps = {part["service"]: part["gap_seconds"] for part in one["services"]}
            told = ", ".join(f"{service} {gap:.2f} s" for service, gap in gaps.items())
            print(f"\n{one['kind']}: away for {told}; {len(acknowledged)} readings acknowledged meanwhile", end="")
            assert max(gaps.values()) < MOST_SECONDS_AWAY
        print()


def ids(stack: Stack) -> dict[str, tuple[str, str]]:
    """Give each service's container, and when its process began."""
    found = {service: stack.inspect(service) for service in SERVICES}
    return {service: (str(one["Id"]), str(one["State"]["StartedAt"])) for service, one in found.items()}


UNHEALTHY = ['HEALTHCHECK CMD ["/bin/sh", "-c", "echo the moon is full; exit 1"]']
# its broker is well
CRASHES = [
    'ENTRYPOINT ["/bin/sh", "-c", "[ $0 = broker ] || { echo no luck; exit 7; }; exec /docker-entrypoint.sh $0"]',
]


@pytest.mark.parametrize(
    ("version", "lines", "reason"),
    [
        ("0.3.0", UNHEALTHY, "broker is not well after 6 s: the moon is full"),
        ("0.4.0", CRASHES, "processor ended with status 7: no luck"),
    ],
    ids=["unhealthy", "crashes"],
)
def test_a_bad_image_goes_back_by_itself(
    stack: Stack, machine: Machine, registry: Registry, keys: Path, version: str, lines: list[str], reason: str
) -> None:
    bad = release(registry, version, *lines)
    machine.deploy("sign", bad, "--key", str(keys / "ours.key"))
    machine.say(health_limit="6s")
    before = ids(stack)
    was = running(stack.name)
    said = machine.deploy("apply", bad, status=4)
    assert f"rolled back: {reason}" in said
    assert "0.1.0" in said
    assert running(stack.name) == was
    assert {service: one for service, (one, _) in ids(stack).items()} == {
        service: one for service, (one, _) in before.items()
    }
    assert ids(stack)["forwarder"] == before["forwarder"]  # nobody came so far
    assert [stack.inspect(service)["HostConfig"]["RestartPolicy"]["Name"] for service in SERVICES] == ["always"] * 3
    last = machine.history()[-1]
    assert last["outcome"] == "rolled back"
    assert reason in last["reason"]
    assert last["after"]["version"] == version
    assert last["after"]["digest"] in json.loads(machine.deploy("status", "--json"))["not_tried_again"]


def test_what_is_not_signed_as_it_has_to_be_is_not_even_pulled(
    stack: Stack, machine: Machine, registry: Registry, keys: Path
) -> None:
    before = ids(stack)
    images = docker("images", "-q", "--no-trunc").stdout

    unsigned = release(registry, "0.5.0", "LABEL org.lockgate.test=unsigned")
    assert "is not signed: there is no sha256-" in machine.deploy("apply", unsigned, status=1)
    machine.deploy("sign", unsigned, "--key", str(keys / "other.key"))
    assert "the signature is not by the key in deploy.public_key" in machine.deploy("apply", unsigned, status=1)
    machine.say(signed_as="registry.example/other")
    machine.deploy("sign", unsigned, "--key", str(keys / "ours.key"))
    machine.say(signed_as="")
    said = machine.deploy("apply", unsigned, status=1)
    assert "it is a signature for repository 'registry.example/other'" in said
    assert "the signature is not by the key" in said  # the other one

    machine.say(public_key="")
    assert 'deploy.public_key is missing: set it, or signature = "none"' in machine.deploy("apply", unsigned, status=1)
    machine.say(public_key=str(keys / "ours.key"))
    assert "is a private key; it does not belong on a gateway" in machine.deploy("apply", unsigned, status=1)
    machine.say(public_key=str(keys / "ours.pub"))

    older = release(registry, "0.0.9", "LABEL org.lockgate.test=older")
    machine.deploy("sign", older, "--key", str(keys / "ours.key"))
    assert "is older than what runs (0.1.0): --allow-older" in machine.deploy("apply", older, status=1)
    other = release(registry, "0.6.0", 'LABEL org.opencontainers.image.title="something else"')
    machine.deploy("sign", other, "--key", str(keys / "ours.key"))
    assert "is something else, and lockgate runs here" in machine.deploy("apply", other, status=1)

    assert ids(stack) == before
    assert docker("images", "-q", "--no-trunc").stdout == images


def test_a_registry_that_cannot_be_used_is_named_with_what_to_do(
    stack: Stack, machine: Machine, registry: Registry, new: str, keys: Path, tmp_path: Path
) -> None:
    machine.deploy("sign", new, "--key", str(keys / "ours.key"))
    before = ids(stack)
    login, ca = str(registry.login_file), str(registry.authority.cafile)
    (tmp_path / "login").write_text("gateway:guessed\n")
    for said_keys, words, text in (
        ({"login_file": ""}, new, "wants a login: deploy.login_file or deploy.docker_config"),
        ({"login_file": str(tmp_path / "login")}, new, "refused the login of 'gateway' for lockgate: 401"),
        ({"login_file": str(tmp_path / "none")}, new, "deploy.login_file: "),
        ({"ca_file": ""}, new, "its certificate cannot be trusted: "),
        ({"ca_file": str(tmp_path / "login")}, new, "deploy.ca_file: "),
        ({}, f"{registry.host}/lockgate:9.9", "has no "),
        ({}, "127.0.0.1:1/lockgate:9.9", "127.0.0.1:1 cannot be asked: "),
        ({"project": "nobody"}, new, "there are no containers of a Compose project 'nobody'"),
        ({"services": ["broker", "brocker"]}, new, "has no brocker; there are broker, forwarder, processor"),
        ({"engine": "unix:///nowhere/docker.sock"}, new, "no Docker Engine answers (deploy.engine)"),
        ({"docker_config": str(registry.docker_config / "config.json"), "login_file": ""}, new, "offered  0.2"),
    ):  # fmt: skip
        machine.say(**said_keys)
        said = machine.run("check", words).stdout
        assert text in said, (said_keys, said)
        assert "Traceback" not in said
        machine.say(
            login_file=login, ca_file=ca, project=stack.name, services="", docker_config="",
            engine="unix:///var/run/docker.sock",
        )  # fmt: skip
    with silent_peer() as silent, silent_peer(drip=0.05) as dripping:
        machine.say(request_limit="1s", ca_file="")  # plain HTTP, as the loopback may
        for host in (silent, dripping):
            began = time.monotonic()
            assert f"{host} did not answer within 1 s" in machine.deploy("check", f"{host}/lockgate:1", status=1)
            assert time.monotonic() - began < 20.0
        machine.say(request_limit="10s", ca_file=ca)
    assert ids(stack) == before


def new_image(of: str) -> dict[str, object]:
    """Give the configuration of an image that would be the next version of one that is here."""
    found = json.loads(docker("image", "inspect", of).stdout)[0]
    labels = found["Config"]["Labels"] | {"org.opencontainers.image.version": "9.0.0"}
    rootfs = {"type": "layers", "diff_ids": [digest(b"a layer")]}
    return {"os": found["Os"], "architecture": found["Architecture"], "config": {"Labels": labels}, "rootfs": rootfs}


def test_a_registry_that_hangs_in_the_middle_of_a_layer_leaves_what_runs(stack: Stack, machine: Machine) -> None:
    before = ids(stack)
    hang = threading.Event()

    def a_little(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 30))
        handler.end_headers()
        handler.wfile.write(bytes(100_000))
        hang.wait(60)

    public_key, ca = machine.key("public_key"), machine.key("ca_file")
    try:
        with one_image(new_image(image()), a_little) as host:
            machine.say(public_key="", signature="none", pull_limit="2s", ca_file="")
            said = machine.deploy("apply", f"{host}/lockgate:new", status=1)
            hang.set()
    finally:
        machine.say(public_key=public_key, signature="", pull_limit="", ca_file=ca)
    assert "is not here after 2 s" in said or "nothing has come for 2 s" in said
    assert ids(stack) == before
    assert "9.0.0" not in machine.deploy("history")


# --- one service, of the small image ----------------------------------------------------------------------------------


class Alone:
    """A project of one service, as Compose would have made it."""

    def __init__(self, folder: Path, of: str, *words: str, run: Callable[..., object] = docker) -> None:
        self.project = f"lockgatetest{uuid4().hex[:8]}"
        self.name = f"{self.project}_broker_1"
        (folder / "mosquitto.conf").write_text("listener 1883\nallow_anonymous true\npersistence true\n")
        label = "com.docker.compose"
        run(
            "run", "-d", "--name", self.name, "--restart", "always", "--health-interval", "1s", "--user", "1883:1883",
            "--label", f"{label}.project={self.project}", "--label", f"{label}.service=broker",
            "-v", f"{self.project}_data:/mosquitto/data", "-v", f"{folder}:/mosquitto/config:ro", *words, of,
        )  # fmt: skip
        self._run = run

    def remove(self) -> None:
        listed = docker("ps", "-a", "-q", "--filter", f"label=com.docker.compose.project={self.project}").stdout
        volumes = {where for _, where in mounts(self.name) if not where.startswith("/")}
        docker("rm", "-f", *listed.split(), check=False)
        docker("volume", "rm", "-f", *volumes)  # also those without a name, which have gone from one to the next


@pytest.fixture(scope="module")
def next_small(registry: Registry) -> str:
    return release(registry, "0.7.0", "LABEL org.lockgate.test=small", of=image("-small"))


@pytest.fixture(scope="module")
def after_next_small(registry: Registry) -> str:
    return release(registry, "0.7.1", "LABEL org.lockgate.test=small", of=image("-small"))


@pytest.fixture
def alone(folder: Path) -> Iterator[Alone]:
    (folder / "config").mkdir()
    made = Alone(folder / "config", image("-small"))
    try:
        yield made
    finally:
        made.remove()


@pytest.mark.timeout(180)
def test_the_agent_killed_at_every_step_leaves_one_broker_on_the_volume(
    alone: Alone,
    registry: Registry,
    next_small: str,
    after_next_small: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = Machine(tmp_path, registry, project=alone.project, signature="none", watch="0s")
    was = running(alone.project)
    volumes = mounts(alone.name)
    steps: list[str] = []
    new = 0
    while True:
        # to and fro between two versions
        target = next_small if new % 2 == 0 else after_next_small
        command = [sys.executable, "-m", "tests.support.deploy_killed", str(machine.toml), target, str(len(steps) + 1)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        if done.returncode == 0:
            break
        assert done.returncode == 9, done.stderr
        steps.append(done.stdout.strip())
        machine.agent().resume()
        now = running(alone.project)
        assert list(now) == ["broker"], steps[-1]
        new += now != was
        was = now
        assert mounts(alone.name) == volumes
    assert len(steps) > 15
    assert 0 < new < len(steps)
    assert running(alone.project) != was
    assert mounts(alone.name) == volumes
    assert [one["outcome"] for one in machine.history()].count("interrupted") == len(steps) - new
    with capsys.disabled():
        print(f"\nkilled at {len(steps)} steps: the old version {len(steps) - new} times, the new one {new} times")


def mounts(name: str) -> list[tuple[str, str]]:
    found = json.loads(docker("inspect", name).stdout)[0]
    return sorted((one["Destination"], one.get("Name", one["Source"])) for one in found["Mounts"])


def test_one_file_brings_a_version_where_there_is_no_network(
    alone: Alone, registry: Registry, next_small: str, keys: Path, tmp_path: Path
) -> None:
    office = Machine(tmp_path, registry, public_key=str(keys / "ours.pub"))
    file = tmp_path / "lockgate-0.7.0.tar"
    assert "is not signed" in office.deploy("export", next_small, str(file), status=1)
    office.deploy("sign", next_small, "--key", str(keys / "ours.key"))
    said = office.deploy("export", next_small, str(file))
    assert f"{file} holds {registry.host}/lockgate@sha256:" in said
    docker("rmi", said.split()[-1])

    (tmp_path / "gateway").mkdir()
    machine = Machine(tmp_path / "gateway", None, project=alone.project, public_key=str(keys / "other.pub"), watch="1s")
    old = running(alone.project)
    assert "not by the key in deploy.public_key" in machine.deploy("apply", str(file), status=1)
    machine.say(public_key=str(keys / "ours.pub"))
    assert running(alone.project) == old
    assert "0.7.0" in machine.deploy("apply", str(file))
    assert running(alone.project) != old
    assert "that runs already" in machine.deploy("apply", str(file))
    machine.deploy("rollback")
    assert running(alone.project) == old
    assert [one["services"][0]["wills_kept"] for one in machine.history()] == [True, True]
    (tmp_path / "short.tar").write_bytes(file.read_bytes()[:100_000])
    (tmp_path / "other.tar").write_bytes(b"no tar at all")
    for name in ("short", "other"):
        assert f"{name}.tar" in machine.deploy("apply", str(tmp_path / f"{name}.tar"), status=1)
    assert running(alone.project) == old


@pytest.mark.timeout(150)
def test_a_power_cut_of_the_machine_and_a_full_disk_leave_one_version(
    registry: Registry, next_small: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On an engine of its own, whose disk is small and which is killed with all it has started."""
    with other_engine(folder, 400) as engine:
        engine.load(image("-small"))
        (folder / "config").mkdir()
        alone = Alone(folder / "config", image("-small"), "--network", "none", run=engine.docker)
        machine = Machine(folder, registry, project=alone.project, signature="none", watch="0s", engine=engine.url)
        ca = machine.key("ca_file")
        (old,) = engine.running(alone.project)

        with one_image(new_image(image("-small")), endless) as host:
            machine.say(ca_file="")
            said = machine.deploy("apply", f"{host}/lockgate:new", status=1)
            machine.say(ca_file=ca)
        assert "the engine's disk is full: " in said
        assert [one["State"]["StartedAt"] for one in engine.running(alone.project)] == [old["State"]["StartedAt"]]

        ends = []
        for wanted in ("behind: stop the old broker", "before: watch the new broker", "before: remove the old broker"):
            killed_at(machine, next_small, wanted)
            engine.cut_power()
            engine.start()
            wait_until(lambda: bool(engine.running(alone.project)), "one starts with the engine")
            machine.agent().resume()
            (now,) = engine.running(alone.project)
            listed = engine.docker("ps", "-a", "-q", "--filter", f"label=com.docker.compose.project={alone.project}")
            assert len(listed.stdout.split()) == 1
            ends.append(now["Image"] == old["Image"])
        assert ends == [True, True, False]
    with capsys.disabled():
        print("\npower cut at three steps: the old version twice, the new one once it was to stay")


def killed_at(machine: Machine, name: str, wanted: str) -> None:
    """Run an update that ends at a step."""
    command = [sys.executable, "-m", "tests.support.deploy_killed", str(machine.toml), name, wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout.strip()) == (9, wanted), done.stderr


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Send a layer that no disk here has room for."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 40))
    handler.end_headers()
    piece = bytes(1 << 20)
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(piece)
