"""Hosting services: order of start and stop, failures, and what becomes of the others. Each case is its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate import app
from lockgate.config.model import BrokerConfig, BufferConfig, Config, ForwarderConfig, GatewayConfig, ProcessorConfig
from lockgate.telemetry import health

SCRIPT = """
import asyncio, errno, os, sys, threading
from pathlib import Path
from lockgate import app
from lockgate.config.errors import ConfigError
from lockgate.config.model import *
from lockgate.telemetry import logs

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole, beside other threads' lines

class Service:
    def __init__(self, name):
        self.name = name
    async def run(self, ready):
        say("start", self.name, threading.current_thread() is threading.main_thread())
        try:
            if self.name == "misconfigured": raise ConfigError("no good", key="a.b")
            if self.name == "portless":
                error = OSError(errno.EADDRINUSE, "port 1 on x is in use"); error.port = 1
                raise error
            if self.name == "crashing": raise ZeroDivisionError
            if self.name != "never-ready": ready()
            if self.name == "ending": return
            if self.name == "failing": await asyncio.sleep(0.05); raise ValueError("broken")
            await asyncio.Event().wait()
        finally:
            if self.name == "stubborn":
                while True:
                    try: await asyncio.sleep(60)
                    except asyncio.CancelledError: pass
            say("stop", self.name)
    def status(self):
        return {"answer": 42}

class Reloading(Service):
    async def reload(self, config):
        say("reload", self.name)

def build(name):
    return lambda config: Reloading(name) if name == "reloading" else Service(name)

folder, *names = sys.argv[1:]
log = LogConfig(destinations=("stdout",), timestamp=False)
config = Config(path=None, gateway=GatewayConfig(id="g", data_dir=Path(folder)), broker=BrokerConfig(log=log),
    processor=ProcessorConfig(), buffer=BufferConfig(), forwarder=ForwarderConfig())
logs.configure(log)
sys.exit(app.run(config, names, {name: build(name) for name in names}, lambda: config))
"""


class Process:
    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder = folder
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._process.pid

    def wait_for(self, line: str) -> None:
        assert self._process.stdout is not None
        while line not in self._lines:
            text = self._process.stdout.readline()
            assert text, f"{line!r} never came: {self._lines}"
            self._lines.append(text.rstrip("\n"))

    def end(self) -> tuple[int, list[str]]:
        """Exit status, and everything it printed."""
        out, _ = self._process.communicate(timeout=20)
        return self._process.returncode, self._lines + out.splitlines()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.close()


@pytest.fixture
def start(tmp_path: Path, processes: list[Process]):  # type: ignore[no-untyped-def]
    def start_process(*names: str) -> Process:
        processes.append(Process(tmp_path, names))
        return processes[-1]

    return start_process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_service_runs_on_the_main_thread_and_stops_on_a_signal(start, number: signal.Signals) -> None:  # type: ignore[no-untyped-def]
    process = start("alone")
    process.wait_for("alone is ready")
    answer = health.ask(process.folder / "run" / "alone.sock")
    assert answer is not None
    assert (answer["service"], answer["pid"], answer["status"]) == ("alone", process.pid, {"answer": 42})
    os.kill(process.pid, number)
    code, lines = process.end()
    assert code == 0
    assert lines == ["start alone True", "alone is ready", "stop alone", "alone has stopped"]
    assert not (process.folder / "run" / "alone.sock").exists()


def test_several_start_in_order_on_threads_and_stop_in_reverse(start) -> None:  # type: ignore[no-untyped-def]
    process = start("first", "second", "third")
    process.wait_for("third is ready")
    os.kill(process.pid, signal.SIGTERM)
    code, lines = process.end()
    assert code == 0
    assert [line for line in lines if line.startswith("start")] == [
        f"start {n} False" for n in ("first", "second", "third")
    ]
    assert [line for line in lines if line.startswith("stop")] == ["stop third", "stop second", "stop first"]


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("misconfigured", 3, "Error: misconfigured cannot run: a.b: no good"),
        ("portless", 1, "Error: portless cannot run: port 1 on x is in use, by which program cannot be seen from here"),
        ("crashing", 1, "ZeroDivisionError"),
        ("ending", 1, "RuntimeError: ending ended by itself"),
        ("failing", 1, "ValueError: broken"),
    ],
)
@pytest.mark.parametrize("others", [(), ("other",)])
def test_a_service_that_fails_ends_the_process_and_the_others_stop_cleanly(  # type: ignore[no-untyped-def]
    start, name: str, code: int, says: str, others: tuple[str, ...]
) -> None:
    exit_code, lines = start(*others, name).end()
    assert exit_code == code
    assert says in "\n".join(lines)
    assert all(f"{other} has stopped" in lines for other in others)


def test_a_service_that_fails_while_the_next_one_starts_ends_the_process(start) -> None:  # type: ignore[no-untyped-def]
    code, lines = start("failing", "never-ready").end()
    assert code == 1
    assert "never-ready has stopped" in lines


def test_a_host_asked_to_stop_before_it_runs_never_builds_its_service(tmp_path: Path) -> None:
    def build(_config: Config) -> app.Service:
        raise AssertionError("built")

    config = Config(
        path=None,
        gateway=GatewayConfig(id="g", data_dir=tmp_path),
        broker=BrokerConfig(),
        processor=ProcessorConfig(),
        buffer=BufferConfig(),
        forwarder=ForwarderConfig(),
    )
    host = app._Host("a", build, config, lambda: config)
    host.request_stop(time.monotonic() + 1)
    host.run(lambda: None)
    assert host.exit_code == 0


def test_an_error_of_the_system_is_told_with_its_file_and_without_its_number() -> None:
    assert app._explain(PermissionError(13, "Permission denied", "/x/y")) == "/x/y: Permission denied"
    assert app._explain(OSError(98, "port 1 on x is in use")) == "port 1 on x is in use"
    assert app._explain(OSError("no number")) == "no number"


@pytest.mark.parametrize("others", [(), ("other",)])
def test_a_hangup_reloads_what_can_be_and_the_rest_is_said(start, others: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    process = start(*others, "reloading")
    process.wait_for("reloading is ready")
    os.kill(process.pid, signal.SIGHUP)
    process.wait_for("reload reloading")
    for other in others:
        process.wait_for(f"Warning: SIGHUP ignored by {other}: nothing of it can be read again yet; restart instead")
    os.kill(process.pid, signal.SIGTERM)
    code, lines = process.end()
    assert code == 0
    assert "Reloading config." in lines


@pytest.mark.parametrize("names", [("stubborn",), ("first", "stubborn")])
def test_a_service_that_does_not_stop_is_left_behind_within_three_seconds(start, names: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    process = start(*names)
    process.wait_for("stubborn is ready")
    started = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    code, lines = process.end()
    assert code == 1
    assert time.monotonic() - started < 5  # 3 s, and what a loaded machine adds
    assert "Error: stubborn did not stop in time" in lines
