"""What a connector answers to the streams an edge opens: each kind goes to the origin its rule names."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import Awaitable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import h11

from lockgate.transport import proxy_protocol
from lockgate.transport.websocket import WebSocket
from lockgate.tunnel.conduit import CONDUIT, RECEIVED, Conduit, ConduitError
from lockgate.tunnel.figures import Connects
from lockgate.tunnel.framed import WEBSOCKET_MAGIC, Framed
from lockgate.tunnel.guards import Guards
from lockgate.tunnel.h2_session import HeadersTooLarge, Stream, StreamProtocol
from lockgate.tunnel.headers import (
    FROM_CONNECTOR,
    SOURCE,
    UPGRADE,
    Kind,
    end_to_end,
    kind_of,
    response,
)
from lockgate.tunnel.http1 import Flow, Http1
from lockgate.tunnel.http2 import ErrorCode, Headers
from lockgate.tunnel.ingress import Rule
from lockgate.tunnel.management import HOST, Management
from lockgate.tunnel.origins import OriginError, Origins, Request, dial_service, dial_tcp, request_head
from lockgate.tunnel.pushes import Configurations
from lockgate.tunnel.relay import End
from lockgate.tunnel.services import AllowList, Service, host_and_port

log = logging.getLogger(__name__)

MANAGEMENT_HOST: Final = HOST.encode()
_PUSH_BYTES: Final = 1 << 20
_SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))  # may be asked twice
_NOT_OF_THE_ORIGIN: Final = frozenset((UPGRADE, SOURCE, CONDUIT, RECEIVED, b"host"))


@dataclass
class Counts:
    """What was answered since the connector started."""

    requests: int = 0
    open: int = 0
    errors: int = 0
    tcp_sessions: int = 0
    tcp_open: int = 0
    resumed: int = 0
    connects: Connects = field(default_factory=Connects)
    statuses: dict[int, int] = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)


class _Forbidden(Exception):
    """The rule of a request asks for what it does not bring."""


class _Wanted(StreamProtocol):
    """Sits on a stream while its origin is sought: nobody goes on for an edge that has gone."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def connection_lost(self, _: Exception | None) -> None:
        self._task.cancel()


class Answers:
    """The streams of all connections of one connector."""

    def __init__(
        self, configurations: Configurations, allow: AllowList, proxied: AllowList, management: Management
    ) -> None:
        """`allow`: what raw TCP streams may reach; `proxied`: what is told the device's address by PROXY protocol.

        `management` answers what is asked of the connector itself.
        """
        self._management = management
        self._configurations = configurations
        self._allow = allow
        self._proxied = proxied
        self._origins = Origins()
        self._guards = Guards()
        self._conduits: dict[str, Conduit] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts = Counts()

    def opened(self, stream: Stream, headers: Headers) -> None:
        """Answer a stream that is no control stream."""
        fields = dict(headers)
        kind = kind_of(fields)
        conduit = self._conduits.get(fields.get(CONDUIT, b"").decode("latin-1"))
        if conduit is not None:
            self._resume(stream, conduit, fields)
            return
        if fields.get(b":authority") == MANAGEMENT_HOST:
            self._management.serve(stream, fields)
            return
        self.counts.requests += 1
        if fields.get(RECEIVED, b"0") != b"0":
            self._refuse(stream, 404, "a conduit that is not known here")
            return
        self.counts.open += 1
        if kind is Kind.CONFIGURATION:
            self._spawn(stream, self._take_configuration(stream))
        elif kind is Kind.TCP:
            self._spawn(stream, self._serve_tcp(stream, fields))
        elif kind is Kind.WEBSOCKET:
            self._spawn(stream, self._serve_websocket(stream, headers, fields))
        else:
            self._spawn(stream, self._serve_http(stream, headers, fields))

    def begin(self) -> None:
        """Have ready what the rules ask for; on the loop."""
        self._guards.follow(self._configurations.ingress)

    def close(self) -> None:
        """End everything that is open."""
        self._guards.close()
        for task in list(self._tasks):
            task.cancel()
        for conduit in list(self._conduits.values()):
            conduit.abort()
        self._origins.close()

    def _spawn(self, stream: Stream, work: Coroutine[None, None, None]) -> None:
        stream.pause_reading()
        task = asyncio.get_running_loop().create_task(self._run(stream, work))
        stream.set_protocol(_Wanted(task))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, stream: Stream, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except _Forbidden as error:
            log.info("A request is refused: %s", error)
            self._refuse(stream, 403, "not allowed")
        except (OriginError, HeadersTooLarge) as error:
            self.counts.errors += 1
            log.warning("A request cannot be answered: %s", error)
            self._refuse(stream, 502, str(error))
        except (ConnectionError, h11.ProtocolError) as error:
            self.counts.errors += 1
            log.info("A request broke off: %s", error)
            self._break(stream)
        except Exception:
            log.exception("A request failed")
            self._break(stream)
        finally:
            self.counts.open -= 1

    def _break(self, stream: Stream) -> None:
        if stream.answered:
            stream.abort(ErrorCode.INTERNAL_ERROR)
        else:
            self._refuse(stream, 502, "the origin broke off")

    def _refuse(self, stream: Stream, status: int, why: str) -> None:
        """Say that the connector itself could not answer; `why` is for the log of an edge of ours."""
        self._count(status)
        cause = why.encode("ascii", "replace").replace(b"\r", b" ").replace(b"\n", b" ")[:200]
        fields = response(status, [], meta=FROM_CONNECTOR, extra=[(b"lockgate-cause", cause)])
        stream.send_headers(fields, end_stream=True)
        stream.close()

    def _count(self, status: int) -> None:
        self.counts.statuses[status] = self.counts.statuses.get(status, 0) + 1

    # --- raw TCP -------------------------------------------------------------------------------------------------

    async def _serve_tcp(self, stream: Stream, fields: Mapping[bytes, bytes]) -> None:
        host, port = _target(fields.get(b":authority", b""))
        ingress = self._configurations.ingress
        if not ingress.may_dial(host, port, self._allow):
            log.warning("The edge asks for %s:%d, which is not on the allow-list", host, port)
            self._refuse(stream, 502, f"{host}:{port} is not on the connector's allow-list")
            return
        warp = ingress.warp_routing
        if warp.max_active_flows and self.counts.tcp_open >= warp.max_active_flows:
            self._count(502)
            meta = b'{"src":"cloudflared","flow_rate_limited":true}'
            stream.send_headers(response(502, [], meta=meta), end_stream=True)
            stream.close()
            return
        end = await self._dial(dial_tcp(host, port, End, warp.connect_timeout, warp.tcp_keep_alive))
        if self._proxied.permits(host, port):
            _say_who(end, fields)
        self._join(stream, fields, end, response(200, []))

    async def _dial(self, dialling: Awaitable[End]) -> End:
        """Wait for an origin that takes bytes, and count how long that took."""
        begin = time.monotonic()
        try:
            end = await dialling
        except OriginError:
            self.counts.connects.errors += 1
            raise
        self.counts.connects.latency.observe((time.monotonic() - begin) * 1000)
        return end

    def _join(
        self, stream: Stream, fields: Mapping[bytes, bytes], origin: End, said: Headers, *, frames: bool = False
    ) -> None:
        """Carry bytes between the stream and the origin, over a conduit where the edge asks for one.

        `frames`: the bytes are in WebSocket frames, of which we are the server.
        """
        self._count(200)
        self.counts.tcp_sessions += 1
        self.counts.tcp_open += 1
        end = End()
        end.gone = self._tcp_gone
        identifier = fields.get(CONDUIT, b"").decode("latin-1")
        if identifier:
            conduit = Conduit(identifier, end, gap=_wait_for_the_edge, gone=self._forget)
            self._conduits[identifier] = conduit
            end.connection_made(conduit)
            stream.send_headers([*said, (RECEIVED, b"0")])
            conduit.carry_on(stream, 0)
        else:
            stream.send_headers(said)
            end.attach(stream)
        if frames and end.transport is not None:
            end.attach(Framed(end.transport, WebSocket.accepted()))
        stream.resume_reading()
        origin.join(end)

    def _resume(self, stream: Stream, conduit: Conduit, fields: Mapping[bytes, bytes]) -> None:
        try:
            received = conduit.received
            conduit.carry_on(stream, int(fields.get(RECEIVED, b"")))
        except (ConduitError, ValueError) as error:
            log.warning("A conduit cannot go on: %s", error)
            self._refuse(stream, 409, str(error))
            conduit.abort()
            return
        self.counts.resumed += 1
        stream.send_headers(response(200, [], extra=[(RECEIVED, b"%d" % received)]))

    def _forget(self, conduit: Conduit) -> None:
        self._conduits.pop(conduit.id, None)

    def _tcp_gone(self) -> None:
        self.counts.tcp_open -= 1

    # --- WebSocket -----------------------------------------------------------------------------------------------

    async def _serve_websocket(self, stream: Stream, headers: Headers, fields: Mapping[bytes, bytes]) -> None:
        rule, request = self._asked(headers, fields)
        service = rule.service
        if service.kind == "status":
            self._refuse_by_rule(stream, service)
            return
        key = fields.get(b"sec-websocket-key", b"")
        if service.kind == "tcp":
            end = await self._dial(dial_service(rule, request.host.decode("latin-1"), End))
            if self._proxied.permits_service(service):
                _say_who(end, fields)
            self._serve_frames(stream, fields, end, key)
            return
        http, answer = await self._origins.upgrade(rule, request)
        said = list(answer.headers.raw_items())
        if answer.status_code != 101:
            await self._give_response(stream, http, answer, said)
            return
        origin = End()
        rest = http.take_over()
        origin.attach(cast("asyncio.Transport", http.transport))
        if rest:
            origin.data_received(rest)
        self._join(stream, fields, origin, response(101, said))

    def _serve_frames(self, stream: Stream, fields: Mapping[bytes, bytes], origin: End, key: bytes) -> None:
        said: Headers = [
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"websocket"),
            (b"Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key + WEBSOCKET_MAGIC).digest())),
        ]
        offered = [one.strip() for one in fields.get(b"sec-websocket-protocol", b"").split(b",")]
        said += [(b"Sec-WebSocket-Protocol", one) for one in offered[:1] if one]
        self._join(stream, fields, origin, response(101, said), frames=True)

    # --- HTTP ----------------------------------------------------------------------------------------------------

    def _asked(self, headers: Headers, fields: Mapping[bytes, bytes]) -> tuple[Rule, Request]:
        host, target = fields.get(b":authority", b""), fields.get(b":path", b"/")
        rule = self._configurations.ingress.match(host.decode("latin-1"), target.decode("latin-1"))
        name = host.decode("latin-1")
        if name in self.counts.hosts or len(self.counts.hosts) < 1000:
            self.counts.hosts[name] = self.counts.hosts.get(name, 0) + 1
        if problem := self._guards.problem(rule, target.decode("latin-1"), headers):
            raise _Forbidden(problem)
        kept = [one for one in end_to_end(headers) if one[0] not in _NOT_OF_THE_ORIGIN and not one[0].startswith(b":")]
        return rule, Request(fields.get(b":method", b"GET"), target, host, kept)

    def _refuse_by_rule(self, stream: Stream, service: Service) -> None:
        self._count(service.status)
        stream.send_headers(response(service.status, []), end_stream=True)
        stream.close()

    async def _serve_http(self, stream: Stream, headers: Headers, fields: Mapping[bytes, bytes]) -> None:
        rule, request = self._asked(headers, fields)
        if rule.service.kind == "status":
            self._refuse_by_rule(stream, rule.service)
            return
        if rule.service.kind == "tcp":
            raise OriginError(f"{rule.service.text} is reached by WebSocket, not by plain HTTP")
        host, has_body = request.host.decode("latin-1"), not stream.has_ended
        if has_body and rule.request.disable_chunked_encoding and b"content-length" not in fields:
            self._refuse(stream, 411, "the origin takes no body of unknown length")
            return
        head = request_head(rule, request, has_body=has_body)
        flow = Flow()
        async with self._origins.connection(rule, host) as http:
            flow.attach(stream)
            stream.resume_reading()
            try:
                await self._exchange(stream, flow, http, head)
                return
            except (ConnectionError, OriginError, h11.RemoteProtocolError):
                # The origin closed a kept connection while we asked: it has not looked at the request.
                if has_body or http.has_heard or not http.was_kept or request.method not in _SAFE or flow.is_gone:
                    raise
        async with self._origins.connection(rule, host, fresh=True) as http:
            await self._exchange(stream, flow, http, head)

    async def _exchange(self, stream: Stream, flow: Flow, http: Http1, head: h11.Request) -> None:
        sending = asyncio.create_task(_send_request(http, flow, head))
        leaving = asyncio.create_task(flow.until_gone())
        answering = asyncio.create_task(self._hear_response(stream, flow, http))
        try:
            # A request that cannot be sent to its end may have its answer all the same.
            await asyncio.wait((leaving, answering), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ConnectionError("the edge gave the request up")
            answering.result()
        finally:
            for task in (sending, leaving, answering):
                task.cancel()
            await asyncio.gather(sending, leaving, answering, return_exceptions=True)

    async def _hear_response(self, stream: Stream, flow: Flow, http: Http1) -> None:
        while True:
            event = await http.event()
            if isinstance(event, h11.Response):
                break
            if not isinstance(event, h11.InformationalResponse):
                raise OriginError("the origin closes the connection instead of answering")
        await self._give_response(stream, http, event, list(event.headers.raw_items()), flow)

    async def _give_response(
        self,
        stream: Stream,
        http: Http1,
        answer: h11.Response | h11.InformationalResponse,
        fields: Headers,
        flow: Flow | None = None,
    ) -> None:
        if flow is None:
            flow = Flow()
            flow.attach(stream)
            stream.resume_reading()
        self._count(answer.status_code)
        named = {name for name, _ in end_to_end(fields)}
        stream.send_headers(response(answer.status_code, [one for one in fields if one[0].lower() in named]))
        while True:
            event = await http.event()
            if isinstance(event, h11.Data):
                await flow.write(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                stream.write_eof(trailers=end_to_end(event.headers.raw_items()) or None)
                return
            else:
                raise ConnectionError("the origin broke off")

    # --- configuration -------------------------------------------------------------------------------------------

    async def _take_configuration(self, stream: Stream) -> None:
        flow = Flow()
        flow.attach(stream)
        stream.resume_reading()
        body = bytearray()
        while data := await flow.read():
            body += data
            if len(body) > _PUSH_BYTES:
                break
        answer = self._configurations.push(bytes(body))
        self._guards.follow(self._configurations.ingress)
        stream.send_headers([(b":status", b"200"), (b"content-type", b"application/json")])
        await flow.write(answer)
        stream.write_eof()


async def _send_request(http: Http1, flow: Flow, head: h11.Request) -> None:
    await http.send(head)
    while data := await flow.read():
        await http.send(h11.Data(data=data))
    await http.send(h11.EndOfMessage())


def _wait_for_the_edge(_: Conduit) -> None:
    """The edge looks for another connection."""


def _target(authority: bytes) -> tuple[str, int]:
    text = authority.decode("latin-1")
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port[:6]) < 65536:
        raise OriginError(f"{authority[:100]!r} is no HOST:PORT")
    return host_and_port(text)


def _say_who(origin: End, fields: Mapping[bytes, bytes]) -> None:
    """Tell the origin the device's address, as the edge said it, before anything else (PROXY protocol, version 2)."""
    said = (fields.get(SOURCE) or fields.get(b"cf-connecting-ip", b"")).decode("latin-1")
    transport = cast("asyncio.Transport", origin.transport)
    transport.write(proxy_protocol.header_v2(said, transport.get_extra_info("peername")))
