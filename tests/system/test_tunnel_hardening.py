"""Connector and edge against those who want them to let somebody in, lose bytes, hang or fill up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from lockgate.tunnel.jwks import KeyUrl, parse
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
