"""Origins of the connector that speak TLS: what is trusted, under which name, and what is said when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import h11
import pytest

from lockgate.tunnel.http1 import Http1
from lockgate.tunnel.ingress import Ingress, Rule
from lockgate.tunnel.origins import (
    OriginError,
    Origins,
    Request,
    dial_service,
    first_connected,
    interleaved,
    request_head,
)
from tests.support.certificates import Authority
from tests.support.loops import event_loop_policy  # noqa: F401, a fixture
from tests.support.tunnels import bench, ingress
from tests.system.test_tunnel import http_origin, visitor


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextlib.asynccontextmanager
async def serving(files: tuple[Path, Path], path: Path | None = None) -> AsyncIterator[tuple[str, list[str | None]]]:
    """An origin that answers each request with 204 on a new connection, its address, and the names it was asked for."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    if path is None:
        server: asyncio.Server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        address = f"localhost:{server.sockets[0].getsockname()[1]}"
    else:
        server = await asyncio.start_unix_server(answer, path, ssl=context)
        address = str(path)
    try:
        yield address, names
    finally:
        server.close()


def rule(service: str, **request: Any) -> Rule:
    said: Ingress = ingress([{"hostname": "home.example.org", "service": service, "originRequest": request}])
    return said.rules[0]


async def ask(one: Rule) -> int:
    """The status of what the origin answers."""
    http = await dial_service(one, "home.example.org", lambda: Http1(client=True))
    await http.send(request_head(one, Request(b"GET", b"/", b"home.example.org", []), has_body=False))
    event = await http.event()
    assert http.transport is not None
    http.transport.close()
    assert isinstance(event, h11.Response)
    return event.status_code


async def test_a_certificate_is_trusted_by_its_pool_alone(authority: Authority) -> None:
    async with serving(authority.issue("web", "localhost")) as (address, names):
        with pytest.raises(OriginError, match=r"its certificate is not trusted: unable to get local issuer"):
            await ask(rule(f"https://{address}"))
        assert await ask(rule(f"https://{address}", caPool=str(authority.cafile))) == 204
        assert await ask(rule(f"https://{address}", noTLSVerify=True)) == 204
        with pytest.raises(OriginError, match=r"its certificate is not trusted: unable to get local issuer"):
            await ask(rule(f"https://{address}"))  # what one rule leaves out, another does not
        assert names[-1] == "localhost"


async def test_a_certificate_is_that_of_the_name_that_is_asked_for(authority: Authority) -> None:
    pool = str(authority.cafile)
    async with serving(authority.issue("web", "home.example.org", "inner.example")) as (address, names):
        with pytest.raises(OriginError, match="Hostname mismatch"):
            await ask(rule(f"https://{address}", caPool=pool))
        assert await ask(rule(f"https://{address}", caPool=pool, originServerName="inner.example")) == 204
        assert names[-1] == "inner.example"
        assert await ask(rule(f"https://{address}", caPool=pool, matchSNItoHost=True)) == 204
        assert names[-1] == "home.example.org"


async def test_a_pool_that_is_renewed_is_read_anew(authority: Authority, tmp_path: Path) -> None:
    pool = tmp_path / "pool.pem"
    (tmp_path / "other").mkdir()
    pool.write_bytes(Authority(tmp_path / "other").cafile.read_bytes())
    async with serving(authority.issue("web", "localhost")) as (address, _):
        asked = rule(f"https://{address}", caPool=str(pool))
        with pytest.raises(OriginError, match="not trusted"):
            await ask(asked)
        pool.write_bytes(authority.cafile.read_bytes())
        assert await ask(asked) == 204
        pool.unlink()
        with pytest.raises(OriginError, match=r"caPool '.*pool\.pem': No such file"):
            await ask(asked)
        pool.write_text("no certificates")
        with pytest.raises(OriginError, match=r"caPool '.*pool\.pem': "):
            await ask(asked)


async def test_tls_over_a_unix_socket(authority: Authority, tmp_path: Path) -> None:
    async with serving(authority.issue("web", "inner.example"), tmp_path / "web.sock") as (address, _):
        pool = str(authority.cafile)
        one = rule(f"unix+tls:{address}", caPool=pool, originServerName="inner.example")
        assert await ask(one) == 204
        with pytest.raises(OriginError, match="not trusted"):
            await ask(rule(f"unix+tls:{address}", caPool=pool))


async def test_a_websocket_origin_with_tls(authority: Authority) -> None:
    origins = Origins()
    async with serving(authority.issue("web", "localhost")) as (address, _):
        one = rule(f"wss://{address}", caPool=str(authority.cafile))
        request = Request(b"GET", b"/mqtt", b"home.example.org", [(b"sec-websocket-key", b"x" * 24)])
        http, answer = await origins.upgrade(one, request)
        assert answer.status_code == 204
        assert http.transport is not None
        http.transport.close()
    origins.close()


async def test_an_origin_that_speaks_no_tls_is_named(authority: Authority) -> None:
    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(OriginError, match=rf"https://localhost:{port}: TLS: wrong version number"):
            await ask(rule(f"https://localhost:{port}", noTLSVerify=True))


@contextlib.contextmanager
def silent_address() -> Iterator[tuple[int, tuple[str, int]]]:
    """One that answers no connect: its queue is full."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield socket.AF_INET, full.getsockname()


async def test_an_address_that_does_not_answer_has_a_head_start_alone() -> None:
    with socket.socket() as good, socket.socket() as closed, silent_address() as silent:
        good.bind(("127.0.0.1", 0))
        good.listen()
        closed.bind(("127.0.0.1", 0))
        there, refusing = (socket.AF_INET, good.getsockname()), (socket.AF_INET, closed.getsockname())
        for addresses, race in (([silent, there], True), ([refusing, there], False), ([refusing, there], True)):
            with await first_connected(addresses, race=race) as sock:
                assert sock.getpeername() == there[1]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(first_connected([silent, there], race=False), 1)
        with pytest.raises(ConnectionRefusedError):
            await first_connected([refusing, refusing], race=True)


def test_the_families_of_a_name_are_tried_by_turns() -> None:
    six, four = [(socket.AF_INET6, ("::1", port)) for port in (1, 2, 3)], [(socket.AF_INET, ("127.0.0.1", 1))]
    assert interleaved([*six, *four]) == [six[0], four[0], six[1], six[2]]


async def test_a_body_of_unknown_length_is_refused_where_an_origin_cannot_take_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as tunnel, http_origin() as origin, visitor(tunnel) as session:
        await tunnel.start_edge()
        rule = {"hostname": "home.example.org", "service": f"http://{origin}"}
        await tunnel.start_connector([rule | {"originRequest": {"disableChunkedEncoding": True}}])

        async def pieces() -> AsyncIterator[bytes]:
            yield b"some"

        async with session.post("/", data=b"some") as answer:
            assert (await answer.json())["size"] == 4
        async with session.post("/", data=pieces()) as answer:
            assert (answer.status, await answer.text()) == (411, "411 the origin takes no body of unknown length\n")
        async with session.get("/") as answer:
            assert answer.status == 200
