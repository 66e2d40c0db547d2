"""The edge's file of tunnels: who has which token, what leads where, and how it is read and changed."""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from lockgate.config.errors import ConfigError
from lockgate.tunnel import tunnel_edits, tunnels
from lockgate.tunnel.token import Token
from lockgate.tunnel.tunnels import Limits, Refusal, Tunnel, Tunnels, TunnelsFile

NOW = 1_800_000_000.0
ID = "e951e5f6-ba55-476a-b6db-885d92689d8d"


def authenticate(found: Tunnels, token: Token, now: float = NOW) -> Tunnel | Refusal:
    return found.authenticate(token.account_tag, token.tunnel_id, token.secret, now)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "edge" / "tunnels.json"


def made(file: Path, name: str = "home", expires: float | None = None) -> Token:
    with tunnel_edits.editing(file) as said:
        return tunnel_edits.create(said, name, NOW, expires)


def name_of(found: Tunnel | Refusal) -> str:
    return found.name if isinstance(found, Tunnel) else found.value


# --- tokens -------------------------------------------------------------------------------------------------------


def test_a_token_is_that_of_its_tunnel_alone(file: Path) -> None:
    token, other = made(file), made(file, "other")
    found = tunnels.load(file)
    assert name_of(authenticate(found, token)) == "home"
    assert name_of(authenticate(found, other)) == "other"
    assert file.stat().st_mode & 0o777 == 0o600
    for wrong in (
        Token("lockgate", token.tunnel_id, other.secret),
        Token("other", token.tunnel_id, token.secret),
        Token("lockgate", other.tunnel_id, token.secret),
        Token("lockgate", uuid.uuid4(), token.secret),
        Token("lockgate", token.tunnel_id, token.secret[:-1]),
        Token("lockgate", token.tunnel_id, b"\0" * 32),
    ):
        assert authenticate(found, wrong) is Refusal.WRONG


def test_the_file_does_not_hold_the_secret(file: Path) -> None:
    token = made(file)
    text = file.read_text()
    assert token.secret.hex() not in text
    assert token.encode() not in text
    assert json.loads(text)["tunnels"][str(token.tunnel_id)]["tokens"]["1"]["hash"].startswith("sha256:")


def test_a_tunnel_without_a_token_lets_nobody_in(file: Path) -> None:
    token = made(file)
    with tunnel_edits.editing(file) as said:
        said["tunnels"][str(token.tunnel_id)]["tokens"] = {}
    assert authenticate(tunnels.load(file), token) is Refusal.WRONG


def test_tokens_are_rotated_with_an_overlap(file: Path) -> None:
    old = made(file)
    with tunnel_edits.editing(file) as said:
        new = tunnel_edits.add_token(said, "home", NOW, others_expire=NOW + 60)
    found = tunnels.load(file)
    assert name_of(authenticate(found, old, NOW + 59)) == "home"
    assert name_of(authenticate(found, new, NOW + 59)) == "home"
    assert authenticate(found, old, NOW + 60) is Refusal.EXPIRED
    assert name_of(authenticate(found, new, NOW + 60)) == "home"
    with tunnel_edits.editing(file) as said:  # a longer overlap lets none live on
        tunnel_edits.add_token(said, str(new.tunnel_id), NOW, expires=NOW + 1, others_expire=NOW + 3600)
    assert authenticate(tunnels.load(file), old, NOW + 60) is Refusal.EXPIRED


def test_tokens_are_revoked_one_or_all(file: Path) -> None:
    first = made(file)
    with tunnel_edits.editing(file) as said:
        second = tunnel_edits.add_token(said, "home", NOW)
        assert tunnel_edits.revoke(said, "home", NOW, "1") == ["1"]
    found = tunnels.load(file)
    assert authenticate(found, first) is Refusal.REVOKED
    assert name_of(authenticate(found, second)) == "home"
    with tunnel_edits.editing(file) as said:
        assert tunnel_edits.revoke(said, "home", NOW) == ["2"]
        assert tunnel_edits.revoke(said, "home", NOW) == []
    assert authenticate(tunnels.load(file), second) is Refusal.REVOKED
    with pytest.raises(ConfigError, match="home: has no token '9'"), tunnel_edits.editing(file) as said:
        tunnel_edits.revoke(said, "home", NOW, "9")
    with tunnel_edits.editing(file) as said:
        tunnel_edits.delete(said, "home")
    assert authenticate(tunnels.load(file), second) is Refusal.WRONG


# --- names --------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "tunnels": {
        ID: {
            "name": "home",
            "note": "in the cellar",
            "hosts": {
                "home.example.org": {"policy": "staff", "paths": {"/health": None}, "devices": "sensors"},
                "*.home.example.org": {},
            },
            "mqtts": {"mqtt.example.org": {"target": "mosquitto:1883", "devices": "sensors"}},
            "users": {"home/": {"target": "mosquitto:1883"}, "home/cellar/": {"target": "[2001:db8::1]:1883"}},
            "limits": {"connections": 2, "bytes_per_second": "1MiB"},
            "configuration": {"version": 3, "config": {"ingress": [{"service": "http_status:404"}]}},
        }
    },
    "policies": {"staff": {"networks": ["192.0.2.0/24"]}},
    "devices": {"sensors": {"publish": ["a/#"]}},
}


def test_names_lead_to_their_tunnel(file: Path) -> None:
    found = tunnels.parse(json.dumps(GOOD), file)

    def host(name: str) -> str | None:
        row = found.host(name)
        return row[1].name if row is not None else None

    assert host("home.example.org") == "home.example.org"
    assert host("HOME.example.org:443") == "home.example.org"
    assert host("a.b.home.example.org.") == "*.home.example.org"
    assert host("example.org") is None
    assert host("") is None
    row = found.host("home.example.org")
    assert row is not None
    assert row[1].devices is not None
    assert row[1].access.policy is not None
    assert row[1].access.paths == (("/health", None),)
    mqtts = found.mqtts("mqtt.example.org")
    assert mqtts is not None
    assert mqtts[1].target == "mosquitto:1883"
    assert found.mqtts("home.example.org") is None
    assert found.by_user
    longest = found.user("home/cellar/pump")
    assert longest is not None
    assert longest[1].target == "[2001:db8::1]:1883"
    assert found.user("other") is None
    tunnel = found.named("home")
    assert tunnel is not None
    assert tunnel.limits == Limits(2, 10_000, 1024**2)
    assert tunnel.configuration is not None
    assert json.loads(tunnel.configuration)["version"] == 3
    assert not Tunnels().by_user


def changed(*steps: str, to: Any) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(json.dumps(GOOD))
    at = said
    for step in steps[:-1]:
        at = at[step]
    at[steps[-1]] = to
    return said


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (changed("tunnels", "no-uuid", to={"name": "x"}), "tunnels.no-uuid: 'no-uuid' is no id"),
        (changed("tunnels", ID.upper(), to={"name": "x"}), "has the id of home, too"),
        (changed("tunnels", ID, "name", to=""), r"name: '' cannot be used \(accepted: 1 to 64"),
        (changed("tunnels", str(uuid.uuid4()), to={"name": "home"}), "'home' belongs to tunnel home"),
        (changed("tunnels", ID, "hosts", "a:80", to={}), r"hosts.a:80: 'a:80' is no host name"),
        (changed("tunnels", ID, "hosts", "Home.Example.org", to={}), "'home.example.org' belongs to tunnel home"),
        (changed("tunnels", ID, "hosts", "x.org", to={"policy": "stuff"}), "there is no 'stuff'. Did you mean staff"),
        (changed("tunnels", ID, "hosts", "x.org", to={"devices": "x"}), r"there is no 'x'. \(accepted: sensors\)"),
        (changed("tunnels", ID, "hosts", "x.org", to={"paths": {"admin": "staff"}}), "is no beginning of a path"),
        (changed("tunnels", ID, "hosts", "x.org", to={"paths": {"/%61": "staff"}}), "is no beginning of a path"),
        (changed("tunnels", ID, "mqtts", "x.org", to={"target": "mosquitto"}), "HOST:PORT"),
        (changed("tunnels", ID, "users", "x/", to={}), "users.x/.target: is missing"),
        (changed("tunnels", ID, "tokens", to={"1": {"hash": "x"}}), r"tokens.1.hash: its value cannot be used"),
        (
            changed("tunnels", ID, "tokens", to={"1": {"hash": "sha256:" + "0" * 64, "expires": "soon"}}),
            "expires: 'soon'",
        ),
        (changed("tunnels", ID, "limits", "connections", to=-1), "limits.connections: -1 cannot be used"),
        (changed("tunnels", ID, "configuration", "config", to={}), "configuration: .*ingress: has no rules"),
        (changed("tunnels", ID, "host", to={}), "host: is no key of it. Did you mean hosts"),
        (changed("tunnels", ID, to=5), "5 is no object"),
        (changed("policies", "staff", to={}), "policies.staff: has none of its keys"),
        (changed("devices", "sensors", "publish", to=["#a"]), "devices.sensors.publish"),
        (changed("tunnel", to={}), "tunnel: is no key of it. Did you mean tunnels"),
    ],
)
def test_a_mistake_is_named_by_file_key_and_value(file: Path, said: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tunnels.parse(json.dumps(said), file)
    text = str(caught.value)
    assert re.search(problem, text), text
    assert all(line.startswith(f"{file}: ") for line in text.splitlines())


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    said = changed("tunnels", ID, "limits", "connections", to=-1)
    said["policies"]["staff"] = {}
    with pytest.raises(ConfigError) as caught:
        tunnels.parse(json.dumps(said), file)
    assert len(str(caught.value).splitlines()) == 2


# --- the file -----------------------------------------------------------------------------------------------------


def test_the_file_is_read_again_when_it_changes(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = TunnelsFile(file)
    assert not known.refresh()
    token = made(file)
    assert known.refresh()
    assert name_of(authenticate(known.current, token)) == "home"
    file.write_text('{"tunnels": 5}')
    assert not known.refresh()
    assert not known.refresh()
    assert caplog.text.count(f"{file}: tunnels: 5 is no object") == 1
    assert name_of(authenticate(known.current, token)) == "home"
    file.unlink()
    file.mkdir()
    assert not known.refresh()
    assert name_of(authenticate(known.current, token)) == "home"
    file.rmdir()
    assert known.refresh()
    assert authenticate(known.current, token) is Refusal.WRONG


def test_one_address_of_keys_is_asked_once_and_stays_known(file: Path) -> None:
    jwt = {"issuer": "https://login.example", "audience": ["x"], "keys": "https://login.example/keys"}
    said = GOOD | {
        "policies": {"a": {"jwt": jwt}, "staff": {"any": [{"jwt": jwt}]}},
        "devices": {"sensors": {"jwt": jwt}},
    }
    file.parent.mkdir()
    file.write_text(json.dumps(said))
    known = TunnelsFile(file)
    before = known.current.keys
    assert [one.url for one in before] == ["https://login.example/keys"]
    file.write_text(json.dumps(said | {"note": "changed"}))
    assert known.refresh()
    assert known.current.keys == before
    host = known.current.host("home.example.org")
    assert host is not None
    assert host[1].devices is not None
    assert host[1].devices.jwt is not None
    assert host[1].devices.jwt.keys is before[0]


def test_a_change_that_makes_no_sense_is_not_written(file: Path) -> None:
    made(file)
    before = file.read_bytes()
    for settings in ({"policy": "nobody"}, {"polcy": "x"}):
        with pytest.raises(ConfigError), tunnel_edits.editing(file) as said:
            tunnel_edits.route(said, "home", "hosts", "x.example", settings)
    with (
        pytest.raises(ConfigError, match="there is no tunnel 'hom'. Did you mean home"),
        tunnel_edits.editing(file) as said,
    ):
        tunnel_edits.delete(said, "hom")
    with pytest.raises(ConfigError, match="already"):
        made(file)
    assert file.read_bytes() == before
    file.write_text("{")
    with pytest.raises(ConfigError, match="is not valid JSON"):
        made(file, "other")
    assert file.read_text() == "{"


def test_two_who_edit_wait_for_each_other(file: Path) -> None:
    made(file)
    begun = threading.Event()

    def second() -> None:
        begun.set()
        made(file, "second")

    with tunnel_edits.editing(file) as said:
        thread = threading.Thread(target=second)
        thread.start()
        assert begun.wait(10)
        tunnel_edits.create(said, "first", NOW)
    thread.join(10)
    assert {tunnel.name for tunnel in tunnels.load(file)} == {"home", "first", "second"}


def test_what_a_person_wrote_stays(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps(GOOD))
    os.chmod(file, 0o640)
    made(file, "other")
    said = json.loads(file.read_text())
    assert said["tunnels"][ID] == GOOD["tunnels"][ID]
    assert (said["policies"], said["devices"]) == (GOOD["policies"], GOOD["devices"])
    assert file.stat().st_mode & 0o777 == 0o640
