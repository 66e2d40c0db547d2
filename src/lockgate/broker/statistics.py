"""What the broker counts."""

from __future__ import annotations

from typing import final


@final
class Statistics:
    """Totals since the start. `dropped_*` count messages not delivered to one receiver, each for one reason."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "connections_accepted",
        "dropped_expired",
        "dropped_not_permitted",
        "dropped_queue_full",
        "dropped_shed",
        "dropped_slow",
        "dropped_too_large",
        "lost",
        "not_retained",
        "packets_received",
        "publish_received",
        "publish_sent",
    )

    def __init__(self) -> None:
        self.bytes_received = 0
        self.bytes_sent = 0
        self.packets_received = 0
        self.connections_accepted = 0
        self.publish_received = 0
        self.not_retained = 0  # messages that found no room among the retained ones
        self.publish_sent = 0
        self.lost = 0  # queued messages that a damaged store does not have any more
        self.dropped_queue_full = 0  # beyond max_queued_messages or max_queued_bytes
        self.dropped_slow = 0  # QoS 0 to a client that does not read
        self.dropped_not_permitted = 0  # queued before the rules, or the Session's user, changed
        self.dropped_expired = 0  # Message Expiry Interval passed
        self.dropped_shed = 0  # because the memory budget or the total of queued messages was reached
        self.dropped_too_large = 0  # beyond the receiver's Maximum Packet Size

    @property
    def dropped(self) -> int:
        """Messages not delivered to one receiver, for whatever reason."""
        return (
            self.lost
            + self.dropped_queue_full
            + self.dropped_slow
            + self.dropped_expired
            + self.dropped_not_permitted
            + self.dropped_shed
            + self.dropped_too_large
        )
