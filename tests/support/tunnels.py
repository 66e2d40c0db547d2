"""An edge and a connector in this process, each with its own task, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lockgate.config.model import ConnectorConfig, EdgeConfig, GatewayConfig
from lockgate.tunnel import tunnel_edits
from lockgate.tunnel.connector import Connector, trust
from lockgate.tunnel.edge_service import Edge
from lockgate.tunnel.ingress import Ingress
from lockgate.tunnel.ingress_files import from_json
from lockgate.tunnel.token import Token
from tests.support.certificates import Authority
from tests.support.peers import free_port

NAMES = ("localhost", "127.0.0.1", "home.example.org", "*.wild.example.org")


@dataclass
class Running:
    """A service and its task."""

    service: Any
    task: asyncio.Task[None]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class Bench:
    """What a test of the tunnel needs. `edge` and `connector` come with `start_edge` and `start_connector`."""

    folder: Path
    authority: Authority
    gateway: GatewayConfig
    tunnel_port: int
    https_port: int
    mqtts_port: int
    token: Token
    running: list[Running] = field(default_factory=list)

    @property
    def tunnels_file(self) -> Path:
        return self.gateway.data_dir / "edge" / "tunnels.json"

    def edit(self) -> contextlib.AbstractContextManager[Any]:
        """Change the file of tunnels."""
        return tunnel_edits.editing(self.tunnels_file)

    def context(self) -> ssl.SSLContext:
        """How clients of the public side trust it."""
        return ssl.create_default_context(cafile=self.authority.cafile)

    async def start_edge(self, clock: Callable[[], float] = time.time, **settings: Any) -> Edge:
        config = EdgeConfig(
            listen_tunnel=(f"127.0.0.1:{self.tunnel_port}",),
            listen_https=(f"127.0.0.1:{self.https_port}",),
            listen_mqtts=(f"127.0.0.1:{self.mqtts_port}",),
            **settings,
        )
        edge = Edge(self.gateway, config, clock)
        await self._start(edge)
        return edge

    async def start_connector(self, rules: Sequence[Mapping[str, Any]], **settings: Any) -> Connector:
        usual: dict[str, Any] = {"connections": 2, "metrics": f"127.0.0.1:{free_port()}", "grace_seconds": 5.0}
        config = ConnectorConfig(**(usual | settings))
        connector = Connector(config, self.token, ingress(rules), trust("", self.authority.cafile))
        await self._start(connector)
        return connector

    async def _start(self, service: Any) -> None:
        ready = asyncio.Event()
        task = asyncio.create_task(service.run(ready.set))
        self.running.append(Running(service, task))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED, timeout=15)
        waiting.cancel()
        if task.done():
            task.result()
        assert ready.is_set()

    async def stop(self, service: Any) -> None:
        """End a service as SIGTERM does."""
        one = next(one for one in self.running if one.service is service)
        self.running.remove(one)
        await one.stop()


def ingress(rules: Sequence[Mapping[str, Any]]) -> Ingress:
    return from_json({"ingress": [*rules, {"service": "http_status:404"}]})


@contextlib.asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    """A tunnel `home` for home.example.org and *.wild.example.org, its edge not yet started."""
    authority = Authority(folder)
    gateway = GatewayConfig(id="edge", data_dir=folder / "data")
    certificates = folder / "data" / "edge" / "certificates"
    certificates.mkdir(parents=True)
    for source, target in zip(authority.issue("public", *NAMES), ("public.pem", "public.key"), strict=True):
        source.rename(certificates / target)
    names = ("h2.cftunnel.com", "localhost", "127.0.0.1")
    for source, target in zip(authority.issue("tunnel-edge", *names), ("tunnel.pem", "tunnel.key"), strict=True):
        source.rename(folder / "data" / "edge" / target)
    ports = [free_port() for _ in range(3)]
    file = folder / "data" / "edge" / "tunnels.json"
    with tunnel_edits.editing(file) as said:
        token = tunnel_edits.create(said, "home", time.time())
        tunnel_edits.route(said, "home", "hosts", "home.example.org", {})
        tunnel_edits.route(said, "home", "hosts", "*.wild.example.org", {})
    token = replace(token, edges=(f"localhost:{ports[0]}",))
    one = Bench(folder, authority, gateway, ports[0], ports[1], ports[2], token)
    try:
        yield one
    finally:
        for running in reversed(one.running):
            await running.stop()
