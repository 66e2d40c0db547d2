"""A source that runs, and what a subscriber hears of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator

from lockgate.client import Client, Message
from lockgate.config.model import ConnectionConfig, ModbusSourceConfig, OpcuaSourceConfig
from lockgate.sources.modbus import ModbusSource
from lockgate.sources.opcua import OpcuaSource

WAIT = 20  # seconds at most


class Heard:
    """What arrives of a source, by topic."""

    def __init__(self, name: str, client: Client) -> None:
        self._name = name
        self._messages = client.messages()
        self._seen: defaultdict[str, deque[Message]] = defaultdict(deque)

    async def next(self, topic: str) -> Message:
        """The next message there; those of other topics wait for who asks."""
        async with asyncio.timeout(WAIT):
            while not self._seen[topic]:
                message = await anext(self._messages)
                self._seen[message.topic].append(message)
        return self._seen[topic].popleft()

    async def state(self, expected: bytes, device: str) -> None:
        """Wait until a device is said to be online or offline."""
        while (await self.next(f"sources/{self._name}/status/{device}")).payload != expected:
            pass


@contextlib.asynccontextmanager
async def heard(
    source: ModbusSource | OpcuaSource, config: ModbusSourceConfig | OpcuaSourceConfig, topic_filter: str
) -> AsyncIterator[Heard]:
    """Run a source and hear what it publishes."""
    async with Client(ConnectionConfig(url=config.connection.url, client_id="ear"), clean_start=True) as client:
        await client.subscribe([(topic_filter, 1), ("sources/#", 1)])
        task = asyncio.create_task(source.run(lambda: None))
        try:
            yield Heard(config.name, client)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, WAIT)
