"""Enhanced authentication: AUTH packets before CONNACK, and again on a connection that lasts (MQTT 5 §4.12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, final

from lockgate.broker import connection as states
from lockgate.broker import handshake
from lockgate.broker.limits import CONNECT_PACKET_BYTES
from lockgate.broker.ports import AuthenticationExchange
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.errors import MqttError, ProtocolError
from lockgate.mqtt.packets import AUTH, DISCONNECT, TYPE_NAMES, V5, Auth, Connect, Packet
from lockgate.mqtt.properties import Properties

if TYPE_CHECKING:
    from lockgate.broker.broker import Broker
    from lockgate.broker.connection import Connection


@final
class Authentication:
    """The Authentication Method of a connection, from its CONNECT to its end, and the exchange in progress."""

    __slots__ = ("connect", "exchange", "method", "username")

    def __init__(self, method: str, exchange: AuthenticationExchange, connect: Connect) -> None:
        self.method = method
        self.exchange: AuthenticationExchange | None = exchange
        self.connect: Connect | None = connect  # the CONNECT that waits for the exchange
        self.username = ""  # whom the first exchange proved


def begin(broker: Broker, connection: Connection, packet: Connect, properties: Properties, now: float) -> None:
    """Begin the exchange of a CONNECT with an Authentication Method, or refuse a method that is not offered."""
    method = properties.authentication_method
    assert method is not None
    exchange = broker.authenticator.begin(method) if broker.authenticator is not None else None
    if exchange is None:  # [MQTT-4.12.0-1]
        detail = "no Authentication Method is offered" if broker.authenticator is None else "it is not offered"
        handshake.refuse(connection, reason_codes.BAD_AUTHENTICATION_METHOD, detail)
        return
    connection.state = states.AUTHENTICATING
    connection.authentication = Authentication(method, exchange, packet)
    connection.hold(CONNECT_PACKET_BYTES)  # the largest there may be, whatever this one holds: it does not wait long
    _step(broker, connection, connection.authentication, exchange, properties.authentication_data, now)


def handle_packet(broker: Broker, connection: Connection, packet: Packet, now: float) -> None:
    """Take what a client sends before CONNACK: AUTH or DISCONNECT, nothing else [MQTT-3.1.2-30]."""
    if packet.type == AUTH:
        handle_auth(broker, connection, cast(Auth, packet), now)
    elif packet.type == DISCONNECT:
        connection.close("")
    else:
        raise ProtocolError(f"{TYPE_NAMES[packet.type]} before the authentication has ended")


def handle_auth(broker: Broker, connection: Connection, packet: Auth, now: float) -> None:
    """Go on with an exchange, or begin a re-authentication (§4.12.1)."""
    state = connection.authentication
    if state is None:
        raise ProtocolError("AUTH without an Authentication Method in CONNECT")  # [MQTT-4.12.0-7]
    properties = packet.properties
    if properties is None or properties.authentication_method != state.method:  # [MQTT-4.12.0-5, 4.12.1-1]
        raise ProtocolError("AUTH without the Authentication Method of CONNECT")
    exchange = state.exchange
    if packet.reason_code == reason_codes.RE_AUTHENTICATE:
        if exchange is not None:
            raise ProtocolError("AUTH begins again before the exchange has ended")
        assert broker.authenticator is not None
        exchange = state.exchange = broker.authenticator.begin(state.method)
        if exchange is None:  # offered when the client connected, and no longer
            raise MqttError("the Authentication Method is not offered", reason_codes.BAD_AUTHENTICATION_METHOD)
    elif packet.reason_code != reason_codes.CONTINUE_AUTHENTICATION or exchange is None:
        raise ProtocolError(f"AUTH with Reason Code 0x{packet.reason_code:02X} without an exchange to go on with")
    _step(broker, connection, state, exchange, properties.authentication_data, now)


def _step(
    broker: Broker,
    connection: Connection,
    state: Authentication,
    exchange: AuthenticationExchange,
    data: bytes | None,
    now: float,
) -> None:
    step = exchange.step(data if data is not None else b"")
    code = step.reason_code
    answer = Properties(authentication_method=state.method, authentication_data=step.data or None)
    if code == reason_codes.CONTINUE_AUTHENTICATION:
        _send(connection, Auth(code, answer))
        return
    state.exchange = None
    connect = state.connect
    if connect is not None:
        connection.hold(-CONNECT_PACKET_BYTES)
    state.connect = None
    if code != reason_codes.SUCCESS:
        if connect is not None:
            handshake.refuse(connection, code, step.detail)  # [MQTT-4.12.0-4]
            return
        raise MqttError(f"the re-authentication failed: {step.detail}", code)  # [MQTT-4.12.1-2]
    if connect is not None:
        if connection.limits.username_from_certificate and step.username != connection.identity:
            detail = "the certificate and the Authentication Method name different users"
            handshake.refuse(connection, reason_codes.NOT_AUTHORIZED, detail)
            return
        if connection.limits.username_as_client_id and step.username != connect.username:
            detail = (
                "CONNECT, whose user name is the client id here, and the Authentication Method name different users"
            )
            handshake.refuse(connection, reason_codes.NOT_AUTHORIZED, detail)
            return
        state.username = step.username
        handshake.let_in(broker, connection, connect, step.username, answer, now)
    elif step.username != state.username:  # everything that the Session holds belongs to the first
        raise MqttError("the re-authentication is that of another user", reason_codes.NOT_AUTHORIZED)
    else:
        _send(connection, Auth(code, answer))


def _send(connection: Connection, packet: Auth) -> None:
    frame = encode(packet, V5)
    if connection.fits(frame):
        connection.send(frame)
    else:
        connection.close("its Maximum Packet Size leaves no room for AUTH")
