"""The edge as a service: its ports, its certificates and its file of tunnels."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from lockgate.config.libraries import library
from lockgate.config.model import EdgeConfig, GatewayConfig
from lockgate.tunnel.audit import AuditLog
from lockgate.tunnel.certificates import Certificates, Pair, public_pairs
from lockgate.tunnel.doors import Door
from lockgate.tunnel.edge import Hub
from lockgate.tunnel.public import Public
from lockgate.tunnel.renewals import Renewals
from lockgate.tunnel.services import host_and_port
from lockgate.tunnel.tls_alpn import Proofs
from lockgate.tunnel.tunnels import TunnelsFile

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 5.0  # how often certificates are looked at
_M_MMAP_THRESHOLD: Final = -3  # of mallopt(3)


class Edge:
    """Connectors on one side, devices and people on the other."""

    name = "edge"

    def __init__(self, gateway: GatewayConfig, config: EdgeConfig, clock: Callable[[], float] = time.time) -> None:
        """`clock`: the wall clock certificates are renewed by. Raises ConfigError."""
        self._config = config
        self.hub = Hub(TunnelsFile(config.tunnels_file(gateway)), config.location)
        folder = config.audit_folder(gateway)
        self.audit = AuditLog(folder, file_bytes=config.audit_file_bytes, files=config.audit_files)
        self.public = Public(self.hub, config.max_connections, self.audit)
        proofs = Proofs()
        self._renewals = _renewals(gateway, config, proofs, clock)

        def pairs() -> list[Pair]:
            return public_pairs(config, gateway)

        self._https = Certificates(pairs, client_ca=config.client_ca_file, alpn=("http/1.1",), proofs=proofs)
        self._mqtts = Certificates(pairs, client_ca=config.client_ca_file, alpn=("mqtt", "x-amzn-mqtt-ca"))
        self._tunnel = Certificates(lambda: [config.tunnel_pair(gateway)], client_ca=None, alpn=())
        self._doors: list[Door] = []

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled."""
        _give_large_blocks_back()
        config = self._config
        try:
            await self._listen("connectors", config.listen_tunnel, self.hub.accept, self._tunnel)
            await self._listen("HTTPS", config.listen_https, self.public.accept_https, self._https)
            await self._listen("MQTT over TLS", config.listen_mqtts, self.public.accept_mqtts, self._mqtts)
            if self._renewals is not None:
                self._renewals.start()
            ready()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.hub.keep())
                tasks.create_task(self._keep_certificates())
        finally:
            if self._renewals is not None:
                self._renewals.close()
            for door in self._doors:
                door.close()
            self.public.close()
            await self.hub.close()
            await asyncio.to_thread(self.audit.close)

    def ports(self) -> list[int]:
        """Where it listens, in the order of `listen_tunnel`, `listen_https`, `listen_mqtts`."""
        return [sock.getsockname()[1] for door in self._doors for sock in door.sockets]

    def status(self) -> dict[str, object]:
        """What `lockgate status` shows."""
        hub, counts = self.hub, self.public.counts
        return {
            "tunnels": {
                tunnel.name: {
                    "connections": len(hub.registry.of(tunnel.id)),
                    "connectors": len({one.client_id for one in hub.registry.of(tunnel.id)}),
                    "streams": hub.registry.streams(tunnel.id),
                }
                for tunnel in hub.tunnels
            },
            "open": counts.open,
            "connections": counts.connections,
            "requests": counts.requests,
            "refused": counts.refused,
            "handshakes": sum(door.handshakes for door in self._doors),
            "handshakes_dropped": sum(door.dropped for door in self._doors),
            "connectors_refused": dict(hub.refused),
            "resumed": hub.resumed,
            "audit_lines_lost": self.audit.lost,
        } | ({"acme": self._renewals.status()} if self._renewals is not None else {})

    def answers(self) -> Mapping[str, Callable[[Mapping[str, object]], Mapping[str, object]]]:
        """What `lockgate edge log` asks."""
        return {"log": self._log}

    def _log(self, question: Mapping[str, object]) -> Mapping[str, object]:
        try:
            after = json.loads(str(question.get("after") or "{}"))
        except ValueError:
            after = {}
        return self.hub.log_lines(str(question.get("tunnel", "")), after, str(question.get("level", "info")))

    async def _listen(
        self,
        what: str,
        addresses: Sequence[str],
        factory: Callable[[], asyncio.BaseProtocol],
        certificates: Certificates,
    ) -> None:
        for address in addresses:
            door = Door(factory, certificates.context, self._config.max_handshakes)
            self._doors.append(door)
            await door.open(*host_and_port(address))
            log.info("Listening for %s at %s", what, address)

    async def _keep_certificates(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for one in (self._https, self._mqtts, self._tunnel):
                await asyncio.to_thread(one.refresh)


def _renewals(
    gateway: GatewayConfig, config: EdgeConfig, proofs: Proofs, clock: Callable[[], float]
) -> Renewals | None:
    """What keeps the certificates of `[edge.acme]`. Raises ConfigError."""
    if config.acme is None:
        return None
    library("acme.client", "acme", "edge.acme")
    from lockgate.tunnel.acme_orders import Orders

    orders = Orders(config.acme, config.acme.folder(gateway), proofs)
    return Renewals(config.acme.files(gateway), orders.certificate, clock=clock)


def _give_large_blocks_back() -> None:
    """Have glibc map each block of 128 KiB and more by itself, whatever was freed before.

    uvloop keeps 256 KiB for each TLS connection and touches 4 of them; from the heap, where glibc takes such blocks
    once one was freed, they are often in memory as a whole (measured: 52 and 38 KiB for each idle session).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 * 1024)
