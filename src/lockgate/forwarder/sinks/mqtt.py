"""QoS 1 PUBLISH to another MQTT Server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from lockgate.buffer import Row
from lockgate.client import (
    Client,
    ClientError,
    Endpoint,
    Properties,
    PublishRefused,
    parse_endpoint,
    reason_codes,
)
from lockgate.client.endpoints import check_tls
from lockgate.config.errors import ConfigError
from lockgate.config.model import MqttSinkConfig
from lockgate.config.secrets import first_line
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import Sent

# Refusals that are about the message, not about the moment
_POISON: Final = frozenset(
    {
        reason_codes.NOT_AUTHORIZED,
        reason_codes.TOPIC_NAME_INVALID,
        reason_codes.PACKET_TOO_LARGE,
        reason_codes.PAYLOAD_FORMAT_INVALID,
    }
)


class MqttSink:
    """The payload as it is, under `topic_prefix` + topic; the id is the User Property `lockgate-id` in version 5.

    After a fault the client is thrown away with everything it still held: the cursor knows what to send again.

    A Server of version 3.1.1 cannot say that it will not have a message; some close the connection over it. So each
    connection that is lost halves how many are under way together, until it is lost over one alone.
    """

    def __init__(self, config: MqttSinkConfig, messages: Messages) -> None:
        self._config = config
        self._messages = messages
        self._client: Client | None = None
        self._together = config.batch
        self._lost = asyncio.Event()
        self._why_lost = ""

    async def send(self, rows: Sequence[Row]) -> Sent:
        settled, poison = 0, dict[int, str]()
        while settled < len(rows):
            sent = await self._send_together(rows[settled : settled + self._together])
            settled += sent.settled
            poison.update(sent.poison)
            if sent.fault is not None:
                return Sent(settled, poison, sent.fault, sent.answered)
            self._together = min(2 * self._together, self._config.batch)
        return Sent(settled, poison)

    async def _send_together(self, rows: Sequence[Row]) -> Sent:
        timeout = self._config.timeout_seconds
        try:
            async with asyncio.timeout(timeout):
                client = await self._connected()
                outcomes = await self._publish_all(client, rows)
        except TimeoutError:
            await self.close()
            return Sent(0, fault=f"no acknowledgement within {timeout:g} seconds")
        except (ClientError, ConfigError, OSError) as error:  # a password file that is not there may come
            await self.close()
            return Sent(0, fault=str(error) or type(error).__name__)
        poison: dict[int, str] = {}
        for settled, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
            if isinstance(outcome, ValueError) or (
                isinstance(outcome, PublishRefused) and outcome.reason_code in _POISON
            ):
                poison[row.seq] = str(outcome)
            elif isinstance(outcome, PublishRefused):
                return Sent(settled, poison, str(outcome), answered=True)
            elif isinstance(outcome, ClientError):
                self._together = max(1, len(rows) // 2)
                return Sent(settled, poison, self._why_lost or str(outcome), answered=len(rows) == 1)
            elif outcome is not None:
                raise outcome
        return Sent(len(rows), poison)

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.disconnect()

    async def _connected(self) -> Client:
        """The client, if its connection still stands; else a new one."""
        if self._client is not None and not self._client.connected:
            await self.close()
        if self._client is None:
            endpoint, username, password = endpoint_of(self._config)
            self._lost.clear()
            self._why_lost = ""
            client = Client(
                self._config.connection, endpoint=endpoint, username=username, password=password, clean_start=True,
                on_disconnected=self._note_lost,
            )  # fmt: skip
            await client.connect(retry=False)
            self._client = client
        return self._client

    def _note_lost(self, why: str) -> None:
        self._why_lost = why
        self._lost.set()

    async def _publish_all(self, client: Client, rows: Sequence[Row]) -> list[BaseException | None]:
        """What became of each; the client does not live to send again on a connection of its own accord."""
        outcomes = asyncio.gather(*(self._publish(client, row) for row in rows), return_exceptions=True)
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            either: list[asyncio.Future[Any]] = [outcomes, lost]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not outcomes.done():
                await self.close()
            return await outcomes
        finally:
            outcomes.cancel()
            lost.cancel()

    async def _publish(self, client: Client, row: Row) -> None:
        properties: Properties | None = None
        if self._config.connection.version == "5":
            properties = Properties(user_properties=(("lockgate-id", self._messages.id_of(row)),))
        payload = row.payload if self._config.format == "payload" else self._messages.document(row)
        await client.publish(self._config.topic_prefix + row.topic, payload, 1, properties=properties)


def endpoint_of(config: MqttSinkConfig) -> tuple[Endpoint, str | None, bytes | None]:
    """Where the Server is, and as whom we come. Raises ConfigError, which repeats no password."""
    try:
        endpoint, address = parse_endpoint(
            config.connection.url,
            cafile=config.cafile,
            certfile=config.certfile,
            keyfile=config.keyfile,
            alpn=config.alpn,
        )
    except ValueError as error:
        raise ConfigError(str(error), key=f"sinks.{config.name}.url") from None
    try:
        check_tls(endpoint)
    except ValueError as error:
        raise ConfigError(str(error), key=f"sinks.{config.name}") from None
    password = address.password
    if config.connection.password_file is not None:
        password = first_line(config.connection.password_file)
    return endpoint, address.username, password
