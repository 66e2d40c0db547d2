"""The client and its connections, with a server that says what the test wants it to say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from lockgate.client import Client, ConnectionLost, ConnectionRefused, NotConnected, parse_url
from lockgate.config.errors import ConfigError
from lockgate.config.model import ConnectionConfig
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V5, ConnAck, Disconnect
from lockgate.mqtt.properties import Properties


async def served(answer: Callable[[int], bytes]) -> tuple[asyncio.Server, ConnectionConfig]:
    """A server that answers the n-th CONNECT with these bytes and then says nothing; b"" closes at once."""
    count = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await reader.read(1000)
        writer.write(answer(count))
        if not answer(count):
            writer.close()
        while await reader.read(1000):
            pass
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    return server, ConnectionConfig(url=url, client_id="c")


async def test_v5_the_reason_of_a_disconnect_is_told_and_the_connection_made_again() -> None:
    accepted = encode(ConnAck(), V5)
    goodbye = encode(Disconnect(reason_codes.SERVER_SHUTTING_DOWN, Properties(reason_string="tea")), V5)
    server, connection = await served(lambda n: accepted + goodbye if n == 1 else accepted)
    events: asyncio.Queue[object] = asyncio.Queue()
    async with (
        server,
        Client(
            connection, on_connected=events.put_nowait, on_disconnected=events.put_nowait, retry_min_seconds=0.01
        ) as client,
        asyncio.timeout(10),
    ):
        got = [await events.get() for _ in range(3)]
        assert got == [False, "the server disconnected: 0x8B server shutting down (tea)", False]
        assert client.connected


async def test_a_permanent_refusal_is_raised_and_a_passing_one_tried_again() -> None:
    busy, banned = encode(ConnAck(reason_codes.SERVER_BUSY), V5), encode(ConnAck(reason_codes.BANNED), V5)
    server, connection = await served(lambda n: busy if n < 3 else banned)
    async with server, asyncio.timeout(10):
        with pytest.raises(ConnectionRefused) as refused:
            await Client(connection, retry_min_seconds=0.01).connect()
    assert refused.value.reason_code == reason_codes.BANNED


async def test_a_version_3_refusal_is_understood() -> None:
    server, connection = await served(lambda _: bytes.fromhex("20020001"))
    async with server, asyncio.timeout(10):
        with pytest.raises(ConnectionRefused, match="unsupported protocol version"):
            await Client(connection).connect()


@pytest.mark.parametrize("answer", [b"\xd0\x00", b"\x20\x01\x00", b""])
async def test_a_server_that_does_not_speak_mqtt_is_an_error(answer: bytes) -> None:
    server, connection = await served(lambda _: answer)
    async with server, asyncio.timeout(10):
        with pytest.raises(ConnectionLost):
            await Client(connection).connect(retry=False)


async def test_a_server_that_is_silent_is_given_up() -> None:
    server, connection = await served(lambda n: b"\x20")  # half a CONNACK
    async with server, asyncio.timeout(10):
        with pytest.raises(TimeoutError, match="no CONNACK within 0.05 seconds"):
            await Client(connection, connect_timeout_seconds=0.05).connect(retry=False)


async def test_what_waits_ends_with_the_client() -> None:
    accepted = encode(ConnAck(), V5)
    server, connection = await served(lambda _: accepted)
    async with server, asyncio.timeout(10):
        client = Client(connection)
        await client.connect()
        publishing = asyncio.create_task(client.publish("a", b"", 1))
        hearing = asyncio.create_task(anext(client.messages(), None))
        await asyncio.sleep(0)
        await client.disconnect()
        with pytest.raises(ConnectionLost):
            await publishing
        assert await hearing is None
        with pytest.raises(ConnectionLost):
            await client.publish("a", b"", 1)


async def test_qos_0_does_not_wait_for_a_connection() -> None:
    accepted = encode(ConnAck(), V5)
    server, connection = await served(lambda n: accepted + b"\xe0\x00" if n == 1 else b"")
    lost = asyncio.Event()
    waiting = Client(connection, on_disconnected=lambda _: lost.set(), retry_min_seconds=5)
    async with server, asyncio.timeout(10), waiting as client:
        await lost.wait()
        with pytest.raises(NotConnected):
            await client.publish("a", b"")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://host", ("host", 1883, None, None)),
        ("mqtt://10.0.0.1:18830/", ("10.0.0.1", 18830, None, None)),
        ("mqtt://[fe80::1]:1884", ("fe80::1", 1884, None, None)),
        ("mqtt://ann@host", ("host", 1883, "ann", None)),
        ("mqtt://a%40b:%3A%2F%C3%A9@host", ("host", 1883, "a@b", ":/é".encode())),
    ],
)
def test_urls(url: str, expected: tuple[object, ...]) -> None:
    assert tuple(parse_url(url)) == expected


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("host:1883", "mqtt://"),
        ("http://host", "mqtt://"),
        ("mqtts://host", "mqtt://"),
        ("mqtt://", "no host"),
        ("mqtt://host:0", "1 to 65535"),
        ("mqtt://host:70000", "1 to 65535"),
        ("mqtt://host:abc", "1 to 65535"),
        ("mqtt://host/topic", "goes on"),
        ("mqtt://u:secret/x@host", "form"),
        ("mqtt://[fe80::1", "IPv6"),
    ],
)
def test_urls_that_are_wrong(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match="mqtt://") as raised:
        parse_url(url)
    assert complaint in str(raised.value)
    assert "secret" not in str(raised.value)


async def test_the_password_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set_result(await reader.read(1000))
        writer.close()

    secret = tmp_path / "secret"
    secret.write_bytes(b"from the file\r\nnot this\n")
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        url = f"mqtt://me:inline@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = Client(ConnectionConfig(url=url, client_id="c", password_file=secret))
        with pytest.raises(ConnectionLost):
            await client.connect(retry=False)
        assert (await heard).endswith(b"\0\x02me\0\x0dfrom the file")


@pytest.mark.parametrize("text", [None, "", "\nlater\n"])
def test_a_password_file_without_a_password(text: str | None, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    if text is not None:
        secret.write_text(text)
    with pytest.raises(ConfigError, match="secret: (cannot be read|has no first line)"):
        Client(ConnectionConfig(url="mqtt://me@localhost", client_id="c", password_file=secret))
