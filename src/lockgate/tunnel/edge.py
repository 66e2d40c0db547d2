"""The edge: where connectors register, and by which of their connections a stream goes.

Its public side, which devices and people reach, is `public`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import secrets
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from lockgate.tunnel.conduit import CONDUIT, FEATURE, GAP_SECONDS, PLACE, RECEIVED, Conduit, ConduitError
from lockgate.tunnel.h2_session import Session, SessionBusy, SessionLimits, Stream, StreamProtocol
from lockgate.tunnel.headers import UPGRADE, HeaderError
from lockgate.tunnel.http1 import Flow
from lockgate.tunnel.http2 import Headers
from lockgate.tunnel.jwks import Keeping
from lockgate.tunnel.management import LogFollower, request
from lockgate.tunnel.registration import (
    LocalConfiguration,
    Refused,
    Register,
    RegistrationError,
    RegistrationServer,
    Unregister,
)
from lockgate.tunnel.responses import Response, read_response
from lockgate.tunnel.tunnels import Refusal, Tunnel, Tunnels, TunnelsFile

log = logging.getLogger(__name__)

_REGISTER_SECONDS: Final = 10.0
_BEFORE_REGISTRATION_BYTES: Final = 64 * 1024
_CONTROL_OUTPUT: Final = 64 * 1024
_RESPONSE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 1.0  # how often the file of tunnels is looked at
_PER_ADDRESS: Final = 20  # connections of an address that may be unregistered at a time
_ATTEMPTS_PER_SECOND: Final = 10.0  # of an address, beyond a burst of _PER_ADDRESS


class NoConnector(Exception):
    """No connector of the tunnel is there, or none takes another stream."""


@dataclass(eq=False)
class Connection:
    """One registered connection of a connector."""

    id: uuid.UUID
    tunnel: Tunnel
    session: Session
    client_id: bytes
    index: int
    address: str
    features: frozenset[str]
    version: str
    since: float
    proof: tuple[str, uuid.UUID, bytes] = field(repr=False)
    draining: bool = False

    @property
    def place(self) -> str:
        """Where its process runs, of which there is one at a time; empty if it does not say."""
        return next((one for one in self.features if one.startswith(PLACE)), "")

    @property
    def rides_through(self) -> bool:
        return FEATURE in self.features

    @property
    def takes_streams(self) -> bool:
        return not self.draining and not self.session.is_closing


class Registry:
    """The connections that are registered now."""

    def __init__(self) -> None:
        self._by_tunnel: dict[uuid.UUID, dict[tuple[bytes, int], Connection]] = defaultdict(dict)
        self.changed = asyncio.Event()  # a connection was registered

    def __iter__(self) -> Iterator[Connection]:
        for connections in list(self._by_tunnel.values()):
            yield from list(connections.values())

    def of(self, tunnel_id: uuid.UUID) -> list[Connection]:
        return list(self._by_tunnel[tunnel_id].values()) if tunnel_id in self._by_tunnel else []

    def add(self, connection: Connection) -> Connection | None:
        """Give the connection that has this place already; it is replaced."""
        place = (connection.client_id, connection.index)
        before = self._by_tunnel[connection.tunnel.id].get(place)
        self._by_tunnel[connection.tunnel.id][place] = connection
        self.changed.set()
        self.changed = asyncio.Event()
        return before

    def remove(self, connection: Connection) -> None:
        connections = self._by_tunnel.get(connection.tunnel.id, {})
        place = (connection.client_id, connection.index)
        if connections.get(place) is connection:
            del connections[place]
            if not connections:
                del self._by_tunnel[connection.tunnel.id]

    def is_gone_for_good(self, connection: Connection) -> bool:
        """Whether the process of a connection certainly opens no other one: it drains, or another is in its place."""
        connections, place = self.of(connection.tunnel.id), connection.place
        own = [one for one in connections if one.client_id == connection.client_id]
        is_replaced = bool(place) and any(one.place == place for one in connections if one not in own)
        return is_replaced or any(one.draining for one in (connection, *own))

    def streams(self, tunnel_id: uuid.UUID) -> int:
        """How many streams of the tunnel are open."""
        return sum(max(0, connection.session.stream_count - 1) for connection in self.of(tunnel_id))

    def choose(self, tunnel: Tunnel, *, key: str = "", client_id: bytes | None = None) -> Connection:
        """The connection for a new stream; NoConnector where there is none.

        `client_id`: of this connector alone. `key`: the same connector for the same key, as long as it is there;
        otherwise the connector, and then the connection, with the fewest streams.
        """
        there = [one for one in self.of(tunnel.id) if one.takes_streams]
        if client_id is not None:
            there = [one for one in there if one.client_id == client_id]
        if not there:
            raise NoConnector("no connector of this tunnel is connected")
        if tunnel.limits.streams and self.streams(tunnel.id) >= tunnel.limits.streams:
            raise NoConnector(f"the tunnel has its {tunnel.limits.streams} streams open")
        connectors = {one.client_id for one in there}
        if len(connectors) > 1:
            if key:
                chosen = max(connectors, key=lambda one: hashlib.sha256(one + key.encode()).digest())
            else:
                load: dict[bytes, int] = defaultdict(int)
                for one in there:
                    load[one.client_id] += one.session.stream_count
                chosen = min(load, key=lambda one: load[one])
            there = [one for one in there if one.client_id == chosen]
        return min(there, key=lambda one: one.session.stream_count)


class Hub:
    """Connectors on one side, streams to them on the other."""

    def __init__(self, tunnels: TunnelsFile, location: str) -> None:
        self._file = tunnels
        self.location = location  # as connectors show it
        self.registry = Registry()
        self.limits = SessionLimits()
        self._unregistered: dict[str, int] = defaultdict(int)
        self._attempts: dict[str, tuple[float, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._keys = Keeping()
        self.refused: dict[str, int] = defaultdict(int)
        self.resumed = 0
        self._followers: dict[bytes, LogFollower] = {}
        self._beginning: set[bytes] = set()  # connectors whose log is about to be followed

    @property
    def tunnels(self) -> Tunnels:
        return self._file.current

    # --- connectors ----------------------------------------------------------------------------------------------

    def accept(self) -> asyncio.Protocol:
        """A protocol for a connection of the tunnel's port, whose TLS is up."""
        newcomer = _Newcomer(self)
        return newcomer.session

    def may_try(self, address: str) -> bool:
        """Count an attempt of an address; cloudflared with one edge may try a thousand times a second."""
        now = time.monotonic()
        left, at = self._attempts.get(address, (float(_PER_ADDRESS), now))
        left = min(left + (now - at) * _ATTEMPTS_PER_SECOND, _PER_ADDRESS) - 1
        self._attempts[address] = (max(left, -1.0), now)
        if len(self._attempts) > 10_000:
            self._attempts = {key: one for key, one in self._attempts.items() if now - one[1] < 10}
        return left >= 0 and self._unregistered[address] < _PER_ADDRESS

    def judge(self, call: Register) -> tuple[Tunnel | None, Refused | None]:
        """Whose connection this is, or why it is not taken."""
        tunnel_id = uuid.UUID(bytes=call.tunnel_id)
        found = self.tunnels.authenticate(call.account_tag, tunnel_id, call.secret, time.time())
        if isinstance(found, Refusal):
            self.refused[found.value] += 1
            # Without the word that makes cloudflared try for ever: its process ends, and says why.
            return None, Refused(f"the token of this tunnel is {found.value}")
        connections = [one for one in self.registry.of(found.id) if (one.client_id, one.index) != _place(call)]
        if found.limits.connections and len(connections) >= found.limits.connections:
            self.refused["too many connections"] += 1
            # With that word: cloudflared waits only then.
            cause = f"Unauthorized for now: the tunnel has its {found.limits.connections} connections"
            return None, Refused(cause, should_retry=True, retry_after=10.0)
        return found, None

    def registered(self, connection: Connection) -> None:
        before = self.registry.add(connection)
        log.info(
            "Tunnel %s: connection %d of %s registered (%s)",
            connection.tunnel.name, connection.index, connection.address, connection.version,
        )  # fmt: skip
        if before is not None:
            before.session.close("it was replaced by a newer connection")
        if connection.tunnel.configuration is not None:
            self.spawn(self._push(connection))

    def unregistered_count(self, address: str, by: int) -> None:
        self._unregistered[address] += by
        if not self._unregistered[address]:
            del self._unregistered[address]

    async def keep(self) -> None:
        """Follow the file of tunnels: what is revoked is closed, what is configured anew is pushed."""
        while True:
            self._keys.want(self.tunnels.keys)
            await asyncio.sleep(_LOOK_SECONDS)
            news = await asyncio.to_thread(self._file.refresh)
            for connection in self.registry:
                found = self.tunnels.authenticate(*connection.proof, time.time())
                if isinstance(found, Refusal):
                    connection.session.close(f"its token is {found.value}")
                elif news:
                    changed = found.configuration != connection.tunnel.configuration
                    connection.tunnel = found
                    if changed and found.configuration is not None:
                        self.spawn(self._push(connection))

    async def _push(self, connection: Connection) -> None:
        body = connection.tunnel.configuration or b""
        try:
            answer = await self.ask(
                connection,
                [
                    (b":method", b"PUT"), (b":scheme", b"https"), (b":authority", b"lockgate"), (b":path", b"/"),
                    (UPGRADE, b"update-configuration"), (b"content-length", b"%d" % len(body)),
                ],
                body,
            )  # fmt: skip
        except (ConnectionError, HeaderError, TimeoutError) as error:
            log.warning("Tunnel %s: its configuration could not be pushed: %s", connection.tunnel.name, error)
            return
        log.info("Tunnel %s: configuration pushed: %s", connection.tunnel.name, answer[:200].decode("utf-8", "replace"))

    async def ask(self, connection: Connection, headers: Headers, body: bytes) -> bytes:
        """Ask something small of a connector, and give the body of its answer."""
        flow = Answering()
        stream = connection.session.open(headers, flow)
        stream.write(body)
        stream.write_eof()
        try:
            async with asyncio.timeout(10):
                await flow.response()
                answer = bytearray()
                while data := await flow.read():
                    answer += data
                    if len(answer) > 1 << 20:
                        raise ConnectionError("the answer is too large")
                return bytes(answer)
        finally:
            stream.abort()

    # --- their logs ----------------------------------------------------------------------------------------------

    def log_lines(self, name: str, after: Mapping[str, int], level: str) -> dict[str, object]:
        """What the connectors of a tunnel logged behind the lines named, by connector; asking begins to follow."""
        tunnel = self.tunnels.named(name)
        if tunnel is None:
            return {"error": f"there is no tunnel {name!r}"}
        said: dict[str, object] = {}
        for client_id in {one.client_id for one in self.registry.of(tunnel.id)}:
            connector = str(uuid.UUID(bytes=client_id))
            follower = self._followers.get(client_id)
            if follower is None or follower.is_over:
                self._followers.pop(client_id, None)
                if client_id not in self._beginning:
                    self._beginning.add(client_id)
                    self.spawn(self._follow(tunnel, client_id, level))
                said[connector] = []
            else:
                said[connector] = follower.after(after.get(connector, 0))
        return {"connectors": said}

    async def _follow(self, tunnel: Tunnel, client_id: bytes, level: str) -> None:
        headers = [
            *request(tunnel.id, tunnel.account_tag, "/logs"), (UPGRADE, b"websocket"),
            (b"sec-websocket-version", b"13"), (b"sec-websocket-key", base64.b64encode(secrets.token_bytes(16))),
        ]  # fmt: skip
        flow = Answering()
        try:
            stream = self.registry.choose(tunnel, client_id=client_id).session.open(headers, flow)
            stream.pause_reading()
            async with asyncio.timeout(10):
                answer = await flow.response()
            if answer.switches:
                self._followers[client_id] = LogFollower(stream, level)
            else:
                log.warning("Tunnel %s: a connector does not show its log: %d", tunnel.name, answer.status)
                stream.abort()
        except (NoConnector, ConnectionError, TimeoutError, HeaderError) as error:
            log.warning("Tunnel %s: the log of a connector cannot be followed: %s", tunnel.name, error)
        finally:
            self._beginning.discard(client_id)

    # --- streams -------------------------------------------------------------------------------------------------

    def start(
        self, tunnel: Tunnel, headers: Headers, *, key: str = "", ride: bool = False, end_stream: bool = False
    ) -> Opened:
        """Open a stream; NoConnector where there is none. `ride`: over a conduit, where the connector knows them."""
        connection = self.registry.choose(tunnel, key=key)
        flow = Answering()
        identifier = secrets.token_hex(16) if ride and connection.rides_through else ""
        said = [*headers, (CONDUIT, identifier.encode()), (RECEIVED, b"0")] if identifier else headers
        try:
            stream = connection.session.open(said, flow, end_stream=end_stream)
        except SessionBusy as error:
            raise NoConnector(str(error)) from None
        return Opened(self, connection, stream, flow, headers, identifier)

    async def open(self, tunnel: Tunnel, headers: Headers, *, key: str = "") -> Opened:
        """Open a stream that carries bytes both ways, and wait for its response.

        Raises NoConnector, HeaderError, or ConnectionError where it breaks off.
        """
        for attempt in range(3):
            opened = self.start(tunnel, headers, key=key, ride=True)
            opened.stream.pause_reading()
            try:
                async with asyncio.timeout(_RESPONSE_SECONDS):
                    opened.response = await opened.flow.response()
            except TimeoutError:
                opened.refuse()
                raise ConnectionError(f"no answer within {_RESPONSE_SECONDS:.0f} s") from None
            except ConnectionError:
                if not opened.stream.session_is_lost or attempt == 2:
                    raise
                continue  # its connection was lost before it had begun
            except BaseException:
                opened.refuse()
                raise
            return opened
        raise NoConnector("every connection was lost")

    def ride_on(self, opened: Opened, conduit: Conduit) -> None:
        """The connection that carried a conduit was lost: find another one of the same connector."""
        self.spawn(self._ride_on(opened, conduit))

    async def _ride_on(self, opened: Opened, conduit: Conduit) -> None:
        while conduit.in_gap:
            changed = self.registry.changed
            flow = Answering()
            try:
                tunnel, client_id = opened.connection.tunnel, opened.connection.client_id
                connection = self.registry.choose(tunnel, client_id=client_id)
                said = [(CONDUIT, conduit.id.encode()), (RECEIVED, b"%d" % conduit.received)]
                stream = connection.session.open([*opened.headers, *said], flow)
                stream.pause_reading()
                try:
                    async with asyncio.timeout(GAP_SECONDS):
                        response = await flow.response()
                except BaseException:
                    stream.abort()
                    raise
                if response.status != 200:
                    stream.abort()
                    conduit.other_is_gone(f"the connector does not go on: {response.status} {response.cause}")
                    return
                if not conduit.in_gap:
                    stream.abort()
                    return
                conduit.carry_on(stream, int(dict(flow.headers or ()).get(RECEIVED, b"-1")))
                stream.resume_reading()
                opened.connection = connection
                self.resumed += 1
                if opened.on_gap is not None:
                    opened.on_gap(False)
                return
            except (ConduitError, ValueError, HeaderError) as error:
                conduit.fail(str(error))
                return
            except (NoConnector, ConnectionError, TimeoutError):
                if self.registry.is_gone_for_good(opened.connection):
                    conduit.other_is_gone("its connector has ended")
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), 0.2)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run something on the side."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Close every connection."""
        self._keys.close()
        for task in list(self._tasks):
            task.cancel()
        for connection in self.registry:
            connection.session.close("the edge ends")


class Answering(Flow):
    """The protocol of a stream until its response has come, and of its body afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: Headers | None = None
        self.trailers: Headers = []

    def headers_received(self, headers: Headers) -> None:
        if self.headers is None:
            self.headers = headers
        else:
            self.trailers = headers
        self.wake()

    async def response(self) -> Response:
        """What the connector answered; ConnectionError where it did not, HeaderError for what is none."""
        while self.headers is None:
            if self.is_gone:
                raise ConnectionError("the connector gave the stream up")
            await self.news()
        return read_response(self.headers)


class Opened:
    """A stream to an origin."""

    def __init__(
        self,
        hub: Hub,
        connection: Connection,
        stream: Stream,
        flow: Answering,
        headers: Headers,
        identifier: str,
    ) -> None:
        self.connection = connection
        self.headers = headers
        self.response: Response  # once it has come
        self.flow = flow
        self.stream = stream
        self.conduit: Conduit | None = None
        self.on_gap: Callable[[bool], None] | None = None  # told when no connection carries it, and when one does again
        self._hub = hub
        self._identifier = identifier

    @property
    def may_ride(self) -> bool:
        """Whether the connector was asked for a conduit."""
        return bool(self._identifier)

    def begin(self, protocol: StreamProtocol) -> asyncio.Transport:
        """Put a protocol on it, and give its transport; reading begins with `resume_reading`."""
        said = dict(self.flow.headers or ())
        del self.flow  # its part is over, and a device may be idle for years
        if not self._identifier or RECEIVED not in said:
            self.stream.set_protocol(protocol)
            protocol.connection_made(self.stream)
            return self.stream
        conduit = self.conduit = Conduit(self._identifier, protocol, gap=self._begin_gap, gone=lambda _: None)
        protocol.connection_made(conduit)
        conduit.pause_reading()
        conduit.carry_on(self.stream, 0)
        return conduit

    def _begin_gap(self, conduit: Conduit) -> None:
        if self.on_gap is not None:
            self.on_gap(True)
        self._hub.ride_on(self, conduit)

    def refuse(self) -> None:
        """It is not wanted."""
        self.stream.abort()


class _Newcomer:
    """A connection of the tunnel's port, from its TLS to its registration and its end."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._address = ""
        self._connection: Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.session = Session(client=True, limits=hub.limits, made=self._made, lost=self._lost)

    def _made(self, session: Session) -> None:
        peer = session.transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        self._hub.unregistered_count(self._address, 1)
        if not self._hub.may_try(self._address):
            session.abort("too many attempts of one address")
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_REGISTER_SECONDS, self._too_late)
        headers = [
            (b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"lockgate"), (b":path", b"/"),
            (UPGRADE, b"control-stream"),
        ]  # fmt: skip
        session.open(headers, _Control(self))

    def _lost(self, _: Session, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is None:
            self._hub.unregistered_count(self._address, -1)
            log.info("A connection of %s ends before it registered: %s", self._address, reason)
            return
        self._hub.registry.remove(self._connection)
        name, index = self._connection.tunnel.name, self._connection.index
        log.info("Tunnel %s: connection %d of %s ends: %s", name, index, self._address, reason)

    def _too_late(self) -> None:
        if self._connection is None:
            self.session.abort(f"no registration within {_REGISTER_SECONDS:.0f} s")

    def register(self, call: Register, server: RegistrationServer) -> None:
        tunnel, refused = self._hub.judge(call)
        if tunnel is None or refused is not None:
            refused = refused or Refused("refused")
            server.refuse(call, refused)
            log.warning("A connector at %s is refused: %s", self._address, refused.cause)
            # cloudflared would stay for ever.
            asyncio.get_running_loop().call_later(0.5, self.session.close, refused.cause)
            return
        if self._connection is not None:
            raise RegistrationError("a connection registers twice")
        self._hub.unregistered_count(self._address, -1)
        connection = self._connection = Connection(
            id=uuid.uuid4(),
            tunnel=tunnel,
            session=self.session,
            client_id=call.options.client_id,
            index=call.index,
            address=self._address,
            features=frozenset(call.options.features),
            version=call.options.version[:100],
            since=time.time(),
            proof=(call.account_tag, tunnel.id, call.secret),
        )
        server.accept(call, connection.id, self._hub.location, remotely_managed=tunnel.configuration is not None)
        self._hub.registered(connection)

    def unregister(self) -> None:
        """It takes no more streams; when none is open it is closed."""
        if self._connection is not None:
            self._connection.draining = True
            self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self.session.is_closing:
            return
        if self.session.stream_count <= 1:
            self.session.close("it has drained")
        else:
            asyncio.get_running_loop().call_later(0.1, self._close_when_idle)

    def bytes_are_too_many(self) -> bool:
        return self._connection is None and self.session.bytes_in > _BEFORE_REGISTRATION_BYTES


class _Control(StreamProtocol):
    """The control stream, at the edge."""

    def __init__(self, newcomer: _Newcomer) -> None:
        self._newcomer = newcomer
        self._server = RegistrationServer()
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Stream)
        self._stream = transport

    def headers_received(self, headers: Headers) -> None:
        if dict(headers).get(b":status") != b"200":
            self._newcomer.session.close("it refuses the control stream")

    def data_received(self, data: bytes) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            if self._newcomer.bytes_are_too_many():
                raise RegistrationError("too much before a registration")
            for call in self._server.feed(data):
                if isinstance(call, Register):
                    self._newcomer.register(call, self._server)
                elif isinstance(call, Unregister):
                    self._server.done(call)
                    # behind the answer, for it may be closed at once
                    asyncio.get_running_loop().call_soon(self._newcomer.unregister)
                elif isinstance(call, LocalConfiguration):
                    self._server.done(call)
        except RegistrationError as error:
            self._newcomer.session.close(f"its control stream is broken: {error}")
            return
        stream.write(bytes(self._server.output))
        self._server.output.clear()
        if stream.get_write_buffer_size() > _CONTROL_OUTPUT:
            self._newcomer.session.abort("it does not read its control stream")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._newcomer.session.close("its control stream ended")


def _place(call: Register) -> tuple[bytes, int]:
    return call.options.client_id, call.index
