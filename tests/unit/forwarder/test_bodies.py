"""Bodies as somebody else's API wants them: what a message holds arrives as it is, whatever it is."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from lockgate.buffer import Log, Row
from lockgate.buffer.offline import letters
from lockgate.config.model import HttpBodyConfig, HttpSinkConfig
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks.bodies import Body, Unfit
from tests.support.buffers import batch
from tests.support.peers import free_port
from tests.unit.forwarder.test_forwarder import CLASSES, forwarding, log, settled, until

__all__ = ["log"]

Request = tuple[str, dict[str, str], bytes]  # method, headers, body
ROW = Row(17, 1, "boot", 0, 1_767_225_600_123_000_000, True, 1_767_225_500_000, "pumps/7", "alarm", "s", b"{}")


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    one = Api()
    await one.open()
    yield one
    await one.runner.cleanup()


class Api:
    """A service with words of its own; it refuses a body that has `refused` in it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.requests: list[Request] = []
        application = web.Application()
        application.router.add_route("*", "/v1/messages", self._take)
        self.runner = web.AppRunner(application, shutdown_timeout=0.1)

    async def open(self) -> None:
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append((request.method, dict(request.headers), body))
        return web.Response(status=422, text="not that") if b"refused" in body else web.Response(status=201)

    def sink(self, encoding: Any, content: object, **options: Any) -> HttpSinkConfig:
        return HttpSinkConfig(
            name="cloud", classes=CLASSES, url=f"http://127.0.0.1:{self.port}/v1/messages", retry_min_seconds=0.01,
            retry_max_seconds=0.05, body=HttpBodyConfig(encoding, content), **options,
        )  # fmt: skip


def of(content: object, row: Row = ROW, encoding: Any = "json") -> bytes:
    return Body(HttpBodyConfig(encoding, content), Messages("gw")).of(row)


async def test_each_message_is_a_request_in_the_words_of_the_api(tmp_path: Path, log: Log, api: Api) -> None:
    secret = tmp_path / "secret"
    secret.write_text("TOKEN\n")
    sink = api.sink(
        "json",
        {"to": ["{payload.to}"], "text": "{payload.text}!", "level": "{payload.level}", "ref": "{id}", "kind": 3},
        method="PUT",
        headers=(("Authorization", "Bearer "),),
        header_files=(("Authorization", secret),),
    )
    said = [
        '{"to": "+49 1", "text": "it says \\"no\\"\\n{topic}", "level": 97.5}',
        '{"to": 2, "text": "ü", "level": null}',
    ]
    await log.append(batch(*(one.encode() for one in said)))
    async with forwarding(tmp_path, sink) as forwarder:
        await settled(tmp_path, forwarder)
    assert [json.loads(body) for _, _, body in api.requests] == [
        {"to": ["+49 1"], "text": 'it says "no"\n{topic}!', "level": 97.5, "ref": "gw/1", "kind": 3},
        {"to": [2], "text": "ü!", "level": None, "ref": "gw/2", "kind": 3},
    ]
    assert [
        (method, headers["Authorization"], headers["Content-Type"], headers["Idempotency-Key"])
        for method, headers, _ in api.requests
    ] == [("PUT", "Bearer TOKEN", "application/json", f"gw/{seq}") for seq in (1, 2)]


async def test_a_form_is_a_form(tmp_path: Path, log: Log, api: Api) -> None:
    await log.append(batch(b'{"to": "+49 1", "text": "a&b=c%d \\u00fc", "level": 97.5}', topic="pumps/7"))
    sink = api.sink("form", {"To": "{payload.to}", "Body": "{topic}: {payload.text}", "Level": "{payload.level}"})
    async with forwarding(tmp_path, sink) as forwarder:
        await settled(tmp_path, forwarder)
    ((method, headers, body),) = api.requests
    assert (method, headers["Content-Type"]) == ("POST", "application/x-www-form-urlencoded")
    assert dict(parse_qsl(body.decode())) == {"To": "+49 1", "Body": "pumps/7: a&b=c%d ü", "Level": "97.5"}


async def test_what_lacks_a_member_and_what_is_refused_become_dead_letters_and_the_rest_arrives(
    tmp_path: Path, log: Log, api: Api
) -> None:
    await log.append(batch(b'{"text": "1"}', b'{"txt": "2"}', b'{"text": "refused"}', b"\xff", b'{"text": "5"}'))
    async with forwarding(tmp_path, api.sink("json", {"text": "{payload.text}"})) as forwarder:
        await settled(tmp_path, forwarder)
    assert [(letter.seq, letter.reason) for letter in letters(tmp_path / "buffer", "cloud")] == [
        (2, "the payload has nothing for {payload.text}"),
        (3, "HTTP 422 Unprocessable Entity: not that"),
        (4, "the payload is neither JSON nor text"),
    ]
    assert [json.loads(body)["text"] for _, _, body in api.requests] == ["1", "refused", "5"]


async def test_a_secret_that_is_not_there_is_waited_for(tmp_path: Path, log: Log, api: Api) -> None:
    secret = tmp_path / "secret"
    await log.append(batch(b"1"))
    sink = api.sink("json", "{payload}", header_files=(("X-Key", secret),))
    async with forwarding(tmp_path, sink) as forwarder:
        await until(lambda: "cannot be read" in str(forwarder.status()))
        secret.write_text("k\n")
        await settled(tmp_path, forwarder)
    assert [headers["X-Key"] for _, headers, _ in api.requests] == ["k"]


def test_every_placeholder_has_its_value() -> None:
    content = ["{topic}", "{class}", "{id}", "{gateway}", "{time}", "{time_iso}", "{device_time}", "{payload_base64}"]
    row = replace_payload(b"\xff")
    assert json.loads(of(content, row)) == [
        "pumps/7", "alarm", "gw/17", "gw", 1_767_225_600_123, "2026-01-01T00:00:00.123Z", 1_767_225_500_000,
        base64.b64encode(b"\xff").decode(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "text", "expected"),
    [
        (b'{"a": [{"b": true}]}', "{payload.a.0.b}", True),
        (b'{"a": [{"b": true}]}', "is {payload.a.0.b}", "is true"),
        (b'{"a": {"b": 1}}', "{payload.a}", {"b": 1}),
        (b'{"a": {"b": 1}}', "<{payload.a}>", '<{"b":1}>'),
        (b'{"a": null}', "<{payload.a}>", "<>"),
        (b"on", "{payload}", "on"),
        (b'"on"', "it is {payload}", "it is on"),
        (b"12", "{payload}", 12),
    ],
)
def test_a_placeholder_alone_keeps_its_type_and_within_text_is_text(payload: bytes, text: str, expected: Any) -> None:
    assert json.loads(of({"x": text}, replace_payload(payload))) == {"x": expected}


@pytest.mark.parametrize("payload", [b"[]", b"on", b'{"a": [1]}', b"12"])
def test_a_member_that_is_not_there_is_said(payload: bytes) -> None:
    with pytest.raises(Unfit, match=r"nothing for \{payload\.a\.1\}"):
        of("{payload.a.1}", replace_payload(payload))


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_arrives_as_it_was(topic: str, text: str) -> None:
    row = replace_payload(json.dumps({"t": text}).encode())._replace(topic=topic)
    assert json.loads(of({"a": "{topic}-{payload.t}"}, row)) == {"a": f"{topic}-{text}"}
    form = of({"a": "{topic}-{payload.t}"}, row, "form").decode()
    assert parse_qsl(form, keep_blank_values=True, strict_parsing=True) == [("a", f"{topic}-{text}")]


def replace_payload(payload: bytes) -> Row:
    return ROW._replace(payload=payload)
