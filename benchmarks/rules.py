"""What rules cost: messages a second through one rule and through twenty, of each kind, into the buffer (DESIGN §7)."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import describe
from lockgate.buffer import Log, LogReader
from lockgate.config.model import BufferConfig, ProcessorConfig, RuleConfig, SchemaConfig
from lockgate.processor.runner import Rulebook, Runner

MESSAGES = 50_000
TOGETHER = 500  # that came while the last commit was written
ROUNDS = 3
SCHEMA = SchemaConfig(
    name="readings",
    topics=("sensors/+/reading",),
    fields=(("temperature", "real"), ("humidity", "real"), ("unit", "text"), ("count", "integer")),
)


class Publish(NamedTuple):
    topic: str
    payload: bytes
    packet_id: int
    qos: int = 1
    duplicate: bool = False


def messages(count: int) -> list[Publish]:
    return [
        Publish(
            f"sensors/{number % 100}/reading",
            b'{"temperature": %.1f, "humidity": 40.5, "unit": "C", "count": %d}' % (number % 1000 / 10, number),
            number % 65_535 + 1,
        )
        for number in range(count)
    ]


def threshold(number: int) -> RuleConfig:
    """A rule for each message; one message in a hundred passes each."""
    return RuleConfig(
        name=f"above-{number}",
        schema="readings",
        sql=f"SELECT :topic AS topic, :temperature AS t WHERE :temperature >= 99 AND :humidity > {number} - 50",
        message_class="alarm",
    )


def mean(number: int) -> RuleConfig:
    return RuleConfig(
        name=f"mean-{number}",
        schema="readings",
        sql="SELECT topic, avg(temperature) AS mean FROM readings GROUP BY topic",
        message_class="telemetry",
        every_seconds=10 + number,
    )


async def run(rules: tuple[RuleConfig, ...], given: list[Publish]) -> float:
    """Messages a second, commits included."""
    with tempfile.TemporaryDirectory() as folder:
        config = ProcessorConfig(schemas=(SCHEMA,), rules=rules)
        buffer = BufferConfig()
        log = await Log.open(Path(folder), buffer, {})
        reader = LogReader(Path(folder))
        book = Rulebook(config, buffer)
        runner = Runner(config, book, log, reader)
        await runner.start()
        started = time.perf_counter()
        for start in range(0, len(given), TOGETHER):
            some = given[start : start + TOGETHER]
            while some:
                some = some[await runner.process(some) :]
        await runner.close_windows()
        seconds = time.perf_counter() - started
        reader.close()
        await log.close()
        book.close()
    return len(given) / seconds


def main(count: int = MESSAGES) -> None:
    """Print the median of some rounds, in turns."""
    print(describe())
    print(f"{'rules':<28}{'one, messages/s':>18}{'twenty':>12}{'twenty cost':>14}")
    given = messages(count)
    for name, make in (("for each message", threshold), ("tumbling windows", mean)):
        rates: dict[int, list[float]] = {1: [], 20: []}
        for _ in range(ROUNDS):
            for number, found in rates.items():
                found.append(asyncio.run(run(tuple(make(one) for one in range(number)), given)))
        one, twenty = (statistics.median(found) for found in rates.values())
        print(f"{name:<28}{one:>18,.0f}{twenty:>12,.0f}{one / twenty:>12.2f} ×", flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
