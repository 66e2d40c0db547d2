"""Clients that come and go: connect churn, and queues that wait for subscribers that are away and are then drained."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import brokers, load
from benchmarks.machine import describe
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V3_1_1, Connect, Disconnect, Subscribe, SubscriptionRequest

CONNECTS = 8_000
AT_ONCE = 50  # clients on their way in or out
AWAY = 100  # subscribers that are away
QUEUED = 100_000  # deliveries that wait for them in all


@dataclass
class Phase:
    """What one part of a run took; `each_bytes` is what the broker's resident memory grew by for each."""

    name: str
    count: int
    seconds: float
    cpu_seconds: float
    each_bytes: float | None = None


def main(connects: int = CONNECTS, queued: int = QUEUED) -> None:
    """Print each phase on both brokers in one line, with our processor time over theirs."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    load.allow_files(2 * AT_ONCE + AWAY)
    programs = brokers.both()
    print(describe())
    heads = "".join(f"{program.name + ' each s':>19}{'CPU µs':>8}{'bytes':>7}" for program in programs)
    print(f"{'scenario':<42}{heads}{'CPU ratio':>11}")

    def churn(broker: brokers.Running) -> list[Phase]:
        return [_churn(broker, connects)]

    def one_each(broker: brokers.Running) -> list[Phase]:
        return _offline(broker, load.Scenario("pairs", AWAY, AWAY, 1, False), queued)

    def for_all(broker: brokers.Running) -> list[Phase]:
        return _offline(broker, load.Scenario("fan-out", 1, AWAY, 1, False), queued)

    for run in (churn, one_each, for_all):
        _print(programs, run)


def _print(programs: list[brokers.Program], run: Callable[[brokers.Running], list[Phase]]) -> None:
    found: list[list[Phase]] = []
    for program in programs:
        with brokers.running(program) as broker:
            found.append(run(broker))
    for phases in zip(*found, strict=True):
        line = f"{phases[0].name:<42}"
        costs = [phase.cpu_seconds / phase.count * 1e6 for phase in phases]
        for phase, cost in zip(phases, costs, strict=True):
            size = "" if phase.each_bytes is None else f"{phase.each_bytes:.0f}"
            line += f"{phase.count / phase.seconds:>19,.0f}{cost:>8.2f}{size:>7}"
        print(line + (f"{costs[0] / costs[1]:>11.2f}" if len(costs) == 2 else ""), flush=True)


class _Visitor:
    """A client that connects, subscribes, says goodbye and waits until the broker has closed."""

    def __init__(self, port: int, number: int) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = f"visitor-{number:06d}"
        self.steps = [
            (0, encode(Connect(name, V3_1_1, True, 0), V3_1_1)),
            (4, encode(Subscribe(1, [SubscriptionRequest(f"device/{name}/set", 1)]), V3_1_1)),
            (5, encode(Disconnect(), V3_1_1)),
        ]
        self.awaited, self.frame = self.steps.pop(0)
        code = self.sock.connect_ex(("127.0.0.1", port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))

    def go_on(self) -> bool:
        """Take an answer and send the next packet; say whether the visit goes on."""
        if self.awaited and not self.sock.recv(self.awaited):  # answers this small come whole
            if self.steps or self.frame:
                raise ConnectionError("the broker closed a client that came and went")
            return False
        self.sock.sendall(self.frame)
        self.awaited, self.frame = self.steps.pop(0) if self.steps else (1, b"")
        return True


def _churn(broker: brokers.Running, connects: int) -> Phase:
    poll = select.epoll()
    visitors: dict[int, _Visitor] = {}
    begun = done = 0
    used = broker.cpu_seconds()
    started = time.perf_counter()
    while done < connects:
        while begun < connects and len(visitors) < AT_ONCE:
            visitor = _Visitor(broker.port, begun)
            begun += 1
            visitors[visitor.sock.fileno()] = visitor
            poll.register(visitor.sock.fileno(), select.EPOLLOUT)  # until it is connected
        for fd, event in poll.poll(5) or _nobody():
            visitor = visitors[fd]
            if not visitor.go_on():
                visitor.sock.close()
                del visitors[fd]
                done += 1
            elif event & select.EPOLLOUT:
                poll.modify(fd, select.EPOLLIN)
    seconds = time.perf_counter() - started
    poll.close()
    return Phase(f"connect, subscribe, disconnect ({AT_ONCE} at once)", connects, seconds, broker.cpu_seconds() - used)


def _nobody() -> list[tuple[int, int]]:
    raise TimeoutError("the broker does nothing any more")


def _offline(broker: brokers.Running, scenario: load.Scenario, queued: int) -> list[Phase]:
    """Let durable subscribers go away, publish for them at QoS 1, and let them all come back at once."""
    for number in range(scenario.subscribers):
        sock = load.connect(broker.port, f"s{number}", clean=False)
        load.subscribe(sock, scenario.topic_filter(number), scenario.qos)
        sock.sendall(encode(Disconnect(), V3_1_1))
        sock.recv(1)  # the broker closes
        sock.close()
    empty = broker.resident_bytes()
    publishers = [
        load.Publisher(load.connect(broker.port, f"p{number}"), scenario, number)
        for number in range(scenario.publishers)
    ]
    turns = queued // scenario.receivers_each // scenario.publishers
    queued = turns * scenario.receivers_each * scenario.publishers

    def enqueue() -> None:
        left = {publisher: [turns, turns] for publisher in publishers}  # to send, and to be acknowledged
        while left:
            for publisher, counts in left.items():
                counts[0] -= publisher.publish(counts[0])
            for publisher, counts in list(left.items()):
                counts[1] -= publisher.read()
                if not counts[1]:
                    del left[publisher]

    def drain() -> None:
        poll = select.epoll()
        peers: dict[int, load.Subscriber] = {}
        for number in range(scenario.subscribers):
            peer = load.Subscriber(load.connect(broker.port, f"s{number}", clean=False), scenario)
            peers[peer.sock.fileno()] = peer
            poll.register(peer.sock.fileno(), select.EPOLLIN)
        left = queued
        while left:
            for fd, _event in poll.poll(5) or _nobody():
                left -= peers[fd].read()
        poll.close()
        for peer in peers.values():
            peer.sock.close()

    name = f"{scenario.title.replace('→', '→ absent ')} QoS 1"
    first = _phase(broker, f"{name}: enqueue", queued, enqueue)
    first.each_bytes = (broker.resident_bytes() - empty) / queued
    second = _phase(broker, f"{name}: drain", queued, drain)
    for publisher in publishers:
        publisher.sock.close()
    return [first, second]


def _phase(broker: brokers.Running, name: str, count: int, work: Callable[[], None]) -> Phase:
    used = broker.cpu_seconds()
    started = time.perf_counter()
    work()
    return Phase(name, count, time.perf_counter() - started, broker.cpu_seconds() - used)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
