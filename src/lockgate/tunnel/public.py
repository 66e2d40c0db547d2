"""The edge's public side: HTTPS and WebSocket by host name, MQTT over TLS by SNI or by user."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import secrets
import ssl
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import h11

from lockgate.transport.websocket import SUBPROTOCOLS, WebSocket
from lockgate.transport.websocket_client import WebSocketLayer
from lockgate.tunnel.audit import AuditLog, Visit
from lockgate.tunnel.device_policy import DevicePolicy, Peer
from lockgate.tunnel.edge import Answering, Hub, NoConnector, Opened
from lockgate.tunnel.framed import UP_FRAME_BYTES, WEBSOCKET_MAGIC, Framed
from lockgate.tunnel.h2_session import HeadersTooLarge, StreamProtocol
from lockgate.tunnel.headers import UPGRADE, HeaderError, end_to_end
from lockgate.tunnel.http1 import Http1
from lockgate.tunnel.http2 import Headers
from lockgate.tunnel.logins import Logins
from lockgate.tunnel.mqtt_door import Device, FramedDevice, FramedOrigin, Route, to_target, websocket_route
from lockgate.tunnel.paced import Pace, PacedEnd
from lockgate.tunnel.policy import Request
from lockgate.tunnel.relay import End
from lockgate.tunnel.responses import Response
from lockgate.tunnel.tunnels import Tunnel

log = logging.getLogger(__name__)

T = TypeVar("T")

_HEAD_SECONDS: Final = 15.0  # for the head of a request
_IDLE_SECONDS: Final = 75.0  # between requests
STALL_SECONDS = 60.0  # in the middle of a request or a response
RESPONSE_SECONDS = 100.0  # for an origin to answer what it was asked
LINGER_SECONDS = 30.0  # for the rest of a request that is answered, and
LINGER_SILENCE_SECONDS = 5.0  # until more of it comes: as nginx does
_OPEN_SECONDS: Final = 20.0  # for an origin to agree to a WebSocket or a raw stream
_NOT_PASSED_ON: Final = (b"CONNECT", b"TRACE")
# What only the edge may say
_OURS: Final = (b"cf-cloudflared-", b"cf-connecting-ip", b"cf-ray", b"x-forwarded-for", b"x-forwarded-proto",
                b"x-real-ip", b"forwarded", b"lockgate-conduit", b"lockgate-received", b"cf-warp-tag-")  # fmt: skip


@dataclass
class PublicCounts:
    """Since the edge started."""

    connections: int = 0
    open: int = 0
    refused: int = 0
    requests: int = 0


class VisitorGone(Exception):
    """Whoever asked has left."""


class Public:
    """What all public listeners share."""

    def __init__(self, hub: Hub, most_connections: int, audit: AuditLog) -> None:
        self.hub = hub
        self.audit = audit
        self.counts = PublicCounts()
        self._most_connections = most_connections
        self._tasks: set[asyncio.Task[None]] = set()
        self.logins = Logins()
        self._paces: dict[str, tuple[Pace, Pace]] = {}

    def accept_https(self) -> Http1:
        """A protocol for a connection of the HTTPS port."""
        return _Visitor(self)

    def accept_mqtts(self) -> StreamProtocol:
        """A protocol for a connection of the MQTTS port."""
        return _Doorman(self)

    def admit(self) -> bool:
        """Count a connection; whether there is room for it."""
        self.counts.connections += 1
        if self.counts.open >= self._most_connections:
            self.counts.refused += 1
            return False
        self.counts.open += 1
        return True

    def leave(self) -> None:
        self.counts.open -= 1

    def paces(self, tunnel: Tunnel) -> tuple[Pace, Pace]:
        """Towards the tunnel's origins, and back."""
        rate = tunnel.limits.bytes_per_second
        known = self._paces.get(str(tunnel.id))
        if known is None or known[0].rate != rate:
            known = self._paces[str(tunnel.id)] = (Pace(rate), Pace(rate))
        return known

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """End what is being asked or answered."""
        self.logins.close()
        for task in list(self._tasks):
            task.cancel()

    def join(self, device: End, end: End, opened: Opened, *, frames: bool = False) -> None:
        """Carry bytes between a device and the stream that was opened for it; `end` is to sit on the stream."""
        opened.begin(end)
        if frames:
            assert end.transport is not None
            end.attach(Framed(end.transport, WebSocketLayer.accepted(), UP_FRAME_BYTES))
        device.join(end)

    def record(self, device: End, end: End, visit: Visit) -> None:
        """Have the audit log told how it ends and how much there was."""
        leave = device.gone

        def gone() -> None:
            visit.up, visit.down = device.bytes_in, end.bytes_in
            self.audit.end(visit, device.how)
            if leave is not None:
                leave()

        device.gone = gone


class _Doorman(StreamProtocol):
    """A connection of the MQTTS port, until it is known who serves it."""

    def __init__(self, public: Public) -> None:
        self._public = public

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        public, sock = self._public, cast("asyncio.Transport", transport)
        if not public.admit():
            sock.abort()
            return
        tls = sock.get_extra_info("ssl_object")
        name = server_name(tls)
        address = peer_name(sock)
        found = public.hub.tunnels.mqtts(name) if name else None
        if found is None and not public.hub.tunnels.by_user:
            log.info("A device at %s asks for %r, which leads to no tunnel", address, name)
            public.leave()
            sock.abort()
            return

        def route(username: str | None) -> Route | None:
            by_user = public.hub.tunnels.user(username or "")
            chosen = found or by_user
            return to_target(*chosen, name, address) if chosen is not None else None

        policy = found[1].devices if found is not None else None
        device = Device(public, Peer.of(address, tls.getpeercert() if tls is not None else None), policy, route)
        device.gone = public.leave
        device.attach(sock)


class _Visitor(Http1):
    """One connection of the HTTPS port."""

    def __init__(self, public: Public) -> None:
        super().__init__(client=False)
        self._public = public
        self._hub = public.hub
        self._address = ""
        self._admitted = False
        self._task: asyncio.Task[None] | None = None
        self._body_bytes = 0  # of the request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        self._admitted = self._public.admit()
        if not self._admitted:
            cast("asyncio.Transport", transport).abort()
            return
        self._task = self._public.spawn(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._admitted:
            self._admitted = False
            self._public.leave()

    async def _serve(self) -> None:
        transport = cast("asyncio.Transport", self.transport)
        upgraded = False
        try:
            wait = _HEAD_SECONDS
            while True:
                async with asyncio.timeout(wait):
                    request = await self.event()
                if not isinstance(request, h11.Request):
                    return
                upgraded = await self._answer(request)
                if upgraded:
                    return
                await self._linger()
                if not self._may_go_on():
                    return
                self.h11.start_next_cycle()
                wait = _IDLE_SECONDS
        except h11.RemoteProtocolError as error:
            log.info("%s sends no HTTP: %s", self._address, error)
            with contextlib.suppress(Exception):
                await self._say(error.error_status_hint, "this is no HTTP request")
        except (ConnectionError, TimeoutError, VisitorGone, h11.LocalProtocolError) as error:
            log.debug("A connection of %s ends: %s", self._address, error)
            if self.h11.our_state is h11.SEND_BODY:
                transport.abort()  # an orderly end would look like that of the response
        except Exception:
            log.exception("A request of %s failed", self._address)
        finally:
            if not upgraded:
                transport.close()

    def _may_go_on(self) -> bool:
        return self.h11.our_state is h11.DONE and self.h11.their_state is h11.DONE and not self.is_gone

    async def _linger(self) -> None:
        """Read what still comes of a request that is answered: closing on it could lose the answer (RFC 9112 §9.6)."""
        with contextlib.suppress(TimeoutError, ConnectionError, h11.RemoteProtocolError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self.h11.their_state is h11.SEND_BODY:
                    async with asyncio.timeout(LINGER_SILENCE_SECONDS):
                        await self.event()

    async def _answer(self, request: h11.Request) -> bool:
        """Answer one request; whether the connection is a WebSocket now."""
        self._public.counts.requests += 1
        fields = [(name.lower(), value) for name, value in request.headers.raw_items()]
        said = dict(fields)
        name = said.get(b"host", b"").decode("latin-1")
        found = self._hub.tunnels.host(name)
        if found is None:
            await self._say(404, "no tunnel serves this host name")
            return False
        tunnel, host = found
        asked = Request(
            request.target.decode("latin-1"),
            self._address,
            {key.decode("latin-1"): value.decode("latin-1") for key, value in fields},
        )
        decision = host.access.decide(asked, time.time())
        if not decision.allowed:
            log.info("%s is refused at %s: %s", self._address, host.name, decision.reason)
            self._public.audit.refused(
                decision.reason, **{"from": self._address, "tunnel": tunnel.name, "host": name, "kind": "http"}
            )
            await self._say(decision.status, "this needs credentials" if decision.status == 401 else "not allowed")
            return False
        websocket = b"websocket" in said.get(b"upgrade", b"").lower() and request.method == b"GET"
        kept = [
            (key, value)
            for key, value in end_to_end(fields)
            if key != b"host" and not key.startswith(_OURS) and key.decode("latin-1") not in decision.secrets
        ]
        headers: Headers = [
            (b":method", request.method), (b":scheme", b"https"), (b":authority", name.encode("latin-1")),
            (b":path", request.target), *kept,
            (b"x-forwarded-for", self._address.encode()), (b"x-forwarded-proto", b"https"),
            (b"cf-connecting-ip", self._address.encode()), (b"cf-ray", secrets.token_hex(8).encode()),
        ]  # fmt: skip
        if request.method in _NOT_PASSED_ON:
            await self._say(405, "this method is not passed on")
            return False
        if not request.target.startswith(b"/"):
            await self._say(400, "the target of a request begins with /")
            return False
        try:
            if websocket and host.devices is not None:
                target = request.target.decode("latin-1")
                return await self._mqtt(tunnel, fields, target, host.devices)
            if websocket:
                return await self._websocket(tunnel, headers, name, decision.identity)
            before = self.bytes_out
            await self._http(tunnel, headers, said)
            self._public.audit.write(
                "request",
                **{"who": decision.identity, "from": self._address, "tunnel": tunnel.name, "host": name},
                method=request.method.decode("latin-1"),
                up=self._body_bytes,
                down=self.bytes_out - before,
            )
        except NoConnector as error:
            log.info("Tunnel %s: %s", tunnel.name, error)
            await self._say(503, str(error))
        except HeadersTooLarge as error:
            log.info("Tunnel %s: %s", tunnel.name, error)
            await self._say(431, "the header fields are too large")
        except HeaderError as error:
            log.warning("Tunnel %s: a connector answers with no response: %s", tunnel.name, error)
            await self._say(502, "the connector answered with no response")
        return False

    async def _websocket(self, tunnel: Tunnel, headers: Headers, host: str, who: str) -> bool:
        headers = [*headers, (UPGRADE, b"websocket")]
        if not await self._has_no_body():
            return False
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                opened = await self._while_here(self._hub.open(tunnel, headers))
        except TimeoutError:
            await self._say(504, "the origin does not answer")
            return False
        except HeadersTooLarge:
            raise
        except ConnectionError as error:
            await self._say(502, str(error))
            return False
        try:
            return await self._upgrade(tunnel, opened, host, who)
        except BaseException:
            opened.refuse()
            raise

    async def _has_no_body(self) -> bool:
        if isinstance(await self._next(), h11.EndOfMessage):
            return True
        await self._say(400, "a request for a WebSocket has no body")
        return False

    async def _upgrade(self, tunnel: Tunnel, opened: Opened, host: str, who: str) -> bool:
        """Be a WebSocket, if the origin agreed to it."""
        response = opened.response
        if not response.switches:
            opened.stream.resume_reading()
            await self._give(response, opened.flow)
            return False
        fields = [one for one in end_to_end(response.fields) if one[0] != b"content-length"]
        fields += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
        await self.send(_head(h11.InformationalResponse, 101, fields))
        if self.is_gone:
            raise VisitorGone(self._address)
        rest = self.take_over()
        device, end = self._ends(tunnel, opened)
        device.gone = self._public.leave
        self._admitted = False
        device.attach(cast("asyncio.Transport", self.transport))
        if rest:
            device.data_received(rest)
        visit = self._public.audit.begin(
            who=who, address=peer_name(device.transport), tunnel=tunnel.name, host=host, kind="websocket"
        )
        self._public.record(device, end, visit)
        self._public.join(device, end, opened)
        return True

    def _ends(self, tunnel: Tunnel, opened: Opened) -> tuple[PacedEnd, PacedEnd]:
        """Both ends of a WebSocket that is passed on; its MQTT is followed where that is of use in a gap."""
        pace, back = self._public.paces(tunnel)
        said = dict(opened.response.fields)
        protocol, extensions = said.get(b"sec-websocket-protocol", b""), said.get(b"sec-websocket-extensions")
        if not opened.may_ride or extensions or protocol.decode("latin-1") not in SUBPROTOCOLS:
            return PacedEnd(pace), PacedEnd(back)
        device = FramedDevice(pace)
        opened.on_gap = device.on_gap
        return device, FramedOrigin(back, device)

    async def _mqtt(self, tunnel: Tunnel, fields: Headers, target: str, policy: DevicePolicy) -> bool:
        """A WebSocket whose MQTT is looked at: the edge ends it here, and is the client of another one."""
        said = dict(fields)
        key, offered = said.get(b"sec-websocket-key", b""), said.get(b"sec-websocket-protocol", b"").split(b",")
        chosen = next((one for one in SUBPROTOCOLS if one.encode() in (name.strip() for name in offered)), None)
        if not key or said.get(b"sec-websocket-version") != b"13" or chosen is None:
            await self._say(400, "a WebSocket of version 13 with the subprotocol mqtt is wanted")
            return False
        if not await self._has_no_body():
            return False
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_MAGIC).digest())
        answer = [
            (b"connection", b"Upgrade"), (b"upgrade", b"websocket"), (b"sec-websocket-accept", accept),
            (b"sec-websocket-protocol", chosen.encode()),
        ]  # fmt: skip
        await self.send(h11.InformationalResponse(status_code=101, headers=answer))
        if self.is_gone:
            raise VisitorGone(self._address)
        rest = self.take_over()
        transport = cast("asyncio.Transport", self.transport)
        tls = transport.get_extra_info("ssl_object")
        peer = Peer.of(peer_name(transport), tls.getpeercert() if tls is not None else None)
        name = said.get(b"host", b"").decode("latin-1")
        device = Device(
            self._public,
            peer,
            policy,
            lambda _: websocket_route(tunnel, name, target, peer_name(transport), policy),
        )
        device.gone = self._public.leave
        self._admitted = False
        framed = Framed(transport, WebSocket.accepted())
        device.attach(framed)
        if rest:
            framed.data_received(rest)
        if device.transport is not None and device.filter.connect is None:
            framed.resume_reading()
        return True

    async def _http(self, tunnel: Tunnel, headers: Headers, said: dict[bytes, bytes]) -> None:
        has_body = b"transfer-encoding" in said or said.get(b"content-length", b"0") != b"0"
        opened = self._hub.start(tunnel, headers, end_stream=not has_body)
        sending = asyncio.create_task(self._send_body(opened, has_body))
        try:
            response = await self._while_here(self._response(opened, sending))
            await self._give(response, opened.flow)
            if not sending.done():
                opened.refuse()  # the origin has said all it will without hearing the end
        except TimeoutError:
            opened.refuse()
            await self._say(504, "the origin does not answer")
        except ConnectionError as error:
            opened.refuse()
            if self.h11.our_state is h11.IDLE or self.h11.our_state is h11.SEND_RESPONSE:
                await self._say(502, str(error) or "the connection to the origin broke off")
                return
            raise
        except BaseException:
            opened.refuse()
            raise
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _next(self) -> h11.Event | None:
        """The next event of a body; VisitorGone where none comes."""
        try:
            async with asyncio.timeout(STALL_SECONDS):
                return await self.event()
        except TimeoutError:
            raise VisitorGone(f"{self._address} says nothing more") from None

    async def send(self, event: h11.Event) -> None:
        """Say one event, and wait for room; VisitorGone where there is none for long."""
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await super().send(event)
        except TimeoutError:
            raise VisitorGone(f"{self._address} reads nothing") from None

    async def _response(self, opened: Opened, sending: asyncio.Task[None]) -> Response:
        """What is answered; TimeoutError where nothing is, long after the request was said."""
        answering = asyncio.ensure_future(opened.flow.response())
        try:
            await asyncio.wait((answering, sending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not isinstance(problem := sending.exception(), ConnectionError | None):
                raise problem  # a connector that hears no more may have answered; a visitor is to blame for all else
            async with asyncio.timeout(RESPONSE_SECONDS):
                return await answering
        finally:
            answering.cancel()

    async def _send_body(self, opened: Opened, has_body: bool) -> None:
        self._body_bytes = 0
        while isinstance(event := await self._next(), h11.Data):
            self._body_bytes += len(event.data)
            async with asyncio.timeout(STALL_SECONDS):  # a visitor who leaves meanwhile is not noticed
                await opened.flow.write(bytes(event.data))
        if has_body:
            opened.stream.write_eof()

    async def _give(self, response: Response, flow: Answering) -> None:
        """Pass an origin's response on; what the connector says of itself becomes a page of ours."""
        if not response.from_origin:
            log.info("An origin cannot be asked: %s", response.cause or response.status)
            await self._say(response.status, response.cause or "the origin cannot be reached")
            return
        fields = end_to_end(response.fields)
        await self.send(_head(h11.Response, response.status, fields))
        while data := await flow.read():
            await self.send(h11.Data(data=data))
        await self.send(h11.EndOfMessage(headers=end_to_end(flow.trailers)))

    async def _while_here(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for something as long as the visitor is there."""
        task = asyncio.ensure_future(work)
        gone = asyncio.create_task(self.until_gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise VisitorGone(self._address)
            return task.result()
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _say(self, status: int, text: str) -> None:
        """A page of the edge's own; the connection ends with it."""
        body = f"{status} {text}\n".encode("ascii", "replace")
        fields = [("content-type", "text/plain"), ("content-length", str(len(body))), ("connection", "close")]
        if status == 401:
            fields.append(("www-authenticate", "Bearer"))
        if status == 503:
            fields.append(("retry-after", "5"))
        await self.send(h11.Response(status_code=status, headers=fields))
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())


E = TypeVar("E", h11.Response, h11.InformationalResponse)


def _head(kind: type[E], status: int, fields: Headers) -> E:
    """The head of a response; HeaderError where a connector's cannot be one."""
    try:
        return kind(status_code=status, headers=fields)
    except h11.LocalProtocolError as error:
        raise HeaderError(str(error)) from None


def peer_name(transport: asyncio.BaseTransport | None) -> str:
    """Where a peer is, as IP:PORT."""
    peer = transport.get_extra_info("peername") if transport is not None else None
    if not isinstance(peer, tuple):
        return ""
    return f"[{peer[0]}]:{peer[1]}" if ":" in str(peer[0]) else f"{peer[0]}:{peer[1]}"


def server_name(tls: ssl.SSLObject | None) -> str:
    """The name a client asked for in TLS, as `certificates` noted it."""
    return str(getattr(tls, "asked_name", "") or "")
