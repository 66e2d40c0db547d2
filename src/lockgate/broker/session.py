"""A Session: what outlives a Network Connection (MQTT 5 §4.1). Behaviour stands in `inbound` and `outbound`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, final

from lockgate.broker.ports import NEVER, Delivery, Message

if TYPE_CHECKING:
    from lockgate.broker.connection import Connection
    from lockgate.broker.permissions import Permissions

NEVER_EXPIRES: Final = 0xFFFFFFFF  # a Session Expiry Interval (§3.1.2.11.2)


@final
class Subscription:
    """One Topic Filter of one Session, shared when `share_name` is not empty."""

    __slots__ = (
        "identifier",
        "no_local",
        "plain",
        "qos",
        "requested_filter",
        "retain_as_published",
        "session",
        "share_name",
        "topic_filter",
    )

    def __init__(
        self,
        session: Session,
        requested_filter: str,
        topic_filter: str,
        share_name: str,
        qos: int,
        no_local: bool,
        retain_as_published: bool,
        identifier: int,
    ) -> None:
        self.session = session
        self.requested_filter = requested_filter
        self.topic_filter = topic_filter
        self.share_name = share_name
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.identifier = identifier  # 0: none
        # A QoS 0 message needs nothing of its own for this receiver.
        self.plain = not no_local and not retain_as_published and identifier == 0


@final
class Session:
    """The state of one client id. The inbound half knows QoS 2 identifiers, the outbound half queue and window."""

    __slots__ = (
        "asked_position",
        "client_id",
        "connection",
        "disconnected_at",
        "dropped",
        "dropping",
        "durable",
        "exceeding",
        "expires_at",
        "expiry_interval",
        "head_position",
        "in_flight",
        "in_flight_bytes",
        "last_position",
        "next_packet_id",
        "permissions",
        "queue",
        "queued_bytes",
        "queued_count",
        "received",
        "standing_bytes",
        "subscriptions",
        "username",
        "version",
        "watched_at",
    )

    def __init__(self, client_id: str, expiry_interval: int, username: str | None) -> None:
        self.client_id = client_id
        self.username = username  # who owns it; None: nobody does
        self.permissions: Permissions | None = None  # None: it may do everything
        self.version = 0  # of MQTT, that its client spoke last
        self.expiry_interval = expiry_interval  # seconds; 0 ends the Session with its connection
        # It lies in the store, until it ends: a client that returns without an interval still gets what waited for it.
        self.durable = expiry_interval > 0
        self.expires_at = NEVER  # set while it is not connected
        self.watched_at = float("inf")  # the time of this Session's entry among the deadlines
        self.disconnected_at = 0.0
        self.connection: Connection | None = None
        self.subscriptions: dict[str, Subscription] = {}
        # inbound: QoS 2 identifiers between PUBREC and PUBREL; None where the message was refused
        self.received: dict[int, Message | None] = {}
        self.exceeding = False  # its client once had more of them open than we announced
        # outbound: what was sent and not yet acknowledged, in the order of sending
        self.in_flight: dict[int, Delivery] = {}
        self.in_flight_bytes = 0
        self.next_packet_id = 1
        # outbound: what waits; a durable Session's queue lies in the store and this is its head
        self.queue: deque[Delivery] | None = None
        self.queued_count = 0  # waiting in all, in the head and in the store
        self.queued_bytes = 0
        self.standing_bytes = -1  # of a standing Session: how much may wait before publishers have to (0: any)
        self.dropped = 0  # messages that were not delivered, since the start
        self.dropping = False  # the queue has been full since the client last kept up
        self.last_position = 0  # of the youngest delivery
        self.head_position = 0  # of the youngest delivery that was ever in the head
        self.asked_position = 0  # how far the store was asked for more; 0: it was not

    def remove_dropped(self, count: int) -> None:
        """Take the deliveries marked as dropped, so many, out of the queue: mostly those at its front."""
        queue = self.queue
        while queue and queue[0].dropped:
            queue.popleft()
            count -= 1
        if count and self.queue is not None:
            self.queue = deque([delivery for delivery in self.queue if not delivery.dropped])
