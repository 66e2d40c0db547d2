"""Messages from clients: PUBLISH at each QoS, and PUBREL, which ends a QoS 2 delivery (MQTT 5 §3.3, §3.6, §4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lockgate.broker import routing, shedding
from lockgate.broker.decisions import NOT_RETAINED, REFUSED
from lockgate.broker.ports import NEVER, RECEIVED, Message, printable, text_bytes
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode_acknowledgement
from lockgate.mqtt.errors import MqttError, ProtocolError
from lockgate.mqtt.packets import PUBACK, PUBCOMP, PUBREC, V5, Acknowledgement, Publish

if TYPE_CHECKING:
    from lockgate.broker.broker import Broker
    from lockgate.broker.connection import Connection
    from lockgate.broker.session import Session

CONTROL: Final = "$CONTROL/"


def may_publish(topic: str) -> bool:
    """Whether any client may publish to a topic, by PUBLISH or as its Will: `$SYS` is the server's own.

    But other Servers' bridges tell there whether they are connected.
    """
    if not topic.startswith("$SYS/"):
        return True
    return topic.startswith("$SYS/broker/connection/") and topic.endswith("/state") and topic.count("/") == 4


def handle_publish(broker: Broker, connection: Connection, session: Session, packet: Publish, now: float) -> None:
    """Take a message over: route it at once at QoS 0 and 1, keep it until PUBREL at QoS 2 (§4.3)."""
    broker.statistics.publish_bytes_received += len(packet.payload)
    if broker.limits.publish_rate:
        connection.spend_publish(now)
    qos = packet.qos
    if qos > connection.limits.max_qos:
        raise ProtocolError("PUBLISH above max_qos", reason_codes.QOS_NOT_SUPPORTED)
    properties = packet.properties
    expires_at = NEVER
    topic = packet.topic
    if properties is not None:
        if properties.subscription_identifiers:
            raise ProtocolError("PUBLISH with a Subscription Identifier")  # [MQTT-3.3.4-6]
        if properties.topic_alias is not None:
            topic = _resolve_alias(connection, topic, properties.topic_alias)
            properties.topic_alias = None  # it belongs to this connection, not to the message
        if properties.message_expiry_interval is not None:
            expires_at = now + properties.message_expiry_interval
    frame = packet.frame
    if connection.limits.mount_point:
        topic = connection.limits.mount_point + topic
        frame = b""
    message = Message(
        topic,
        packet.payload,
        qos,
        packet.retain,
        properties,
        expires_at,
        session.client_id,
        frame,
        connection.version,
    )
    message.publisher_user = session.username
    if message.retain and not broker.limits.retain_available:
        raise ProtocolError("PUBLISH with RETAIN, and retain_available is false", reason_codes.RETAIN_NOT_SUPPORTED)
    refusal = 0
    permissions = session.permissions
    if topic.startswith("$") and not may_publish(topic):
        refusal = reason_codes.NOT_AUTHORIZED
        broker.decisions.record(REFUSED, session.client_id, topic, now, "$SYS belongs to the Server")
    elif permissions is not None and not permissions.may_publish(topic):
        refusal = reason_codes.NOT_AUTHORIZED
        broker.decisions.record(REFUSED, session.client_id, topic, now, "the rules do not let it publish here")
    elif broker.limits.message_size and len(packet.payload) > broker.limits.message_size:
        # MQTT has no word of its own for it among the codes of PUBACK and PUBREC [MQTT-3.4.2-1].
        refusal = reason_codes.IMPLEMENTATION_SPECIFIC_ERROR
        broker.decisions.record(REFUSED, session.client_id, topic, now, "it is larger than message_size_limit")
    elif qos == 2 and shedding.is_exhausted(broker, now):
        if connection.version != V5:  # which has no word for it, and must not be told that we have the message
            raise MqttError("the memory budget is spent", reason_codes.QUOTA_EXCEEDED)
        refusal = reason_codes.QUOTA_EXCEEDED
        broker.decisions.record(REFUSED, session.client_id, topic, now, "the memory budget is spent")
    elif message.retain and qos and connection.version == V5 and not routing.may_retain(broker, message):
        refusal = reason_codes.QUOTA_EXCEEDED
        broker.drop(NOT_RETAINED, session.client_id, topic, now)
    if qos == 0:
        if not refusal:
            _route(broker, connection, message, now)
        return
    if broker.store_problem or connection.unanswered:
        if connection.version != V5:
            if connection.unanswered or _needs_store(broker, session, message):
                connection.unanswered = True  # nor is what follows it: acknowledgements keep their order
                return
        elif not refusal and _needs_store(broker, session, message):
            refusal = broker.store_problem
            broker.decisions.record(REFUSED, session.client_id, topic, now, "the store cannot be written")
    packet_id = packet.packet_id
    if qos == 1:
        commit = 0
        if not refusal:
            commit = _route(broker, connection, message, now)
        reason_code = refusal or broker.no_subscribers_code
        connection.acknowledge(encode_acknowledgement(PUBACK, packet_id, reason_code, connection.version), commit)
        return
    _receive_qos_2(broker, connection, session, packet_id, message, refusal)


def _receive_qos_2(
    broker: Broker, connection: Connection, session: Session, packet_id: int, message: Message, refusal: int
) -> None:
    """Keep a QoS 2 message until PUBREL; a repeated PUBLISH is answered again and kept once [MQTT-4.3.3-10].

    A different message under an identifier in use replaces the one that waits, as in Mosquitto.
    """
    known = packet_id in session.received
    # What a bridge brings is another broker's doing: Mosquitto 2.0 sends a backlog of QoS 2 without a bound but the
    # identifiers', and to close would only make it send that again.
    if not known and len(session.received) >= broker.received_limit and not connection.own:
        raise MqttError(
            f"{len(session.received)} QoS 2 messages wait for PUBREL", reason_codes.RECEIVE_MAXIMUM_EXCEEDED
        )
    if refusal:  # an identifier refused by PUBREC is free again in version 5; before, PUBREL follows
        forget_received(broker, session, packet_id)
        if connection.version != V5:
            session.received[packet_id] = None
        connection.acknowledge(encode_acknowledgement(PUBREC, packet_id, refusal, connection.version), 0)
        return
    if connection.version == V5 and not known and not session.exceeding and not connection.own:
        _watch_receive_maximum(broker, session)
    _forget_received(broker, session, packet_id)
    session.received[packet_id] = message
    broker.memory.hold(message)
    commit = 0
    if session.durable:
        commit = broker.change()
        broker.store.set(commit, RECEIVED, (session.client_id, str(packet_id)), message)
        if not broker.router.acknowledges_on_disk(message.topic):
            commit = 0
    reason_code = 0
    if connection.version == V5 and broker.router.route(message.topic).is_empty():
        reason_code = reason_codes.NO_MATCHING_SUBSCRIBERS
    connection.acknowledge(encode_acknowledgement(PUBREC, packet_id, reason_code, connection.version), commit)


def _watch_receive_maximum(broker: Broker, session: Session) -> None:
    """Tell once of a client that keeps more messages open than we announced; it is let be, as in Mosquitto."""
    maximum = broker.limits.max_inflight_messages
    if maximum and len(session.received) >= maximum:
        session.exceeding = True
        broker.log.warning(
            f"Client {printable(session.client_id)} has more QoS 2 messages open than the Receive Maximum of {maximum}"
            " (max_inflight_messages)."
        )


def _forget_received(broker: Broker, session: Session, packet_id: int) -> Message | None:
    message = session.received.pop(packet_id, None)
    if message is not None:
        broker.memory.release(message)
    return message


def forget_received(broker: Broker, session: Session, packet_id: int) -> None:
    """Let go of a QoS 2 message that was not released, in the store, too."""
    if _forget_received(broker, session, packet_id) is not None and session.durable:
        broker.store.delete(broker.change(), RECEIVED, (session.client_id, str(packet_id)))


def _needs_store(broker: Broker, session: Session, message: Message) -> bool:
    """Whether an acknowledgement would have to wait for the store."""
    if not broker.router.acknowledges_on_disk(message.topic):
        return False
    if message.retain or (message.qos == 2 and session.durable):
        return True
    route = broker.router.route(message.topic)
    receivers = list(route.subscriptions)
    for group in route.groups:
        receivers += group.in_turn()
    return any(one.qos and one.session.durable for one in receivers)


def handle_pubrel(
    broker: Broker, connection: Connection, session: Session, packet: Acknowledgement, now: float
) -> None:
    """Route a QoS 2 message, exactly once, and answer PUBCOMP (§4.3.3)."""
    packet_id = packet.packet_id
    if packet_id not in session.received:
        # The PUBREL may repeat one whose PUBCOMP was held back when the connection broke: its change goes first.
        commit = broker.last_change if session.durable else 0
        code = reason_codes.PACKET_IDENTIFIER_NOT_FOUND
        connection.acknowledge(encode_acknowledgement(PUBCOMP, packet_id, code, connection.version), commit)
        return
    message = _forget_received(broker, session, packet_id)
    commit = 0
    if message is not None and (message.expires_at == NEVER or message.expires_at > now):
        commit = _route(broker, connection, message, now)
    if session.durable and message is not None:
        commit = broker.change()
        broker.store.delete(commit, RECEIVED, (session.client_id, str(packet_id)))
        if not broker.router.acknowledges_on_disk(message.topic):
            commit = 0
    connection.acknowledge(encode_acknowledgement(PUBCOMP, packet_id, 0, connection.version), commit)


def _route(broker: Broker, connection: Connection, message: Message, now: float) -> int:
    """Hand a message to its receivers; the publisher's acknowledgements wait where one of them holds too much."""
    if message.topic.startswith(CONTROL) and broker.control is not None:
        broker.no_subscribers_code = 0
        broker.control.request(
            connection.number, message.publisher, message.publisher_user, message.topic, message.payload
        )
        return 0
    commit = routing.publish(broker, message, now)
    if broker.limits.sparkplug and message.topic.startswith("spBv1.0/"):
        _keep_certificate(broker, message, now)
    if broker.overfull and message.qos:
        connection.withhold()
    return commit


def _keep_certificate(broker: Broker, message: Message, now: float) -> None:
    """Retain the birth of a Sparkplug node or device where those look who came before them (Sparkplug 3.0 §10)."""
    levels = message.topic.split("/")
    births = {4: "NBIRTH", 5: "DBIRTH"}
    if len(levels) in births and births[len(levels)] == levels[2]:
        topic = f"$sparkplug/certificates/{message.topic}"
        expires_at, author = message.expires_at, message.publisher
        kept = Message(topic, message.payload, message.qos, True, message.properties, expires_at, author)
        kept.publisher_user = message.publisher_user
        routing.publish(broker, kept, now)


def _resolve_alias(connection: Connection, topic: str, alias: int) -> str:
    """Give the topic that a Topic Alias stands for, or set it up (§3.3.2.3.4)."""
    if alias > connection.limits.max_topic_alias:
        raise ProtocolError(
            f"Topic Alias {alias} is above {connection.limits.max_topic_alias}", reason_codes.TOPIC_ALIAS_INVALID
        )
    if connection.aliases_in is None:
        connection.aliases_in = {}
    if topic:
        old = connection.aliases_in.get(alias)
        connection.hold(text_bytes(topic) - (text_bytes(old) if old is not None else 0))
        connection.aliases_in[alias] = topic
        return topic
    known = connection.aliases_in.get(alias)
    if known is None:
        raise ProtocolError(f"Topic Alias {alias} was never set up", reason_codes.PROTOCOL_ERROR)
    return known
