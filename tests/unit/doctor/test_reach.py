from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.doctor import reach
from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding
from tests.support.machines import MadeUp, case_of, docker_engine


def machine(case: Case) -> MadeUp:
    assert isinstance(case.machine, MadeUp)
    return case.machine


def contained(folder: Path, *lines: str) -> Case:
    case = case_of(folder, *lines)
    machine(case).make_container()
    return case


def bad(found: Iterator[Finding]) -> list[Finding]:
    return [one for one in found if one.severity != "ok"]


def test_a_container_is_known_by_its_marks(tmp_path: Path) -> None:
    made_up = MadeUp(tmp_path)
    assert not made_up.in_container
    made_up.write("proc/self/cgroup", "12:memory:/docker/0123abc\n")
    assert made_up.in_container


def test_without_a_listener_nobody_outside_of_a_container_reaches_it(tmp_path: Path) -> None:
    (found,) = bad(reach.from_outside(contained(tmp_path, "allow_anonymous true")))
    assert (found.check, found.severity) == ("local-only", "error")
    assert "ports:" in found.advice
    (found,) = bad(reach.from_outside(case_of(tmp_path / "machine", "allow_anonymous true")))
    assert found.severity == "warning"


def test_a_listener_of_the_containers_own_loopback_is_told(tmp_path: Path) -> None:
    (found,) = bad(reach.from_outside(contained(tmp_path, "listener 1883 127.0.0.1")))
    assert (found.severity, found.where) == ("error", f"{tmp_path / 'mosquitto.conf'}:1")
    assert "127.0.0.1:1883:1883" in found.advice


def test_beside_a_public_listener_a_local_one_is_a_warning_only_in_a_container(tmp_path: Path) -> None:
    lines = ("listener 1883", "listener 1884 127.0.0.1")
    (found,) = bad(reach.from_outside(contained(tmp_path, *lines)))
    assert (found.severity, found.where) == ("warning", f"{tmp_path / 'mosquitto.conf'}:2")
    (tmp_path / "machine/.dockerenv").unlink()
    assert not bad(reach.from_outside(case_of(tmp_path, *lines)))


def test_a_configuration_of_comments_is_told(tmp_path: Path) -> None:
    (found,) = reach.empty(case_of(tmp_path, "# listener 1883", ""))
    assert "only comments" in found.problem
    (found,) = reach.empty(case_of(tmp_path))
    assert "is empty" in found.problem
    assert not list(reach.empty(case_of(tmp_path, "listener 1883")))


@pytest.mark.parametrize(
    ("mounts", "check"),
    [
        ([("/", "overlay")], "not-mounted"),
        ([("/", "overlay"), ("/mosquitto/data", "ext4")], "not-mounted"),
        ([("/", "overlay"), ("/mosquitto/config", "ext4")], "mounted"),
        ([("/", "overlay"), ("/mosquitto/config/mosquitto.conf", "ext4")], "mounted"),
    ],
)
def test_the_configuration_of_the_image_is_told_from_a_mounted_one(
    mounts: list[tuple[str, str]], check: str, tmp_path: Path
) -> None:
    case = contained(tmp_path, "listener 1883")
    machine(case).mount(*mounts)
    case.conf = Path("/mosquitto/config/mosquitto.conf")
    assert [one.check for one in reach.mounted(case)] == [check]


def test_a_published_port_without_a_listener_is_told(tmp_path: Path) -> None:
    case = case_of(tmp_path, "listener 1883")
    ports = [
        {"PublicPort": 1883, "PrivatePort": 1883, "Type": "tcp"},
        {"PublicPort": 9443, "PrivatePort": 9001, "Type": "tcp"},
    ]
    mounts = [{"Source": str(tmp_path), "Destination": "/mosquitto/config"}]
    others = {"Names": ["/other"], "Ports": [{"PublicPort": 1, "PrivatePort": 2, "Type": "tcp"}], "Mounts": []}
    with tempfile.TemporaryDirectory() as short:
        machine(case).docker_socket = Path(short) / "docker.sock"
        with docker_engine(
            machine(case).docker_socket, [others, {"Names": ["/mqtt"], "Ports": ports, "Mounts": mounts}]
        ):
            (found,) = reach.published(case)
    assert found.where == "port 9443 of this machine"
    assert "container mqtt publishes its port 9001" in found.problem


def test_without_docker_nothing_is_said_of_published_ports(tmp_path: Path) -> None:
    assert not list(reach.published(dataclasses.replace(case_of(tmp_path, "listener 1883"))))


def test_the_machines_own_network_is_not_the_containers(tmp_path: Path) -> None:
    case = contained(tmp_path, "listener 1883 127.0.0.1")
    (machine(case).root / "sys/class/net/docker0").mkdir(parents=True)
    assert not bad(reach.from_outside(case))


def test_within_a_container_it_is_known_by_its_id(tmp_path: Path) -> None:
    case = contained(tmp_path, "listener 1883")
    machine(case).write("etc/hostname", "0123456789ab\n")
    ports = [{"PublicPort": 9443, "PrivatePort": 9001, "Type": "tcp"}]
    others: dict[str, object] = {"Id": "ffff", "Names": ["/other"], "Ports": ports, "Mounts": []}
    with tempfile.TemporaryDirectory() as short:
        machine(case).docker_socket = Path(short) / "docker.sock"
        own: dict[str, object] = {"Id": "0123456789abcdef", "Names": ["/mqtt"], "Ports": ports, "Mounts": []}
        with docker_engine(machine(case).docker_socket, [others, own]):
            (found,) = reach.published(case)
    assert "container mqtt publishes" in found.problem


def test_a_volume_that_nobody_named_holds_the_images_configuration(tmp_path: Path) -> None:
    case = contained(tmp_path, "listener 1883")
    case.conf = Path("/mosquitto/config/mosquitto.conf")
    volumes = "/var/lib/docker/volumes"
    machine(case).mount(("/", "overlay"), ("/mosquitto/config", "ext4"), source=f"{volumes}/{'0f' * 32}/_data")
    assert [one.check for one in reach.mounted(case)] == ["not-mounted"]
    machine(case).mount(("/", "overlay"), ("/mosquitto/config", "ext4"), source=f"{volumes}/named/_data")
    assert [one.check for one in reach.mounted(case)] == ["mounted"]
