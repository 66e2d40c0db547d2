"""What Debian's programs have not got or cannot show side by side: newer options, the options file, lost servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.gateway import Gateway
from tests.support.peers import Mosquitto, free_port, program

pytestmark = pytest.mark.peers

HOMELESS = {name: value for name, value in os.environ.items() if name not in ("XDG_CONFIG_HOME", "HOME")}
HOMELESS["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    peer = Mosquitto(tmp_path_factory.mktemp("mosquitto"))
    yield peer
    peer.stop()


def run(words: str | list[str], stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    name, *arguments = words.split() if isinstance(words, str) else words
    command = [sys.executable, "-m", "lockgate", f"mosquitto_{name}", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=30, env=HOMELESS | environment)


def start(words: str) -> subprocess.Popen[bytes]:
    name, *arguments = words.split()
    command = [sys.executable, "-m", "lockgate", f"mosquitto_{name}", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=HOMELESS
    )


def line(process: subprocess.Popen[bytes]) -> bytes:
    """The next line it prints; pytest's timeout is the limit."""
    assert process.stdout is not None
    return process.stdout.readline()


def end(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    process.terminate()
    out, err = process.communicate(timeout=10)
    return process.returncode, out, err


# --- options that 2.0.11 has not got ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "payload", "printed"),
    [
        ("%.2x", "hello", b"68 65 6c 6c 6f"),
        ("%.2:X", "hello", b"68:65:6C:6C:6F"),
        ("%.4-x", "hello", b"6865-6c6c-6f"),
        ("%12x", "hello", b"  68656c6c6f"),
        ("%f", "\x00\x00\x20A", b"10.000000"),
        ("%8.2f|", "\x00\x00\x20A", b"   10.00|"),
        ("%-8.1d|", "\x00\x00\x00\x00\x00\x00\x24@", b"10.0    |"),
    ],
)
def test_newer_formats(mosquitto: Mosquitto, form: str, payload: str, printed: bytes) -> None:
    topic, at = uuid.uuid4().hex, ["-h", "127.0.0.1", "-p", str(mosquitto.port)]
    assert run(["pub", *at, "-t", topic, "-r", "-s"], payload.encode("latin-1")).returncode == 0
    got = run(["sub", *at, "-t", topic, "-C", "1", "-W", "5", "-F", form])
    assert (got.returncode, got.stdout) == (0, printed + b"\n")


def test_a_payload_that_is_no_float_is_told(mosquitto: Mosquitto) -> None:
    at = f"-h 127.0.0.1 -p {mosquitto.port} -t {uuid.uuid4().hex}"
    assert run(f"pub {at} -r -m no").returncode == 0
    got = run(f"sub {at} -C 1 -W 5 -F %f")
    assert b"not a float of 4 bytes" in got.stderr


def test_retain_handling_decides_whether_retained_messages_come(mosquitto: Mosquitto) -> None:
    at = f"-h 127.0.0.1 -p {mosquitto.port} -t {uuid.uuid4().hex}"
    assert run(f"pub {at} -r -m kept").returncode == 0
    assert run(f"sub {at} -V 5 --retain-handling always -C 1 -W 5").stdout == b"kept\n"
    assert run(f"sub {at} -V 5 --retain-handling never -W 1").stdout == b""
    wrong = run(f"sub {at} --retain-handling sometimes")
    assert (wrong.returncode, b"always, new or never" in wrong.stderr) == (1, True)


def test_a_random_filter_of_100_prints_every_message(mosquitto: Mosquitto) -> None:
    """2.0.11 prints some of them, now and then."""
    topic, at = uuid.uuid4().hex, f"-h 127.0.0.1 -p {mosquitto.port}"
    durable = f"sub {at} -t {topic} -i {uuid.uuid4().hex} -c -q 1"
    assert run(f"{durable} -E").returncode == 0
    assert run(f"pub {at} -t {topic} -m x --repeat 50 -q 1").returncode == 0
    assert run(f"{durable} --random-filter 100 -C 50 -W 5").stdout == b"x\n" * 50
    assert run(f"pub {at} -t {topic} -m x --repeat 50 -q 1").returncode == 0
    few = run(f"{durable} --random-filter 0.1 -W 1")
    assert (few.returncode, len(few.stdout) < 20) == (27, True)


def test_the_rate_is_counted_every_second(mosquitto: Mosquitto) -> None:
    at = f"-h 127.0.0.1 -p {mosquitto.port} -t {uuid.uuid4().hex}"
    counting = start(f"sub {at} --message-rate -d")
    while b"Subscribed" not in line(counting):
        pass
    assert run(f"pub {at} -m x --repeat 5 -q 1").returncode == 0
    counted = 0
    while counted < 5:
        told = line(counting).strip()
        counted += int(told) if told.isdigit() else 0
    assert end(counting)[0] == 0
    assert counted == 5


def test_watching_gives_each_topic_its_row(mosquitto: Mosquitto) -> None:
    topic, at = uuid.uuid4().hex, f"-h 127.0.0.1 -p {mosquitto.port}"
    durable = f"sub {at} -t {topic}/# -i {uuid.uuid4().hex} -c -q 1"
    assert run(f"{durable} -E").returncode == 0
    for name, text in (("a", "1"), ("b", "2"), ("a", "3")):
        assert run(f"pub {at} -t {topic}/{name} -m {text} -q 1").returncode == 0
    got = run(f"{durable} --watch -C 3 -W 5").stdout
    assert got == b"\x1b[2J\x1b[1;1H\x1b[2K1\x1b[2;1H\x1b[2K2\x1b[1;1H\x1b[2K3"


def test_latency_is_printed_before_the_response(mosquitto: Mosquitto) -> None:
    topic = uuid.uuid4().hex
    got = run(f"rr -h 127.0.0.1 -p {mosquitto.port} -t {topic} -e {topic} -m x -W 5 --latency").stdout
    assert got.startswith(b"Latency: ")
    assert got.endswith(b" ms\nx\n")


def test_websocket_unix_socket_and_url(tmp_path: Path) -> None:
    web, unix = free_port(), tmp_path / "s"
    lines = [f"listener {web} 127.0.0.1", "protocol websockets", f"listener 0 {unix}"]
    with Gateway(tmp_path, mosquitto_conf=lines).running("broker"):
        assert run(f"pub -h 127.0.0.1 -p {web} --ws -t t -r -q 1 -m w").returncode == 0
        assert run(f"sub -L ws://127.0.0.1:{web}/t -C 1 -W 5").stdout == b"w\n"
        assert run(f"sub --unix {unix} -t t -C 1 -W 5").stdout == b"w\n"


@pytest.mark.parametrize("name", ["pub -m x", "sub", "rr -m x -e r"])
def test_a_certificate_that_is_not_trusted_is_told(tmp_path: Path, name: str) -> None:
    """Mosquitto says `A TLS error occurred.`, with one of two statuses, as the packets happen to come."""
    certfile, keyfile = Authority(tmp_path).issue("server", "localhost")
    port = free_port()
    lines = [f"listener {port} 127.0.0.1", f"certfile {certfile}", f"keyfile {keyfile}"]
    peer = Mosquitto(tmp_path, lines)
    try:
        got = run(f"{name} -h localhost -p {port} --tls-use-os-certs -t t")
    finally:
        peer.stop()
    assert got.returncode == 8
    assert got.stderr.startswith(b"Error: A TLS error occurred: the server's certificate is not accepted")


def test_psk_and_engines_are_refused_by_name(mosquitto: Mosquitto) -> None:
    at = f"-h 127.0.0.1 -p {mosquitto.port} -t t -m x"
    for words, told in (
        ("--psk 12 --psk-identity a", b"TLS-PSK is not available"),
        ("--cafile /dev/null --tls-engine tpm", b"Engines are not available"),
        ("-S", b"SRV"),
    ):
        refused = run(f"pub {at} {words}")
        assert (refused.returncode, told in refused.stderr) == (1, True), refused


# --- the options file ------------------------------------------------------------------------------------------------


def test_options_come_from_the_users_file_and_the_command_line_wins(mosquitto: Mosquitto, tmp_path: Path) -> None:
    topic = uuid.uuid4().hex
    (tmp_path / "mosquitto_pub").write_text(f"# ours\n-h 127.0.0.1\n-p {mosquitto.port}\n\n-t {topic}\n-r\n-q 1\n")
    (tmp_path / ".config").mkdir()
    (tmp_path / ".config" / "mosquitto_sub").write_text(f"-h 127.0.0.1\n-p {mosquitto.port}\n-W 5\n-C 1\n-t {topic}\n")
    assert run(["pub", "-m", "by file"], XDG_CONFIG_HOME=str(tmp_path)).returncode == 0
    assert run(["sub", "-v"], HOME=str(tmp_path)).stdout == f"{topic} by file\n".encode()
    other = run(["pub", "-m", "x", "-p", str(free_port())], XDG_CONFIG_HOME=str(tmp_path))
    assert other.stderr == b"Error: Connection refused\n"
    named = run(["sub", "-o", str(tmp_path / ".config" / "mosquitto_sub"), "-N"])
    assert named.stdout == b"by file"


def test_a_wrong_line_of_the_file_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "mosquitto_pub").write_text("-t a\n-q 7\n")
    wrong = run("pub -m x", XDG_CONFIG_HOME=str(tmp_path))
    assert wrong.returncode == 1
    assert b"Invalid QoS given: 7" in wrong.stderr
    assert f"{tmp_path}/mosquitto_pub:2".encode() in wrong.stderr
    assert b"Unable to open" in run(f"pub -o {tmp_path}/none -t a -m x").stderr


def test_property_lines_of_the_file_keep_blanks_in_their_value(mosquitto: Mosquitto, tmp_path: Path) -> None:
    topic = uuid.uuid4().hex
    text = f"-h 127.0.0.1\n-p {mosquitto.port}\n-D publish content-type two words\n-D publish user-property k a b c\n"
    (tmp_path / "mosquitto_pub").write_text(text)
    assert run(f"pub -t {topic} -m x -r -q 1", XDG_CONFIG_HOME=str(tmp_path)).returncode == 0
    got = run(f"sub -h 127.0.0.1 -p {mosquitto.port} -t {topic} -V 5 -C 1 -W 5 -F %C|%P")
    assert got.stdout == b"two words|k:a b c\n"


# --- servers that come and go, signals -------------------------------------------------------------------------------


def test_a_subscriber_comes_back_and_lines_are_not_lost(tmp_path: Path) -> None:
    peer = Mosquitto(tmp_path)
    at = f"-h 127.0.0.1 -p {peer.port} -t t -q 1"
    hearing, telling = start(f"sub {at} -d"), start(f"pub {at} -l -d")
    assert telling.stdin is not None
    for process, told in ((hearing, b"Subscribed"), (telling, b"CONNACK")):
        while told not in line(process):
            pass
    peer.kill()
    telling.stdin.write(b"while away\n")
    telling.stdin.flush()
    peer.start()
    try:
        seen: list[bytes] = []
        while seen[-1:] != [b"while away\n"]:
            seen.append(line(hearing))
            if seen.count(b"Subscribed (mid: 2): 1\n") and b"again\n" not in seen and telling.stdin is not None:
                telling.stdin.write(b"again\n")
                telling.stdin.flush()
                break
        while b"again\n" not in seen:
            seen.append(line(hearing))
        telling.stdin.close()
        telling.stdin = None
        assert telling.wait(10) == 0
        assert end(hearing)[0] == 0
    finally:
        peer.stop()
        for process in (hearing, telling):
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_subscriber_with_disconnect(mosquitto: Mosquitto, number: signal.Signals) -> None:
    hearing = start(f"sub -h 127.0.0.1 -p {mosquitto.port} -t t -d -i c")
    while b"Subscribed" not in line(hearing):
        pass
    hearing.send_signal(number)
    out, err = hearing.communicate(timeout=10)
    assert (hearing.returncode, out, err) == (0, b"Client c sending DISCONNECT\n", b"")


def test_a_closed_pipe_ends_a_subscriber(mosquitto: Mosquitto) -> None:
    topic, at = uuid.uuid4().hex, f"-h 127.0.0.1 -p {mosquitto.port}"
    hearing = start(f"sub {at} -t {topic} -d")
    while b"Subscribed" not in line(hearing):
        pass
    assert hearing.stdout is not None
    hearing.stdout.close()
    assert run(f"pub {at} -t {topic} -m x -q 1").returncode == 0
    assert hearing.wait(10) == -signal.SIGPIPE
    assert hearing.stderr is not None
    assert hearing.stderr.read() == b""
    hearing.stderr.close()
    assert hearing.stdin is not None
    hearing.stdin.close()


@pytest.mark.parametrize(
    ("answer", "words", "status", "told"),
    [
        (b"", "pub -q 1", 7, b"Error: The connection was lost.\n"),
        (b"\x20\x02\x00\x00", "pub -q 1", 7, b"Error: The connection was lost.\n"),
        (b"\x20\x03\x00\x00\x00", "pub", 2, b"Error: A network protocol error occurred"),
        (
            b"\x20\x03\x00\x00\x00\xe0\x02\x8b\x00",
            "pub -q 1 -V 5",
            4,
            b"Error: The client is not currently connected.\n",
        ),
        (b"\x20\x02\x00\x02", "pub", 2, b"Connection error: Connection Refused: identifier rejected.\n"),
    ],
)
def test_a_server_that_ends_it_is_told(answer: bytes, words: str, status: int, told: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(answer)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1000):
                    pass

        serving = threading.Thread(target=serve)
        serving.start()
        got = run(f"{words} -h 127.0.0.1 -p {server.getsockname()[1]} -t t -m x")
        serving.join()
    assert got.returncode == status
    assert got.stderr.startswith(told)


def test_all_subscriptions_denied_is_told() -> None:
    def serve(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            client.recv(1000)
            client.sendall(b"\x20\x02\x00\x00")
            client.recv(1000)
            client.sendall(b"\x90\x03\x00\x01\x80")
            while client.recv(1000):
                pass

    said = []
    for command in ([program("mosquitto_sub")], [sys.executable, "-m", "lockgate", "mosquitto_sub"]):
        with socket.create_server(("127.0.0.1", 0)) as server:
            serving = threading.Thread(target=serve, args=(server,))
            serving.start()
            words = [*command, "-h", "127.0.0.1", "-p", str(server.getsockname()[1]), "-t", "t", "-d", "-i", "c"]
            said.append(subprocess.run(words, capture_output=True, timeout=20, env=HOMELESS))
            serving.join()
    theirs, ours = said
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


# --- by name ---------------------------------------------------------------------------------------------------------


def test_a_link_of_the_name_is_the_program(mosquitto: Mosquitto, tmp_path: Path) -> None:
    link = tmp_path / "mosquitto_pub"
    link.write_text(f"#!{sys.executable}\nimport sys\nfrom lockgate.__main__ import main\nsys.exit(main())\n")
    link.chmod(0o755)
    words = [str(link), "-h", "127.0.0.1", "-p", str(mosquitto.port), "-t", "t", "-m", "x", "-d", "-i", "c"]
    done = subprocess.run(words, capture_output=True, env=HOMELESS, timeout=20)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, b"Client c sending CONNECT")


@pytest.mark.parametrize("name", ["pub", "sub", "rr"])
def test_help_and_version(name: str) -> None:
    told = run(f"{name} --help")
    assert (told.returncode, told.stderr) == (1, b"")  # as Mosquitto's
    assert b"--will-payload" in told.stdout
    assert run(f"{name} --version").stdout.startswith(f"mosquitto_{name} version ".encode())


def test_signal_reaches_the_process_it_names() -> None:
    waiting = subprocess.Popen([sys.executable, "-c", "print('up', flush=True); input()"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert waiting.stdout is not None
    waiting.stdout.readline()
    assert run(f"signal -p {waiting.pid} shutdown").returncode == 0
    assert waiting.wait(10) == -signal.SIGTERM
    waiting.communicate()
    gone = run(f"signal -p {waiting.pid} shutdown")
    assert (gone.returncode, b"No such process" in gone.stderr) == (1, True)


@pytest.mark.parametrize("words", ["", "-p x shutdown", "-p 0 shutdown", "-p 1", "-p 1 restart", "-p 1 xtreport"])
def test_a_signal_that_cannot_be_meant_is_told(words: str) -> None:
    wrong = run(f"signal {words}")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith(b"Error: ")


def test_a_full_disk_is_told_and_ends_the_program(mosquitto: Mosquitto) -> None:
    subprocess.run([program("mosquitto_pub"), "-p", str(mosquitto.port), "-t", "kept", "-m", "x", "-r"], check=True)
    command = [sys.executable, "-m", "lockgate", "mosquitto_sub", "-p", str(mosquitto.port), "-t", "kept"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=30, env=HOMELESS)
    assert (done.returncode, done.stderr) == (1, b"Error: Unable to write: No space left on device\n")
