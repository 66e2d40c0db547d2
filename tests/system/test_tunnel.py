"""Connector and edge together: people and devices outside, mosquitto and HTTP servers within."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import paho.mqtt.client as paho
import pytest
from aiohttp import web
from paho.mqtt.enums import CallbackAPIVersion

from lockgate.config.errors import ConfigError
from lockgate.tunnel.connector import Connector, TokenRefused
from lockgate.tunnel.edge import Registry
from lockgate.tunnel.management import HOST
from tests.support.loops import event_loop_policy  # noqa: F401, a fixture
from tests.support.peers import Mosquitto, free_port
from tests.support.tunnels import Bench, bench


@pytest.fixture
async def tunnel(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as one:
        yield one


@contextlib.asynccontextmanager
async def http_origin() -> AsyncIterator[str]:
    """An HTTP server that tells what it was asked."""

    async def echo(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        told = {"method": request.method, "path": request.path_qs, "headers": headers, "size": len(body)}
        answer = web.json_response(told)
        answer.headers.add("Set-Cookie", "a=1")
        answer.headers.add("Set-Cookie", "b=2")
        return answer

    async def large(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(int(request.query["megabytes"])):
            await answer.write(bytes(1024 * 1024))
        return answer

    async def break_off(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": "1000"})
        await answer.prepare(request)
        await answer.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return answer

    async def talk(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"heard {message.data}")
        return socket

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/large", large)
    app.router.add_route("*", "/break", break_off)
    app.router.add_get("/talk", talk)
    app.router.add_route("*", "/{rest:.*}", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def visitor(tunnel: Bench) -> AsyncIterator[aiohttp.ClientSession]:
    """A browser of sorts, to whom home.example.org is the edge."""

    class Resolver(aiohttp.abc.AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[aiohttp.abc.ResolveResult]:
            return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

        async def close(self) -> None:
            return None

    connector = aiohttp.TCPConnector(ssl=tunnel.context(), resolver=Resolver())
    async with aiohttp.ClientSession(
        connector=connector, base_url=f"https://home.example.org:{tunnel.https_port}"
    ) as session:
        yield session


async def test_a_page_is_asked_and_answered(tunnel: Bench) -> None:
    async with http_origin() as origin, visitor(tunnel) as session:
        await tunnel.start_edge()
        connector = await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{origin}"}])
        async with session.get("/a/b?c=d", headers={"X-Forwarded-For": "6.6.6.6", "X-Mine": "1"}) as answer:
            told = await answer.json()
            assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
        assert (told["method"], told["path"]) == ("GET", "/a/b?c=d")
        assert told["headers"]["x-forwarded-for"] == "127.0.0.1"
        assert told["headers"]["x-mine"] == "1"
        assert told["headers"]["host"] == f"home.example.org:{tunnel.https_port}"
        assert not [name for name in told["headers"] if name.startswith("cf-cloudflared")]
        async with session.post("/", data=b"x" * 3_000_000) as answer:
            assert (await answer.json())["size"] == 3_000_000

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield b"y" * 100_000

        async with session.put("/", data=pieces()) as answer:
            assert (await answer.json())["size"] == 1_000_000
        async with session.get("/large?megabytes=20") as answer:
            assert len(await answer.read()) == 20 * 1024 * 1024
        async with session.head("/") as answer:
            assert answer.status == 200
        assert connector.streams.counts.errors == 0


async def test_what_goes_wrong_has_its_status_and_cause(tunnel: Bench) -> None:
    async with http_origin() as origin, visitor(tunnel) as session:
        edge = await tunnel.start_edge()
        async with session.get("/") as answer:
            assert (answer.status, await answer.text()) == (503, "503 no connector of this tunnel is connected\n")
        gone = free_port()
        rules = [
            {"hostname": "home.example.org", "path": "^/down", "service": f"http://127.0.0.1:{gone}"},
            {"hostname": "home.example.org", "path": "^/tea", "service": "http_status:418"},
            {"hostname": "home.example.org", "service": f"http://{origin}"},
        ]
        await tunnel.start_connector(rules)
        async with session.get("/down") as answer:
            assert answer.status == 502
            assert f"127.0.0.1:{gone}" in await answer.text()
        async with session.get("/tea") as answer:
            assert answer.status == 418
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get("/break") as answer:
                await answer.read()
        async with session.get("/", headers={"Host": "other.example.org"}) as answer:
            assert answer.status == 404
        assert edge.public.counts.open <= 5


async def test_a_websocket_goes_through(tunnel: Bench) -> None:
    async with http_origin() as origin, visitor(tunnel) as session:
        await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{origin}"}])
        async with session.ws_connect("/talk") as socket:
            for n in range(50):
                await socket.send_str(f"{n} " + "x" * n * 1000)
                assert await socket.receive_str() == f"heard {n} " + "x" * n * 1000
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect("/nothing")
        assert refused.value.status == 200


class Phone:
    """A device of paho's, outside."""

    def __init__(self, tunnel: Bench, client_id: str, *, websocket: bool = False, version: int = 5) -> None:
        transport = "websockets" if websocket else "tcp"
        protocol = paho.MQTTv5 if version == 5 else paho.MQTTv311
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id, transport=transport, protocol=protocol)  # type: ignore[arg-type]
        context = tunnel.context()
        context.check_hostname = False
        self.client.tls_set_context(context)
        if websocket:
            self.client.ws_set_options("/mqtt", headers={"Host": "home.example.org"})
        self.port = tunnel.https_port if websocket else tunnel.mqtts_port
        self.loop = asyncio.get_running_loop()
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.connected: asyncio.Future[str] = self.loop.create_future()
        self.disconnects = 0
        self.acknowledged: asyncio.Queue[int] = asyncio.Queue()
        self.client.on_message = lambda _c, _u, m: self._soon(self.messages.put_nowait, (m.topic, m.payload))
        self.client.on_connect = lambda _c, _u, _f, code, _p: self._soon(self._connected, str(code))
        self.subscribed: asyncio.Queue[int] = asyncio.Queue()
        self.client.on_subscribe = lambda _c, _u, mid, _r, _p: self._soon(self.subscribed.put_nowait, mid)
        self.client.on_publish = lambda _c, _u, mid, _r, _p: self._soon(self.acknowledged.put_nowait, mid)
        self.client.on_disconnect = lambda *_: self._soon(self._disconnected)

    def _soon(self, *call: object) -> None:
        self.loop.call_soon_threadsafe(*call)  # type: ignore[arg-type]

    def _connected(self, code: str) -> None:
        if not self.connected.done():
            self.connected.set_result(code)

    def _disconnected(self) -> None:
        self.disconnects += 1

    async def connect(self, keepalive: int = 60) -> str:
        await asyncio.to_thread(self.client.connect, "localhost", self.port, keepalive)
        self.client.loop_start()
        return await asyncio.wait_for(self.connected, 10)

    async def subscribe(self, topic_filter: str) -> None:
        self.client.subscribe(topic_filter, qos=1)
        await asyncio.wait_for(self.subscribed.get(), 10)

    async def close(self) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)


def mosquitto_behind(folder: Path) -> tuple[Mosquitto, int]:
    websockets = free_port()
    lines = [f"listener {websockets} 127.0.0.1", "protocol websockets", "allow_anonymous true"]
    broker = Mosquitto(folder, lines)
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", websockets), timeout=1).close()
            return broker, websockets


@pytest.mark.parametrize("version", [4, 5])
async def test_mqtt_over_websocket_reaches_mosquitto(tunnel: Bench, tmp_path: Path, version: int) -> None:
    broker, websockets = mosquitto_behind(tmp_path)
    try:
        await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"ws://127.0.0.1:{websockets}"}])
        await converse(tunnel, websocket=True, version=version)
    finally:
        broker.kill()


@pytest.mark.parametrize("direct", [True, False], ids=["raw TCP", "frames"])
@pytest.mark.parametrize("version", [4, 5])
async def test_mqtt_over_tls_reaches_mosquitto(tunnel: Bench, tmp_path: Path, direct: bool, version: int) -> None:
    broker, _ = mosquitto_behind(tmp_path)
    try:
        with tunnel.edit() as said:
            (one,) = said["tunnels"].values()
            one["mqtts"] = {"localhost": {"target": f"127.0.0.1:{broker.port}"} if direct else {}}
        await tunnel.start_edge()
        rules = [{"hostname": "localhost", "service": f"tcp://127.0.0.1:{broker.port}"}]
        await tunnel.start_connector(rules)
        await converse(tunnel, websocket=False, version=version)
    finally:
        broker.kill()


async def converse(tunnel: Bench, *, websocket: bool, version: int) -> None:
    """Two devices: small messages, large ones, many."""
    listener, speaker = (Phone(tunnel, name, websocket=websocket, version=version) for name in ("ear", "mouth"))
    try:
        assert await listener.connect() == "Success"
        assert await speaker.connect() == "Success"
        await listener.subscribe("t/#")
        for n in range(200):
            speaker.client.publish(f"t/{n}", b"%d" % n, qos=1)
        got = [await asyncio.wait_for(listener.messages.get(), 10) for _ in range(200)]
        assert got == [(f"t/{n}", b"%d" % n) for n in range(200)]
        large = bytes(range(256)) * 800
        speaker.client.publish("t/large", large, qos=1)
        assert await asyncio.wait_for(listener.messages.get(), 10) == ("t/large", large)
        assert (listener.disconnects, speaker.disconnects) == (0, 0)
    finally:
        await listener.close()
        await speaker.close()


async def test_a_target_that_is_not_allowed_is_not_dialled(tunnel: Bench, tmp_path: Path) -> None:
    broker, _ = mosquitto_behind(tmp_path)
    try:
        with tunnel.edit() as said:
            (one,) = said["tunnels"].values()
            one["mqtts"] = {"localhost": {"target": f"127.0.0.1:{broker.port}"}}
        await tunnel.start_edge()
        await tunnel.start_connector([])
        phone = Phone(tunnel, "phone")
        assert "unavailable" in (await phone.connect()).lower()
        await phone.close()
    finally:
        broker.kill()


def kill(registry: Registry, connector: Connector, number: int) -> None:
    """Break one connection, at its one end or the other."""
    ends = [one.session for one in registry] if number % 4 else [slot.session for slot in connector.slots]
    sessions = [session for session in ends if session is not None]
    if sessions:
        sessions[number % len(sessions)].abort("a test")


async def test_nobody_notices_that_a_tunnel_connection_dies(tunnel: Bench, tmp_path: Path) -> None:
    broker, websockets = mosquitto_behind(tmp_path)
    phones: list[Phone] = []
    try:
        with tunnel.edit() as said:
            (one,) = said["tunnels"].values()
            one["mqtts"] = {"localhost": {"target": f"127.0.0.1:{broker.port}"}}
        edge = await tunnel.start_edge()
        rules = [
            {"hostname": "home.example.org", "service": f"ws://127.0.0.1:{websockets}"},
            {"hostname": "localhost", "service": f"tcp://127.0.0.1:{broker.port}"},
        ]
        connector = await tunnel.start_connector(rules, connections=3)
        phones = [Phone(tunnel, f"phone-{n}", websocket=n % 2 == 1) for n in range(6)]
        for phone in phones:
            assert await phone.connect() == "Success"
            await phone.subscribe(f"to/{phones.index(phone)}")
        for round_number in range(60):
            for n, phone in enumerate(phones):
                phone.client.publish(f"to/{(n + 1) % 6}", b"%d/" % round_number + b"x" * 300 * n, qos=1)
            if round_number % 6 == 3:
                kill(edge.hub.registry, connector, round_number)
            await asyncio.sleep(0.03)
        for n, phone in enumerate(phones):
            got = [await asyncio.wait_for(phone.messages.get(), 20) for _ in range(60)]
            size = 300 * ((n - 1) % 6)
            assert [payload for _, payload in got] == [b"%d/" % r + b"x" * size for r in range(60)]
        assert [phone.disconnects for phone in phones] == [0] * 6
        assert edge.hub.resumed > 0
    finally:
        for phone in phones:
            await phone.close()
        broker.kill()


async def test_a_wrong_token_ends_the_connector_and_says_why(tunnel: Bench) -> None:
    await tunnel.start_edge()
    tunnel.token = type(tunnel.token)(
        tunnel.token.account_tag, tunnel.token.tunnel_id, b"wrong" * 8, edges=tunnel.token.edges
    )
    with pytest.raises(TokenRefused, match="the token of this tunnel is wrong"):
        await tunnel.start_connector([])


async def test_revoking_a_token_ends_its_connections(tunnel: Bench) -> None:
    edge = await tunnel.start_edge()
    connector = await tunnel.start_connector([])
    running = next(one for one in tunnel.running if one.service is connector)
    with tunnel.edit() as said:
        (one,) = said["tunnels"].values()
        one["tokens"]["1"]["revoked"] = "2026-01-01T00:00:00Z"
    with pytest.raises(TokenRefused, match="revoked"):
        await asyncio.wait_for(running.task, 20)
    assert list(edge.hub.registry) == []


async def test_rules_are_pushed_and_pushed_again(tunnel: Bench) -> None:
    async with visitor(tunnel) as session:
        with tunnel.edit() as said:
            (one,) = said["tunnels"].values()
            one["configuration"] = {"version": 1, "config": {"ingress": [{"service": "http_status:418"}]}}
        await tunnel.start_edge()
        connector = await tunnel.start_connector([])
        async with asyncio.timeout(10):
            while connector.configurations.version != 1:
                await asyncio.sleep(0.01)
        async with session.get("/") as answer:
            assert answer.status == 418
        with tunnel.edit() as said:
            (one,) = said["tunnels"].values()
            one["configuration"] = {"version": 2, "config": {"ingress": [{"service": "http_status:410"}]}}
        async with asyncio.timeout(10):
            while connector.configurations.version != 2:
                await asyncio.sleep(0.01)
        async with session.get("/") as answer:
            assert answer.status == 410


async def test_draining_lets_a_download_finish(tunnel: Bench) -> None:
    async with http_origin() as origin, visitor(tunnel) as session:
        edge = await tunnel.start_edge()
        connector = await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{origin}"}])
        async with session.get("/large?megabytes=40") as answer:
            await answer.content.readexactly(1024 * 1024)
            stopping = asyncio.create_task(tunnel.stop(connector))
            async with asyncio.timeout(5):
                while not all(one.draining for one in edge.hub.registry):
                    await asyncio.sleep(0.01)
            async with session.get("/") as refused:
                assert refused.status == 503
            rest = await answer.content.read(-1)
            assert len(rest) == 39 * 1024 * 1024
        await asyncio.wait_for(stopping, 5)


async def test_figures_are_under_the_names_that_dashboards_know(tunnel: Bench) -> None:
    await tunnel.start_edge()
    port = free_port()
    connector = await tunnel.start_connector([], metrics=f"127.0.0.1:{port}")
    async with asyncio.timeout(5):
        while connector.ready_connections < 2:
            await asyncio.sleep(0.01)
    async with aiohttp.ClientSession(base_url=f"http://127.0.0.1:{port}") as session:
        async with session.get("/ready") as answer:
            assert json.loads(await answer.text()) == {
                "status": 200, "readyConnections": 2, "connectorId": str(connector.client_id)
            }  # fmt: skip
        async with session.get("/metrics") as answer:
            text = await answer.text()
        assert "cloudflared_tunnel_ha_connections 2" in text
        assert 'server_locations{connection_id="0",edge_location="EDGE"} 1' in text
        async with session.get("/config") as answer:
            assert (await answer.json(content_type=None))["config"]["ingress"][0]["service"] == "http_status:404"
        async with session.get("/nothing") as answer:
            assert answer.status == 404


async def test_the_edge_follows_the_log_of_a_connector(tunnel: Bench) -> None:
    edge = await tunnel.start_edge()
    connector = await tunnel.start_connector([])
    name = str(connector.client_id)
    lines: list[dict[str, object]] = []

    async def until_told(text: str) -> None:
        async with asyncio.timeout(10):
            while not any(text in str(line["message"]) for line in lines):
                logging.getLogger("lockgate.test").warning("%s", text)
                last = lines[-1]["number"] if lines else 0
                said = edge.answers()["log"]({"tunnel": "home", "after": json.dumps({name: last}), "level": "info"})
                lines.extend(said["connectors"][name])  # type: ignore[index]
                await asyncio.sleep(0.05)

    await until_told("a first word")
    await until_told("and another")
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    assert {str(line["level"]) for line in lines} <= {"info", "warn", "error"}
    assert edge.answers()["log"]({"tunnel": "nowhere"}) == {"error": "there is no tunnel 'nowhere'"}


def route_to(tunnel: Bench, host: str) -> None:
    with tunnel.edit() as said:
        (one,) = said["tunnels"].values()
        one["hosts"][host] = {}


async def test_nobody_outside_asks_a_connector_itself(tunnel: Bench) -> None:
    async with visitor(tunnel) as session:
        await tunnel.start_edge()
        await tunnel.start_connector([])
        async with session.get("/ping", headers={"Host": HOST}) as answer:
            assert answer.status == 404
        with pytest.raises(ConfigError, match="management"):
            route_to(tunnel, HOST)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\xff\x7f", b"\x16\x03\x01" * 100, b"\0" * 5000]
)
async def test_hostile_bytes_at_each_door_harm_nobody(tunnel: Bench, said: bytes) -> None:
    async with http_origin() as origin, visitor(tunnel) as session:
        with tunnel.edit() as file:
            (one,) = file["tunnels"].values()
            one["mqtts"] = {"localhost": {"target": "127.0.0.1:1"}}
        await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{origin}"}])
        context = tunnel.context()
        for port in (tunnel.tunnel_port, tunnel.https_port, tunnel.mqtts_port):
            for tls in (True, False):
                reader, writer = await asyncio.open_connection("localhost", port, ssl=context if tls else None)
                writer.write(said)
                with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                    writer.write_eof() if not tls else None
                    await asyncio.wait_for(reader.read(), 12)
                writer.close()
        async with session.get("/") as answer:
            assert answer.status == 200
