"""Recipes: the page in docs/how-to/recipes, and the gateway that runs from a copy of its folder in examples/recipes."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import pytest

from lockgate.telemetry import health
from tests.support.peers import free_port, program

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = ROOT / "examples" / "recipes"
PAGES: Final = ROOT / "docs" / "how-to" / "recipes"
WAIT: Final = 20.0
T = TypeVar("T")


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def blocks(name: str, kind: str) -> list[str]:
    """What the page shows as ```kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page(name), re.M | re.S)


def arrives(name: str) -> list[dict[str, Any]]:
    """What the page says arrives: the lines of its blocks of JSON."""
    return [json.loads(line) for text in blocks(name, "json") for line in text.splitlines()]


def until(find: Callable[[], T], seconds: float = WAIT) -> T:
    """Give what `find` gives once that is something; other processes set no event of ours."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


class Recipe:
    """A copy of a recipe's folder that runs as its page says, but for the port and what `overrides` sets."""

    def __init__(self, name: str, folder: Path, **overrides: str) -> None:
        self.name = name
        self.folder = folder / name
        shutil.copytree(EXAMPLES / name, self.folder)
        self.port = free_port()
        conf = self.folder / "mosquitto.conf"
        conf.write_text(conf.read_text().replace("listener 1883", f"listener {self.port} 127.0.0.1"))
        self.environment = {
            **os.environ,
            "LOCKGATE_PROCESSOR_URL": f"mqtt://127.0.0.1:{self.port}",
            **{f"LOCKGATE_{key}": value for key, value in overrides.items()},
        }
        self.log = folder / "output"
        self._process: subprocess.Popen[bytes] | None = None

    def lockgate(self, *words: str) -> str:
        """What the program says; it has to succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "lockgate", *words],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=WAIT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr + self._said()
        return done.stdout

    def start(self) -> None:
        """`lockgate up`, until every service is ready."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lockgate", "up"],
                cwd=self.folder, env=self.environment, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            until(self._ready)
        except AssertionError:
            pytest.fail(self._said())

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(WAIT)
            self._process = None

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Run it, and ask the books when it has stopped."""
        self.start()
        try:
            yield self
        except BaseException:
            print(self._said())
            raise
        finally:
            self.stop()
        self.lockgate("ledger")

    def run(self, block: int, **environment: str) -> None:
        """Run a block ```sh of the page in the folder, with Debian's programs at this recipe's port."""
        publisher = f'mosquitto_pub() {{ {program("mosquitto_pub")} -p {self.port} "$@"; }}\n'
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", publisher + blocks(self.name, "sh")[block]],
            cwd=self.folder, env={**self.environment, **environment},
            capture_output=True, text=True, timeout=WAIT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr + self._said()

    def status(self, service: str) -> dict[str, Any]:
        """What `lockgate status` would say of it."""
        said = health.ask(self.folder / "data" / "run" / f"{service}.sock") or {}
        status = said.get("status")
        return status if isinstance(status, dict) else {}

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None
        return all(self.status(service) for service in ("broker", "processor", "forwarder"))

    def _said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


class Receiver:
    """An HTTP server that takes what a sink POSTs, after `open_()`: until then it answers 503."""

    def __init__(self) -> None:
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.requests: queue.Queue[tuple[str, dict[str, str], int]] = queue.Queue()  # path, headers, messages
        self.refused: queue.Queue[float] = queue.Queue()  # when
        self._open = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.take(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def take(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        if not self._open.is_set():
            self.refused.put(time.monotonic())
            request.send_response(503)
        else:
            if request.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            read = json.loads(body)
            taken = read if isinstance(read, list) else [read]
            self.requests.put((request.path, {key.lower(): text for key, text in request.headers.items()}, len(taken)))
            for message in taken:
                self.messages.put(message)
            request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def open_(self) -> None:
        self._open.set()

    def next(self) -> dict[str, Any]:
        """The next message, without what differs each time."""
        return shown(self.messages.get(timeout=WAIT))

    def some(self, count: int) -> list[dict[str, Any]]:
        return [self.next() for _ in range(count)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT)


def shown(message: dict[str, Any]) -> dict[str, Any]:
    """A message as pages show it: without the id and the times."""
    return {key: value for key, value in message.items() if key not in ("id", "time", "clock_ok", "device_time")}
