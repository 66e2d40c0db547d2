"""`python -m tests.support.crowd PORT SEED`: the clients' process, told what to do by lines of JSON (control.py)."""

from __future__ import annotations

import asyncio
import fcntl
import json
import pickle
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

import uvloop

from lockgate.mqtt.packets import V3_1_1, V5
from tests.support.crowd.clients import Client, Publisher, Reader, Subscriber
from tests.support.oracle import Oracle

PUBLISHERS: Final = 8
WINDOW: Final = 16
FICLONE: Final = 0x40049409

TOPICS: Final = [("one/a", 1), ("one/b", 1), ("two/a", 2), ("two/b", 2), ("changing/a", 1), ("changing/b", 2)]
CHANGING: Final = [("changing/a", 2), ("changing/b", 2)]
FILTERS: Final = [
    [("one/#", 1), ("two/#", 2)],
    [("+/a", 2)],
    [("one/b", 2), ("two/b", 1)],
    [("two/+", 2)],
    [("one/a", 1), ("two/b", 2)],
]


class Crowd:
    """All clients, and what the test wants of them."""

    def __init__(self, port: int, seed: int) -> None:
        self.oracle = Oracle()
        self.port = port
        self.settling = True
        self.allowance = 0
        self.changed = asyncio.Event()
        self._chance = random.Random(seed)
        self._last_packet = time.monotonic()
        self._acknowledged = 0
        self._goal = 0
        self._reached = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.publishers = [self._publisher(number) for number in range(PUBLISHERS)]
        self.subscribers = [self._subscriber(number) for number in range(2 * len(FILTERS))]
        self.readers = [Reader(self, f"reader-{version}", version, self._seed()) for version in (V3_1_1, V5)]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tasks": [], "_reached": None, "changed": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _reached=asyncio.Event(), changed=asyncio.Event())

    def _seed(self) -> int:
        return self._chance.getrandbits(32)

    def _publisher(self, number: int) -> Publisher:
        name = f"publisher-{number}"
        topics = [*TOPICS, *TOPICS, (f"retained/{number}/1", 1), (f"retained/{number}/2", 2)]
        return Publisher(self, name, V5 if number % 2 else V3_1_1, self._seed(), topics, WINDOW)

    def _subscriber(self, number: int) -> Subscriber:
        filters = [(f"{topic}", qos) for topic, qos in FILTERS[number // 2]]
        changing = CHANGING if "+/a" not in dict(filters) else CHANGING[1:]  # nowhere two filters for one topic
        return Subscriber(self, f"subscriber-{number}", V5 if number % 2 else V3_1_1, self._seed(), filters, changing)

    @property
    def _clients(self) -> list[Client]:
        return [*self.publishers, *self.subscribers, *self.readers]

    def noticed(self) -> None:
        self._last_packet = time.monotonic()

    def counted(self) -> None:
        self._acknowledged += 1
        if self._acknowledged >= self._goal:
            self._reached.set()

    def start(self) -> None:
        """Let all clients connect, and come again whenever they lose their connection."""
        self._tasks = [asyncio.create_task(client.run(), name=client.name) for client in self._clients]

    async def load(self, acknowledgements: int, allowance: int) -> None:
        """Return when that many further messages were acknowledged; the load goes on up to the allowance."""
        self._goal = self._acknowledged + acknowledgements
        self._reached.clear()
        self.settling = False
        self.changed.clear()
        self.allowance = allowance
        for subscriber in self.subscribers:
            subscriber.settle()
        for publisher in self.publishers:
            publisher.fill()
        await self._reached.wait()

    async def settle(self, quiet_seconds: float, seconds: float) -> None:
        """Return when everybody has everything, or nothing has moved for so long, or after `seconds` at most."""
        self.settling = True
        self.allowance = 0
        self.changed.set()
        for subscriber in self.subscribers:
            subscriber.settle()
        self._last_packet = time.monotonic()
        deadline = self._last_packet + seconds
        looks: list[int] | None = None  # that the readers have to finish
        while True:
            if not all(client.is_settled for client in self._clients) or self.oracle.missing():
                looks = None
            elif looks is None:
                looks = [reader.looks + 2 for reader in self.readers]  # the first may have begun before
            elif all(reader.looks >= goal for reader, goal in zip(self.readers, looks, strict=True)):
                break
            now = time.monotonic()
            if now > deadline or (looks is None and now > self._last_packet + quiet_seconds):
                for client in self._clients:
                    if not client.is_settled:
                        client.complain()
                break
            await asyncio.sleep(0.02)
            for task in self._tasks:
                if task.done():
                    task.result()
        self.oracle.settle()

    def snapshot(self, image: Path, copy: Path, state: Path) -> None:
        """Copy a disk, and the clients as they are at that moment: nobody of us says or hears anything meanwhile."""
        with image.open("rb") as source, copy.open("wb") as target:
            fcntl.ioctl(target, FICLONE, source.fileno())
        state.write_bytes(pickle.dumps(self))

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do one thing and give the answer."""
        match order["do"]:
            case "load":
                await self.load(order["acknowledgements"], order["allowance"])
            case "settle":
                await self.settle(order["quiet"], order["limit"])
            case "round":
                self.oracle.round = order["number"]
                self.oracle.happened(time.monotonic(), order["what"])
            case "happened":
                self.oracle.happened(time.monotonic(), order["what"])
            case "snapshot":
                self.snapshot(Path(order["image"]), Path(order["copy"]), Path(order["state"]))
        return {
            "report": self.oracle.report(),
            "violations": self.oracle.counts,
            "sums": self.oracle.sums,
        }


async def main() -> None:
    port, seed = int(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        crowd: Crowd = pickle.loads(Path(sys.argv[3]).read_bytes())
        crowd.port = port
    else:
        crowd = Crowd(port, seed)
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    crowd.start()
    while line := await orders.readline():
        answer = await crowd.obey(json.loads(line))
        print(json.dumps(answer), flush=True)


uvloop.run(main())
