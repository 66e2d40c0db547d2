"""What devices say that do not speak MQTT: each source is a service of its own, and a client of the broker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from lockgate.client import parse_endpoint
from lockgate.config.errors import ConfigError
from lockgate.config.libraries import library
from lockgate.config.model import AnySource, HttpSourceConfig, ModbusSourceConfig, OpcuaSourceConfig


class Source(Protocol):
    """A service named `source:NAME`."""

    @property
    def name(self) -> str: ...

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled. Raises ConfigError for what a person must correct."""

    def status(self) -> Mapping[str, object]: ...


def build(config: AnySource) -> Source:
    """Make the source; its library is imported only here. Raises ConfigError, also where that is missing."""
    if isinstance(config, HttpSourceConfig):
        from lockgate.sources.http import HttpSource

        return HttpSource(config)
    if isinstance(config, ModbusSourceConfig):
        from lockgate.sources.modbus import ModbusSource

        return ModbusSource(config)
    from lockgate.sources.opcua import OpcuaSource

    return OpcuaSource(config)


def check(config: AnySource) -> None:
    """Import the library of a source and read its URL, but no secret. Raises ConfigError."""
    section = f"sources.{config.name}"
    if isinstance(config, ModbusSourceConfig):
        library("pymodbus.client", "modbus", section)
    elif isinstance(config, OpcuaSourceConfig):
        library("asyncua", "opcua", section)
    try:
        parse_endpoint(config.connection.url)
    except ValueError as error:
        raise ConfigError(str(error), key=f"{section}.url") from None
