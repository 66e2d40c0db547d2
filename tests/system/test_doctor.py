"""`lockgate doctor` and `lockgate verify` beside real brokers: ours, and Debian's mosquitto."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lockgate.cli import main
from tests.support.certificates import Authority
from tests.support.dialog import Dialog
from tests.support.gateway import Gateway
from tests.support.peers import Mosquitto, free_port

WAIT = 20.0
Found = list[dict[str, Any]]


class Doctor:
    """Calls the commands in this process, and reads what they say."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.status = 0

    def look(self, *words: str) -> Found:
        self.status = main(["doctor", "--json", *words])
        found: Found = json.loads(self._capsys.readouterr().out)["findings"]
        for one in found:
            assert one["where"]
            assert one["problem"]
            assert one["severity"] == "ok" or (one["why"] and one["advice"]) or one["check"] == "configuration"
        worst = {one["severity"] for one in found}
        if self.status != 3:
            assert self.status == (2 if "error" in worst else 1 if "warning" in worst else 0)
        return found

    def walk(self, gateway: Gateway, client: str, topic: str, *words: str) -> Found:
        """The way of a message, to where it stops."""
        main(["doctor", "--json", "-c", str(gateway.toml), "--client", client, "--topic", topic, *words])
        said = json.loads(self._capsys.readouterr().out)
        way: Found = said["way"]
        errors = [one["check"] for one in way if one["severity"] == "error"]
        assert errors == ([said["stops_at"]] if said["stops_at"] is not None else [])
        return way

    def verify(self, *words: str) -> list[dict[str, Any]]:
        self.status = main(["verify", "--json", *words])
        said = json.loads(self._capsys.readouterr().out)
        assert self.status == (0 if said["passed"] else 1)
        visits: list[dict[str, Any]] = said["visits"]
        return visits

    def text(self, *words: str) -> str:
        self.status = main(list(words))
        return self._capsys.readouterr().out


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


def of(found: Found, check: str) -> dict[str, Any]:
    return next(one for one in found if one["check"] == check)


# --- the broker and its ports ----------------------------------------------------------------------------------------


def test_a_broker_that_is_down_and_then_up(tmp_path: Path, doctor: Doctor) -> None:
    gateway = Gateway(tmp_path)
    assert of(doctor.look("-c", str(gateway.toml)), "port")["problem"] == "free"
    with gateway.running("broker"):
        found = doctor.look("-c", str(gateway.toml))
        assert of(found, "port")["problem"] == "open, by this broker"
        assert of(found, "store")["severity"] == "ok"
        assert "acknowledgements a second" in of(found, "sync-time")["problem"]
        assert not [one for one in found if one["check"] in ("owner", "reserve", "clock-jump")]
        text = doctor.text("doctor", "-c", str(gateway.toml))
        assert f"the broker runs (pid {gateway.pid('broker')})" in text
        assert text.splitlines()[-1].startswith("Errors: ")


def test_a_broker_that_listens_elsewhere_than_its_file_now_says(tmp_path: Path, doctor: Doctor) -> None:
    gateway = Gateway(tmp_path)
    conf = tmp_path / "mosquitto.conf"
    with gateway.running("broker"):
        other = free_port()
        conf.write_text(f"listener {other} 127.0.0.1\nallow_anonymous true\n")
        told = of(doctor.look("-c", str(gateway.toml)), "port")
        assert told["severity"] == "warning"
        assert f"has not opened port {other}" in told["problem"]
        assert str(gateway.port) in told["why"]


def test_a_port_that_mosquitto_holds(tmp_path: Path, doctor: Doctor) -> None:
    gateway = Gateway(tmp_path)
    mosquitto = Mosquitto(tmp_path, port=gateway.port)
    try:
        told = of(doctor.look("-c", str(gateway.toml)), "port")
    finally:
        mosquitto.stop()
    assert doctor.status == 2
    assert told["severity"] == "error"
    assert told["where"] == f"{tmp_path / 'mosquitto.conf'}:1"
    assert "mosquitto (pid" in told["problem"]


def test_a_configuration_with_mistakes_is_told_line_by_line(tmp_path: Path, doctor: Doctor) -> None:
    conf = tmp_path / "mosquitto.conf"
    conf.write_bytes(b"\xef\xbb\xbflistener 1883\r\nallow_anonymuos true\r\n")
    found = doctor.look("-c", str(conf))
    assert doctor.status == 2
    assert [one["where"] for one in found if one["check"] == "configuration"] == [f"{conf}:1", f"{conf}:2"]
    assert {"byte-order-mark", "line-ends"} <= {one["check"] for one in found}


def test_mistakes_in_the_files_it_names_are_told(tmp_path: Path, doctor: Doctor) -> None:
    passwords, acl = tmp_path / "passwords", tmp_path / "acl"
    passwords.write_text("somebody:in clear text\n")
    acl.write_text("user u\ntopic raed a\n")
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(f"listener 1883\npassword_file {passwords}\n")
    told = of(doctor.look("-c", str(conf)), "configuration")
    assert (told["severity"], told["where"]) == ("error", f"{passwords}:1")
    conf.write_text(f"listener 1883\nacl_file {acl}\n")
    assert of(doctor.look("-c", str(conf)), "configuration")["where"] == f"{acl}:2"
    conf.write_text(f"listener 1883\nacl_file {tmp_path / 'none'}\n")
    found = doctor.look("-c", str(conf))
    assert of(found, "missing")["where"] == f"{conf}:2"
    assert "configuration" not in [one["check"] for one in found]  # once is enough


def test_a_check_that_cannot_look_leaves_the_others(
    tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> float:
        raise PermissionError(13, "Permission denied", "/some/where")

    monkeypatch.setattr(os, "statvfs", fails)
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(f"listener 1883\npersistence true\npersistence_location {tmp_path}\n")
    found = doctor.look("-c", str(conf))
    assert of(found, "unseen")["where"] == "/some/where"
    assert of(found, "open-files")


def test_the_places_of_a_configuration_are_those_of_the_image_too(
    tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "mosquitto.conf"
    monkeypatch.setattr("lockgate.doctor.case.PLACES", (tmp_path / "lockgate.toml", conf))
    assert len(doctor.look()) == 1
    assert doctor.status == 3
    port = free_port()
    conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    assert of(doctor.look(), "port")["where"] == f"port {port} of 127.0.0.1"
    assert {one["listener"] for one in doctor.verify()} == {f"port {port} of 127.0.0.1 (MQTT)"}


def test_no_configuration_at_all(tmp_path: Path, doctor: Doctor) -> None:
    (found,) = doctor.look("-c", str(tmp_path / "none.conf"))
    assert doctor.status == 3
    assert "No such file" in found["problem"]


def test_client_and_topic_belong_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--client", "c"]) == 3
    assert "--topic" in capsys.readouterr().err


# --- a subscriber that gets nothing ----------------------------------------------------------------------------------


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite open/#\ntopic write closed/#\ntopic read told/#\n")
    acl.chmod(0o600)
    with Gateway(tmp_path, mosquitto_conf=[f"acl_file {acl}", "max_queued_messages 2"]).running("broker") as running:
        yield running


def test_a_walk_says_where_a_message_stops(gateway: Gateway, doctor: Doctor) -> None:
    found = doctor.walk(gateway, "panel", "open/a")
    assert (found[-1]["check"], found[-1]["severity"]) == ("connection", "error")
    with Dialog(gateway.port, "panel") as panel, Dialog(gateway.port, "sensor") as sensor:
        found = doctor.walk(gateway, "panel", "open/a")
        assert "no subscriptions" in of(found, "filter")["problem"]
        panel.subscribe("open/+", qos=1)
        panel.subscribe("closed/#", qos=1)
        assert "differs" in of(doctor.walk(gateway, "panel", "Open/a"), "filter")["problem"]
        assert "exactly one level" in of(doctor.walk(gateway, "panel", "open/a/b"), "filter")["problem"]
        found = doctor.walk(gateway, "panel", "closed/a")
        assert (found[-1]["check"], found[-1]["severity"]) == ("acl", "error")
        found = doctor.walk(gateway, "panel", "open/a", "--publisher", "sensor")
        assert [one["severity"] for one in found] == ["ok"] * len(found)
        words = ("doctor", "-c", str(gateway.toml), "--client", "panel", "--topic")
        assert "\nIt arrives.\n" in doctor.text(*words, "open/a")
        assert "\nIt stops at: acl.\n" in doctor.text(*words, "closed/a")
        panel.subscribe("told/#", qos=1)
        found = doctor.walk(gateway, "panel", "told/a", "--publisher", "sensor")
        assert (found[-1]["check"], found[-1]["severity"]) == ("publisher-acl", "error")
        sensor.publish("open/a", b"x", retain=True)
        assert (
            "1 bytes are retained by client 'sensor'"
            in of(doctor.walk(gateway, "panel", "open/a"), "retained")["problem"]
        )
    found = doctor.walk(gateway, "panel", "open/a")
    assert "it is not connected" in of(found, "connection")["problem"]
    assert "QoS 1 and 2 wait" in of(found, "connection")["why"]


def test_a_queue_that_was_full_is_told(gateway: Gateway, doctor: Doctor) -> None:
    with Dialog(gateway.port, "panel") as panel:
        panel.subscribe("open/a", qos=1)
    with Dialog(gateway.port, "sensor") as sensor:
        for _ in range(5):
            sensor.publish("open/a", b"x")
    with Dialog(gateway.port, "panel"):
        found = doctor.walk(gateway, "panel", "open/a")
    assert "3 times" in of(found, "queue-full")["problem"]


def test_a_member_of_a_group_gets_a_part(gateway: Gateway, doctor: Doctor) -> None:
    with Dialog(gateway.port, "one") as one, Dialog(gateway.port, "two") as two:
        for dialog in (one, two):
            dialog.subscribe("$share/g/open/a", qos=1)
        assert "(two)" in of(doctor.walk(gateway, "one", "open/a"), "shared")["problem"]


def test_a_walk_without_a_broker_says_so(tmp_path: Path, doctor: Doctor) -> None:
    found = doctor.walk(Gateway(tmp_path), "panel", "a")
    assert [one["check"] for one in found] == ["broker"]


def test_a_wildcard_is_no_topic(tmp_path: Path, doctor: Doctor) -> None:
    found = doctor.walk(Gateway(tmp_path), "panel", "a/#")
    assert "wildcard" in of(found, "topic")["problem"]


# --- verify ----------------------------------------------------------------------------------------------------------


@dataclass
class House:
    """A broker with every kind of door."""

    gateway: Gateway
    authority: Authority
    ports: dict[str, int]
    expired: int
    mutual: int


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    authority = Authority(folder)
    cert, key = authority.issue("server", "gateway.example.org")
    old_cert, old_key = authority.issue("old", "localhost", expired=True)
    ports = {name: free_port() for name in ("tls", "websocket", "wss", "proxy1", "proxy2", "api")}
    expired, mutual = free_port(), free_port()
    pair = [f"certfile {cert}", f"keyfile {key}"]
    acl = folder / "acl"
    acl.write_text("topic read $SYS/#\nuser full\ntopic readwrite #\nuser deaf\ntopic write #\n")
    passwords = folder / "passwords"
    for name in ("full", "deaf"):
        exists = [] if passwords.exists() else ["-c"]
        assert main(["mosquitto_passwd", "-b", *exists, str(passwords), name, "secret"]) == 0
    for path in (acl, passwords):
        path.chmod(0o600)
    gateway = Gateway(
        folder,
        mosquitto_conf=[
            *("allow_anonymous false", f"password_file {passwords}", f"acl_file {acl}"),
            *(f"listener {ports['tls']}", *pair),
            *(f"listener {ports['websocket']}", "protocol websockets"),
            *(f"listener {ports['wss']} 127.0.0.1", "protocol websockets", *pair),
            *(f"listener {ports['proxy1']} 127.0.0.1", "enable_proxy_protocol 1"),
            *(f"listener {ports['proxy2']} 127.0.0.1", "enable_proxy_protocol 2", "proxy_protocol_v2_require_tls true"),
            *(f"listener {ports['api']} 127.0.0.1", "protocol http_api"),
            f"listener 0 {folder / 'mqtt.sock'}",
        ],
    )
    with gateway.running("broker"):
        other = folder / "other"
        other.mkdir()
        anonymous = [
            *(f"listener {expired} 127.0.0.1", f"certfile {old_cert}", f"keyfile {old_key}"),
            *(f"listener {mutual} 127.0.0.1", *pair, f"cafile {authority.cafile}", "require_certificate true"),
        ]
        with Gateway(other, mosquitto_conf=anonymous).running("broker"):
            yield House(gateway, authority, ports, expired, mutual)


def login(name: str, folder: Path, password: str = "secret") -> list[str]:
    path = folder / f"password-of-{name}"
    path.write_text(f"{password}\n")
    return ["--username", name, "--password-file", str(path)]


def test_every_listener_of_ours_passes_in_both_versions(house: House, tmp_path: Path, doctor: Doctor) -> None:
    visits = doctor.verify("-c", str(house.gateway.toml), *login("full", tmp_path))
    assert [one for one in visits if not one["passed"]] == []
    assert [one["version"] for one in visits] == ["3.1.1", "5"] * 6 + ["HTTP"] + ["3.1.1", "5"]
    secure = next(one for one in visits if "WebSocket in TLS" in one["listener"])
    told = [one["stage"] for one in secure["stages"]]
    assert told[:6] == ["resolve", "connect", "TLS", "WebSocket", "CONNACK", "SUBACK"]
    assert told[-1] == "cleared"
    assert all(one["ms"] >= 0 for one in secure["stages"])


def test_nothing_of_it_remains(house: House, tmp_path: Path, doctor: Doctor) -> None:
    words = ("session", "list", "--json", "-c", str(house.gateway.toml))

    def is_empty() -> bool:
        """Whether no Session is left, once the broker has noticed who went last."""
        deadline = time.monotonic() + 10
        while (told := doctor.text(*words)) and time.monotonic() < deadline:
            pass
        return not told

    assert is_empty()
    with Dialog(house.gateway.port, "watch", clean=True, username="full", password=b"secret") as watch:
        doctor.verify("-c", str(house.gateway.toml), *login("full", tmp_path))
        watch.subscribe("lockgate/verify/#", qos=1)
        with Dialog(house.gateway.port, "end", clean=True, username="full", password=b"secret") as end:
            end.publish("lockgate/verify/end", b"")
        assert watch.message().topic == "lockgate/verify/end"  # nothing retained came before
    assert is_empty()


def test_the_authority_that_is_named_is_the_one_that_counts(house: House, tmp_path: Path, doctor: Doctor) -> None:
    (tmp_path / "ca").mkdir()
    stranger = Authority(tmp_path / "ca")
    words = ["--host", "127.0.0.1", "--port", str(house.ports["tls"]), "-V", "5", *login("full", tmp_path)]
    ours = ["--cafile", str(house.authority.cafile)]
    (one,) = doctor.verify(*words, *ours, "--name", "gateway.example.org")
    assert one["passed"]
    (one,) = doctor.verify(*words, *ours, "--name", "other.example.org")
    assert (one["failed_at"], "mismatch" in one["cause"]) == ("TLS", True)
    (one,) = doctor.verify(*words, *ours, "--insecure")
    assert one["passed"]
    (one,) = doctor.verify(*words, "--cafile", str(stranger.cafile))
    assert one["failed_at"] == "TLS"
    assert "--cafile" in one["advice"]


def test_causes_are_told_by_stage(house: House, tmp_path: Path, doctor: Doctor) -> None:
    def fails(*words: str) -> tuple[str, str, str]:
        (one,) = doctor.verify(*words, "--timeout", "2")
        assert not one["passed"]
        return one["failed_at"], one["cause"], one["advice"]

    port = ["--host", "127.0.0.1", "--port", str(house.gateway.port)]
    v5, v3 = ["-V", "5"], ["-V", "3.1.1"]
    at, cause, advice = fails(*port, *v5)
    assert (at, "--username" in advice) == ("CONNACK", True)
    assert "not authorized" in cause
    at, cause, advice = fails(*port, *v3, *login("full", tmp_path, "wrong"))
    assert at == "CONNACK"
    assert "refused the connection" in cause
    at, cause, _ = fails("--host", "127.0.0.1", "--port", str(free_port()), *v5)
    assert (at, cause) == ("connect", "nobody listens there")
    at, _, _ = fails("--host", "no-such-host.invalid", *v5)
    assert at == "resolve"
    at, cause, _ = fails(*port, *v5, "--tls")
    assert (at, "does not speak TLS" in cause or "closed" in cause) == ("TLS", True)
    at, cause, advice = fails(*port, *v5, "--websockets")
    assert at == "WebSocket"
    assert "protocol websockets" in advice
    at, cause, advice = fails(*port, *v3, *login("deaf", tmp_path))
    assert at in ("SUBACK", "delivery")
    assert "lockgate/verify/#" in advice
    expired = ["--host", "localhost", "--port", str(house.expired), "--cafile", str(house.authority.cafile)]
    at, cause, _ = fails(*expired, *v5)
    assert (at, "expired" in cause) == ("TLS", True)


def test_a_certificate_is_asked_for(house: House, doctor: Doctor) -> None:
    other = house.gateway.folder / "other" / "lockgate.toml"
    visits = {one["listener"].split(" ")[1] + one["version"]: one for one in doctor.verify("-c", str(other))}
    mutual = visits[f"{house.mutual}5"]
    assert not mutual["passed"]
    assert "require_certificate" in mutual["advice"]
    assert visits[f"{house.expired}5"]["failed_at"] == "TLS"
    cert, key = house.authority.issue("device", common_name="device")
    visits = {
        one["listener"].split(" ")[1] + one["version"]: one
        for one in doctor.verify("-c", str(other), "--cert", str(cert), "--key", str(key))
    }
    assert visits[f"{house.mutual}5"]["passed"]
    assert visits[f"{house.mutual}3.1.1"]["passed"]


def test_a_server_that_says_nothing_is_told(tmp_path: Path, doctor: Doctor) -> None:
    with Gateway(tmp_path).running("broker") as gateway:
        gateway.freeze("broker")
        (one,) = doctor.verify("--host", "127.0.0.1", "--port", str(gateway.port), "-V", "5", "--timeout", "0.3")
        gateway.kill("broker")
    assert (one["failed_at"], one["cause"]) == ("CONNACK", "no answer within 0.3 s")


def test_mistakes_of_the_command_line_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["--port", "1883"], "--host"),
        (["--host", "h", "--port", "0"], "1 to 65535"),
        (["--host", "h", "--password", "p"], "--username"),
        (["--host", "h", "--username", "u", "--password-file", str(tmp_path / "none")], "cannot be read"),
        (["--host", "h", "--cafile", str(tmp_path / "none")], "--cafile"),
        (["--host", "h", "--topic", "a/#"], "--topic"),
    ):
        assert main(["verify", *words]) == 3
        assert told in capsys.readouterr().err


@pytest.mark.peers
def test_debians_mosquitto_passes_too(tmp_path: Path, doctor: Doctor) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "localhost")
    websocket, tls = free_port(), free_port()
    lines = [
        *(f"listener {websocket} 127.0.0.1", "protocol websockets"),
        *(f"listener {tls} 127.0.0.1", f"certfile {cert}", f"keyfile {key}", f"cafile {authority.cafile}"),
    ]
    mosquitto = Mosquitto(tmp_path, lines)
    try:
        conf = tmp_path / f"mosquitto-{mosquitto.port}.conf"
        visits = doctor.verify("-c", str(conf), "--cafile", str(authority.cafile))
        assert [one for one in visits if not one["passed"]] == []
        assert len(visits) == 6
        text = doctor.text("verify", "--host", "127.0.0.1", "--port", str(mosquitto.port))
        assert text.splitlines()[-1] == "All 2 passed."
    finally:
        mosquitto.stop()


@pytest.mark.peers
def test_rules_of_debians_mosquitto_are_told(tmp_path: Path, doctor: Doctor) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read lockgate/#\n")
    mosquitto = Mosquitto(tmp_path, [f"acl_file {acl}"])
    try:
        old, new = doctor.verify("--host", "127.0.0.1", "--port", str(mosquitto.port), "--timeout", "1")
    finally:
        mosquitto.stop()
    assert old["failed_at"] == "delivery"  # MQTT 3.1.1 has no way to say it
    assert new["failed_at"] == "PUBACK"
    assert "not authorized" in new["cause"]
