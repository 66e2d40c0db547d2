"""A source that is reloaded: what is wrong changes nothing, what is new takes the old one's place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from lockgate.config import lockgate_toml
from lockgate.config.errors import ConfigError
from lockgate.config.model import AnySource, Config
from lockgate.sources.service import SourceService

WAIT = 10


class Fake:
    """Tells what is done to it."""

    def __init__(self, config: AnySource, told: list[str]) -> None:
        if config.broker_cafile is not None:
            raise ConfigError("cannot be used", key="broker_cafile")
        self._topic = config.status_topic
        self._told = told
        self.end = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        self._told.append(f"begins {self._topic}")
        ready()
        try:
            await self.end.wait()
            raise OSError("it failed")
        finally:
            self._told.append(f"ends {self._topic}")

    def reread(self) -> None:
        self._told.append(f"reads again {self._topic}")

    def status(self) -> Mapping[str, object]:
        return {"topic": self._topic}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    toml = tmp_path / "lockgate.toml"
    toml.write_text(
        '[sources.s]\ntype = "http"\nallow_anonymous = true\nstatus_topic = "one"\n'
        '[sources.s.routes.r]\npath = "/"\ntopic = "t"\n'
    )
    return lockgate_toml.load(toml, {})


def changed(config: Config, **what: object) -> Config:
    return replace(config, sources=(replace(config.sources[0], **what),))  # type: ignore[arg-type]


async def test_another_source_takes_the_place_once_it_could_be_made(config: Config) -> None:
    told: list[str] = []
    made: list[Fake] = []

    def build(one: AnySource) -> Fake:
        made.append(Fake(one, told))
        return made[-1]

    service = SourceService(config.sources[0], build)
    assert service.name == "source:s"
    ready = asyncio.Event()
    running = asyncio.create_task(service.run(ready.set))
    await asyncio.wait_for(ready.wait(), WAIT)
    await service.reload(config)
    with pytest.raises(ConfigError, match="cannot be used"):
        await service.reload(changed(config, broker_cafile=Path("none")))
    with pytest.raises(ConfigError, match="the section is gone"):
        await service.reload(replace(config, sources=()))
    assert told == ["begins one", "reads again one"]
    ready.clear()
    await service.reload(changed(config, status_topic="two"))
    await asyncio.wait_for(ready.wait(), WAIT)
    assert told[2:] == ["ends one", "begins two"]
    assert service.status() == {"topic": "two"}
    made[-1].end.set()
    with pytest.raises(OSError, match="it failed"):
        await asyncio.wait_for(running, WAIT)


async def test_it_ends_when_it_is_stopped(config: Config) -> None:
    told: list[str] = []
    service = SourceService(config.sources[0], lambda one: Fake(one, told))
    ready = asyncio.Event()
    running = asyncio.create_task(service.run(ready.set))
    await asyncio.wait_for(ready.wait(), WAIT)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, WAIT)
    assert told == ["begins one", "ends one"]
