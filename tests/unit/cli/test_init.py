"""`lockgate init`: a stack that works, whose secrets nobody else reads, and that overwrites nothing."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lockgate import __version__
from lockgate.access.password_file import PasswordFile
from lockgate.cli import main
from tests.support.peers import program

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "src" / "lockgate" / "stacks"
STACKS = sorted(path.name for path in TEMPLATES.iterdir())
# What a stack that is used has beside its templates, and git ignores
MADE = {
    "broker": {"access/passwd", "ca.crt", "config/server.crt", "secrets/ca.key", "secrets/server.key"},
    "tunnel": {"access/passwd", "secrets/tunnel_token"},
}
MADE["gateway"] = MADE["broker"] | {"secrets/processor_password"}
TOKEN = "eyJhIjoiMDEyMzQ1Njc4OWFiY2RlZiIsInQiOiIuLi4iLCJzIjoiLi4uIn0="


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def init(folder: Path, stack: str, *words: str) -> int:
    if stack == "tunnel":
        (folder.parent / "token").write_text(f"{TOKEN}\n")
        return main(["init", str(folder), "--stack", stack, "--token-file", str(folder.parent / "token"), *words])
    return main(["init", str(folder), "--stack", stack, "--host", "gw.example", "--host", "192.0.2.7", *words])


def passwords_in(said: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\S+) +([A-Za-z0-9]{20})$", said, re.M))


@pytest.mark.parametrize("stack", STACKS)
def test_what_is_packed_is_what_packaging_has(stack: str) -> None:
    beside = contents(ROOT / "packaging" / "compose" / stack)
    assert {name: data for name, data in beside.items() if name not in MADE[stack]} == contents(TEMPLATES / stack)


def test_the_image_is_that_of_this_version() -> None:
    named = [
        version
        for path in (ROOT / "packaging" / "compose").glob("*/*.yml")
        for version in re.findall(r"\$\{LOCKGATE_IMAGE:-lockgate:(.*)\}", path.read_text())
    ]
    assert named == [__version__] * 3


@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_is_written_whole(stack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    assert init(folder, stack, "--device", "pump") == 0
    written = contents(folder)
    assert contents(TEMPLATES / stack).items() <= written.items()
    assert written.keys() == contents(TEMPLATES / stack).keys() | MADE[stack]

    shown = passwords_in(capsys.readouterr().out)
    assert shown.keys() == {"operator", "pump"}
    if stack == "gateway":
        shown["processor"] = written["secrets/processor_password"].decode().removesuffix("\n")
    known = PasswordFile.load(folder / "access" / "passwd")
    for name, password in shown.items():
        assert known.users[name].verify(password.encode())
        assert not known.users[name].verify(b"another")
    assert len(set(shown.values())) == len(shown)


@pytest.mark.parametrize("stack", ["gateway", "tunnel"])
def test_nobody_else_reads_the_secrets(stack: str, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        assert init(tmp_path / "new", stack) == 0
    finally:
        os.umask(old)
    for path in (tmp_path / "new").rglob("*"):
        status = path.stat()
        assert not status.st_mode & 0o022, path
        if "secrets" in path.parts or path.name == "passwd":
            assert path.is_dir() or not status.st_mode & 0o077, path
        if os.geteuid() == 0:  # then the containers' user has what it has to read, and no more
            its = path.parent.name == "access" or path.name in ("access", "server.key", "processor_password")
            assert status.st_uid == (1883 if its else 65532 if path.name == "tunnel_token" else 0), path


def test_a_strict_umask_does_not_keep_the_containers_out(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    old = os.umask(0o077)
    try:
        assert init(folder, "broker") == 0
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "config").stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "config" / "mosquitto.conf").stat().st_mode) == 0o644


def test_the_certificate_is_for_the_names_that_were_given(tmp_path: Path) -> None:
    assert init(tmp_path, "broker") == 0
    verify = [
        program("openssl"),
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-CAfile",
        str(tmp_path / "ca.crt"),
    ]
    certificate = str(tmp_path / "config" / "server.crt")
    for kind, name, good in (
        ("hostname", "gw.example", True),
        ("ip", "192.0.2.7", True),
        ("hostname", "broker", True),
        ("hostname", "other.example", False),
    ):
        done = subprocess.run([*verify, f"-verify_{kind}", name, certificate], capture_output=True, check=False)
        assert (done.returncode == 0) is good, (name, done.stderr)


@pytest.mark.parametrize("stack", STACKS)
def test_what_is_written_passes_check(
    stack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the places of the container replaced by those of the folder."""
    assert init(tmp_path, stack) == 0
    monkeypatch.setenv("MOSQUITTO_UNSAFE_ALLOW_SYMLINKS", "1")
    conf = tmp_path / "config" / "mosquitto.conf"
    toml = tmp_path / "config" / "lockgate.toml"
    if stack != "gateway":
        toml.write_text('[broker]\nmosquitto_conf = "/mosquitto/config/mosquitto.conf"\n')
    for path in (conf, toml):
        text = path.read_text().replace("/run/secrets/server_key", str(tmp_path / "secrets" / "server.key"))
        path.write_text(text.replace("/run/secrets/", f"{tmp_path}/secrets/").replace("/mosquitto/", f"{tmp_path}/"))
    capsys.readouterr()
    assert main(["check", str(toml)]) == 0
    said = capsys.readouterr().out
    assert "Warning" not in said
    doors = "*:9001 (WebSocket), *:1883" if stack == "tunnel" else "*:8883 (TLS), *:1883"
    assert f"{doors}; nobody is let in without a user name" in said


@pytest.mark.parametrize("there", ["access/acl", "secrets/ca.key", "docker-compose.yml"])
def test_nothing_is_overwritten(there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / there
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    assert init(tmp_path, "gateway") == 3
    assert contents(tmp_path) == {there: b"mine"}
    assert capsys.readouterr().err == (
        f"{tmp_path}: {there} is there already; nothing was written (accepted: a new or an empty folder)\n"
    )


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    other = tmp_path / "config" / "notes"
    other.parent.mkdir()
    other.write_text("mine")
    other.chmod(0o604)
    assert init(tmp_path, "broker") == 0
    assert (other.read_text(), stat.S_IMODE(other.stat().st_mode)) == ("mine", 0o604)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--host", "a b"], "'a b' is no host name and no address"),
        (["--host", "x\nsubjectAltName=DNS:evil"], "is no host name and no address"),
        (["--host=-a.example"], "is no host name and no address"),
        (["--device", "a/b"], "'a/b' cannot be the name of a device"),
        (["--device", "+"], "'+' cannot be the name of a device"),
        (["--device", "operator"], "'operator' cannot be the name of a device"),
        (["--device", "processor"], "neither operator nor processor"),
    ],
)
def test_names_that_cannot_be_used(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert init(folder, "broker", *words) == 3
    assert complaint in capsys.readouterr().err
    assert not folder.exists()


def test_without_openssl_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "new"
    assert init(folder, "broker") == 3
    assert "openssl is needed" in capsys.readouterr().err
    assert not folder.exists()


def test_on_a_terminal_it_asks_for_what_was_not_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["gateway", "one.example 192.0.2.1", ""])
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    assert main(["init", str(tmp_path / "new")]) == 0
    assert len(asked) == 3
    assert asked[2] == "User name of the first device [device-1]: "
    assert (tmp_path / "new" / "config" / "lockgate.toml").exists()
    said = capsys.readouterr().out
    assert passwords_in(said).keys() == {"operator", "device-1"}
    assert "connect with TLS to one.example, port 8883" in said

    def hang_up(_question: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", hang_up)
    assert main(["init", str(tmp_path / "other")]) == 130
    assert not (tmp_path / "other").exists()
    assert main(["init", str(tmp_path / "other"), "--non-interactive"]) == 0
    assert not (tmp_path / "other" / "config" / "lockgate.toml").exists()


def test_the_token_comes_from_a_file_the_environment_or_the_terminal_and_is_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(name: str, *words: str) -> str | None:
        assert main(["init", str(tmp_path / name), "--stack", "tunnel", *words]) == 0
        path = tmp_path / name / "secrets" / "tunnel_token"
        return path.read_text() if path.exists() else None

    assert written("none") is None
    assert "cat > secrets/tunnel_token" in capsys.readouterr().out
    monkeypatch.setenv("TUNNEL_TOKEN", TOKEN)
    assert written("environment") == f"{TOKEN}\n"
    monkeypatch.delenv("TUNNEL_TOKEN")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda _prompt: f" {TOKEN} ")
    assert written("terminal", "--device", "pump") == f"{TOKEN}\n"
    monkeypatch.setattr("getpass.getpass", lambda _prompt: "")
    assert written("later", "--device", "pump") is None
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--token-file", "nowhere"], "the token cannot be read: "),
        (["--token-file", "wrong"], "what was given is no tunnel's token (accepted: the Base64 text"),
        (["--token-file", "empty"], "what was given is no tunnel's token"),
        (["--host", "a.example"], "--host is for a broker with TLS of its own"),
    ],
)
def test_a_tunnel_that_cannot_be_made(
    words: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong").write_text("tunnel run --token x\n")
    Path("empty").write_text("\n")
    assert main(["init", "new", "--stack", "tunnel", *words]) == 3
    said = capsys.readouterr().err
    assert complaint in said
    assert "--token x" not in said
    assert not Path("new").exists()
