"""`mosquitto`: the broker alone, called and configured as Mosquitto is.

What Mosquitto has no word for stands in a lockgate.toml beside the configuration file.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from lockgate import __version__, app
from lockgate.cli import process
from lockgate.cli.common import load_mosquitto, socket_folders
from lockgate.config.errors import ConfigError
from lockgate.config.model import BrokerConfig, Config, ListenerConfig
from lockgate.config.mosquitto_conf import LOCAL_ADDRESSES, LOG_TYPES
from lockgate.telemetry import health, logs

_PORTS = 10


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"Error: {message}.", file=sys.stderr)
        self.print_usage(sys.stderr)
        sys.exit(3)


def _parser() -> _Parser:
    parser = _Parser(
        prog="mosquitto",
        description=f"mosquitto version 2.1.2, as lockgate {__version__}: an MQTT 5.0, 3.1.1 and 3.1 broker.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config-file", type=Path, metavar="FILE", help="the configuration")
    parser.add_argument("-d", "--daemon", action="store_true", help="run in the background")
    parser.add_argument(
        "-p", "--port", type=int, action="append", default=[], metavar="PORT",
        help="listen on this port, on this machine alone; up to ten times, and nothing beside a listener in the file",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="log nothing, whatever the file says")
    parser.add_argument("-v", "--verbose", action="store_true", help="log everything, whatever the file says")
    parser.add_argument("--test-config", action="store_true", help="read the configuration, say what is wrong, and end")
    parser.add_argument("--tls-keylog", type=Path, metavar="FILE", help="write the keys of TLS connections, to debug")
    parser.add_argument("--version", action="version", version=f"mosquitto version 2.1.2 (lockgate {__version__})")
    return parser


def main(words: list[str]) -> int:
    """Give Mosquitto's exit status: 3 for a mistake in command or configuration, 1 for what cannot be opened."""
    parser = _parser()
    arguments = parser.parse_args(words)
    if len(arguments.port) > _PORTS:
        parser.error(f"only {_PORTS} ports can be given")
    if any(not 1 <= port <= 65535 for port in arguments.port):
        parser.error("a port is 1 to 65535")
    if arguments.test_config and arguments.config_file is None:
        parser.error("--test-config requires -c FILE")
    try:
        umask = os.environ.get("UMASK_SET", "")
        if umask:
            os.umask(_octal(umask))
        config = _load(arguments)
        if arguments.test_config:
            return _test(config)
        user = process.service_user(config.broker, default=True)
        if arguments.daemon:
            process.daemonize()
        with process.pid_file(config.broker.pid_file), _places(config, user.pw_uid if user else None) as config:
            if user is not None:
                app.preload(config)
                process.become(user)
            logs.configure(config.broker.log)
            places = config.gateway
            return app.run(
                config,
                ["broker"],
                app.SERVICES,
                lambda: dataclasses.replace(_load(arguments), gateway=places),
            )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise ConfigError(f"{text!r} is no umask", key="UMASK_SET", accepted="an octal number, as 0077") from None


def _load(arguments: argparse.Namespace) -> Config:
    path: Path | None = arguments.config_file
    config = load_mosquitto(path)
    broker = config.broker
    if arguments.port and not broker.listeners_said:
        listeners = tuple(
            ListenerConfig(port=port, address=address) for port in arguments.port for address in LOCAL_ADDRESSES
        )
        broker = dataclasses.replace(broker, listeners=listeners)
    types: frozenset[str] | None = None
    if arguments.quiet:
        types = frozenset()
    elif arguments.verbose:
        types = frozenset(LOG_TYPES)
    if types is not None:
        broker = dataclasses.replace(broker, log=dataclasses.replace(broker.log, types=types))
    if arguments.tls_keylog is not None:
        broker = dataclasses.replace(broker, listeners=tuple(_keylog(one, arguments) for one in broker.listeners))
    return dataclasses.replace(config, broker=broker)


def _keylog(listener: ListenerConfig, arguments: argparse.Namespace) -> ListenerConfig:
    if listener.tls is None:
        return listener
    return dataclasses.replace(listener, tls=dataclasses.replace(listener.tls, keylog=arguments.tls_keylog))


def _test(config: Config) -> int:
    """Say what a start would stumble over; only the configuration itself decides the status, as with Mosquitto."""
    from lockgate.cli.check import check_access, check_certificates

    for warning in config.broker.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    for check in (check_access, check_certificates):
        try:
            check(config)
        except ConfigError as error:
            print(f"Warning: {error}", file=sys.stderr)
    print("Configuration file is OK.", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _places(config: Config, uid: int | None) -> Iterator[Config]:
    """Give the broker a folder for its socket, and make the store's folder as long as root may.

    Where persistence is not said, and there is no folder to keep anything in and none can be made, nothing is kept.
    """
    gateway, broker = config.gateway, config.broker
    made: Path | None = None
    if gateway.run_dir is None:
        made = _socket_folder(broker.path)
        gateway = dataclasses.replace(gateway, run_dir=made)
        if uid is not None:
            os.chown(made, uid, -1)
    if broker.persistence is None and not os.environ.get("MOSQUITTO_PERSISTENCE_LOCATION"):
        broker = _make_store_folder(config, broker, uid)
    try:
        yield dataclasses.replace(config, gateway=gateway, broker=broker)
    finally:
        if made is not None:
            with contextlib.suppress(OSError):  # another one has begun to use it
                made.rmdir()


def _socket_folder(path: Path | None) -> Path:
    """Make the folder where other commands look for this configuration's broker, or one that nobody else has."""
    for folder in socket_folders(path) if path is not None else ():
        if health.ask(folder / "broker.sock") is None:  # another one has it
            with contextlib.suppress(OSError):
                folder.mkdir(0o755, exist_ok=True)
                if os.access(folder, os.W_OK):
                    return folder
    return Path(tempfile.mkdtemp(prefix="lockgate-"))


def _make_store_folder(config: Config, broker: BrokerConfig, uid: int | None) -> BrokerConfig:
    folder = app.persistence_folder(config)
    if folder.exists():
        return broker
    try:
        folder.mkdir(parents=True)
        if uid is not None:
            os.chown(folder, uid, -1)
    except OSError as error:
        warning = f"persistence is not set, and {folder}, where the store would be, cannot be made ({error.strerror})."
        return dataclasses.replace(broker, persistence=False, warnings=(*broker.warnings, warning))
    return broker
