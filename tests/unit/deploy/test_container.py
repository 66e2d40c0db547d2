"""The container that takes another one's place: what was said for the old one, and nothing of the old image."""

from __future__ import annotations

from typing import Any

import pytest

from lockgate.deploy.container import MARK, Container, creation
from lockgate.deploy.errors import DeployError
from lockgate.deploy.project import in_order, is_broker, of_environment
from tests.support.engines import FakeEngine

ID = "0123456789ab" + "0" * 52
IMAGE: dict[str, Any] = {
    "Env": ["PATH=/bin", "VERSION=1"],
    "Cmd": ["mosquitto"],
    "Entrypoint": ["/docker-entrypoint.sh"],
    "Labels": {"org.opencontainers.image.version": "1", "kept": "image"},
    "Volumes": {"/mosquitto/log": {}},
    "ExposedPorts": {"1883/tcp": {}},
    "Healthcheck": {"Test": ["CMD", "old"], "Interval": 30, "Retries": 3},
    "User": "",
    "WorkingDir": "/old",
    "StopSignal": "SIGTERM",
}


def container(config: dict[str, Any] | None = None, host: dict[str, Any] | None = None, **more: Any) -> Container:
    """A container of `IMAGE`, with what was said for it."""
    return Container(
        {
            "Id": ID,
            "Name": "/p_broker_1",
            "Config": {**IMAGE, "Hostname": ID[:12], "Image": "old", **(config or {})},
            "HostConfig": {"NetworkMode": "p_inside", "RestartPolicy": {"Name": "always"}, **(host or {})},
            "NetworkSettings": {"Networks": {"p_inside": {"Aliases": ["broker", ID[:12]], "IPAddress": "172.20.0.2"}}},
            **more,
        }
    )


def made(old: Container) -> dict[str, Any]:
    return creation(old, IMAGE, "new@sha256:1", "sha256:9", "t0")[0]


def test_what_the_old_image_said_is_left_to_the_new_one() -> None:
    body = made(container())
    assert body["Image"] == "new@sha256:1"
    assert body["Env"] == []
    assert body["Labels"] == {MARK: "t0"}
    for name in ("Cmd", "Entrypoint", "Healthcheck", "User", "WorkingDir", "StopSignal", "Hostname"):
        assert name not in body, name
    assert (body["Volumes"], body["ExposedPorts"]) == ({}, {})
    assert body["HostConfig"]["RestartPolicy"]["Name"] == "no"


def test_what_was_said_for_the_container_stays() -> None:
    config = {
        "Env": ["PATH=/bin", "VERSION=2", "TZ=UTC"],
        "Cmd": ["broker"],
        "Labels": {"org.opencontainers.image.version": "1", "kept": "mine", "com.docker.compose.image": "sha256:0"},
        "ExposedPorts": {"1883/tcp": {}, "8080/tcp": {}},
        "Healthcheck": {"Test": ["CMD", "old"], "Interval": 1, "Retries": 3},
        "User": "1883:1883",
        "Hostname": "gateway",
        "StopTimeout": 30,
    }
    host = {
        "Binds": ["data:/mosquitto/data:rw"],
        "ReadonlyRootfs": True,
        "PortBindings": {"8883/tcp": [{"HostPort": "8883"}]},
    }
    old = container(config, host)
    body = made(old)
    assert body["Env"] == ["VERSION=2", "TZ=UTC"]
    assert body["Cmd"] == ["broker"]
    assert body["Labels"] == {"kept": "mine", "com.docker.compose.image": "sha256:9", MARK: "t0"}
    assert body["ExposedPorts"] == {"8080/tcp": {}}
    assert body["Healthcheck"] == {"Interval": 1}
    assert (body["User"], body["Hostname"], body["StopTimeout"]) == ("1883:1883", "gateway", 30)
    assert {**body["HostConfig"], "RestartPolicy": None} == {**old.attributes["HostConfig"], "RestartPolicy": None}
    assert old.attributes["HostConfig"]["RestartPolicy"]["Name"] == "always"  # nothing of it was changed


def test_an_entry_point_of_its_own_keeps_its_words() -> None:
    body = made(container({"Entrypoint": ["/bin/sh"], "Cmd": ["mosquitto"]}))
    assert (body["Entrypoint"], body["Cmd"]) == (["/bin/sh"], ["mosquitto"])


def test_volumes_without_a_name_go_along() -> None:
    mounts = [
        {"Type": "volume", "Name": "data", "Destination": "/mosquitto/data", "RW": True},
        {"Type": "volume", "Name": "4711", "Destination": "/mosquitto/log", "RW": True},
        {"Type": "volume", "Name": "named", "Destination": "/extra", "RW": True},
        {"Type": "bind", "Source": "/srv", "Destination": "/srv", "RW": False},
    ]
    host = {"Binds": ["data:/mosquitto/data:rw", "/srv:/srv:ro"], "Mounts": [{"Target": "/extra", "Source": "named"}]}
    body = made(container({}, host, Mounts=mounts))
    assert body["HostConfig"]["Binds"] == ["data:/mosquitto/data:rw", "/srv:/srv:ro", "4711:/mosquitto/log"]


def test_networks_and_names_in_them_go_along_but_no_address_that_was_chance() -> None:
    networks = {
        "p_devices": {"Aliases": ["gw", ID[:12]], "IPAMConfig": {"IPv4Address": "10.0.0.9"}, "IPAddress": "10.0.0.9"},
        "p_inside": {
            "Aliases": ["broker", ID[:12]],
            "IPAMConfig": None,
            "IPAddress": "172.20.0.2",
            "MacAddress": "02:42",
        },
    }
    body, others = creation(container(NetworkSettings={"Networks": networks}), IMAGE, "new", "sha256:9", "t0")
    assert body["NetworkingConfig"] == {"EndpointsConfig": {"p_inside": {"Aliases": ["broker"]}}}
    assert others == {"p_devices": {"Aliases": ["gw"], "IPAMConfig": {"IPv4Address": "10.0.0.9"}}}


@pytest.mark.parametrize("mode", ["host", "none", "bridge", "default", "container:abc"])
def test_modes_that_are_no_network_of_the_project(mode: str) -> None:
    body, others = creation(container({}, {"NetworkMode": mode}), IMAGE, "new", "sha256:9", "t0")
    assert "NetworkingConfig" not in body
    assert others == {}


def test_what_is_removed_when_it_stops_cannot_be_gone_back_to() -> None:
    with pytest.raises(DeployError, match="--rm"):
        made(container({}, {"AutoRemove": True}))


def test_the_order_is_declared_or_that_of_dependence_or_the_broker_first() -> None:
    engine = FakeEngine()
    names = [engine.add(name) for name in ("forwarder", "other", "processor", "broker")]
    assert [one.service for one in in_order(names)] == ["broker", "processor", "forwarder", "other"]
    declared = ("other", "forwarder", "broker", "processor")
    assert tuple(one.service for one in in_order(names, declared)) == declared
    label = "com.docker.compose.depends_on"
    chained = [
        engine.add("a", words=("x",), **{label: "b:service_started:false"}),
        engine.add("b", words=("x",), **{label: "c:service_healthy:true,elsewhere:service_started:false"}),
        engine.add("c", words=("x",)),
    ]
    assert [one.service for one in in_order(chained)] == ["c", "b", "a"]
    circle = [engine.add("d", words=("x",), **{label: "e"}), engine.add("e", words=("x",), **{label: "d"})]
    assert [one.service for one in in_order(circle)] == ["d", "e"]


def test_who_is_a_broker() -> None:
    engine = FakeEngine()
    assert is_broker(engine.add("a", words=("/usr/sbin/mosquitto", "-c", "x")))
    assert is_broker(engine.add("b", words=("up",)))
    assert is_broker(engine.add("c", words=("broker", "processor")))
    assert not is_broker(engine.add("d", words=("forwarder",)))


def test_one_line_of_the_environment_file_is_changed() -> None:
    assert of_environment("", "A", "2") == "A=2\n"
    assert of_environment("# mine\nB=1\nA=1\nC=3", "A", "2") == "# mine\nB=1\nA=2\nC=3\n"
    assert of_environment("A=1\nAB=1\nA =0\n", "A", "2") == "A=2\nAB=1\n"
