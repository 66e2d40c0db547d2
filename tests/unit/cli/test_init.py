"""`lockgate init`: a stack that works, whose secrets nobody else reads, and that overwrites nothing."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lockgate import __version__
from lockgate.access.password_file import PasswordFile
from lockgate.cli import main
from lockgate.tunnel import tunnels
from lockgate.tunnel.token import Token
from tests.support.certificates import Authority
from tests.support.peers import program

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "src" / "lockgate" / "stacks"
STACKS = sorted(path.name for path in TEMPLATES.iterdir())
BROKERS = [name for name in STACKS if name != "edge"]
# What a stack that is used has beside its templates, and git ignores
MADE = {
    "broker": {"access/passwd", "ca.crt", "config/server.crt", "secrets/ca.key", "secrets/server.key"},
    "tunnel": {"access/passwd", "secrets/tunnel_token"},
}
MADE["edge"] = {
    ".env",
    "ca.crt",
    "secrets/ca.key",
    "data/edge/ca.crt",
    "data/edge/certificates/public.key",
    "data/edge/certificates/public.pem",
    "data/edge/tunnel.key",
    "data/edge/tunnel.pem",
    "data/edge/tunnels.json",
}
MADE["gateway"] = MADE["broker"] | {"secrets/processor_password"}
TOKEN = "eyJhIjoiMDEyMzQ1Njc4OWFiY2RlZiIsInQiOiIuLi4iLCJzIjoiLi4uIn0="


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def init(folder: Path, stack: str, *words: str) -> int:
    if stack == "tunnel":
        (folder.parent / "token").write_text(f"{TOKEN}\n")
        return main(["init", str(folder), "--stack", stack, "--token-file", str(folder.parent / "token"), *words])
    hosts = ("gw.example", "*.gw.example") if stack == "edge" else ("gw.example", "192.0.2.7")
    given = [word for host in hosts for word in ("--host", host)]
    return main(["init", str(folder), "--stack", stack, *given, *words])


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
    assert named == [__version__] * 6  # twice in the tunnel's: ours beside cloudflared


@pytest.mark.parametrize("stack", BROKERS)
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


@pytest.mark.parametrize("stack", ["gateway", "tunnel", "edge"])
def test_nobody_else_reads_the_secrets(stack: str, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        assert init(tmp_path / "new", stack) == 0
    finally:
        os.umask(old)
    for path in (tmp_path / "new").rglob("*"):
        status = path.stat()
        assert not status.st_mode & 0o022, path
        if "secrets" in path.parts or path.suffix == ".key" or path.name in ("passwd", "tunnels.json"):
            assert path.is_dir() or not status.st_mode & 0o077, path
        if os.geteuid() == 0:  # then the containers' user has what it has to read, and no more
            its = {"access", "data", "server.key", "processor_password"} & set(path.relative_to(tmp_path / "new").parts)
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
    if stack == "edge":
        monkeypatch.setenv("LOCKGATE_EDGE_PUBLIC", '["gw.example:7844"]')
        monkeypatch.setenv("LOCKGATE_GATEWAY_DATA_DIR", str(tmp_path / "data"))
        toml = tmp_path / "config" / "lockgate.toml"
        toml.write_text(toml.read_text().replace("/mosquitto/", f"{tmp_path}/"))
        assert main(["check", str(toml)]) == 0
        assert main(["edge", "tunnel", "list", "-c", str(toml)]) == 0
        assert "home" in capsys.readouterr().out
        return
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
    doors = {"tunnel": "*:9001 (WebSocket), *:1883", "broker": "*:8883 (TLS), *:1883"}.get(
        stack, "*:8883 (TLS), *:9001 (WebSocket), *:1883"
    )
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
    assert written("terminal", "--device", "pump", "--connector", "cloudflared") == f"{TOKEN}\n"
    monkeypatch.setattr("getpass.getpass", lambda _prompt: "")
    assert written("later", "--device", "pump", "--connector", "lockgate") is None
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--token-file", "nowhere"], "the token cannot be read: "),
        (["--token-file", "wrong"], "what was given is no tunnel's token (accepted: the Base64 text"),
        (["--token-file", "empty"], "what was given is no tunnel's token"),
        (["--host", "a.example"], "--host is for a broker with TLS of its own"),
        (["--tunnel", "home"], "--tunnel: is not for the stack tunnel (accepted: edge)"),
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


# --- an edge of one's own ---------------------------------------------------------------------------------------------


def token_in(said: str) -> Token:
    (text,) = re.findall(r"^[A-Za-z0-9+/=]{100,}$", said, re.M)
    return Token.parse(text)


def test_an_edge_has_a_tunnel_whose_token_is_good_and_certificates_for_everybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(tmp_path / "edge", "edge", "--tunnel", "cabin") == 0
    token = token_in(capsys.readouterr().out)
    data = tmp_path / "edge" / "data" / "edge"
    assert token.edges == ("gw.example:7844",)
    assert token.ca == (tmp_path / "edge" / "ca.crt").read_text()
    assert (tmp_path / "edge" / ".env").read_text() == "EDGE_PUBLIC=gw.example:7844\n"
    found = tunnels.load(data / "tunnels.json")
    one = found.authenticate(token.account_tag, token.tunnel_id, token.secret, time.time())
    assert isinstance(one, tunnels.Tunnel)
    assert one.name == "cabin"
    for name in ("gw.example", "a.gw.example"):
        assert found.host(name) is not None
        assert found.mqtts(name) is not None
    verify = [program("openssl"), "verify", "-x509_strict", "-purpose", "sslserver",
              "-CAfile", str(tmp_path / "edge" / "ca.crt")]  # fmt: skip
    for name, file in (
        ("h2.cftunnel.com", "tunnel.pem"), ("quic.cftunnel.com", "tunnel.pem"), ("probe.cftunnel.com", "tunnel.pem"),
        ("gw.example", "tunnel.pem"), ("gw.example", "certificates/public.pem"),
        ("a.gw.example", "certificates/public.pem"),
    ):  # fmt: skip
        subprocess.run([*verify, "-verify_hostname", name, str(data / file)], capture_output=True, check=True)


def test_the_tunnel_stack_with_our_connector_differs_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(tmp_path / "edge", "edge") == 0
    (tmp_path / "token").write_text(token_in(capsys.readouterr().out).encode())
    assert main(["init", str(tmp_path / "ours"), "--stack", "tunnel", "--token-file", str(tmp_path / "token")]) == 0
    assert init(tmp_path / "theirs", "tunnel") == 0
    ours, theirs = (
        (tmp_path / name / "docker-compose.yml").read_text().splitlines() for name in ("ours", "theirs")
    )  # fmt: skip
    changed = [(one, other) for one, other in zip(ours, theirs, strict=True) if one != other]
    assert changed == [
        (f"    image: ${{LOCKGATE_IMAGE:-lockgate:{__version__}}}", "    image: cloudflare/cloudflared:2026.8.2")
    ]
    assert init(tmp_path / "asked", "tunnel", "--connector", "lockgate") == 0
    assert (tmp_path / "asked" / "docker-compose.yml").read_text().splitlines() == ours


def test_an_edge_takes_a_certificate_that_is_there(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("public", "gw.example")
    words = ("--certificate", str(certificate), "--key", str(key))
    assert init(tmp_path / "edge", "edge", *words) == 0
    made = tmp_path / "edge" / "data" / "edge" / "certificates"
    assert (made / "public.pem").read_bytes() == certificate.read_bytes()
    assert (made / "public.key").read_bytes() == key.read_bytes()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "an edge needs the name by which it is reached"),
        (["--host", "192.0.2.7"], "is an address, and tunnels are found by names"),
        (["--host", "*.a.example"], "is no name of one machine"),
        (["--host", "a b"], "is no host name"),
        (["--host", "a.example", "--device", "pump"], "--device: is not for the stack edge"),
        (["--host", "a.example", "--token-file", "x"], "--token-file: is not for the stack edge (accepted: tunnel)"),
        (["--host", "a.example", "--tunnel", "a/b"], "1 to 64 letters, digits, ., - and _"),
        (["--host", "a.example", "--key", "nowhere"], "--certificate and --key: belong together"),
        (["--host", "a.example", "--certificate", "no", "--key", "no"], "no: cannot be used: "),
    ],
)
def test_an_edge_that_cannot_be_made(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "new"), "--stack", "edge", *words]) == 3
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
