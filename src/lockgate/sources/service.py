"""A source as a service that can be reloaded: another one takes its place, once that could be made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from lockgate.config.errors import ConfigError
from lockgate.config.model import AnySource, Config

log = logging.getLogger(__name__)


class Source(Protocol):
    """One source at work."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled. Raises ConfigError for what a person must correct."""

    def status(self) -> Mapping[str, object]: ...

    def reread(self) -> None:
        """Read the secrets of who comes to us again. Raises ConfigError; then those before stay."""


class SourceService:
    """The service `source:NAME`."""

    def __init__(self, config: AnySource, build: Callable[[AnySource], Source]) -> None:
        """Raises ConfigError where the source cannot be made, as without its library."""
        self.name = config.service
        self._config = config
        self._build = build
        self._source = build(config)
        self._next: Source | None = None
        self._changed = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled. Raises ConfigError for what a person must correct."""
        while True:
            running = asyncio.create_task(self._source.run(ready))
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({running, changed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
                ended = running.done()
                running.cancel()
                await asyncio.wait({running})
            if ended:
                return running.result()
            assert self._next is not None
            if not running.cancelled() and (error := running.exception()) is not None:
                log.warning("%s did not end well: %s", self.name, error)
            self._source, self._next = self._next, None
            self._changed.clear()
            log.info("%s goes on with what it was told", self.name)

    async def reload(self, config: Config) -> None:
        """Go on with another configuration. Raises ConfigError, and goes on as before.

        What waits for the broker has a moment to leave; figures begin anew.
        """
        told = next((one for one in config.sources if one.service == self.name), None)
        if told is None:
            raise ConfigError("the section is gone; the source goes on until it is stopped", key=f"sources.{self.name}")
        if told == self._config:
            self._source.reread()
            return
        self._next = self._build(told)
        self._config = told
        self._changed.set()

    def status(self) -> Mapping[str, object]:
        return self._source.status()
