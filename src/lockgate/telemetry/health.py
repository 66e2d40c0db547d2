"""A status socket for each service: whoever connects gets one JSON object."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

MAX_PATH = 107  # bytes of an address of a Unix socket


class StatusServer:
    """Answers each connection to the Unix socket `path` with the JSON of `status()`, called on the loop that opened it.

    The socket is there exactly as long as the service is ready, so connecting to it is also the test of readiness.
    """

    def __init__(self, path: Path, status: Callable[[], Mapping[str, object]]) -> None:
        self._path = path
        self._status = status
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Open the socket. Raises OSError with a clear text if it cannot be, or if another process answers there."""
        if len(os.fsencode(self._path)) > MAX_PATH:
            raise OSError(f"{self._path}: a status socket's path holds at most {MAX_PATH} bytes; set gateway.run_dir")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if _somebody_listens(self._path):
            raise OSError(f"{self._path}: the same service of this gateway is already running")
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._answer, self._path)
        self._path.chmod(0o660)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(json.dumps(dict(self._status())).encode() + b"\n")
            await writer.drain()
        writer.close()


def ask(path: Path, timeout: float = 1.0) -> dict[str, object] | None:
    """What the service behind the socket `path` says, or None when there is none or it does not answer in time."""
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            while chunk := connection.recv(65536):
                answer += chunk
        said = json.loads(answer)
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(os.fspath(path))
        except OSError:
            return False
    return True
