"""`lockgate migrate`: what it finds in a configuration of Mosquitto, and that it changes nothing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate.access import hashes
from lockgate.cli import main
from lockgate.cli.migrate_checks import expiry, look_at
from lockgate.cli.migrate_setup import Line, Setup, paths_here
from lockgate.config.errors import ConfigError
from lockgate.config.mosquitto_conf import read_mosquitto_conf
from lockgate.config.options_table import ROWS
from tests.support.certificates import Authority
from tests.support.mosquitto_stores import OUT, QUEUED, DbWriter, SqliteWriter

Found = dict[str, list[dict[str, Any]]]


class Place:
    """A folder with a mosquitto.conf, and what `lockgate migrate` says of it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.conf = folder / "mosquitto.conf"
        self._capsys = capsys

    def file(self, name: str, text: str, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def look(self, *lines: str, status: int = 0) -> Found:
        self.file("mosquitto.conf", "\n".join(lines) + "\n")
        assert main(["migrate", "--json", "--from", str(self.folder)]) == status
        said = json.loads(self._capsys.readouterr().out)
        assert said.pop("configuration") == str(self.conf)
        for section, rows in said.items():
            for row in rows:
                assert row["path"]
                assert section == "same" or (row["problem"] and row["advice"]), row
        found: Found = said
        return found


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, capsys)


def about(found: Found, section: str, option: str) -> list[tuple[int | None, str]]:
    """Line and problem of what is said of an option."""
    return [(row["line"], row["problem"]) for row in found[section] if row["option"] == option]


def one(found: Found, section: str, option: str) -> tuple[int | None, str]:
    rows = about(found, section, option)
    assert len(rows) == 1, rows
    return rows[0]


def test_a_good_configuration_is_the_same(place: Place) -> None:
    found = place.look("listener 1883 127.0.0.1", "allow_anonymous true", "max_queued_messages 5", "max_keepalive 9")
    assert [(row["option"], row["line"]) for row in found["same"]] == [
        ("listener", 1),
        ("allow_anonymous", 2),
        ("max_queued_messages", 3),
        ("max_keepalive", 4),
    ]
    assert found["unsafe"] == found["cannot"] == found["unseen"] == []
    assert {row["option"] for row in found["different"]} == {"persistence", "check_retain_source", "set_tcp_nodelay"}


def test_what_is_ignored_differs_with_its_reason(place: Place) -> None:
    found = place.look("listener 1883 ::1", "retry_interval 5", "websockets_log_level 1", "set_tcp_nodelay true")
    assert one(found, "different", "retry_interval") == (2, f"is ignored: {ROWS['retry_interval'].note}")
    assert one(found, "same", "set_tcp_nodelay") == (4, "")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["listener 1883"], True),
        (["listener 1883 192.168.1.1"], True),
        (["port 1883"], True),
        (["listener 1883 127.0.0.1"], False),
        (["listener 1883 ::1"], False),
        (["listener 1883 localhost"], False),
        (["listener 0 /tmp/s"], False),
        (["listener 1883", "bind_interface lo"], False),
        (["listener 1883", "listener_allow_anonymous false"], False),
    ],
)
def test_a_door_without_a_lock_is_unsafe_where_others_reach_it(place: Place, lines: list[str], told: bool) -> None:
    found = place.look("allow_anonymous true", *lines)
    assert bool(about(found, "unsafe", "allow_anonymous")) == told
    if told:
        line, problem = one(found, "unsafe", "allow_anonymous")
        assert line == 1
        assert "reads and writes everything" in problem


def test_settings_per_listener_are_those_of_that_listener(place: Place) -> None:
    place.file("passwords", "")
    found = place.look(
        "per_listener_settings true",
        "listener 1883",
        "allow_anonymous true",
        "listener 1884",
        f"password_file {place.folder}/passwords",
    )
    assert one(found, "unsafe", "allow_anonymous")[0] == 3
    assert one(found, "unsafe", "listener") == (
        4,
        "passwords cross the network readable: port 1884 is open to others and has no TLS",
    )


def test_passwords_are_looked_at(place: Place) -> None:
    good = hashes.make(b"x", "argon2id")
    lines = [
        f"anna:{hashes.make(b'x', 'sha512')}",
        f"bert:{hashes.make(b'x', 'sha512-pbkdf2', 101)}",
        f"carl:{hashes.make(b'x', 'sha512-pbkdf2', 100_000)}",
        f"dora:{good}",
        "emil:secret",
    ]
    path = place.file("passwords", "\n".join(lines) + "\n", 0o644)
    found = place.look("listener 1883 127.0.0.1", f"password_file {path}", status=1)
    assert about(found, "unsafe", "password_file") == [
        (2, f"everybody on this machine can read {path}"),
        (1, "user anna: its hash ($6$) is one round of SHA-512, quick to guess"),
        (2, "user bert: its hash ($7$) has 101 rounds, quick to guess"),
        (5, "user emil: a password in clear text"),
    ]
    assert one(found, "cannot", "password_file") == (5, "what follows user 'emil' is not a password hash")
    assert "secret" not in json.dumps(found)


def test_rules_that_let_everybody_do_everything_are_unsafe(place: Place) -> None:
    rules = ["topic read #", "topic deny #", "user anna", "topic #", "pattern readwrite #", "pattern read x_%u/#"]
    path = place.file("acl", "\n".join(rules) + "\n")
    told = [(1, "a client without a user name reads everything")]
    pattern = (5, "a pattern without %u or %c is for everybody, who reads and writes everything")
    found = place.look("listener 1883 127.0.0.1", "allow_anonymous true", f"acl_file {path}")
    assert about(found, "unsafe", "acl_file") == [*told, pattern]
    assert about(found, "different", "acl_file")[-1][0] == 6
    found = place.look("listener 1883 127.0.0.1", f"acl_file {path}")
    assert about(found, "unsafe", "acl_file") == [pattern]
    path.write_text("topc x\n")
    found = place.look("listener 1883 127.0.0.1", f"acl_file {path}", status=1)
    assert one(found, "cannot", "acl_file")[0] == 1


def test_dynamic_security_is_looked_at(place: Place) -> None:
    weak = str(hashes.make(b"x", "sha512-pbkdf2", 101))
    state = {"clients": [{"username": "anna", "encoded_password": weak}], "groups": [], "roles": []}
    path = place.file("dynsec.json", json.dumps(state, indent=1))
    lines = ["listener 1883 ::1", "plugin /usr/lib/mosquitto_dynamic_security.so", f"plugin_opt_config_file {path}"]
    line, problem = one(place.look(*lines), "unsafe", "dynamic_security")
    assert problem == "user anna: its hash ($7$) has 101 rounds, quick to guess"
    assert '"anna"' in path.read_text().split("\n")[(line or 0) - 1]
    path.write_text("{")
    assert one(place.look(*lines, status=1), "cannot", "dynamic_security")[0] == 1


def test_a_plugin_that_cannot_be_loaded_is_told_once_with_what_to_use(place: Place) -> None:
    lines = ["listener 1883", "auth_plugin /x/go-auth.so", "auth_opt_backends files", "auth_opt_hasher pbkdf2"]
    found = place.look(*lines, status=1)
    assert [(row["line"], row["option"]) for row in found["cannot"]] == [(2, "auth_plugin")]
    assert "with its 2 options" in found["cannot"][0]["problem"]
    assert "dynamic security" in found["cannot"][0]["advice"]
    assert about(found, "unsafe", "listener"), "its passwords cross the network, too"


@pytest.mark.parametrize(
    "name", [row.name for row in ROWS.values() if row.state == "refused" and row.scope != "bridge"]
)
def test_what_is_not_honoured_is_told_with_advice(place: Place, name: str) -> None:
    found = place.look("listener 8883", f"{name} x", status=1)
    told = [row for row in found["cannot"] if row["option"] == name]
    assert [row["line"] for row in told] == [2]
    assert told[0]["problem"].startswith("not honoured: Python ")
    assert told[0]["advice"].startswith(("use", "give", "remove"))


def test_mistakes_are_told_with_their_lines_and_the_rest_is_still_looked_at(place: Place) -> None:
    found = place.look("listener 1883", "allow_anonymous true", "max_qos 7", "bogus 1", status=1)
    assert [(row["line"], row["option"]) for row in found["cannot"]] == [(3, "max_qos"), (4, "bogus")]
    assert about(found, "unsafe", "allow_anonymous")
    assert not about(found, "same", "max_qos")


def test_certificates_are_looked_at(place: Place) -> None:
    authority = Authority(place.folder)
    certfile, keyfile = authority.issue("server", "localhost", expired=True)
    keyfile.chmod(0o644)
    lines = ["listener 8883", f"certfile {certfile}", f"keyfile {keyfile}"]
    found = place.look(*lines)
    assert one(found, "unsafe", "certfile") == (2, f"a certificate in {certfile} ended on 2020-01-01")
    assert one(found, "unsafe", "keyfile") == (3, f"everybody on this machine can read {keyfile}")
    keyfile.write_text("nothing")
    assert one(place.look(*lines, status=1), "cannot", "keyfile")[0] == 3
    keyfile.unlink()
    assert one(place.look(*lines), "unseen", "keyfile")[0] == 3


def test_the_end_of_a_certificate_is_read_as_others_read_it(tmp_path: Path) -> None:
    from cryptography import x509

    certfile, _keyfile = Authority(tmp_path).issue("server", "localhost")
    expected = [one.not_valid_after_utc.timestamp() for one in x509.load_pem_x509_certificates(certfile.read_bytes())]
    line = Line("certfile", str(certfile), certfile, 1)
    end = min(expected)
    assert not list(expiry(line, certfile, end - 31 * 86_400))
    assert "ends on" in next(expiry(line, certfile, end - 29 * 86_400)).problem
    assert "ended on" in next(expiry(line, certfile, end)).problem


def test_bridges_are_looked_at(place: Place) -> None:
    lines = ["connection b", "address far.example", "topic #", "remote_username u", "remote_password hidden"]
    place.look(*lines)
    found = place.look(*lines)
    assert one(found, "unsafe", "connection") == (1, "the bridge's password crosses the network readable")
    assert not about(found, "unsafe", "remote_password")
    Authority(place.folder)
    trusted = [*lines, f"bridge_cafile {place.folder}/ca.pem", "bridge_insecure true"]
    found = place.look(*trusted)
    assert not about(found, "unsafe", "connection")
    assert one(found, "unsafe", "bridge_insecure")[0] == 7
    near = [line.replace("far.example", "127.0.0.1:1884") for line in lines]
    assert not about(place.look(*near), "unsafe", "connection")
    assert "hidden" not in json.dumps(found)


def test_a_password_in_a_file_that_all_can_read_is_unsafe(place: Place) -> None:
    (place.folder / "conf.d").mkdir()
    lines = ["connection b", "address 127.0.0.1:1884", "topic #", "local_username u", "local_password hidden"]
    included = place.file("conf.d/b.conf", "\n".join(lines), 0o644)
    found = place.look(f"include_dir {place.folder}/conf.d")
    rows = [row for row in found["unsafe"] if row["option"] == "local_password"]
    assert [(row["path"], row["line"]) for row in rows] == [(str(included), 5)]


@pytest.mark.parametrize(
    ("lines", "section", "line", "words"),
    [
        (["persistence false"], "unsafe", 2, "lost at each stop"),
        ([], "different", None, "nothing says it"),
        (["persistence true", "persistence_location {0}"], "unsafe", 2, "every 1800 seconds"),
    ],
)
def test_what_survives_is_told(place: Place, lines: list[str], section: str, line: int | None, words: str) -> None:
    found = place.look("listener 1883 ::1", *(one.format(place.folder) for one in lines))
    at, problem = one(found, section, "persistence")
    assert at == line
    assert words in problem


def test_mosquittos_stores_are_counted_and_left_as_they_are(place: Place) -> None:
    data = place.folder / "data"
    data.mkdir()
    writer = DbWriter(6)
    writer.configuration()
    writer.message(1, "a/b", b"kept", qos=1, retain=True)
    writer.client("sleeper", b"anna")
    writer.client_message("sleeper", 1, 0, 1, QUEUED, OUT)
    writer.subscription("sleeper", "a/#", 1)
    writer.retained(1)
    (data / "mosquitto.db").write_bytes(writer.data)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.iterdir()}
    lines = ["listener 1883 ::1", "persistence true", f"persistence_location {data}/"]
    told = [row["problem"] for row in place.look(*lines)["same"] if row["problem"]]
    assert told == [
        f"{data}/mosquitto.db (mosquitto.db of version 6): 1 sessions with 1 subscriptions, 1 messages that wait, "
        "1 retained messages are taken over once; the file is kept as mosquitto.db.imported"
    ]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.iterdir()} == before
    (data / "mosquitto.db").write_bytes(b"something else")
    assert one(place.look(*lines, status=1), "cannot", "persistence_location")[0] == 3


def test_a_database_of_mosquitto_2_1_is_counted_and_nothing_is_left_beside_it(place: Place) -> None:
    writer = SqliteWriter(place.folder / "mosquitto.sqlite3")
    writer.client("sleeper", "anna")
    writer.subscription("sleeper", "a/#", 1)
    writer.close()
    before = sorted(path.name for path in place.folder.iterdir())
    lines = ["plugin mosquitto_persist_sqlite.so", f"persistence_location {place.folder}"]
    told = [row["problem"] for row in place.look(*lines)["same"] if row["problem"]]
    assert len(told) == 1
    assert "(mosquitto.sqlite3 of schema 1.1): 1 sessions with 1 subscriptions, 0 messages" in told[0]
    assert sorted(path.name for path in place.folder.iterdir()) == sorted([*before, "mosquitto.conf"])


def test_the_files_of_a_container_are_found_where_they_are_mounted(place: Place, tmp_path: Path) -> None:
    lines = [
        "listener 1883 ::1",
        "persistence true",
        "persistence_location /mosquitto/data/",
        "password_file /mosquitto/config/passwords",
        "include_dir /mosquitto/config/conf.d",
        "acl_file /mosquitto/config/acl",
        "log_dest file /mosquitto/log/mosquitto.log",
    ]
    (tmp_path / "config" / "conf.d").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "config" / "passwords").write_text("anna:secret\n")
    (tmp_path / "config" / "conf.d" / "more.conf").write_text("max_keepalive 9\n")
    (tmp_path / "config" / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    for start in (tmp_path, tmp_path / "config", tmp_path / "config" / "mosquitto.conf"):
        assert main(["migrate", "--json", "--from", str(start)]) == 1
        found = json.loads(place._capsys.readouterr().out)
        assert [row["path"] for row in found["cannot"]] == [str(tmp_path / "config" / "passwords")]
        assert {row["option"] for row in found["unseen"]} == {"acl_file", "log_dest"}
        assert about(found, "same", "max_keepalive")


def test_a_root_that_stays_root_is_unsafe(place: Place) -> None:
    assert one(place.look("listener 1883 ::1", "user root"), "unsafe", "user")[0] == 2


def test_a_symbolic_link_to_secrets_is_in_the_way(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOSQUITTO_UNSAFE_ALLOW_SYMLINKS", raising=False)
    place.file("real", "")
    (place.folder / "passwords").symlink_to("real")
    lines = ["listener 1883 ::1", f"password_file {place.folder}/passwords"]
    assert "symbolic link" in one(place.look(*lines, status=1), "cannot", "password_file")[1]
    monkeypatch.setenv("MOSQUITTO_UNSAFE_ALLOW_SYMLINKS", "1")
    place.look(*lines)


def test_without_a_configuration_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for start in (tmp_path, tmp_path / "absent.conf"):
        assert main(["migrate", "--from", str(start)]) == 3
        assert str(start) in capsys.readouterr().err


def test_the_text_has_its_sections_and_says_what_is_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "mosquitto.conf"
    conf.write_text("listener 1883\nlistener 1884\npsk_hint x\n")
    assert main(["migrate", "--from", str(conf)]) == 1
    said = capsys.readouterr().out
    titles = ["\nThe same\n", "\nDifferent\n", "\nUnsafe now\n  nothing\n", "\nCannot be taken over\n"]
    assert sorted(map(said.index, titles)) == [said.index(title) for title in titles]
    assert f"  {conf}: listener (1, 2)\n" in said
    assert f"  {conf}:3: psk_hint: not honoured: " in said
    assert said.endswith("\nIn the way: 1. Unsafe: nothing. Correct what is in the way first.\n")
    conf.write_text("listener 1883\n")
    assert main(["migrate", "--from", str(conf)]) == 0
    assert capsys.readouterr().out.endswith("The broker starts with this configuration.\n")


_LINES = st.lists(
    st.tuples(
        st.sampled_from([*ROWS, "plugin_opt_x", "auth_opt_x", "bogus"]),
        st.sampled_from(["true", "false", "1883", "0", "/nowhere/x", "a b c", "", "443 ::", "localhost:1", "file x"])
        | st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
    ),
    max_size=12,
)


@given(_LINES)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_configuration_is_too_odd_to_be_looked_at(tmp_path: Path, lines: list[tuple[str, str]]) -> None:
    conf = tmp_path / "mosquitto.conf"
    conf.write_text("".join(f"{name} {value}\n" for name, value in lines), encoding="utf-8")
    findings = look_at(Setup(conf, paths_here(tmp_path)), time.time())
    assert all(one.problem for one in findings if one.section != "same")
    try:
        read_mosquitto_conf(conf)
    except ConfigError:
        assert any(one.section == "cannot" for one in findings)
    else:
        assert not any(one.section == "cannot" and one.path == conf for one in findings)


def test_it_writes_nothing(place: Place) -> None:
    place.file("acl", "topic #\n")
    place.file("passwords", "anna:x\n")
    conf = ["listener 1883", f"acl_file {place.folder}/acl", f"password_file {place.folder}/passwords"]
    place.look(*conf, status=1)
    os.chmod(place.folder, 0o500)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in place.folder.iterdir())
    assert main(["migrate", "--from", str(place.folder)]) == 1
    assert sorted((path.name, path.stat().st_mtime_ns) for path in place.folder.iterdir()) == before
