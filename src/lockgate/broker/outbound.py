"""Messages to clients: queue, in-flight window, and the acknowledgements that empty it (MQTT 5 §4.3, §4.4, §4.9)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from lockgate.broker import shedding
from lockgate.broker.decisions import EXPIRED, NO_LOCAL, NOT_PERMITTED, QUEUE_FULL, SHED, SLOW_READER, TOO_LARGE
from lockgate.broker.memory import DELIVERY_BYTES
from lockgate.broker.ports import (
    AWAITING_PUBACK,
    AWAITING_PUBCOMP,
    AWAITING_PUBREC,
    NEVER,
    QUEUED,
    Delivery,
    Message,
    printable,
    text_bytes,
)
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode_acknowledgement, encode_packet_id, encode_publish_parts
from lockgate.mqtt.packets import PUBREL, V5, Acknowledgement
from lockgate.mqtt.properties import Properties

if TYPE_CHECKING:
    from lockgate.broker.backlog import Backlog
    from lockgate.broker.broker import Broker
    from lockgate.broker.connection import Connection
    from lockgate.broker.session import Session, Subscription

# How well a member of a Shared Subscription could take a message, the best first
READY: Final = 0
BUSY: Final = 1  # connected, but it would have to wait
AWAY: Final = 2
CANNOT_TAKE: Final = 3
MAY_NOT: Final = 4

# Identifiers are taken in turn; a small window stays among those whose encoding is a table look-up.
_SMALL_WINDOW: Final = 512
_SMALL_IDS: Final = 1023
_ALL_IDS: Final = 65535
# Of retained messages for new Subscriptions in one turn: bytes, and nodes visited to find them
_PIECE_BYTES: Final = 131_072
_PIECE_VISITS: Final = 20_000
_LATE_WORK: Final = 8  # of a message for a client that does not read, in deliveries at QoS 0
# What gathers for one client within a turn, in `Limits.output_bytes`; many overlapping Subscriptions bring it there.
_TURN_OUTPUTS: Final = 16


def deliver(broker: Broker, subscription: Subscription, message: Message, now: float) -> int:
    """Hand a message to one Subscription: send it, queue it or count it as dropped.

    Gives the commit number after which the receiver's copy is safe, 0 when nothing has to be waited for.
    """
    session = subscription.session
    if subscription.no_local and message.publisher == session.client_id:  # [MQTT-3.8.3-3]
        broker.decisions.record(NO_LOCAL, session.client_id, message.topic, now)
        return 0
    qos = subscription.qos
    if message.qos < qos and not broker.limits.upgrade_outgoing_qos:
        qos = message.qos
    retain = message.retain and subscription.retain_as_published
    if qos == 0:
        connection = session.connection
        if connection is not None:
            _send_qos_0(broker, connection, message, retain, subscription.identifier, now)
            return 0
        if not broker.limits.queue_qos_0:
            return 0
    share = subscription.requested_filter if subscription.share_name else ""
    return _enqueue(broker, session, message, qos, retain, subscription.identifier, now, share)


def readiness(broker: Broker, subscription: Subscription, message: Message) -> int:
    """Say how well a member of a Shared Subscription could take a message now: READY is best, MAY_NOT worst."""
    session = subscription.session
    permissions = session.permissions
    if permissions is not None and not (permissions.may_receive(message.topic) and permissions.may_keep(subscription)):
        return MAY_NOT
    connection = session.connection
    if message.qos == 0 or subscription.qos == 0:
        if connection is None:
            return CANNOT_TAKE
        return READY if connection.writable else BUSY
    if connection is not None and _is_sendable(broker, connection, session):
        return READY
    if _is_full(broker, session, message) or (connection is None and not session.durable):
        return CANNOT_TAKE
    return BUSY if connection is not None else AWAY


def _has_room(broker: Broker, connection: Connection) -> bool:
    """Whether the peer reads what we write, or not too much is waiting for it."""
    if connection.late:
        return False  # what came before it still waits
    return takes_more(broker, connection) or connection.output_bytes <= broker.memory.output_bytes(
        broker.limits.output_bytes
    )


def takes_more(broker: Broker, connection: Connection) -> bool:
    """Whether a QoS 0 message may be written for a client at once."""
    return connection.writable and connection.output_bytes <= _TURN_OUTPUTS * broker.limits.output_bytes


def _send_qos_0(
    broker: Broker, connection: Connection, message: Message, retain: bool, identifier: int, now: float
) -> None:
    if not takes_more(broker, connection):
        hold_late(broker, connection, message, retain, identifier, now)
        return
    if message.expires_at != NEVER and message.expires_at <= now:
        broker.drop(EXPIRED, _client_id(connection), message.topic, now)
        return
    version = connection.version
    if version == V5 and (identifier or message.expires_at != NEVER or connection.topic_alias_maximum):
        frame, _tail = _encode_for(connection, message, 0, retain, identifier, now)
    elif connection.limits.mount_point:
        frame, _tail = _encode_mounted(connection, message, 0, retain)
    elif retain:
        frame, _tail = message.parts(version, 0, True)
    else:
        frame = message.frame_qos_0(version)
    if connection.maximum_packet_size and len(frame) > connection.maximum_packet_size:
        broker.drop(TOO_LARGE, _client_id(connection), message.topic, now)
        return
    aliases = connection.aliases_out
    if aliases is not None and message.topic not in aliases and len(aliases) < connection.topic_alias_maximum:
        aliases[message.topic] = len(aliases) + 1
        connection.hold(text_bytes(message.topic))
    broker.statistics.publish_bytes_sent += len(message.payload)
    connection.send(frame)


def _client_id(connection: Connection) -> str:
    return connection.session.client_id if connection.session is not None else ""


def hold_late(
    broker: Broker, connection: Connection, message: Message, retain: bool, identifier: int, now: float
) -> None:
    """Keep a QoS 0 message for a client that does not read now, within `Limits.output_bytes`."""
    memory = broker.memory
    limit = memory.output_bytes(broker.limits.output_bytes)
    size = message.size() + DELIVERY_BYTES
    broker.work += _LATE_WORK
    if connection.output_bytes + connection.late_bytes + size > limit or memory.is_exhausted():
        broker.drop(SLOW_READER, _client_id(connection), message.topic, now)
        return
    if connection.late is None:
        connection.late = deque()
    connection.late.append(Delivery(message, 0, retain, identifier, 0))
    connection.late_bytes += size
    memory.hold_delivery(message)
    if memory.is_spent():
        shedding.shed(broker, now)


def _take_late(broker: Broker, connection: Connection, delivery: Delivery) -> None:
    connection.late_bytes -= delivery.message.size() + DELIVERY_BYTES
    broker.memory.release_delivery(delivery.message)


def drop_all_late(broker: Broker, connection: Connection) -> None:
    """Give up all QoS 0 messages kept for a connection that closes."""
    late = connection.late
    while late:
        _take_late(broker, connection, late.popleft())
        broker.statistics.dropped_slow += 1


def drop_late(broker: Broker, connection: Connection, delivery: Delivery, reason: int, now: float) -> None:
    """Give up a QoS 0 message that was taken from `Connection.late`."""
    _take_late(broker, connection, delivery)
    broker.drop(reason, _client_id(connection), delivery.message.topic, now)


def take_all_late(broker: Broker, connection: Connection) -> list[Delivery]:
    """Take the QoS 0 messages that were kept for a connection, for whoever carries them on."""
    late = list(connection.late) if connection.late is not None else []
    connection.late = None
    for delivery in late:
        _take_late(broker, connection, delivery)
    return late


def _pump_late(broker: Broker, connection: Connection, now: float) -> None:
    """Send the QoS 0 messages that were kept, in pieces like the retained ones."""
    late = connection.late
    limit = broker.limits.output_bytes
    while late and connection.writable and connection.output_bytes <= limit:
        delivery = late.popleft()
        _take_late(broker, connection, delivery)
        _send_qos_0(broker, connection, delivery.message, delivery.retain, delivery.identifier, now)


def _encode_for(
    connection: Connection, message: Message, qos: int, retain: bool, identifier: int, now: float
) -> tuple[bytes, bytes]:
    """Encode a PUBLISH that is this version 5 receiver's own.

    Topic Aliases are set up by QoS 0 alone: a QoS 1 or 2 packet may be held back or sent again.
    """
    own = Properties()
    source = message.properties
    if source is not None:
        own.payload_format_indicator = source.payload_format_indicator
        own.content_type = source.content_type
        own.response_topic = source.response_topic
        own.correlation_data = source.correlation_data
        own.user_properties = source.user_properties
    if message.expires_at != NEVER:
        left = message.expires_at - now  # below 0 where it is sent again
        own.message_expiry_interval = int(left + 0.999) if left > 0 else 0  # [MQTT-3.3.2-6]
    if identifier:
        own.subscription_identifiers = (identifier,)
    topic = _topic_for(connection, message)
    if connection.topic_alias_maximum:
        aliases = connection.aliases_out
        if aliases is None:
            aliases = connection.aliases_out = {}
        alias = aliases.get(message.topic)
        if alias is not None:
            own.topic_alias = alias
            topic = b""
        elif len(aliases) < connection.topic_alias_maximum and qos == 0:
            own.topic_alias = len(aliases) + 1  # known to the client once this packet is on its way
    return encode_publish_parts(topic, message.payload, qos, retain, V5, own)


def _topic_for(connection: Connection, message: Message) -> bytes:
    """Give the topic as a client knows it: without the mount point of its listener."""
    return message.topic.removeprefix(connection.limits.mount_point).encode("utf-8")


def _encode_mounted(connection: Connection, message: Message, qos: int, retain: bool) -> tuple[bytes, bytes]:
    """Encode a PUBLISH for a client that does not see the beginning of its topics."""
    properties = message.properties if connection.version == V5 else None
    return encode_publish_parts(
        _topic_for(connection, message), message.payload, qos, retain, connection.version, properties
    )


# --- queue and window ---------------------------------------------------------------------------------------------


def _enqueue(
    broker: Broker,
    session: Session,
    message: Message,
    qos: int,
    retain: bool,
    identifier: int,
    now: float,
    share: str = "",
) -> int:
    connection = session.connection
    if connection is None and not session.durable:
        return 0
    sendable = connection is not None and _is_sendable(broker, connection, session)
    if not sendable and broker.memory.is_exhausted():
        broker.drop(SHED, session.client_id, message.topic, now)
        return 0
    if not sendable and _is_full(broker, session, message):
        broker.drop(QUEUE_FULL, session.client_id, message.topic, now)
        if not session.dropping:
            session.dropping = True
            broker.log.warning(
                f"Outgoing messages are being dropped for client {printable(session.client_id)}: its queue is full"
                " (max_queued_messages, max_queued_bytes)."
            )
        return 0
    delivery = Delivery(message, qos, retain, identifier, 0, share)
    commit = 0
    if session.durable:
        session.last_position += 1
        delivery.position = session.last_position
        commit = broker.change()
        broker.store.append(commit, session.client_id, delivery)
    if sendable and connection is not None:
        broker.memory.hold_delivery(message)
        session.head_position = delivery.position
        session.dropping = False
        _send(broker, connection, session, delivery, now)
        return commit
    _count_in(broker, session, message)
    if session.standing_bytes > 0 and session.queued_bytes > session.standing_bytes:
        broker.overfull.append(session)
    queue = session.queue
    if queue is None:
        queue = session.queue = deque()
    if session.durable:
        head = broker.limits.queue_head
        if session.head_position != delivery.position - 1 or (head and len(queue) >= head):
            return commit  # it lies in the store, and will be asked for
        session.head_position = delivery.position
    queue.append(delivery)
    broker.memory.hold_delivery(message)
    total = shedding.most_queued(broker)
    if broker.memory.is_spent() or (total and broker.queued_count > total):
        shedding.shed(broker, now)
    return commit


def _is_sendable(broker: Broker, connection: Connection, session: Session) -> bool:
    """Whether a message at QoS 1 or 2 could leave at once."""
    return (
        session.queued_count == 0
        and len(session.in_flight) < connection.window
        and _has_room(broker, connection)
        and _bytes_in_window(broker, session)
    )


def _bytes_in_window(broker: Broker, session: Session) -> bool:
    limit = broker.limits.max_inflight_bytes
    return not limit or session.in_flight_bytes < limit or not session.in_flight


def _is_full(broker: Broker, session: Session, message: Message) -> bool:
    if session.standing_bytes >= 0:
        return False  # its publishers wait instead
    limits = broker.limits
    if limits.queue_head and limits.total_queued_messages and broker.queued_count >= limits.total_queued_messages:
        return True  # most of them lie in the store, where none gives way to a younger one
    if limits.max_queued_messages and session.queued_count >= limits.max_queued_messages:
        return True
    return limits.max_queued_bytes != 0 and session.queued_bytes + message.size() > limits.max_queued_bytes


def _send(broker: Broker, connection: Connection, session: Session, delivery: Delivery, now: float) -> None:
    """Put a delivery into the window and its PUBLISH on the way; one that expired or is too large is dropped."""
    message = delivery.message
    qos = delivery.qos
    version = connection.version
    # What was sent once does not expire any more [MQTT-4.3.3-7]: its identifier is known to the client.
    if message.expires_at != NEVER and message.expires_at <= now and not delivery.packet_id:
        broker.drop(EXPIRED, session.client_id, message.topic, now)
        done(broker, session, delivery)
        return
    if version == V5 and (delivery.identifier or message.expires_at != NEVER or connection.aliases_out is not None):
        head, tail = _encode_for(connection, message, qos, delivery.retain, delivery.identifier, now)
    elif connection.limits.mount_point:
        head, tail = _encode_mounted(connection, message, qos, delivery.retain)
    else:
        head, tail = message.parts(version, qos, delivery.retain)
    if connection.maximum_packet_size and len(head) + 2 + len(tail) > connection.maximum_packet_size:
        broker.drop(TOO_LARGE, session.client_id, message.topic, now)  # [MQTT-3.1.2-25]
        _give_up(broker, connection, session, delivery)
        return
    packet_id = delivery.packet_id
    if packet_id:  # it was sent on an earlier connection [MQTT-4.4.0-1]
        head = bytes((head[0] | 0x08,)) + head[1:]
    else:
        packet_id = delivery.packet_id = next_packet_id(session, connection.window)
    delivery.state = AWAITING_PUBACK if qos == 1 else AWAITING_PUBREC
    session.in_flight[packet_id] = delivery
    session.in_flight_bytes += message.size()
    broker.statistics.publish_bytes_sent += len(message.payload)
    if not session.durable:
        connection.deliver_parts(head, encode_packet_id(packet_id), tail, 0)
        return
    commit = broker.change()
    broker.store.update(commit, session.client_id, delivery)
    # A QoS 2 PUBLISH waits until its identifier is safe: a second one under another identifier would be a repetition.
    connection.deliver_parts(head, encode_packet_id(packet_id), tail, commit if qos == 2 else 0)


def _give_up(broker: Broker, connection: Connection, session: Session, delivery: Delivery) -> None:
    """Let go of a delivery that is not sent, or not sent again."""
    if delivery.packet_id and delivery.qos == 2:
        _release(broker, connection, session, delivery)
    else:
        done(broker, session, delivery)


def _release(broker: Broker, connection: Connection, session: Session, delivery: Delivery) -> None:
    """Send PUBREL for a message that cannot be sent again.

    The client may hold its identifier from an earlier connection, and would take a later message under it for this one.
    """
    session.in_flight[delivery.packet_id] = delivery
    session.in_flight_bytes += delivery.message.size()
    commit = _await_pubcomp(broker, session, delivery)
    connection.deliver(encode_acknowledgement(PUBREL, delivery.packet_id, 0, connection.version), commit)


def _await_pubcomp(broker: Broker, session: Session, delivery: Delivery) -> int:
    """Note that PUBREL is on its way; give the commit number that it waits for."""
    delivery.state = AWAITING_PUBCOMP
    if not session.durable:
        return 0
    commit = broker.change()
    broker.store.update(commit, session.client_id, delivery)
    return commit


def next_packet_id(session: Session, window: int) -> int:
    """Take a Packet Identifier that no message in flight has; they are counted up and begin again at 1."""
    highest = _SMALL_IDS if window <= _SMALL_WINDOW else _ALL_IDS
    packet_id = session.next_packet_id
    if packet_id > highest:
        packet_id = 1
    while packet_id in session.in_flight:
        packet_id = packet_id + 1 if packet_id < highest else 1
    session.next_packet_id = packet_id + 1
    return packet_id


def drop_queued(broker: Broker, session: Session, delivery: Delivery, reason: int, now: float) -> None:
    """Give up a delivery that waits; the caller takes it out of the queue."""
    _count_out(broker, session, delivery.message)
    done(broker, session, delivery)
    broker.drop(reason, session.client_id, delivery.message.topic, now)


def _count_in(broker: Broker, session: Session, message: Message) -> None:
    session.queued_count += 1
    session.queued_bytes += message.size()
    broker.queued_count += 1


def _count_out(broker: Broker, session: Session, message: Message) -> None:
    session.queued_count -= 1
    session.queued_bytes -= message.size()
    broker.queued_count -= 1
    if broker.withheld and session.queued_bytes <= session.standing_bytes:
        _end_withholding(broker, session)


def _end_withholding(broker: Broker, session: Session) -> None:
    """Acknowledge what waited for a standing Session."""
    for connection in broker.withheld.pop(session.client_id, _NOBODY).values():
        connection.go_on_acknowledging()


_NOBODY: Final[dict[int, Connection]] = {}


def done(broker: Broker, session: Session, delivery: Delivery) -> None:
    """Let go of a delivery that is acknowledged or given up."""
    broker.memory.release_delivery(delivery.message)
    if session.durable:
        broker.store.acknowledge(broker.change(), session.client_id, delivery.position)


def pump(broker: Broker, connection: Connection, session: Session, now: float) -> None:
    """Send what waits for this client as far as its window and its reading allow."""
    if connection.late:
        _pump_late(broker, connection, now)
    queue = session.queue
    while (
        queue
        and len(session.in_flight) < connection.window
        and _bytes_in_window(broker, session)
        and _has_room(broker, connection)
    ):
        delivery = queue.popleft()
        _count_out(broker, session, delivery.message)
        _send_queued(broker, connection, session, delivery, now)
    if session.head_position < session.last_position and not session.asked_position:
        waiting = len(queue) if queue is not None else 0
        head = broker.limits.queue_head
        if waiting <= head // 2:
            session.asked_position = session.last_position
            broker.store_is_awake = True
            broker.store.want(session.client_id, session.head_position, max(1, head - waiting))
    if connection.backlog is not None:
        _pump_backlog(broker, connection, session, connection.backlog, now)


def _send_queued(broker: Broker, connection: Connection, session: Session, delivery: Delivery, now: float) -> None:
    """Send what waited, if the client may still have it: rules may have changed meanwhile, or its user."""
    message = delivery.message
    permissions = session.permissions
    if permissions is not None and not permissions.may_receive(message.topic):
        broker.drop(NOT_PERMITTED, session.client_id, message.topic, now)
        _give_up(broker, connection, session, delivery)
    elif delivery.qos == 0:
        done(broker, session, delivery)
        _send_qos_0(broker, connection, message, delivery.retain, delivery.identifier, now)
    else:
        _send(broker, connection, session, delivery, now)


def take_loaded(broker: Broker, session: Session, deliveries: list[Delivery], now: float) -> None:
    """Put what the store gave behind the head of a queue and send as far as possible.

    When it has nothing, although there was something to be had, a damaged store has lost it. How much it has lost is
    known when the head reaches the end of the queue.
    """
    asked_position = session.asked_position
    session.asked_position = 0
    if session.queue is None:
        session.queue = deque()
    if not deliveries and session.head_position < asked_position:
        session.head_position = asked_position
    for delivery in deliveries:
        if delivery.position > session.head_position:
            session.queue.append(delivery)
            broker.memory.hold_delivery(delivery.message)
            session.head_position = delivery.position
    if session.head_position == session.last_position:
        _give_up_lost(broker, session, session.queue)
    if session.connection is not None:
        pump(broker, session.connection, session, now)


def _give_up_lost(broker: Broker, session: Session, queue: deque[Delivery]) -> None:
    """Go on without deliveries that should wait and are neither in the head nor in the store."""
    lost = session.queued_count - len(queue)
    if not lost:
        return
    broker.log.warning(f"The store has lost {lost} messages that waited for client {printable(session.client_id)}.")
    broker.statistics.lost += lost
    broker.queued_count -= lost
    session.queued_count = len(queue)
    session.queued_bytes = sum(delivery.message.size() for delivery in queue)
    if session.queued_bytes <= session.standing_bytes:
        _end_withholding(broker, session)


def _pump_backlog(broker: Broker, connection: Connection, session: Session, backlog: Backlog, now: float) -> None:
    """Send retained messages to new Subscriptions, a piece at a time; the shell asks for the next one in its next turn.

    One that was replaced since was delivered as it came, and so was one that came after SUBSCRIBE.
    """
    limit = min(broker.limits.output_bytes, _PIECE_BYTES)
    visits = 0
    while connection.writable and connection.output_bytes <= limit and not connection.acknowledgements_wait:
        message = backlog.first()
        if message is None:
            if not backlog.waiting:
                connection.backlog = None
                return
            if visits > _PIECE_VISITS:
                break
            visits += _look_for_retained(broker, session, backlog, now)
            continue
        subscription = session.subscriptions[backlog.topic_filter]
        qos = message.qos if message.qos < subscription.qos else subscription.qos
        wanted = not (qos and backlog.qos_0_only) and _is_wanted(broker, subscription, message, backlog.since)
        if qos and wanted and (session.queued_count or len(session.in_flight) >= connection.window):
            return
        backlog.step()
        if not wanted:
            continue
        if qos:
            _enqueue(broker, session, message, qos, True, subscription.identifier, now)
        else:
            _send_qos_0(broker, connection, message, True, subscription.identifier, now)
    if connection.writable and not connection.acknowledgements_wait:  # else who changes that goes on here
        connection.touch()


def _look_for_retained(broker: Broker, session: Session, backlog: Backlog, now: float) -> int:
    """Find the retained messages of the next filter; give how many nodes that took to visit."""
    topic_filter = backlog.take_filter()
    subscription = session.subscriptions[topic_filter]
    backlog.begin(topic_filter, broker.retained.match(subscription.topic_filter, now))
    broker.work += broker.retained.visited
    return broker.retained.visited


def _is_wanted(broker: Broker, subscription: Subscription, message: Message, since: float) -> bool:
    session = subscription.session
    if subscription.no_local and message.publisher == session.client_id:
        return False
    if message.arrived_at > since or broker.retained.get(message.topic) is not message:
        return False
    permissions = session.permissions
    if permissions is None:
        return True
    return permissions.looks_receivable(message.topic) and (
        not broker.limits.check_retain_source or _is_backed(broker, message)
    )


def _is_backed(broker: Broker, message: Message) -> bool:
    """Whether who published a retained message might still do so (check_retain_source)."""
    author = message.publisher
    if not author or author in broker.own_sessions:
        return True
    authority = broker.absent_authority  # not that of the receiver, whose listener may be another
    return authority is None or authority.may_publish(author, message.publisher_user, message.topic)


def keep_backlog(broker: Broker, connection: Connection, session: Session, now: float) -> None:
    """Queue the retained messages that a durable Session did not get before its connection ended, as far as they fit.

    How long that may take is bounded, too: what is left then is not queued.
    """
    backlog = connection.backlog
    connection.backlog = None
    if backlog is None or not session.durable:
        return
    visits = 0
    while True:
        message = backlog.first()
        if message is None:
            if not backlog.waiting or visits > _PIECE_VISITS:
                return
            visits += _look_for_retained(broker, session, backlog, now)
            continue
        subscription = session.subscriptions[backlog.topic_filter]
        qos = message.qos if message.qos < subscription.qos else subscription.qos
        if qos and not backlog.qos_0_only and _is_wanted(broker, subscription, message, backlog.since):
            if _is_full(broker, session, message):
                broker.drop(QUEUE_FULL, session.client_id, message.topic, now)
                return
            _enqueue(broker, session, message, qos, True, subscription.identifier, now)
        backlog.step()


def to_hand_on(session: Session) -> list[Delivery]:
    """Give the messages of Shared Subscriptions that a Session which ends leaves to other members (§4.8.2).

    Those it has not got, or at QoS 1 not acknowledged. A QoS 2 message that was sent goes to nobody else
    [MQTT-4.8.2-5], and neither does the part of a long queue that lies in the store.
    """
    found = [
        delivery for delivery in session.in_flight.values() if delivery.share and delivery.state == AWAITING_PUBACK
    ]
    if session.queue is not None:
        found += [one for one in session.queue if one.share and (one.qos == 1 or not one.packet_id)]
    return found


def let_go(broker: Broker, session: Session) -> None:
    """Give back what a Session that ends holds; whoever waited for it need not any more."""
    _end_withholding(broker, session)
    memory = broker.memory
    broker.queued_count -= session.queued_count
    for delivery in session.in_flight.values():
        memory.release_delivery(delivery.message)
    if session.queue is not None:
        for delivery in session.queue:
            memory.release_delivery(delivery.message)
    for message in session.received.values():
        if message is not None:
            memory.release(message)


def begin_anew(broker: Broker, session: Session) -> None:
    """Have the next `resume` send everything in flight as new messages: the other end has lost its Session.

    A QoS 2 message that waited for PUBCOMP may have been passed on there. Rather twice than never.
    """
    for delivery in session.in_flight.values():
        delivery.packet_id = 0
        delivery.state = QUEUED
        if session.durable:
            broker.store.update(broker.change(), session.client_id, delivery)


def resume(broker: Broker, connection: Connection, session: Session, now: float) -> None:
    """Send again, in order, what an earlier connection left unacknowledged, then what waits (§4.4)."""
    unacknowledged = list(session.in_flight.values())
    session.in_flight.clear()
    session.in_flight_bytes = 0
    # A PUBREL that the earlier connection held back may be uncommitted still.
    commit = broker.last_change if session.durable else 0
    again: list[Delivery] = []
    for delivery in unacknowledged:
        if delivery.state == AWAITING_PUBCOMP:
            session.in_flight[delivery.packet_id] = delivery
            session.in_flight_bytes += delivery.message.size()
            connection.deliver(encode_acknowledgement(PUBREL, delivery.packet_id, 0, connection.version), commit)
        else:
            delivery.state = QUEUED
            again.append(delivery)
    if again:
        if session.queue is None:
            session.queue = deque()
        for delivery in reversed(again):
            session.queue.appendleft(delivery)
            _count_in(broker, session, delivery.message)
    pump(broker, connection, session, now)


# --- acknowledgements ---------------------------------------------------------------------------------------------


def handle_puback(
    broker: Broker, connection: Connection, session: Session, packet: Acknowledgement, now: float
) -> None:
    """End a QoS 1 delivery (§4.3.2); an identifier that is not in flight is ignored."""
    delivery = session.in_flight.get(packet.packet_id)
    if delivery is not None and delivery.state == AWAITING_PUBACK:
        _complete(broker, connection, session, delivery, now)


def handle_pubrec(
    broker: Broker, connection: Connection, session: Session, packet: Acknowledgement, now: float
) -> None:
    """Go on with PUBREL, or end a QoS 2 delivery that the client refused (§4.3.3)."""
    packet_id = packet.packet_id
    delivery = session.in_flight.get(packet_id)
    if delivery is None or delivery.state == AWAITING_PUBACK:
        if packet.reason_code >= 0x80:
            return  # nothing follows a refusal [MQTT-4.3.3-4]
        code = reason_codes.PACKET_IDENTIFIER_NOT_FOUND
        connection.deliver(encode_acknowledgement(PUBREL, packet_id, code, connection.version), 0)
        return
    if packet.reason_code >= 0x80:
        _complete(broker, connection, session, delivery, now)
        return
    commit = _await_pubcomp(broker, session, delivery) if delivery.state == AWAITING_PUBREC else 0
    connection.deliver(encode_acknowledgement(PUBREL, packet_id, 0, connection.version), commit)


def handle_pubcomp(
    broker: Broker, connection: Connection, session: Session, packet: Acknowledgement, now: float
) -> None:
    """End a QoS 2 delivery (§4.3.3)."""
    delivery = session.in_flight.get(packet.packet_id)
    if delivery is not None and delivery.state == AWAITING_PUBCOMP:
        _complete(broker, connection, session, delivery, now)


def _complete(broker: Broker, connection: Connection, session: Session, delivery: Delivery, now: float) -> None:
    del session.in_flight[delivery.packet_id]
    session.in_flight_bytes -= delivery.message.size()
    done(broker, session, delivery)
    if session.queued_count or connection.backlog is not None:
        pump(broker, connection, session, now)
