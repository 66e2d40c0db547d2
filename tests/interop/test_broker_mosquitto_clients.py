"""Debian's mosquitto_pub, mosquitto_sub and mosquitto_rr against our broker."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.gateway import Gateway
from tests.support.peers import program

pytestmark = pytest.mark.peers
VERSIONS = ["mqttv31", "mqttv311", "mqttv5"]


def command(name: str, broker: Gateway, *arguments: str) -> list[str]:
    return [program(name), "-p", str(broker.port), *arguments]


def pub(broker: Gateway, *arguments: str) -> None:
    done = subprocess.run(command("mosquitto_pub", broker, *arguments), capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, done.stderr


@contextmanager
def sub(broker: Gateway, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run mosquitto_sub, and go on once it is subscribed: its debug output says so."""
    with subprocess.Popen(
        ["stdbuf", "-oL", *command("mosquitto_sub", broker, "-d", *arguments)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Subscribed (mid" in line:
                break
        try:
            yield process
            process.wait(10)
        finally:
            process.kill()


def payloads(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return [line.strip() for line in process.stdout if line.startswith("=")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_publish_and_subscribe(broker: Gateway, version: str, qos: str) -> None:
    with sub(broker, "-V", version, "-q", qos, "-t", "house/+/temp", "-F", "=%t %q %p", "-C", "2") as process:
        pub(broker, "-V", version, "-q", qos, "-t", "house/kitchen/temp", "-m", "21.5")
        pub(broker, "-V", version, "-q", qos, "-t", "house/cellar/temp", "-n")
        assert payloads(process) == [f"=house/kitchen/temp {qos} 21.5", f"=house/cellar/temp {qos}"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_durable_session_gets_what_came_while_it_was_away(broker: Gateway, version: str) -> None:
    durable = ["-V", version, "-i", "durable", "-c", "-q", "1", "-t", "t"]
    if version == "mqttv5":
        durable += ["-x", "100"]
    with sub(broker, *durable, "-E"):
        pass
    for number in range(50):
        pub(broker, "-q", "1", "-t", "t", "-m", str(number))
    done = subprocess.run(
        command("mosquitto_sub", broker, *durable, "-C", "50", "-W", "5"), capture_output=True, text=True, timeout=10
    )
    assert done.stdout.split() == [str(number) for number in range(50)]


@pytest.mark.parametrize("version", VERSIONS)
def test_retained_and_removed(broker: Gateway, version: str) -> None:
    pub(broker, "-V", version, "-t", "state", "-m", "on", "-r")
    read = command("mosquitto_sub", broker, "-V", version, "-t", "#", "-F", "%t %r %p", "-W", "1", "--retained-only")
    assert subprocess.run([*read, "-C", "1"], capture_output=True, text=True, timeout=5).stdout == "state 1 on\n"
    pub(broker, "-V", version, "-t", "state", "-n", "-r")
    assert subprocess.run(read, capture_output=True, text=True, timeout=5).stdout == ""


def test_a_will_is_sent_when_a_client_is_killed(broker: Gateway) -> None:
    with sub(broker, "-t", "will/#", "-F", "=%t %p", "-C", "1") as watcher:
        dying = ["-i", "dying", "-t", "x", "--will-topic", "will/dying", "--will-payload", "gone"]
        with sub(broker, *dying) as victim:
            victim.kill()  # stdbuf has become mosquitto_sub
        assert payloads(watcher) == ["=will/dying gone"]


def test_shared_subscriptions_share(broker: Gateway) -> None:
    arguments = ["-q", "1", "-t", "$share/g/work", "-F", "=%p", "-C", "5"]
    with sub(broker, *arguments) as first, sub(broker, *arguments) as second:
        for number in range(10):
            pub(broker, "-q", "1", "-t", "work", "-m", str(number))
        taken = payloads(first), payloads(second)
    assert sorted(taken[0] + taken[1]) == [f"={number}" for number in range(10)]
    assert len(taken[0]) == len(taken[1]) == 5


def test_request_and_response(broker: Gateway) -> None:
    with sub(broker, "-V", "mqttv5", "-t", "question", "-F", "=%R", "-C", "1") as service:
        rr = command("mosquitto_rr", broker, "-t", "question", "-e", "answer/me", "-m", "?", "-W", "5")
        with subprocess.Popen(rr, stdout=subprocess.PIPE, text=True) as asking:
            assert payloads(service) == ["=answer/me"]
            pub(broker, "-t", "answer/me", "-m", "42")
            assert asking.communicate(timeout=10)[0].strip() == "42"


def test_a_thousand_messages_by_line_arrive_in_order(broker: Gateway) -> None:
    with sub(broker, "-q", "2", "-t", "lines", "-F", "=%p", "-C", "1000") as process:
        text = "".join(f"{number}\n" for number in range(1000))
        done = subprocess.run(
            command("mosquitto_pub", broker, "-q", "2", "-t", "lines", "-l"), input=text, text=True, timeout=20
        )
        assert done.returncode == 0
        assert payloads(process) == [f"={number}" for number in range(1000)]
