"""`lockgate check [FILE]`: every mistake of the configuration, with its place."""

from __future__ import annotations

import argparse
from pathlib import Path

from lockgate.app import scram_authenticator
from lockgate.cli.common import load_config
from lockgate.config.errors import ConfigError
from lockgate.config.model import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, metavar="FILE", help="lockgate.toml")


def main(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    scram_authenticator(config.broker)
    check_rules(config)
    print(summary(config))
    return 0


def check_rules(config: Config) -> None:
    """Compile every schema and rule. Raises ConfigError, with the line of the rule."""
    from lockgate.processor.runner import Rulebook

    try:
        Rulebook(config.processor, config.buffer).rules.close()
    except ConfigError as error:
        error.path = error.path or config.path  # the processor does not know the file
        raise


def summary(config: Config) -> str:
    listeners = ", ".join(f"{one.address or '*'}:{one.port}" for one in config.broker.listeners)
    anonymous = "everybody is let in" if config.broker.allow_anonymous else "nobody is let in without a user name"
    lines = [
        f"{config.path or 'no lockgate.toml, defaults'}: good",
        f"broker     {config.broker.path or 'no mosquitto.conf, defaults'}: {listeners}; {anonymous}",
        f"processor  {len(config.processor.schemas)} schemas, {len(config.processor.rules)} rules",
        f"buffer     {config.gateway.buffer_dir}, classes {', '.join(config.buffer.classes)}",
        f"forwarder  {len(config.forwarder.sinks)} sinks: {', '.join(sink.name for sink in config.forwarder.sinks)}",
    ]
    return "\n".join(line.rstrip(" :") for line in lines)
