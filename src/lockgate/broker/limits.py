"""Every bound of the broker, declared in one place; 0 means no limit where Mosquitto says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lockgate.broker.ports import Authority
from lockgate.mqtt import reason_codes

# The first packet of a connection may have at most this size, before anybody is known (Mosquitto's figure).
CONNECT_PACKET_BYTES: Final = 100_000
# No packet is accepted beyond this: what an alias hid or a receiver's options add must still fit into MQTT's 256 MiB.
LARGEST_PACKET_BYTES: Final = 268_300_000

QUEUE_HEAD: Final = 256


@dataclass(frozen=True)
class StandingSession:
    """A Session that exists without its client having been there; at its limit publishers have to wait."""

    client_id: str
    topic_filters: tuple[str, ...]
    qos: int = 1
    max_bytes: int = 0  # waiting for it; 0: no limit


@dataclass(frozen=True)
class Limits:
    """Bounds of the whole broker and of each Session. Bytes and seconds; 0: no limit."""

    # for each client
    max_inflight_messages: int = 20  # unacknowledged QoS 1/2 messages to a client; announced as Receive Maximum
    max_inflight_bytes: int = 0
    max_queued_messages: int = 1000  # waiting for a client beyond those in flight
    max_queued_bytes: int = 0
    max_packet_size: int = 2_000_000  # of a whole packet, either way
    max_keepalive: int = 0
    message_size: int = 0  # of a payload; a larger message is acknowledged, or refused with a code, and goes nowhere
    clientid_prefixes: tuple[str, ...] = ()  # that a Client Identifier has to begin with one of; empty: any
    upgrade_outgoing_qos: bool = False  # deliver at the Subscription's QoS, even what was published with a lower one
    allow_duplicate_messages: bool = True  # else overlapping Subscriptions bring a client before version 5 one copy
    queue_qos_0: bool = False  # queue QoS 0 messages for durable Sessions whose clients are away
    check_retain_source: bool = True  # send a retained message only while its author may still publish it
    session_owner: bool = True  # a Session that has a user is no other user's
    retain_available: bool = True
    sparkplug: bool = False  # retain births below $sparkplug/certificates/, as a Sparkplug-aware Server does
    subscriptions: int = 10_000  # of one Session
    output_bytes: int = 1_048_576  # unsent to one client; QoS 0 beyond is dropped, its reading is paused
    queue_head: int = QUEUE_HEAD  # deliveries of a durable Session kept in memory, the others in the store; 0: all
    persistent_client_expiration: int = 0  # seconds without its client after which a Session that never expires ends
    publish_rate: float = 0.0  # messages a second from one client; it is read no faster
    connect_rate: float = 0.0  # CONNECT packets a second with one Client Identifier
    flapping_connects: int = 0  # CONNECT packets with one Client Identifier in a window before it is held off
    flapping_window: float = 60.0
    flapping_hold_off: float = 300.0
    # for each address of a peer that is no trusted proxy
    connections_per_address: int = 0
    connect_rate_per_address: float = 0.0  # connections accepted a second
    # for each packet
    topic_bytes: int = 65_535
    topic_levels: int = 200  # Mosquitto's bound
    user_properties: int = 100
    # for the whole broker
    connections: int = 0  # of clients that were let in (global_max_connections)
    sessions: int = 0  # connected or stored (global_max_clients)
    pending_logins: int = 1000  # connections not let in yet; the oldest gives way
    connect_timeout: float = 30.0  # from accept to CONNACK
    retained_messages: int = 1_000_000
    retained_bytes: int = 0
    total_queued_messages: int = 1_000_000  # waiting for all clients together
    memory_budget: int = 0
    alarms: tuple[str, ...] = ()  # Topic Filters of messages that give way last
    routes: int = 8192  # topics whose receivers are remembered
    ack_after: tuple[tuple[str, bool], ...] = ()  # Topic Filters, the first that matches counts: whether on disk
    standing_sessions: tuple[StandingSession, ...] = ()
    keep_wills: bool = False  # when the broker stops in order: they are published after the next start
    store_patience: float = 10.0  # seconds that an acknowledgement may wait for a store that cannot be written
    withheld: int = 1000  # acknowledgements that wait for one client before it is not read any more
    decisions: int = 4096  # remembered for `lockgate explain`


@dataclass(frozen=True)
class ServerInformation:
    """What CONNACK and DISCONNECT tell a version 5 client about this Server; empty: nothing."""

    reference: str = ""  # another Server to use when this one is full or stops (§4.11)
    moved: bool = False  # that Server has taken this one's place for good
    response_information: str = ""  # a topic that response topics may begin with (§4.10.1)

    def redirection(self) -> int:
        """Give the Reason Code that goes with the Server Reference."""
        return reason_codes.SERVER_MOVED if self.moved else reason_codes.USE_ANOTHER_SERVER


@dataclass(frozen=True)
class ListenerLimits:
    """What differs from listener to listener."""

    port: int = 1883
    allow_anonymous: bool = False
    max_qos: int = 2
    max_topic_alias: int = 10
    max_topic_alias_broker: int = 10
    protocol_versions: frozenset[int] = frozenset({3, 4, 5})
    username_from_certificate: bool = False  # `Connection.identity` is the user, and a client without one is refused
    authority: Authority | None = None  # whom to ask; without one everybody is let in who `allow_anonymous` lets in
    trusted: bool = False  # for a part of this program: no authority is asked
    allow_zero_length_clientid: bool = True
    auto_id_prefix: str = ""  # before the Client Identifiers that the Server invents
    username_as_client_id: bool = False
    mount_point: str = ""  # before every topic of these clients, who do not see it
