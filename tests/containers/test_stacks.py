"""The stacks of packaging/compose, as `lockgate init` writes them: they come up, serve, and lose nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from paho.mqtt import MQTTException
from paho.mqtt.publish import single as publish_by_paho
from paho.mqtt.subscribe import simple as subscribe_by_paho

from tests.support.compose import Stack, new_compose, old_compose
from tests.support.disks import cut_power, disk_trouble, make_image, mounted
from tests.support.docker import Container, docker, image
from tests.support.peers import free_port, program

pytestmark = [pytest.mark.containers, pytest.mark.timeout(120)]
image()

COMPOSE = Path(__file__).parents[2] / "packaging" / "compose"
FILES = sorted(COMPOSE.glob("*/docker-compose.yml"))
OVERLAYS = sorted(set(COMPOSE.glob("*/*.yml")) - set(FILES))
SETS = [[path] for path in FILES] + [[path.with_name("docker-compose.yml"), path] for path in OVERLAYS]
SERVICES = ("broker", "processor", "forwarder")
LOAD_RATE, LOAD_SECONDS = 1000, int(os.environ.get("LOAD_SECONDS", "5"))
NUMBERS = itertools.count(1)  # of readings


def test_both_compose_versions_take_every_file() -> None:
    programs = [one for one in (old_compose(), new_compose()) if one is not None]
    if len(programs) < 2:
        pytest.skip(f"of Compose 1.29 (Debian) and 5 (the extra dev) there is only {programs}")
    assert len(SETS) == 7
    for one in programs:
        for files in SETS:
            words = [word for path in files for word in ("-f", str(path))]
            done = subprocess.run([one, *words, "config"], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), (one, files)
            assert ":latest" not in done.stdout


def test_images_have_versions_and_limits_stay_below_those_of_a_small_machine() -> None:
    found = new_compose()
    if found is None:
        pytest.skip("Compose of the extra dev is not installed")
    published: dict[str, bool] = {}
    for files in SETS:
        path = files[-1]
        words = [word for one in files for word in ("-f", str(one))]
        done = subprocess.run([found, *words, "config", "--format", "json"], capture_output=True, check=True)
        services = json.loads(done.stdout)["services"]
        for name, service in services.items():
            assert service["image"].rpartition(":")[2][:1].isdigit(), (path, name)
            assert service["restart"] == "always"
            assert service["mem_limit"]
            if name != "homeassistant":
                assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
                assert service["security_opt"] == ["no-new-privileges:true"]
                assert service["user"] in ("1883:1883", "65532:65532")
        what = path.parent.name if path in FILES else f"{path.parent.name}/{path.stem}"
        published[what] = any(service.get("ports") for service in services.values())
        if path.parent.name == "gateway":
            assert sum(int(service["mem_limit"]) for service in services.values()) < 256_000_000 * 1.048576
            assert sum(float(service["cpus"]) for service in services.values()) < 1
    assert published == {
        "broker": True,
        "edge": True,
        "gateway": False,
        "gateway/devices": True,
        "gateway/tunnel": False,
        "home-assistant": True,
        "tunnel": False,
    }


def mosquitto(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Debian's clients."""
    return subprocess.run([program(name), *words], capture_output=True, text=True, timeout=30, check=False)


def test_the_image_writes_a_stack_for_the_owner_of_the_folder(folder: Path) -> None:
    os.chown(folder, 1000, 1000)
    words = ("run", "--rm", "-v", f"{folder}:/stack", image(), "init", "/stack", "--stack", "gateway", "--host", "gw")
    assert "connect with TLS to gw, port 8883" in docker(*words).stdout
    for name, owner in (("docker-compose.yml", 1000), ("config/lockgate.toml", 1000), ("secrets/ca.key", 1000),
                        ("access", 1883), ("access/passwd", 1883), ("secrets/server.key", 1883)):  # fmt: skip
        assert (folder / name).stat().st_uid == owner, name
    again = docker(*words, check=False)
    assert again.returncode == 3
    assert "nothing was written" in again.stdout


# --- (a) the broker ---------------------------------------------------------------------------------------------------


def test_the_broker_serves_debians_clients_through_published_ports(tmp_path: Path) -> None:
    plain, tls = free_port(), free_port()
    stack = Stack(
        tmp_path / "broker", "broker",
        LOCKGATE_PORT=f"127.0.0.1:{plain}", LOCKGATE_TLS_PORT=f"127.0.0.1:{tls}",
    )  # fmt: skip
    try:
        stack.up(["broker"])
        secure = ("-h", "localhost", "-p", str(tls), "--cafile", str(stack.folder / "ca.crt"))
        pump = ("-u", "pump", "-P", stack.passwords["pump"])
        operator = ("-u", "operator", "-P", stack.passwords["operator"])
        said = mosquitto("mosquitto_pub", *secure, *pump, "-t", "pump/state", "-m", "on", "-q", "1", "-r")
        assert (said.returncode, said.stderr) == (0, "")
        heard = mosquitto(
            "mosquitto_sub", "-h", "127.0.0.1", "-p", str(plain), *operator, "-t", "#", "-C", "1", "-W", "10", "-v"
        )
        assert heard.stdout == "pump/state on\n"
        assert mosquitto("mosquitto_pub", *secure, "-t", "t", "-m", "x").returncode != 0
        wrong = mosquitto("mosquitto_pub", *secure, "-u", "pump", "-P", "guessed", "-t", "t", "-m", "x")
        assert "not authorised" in wrong.stderr
        assert stack.compose("run", "--rm", "--no-deps", "broker", "check").count(": good") == 1
        assert troubles(stack) == set()
    finally:
        stack.remove()


def troubles(stack: Stack) -> set[str]:
    """Give the checks of the doctor that a stack's broker does not pass; the clock is the machine's."""
    words = ("exec", f"{stack.name}_broker_1", "lockgate", "doctor", "--json")
    found = json.loads(subprocess.run(["docker", *words], capture_output=True, text=True, check=False).stdout)
    assert len(found["findings"]) > 8
    return {one["check"] for one in found["findings"] if one["severity"] != "ok"} - {"clock", "clock-free"}


# --- (b) the broker behind a tunnel; the vendor's image cannot be had here -------------------------------------------


def test_the_broker_behind_a_tunnel_serves_websockets_and_publishes_nothing(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "tunnel", "tunnel", (), TUNNEL_TOKEN="eyJhIjoiMDEyMzQ1Njc4OWFiY2RlZiJ9")
    try:
        stack.compose("up", "-d", "broker")
        stack.wait_healthy("broker")
        assert not any((stack.inspect("broker")["NetworkSettings"]["Ports"] or {}).values())
        door: dict[str, Any] = {"hostname": stack.address("broker"), "port": 9001, "transport": "websockets"}
        pump: Any = {"username": "pump", "password": stack.passwords["pump"]}
        publish_by_paho("pump/state", "on", qos=1, retain=True, auth=pump, **door)
        assert subscribe_by_paho("pump/#", auth=pump, **door).payload == b"on"
        with pytest.raises(MQTTException, match="Not authorized"):
            publish_by_paho("pump/state", "off", qos=1, **door)
    finally:
        stack.remove()


# --- (c) the gateway --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack") / "gateway", "gateway", GATEWAY_ID="hall-3")
    try:
        stack.up(SERVICES)
        yield stack
    finally:
        stack.remove()


def client(stack: Stack, user: str = "pump", password: str | None = None) -> tuple[str, ...]:
    """Give the options by which one of Debian's clients comes in, from the host, which reaches every container."""
    return ("-h", stack.address("broker"), "-u", user, "-P", password or stack.passwords[user])


def publish(stack: Stack, number: int) -> bool:
    """Publish a reading at QoS 1; whether it was acknowledged."""
    payload = f'{{"value": 1.5, "unit": "{number}"}}'
    try:
        options = client(stack)
    except StopIteration:  # no network, for a moment
        return False
    return mosquitto("mosquitto_pub", *options, "-t", "sensors/pump/t", "-m", payload, "-q", "1").returncode == 0


@contextlib.contextmanager
def publishing(stack: Stack) -> Iterator[set[int]]:
    """Keep publishing readings; gives the numbers of those that were acknowledged."""
    acknowledged: set[int] = set()
    stop = threading.Event()

    def keep_publishing() -> None:
        while not stop.is_set():
            number = next(NUMBERS)
            if publish(stack, number):
                acknowledged.add(number)

    publisher = threading.Thread(target=keep_publishing)
    publisher.start()
    try:
        yield acknowledged
    finally:
        stop.set()
        publisher.join()


def delivered(stack: Stack) -> list[int]:
    """Give the numbers of the readings that came out at the other end."""
    text = docker("exec", f"{stack.name}_forwarder_1", "cat", "/mosquitto/log/delivered.jsonl", check=False).stdout
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert all(line["id"].startswith("hall-3/") for line in lines)
    return [int(line["payload"]["unit"]) for line in lines if line["class"] == "telemetry"]


def wait_delivered(stack: Stack, wanted: set[int], seconds: float = 20.0) -> list[int]:
    """Give all that came out, once what is wanted is among it."""
    deadline = time.monotonic() + seconds
    while wanted - set(found := delivered(stack)):
        if time.monotonic() > deadline:
            pytest.fail(f"{sorted(wanted - set(found))} of {len(wanted)} readings do not come out")
        time.sleep(0.2)
    return found


def assert_the_books_close(stack: Stack) -> None:
    """Nothing is on its way any more, and both books say what became of everything."""
    deadline = time.monotonic() + 10.0
    while True:
        ledger = json.loads(stack.execute("processor", "lockgate", "ledger", "--json"))
        pending = sum(book["pending"] for book in ledger["deliveries"])
        if ledger["closes"] and not pending:
            break
        assert time.monotonic() < deadline, ledger
        time.sleep(0.2)
    assert {book["sink"] for book in ledger["deliveries"]} == {"delivered"}
    for book in ledger["deliveries"]:
        assert book["addressed"] == book["delivered"]
    assert not ledger["intake"]["refused"]


def test_it_comes_up_healthy_and_a_reading_comes_out(gateway: Stack) -> None:
    sent = {next(NUMBERS) for _ in range(5)}
    assert all(publish(gateway, number) for number in sent)
    assert sorted(wait_delivered(gateway, sent)) == sorted(sent)
    assert_the_books_close(gateway)
    for service in SERVICES:
        assert "Warning" not in gateway.logs(service)
    assert gateway.execute("broker", "lockgate", "check").count(": good") == 1
    assert troubles(gateway) <= {"processor"}  # three share a core, so that none has a whole one


def test_nothing_is_published_and_inside_reaches_no_other_network(gateway: Stack) -> None:
    for service in SERVICES:
        assert not any((gateway.inspect(service)["NetworkSettings"]["Ports"] or {}).values())
    assert [len(gateway.inspect(service)["Mounts"]) for service in SERVICES] == [4, 3, 3]  # no anonymous volume
    network = f"lockgate-test-{uuid4().hex[:8]}"
    docker("network", "create", network)
    try:
        serve = ["python3", "-m", "http.server", "8000"]
        with Container("--network", network, of=image(), command=serve) as other:
            address = other.inspect()["NetworkSettings"]["Networks"][network]["IPAddress"]
            again = "for _ in range(50):\n try: connect(); break\n except ConnectionRefusedError: time.sleep(0.1)\n"
            reach = (
                "import socket, sys, time\n"
                "def connect(): socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()\n"
                f"{again}else: connect()\n"
            )
            docker("run", "--rm", "--network", network, image(), "python3", "-c", reach, address, "8000")
            for service in ("broker", "processor"):
                said = gateway.execute(service, "python3", "-c", reach, address, "8000", check=False)
                assert "Error: [Errno 101] Network is unreachable" in said or "TimeoutError" in said, (service, said)
            assert "Traceback" not in gateway.execute("processor", "python3", "-c", reach, "broker", "1883")
            # who reaches out does not reach in
            for name in (gateway.address("broker"), "broker"):
                said = gateway.execute("forwarder", "python3", "-c", reach, name, "1883", check=False)
                assert any(word in said for word in ("TimeoutError", "unreachable", "gaierror")), said
    finally:
        docker("network", "rm", network)


def test_a_changed_password_counts_after_hup_and_connections_stay(gateway: Stack) -> None:
    before = gateway.inspect("broker")
    listen = [
        program("mosquitto_sub"),
        *client(gateway),
        "-t",
        "commands/pump/#",
        "-C",
        "1",
        "-W",
        "30",
        "-q",
        "1",
        "-i",
        "stays",
    ]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True) as connected:
        try:
            wait_log(gateway, " as stays ")
            change = ("run", "--rm", "--user", "1883:1883", "-v", f"{gateway.folder}/access:/access", image())
            docker(*change, "mosquitto_passwd", "-b", "/access/passwd", "valve", "a new one")
            assert mosquitto("mosquitto_pub", *client(gateway, "valve", "a new one"), "-t", "t", "-m", "x").returncode
            gateway.execute("broker", "python3", "-c", "import os; os.kill(1, 1)")
            wait_log(gateway, "Reloading config")
            new = client(gateway, "valve", "a new one")
            assert mosquitto("mosquitto_pub", *new, "-t", "sensors/valve/t", "-m", "1", "-q", "1").returncode == 0
            command = ("-t", "commands/pump/set", "-m", "open", "-q", "1")
            assert mosquitto("mosquitto_pub", *client(gateway, "operator"), *command).returncode == 0
            assert connected.communicate(timeout=30)[0] == "open\n"  # by the connection of before
        finally:
            connected.kill()
    assert gateway.logs("broker").count(" as stays ") == 1
    after = gateway.inspect("broker")
    assert (after["State"]["Pid"], after["RestartCount"]) == (before["State"]["Pid"], before["RestartCount"])


def wait_log(stack: Stack, words: str) -> None:
    deadline = time.monotonic() + 20.0
    while words not in stack.logs("broker"):
        assert time.monotonic() < deadline, stack.logs("broker")
        time.sleep(0.1)


def test_whoever_is_killed_comes_back_and_nothing_acknowledged_is_lost(
    gateway: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    gaps: dict[str, float] = {}
    with publishing(gateway) as acknowledged:
        for service in SERVICES:
            pid, count = gateway.pid(service), len(acknowledged)
            assert pid > 1
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            gateway.wait_healthy(service, not_pid=pid)
            gaps[service] = time.monotonic() - began
            wait_until(lambda count=count: len(acknowledged) > count + 20)  # type: ignore[misc]
            assert gateway.inspect(service)["RestartCount"] == 1
    wait_delivered(gateway, acknowledged)
    assert_the_books_close(gateway)
    with capsys.disabled():
        told = ", ".join(f"{service} {gap:.1f} s" for service, gap in gaps.items())
        print(f"\nkilled, and well again after: {told}; {len(acknowledged)} readings acknowledged meanwhile")


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_down_and_up_keep_sessions_retained_messages_and_the_buffer(gateway: Stack) -> None:
    phone = ("-i", "phone", "-c", "-q", "1", "-t", "commands/pump/#")
    assert mosquitto("mosquitto_sub", *client(gateway), *phone, "-E").returncode == 0
    for words in (("-t", "commands/pump/a", "-m", "queued"), ("-t", "commands/pump/b", "-m", "retained", "-r")):
        assert mosquitto("mosquitto_pub", *client(gateway, "operator"), *words, "-q", "1").returncode == 0
    gateway.compose("stop", "forwarder")
    waiting = {next(NUMBERS) for _ in range(5)}
    assert all(publish(gateway, number) for number in waiting)
    wait_until(lambda: '"pending": 5,' in gateway.execute("processor", "lockgate", "ledger", "--json"))

    gateway.compose("down")
    gateway.up(SERVICES)

    wait_delivered(gateway, waiting)
    heard = mosquitto("mosquitto_sub", *client(gateway), *phone, "-C", "2", "-W", "10")
    assert heard.stdout == "queued\nretained\n"
    fresh = ("-t", "commands/pump/#", "-C", "1", "-W", "10", "-v")
    assert mosquitto("mosquitto_sub", *client(gateway), *fresh).stdout == "commands/pump/b retained\n"
    assert_the_books_close(gateway)


def test_memory_and_processor_time_of_each_service(gateway: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """A load of some seconds stays within the limits; the figures are printed, not asserted."""
    before = {service: cpu_seconds(gateway.pid(service)) for service in SERVICES}
    sent = {next(NUMBERS) for _ in range(LOAD_RATE * LOAD_SECONDS)}
    words = ("-t", "sensors/pump/t", "-q", "1", "-l")
    with subprocess.Popen(
        [program("mosquitto_pub"), *client(gateway), *words], stdin=subprocess.PIPE, text=True
    ) as load:
        assert load.stdin is not None
        began = time.monotonic()
        for count, number in enumerate(sorted(sent)):
            if count % 20 == 0:
                time.sleep(max(0.0, began + count / LOAD_RATE - time.monotonic()))
                load.stdin.flush()
            load.stdin.write(f'{{"value": 1.5, "unit": "{number}"}}\n')
        load.stdin.close()
        assert load.wait(30) == 0
    took = time.monotonic() - began
    wait_delivered(gateway, sent)
    assert_the_books_close(gateway)
    with capsys.disabled():
        print(f"\n{len(sent)} readings in {took:.1f} s; resident, processor time meanwhile, limit of memory:")
        total = 0.0
        for service in SERVICES:
            status = Path(f"/proc/{gateway.pid(service)}/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
            limit = gateway.inspect(service)["HostConfig"]["Memory"] / 1024**2
            spent = cpu_seconds(gateway.pid(service)) - before[service]
            print(f"  {service:<10} {resident:5.1f} MiB  {spent:5.2f} s ({spent / took:.0%})  {limit:.0f} MiB")
            total += resident
        print(f"  {'together':<10} {total:5.1f} MiB")
    for service in SERVICES:
        assert not gateway.inspect(service)["State"]["OOMKilled"]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_devices_come_in_with_tls_where_the_owner_opens_the_door(gateway: Stack) -> None:
    port = free_port()
    gateway.environment["LOCKGATE_TLS_PORT"] = f"127.0.0.1:{port}"
    gateway.compose("-f", "docker-compose.yml", "-f", "devices.yml", "up", "-d", "broker")
    gateway.wait_healthy("broker")
    gateway.wait_healthy("processor")
    number = next(NUMBERS)
    tls = ("-h", "localhost", "-p", str(port), "--cafile", str(gateway.folder / "ca.crt"))
    pump = ("-u", "pump", "-P", gateway.passwords["pump"])
    reading = ("-t", "sensors/pump/t", "-m", f'{{"value": 1.5, "unit": "{number}"}}', "-q", "1")
    said = mosquitto("mosquitto_pub", *tls, *pump, *reading)
    assert (said.returncode, said.stderr) == (0, "")
    wait_delivered(gateway, {number})
    assert set(gateway.inspect("broker")["NetworkSettings"]["Ports"]) >= {"8883/tcp"}
    assert not gateway.inspect("broker")["NetworkSettings"]["Ports"].get("1883/tcp")


VOLUMES_ON_A_DISK = """\
volumes:
  broker-data:
    driver: local
    driver_opts: {{type: none, o: bind, device: {point}/broker}}
  buffer-data:
    driver: local
    driver_opts: {{type: none, o: bind, device: {point}/buffer}}
  delivered-data:
    driver: local
    driver_opts: {{type: none, o: bind, device: {point}/delivered}}
"""


def test_a_power_cut_of_the_volumes_loses_nothing_acknowledged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All three stop in one moment, and of their volumes only what was synced is there afterwards."""
    if trouble := disk_trouble("mkfs.ext4"):
        pytest.skip(trouble)
    disk, point = make_image(tmp_path / "image", 192), tmp_path / "disk"
    stack = Stack(tmp_path / "gateway", "gateway", GATEWAY_ID="hall-3")
    (stack.folder / "docker-compose.override.yml").write_text(VOLUMES_ON_A_DISK.format(point=point))
    try:
        with mounted(disk, point):
            for name in ("broker", "buffer", "delivered"):
                (point / name).mkdir()
                os.chown(point / name, 1883, 1883)
            stack.up(SERVICES)
            phone = ("-i", "phone", "-c", "-q", "1", "-t", "commands/pump/#")
            assert mosquitto("mosquitto_sub", *client(stack), *phone, "-E").returncode == 0
            command = ("-t", "commands/pump/a", "-m", "queued", "-r", "-q", "1")
            assert mosquitto("mosquitto_pub", *client(stack, "operator"), *command).returncode == 0
            with publishing(stack) as acknowledged:
                wait_until(lambda: len(acknowledged) > 100)
                for service in SERVICES:
                    os.kill(stack.pid(service), signal.SIGSTOP)
                cut_power(point)
                docker("kill", *(f"{stack.name}_{service}_1" for service in SERVICES))
            stack.compose("down")
        with mounted(disk, point):
            stack.up(SERVICES)
            wait_delivered(stack, acknowledged)
            assert_the_books_close(stack)
            heard = mosquitto("mosquitto_sub", *client(stack), *phone, "-C", "1", "-W", "10")
            assert heard.stdout == "queued\n"
            fresh = ("-t", "commands/pump/#", "-C", "1", "-W", "10", "-v")
            assert mosquitto("mosquitto_sub", *client(stack), *fresh).stdout == "commands/pump/a queued\n"
            stack.compose("down")
    finally:
        stack.remove()
    with capsys.disabled():
        print(f"\npower cut with {len(acknowledged)} readings acknowledged: none is missing")
