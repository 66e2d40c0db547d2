"""`lockgate pub` and `lockgate sub` against Debian's mosquitto, as a person calls them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.peers import Mosquitto, free_port, program

pytestmark = pytest.mark.peers

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    folder = tmp_path_factory.mktemp("mosquitto")
    passwords = folder / "passwords"
    subprocess.run([program("mosquitto_passwd"), "-b", "-c", str(passwords), "ann", "se:cr@t é"], check=True)
    peer = Mosquitto(folder, [f"password_file {passwords}", "queue_qos0_messages true"])
    yield peer
    peer.stop()


def lockgate(
    command: str, port: int, *arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-m", "lockgate", command, "-h", "127.0.0.1", "-p", str(port), *arguments]
    return subprocess.run(
        words, input=stdin, capture_output=True, timeout=30, env={**ENVIRONMENT, **(environment or {})}
    )


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_lines_arrive_at_mosquittos_subscriber_in_order(mosquitto: Mosquitto, version: str, qos: str) -> None:
    topic, client_id = uuid.uuid4().hex, uuid.uuid4().hex
    subscribe = [program("mosquitto_sub"), "-p", str(mosquitto.port), "-V", version, "-q", qos, "-t", topic]
    subscribe += ["-i", client_id, "-c", *(["-x", "60"] if version == "mqttv5" else [])]
    subprocess.run([*subscribe, "-E"], check=True, timeout=10)
    # Mosquitto 2.0.11's broker and subscriber fall out over more than 20 queued QoS 2 messages of version 5.
    count = 20 if (version, qos) == ("mqttv5", "2") else 250
    lines = b"".join(b"line %d\n" % number for number in range(count))
    sent = lockgate("pub", mosquitto.port, "-t", topic, "-q", qos, "-V", version, "-l", stdin=lines)
    assert (sent.returncode, sent.stderr) == (0, b"")
    got = subprocess.run([*subscribe, "-C", str(count), "-W", "10"], stdout=subprocess.PIPE, timeout=20)
    assert got.stdout == lines


def test_a_retained_message_is_printed_with_its_topic_and_counted(mosquitto: Mosquitto, tmp_path: Path) -> None:
    topic = uuid.uuid4().hex
    (tmp_path / "payload").write_bytes(b"from a file")
    assert lockgate("pub", mosquitto.port, "-t", f"{topic}/a", "-r", "-f", str(tmp_path / "payload")).returncode == 0
    assert lockgate("pub", mosquitto.port, "-t", f"{topic}/b", "-r", "-s", stdin=b"two\nlines").returncode == 0
    got = lockgate("sub", mosquitto.port, "-t", f"{topic}/+", "-v", "-C", "2", "-W", "10")
    assert got.returncode == 0
    assert sorted(got.stdout.split(f"{topic}/".encode())) == [b"", b"a from a file\n", b"b two\nlines\n"]
    only_b = lockgate("sub", mosquitto.port, "-t", f"{topic}/+", "-T", f"{topic}/a", "-N", "-C", "1", "-W", "10")
    assert only_b.stdout == b"two\nlines"
    assert lockgate("sub", mosquitto.port, "-t", f"{topic}/+", "-R", "-W", "0.3").returncode == 27
    assert lockgate("pub", mosquitto.port, "-t", f"{topic}/a", "-r", "-n").returncode == 0


def test_a_kept_session_gives_what_came_meanwhile(mosquitto: Mosquitto) -> None:
    topic, client_id = uuid.uuid4().hex, uuid.uuid4().hex
    keep = ["-t", topic, "-q", "1", "-i", client_id, "-c"]
    assert lockgate("sub", mosquitto.port, *keep, "-E").returncode == 0
    assert lockgate("pub", mosquitto.port, "-t", topic, "-q", "1", "-m", "x", "--repeat", "3").returncode == 0
    got = lockgate("sub", mosquitto.port, *keep, "-C", "3", "-W", "10")
    assert (got.returncode, got.stdout) == (0, b"x\nx\nx\n")


def test_the_password_comes_from_flag_file_or_environment_and_is_not_echoed(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    password = "se:cr@t é"
    (tmp_path / "password").write_text(password + "\n")
    send = ["-t", "t", "-m", "x", "-u", "ann"]
    assert lockgate("pub", mosquitto.port, *send, "-P", password).returncode == 0
    assert lockgate("pub", mosquitto.port, *send, "--pw-file", str(tmp_path / "password")).returncode == 0
    assert lockgate("pub", mosquitto.port, *send, environment={"LOCKGATE_PASSWORD": password}).returncode == 0
    refused = lockgate("pub", mosquitto.port, *send, "-P", "wrong-secret", "-d")
    assert refused.returncode == 5
    assert b"not authorized" in refused.stderr
    assert b"wrong-secret" not in refused.stderr + refused.stdout
    assert lockgate("pub", mosquitto.port, *send, "-P", "wrong", "-V", "mqttv5").returncode == 135


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("pub", "-t", "a/#", "-m", "x"), b"wildcard"),
        (("pub", "-t", "a", "-m", "x", "-P", "secret"), b"user name"),
        (("pub", "-t", "a", "-f", "/nowhere/at/all"), b"/nowhere/at/all"),
        (("pub", "-t", "a"), b"required"),
        (("pub", "-t", "a", "-m", "x", "-q", "3"), b"invalid choice"),
        (("sub", "-t", "a/#/b"), b"#"),
        (("sub", "-t", "a", "-c"), b"client id"),
        (("sub", "-t", "a", "-V", "mqttv31"), b"mqttv311"),
    ],
)
def test_wrong_flags_get_a_clear_answer(mosquitto: Mosquitto, arguments: tuple[str, ...], complaint: bytes) -> None:
    done = lockgate(arguments[0], mosquitto.port, *arguments[1:])
    assert done.returncode != 0
    assert complaint in done.stderr
    assert b"Traceback" not in done.stderr


def test_nobody_there_is_an_error_at_once() -> None:
    done = lockgate("pub", free_port(), "-t", "a", "-m", "x")
    assert done.returncode == 1
    assert b"Connect call failed" in done.stderr
    assert b"Traceback" not in done.stderr
