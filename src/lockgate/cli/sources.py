"""`lockgate sources test | browse`: what devices say, before any of it is published."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from lockgate.cli.common import add_config_argument, load_config, table
from lockgate.config.errors import ConfigError, did_you_mean
from lockgate.config.model import AnySource, Config, HttpSourceConfig, ModbusSourceConfig, OpcuaSourceConfig
from lockgate.config.values import spell_duration

if TYPE_CHECKING:
    from lockgate.sources.modbus import Device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    test = actions.add_parser("test", help="read everything once and show it; publishes nothing")
    test.add_argument("names", nargs="*", metavar="NAME", help="sources (default: all)")
    test.add_argument("--json", action="store_true", help="one JSON object for each value")
    browse = actions.add_parser("browse", help="show the nodes below a node of an OPC UA server")
    browse.add_argument("name", metavar="NAME", help="the source")
    browse.add_argument("node", nargs="?", metavar="NODEID", help="as ns=2;s=Boiler (default: the folder Objects)")


class _Shown(NamedTuple):
    """One value, or why there is none."""

    source: str
    device: str
    group: str
    name: str
    place: str
    raw: str
    value: object
    problem: str | None = None
    topic: str = ""


def main(arguments: argparse.Namespace) -> int:
    """Exit status 1 when a device does not answer, or not with what was asked for."""
    config = load_config(arguments)
    if arguments.action == "browse":
        return _browse(_chosen(config, [arguments.name])[0], arguments.node)
    wrong = False
    for source in _chosen(config, arguments.names):
        if isinstance(source, HttpSourceConfig):
            print("\n".join(_pushed(source)))
            continue
        found = asyncio.run(_modbus(source) if isinstance(source, ModbusSourceConfig) else _opcua(source))
        wrong = wrong or any(one.problem is not None for one in found)
        print("\n".join(_as_json(found) if arguments.json else _as_table(source, found)))
    return 1 if wrong else 0


def _chosen(config: Config, names: list[str]) -> list[AnySource]:
    known = {source.name: source for source in config.sources}
    for name in names:
        if name not in known:
            accepted = ", ".join(known) or "first a [sources.NAME]"
            problem = f"there is no [sources.{name}].{did_you_mean(name, known)}"
            raise ConfigError(problem, path=config.path, accepted=accepted)
    if not known:
        raise ConfigError("there is no source", path=config.path, accepted="a [sources.NAME]")
    return [known[name] for name in names or known]


# --- each type --------------------------------------------------------------------------------------------------------


async def _modbus(config: ModbusSourceConfig) -> list[_Shown]:
    from lockgate.sources.modbus import ModbusSource

    source = ModbusSource(config)
    try:
        found = await asyncio.gather(*(_device(config, device) for device in source.devices))
    finally:
        source.close()
    return [one for some in found for one in some]


async def _device(config: ModbusSourceConfig, device: Device) -> list[_Shown]:
    from lockgate.sources.modbus_link import Answered, Unreachable

    found: list[_Shown] = []
    for group in device.groups:
        topic = config.topic.fill({"source": config.name, "device": device.name, "group": group.name})
        try:
            readings = await device.read(group)
        except Answered as error:
            found.append(_Shown(config.name, device.name, group.name, "", "", "", None, str(error), topic))
            continue
        except Unreachable as error:
            found.append(_Shown(config.name, device.name, group.name, "", "", "", None, str(error), topic))
            break  # the other groups would have to wait for the same silence
        for value, raw, meaning in readings:
            place = f"{value.table} {value.address} {value.kind}"
            words = " ".join(f"{word:04x}" if value.table in ("holding", "input") else str(int(word)) for word in raw)
            found.append(_Shown(config.name, device.name, group.name, value.name, place, words, meaning, None, topic))
    return found


async def _opcua(config: OpcuaSourceConfig) -> list[_Shown]:
    from lockgate.sources.opcua import OpcuaSource

    source = OpcuaSource(config)
    try:
        readings = await source.read_once()
    except source.faults as error:
        problem = str(error) or "no answer in time"
        return [_Shown(config.name, config.endpoint, "", "", "", "", None, problem)]
    found: list[_Shown] = []
    for name, node_id, said in readings:
        status = str(said["status"])
        topic = config.topic.fill({"source": config.name, "node": name})
        fault = None if status.startswith(("Good", "Uncertain")) else status
        time = said["time"]
        at = (
            datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="milliseconds") if isinstance(time, int) else ""
        )
        found.append(_Shown(config.name, config.endpoint, at, name, node_id, status, said["value"], fault, topic))
    return found


def _pushed(config: HttpSourceConfig) -> Iterator[str]:
    host, port = config.listen
    scheme = "https" if config.certfile is not None else "http"
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    who = "" if config.allow_anonymous else ' -H "Authorization: Bearer $(head -1 SECRET_FILE)"'
    yield f"{config.name}: nothing to read; once it runs, push with"
    for route in config.routes:
        path = str(route.path).replace("*}", "}")
        method = "" if "POST" in route.methods else f" -X {route.methods[0]}"
        said = f"-H 'Content-Type: application/json'{who} -d '{{\"value\": 1}}'"
        yield f"  curl{method} {scheme}://{shown}:{port}{path} {said}   # → {route.topic}"


def _browse(source: AnySource, node: str | None) -> int:
    if not isinstance(source, OpcuaSourceConfig):
        raise ConfigError(f"[sources.{source.name}] is no OPC UA source, which alone can be browsed")
    from lockgate.sources.opcua import OpcuaSource

    made = OpcuaSource(source)
    try:
        found = asyncio.run(made.browse(node))
    except made.faults as error:
        print(f"{source.endpoint}: {error or 'no answer in time'}")
        return 1
    print(table(("node", "class", "name"), list(found)))
    return 0


# --- printing ---------------------------------------------------------------------------------------------------------


def _as_table(source: AnySource, found: list[_Shown]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        (one.device, one.group, one.name, one.place, one.raw, json.dumps(one.value, ensure_ascii=False))
        for one in found
        if one.name
    ]
    if rows:
        is_modbus = isinstance(source, ModbusSourceConfig)
        head = ("device", "group", "value", "where", "raw", "means")
        yield table(head if is_modbus else ("server", "time", "value", "node", "status", "means"), rows)
    for one in found:
        if one.problem is not None:
            yield f"{' '.join(part for part in (one.device, one.name or one.group) if part)}: {one.problem}"
    if isinstance(source, ModbusSourceConfig):
        for group in source.groups:
            interval = spell_duration(group.interval_seconds or source.interval_seconds)
            topics = sorted({one.topic for one in found if one.group == group.name})
            yield f"{group.name}: every {interval} to {', '.join(topics)}"


def _as_json(found: list[_Shown]) -> Iterator[str]:
    for one in found:
        said = one._asdict()
        kept = {"value"} if one.problem is None else {"problem"}
        yield json.dumps({name: value for name, value in said.items() if name in kept or value not in ("", None)})
