from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from lockgate.doctor import ports
from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding
from tests.support.machines import MadeUp, case_of, docker_engine


def machine(case: Case) -> MadeUp:
    assert isinstance(case.machine, MadeUp)
    return case.machine


def running(case: Case, *opened: int, pid: int = 7) -> Case:
    return dataclasses.replace(case, status={"pid": pid, "status": {"ports": list(opened)}})


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def test_a_free_port_is_good(tmp_path: Path) -> None:
    assert only(list(ports.in_use(case_of(tmp_path, "listener 1883")))).severity == "ok"


def test_another_program_is_named_with_its_pid(tmp_path: Path) -> None:
    case = case_of(tmp_path, "allow_anonymous true", "listener 1883")
    machine(case).listen(1883, "0.0.0.0", 5, 812, "mosquitto", "-c", "/etc/mosquitto/mosquitto.conf")
    found = only(list(ports.in_use(case)))
    assert found.severity == "error"
    assert found.where == f"{case.path}:2"
    assert "mosquitto (pid 812): mosquitto -c /etc/mosquitto/mosquitto.conf" in found.problem
    assert "cannot start" in found.why
    assert "systemctl" in found.advice


def test_a_port_of_another_address_is_no_obstacle(tmp_path: Path) -> None:
    case = case_of(tmp_path, "listener 1883 127.0.0.1")
    machine(case).listen(1883, "10.9.8.7", 5, 812, "other")
    assert only(list(ports.in_use(case))).severity == "ok"


def test_our_own_broker_is_no_finding(tmp_path: Path) -> None:
    case = running(case_of(tmp_path, "listener 1883"), 1883, pid=812)
    machine(case).listen(1883, "0.0.0.0", 5, 812, "lockgate")
    assert only(list(ports.in_use(case))) == Finding("port", "ok", "port 1883", "open, by this broker")


def test_our_own_broker_whose_sockets_cannot_be_seen_is_no_finding(tmp_path: Path) -> None:
    case = running(case_of(tmp_path, "listener 1883"), 1883)
    machine(case).listen(1883, "0.0.0.0", 5, 0, "")
    assert only(list(ports.in_use(case))).severity == "ok"


def test_a_broker_that_listens_elsewhere_is_told(tmp_path: Path) -> None:
    found = only(list(ports.in_use(running(case_of(tmp_path, "listener 1884"), 1883))))
    assert found.severity == "warning"
    assert "has not opened port 1884" in found.problem
    assert "port 1883" in found.why


def test_while_the_broker_listens_elsewhere_another_program_has_the_port(tmp_path: Path) -> None:
    case = running(case_of(tmp_path, "listener 1884"), 1883)
    machine(case).listen(1884, "127.0.0.1", 5, 99, "nginx")
    found = only(list(ports.in_use(case)))
    assert "nginx (pid 99)" in found.problem
    assert "do not reach this broker" in found.why


def test_a_holder_that_cannot_be_seen_is_told(tmp_path: Path) -> None:
    case = case_of(tmp_path, "listener 1883")
    machine(case).listen(1883, "0.0.0.0", 5, 0, "")
    found = only(list(ports.in_use(case)))
    assert "cannot be seen" in found.problem
    assert "root" in found.advice


def test_a_container_that_published_the_port_is_known_by_its_proxy(tmp_path: Path) -> None:
    case = case_of(tmp_path, "listener 1883")
    words = ("-proto", "tcp", "-host-port", "1883", "-container-ip", "172.17.0.2", "-container-port", "1883")
    machine(case).listen(1883, "0.0.0.0", 5, 44, "docker-proxy", *words)
    found = only(list(ports.in_use(case)))
    assert "a container at 172.17.0.2 that published it" in found.problem


def test_docker_names_the_container_that_published_the_port(tmp_path: Path) -> None:
    case = case_of(tmp_path, "listener 1883")
    machine(case).listen(1883, "0.0.0.0", 5, 44, "docker-proxy")
    with tempfile.TemporaryDirectory() as short:  # a Unix socket's path is short
        machine(case).docker_socket = Path(short) / "docker.sock"
        published = [{"PublicPort": 1883, "PrivatePort": 1884, "Type": "tcp"}]
        with docker_engine(machine(case).docker_socket, [{"Names": ["/home-mqtt"], "Ports": published}]):
            found = only(list(ports.in_use(case)))
    assert "the container home-mqtt, which publishes its port 1884 there" in found.problem
    assert "stop that container" in found.advice


def test_an_address_of_another_machine_is_told(tmp_path: Path) -> None:
    found = only(list(ports.addresses(case_of(tmp_path, "listener 1883 203.0.113.9"))))
    assert found.severity == "error"
    assert "203.0.113.9 is no address of this machine" in found.problem
    assert not list(ports.addresses(case_of(tmp_path, "listener 1883 127.0.0.1")))


def test_a_low_port_is_for_root_alone(tmp_path: Path) -> None:
    case = case_of(tmp_path, "listener 80")
    machine(case).write("proc/sys/net/ipv4/ip_unprivileged_port_start", "1024\n")
    machine(case).write("proc/7/status", "Name:\tx\nUid:\t1883\t1883\t1883\t1883\nGid:\t1883\t1883\t1883\t1883\n")
    found = only(list(ports.addresses(running(case))))
    assert "may not open port 80" in found.problem
    machine(case).write("proc/sys/net/ipv4/ip_unprivileged_port_start", "0\n")
    assert not list(ports.addresses(running(case)))
