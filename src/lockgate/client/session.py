"""The client's half of an MQTT Session (MQTT 5 §4.1), without the network: packets in, bytes out, no clock.

A Session outlives its Network Connections. `connected` and `disconnected` tell it of them; between the two it hands
bytes to `take_output`. Outside of them it keeps what the user asked for, to be sent when there is a connection again.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, final

from lockgate.client.errors import ClientError, PublishRefused, SubscribeRefused
from lockgate.client.message import Message
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode, encode_acknowledgement, encode_packet_id, encode_publish_parts
from lockgate.mqtt.errors import ProtocolError
from lockgate.mqtt.packets import (
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    TYPE_NAMES,
    V5,
    ConnAck,
    Packet,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
)
from lockgate.mqtt.properties import Properties
from lockgate.mqtt.wire import encode_string

log = logging.getLogger(__name__)

# Told once, with the Reason Codes of the acknowledgement or with what went wrong.
Finished = Callable[[list[int] | ClientError], None]

_RENEWED_TOGETHER: Final = 100  # Topic Filters in one SUBSCRIBE when a Session is built anew


@final
class _Outgoing:
    """A QoS 1 or 2 message on its way to the Server, encoded around its Packet Identifier."""

    __slots__ = ("abandoned", "finished", "head", "packet_id", "qos", "sent", "tail")

    def __init__(self, head: bytes, tail: bytes, qos: int, finished: Finished) -> None:
        self.head = head
        self.tail = tail
        self.qos = qos
        self.finished = finished
        self.packet_id = 0  # none yet
        self.abandoned = False
        self.sent = False  # the Server may know it: sent again it carries DUP


@final
class _Request:
    """A SUBSCRIBE or UNSUBSCRIBE that waits for its answer."""

    __slots__ = ("finished", "packet", "packet_id")

    def __init__(self, packet: Subscribe | Unsubscribe, finished: Finished) -> None:
        self.packet = packet
        self.finished = finished
        self.packet_id = 0


@final
class Session:
    """What both ends must remember: unacknowledged messages each way, QoS 2 identifiers, subscriptions.

    Not acknowledged means sent again: with DUP to a Server that kept the Session, as a new message to one that did not.
    A QoS 2 message whose PUBREC came, but not its PUBCOMP, is sent anew too when the Server lost the Session: rather
    twice than never. Exactly once holds while both sides keep their Session.
    """

    def __init__(
        self,
        version: int,
        deliver: Callable[[Message], None],
        *,
        receive_maximum: int = 1000,
        send_maximum: int = 1000,
        topic_alias_maximum: int = 0,
    ) -> None:
        self.version = version
        self.number = 0  # counts the Sessions the Server has begun for us
        self.connection = 0  # counts Network Connections
        self.is_connected = False
        self._deliver = deliver
        self._receive_maximum = receive_maximum
        self._send_maximum = send_maximum
        self._topic_alias_maximum = topic_alias_maximum
        self._is_over_maximum = False  # said once
        self._aliases: dict[int, str] = {}  # the Server's, on this connection
        self._output: list[bytes] = []
        # What this connection's CONNACK allows
        self._quota = 0  # QoS 1 and 2 messages we may still send (§4.9)
        self._quota_limit = 0
        self._maximum_packet_size = 0  # 0: no limit
        self._maximum_qos = 2
        self._retain_available = True
        # Sending
        self._last_packet_id = 0
        self._used_ids: set[int] = set()
        self._waiting: deque[_Outgoing] = deque()
        self._in_flight: dict[int, _Outgoing] = {}  # PUBLISH sent, in that order
        self._released: dict[int, _Outgoing] = {}  # PUBREC received, PUBREL sent, in that order
        self._requests: dict[int, _Request] = {}
        self._waiting_requests: deque[_Request] = deque()
        self._subscriptions: dict[str, tuple[SubscriptionRequest, Properties | None]] = {}
        # Receiving
        self._held: dict[int, Message] = {}  # given out, not acknowledged to the Server
        self._order: deque[Message] = deque()  # those of this connection, as they arrived
        self._received: set[int] = set()  # QoS 2: PUBREC sent, PUBREL outstanding

    # --- the Network Connection ------------------------------------------------------------------------------------

    def connected(self, connack: ConnAck) -> None:
        """Begin on a new Network Connection: subscriptions, then everything unacknowledged, in its old order."""
        properties = connack.properties if connack.properties is not None else Properties()
        receive_maximum = 65_535 if properties.receive_maximum is None else properties.receive_maximum
        self._quota = self._quota_limit = min(receive_maximum, self._send_maximum)
        self._maximum_packet_size = properties.maximum_packet_size or 0
        self._maximum_qos = 2 if properties.maximum_qos is None else properties.maximum_qos
        self._retain_available = properties.retain_available != 0
        self.connection += 1
        self.is_connected = True
        if connack.session_present:
            if not self.number:
                self.number = 1
            # §4.9 would let us send this many more; Mosquitto counts what it holds of us, and drops beyond its limit.
            self._quota -= len(self._released)
            for packet_id in self._released:
                self._output.append(encode_acknowledgement(PUBREL, packet_id, 0, self.version))
            again = list(self._in_flight.values())
        else:
            self.number += 1
            self._held.clear()
            self._received.clear()
            again = []
            for outgoing in (*self._released.values(), *self._in_flight.values()):
                outgoing.sent = False
                if outgoing.abandoned:
                    self._used_ids.discard(outgoing.packet_id)
                else:
                    again.append(outgoing)
            self._released.clear()
            self._renew_subscriptions()
        while self._waiting_requests:
            self._send_request(self._waiting_requests.popleft())
        self._in_flight.clear()
        self._waiting.extendleft(reversed(again))
        self._pump()

    def disconnected(self) -> None:
        """The Network Connection is gone; everything unanswered waits for the next one."""
        self.is_connected = False
        self._aliases.clear()
        self._output.clear()
        self._order.clear()
        for request in self._requests.values():
            self._used_ids.discard(request.packet_id)
            self._waiting_requests.append(request)
        self._requests.clear()

    def close(self, error: ClientError) -> None:
        """Tell everyone who still waits that nothing more will come."""
        self.disconnected()
        outgoing = [*self._released.values(), *self._in_flight.values(), *self._waiting]
        waiting: list[Finished] = [one.finished for one in outgoing]
        waiting += [request.finished for request in self._waiting_requests]
        self._released.clear()
        self._in_flight.clear()
        self._waiting.clear()
        self._waiting_requests.clear()
        self._used_ids.clear()
        for finished in waiting:
            finished(error)

    def take_output(self) -> bytes:
        """Give the bytes to write now, empty when there are none."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    @property
    def unacknowledged(self) -> int:
        """How many QoS 1 and 2 messages the Server has not acknowledged, those not yet sent among them."""
        return len(self._waiting) + len(self._in_flight) + len(self._released)

    # --- sending ---------------------------------------------------------------------------------------------------

    def publish(
        self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties | None, finished: Finished
    ) -> _Outgoing | None:
        """Send a message as soon as the Server's Receive Maximum allows.

        At QoS 0 there must be a connection, and `finished` is called at once. Raises ValueError for what MQTT
        cannot say.
        """
        encoded_topic = encode_string(topic)[2:]
        head, tail = encode_publish_parts(encoded_topic, payload, qos, retain, self.version, properties)
        if qos:
            outgoing = _Outgoing(head, tail, qos, finished)
            self._waiting.append(outgoing)
            self._pump()
            return outgoing
        refusal = self._refusal(head, len(head))
        if refusal is None:
            self._output.append(head)
        finished(refusal or [0])
        return None

    def abandon(self, outgoing: _Outgoing) -> None:
        """Nobody waits for this message any more: it is not sent, unless the Server may know it already."""
        outgoing.abandoned = True
        if not outgoing.sent:
            with contextlib.suppress(ValueError):
                self._waiting.remove(outgoing)
                self._used_ids.discard(outgoing.packet_id)

    def subscribe(self, requests: list[SubscriptionRequest], properties: Properties | None, finished: Finished) -> None:
        """Ask for subscriptions; those that are granted are renewed when the Server has lost the Session."""
        self._ask(_Request(Subscribe(0, requests, properties), finished))

    def unsubscribe(self, topic_filters: list[str], finished: Finished) -> None:
        """End subscriptions."""
        self._ask(_Request(Unsubscribe(0, topic_filters), finished))

    def _pump(self) -> None:
        """Send what waits, as far as the quota goes."""
        if not self.is_connected:
            return
        while self._waiting and self._quota > 0:
            outgoing = self._waiting.popleft()
            refusal = self._refusal(outgoing.head, len(outgoing.head) + 2 + len(outgoing.tail))
            if refusal is not None:
                self._used_ids.discard(outgoing.packet_id)
                outgoing.finished(refusal)
                continue
            if not outgoing.packet_id:
                outgoing.packet_id = self._new_packet_id()
            head = outgoing.head
            if outgoing.sent:
                head = bytes((head[0] | 0x08,)) + head[1:]
            outgoing.sent = True
            self._quota -= 1
            self._in_flight[outgoing.packet_id] = outgoing
            self._output += (head, encode_packet_id(outgoing.packet_id), outgoing.tail)

    def _refusal(self, head: bytes, size: int) -> PublishRefused | None:
        """Why this Server's CONNACK forbids a PUBLISH that begins with `head`, if it does (§3.2.2.3)."""
        qos = head[0] >> 1 & 3
        if qos > self._maximum_qos:
            return PublishRefused(
                reason_codes.QOS_NOT_SUPPORTED, f"the server accepts QoS {self._maximum_qos} at most, this is QoS {qos}"
            )
        if head[0] & 1 and not self._retain_available:
            return PublishRefused(reason_codes.RETAIN_NOT_SUPPORTED, "the server accepts no retained messages")
        if self._maximum_packet_size and size > self._maximum_packet_size:
            return PublishRefused(
                reason_codes.PACKET_TOO_LARGE,
                f"the server accepts packets of {self._maximum_packet_size} bytes at most, this has {size}",
            )
        return None

    def _ask(self, request: _Request) -> None:
        encode(request.packet, self.version)  # what cannot be encoded fails here, at the caller
        if self.is_connected:
            self._send_request(request)
        else:
            self._waiting_requests.append(request)

    def _send_request(self, request: _Request) -> None:
        packet_id = self._new_packet_id()
        request.packet_id = request.packet.packet_id = packet_id
        self._requests[packet_id] = request
        self._output.append(encode(request.packet, self.version))

    def _renew_subscriptions(self) -> None:
        def renewed(result: list[int] | ClientError) -> None:
            if isinstance(result, SubscribeRefused):
                log.warning("a subscription was not renewed: %s", result)

        groups: dict[int, tuple[Properties | None, list[SubscriptionRequest]]] = {}
        for request, properties in self._subscriptions.values():
            groups.setdefault(id(properties), (properties, []))[1].append(request)
        for properties, requests in groups.values():
            rest = iter(requests)
            while some := list(islice(rest, _RENEWED_TOGETHER)):
                self._send_request(_Request(Subscribe(0, some, properties), renewed))

    def _new_packet_id(self) -> int:
        packet_id = self._last_packet_id
        while True:
            packet_id = packet_id % 65_535 + 1
            if packet_id not in self._used_ids:
                break
        self._last_packet_id = packet_id
        self._used_ids.add(packet_id)
        return packet_id

    # --- receiving -------------------------------------------------------------------------------------------------

    def receive(self, packet: Packet) -> None:
        """Handle one packet of an established connection; raises ProtocolError for one that must not come."""
        if isinstance(packet, Publish):
            self._publish_received(packet)
        elif isinstance(packet, PubAck):
            self._puback_received(packet)
        elif isinstance(packet, PubRec):
            self._pubrec_received(packet)
        elif isinstance(packet, PubRel):
            self._pubrel_received(packet)
        elif isinstance(packet, PubComp):
            self._pubcomp_received(packet)
        elif isinstance(packet, (SubAck, UnsubAck)):
            self._request_answered(packet)
        else:
            raise ProtocolError(f"a server must not send {TYPE_NAMES[packet.type]} now")

    def acknowledge(self, message: Message, reason_code: int = 0) -> None:
        """Acknowledge a message: PUBACK or PUBREC, sent once every message that arrived before it is acknowledged too.

        When the message's connection is gone nothing is sent now: if the Server sends it again on a later connection,
        it is answered there and not given out twice; if the Server lost the Session, there is nobody to tell.
        """
        if message.qos and not message.acknowledged:
            message.acknowledged = True
            message.reason_code = reason_code
            if message.connection == self.connection:
                self._send_acknowledgements()

    def _send_acknowledgements(self) -> None:
        order = self._order
        while order and order[0].acknowledged:
            message = order.popleft()
            packet_id = message.packet_id
            if self._held.get(packet_id) is message:
                del self._held[packet_id]
            if message.qos == 2 and message.reason_code < 0x80:
                self._received.add(packet_id)
            answer = PUBACK if message.qos == 1 else PUBREC
            self._output.append(encode_acknowledgement(answer, packet_id, message.reason_code, self.version))

    def _publish_received(self, packet: Publish) -> None:
        properties = packet.properties
        if properties is not None and properties.topic_alias is not None:
            self._resolve(packet, properties.topic_alias)
        packet_id = packet.packet_id
        if packet_id:
            if packet.qos == 2 and packet_id in self._received:  # we have it; our PUBREC was lost
                self._output.append(encode_acknowledgement(PUBREC, packet_id, 0, self.version))
                return
            if self.version == V5 and len(self._order) == self._receive_maximum and not self._is_over_maximum:
                # Mosquitto 2.0 does, and would again on every new connection if this one were ended (§3.3.4 lets us go
                # on). Reading stops at the queue's limits, whatever the Server does.
                self._is_over_maximum = True
                log.warning("the server sends more than our Receive Maximum of %d", self._receive_maximum)
            # The user still holds what the Server sends again. The contents are compared, because a Server that came
            # back with an older state may use the identifier for something else.
            held = self._held.get(packet_id) if packet.dup else None
            if (
                held is not None
                and held.connection != self.connection
                and held.topic == packet.topic
                and held.payload == packet.payload
                and held.qos == packet.qos
            ):
                held.connection = self.connection
                self._order.append(held)
                self._send_acknowledgements()
                return
        message = Message(
            packet.topic,
            packet.payload,
            packet.qos,
            packet.retain,
            packet.dup,
            packet_id,
            properties,
            self.connection,
            self.number,
        )
        if packet_id:
            self._held[packet_id] = message
            self._order.append(message)
        self._deliver(message)

    def _resolve(self, packet: Publish, alias: int) -> None:
        """Give the packet the Topic Name its Topic Alias stands for, or learn it (§3.3.2.3.4)."""
        if alias > self._topic_alias_maximum:
            raise ProtocolError("a Topic Alias above what we allowed", reason_codes.TOPIC_ALIAS_INVALID)
        if packet.topic:
            self._aliases[alias] = packet.topic
        elif alias in self._aliases:
            packet.topic = self._aliases[alias]
        else:
            raise ProtocolError("a Topic Alias that stands for nothing", reason_codes.TOPIC_ALIAS_INVALID)

    def _puback_received(self, packet: PubAck) -> None:
        outgoing = self._in_flight.get(packet.packet_id)
        if outgoing is None:
            return
        if outgoing.qos != 1:
            raise ProtocolError("PUBACK for a QoS 2 PUBLISH")
        del self._in_flight[packet.packet_id]
        self._finish(outgoing, packet)

    def _pubrec_received(self, packet: PubRec) -> None:
        packet_id = packet.packet_id
        outgoing = self._in_flight.get(packet_id)
        if outgoing is None:
            # Repeated: the PUBREL was lost. Otherwise we know of no such message, which version 5 lets us say.
            code = 0 if packet_id in self._released else reason_codes.PACKET_IDENTIFIER_NOT_FOUND
            self._output.append(encode_acknowledgement(PUBREL, packet_id, code, self.version))
            return
        if outgoing.qos != 2:
            raise ProtocolError("PUBREC for a QoS 1 PUBLISH")
        del self._in_flight[packet_id]
        if packet.reason_code >= 0x80:
            self._finish(outgoing, packet)
            return
        self._released[packet_id] = outgoing
        self._output.append(encode_acknowledgement(PUBREL, packet_id, 0, self.version))

    def _pubcomp_received(self, packet: PubComp) -> None:
        outgoing = self._released.pop(packet.packet_id, None)
        if outgoing is not None:
            # 0x92, Packet Identifier not found, too: the Server is done with it (§4.3.3)
            self._finish(outgoing, None)

    def _finish(self, outgoing: _Outgoing, answer: PubAck | PubRec | None) -> None:
        self._used_ids.discard(outgoing.packet_id)
        self._quota = min(self._quota + 1, self._quota_limit)
        code = answer.reason_code if answer is not None else 0
        if code >= 0x80:
            detail = answer.properties.reason_string if answer is not None and answer.properties is not None else None
            outgoing.finished(PublishRefused(code, detail))
        else:
            outgoing.finished([code])
        self._pump()

    def _pubrel_received(self, packet: PubRel) -> None:
        known = packet.packet_id in self._received
        self._received.discard(packet.packet_id)
        code = 0 if known else reason_codes.PACKET_IDENTIFIER_NOT_FOUND
        self._output.append(encode_acknowledgement(PUBCOMP, packet.packet_id, code, self.version))

    def _request_answered(self, packet: SubAck | UnsubAck) -> None:
        request = self._requests.get(packet.packet_id)
        if request is None:
            return
        asked = request.packet
        codes = packet.reason_codes
        result: list[int] | ClientError = codes
        if isinstance(packet, UnsubAck) and isinstance(asked, Unsubscribe):
            for topic_filter in asked.topic_filters:
                self._subscriptions.pop(topic_filter, None)
        elif isinstance(packet, SubAck) and isinstance(asked, Subscribe):
            if len(codes) != len(asked.requests):
                raise ProtocolError(f"SUBACK with {len(codes)} codes for {len(asked.requests)} Topic Filters")
            refused: list[tuple[str, int]] = []
            for subscription, code in zip(asked.requests, codes, strict=True):
                if code >= 0x80:
                    refused.append((subscription.topic_filter, code))
                    self._subscriptions.pop(subscription.topic_filter, None)
                else:
                    self._subscriptions[subscription.topic_filter] = (subscription, asked.properties)
            if refused:
                result = SubscribeRefused(refused)
        else:
            raise ProtocolError(f"{TYPE_NAMES[packet.type]} answers {TYPE_NAMES[asked.type]}")
        del self._requests[packet.packet_id]
        self._used_ids.discard(packet.packet_id)
        request.finished(result)
