"""POST of JSON arrays, or of a body of one's own for each message."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import aiohttp

from lockgate.buffer import Row
from lockgate.config.errors import ConfigError
from lockgate.config.model import HttpBodyConfig, HttpSinkConfig, SinkConfig
from lockgate.config.secrets import first_line_text
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import Sent, halve
from lockgate.forwarder.sinks.bodies import Body, Unfit
from lockgate.forwarder.sinks.compression import Compress, compressor

log = logging.getLogger(__name__)

# Refusals that say nothing about the message: our URL or credentials, or the moment, are wrong. A person or time mends
# them, and until then every message waits rather than end as a dead letter.
_NOT_THE_MESSAGE: Final = frozenset({401, 403, 404, 405, 407, 408, 421, 425, 426, 429})
_PERHAPS_THE_MESSAGE: Final = frozenset({500, 501})  # a receiver that fails over what is in it, or altogether
_UNSUPPORTED_MEDIA_TYPE: Final = 415
_REASON_BYTES: Final = 300  # of the receiver's answer, kept with a dead letter


class PostSink:
    """POST of a batch; 2xx is delivered. A 4xx about the content splits the batch until the message is found."""

    def __init__(
        self, config: SinkConfig, messages: Messages, url: str, compression: str, *, method: str = "POST"
    ) -> None:
        self.messages = messages
        self._method = method
        self._config = config
        self._url = url
        self._session: aiohttp.ClientSession | None = None
        self._compression = compression
        self._compress: Compress | None = compressor(compression)

    def body(self, rows: Sequence[Row]) -> bytes:
        raise NotImplementedError

    def headers(self, rows: Sequence[Row]) -> dict[str, str]:
        raise NotImplementedError

    async def send(self, rows: Sequence[Row]) -> Sent:
        try:
            status, answer = await self._post(rows)
        except ConfigError as error:  # a file with a secret that is not there may come
            return Sent(0, fault=str(error))
        if status == _UNSUPPORTED_MEDIA_TYPE and self._compress is not None:
            log.warning("sink %s: the receiver does not take %s", self._config.name, self._compression)
            self._compress = None
            return await self.send(rows)
        if 200 <= status < 300:
            return Sent(len(rows))
        if not 400 <= status < 500 or status in _NOT_THE_MESSAGE:
            return Sent(0, fault=answer, answered=status in _PERHAPS_THE_MESSAGE)
        return await halve(self.send, rows, answer)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, rows: Sequence[Row]) -> tuple[int, str]:
        """Give the status and what a person is told about it; status 0 when there was no answer."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._config.timeout_seconds)
            self._session = aiohttp.ClientSession(timeout=timeout)
        body, headers = self.body(rows), self.headers(rows)
        if self._compress is not None:
            headers["Content-Encoding"] = self._compression
            body = await asyncio.to_thread(self._compress, body)
        try:
            async with self._session.request(
                self._method, self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                text = (await response.content.read(_REASON_BYTES)).decode(errors="replace").strip()
                return response.status, f"HTTP {response.status} {response.reason or ''}".rstrip() + (
                    f": {text}" if text else ""
                )
        except TimeoutError:
            return 0, f"no answer within {self._config.timeout_seconds:g} seconds"
        except (aiohttp.ClientError, OSError) as error:
            return 0, str(error) or type(error).__name__


class HttpSink(PostSink):
    """One JSON array for a batch, `Idempotency-Key: gateway-id/first-last`."""

    content_type = "application/json"

    def __init__(self, config: HttpSinkConfig, messages: Messages) -> None:
        super().__init__(config, messages, config.url, config.compression, method=config.method)
        self._own_headers = dict(config.headers)
        self._header_files = config.header_files

    def body(self, rows: Sequence[Row]) -> bytes:
        return self.messages.documents(rows, b"[", b",", b"]")

    def key(self, rows: Sequence[Row]) -> str:
        """By which the receiver knows a request that comes again."""
        return f"{self.messages.gateway_id}/{rows[0].seq}-{rows[-1].seq}"

    def headers(self, rows: Sequence[Row]) -> dict[str, str]:
        """Raises ConfigError for a file with a secret; it is read each time, for a token may have been renewed."""
        secrets = {name: self._own_headers.get(name, "") + first_line_text(path) for name, path in self._header_files}
        return self._own_headers | secrets | {"Content-Type": self.content_type, "Idempotency-Key": self.key(rows)}


class OwnBodySink(HttpSink):
    """A request for each message, with the body the configuration writes; `Idempotency-Key` is the message's id."""

    def __init__(self, config: HttpSinkConfig, body: HttpBodyConfig, messages: Messages) -> None:
        super().__init__(config, messages)
        self._body = Body(body, messages)
        self.content_type = self._body.content_type

    async def send(self, rows: Sequence[Row]) -> Sent:
        poison: dict[int, str] = {}
        for settled, row in enumerate(rows):
            try:
                sent = await super().send([row])
            except Unfit as error:
                sent = Sent(1, {row.seq: str(error)})
            poison.update(sent.poison)
            if sent.fault is not None:
                return Sent(settled, poison, sent.fault, sent.answered)
        return Sent(len(rows), poison)

    def body(self, rows: Sequence[Row]) -> bytes:
        return self._body.of(rows[0])

    def key(self, rows: Sequence[Row]) -> str:
        return self.messages.id_of(rows[0])
