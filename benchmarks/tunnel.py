"""What the tunnel costs beside a direct connection: delay, rate, bulk, memory, and what a stalled neighbour adds.

Devices speak MQTT over TLS, to mosquitto itself and through edge and connector to the same mosquitto. Edge and
connector share one core; mosquitto, the devices and the origin of the bulk transfer share the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import trustme
import uvloop

from benchmarks import brokers
from benchmarks.machine import describe
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V3_1_1, Connect, Publish, Subscribe, SubscriptionRequest

_PAYLOAD = 64
_BULK = 512 * 1024 * 1024
_TURNS = 5  # one with nobody else on the machine's cores is rare


@dataclass
class Setting:
    """Where everything listens, and the processes."""

    context: ssl.SSLContext
    direct_port: int
    mqtts_port: int
    https_port: int
    bulk_port: int
    edge: int
    connector: int


class Device(asyncio.Protocol):
    """Publishes to a topic of its own and hears it again."""

    def __init__(self, name: str) -> None:
        self.topic = f"d/{name}"
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.delays: list[float] = []
        self.got = 0
        self.window = 0  # messages kept on the way; 0: none but those of `publish`
        self._sent: list[float] = []
        self._rest = 0
        self._stage = 0
        self._size = len(encode(self._message(), V3_1_1))
        self._connect = encode(Connect(name, V3_1_1), V3_1_1)

    def _message(self) -> Publish:
        return Publish(self.topic, b"x" * _PAYLOAD)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._connect)
        self._bytes = encode(self._message(), V3_1_1)

    def publish(self, due: float) -> None:
        self._sent.append(due)
        self.transport.write(self._bytes)

    def data_received(self, data: bytes) -> None:
        if self._stage == 0:
            self._stage = 1
            self.transport.write(encode(Subscribe(1, [SubscriptionRequest(self.topic, 0)]), V3_1_1))
            return
        if self._stage == 1:
            self._stage = 2
            self.ready.set_result(None)
            return
        self._rest += len(data)
        now = time.perf_counter()
        while self._rest >= self._size:
            self._rest -= self._size
            self.got += 1
            if self.window:
                self.transport.write(self._bytes)
            else:
                self.delays.append(now - self._sent[len(self.delays)])


async def devices(setting: Setting, port: int, count: int, name: str) -> list[Device]:
    loop = asyncio.get_running_loop()
    made = []
    for number in range(count):
        _, device = await loop.create_connection(
            lambda number=number: Device(f"{name}-{number:04d}"),  # type: ignore[misc]
            "127.0.0.1", port, ssl=setting.context, server_hostname="localhost",
        )  # fmt: skip
        await asyncio.wait_for(device.ready, 20)
        made.append(device)
    return made


async def delays(setting: Setting, port: int, rate: int, seconds: float, name: str) -> list[float]:
    """Sorted, of messages that are due at an even rate on ten connections."""
    made = await devices(setting, port, 10, name)
    begin = time.perf_counter() + 0.05
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        while (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left if left > 0.002 else 0)
        made[number % 10].publish(due)
    await asyncio.sleep(1)
    for device in made:
        device.transport.close()
    return sorted(delay for device in made for delay in device.delays)


async def rate(setting: Setting, port: int, sessions: int, seconds: float, name: str) -> float:
    """Messages a second that come back, ten of each session on the way."""
    made = await devices(setting, port, sessions, name)
    for device in made:
        device.window = 10
        device.transport.write(device._bytes * device.window)
    await asyncio.sleep(0.5)
    before, begin = sum(device.got for device in made), time.perf_counter()
    await asyncio.sleep(seconds)
    count = (sum(device.got for device in made) - before) / (time.perf_counter() - begin)
    for device in made:
        device.transport.abort()
    return count


async def download(setting: Setting, size: int = _BULK, *, stalled: bool = False) -> tuple[float, asyncio.StreamWriter]:
    """MB/s of one answer through the tunnel; a stalled one is not read."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", setting.https_port, ssl=setting.context, server_hostname="localhost"
    )
    writer.write(b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % size)
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head:
        raise RuntimeError(head.decode())
    if stalled:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        return 0.0, writer
    begin, got = time.perf_counter(), 0
    while got < size:
        data = await reader.read(1 << 20)
        if not data:
            raise RuntimeError("the download broke off")
        got += len(data)
    return size / (time.perf_counter() - begin) / 1e6, writer


async def bulk_origin(port: int) -> asyncio.Server:
    """Answers GET /N with N bytes."""
    chunk = bytes(1 << 18)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                left = int(request.split()[1].removeprefix(b"/"))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
                while left:
                    writer.write(chunk[:left])
                    left -= min(left, len(chunk))
                    await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port)


def resident(pid: int) -> int:
    """Bytes of a process that are its own."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    return 0


def _share(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] * 1000 if values else float("nan")


async def measure(setting: Setting, seconds: float, sessions: int) -> None:
    server = await bulk_origin(setting.bulk_port)
    print(f"{'delay at 1,000 messages/s, ms':<44}{'p50':>9}{'p99':>9}")
    added: list[list[float]] = []
    for turn in range(_TURNS):
        direct = await delays(setting, setting.direct_port, 1000, seconds, f"direct{turn}")
        tunnel = await delays(setting, setting.mqtts_port, 1000, seconds, f"tunnel{turn}")
        for name, values in (("direct, TLS", direct), ("through the tunnel, TLS", tunnel)):
            print(f"  {name:<42}{_share(values, 0.5):>9.3f}{_share(values, 0.99):>9.3f}")
        added.append([_share(tunnel, share) - _share(direct, share) for share in (0.5, 0.99)])
    middle = [statistics.median(shares) for shares in zip(*added, strict=True)]
    print(f"  {f'added, median of {_TURNS}':<42}{middle[0]:>9.3f}{middle[1]:>9.3f}", flush=True)
    stalled = [(await download(setting, stalled=True))[1] for _ in range(4)]
    await asyncio.sleep(0.5)
    beside = await delays(setting, setting.mqtts_port, 1000, seconds, "beside")
    print(f"  {'through it beside 4 stalled downloads':<42}{_share(beside, 0.5):>9.3f}{_share(beside, 0.99):>9.3f}")
    for writer in stalled:
        writer.transport.abort()
    print(f"{'100 sessions, messages/s there and back':<44}{'direct':>9}{'tunnel':>9}{'ratio':>9}")
    rates = [
        await rate(setting, port, 100, seconds, f"rate{port}") for port in (setting.direct_port, setting.mqtts_port)
    ]
    print(f"  {'64 bytes, QoS 0':<42}{rates[0]:>9.0f}{rates[1]:>9.0f}{rates[1] / rates[0]:>9.2f}", flush=True)
    for _ in range(2):
        speed, writer = await download(setting)
        writer.transport.abort()
        print(f"{f'one download of {_BULK >> 20} MiB over HTTPS, MB/s':<44}{speed:>9.0f}", flush=True)
    first = await devices(setting, setting.mqtts_port, 20, "first")
    await asyncio.sleep(1)
    before = [resident(pid) for pid in (setting.edge, setting.connector)]
    idle = await devices(setting, setting.mqtts_port, sessions, "idle")
    await asyncio.sleep(1)
    after = [resident(pid) for pid in (setting.edge, setting.connector)]
    each = [(now - then) / len(idle) / 1024 for now, then in zip(after, before, strict=True)]
    print(f"{f'KiB of each of {sessions} idle sessions':<44}{'edge':>9}{'connector':>9}")
    print(f"{'':<44}{each[0]:>9.1f}{each[1]:>9.1f}")
    print(f"{'MiB resident with all of them (private)':<44}{after[0] / 2**20:>9.1f}{after[1] / 2**20:>9.1f}")
    for device in (*first, *idle):
        device.transport.abort()
    server.close()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Setting]:
    """Start mosquitto, an edge and a connector."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{folder}/ca.pem")
    (folder / "edge" / "certificates").mkdir(parents=True)
    for path in ("edge/tunnel", "edge/certificates/public", "broker"):
        issued = authority.issue_cert("localhost", "127.0.0.1")
        (folder / f"{path}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(f"{folder}/{path}.key")
    context = ssl.create_default_context(cafile=f"{folder}/ca.pem")
    plain, direct, tunnel, https, mqtts, bulk = (brokers.free_port() for _ in range(6))
    (folder / "mosquitto.conf").write_text(
        f"listener {plain} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 0\n"
        f"listener {direct} 127.0.0.1\nallow_anonymous true\ncertfile {folder}/broker.pem\n"
        f"keyfile {folder}/broker.key\nlog_type error\n" + ("user root\n" if os.geteuid() == 0 else "")
    )
    (folder / "lockgate.toml").write_text(
        f"""
[gateway]
id = "bench"
data_dir = "{folder}"
[edge]
listen_tunnel = ["127.0.0.1:{tunnel}"]
listen_https = ["127.0.0.1:{https}"]
listen_mqtts = ["127.0.0.1:{mqtts}"]
public = ["127.0.0.1:{tunnel}"]
[connector]
token_file = "token"
ca_file = "ca.pem"
metrics = "127.0.0.1:{brokers.free_port()}"
allow = ["127.0.0.1:{plain}", "127.0.0.1:{bulk}"]
[[connector.ingress]]
service = "http://127.0.0.1:{bulk}"
"""
    )
    config = ["-c", str(folder / "lockgate.toml")]
    ours = [sys.executable, "-m", "lockgate"]
    said = subprocess.run(
        [*ours, "edge", "tunnel", "create", "bench", "--host", "localhost", *config],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    (folder / "token").write_text(said.strip().splitlines()[-1])
    route = [*ours, "edge", "tunnel", "route", "bench", "localhost", "--mqtts", "--target", f"127.0.0.1:{plain}"]
    subprocess.run([*route, *config], check=True, capture_output=True)
    processes = []
    try:
        for words, core, log in (
            (["/usr/sbin/mosquitto", "-c", str(folder / "mosquitto.conf")], brokers.LOAD_CORE, "broker"),
            ([*ours, "run", "edge", *config], brokers.BROKER_CORE, "edge"),
            ([*ours, "run", "connector", *config], brokers.BROKER_CORE, "connector"),
        ):
            with (folder / f"{log}.log").open("wb") as stream:
                processes.append(
                    subprocess.Popen(
                        words, stdout=stream, stderr=stream, cwd=folder,
                        preexec_fn=lambda core=core: os.sched_setaffinity(0, {core}),  # type: ignore[misc]
                    )
                )  # fmt: skip
            _wait(folder / f"{log}.log", log, mqtts if log == "edge" else plain)
        yield Setting(context, direct, mqtts, https, bulk, processes[1].pid, processes[2].pid)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(log: Path, name: str, port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if name != "connector":
                socket.create_connection(("127.0.0.1", port)).close()
                return
            if log.read_text().count("is registered at") == 4:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{name} does not start: {log.read_text()}")


def main(seconds: float = 4.0, sessions: int = 500) -> None:
    """Print a table."""
    print(describe())
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    with tempfile.TemporaryDirectory(prefix="lockgate-bench-") as folder, running(Path(folder)) as setting:
        uvloop.run(measure(setting, seconds, sessions))


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 4.0)
