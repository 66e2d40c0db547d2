"""What a mosquitto.conf says, line by line and by what each line belongs to: also of one that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from lockgate.config.errors import ConfigError
from lockgate.config.model import is_local
from lockgate.config.mosquitto_conf import PLUGIN_OPTIONS, PLUGINS, BadValue, integer, read_lines
from lockgate.config.options_table import ROWS

_LOADS = ("plugin", "auth_plugin", "global_plugin", "plugin_load")
Kind = Literal["password_file", "acl_file", "dynamic_security"]


class Line(NamedTuple):
    """One option and its place."""

    name: str
    value: str
    path: Path
    number: int


Scope = dict[str, list[Line]]  # the lines of one listener, of one bridge, or of all


@dataclass
class Plugin:
    """A line that loads a plugin, and the lines of its options."""

    line: Line
    options: list[Line] = field(default_factory=list)

    @property
    def file(self) -> str:
        return self.line.value.rpartition("/")[2].rpartition(" ")[2]

    @property
    def is_built_in(self) -> bool:
        return self.file in PLUGINS


class Authority(NamedTuple):
    """A file that says who may; `listener` is None where it counts for all."""

    kind: Kind
    line: Line
    listener: Scope | None


def paths_here(folder: Path) -> Callable[[Path], Path]:
    """Give where a path lies here: as it is, else below `folder` if it is one of the container's.

    The container has its configuration in /mosquitto/config, and here `folder` is that or is /mosquitto.
    """
    home, config = PurePosixPath("/mosquitto"), PurePosixPath("/mosquitto/config")

    def locate(path: Path) -> Path:
        said = PurePosixPath(path)
        if os.path.exists(path) or not said.is_relative_to(home):
            return path
        tries = [folder / said.relative_to(home), folder.parent / said.relative_to(home)]
        if said.is_relative_to(config):
            tries.insert(0, folder / said.relative_to(config))
        return next((one for one in tries if os.path.exists(one)), path)

    return locate


class Setup:
    """The lines of a configuration and of what it includes."""

    def __init__(self, path: Path, locate: Callable[[Path], Path]) -> None:
        self.path = path
        self.locate = locate
        self.lines: list[Line] = []
        self.everywhere: Scope = {}
        self.listeners: list[Scope] = []
        self.bridges: list[Scope] = []
        self.plugins: list[Plugin] = []
        self.authorities: list[Authority] = []
        self._default: Scope = {}  # the listener of `port` and `bind_address`
        per_listener = False
        mistakes: list[ConfigError] = []  # the parser finds them again
        for line in (Line(*found) for found in read_lines(path, mistakes, locate)):
            self.lines.append(line)
            if line.name == "per_listener_settings":
                per_listener = line.value.lower() in ("true", "1")
            elif line.name == "listener":
                self.listeners.append({})
            elif line.name == "connection":
                self.bridges.append({})
            self._scope(line, per_listener).setdefault(line.name, []).append(line)
            self._note_authority(line, per_listener)
        if "port" in self._default or "bind_address" in self._default:
            self.listeners.insert(0, self._default)

    def _scope(self, line: Line, per_listener: bool) -> Scope:
        row = ROWS.get(line.name)
        scope = row.scope if row is not None else "global"
        if scope == "listener" or (per_listener and "listener" in scope):
            return self.listeners[-1] if self.listeners else self._default
        if scope == "bridge":
            return self.bridges[-1] if self.bridges else {}
        return self.everywhere

    def _note_authority(self, line: Line, per_listener: bool) -> None:
        name = line.name
        holder = self.listeners[-1] if per_listener and self.listeners and name != "global_plugin" else None
        if name in _LOADS:
            self.plugins.append(Plugin(line))
        elif name.startswith(PLUGIN_OPTIONS) and self.plugins:
            plugin = self.plugins[-1]
            plugin.options.append(line)
            name = name.removeprefix("plugin_opt_").removeprefix("auth_opt_")
            if plugin.file == "mosquitto_dynamic_security.so" and name == "config_file":
                self.authorities.append(Authority("dynamic_security", line, holder))
            elif not plugin.is_built_in:
                return
        if name in ("password_file", "acl_file") and line.value:
            self.authorities.append(Authority(name, line, holder))  # type: ignore[arg-type]

    def last(self, name: str, scope: Scope | None = None) -> Line | None:
        """Give the line that counts."""
        found = (self.everywhere if scope is None else scope).get(name)
        return found[-1] if found else None

    def is_true(self, name: str, scope: Scope | None = None) -> bool | None:
        """Give what a line says of true and false; None where there is no such line."""
        line = self.last(name, scope)
        return None if line is None else line.value.lower() in ("true", "1")

    def file(self, line: Line) -> Path:
        """Give where the file of an option lies here."""
        return self.locate(Path(line.value))

    def lets_anonymous_in(self, listener: Scope) -> Line | None:
        """Give the line by which clients without a name come in at a listener, if they do."""
        for name, scope in (("listener_allow_anonymous", listener), ("allow_anonymous", listener)):
            if self.last(name, scope) is not None:
                return self.last(name, scope) if self.is_true(name, scope) else None
        return self.last("allow_anonymous") if self.is_true("allow_anonymous") else None

    def asked(self, listener: Scope) -> Iterator[Authority]:
        """Give the authorities that a listener asks."""
        yield from (one for one in self.authorities if one.listener is None or one.listener is listener)


def opening(listener: Scope) -> Line:
    """Give the line that opens a listener."""
    return next(listener[name][0] for name in ("listener", "port", "bind_address") if name in listener)


def port_of(listener: Scope) -> int:
    """Give the port of a listener; 0 for a Unix socket, and for what is none."""
    line = listener["listener"][0] if "listener" in listener else listener.get("port", [None])[0]
    word = line.value.partition(" ")[0] if line is not None else "1883"
    try:
        return integer("port", word)
    except BadValue:
        return 0


def is_public(listener: Scope) -> bool:
    """Whether others than this machine reach a listener."""
    if "listener" in listener:
        _, _, address = listener["listener"][0].value.partition(" ")
    else:
        address = listener["bind_address"][0].value if "bind_address" in listener else ""
    interface = listener["bind_interface"][0].value if "bind_interface" in listener else ""
    return port_of(listener) != 0 and interface != "lo" and not is_local(address.strip())
