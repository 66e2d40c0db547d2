"""Publishers and subscribers with durable Sessions, who lose their connections and take up again where they were."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import traceback
import zlib
from itertools import starmap
from typing import Any, Final, Protocol, cast

from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V5,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
)
from lockgate.mqtt.properties import Properties
from tests.support.oracle import Note, Oracle, Span

RETRY_SECONDS: Final = 0.02
ANSWER_SECONDS: Final = 3.0
EXPIRY_SECONDS: Final = 86_400
SUBSCRIBING_ID: Final = 60_000  # identifiers of SUBSCRIBE and UNSUBSCRIBE, apart from those of messages


class Situation(Protocol):
    """What all clients share."""

    oracle: Oracle
    port: int
    settling: bool  # be there, answer at once
    allowance: int  # messages that may still be sent
    changed: asyncio.Event  # set while settling

    def noticed(self) -> None:
        """A client with a Session got a packet."""

    def counted(self) -> None:
        """A message was acknowledged."""


def payload_of(publisher: str, topic: str, seq: int) -> bytes:
    """The payload of a message: who and which, and some bytes that belong to nobody else."""
    head = f"{publisher} {seq} "
    check = zlib.crc32(f"{head}{topic}".encode())
    return f"{head}{check:08x}".encode() + b"." * (check % 200)


def read_payload(topic: str, payload: bytes) -> tuple[str, int]:
    """Who sent it, and its sequence; raises ValueError when not every byte is as it was."""
    publisher, seq, _rest = payload.split(b" ", 2)
    if payload != payload_of(publisher.decode(), topic, int(seq)):
        raise ValueError(f"a payload of {topic} was changed: {payload!r}")
    return publisher.decode(), int(seq)


class Line(asyncio.Protocol):
    """A connection: packets out, packets in, and the end of it."""

    def __init__(self, client: Client) -> None:
        self.open = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client = client
        self._decoder = Decoder(client.version)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        if not self.open:  # dropped by us: what came later was never read
            return
        try:
            self._decoder.feed(data)
            while self.open and (packet := self._decoder.next_packet()) is not None:
                self._client.take(packet)
        except Exception:
            self._client.oracle.nonsense(self._client.name, traceback.format_exc())
            self.abort()

    def send(self, *packets: Packet) -> None:
        """Write packets; into nothing when the connection is over."""
        if self._transport is not None and self.open and packets:
            self._transport.write(b"".join(encode(packet, self._client.version) for packet in packets))

    def close(self) -> None:
        """End the connection after what was written."""
        self.open = False
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Break the connection off."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()


class Client:
    """A client that connects again and again. Pickled, it is what a client with its own disk would be after a cut."""

    def __init__(self, situation: Situation, name: str, version: int, seed: int) -> None:
        self.situation = situation
        self.name = name
        self.version = version
        self.chance = random.Random(seed)
        self.is_up = False  # CONNACK came
        self.has_session = False  # something was acknowledged that makes a Session
        self.clean_start = False
        self.receive_maximum = 20
        self.line: Line | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"line": None, "is_up": False}

    @property
    def oracle(self) -> Oracle:
        return self.situation.oracle

    async def run(self) -> None:
        """Stay connected, as far as this client does, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                transport, line = await loop.create_connection(lambda: Line(self), "127.0.0.1", self.situation.port)
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self.line = line
            try:
                self._say_connect(line)
                await self._converse(line)
            finally:
                transport.abort()
            refused = not self.is_up
            self.is_up = False
            self.line = None
            self.oracle.lived(time.monotonic(), self.name, "refused" if refused else "lost")
            await (asyncio.sleep(5 * RETRY_SECONDS) if refused else self._rest())

    def _say_connect(self, line: Line) -> None:
        expiry = Properties(session_expiry_interval=EXPIRY_SECONDS) if self.version == V5 else None
        if self.clean_start:
            expiry = None
        line.send(Connect(self.name, self.version, self.clean_start, 0, properties=expiry))

    async def _converse(self, line: Line) -> None:
        """Return when the connection has ended."""
        await line.lost

    async def _rest(self) -> None:
        """Stay away as long as this client does."""

    def take(self, packet: Packet) -> None:
        """Handle what came."""
        if not self.clean_start:
            self.situation.noticed()
        if isinstance(packet, ConnAck):
            if packet.reason_code:
                self.oracle.lived(time.monotonic(), self.name, f"CONNACK refuses with 0x{packet.reason_code:02X}")
                return
            self.is_up = True
            if packet.properties is not None and packet.properties.receive_maximum is not None:
                self.receive_maximum = packet.properties.receive_maximum
            self.oracle.lived(time.monotonic(), self.name, f"connected, session present: {packet.session_present}")
            self.resume(packet.session_present)
        elif isinstance(packet, Disconnect):
            self.oracle.lived(time.monotonic(), self.name, f"DISCONNECT 0x{packet.reason_code:02X}")
        elif not isinstance(packet, PingResp):
            self.handle(packet)

    def send(self, *packets: Packet) -> None:
        """Write packets; into nothing when there is no connection."""
        if self.line is not None:
            self.line.send(*packets)

    def drop(self, gracefully: bool = False) -> None:
        """Leave the connection; what has come and was not read is not read any more."""
        if self.line is None:
            return
        self.oracle.lived(time.monotonic(), self.name, "DISCONNECT" if gracefully else "breaks off")
        if gracefully:
            self.line.send(Disconnect())
            self.line.close()
        else:
            self.line.abort()

    def resume(self, session_present: bool) -> None:
        """Take up what the last connection left."""
        raise NotImplementedError

    def handle(self, packet: Packet) -> None:
        """Handle what is neither CONNACK nor DISCONNECT."""
        raise NotImplementedError

    @property
    def is_settled(self) -> bool:
        """Whether it is connected and waits for nothing."""
        raise NotImplementedError

    def complain(self) -> None:
        """Tell the oracle what it waits for."""
        if not self.is_up:
            self.oracle.unanswered(self.name, "CONNECT")


class Outgoing:
    """A message of a publisher under way."""

    __slots__ = ("note", "packet_id", "released")

    def __init__(self, note: Note, packet_id: int) -> None:
        self.note = note
        self.packet_id = packet_id
        self.released = False  # PUBREC came

    def publish(self, dup: bool) -> Publish:
        note = self.note
        payload = b"" if note.clears else payload_of(note.publisher, note.topic, note.seq)
        retain = note.topic.startswith("retained/")
        return Publish(note.topic, payload, note.qos, retain, dup, self.packet_id)


class Publisher(Client):
    """Sends as long as there is an allowance, always under the identifier that became free last."""

    def __init__(
        self, situation: Situation, name: str, version: int, seed: int, topics: list[tuple[str, int]], window: int
    ) -> None:
        super().__init__(situation, name, version, seed)
        self._topics = topics  # with QoS
        self._window = window
        self._sequences = dict.fromkeys((topic for topic, _qos in topics), 0)
        self._free = list(range(window, 0, -1))
        self._outgoing: dict[int, Outgoing] = {}  # in order of sending
        self._awaited: dict[str, list[int]] = {}  # identifiers on this connection, by the answer they wait for
        self._paused = False

    def resume(self, session_present: bool) -> None:
        now = time.monotonic()
        self._awaited = {"PUBACK": [], "PUBREC": [], "PUBCOMP": []}
        if not session_present and self.has_session:
            self.oracle.session_lost(now, self.name, f"{len(self._outgoing)} messages under way")
            self.has_session = False
            for outgoing in self._outgoing.values():
                outgoing.released = False
        for packet_id, outgoing in self._outgoing.items():
            note = outgoing.note
            if outgoing.released:
                self._awaited["PUBCOMP"].append(packet_id)
                self.oracle.sent(now, note, packet_id, "PUBREL again")
                self.send(PubRel(packet_id))
            else:
                self._awaited["PUBACK" if note.qos == 1 else "PUBREC"].append(packet_id)
                self.oracle.sent(now, note, packet_id, "PUBLISH again")
                self.send(outgoing.publish(dup=session_present))
        self._paused = False
        self.fill()

    def fill(self) -> None:
        """Send as many messages as window and allowance let."""
        packets: list[Packet] = []
        now = time.monotonic()
        while (
            self.is_up
            and not self._paused
            and self._free
            and self.situation.allowance > 0
            and len(self._outgoing) < self.receive_maximum
        ):
            self.situation.allowance -= 1
            topic, qos = self.chance.choice(self._topics)
            self._sequences[topic] += 1
            clears = topic.startswith("retained/") and self.chance.random() < 0.1
            refusable = self.version == V5
            note = Note(self.name, topic, self._sequences[topic], qos, clears, now, refusable=refusable)
            outgoing = Outgoing(note, self._free.pop())
            self._outgoing[outgoing.packet_id] = outgoing
            self._awaited["PUBACK" if qos == 1 else "PUBREC"].append(outgoing.packet_id)
            self.oracle.sent(now, note, outgoing.packet_id, "PUBLISH")
            packets.append(outgoing.publish(dup=False))
        self.send(*packets)
        if packets and not self.situation.settling and self.chance.random() < 0.002:
            self.drop()

    def handle(self, packet: Packet) -> None:
        if not isinstance(packet, PubAck | PubRec | PubComp):
            raise TypeError(f"{self.name} got {packet}")
        now = time.monotonic()
        packet_id = packet.packet_id
        outgoing = self._outgoing.get(packet_id)
        kind = {PubAck: "PUBACK", PubRec: "PUBREC", PubComp: "PUBCOMP"}[type(packet)]
        said = f"{kind} 0x{packet.reason_code:02X}" if packet.reason_code else kind
        if outgoing is None or packet_id not in self._awaited[kind]:
            self.oracle.acknowledged_out_of_order(self.name, packet_id, f"it was asked: {said}")
            return
        note = outgoing.note
        awaited = self._awaited[kind]
        if awaited[0] != packet_id:
            self.oracle.acknowledged_out_of_order(self.name, packet_id, f"[{awaited[0]}], {said}")
        awaited.remove(packet_id)
        # An unknown identifier in PUBCOMP (0x92): the PUBREL before had been done, its answer was lost.
        if packet.reason_code >= 0x80 and kind != "PUBCOMP":
            self.oracle.refused(now, note, packet_id, said)
            self.situation.allowance += not self.situation.settling
            self._done(packet_id)
            self._pause()
        elif kind == "PUBREC":
            self.has_session = outgoing.released = True
            self.oracle.answered(now, note, packet_id, said)
            self.oracle.sent(now, note, packet_id, "PUBREL")
            self._awaited["PUBCOMP"].append(packet_id)
            self.send(PubRel(packet_id))
        else:
            self.has_session |= note.qos == 2
            self.oracle.acknowledged(now, note, packet_id, said)
            self._done(packet_id)
            self.situation.counted()
        self.fill()

    def _done(self, packet_id: int) -> None:
        del self._outgoing[packet_id]
        self._free.append(packet_id)

    def _pause(self) -> None:
        """Refused: try again a little later."""
        if not self._paused:
            self._paused = True
            asyncio.get_running_loop().call_later(5 * RETRY_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._paused = False
        self.fill()

    @property
    def is_settled(self) -> bool:
        return self.is_up and not self._outgoing

    def complain(self) -> None:
        super().complain()
        for outgoing in self._outgoing.values():
            what = "PUBREL" if outgoing.released else "PUBLISH"
            self.oracle.unanswered(self.name, f"{what} of {outgoing.note}", outgoing.note)


class Subscriber(Client):
    """Hears what it subscribed to, sometimes away, with an own manner of acknowledging in each connection.

    `changing` are filters it subscribes to and unsubscribes from all the time.
    """

    def __init__(
        self,
        situation: Situation,
        name: str,
        version: int,
        seed: int,
        filters: list[tuple[str, int]],
        changing: list[tuple[str, int]],
    ) -> None:
        super().__init__(situation, name, version, seed)
        self._wanted = dict(filters)
        self._changing = changing
        self._spans: dict[str, Span] = {}  # those asked for and not gone
        self._asking: tuple[int, str] | None = None  # SUBSCRIBE or UNSUBSCRIBE under way
        self._next_id = SUBSCRIBING_ID
        self._received: dict[int, tuple[str, str, int]] = {}  # QoS 2, until PUBREL: publisher, topic, sequence
        self._held: list[Packet] = []  # acknowledgements not sent yet, in order
        self._hold_until = 1  # so many are sent at once
        self._messages_left = 0  # until this connection ends
        self._timer: asyncio.TimerHandle | None = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_timer": None, "_held": [], "_asking": None}

    def resume(self, session_present: bool) -> None:
        now = time.monotonic()
        if not session_present:
            if self.has_session:
                self.oracle.session_lost(now, self.name, f"subscriptions to {sorted(self._spans)}")
                self._spans.clear()
            self.has_session = False
            self._received.clear()
        self._held.clear()
        self._asking = None
        # prompt, in bunches, or hardly ever: then most is unacknowledged when the connection ends
        self._hold_until = self.chance.choice((1, 1, 5, 15, 1000))
        self._messages_left = self.chance.choice((20, 100, 400, 2000))
        self._ask()

    def _ask(self) -> None:
        """Go on with SUBSCRIBE and UNSUBSCRIBE, one at a time."""
        if self._asking is not None or not self.is_up:
            return
        for topic_filter, span in self._spans.items():
            if span.granted is None:
                self._subscribe(span, self._qos(topic_filter))
                return
            if span.leaving is not None:
                self._unsubscribe(span)
                return
        for topic_filter, qos in self._wanted.items():
            if topic_filter not in self._spans:
                self._begin(topic_filter, qos)
                return
        if self._changing and not self.situation.settling:
            topic_filter, qos = self.chance.choice(self._changing)
            present = self._spans.get(topic_filter)
            if present is None:
                self._begin(topic_filter, qos)
            else:
                present.leaving = time.monotonic()
                self._unsubscribe(present)

    def _qos(self, topic_filter: str) -> int:
        return (self._wanted | dict(self._changing))[topic_filter]

    def _begin(self, topic_filter: str, qos: int) -> None:
        span = Span(topic_filter, time.monotonic())
        self._spans[topic_filter] = span
        self.oracle.span(self.name, span)
        self._subscribe(span, qos)

    def _subscribe(self, span: Span, qos: int) -> None:
        self._asking = (self._new_id(), span.topic_filter)
        self.oracle.lived(time.monotonic(), self.name, f"SUBSCRIBE {span.topic_filter} [{self._asking[0]}]")
        self.send(Subscribe(self._asking[0], [SubscriptionRequest(span.topic_filter, qos)]))

    def _unsubscribe(self, span: Span) -> None:
        self._asking = (self._new_id(), span.topic_filter)
        self.oracle.lived(time.monotonic(), self.name, f"UNSUBSCRIBE {span.topic_filter} [{self._asking[0]}]")
        self.send(Unsubscribe(self._asking[0], [span.topic_filter]))

    def _new_id(self) -> int:
        self._next_id = SUBSCRIBING_ID + (self._next_id + 1 - SUBSCRIBING_ID) % 1000
        return self._next_id

    def handle(self, packet: Packet) -> None:
        if isinstance(packet, Publish):
            self._take_message(packet)
        elif isinstance(packet, PubRel):
            key = self._received.pop(packet.packet_id, None)
            if key is not None:
                self._saw(key, "PUBREL", packet.packet_id)
            self._acknowledge(PubComp(packet.packet_id))
        elif isinstance(packet, SubAck | UnsubAck):
            self._answered(packet)
        else:
            raise TypeError(f"{self.name} got {packet}")

    def _answered(self, packet: SubAck | UnsubAck) -> None:
        now = time.monotonic()
        if self._asking is None or self._asking[0] != packet.packet_id:
            raise ValueError(f"{self.name} got {packet}, asked was {self._asking}")
        topic_filter = self._asking[1]
        self._asking = None
        span = self._spans[topic_filter]
        self.oracle.lived(now, self.name, f"{packet}")
        if isinstance(packet, SubAck):
            if packet.reason_codes[0] >= 0x80:  # a full disk: ask again
                asyncio.get_running_loop().call_later(5 * RETRY_SECONDS, self._ask)
                return
            self.has_session = True
            span.granted = now
            pause = 0.0 if len(self._spans) < len(self._wanted) else self.chance.uniform(0.01, 0.3)
        else:
            if any(code >= 0x80 for code in packet.reason_codes):
                asyncio.get_running_loop().call_later(5 * RETRY_SECONDS, self._ask)
                return
            span.gone = now
            del self._spans[topic_filter]
            pause = self.chance.uniform(0.01, 0.1)
        asyncio.get_running_loop().call_later(pause, self._ask)

    def _take_message(self, packet: Publish) -> None:
        now = time.monotonic()
        publisher, seq = read_payload(packet.topic, packet.payload)
        key = (publisher, packet.topic, seq)
        held = self._received.get(packet.packet_id) if packet.qos else None
        if packet.qos == 2 and held == key:
            self._saw(key, "got it again under its identifier", packet.packet_id)
        else:
            if held is not None:
                came = f"{publisher} {packet.topic} #{seq} at QoS {packet.qos}, DUP {packet.dup}"
                self.oracle.identifier_in_use(self.name, packet.packet_id, "{} {} #{}".format(*held), came)
            self.oracle.delivered(
                now, self.name, publisher, packet.topic, seq, packet.qos, packet.packet_id, packet.dup
            )
        if packet.qos == 2:
            self._received[packet.packet_id] = key
            self._acknowledge(PubRec(packet.packet_id))
        elif packet.qos == 1:
            self._acknowledge(PubAck(packet.packet_id))
        self._messages_left -= 1
        if self._messages_left < 0 and not self.situation.settling:
            self.drop(gracefully=self.chance.random() < 0.4)

    def _acknowledge(self, packet: Packet) -> None:
        self._held.append(packet)
        if self.situation.settling or len(self._held) >= self._hold_until:
            self._flush()
        elif self._timer is None:
            # Long enough that the broker's window stands still for a while, and the connection ends like that.
            self._timer = asyncio.get_running_loop().call_later(self.chance.uniform(0.02, 0.4), self._late)

    def _late(self) -> None:
        self._timer = None
        if self._hold_until < 1000:
            self._flush()
        elif not self.situation.settling:
            self.drop()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for packet in self._held:
            if isinstance(packet, PubRec) and packet.packet_id in self._received:
                self._saw(self._received[packet.packet_id], "PUBREC", packet.packet_id)
        self.send(*self._held)
        self._held.clear()

    def settle(self) -> None:
        """Answer everything that was held back."""
        if self.is_up:
            self._flush()
            self._ask()

    def _saw(self, key: tuple[str, str, int], what: str, packet_id: int) -> None:
        self.oracle.saw(time.monotonic(), self.name, *key, what, packet_id)

    async def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        away = self.chance.choice((0.0, 0.0, 0.1, 0.5))
        with contextlib.suppress(TimeoutError):
            if away:
                await asyncio.wait_for(self.situation.changed.wait(), away)

    @property
    def is_settled(self) -> bool:
        return (
            self.is_up
            and not self._received
            and not self._held
            and self._asking is None
            and all(span.granted is not None and span.leaving is None for span in self._spans.values())
            and all(topic_filter in self._spans for topic_filter in self._wanted)
        )

    def complain(self) -> None:
        super().complain()
        for packet_id, key in self._received.items():
            self.oracle.unreleased(self.name, packet_id, "{} {} #{}".format(*key))
        if self._asking is not None:
            self.oracle.unanswered(self.name, f"SUBSCRIBE or UNSUBSCRIBE of {self._asking[1]}")


class Reader(Client):
    """Comes without a Session, looks at all retained messages and goes."""

    def __init__(self, situation: Situation, name: str, version: int, seed: int) -> None:
        super().__init__(situation, name, version, seed)
        self.clean_start = True
        self.looks = 0  # that came to their end
        self._floors: dict[str, int] = {}  # by topic, what is awaited

    def resume(self, session_present: bool) -> None:
        if session_present:
            self.oracle.session_lost(time.monotonic(), self.name, "no session, and was told it has one")
        self._floors = self.oracle.retained_floors()
        self.send(Subscribe(SUBSCRIBING_ID, [SubscriptionRequest("retained/#", self.chance.randrange(3))]))

    def handle(self, packet: Packet) -> None:
        if isinstance(packet, Publish):
            if packet.qos == 1:
                self.send(PubAck(packet.packet_id))
            elif packet.qos == 2:
                self.send(PubRec(packet.packet_id))
            if packet.retain and packet.topic in self._floors:
                _publisher, seq = read_payload(packet.topic, packet.payload)
                self.oracle.check_retained(self.name, packet.topic, self._floors.pop(packet.topic), seq)
        elif isinstance(packet, PubRel):
            self.send(PubComp(packet.packet_id))
        elif not isinstance(packet, SubAck):
            raise TypeError(f"{self.name} got {packet}")

    async def _converse(self, line: Line) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while line.open and (not self.is_up or not all(starmap(self.oracle.may_be_absent, self._floors.items()))):
            if time.monotonic() > deadline:
                for topic, floor in self._floors.items():
                    self.oracle.check_retained(self.name, topic, floor, None)
                self.looks += 1
                return
            await asyncio.wait([line.lost], timeout=RETRY_SECONDS)
        if line.open:
            self.looks += 1
            line.send(PingReq())
            await asyncio.wait([line.lost], timeout=self.chance.uniform(0.01, 0.1))

    @property
    def is_settled(self) -> bool:
        return True
