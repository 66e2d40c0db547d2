"""What one listener, or one way in, refuses is not to be had by another (DESIGN §3.4)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockgate.access import hashes
from lockgate.access.dynamic_security.file import dump
from lockgate.access.dynamic_security.initial import administrator_state
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import Publish, Will
from tests.interop.test_http_api import Api, get
from tests.support.dialog import Dialog, proxied
from tests.support.gateway import Gateway
from tests.support.peers import free_port

DYNSEC = "$CONTROL/dynamic-security/v1"
LIBRARY = "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so"
CREATE = json.dumps({"commands": [{"command": "createClient", "username": "mallory", "password": "m"}]}).encode()


def dynamic_security(folder: Path, name: str = "dynsec.json", admin: str = "admin") -> Path:
    path = folder / name
    path.write_bytes(dump(administrator_state(admin, "secret", "sha512")))
    path.chmod(0o600)
    return path


def passwords(folder: Path, **users: str) -> Path:
    path = folder / "passwords"
    path.write_text("".join(f"{name}:{hashes.make(word.encode(), 'sha512')}\n" for name, word in users.items()))
    path.chmod(0o600)
    return path


def test_a_listener_without_dynamic_security_does_not_administer_it(tmp_path: Path) -> None:
    path, port = dynamic_security(tmp_path), free_port()
    gateway = Gateway(
        tmp_path,
        mosquitto_conf=[
            "persistence false",
            f"listener {port} 127.0.0.1",
            f"plugin {LIBRARY}",
            f"plugin_opt_config_file {path}",
        ],
    )
    conf = tmp_path / "mosquitto.conf"
    conf.write_text("per_listener_settings true\n" + conf.read_text())
    with gateway.running("broker"):
        with Dialog(gateway.port, "anybody") as client:
            client.subscribe(f"{DYNSEC}/#")
            client.send(Publish(DYNSEC, CREATE))
            assert json.loads(client.message().payload) == {"error": "endpoint not available"}
        with Dialog(port, "a", username="admin", password=b"secret") as client:
            client.subscribe(f"{DYNSEC}/#")
            client.send(Publish(DYNSEC, CREATE))
            assert json.loads(client.message().payload)["responses"] == [{"command": "createClient"}]


def test_an_administrator_of_one_listener_does_not_administer_another(tmp_path: Path) -> None:
    first, second, port = dynamic_security(tmp_path), dynamic_security(tmp_path, "b.json", "other"), free_port()
    gateway = Gateway(
        tmp_path,
        mosquitto_conf=[
            "persistence false",
            f"plugin {LIBRARY}",
            f"plugin_opt_config_file {first}",
            f"listener {port} 127.0.0.1",
            f"plugin {LIBRARY}",
            f"plugin_opt_config_file {second}",
        ],
    )
    conf = tmp_path / "mosquitto.conf"
    conf.write_text("per_listener_settings true\n" + conf.read_text())
    with gateway.running("broker"):
        before = first.read_bytes()
        with Dialog(port, "a", username="other", password=b"secret") as client:
            client.subscribe(f"{DYNSEC}/#")
            client.send(Publish(DYNSEC, CREATE))
            assert json.loads(client.message().payload)["responses"] == [{"command": "createClient"}]
        assert first.read_bytes() == before
        assert b"mallory" in second.read_bytes()


def test_a_name_nobody_has_looked_at_does_not_take_the_session_of_who_proved_it(tmp_path: Path) -> None:
    port = free_port()
    gateway = Gateway(
        tmp_path,
        mosquitto_conf=["persistence false", f"listener {port} 127.0.0.1",
                        f"password_file {passwords(tmp_path, alice='a')}"],
    )  # fmt: skip
    conf = tmp_path / "mosquitto.conf"
    conf.write_text("per_listener_settings true\n" + conf.read_text())
    with gateway.running("broker"):
        with Dialog(port, "c", username="alice", password=b"a") as alice:
            alice.subscribe("t")
        Dialog(gateway.port, "c", username="alice", answer=reason_codes.NOT_AUTHORIZED)


def test_a_path_with_dots_is_not_read_by_the_rules_of_another(tmp_path: Path) -> None:
    files = tmp_path / "files"
    for name in ("open", "closed"):
        (files / name).mkdir(parents=True)
        (files / name / "page.txt").write_text(name)
    (tmp_path / "acl").write_text("topic read /open/#\n")
    (tmp_path / "acl").chmod(0o600)
    api = Api(tmp_path, f"http_dir {files}", f"acl_file {tmp_path / 'acl'}", "allow_anonymous true")
    with api.gateway.running("broker"):
        assert get(f"{api.url}/open/page.txt") == (200, "open")
        assert get(f"{api.url}/closed/page.txt")[0] == 401
        for path in ("/open/../closed/page.txt", "/open/%2e%2e/closed/page.txt", "/open/%2E./closed/page.txt"):
            assert get(f"{api.url}{path}", "--path-as-is")[0] in (401, 404), path


def test_a_certificate_nobody_asked_for_lets_nobody_in(tmp_path: Path) -> None:
    port = free_port()
    options = ["persistence false", f"listener {port} 127.0.0.1", "enable_proxy_protocol 2"]
    gateway = Gateway(tmp_path, mosquitto_conf=[*options, "listener_allow_anonymous false"])
    with gateway.running("broker"):
        Dialog(port, "c", username="alice", opening=proxied(b"bob"), answer=reason_codes.NOT_AUTHORIZED)


@pytest.fixture
def two_doors(tmp_path: Path) -> tuple[Gateway, int]:
    """A broker, not started yet, with a listener for everybody and one, whose port this gives, for alice and bob."""
    port, acl = free_port(), tmp_path / "acl"
    acl.write_text("user alice\ntopic readwrite #\nuser bob\ntopic readwrite open\n")
    acl.chmod(0o600)
    users = passwords(tmp_path, alice="a", bob="b")
    rules = [f"listener {port} 127.0.0.1", f"password_file {users}", f"acl_file {acl}"]
    gateway = Gateway(tmp_path, mosquitto_conf=["persistence true", f"persistence_location {tmp_path}", *rules])
    conf = tmp_path / "mosquitto.conf"
    conf.write_text("per_listener_settings true\n" + conf.read_text())
    return gateway, port


def test_the_author_of_a_retained_message_is_asked_about_where_it_came_in(two_doors: tuple[Gateway, int]) -> None:
    gateway, port = two_doors
    with gateway.running("broker"):
        with Dialog(gateway.port, "anybody") as publisher:
            publisher.publish("t", b"kept", retain=True)
        with Dialog(port, "a", username="alice", password=b"a") as alice:
            alice.subscribe("t")
            assert alice.message().payload == b"kept"


def test_after_a_crash_a_will_has_the_rules_of_before(two_doors: tuple[Gateway, int]) -> None:
    gateway, port = two_doors
    with gateway.running("broker"):
        wills = Will("closed", b"!"), Will("open", b"?")
        dying = [
            Dialog(port, f"bob-{will.topic}", username="bob", password=b"b", keep_alive=1, will=will) for will in wills
        ]
        with Dialog(port, "a", username="alice", password=b"a") as alice:
            alice.subscribe("#")
        assert len(dying) == 2
        gateway.kill("broker")
        gateway.start("broker")
        with Dialog(port, "a", username="alice", password=b"a") as alice:
            assert [one.payload for one in alice.messages(2, first=10)] == [b"?"]
