"""The MQTT Server: what all connections share, and what happens without a packet arriving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from lockgate.broker import inbound, outbound, restoring, routing
from lockgate.broker.connection import CONNECTED, Connection
from lockgate.broker.deadlines import CONNECTION, RETAINED, SESSION, STORE, THROTTLE, WILL, Deadlines
from lockgate.broker.decisions import (
    DISCONNECTED,
    EXPIRED,
    NOT_PERMITTED,
    NOT_RETAINED,
    QUEUE_FULL,
    RETAINED_EXPIRED,
    SESSION_ENDED,
    SHED,
    SLOW_READER,
    TOO_LARGE,
    Decisions,
)
from lockgate.broker.limits import Limits, ListenerLimits, ServerInformation
from lockgate.broker.memory import CONNECTION_BYTES, Memory, session_bytes, subscription_bytes
from lockgate.broker.permissions import Permissions
from lockgate.broker.ports import (
    NEVER,
    SESSIONS,
    WILLS,
    Authenticator,
    Authority,
    Control,
    Delivery,
    Log,
    Message,
    Store,
    StoredSession,
    StoredWill,
)
from lockgate.broker.rates import Flapping, Rate
from lockgate.broker.retained import Retained
from lockgate.broker.routing import Router
from lockgate.broker.session import NEVER_EXPIRES, Session
from lockgate.broker.statistics import Statistics
from lockgate.mqtt import reason_codes
from lockgate.mqtt.decoder import PacketRules
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V5, Disconnect
from lockgate.mqtt.properties import Properties

# An expired retained message is never sent; this is how long it may still take up memory.
_RETAINED_SWEEP_SECONDS: Final = 60.0
_RETAINED_SWEPT: Final = 1000  # of them at once; others come in between

_FILTERS_BEYOND: Final = 1000


@final
class Broker:
    """Sessions, routes, retained messages and deadlines of one server; every call is for one thread.

    The shell gives it time as an argument: seconds of a clock that never jumps (CLOCK_BOOTTIME).
    """

    __slots__ = (
        "_address_rate",
        "_addresses",
        "_connections_made",
        "_retained_sweep_at",
        "_store_deadline",
        "absent_authority",
        "authenticator",
        "awaited",
        "committed_number",
        "connect_rate",
        "connections",
        "control",
        "deadlines",
        "decisions",
        "default_authority",
        "flapping",
        "information",
        "last_change",
        "limits",
        "log",
        "memory",
        "new_client_id",
        "no_subscribers_code",
        "overfull",
        "own_sessions",
        "packet_rules",
        "pending",
        "proves_users",
        "qos_0_is_special",
        "queued_count",
        "received_limit",
        "retained",
        "router",
        "sessions",
        "spent_position",
        "statistics",
        "store",
        "store_is_awake",
        "store_problem",
        "tells_connections",
        "touched",
        "waiting",
        "wills",
        "withheld",
        "work",
    )

    def __init__(
        self,
        limits: Limits,
        store: Store,
        log: Log,
        new_client_id: Callable[[], str],
        authenticator: Authenticator | None = None,
        information: ServerInformation | None = None,
    ) -> None:
        self.limits = limits
        self.information = information if information is not None else ServerInformation()
        self.authenticator = authenticator  # of enhanced authentication
        self.control: Control | None = None
        self.default_authority: Authority | None = None  # for bridges of ours that give a user name
        self.absent_authority: Authority | None = None  # over who is not here; by which listener it came, nobody knows
        self.proves_users = False  # somebody looks at user names, be it at another listener
        self.store = store
        self.log = log
        self.tells_connections = True  # connection_messages
        self.new_client_id = new_client_id
        self.statistics = Statistics()
        self.sessions: dict[str, Session] = {}
        self.own_sessions: set[str] = set()  # client ids of bridges: they do not expire, and nobody else gets them
        self.connections: dict[int, Connection] = {}
        self.pending: dict[int, Connection] = {}  # connections whose client is not let in yet, the oldest first
        self.memory = Memory(limits.memory_budget)
        self.decisions = Decisions(limits.decisions)
        self.work = 0  # done for one connection since it was read: deliveries, and more for what costs more
        self.queued_count = 0  # deliveries that wait, of all Sessions
        self.router = Router(limits.routes, limits.ack_after)
        self.retained = Retained()
        self.wills: dict[str, tuple[Message, float]] = {}  # of Sessions without a connection, and when they are due
        self.deadlines = Deadlines(self._is_live)
        self.touched: list[Connection] = []
        self.waiting: list[Connection] = []  # connections that hold packets back until a commit
        self.last_change = 0  # commit number of the youngest change
        self.committed_number = 0
        self.awaited = 0  # commit number that some packet waits for, the highest there was
        self.store_is_awake = True  # it was told something; whoever settles it clears this where it says that it RESTS
        self.store_problem = 0  # the reason code for what cannot be stored now
        self.overfull: list[Session] = []  # standing Sessions that hold too much with the message routed last
        self.withheld: dict[str, dict[int, Connection]] = {}  # who waits for a standing Session, by client id
        self.spent_position = 0  # of deliveries in queues that were dropped; a new Session begins behind it
        self.no_subscribers_code = 0  # of the message routed last
        self._derive(limits)
        self._connections_made = 0
        self._retained_sweep_at = NEVER
        self._store_deadline = NEVER
        self._addresses: dict[str, int] = {}  # connections of each address, where they are limited

    # --- connections ---------------------------------------------------------------------------------------------

    def connect(self, peer: str, limits: ListenerLimits, now: float, address: str = "") -> Connection:
        """Take a Network Connection that was accepted.

        `peer` is its address and port for the log, `address` is counted against the limits of an address: empty for a
        trusted proxy and for what has none.
        """
        self._connections_made += 1
        connection = Connection(self, self._connections_made, peer, limits, now)
        self.connections[connection.number] = connection
        self.pending[connection.number] = connection
        self.statistics.connections_accepted += 1
        self.memory.used += CONNECTION_BYTES
        self.watch(connection)
        if address:
            self.count_address(connection, address, now)
        if self.limits.pending_logins and len(self.pending) > self.limits.pending_logins:
            next(iter(self.pending.values())).close("too many connections wait to be let in, and it is the oldest")
        return connection

    def count_address(self, connection: Connection, address: str, now: float) -> None:
        """Count a connection against the limits of its address, where that is known later than the connection."""
        limit = self.limits.connections_per_address
        if limit:
            count = self._addresses.get(address, 0)
            self._addresses[address] = count + 1
            connection.address = address
            if count >= limit:
                connection.close("connections_per_address is reached")
        if not self._address_rate.allows(address, now):
            connection.close("connect_rate_per_address is reached")

    def login_answered(self, number: int, permitted: bool, now: float) -> None:
        """Say whether the client of a connection is let in, whose `Authority.ask_login` was answered with LATER."""
        connection = self.connections.get(number)
        if connection is not None:
            connection.answer_login(permitted, now)

    def rules_changed(self) -> None:
        """Say that rules are others now, or other authorities asked: what was remembered of the old is forgotten."""
        self.router.forget_all()
        for session in self.sessions.values():
            connection, permissions = session.connection, session.permissions
            authority = connection.limits.authority if connection is not None else self.absent_authority
            if session.client_id in self.own_sessions:
                authority = None
            if permissions is not None:
                permissions.forget()
            if authority is None:
                session.permissions = None
            elif (
                permissions is None
                or permissions.authority is not authority
                or permissions.username != session.username
            ):
                session.permissions = Permissions(authority, session.client_id, session.username, self.memory)

    def reload(self, limits: Limits, information: ServerInformation) -> None:
        """Go on with other limits. What is there and goes beyond them stays until it is used up."""
        self.limits = limits
        self.information = information
        self.memory.set_budget(limits.memory_budget)
        self.router.ack_after = limits.ack_after
        self._derive(limits)
        self.rules_changed()

    def _derive(self, limits: Limits) -> None:
        """Set what follows from the limits."""
        self.connect_rate = Rate(limits.connect_rate)
        self.flapping = Flapping(limits.flapping_connects, limits.flapping_window, limits.flapping_hold_off)
        self._address_rate = Rate(limits.connect_rate_per_address)
        self.router.one_copy = not limits.allow_duplicate_messages
        # It does not simply go to whoever is connected.
        self.qos_0_is_special = limits.upgrade_outgoing_qos or limits.queue_qos_0
        # A SUBSCRIBE somewhat beyond what a client may have is told so for each filter, one far beyond is no mistake.
        filters = limits.subscriptions + _FILTERS_BEYOND if limits.subscriptions else 0
        self.packet_rules = PacketRules(limits.topic_bytes, limits.topic_levels, limits.user_properties, filters)
        # QoS 2 messages of one client between PUBREC and PUBREL
        window = limits.max_inflight_messages or 65535
        self.received_limit = min(65535, window + (limits.max_queued_messages or 65535))

    def tell(self, text: str) -> None:
        """Log who comes and goes, where that is wanted (connection_messages)."""
        if self.tells_connections:
            self.log.notice(text)

    def disconnect(self, client_id: str, reason_code: int, detail: str, now: float) -> bool:
        """Close the connection of a client, if it has one; say whether it had."""
        session = self.sessions.get(client_id)
        connection = session.connection if session is not None else None
        if connection is None:
            return False
        connection.close_with(reason_code, detail)
        self.detach(connection, now, False)
        return True

    def give_session(self, client_id: str, username: str | None, now: float) -> bool:
        """Make a Session that of a user, or of nobody; say whether there is one.

        Whoever has it now is disconnected: it may be somebody else's.
        """
        session = self.sessions.get(client_id)
        if session is None:
            return False
        self.memory.used += session_bytes(client_id, username) - session_bytes(client_id, session.username)
        session.username = username
        self.disconnect(client_id, reason_codes.ADMINISTRATIVE_ACTION, "its session was given to somebody", now)
        if self.sessions.get(client_id) is not session:  # it ended with its connection
            return True
        if session.durable:
            stored = StoredSession(session.expiry_interval, session.expires_at, username)
            self.store.set(self.change(), SESSIONS, (client_id,), stored)
        self.rules_changed()
        return True

    def drop_session(self, client_id: str, now: float) -> bool:
        """End a Session and the connection of its client, whose Will is published; say whether there was one."""
        session = self.sessions.get(client_id)
        if session is None:
            return False
        self.disconnect(client_id, reason_codes.ADMINISTRATIVE_ACTION, "its session was dropped", now)
        if self.sessions.get(client_id) is session:
            self.end_session(session, now, "an operator dropped it")
        restoring.stand_again(self, client_id, now)
        return True

    def watch(self, connection: Connection) -> None:
        """See to it that a connection is looked at when its deadline comes, unless that is seen to already."""
        deadline = connection.deadline()
        if deadline < connection.watched_at:
            connection.watched_at = deadline
            self.deadlines.add(deadline, CONNECTION, str(connection.number))

    def connection_lost(self, connection: Connection, now: float) -> None:
        """Say that the socket of a connection is closed, by whomever."""
        if self.connections.pop(connection.number, None) is not None:
            self._let_go(connection)
        reason = connection.closing_reason
        if connection.client_name:
            told = f": {reason}" if reason else ""
            self.tell(f"Client {connection.client_name} [{connection.peer}] disconnected{told}.")
        elif reason:
            self.tell(f"Client [{connection.peer}] disconnected: {reason}.")
        connection.close("")
        self.detach(connection, now, False)

    def _let_go(self, connection: Connection) -> None:
        self.pending.pop(connection.number, None)
        for waiting in self.withheld.values():
            waiting.pop(connection.number, None)
        self.memory.used -= CONNECTION_BYTES
        connection.hold(-connection.held_bytes)
        connection.count_unsent(-connection.output_bytes)
        address = connection.address
        if address:
            count = self._addresses[address] - 1
            if count:
                self._addresses[address] = count
            else:
                del self._addresses[address]

    def expire_later(self, session: Session, now: float) -> bool:
        """Have the expiry of a Session begin now; say whether it ever comes."""
        interval = session.expiry_interval
        if interval == NEVER_EXPIRES:
            if session.standing_bytes >= 0 or session.client_id in self.own_sessions:
                return False
            interval = self.limits.persistent_client_expiration
            if not interval:
                return False
        session.expires_at = now + interval
        return True

    def watch_session(self, session: Session) -> None:
        """See to it that a Session is looked at when it expires."""
        if session.expires_at < session.watched_at:
            session.watched_at = session.expires_at
            self.deadlines.add(session.expires_at, SESSION, session.client_id)

    def drop(self, reason: int, client_id: str, topic: str, now: float) -> None:
        """Count and remember that a message is not delivered to a client."""
        statistics = self.statistics
        if reason == QUEUE_FULL:
            statistics.dropped_queue_full += 1
        elif reason == SLOW_READER:
            statistics.dropped_slow += 1
        elif reason == EXPIRED:
            statistics.dropped_expired += 1
        elif reason == NOT_PERMITTED:
            statistics.dropped_not_permitted += 1
        elif reason == TOO_LARGE:
            statistics.dropped_too_large += 1
        elif reason == NOT_RETAINED:
            statistics.not_retained += 1
        elif reason == SHED:
            statistics.dropped_shed += 1
        self.decisions.record(reason, client_id, topic, now)
        session = self.sessions.get(client_id)
        if session is not None:
            session.dropped += 1

    def take_touched(self) -> list[Connection]:
        """Give the connections that have output or are to be closed since the last call."""
        touched = self.touched
        self.touched = []
        for connection in touched:
            connection.touched = False
        return touched

    def detach(self, connection: Connection, now: float, session_ends: bool) -> None:
        """Part a Session from its connection: its Will, its expiry, its end (§3.1.2.5, §3.1.2.11.2)."""
        session = connection.session
        if session is None or session.connection is not connection:
            return
        session.connection = None
        connection.session = None
        session.disconnected_at = now
        self.decisions.record(DISCONNECTED, session.client_id, "", now, connection.closing_reason)
        outbound.keep_backlog(self, connection, session, now)
        will = connection.will
        connection.will = None
        if will is not None:
            delay = min(connection.will_delay, session.expiry_interval)
            if delay == 0 or session_ends:
                self._publish_will(session.client_id, will, session.permissions, now)
            else:
                self.defer_will(session.client_id, will, now + delay)
                stored_will = StoredWill(will, delay, connection.keep_alive_seconds, now + delay)
                self.store.set(self.change(), WILLS, (session.client_id,), stored_will)
        if session.expiry_interval == 0:
            self.end_session(session, now, "its Session Expiry Interval is 0")
            restoring.stand_again(self, session.client_id, now)
        elif self.expire_later(session, now):
            self.watch_session(session)
            stored = StoredSession(session.expiry_interval, session.expires_at, session.username)
            self.store.set(self.change(), SESSIONS, (session.client_id,), stored)

    def defer_will(self, client_id: str, will: Message, at: float) -> None:
        """Publish a Will later, unless its client returns before."""
        self.wills[client_id] = (will, at)
        self.deadlines.add(at, WILL, client_id)

    def _publish_will(self, client_id: str, will: Message, permissions: Permissions | None, now: float) -> None:
        properties = will.properties
        if properties is not None and properties.message_expiry_interval is not None:
            will.expires_at = now + properties.message_expiry_interval
        self.memory.release(will)
        if inbound.may_publish(will.topic) and (permissions is None or permissions.may_publish(will.topic)):
            routing.publish(self, will, now)
        self.store.delete(self.change(), WILLS, (client_id,))

    # --- sessions ------------------------------------------------------------------------------------------------

    def end_session(self, session: Session, now: float, reason: str) -> None:
        """End a Session and all it holds; a Will that was still delayed is published now [MQTT-3.1.3-9]."""
        for subscription in session.subscriptions.values():
            self.router.remove(subscription)
            self.memory.used -= subscription_bytes(subscription.requested_filter)
        self.memory.used -= session_bytes(session.client_id, session.username)
        session.subscriptions.clear()
        self.sessions.pop(session.client_id, None)
        self.decisions.record(SESSION_ENDED, session.client_id, "", now, reason)
        orphans = outbound.to_hand_on(session)
        outbound.let_go(self, session)
        if session.durable:
            self._forget(session)
        for delivery in orphans:
            routing.hand_on(self, delivery, now)
        pending = self.wills.pop(session.client_id, None)
        if pending is not None:
            self._publish_will(session.client_id, pending[0], session.permissions, now)
        if session.permissions is not None:
            session.permissions.forget()

    def _forget(self, session: Session) -> None:
        # A late answer to the old Session's `Store.want` must find none of its positions in a new one of the same name.
        self.spent_position = max(self.spent_position, session.last_position)
        self.store.end_session(self.change(), session.client_id)

    # --- the store -----------------------------------------------------------------------------------------------

    def change(self) -> int:
        """Give the commit number of the next change."""
        self.last_change += 1
        self.store_is_awake = True
        return self.last_change

    def committed(self, number: int, now: float) -> None:
        """Say that every change up to this number is safe; what waited for it leaves now."""
        if number > self.committed_number:
            self.committed_number = number
        recovers = self.store_problem != 0
        self.store_problem = 0
        waiting = self.waiting
        self.waiting = []
        for connection in waiting:
            if connection.release(self.committed_number):
                self.waiting.append(connection)
            if connection.backlog is not None and connection.state == CONNECTED and connection.session is not None:
                outbound.pump(self, connection, connection.session, now)
        if recovers:
            for connection in list(self.connections.values()):
                if connection.unanswered:
                    self._close_unstored(connection, now)

    def store_failed(self, reason_code: int, now: float) -> None:
        """Say that nothing can be stored: who waits for it is refused, or closed when that lasts, until `committed`."""
        if not self.store_problem:
            self._store_deadline = now + self.limits.store_patience
            self.deadlines.add(self._store_deadline, STORE, "")
        self.store_problem = reason_code
        for connection in list(self.waiting):
            connection.refuse_waiting(reason_code)
        self.waiting = [one for one in self.waiting if one.waits and not one.is_closing]

    def _close_impatient(self, now: float) -> None:
        for connection in list(self.connections.values()):
            if connection.unanswered or connection.waits_for_store:
                self._close_unstored(connection, now)
        self._store_deadline = now + self.limits.store_patience
        self.deadlines.add(self._store_deadline, STORE, "")

    def _close_unstored(self, connection: Connection, now: float) -> None:
        """Close who has no answer: it will come again and ask anew."""
        connection.close_with(reason_codes.QUOTA_EXCEEDED, "what it sent cannot be stored")
        self.detach(connection, now, False)

    def loaded(self, client_id: str, deliveries: list[Delivery], now: float) -> None:
        """Take the answer to `Store.want`: the next deliveries of a queue, in order."""
        session = self.sessions.get(client_id)
        if session is None or not session.durable:
            return
        outbound.take_loaded(self, session, deliveries, now)

    # --- time ----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Give when `expire` has to be called next, or None."""
        return self.deadlines.next()

    def expire(self, now: float) -> None:
        """Do what is due: close silent connections, end Sessions, publish delayed Wills."""
        for at, kind, subject in self.deadlines.due(now):
            if kind == CONNECTION:
                self._expire_connection(int(subject), at, now)
            elif kind == SESSION:
                session = self.sessions.get(subject)
                if session is not None and at == session.watched_at:
                    session.watched_at = float("inf")
                    if session.expires_at != NEVER and session.expires_at <= now:
                        self.statistics.sessions_expired += 1
                        self.end_session(session, now, "it expired")
                        restoring.stand_again(self, session.client_id, now)
                    elif session.expires_at != NEVER:
                        self.watch_session(session)
            elif kind == THROTTLE:
                connection = self.connections.get(int(subject))
                if connection is not None and connection.throttled and connection.throttled_until <= now:
                    connection.go_on(now)
            elif kind == RETAINED:
                self._expire_retained(now)
            elif kind == STORE:
                if self.store_problem and at == self._store_deadline:
                    self._close_impatient(now)
            else:
                pending = self.wills.get(subject)
                if pending is not None and pending[1] <= now:
                    del self.wills[subject]
                    self._publish_will(subject, pending[0], self._permissions(subject, pending[0]), now)

    def watch_retained(self, now: float) -> None:
        """See to it that retained messages are looked at when some of them expire."""
        if self._retained_sweep_at == NEVER and self.retained.any_expires:
            self._retained_sweep_at = now + _RETAINED_SWEEP_SECONDS
            self.deadlines.add(self._retained_sweep_at, RETAINED, "")

    def _expire_retained(self, now: float) -> None:
        self._retained_sweep_at = NEVER
        for _number in range(_RETAINED_SWEPT):
            message = self.retained.next_expired(now)
            if message is None:
                self.watch_retained(now)
                return
            routing.forget_retained(self, message)
            self.decisions.record(RETAINED_EXPIRED, message.publisher, message.topic, now)
        self._retained_sweep_at = now
        self.deadlines.add(now, RETAINED, "")

    def _is_live(self, at: float, kind: int, subject: str) -> bool:
        """Whether a deadline still means something."""
        if kind == CONNECTION:
            connection = self.connections.get(int(subject))
            return connection is not None and connection.watched_at == at
        if kind == SESSION:
            session = self.sessions.get(subject)
            return session is not None and session.watched_at == at
        if kind == THROTTLE:
            connection = self.connections.get(int(subject))
            return connection is not None and connection.throttled and connection.throttled_until == at
        if kind == RETAINED:
            return self._retained_sweep_at == at
        if kind == STORE:
            return self.store_problem != 0 and self._store_deadline == at
        pending = self.wills.get(subject)
        return pending is not None and pending[1] == at

    def _expire_connection(self, number: int, at: float, now: float) -> None:
        connection = self.connections.get(number)
        if connection is None or at != connection.watched_at:
            return
        connection.watched_at = float("inf")
        if connection.deadline() > now:
            self.watch(connection)
            return
        connection.close("exceeded timeout" if connection.state == CONNECTED else "it was not let in in time")
        self.detach(connection, now, False)

    def stop(self, now: float) -> None:
        """End in order: every Will is published at once, delays ignored, as Mosquitto does, or is kept in the store."""
        for connection in list(self.connections.values()):
            will = connection.will
            if will is not None and connection.session is not None:
                connection.will = None
                self._end_will(connection.session.client_id, will, now)
        for client_id in list(self.wills):
            message, _due = self.wills.pop(client_id)
            self._end_will(client_id, message, now)
        if self.information.reference:  # said last: nothing may follow it [MQTT-3.14.4-1]
            code = self.information.redirection()
            frame = encode(Disconnect(code, Properties(server_reference=self.information.reference)), V5)
            for connection in self.connections.values():
                if connection.version == V5 and connection.state == CONNECTED and connection.fits(frame):
                    connection.send(frame)

    def _end_will(self, client_id: str, will: Message, now: float) -> None:
        if self.limits.keep_wills:
            self.memory.release(will)
        else:
            self._publish_will(client_id, will, self._permissions(client_id, will), now)

    def _permissions(self, client_id: str, will: Message) -> Permissions | None:
        """Give whom to ask about a Will, whose Session may have ended with the process that served it."""
        session = self.sessions.get(client_id)
        if session is not None:
            return session.permissions
        authority = self.absent_authority
        return Permissions(authority, client_id, will.publisher_user, self.memory) if authority is not None else None
