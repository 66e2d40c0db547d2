"""What a configuration says, as frozen data: every part is handed only its own section.

Two files speak here. What mosquitto.conf can say is said only there (`BrokerConfig`); everything else is said in
lockgate.toml. Defaults stand beside their fields, so that the reference page can be made from this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Final, Literal, NamedTuple

from lockgate.config.templates import PathTemplate, Template, parse


class Place(NamedTuple):
    """Where a file says something, for errors that only its use brings to light."""

    path: Path
    line: int | None


# --- mosquitto.conf -----------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Hours of some days of the week. One whose end is not after its begin ends on the day after."""

    days: frozenset[int]  # on which it begins; 0: Monday
    begin: int  # minutes of the day
    end: int

    def holds(self, at: datetime) -> bool:
        """Whether a local time lies in it."""
        minute, today = at.hour * 60 + at.minute, at.weekday()
        if self.begin < self.end:
            return today in self.days and self.begin <= minute < self.end
        return (today in self.days and minute >= self.begin) or ((today - 1) % 7 in self.days and minute < self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Where log lines go and which of them (mosquitto.conf `log_*`)."""

    destinations: tuple[str, ...] = ("stderr",)  # stdout, stderr, syslog, topic, "file PATH", none
    types: frozenset[str] = frozenset({"error", "warning", "notice", "information"})
    timestamp: bool = True
    timestamp_format: str | None = None  # strftime; None: seconds since 1970
    facility: int | None = None  # syslog local0 to local7; None: daemon


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateConfig:
    """[certificates.NAME]: one more certificate of a listener, for clients that ask for its host names (SNI)."""

    name: str
    listener: int  # its port
    hosts: tuple[str, ...]  # host names; "*.example" stands for one label
    certfile: Path
    keyfile: Path
    place: Place | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """The TLS options of one listener; `places` tells where each was said."""

    certfile: Path
    keyfile: Path
    cafile: Path | None = None
    capath: Path | None = None
    crlfile: Path | None = None
    require_certificate: bool = False
    disable_client_cert_date_checks: bool = False
    ciphers: str | None = None
    tls_version: Literal["tlsv1.2", "tlsv1.3"] = "tlsv1.2"  # the lowest
    certificates: tuple[CertificateConfig, ...] = ()
    keylog: Path | None = None  # where to write the keys of connections, to debug
    places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityConfig:
    """One authority over clients: a file of Mosquitto's, named by an option or by one of its plugins."""

    kind: Literal["password_file", "acl_file", "dynamic_security"]
    path: Path
    password_init_file: Path | None = None  # of dynamic_security: the first password of its admin
    deny_special_chars: bool = True  # refuse user names and client ids with + or # where an acl_file has patterns
    place: Place | None = field(default=None, compare=False, repr=False)


def is_local(host: str) -> bool:
    """Whether an address or a host name is this machine's alone."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerConfig:
    """One listener of mosquitto.conf."""

    port: int = 1883
    address: str | None = None  # None: every address of the machine, IPv4 and IPv6
    path: Path | None = None  # of a Unix socket; port is 0 then
    domain: Literal["ipv4", "ipv6"] | None = None  # None: both
    interface: str | None = None  # network device
    websockets: bool = False
    http_api: bool = False
    http_dir: Path | None = None  # files for http_api listeners
    websockets_origins: tuple[str, ...] = ()  # empty: any
    proxy_protocol: Literal[0, 1, 2] = 0
    proxy_require_tls: bool = False
    require_certificate: bool = False  # with PROXY version 2: the client must have shown the proxy one
    tls: TlsConfig | None = None
    username_from: Literal["identity", "subject"] | None = None  # of the certificate
    protocol_versions: frozenset[int] = frozenset({3, 4, 5})
    allow_anonymous: bool | None = None  # None: the global value
    authorities: tuple[AuthorityConfig, ...] = ()  # asked behind the global ones
    auto_id_prefix: str | None = None  # None: the global value
    allow_zero_length_clientid: bool | None = None  # None: the global value
    use_username_as_clientid: bool = False
    mount_point: str = ""
    max_connections: int = -1  # -1: no limit
    max_qos: int = 2
    max_topic_alias: int = 10
    max_topic_alias_broker: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLimitsConfig:
    """[broker.limits]: bounds that Mosquitto has no word for; 0 is no limit."""

    pending_logins: int = 1000
    connect_timeout_seconds: float = 30.0
    subscriptions: int = 10_000
    user_properties: int = 100
    topic_bytes: int = 65_535
    topic_levels: int = 200
    retained_messages: int = 1_000_000
    retained_bytes: int = 0
    queued_messages: int = 1_000_000
    publish_rate: float = 0.0
    connect_rate: float = 0.0
    connect_rate_per_address: float = 0.0
    connections_per_address: int = 0
    flapping_connects: int = 0
    flapping_window_seconds: float = 60.0
    flapping_hold_off_seconds: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AckAfterConfig:
    """[ack_after.NAME]: when the messages of some topics are acknowledged; the first section that matches counts."""

    name: str
    topics: tuple[str, ...]  # Topic Filters
    after: Literal["memory", "disk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingSessionConfig:
    """[standing_sessions.NAME]: a session that exists before its client was ever there.

    At its limit nothing is dropped: who publishes to it gets no acknowledgement until there is room.
    """

    name: str
    topics: tuple[str, ...]  # Topic Filters
    client_id: str = ""  # empty: the name
    qos: Literal[1, 2] = 1
    limit_bytes: int = 64 * 1024**2  # topics and payloads that wait; 0: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeTopic:
    """One `topic` line of a bridge: what is carried, which way, and how it is called on each side."""

    pattern: str  # empty: exactly the topic that the prefixes name
    direction: Literal["out", "in", "both"] = "out"
    qos: Literal[0, 1, 2] = 0
    local_prefix: str = ""
    remote_prefix: str = ""

    @property
    def local_filter(self) -> str:
        """The Topic Filter here."""
        return self.local_prefix + self.pattern

    @property
    def remote_filter(self) -> str:
        """The Topic Filter at the remote broker."""
        return self.remote_prefix + self.pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeTlsConfig:
    """The TLS options of one bridge; `places` tells where each was said."""

    cafile: Path | None = None
    capath: Path | None = None
    use_os_certs: bool = False
    certfile: Path | None = None
    keyfile: Path | None = None
    insecure: bool = False  # any host name will do
    alpn: str | None = None
    tls_version: Literal["tlsv1.2", "tlsv1.3"] = "tlsv1.2"  # the lowest
    ciphers: str | None = None
    places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)


class RestartTimeout(NamedTuple):
    """Seconds between attempts: random from `base` to `cap`; a connection that lived `stable` begins anew at `base`."""

    base: int = 5
    cap: int = 30
    stable: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConfig:
    """One `connection` of mosquitto.conf."""

    name: str
    addresses: tuple[tuple[str, int], ...]  # host and port, in order of preference
    topics: tuple[BridgeTopic, ...]
    client_id: str
    local_client_id: str
    version: Literal[3, 4, 5] = 4  # protocol level: MQTT 3.1, 3.1.1, 5
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    local_username: str | None = None
    local_password: str | None = field(default=None, repr=False)
    cleansession: bool = False
    local_cleansession: bool = False
    keepalive_interval: int = 60  # seconds
    start_type: Literal["automatic", "lazy", "once"] = "automatic"
    threshold: int = 10  # lazy: messages that wait before it connects
    idle_timeout: int = 60  # lazy: seconds of silence before it disconnects
    restart_timeout: RestartTimeout = field(default_factory=lambda: RestartTimeout())
    round_robin: bool = False
    try_private: bool = True
    notifications: bool = True
    notifications_local_only: bool = False
    notification_topic: str = ""
    attempt_unsubscribe: bool = True
    outgoing_retain: bool = True
    max_packet_size: int = 0  # bytes of a PUBLISH to the remote broker; 0: no limit
    max_topic_alias: int = 10
    receive_maximum: int | None = None  # None: not said
    session_expiry_interval: int | None = None  # seconds; None: by cleansession
    bind_address: str | None = None
    tcp_keepalive: tuple[int, int, int] | None = None  # seconds idle, seconds between probes, probes
    tcp_user_timeout: int | None = None  # milliseconds
    reload_immediately: bool = False
    tls: BridgeTlsConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """What mosquitto.conf said, with Mosquitto's defaults, and [broker]: what Mosquitto has no word for."""

    path: Path | None = None  # the file, if there is one
    listeners: tuple[ListenerConfig, ...] = (
        ListenerConfig(address="127.0.0.1"),
        ListenerConfig(address="::1"),
    )
    listeners_said: bool = False  # else it is local-only mode
    allow_anonymous: bool = True  # True in local-only mode; the parser says False once a listener is configured
    authorities: tuple[AuthorityConfig, ...] = ()  # asked in this order, for every listener
    per_listener_settings: bool = False
    allow_duplicate_messages: bool = True
    allow_zero_length_clientid: bool = True
    auto_id_prefix: str = "auto-"
    check_retain_source: bool = True
    clientid_prefixes: tuple[str, ...] = ()
    connection_messages: bool = True
    enable_control_api: bool = False
    message_size_limit: int = 0  # bytes of a payload; 0: no limit
    pid_file: Path | None = None
    queue_qos0_messages: bool = False
    retain_available: bool = True
    sparkplug_aware: bool = False  # the plugin of that name: births are retained below $sparkplug/certificates/
    upgrade_outgoing_qos: bool = False
    user: str | None = None  # None: mosquitto, else nobody, where `lockgate mosquitto` is started as root
    max_inflight_bytes: int = 0  # 0: no limit
    max_inflight_messages: int = 20  # 0: no limit
    max_keepalive: int = 0  # seconds; 0: no limit
    max_packet_size: int = 2_000_000  # bytes
    max_queued_bytes: int = 0  # 0: no limit
    max_queued_messages: int = 1000  # 0: no limit
    set_tcp_nodelay: bool = True
    sys_interval: int = 10  # seconds between the figures below $SYS; 0: none
    websockets_headers_size: int = 4096  # bytes
    warnings: tuple[str, ...] = field(default=(), compare=False)  # to be logged at the start
    log: LogConfig = field(default_factory=LogConfig)
    bridges: tuple[BridgeConfig, ...] = ()
    global_max_clients: int = -1  # sessions, connected or not; -1: no limit
    global_max_connections: int = -1  # clients that are connected; -1: no limit
    memory_limit: int = 0  # bytes; 0: no limit, and memory_budget alone counts
    persistence: bool | None = None  # None: not said, which is true for us, in data_dir
    persistence_location: Path | None = None  # None: the working directory
    persistence_file: str = "mosquitto.db"  # whose content is taken over, once
    persistent_client_expiration: int = 0  # seconds; 0: never
    autosave_interval: int = 1800  # seconds, or changes; 0: only at the end and at SIGUSR1
    autosave_on_changes: bool = False
    # [broker]
    scram_file: Path | None = None  # users of enhanced authentication
    session_owner: Literal["user", "any"] = "user"
    on_bad_reload: Literal["keep", "exit"] = "keep"
    memory_budget: int | None = None  # bytes; None: a quarter of what the machine or the container has
    alarms: tuple[str, ...] = ()  # Topic Filters of messages that give way last
    flush_interval_seconds: float = 5.0  # until what nobody waits for is written
    wills_on_stop: Literal["publish", "keep"] = "publish"
    ack_after: tuple[AckAfterConfig, ...] = ()
    standing_sessions: tuple[StandingSessionConfig, ...] = ()
    server_reference: str = ""  # another Server, named when this one is full or stops
    server_moved: bool = False
    response_information: str = ""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    limits: BrokerLimitsConfig = field(default_factory=lambda: BrokerLimitsConfig())

    def every_authority(self) -> Iterator[AuthorityConfig]:
        """Give those that all listeners ask, then those of each listener; one may come more than once."""
        yield from self.authorities
        for listener in self.listeners:
            yield from listener.authorities


# --- lockgate.toml ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """[gateway]: who this gateway is and where it keeps things."""

    id: str  # names every message sent to the cloud; default: the host name
    data_dir: Path = Path("/var/lib/lockgate")  # the buffer lies in data_dir/buffer
    run_dir: Path | None = None  # status sockets; None: data_dir/run

    @property
    def broker_dir(self) -> Path:
        return self.data_dir / "broker"

    @property
    def buffer_dir(self) -> Path:
        return self.data_dir / "buffer"

    @property
    def sockets_dir(self) -> Path:
        return self.run_dir if self.run_dir is not None else self.data_dir / "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionConfig:
    """How a service reaches an MQTT Server."""

    url: str = "mqtt://127.0.0.1:1883"  # mqtt://[user[:password]@]host[:port]
    password_file: Path | None = None  # its first line is the password, also where the URL has one
    client_id: str = ""
    version: Literal["3.1", "3.1.1", "5"] = "5"
    keep_alive_seconds: int = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """[sources.NAME]: what all sources have in common. Each is a service of its own, `source:NAME`."""

    name: str
    connection: ConnectionConfig
    broker_cafile: Path | None = None  # mqtts and wss: authorities that are trusted, else the system's
    broker_certfile: Path | None = None
    broker_keyfile: Path | None = None
    status_topic: str = "sources/{source}/status"  # empty: none
    queue_messages: int = 10_000  # that wait in memory while the broker is away; the oldest go first, counted
    queue_bytes: int = 16 * 1024 * 1024  # their topics and payloads

    @property
    def service(self) -> str:
        return f"source:{self.name}"

    @property
    def status_name(self) -> str:
        """The Topic Name of its status, empty where it has none."""
        return self.status_topic.replace("{source}", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRouteConfig:
    """[sources.NAME.routes.NAME]: which requests it takes and the topic of what they bring."""

    name: str
    path: PathTemplate
    topic: Template
    methods: tuple[str, ...] = ("POST", "PUT")
    retain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpClientConfig:
    """[sources.NAME.clients.NAME]: who may push. The secret is a bearer token, or the password of the user NAME."""

    name: str
    secret_file: Path  # its first line
    routes: tuple[str, ...] = ()  # names of routes; none: all


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSourceConfig(SourceConfig):
    """type = "http": takes pushed messages, and answers when the broker has acknowledged them."""

    listen: tuple[str, int] = ("127.0.0.1", 8080)
    certfile: Path | None = None  # ours and its chain: the listener speaks TLS
    keyfile: Path | None = None
    cafile: Path | None = None  # clients must show a certificate of these authorities
    allow_anonymous: bool = False
    max_body_bytes: int = 1024 * 1024
    max_messages: int = 1000  # of one request
    max_connections: int = 200
    max_requests: int = 50  # that wait for the broker at once
    read_timeout_seconds: float = 10.0  # until a request is there, whole
    timeout_seconds: float = 10.0  # until the broker has acknowledged it
    idempotency_seconds: float = 600.0  # how long an Idempotency-Key is remembered
    idempotency_keys: int = 10_000
    routes: tuple[HttpRouteConfig, ...] = ()
    clients: tuple[HttpClientConfig, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModbusDeviceConfig:
    """[sources.NAME.devices.NAME]: one unit; those with the same address share a connection."""

    name: str
    address: tuple[str, int]
    unit: int = 1
    framing: Literal["tcp", "rtu"] = "tcp"
    byte_order: Literal["big", "little"] = "big"  # within a register
    word_order: Literal["big", "little"] = "big"  # of the registers of one value
    timeout_seconds: float = 3.0
    max_count: int = 125  # registers of one request


@dataclass(frozen=True, slots=True, kw_only=True)
class ModbusValueConfig:
    """[sources.NAME.groups.NAME.values]: one member of the JSON; one of the four tables has its address."""

    name: str
    holding: int | None = None
    input: int | None = None
    coil: int | None = None
    discrete: int | None = None
    type: str = ""  # empty: bool of a coil or discrete input, uint16 of a register
    length: int = 0  # registers of a string
    bit: int | None = None  # of a register; 0: the lowest
    scale: float = 1.0
    offset: float = 0.0

    @property
    def table(self) -> Literal["holding", "input", "coil", "discrete"]:
        if self.holding is not None:
            return "holding"
        if self.input is not None:
            return "input"
        return "coil" if self.coil is not None else "discrete"

    @property
    def address(self) -> int:
        return next(one for one in (self.holding, self.input, self.coil, self.discrete, 0) if one is not None)

    @property
    def kind(self) -> str:
        """The type, also where none is said."""
        is_bool = self.table in ("coil", "discrete") or self.bit is not None
        return self.type or ("bool" if is_bool else "uint16")

    @property
    def count(self) -> int:
        """How many registers or bits it takes."""
        return self.length if self.kind == "string" else MODBUS_TYPES[self.kind]


MODBUS_TYPES: Mapping[str, int] = {  # registers of each; a string says its own
    "bool": 1, "int16": 1, "uint16": 1, "int32": 2, "uint32": 2, "int64": 4, "uint64": 4, "float32": 2, "float64": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModbusGroupConfig:
    """[sources.NAME.groups.NAME]: values that are read together and become one message."""

    name: str
    interval_seconds: float | None = None  # None: that of the source
    devices: tuple[str, ...] = ()  # none: all
    max_gap: int = 8  # registers or bits in between that are read along rather than asked for apart
    values: tuple[ModbusValueConfig, ...] = ()


_MODBUS_TOPIC: Final = parse("modbus/{device}/{group}")
_OPCUA_TOPIC: Final = parse("opcua/{source}/{node}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModbusSourceConfig(SourceConfig):
    """type = "modbus": reads registers of devices in intervals."""

    topic: Template = _MODBUS_TOPIC
    interval_seconds: float = 10.0
    retry_min_seconds: float = 1.0
    retry_max_seconds: float = 60.0
    devices: tuple[ModbusDeviceConfig, ...] = ()
    groups: tuple[ModbusGroupConfig, ...] = ()

    def groups_of(self, device: str) -> tuple[ModbusGroupConfig, ...]:
        return tuple(group for group in self.groups if device in group.devices or not group.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpcuaSourceConfig(SourceConfig):
    """type = "opcua": values of nodes, as they change or in intervals."""

    endpoint: str
    nodes: tuple[tuple[str, str], ...] = ()  # name and NodeId
    topic: Template = _OPCUA_TOPIC
    mode: Literal["subscribe", "poll"] = "subscribe"
    interval_seconds: float = 1.0  # publishing interval, or pause between two reads
    sampling_seconds: float | None = None  # None: the interval
    queue_size: int = 10  # values of a node the server keeps between two publishes
    security_policy: Literal["None", "Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"] = "None"
    security_mode: Literal["Sign", "SignAndEncrypt"] = "SignAndEncrypt"
    certfile: Path | None = None  # ours
    keyfile: Path | None = None
    server_certfile: Path | None = None  # the only one that is accepted
    application_uri: str = "urn:lockgate:source"
    user: str | None = None
    user_password_file: Path | None = None
    timeout_seconds: float = 5.0
    retry_min_seconds: float = 1.0
    retry_max_seconds: float = 60.0


AnySource = HttpSourceConfig | ModbusSourceConfig | OpcuaSourceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaConfig:
    """[schemas.NAME]: which messages it describes and the typed columns that are read from their payload.

    A message belongs to the first schema, in the order of the file, that one of its topics matches.
    """

    name: str
    topics: tuple[str, ...]  # Topic Filters
    fields: tuple[tuple[str, Literal["integer", "real", "text"]], ...]  # JSON members, required and typed
    optional: frozenset[str] = frozenset()  # fields that may be absent; they are NULL then
    format: Literal["json", "text", "msgpack", "cbor", "protobuf", "avro", "sparkplug"] = "json"
    descriptor: Path | None = None  # of protobuf: a FileDescriptorSet
    message: str | None = None  # of protobuf: the full name of the type
    avro_schema: Path | None = None
    json_schema: Path | None = None  # what documents must conform to
    misfits: Literal["quarantine", "refuse", "coerce"] = "quarantine"
    keep_seconds: float | None = None  # how long its messages stay in the log for backtests
    line: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """[tables.NAME]: a file that rules can join with, read again when it changes. Its first column is indexed."""

    name: str
    path: Path  # a CSV file with the names of its columns in its first line, or an SQLite file
    table: str | None = None  # of an SQLite file; None: the name
    fields: tuple[tuple[str, Literal["integer", "real", "text"]], ...] = ()  # empty: all columns, of a CSV as text
    delimiter: str = ","
    line: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenMessage:
    """A message that a test of a rule lets arrive."""

    topic: str
    payload: bytes
    at_seconds: float = 0.0  # since the beginning of the test


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMessage:
    """A message that a rule must make of what it was given."""

    topic: str
    payload: Mapping[str, object]
    device_ts: int | None = None  # None: any


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTest:
    """[[rules.NAME.test]]: what a rule has to make of some messages; nothing more, in this order."""

    given: tuple[GivenMessage, ...]
    expect: tuple[ExpectedMessage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleConfig:
    """[rules.NAME]: one SELECT over the messages of a schema.

    Without a window the rule runs once for each message, whose columns are bound parameters: `SELECT :topic AS topic,
    :value AS value WHERE :value > 90`. With one it runs over a table named like the schema, and `:window_start` and
    `:window_end` are bound (Unix milliseconds). Windows: `every` alone is tumbling; with `keep`, hopping; `keep` alone
    slides with each message; `gap` makes sessions; `count` so many messages. The columns are the schema's fields,
    `topic` and `received_at` (Unix milliseconds). Each row of the result becomes one message; a column named `topic`
    is its topic, else the rule's `topic` is; a column named `device_ts` (Unix milliseconds) is its time; the other
    columns are its JSON payload. `topic_level(topic, n)` gives the n-th level of a topic, from 1; from the end with
    negative n.
    """

    name: str
    schema: str
    sql: str
    message_class: str  # key `class`
    every_seconds: float | None = None  # key `every`: "10s", "5m", "1h"
    keep_seconds: float | None = None  # how far back the window reaches; the longest session with `gap`
    gap_seconds: float | None = None
    count: int | None = None
    time: str | None = None  # the field that tells a message's time; None: when it arrived
    lateness_seconds: float = 0.0  # how much later than others a message may come
    late: Literal["drop", "quarantine"] = "drop"
    topic: str | None = None
    budget_seconds: float = 1.0  # one evaluation may take so long
    tests: tuple[RuleTest, ...] = ()  # [[rules.NAME.test]]
    line: int | None = field(default=None, compare=False)  # where the rule stands in lockgate.toml
    sql_line: int | None = field(default=None, compare=False)  # where the first line of its SELECT stands


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorConfig:
    """[processor], [schemas.*], [tables.*] and [rules.*]."""

    connection: ConnectionConfig = field(default_factory=lambda: ConnectionConfig(client_id="lockgate-processor"))
    receive_maximum: int = 1000  # unacknowledged messages the processor takes at once
    session_expiry_seconds: int = 7 * 24 * 3600  # how long the broker queues for a processor that is away
    state_topics: int = 10_000  # whose last value is kept for rules that read `state`
    functions: Path | None = None  # a folder of Python files with functions for rules
    function_packages: tuple[str, ...] = ()  # entry points of the group lockgate.functions
    schemas: tuple[SchemaConfig, ...] = ()
    tables: tuple[TableConfig, ...] = ()
    rules: tuple[RuleConfig, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassConfig:
    """[classes.NAME]: what a class may hold and what happens then; NAME is one of [buffer] classes."""

    name: str
    limit_bytes: int | None = None  # of rows that a sink has yet to get; None: [buffer] limit alone
    keep_seconds: float | None = None  # older rows expire; None: never
    when_full: Literal["block", "drop-oldest", "drop-newest", "roll-up"] = "block"
    roll_up: str = ""  # a SELECT over old rows
    roll_up_into: str = ""  # the class of what it makes
    order: Literal["ordered", "latest-first"] = "ordered"


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferConfig:
    """[buffer]: the durable log between processor and forwarder."""

    segment_bytes: int = 32 * 1024 * 1024
    limit_bytes: int = 1024 * 1024 * 1024  # at the limit nothing more is acknowledged to the broker
    classes: tuple[str, ...] = ("alarm", "telemetry")  # in the order in which a sink drains them
    quarantine_messages: int = 1000  # kept aside with the reason; the oldest go first, counted
    quarantine_bytes: int = 4 * 1024 * 1024
    limits: tuple[ClassConfig, ...] = ()  # of some of the classes
    compression: Literal["none", "zstd"] = "none"  # of segments that nobody needs soon


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkConfig:
    """[sinks.NAME]: what all sinks have in common."""

    name: str
    classes: tuple[str, ...]  # the classes it is addressed by; default: all of [buffer] classes
    batch: int = 100  # messages sent together
    batch_bytes: int = 1024 * 1024  # of their payloads; one message may be larger
    timeout_seconds: float = 10.0
    retry_min_seconds: float = 0.5
    retry_max_seconds: float = 60.0
    gather_seconds: float = 0.0  # a batch that is not full waits so long for more
    poison_after: int = 5  # tries, where the receiver has an error for one message and takes the next
    messages_per_hour: int | None = None
    messages_per_day: int | None = None
    messages_per_month: int | None = None
    bytes_per_hour: int | None = None  # of topics and payloads
    bytes_per_day: int | None = None
    bytes_per_month: int | None = None
    hours: tuple[Window, ...] = ()  # of the local time; none: always
    metered_while: Path | None = None  # while this file exists, the link costs money
    always: tuple[str, ...] = ()  # classes that no hours, budget or metered link holds back


@dataclass(frozen=True, slots=True)
class HttpBodyConfig:
    """A body of one's own, for one message; in its texts stand placeholders."""

    encoding: Literal["json", "form"]
    content: object  # what TOML said; of a form, text by name


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSinkConfig(SinkConfig):
    """type = "http": POST of one JSON array for each batch, `Idempotency-Key: gateway-id/first-last`."""

    url: str
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    header_files: tuple[tuple[str, Path], ...] = ()  # the first line goes behind what `headers` says
    body: HttpBodyConfig | None = None  # a request for each message
    in_flight: int = 1  # requests at once; messages of one topic are never in two of them
    compression: Literal["none", "gzip", "zstd"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSinkConfig(SinkConfig):
    """type = "mqtt": QoS 1 PUBLISH to another MQTT Server; the id is the User Property `lockgate-id` in version 5."""

    connection: ConnectionConfig
    topic_prefix: str = ""
    format: Literal["payload", "document"] = "payload"
    cafile: Path | None = None  # mqtts and wss: authorities that are trusted, else the system's
    certfile: Path | None = None
    keyfile: Path | None = None
    alpn: tuple[str, ...] = ()
    downlink: tuple[str, ...] = ()  # Topic Filters of commands over there
    downlink_prefix: str = ""  # of their topics, taken off


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSinkConfig(SinkConfig):
    """type = "file": JSON lines, or a file of Parquet a batch, synced to disk before they count as delivered."""

    path: Path
    format: Literal["jsonl", "parquet"] = "jsonl"
    compression: Literal["none", "gzip", "zstd"] = "zstd"  # within Parquet


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSinkConfig(SinkConfig):
    """type = "postgres": rows of one table; the id is its key."""

    batch: int = 1000
    url: str
    password_file: Path | None = None
    table: str = "lockgate_messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSinkConfig(SinkConfig):
    """type = "nats": messages of a JetStream stream; the id is `Nats-Msg-Id`."""

    url: str
    subject_prefix: str = "lockgate."
    cafile: Path | None = None
    credentials: Path | None = None
    token_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InfluxSinkConfig(SinkConfig):
    """type = "influx": line protocol over HTTP."""

    batch: int = 1000
    url: str
    token_file: Path | None = None
    measurement: str = ""  # default: the schema's name, else the class
    tags: tuple[str, ...] = ()  # members of the JSON that are tags and not fields
    in_flight: int = 1
    compression: Literal["none", "gzip", "zstd"] = "gzip"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSinkConfig(SinkConfig):
    """type = "s3": one object of JSON lines or Parquet for each batch."""

    batch: int = 10_000
    batch_bytes: int = 4 * 1024 * 1024
    gather_seconds: float = 60.0
    bucket: str
    endpoint: str | None = None  # None: that of AWS
    region: str = "us-east-1"
    prefix: str = ""
    access_key_id: str | None = None  # None: the environment's, or the machine's own role
    secret_key_file: Path | None = None
    format: Literal["jsonl", "parquet"] = "jsonl"
    compression: Literal["none", "gzip", "zstd"] = "zstd"


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSinkConfig(SinkConfig):
    """type = "kafka": records keyed by the topic of MQTT; the id is the header `lockgate-id`."""

    servers: tuple[str, ...]
    topic: str
    tls: bool = False
    cafile: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-256"
    compression: Literal["none", "gzip"] = "none"


AnySink = (
    HttpSinkConfig
    | MqttSinkConfig
    | FileSinkConfig
    | PostgresSinkConfig
    | NatsSinkConfig
    | InfluxSinkConfig
    | ObjectSinkConfig
    | KafkaSinkConfig
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DownlinkConfig:
    """[downlink]: what commands from the cloud may do here; nothing unless `topics` says so."""

    connection: ConnectionConfig = field(default_factory=lambda: ConnectionConfig(client_id="lockgate-downlink"))
    topics: tuple[str, ...] = ()  # Topic Filters of the topics they may be published to


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderConfig:
    """[sinks.*] and [downlink]."""

    sinks: tuple[AnySink, ...] = ()
    downlink: DownlinkConfig = field(default_factory=DownlinkConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployConfig:
    """[deploy]: how the containers of a Compose project get a new version. It is read on the machine, not in them."""

    project: str = ""  # Compose project
    image: str = ""  # REGISTRY/REPOSITORY[:TAG]
    services: tuple[str, ...] = ()  # in the order in which they are replaced; none: those that run Lockgate
    signature: Literal["required", "none"] = "required"
    public_key: Path | None = None
    signed_as: str = ""  # REGISTRY/REPOSITORY in the signature, where a mirror has another name
    ca_file: Path | None = None
    login_file: Path | None = None
    docker_config: Path | None = None
    engine: str = "unix:///var/run/docker.sock"
    folder: Path | None = None  # of the stack, whose .env gets LOCKGATE_IMAGE
    interval_seconds: float = 900.0
    jitter_seconds: float = 300.0
    windows: tuple[Window, ...] = ()  # none: at any time
    time_zone: str = ""  # none: the machine's
    health_limit_seconds: float = 120.0  # until a new container is well
    watch_seconds: float = 60.0  # that it has to stay so
    request_limit_seconds: float = 30.0  # for one answer of the registry
    pull_limit_seconds: float = 1800.0
    history: int = 100  # updates that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorConfig:
    """[connector] and [[connector.ingress]]: the end of the tunnel that dials out."""

    token_file: Path | None = None
    edges: tuple[str, ...] = ()  # HOST:PORT; none: those in the token
    server_name: str = ""  # empty: the name that is dialled
    ca_file: Path | None = None  # none: what the token says, else the system's
    connections: int = 4
    grace_seconds: float = 30.0  # for what is open when it stops
    metrics: str = "127.0.0.1:20241"
    allow: tuple[str, ...] = ()  # what it may dial: HOST:PORT, NETWORK:PORT, unix:/PATH
    proxy_protocol: tuple[str, ...] = ()  # which of them are told the device's address by PROXY protocol, version 2
    cloudflared_config: Path | None = None  # whose rules are used
    ingress: tuple[Mapping[str, object], ...] = ()  # rules as they stand there; `tunnel.ingress_files` reads them
    place: Place | None = field(default=None, compare=False, repr=False)  # of the first of them


@dataclass(frozen=True, slots=True, kw_only=True)
class AcmeConfig:
    """[edge.acme]: where the edge gets its public certificates (RFC 8555)."""

    names: tuple[str, ...] = ()
    agree_to_terms: bool = False
    directory: str = "https://acme-v02.api.letsencrypt.org/directory"
    email: str = ""
    ca_file: Path | None = None  # of the ACME server's own certificate
    eab_key_id: str = ""  # external account binding, RFC 8555 §7.3.4
    eab_hmac_file: Path | None = None

    def folder(self, gateway: GatewayConfig) -> Path:
        """Account and certificates of this server: what another one gave is not taken for its own."""
        return gateway.data_dir / "edge" / "acme" / re.sub(r"[^A-Za-z0-9.]+", "-", self.directory.partition("://")[2])

    def files(self, gateway: GatewayConfig) -> dict[str, Path]:
        """By name, the file of its certificate, which may not be there yet: chain and private key, in PEM."""
        return {name: self.folder(gateway) / f"{name}.pem" for name in self.names}


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeConfig:
    """[edge]: the public side of the tunnel."""

    listen_tunnel: tuple[str, ...] = ("0.0.0.0:7844",)
    listen_https: tuple[str, ...] = ("0.0.0.0:443",)
    listen_mqtts: tuple[str, ...] = ("0.0.0.0:8883",)
    certificates_dir: Path | None = None  # None: data_dir/edge/certificates
    tunnel_certfile: Path | None = None  # None: data_dir/edge/tunnel.pem
    tunnel_keyfile: Path | None = None  # None: data_dir/edge/tunnel.key
    client_ca_file: Path | None = None  # of devices' certificates
    location: str = "EDGE"  # as connectors show it
    max_connections: int = 20_000  # at the public side
    max_handshakes: int = 1000  # at each port, in TLS
    tunnels: Path | None = None  # None: data_dir/edge/tunnels.json
    audit_dir: Path | None = None  # None: data_dir/edge/audit
    audit_file_bytes: int = 16 * 1024 * 1024
    audit_files: int = 64  # that are kept
    public: tuple[str, ...] = ()  # HOST:PORT that tokens tell connectors
    ca_file: Path | None = None  # that tokens tell connectors
    acme: AcmeConfig | None = None

    def certificates_folder(self, gateway: GatewayConfig) -> Path:
        return self.certificates_dir or gateway.data_dir / "edge" / "certificates"

    def tunnel_pair(self, gateway: GatewayConfig) -> tuple[Path, Path]:
        """The certificate that connectors see, and its key."""
        folder = gateway.data_dir / "edge"
        return self.tunnel_certfile or folder / "tunnel.pem", self.tunnel_keyfile or folder / "tunnel.key"

    def tunnels_file(self, gateway: GatewayConfig) -> Path:
        return self.tunnels if self.tunnels is not None else gateway.data_dir / "edge" / "tunnels.json"

    def audit_folder(self, gateway: GatewayConfig) -> Path:
        return self.audit_dir if self.audit_dir is not None else gateway.data_dir / "edge" / "audit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a gateway was told."""

    path: Path | None
    gateway: GatewayConfig
    broker: BrokerConfig
    processor: ProcessorConfig
    buffer: BufferConfig
    forwarder: ForwarderConfig
    sources: tuple[AnySource, ...] = ()
    deploy: DeployConfig = field(default_factory=DeployConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    edge: EdgeConfig = field(default_factory=EdgeConfig)
