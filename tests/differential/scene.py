"""Plays the steps of a scenario at one broker and gives what was seen, line by line.

A step is a line: a client's name, a verb, words, and `key=value`. After each one every client acknowledges what arrived
and makes round trips until nothing more comes. `broker` is the process. Verbs: see `_Client` and `_broker_step`.
"""

from __future__ import annotations

import re
import select
import shlex
import signal
import time
from pathlib import Path
from typing import Final

from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import (
    V3_1_1,
    V5,
    ConnAck,
    Connect,
    Disconnect,
    Publish,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    Will,
)
from lockgate.mqtt.properties import Properties
from tests.differential.brokers import Broker
from tests.fuzz.differential import RawClient, Seen, normalised

_DEFAULT_PACKET_SIZE: Final = 2_000_000  # Mosquitto 2.1's; 2.0 has no limit and says nothing
_QUIET_SECONDS: Final = 0.03
_RESUMED_SECONDS: Final = 1.0  # what waited for a Session is read from the disk first
_ANSWER_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 5.0
_SHAPE_SECONDS: Final = 1.5
_MAXIMUM: Final = "$SYS/broker/clients/maximum"
_ANSWERS: Final = {
    "subscribe": re.compile("SUBACK"),
    "unsubscribe": re.compile("UNSUBACK"),
    "publish1": re.compile("PUBACK"),
    "publish2": re.compile(r"PUBCOMP|PUBREC \d+ (12[89]|1[3-9]\d)"),
}


class _Connection(RawClient):
    """A raw client that also shows what CONNACK grants."""

    def _connack(self, packet: ConnAck) -> str:
        own = packet.properties or Properties()
        shown = []
        for name in ("server_keep_alive", "topic_alias_maximum", "retain_available", "maximum_packet_size",
                     "receive_maximum", "maximum_qos", "session_expiry_interval"):  # fmt: skip
            value = getattr(own, name)
            if value is not None and (name, value) != ("maximum_packet_size", _DEFAULT_PACKET_SIZE):
                shown.append(f" {name}={value}")
        if own.assigned_client_identifier is not None:
            shown.append(
                f" id={re.sub('[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}', 'UUID', own.assigned_client_identifier)}"
            )
        self.connected = packet.reason_code == 0
        return f"CONNACK {packet.reason_code} present={int(packet.session_present)}{''.join(shown)}"

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def until_closed(self) -> Seen:
        """Wait for the broker to close."""
        seen: Seen = []
        deadline = time.monotonic() + _CLOSE_SECONDS
        while not self.closed and time.monotonic() < deadline:
            seen += self._read(ConnAck)
        return [line for line in seen if line != "silent"] + ([] if self.closed else ["still open"])


class Scene:
    """One scenario at one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._clients: dict[str, _Connection] = {}
        self._versions: dict[str, int] = {}
        self._monitor: RawClient | None = None
        self._packet_id = 0
        self.lines: list[str] = []

    def play(self, steps: str) -> list[str]:
        """Give the transcript."""
        try:
            for step in steps.strip().splitlines():
                if step.strip() and not step.strip().startswith("#"):
                    self._step(step.strip())
        finally:
            for client in self._clients.values():
                client.close()
        return self.lines

    def _step(self, step: str) -> None:
        words = shlex.split(self._broker.filled(step))
        who, verb = words[:2]
        told = {
            key: value
            for key, found, value in (word.partition("=") for word in words[2:])
            if found and key.isidentifier()
        }
        plain = [word for word in words[2:] if not ("=" in word and word.partition("=")[0].isidentifier())]
        self.lines.append(step)
        seen: dict[str, Seen] = {}
        if who == "broker":
            self.lines += [f"  {line}" for line in self._broker_step(verb, plain)]
        else:
            seen[who] = self._client_step(who, verb, plain, told)
        answer = _ANSWERS.get(verb if verb != "publish" else f"publish{plain[2]}") if who != "broker" else None
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            heard = False
            for name, client in self._clients.items():
                if more := client.round_trip():
                    heard = True
                    seen.setdefault(name, []).extend(more)
            resumed = any("present=1" in line for line in seen.get(who, ()))
            if heard or self._something_comes(_RESUMED_SECONDS if resumed else _QUIET_SECONDS):
                continue
            mine = seen.get(who, [])
            missing = answer is not None and not any(answer.match(line) or line == "closed" for line in mine)
            if not missing or time.monotonic() > deadline or who not in self._clients:
                break
        for name, lines in sorted(seen.items()):
            self.lines += [f"  {name}: {line.rstrip()}" for line in normalised(lines)]

    def _something_comes(self, seconds: float) -> bool:
        """Wait a moment: an acknowledgement or a message may wait for the store, which PINGRESP does not."""
        sockets = [client for client in self._clients.values() if client.connected and not client.closed]
        return bool(sockets and select.select(sockets, [], [], seconds)[0])

    # --- the process -------------------------------------------------------------------------------------------------

    def _broker_step(self, verb: str, words: list[str]) -> list[str]:
        broker = self._broker
        if verb == "write":  # a file, with the given lines
            broker.write(words[0], "\n".join(words[1:]) + "\n" if words[1:] else "")
        elif verb == "append":  # a line to a file
            with (broker.folder / words[0]).open("a") as stream:
                stream.write(" ".join(words[1:]) + "\n")
        elif verb == "hup":
            broker.send(signal.SIGHUP)
            return [broker.logged(r"Reloading config")] if not words else []
        elif verb == "restart":
            status = broker.end()
            self._lost()
            broker.start()
            return [f"status {status}"]
        elif verb == "kill":
            broker.end(signal.SIGKILL)
            self._lost()
            broker.start()
        elif verb == "stop":
            return [f"status {broker.end()}"]
        elif verb == "ended":
            return [f"status {broker.ended()}"]
        elif verb == "log":
            return [broker.logged(words[0])]
        elif verb == "exists":
            return [f"{words[0]}: {'there' if (Path(broker.folder) / words[0]).exists() else 'not there'}"]
        else:
            raise ValueError(f"broker {verb}")
        return []

    def _lost(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    # --- clients -----------------------------------------------------------------------------------------------------

    def _client_step(self, who: str, verb: str, words: list[str], told: dict[str, str]) -> Seen:
        if verb == "connect":
            return self._connect(who, told)
        if verb == "open":  # a socket, and bytes in hexadecimal
            client = self._clients[who] = _Connection(int(told.get("port", self._broker.ports["p"])))
            self._versions[who] = int(told.get("v", 4))
            return client.open(bytes.fromhex("".join(words)), self._versions[who])
        if verb == "shape":
            return self._shape(words[0])
        if who not in self._clients:
            return ["is not there"]
        client, version = self._clients[who], self._versions[who]
        if client.closed and verb != "gone":
            return ["is closed"]
        if verb == "gone":
            return client.until_closed()
        if verb == "lose":
            client.close()
            self._settle()
            return []
        if verb == "raw":
            client.send(bytes.fromhex("".join(words)))
            return []
        self._packet_id += 1
        if verb == "subscribe":
            request = SubscriptionRequest(
                words[0], int(words[1]), "nl" in words, "rap" in words, int(told.get("rh", 0))
            )
            properties = Properties(subscription_identifiers=(int(told["id"]),)) if "id" in told else None
            client.send(encode(Subscribe(self._packet_id, [request], properties), version))
        elif verb == "unsubscribe":
            client.send(encode(Unsubscribe(self._packet_id, words), version))
        elif verb == "publish":
            client.send(self._publish(words, told, version))
        elif verb == "disconnect":
            own = Properties(session_expiry_interval=int(told["expiry"])) if "expiry" in told else None
            client.send(encode(Disconnect(int(words[0], 0) if words else 0, own), version))
            client.close()
            self._settle()
        else:
            raise ValueError(f"{who} {verb}")
        return []

    def _shape(self, topic_filter: str) -> Seen:
        """Give the topics below a filter that are told within a second and a half, without their values."""
        client = _Connection(self._broker.ports["p"])
        client.open(encode(Connect("shape", V3_1_1), V3_1_1), V3_1_1)
        client.send(encode(Subscribe(1, [SubscriptionRequest(topic_filter)]), V3_1_1))
        seen: Seen = []
        deadline = time.monotonic() + _SHAPE_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            select.select([client], [], [], left)
            seen += client.round_trip()
        client.close()
        # 2.0 tells the maximum when it grows, which a turn of the timer may hide
        return sorted({line.split(" ")[1] for line in seen if line.startswith("PUBLISH")} - {_MAXIMUM})

    def _publish(self, words: list[str], told: dict[str, str], version: int) -> bytes:
        topic, payload, qos = words[0], words[1].encode(), int(words[2])
        if "size" in told:
            payload *= int(told["size"])
        own = Properties(
            message_expiry_interval=int(told["expiry"]) if "expiry" in told else None,
            content_type=told.get("type"),
            response_topic=told.get("response"),
            topic_alias=int(told["alias"]) if "alias" in told else None,
        )
        publish = Publish(topic, payload, qos, "retain" in words, packet_id=self._packet_id if qos else 0)
        publish.properties = own if version == V5 and own != Properties() else None
        data = encode(publish, version)
        return data + encode_release(self._packet_id) if qos == 2 else data

    def _connect(self, who: str, told: dict[str, str]) -> Seen:
        version = self._versions[who] = int(told.get("v", 4))
        will = None
        if "will" in told:
            own = Properties(will_delay_interval=int(told["delay"])) if "delay" in told else None
            will = Will(
                told["will"], told.get("payload", "gone").encode(), int(told.get("wqos", 0)), "wretain" in told, own
            )
        properties = Properties(
            session_expiry_interval=int(told["expiry"]) if "expiry" in told else None,
            receive_maximum=int(told["rm"]) if "rm" in told else None,
            maximum_packet_size=int(told["mps"]) if "mps" in told else None,
            topic_alias_maximum=int(told["tam"]) if "tam" in told else None,
        )
        connect = Connect(
            told.get("id", who), version, told.get("clean", "1") == "1", int(told.get("keep", 60)), told.get("user"),
            told["password"].encode() if "password" in told else None, will, properties if version == V5 else None,
        )  # fmt: skip
        former = self._clients.pop(who, None)
        if former is not None:
            former.close()
        try:
            client = self._clients[who] = _Connection(int(told.get("port", self._broker.ports["p"])))
        except OSError:
            return ["nobody listens"]
        return client.open(encode(connect, version), version)

    def _settle(self) -> None:
        """Two round trips of another client: what had reached the broker before is handled."""
        if self._monitor is None or self._monitor.closed:
            try:
                self._monitor = RawClient(self._broker.ports["p"])
            except OSError:
                return
            self._monitor.open(encode(Connect("monitor", V3_1_1, keep_alive=0), V3_1_1), V3_1_1)
        self._monitor.round_trip()
        self._monitor.round_trip()


def encode_release(packet_id: int) -> bytes:
    """PUBREL, sent right behind its PUBLISH, so that a step holds the whole exchange."""
    return b"\x62\x02" + packet_id.to_bytes(2, "big")
