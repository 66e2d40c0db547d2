"""The page docs/reference/mosquitto-options.md, made by `python -m lockgate.config.options_table`.

Every option of Mosquitto 2.1 is a row; tests hold the rows against the parsers and against what a reload hands on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["same", "stricter", "differs", "ignored", "refused"]
_STATES: dict[State, str] = {
    "same": "same",
    "stricter": "stricter",
    "differs": "differs",
    "ignored": "ignored with a warning",
    "refused": "not honoured",
}
Scope = Literal["global", "listener", "bridge", "plugin"]


@dataclass(frozen=True, slots=True)
class Row:
    """One option. `reloaded` and `reloaded_there` are Y, N or – (nothing to reload); D and U only there."""

    name: str
    scope: str
    default: str  # Mosquitto's
    reloaded_there: str
    reloaded: str
    state: State = "same"
    note: str = ""


_SECURITY = "global; listener with per_listener_settings"
_ENGINE = "Python reaches no OpenSSL engine: give the key as a PEM file in `keyfile`"
_PSK = "Python has no TLS-PSK before 3.13: use certificates"
_CIPHERS = "Python cannot set them: remove the line, OpenSSL's own list for TLS 1.3 is short and good"

GLOBAL = (
    Row("acl_file", _SECURITY, "–", "Y", "Y", "stricter", "a bad file at SIGHUP keeps the old rules"),
    Row("allow_anonymous", _SECURITY, "false; true without a listener", "Y", "Y"),
    Row("allow_duplicate_messages", "global", "true", "Y", "Y"),
    Row("allow_zero_length_clientid", _SECURITY, "true", "Y", "Y"),
    Row("auth_plugin_deny_special_chars", _SECURITY, "true", "N", "Y"),
    Row("auto_id_prefix", _SECURITY, "auto-", "Y", "Y"),
    Row(
        "autosave_interval", "global", "1800", "Y", "N", "stricter",
        "what is acknowledged is on the disk before; it counts for the rest, or `flush_interval` of lockgate.toml, the "
        "shorter one",
    ),
    Row("autosave_on_changes", "global", "false", "Y", "N", "stricter", "as autosave_interval"),
    Row("check_retain_source", "global", "true", "N", "Y", "stricter", "true unless it is set, as the manual says"),
    Row("clientid_prefixes", "global", "–", "Y", "Y", "differs", "several prefixes may stand there, parted by spaces"),
    Row("connection_messages", "global", "true", "Y", "Y"),
    Row("enable_control_api", "global", "false", "D", "Y"),
    Row("global_max_clients", "global", "-1", "D", "Y"),
    Row("global_max_connections", "global", "-1", "D", "Y"),
    Row("include_dir", "global", "–", "Y", "Y"),
    Row("log_dest", "global", "stderr", "Y", "Y", "differs", "`dlt` and `android` are refused: other systems"),
    Row("log_facility", "global", "daemon", "Y", "Y"),
    Row("log_timestamp", "global", "true", "Y", "Y"),
    Row("log_timestamp_format", "global", "seconds since 1970", "Y", "Y"),
    Row("log_type", "global", "error warning notice information", "Y", "Y"),
    Row("max_inflight_bytes", "global", "0", "D", "Y"),
    Row("max_inflight_messages", "global", "20", "D", "Y"),
    Row("max_keepalive", "global", "0", "D", "Y"),
    Row("max_packet_size", "global", "2000000", "D", "Y"),
    Row("max_queued_bytes", "global", "0", "D", "Y"),
    Row("max_queued_messages", "global", "1000", "D", "Y"),
    Row(
        "memory_limit", "global", "0", "Y", "Y", "stricter",
        "`memory_budget` of lockgate.toml, a quarter of the memory by default, counts as well: the smaller one",
    ),
    Row("message_size_limit", "global", "0", "Y", "Y", "differs", "version 5 gets 0x83, the manual's, and not 0x95"),
    Row("packet_buffer_size", "global", "4096", "N", "Y", "same", "another name of websockets_headers_size"),
    Row("password_file", _SECURITY, "–", "Y", "Y", "stricter", "a bad file at SIGHUP keeps the old users"),
    Row("per_listener_settings", "global", "false", "D", "Y"),
    Row(
        "persistence", "global", "false", "Y", "N", "differs",
        "true unless `false` is set; the store is lockgate.db, and what Mosquitto left is taken over once",
    ),
    Row("persistence_file", "global", "mosquitto.db", "Y", "N", "differs", "the store of Mosquitto to take over"),
    Row("persistence_location", "global", "working directory", "Y", "N"),
    Row("persistent_client_expiration", "global", "never", "Y", "Y"),
    Row("pid_file", "global", "–", "N", "N"),
    Row("psk_file", _SECURITY, "–", "Y", "–", "refused", _PSK + " (`certfile`, `keyfile`, `require_certificate`)"),
    Row("queue_qos0_messages", "global", "false", "Y", "Y"),
    Row("retain_available", "global", "true", "D", "Y"),
    Row("retain_expiry_interval", "global", "0", "D", "–", "ignored", "what expired leaves memory within a minute"),
    Row("retained_persistence", "global", "false", "Y", "N", "differs", "another name of persistence"),
    Row("retry_interval", "global", "–", "–", "–", "ignored", "Mosquitto ignores it too"),
    Row("set_tcp_nodelay", "global", "false", "D", "Y", "differs", "true unless `false` is set"),
    Row("sys_interval", "global", "10", "Y", "Y"),
    Row("upgrade_outgoing_qos", "global", "false", "Y", "Y"),
    Row("user", "global", "mosquitto, else nobody", "N", "N"),
    Row("websockets_headers_size", "global", "4096", "N", "Y"),
    Row("websockets_log_level", "global", "0", "N", "–", "ignored", "it was for libwebsockets"),
)  # fmt: skip

_LIBRARY = "Mosquitto's own five are built in under their file names; another C library is refused: see below"

PLUGINS = (
    Row("auth_plugin", _SECURITY, "–", "N", "Y", "differs", _LIBRARY),
    Row("global_plugin", "global", "–", "N", "Y", "differs", _LIBRARY),
    Row("plugin", _SECURITY, "–", "N", "Y", "differs", _LIBRARY),
    Row("plugin_load", _SECURITY, "–", "N", "Y", "differs", _LIBRARY),
    Row("plugin_use", _SECURITY, "–", "N", "Y"),
    Row("plugin_opt_*", "the plugin above", "–", "N", "Y", "stricter", "one that the plugin does not know is an error"),
    Row("auth_opt_*", "the plugin above", "–", "N", "Y", "stricter", "another name of plugin_opt_*"),
    Row("plugin_opt_acl_file", "mosquitto_acl_file.so", "–", "N", "Y"),
    Row("plugin_opt_password_file", "mosquitto_password_file.so", "–", "N", "Y"),
    Row("plugin_opt_config_file", "mosquitto_dynamic_security.so", "–", "N", "Y"),
    Row("plugin_opt_password_init_file", "mosquitto_dynamic_security.so", "–", "N", "Y"),
    Row(
        "plugin_opt_db_file", "mosquitto_persist_sqlite.so", "–", "N", "–", "ignored",
        "the store is lockgate.db in persistence_location; mosquitto.sqlite3 there is taken over once",
    ),
    Row("plugin_opt_flush_period", "mosquitto_persist_sqlite.so", "5", "N", "–", "ignored", "nothing waits for it"),
    Row("plugin_opt_page_size", "mosquitto_persist_sqlite.so", "4096", "N", "–", "ignored", "the store has its own"),
    Row(
        "plugin_opt_sync", "mosquitto_persist_sqlite.so", "normal", "N", "–", "ignored",
        "what is acknowledged is always synced to disk",
    ),
)  # fmt: skip

LISTENERS = (
    Row(
        "listener", "listener", "–", "N", "Y", "stricter",
        "added and removed at SIGHUP; options above the first one are an error; two on one port are found before "
        "any is opened",
    ),
    Row("port", "listener", "1883", "N", "Y", "same", "deprecated, with a warning: `listener PORT`"),
    Row("bind_address", "listener", "any", "N", "N", "same", "deprecated, with a warning: `listener PORT ADDRESS`"),
    Row("accept_protocol_versions", "listener", "3,4,5", "Y", "Y"),
    Row("bind_interface", "listener", "any", "N", "N"),
    Row("cafile", "listener", "–", "Y", "Y"),
    Row("capath", "listener", "–", "Y", "Y"),
    Row("certfile", "listener", "–", "Y", "Y"),
    Row("ciphers", "listener", "OpenSSL's", "Y", "Y"),
    Row("ciphers_tls1.3", "listener", "OpenSSL's", "Y", "–", "refused", _CIPHERS),
    Row("crlfile", "listener", "–", "Y", "Y"),
    Row("dhparamfile", "listener", "–", "–", "–", "ignored", "Mosquitto 2.1 ignores it too"),
    Row(
        "disable_client_cert_date_checks", "listener", "false", "Y", "Y", "differs",
        "the dates of the crlfile are not looked at either",
    ),
    Row("enable_proxy_protocol", "listener", "off", "N", "Y"),
    Row("http_dir", "listener", "–", "N", "Y", "differs", "for `http_api` listeners; ignored with a warning on others"),
    Row("keyfile", "listener", "–", "Y", "Y", "stricter", "a key with a passphrase is an error: nobody types it"),
    Row("listener_allow_anonymous", "listener", "allow_anonymous", "U", "Y"),
    Row("listener_auto_id_prefix", "listener", "auto_id_prefix", "U", "Y"),
    Row("max_connections", "listener", "-1", "U", "Y"),
    Row("max_qos", "listener", "2", "U", "Y"),
    Row("maximum_qos", "listener", "2", "U", "Y", "same", "another name of max_qos"),
    Row("max_topic_alias", "listener", "10", "U", "Y"),
    Row("max_topic_alias_broker", "listener", "10", "U", "Y"),
    Row("mount_point", "listener", "–", "U", "Y"),
    Row("protocol", "listener", "mqtt", "N", "Y"),
    Row("proxy_protocol_v2_require_tls", "listener", "false", "N", "Y"),
    Row("psk_hint", "listener", "–", "N", "–", "refused", _PSK + " (`certfile`, `keyfile`, `require_certificate`)"),
    Row("require_certificate", "listener", "false", "Y", "Y", "stricter", "needs cafile or capath"),
    Row("socket_domain", "listener", "both", "N", "N"),
    Row("tls_engine", "listener", "–", "N", "–", "refused", _ENGINE),
    Row("tls_engine_kpass_sha1", "listener", "–", "N", "–", "refused", _ENGINE),
    Row("tls_keyform", "listener", "pem", "N", "–", "differs", "`engine` is refused; " + _ENGINE),
    Row("tls_version", "listener", "tlsv1.2", "N", "Y", "stricter", "`tlsv1.1` of Mosquitto 2.0 is an error"),
    Row("use_identity_as_username", "listener", "false", "Y", "Y", "stricter", "needs require_certificate"),
    Row("use_subject_as_username", "listener", "false", "Y", "Y", "stricter", "needs require_certificate"),
    Row("use_username_as_clientid", "listener", "false", "U", "Y"),
    Row("websockets_origin", "listener", "any", "U", "Y", "stricter", "compared whole, so no beginning of one passes"),
)  # fmt: skip


def _bridge(name: str, default: str, state: State = "same", note: str = "") -> Row:
    return Row(name, "bridge", default, "Y", "–" if state == "refused" else "Y", state, note)


BRIDGES = (
    _bridge("connection", "–"),
    _bridge("address", "port 1883"),
    _bridge("addresses", "–", note="another name of address"),
    _bridge("topic", "out 0"),
    _bridge("bridge_alpn", "–"),
    _bridge("bridge_attempt_unsubscribe", "true"),
    _bridge("bridge_bind_address", "any"),
    _bridge("bridge_cafile", "–"),
    _bridge("bridge_capath", "–"),
    _bridge("bridge_certfile", "–"),
    _bridge("bridge_ciphers", "OpenSSL's"),
    _bridge("bridge_ciphers_tls1.3", "OpenSSL's", "refused", _CIPHERS),
    _bridge("bridge_identity", "–", "refused", _PSK + " (`bridge_certfile`, `bridge_keyfile`)"),
    _bridge("bridge_insecure", "false"),
    _bridge("bridge_keyfile", "–"),
    _bridge("bridge_max_packet_size", "0"),
    _bridge("bridge_max_topic_alias", "10"),
    _bridge("bridge_outgoing_retain", "true"),
    _bridge("bridge_protocol_version", "mqttv311"),
    _bridge("bridge_psk", "–", "refused", _PSK + " (`bridge_certfile`, `bridge_keyfile`)"),
    _bridge("bridge_receive_maximum", "not said"),
    _bridge("bridge_reload_type", "lazy"),
    _bridge(
        "bridge_require_ocsp",
        "false",
        "refused",
        "`false` may stand there; for `true` Python cannot ask for a stapled answer: use short-lived certificates",
    ),
    _bridge(
        "bridge_session_expiry_interval",
        "0",
        "differs",
        "unless it is set, the session never ends (0 with cleansession true): a version 5 bridge loses nothing either",
    ),
    _bridge("bridge_tcp_keepalive", "off"),
    _bridge("bridge_tcp_user_timeout", "the system's"),
    _bridge("bridge_tls_use_os_certs", "false"),
    _bridge("bridge_tls_version", "tlsv1.2", "stricter", "`tlsv1.1` of Mosquitto 2.0 is an error"),
    _bridge("cleansession", "false"),
    _bridge("clientid", "–", note="another name of remote_clientid"),
    _bridge("idle_timeout", "60"),
    _bridge("keepalive_interval", "60"),
    _bridge("local_cleansession", "cleansession"),
    _bridge("local_clientid", "local.REMOTE-ID"),
    _bridge("local_password", "–"),
    _bridge("local_username", "–"),
    _bridge("notification_topic", "$SYS/broker/connection/REMOTE-ID/state"),
    _bridge("notifications", "true"),
    _bridge("notifications_local_only", "false"),
    _bridge("password", "–", note="another name of remote_password"),
    _bridge("remote_clientid", "HOSTNAME.NAME"),
    _bridge("remote_password", "–"),
    _bridge("remote_username", "–"),
    _bridge("restart_timeout", "5 30"),
    _bridge("round_robin", "false"),
    _bridge("start_type", "automatic"),
    _bridge("threshold", "10"),
    _bridge("try_private", "true"),
    _bridge("username", "–", note="another name of remote_username"),
)

SECTIONS = (("Global", GLOBAL), ("Plugins", PLUGINS), ("Listeners", LISTENERS), ("Bridges", BRIDGES))
ROWS = {row.name: row for _, rows in SECTIONS for row in rows}

# What people load that is not built in, by a piece of the file name, and what does its work here.
OTHER_PLUGINS = {
    "go-auth": "a password_file and an acl_file, or dynamic security",
    "auth-plug": "a password_file and an acl_file, or dynamic security",
    "auth_plug": "a password_file and an acl_file, or dynamic security",
    "jwt": "client certificates, or dynamic security",
    "ldap": "dynamic security",
    "message_timestamp": "the receiver's own clock; MQTT 5 has User Properties for the sender's",
    "payload_modification": "a rule of the processor, which publishes the changed message",
    "": "dynamic security, password_file, acl_file for who may; rules of the processor for what becomes of messages",
}


def instead_of(library: str) -> str:
    """Give what does the work of a plugin that cannot be loaded."""
    return next(advice for piece, advice in OTHER_PLUGINS.items() if piece in library.lower())


_HEAD = """\
# Every option of Mosquitto

<!-- Made by `make docs` from lockgate/config/options_table.py; edit that. -->

What becomes of each option of mosquitto.conf (Mosquitto 2.1). `lockgate migrate --from /etc/mosquitto` says it of
your file.

- **same**: syntax, default and effect. **stricter**: the same, and less is let through, or lost. **differs**: how,
  beside it.
- **ignored with a warning**: the broker starts, and says why. **not honoured**: the broker does not start; the error
  names the line and what to use instead.
- **SIGHUP here**: Y takes the new value, N needs a restart, – has nothing to take. What concerns a connection as a
  whole (TLS, WebSocket, PROXY) counts for the connections that come. A listener that changes its address or its
  device, or that becomes or stops being `http_api`, is another one: who is connected to it has to come again.
- **SIGHUP there**: Mosquitto 2.1.2. D: documented and not done; U: done and not documented.

The default is Mosquitto's; where it is another one here, that is said.
"""


def page() -> str:
    return "".join(_page())


def _page() -> Iterator[str]:
    yield _HEAD
    counts = {state: sum(row.state == state for row in ROWS.values()) for state in _STATES}
    yield f"\n{len(ROWS)} options: " + ", ".join(f"{counts[state]} {text}" for state, text in _STATES.items()) + ".\n"
    for title, rows in SECTIONS:
        yield f"\n## {title}\n\n"
        yield "| option | scope | default | state | SIGHUP here | SIGHUP there |\n|---|---|---|---|---|---|\n"
        for row in sorted(rows, key=lambda row: row.name):
            state = _STATES[row.state] + (f": {row.note}" if row.note else "")
            yield (
                f"| `{row.name}` | {row.scope} | {row.default} | {state} | {row.reloaded} | {row.reloaded_there} |\n"
            )
    yield "\n### Plugins that cannot be loaded\n\nA plugin is a C library. In the place of\n\n"
    for piece, advice in OTHER_PLUGINS.items():
        yield f"- {f'one whose name has `{piece}`' if piece else 'any other'}: {advice}\n"


if __name__ == "__main__":
    print(page(), end="")
