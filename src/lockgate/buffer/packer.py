"""Which sealed segments lie compressed: those that nobody reads soon."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lockgate.buffer.cursor import cursor_names, read_positions
from lockgate.buffer.packed import PACKING, Summary, open_sealed, pack, read_summary, segment_file, summary_of, unpack
from lockgate.buffer.reader import ENDLESS
from lockgate.buffer.segments import (
    WINDOW_INPUT,
    State,
    is_checkpointed,
    list_segments,
    packed_path,
    segment_path,
    suspect_path,
)
from lockgate.config.model import BufferConfig
from lockgate.files import sync_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """A segment that is to be compressed, or made plain."""

    number: int
    file: Path  # as it lies now
    inode: int

    @property
    def fresh(self) -> Path:
        """What is made of it, until it is put in its place."""
        return self.file.with_name(self.file.name + PACKING)


class Packer:
    """Chooses and places in the writer's thread, which alone changes what lies in the folder; makes beside it."""

    def __init__(self, folder: Path, config: BufferConfig) -> None:
        self.stopping = threading.Event()
        self._folder = folder
        self._config = config
        self._summaries: dict[int, tuple[int, Summary]] = {}  # of sealed segments, with the inode

    def choose(self, connection: sqlite3.Connection, has_room: Callable[[int], bool]) -> Choice | None:
        """A segment to make plain, as far as there is room, else one to compress."""
        sealed = list_segments(self._folder)[:-1]
        files = {number: segment_file(self._folder, number) for number in sealed}
        packed = [number for number in sealed if files[number].suffix == ".zst"]
        wanted = self._config.compression != "none"
        if not packed and not wanted:
            return None
        soon = self._needed_soon(connection, sealed)
        for number in packed:
            if number in soon and has_room(self.summary(number).size_bytes):
                return Choice(number, files[number], files[number].stat().st_ino)
        for number in sealed if wanted else ():
            file = files[number]
            if number in soon or number in packed or not is_checkpointed(file) or suspect_path(file).exists():
                continue
            return Choice(number, file, file.stat().st_ino)
        return None

    def make(self, choice: Choice) -> bool:
        """Make the file that is to take the place of the chosen one. Any thread may."""
        if choice.file.suffix != ".zst":
            return pack(choice.file, choice.fresh, self.stopping.is_set)
        with choice.fresh.open("wb") as plain:
            unpack(choice.file, plain)
            plain.flush()
            os.fsync(plain.fileno())
        return not self.stopping.is_set()

    def put(self, choice: Choice) -> bool:
        """Let what was made take its place, unless the file it was made of is another one by now.

        Between the rename and the unlink both are there, and the plain one counts.
        """
        plain = segment_path(self._folder, choice.number)
        file = segment_file(self._folder, choice.number)
        if file != choice.file or file.stat().st_ino != choice.inode or (file == plain and not is_checkpointed(plain)):
            return False
        os.rename(choice.fresh, packed_path(plain) if file == plain else plain)
        sync_folder(self._folder)
        file.unlink()
        if file == plain:
            for beside in ("-wal", "-shm"):
                plain.with_name(plain.name + beside).unlink(missing_ok=True)
        log.debug("segment %d is %s", choice.number, "compressed" if file == plain else "plain again")
        return True

    def summary(self, number: int) -> Summary:
        """What lies in a sealed segment."""
        file = segment_file(self._folder, number)
        inode = file.stat().st_ino
        known = self._summaries.get(number)
        if known is not None and known[0] == inode:
            return known[1]
        if file.suffix == ".zst":
            found = read_summary(file)
        else:
            with contextlib.closing(open_sealed(self._folder, number)) as segment:
                found = summary_of(segment, file.stat().st_size)
        there = set(list_segments(self._folder))
        self._summaries = {one: said for one, said in self._summaries.items() if one in there}
        self._summaries[number] = inode, found
        return found

    def _needed_soon(self, connection: sqlite3.Connection, sealed: Sequence[int]) -> set[int]:
        """What stays plain: the last one, and where somebody reads, with the one behind it."""
        state = State.load(connection) or State()
        marks = set(connection.execute("SELECT class, max(until_seq) FROM lines GROUP BY class").fetchall())
        marks |= {(WINDOW_INPUT, cursor.needed) for cursor in state.rule_cursors.values()}
        for sink in cursor_names(self._folder):
            for name, p in (read_positions(self._folder, sink) or {}).items():
                marks |= {(name, seq) for seq in (p.seq, *(island.last_seq for island in p.islands))}
        known = {name for name, _ in marks}
        marks |= {(name, 0) for name in self._config.classes if name not in known}
        soon = set(sealed[-1:])
        for name, seq in marks:
            place = next((n for n, number in enumerate(sealed) if self.summary(number).has(name, seq, ENDLESS)), None)
            if place is not None:
                soon |= set(sealed[place : place + 2])
        return soon
