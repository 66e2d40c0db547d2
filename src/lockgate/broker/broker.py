"""The MQTT Server: what all connections share, and what happens without a packet arriving."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from lockgate.broker import inbound, outbound, routing
from lockgate.broker.connection import CONNECTED, Connection
from lockgate.broker.deadlines import CONNECTION, SESSION, WILL, Deadlines
from lockgate.broker.limits import Limits, ListenerLimits
from lockgate.broker.ports import (
    NEVER,
    RECEIVED,
    SESSIONS,
    SUBSCRIPTIONS,
    WILLS,
    Authenticator,
    Delivery,
    Log,
    Message,
    Store,
    StoredSession,
)
from lockgate.broker.retained import Retained
from lockgate.broker.routing import Router
from lockgate.broker.session import NEVER_EXPIRES, Session
from lockgate.broker.statistics import Statistics
from lockgate.mqtt.decoder import TopicNames


@final
class Broker:
    """Sessions, routes, retained messages and deadlines of one server; every call is for one thread.

    The shell gives it time as an argument: seconds of a clock that never jumps (CLOCK_BOOTTIME).
    """

    __slots__ = (
        "_connections_made",
        "authenticator",
        "committed_number",
        "connections",
        "deadlines",
        "last_change",
        "limits",
        "log",
        "new_client_id",
        "no_subscribers_code",
        "received_limit",
        "retained",
        "router",
        "sessions",
        "spent_position",
        "statistics",
        "store",
        "topic_names",
        "touched",
        "waiting",
        "wills",
    )

    def __init__(
        self,
        limits: Limits,
        store: Store,
        log: Log,
        new_client_id: Callable[[], str],
        authenticator: Authenticator | None = None,
    ) -> None:
        self.limits = limits
        self.authenticator = authenticator  # of enhanced authentication
        self.store = store
        self.log = log
        self.new_client_id = new_client_id
        self.statistics = Statistics()
        self.sessions: dict[str, Session] = {}
        self.connections: dict[int, Connection] = {}
        self.router = Router(limits.routes)
        self.retained = Retained()
        self.wills: dict[str, tuple[Message, float]] = {}  # of Sessions without a connection, and when they are due
        self.deadlines = Deadlines(self._is_live)
        self.topic_names = TopicNames()
        self.touched: list[Connection] = []
        self.waiting: list[Connection] = []  # connections that hold packets back until a commit
        self.last_change = 0  # commit number of the youngest change
        self.committed_number = 0
        self.spent_position = 0  # of deliveries in queues that were dropped; a new Session begins behind it
        self.no_subscribers_code = 0  # of the message routed last
        # QoS 2 messages of one client between PUBREC and PUBREL
        window = limits.max_inflight_messages or 65535
        self.received_limit = min(65535, window + (limits.max_queued_messages or 65535))
        self._connections_made = 0

    # --- connections ---------------------------------------------------------------------------------------------

    def connect(self, peer: str, limits: ListenerLimits, now: float) -> Connection:
        """Take a Network Connection that was accepted; `peer` is its address for the log."""
        self._connections_made += 1
        connection = Connection(self, self._connections_made, peer, limits, now)
        self.connections[connection.number] = connection
        self.statistics.connections_accepted += 1
        self.watch(connection)
        return connection

    def watch(self, connection: Connection) -> None:
        """See to it that a connection is looked at when its deadline comes, unless that is seen to already."""
        deadline = connection.deadline()
        if deadline < connection.watched_at:
            connection.watched_at = deadline
            self.deadlines.add(deadline, CONNECTION, str(connection.number))

    def connection_lost(self, connection: Connection, now: float) -> None:
        """Say that the socket of a connection is closed, by whomever."""
        self.connections.pop(connection.number, None)
        reason = connection.closing_reason
        if connection.client_name:
            told = f": {reason}" if reason else ""
            self.log.notice(f"Client {connection.client_name} [{connection.peer}] disconnected{told}.")
        elif reason:
            self.log.notice(f"Client [{connection.peer}] disconnected: {reason}.")
        connection.close("")
        self.detach(connection, now, False)

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
        outbound.keep_backlog(self, connection, session, now)
        will = connection.will
        connection.will = None
        if will is not None:
            delay = min(connection.will_delay, session.expiry_interval)
            if delay == 0 or session_ends:
                self._publish_will(session.client_id, will, now)
            else:
                self.wills[session.client_id] = (will, now + delay)
                self.deadlines.add(now + delay, WILL, session.client_id)
        if session.expiry_interval == 0:
            self.end_session(session, now)
        elif session.expiry_interval != NEVER_EXPIRES:
            session.expires_at = now + session.expiry_interval
            self.deadlines.add(session.expires_at, SESSION, session.client_id)
            stored = StoredSession(session.expiry_interval, session.expires_at, session.username)
            self.store.set(self.change(), SESSIONS, (session.client_id,), stored)

    def _publish_will(self, client_id: str, will: Message, now: float) -> None:
        properties = will.properties
        if properties is not None and properties.message_expiry_interval is not None:
            will.expires_at = now + properties.message_expiry_interval
        if inbound.may_publish(will.topic):
            routing.publish(self, will, now)
        self.store.delete(self.change(), WILLS, (client_id,))

    # --- sessions ------------------------------------------------------------------------------------------------

    def end_session(self, session: Session, now: float) -> None:
        """End a Session and all it holds; a Will that was still delayed is published now [MQTT-3.1.3-9]."""
        for subscription in session.subscriptions.values():
            self.router.remove(subscription)
        session.subscriptions.clear()
        self.sessions.pop(session.client_id, None)
        if session.durable:
            self._forget(session)
        pending = self.wills.pop(session.client_id, None)
        if pending is not None:
            self._publish_will(session.client_id, pending[0], now)

    def _forget(self, session: Session) -> None:
        # A late answer to the old Session's `Store.want` must find none of its positions in a new one of the same name.
        self.spent_position = max(self.spent_position, session.last_position)
        key = (session.client_id,)
        number = self.change()
        self.store.delete(number, SESSIONS, key)
        self.store.delete(number, SUBSCRIPTIONS, key)
        self.store.delete(number, RECEIVED, key)
        self.store.delete(number, WILLS, key)
        self.store.drop_queue(number, session.client_id)

    # --- the store -----------------------------------------------------------------------------------------------

    def change(self) -> int:
        """Give the commit number of the next change."""
        self.last_change += 1
        return self.last_change

    def committed(self, number: int, now: float) -> None:
        """Say that every change up to this number is safe; what waited for it leaves now."""
        if number > self.committed_number:
            self.committed_number = number
        waiting = self.waiting
        self.waiting = []
        for connection in waiting:
            if connection.release(self.committed_number):
                self.waiting.append(connection)
            if connection.backlog and connection.state == CONNECTED and connection.session is not None:
                outbound.pump(self, connection, connection.session, now)

    def loaded(self, client_id: str, deliveries: list[Delivery], now: float) -> None:
        """Take the answer to `Store.want`: the next deliveries of a queue, in order."""
        session = self.sessions.get(client_id)
        if session is None or not session.durable:
            return
        session.loading = False
        outbound.take_loaded(self, session, deliveries, now)

    # --- time ----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Give when `expire` has to be called next, or None."""
        return self.deadlines.next()

    def expire(self, now: float) -> None:
        """Do what is due: close silent connections, end Sessions, publish delayed Wills."""
        while True:
            due = self.deadlines.due(now)
            if due is None:
                return
            at, kind, subject = due
            if kind == CONNECTION:
                self._expire_connection(int(subject), at, now)
            elif kind == SESSION:
                session = self.sessions.get(subject)
                if session is not None and session.expires_at != NEVER and session.expires_at <= now:
                    self.end_session(session, now)
            else:
                pending = self.wills.get(subject)
                if pending is not None and pending[1] <= now:
                    del self.wills[subject]
                    self._publish_will(subject, pending[0], now)

    def _is_live(self, at: float, kind: int, subject: str) -> bool:
        """Whether a deadline still means something."""
        if kind == CONNECTION:
            connection = self.connections.get(int(subject))
            return connection is not None and connection.watched_at == at
        if kind == SESSION:
            session = self.sessions.get(subject)
            return session is not None and session.expires_at == at
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
        """End in order: every Will is published at once, delays ignored, as Mosquitto does."""
        for connection in list(self.connections.values()):
            will = connection.will
            if will is not None and connection.session is not None:
                connection.will = None
                self._publish_will(connection.session.client_id, will, now)
        for client_id in list(self.wills):
            message, _due = self.wills.pop(client_id)
            self._publish_will(client_id, message, now)
