"""QoS 1 PUBLISH to another MQTT Server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

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
    """

    def __init__(self, config: MqttSinkConfig, messages: Messages) -> None:
        self._config = config
        self._messages = messages
        self._client: Client | None = None

    async def send(self, rows: Sequence[Row]) -> Sent:
        timeout = self._config.timeout_seconds
        try:
            async with asyncio.timeout(timeout):
                client = await self._connected()
                outcomes = await asyncio.gather(*(self._publish(client, row) for row in rows), return_exceptions=True)
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
            elif isinstance(outcome, ClientError):
                return Sent(settled, poison, str(outcome), isinstance(outcome, PublishRefused))
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
            client = Client(
                self._config.connection, endpoint=endpoint, username=username, password=password, clean_start=True
            )
            await client.connect(retry=False)
            self._client = client
        return self._client

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
