"""From a message to its receivers: retained first, then every Subscription that matches (MQTT 5 §4.7, §3.3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from lockgate.broker import outbound, shedding
from lockgate.broker.decisions import CLEARED, NOT_RETAINED
from lockgate.broker.memory import retained_bytes
from lockgate.broker.ports import NEVER, RETAINED, Delivery, Message
from lockgate.broker.topic_tree import Route, SharedGroup, TopicTree
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import PUBLISH, V5
from lockgate.mqtt.topics import matches, split_shared

if TYPE_CHECKING:
    from lockgate.broker.broker import Broker
    from lockgate.broker.session import Subscription

# Of a Shared Subscription whose members are all busy; a larger one makes no message slower than this.
_MEMBERS_ASKED: Final = 64


_RECEIVERS_EACH: Final = 32
_LONG_TOPIC: Final = 512  # characters; longer ones are not remembered


@final
class Router:
    """The topic tree with a bounded memory of the routes it found: so many topics, 32 receivers for each on average.

    A changed Subscription forgets the routes it could touch: one topic when it has no wildcard, the topics with its
    first level when that is no wildcard, else all.
    """

    __slots__ = (
        "_by_first_level",
        "_limit",
        "_receivers",
        "_receivers_limit",
        "_remembered",
        "_routes",
        "ack_after",
        "one_copy",
        "tree",
        "visits",
    )

    def __init__(self, limit: int, ack_after: tuple[tuple[str, bool], ...] = ()) -> None:
        self.tree = TopicTree()
        self.ack_after = ack_after
        self._limit = limit
        self._routes: dict[str, Route] = {}
        self._by_first_level: dict[str, list[str]] = {}
        self._remembered = 0  # routes and receivers since all were forgotten, whether or not one was forgotten alone
        self.visits = 0  # nodes of the tree, for routes that were not remembered; whoever counts the work clears it
        self._receivers = 0
        self._receivers_limit = limit * _RECEIVERS_EACH
        self.one_copy = False  # for clients before version 5, whichever of their Subscriptions match

    def route(self, topic: str) -> Route:
        """Give the receivers of a topic."""
        route = self._routes.get(topic)
        if route is None:
            route = self.tree.match(topic)
            self.visits += self.tree.visits
            if route.subscriptions:
                _keep_permitted(route, topic)
                if self.one_copy:
                    _keep_one_copy(route)
            receivers = len(route.subscriptions) + len(route.groups)
            if len(topic) > _LONG_TOPIC or receivers > self._receivers_limit // 4:
                return route
            if self._remembered >= self._limit or self._receivers + receivers > self._receivers_limit:
                self.forget_all()
            self._remembered += 1
            self._receivers += receivers
            self._routes[topic] = route
            first = topic.partition("/")[0]
            topics = self._by_first_level.get(first)
            if topics is None:
                self._by_first_level[first] = [topic]
            else:
                topics.append(topic)
        return route

    def acknowledges_on_disk(self, topic: str) -> bool:
        """Whether what a topic's messages change has to be on disk before they are acknowledged."""
        for topic_filter, on_disk in self.ack_after:
            if matches(topic_filter, topic):
                return on_disk
        return True

    def add(self, subscription: Subscription) -> None:
        """Add a Subscription, or replace its Session's earlier one to the same filter."""
        self.tree.add(subscription.topic_filter, subscription.share_name, subscription)
        self._forget(subscription.topic_filter)

    def remove(self, subscription: Subscription) -> None:
        """Remove a Subscription."""
        self.tree.remove(subscription.topic_filter, subscription.share_name, subscription.session.client_id)
        self._forget(subscription.topic_filter)

    def _forget(self, topic_filter: str) -> None:
        if "+" not in topic_filter and "#" not in topic_filter:
            self._routes.pop(topic_filter, None)
            return
        first = topic_filter.partition("/")[0]
        if first in ("+", "#"):
            self.forget_all()
            return
        for topic in self._by_first_level.pop(first, ()):
            self._routes.pop(topic, None)

    def forget_all(self) -> None:
        """Forget every route: who may receive what has changed."""
        self._routes.clear()
        self._by_first_level.clear()
        self._remembered = 0
        self._receivers = 0


def _keep_permitted(route: Route, topic: str) -> None:
    """Leave out who may not receive a topic; members of a group are asked when it is their turn."""
    route.subscriptions = [one for one in route.subscriptions if _is_permitted(one, topic)]


def _is_permitted(subscription: Subscription, topic: str) -> bool:
    permissions = subscription.session.permissions
    return permissions is None or (permissions.looks_receivable(topic) and permissions.may_keep(subscription))


def _keep_one_copy(route: Route) -> None:
    """Leave each Session before version 5 the Subscription with its highest QoS."""
    best: dict[str, Subscription] = {}
    for subscription in route.subscriptions:
        session = subscription.session
        if session.version != V5:
            other = best.get(session.client_id)
            if other is None or other.qos < subscription.qos:
                best[session.client_id] = subscription
    route.subscriptions = [
        one for one in route.subscriptions if one.session.version == V5 or best[one.session.client_id] is one
    ]


def publish(broker: Broker, message: Message, now: float) -> int:
    """Retain a message if it asks for that and hand it to its receivers.

    Gives the commit number that its acknowledgement has to wait for, 0 for none. Leaves the reason code for "nobody is
    subscribed" in `broker.no_subscribers_code`, and in `broker.overfull` whom its publisher has to wait for.
    """
    commit = 0
    if broker.overfull:
        broker.overfull = []
    message.arrived_at = now
    if message.retain:
        commit = _retain(broker, message, now)
    route = broker.router.route(message.topic)
    subscriptions = route.subscriptions
    broker.no_subscribers_code = 0
    broker.work += broker.router.visits + (len(subscriptions) if message.qos == 0 else len(subscriptions) << 3)
    broker.router.visits = 0
    if not subscriptions and not route.groups:
        broker.no_subscribers_code = reason_codes.NO_MATCHING_SUBSCRIBERS
        return commit
    if message.qos == 0 and message.expires_at == NEVER and not broker.qos_0_is_special:
        _fan_out_qos_0(broker, message, subscriptions, now)
    else:
        for subscription in subscriptions:
            number = outbound.deliver(broker, subscription, message, now)
            if number > commit:
                commit = number
    for group in route.groups:
        number = _deliver_to_one(broker, group, message, now)
        if number > commit:
            commit = number
    if commit and not broker.router.acknowledges_on_disk(message.topic):
        return 0
    return commit


def _deliver_to_one(broker: Broker, group: SharedGroup, message: Message, now: float) -> int:
    """Hand a message to the member whose turn it is, passing over those that are away or full (§4.8.2)."""
    members = group.in_turn()
    count = len(members)
    chosen: Subscription | None = None
    chosen_place = 0
    best = outbound.MAY_NOT
    for step in range(min(count, _MEMBERS_ASKED)):
        place = (group.turn + step) % count
        readiness = outbound.readiness(broker, members[place], message)
        if readiness < best:
            best = readiness
            chosen = members[place]
            chosen_place = place
            if readiness == outbound.READY:
                break
    if chosen is None:
        return 0
    group.turn = chosen_place + 1
    return outbound.deliver(broker, chosen, message, now)


def hand_on(broker: Broker, delivery: Delivery, now: float) -> None:
    """Give a message of a Shared Subscription, whose Session ended before it had it, to another member."""
    share_name, topic_filter = split_shared(delivery.share)
    group = broker.router.tree.group(topic_filter, share_name)
    if group is not None:
        _deliver_to_one(broker, group, delivery.message, now)


def _fan_out_qos_0(broker: Broker, message: Message, subscriptions: list[Subscription], now: float) -> None:
    """The quick way: one encoding for each version, appended to the output of everybody who is connected."""
    sent = 0
    for subscription in subscriptions:
        connection = subscription.session.connection
        if connection is None:
            continue
        if (
            not subscription.plain
            or connection.topic_alias_maximum
            or connection.maximum_packet_size
            or connection.limits.mount_point
        ):
            outbound.deliver(broker, subscription, message, now)
            continue
        if not outbound.takes_more(broker, connection):
            outbound.hold_late(broker, connection, message, False, 0, now)
            continue
        frame = message.frame_qos_0(connection.version)
        connection.output.append(frame)
        connection.output_bytes += len(frame)
        if not connection.touched:
            connection.touched = True
            broker.touched.append(connection)
        sent += 1
    broker.statistics.sent[PUBLISH] += sent
    broker.statistics.publish_bytes_sent += sent * len(message.payload)


def may_retain(broker: Broker, message: Message) -> bool:
    """Whether there is room for a retained message, which may replace another one or remove it."""
    return not message.payload or _has_room(broker, message, broker.retained.get(message.topic))


def _has_room(broker: Broker, message: Message, old: Message | None) -> bool:
    """Whether a message may be retained in place of the old one of its topic."""
    limits = broker.limits
    retained = broker.retained
    if old is None and limits.retained_messages and retained.count >= limits.retained_messages:
        return False
    grows = message.size() - (old.size() if old is not None else 0)
    if limits.retained_bytes and grows > 0 and retained.size_bytes + grows > limits.retained_bytes:
        return False
    return grows <= 0 or not broker.memory.is_exhausted()


def _retain(broker: Broker, message: Message, now: float) -> int:
    """Keep, replace or remove the retained message of a topic [MQTT-3.3.1-5, 3.3.1-6]."""
    memory = broker.memory
    old = broker.retained.get(message.topic)
    if not message.payload:
        if old is None:
            return 0
        number = forget_retained(broker, old)
        broker.decisions.record(CLEARED, message.publisher, message.topic, now)
    else:
        if not _has_room(broker, message, old):
            broker.drop(NOT_RETAINED, message.publisher, message.topic, now)
            return 0
        keep_in_memory(broker, message)
        number = broker.change()
        broker.store.set(number, RETAINED, (message.topic,), message)
        broker.watch_retained(now)
    if memory.is_spent():
        shedding.shed(broker, now)
    return number if message.qos else 0


def keep_in_memory(broker: Broker, message: Message) -> None:
    """Make a message the retained one of its topic, without a word to the store."""
    old = broker.retained.get(message.topic)
    broker.retained.set(message)
    broker.memory.hold(message)
    broker.memory.used += retained_bytes(message.topic)
    if old is not None:
        _let_go(broker, old)


def forget_retained(broker: Broker, message: Message) -> int:
    """Remove a retained message; give the commit number of the change."""
    broker.retained.remove(message.topic)
    _let_go(broker, message)
    number = broker.change()
    broker.store.delete(number, RETAINED, (message.topic,))
    return number


def _let_go(broker: Broker, message: Message) -> None:
    broker.memory.release(message)
    broker.memory.used -= retained_bytes(message.topic)
