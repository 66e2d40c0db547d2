"""The table of Mosquitto's options, against its list of them, our parsers, and what a reload hands on."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from lockgate.config import bridge_options, options_table
from lockgate.config.errors import ConfigError
from lockgate.config.model import BrokerConfig
from lockgate.config.mosquitto_conf import BRIDGE_OPTIONS, NOT_YET, OPTIONS, PLUGINS, read_mosquitto_conf
from lockgate.config.options_table import ROWS
from lockgate.net.listener import door
from lockgate.net.service import broker_limits

REPOSITORY = Path(__file__).parents[3]

# All that the manual and the parser of Mosquitto 2.1 know, with what is deprecated.
MOSQUITTO = """
accept_protocol_versions acl_file address addresses allow_anonymous allow_duplicate_messages
allow_zero_length_clientid auth_opt_* auth_plugin auth_plugin_deny_special_chars auto_id_prefix autosave_interval
autosave_on_changes bind_address bind_interface bridge_alpn bridge_attempt_unsubscribe bridge_bind_address
bridge_cafile bridge_capath bridge_certfile bridge_ciphers bridge_ciphers_tls1.3 bridge_identity bridge_insecure
bridge_keyfile bridge_max_packet_size bridge_max_topic_alias bridge_outgoing_retain bridge_protocol_version
bridge_psk bridge_receive_maximum bridge_reload_type bridge_require_ocsp bridge_session_expiry_interval
bridge_tcp_keepalive bridge_tcp_user_timeout bridge_tls_use_os_certs bridge_tls_version cafile capath certfile
check_retain_source ciphers ciphers_tls1.3 cleansession clientid clientid_prefixes connection connection_messages
crlfile dhparamfile disable_client_cert_date_checks enable_control_api enable_proxy_protocol global_max_clients
global_max_connections global_plugin http_dir idle_timeout include_dir keepalive_interval keyfile listener
listener_allow_anonymous listener_auto_id_prefix local_cleansession local_clientid local_password local_username
log_dest log_facility log_timestamp log_timestamp_format log_type max_connections max_inflight_bytes
max_inflight_messages max_keepalive max_packet_size max_qos max_queued_bytes max_queued_messages max_topic_alias
max_topic_alias_broker maximum_qos memory_limit message_size_limit mount_point notification_topic notifications
notifications_local_only packet_buffer_size password password_file per_listener_settings persistence
persistence_file persistence_location persistent_client_expiration pid_file plugin plugin_load plugin_opt_*
plugin_opt_acl_file plugin_opt_config_file plugin_opt_db_file plugin_opt_flush_period plugin_opt_page_size
plugin_opt_password_file plugin_opt_password_init_file plugin_opt_sync plugin_use port protocol
proxy_protocol_v2_require_tls psk_file psk_hint queue_qos0_messages remote_clientid remote_password
remote_username require_certificate restart_timeout retain_available retain_expiry_interval retained_persistence
retry_interval round_robin set_tcp_nodelay socket_domain start_type sys_interval threshold tls_engine
tls_engine_kpass_sha1 tls_keyform tls_version topic try_private upgrade_outgoing_qos use_identity_as_username
use_subject_as_username use_username_as_clientid user username websockets_headers_size websockets_log_level
websockets_origin
"""

_TLS = "listener 8883\ncertfile c\nkeyfile k\n"
_CLIENTS = _TLS + "cafile ca\nrequire_certificate true\n"
_DYNSEC = "plugin mosquitto_dynamic_security.so\nplugin_opt_config_file a\n"
_SQLITE = "plugin mosquitto_persist_sqlite.so\n"
_BRIDGE = "connection b\naddress h\ntopic t\n"
_BRIDGE_TLS = _BRIDGE + "bridge_cafile ca\n"
_BRIDGE_USER = _BRIDGE + "remote_username u\nlocal_username u\n"

# Above the option, and one value of it that says something else than is said without the line.
USED: dict[str, tuple[str, str]] = {
    "accept_protocol_versions": ("", "5"),
    "acl_file": ("", "a"),
    "allow_anonymous": ("", "false"),
    "allow_duplicate_messages": ("", "false"),
    "allow_zero_length_clientid": ("", "false"),
    "auth_plugin_deny_special_chars": ("acl_file a\n", "false"),
    "auto_id_prefix": ("", "x-"),
    "autosave_interval": ("", "7"),
    "autosave_on_changes": ("", "true"),
    "bind_address": ("port 1884\n", "127.0.0.1"),
    "bind_interface": ("", "lo"),
    "cafile": (_TLS, "ca"),
    "capath": (_TLS, "ca"),
    "certfile": ("listener 8883\nkeyfile k\n", "c"),
    "check_retain_source": ("", "false"),
    "ciphers": (_TLS, "HIGH"),
    "clientid_prefixes": ("", "a"),
    "connection_messages": ("", "false"),
    "crlfile": (_CLIENTS, "crl"),
    "disable_client_cert_date_checks": (_CLIENTS, "true"),
    "enable_control_api": ("", "true"),
    "enable_proxy_protocol": ("", "1"),
    "global_max_clients": ("", "7"),
    "global_max_connections": ("", "7"),
    "global_plugin": ("", "mosquitto_sparkplug_aware.so"),
    "auth_plugin": ("", "mosquitto_sparkplug_aware.so"),
    "plugin": ("", "/usr/lib/mosquitto_sparkplug_aware.so"),
    "plugin_load": ("", "s mosquitto_sparkplug_aware.so"),
    "plugin_use": (_DYNSEC.replace("plugin m", "plugin_load d m"), "d"),
    "plugin_opt_acl_file": ("plugin mosquitto_acl_file.so\n", "a"),
    "plugin_opt_password_file": ("plugin mosquitto_password_file.so\n", "a"),
    "plugin_opt_config_file": ("plugin mosquitto_dynamic_security.so\n", "a"),
    "plugin_opt_password_init_file": (_DYNSEC, "p"),
    "plugin_opt_db_file": (_SQLITE, "a"),
    "plugin_opt_flush_period": (_SQLITE, "1"),
    "plugin_opt_page_size": (_SQLITE, "4096"),
    "plugin_opt_sync": (_SQLITE, "full"),
    "http_dir": ("protocol http_api\n", "a"),
    "keyfile": ("listener 8883\ncertfile c\n", "k"),
    "listener": ("", "1884"),
    "listener_allow_anonymous": ("listener 1884\n", "true"),
    "listener_auto_id_prefix": ("", "x-"),
    "log_dest": ("", "stdout"),
    "log_facility": ("", "3"),
    "log_timestamp": ("", "false"),
    "log_timestamp_format": ("", "%H"),
    "log_type": ("", "all"),
    "max_connections": ("", "7"),
    "max_inflight_bytes": ("", "7"),
    "max_inflight_messages": ("", "7"),
    "max_keepalive": ("", "7"),
    "max_packet_size": ("", "70"),
    "max_qos": ("", "1"),
    "maximum_qos": ("", "1"),
    "max_queued_bytes": ("", "7"),
    "max_queued_messages": ("", "7"),
    "max_topic_alias": ("", "7"),
    "max_topic_alias_broker": ("", "7"),
    "memory_limit": ("", "7"),
    "message_size_limit": ("", "7"),
    "mount_point": ("", "m/"),
    "packet_buffer_size": ("protocol websockets\n", "7000"),
    "password_file": ("", "a"),
    "per_listener_settings": ("", "true"),
    "persistence": ("", "true"),
    "persistence_file": ("", "a.db"),
    "persistence_location": ("", "a/"),
    "persistent_client_expiration": ("", "2w"),
    "pid_file": ("", "a"),
    "port": ("", "1884"),
    "protocol": ("", "websockets"),
    "proxy_protocol_v2_require_tls": ("enable_proxy_protocol 2\n", "true"),
    "queue_qos0_messages": ("", "true"),
    "require_certificate": (_TLS + "cafile ca\n", "true"),
    "retain_available": ("", "false"),
    "retain_expiry_interval": ("", "7"),
    "retained_persistence": ("", "true"),
    "retry_interval": ("", "7"),
    "dhparamfile": (_TLS, "a"),
    "set_tcp_nodelay": ("", "false"),
    "socket_domain": ("", "ipv4"),
    "sys_interval": ("", "7"),
    "tls_keyform": (_TLS, "pem"),
    "tls_version": (_TLS, "tlsv1.3"),
    "upgrade_outgoing_qos": ("", "true"),
    "use_identity_as_username": (_CLIENTS, "true"),
    "use_subject_as_username": (_CLIENTS, "true"),
    "use_username_as_clientid": ("", "true"),
    "user": ("", "root"),
    "websockets_headers_size": ("protocol websockets\n", "7000"),
    "websockets_log_level": ("", "7"),
    "websockets_origin": ("protocol websockets\n", "https://a.example"),
    "address": ("connection b\ntopic t\n", "h"),
    "addresses": ("connection b\ntopic t\n", "h"),
    "bridge_alpn": (_BRIDGE_TLS, "mqtt"),
    "bridge_attempt_unsubscribe": (_BRIDGE, "false"),
    "bridge_bind_address": (_BRIDGE, "127.0.0.1"),
    "bridge_cafile": (_BRIDGE, "ca"),
    "bridge_capath": (_BRIDGE, "ca"),
    "bridge_certfile": (_BRIDGE_TLS + "bridge_keyfile k\n", "c"),
    "bridge_ciphers": (_BRIDGE_TLS, "HIGH"),
    "bridge_insecure": (_BRIDGE_TLS, "true"),
    "bridge_keyfile": (_BRIDGE_TLS + "bridge_certfile c\n", "k"),
    "bridge_max_packet_size": (_BRIDGE, "700"),
    "bridge_max_topic_alias": (_BRIDGE, "7"),
    "bridge_outgoing_retain": (_BRIDGE, "false"),
    "bridge_protocol_version": (_BRIDGE, "mqttv50"),
    "bridge_receive_maximum": (_BRIDGE, "7"),
    "bridge_reload_type": (_BRIDGE, "immediate"),
    "bridge_session_expiry_interval": (_BRIDGE, "7"),
    "bridge_tcp_keepalive": (_BRIDGE, "7 7 7"),
    "bridge_tcp_user_timeout": (_BRIDGE, "7"),
    "bridge_tls_use_os_certs": (_BRIDGE, "true"),
    "bridge_tls_version": (_BRIDGE_TLS, "tlsv1.3"),
    "cleansession": (_BRIDGE, "true"),
    "clientid": (_BRIDGE, "i"),
    "connection": ("", "b\naddress h\ntopic t"),
    "idle_timeout": (_BRIDGE, "7"),
    "keepalive_interval": (_BRIDGE, "7"),
    "local_cleansession": (_BRIDGE, "true"),
    "local_clientid": (_BRIDGE, "i"),
    "local_password": (_BRIDGE_USER, "p"),
    "local_username": (_BRIDGE, "u"),
    "notification_topic": (_BRIDGE, "n"),
    "notifications": (_BRIDGE, "false"),
    "notifications_local_only": (_BRIDGE, "true"),
    "password": (_BRIDGE_USER, "p"),
    "remote_clientid": (_BRIDGE, "i"),
    "remote_password": (_BRIDGE_USER, "p"),
    "remote_username": (_BRIDGE, "u"),
    "restart_timeout": (_BRIDGE, "7"),
    "round_robin": (_BRIDGE, "true"),
    "start_type": (_BRIDGE, "lazy"),
    "threshold": (_BRIDGE, "7"),
    "topic": (_BRIDGE, "other"),
    "try_private": (_BRIDGE, "false"),
    "username": (_BRIDGE, "u"),
}  # fmt: skip


# Options that others belong to, or that are no line alone
_SPELT_ELSEWHERE = {"include_dir", "plugin_opt_*", "auth_opt_*"}


def read(folder: Path, text: str) -> BrokerConfig:
    conf = folder / "mosquitto.conf"
    conf.write_text(text)
    return read_mosquitto_conf(conf)


def without(above: str, name: str) -> str:
    """The lines above an option, as they can stand without it."""
    if name in ("certfile", "keyfile"):
        return "listener 8883\n"
    if name in ("address", "addresses", "connection", "bridge_keyfile", "bridge_certfile"):
        return "" if name in ("address", "addresses", "connection") else _BRIDGE_TLS
    if name.startswith("plugin_opt_") and not above.startswith((_DYNSEC, _SQLITE)):
        return ""
    return above


def handed_on(config: BrokerConfig) -> dict[str, Any]:
    """What BrokerService.reload and its host take from a configuration."""
    listeners = [
        dataclasses.replace(
            one,
            auto_id_prefix=one.auto_id_prefix if one.auto_id_prefix is not None else config.auto_id_prefix,
            allow_anonymous=one.allow_anonymous if one.allow_anonymous is not None else config.allow_anonymous,
            allow_zero_length_clientid=config.allow_zero_length_clientid
            if one.allow_zero_length_clientid is None
            else one.allow_zero_length_clientid,
        )
        for one in config.listeners
    ]
    limits = broker_limits(config)
    return {
        "limits": {name: getattr(limits, name) for name in dir(limits) if not name.startswith("_")},
        "listeners": [
            (one, config.set_tcp_nodelay, config.websockets_headers_size if one.websockets else 0) for one in listeners
        ],
        "access": (config.authorities, config.per_listener_settings),
        "rest": (config.log, config.sys_interval, config.connection_messages, config.enable_control_api),
        "bridges": config.bridges,
    }


def test_every_option_of_mosquitto_has_its_row() -> None:
    assert set(ROWS) == set(MOSQUITTO.split())
    assert sum(len(rows) for _, rows in options_table.SECTIONS) == len(ROWS), "an option stands there twice"


def test_every_option_of_the_parsers_has_its_row() -> None:
    plugins = {f"plugin_opt_{option}" for options in PLUGINS.values() for option in options}
    ours = {"include_dir", "plugin_opt_*", "auth_opt_*"} | plugins
    assert set(ROWS) == set(OPTIONS) | BRIDGE_OPTIONS | set(NOT_YET) | ours
    assert set(bridge_options.OPTIONS) | {"connection"} == BRIDGE_OPTIONS


def test_a_state_other_than_same_has_its_reason() -> None:
    assert [row.name for row in ROWS.values() if row.state != "same" and not row.note] == []


def test_the_samples_are_of_every_honoured_option() -> None:
    honoured = {row.name for row in ROWS.values() if row.state != "refused"}
    assert set(USED) == honoured - _SPELT_ELSEWHERE


@pytest.mark.parametrize("name", [row.name for row in ROWS.values() if row.state == "refused"])
def test_what_is_not_honoured_is_refused_with_advice(name: str, tmp_path: Path) -> None:
    value = "true" if name == "bridge_require_ocsp" else "x"
    above = _BRIDGE if name.startswith("bridge_") else ""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"{above}{name} {value}\n")
    said = str(caught.value)
    assert f"{tmp_path / 'mosquitto.conf'}:" in said
    assert re.search(r"\b(use|give|remove)\b", said), said
    assert re.search(r"\b(use|give|remove)\b", ROWS[name].note)


@pytest.mark.parametrize("name", USED)
def test_an_option_is_honoured_and_reloaded_as_its_row_says(name: str, tmp_path: Path) -> None:
    above, value = USED[name]
    row = ROWS[name]
    before = read(tmp_path, without(above, name))
    after = read(tmp_path, f"{above}{name} {value}\n")
    if row.state == "ignored":
        key = name if row.scope != "mosquitto_persist_sqlite.so" else "plugin_opt_"
        assert any(one.startswith(key) and "is ignored" in one for one in after.warnings)
        assert handed_on(before) == handed_on(after)
    elif name == "tls_keyform":
        assert before == after
    elif name == "plugin_load":  # counts where plugin_use names it
        used = read(tmp_path, f"{name} {value}\nplugin_use s\n")
        assert handed_on(before) != handed_on(used)
    elif row.scope == "listener" and row.reloaded == "N":
        # the same port on another address or device is another door, and the first still holds the port
        assert [door(one) for one in before.listeners] != [door(one) for one in after.listeners]
    else:
        assert before != after
        assert (handed_on(before) != handed_on(after)) == (row.reloaded == "Y")


def test_the_page_is_the_one_the_table_makes() -> None:
    page = REPOSITORY / "docs" / "reference" / "mosquitto-options.md"
    assert page.read_text() == options_table.page(), "run `make docs`"
