"""Runs each service as a child process: restarts it with back-off, shows its output, and takes it along when we end."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lockgate.telemetry import health

log = logging.getLogger(__name__)

STOP_SECONDS = 2.7  # then what still runs is killed
STABLE_SECONDS = 20.0  # a child that ran this long starts over with the shortest pause
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
READY_SECONDS = 15.0  # after that the others start anyway, and reach the late one by their own retries

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Child:
    """One service as a process. `restarts` counts how often it had to be started again."""

    def __init__(self, name: str, command: Sequence[str], socket: Path, write: Callable[[str, str], None]) -> None:
        self.name = name
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._command = command
        self._socket = socket
        self._write = write

    async def keep_running(self) -> None:
        """Start the process again whenever it ends, until cancelled; the process then still runs."""
        failures = 0
        while True:
            started = time.monotonic()
            code = await self._run_once()
            if time.monotonic() - started > STABLE_SECONDS:
                failures = 0
            pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)]
            failures += 1
            self.restarts += 1
            log.warning("%s ended (%s); starting it again in %g s", self.name, _how(code), pause)
            await asyncio.sleep(pause)

    async def ready(self) -> None:
        """Return when the service answers on its status socket."""
        while await asyncio.to_thread(health.ask, self._socket) is None:
            await asyncio.sleep(0.05)

    async def stop(self, deadline: float) -> None:
        """End the process with SIGTERM, at `deadline` (time.monotonic) with SIGKILL."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            log.error("%s did not stop in time and was killed", self.name)
            process.kill()
            await process.wait()

    async def _run_once(self) -> int:
        parent = os.getpid()

        def before_exec() -> None:
            # The child gets SIGTERM when we end, even by SIGKILL; and if we already have, it ends here. A group of its
            # own keeps the terminal's Ctrl-C from it: we stop the children, in their order.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)
            os.setpgid(0, 0)

        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            preexec_fn=before_exec,
            limit=1024 * 1024,
        )
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self._write(self.name, line.decode(errors="replace").rstrip("\n"))
        return await self.process.wait()


class Supervisor:
    """The children, started in order: the first is waited for, since the others need it."""

    def __init__(
        self,
        names: Sequence[str],
        command: Callable[[str], Sequence[str]],
        sockets_dir: Path,
        write: Callable[[str, str], None],
    ) -> None:
        self.children = [Child(name, command(name), sockets_dir / f"{name}.sock", write) for name in names]

    async def run(self, stop: asyncio.Event) -> None:
        """Keep all children running until `stop` is set; then end them in reverse order of starting, within 3 s."""
        tasks: list[asyncio.Task[None]] = []
        stopping = asyncio.create_task(stop.wait())
        try:
            for number, child in enumerate(self.children):
                if stop.is_set():
                    break
                tasks.append(asyncio.create_task(child.keep_running()))
                if number == 0:
                    ready = asyncio.create_task(child.ready())
                    await asyncio.wait({ready, stopping}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    ready.cancel()
            await stopping
        finally:
            for task in tasks:
                task.cancel()
            deadline = time.monotonic() + STOP_SECONDS
            # Together, but each a little after those that rely on it: so none sees its broker vanish first.
            stops = []
            for child in reversed(self.children):
                stops.append(asyncio.create_task(child.stop(deadline)))
                await asyncio.wait({stops[-1]}, timeout=0.5)
            await asyncio.gather(*stops)

    def restarts(self) -> Mapping[str, int]:
        return {child.name: child.restarts for child in self.children}


def run_command(config_path: Path | None, name: str) -> list[str]:
    """The command line that hosts the service `name` alone."""
    configured = ["-c", str(config_path)] if config_path is not None else []
    return [sys.executable, "-m", "lockgate", "run", *configured, name]


def _how(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    return f"killed by {signal.Signals(-code).name}"
