"""mosquitto.conf → BrokerConfig, by Mosquitto's own syntax and defaults.

An option is a row: `OPTIONS` holds those that are honoured, `NOT_YET` those that Mosquitto knows and this broker does
not honour yet. To honour one, move its name from the second to the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from lockgate.config.errors import ConfigError, MosquittoConfError, did_you_mean, raise_all
from lockgate.config.model import AuthorityConfig, BrokerConfig, ListenerConfig, LogConfig, Place, TlsConfig

LOG_TYPES = ("error", "warning", "notice", "information", "debug", "subscribe", "unsubscribe", "websockets", "internal")
LOCAL_ADDRESSES = ("127.0.0.1", "::1")


class BadValue(Exception):
    """The value of one option cannot be used; the text is the problem, the second argument what would be accepted."""

    def __init__(self, problem: str, accepted: str | None = None) -> None:
        super().__init__(problem)
        self.accepted = accepted


@dataclass(slots=True)
class Plugin:
    """A `plugin` line: which of Mosquitto's own plugins it names, with the options below it."""

    file: str  # its file name
    place: Place
    name: str = ""  # that plugin_load gave it
    holders: list[dict[str, object]] = field(default_factory=list)  # drafts of what it is used for
    options: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Draft:
    """What the lines read so far have said: keyword arguments for the frozen classes."""

    broker: dict[str, object] = field(default_factory=dict)
    log: dict[str, object] = field(default_factory=dict)
    listeners: list[dict[str, object]] = field(default_factory=list)
    before_listeners: dict[str, object] = field(default_factory=dict)  # listener options above the first `listener`
    before_listeners_at: tuple[str, Path, int] | None = None
    places: list[dict[str, Place]] = field(default_factory=lambda: [{}])  # of options: first those above any listener
    bridges: list[dict[str, object]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    destinations: list[str] = field(default_factory=list)
    types: set[str] | None = None
    seen: set[str] = field(default_factory=set)
    default_listener: dict[str, object] = field(default_factory=dict)  # what `port` and `bind_address` say of it
    plugins: list[Plugin] = field(default_factory=list)
    per_listener: bool = False
    place: Place = field(default_factory=lambda: Place(Path(), None))  # of the line being read

    @property
    def security(self) -> dict[str, object]:
        """Where security options belong: to the listener above them, with per_listener_settings."""
        return self.listener if self.per_listener else self.broker

    @property
    def listener(self) -> dict[str, object]:
        return self.listeners[-1] if self.listeners else self.before_listeners


# --- values -------------------------------------------------------------------------------------------------------


def boolean(name: str, value: str) -> bool:
    match value.lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise BadValue(f"Invalid {name} value ({value}).", "true, false, 1, 0")


def integer(name: str, value: str) -> int:
    """A number by C's rules for base 0: 16, 0x10 and 020 are the same."""
    match = re.fullmatch(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))", value)
    if match is None:
        raise BadValue(f"Invalid {name} value ({value}).", "a whole number")
    sign, hexadecimal, octal, decimal = match.groups()
    if hexadecimal is not None:
        number = int(hexadecimal, 16)
    elif octal is not None:
        number = int(octal, 8)
    else:
        number = int(decimal)
    return -number if sign == "-" else number


Reader = Callable[[str, str], object]


def whole_number(low: int, high: int) -> Reader:
    def read(name: str, value: str) -> int:
        number = integer(name, value)
        if not low <= number <= high:
            raise BadValue(f"Invalid {name} value ({value}).", f"{low} to {high}")
        return number

    return read


def limit(high: int | None = None, none: int = 0) -> Reader:
    """A count of which anything below zero, and `high` itself, mean no limit, stored as `none`."""

    def read(name: str, value: str) -> int:
        number = integer(name, value)
        if high is not None and number > high:
            raise BadValue(f"Invalid {name} value ({value}).", f"up to {high}")
        return none if number < 0 or number == high else number

    return read


# --- options ------------------------------------------------------------------------------------------------------

Apply = Callable[[Draft, str, str], None]  # draft, option, value


def to_broker(read: Reader, field_name: str | None = None) -> Apply:
    return lambda draft, name, value: _put(draft.broker, field_name or name, read, name, value)


def to_security(read: Reader, field_name: str | None = None) -> Apply:
    return lambda draft, name, value: _put(draft.security, field_name or name, read, name, value)


def to_listener(read: Reader, field_name: str | None = None) -> Apply:
    return lambda draft, name, value: _put(draft.listener, field_name or name, read, name, value)


def _put(holder: dict[str, object], key: str, read: Reader, name: str, value: str) -> None:
    """Keep a value. As in Mosquitto the last number or choice counts, but a text is said once in its place."""
    if key in holder and read in _TEXTS:
        raise BadValue(f"Duplicate {name} value in configuration.")
    holder[key] = read(name, value)


def ignored(why: str) -> Apply:
    def apply(draft: Draft, name: str, value: str) -> None:
        draft.warnings.append(f"{name} is ignored: {why}.")

    return apply


def text(name: str, value: str) -> str:
    return value


def a_path(name: str, value: str) -> Path:
    if "\0" in value:
        raise BadValue(f"Invalid {name} value: a path holds no NUL.")
    return Path(value)  # like Mosquitto, from the working directory


def file_name(name: str, value: str) -> str:
    if "/" in value or value in (".", ".."):
        raise BadValue(f"Invalid {name} value ({value}).", "a file name; its folder is persistence_location")
    return value


_UNITS = {"s": 1, "h": 3600, "d": 86_400, "w": 7 * 86_400, "m": 30 * 86_400, "y": 365 * 86_400}


def expiration(name: str, value: str) -> int:
    match = re.fullmatch(r"([0-9]+)([shdwmy])", value)
    if match is None or int(match[1]) == 0:
        raise BadValue(f"Invalid {name} value ({value}).", "a number and s, h, d, w, m (30 days) or y, as 2w")
    return min(int(match[1]) * _UNITS[match[2]], 2**32)


def one_of(**choices: object) -> Reader:
    def read(name: str, value: str) -> object:
        if value not in choices:
            raise BadValue(f"Invalid {name} value ({value}).", ", ".join(choices))
        return choices[value]

    return read


def authority_file(draft: Draft, name: str, value: str) -> None:
    authorities = cast(list[AuthorityConfig], draft.security.setdefault("authorities", []))
    if any(one.kind == name for one in authorities):
        raise BadValue(f"Duplicate {name} value in configuration.")
    path = a_path(name, value)
    authorities.append(AuthorityConfig(kind=name, path=path, place=draft.place))  # type: ignore[arg-type]


_BEFORE_PER_LISTENER = (
    "acl_file",
    "allow_anonymous",
    "allow_zero_length_clientid",
    "auth_plugin",
    "auth_plugin_deny_special_chars",
    "auto_id_prefix",
    "password_file",
    "plugin",
    "plugin_load",
)


def per_listener_settings(draft: Draft, name: str, value: str) -> None:
    said = next((option for option in _BEFORE_PER_LISTENER if option in draft.seen), None)
    if said is not None:
        raise BadValue(f"per_listener_settings must be set before any other security settings, and {said} was.")
    draft.per_listener = draft.broker[name] = boolean(name, value)


PLUGINS = {
    "mosquitto_acl_file.so": {"acl_file"},
    "mosquitto_password_file.so": {"password_file"},
    "mosquitto_dynamic_security.so": {"config_file", "password_init_file"},
    "mosquitto_persist_sqlite.so": {"db_file", "sync", "flush_period", "page_size"},
    "mosquitto_sparkplug_aware.so": set[str](),
}
_PLUGIN_ADVICE = (
    "A plugin is a C library, which this broker cannot load; Mosquitto's own are built in under their file names"
)


def _add_plugin(draft: Draft, value: str, holders: list[dict[str, object]], name: str = "") -> None:
    file = value.rpartition("/")[2]
    if file not in PLUGINS:
        raise BadValue(f"Unable to load plugin {value}. {_PLUGIN_ADVICE}.", ", ".join(PLUGINS))
    draft.plugins.append(Plugin(file, draft.place, name, holders))


def plugin(draft: Draft, name: str, value: str) -> None:
    _add_plugin(draft, value, [draft.broker if name == "global_plugin" else draft.security])


def plugin_load(draft: Draft, name: str, value: str) -> None:
    label, _, path = value.partition(" ")
    if not path.strip():
        raise BadValue(f"Invalid {name} value ({value}).", "NAME PATH")
    if any(one.name == label for one in draft.plugins):
        raise BadValue(f"Duplicate {name} name {label}.")
    _add_plugin(draft, path.strip(), [], label)


def plugin_use(draft: Draft, name: str, value: str) -> None:
    for one in draft.plugins:
        if one.name == value:
            one.holders.append(draft.listener if draft.listeners else draft.broker)
            return
    raise BadValue(f"There is no plugin_load {value} above.", ", ".join(one.name for one in draft.plugins if one.name))


def plugin_option(draft: Draft, name: str, value: str) -> None:
    if not draft.plugins:
        raise BadValue(f"{name} stands above any plugin line, so it belongs to none.")
    last = draft.plugins[-1]
    key = name.removeprefix("plugin_opt_").removeprefix("auth_opt_")
    known = PLUGINS[last.file]
    if key not in known:
        accepted = ", ".join(f"plugin_opt_{one}" for one in sorted(known)) or "no options"
        raise BadValue(f"{name} is no option of {last.file}.", accepted)
    if key in last.options:
        raise BadValue(f"Duplicate {name} value in configuration.")
    last.options[key] = value


def default_listener(draft: Draft, name: str, value: str) -> None:
    if name in draft.default_listener:
        raise BadValue(f"Duplicate {name} value in configuration.")
    draft.default_listener[name] = whole_number(1, 65535)("port", value) if name == "port" else value
    draft.warnings.append(f"The '{name}' option is now deprecated, `listener PORT ADDRESS` takes its place.")


def short_text(name: str, value: str) -> str:
    if len(value) > 50:
        raise BadValue(f"{name} length should be a maximum of 50 characters.")
    return value


def mount_point(name: str, value: str) -> str:
    if "+" in value or "#" in value:
        raise BadValue(f"Invalid {name} '{value}'. Does it contain a wildcard character?")
    return value


_TEXTS = (text, a_path, file_name, short_text, mount_point)


def words(name: str, value: str) -> tuple[str, ...]:
    return tuple(value.split())


LISTENER_VALUES = "PORT [ADDRESS], or 0 PATH for a Unix socket"


def listener(draft: Draft, name: str, value: str) -> None:
    port_text, _, address = value.partition(" ")
    address = address.strip()
    try:
        port = integer("port", port_text)
    except BadValue:
        port = -1
    if not 0 <= port <= 65535 or (port == 0 and not address):
        raise BadValue(f"Invalid port value ({port_text}).", f"1 to 65535; {LISTENER_VALUES}")
    if port == 0:
        path = a_path(name, address)
        if len(os.fsencode(path)) > UNIX_PATH_BYTES:
            raise BadValue(f"The path of the Unix socket {path} is too long.", f"up to {UNIX_PATH_BYTES} bytes")
        draft.listeners.append({"port": 0, "path": path})
    elif " " in address:
        raise BadValue(f"Invalid {name} value ({value}).", "a port and at most one address")
    else:
        draft.listeners.append({"port": port, "address": address or None})
    draft.places.append({})


UNIX_PATH_BYTES = 107  # the system's limit, without the NUL at the end


def websockets_origin(draft: Draft, name: str, value: str) -> None:
    draft.listener[name] = (*cast(tuple[str, ...], draft.listener.get(name, ())), value)


def enable_proxy_protocol(name: str, value: str) -> int:
    return whole_number(1, 2)(name, value)  # type: ignore[return-value]


def protocol(draft: Draft, name: str, value: str) -> None:
    if value == "mqttsn":
        raise BadValue(f"{name} {value} is not supported: no broker of today speaks it.", "mqtt, websockets, http_api")
    one_of(mqtt=0, websockets=1, http_api=2)(name, value)
    draft.listener["websockets"] = value == "websockets"
    draft.listener["http_api"] = value == "http_api"


def protocol_versions(name: str, value: str) -> frozenset[int]:
    versions = [one.strip() for one in value.split(",")]
    if not set(versions) <= {"3", "4", "5"}:
        raise BadValue(f"Invalid {name} value ({value}).", "some of 3, 4 and 5, parted by commas")
    return frozenset(map(int, versions))


def headers_size(name: str, value: str) -> int:
    return cast(int, whole_number(0, 65535)(name, value)) or BrokerConfig().websockets_headers_size


def log_dest(draft: Draft, name: str, value: str) -> None:
    kind, _, rest = value.partition(" ")
    match kind:
        case "none":
            draft.destinations[:] = ["none"]
        case "stdout" | "stderr" | "syslog" | "topic" if not rest:
            draft.destinations.append(kind)
        case "file" if rest.strip():
            draft.destinations.append(f"file {rest.strip()}")
        case "file":
            raise BadValue('Empty "log_dest file" value in configuration.', "log_dest file PATH")
        case "dlt" | "android":
            raise BadValue(f"log_dest {kind} is for other systems than this one.", LOG_DESTINATIONS)
        case _:
            raise BadValue(f"Invalid log_dest value ({value}).", LOG_DESTINATIONS)


LOG_DESTINATIONS = "stdout, stderr, syslog, topic, none, file PATH"


def log_type(draft: Draft, name: str, value: str) -> None:
    types = draft.types if draft.types is not None else set()
    if value == "none":
        types.clear()
    elif value == "all":
        types.update(LOG_TYPES)
    elif value in LOG_TYPES:
        types.add(value)
    else:
        raise BadValue(f"Invalid log_type value ({value}).", ", ".join((*LOG_TYPES, "none", "all")))
    draft.types = types


def log_timestamp(draft: Draft, name: str, value: str) -> None:
    draft.log["timestamp"] = boolean(name, value)


def log_timestamp_format(draft: Draft, name: str, value: str) -> None:
    if name in draft.seen:
        raise BadValue(f"Duplicate {name} value in configuration.")
    draft.log["timestamp_format"] = value


def log_facility(draft: Draft, name: str, value: str) -> None:
    draft.log["facility"] = whole_number(0, 7)(name, value)


@dataclass(frozen=True, slots=True)
class Option:
    """An honoured option: what its value does, and its line in the reference."""

    apply: Apply
    values: str
    default: str
    help: str


OPTIONS: dict[str, Option] = {
    "listener": Option(listener, LISTENER_VALUES, "–", "opens a listener; listener options below belong to it"),
    "allow_anonymous": Option(
        to_security(boolean), "true, false", "false; true without any listener", "let clients in that give no user name"
    ),
    "acl_file": Option(authority_file, "file", "–", "who may publish and receive what; empty: nobody anything"),
    "password_file": Option(authority_file, "file", "–", "user names and hashed passwords (`lockgate passwd`)"),
    "per_listener_settings": Option(
        per_listener_settings, "true, false", "false", "security options belong to the listener above them"
    ),
    "plugin": Option(plugin, "path", "–", "one of Mosquitto's own plugins, which are built in: " + ", ".join(PLUGINS)),
    "auth_plugin": Option(plugin, "path", "–", "another name of plugin"),
    "global_plugin": Option(plugin, "path", "–", "the same for all listeners, even with per_listener_settings"),
    "plugin_load": Option(plugin_load, "NAME PATH", "–", "a plugin that `plugin_use NAME` attaches to listeners"),
    "plugin_use": Option(plugin_use, "NAME", "–", "use what plugin_load named, for the listener above"),
    "auth_plugin_deny_special_chars": Option(
        to_security(boolean, "deny_special_chars"),
        "true, false",
        "true",
        "refuse user names and client ids with `+` or `#` where an acl_file has patterns",
    ),
    "allow_duplicate_messages": Option(
        to_broker(boolean),
        "true, false",
        "true",
        "false: overlapping subscriptions bring clients before MQTT 5 one copy",
    ),
    "allow_zero_length_clientid": Option(
        to_security(boolean), "true, false", "true", "let clients in that leave their client id to the broker"
    ),
    "auto_id_prefix": Option(to_security(short_text), "text", "auto-", "start of the client ids that it invents"),
    "listener_auto_id_prefix": Option(
        to_listener(short_text, "auto_id_prefix"), "text", "auto_id_prefix", "the same for this listener alone"
    ),
    "clientid_prefixes": Option(
        to_broker(words), "texts, parted by spaces", "any", "client ids must begin with one of them"
    ),
    "check_retain_source": Option(
        to_broker(boolean),
        "true, false",
        "true",
        "send a retained message only while who published it still may",
    ),
    "connection_messages": Option(to_broker(boolean), "true, false", "true", "log who connects and disconnects"),
    "enable_control_api": Option(to_broker(boolean), "true, false", "false", "serve `$CONTROL/broker/v1`"),
    "message_size_limit": Option(
        to_broker(whole_number(0, 268_435_455)),
        "bytes",
        "0",
        "larger payloads are acknowledged (MQTT 5: 0x83) and dropped; 0: no limit",
    ),
    "pid_file": Option(to_broker(a_path), "file", "–", "where to write the process id"),
    "queue_qos0_messages": Option(
        to_broker(boolean), "true, false", "false", "queue QoS 0 messages for durable sessions that are away"
    ),
    "retain_available": Option(to_broker(boolean), "true, false", "true", "take retained messages"),
    "retain_expiry_interval": Option(
        ignored("retained messages that expired leave memory within a minute"), "minutes", "–", "ignored with a warning"
    ),
    "retry_interval": Option(ignored("MQTT sends again after a reconnect"), "seconds", "–", "ignored with a warning"),
    "upgrade_outgoing_qos": Option(
        to_broker(boolean),
        "true, false",
        "false",
        "deliver at the subscription's QoS, even what came with a lower",
    ),
    "user": Option(to_broker(text), "user name", "mosquitto, else nobody", "who to become when started as root"),
    "use_username_as_clientid": Option(
        to_listener(boolean), "true, false", "false", "the user name takes the client id's place; refused without one"
    ),
    "mount_point": Option(
        to_listener(mount_point), "text", "–", "put before every topic of these clients, who do not see it"
    ),
    "port": Option(default_listener, "port", "–", "old way to say `listener PORT`"),
    "bind_address": Option(default_listener, "address", "any", "address of that listener"),
    "http_dir": Option(to_listener(a_path), "folder", "–", "files for listeners with protocol http_api"),
    "packet_buffer_size": Option(
        to_broker(headers_size, "websockets_headers_size"),
        "0 to 65535",
        "4096",
        "another name of websockets_headers_size",
    ),
    "global_max_clients": Option(
        to_broker(limit(none=-1)), "number", "-1", "sessions, connected or stored; below 0: no limit"
    ),
    "global_max_connections": Option(
        to_broker(limit(none=-1)), "number", "-1", "clients connected at once, on all listeners; below 0: no limit"
    ),
    "memory_limit": Option(
        to_broker(whole_number(0, 2**63 - 1)),
        "bytes",
        "0",
        "what is held for clients, about; 0: no limit but `memory_budget` of lockgate.toml, the smaller counts",
    ),
    "max_inflight_bytes": Option(to_broker(limit()), "bytes", "0", "QoS 1/2 bytes in flight per client; 0: no limit"),
    "max_inflight_messages": Option(
        to_broker(limit(65535)), "0 to 65535", "20", "QoS 1/2 messages in flight per client; 0, 65535: no limit"
    ),
    "max_keepalive": Option(
        to_broker(whole_number(0, 65535)), "0 to 65535", "0", "longest Keep Alive in seconds; 0: no limit"
    ),
    "max_packet_size": Option(
        to_broker(whole_number(20, 268_435_460)), "20 to 268435460", "2000000", "largest packet in bytes, either way"
    ),
    "max_queued_bytes": Option(
        to_broker(limit()), "bytes", "0", "bytes waiting per client beyond those in flight; 0: no limit"
    ),
    "max_queued_messages": Option(
        to_broker(limit()), "number", "1000", "messages waiting per client beyond those in flight; 0: no limit"
    ),
    "persistence": Option(
        to_broker(boolean),
        "true, false",
        "true (Mosquitto: false)",
        "keep sessions, queues and retained messages on disk",
    ),
    "retained_persistence": Option(
        to_broker(boolean, "persistence"), "true, false", "true", "another name of persistence"
    ),
    "persistence_location": Option(
        to_broker(a_path),
        "folder",
        "`MOSQUITTO_PERSISTENCE_LOCATION` of the environment; else the working directory, or data_dir/broker of "
        "lockgate.toml where persistence is not said either",
        "where lockgate.db lies",
    ),
    "persistence_file": Option(
        to_broker(file_name), "file name", "mosquitto.db", "Mosquitto's store, whose content is taken over once"
    ),
    "persistent_client_expiration": Option(
        to_broker(expiration), "number and s, h, d, w, m, y", "never", "sessions that never expire end after this time"
    ),
    "autosave_interval": Option(
        to_broker(whole_number(0, 2**31 - 1)),
        "seconds or changes",
        "1800",
        "until what nobody waits for is written; flush_interval of lockgate.toml, if it is shorter",
    ),
    "autosave_on_changes": Option(
        to_broker(boolean), "true, false", "false", "autosave_interval counts changes instead of seconds"
    ),
    "log_dest": Option(log_dest, LOG_DESTINATIONS, "stderr", "where log lines go; repeatable"),
    "log_type": Option(
        log_type,
        ", ".join((*LOG_TYPES, "none", "all")),
        "error, warning, notice, information",
        "which lines are logged; repeatable, the first one replaces the default",
    ),
    "log_timestamp": Option(log_timestamp, "true, false", "true", "begin each line with the time"),
    "log_timestamp_format": Option(log_timestamp_format, "strftime text", "seconds since 1970", "how that time looks"),
    "log_facility": Option(log_facility, "0 to 7", "daemon", "syslog facility local0 to local7"),
    "listener_allow_anonymous": Option(
        to_listener(boolean, "allow_anonymous"), "true, false", "allow_anonymous", "the same for this listener alone"
    ),
    "max_connections": Option(
        to_listener(limit(none=-1)), "number", "-1", "clients on this listener; below 0: no limit"
    ),
    "max_qos": Option(to_listener(whole_number(0, 2)), "0, 1, 2", "2", "highest QoS on this listener"),
    "maximum_qos": Option(to_listener(whole_number(0, 2), "max_qos"), "0, 1, 2", "2", "another name of max_qos"),
    "max_topic_alias": Option(
        to_listener(whole_number(0, 65535)), "0 to 65535", "10", "topic aliases a version 5 client may set up"
    ),
    "max_topic_alias_broker": Option(
        to_listener(whole_number(0, 65535)), "0 to 65535", "10", "topic aliases the broker sets up towards a client"
    ),
    "accept_protocol_versions": Option(
        to_listener(protocol_versions, "protocol_versions"), "some of 3,4,5", "3,4,5", "MQTT 3.1, 3.1.1, 5.0 let in"
    ),
    "socket_domain": Option(
        to_listener(one_of(ipv4="ipv4", ipv6="ipv6"), "domain"), "ipv4, ipv6", "both", "what the listener opens"
    ),
    "bind_interface": Option(to_listener(text, "interface"), "network device", "any", "connections through it alone"),
    "set_tcp_nodelay": Option(
        to_broker(boolean), "true, false", "true (Mosquitto: false)", "send small packets at once (TCP_NODELAY)"
    ),
    "sys_interval": Option(
        to_broker(whole_number(0, 65535)), "0 to 65535", "10", "seconds between the figures below $SYS; 0: none"
    ),
    "protocol": Option(protocol, "mqtt, websockets, http_api", "mqtt", "what the listener speaks"),
    "websockets_origin": Option(
        websockets_origin,
        "origin, as https://a.example",
        "any",
        "web pages that may connect; repeatable, compared whole",
    ),
    "websockets_headers_size": Option(
        to_broker(headers_size), "0 to 65535", "4096", "largest WebSocket handshake in bytes; 0: the default"
    ),
    "enable_proxy_protocol": Option(
        to_listener(enable_proxy_protocol, "proxy_protocol"),
        "1, 2",
        "off",
        "version of the PROXY header that each connection must begin with",
    ),
    "proxy_protocol_v2_require_tls": Option(
        to_listener(boolean, "proxy_require_tls"),
        "true, false",
        "false",
        "refuse clients that spoke no TLS to the proxy",
    ),
    "certfile": Option(
        to_listener(a_path), "file", "none: no TLS", "certificate of the listener and its chain, in PEM"
    ),
    "keyfile": Option(to_listener(a_path), "file", "–", "its private key, in PEM and without a passphrase"),
    "cafile": Option(to_listener(a_path), "file", "–", "issuers of client certificates, in PEM"),
    "capath": Option(to_listener(a_path), "folder", "–", "the same, as a folder made by `openssl rehash`"),
    "crlfile": Option(to_listener(a_path), "file", "–", "revoked client certificates, in PEM"),
    "require_certificate": Option(to_listener(boolean), "true, false", "false", "clients must show a certificate"),
    "use_identity_as_username": Option(
        to_listener(boolean), "true, false", "false", "the CN of the client's certificate is the user name"
    ),
    "use_subject_as_username": Option(
        to_listener(boolean), "true, false", "false", "the whole subject is, in the form of RFC 2253"
    ),
    "disable_client_cert_date_checks": Option(
        to_listener(boolean), "true, false", "false", "accept client certificates (and a crlfile) out of their time"
    ),
    "ciphers": Option(to_listener(text), "OpenSSL cipher list", "OpenSSL's", "ciphers of TLS 1.2"),
    "tls_version": Option(
        to_listener(one_of(**{"tlsv1.2": "tlsv1.2", "tlsv1.3": "tlsv1.3"})),
        "tlsv1.2, tlsv1.3",
        "tlsv1.2",
        "lowest version that clients may speak",
    ),
    "tls_keyform": Option(to_listener(one_of(pem="pem")), "pem", "pem", "form of the keyfile"),
    "dhparamfile": Option(ignored("OpenSSL chooses the parameters"), "file", "–", "ignored with a warning"),
    "websockets_log_level": Option(ignored("it was for libwebsockets"), "number", "–", "ignored with a warning"),
}

# What Mosquitto knows and this broker does not honour yet, by what a person can do about it meanwhile.
_NOT_YET = (
    ("Python reaches no OpenSSL engine; give the key as a PEM file (keyfile).", "tls_engine tls_engine_kpass_sha1"),
    ("Python cannot set them; remove the line: OpenSSL's own list for TLS 1.3 is short and good.", "ciphers_tls1.3"),
    ("Python has no TLS-PSK before 3.13; use certificates (certfile, keyfile).", "psk_hint psk_file"),
)
# Options of a `connection`, which `bridge_options` reads; it is imported when the first of them is met.
_BRIDGE = """
connection address addresses topic bridge_protocol_version clientid remote_clientid local_clientid username
remote_username password remote_password local_username local_password cleansession local_cleansession
keepalive_interval start_type threshold idle_timeout restart_timeout round_robin try_private notifications
notifications_local_only notification_topic bridge_attempt_unsubscribe bridge_outgoing_retain
bridge_max_packet_size bridge_max_topic_alias bridge_receive_maximum bridge_session_expiry_interval
bridge_bind_address bridge_tcp_keepalive bridge_tcp_user_timeout bridge_reload_type bridge_cafile
bridge_capath bridge_tls_use_os_certs bridge_certfile bridge_keyfile bridge_insecure bridge_alpn
bridge_tls_version bridge_ciphers bridge_ciphers_tls1.3 bridge_require_ocsp bridge_identity bridge_psk
"""
BRIDGE_OPTIONS = frozenset(_BRIDGE.split())
NOT_YET: dict[str, str] = {name: advice for advice, names in _NOT_YET for name in names.split()}

PLUGIN_OPTIONS = ("plugin_opt_", "auth_opt_")  # free names behind these


# --- files --------------------------------------------------------------------------------------------------------


Locate = Callable[[Path], Path]


def read_mosquitto_conf(path: Path, locate: Locate = Path) -> BrokerConfig:
    """The configuration in `path`. Raises ConfigError, for all mistakes together, if it cannot be used.

    `locate` says where a folder of `include_dir` lies here, if that is not where the file says.
    """
    draft = Draft()
    errors: list[ConfigError] = []
    for name, value, file, line in read_lines(path, errors, locate):
        try:
            _apply(draft, name, value, file, line)
        except BadValue as bad:
            errors.append(MosquittoConfError(str(bad), path=file, line=line, key=name, accepted=bad.accepted))
        draft.seen.add(name)
    above = draft.before_listeners_at if draft.listeners and not draft.default_listener else None
    if above is not None and _listener(draft.before_listeners) != ListenerConfig():
        # Mosquitto would open one more listener for it, on port 1883 of every address, which nobody means.
        name, file, line = above
        problem = f"{name} stands above the first `listener`, so it belongs to none. Move it below its `listener` line."
        errors.append(MosquittoConfError(problem, path=file, line=line, key=name))
    errors += _unfit(draft)
    errors += _use_plugins(draft)
    if draft.bridges:
        from lockgate.config import bridge_options

        errors += bridge_options.unfit(draft.bridges)
    raise_all(errors)
    return _finish(draft, path)


def read_lines(
    path: Path, errors: list[ConfigError], locate: Locate = Path, included: bool = False
) -> Iterator[tuple[str, str, Path, int]]:
    """Option, value, file and line, with included files at the place of their `include_dir`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        problem = f"Unable to open configuration file {path}: {error.strerror}."
        errors.append(MosquittoConfError(problem, path=path))
        return
    for number, raw in enumerate(content.split(b"\n"), start=1):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            errors.append(MosquittoConfError("The line is not valid UTF-8.", path=path, line=number))
            continue
        if text.startswith("#"):
            continue
        # Only spaces part name and value: a tab belongs to the name, and so makes it an unknown one.
        name, _, value = text.strip("\r").lstrip(" ").partition(" ")
        value = value.strip()
        if not name.strip():
            continue
        if name != "include_dir":
            yield name, value, path, number
        elif included:
            problem = "include_dir is not allowed in an included file."
            errors.append(MosquittoConfError(problem, path=path, line=number, key=name))
        else:
            folder = locate(Path(value))  # like Mosquitto, from the working directory
            if not value or not folder.is_dir():
                problem = f"Unable to open include_dir '{value}'." if value else f"Empty {name} value in configuration."
                errors.append(MosquittoConfError(problem, path=path, line=number, key=name, accepted="a folder"))
                continue
            try:
                names = [one for one in os.listdir(folder) if one.endswith(".conf") and one != ".conf"]
            except OSError as error:  # without what it says about security, the rest must not count
                problem = f"Unable to open include_dir '{value}': {error.strerror}."
                errors.append(MosquittoConfError(problem, path=path, line=number, key=name))
                continue
            # without regard to case; the capital before the small letter where that alone differs
            for file in sorted(names, key=lambda file: (file.lower(), file)):
                yield from read_lines(folder / file, errors, locate, included=True)


def _apply(draft: Draft, name: str, value: str, path: Path, line: int) -> None:
    if name in BRIDGE_OPTIONS:
        from lockgate.config import bridge_options

        bridge_options.apply(draft.bridges, name, value, Place(path, line))
        return
    option = OPTIONS.get(name)
    if option is None:
        if name.startswith(PLUGIN_OPTIONS):
            draft.place = Place(path, line)
            plugin_option(draft, name, value)
            return
        if name in NOT_YET:
            raise BadValue(f"{name} is an option of Mosquitto that is not honoured yet. {NOT_YET[name]}")
        suggestion = did_you_mean(name, (*OPTIONS, "include_dir", *BRIDGE_OPTIONS, *NOT_YET))
        if "\t" in name:
            suggestion = " Only spaces part an option from its value; there is a tab."
        raise BadValue(f'Unknown configuration variable "{name}".{suggestion}')
    if not value:
        raise BadValue(f"Empty {name} value in configuration.", option.values)
    before = dict(draft.before_listeners)
    draft.place = Place(path, line)
    option.apply(draft, name, value)
    draft.places[-1].setdefault(name, Place(path, line))
    if draft.before_listeners != before and draft.before_listeners_at is None:
        draft.before_listeners_at = (name, path, line)


# --- plugins ------------------------------------------------------------------------------------------------------


def _use_plugins(draft: Draft) -> list[ConfigError]:
    """Put what the plugins are for into the drafts that use them, before the files of options."""
    errors: list[ConfigError] = []
    found: list[tuple[dict[str, object], list[AuthorityConfig]]] = []  # by draft, which is no key
    for one in draft.plugins:
        try:
            authority = _use_plugin(draft, one)
        except BadValue as bad:
            path, line = one.place
            errors.append(MosquittoConfError(str(bad), path=path, line=line, key="plugin", accepted=bad.accepted))
            continue
        if authority is None:
            continue
        for holder in one.holders:
            known = next((authorities for place, authorities in found if place is holder), None)
            if known is None:
                found.append((holder, [authority]))
            else:
                known.append(authority)
    for holder, authorities in found:
        holder["authorities"] = [*authorities, *cast(list[AuthorityConfig], holder.get("authorities", []))]
    return errors


def _use_plugin(draft: Draft, one: Plugin) -> AuthorityConfig | None:
    options = one.options

    def needed(key: str) -> Path:
        if key not in options:
            raise BadValue(f"{one.file} needs plugin_opt_{key}.", f"plugin_opt_{key} FILE below its line")
        return Path(options[key])

    match one.file:
        case "mosquitto_acl_file.so":
            return AuthorityConfig(kind="acl_file", path=needed("acl_file"), place=one.place)
        case "mosquitto_password_file.so":
            return AuthorityConfig(kind="password_file", path=needed("password_file"), place=one.place)
        case "mosquitto_dynamic_security.so":
            init = options.get("password_init_file")
            return AuthorityConfig(
                kind="dynamic_security",
                path=needed("config_file"),
                password_init_file=Path(init) if init is not None else None,
                place=one.place,
            )
        case "mosquitto_persist_sqlite.so":
            if draft.broker.get("persistence") is True:
                raise BadValue("persistence true cannot be used together with mosquitto_persist_sqlite.so.")
            draft.broker["persistence"] = True
            if options:
                draft.warnings.append(
                    f"plugin_opt_{next(iter(options))} is ignored: what is acknowledged is always synced to disk."
                )
        case "mosquitto_sparkplug_aware.so":
            draft.broker["sparkplug_aware"] = True
    return None


# --- what belongs together ----------------------------------------------------------------------------------------

_TLS = ("cafile", "capath", "crlfile", "disable_client_cert_date_checks", "ciphers", "tls_version")
_TLS_NEEDED = ("certfile", "keyfile")


def _unfit(draft: Draft) -> list[ConfigError]:
    """Find options of one listener that do not go together, and listeners that cannot stand beside each other."""
    errors: list[ConfigError] = []

    def wrong(places: dict[str, Place], option: str, problem: str) -> None:
        place = places[option]
        errors.append(MosquittoConfError(problem, path=place.path, line=place.line, key=option))

    drafts = draft.listeners or [draft.before_listeners]
    for said, places in zip(drafts, draft.places[1 if draft.listeners else 0 :], strict=True):
        for option, problem in _contradictions(said):
            wrong(places, option, problem)
    for number, (said, places) in enumerate(zip(draft.listeners, draft.places[1:], strict=True)):
        for earlier, where in zip(draft.listeners[:number], draft.places[1:], strict=False):
            if _collide(_listener(earlier), _listener(said)):
                first = where["listener"]
                what = f"port {said['port']}" if said["port"] else f"the Unix socket {said['path']}"
                wrong(places, "listener", f"Two listeners open {what}; the other one is in {first.path}:{first.line}.")
                break
    return errors


def _contradictions(said: dict[str, object]) -> Iterator[tuple[str, str]]:
    """Give option and problem for what one listener cannot be told together."""
    tls = "certfile" in said or "keyfile" in said
    proxy = said.get("proxy_protocol", 0)
    for has, misses in (_TLS_NEEDED, _TLS_NEEDED[::-1]):
        if has in said and misses not in said:
            yield has, f"{has} needs {misses} on the same listener."
    if not tls:
        for option in _TLS:
            if option in said:
                yield option, f"{option} needs certfile and keyfile on the same listener."
    shown = said.get("require_certificate") is True
    if shown and not tls and proxy != 2:
        yield "require_certificate", "require_certificate needs certfile and keyfile on the same listener."
    if shown and tls and not {"cafile", "capath"} & said.keys():
        yield (
            "require_certificate",
            "require_certificate needs cafile or capath: nobody's certificate could be accepted.",
        )
    if proxy == 2 and tls:
        yield (
            "enable_proxy_protocol",
            "enable_proxy_protocol 2 cannot stand with certfile and keyfile: the proxy ends TLS.",
        )
    if said.get("proxy_require_tls") and proxy != 2:
        yield "proxy_protocol_v2_require_tls", "proxy_protocol_v2_require_tls needs enable_proxy_protocol 2."
    for option in ("use_identity_as_username", "use_subject_as_username"):
        if not said.get(option):
            continue
        if proxy == 2 and option == "use_subject_as_username":
            yield option, f"{option} cannot stand with enable_proxy_protocol 2: a proxy tells the CN alone."
        elif not shown and proxy != 2:
            yield option, f"{option} needs require_certificate true: else no client shows a certificate."


def _collide(one: ListenerConfig, other: ListenerConfig) -> bool:
    """Whether two listeners cannot be open at once."""
    if one.path is not None or other.path is not None:
        return one.path == other.path
    if one.port != other.port or (one.domain and other.domain and one.domain != other.domain):
        return False
    everywhere = one.address in _EVERYWHERE or other.address in _EVERYWHERE
    families = {_family(one), _family(other)}
    apart = one.interface != other.interface
    return not apart and families != {"ipv4", "ipv6"} and (everywhere or one.address == other.address)


_EVERYWHERE = (None, "0.0.0.0", "::")


def _family(config: ListenerConfig) -> str | None:
    """What a listener opens, where that can be told without asking the system."""
    if config.address is None:
        return config.domain
    if ":" in config.address:
        return "ipv6"
    return "ipv4" if re.fullmatch(r"[0-9.]+", config.address) else config.domain


def _listener(said: dict[str, object], places: dict[str, Place] | None = None) -> ListenerConfig:
    said = dict(said)
    identity, subject = (said.pop(f"use_{one}_as_username", False) for one in ("identity", "subject"))
    tls_said = {option: said.pop(option) for option in (*_TLS, *_TLS_NEEDED) if option in said}
    said.pop("tls_keyform", None)
    authorities = _authorities(said)
    tls: TlsConfig | None = None
    if tls_said.keys() >= set(_TLS_NEEDED):
        shown = said.get("require_certificate", False)
        tls = TlsConfig(require_certificate=shown, places=places or {}, **tls_said)  # type: ignore[arg-type]
    return ListenerConfig(
        tls=tls,
        username_from="subject" if subject else "identity" if identity else None,
        websockets_origins=said.pop("websockets_origin", ()),  # type: ignore[arg-type]
        authorities=authorities,
        **said,  # type: ignore[arg-type]
    )


def _authorities(said: dict[str, object]) -> tuple[AuthorityConfig, ...]:
    """Take the authorities of a draft out of it."""
    deny = said.pop("deny_special_chars", True)
    authorities = cast(list[AuthorityConfig], said.pop("authorities", []))
    return tuple(replace(one, deny_special_chars=bool(deny)) for one in authorities)


def _finish(draft: Draft, path: Path) -> BrokerConfig:
    if draft.types is not None:
        draft.log["types"] = frozenset(draft.types)
    if draft.destinations:
        draft.log["destinations"] = tuple(dict.fromkeys(draft.destinations))
    log = LogConfig(**draft.log)  # type: ignore[arg-type]
    drafts = list(zip(draft.listeners, draft.places[1:], strict=True))
    if draft.default_listener:
        port, address = draft.default_listener.get("port", 1883), draft.default_listener.get("bind_address")
        drafts.insert(0, (draft.before_listeners | {"port": port, "address": address}, draft.places[0]))
    if drafts:
        listeners = tuple(_listener(said, places) for said, places in drafts)
        draft.broker.setdefault("allow_anonymous", False)
        draft.broker["listeners_said"] = True
    else:  # local-only mode
        said, places = draft.before_listeners, draft.places[0]
        listeners = tuple(_listener(said | {"address": address}, places) for address in LOCAL_ADDRESSES)
    for one in listeners:
        if one.http_dir is not None and not one.http_api:
            draft.warnings.append(
                f"http_dir of the listener on port {one.port} is ignored: `protocol http_api` is what serves files."
            )
    if draft.bridges:
        from lockgate.config import bridge_options

        draft.broker["bridges"] = bridge_options.finish(draft.bridges)
    authorities = _authorities(draft.broker)
    return BrokerConfig(
        path=path,
        listeners=listeners,
        log=log,
        warnings=tuple(draft.warnings),
        authorities=authorities,
        **draft.broker,  # type: ignore[arg-type]
    )
