"""Messages that stay in the log although no window needs them, so that a rule can be tried on them."""

from __future__ import annotations

from typing import Final

from lockgate.buffer import LogReader, RuleCursor
from lockgate.buffer.segments import WINDOW_INPUT
from lockgate.processor.schemas import Schema
from lockgate.telemetry.clock import Moment

_LOOK_NS: Final = 60_000_000_000  # between two looks at what has become too old
_READ_ROWS: Final = 1000


class Keeping:
    """Those of one schema. To purge it is one more rule's cursor; when the buffer is full it gives way."""

    def __init__(self, schema: Schema, cursor: RuleCursor | None, last_seq: int) -> None:
        self.name = cursor_name(schema)
        self.moved = cursor is None
        self._schema = schema.name
        self._needed = cursor.needed if cursor is not None else last_seq
        self._keep_ns = round((schema.config.keep_seconds or 0) * 1e9)
        self._looked_ns: int | None = None

    def cursor(self) -> RuleCursor:
        self.moved = False
        return RuleCursor(self._schema, self._needed)

    def let_go(self, reader: LogReader, now: Moment) -> None:
        """Let go of what is too old by now; cheap between two looks."""
        if self._looked_ns is not None and now.boottime_ns - self._looked_ns < _LOOK_NS:
            return
        self._looked_ns = now.boottime_ns
        while rows := reader.read(WINDOW_INPUT, self._needed, _READ_ROWS):
            for row in rows:
                if row.schema == self._schema and row.wall_ns >= now.wall_ns - self._keep_ns:
                    return
                self._needed = row.seq
                self.moved = True

    def give_way(self, last_seq: int) -> None:
        """Let go of the older half: there is no room."""
        if self._needed < last_seq:
            self._needed += (last_seq - self._needed + 1) // 2
            self.moved = True


def cursor_name(schema: Schema) -> str:
    return f"#{schema.name}"
