"""cloudflared's words mean what they mean there."""

from __future__ import annotations

import argparse
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate import cli
from lockgate.cli import connector
from tests.support.peers import free_port


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """What the connector is started with."""
    for name in ("TOKEN_FILE", "EDGE", "CACERT", "METRICS", "URL", "GRACE_PERIOD", "TRANSPORT_PROTOCOL"):
        monkeypatch.delenv(f"TUNNEL_{name}", raising=False)
    found: list[argparse.Namespace] = []

    def run(arguments: argparse.Namespace) -> int:
        found.append(arguments)
        return 5

    monkeypatch.setattr(connector, "main", run)
    return found


def test_what_is_said_anywhere_in_the_line_reaches_the_connector(ran: list[argparse.Namespace]) -> None:
    words = "--no-autoupdate tunnel --edge a.example:7844 --edge a.example:7844 --cacert ca --protocol http2 run"
    more = "--token T --metrics 127.0.0.1:2000 --grace-period 10s --url ws://127.0.0.1:9001 --config c.yml home"
    assert cli.main(["cloudflared", *words.split(), *more.split()]) == 5
    (said,) = ran
    assert (said.token, said.edge, said.cacert) == ("T", ["a.example:7844"], Path("ca"))
    assert (said.metrics, said.grace_period, said.url) == ("127.0.0.1:2000", "10s", "ws://127.0.0.1:9001")
    assert said.cloudflared_config == Path("c.yml")


def test_variables_stand_for_what_is_not_said(ran: list[argparse.Namespace], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNNEL_EDGE", "a.example:1,b.example:1,a.example:1")
    monkeypatch.setenv("TUNNEL_METRICS", "127.0.0.1:1")
    monkeypatch.setenv("TUNNEL_TOKEN_FILE", "/run/secrets/t")
    assert cli.main(["cloudflared", "tunnel", "--metrics", "127.0.0.1:2", "run"]) == 5
    (said,) = ran
    assert said.edge == ["a.example:1", "b.example:1"]
    assert (said.metrics, said.token_file) == ("127.0.0.1:2", Path("/run/secrets/t"))


def test_what_is_not_offered_is_said(ran: list[argparse.Namespace], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cloudflared", "tunnel", "--protocol", "quic", "run"]) == 3
    assert "--protocol: 'quic' is not spoken here (accepted: http2, h2mux, auto)" in capsys.readouterr().err
    assert cli.main(["cloudflared", "access", "tcp"]) == 2
    assert "only `tunnel run`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["cloudflared", "tunnel", "run", "--hello-world"])
    assert not ran
    assert cli.main(["cloudflared", "tunnel", "--loglevel", "debug", "run"]) == 5
    assert "Warning: --loglevel is passed over" in capsys.readouterr().err
    assert cli.main(["cloudflared", "version"]) == 0


@pytest.fixture(params=[200, 503])
def figures(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/ready" else 404)
            self.end_headers()
            self.wfile.write(b"{}")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", request.param
        server.shutdown()
        thread.join()


def test_ready_asks_the_connector(figures: tuple[str, int]) -> None:
    address, status = figures
    assert cli.main(["cloudflared", "tunnel", "--metrics", address, "ready"]) == (0 if status == 200 else 1)


def test_nobody_there_is_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cloudflared", "tunnel", "--metrics", f"127.0.0.1:{free_port()}", "ready"]) == 1
    assert "refused" in capsys.readouterr().err
