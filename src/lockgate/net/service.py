"""The broker as a service: listeners around one `Broker`, its store, and what changes with a reload."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import gc
import ipaddress
import logging
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from lockgate import __version__
from lockgate.broker import restoring
from lockgate.broker.broker import Broker
from lockgate.broker.connection import Connection
from lockgate.broker.explain import delivery, explain, session_list, subscription_tree
from lockgate.broker.limits import QUEUE_HEAD, Limits, ListenerLimits, ServerInformation, StandingSession
from lockgate.broker.ports import (
    Authority,
    Delivery,
    Keeper,
    Message,
    Store,
    StoreAnswers,
    StoredQueue,
    StoredSession,
    StoredSubscription,
    StoredWill,
    printable,
)
from lockgate.broker.probe import round_trip
from lockgate.broker.sys_topics import publish_figures
from lockgate.config.model import BridgeConfig, BrokerConfig, Config, ListenerConfig, LogConfig, is_local
from lockgate.mqtt.reason_codes import NOT_AUTHORIZED
from lockgate.net.complaints import Complaints
from lockgate.net.control import ControlTopics
from lockgate.net.figures import Figures
from lockgate.net.listener import Listener, ListenerSettings, PortInUse, door
from lockgate.net.logins import Access, Hashing, Logins, MakeAccess, Methods, Rules, SomeListener, no_access
from lockgate.net.turns import Served, Settled, Turns, clock
from lockgate.telemetry import logs

log = logging.getLogger(__name__)

VERSION = f"2.1.2 (lockgate {__version__})"  # for programs that look for Mosquitto's

LOCAL_IPV6 = "::1"

# What a reload cannot change
_AT_START = (
    "persistence",
    "persistence_location",
    "persistence_file",
    "autosave_interval",
    "autosave_on_changes",
    "flush_interval_seconds",
    "pid_file",
    "user",
    "standing_sessions",
)
_STOP_SECONDS = 2.0
_KEEP_WILLS_SECONDS = 60.0  # from being asked to the stop that was meant
_STUCK_SECONDS = 10.0  # a commit takes longer only on a disk that has stopped to answer
# Objects, more made than freed, before the garbage collector looks at them: about 500 closed connections
_COLLECT_AFTER = 10_000


class ServedStore(Store, Settled, Protocol):
    """A store as the service needs it, from its start to its end."""

    def restore(self, keeper: Keeper) -> object:
        """Hand over what was stored."""

    def start(self) -> None:
        """Go on with the running event loop."""

    def flush(self) -> None:
        """Write everything with the next `settle`."""

    def close(self) -> None:
        """Write what is left."""

    def status(self) -> Mapping[str, object]:
        """Give the store's figures, for JSON."""


class Bridging(Protocol):
    """The bridges to other brokers, on the loop of this one."""

    def start(self) -> None:
        """Begin, once the store is restored."""

    async def stop(self) -> None:
        """Disconnect in order."""

    def reload(self, configs: Sequence[BridgeConfig]) -> None:
        """Go on with other configurations."""

    def status(self) -> Mapping[str, object]:
        """Give the figures of each by its name, for JSON."""


MakeBridges = Callable[["BrokerService", Sequence[BridgeConfig]], Bridging]
OpenStore = Callable[[StoreAnswers], ServedStore]


class _Log:
    """The broker's `ports.Log` on the standard library's logging."""

    def notice(self, text: str) -> None:
        log.info("%s", text)

    def warning(self, text: str) -> None:
        log.warning("%s", text)

    def debug(self, text: str) -> None:
        log.debug("%s", text)

    def subscribed(self, client: str, qos: int, topic_filter: str) -> None:
        if logs.subscribe.isEnabledFor(logging.INFO):
            logs.subscribe.info("%s %d %s", client, qos, printable(topic_filter))

    def unsubscribed(self, client: str, topic_filter: str) -> None:
        if logs.unsubscribe.isEnabledFor(logging.INFO):
            logs.unsubscribe.info("%s %s", client, printable(topic_filter))


def _new_client_id() -> str:
    return str(uuid.uuid4()).upper()


async def _open(listener: Listener, config: BrokerConfig) -> bool:
    """Open a listener; False where it is the IPv6 half of local-only mode, and this machine has no IPv6."""
    try:
        await listener.open()
    except OSError as error:
        half = not config.listeners_said and listener.config.address == LOCAL_IPV6
        if not half or error.errno != errno.EADDRNOTAVAIL:
            raise
        return False
    return True


def broker_limits(config: BrokerConfig) -> Limits:
    """Give the core's limits for a configuration."""
    ours = config.limits
    budgets = [config.memory_limit, machine_memory() // 4 if config.memory_budget is None else config.memory_budget]
    return Limits(
        max_inflight_messages=config.max_inflight_messages,
        max_inflight_bytes=config.max_inflight_bytes,
        max_queued_messages=config.max_queued_messages,
        max_queued_bytes=config.max_queued_bytes,
        max_packet_size=config.max_packet_size,
        max_keepalive=config.max_keepalive,
        message_size=config.message_size_limit,
        clientid_prefixes=config.clientid_prefixes,
        upgrade_outgoing_qos=config.upgrade_outgoing_qos,
        allow_duplicate_messages=config.allow_duplicate_messages,
        queue_qos_0=config.queue_qos0_messages,
        check_retain_source=config.check_retain_source,
        session_owner=config.session_owner == "user",
        retain_available=config.retain_available,
        sparkplug=config.sparkplug_aware,
        subscriptions=ours.subscriptions,
        # Where the store is in memory, too, nothing is gained by holding less of it.
        queue_head=0 if config.persistence is False else QUEUE_HEAD,
        persistent_client_expiration=config.persistent_client_expiration,
        ack_after=tuple((topic, one.after == "disk") for one in config.ack_after for topic in one.topics),
        standing_sessions=tuple(
            StandingSession(one.client_id or one.name, one.topics, one.qos, one.limit_bytes)
            for one in config.standing_sessions
        ),
        keep_wills=config.wills_on_stop == "keep",
        publish_rate=ours.publish_rate,
        connect_rate=ours.connect_rate,
        flapping_connects=ours.flapping_connects,
        flapping_window=ours.flapping_window_seconds,
        flapping_hold_off=ours.flapping_hold_off_seconds,
        connections_per_address=ours.connections_per_address,
        connect_rate_per_address=ours.connect_rate_per_address,
        topic_bytes=ours.topic_bytes,
        topic_levels=ours.topic_levels,
        user_properties=ours.user_properties,
        connections=max(0, config.global_max_connections),
        sessions=max(0, config.global_max_clients),
        pending_logins=ours.pending_logins,
        connect_timeout=ours.connect_timeout_seconds,
        retained_messages=ours.retained_messages,
        retained_bytes=ours.retained_bytes,
        total_queued_messages=ours.queued_messages,
        memory_budget=min((budget for budget in budgets if budget), default=0),
        alarms=config.alarms,
    )


def machine_memory() -> int:
    """Give the bytes of memory that this process may use: those of its container, else of the machine."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not limited, or no such file
            found.append(int(Path(place).read_text()))
    return min(found)


def server_information(config: BrokerConfig) -> ServerInformation:
    """Give what the core tells version 5 clients, for a configuration."""
    return ServerInformation(config.server_reference, config.server_moved, config.response_information)


class Doors:
    """The settings of every listener of a configuration, with whom each asks; nothing is opened.

    Raises ConfigError for what cannot be used.
    """

    def __init__(self, config: BrokerConfig, access: Access, hashing: Hashing) -> None:
        found: dict[int, tuple[Rules, Logins]] = {}  # those who ask the same share it, and with it what it remembers

        def authority(listener: ListenerConfig) -> Logins | None:
            rules = access.rules(listener)
            if rules is None:
                return None
            return found.setdefault(id(rules), (rules, Logins(rules, hashing)))[1]

        self.settings = [ListenerSettings(one, config, authority(one)) for one in config.listeners]
        self.default = authority(ListenerConfig())
        limits = [one.limits for one in self.settings if not one.config.http_api]
        certified = config.scram_file is not None
        self.prove_users = certified or any(one.authority or one.username_from_certificate for one in limits)
        unruled = [one for one in limits if one.authority is None]
        asked = dict.fromkeys(one.authority for one in limits if isinstance(one.authority, Logins))
        self.absent: Authority | None = None
        if asked:
            users = bool(unruled) and (certified or any(one.username_from_certificate for one in unruled))
            several = SomeListener(asked, anonymous=bool(unruled), users=users)
            self.absent = several if unruled or len(asked) > 1 else next(iter(asked))


def _spare_collector() -> None:
    """Keep the garbage collector from looking through all that stays: each full look is a delay for every client.

    What clients bring is freed by its count of references; the collector is for what is left of closed connections.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


class BrokerService:
    """Runs a broker on the current event loop; `open_store` is given this, to answer, and gives the store."""

    name = "broker"
    version = VERSION

    def __init__(
        self,
        config: BrokerConfig,
        open_store: OpenStore,
        make_access: MakeAccess | None = None,
        make_bridges: MakeBridges | None = None,
    ) -> None:
        self._make_access = make_access if make_access is not None else no_access
        self._methods, self._access = self._make_access(config, None)
        self._store = open_store(self)
        limits, information = broker_limits(config), server_information(config)
        self.broker = Broker(limits, self._store, _Log(), _new_client_id, self._methods, information)
        self.hashing = Hashing(self._is_there, self._login_answered)
        self._figures_timer: asyncio.TimerHandle | None = None
        self.figures = Figures(self, self.clock())
        self.complaints = Complaints()
        self.handshakes_failed = 0  # of TLS, WebSocket and the PROXY protocol
        self._topic_log: logging.Handler | None = None
        doors = Doors(config, self._access, self.hashing)
        self.listeners = [self._listener(settings) for settings in doors.settings]
        self.broker.control = self._control = ControlTopics(self)
        self._follow(config, doors)
        self._tasks: set[asyncio.Task[None]] = set()
        self._keep_wills_until = 0.0  # a stop before that keeps Wills, whatever is configured
        self._make_bridges = make_bridges
        self.bridges = self._bridges(config)
        self.turns = Turns(self.broker, self._store)
        self._end: asyncio.Future[None]

    @staticmethod
    def clock() -> float:
        """Give seconds since the machine was started."""
        return clock()

    async def run(self, ready: Callable[[], None]) -> None:
        """Open all listeners, call `ready`, and serve until cancelled; then every client is disconnected."""
        for warning in self._config.warnings:
            log.warning("%s", warning)
        if not self._config.listeners_said:  # in Mosquitto's words
            log.warning(
                "Starting in local only mode. Connections will only be possible from clients running on this machine."
            )
        self._warn_of_open_doors()
        self._end = asyncio.get_running_loop().create_future()
        try:
            log.info("mosquitto version %s starting", VERSION)
            self._store.start()
            self._store.restore(self)
            restoring.stand(self.broker, self.clock())
            self._tell()
            self._log_to_topics(self._config.log)
            if self.bridges is not None:
                self.bridges.start()
            self.flush()  # also to wait for what was restored with a time
            self.listeners = [one for one in self.listeners if await _open(one, self._config)]
            _spare_collector()
            log.info("mosquitto version %s running", VERSION)
            ready()
            await self._end
        finally:
            await self._stop()

    def _bridges(self, config: BrokerConfig) -> Bridging | None:
        if not config.bridges or self._make_bridges is None:
            return None
        return self._make_bridges(self, config.bridges)

    async def reload(self, whole: Config) -> None:
        """Go on with another configuration, or raise ConfigError or OSError and go on as before.

        Whoever is connected stays so, unless its listener is gone or the new rules would not let it in.
        """
        config = whole.broker
        former = self._config
        restart = [name for name in _AT_START if getattr(config, name) != getattr(former, name)]
        methods, access = self._make_access(config, self._access)
        doors = Doors(config, access, self.hashing)
        known = {door(listener.config): listener for listener in self.listeners}
        wanted = {door(settings.config) for settings in doors.settings}
        leaving = [listener for place, listener in known.items() if place not in wanted]
        opened: list[Listener] = []
        listeners: dict[Listener, ListenerSettings] = {}
        try:
            for settings in doors.settings:
                listener = known.get(door(settings.config))
                if listener is None:
                    listener = self._listener(settings)
                    if not await self._make_room_and_open(listener, config, leaving):
                        continue
                    opened.append(listener)
                listeners[listener] = settings
        except OSError:
            for listener in opened:
                await listener.rest()
                listener.close()
            for listener in leaving:
                if not listener.is_open:
                    await listener.open()
            raise
        # Nothing fails from here on.
        for connection in list(self.broker.pending.values()):
            if connection.login is not None or connection.authentication is not None:  # by the rules that were
                connection.close("the rules have changed while it was let in; it may come again")
        before = {listener: listener.limits for listener in self.listeners}
        for listener, settings in listeners.items():
            listener.use(settings)
        for listener in self.listeners:
            if listener not in listeners:
                listener.close()
        self.listeners = list(listeners)
        self._access = access
        known_before, self._methods = self._methods, methods
        self.broker.authenticator = methods
        self._follow(config, doors)
        self.broker.reload(broker_limits(config), server_information(config))
        for listener, limits in before.items():
            self._readmit(listener, limits, known_before)
        if config.sys_interval != former.sys_interval:
            if self._figures_timer is not None:
                self._figures_timer.cancel()
            self._tell()
        self._log_to_topics(config.log)
        if self.bridges is not None:
            self.bridges.reload(config.bridges)
        else:
            self.bridges = self._bridges(config)
            if self.bridges is not None:
                self.bridges.start()
        for warning in config.warnings:
            log.warning("%s", warning)
        self._warn_of_open_doors()
        if restart:
            log.warning("What the configuration now says of %s counts from the next start.", ", ".join(restart))
        self.flush()

    def _follow(self, config: BrokerConfig, doors: Doors) -> None:
        """Have a configuration count, as far as the broker is not told of it as limits."""
        self._config = config
        broker = self.broker
        broker.default_authority, broker.absent_authority = doors.default, doors.absent
        broker.proves_users = doors.prove_users
        broker.tells_connections = config.connection_messages
        self._control.enable_broker = config.enable_control_api

    async def _make_room_and_open(self, listener: Listener, config: BrokerConfig, leaving: list[Listener]) -> bool:
        """Like `_open`; a listener that goes and has the same port, at another address, say, gives it up."""
        try:
            return await _open(listener, config)
        except PortInUse as error:
            former = [one for one in leaving if one.is_open and one.port == error.port]
            if not former:
                raise
            for one in former:
                await one.rest()
            return await _open(listener, config)

    def _warn_of_open_doors(self) -> None:
        for listener in self.listeners:
            config = listener.config
            certified = config.require_certificate or (config.tls is not None and config.tls.require_certificate)
            listens_locally = config.path is not None or (config.address is not None and is_local(config.address))
            if not listener.limits.allow_anonymous or certified or config.http_api or listens_locally:
                continue
            log.warning("Everybody who reaches port %d is let in: allow_anonymous is true there.", config.port)

    def _listener(self, settings: ListenerSettings) -> Listener:
        if not settings.config.http_api:
            return Listener(settings, self)
        from lockgate.net.http_api import HttpApi

        return HttpApi(settings, self)

    def _readmit(self, listener: Listener, before: ListenerLimits, known_before: Methods | None) -> None:
        """Disconnect the clients of a listener that its new rules would not let in."""
        methods = self._methods
        limits, now = listener.limits, self.clock()
        old = before.authority.rules if isinstance(before.authority, Logins) else None
        new = limits.authority.rules if isinstance(limits.authority, Logins) else None
        for stream in list(listener.streams):
            connection = stream.connection
            session = connection.session
            if session is None:
                continue
            certified = limits.username_from_certificate
            proved = connection.authentication
            if certified and (connection.identity is None or connection.identity != session.username):
                stays = False
            elif proved is not None:
                known = methods.credential(proved.username) if methods is not None else None
                was = known_before.credential(proved.username) if known_before is not None else None
                stays = known is not None and known == was
            elif new is None:
                stays = limits.allow_anonymous or certified
            elif old is None:  # nobody had looked at its name
                stays = new.login(session.client_id, session.username if certified else None, None, certified)
            else:
                stays = new.readmits(session.client_id, session.username, certified, old)
            if not stays:
                self.broker.disconnect(session.client_id, NOT_AUTHORIZED, "the new rules would not let it in", now)

    def _is_there(self, number: int) -> bool:
        return number in self.broker.connections

    def _login_answered(self, number: int, permitted: bool) -> None:
        self.broker.login_answered(number, permitted, self.clock())
        self.flush()

    def listener_configs(self) -> list[ListenerConfig]:
        """Give what is open."""
        return [listener.config for listener in self.listeners]

    def _log_to_topics(self, config: LogConfig) -> None:
        if self._topic_log is not None:
            logs.remove(self._topic_log)
            self._topic_log = None
        if "topic" in config.destinations:
            from lockgate.net.topic_log import TopicLog

            self._topic_log = TopicLog(self)
            logs.add(self._topic_log, config)

    def lets_anonymous_in(self, config: ListenerConfig) -> bool:
        """Whether a listener lets clients in that give no user name."""
        return any(one.limits.allow_anonymous for one in self.listeners if one.config is config)

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Have something done beside the loop's turns, before the service ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def tree(self) -> str:
        """Give who subscribed to what, level by level, as Mosquitto prints it at SIGUSR2."""
        return subscription_tree(self.broker)

    def save(self) -> None:
        """Write what nobody waits for now."""
        self._store.flush()
        self.wake()

    async def _stop(self) -> None:
        log.info("mosquitto version %s terminating", VERSION)
        if self.bridges is not None:
            await self.bridges.stop()
        if self.clock() < self._keep_wills_until:
            self.broker.limits = broker_limits(dataclasses.replace(self._config, wills_on_stop="keep"))
        self.broker.stop(self.clock())
        self.flush()
        for listener in self.listeners:
            listener.close()
        self.turns.stop_watching()
        if self._figures_timer is not None:
            self._figures_timer.cancel()
        deadline = self.clock() + _STOP_SECONDS
        while self.turns.served and self.clock() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._topic_log is not None:
            logs.remove(self._topic_log)
        self.hashing.close()
        self.complaints.close()
        self._store.close()

    # --- the turn ------------------------------------------------------------------------------------------------

    def admit(self, stream: Served, peer: str, limits: ListenerLimits, address: str) -> Connection:
        """Give a new socket its connection; `address` is that of the peer, empty where nothing counts it."""
        connection = self.broker.connect(peer, limits, self.clock(), self._counted(address))
        self.turns.served[connection.number] = stream
        self.turns.watch()
        return connection

    def count_address(self, connection: Connection, address: str) -> None:
        """Count a connection for the address that its PROXY header names."""
        counted = self._counted(address)
        if counted:
            self.broker.count_address(connection, counted, self.clock())

    def _counted(self, address: str) -> str:
        """Give the address to count, which is none for a trusted proxy: everybody behind it has the same."""
        limits = self.broker.limits
        if not address or not (limits.connections_per_address or limits.connect_rate_per_address):
            return ""
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0].strip("[]"))
        except ValueError:
            return address
        for network in self._config.trusted_proxies:
            if parsed.version == network.version and parsed in network:
                return ""
        return address

    def dismiss(self, stream: Served, now: float) -> None:
        """Take back the connection of a closed socket."""
        connection = stream.connection
        self.turns.served.pop(connection.number, None)
        if not connection.client_name:  # anybody can cause that, as often as they like
            if connection.closing_reason:
                self.complaints.tell(connection.peer, connection.closing_reason, now)
                connection.closing_reason = ""
            else:
                self.complaints.count(connection.peer, now)
        self.broker.connection_lost(connection, now)
        self.flush()

    def flush(self) -> None:
        """End a turn: let the store answer, then write for every touched connection."""
        self.turns.flush()

    # --- the store -----------------------------------------------------------------------------------------------

    @property
    def awaited(self) -> int:
        """The highest commit number that a packet waits for."""
        return self.broker.awaited

    def committed(self, number: int) -> None:
        """Let go what waited for a commit."""
        self.broker.committed(number, self.clock())

    def loaded(self, client_id: str, deliveries: list[Delivery]) -> None:
        """Go on with a queue."""
        self.broker.loaded(client_id, deliveries, self.clock())

    def store_failed(self, reason_code: int) -> None:
        """Confirm nothing until the store can be written again."""
        self.broker.store_failed(reason_code, self.clock())

    def store_damaged(self, problem: str) -> None:
        """End: sessions in memory and what is left of them on disk would drift apart. The next start salvages."""
        if not self._end.done():
            self._end.set_exception(OSError(errno.EIO, problem))

    def wake(self) -> None:
        """Hear what the store has to say."""
        self.broker.store_is_awake = True
        self.flush()

    def restore_session(
        self,
        client_id: str,
        stored: StoredSession,
        subscriptions: list[tuple[str, StoredSubscription]],
        received: dict[int, Message],
        queue: StoredQueue,
    ) -> None:
        """Take back a Session that was stored."""
        restoring.restore_session(self.broker, client_id, stored, subscriptions, received, queue, self.clock())

    def restore_retained(self, message: Message) -> None:
        """Take back a retained message."""
        restoring.restore_retained(self.broker, message, self.clock())

    def restore_will(self, client_id: str, will: StoredWill) -> None:
        """Take back a Will."""
        restoring.restore_will(self.broker, client_id, will, self.clock())

    # --- telling -------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Say the figures below $SYS, now and at every multiple of sys_interval, as Mosquitto does."""
        interval = self._config.sys_interval
        if not interval:
            return
        self.figures.average(self.clock())
        publish_figures(self.broker, self.figures.topics(VERSION), self.clock())
        self.flush()
        wait = interval - time.time() % interval
        self._figures_timer = asyncio.get_running_loop().call_later(wait, self._tell)

    def store_status(self) -> Mapping[str, object]:
        """Give the store's figures."""
        return self._store.status()

    def status(self) -> dict[str, object]:
        """Give the broker's figures, by Mosquitto's words where it has them."""
        broker = self.broker
        totals = broker.statistics
        queued = sum(session.queued_count + len(session.in_flight) for session in broker.sessions.values())
        return {
            "ports": [listener.port for listener in self.listeners],
            "connections": len(broker.connections),
            "handshakes_failed": self.handshakes_failed,
            "sessions": len(broker.sessions),
            "subscriptions": broker.router.tree.count + broker.router.tree.shared_count,
            "retained": broker.retained.count,
            "queued": queued,
            "publish_received": totals.publish_received,
            "publish_sent": totals.publish_sent,
            "bytes_received": totals.bytes_received,
            "bytes_sent": totals.bytes_sent,
            "dropped": totals.reasons(),
            "not_retained": totals.not_retained,
            "store": self._store.status(),
            "memory": {"used": broker.memory.used, "budget": broker.memory.budget},
            **({"bridges": dict(self.bridges.status())} if self.bridges is not None else {}),
        }

    def answers(self) -> Mapping[str, Callable[[Mapping[str, object]], Mapping[str, object]]]:
        """Give what answers the questions of the command line."""
        return {
            "explain": self.explain,
            "delivery": self.delivery,
            "sessions": self.sessions,
            "health": self.health,
            "keep_wills": self.keep_wills,
        }

    def health(self, _arguments: Mapping[str, object] = MappingProxyType({})) -> Mapping[str, object]:
        """Answer `lockgate healthcheck`: does the core pass a message on, and does the store commit?"""
        before = time.perf_counter()
        problem = round_trip(self.broker, self.clock())
        taken = time.perf_counter() - before
        store = self._store.status()
        problems = [problem] if problem else []
        if store.get("failing"):
            problems.append(f"the store cannot be written: {store.get('error')}")
        running = store.get("commit_running_seconds")
        if isinstance(running, float) and running > _STUCK_SECONDS:
            problems.append(f"a commit has not ended for {running:.0f} s: the disk does not answer")
        return {
            "problems": problems,
            "round_trip_us": round(taken * 1e6),
            "last_commit_seconds_ago": store.get("last_commit_seconds_ago"),
        }

    def keep_wills(self, _arguments: Mapping[str, object] = MappingProxyType({})) -> Mapping[str, object]:
        """Answer whoever is about to put another broker in this one's place: a stop within a minute keeps all Wills."""
        if self._config.persistence is False:
            return {"problem": "nothing is kept on disk (persistence false), Wills neither"}
        self._keep_wills_until = self.clock() + _KEEP_WILLS_SECONDS
        return {}

    def sessions(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        """Answer `lockgate session`: tell of all Sessions, give one to a user, or end it."""
        action, client_id, now = str(arguments.get("action", "")), str(arguments.get("client", "")), self.clock()
        if action == "list":
            return {"sessions": session_list(self.broker, now)}
        user = arguments.get("user")
        if client_id in self.broker.own_sessions:
            return {"problem": "it is that of a bridge, which the configuration rules"}
        if action == "give":
            done = self.broker.give_session(client_id, user if isinstance(user, str) else None, now)
        else:
            done = action == "drop" and self.broker.drop_session(client_id, now)
        self.save()  # nobody waits for it, and whoever asked wants to rely on it
        return {} if done else {"problem": "there is no session of this client id"}

    def delivery(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        """Answer `lockgate doctor`: does a `client` get what comes on a `topic`? With what `explain` answers."""
        client_id, topic, publisher = (str(arguments.get(name, "")) for name in ("client", "topic", "publisher"))
        return {**delivery(self.broker, client_id, topic, publisher, self.clock()), **self.explain(arguments)}

    def explain(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        """Answer `lockgate explain`: why did a `client` get nothing on a `topic`? Times are seconds since 1970."""
        client_id, topic = str(arguments.get("client", "")), str(arguments.get("topic", ""))
        off = time.time() - self.clock()
        findings = [
            {
                "reason": finding.reason,
                "text": finding.text,
                "count": finding.count,
                "first_at": finding.first_at + off if finding.first_at else None,
                "last_at": finding.last_at + off if finding.last_at else None,
            }
            for finding in explain(self.broker, client_id, topic)
        ]
        since = self.broker.decisions.since()
        return {"findings": findings, "remembered_since": since + off if since else None}
