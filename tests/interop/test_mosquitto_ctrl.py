"""`mosquitto_ctrl`: Debian's and ours say the same, to Debian's mosquitto with its dynamic security plug-in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.interop.test_dynamic_security import PLUGIN
from tests.support.peers import Mosquitto, free_port, program, wait_for_port

pytestmark = pytest.mark.peers

OURS = [sys.executable, "-c", "import sys; from lockgate.cli.mosquitto_ctrl import main; sys.exit(main(sys.argv[1:]))"]

# A line each: the words behind `dynsec`, and behind "<" what is typed. The exit status is compared too, except where
# Mosquitto 2.0 gives 0 for a command that failed: there ours is 1.
DIALOGUE: list[tuple[str, ...]] = [
    ("getDefaultACLAccess",),
    ("setDefaultACLAccess", "subscribe", "allow"),
    ("setDefaultACLAccess", "subscribe", "maybe"),
    ("setDefaultACLAccess", "foo", "allow"),
    ("setDefaultACLAccess", "subscribe"),
    ("createRole", "r1"),
    ("createRole", "r1"),
    ("createRole",),
    ("addRoleACL", "r1", "publishClientSend", "a/#", "allow", "5"),
    ("addRoleACL", "r1", "subscribePattern", "b/#", "deny"),
    ("addRoleACL", "r1", "subscribePattern", "b/#"),
    ("addRoleACL", "r1", "foo", "b/#", "allow"),
    ("getRole", "r1"),
    ("getRole", "nope"),
    ("createRole", "r2"),
    ("listRoles",),
    ("listRoles", "1"),
    ("listRoles", "1", "1"),
    ("removeRoleACL", "r1", "subscribePattern", "b/#"),
    ("removeRoleACL", "r1", "subscribePattern"),
    ("createClient", "c1", "-p", "pw"),
    ("createClient", "c2", "-c", "cid", "-p", "pw"),
    ("createClient", "c3", "<", "\n"),
    ("createClient", "c4", "<", "geheim\ngeheim\n"),
    ("createClient", "c1", "-p", "pw"),
    ("createClient",),
    ("setClientPassword", "c1", "new"),
    ("setClientPassword", "c1", "<", "new\nnew\n"),
    ("setClientPassword", "nope", "new"),
    ("setClientId", "c1", "x"),
    ("addClientRole", "c1", "r1", "5"),
    ("addClientRole", "c1", "r2"),
    ("addClientRole", "c1"),
    ("getClient", "c1"),
    ("setClientId", "c1"),
    ("getClient", "c1"),
    ("getClient", "c2"),
    ("getClient", "nope"),
    ("disableClient", "c1"),
    ("getClient", "c1"),
    ("enableClient", "c1"),
    ("listClients",),
    ("listClients", "2", "1"),
    ("createGroup", "g1"),
    ("addGroupRole", "g1", "r1", "3"),
    ("addGroupRole", "g1", "r2", "9"),
    ("addGroupClient", "g1", "c1", "4"),
    ("addGroupClient", "g1", "c2"),
    ("getGroup", "g1"),
    ("getClient", "c1"),
    ("getClient", "c2"),
    ("listGroups",),
    ("setAnonymousGroup", "g1"),
    ("getAnonymousGroup",),
    ("removeGroupClient", "g1", "c1"),
    ("removeGroupRole", "g1", "r1"),
    ("removeClientRole", "c1", "r1"),
    ("deleteClient", "c1"),
    ("deleteClient", "c1"),
    ("deleteRole", "r1"),
    ("frobnicate",),
]


def run(command: Sequence[str], words: Sequence[str], typed: str = "") -> tuple[int, str]:
    """Give exit status and what was said, without the warning of a connection in the clear."""
    environment = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent"}
    ended = subprocess.run([*command, *words], input=typed.encode(), capture_output=True, timeout=20, env=environment)
    lines = [*ended.stdout.decode().splitlines(), *ended.stderr.decode().splitlines()]
    said = [line for line in lines if line and not line.startswith(("Warning: You are running", "This means all"))]
    return ended.returncode, "\n".join(said)


def transcript(command: Sequence[str], folder: Path) -> list[tuple[tuple[str, ...], int, str]]:
    """Hold the dialogue with a fresh mosquitto."""
    folder.mkdir()
    state = folder / "security.json"
    subprocess.run([program("mosquitto_ctrl"), "dynsec", "init", str(state), "admin", "pw"], check=True, stdout=-3)
    peer = Mosquitto(folder, [f"plugin {PLUGIN}", f"plugin_opt_config_file {state}"], anonymous=False)
    try:
        return converse(command, peer.port)
    finally:
        peer.stop()


def converse(command: Sequence[str], port: int) -> list[tuple[tuple[str, ...], int, str]]:
    """Hold the dialogue; gives words, exit status and what was said."""
    login = ["-h", "127.0.0.1", "-p", str(port), "-u", "admin", "-P", "pw", "dynsec"]
    said = []
    for words in DIALOGUE:
        before, typed = (words[: words.index("<")], words[-1]) if "<" in words else (words, "")
        status, text = run(command, [*login, *before], typed)
        said.append((words, 0 if f"{words[0]}: Error: " in text else status, text))
    return said


def test_every_command_says_the_same(tmp_path: Path) -> None:
    if not PLUGIN.exists():
        pytest.skip(f"no {PLUGIN}")
    ours = transcript(OURS, tmp_path / "ours")
    theirs = transcript([program("mosquitto_ctrl")], tmp_path / "theirs")
    for own, expected in zip(ours, theirs, strict=True):
        assert own == expected


def test_debians_program_drives_our_broker(tmp_path: Path) -> None:
    if not PLUGIN.exists():
        pytest.skip(f"no {PLUGIN}")
    expected = transcript([program("mosquitto_ctrl")], tmp_path / "theirs")
    state, conf, log, port = tmp_path / "security.json", tmp_path / "conf", tmp_path / "log", free_port()
    subprocess.run([program("mosquitto_ctrl"), "dynsec", "init", str(state), "admin", "pw"], check=True, stdout=-3)
    conf.write_text(
        f"listener {port} 127.0.0.1\nplugin {PLUGIN}\nplugin_opt_config_file {state}\n"
        + ("user root\n" if os.geteuid() == 0 else "")
    )
    with log.open("wb") as stream:
        broker = subprocess.Popen(
            [sys.executable, "-m", "lockgate", "mosquitto", "-c", str(conf)], stdout=stream, stderr=stream, cwd=tmp_path
        )
    try:
        wait_for_port(port, broker, log)
        assert converse([program("mosquitto_ctrl")], port) == expected
    finally:
        broker.terminate()
        broker.wait(10)


def test_refusals_have_an_exit_status(tmp_path: Path) -> None:
    if not PLUGIN.exists():
        pytest.skip(f"no {PLUGIN}")
    state = tmp_path / "security.json"
    assert run(OURS, ["dynsec", "init", str(state), "admin", "pw"])[0] == 0
    assert run(OURS, ["dynsec", "init", str(state), "admin", "pw"])[0] == 1
    state.unlink()
    subprocess.run([program("mosquitto_ctrl"), "dynsec", "init", str(state), "admin", "pw"], check=True, stdout=-3)
    peer = Mosquitto(tmp_path, [f"plugin {PLUGIN}", f"plugin_opt_config_file {state}"])
    to = ["-h", "127.0.0.1", "-p", str(peer.port)]
    try:
        status, text = run(OURS, [*to, "-u", "admin", "-P", "wrong", "dynsec", "listClients"])
        assert (status, text) == (135, "Connection error: Not authorized")
        assert run(OURS, [*to, "dynsec", "listClients"]) == (1, "Subscribe error: Not authorized")
        words = [*to, "-u", "admin", "-P", "pw", "dynsec", "getRole", "nope"]
        assert run(OURS, words) == (1, "getRole: Error: Role not found")
    finally:
        peer.stop()
    assert run(OURS, ["-h", "127.0.0.1", "-p", str(free_port()), "dynsec", "listClients"])[0] == 14


def test_a_file_is_administered_without_a_broker(tmp_path: Path) -> None:
    state = tmp_path / "security.json"
    assert run(OURS, ["dynsec", "init", str(state), "admin"], "geheim\ngeheim\n")[0] == 0
    at = ["-f", str(state), "dynsec"]
    assert run(OURS, [*at, "createClient", "anna", "-p", "secret"]) == (0, "")
    assert run(OURS, [*at, "addClientRole", "anna", "admin", "3"]) == (0, "")
    assert run(OURS, [*at, "listClients"]) == (0, "admin\nanna")
    assert run(OURS, [*at, "getClient", "anna"])[1].splitlines()[-1] == "Roles:    admin (priority: 3)"
    assert state.stat().st_mode & 0o777 == 0o600
    state.write_text("{")
    status, text = run(OURS, [*at, "listClients"])
    assert status == 1
    assert f"{state}:1: is damaged at column 2" in text


def test_words_that_are_no_command() -> None:
    assert run(OURS, ["foo", "bar"]) == (10, "Error: Module 'foo' not supported.")
    assert run(OURS, ["broker", "foo"]) == (13, "Command 'foo' not recognised.")
    assert run(OURS, ["dynsec", "init"])[0] == 3
    assert run(OURS, ["dynsec"])[0] == 1
