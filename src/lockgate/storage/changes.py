"""What has changed since the last commit began: of each row only its last state, and nothing of what came and went.

One thread only. Compiled where there is a compiler: all of a durable client's messages pass through here.
"""

from __future__ import annotations

from typing import Final, final

from lockgate.broker.ports import (
    NEVER,
    RECEIVED,
    RETAINED,
    SESSIONS,
    SUBSCRIPTIONS,
    Delivery,
    Message,
    StoredSession,
    StoredSubscription,
    StoredWill,
)
from lockgate.mqtt.properties import encode_properties
from lockgate.storage import checksums

# The identifier of a delivery: its Session's number above its position, so that a queue lies together and in order.
POSITION_BITS: Final = 36
# The identifier of a message received at QoS 2: its Session's number above the Packet Identifier.
PACKET_ID_BITS: Final = 16
_ROW_BYTES: Final = 64  # of a message's row beside topic and payload, about

Values = list[object]


@final
class Batch:
    """The changes of one commit: for each statement of `storage.statements` the values of its rows, row after row."""

    __slots__ = ("bytes_by_prefix", "number", "size_bytes", "values")

    def __init__(self, number: int) -> None:
        self.number = number
        self.values: dict[str, Values] = {}
        self.size_bytes = 0
        self.bytes_by_prefix: dict[str, int] = {}  # of messages, by the first level of their topics


@final
class Changes:
    """Collects changes; `take` gives them as a Batch and begins anew."""

    __slots__ = (
        "_ended",
        "_flights",
        "_gone",
        "_last_message",
        "_last_message_id",
        "_message_ids",
        "_next_number",
        "_queues",
        "_received",
        "_retained",
        "_sessions",
        "_shared",
        "_subscriptions",
        "_wills",
        "count",
        "last_change",
        "numbers",
        "size_bytes",
        "wakes",
    )

    def __init__(self, numbers: dict[str, int], next_number: int, next_message_id: int) -> None:
        self.numbers = numbers  # of Sessions, by client id
        self.last_change = 0
        self._next_number = next_number
        self._message_ids = next_message_id
        self.clear()

    def clear(self) -> None:
        """Forget everything, also what is void by now."""
        self.count = 0  # changes that a commit would write, about
        self.wakes = False  # one of them has to be written some day even if nobody waits for it
        self.size_bytes = 0  # of messages
        self._last_message: Message | None = None
        self._last_message_id = 0
        self._shared: set[int] = set()  # messages with more than one delivery
        self._queues: dict[int, dict[int, Delivery]] = {}  # new deliveries: number of the Session, position
        self._flights: dict[int, tuple[int, int]] = {}  # of deliveries that were written before
        self._gone: list[int] = []  # deliveries that were written before
        self._ended: dict[int, bool] = {}  # numbers of Sessions
        self._sessions: dict[str, StoredSession] = {}
        self._subscriptions: dict[tuple[int, str], StoredSubscription | None] = {}
        self._received: dict[int, Message | None] = {}
        self._retained: dict[str, Message | None] = {}
        self._wills: dict[str, StoredWill | None] = {}

    @property
    def is_void(self) -> bool:
        """Whether there is nothing to be written."""
        return self.count == 0

    def append(self, commit: int, client_id: str, delivery: Delivery) -> None:
        """Note a delivery at the end of a queue. Those of one message follow each other."""
        self.last_change = commit
        number = self.numbers[client_id]
        message = delivery.message
        if message is self._last_message:
            self._shared.add(self._last_message_id)
        else:
            self._last_message = message
            self._message_ids += 1
            self._last_message_id = self._message_ids
            self.size_bytes += _size(message)
        delivery.stored_message = self._last_message_id
        queue = self._queues.get(number)
        if queue is None:
            queue = self._queues[number] = {}
        queue[delivery.position] = delivery
        self.count += 1
        self.wakes = True

    def update(self, commit: int, client_id: str, delivery: Delivery) -> None:
        """Note the Packet Identifier and the state of a delivery."""
        self.last_change = commit
        number = self.numbers[client_id]
        queue = self._queues.get(number)
        if queue is None or delivery.position not in queue:  # else they are written with it
            self._flights[number << POSITION_BITS | delivery.position] = (delivery.packet_id, delivery.state)
            self.count += 1

    def acknowledge(self, commit: int, client_id: str, position: int) -> None:
        """Note that a delivery is done; if it was not written yet, it never is."""
        self.last_change = commit
        number = self.numbers[client_id]
        queue = self._queues.get(number)
        pending = queue.pop(position, None) if queue is not None else None
        if pending is not None:
            self.count -= 1
            if pending.stored_message not in self._shared:
                self.size_bytes -= _size(pending.message)
            return
        row = number << POSITION_BITS | position
        if self._flights.pop(row, None) is None:
            self.count += 1
        self._gone.append(row)

    def set(self, commit: int, table: str, key: tuple[str, ...], value: object) -> None:
        """Note a row."""
        self.last_change = commit
        self.wakes = True
        self.count += 1
        if table == RETAINED:
            assert isinstance(value, Message)
            self._replace(self._retained.get(key[0]), value)
            self._retained[key[0]] = value
        elif table == SESSIONS:
            assert isinstance(value, StoredSession)
            if key[0] not in self.numbers:
                self.numbers[key[0]] = self._next_number
                self._next_number += 1
            self._sessions[key[0]] = value
        elif table == SUBSCRIPTIONS:
            assert isinstance(value, StoredSubscription)
            self._subscriptions[(self.numbers[key[0]], key[1])] = value
        elif table == RECEIVED:
            assert isinstance(value, Message)
            row = self.numbers[key[0]] << PACKET_ID_BITS | int(key[1])
            self._replace(self._received.get(row), value)
            self._received[row] = value
        else:
            assert isinstance(value, StoredWill)
            self._wills[key[0]] = value

    def delete(self, commit: int, table: str, key: tuple[str, ...]) -> None:
        """Note that a row is gone."""
        self.last_change = commit
        self.wakes = True
        self.count += 1
        if table == RETAINED:
            self._replace(self._retained.get(key[0]), None)
            self._retained[key[0]] = None
        elif table == SUBSCRIPTIONS:
            self._subscriptions[(self.numbers[key[0]], key[1])] = None
        elif table == RECEIVED:
            row = self.numbers[key[0]] << PACKET_ID_BITS | int(key[1])
            self._replace(self._received.get(row), None)
            self._received[row] = None
        else:
            self._wills[key[0]] = None

    def _replace(self, old: Message | None, new: Message | None) -> None:
        """Count a message that takes the place of another one."""
        if old is not None:
            self.size_bytes -= _size(old)
        if new is not None:
            self.size_bytes += _size(new)

    def end_session(self, commit: int, client_id: str) -> None:
        """Note that a Session is gone with all it had."""
        self.last_change = commit
        number = self.numbers.pop(client_id)
        self._sessions.pop(client_id, None)
        self._queues.pop(number, None)
        self._ended[number] = True
        self.count += 1
        self.wakes = True

    def take(self, offset: float) -> Batch:
        """Give what has changed, with times moved by `offset` into the store's, and begin anew."""
        batch = Batch(self.last_change)
        batch.size_bytes = self.size_bytes
        self._take_sessions(batch, offset)
        self._take_messages(batch, offset)
        self._take_queues(batch, offset)
        self.clear()
        return batch

    def _take_sessions(self, batch: Batch, offset: float) -> None:
        values = batch.values
        if self._ended:
            values["end sessions"] = [*self._ended]
        sessions: Values = []
        for client_id, session in self._sessions.items():
            sessions += (
                self.numbers[client_id],
                client_id,
                session.username,
                session.expiry_interval,
                _moved(session.expires_at, offset),
            )
        values["sessions"] = sessions
        kept: Values = []
        gone: Values = []
        for (number, topic_filter), options in self._subscriptions.items():
            if number in self._ended:
                continue
            if options is None:
                gone += (number, topic_filter)
            else:
                kept += (
                    number,
                    topic_filter,
                    options.qos,
                    options.no_local,
                    options.retain_as_published,
                    options.identifier,
                )
        values["subscriptions"] = kept
        values["unsubscribe"] = gone

    def _take_messages(self, batch: Batch, offset: float) -> None:
        values = batch.values
        kept: Values = []
        gone: Values = []
        for row, received in self._received.items():
            if row >> PACKET_ID_BITS in self._ended:
                continue
            if received is None:
                gone.append(row)
            else:
                kept.append(row)
                _add_message(batch, kept, received, offset)
        values["received"] = kept
        values["released"] = gone
        kept = []
        gone = []
        for topic, retained in self._retained.items():
            if retained is None:
                gone.append(topic)
            else:
                _add_message(batch, kept, retained, offset)
        values["retained"] = kept
        values["not retained"] = gone
        kept = []
        gone = []
        for client_id, will in self._wills.items():
            if will is None:
                gone.append(client_id)
            else:
                kept += (client_id, will.delay, will.keep_alive, _moved(will.due_at, offset))
                _add_message(batch, kept, will.message, offset)
        values["wills"] = kept
        values["no wills"] = gone

    def _take_queues(self, batch: Batch, offset: float) -> None:
        messages: Values = []
        deliveries: Values = []
        shared = self._shared
        written: set[int] = set()
        for number, queue in self._queues.items():
            base = number << POSITION_BITS
            for position, delivery in queue.items():
                message = delivery.message
                message_id = delivery.stored_message
                is_shared = message_id in shared
                if not is_shared or message_id not in written:
                    if is_shared:
                        written.add(message_id)
                    messages.append(message_id)
                    _add_message(batch, messages, message, offset)
                row = base | position
                size = len(message.topic) + len(message.payload)
                qos, retain, identifier, share = delivery.qos, delivery.retain, delivery.identifier, delivery.share
                deliveries += (
                    row,
                    message_id,
                    is_shared,
                    size,
                    qos,
                    retain,
                    identifier,
                    share,
                    delivery.packet_id,
                    delivery.state,
                    checksums.of_delivery(row, message_id, is_shared, size, qos, retain, identifier, share),
                )
        values = batch.values
        values["messages"] = messages
        values["deliveries"] = deliveries
        flights: Values = []
        for row, (packet_id, state) in self._flights.items():
            flights += (row, packet_id, state)
        values["flights"] = flights
        gone: Values = []
        gone += self._gone
        values["delivered"] = gone


def _size(message: Message) -> int:
    return len(message.topic) + len(message.payload) + _ROW_BYTES


def _moved(at: float, offset: float) -> float:
    return at + offset if at != NEVER else NEVER


def _add_message(batch: Batch, values: Values, message: Message, offset: float) -> None:
    topic, payload, qos, retain = message.topic, message.payload, message.qos, message.retain
    properties = encode_properties(message.properties) if message.properties is not None else None
    expires_at, arrived_at = _moved(message.expires_at, offset), _moved(message.arrived_at, offset)
    publisher, user = message.publisher, message.publisher_user
    values.append(topic)
    values.append(payload)
    values.append(properties)
    values.append(qos)
    values.append(retain)
    values.append(expires_at)
    values.append(arrived_at)
    values.append(publisher)
    values.append(user)
    values.append(
        checksums.of_message(topic, payload, properties, qos, retain, expires_at, arrived_at, publisher, user)
    )
    prefix = topic.partition("/")[0]
    batch.bytes_by_prefix[prefix] = batch.bytes_by_prefix.get(prefix, 0) + _size(message)
