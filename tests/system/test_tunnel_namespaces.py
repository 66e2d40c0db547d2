"""A home with no way in: devices of the world reach its broker through edge and connector, and by nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.namespaces import HOME, HOSTS, WORLD, Namespaces, namespaces
from tests.support.peers import program

_WSS_DEVICE = """
import sys, threading
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
ca, count = sys.argv[1], int(sys.argv[2])
client = paho.Client(CallbackAPIVersion.VERSION2, "wss-device", transport="websockets", protocol=paho.MQTTv5)
client.tls_set(ca)
client.username_pw_set("phone", "secret")
client.ws_set_options("/mqtt")
got, done, ready = [], threading.Event(), threading.Event()
def on_message(_c, _u, message):
    got.append(int(message.payload))
    if len(got) == count:
        done.set()
client.on_message = on_message
client.on_connect = lambda c, *_: c.subscribe("home/wss", 1)
client.on_subscribe = lambda *_: ready.set()
client.connect("home.example.org", 443)
client.loop_start()
assert ready.wait(20), "no SUBACK"
for n in range(count):
    client.publish("home/wss", str(n), 1)
assert done.wait(30), f"{len(got)} of {count} came back"
assert got == list(range(count))
client.disconnect()
print("all came back in order")
"""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Namespaces]:
    with namespaces(tmp_path) as made:
        yield made


def write_home(folder: Path, token: str, authority: Authority) -> Path:
    home = folder / "home"
    home.mkdir()
    (home / "mosquitto.conf").write_text(
        "listener 1883 127.0.0.1\nlistener 9001 127.0.0.1\nprotocol websockets\n"
        f"allow_anonymous false\npassword_file {home}/passwords\n"
    )
    subprocess.run(
        [sys.executable, "-m", "lockgate", "mosquitto_passwd", "-c", "-b", str(home / "passwords"), "phone", "secret"],
        check=True,
    )
    (home / "token").write_text(token)
    (home / "lockgate.toml").write_text(
        f"""
[gateway]
id = "home"
data_dir = "{home / "data"}"
[broker]
mosquitto_conf = "mosquitto.conf"
[connector]
token_file = "token"
ca_file = "{authority.cafile}"
[[connector.ingress]]
hostname = "home.example.org"
service = "ws://127.0.0.1:9001"
[[connector.ingress]]
hostname = "mqtt.example.org"
service = "tcp://127.0.0.1:1883"
[[connector.ingress]]
service = "http_status:404"
"""
    )
    return home / "lockgate.toml"


def write_edge(folder: Path, authority: Authority) -> Path:
    edge = folder / "edge"
    (edge / "edge" / "certificates").mkdir(parents=True)
    for name, target in (("edge", edge / "edge"), ("public", edge / "edge" / "certificates")):
        for file in authority.issue(name, *HOSTS):
            file.rename(target / file.name.replace("edge", "tunnel"))
    (edge / "lockgate.toml").write_text(
        f'[gateway]\nid = "edge"\ndata_dir = "{edge}"\n[edge]\npublic = ["edge.example.org:7844"]\n'
    )
    return edge / "lockgate.toml"


def lockgate(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "lockgate", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_devices_of_the_world_reach_a_home_without_an_open_port(machines: Namespaces, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    edge = write_edge(tmp_path, authority)
    said = lockgate("edge", "tunnel", "create", "home", "--host", "home.example.org", "-c", str(edge))
    target = ("--mqtts", "--target", "127.0.0.1:1883")
    lockgate("edge", "tunnel", "route", "home", "mqtt.example.org", *target, "-c", str(edge))
    home = write_home(tmp_path, said.strip().splitlines()[-1], authority)
    assert not machines.sends("world", HOME)
    with machines.capture("home") as came_in:
        machines.lockgate("world", "edge.log", "run", "edge", "-c", str(edge))
        machines.wait_for("edge.log", "edge is ready")
        machines.lockgate("home", "broker.log", "run", "broker", "-c", str(home))
        machines.wait_for("broker.log", "broker is ready")
        machines.lockgate("home", "connector.log", "run", "connector", "-c", str(home))
        machines.wait_for("connector.log", f"is registered at {WORLD}:7844", times=4)

        said = machines.run("world", sys.executable, "-c", _WSS_DEVICE, str(authority.cafile), "300")
        assert said == "all came back in order\n"

        who = ("-h", "mqtt.example.org", "-p", "8883", "--cafile", str(authority.cafile), "-u", "phone", "-P", "secret")
        listening = (
            "stdbuf",
            "-oL",
            program("mosquitto_sub"),
            *who,
            "-t",
            "home/mqtts",
            "-q",
            "1",
            "-C",
            "100",
            "-W",
            "40",
            "-d",
        )
        listener = machines.start("world", "sub.log", *listening)
        machines.wait_for("sub.log", "Subscribed")
        lines = "\n".join(str(n) for n in range(100))
        (tmp_path / "lines").write_text(f"{lines}\n")
        speaking = f"{program('mosquitto_pub')} {' '.join(who)} -t home/mqtts -q 1 -l < {tmp_path / 'lines'}"
        machines.run("world", "sh", "-c", speaking)
        assert listener.wait(40) == 0
        got = [line for line in (tmp_path / "sub.log").read_text().splitlines() if line.isdecimal()]
        assert got == [str(n) for n in range(100)]

        wrong = [word if word != "secret" else "wrong" for word in who]
        refused = subprocess.run(
            machines.command("world", program("mosquitto_pub"), *wrong, "-t", "t", "-m", "x"),
            check=False, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert "not authorised" in refused.stderr
    # Whatever came in answered what the connector had begun: no SYN without ACK, nothing but from the tunnel's port.
    assert came_in
    assert not [one for one in came_in if one[2] and not one[3]]
    assert {one[0] for one in came_in} == {7844}
