"""lockgate.toml and the environment → Config. `SECTIONS` is the whole language; the reference page is made from it."""

from __future__ import annotations

import dataclasses
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lockgate.config import values
from lockgate.config.errors import ConfigError, did_you_mean, raise_all
from lockgate.config.model import (
    AckAfterConfig,
    AcmeConfig,
    BrokerConfig,
    BrokerLimitsConfig,
    BufferConfig,
    CertificateConfig,
    ClassConfig,
    Config,
    ConnectionConfig,
    ConnectorConfig,
    DeployConfig,
    DownlinkConfig,
    EdgeConfig,
    FileSinkConfig,
    ForwarderConfig,
    GatewayConfig,
    HttpSinkConfig,
    InfluxSinkConfig,
    KafkaSinkConfig,
    MqttSinkConfig,
    NatsSinkConfig,
    ObjectSinkConfig,
    Place,
    PostgresSinkConfig,
    ProcessorConfig,
    RuleConfig,
    SchemaConfig,
    StandingSessionConfig,
    TableConfig,
)
from lockgate.config.mosquitto_conf import read_mosquitto_conf
from lockgate.config.sections import CONNECTION, Key, Section
from lockgate.config.source_sections import SOURCE_SECTIONS, mistakes
from lockgate.config.toml_lines import key_lines, line_of
from lockgate.config.values import BadValue

PLACES = (Path("lockgate.toml"), Path("/etc/lockgate/lockgate.toml"))
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


_SINK = (
    Key(
        "type",
        values.one_of("http", "mqtt", "file", "postgres", "nats", "influx", "s3", "kafka"),
        "what kind of sink this is",
        required=True,
    ),
    Key("classes", values.NAMES, "classes it is addressed by", default="all of buffer.classes"),
    Key("batch", values.whole_number(1, 10_000), "messages sent together"),
    Key("batch_bytes", values.size(1, 256 * 1024**2), "bytes of payload sent together, unless one message has more"),
    Key("timeout", values.duration(0.1, 3600), "longest wait for the sink's answer", field="timeout_seconds"),
    Key("retry_min", values.duration(0.01, 3600), "first pause before a retry", field="retry_min_seconds"),
    Key("retry_max", values.duration(0.01, 86400), "longest pause before a retry", field="retry_max_seconds"),
    Key(
        "gather",
        values.duration(0, 86400),
        "how long a batch that is not full waits for more",
        field="gather_seconds",
    ),
    Key(
        "poison_after",
        values.whole_number(1, 1000),
        "tries after which a message that the receiver answers with an error becomes a dead letter, if it takes the "
        "next message",
    ),
    *(
        Key(f"{what}_per_{period}", kind, f"{meaning} sent in a {period} of the local calendar", default="no limit")
        for what, kind, meaning in (
            ("messages", values.whole_number(1, 1_000_000_000), "messages"),
            ("bytes", values.size(1, 1024**5), "topics and payloads"),
        )
        for period in ("hour", "day", "month")
    ),
    Key("hours", values.WINDOWS, "when it sends", default="always"),
    Key(
        "metered_while",
        values.PATH,
        "a file that exists, made by whoever knows the link, while sending costs money: then nothing is sent",
        default="none",
    ),
    Key("always", values.NAMES, "classes that hours, budgets and a metered link do not hold back", default="none"),
)

_FORMAT = Key(
    "format",
    values.one_of("jsonl", "parquet"),
    "JSON lines, or Parquet, which needs lockgate[parquet] and about 100 MB of memory",
)

SECTIONS: tuple[Section, ...] = (
    Section(
        "gateway",
        "Who this gateway is and where it keeps things.",
        (
            Key("id", values.TEXT, "names every message sent to the cloud", default="the host name"),
            Key("data_dir", values.PATH, "everything that must survive a restart; the buffer lies in it"),
            Key("run_dir", values.PATH, "status sockets", default="data_dir/run"),
        ),
        GatewayConfig,
    ),
    Section(
        "broker",
        "The broker is configured in Mosquitto's own file; here stands what Mosquitto has no word for.",
        (
            Key("mosquitto_conf", values.PATH, "that file", default="none: port 1883 on this machine alone"),
            Key(
                "scram_file",
                values.PATH,
                "users of enhanced authentication with SCRAM-SHA-256 (MQTT 5), made by `lockgate scram`",
                default="none: no Authentication Method is offered",
            ),
            Key(
                "session_owner",
                values.one_of("user", "any"),
                "whether a session is its user's alone, or of whoever comes with its client id, as in Mosquitto",
            ),
            Key(
                "on_bad_reload",
                values.one_of("keep", "exit"),
                "what a password, ACL or dynamic security file that cannot be used leads to at SIGHUP: the old rules "
                "go on, or the broker ends with status 3, as Mosquitto does",
            ),
            Key(
                "memory_budget",
                values.SIZE_OR_NONE,
                "what the broker may hold for clients, about; then QoS 0 for clients that do not read gives way, "
                "the oldest queued messages, alarms, and what comes is refused. 0: no budget",
                default="a quarter of the memory of the machine or the container",
            ),
            Key("alarms", values.TOPIC_FILTERS, "messages that give way last", default="none"),
            Key(
                "flush_interval",
                values.duration(0.1, 3600),
                "longest time until a change that no acknowledgement waits for is written; only its last value is",
                field="flush_interval_seconds",
            ),
            Key(
                "wills_on_stop",
                values.one_of("publish", "keep"),
                "publish all Wills when the broker stops, as Mosquitto does, or keep them for clients that stay away",
            ),
            Key(
                "server_reference",
                values.TEXT,
                "another Server that version 5 clients are told of when this one is full or stops",
                default="none",
            ),
            Key("server_moved", values.YES_OR_NO, "that Server has taken this one's place for good"),
            Key(
                "response_information",
                values.TOPIC_NAME,
                "start of response topics, told to version 5 clients that ask for it",
                default="none",
            ),
            Key(
                "trusted_proxies",
                values.NETWORKS,
                "peers to which no limit of an address applies, because many clients stand behind them",
                default="none",
            ),
        ),
        BrokerConfig,
    ),
    Section(
        "certificates",
        "One more certificate of a listener with TLS, for clients that ask for one of its host names (SNI).",
        (
            Key("listener", values.whole_number(1, 65535), "port of the listener", required=True),
            Key("hosts", values.HOSTS, "host names; `*` stands for one label", required=True),
            Key("certfile", values.PATH, "certificate and its chain, in PEM", required=True),
            Key("keyfile", values.PATH, "its private key, in PEM and without a passphrase", required=True),
        ),
        CertificateConfig,
        named=True,
    ),
    Section(
        "ack_after",
        "When the messages of some topics are acknowledged; the first section that matches counts, else it is `disk`. "
        "Acknowledgements keep their order: a client that publishes to both kinds waits for the disk.",
        (
            Key("topics", values.TOPIC_FILTERS, "which messages", required=True),
            Key(
                "after",
                values.one_of("memory", "disk"),
                "`memory`: at once, and a power cut may lose the last seconds; `disk`: when they are safe",
                required=True,
            ),
        ),
        AckAfterConfig,
        named=True,
    ),
    Section(
        "standing_sessions",
        "A session that exists before its client was ever there, so that it misses nothing. At its limit nothing is "
        "dropped: who publishes to it gets no acknowledgement until there is room.",
        (
            Key("topics", values.TOPIC_FILTERS, "what it is subscribed to", required=True),
            Key("client_id", values.TEXT, "its Client Identifier", default="the section's name"),
            Key("qos", values.whole_number(1, 2), "of its subscriptions"),
            Key("limit", values.SIZE_OR_NONE, "topics and payloads that may wait", field="limit_bytes"),
        ),
        StandingSessionConfig,
        named=True,
    ),
    Section(
        "broker.limits",
        "Bounds that Mosquitto has no word for; 0 is no limit. Rates are for each second.",
        (
            Key("pending_logins", values.COUNT, "connections not let in yet; the oldest is closed"),
            Key(
                "connect_timeout",
                values.duration(1, 600),
                "from accept to CONNACK",
                field="connect_timeout_seconds",
            ),
            Key("subscriptions", values.COUNT, "subscriptions of one client"),
            Key("user_properties", values.COUNT, "User Properties of one packet"),
            Key("topic_bytes", values.whole_number(1, 65535), "bytes of a Topic Name or Topic Filter"),
            Key("topic_levels", values.whole_number(1, 200), "levels of a Topic Name or Topic Filter"),
            Key("retained_messages", values.COUNT, "retained messages"),
            Key("retained_bytes", values.SIZE_OR_NONE, "their topics and payloads"),
            Key("queued_messages", values.COUNT, "messages queued for all clients together; the oldest give way"),
            Key("publish_rate", values.RATE, "messages of one client; it is read no faster"),
            Key("connect_rate", values.RATE, "connects of one Client Identifier"),
            Key("connect_rate_per_address", values.RATE, "connections from one address"),
            Key("connections_per_address", values.COUNT, "connections from one address at once"),
            Key("flapping_connects", values.COUNT, "connects of one Client Identifier in flapping_window"),
            Key(
                "flapping_window",
                values.duration(1, 86400),
                "time in which they are counted",
                field="flapping_window_seconds",
            ),
            Key(
                "flapping_hold_off",
                values.duration(1, 86400),
                "how long a client that exceeds them is refused",
                field="flapping_hold_off_seconds",
            ),
        ),
        BrokerLimitsConfig,
    ),
    *SOURCE_SECTIONS,
    Section(
        "processor",
        "The processor takes messages from the broker and runs the rules on them.",
        (
            Key("url", values.url("mqtt"), "the broker: mqtt://[USER[:PASSWORD]@]HOST[:PORT]"),
            *CONNECTION,
            Key("receive_maximum", values.whole_number(1, 65535), "unacknowledged messages taken at once"),
            Key(
                "session_expiry",
                values.whole_seconds(60, 366 * 86400),
                "how long the broker keeps messages for a processor that is away (MQTT 5)",
                field="session_expiry_seconds",
            ),
            Key(
                "state_topics",
                values.whole_number(1, 1_000_000),
                "topics whose last value is kept for rules that read `state`; the one heard of longest ago goes first. "
                "As many keys are remembered for functions",
            ),
            Key("functions", values.PATH, "folder of Python files with functions for rules", default="none"),
            Key(
                "function_packages",
                values.NAMES,
                "installed packages with functions for rules: entry points of the group `lockgate.functions`",
                default="none",
            ),
        ),
        ProcessorConfig,
    ),
    Section(
        "buffer",
        "The durable log between processor and forwarder.",
        (
            Key("segment", values.size(64 * 1024, 1024**3), "size of one file of the log", field="segment_bytes"),
            Key(
                "limit",
                values.size(1024**2, 1024**5),
                "size of the log at which nothing more is acknowledged to the broker",
                field="limit_bytes",
            ),
            Key("classes", values.NAMES, "classes of messages, in the order in which a sink drains them"),
            Key(
                "quarantine_messages",
                values.whole_number(1, 1_000_000),
                "messages kept aside because no schema or rule could take them; the oldest go first",
            ),
            Key(
                "quarantine",
                values.size(64 * 1024, 1024**4),
                "size of the payloads kept aside",
                field="quarantine_bytes",
            ),
            Key(
                "compression",
                values.one_of("none", "zstd"),
                "of files of the log that are full and that nobody reads soon; needs lockgate[zstd]",
            ),
        ),
        BufferConfig,
    ),
    Section(
        "classes",
        "What a class of [buffer] may hold, and what happens then. Without it a class is ordered and bounded by "
        "buffer.limit alone.",
        (
            Key(
                "limit",
                values.size(64 * 1024, 1024**5),
                "topics, payloads and 100 bytes for each message that a sink has yet to get",
                field="limit_bytes",
                default="none",
            ),
            Key(
                "keep",
                values.duration(1, 366 * 86400),
                "age at which a message that was not delivered expires; across restarts it counts only what is known",
                field="keep_seconds",
                default="none: it never expires",
            ),
            Key(
                "when_full",
                values.one_of("block", "drop-oldest", "drop-newest", "roll-up"),
                "`block`: nothing more is acknowledged to the broker, of any class; `drop-oldest`: old messages give "
                "way, at buffer.limit and on a full disk too, the last class of buffer.classes first; "
                "`drop-newest`: what comes is not kept; `roll-up`: as drop-oldest, but `roll_up` makes fewer of them",
            ),
            Key(
                "roll_up",
                values.TEXT,
                "a SELECT over the table `rows` (topic, time, device_time, schema, payload) of messages that give way; "
                "its columns are the `topic` of a message, its `device_ts`, and its JSON",
                default="none",
            ),
            Key("roll_up_into", values.TEXT, "the class of what it makes, another one", default="none"),
            Key(
                "order",
                values.one_of("ordered", "latest-first"),
                "`ordered`: as they came; `latest-first`: after an outage a live lane sends what comes, and a history "
                "lane what waited, behind everything live",
            ),
        ),
        ClassConfig,
        named=True,
    ),
    Section(
        "schemas",
        "Which messages a schema describes, and the typed columns read from their payload.",
        (
            Key("topics", values.TOPIC_FILTERS, "Topic Filters of its messages", required=True),
            Key("fields", values.FIELDS, "members of the payload's object and their types", required=True),
            Key("optional", values.NAMES_OR_NONE, "fields that may be absent; they are NULL then", default="none"),
            Key(
                "format",
                values.one_of("json", "text", "msgpack", "cbor", "protobuf", "avro", "sparkplug"),
                "of the payload; `text` is one number or text",
            ),
            Key("descriptor", values.PATH, "of protobuf: what protoc --descriptor_set_out writes", default="none"),
            Key("message", values.TEXT, "of protobuf: full name of the message's type", default="none"),
            Key("avro_schema", values.PATH, "of avro: the schema, in JSON", default="none"),
            Key("json_schema", values.PATH, "JSON Schema that the whole document has to conform to", default="none"),
            Key(
                "misfits",
                values.one_of("quarantine", "refuse", "coerce"),
                "what becomes of messages that do not fit: they are kept aside, or only counted; or a field is made "
                "what it should be where nothing of it is lost, and the message kept aside where not",
            ),
            Key(
                "keep",
                values.duration(1, 366 * 86400),
                "how long its messages stay in the log for `lockgate rules backtest`; they give way when the buffer "
                "is full",
                field="keep_seconds",
                default="none: as long as a window needs them",
            ),
        ),
        SchemaConfig,
        named=True,
    ),
    Section(
        "tables",
        "A file that rules can join with, as a table of this name. It is read again when it changes; a broken one "
        "leaves what was there. Its first column is indexed.",
        (
            Key("path", values.PATH, "CSV with the names of the columns in the first line, or SQLite", required=True),
            Key("table", values.TEXT, "table or view of an SQLite file", default="the section's name"),
            Key("fields", values.FIELDS, "columns and their types", default="all columns; of a CSV as text"),
            Key("delimiter", values.DELIMITER, "what parts the columns of a CSV"),
        ),
        TableConfig,
        named=True,
    ),
    Section(
        "rules",
        "One SELECT over the messages of a schema; each row of its result becomes one message.",
        (
            Key("schema", values.TEXT, "the schema whose messages it sees", required=True),
            Key("sql", values.TEXT, "the SELECT", required=True),
            Key("class", values.TEXT, "class of the messages it makes", field="message_class", required=True),
            Key(
                "every",
                values.duration(0.1, 86400),
                "the rule runs so often, over the messages since (tumbling window) or over those of `keep` (hopping)",
                field="every_seconds",
                default="none: without a window the rule runs for each message",
            ),
            Key(
                "keep",
                values.duration(0.001, 31 * 86400),
                "how far back the window reaches; without `every` it slides: the rule runs at each message. "
                "With `gap`: the longest session",
                field="keep_seconds",
                default="`every`; 1d with `gap`",
            ),
            Key(
                "gap",
                values.duration(0.001, 86400),
                "session window: it ends when nothing came for so long",
                field="gap_seconds",
                default="none",
            ),
            Key("count", values.whole_number(1, 1_000_000), "window of so many messages", default="none"),
            Key(
                "time",
                values.TEXT,
                "field that tells a message's time: an integer in Unix milliseconds, or a real in Unix seconds",
                default="none: when it arrived",
            ),
            Key(
                "lateness",
                values.duration(0, 31 * 86400),
                "how much later than others a message may come, with `time`",
                field="lateness_seconds",
            ),
            Key(
                "late",
                values.one_of("drop", "quarantine"),
                "what becomes of a message that comes when its windows are settled: it is counted, or kept aside",
            ),
            Key(
                "budget",
                values.duration(0.001, 3600),
                "longest time one run may take; a message that makes it longer is quarantined",
                field="budget_seconds",
            ),
            Key(
                "topic",
                values.TOPIC_NAME,
                "topic of rows that have no column `topic`",
                default="none: the SELECT gives a column `topic`",
            ),
            Key(
                "test",
                values.RULE_TESTS,
                "what the rule has to make of some messages; `lockgate rules test` and SIGHUP try it",
                field="tests",
                default="none",
            ),
        ),
        RuleConfig,
        named=True,
    ),
    Section(
        "downlink",
        "What commands from the cloud may do here. They are published at the broker as this client, so its own rules "
        "count as well.",
        (
            Key("topics", values.TOPIC_FILTERS, "where commands may be published", default="none: no command passes"),
            Key("url", values.url("mqtt"), "the broker: mqtt://[USER[:PASSWORD]@]HOST[:PORT]"),
            *CONNECTION,
        ),
        DownlinkConfig,
    ),
    Section(
        "sinks",
        "POST of one JSON array for each batch, with `Idempotency-Key`.",
        (
            *_SINK,
            Key("url", values.url("http", "https"), "where to POST", required=True),
            Key("method", values.one_of("POST", "PUT", "PATCH"), "of the request"),
            Key("headers", values.HEADERS, "headers sent with each request", default="none"),
            Key(
                "header_files",
                values.HEADER_FILES,
                "headers with a secret: the first line of a file, behind what `headers` says under the same name",
                default="none",
            ),
            Key(
                "json",
                values.JSON_BODY,
                "a body of your own in JSON, and a request for each message. A placeholder that is a whole text keeps "
                "its type. A message that lacks what is asked for becomes a dead letter",
                default="an array of messages",
                field="json_body",
            ),
            Key("form", values.FORM_BODY, "the same as application/x-www-form-urlencoded", default="none"),
            Key(
                "in_flight",
                values.whole_number(1, 64),
                "requests at once; the messages of one topic are never in two of them",
            ),
            Key(
                "compression",
                values.one_of("none", "gzip", "zstd"),
                "of the body, until the receiver refuses it with 415; zstd needs lockgate[zstd]",
            ),
        ),
        HttpSinkConfig,
        named=True,
        variant="http",
    ),
    Section(
        "sinks",
        "QoS 1 PUBLISH to another MQTT Server.",
        (
            *_SINK,
            Key(
                "url",
                values.url("mqtt", "mqtts", "ws", "wss"),
                "mqtts://[USER[:PASSWORD]@]HOST[:PORT], wss://…/PATH and the like",
                required=True,
            ),
            *CONNECTION,
            Key("topic_prefix", values.ANY_TEXT, "put before every topic"),
            Key(
                "format",
                values.one_of("payload", "document"),
                "`payload` as it is, with the id as a User Property in version 5; `document`: the JSON object of the "
                "http sink, with the id in it",
            ),
            Key("cafile", values.PATH, "authorities that are trusted, in PEM", default="the system's"),
            Key("certfile", values.PATH, "our certificate and its chain, in PEM", default="none"),
            Key("keyfile", values.PATH, "its private key", default="none"),
            Key("alpn", values.NAMES, 'protocols of ALPN, as ["x-amzn-mqtt-ca"]', default="none"),
            Key(
                "downlink",
                values.TOPIC_FILTERS,
                "commands to take from there, by a connection of their own: client_id with `-downlink` behind it. "
                "[downlink] says which may pass",
                default="none",
            ),
            Key("downlink_prefix", values.ANY_TEXT, "start of their topics, which is taken off here"),
        ),
        MqttSinkConfig,
        named=True,
        variant="mqtt",
    ),
    Section(
        "sinks",
        "JSON lines or files of Parquet, synced to disk before they count as delivered.",
        (
            *_SINK,
            Key("path", values.PATH, "the file; of Parquet the folder, with a file for each batch", required=True),
            _FORMAT,
            Key("compression", values.one_of("none", "gzip", "zstd"), "within Parquet; JSON lines are not compressed"),
        ),
        FileSinkConfig,
        named=True,
        variant="file",
    ),
    Section(
        "sinks",
        "Rows of a table of PostgreSQL or TimescaleDB; one that is there already stays as it is. Needs "
        "lockgate[postgres].",
        (
            *_SINK,
            Key(
                "url",
                values.url("postgresql"),
                "with the database as its path, `?sslmode=` and the like",
                required=True,
            ),
            Key("password_file", values.PATH, "file whose first line is the password", default="none"),
            Key(
                "table",
                values.TEXT,
                "with its schema or without; made if missing, else with the columns id, class, topic, time, clock_ok, "
                "device_time, payload, payload_raw and a unique index that holds id",
            ),
        ),
        PostgresSinkConfig,
        named=True,
        variant="postgres",
    ),
    Section(
        "sinks",
        "Messages of a stream of NATS JetStream, with `Nats-Msg-Id`. Needs lockgate[nats].",
        (
            *_SINK,
            Key("url", values.url("nats", "tls"), "nats://[USER[:PASSWORD]@]HOST[:PORT]", required=True),
            Key("subject_prefix", values.ANY_TEXT, "put before the topic, whose levels are parted by dots then"),
            Key("cafile", values.PATH, "authorities that are trusted, in PEM", default="the system's"),
            Key("credentials", values.PATH, "file of credentials (.creds)", default="none"),
            Key("token_file", values.PATH, "file whose first line is the token", default="none"),
        ),
        NatsSinkConfig,
        named=True,
        variant="nats",
    ),
    Section(
        "sinks",
        "Points of InfluxDB's line protocol, by POST.",
        (
            *_SINK,
            Key(
                "url",
                values.url("http", "https"),
                "where to write, with organisation and bucket, or the database; precision ns",
                required=True,
            ),
            Key("token_file", values.PATH, "file whose first line is the token", default="none"),
            Key("measurement", values.TEXT, "of all points", default="the schema of the message, else its class"),
            Key("tags", values.NAMES, "members of the JSON that are tags, beside topic and class", default="none"),
            Key("in_flight", values.whole_number(1, 64), "requests at once"),
            Key("compression", values.one_of("none", "gzip", "zstd"), "of the body"),
        ),
        InfluxSinkConfig,
        named=True,
        variant="influx",
    ),
    Section(
        "sinks",
        "Objects of JSON lines or Parquet in an S3-compatible store, one for each batch. Needs lockgate[objects].",
        (
            *_SINK,
            Key("bucket", values.TEXT, "the bucket", required=True),
            Key("endpoint", values.url("http", "https"), "of a store that is not AWS's", default="that of AWS"),
            Key("region", values.TEXT, "its region"),
            Key("prefix", values.ANY_TEXT, "put before the names of objects"),
            Key(
                "access_key_id",
                values.TEXT,
                "who we are",
                default="AWS_ACCESS_KEY_ID and the like, or the machine's role",
            ),
            Key("secret_key_file", values.PATH, "file whose first line is the secret key", default="as access_key_id"),
            _FORMAT,
            Key(
                "compression",
                values.one_of("none", "gzip", "zstd"),
                "of the objects, or within Parquet; zstd of JSON lines needs lockgate[zstd]",
            ),
        ),
        ObjectSinkConfig,
        named=True,
        variant="s3",
    ),
    Section(
        "sinks",
        "Records of a topic of Kafka, keyed by the topic of MQTT. Needs lockgate[kafka].",
        (
            *_SINK,
            Key("servers", values.NAMES, "HOST:PORT of some brokers", required=True),
            Key("topic", values.TEXT, "the topic of Kafka", required=True),
            Key("tls", values.YES_OR_NO, "whether the brokers speak TLS"),
            Key("cafile", values.PATH, "authorities that are trusted, in PEM", default="the system's"),
            Key("username", values.TEXT, "for SASL", default="none: no SASL"),
            Key("password_file", values.PATH, "file whose first line is the password", default="none"),
            Key("mechanism", values.one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"), "of SASL"),
            Key("compression", values.one_of("none", "gzip"), "of records"),
        ),
        KafkaSinkConfig,
        named=True,
        variant="kafka",
    ),
    Section(
        "deploy",
        "How `lockgate deploy` puts a new version in the place of the containers of a Compose project.",
        (
            Key("project", values.TEXT, "the Compose project, as `docker-compose ls` names it", default="none"),
            Key("image", values.TEXT, "REGISTRY/REPOSITORY:TAG that is watched", default="none"),
            Key(
                "services",
                values.NAMES,
                "services to replace, one after the other",
                default="those that run Lockgate, in the order of depends_on, the broker first",
            ),
            Key(
                "signature",
                values.one_of("required", "none"),
                "whether an image has to be signed with public_key; what is not is never pulled",
            ),
            Key("public_key", values.PATH, "ECDSA P-256 or Ed25519, in PEM, as cosign.pub", default="none"),
            Key(
                "signed_as",
                values.TEXT,
                "REGISTRY/REPOSITORY that the signature names, where the image comes from a mirror",
                default="that of image",
            ),
            Key("ca_file", values.PATH, "authority of the registry's certificate, in PEM", default="the system's"),
            Key("login_file", values.PATH, "file whose first line is USER:PASSWORD", default="none"),
            Key("docker_config", values.PATH, "config.json that `docker login` wrote", default="none"),
            Key("engine", values.TEXT, "where the Docker Engine answers"),
            Key(
                "folder",
                values.PATH,
                "folder of the stack; LOCKGATE_IMAGE in its `.env` becomes what runs",
                default="none",
            ),
            Key("interval", values.duration(10, 7 * 86400), "pause between two looks", field="interval_seconds"),
            Key(
                "jitter",
                values.duration(0, 7 * 86400),
                "a pause of chance on top of it, so that a fleet does not update at once",
                field="jitter_seconds",
            ),
            Key("windows", values.WINDOWS, "when an update may begin by itself", default="at any time"),
            Key("time_zone", values.TIME_ZONE, "of the windows", default="the machine's"),
            Key(
                "health_limit",
                values.duration(1, 3600),
                "until a new container is well; then the old one comes back",
                field="health_limit_seconds",
            ),
            Key("watch", values.duration(0, 86400), "how long it has to stay well", field="watch_seconds"),
            Key(
                "request_limit",
                values.duration(1, 600),
                "for one answer of the registry",
                field="request_limit_seconds",
            ),
            Key("pull_limit", values.duration(1, 86400), "for pulling an image", field="pull_limit_seconds"),
            Key("history", values.whole_number(1, 10_000), "updates that are remembered"),
        ),
        DeployConfig,
    ),
    Section(
        "connector",
        "The end of a tunnel that dials out, so that no port is open here. Its token is best given in a file or in the "
        "environment (`LOCKGATE_TUNNEL_TOKEN`, `CLOUDFLARE_TUNNEL_TOKEN`, `TUNNEL_TOKEN`).",
        (
            Key("token_file", values.PATH, "file with the token; options and variables go before it", default="none"),
            Key(
                "edges",
                values.ADDRESSES,
                "where to dial",
                default="those in the token; of the vendor's token, the vendor's",
            ),
            Key(
                "server_name",
                values.TEXT,
                "name that the edge's certificate has to be good for",
                default="the name that is dialled; where that is the vendor's, h2.cftunnel.com",
            ),
            Key(
                "ca_file",
                values.PATH,
                "authorities of the edge's certificate, in PEM",
                default="what the token says, else the system's",
            ),
            Key("connections", values.whole_number(1, 16), "connections to edges, at once"),
            Key(
                "grace",
                values.duration(0, 180),
                "how long open requests may go on when it stops",
                field="grace_seconds",
            ),
            Key("metrics", values.ADDRESS, "where it answers /metrics and /ready"),
            Key(
                "allow",
                values.NAMES,
                'what it may dial, as ["mosquitto:1883", "10.0.0.0/8:*", "[2001:db8::1]:22", "unix:/run/app.sock"]. '
                "Raw TCP streams reach these and the targets of `tcp` rules, and nothing else; rules that an edge "
                "pushes may lead nowhere else, either",
                default="none: raw TCP only to targets of `tcp` rules, and pushed rules lead where they like",
            ),
            Key(
                "proxy_protocol",
                values.NAMES,
                "which of the targets are told the device's address by the PROXY protocol, version 2; `HOST:PORT`, "
                "`NETWORK:PORT` or `unix:/PATH` as in allow",
                default="none",
            ),
            Key("cloudflared_config", values.PATH, "config.yml of cloudflared, whose rules are used", default="none"),
            Key(
                "ingress",
                values.TABLES,
                "rules for requests: `hostname`, `path` (an RE2 expression), `service`, and `origin_request` with "
                "`connect_timeout`, `tls_timeout`, `tcp_keep_alive`, `keep_alive_timeout`, `keep_alive_connections`, "
                "`no_happy_eyeballs`, `http_host_header`, `origin_server_name`, `match_sni_to_host`, `ca_pool`, "
                "`no_tls_verify`, `disable_chunked_encoding`, `access`. The first that matches counts; "
                "the last matches everything",
                default="none: those of cloudflared_config, or what the edge pushes",
            ),
        ),
        ConnectorConfig,
    ),
    Section(
        "edge",
        "The public side of a tunnel, for those who host their own.",
        (
            Key("listen_tunnel", values.ADDRESSES, "where connectors dial in"),
            Key("listen_https", values.ADDRESSES, "where people and WebSockets come in"),
            Key("listen_mqtts", values.ADDRESSES, "where MQTT over TLS comes in"),
            Key(
                "certificates_dir",
                values.PATH,
                "certificates of the public side: NAME.pem (with its chain) and NAME.key, chosen by the names in them; "
                "read again when they change",
                default="data_dir/edge/certificates",
            ),
            Key(
                "tunnel_certfile",
                values.PATH,
                "certificate that connectors see, in PEM; cloudflared wants the name h2.cftunnel.com in it",
                default="data_dir/edge/tunnel.pem",
            ),
            Key("tunnel_keyfile", values.PATH, "its key", default="data_dir/edge/tunnel.key"),
            Key(
                "client_ca_file",
                values.PATH,
                "authorities of devices' certificates, in PEM; devices are asked for one then",
                default="none",
            ),
            Key("location", values.TEXT, "how connectors call this edge in their log and figures"),
            Key("max_connections", values.whole_number(1, 1_000_000), "connections of the public side at a time"),
            Key(
                "max_handshakes",
                values.whole_number(1, 1_000_000),
                "connections of each port that are in their TLS handshake at a time; where there are more, the oldest "
                "of them are closed",
            ),
            Key(
                "tunnels",
                values.PATH,
                "tunnels, their tokens, host names and policies, in JSON; changed by `lockgate edge tunnel` or by "
                "hand, and read again when it changes",
                default="data_dir/edge/tunnels.json",
            ),
            Key("audit_dir", values.PATH, "the audit log", default="data_dir/edge/audit"),
            Key(
                "audit_file",
                values.size(64 * 1024, 1024**3),
                "size of one file of it",
                field="audit_file_bytes",
            ),
            Key("audit_files", values.whole_number(2, 1_000_000), "files of it that are kept"),
            Key("public", values.ADDRESSES, "addresses that new tokens tell connectors to dial", default="none"),
            Key(
                "ca_file",
                values.PATH,
                "authority that new tokens tell connectors to check this edge against, in PEM",
                default="none: the system's",
            ),
        ),
        EdgeConfig,
    ),
    Section(
        "edge.acme",
        "Public certificates from an ACME server, as Let's Encrypt: fetched, and renewed when a third of their time is "
        "left. The server proves each name by tls-alpn-01 at `listen_https`, which it has to reach as port 443 of that "
        "name. Needs lockgate[acme].",
        (
            Key("names", values.DNS_NAMES, "a certificate for each of these", default="required"),
            Key(
                "agree_to_terms",
                values.YES_OR_NO,
                "that you agree to the ACME server's terms of service; nothing is asked of it before",
            ),
            Key("directory", values.url("https"), "the ACME server"),
            Key("email", values.EMAIL, "where it may write to; said when the account is made", default="none"),
            Key(
                "ca_file",
                values.PATH,
                "authorities of the ACME server's own certificate, in PEM, for one within a company",
                default="none: those of the library certifi",
            ),
            Key("eab_key_id", values.TEXT, "key identifier of an account that is bound to one outside", default="none"),
            Key("eab_hmac_file", values.PATH, "file with its HMAC key in base64url", default="none"),
        ),
        AcmeConfig,
    ),
)

PLAIN = {section.name: section for section in SECTIONS if not section.named}
NAMED = {section.name: section for section in SECTIONS if section.named and not section.variant}
# Those of which `type` selects one
VARIANTS = {
    name: {one.variant: one for one in SECTIONS if one.variant and one.name == name} for name in ("sources", "sinks")
}
TOP_LEVEL = (*(name for name in PLAIN if "." not in name), *NAMED, *VARIANTS)


def find() -> Path | None:
    """The first of `PLACES` that exists; the file itself where that is a link, as in the container image.

    Relative paths count from its folder. The relative links of a Kubernetes ConfigMap lead to copies, and stay.
    """
    found = next((path for path in PLACES if path.exists()), None)
    if found is not None and found.is_symlink() and (target := found.readlink()).is_absolute():
        return target
    return found


def load(path: Path | None, environment: Mapping[str, str], mosquitto_conf: Path | None = None) -> Config:
    """The configuration in `path` (None: only defaults) with what `environment` overrides.

    `mosquitto_conf` takes the place of the file that `path` names.
    Raises ConfigError, for all mistakes together, if it cannot be used.
    """
    return _Reading(path, environment, mosquitto_conf).config()


_T = TypeVar("_T")
Said = dict[str, object]  # what one table said: keyword arguments of its class in the model


@dataclass(slots=True)
class _Reading:
    path: Path | None
    environment: Mapping[str, str]
    mosquitto_conf: Path | None
    errors: list[ConfigError] = field(default_factory=list)
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    variables: dict[tuple[str, ...], str] = field(default_factory=dict)  # keys that the environment has overridden

    def config(self) -> Config:
        document = self._document()
        raise_all(self.errors)
        self._unknown_sections(document)
        plain = {name: self._plain(section, document) for name, section in PLAIN.items()}
        named = {
            name: [(one, self._table(section, (name, one), table)) for one, table in self._tables(document, name)]
            for name, section in NAMED.items()
        }
        sinks = [self._variant("sinks", name, table) for name, table in self._tables(document, "sinks")]
        sources = [self._variant("sources", name, table) for name, table in self._tables(document, "sources")]
        broker_limits = BrokerLimitsConfig(**plain["broker.limits"])  # type: ignore[arg-type]
        broker = self._broker(plain["broker"] | {"limits": broker_limits})
        broker = self._with_certificates(broker, named["certificates"])
        raise_all(self.errors)
        broker = dataclasses.replace(
            broker,
            ack_after=tuple(AckAfterConfig(name=name, **said) for name, said in named["ack_after"]),  # type: ignore[arg-type]
            standing_sessions=tuple(
                StandingSessionConfig(name=name, **said)  # type: ignore[arg-type]
                for name, said in named["standing_sessions"]
            ),
        )

        limits = tuple(ClassConfig(name=name, **said) for name, said in named["classes"])  # type: ignore[arg-type]
        buffer = BufferConfig(limits=limits, **plain["buffer"])  # type: ignore[arg-type]
        schemas = tuple(
            SchemaConfig(name=name, line=self._line("schemas", name), **said)  # type: ignore[arg-type]
            for name, said in named["schemas"]
        )
        tables = tuple(
            TableConfig(name=name, line=self._line("tables", name), **said)  # type: ignore[arg-type]
            for name, said in named["tables"]
        )
        rules = tuple(self._rule(name, said) for name, said in named["rules"])
        gateway = {"id": socket.gethostname()} | plain["gateway"]
        config = Config(
            path=self.path,
            gateway=GatewayConfig(**gateway),  # type: ignore[arg-type]
            broker=broker,
            processor=_processor(plain["processor"], schemas=schemas, tables=tables, rules=rules),
            buffer=buffer,
            forwarder=ForwarderConfig(
                sinks=tuple(section.model(**({"classes": buffer.classes} | said)) for section, said in sinks),
                downlink=_downlink(plain["downlink"]),
            ),
            sources=tuple(_built(section, said) for section, said in sources),
            deploy=DeployConfig(**plain["deploy"]),  # type: ignore[arg-type]
            connector=self._connector(plain["connector"]),
            edge=self._edge(plain["edge"], plain["edge.acme"], document),
        )
        self._cross_check(config)
        raise_all(self.errors)
        return config

    # --- reading ------------------------------------------------------------------------------------------------

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = {}
        if self.path is not None:
            try:
                text = self.path.read_bytes().decode("utf-8")
                document = tomllib.loads(text)
                self.lines = key_lines(text)
                self.text = text.splitlines()
            except OSError as error:
                self.errors.append(ConfigError(f"cannot be read: {error.strerror}", path=self.path))
            except UnicodeDecodeError as error:
                line = error.object.count(b"\n", 0, error.start) + 1
                self.errors.append(ConfigError("is not valid UTF-8", path=self.path, line=line))
            except tomllib.TOMLDecodeError as error:
                where = re.search(r"\(at line (\d+)", str(error))
                last = text.count("\n") + 1
                problem = f"is not valid TOML: {error}"
                self.errors.append(ConfigError(problem, path=self.path, line=int(where[1]) if where else last))
        self._override(document)
        return document

    def _override(self, document: dict[str, Any]) -> None:
        """Put what LOCKGATE_<SECTION>_<KEY> says into `document`, so that it is checked like the rest."""
        for variable, text in sorted(self.environment.items()):
            sections = [name for name in (*PLAIN, *TOP_LEVEL) if variable.startswith(f"LOCKGATE_{_shout(name)}_")]
            if not sections:
                continue
            section = max(sections, key=len)
            rest = variable.removeprefix(f"LOCKGATE_{_shout(section)}_")
            where: tuple[str, ...] = tuple(section.split("."))
            table: Any = document
            for part in where:
                table = table.setdefault(part, {}) if isinstance(table, dict) else None
            keys = PLAIN[section].keys if section in PLAIN else ()
            if section not in PLAIN and isinstance(table, dict):
                # LOCKGATE_SINKS_CLOUD_URL: the longest name that is in the file
                for name in sorted(table, key=len, reverse=True):
                    if rest.startswith(f"{_shout(name)}_") and isinstance(table[name], dict):
                        rest, table = rest.removeprefix(f"{_shout(name)}_"), table[name]
                        where = (section, name)
                        variants = VARIANTS[section].values() if section in VARIANTS else (NAMED[section],)
                        keys = tuple(key for one in variants for key in one.keys)
                        break
            key = next((key for key in keys if _shout(key.name) == rest), None)
            if key is None or not isinstance(table, dict):
                known = [f"LOCKGATE_{_shout(section)}_{_shout(key.name)}" for key in keys]
                problem = f"overrides nothing that lockgate.toml knows.{did_you_mean(variable, known)}"
                self.errors.append(ConfigError(problem, key=variable))
                continue
            self.variables[*where, key.name] = variable
            table[key.name] = text if key.kind.text else _toml_value(text)

    def _tables(self, document: dict[str, Any], *where: str) -> list[tuple[str, object]]:
        tables = document.get(where[-1], {})
        if not isinstance(tables, dict):
            self._wrong(where, f"must be tables: [{'.'.join(where)}.NAME]")
            return []
        for name in tables:
            if not NAME.fullmatch(name):
                self._wrong((*where, name), "cannot be a name", "1 to 64 letters, digits, - and _")
        return list(tables.items())

    def _unknown_sections(self, document: dict[str, Any]) -> None:
        for name in document:
            if name not in TOP_LEVEL:
                self._wrong((name,), f"is no section.{did_you_mean(name, TOP_LEVEL)}", ", ".join(TOP_LEVEL))

    def _plain(self, section: Section, document: Mapping[str, object]) -> Said:
        """Read a section without a name of its own; one within another, as [broker.limits], is none of its keys."""
        where = tuple(section.name.split("."))
        table: object = document
        for part in where:
            table = table.get(part, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict):
            inner = [name.removeprefix(f"{section.name}.") for name in PLAIN if name.startswith(f"{section.name}.")]
            table = {name: value for name, value in table.items() if name not in inner}
        return self._table(section, where, table)

    def _table(self, section: Section, where: tuple[str, ...], table: object) -> Said:
        if not isinstance(table, dict):
            self._wrong(where, f"must be a table: [{'.'.join(where)}]")
            return {}
        keys = {key.name: key for key in section.keys}
        known = [*keys, *(inner.key for inner in section.inner)]
        for name in table.keys() - set(known):
            self._wrong((*where, name), f"is no key of it.{did_you_mean(name, known)}", ", ".join(known))
        said: Said = {
            inner.key: [
                (name, self._table(inner, (*where, inner.key, name), one))
                for name, one in self._tables(table, *where, inner.key)
            ]
            for inner in section.inner
        }
        for key in section.keys:
            if key.name in table:
                try:
                    said[key.target] = self._from_here(key.kind.read(table[key.name]))
                except BadValue as bad:
                    value = "its value" if key.kind.secret else repr(table[key.name])
                    problem = f"{value} cannot be used" + (f": {bad}" if str(bad) else "")
                    self._wrong((*where, key.name, *bad.below), problem, key.kind.accepted)
            elif key.required:
                self._wrong((*where, key.name), "is missing", key.kind.accepted)
        return said

    def _variant(self, of: str, name: str, table: object) -> tuple[Section, Said]:
        """Read a sink or a source."""
        sections = VARIANTS[of]
        kind = table.get("type") if isinstance(table, dict) else None
        if not isinstance(kind, str) or kind not in sections:
            problem = f"{kind!r} is no type of {of.removesuffix('s')}" if kind is not None else "is missing"
            self._wrong((of, name, "type"), problem, " or ".join(f'"{one}"' for one in sections))
            return next(iter(sections.values())), {}
        section = sections[kind]
        said = self._table(section, (of, name), table)
        said.pop("type", None)
        said["name"] = name
        if of == "sources":
            said["connection"] = _connection(said, f"lockgate-source-{name}")
        elif kind == "mqtt":
            said["connection"] = _connection(said, f"lockgate-{name}")
        if of == "sinks" and kind == "http":
            json_body, form = said.pop("json_body", None), said.pop("form", None)
            if json_body is not None and form is not None:
                self._wrong(("sinks", name, "form"), "is a second body beside json", "one of them")
            said["body"] = json_body or form
        return section, said

    def _rule(self, name: str, said: Said) -> RuleConfig:
        place = {"line": self._line("rules", name), "sql_line": self._text_line("rules", name, "sql")}
        return RuleConfig(name=name, **place, **said)  # type: ignore[arg-type]

    def _broker(self, said: Said) -> BrokerConfig:
        path = said.pop("mosquitto_conf", None)
        path = self.mosquitto_conf or path
        try:
            broker = read_mosquitto_conf(path) if isinstance(path, Path) else BrokerConfig()
            return dataclasses.replace(broker, **said)  # type: ignore[arg-type]
        except ConfigError as error:
            self.errors.append(error)
            return BrokerConfig()

    def _with_certificates(self, broker: BrokerConfig, tables: list[tuple[str, Said]]) -> BrokerConfig:
        """Hand each certificate to its listener."""
        if self.errors or not tables:
            return broker
        listeners = list(broker.listeners)
        for name, said in tables:
            place = Place(self.path or Path("lockgate.toml"), self._line("certificates", name))
            certificate = CertificateConfig(name=name, place=place, **said)  # type: ignore[arg-type]
            found = False
            for number, listener in enumerate(listeners):
                if listener.port == certificate.listener and listener.tls is not None:
                    tls = dataclasses.replace(listener.tls, certificates=(*listener.tls.certificates, certificate))
                    listeners[number] = dataclasses.replace(listener, tls=tls)
                    found = True
            if not found:
                ports = [str(one.port) for one in listeners if one.tls is not None]
                problem = f"no listener with a certificate has port {certificate.listener}"
                self._wrong(("certificates", name, "listener"), problem, ", ".join(ports) or "first a certfile")
        return dataclasses.replace(broker, listeners=tuple(listeners))

    def _connector(self, said: Said) -> ConnectorConfig:
        place = Place(self.path, self._line("connector", "ingress")) if self.path is not None else None
        return ConnectorConfig(place=place, **said)  # type: ignore[arg-type]

    def _edge(self, said: Said, acme: Said, document: Mapping[str, Any]) -> EdgeConfig:
        is_wanted = "acme" in document.get("edge", {})
        return EdgeConfig(acme=AcmeConfig(**acme) if is_wanted else None, **said)  # type: ignore[arg-type]

    def _from_here(self, value: object) -> object:
        if isinstance(value, Path) and self.path is not None:
            return self.path.parent / value
        if type(value) is tuple:
            return tuple(map(self._from_here, value))
        return value

    # --- what belongs together ----------------------------------------------------------------------------------

    def _cross_check(self, config: Config) -> None:
        classes = config.buffer.classes
        schemas = {schema.name: schema for schema in config.processor.schemas}
        for schema in schemas.values():
            for name in sorted(schema.optional - {name for name, _ in schema.fields}):
                problem = f"{name!r} is not among its fields"
                self._wrong(("schemas", schema.name, "optional"), problem, ", ".join(name for name, _ in schema.fields))
        for rule in config.processor.rules:
            if rule.schema not in schemas:
                problem = f"there is no [schemas.{rule.schema}].{did_you_mean(rule.schema, schemas)}"
                self._wrong(("rules", rule.name, "schema"), problem, ", ".join(schemas) or "first a [schemas.NAME]")
            self._known_class(("rules", rule.name, "class"), rule.message_class, classes)
        for sink in config.forwarder.sinks:
            for message_class in sink.classes:
                self._known_class(("sinks", sink.name, "classes"), message_class, classes)
            if isinstance(sink, MqttSinkConfig) and sink.downlink and not config.forwarder.downlink.topics:
                problem = "takes commands, and none may pass"
                self._wrong(("sinks", sink.name, "downlink"), problem, "[downlink] with topics = [...]")
            for message_class in sink.always:
                self._known_class(("sinks", sink.name, "always"), message_class, sink.classes)
            if sink.retry_min_seconds > sink.retry_max_seconds:
                problem = "is longer than retry_max"
                limit = f"up to {values.spell_duration(sink.retry_max_seconds)}"
                self._wrong(("sinks", sink.name, "retry_min"), problem, limit)
        if config.connector.ingress and config.connector.cloudflared_config is not None:
            problem = "stands beside cloudflared_config, and only one of them can say the rules"
            self._wrong(("connector", "ingress"), problem, "one of them")
        if config.edge.acme is not None:
            self._acme(config.edge.acme)
        for one in config.buffer.limits:
            self._known_class(("classes", one.name), one.name, classes)
            if one.when_full == "roll-up":
                self._roll_up(one, classes)
            elif one.roll_up or one.roll_up_into:
                self._wrong(("classes", one.name, "roll_up"), "is for `roll-up` alone", 'when_full = "roll-up"')
            if one.limit_bytes is None and one.when_full == "drop-newest":
                self._wrong(("classes", one.name, "when_full"), "needs a limit", "drop-newest with a `limit`")
            if one.limit_bytes is not None and one.limit_bytes > config.buffer.limit_bytes:
                self._wrong(("classes", one.name, "limit"), "is larger than buffer.limit", "a part of buffer.limit")
        for where, problem, accepted in mistakes(config.sources):
            self._wrong(where, problem, accepted)
        if config.buffer.segment_bytes > config.buffer.limit_bytes:
            self._wrong(("buffer", "segment"), "is larger than limit", "a small part of buffer.limit")

    def _acme(self, acme: AcmeConfig) -> None:
        where = ("edge", "acme")
        if not acme.names:
            self._wrong((*where, "names"), "is missing", values.DNS_NAMES.accepted)
        if not acme.agree_to_terms:
            problem = f"must be true: {acme.directory} wants its terms of service agreed to"
            self._wrong((*where, "agree_to_terms"), problem, "true")
        if bool(acme.eab_key_id) != (acme.eab_hmac_file is not None):
            alone, other = ("eab_key_id", "eab_hmac_file") if acme.eab_key_id else ("eab_hmac_file", "eab_key_id")
            self._wrong((*where, alone), f"stands without {other}", "both, or none of them")

    def _roll_up(self, one: ClassConfig, classes: tuple[str, ...]) -> None:
        if not one.roll_up:
            self._wrong(("classes", one.name, "when_full"), "needs a SELECT", "roll-up with `roll_up`")
        if one.roll_up_into == one.name or not one.roll_up_into:
            others = ", ".join(name for name in classes if name != one.name)
            self._wrong(("classes", one.name, "roll_up_into"), "must be another class", others)
        else:
            self._known_class(("classes", one.name, "roll_up_into"), one.roll_up_into, classes)

    def _known_class(self, where: tuple[str, ...], name: str, classes: tuple[str, ...]) -> None:
        if name not in classes:
            of = "the classes of the sink" if where[-1] == "always" else "buffer.classes"
            problem = f"{name!r} is not among {of}.{did_you_mean(name, classes)}"
            self._wrong(where, problem, ", ".join(classes))

    def _wrong(self, where: tuple[str, ...], problem: str, accepted: str | None = None) -> None:
        if where in self.variables:
            self.errors.append(ConfigError(problem, key=self.variables[where], accepted=accepted))
            return
        self.errors.append(
            ConfigError(problem, path=self.path, line=self._line(*where), key=".".join(where), accepted=accepted)
        )

    def _text_line(self, *where: str) -> int | None:
        """The line where the text of a value begins: TOML takes no account of a line that ends with the quotes."""
        line = self._line(*where)
        if line is None or not self.text:
            return line
        return line + self.text[line - 1].rstrip().endswith(('"""', "'''"))

    def _line(self, *where: str) -> int | None:
        return line_of(self.lines, where)


def _built(section: Section, said: Said) -> Any:
    """Make the model of a section and of the tables within it."""
    inner: Said = {}
    for one in section.inner:
        tables: Any = said[one.key]
        inner[one.key] = tuple(_built(one, table | {"name": name}) for name, table in tables)
    return section.model(**(said | inner))


def _processor(said: Said, **named: object) -> ProcessorConfig:
    connection = _connection(said, ProcessorConfig().connection.client_id)
    return ProcessorConfig(connection=connection, **named, **said)  # type: ignore[arg-type]


def _downlink(said: Said) -> DownlinkConfig:
    connection = _connection(said, DownlinkConfig().connection.client_id)
    return DownlinkConfig(connection=connection, **said)  # type: ignore[arg-type]


def _connection(said: Said, client_id: str) -> ConnectionConfig:
    """Take the keys of a connection out of `said`."""
    names = {one.name for one in dataclasses.fields(ConnectionConfig)} & said.keys()
    return ConnectionConfig(**({"client_id": client_id} | {name: said.pop(name) for name in names}))  # type: ignore[arg-type]


def _shout(name: str) -> str:
    return name.upper().replace("-", "_").replace(".", "_")


def _toml_value(text: str) -> object:
    """`text` as TOML would read it behind a `=`, else as it stands: 10, "10" and 10s all do."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
