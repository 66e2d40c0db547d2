"""The writing side of the log: append, rotate, purge, mend. The processor alone holds it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from lockgate.buffer.cursor import Position, cursor_names, read_positions
from lockgate.buffer.limits import GIVES_WAY, ClassFull, Limits
from lockgate.buffer.missing import DISK_BUDGET
from lockgate.buffer.packed import (
    PACKING,
    check_library,
    check_packed,
    clean,
    open_sealed,
    pack,
    segment_file,
    unpack,
)
from lockgate.buffer.packer import Packer
from lockgate.buffer.reader import ENDLESS
from lockgate.buffer.rollup import check
from lockgate.buffer.rows import Batch, Entry, PacketRecord, PacketRecords, Quarantined
from lockgate.buffer.segments import (
    INSERT_ROW,
    LOG_COLUMNS,
    ROW_BYTES,
    SEGMENT,
    WINDOW_INPUT,
    State,
    copy_small_tables,
    create_segment,
    list_segments,
    missing_numbers,
    packed_path,
    row_bytes,
    segment_number,
    segment_path,
    wal_path,
)
from lockgate.config.errors import ConfigError
from lockgate.config.model import BufferConfig
from lockgate.files import sync_folder
from lockgate.sqlite import CommitFailed, Damage, FolderLock, Writer, open_database
from lockgate.sqlite.database import create_tables, find_damage, interrupted_salvages, salvage
from lockgate.sqlite.reserve import Reserve
from lockgate.telemetry.clock import Clock, Moment

log = logging.getLogger(__name__)

_SEALED_CHECK_SECONDS: Final = 2.0  # for all sealed segments together, at start
_SMALLEST_ROW: Final = 64  # bytes; the boot id alone is 36
_RETRY_SECONDS: Final = (0.1, 5.0)
_BLOCKED_SECONDS: Final = 30.0  # until a purge that cannot be is news
FULL_POLL_SECONDS: Final = 0.5
_FEWEST_PAGES, _MOST_PAGES = 16, 1000  # of the write-ahead log, before it is moved into the segment
_ROOM_BYTES: Final = 1024 * 1024  # free on a disk that was full, beside the reserve, before it is written on


class Log:
    """The durable log of a buffer folder. Use `open`; everything else on the loop that called it."""

    def __init__(self, folder: Path, config: BufferConfig, sinks: Mapping[str, tuple[str, ...]], clock: Clock) -> None:
        self.state = State()  # as last committed
        self.packets = PacketRecords()  # as last committed
        self.clock = clock
        self._folder = folder
        self._config = config
        self._sinks = dict(sinks)
        self._lock = FolderLock(folder)
        self._tokens = (f"{uuid.uuid4().hex}-{number}" for number in itertools.count())
        self._newest = 0
        self._damages: list[Damage] = []
        self._purge_blocked: str | None = None
        self._purge_blocked_at = 0.0
        self._purge_told: str | None = None
        self._waiting: str | None = None  # why an append waits
        self._maintenance: asyncio.Task[None] | None = None
        self._limits = Limits(folder, config, clock, self._passed_positions)
        self._reserve: Reserve | None = None
        self._disk_full = False
        self._packer = Packer(folder, config)
        self._pack_fault = ""
        self._writer: Writer

    @classmethod
    async def open(
        cls,
        folder: Path,
        config: BufferConfig,
        sinks: Mapping[str, tuple[str, ...]],
        *,
        clock: Clock | None = None,
        maintain_seconds: float = 1.0,
    ) -> Log:
        """Take the folder, check and mend what lies in it. `sinks`: the classes of each configured sink.

        Raises FolderInUse, and another OSError where the folder cannot be used; ConfigError for a roll-up that cannot
        be run.
        """
        check_roll_ups(config)
        if config.compression == "zstd":
            check_library()
        folder.mkdir(parents=True, exist_ok=True)
        self = cls(folder, config, sinks, clock or Clock())
        self._lock.acquire()
        self._reserve = Reserve(folder)
        self._disk_full = not self._reserve.keep()
        self._writer = Writer(self._open_newest, name=folder.name)
        try:
            await asyncio.wrap_future(self._writer.between(self._start))
        except BaseException as error:
            await self.close()
            if isinstance(error, sqlite3.Error):
                raise OSError(f"the buffer in {folder} cannot be used: {error}") from error
            raise
        self._maintenance = asyncio.create_task(self._maintain_forever(maintain_seconds))
        return self

    async def close(self) -> None:
        """Finish what was submitted, and let the folder go."""
        self._packer.stopping.set()
        if self._maintenance is not None:
            self._maintenance.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._maintenance
        await asyncio.to_thread(self._writer.close)
        self._lock.release()

    async def append(self, batch: Batch, *, makes_room: bool = False) -> int:
        """Commit the batch and return the seq of its first entry; the others follow without a gap.

        Waits while the buffer, or a class that blocks, is at its limit or the disk fails, however long: nothing is
        lost, nothing acknowledged. Entries that a class at its limit does not take have a seq and a number but no row.
        A batch that `makes_room`, because it moves the cursors of rules, does not wait at the limit of the buffer.
        """
        token = next(self._tokens)
        delay, longest = _RETRY_SECONDS
        while True:
            if not makes_room:
                await self._wait_for_room()
            try:
                first_seq, state, size = await self._writer.write(lambda c: self._append(c, batch, token))
            except ClassFull as full:
                self._wait_because(f"{full} ({self._limits.of(full.message_class).limit_bytes} bytes)")
                await self.maintain()
                await asyncio.sleep(FULL_POLL_SECONDS)
            except CommitFailed as error:
                self._wait_because(f"the disk refuses to write: {error}")
                if _is_full(error) and self._reserve is not None:
                    self._reserve.release()
                    self._disk_full = True
                await asyncio.sleep(delay)
                delay = min(delay * 2, longest)
                await self.maintain()
            else:
                break
        if not makes_room:
            self._wait_because(None)
        self.state = state
        if batch.session_lost:
            self.packets.clear()
        self.packets.update(batch.packets.items())
        if size >= self._config.segment_bytes:
            self._writer.between(self._rotate_if_large).add_done_callback(_report_rotation)
        return first_seq

    async def maintain(self, *, seal: bool = False) -> None:
        """Purge what all have read and mend what a reader found damaged; runs by itself every second.

        `seal` closes the newest segment first if it holds rows, so that it can be purged too.
        """
        with contextlib.suppress(OSError, sqlite3.Error):  # logged where it happens; tried again by the next round
            await asyncio.wrap_future(self._writer.between(lambda connection: self._maintain(connection, seal)))
        if any(one.when_full == "roll-up" for one in self._config.limits):
            with contextlib.suppress(CommitFailed):
                self.state = await self._writer.write(self._load)  # a roll-up has appended

    def bytes(self) -> int:
        """What the segments take on disk."""
        total = 0
        with os.scandir(self._folder) as files:
            for file in files:
                if file.name.startswith("segment-") and file.name.endswith((".sqlite", ".sqlite-wal", ".sqlite.zst")):
                    with contextlib.suppress(FileNotFoundError):
                        total += file.stat().st_size
        return total

    async def pack(self) -> bool:
        """Compress a segment that nobody needs soon, or make one plain that somebody does; whether there was one.

        Runs by itself after `maintain`. The work is done beside the writer's thread, which only puts the result in
        its place.
        """
        done = False
        try:
            chosen = await asyncio.wrap_future(self._writer.between(lambda c: self._packer.choose(c, self._has_room)))
            if chosen is not None:
                try:
                    done = await asyncio.to_thread(self._packer.make, chosen) and await asyncio.wrap_future(
                        self._writer.between(lambda _: self._packer.put(chosen))
                    )
                finally:
                    chosen.fresh.unlink(missing_ok=True)
            self._pack_fault = ""
        except (OSError, sqlite3.Error) as error:
            if str(error) != self._pack_fault:
                log.warning("segments are left as they are: %s", error)
            self._pack_fault = str(error)
        return done

    def status(self) -> dict[str, object]:
        committed = self._writer.last_commit_ns
        age = None if committed is None else (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - committed) / 1e9
        return {
            "bytes": self.bytes(),
            "limit_bytes": self._config.limit_bytes,
            "segments": len(list_segments(self._folder)),
            "compressed": len(list(self._folder.glob("segment-*.sqlite.zst"))),
            "next_seq": self.state.next_seq,
            "appended": dict(self.state.appended),
            "commits": self._writer.commits,
            "last_commit_age_seconds": age,
            "sync_ms": round(self._writer.sync_ms, 3),
            "waiting": self._waiting,
            "purge_blocked": self._purge_blocked,
            "quarantine_dropped": self.state.quarantine_dropped,
            "damaged": [{"file": d.path.name, "finding": d.finding, "saved": d.rows} for d in self._damages],
        }

    # --- on the loop ----------------------------------------------------------------------------------------------

    async def room(self) -> str | None:
        """Why nothing can be appended, where room could not be made either; None where there is some.

        Whoever has windows asks it before each batch, and closes meanwhile what is over: their rows may fill the
        buffer.
        """
        reason = self._no_room()
        if reason is not None:
            for seal in (False, True):  # a newest segment that is closed early costs a file of its own
                await self.maintain(seal=seal)
                if seal:
                    await self.maintain()
                if self._no_room() is None:
                    return None
                try:
                    await asyncio.wrap_future(self._writer.between(self._make_room))
                except (OSError, sqlite3.Error) as error:
                    log.warning("no room could be made: %s", error)
                    if self._disk_full and self._reserve is not None:
                        self._reserve.release()
                if (reason := self._no_room()) is None:
                    return None
            self._wait_because(reason)
        return reason

    async def _wait_for_room(self) -> None:
        while await self.room() is not None:
            await asyncio.sleep(FULL_POLL_SECONDS)

    def _no_room(self) -> str | None:
        """Why nothing can be appended; the reserve is taken back as soon as there is room for it."""
        if (size := self.bytes()) >= self._config.limit_bytes:
            return f"the buffer is full: {size} bytes of {self._config.limit_bytes}"
        if self._disk_full and self._reserve is not None:
            disk = os.statvfs(self._folder)
            # What the reserve gave up is for the cursors and for what makes room, not for more messages.
            room = min(_ROOM_BYTES, self._reserve.size_bytes)
            if disk.f_bavail * disk.f_frsize < self._reserve.lacking_bytes + room or not self._reserve.keep():
                return "the disk is full"
            self._disk_full = False
        return None

    def _has_room(self, size: int) -> bool:
        """Whether a segment of this size may be made plain again."""
        disk = os.statvfs(self._folder)
        free = disk.f_bavail * disk.f_frsize
        return not self._disk_full and free > 2 * size and self.bytes() + size < self._config.limit_bytes

    def _wait_because(self, reason: str | None) -> None:
        """Log the change, once."""
        if reason is not None and self._waiting is None:
            log.error("nothing more is acknowledged to the broker: %s", reason)
        elif reason is None and self._waiting is not None:
            log.info("the buffer takes messages again")
        self._waiting = reason

    async def _maintain_forever(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.maintain()
                while await self.pack():
                    pass
            except Exception:
                log.exception("looking after the buffer failed")

    # --- in the writer's thread -----------------------------------------------------------------------------------

    def _append(self, connection: sqlite3.Connection, batch: Batch, token: str) -> tuple[int, State, int]:
        state = self._load(connection)
        if state.token != token:
            self._write(connection, batch, state, self._limits.admit(connection, state, batch))
            state.token = token
            made = self._limits.enforce(connection, state, only=[entry.message_class for entry in batch.entries])
            self._insert(connection, made, batch.moment, state)
            state.store(connection)
        size = connection.execute(
            "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        ).fetchone()[0]
        return state.token_first_seq, state, size

    def _write(self, connection: sqlite3.Connection, batch: Batch, state: State, refused: set[int]) -> None:
        state.token_first_seq = state.next_seq
        self._insert(connection, batch.entries, batch.moment, state, refused)
        for (term, detail), count in batch.intake.items():
            details = state.intake.setdefault(term, {})
            details[detail] = details.get(detail, 0) + count
        state.rule_cursors.update(batch.rule_cursors)
        for rule in batch.forget_rules:
            state.rule_cursors.pop(rule, None)
        if batch.arrivals is not None:
            state.arrivals = batch.arrivals
        if batch.session_lost:
            connection.execute("DELETE FROM packets")
        connection.executemany(
            "INSERT OR REPLACE INTO packets VALUES (?, ?, ?)", [(i, *record) for i, record in batch.packets.items()]
        )
        connection.executemany("DELETE FROM last_values WHERE topic = ?", [(topic,) for topic in batch.forget_values])
        connection.executemany("INSERT OR REPLACE INTO last_values VALUES (?, ?, ?, ?)", batch.last_values)
        for identity in batch.replayed:
            for (size,) in connection.execute("SELECT length(payload) FROM quarantine WHERE id = ?", (identity,)):
                state.quarantine_bytes -= size
            connection.execute("DELETE FROM quarantine WHERE id = ?", (identity,))
        if batch.quarantined:
            self._quarantine(connection, batch.quarantined, batch.moment.wall_ns, state)

    def _insert(
        self,
        connection: sqlite3.Connection,
        entries: Sequence[Entry],
        moment: Moment,
        state: State,
        refused: Collection[int] = (),
    ) -> None:
        """Give entries their places; `refused` ones get no row."""
        boot_id, boottime_ns, wall_ns, clock_ok = moment
        rows = []
        for place, entry in enumerate(entries):
            number = state.appended.get(entry.message_class, 0) + 1
            state.appended[entry.message_class] = number
            seq = state.next_seq
            state.next_seq += 1
            if place in refused:
                self._limits.record_hole(connection, entry.message_class, number)
                continue
            size = row_bytes(entry.topic, entry.payload)
            state.bytes[entry.message_class] = state.bytes.get(entry.message_class, 0) + size
            rows.append(
                (
                    seq, number, boot_id, boottime_ns, wall_ns, clock_ok,
                    entry.device_ts, entry.topic, entry.message_class, entry.schema, entry.payload,
                )
            )  # fmt: skip
        connection.executemany(INSERT_ROW, rows)

    def _insert_made(self, connection: sqlite3.Connection, made: Sequence[Entry], state: State) -> None:
        """Append what roll-ups made of rows that gave way, within their transaction."""
        if made:
            self._insert(connection, made, self.clock.now(), state)
            state.store(connection)

    def _quarantine(
        self, connection: sqlite3.Connection, messages: list[Quarantined], wall_ns: int, state: State
    ) -> None:
        limit = self._config.quarantine_bytes
        for topic, schema, reason, detail, payload in messages:
            if len(payload) > limit:
                detail, payload = f"{detail}; payload of {len(payload)} bytes not kept", b""
            state.quarantine_bytes += len(payload)
            connection.execute(
                "INSERT INTO quarantine (wall_ns, topic, schema, reason, detail, payload) VALUES (?, ?, ?, ?, ?, ?)",
                (wall_ns, topic, schema, reason, detail, payload),
            )
        kept = connection.execute("SELECT count(*) FROM quarantine").fetchone()[0]
        oldest = connection.execute("SELECT id, length(payload) FROM quarantine ORDER BY id")
        dropped: list[tuple[int]] = []
        while kept > self._config.quarantine_messages or state.quarantine_bytes > limit:
            identity, size = next(oldest)
            dropped.append((identity,))
            state.quarantine_bytes -= size
            kept -= 1
        connection.executemany("DELETE FROM quarantine WHERE id = ?", dropped)
        state.quarantine_dropped += len(dropped)

    def _load(self, connection: sqlite3.Connection) -> State:
        state = State.load(connection)
        assert state is not None  # `_open_newest` saw to it
        return state

    def _start(self, connection: sqlite3.Connection) -> None:
        """What is done once: the sealed segments are checked too, and memory filled with what is kept."""
        clean(self._folder)
        give_up = time.monotonic() + _SEALED_CHECK_SECONDS
        for number in reversed(list_segments(self._folder)[:-1]):
            if time.monotonic() > give_up:
                break
            self._check_sealed(number)
        for number in list_segments(self._folder):
            if any(self._folder.glob(f"{segment_path(self._folder, number).name}.damaged-*")):
                self._account_damage(connection, number)
        self.state = self._load(connection)
        packets = connection.execute("SELECT packet_id, arrival, digest FROM packets")
        self.packets.update((packet_id, PacketRecord(arrival, digest)) for packet_id, arrival, digest in packets)

    def _open_newest(self, salvaged: Damage | None = None) -> sqlite3.Connection:
        """`salvaged`: what has just been done to it."""
        mended: dict[int, Damage | None] = {}
        for path in interrupted_salvages(self._folder):
            connection, damage = open_database(path, SEGMENT)
            connection.close()
            self._note_damage(damage)
            mended[segment_number(path)] = damage
        for leftover in self._folder.glob("segment-*.sqlite.new"):
            leftover.unlink()
        numbers = list_segments(self._folder)
        if not numbers:
            create_segment(self._folder, 1, State(next_seq=self._highest_cursor_seq() + 1), None)
            numbers = [1]
        self._newest = numbers[-1]
        connection, damage = open_database(segment_path(self._folder, self._newest), SEGMENT)
        try:
            if self._reserve is not None:
                # What the write-ahead log holds has to fit into the reserve, or a full disk could not be left behind.
                pages = max(_FEWEST_PAGES, min(_MOST_PAGES, self._reserve.size_bytes // 8192))
                connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
            self._note_damage(damage)
            damage = damage or salvaged or mended.pop(self._newest, None)
            state = State.load(connection)
            if damage is not None or state is None or self._is_behind(state):
                self._recover_state(connection, damage.size_bytes if damage is not None else 0)
            for number in mended:
                self._account_damage(connection, number)
        except BaseException:
            connection.close()
            raise
        return connection

    def _recover_state(self, connection: sqlite3.Connection, lost_bytes: int) -> None:
        """After damage to the newest segment: its state, or else the one the segment before it ended with.

        Sinks may have read rows that are gone altogether; no seq and no number is given out twice.
        """
        connection.execute("BEGIN IMMEDIATE")
        state = State.load(connection)
        if state is None:
            log.error("counters and Packet Identifiers of the buffer are lost; those of the segment before are used")
            state = self._previous_state(connection)
            kept = connection.execute("SELECT coalesce(max(seq), 0) + 1 FROM log").fetchone()[0]
            state.next_seq = max(state.next_seq, kept, self._highest_cursor_seq() + 1) + lost_bytes // _SMALLEST_ROW
            for name, size in connection.execute(f"SELECT class, sum({ROW_BYTES}) FROM log GROUP BY class"):
                state.bytes[name] = state.bytes.get(name, 0) + size
        state.next_seq = max(state.next_seq, self._highest_cursor_seq() + 1)
        numbers = connection.execute("SELECT class, max(number) FROM log GROUP BY class").fetchall()
        for message_class, number in numbers + self._highest_cursor_numbers():
            state.appended[message_class] = max(state.appended.get(message_class, 0), number)
        state.store(connection)
        connection.execute("COMMIT")
        self._account_damage(connection, self._newest)

    def _is_behind(self, state: State) -> bool:
        """Whether a sink has read what this log never held: a newer segment was taken away, or the folder restored."""
        behind = self._highest_cursor_seq() >= state.next_seq
        if behind:
            log.error("sinks have read rows beyond the end of the log: newer segments are missing")
        return behind

    def _previous_state(self, connection: sqlite3.Connection) -> State:
        for number in reversed(list_segments(self._folder)[:-1]):
            with contextlib.suppress(sqlite3.Error), contextlib.closing(self._open_sealed(number)) as previous:
                state = State.load(previous)
                if state is not None:
                    copy_small_tables(previous, connection)
                    state.opening = dict(state.appended)
                    state.opening_bytes = dict(state.bytes)
                    return state
        return State()

    def _account_damage(self, connection: sqlite3.Connection, number: int) -> None:
        """Record which rows a salvaged segment lacks; the same each time it is done."""
        newest = self._load(connection)
        if number == self._newest:
            opening, end, segment = newest.opening, newest.appended, connection
            self._record_gaps(connection, segment, number, opening, end)
            return
        numbers = list_segments(self._folder)
        following = numbers[numbers.index(number) + 1]
        end = newest.opening
        if following != self._newest:
            with contextlib.closing(self._open_sealed(following)) as after:
                state = State.load(after)
                end = state.opening if state is not None else end
        with contextlib.closing(self._open_sealed(number)) as segment:
            state = State.load(segment)
            opening = state.opening if state is not None else self._opening_of(segment, number, end)
            self._record_gaps(connection, segment, number, opening, end)

    def _opening_of(self, segment: sqlite3.Connection, number: int, end: dict[str, int]) -> dict[str, int]:
        """Where a segment without state began: where the one before it ended, else at its first rows."""
        numbers = list_segments(self._folder)
        place = numbers.index(number)
        if place > 0:
            with contextlib.closing(self._open_sealed(numbers[place - 1])) as before:
                state = State.load(before)
                if state is not None:
                    return state.appended
        first = dict(segment.execute("SELECT class, min(number) - 1 FROM log GROUP BY class").fetchall())
        return {
            message_class: first.get(message_class, 0 if number == 1 else last) for message_class, last in end.items()
        }

    def _record_gaps(
        self,
        connection: sqlite3.Connection,
        segment: sqlite3.Connection,
        number: int,
        opening: dict[str, int],
        end: dict[str, int],
    ) -> None:
        gaps = [
            (number, message_class, first, last)
            for message_class, appended in end.items()
            for first, last in missing_numbers(segment, message_class, opening.get(message_class, 0) + 1, appended)
        ]
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM damage WHERE segment = ?", (number,))
        connection.executemany("INSERT INTO damage VALUES (?, ?, ?, ?)", gaps)
        connection.execute("COMMIT")
        if gaps:
            lost = sum(last - first + 1 for _, _, first, last in gaps)
            log.error("segment %d lacks %d rows after its salvage", number, lost)

    def _rotate_if_large(self, connection: sqlite3.Connection) -> None:
        pages, page_size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        if pages * page_size >= self._config.segment_bytes:
            self._rotate(connection)

    def _rotate(self, connection: sqlite3.Connection) -> None:
        state = self._load(connection)
        create_segment(self._folder, self._newest + 1, state, connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # refused while a reader reads; `_tidy` comes back to it
        connection.close()
        self._writer.replace(self._open_newest())
        log.debug("segment %d begun at seq %d", self._newest, state.next_seq)

    def _maintain(self, connection: sqlite3.Connection, seal: bool) -> None:
        for mark in self._folder.glob("segment-*.sqlite.suspect"):
            self._look_at(connection, mark)
            return  # the connection may be another one now; the rest waits for the next round
        if seal and connection.execute("SELECT EXISTS (SELECT 1 FROM log)").fetchone()[0]:
            self._rotate(connection)
            return
        state = self._load(connection)
        passed = self._passed()
        self._limits.look()
        connection.execute("BEGIN IMMEDIATE")
        self._limits.note_boot(connection)
        self._insert_made(connection, self._limits.enforce(connection, state), state)
        if passed is not None:
            self._limits.forget_passed(connection, {name: p.number for name, p in passed.items()})
        connection.execute("COMMIT")
        numbers = list_segments(self._folder)[:-1]
        if not numbers:
            return
        self._tidy(numbers)
        if passed is not None:
            self._purge(connection, state, {name: p.seq for name, p in passed.items()}, numbers)

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Over the disk budget: old rows that may vanish give way, of the last class first, a file's worth at a time.

        A file that other classes still need is written anew without the rows that gave way.
        """
        passed = self._passed()
        if passed is None:
            return
        state = self._load(connection)
        for name in reversed(self._config.classes):
            if self._limits.of(name).when_full not in GIVES_WAY:
                continue
            for number in list_segments(self._folder)[:-1]:
                span = self._packer.summary(number).classes.get(name)
                if span is None:
                    continue
                last = span.last
                connection.execute("BEGIN IMMEDIATE")
                made = self._limits.give_way_until(connection, name, last, DISK_BUDGET)
                self._insert_made(connection, made or (), state)
                connection.execute("COMMIT")
                if made is None:
                    continue
                log.info("class %s gives up its rows up to seq %d: there is no room left", name, last)
                seqs = {name: p.seq for name, p in passed.items()}
                self._purge(connection, state, seqs, list_segments(self._folder)[:-1])
                if number in list_segments(self._folder):
                    self._compact(connection, state, seqs, number)
                if self._no_room() is None:
                    return

    def _compact(self, connection: sqlite3.Connection, state: State, seqs: Mapping[str, int], number: int) -> None:
        """Write a sealed segment anew with only the rows that are needed, if those are less than half of it."""
        path = segment_path(self._folder, number)
        packed = not path.exists()
        if not packed and wal_path(path).exists():  # a reader holds it up
            return
        passed = self._with_lines(connection, seqs)
        window_inputs = min((cursor.needed for cursor in state.rule_cursors.values()), default=ENDLESS)
        needed = " OR ".join(
            [f"(class = '{WINDOW_INPUT}' AND seq > {window_inputs})"] + ["(class = ? AND seq > ?)"] * len(passed)
        )
        values = [value for pair in passed.items() for value in pair]
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        with contextlib.closing(self._open_sealed(number)) as source:
            total = source.execute(f"SELECT coalesce(sum({ROW_BYTES}), 0) FROM log").fetchone()[0]
            kept = source.execute(f"SELECT coalesce(sum({ROW_BYTES}), 0) FROM log WHERE {needed}", values).fetchone()[0]
            own = State.load(source)
            if 2 * kept > total or own is None:
                return
            with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as target:
                target.execute("PRAGMA synchronous = FULL")
                create_tables(target, SEGMENT, fresh)
                target.execute("BEGIN")
                own.store(target)
                copy_small_tables(source, target)
                rows = source.execute(f"SELECT {LOG_COLUMNS} FROM log WHERE {needed}", values)
                target.executemany(INSERT_ROW, rows)
                target.execute("COMMIT")
        if packed:
            smaller = packed_path(path).with_name(packed_path(path).name + PACKING)
            try:
                pack(fresh, smaller)
                os.rename(smaller, packed_path(path))
            finally:
                fresh.unlink()
                smaller.unlink(missing_ok=True)
        else:
            os.rename(fresh, path)
        sync_folder(self._folder)
        self._limits.segments_changed()
        log.debug("segment %d written anew: %d of %d bytes", number, kept, total)

    def _look_at(self, connection: sqlite3.Connection, mark: Path) -> None:
        """A reader could not read this segment: mend it if there is anything to mend."""
        path = mark.with_name(mark.name.removesuffix(".suspect"))
        mark.unlink()
        if not path.exists():
            if packed_path(path).exists() and self._mend_packed(path):
                self._account_damage(connection, segment_number(path))
            return
        finding = find_damage(path, thorough=True)
        if finding is None:
            log.warning("a reader found %s damaged, but nothing is wrong with it now", path.name)
        elif segment_number(path) == self._newest:
            connection.close()
            self._note_damage(salvage(path, SEGMENT, finding))
            self._writer.replace(self._open_newest(self._damages[-1]))
        else:
            self._note_damage(salvage(path, SEGMENT, finding))
            self._account_damage(connection, segment_number(path))

    def _mend_packed(self, path: Path) -> bool:
        """Make a compressed segment plain again, as far as it can be read, and save what is good; whether it was not.

        The compressed one is set aside beside the damaged file. A kill leaves the plain one, which the next start, or
        who reads it, finds damaged again.
        """
        packed = packed_path(path)
        fresh = packed.with_name(packed.name + PACKING)
        with fresh.open("wb") as file:
            wrong = unpack(packed, file, mending=True)
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, path)
        sync_folder(self._folder)
        finding = f"compressed, {wrong[0]}" if wrong else find_damage(path, thorough=True)
        if finding is None:
            log.warning("a reader found %s damaged, but nothing is wrong with it now", packed.name)
            packed.unlink()
            return False
        damage = salvage(path, SEGMENT, finding)
        self._note_damage(damage)
        os.rename(packed, damage.path.with_name(f"{damage.path.name}.zst"))
        sync_folder(self._folder)
        return True

    def _check_sealed(self, number: int) -> None:
        path = segment_path(self._folder, number)
        if not path.exists():
            if check_packed(packed_path(path)) is not None:
                self._mend_packed(path)
            return
        finding = find_damage(path)
        if finding is not None:
            self._note_damage(salvage(path, SEGMENT, finding))

    def _note_damage(self, damage: Damage | None) -> None:
        if damage is not None:
            self._damages.append(damage)

    def _open_sealed(self, number: int) -> sqlite3.Connection:
        return open_sealed(self._folder, number)

    def _tidy(self, numbers: list[int]) -> None:
        """Bring what a busy reader kept in the WAL of a sealed segment into its file, so that it is one plain file."""
        for number in numbers:
            path = segment_path(self._folder, number)
            if wal_path(path).exists() and path.exists():
                with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as segment:
                    segment.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _passed(self) -> dict[str, Position] | None:
        """Of each class that sinks take, the position behind which all of them are; None where nobody can know."""
        names = sorted(self._sinks.keys() | cursor_names(self._folder))
        passed: dict[str, Position] = {}
        for name in names:
            positions = read_positions(self._folder, name)
            if positions is None:
                self._block_purge(f"the cursor of sink {name!r} is missing or unreadable")
                return None
            for message_class in set(self._sinks.get(name, ())) | positions.keys():
                if message_class not in positions:
                    self._block_purge(f"sink {name!r} has no cursor for class {message_class!r} yet")
                    return None
                position = positions[message_class]
                if message_class not in passed or position.seq < passed[message_class].seq:
                    passed[message_class] = position
        self._block_purge(None)
        return passed

    def _passed_positions(self) -> dict[str, int]:
        """For the limits: a class that no sink takes keeps nothing."""
        passed = self._passed()
        if passed is None:
            return {}
        return dict.fromkeys(self._config.classes, self.state.next_seq - 1) | {
            name: p.seq for name, p in passed.items()
        }

    def _with_lines(self, connection: sqlite3.Connection, seqs: Mapping[str, int]) -> dict[str, int]:
        """What may vanish: what all sinks have passed, or what was given up."""
        lines = dict(connection.execute("SELECT class, max(until_seq) FROM lines GROUP BY class"))
        return {name: max(seq, lines.get(name, 0)) for name, seq in seqs.items()}

    def _purge(self, connection: sqlite3.Connection, state: State, seqs: Mapping[str, int], numbers: list[int]) -> None:
        """Unlink sealed segments, oldest first, as far as every sink and every rule is done with them."""
        passed = self._with_lines(connection, seqs)
        for number in numbers:
            if self._is_needed(number, passed, state):
                return
            path = segment_path(self._folder, number)
            path.unlink(missing_ok=True)
            for beside in ("-wal", "-shm", ".suspect", ".zst"):
                path.with_name(path.name + beside).unlink(missing_ok=True)
            log.debug("segment %d purged", number)

    def _is_needed(self, number: int, passed: dict[str, int], state: State) -> bool:
        if segment_file(self._folder, number).suffix == ".zst":
            return self._packer.summary(number).needed(passed, state)
        with contextlib.closing(self._open_sealed(number)) as segment:
            return _needed(segment, passed, state)

    def _block_purge(self, reason: str | None) -> None:
        """Note why nothing is purged, and log it when that lasts: a forwarder may start a moment after us."""
        if reason is None:
            if self._purge_told is not None:
                log.info("the buffer can be purged again")
            self._purge_told = None
        elif self._purge_blocked is None:
            self._purge_blocked_at = time.monotonic()
        elif reason != self._purge_told and time.monotonic() - self._purge_blocked_at >= _BLOCKED_SECONDS:
            log.warning("nothing is purged from the buffer: %s", reason)
            self._purge_told = reason
        self._purge_blocked = reason

    def _highest_cursor_seq(self) -> int:
        return max((seq for _, seq, _ in self._all_positions()), default=0)

    def _highest_cursor_numbers(self) -> list[tuple[str, int]]:
        return [(message_class, number) for message_class, _, number in self._all_positions()]

    def _all_positions(self) -> list[tuple[str, int, int]]:
        """Class, seq and number of the last row that each sink has settled, on an island or not."""
        found = (read_positions(self._folder, name) or {} for name in cursor_names(self._folder))
        return [(name, p.live_seq, p.live_number) for positions in found for name, p in positions.items()]


def check_roll_ups(config: BufferConfig) -> None:
    """Raise ConfigError for a roll-up whose SELECT cannot be run."""
    for one in config.limits:
        if one.when_full == "roll-up" and (problem := check(one.roll_up)) is not None:
            raise ConfigError(problem, key=f"classes.{one.name}.roll_up", accepted="one SELECT that can be run")


def _needed(segment: sqlite3.Connection, passed: Mapping[str, int], state: State) -> bool:
    """Whether a sink or a rule has yet to read a row of the segment."""
    for message_class, seq in passed.items():
        query = "SELECT EXISTS (SELECT 1 FROM log WHERE class = ? AND seq > ?)"
        if segment.execute(query, (message_class, seq)).fetchone()[0]:
            return True
    for cursor in state.rule_cursors.values():
        query = "SELECT EXISTS (SELECT 1 FROM log WHERE class = ? AND seq > ? AND schema = ?)"
        if segment.execute(query, (WINDOW_INPUT, cursor.needed, cursor.schema)).fetchone()[0]:
            return True
    return False


def _report_rotation(done: Future[None]) -> None:
    error = done.exception()
    if error is not None:
        log.error("beginning a new segment failed; the old one grows on: %s", error)


def _is_full(error: CommitFailed) -> bool:
    code = getattr(error.__cause__, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_FULL
