"""By which name an edge is trusted, and where a token leads that names no edge: as cloudflared does it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lockgate import app
from lockgate.config import lockgate_toml
from lockgate.config.errors import ConfigError
from lockgate.tunnel.token import Token
from tests.support.tunnels import Bench, bench


@pytest.fixture
async def tunnel(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as one:
        # as the vendor's: good for the one name that every connector asks for
        for source, target in zip(
            one.authority.issue("only", "h2.cftunnel.com"), ("tunnel.pem", "tunnel.key"), strict=True
        ):
            source.rename(one.gateway.data_dir / "edge" / target)
        yield one


async def test_the_name_that_is_asked_for_may_be_another_than_the_one_dialled(tunnel: Bench) -> None:
    edge = await tunnel.start_edge()
    connector = await tunnel.start_connector([], server_name="h2.cftunnel.com")
    assert connector.ready_connections >= 1
    assert edge.hub.registry.of(tunnel.token.tunnel_id)


async def test_without_it_such_an_edge_is_not_trusted(tunnel: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await tunnel.start_edge()
    with caplog.at_level(logging.WARNING), pytest.raises(AssertionError):
        await tunnel.start_connector([])  # which waits until one is connected
    assert "its certificate is not trusted: Hostname mismatch" in caplog.text


def test_the_vendors_token_leads_to_the_vendors_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Token("0123456789abcdef", Token.parse(OURS).tunnel_id, b"secret")
    for name in ("LOCKGATE_TUNNEL_TOKEN", "CLOUDFLARE_TUNNEL_TOKEN", "TUNNEL_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "lockgate.toml").write_text("")
    config = lockgate_toml.load(tmp_path / "lockgate.toml", {})
    made = app.connector(config, theirs.encode())
    assert made._edges == app.VENDORS_EDGES  # type: ignore[attr-defined]
    assert made.server_name == "h2.cftunnel.com"  # type: ignore[attr-defined]
    elsewhere = dataclasses.replace(config.connector, edges=("edge.example:7844",))
    made = app.connector(dataclasses.replace(config, connector=elsewhere), theirs.encode())
    assert made._edges == ("edge.example:7844",)  # type: ignore[attr-defined]
    assert made.server_name == ""  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="nobody says where the edge is"):
        app.connector(config, OURS)


OURS = Token.parse(
    "eyJhIjoibG9ja2dhdGUiLCJ0IjoiZTk1MWU1ZjYtYmE1NS00NzZhLWI2ZGItODg1ZDkyNjg5ZDhkIiwicyI6IkFBQUEifQ=="
).encode()
