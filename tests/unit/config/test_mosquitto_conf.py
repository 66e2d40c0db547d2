"""mosquitto.conf: syntax, binding to listeners, defaults, and errors in Mosquitto's words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lockgate.config.errors import ConfigError, ConfigErrors
from lockgate.config.model import AuthorityConfig, BrokerConfig, ListenerConfig, LogConfig
from lockgate.config.mosquitto_conf import NOT_YET, OPTIONS, read_mosquitto_conf


def read(folder: Path, text: str | bytes) -> BrokerConfig:
    path = folder / "mosquitto.conf"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_mosquitto_conf(path)


def refused(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


def test_without_a_listener_the_broker_is_local_only_and_open(tmp_path: Path) -> None:
    config = read(tmp_path, "# nothing said\n\n")
    assert config == BrokerConfig(path=tmp_path / "mosquitto.conf")
    assert [listener.address for listener in config.listeners] == ["127.0.0.1", "::1"]
    assert config.allow_anonymous


def test_a_listener_closes_the_anonymous_door(tmp_path: Path) -> None:
    config = read(tmp_path, "listener 1884\n")
    assert config.listeners == (ListenerConfig(port=1884),)
    assert not config.allow_anonymous
    assert read(tmp_path, "allow_anonymous true\nlistener 1884\n").allow_anonymous


def test_listener_options_bind_to_the_listener_above(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "listener 1884 127.0.0.1\nmax_connections 5\nmax_qos 1\nmax_packet_size 100\n"
        "listener 1885\nmax_topic_alias 0\nlistener_allow_anonymous true\nmax_topic_alias_broker 3\n",
    )
    assert config.listeners == (
        ListenerConfig(port=1884, address="127.0.0.1", max_connections=5, max_qos=1),
        ListenerConfig(port=1885, max_topic_alias=0, max_topic_alias_broker=3, allow_anonymous=True),
    )
    assert config.max_packet_size == 100


def test_listener_options_without_any_listener_bind_to_the_local_ones(tmp_path: Path) -> None:
    assert [one.max_connections for one in read(tmp_path, "max_connections 5\n").listeners] == [5, 5]


def test_a_listener_option_above_the_first_listener_is_refused_unless_it_says_the_default(tmp_path: Path) -> None:
    text = refused(tmp_path, "allow_anonymous true\nmax_connections 5\nlistener 1884\n")
    assert "Move it below its `listener` line" in text
    assert text.endswith("Error found at mosquitto.conf:2.")
    assert len(read(tmp_path, "max_connections -1\nlistener 1884\n").listeners) == 1


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("allow_anonymous FALSE", "allow_anonymous", False),
        ("allow_anonymous 1", "allow_anonymous", True),
        ("max_queued_messages 0x10", "max_queued_messages", 16),
        ("max_queued_messages 020", "max_queued_messages", 16),
        ("max_queued_messages   20  ", "max_queued_messages", 20),
        ("max_queued_messages 20\r", "max_queued_messages", 20),
        ("max_queued_messages -1", "max_queued_messages", 0),
        ("max_inflight_messages 65535", "max_inflight_messages", 0),
        ("max_inflight_bytes 7", "max_inflight_bytes", 7),
        ("max_queued_bytes 7", "max_queued_bytes", 7),
        ("max_keepalive 60", "max_keepalive", 60),
        ("max_packet_size 20", "max_packet_size", 20),
        ("max_packet_size 20\nmax_packet_size 30", "max_packet_size", 30),
    ],
)
def test_values(tmp_path: Path, line: str, field: str, value: object) -> None:
    assert getattr(read(tmp_path, line + "\n"), field) == value


def test_log_options(tmp_path: Path) -> None:
    text = (
        "log_dest stdout\nlog_dest file /var/log/a b.log\nlog_type error\nlog_type debug\n"
        "log_timestamp false\nlog_timestamp_format %Y-%m-%d %H:%M\nlog_facility 3\n"
    )
    assert read(tmp_path, text).log == LogConfig(
        destinations=("stdout", "file /var/log/a b.log"),
        types=frozenset({"error", "debug"}),
        timestamp=False,
        timestamp_format="%Y-%m-%d %H:%M",
        facility=3,
    )
    assert read(tmp_path, "log_type all\nlog_type none\n").log.types == frozenset()
    assert read(tmp_path, "log_dest stdout\nlog_dest none\n").log.destinations == ("none",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("foo 3", 'Error: Unknown configuration variable "foo".'),
        ("max_conections 3", 'Error: Unknown configuration variable "max_conections". Did you mean max_connections?'),
        ("listener\t1884", "there is a tab"),
        (" # no comment", 'Error: Unknown configuration variable "#".'),
        ("allow_anonymous maybe", "Error: Invalid allow_anonymous value (maybe). Accepted: true, false, 1, 0."),
        ("allow_anonymous", "Error: Empty allow_anonymous value in configuration."),
        ("max_packet_size 19", "Error: Invalid max_packet_size value (19). Accepted: 20 to 268435460."),
        ("max_keepalive 65536", "Error: Invalid max_keepalive value (65536)."),
        ("max_qos 3", "Error: Invalid max_qos value (3). Accepted: 0 to 2."),
        ("max_queued_messages 12a", "Error: Invalid max_queued_messages value (12a)."),
        ("max_queued_messages 09", "Error: Invalid max_queued_messages value (09)."),
        ("listener 99999", "Error: Invalid port value (99999)."),
        ("listener 1 a b", "Error: Invalid listener value (1 a b)."),
        ("log_type foo", "Error: Invalid log_type value (foo)."),
        ("log_dest foo", "Error: Invalid log_dest value (foo)."),
        ("log_dest file", 'Error: Empty "log_dest file" value in configuration.'),
        ("log_dest dlt", "log_dest dlt is for other systems than this one."),
        ("log_facility 8", "Error: Invalid log_facility value (8). Accepted: 0 to 7."),
        ("tls_engine x", "Error: tls_engine is an option of Mosquitto that is not honoured yet. Python reaches no"),
        ("plugin_opt_config_file /x", "plugin_opt_config_file stands above any plugin line"),
        (
            "plugin /usr/lib/mosquitto_go_auth.so",
            "Unable to load plugin /usr/lib/mosquitto_go_auth.so. A plugin is a C",
        ),
        ("plugin_load a", "Invalid plugin_load value (a). Accepted: NAME PATH."),
        ("plugin_use a", "There is no plugin_load a above."),
        ("mount_point a/+/", "Invalid mount_point 'a/+/'. Does it contain a wildcard character?"),
        ("protocol mqttsn", "protocol mqttsn is not supported"),
        (f"auto_id_prefix {'x' * 51}", "auto_id_prefix length should be a maximum of 50 characters."),
        (b"log_dest file /\xff", "The line is not valid UTF-8."),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str | bytes, says: str) -> None:
    first = b"# a comment\n" + (text if isinstance(text, bytes) else text.encode())
    said = refused(tmp_path, first + b"\n")
    assert says in said
    assert said.endswith("\nError found at mosquitto.conf:2.")


def test_a_once_only_option_given_twice_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, "log_timestamp_format %s\nlog_timestamp_format %H\n")
    assert said == ("Error: Duplicate log_timestamp_format value in configuration.\nError found at mosquitto.conf:2.")


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.conf"
    path.write_text("foo 1\nlistener 1883\nmax_qos 7\n")
    with pytest.raises(ConfigErrors) as caught:
        read_mosquitto_conf(path)
    assert [error.line for error in caught.value.errors] == [1, 3]


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unable to open configuration file .*/none\.conf: No such file"):
        read_mosquitto_conf(tmp_path / "none.conf")


def test_include_dir_reads_its_files_in_order_and_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "b.conf").write_text("max_connections 2\n")
    (folder / "A.conf").write_text("listener 1884\nmax_connections 1\n")
    (folder / "ignored.txt").write_text("nonsense\n")
    config = read(tmp_path, f"include_dir {folder}\nmax_qos 1\n")
    assert config.listeners == (ListenerConfig(port=1884, max_connections=2, max_qos=1),)
    (folder / "c.conf").write_text(f"include_dir {folder}\nfoo\n")
    said = refused(tmp_path, f"include_dir {folder}\n")
    assert "include_dir is not allowed in an included file" in said
    assert said.endswith("Error found at conf.d/c.conf:2.")
    assert "Unable to open include_dir" in refused(tmp_path, "include_dir /does/not/exist\n")


def test_an_include_dir_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf.d").mkdir()

    def refuse(_folder: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    assert "conf.d': Permission denied" in refused(tmp_path, f"include_dir {tmp_path}/conf.d\n")


def test_no_option_is_in_both_tables() -> None:
    assert not OPTIONS.keys() & NOT_YET.keys()


# --- who may --------------------------------------------------------------------------------------------------------


def kinds(authorities: tuple[AuthorityConfig, ...]) -> list[tuple[str, str]]:
    return [(one.kind, str(one.path)) for one in authorities]


def test_files_of_authorities_are_global(tmp_path: Path) -> None:
    config = read(tmp_path, "listener 1884\npassword_file /p\nacl_file /a\nauth_plugin_deny_special_chars false\n")
    assert kinds(config.authorities) == [("password_file", "/p"), ("acl_file", "/a")]
    assert not any(one.deny_special_chars for one in config.authorities)
    assert config.listeners[0].authorities == ()
    assert "Duplicate acl_file value" in refused(tmp_path, "acl_file /a\nacl_file /b\n")


def test_with_per_listener_settings_they_belong_to_the_listener_above(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "per_listener_settings true\nlistener 1884\npassword_file /p\nallow_anonymous true\n"
        "listener 1885\nacl_file /a\nauto_id_prefix x-\nallow_zero_length_clientid false\n",
    )
    first, second = config.listeners
    assert config.authorities == ()
    assert (kinds(first.authorities), first.allow_anonymous) == ([("password_file", "/p")], True)
    assert (kinds(second.authorities), second.allow_anonymous) == ([("acl_file", "/a")], None)
    assert (second.auto_id_prefix, second.allow_zero_length_clientid) == ("x-", False)
    said = refused(tmp_path, "allow_anonymous true\nper_listener_settings true\n")
    assert "must be set before any other security settings, and allow_anonymous was" in said


def test_plugins_are_known_by_their_file_names_and_asked_first(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "listener 1884\nacl_file /a\nplugin /usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so\n"
        "plugin_opt_config_file /d\nplugin_opt_password_init_file /i\n"
        "global_plugin mosquitto_password_file.so\nplugin_opt_password_file /p\n",
    )
    assert kinds(config.authorities) == [("dynamic_security", "/d"), ("password_file", "/p"), ("acl_file", "/a")]
    assert config.authorities[0].password_init_file == Path("/i")
    assert "needs plugin_opt_config_file" in refused(tmp_path, "plugin mosquitto_dynamic_security.so\n")
    said = refused(tmp_path, "plugin mosquitto_acl_file.so\nplugin_opt_file /x\n")
    assert "plugin_opt_file is no option of mosquitto_acl_file.so. Accepted: plugin_opt_acl_file." in said


def test_a_loaded_plugin_is_used_where_it_is_said(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "plugin_load users mosquitto_password_file.so\nplugin_opt_password_file /p\n"
        "listener 1884\nlistener 1885\nplugin_use users\n",
    )
    assert config.authorities == ()
    assert [kinds(one.authorities) for one in config.listeners] == [[], [("password_file", "/p")]]


def test_the_stores_plugin_is_persistence_and_sparkplug_is_built_in(tmp_path: Path) -> None:
    text = "plugin mosquitto_persist_sqlite.so\nplugin_opt_sync full\nplugin mosquitto_sparkplug_aware.so\n"
    config = read(tmp_path, text)
    assert (config.persistence, config.sparkplug_aware) == (True, True)
    assert "what is acknowledged is always synced" in config.warnings[0]
    assert "cannot be used together" in refused(tmp_path, f"persistence true\n{text}")


def test_port_and_bind_address_are_a_listener(tmp_path: Path) -> None:
    config = read(tmp_path, "port 1884\nbind_address 127.0.0.1\nmax_connections 5\nlistener 1885\n")
    assert config.listeners == (
        ListenerConfig(port=1884, address="127.0.0.1", max_connections=5),
        ListenerConfig(port=1885),
    )
    assert config.allow_anonymous is False
    assert all("deprecated" in warning for warning in config.warnings)
    assert "Invalid port value (0)" in refused(tmp_path, "port 0\n")


def test_http_dir_where_no_files_are_served_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.conf"
    path.write_text(
        "listener 9001\nprotocol websockets\nhttp_dir /srv\nlistener 8080\nprotocol http_api\nhttp_dir /srv\n"
    )
    (warning,) = read_mosquitto_conf(path).warnings
    assert "port 9001" in warning
    assert "http_api" in warning
