"""How a client is let in and how it leaves: CONNECT, CONNACK, takeover, DISCONNECT (MQTT 5 §3.1, §3.2, §3.14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockgate.broker import authentication, inbound, outbound, restoring, shedding, subscribing
from lockgate.broker import connection as states
from lockgate.broker.limits import LARGEST_PACKET_BYTES
from lockgate.broker.memory import session_bytes
from lockgate.broker.permissions import Permissions
from lockgate.broker.ports import (
    LATER,
    NEVER,
    PERMITTED,
    SESSIONS,
    WILLS,
    Message,
    StoredSession,
    StoredWill,
    printable,
)
from lockgate.broker.session import NEVER_EXPIRES, Session
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import ProtocolError, UnsupportedVersion
from lockgate.mqtt.packets import V3_1, V3_1_1, V5, ConnAck, Connect, Disconnect
from lockgate.mqtt.properties import Properties

if TYPE_CHECKING:
    from lockgate.broker.broker import Broker
    from lockgate.broker.connection import Connection


def handle_connect(broker: Broker, connection: Connection, packet: Connect, now: float) -> None:
    """Let a client in, refuse it with the CONNACK of its version, or begin the exchange that it asks for (§4.12)."""
    version = packet.version
    connection.version = version
    connection.bridge = packet.bridge
    connection.decoder.version = version
    if packet.properties is not None:
        connection.maximum_packet_size = packet.properties.maximum_packet_size or 0
        connection.wants_reasons = packet.properties.request_problem_information != 0
    if version not in connection.limits.protocol_versions:
        refuse(connection, reason_codes.UNSUPPORTED_PROTOCOL_VERSION, "a version this listener does not accept")
        return
    if connection.limits.username_from_certificate:  # the certificate is the login: CONNECT's password is not looked at
        if connection.identity is None:
            refuse(connection, reason_codes.BAD_USER_NAME_OR_PASSWORD, "no certificate with a name in it")
            return
        packet.username = connection.identity
        packet.password = None
    if not _is_named(broker, connection, packet):
        return
    if packet.will is not None and packet.will.topic.startswith(inbound.CONTROL):
        refuse(connection, reason_codes.NOT_AUTHORIZED, "a Will to $CONTROL")
        return
    if packet.properties is not None and packet.properties.authentication_method is not None:
        authentication.begin(broker, connection, packet, packet.properties, now)
        return
    authority = connection.limits.authority
    if authority is not None:
        certified = connection.limits.username_from_certificate
        permitted = authority.ask_login(
            connection.number, packet.client_id, packet.username, packet.password, certified
        )
        packet.password = None
        if permitted == LATER:
            connection.await_login(packet)
        else:
            finish_login(broker, connection, packet, permitted == PERMITTED, now)
        return
    if not connection.limits.allow_anonymous and connection.identity is None and not connection.limits.trusted:
        anonymous = packet.username is None
        detail = "anonymous clients are not allowed" if anonymous else "no authority knows any user"
        refuse(connection, reason_codes.NOT_AUTHORIZED, detail)
        return
    let_in(broker, connection, packet, packet.username, Properties(), now)


def _is_named(broker: Broker, connection: Connection, packet: Connect) -> bool:
    """Whether a client has a Client Identifier that this listener takes; else it is refused."""
    limits = connection.limits
    if limits.username_as_client_id:
        if packet.username is None:
            refuse(connection, reason_codes.NOT_AUTHORIZED, "no user name, which is the client id here")
            return False
        packet.client_id = packet.username
    client_id = packet.client_id
    if not client_id:
        # [MQTT-3.1.3-8] of 3.1.1
        if packet.version == V3_1 or (packet.version == V3_1_1 and not packet.clean_start):
            refuse(connection, reason_codes.CLIENT_IDENTIFIER_NOT_VALID, "an empty Client Identifier")
            return False
        if not limits.allow_zero_length_clientid:
            code = reason_codes.UNSPECIFIED_ERROR if packet.version == V5 else reason_codes.CLIENT_IDENTIFIER_NOT_VALID
            refuse(connection, code, "an empty Client Identifier, and allow_zero_length_clientid is false")
            return False
        return True
    prefixes = broker.limits.clientid_prefixes
    if prefixes and not connection.own and not limits.trusted and not client_id.startswith(prefixes):
        refuse(connection, reason_codes.NOT_AUTHORIZED, f"{printable(client_id)} has none of the clientid_prefixes")
        return False
    return True


def finish_login(broker: Broker, connection: Connection, packet: Connect, permitted: bool, now: float) -> None:
    """Go on with a CONNECT whose user name and password were looked at."""
    if permitted:
        let_in(broker, connection, packet, packet.username, Properties(), now)
        return
    who = f"user {printable(packet.username)!r}" if packet.username is not None else "no user name"
    refuse(connection, reason_codes.NOT_AUTHORIZED, f"{printable(packet.client_id)!r} with {who} is not let in")


def let_in(
    broker: Broker, connection: Connection, packet: Connect, username: str | None, answer: Properties, now: float
) -> None:
    """Give a client whose user is settled its Session and CONNACK; `answer` may already hold some of its properties."""
    version = packet.version
    requested = packet.properties if packet.properties is not None else _NOTHING
    client_id = packet.client_id
    if not client_id:
        prefix = connection.limits.auto_id_prefix
        client_id = prefix + broker.new_client_id()
        while client_id in broker.sessions:  # somebody may have chosen that name [MQTT-3.2.2-16]
            client_id = prefix + broker.new_client_id()
        answer.assigned_client_identifier = client_id
    # A user name that nobody has looked at owns nothing; as a claim it counts where nobody looks at any.
    owner = username if connection.proves_users else None
    claimed = owner if broker.proves_users else username
    if connection.own:
        broker.own_sessions.add(client_id)
    elif client_id in broker.own_sessions:
        refuse(connection, reason_codes.NOT_AUTHORIZED, f"{printable(client_id)} is a bridge of ours")
        return
    elif _is_too_much(broker, connection, client_id, now) or _is_anothers(broker, connection, client_id, claimed):
        return
    keep_alive = packet.keep_alive
    longest = broker.limits.max_keepalive
    if longest and not connection.own and (keep_alive == 0 or keep_alive > longest):
        if version != V5:
            refuse(connection, reason_codes.CLIENT_IDENTIFIER_NOT_VALID, "the Keep Alive is too long")
            return
        keep_alive = answer.server_keep_alive = longest
    will = packet.will
    if will is not None and will.qos > connection.limits.max_qos:
        if version == V5:
            refuse(connection, reason_codes.QOS_NOT_SUPPORTED, "the Will's QoS is above max_qos")
        else:
            connection.close("the Will's QoS is above max_qos")
        return
    if will is not None and will.retain and not broker.limits.retain_available:
        if version == V5:
            refuse(connection, reason_codes.RETAIN_NOT_SUPPORTED, "a retained Will, and retain_available is false")
        else:
            connection.close("a retained Will, and retain_available is false")
        return

    if version == V5:
        expiry_interval = requested.session_expiry_interval or 0
    else:
        expiry_interval = 0 if packet.clean_start else NEVER_EXPIRES
    properties = _connack_properties(broker, connection, requested, answer) if version == V5 else None
    if connection.maximum_packet_size and not connection.fits(encode(ConnAck(0, False, properties), version)):
        # [MQTT-3.1.2-24]
        refuse(connection, reason_codes.PACKET_TOO_LARGE, "its Maximum Packet Size leaves no room for CONNACK")
        return
    session, session_present = _open_session(broker, client_id, owner, packet.clean_start, expiry_interval, now)
    connection.decoder.maximum_packet_size = min(
        broker.limits.max_packet_size or LARGEST_PACKET_BYTES, LARGEST_PACKET_BYTES
    )
    broker.pending.pop(connection.number, None)
    connection.session = session
    session.connection = connection
    session.version = version
    _set_permissions(broker, connection, session, owner)
    subscribing.end_revoked(broker, session)
    connection.state = states.CONNECTED
    connection.client_name = printable(client_id)
    connection.keep_alive_seconds = keep_alive
    _set_window(broker, connection, requested)
    connection.topic_alias_maximum = min(requested.topic_alias_maximum or 0, connection.limits.max_topic_alias_broker)
    broker.watch(connection)
    if session.durable:
        broker.store.set(
            broker.change(), SESSIONS, (client_id,), StoredSession(expiry_interval, NEVER, session.username)
        )
    if will is not None:
        _keep_will(broker, connection, session, packet)
    broker.log.debug(f"Sending CONNACK to {connection.client_name} ({int(session_present)}, 0)")
    # MQTT 3.1 has no Session Present flag
    connection.send(encode(ConnAck(0, session_present and version != V3_1, properties), version))
    user = f", u'{printable(username)}'" if username is not None else ""
    broker.tell(
        f"New client connected from {connection.peer} as {connection.client_name} "
        f"(p{version}, c{int(packet.clean_start)}, k{packet.keep_alive}{user})."
    )
    outbound.resume(broker, connection, session, now)


_NOTHING = Properties()


def _connack_properties(
    broker: Broker, connection: Connection, requested: Properties, answer: Properties
) -> Properties:
    """Add what this listener allows a client, where it is less than MQTT would (§3.2.2.3)."""
    if connection.limits.max_topic_alias:
        answer.topic_alias_maximum = connection.limits.max_topic_alias
    if not broker.limits.retain_available:
        answer.retain_available = 0
    if broker.limits.max_packet_size:
        answer.maximum_packet_size = broker.limits.max_packet_size
    if 0 < broker.limits.max_inflight_messages < 65535:
        answer.receive_maximum = broker.limits.max_inflight_messages
    if connection.limits.max_qos < 2:
        answer.maximum_qos = connection.limits.max_qos
    if requested.request_response_information and broker.information.response_information:
        answer.response_information = broker.information.response_information  # [MQTT-3.1.2-28]
    return answer


def _is_too_much(broker: Broker, connection: Connection, client_id: str, now: float) -> bool:
    """Refuse a client that the limits leave no room for; say whether that happened."""
    limits = broker.limits
    held_off = broker.flapping.held_off(client_id, now)
    if held_off:
        code = reason_codes.CONNECTION_RATE_EXCEEDED
        refuse(connection, code, f"{printable(client_id)} connects too often, held off for {held_off:.0f} s")
        return True
    if not broker.connect_rate.allows(client_id, now):
        refuse(connection, reason_codes.CONNECTION_RATE_EXCEEDED, f"{printable(client_id)} is above connect_rate")
        return True
    session = broker.sessions.get(client_id)
    connected = session is not None and session.connection is not None
    if limits.connections and not connected and len(broker.connections) - len(broker.pending) >= limits.connections:
        refuse(connection, reason_codes.SERVER_BUSY, f"{limits.connections} clients are connected")
        return True
    if limits.sessions and session is None and len(broker.sessions) >= limits.sessions:
        refuse(connection, reason_codes.QUOTA_EXCEEDED, f"there are {limits.sessions} sessions")
        return True
    if session is None and shedding.is_exhausted(broker, now):
        refuse(connection, reason_codes.SERVER_BUSY, "the memory budget is spent")
        return True
    return False


def _is_anothers(broker: Broker, connection: Connection, client_id: str, username: str | None) -> bool:
    """Refuse a client that names another user's Session; say whether that happened (DESIGN §3.4)."""
    session = broker.sessions.get(client_id)
    if session is None or session.username is None or session.username == username or not broker.limits.session_owner:
        return False
    detail = f"the session {printable(client_id)} belongs to user {printable(session.username)!r} (session_owner)"
    refuse(connection, reason_codes.NOT_AUTHORIZED, detail)
    return True


def _set_permissions(broker: Broker, connection: Connection, session: Session, username: str | None) -> None:
    """Have the rules for this user apply to a Session; those of our own bridges are in their `topic` lines."""
    authority = connection.limits.authority if not connection.own else None
    old = session.permissions
    if old is not None:
        if old.authority is authority and old.username == username:
            return
        old.forget()
    elif authority is None:
        return
    session.permissions = (
        Permissions(authority, session.client_id, username, broker.memory) if authority is not None else None
    )
    if session.subscriptions:  # they were routed by the rules for another
        broker.router.forget_all()


def _open_session(
    broker: Broker, client_id: str, username: str | None, clean_start: bool, expiry_interval: int, now: float
) -> tuple[Session, bool]:
    """Give the Session of a client id and whether it was there before; whoever had it is disconnected (§3.1.4)."""
    old = broker.sessions.get(client_id)
    if old is not None and old.connection is not None:
        predecessor = old.connection
        predecessor.close_with(reason_codes.SESSION_TAKEN_OVER, "another connection uses this client id")
        broker.detach(predecessor, now, clean_start)
        old = broker.sessions.get(client_id)  # a Session without expiry ended just now
    if old is not None and clean_start:
        broker.end_session(old, now, "the client started clean")
        old = None
    if old is None:
        _forget_will(broker, client_id)  # of a Session that a restart ended
        session = Session(client_id, expiry_interval, username)
        session.standing_bytes = restoring.standing_bytes(broker, client_id)
        if session.durable:
            session.head_position = session.last_position = broker.spent_position
        broker.sessions[client_id] = session
        broker.memory.used += session_bytes(client_id, username)
        return session, False
    _forget_will(broker, client_id)  # it returned before its Will Delay had passed [MQTT-3.1.3-9]
    old.expiry_interval = expiry_interval
    old.expires_at = NEVER
    if username is not None or not broker.limits.session_owner:
        broker.memory.used += session_bytes(client_id, username) - session_bytes(client_id, old.username)
        old.username = username
    return old, True


def _forget_will(broker: Broker, client_id: str) -> None:
    will = broker.wills.pop(client_id, None)
    if will is not None:
        broker.memory.release(will[0])
        broker.store.delete(broker.change(), WILLS, (client_id,))


def _set_window(broker: Broker, connection: Connection, requested: Properties) -> None:
    ours = broker.limits.max_inflight_messages or 65535
    theirs = requested.receive_maximum or 65535
    connection.window = min(ours, theirs)


def _keep_will(broker: Broker, connection: Connection, session: Session, packet: Connect) -> None:
    will = packet.will
    assert will is not None
    properties = will.properties
    delay = 0
    if properties is not None:
        delay = properties.will_delay_interval or 0
        properties.will_delay_interval = None  # it is not part of the message
    topic = connection.limits.mount_point + will.topic
    connection.will = Message(topic, will.payload, will.qos, will.retain, properties, NEVER, session.client_id)
    connection.will.publisher_user = session.username
    connection.will_delay = delay
    broker.memory.hold(connection.will)
    stored = StoredWill(connection.will, min(delay, session.expiry_interval), connection.keep_alive_seconds, NEVER)
    broker.store.set(broker.change(), WILLS, (session.client_id,), stored)


def refuse(connection: Connection, reason_code: int, detail: str) -> None:
    """Answer CONNECT with a refusal and close; versions before 5 have a code for few reasons and else just close."""
    told = reason_code if connection.version == V5 else reason_codes.CONNACK_V3.get(reason_code)
    if told is not None:
        connection.broker.log.debug(f"Sending CONNACK to {connection.peer} (0, {told})")
    if connection.version == V5:
        properties: Properties | None = None
        information = connection.broker.information
        if reason_code == reason_codes.SERVER_BUSY and information.reference:
            reason_code = information.redirection()
            properties = Properties(server_reference=information.reference)
        send_refusal(connection, reason_code, detail, properties)
    else:
        code = reason_codes.CONNACK_V3.get(reason_code)
        if code is not None:
            connection.send(encode(ConnAck(code), connection.version))
    connection.close(f"refused, {reason_codes.NAMES[reason_code]}: {detail}")


def send_refusal(connection: Connection, reason_code: int, detail: str, properties: Properties | None = None) -> None:
    """Send the CONNACK of a refusal to a version 5 client, or as much of it as the client takes [MQTT-3.2.2-19]."""
    explained = connection.reason_string(reason_code, detail)
    if explained is not None and properties is not None:
        explained.server_reference = properties.server_reference
    for part in (explained, properties, None):
        frame = encode(ConnAck(reason_code, False, part), V5)
        if connection.fits(frame):
            connection.send(frame)
            return


def refuse_version(connection: Connection, error: UnsupportedVersion) -> None:
    """Answer a CONNECT whose version we do not speak.

    A level below 5 asks for the return code of 3.1.1 [MQTT-3.1.2-2 of 3.1.1], one above for that of version 5.
    """
    if error.known_protocol:
        if error.protocol_name == "MQTT" and error.protocol_level & 0x7F >= V5:
            connection.send(encode(ConnAck(reason_codes.UNSUPPORTED_PROTOCOL_VERSION), V5))
        else:
            connection.send(encode(ConnAck(reason_codes.UNACCEPTABLE_PROTOCOL_VERSION_V3), V3_1_1))
    connection.close(f"refused: {error.detail}")


def handle_disconnect(broker: Broker, connection: Connection, session: Session, packet: Disconnect) -> None:
    """Let a client go; only a normal disconnection discards its Will [MQTT-3.1.2-8], in version 5 by its code 0x00."""
    properties = packet.properties
    if properties is not None and properties.session_expiry_interval is not None:
        if session.expiry_interval == 0 and properties.session_expiry_interval:  # [MQTT-3.14.2.2.2]
            raise ProtocolError("DISCONNECT sets a Session Expiry Interval that CONNECT left at 0")
        session.expiry_interval = properties.session_expiry_interval
        if session.durable:  # one that never expires is not stored again when its connection is gone
            stored = StoredSession(session.expiry_interval, NEVER, session.username)
            broker.store.set(broker.change(), SESSIONS, (session.client_id,), stored)
    if packet.reason_code == reason_codes.SUCCESS:
        if connection.will is not None:
            broker.memory.release(connection.will)
            connection.will = None
            broker.store.delete(broker.change(), WILLS, (session.client_id,))
    connection.close("")
