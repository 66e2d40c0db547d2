"""What `lockgate pub` and `lockgate sub` share: Mosquitto's flags that say where to connect and as whom."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from lockgate.client import Client, ClientError, ConnectionRefused, Will
from lockgate.config.errors import ConfigError
from lockgate.config.model import ConnectionConfig

FAILED: Final = 1
TIMED_OUT: Final = 27  # Mosquitto's

_VERSIONS: Final[dict[str, Literal["3.1.1", "5"]]] = {
    "mqttv311": "3.1.1", "311": "3.1.1", "3.1.1": "3.1.1", "mqttv5": "5", "5": "5",
}  # fmt: skip
_PASSWORD_VARIABLE: Final = "LOCKGATE_PASSWORD"


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    parser.conflict_handler = "resolve"  # -h is the host, as everywhere in MQTT; --help stays
    add = parser.add_argument_group("connection").add_argument
    add("-h", "--host", default="localhost", help="the server (default: localhost)")
    add("-p", "--port", type=_integer(1, 65_535), default=1883, help="its port (default: 1883)")
    add("-i", "--id", default="", metavar="ID", help="client id (default: the server's choice)")
    add("-u", "--username", metavar="NAME")
    add("-P", "--pw", metavar="PASSWORD", help="others on this machine can see it; --pw-file is safer")
    add("--pw-file", type=Path, metavar="FILE", help=f"holds the password (default: the variable {_PASSWORD_VARIABLE})")
    add("-V", "--protocol-version", choices=_VERSIONS, default="mqttv311", metavar="VERSION",
        help="mqttv311 (default) or mqttv5")  # fmt: skip
    add("-q", "--qos", type=int, choices=(0, 1, 2), default=0)
    add("-k", "--keepalive", type=_integer(0, 65_535), default=60, metavar="SECONDS")
    add("-x", "--session-expiry-interval", type=_integer(0, 0xFFFF_FFFF), default=0, metavar="SECONDS",
        help="how long the server keeps the session (version 5)")  # fmt: skip
    add("--will-topic", metavar="TOPIC", help="published by the server if the connection breaks")
    add("--will-payload", default="", metavar="MESSAGE")
    add("--will-qos", type=int, choices=(0, 1, 2), default=0)
    add("--will-retain", action="store_true")
    add("-d", "--debug", action="store_true", help="say what happens")


def connection_of(arguments: argparse.Namespace) -> ConnectionConfig:
    """Where and as whom to connect. Raises ConfigError for flags that do not go together."""
    password = _password(arguments)
    username = arguments.username
    version = _VERSIONS[arguments.protocol_version]
    if password is not None and username is None:
        if version != "5":
            raise ConfigError("a password needs a user name", key="-P", accepted="-u NAME with it")
        username = ""
    login = ""
    if username is not None:
        login = quote(username, safe="") + (f":{quote(password, safe='')}" if password is not None else "") + "@"
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    return ConnectionConfig(
        url=f"mqtt://{login}{host}:{arguments.port}",
        client_id=arguments.id,
        version=version,
        keep_alive_seconds=arguments.keepalive,
    )


def will_of(arguments: argparse.Namespace) -> Will | None:
    """The Will Message the flags describe, if they do."""
    if arguments.will_topic is None:
        return None
    return Will(arguments.will_topic, arguments.will_payload.encode(), arguments.will_qos, arguments.will_retain)


def run(arguments: argparse.Namespace, make: Callable[[], Client], use: Callable[[Client], Awaitable[int]]) -> int:
    """Connect, do what the command does, disconnect; gives the exit status: a refusal is the code of its CONNACK."""
    logging.basicConfig(level=logging.DEBUG if arguments.debug else logging.WARNING, format="%(message)s")

    async def main() -> int:
        client = make()
        await client.connect(retry=False)
        try:
            return await use(client)
        finally:
            await client.disconnect()

    try:
        return asyncio.run(main())
    except ConnectionRefused as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.reason_code
    except (ClientError, TimeoutError) as error:
        print(f"Error: {error}", file=sys.stderr)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        print(f"Error: {arguments.host}:{arguments.port}: {error}", file=sys.stderr)
    return FAILED


def _password(arguments: argparse.Namespace) -> str | None:
    if arguments.pw is not None:
        given: str = arguments.pw
        return given
    if arguments.pw_file is not None:
        try:
            return str(arguments.pw_file.read_text().rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot be read: {error}", path=arguments.pw_file, key="--pw-file") from None
    return os.environ.get(_PASSWORD_VARIABLE) if arguments.username is not None else None


def _integer(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {lowest} to {highest}")
        return int(text)

    return parse
