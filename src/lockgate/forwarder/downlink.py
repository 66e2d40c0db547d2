"""Commands from the cloud: what an MQTT Server over there publishes for us, published at the local broker."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from lockgate.client import (
    Client,
    ClientError,
    Message,
    Properties,
    PublishRefused,
    SubscriptionRequest,
    matches,
)
from lockgate.config.errors import ConfigError
from lockgate.config.model import DownlinkConfig, MqttSinkConfig
from lockgate.forwarder.sinks.mqtt import endpoint_of

log = logging.getLogger(__name__)

_SESSION_SECONDS: Final = 7 * 24 * 3600  # how long the Server keeps commands for a gateway that is away
_RECEIVE_MAXIMUM: Final = 20
_NO_RETAINED: Final = 2  # Retain Handling: a command that was kept is none that is meant now
_RETRY_SECONDS: Final = (1.0, 60.0)
_OUR_ERROR: Final = "an error of ours, see the log"

MakeRemote = Callable[[MqttSinkConfig, str], Client]


def make_remote(config: MqttSinkConfig, client_id: str) -> Client:
    """A client of the sink's Server, whose Session is kept there between connections."""
    endpoint, username, password = endpoint_of(config)
    return Client(
        dataclasses.replace(config.connection, client_id=client_id),
        endpoint=endpoint,
        username=username,
        password=password,
        clean_start=False,
        session_expiry_seconds=_SESSION_SECONDS,
        receive_maximum=_RECEIVE_MAXIMUM,
        manual_ack=True,
    )


class Downlink:
    """Takes what `downlink` of a sink subscribes to, and passes on what [downlink] `topics` allows, nothing else.

    A command is acknowledged to the cloud when the local broker has acknowledged it, so it may come twice. One that is
    not allowed is acknowledged, counted and said.
    """

    def __init__(self, sink: MqttSinkConfig, config: DownlinkConfig, make: MakeRemote = make_remote) -> None:
        self.name = sink.name
        self._sink = sink
        self._config = config
        self._make = make
        self._counts: Counter[str] = Counter()
        self._fault: str | None = "not connected yet"
        self._remote: Client | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        pause, longest = _RETRY_SECONDS
        while True:
            try:
                await self._serve()
            except (ClientError, ConfigError, OSError) as error:
                fault = str(error) or type(error).__name__
                if self._fault is None:  # it had worked
                    pause = _RETRY_SECONDS[0]
                if fault != self._fault:
                    log.warning("downlink of sink %s: %s; trying again", self.name, fault)
                self._fault = fault
            except Exception:  # an error of ours must not stop the sinks, which run beside it
                if self._fault != _OUR_ERROR:
                    log.exception("downlink of sink %s: stopped for a reason of our own; trying again", self.name)
                self._fault = _OUR_ERROR
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, longest)

    def status(self) -> dict[str, object]:
        connected = self._remote is not None and self._remote.connected
        return {"connected": connected, "error": self._fault, **{name: self._counts[name] for name in _TERMS}}

    async def _serve(self) -> None:
        local = Client(self._config.connection, clean_start=True)
        remote = self._remote = self._make(self._sink, f"{self._sink.connection.client_id}-downlink")
        try:
            await local.connect()
            await remote.connect()
            await remote.subscribe(
                [SubscriptionRequest(one, 1, retain_handling=_NO_RETAINED) for one in self._sink.downlink]
            )
            log.info("downlink of sink %s receives %d topic filters", self.name, len(self._sink.downlink))
            self._fault = None
            async for message in remote.messages():
                await self._pass(local, message)
                if message.qos:
                    remote.acknowledge(message)
        finally:
            await asyncio.gather(remote.disconnect(), local.disconnect(), return_exceptions=True)

    async def _pass(self, local: Client, message: Message) -> None:
        prefix = self._sink.downlink_prefix
        topic = message.topic.removeprefix(prefix)
        if message.retain:
            self._counts["stale"] += 1
            return
        if not message.topic.startswith(prefix) or not any(matches(one, topic) for one in self._config.topics):
            self._counts["refused"] += 1
            log.warning("downlink of sink %s: a command for %r is not allowed", self.name, topic)
            return
        try:
            await local.publish(topic, message.payload, 1, properties=self._properties(message))
        except (PublishRefused, ValueError) as error:
            self._counts["refused"] += 1
            log.warning("downlink of sink %s: the broker refuses a command for %r: %s", self.name, topic, error)
        else:
            self._counts["passed"] += 1

    def _properties(self, message: Message) -> Properties | None:
        """What a command says of itself; where an answer goes is the business of topics here."""
        if message.properties is None or self._config.connection.version != "5":
            return None
        said = message.properties
        return Properties(
            payload_format_indicator=said.payload_format_indicator,
            message_expiry_interval=said.message_expiry_interval,
            content_type=said.content_type,
            correlation_data=said.correlation_data,
            user_properties=said.user_properties,
        )


_TERMS: Final = ("passed", "refused", "stale")
