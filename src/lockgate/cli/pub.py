"""`lockgate pub`: publish messages, with the flags of mosquitto_pub."""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from lockgate.cli.mqtt_options import FAILED, add_connection_arguments, connection_of, run, will_of
from lockgate.client import Client, ClientError
from lockgate.config.errors import ConfigError

NAME: Final = "pub"
HELP: Final = "publish messages to an MQTT server"

_AT_ONCE: Final = 100  # lines on their way, not yet acknowledged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_connection_arguments(parser)
    parser.add_argument("-t", "--topic", required=True)
    parser.add_argument("-r", "--retain", action="store_true", help="the server keeps it for later subscribers")
    message = parser.add_mutually_exclusive_group(required=True)
    message.add_argument("-m", "--message")
    message.add_argument("-f", "--file", type=Path, help="the file's contents are the message")
    message.add_argument("-n", "--null-message", action="store_true", help="an empty message")
    message.add_argument("-s", "--stdin-file", action="store_true", help="all of standard input is the message")
    message.add_argument("-l", "--stdin-line", action="store_true", help="each line of standard input is a message")
    parser.add_argument("--repeat", type=int, default=1, metavar="COUNT")
    parser.add_argument("--repeat-delay", type=float, default=0.0, metavar="SECONDS")


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0 when everything was acknowledged, the CONNACK's code when refused, else 1."""
    if arguments.repeat < 1 or arguments.repeat_delay < 0:
        raise ConfigError("--repeat must be 1 or more, --repeat-delay 0 or more")
    payload = _payload(arguments)
    connection = connection_of(arguments)
    expiry = arguments.session_expiry_interval

    async def publish(client: Client) -> int:
        failed = False
        under_way: deque[asyncio.Task[int]] = deque()
        messages = _lines() if payload is None else _repeated(payload, arguments.repeat, arguments.repeat_delay)
        async for message in messages:
            under_way.append(
                asyncio.create_task(client.publish(arguments.topic, message, arguments.qos, arguments.retain))
            )
            if len(under_way) >= _AT_ONCE:
                failed |= await _failed(under_way.popleft())
        while under_way:
            failed |= await _failed(under_way.popleft())
        return FAILED if failed else 0

    def make() -> Client:
        return Client(connection, clean_start=True, session_expiry_seconds=expiry, will=will_of(arguments))

    return run(arguments, make, publish)


async def _failed(publishing: asyncio.Task[int]) -> bool:
    try:
        await publishing
    except ClientError as error:
        print(f"Error: not published: {error}", file=sys.stderr)
        return True
    return False


def _payload(arguments: argparse.Namespace) -> bytes | None:
    """The message; None when lines of standard input are to be sent as they come."""
    if arguments.stdin_line:
        return None
    if arguments.message is not None:
        return str(arguments.message).encode("utf-8", "surrogateescape")
    if arguments.stdin_file:
        return sys.stdin.buffer.read()
    if arguments.file is not None:
        try:
            return bytes(arguments.file.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", path=arguments.file, key="-f") from None
    return b""


async def _repeated(payload: bytes, count: int, delay_seconds: float) -> AsyncIterator[bytes]:
    for number in range(count):
        if number and delay_seconds:
            await asyncio.sleep(delay_seconds)
        yield payload


async def _lines() -> AsyncIterator[bytes]:
    """Lines of standard input as they come, from a thread that an interruption need not wait for."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(_AT_ONCE)

    def read() -> None:
        try:
            for line in sys.stdin.buffer:
                asyncio.run_coroutine_threadsafe(queue.put(line.rstrip(b"\r\n")), loop).result()
            asyncio.run_coroutine_threadsafe(queue.put(None), loop).result()
        except RuntimeError:
            pass  # the loop is closed: we were interrupted

    threading.Thread(target=read, daemon=True).start()
    while (line := await queue.get()) is not None:
        yield line
