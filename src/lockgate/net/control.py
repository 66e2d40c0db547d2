"""What clients ask of the broker by publishing below `$CONTROL/`, and its answers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from lockgate import __version__
from lockgate.broker import routing
from lockgate.broker.ports import NEVER, Message
from lockgate.mqtt import reason_codes
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import Publish
from lockgate.net.logins import Logins

if TYPE_CHECKING:
    from lockgate.net.service import BrokerService

log = logging.getLogger(__name__)

BROKER: Final = "$CONTROL/broker/v1"


class ControlAnswer(Protocol):
    """What a request came to."""

    @property
    def payload(self) -> bytes:
        """For whoever may read the topic of responses."""

    @property
    def disconnect(self) -> frozenset[str]:
        """User names whose clients may not be here any more."""

    @property
    def disconnect_anonymous(self) -> bool:
        """Whether clients without a user name may not be here any more."""

    @property
    def changed(self) -> bool:
        """Whether rules are others now."""


# Takes a payload, who asks, and what gives the addresses of a user's clients. Called in a thread: it may take its time.
Endpoint = Callable[[bytes, str, Callable[[str], list[str]]], ControlAnswer]


class ControlTopics:
    """The core's `Control`: requests are handled one after the other, beside the loop, and answered on it."""

    def __init__(self, service: BrokerService) -> None:
        self._service = service
        self.enable_broker = False  # enable_control_api

    def request(self, number: int, client_id: str, username: str | None, topic: str, payload: bytes) -> None:
        """Take a request of a client that may publish it."""
        endpoints = self._endpoints(number)
        endpoint = endpoints.get(topic)
        if endpoint is not None:
            self._hand_over(endpoint, username or client_id, topic, payload)
        elif topic == BROKER and self.enable_broker:
            self._answer(topic, self._broker(payload, sorted(endpoints)))
        else:
            self._refuse(number, topic)

    def _endpoints(self, number: int) -> Mapping[str, Endpoint]:
        """Give what the rules of a connection let its client ask: who has other rules does not change these."""
        broker = self._service.broker
        connection = broker.connections.get(number)
        if connection is None:
            return {}
        authority = broker.default_authority if connection.own else connection.limits.authority
        return authority.rules.endpoints() if isinstance(authority, Logins) else {}

    def _hand_over(self, endpoint: Endpoint, requester: str, topic: str, payload: bytes) -> None:
        addresses: dict[str, list[str]] = {}  # taken now: the thread must not look into the core
        for session in self._service.broker.sessions.values():
            if session.connection is not None and session.username is not None:
                addresses.setdefault(session.username, []).append(session.connection.peer.rpartition(":")[0])
        loop = asyncio.get_running_loop()

        def handle() -> None:
            try:
                answer = endpoint(payload, requester, lambda username: addresses.get(username, []))
            except Exception:
                log.exception("a request to %s failed", topic)
                return
            loop.call_soon_threadsafe(self._end, topic, answer)

        self._service.hashing.submit(handle)

    def _end(self, topic: str, answer: ControlAnswer) -> None:
        service = self._service
        if answer.changed:
            service.broker.rules_changed()
        self._answer(topic, answer.payload)
        if answer.disconnect or answer.disconnect_anonymous:
            # After the answer: it may be for one of them.
            asyncio.get_running_loop().call_soon(self._disconnect, answer.disconnect, answer.disconnect_anonymous)

    def _disconnect(self, users: frozenset[str], anonymous: bool) -> None:
        service = self._service
        now = service.clock()
        for session in list(service.broker.sessions.values()):
            connection = session.connection
            if connection is None or connection.own:
                continue
            if session.username in users if session.username is not None else anonymous:
                detail = "its rights were changed"
                service.broker.disconnect(session.client_id, reason_codes.ADMINISTRATIVE_ACTION, detail, now)
        service.flush()

    def _answer(self, topic: str, payload: bytes) -> None:
        service = self._service
        message = Message(f"{topic}/response", payload, 0, False, None, NEVER, "")
        routing.publish(service.broker, message, service.clock())
        service.flush()

    def _refuse(self, number: int, topic: str) -> None:
        """Tell the asker alone that nobody serves this."""
        connection = self._service.broker.connections.get(number)
        if connection is not None:
            answer = Publish(f"{topic}/response", b'{"error": "endpoint not available"}')
            frame = encode(answer, connection.version)
            if connection.fits(frame):
                connection.send(frame)

    def _broker(self, payload: bytes, served: list[str]) -> bytes:
        responses: list[dict[str, Any]] = []
        try:
            commands = json.loads(payload)["commands"]
            if not isinstance(commands, list):
                raise TypeError
        except (ValueError, RecursionError):
            responses.append({"command": "Unknown command", "error": "Payload not valid JSON"})
            commands = []
        except (KeyError, TypeError):
            responses.append({"command": "Unknown command", "error": "Invalid/missing commands"})
            commands = []
        for one in commands:
            responses.append(self._command(one, served))
        return json.dumps({"responses": responses}).encode()

    def _command(self, one: object, served: list[str]) -> dict[str, Any]:
        if not isinstance(one, dict):
            return {"command": "Unknown command", "error": "Command not an object"}
        name = one.get("command")
        answer: dict[str, Any] = {"command": name if isinstance(name, str) else "Unknown command"}
        if not isinstance(name, str):
            answer["error"] = "Missing command"
        elif name.lower() == "listlisteners":
            answer["data"] = {"listeners": [_described(one) for one in self._service.listener_configs()]}
        elif name.lower() == "listplugins":
            answer["data"] = {
                "plugins": [{"name": topic.split("/")[1], "version": __version__, "control-endpoints": [topic]}
                            for topic in served]
            }  # fmt: skip
        else:
            answer["error"] = "Unknown command"
        if isinstance(one.get("correlationData"), str):
            answer["correlationData"] = one["correlationData"]
        return answer


def _described(config: Any) -> dict[str, Any]:
    protocol = "httpapi" if config.http_api else "mqtt+websockets" if config.websockets else "mqtt"
    found: dict[str, Any] = {"port": config.port, "protocol": protocol, "tls": config.tls is not None}
    if config.address is not None:
        found["bind-address"] = config.address
    if config.path is not None:
        found["socket-path"] = str(config.path)
    return found
