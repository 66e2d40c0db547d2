"""The durable log between processor and forwarder: a folder of SQLite files."""

from lockgate.buffer.cursor import Cursor
from lockgate.buffer.log import Log
from lockgate.buffer.reader import DamagedSegment, LogReader
from lockgate.buffer.rows import (
    Batch,
    Entry,
    Kept,
    LastValue,
    PacketRecord,
    PacketRecords,
    Quarantined,
    Row,
    RuleCursor,
)
from lockgate.sqlite import CommitFailed

__all__ = [
    "Batch",
    "CommitFailed",
    "Cursor",
    "DamagedSegment",
    "Entry",
    "Kept",
    "LastValue",
    "Log",
    "LogReader",
    "PacketRecord",
    "PacketRecords",
    "Quarantined",
    "Row",
    "RuleCursor",
]
