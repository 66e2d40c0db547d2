"""The durable log between processor and forwarder: a folder of SQLite files."""

from lockgate.buffer.cursor import Cursor
from lockgate.buffer.log import Log
from lockgate.buffer.reader import DamagedSegment, LogReader
from lockgate.buffer.rows import Batch, Entry, PacketRecord, Quarantined, Row

__all__ = ["Batch", "Cursor", "DamagedSegment", "Entry", "Log", "LogReader", "PacketRecord", "Quarantined", "Row"]
