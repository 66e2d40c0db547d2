"""A source's way to the broker: one MQTT client, a bounded queue before it, and what is retained of its state."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from lockgate.client import (
    Client,
    ClientError,
    Endpoint,
    NotConnected,
    PublishRefused,
    Will,
    parse_endpoint,
    reason_codes,
)
from lockgate.client.endpoints import check_tls
from lockgate.config.errors import ConfigError
from lockgate.config.model import AnySource
from lockgate.config.secrets import first_line

log = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"
_WINDOW: Final = 100  # messages of the queue that wait for their PUBACK at once
_RETRY_SECONDS: Final = (0.2, 10.0)  # after a refusal that passes, as of a broker that is full
_LEAVE_SECONDS: Final = 0.7  # for what waits, for the states, and for the end of the connection
# Refusals that are about the message, not about the moment
_FOR_GOOD: Final = frozenset(
    {
        reason_codes.NOT_AUTHORIZED,
        reason_codes.TOPIC_NAME_INVALID,
        reason_codes.PACKET_TOO_LARGE,
        reason_codes.PAYLOAD_FORMAT_INVALID,
        reason_codes.RETAIN_NOT_SUPPORTED,
        reason_codes.QOS_NOT_SUPPORTED,
    }
)

Work = Callable[[], Coroutine[Any, Any, None]]


def is_for_good(error: PublishRefused) -> bool:
    """Whether the broker will never take this message."""
    return error.reason_code in _FOR_GOOD


class _Queued(NamedTuple):
    topic: str
    payload: bytes

    @property
    def size(self) -> int:
        return len(self.topic) + len(self.payload)


class Publisher:
    """Publishes at QoS 1, as any device would. Everything runs on the loop that calls `serve`.

    `publish` is for who can wait and be told; `offer` for what was read and would be lost otherwise: it waits in
    memory while the broker is away, and the oldest gives way at the limit.
    """

    def __init__(self, config: AnySource) -> None:
        self.published = 0
        self.refused = 0
        self.dropped = 0
        self._config = config
        self._client: Client | None = None
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._states: dict[str, bytes] = {}
        self._unsaid: dict[str, None] = {}  # topics whose state the broker has yet to be told, in that order
        self._news = asyncio.Event()
        self._state_news = asyncio.Event()
        self._error: str | None = "not connected yet"

    # --- life ------------------------------------------------------------------------------------------------------

    async def serve(self, *work: Work) -> None:
        """Do `work` beside a connection that is made again and again, until cancelled or one of them fails.

        At the end the work ends first; what waits has a moment to leave. Raises ConfigError where the broker refuses
        us for good, or the connection is not well described.
        """
        self._client = make_client(self._config, self._on_connected, self._on_disconnected)
        self.state(True)
        own = [asyncio.create_task(one()) for one in (self._connect, self._drain, self._announce)]
        others = [asyncio.create_task(one()) for one in work]
        try:
            done, _ = await asyncio.wait({*own, *others}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            raise RuntimeError("a part of the source ended by itself")
        finally:
            await _end(others)
            said = await self._leave()
            await _end([*own, *self._in_flight])
            with contextlib.suppress(ClientError, OSError):  # TimeoutError among them
                goodbye = reason_codes.SUCCESS if said else reason_codes.DISCONNECT_WITH_WILL_MESSAGE
                await asyncio.wait_for(self._client.disconnect(goodbye), _LEAVE_SECONDS)

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self._client is not None and self._client.connected

    @property
    def pending(self) -> int:
        """Messages that wait, or wait for their acknowledgement."""
        return len(self._queue) + len(self._in_flight)

    def status(self) -> dict[str, object]:
        return {
            "connected": self.connected,
            "error": self._error,
            "published": self.published,
            "refused": self.refused,
            "dropped": self.dropped,
            "pending": self.pending,
        }

    # --- messages --------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Publish and wait for the PUBACK.

        Raises NotConnected while the broker is away, PublishRefused, ValueError for what MQTT cannot say.
        """
        if self._client is None or not self._client.connected:
            raise NotConnected("the broker is away")
        try:
            await self._client.publish(topic, payload, 1, retain)
        except (PublishRefused, ValueError) as error:
            self._refuse(topic, error)
            raise
        self.published += 1

    def offer(self, topic: str, payload: bytes) -> None:
        """Queue a message; the oldest ones are dropped and counted where there is no room."""
        message = _Queued(topic, payload)
        self._queue.append(message)
        self._queued_bytes += message.size
        dropped = 0
        while self._queued_bytes > self._config.queue_bytes or len(self._queue) > self._config.queue_messages:
            self._queued_bytes -= self._queue.popleft().size
            dropped += 1
        if dropped and not self.dropped:
            log.warning("source %s: the queue is full; the oldest messages are dropped", self._config.name)
        self.dropped += dropped
        self._news.set()

    def state(self, online: bool, below: str = "") -> None:
        """Retain `online` or `offline` at the status topic, or below it."""
        topic = self._config.status_name
        if not topic:
            return
        topic = f"{topic}/{below}" if below else topic
        payload = ONLINE if online else OFFLINE
        if self._states.get(topic) != payload:
            self._states[topic] = payload
            self._unsaid[topic] = None
            self._state_news.set()

    def _refuse(self, topic: str, error: Exception) -> None:
        self.refused += 1
        text = f"the broker refuses {topic!r}: {error}"
        if text != self._error:
            log.warning("source %s: %s", self._config.name, text)
        self._error = text

    # --- tasks -----------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        assert self._client is not None
        try:
            await self._client.connect()
            async for _ in self._client.messages():  # none come; it raises what ends the client
                pass
        except ClientError as error:
            key, accepted = f"sources.{self._config.name}.url", "a broker that lets us in, with our user and password"
            raise ConfigError(str(error), key=key, accepted=accepted) from error

    async def _drain(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._queue and len(self._in_flight) < _WINDOW and self.connected:
                message = self._queue.popleft()
                self._queued_bytes -= message.size
                task = asyncio.create_task(self._deliver(message))
                self._in_flight.add(task)
                task.add_done_callback(self._delivered)

    async def _deliver(self, message: _Queued) -> None:
        assert self._client is not None
        pause, longest = _RETRY_SECONDS
        while True:
            try:
                await self._client.publish(message.topic, message.payload, 1)
            except PublishRefused as error:
                if is_for_good(error):
                    self._refuse(message.topic, error)
                    return
                self._error = str(error)
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(2 * pause, longest)
            except ValueError as error:
                self._refuse(message.topic, error)
                return
            else:
                self.published += 1
                return

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._news.set()
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ClientError):
            log.error("source %s: a message could not be published", self._config.name, exc_info=error)

    async def _announce(self) -> None:
        assert self._client is not None
        while True:
            await self._state_news.wait()
            self._state_news.clear()
            while self._unsaid and self.connected:
                topic = next(iter(self._unsaid))
                del self._unsaid[topic]
                try:
                    await self._client.publish(topic, self._states[topic], 1, retain=True)
                except (PublishRefused, ValueError) as error:
                    self._refuse(topic, error)

    async def _leave(self) -> bool:
        """Give what waits a moment, and say that we are gone; whether that is known, and the Will not needed."""
        if not self.connected:
            return False
        assert self._client is not None
        self._unsaid.clear()  # nothing says `online` from now on
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                while self.pending and self.connected:
                    await asyncio.sleep(0.01)
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                for topic in self._states:
                    await self._client.publish(topic, OFFLINE, 1, retain=True)
        except (TimeoutError, ClientError, ValueError):
            return False
        return True

    def _on_connected(self, _session_present: bool) -> None:
        self._error = None
        self._unsaid.update(dict.fromkeys(self._states))
        self._news.set()
        self._state_news.set()

    def _on_disconnected(self, why: str) -> None:
        self._error = f"the broker is away: {why}"


def make_client(
    config: AnySource, on_connected: Callable[[bool], None], on_disconnected: Callable[[str], None]
) -> Client:
    """Give the client of a source, with its Will. Raises ConfigError, which repeats no password."""
    endpoint, username, password = endpoint_of(config)
    topic = config.status_name
    return Client(
        config.connection,
        endpoint=endpoint,
        username=username,
        password=password,
        clean_start=True,
        will=Will(topic, OFFLINE, 1, True) if topic else None,
        # The gateway's own broker: one client more does not burden it.
        retry_min_seconds=0.1,
        retry_max_seconds=2.0,
        on_connected=on_connected,
        on_disconnected=on_disconnected,
    )


def endpoint_of(config: AnySource) -> tuple[Endpoint, str | None, bytes | None]:
    """Where the broker is, and as whom we come. Raises ConfigError, which repeats no password."""
    key = f"sources.{config.name}.url"
    try:
        endpoint, address = parse_endpoint(
            config.connection.url,
            cafile=config.broker_cafile,
            certfile=config.broker_certfile,
            keyfile=config.broker_keyfile,
        )
        check_tls(endpoint)
    except ValueError as error:
        raise ConfigError(str(error), key=key) from None
    password = address.password
    if config.connection.password_file is not None:
        password = first_line(config.connection.password_file)
    return endpoint, address.username, password


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
