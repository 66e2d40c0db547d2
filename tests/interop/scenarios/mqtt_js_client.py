"""mqtt.js, in one node process that all of its clients share."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.interop.scenarios.scene import WAIT_SECONDS, Events, Filter, Kind, Options, Told, tell
from tests.support.peers import program

HERE = Path(__file__).parent
_LIMITS = ("topicAliasMaximum", "receiveMaximum", "maximumPacketSize")
_NAMES = {
    "session_expiry_interval": "sessionExpiryInterval",
    "receive_maximum": "receiveMaximum",
    "maximum_packet_size": "maximumPacketSize",
    "topic_alias_maximum": "topicAliasMaximum",
    "topic_alias": "topicAlias",
    "message_expiry_interval": "messageExpiryInterval",
    "payload_format_indicator": "payloadFormatIndicator",
    "content_type": "contentType",
    "response_topic": "responseTopic",
    "correlation_data": "correlationData",
    "user_properties": "userProperties",
    "subscription_identifiers": "subscriptionIdentifier",
    "will_delay_interval": "willDelayInterval",
    "assigned_client_identifier": "assignedClientIdentifier",
    "request_response_information": "requestResponseInformation",
    "server_keep_alive": "serverKeepAlive",
}
_OURS = {theirs: ours for ours, theirs in _NAMES.items()}


class Driver:
    """The node process: commands go in, what the clients saw comes out."""

    def __init__(self) -> None:
        if not (HERE.parent / "node_modules" / "mqtt").is_dir():
            message = "mqtt.js is not installed (make test-peers)"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        self._process = subprocess.Popen(
            [program("node"), str(HERE / "driver.cjs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()
        self._asked = 0
        self._clients: dict[str, MqttJsClient] = {}
        self._answers = Events()
        self._results: dict[int, Any] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def enter(self, client: MqttJsClient) -> str:
        """Give a client its name in the process."""
        with self._lock:
            name = str(len(self._clients))
            self._clients[name] = client
            return name

    def ask(self, command: str, name: str, **more: object) -> Any:
        """Give a command and wait for its result."""
        assert self._process.stdin is not None
        with self._lock:
            self._asked += 1
            number = self._asked
            line = json.dumps({"id": number, "command": command, "client": name, **more})
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        self._answers.ask(number)
        with self._lock:
            answer = self._results.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        return answer["result"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "id" in told:
                with self._lock:
                    self._results[told["id"]] = told
                self._answers.answer(told["id"], [])
            else:
                self._clients[told["client"]].note(told)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(WAIT_SECONDS)


class MqttJsClient:
    """A client over TCP or WebSocket."""

    def __init__(self, kind: Kind, port: int, driver: Driver) -> None:
        self.events = Events()
        self._kind = kind
        self._port = port
        self._driver = driver
        self._name = driver.enter(self)
        self._aliases: dict[int, str] = {}
        self._last_words = ""

    def note(self, told: dict[str, Any]) -> None:
        """Note what the client received; called by the driver's thread."""
        kind = told["cmd"]
        properties: dict[str, Any] = told.get("properties", {})
        if kind == "publish":
            # Seen before mqtt.js puts the topic in the place of its alias
            topic = told["topic"]
            alias = properties.get("topicAlias")
            if alias is not None:
                topic = self._aliases.setdefault(alias, topic)
            payload = base64.b64decode(told["payload"])
            self.events.message(topic, payload, told["qos"], told["retain"], told["dup"], _ours(properties))
        elif kind == "connack":
            shown = _ours({name: value for name, value in properties.items() if name not in _LIMITS})
            self.events.add(f"CONNACK {told['code']} session present={int(told['sessionPresent'])}{tell(shown)}")
        elif kind == "disconnect":
            self._last_words = f" {told['code']}"
        else:
            self.events.close(f"is disconnected{self._last_words}")

    def connect(self, options: Options) -> None:
        """Connect and note CONNACK."""
        will = options.will
        given: dict[str, Any] = {
            "clientId": options.client_id,
            "clean": options.clean,
            "keepalive": options.keep_alive,
            "protocolVersion": self._kind.version,
            "protocolId": "MQIsdp" if self._kind.version == 3 else "MQTT",
        }
        if self._kind.version == 5 and options.properties:
            given["properties"] = _theirs(options.properties)
        if will is not None:
            payload = base64.b64encode(will.payload.encode()).decode()
            given["will"] = {"topic": will.topic, "payload": payload, "qos": will.qos, "retain": will.retain}
            if self._kind.version == 5:
                told = {**will.properties, **({"will_delay_interval": will.delay} if will.delay else {})}
                given["will"]["properties"] = _theirs(told)
        scheme = "ws" if self._kind.websocket else "mqtt"
        self._driver.ask("connect", self._name, url=f"{scheme}://127.0.0.1:{self._port}", options=given)

    def subscribe(self, filters: list[Filter], identifier: int | None) -> list[int] | None:
        """Subscribe and give the codes of SUBACK."""
        asked: dict[str, Any] = {}
        for one in filters:
            asked[one.topic_filter] = {"qos": one.qos}
            if self._kind.version == 5:
                asked[one.topic_filter] |= {
                    "nl": one.no_local,
                    "rap": one.retain_as_published,
                    "rh": one.retain_handling,
                }
        properties = {"subscriptionIdentifier": identifier} if identifier else None
        codes: list[int] | None = self._driver.ask("subscribe", self._name, filters=asked, properties=properties)
        return codes

    def unsubscribe(self, topic_filters: list[str]) -> list[int] | None:
        """Unsubscribe and give the codes of UNSUBACK."""
        codes: list[int] | None = self._driver.ask("unsubscribe", self._name, filters=topic_filters)
        return codes

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool, properties: Told) -> list[int] | None:
        """Publish and give the Reason Code."""
        more = {"properties": _theirs(properties)} if self._kind.version == 5 and properties else {}
        codes: list[int] | None = self._driver.ask(
            "publish",
            self._name,
            topic=topic,
            payload=base64.b64encode(payload).decode(),
            qos=qos,
            retain=retain,
            **more,
        )
        return codes

    def disconnect(self, reason_code: int, properties: Told) -> None:
        """Send DISCONNECT and close."""
        self._driver.ask("end", self._name, reasonCode=reason_code, properties=_theirs(properties))
        self.events.wait_closed()

    def drop(self) -> None:
        """Close the socket without a word."""
        self._driver.ask("drop", self._name)
        self.events.wait_closed()


def _theirs(told: Told) -> dict[str, Any]:
    theirs: dict[str, Any] = {}
    for name, value in told.items():
        if name == "user_properties":
            pairs: dict[str, list[str]] = {}
            for key, text in value:  # type: ignore[attr-defined]
                pairs.setdefault(key, []).append(text)
            value = pairs
        elif name == "payload_format_indicator":
            value = bool(value)
        elif isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        theirs[_NAMES[name]] = value
    return theirs


def _ours(told: dict[str, Any]) -> Told:
    ours: Told = {}
    for name, value in told.items():
        if value is None:
            continue
        if name == "correlationData":
            value = base64.b64decode(value)
        ours[_OURS.get(name, name)] = value
    return ours
