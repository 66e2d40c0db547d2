"""One `connection` of mosquitto.conf: when it connects, to which address, and what it does when it is refused."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
from typing import Any, Final, final

from lockgate.bridge.backoff import Backoff
from lockgate.bridge.local import Local, Shell
from lockgate.bridge.relay import Counters, Relay, keeps_session
from lockgate.bridge.remote import Remote, connect_packet, open_connection, open_socket
from lockgate.bridge.topics import TopicMap
from lockgate.broker import outbound, routing
from lockgate.broker.ports import NEVER, Delivery, Message
from lockgate.broker.sys_topics import PREFIX, publish_figures
from lockgate.client.errors import ConnectionLost, ConnectionRefused
from lockgate.config.model import BridgeConfig
from lockgate.mqtt import reason_codes
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import V3_1_1, V5, Packet, Publish, Will
from lockgate.transport.tls_client import TlsSetupError

log = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 10.0  # from the first SYN to CONNACK
_GOODBYE_SECONDS: Final = 2.0
_LOGIN_SECONDS: Final = 0.02  # between looks whether our own broker has let the bridge in
_LOOK_SECONDS: Final = 0.5  # between looks at what waits for a lazy bridge
_PROBE_SECONDS: Final = 5.0  # between attempts to reach the first address again
_LONGEST_PROBE_SECONDS: Final = 3600.0
_SEND_NO_RETAINED: Final = 2  # Retain Handling

# How an attempt ended
_FAILED: Final = 0  # the remote broker never accepted it
_LOST: Final = 1
_AGAIN: Final = 2  # at once, for something has changed: what we ask for, the address, the configuration
_IDLE: Final = 3


@final
class Bridge:
    """Keeps one bridge going; everything runs on the loop that calls `start`."""

    def __init__(self, shell: Shell, config: BridgeConfig, mark: str) -> None:
        self.config = config
        self._shell = shell
        self._mark = mark
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()  # the connection is to end, by our own will
        self._relay: Relay | None = None
        self._counters = Counters()
        self._state = "stopped"
        self._address = ""
        self._since = 0.0
        self._last_error = ""
        self._said: bytes | None  # on the notification topic here
        self._late: list[Delivery] = []
        self._preparing: Local | None = None
        self._take(config)

    def _take(self, config: BridgeConfig) -> None:
        """Begin with a configuration, from its first address and in its version."""
        self.config = config
        self._next: BridgeConfig | None = None
        self._topics = TopicMap(config.topics)
        self._counters.queue_dropped = None
        self._said = None
        self._backoff = Backoff(config.restart_timeout)
        self._place = 0
        self._probe_seconds = _PROBE_SECONDS
        # what the remote broker made us give up
        self._version: int = config.version
        self._private = config.try_private
        self._maximum_qos = 2
        self._retain = True

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have our broker queue from now on, and begin to connect."""
        self._prepare()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"bridge {self.config.name}")

    async def stop(self) -> None:
        """Disconnect in order."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._state = "stopped"

    def reload(self, config: BridgeConfig) -> None:
        """Take a new configuration with the next connection, or at once if it says so."""
        if config == self.config:
            self._next = None
            return
        self._next = config
        if self._task is not None and self._task.done():  # it had failed
            self.start()
        if config.reload_immediately or self._relay is None:
            self._ending.set()

    def status(self) -> dict[str, object]:
        """Give what it does and has done, for JSON."""
        session = self._shell.broker.sessions.get(self.config.local_client_id)
        counters = self._counters
        return {
            "state": self._state,
            "address": self._address,
            "seconds": round(self._shell.clock() - self._since, 1) if self._since else None,
            "sent": counters.sent,
            "received": counters.received,
            "queued": session.queued_count + len(session.in_flight) if session is not None else 0,
            "dropped": {
                "queue": session.dropped if session is not None else 0,
                "too_large": counters.too_large,
                "refused": counters.refused,
                "unmapped": counters.unmapped,
                "looped": counters.looped,
            },
            "last_error": self._last_error,
        }

    def _prepare(self) -> None:
        """See to it that our broker has the Session with its Subscriptions before the remote broker is reached."""
        self._shell.broker.own_sessions.add(self.config.local_client_id)
        self._say(b"0")
        session = self._shell.broker.sessions.get(self.config.local_client_id)
        known = {one.requested_filter: one.qos for one in session.subscriptions.values()} if session is not None else {}
        if keeps_session(self.config) and (session is None or known != self._topics.out.filters):
            local = Local(self._shell, self.config, _Nobody())
            local.set_writable(False)
            local.open(1, True)
            local.subscribe(self._topics.out.filters, _SEND_NO_RETAINED)
            self._preparing = local
            self._end_preparing()

    def _end_preparing(self) -> bool:
        """Close what `_prepare` opened if our broker has answered; say whether that is done."""
        local = self._preparing
        if local is not None and local.is_answered:
            if local.connection.session is None:
                self._note(f"our own broker refuses the bridge: {local.connection.closing_reason}")
            local.close()
            self._preparing = None
        return self._preparing is None

    def end_session(self) -> None:
        """Give up what is queued here; the bridge must not be connected."""
        broker = self._shell.broker
        broker.own_sessions.discard(self.config.local_client_id)
        session = broker.sessions.get(self.config.local_client_id)
        if session is not None and session.connection is None:
            broker.end_session(session, self._shell.clock(), "its bridge is gone from the configuration")

    # --- when and where --------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._keep_connected()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("Bridge %s has failed", self.config.name)
            self._state, self._last_error = "failed", "see the log"
        finally:
            if self._preparing is not None:
                self._preparing.close()
            self._say(b"0")

    async def _keep_connected(self) -> None:
        failed = 0  # addresses in a row
        while True:
            if self._next is not None:
                if self._next.local_client_id != self.config.local_client_id:
                    self.end_session()
                self._take(self._next)
                self._prepare()
                failed = 0
            self._ending.clear()
            while not self._end_preparing():
                await asyncio.sleep(_LOGIN_SECONDS)
            if self.config.start_type == "lazy" and not await self._wait_for_messages():
                continue
            addresses = self.config.addresses
            started = self._shell.clock()
            outcome = await self._attempt(*addresses[self._place])
            if outcome in (_AGAIN, _IDLE):
                continue
            if self.config.start_type == "once":
                self._state = "stopped"
                await self._ending.wait()
                continue
            if outcome == _LOST:
                failed = 0
                self._backoff.connected_for(self._shell.clock() - started)
                if not self.config.round_robin:
                    self._place = 0
            else:
                failed += 1
                self._place = (self._place + 1) % len(addresses)
                if failed % len(addresses):
                    continue
            await self._pause(self._backoff.next_seconds())

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    async def _wait_for_messages(self) -> bool:
        """Hold a connection to our broker that takes nothing, until enough waits; give False to begin anew."""
        self._state = "idle"
        parked = Local(self._shell, self.config, _Nobody())
        parked.set_writable(False)
        parked.open(1, True)
        parked.subscribe(self._topics.out.filters, _SEND_NO_RETAINED)
        try:
            while not self._ending.is_set():
                session = parked.connection.session
                if not parked.is_answered:
                    await asyncio.sleep(_LOGIN_SECONDS)
                    continue
                if session is None:
                    self._note(f"our own broker closed: {parked.connection.closing_reason}")
                    await self._pause(self._backoff.next_seconds())
                    return False
                late = parked.connection.late
                waiting = session.queued_count + len(session.in_flight) + (len(late) if late is not None else 0)
                if waiting + len(self._late) >= self.config.threshold:
                    return True
                await self._pause(_LOOK_SECONDS)
            return False
        finally:
            self._late += outbound.take_all_late(self._shell.broker, parked.connection)
            parked.close()

    # --- one connection --------------------------------------------------------------------------------------------

    async def _attempt(self, host: str, port: int) -> int:
        """Connect and stay connected as long as that goes."""
        config = self.config
        announces = config.notifications and not config.notifications_local_only
        relay = Relay(
            self._shell,
            config,
            self._topics,
            self._version,
            self._counters,
            self._mark,
            announces,
            self._maximum_qos,
            self._retain,
        )
        will_qos = min(1, self._maximum_qos)
        will = Will(config.notification_topic, b"0", will_qos, self._retain) if announces else None
        limit = self._shell.broker.limits.max_packet_size
        remote = Remote(relay, connect_packet(config, self._version, self._private, will, limit))
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._state = "connecting"
        log.info("Connecting bridge %s (%s)", config.name, self._address)
        try:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await open_connection(config, host, port, remote)
            except ConnectionRefused as error:
                return self._refused(error)
            except TimeoutError:
                self._note(f"no CONNACK within {_CONNECT_SECONDS:g} seconds")
                return _FAILED
            except TlsSetupError as error:
                self._note(f"bridge_{error.what}: {error}" + (f" ({error.path})" if error.path is not None else ""))
                return _FAILED
            except (ConnectionLost, MqttError, OSError) as error:
                self._note(str(error) or type(error).__name__)
                return _FAILED
            return await self._stay(relay, remote)
        except asyncio.CancelledError:
            if relay.is_connected:
                relay.say_goodbye()
                await asyncio.wait({remote.closed}, timeout=_GOODBYE_SECONDS)
            raise
        finally:
            self._relay = None
            self._since = 0.0
            self._state = "waiting"
            relay.disconnected()
            remote.abort("the attempt is over")
            self._say(b"0")

    def _refused(self, error: ConnectionRefused) -> int:
        """Ask for less where that may help (MQTT 5 §3.2.2.2, and what Mosquitto's bridges do)."""
        self._note(f"Connection Refused: {error}")
        code = error.reason_code
        if self._version == V5:
            if code == reason_codes.UNSUPPORTED_PROTOCOL_VERSION:
                self._version = V3_1_1
                return _AGAIN
            if code == reason_codes.QOS_NOT_SUPPORTED:
                self._maximum_qos = min(self._maximum_qos, 1)  # that of the Will
            return _AGAIN if self._asks_for_less(code) else _FAILED
        if code == reason_codes.UNACCEPTABLE_PROTOCOL_VERSION_V3 and self._private:
            self._private = False
            return _AGAIN
        return _FAILED

    def _asks_for_less(self, code: int) -> bool:
        if code == reason_codes.RETAIN_NOT_SUPPORTED and self._retain:
            self._retain = False
            return True
        if code == reason_codes.QOS_NOT_SUPPORTED and self._maximum_qos:
            self._maximum_qos -= 1
            return True
        return False

    async def _stay(self, relay: Relay, remote: Remote) -> int:
        config = self.config
        self._relay = relay
        self._state = "connected"
        self._since = self._shell.clock()
        self._last_error = ""
        log.info("Bridge %s is connected to %s", config.name, self._address)
        self._say(b"1")
        self._send_late(relay)
        probing: asyncio.Task[None] | None = None
        if self._place and not config.round_robin:
            probing = asyncio.create_task(self._probe())
        else:
            self._probe_seconds = _PROBE_SECONDS
        ending = asyncio.create_task(self._ending.wait())
        either: set[asyncio.Future[Any]] = {ending, remote.closed}
        try:
            while True:
                seconds: float | None = None
                if config.start_type == "lazy":
                    seconds = relay.last_message_at + config.idle_timeout - self._shell.clock()
                    if seconds <= 0:
                        log.info("Bridge connection %s has exceeded idle timeout, disconnecting.", config.name)
                        relay.say_goodbye()
                        await remote.closed
                        return _IDLE
                done, _ = await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if remote.closed.done():
                    why = remote.closed.result()
                    self._note(why)
                    return _AGAIN if self._asks_for_less(remote.disconnect_code) else _LOST
                if done:
                    relay.say_goodbye()
                    await remote.closed
                    return _AGAIN
        finally:
            ending.cancel()
            if probing is not None:
                probing.cancel()

    async def _probe(self) -> None:
        """Return to the first address when it answers; one that answers and does not stay is tried ever less often."""
        host, port = self.config.addresses[0]
        while True:
            await asyncio.sleep(self._probe_seconds)
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    sock = await open_socket(self.config, host, port)
            except (OSError, TimeoutError):
                continue
            sock.close()
            self._probe_seconds = min(2 * self._probe_seconds, _LONGEST_PROBE_SECONDS)
            log.info("Bridge %s: the first address answers again", self.config.name)
            self._place = 0
            self._ending.set()
            return

    def _send_late(self, relay: Relay) -> None:
        """Send what a lazy bridge gathered at QoS 0."""
        late, self._late = self._late, []
        now = self._shell.clock()
        for delivery in late:
            message = delivery.message
            properties = copy.copy(message.properties)  # the message may be others' too
            if message.expires_at != NEVER and properties is not None:
                if message.expires_at <= now:
                    continue
                properties.message_expiry_interval = math.ceil(message.expires_at - now)
            relay.publish_outwards(Publish(message.topic, message.payload, 0, delivery.retain, properties=properties))
        if late:
            relay.connection.schedule_flush()

    # --- telling ---------------------------------------------------------------------------------------------------

    def _note(self, error: str) -> None:
        if error != self._last_error:
            log.warning("Bridge %s (%s): %s", self.config.name, self._address, error)
        self._last_error = error

    def _say(self, payload: bytes) -> None:
        """Say here, retained, whether the bridge is connected."""
        if not self.config.notifications or payload == self._said:
            return
        self._said = payload
        broker, topic = self._shell.broker, self.config.notification_topic
        now = self._shell.clock()
        if topic.startswith(PREFIX):
            publish_figures(broker, {topic[len(PREFIX) :]: payload.decode()}, now)
        else:
            routing.publish(broker, Message(topic, payload, 1, True, None, NEVER, self.config.local_client_id), now)
        asyncio.get_running_loop().call_soon(self._shell.flush)


@final
class _Nobody:
    """Takes what our broker says while no remote broker is there."""

    def from_local(self, packet: Packet) -> None: ...

    def local_turn_ended(self) -> None: ...

    def local_closed(self, reason: str) -> None: ...
