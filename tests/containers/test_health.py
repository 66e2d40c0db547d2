"""The engine is told when a broker is not well, each way it can be unwell, and when it is well again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.containers.conftest import OPEN
from tests.support.debian import publish
from tests.support.disks import disk_trouble, fill, make_image, memory_disk, mounted
from tests.support.docker import Container, image
from tests.support.peers import program

pytestmark = [pytest.mark.containers, pytest.mark.timeout(180)]
image()

QUICK = ("--health-interval", "1s", "--health-retries", "1", "--health-start-period", "0s")
PUBLISHED = ("-p", "127.0.0.1:0:1883")
CHECK = ("/usr/local/bin/python3", "-I", "-S", "/opt/lockgate/healthcheck.py")


def open_to_all(folder: Path) -> tuple[str, ...]:
    """Options that mount a configuration which lets everybody in."""
    conf = folder / "mosquitto.conf"
    conf.write_text(OPEN)
    return (*PUBLISHED, "-v", f"{conf}:/mosquitto/config/mosquitto.conf:ro")


def test_a_broker_that_is_well(either: str, folder: Path) -> None:
    with Container(*QUICK, *open_to_all(folder), of=either) as broker:
        assert broker.wait_for_health("healthy").startswith("broker: well, a message takes ")
        publish(broker.port(), "t", "kept", "-r")
        assert "last commit " in broker.execute(*CHECK)
        lines = broker.logs()
        broker.execute(*CHECK)
        assert broker.logs() == lines


def test_nobody_sees_that_it_is_asked(folder: Path) -> None:
    """What the broker counts of itself is the same however often it is asked."""
    conf = folder / "mosquitto.conf"
    conf.write_text(f"{OPEN}sys_interval 1\nlog_type all\n")
    mount = ("-v", f"{conf}:/mosquitto/config/mosquitto.conf:ro")
    with Container(*PUBLISHED, *mount) as broker:
        broker.wait_for("running")

        def listen(*words: str) -> str:
            command = [program("mosquitto_sub"), "-p", str(broker.port()), "-W", "10", *words]
            return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout

        def figures() -> list[str]:
            listen("-t", "$SYS/broker/uptime", "-R", "-C", "2")  # so that they are those of now
            return [
                listen("-t", f"$SYS/broker/{name}", "-C", "1")
                for name in ("publish/messages/received", "mqtt/puback/sent")
            ]

        assert figures() == ["0\n", "0\n"]
        everything = ["-t", "#", "-t", "+", "-t", "$SYS/#", "-v", "-W", "10"]
        command = [program("mosquitto_sub"), "-p", str(broker.port()), *everything]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curious:
            broker.wait_for("Sending CONNACK", count=4)
            for _ in range(5):
                broker.execute(*CHECK)
            assert figures() == ["0\n", "0\n"]
            seen, _ = curious.communicate(timeout=20)
        assert {line.partition("/")[0] for line in seen.splitlines()} == {"$SYS"}


def test_a_loop_that_does_not_turn(either: str, folder: Path) -> None:
    with Container(*QUICK, *open_to_all(folder), of=either) as broker:
        broker.wait_for_health("healthy")
        pid = broker.pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            assert "no answer in 3 s, its loop is blocked" in broker.wait_for_health("unhealthy")
        finally:
            os.kill(pid, signal.SIGCONT)
        broker.wait_for_health("healthy")


def test_a_disk_that_is_full(either: str, folder: Path) -> None:
    with memory_disk(folder / "data", 8) as disk:
        disk.chmod(0o777)
        options = (*QUICK, *open_to_all(folder), "-v", f"{disk}:/mosquitto/data")
        with Container(*options, of=either) as broker:
            broker.wait_for_health("healthy")
            filler = disk / "filler"
            fill(filler)
            command = [program("mosquitto_pub"), "-p", str(broker.port()), "-t", "t", "-q", "1", "-r", "-m", "kept"]
            with subprocess.Popen(command) as waiting:
                said = broker.wait_for_health("unhealthy")
                assert said == "broker: the store cannot be written: the disk is full\n"
                filler.unlink()
                broker.wait_for_health("healthy")
                assert waiting.wait(20) == 0


@pytest.mark.skipif(bool(disk_trouble("mkfs.ext4")), reason=disk_trouble("mkfs.ext4") or "there are disks")
def test_a_commit_that_does_not_end(folder: Path) -> None:
    """The disk is frozen, as one is that has stopped to answer: the commit neither fails nor ends."""
    freeze = shutil.which("fsfreeze", path="/usr/sbin:/sbin")
    assert freeze
    with mounted(make_image(folder / "disk.img", 64), folder / "data") as disk:
        disk.chmod(0o777)
        with Container(*QUICK, *open_to_all(folder), "-v", f"{disk}:/mosquitto/data") as broker:
            broker.wait_for_health("healthy")
            subprocess.run([freeze, "-f", str(disk)], check=True)
            try:
                command = [program("mosquitto_pub"), "-p", str(broker.port()), "-t", "t", "-q", "1", "-r", "-m", "kept"]
                with subprocess.Popen(command) as waiting:
                    assert "a commit has not ended for " in broker.wait_for_health("unhealthy", 40)
                    assert waiting.poll() is None  # nothing was promised
                    subprocess.run([freeze, "-u", str(disk)], check=True)
                    assert waiting.wait(20) == 0
            finally:
                subprocess.run([freeze, "-u", str(disk)], check=False, capture_output=True)
            broker.wait_for_health("healthy")


def test_every_service_of_a_gateway_is_asked(folder: Path) -> None:
    conf = folder / "lockgate.toml"
    conf.write_text('[gateway]\nid = "g"\n[processor]\n[sinks.file]\ntype = "file"\npath = "/tmp/out"\n')
    with Container(*QUICK, "-v", f"{conf}:/mosquitto/config/lockgate.toml:ro", command=["up"]) as gateway:
        said = gateway.wait_for_health("healthy", 40)
        assert [line.partition(":")[0] for line in said.splitlines()] == ["broker", "processor", "forwarder"]


def test_root_without_its_capabilities_may_still_ask(either: str) -> None:
    """The engine runs the check as the container's user: root, where it was not said otherwise."""
    options = ("--cap-drop", "ALL", "--cap-add", "CHOWN", "--cap-add", "SETUID", "--cap-add", "SETGID")
    with Container(*QUICK, *options, of=either) as broker:
        assert broker.wait_for_health("healthy").startswith("broker: well")


def test_the_image_says_how_it_is_checked() -> None:
    with Container() as broker:
        check = broker.inspect()["Config"]["Healthcheck"]
        assert check["Test"] == ["CMD", *CHECK]
