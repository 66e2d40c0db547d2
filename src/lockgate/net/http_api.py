"""Listeners with `protocol http_api`: figures and files over HTTP, for whom the rules let read them (Mosquitto 2.1)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web

from lockgate.config.model import ListenerConfig
from lockgate.net.listener import Listener, ListenerSettings, bind, bind_unix
from lockgate.net.logins import Logins

if TYPE_CHECKING:
    from lockgate.net.service import BrokerService

log = logging.getLogger(__name__)

_CLIENT_ID: Final = "http-api"  # as the rules know who asks, Mosquitto's
_HEADERS: Final = {"Access-Control-Allow-Origin": "*"}
_STOP_SECONDS: Final = 1.0
_MOST_LOGINS: Final = 8  # whose passwords are looked at or wait for that; MQTT's clients have the same thread


class HttpApi(Listener):
    """One such listener. It answers GET and nothing else."""

    def __init__(self, settings: ListenerSettings, service: BrokerService) -> None:
        self._runner: web.ServerRunner | None = None
        self._context: ssl.SSLContext | None = None
        self._logins = 0
        super().__init__(settings, service)

    def use(self, settings: ListenerSettings) -> None:
        """Go on with other settings; those of TLS, files that are others now too, count for the connections to come."""
        super().use(settings)
        before, self._context = self._context, settings.tls.context if settings.tls is not None else None
        if self._runner is not None and (before is not None or self._context is not None):
            self.broker.spawn(self._serve())

    async def open(self) -> None:
        """Begin to answer; raises PortInUse, or OSError with the address in its text."""
        if self.config.path is not None:
            self._bound = [bind_unix(self.config.path)]
            self._inode = os.stat(self.config.path).st_ino
        else:
            self._bound = bind(self.config)
            log.info("Opening http_api listen socket on port %d.", self.port)
        await self._serve()

    async def _serve(self) -> None:
        """Answer in the present way alone: connections of another are ended."""
        runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=_STOP_SECONDS)
        await runner.setup()
        for sock in self._bound:
            await web.SockSite(runner, sock.dup(), ssl_context=self._context).start()
        before, self._runner = self._runner, runner
        if before is not None:
            await before.cleanup()
        if self.is_closed:
            await runner.cleanup()

    @property
    def is_open(self) -> bool:
        """Whether it answers."""
        return self._runner is not None

    async def rest(self) -> None:
        """Answer nobody until `open`."""
        for sock in self._bound:
            sock.close()
        self._bound.clear()
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = None

    def close(self) -> None:
        """Answer nobody any more."""
        super().close()
        for sock in self._bound:
            sock.close()
        if self._runner is not None:
            self.broker.spawn(self._runner.cleanup())

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "GET":
            return web.Response(status=405, headers=_HEADERS | {"Allow": "GET"})
        if self._logins >= _MOST_LOGINS:
            return web.Response(status=503, text="Busy\n", headers=_HEADERS | {"Retry-After": "1"})
        if not await self._may_read(request):
            headers = _HEADERS | {"WWW-Authenticate": 'Basic realm="broker"'}
            return web.Response(status=401, text="Not authorised\n", headers=headers)
        match request.path:
            case "/api/v1/version":
                return web.Response(text=self.broker.version, headers=_HEADERS)
            case "/api/v1/systree":
                return web.json_response(self.broker.figures.tree(self.broker.version), headers=_HEADERS)
            case "/api/v1/listeners":
                described = [_described(one, self.broker) for one in self.broker.listener_configs()]
                return web.json_response({"listeners": described}, headers=_HEADERS)
            case "/metrics":
                return web.Response(text=self.broker.figures.prometheus(), headers=_HEADERS)
        return await self._file(request.path)

    async def _may_read(self, request: web.BaseRequest) -> bool:
        """Whether who asks may read the path as if it were a topic."""
        username, password = _login(request.headers.get("Authorization", ""))
        authority = self.limits.authority
        if not isinstance(authority, Logins):
            return self.limits.allow_anonymous
        rules = authority.rules
        self._logins += 1
        try:
            permitted = await self.broker.hashing.run(lambda: rules.login(_CLIENT_ID, username, password))
        finally:
            self._logins -= 1
        return permitted and rules.may_receive(_CLIENT_ID, username, request.path)

    async def _file(self, path: str) -> web.StreamResponse:
        folder = self.config.http_dir
        if folder is None:
            return web.Response(status=404, text="Not found\n", headers=_HEADERS)
        file = await asyncio.to_thread(_find, folder, path)
        if file is None:
            return web.Response(status=404, text="Not found\n", headers=_HEADERS)
        return web.FileResponse(file, headers=_HEADERS)


def _find(folder: Path, path: str) -> Path | None:
    """Give the file of a URL's path below a folder, None where there is none, or where it lies elsewhere."""
    if any(level in (".", "..") for level in path.split("/")):  # the rules were asked about the path as it stands
        return None
    folder = folder.resolve()
    try:
        file = (folder / path.lstrip("/")).resolve()
        if file.is_dir():
            file /= "index.html"
        return file if file.is_relative_to(folder) and file.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _login(header: str) -> tuple[str | None, bytes | None]:
    """Give user name and password of an Authorization header (RFC 7617), None where there are none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None, None
    try:
        username, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return "", b""  # nobody's
    return (username, password.encode()) if colon else ("", b"")


def _described(config: ListenerConfig, service: BrokerService) -> dict[str, object]:
    found: dict[str, object] = {"port": config.port} if config.path is None else {"path": str(config.path)}
    found["protocol"] = "httpapi" if config.http_api else "websockets" if config.websockets else "mqtt"
    found["tls"] = config.tls is not None
    found["mtls"] = config.tls is not None and config.tls.require_certificate
    found["allow_anonymous"] = service.lets_anonymous_in(config)
    return found
