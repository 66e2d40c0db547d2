"""`lockgate up --demo`: the supervisor with the demo's services, and the view of them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from lockgate import app
from lockgate.buffer.ledger import Ledger, read_ledger
from lockgate.cli.up import alone, run_until_signal, write_prefixed
from lockgate.config import lockgate_toml
from lockgate.config.model import Config, LogConfig
from lockgate.demo import view
from lockgate.demo.files import write_configuration
from lockgate.supervisor import Supervisor, run_command
from lockgate.telemetry import health, logs

# The devices come last, so that their first reading already finds its whole way.
STAGES = (("broker",), ("processor", "forwarder", "demo-cloud"), ("demo-device",))
NAMES = (*app.SERVICES, *app.DEMO_SERVICES)
PLAIN_SECONDS = 5.0


def run_demo(folder: Path) -> int:
    """Run until SIGTERM or Ctrl-C. Raises ConfigError for a configuration in `folder` that cannot be used."""
    config = lockgate_toml.load(write_configuration(folder), os.environ)
    console = Console()
    log_path = folder / "lockgate.log"
    live = console.is_terminal
    troubles: dict[str, str] = {}  # the last error of each service, shown while it is down
    logs.configure(LogConfig(destinations=(f"file {log_path}" if live else "stderr",)))
    with alone(config), log_path.open("a", buffering=1) as log_file:

        def write(name: str, line: str) -> None:
            log_file.write(f"{name:<12}| {line}\n")
            _, error, text = line.partition("Error: ")
            if error:
                troubles[name] = text

        supervisor = Supervisor(
            STAGES,
            lambda name: run_command(config.path, name),
            config.gateway.sockets_dir,
            write if live else write_prefixed,
        )
        ports = ", ".join(str(listener.port) for listener in config.broker.listeners)
        print(
            f"Warning: the demo's broker lets in everybody who reaches port {ports} of this machine.", file=sys.stderr
        )
        print(f"Join in:  {view.JOIN}", file=sys.stderr, flush=True)
        show = _show_table(supervisor, config, console, troubles, log_path) if live else _show_lines(supervisor, config)
        asyncio.run(_run(supervisor, show))
    return 0


async def _run(supervisor: Supervisor, show: Coroutine[None, None, None]) -> None:
    showing = asyncio.create_task(show)
    try:
        await run_until_signal(supervisor)
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing


async def _show_table(
    supervisor: Supervisor, config: Config, console: Console, troubles: Mapping[str, str], log_path: Path
) -> None:
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            answers, ledger = await asyncio.to_thread(_look, config)
            rows = view.hops(answers, ledger, supervisor.restarts())
            live.update(view.screen(rows, answers, troubles, str(log_path)), refresh=True)
            await asyncio.sleep(1.0)


async def _show_lines(supervisor: Supervisor, config: Config) -> None:
    seen: list[str] = []
    while True:
        await asyncio.sleep(PLAIN_SECONDS)
        answers, ledger = await asyncio.to_thread(_look, config)
        print(view.line(view.hops(answers, ledger, supervisor.restarts())), flush=True)
        recent = view.recent(answers)
        for message in recent:
            if message not in seen:
                print(f"cloud received {message}", flush=True)
        seen = recent


def _look(config: Config) -> tuple[view.Answers, Ledger | None]:
    folder = config.gateway.sockets_dir
    answers = {name: health.ask(folder / f"{name}.sock") for name in NAMES}
    try:
        return answers, read_ledger(config.gateway.buffer_dir)
    except (OSError, sqlite3.Error):  # the processor has not made it yet, or turns to a new segment just now
        return answers, None
