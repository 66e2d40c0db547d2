"""Windows: which rows of the log a rule is run over, and when. Plain arithmetic on times; no clock is read here.

Times are nanoseconds: CLOCK_BOOTTIME of the present boot for a window by arrival, Unix time for one by a field.
A window is rebuilt from the log after a restart: what it has to remember is `until`, and which rows it still needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from lockgate.config.errors import ConfigError
from lockgate.config.model import RuleConfig

LONGEST_SECONDS: Final = 3650 * 86_400.0  # of anything; its nanoseconds are an integer of SQLite
LONGEST_SESSION_SECONDS: Final = 86_400.0
MOST_OVERLAPS: Final = 10_000  # windows that one message can belong to
_ALWAYS: Final = -(1 << 62)
_NEVER: Final = 1 << 62


class Frame(NamedTuple):
    """The rows of one evaluation: `after` < seq ≤ `upto` and `low` ≤ time < `high`; what :window_start and _end say."""

    after: int
    upto: int
    low: int
    high: int
    start: int
    end: int


class Stamped(Protocol):
    """A row as far as it matters here."""

    @property
    def seq(self) -> int: ...
    @property
    def time(self) -> int: ...


class Rows(Protocol):
    """What a window asks of the table that holds its rows."""

    def earliest(self, after: int, low: int) -> int | None:
        """The smallest time ≥ `low` of rows with a greater seq than `after`."""

    def times(self, after: int, low: int) -> Iterator[int]:
        """Give those times in order."""

    def oldest(self, after: int, low: int) -> int | None:
        """The smallest seq greater than `after` of rows with a time ≥ `low`."""


class Window:
    """One rule's windows over one table of rows."""

    outlasts_boots = False  # whether the same window can go on in another boot

    def __init__(self, config: RuleConfig) -> None:
        self.by_field = config.time is not None
        self.lateness = round(config.lateness_seconds * 1e9) if self.by_field else 0
        self.after = 0  # rows up to this seq are not needed any more
        self.seq = 0  # of the last row taken
        self.until: int | None = None  # what was before is settled
        self.latest: int | None = None  # the greatest time of a row
        self.heard = 0  # CLOCK_BOOTTIME of the last row's arrival, or of the start after another boot

    def is_late(self, time: int) -> bool:
        """Whether every window that the row would belong to is settled."""
        return False

    def taken(self, rows: Sequence[Stamped]) -> Iterator[Frame]:
        """The frames that rows make by themselves, in the order of seq."""
        return iter(())

    def over(self, rows: Rows, time: int) -> Iterator[Frame]:
        """The frames that are over at a time."""
        return iter(())

    def low(self) -> int:
        """Rows before this time are not needed any more."""
        return _ALWAYS

    def deadline(self, rows: Rows) -> int | None:
        """CLOCK_BOOTTIME at which `over` will have something to give if no row comes before; None for never."""
        return None

    def last_end(self) -> int | None:
        """When everything that has come would be over; None if nothing is open."""
        return None

    def closes_with_boot(self, known: bool) -> bool:
        """Whether what is open ends with the boot; `known`: how long the machine was off."""
        return False

    def reboot(self, offset: int | None, time: int) -> None:
        """Go on at `time` of another boot, whose clock is `offset` ahead of the one before; None: that is unknown."""

    def let_go(self, seq: int) -> None:
        """Rows up to this seq have no place in time any more."""
        self.after = max(self.after, seq)

    def note(self, time: int) -> None:
        self.latest = time if self.latest is None else max(self.latest, time)

    def replay(self, rows: Sequence[Stamped]) -> None:
        """Know rows again that were taken before the last restart."""
        for row in rows:
            self.note(row.time)

    def watermark(self, now: int) -> int | None:
        """Up to when everything is thought to have come; None as long as nothing has."""
        if not self.by_field:
            return now
        return None if self.latest is None else self.latest - self.lateness

    def trim(self, rows: Rows, upto: int) -> None:
        """Move `after` as far as the window allows; `upto`: the last row there is. A start brings them in parts."""
        oldest = rows.oldest(self.after, self.low())
        self.after = max(self.after, min(self.seq, upto)) if oldest is None else oldest - 1


class Periodic(Window):
    """Every so often, over the rows of the last `keep`: tumbling where both are the same, else hopping."""

    def __init__(self, config: RuleConfig) -> None:
        super().__init__(config)
        assert config.every_seconds is not None
        self.every = max(1, round(config.every_seconds * 1e9))
        self.keep = round(config.keep_seconds * 1e9) if config.keep_seconds is not None else self.every

    def is_late(self, time: int) -> bool:
        return self.until is not None and time < self.low()

    def over(self, rows: Rows, time: int) -> Iterator[Frame]:
        if self.until is None:
            first = rows.earliest(self.after, _ALWAYS)
            if first is None or self._boundary(first) > time:
                return
            self.until = self._boundary(first) - self.every
        while (end := self.until + self.every) <= time:
            first = rows.earliest(self.after, end - self.keep)
            if first is None or first >= end:  # nothing came for a while
                self.until = self._boundary(time if first is None else min(first, time)) - self.every
                continue
            self.until = end
            yield Frame(self.after, _NEVER, end - self.keep, end, end - self.keep, end)

    def low(self) -> int:
        return _ALWAYS if self.until is None else self.until + self.every - self.keep

    def deadline(self, rows: Rows) -> int | None:
        if self.by_field:
            return None if self.last_end() is None else self.heard + self.keep + self.lateness
        first = rows.earliest(self.after, self.low())
        if first is None:
            return None
        return self._boundary(first) if self.until is None else max(self.until + self.every, self._boundary(first))

    def last_end(self) -> int | None:
        if self.latest is None or (self.until is not None and self.latest < self.until):
            return None
        return self._boundary(self.latest)

    def closes_with_boot(self, known: bool) -> bool:
        return True

    def reboot(self, offset: int | None, time: int) -> None:
        self.until = self._boundary(time) - self.every
        if self.keep <= self.every:
            self.after = self.seq  # all of it has been settled with the boot

    def _boundary(self, time: int) -> int:
        """The first end of a window after a time."""
        return time // self.every * self.every + self.every


class Sliding(Window):
    """At each row, over the rows of the last `keep`."""

    def __init__(self, config: RuleConfig) -> None:
        super().__init__(config)
        assert config.keep_seconds is not None
        self.keep = round(config.keep_seconds * 1e9)

    def is_late(self, time: int) -> bool:
        return self.latest is not None and time < self.latest - self.lateness

    def taken(self, rows: Sequence[Stamped]) -> Iterator[Frame]:
        for seq, time in ((row.seq, row.time) for row in rows):
            yield Frame(self.after, seq, time - self.keep, time + 1, time - self.keep, time)

    def low(self) -> int:
        return _ALWAYS if self.latest is None else self.latest - self.lateness - self.keep


class Session(Window):
    """As long as the next row comes within `gap`."""

    outlasts_boots = True

    def __init__(self, config: RuleConfig) -> None:
        super().__init__(config)
        assert config.gap_seconds is not None
        self.gap = round(config.gap_seconds * 1e9)
        self.longest = round((config.keep_seconds or LONGEST_SESSION_SECONDS) * 1e9)
        self._end: int | None = None  # when the first session will be over if nothing more comes

    def is_late(self, time: int) -> bool:
        return self.until is not None and time < self.until

    def over(self, rows: Rows, time: int) -> Iterator[Frame]:
        while self._end is None or self._end <= time:
            start, last, complete = self._first(rows)
            if start is None:
                self._end = None
                return
            self._end = last + 1 if complete else last + self.gap
            if self._end > time:
                return
            self.until = last + 1
            self._end = None
            yield Frame(self.after, _NEVER, start, last + 1, start, last)

    def _first(self, rows: Rows) -> tuple[int | None, int, bool]:
        """Start and last row of the first session, and whether it has reached its greatest length."""
        start: int | None = None
        last = 0
        for time in rows.times(self.after, self.low()):
            if start is None:
                start = time
            elif time - last >= self.gap:
                break
            elif time - start >= self.longest:
                return start, last, True
            last = time
        return start, last, False

    def low(self) -> int:
        return _ALWAYS if self.until is None else self.until

    def deadline(self, rows: Rows) -> int | None:
        if self.last_end() is None:
            return None
        assert self.latest is not None
        return (self.heard if self.by_field else self.latest) + self.gap + self.lateness

    def last_end(self) -> int | None:
        if self.latest is None or (self.until is not None and self.latest < self.until):
            return None
        return self.latest + self.gap

    def closes_with_boot(self, known: bool) -> bool:
        return not known

    def reboot(self, offset: int | None, time: int) -> None:
        self.until = None if offset is None or self.until is None else self.until + offset
        self._end = None


class Count(Window):
    """Every so many rows, over these; their times do not matter."""

    def __init__(self, config: RuleConfig) -> None:
        super().__init__(config)
        assert config.count is not None
        self.count = config.count
        self.held = 0

    def taken(self, rows: Sequence[Stamped]) -> Iterator[Frame]:
        for seq, time in ((row.seq, row.time) for row in rows):
            self.held += 1
            if self.held == self.count:
                yield Frame(self.after, seq, _ALWAYS, _NEVER, _ALWAYS, time)
                self.after = seq
                self.held = 0

    def replay(self, rows: Sequence[Stamped]) -> None:
        self.held += len(rows)

    def let_go(self, seq: int) -> None:
        return  # they count all the same

    def trim(self, rows: Rows, upto: int) -> None:
        return  # `taken` has done it


def window_of(config: RuleConfig) -> Window | None:
    """The window that a rule asks for, None if it runs for each message."""
    if config.gap_seconds is not None:
        return Session(config)
    if config.count is not None:
        return Count(config)
    if config.every_seconds is not None:
        return Periodic(config)
    return Sliding(config) if config.keep_seconds is not None else None


def shape_of(config: RuleConfig) -> str:
    """What tells a window from another one; a rule whose shape changed begins anew."""
    said = {
        "every": config.every_seconds,
        "keep": config.keep_seconds,
        "gap": config.gap_seconds,
        "count": config.count,
        "time": config.time,
    }
    return " ".join(f"{name}={value}" for name, value in said.items() if value is not None)


def check_window(config: RuleConfig, fields: Mapping[str, str], optional: Collection[str]) -> None:
    """Raise ConfigError for a window that makes no sense; `fields`: of the schema, with their types."""

    def wrong(key: str, problem: str, accepted: str) -> ConfigError:
        return ConfigError(problem, line=config.line, key=f"rules.{config.name}.{key}", accepted=accepted)

    for key, value in (
        ("every", config.every_seconds),
        ("keep", config.keep_seconds),
        ("gap", config.gap_seconds),
        ("count", config.count),
    ):
        if value is not None and value <= 0:
            raise wrong(key, "a window needs a length", "more than 0")
        if key != "count" and value is not None and value > LONGEST_SECONDS:
            raise wrong(key, "nothing is held for so long", "at most 3650d")
    if config.lateness_seconds > LONGEST_SECONDS:
        raise wrong("lateness", "nothing is held for so long", "at most 3650d")
    said = [
        key
        for key, value in (("every", config.every_seconds), ("gap", config.gap_seconds), ("count", config.count))
        if value is not None
    ]
    if len(said) > 1:
        raise wrong(said[1], f"{said[0]} is another kind of window", "one of every, gap and count")
    if config.count is not None and config.keep_seconds is not None:
        raise wrong("keep", "a window of count messages has no length", "count alone")
    if config.every_seconds is not None and (config.keep_seconds or 0) > MOST_OVERLAPS * config.every_seconds:
        raise wrong("keep", f"each message would be in more than {MOST_OVERLAPS} windows", "a smaller keep")
    if config.time is None:
        if config.lateness_seconds:
            raise wrong("lateness", "messages are late only by a field", "the key time")
        return
    if not said and config.keep_seconds is None:
        raise wrong("time", "a rule without a window has no use for it", "every, keep or gap")
    if config.count is not None:
        raise wrong("time", "a window of count messages goes by their order", "every, keep or gap")
    times = ", ".join(name for name, kind in fields.items() if kind != "text" and name not in optional)
    if fields.get(config.time) not in ("integer", "real"):
        raise wrong("time", f"{config.time!r} is no field with a number", times or "none of this schema")
    if config.time in optional:
        raise wrong("time", f"{config.time!r} is optional", times or "none of this schema")
