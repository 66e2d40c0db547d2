"""Tells systemd how a service is (sd_notify(3)), where it asked for that: units of Mosquitto say `Type=notify`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"


def tell(state: str) -> None:
    """Say how this process is; nothing is said, and nothing is wrong, where nobody asked."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
    except OSError as error:
        log.warning("the service manager at %s cannot be told %s: %s", address, state, error.strerror or error)


@contextlib.asynccontextmanager
async def alive() -> AsyncIterator[None]:
    """Tell again and again that the loop turns, twice in the unit's WatchdogSec (sd_watchdog_enabled(3))."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        yield
        return
    task = asyncio.create_task(_repeat(int(microseconds) / 2e6))
    try:
        yield
    finally:
        task.cancel()


async def _repeat(seconds: float) -> None:
    while True:
        tell(ALIVE)
        await asyncio.sleep(seconds)
