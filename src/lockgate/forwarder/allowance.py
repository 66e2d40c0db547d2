"""When a sink may send: hours of the day, budgets of messages and bytes, a link that is metered."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Final

from lockgate.buffer import Row
from lockgate.buffer.cursor import Spent
from lockgate.config.model import SinkConfig
from lockgate.telemetry.clock import Clock, Moment

_HOUR_NS: Final = 3600 * 1_000_000_000
_LENGTHS: Final = {"hour": _HOUR_NS, "day": 24 * _HOUR_NS, "month": 31 * 24 * _HOUR_NS}


class Allowance:
    """Says how much of a batch may leave now; `spent` is kept with the cursor, so it survives restarts.

    A period is an hour, day or month of the local calendar. It ends early for no jump of the wall clock that is taken
    back again: going back keeps what was spent, and while the clock is not known to be right a period lasts its full
    length of CLOCK_BOOTTIME.
    """

    def __init__(self, config: SinkConfig, spent: Mapping[str, Spent], clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._limits = {
            period: (messages, size)
            for period, messages, size in (
                ("hour", config.messages_per_hour, config.bytes_per_hour),
                ("day", config.messages_per_day, config.bytes_per_day),
                ("month", config.messages_per_month, config.bytes_per_month),
            )
            if messages is not None or size is not None
        }
        now = clock.now()
        self._since = dict.fromkeys(self._limits, now.boottime_ns)  # when we saw the period begin, or ourselves
        self.spent = {period: spent.get(period, Spent(_start(period, now), 0, 0)) for period in self._limits}

    def refusal(self, message_class: str) -> str | None:
        """Why nothing of the class may be sent now, for people."""
        if message_class in self._config.always:
            return None
        now = self._clock.now()
        if self._config.hours:
            local = datetime.datetime.fromtimestamp(now.wall_ns / 1e9)
            if not any(window.holds(local) for window in self._config.hours):
                return "outside its hours"
        if self._config.metered_while is not None and self._config.metered_while.exists():
            return "the link is metered"
        self._roll(now)
        for period, (messages, size) in self._limits.items():
            spent = self.spent[period]
            if messages is not None and spent.messages >= messages:
                return f"the messages of this {period} are spent"
            if size is not None and spent.bytes >= size:
                return f"the bytes of this {period} are spent"
        return None

    def cut(self, rows: Sequence[Row]) -> Sequence[Row]:
        """As many rows as the budgets still have room for; at least one, which may go beyond them."""
        if rows[0].message_class in self._config.always:
            return rows
        count = len(rows)
        for period, (messages, size) in self._limits.items():
            spent = self.spent[period]
            if messages is not None:
                count = min(count, messages - spent.messages)
            if size is not None:
                left = size - spent.bytes
                for place, row in enumerate(rows[:count]):
                    left -= size_of(row)
                    if left < 0:
                        count = place
                        break
        return rows[: max(1, count)]

    def spend(self, rows: Sequence[Row]) -> None:
        """Count rows that are about to be sent, whatever becomes of them."""
        self._roll(self._clock.now())
        size = sum(map(size_of, rows))
        for period, spent in self.spent.items():
            self.spent[period] = Spent(spent.start_ns, spent.messages + len(rows), spent.bytes + size)

    def _roll(self, now: Moment) -> None:
        for period, spent in self.spent.items():
            start = _start(period, now)
            if not now.clock_ok:
                if now.boottime_ns - self._since[period] < _LENGTHS[period]:
                    continue
            elif start == spent.start_ns:
                continue
            elif start < spent.start_ns:  # the clock was wrong when the period began
                self.spent[period] = spent._replace(start_ns=start)
                continue
            self.spent[period] = Spent(start, 0, 0)
            self._since[period] = now.boottime_ns


def size_of(row: Row) -> int:
    """What a row counts in a budget of bytes."""
    return len(row.payload) + len(row.topic)


def _start(period: str, now: Moment) -> int:
    local = datetime.datetime.fromtimestamp(now.wall_ns / 1e9).replace(minute=0, second=0, microsecond=0)
    if period != "hour":
        local = local.replace(hour=0)
    if period == "month":
        local = local.replace(day=1)
    return round(local.timestamp() * 1e9)
