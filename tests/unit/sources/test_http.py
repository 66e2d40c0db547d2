"""HTTP push, with the real broker: what is answered, what arrives, and what clients may not do."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lockgate.client import Client, Message
from lockgate.config.errors import ConfigError
from lockgate.config.model import (
    ConnectionConfig,
    HttpClientConfig,
    HttpRouteConfig,
    HttpSourceConfig,
)
from lockgate.config.templates import parse, parse_path
from lockgate.sources.http import HttpSource
from tests.support.certificates import Authority
from tests.support.gateway import Gateway
from tests.support.peers import free_port

WAIT = 10


def route(name: str, path: str, topic: str, **more: Any) -> HttpRouteConfig:
    return HttpRouteConfig(name=name, path=parse_path(path), topic=parse(topic), **more)


ROUTES = (
    route("readings", "/readings/{site}/{device}", "push/{site}/{device}"),
    route("raw", "/raw/{rest*}", "raw/{rest}"),
    route("hook", "/hook", "hook/{body.device.id}"),
    route("set", "/set/{name}", "set/{name}", methods=("PUT",), retain=True),
)


def _defaults(more: dict[str, Any]) -> dict[str, Any]:
    return {"listen": ("127.0.0.1", free_port()), "routes": ROUTES, "allow_anonymous": True} | more


def config(url: str, **more: Any) -> HttpSourceConfig:
    return HttpSourceConfig(
        name="push",
        connection=ConnectionConfig(url=url, client_id="push"),
        **_defaults(more),
    )


class Pushing:
    """A source that runs, a client of it, and what arrives at the broker."""

    def __init__(self, source: HttpSource, config: HttpSourceConfig, session: aiohttp.ClientSession) -> None:
        self.source = source
        self.config = config
        self.session = session
        scheme = "https" if config.certfile else "http"
        self.url = f"{scheme}://127.0.0.1:{config.listen[1]}"

    async def push(
        self, path: str, body: bytes | str | object = b"", method: str = "POST", **headers: str
    ) -> tuple[int, Mapping[str, str], Any]:
        data = (
            body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        )
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        said.setdefault("Content-Type", "application/json")
        async with self.session.request(method, self.url + path, data=data, headers=said) as answer:
            text = await answer.read()
            return answer.status, answer.headers, json.loads(text) if text else None

    async def raw(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.config.listen)
        writer.write(data)
        await writer.drain()
        return reader, writer

    def figure(self, name: str) -> Any:
        return self.source.status()[name]

    async def until_connected(self) -> None:
        async with asyncio.timeout(WAIT):
            while not self.figure("connected"):
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(config: HttpSourceConfig, connected: bool = True) -> AsyncIterator[Pushing]:
    source = HttpSource(config)
    ready = asyncio.Event()
    task = asyncio.create_task(source.run(ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, timeout=WAIT, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    connector = aiohttp.TCPConnector(ssl=False)
    async with aiohttp.ClientSession(connector=connector) as session:
        pushing = Pushing(source, config, session)
        if connected:
            await pushing.until_connected()
        try:
            yield pushing
        finally:
            waiting.cancel()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, WAIT)


class Ear:
    """A subscriber."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._messages = client.messages()

    async def next(self) -> Message:
        return await asyncio.wait_for(anext(self._messages), WAIT)

    async def some(self, count: int) -> list[tuple[str, bytes]]:
        return [(one.topic, one.payload) for one in [await self.next() for _ in range(count)]]

    async def nothing_before(self, topic: str) -> list[Message]:
        """What came before a message of our own."""
        await self._client.publish(topic, b"end", qos=1)
        came = []
        while (message := await self.next()).topic != topic:
            came.append(message)
        return came


@contextlib.asynccontextmanager
async def listening(url: str, *filters: str) -> AsyncIterator[Ear]:
    async with Client(ConnectionConfig(url=url, client_id="ear"), clean_start=True) as client:
        await client.subscribe([(one, 1) for one in (*filters, "end/#")])
        yield Ear(client)


# --- what arrives -----------------------------------------------------------------------------------------------------


async def test_an_object_becomes_a_message_as_it_stands_and_is_answered_after_the_puback(broker: Gateway) -> None:
    async with listening(broker.url, "push/#") as ear, running(config(broker.url)) as pushing:
        body = '{"value":  1.50, "of": "\u00e4"}'
        status, _, said = await pushing.push("/readings/north/t%20%C3%A41", body)
        assert (status, said) == (204, None)
        assert await ear.some(1) == [("push/north/t ä1", body.encode())]
        assert pushing.figure("published") == 1


async def test_an_array_and_lines_are_split_into_messages_in_their_order(broker: Gateway) -> None:
    async with listening(broker.url, "push/#", "hook/#") as ear, running(config(broker.url)) as pushing:
        assert (await pushing.push("/readings/a/b", [{"n": 1}, {"n": 2}, 3]))[0] == 204
        assert await ear.some(3) == [("push/a/b", b'{"n":1}'), ("push/a/b", b'{"n":2}'), ("push/a/b", b"3")]
        lines = b'{"device": {"id": "x"}, "n": 1}\r\n\n{"device": {"id": 7}}\n'
        assert (await pushing.push("/hook", lines, Content_Type="application/x-ndjson; charset=utf-8"))[0] == 204
        assert await ear.some(2) == [
            ("hook/x", b'{"device": {"id": "x"}, "n": 1}'),
            ("hook/7", b'{"device": {"id": 7}}'),
        ]


async def test_other_types_pass_as_they_are_and_a_path_may_have_many_levels(broker: Gateway) -> None:
    async with listening(broker.url, "raw/#") as ear, running(config(broker.url)) as pushing:
        assert (await pushing.push("/raw/a/b/c?x=1", b"\x00\xff", Content_Type="application/octet-stream"))[0] == 204
        assert (await pushing.push("/raw/a", b"21.5", Content_Type="text/plain"))[0] == 204
        squeezed = gzip.compress(b'{"v": 1}')
        assert (await pushing.push("/raw/z", squeezed, Content_Encoding="gzip"))[0] == 204
        assert await ear.some(3) == [("raw/a/b/c", b"\x00\xff"), ("raw/a", b"21.5"), ("raw/z", b'{"v": 1}')]


async def test_a_route_may_be_retained(broker: Gateway) -> None:
    async with running(config(broker.url)) as pushing:
        assert (await pushing.push("/set/x", b"1", method="PUT"))[0] == 204
        async with listening(broker.url, "set/#") as ear:
            assert (await ear.next()).retain


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "method", "content_type", "status", "told"),
    [
        ("/readings/a", b"{}", "POST", "application/json", 404, "no route"),
        ("/readings/a/b/", b"{}", "POST", "application/json", 404, "no route"),
        ("/readings/a/b", b"{}", "GET", "application/json", 405, "PUT"),
        ("/set/a", b"{}", "POST", "application/json", 405, "this path takes PUT"),
        ("/readings/a/%23", b"{}", "POST", "application/json", 400, "+, #, /"),
        ("/readings/a/%2B", b"{}", "POST", "application/json", 400, "+, #, /"),
        ("/readings/a/b%2Fc", b"{}", "POST", "application/json", 400, "+, #, /"),
        ("/readings/a/%00", b"{}", "POST", "application/json", 400, "control character"),
        ("/readings/a/%C2%85", b"{}", "POST", "application/json", 400, "control character"),
        ("/readings/a/%FF", b"{}", "POST", "application/json", 400, "UTF-8"),
        ("/readings//b", b"{}", "POST", "application/json", 400, "empty level"),
        ("/raw/" + "a/" * 200 + "a", b"{}", "POST", "application/json", 422, "levels"),
        ("/readings/a/b", b'{"a": NaN}', "POST", "application/json", 400, "no JSON"),
        ("/readings/a/b", b"", "POST", "application/json", 400, "no JSON"),
        ("/readings/a/b", b"[]", "POST", "application/json", 400, "no message"),
        ("/readings/a/b", b"{}\n{", "POST", "application/x-ndjson", 400, "line 2"),
        ("/readings/a/b", b"a=1", "POST", "application/x-www-form-urlencoded", 415, "application/json"),
        ("/hook", b'{"device": {}}', "POST", "application/json", 422, "device.id"),
        ("/hook", b'{"device": {"id": "a/b"}}', "POST", "application/json", 422, "+, #, /"),
        ("/hook", b'{"device": {"id": true}}', "POST", "application/json", 422, "device.id"),
        ("/hook", b'[{"device": {"id": 1}}, 1]', "POST", "application/json", 422, "message 2"),
        ("/readings/a/b", b"[0,0,0,0]", "POST", "application/json", 413, "at most 3 messages"),
        ("/readings/a/b", b'"' + b"x" * 2000 + b'"', "POST", "application/json", 413, "at most 1000 bytes"),
    ],
)  # fmt: skip
async def test_what_cannot_be_taken_is_told_and_none_of_it_is_published(
    broker: Gateway, path: str, body: bytes, method: str, content_type: str, status: int, told: str
) -> None:
    limited = config(broker.url, max_messages=3, max_body_bytes=1000)
    async with listening(broker.url, "push/#", "raw/#", "hook/#", "set/#") as ear, running(limited) as pushing:
        answered, _, said = await pushing.push(path, body, method, Content_Type=content_type)
        assert (answered, told in said["error"]) == (status, True), said
        assert not await ear.nothing_before("end/1")
        assert pushing.figure("answers") == {str(status): 1}


async def test_a_body_that_grows_beyond_its_limit_when_decompressed_is_refused(broker: Gateway) -> None:
    async with running(config(broker.url, max_body_bytes=10_000)) as pushing:
        bomb = gzip.compress(b'"' + b"x" * 5_000_000 + b'"')
        assert len(bomb) < 10_000
        assert (await pushing.push("/raw/a", bomb, Content_Encoding="gzip"))[0] == 413
        assert (await pushing.push("/raw/a", b"1"))[0] == 204


async def test_a_body_in_chunks_without_an_end_is_refused_at_its_limit(broker: Gateway) -> None:
    async with running(config(broker.url, max_body_bytes=1000)) as pushing:
        head = b"POST /raw/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        reader, writer = await pushing.raw(head + b"3e8\r\n" + b"x" * 1000 + b"\r\n" + b"1\r\nx\r\n")
        assert (await asyncio.wait_for(reader.readline(), WAIT)).startswith(b"HTTP/1.1 413 ")
        writer.close()


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clients(tmp_path: Path) -> tuple[HttpClientConfig, ...]:
    (tmp_path / "plant").write_text("s3cret\n")
    (tmp_path / "meter").write_text("other: ü\r\nmore\n", "utf-8")
    return (
        HttpClientConfig(name="plant", secret_file=tmp_path / "plant"),
        HttpClientConfig(name="meter", secret_file=tmp_path / "meter", routes=("raw",)),
    )


def basic(name: str, secret: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{secret}'.encode()).decode()}"


async def test_a_secret_lets_in_as_a_token_or_as_a_password_and_to_its_routes(
    broker: Gateway, clients: tuple[HttpClientConfig, ...]
) -> None:
    async with running(config(broker.url, allow_anonymous=False, clients=clients)) as pushing:

        async def status(path: str, authorization: str = "", method: str = "POST") -> int:
            headers = {"Authorization": authorization} if authorization else {}
            return (await pushing.push(path, b"1", method, **headers))[0]

        assert await status("/raw/a") == 401
        assert await status("/raw/a", "Bearer s3cret") == 204
        assert await status("/raw/a", "bearer  s3cret") == 204
        assert await status("/raw/a", "Bearer s3cre") == 401
        assert await status("/raw/a", "Bearer") == 401
        assert await status("/raw/a", basic("plant", "s3cret")) == 204
        assert await status("/raw/a", basic("meter", "s3cret")) == 401
        assert await status("/raw/a", "Basic !!!") == 401
        meter = basic("meter", "other: ü")
        assert await status("/raw/a", meter) == 204
        assert await status("/set/a", meter, "PUT") == 403
        assert await status("/nowhere") == 401  # which routes there are is nobody's business
        assert await status("/health") == 401
        assert pushing.figure("unauthorised") == 7
        answered, headers, _ = await pushing.push("/raw/a", b"1")
        assert (answered, headers["WWW-Authenticate"]) == (401, 'Bearer, Basic realm="lockgate"')


async def test_secrets_are_read_again_and_stay_where_they_cannot_be(
    broker: Gateway, clients: tuple[HttpClientConfig, ...]
) -> None:
    async with running(config(broker.url, allow_anonymous=False, clients=clients)) as pushing:
        clients[0].secret_file.write_text("renewed\n")
        pushing.source.reread()
        assert (await pushing.push("/raw/a", b"1", Authorization="Bearer s3cret"))[0] == 401
        assert (await pushing.push("/raw/a", b"1", Authorization="Bearer renewed"))[0] == 204
        clients[0].secret_file.unlink()
        with pytest.raises(ConfigError, match="cannot be read"):
            pushing.source.reread()
        assert (await pushing.push("/raw/a", b"1", Authorization="Bearer renewed"))[0] == 204


def test_a_secret_that_cannot_be_used_is_told_without_it(tmp_path: Path, clients: tuple[HttpClientConfig, ...]) -> None:
    (tmp_path / "plant").write_text("\n")
    with pytest.raises(ConfigError, match="has no first line"):
        HttpSource(config("mqtt://localhost", clients=clients))
    (tmp_path / "plant").write_text("other: ü\n", "utf-8")
    with pytest.raises(ConfigError, match="is the secret of plant too") as caught:
        HttpSource(config("mqtt://localhost", clients=clients))
    assert "ü" not in str(caught.value)


# --- the broker is away -----------------------------------------------------------------------------------------------


async def test_without_the_broker_a_push_is_put_off_and_health_says_so(tmp_path: Path) -> None:
    broker = Gateway(tmp_path)
    async with running(config(broker.url), connected=False) as pushing:
        status, headers, _ = await pushing.push("/raw/a", b"1")
        assert (status, headers["Retry-After"]) == (503, "2")
        assert (await pushing.push("/health", method="GET"))[0] == 503
        with broker.running("broker"):
            await pushing.until_connected()
            assert (await pushing.push("/health", method="GET"))[0] == 200
            assert (await pushing.push("/raw/a", b"1"))[0] == 204


async def test_a_push_is_not_answered_with_success_before_the_broker_has_it(broker: Gateway) -> None:
    async with running(config(broker.url, timeout_seconds=0.5, max_requests=3)) as pushing:
        broker.freeze("broker")
        answers = await asyncio.gather(*(pushing.push("/raw/a", b"1") for _ in range(4)))
        assert [status for status, _, _ in answers] == [503] * 4
        assert sum("too many requests" in said["error"] for _, _, said in answers) == 1
        broker.kill("broker")
        broker.start("broker")
        async with asyncio.timeout(WAIT):
            while (await pushing.push("/raw/a", b"1"))[0] != 204:
                pass


# --- Idempotency-Key --------------------------------------------------------------------------------------------------


async def test_a_repeat_gets_the_same_answer_and_is_not_published_again(
    broker: Gateway, clients: tuple[HttpClientConfig, ...]
) -> None:
    one = config(broker.url, clients=clients)
    async with listening(broker.url, "raw/#") as ear, running(one) as pushing:
        for _ in range(3):
            assert (await pushing.push("/raw/a", b"1", Idempotency_Key="k1"))[0] == 204
        assert await ear.some(1) == [("raw/a", b"1")]
        status, _, said = await pushing.push("/raw/a", b"2", Idempotency_Key="k1")
        assert (status, "another request" in said["error"]) == (422, True)
        assert (await pushing.push("/raw/a", b"1", Idempotency_Key="k" * 256))[0] == 400
        # Another client's key is another key.
        assert (await pushing.push("/raw/a", b"1", Idempotency_Key="k1", Authorization="Bearer s3cret"))[0] == 204
        assert [message.payload for message in await ear.nothing_before("end/1")] == [b"1"]
        assert pushing.figure("repeated") == 2


async def test_a_key_whose_push_was_put_off_is_published_once_however_often_it_comes(broker: Gateway) -> None:
    async with running(config(broker.url, timeout_seconds=0.3)) as pushing:
        broker.freeze("broker")
        for _ in range(3):
            assert (await pushing.push("/raw/a", b"[1,2]", Idempotency_Key="k"))[0] == 503
        broker.kill("broker")
        broker.start("broker")
        await pushing.until_connected()
        async with asyncio.timeout(WAIT):
            while (await pushing.push("/raw/a", b"[1,2]", Idempotency_Key="k"))[0] != 204:
                pass
        assert pushing.figure("published") == 2


async def test_a_key_is_forgotten_after_its_time(broker: Gateway) -> None:
    async with listening(broker.url, "raw/#") as ear, running(config(broker.url, idempotency_keys=1)) as pushing:
        for key in ("a", "b", "a"):
            assert (await pushing.push("/raw/x", key, Idempotency_Key=key, Content_Type="text/plain"))[0] == 204
        assert await ear.some(3) == [("raw/x", b"a"), ("raw/x", b"b"), ("raw/x", b"a")]


# --- slow, many and hostile clients -----------------------------------------------------------------------------------


async def test_who_sends_no_whole_request_in_time_is_closed_or_told(broker: Gateway) -> None:
    async with running(config(broker.url, read_timeout_seconds=0.3)) as pushing:
        for start, answer in (
            (b"", b""),
            (b"POST /raw/a HTTP/1.1\r\nHo", b""),
            (b"POST /raw/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n123", b"HTTP/1.1 408 "),
        ):
            reader, writer = await pushing.raw(start)
            assert (await asyncio.wait_for(reader.read(), WAIT)).startswith(answer)
            writer.close()
        assert (await pushing.push("/raw/a", b"1"))[0] == 204


async def test_connections_beyond_the_limit_are_closed_and_the_others_go_on(broker: Gateway) -> None:
    async with running(config(broker.url, max_connections=3)) as pushing:
        assert (await pushing.push("/raw/a", b"1"))[0] == 204  # a connection that is kept
        held = [await pushing.raw(b"POST") for _ in range(4)]
        ends = [asyncio.create_task(reader.read()) for reader, _ in held]
        done, _ = await asyncio.wait(ends, timeout=WAIT, return_when=asyncio.FIRST_COMPLETED)
        assert done
        assert (await pushing.push("/raw/a", b"1"))[0] == 204
        for _, writer in held:
            writer.close()
        await asyncio.wait(ends)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /raw/a HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /raw/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /raw/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /raw/a HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /raw/a HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_what_is_no_http_is_answered_with_an_error_and_logs_no_traceback(
    broker: Gateway, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(config(broker.url, read_timeout_seconds=1)) as pushing:
        reader, writer = await pushing.raw(garbage)
        answer = await asyncio.wait_for(reader.read(), WAIT)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ", b"HTTP/1.1 408 ")), answer
        writer.close()
        assert (await pushing.push("/raw/a", b"1"))[0] == 204
    assert not [record for record in caplog.records if record.exc_info]


# --- TLS, ports, the broker's refusals --------------------------------------------------------------------------------


async def test_tls_with_and_without_certificates_of_clients(broker: Gateway, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certfile, keyfile = authority.issue("server", "127.0.0.1")
    context = ssl.create_default_context(cafile=authority.cafile)
    secure = config(broker.url, certfile=certfile, keyfile=keyfile)
    async with (
        running(secure) as pushing,
        pushing.session.post(f"{pushing.url}/raw/a", data=b"1", ssl=context) as answer,
    ):
        assert answer.status == 204
    async with running(replace(secure, cafile=authority.cafile)) as pushing:
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await pushing.push("/raw/a", b"1")
        context.load_cert_chain(*authority.issue("device"))
        headers = {"Content-Type": "application/json"}
        async with pushing.session.post(f"{pushing.url}/raw/a", data=b"1", ssl=context, headers=headers) as answer:
            assert answer.status == 204


def test_a_key_of_another_certificate_is_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certfile, _ = authority.issue("server", "127.0.0.1")
    _, keyfile = authority.issue("other", "127.0.0.1")
    with pytest.raises(ConfigError, match="KEY_VALUES_MISMATCH"):
        HttpSource(config("mqtt://localhost", certfile=certfile, keyfile=keyfile))
    with pytest.raises(ConfigError, match=r"sources.push.keyfile.*cannot be read"):
        HttpSource(config("mqtt://localhost", certfile=certfile, keyfile=tmp_path / "none"))


async def test_a_port_that_is_taken_is_an_error_with_its_number(broker: Gateway) -> None:
    taken = config(broker.url, listen=("127.0.0.1", broker.port))
    with pytest.raises(OSError, match="in use") as caught:
        async with running(taken):
            pass
    assert getattr(caught.value, "port", None) == broker.port


async def test_what_the_broker_does_not_allow_is_told_to_who_pushed(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic write raw/good\ntopic write sources/#\n")
    with Gateway(tmp_path, mosquitto_conf=[f"acl_file {acl}"]).running("broker") as broker:
        async with running(config(broker.url)) as pushing:
            assert (await pushing.push("/raw/good", b"1"))[0] == 204
            status, _, said = await pushing.push("/raw/bad", b"1")
            assert (status, "the broker refuses it" in said["error"]) == (403, True)
            assert pushing.figure("refused") == 1


async def test_a_user_the_broker_does_not_know_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("")
    settings = ["allow_anonymous false", f"password_file {tmp_path / 'users'}"]
    with Gateway(tmp_path, mosquitto_conf=settings).running("broker") as broker:
        source = HttpSource(config(broker.url))
        with pytest.raises(ConfigError, match=r"sources.push.url"):
            await asyncio.wait_for(source.run(lambda: None), WAIT)


async def test_the_status_is_retained_and_says_offline_when_the_source_has_gone(broker: Gateway) -> None:
    async with running(config(broker.url)), listening(broker.url, "sources/#") as ear:
        assert await ear.some(1) == [("sources/push/status", b"online")]
    async with listening(broker.url, "sources/#") as ear:
        message = await ear.next()
        assert (message.topic, message.payload, message.retain) == ("sources/push/status", b"offline", True)
