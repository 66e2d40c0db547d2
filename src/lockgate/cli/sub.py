"""`lockgate sub`: subscribe and print, with the flags of mosquitto_sub."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Final

from lockgate.cli.mqtt_options import FAILED, TIMED_OUT, add_connection_arguments, connection_of, run, will_of
from lockgate.client import Client, Message, SubscribeRefused
from lockgate.config.errors import ConfigError
from lockgate.mqtt.topics import matches

NAME: Final = "sub"
HELP: Final = "subscribe at an MQTT server and print messages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_connection_arguments(parser)
    add = parser.add_argument
    add("-t", "--topic", action="append", required=True, metavar="FILTER", help="may be given several times")
    add("-T", "--filter-out", action="append", default=[], metavar="FILTER", help="do not print what matches this")
    add("-v", "--verbose", action="store_true", help="print the topic before the message")
    add("-N", action="store_true", dest="no_newline", help="no line end after a message")
    add("-C", "--count", type=int, metavar="COUNT", help="end after so many messages")
    add("-W", "--timeout", type=float, metavar="SECONDS", help="end after so long, with exit status 27")
    add("-c", "--disable-clean-session", action="store_true", help="keep the session (needs -i)")
    add("-R", "--no-retained", action="store_true", help="do not print retained messages")
    add("--retained-only", action="store_true", help="print retained messages only, end at the first other one")
    add("-E", "--exit-after-subscribe", action="store_true", dest="exit_after_subscribe")


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0 at the end asked for, 27 at the timeout, the CONNACK's code when refused, else 1."""
    if arguments.disable_clean_session and not arguments.id:
        raise ConfigError("to keep a session it needs a client id", key="-c", accepted="-i ID with it")
    if arguments.count is not None and arguments.count < 1:
        raise ConfigError(f"{arguments.count}", key="-C", accepted="1 or more")
    connection = connection_of(arguments)

    def make() -> Client:
        return Client(
            connection,
            clean_start=not arguments.disable_clean_session,
            session_expiry_seconds=arguments.session_expiry_interval,
            will=will_of(arguments),
        )

    async def subscribe(client: Client) -> int:
        try:
            async with asyncio.timeout(arguments.timeout):
                return await _print(client, arguments)
        except TimeoutError:
            print("Timed out", file=sys.stderr)
            return TIMED_OUT

    return run(arguments, make, subscribe)


async def _print(client: Client, arguments: argparse.Namespace) -> int:
    try:
        await client.subscribe([(topic_filter, arguments.qos) for topic_filter in arguments.topic])
    except SubscribeRefused as error:
        print(f"Error: {error}", file=sys.stderr)
        if len(error.refused) == len(arguments.topic):
            return FAILED
    if arguments.exit_after_subscribe:
        return 0
    printed = 0
    async for message in client.messages():
        if arguments.retained_only and not message.retain:
            return 0
        if (arguments.no_retained and message.retain) or _filtered_out(message, arguments.filter_out):
            continue
        line = message.payload if arguments.no_newline else message.payload + b"\n"
        if arguments.verbose:
            line = message.topic.encode() + b" " + (line if message.payload else b"(null)" + line)
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        printed += 1
        if printed == arguments.count:
            return 0
    return FAILED


def _filtered_out(message: Message, topic_filters: list[str]) -> bool:
    return any(matches(topic_filter, message.topic) for topic_filter in topic_filters)
