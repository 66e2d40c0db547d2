"""Dynamic security: who may, what commands change, and what is on the disk."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lockgate.access import secret_file
from lockgate.access.authority import Chain, Verdict
from lockgate.access.dynamic_security import ControlAnswer, DynamicSecurity, file
from lockgate.access.dynamic_security.model import State
from lockgate.access.dynamic_security.rules import covers
from lockgate.config.errors import ConfigError

ALLOW, DENY, DEFER, IGNORE = Verdict.ALLOW, Verdict.DENY, Verdict.DEFER, Verdict.IGNORE


@pytest.fixture
def security(tmp_path: Path) -> DynamicSecurity:
    return DynamicSecurity(tmp_path / "security.json", State(), "sha512")


def run(security: DynamicSecurity, *commands: dict[str, Any]) -> ControlAnswer:
    return security.handle(json.dumps({"commands": commands}).encode(), "test", lambda _username: ["192.0.2.1"])


def done(security: DynamicSecurity, *commands: dict[str, Any]) -> ControlAnswer:
    answer = run(security, *commands)
    assert b'"error"' not in answer.payload, answer.payload
    return answer


def errors(answer: ControlAnswer) -> list[str | None]:
    return [response.get("error") for response in json.loads(answer.payload)["responses"]]


def role(name: str, *acls: tuple[str, str, bool, int], **members: Any) -> dict[str, Any]:
    listed = [{"acltype": kind, "topic": topic, "allow": allow, "priority": at} for kind, topic, allow, at in acls]
    return {"command": "createRole", "rolename": name, "acls": listed, **members}


def client(name: str, *roles: tuple[str, int], **members: Any) -> dict[str, Any]:
    listed = [{"rolename": role, "priority": priority} for role, priority in roles]
    return {"command": "createClient", "username": name, "password": "secret", "roles": listed, **members}


def test_who_is_let_in(security: DynamicSecurity) -> None:
    done(security, client("anna"), client("bound", clientid="its"), client("off", disabled=True))
    done(security, {"command": "createClient", "username": "new"})
    assert security.login("c", "anna", b"secret") is ALLOW
    assert security.login("c", "anna", b"wrong") is DENY
    assert security.login("c", "anna", None) is DENY
    assert security.login("its", "bound", b"secret") is ALLOW
    assert security.login("c", "bound", b"secret") is DENY
    assert security.login("c", "off", b"secret") is DENY
    assert security.login("c", "new", b"") is DENY
    assert security.login("c", "nobody", b"secret") is DEFER
    assert security.login("c", None, None) is DEFER


def test_a_certificate_is_enough_unless_its_user_is_disabled_or_bound(security: DynamicSecurity) -> None:
    done(security, client("anna"), client("bound", clientid="its"), client("off", disabled=True))
    assert security.login("c", "anna", None, by_certificate=True) is ALLOW
    assert security.login("c", "off", None, by_certificate=True) is DENY
    assert security.login("c", "bound", None, by_certificate=True) is DENY
    assert security.login("c", "nobody", None, by_certificate=True) is IGNORE


def test_the_first_that_matches_decides(security: DynamicSecurity) -> None:
    done(
        security,
        role("open", ("publishClientSend", "a/#", True, 0)),
        role("shut", ("publishClientSend", "a/b", False, 1), ("publishClientSend", "a/+", True, 2)),
        client("low", ("open", 1), ("shut", 5)),
        client("high", ("open", 9), ("shut", 5)),
        client("grouped", ("open", -5)),
        {"command": "createGroup", "groupname": "g", "roles": [{"rolename": "shut"}]},
        {"command": "addGroupClient", "groupname": "g", "username": "grouped", "priority": 99},
        role("first", ("publishClientSend", "a/b", False, 9), ("publishClientSend", "a/+", True, 2)),
        client("sorted", ("first", 0)),
    )
    assert security.may_publish("c", "low", "a/b") is ALLOW, "a/+ has the higher priority"
    assert security.may_publish("c", "high", "a/b/c") is ALLOW
    assert security.may_publish("c", "grouped", "a/b") is ALLOW, "a client's own roles go before its groups"
    assert security.may_publish("c", "sorted", "a/b") is DENY
    assert security.may_publish("c", "sorted", "a/c") is ALLOW
    assert security.may_publish("c", "sorted", "x") is DEFER
    assert security.may_publish("c", "nobody", "a/b") is DEFER


def test_default_access_never_opens_control(security: DynamicSecurity) -> None:
    every = [{"acltype": kind, "allow": True} for kind in ("publishClientSend", "subscribe")]
    done(security, client("anna"), {"command": "setDefaultACLAccess", "acls": every})
    for who in ("anna", None):
        assert security.may_publish("c", who, "t") is ALLOW
        assert security.may_publish("c", who, "$CONTROL/dynamic-security/v1") is DEFER
        assert security.may_receive("c", who, "$CONTROL/x") is DEFER
        assert security.may_subscribe("c", who, "#") is ALLOW
        assert security.may_subscribe("c", who, "$CONTROL/#") is DEFER
        assert security.may_subscribe("c", who, "$share/g/$CONTROL/#") is DEFER


def test_default_access_as_mosquitto_ctrl_of_2_0_sets_it(security: DynamicSecurity) -> None:
    def setting(access: object) -> dict[str, Any]:
        return {"command": "setDefaultACLAccess", "acls": [{"acltype": "subscribe", "access": access}]}

    done(security, setting("allow"))
    assert security.may_subscribe("c", None, "t") is ALLOW
    done(security, setting("deny"))
    assert security.may_subscribe("c", None, "t") is DEFER
    assert errors(run(security, setting("perhaps"), setting(True))) == ["Invalid/missing allow"] * 2


def test_subscriptions(security: DynamicSecurity) -> None:
    done(
        security,
        role("r", ("subscribeLiteral", "a/+", False, 0), ("subscribePattern", "a/#", True, 0),
             ("unsubscribeLiteral", "x", False, 0)),
        role("plain", ("subscribePattern", "#", True, 0), allowwildcardsubs=False),
        client("anna", ("r", 0)), client("bert", ("plain", 0)),
    )  # fmt: skip
    assert security.may_subscribe("c", "anna", "a/+") is DENY
    assert security.may_subscribe("c", "anna", "$share/g/a/+") is DENY
    assert security.may_subscribe("c", "anna", "a/b") is ALLOW, "literal compares the text of the filter"
    assert security.may_subscribe("c", "anna", "a/+/c") is ALLOW
    assert security.may_subscribe("c", "anna", "#") is DEFER
    assert security.may_unsubscribe("c", "anna", "x") is DENY
    assert security.may_unsubscribe("c", "anna", "y") is ALLOW
    assert security.may_subscribe("c", "bert", "a/b") is ALLOW
    assert security.may_subscribe("c", "bert", "a/+") is DENY


@pytest.mark.parametrize(
    ("rule", "wanted", "expected"),
    [
        ("#", "a/+/#", True), ("#", "$SYS/#", False), ("+", "#", False), ("+/b", "a/b", True), ("+/b", "+/b", True),
        ("a/b", "a/+", False), ("a/#", "a", True), ("a/#", "a/#", True), ("a/+", "a", False), ("a", "a/b", False),
        ("+/#", "#", False), ("$SYS/#", "$SYS/a", True),
    ],
)  # fmt: skip
def test_a_filter_inside_a_filter(rule: str, wanted: str, expected: bool) -> None:
    assert covers(rule, wanted) is expected


def test_names_are_put_into_patterns_and_open_nothing_as_wildcards(security: DynamicSecurity) -> None:
    done(
        security,
        role("own", ("publishClientSend", "bad/%c", False, 1), ("publishClientSend", "+/%u/%c", True, 0),
             ("subscribeLiteral", "lit/%c", True, 0)),
        client("anna", ("own", 0)), client("#", ("own", 0)),
    )  # fmt: skip
    assert security.may_publish("c", "anna", "x/anna/c") is ALLOW
    assert security.may_publish("c", "anna", "x/bert/c") is DEFER
    assert security.may_publish("+", "anna", "x/anna/y") is DEFER
    assert security.may_publish("c", "#", "x/y/z") is DEFER
    assert security.may_publish("+", "anna", "bad/y") is DENY
    assert security.may_subscribe("c", "anna", "lit/c") is DEFER
    assert security.may_subscribe("c", "anna", "lit/%c") is ALLOW


def test_anonymous_clients_have_the_rules_of_their_group(security: DynamicSecurity) -> None:
    done(
        security,
        role("r", ("publishClientSend", "open", True, 0)),
        {"command": "createGroup", "groupname": "g", "roles": [{"rolename": "r"}]},
    )
    assert security.may_publish("c", None, "open") is DEFER
    assert done(security, {"command": "setAnonymousGroup", "groupname": "g"}).disconnect_anonymous
    assert security.may_publish("c", None, "open") is ALLOW
    assert errors(run(security, {"command": "deleteGroup", "groupname": "g"})) == [
        "Deleting the anonymous group is forbidden"
    ]
    removal = {"command": "removeRoleACL", "rolename": "r", "acltype": "publishClientSend", "topic": "open"}
    assert done(security, removal).disconnect_anonymous


def test_who_is_disconnected(security: DynamicSecurity) -> None:
    done(security, role("r"), client("anna", ("r", 0)), client("bert"), {"command": "createGroup", "groupname": "g"})

    def disconnected(name: str, **members: Any) -> set[str]:
        answer = done(security, {"command": name, **members})
        assert not answer.disconnect_anonymous
        return set(answer.disconnect)

    assert disconnected("getClient", username="anna") == set()
    assert disconnected("modifyClient", username="anna", textname="her name") == set()
    assert disconnected("setClientPassword", username="anna", password="x") == {"anna"}
    assert disconnected("setClientId", username="bert", clientid="c") == {"bert"}
    assert disconnected("addGroupRole", groupname="g", rolename="r") == set()
    assert disconnected("addGroupClient", groupname="g", username="bert") == {"bert"}
    assert disconnected("addRoleACL", rolename="r", acltype="subscribeLiteral", topic="a") == {"anna", "bert"}
    assert disconnected("disableClient", username="bert") == {"bert"}
    assert disconnected("deleteClient", username="anna") == {"anna"}
    assert disconnected("deleteGroup", groupname="g") == {"bert"}


def test_a_failing_command_changes_nothing(security: DynamicSecurity) -> None:
    done(security, role("r"), client("anna", ("r", 2)), {"command": "createGroup", "groupname": "g"})
    before = security.state
    answer = run(
        security,
        {"command": "modifyClient", "username": "anna", "textname": "x", "roles": [{"rolename": "nope"}]},
        {"command": "modifyClient", "username": "anna", "textname": "x", "groups": [{"groupname": "nope"}]},
        {"command": "modifyClient", "username": "anna", "textname": "x", "password": ""},
        {"command": "createClient", "username": "bert", "password": ""},
        {"command": "createRole", "rolename": "s", "acls": [{"acltype": "denyAll", "topic": "#"}]},
        {"command": "modifyGroup", "groupname": "g", "textname": "x", "clients": [{"username": "nope"}]},
        {"command": "addRoleACL", "rolename": "r", "acltype": "subscribeLiteral", "topic": "a", "priority": "high"},
        {"command": "setDefaultACLAccess", "acls": [{"acltype": "subscribe", "allow": "yes"}]},
    )
    assert errors(answer) == [
        "Role not found", "Group not found", "Empty password is not allowed", "Empty password is not allowed",
        "Unknown acltype", "Client not found", "Invalid/missing priority", "Invalid/missing allow",
    ]  # fmt: skip
    assert security.state is before
    assert not answer.changed


def test_live_connections_are_shown(security: DynamicSecurity) -> None:
    done(security, client("anna"))
    answer = json.loads(done(security, {"command": "getClient", "username": "anna"}).payload)
    assert answer["responses"][0]["data"]["client"]["connections"] == [{"address": "192.0.2.1"}]


def test_what_cannot_be_saved_is_undone_and_said(security: DynamicSecurity, monkeypatch: pytest.MonkeyPatch) -> None:
    done(security, client("anna"))
    before, on_disk = security.state, security.path.read_bytes()

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(secret_file, "replace", full)
        answer = run(
            security, {"command": "listClients"}, client("bert"), {"command": "listClients"}, {"command": "nonsense"}
        )
    assert errors(answer)[1] == "The change could not be saved, nothing was changed"
    assert b"bert" not in answer.payload
    assert not answer.changed
    assert security.state is before
    assert security.path.read_bytes() == on_disk
    assert done(security, client("bert")).changed


def test_unknown_members_and_old_passwords_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    old = {"password": "aGFo" + "A" * 81 + "A==", "salt": "c2FsdHNhbHQ=", "iterations": 101}
    content = {
        "future": [1],
        "clients": [{"username": "anna", "textName": "Anna", "colour": "red", **old}],
        "roles": [{"rolename": "r", "x": {}, "acls": [{"acltype": "subscribeliteral", "topic": "t", "y": 2}]}],
    }
    path.write_text(json.dumps(content))
    path.chmod(0o600)
    security = DynamicSecurity.load(path, "sha512")
    done(security, client("bert"))
    written = json.loads(path.read_text())
    assert written["future"] == [1]
    anna, bert = written["clients"]
    assert anna == {"username": "anna", "textname": "Anna", "roles": [], "colour": "red", **old}
    assert bert["encoded_password"].startswith("$6$")
    assert written["roles"][0]["x"] == {}
    assert written["roles"][0]["acls"][0]["y"] == 2
    assert written["changeIndex"] == 1


DAMAGED = [
    ('{"clients": [\n {"username": "a" "x"}]}', "file:2: is damaged at column 19: Expecting ',' delimiter"),
    ("", "file:1: is damaged at column 1"),
    ("[]", "is not an object"),
    ('{"clients": {}}', "clients: is {}.*a list"),
    ('{"clients": [{"username": 1}]}', r"clients\[0\].username: is 1.*a text"),
    ('{"clients": [{"username": "a"}, {"username": "a"}]}', r"clients\[1\].username: 'a' stands there twice"),
    ('{"clients": [{"username": "a", "encoded_password": "x"}]}', r"encoded_password: is not a password hash"),
    ('{"clients": [{"username": "a", "password": "x", "salt": "x", "iterations": 1}]}', "password: is damaged"),
    ('{"roles": [{"rolename": "a", "acls": [{"acltype": "all", "topic": "t"}]}]}', r"acls\[0\].acltype: is 'all'"),
    ('{"roles": [{"rolename": "a", "acls": [{"acltype": "subscribeLiteral"}]}]}', r"acls\[0\].topic: is missing"),
    ('{"anonymousGroup": "g"}', "anonymousGroup: names the group 'g'"),
    ('{"changeIndex": NaN}', "NaN is no JSON"),
    ('{"a": "\\ud800', "is damaged at column"),
]


@pytest.mark.parametrize(("text", "problem"), DAMAGED)
def test_a_damaged_file_is_told_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        file.parse(text.encode(), Path("file"))


def test_a_name_that_is_not_there_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    text = b'{"groups": [{"groupname": "g", "clients": [{"username": "gone"}], "roles": [{"rolename": "gone"}]}]}'
    group = file.parse(text, Path("file")).groups["g"]
    assert not group.clients
    assert not group.roles
    assert caplog.text.count("refers to 'gone'") == 2


def test_a_new_file_and_its_first_passwords(tmp_path: Path) -> None:
    path = tmp_path / "security.json"
    made = DynamicSecurity.load_or_create(path, environment={}, algorithm="sha512")
    assert path.stat().st_mode & 0o777 == 0o600
    passwords = dict(line.split() for line in path.with_name("security.json.pw").read_text().splitlines())
    assert list(passwords) == ["admin", "democlient"]
    again = DynamicSecurity.load_or_create(path, environment={})
    assert again.state == made.state
    for name, password in passwords.items():
        assert again.login("c", name, password.encode()) is ALLOW
    chain = Chain([again], allow_anonymous=True)
    assert chain.may_publish("c", "admin", "$CONTROL/dynamic-security/v1")
    assert not chain.may_publish("c", "democlient", "$CONTROL/dynamic-security/v1")
    assert chain.may_publish("c", "democlient", "t")
    assert chain.may_subscribe("c", "democlient", "#")
    assert not chain.may_publish("c", None, "t")
    assert not chain.may_subscribe("c", None, "#")


def test_the_first_password_may_be_given(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("from the file\n")
    given.chmod(0o600)
    environment = {"MOSQUITTO_DYNSEC_PASSWORD": "from the environment"}
    one = DynamicSecurity.load_or_create(tmp_path / "one", given, environment, "sha512")
    assert one.login("c", "admin", b"from the file") is ALLOW
    two = DynamicSecurity.load_or_create(tmp_path / "two", None, environment, "sha512")
    assert two.login("c", "admin", b"from the environment") is ALLOW
    assert not list(tmp_path.glob("*.pw"))
    with pytest.raises(ConfigError, match="MOSQUITTO_DYNSEC_PASSWORD: has 5 characters.*at least 12"):
        DynamicSecurity.load_or_create(tmp_path / "three", None, {"MOSQUITTO_DYNSEC_PASSWORD": "short"})
    assert not (tmp_path / "three").exists()


# --- any commands in any order: what is on the disk is what is known -------------------------------------------------

NAMES = st.sampled_from(["a", "b", "ä"])
TOPICS = st.sampled_from(["a", "a/#", "+/%c"])
REFERENCES = {
    member: st.lists(st.fixed_dictionaries({member: NAMES}, optional={"priority": st.integers(-3, 3)}), max_size=3)
    for member in ("rolename", "groupname", "username")
}
ACL_MEMBERS = {
    "acltype": st.sampled_from(["publishClientSend", "SUBSCRIBEPATTERN", "unsubscribeLiteral"]),
    "topic": TOPICS,
}
ACL_OPTIONS = {"allow": st.booleans(), "priority": st.integers(-200_000, 200_000)}
MEMBERS = {
    **ACL_MEMBERS, **ACL_OPTIONS,
    "password": st.sampled_from(["x", "y"]), "clientid": st.sampled_from(["", "c"]), "textname": NAMES,
    "textdescription": NAMES, "allowwildcardsubs": st.booleans(), "roles": REFERENCES["rolename"],
    "groups": REFERENCES["groupname"], "clients": REFERENCES["username"],
    "acls": st.lists(st.fixed_dictionaries(ACL_MEMBERS, optional=ACL_OPTIONS), max_size=3),
}  # fmt: skip
CHANGES = [
    "createClient", "deleteClient", "modifyClient", "setClientPassword", "setClientId", "addClientRole",
    "removeClientRole", "enableClient", "disableClient", "createGroup", "deleteGroup", "modifyGroup", "addGroupClient",
    "removeGroupClient", "addGroupRole", "removeGroupRole", "setAnonymousGroup", "createRole", "deleteRole",
    "modifyRole", "addRoleACL", "removeRoleACL",
]  # fmt: skip
NAMED = {"username": NAMES, "rolename": NAMES, "groupname": NAMES}


class Commands(RuleBasedStateMachine):
    """Whatever is commanded: the file gives the same State, and every name in it exists."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "file"
        secret_file.replace(path, file.dump(State()))
        self.security = DynamicSecurity.load(path, "sha512")

    @rule(name=st.sampled_from(CHANGES), members=st.fixed_dictionaries(NAMED, optional=MEMBERS))
    def command(self, name: str, members: dict[str, Any]) -> None:
        before = self.security.state
        answer = run(self.security, {"command": name, **members})
        if errors(answer) != [None]:
            assert self.security.state is before
        assert answer.changed == (self.security.state is not before)

    @invariant()
    def the_file_is_what_is_known(self) -> None:
        state = self.security.state
        again = DynamicSecurity.load(self.security.path).state
        assert again == state
        assert file.dump(again) == file.dump(state)
        for name in state.clients:
            assert {role.name for role in state.roles_of(name)} <= set(state.roles)
        listed = run(self.security, *({"command": f"list{kind}", "verbose": True} for kind in ("Clients", "Groups")))
        assert errors(listed) == [None, None]

    def teardown(self) -> None:
        self.folder.cleanup()


TestCommands = Commands.TestCase
TestCommands.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
