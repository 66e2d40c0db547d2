"""What each door costs: memory for each idle connection, and processor time for each message, ours and theirs."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import trustme

from benchmarks import brokers
from benchmarks.machine import describe
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V3_1_1, Connect, Publish, Subscribe, SubscriptionRequest

CONNECTIONS = 500
MESSAGES = 20_000
_TURN = 100  # messages on their way at once
_DOORS = ("tcp", "tls", "websocket", "secure websocket")
_REQUEST = (
    b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
)


def main(connections: int = CONNECTIONS, messages: int = MESSAGES) -> None:
    """Print a line for each broker and door."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    print(describe())
    print(f"{'broker':<12}{'door':<18}{'KiB each of ' + str(connections):>18}{'CPU µs a message':>18}{'idle MiB':>10}")
    for program in brokers.both():
        with tempfile.TemporaryDirectory(prefix="lockgate-bench-") as folder:
            ca = trustme.CA()
            issued = ca.issue_cert("localhost")
            issued.private_key_and_cert_chain_pem.write_to_path(f"{folder}/server.pem")
            context = ssl.create_default_context()
            ca.configure_trust(context)
            for door in _DOORS:
                try:
                    with _running(program, Path(folder), door) as (pid, port):
                        broker = brokers.Running(program.name, pid, port, 0.0, Path(folder))
                        tls = context if door in ("tls", "secure websocket") else None
                        _measure(broker, door, tls, connections, messages)
                except (OSError, RuntimeError) as error:  # a mosquitto without WebSocket
                    print(f"{program.name:<12}{door:<18}: {error}")


def _measure(broker: brokers.Running, door: str, tls: ssl.SSLContext | None, connections: int, messages: int) -> None:
    framed = "websocket" in door
    first = _open(broker.port, "first", tls, framed)  # what is loaded once is not counted
    idle = broker.resident_bytes()
    sockets = [_open(broker.port, f"device-{number:05d}", tls, framed) for number in range(connections)]
    full = broker.resident_bytes()
    message = _frame(encode(Publish("device/first", b"x" * 64), V3_1_1), framed)
    answer_bytes = len(encode(Publish("device/first", b"x" * 64), V3_1_1)) + (2 if framed else 0)
    used = broker.cpu_seconds()
    for _turn in range(messages // _TURN):
        for _number in range(_TURN):
            sockets[0].sendall(message)
        _receive(first, _TURN * answer_bytes, framed, _TURN)
    used = broker.cpu_seconds() - used
    each = (full - idle) / connections / 1024
    print(f"{broker.name:<12}{door:<18}{each:>18.2f}{used / messages * 1e6:>18.1f}{idle / 2**20:>10.1f}", flush=True)
    for sock in (first, *sockets):
        sock.close()


def _receive(sock: socket.socket, count: int, framed: bool, messages: int) -> None:
    """Read until all messages are there; in WebSocket one frame may hold several, so their heads count for little."""
    least = count - 2 * messages if framed else count
    got = 0
    while got < least:
        data = sock.recv(65536)
        if not data:
            raise RuntimeError("the broker closed")
        got += len(data)


def _open(port: int, client_id: str, tls: ssl.SSLContext | None, framed: bool) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        sock = tls.wrap_socket(sock, server_hostname="localhost")
    if framed:
        sock.sendall(_REQUEST)
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)
    sock.sendall(_frame(encode(Connect(client_id, V3_1_1), V3_1_1), framed))
    sock.recv(100)
    request = Subscribe(1, [SubscriptionRequest(f"device/{client_id}", 0)])
    sock.sendall(_frame(encode(request, V3_1_1), framed))
    sock.recv(100)
    return sock


def _frame(data: bytes, framed: bool) -> bytes:
    """Give a binary frame whose mask changes nothing."""
    return bytes((0x82, 0x80 | len(data), 0, 0, 0, 0)) + data if framed else data


@contextlib.contextmanager
def _running(program: brokers.Program, folder: Path, door: str) -> Iterator[tuple[int, int]]:
    """Start a broker with one door on one core; gives its process and port."""
    port = brokers.free_port()
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "log_type error", "max_queued_messages 0"]
    lines += ["protocol websockets"] if "websocket" in door else []
    lines += (
        [f"certfile {folder}/server.pem", f"keyfile {folder}/server.pem"] if "tls" in door or "secure" in door else []
    )
    lines += ["user root"] if program.name == "mosquitto" and os.geteuid() == 0 else []
    (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    (folder / "lockgate.toml").write_text(
        f'[gateway]\nid = "bench"\ndata_dir = "{folder}"\n[broker]\nmosquitto_conf = "mosquitto.conf"\n'
    )
    command = [part.format(folder=folder) for part in program.command]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        preexec_fn=lambda: os.sched_setaffinity(0, {brokers.BROKER_CORE}),
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{program.name} does not listen") from None
                time.sleep(0.01)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(5)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
