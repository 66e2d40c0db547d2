"""Every way to a Server, through our own doors: TCP, Unix socket, TLS, WebSocket, proxy, and several at once."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lockgate.client import Client, ConnectionLost, Endpoint, Proxy
from lockgate.config.model import ConnectionConfig, ListenerConfig, TlsConfig
from lockgate.transport.tls_client import ClientTls, TlsSetupError
from tests.support.certificates import Authority
from tests.support.peers import free_port
from tests.support.socks import SocksProxy
from tests.support.wires import serving


@dataclasses.dataclass
class Doors:
    """The same broker behind several listeners."""

    authority: Authority
    plain: int
    tls: int
    mutual: int
    web: int
    web_tls: int
    unix: str

    @property
    def trust(self) -> ClientTls:
        return ClientTls(cafile=self.authority.cafile)


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    authority = Authority(tmp_path)
    certfile, keyfile = authority.issue("server", "localhost")
    tls = TlsConfig(certfile=certfile, keyfile=keyfile)
    mutual = dataclasses.replace(tls, cafile=authority.cafile, require_certificate=True)
    ports = [free_port() for _ in range(5)]
    unix = tmp_path / "s"

    def listener(port: int, tls: TlsConfig | None = None, websockets: bool = False) -> ListenerConfig:
        return ListenerConfig(port=port, address="127.0.0.1", tls=tls, websockets=websockets)

    async with serving(
        listener(ports[0]),
        listener(ports[1], tls),
        listener(ports[2], mutual),
        listener(ports[3], websockets=True),
        listener(ports[4], tls, True),
        ListenerConfig(port=0, path=unix),
    ):
        plain, secure, mutual_port, web, web_secure = ports
        yield Doors(authority, plain, secure, mutual_port, web, web_secure, str(unix))


async def round_trip(endpoint: Endpoint) -> None:
    """A message out and back, larger than a TLS record and a frame with a short length."""
    payload = bytes(range(256)) * 400
    async with (
        asyncio.timeout(10),
        Client(ConnectionConfig(client_id="c"), endpoint=endpoint, clean_start=True) as client,
    ):
        await client.subscribe([("t", 1)])
        await client.publish("t", payload, 1)
        async for message in client.messages():
            assert message.payload == payload
            break


@pytest.mark.parametrize("way", ["plain", "tls", "mutual", "web", "web over tls", "unix", "bound"])
async def test_messages_pass_by_every_way(doors: Doors, way: str) -> None:
    certfile, keyfile = doors.authority.issue("device", common_name="device")
    ways = {
        "plain": Endpoint(port=doors.plain),
        "tls": Endpoint(port=doors.tls, tls=doors.trust),
        "mutual": Endpoint(
            port=doors.mutual, tls=dataclasses.replace(doors.trust, certfile=certfile, keyfile=keyfile, alpn=("mqtt",))
        ),
        "web": Endpoint(port=doors.web, websocket_path="/mqtt"),
        "web over tls": Endpoint(port=doors.web_tls, tls=doors.trust, websocket_path="/"),
        "unix": Endpoint(unix=doors.unix),
        "bound": Endpoint(port=doors.plain, bind="127.0.0.2", nodelay=False),
    }
    await round_trip(ways[way])


@pytest.mark.parametrize("login", [None, ("ann", "se:cr@t")])
async def test_a_proxy_connects_by_name_and_everything_else_goes_through_it(
    doors: Doors, login: tuple[str, str] | None
) -> None:
    async with SocksProxy(login).running() as socks:
        proxy = Proxy("127.0.0.1", socks.port, *(login or ()))
        await round_trip(Endpoint(port=doors.plain, proxy=proxy))
        await round_trip(Endpoint(port=doors.web_tls, tls=doors.trust, websocket_path="/", proxy=proxy))
        assert socks.asked == [("localhost", doors.plain), ("localhost", doors.web_tls)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("no trust", "certificate is not accepted"),
        ("wrong name", "certificate is not accepted.*127.0.0.1"),
        ("plain port", "within the handshake below MQTT"),
        ("no websocket", "within the handshake below MQTT"),
        ("login", "wants a login"),
        ("wrong login", "refused user name or password"),
        ("nobody there", "connection refused"),
    ],
)
async def test_what_stands_in_the_way_is_told(doors: Doors, change: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    stranger = Authority(tmp_path / "stranger")
    async with SocksProxy(("ann", "right")).running() as locked, SocksProxy().running() as free:
        endpoints = {
            "no trust": Endpoint(port=doors.tls, tls=ClientTls(cafile=stranger.cafile)),
            "wrong name": Endpoint(host="127.0.0.1", port=doors.tls, tls=doors.trust),
            "plain port": Endpoint(port=doors.plain, tls=doors.trust),
            "no websocket": Endpoint(port=doors.plain, websocket_path="/"),
            "login": Endpoint(port=doors.plain, proxy=Proxy("127.0.0.1", locked.port)),
            "wrong login": Endpoint(port=doors.plain, proxy=Proxy("127.0.0.1", locked.port, "ann", "wrong")),
            "nobody there": Endpoint(port=free_port(), proxy=Proxy("127.0.0.1", free.port)),
        }
        client = Client(ConnectionConfig(client_id="c"), endpoint=endpoints[change], clean_start=True)
        with pytest.raises(ConnectionLost, match=told):
            async with asyncio.timeout(10):
                await client.connect(retry=False)


async def test_insecure_takes_another_host_name_but_no_other_authority(doors: Doors) -> None:
    insecure = dataclasses.replace(doors.trust, insecure=True)
    await round_trip(Endpoint(host="127.0.0.1", port=doors.tls, tls=insecure))


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certfile, keyfile = authority.issue("a")
    _, other = authority.issue("b")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no certificate")
    for tls, what in (
        (ClientTls(cafile=tmp_path / "missing"), "cafile"),
        (ClientTls(cafile=nonsense), "cafile"),
        (ClientTls(capath=nonsense), "capath"),
        (ClientTls(certfile=certfile, keyfile=other), "keyfile"),
        (ClientTls(certfile=certfile, keyfile=tmp_path / "missing"), "keyfile"),
        (ClientTls(certfile=nonsense), "certfile"),
        (ClientTls(ciphers="NO-SUCH"), "ciphers"),
        (ClientTls(keylog=tmp_path / "no" / "folder"), "keylog"),
    ):
        with pytest.raises(TlsSetupError) as error:
            tls.context()
        assert error.value.what == what
    keylog = tmp_path / "keys"
    assert ClientTls(certfile=certfile, keyfile=keyfile, keylog=keylog).context() is not None


@pytest.mark.parametrize("bridge", [False, True])
async def test_version_3_1_and_the_bridge_bit_are_said_in_connect(bridge: bool) -> None:
    connects: asyncio.Queue[bytes] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connects.put_nowait(await reader.read(1000))
        writer.write(b"\x20\x02\x00\x00")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        endpoint = Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        connection = ConnectionConfig(client_id="c", version="3.1")
        async with Client(connection, endpoint=endpoint, username="ann", password=b"pw", bridge=bridge):
            connect = await connects.get()
    assert connect[2:12] == b"\x00\x06MQIsdp" + bytes((0x83 if bridge else 3, 0xC0))
    assert connect.endswith(b"\x00\x01c\x00\x03ann\x00\x02pw")
