"""What the broker counts."""

from __future__ import annotations

from typing import final

from lockgate.mqtt.packets import PUBLISH


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
        "publish_bytes_received",
        "publish_bytes_sent",
        "received",
        "sent",
        "sessions_expired",
    )

    def __init__(self) -> None:
        self.bytes_received = 0
        self.bytes_sent = 0
        self.received = [0] * 16  # packets, by their type
        self.sent = [0] * 16
        self.publish_bytes_received = 0  # of payloads
        self.publish_bytes_sent = 0
        self.sessions_expired = 0
        self.connections_accepted = 0
        self.not_retained = 0  # messages that found no room among the retained ones
        self.lost = 0  # queued messages that a damaged store does not have any more
        self.dropped_queue_full = 0  # beyond max_queued_messages or max_queued_bytes
        self.dropped_slow = 0  # QoS 0 to a client that does not read
        self.dropped_not_permitted = 0  # queued before the rules, or the Session's user, changed
        self.dropped_expired = 0  # Message Expiry Interval passed
        self.dropped_shed = 0  # because the memory budget or the total of queued messages was reached
        self.dropped_too_large = 0  # beyond the receiver's Maximum Packet Size

    @property
    def packets_received(self) -> int:
        """Packets of all types."""
        return sum(self.received)

    @property
    def packets_sent(self) -> int:
        """Packets of all types."""
        return sum(self.sent)

    @property
    def publish_received(self) -> int:
        """PUBLISH packets."""
        return self.received[PUBLISH]

    @property
    def publish_sent(self) -> int:
        """PUBLISH packets."""
        return self.sent[PUBLISH]

    @property
    def dropped(self) -> int:
        """Messages not delivered to one receiver, for whatever reason."""
        return sum(self.reasons().values())

    def reasons(self) -> dict[str, int]:
        """Give those messages by reason."""
        return {
            "queue_full": self.dropped_queue_full,
            "slow_reader": self.dropped_slow,
            "expired": self.dropped_expired,
            "not_permitted": self.dropped_not_permitted,
            "too_large": self.dropped_too_large,
            "memory": self.dropped_shed,
            "lost": self.lost,
        }
