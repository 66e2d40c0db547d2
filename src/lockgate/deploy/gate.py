"""Is the new version well? Its health check, its process, and the gateway's books, for a while."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lockgate.deploy.container import Container
from lockgate.deploy.errors import DeployError, Failed
from lockgate.deploy.project import keeps_books

log = logging.getLogger(__name__)

LOCKGATE = "/opt/lockgate/bin/lockgate"
_PROBE_PAUSE, _MOST_PROBE_PAUSE, _WATCH_PAUSE, _BOOKS_PAUSE = 0.1, 0.3, 0.5, 2.0
_BOOKS_READINGS = 5  # a row between two readings of it is no missing row


class Looks(Protocol):
    """What is asked of the engine here."""

    def inspect(self, name: str) -> Container | None: ...
    def execute(self, name: str, words: tuple[str, ...]) -> tuple[int, str]: ...
    def logs(self, name: str, lines: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Time:
    """The clock of an update; a test has its own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Books:
    """What only grows in the ledger."""

    closes: bool
    received: int
    logged: int
    delivered: int

    def behind(self, before: Books) -> str:
        """Name what has become less; empty where nothing has."""
        for name in ("received", "logged", "delivered"):
            if getattr(self, name) < getattr(before, name):
                return f"{name} was {getattr(before, name)} and is {getattr(self, name)}"
        return ""


def read_books(engine: Looks, containers: Sequence[Container]) -> Books | None:
    """Ask the first of these that keeps books; None where none does, or the answer makes no sense."""
    for one in containers:
        if keeps_books(one):
            try:
                status, output = engine.execute(one.id, (LOCKGATE, "ledger", "--json"))
                return books_of(json.loads(output[output.index("{") :])) if status in (0, 1) else None
            except (DeployError, ValueError, LookupError, TypeError):
                return None
    return None


def books_of(said: Any) -> Books:
    delivered = sum(int(book["delivered"]) for book in said["deliveries"])
    return Books(bool(said["closes"]), int(said["intake"]["received"]), int(said["intake"]["logged"]), delivered)


class Gate:
    """Says whether a container is well, by raising Failed where it is not."""

    def __init__(self, engine: Looks, health_seconds: float, watch_seconds: float, clock: Time) -> None:
        self._engine = engine
        self._health_seconds = health_seconds
        self._watch_seconds = watch_seconds
        self._clock = clock

    def wait_ready(self, name: str) -> None:
        """Wait until its own health check says yes, asked more often than the engine does."""
        deadline = self._clock.now() + self._health_seconds
        while True:
            container, asked = self._must_run(name), self._clock.now()
            if not container.probe:
                return
            try:
                status, output = self._engine.execute(name, container.probe)
            except DeployError as error:  # it has just ended: the next look says so
                status, output = -1, str(error)
            if status == 0:
                return
            if self._clock.now() > deadline:
                said = " ".join(output.split())[:300]
                raise Failed(f"{container.service} is not well after {self._health_seconds:g} s: {said}")
            # what the question costs is taken from the little that the container may have to start with
            self._clock.sleep(min(max(self._clock.now() - asked, _PROBE_PAUSE), _MOST_PROBE_PAUSE))

    def watch(self, name: str, before: Books | None, books: Callable[[], Books | None]) -> None:
        """Stay with it for a while; then the books have to close, and not to have gone back."""
        began = self._clock.now()
        first = self._must_run(name)
        while True:
            container, passed = self._must_run(name), self._clock.now() - began
            if container.started != first.started:
                raise Failed(f"{container.service} has started anew by itself")
            if container.health == "unhealthy":
                said = " ".join(container.health_output.split())[:300]
                raise Failed(f"the health check of {container.service} fails: {said}")
            if passed >= self._watch_seconds and container.health in ("", "healthy"):
                break
            if passed >= self._watch_seconds + self._health_seconds:
                raise Failed(f"the engine does not call {container.service} healthy after {passed:.0f} s")
            self._clock.sleep(_WATCH_PAUSE)
        if before is not None:
            self._watch_books(before, books)

    def _watch_books(self, before: Books, books: Callable[[], Books | None]) -> None:
        problem = ""
        for reading in range(_BOOKS_READINGS):
            if reading:
                self._clock.sleep(_BOOKS_PAUSE)
            now = books()
            if now is None:
                problem = "the ledger cannot be read any more"
            elif back := now.behind(before):
                problem = f"the ledger went back: {back}"
            elif before.closes and not now.closes:
                problem = "the ledger does not close any more"
            else:
                return
        raise Failed(problem)

    def _must_run(self, name: str) -> Container:
        container = self._engine.inspect(name)
        if container is None:
            raise Failed(f"the container {name[:12]} is gone")
        if container.restarts or not container.running:
            lines = [line for line in self._engine.logs(name, 20).splitlines() if line.strip()]
            said = f": {lines[-1].strip()[:300]}" if lines else ""
            raise Failed(f"{container.service} ended with status {container.exit_code}{said}")
        return container
