"""The options of mosquitto.conf that say how a listener is reached, and what of them cannot stand together."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.config import lockgate_toml
from lockgate.config.errors import ConfigError
from lockgate.config.model import BrokerConfig, CertificateConfig, Config, ListenerConfig, Place, TlsConfig
from lockgate.config.mosquitto_conf import read_mosquitto_conf

TLS = "listener 8883\ncertfile c\nkeyfile k\n"


def read(folder: Path, text: str) -> BrokerConfig:
    path = folder / "mosquitto.conf"
    path.write_text(text)
    return read_mosquitto_conf(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


def test_everything_a_tls_listener_can_say(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "listener 8883 127.0.0.1\ncertfile /c pem\nkeyfile k\ncafile ca\ncapath d\ncrlfile r\n"
        "require_certificate true\nuse_identity_as_username true\ndisable_client_cert_date_checks true\nciphers A:B\n"
        "tls_version tlsv1.3\ntls_keyform pem\n",
    )
    tls = TlsConfig(
        certfile=Path("/c pem"),
        keyfile=Path("k"),
        cafile=Path("ca"),
        capath=Path("d"),
        crlfile=Path("r"),
        require_certificate=True,
        disable_client_cert_date_checks=True,
        ciphers="A:B",
        tls_version="tlsv1.3",
    )
    [listener] = config.listeners
    assert listener == ListenerConfig(
        port=8883, address="127.0.0.1", tls=tls, require_certificate=True, username_from="identity"
    )
    assert listener.tls is not None
    assert listener.tls.places["ciphers"] == Place(tmp_path / "mosquitto.conf", 10)


def test_everything_else_a_listener_can_say(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "listener 9001\nprotocol websockets\nwebsockets_origin https://a\nwebsockets_origin https://b\n"
        "socket_domain ipv6\nbind_interface eth0\naccept_protocol_versions 4, 5\n"
        "listener 0 /run/m q.sock\nprotocol mqtt\n"
        "listener 1884\nenable_proxy_protocol 2\nproxy_protocol_v2_require_tls true\nrequire_certificate true\n"
        "use_identity_as_username true\n"
        "set_tcp_nodelay false\nwebsockets_headers_size 8192\n",
    )
    assert config.listeners == (
        ListenerConfig(
            port=9001,
            websockets=True,
            websockets_origins=("https://a", "https://b"),
            domain="ipv6",
            interface="eth0",
            protocol_versions=frozenset({4, 5}),
        ),
        ListenerConfig(port=0, path=Path("/run/m q.sock")),
        ListenerConfig(
            port=1884, proxy_protocol=2, proxy_require_tls=True, require_certificate=True, username_from="identity"
        ),
    )
    assert not config.set_tcp_nodelay
    assert config.websockets_headers_size == 8192
    assert read(tmp_path, "websockets_headers_size 0\n").websockets_headers_size == 4096


def test_the_subject_counts_before_the_cn(tmp_path: Path) -> None:
    text = TLS + "cafile ca\nrequire_certificate true\nuse_subject_as_username true\nuse_identity_as_username true\n"
    assert read(tmp_path, text).listeners[0].username_from == "subject"


def test_what_is_ignored_is_a_warning(tmp_path: Path) -> None:
    config = read(tmp_path, TLS + "dhparamfile d\nwebsockets_log_level 3\n")
    assert config.warnings == (
        "dhparamfile is ignored: OpenSSL chooses the parameters.",
        "websockets_log_level is ignored: it was for libwebsockets.",
    )


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("listener 1\ncertfile c\n", 2, "certfile needs keyfile on the same listener"),
        ("listener 1\nkeyfile k\n", 2, "keyfile needs certfile on the same listener"),
        ("listener 1\ncafile c\n", 2, "cafile needs certfile and keyfile"),
        ("listener 1\ncapath c\n", 2, "capath needs certfile and keyfile"),
        ("listener 1\ncrlfile c\n", 2, "crlfile needs certfile and keyfile"),
        ("listener 1\ntls_version tlsv1.3\n", 2, "tls_version needs certfile and keyfile"),
        ("listener 1\nrequire_certificate true\n", 2, "require_certificate needs certfile and keyfile"),
        (TLS + "require_certificate true\n", 4, "require_certificate needs cafile or capath"),
        (TLS + "enable_proxy_protocol 2\n", 4, "enable_proxy_protocol 2 cannot stand with certfile"),
        (TLS + "use_identity_as_username true\n", 4, "use_identity_as_username needs require_certificate true"),
        ("listener 1\nproxy_protocol_v2_require_tls true\n", 2, "needs enable_proxy_protocol 2"),
        (
            "listener 1\nenable_proxy_protocol 2\nuse_subject_as_username true\n",
            3,
            "use_subject_as_username cannot stand with enable_proxy_protocol 2",
        ),
        (TLS + "certfile d\n", 4, "Duplicate certfile value in configuration."),
        ("listener 1\nenable_proxy_protocol 3\n", 2, "Invalid enable_proxy_protocol value (3). Accepted: 1 to 2."),
        ("listener 1\nprotocol mqttsn\n", 2, "protocol mqttsn is not supported"),
        ("listener 1\nprotocol web\n", 2, "Invalid protocol value (web). Accepted: mqtt, websockets, http_api."),
        ("listener 1\nsocket_domain ipx\n", 2, "Accepted: ipv4, ipv6."),
        ("listener 1\naccept_protocol_versions 3,6\n", 2, "some of 3, 4 and 5"),
        ("listener 1\ntls_version tlsv1.1\n", 2, "Accepted: tlsv1.2, tlsv1.3."),
        ("listener 1\ntls_keyform engine\n", 2, "Accepted: pem."),
        ("listener 1\npsk_hint x\n", 2, "Python has no TLS-PSK before 3.13; use certificates"),
        ("listener 1\ntls_engine x\n", 2, "give the key as a PEM file"),
        ("listener 1\nciphers_tls1.3 x\n", 2, "OpenSSL's own list"),
        ("listener 1\nlistener 0\n", 2, "0 PATH for a Unix socket"),
        ("listener 1\nlistener 0 /" + "x" * 107 + "\n", 2, "up to 107 bytes"),
        ("listener 1\nlistener 2\nlistener 1\n", 3, "Two listeners open port 1; the other one is in mosquitto.conf:1."),
        ("listener 1\nlistener 1 127.0.0.1\n", 2, "Two listeners open port 1"),
        ("listener 1 ::\nlistener 1 ::1\n", 2, "Two listeners open port 1"),
        ("listener 0 /s\nlistener 0 /s\n", 2, "Two listeners open the Unix socket /s"),
    ],
)
def test_what_does_not_go_together_is_named_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    said = refused(tmp_path, text)
    assert says in said
    assert said.endswith(f"Error found at mosquitto.conf:{line}.")


@pytest.mark.parametrize(
    "text",
    [
        "listener 1 127.0.0.1\nlistener 1 ::1\n",
        "listener 1 127.0.0.1\nlistener 1 127.0.0.2\n",
        "listener 1\nsocket_domain ipv4\nlistener 1\nsocket_domain ipv6\n",
        "listener 1 0.0.0.0\nlistener 1 ::\n",
        "listener 1\nbind_interface a\nlistener 1\nbind_interface b\n",
        "listener 0 /a\nlistener 0 /b\n",
        TLS + "enable_proxy_protocol 1\n",
    ],
)
def test_what_goes_together_is_let_be(tmp_path: Path, text: str) -> None:
    read(tmp_path, text)


# --- lockgate.toml --------------------------------------------------------------------------------------------------


def load(folder: Path, toml: str, conf: str = TLS) -> Config:
    (folder / "mosquitto.conf").write_text(conf)
    path = folder / "lockgate.toml"
    path.write_text(f'[broker]\nmosquitto_conf = "mosquitto.conf"\n{toml}')
    return lockgate_toml.load(path, {})


def test_more_certificates_are_handed_to_their_listener(tmp_path: Path) -> None:
    table = 'listener = 8883\nhosts = ["a.example", "*.b.example"]\ncertfile = "a.pem"\nkeyfile = "a.key"\n'
    config = load(tmp_path, f"[certificates.a]\n{table}", TLS + "listener 1883\n")
    tls = config.broker.listeners[0].tls
    assert tls is not None
    assert tls.certificates == (
        CertificateConfig(
            name="a",
            listener=8883,
            hosts=("a.example", "*.b.example"),
            certfile=tmp_path / "a.pem",
            keyfile=tmp_path / "a.key",
        ),
    )
    assert tls.certificates[0].place == Place(tmp_path / "lockgate.toml", 3)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('listener = 1883\nhosts = ["a"]', "lockgate.toml:4: certificates.a.listener: no listener with a certificate"),
        ('listener = 8883\nhosts = ["a b"]', "'a b' is no host name"),
        ('listener = 8883\nhosts = ["a.*"]', "'a.*' is no host name"),
        ("listener = 8883", "certificates.a.hosts: is missing"),
    ],
)
def test_a_certificate_that_nobody_can_use_is_a_mistake(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f'[certificates.a]\n{line}\ncertfile = "a.pem"\nkeyfile = "a.key"\n', TLS + "listener 1883\n")
    assert says in str(caught.value).replace(f"{tmp_path}/", "")
