"""Eclipse Paho's Python client."""

from __future__ import annotations

import socket
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.interop.scenarios.scene import Events, Filter, Kind, Options, Told, tell

_NAMES = {
    "session_expiry_interval": "SessionExpiryInterval",
    "receive_maximum": "ReceiveMaximum",
    "maximum_packet_size": "MaximumPacketSize",
    "topic_alias_maximum": "TopicAliasMaximum",
    "topic_alias": "TopicAlias",
    "message_expiry_interval": "MessageExpiryInterval",
    "payload_format_indicator": "PayloadFormatIndicator",
    "content_type": "ContentType",
    "response_topic": "ResponseTopic",
    "correlation_data": "CorrelationData",
    "user_properties": "UserProperty",
    "subscription_identifiers": "SubscriptionIdentifier",
    "will_delay_interval": "WillDelayInterval",
    "request_response_information": "RequestResponseInformation",
    "assigned_client_identifier": "AssignedClientIdentifier",
    "server_keep_alive": "ServerKeepAlive",
    "reason_string": "ReasonString",
    "retain_available": "RetainAvailable",
    "maximum_qos": "MaximumQoS",
}
_LIMITS = ("topic_alias_maximum", "receive_maximum", "maximum_packet_size")


class PahoClient:
    """A client with its own network thread, over TCP or WebSocket."""

    def __init__(self, kind: Kind, port: int) -> None:
        self.events = Events()
        self._kind = kind
        self._port = port
        self._new = kind.version == 5
        self._client: paho.Client

    def connect(self, options: Options) -> None:
        """Connect and note CONNACK."""
        client = self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            clean_session=None if self._new else options.clean,
            protocol={3: paho.MQTTv31, 4: paho.MQTTv311, 5: paho.MQTTv5}[self._kind.version],
            transport="websockets" if self._kind.websocket else "tcp",
            reconnect_on_failure=False,
        )
        events = self.events
        client.on_socket_open = _no_delay
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_subscribe = lambda _c, _d, mid, codes, _p: events.answer(("sub", mid), [code.value for code in codes])
        client.on_unsubscribe = lambda _c, _d, mid, codes, _p: events.answer(
            ("unsub", mid), [code.value for code in codes] if self._new else []
        )
        client.on_publish = lambda _c, _d, mid, code, _p: events.answer(("pub", mid), [code.value])
        client.on_disconnect = self._on_disconnect
        will = options.will
        if will is not None:
            told = {**will.properties, **({"will_delay_interval": will.delay} if will.delay else {})}
            properties = self._properties(PacketTypes.WILLMESSAGE, told)
            client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
        more: dict[str, Any] = {}
        if self._new:
            properties = self._properties(PacketTypes.CONNECT, options.properties)
            more = {"clean_start": options.clean, "properties": properties}
        client.connect("127.0.0.1", self._port, options.keep_alive, **more)
        client.loop_start()
        events.ask("connack")

    def _properties(self, packet_type: int, told: Told) -> Properties | None:
        if not self._new or not told:
            return None
        properties = Properties(packet_type)
        for name, value in told.items():
            setattr(properties, _NAMES[name], list(value) if isinstance(value, tuple) else value)
        return properties

    def _on_connect(self, _client: object, _data: object, flags: Any, code: ReasonCode, properties: Any) -> None:
        told = {name: value for name, value in _told(properties).items() if name not in _LIMITS}
        self.events.add(f"CONNACK {code.value} session present={int(flags.session_present)}{tell(told)}")
        self.events.answer("connack", [])

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        told = _told(getattr(message, "properties", None))
        topic = message.topic or f"alias {told.get('topic_alias')}"
        self.events.message(topic, bytes(message.payload), message.qos, message.retain, message.dup, told)

    def _on_disconnect(self, _client: object, _data: object, flags: Any, code: ReasonCode, _p: object) -> None:
        told = f" {code.value}" if flags.is_disconnect_packet_from_server else ""
        self.events.close(f"is disconnected{told}")

    def subscribe(self, filters: list[Filter], identifier: int | None) -> list[int] | None:
        """Subscribe and give the codes of SUBACK."""
        if self._new:
            properties = self._properties(
                PacketTypes.SUBSCRIBE, {"subscription_identifiers": identifier} if identifier else {}
            )
            asked = [
                (
                    one.topic_filter,
                    SubscribeOptions(one.qos, one.no_local, one.retain_as_published, one.retain_handling),
                )
                for one in filters
            ]
            _result, mid = self._client.subscribe(asked, properties=properties)
        else:
            _result, mid = self._client.subscribe([(one.topic_filter, one.qos) for one in filters])
        return self.events.ask(("sub", mid)) if mid is not None else None

    def unsubscribe(self, topic_filters: list[str]) -> list[int] | None:
        """Unsubscribe and give the codes of UNSUBACK."""
        _result, mid = self._client.unsubscribe(topic_filters)
        return self.events.ask(("unsub", mid)) if mid is not None else None

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool, properties: Told) -> list[int] | None:
        """Publish and give the Reason Code."""
        told = self._properties(PacketTypes.PUBLISH, properties)
        info = self._client.publish(topic, payload, qos, retain, told)
        return self.events.ask(("pub", info.mid))

    def disconnect(self, reason_code: int, properties: Told) -> None:
        """Send DISCONNECT and close."""
        code = ReasonCode(PacketTypes.DISCONNECT, identifier=reason_code) if self._new else None
        self._client.disconnect(code, self._properties(PacketTypes.DISCONNECT, properties))
        self._client.loop_stop()

    def drop(self) -> None:
        """Close the socket without a word."""
        sock: Any = self._client.socket()
        raw = getattr(sock, "_socket", sock)  # below a WebSocket
        raw.shutdown(socket.SHUT_RDWR)
        self.events.wait_closed()
        self._client.loop_stop()


def _no_delay(_client: object, _data: object, sock: Any) -> None:
    getattr(sock, "_socket", sock).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _told(properties: Any) -> Told:
    told: Told = {}
    for name, theirs in _NAMES.items():
        if properties is not None and hasattr(properties, theirs):
            value = getattr(properties, theirs)
            told[name] = [tuple(pair) for pair in value] if name == "user_properties" else value
    return told
