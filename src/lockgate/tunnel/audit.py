"""The audit log of an edge: a line of JSON for each beginning and end of a connection, chained by hashes.

The last member of a line is its hash: SHA-256 of the hash of the line before and of this line up to there. Who changes,
removes or adds a line in the middle breaks the chain behind it. What a chain cannot show is that the newest lines were
cut off: for that, keep the number and hash that `lockgate edge audit verify` prints somewhere else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from lockgate.files import sync_folder

log = logging.getLogger(__name__)

FIRST: Final = "0" * 64  # the hash before the first line
_NAME: Final = re.compile(r"audit-([0-9]{8})\.jsonl")
_TAIL: Final = re.compile(rb',"hash":"([0-9a-f]{64})"\}')
_TAIL_BYTES: Final = len(',"hash":""}') + 64
_TEXT_CHARACTERS: Final = 256  # of anything a peer had a part in
_LINE_BYTES: Final = 64 * 1024
_WAITING: Final = 10_000  # lines that are kept while the disk takes none


@dataclass(slots=True)
class Visit:
    """One connection: what its last line says. `up` is towards the origin, in bytes."""

    begin: Mapping[str, object]
    number: int
    started: float
    up: int = 0
    down: int = 0


class AuditLog:
    """The files of one folder, which nobody else writes.

    Lines are written and synced together, by a thread of its own, at most `sync_seconds` after they came; until then
    a power cut may lose them. A disk that takes nothing never stops anybody: lines wait, those beyond a bound are
    counted and the log says how many. Times in Unix seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        file_bytes: int = 16 * 1024 * 1024,
        files: int = 64,
        sync_seconds: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises OSError when the folder cannot be used at all."""
        self._folder = folder
        self._file_bytes = file_bytes
        self._files = files
        self._sync_seconds = sync_seconds
        self._clock = clock
        self.lost = 0  # lines that are gone, since the start
        self._untold = 0  # of these, those that no line tells of yet
        self._waiting: list[dict[str, object]] = []
        self._visits = 0
        self._lock = threading.Lock()  # over what waits
        self._writing = threading.Lock()  # over the file
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._is_failing = False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._held = open(folder / ".lock", "a")  # noqa: SIM115
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._held.close()
            raise BlockingIOError(11, "another process writes the audit log", str(folder)) from None
        self._number, self._hash, self._sequence, self._size = self._find_end()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    # --- from any thread ------------------------------------------------------------------------------------------

    def begin(
        self, *, who: str = "", address: str = "", tunnel: str = "", host: str = "", origin: str = "", kind: str = ""
    ) -> Visit:
        """Write that a connection begins; give what `end` is called with."""
        now = self._clock()
        said = {"who": who, "from": address, "tunnel": tunnel, "host": host, "origin": origin, "kind": kind}
        with self._lock:
            self._visits += 1
            number = self._visits
        visit = Visit({name: _shown(value) for name, value in said.items() if value}, number, now)
        self.write("begin", connection=number, **visit.begin)
        return visit

    def end(self, visit: Visit, how: str) -> None:
        """Write that it ended, and how; the line stands for itself."""
        seconds = round(max(0.0, self._clock() - visit.started), 3)
        counts = {"up": visit.up, "down": visit.down, "seconds": seconds, "began": _spoken(visit.started)}
        self.write("end", connection=visit.number, **visit.begin, **counts, how=how)

    def refused(self, why: str, **facts: object) -> None:
        """Write that somebody was not let in."""
        self.write("refused", why=why, **facts)

    def write(self, event: str, **facts: object) -> None:
        """Write a line."""
        line: dict[str, object] = {"time": _spoken(self._clock()), "event": event}
        line |= {name: _shown(value) for name, value in facts.items()}
        with self._lock:
            if len(self._waiting) < _WAITING:
                self._waiting.append(line)
            else:
                self.lost += 1
                self._untold += 1
        self._wake.set()

    def close(self) -> None:
        """Write what waits, and end."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        self.flush()
        self._held.close()

    # --- to the disk ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(self._sync_seconds)  # what comes meanwhile is synced together
            self._wake.clear()
            if not self.flush():
                self._wake.set()  # again, a moment later

    def flush(self) -> bool:
        """Write and sync what waits; whether nothing waits any more. Blocks as long as the disk does."""
        with self._writing:
            with self._lock:
                lines, self._waiting = self._waiting, []
                untold, self._untold = self._untold, 0
            if untold:
                lines.append({"time": _spoken(self._clock()), "event": "lost", "lines": untold})
            if not lines:
                return True
            try:
                self._append(lines)
            except OSError as error:
                if untold:
                    lines.pop()
                with self._lock:
                    self._untold += untold
                    self._waiting = lines + self._waiting
                if not self._is_failing:
                    log.error("the audit log in %s cannot be written, lines wait: %s", self._folder, error.strerror)
                self._is_failing = True
                return False
            if self._is_failing:
                log.info("the audit log in %s is written again, %d lines are lost", self._folder, untold)
                self._is_failing = False
            return True

    def _append(self, lines: list[dict[str, object]]) -> None:
        """Write lines, all or none of them as far as we go on from there. Raises OSError."""
        if self._size >= self._file_bytes:
            self._number, self._size = self._number + 1, 0
            self._remove_old()
        sequence, before = self._sequence, self._hash
        pieces: list[bytes] = []
        for line in lines:
            sequence += 1
            head: dict[str, object] = {"n": sequence}
            if not self._size and not pieces:
                head["before"] = before
            piece, before = _chained(head | line, before)
            pieces.append(piece)
        data = b"".join(pieces)
        descriptor = os.open(
            self._path(self._number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            try:
                if os.fstat(descriptor).st_size != self._size:  # what failed before, or was not ours
                    os.ftruncate(descriptor, self._size)
                left = memoryview(data)
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, self._size)
                raise
        finally:
            os.close(descriptor)
        if not self._size:
            sync_folder(self._folder)
        self._size += len(data)
        self._sequence, self._hash = sequence, before

    def _path(self, number: int) -> Path:
        return self._folder / f"audit-{number:08}.jsonl"

    def _remove_old(self) -> None:
        for _, path in files(self._folder)[: -max(1, self._files - 1)]:
            path.unlink(missing_ok=True)

    def _find_end(self) -> tuple[int, str, int, int]:
        """Give the number of the last file, its last hash and number of a line, and its size; mend its end.

        A line that a crash cut off is taken away and told of. A file that is broken otherwise stays as it is: the log
        goes on in a new one, and `verify` shows the break for ever.
        """
        found = files(self._folder)
        if not found:
            return 1, FIRST, 0, 0
        number, path = found[-1]
        checked = check_file(path, None)
        size = checked.size
        if checked.problem is not None:
            log.error("the audit log goes on in a new file: %s", checked.problem)
            self._note("broken", file=path.name, why=checked.problem.what)
            number, size = number + 1, 0
        elif checked.torn:
            log.warning("%s ends within a line, %d bytes that a crash cut off are taken away", path, checked.torn)
            with path.open("r+b") as file:
                file.seek(size)
                self._note("torn", bytes=checked.torn, sha256=hashlib.sha256(file.read()).hexdigest())
                file.truncate(size)
                os.fsync(file.fileno())
        if checked.sequence is None and len(found) > 1:  # nothing in it is whole
            checked = check_file(found[-2][1], None)
        return number, checked.hash or FIRST, checked.sequence or 0, size

    def _note(self, event: str, **facts: object) -> None:
        self._waiting.append({"time": _spoken(self._clock()), "event": event, **facts})


def _chained(line: Mapping[str, object], before: str) -> tuple[bytes, str]:
    """Give a line as it is written, and its hash."""
    body = json.dumps(line, separators=(",", ":")).encode()[:-1]
    digest = hashlib.sha256(before.encode() + body).hexdigest()
    return body + f',"hash":"{digest}"}}\n'.encode(), digest


def _shown(value: object) -> object:
    """What a peer may have had a part in, bounded; JSON escapes the rest."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    text = str(value)
    return text if len(text) <= _TEXT_CHARACTERS else text[:_TEXT_CHARACTERS] + "…"


def _spoken(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """Where the chain is broken."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


@dataclass(slots=True)
class Checked:
    """What a file is, as far as it is good."""

    hash: str | None = None  # of its last good line; None: there is none
    sequence: int | None = None
    size: int = 0  # where that ends
    lines: int = 0
    torn: int = 0  # bytes of a last line that a crash cut off
    before: str | None = None  # the hash that its first line goes on from
    first: int | None = None
    problem: Problem | None = None
    wanted: set[tuple[int, str]] = field(default_factory=set)  # of those asked for, those that are there


def files(folder: Path) -> list[tuple[int, Path]]:
    """Give the files of a log in their order."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir()) if folder.exists() else ()
    return sorted((int(match[1]), path) for match, path in found if match is not None)


def check_file(path: Path, before: str | None, wanted: tuple[int, str] | None = None) -> Checked:
    """Follow the chain through one file. `before` is the hash it has to go on from, None if that is not known.

    A last line without its end is torn; one with its end that is wrong was tampered with, as is anything in the
    middle.
    """
    checked = Checked()
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if not line.endswith(b"\n"):
                checked.torn = os.fstat(file.fileno()).st_size - checked.size
                return checked
            what = _check_line(line, checked, before)
            if what is not None and not (line + file.read()).strip(b"\0\n"):
                # a file system may give zeros for what it had no time to write
                checked.torn = os.fstat(file.fileno()).st_size - checked.size
                return checked
            if what is not None:
                checked.problem = Problem(path.name, number, what)
                return checked
            checked.lines += 1
            checked.size += len(line)
            if wanted is not None and wanted == (checked.sequence, checked.hash):
                checked.wanted.add(wanted)
    return checked


def _check_line(line: bytes, checked: Checked, before: str | None) -> str | None:
    """Say what is wrong with a line, and take note of it where nothing is."""
    tail = _TAIL.fullmatch(line[-_TAIL_BYTES - 1 : -1])
    try:
        said: Any = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if tail is None or not isinstance(said, dict) or not isinstance(said.get("n"), int):
        return "is no line of this log"
    if checked.sequence is None:
        known = said.get("before")
        if not isinstance(known, str) or (before is not None and known != before):
            return "does not go on from the file before: lines or files are missing"
        checked.before, checked.first = known, said["n"]
        expected = known
    else:
        if said["n"] != checked.sequence + 1:
            return f"has number {said['n']} behind {checked.sequence}: lines are missing or were moved"
        expected = checked.hash or FIRST
    digest = hashlib.sha256(expected.encode() + line[: -_TAIL_BYTES - 1]).hexdigest()
    if digest.encode() != tail[1]:
        return "does not fit its hash: it was changed, or lines before it were"
    checked.hash, checked.sequence = digest, said["n"]
    return None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Give the lines; one that is too long comes in parts, and fits no hash."""
    while line := file.readline(_LINE_BYTES):
        yield line if len(line) < _LINE_BYTES or line.endswith(b"\n") else line + b"\n"


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found."""

    files: int
    lines: int
    first: int | None  # number of the first line that is there; later than 1 where old files were removed
    last: int | None
    hash: str | None
    torn: int
    problems: tuple[Problem, ...]


def verify(folder: Path, wanted: tuple[int, str] | None = None) -> Report:
    """Follow the chain through all files. With `wanted`, a line's number and hash noted earlier have to be in it.

    Raises OSError.
    """
    problems: list[Problem] = []
    before: str | None = None
    first: int | None = None
    last: int | None = None
    expected_number: int | None = None
    lines = torn = 0
    is_there = False
    found = files(folder)
    for position, (number, path) in enumerate(found):
        if expected_number is not None and number != expected_number:
            problems.append(Problem(path.name, 1, "is not the next file: files are missing"))
        expected_number = number + 1
        checked = check_file(path, before, wanted)
        lines += checked.lines
        if first is None:
            first = checked.first
        if first == 1 and checked.first == 1 and checked.before != FIRST:
            problems.append(Problem(path.name, 1, "is numbered as the first line, and goes on from another"))
        is_there = is_there or bool(checked.wanted)
        if checked.problem is not None:
            problems.append(checked.problem)
        if checked.torn:
            if position == len(found) - 1:
                torn = checked.torn
            else:
                problems.append(Problem(path.name, checked.lines + 1, "ends within a line, and there is a file behind"))
        if checked.hash is not None:
            before, last = checked.hash, checked.sequence
    if wanted is not None and not is_there:
        where = found[-1][1].name if found else str(folder)
        problems.append(
            Problem(where, 0, f"line {wanted[0]} with the hash that was noted is not there: lines were cut off")
        )
    return Report(len(found), lines, first, last, before, torn, tuple(problems))


def tail(folder: Path, count: int) -> list[dict[str, Any]]:
    """Give the last lines that can be read, the newest last. Raises OSError."""
    kept: list[dict[str, Any]] = []
    for _, path in reversed(files(folder)):
        said: list[dict[str, Any]] = []
        for line in path.read_bytes().split(b"\n"):
            try:
                one = json.loads(line)
            except ValueError:
                continue
            if isinstance(one, dict):
                said.append(one)
        kept = said[-(count - len(kept)) :] + kept
        if len(kept) >= count:
            break
    return kept
