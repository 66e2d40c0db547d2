"""The commands, each as a person calls it."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from lockgate import __version__, cli
from lockgate.access.scram import read_users
from lockgate.buffer.ledger import DeliveryBook, IntakeBook, Ledger
from lockgate.cli import ledger as ledger_command
from lockgate.cli import status as status_command
from lockgate.cli import up
from lockgate.cli.common import table
from lockgate.config import lockgate_toml
from lockgate.telemetry import health
from tests.support.certificates import Authority

GOOD = """\
[gateway]
data_dir = "data"
[schemas.reading]
topics = ["sensors/#"]
fields = { value = "real" }
[rules.alarm]
schema = "reading"
class = "alarm"
sql = "SELECT :topic AS topic, :value AS value WHERE :value > 90"
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "lockgate.toml"
    path.write_text(GOOD)
    return path


def test_version_names_the_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"lockgate {__version__} (")
    import lockgate.broker.broker

    compiled = (lockgate.broker.broker.__file__ or "").endswith(".so")
    assert ("(compiled)" in said) is compiled


def test_every_command_has_a_module_and_help() -> None:
    for name in cli.COMMANDS:
        module = importlib.import_module(f"lockgate.cli.{name}")
        assert callable(module.add_arguments)
        assert callable(module.main)
    out = subprocess.run(
        [sys.executable, "-m", "lockgate", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(re.search(rf"^ +{name}\s", out, re.MULTILINE) for name in cli.COMMANDS)


def test_check_tells_what_a_good_configuration_will_do(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(toml)]) == 0
    said = capsys.readouterr().out
    assert f"{toml}: good" in said
    assert "127.0.0.1:1883, ::1:1883; everybody is let in" in said
    assert "1 schemas, 1 rules" in said


def test_check_reports_a_mistake_and_exits_with_3(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text(GOOD + "[gatway]\n")
    assert cli.main(["check", str(toml)]) == 3
    assert f"{toml}:10: gatway: is no section. Did you mean gateway?" in capsys.readouterr().err


def test_check_compiles_the_rules(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text(GOOD.replace(":value > 90", ":valu > 90"))
    assert cli.main(["check", str(toml)]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"{toml}:9: rules.alarm.sql: ")
    assert ":value" in said


def test_check_reads_the_certificates_and_tells_what_each_listener_speaks(
    toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cert, key = Authority(toml.parent).issue("server", "localhost")
    conf = toml.parent / "mosquitto.conf"
    conf.write_text(
        f"listener 8883\nprotocol websockets\ncertfile {cert}\nkeyfile {key}\ndhparamfile x\n"
        "listener 0 /run/mqtt.sock\nlistener 1884\nenable_proxy_protocol 1\n"
    )
    toml.write_text(GOOD + f'[broker]\nmosquitto_conf = "{conf}"\n')
    assert cli.main(["check", str(toml)]) == 0
    said = capsys.readouterr().out
    assert "*:8883 (WebSocket, TLS), /run/mqtt.sock, *:1884 (PROXY version 1); " in said
    assert "Warning: dhparamfile is ignored" in said
    key.write_text("rubbish")
    assert cli.main(["check", str(toml)]) == 3
    said = capsys.readouterr().err
    assert f"Error: keyfile: {key} cannot be used" in said
    assert f"Error found at {conf}:4." in said


async def test_status_shows_who_is_up(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    said = {
        "pid": 7,
        "uptime_seconds": 3661.0,
        "status": {"connections": 2, "bytes": 9, "dropped": {"expired": 1, "slow": 0}},
    }
    async with health.StatusServer(toml.parent / "data" / "run" / "broker.sock", {"status": lambda _: said}):
        assert await asyncio.to_thread(cli.main, ["status", "-c", str(toml)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split() == ["broker", "up", "7", "0d", "01:01:01", "connections=2", "dropped.expired=1"]
        assert lines[2].split() == ["processor", "down"]
        await asyncio.to_thread(cli.main, ["status", "--json", "-c", str(toml)])
        assert json.loads(capsys.readouterr().out) == {"broker": said, "processor": None, "forwarder": None}


def test_status_tells_what_is_wrong() -> None:
    status = {"waiting": 3, "sinks": {"a": {"error": "HTTP 500", "pending": {"alarm": 1}}, "b": {"error": None}}}
    assert list(status_command.problems(status)) == ["sinks.a.error: HTTP 500"]
    assert list(status_command.problems({"buffer": {"waiting": "full"}})) == ["buffer.waiting: full"]
    assert list(status_command.problems(None)) == []


def test_a_second_up_of_a_gateway_is_refused(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with up.alone(lockgate_toml.load(toml, {})):
        assert cli.main(["up", "-c", str(toml)]) == 3
    assert f"{toml}: this gateway is already running: lockgate up, process {os.getpid()}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_said_without_a_traceback(
    tmp_path: Path, toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").write_text("in the way")
    assert cli.main(["up", "-c", str(toml)]) == 1
    assert capsys.readouterr().err == f"Error: {tmp_path / 'data' / 'run'}: Not a directory\n"


def test_status_of_an_answer_without_numbers() -> None:
    assert status_command.row("x", {}) == ("x", "up", "", "0d 00:00:00", "")


def test_ledger_without_a_buffer_says_so(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ledger", "-c", str(toml)]) == 1
    assert "there is no buffer in" in capsys.readouterr().err


def test_ledger_shows_both_books_and_fails_when_one_does_not_close(
    toml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (toml.parent / "data" / "buffer").mkdir(parents=True)
    intake = IntakeBook(received=10, logged=7, refused={"not JSON": 2}, duplicate=1)
    good = DeliveryBook("cloud", "alarm", addressed=7, delivered=4, pending=2, dropped={"damaged": 1})
    bad = DeliveryBook("disk", "alarm", addressed=7, delivered=4, pending=2)
    books = Ledger(intake, (good,))
    monkeypatch.setattr(ledger_command, "read_ledger", lambda _folder: books)
    assert cli.main(["ledger", "-c", str(toml)]) == 0
    said = capsys.readouterr().out
    assert "received    10   closes" in said
    assert "refused              2   not JSON 2" in said
    assert said.splitlines()[-1].split() == ["cloud", "alarm", "7", "4", "2", "1", "0", "0", "0", "0", "closes"]
    books = Ledger(intake, (good, bad))
    assert cli.main(["ledger", "-c", str(toml)]) == 1
    assert "DOES NOT CLOSE: +1" in capsys.readouterr().out
    assert cli.main(["ledger", "--json", "-c", str(toml)]) == 1
    said_json = json.loads(capsys.readouterr().out)
    assert [book["closes"] for book in said_json["deliveries"]] == [True, False]
    assert said_json["closes"] is False


def test_a_missing_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["run", "broker"], ["up"], ["status"], ["ledger"]):
        assert cli.main([*words, "-c", str(tmp_path / "none.toml")]) == 3
        assert "none.toml: cannot be read: No such file" in capsys.readouterr().err


def test_a_table_lines_up() -> None:
    assert table(("a", "count"), [("x", "10"), ("long", "7")]) == "a     count\nx        10\nlong      7"


def test_users_of_scram_are_added_checked_and_removed(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "users"
    toml.write_text(GOOD + '[broker]\nscram_file = "users"\n')
    assert cli.main(["check", str(toml)]) == 3  # there is no such file yet
    assert "users" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    assert cli.main(["scram", str(file), "ann", "--iterations", "4096"]) == 0
    assert "'ann' added" in capsys.readouterr().out
    assert read_users(file.read_text())["ann"].iterations == 4096
    assert cli.main(["check", str(toml)]) == 0
    assert cli.main(["scram", str(file), "bob", "--delete"]) == 1
    assert cli.main(["scram", str(file), "ann", "--delete"]) == 0
    file.write_text("ann:secret\n")
    capsys.readouterr()
    assert cli.main(["check", str(toml)]) == 3
    assert f"{file}:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("user", "password"),
    [("ann", ""), ("ann", "\a"), ("", "secret"), ("a\nb", "secret"), (" a", "secret"), ("#a", "secret")],
)
def test_a_user_of_scram_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, password: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{password}\n"))
    assert cli.main(["scram", str(tmp_path / "users"), user]) == 3
    assert not (tmp_path / "users").exists()


async def test_explain_tells_reasons_with_their_times(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    at = time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))
    said = {
        "findings": [
            {"reason": "not connected", "text": "it is away", "count": 0, "first_at": at, "last_at": None},
            {"reason": "expired", "text": "too late", "count": 1, "first_at": at, "last_at": at},
            {"reason": "queue full", "text": "no room", "count": 3, "first_at": at, "last_at": at + 60},
            {"reason": "waiting", "text": "it waits", "count": 0, "first_at": None, "last_at": None},
        ],
        "remembered_since": at,
    }
    asked: list[object] = []

    def answer(question: Mapping[str, object]) -> Mapping[str, object]:
        asked.append(question)
        return said

    socket = toml.parent / "data" / "run" / "broker.sock"
    command = ["explain", "-c", str(toml), "--client", "c", "--topic", "t/a"]
    async with health.StatusServer(socket, {"explain": answer}):
        assert await asyncio.to_thread(cli.main, command) == 0
        assert capsys.readouterr().out.splitlines() == [
            "not connected: it is away, since 2026-01-02 03:04:05",
            "expired: too late, at 2026-01-02 03:04:05",
            "queue full: no room, 3 times from 2026-01-02 03:04:05 to 2026-01-02 03:05:05",
            "waiting: it waits",
            "(decisions are remembered since 2026-01-02 03:04:05)",
        ]
        assert await asyncio.to_thread(cli.main, [*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == said
    assert asked[0] == {"ask": "explain", "client": "c", "topic": "t/a"}
    assert cli.main(command) == 1
    assert "is it running?" in capsys.readouterr().err
