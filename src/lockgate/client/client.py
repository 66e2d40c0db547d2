"""The asyncio client: one Session, and a Network Connection that is made again whenever it is lost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from lockgate.client.connection import Connection, now
from lockgate.client.errors import (
    ClientError,
    ConnectionLost,
    ConnectionRefused,
    NotConnected,
)
from lockgate.client.message import Message
from lockgate.client.session import Session
from lockgate.client.url import parse_url
from lockgate.config.model import ConnectionConfig
from lockgate.config.secrets import first_line
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import V3_1, V3_1_1, V5, ConnAck, Connect, SubscriptionRequest, Will
from lockgate.mqtt.properties import Properties
from lockgate.mqtt.topics import check_topic_filter, check_topic_name
from lockgate.transport.endpoint import Endpoint

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_SECONDS: Final = 2.0
# A Server of 3.1.1 cannot say how many unacknowledged messages it takes; Mosquitto drops a client of more QoS 2.
_SEND_MAXIMUM_V3: Final = 20
_VERSIONS: Final = {"3.1": V3_1, "3.1.1": V3_1_1, "5": V5}
_STABLE_SECONDS: Final = 10.0  # a connection that lived so long lets the back-off begin anew


class Client:
    """An MQTT Client of version 3.1, 3.1.1 or 5. Everything runs on the loop that calls `connect`.

    Without an `endpoint` the connection's URL says where the Server is, without `username` and `password` who we are.
    `bridge` tells the Server that we are a broker of its kind (bit 0x80 of the protocol level).

    `session_expiry_seconds` is how long the Server keeps the Session of a lost connection in version 5; with 0 it
    ends with the connection, and so does the promise of QoS 2 across connections. In 3.1.1 `clean_start` decides alone.
    `receive_maximum` bounds the QoS 1 and 2 messages the Server may send before we acknowledge (version 5),
    `send_maximum` those we send before it does. Without `manual_ack` a message is acknowledged when `messages` gives
    it out.

    At most `queue_maximum` messages or `queue_bytes` wait for `messages`; then nothing more is read from the Server,
    answers neither: do not await a QoS 1 publish in the loop over the same client's messages. `publish` at QoS 1 and 2
    keeps its message until it is acknowledged, through any number of connections; cancelled (`asyncio.timeout`), it is
    taken back unless the Server may have it already.
    """

    def __init__(
        self,
        connection: ConnectionConfig,
        *,
        endpoint: Endpoint | None = None,
        username: str | None = None,
        password: bytes | None = None,
        bridge: bool = False,
        clean_start: bool = False,
        session_expiry_seconds: int = 0,
        receive_maximum: int = 1000,
        send_maximum: int | None = None,
        maximum_packet_size: int = 0,
        topic_alias_maximum: int = 0,
        will: Will | None = None,
        user_properties: tuple[tuple[str, str], ...] = (),
        manual_ack: bool = False,
        queue_maximum: int | None = None,
        queue_bytes: int = 16 * 1024 * 1024,
        connect_timeout_seconds: float = 10.0,
        retry_min_seconds: float = 0.5,
        retry_max_seconds: float = 30.0,
        on_connected: Callable[[bool], None] | None = None,
        on_disconnected: Callable[[str], None] | None = None,
    ) -> None:
        if endpoint is None:
            address = parse_url(connection.url)
            endpoint = Endpoint(host=address.host, port=address.port)
            if username is None and password is None:
                username, password = address.username, address.password
                if connection.password_file is not None:
                    password = first_line(connection.password_file)
        self.endpoint = endpoint
        version = _VERSIONS[connection.version]
        if version != V5 and not connection.client_id and (version == V3_1 or not clean_start):
            raise ValueError("without a client id MQTT 3.1.1 needs clean_start, and MQTT 3.1 needs one")
        if send_maximum is None:
            send_maximum = 1000 if version == V5 else _SEND_MAXIMUM_V3
        if not 1 <= receive_maximum <= 65_535 or not 1 <= send_maximum <= 65_000:
            raise ValueError("receive_maximum must be 1 to 65535, send_maximum 1 to 65000")
        if not 0 <= connection.keep_alive_seconds <= 65_535:
            raise ValueError(f"a keep-alive of {connection.keep_alive_seconds} seconds, must be 0 to 65535")
        self.client_id = connection.client_id  # the Server's choice, once it has made one
        self.on_connected = on_connected  # told `session_present`, before any message of the connection is seen
        self.on_disconnected = on_disconnected  # told why
        self._keep_alive = connection.keep_alive_seconds
        self._username = username
        self._password = password
        self._bridge = bridge
        self._context: ssl.SSLContext | None = None
        self._clean_start = clean_start
        self._session_expiry = session_expiry_seconds
        self._receive_maximum = receive_maximum
        self._maximum_packet_size = maximum_packet_size
        self._topic_alias_maximum = topic_alias_maximum
        self._will = will
        self._user_properties = user_properties
        self._manual_ack = manual_ack
        self._queue_maximum = queue_maximum if queue_maximum is not None else 2 * receive_maximum
        self._queue_bytes = queue_bytes
        self._connect_timeout = connect_timeout_seconds
        self._retry_min = retry_min_seconds
        self._retry_max = retry_max_seconds
        self._version = version
        self._session = Session(
            version,
            self._deliver,
            receive_maximum=receive_maximum,
            send_maximum=send_maximum,
            topic_alias_maximum=topic_alias_maximum,
        )
        self._connection: Connection | None = None
        self._connack: ConnAck | None = None
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[ConnAck] | None = None
        self._queue: deque[Message] = deque()
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._end: ClientError | None = None
        self._last_fault = ""
        self._disconnecting = False

    # --- life ------------------------------------------------------------------------------------------------------

    async def connect(self, *, retry: bool = True) -> ConnAck:
        """Connect and give the CONNACK; from then on a lost connection is made again.

        Raises ConnectionRefused when the Server's refusal will not pass by itself, TlsSetupError for files of TLS that
        cannot be used. Other faults are tried again, unless `retry` is False: then the first one is raised, OSError,
        TimeoutError and ConnectionLost too.
        """
        if self._task is not None or self._end is not None:
            raise RuntimeError("connect() may be called once")
        self._context = self.endpoint.context()
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(retry), name=f"mqtt client {self.client_id}")
        try:
            return await self._first
        except BaseException as error:
            await self._stop(error if isinstance(error, ClientError) else ConnectionLost("connecting was given up"))
            raise

    async def disconnect(self, reason_code: int = 0) -> None:
        """Say DISCONNECT and end: waiting publishes raise ConnectionLost, `messages` ends after what is queued."""
        self._disconnecting = True
        connection = self._connection
        if connection is not None and self._session.is_connected:
            connection.disconnect(reason_code)
            await asyncio.wait([connection.closed], timeout=_CLOSE_TIMEOUT_SECONDS)
        await self._stop(ConnectionLost("the client was disconnected"))

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.disconnect()

    @property
    def connected(self) -> bool:
        """Whether there is an accepted connection now."""
        return self._session.is_connected

    @property
    def session_present(self) -> bool:
        """Whether the Server had kept our Session at the last CONNACK."""
        return self._connack is not None and self._connack.session_present

    @property
    def connack(self) -> ConnAck | None:
        """The last accepting CONNACK."""
        return self._connack

    @property
    def unacknowledged(self) -> int:
        """How many QoS 1 and 2 messages the Server has yet to acknowledge."""
        return self._session.unacknowledged

    async def _stop(self, end: ClientError) -> None:
        task = self._task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])
        self._finish(end)

    def _finish(self, end: ClientError) -> None:
        if self._end is None:
            self._end = end
            if self._connection is not None:
                self._connection.abort(str(end))
                self._connection = None
            self._session.close(end)
            self._arrived.set()
            if self._first is not None and not self._first.done():
                self._first.set_exception(end)

    # --- messages --------------------------------------------------------------------------------------------------

    async def publish(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, properties: Properties | None = None
    ) -> int:
        """Publish and, at QoS 1 and 2, wait for the acknowledgement; gives its Reason Code.

        Messages of one QoS leave in the order of the calls. Raises PublishRefused when the Server will not have it,
        NotConnected at QoS 0 without a connection, ConnectionLost when the client ends first, ValueError for what MQTT
        cannot say.
        """
        try:
            check_topic_name(topic)
        except MqttError as error:
            raise ValueError(str(error)) from None
        if qos not in (0, 1, 2):
            raise ValueError(f"QoS {qos}, must be 0, 1 or 2")
        if properties is not None:
            if self._version != V5:
                raise ValueError("properties need MQTT 5")
            if properties.topic_alias is not None or properties.subscription_identifiers:
                raise ValueError("a client's publish carries neither Topic Alias nor Subscription Identifier here")
        self._check_running()
        if qos == 0 and not self._session.is_connected:
            raise NotConnected("no connection, and a QoS 0 message does not wait for one")
        result: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        outgoing = self._session.publish(topic, payload, qos, retain, properties, _settle(result))
        self._flush()
        try:
            codes = await result
        except asyncio.CancelledError:
            if outgoing is not None:
                self._session.abandon(outgoing)
            raise
        if qos == 0 and self._connection is not None:
            await self._connection.drain()
        return codes[0]

    async def subscribe(
        self,
        requests: Iterable[tuple[str, int] | SubscriptionRequest],
        properties: Properties | None = None,
    ) -> list[int]:
        """Subscribe to Topic Filters, each with its QoS or all its options; gives the granted codes in that order.

        What is granted is renewed when the Server loses the Session. Raises SubscribeRefused if any filter was refused.
        """
        wanted = [one if isinstance(one, SubscriptionRequest) else SubscriptionRequest(*one) for one in requests]
        _check_filters([request.topic_filter for request in wanted])
        if self._version != V5 and properties is not None:
            raise ValueError("properties need MQTT 5")
        self._check_running()
        result: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._session.subscribe(wanted, properties, _settle(result))
        self._flush()
        return await result

    async def unsubscribe(self, topic_filters: Iterable[str]) -> list[int]:
        """Unsubscribe; gives the Reason Codes, none before version 5."""
        wanted = list(topic_filters)
        _check_filters(wanted)
        self._check_running()
        result: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._session.unsubscribe(wanted, _settle(result))
        self._flush()
        return await result

    async def messages(self) -> AsyncIterator[Message]:
        """Give messages as they arrive, for one consumer, until `disconnect`.

        Raises what ended the client when that was not `disconnect`.
        """
        while True:
            while self._queue:
                message = self._queue.popleft()
                self._queued_bytes -= len(message.payload)
                if (
                    self._connection is not None
                    and len(self._queue) <= self._queue_maximum // 2
                    and self._queued_bytes <= self._queue_bytes // 2
                ):
                    self._connection.resume_reading()
                if not self._manual_ack:
                    self.acknowledge(message)
                yield message
            if self._end is not None:
                if isinstance(self._end, ConnectionLost):
                    return
                raise self._end
            self._arrived.clear()
            await self._arrived.wait()

    def acknowledge(self, message: Message, reason_code: int = 0) -> None:
        """Acknowledge a message: PUBACK at QoS 1, PUBREC at QoS 2; the rest of QoS 2 happens by itself.

        Acknowledgements leave in the order in which messages arrived, each when all before it have been given. For a
        message of an earlier connection this is right too: when the Server sends it again it is answered and not given
        out a second time; when the Server lost the Session there is nothing to say. A reason code of 0x80 or above
        refuses the message (version 5).
        """
        self._session.acknowledge(message, reason_code)
        self._flush()

    def _deliver(self, message: Message) -> None:
        self._queue.append(message)
        self._queued_bytes += len(message.payload)
        self._arrived.set()
        full = len(self._queue) >= self._queue_maximum or self._queued_bytes >= self._queue_bytes
        if full and self._connection is not None:
            self._connection.pause_reading()

    def _flush(self) -> None:
        if self._connection is not None:
            self._connection.schedule_flush()

    def _check_running(self) -> None:
        if self._end is not None:
            raise self._end
        if self._task is None:
            raise RuntimeError("connect() comes first")

    # --- connections -----------------------------------------------------------------------------------------------

    async def _run(self, retry: bool) -> None:
        try:
            await self._keep_connected(retry)
        except ClientError as error:
            self._finish(error)
        except (OSError, MqttError) as error:
            self._finish(ConnectionLost(str(error)))
        except Exception:
            log.exception("the MQTT client failed")
            self._finish(ClientError("the MQTT client failed, see the log"))

    async def _keep_connected(self, retry: bool) -> None:
        first = self._first
        assert first is not None
        attempt = 0
        while True:
            try:
                connection = await self._open()
            except (ConnectionRefused, ConnectionLost, OSError, MqttError) as error:
                if not first.done() and (not retry or (isinstance(error, ConnectionRefused) and error.permanent)):
                    first.set_exception(ConnectionLost(str(error)) if isinstance(error, MqttError) else error)
                    return
                fault = str(error) or type(error).__name__
            else:
                connected_at = now()
                if not first.done():
                    assert self._connack is not None
                    first.set_result(self._connack)
                fault = await connection.closed
                self._session.disconnected()
                self._connection = None
                if self.on_disconnected is not None:
                    self.on_disconnected(fault)
                if self._disconnecting:
                    return
                if now() - connected_at >= _STABLE_SECONDS:
                    attempt = 0
                    self._last_fault = ""
            if fault != self._last_fault:
                log.warning("%s: %s; trying again", self.endpoint, fault)
                self._last_fault = fault
            await asyncio.sleep(random.uniform(0, min(self._retry_max, self._retry_min * 2.0 ** min(attempt, 30))))
            attempt += 1

    async def _open(self) -> Connection:
        """Make one Network Connection up to its CONNACK."""
        connect = self._connect_packet()
        stack = self.endpoint.stack(self._context)
        connection = Connection(self._session, connect, self._maximum_packet_size, self._accepted, stack)
        self._connection = connection
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self.endpoint.open(asyncio.get_running_loop(), lambda: connection)
                await connection.accepted
        except BaseException as error:
            connection.abort("connecting was given up")
            self._connection = None
            self._session.disconnected()
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"no CONNACK within {self._connect_timeout:g} seconds") from None
            raise
        return connection

    def _accepted(self, connack: ConnAck) -> None:
        self._connack = connack
        properties = connack.properties
        if properties is not None and properties.assigned_client_identifier is not None:
            self.client_id = properties.assigned_client_identifier
        present = "session present" if connack.session_present else "new session"
        log.info("connected to %s as %s, %s", self.endpoint, self.client_id or "(no client id)", present)
        if self.on_connected is not None:
            self.on_connected(connack.session_present)

    def _connect_packet(self) -> Connect:
        again = self._session.connection > 0
        properties: Properties | None = None
        if self._version == V5:
            properties = Properties(
                session_expiry_interval=self._session_expiry or None,
                receive_maximum=self._receive_maximum,
                maximum_packet_size=self._maximum_packet_size or None,
                topic_alias_maximum=self._topic_alias_maximum or None,
                user_properties=self._user_properties,
            )
        return Connect(
            self.client_id,
            self._version,
            # A clean Session of 3.1.1 ends with its connection; in version 5 Clean Start only says how ours begins.
            self._clean_start and not (again and self._version == V5),
            self._keep_alive,
            self._username,
            self._password,
            self._will,
            properties,
            self._bridge,
        )


def _settle(result: asyncio.Future[list[int]]) -> Callable[[list[int] | ClientError], None]:
    def finished(outcome: list[int] | ClientError) -> None:
        if result.done():  # whoever waited was cancelled
            return
        if isinstance(outcome, ClientError):
            result.set_exception(outcome)
        else:
            result.set_result(outcome)

    return finished


def _check_filters(topic_filters: list[str]) -> None:
    if not topic_filters:
        raise ValueError("no Topic Filter")
    for topic_filter in topic_filters:
        try:
            check_topic_filter(topic_filter)
        except MqttError as error:
            raise ValueError(str(error)) from None
