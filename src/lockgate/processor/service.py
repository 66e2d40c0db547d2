"""The processor: from the broker through the rules into the buffer, acknowledged once that is committed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from lockgate.buffer import Kept, Log, LogReader
from lockgate.client import Client, ClientError, SubscribeRefused, SubscriptionRequest
from lockgate.config.errors import ConfigError
from lockgate.config.model import BufferConfig, Config, ForwarderConfig, GatewayConfig, ProcessorConfig
from lockgate.processor.runner import Message, Rulebook, Runner, SessionLost, intake_of

log = logging.getLogger(__name__)

_RELOADED: Final = ("schemas", "tables", "rules", "state_topics", "functions", "function_packages")
_DISCONNECT_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 1.0  # between two looks at the files of reference tables
_QUEUE_BYTES: Final = 16 * 1024 * 1024  # of payloads taken from the client and not yet committed


class Source(Protocol):
    """What the processor needs of an MQTT client with manual acknowledgement."""

    async def connect(self) -> object: ...
    async def subscribe(self, requests: Sequence[SubscriptionRequest]) -> object: ...
    async def unsubscribe(self, topic_filters: Sequence[str]) -> object: ...
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


def _request(topic_filter: str) -> SubscriptionRequest:
    """Retained messages are sent for a subscription that is new, not at each start: they were counted already."""
    return SubscriptionRequest(topic_filter, 1, retain_handling=1)


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
        self._turn = asyncio.Lock()  # of the runner
        self._replays: list[Kept] = []
        self._failure: Exception | None = None
        self._book: Rulebook
        self._reader: LogReader
        self._source: Source | None = None
        self._sessions_lost = 0

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled; `ready` is called once the broker has granted the subscriptions.

        Raises ConfigError for a rule, a schema or a connection that a person must correct, FolderInUse or another
        OSError where the buffer folder cannot be used.
        """
        self._book = Rulebook(self._config, self._buffer_config)
        reader = LogReader(self._folder)
        self._log = await Log.open(self._folder, self._buffer_config, self._sinks)
        try:
            self._runner = Runner(self._config, self._book, self._log, reader)
            self._reader = reader
            await self._runner.start()
            await self._serve(ready)
        finally:
            reader.close()
            await self._log.close()
            self._book.close()

    async def reload(self, whole: Config) -> None:
        """Go on with the schemas, tables and rules of another configuration; raises ConfigError, and goes on as before.

        A rule that is wrong or fails its tests stays as it was, alone. Windows are filled from the log as at the start.
        """
        config = whole.processor
        if self._runner is None or self._log is None or self._source is None:
            raise ConfigError("the processor is not ready yet; try again")
        if dataclasses.replace(config, **self._rules_of(self._config)) != self._config:
            log.warning("[processor] has other keys that count at the next start alone.")
        config = dataclasses.replace(self._config, **self._rules_of(config))
        async with self._turn:  # no message is between two rulebooks
            book = self._book.successor(config, self._buffer_config)
            before, self._book = self._book, book
            before.close()
            self._config = book.config
            self._runner = Runner(self._config, book, self._log, self._reader)
            try:
                await self._runner.start()
            except Exception as error:  # the log cannot be read: nothing to go on with, old or new
                self._failure = error
                self._arrived.set()
                raise
        old, new = (dict.fromkeys(one.schemas.topic_filters) for one in (before, book))
        try:
            try:  # what is new may match what goes as well: nothing may be missed between the two
                if added := [_request(topic_filter) for topic_filter in new if topic_filter not in old]:
                    await self._source.subscribe(added)
            finally:
                if gone := [topic_filter for topic_filter in old if topic_filter not in new]:
                    await self._source.unsubscribe(gone)
        except ClientError as error:  # the rules are the new ones all the same
            log.error("The broker does not let us read all that schemas name: %s", error)
        self._arrived.set()  # another window may be the first to end

    def _rules_of(self, config: ProcessorConfig) -> dict[str, Any]:
        return {name: getattr(config, name) for name in _RELOADED}

    def answers(self) -> dict[str, Callable[[Mapping[str, object]], Mapping[str, object]]]:
        """Questions beside `status`: `replay` takes what is quarantined for a reason once more."""
        return {"replay": self._ask_replay}

    def _ask_replay(self, question: Mapping[str, object]) -> Mapping[str, object]:
        if self._runner is None:
            return {"error": "the processor is not ready yet"}
        kept = self._runner.replayable(str(question.get("reason", "")))
        waiting = {one.id for one in self._replays}
        self._replays += [one for one in kept if one.id not in waiting]
        self._arrived.set()
        return {"messages": len(kept)}

    def status(self) -> dict[str, object]:
        return {
            "intake": intake_of(self._log.state.intake) if self._log is not None else None,
            "waiting": len(self._queue),
            "sessions_lost": self._sessions_lost,
            "rules": self._runner.status() if self._runner is not None else {},
            "tables": {reference.name: reference.status() for reference in self._book.references}
            if self._runner is not None
            else {},
            "buffer": self._log.status() if self._log is not None else None,
        }

    async def _serve(self, ready: Callable[[], None]) -> None:
        source = self._make_source(self._config, self._on_connected)
        topic_filters = self._book.schemas.topic_filters
        connected = asyncio.Event()
        work = asyncio.create_task(self._work(source))
        receive = asyncio.create_task(self._receive(source, connected))
        watch = asyncio.create_task(self._watch_tables())
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
                await source.subscribe([_request(topic_filter) for topic_filter in topic_filters])
            if covered := self._book.schemas.covered:  # which the session may have from before
                await source.unsubscribe(covered)
        except SubscribeRefused as error:
            raise ConfigError(str(error), key="schemas.*.topics", accepted="what the broker lets us read") from error
        except ClientError as error:
            accepted = "a broker that lets us in, with the user of the URL and its password"
            raise ConfigError(str(error), key="processor.url", accepted=accepted) from error
        self._source = source
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

    async def _watch_tables(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for reference in self._book.references:
                if reference.changed() and await asyncio.to_thread(reference.read_again):
                    async with self._turn:
                        if reference in self._book.references:
                            self._book.rules.fill(reference)

    async def _work(self, source: Source) -> None:
        """Everything that waits is one commit if the rules are quick enough, and is acknowledged after it."""
        assert self._runner is not None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), self._runner.seconds_to_window_end())
            self._arrived.clear()
            async with self._turn:
                if self._failure is not None:
                    raise self._failure
                if self._queue:
                    self._done_with(await self._runner.process(list(self._queue)), source)
                if self._replays:
                    kept, self._replays = self._replays, []
                    await self._runner.replay(kept)
                await self._runner.close_windows()

    def _done_with(self, count: int, source: Source) -> None:
        for _ in range(count):
            message = self._queue.popleft()
            if isinstance(message, SessionLost):
                continue
            self._queued_bytes -= len(message.payload)
            if message.qos:
                source.acknowledge(message)
        self._room.set()
        if self._queue:
            self._arrived.set()

    def _on_connected(self, session_present: bool) -> None:
        if not session_present:
            self._sessions_lost += 1
            self._queue.append(SessionLost())
            self._arrived.set()
