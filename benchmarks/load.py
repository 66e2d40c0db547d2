"""A load generator that costs less than the brokers it drives: raw sockets, frames made once, packets only counted.

All frames of a run have one size on each side, so that thousands of packets in one read are taken apart by slices with
a step and never one by one; only QoS 2, whose streams mix packets, is walked through, and messages that carry the time.
"""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.brokers import Program, Running, running
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V3_1_1, Connect, Publish, Subscribe, SubscriptionRequest

_READ_BYTES = 1_048_576
_PATIENCE_SECONDS = 5.0  # without a message, after the last PUBLISH
_TURN = 16  # messages a publisher sends in a row
_WINDOW = 20  # unacknowledged QoS 1 and 2 messages of one publisher, what clients commonly use


@dataclass(frozen=True)
class Scenario:
    """Who publishes to whom. A publisher's turn is 16 messages, in one send when `batched`, else in a send each."""

    name: str
    publishers: int
    subscribers: int
    qos: int
    batched: bool
    seconds: float = 2.0
    payload_bytes: int = 64

    @property
    def receivers_each(self) -> int:
        """To how many subscribers one message goes."""
        return self.subscribers if self.name == "fan-out" else 1

    @property
    def title(self) -> str:
        """Give what the scenario is called in a table."""
        return f"{self.name} {self.publishers:,}→{self.subscribers:,}"

    def topic(self, publisher: int) -> str:
        """Give the topic of a publisher; all have one length."""
        return f"bench/{publisher:05d}"

    def topic_filter(self, subscriber: int) -> str:
        """Give what a subscriber subscribes to."""
        filters = {"fan-out": "bench/00000", "fan-in": "bench/+", "shared": "$share/group/bench/+"}
        return filters.get(self.name, f"bench/{subscriber:05d}")


@dataclass
class Result:
    """What one run measured."""

    scenario: Scenario
    delivered: int
    seconds: float
    broker_cpu_seconds: float = 0.0
    load_cpu_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    missing: int = 0  # published, and not delivered within seconds after the last PUBLISH

    @property
    def rate(self) -> float:
        """Messages delivered in a second."""
        return self.delivered / self.seconds

    @property
    def cpu_per_million(self) -> float:
        """The broker's processor seconds for a million messages delivered."""
        return self.broker_cpu_seconds / self.delivered * 1e6

    def percentile(self, share: float) -> float:
        """Give a latency in seconds that this share of the messages did not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def allow_files(count: int) -> None:
    """Let this process, and the brokers it starts, open that many sockets; OSError where the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 100
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise OSError(f"{count} connections need {needed} open files, and this system allows {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def connect(port: int, client_id: str, clean: bool = True) -> socket.socket:
    """Open a connection and take its CONNACK, and nothing of what may follow."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(encode(Connect(client_id, V3_1_1, clean, 0), V3_1_1))
    answer = sock.recv(4, socket.MSG_WAITALL)
    if len(answer) < 4 or answer[3]:
        raise ConnectionError(f"the broker refused a client: {answer!r}")
    return sock


def subscribe(sock: socket.socket, topic_filter: str, qos: int) -> None:
    """Subscribe and wait for SUBACK."""
    sock.sendall(encode(Subscribe(1, [SubscriptionRequest(topic_filter, qos)]), V3_1_1))
    _await_packet(sock)


def _await_packet(sock: socket.socket) -> None:
    decoder = Decoder(V3_1_1)
    while decoder.next_packet() is None:
        data = sock.recv(4096)
        if not data:
            raise ConnectionError("the broker closed the connection")
        decoder.feed(data)


class Subscriber:
    """Takes and acknowledges messages; where `stamps` is a list it gathers the last eight bytes of each."""

    def __init__(self, sock: socket.socket, scenario: Scenario, stamps: list[bytes] | None = None) -> None:
        self.sock = sock
        self.qos = scenario.qos
        self.stamps = stamps
        frame = encode(Publish("bench/00000", b"x" * scenario.payload_bytes, scenario.qos, packet_id=1), V3_1_1)
        self.size = len(frame)
        self.id_at = len(frame) - scenario.payload_bytes - 2
        self.rest = b""
        self.answer = b"\x40\x02" if self.qos == 1 else b"\x50\x02"

    def read(self) -> int:
        """Take what arrived, acknowledge it, and give the number of messages."""
        data = self.sock.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the broker closed a subscriber")
        if self.rest:
            data = self.rest + data
        if self.qos == 2 or self.stamps is not None:
            return self._walk(data)
        count, left = divmod(len(data), self.size)
        self.rest = data[len(data) - left :] if left else b""
        if self.qos == 1 and count:
            whole = data[: count * self.size]
            answer = bytearray(b"\x40\x02\x00\x00" * count)
            answer[2::4] = whole[self.id_at :: self.size]
            answer[3::4] = whole[self.id_at + 1 :: self.size]
            self.sock.sendall(answer)
        return count

    def _walk(self, data: bytes) -> int:
        at = 0
        count = 0
        answers: list[bytes] = []
        end = len(data)
        while at < end:
            if data[at] == 0x62:
                if at + 4 > end:
                    break
                answers.append(b"\x70\x02" + data[at + 2 : at + 4])
                at += 4
            else:
                if at + self.size > end:
                    break
                if self.qos:
                    answers.append(self.answer + data[at + self.id_at : at + self.id_at + 2])
                at += self.size
                count += 1
                if self.stamps is not None:
                    self.stamps.append(data[at - 8 : at])
        self.rest = data[at:]
        if answers:
            self.sock.sendall(b"".join(answers))
        return count


class Publisher:
    """Sends messages as far as its window of unacknowledged ones allows."""

    def __init__(self, sock: socket.socket, scenario: Scenario, number: int) -> None:
        self.sock = sock
        self.qos = scenario.qos
        self.batched = scenario.batched
        payload = b"x" * scenario.payload_bytes
        topic = scenario.topic(number)
        ids = range(1, _WINDOW + 1) if self.qos else (0,)
        self.frames = [encode(Publish(topic, payload, self.qos, packet_id=number), V3_1_1) for number in ids]
        self.next = 0
        self.free = _WINDOW
        self.rest = b""

    def publish(self, most: int = _TURN) -> int:
        """Send a turn's messages, at most some and as far as the window allows; give their number."""
        count = min(_TURN, most, self.free) if self.qos else min(_TURN, most)
        if not count:
            return 0
        if self.qos:
            self.free -= count
            frames = [self.frames[(self.next + step) % _WINDOW] for step in range(count)]
            self.next = (self.next + count) % _WINDOW
        else:
            frames = self.frames * count
        if self.batched:
            self.sock.sendall(b"".join(frames))
        else:
            for frame in frames:
                self.sock.sendall(frame)
        return count

    def publish_one(self, payload: bytes) -> None:
        """Send one message with a payload of its own, as long as the scenario says, whatever is unacknowledged."""
        frame = self.frames[0]
        if self.qos:
            self.next = self.next % 65_535 + 1
            self.sock.sendall(frame[: -len(payload) - 2] + self.next.to_bytes(2, "big") + payload)
        else:
            self.sock.sendall(frame[: -len(payload)] + payload)

    def read(self) -> int:
        """Take acknowledgements; give the number of messages that are done."""
        data = self.rest + self.sock.recv(_READ_BYTES)
        count, left = divmod(len(data), 4)
        self.rest = data[count * 4 :] if left else b""
        if self.qos == 1:
            self.free += count
            return count
        done = 0
        answers: list[bytes] = []
        for at in range(0, count * 4, 4):
            if data[at] == 0x50:
                answers.append(b"\x62\x02" + data[at + 2 : at + 4])
            else:
                done += 1
        if answers:
            self.sock.sendall(b"".join(answers))
        self.free += done
        return done


def in_turn(programs: Sequence[Program], rounds: int, measure: Callable[[Running], Result]) -> list[list[Result]]:
    """Measure each broker once a round, so that a burst spoils one round of all; give the results of each."""
    results: list[list[Result]] = [[] for _program in programs]
    for _round in range(rounds):
        for program, mine in zip(programs, results, strict=True):
            with running(program) as broker:
                mine.append(measure(broker))
    return results


def run(scenario: Scenario, broker: Running) -> Result:
    """Drive a broker as fast as it goes, keeping so little under way that nothing is ever dropped."""
    port = broker.port
    subscribers = [Subscriber(connect(port, f"s{n}"), scenario) for n in range(scenario.subscribers)]
    for number, subscriber in enumerate(subscribers):
        subscribe(subscriber.sock, scenario.topic_filter(number), scenario.qos)
    publishers = [Publisher(connect(port, f"p{n}"), scenario, n) for n in range(scenario.publishers)]
    by_fd: dict[int, Subscriber | Publisher] = {}
    poll = select.epoll()
    by_fd.update((peer.sock.fileno(), peer) for peer in subscribers)
    by_fd.update((peer.sock.fileno(), peer) for peer in publishers)
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    # What may be under way: enough to keep the broker busy, little enough to stay inside every buffer.
    limit = max(4 * _TURN * scenario.publishers, 64 * _TURN) * scenario.receivers_each
    sent = 0
    received = 0
    turn = 0
    cpu = time.process_time()
    used = broker.cpu_seconds()
    started = time.perf_counter()
    until = started + scenario.seconds
    while True:
        now = time.perf_counter()
        if now < until:
            for _step in range(max(4, len(publishers))):
                if sent - received >= limit:
                    break
                turn = (turn + 1) % len(publishers)
                sent += publishers[turn].publish() * scenario.receivers_each
        elif received >= sent or now > until + 10:
            break
        for fd, _event in poll.poll(0.05):
            peer = by_fd[fd]
            count = peer.read()
            if isinstance(peer, Subscriber):
                received += count
    seconds = time.perf_counter() - started
    used = broker.cpu_seconds() - used
    result = Result(scenario, received, seconds, used, time.process_time() - cpu, missing=sent - received)
    poll.close()
    for peer in by_fd.values():
        peer.sock.close()
    return result


def run_at_rate(broker: Running, rate: float, scenario: Scenario) -> Result:
    """Publish at a fixed rate, the publishers in turn, and measure each way, from when it is due to after recv.

    `rate` counts messages published; payloads have eight bytes, the time, whatever the scenario says. A first message
    of each publisher is not measured: a device meets its broker once, and then says the same for years.
    """
    scenario = replace(scenario, payload_bytes=8)
    port = broker.port
    stamps: list[bytes] = []
    subscribers = [Subscriber(connect(port, f"s{n}"), scenario, stamps) for n in range(scenario.subscribers)]
    for number, subscriber in enumerate(subscribers):
        subscribe(subscriber.sock, scenario.topic_filter(number), scenario.qos)
    publishers = [Publisher(connect(port, f"p{n}"), scenario, n) for n in range(scenario.publishers)]
    by_fd: dict[int, Subscriber | Publisher] = {}
    by_fd.update((peer.sock.fileno(), peer) for peer in subscribers)
    by_fd.update((peer.sock.fileno(), peer) for peer in publishers)
    poll = select.epoll()
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    latencies: list[float] = []
    published = int(rate * scenario.seconds)
    total = published * scenario.receivers_each
    sent = -len(publishers)
    used = 0.0
    started = time.perf_counter() + len(publishers) / rate
    first_ns = int(started * 1e9)
    while len(latencies) < total:
        now = time.perf_counter()
        due = started + sent / rate
        if sent < published and now >= due:
            if sent == 0:
                used = broker.cpu_seconds()
            # The time that counts is the one at which the message was due: a slow broker cannot hide behind the sender.
            publishers[sent % len(publishers)].publish_one(int(due * 1e9).to_bytes(8, "big"))
            sent += 1
            continue
        wait = due - now if sent < published else _PATIENCE_SECONDS
        ready = poll.poll(wait if wait > 0.002 else 0)  # epoll counts in milliseconds: the last two are spun through
        if not ready and sent >= published:
            break
        arrived = time.perf_counter()
        for fd, _event in ready:
            by_fd[fd].read()
        due_ns = [int.from_bytes(stamp, "big") for stamp in stamps]
        latencies += [arrived - moment / 1e9 for moment in due_ns if moment >= first_ns]
        stamps.clear()
    seconds = time.perf_counter() - started
    used = broker.cpu_seconds() - used
    missing = total - len(latencies)
    result = Result(scenario, len(latencies), seconds, used, latencies=latencies, missing=missing)
    poll.close()
    for peer in by_fd.values():
        peer.sock.close()
    return result
