"""A receiver that can be away, and checks by itself what reaches it: each number once, in its order, alarms first."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import orjson
from aiohttp import web

_REPORTED = 5  # of each kind of violation in full


class Receipts:
    """What a sink got of some numbers; `first_alarms` alarms have to come before anything else."""

    def __init__(self, numbers: Collection[int], first_alarms: int) -> None:
        self.arrived = 0  # numbers, each once
        self.repeats = 0  # the same number under the same id
        self.counts: Counter[str] = Counter()  # violations by kind
        self.examples: list[str] = []
        self.wall_ms = (2**63, 0)  # earliest and latest wall time of a message
        self._numbers = numbers
        self._seqs = array("q", [-1]) * (max(numbers) + 1)
        self._last: dict[tuple[str, str], int] = {}
        self._alarms_missing = first_alarms

    def take(self, message: dict[str, Any]) -> None:
        """Note the JSON object of a message."""
        topic, message_class, number = message["topic"], message["class"], message["payload"]["n"]
        seq = int(message["id"].rpartition("/")[2])
        before = self._seqs[number]
        if before >= 0:
            if before == seq:
                self.repeats += 1
            else:
                self._violate("came under two ids", f"{topic} {number}: {before} and {seq}")
            return
        self._seqs[number] = seq
        self.arrived += 1
        self.wall_ms = (min(self.wall_ms[0], message["time"]), max(self.wall_ms[1], message["time"]))
        if message_class == "alarm":
            self._alarms_missing -= 1
        elif self._alarms_missing > 0:
            self._violate("came before an alarm", f"{topic} {number}, {self._alarms_missing} alarms still to come")
        last = self._last.get((topic, message_class), -1)
        if number < last:
            self._violate("out of order", f"{topic} {number} after {last}")
        self._last[topic, message_class] = max(last, number)

    def violations(self) -> list[str]:
        """Say what was wrong, when nothing is under way any more; empty when nothing was."""
        came = [self._seqs[number] for number in self._numbers if self._seqs[number] >= 0]
        if len(set(came)) != len(came):
            self._violate("two messages under one id", f"{len(came) - len(set(came))} of them")
        for number in self._numbers:
            if self._seqs[number] < 0:
                self._violate("never arrived", str(number))
        if self.arrived != len(came):
            self._violate("nobody sent that", f"{self.arrived - len(came)} messages")
        return [f"{kind}: {count:,}" for kind, count in self.counts.items()] + self.examples

    def _violate(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= _REPORTED:
            self.examples.append(f"{kind}: {what}")


class Cloud:
    """An HTTP server that is not there until it comes back."""

    def __init__(self, port: int, receipts: Receipts) -> None:
        self.receipts = receipts
        self.requests = 0
        self.first_at = 0.0  # time.monotonic() of the first request
        self.last_at = 0.0
        self.behind: dict[int, int] = {}  # by number of an alarm: batches of telemetry that came while it waited
        self.before_answer: Callable[[], Awaitable[None]] | None = None  # what happens while a batch is under way
        self._awaited: set[int] = set()
        self._port = port
        self._runner: web.AppRunner | None = None

    async def come_back(self) -> None:
        """Listen from now on."""
        application = web.Application(client_max_size=1 << 26)
        application.router.add_post("/in", self._take)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def close(self) -> None:
        """End for good."""
        if self._runner is not None:
            await self._runner.cleanup()

    def await_alarm(self, number: int) -> None:
        """Count the batches of telemetry that come from now on, until this alarm does."""
        self.behind[number] = 0
        self._awaited.add(number)

    async def _take(self, request: web.Request) -> web.Response:
        batch = orjson.loads(await request.read())
        self.requests += 1
        self.last_at = time.monotonic()
        self.first_at = self.first_at or self.last_at
        for message in batch:
            self.receipts.take(message)
        if batch[0]["class"] == "alarm":
            self._awaited -= {message["payload"]["n"] for message in batch}
        else:
            for number in self._awaited:
                self.behind[number] += 1
        if self.before_answer is not None:
            await self.before_answer()
        return web.Response()
