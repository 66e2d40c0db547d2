"""Takes over what Mosquitto left in the data folder, once: a file that was read is renamed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from lockgate.broker.ports import Store
from lockgate.files import sync_folder
from lockgate.storage.imported import Counts, Imported, UnreadableStore, write

log = logging.getLogger(__name__)

SQLITE_FILE: Final = "mosquitto.sqlite3"
IMPORTED: Final = ".imported"
LEFT_OUT: Final = ".older"  # of two stores the one that was written before the other
_SQLITE_PARTS: Final = ("-wal", "-shm")  # beside the database; the database itself is renamed last


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of a store that was found."""

    path: Path  # where the file lies now
    form: str  # which of Mosquitto's formats and versions
    counts: Counts
    skipped: dict[str, int]  # by reason
    damage: str  # empty for a file that could be read to its end


def import_once(
    folder: Path,
    persistence_file: str,
    store: Store,
    commit: int,
    now: float,
    wall_now: float | None,
    sync: Callable[[], None],
    *,
    known_sessions: Container[str] = (),
    known_retained: Container[str] = (),
) -> ImportReport | None:
    """Write Mosquitto's store into ours, if the folder has one, and rename it; give what became of it.

    `sync` returns once the change `commit` is safe, and only then the file is renamed: after a crash in between the
    import is made again. Sessions and topics that our store knows (`known_…`) stay as they are. `now` and `wall_now`
    are those of `imported.write`. Raises UnreadableStore and OSError, and has then changed nothing.
    """
    found = [path for path in (folder / persistence_file, folder / SQLITE_FILE) if path.is_file()]
    if not found:
        return None
    found.sort(key=_written_at)
    path = found[-1]
    imported = _read(path, folder / SQLITE_FILE)
    counts = write(store, commit, imported, now, wall_now, known_sessions=known_sessions, known_retained=known_retained)
    sync()
    for older in found[:-1]:
        aside = _rename(older, LEFT_OUT)
        log.warning("%s was not imported: %s is newer; it is kept as %s", older, path.name, aside.name)
    report = ImportReport(_rename(path, IMPORTED), imported.form, counts, dict(imported.skipped), imported.damage)
    sync_folder(folder)
    _tell(path, report)
    return report


def _read(path: Path, sqlite_path: Path) -> Imported:
    # Imported here: a broker that has nothing to take over needs neither.
    if path == sqlite_path:
        from lockgate.storage import mosquitto_sqlite

        return mosquitto_sqlite.read(path)
    from lockgate.storage import mosquitto_db

    return mosquitto_db.read(path)


def _written_at(path: Path) -> float:
    """Give when a store was last written; a database's newest changes lie beside it."""
    beside = path.with_name(f"{path.name}-wal")
    return max(p.stat().st_mtime for p in (path, beside) if p.exists())


def _rename(path: Path, suffix: str) -> Path:
    target = path.with_name(path.name + suffix)
    number = 1
    while target.exists():  # an import of long ago
        number += 1
        target = path.with_name(f"{path.name}{suffix}-{number}")
    for part in _SQLITE_PARTS:
        beside = path.with_name(path.name + part)
        if beside.exists():
            os.rename(beside, target.with_name(target.name + part))
    os.rename(path, target)
    return target


def _tell(path: Path, report: ImportReport) -> None:
    brought = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in asdict(report.counts).items() if count)
    log.info("imported %s (%s), kept as %s: %s", path, report.form, report.path.name, brought or "nothing in it")
    for reason, count in report.skipped.items():
        log.warning("not imported from %s: %d %s", path, count, reason)
    if report.damage:
        log.error("%s is damaged, all before the damage was imported: %s", path, report.damage)


__all__ = ["ImportReport", "UnreadableStore", "import_once"]
