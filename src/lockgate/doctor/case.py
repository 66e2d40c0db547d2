"""What the checks look at: a configuration, the machine, and the broker if it answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lockgate.app import persistence_folder
from lockgate.cli import process
from lockgate.cli.migrate_setup import Line, Setup, paths_here
from lockgate.config import lockgate_toml
from lockgate.config.errors import ConfigError
from lockgate.config.model import Config, ListenerConfig
from lockgate.doctor.finding import Finding
from lockgate.doctor.machine import Machine, User, ourselves, user_named

# Where a configuration is looked for that is not named: the last two are Mosquitto's, in its image and on Debian
PLACES = (*lockgate_toml.PLACES, Path("/mosquitto/config/mosquitto.conf"), Path("/etc/mosquitto/mosquitto.conf"))


def find_configuration() -> Path | None:
    """Give the first of `PLACES` that is there."""
    return next((place for place in PLACES if place.exists()), None)


@dataclass
class Case:
    """One configuration under examination. `config` is None where it has mistakes."""

    path: Path  # the file that was named or found
    config: Config | None
    machine: Machine = field(default_factory=Machine)
    conf: Path | None = None  # the mosquitto.conf, if there is one
    status: Mapping[str, object] | None = None  # what the running broker says of itself
    socket: Path | None = None  # on which it answers, or would
    now: float = field(default_factory=time.time)  # seconds since 1970
    hosts: tuple[str, ...] = ()  # names by which clients connect
    client_certificates: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        readable = self.conf is not None and self.conf.is_file()
        self.locate: Callable[[Path], Path] = paths_here(self.conf.parent) if self.conf is not None else Path
        self.setup: Setup | None = Setup(self.conf, self.locate) if readable and self.conf is not None else None

    @property
    def pid(self) -> int | None:
        """The process of the broker that answers."""
        pid = self.status.get("pid") if self.status is not None else None
        return pid if isinstance(pid, int) else None

    @property
    def figures(self) -> Mapping[str, object]:
        """The broker's own figures."""
        said = self.status.get("status") if self.status is not None else None
        return said if isinstance(said, Mapping) else {}

    def user(self) -> User:
        """Give whom the broker runs as, or becomes when it is started by whoever runs this."""
        running = self.machine.user_of(self.pid) if self.pid is not None else None
        if running is not None:
            return running
        try:
            found = (
                process.service_user(self.config.broker, default=self.path.suffix == ".conf") if self.config else None
            )
        except ConfigError:  # the start says so
            found = None
        return user_named(found) if found is not None else ourselves()

    def listeners(self) -> tuple[ListenerConfig, ...]:
        return self.config.broker.listeners if self.config is not None else ()

    def store_folder(self) -> Path | None:
        """Give where the broker keeps its store; None: it keeps nothing."""
        if self.config is None or self.config.broker.persistence is False:
            return None
        return self.locate(persistence_folder(self.config).absolute())

    def lines(self, *names: str) -> Iterator[Line]:
        """Give the lines of mosquitto.conf, and of what it includes, that set one of these options."""
        yield from (line for line in (self.setup.lines if self.setup is not None else ()) if line.name in names)

    def place(self, *names: str) -> str:
        """Give where an option is set, else the file that might set it."""
        line = next(iter(reversed(list(self.lines(*names)))), None)
        return f"{line.path}:{line.number}" if line is not None else os.fspath(self.conf or self.path)

    def place_of(self, listener: ListenerConfig) -> str:
        """Give where a listener is set."""
        for line in self.lines("listener", "port"):
            words = line.value.split()
            if words[:1] == [str(listener.port)] and (listener.path is None or words[1:] == [str(listener.path)]):
                return f"{line.path}:{line.number}"
        return os.fspath(self.conf or self.path)


Check = Callable[[Case], Iterator[Finding]]


def port_name(listener: ListenerConfig) -> str:
    """Give a listener as people name it."""
    if listener.path is not None:
        return f"the Unix socket {listener.path}"
    return f"port {listener.port}" + (f" of {listener.address}" if listener.address else "")
