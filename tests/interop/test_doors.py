"""Foreign clients through every door of our broker: paho, mqtt.js, Debian's mosquitto clients, openssl, curl."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.certificates import Authority
from tests.support.gateway import Gateway
from tests.support.peers import free_port, program
from tests.support.wires import PROXY_V1

pytestmark = pytest.mark.peers
HERE = Path(__file__).parent
WAIT = 10


@dataclass
class Doors:
    """One broker, its ports and its certificates."""

    gateway: Gateway
    authority: Authority
    tls: int
    mutual: int
    websocket: int
    secure: int
    proxied: int
    unix: Path

    def lines(self) -> str:
        return self.gateway.log.read_text()


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    folder = tmp_path_factory.mktemp("doors")
    authority = Authority(folder)
    cert, key = authority.issue("server", "localhost", "127.0.0.1")
    revoked = authority.issue("revoked", common_name="revoked")
    crl = authority.revoke(revoked[0])
    tls, mutual, websocket, secure, proxied = (free_port() for _number in range(5))
    unix = folder / "mqtt.sock"
    certificate = [f"certfile {cert}", f"keyfile {key}"]
    gateway = Gateway(
        folder,
        f'[certificates.other]\nlistener = {tls}\nhosts = ["other.example"]\ncertfile = "other.pem"\n'
        'keyfile = "other.key"\n',
        [
            *(f"listener {tls} 127.0.0.1", *certificate),
            *(f"listener {mutual} 127.0.0.1", *certificate, f"cafile {authority.cafile}", f"crlfile {crl}"),
            *("require_certificate true", "use_identity_as_username true", "listener_allow_anonymous false"),
            *(f"listener {websocket} 127.0.0.1", "protocol websockets"),
            *(f"listener {secure} 127.0.0.1", "protocol websockets", *certificate),
            *(f"listener {proxied} 127.0.0.1", "enable_proxy_protocol 1", *certificate),
            f"listener 0 {unix}",
        ],
    )
    authority.issue("other", "other.example")
    gateway.start("broker")
    yield Doors(gateway, authority, tls, mutual, websocket, secure, proxied, unix)
    gateway.stop_all()


# --- paho ---------------------------------------------------------------------------------------------------------


class Talker:
    """A paho client through one door."""

    def __init__(self, doors: Doors, door: str, protocol: int, client_id: str) -> None:
        transport: Any = {"ws": "websockets", "wss": "websockets", "unix": "unix"}.get(door, "tcp")
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=protocol,  # type: ignore[arg-type]
            transport=transport,
        )
        if door in ("tls", "wss"):
            self.client.tls_set(str(doors.authority.cafile))
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.events: queue.Queue[str] = queue.Queue()
        self.client.on_message = lambda _client, _data, message: self.messages.put(message)
        self.client.on_connect = lambda _c, _d, _flags, reason, _p: self.events.put(f"connect {reason}")
        self.client.on_subscribe = lambda _c, _d, _mid, _reasons, _p: self.events.put("subscribe")
        if door == "unix":
            self.client.connect(str(doors.unix), 1, 30)
        else:
            port = {"tcp": doors.gateway.port, "tls": doors.tls, "ws": doors.websocket, "wss": doors.secure}[door]
            self.client.connect("localhost" if door in ("tls", "wss") else "127.0.0.1", port, 30)
        self.client.loop_start()
        assert self.events.get(timeout=WAIT) == "connect Success"

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.mark.parametrize("protocol", [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5])
@pytest.mark.parametrize("door", ["tcp", "tls", "ws", "wss", "unix"])
def test_paho(doors: Doors, door: str, protocol: int) -> None:
    subscriber, publisher = (Talker(doors, door, protocol, f"{door}-{name}") for name in "sp")
    try:
        subscriber.client.subscribe(f"paho/{door}/#", 2)
        assert subscriber.events.get(timeout=WAIT) == "subscribe"
        for number in range(100):
            publisher.client.publish(f"paho/{door}/{number % 3}", b"%d" % number, number % 3)
        # paho hands a QoS 2 message over when PUBREL arrives, so order holds within each QoS
        got = [subscriber.messages.get(timeout=WAIT) for _number in range(100)]
        for qos in range(3):
            assert [int(one.payload) for one in got if one.qos == qos] == list(range(qos, 100, 3))
        large = bytes(range(256)) * 4096
        publisher.client.publish(f"paho/{door}/large", large, 1).wait_for_publish(WAIT)
        assert subscriber.messages.get(timeout=WAIT).payload == large
    finally:
        subscriber.stop()
        publisher.stop()


# --- mqtt.js ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("scheme", ["ws", "wss", "mqtts"])
def test_mqtt_js(doors: Doors, scheme: str, version: int) -> None:
    if not (HERE / "node_modules" / "mqtt").is_dir():
        message = "mqtt.js is not installed (make test-peers)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    port = {"ws": doors.websocket, "wss": doors.secure, "mqtts": doors.tls}[scheme]
    url = f"{scheme}://localhost:{port}" + ("/mqtt" if scheme != "mqtts" else "")
    if scheme == "ws":
        url = url.replace("localhost", "127.0.0.1")
    done = subprocess.run(
        [program("node"), str(HERE / "conversation.cjs"), "0", str(version), url, str(doors.authority.cafile)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert [topic for topic, *_rest in json.loads(done.stdout)["seen"]] == [
        "js/retained",
        "js/0",
        "js/1",
        "js/2",
        "js/end",
    ]


# --- Debian's mosquitto clients -----------------------------------------------------------------------------------


def mosquitto_pub(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program("mosquitto_pub"), "-q", "1", "-m", "hello", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT)


@pytest.mark.parametrize("version", ["mqttv31", "mqttv311", "mqttv5"])
@pytest.mark.parametrize("door", ["tls", "mutual", "unix"])
def test_mosquitto_clients(doors: Doors, door: str, version: str) -> None:
    cert, key = doors.authority.issue("device", common_name="device-7")
    trusting = ["-h", "localhost", "--cafile", str(doors.authority.cafile)]
    to_door = {
        "tls": [*trusting, "-p", str(doors.tls)],
        "mutual": [*trusting, "-p", str(doors.mutual), "--cert", str(cert), "--key", str(key)],
        "unix": ["--unix", str(doors.unix)],
    }[door]
    topic = f"mosquitto/{door}/{version}"
    command = ["stdbuf", "-oL", program("mosquitto_sub"), "-d", "-V", version, "-t", topic, "-C", "1", "-F", "=%p"]
    with subprocess.Popen([*command, *to_door], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert any("Subscribed (mid" in line for line in process.stdout)
            done = mosquitto_pub(*to_door, "-V", version, "-t", topic)
            assert done.returncode == 0, done.stderr
            assert "=hello" in [line.strip() for line in process.stdout]
        finally:
            process.kill()
    if door == "mutual":
        assert "u'device-7')" in doors.lines()


def test_certificates_that_are_missing_revoked_or_strange_are_refused(doors: Doors, tmp_path: Path) -> None:
    to_door = ["-h", "localhost", "-p", str(doors.mutual), "--cafile", str(doors.authority.cafile)]
    revoked = doors.authority.folder / "revoked.pem", doors.authority.folder / "revoked.key"
    stranger = Authority(tmp_path).issue("stranger", common_name="device-7")
    to_door += ["-t", "t"]
    assert mosquitto_pub(*to_door).returncode != 0
    for cert, key in (revoked, stranger):
        assert mosquitto_pub(*to_door, "--cert", str(cert), "--key", str(key)).returncode != 0
    lines = doors.lines()
    assert "the client shows no certificate (require_certificate)" in lines
    assert "the client's certificate is not accepted: certificate revoked" in lines
    assert "Traceback" not in lines


# --- openssl, curl ------------------------------------------------------------------------------------------------


def s_client(doors: Doors, *arguments: str) -> str:
    command = [
        program("openssl"),
        "s_client",
        "-connect",
        f"127.0.0.1:{doors.tls}",
        "-CAfile",
        str(doors.authority.cafile),
    ]
    done = subprocess.run([*command, *arguments], input="", capture_output=True, text=True, timeout=WAIT)
    return done.stdout + done.stderr


def test_openssl_sees_both_versions_and_the_certificate_it_asks_for(doors: Doors) -> None:
    assert "Protocol  : TLSv1.2" in s_client(doors, "-tls1_2", "-servername", "localhost")
    assert "New, TLSv1.3" in s_client(doors, "-tls1_3", "-servername", "localhost")
    assert "Verification: OK" in s_client(doors, "-verify_hostname", "other.example", "-servername", "other.example")
    assert "no peer certificate available" in s_client(doors, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")


def test_curl_at_any_door_is_told_or_named(doors: Doors) -> None:
    curl = [program("curl"), "-sS", "-i", "-m", "5"]
    websocket = [*curl, f"http://127.0.0.1:{doors.websocket}/mqtt"]
    done = subprocess.run(websocket, capture_output=True, text=True, timeout=WAIT)
    assert done.stdout.startswith("HTTP/1.1 426 ")
    for url in (f"http://127.0.0.1:{doors.gateway.port}", f"https://127.0.0.1:{doors.gateway.port}"):
        assert subprocess.run([*curl, url], capture_output=True, timeout=WAIT).returncode != 0
    assert subprocess.run([*curl, f"http://127.0.0.1:{doors.tls}"], capture_output=True, timeout=WAIT).returncode != 0
    lines = doors.lines()
    assert "heard HTTP; this listener speaks MQTT" in lines
    assert "heard a TLS handshake, but this listener has no certificate" in lines
    assert "heard plain HTTP, but this listener speaks TLS" in lines


# --- a proxy, and new certificates --------------------------------------------------------------------------------


def tls_socket(doors: Doors, port: int, opening: bytes = b"", host: str = "localhost") -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
    sock.sendall(opening)
    return ssl.create_default_context(cafile=str(doors.authority.cafile)).wrap_socket(sock, server_hostname=host)


CONNECT = bytes.fromhex("100d00044d5154540402003c000163")


def test_a_proxy_header_may_stand_before_tls(doors: Doors) -> None:
    with tls_socket(doors, doors.proxied, PROXY_V1) as sock:
        sock.sendall(CONNECT)
        assert sock.recv(4) == bytes.fromhex("20020000")
    assert "New client connected from 192.0.2.7:4711 as c " in doors.lines()


def test_certificates_are_renewed_on_sighup_without_dropping_anyone(doors: Doors) -> None:
    def served() -> set[str]:
        with tls_socket(doors, doors.tls) as sock:
            certificate: Any = sock.getpeercert()
            return {value for _kind, value in certificate["subjectAltName"]}

    def hang_up(expected: str) -> None:
        size = len(doors.lines())
        doors.gateway.signal("broker", signal.SIGHUP)
        deadline = time.monotonic() + WAIT
        while expected not in doors.lines()[size:]:
            assert time.monotonic() < deadline, doors.lines()[size:]
            time.sleep(0.01)

    assert served() == {"localhost", "127.0.0.1"}
    with tls_socket(doors, doors.tls) as connected:
        connected.sendall(CONNECT)
        assert connected.recv(4) == bytes.fromhex("20020000")
        key = doors.authority.folder / "server.key"
        good = key.read_bytes()
        key.write_text("rubbish")
        hang_up(f"The configuration stays as it was. Error: keyfile: {key} cannot be used")
        assert served() == {"localhost", "127.0.0.1"}
        key.write_bytes(good)
        doors.authority.issue("server", "localhost", "renewed.example")
        hang_up("The new configuration is in use.")
        assert served() == {"localhost", "renewed.example"}
        connected.sendall(b"\xc0\x00")
        assert connected.recv(2) == b"\xd0\x00"
    doors.authority.issue("server", "localhost", "127.0.0.1")
    hang_up("The new configuration is in use.")
