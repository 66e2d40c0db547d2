"""Connector and edge against those who want them to let somebody in, lose bytes, hang or fill up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from lockgate.tunnel import public
from lockgate.tunnel.conduit import FEATURE
from lockgate.tunnel.edge_service import Edge
from lockgate.tunnel.h2_session import Session
from lockgate.tunnel.headers import serialise
from lockgate.tunnel.jwks import KeyUrl, parse
from lockgate.tunnel.registration import Answer, Options, Registered, RegistrationClient
from tests.support.loops import event_loop_policy  # noqa: F401, a fixture
from tests.support.tunnels import Bench, bench


@pytest.fixture
async def tunnel(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as one:
        yield one


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def origin(serve: Serve) -> AsyncIterator[str]:
    """A TCP server; gives its HOST:PORT."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"{host}:{port}"
    finally:
        server.close()


def answering(answer: bytes, heard: list[bytes] | None = None) -> Serve:
    """An origin that gives this answer to each request without a body, and keeps the heads."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if heard is not None:
                heard.append(head)
            writer.write(answer)
            await writer.drain()

    return serve


HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def say(tunnel: Bench, said: bytes, *, end: bytes = b"") -> bytes:
    """Say something at the HTTPS port; gives all that is answered, or what is up to `end`."""
    reader, writer = await asyncio.open_connection("localhost", tunnel.https_port, ssl=tunnel.context())
    try:
        writer.write(said)
        async with asyncio.timeout(20):
            return await (reader.readuntil(end) if end else reader.read(-1))
    finally:
        writer.close()


def get(path: str = "/", *fields: str, method: str = "GET", close: bool = True) -> bytes:
    last = ["Connection: close"] if close else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: home.example.org", *fields, *last, "", ""]).encode(
        "latin-1"
    )


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


# --- who is let in ------------------------------------------------------------------------------------------------


class Team:
    """The vendor's login of a team, which nobody here can reach."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        self.keys = parse(json.dumps({"keys": [jwk | {"kid": "one", "use": "sig"}]}))

    def token(self) -> str:
        claims = {"iss": "https://team.cloudflareaccess.com", "aud": "tag", "email": "a@b.c", "exp": time.time() + 60}
        return jwt.encode(claims, self.key, algorithm="RS256", headers={"kid": "one"})


async def test_a_rule_with_access_asks_for_a_jwt_before_its_origin_is_asked(
    tunnel: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    team, heard = Team(), list[bytes]()
    fetched: list[KeyUrl] = []
    may_fetch = asyncio.Event()

    async def fetch(url: KeyUrl) -> bool:
        await may_fetch.wait()
        url._keys = team.keys
        fetched.append(url)
        return True

    monkeypatch.setattr(KeyUrl, "fetch", fetch)
    access = {"required": True, "teamName": "team", "audTag": ["tag"]}
    async with origin(answering(HELLO, heard)) as where:
        await tunnel.start_edge()
        rules: list[dict[str, Any]] = [
            {"hostname": "home.example.org", "path": "^/free", "service": f"http://{where}"},
            {"hostname": "home.example.org", "service": f"http://{where}", "originRequest": {"access": access}},
        ]
        connector = await tunnel.start_connector(rules)
        good = f"Cf-Access-Jwt-Assertion: {team.token()}"
        upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
        assert status(await say(tunnel, get("/free"))) == 200
        assert status(await say(tunnel, get("/", good))) == 403  # its keys are not there yet
        may_fetch.set()
        async with asyncio.timeout(5):
            while not fetched:
                await asyncio.sleep(0.01)
        assert status(await say(tunnel, get("/"))) == 403
        assert status(await say(tunnel, get("/", *upgrade))) == 403
        assert status(await say(tunnel, get("/", good + "x"))) == 403
        assert status(await say(tunnel, get("/", "Cf-Access-Jwt-Assertion: forged", good))) == 403
        assert len(heard) == 1
        assert status(await say(tunnel, get("/", good))) == 200
        pushed = {"version": 7, "config": {"ingress": [rules[1], {"service": "http_status:404"}]}}
        connector.configurations.push(json.dumps(pushed).encode())
        assert status(await say(tunnel, get("/free"))) == 403


# --- what one visitor or one origin cannot do to all others -------------------------------------------------------


class Watch:
    """Tells whether the one connection of the tunnel, which all share, was lost."""

    def __init__(self, tunnel: Bench, edge: Edge) -> None:
        self._tunnel = tunnel
        self._edge = edge
        self._session = self._now()

    async def was_lost(self) -> bool:
        async with asyncio.timeout(20):
            while status(await say(self._tunnel, get("/alive"))) != 200:
                await asyncio.sleep(0.1)  # until it is there again
        before, self._session = self._session, self._now()
        return self._session is not before

    def _now(self) -> Session:
        (one,) = self._edge.hub.registry
        return one.session


async def asked(tunnel: Bench, said: bytes) -> int:
    """The status of the answer, 0 where there is none."""
    with contextlib.suppress(ConnectionError):
        return status(await say(tunnel, said))
    return 0


REQUESTS = {
    "both framings": get("/", "Content-Length: 50", "Transfer-Encoding: chunked", method="POST")
    + b"5\r\nhello\r\n0\r\n\r\n",
    "thousands of fields": get("/", *["a: "] * 9000),
    "one large field": get("/", "a: " + "x" * 60_000),
    "control characters": get("/", "a: \x01\x02\x7f", "a!#$%&'*+.^_`|~: \xff"),
    "body of a GET": get("/", "Content-Length: 3") + b"abc",
    "upgrade with a body": get(
        "/", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13", "Content-Length: 3"
    )
    + b"abc" + b"\x82\x05hello",
    "internal fields": get("/", "Cf-Cloudflared-Proxy-Connection-Upgrade: control-stream", "Lockgate-Conduit: x"),
    "te": get("/", "TE: gzip", "Proxy-Connection: x", "Keep-Alive: 1", "Upgrade: h2c"),
    "CONNECT": get("/", method="CONNECT"),
    "CONNECT elsewhere": get("127.0.0.1:22", method="CONNECT"),
    "TRACE": get("/", method="TRACE"),
    "an odd method": get("/", method="BREW!"),
    "HTTP/1.0": b"GET / HTTP/1.0\r\nHost: home.example.org\r\n\r\n",
    "absolute form": get("http://home.example.org/"),
    "asterisk": get("*", method="OPTIONS"),
    "two hosts": get("/", "Host: other.example.org"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "line feeds alone": b"GET / HTTP/1.1\nHost: home.example.org\nConnection: close\n\n",
    "a folded field": get("/", "a: b\r\n c"),
    "a space before the colon": get("/", "Host : x"),
    "two encodings": get("/", "Transfer-Encoding: chunked, chunked", method="POST") + b"0\r\n\r\n",
    "encoding twice": get("/", "Transfer-Encoding: chunked", "Transfer-Encoding: identity", method="POST"),
    "unknown encoding": get("/", "Transfer-Encoding: gzip", method="POST"),
    "lengths that differ": get("/", "Content-Length: 3", "Content-Length: 4", method="POST"),
    "no length": get("/", "Content-Length: -1", method="POST"),
    "a chunk that lies": get("/", "Transfer-Encoding: chunked", method="POST") + b"zz\r\nhello\r\n",
    "a giant chunk": get("/", "Transfer-Encoding: chunked", method="POST") + b"f" * 30 + b"\r\n",
    "trailers": get("/", "Transfer-Encoding: chunked", method="POST") + b"0\r\nConnection: x\r\nTE: y\r\n\r\n",
}  # fmt: skip


async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An origin that answers each whole head, whatever it is, and closes."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    await writer.drain()


async def test_no_request_takes_the_tunnel_connection_of_others(tunnel: Bench) -> None:
    answers: dict[str, int] = {}
    async with origin(told) as where:
        edge = await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{where}"}], connections=1)
        watch, lost = Watch(tunnel, edge), list[str]()
        for name, said in REQUESTS.items():
            answers[name] = await asked(tunnel, said)
            if await watch.was_lost():
                lost.append(name)
    print(answers)
    assert lost == []


RESPONSES = {
    "304 with a length": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n",
    "204 with a length": b"HTTP/1.1 204 No Content\r\nContent-Length: 100\r\n\r\n",
    "too short": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhello",
    "large head": b"HTTP/1.1 200 OK\r\na: " + b"x" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "many fields": b"HTTP/1.1 200 OK\r\n" + b"a: \r\n" * 12_000 + b"Content-Length: 0\r\n\r\n",
    "control characters": b"HTTP/1.1 200 OK\r\na: \x01\x7f\xff\r\nContent-Length: 0\r\n\r\n",
    "bad trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nConnection: x\r\nTE: y\r\nX-T: z\r\n\r\n",  # noqa: E501
    "large trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: \r\n" * 12_000 + b"\r\n",
    "hints before": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3 + HELLO,
    "unwanted switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\n",
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "status 999": b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
    "status 0": b"HTTP/1.1 000 What\r\nContent-Length: 0\r\n\r\n",
    "tunnel fields": b"HTTP/1.1 200 OK\r\nCf-Cloudflared-Response-Meta: x\r\nContent-Length: 0\r\n\r\n",
    "empty": b"",
}


async def test_no_response_takes_the_tunnel_connection_of_others(tunnel: Bench) -> None:
    answers: dict[str, int] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        number = int(head.split(b" ")[1][1:]) if head.split(b" ")[1][1:].isdigit() else -1
        writer.write(HELLO if number < 0 else list(RESPONSES.values())[number])
        await writer.drain()

    async with origin(serve) as where:
        edge = await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{where}"}], connections=1)
        watch, lost = Watch(tunnel, edge), list[str]()
        for number, name in enumerate(RESPONSES):
            for method in ("GET", "HEAD"):
                key = f"{name}, {method}"
                answers[key] = await asked(tunnel, get(f"/{number}", method=method))
                if await watch.was_lost():
                    lost.append(key)
    print(answers)
    assert lost == []


async def idle(edge: Edge) -> None:
    """Wait until no stream is open but those of control."""
    async with asyncio.timeout(10):
        while any(one.session.stream_count > 1 for one in edge.hub.registry):
            await asyncio.sleep(0.01)


# --- origins that close, and that say too much --------------------------------------------------------------------


async def test_a_request_is_asked_again_where_the_origin_closes_a_kept_connection(tunnel: Bench) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answering_once(reader, writer)
        await reader.readuntil(b"\r\n\r\n")  # the next one: closed without an answer

    async with origin(serve) as where:
        await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{where}"}])
        for number in range(4):
            assert status(await say(tunnel, get())) == 200
            assert connections == number + 1
        assert status(await say(tunnel, get("/", "Content-Length: 1", method="POST") + b"x")) == 502
        assert status(await say(tunnel, get())) == 200


async def answering_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HELLO)
    await writer.drain()


async def test_a_kept_connection_that_was_closed_or_spoke_out_of_turn_is_not_used(tunnel: Bench) -> None:
    extras = [b""] * 3 + [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"] * 3

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering_once(reader, writer)
        extra = extras.pop(0)
        writer.write(extra)
        if extra:
            await reader.read()

    async with origin(serve) as where:
        await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{where}"}])
        while extras:
            assert (await say(tunnel, get("/", "Content-Length: 1", method="POST") + b"x")).endswith(b"hello")
            await asyncio.sleep(0.05)  # so that the end, or what is too much, is there


async def test_who_is_never_answered_is_told(tunnel: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "RESPONSE_SECONDS", 0.3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with origin(serve) as where:
        edge = await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{where}"}])
        assert status(await say(tunnel, get())) == 504
        await idle(edge)
        bad = get("/", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n"
        assert status(await say(tunnel, bad)) == 400
        await idle(edge)


# --- slow ones ----------------------------------------------------------------------------------------------------


async def test_who_reads_nothing_of_an_answer_stops_the_origin_and_is_closed(
    tunnel: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public, "STALL_SECONDS", 2.0)
    written = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while written < 1_000_000_000:
            writer.write(bytes(65_536))
            await writer.drain()
            written += 65_536

    async with origin(serve) as where:
        edge = await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{where}"}])
        reader, writer = await asyncio.open_connection("localhost", tunnel.https_port, ssl=tunnel.context(), limit=1024)
        writer.write(get())
        await reader.readexactly(1)
        await idle(edge)
        assert written < 30_000_000  # what sockets hold on the way
        writer.transport.abort()


async def test_an_upload_nobody_reads_stops_and_a_body_that_stalls_is_closed(
    tunnel: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public, "STALL_SECONDS", 3.0)
    leave = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await leave.wait()

    async with origin(serve) as where:
        edge = await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{where}"}])
        _, writer = await asyncio.open_connection("localhost", tunnel.https_port, ssl=tunnel.context())
        writer.write(get("/", "Content-Length: 1000000000", method="POST"))
        written = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while True:
                writer.write(bytes(65_536))
                async with asyncio.timeout(0.5):  # sooner than the edge, which reads on once it has answered
                    await writer.drain()
                written += 65_536
        assert written < 30_000_000
        writer.transport.abort()
        await idle(edge)
        monkeypatch.setattr(public, "STALL_SECONDS", 1.0)
        slow = get("/", "Content-Length: 5", method="POST") + b"x"
        assert status(await say(tunnel, slow)) == 0
        upgrade = get("/", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Content-Length: 5")
        assert status(await say(tunnel, upgrade)) == 0
        assert status(await say(tunnel, upgrade + b"x")) == 400
        await idle(edge)
        leave.set()


def uploaded(tunnel: Bench, requests: Sequence[tuple[bytes, int]]) -> list[int]:
    """The statuses of answers that are not looked at before all of a request and its body is said, as scripts do it."""
    plain = socket.create_connection(("localhost", tunnel.https_port), 20)
    with tunnel.context().wrap_socket(plain, server_hostname="localhost") as sock:
        statuses = []
        for head, body in requests:
            sock.sendall(head)
            for _ in range(0, body, 1 << 20):
                sock.sendall(bytes(1 << 20))
            statuses.append(status(sock.recv(4096)))
        return statuses


async def test_who_is_answered_while_still_sending_has_the_answer(tunnel: Bench) -> None:
    async def too_large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read(-1)

    size = 32 << 20
    upload = (get("/", f"Content-Length: {size}", method="POST", close=False), size)
    async with origin(too_large) as where:
        await tunnel.start_edge()
        # the edge itself answers, which has no connector
        assert await asyncio.to_thread(uploaded, tunnel, [upload]) == [503]
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{where}"}])
        assert await asyncio.to_thread(uploaded, tunnel, [upload, (get(), 0)]) == [413, 413]


@pytest.mark.parametrize("bound", ["LINGER_SECONDS", "LINGER_SILENCE_SECONDS"])
async def test_nobody_is_heard_for_ever_once_answered(
    tunnel: Bench, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(public, "LINGER_SECONDS", 3600.0)
    monkeypatch.setattr(public, "LINGER_SILENCE_SECONDS", 3600.0)
    monkeypatch.setattr(public, bound, 0.5)
    await tunnel.start_edge()
    reader, writer = await asyncio.open_connection("localhost", tunnel.https_port, ssl=tunnel.context())
    writer.write(get("/", "Content-Length: 1000000000", method="POST"))
    async with asyncio.timeout(20):
        assert status(await reader.readuntil(b"connected\n")) == 503
        with contextlib.suppress(ConnectionError):
            while bound == "LINGER_SECONDS" and not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
            assert await reader.read() == b""
    writer.transport.abort()


async def test_visitors_that_leave_in_the_middle_leave_nothing_open(tunnel: Bench) -> None:
    upgrade = get("/", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13", close=False)
    agreed = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"  # noqa: E501

    async with origin(answering(agreed)) as where:
        edge = await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{where}"}], connections=1)
        for turns in range(60):
            _, writer = await asyncio.open_connection("localhost", tunnel.https_port, ssl=tunnel.context())
            writer.write(upgrade)
            for _ in range(turns):
                await asyncio.sleep(0)
            writer.transport.abort()
        await idle(edge)
        async with asyncio.timeout(5):
            while edge.public.counts.open:
                await asyncio.sleep(0.01)


async def flood(writer: asyncio.StreamWriter, said: bytes, size: int) -> None:
    for _ in range(0, size, len(said)):
        writer.write(said)
        await asyncio.wait_for(writer.drain(), 20)


async def test_a_device_that_reads_no_answers_is_closed(tunnel: Bench) -> None:
    """Each of its messages is refused and acknowledged by the edge itself."""

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"\x20\x03\0\0\0")
        await reader.read()

    async with origin(broker) as where:
        with tunnel.edit() as said:
            said["devices"] = {"mute": {"publish": []}}
            (one,) = said["tunnels"].values()
            one["mqtts"] = {"localhost": {"target": where, "devices": "mute"}}
        edge = await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "localhost", "service": f"tcp://{where}"}])
        reader, writer = await asyncio.open_connection("localhost", tunnel.mqtts_port, ssl=tunnel.context(), limit=1024)
        writer.write(b"\x10\x0e\0\4MQTT\5\2\0\0\0\0\1d")
        assert await reader.readexactly(5) == b"\x20\x03\0\0\0"
        with pytest.raises(ConnectionError):
            await flood(writer, b"\x32\x06\0\1t\0\1\0" * 8192, 200_000_000)
        async with asyncio.timeout(5):
            while edge.public.counts.open:
                await asyncio.sleep(0.01)
        writer.transport.abort()


# --- a connector that lies ----------------------------------------------------------------------------------------


class Liar:
    """A connector that registers as it should, and answers each stream as it is told."""

    def __init__(self, tunnel: Bench, answer: Callable[[Liar, int], None]) -> None:
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.registration = RegistrationClient()
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()
        self._tunnel = tunnel
        self._answer = answer
        self._control = 0

    async def run(self) -> None:
        """Serve until the edge closes the connection."""
        context = ssl.create_default_context(cafile=self._tunnel.authority.cafile)
        reader, writer = await asyncio.open_connection("localhost", self._tunnel.tunnel_port, ssl=context)
        self.h2.initiate_connection()
        self.register()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                for event in self.h2.receive_data(data):
                    self._hear(event)
                if self._control and self.registration.output:
                    self.h2.send_data(self._control, bytes(self.registration.output))
                    self.registration.output.clear()
                writer.write(self.h2.data_to_send())
        writer.close()

    def register(self, secret: bytes = b"") -> None:
        token = self._tunnel.token
        options = Options(client_id=b"l" * 16, features=(FEATURE,))
        self.registration.register(token.account_tag, secret or token.secret, token.tunnel_id.bytes, 0, options)

    def _hear(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            if not self._control:
                self._control = event.stream_id
                self.h2.send_headers(event.stream_id, [(b":status", b"200")])
            else:
                self._answer(self, event.stream_id)
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if event.stream_id == self._control:
                for answer in self.registration.feed(event.data):
                    self.answers.put_nowait(answer)


async def forgotten(edge: Edge) -> None:
    async with asyncio.timeout(5):
        while list(edge.hub.registry):
            await asyncio.sleep(0.01)


def head(*fields: tuple[bytes, bytes], end: bool = False) -> Callable[[Liar, int], None]:
    return lambda liar, stream: liar.h2.send_headers(stream, list(fields), end_stream=end)


OK = (b":status", b"200")
ORIGIN = (b"cf-cloudflared-response-meta", b'{"src":"origin"}')
SERIALISED = b"cf-cloudflared-response-headers"


def short(liar: Liar, stream: int) -> None:
    """A body that does not keep its length."""
    field = serialise([(b"content-length", b"100")])
    liar.h2.send_headers(stream, [OK, ORIGIN, (SERIALISED, field), (b"content-length", b"100")])
    liar.h2.send_data(stream, b"short", end_stream=True)


def data_first(liar: Liar, stream: int) -> None:
    liar.h2._data_to_send += b"\0\0\4\0\0" + stream.to_bytes(4, "big") + b"data"


LENGTHS = serialise([(b"content-length", b"1"), (b"content-length", b"2")])
LIES: dict[str, tuple[Callable[[Liar, int], None], tuple[int, ...]]] = {
    "no status": (head((b"x", b"y"), end=True), (502,)),
    "status 099": (head((b":status", b"099"), end=True), (502,)),
    "status 999": (head((b":status", b"999"), end=True), (502,)),
    "fields that are none": (head(OK, ORIGIN, (SERIALISED, b"???"), end=True), (502,)),
    "a field that breaks out": (head(OK, ORIGIN, (SERIALISED, b"YQ:YQ0KYjogYw"), end=True), (502,)),
    "a name that is none": (head(OK, ORIGIN, (SERIALISED, b"YSgpYg:YQ"), end=True), (502,)),
    "two lengths": (head(OK, ORIGIN, (SERIALISED, LENGTHS)), (502,)),
    "a body that is short": (short, (200,)),
    "a reset": (lambda liar, stream: liar.h2.reset_stream(stream), (502,)),
}  # fmt: skip


@pytest.mark.parametrize("lie", list(LIES))
async def test_a_connector_that_lies_about_a_stream_harms_that_one(tunnel: Bench, lie: str) -> None:
    said, statuses = LIES[lie]
    edge = await tunnel.start_edge()
    liar = Liar(tunnel, said)
    task = asyncio.create_task(liar.run())
    try:
        assert isinstance(await asyncio.wait_for(liar.answers.get(), 10), Registered)
        watched = {id(one.session) for one in edge.hub.registry}
        for _ in range(3):
            assert status(await say(tunnel, get())) in statuses
        await idle(edge)
        assert {id(one.session) for one in edge.hub.registry} == watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_data_without_a_head_ends_the_connection_that_sent_it(tunnel: Bench) -> None:
    edge = await tunnel.start_edge()
    liar = Liar(tunnel, data_first)
    task = asyncio.create_task(liar.run())
    assert isinstance(await asyncio.wait_for(liar.answers.get(), 10), Registered)
    assert status(await say(tunnel, get())) == 502
    await asyncio.wait_for(task, 10)
    await forgotten(edge)


@pytest.mark.parametrize("secret", [b"", b"another"], ids=["again", "as another"])
async def test_a_second_registration_ends_the_connection(tunnel: Bench, secret: bytes) -> None:
    edge = await tunnel.start_edge()
    liar = Liar(tunnel, head(OK))
    task = asyncio.create_task(liar.run())
    assert isinstance(await asyncio.wait_for(liar.answers.get(), 10), Registered)
    liar.register(secret)
    await asyncio.wait_for(task, 20)  # said with the next PING
    await forgotten(edge)
    assert edge.hub._unregistered == {}
