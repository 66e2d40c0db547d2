"""`lockgate verify`: does every listener let a client in, and do messages pass through it? Nothing of it remains."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lockgate.cli.common import load_config
from lockgate.cli.doctor import add_place
from lockgate.config.errors import ConfigError
from lockgate.config.secrets import first_line
from lockgate.doctor.case import find_configuration
from lockgate.doctor.doors import Shown, doors
from lockgate.doctor.visit import VERSIONS, Door, Login, Visit, Visited
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.topics import check_topic_name
from lockgate.transport.endpoint import Endpoint
from lockgate.transport.tls_client import TlsSetupError

PASSED, FAILED = 0, 1
_USERNAME, _PASSWORD = "LOCKGATE_VERIFY_USERNAME", "LOCKGATE_VERIFY_PASSWORD"
_NUMBERS = {name: number for number, name in VERSIONS.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_place(parser)
    place = parser.add_argument_group("another server, in place of the listeners of a configuration")
    place.add_argument("--host", metavar="H", help="its name or address")
    place.add_argument("--port", type=int, metavar="P", help="default: 1883, 8883 with TLS")
    place.add_argument("--unix", type=Path, metavar="PATH", help="its Unix socket")
    place.add_argument("--tls", action="store_true", help="it speaks TLS; --cafile says so, too")
    place.add_argument("--websockets", action="store_true", help="it speaks MQTT over WebSocket")
    parser.add_argument("--ws-path", default="/mqtt", metavar="PATH", help="path of WebSockets (default: /mqtt)")
    trust = parser.add_argument_group("TLS")
    trust.add_argument("--cafile", type=Path, metavar="FILE", help="who issued the server's certificate")
    trust.add_argument("--cert", type=Path, metavar="FILE", help="our certificate")
    trust.add_argument("--key", type=Path, metavar="FILE", help="its key")
    trust.add_argument("--name", default="", metavar="NAME", help="that the server's certificate has to be for")
    trust.add_argument("--insecure", action="store_true", help="any name of the certificate will do")
    who = parser.add_argument_group("who we are")
    who.add_argument("--username", metavar="U", help=f"default: {_USERNAME} of the environment")
    who.add_argument("--password", metavar="P", help=f"others see it in `ps`; default: {_PASSWORD} of the environment")
    who.add_argument("--password-file", type=Path, metavar="FILE", help="a file whose first line is the password")
    who.add_argument("--client-id", default="", metavar="ID", help="default: lockgate-verify- and a random number")
    parser.add_argument(
        "--topic", default="lockgate/verify", metavar="T", help="below which to publish (default: lockgate/verify)"
    )
    parser.add_argument("-V", "--mqtt-version", choices=tuple(_NUMBERS), help="default: each that the listener takes")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds for each stage (default: 5)")
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0 if every listener passed, 1 if one did not, 3 for what a person must correct."""
    login = _login(arguments)
    try:
        check_topic_name(login.topic)
    except MqttError as error:
        raise ConfigError(str(error), key="--topic", accepted="a Topic Name") from None
    shown = Shown(arguments.cafile, arguments.cert, arguments.key, arguments.insecure, arguments.name)
    try:
        chosen = list(_doors(arguments, shown))
    except TlsSetupError as error:
        option = {"cafile": "--cafile", "certfile": "--cert", "keyfile": "--key"}.get(error.what, error.what)
        raise ConfigError(f"{error.path or ''}: {error}", key=option) from None
    results = [
        Visit(door, version, login, arguments.timeout).go() for door in chosen for version in _versions(door, arguments)
    ]
    passed = bool(results) and all(one.passed for one in results)
    if arguments.json:
        print(json.dumps({"passed": passed, "visits": [as_json(one) for one in results]}, indent=2))
    elif results:
        print("\n".join(as_text(results)))
    else:
        print("There is no listener to try.", file=sys.stderr)
    return PASSED if passed else FAILED


def _versions(door: Door, arguments: argparse.Namespace) -> Sequence[int]:
    if door.http:
        return door.versions[:1]
    wanted = arguments.mqtt_version
    return door.versions if wanted is None else [one for one in door.versions if one == _NUMBERS[wanted]]


def _doors(arguments: argparse.Namespace, shown: Shown) -> Iterator[Door]:
    if arguments.host is None and arguments.unix is None:
        for option in ("port", "tls", "websockets"):
            if getattr(arguments, option):
                raise ConfigError(f"--{option} is about another server", accepted="--host H with it")
        path = arguments.config or find_configuration()
        yield from doors(load_config(argparse.Namespace(config=path)), shown, arguments.ws_path)
        return
    tls = arguments.tls or arguments.cafile is not None
    port = arguments.port if arguments.port is not None else 8883 if tls else 1883
    if not 1 <= port <= 65535:
        raise ConfigError(f"{port} is no port", key="--port", accepted="1 to 65535")
    endpoint = Endpoint(
        host=arguments.host or "localhost",
        port=port,
        unix=os.fspath(arguments.unix) if arguments.unix is not None else None,
        websocket_path=arguments.ws_path if arguments.websockets else None,
    )
    speaks = ("WebSocket" if arguments.websockets else "MQTT") + (" in TLS" if tls else "")
    yield Door(
        name=f"{endpoint} ({speaks})",
        endpoint=endpoint,
        context=shown.context() if tls else None,
        tls_name=shown.name,
    )


def _login(arguments: argparse.Namespace) -> Login:
    """Give who we are. Raises ConfigError for a file that cannot be read."""
    username = arguments.username or os.environ.get(_USERNAME) or None
    password: bytes | None = None
    if arguments.password_file is not None:
        password = first_line(arguments.password_file)
    elif arguments.password is not None or _PASSWORD in os.environ:
        password = os.fsencode(arguments.password if arguments.password is not None else os.environ[_PASSWORD])
    if password is not None and username is None:
        raise ConfigError("a password needs a user name", key="--username", accepted="--username U")
    return Login(username, password, arguments.client_id, arguments.topic.rstrip("/"))


def as_text(results: Sequence[Visited]) -> Iterator[str]:
    """Give a line for each listener and version, and below those that failed the cause."""
    door: Door | None = None
    for one in results:
        if one.door is not door:
            door = one.door
            yield door.name + (f": {door.note}" if door.note else "")
        stages = ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in one.stages)
        if one.passed:
            yield f"  {one.version:<6}pass  {stages}"
        else:
            yield f"  {one.version:<6}FAIL  at {one.failed_at}: {one.cause}"
            yield from (f"              → {one.advice}",) if one.advice else ()
            yield from (f"              before: {stages}",) if stages else ()
    failed = sum(not one.passed for one in results)
    yield f"{len(results) - failed} of {len(results)} passed." if failed else f"All {len(results)} passed."


def as_json(one: Visited) -> dict[str, object]:
    """Give what as_text says, for programs."""
    return {
        "listener": one.door.name,
        "version": one.version,
        "passed": one.passed,
        "stages": [{"stage": name, "ms": round(seconds * 1000, 3)} for name, seconds in one.stages],
        "failed_at": one.failed_at or None,
        "cause": one.cause or None,
        "advice": one.advice or None,
    }
