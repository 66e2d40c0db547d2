"""[sources.*] of lockgate.toml: what is pushed over HTTP, and what is read from devices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from lockgate.config import values
from lockgate.config.errors import did_you_mean
from lockgate.config.model import (
    MODBUS_TYPES,
    AnySource,
    HttpClientConfig,
    HttpRouteConfig,
    HttpSourceConfig,
    ModbusDeviceConfig,
    ModbusGroupConfig,
    ModbusSourceConfig,
    ModbusValueConfig,
    OpcuaSourceConfig,
)
from lockgate.config.sections import CONNECTION, Key, Section
from lockgate.config.templates import CONTROL, parse, parse_path
from lockgate.config.values import BadValue, Kind

Mistake = tuple[tuple[str, ...], str, str | None]  # the key, the problem, what would be accepted

_METHODS: Final = ("POST", "PUT", "PATCH")
_REGISTERS: Final = 65_536
TIME: Final = "time"  # the member of a Modbus message that says when it was read
_T = TypeVar("_T")


# --- kinds of values --------------------------------------------------------------------------------------------------


def _template(parse: Callable[[str], _T]) -> Callable[[object], _T]:
    def read(value: object) -> _T:
        if not isinstance(value, str):
            raise BadValue
        try:
            return parse(value)
        except ValueError as error:
            raise BadValue(str(error)) from None

    return read


def _status_topic(value: object) -> str:
    if not isinstance(value, str) or set(value.replace("{source}", "")) & set("+#{}") or value.startswith("$"):
        raise BadValue
    if CONTROL.search(value):
        raise BadValue("it holds a control character")
    return value


def _address(port: int | None) -> Callable[[object], tuple[str, int]]:
    def read(value: object) -> tuple[str, int]:
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+)(?::([0-9]{1,5}))?", str(value))
        number = int(match[2]) if match is not None and match[2] else port
        if match is None or not isinstance(value, str) or number is None or not 0 < number < 65536:
            raise BadValue
        return match[1].strip("[]"), number

    return read


def _methods(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(one in _METHODS for one in value):
        raise BadValue
    return tuple(dict.fromkeys(value))


def _nodes(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not value:
        raise BadValue
    for name, node in value.items():
        if set(name) & set("+#") or CONTROL.search(name) or not name:
            raise BadValue(f"{name!r} cannot be part of a topic", below=(name,))
        if not isinstance(node, str) or not _NODE_ID.fullmatch(node):
            raise BadValue(f"{node!r} is no NodeId", below=(name,))
    return tuple(value.items())


_NODE_ID: Final = re.compile(
    r"(?:ns=\d{1,5};|nsu=[^;]+;)?(?:i=\d{1,10}|s=.+|g=[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|b=[A-Za-z0-9+/=]+)"
)


def _factor(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise BadValue
    return float(value)


TOPIC: Final = Kind("a topic with variables, as plant/{device}", _template(parse), text=True)
ROUTE_PATH: Final = Kind(
    "a path, as /readings/{device}; {rest*} at its end takes several levels", _template(parse_path), text=True
)
STATUS_TOPIC: Final = Kind('a Topic Name, with or without {source}; "" for none', _status_topic, text=True)
LISTEN: Final = Kind("HOST:PORT, as 0.0.0.0:8080 or [::]:8080", _address(None), text=True)
MODBUS_ADDRESS: Final = Kind("HOST[:PORT]; the port is 502 if none is said", _address(502), text=True)
METHODS: Final = Kind(f"a list of {', '.join(_METHODS)}", _methods)
NODES: Final = Kind(
    'names and NodeIds, as { temperature = "ns=2;s=Boiler.Temperature", level = "nsu=urn:plant;i=1001" }', _nodes
)
FACTOR: Final = Kind("a number", _factor)


# --- sections ---------------------------------------------------------------------------------------------------------

_SOURCE = (
    Key("type", values.one_of("http", "modbus", "opcua"), "what kind of source this is", required=True),
    Key(
        "url",
        values.url("mqtt", "mqtts", "ws", "wss"),
        "the broker: mqtt://[USER[:PASSWORD]@]HOST[:PORT], mqtts:// and the like",
    ),
    *CONNECTION,
    Key("broker_cafile", values.PATH, "of mqtts: authorities that are trusted, in PEM", default="those of the system"),
    Key("broker_certfile", values.PATH, "our certificate there and its chain, in PEM", default="none"),
    Key("broker_keyfile", values.PATH, "its private key", default="none"),
    Key(
        "status_topic",
        STATUS_TOPIC,
        "retained `online` or `offline`, the latter by a Will too; what is known of a device is below it, at "
        "STATUS_TOPIC/DEVICE",
    ),
)
_QUEUE = (
    Key(
        "queue_messages",
        values.whole_number(1, 1_000_000),
        "messages that wait in memory while the broker is away; then the oldest are dropped, and counted",
    ),
    Key("queue", values.size(64 * 1024, 1024**3), "their topics and payloads", field="queue_bytes"),
)
_RETRY = (
    Key("retry_min", values.duration(0.01, 3600), "first pause before a retry", field="retry_min_seconds"),
    Key("retry_max", values.duration(0.01, 86400), "longest pause before a retry", field="retry_max_seconds"),
)

SOURCE_SECTIONS: tuple[Section, ...] = (
    Section(
        "sources",
        "Messages pushed over HTTP. Each source is a service of its own, `source:NAME`, and publishes to the broker as "
        "any device does. A request is answered when the broker has acknowledged all of it.",
        (
            *_SOURCE,
            Key("listen", LISTEN, "where it listens", default='`"127.0.0.1:8080"`'),
            Key("certfile", values.PATH, "our certificate and its chain, in PEM: HTTPS", default="none: HTTP"),
            Key("keyfile", values.PATH, "its private key", default="none"),
            Key("cafile", values.PATH, "clients must show a certificate of these authorities", default="none"),
            Key("allow_anonymous", values.YES_OR_NO, "whether anybody may push; else there are `clients`"),
            Key("max_body", values.size(1, 1024**3), "of a request, once decompressed", field="max_body_bytes"),
            Key("max_messages", values.whole_number(1, 1_000_000), "messages in one request"),
            Key("max_connections", values.whole_number(1, 100_000), "connections at once; more are closed"),
            Key(
                "max_requests",
                values.whole_number(1, 100_000),
                "requests at once that wait for the broker; more are answered with 503",
            ),
            Key(
                "read_timeout",
                values.duration(0.1, 3600),
                "until a request is there, whole",
                field="read_timeout_seconds",
            ),
            Key(
                "timeout",
                values.duration(0.1, 3600),
                "until the broker has acknowledged it; then the answer is 503",
                field="timeout_seconds",
            ),
            Key(
                "idempotency",
                values.duration(1, 7 * 86400),
                "how long an Idempotency-Key is remembered: a repeat gets the same answer and is not published again",
                field="idempotency_seconds",
            ),
            Key("idempotency_keys", values.whole_number(1, 1_000_000), "how many; the oldest go first"),
        ),
        HttpSourceConfig,
        named=True,
        variant="http",
        inner=(
            Section(
                "sources.NAME.routes",
                "Which requests are taken; the first route whose path and method fit counts.",
                (
                    Key("path", ROUTE_PATH, "path of the requests", required=True),
                    Key(
                        "topic",
                        TOPIC,
                        "topic of their messages, with variables of the path or of the JSON, as {body.device.id}; it "
                        "begins with a level that is fixed",
                        required=True,
                    ),
                    Key("methods", METHODS, "methods it takes"),
                    Key("retain", values.YES_OR_NO, "whether the broker keeps the last message of each topic"),
                ),
                HttpRouteConfig,
                named=True,
            ),
            Section(
                "sources.NAME.clients",
                "Who may push: `Authorization: Bearer SECRET`, or Basic with NAME and the secret as the password.",
                (
                    Key("secret_file", values.PATH, "file whose first line is the secret", required=True),
                    Key("routes", values.NAMES, "routes it may use", default="all"),
                ),
                HttpClientConfig,
                named=True,
            ),
        ),
    ),
    Section(
        "sources",
        "Registers of devices that speak Modbus TCP, read in intervals. Needs lockgate[modbus].",
        (
            *_SOURCE,
            *_QUEUE,
            Key("topic", TOPIC, "topic of a message: {source}, {device}, {group}"),
            Key("interval", values.duration(0.05, 7 * 86400), "between two reads of a group", field="interval_seconds"),
            *_RETRY,
        ),
        ModbusSourceConfig,
        named=True,
        variant="modbus",
        inner=(
            Section(
                "sources.NAME.devices",
                "A device, which answers at an address as a unit. Those at one address share a connection; one that "
                "does not answer holds up no other.",
                (
                    Key("address", MODBUS_ADDRESS, "where it is, or the gateway before it", required=True),
                    Key("unit", values.whole_number(0, 255), "unit id"),
                    Key("framing", values.one_of("tcp", "rtu"), "`rtu`: frames of the serial line over TCP"),
                    Key("byte_order", values.one_of("big", "little"), "of the two bytes of a register"),
                    Key("word_order", values.one_of("big", "little"), "of the registers of one value"),
                    Key("timeout", values.duration(0.05, 300), "longest wait for an answer", field="timeout_seconds"),
                    Key("max_count", values.whole_number(1, 125), "registers of one request"),
                ),
                ModbusDeviceConfig,
                named=True,
            ),
            Section(
                "sources.NAME.groups",
                "Values that are read together and become one message, of each device: a JSON object with their names "
                "and `time`, Unix milliseconds.",
                (
                    Key(
                        "interval",
                        values.duration(0.05, 7 * 86400),
                        "between two reads",
                        field="interval_seconds",
                        default="that of the source",
                    ),
                    Key("devices", values.NAMES, "of which devices", default="all"),
                    Key(
                        "max_gap",
                        values.whole_number(0, 2000),
                        "registers or bits between two values that are read along rather than asked for apart",
                    ),
                ),
                ModbusGroupConfig,
                named=True,
                inner=(
                    Section(
                        "sources.NAME.groups.NAME.values",
                        "One value: its address, from 0, in one of the four tables. `energy = { holding = 72, type = "
                        '"uint32", scale = 0.01 }`',
                        (
                            *(
                                Key(
                                    table,
                                    values.whole_number(0, _REGISTERS - 1),
                                    f"address of a {what}",
                                    default="none",
                                )
                                for table, what in (
                                    ("holding", "holding register"),
                                    ("input", "input register"),
                                    ("coil", "coil"),
                                    ("discrete", "discrete input"),
                                )
                            ),
                            Key(
                                "type",
                                values.one_of(*MODBUS_TYPES, "string"),
                                "what is there",
                                default="`bool` of a coil, a discrete input or a `bit`, else `uint16`",
                            ),
                            Key("length", values.whole_number(1, 125), "registers of a string", default="none"),
                            Key("bit", values.whole_number(0, 15), "of a register, from the lowest", default="none"),
                            Key("scale", FACTOR, "factor of a number"),
                            Key("offset", FACTOR, "added to it then"),
                        ),
                        ModbusValueConfig,
                        named=True,
                    ),
                ),
            ),
        ),
    ),
    Section(
        "sources",
        "Values of nodes of an OPC UA server. Each becomes a JSON object with `value`, `status` and `time`, the "
        "source's timestamp in Unix milliseconds; a bad value is null. Needs lockgate[opcua].",
        (
            *_SOURCE,
            *_QUEUE,
            Key("endpoint", values.url("opc.tcp"), "the server: opc.tcp://HOST[:PORT][/PATH]", required=True),
            Key("nodes", NODES, "which values", required=True),
            Key("topic", TOPIC, "topic of a message: {source}, {node}"),
            Key("mode", values.one_of("subscribe", "poll"), "whether the server tells changes or is asked"),
            Key(
                "interval",
                values.duration(0.05, 86400),
                "publishing interval, or between two reads",
                field="interval_seconds",
            ),
            Key(
                "sampling",
                values.duration(0, 86400),
                "how often the server looks at a value, to subscribe",
                field="sampling_seconds",
                default="the interval",
            ),
            Key("queue_size", values.whole_number(1, 10_000), "changes of a node that the server keeps in between"),
            Key(
                "security_policy",
                values.one_of("None", "Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"),
                "of the connection",
            ),
            Key("security_mode", values.one_of("Sign", "SignAndEncrypt"), "with a policy: what is done to messages"),
            Key("certfile", values.PATH, "our certificate, in PEM or DER", default="none"),
            Key("keyfile", values.PATH, "its private key", default="none"),
            Key(
                "server_certfile",
                values.PATH,
                "the server's certificate, the only one that is accepted",
                default="none: whatever it shows",
            ),
            Key("application_uri", values.TEXT, "ours, as it stands in our certificate"),
            Key("user", values.TEXT, "user name there", default="none: anonymous"),
            Key("user_password_file", values.PATH, "file whose first line is the user's password", default="none"),
            Key("timeout", values.duration(0.1, 300), "longest wait for an answer", field="timeout_seconds"),
            *_RETRY,
        ),
        OpcuaSourceConfig,
        named=True,
        variant="opcua",
    ),
)


# --- what belongs together --------------------------------------------------------------------------------------------


def mistakes(sources: Sequence[AnySource]) -> Iterator[Mistake]:
    """What is wrong with sources that each key alone does not tell."""
    listening: dict[tuple[str, int], str] = {}
    for source in sources:
        where = ("sources", source.name)
        if isinstance(source, HttpSourceConfig):
            other = listening.setdefault(source.listen, source.name)
            if other != source.name:
                yield (*where, "listen"), f"[sources.{other}] listens there", "another port"
            yield from _http(source, where)
            continue
        if source.retry_min_seconds > source.retry_max_seconds:
            limit = f"up to {values.spell_duration(source.retry_max_seconds)}"
            yield (*where, "retry_min"), "is longer than retry_max", limit
        if isinstance(source, ModbusSourceConfig):
            yield from _modbus(source, where)
        else:
            yield from _opcua(source, where)


def _http(source: HttpSourceConfig, where: tuple[str, ...]) -> Iterator[Mistake]:
    if not source.routes:
        yield (*where, "routes"), "is missing", f"[{'.'.join(where)}.routes.NAME] with path and topic"
    for route in source.routes:
        here = (*where, "routes", route.name, "topic")
        for variable in route.topic.variables:
            if variable not in route.path.variables and not variable.startswith("body."):
                known = [*(f"{{{one}}}" for one in route.path.variables), "{body.NAME}"]
                yield here, f"{{{variable}}} is no variable of the path", ", ".join(known)
        if "/" not in route.topic.literals[0] and route.topic.variables:
            yield here, f"{route.topic} begins with what a client chooses", "a fixed first level, as push/{device}"
    if not source.clients and not source.allow_anonymous:
        accepted = f"[{'.'.join(where)}.clients.NAME] with secret_file, or allow_anonymous = true"
        yield (*where, "clients"), "nobody may push", accepted
    names = [route.name for route in source.routes]
    for client in source.clients:
        for name in client.routes:
            if name not in names:
                problem = f"{name!r} is no route.{did_you_mean(name, names)}"
                yield (*where, "clients", client.name, "routes"), problem, ", ".join(names)
    if (source.certfile is None) != (source.keyfile is None):
        missing = "certfile" if source.certfile is None else "keyfile"
        yield (*where, missing), "is missing", "certfile and keyfile, or neither"
    if source.cafile is not None and source.certfile is None:
        yield (*where, "cafile"), "needs TLS", "certfile and keyfile beside it"


def _modbus(source: ModbusSourceConfig, where: tuple[str, ...]) -> Iterator[Mistake]:
    yield from _variables(source.topic.variables, ("source", "device", "group"), (*where, "topic"))
    if not source.devices:
        yield (*where, "devices"), "is missing", f"[{'.'.join(where)}.devices.NAME] with address"
    if not source.groups:
        yield (*where, "groups"), "is missing", f"[{'.'.join(where)}.groups.NAME] with values"
    names = [device.name for device in source.devices]
    for group in source.groups:
        here = (*where, "groups", group.name)
        for name in group.devices:
            if name not in names:
                yield (*here, "devices"), f"{name!r} is no device.{did_you_mean(name, names)}", ", ".join(names)
        if not group.values:
            yield (*here, "values"), "is missing", f"[{'.'.join(here)}.values] with addresses"
        for value in group.values:
            for key, problem, accepted in _value(value):
                yield (*here, "values", value.name, *key), problem, accepted
    topics: dict[str, tuple[str, str]] = {}
    for name in names:
        for group in source.groups_of(name):
            known = {"source": source.name, "device": name, "group": group.name}
            if set(source.topic.variables) <= known.keys():
                first = topics.setdefault(source.topic.fill(known), (name, group.name))
                if first != (name, group.name):
                    problem = f"{first[0]} {first[1]} and {name} {group.name} would have the same topic"
                    yield (*where, "topic"), problem, "{device} and {group} in it"
                    return


def _value(value: ModbusValueConfig) -> Iterator[Mistake]:
    tables = [one for one in ("holding", "input", "coil", "discrete") if getattr(value, one) is not None]
    if len(tables) != 1:
        problem = "has no address" if not tables else f"is in {' and '.join(tables)}"
        yield (), problem, "one of holding, input, coil, discrete"
        return
    is_bit = tables[0] in ("coil", "discrete")
    if value.name == TIME:
        yield (), f"{TIME} is when the values were read", "another name"
    if is_bit and value.kind != "bool":
        yield ("type",), f"a {tables[0]} is no {value.kind}", '"bool"'
    if value.bit is not None and (is_bit or value.kind != "bool"):
        yield ("bit",), "is for a bool in a register", "holding or input, and no other type"
    if (value.kind == "string") != (value.length > 0):
        yield ("length",), "goes with a string", 'type = "string" and its length in registers'
    if value.kind in ("bool", "string") and (value.scale != 1 or value.offset != 0):
        yield ("scale",), f"a {value.kind} is no number", "a type of numbers"
    if value.scale == 0:
        yield ("scale",), "makes every value the same", "any number but 0"
    if value.address + value.count > _REGISTERS:
        yield (tables[0],), "the value ends behind the last address", f"up to {_REGISTERS - value.count}"


def _opcua(source: OpcuaSourceConfig, where: tuple[str, ...]) -> Iterator[Mistake]:
    yield from _variables(source.topic.variables, ("source", "node"), (*where, "topic"))
    if "node" not in source.topic.variables and len(source.nodes) > 1:
        yield (*where, "topic"), "would be that of several nodes", "{node} in it"
    known: dict[str, str] = {}
    for name, node in source.nodes:
        if known.setdefault(node, name) != name:
            yield (*where, "nodes", name), f"{node} is {known[node]} already", "each node once"
    if source.security_policy != "None":
        for key in ("certfile", "keyfile"):
            if getattr(source, key) is None:
                yield (*where, key), f"is missing, and {source.security_policy} needs it", "a certificate and its key"
    if source.user_password_file is not None and source.user is None:
        yield (*where, "user"), "is missing", "the user of the password"


def _variables(found: Sequence[str], known: Sequence[str], where: tuple[str, ...]) -> Iterator[Mistake]:
    for one in found:
        if one not in known:
            yield where, f"{{{one}}} is no variable.{did_you_mean(one, known)}", ", ".join(f"{{{a}}}" for a in known)
