"""The `connection` blocks of mosquitto.conf."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lockgate.config.bridge_options import OPTIONS
from lockgate.config.errors import ConfigError
from lockgate.config.model import BridgeConfig, BridgeTlsConfig, BridgeTopic, RestartTimeout
from lockgate.config.mosquitto_conf import BRIDGE_OPTIONS, read_mosquitto_conf

LEAST = "connection b\naddress h\ntopic #\n"


def read(folder: Path, text: str) -> tuple[BridgeConfig, ...]:
    path = folder / "mosquitto.conf"
    path.write_text(text)
    return read_mosquitto_conf(path).bridges


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


def test_every_option_that_is_known_is_read() -> None:
    assert set(OPTIONS) | {"connection"} == BRIDGE_OPTIONS


def test_what_is_not_said_is_as_in_mosquitto(tmp_path: Path) -> None:
    (bridge,) = read(tmp_path, LEAST)
    client_id = f"{socket.gethostname()}.b"
    assert bridge == BridgeConfig(
        name="b",
        addresses=(("h", 1883),),
        topics=(BridgeTopic(pattern="#"),),
        client_id=client_id,
        local_client_id=f"local.{client_id}",
        notification_topic=f"$SYS/broker/connection/{client_id}/state",
    )
    assert bridge.restart_timeout == RestartTimeout(5, 30, 0)
    assert (bridge.keepalive_interval, bridge.threshold, bridge.idle_timeout) == (60, 10, 60)
    assert (bridge.version, bridge.max_topic_alias) == (4, 10)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("address h2:1884 [::1]:5", "addresses", (("h", 1883), ("h2", 1884), ("::1", 5))),
        ("addresses ::2 [::3]", "addresses", (("h", 1883), ("::2", 1883), ("::3", 1883))),
        ("bridge_protocol_version mqttv31", "version", 3),
        ("bridge_protocol_version mqttv50", "version", 5),
        ("clientid me", "client_id", "me"),
        ("remote_clientid me", "local_client_id", "local.me"),
        ("remote_clientid me", "notification_topic", "$SYS/broker/connection/me/state"),
        ("local_clientid me", "local_client_id", "me"),
        ("username u", "username", "u"),
        ("remote_username u", "username", "u"),
        ("remote_username u\nremote_password p p", "password", "p p"),
        ("local_username u\nlocal_password p", "local_password", "p"),
        ("cleansession true", "local_cleansession", True),
        ("cleansession true\nlocal_cleansession false", "local_cleansession", False),
        ("keepalive_interval 5", "keepalive_interval", 5),
        ("start_type lazy", "start_type", "lazy"),
        ("start_type once", "start_type", "once"),
        ("threshold 3", "threshold", 3),
        ("idle_timeout 3", "idle_timeout", 3),
        ("restart_timeout 7", "restart_timeout", RestartTimeout(7, 7, 0)),
        ("restart_timeout 7 70", "restart_timeout", RestartTimeout(7, 70, 0)),
        ("restart_timeout 7 70 9", "restart_timeout", RestartTimeout(7, 70, 9)),
        ("round_robin true", "round_robin", True),
        ("try_private false", "try_private", False),
        ("notifications false", "notifications", False),
        ("notifications_local_only true", "notifications_local_only", True),
        ("notification_topic a/b", "notification_topic", "a/b"),
        ("bridge_attempt_unsubscribe false", "attempt_unsubscribe", False),
        ("bridge_outgoing_retain false", "outgoing_retain", False),
        ("bridge_max_packet_size 100", "max_packet_size", 100),
        ("bridge_max_topic_alias 0", "max_topic_alias", 0),
        ("bridge_receive_maximum 9", "receive_maximum", 9),
        ("bridge_session_expiry_interval 0", "session_expiry_interval", 0),
        ("bridge_bind_address 127.0.0.2", "bind_address", "127.0.0.2"),
        ("bridge_tcp_keepalive 1 2 3", "tcp_keepalive", (1, 2, 3)),
        ("bridge_tcp_user_timeout 100", "tcp_user_timeout", 100),
        ("bridge_reload_type immediate", "reload_immediately", True),
        ("bridge_cafile ca", "tls", BridgeTlsConfig(cafile=Path("ca"))),
        (
            "bridge_capath ca\nbridge_certfile c\nbridge_keyfile k\nbridge_insecure true\nbridge_alpn mqtt\n"
            "bridge_tls_version tlsv1.3\nbridge_ciphers X\nbridge_require_ocsp false",
            "tls",
            BridgeTlsConfig(
                capath=Path("ca"),
                certfile=Path("c"),
                keyfile=Path("k"),
                insecure=True,
                alpn="mqtt",
                tls_version="tlsv1.3",
                ciphers="X",
            ),
        ),
        ("bridge_tls_use_os_certs true", "tls", BridgeTlsConfig(use_os_certs=True)),
    ],
)
def test_options(tmp_path: Path, line: str, field: str, value: object) -> None:
    (bridge,) = read(tmp_path, f"{LEAST}{line}\n")
    assert getattr(bridge, field) == value


@pytest.mark.parametrize(
    ("line", "topic"),
    [
        (
            "a/# both 2 l/ r/",
            BridgeTopic(pattern="a/#", direction="both", qos=2, local_prefix="l/", remote_prefix="r/"),
        ),
        ('a IN 1 "" r/', BridgeTopic(pattern="a", direction="in", qos=1, remote_prefix="r/")),
        ('a out 0 l/ ""', BridgeTopic(pattern="a", local_prefix="l/")),
        ('"" out 0 x/y z', BridgeTopic(pattern="", local_prefix="x/y", remote_prefix="z")),
        (
            '"a b/#" in 0 "l l/" r/',
            BridgeTopic(pattern="a b/#", direction="in", local_prefix="l l/", remote_prefix="r/"),
        ),
        ("a both", BridgeTopic(pattern="a", direction="both")),
        ("a both 1 l/", BridgeTopic(pattern="a", direction="both", qos=1, local_prefix="l/")),
    ],
)
def test_topics(tmp_path: Path, line: str, topic: BridgeTopic) -> None:
    (bridge,) = read(tmp_path, f"connection b\naddress h\ntopic {line}\n")
    assert bridge.topics == (topic,)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("address h\n", "Error: Invalid bridge configuration.\\1"),
        ("connection\n", "Error: Empty connection value in configuration.\\1"),
        (f"{LEAST}connection b\n", 'Error: Duplicate bridge name "b".\\4'),
        ("connection b\ntopic #\n", "Error: Invalid bridge configuration: no remote addresses defined.\\1"),
        ("connection b\naddress h\n", "Error: Invalid bridge configuration: no topics defined.\\1"),
        (f"{LEAST}topic a sideways\n", "Error: Invalid bridge topic direction 'sideways'.\\4"),
        (f"{LEAST}topic a out 3\n", "Error: Invalid bridge QoS level '3'.\\4"),
        (f'{LEAST}topic "" out 0 l/\n', "Error: Invalid bridge remapping.\\4"),
        (f"{LEAST}topic a out 0 l/+ r/\n", "Error: Invalid bridge topic local prefix 'l/+'.\\4"),
        (f"{LEAST}topic a out 0 l/ r/#\n", "Error: Invalid bridge topic remote prefix 'r/#'.\\4"),
        (f"{LEAST}topic a#\n", "Error: Invalid bridge topic local prefix and pattern combination 'a#'\\4"),
        (f"{LEAST}topic $share/g/a\n", "takes part in no Shared Subscription.\\4"),
        (f"{LEAST}topic a out 0 l r more\n", "Error: Invalid topic value\\4"),
        (f"{LEAST}address h:0\n", "Error: Invalid port value (0).\\4"),
        (f"{LEAST}address h:x\n", "Error: Invalid port value (x).\\4"),
        (f"{LEAST}address [h\n", "Error: Invalid address value ([h).\\4"),
        (f"{LEAST}start_type manual\n", "Error: Manual start_type not supported.\\4"),
        (f"{LEAST}restart_timeout 0\n", "Error: Invalid restart_timeout value (0).\\4"),
        (f"{LEAST}restart_timeout 10 5\n", "Error: backoff cap is lower than the base in restart_timeout.\\4"),
        (f"{LEAST}keepalive_interval 4\n", "Error: Invalid keepalive_interval value (4).\\4"),
        (f"{LEAST}clientid a\nremote_clientid b\n", "Error: Duplicate remote_clientid value in configuration.\\5"),
        (f"{LEAST}threshold\n", "Error: Empty threshold value in configuration.\\4"),
        (f"{LEAST}bridge_protocol_version 5\n", "Error: Invalid bridge_protocol_version value (5).\\4"),
        (f"{LEAST}bridge_tcp_keepalive 1 2\n", "Error: Invalid bridge_tcp_keepalive value (1 2).\\4"),
        (f"{LEAST}bridge_psk ab\n", "use certificates (bridge_certfile, bridge_keyfile).\\4"),
        (f"{LEAST}bridge_identity ab\n", "use certificates (bridge_certfile, bridge_keyfile).\\4"),
        (f"{LEAST}bridge_require_ocsp true\n", "use short-lived certificates.\\4"),
        (f"{LEAST}bridge_ciphers_tls1.3 X\n", "remove the line\\4"),
        (f"{LEAST}bridge_cafile c\nbridge_certfile c\n", "bridge_certfile needs bridge_keyfile\\5"),
        (f"{LEAST}bridge_insecure true\n", "whom to trust.\\4"),
        (f"{LEAST}local_password p\n", "local_password needs local_username.\\4"),
        (f"{LEAST}remote_password p\n", "remote_password needs remote_username\\4"),
        (f"{LEAST}notification_topic a/+\n", "Error: Invalid notification_topic value (a/+).\\4"),
        (
            f"{LEAST}local_clientid x\nconnection c\naddress h\ntopic #\nlocal_clientid x\n",
            "Error: Bridge local_clientid 'x' is not unique.\\8",
        ),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, text: str, told: str) -> None:
    problem, _, line = told.rpartition("\\")
    found = refused(tmp_path, text)
    assert problem in found
    assert f"Error found at mosquitto.conf:{line}." in found


def test_options_belong_to_the_connection_above(tmp_path: Path) -> None:
    one, two = read(tmp_path, f"{LEAST}threshold 3\nconnection c\naddress i\ntopic x in\nlistener 1884\nthreshold 4\n")
    assert (one.name, one.threshold, two.name, two.threshold) == ("b", 3, "c", 4)


def test_passwords_are_in_no_text(tmp_path: Path) -> None:
    (bridge,) = read(tmp_path, f"{LEAST}username u\npassword secret1\nlocal_username v\nlocal_password secret2\n")
    assert "secret" not in repr(bridge)
    assert "secret" not in refused(tmp_path, f"{LEAST}username u\npassword secret1\npassword secret2\n")
