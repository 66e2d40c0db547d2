"""One connection to the remote broker and one to our own, and each packet of the one as a packet of the other.

The relay keeps nothing that has to outlive it. Packet Identifiers go through as they are, so the Session in our own
broker is also the client's half of the Session at the remote one: the queue, what is in flight to the remote broker,
and the QoS 2 identifiers received from it are that Session's, stored with it. What our broker sends waits for the
remote broker's acknowledgement; what the remote broker sends is acknowledged when our broker has done so. A cut or a
crash at any point is then the resumption of an MQTT Session on both sides (MQTT 5 §4.4).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Final, final

from lockgate.bridge.local import Local, Shell
from lockgate.bridge.topics import TopicMap
from lockgate.broker import outbound
from lockgate.client.errors import ConnectionRefused
from lockgate.config.model import BridgeConfig
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode, encode_acknowledgement
from lockgate.mqtt.errors import MqttError, ProtocolError
from lockgate.mqtt.packets import (
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    TYPE_NAMES,
    V3_1,
    V5,
    Acknowledgement,
    ConnAck,
    Packet,
    PubAck,
    Publish,
    PubRec,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
)
from lockgate.mqtt.properties import Properties

if TYPE_CHECKING:
    from lockgate.client.connection import Connection

log = logging.getLogger(__name__)

# Our broker numbers a window of this size with small identifiers only, so that the large ones are left for our own
# packets where there are too many of them.
_WINDOW: Final = 512
_OWN_SMALL: Final = 500
# A broker before version 5 cannot say how many it takes; Mosquitto drops a client that has more QoS 2 messages open.
_WINDOW_V3: Final = 20
_SINGLE_FILTERS: Final = 100
_FILTERS_TOGETHER: Final = 100  # where there are more than those
_LAST_PACKET_ID: Final = 65_535
# What a broker says for a while and not about this message: it is not refused, but tried again.
_TRY_AGAIN: Final = frozenset({reason_codes.QUOTA_EXCEEDED})
_OURS_TRY_AGAIN: Final = _TRY_AGAIN | {reason_codes.UNSPECIFIED_ERROR, reason_codes.IMPLEMENTATION_SPECIFIC_ERROR}
_USER_PROPERTIES: Final = 100  # of a message; one with more has been around for long
PATH: Final = "lockgate-bridges"  # User Property: the brokers whose bridges a message has passed


@dataclass(slots=True)
class Counters:
    """What a bridge has done since it was started."""

    sent: int = 0
    queue_dropped: int | None = None  # by the Session here, when the other end last knew all that is retained
    received: int = 0
    too_large: int = 0  # for the other side
    refused: int = 0  # by the other side
    unmapped: int = 0  # no `topic` line carries it, any more
    looped: int = 0  # it had been here before


@final
class Relay:
    """Packets from one side to the other, from the remote broker's CONNACK to the end of either connection."""

    def __init__(
        self,
        shell: Shell,
        config: BridgeConfig,
        topics: TopicMap,
        version: int,
        counters: Counters,
        mark: str,
        announces: bool,
        maximum_qos: int = 2,
        retain: bool = True,
    ) -> None:
        """`mark` names this broker among those a message passes; `announces`: tell the remote broker we are there.

        `maximum_qos` and `retain` are what it took so far, which its CONNACK may narrow.
        """
        self.connection: Connection  # to the remote broker; set before it opens
        self.on_accepted: Callable[[], None]
        self.is_connected = False
        self.last_message_at = shell.clock()
        self._shell = shell
        self._config = config
        self._topics = topics
        self._version = version
        self._counters = counters
        self._marks = version == V5 and config.try_private
        self._mark_out, self._mark_in = (PATH, f"{mark}>"), (PATH, f"{mark}<")
        self._announces = announces
        self._output: list[bytes] = []
        self._local: Local | None = None
        self._reading = True
        self._aliases: dict[int, str] = {}
        self._window = 0
        self._own_ids: dict[int, Packet] = {}  # packets of our own that wait for an answer
        self._told: set[tuple[str, int]] = set()  # refusals that were logged
        # what the CONNACK allows
        self._maximum_qos = maximum_qos
        self._retain = retain and config.outgoing_retain
        self._maximum_packet_size = config.max_packet_size

    # --- the remote broker, as `client.connection.Conversation` -----------------------------------------------------

    def connected(self, connack: ConnAck) -> None:
        """Begin: tell the remote broker what we want, and open the other side."""
        config = self._config
        properties = connack.properties if connack.properties is not None else Properties()
        self._window = _WINDOW_V3 if self._version != V5 else min(_WINDOW, properties.receive_maximum or _WINDOW)
        if properties.maximum_qos is not None:
            self._maximum_qos = min(self._maximum_qos, properties.maximum_qos)
        if properties.retain_available == 0:
            self._retain = False
        theirs = properties.maximum_packet_size or 0
        self._maximum_packet_size = min(self._maximum_packet_size or theirs, theirs or self._maximum_packet_size)
        # MQTT 3.1 does not say whether there was a Session.
        present = connack.session_present or (self._version == V3_1 and not config.cleansession)
        self.is_connected = True
        broker = self._shell.broker
        session = broker.sessions.get(config.local_client_id)
        if session is not None:
            if not present:
                outbound.begin_anew(broker, session)
            self._announce_and_ask()
        filters = self._topics.out.filters
        dropped = session.dropped if session is not None else 0
        self._local = Local(self._shell, config, self)
        # With both Sessions kept and nothing dropped, what is retained at QoS 1 and 2 went there when it was published.
        self._local.connection.has_retained = (
            present
            and session is not None
            and session.durable
            and {one.requested_filter: one.qos for one in session.subscriptions.values()} == filters
            and self._counters.queue_dropped == dropped
        )
        self._counters.queue_dropped = dropped
        self._local.open(self._window, keeps_session(config))
        if session is None:  # there may be one now, to number the packets
            self._announce_and_ask()
        self._local.subscribe(filters, 0)

    def _announce_and_ask(self) -> None:
        config = self._config
        if self._announces:
            qos = min(1, self._maximum_qos)
            told = Publish(config.notification_topic, b"1", qos, self._retain)
            told.packet_id = self._own_id(told) if qos else 0
            self._output.append(encode(told, self._version))
        remote = self._topics.remote
        together = 1 if len(remote) <= _SINGLE_FILTERS else _FILTERS_TOGETHER
        for wanted, lines in groupby(remote.items(), lambda line: line[1] is not None):
            if not wanted and not config.attempt_unsubscribe:
                continue
            while some := list(islice(lines, together)):
                if wanted:
                    self._ask(
                        Subscribe(
                            0, [SubscriptionRequest(one, qos or 0, config.try_private, True) for one, qos in some]
                        )
                    )
                else:
                    self._ask(Unsubscribe(0, [one for one, _ in some]))

    def _ask(self, packet: Subscribe | Unsubscribe) -> None:
        packet.packet_id = self._own_id(packet)
        self._output.append(encode(packet, self._version))

    def _own_id(self, packet: Packet) -> int:
        """Take a Packet Identifier that no message of the Session has: its next one, as for Mosquitto's bridges."""
        session = self._shell.broker.sessions.get(self._config.local_client_id)
        packet_id = _LAST_PACKET_ID
        if session is not None and len(self._own_ids) < _OWN_SMALL:
            packet_id = outbound.next_packet_id(session, self._window)
        while packet_id in self._own_ids or (session is not None and packet_id in session.in_flight):
            packet_id = packet_id - 1 or _LAST_PACKET_ID
        self._own_ids[packet_id] = packet
        return packet_id

    def receive(self, packet: Packet) -> None:
        """Take a packet of the remote broker."""
        local = self._local
        if local is None:
            return
        if isinstance(packet, Publish):
            self._publish_inwards(local, packet)
        elif isinstance(packet, Acknowledgement):
            self._acknowledge_inwards(local, packet)
        elif isinstance(packet, (SubAck, UnsubAck)):
            self._answered(packet)
        else:
            raise ProtocolError(f"a server must not send {TYPE_NAMES[packet.type]} now")

    def take_output(self) -> bytes:
        """Give the bytes for the remote broker."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    def disconnected(self) -> None:
        """End the other side too. Not to be called within a turn of our broker."""
        self.is_connected = False
        if self._local is not None:
            self._local.close()
            self._local = None

    def say_goodbye(self) -> None:
        """Tell the remote broker that we go, and disconnect; it is told so that it need not publish the Will."""
        self.disconnected()
        if self._announces:
            goodbye = Publish(self._config.notification_topic, b"0", min(1, self._maximum_qos), self._retain)
            goodbye.packet_id = self._own_id(goodbye) if goodbye.qos else 0
            self._output.append(encode(goodbye, self._version))
        self.is_connected = True  # for the connection to take the last words
        self.connection.disconnect(0)
        self.is_connected = False

    def set_writable(self, writable: bool) -> None:
        """Say whether the remote broker takes more."""
        if self._local is not None:
            self._local.set_writable(writable)

    # --- inwards ---------------------------------------------------------------------------------------------------

    def _publish_inwards(self, local: Local, packet: Publish) -> None:
        counters = self._counters
        counters.received += 1
        self.last_message_at = self._shell.clock()
        properties = packet.properties
        if properties is not None and properties.topic_alias is not None:
            packet.topic = self._resolve(packet.topic, properties.topic_alias)
            properties.topic_alias = None
        topic = self._topics.inwards.map(packet.topic)
        if topic is None:
            counters.unmapped += 1
            self._refuse_inwards(packet, reason_codes.NOT_AUTHORIZED)
            return
        if properties is not None:
            properties.subscription_identifiers = ()
            if self._mark_in in properties.user_properties:
                counters.looped += 1
                self._refuse_inwards(packet, reason_codes.SUCCESS)
                return
        broker = self._shell.broker
        limit = broker.limits.max_packet_size
        try:
            broker.packet_rules.check_name(topic)
        except MqttError as error:
            counters.unmapped += 1
            self._tell("our broker takes no such topic: %s", error, 1)
            self._refuse_inwards(packet, reason_codes.TOPIC_NAME_INVALID)
            return
        packet.topic = topic
        packet.properties = self._marked(properties, self._mark_in)
        frame = encode(packet, V5)
        if limit and len(frame) > limit:
            counters.too_large += 1
            self._refuse_inwards(packet, reason_codes.IMPLEMENTATION_SPECIFIC_ERROR)
            return
        local.send_frame(frame)

    def _marked(self, properties: Properties | None, mark: tuple[str, str]) -> Properties | None:
        """Give the properties of a message for the other side, with a mark that says it went there from here.

        Brokers in a ring would pass a message round for ever; nothing else tells that it has been here before. Out and
        in are marked apart, so that what came in by one bridge may go out by another.
        """
        if not self._marks:
            return properties
        if properties is None:
            properties = Properties()
        properties.user_properties = (*properties.user_properties[: _USER_PROPERTIES - 1], mark)
        return properties

    def _resolve(self, topic: str, alias: int) -> str:
        if alias > self._config.max_topic_alias:
            raise ProtocolError(f"Topic Alias {alias} is above what we allowed", reason_codes.TOPIC_ALIAS_INVALID)
        if topic:
            self._aliases[alias] = topic
            return topic
        known = self._aliases.get(alias)
        if known is None:
            raise ProtocolError(f"Topic Alias {alias} was never set up")
        return known

    def _refuse_inwards(self, packet: Publish, reason_code: int) -> None:
        """Acknowledge a message that goes no further."""
        if packet.qos:
            kind = PUBACK if packet.qos == 1 else PUBREC
            self._output.append(encode_acknowledgement(kind, packet.packet_id, reason_code, self._version))

    def _acknowledge_inwards(self, local: Local, packet: Acknowledgement) -> None:
        """Hand on what the remote broker says of our messages, and PUBREL for its own."""
        packet_id = packet.packet_id
        if packet.type == PUBREL:
            local.send_frame(encode_acknowledgement(PUBREL, packet_id, packet.reason_code, V5))
            return
        if packet_id in self._own_ids:  # of our notification
            if packet.type == PUBACK:
                del self._own_ids[packet_id]
                self._note_refusal("the notification", packet.reason_code)
            return
        if packet.reason_code in _TRY_AGAIN and packet.type != PUBCOMP:
            self._fail(f"the remote broker cannot take a message now: {reason_codes.describe(packet.reason_code)}")
            return
        if packet.type != PUBCOMP and packet.reason_code >= 0x80:
            self._counters.refused += 1
            self._note_refusal("a message", packet.reason_code)
        kind = packet.type
        if kind == PUBACK and self._maximum_qos == 1:
            session = local.connection.session
            delivery = session.in_flight.get(packet_id) if session is not None else None
            if delivery is not None and delivery.qos == 2:
                kind = PUBREC  # it was sent at QoS 1
        local.send_frame(encode_acknowledgement(kind, packet_id, packet.reason_code, V5))

    def _answered(self, packet: SubAck | UnsubAck) -> None:
        asked = self._own_ids.pop(packet.packet_id, None)
        if isinstance(asked, Subscribe) and isinstance(packet, SubAck):
            for request, code in zip(asked.requests, packet.reason_codes, strict=False):
                if code >= 0x80:
                    log.warning(
                        "Bridge %s: the remote broker refuses the topic %r: %s",
                        self._config.name,
                        request.topic_filter,
                        reason_codes.describe(code),
                    )

    # --- outwards, as `local.Receiver` -----------------------------------------------------------------------------

    def from_local(self, packet: Packet) -> None:
        """Take a packet of our own broker."""
        if isinstance(packet, Publish):
            self.publish_outwards(packet)
        elif isinstance(packet, Acknowledgement):
            self._acknowledge_outwards(packet)
        elif isinstance(packet, ConnAck):
            if packet.reason_code:
                self._fail(f"our own broker refuses the bridge: {ConnectionRefused(packet.reason_code, V5)}")
        elif isinstance(packet, SubAck):
            for code in packet.reason_codes:
                if code >= 0x80:
                    self._tell("our own broker refuses a topic: %s", reason_codes.describe(code), code)

    def publish_outwards(self, packet: Publish) -> None:
        """Send a message of our broker to the remote one."""
        counters = self._counters
        self.last_message_at = self._shell.clock()
        topic = self._topics.out.map(packet.topic)
        if topic is None:  # it waited, and the line that carried it is gone
            counters.unmapped += 1
            self._answer_local(packet, reason_codes.NOT_AUTHORIZED)
            return
        qos = min(packet.qos, self._maximum_qos)
        if packet.packet_id in self._own_ids:
            asked = TYPE_NAMES[self._own_ids[packet.packet_id].type]
            self._fail(f"the remote broker has not answered our {asked} {packet.packet_id} and a thousand packets")
            return
        properties: Properties | None = None
        if self._version == V5:
            if packet.properties is not None and self._mark_out in packet.properties.user_properties:
                counters.looped += 1
                self._answer_local(packet, reason_codes.SUCCESS)
                return
            properties = self._marked(packet.properties, self._mark_out)
        retain = packet.retain and self._retain
        try:
            sent = Publish(topic, packet.payload, qos, retain, packet.dup and qos > 0, packet.packet_id, properties)
            frame = encode(sent, self._version)
        except ValueError:  # the topic is too long with its prefix
            counters.too_large += 1
            self._answer_local(packet, reason_codes.TOPIC_NAME_INVALID)
            return
        if self._maximum_packet_size and len(frame) > self._maximum_packet_size:
            counters.too_large += 1
            self._tell("a message is too large for the remote broker: %s bytes", len(frame), 0)
            self._answer_local(packet, reason_codes.IMPLEMENTATION_SPECIFIC_ERROR)
            return
        counters.sent += 1
        self._output.append(frame)
        if packet.qos and not qos:
            self._answer_local(packet, reason_codes.SUCCESS)

    def _answer_local(self, packet: Publish, reason_code: int) -> None:
        """Acknowledge to our broker what the remote one will say nothing of."""
        if packet.qos and self._local is not None:
            kind = PUBACK if packet.qos == 1 else PUBREC
            self._local.send_frame(encode_acknowledgement(kind, packet.packet_id, reason_code, V5))

    def _acknowledge_outwards(self, packet: Acknowledgement) -> None:
        if isinstance(packet, (PubAck, PubRec)) and packet.reason_code >= 0x80:
            if packet.reason_code in _OURS_TRY_AGAIN:
                self._fail(f"our own broker cannot take a message now: {reason_codes.describe(packet.reason_code)}")
                return
            self._counters.refused += 1
            self._note_refusal("our own broker: a message", packet.reason_code)
        if packet.type == PUBREL and self._maximum_qos < 2:  # the remote broker knows nothing of QoS 2
            if self._local is not None:
                self._local.send_frame(encode_acknowledgement(PUBCOMP, packet.packet_id, 0, V5))
            return
        self._output.append(encode_acknowledgement(packet.type, packet.packet_id, packet.reason_code, self._version))

    def local_turn_ended(self) -> None:
        """Write what was gathered, and read the remote broker only as fast as ours takes it."""
        if self._output:
            self.connection.flush()
        local = self._local
        if local is not None and local.wants_input != self._reading:
            self._reading = not self._reading
            if self._reading:
                self.connection.resume_reading()
            else:
                self.connection.pause_reading()

    def local_closed(self, reason: str) -> None:
        """End, because our broker did."""
        self._fail(f"our own broker closed: {reason}" if reason else "our own broker closed")

    # --- what went wrong -------------------------------------------------------------------------------------------

    def _fail(self, why: str) -> None:
        self.connection.abort(why)

    def _note_refusal(self, what: str, reason_code: int) -> None:
        if reason_code >= 0x80:
            self._tell(f"refused, {what}: %s", reason_codes.describe(reason_code), reason_code)

    def _tell(self, text: str, detail: object, code: int) -> None:
        """Log a mistake once for each connection."""
        if (text, code) not in self._told:
            self._told.add((text, code))
            log.warning(f"Bridge %s: {text}", self._config.name, detail)


def keeps_session(config: BridgeConfig) -> bool:
    """Whether our broker queues for a bridge that is away; a lazy one is away until something has queued."""
    return not config.local_cleansession or config.start_type == "lazy"
