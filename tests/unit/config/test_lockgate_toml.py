"""lockgate.toml: values, environment, and mistakes with file, line, key and what would be accepted."""

from __future__ import annotations

import socket
from ipaddress import ip_network
from pathlib import Path

import pytest

from lockgate.config import lockgate_toml, reference
from lockgate.config.errors import ConfigError
from lockgate.config.model import (
    AcmeConfig,
    BrokerConfig,
    BrokerLimitsConfig,
    BufferConfig,
    Config,
    ConnectionConfig,
    FileSinkConfig,
    ForwarderConfig,
    GatewayConfig,
    HttpBodyConfig,
    HttpSinkConfig,
    ListenerConfig,
    MqttSinkConfig,
    ProcessorConfig,
    RuleConfig,
    SchemaConfig,
    Window,
)

REPOSITORY = Path(__file__).parents[3]

WHOLE = """\
[gateway]
id = "hall-3"
data_dir = "data"
run_dir = "/run/lockgate"

[broker]
mosquitto_conf = "mosquitto.conf"

[processor]
url = "mqtt://user:secret@127.0.0.1:1884"
password_file = "secrets/processor"
client_id = "proc"
mqtt_version = "3.1.1"
keep_alive = 10
receive_maximum = 50

[buffer]
segment = "64MiB"
limit = "2GiB"
classes = ["alarm", "telemetry", "raw"]

[schemas.reading]
topics = ["sensors/#"]
fields = { value = "real", unit = "text" }
optional = ["unit"]

[rules.mean]
schema = "reading"
class = "telemetry"
every = "10s"
sql = '''
SELECT topic, avg(value) AS mean
FROM reading
GROUP BY topic
'''

[rules.alarm]
schema = "reading"
class = "alarm"
topic = "alarms"
sql = "SELECT :value AS value WHERE :value > 90"

[sinks.cloud]
type = "http"
url = "https://cloud.example/in"
headers = { Authorization = "Bearer x" }
classes = ["alarm"]
batch = 10
timeout = 5
retry_min = "250ms"
retry_max = "2m"

[sinks.other]
type = "mqtt"
url = "mqtt://other.example"
topic_prefix = "site/"

[sinks.disk]
type = "file"
path = "out.jsonl"
"""


ACME = "[edge.acme]\nagree_to_terms = true\n"


def load(folder: Path, text: str, **environment: str) -> Config:
    path = folder / "lockgate.toml"
    path.write_text(text)
    return lockgate_toml.load(path, environment)


def refused(folder: Path, text: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **environment)
    return str(caught.value).replace(f"{folder}/", "")


def test_without_a_file_everything_has_a_default() -> None:
    assert lockgate_toml.load(None, {}) == Config(
        path=None,
        gateway=GatewayConfig(id=socket.gethostname()),
        broker=BrokerConfig(),
        processor=ProcessorConfig(),
        buffer=BufferConfig(),
        forwarder=ForwarderConfig(),
    )


def test_a_file_that_says_everything(tmp_path: Path) -> None:
    (tmp_path / "mosquitto.conf").write_text("listener 1884\n")
    classes = ("alarm", "telemetry", "raw")
    assert load(tmp_path, WHOLE) == Config(
        path=tmp_path / "lockgate.toml",
        gateway=GatewayConfig(id="hall-3", data_dir=tmp_path / "data", run_dir=Path("/run/lockgate")),
        broker=BrokerConfig(
            path=tmp_path / "mosquitto.conf",
            listeners=(ListenerConfig(port=1884),),
            listeners_said=True,
            allow_anonymous=False,
        ),
        processor=ProcessorConfig(
            connection=ConnectionConfig(
                url="mqtt://user:secret@127.0.0.1:1884",
                password_file=tmp_path / "secrets/processor",
                client_id="proc",
                version="3.1.1",
                keep_alive_seconds=10,
            ),
            receive_maximum=50,
            schemas=(
                SchemaConfig(
                    name="reading",
                    topics=("sensors/#",),
                    fields=(("value", "real"), ("unit", "text")),
                    optional=frozenset({"unit"}),
                ),
            ),
            rules=(
                RuleConfig(
                    name="mean",
                    schema="reading",
                    message_class="telemetry",
                    every_seconds=10.0,
                    sql="SELECT topic, avg(value) AS mean\nFROM reading\nGROUP BY topic\n",
                    line=27,
                ),
                RuleConfig(
                    name="alarm",
                    schema="reading",
                    message_class="alarm",
                    topic="alarms",
                    sql="SELECT :value AS value WHERE :value > 90",
                    line=37,
                ),
            ),
        ),
        buffer=BufferConfig(segment_bytes=64 * 1024**2, limit_bytes=2 * 1024**3, classes=classes),
        forwarder=ForwarderConfig(
            sinks=(
                HttpSinkConfig(
                    name="cloud",
                    url="https://cloud.example/in",
                    headers=(("Authorization", "Bearer x"),),
                    classes=("alarm",),
                    batch=10,
                    timeout_seconds=5.0,
                    retry_min_seconds=0.25,
                    retry_max_seconds=120.0,
                ),
                MqttSinkConfig(
                    name="other",
                    connection=ConnectionConfig(url="mqtt://other.example", client_id="lockgate-other"),
                    topic_prefix="site/",
                    classes=classes,
                ),
                FileSinkConfig(name="disk", path=tmp_path / "out.jsonl", classes=classes),
            )
        ),
    )


def test_the_environment_overrides_the_file_and_its_silence(tmp_path: Path) -> None:
    (tmp_path / "mosquitto.conf").write_text("")
    config = load(
        tmp_path,
        WHOLE,
        LOCKGATE_GATEWAY_ID="007",
        LOCKGATE_BUFFER_LIMIT="3GiB",
        LOCKGATE_PROCESSOR_RECEIVE_MAXIMUM="7",
        LOCKGATE_SINKS_CLOUD_URL="http://127.0.0.1:8080/",
        LOCKGATE_SINKS_CLOUD_CLASSES='["raw"]',
        LOCKGATE_RULES_MEAN_EVERY="1m",
        LOCKGATE_PURE="1",
        PATH="/bin",
    )
    assert config.gateway.id == "007"
    assert config.buffer.limit_bytes == 3 * 1024**3
    assert config.processor.receive_maximum == 7
    sink = config.forwarder.sinks[0]
    assert isinstance(sink, HttpSinkConfig)
    assert (sink.url, sink.classes) == ("http://127.0.0.1:8080/", ("raw",))
    assert config.processor.rules[0].every_seconds == 60.0
    assert lockgate_toml.load(None, {"LOCKGATE_GATEWAY_ID": "x"}).gateway.id == "x"


def test_the_broker_s_own_words(tmp_path: Path) -> None:
    (tmp_path / "mosquitto.conf").write_text("memory_limit 1000000\nglobal_max_clients 5\nglobal_max_connections -3\n")
    text = """
[broker]
mosquitto_conf = "mosquitto.conf"
memory_budget = "64MiB"
alarms = ["alarm/#"]
server_reference = "other.example:1883"
server_moved = true
trusted_proxies = ["192.0.2.1", "2001:db8::/32"]
[broker.limits]
publish_rate = 2.5
flapping_window = "2m"
subscriptions = 7
"""
    broker = load(tmp_path, text, LOCKGATE_BROKER_LIMITS_PENDING_LOGINS="9").broker
    assert (broker.memory_limit, broker.global_max_clients, broker.global_max_connections) == (1_000_000, 5, -1)
    assert (broker.memory_budget, broker.alarms, broker.server_moved) == (64 * 1024**2, ("alarm/#",), True)
    assert broker.trusted_proxies == (ip_network("192.0.2.1"), ip_network("2001:db8::/32"))
    assert broker.limits == BrokerLimitsConfig(
        publish_rate=2.5, flapping_window_seconds=120.0, subscriptions=7, pending_logins=9
    )


def test_an_override_that_fits_nothing_is_a_mistake(tmp_path: Path) -> None:
    said = refused(tmp_path, "", LOCKGATE_GATEWAY_DATADIR="/x")
    assert said == (
        "LOCKGATE_GATEWAY_DATADIR: overrides nothing that lockgate.toml knows. Did you mean LOCKGATE_GATEWAY_DATA_DIR?"
    )
    assert "overrides nothing" in refused(tmp_path, WHOLE, LOCKGATE_SINKS_CLOUDS_URL="http://x")


def test_a_path_with_a_nul_is_a_mistake(tmp_path: Path) -> None:
    assert "gateway.data_dir: 'a\\x00b' cannot be used: a path holds no NUL" in refused(
        tmp_path, '[gateway]\ndata_dir = "a\\u0000b"\n'
    )


def test_a_value_of_the_environment_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    said = refused(tmp_path, "[buffer]\nlimit = '1GiB'\n", LOCKGATE_BUFFER_LIMIT="3")
    assert said.startswith("LOCKGATE_BUFFER_LIMIT: 3 cannot be used (accepted: 1MiB to ")
    said = refused(tmp_path, RULE, LOCKGATE_RULES_R_CLASS="alram")
    assert said.startswith("LOCKGATE_RULES_R_CLASS: 'alram' is not among buffer.classes. Did you mean alarm?")


SCHEMA = '[schemas.s]\ntopics = ["a"]\nfields = {v = "real"}\n'
RULE = SCHEMA + '[rules.r]\nschema = "s"\nclass = "alarm"\nsql = "SELECT 1"\n'
SINK = '[sinks.c]\ntype = "http"\nurl = "http://h/"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gatway]\n", "lockgate.toml:1: gatway: is no section. Did you mean gateway? (accepted: gateway, broker"),
        ("[gateway]\n\nidd = 3", "lockgate.toml:3: gateway.idd: is no key of it. Did you mean id? (accepted: id, data"),
        ("gateway = 3", "lockgate.toml:1: gateway: must be a table: [gateway]"),
        ("[gateway]\nid = 3", "lockgate.toml:2: gateway.id: 3 cannot be used (accepted: text that is not empty)"),
        ("[gateway]\nid = ''", "lockgate.toml:2: gateway.id: '' cannot be used (accepted: text that is not empty)"),
        ("[gateway]\nid = ", "lockgate.toml:2: is not valid TOML: Invalid value"),
        ('[gateway]\nid = "a', "lockgate.toml:2: is not valid TOML"),
        (
            "[processor]\nkeep_alive = 0",
            "lockgate.toml:2: processor.keep_alive: 0 cannot be used (accepted: 1 to 65535)",
        ),
        ("[processor]\nkeep_alive = true", "True cannot be used (accepted: 1 to 65535)"),
        ("[processor]\nurl = 'http://x'", "processor.url: its value cannot be used (accepted: mqtt://HOST[:PORT])"),
        ("[processor]\nurl = 'mqtt://x:99999'", "Port out of range"),
        ("[processor]\nmqtt_version = 5", '5 cannot be used (accepted: "3.1.1" or "5")'),
        (
            "[buffer]\nsegment = '1 parsec'",
            "lockgate.toml:2: buffer.segment: '1 parsec' cannot be used (accepted: 64KiB to",
        ),
        ("[buffer]\nsegment = '2GiB'", "accepted: 64KiB to 1GiB"),
        ("[buffer]\nlimit = '2MiB'", "buffer.segment: is larger than limit"),
        ("[buffer]\nclasses = []", "the list is empty"),
        ("[buffer]\nclasses = ['a', 'a']", "a name stands there twice"),
        ("schemas = 3", "schemas: must be tables: [schemas.NAME]"),
        (
            "[schemas.'a b']\ntopics=['a']\nfields={v='real'}",
            "schemas.a b: cannot be a name (accepted: 1 to 64 letters",
        ),
        (
            "[schemas.s]\nfields = {v = 'real'}",
            "lockgate.toml:1: schemas.s.topics: is missing (accepted: a list of Topic",
        ),
        (
            SCHEMA.replace('"a"', '"a#"'),
            "lockgate.toml:2: schemas.s.topics: ['a#'] cannot be used: 'a#' is no Topic Filter",
        ),
        (SCHEMA.replace('"a"', '"a/#/b"'), "# must be the whole last level"),
        (SCHEMA.replace('"a"', '"a/b+"'), "+ must be a whole level"),
        (SCHEMA.replace('"a"', '"$share/a"'), "$share/GROUP/FILTER"),
        (
            SCHEMA.replace("real", "float"),
            "lockgate.toml:3: schemas.s.fields: {'v': 'float'} cannot be used: v = 'float' is no",
        ),
        (SCHEMA + "optional = ['w']", "lockgate.toml:4: schemas.s.optional: 'w' is not among its fields (accepted: v)"),
        (RULE.replace('"s"', '"t"'), "lockgate.toml:5: rules.r.schema: there is no [schemas.t]. (accepted: s)"),
        (
            RULE.replace("alarm", "alram"),
            "rules.r.class: 'alram' is not among buffer.classes. Did you mean alarm? (accepted:",
        ),
        (RULE + "topic = 'a/+'", "lockgate.toml:8: rules.r.topic: 'a/+' cannot be used: 'a/+' is no Topic Name"),
        (RULE + "every = '10'", "rules.r.every: '10' cannot be used (accepted: 100ms to 1d"),
        (RULE + "every = 0", "rules.r.every: 0 cannot be used (accepted: 100ms to 1d"),
        (
            "[sinks.c]\nurl = 'http://h/'",
            'lockgate.toml:1: sinks.c.type: is missing (accepted: "http" or "mqtt" or "file" or',
        ),
        ("[sinks.c]\ntype = 'ftp'", "lockgate.toml:2: sinks.c.type: 'ftp' is no type of sink (accepted:"),
        (
            SINK + "path = 'x'",
            "lockgate.toml:4: sinks.c.path: is no key of it. Did you mean batch? (accepted: type, classes",
        ),
        (SINK + "classes = ['x']", "sinks.c.classes: 'x' is not among buffer.classes. (accepted: alarm, telemetry)"),
        (SINK + "retry_min = '2h'", "sinks.c.retry_min: '2h' cannot be used (accepted: 10ms to 1h"),
        (SINK + "retry_min = 9\nretry_max = 3", "sinks.c.retry_min: is longer than retry_max (accepted: up to 3s)"),
        (SINK + "headers = { 'a b' = 'x' }", "'a b' is no name of a header"),
        (SINK + "json = { to = '{payload.to' }", "lockgate.toml:4: sinks.c.json: "),
        (SINK + "json = { to = '{payload.to' }", "{ stands alone in '{payload.to'; a brace itself is written twice"),
        (SINK + "json = { to = [ { x = '{paylod}' } ] }", "{paylod} in '{paylod}' is no placeholder. Did you mean"),
        (SINK + "json = { at = 2026-01-01 }", "JSON has no dates"),
        (SINK + "json = { at = nan }", "JSON has no nan"),
        (SINK + "form = { to = 1 }", "sinks.c.form: {'to': 1} cannot be used (accepted: text by name"),
        (SINK + "json = {}\nform = { a = 'b' }", "lockgate.toml:5: sinks.c.form: is a second body beside json"),
        (SINK + "method = 'GET'", '\'GET\' cannot be used (accepted: "POST" or "PUT" or "PATCH")'),
        ("[broker]\nlimits = 3", "lockgate.toml:2: broker.limits: must be a table: [broker.limits]"),
        (
            "[broker.limits]\npublish_rat = 3",
            "lockgate.toml:2: broker.limits.publish_rat: is no key of it. Did you mean",
        ),
        ("[broker.limits]\npublish_rate = -1", "lockgate.toml:2: broker.limits.publish_rate: -1 cannot be used"),
        ("[broker.limits]\ntopic_levels = 201", "201 cannot be used (accepted: 1 to 200)"),
        ("[edge.acme]", "lockgate.toml:1: edge.acme.names: is missing (accepted: a list of host names without *"),
        (ACME + "names = ['a.example', '*.b.example']", "lockgate.toml:3: edge.acme.names: "),
        (ACME + "names = ['*.b.example']", "'*.b.example' is not the name of one host"),
        (ACME + "names = ['192.0.2.1']", "'192.0.2.1' is not the name of one host"),
        ("[edge.acme]\nnames = ['a.example']", "edge.acme.agree_to_terms: must be true: https://acme-v02."),
        (ACME + "directory = 'http://h/'", "cannot be used (accepted: https://HOST[:PORT])"),
        (ACME + "email = 'me'", "lockgate.toml:3: edge.acme.email: 'me' cannot be used (accepted: an address, as"),
        (ACME + "eab_key_id = 'k'", "lockgate.toml:3: edge.acme.eab_key_id: stands without eab_hmac_file (accepted:"),
        (ACME + "eab_hmac_file = 'f'", "lockgate.toml:3: edge.acme.eab_hmac_file: stands without eab_key_id"),
        ("[edge]\nacme = 1", "lockgate.toml:2: edge.acme: must be a table: [edge.acme]"),
        ("[broker]\nserver_moved = 1", "lockgate.toml:2: broker.server_moved: 1 cannot be used (accepted: true or"),
        ("[broker]\ntrusted_proxies = ['10.0.0.1/8']", "10.0.0.1/8 has host bits set"),
        ("[broker]\nmosquitto_conf = 'none.conf'", "Error: Unable to open configuration file none.conf: No such file"),
    ],
)
def test_mistakes_name_file_line_key_and_what_is_accepted(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, text)


def test_acme_is_off_unless_its_section_or_a_variable_says_something(tmp_path: Path) -> None:
    assert load(tmp_path, "[edge]\nlocation = 'HERE'").edge.acme is None
    said = load(tmp_path, ACME, LOCKGATE_EDGE_ACME_NAMES='["A.example", "a.example"]').edge.acme
    assert said == AcmeConfig(names=("a.example",), agree_to_terms=True)
    assert load(tmp_path, "", LOCKGATE_EDGE_ACME_NAMES='["a.b"]', LOCKGATE_EDGE_ACME_AGREE_TO_TERMS="true").edge.acme


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "mosquitto.conf").write_text("foo 1\n")
    said = refused(tmp_path, "[gateway]\nidd = 1\n[broker]\nmosquitto_conf='mosquitto.conf'\n[sinks.c]\ntype='x'\n")
    assert "gateway.idd" in said
    assert "Error found at mosquitto.conf:1." in said
    assert "sinks.c.type" in said


def test_passwords_are_not_repeated(tmp_path: Path) -> None:
    assert "secret" not in refused(tmp_path, "[processor]\nurl = 'mqtt://user:secret@h:x'")
    assert "secret" not in refused(tmp_path, SINK + "headers = { A = 'secret\\n', B = \"secret\\n\" }")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file or directory"):
        lockgate_toml.load(tmp_path / "none.toml", {})
    (tmp_path / "bad.toml").write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(ConfigError, match=r"bad\.toml:2: is not valid UTF-8"):
        lockgate_toml.load(tmp_path / "bad.toml", {})


def test_the_reference_page_is_the_one_the_tables_make() -> None:
    page = REPOSITORY / "docs" / "reference" / "configuration.md"
    assert page.read_text() == reference.page(), "run `make docs`"


def test_classes_sinks_and_the_downlink_are_read_and_checked_against_each_other(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [classes.telemetry]
        limit = "1MiB"
        keep = "2d"
        when_full = "drop-oldest"
        order = "latest-first"
        [downlink]
        topics = ["devices/+/set"]
        [sinks.cloud]
        type = "mqtt"
        url = "mqtts://cloud.example"
        cafile = "ca.pem"
        downlink = ["commands/#"]
        bytes_per_month = "500MB"
        hours = ["22:00-06:00"]
        always = ["alarm"]
        """,
    )
    [limit] = config.buffer.limits
    assert (limit.limit_bytes, limit.keep_seconds, limit.when_full) == (1024**2, 172800.0, "drop-oldest")
    [sink] = config.forwarder.sinks
    assert isinstance(sink, MqttSinkConfig)
    assert (sink.bytes_per_month, sink.always) == (500_000_000, ("alarm",))
    assert sink.hours == (Window(frozenset(range(7)), 1320, 360),)
    assert sink.cafile == tmp_path / "ca.pem"
    assert config.forwarder.downlink.connection.client_id == "lockgate-downlink"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[classes.hot]\nlimit = '1MiB'", "classes.hot: 'hot' is not among buffer.classes"),
        ("[classes.alarm]\nwhen_full = 'drop-newest'", "classes.alarm.when_full: needs a limit"),
        ("[classes.alarm]\nwhen_full = 'roll-up'", "classes.alarm.roll_up_into: must be another class"),
        ("[classes.alarm]\nroll_up = 'SELECT 1'", "classes.alarm.roll_up: is for `roll-up` alone"),
        ("[classes.alarm]\nlimit = '2GiB'", "classes.alarm.limit: is larger than buffer.limit"),
        ("[classes.alarm]\nwhen_full = 'shrug'", '(accepted: "block" or "drop-oldest" or '),
        (
            "[sinks.c]\ntype = 'mqtt'\nurl = 'mqtt://h'\ndownlink = ['a']",
            "lockgate.toml:4: sinks.c.downlink: takes commands, and none may pass",
        ),
        ("[sinks.c]\ntype = 'file'\npath = 'x'\nhours = ['25:00-06:00']", "'25:00-06:00' is no window"),
        (
            "[sinks.c]\ntype = 'file'\npath = 'x'\nclasses = ['alarm']\nalways = ['telemetry']",
            "'telemetry' is not among the classes of the sink",
        ),
        ("[sinks.c]\ntype = 'kafka'\nservers = ['h:9092']", "sinks.c.topic: is missing"),
        ("[sinks.c]\ntype = 'postgres'\nurl = 'mysql://h/db'", "(accepted: postgresql://HOST[:PORT])"),
    ],
)
def test_mistakes_about_classes_and_sinks_are_said(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, text)


def test_an_absolute_link_stands_for_the_file_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As /etc/lockgate/lockgate.toml of the image does; a ConfigMap's relative link leads to a copy of the folder."""
    (tmp_path / "config").mkdir()
    real, there, copied = tmp_path / "config" / "lockgate.toml", tmp_path / "etc.toml", tmp_path / "map.toml"
    real.write_text('[broker]\nmosquitto_conf = "m.conf"\n')
    there.symlink_to(real)
    copied.symlink_to("config/lockgate.toml")
    for place, found in ((there, real), (copied, copied), (real, real)):
        monkeypatch.setattr(lockgate_toml, "PLACES", (tmp_path / "nowhere", place))
        assert lockgate_toml.find() == found
    monkeypatch.setattr(lockgate_toml, "PLACES", (tmp_path / "nowhere",))
    assert lockgate_toml.find() is None


def test_a_body_of_ones_own_and_files_with_secrets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lockgate.toml"
    path.write_text(SINK + "header_files = { A = 'secret' }\njson = { to = ['{payload.to}'], n = 1 }\n")
    (sink,) = lockgate_toml.load(path, {}).forwarder.sinks
    assert isinstance(sink, HttpSinkConfig)
    assert sink.header_files == (("A", tmp_path / "secret"),)
    assert sink.body == HttpBodyConfig("json", {"to": ["{payload.to}"], "n": 1})
