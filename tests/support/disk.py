"""A disk that a test can crash and break: the real rows and statements of `storage`, written at once and in memory."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from lockgate.broker.ports import RESTS, Delivery, Keeper, StoreAnswers
from lockgate.sqlite.database import create_tables
from lockgate.storage import statements
from lockgate.storage.changes import Batch, Changes
from lockgate.storage.clock import MomentSource
from lockgate.storage.restore import read_stored
from lockgate.storage.schema import SCHEMA


class Disk:
    """What was committed. It outlives the stores that write to it."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        create_tables(self.connection, SCHEMA, Path(":memory:"))
        self.problem = 0  # the reason code with which every commit fails
        self.keeps_failed = False  # a commit that is said to have failed is there all the same after a crash

    def rows(self, table: str) -> int:
        """Count the rows of a table."""
        return int(self.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


class DiskStore:
    """A `broker.ports.Store` that commits and answers when the owner calls `settle`, as a disk would after a sync."""

    def __init__(self, answers: StoreAnswers, disk: Disk, source: MomentSource) -> None:
        self.disk = disk
        self._answers = answers
        connection = disk.connection
        self._stored = stored = read_stored(connection, source)
        assert not stored.summary.left_out
        self._clock = stored.clock
        self._purging = stored.orphans
        self._changes = Changes(stored.numbers, stored.next_number, stored.next_message_id)
        self._unwritten: list[Batch] = []
        self._wanted: list[tuple[str, int, int]] = []
        self._committed = 0
        self.append = self._changes.append
        self.update = self._changes.update
        self.acknowledge = self._changes.acknowledge
        self.set = self._changes.set
        self.delete = self._changes.delete

    def end_session(self, commit: int, client_id: str) -> None:
        """Remove a Session and all it has."""
        self._purging.append(self._changes.numbers[client_id])
        self._wanted = [question for question in self._wanted if question[0] != client_id]
        self._changes.end_session(commit, client_id)

    def want(self, client_id: str, after: int, limit: int) -> None:
        """Ask for deliveries; the answer comes with the next `settle`."""
        self._wanted.append((client_id, after, limit))

    def restore(self, keeper: Keeper) -> None:
        """Hand over what was committed."""
        self._stored.hand_over(keeper)

    def settle(self) -> int:
        """Commit what has changed and give all answers that are due, or say that it failed; RESTS where all is done."""
        while (
            not self._changes.is_void or self._unwritten or self._wanted or self._changes.last_change > self._committed
        ):
            self._unwritten.append(self._changes.take(self._clock.to_store(1.0) - 1.0))
            if self.disk.problem:
                if self.disk.keeps_failed:
                    self._write()
                self._answers.store_failed(self.disk.problem)
                return 0
            self._write()
            self._committed = self._unwritten[-1].number
            self._unwritten = []
            self._answers.committed(self._committed)
            wanted, self._wanted = self._wanted, []
            for client_id, after, limit in wanted:
                self._answers.loaded(client_id, self._read(client_id, after, limit))
        return RESTS

    def _write(self) -> None:
        connection = self.disk.connection
        connection.execute("BEGIN")
        for batch in self._unwritten:
            statements.write(connection, batch)
        noted = self._clock.note()
        if noted is not None:
            statements.note_clock(connection, noted)
        for number in self._purging:
            statements.purge(connection, number, 1 << 30)
        self._purging = []
        connection.execute("COMMIT")

    def _read(self, client_id: str, after: int, limit: int) -> list[Delivery]:
        number = self._changes.numbers[client_id]
        found, unusable = statements.wanted(self.disk.connection, number, after, limit, self._clock)
        assert not unusable
        return found
