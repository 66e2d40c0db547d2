"""Registers of Modbus devices, read in intervals: each device at its own pace, none in the way of another."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Final

import orjson

from lockgate.config.model import ModbusDeviceConfig, ModbusGroupConfig, ModbusSourceConfig
from lockgate.config.source_sections import TIME
from lockgate.sources.modbus_link import ILLEGAL_ADDRESS, Answered, Link, Unreachable
from lockgate.sources.publisher import Publisher, endpoint_of
from lockgate.sources.registers import Reading, decode, plan

log = logging.getLogger(__name__)

_DOUBLINGS: Final = 30


class ModbusSource:
    """A source of type modbus."""

    def __init__(self, config: ModbusSourceConfig) -> None:
        """Raises ConfigError where pymodbus is missing, or the broker's connection is not well described."""
        self._config = config
        endpoint_of(config)
        self._publisher = Publisher(config)
        links: dict[tuple[tuple[str, int], str], Link] = {}
        self.devices: list[Device] = []
        for device in config.devices:
            key = (device.address, device.framing)
            if key not in links:
                links[key] = Link(*key, config.name)
            self.devices.append(Device(config, device, links[key], self._publisher))
        self._links = links.values()

    async def run(self, ready: Callable[[], None]) -> None:
        """Read until cancelled, with the broker there or not. Raises ConfigError where it refuses us for good."""
        try:
            await self._publisher.serve(lambda: self._begin(ready), *(device.run for device in self.devices))
        finally:
            self.close()

    def close(self) -> None:
        for link in self._links:
            link.close()

    def reread(self) -> None:
        """Nobody comes to us."""

    def status(self) -> Mapping[str, object]:
        return {**self._publisher.status(), "devices": {device.name: device.status() for device in self.devices}}

    async def _begin(self, ready: Callable[[], None]) -> None:
        log.info("source %s reads %d devices", self._config.name, len(self.devices))
        ready()
        await asyncio.get_running_loop().create_future()


class Device:
    """One unit and the groups that are read from it."""

    def __init__(
        self, source: ModbusSourceConfig, config: ModbusDeviceConfig, link: Link, publisher: Publisher
    ) -> None:
        self.name = config.name
        self.groups = source.groups_of(config.name)
        self._source = source
        self._config = config
        self._link = link
        self._publisher = publisher
        self._gaps = {group.name: group.max_gap for group in self.groups}
        self._online: bool | None = None  # not known yet
        self._problem: str | None = None  # why it is offline
        self._wrong: dict[str, str] = {}  # what it answered, by group
        self._reads = 0
        self._failed = 0

    async def run(self) -> None:
        """Read each group when it is due, for good; a device that is away is tried less and less often."""
        if not self.groups:
            await asyncio.get_running_loop().create_future()
        now = asyncio.get_running_loop().time
        due = dict.fromkeys(range(len(self.groups)), now())
        failures = 0
        while True:
            number = min(due, key=due.__getitem__)
            await asyncio.sleep(due[number] - now())
            group = self.groups[number]
            if await self._read_and_publish(group):
                failures = 0
            else:
                failures = min(failures + 1, _DOUBLINGS)
                await asyncio.sleep(self._pause(failures))
            interval = group.interval_seconds or self._source.interval_seconds
            # The next time of its rhythm: what was missed meanwhile is not made up for.
            due[number] += interval * max(1, -((due[number] - now()) // interval))

    async def read(self, group: ModbusGroupConfig) -> list[Reading]:
        """Ask for the values of a group, in the order of the file. Raises Unreachable or Answered."""
        max_gap = self._gaps[group.name]
        try:
            return await self._ask(group, max_gap)
        except Answered as error:
            blocks = plan(group.values, max_gap, self._config.max_count)
            if error.code not in ILLEGAL_ADDRESS or not any(block.has_gaps for block in blocks):
                raise
        # Perhaps it is the registers in between that it does not have.
        readings = await self._ask(group, 0)
        self._gaps[group.name] = 0
        log.info("source %s: device %s takes no gaps in %s", self._source.name, self.name, group.name)
        return readings

    def status(self) -> dict[str, object]:
        said: dict[str, object] = {"online": self._online, "reads": self._reads, "failed": self._failed}
        if self._problem is not None:
            said["error"] = self._problem
        if self._wrong:
            said["groups"] = {name: {"error": problem} for name, problem in self._wrong.items()}
        return said

    async def _ask(self, group: ModbusGroupConfig, max_gap: int) -> list[Reading]:
        device = self._config
        found: list[Reading] = []
        for block in plan(group.values, max_gap, device.max_count):
            answer = await self._link.read(device.unit, block, device.timeout_seconds)
            found += decode(block, answer, device)
        return sorted(found, key=lambda one: group.values.index(one.value))

    async def _read_and_publish(self, group: ModbusGroupConfig) -> bool:
        """Whether the device answered, be it with an exception."""
        try:
            readings = await self.read(group)
        except Unreachable as error:
            self._failed += 1
            self._is_offline(str(error))
            return False
        except Answered as error:
            self._failed += 1
            self._is_online()
            if self._wrong.get(group.name) != str(error):
                log.warning("source %s: device %s: %s of %s", self._source.name, self.name, error, group.name)
            self._wrong[group.name] = str(error)
            return True
        self._reads += 1
        self._is_online()
        if self._wrong.pop(group.name, None) is not None:
            log.info("source %s: device %s answers for %s again", self._source.name, self.name, group.name)
        names = {"source": self._source.name, "device": self.name, "group": group.name}
        payload = orjson.dumps({TIME: time.time_ns() // 1_000_000, **{one.value.name: one.meaning for one in readings}})
        self._publisher.offer(self._source.topic.fill(names), payload)
        return True

    def _pause(self, failures: int) -> float:
        longest = min(self._source.retry_max_seconds, self._source.retry_min_seconds * 2.0 ** (failures - 1))
        return random.uniform(longest / 2, longest)

    def _is_online(self) -> None:
        if self._online is not True:
            log.info("source %s: device %s answers", self._source.name, self.name)
        self._online, self._problem = True, None
        self._publisher.state(True, self.name)

    def _is_offline(self, problem: str) -> None:
        if self._online is not False:
            log.warning("source %s: device %s is away: %s", self._source.name, self.name, problem)
        self._online, self._problem = False, problem
        self._publisher.state(False, self.name)
