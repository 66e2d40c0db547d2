"""One sink's worker: reads where its cursor stands, sends, and moves the cursor when the receiver has said its word."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Final, TypeVar

from lockgate.buffer import CommitFailed, Cursor, LogReader, Row
from lockgate.buffer.cursor import MOST_ISLANDS, Spent
from lockgate.buffer.missing import NOTHING_MISSING, Missing
from lockgate.buffer.reader import ENDLESS
from lockgate.config.model import SinkConfig
from lockgate.forwarder.allowance import Allowance
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import Sent, Sink
from lockgate.telemetry.clock import Clock

log = logging.getLogger(__name__)

T = TypeVar("T")

_LETTERS_SECONDS: Final = 1.0  # how often dead letters to be sent again are looked for, and hours and budgets
_OUR_ERROR: Final = "an error of ours, see the log"
_LIVE_NS: Final = 5_000_000_000  # a live lane whose next row is older is behind


def now() -> float:
    """Seconds since the boot, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Worker:
    """Delivers every message of a sink's classes at least once, the first class first; it never gives up.

    A class of `latest_first` has two lanes: live, which is served with its class, and history, after everything live.
    `news` is set by whoever sees that the log has grown. `opened` is set when the first try to open the cursor is over.
    """

    def __init__(
        self,
        config: SinkConfig,
        order: tuple[str, ...],
        make_sink: Callable[[], Sink],
        messages: Messages,
        folder: Path,
        reader: LogReader,
        latest_first: Collection[str] = (),
    ) -> None:
        self.name = config.name
        self.news = asyncio.Event()
        self.opened = asyncio.Event()
        self._config = config
        self._classes = tuple(name for name in order if name in config.classes)
        self._latest_first = frozenset(latest_first)
        self._make_sink = make_sink
        self._made: Sink | None = None
        self._messages = messages
        self._folder = folder
        self._reader = reader
        self._clock = Clock()
        self._cursor: Cursor | None = None
        self._allowance: Allowance | None = None
        self._held: dict[str, str] = {}  # class: why it may not be sent now
        self._failures = 0  # in a row
        self._fault: str | None = None
        self._suspect: tuple[int, int] = (0, 0)  # the first row of a batch, and how often it had an error for an answer
        self._suspect_letter = 0, 0.0  # the first dead letter that had an error for an answer again, and since when
        self._since = now()  # of the present state
        self._last_success: float | None = None

    async def run(self) -> None:
        """Work until cancelled, which settles what is already sent and closes the cursor."""
        try:
            self._cursor = await self._until_done(self._open, "opening its cursor")
            self._made = await self._until_done(self._make, "it cannot be used")
            spent = await self._until_done(self._cursor.spent, "reading its cursor")
            self._allowance = Allowance(self._config, spent, self._clock)
            looked = 0.0
            while True:
                self.news.clear()
                if now() - looked >= _LETTERS_SECONDS:
                    looked = now()
                    await self._send_letters()
                work = await self._until_done(self._next_work, "reading the buffer")
                if work is not None:
                    await self._deliver(*work)
                else:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.news.wait(), _LETTERS_SECONDS)
        finally:
            try:
                if self._made is not None:
                    await self._made.close()
            except Exception:  # the cursor is closed all the same
                log.exception("sink %s: closing failed", self.name)
            if self._cursor is not None:
                await self._cursor.close()

    def status(self) -> dict[str, object]:
        """The state of the sink, for JSON."""
        moment = now()
        status: dict[str, object] = {
            "state": self._state(),
            "held": dict(self._held),
            "since_seconds": round(moment - self._since, 1),
            "error": self._fault,
            "last_success_seconds": None if self._last_success is None else round(moment - self._last_success, 1),
        }
        if self._cursor is not None:
            positions = self._cursor.positions()
            appended = self._appended()
            status["pending"] = {
                name: max(0, appended[name] - positions[name].number - positions[name].settled)
                for name in self._classes
                if name in appended
            }
            for term in ("delivered", "retried", "dead_lettered"):
                status[term] = sum(getattr(positions[name], term) for name in self._classes)
            dropped: Counter[str] = Counter()
            for name in self._classes:
                dropped.update(positions[name].dropped)
            status["dropped"] = dict(dropped)
            status["spent"] = {
                period: {"messages": s.messages, "bytes": s.bytes} for period, s in self._spent().items()
            }
        return status

    def _state(self) -> str:
        if self._fault is not None:
            return "retrying"
        if self._cursor is None:
            return "starting"
        return "held" if self._held else "ok"

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

    async def _make(self) -> Sink:
        """A library that is missing is this sink's fault alone: its backlog is kept, the others go on."""
        return self._make_sink()

    async def _next_work(self) -> tuple[Sequence[Row], bool] | None:
        """The next batch, and whether it begins a live lane anew: of the first class that has one and may send."""
        assert self._allowance is not None
        self._held = {}
        for message_class in self._classes:
            if (refusal := self._allowance.refusal(message_class)) is not None:
                self._held[message_class] = refusal
                continue
            await self._give_up(message_class)
            live = message_class in self._latest_first
            rows, jump = self._live(message_class) if live else (self._rows_after(message_class), False)
            if rows and not self._gathers(rows):
                return self._allowance.cut(rows), jump
        for message_class in self._classes:
            if message_class in self._latest_first and message_class not in self._held:
                rows = await self._history(message_class)
                if rows:
                    return self._allowance.cut(rows), False
        return None

    async def _give_up(self, message_class: str) -> Missing:
        """Count what the writer has given up; what was read before is read again."""
        missing = self._reader.missing(message_class)
        if missing.line > self._cursor_of().position(message_class).number:
            await self._cursor_of().give_up(message_class, missing)
        return missing

    def _rows_after(self, message_class: str) -> list[Row]:
        return self._read(message_class, self._cursor_of().position(message_class).live_seq)

    def _read(self, message_class: str, after: int, until: int = ENDLESS) -> list[Row]:
        return self._reader.read(message_class, after, self._config.batch, self._config.batch_bytes, until=until)

    def _live(self, message_class: str) -> tuple[list[Row], bool]:
        """What comes now; where the lane is behind, the newest rows, and the rest is history."""
        rows = self._rows_after(message_class)
        position = self._cursor_of().position(message_class)
        if not rows or len(position.islands) >= MOST_ISLANDS or self._is_recent(rows[0]):
            return rows, False
        limit, limit_bytes = self._config.batch, self._config.batch_bytes
        newest = self._reader.newest(message_class, position.live_seq, limit, limit_bytes)
        return (newest, True) if newest and newest[0].seq > rows[0].seq else (rows, False)

    def _gathers(self, rows: Sequence[Row]) -> bool:
        """Whether a batch that is not full waits for more."""
        seconds = self._config.gather_seconds
        if not seconds or len(rows) >= self._config.batch or rows[0].message_class in self._config.always:
            return False
        moment = self._clock.now()
        young = rows[0].boot_id == moment.boot_id and moment.boottime_ns - rows[0].boottime_ns < seconds * 1e9
        return young and not self._reader.read(rows[-1].message_class, rows[-1].seq, 1)  # it is not full of bytes

    def _is_recent(self, row: Row) -> bool:
        moment = self._clock.now()
        return row.boot_id == moment.boot_id and moment.boottime_ns - row.boottime_ns < _LIVE_NS

    async def _history(self, message_class: str) -> list[Row]:
        while (position := self._cursor_of().position(message_class)).islands:
            until = position.islands[0].first_seq - 1
            rows = self._read(message_class, position.seq, until)
            if rows:
                return rows
            await self._cursor_of().join(message_class, self._reader.missing(message_class))
        return []

    async def _deliver(self, rows: Sequence[Row], jump: bool) -> None:
        sent = await self._send(rows)
        if sent.fault is not None and sent.answered and not sent.settled:
            sent = await self._without_poison(rows, sent)
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
            await _finish(self._until_done(lambda: self._settle(settled, letters, jump), "writing its cursor"))
            self._last_success = now()
        if sent.fault is None:
            self._recovered()
            return
        try:
            await self._cursor_of().count_retries(rows[0].message_class, 1)
            await self._cursor_of().note_spent(self._spent())
        except CommitFailed as error:
            log.warning("sink %s: a retry is not counted: %s", self.name, error.__cause__ or error)
        await self._wait_after(sent.fault)

    async def _send(self, rows: Sequence[Row]) -> Sent:
        """Send rows in as many requests at once as the sink has, those of one topic in order."""
        assert self._allowance is not None
        self._allowance.spend(rows)
        lanes = getattr(self._config, "in_flight", 1)
        groups: dict[int, list[Row]] = {}
        for row in rows:
            groups.setdefault(zlib.crc32(row.topic.encode()) % lanes, []).append(row)
        if len(groups) <= 1:
            return await self._try(rows)
        results = dict(zip(groups, await asyncio.gather(*map(self._try, groups.values())), strict=True))
        done = {row.seq for lane, group in groups.items() for row in group[: results[lane].settled]}
        settled = next((place for place, row in enumerate(rows) if row.seq not in done), len(rows))
        until = {row.seq for row in rows[:settled]}
        poison = {seq: why for one in results.values() for seq, why in one.poison.items() if seq in until}
        failed = next((one for one in results.values() if one.fault is not None), None)
        if failed is None:
            return Sent(settled, poison)
        return Sent(settled, poison, failed.fault, failed.answered)

    async def _try(self, rows: Sequence[Row]) -> Sent:
        try:
            assert self._made is not None
            return await self._made.send(rows)
        except Exception:
            if self._fault != _OUR_ERROR:
                log.exception("sink %s: sending failed for a reason of our own", self.name)
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # it failed as it was told to end
                raise asyncio.CancelledError from None
            return Sent(0, fault=_OUR_ERROR)

    async def _without_poison(self, rows: Sequence[Row], sent: Sent) -> Sent:
        """After some tries: a row is a dead letter if the receiver has an error for it alone and takes another.

        A receiver that has an error for both has it for everything, and is waited for.
        """
        first, tries = self._suspect
        self._suspect = (rows[0].seq, tries + 1 if first == rows[0].seq else 1)
        if self._suspect[1] < self._config.poison_after:
            return sent
        others = rows[1:] or self._after(rows[0])
        if not others:
            return sent
        alone = await self._try(rows[:1])
        if alone.fault is None or not alone.answered:
            return alone
        # Rather one of another topic, whose order it does not touch; it will be sent again in its turn. The next try
        # takes the next one: this one may be poison too.
        candidates = [row for row in others if row.topic != rows[0].topic] or others
        other = candidates[(self._suspect[1] - self._config.poison_after) % len(candidates)]
        probe = await self._try([other])
        if probe.settled != 1 or probe.poison:
            return sent
        alone = await self._try(rows[:1])  # unless the receiver has just come to itself
        return Sent(1, {rows[0].seq: alone.fault}) if alone.fault is not None and alone.answered else alone

    async def _without_old_poison(self, rows: Sequence[Row], sent: Sent) -> Sent:
        """A dead letter that fails again while the receiver takes others is refused, or it would hold up the rest."""
        if self._suspect_letter[0] != rows[0].seq:
            self._suspect_letter = rows[0].seq, now()
        if self._last_success is None or self._last_success < self._suspect_letter[1]:
            return sent
        alone = await self._try(rows[:1])
        return Sent(1, {rows[0].seq: alone.fault}) if alone.fault is not None and alone.answered else alone

    def _after(self, row: Row) -> Sequence[Row]:
        """What the log has behind a row that is a batch of its own."""
        try:
            return self._reader.read(row.message_class, row.seq, 10)
        except (OSError, sqlite3.Error):  # told by the work that needs it
            return []

    async def _send_letters(self) -> None:
        """Send the dead letters that somebody asked for once more."""
        try:
            rows = await self._cursor_of().letters_to_send(self._config.batch, self._config.batch_bytes)
            if not rows or self._allowance is None or self._allowance.refusal(rows[0].message_class) is not None:
                return
            by_class = [row for row in rows if row.message_class == rows[0].message_class]
            sent = await self._send(by_class)
            if sent.fault is not None and sent.answered and not sent.settled:
                sent = await self._without_old_poison(by_class, sent)
            settled = by_class[: sent.settled]
            refused = {seq: reason for seq, reason in sent.poison.items() if seq in {row.seq for row in settled}}
            await self._cursor_of().settle_letters(settled, refused)
            if settled:
                log.info("sink %s: %d dead letters delivered after all, %d refused again", self.name,
                         len(settled) - len(refused), len(refused))  # fmt: skip
            if sent.fault is not None:
                await self._wait_after(sent.fault)
        except (CommitFailed, KeyError, OSError, sqlite3.Error) as error:
            log.warning("sink %s: dead letters wait: %s", self.name, error)

    def _cursor_of(self) -> Cursor:
        assert self._cursor is not None
        return self._cursor

    def _spent(self) -> dict[str, Spent]:
        return dict(self._allowance.spent) if self._allowance is not None else {}

    async def _settle(self, rows: Sequence[Row], letters: dict[int, tuple[str, str]], jump: bool) -> None:
        position = self._cursor_of().position(rows[0].message_class)
        before = [position.number, *(island.last for island in position.islands)]
        missing = NOTHING_MISSING
        if rows[-1].number - rows[0].number + 1 != len(rows) or (not jump and rows[0].number - 1 not in before):
            missing = self._reader.missing(rows[0].message_class)
        await self._cursor_of().settle(rows, dead_letters=letters, missing=missing, jump=jump, spent=self._spent())

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
