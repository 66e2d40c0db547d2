"""One writer thread for each SQLite file we own, with group commit, integrity check and salvage."""

from lockgate.sqlite.database import Damage, NewerFile, Schema, open_database, open_readonly
from lockgate.sqlite.folder_lock import FolderInUse, FolderLock
from lockgate.sqlite.writer import CommitFailed, Writer

__all__ = [
    "CommitFailed",
    "Damage",
    "FolderInUse",
    "FolderLock",
    "NewerFile",
    "Schema",
    "Writer",
    "open_database",
    "open_readonly",
]
