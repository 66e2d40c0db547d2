"""What devices say that do not speak MQTT: each source is a service of its own, and a client of the broker."""

from __future__ import annotations

from lockgate.client import parse_endpoint
from lockgate.config.errors import ConfigError
from lockgate.config.libraries import library
from lockgate.config.model import AnySource, HttpSourceConfig, ModbusSourceConfig, OpcuaSourceConfig
from lockgate.sources.service import Source, SourceService


def build(config: AnySource) -> SourceService:
    """Make the service of a source; only here its library is imported. Raises ConfigError, also without that."""
    return SourceService(config, _build)


def _build(config: AnySource) -> Source:
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
