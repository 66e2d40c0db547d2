"""The turn that all connections of a broker share: read, route, let the store answer, write once for each touched one.

Compiled where there is a compiler, as `net.stream` is: every message passes through here.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol, final

from lockgate.broker.broker import Broker
from lockgate.broker.connection import Connection
from lockgate.broker.ports import RESTS

if TYPE_CHECKING:
    from lockgate.net.stream import Stream

# While the machine sleeps this clock goes on, and no one can set it.
_BOOTTIME: Final = time.CLOCK_BOOTTIME
_clock_gettime: Final = time.clock_gettime  # a name of a compiled module is at hand, one of `time` is looked up
# Two reads this close to each other belong to one turn of a busy loop.
_BUSY_SECONDS: Final = 50e-6
# So many at most are written for together: what the first of them brought does not wait for a thousand others.
_MOST_READS: Final = 64
# libuv reads one socket up to 32 times in a turn.
_MOST_BYTES: Final = 524_288
# How long connections with more output may make it before others come in: many of them search at length
_CONTINUE_SECONDS = 0.005


class Settled(Protocol):
    """A store as a turn needs it."""

    def settle(self) -> int:
        """End a turn: give the answers that are ready, begin to write what has to be written.

        Gives the bytes of messages that are not written yet, or RESTS.
        """


class Served(Protocol):
    """The other end of a Connection: a socket, or a part of this program."""

    connection: Connection

    def write(self) -> None:
        """Take what the connection has to say, and notice when it closes."""


def clock() -> float:
    """Give seconds since the machine was started."""
    return _clock_gettime(_BOOTTIME)


@final
class Turns:
    """Decides when what reads led to is written, and wakes the broker for its deadlines."""

    __slots__ = (
        "_broker",
        "_busy",
        "_continuing",
        "_deadlines",
        "_held_by_store",
        "_last_read_at",
        "_read_bytes",
        "_reading",
        "_reads",
        "_store",
        "_timer",
        "_timer_at",
        "served",
    )

    def __init__(self, broker: Broker, store: Settled) -> None:
        self._broker = broker
        self._store = store
        self._deadlines = broker.deadlines
        self.served: dict[int, Served] = {}  # by the numbers of their connections
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._continuing: list[Connection] = []  # that have more output to make
        self._reading: Stream | None = None  # the last
        self._read_bytes = 0
        self._busy = False
        self._reads = 0  # in this turn, counted while busy
        self._last_read_at = 0.0  # seconds, by the clock
        self._held_by_store = 0  # bytes, as they are counted in the memory budget

    def takes_too_much(self, stream: Stream, size: int) -> bool:
        """Count what is read of one stream without another in between; say whether others should have their turn."""
        if stream is not self._reading:
            self._reading = stream
            self._read_bytes = size
            return False
        self._read_bytes += size
        if self._read_bytes < _MOST_BYTES:
            return False
        self._read_bytes = 0
        return True

    def end_read(self, now: float) -> None:
        """Write what a read led to: at once, or together with the other reads of a busy turn.

        A quiet loop wakes up for one read, and waiting for others would only cost a hop. When reads follow each other
        closely, one write for all of them at the end of the turn saves most system calls towards a common receiver.
        """
        is_close = now - self._last_read_at < _BUSY_SECONDS
        self._last_read_at = now
        if not self._reads and not (self._busy and is_close):
            self._busy = is_close
            self.flush()
            return
        self._reads += 1
        if self._reads == 1:
            asyncio.get_running_loop().call_soon(self._end_turn)
        elif self._reads % _MOST_READS == 0:
            self.flush()

    def _end_turn(self) -> None:
        self._busy = self._reads > 1
        self._reads = 0
        self.flush()
        self._last_read_at = clock()  # the next one is measured from when it could be read

    def flush(self) -> None:
        """End a turn: let the store answer, then write for every touched connection."""
        broker = self._broker
        if broker.store_is_awake:
            self._settle()
        if self._deadlines.moved:
            self.watch()
        served = self.served
        touched = broker.take_touched()
        while touched:
            for connection in touched:
                other_end = served.get(connection.number)
                if other_end is not None:
                    other_end.write()
            touched = broker.take_touched()

    def _settle(self) -> None:
        held = self._store.settle()
        if held == RESTS:
            self._broker.store_is_awake = False
            held = 0
        if held != self._held_by_store:
            self._broker.memory.used += held - self._held_by_store
            self._held_by_store = held

    def continue_later(self, connection: Connection) -> None:
        """Let a connection make its next piece of output in the next turn, so that others come in between."""
        if not self._continuing:
            asyncio.get_running_loop().call_soon(self._continue)
        self._continuing.append(connection)

    def _continue(self) -> None:
        continuing = self._continuing
        self._continuing = []
        now = clock()
        for place, connection in enumerate(continuing):
            if place and clock() - now > _CONTINUE_SECONDS:
                for later in continuing[place:]:
                    self.continue_later(later)
                break
            if connection.writable:
                connection.set_writable(True, now)
        self.flush()

    def watch(self) -> None:
        """Set the one timer to the broker's next deadline."""
        self._deadlines.moved = False
        at = self._broker.next_deadline()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay = at - clock()
        loop = asyncio.get_running_loop()
        # A timer that is due would run before the sockets are looked at, again and again.
        self._timer = loop.call_later(delay, self._expire) if delay > 0 else loop.call_soon(self._expire)

    def _expire(self) -> None:
        self._timer = None
        try:
            self._broker.expire(clock())
            self.flush()
        finally:  # whatever went wrong with one deadline, the next ones have to come
            self.watch()

    def stop_watching(self) -> None:
        """Wake the broker no more."""
        if self._timer is not None:
            self._timer.cancel()
