from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lockgate.config.model import AcmeConfig, ConnectorConfig, EdgeConfig, GatewayConfig
from lockgate.doctor import tunnel
from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding
from lockgate.tunnel.token import Token
from tests.support.certificates import Authority
from tests.support.machines import case_of

TOKEN = Token.parse("eyJhIjoieCIsInQiOiJlOTUxZTVmNi1iYTU1LTQ3NmEtYjZkYi04ODVkOTI2ODlkOGQiLCJzIjoiQUFBQSJ9")


def case_with(folder: Path, *, connector: ConnectorConfig | None = None, edge: EdgeConfig | None = None) -> Case:
    case = case_of(folder)
    assert case.config is not None
    config = dataclasses.replace(
        case.config,
        gateway=GatewayConfig(id="edge", data_dir=folder),
        connector=connector or ConnectorConfig(),
        edge=edge or EdgeConfig(),
    )
    return dataclasses.replace(case, config=config)


def severities(found: list[Finding]) -> dict[str, str]:
    return {one.check: one.severity for one in found}


def test_who_has_neither_end_is_told_nothing(tmp_path: Path) -> None:
    case = case_with(tmp_path)
    assert not [*tunnel.of_connector(case), *tunnel.of_edge(case)]


@pytest.mark.parametrize(("mode", "told"), [(0o644, {"secret": "error"}), (0o400, {})])
def test_a_token_that_everybody_reads_is_told(tmp_path: Path, mode: int, told: dict[str, str]) -> None:
    path = tmp_path / "token"
    path.write_text(dataclasses.replace(TOKEN, edges=("localhost:7844",)).encode())
    path.chmod(mode)
    found = list(tunnel.of_connector(case_with(tmp_path, connector=ConnectorConfig(token_file=path))))
    assert severities(found) == told | {"edge-name": "ok"}
    assert TOKEN.encode()[:40] not in str(found)


def test_a_token_that_is_none_and_an_edge_that_is_not_found_are_told(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("nonsense")
    path.chmod(0o400)
    said = ConnectorConfig(token_file=path, edges=("edge.invalid:7844",))
    found = list(tunnel.of_connector(case_with(tmp_path, connector=said)))
    assert severities(found) == {"tunnel-token": "error", "edge-name": "error"}
    assert "edge.invalid:7844 is not found" in str(found)


def test_the_edges_certificates_are_looked_at(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    folder = tmp_path / "edge" / "certificates"
    folder.mkdir(parents=True)
    for source, name in zip(
        authority.issue("ended", "a.example", expired=True), ("ended.pem", "ended.key"), strict=True
    ):
        source.rename(folder / name)
    (folder / "ended.key").chmod(0o644)
    case = case_with(tmp_path, edge=EdgeConfig(public=("edge.example:7844",)))
    assert severities(list(tunnel.of_edge(case))) == {
        "secret": "error",
        "certificate-time": "error",
        "missing": "error",
    }
    for source, name in zip(authority.issue("tunnel", "other.example"), ("tunnel.pem", "tunnel.key"), strict=True):
        source.rename(tmp_path / "edge" / name)
    found = list(tunnel.of_edge(case))
    assert "certificate-name" in severities(found)
    assert "is not for edge.example, only for other.example" in str(found)


def test_what_the_acme_server_brought_is_looked_at(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for source, name in zip(authority.issue("tunnel", "a.example"), ("tunnel.pem", "tunnel.key"), strict=True):
        (tmp_path / "edge").mkdir(exist_ok=True)
        source.rename(tmp_path / "edge" / name)
    acme = AcmeConfig(names=("a.example", "b.example"), agree_to_terms=True)
    case = case_with(tmp_path, edge=EdgeConfig(acme=acme))
    assert case.config is not None
    fetched = acme.files(case.config.gateway)["a.example"]
    fetched.parent.mkdir(parents=True)
    certfile, keyfile = authority.issue("a", "other.example")
    fetched.write_bytes(certfile.read_bytes() + keyfile.read_bytes())
    fetched.chmod(0o644)
    found = [one for one in tunnel.of_edge(case) if one.severity != "ok"]
    assert {one.check: one.severity for one in found} == {
        "secret": "error",
        "certificate-name": "error",
        "missing": "warning",
    }
    assert "no certificate for b.example has come from the ACME server yet" in str(found)
