"""The side of a bridge that lies in this process: a client of our own broker, without a socket."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, final

from lockgate.broker.broker import Broker
from lockgate.broker.connection import Connection
from lockgate.broker.limits import ListenerLimits
from lockgate.broker.session import NEVER_EXPIRES
from lockgate.config.model import BridgeConfig
from lockgate.mqtt.decoder import Decoder, PacketRules
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V5, Connect, Packet, Subscribe, SubscriptionRequest, Unsubscribe
from lockgate.mqtt.properties import Properties

_FILTERS_TOGETHER: Final = 100
_PACKET_ID: Final = 1  # of SUBSCRIBE and UNSUBSCRIBE, whose answers are told apart by nothing else here


class Shell(Protocol):
    """What a bridge needs of the service that runs the broker."""

    broker: Broker

    def clock(self) -> float:
        """Give the broker's time."""

    def admit(self, stream: Local, peer: str, limits: ListenerLimits, address: str) -> Connection:
        """Give a new connection of the core."""

    def dismiss(self, stream: Local, now: float) -> None:
        """Take it back."""

    def flush(self) -> None:
        """End a turn. Not to be called from `Local.write`."""


class Receiver(Protocol):
    """Whoever holds the other end."""

    def from_local(self, packet: Packet) -> None:
        """Take a packet of our broker."""

    def local_turn_ended(self) -> None:
        """Pass on what `from_local` gathered; `Local.wants_input` may have changed."""

    def local_closed(self, reason: str) -> None:
        """Know that our broker has closed."""


@final
class Local:
    """One connection to our own broker in version 5, from CONNECT on."""

    def __init__(self, shell: Shell, config: BridgeConfig, receiver: Receiver) -> None:
        self._shell = shell
        self._config = config
        self._receiver = receiver
        self._decoder = Decoder(V5, rules=PacketRules(topic_levels=65_535))  # our broker has checked its own
        self._flush_scheduled = False
        self._closed = False
        # A user that is named is looked at like any other client's, where there is somebody to do so.
        authority = shell.broker.default_authority if config.local_username is not None else None
        limits = ListenerLimits(
            port=0, authority=authority, trusted=authority is None, max_topic_alias=0, max_topic_alias_broker=0
        )
        self.connection = shell.admit(self, f"bridge {config.name}", limits, "")
        self.connection.own = True

    def open(self, receive_maximum: int, keeps_session: bool) -> None:
        """Say CONNECT; what our broker answers reaches the receiver at the end of the turn."""
        config = self._config
        password = config.local_password.encode() if config.local_password is not None else None
        properties = Properties(receive_maximum=receive_maximum)
        if keeps_session:
            properties.session_expiry_interval = NEVER_EXPIRES
        self.send(
            Connect(
                config.local_client_id,
                V5,
                not keeps_session,
                0,
                config.local_username,
                password,
                None,
                properties,
            )
        )

    def subscribe(self, filters: dict[str, int], retain_handling: int) -> None:
        """Have exactly these Topic Filters, each with its QoS."""
        session = self._shell.broker.sessions.get(self._config.local_client_id)
        known = session.subscriptions if session is not None else {}
        stale = [topic_filter for topic_filter in known if topic_filter not in filters]
        if stale:
            self.send(Unsubscribe(_PACKET_ID, stale))
        requests = [
            SubscriptionRequest(topic_filter, qos, True, True, retain_handling) for topic_filter, qos in filters.items()
        ]
        for start in range(0, len(requests), _FILTERS_TOGETHER):
            self.send(Subscribe(_PACKET_ID, requests[start : start + _FILTERS_TOGETHER]))

    def send(self, packet: Packet) -> None:
        """Hand a packet to our broker."""
        self.send_frame(encode(packet, V5))

    def send_frame(self, frame: bytes) -> None:
        """Hand an encoded packet to our broker."""
        if not self._closed:
            self.connection.receive(frame, self._shell.clock())
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._shell.flush()

    def write(self) -> None:
        """Pass on what our broker has to say; called at the end of its turn."""
        connection = self.connection
        if connection.output and (connection.writable or connection.is_closing):
            self._decoder.feed(connection.take_output())
            while (packet := self._decoder.next_packet()) is not None:
                self._receiver.from_local(packet)
        if connection.has_more and connection.writable:
            asyncio.get_running_loop().call_soon(self._go_on)
        if connection.is_closing:
            self._receiver.local_closed(connection.closing_reason)
        self._receiver.local_turn_ended()

    def _go_on(self) -> None:
        """Have our broker make its next piece of output, if that is still wanted."""
        if self.connection.writable:
            self.set_writable(True)

    @property
    def is_answered(self) -> bool:
        """Whether our broker has let it in, or never will; a password takes its time."""
        return self.connection.session is not None or self.connection.is_closing

    @property
    def wants_input(self) -> bool:
        """Whether more should be sent now."""
        return self.connection.wants_input

    def set_writable(self, writable: bool) -> None:
        """Say whether the receiver takes more; while it does not, our broker queues, within its limits."""
        if self._closed:
            return
        self.connection.set_writable(writable, self._shell.clock())
        if writable:
            self.connection.touch()
            self._flush_soon()

    def close(self) -> None:
        """End without a DISCONNECT: the Session stays, unless it is one that ends. Not to be called from `write`."""
        if not self._closed:
            self._closed = True
            self._shell.dismiss(self, self._shell.clock())
