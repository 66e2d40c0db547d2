"""What other clients notice while one attacks: the latency of 200 messages a second beside it, for both brokers.

The attacker is a process of its own on the core of the load, and gives way to the one that measures.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks import brokers, load
from benchmarks.machine import describe
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V3_1_1, Connect, Publish, Subscribe, SubscriptionRequest, Unsubscribe

RATE = 200
SECONDS = 3.0


def connect_flood(port: int, until: float) -> None:
    """Connect and leave, as fast as it goes."""
    frame = encode(Connect("flood", V3_1_1), V3_1_1)
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.sendall(frame)


def slow_bytes(port: int, until: float) -> None:
    """Five hundred connections that send a CONNECT byte by byte, without end."""
    frame = encode(Connect("slow" * 1000, V3_1_1), V3_1_1)
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(500)]
    at = 0
    while time.monotonic() < until:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.send(frame[at : at + 1])
        at = (at + 1) % len(frame)


def takeover_loop(port: int, until: float) -> None:
    """Two clients with one Client Identifier that throw each other out."""
    frame = encode(Connect("same", V3_1_1, False), V3_1_1)
    sockets: list[socket.socket] = []
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", port), timeout=1)
            sock.sendall(frame)
            sockets.append(sock)
            if len(sockets) > 2:
                sockets.pop(0).close()


def wildcard_storm(port: int, until: float) -> None:
    """A thousand filters with wildcards, subscribed to and given up again and again."""
    sock = load.connect(port, "storm")
    filters = [f"+/{number}/+/#" for number in range(1000)]
    storm = encode(Subscribe(1, [SubscriptionRequest(one, 0) for one in filters]), V3_1_1)
    storm += encode(Unsubscribe(2, filters), V3_1_1)
    _repeat(sock, storm, until)


def deep_topics(port: int, until: float) -> None:
    """Topics of 200 levels, each another one, among filters of as many."""
    sock = load.connect(port, "deep")
    for number in range(100):
        levels = ["+"] * 200
        levels[number] = "x"
        load.subscribe(sock, "/".join(levels), 0)
    frames = [encode(Publish("/".join(random.choices("xy", k=200)), b""), V3_1_1) for _ in range(500)]
    _repeat(sock, b"".join(frames), until)


def huge_packets(port: int, until: float) -> None:
    """Messages of nearly two megabytes, that nobody gets."""
    _repeat(load.connect(port, "huge"), encode(Publish("huge", b"x" * 1_900_000), V3_1_1), until)


def small_packets(port: int, until: float) -> None:
    """Messages of no bytes, as many as the socket takes, each for five hundred subscriptions of the attacker."""
    readers = [load.connect(port, f"reader-{number}") for number in range(500)]
    for reader in readers:
        load.subscribe(reader, "small", 0)
    _repeat(load.connect(port, "small"), encode(Publish("small", b""), V3_1_1) * 5000, until)


def retained_flood(port: int, until: float) -> None:
    """Twenty thousand retained messages, asked for all together again and again."""
    sock = load.connect(port, "retainer")
    frames = b"".join(encode(Publish(f"flood/{number}", b"x", 0, True), V3_1_1) for number in range(20_000))
    sock.sendall(frames)
    _repeat(sock, encode(Subscribe(1, [SubscriptionRequest("flood/#", 0)]), V3_1_1), until)


def garbage(port: int, until: float) -> None:
    """Connections that send random bytes."""
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.sendall(random.randbytes(10_000))


ATTACKS: dict[str, Callable[[int, float], None]] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        connect_flood,
        slow_bytes,
        takeover_loop,
        wildcard_storm,
        deep_topics,
        huge_packets,
        small_packets,
        retained_flood,
        garbage,
    )
}


def _repeat(sock: socket.socket, data: bytes, until: float) -> None:
    """Send as much as the socket takes, and read whatever comes."""
    sock.setblocking(False)
    at = 0
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            at = (at + sock.send(data[at : at + 262_144])) % len(data)
        with contextlib.suppress(BlockingIOError):
            if not sock.recv(1_048_576):
                return


def main(seconds: float = SECONDS, attacks: Sequence[str] = tuple(ATTACKS)) -> None:
    """Print the latency of the others and the memory of the broker, without and under each attack."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    pair = load.Scenario("pairs", 1, 1, 0, False, seconds)
    programs = brokers.both()
    print(describe())
    print(f"{'attack':<18}", end="")
    for program in programs:
        print(f"{program.name + ' p50 µs':>18}{'p99 µs':>9}{'max µs':>9}{'lost':>6}{'MiB':>7}", end="")
    print()
    for name in ("none", *attacks):
        print(f"{name:<18}", end="")
        for program in programs:
            with brokers.running(program) as broker:
                attacker = _start(name, broker.port, seconds)
                try:
                    result = load.run_at_rate(broker, RATE, pair)
                except OSError:  # it lets nobody in any more
                    result = load.Result(pair, 0, seconds, missing=int(RATE * seconds))
                size = broker.resident_bytes() / 1024 / 1024
                if attacker is not None:
                    attacker.kill()
                    attacker.wait()
            if not result.latencies:
                print(f"{'nothing arrived':>18}{'':>9}{'':>9}{result.missing:>6}{size:>7.1f}", end="", flush=True)
                continue
            p50, p99, longest = (result.percentile(share) * 1e6 for share in (0.5, 0.99, 1.0))
            print(f"{p50:>18.0f}{p99:>9.0f}{longest:>9.0f}{result.missing:>6}{size:>7.1f}", end="", flush=True)
        print()


def _start(name: str, port: int, seconds: float) -> subprocess.Popen[bytes] | None:
    if name == "none":
        return None
    command = [sys.executable, "-m", "benchmarks.attacks", name, str(port), str(seconds + 5)]
    attacker = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, preexec_fn=lambda: os.nice(10), stdout=subprocess.PIPE
    )
    assert attacker.stdout is not None
    attacker.stdout.readline()  # it is about to begin
    time.sleep(0.5)
    return attacker


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print("attacking", flush=True)
        ATTACKS[sys.argv[1]](int(sys.argv[2]), time.monotonic() + float(sys.argv[3]))
    else:
        main(float(sys.argv[1]) if sys.argv[1:] else SECONDS)
