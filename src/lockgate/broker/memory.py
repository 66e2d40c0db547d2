"""The memory budget: what is held for clients, counted as it comes and goes. Who gives way stands in `shedding`."""

from __future__ import annotations

from typing import Final, final

from lockgate.broker.ports import Message, text_bytes

# What an object costs beside the bytes that a peer chose: measured on CPython 3.11, rounded up.
CONNECTION_BYTES: Final = 2600
_SESSION_BYTES: Final = 1200
DELIVERY_BYTES: Final = 200
_SUBSCRIPTION_BYTES: Final = 700
_RETAINED_BYTES: Final = 500
# Levels of a filter or topic that the figures above include, and what each further one costs, in trees of their own.
_LEVELS: Final = 8
_SUBSCRIPTION_LEVEL_BYTES: Final = 220
_RETAINED_LEVEL_BYTES: Final = 330

_SLOW_OUTPUT_BYTES: Final = 65_536  # unsent to one client once the budget runs short


def session_bytes(client_id: str, username: str | None) -> int:
    """Give what a Session costs without what it holds."""
    return _SESSION_BYTES + text_bytes(client_id) + (text_bytes(username) if username is not None else 0)


def subscription_bytes(requested_filter: str) -> int:
    """Give what a Subscription costs: itself, its filter and the names of its levels, its nodes of the tree."""
    levels = requested_filter.count("/") + 1
    nodes = (levels - _LEVELS) * _SUBSCRIPTION_LEVEL_BYTES if levels > _LEVELS else 0
    return _SUBSCRIPTION_BYTES + 2 * text_bytes(requested_filter) + nodes


def retained_bytes(topic: str) -> int:
    """Give what it costs to retain a message beside the message: its nodes of the tree."""
    levels = topic.count("/") + 1
    nodes = (levels - _LEVELS) * _RETAINED_LEVEL_BYTES if levels > _LEVELS else 0
    return _RETAINED_BYTES + text_bytes(topic) + nodes


@final
class Memory:
    """Bytes held, against a budget in bytes (0: no limit)."""

    __slots__ = ("_aim", "_short", "budget", "exhausted", "unfinished", "unfinished_limit", "used")

    def __init__(self, budget: int) -> None:
        self.used = 0
        self.unfinished = 0  # the part of `used` that lies in packets still arriving
        self.exhausted = False  # as it was found last: ask `is_exhausted`
        self.set_budget(budget)

    def set_budget(self, budget: int) -> None:
        """Go on with another budget."""
        self.budget = budget
        self.unfinished_limit = budget // 4
        self._short = budget - budget // 4
        self._aim = budget - budget // 16

    def hold(self, message: Message) -> None:
        """Count a Message for one more holder; it lies in memory once."""
        if message.holders == 0:
            message.held_bytes = message.memory_bytes()
            self.used += message.held_bytes
        message.holders += 1

    def release(self, message: Message) -> None:
        """Count a Message for one holder less."""
        message.holders -= 1
        if message.holders == 0:
            self.used -= message.held_bytes

    def hold_delivery(self, message: Message) -> None:
        """Count one more delivery of a Message."""
        self.used += DELIVERY_BYTES
        self.hold(message)

    def release_delivery(self, message: Message) -> None:
        """Count one delivery of a Message less."""
        self.used -= DELIVERY_BYTES
        self.release(message)

    def hold_unfinished(self, size: int) -> None:
        """Count bytes of a packet that is still arriving, or with a negative size no longer."""
        self.unfinished += size
        self.used += size

    def is_spent(self) -> bool:
        """Whether somebody has to give way."""
        return self.budget != 0 and self.used > self.budget

    def is_enough(self) -> bool:
        """Whether enough has given way: a little more than necessary, so that it does not begin anew at once."""
        return self.budget == 0 or self.used <= self._aim

    def is_exhausted(self) -> bool:
        """Whether everything that may give way has, and it was not enough: what comes is refused."""
        if self.exhausted and self.is_enough():
            self.exhausted = False
        return self.exhausted

    def output_bytes(self, limit: int) -> int:
        """Give how much may wait unsent for one client."""
        if self.budget != 0 and self.used > self._short and limit > _SLOW_OUTPUT_BYTES:
            return _SLOW_OUTPUT_BYTES
        return limit
