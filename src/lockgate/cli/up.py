"""`lockgate up`: every service as a child process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from lockgate import app
from lockgate.cli.common import add_config_argument, load_config
from lockgate.config.errors import ConfigError
from lockgate.config.model import Config, LogConfig
from lockgate.sqlite import FolderInUse, FolderLock
from lockgate.supervisor import STOP_SECONDS, Supervisor, run_command
from lockgate.telemetry import logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--demo", action="store_true", help="a gateway with devices and a cloud, all on this machine")
    parser.add_argument(
        "--dir", type=Path, default=Path(".demo"), help="where the demo keeps everything (default: %(default)s)"
    )


def main(arguments: argparse.Namespace) -> int:
    if arguments.demo:
        try:
            from lockgate.demo.run import run_demo
        except ModuleNotFoundError as error:
            if error.name not in ("psutil", "rich"):
                raise
            raise ConfigError(f"the demo needs {error.name}: pip install 'lockgate[demo]'") from None
        return run_demo(arguments.dir)
    config = load_config(arguments)
    logs.configure(LogConfig())
    supervisor = Supervisor(
        app.stages(config),
        lambda name: run_command(config.path, name),
        config.gateway.sockets_dir,
        write_prefixed,
        max(STOP_SECONDS, config.connector.grace_seconds if "connector" in app.services(config) else 0.0),
    )
    with alone(config):
        asyncio.run(run_until_signal(supervisor))
    return 0


@contextlib.contextmanager
def alone(config: Config) -> Iterator[None]:
    """Hold the gateway against a second `lockgate up`, whose children would fight with ours; raises ConfigError."""
    folder = config.gateway.sockets_dir
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder, "up.lock")
    try:
        lock.acquire()
    except FolderInUse as error:
        holder = f"process {error.pid}" if error.pid else "another process"
        raise ConfigError(f"this gateway is already running: lockgate up, {holder}", path=config.path) from None
    try:
        yield
    finally:
        lock.release()


async def run_until_signal(supervisor: Supervisor) -> None:
    """Run the children until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    await supervisor.run(stop)


def write_prefixed(name: str, line: str) -> None:
    print(f"{name:<12}| {line}", file=sys.stderr, flush=True)
