"""A Network Connection without the network: bytes and the time go in, bytes come out (MQTT 5 §4.2)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, cast, final

from lockgate.broker import authentication, handshake, inbound, outbound, subscribing
from lockgate.broker.deadlines import THROTTLE
from lockgate.broker.limits import CONNECT_PACKET_BYTES, ListenerLimits
from lockgate.broker.ports import Delivery, Message, printable
from lockgate.broker.rates import TokenBucket
from lockgate.mqtt import reason_codes
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import PINGRESP_FRAME, encode, encode_acknowledgement
from lockgate.mqtt.errors import MqttError, ProtocolError, UnsupportedVersion
from lockgate.mqtt.packets import (
    AUTH,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBSCRIBE,
    TYPE_NAMES,
    UNSUBSCRIBE,
    V5,
    Acknowledgement,
    Auth,
    Connect,
    Disconnect,
    Packet,
    Publish,
    Subscribe,
    Unsubscribe,
)
from lockgate.mqtt.properties import Properties

if TYPE_CHECKING:
    from lockgate.broker.backlog import Backlog
    from lockgate.broker.broker import Broker
    from lockgate.broker.session import Session

AWAITING_CONNECT: Final = 0
CONNECTED: Final = 1
AUTHENTICATING: Final = 2  # between CONNECT and CONNACK
CLOSING: Final = 3  # output may still leave, input is ignored

_BEHIND_CONNECT_BYTES: Final = 4096  # that are read before the client is let in
# What one connection may do in one turn, in deliveries at QoS 0, before others come in: a few milliseconds
_TURN_WORK: Final = 40_000
_REASON_CHARACTERS: Final = 200  # of a Reason String, whatever the client's own words in it
_CLOSING_CHARACTERS: Final = 500  # of the reason in the log; names of a peer's choice stand in it
_NOT_TOLD: Final = frozenset(
    {reason_codes.BAD_USER_NAME_OR_PASSWORD, reason_codes.NOT_AUTHORIZED, reason_codes.BAD_AUTHENTICATION_METHOD}
)


@final
class Gate:
    """Packets in order, each held until the change it speaks of is committed (DESIGN §3.1)."""

    __slots__ = ("held", "shut")

    def __init__(self) -> None:
        self.held: deque[tuple[int, bytes]] = deque()
        self.shut = 0  # standing Sessions that hold too much: nothing leaves, whatever is committed

    def release(self, committed: int) -> list[bytes]:
        """Take the packets from the front whose changes are all committed."""
        free: list[bytes] = []
        held = self.held
        while held and not self.shut and held[0][0] <= committed:
            free.append(held.popleft()[1])
        return free


@final
class Connection:
    """One client's connection: the shell calls `receive` and `set_writable` and takes the output."""

    __slots__ = (
        "_acknowledgements",
        "_deliveries",
        "_unfinished",
        "_unsent",
        "_waits",
        "accepted_at",
        "address",
        "aliases_in",
        "aliases_out",
        "authentication",
        "backlog",
        "bridge",
        "broker",
        "client_name",
        "closing_reason",
        "decoder",
        "has_retained",
        "held_bytes",
        "identity",
        "keep_alive_seconds",
        "last_packet_at",
        "late",
        "late_bytes",
        "limits",
        "login",
        "maximum_packet_size",
        "number",
        "output",
        "output_bytes",
        "own",
        "peer",
        "permitted",
        "publish_rate",
        "session",
        "state",
        "throttled",
        "throttled_until",
        "topic_alias_maximum",
        "touched",
        "unanswered",
        "version",
        "wants_reasons",
        "watched_at",
        "will",
        "will_delay",
        "window",
        "writable",
    )

    def __init__(self, broker: Broker, number: int, peer: str, limits: ListenerLimits, now: float) -> None:
        self.broker = broker
        self.number = number
        self.peer = peer  # address, as it is logged
        self.client_name = ""  # client id as it is logged, once it is let in
        self.limits = limits
        self.identity: str | None = None  # who the client is by its certificate; known before CONNECT
        self.own = False  # this program itself is the client: the local side of a bridge
        self.has_retained = False  # the other end of our own bridge has what was retained at QoS 1 and 2
        self.bridge = False  # the client is another broker's bridge and said so
        self.login: Connect | None = None  # the CONNECT whose user is being looked at
        self.permitted = False  # what that came to
        self.state = AWAITING_CONNECT
        self.version = 0
        self.session: Session | None = None
        self.decoder = Decoder(0, CONNECT_PACKET_BYTES, True, broker.packet_rules)
        self.accepted_at = now
        self.last_packet_at = now
        self.watched_at = float("inf")  # the time of this connection's entry among the deadlines
        self.keep_alive_seconds = 0  # 0: no limit; the deadline is one and a half times this
        self.authentication: authentication.Authentication | None = None
        self.will: Message | None = None
        self.will_delay = 0
        self.window = 0  # messages in flight to this client
        self.maximum_packet_size = 0  # that the client accepts; 0: any
        self.wants_reasons = True  # Request Problem Information
        self.topic_alias_maximum = 0  # aliases we may set up towards the client
        self.aliases_in: dict[int, str] | None = None
        self.aliases_out: dict[str, int] | None = None
        self.backlog: Backlog | None = None  # retained messages still to be sent
        self.held_bytes = 0  # beside all else: names behind aliases, a CONNECT that waits for AUTH
        self.output: list[bytes] = []
        self.output_bytes = 0
        self.touched = False
        self.writable = True
        self.closing_reason = ""
        self.address = ""  # where it is counted against the limits of an address
        self.late: deque[Delivery] | None = None  # QoS 0 messages kept while the peer does not read
        self.late_bytes = 0
        self.publish_rate: TokenBucket | None = None
        self.throttled = False  # it has to `wait` and is not read
        self.throttled_until = 0.0
        self.unanswered = False  # a PUBLISH was not taken, which its version has no word for
        self._unfinished = 0  # bytes of a packet that is still arriving
        self._unsent = 0  # bytes the peer does not take, as far as they are counted
        self._acknowledgements: Gate | None = None
        self._deliveries: Gate | None = None
        self._waits = False

    # --- input -------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Handle bytes that arrived; what has to be sent is then found through `Broker.take_touched`.

        Never raises: a peer's mistake closes this connection and touches nobody else.
        """
        if self.state == CLOSING:
            return
        self.last_packet_at = now
        broker = self.broker
        broker.statistics.bytes_received += len(data)
        decoder = self.decoder
        decoder.feed(data)
        broker.work = 0
        try:
            if self.login is not None and not self.throttled:
                self._end_login(self.login, now)
            while self.state != CLOSING:
                packet = decoder.next_packet() if not self.throttled else None
                if packet is None:
                    if decoder.pending != self._unfinished:
                        self._count_unfinished(decoder.pending)
                        if self.login is not None:  # no more may be wanted
                            self.touch()
                    return
                broker.statistics.received[packet.type] += 1
                if self.state == CONNECTED:
                    session = self.session
                    assert session is not None
                    if packet.type == PUBLISH:
                        inbound.handle_publish(broker, self, session, cast(Publish, packet), now)
                    else:
                        self._dispatch(broker, session, packet, now)
                    if broker.work > _TURN_WORK:
                        self.wait(now)
                elif self.state == AUTHENTICATING:
                    authentication.handle_packet(broker, self, packet, now)
                else:  # the decoder lets only CONNECT through
                    handshake.handle_connect(broker, self, cast(Connect, packet), now)
        except UnsupportedVersion as refused:  # a name of its own: compiled, a name keeps the type it had first
            if self.version == 0:
                handshake.refuse_version(self, refused)
            else:
                self.close_with(reason_codes.PROTOCOL_ERROR, "a second CONNECT")  # [MQTT-3.1.0-2]
        except MqttError as error:
            self.close_with(error.reason_code, error.detail)
        # The Session does not wait for the socket: nothing more is sent here [MQTT-3.14.4-1], others may get it.
        broker.detach(self, now, False)

    def _count_unfinished(self, size: int) -> None:
        memory = self.broker.memory
        memory.hold_unfinished(size - self._unfinished)
        grows = size > self._unfinished
        self._unfinished = size
        if grows and memory.budget and memory.unfinished > memory.unfinished_limit:
            raise MqttError("too much of the memory budget lies in unfinished packets", reason_codes.QUOTA_EXCEEDED)

    def hold(self, size: int) -> None:
        """Count bytes that are held as long as the connection lasts, or with a negative size no longer."""
        self.held_bytes += size
        self.broker.memory.used += size

    def spend_publish(self, now: float) -> None:
        """Count a PUBLISH against `Limits.publish_rate`; who is too fast is not read until the rate allows it."""
        if self.publish_rate is None:
            self.publish_rate = TokenBucket(self.broker.limits.publish_rate, now)
        wait = self.publish_rate.spend(now)
        if wait > 0.0:
            self.wait(now + wait)

    def wait(self, until: float) -> None:
        """Handle and read nothing more until a time; when that is now, until others had their turn."""
        if not self.throttled or until > self.throttled_until:
            self.throttled = True
            self.throttled_until = until
            self.broker.deadlines.add(until, THROTTLE, str(self.number))
            self.touch()

    def go_on(self, now: float) -> None:
        """End a `wait`."""
        self.throttled = False
        self.touch()
        self.receive(b"", now)

    def await_login(self, packet: Connect) -> None:
        """Handle nothing more until it is known whether the client is let in, and read little: `answer_login`."""
        self.login = packet
        self.state = AUTHENTICATING
        self.throttled = True
        self.throttled_until = float("inf")
        self.hold(CONNECT_PACKET_BYTES)  # the largest there may be

    def answer_login(self, permitted: bool, now: float) -> None:
        """Go on with the CONNECT that waited, and with what came behind it."""
        if self.login is not None:
            self.permitted = permitted
            self.go_on(now)

    @property
    def proves_users(self) -> bool:
        """Whether somebody has looked at who the client says it is: an authority, its certificate, an AUTH exchange."""
        return self.limits.authority is not None or self.identity is not None or self.authentication is not None

    def _end_login(self, packet: Connect, now: float) -> None:
        self.login = None
        self.hold(-CONNECT_PACKET_BYTES)
        handshake.finish_login(self.broker, self, packet, self.permitted, now)

    def _dispatch(self, broker: Broker, session: Session, packet: Packet, now: float) -> None:
        packet_type = packet.type
        if packet_type == PUBACK:
            outbound.handle_puback(broker, self, session, cast(Acknowledgement, packet), now)
        elif packet_type == PUBREC:
            outbound.handle_pubrec(broker, self, session, cast(Acknowledgement, packet), now)
        elif packet_type == PUBREL:
            inbound.handle_pubrel(broker, self, session, cast(Acknowledgement, packet), now)
        elif packet_type == PUBCOMP:
            outbound.handle_pubcomp(broker, self, session, cast(Acknowledgement, packet), now)
        elif packet_type == PINGREQ:
            self.send(PINGRESP_FRAME)
        elif packet_type == SUBSCRIBE:
            subscribing.handle_subscribe(broker, self, session, cast(Subscribe, packet), now)
        elif packet_type == UNSUBSCRIBE:
            subscribing.handle_unsubscribe(broker, self, session, cast(Unsubscribe, packet))
        elif packet_type == DISCONNECT:
            handshake.handle_disconnect(broker, self, session, cast(Disconnect, packet))
        elif packet_type == AUTH:
            authentication.handle_auth(broker, self, cast(Auth, packet), now)
        elif packet_type == CONNECT:
            raise ProtocolError("a second CONNECT")  # [MQTT-3.1.0-2]
        else:
            raise ProtocolError(f"a client must not send {TYPE_NAMES[packet_type]} here")

    # --- output ------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Append one packet to what leaves with the next write."""
        self.output.append(frame)
        self.output_bytes += len(frame)
        self.broker.statistics.sent[frame[0] >> 4] += 1
        self.touch()

    def fits(self, frame: bytes) -> bool:
        """Whether the client takes a packet of this size [MQTT-3.1.2-24]."""
        return not self.maximum_packet_size or len(frame) <= self.maximum_packet_size

    def touch(self) -> None:
        """Ask the shell to look at this connection even if it has no output: it may be closing."""
        if not self.touched:
            self.touched = True
            self.broker.touched.append(self)

    def acknowledge(self, frame: bytes, commit: int) -> None:
        """Send PUBACK, PUBREC, PUBCOMP, SUBACK or UNSUBACK once a change is committed, in the order of arrival.

        The client takes it [MQTT-3.1.2-24]: a CONNACK, which is no smaller, went before, and `subscribing` looks first.
        """
        if self._may_leave(self._acknowledgements, commit):
            self.send(frame)
        else:
            self._acknowledgements = self._hold(self._acknowledgements, frame, commit)

    def deliver(self, frame: bytes, commit: int) -> None:
        """Send a QoS 1 or 2 PUBLISH or a PUBREL once a change is committed, behind all deliveries before it."""
        if self._may_leave(self._deliveries, commit):
            self.send(frame)
        else:
            self._deliveries = self._hold(self._deliveries, frame, commit)

    def deliver_parts(self, head: bytes, packet_id: bytes, tail: bytes, commit: int) -> None:
        """Like `deliver`, for a PUBLISH in the three parts of which only the identifier is this receiver's own."""
        if not self._may_leave(self._deliveries, commit):
            self._deliveries = self._hold(self._deliveries, head + packet_id + tail, commit)
            return
        output = self.output
        output.append(head)
        output.append(packet_id)
        output.append(tail)
        self.output_bytes += len(head) + 2 + len(tail)
        self.broker.statistics.sent[PUBLISH] += 1
        self.touch()

    @property
    def acknowledgements_wait(self) -> bool:
        """Whether an acknowledgement is held back."""
        gate = self._acknowledgements
        return gate is not None and len(gate.held) > 0

    @property
    def waits_for_store(self) -> bool:
        """Whether an acknowledgement is held back whose change is not committed."""
        gate = self._acknowledgements
        return gate is not None and any(commit > self.broker.committed_number for commit, _frame in gate.held)

    def _may_leave(self, gate: Gate | None, commit: int) -> bool:
        """Whether a packet has neither a commit to wait for nor another packet before it."""
        return commit <= self.broker.committed_number and (gate is None or not (gate.held or gate.shut))

    def _hold(self, gate: Gate | None, frame: bytes, commit: int) -> Gate:
        """Put a packet behind a gate, which most connections never need, and give the gate."""
        if gate is None:
            gate = Gate()
        gate.held.append((commit, frame))
        if commit > self.broker.awaited:
            self.broker.awaited = commit
        if len(gate.held) == self.broker.limits.withheld + 1:
            self.touch()  # it is not read any more
        if not self._waits:
            self._waits = True
            self.broker.waiting.append(self)
        return gate

    def release(self, committed: int) -> bool:
        """Send what waited for this commit number; say whether anything still waits."""
        still = False
        if self.state != CLOSING:
            for gate in (self._acknowledgements, self._deliveries):
                if gate is not None:
                    for frame in gate.release(committed):
                        self.send(frame)
                    if gate.held:
                        still = True
        self._waits = still
        return still

    def withhold(self) -> None:
        """Keep acknowledgements back until no more waits for the standing Sessions in `Broker.overfull` than may."""
        gate = self._acknowledgements
        if gate is None:
            gate = self._acknowledgements = Gate()
        for session in self.broker.overfull:
            waiting = self.broker.withheld.setdefault(session.client_id, {})
            if self.number not in waiting:
                waiting[self.number] = self
                gate.shut += 1

    def go_on_acknowledging(self) -> None:
        """Say that one of the standing Sessions that this connection waits for holds less."""
        gate = self._acknowledgements
        if gate is not None and self.state != CLOSING:
            gate.shut -= 1
            for frame in gate.release(self.broker.committed_number):
                self.send(frame)

    def refuse_waiting(self, reason_code: int) -> None:
        """Tell a version 5 client that what waits for the store was not taken, as far as MQTT has a word for it."""
        gate = self._acknowledgements
        if gate is None or self.version != V5:
            return
        for place, (commit, frame) in enumerate(gate.held):
            packet_type = frame[0] >> 4
            if commit > self.broker.committed_number and packet_type in (PUBACK, PUBREC):
                packet_id = frame[2] << 8 | frame[3]
                gate.held[place] = (0, encode_acknowledgement(packet_type, packet_id, reason_code, V5))
                if packet_type == PUBREC and self.session is not None:
                    inbound.forget_received(self.broker, self.session, packet_id)
        self.release(self.broker.committed_number)

    @property
    def waits(self) -> bool:
        """Whether a packet is held back; the connection stands in `Broker.waiting` then."""
        return self._waits

    def take_output(self) -> bytes:
        """Take everything that has to be written now."""
        output = self.output
        data = output[0] if len(output) == 1 else b"".join(output)
        self.output = []
        self.output_bytes = 0
        self.broker.statistics.bytes_sent += len(data)
        return data

    def set_writable(self, writable: bool, now: float) -> None:
        """Say whether the peer takes bytes; while it does not, output gathers here up to `Limits.output_bytes`."""
        self.writable = writable
        if writable and self.state == CONNECTED and self.session is not None:
            outbound.pump(self.broker, self, self.session, now)

    def count_unsent(self, in_transport: int) -> None:
        """Count what the peer does not take against the memory budget: what the transport keeps, and the output."""
        unsent = in_transport + self.output_bytes
        memory = self.broker.memory
        grows = unsent > self._unsent
        memory.used += unsent - self._unsent
        self._unsent = unsent
        if grows and memory.is_spent() and unsent > memory.output_bytes(unsent):
            self.close("the memory budget is spent, and it does not read")

    @property
    def has_more(self) -> bool:
        """Whether more output is made when what there is has left: `set_writable` then."""
        return self.backlog is not None or bool(self.late)

    @property
    def wants_input(self) -> bool:
        """Whether the shell should read."""
        gate = self._acknowledgements
        if gate is not None and len(gate.held) > self.broker.limits.withheld:
            return False
        if self.login is not None and self.decoder.pending < _BEHIND_CONNECT_BYTES:
            return True  # else it is not seen when the peer leaves, and time goes into the passwords of the gone
        return not self.throttled and self.output_bytes <= self.broker.limits.output_bytes

    @property
    def is_closing(self) -> bool:
        """Whether the shell has to close the socket after what is left to write."""
        return self.state == CLOSING

    # --- the end -----------------------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Close without a packet; the shell then calls `Broker.connection_lost`."""
        if self.state != CLOSING:
            self.state = CLOSING
            self.closing_reason = reason if len(reason) <= _CLOSING_CHARACTERS else f"{reason[:_CLOSING_CHARACTERS]}…"
            self.broker.memory.hold_unfinished(-self._unfinished)
            self._unfinished = 0
            self.decoder.clear()
            outbound.drop_all_late(self.broker, self)
            self.touch()

    def close_with(self, reason_code: int, detail: str) -> None:
        """Close for a reason; a version 5 client is told by DISCONNECT, or by CONNACK before it was let in (§4.13)."""
        if self.state == CLOSING:
            return
        if self.state == CONNECTED and self.version == V5:
            frame = encode(Disconnect(reason_code, self.reason_string(reason_code, detail)), V5)
            self.send(frame if self.fits(frame) else encode(Disconnect(reason_code), V5))  # [MQTT-3.14.2-3]
        elif self.state == AUTHENTICATING:
            handshake.send_refusal(self, reason_code, detail)
        self.close(f"{reason_codes.NAMES.get(reason_code, 'error')}: {detail}")

    def reason_string(self, reason_code: int, detail: str) -> Properties | None:
        """Give a Reason String for CONNACK or DISCONNECT, to a client that wants one (§3.1.2.11.7).

        Why somebody may not is for the log alone.
        """
        if not self.wants_reasons or reason_code in _NOT_TOLD:
            return None
        return Properties(reason_string=printable(detail)[:_REASON_CHARACTERS])

    def deadline(self) -> float:
        """Give when silence ends the connection (§3.1.2.10); infinity without a Keep Alive."""
        if self.state == AWAITING_CONNECT or self.state == AUTHENTICATING:
            return self.accepted_at + self.broker.limits.connect_timeout
        if self.keep_alive_seconds == 0:
            return float("inf")
        return self.last_packet_at + 1.5 * self.keep_alive_seconds
