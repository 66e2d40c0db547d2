"""The connector's other side: how the services of ingress rules are reached, asked and heard."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import socket
import ssl
from asyncio.staggered import staggered_race
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import h11

from lockgate.files import Stamp, stamp_if_there
from lockgate.tunnel.http1 import Http1
from lockgate.tunnel.http2 import Headers
from lockgate.tunnel.ingress import OriginRequest, Rule, host_without_port

P = TypeVar("P", bound=asyncio.Protocol)

_HEAD_START_SECONDS: Final = 0.25  # of an address before the next one is tried (RFC 8305 §8)


class OriginError(Exception):
    """The origin cannot be reached, or does not speak as its rule says."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an HTTP origin. `fields` are end to end, names in lower case, without Host."""

    method: bytes
    target: bytes
    host: bytes
    fields: Headers


async def connected(host: str, port: int, *, race: bool) -> socket.socket:
    """A socket at one of the addresses of a name; OSError where there is none.

    They are tried one after the other; with `race` each has a head start only (Happy Eyeballs, RFC 8305 §5).
    """
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await first_connected([(family, address) for family, *_, address in addresses], race=race)


async def first_connected(addresses: Sequence[tuple[int, Any]], *, race: bool) -> socket.socket:
    """As `connected`, of these families and addresses."""
    tries = [functools.partial(_connected, family, address) for family, address in interleaved(addresses)]
    sock: socket.socket | None
    sock, _, problems = await staggered_race(tries, _HEAD_START_SECONDS if race else None)
    if sock is None:
        raise next(problem for problem in reversed(problems) if problem is not None)
    return sock


async def _connected(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def interleaved(addresses: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """The families by turns, the first one first (RFC 8305 §4)."""
    by_family: dict[int, list[tuple[int, Any]]] = defaultdict(list)
    for one in addresses:
        by_family[one[0]].append(one)
    turns = itertools.zip_longest(*by_family.values())
    return [one for turn in turns for one in turn if one is not None]


async def dial_tcp(
    host: str, port: int, factory: Callable[[], P], seconds: float, keep_alive: float = 30.0, *, race: bool = True
) -> P:
    """A plain connection; OriginError with the cause where there is none in time."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            sock = await connected(host, port, race=race)
            transport, protocol = await loop.create_connection(factory, sock=sock)
    except TimeoutError:
        raise OriginError(f"{host}:{port} does not answer within {seconds:g} s") from None
    except OSError as error:
        raise OriginError(f"{host}:{port}: {_cause(error)}") from None
    _keep_alive(transport, keep_alive)
    return protocol


async def dial_service(rule: Rule, host: str, factory: Callable[[], P]) -> P:
    """A connection to the service of a rule, with TLS where it asks for it; `host` is the request's."""
    service, request = rule.service, rule.request
    context, name = _tls(request, service.host, host) if service.tls else (None, None)
    seconds = request.connect_timeout + (request.tls_timeout if service.tls else 0)
    race = not request.no_happy_eyeballs
    if not service.path and not service.tls:
        return await dial_tcp(service.host, service.port, factory, seconds, request.tcp_keep_alive, race=race)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            if service.path:
                _, protocol = await loop.create_unix_connection(
                    factory, service.path, ssl=context, server_hostname=name if context else None
                )
                return protocol
            sock = await connected(service.host, service.port, race=race)
            transport, protocol = await loop.create_connection(factory, sock=sock, ssl=context, server_hostname=name)
    except TimeoutError:
        raise OriginError(f"{service.text} does not answer within {seconds:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise OriginError(f"{service.text}: its certificate is not trusted: {error.verify_message}") from None
    except OSError as error:
        raise OriginError(f"{service.text}: {_cause(error)}") from None
    _keep_alive(transport, request.tcp_keep_alive)
    return protocol


def _cause(error: OSError) -> str:
    """The system's word: asyncio's own repeats the address. The number of a TLS error is none of the system's."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)


@functools.lru_cache(maxsize=32)
def _context(ca_pool: str, no_tls_verify: bool, _: tuple[Stamp | None, ...]) -> ssl.SSLContext:
    """What is trusted, read anew when its files have changed: reading the system's takes longer than a handshake."""
    context = ssl.create_default_context(cafile=ca_pool or None)
    if no_tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _tls(request: OriginRequest, service_host: str, host: str) -> tuple[ssl.SSLContext, str]:
    paths = ssl.get_default_verify_paths()
    trusted = [request.ca_pool] if request.ca_pool else [paths.openssl_cafile, paths.openssl_capath]
    stamps = tuple(stamp_if_there(Path(path)) for path in trusted)
    try:
        context = _context(request.ca_pool, request.no_tls_verify, stamps)
    except OSError as error:
        raise OriginError(f"caPool {request.ca_pool!r}: {error.strerror or error}") from None
    name = host_without_port(host) if request.match_sni_to_host else request.origin_server_name or service_host
    return context, name or "localhost"


def _keep_alive(transport: asyncio.BaseTransport, seconds: float) -> None:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if seconds >= 1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, round(seconds))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, round(seconds))


class Origins:
    """Connections of HTTP origins, kept for the next request as their rules say."""

    def __init__(self) -> None:
        self._idle: dict[tuple[object, ...], list[tuple[Http1, asyncio.TimerHandle]]] = defaultdict(list)

    @contextlib.asynccontextmanager
    async def connection(self, rule: Rule, host: str, *, fresh: bool = False) -> AsyncIterator[Http1]:
        """One for a request and its response; kept afterwards when both are whole. `fresh`: none that was kept."""
        key = (rule.service, rule.request, host if rule.service.tls and rule.request.match_sni_to_host else "")
        kept = None if fresh else self._kept(key)
        http = kept or await dial_service(rule, host, lambda: Http1(client=True))
        whole = False
        try:
            yield http
            whole = http.h11.our_state is h11.DONE and http.h11.their_state is h11.DONE and http.is_idle
        finally:
            transport = cast("asyncio.Transport", http.transport)
            if not whole or len(self._idle[key]) >= rule.request.keep_alive_connections:
                transport.close()
            else:
                http.keep()
                loop = asyncio.get_running_loop()
                timer = loop.call_later(rule.request.keep_alive_timeout, transport.close)
                self._idle[key].append((http, timer))

    async def upgrade(self, rule: Rule, request: Request) -> tuple[Http1, h11.Response | h11.InformationalResponse]:
        """Ask for a WebSocket: the connection and the origin's answer, status 101 if it agrees."""
        http = await dial_service(rule, request.host.decode("latin-1"), lambda: Http1(client=True))
        fields = [field for field in request.fields if field[0] != b"content-length"]
        fields += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
        if not any(name == b"sec-websocket-version" for name, _ in fields):
            fields.append((b"sec-websocket-version", b"13"))
        try:
            await http.send(_head(rule, Request(request.method, request.target, request.host, fields)))
            await http.send(h11.EndOfMessage())
            async with asyncio.timeout(rule.request.connect_timeout + rule.request.tls_timeout):
                while True:
                    event = await http.event()
                    if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                        continue
                    if isinstance(event, h11.Response | h11.InformationalResponse):
                        return http, event
                    raise OriginError(f"{rule.service.text} answers a WebSocket request with no response")
        except (h11.ProtocolError, ConnectionError, TimeoutError) as error:
            cast("asyncio.Transport", http.transport).close()
            raise OriginError(f"{rule.service.text}: {error or 'no answer in time'}") from None
        except BaseException:
            cast("asyncio.Transport", http.transport).close()
            raise

    def close(self) -> None:
        """Close what is kept."""
        for kept in self._idle.values():
            for http, timer in kept:
                timer.cancel()
                cast("asyncio.Transport", http.transport).close()
        self._idle.clear()

    def _kept(self, key: tuple[object, ...]) -> Http1 | None:
        kept = self._idle[key]
        while kept:
            http, timer = kept.pop()
            timer.cancel()
            if http.is_idle:
                return http
            cast("asyncio.Transport", http.transport).close()
        del self._idle[key]
        return None


def request_head(rule: Rule, request: Request, *, has_body: bool) -> h11.Request:
    """The head of a plain request; a body of unknown length is sent in chunks."""
    fields = list(request.fields)
    if has_body and not any(name == b"content-length" for name, _ in fields):
        fields.append((b"transfer-encoding", b"chunked"))
    return _head(rule, Request(request.method, request.target, request.host, fields))


def _head(rule: Rule, request: Request) -> h11.Request:
    host, fields = request.host, request.fields
    if rule.request.http_host_header:
        fields = [*fields, (b"x-forwarded-host", host)]
        host = rule.request.http_host_header.encode()
    return h11.Request(method=request.method, target=request.target, headers=[(b"host", host), *fields])
