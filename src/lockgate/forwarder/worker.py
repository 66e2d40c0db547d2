"""One sink's worker: reads where its cursor stands, sends, and moves the cursor when the receiver has said its word."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from lockgate.buffer import CommitFailed, Cursor, LogReader, Row
from lockgate.config.model import SinkConfig
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import Sent, Sink

log = logging.getLogger(__name__)

T = TypeVar("T")


def now() -> float:
    """Seconds since the boot, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Worker:
    """Delivers every message of a sink's classes at least once, the first class first; it never gives up.

    `news` is set by whoever sees that the log has grown. `opened` is set when the first try to open the cursor is over.
    """

    def __init__(
        self,
        config: SinkConfig,
        order: tuple[str, ...],
        sink: Sink,
        messages: Messages,
        folder: Path,
        reader: LogReader,
    ) -> None:
        self.name = config.name
        self.news = asyncio.Event()
        self.opened = asyncio.Event()
        self._config = config
        self._classes = tuple(name for name in order if name in config.classes)
        self._sink = sink
        self._messages = messages
        self._folder = folder
        self._reader = reader
        self._cursor: Cursor | None = None
        self._failures = 0  # in a row
        self._fault: str | None = None
        self._since = now()  # of the present state
        self._last_success: float | None = None

    async def run(self) -> None:
        """Work until cancelled, which settles what is already sent and closes the cursor."""
        try:
            self._cursor = await self._until_done(self._open, "opening its cursor")
            while True:
                self.news.clear()
                rows = await self._until_done(self._next_rows, "reading the buffer")
                if rows:
                    await self._deliver(rows)
                else:
                    await self.news.wait()
        finally:
            await self._sink.close()
            if self._cursor is not None:
                await self._cursor.close()

    def status(self) -> dict[str, object]:
        """The state of the sink, for JSON."""
        moment = now()
        status: dict[str, object] = {
            "state": "retrying" if self._fault is not None else "ok" if self._cursor is not None else "starting",
            "since_seconds": round(moment - self._since, 1),
            "error": self._fault,
            "last_success_seconds": None if self._last_success is None else round(moment - self._last_success, 1),
        }
        if self._cursor is not None:
            positions = self._cursor.positions()
            appended = self._appended()
            status["pending"] = {
                name: max(0, appended[name] - positions[name].number) for name in self._classes if name in appended
            }
            for term in ("delivered", "retried", "dead_lettered"):
                status[term] = sum(getattr(positions[name], term) for name in self._classes)
        return status

    def _appended(self) -> dict[str, int]:
        try:
            return self._reader.state().appended
        except Exception:  # told by the work that needs it; a status must not fail
            return {}

    async def _open(self) -> Cursor:
        try:
            cursor = await Cursor.open(self._folder, self.name, self._classes, self._reader)
        finally:
            self.opened.set()
        if cursor.damage is not None:
            log.error(
                "sink %s: its cursor was damaged (%s) and is set aside as %s; what it had delivered may be sent again",
                self.name,
                cursor.damage.finding,
                cursor.damage.path,
            )
        return cursor

    async def _next_rows(self) -> list[Row]:
        """The next batch of the first class that has one."""
        assert self._cursor is not None
        for message_class in self._classes:
            rows = self._reader.read(message_class, self._cursor.position(message_class).seq, self._config.batch)
            if rows:
                return rows
        return []

    async def _deliver(self, rows: list[Row]) -> None:
        try:
            sent = await self._sink.send(rows)
        except Exception:
            log.exception("sink %s: sending failed for a reason of our own", self.name)
            sent = Sent(0, fault="an error of ours, see the log")
        if sent.settled:
            settled = rows[: sent.settled]
            letters = {
                row.seq: (self._messages.id_of(row), sent.poison[row.seq]) for row in settled if row.seq in sent.poison
            }
            for seq, reason in sent.poison.items():
                log.warning(
                    "sink %s: message %s/%d is refused, a dead letter: %s",
                    self.name,
                    self._messages.gateway_id,
                    seq,
                    reason,
                )
            # What is sent is settled, even if we are being stopped: otherwise it would be sent twice.
            await _finish(self._until_done(lambda: self._settle(settled, letters), "writing its cursor"))
            self._last_success = now()
        if sent.fault is None:
            self._recovered()
            return
        try:
            await self._cursor_of().count_retries(rows[0].message_class, 1)
        except CommitFailed as error:
            log.warning("sink %s: a retry is not counted: %s", self.name, error.__cause__ or error)
        await self._wait_after(sent.fault)

    def _cursor_of(self) -> Cursor:
        assert self._cursor is not None
        return self._cursor

    async def _settle(self, rows: list[Row], letters: dict[int, tuple[str, str]]) -> None:
        await self._cursor_of().settle(rows, dead_letters=letters)

    async def _until_done(self, work: Callable[[], Awaitable[T]], doing: str) -> T:
        """Give what `work` gives, however often it must be tried: the disk may be full, a segment damaged."""
        while True:
            try:
                result = await work()
            except Exception as error:
                await self._wait_after(f"{doing}: {error.__cause__ or error}")
            else:
                if self._fault is not None and self._fault.startswith(f"{doing}: "):
                    self._recovered()
                return result

    async def _wait_after(self, fault: str) -> None:
        """Full-jitter back-off; a fault that stays the same is told once."""
        if self._fault is None:
            self._since = now()
        if fault != self._fault:
            log.warning("sink %s: %s; trying again", self.name, fault)
            self._fault = fault
        shortest, longest = self._config.retry_min_seconds, self._config.retry_max_seconds
        self._failures += 1
        await asyncio.sleep(random.uniform(shortest, min(longest, shortest * 2.0 ** min(self._failures, 30))))

    def _recovered(self) -> None:
        self._failures = 0
        if self._fault is not None:
            log.info("sink %s: works again after %.1f seconds", self.name, now() - self._since)
            self._fault = None
            self._since = now()


async def _finish(work: Awaitable[T]) -> T:
    """Wait for `work` even when cancelled meanwhile; the cancellation follows. A second one does not wait."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=2.0)
        task.cancel()
        raise
