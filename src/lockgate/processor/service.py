"""The processor: from the broker through the rules into the buffer, acknowledged once that is committed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Protocol

from lockgate.buffer import Log, LogReader
from lockgate.client import Client, ClientError, SubscribeRefused
from lockgate.config.errors import ConfigError
from lockgate.config.model import BufferConfig, ForwarderConfig, GatewayConfig, ProcessorConfig
from lockgate.processor.references import Reference
from lockgate.processor.runner import Message, Rulebook, Runner, SessionLost, intake_of

log = logging.getLogger(__name__)

_DISCONNECT_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 1.0  # between two looks at the files of reference tables
_QUEUE_BYTES: Final = 16 * 1024 * 1024  # of payloads taken from the client and not yet committed


class Source(Protocol):
    """What the processor needs of an MQTT client with manual acknowledgement."""

    async def connect(self) -> object: ...
    async def subscribe(self, requests: Sequence[tuple[str, int]]) -> object: ...
    def messages(self) -> AsyncIterator[Any]: ...  # of `Message`s
    def acknowledge(self, message: Any) -> None: ...
    async def disconnect(self) -> None: ...


MakeSource = Callable[[ProcessorConfig, Callable[[bool], None]], Source]


def mqtt_source(config: ProcessorConfig, on_connected: Callable[[bool], None]) -> Source:
    """The broker, over MQTT; its session is kept between runs."""
    return Client(
        config.connection,
        clean_start=False,
        session_expiry_seconds=config.session_expiry_seconds,
        receive_maximum=config.receive_maximum,
        manual_ack=True,
        # The gateway's own broker: one client more does not burden it, and what arrives there meanwhile waits for us.
        retry_min_seconds=0.1,
        retry_max_seconds=2.0,
        on_connected=on_connected,
    )


class Processor:
    """The service `processor`. `make_source` is the broker, except in tests."""

    name = "processor"

    def __init__(
        self,
        gateway: GatewayConfig,
        processor: ProcessorConfig,
        buffer: BufferConfig,
        forwarder: ForwarderConfig,
        make_source: MakeSource = mqtt_source,
    ) -> None:
        self._folder = gateway.buffer_dir
        self._config = processor
        self._buffer_config = buffer
        self._sinks = {sink.name: sink.classes for sink in forwarder.sinks}
        self._make_source = make_source
        self._queue: deque[Message | SessionLost] = deque()
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._log: Log | None = None
        self._runner: Runner | None = None
        self._references: list[Reference] = []
        self._sessions_lost = 0

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled; `ready` is called once the broker has granted the subscriptions.

        Raises ConfigError for a rule, a schema or a connection that a person must correct, FolderInUse or another
        OSError where the buffer folder cannot be used.
        """
        book = Rulebook(self._config, self._buffer_config)
        self._references = book.references
        reader = LogReader(self._folder)
        self._log = await Log.open(self._folder, self._buffer_config, self._sinks)
        try:
            self._runner = Runner(self._config, book, self._log, reader)
            await self._runner.start()
            await self._serve(self._runner, book.schemas.topic_filters, ready)
        finally:
            reader.close()
            await self._log.close()
            book.close()

    def status(self) -> dict[str, object]:
        return {
            "intake": intake_of(self._log.state.intake) if self._log is not None else None,
            "waiting": len(self._queue),
            "sessions_lost": self._sessions_lost,
            "rules": self._runner.status() if self._runner is not None else {},
            "tables": {reference.name: reference.status() for reference in self._references},
            "buffer": self._log.status() if self._log is not None else None,
        }

    async def _serve(self, runner: Runner, topic_filters: Sequence[str], ready: Callable[[], None]) -> None:
        source = self._make_source(self._config, self._on_connected)
        connected = asyncio.Event()
        work = asyncio.create_task(self._work(runner, source))
        receive = asyncio.create_task(self._receive(source, connected))
        watch = asyncio.create_task(self._watch_tables(runner))
        begin = asyncio.create_task(self._begin(source, connected, topic_filters, ready))
        waiting: set[asyncio.Task[None]] = {work, receive, begin, watch}
        try:
            while {work, receive, watch} <= waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in (work, receive, begin, watch):
                task.cancel()
            await asyncio.gather(work, receive, begin, watch, return_exceptions=True)
            with contextlib.suppress(ClientError, OSError):  # TimeoutError among them
                await asyncio.wait_for(source.disconnect(), _DISCONNECT_SECONDS)

    async def _begin(
        self, source: Source, connected: asyncio.Event, topic_filters: Sequence[str], ready: Callable[[], None]
    ) -> None:
        try:
            await source.connect()
            connected.set()  # messages of the kept session come before the answer to SUBSCRIBE
            if topic_filters:
                await source.subscribe([(topic_filter, 1) for topic_filter in topic_filters])
        except SubscribeRefused as error:
            raise ConfigError(str(error), key="schemas.*.topics", accepted="what the broker lets us read") from error
        except ClientError as error:
            raise ConfigError(str(error), key="processor.connection") from error
        log.info("processor receives %d topic filters", len(topic_filters))
        ready()

    async def _receive(self, source: Source, connected: asyncio.Event) -> None:
        await connected.wait()
        async for message in source.messages():
            while len(self._queue) >= self._config.receive_maximum or self._queued_bytes >= _QUEUE_BYTES:
                self._room.clear()
                await self._room.wait()
            self._queue.append(message)
            self._queued_bytes += len(message.payload)
            self._arrived.set()

    async def _watch_tables(self, runner: Runner) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for reference in self._references:
                if reference.changed() and await asyncio.to_thread(reference.read_again):
                    runner.read_again(reference)

    async def _work(self, runner: Runner, source: Source) -> None:
        """Everything that waits is one commit if the rules are quick enough, and is acknowledged after it."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), runner.seconds_to_window_end())
            self._arrived.clear()
            if self._queue:
                for _ in range(await runner.process(list(self._queue))):
                    message = self._queue.popleft()
                    if isinstance(message, SessionLost):
                        continue
                    self._queued_bytes -= len(message.payload)
                    if message.qos:
                        source.acknowledge(message)
                self._room.set()
                if self._queue:
                    self._arrived.set()
            await runner.close_windows()

    def _on_connected(self, session_present: bool) -> None:
        if not session_present:
            self._sessions_lost += 1
            self._queue.append(SessionLost())
            self._arrived.set()
