"""Who comes in through the edge, by which connector, and what the origin is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lockgate.access import hashes
from lockgate.mqtt.encoder import PINGREQ_FRAME, encode
from lockgate.mqtt.packets import V3_1_1, V5, Connect, Publish
from lockgate.transport.proxy_protocol import parse_v2
from lockgate.tunnel.connector import Connector
from lockgate.tunnel.edge_service import Edge
from lockgate.tunnel.policy import new_service_token
from tests.support.certificates import Authority
from tests.support.peers import Mosquitto, free_port
from tests.support.tunnels import NAMES, Bench, bench
from tests.system.test_tunnel import Phone, http_origin, mosquitto_behind, visitor


@pytest.fixture
async def tunnel(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as one:
        yield one


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    one = Mosquitto(tmp_path)
    yield one
    one.kill()


def settings(tunnel: Bench, **said: Any) -> None:
    """Change the one tunnel."""
    with tunnel.edit() as file:
        (one,) = file["tunnels"].values()
        one.update(said)


def devices(tunnel: Bench, **policy: Any) -> None:
    with tunnel.edit() as file:
        file["devices"] = {"sensors": policy}


class Raw:
    """A device of few words, over TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, tunnel: Bench, connect: Connect, name: str = "localhost") -> Raw:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", tunnel.mqtts_port, ssl=tunnel.context(), server_hostname=name
        )
        writer.write(encode(connect, connect.version))
        return cls(reader, writer)

    async def read(self, count: int, seconds: float = 10) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), seconds)

    async def until_closed(self) -> bytes:
        """What came before it was closed; TimeoutError where it is not."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            return await asyncio.wait_for(self.reader.read(-1), 10)
        return b""


async def test_a_user_name_leads_to_its_tunnel(tunnel: Bench, broker: Mosquitto) -> None:
    settings(tunnel, users={"home/": {"target": f"127.0.0.1:{broker.port}"}})
    await tunnel.start_edge()
    await tunnel.start_connector([], allow=(f"127.0.0.1:{broker.port}",))
    good = await Raw.connect(tunnel, Connect("d", V3_1_1, username="home/alice"))
    assert await good.read(4) == b"\x20\x02\x00\x00"
    for version, answer in ((V3_1_1, b"\x20\x02\x00\x05"), (V5, b"\x20\x03\x00\x87\x00")):
        stranger = await Raw.connect(tunnel, Connect("d", version, username="away/alice"))
        assert await stranger.until_closed() == answer
    good.writer.close()


async def test_a_refused_device_costs_no_stream(tunnel: Bench, broker: Mosquitto) -> None:
    (tunnel.tunnels_file.parent / "passwords").write_text(f"alice:{hashes.make(b'right', 'sha512-pbkdf2')}\n")
    devices(tunnel, password_file="passwords", client_ids=["%u-*"])
    settings(tunnel, mqtts={"localhost": {"target": f"127.0.0.1:{broker.port}", "devices": "sensors"}})
    edge = await tunnel.start_edge()
    connector = await tunnel.start_connector([], allow=(f"127.0.0.1:{broker.port}",))
    for connect, answer in (
        (Connect("alice-1", V3_1_1, username="alice", password=b"wrong"), b"\x20\x02\x00\x04"),
        (Connect("alice-1", V5, username="alice", password=b"wrong"), b"\x20\x03\x00\x86\x00"),
        (Connect("bob-1", V3_1_1, username="alice", password=b"right"), b"\x20\x02\x00\x02"),
        (Connect("bob-1", V5, username="alice", password=b"right"), b"\x20\x03\x00\x85\x00"),
    ):
        refused = await Raw.connect(tunnel, connect)
        assert await refused.until_closed() == answer
    assert connector.streams.counts.requests == 0
    good = await Raw.connect(tunnel, Connect("alice-1", V3_1_1, username="alice", password=b"right"))
    assert await good.read(4) == b"\x20\x02\x00\x00"
    assert connector.streams.counts.requests == 1
    good.writer.close()
    await tunnel.stop(edge)
    lines = [json.loads(line) for line in (tunnel.gateway.data_dir / "edge/audit/audit-00000001.jsonl").open()]
    assert [line["event"] for line in lines].count("refused") == 4
    assert [(line["who"], line["tunnel"]) for line in lines if line["event"] == "end"] == [("alice", "home")]


@pytest.mark.parametrize("websocket", [True, False], ids=["WSS", "MQTTS"])
async def test_what_a_device_may_not_say_stays_outside(tunnel: Bench, broker: Mosquitto, websocket: bool) -> None:
    devices(tunnel, publish=["ok/#"], subscribe=["#"])
    where = {"devices": "sensors"}
    target = f"127.0.0.1:{broker.port}"
    settings(tunnel, hosts={"home.example.org": where}, mqtts={"localhost": {"target": target, **where}})
    await tunnel.start_edge()
    rules = [{"hostname": "home.example.org", "service": f"tcp://{target}"}]
    await tunnel.start_connector(rules)
    phone = Phone(tunnel, "phone", websocket=websocket)
    try:
        assert await phone.connect() == "Success"
        phone.client.subscribe("#", qos=1)
        phone.client.publish("bad/topic", b"1", qos=1)
        phone.client.publish("ok/topic", b"2", qos=1)
        assert await asyncio.wait_for(phone.messages.get(), 10) == ("ok/topic", b"2")
        assert phone.messages.empty()
        assert phone.disconnects == 0
    finally:
        await phone.close()


async def figures(port: int) -> dict[str, float]:
    """What a connector's /metrics says."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = [line.rpartition(" ") for line in (await answer.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def test_calls_and_dialling_have_the_histograms_that_dashboards_know(tunnel: Bench, broker: Mosquitto) -> None:
    there, gone = f"127.0.0.1:{broker.port}", f"127.0.0.1:{free_port()}"
    settings(tunnel, mqtts={"localhost": {"target": there}, "home.example.org": {"target": gone}})
    await tunnel.start_edge()
    port = free_port()
    await tunnel.start_connector([], allow=(there, gone), connections=1, metrics=f"127.0.0.1:{port}")
    for name, answer in (("localhost", b"\x20\x02\x00\x00"), ("home.example.org", b"\x20\x02\x00\x03")):
        device = await Raw.connect(tunnel, Connect("d", V3_1_1), name)
        assert await device.read(4) == answer
        device.writer.close()
    said = await figures(port)
    connect = "cloudflared_proxy_connect_"
    buckets = [value for name, value in said.items() if name.startswith(f"{connect}latency_bucket")]
    assert len(buckets) == 9
    assert buckets == sorted(buckets)
    assert said[f'{connect}latency_bucket{{le="5000"}}'] == said[f"{connect}latency_count"] == 1
    assert 0 < said[f"{connect}latency_sum"] < 5000
    assert said[f"{connect}streams_errors"] == 1
    for method in ("register_connection", "update_local_configuration"):
        label = f'handler="registration",method="{method}"'
        assert said[f"cloudflared_rpc_client_operations{{{label}}}"] == 1
        assert said[f"cloudflared_rpc_client_failures{{{label}}}"] == 0
        assert said[f'cloudflared_rpc_client_latency_secs_bucket{{{label},le="+Inf"}}'] == 1
    assert said["cloudflared_config_local_config_pushes"] == 1
    assert said["cloudflared_config_local_config_pushes_errors"] == 0


async def lose_connection(edge: Edge, connector: Connector) -> Callable[[], None]:
    """Break a connector's one connection; it finds no edge until what is given is called."""

    async def away(_: object) -> Any:
        raise OSError("the edge cannot be reached")

    resolve, connector.resolve = connector.resolve, away  # type: ignore[method-assign, assignment]
    session = connector.slots[0].session
    assert session is not None
    session.abort("a test")
    async with asyncio.timeout(5):
        while list(edge.hub.registry):
            await asyncio.sleep(0.01)
    return lambda: setattr(connector, "resolve", resolve)


async def test_pings_are_answered_while_there_is_no_connection(tunnel: Bench, broker: Mosquitto) -> None:
    settings(tunnel, mqtts={"localhost": {"target": f"127.0.0.1:{broker.port}"}})
    edge = await tunnel.start_edge()
    connector = await tunnel.start_connector([], allow=(f"127.0.0.1:{broker.port}",), connections=1)
    device = await Raw.connect(tunnel, Connect("d", V3_1_1, keep_alive=60))
    assert await device.read(4) == b"\x20\x02\x00\x00"
    device.writer.write(PINGREQ_FRAME)
    assert await device.read(2) == b"\xd0\x00"  # the broker's
    come_back = await lose_connection(edge, connector)
    said = encode(Publish("t", b"in the gap", qos=1, packet_id=7), V3_1_1)
    device.writer.write(PINGREQ_FRAME + said[:5])
    assert await device.read(2) == b"\xd0\x00"  # the edge's: there is nobody else
    device.writer.write(said[5:] + PINGREQ_FRAME)
    assert await device.read(2) == b"\xd0\x00"
    come_back()
    assert await device.read(4, 20) == b"\x40\x02\x00\x07"
    device.writer.write(PINGREQ_FRAME)
    assert await device.read(2) == b"\xd0\x00"
    device.writer.close()


async def test_devices_of_a_stopped_connector_come_back_by_another_one_at_once(
    tunnel: Bench, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockgate.tunnel.conduit.GAP_SECONDS", 3600.0)
    target = f"127.0.0.1:{broker.port}"
    settings(tunnel, mqtts={"localhost": {"target": target}})
    edge = await tunnel.start_edge()
    old = await tunnel.start_connector([], allow=(target,), grace_seconds=0.1)
    device = await Raw.connect(tunnel, Connect("d", V3_1_1))
    assert await device.read(4) == b"\x20\x02\x00\x00"
    new = await tunnel.start_connector([], allow=(target,))  # elsewhere: its figures have another port
    await tunnel.stop(old)
    assert await device.until_closed() == b""
    device = await Raw.connect(tunnel, Connect("d", V3_1_1))
    assert await device.read(4) == b"\x20\x02\x00\x00"
    assert {one.client_id for one in edge.hub.registry} == {new.client_id.bytes}
    device.writer.close()


async def test_a_websocket_without_a_policy_has_its_pings_answered_as_well(tunnel: Bench, tmp_path: Path) -> None:
    broker, websockets = mosquitto_behind(tmp_path)
    edge = await tunnel.start_edge()
    rules = [{"hostname": "home.example.org", "service": f"ws://127.0.0.1:{websockets}"}]
    connector = await tunnel.start_connector(rules, connections=1)
    phone = Phone(tunnel, "phone", websocket=True)
    pings: asyncio.Queue[str] = asyncio.Queue()

    def note(_client: object, _userdata: object, _level: int, line: str) -> None:
        if "PING" in line:
            phone.loop.call_soon_threadsafe(pings.put_nowait, line.partition(" ")[2])

    async def ping() -> None:
        async with asyncio.timeout(10):
            while await pings.get() != "PINGREQ":
                pass
            assert await pings.get() == "PINGRESP"

    try:
        phone.client.on_log = note
        assert await phone.connect() == "Success"
        await phone.subscribe("t")
        phone.client._keepalive = 2  # the broker, which hears nothing in the gap, was told of a longer one
        await ping()  # the broker answers
        come_back = await lose_connection(edge, connector)
        await ping()  # the edge does: there is nobody else
        phone.client.publish("t", b"in the gap", qos=1)
        come_back()
        assert await asyncio.wait_for(phone.messages.get(), 20) == ("t", b"in the gap")
        await ping()
        assert phone.disconnects == 0
    finally:
        await phone.close()
        broker.kill()


async def test_the_broker_is_told_where_a_device_is(tunnel: Bench) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(16)
        heard.put_nowait(head + await reader.readexactly(int.from_bytes(head[14:16], "big")))
        writer.close()

    server = await asyncio.start_server(origin, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings(tunnel, mqtts={"localhost": {"target": target}})
    await tunnel.start_edge()
    await tunnel.start_connector([], allow=(target,), proxy_protocol=(target,))
    device = await Raw.connect(tunnel, Connect("d", V3_1_1))
    own = device.writer.get_extra_info("sockname")
    assert parse_v2(await asyncio.wait_for(heard.get(), 10)).source == f"127.0.0.1:{own[1]}"
    device.writer.close()
    server.close()


async def test_certificates_are_renewed_and_nobody_is_dropped(
    tunnel: Bench, broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockgate.tunnel.edge_service._LOOK_SECONDS", 0.05)
    settings(tunnel, mqtts={"localhost": {"target": f"127.0.0.1:{broker.port}"}})
    await tunnel.start_edge()
    await tunnel.start_connector([], allow=(f"127.0.0.1:{broker.port}",))
    before = await Raw.connect(tunnel, Connect("before", V3_1_1))
    assert await before.read(4) == b"\x20\x02\x00\x00"
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    folder = tunnel.gateway.data_dir / "edge" / "certificates"
    for source, target in zip(other.issue("public", *NAMES), ("public.pem", "public.key"), strict=True):
        source.replace(folder / target)
    tunnel.authority = other
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(ssl.SSLError):
                after = await Raw.connect(tunnel, Connect("after", V3_1_1))
                break
            await asyncio.sleep(0.05)
    assert await after.read(4) == b"\x20\x02\x00\x00"
    before.writer.write(PINGREQ_FRAME)
    assert await before.read(2) == b"\xd0\x00"
    (folder / "public.pem").write_text("no certificate")
    await asyncio.sleep(0.3)
    still = await Raw.connect(tunnel, Connect("still", V3_1_1))
    assert await still.read(4) == b"\x20\x02\x00\x00"
    for one in (before, after, still):
        one.writer.close()


async def test_replicas_share_devices_and_keep_their_own(tunnel: Bench, broker: Mosquitto) -> None:
    settings(tunnel, mqtts={"localhost": {"target": f"127.0.0.1:{broker.port}"}})
    edge = await tunnel.start_edge()
    allow = (f"127.0.0.1:{broker.port}",)
    replicas = [await tunnel.start_connector([], allow=allow, connections=1) for _ in range(2)]
    where: dict[str, list[int]] = {}
    for _ in range(2):
        for n in range(16):
            before = [one.streams.counts.requests for one in replicas]
            device = await Raw.connect(tunnel, Connect(f"device-{n}", V3_1_1))
            assert await device.read(4) == b"\x20\x02\x00\x00"
            after = [one.streams.counts.requests for one in replicas]
            where.setdefault(f"device-{n}", []).append(0 if after[0] > before[0] else 1)
            device.writer.close()
    assert all(first == second for first, second in where.values())
    assert {first for first, _ in where.values()} == {0, 1}
    await tunnel.stop(replicas[0])
    async with asyncio.timeout(5):
        while len(list(edge.hub.registry)) > 1:
            await asyncio.sleep(0.01)
    for n in range(4):
        device = await Raw.connect(tunnel, Connect(f"device-{n}", V3_1_1))
        assert await device.read(4) == b"\x20\x02\x00\x00"
        device.writer.close()


async def test_a_policy_stands_before_an_origin(tunnel: Bench) -> None:
    identifier, secret, condition = new_service_token()
    async with http_origin() as origin, visitor(tunnel) as session:
        with tunnel.edit() as file:
            file["policies"] = {"programs": {"service_token": condition}}
            (one,) = file["tunnels"].values()
            one["hosts"]["home.example.org"] = {"policy": "programs", "paths": {"/open": None}}
        await tunnel.start_edge()
        connector = await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{origin}"}])
        async with session.get("/") as answer:
            assert answer.status == 401
        assert connector.streams.counts.requests == 0
        async with session.get("/open/door") as answer:
            assert answer.status == 200
        headers = {"lockgate-client-id": identifier, "lockgate-client-secret": secret}
        async with session.get("/", headers=headers) as answer:
            assert answer.status == 200
            told = await answer.json()
        assert not [name for name in told["headers"] if name.startswith("lockgate-")]


async def test_a_tunnel_keeps_to_its_pace(tunnel: Bench) -> None:
    settings(tunnel, limits={"bytes_per_second": "1MiB"})
    async with http_origin() as origin, visitor(tunnel) as session:
        await tunnel.start_edge()
        await tunnel.start_connector([{"hostname": "home.example.org", "service": f"http://{origin}"}])
        async with session.ws_connect("/talk", max_msg_size=0) as socket:
            begin = time.monotonic()
            for _ in range(3):
                await socket.send_str("x" * 500_000)
                await socket.receive_str()
            assert time.monotonic() - begin > 0.3  # 1.5 MB each way, of which 1 MiB is at hand


async def test_streams_beyond_the_limit_of_a_tunnel_are_refused(tunnel: Bench, broker: Mosquitto) -> None:
    settings(tunnel, mqtts={"localhost": {"target": f"127.0.0.1:{broker.port}"}}, limits={"streams": 2})
    await tunnel.start_edge()
    await tunnel.start_connector([], allow=(f"127.0.0.1:{broker.port}",))
    kept = []
    for n in range(2):
        kept.append(await Raw.connect(tunnel, Connect(f"d{n}", V3_1_1)))
        assert await kept[-1].read(4) == b"\x20\x02\x00\x00"
    third = await Raw.connect(tunnel, Connect("d3", V5))
    assert await third.until_closed() == b"\x20\x03\x00\x88\x00"
    for one in kept:
        one.writer.close()
