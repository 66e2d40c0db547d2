"""A three-day outage in miniature: a million messages arrive while the cloud is away, on one core and in 256 MB.

A real gateway (`lockgate up`) takes them over MQTT at QoS 1. On the way the processor and the forwarder are killed with
SIGKILL and the wall clock jumps by years; the cloud comes back, the forwarder is killed once more while it drains, and
alarms are raised that have to pass what waits. In the end everything that was acknowledged has arrived, once or as a
repeat that its id tells, in order for each topic and class, alarms first; both books close. Exit status 1 otherwise.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import orjson

from benchmarks.brokers import BROKER_CORE, LOAD_CORE, free_port
from benchmarks.cloud import Cloud, Receipts
from benchmarks.confined import Confined, confined
from benchmarks.machine import describe
from benchmarks.wall_clock import WallClock
from lockgate.buffer.ledger import Ledger, read_ledger
from lockgate.client import Client
from lockgate.config.model import ConnectionConfig
from lockgate.telemetry import health

MESSAGES = 1_000_000
LIMIT_BYTES = 256 << 20
KEYS = 50  # devices, each with a topic for readings and one for alarms
ALARM_EVERY = 100
LATE_ALARMS = 5  # raised while the backlog is drained
UNACKNOWLEDGED = 500  # messages the publisher has under way
STALL_SECONDS = 120.0  # nothing at all happens for so long: the run is given up
_POLL_SECONDS = 0.05
_ROW_SECONDS = 3.5e-6  # to insert one, beside the sync

MOSQUITTO_CONF = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence true
max_inflight_messages 1000
persistence_location {store}/
"""
LOCKGATE_TOML = """\
[gateway]
id = "gw"
data_dir = "data"

[broker]
mosquitto_conf = "mosquitto.conf"

[standing_sessions.lockgate-processor]
topics = ["plant/+/reading", "plant/+/alarm"]
limit = "4MiB"

[buffer]
segment = {segment}  # 32 MiB for a million messages: as many files whatever their number

[processor]
url = "mqtt://127.0.0.1:{port}"

[schemas.readings]
topics = ["plant/+/reading"]
fields = {{ n = "integer", temperature = "real" }}

[schemas.alarms]
topics = ["plant/+/alarm"]
fields = {{ n = "integer", temperature = "real" }}

[rules.readings]
schema = "readings"
class = "telemetry"
sql = "SELECT :topic AS topic, :n AS n, :temperature AS temperature"

[rules.alarms]
schema = "alarms"
class = "alarm"
sql = "SELECT :topic AS topic, :n AS n, :temperature AS temperature"

[sinks.cloud]
type = "http"
url = "http://127.0.0.1:{cloud}/in"
batch = 500
timeout = "1m"
retry_max = "2s"

[sinks.archive]
type = "file"
path = "archive.jsonl"
batch = 500
"""


@dataclass
class Phase:
    """A line of the table."""

    name: str
    messages: int
    seconds: float


@dataclass
class Outcome:
    """What a run has shown."""

    phases: list[Phase] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def hold(self, what: bool, otherwise: str) -> None:
        """Note a violation unless `what` is so."""
        if not what:
            self.violations.append(otherwise)


def topic_of(number: int) -> str:
    """Give the topic of a message: each hundredth is an alarm."""
    kind = "alarm" if number % ALARM_EVERY == ALARM_EVERY - 1 else "reading"
    return f"plant/{(number // ALARM_EVERY + number) % KEYS}/{kind}"


def payload_of(number: int) -> bytes:
    """Give what a device says."""
    return b'{"n": %d, "temperature": %.1f}' % (number, number % 1000 / 10)


class Gateway:
    """The gateway that runs, and what its services say."""

    def __init__(self, folder: Path, held: Confined) -> None:
        self.buffer = folder / "data" / "buffer"
        self.held = held
        self._sockets = folder / "data" / "run"
        self._log = folder / "gateway.log"

    async def status(self, service: str) -> dict[str, object]:
        """Give what a service says of itself; empty where it does not answer."""
        said = await asyncio.to_thread(health.ask, self._sockets / f"{service}.sock")
        status = said.get("status") if said is not None else None
        return status if isinstance(status, dict) else {}

    async def ledger(self) -> Ledger:
        """Give both books."""
        return await asyncio.to_thread(read_ledger, self.buffer)

    async def received(self) -> int:
        """How many messages the processor has taken, each once; 0 while it does not answer."""
        intake = (await self.status("processor")).get("intake")
        if not isinstance(intake, dict):
            return 0
        return int(intake["received"]) - int(intake["duplicate"])

    async def kill(self, service: str) -> None:
        """kill -9; `lockgate up` starts it again. Returns when it is ready again."""
        self.held.look()
        victim = self.held.pid(service)
        os.kill(victim, signal.SIGKILL)
        await self.until(lambda: self._other(service, victim), f"{service} comes back")

    async def until(self, is_so: Callable[[], Awaitable[object]], what: str) -> None:
        """Wait until something is so, raises TimeoutError after a long time."""
        deadline = time.monotonic() + STALL_SECONDS
        while True:
            if await is_so():
                return
            if self.held.process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace").splitlines()[-30:]
                raise TimeoutError("\n".join([f"waited in vain until {what}; the gateway's last words:", *tail]))
            await asyncio.sleep(_POLL_SECONDS)

    async def _other(self, service: str, victim: int) -> bool:
        with suppress(LookupError):
            return self.held.pid(service) != victim and bool(await self.status(service))
        return False


class Plant:
    """The devices: publish numbers in their order, and know which of them were acknowledged."""

    def __init__(self, port: int) -> None:
        self._client = Client(
            ConnectionConfig(url=f"mqtt://127.0.0.1:{port}", client_id="plant"),
            session_expiry_seconds=3600,
            send_maximum=UNACKNOWLEDGED,
        )
        self.acknowledged = 0

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Be there."""
        async with self._client:
            yield

    async def publish(self, numbers: range) -> None:
        """Publish and return when all are acknowledged; a refusal is raised."""
        each = iter(numbers)

        async def device() -> None:
            for number in each:
                await self._client.publish(topic_of(number), payload_of(number), 1)
                self.acknowledged += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(min(UNACKNOWLEDGED, len(numbers))):
                group.create_task(device())


async def run(messages: int, folder: Path) -> Outcome:
    """Let the outage happen in this folder."""
    port, cloud_port = free_port(), free_port()
    (folder / "mosquitto.conf").write_text(MOSQUITTO_CONF.format(port=port, store=folder / "data"))
    (folder / "lockgate.toml").write_text(
        LOCKGATE_TOML.format(port=port, cloud=cloud_port, segment=max(1 << 16, messages * 32))
    )
    clock = WallClock(folder)
    environment = clock.environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", "lockgate", "up", "-c", str(folder / "lockgate.toml")]
    late = [messages + ALARM_EVERY * (place + 1) - 1 for place in range(LATE_ALARMS)]
    numbers = [*range(messages), *late]
    cloud = Cloud(cloud_port, Receipts(numbers, messages // ALARM_EVERY))
    outcome = Outcome()
    with confined(command, BROKER_CORE, LIMIT_BYTES, environment, folder / "gateway.log") as held:
        gateway = Gateway(folder, held)
        for service in ("broker", "processor", "forwarder"):
            await gateway.until(partial(gateway.status, service), f"{service} is ready")
        plant = Plant(port)
        try:
            async with plant.connected():
                await _outage(gateway, plant, clock, messages, outcome)
                await _return(gateway, plant, cloud, late, outcome)
            await _afterwards(gateway, cloud, folder, outcome)
        finally:
            await cloud.close()
        held.look()
        outcome.facts.append(("held to", held.limits()))
        for name, use in held.uses.items():
            outcome.facts.append(
                (
                    name,
                    f"peak {use.peak_bytes / 2**20:.1f} MiB resident, now {use.resident_bytes / 2**20:.1f}; "
                    f"{use.cpu_seconds:.1f} s of processor; started {use.starts} times",
                )
            )
        outcome.hold(not held.out_of_memory(), f"{held.out_of_memory()} processes ended for want of memory")
        starts = {name: use.starts for name, use in held.uses.items()}
        expected = {"up": 1, "broker": 1, "processor": 2, "forwarder": 3}
        outcome.hold(starts == expected, f"the services were started {starts} times, not {expected}")
    archived = Receipts(numbers, 0)  # it was never away: alarms came in between
    _read_archive(folder / "archive.jsonl", archived)
    outcome.facts.append(("second sink, a file", f"{archived.arrived:,} messages, {archived.repeats:,} repeats"))
    outcome.violations += [f"archive: {violation}" for violation in archived.violations()]
    return outcome


async def _outage(gateway: Gateway, plant: Plant, clock: WallClock, messages: int, outcome: Outcome) -> None:
    """Publish everything while nobody listens where the cloud should be."""
    started = time.monotonic()
    publishing = asyncio.create_task(plant.publish(range(messages)))

    async def until(count: int) -> None:
        await _progress(gateway, lambda: plant.acknowledged, count, "messages are acknowledged", publishing)

    try:
        await until(messages // 4)
        clock.jump(-400)
        await until(messages // 3)
        await gateway.kill("processor")
        before, since = await gateway.received(), time.monotonic()
        await until(messages // 2)
        clock.jump(800)
        await until(messages * 2 // 3)
        await gateway.kill("forwarder")
        await until(messages)
        await publishing
    finally:
        publishing.cancel()
    outcome.phases.append(Phase("acknowledged to the publisher", messages, time.monotonic() - started))
    await _progress(gateway, gateway.received, messages, "messages are in the buffer")
    done = time.monotonic()
    outcome.phases.append(Phase("in the buffer", messages, done - started))
    ledger = await gateway.ledger()
    outcome.hold(ledger.closes, f"the books do not close before the cloud is back: {ledger}")
    pending = sum(book.pending for book in ledger.deliveries if book.sink == "cloud")
    outcome.hold(pending == messages, f"{pending} messages wait for the cloud, not {messages}")
    gateway.held.look()
    resident = {name: f"{use.resident_bytes / 2**20:.1f}" for name, use in gateway.held.uses.items()}
    outcome.facts.append(("resident at the end of the outage", f"MiB: {resident}"))
    outcome.facts.append(("disk then", f"{_disk_bytes(gateway.buffer.parent) / 2**20:.0f} MiB of data_dir"))
    buffer = (await gateway.status("processor")).get("buffer")
    if isinstance(buffer, dict):
        rows = (messages - before) / max(int(buffer["commits"]), 1)
        most = rows / (buffer["sync_ms"] / 1000 + rows * _ROW_SECONDS)
        outcome.facts.append(
            (
                "append",
                f"{rows:.1f} messages a commit, a sync takes {buffer['sync_ms']} ms: at most {most:,.0f}/s if nothing "
                f"else took time; {(messages - before) / (done - since):,.0f}/s since the processor was killed",
            )
        )


async def _return(gateway: Gateway, plant: Plant, cloud: Cloud, late: list[int], outcome: Outcome) -> None:
    """The cloud is back: raise alarms, each while a batch of telemetry is under way, and kill the forwarder."""
    messages = plant.acknowledged
    due = [messages * (place + 1) // (len(late) + 1) for place in range(len(late))]
    waiting = iter(list(zip(due, late, strict=True)))
    following = next(waiting, None)

    killed = False

    async def while_under_way() -> None:
        """The cloud has taken a batch, and the forwarder does not know it yet."""
        nonlocal following, killed
        if not killed and cloud.receipts.arrived >= messages // 2:
            killed = True
            await gateway.kill("forwarder")
            return
        if following is None or cloud.receipts.arrived < following[0]:
            return
        number, following = following[1], next(waiting, None)
        before = plant.acknowledged
        await plant.publish(range(number, number + 1))
        await _progress(gateway, gateway.received, before + 1, "the alarm is in the buffer")
        cloud.await_alarm(number)

    cloud.before_answer = while_under_way
    await cloud.come_back()
    await _progress(gateway, lambda: cloud.receipts.arrived, messages + len(late), "messages have come to the cloud")
    outcome.phases.append(Phase("delivered once the cloud was back", messages, cloud.last_at - cloud.first_at))
    outcome.facts.append(("repeats, known by their ids", f"{cloud.receipts.repeats:,} in {cloud.requests:,} requests"))
    outcome.hold(
        cloud.receipts.repeats > 0, "the batch that was under way when the forwarder was killed did not come again"
    )
    most = max(cloud.behind.values(), default=0)
    outcome.facts.append(("batches of telemetry between an alarm in the buffer and its arrival", f"{most} at most"))
    outcome.hold(most == 0, f"alarms waited behind telemetry, by number: {cloud.behind}")


async def _afterwards(gateway: Gateway, cloud: Cloud, folder: Path, outcome: Outcome) -> None:
    """When everything has arrived: the books, and what is left on the disk."""

    async def settled() -> bool:
        return not any(book.pending for book in (await gateway.ledger()).deliveries)

    async def purged() -> bool:
        buffer = (await gateway.status("processor")).get("buffer")
        return isinstance(buffer, dict) and int(buffer["segments"]) <= 1

    total = cloud.receipts.arrived
    await gateway.until(settled, "nothing is pending")
    with suppress(TimeoutError):
        await gateway.until(purged, "the buffer is purged")
    outcome.hold(await purged(), f"the buffer is not purged: {sorted(one.name for one in gateway.buffer.iterdir())}")
    outcome.facts.append(("disk in the end", f"{_disk_bytes(folder / 'data') / 2**20:.0f} MiB of data_dir"))
    ledger = await gateway.ledger()
    intake = ledger.intake
    outcome.hold(ledger.closes, f"the books do not close: {ledger}")
    outcome.hold(intake.logged == total, f"{intake.logged} messages were logged, not {total}")
    outcome.hold(not intake.quarantined and not intake.refused, f"not all messages were taken: {intake}")
    for sink in ("cloud", "archive"):
        books = [book for book in ledger.deliveries if book.sink == sink]
        delivered = sum(book.delivered for book in books)
        outcome.hold(delivered == total, f"{sink}: {delivered} messages stand as delivered, not {total}: {books}")
    outcome.facts.append(
        (
            "books",
            f"received {intake.received:,} = logged {intake.logged:,} + duplicate {intake.duplicate:,}; "
            f"{'both close' if ledger.closes else 'THEY DO NOT CLOSE'}",
        )
    )
    years = (cloud.receipts.wall_ms[1] - cloud.receipts.wall_ms[0]) / 1000 / 86_400
    outcome.hold(years > 300, f"the wall clock has not jumped: messages lie {years:.1f} days apart")
    outcome.facts.append(("wall times of the messages", f"{years:,.0f} days apart"))
    outcome.violations += cloud.receipts.violations()


async def _progress(
    gateway: Gateway,
    count: Callable[[], int | Awaitable[int]],
    goal: int,
    what: str,
    task: asyncio.Task[None] | None = None,
) -> None:
    """Wait until a count reaches its goal; raises TimeoutError when it stands still, and what ended `task`."""
    seen = -1

    async def moved() -> bool:
        nonlocal seen
        if task is not None and task.done():
            task.result()
        before, now = seen, count()
        seen = now if isinstance(now, int) else await now
        return seen >= goal or seen > before

    while seen < goal:
        await gateway.until(moved, f"{goal:,} {what} ({max(seen, 0):,} now)")
        await asyncio.sleep(_POLL_SECONDS)


def _disk_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # purged meanwhile
            if not path.is_symlink() and path.is_file():
                total += path.stat().st_blocks * 512
    return total


def _read_archive(path: Path, receipts: Receipts) -> None:
    with path.open("rb") as file:
        for line in file:
            receipts.take(orjson.loads(line))


def _print(messages: int, outcome: Outcome) -> None:
    print(f"an outage while {messages:,} messages arrive over MQTT at QoS 1")
    for phase in outcome.phases:
        print(f"{phase.name:<36}{phase.messages:>11,}{phase.seconds:>9.1f} s{phase.messages / phase.seconds:>10,.0f}/s")
    for name, said in outcome.facts:
        print(f"{name}: {said}")
    print(f"violated: {'nothing' if not outcome.violations else ''}")
    for violation in outcome.violations:
        print(f"  {violation}")


def main(messages: int = MESSAGES) -> int:
    """Run once and print what was seen; 1 when something was violated."""
    if messages % ALARM_EVERY or messages < 10 * ALARM_EVERY:
        raise SystemExit(f"{messages} messages: a multiple of {ALARM_EVERY}, {10 * ALARM_EVERY} at least")
    print(describe(), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the gateway is ended too
    os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory(prefix="lockgate-outage-") as folder:
        outcome = asyncio.run(run(messages, Path(folder)))
    _print(messages, outcome)
    return int(bool(outcome.violations))


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:2])))
