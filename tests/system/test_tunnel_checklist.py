"""What either end of the tunnel owes a peer that is not ours, each against a peer made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lockgate.tunnel.h2_session import Session, SessionLimits, Stream, StreamProtocol
from lockgate.tunnel.headers import Kind, kind_of
from lockgate.tunnel.http2 import Headers
from lockgate.tunnel.registration import (
    Answer,
    LocalConfiguration,
    Options,
    Refused,
    Register,
    Registered,
    RegistrationClient,
    RegistrationServer,
    Reported,
    Unregister,
    Unregistered,
)
from tests.support.tunnels import Bench, bench


@pytest.fixture
async def tunnel(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as one:
        yield one


class FakeConnector:
    """A connector of few words. It offers what cloudflared offers: windows of 1 MiB, no features of ours."""

    def __init__(self, tunnel: Bench, index: int = 0, client_id: bytes | None = None, secret: bytes = b"") -> None:
        self._tunnel = tunnel
        self._index = index
        self.client_id = client_id or uuid.uuid4().bytes
        self._secret = secret or tunnel.token.secret
        loop = asyncio.get_running_loop()
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()
        self.streams: asyncio.Queue[tuple[Stream, Headers]] = asyncio.Queue()
        self.lost: asyncio.Future[str] = loop.create_future()
        self.registration = RegistrationClient()
        self.control: Stream | None = None
        self.session = Session(
            client=False,
            limits=SessionLimits(window=1 << 20, connection_window=1 << 20),
            opened=self._opened,
            made=lambda _: None,
            lost=lambda _, reason: self.lost.set_result(reason),
        )

    async def dial(self, *, name: str = "h2.cftunnel.com") -> FakeConnector:
        """As cloudflared does: without ALPN, by the name that is fixed in it."""
        await asyncio.get_running_loop().create_connection(
            lambda: self.session,
            "127.0.0.1",
            self._tunnel.tunnel_port,
            ssl=self._tunnel.context(),
            server_hostname=name,
        )
        return self

    def _opened(self, stream: Stream, headers: Headers) -> None:
        if kind_of(dict(headers)) is not Kind.CONTROL:
            stream.pause_reading()
            self.streams.put_nowait((stream, headers))
            return
        self.control = stream
        outer = self

        class Control(StreamProtocol):
            def data_received(self, data: bytes) -> None:
                for answer in outer.registration.feed(data):
                    outer.answers.put_nowait(answer)
                outer.say()

        stream.set_protocol(Control())
        stream.send_headers([(b":status", b"200")])
        token = self._tunnel.token
        options = Options(self.client_id, ("serialized_headers", "allow_remote_config"), "2026.8.2", "linux_amd64")
        self.registration.register(token.account_tag, self._secret, token.tunnel_id.bytes, self._index, options)
        self.say()

    def say(self) -> None:
        assert self.control is not None
        self.control.write(bytes(self.registration.output))
        self.registration.output.clear()

    async def answer(self) -> Answer:
        return await asyncio.wait_for(self.answers.get(), 5)


async def test_the_edge_begins_to_speak_at_once_and_as_the_client(tunnel: Bench) -> None:
    await tunnel.start_edge()
    reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.tunnel_port, ssl=tunnel.context())
    tls = writer.get_extra_info("ssl_object")
    assert tls.selected_alpn_protocol() is None
    said = await asyncio.wait_for(reader.readexactly(24), 5)
    assert said == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    head = await asyncio.wait_for(reader.readexactly(9), 5)
    assert head[3] == 4  # SETTINGS
    writer.close()


async def test_a_connector_that_is_not_ours_is_registered_and_taken_back(tunnel: Bench) -> None:
    edge = await tunnel.start_edge()
    peer = await FakeConnector(tunnel).dial()
    said = await peer.answer()
    assert isinstance(said, Registered)
    assert (said.location, said.remotely_managed) == ("EDGE", False)
    peer.registration.update_local_configuration(b'{"ingress":[{"service":"http_status:404"}]}')
    peer.say()
    assert await peer.answer() == Reported(taken=True)
    (connection,) = edge.hub.registry
    assert not connection.rides_through
    peer.registration.unregister()
    peer.say()
    assert isinstance(await peer.answer(), Unregistered)
    assert "closed" in await asyncio.wait_for(peer.lost, 5)  # by the edge, for nothing is open
    assert list(edge.hub.registry) == []


async def test_a_refusal_is_followed_by_the_end_of_the_connection(tunnel: Bench) -> None:
    await tunnel.start_edge()
    peer = await FakeConnector(tunnel, secret=b"wrong").dial()
    said = await peer.answer()
    assert isinstance(said, Refused)
    assert "Unauthorized" not in said.cause  # with that word cloudflared tries for ever
    await asyncio.wait_for(peer.lost, 5)


async def test_a_connection_of_the_same_place_replaces_the_one_before(tunnel: Bench) -> None:
    edge = await tunnel.start_edge()
    first = await FakeConnector(tunnel).dial()
    assert isinstance(await first.answer(), Registered)
    second = await FakeConnector(tunnel, client_id=first.client_id).dial()
    assert isinstance(await second.answer(), Registered)
    await asyncio.wait_for(first.lost, 5)
    replica = await FakeConnector(tunnel).dial()
    assert isinstance(await replica.answer(), Registered)
    assert len(list(edge.hub.registry)) == 2


async def test_beyond_its_connections_a_tunnel_has_to_wait(tunnel: Bench) -> None:
    with tunnel.edit() as said:
        (one,) = said["tunnels"].values()
        one["limits"] = {"connections": 1}
    await tunnel.start_edge()
    first = await FakeConnector(tunnel).dial()
    assert isinstance(await first.answer(), Registered)
    second = await FakeConnector(tunnel).dial()
    refusal = await second.answer()
    assert isinstance(refusal, Refused)
    assert "Unauthorized" in refusal.cause  # the word that makes cloudflared wait
    assert refusal.should_retry


async def test_who_does_not_register_is_closed(tunnel: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.tunnel.edge._REGISTER_SECONDS", 0.3)
    await tunnel.start_edge()
    reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.tunnel_port, ssl=tunnel.context())
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await asyncio.wait_for(reader.read(-1), 5)
    assert reader.at_eof() or reader.exception() is not None
    writer.close()


async def test_one_address_cannot_try_without_end(tunnel: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.tunnel.edge._ATTEMPTS_PER_SECOND", 0.1)
    await tunnel.start_edge()
    taken = 0
    for _ in range(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.tunnel_port, ssl=tunnel.context())
        with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            await asyncio.wait_for(reader.readexactly(24), 5)
            await asyncio.sleep(0)
            taken += not reader.at_eof()
        writer.close()
    assert taken < 40
    monkeypatch.setattr("lockgate.tunnel.edge._ATTEMPTS_PER_SECOND", 1e6)  # nobody is kept out for long
    peer = await FakeConnector(tunnel).dial()
    assert isinstance(await peer.answer(), Registered)


class FakeEdge:
    """An edge that answers registrations as a test wants."""

    def __init__(self, tunnel: Bench) -> None:
        self._tunnel = tunnel
        self.answer: Refused | None = None
        self.attempts: list[float] = []
        self.calls: asyncio.Queue[Register | Unregister | LocalConfiguration] = asyncio.Queue()
        self.sessions: list[Session] = []
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        folder = self._tunnel.gateway.data_dir / "edge"
        context.load_cert_chain(folder / "tunnel.pem", folder / "tunnel.key")
        self._server = await asyncio.get_running_loop().create_server(
            self._session, "127.0.0.1", self._tunnel.tunnel_port, ssl=context
        )

    def _session(self) -> Session:
        return Session(client=True, limits=SessionLimits(), made=self._made, lost=lambda *_: None)

    def _made(self, session: Session) -> None:
        self.attempts.append(time.monotonic())
        self.sessions.append(session)
        server = RegistrationServer()
        outer = self

        class Control(StreamProtocol):
            stream: Stream

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, Stream)
                self.stream = transport

            def data_received(self, data: bytes) -> None:
                for call in server.feed(data):
                    outer.calls.put_nowait(call)
                    if not isinstance(call, Register):
                        server.done(call)
                    elif outer.answer is not None:
                        server.refuse(call, outer.answer)
                    else:
                        server.accept(call, uuid.uuid4(), "FAKE", remotely_managed=False)
                self.stream.write(bytes(server.output))
                server.output.clear()

        session.open(
            [
                (b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/"),
                (b"cf-cloudflared-proxy-connection-upgrade", b"control-stream"),
            ],
            Control(),
        )  # fmt: skip

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for session in self.sessions:
            session.abort("the test is over")


@pytest.fixture
async def fake_edge(tunnel: Bench) -> AsyncIterator[FakeEdge]:
    edge = FakeEdge(tunnel)
    await edge.open()
    yield edge
    edge.close()


async def test_the_connector_tells_what_it_serves_and_takes_itself_back(tunnel: Bench, fake_edge: FakeEdge) -> None:
    connector = await tunnel.start_connector([], connections=1)
    first = await asyncio.wait_for(fake_edge.calls.get(), 5)
    assert isinstance(first, Register)
    assert first.index == 0
    assert {"allow_remote_config", "serialized_headers"} <= set(first.options.features)
    local = await asyncio.wait_for(fake_edge.calls.get(), 5)
    assert isinstance(local, LocalConfiguration)
    assert b'"service": "http_status:404"' in local.config
    await tunnel.stop(connector)
    assert isinstance(await asyncio.wait_for(fake_edge.calls.get(), 5), Unregister)


async def test_a_conduit_that_is_not_known_is_refused(tunnel: Bench, fake_edge: FakeEdge) -> None:
    connector = await tunnel.start_connector([], connections=1)
    answered: asyncio.Future[Headers] = asyncio.get_running_loop().create_future()

    class Asking(StreamProtocol):
        def headers_received(self, headers: Headers) -> None:
            answered.set_result(headers)

    fake_edge.sessions[0].open(
        [
            (b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"127.0.0.1:1"), (b":path", b"/"),
            (b"cf-cloudflared-proxy-src", b"10.0.0.1"), (b"lockgate-conduit", b"0" * 32), (b"lockgate-received", b"7"),
        ],
        Asking(),
    )  # fmt: skip
    assert dict(await asyncio.wait_for(answered, 5))[b":status"] == b"404"
    assert connector.streams.counts.open == 0


async def test_the_connector_comes_again_when_the_edge_says(tunnel: Bench, fake_edge: FakeEdge) -> None:
    fake_edge.answer = Refused("full for now", should_retry=True, retry_after=0.7)
    starting = asyncio.create_task(tunnel.start_connector([], connections=1))
    for _ in range(2):
        assert isinstance(await asyncio.wait_for(fake_edge.calls.get(), 5), Register)
    assert fake_edge.attempts[1] - fake_edge.attempts[0] > 0.6
    fake_edge.answer = None
    connector = await starting
    assert connector.ready_connections == 1


async def test_the_connector_backs_off_from_one_edge_that_is_away(tunnel: Bench) -> None:
    attempts: list[float] = []

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(time.monotonic())
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", tunnel.tunnel_port)
    starting = asyncio.create_task(tunnel.start_connector([], connections=1))
    await asyncio.sleep(3)
    assert 1 <= len(attempts) < 30  # cloudflared, with one edge, tries up to a thousand times a second
    server.close()
    await server.wait_closed()
    edge = await tunnel.start_edge()
    connector = await asyncio.wait_for(starting, 30)
    assert connector.ready_connections == 1
    assert edge.status()["connectors_refused"] == {}
