"""What it costs to keep messages on disk: rate and processor time, a lone message, wear, and a start after a crash."""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import brokers, load
from benchmarks.brokers import Program, Running
from benchmarks.machine import describe
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V3_1_1, Publish

PUBLISHERS = 200
PERSISTENT = "persistence true\npersistence_location {folder}/\n"
EACH_CHANGE = PERSISTENT + "autosave_on_changes true\nautosave_interval 1\n"
_AS_ROOT = "user root\n" if os.geteuid() == 0 else ""  # else it may not write in the folder
SESSIONS = 10_000
MESSAGES_EACH = 10
QUEUED = 900_000
_OFFLINE = load.Scenario("fan-in", PUBLISHERS, 1, 1, True)
_PINGREQ = b"\xc0\x00"
_LONE = 200  # messages, each sent when the one before is acknowledged


def main(seconds: float = 3.0, wear_seconds: float = 20.0) -> None:
    """Print one line for each broker and scenario."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    load.allow_files(SESSIONS)
    print(describe())
    ours, *peers = brokers.both()
    durable = [ours.saying("lockgate", PERSISTENT)]
    for peer in peers:
        durable += [
            peer.saying("mosquitto, defaults", _AS_ROOT + PERSISTENT),
            peer.saying("mosquitto, each change", _AS_ROOT + EACH_CHANGE),
        ]
    print(f"sync of 4 KiB on this disk: {_sync_seconds() * 1e3:.2f} ms (median)")
    print(f"\nQoS 1 from {PUBLISHERS} publishers for a durable session that is away, windows of 20")
    heads = f"{'acknowledged/s':>16}{'CPU s/M':>9}{'busy':>6}{'bytes/message':>15}{'ping p99 ms':>13}"
    print(f"{'':<24}{heads}{'left after kill -9':>20}")
    for program in durable:
        _rate(program, seconds)
    print(f"\nthe same until {QUEUED:,} messages wait, and all of them to the session when it returns")
    print(f"{'':<24}{'MiB before':>11}{'MiB after':>11}{'delivered/s':>13}")
    for program in durable[:2]:
        _long_queue(program)
    print("\none QoS 1 message at a time, each after the acknowledgement of the one before")
    print(f"{'':<24}{'p50 ms':>9}{'p99 ms':>9}")
    for program in durable:
        _lone(program)
    print("\nQoS 1 for 100 clean sessions that are connected, what persistence costs")
    _online(ours, seconds)
    print(f"\none retained QoS 0 message a second, of ten topics, for {wear_seconds:.0f} s")
    print(f"{'':<24}{'bytes an hour':>15}")
    for program in durable:
        _wear(program, wear_seconds)
    print(f"\nstart after kill -9 with {SESSIONS:,} sessions and {SESSIONS * MESSAGES_EACH:,} messages for them")
    _restart(durable[0])


def _sync_seconds() -> float:
    with tempfile.TemporaryFile() as file:
        taken = []
        for number in range(51):
            os.pwrite(file.fileno(), bytes(4096), number * 4096)
            before = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def _absent(broker: Running) -> None:
    """Leave a durable session that is subscribed to what all publishers say."""
    subscriber = load.connect(broker.port, "away", clean=False)
    load.subscribe(subscriber, _OFFLINE.topic_filter(0), 1)
    subscriber.close()


def _rate(program: Program, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="lockgate-bench-") as name:
        folder = Path(name)
        with brokers.running(program, folder) as broker:
            _absent(broker)
            acknowledged, took, used, written, ping = _publish(broker, seconds)
            broker.kill()
        with brokers.running(program, folder) as broker:
            left = _drain(broker, acknowledged)
    print(
        f"{program.name:<24}{acknowledged / took:>16,.0f}{used / acknowledged * 1e6:>9.2f}{used / took:>6.0%}"
        f"{written / acknowledged:>15,.0f}{ping * 1e3:>13.1f}{left / acknowledged:>20.1%}",
        flush=True,
    )


def _publish(broker: Running, seconds: float) -> tuple[int, float, float, int, float]:
    """Publish as fast as windows allow.

    Gives acknowledgements, seconds, processor seconds, bytes written, and the p99 of what another client's PINGREQ
    waited for its answer meanwhile, which counts the generator's own delays, too.
    """
    publishers = [load.Publisher(load.connect(broker.port, f"p{n}"), _OFFLINE, n) for n in range(PUBLISHERS)]
    by_fd = {publisher.sock.fileno(): publisher for publisher in publishers}
    poll = select.epoll()
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    other = load.connect(broker.port, "other")
    poll.register(other.fileno(), select.EPOLLIN)
    pings: list[float] = []
    written = broker.bytes_written()
    used = broker.cpu_seconds()
    started = time.perf_counter()
    until = started + seconds
    acknowledged = 0
    sent = sum(publisher.publish() for publisher in publishers)
    other.sendall(_PINGREQ)
    asked = time.perf_counter()
    while acknowledged < sent:
        for fd, _event in poll.poll(10):
            if fd == other.fileno():
                pings.append(time.perf_counter() - asked)
                other.recv(2, socket.MSG_WAITALL)
                other.sendall(_PINGREQ)
                asked = time.perf_counter()
                continue
            publisher = by_fd[fd]
            acknowledged += publisher.read()
            if time.perf_counter() < until:
                sent += publisher.publish()
    took = time.perf_counter() - started
    used = broker.cpu_seconds() - used
    written = broker.bytes_written() - written
    poll.close()
    for sock in (other, *(publisher.sock for publisher in publishers)):
        sock.close()
    return acknowledged, took, used, written, sorted(pings)[len(pings) * 99 // 100]


def _long_queue(program: Program) -> None:
    with brokers.running(program) as broker:
        _absent(broker)
        before = broker.resident_bytes()
        queued = 0
        while queued < QUEUED:
            queued += _publish(broker, 1.0)[0]
        after = broker.resident_bytes()
        started = time.perf_counter()
        delivered = _drain(broker, QUEUED)
        rate = delivered / (time.perf_counter() - started)
    print(f"{program.name:<24}{before / 2**20:>11.1f}{after / 2**20:>11.1f}{rate:>13,.0f}", flush=True)


def _drain(broker: Running, most: int) -> int:
    """Count what the absent session gets when it returns."""
    sock = load.connect(broker.port, "away", clean=False)
    sock.settimeout(2)
    subscriber = load.Subscriber(sock, _OFFLINE)
    count = 0
    try:
        while count < most:
            count += subscriber.read()
    except TimeoutError:
        pass
    finally:
        sock.close()
    return count


def _lone(program: Program) -> None:
    with brokers.running(program) as broker:
        _absent(broker)
        sock = load.connect(broker.port, "p")
        taken = []
        for number in range(_LONE):
            frame = encode(Publish("bench/00000", b"x" * 64, 1, packet_id=number % 100 + 1), V3_1_1)
            before = time.perf_counter()
            sock.sendall(frame)
            sock.recv(4, socket.MSG_WAITALL)
            taken.append(time.perf_counter() - before)
        sock.close()
    taken.sort()
    p50, p99 = taken[_LONE // 2], taken[_LONE * 99 // 100]
    print(f"{program.name:<24}{p50 * 1e3:>9.2f}{p99 * 1e3:>9.2f}", flush=True)


def _online(ours: Program, seconds: float) -> None:
    scenario = load.Scenario("pairs", 100, 100, 1, True, seconds)
    costs: list[float] = []
    for program in (ours.saying("on disk", PERSISTENT), ours.saying("in memory", "persistence false\n")):
        best = float("inf")
        for _round in range(3):
            with brokers.running(program) as broker:
                best = min(best, load.run(scenario, broker).cpu_per_million)
        costs.append(best)
        print(f"persistence {program.name:<12}{best:>9.2f} CPU s/M", flush=True)
    print(f"{'ratio':<24}{costs[0] / costs[1]:>9.2f}")


def _wear(program: Program, seconds: float) -> None:
    with brokers.running(program) as broker:
        sock = load.connect(broker.port, "house")
        before = broker.bytes_written()
        for number in range(int(seconds)):
            sock.sendall(encode(Publish(f"house/{number % 10}", b"%06d" % number, 0, True), V3_1_1))
            time.sleep(1)
        written = broker.bytes_written() - before
        sock.close()
        more = ""
        status = _store_status(broker)
        if status is not None:
            more = f"   {status['commits']} syncs, {3600 * status['commits'] / seconds:,.0f} an hour"
    print(f"{program.name:<24}{written * 3600 / seconds:>15,.0f}{more}", flush=True)


def _store_status(broker: Running) -> dict[str, int] | None:
    path = broker.folder / "run" / "broker.sock"
    if not path.exists():
        return None
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"\n")
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    found: dict[str, int] = json.loads(answer)["status"]["store"]
    return found


def _restart(program: Program) -> None:
    with tempfile.TemporaryDirectory(prefix="lockgate-bench-") as name:
        folder = Path(name)
        with brokers.running(program, folder) as broker:
            for number in range(SESSIONS):
                sock = load.connect(broker.port, f"c{number}", clean=False)
                load.subscribe(sock, f"bench/{number // 10}", 1)
                sock.close()
            publisher = load.connect(broker.port, "p")
            for number in range(SESSIONS * MESSAGES_EACH // 10):
                topic = f"bench/{number % (SESSIONS // 10)}"
                publisher.sendall(encode(Publish(topic, b"x" * 64, 1, packet_id=1), V3_1_1))
                publisher.recv(4, socket.MSG_WAITALL)
            broker.kill()
        for _round in range(3):
            with brokers.running(program, folder) as broker:
                resident = broker.resident_bytes() / 2**20
                print(f"{program.name:<24}{broker.ready_seconds:>8.2f} s to ready, {resident:.0f} MiB resident")
                broker.kill()


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 3.0, float(given[1]) if given[1:] else 20.0)
