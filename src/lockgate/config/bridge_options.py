"""The options of a `connection` in mosquitto.conf → BridgeConfig, with Mosquitto's defaults and words for mistakes."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import cast

from lockgate.config import values
from lockgate.config.errors import ConfigError, MosquittoConfError
from lockgate.config.model import BridgeConfig, BridgeTlsConfig, BridgeTopic, Place, RestartTimeout
from lockgate.config.mosquitto_conf import (
    BadValue,
    Reader,
    a_path,
    boolean,
    integer,
    one_of,
    text,
    whole_number,
)

Bridge = dict[str, object]  # what the lines of one bridge said, by field of BridgeConfig; "places" are those of options
Apply = Callable[[Bridge, str, str], None]

_DEFAULT_PORT = 1883
_MOST_SECONDS = 0xFFFFFFFF


def put(read: Reader, field: str | None = None) -> Apply:
    def apply(bridge: Bridge, name: str, value: str) -> None:
        bridge[field or name] = read(name, value)

    return apply


def once(read: Reader, field: str | None = None) -> Apply:
    """Like `put`, for what Mosquitto accepts once for each bridge."""

    def apply(bridge: Bridge, name: str, value: str) -> None:
        if (field or name) in bridge:
            raise BadValue(f"Duplicate {name} value in configuration.")
        bridge[field or name] = read(name, value)

    return apply


def for_tls(apply: Apply) -> Apply:
    def apply_to_tls(bridge: Bridge, name: str, value: str) -> None:
        apply(cast(Bridge, bridge.setdefault("tls", {})), name, value)

    return apply_to_tls


def cannot(why: str) -> Apply:
    def apply(bridge: Bridge, name: str, value: str) -> None:
        raise BadValue(f"{name} is an option of Mosquitto that cannot be honoured. {why}")

    return apply


# --- values with a form of their own ------------------------------------------------------------------------------


def addresses(bridge: Bridge, name: str, value: str) -> None:
    found = tuple(_address(one) for one in value.split())
    bridge["addresses"] = (*cast(tuple[tuple[str, int], ...], bridge.get("addresses", ())), *found)


def _address(value: str) -> tuple[str, int]:
    """Host and port; an IPv6 address with a port stands in brackets, without one it may stand as it is."""
    match = re.fullmatch(r"\[([^\]]+)\](?::(.*))?", value) or re.fullmatch(r"([^:\[\]]+)(?::(.*))?", value)
    if match is None:
        if value.count(":") > 1 and not set(value) & set("[]"):
            return value, _DEFAULT_PORT
        raise BadValue(f"Invalid address value ({value}).", "HOST, HOST:PORT, [IPv6] or [IPv6]:PORT")
    host, port = match.groups()
    if port is None:
        return host, _DEFAULT_PORT
    if not re.fullmatch(r"[0-9]+", port) or not 1 <= int(port) <= 65535:
        raise BadValue(f"Invalid port value ({port}).", "1 to 65535")
    return host, int(port)


def topic(bridge: Bridge, name: str, value: str) -> None:
    words = [quoted if whole.startswith('"') else whole for whole, quoted in _WORD.findall(value)]
    if not words or len(words) > 5 or '"' in "".join(words):
        raise BadValue(f"Invalid topic value ({value}).", TOPIC)
    said = dict(zip(("pattern", "direction", "qos", "local", "remote"), words, strict=False))
    pattern, direction, qos = said["pattern"], said.get("direction", "out"), said.get("qos", "0")
    local_prefix, remote_prefix = said.get("local", ""), said.get("remote", "")
    if direction.lower() not in ("out", "in", "both"):
        raise BadValue(f"Invalid bridge topic direction '{direction}'.", "out, in, both")
    if qos not in ("0", "1", "2"):
        raise BadValue(f"Invalid bridge QoS level '{qos}'.", "0, 1, 2")
    if not pattern and not (local_prefix and remote_prefix):
        raise BadValue("Invalid bridge remapping.", "an empty pattern with both prefixes: the topic here and there")
    for side, prefix in (("local", local_prefix), ("remote", remote_prefix)):
        if set(prefix) & set("+#"):
            raise BadValue(f"Invalid bridge topic {side} prefix '{prefix}'.", "a prefix without + and #")
        try:
            values.check_topic_filter(prefix + pattern)
        except values.BadValue as bad:
            problem = f"Invalid bridge topic {side} prefix and pattern combination '{prefix + pattern}': {bad}."
            raise BadValue(problem) from None
        if prefix.startswith("$share/") or (prefix + pattern).startswith("$share/"):
            raise BadValue(f"Invalid bridge topic '{prefix + pattern}': a bridge takes part in no Shared Subscription.")
    made = BridgeTopic(
        pattern=pattern,
        direction=direction.lower(),
        qos=int(qos),  # type: ignore[arg-type]
        local_prefix=local_prefix,
        remote_prefix=remote_prefix,
    )
    bridge["topics"] = (*cast(tuple[BridgeTopic, ...], bridge.get("topics", ())), made)


_WORD = re.compile(r'("([^"]*)"(?=\s|$)|\S+)')
TOPIC = "PATTERN [out, in or both [0, 1 or 2 [LOCAL-PREFIX REMOTE-PREFIX]]]"


def restart_timeout(name: str, value: str) -> RestartTimeout:
    words = value.split()
    accepted = "SECONDS, or BASE CAP [STABLE]: base 1 to 3600, cap from base to 7200"
    if len(words) > 3:
        raise BadValue(f"Invalid {name} value ({value}).", accepted)
    numbers = [integer(name, word) for word in words]
    base = numbers[0]
    cap = numbers[1] if len(numbers) > 1 else base
    stable = numbers[2] if len(numbers) > 2 else 0
    if not 1 <= base <= 3600 or cap > 7200 or stable < 0:
        raise BadValue(f"Invalid {name} value ({value}).", accepted)
    if cap < base:
        raise BadValue("backoff cap is lower than the base in restart_timeout.", accepted)
    return RestartTimeout(base, cap, stable)


def start_type(name: str, value: str) -> object:
    if value == "manual":
        raise BadValue("Manual start_type not supported.", "automatic, lazy, once")
    return one_of(automatic="automatic", lazy="lazy", once="once")(name, value)


def notification_topic(name: str, value: str) -> str:
    if set(value) & set("+#\0"):
        raise BadValue(f"Invalid {name} value ({value}).", "a topic without + and #")
    return value


def tcp_keepalive(name: str, value: str) -> tuple[int, int, int]:
    numbers = [integer(name, word) for word in value.split()]
    if len(numbers) != 3 or not all(1 <= number <= 32_767 for number in numbers):
        raise BadValue(f"Invalid {name} value ({value}).", "IDLE INTERVAL COUNT, each 1 to 32767; seconds and probes")
    return numbers[0], numbers[1], numbers[2]


def required_ocsp(bridge: Bridge, name: str, value: str) -> None:
    if boolean(name, value):
        why = "Python cannot ask for a stapled OCSP answer; remove the line and use short-lived certificates."
        cannot(why)(bridge, name, value)


_PSK = cannot("Python has no TLS-PSK before 3.13; use certificates (bridge_certfile, bridge_keyfile).")
_POSITIVE = whole_number(1, 2**31 - 1)

# name: what it does, its values, its default, its line in the reference
OPTIONS: dict[str, tuple[Apply, str, str, str]] = {
    "address": (addresses, "HOST[:PORT] …", "required; port 1883", "the remote broker; several: fail over in order"),
    "addresses": (addresses, "HOST[:PORT] …", "–", "another name of address"),
    "topic": (topic, TOPIC, "required; out 0", "what the bridge carries; repeatable"),
    "bridge_protocol_version": (
        put(one_of(mqttv31=3, mqttv311=4, mqttv50=5), "version"),
        "mqttv31, mqttv311, mqttv50",
        "mqttv311",
        "the MQTT that is spoken with the remote broker",
    ),
    "remote_clientid": (once(text, "client_id"), "text", "HOSTNAME.NAME", "client id at the remote broker"),
    "clientid": (once(text, "client_id"), "text", "–", "another name of remote_clientid"),
    "local_clientid": (once(text, "local_client_id"), "text", "local.REMOTE-ID", "client id here"),
    "remote_username": (once(text, "username"), "text", "–", "login at the remote broker"),
    "username": (once(text), "text", "–", "another name of remote_username"),
    "remote_password": (once(text, "password"), "text", "–", "its password"),
    "password": (once(text), "text", "–", "another name of remote_password"),
    "local_username": (once(text), "text", "–", "login here, known to this broker's own authorities"),
    "local_password": (once(text), "text", "–", "its password"),
    "cleansession": (put(boolean), "true, false", "false", "have the remote broker keep nothing over an outage"),
    "local_cleansession": (put(boolean), "true, false", "cleansession", "queue nothing here over an outage"),
    "keepalive_interval": (put(whole_number(5, 65_535)), "5 to 65535", "60", "Keep Alive in seconds"),
    "start_type": (put(start_type), "automatic, lazy, once", "automatic", "when the bridge connects"),
    "threshold": (put(_POSITIVE), "1 or more", "10", "lazy: messages that wait before it connects"),
    "idle_timeout": (put(_POSITIVE), "seconds", "60", "lazy: silence before it disconnects"),
    "restart_timeout": (
        put(restart_timeout),
        "SECONDS, or BASE CAP [STABLE]",
        "5 30",
        "wait before the next attempt: that long, or random and growing; a connection of STABLE seconds starts anew",
    ),
    "round_robin": (put(boolean), "true, false", "false", "stay with an address that works; false: prefer the first"),
    "try_private": (put(boolean), "true, false", "true", "tell the remote broker that this is a bridge"),
    "notifications": (put(boolean), "true, false", "true", "say 1 or 0 on notification_topic, retained, on both sides"),
    "notifications_local_only": (put(boolean), "true, false", "false", "say it here alone"),
    "notification_topic": (
        once(notification_topic),
        "topic",
        "$SYS/broker/connection/REMOTE-ID/state",
        "where that is said",
    ),
    "bridge_attempt_unsubscribe": (
        put(boolean, "attempt_unsubscribe"),
        "true, false",
        "true",
        "unsubscribe `out` topics at the remote broker, in case they were `in` before",
    ),
    "bridge_outgoing_retain": (put(boolean, "outgoing_retain"), "true, false", "true", "false: send without RETAIN"),
    "bridge_max_packet_size": (
        put(whole_number(0, 268_435_460), "max_packet_size"),
        "bytes",
        "0",
        "larger messages are not sent, but counted; 0: no limit",
    ),
    "bridge_max_topic_alias": (
        put(whole_number(0, 65_535), "max_topic_alias"),
        "0 to 65535",
        "10",
        "topic aliases the remote broker may set up (version 5)",
    ),
    "bridge_receive_maximum": (
        put(whole_number(1, 65_535), "receive_maximum"),
        "1 to 65535",
        "not said",
        "QoS 1 and 2 messages the remote broker may have open (version 5)",
    ),
    "bridge_session_expiry_interval": (
        put(whole_number(0, _MOST_SECONDS), "session_expiry_interval"),
        "seconds",
        "never ends; 0 with cleansession true (Mosquitto: 0)",
        "how long the remote broker keeps the session of a bridge that is away (version 5)",
    ),
    "bridge_bind_address": (once(text, "bind_address"), "address", "any", "our own address of the connection"),
    "bridge_tcp_keepalive": (
        put(tcp_keepalive, "tcp_keepalive"),
        "IDLE INTERVAL COUNT",
        "off",
        "keepalive of TCP: seconds, seconds, probes",
    ),
    "bridge_tcp_user_timeout": (
        put(whole_number(0, 2**31 - 1), "tcp_user_timeout"),
        "milliseconds",
        "the system's",
        "how long sent bytes may stay unacknowledged",
    ),
    "bridge_reload_type": (
        put(one_of(lazy=False, immediate=True), "reload_immediately"),
        "lazy, immediate",
        "lazy",
        "when a changed bridge takes its new options after SIGHUP: with its next connection, or at once",
    ),
    "bridge_cafile": (for_tls(once(a_path, "cafile")), "file", "–", "issuers of the remote broker's certificate"),
    "bridge_capath": (for_tls(once(a_path, "capath")), "folder", "–", "the same, a folder made by `openssl rehash`"),
    "bridge_tls_use_os_certs": (
        for_tls(put(boolean, "use_os_certs")),
        "true, false",
        "false",
        "trust the issuers that the system trusts",
    ),
    "bridge_certfile": (for_tls(once(a_path, "certfile")), "file", "–", "the bridge's own certificate and its chain"),
    "bridge_keyfile": (for_tls(once(a_path, "keyfile")), "file", "–", "its private key, without a passphrase"),
    "bridge_insecure": (for_tls(put(boolean, "insecure")), "true, false", "false", "accept any host name"),
    "bridge_alpn": (for_tls(once(text, "alpn")), "text", "–", "protocol to ask for in the handshake of TLS"),
    "bridge_tls_version": (
        for_tls(put(one_of(**{"tlsv1.2": "tlsv1.2", "tlsv1.3": "tlsv1.3"}), "tls_version")),
        "tlsv1.2, tlsv1.3",
        "tlsv1.2",
        "lowest version",
    ),
    "bridge_ciphers": (for_tls(once(text, "ciphers")), "OpenSSL cipher list", "OpenSSL's", "ciphers of TLS 1.2"),
    "bridge_ciphers_tls1.3": (
        cannot("Python cannot set them; remove the line: OpenSSL's own list for TLS 1.3 is short and good."),
        "–",
        "–",
        "cannot be honoured: OpenSSL's own list is used",
    ),
    "bridge_require_ocsp": (required_ocsp, "false", "false", "true cannot be honoured: use short-lived certificates"),
    "bridge_identity": (_PSK, "–", "–", "cannot be honoured: use certificates"),
    "bridge_psk": (_PSK, "–", "–", "cannot be honoured: use certificates"),
}


def apply(bridges: list[Bridge], name: str, value: str, place: Place) -> None:
    """Take one line of the file. Raises BadValue."""
    if name == "connection":
        if not value:
            raise BadValue("Empty connection value in configuration.", "the name of the bridge")
        if any(bridge["name"] == value for bridge in bridges):
            bridges.append({"name": value, "places": {}})  # what follows is not mixed into the other one
            raise BadValue(f'Duplicate bridge name "{value}".')
        bridges.append({"name": value, "places": {"connection": place}})
        return
    if not bridges:
        raise BadValue("Invalid bridge configuration.", f"{name} below its `connection` line")
    how, accepted, _default, _help = OPTIONS[name]
    if not value:
        raise BadValue(f"Empty {name} value in configuration.", accepted)
    how(bridges[-1], name, value)
    cast(dict[str, Place], bridges[-1]["places"]).setdefault(name, place)


def unfit(bridges: list[Bridge]) -> list[ConfigError]:
    """Find what one bridge lacks or cannot be told together, and bridges that share a session."""
    errors: list[ConfigError] = []
    owners: dict[object, object] = {}
    for bridge in bridges:
        places = cast(dict[str, Place], bridge["places"])
        if "connection" not in places:  # its name was refused
            continue
        problems = list(_problems(bridge))
        local_id = _identifiers(bridge)["local_client_id"]
        if owners.setdefault(local_id, bridge["name"]) != bridge["name"]:
            problem = f"Bridge local_clientid '{local_id}' is not unique. Try changing or setting the local_clientid"
            problems.append(("local_clientid", f"{problem} value for one of the bridges."))
        for option, problem in problems:
            path, line = places.get(option, places["connection"])
            errors.append(MosquittoConfError(problem, path=path, line=line, key=option))
    return errors


def _problems(bridge: Bridge) -> Iterator[tuple[str, str]]:
    if "addresses" not in bridge and "address" not in bridge:
        yield "connection", "Invalid bridge configuration: no remote addresses defined."
    if "topics" not in bridge:
        yield "connection", "Invalid bridge configuration: no topics defined."
    if "password" in bridge and "username" not in bridge and bridge.get("version") != 5:
        yield "remote_password", "remote_password needs remote_username in versions before mqttv50."
    if "local_password" in bridge and "local_username" not in bridge:
        yield "local_password", "local_password needs local_username."
    tls = cast(Bridge, bridge.get("tls", {}))
    for has, misses in (("certfile", "keyfile"), ("keyfile", "certfile")):
        if has in tls and misses not in tls:
            yield f"bridge_{has}", f"bridge_{has} needs bridge_{misses} on the same bridge."
    if tls and not {"cafile", "capath"} & tls.keys() and not tls.get("use_os_certs"):
        option = "bridge_" + next(iter(tls)).replace("use_os_certs", "tls_use_os_certs")
        yield option, f"{option} needs bridge_cafile, bridge_capath or bridge_tls_use_os_certs true: whom to trust."


def _identifiers(bridge: Bridge) -> dict[str, object]:
    """Give what the bridge is called here and there."""
    client_id = bridge.get("client_id", f"{socket.gethostname()}.{bridge['name']}")
    return {"client_id": client_id, "local_client_id": bridge.get("local_client_id", f"local.{client_id}")}


def finish(bridges: list[Bridge]) -> tuple[BridgeConfig, ...]:
    """Give the bridges, which `unfit` found nothing wrong with."""
    made = []
    for bridge in bridges:
        said = bridge | _identifiers(bridge)
        places = cast(dict[str, Place], said.pop("places"))
        tls = cast(dict[str, object] | None, said.pop("tls", None))
        said.setdefault("local_cleansession", said.get("cleansession", False))
        said.setdefault("notification_topic", f"$SYS/broker/connection/{said['client_id']}/state")
        made.append(BridgeConfig(tls=BridgeTlsConfig(places=places, **tls) if tls is not None else None, **said))  # type: ignore[arg-type]
    return tuple(made)
