"""A store in memory: nothing survives the process, but the contract of `broker.ports.Store` is honoured."""

from __future__ import annotations

from lockgate.broker.ports import RESTS, Delivery, Keeper, StoreAnswers


class MemoryStore:
    """Holds the queues of durable Sessions; other rows are only ever read after a restart, which nothing here survives.

    Changes count as committed, and questions are answered, when the owner calls `settle` at the end of a turn, as a
    disk would after a sync.
    """

    def __init__(self, answers: StoreAnswers) -> None:
        self._answers = answers
        self._last_change = 0
        self._settled_change = 0
        self._wanted: list[tuple[str, int, int]] = []
        self._queues: dict[str, dict[int, Delivery]] = {}

    def append(self, commit: int, client_id: str, delivery: Delivery) -> None:
        """Add a delivery at the end of a queue."""
        self._last_change = commit
        self._queues.setdefault(client_id, {})[delivery.position] = delivery

    def update(self, commit: int, client_id: str, delivery: Delivery) -> None:
        """Note the state of a delivery, which is in it."""
        self._last_change = commit

    def acknowledge(self, commit: int, client_id: str, position: int) -> None:
        """Remove a delivery from a queue, and what was noted about its flight."""
        self._last_change = commit
        queue = self._queues.get(client_id)
        if queue is not None:
            queue.pop(position, None)

    def set(self, commit: int, table: str, key: tuple[str, ...], value: object) -> None:
        """Insert or replace one row."""
        self._last_change = commit

    def delete(self, commit: int, table: str, key: tuple[str, ...]) -> None:
        """Remove one row."""
        self._last_change = commit

    def end_session(self, commit: int, client_id: str) -> None:
        """Remove a whole queue."""
        self._last_change = commit
        self._queues.pop(client_id, None)

    def want(self, client_id: str, after: int, limit: int) -> None:
        """Ask for deliveries; the answer comes with the next `settle`."""
        self._wanted.append((client_id, after, limit))

    def restore(self, keeper: Keeper) -> None:
        """Give what was stored: nothing."""

    def start(self) -> None:
        """Go on with the running event loop, which is not needed."""

    def close(self) -> None:
        """Forget everything."""

    def flush(self) -> None:
        """Write everything, which is done."""

    def status(self) -> dict[str, object]:
        """Say that nothing is kept."""
        return {"persistence": False}

    def settle(self) -> int:
        """Give all answers that are due; they may ask anew, which is answered in the same call.

        Nothing is ever left to be written, so it rests.
        """
        while self._last_change > self._settled_change or self._wanted:
            if self._last_change > self._settled_change:
                self._settled_change = self._last_change
                self._answers.committed(self._settled_change)
            wanted, self._wanted = self._wanted, []
            for client_id, after, limit in wanted:
                self._answers.loaded(client_id, self._after(client_id, after, limit))
        return RESTS

    def _after(self, client_id: str, after: int, limit: int) -> list[Delivery]:
        found: list[Delivery] = []
        for position, delivery in self._queues.get(client_id, {}).items():
            if position > after:
                found.append(delivery)
                if len(found) == limit:
                    break
        return found
