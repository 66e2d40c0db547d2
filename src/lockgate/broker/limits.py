"""Every bound of the broker, declared in one place; 0 means no limit where Mosquitto says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# The first packet of a connection may have at most this size, before anybody is known (Mosquitto's figure).
CONNECT_PACKET_BYTES: Final = 100_000
# No packet is accepted beyond this: what an alias hid or a receiver's options add must still fit into MQTT's 256 MiB.
LARGEST_PACKET_BYTES: Final = 268_300_000


@dataclass(frozen=True)
class Limits:
    """Bounds of the whole broker and of each Session."""

    max_inflight_messages: int = 20  # unacknowledged QoS 1/2 messages to a client; announced as Receive Maximum
    max_inflight_bytes: int = 0
    max_queued_messages: int = 1000  # waiting for a client beyond those in flight
    max_queued_bytes: int = 0
    max_packet_size: int = 2_000_000  # bytes of a whole packet, either way
    max_keepalive: int = 0  # seconds
    connect_timeout: float = 30.0  # seconds from accept to CONNECT
    output_bytes: int = 1_048_576  # unsent to one client; QoS 0 beyond is dropped, its reading is paused
    queue_head: int = 256  # deliveries of a durable Session kept in memory, the rest lies in the store
    routes: int = 8192  # topics whose receivers are remembered


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
