"""gmqtt, an asyncio client; all of them share one loop in one thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

from tests.interop.scenarios.scene import WAIT_SECONDS, Events, Filter, Kind, Options, Told, tell

_NAMES = {
    "user_properties": "user_property",
    "payload_format_indicator": "payload_format_id",
    "subscription_identifiers": "subscription_identifier",
}
_OURS = {theirs: ours for ours, theirs in _NAMES.items()}
_LIMITS = ("topic_alias_maximum", "receive_maximum", "maximum_packet_size")
logging.getLogger("gmqtt").setLevel(logging.CRITICAL)


class _Loop:
    """One event loop in a thread of its own, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Any) -> Any:
        """Run a coroutine there and give its result."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_SECONDS)


_LOOP = _Loop()


class GmqttClient:
    """A client of version 3.1.1 or 5."""

    def __init__(self, kind: Kind, port: int) -> None:
        self.events = Events()
        self._kind = kind
        self._port = port
        self._client: Any

    def connect(self, options: Options) -> None:
        """Connect and note CONNACK."""
        _LOOP.run(self._connect(options))

    async def _connect(self, options: Options) -> None:
        will = options.will
        message = None
        if will is not None:
            told = _theirs({**will.properties, **({"will_delay_interval": will.delay} if will.delay else {})})
            message = gmqtt.Message(will.topic, will.payload, qos=will.qos, retain=will.retain, **told)
        told = _theirs(options.properties) if self._kind.version == 5 else {}
        client = self._client = gmqtt.Client(
            options.client_id, clean_session=options.clean, will_message=message, **told
        )
        client.set_config({"reconnect_retries": -2, "reconnect_delay": 0})  # -1 would be for ever, 0 once
        client.on_connect = lambda _c, flags, code, told: self._connack(flags, code, told, options.properties)
        client.on_message = self._on_message
        client.on_subscribe = lambda _c, mid, codes, _p: self.events.answer(("sub", mid), list(codes))
        client.on_unsubscribe = lambda _c, mid, codes: self.events.answer(("unsub", mid), list(codes))
        client.on_disconnect = lambda _c, packet, _exc=None: self._on_disconnect(packet)
        version = MQTTv50 if self._kind.version == 5 else MQTTv311
        try:
            await client.connect("127.0.0.1", self._port, keepalive=options.keep_alive, version=version)
        except gmqtt.MQTTConnectError as error:
            self.events.close(f"CONNACK refused: {error}")

    def _connack(self, flags: int, code: int, told: dict[str, Any], asked: Told) -> None:
        answered = {
            name: value for name, value in _ours(told).items() if name not in _LIMITS and asked.get(name) != value
        }
        self.events.add(f"CONNACK {code} session present={flags}{tell(answered)}")

    def _on_message(self, _client: object, topic: str, payload: bytes, qos: int, properties: dict[str, Any]) -> None:
        told = dict(properties)
        dup, retain = bool(told.pop("dup", 0)), bool(told.pop("retain", 0))
        self.events.message(topic, payload, qos, retain, dup, _ours(told))

    def _on_disconnect(self, packet: Any) -> None:
        code = f" {packet[0]}" if isinstance(packet, bytes) and packet else ""
        self.events.close(f"is disconnected{code}")

    def subscribe(self, filters: list[Filter], identifier: int | None) -> list[int] | None:
        """Subscribe and give the codes of SUBACK."""
        asked = [
            gmqtt.Subscription(
                one.topic_filter,
                qos=one.qos,
                no_local=one.no_local,
                retain_as_published=one.retain_as_published,
                retain_handling_options=one.retain_handling,
            )
            for one in filters
        ]
        more = {"subscription_identifier": identifier} if identifier else {}

        async def subscribe() -> Any:
            return self._client.subscribe(asked, **more)

        return self.events.ask(("sub", _LOOP.run(subscribe())))

    def unsubscribe(self, topic_filters: list[str]) -> list[int] | None:
        """Unsubscribe and give the codes of UNSUBACK."""

        async def unsubscribe() -> Any:
            return self._client.unsubscribe(topic_filters)

        return self.events.ask(("unsub", _LOOP.run(unsubscribe())))

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool, properties: Told) -> list[int] | None:
        """Publish and wait until the client has forgotten the message; it tells no Reason Code."""

        async def publish() -> None:
            told = _theirs(properties) if self._kind.version == 5 else {}
            self._client.publish(topic, payload, qos=qos, retain=retain, **told)
            if qos:
                await self._client._persistent_storage.wait_empty()

        _LOOP.run(publish())
        return []

    def disconnect(self, reason_code: int, properties: Told) -> None:
        """Send DISCONNECT and close."""
        _LOOP.run(self._client.disconnect(reason_code, **_theirs(properties)))
        self.events.close("is disconnected")

    def drop(self) -> None:
        """Close the socket without a word."""

        async def drop() -> None:
            self._client._is_active = False
            self._client._connection._transport.abort()

        _LOOP.run(drop())
        self.events.close("is disconnected")


def _theirs(told: Told) -> dict[str, Any]:
    return {_NAMES.get(name, name): list(value) if isinstance(value, tuple) else value for name, value in told.items()}


def _ours(told: dict[str, Any]) -> Told:
    """Give properties our names; gmqtt puts each into a list."""
    ours: Told = {}
    for name, value in told.items():
        name = _OURS.get(name, name)
        if name not in ("user_properties", "subscription_identifiers") and isinstance(value, list):
            value = value[0]
        ours[name] = [tuple(pair) for pair in value] if name == "user_properties" else value
    return ours
