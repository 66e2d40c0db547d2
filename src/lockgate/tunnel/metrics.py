"""What a connector says of itself over HTTP, under cloudflared's names and paths, so that dashboards go on working."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import h11

from lockgate import __version__
from lockgate.tunnel.figures import REPORT, Calls
from lockgate.tunnel.http1 import Http1
from lockgate.tunnel.services import host_and_port

if TYPE_CHECKING:
    from lockgate.tunnel.connector import Connector

log = logging.getLogger(__name__)

_IDLE_SECONDS: Final = 30.0
_MOST_CONNECTIONS: Final = 16


class FiguresServer:
    """The listener and its connections."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._tasks: set[asyncio.Task[None]] = set()
        self.server: asyncio.Server | None = None

    def accept(self) -> Http1:
        http = Http1(client=False)
        task = asyncio.get_running_loop().create_task(self._serve(http))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return http

    def close(self) -> None:
        """Answer no more."""
        if self.server is not None:
            self.server.close()
        for task in self._tasks:
            task.cancel()

    async def _serve(self, http: Http1) -> None:
        await asyncio.sleep(0)  # until it has its transport
        try:
            with contextlib.suppress(ConnectionError, h11.ProtocolError, TimeoutError):
                while len(self._tasks) <= _MOST_CONNECTIONS:
                    async with asyncio.timeout(_IDLE_SECONDS):
                        if not await self._answer(http):
                            return
        finally:
            if http.transport is not None:
                http.transport.close()

    async def _answer(self, http: Http1) -> bool:
        """Answer one request; say whether another may follow."""
        request = await http.event()
        if not isinstance(request, h11.Request):
            return False
        while not isinstance(await http.event(), h11.EndOfMessage):
            continue
        status, kind, body = self._page(request.method, request.target.partition(b"?")[0])
        fields = [("content-type", kind), ("content-length", str(len(body)))]
        await http.send(h11.Response(status_code=status, headers=fields))
        await http.send(h11.Data(data=body if request.method != b"HEAD" else b""))
        await http.send(h11.EndOfMessage())
        if http.h11.our_state is not h11.DONE or http.h11.their_state is not h11.DONE:
            return False
        http.h11.start_next_cycle()
        return True

    def _page(self, method: bytes, path: bytes) -> tuple[int, str, bytes]:
        connector = self._connector
        if method not in (b"GET", b"HEAD"):
            return 405, "text/plain", b"only GET and HEAD are answered\n"
        if path == b"/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", "\n".join(_metrics(connector)).encode() + b"\n"
        if path == b"/ready":
            ready = connector.ready_connections
            status = 200 if ready else 503
            said = {"status": status, "readyConnections": ready, "connectorId": str(connector.client_id)}
            return status, "application/json", json.dumps(said).encode()
        if path == b"/healthcheck":
            return 200, "text/plain", b"OK\n"
        if path == b"/config":
            current = connector.configurations
            said = {"version": current.version, "config": current.ingress.as_json()}
            return 200, "application/json", json.dumps(said).encode()
        if path == b"/diag/tunnel":
            connections = [
                {
                    "isConnected": slot.registered is not None,
                    "protocol": "http2",
                    "edgeAddress": slot.address,
                    "index": slot.index,
                }
                for slot in connector.slots
            ]
            said = {
                "tunnelID": str(connector.token.tunnel_id),
                "connectorID": str(connector.client_id),
                "connections": connections,
            }
            return 200, "application/json", json.dumps(said).encode()
        known = b"/metrics, /ready, /healthcheck, /config and /diag/tunnel are answered\n"
        return 404, "text/plain", known


async def serve_figures(connector: Connector, address: str) -> FiguresServer:
    """Listen at `HOST:PORT`; OSError with the address in its text where that cannot be."""
    server = FiguresServer(connector)
    host, port = host_and_port(address)
    loop = asyncio.get_running_loop()
    server.server = await loop.create_server(server.accept, host or None, port)
    log.info("Figures are at http://%s/metrics", address)
    return server


def _metrics(connector: Connector) -> Iterator[str]:
    counts = connector.streams.counts
    yield "# TYPE build_info gauge"
    yield f'build_info{{goversion="",type="lockgate",revision="",version="{__version__}"}} 1'
    name = "cloudflared_tunnel_"
    yield from _one(f"{name}ha_connections", "gauge", connector.ready_connections)
    yield from _one(f"{name}total_requests", "counter", counts.requests)
    yield from _one(f"{name}concurrent_requests_per_tunnel", "gauge", counts.open)
    yield from _one(f"{name}request_errors", "counter", counts.errors)
    yield f"# TYPE {name}response_by_code counter"
    for status, times in sorted(counts.statuses.items()):
        yield f'{name}response_by_code{{status_code="{status}"}} {times}'
    yield f"# TYPE {name}server_locations gauge"
    for slot in connector.slots:
        if slot.registered is not None:
            labels = f'connection_id="{slot.index}",edge_location="{_escaped(slot.registered.location)}"'
            yield f"{name}server_locations{{{labels}}} 1"
    yield f"# TYPE {name}tunnel_register_success counter"
    yield f'{name}tunnel_register_success{{rpcName="registerConnection"}} {connector.register_success}'
    yield f"# TYPE {name}tunnel_register_fail counter"
    for error, times in sorted(connector.register_fail.items()):
        labels = f'error="{_escaped(error)}",rpcName="registerConnection"'
        yield f"{name}tunnel_register_fail{{{labels}}} {times}"
    yield f"# TYPE {name}user_hostnames_counts counter"
    for host, times in sorted(counts.hosts.items()):
        yield f'{name}user_hostnames_counts{{userHostname="{_escaped(host)}"}} {times}'
    yield from _one("cloudflared_tcp_active_sessions", "gauge", counts.tcp_open)
    yield from _one("cloudflared_tcp_total_sessions", "counter", counts.tcp_sessions)
    yield "# TYPE cloudflared_proxy_connect_latency histogram"
    yield from counts.connects.latency.lines("cloudflared_proxy_connect_latency")
    yield from _one("cloudflared_proxy_connect_streams_errors", "counter", counts.connects.errors)
    yield from _calls(connector.calls)
    yield from _one("cloudflared_orchestration_config_version", "gauge", connector.configurations.version)
    yield from _one("lockgate_tunnel_streams_resumed", "counter", counts.resumed)


def _calls(calls: Calls) -> Iterator[str]:
    name = "cloudflared_rpc_client_"
    for kind, times in (("operations", calls.operations), ("failures", calls.failures)):
        yield f"# TYPE {name}{kind} counter"
        for method, count in times.items():
            yield f'{name}{kind}{{handler="registration",method="{method}"}} {count}'
    yield f"# TYPE {name}latency_secs histogram"
    for method, latency in calls.latency.items():
        yield from latency.lines(f"{name}latency_secs", f'handler="registration",method="{method}"')
    pushes, errors = calls.operations.get(REPORT, 0), calls.failures.get(REPORT, 0)
    yield from _one("cloudflared_config_local_config_pushes", "counter", pushes)
    yield from _one("cloudflared_config_local_config_pushes_errors", "counter", errors)


def _one(name: str, kind: str, value: int) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    yield f"{name} {value}"


def _escaped(value: str) -> str:
    """A label's value (Prometheus text format)."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
