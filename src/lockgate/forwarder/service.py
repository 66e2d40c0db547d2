"""The forwarder as a service: a worker for each sink, none in the way of another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from lockgate.buffer import LogReader
from lockgate.config.model import BufferConfig, ForwarderConfig, GatewayConfig, MqttSinkConfig
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import build
from lockgate.forwarder.worker import Worker

if TYPE_CHECKING:
    from lockgate.forwarder.downlink import Downlink

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.2  # how often the log is looked at for new rows


class Forwarder:
    """Drains the buffer to every configured sink."""

    name = "forwarder"

    def __init__(self, gateway: GatewayConfig, buffer: BufferConfig, config: ForwarderConfig) -> None:
        self._folder = gateway.buffer_dir
        self._gateway_id = gateway.id
        self._order = buffer.classes
        self._latest_first = {one.name for one in buffer.limits if one.order == "latest-first"}
        self._config = config
        self._workers: list[Worker] = []
        self._downlinks: list[Downlink] = []

    async def run(self, ready: Callable[[], None]) -> None:
        """Forward until cancelled; `ready` is called when every cursor is open or has been found wanting."""
        messages = Messages(self._gateway_id)
        reader = LogReader(self._folder)
        self._workers = [
            Worker(one, self._order, partial(build, one, messages), messages, self._folder, reader, self._latest_first)
            for one in self._config.sinks
        ]
        self._downlinks = list(self._make_downlinks())
        try:
            async with asyncio.TaskGroup() as tasks:
                for downlink in self._downlinks:
                    tasks.create_task(downlink.run(), name=f"downlink {downlink.name}")
                for worker in self._workers:
                    tasks.create_task(worker.run(), name=f"sink {worker.name}")
                for worker in self._workers:
                    await worker.opened.wait()
                ready()
                await self._watch(reader, messages)
        finally:
            reader.close()

    def status(self) -> dict[str, object]:
        said: dict[str, object] = {"sinks": {worker.name: worker.status() for worker in self._workers}}
        if self._downlinks:
            said["downlinks"] = {downlink.name: downlink.status() for downlink in self._downlinks}
        return said

    def _make_downlinks(self) -> Iterator[Downlink]:
        for sink in self._config.sinks:
            if isinstance(sink, MqttSinkConfig) and sink.downlink:
                from lockgate.forwarder.downlink import Downlink  # and MQTT with it

                yield Downlink(sink, self._config.downlink)

    async def _watch(self, reader: LogReader, messages: Messages) -> None:
        """Wake the workers when the log has grown."""
        seen: int | None = None
        while True:
            # What is wrong with the log is said by the workers when they read it.
            with contextlib.suppress(OSError, sqlite3.Error):
                last = reader.last_seq()
                if last != seen:
                    seen = last
                    messages.learn(reader.boots())
                    for worker in self._workers:
                        worker.news.set()
            await asyncio.sleep(_LOOK_SECONDS)
