"""JSON lines in a file, or a file of Parquet for each batch."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from lockgate.buffer import Row
from lockgate.config.model import FileSinkConfig
from lockgate.files import replace, sync_folder
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import Sent
from lockgate.forwarder.sinks.parquet import Parquet

_BLOCK: Final = 64 * 1024


class FileSink:
    """One line a message, synced before it counts as delivered.

    The file is opened for each batch, so that it may be rotated away, and then freed of the half line that a power cut
    left.
    """

    def __init__(self, config: FileSinkConfig, messages: Messages) -> None:
        self._path = config.path
        self._timeout = config.timeout_seconds
        self._messages = messages
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix=f"sink {config.name}"
        )  # a disk that hangs holds only us
        self._running: asyncio.Future[None] | None = None

    async def send(self, rows: Sequence[Row]) -> Sent:
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().run_in_executor(self._thread, self._write, rows)
            await asyncio.wait([self._running], timeout=self._timeout)
            if self._running.done():
                error = self._running.exception()
                if error is None:
                    return Sent(len(rows))
                if not isinstance(error, OSError):
                    raise error
                return Sent(0, fault=f"{self._path}: {error.strerror or error}")
        else:
            await asyncio.wait([self._running], timeout=self._timeout)
            if self._running.done():  # too late for its rows, which are sent again
                self._running.exception()
                return await self.send(rows)
        return Sent(0, fault=f"{self._path}: writing takes longer than {self._timeout:g} seconds")

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _write(self, rows: Sequence[Row]) -> None:
        data = self._messages.documents(rows, b"", b"\n", b"\n")
        new = not self._path.exists()
        if new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            whole = _end_of_last_line(file)
            if whole < os.fstat(file).st_size:
                os.ftruncate(file, whole)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(file, rest) :]
                os.fsync(file)
            except OSError:
                with contextlib.suppress(OSError):  # a full disk: no half line stays
                    os.ftruncate(file, whole)
                raise
        finally:
            os.close(file)
        if new:
            sync_folder(self._path.parent)


class ParquetFileSink(FileSink):
    """A file of Parquet for each batch, `class/YYYY/MM/DD/GATEWAY-FIRST-LAST.parquet` in a folder.

    It is there whole or not at all, and written again it is the same file.
    """

    def __init__(self, config: FileSinkConfig, messages: Messages) -> None:
        self._parquet = Parquet(config.name, config.compression, messages)
        super().__init__(config, messages)

    def _write(self, rows: Sequence[Row]) -> None:
        path = self._path / f"{self._messages.name_of(rows)}.parquet"
        data = self._parquet.write(rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, data, mode=0o666)
        folder = path.parent
        while folder != self._path.parent:  # each may be new
            sync_folder(folder)
            folder = folder.parent


def _end_of_last_line(file: int) -> int:
    """How many bytes of the file are whole lines."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
