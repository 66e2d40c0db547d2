"""The last value of each topic, as the table `state` that rules can read; kept over restarts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

import orjson

from lockgate.buffer import Batch, LastValue
from lockgate.processor.schemas import GIVEN_COLUMNS, Value

if TYPE_CHECKING:
    from lockgate.processor.sandbox import Sandbox

TABLE: Final = "state"
MEMORY: Final = "#memory"  # the schema under which it is kept what functions remember
_COLUMNS: Final = (("topic", "TEXT PRIMARY KEY"), ("schema", "TEXT"), ("received_at", "INTEGER"), ("value", "TEXT"))


def define_state(sandbox: Sandbox) -> None:
    sandbox.define(TABLE, _COLUMNS)


class Memory:
    """What functions remember from one message to the next, each rule for itself; kept over restarts too.

    What a run of a rule changes counts only when the run has been good.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._owner = ""
        self._kept: dict[str, Any] = {}  # the one changed longest ago first
        self._tried: dict[str, Any] = {}
        self._changed: dict[str, None] = {}
        self._forgotten: dict[str, None] = {}
        self._number = 0

    def begin(self, owner: str) -> None:
        """A run of a rule; what the last run changed is forgotten unless it was kept."""
        self._owner = owner
        self._tried.clear()

    def keep(self) -> None:
        for name, value in self._tried.items():
            self._kept.pop(name, None)
            self._kept[name] = value
            self._changed[name] = None
            self._forgotten.pop(name, None)
            if len(self._kept) > self._limit:
                self._forget(next(iter(self._kept)))
        self._tried.clear()

    def get(self, function: str, key: object) -> Any:
        name = f"{MEMORY}/{self._owner}/{function}/{key}"
        return self._tried[name] if name in self._tried else self._kept.get(name)

    def put(self, function: str, key: object, value: object) -> None:
        """Raises ValueError for what could not be kept as JSON."""
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, bytes) or (isinstance(one, float) and not math.isfinite(one)):
                raise ValueError(f"{function}() cannot remember {'a BLOB' if isinstance(one, bytes) else one}")
        self._tried[f"{MEMORY}/{self._owner}/{function}/{key}"] = value

    def load(self, values: Iterable[LastValue], rules: Collection[str]) -> None:
        """What was kept before the start, of rules that still exist."""
        of_rules = tuple(f"{MEMORY}/{rule}/" for rule in rules)
        for value in sorted(values, key=lambda value: value.received_at):
            self._number = value.received_at
            self._kept[value.topic] = orjson.loads(value.value)
            if not value.topic.startswith(of_rules):
                self._forget(value.topic)
            elif len(self._kept) > self._limit:
                self._forget(next(iter(self._kept)))

    def note(self, batch: Batch) -> None:
        """Let what has changed be committed with the batch."""
        for name in self._changed:
            self._number += 1
            batch.last_values.append(LastValue(name, MEMORY, self._number, orjson.dumps(self._kept[name]).decode()))
        batch.forget_values += self._forgotten
        self._changed.clear()
        self._forgotten.clear()

    def _forget(self, name: str) -> None:
        del self._kept[name]
        self._changed.pop(name, None)
        self._forgotten[name] = None


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
        batch.last_values += self._changed.values()
        batch.forget_values += self._forgotten
        self._changed.clear()
        self._forgotten.clear()

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
