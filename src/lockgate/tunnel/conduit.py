"""Ride-through by bytes: a byte stream that outlives the tunnel connection that carries it.

The edge keeps the device's socket, the connector the origin's. Between them, on a stream of the tunnel, run records: a
head of four bytes, then

    0 | length    that many bytes follow; none: the sender says nothing more
    1 | count     so many bytes more were handed on

The end counts as a byte, so that it is confirmed, and said again, as they are. Each end keeps what the other has not
confirmed. When the tunnel connection dies the edge opens a stream on another connection of the same connector, both say
how many bytes they have, and each says again what the other lacks. Who has too much unconfirmed is paused; after
`GAP_SECONDS` without a stream the conduit is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, cast

from lockgate.tunnel.h2_session import Stream, StreamClosed, StreamProtocol

log = logging.getLogger(__name__)

FEATURE: Final = "lockgate_ride_through_1"  # said by a connector when it registers
PLACE: Final = "lockgate_place_"  # begins what says where a connector runs: one process at a time is there
CONDUIT: Final = b"lockgate-conduit"  # of a request: the id, 32 hex digits
RECEIVED: Final = b"lockgate-received"  # of a request and its response: bytes that end has; of a new conduit 0

GAP_SECONDS: Final = 30.0
_MOST_UNCONFIRMED: Final = 128 * 1024  # bytes
_CONFIRM_EACH: Final = 4 * 1024  # bytes
_MAX_RECORD: Final = 1 << 20
_LINGER_SECONDS: Final = 30.0  # for the other end to end as well, once nobody listens here
_ACK: Final = 1 << 31


class ConduitError(ConnectionError):
    """The other end broke the rules, or knows nothing of the conduit."""


class Conduit(asyncio.Transport):
    """One end, a transport to whoever sits on it."""

    def __init__(
        self,
        identifier: str,
        protocol: asyncio.Protocol,
        *,
        gap: Callable[[Conduit], None],
        gone: Callable[[Conduit], None],
    ) -> None:
        """`gap`: it has no stream and wants another one; `gone`: it has ended."""
        super().__init__()
        self.id = identifier
        self.received = 0  # bytes of the other end
        self._protocol = protocol
        self._on_gap = gap
        self._on_gone = gone
        self._carrier: _Carrier | None = None
        self._unconfirmed: list[bytes] = []  # b"" is the end
        self._unconfirmed_bytes = 0
        self._confirmed = 0  # bytes the other end has
        self._inbox: list[bytes] = []  # received, for a protocol that does not read; b"" is the end
        self._inbox_bytes = 0
        self._handed_on = 0  # of `received`, what the protocol has
        self._confirmed_there = 0  # of `received`, what the other end was told
        self._ends = False
        self._peer_ended = False
        self._closed = False
        self._reading_paused = False
        self._writing_paused = False
        self._carrier_paused = False
        self._timer: asyncio.TimerHandle | None = None

    # --- what asyncio asks of a transport ------------------------------------------------------------------------

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._carrier is None else self._carrier.stream.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._closed or self._ends

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed or self._ends or not data:
            return
        self._put(bytes(data))
        self._look_at_room()

    def write_eof(self) -> None:
        if not self._closed and not self._ends:
            self._ends = True
            self._put(b"")

    def close(self) -> None:
        """Say that nothing more comes, and hear nothing more."""
        self.write_eof()
        if not self._peer_ended and not isinstance(self._protocol, _Deaf):
            self._protocol = _Deaf(self._protocol)
            self.resume_reading()
            self._linger(-1)

    def abort(self) -> None:
        """End it at both ends."""
        if not self._closed:
            self._lose(None)

    def pause_reading(self) -> None:
        self._reading_paused = True  # the stream is read on: confirmations are among what comes

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            asyncio.get_running_loop().call_soon(self._deliver)

    def get_write_buffer_size(self) -> int:
        return self._unconfirmed_bytes

    # --- its streams ---------------------------------------------------------------------------------------------

    @property
    def in_gap(self) -> bool:
        """Whether no stream carries it at the moment."""
        return self._carrier is None and not self._closed

    def carry_on(self, stream: Stream, peer_received: int) -> None:
        """Go on over this stream; ConduitError where what the other end lacks is no longer here."""
        lacking = self._confirmed + self._unconfirmed_bytes - peer_received
        if not self._confirmed <= peer_received or lacking < 0:
            raise ConduitError(f"the other end has {peer_received} bytes, which cannot be")
        if self._carrier is not None:  # its end has not come to be known here
            self._carrier.leave()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._take_confirmation(peer_received - self._confirmed)
        self._carrier = _Carrier(self, stream)
        self._carrier_paused = False
        self._confirmed_there = self.received
        for chunk in list(self._unconfirmed):
            self._say(chunk)
        stream.resume_reading()
        self._look_at_room()
        self._finish_if_done()

    def carrier_lost(self, carrier: _Carrier, cause: Exception | None) -> None:
        """The stream has ended: with its connection, or because the other end gave the conduit up."""
        if self._closed or carrier is not self._carrier:
            return
        self._carrier = None
        if isinstance(cause, StreamClosed) and not carrier.stream.session_is_lost:
            self.other_is_gone(str(cause))
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(GAP_SECONDS, self._give_up)
        self._on_gap(self)

    def carrier_ended(self, carrier: _Carrier) -> None:
        """The other end says nothing more on this stream: it is done, or it lies."""
        if carrier is self._carrier:
            self.other_is_gone("its stream ended before it did")

    def carrier_paused(self, paused: bool) -> None:
        self._carrier_paused = paused
        self._confirm()
        self._look_at_room()

    def take(self, data: bytes) -> None:
        """Bytes of the other end."""
        if self._peer_ended:
            self.fail("bytes behind the end")
            return
        self.received += len(data)
        self._arrive(data)

    def take_confirmation(self, count: int) -> None:
        if count > self._unconfirmed_bytes:
            raise ConduitError(f"{count} bytes are confirmed, {self._unconfirmed_bytes} were on the way")
        self._take_confirmation(count)
        self._look_at_room()
        self._finish_if_done()

    def take_end(self) -> None:
        """The other end says nothing more."""
        if self._peer_ended:
            self.fail("a second end")
            return
        self.received += 1
        self._peer_ended = True
        self._arrive(b"")

    def other_is_gone(self, problem: str) -> None:
        """The other end knows nothing of it any more: where both have said their end it has just been quicker."""
        if self._ends and self._peer_ended:
            self._unconfirmed.clear()
            self._unconfirmed_bytes = 0
            self._finish_if_done()
        else:
            self._lose(ConduitError(problem))

    def fail(self, problem: str) -> None:
        """The other end broke the rules."""
        if not self._closed:
            log.warning("A conduit ends: %s", problem)
            self._lose(ConduitError(problem))

    # --- within --------------------------------------------------------------------------------------------------

    def _put(self, chunk: bytes) -> None:
        self._unconfirmed.append(chunk)
        self._unconfirmed_bytes += len(chunk) or 1
        self._say(chunk)

    def _arrive(self, chunk: bytes) -> None:
        self._inbox.append(chunk)
        self._inbox_bytes += len(chunk)
        self._deliver()
        if self._inbox_bytes > 2 * _MOST_UNCONFIRMED and self._carrier is not None:  # more than is on the way by rule
            self._carrier.stream.pause_reading()

    def _deliver(self) -> None:
        """Hand on what was received, as far as the protocol reads."""
        while self._inbox and not self._reading_paused and not self._closed:
            chunk = self._inbox.pop(0)
            self._inbox_bytes -= len(chunk)
            self._handed_on += len(chunk) or 1
            if chunk:
                self._protocol.data_received(chunk)
            elif not self._protocol.eof_received():
                self.write_eof()
        if self._closed:
            return
        if self._handed_on - self._confirmed_there >= (1 if self._peer_ended else _CONFIRM_EACH):
            self._confirm()
        if self._inbox_bytes <= _MOST_UNCONFIRMED and self._carrier is not None:
            self._carrier.stream.resume_reading()
        self._finish_if_done()

    def _confirm(self) -> None:
        """Say what was handed on. Not to who does not read: that would pile up."""
        count = self._handed_on - self._confirmed_there
        if self._carrier is not None and not self._carrier_paused and count > 0:
            self._confirmed_there = self._handed_on
            self._carrier.stream.write((_ACK | count).to_bytes(4, "big"))

    def _say(self, chunk: bytes) -> None:
        if self._carrier is not None:
            self._carrier.stream.write(len(chunk).to_bytes(4, "big") + chunk)

    def _take_confirmation(self, count: int) -> None:
        self._confirmed += count
        self._unconfirmed_bytes -= count
        whole = 0  # chunks that have arrived
        while count and count >= (size := len(self._unconfirmed[whole]) or 1):
            count -= size
            whole += 1
        del self._unconfirmed[:whole]
        if count:
            self._unconfirmed[0] = self._unconfirmed[0][count:]

    def _look_at_room(self) -> None:
        full = self._unconfirmed_bytes >= _MOST_UNCONFIRMED or self._carrier_paused
        if full and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()
        elif self._writing_paused and not full and self._unconfirmed_bytes <= _MOST_UNCONFIRMED // 2:
            self._writing_paused = False
            self._protocol.resume_writing()

    def _finish_if_done(self) -> None:
        if self._ends and self._peer_ended and not (self._unconfirmed or self._inbox or self._closed):
            self._carrier_paused = False
            self._confirm()
            carrier, self._carrier = self._carrier, None
            if carrier is not None:
                carrier.stream.write_eof()
            self._end(None)

    def _give_up(self) -> None:
        self._timer = None
        self.other_is_gone(f"no tunnel connection for {GAP_SECONDS:.0f} s")

    def _linger(self, confirmed: int) -> None:
        """End it where nobody listens any more and nothing moves."""
        if self._closed:
            return
        if confirmed == self._confirmed:
            self.abort()
        else:
            asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._linger, self._confirmed)

    def _lose(self, cause: Exception | None) -> None:
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.stream.abort()
        self._end(cause)

    def _end(self, cause: Exception | None) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._unconfirmed.clear()
        self._unconfirmed_bytes = 0
        self._inbox.clear()
        self._on_gone(self)
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, cause)


class _Carrier(StreamProtocol):
    """Reads the records of one stream for its conduit."""

    def __init__(self, conduit: Conduit, stream: Stream) -> None:
        self.stream = stream
        self._conduit: Conduit | None = conduit
        self._head = b""
        self._left = 0  # bytes of a record still to come
        stream.set_protocol(self)

    def leave(self) -> None:
        """The conduit goes on elsewhere."""
        self._conduit = None
        self.stream.abort()

    def data_received(self, data: bytes) -> None:
        at = 0
        conduit = self._conduit
        while conduit is not None and at < len(data):
            if self._left:
                chunk = data[at : at + self._left]
                at += len(chunk)
                self._left -= len(chunk)
                conduit.take(chunk)
            else:
                part = data[at : at + 4 - len(self._head)]
                at += len(part)
                self._head += part
                if len(self._head) == 4:
                    head, self._head = int.from_bytes(self._head, "big"), b""
                    self._record(conduit, head)
            conduit = self._conduit

    def _record(self, conduit: Conduit, head: int) -> None:
        if head & _ACK:
            try:
                conduit.take_confirmation(head & ~_ACK)
            except ConduitError as error:
                conduit.fail(str(error))
        elif head > _MAX_RECORD:
            conduit.fail(f"a record of {head} bytes")
        elif head:
            self._left = head
        else:
            conduit.take_end()

    def eof_received(self) -> bool:
        if self._conduit is not None:
            self._conduit.carrier_ended(self)
        return True

    def pause_writing(self) -> None:
        if self._conduit is not None:
            self._conduit.carrier_paused(True)

    def resume_writing(self) -> None:
        if self._conduit is not None:
            self._conduit.carrier_paused(False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._conduit is not None:
            self._conduit.carrier_lost(self, exc)


class _Deaf(asyncio.Protocol):
    """Hears nothing, and tells the one before it of the end."""

    def __init__(self, before: asyncio.Protocol) -> None:
        self._before = before

    def eof_received(self) -> bool:
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)
