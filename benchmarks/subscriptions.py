"""A million subscriptions: what each costs in memory, and what finding the receivers of a PUBLISH costs among them.

Runs the core alone, in this process and without sockets. Seven filters of ten name one topic, three have a wildcard.
A round asks for a thousand topics, and no route is known before it but under `remembered`. The first two columns ask
for the same thousand in every round, as a thousand devices do; `others` for different ones, as far as there are, which
shows what the machine's memory costs when nothing lies in its caches. All times are the processor's.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import brokers
from benchmarks.machine import describe
from lockgate.broker.broker import Broker
from lockgate.broker.connection import Connection
from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.broker.ports import Delivery
from lockgate.broker.session import Session, Subscription
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V3_1_1, Connect, Publish
from lockgate.storage.memory import MemoryStore

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
ROUNDS = 9
PUBLISHES = 1_000  # in a round
FILTERS_EACH = 100  # of one client
COLUMNS = ("match µs", "PUBLISH µs", "others: match µs", "PUBLISH µs", "remembered µs")


class _Silence:
    awaited = 0

    def notice(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def debug(self, text: str) -> None: ...
    def subscribed(self, client: str, qos: int, topic_filter: str) -> None: ...
    def unsubscribed(self, client: str, topic_filter: str) -> None: ...
    def committed(self, number: int) -> None: ...
    def loaded(self, client_id: str, deliveries: list[Delivery]) -> None: ...
    def store_failed(self, reason_code: int) -> None: ...
    def store_damaged(self, problem: str) -> None: ...
    def wake(self) -> None: ...


def main(largest: int = COUNTS[-1]) -> None:
    """Print one line for each number of subscriptions, with its cost over that of the first."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    print(describe())
    head = "".join(f"{name:>{len(name) + 2}}{'ratio':>7}" for name in COLUMNS)
    print(f"{'subscriptions':>13}{'subscribe µs':>14}{'bytes each':>12}{head}")
    first: list[float] | None = None
    for count in COUNTS:
        if count <= largest:
            costs = _measure(count, first)
            first = first if first is not None else costs


def _measure(count: int, first: list[float] | None) -> list[float]:
    gc.collect()
    before = _resident()
    broker = Broker(Limits(), MemoryStore(_Silence()), _Silence(), lambda: "x")
    sessions = [Session(f"client-{number}", 0, None) for number in range(count // FILTERS_EACH)]
    started = time.process_time()
    for number in range(count):
        session = sessions[number // FILTERS_EACH]
        topic_filter = _filter(number)
        subscription = Subscription(session, topic_filter, topic_filter, "", 0, False, False, 0)
        session.subscriptions[topic_filter] = subscription
        broker.router.add(subscription)
    subscribe = (time.process_time() - started) / count
    size = (_resident() - before) / count

    rounds = [
        [_topic((turn * PUBLISHES + number) * 7919 % count) for number in range(PUBLISHES)] for turn in range(ROUNDS)
    ]
    connection = broker.connect("bench", ListenerLimits(allow_anonymous=True), 0.0)
    connection.receive(encode(Connect("publisher", V3_1_1, True, 0), V3_1_1), 0.0)
    costs = [
        cost / PUBLISHES * 1e6
        for cost in (
            statistics.median(_match(broker, rounds[0]) for _ in range(ROUNDS)),
            statistics.median(_publish(broker, connection, rounds[0], True) for _ in range(ROUNDS)),
            statistics.median(_match(broker, topics) for topics in rounds[1:]),
            statistics.median(_publish(broker, connection, topics, True) for topics in rounds[1:]),
            statistics.median(_publish(broker, connection, rounds[-1], False) for _ in range(ROUNDS)),
        )
    ]
    cells = "".join(
        f"{cost:>{len(name) + 2}.2f}{cost / one:>7.2f}"
        for name, cost, one in zip(COLUMNS, costs, first or costs, strict=True)
    )
    print(f"{count:>13,}{subscribe * 1e6:>14.2f}{size:>12.0f}{cells}", flush=True)
    return costs


def _match(broker: Broker, topics: list[str]) -> float:
    match = broker.router.tree.match
    return _time(lambda: [match(topic) for topic in topics])


def _publish(broker: Broker, connection: Connection, topics: list[str], forget: bool) -> float:
    frames = b"".join(encode(Publish(topic, b"x" * 64), V3_1_1) for topic in topics)
    if forget:  # a filter that begins with a wildcard comes and goes
        anybody = Subscription(Session("anybody", 0, None), "+/x", "+/x", "", 0, False, False, 0)
        broker.router.add(anybody)
        broker.router.remove(anybody)
    return _time(lambda: connection.receive(frames, 0.0))


def _time(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _filter(number: int) -> str:
    site, device = divmod(number, 1000)
    kind = number % 10
    if kind == 0:
        return f"site/{site}/device/{device}/+"
    if kind == 1:
        return f"site/{site}/+/{device}/state"
    if kind == 2:
        return f"site/{site}/device/{device}/#"
    return f"site/{site}/device/{device}/m{kind}"


def _topic(number: int) -> str:
    site, device = divmod(number, 1000)
    return f"site/{site}/device/{device}/m{number % 10}"


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
