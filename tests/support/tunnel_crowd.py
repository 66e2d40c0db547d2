"""Many devices behind a tunnel of two edges, while its parts are killed: what they notice, and what is lost.

`python -m tests.support.tunnel_crowd 1000` prints how long each loss was felt.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from lockgate.mqtt.encoder import encode, encode_acknowledgement
from lockgate.mqtt.packets import PUBACK, V3_1_1, Connect, Publish, Subscribe, SubscriptionRequest
from tests.support.certificates import Authority
from tests.support.peers import free_port

_QUIET_SECONDS = 30.0  # for everything to be acknowledged in the end


class Mqtt(asyncio.Protocol):
    """A connection of a device: CONNECT with a standing session, then packets as they come."""

    def __init__(self, client_id: str) -> None:
        self.transport: asyncio.Transport
        self.client_id = client_id
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(encode(Connect(self.client_id, V3_1_1, clean_start=False, keep_alive=60), V3_1_1))

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at = 0
        while len(data) - at >= 2:
            length, shift, begin = 0, 0, at + 1
            while begin < len(data):
                length |= (data[begin] & 0x7F) << shift
                shift += 7
                begin += 1
                if data[begin - 1] < 0x80:
                    break
            else:
                break
            if len(data) < begin + length:
                break
            self.packet(data[at], data[begin : begin + length])
            at = begin + length
        self._rest = data[at:]

    def packet(self, head: int, body: bytes) -> None:
        if head == 0x20 and not self.accepted.done():
            self.accepted.set_result(body[1])

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(exc or ConnectionError("closed"))
            self.accepted.exception()
        if not self.ended.done():
            self.ended.set_result(None)


class _Speaking(Mqtt):
    def __init__(self, device: Device) -> None:
        super().__init__(device.name)
        self._device = device

    def packet(self, head: int, body: bytes) -> None:
        super().packet(head, body)
        if head == 0x40:
            self._device.acknowledge(body[0] << 8 | body[1])


class _Collecting(Mqtt):
    def __init__(self, name: str, got: Counter[bytes]) -> None:
        super().__init__(name)
        self._got = got

    def packet(self, head: int, body: bytes) -> None:
        super().packet(head, body)
        if head >> 4 == 3:
            end = 2 + (body[0] << 8 | body[1])
            packet_id = body[end] << 8 | body[end + 1]
            self._got[body[end + 2 :]] += 1
            self.transport.write(encode_acknowledgement(PUBACK, packet_id, 0, V3_1_1))


@dataclass
class Device:
    """Publishes at QoS 1, keeps what is not acknowledged, and comes back by whichever edge lets it in."""

    name: str
    ports: tuple[int, ...]
    context: ssl.SSLContext
    acknowledged: set[bytes] = field(default_factory=set)
    disconnects: int = 0
    waiting: dict[int, tuple[bytes, float]] = field(default_factory=dict)  # by packet identifier: payload, since
    answered: float = 0.0  # when the last PUBACK came for something said after `asked`
    asked: float = 0.0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _ids: itertools.cycle[int] = field(default_factory=lambda: itertools.cycle(range(1, 60_000)))
    _link: _Speaking | None = None

    async def run(self) -> None:
        for port in itertools.cycle(self.ports):
            try:
                async with asyncio.timeout(15):
                    _, link = await asyncio.get_running_loop().create_connection(
                        lambda: _Speaking(self), "127.0.0.1", port, ssl=self.context, server_hostname="localhost"
                    )
                    if await link.accepted:
                        raise ConnectionError("refused")
            except (OSError, TimeoutError):
                await asyncio.sleep(0.3)
                continue
            self._link = link
            for packet_id, (payload, _) in list(self.waiting.items()):
                link.transport.write(self._packet(packet_id, payload, again=True))
            await link.ended
            self._link = None
            self.disconnects += 1

    @property
    def is_connected(self) -> bool:
        return self._link is not None

    def publish(self) -> None:
        packet_id = next(self._ids)
        payload = f"{self.name}/{next(self._numbers)}".encode()
        self.waiting[packet_id] = (payload, time.monotonic())
        if self._link is not None:
            self._link.transport.write(self._packet(packet_id, payload))

    def acknowledge(self, packet_id: int) -> None:
        if packet_id in self.waiting:
            payload, since = self.waiting.pop(packet_id)
            self.acknowledged.add(payload)
            if self.asked and since >= self.asked and not self.answered:
                self.answered = time.monotonic()

    def _packet(self, packet_id: int, payload: bytes, *, again: bool = False) -> bytes:
        return encode(Publish(f"from/{self.name}", payload, qos=1, packet_id=packet_id, dup=again), V3_1_1)


class Wire:
    """The way from connector to an edge, which can be cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self.port = 0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, back)
        self._pairs.append(pair)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
            sink.transport.abort()

        await asyncio.gather(pump(reader, back), pump(there, writer))
        self._pairs.remove(pair)

    @property
    def count(self) -> int:
        return len(self._pairs)

    def cut_one(self) -> None:
        """Break the oldest connection at both ends."""
        for writer in self._pairs[0]:
            writer.transport.abort()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()


@dataclass
class Loss:
    """What one loss did. Seconds until each device had an acknowledgement for what it said after it."""

    what: str
    seconds: list[float]
    disconnects: int

    def p95(self) -> float:
        values = sorted(self.seconds)
        return values[int(0.95 * (len(values) - 1))]

    def __str__(self) -> str:
        return f"{self.what:<44}{self.p95():>8.2f}{max(self.seconds):>8.2f}{self.disconnects:>14}"


class Crowd:
    """The broker, two edges, the connector, and so many devices."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.broker_port = free_port()
        self.edges = [(free_port(), free_port(), free_port()) for _ in range(2)]  # tunnel, HTTPS, MQTTS
        self.wires = [Wire(tunnel) for tunnel, _, _ in self.edges]
        context = ssl.create_default_context(cafile=self.authority.cafile)
        ports = [mqtts for _, _, mqtts in self.edges]
        self.devices = [
            Device(f"device-{n:04d}", tuple(ports if n % 2 else ports[::-1]), context) for n in range(count)
        ]
        self.got: Counter[bytes] = Counter()
        self.losses: list[Loss] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # --- its parts -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        for wire in self.wires:
            await wire.open()
        await asyncio.to_thread(self._write)
        for name in ("broker", "edge0", "edge1", "connector"):
            await self.start_process(name)
        self._tasks.append(asyncio.create_task(self._collect()))
        for device in self.devices:
            self._tasks.append(asyncio.create_task(device.run()))
            await asyncio.sleep(0.002)
        await self.until(lambda: all(device.is_connected for device in self.devices), 60, "every device is connected")
        self._tasks.append(asyncio.create_task(self._speak()))

    def _write(self) -> None:
        first = self.folder / "edge0"
        for number, (tunnel, https, mqtts) in enumerate(self.edges):
            home = self.folder / f"edge{number}"
            (home / "edge" / "certificates").mkdir(parents=True)
            for path in ("edge/tunnel", "edge/certificates/public"):
                for file in self.authority.issue(f"made{number}", "localhost", "127.0.0.1"):
                    file.rename(home / f"{path}{file.suffix}")
            (home / "lockgate.toml").write_text(
                f'[gateway]\nid = "edge{number}"\ndata_dir = "{home}"\n[edge]\nlocation = "edge{number}"\n'
                f'listen_tunnel = ["127.0.0.1:{tunnel}"]\nlisten_https = ["127.0.0.1:{https}"]\n'
                f'listen_mqtts = ["127.0.0.1:{mqtts}"]\n'
            )
        config = ("-c", str(first / "lockgate.toml"))
        token = _lockgate("edge", "tunnel", "create", "crowd", *config).strip().splitlines()[-1]
        target = f"127.0.0.1:{self.broker_port}"
        _lockgate("edge", "tunnel", "route", "crowd", "localhost", "--mqtts", "--target", target, *config)
        (self.folder / "edge1" / "edge" / "tunnels.json").write_bytes((first / "edge" / "tunnels.json").read_bytes())
        (self.folder / "token").write_text(token)
        (self.folder / "mosquitto.conf").write_text(
            f"listener {self.broker_port} 127.0.0.1\nallow_anonymous true\n"
            "max_queued_messages 0\nconnection_messages false\n"
        )
        edges = ", ".join(f'"127.0.0.1:{wire.port}"' for wire in self.wires)
        (self.folder / "lockgate.toml").write_text(
            f"""
[gateway]
id = "crowd"
data_dir = "{self.folder}/data"
[broker]
mosquitto_conf = "mosquitto.conf"
[connector]
token_file = "token"
ca_file = "{self.authority.cafile}"
edges = [{edges}]
metrics = "127.0.0.1:{free_port()}"
allow = ["{target}"]
"""
        )

    async def start_process(self, name: str) -> None:
        """Start one, and wait until it is ready."""
        folder = self.folder / name if name.startswith("edge") else self.folder
        log = self.folder / f"{name}.log"
        before = log.read_text().count("is ready") if log.exists() else 0
        with log.open("ab") as stream:
            service = name.rstrip("01")
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "lockgate", "run", service, "-c", str(folder / "lockgate.toml")],
                stdout=stream,
                stderr=stream,
            )
        await self.until(lambda: log.read_text().count("is ready") > before, 30, f"{name} is ready")
        if name == "connector":
            await self.until(lambda: sum(wire.count for wire in self.wires) == 4, 30, "four connections")

    async def kill(self, name: str) -> None:
        """kill -9."""
        process = self._processes.pop(name)
        process.kill()
        await asyncio.to_thread(process.wait)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._processes):
            await self.kill(name)
        for wire in self.wires:
            wire.close()

    async def until(self, condition: object, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            if time.monotonic() > deadline:
                logs = {path.name: path.read_text()[-2000:] for path in self.folder.glob("*.log")}
                raise AssertionError(f"not in {seconds:g} s: {what}; {logs}")
            await asyncio.sleep(0.02)

    # --- what happens --------------------------------------------------------------------------------------------

    async def _speak(self) -> None:
        """Every device says something each second, spread over it."""
        while True:
            for device in self.devices:
                device.publish()
                await asyncio.sleep(1.0 / len(self.devices))

    async def _collect(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                _, link = await asyncio.get_running_loop().create_connection(
                    lambda: _Collecting("collector", self.got), "127.0.0.1", self.broker_port
                )
                await link.accepted
                link.transport.write(encode(Subscribe(1, [SubscriptionRequest("from/#", 1)]), V3_1_1))
                await link.ended
            await asyncio.sleep(0.1)

    async def lose(self, what: str, how: object) -> Loss:
        """Do it, have every device say something, and see when each is heard."""
        disconnects = sum(device.disconnects for device in self.devices)
        begin = time.monotonic()
        for device in self.devices:
            device.asked, device.answered = begin, 0.0
        done = how()  # type: ignore[operator]
        if asyncio.iscoroutine(done):
            await done
        for device in self.devices:
            device.publish()
        await self.until(lambda: all(device.answered for device in self.devices), 60, f"all heard after: {what}")
        seconds = [device.answered - begin for device in self.devices]
        loss = Loss(what, seconds, sum(device.disconnects for device in self.devices) - disconnects)
        self.losses.append(loss)
        return loss

    async def settle(self) -> tuple[int, int]:
        """End the talk; give how many were acknowledged, and how many of these are lost."""
        self._tasks.pop().cancel()
        await self.until(lambda: not any(device.waiting for device in self.devices), _QUIET_SECONDS, "all acknowledged")
        acknowledged = set().union(*(device.acknowledged for device in self.devices))
        with contextlib.suppress(AssertionError):
            await self.until(lambda: not acknowledged - self.got.keys(), _QUIET_SECONDS, "all collected")
        return len(acknowledged), len(acknowledged - self.got.keys())


def _lockgate(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "lockgate", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout


@contextlib.asynccontextmanager
async def crowd(folder: Path, count: int) -> AsyncIterator[Crowd]:
    made = Crowd(folder, count)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def kill_everything(made: Crowd, rounds: int) -> None:
    """One part after the other, each back before the next."""
    for number in range(rounds):
        for wire in made.wires:
            await made.lose("one of four connections", wire.cut_one)
            await made.until(lambda: sum(one.count for one in made.wires) == 4, 30, "four connections")
        await made.lose("the connector (kill -9, started again)", lambda: _again(made, "connector"))
        name = f"edge{number % 2}"
        await made.lose("one edge of two (kill -9)", lambda name=name: made.kill(name))
        await made.start_process(name)
        await made.until(lambda: sum(one.count for one in made.wires) == 4, 60, "four connections")


async def _again(made: Crowd, name: str) -> None:
    await made.kill(name)
    await made.start_process(name)


async def main(count: int, rounds: int) -> int:
    with tempfile.TemporaryDirectory(prefix="lockgate-crowd-") as folder:
        async with crowd(Path(folder), count) as made:
            await kill_everything(made, rounds)
            acknowledged, lost = await made.settle()
            print(f"{count} devices; seconds until heard again:{'p95':>18}{'max':>8}{'disconnects':>14}")
            for loss in made.losses:
                print(loss)
            print(f"{acknowledged} messages acknowledged at QoS 1, {lost} of them lost")
            return 1 if lost or any(loss.disconnects for loss in made.losses if "of four" in loss.what) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 2)))
