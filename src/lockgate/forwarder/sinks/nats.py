"""Messages of a stream of NATS JetStream, each with `Nats-Msg-Id`."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Sequence
from typing import Any, Final

import orjson

from lockgate.buffer import Row
from lockgate.config.errors import ConfigError
from lockgate.config.libraries import library
from lockgate.config.model import NatsSinkConfig
from lockgate.config.secrets import first_line_text
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import Sent

_NO_SUBJECT: Final = re.compile(r"[^!-~]|[.*>%]")
_NO_RESPONDERS: Final = "503"
_TOO_LARGE: Final = 10054  # JetStream's error code: message size exceeds maximum allowed


class _Refused(str):
    """Why a message will never be stored."""


class NatsSink:
    """The payload as it is under a subject made of the topic; delivered when the stream has said where it put it.

    The publishes of a batch go out together and are acknowledged one by one. What is sent again within the stream's
    duplicate window is stored once.
    """

    def __init__(self, config: NatsSinkConfig, messages: Messages) -> None:
        self._nats = library("nats", "nats", f"sinks.{config.name}")
        self._config = config
        self._messages = messages
        self._client: Any = None
        self._inbox = ""  # where acknowledgements come to
        self._sent = 0
        self._waiting: dict[str, asyncio.Future[str | None]] = {}

    async def send(self, rows: Sequence[Row]) -> Sent:
        timeout = self._config.timeout_seconds
        poison: dict[int, str] = {}
        try:
            async with asyncio.timeout(timeout):
                client = await self._connected()
                answers = [await self._publish(client, row) for row in rows]
                for settled, (row, answer) in enumerate(zip(rows, answers, strict=True)):
                    problem = await answer
                    if isinstance(problem, _Refused):
                        poison[row.seq] = problem
                    elif problem is not None:
                        return Sent(settled, poison, problem)
            return Sent(len(rows), poison)
        except TimeoutError:
            await self.close()
            return Sent(0, fault=f"no acknowledgement within {timeout:g} seconds")
        except (self._nats.errors.Error, ConfigError, OSError, ValueError) as error:
            await self.close()
            return Sent(0, fault=str(error) or type(error).__name__)
        finally:
            self._waiting.clear()

    async def _publish(self, client: Any, row: Row) -> asyncio.Future[str | None]:
        """Send one message; gives what the stream will say: nothing, or why not."""
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._sent += 1
        self._waiting[str(self._sent)] = answer
        headers = {"Nats-Msg-Id": self._messages.id_of(row), "Lockgate-Class": row.message_class}
        subject = self._config.subject_prefix + subject_of(row.topic)
        try:
            await client.publish(subject, row.payload, reply=f"{self._inbox}.{self._sent}", headers=headers)
        except self._nats.errors.MaxPayloadError as error:
            answer.set_result(_Refused(error))
        return answer

    async def _answered(self, message: Any) -> None:
        answer = self._waiting.pop(message.subject.rpartition(".")[2], None)
        if answer is None or answer.done():
            return
        if (message.headers or {}).get("Status") == _NO_RESPONDERS:
            answer.set_result(f"no stream takes the subjects {self._config.subject_prefix}…")
            return
        try:
            said = orjson.loads(message.data)
            error = said.get("error")
            if error is None:
                answer.set_result(None if said.get("stream") else "an acknowledgement that names no stream")
            else:
                text = f"{error.get('description')} ({error.get('err_code')})"
                answer.set_result(_Refused(text) if error.get("err_code") == _TOO_LARGE else text)
        except (orjson.JSONDecodeError, AttributeError):
            answer.set_result("an acknowledgement that is not JetStream's")

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            with contextlib.suppress(Exception):  # it is thrown away; nothing it could say matters
                async with asyncio.timeout(2):
                    await client.close()

    async def _connected(self) -> Any:
        if self._client is not None and not self._client.is_connected:
            await self.close()
        if self._client is None:
            config = self._config
            options: dict[str, object] = {}
            if config.cafile is not None:
                options["tls"] = ssl.create_default_context(cafile=str(config.cafile))
            if config.credentials is not None:
                options["user_credentials"] = str(config.credentials)
            if config.token_file is not None:
                options["token"] = first_line_text(config.token_file)

            async def ignore(_: Exception) -> None:
                """What goes wrong is told by the publish it goes wrong for."""

            self._client = await self._nats.connect(
                config.url, name="lockgate", allow_reconnect=False, error_cb=ignore,
                connect_timeout=config.timeout_seconds, **options,
            )  # fmt: skip
            self._inbox = self._client.new_inbox()
            await self._client.subscribe(f"{self._inbox}.*", cb=self._answered)
        return self._client


def subject_of(topic: str) -> str:
    """The subject for a topic: levels parted by dots; what a subject cannot hold, %XX; an empty level, %."""
    levels = (
        _NO_SUBJECT.sub(lambda m: "".join(f"%{byte:02X}" for byte in m[0].encode()), level)
        for level in topic.split("/")
    )
    return ".".join(level or "%" for level in levels)
