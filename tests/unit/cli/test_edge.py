"""`lockgate edge`, as a person calls it."""

from __future__ import annotations

import json
import ssl
import time
import uuid
from pathlib import Path

import pytest
from cryptography import x509

from lockgate import cli
from lockgate.tunnel import tunnels
from lockgate.tunnel.certificates import Certificates
from lockgate.tunnel.token import Token
from lockgate.tunnel.tunnels import Refusal, Tunnel


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lockgate.toml"
    path.write_text('[gateway]\ndata_dir = "data"\n[edge]\npublic = ["edge.example:7844"]\n')
    monkeypatch.chdir(tmp_path)
    return path


def accepted(folder: Path, token: Token) -> str:
    found = tunnels.load(folder / "data" / "edge" / "tunnels.json")
    one = found.authenticate(token.account_tag, token.tunnel_id, token.secret, time.time())
    return one.name if isinstance(one, Tunnel) else one.value


def test_a_tunnel_from_its_making_to_its_end(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str, status: int = 0) -> str:
        assert cli.main(["edge", *words]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    folder = toml.parent
    first = Token.parse(said("tunnel", "create", "home", "--host", "home.example.org"))
    assert first.edges == ("edge.example:7844",)
    assert accepted(folder, first) == "home"
    second = Token.parse(said("tunnel", "token", "home", "--overlap", "1h", "--edge", "other.example:1"))
    assert second.edges == ("other.example:1",)
    assert accepted(folder, first) == accepted(folder, second) == "home"
    assert said("tunnel", "revoke", "home", "1") == "home: token 1 revoked\n"
    assert accepted(folder, first) == Refusal.REVOKED.value

    said("tunnel", "route", "home", "mqtt.example.org", "--mqtts", "--target", "mosquitto:1883")
    said("tunnel", "route", "home", "home/", "--users", "--target", "mosquitto:1883")
    listed = said("tunnel", "list")
    assert "1:revoked 2:good" in listed
    row = json.loads(said("tunnel", "list", "--json"))
    assert uuid.UUID(row["id"]) == first.tunnel_id
    assert (row["hosts"], row["mqtts"], row["users"]) == (["home.example.org"], ["mqtt.example.org"], ["home/"])
    said("tunnel", "route", "home", "home.example.org", "--remove")
    assert json.loads(said("tunnel", "list", "--json"))["hosts"] == []
    assert "does not lead there" in said("tunnel", "route", "home", "home.example.org", "--remove", status=3)
    assert "--target: is not for hosts" in said("tunnel", "route", "home", "x.org", "--target", "a:1", status=3)
    assert "--policy: is not for mqtts" in said("tunnel", "route", "home", "x", "--mqtts", "--policy", "p", status=3)
    assert "--expires: 'soon' is no time" in said("tunnel", "token", "home", "--expires", "soon", status=3)
    assert "'x' is no address" in said("tunnel", "token", "home", "--edge", "x", status=3)
    assert "there is no tunnel 'away'" in said("tunnel", "delete", "away", status=3)
    said("tunnel", "delete", "home")
    assert accepted(folder, second) == Refusal.WRONG.value
    assert "no tunnels" in said("tunnel", "list")


def test_a_token_tells_our_connector_what_to_check_the_edge_against(
    toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (toml.parent / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    toml.write_text(toml.read_text() + 'ca_file = "ca.pem"\n')
    assert cli.main(["edge", "tunnel", "create", "home"]) == 0
    assert Token.parse(capsys.readouterr().out).ca.startswith("-----BEGIN CERTIFICATE-----")
    (toml.parent / "ca.pem").write_text("nonsense")
    assert cli.main(["edge", "tunnel", "create", "other"]) == 3
    assert "edge.ca_file" in capsys.readouterr().err
    assert cli.main(["edge", "tunnel", "list"]) == 0
    assert "other" not in capsys.readouterr().out


def test_a_service_token_comes_with_the_rule_that_accepts_it(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edge", "service-token"]) == 0
    first, second, rule = capsys.readouterr().out.splitlines()
    path = toml.parent / "data" / "edge" / "tunnels.json"
    found = tunnels.parse(json.dumps({"policies": {"p": json.loads(rule)}}), path)
    assert list(found) == []
    assert first.startswith("lockgate-client-id: ")
    assert second.removeprefix("lockgate-client-secret: ") not in rule


def test_check_reads_the_tunnels(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edge", "tunnel", "create", "home"]) == 0
    assert cli.main(["check", str(toml)]) == 0
    path = toml.parent / "data" / "edge" / "tunnels.json"
    path.write_text('{"tunnel": {}}')
    capsys.readouterr()
    assert cli.main(["check", str(toml)]) == 3
    assert f"{path}: tunnel: is no key of it. Did you mean tunnels?" in capsys.readouterr().err


def test_the_certificate_that_connectors_see_is_made_and_renewed(
    toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = toml.parent / "data" / "edge"
    assert cli.main(["edge", "certificate", "edge.example", "192.0.2.1"]) == 0
    assert "ca_file = " in capsys.readouterr().out
    before = (folder / "tunnel.pem").read_bytes(), (folder / "ca.crt").read_bytes()
    assert cli.main(["edge", "certificate", "edge.example"]) == 0
    assert (folder / "tunnel.pem").read_bytes() != before[0]
    assert (folder / "ca.crt").read_bytes() == before[1]
    for name in ("tunnel.key", "ca.key"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    trusted = ssl.create_default_context(cafile=folder / "ca.crt")
    assert trusted.get_ca_certs()
    found = x509.load_pem_x509_certificate((folder / "tunnel.pem").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        "edge.example", "h2.cftunnel.com", "quic.cftunnel.com", "probe.cftunnel.com"
    ]  # fmt: skip
    assert tunnel_certificate(folder).context is not None
    (folder / "ca.key").unlink()
    assert cli.main(["edge", "certificate", "edge.example"]) == 3
    assert "ca.key: cannot be read: No such file" in capsys.readouterr().err
    assert cli.main(["edge", "certificate", "a b"]) == 3


def tunnel_certificate(folder: Path) -> Certificates:
    return Certificates(lambda: [(folder / "tunnel.pem", folder / "tunnel.key")], client_ca=None, alpn=())
