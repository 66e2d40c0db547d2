"""The last value of each topic, as the table `state` that rules can read; kept over restarts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson

from lockgate.buffer import Batch, LastValue
from lockgate.processor.sandbox import Sandbox
from lockgate.processor.schemas import GIVEN_COLUMNS, Value

TABLE: Final = "state"
_COLUMNS: Final = (("topic", "TEXT PRIMARY KEY"), ("schema", "TEXT"), ("received_at", "INTEGER"), ("value", "TEXT"))


def define_state(sandbox: Sandbox) -> None:
    sandbox.define(TABLE, _COLUMNS)


class LastValues:
    """Kept for the sandboxes in which a rule reads them; for none, nothing is kept."""

    def __init__(self, sandboxes: Iterable[Sandbox], limit: int) -> None:
        self._sandboxes = list(sandboxes)
        self._limit = limit
        self._known: dict[str, None] = {}  # topics, the one heard of longest ago first
        self._changed: dict[str, LastValue] = {}
        self._forgotten: list[str] = []

    @property
    def wanted(self) -> bool:
        return bool(self._sandboxes)

    def load(self, values: Iterable[LastValue]) -> None:
        """What was kept before the start."""
        for value in sorted(values, key=lambda value: value.received_at):
            if self.wanted:
                self._put(value)
            else:
                self._forgotten.append(value.topic)
        self._changed.clear()

    def remember(self, topic: str, schema: str, columns: Iterable[tuple[str, str]], values: list[Value]) -> None:
        """A message that has been through the rules; `columns` and `values` with those of every message."""
        fields = zip((name for name, _ in columns), values[: -len(GIVEN_COLUMNS)], strict=False)
        received_at = values[-1]
        assert isinstance(received_at, int)
        self._put(LastValue(topic, schema, received_at, orjson.dumps(dict(fields)).decode()))

    def note(self, batch: Batch) -> None:
        """Let what has changed be committed with the batch."""
        batch.last_values, self._changed = list(self._changed.values()), {}
        batch.forget_values, self._forgotten = self._forgotten, []

    def _put(self, value: LastValue) -> None:
        self._known.pop(value.topic, None)
        self._known[value.topic] = None
        self._changed[value.topic] = value
        for sandbox in self._sandboxes:
            sandbox.execute(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?, ?, ?)", value)
        if len(self._known) > self._limit:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._changed.pop(oldest, None)
            self._forgotten.append(oldest)
            for sandbox in self._sandboxes:
                sandbox.execute(f"DELETE FROM {TABLE} WHERE topic = ?", (oldest,))
