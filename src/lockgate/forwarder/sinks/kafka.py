"""Records of a topic of Kafka, acknowledged by all replicas that are in sync."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from typing import Any

from lockgate.buffer import Row
from lockgate.config.errors import ConfigError
from lockgate.config.libraries import library
from lockgate.config.model import KafkaSinkConfig
from lockgate.config.secrets import first_line_text
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import Sent


class KafkaSink:
    """The payload as it is; the key is the MQTT topic, so that each topic keeps its order, the id a header.

    The producer has one request under way for each partition, and repeats are known by their id, so it needs no right
    to be idempotent. After a fault it is thrown away with everything it held: the cursor knows what to send again.
    """

    def __init__(self, config: KafkaSinkConfig, messages: Messages) -> None:
        self._aiokafka = library("aiokafka", "kafka", f"sinks.{config.name}")
        self._errors = library("aiokafka.errors", "kafka", f"sinks.{config.name}")
        self._config = config
        self._messages = messages
        self._producer: Any = None

    async def send(self, rows: Sequence[Row]) -> Sent:
        timeout = self._config.timeout_seconds
        poison: dict[int, str] = {}
        try:
            async with asyncio.timeout(timeout):
                producer = await self._connected()
                answers: list[Any] = []
                for row in rows:
                    try:
                        answers.append(await self._put(producer, row))
                    except self._errors.MessageSizeTooLargeError as error:
                        poison[row.seq] = f"larger than the producer takes: {error}"
                        answers.append(None)
                await producer.flush()
                for settled, (row, answer) in enumerate(zip(rows, answers, strict=True)):
                    try:
                        if answer is not None:
                            await answer
                    except self._errors.MessageSizeTooLargeError as error:
                        poison[row.seq] = str(error)
                    except self._errors.KafkaError as error:
                        await self.close()
                        answered = isinstance(error, self._errors.UnknownError)  # code 87, an invalid record, is one
                        return Sent(settled, poison, str(error) or type(error).__name__, answered)
            return Sent(len(rows), poison)
        except TimeoutError:
            await self.close()
            return Sent(0, fault=f"no acknowledgement within {timeout:g} seconds")
        except (self._errors.KafkaError, ConfigError, OSError, ssl.SSLError) as error:
            await self.close()
            return Sent(0, fault=str(error) or type(error).__name__)

    async def close(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            with contextlib.suppress(Exception):  # it is thrown away; nothing it could say matters
                async with asyncio.timeout(2):
                    await producer.stop()

    async def _put(self, producer: Any, row: Row) -> Any:
        headers = [("lockgate-id", self._messages.id_of(row).encode()), ("lockgate-class", row.message_class.encode())]
        milliseconds = max(0, self._messages.wall_time(row)[0] // 1_000_000)
        return await producer.send(
            self._config.topic, row.payload, key=row.topic.encode(), timestamp_ms=milliseconds, headers=headers
        )

    async def _connected(self) -> Any:
        if self._producer is None:
            config = self._config
            options: dict[str, object] = {}
            protocol = "SASL_" if config.username is not None else ""
            protocol += "SSL" if config.tls else "PLAINTEXT"
            if config.tls:
                cafile = str(config.cafile) if config.cafile is not None else None
                options["ssl_context"] = ssl.create_default_context(cafile=cafile)
            if config.username is not None:
                password = first_line_text(config.password_file) if config.password_file is not None else ""
                options |= {"sasl_mechanism": config.mechanism, "sasl_plain_username": config.username,
                            "sasl_plain_password": password}  # fmt: skip
            producer = self._aiokafka.AIOKafkaProducer(
                bootstrap_servers=list(config.servers), client_id="lockgate", acks="all",
                request_timeout_ms=round(config.timeout_seconds * 1000), linger_ms=5, security_protocol=protocol,
                compression_type=None if config.compression == "none" else config.compression, **options,
            )  # fmt: skip
            self._producer = producer
            await producer.start()
        return self._producer
