"""[sources.*]: what it says, and mistakes with file, line, key and what would be accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.config import lockgate_toml
from lockgate.config.errors import ConfigError
from lockgate.config.model import Config, HttpSourceConfig, ModbusSourceConfig, OpcuaSourceConfig
from lockgate.config.templates import parse, parse_path

WHOLE = """\
[sources.push]
type = "http"
url = "mqtts://push@broker.example"
password_file = "push.password"
broker_cafile = "ca.pem"
listen = "[::]:8443"
certfile = "c.pem"
keyfile = "k.pem"
max_body = "64KiB"
read_timeout = "5s"

[sources.push.routes.readings]
path = "/readings/{site}/{rest*}"
topic = "sites/{site}/{body.device.id}/{rest}"
methods = ["POST"]
retain = true

[sources.push.clients.plant]
secret_file = "plant.token"
routes = ["readings"]

[sources.meters]
type = "modbus"
interval = "5s"
status_topic = ""
queue_messages = 5

[sources.meters.devices.main]
address = "192.0.2.10"
unit = 3
framing = "rtu"
word_order = "little"

[sources.meters.devices.sub]
address = "meter.example:1502"

[sources.meters.groups.power]
devices = ["main"]
interval = "1s"
max_gap = 0

[sources.meters.groups.power.values]
volts = { holding = 0, scale = 0.1 }
on = { coil = 3 }
fault = { input = 2, bit = 15 }
serial = { holding = 10, type = "string", length = 8 }

[sources.meters.groups.energy.values.total]
holding = 72
type = "uint32"

[sources.plc]
type = "opcua"
endpoint = "opc.tcp://192.0.2.20:4840/plant"
security_policy = "Basic256Sha256"
certfile = "c.der"
keyfile = "k.pem"
user = "gateway"
user_password_file = "plc.password"
sampling = "100ms"

[sources.plc.nodes]
temperature = "ns=2;s=Boiler.Temperature"
"line 1/level" = "nsu=urn:plant;i=1001"
"""


def load(path: Path, text: str, **environment: str) -> Config:
    toml = path / "lockgate.toml"
    toml.write_text(text)
    return lockgate_toml.load(toml, environment)


def mistakes(path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, text)
    return str(caught.value).replace(f"{path}/", "").splitlines()


def test_everything_a_source_can_say(tmp_path: Path) -> None:
    push, meters, plc = load(tmp_path, WHOLE, LOCKGATE_SOURCES_METERS_URL="mqtt://m@127.0.0.1:1884").sources
    assert isinstance(push, HttpSourceConfig)
    assert (push.service, push.status_name, push.listen) == ("source:push", "sources/push/status", ("::", 8443))
    assert push.connection.url == "mqtts://push@broker.example"
    assert (push.connection.client_id, push.connection.password_file) == (
        "lockgate-source-push",
        tmp_path / "push.password",
    )
    assert (push.max_body_bytes, push.read_timeout_seconds) == (65536, 5.0)
    (route,) = push.routes
    assert route.path == parse_path("/readings/{site}/{rest*}")
    assert route.topic == parse("sites/{site}/{body.device.id}/{rest}")
    assert (route.methods, route.retain) == (("POST",), True)
    assert [(one.name, one.secret_file, one.routes) for one in push.clients] == [
        ("plant", tmp_path / "plant.token", ("readings",))
    ]

    assert isinstance(meters, ModbusSourceConfig)
    assert meters.connection.url == "mqtt://m@127.0.0.1:1884"
    assert (meters.status_name, meters.queue_messages) == ("", 5)
    main, sub = meters.devices
    assert (main.address, main.unit, main.framing, main.word_order) == (("192.0.2.10", 502), 3, "rtu", "little")
    assert (sub.address, sub.unit) == (("meter.example", 1502), 1)
    power, energy = meters.groups
    assert [(one.name, one.table, one.address, one.kind, one.count) for one in power.values] == [
        ("volts", "holding", 0, "uint16", 1),
        ("on", "coil", 3, "bool", 1),
        ("fault", "input", 2, "bool", 1),
        ("serial", "holding", 10, "string", 8),
    ]
    assert [one.count for one in energy.values] == [2]
    assert [group.name for group in meters.groups_of("main")] == ["power", "energy"]
    assert [group.name for group in meters.groups_of("sub")] == ["energy"]

    assert isinstance(plc, OpcuaSourceConfig)
    assert plc.nodes == (("temperature", "ns=2;s=Boiler.Temperature"), ("line 1/level", "nsu=urn:plant;i=1001"))
    assert (plc.sampling_seconds, plc.security_mode) == (0.1, "SignAndEncrypt")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ('type = "opcua"', 'type = "bacnet"', "sources.plc.type: 'bacnet' is no type of source (accepted: \"http\" or"),
        ('topic = "sites/', 'topic = "{site}/', "sources.push.routes.readings.topic: {site}/{site}/{body.device.id}/"),
        ('topic = "sites/', 'topic = "si#tes/', "sources.push.routes.readings.topic: 'si#tes/{site}/"),
        ('topic = "sites/', 'topic = "$SYS/', "does not begin with $"),
        ("{site}/{body", "{side}/{body", "{side} is no variable of the path (accepted: {site}, {rest}, {body.NAME})"),
        ("{rest*}", "{rest*}/x", "{rest*} must be the last level"),
        ('methods = ["POST"]', 'methods = ["GET"]', "sources.push.routes.readings.methods: ['GET'] cannot be used"),
        ('routes = ["readings"]', 'routes = ["reading"]', "'reading' is no route. Did you mean readings?"),
        ('secret_file = "plant.token"', "", "sources.push.clients.plant.secret_file: is missing"),
        ('keyfile = "k.pem"\nmax', "max", "sources.push.keyfile: is missing (accepted: certfile and keyfile"),
        ('listen = "[::]:8443"', 'listen = "8443"', "sources.push.listen: '8443' cannot be used (accepted: HOST:PORT"),
        ("unit = 3", "unit = 300", "sources.meters.devices.main.unit: 300 cannot be used (accepted: 0 to 255)"),
        ("unit = 3", "uint = 3", "sources.meters.devices.main.uint: is no key of it. Did you mean unit?"),
        ('devices = ["main"]', 'devices = ["mian"]', "'mian' is no device. Did you mean main?"),
        ("{ coil = 3 }", "{ coil = 3, input = 4 }", "values.on: is in input and coil (accepted: one of holding,"),
        ("{ coil = 3 }", "{ scale = 2 }", "values.on: has no address (accepted: one of holding, input, coil"),
        ("{ coil = 3 }", '{ coil = 3, type = "int16" }', "values.on.type: a coil is no int16"),
        ("scale = 0.1", 'type = "int61"', "values.volts.type: 'int61' cannot be used (accepted: \"bool\" or"),
        ("scale = 0.1", "scale = 0", "values.volts.scale: makes every value the same"),
        ("holding = 72", "holding = 65535", "values.total.holding: the value ends behind the last address"),
        (", length = 8", "", "values.serial.length: goes with a string"),
        ("volts =", "time =", "values.time: time is when the values were read (accepted: another name)"),
        ('interval = "5s"', 'topic = "meters/{group}"', "main energy and sub energy would have the same topic"),
        ('interval = "5s"', 'topic = "meters/{devise}"', "{devise} is no variable. Did you mean device?"),
        ('interval = "5s"', 'retry_max = "100ms"', "sources.meters.retry_min: is longer than retry_max"),
        ('keyfile = "k.pem"\nuser', "user", "sources.plc.keyfile: is missing, and Basic256Sha256 needs it"),
        ('user = "gateway"\n', "", "sources.plc.user: is missing"),
        ("ns=2;s=Boiler", "ns=x;s=Boiler", "sources.plc.nodes.temperature: {'temperature': 'ns=x;s=Boiler.Temp"),
        ("nsu=urn:plant;i=1001", "ns=2;s=Boiler.Temperature", "is temperature already"),
        ('"line 1/level"', '"line #1"', "'line #1' cannot be part of a topic"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_is_accepted(
    tmp_path: Path, before: str, after: str, expected: str
) -> None:
    assert WHOLE.count(before) == 1, before
    text = WHOLE.replace(before, after)
    lines = mistakes(tmp_path, text)
    assert len(lines) == 1, lines
    assert expected in lines[0]
    number = int(lines[0].split(":")[1])
    # The line of the key, else of the table around it
    shown = text.splitlines()[number - 1]
    key = lines[0].split(": ")[1].rpartition(".")[2]
    assert shown.startswith("[") or key in shown or key in lines[0], shown


def test_the_line_of_a_value_and_of_a_node_is_their_own(tmp_path: Path) -> None:
    bad = WHOLE.replace("{ coil = 3 }", "{ coil = 70000 }").replace("i=1001", "i=x")
    first, second = mistakes(tmp_path, bad)
    lines = bad.splitlines()
    assert lines[int(first.split(":")[1]) - 1].startswith("on = ")
    assert lines[int(second.split(":")[1]) - 1].startswith('"line 1/level"')


def test_what_is_missing_altogether(tmp_path: Path) -> None:
    text = '[sources.a]\ntype = "http"\n[sources.b]\ntype = "modbus"\n[sources.c]\ntype = "modbus"\ndevices = 3\n'
    assert mistakes(tmp_path, text) == [
        "lockgate.toml:7: sources.c.devices: must be tables: [sources.c.devices.NAME]",
    ]
    assert mistakes(tmp_path, text.replace("devices = 3\n", "")) == [
        "lockgate.toml:1: sources.a.routes: is missing (accepted: [sources.a.routes.NAME] with path and topic)",
        "lockgate.toml:1: sources.a.clients: nobody may push "
        "(accepted: [sources.a.clients.NAME] with secret_file, or allow_anonymous = true)",
        *(
            f"lockgate.toml:{line}: sources.{name}.{what}: is missing "
            f"(accepted: [sources.{name}.{what}.NAME] with {key})"
            for line, name in ((3, "b"), (5, "c"))
            for what, key in (("devices", "address"), ("groups", "values"))
        ),
    ]


def test_two_sources_on_one_port(tmp_path: Path) -> None:
    one = 'type = "http"\nallow_anonymous = true\n[sources.{0}.routes.r]\npath = "/"\ntopic = "t"\n'
    text = "".join(f"[sources.{name}]\n{one.format(name)}" for name in ("a", "b"))
    assert mistakes(tmp_path, text) == [
        "lockgate.toml:7: sources.b.listen: [sources.a] listens there (accepted: another port)"
    ]
