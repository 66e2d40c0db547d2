"""Which devices are let in, and what they may do then."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lockgate.access import hashes
from lockgate.access.password_file import PasswordFile
from lockgate.mqtt import reason_codes as rc
from lockgate.mqtt.packets import V3_1_1, Connect, Will
from lockgate.tunnel import device_policy, json_tables
from lockgate.tunnel.device_policy import DevicePolicy, Peer, Permissions, Refused
from lockgate.tunnel.jwks import KeyFile
from lockgate.tunnel.jwt_rule import JwtRule
from tests.support.jwts import AUDIENCE, ISSUER, NOW, Issuer

PASSWORDS = PasswordFile({"anna": hashes.make(b"right", "sha512")})
NOBODY = Peer("192.0.2.1")
CERTIFIED = Peer.of(
    "192.0.2.1",
    {
        "subject": ((("commonName", "anna"),), (("organizationName", "Plant, Inc"),)),
        "subjectAltName": (("DNS", "anna.devices.example"), ("DirName", ((("commonName", "x"),),))),
    },
)


def login(policy: DevicePolicy, client_id: str = "c1", peer: Peer = NOBODY, **said: Any) -> Permissions:
    return policy.login(Connect(client_id, V3_1_1, **said), peer, NOW)


def refused(policy: DevicePolicy, client_id: str = "c1", peer: Peer = NOBODY, **said: Any) -> int:
    with pytest.raises(Refused) as caught:
        login(policy, client_id, peer, **said)
    return caught.value.reason_code


def test_without_a_way_to_log_in_the_edge_asks_for_none() -> None:
    assert login(DevicePolicy()).publish is None
    assert login(DevicePolicy(), "", username="x", password=b"y")


def test_passwords_are_those_of_the_file() -> None:
    policy = DevicePolicy(passwords=PASSWORDS)
    assert login(policy, username="anna", password=b"right")
    for said in (
        {},
        {"username": "anna"},
        {"username": "anna", "password": b"wrong"},
        {"username": "bert", "password": b"right"},
    ):
        assert refused(policy, **said) == rc.BAD_USER_NAME_OR_PASSWORD


def test_a_jwt_in_the_password_is_of_the_user_who_shows_it(tmp_path: Path) -> None:
    issuer = Issuer()
    rule = JwtRule(ISSUER, (AUDIENCE,), KeyFile(issuer.write(tmp_path / "keys.json")))
    policy = DevicePolicy(jwt=rule, publish=("d/%u",))
    good = issuer.token().encode()
    assert login(policy, username="anna", password=good).publish == ("d/anna",)
    assert login(policy, password=good).publish == ("d/anna",)  # version 5 may leave the user name out
    for said in (
        {"username": "bert", "password": good},
        {"username": "anna", "password": good + b"x"},
        {"username": "anna", "password": issuer.token(exp=NOW - 100).encode()},
        {"username": "anna", "password": b"\xff"},
        {"username": "anna"},
        {},
    ):
        assert refused(policy, **said) == rc.BAD_USER_NAME_OR_PASSWORD
    both = DevicePolicy(jwt=rule, passwords=PASSWORDS)
    assert login(both, username="anna", password=b"right")
    assert login(both, username="anna", password=good)


@pytest.mark.parametrize(
    ("pattern", "username", "client_id", "peer", "fits"),
    [
        ("CN=%u", "anna", "c1", CERTIFIED, True),
        ("CN=%u", "bert", "c1", CERTIFIED, False),
        ("CN=%u", None, "c1", CERTIFIED, False),
        ("CN=%u", "anna", "c1", NOBODY, False),
        ("CN=%u", "*", "c1", CERTIFIED, False),
        ("CN=%c", None, "anna", CERTIFIED, True),
        ("CN=%c", None, "", CERTIFIED, False),
        ("CN=*", None, "c1", CERTIFIED, True),
        ("O=Plant, Inc", None, "c1", CERTIFIED, True),
        ("DNS:*.devices.example", None, "c1", CERTIFIED, True),
        ("DNS:*.devices", None, "c1", CERTIFIED, False),
    ],
)
def test_a_certificate_lets_in(pattern: str, username: str | None, client_id: str, peer: Peer, fits: bool) -> None:
    policy = DevicePolicy(certificates=(pattern,))
    if fits:
        assert login(policy, client_id, peer, username=username)
    else:
        assert refused(policy, client_id, peer, username=username) == rc.NOT_AUTHORIZED


def test_who_the_certificate_vouches_for_is_the_user() -> None:
    policy = DevicePolicy(certificates=("CN=*",), publish=("d/%u",), client_ids=("%u-*",))
    assert login(policy, "anna-1", CERTIFIED).publish == ("d/anna",)
    assert login(policy, "anna-1", CERTIFIED, username="bert").publish == ("d/anna",)
    by_name = DevicePolicy(certificates=("DNS:%u.devices.example",), publish=("d/%u",))
    assert login(by_name, "c", CERTIFIED, username="anna").publish == ("d/anna",)
    nameless = Peer("192.0.2.1", ("O=Plant",))
    assert (
        refused(DevicePolicy(certificates=("O=*",), publish=("d/%u",)), "c", nameless, username="bert")
        == rc.NOT_AUTHORIZED
    )
    assert refused(policy, "bert-1", CERTIFIED) == rc.CLIENT_IDENTIFIER_NOT_VALID


def test_client_ids_and_users_have_patterns() -> None:
    policy = DevicePolicy(client_ids=("%u-*", "probe"), users=("sensor*", "anna"))
    assert login(policy, "anna-7", username="anna")
    assert login(policy, "probe", username="sensor9")
    assert refused(policy, "anna", username="anna") == rc.CLIENT_IDENTIFIER_NOT_VALID
    assert refused(policy, "", username="anna") == rc.CLIENT_IDENTIFIER_NOT_VALID
    assert refused(policy, "bert-7", username="anna") == rc.CLIENT_IDENTIFIER_NOT_VALID
    assert refused(policy, "probe", username="bert") == rc.NOT_AUTHORIZED
    assert refused(policy, "probe") == rc.NOT_AUTHORIZED
    assert refused(DevicePolicy(client_ids=("%u-*",)), "-7") == rc.CLIENT_IDENTIFIER_NOT_VALID


@pytest.mark.parametrize("name", ["+", "#", "a/b", "", "a#"])
def test_a_name_that_would_be_more_than_a_level_is_refused(name: str) -> None:
    assert refused(DevicePolicy(publish=("d/%u/#",)), username=name) == rc.NOT_AUTHORIZED
    assert refused(DevicePolicy(subscribe=("d/%c/#",)), name) == rc.CLIENT_IDENTIFIER_NOT_VALID
    assert login(DevicePolicy(publish=("d/#",), subscribe=("d/#",)), name, username=name)


def test_a_will_is_a_message_like_others() -> None:
    policy = DevicePolicy(publish=("d/%u",), max_payload=3, max_qos=1, retain=False)
    assert login(policy, username="anna", will=Will("d/anna", b"off", 1))
    for will, code in (
        (Will("d/bert", b"off"), rc.NOT_AUTHORIZED),
        (Will("d/anna", b"long"), rc.NOT_AUTHORIZED),
        (Will("d/anna", b"", 2), rc.QOS_NOT_SUPPORTED),
        (Will("d/anna", b"", 0, True), rc.RETAIN_NOT_SUPPORTED),
    ):
        assert refused(policy, username="anna", will=will) == code


def test_subscriptions_are_within_what_is_allowed() -> None:
    permissions = login(DevicePolicy(subscribe=("d/%u/#", "all/+")), username="anna")
    for topic_filter in ("d/anna", "d/anna/+/x", "d/anna/#", "all/+", "all/x", "$share/g/d/anna/#"):
        assert permissions.may_subscribe(topic_filter)
    for topic_filter in ("#", "d/+", "d/#", "all/#", "all/x/y", "$share/g/#", "$SYS/#"):
        assert not permissions.may_subscribe(topic_filter)
    assert login(DevicePolicy()).may_subscribe("#")
    assert not login(DevicePolicy(subscribe=())).may_subscribe("a")


# --- reading ------------------------------------------------------------------------------------------------------


def read(folder: Path, said: dict[str, Any]) -> tuple[DevicePolicy | None, str]:
    table = json_tables.read(folder / "tunnels.json", json.dumps(said))
    policy = device_policy.read("sensors", table)
    return policy, "\n".join(map(str, table.errors))


def test_a_policy_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text(f"anna:{hashes.make(b'right', 'sha512')}\n")
    policy, errors = read(
        tmp_path,
        {
            "password_file": "passwords",
            "certificates": ["CN=%u"],
            "client_ids": ["%u-*"],
            "users": ["an*"],
            "publish": ["d/%u/#"],
            "subscribe": [],
            "max_payload": "64KiB",
            "max_qos": 1,
            "retain": False,
            "connect_timeout": "5s",
            "connect_bytes": 4096,
        },
    )
    assert errors == ""
    assert policy is not None
    assert login(policy, "anna-1", username="anna", password=b"right")
    assert (policy.publish, policy.subscribe, policy.max_payload) == (("d/%u/#",), (), 65_536)
    assert (policy.max_qos, policy.retain, policy.connect_seconds, policy.connect_bytes) == (1, False, 5.0, 4096)
    assert policy.watches_publish
    assert policy.watches_subscribe
    assert not DevicePolicy().watches_publish
    assert not DevicePolicy().watches_subscribe


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"password_file": "nowhere"}, "password_file: .*nowhere: cannot be read"),
        ({"publish": ["a/#/b"]}, "publish: .*# must be the whole last level"),
        ({"publish": ["a/x%u"]}, "publish: .*whole levels"),
        ({"subscribe": ["$share/g/a"]}, "subscribe: .*behind"),
        ({"publish": "a"}, "publish: 'a' cannot be used"),
        ({"users": ["%u"]}, "users: .*% is for no names"),
        ({"client_ids": ["%x"]}, "client_ids: .*% is for %u"),
        ({"max_qos": 3}, r"max_qos: 3 cannot be used \(accepted: 0 to 2\)"),
        ({"max_payload": -1}, "max_payload: -1"),
        ({"retain": "no"}, "retain: 'no'"),
        ({"retian": True}, "retian: is no key of it. Did you mean retain"),
        ({"jwt": {"issuer": "x"}}, "jwt.audience: is missing"),
    ],
)
def test_a_mistake_of_a_policy_is_named(tmp_path: Path, said: dict[str, Any], problem: str) -> None:
    policy, errors = read(tmp_path, said)
    assert policy is None
    assert re.search(problem, errors), errors
