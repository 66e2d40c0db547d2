"""A broker without a network: scripted peers talk to it in packets, and the test owns clock, store and turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lockgate.broker import restoring
from lockgate.broker.broker import Broker
from lockgate.broker.connection import Connection
from lockgate.broker.limits import Limits, ListenerLimits, ServerInformation
from lockgate.broker.ports import (
    RESTS,
    Authenticator,
    Delivery,
    Message,
    Store,
    StoredQueue,
    StoredSession,
    StoredSubscription,
    StoredWill,
)
from lockgate.mqtt.decoder import Decoder
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from lockgate.mqtt.properties import Properties
from lockgate.storage.memory import MemoryStore
from lockgate.telemetry.clock import Moment
from tests.support.disk import Disk, DiskStore


class Recorder:
    """A `ports.Log` that a test can read."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.subscriptions: list[tuple[str, int | None, str]] = []  # client, QoS, None where one ended, and filter

    def notice(self, text: str) -> None:
        self.lines.append(text)

    def debug(self, text: str) -> None: ...

    def subscribed(self, client: str, qos: int, topic_filter: str) -> None:
        self.subscriptions.append((client, qos, topic_filter))

    def unsubscribed(self, client: str, topic_filter: str) -> None:
        self.subscriptions.append((client, None, topic_filter))

    def warning(self, text: str) -> None:
        self.lines.append(text)


class _Source:
    """The clock of a server, all in one boot."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def now(self) -> Moment:
        return Moment("one boot", int(self._server.now * 1e9), int(self._server.now * 1e9), True)


class SettlingStore(Store, Protocol):
    """A store that gives its answers when it is told to."""

    def settle(self) -> object: ...


class Server:
    """One broker. With `slow_store` the store answers only when the test calls `settle`.

    With a `disk` it begins with what was committed there; `crash` gives the one that begins after it.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        listener: ListenerLimits | None = None,
        slow_store: bool = False,
        authenticator: Authenticator | None = None,
        information: ServerInformation | None = None,
        disk: Disk | None = None,
        now: float = 1000.0,
        open_store: Callable[[Server], SettlingStore] | None = None,
    ) -> None:
        self.now = now
        self.slow_store = slow_store
        self.log = Recorder()
        self.listener = listener if listener is not None else ListenerLimits(allow_anonymous=True)
        self._invented = 0
        self.store = MemoryStore(self)
        self.disk = disk
        self._answering: SettlingStore = self.store
        if disk is not None:
            self._answering = DiskStore(self, disk, _Source(self))
        elif open_store is not None:
            self._answering = open_store(self)
        limits = limits if limits is not None else Limits()
        self.broker = Broker(limits, self._answering, self.log, self._invent, authenticator, information)
        self.broker.default_authority = self.broker.absent_authority = self.listener.authority
        self.peers: dict[int, Peer] = {}
        if isinstance(self._answering, DiskStore):
            self._answering.restore(self)
        restoring.stand(self.broker, self.now)

    def crash(self, limits: Limits | None = None, off_seconds: float = 0.0) -> Server:
        """Give the server that begins after this one was killed: it knows what this one committed."""
        limits = limits if limits is not None else self.broker.limits
        return Server(limits, self.listener, self.slow_store, disk=self.disk, now=self.now + off_seconds)

    def restore_session(
        self,
        client_id: str,
        stored: StoredSession,
        subscriptions: list[tuple[str, StoredSubscription]],
        received: dict[int, Message],
        queue: StoredQueue,
    ) -> None:
        """What `ports.Keeper` asks for, as the next two."""
        restoring.restore_session(self.broker, client_id, stored, subscriptions, received, queue, self.now)

    def restore_retained(self, message: Message) -> None:
        restoring.restore_retained(self.broker, message, self.now)

    def restore_will(self, client_id: str, will: StoredWill) -> None:
        restoring.restore_will(self.broker, client_id, will, self.now)

    def _invent(self) -> str:
        self._invented += 1
        return f"invented-{self._invented}"

    @property
    def awaited(self) -> int:
        """What `ports.StoreAnswers` asks for, as all that follows."""
        return self.broker.awaited

    def committed(self, number: int) -> None:
        self.broker.committed(number, self.now)

    def loaded(self, client_id: str, deliveries: list[Delivery]) -> None:
        self.broker.loaded(client_id, deliveries, self.now)

    def store_failed(self, reason_code: int) -> None:
        self.broker.store_failed(reason_code, self.now)

    def store_damaged(self, problem: str) -> None:
        raise AssertionError(problem)

    def wake(self) -> None:
        self.broker.store_is_awake = True
        self.flush()

    def settle(self) -> None:
        """Let the store answer all that it was asked, if it was: what it is not told of it does not look for."""
        self._settle()
        self.flush()

    def _settle(self) -> None:
        if self.broker.store_is_awake and self._answering.settle() == RESTS:
            self.broker.store_is_awake = False

    def flush(self) -> None:
        """End a turn: what touched connections have to say reaches their peers."""
        if not self.slow_store:
            self._settle()
        touched = self.broker.take_touched()
        while touched:
            for connection in touched:
                self.peers[connection.number].take()
            touched = self.broker.take_touched()

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping at every deadline on the way."""
        until = self.now + seconds
        while True:
            deadline = self.broker.next_deadline()
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.broker.expire(self.now)
            self.flush()
        self.now = until

    def peer(self, version: int = V5, address: str = "") -> Peer:
        """Accept a connection that has sent nothing yet; `address` is counted against the limits of an address."""
        peer = Peer(self, version, address)
        self.flush()
        return peer

    def client(
        self,
        client_id: str = "",
        version: int = V5,
        clean_start: bool = True,
        keep_alive: int = 0,
        will: Will | None = None,
        username: str | None = None,
        **properties: int,
    ) -> Peer:
        """Accept a connection and let it in; `properties` are those of its CONNECT."""
        peer = Peer(self, version)
        own = Properties(**properties) if properties else None  # type: ignore[arg-type]
        peer.send(Connect(client_id, version, clean_start, keep_alive, username, None, will, own))
        answer = peer.first()
        assert isinstance(answer, ConnAck), answer
        assert answer.reason_code == 0, answer
        peer.connack = answer
        return peer


class Peer:
    """The other end of a connection. `received` empties what has arrived."""

    def __init__(self, server: Server, version: int, address: str = "") -> None:
        self.server = server
        self.version = version
        self.connack = ConnAck()
        self.closed = False
        self.reading = True
        self.output = b""  # all that ever arrived
        self.reasons: list[str] = []  # Reason Strings of CONNACK and DISCONNECT
        self.connection: Connection = server.broker.connect("192.0.2.1:5000", server.listener, server.now, address)
        server.peers[self.connection.number] = self
        self._decoder = Decoder(version)
        self._packets: list[Packet] = []

    def send(self, *packets: Packet) -> None:
        """Send packets in one piece."""
        self.send_bytes(b"".join(encode(packet, self.version) for packet in packets))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes in one piece."""
        self.connection.receive(data, self.server.now)
        self.server.flush()

    def take(self) -> None:
        """Take what the broker has written, and learn whether it closed."""
        if self.connection.output and (self.reading or self.connection.is_closing):
            output = self.connection.take_output()
            self.output += output
            self._decoder.feed(output)
            if self.connection.has_more and self.connection.writable:
                self.connection.set_writable(True, self.server.now)
            while (packet := self._decoder.next_packet()) is not None:
                self._keep_reason(packet)
                self._packets.append(packet)
        if self.connection.is_closing and not self.closed:
            self.closed = True
            self.server.broker.connection_lost(self.connection, self.server.now)
            self.server.flush()

    def _keep_reason(self, packet: Packet) -> None:
        """Put a Reason String, which is for people, aside: what a packet means is compared without it."""
        if isinstance(packet, ConnAck | Disconnect) and packet.properties is not None:
            reason = packet.properties.reason_string
            if reason is not None:
                self.reasons.append(reason)
                packet.properties.reason_string = None
                if packet.properties == Properties():
                    packet.properties = None

    def lose(self) -> None:
        """Break the connection without a DISCONNECT."""
        self.closed = True
        self.server.broker.connection_lost(self.connection, self.server.now)
        self.server.flush()

    def stop_reading(self) -> None:
        """Leave everything unread from now on."""
        self.reading = False
        self.connection.set_writable(False, self.server.now)

    def read_again(self) -> None:
        """Read what gathered."""
        self.reading = True
        self.connection.set_writable(True, self.server.now)
        self.take()
        self.server.flush()

    def received(self) -> list[Packet]:
        """Give all packets since the last call."""
        packets, self._packets = self._packets, []
        return packets

    def one(self) -> Packet:
        """Give the one packet that arrived since the last call."""
        packets = self.received()
        assert len(packets) == 1, packets
        return packets[0]

    def first(self) -> Packet:
        """Give the first packet and leave what came behind it to be received."""
        assert self._packets, "nothing arrived"
        return self._packets.pop(0)

    def messages(self) -> list[tuple[str, bytes]]:
        """Give topic and payload of each PUBLISH since the last call, which must all be PUBLISH."""
        return [(packet.topic, packet.payload) for packet in self.publishes()]

    def publishes(self) -> list[Publish]:
        """Give the packets since the last call, which must all be PUBLISH."""
        packets = self.received()
        publishes = [packet for packet in packets if isinstance(packet, Publish)]
        assert len(publishes) == len(packets), packets
        return publishes

    def subscribe(self, topic_filter: str, qos: int = 0, **options: bool | int) -> None:
        """Subscribe, and leave what follows SUBACK to be received."""
        request = SubscriptionRequest(topic_filter, qos, **options)  # type: ignore[arg-type]
        self.send(Subscribe(1, [request]))
        answer = self.first()
        assert isinstance(answer, SubAck), answer
        assert answer.reason_codes == [qos], answer

    def publish(
        self, topic: str, payload: bytes = b"x", qos: int = 0, retain: bool = False, packet_id: int = 9
    ) -> None:
        """Publish and go through the acknowledgements that belong to it."""
        self.send(Publish(topic, payload, qos, retain, packet_id=packet_id if qos else 0))
        if qos == 1:
            self.expect(PubAck)
        elif qos == 2:
            self.expect(PubRec)
            self.send(PubRel(packet_id))
            self.expect(PubComp)

    def expect(self, kind: type[Packet]) -> None:
        """Drop the first packet of a kind among those that arrived; there must be one."""
        for place, packet in enumerate(self._packets):
            if isinstance(packet, kind):
                del self._packets[place]
                return
        raise AssertionError(f"no {kind.__name__} in {self._packets}")


__all__ = ["V3_1_1", "V5", "Peer", "Recorder", "Server"]
