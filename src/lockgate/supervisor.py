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
from contextlib import suppress
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
        self._command = command
        self._socket = socket
        self._write = write
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    async def keep_running(self) -> None:
        """Start the process again whenever it ends, until `stop`."""
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                ending = _how(await self._run_once())
            except OSError as error:  # no process, no memory for one
                ending = f"it could not be started: {error}"
            if self._stopping.is_set():
                return
            if time.monotonic() - started > STABLE_SECONDS:
                failures = 0
            pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)]
            failures += 1
            log.warning("%s ended (%s); starting it again in %g s", self.name, ending, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            self.restarts += 1

    async def ready(self) -> None:
        """Return when the service answers on its status socket."""
        while await asyncio.to_thread(health.ask, self._socket) is None:
            await asyncio.sleep(0.05)

    def reload(self) -> None:
        """Pass SIGHUP on, if the process runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)

    async def stop(self, deadline: float) -> None:
        """End the process with SIGTERM, at `deadline` (time.monotonic) with SIGKILL."""
        self._stopping.set()
        process = self._process
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
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it listens to it: we may pass one on at any time

        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            preexec_fn=before_exec,
        )
        assert process.stdout is not None
        if self._stopping.is_set():  # while it was being started
            process.terminate()
        rest = b""
        while chunk := await process.stdout.read(65536):  # not by lines: one may be longer than any limit
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._show(line)
        if rest:
            self._show(rest)
        return await process.wait()

    def _show(self, line: bytes) -> None:
        # Its reader has gone, the disk is full: the words are lost, the child must not be.
        with suppress(OSError):
            self._write(self.name, line.decode(errors="replace"))


class Supervisor:
    """The children, started in stages: the next stage begins when all of the one before are ready."""

    def __init__(
        self,
        stages: Sequence[Sequence[str]],
        command: Callable[[str], Sequence[str]],
        sockets_dir: Path,
        write: Callable[[str, str], None],
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        """`stop_seconds`: what all of them together may take to end, before they are killed."""
        self._stop_seconds = stop_seconds
        self._stages = [
            [Child(name, command(name), sockets_dir / f"{name}.sock", write) for name in stage] for stage in stages
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Keep all children running until `stop` is set; then end them, the last stage first."""
        running: list[asyncio.Task[None]] = []
        stopping = asyncio.create_task(stop.wait())
        try:
            for stage in self._stages:
                running += [asyncio.create_task(child.keep_running()) for child in stage]
                ready = asyncio.create_task(_all_ready(stage))
                await asyncio.wait({ready, stopping}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                ready.cancel()
                if stop.is_set():
                    break
            await stopping
        finally:
            deadline = time.monotonic() + self._stop_seconds
            stops: list[asyncio.Task[None]] = []
            for stage in reversed(self._stages):
                # A head start for those that rely on the stages before, so that they do not see them vanish.
                if stops:
                    await asyncio.wait(stops, timeout=0.7)
                stops += [asyncio.create_task(child.stop(deadline)) for child in stage]
            await asyncio.gather(*stops)
            await asyncio.wait(running, timeout=0.2)  # their last words
            for task in running:
                task.cancel()

    def reload(self) -> None:
        """Have the children read again what they can."""
        for stage in self._stages:
            for child in stage:
                child.reload()

    def restarts(self) -> Mapping[str, int]:
        return {child.name: child.restarts for stage in self._stages for child in stage}


async def _all_ready(children: Sequence[Child]) -> None:
    await asyncio.gather(*(child.ready() for child in children))


def run_command(config_path: Path | None, name: str) -> list[str]:
    """The command line that hosts the service `name` alone."""
    configured = ["-c", str(config_path)] if config_path is not None else []
    # -P: nothing is imported from the folder that we happen to be started in.
    return [sys.executable, "-P", "-m", "lockgate", "run", *configured, name]


def _how(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    return f"killed by {signal.Signals(-code).name}"
