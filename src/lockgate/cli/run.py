"""`lockgate run SERVICE…`."""

from __future__ import annotations

import argparse

from lockgate import app
from lockgate.cli import process
from lockgate.cli.common import add_config_argument, load_config
from lockgate.config.errors import ConfigError, did_you_mean
from lockgate.telemetry import logs

_KNOWN = (*app.SERVICES, *app.TUNNEL_SERVICES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "services",
        nargs="+",
        metavar="SERVICE",
        help=f"one or more of {', '.join(_KNOWN)}, and source:NAME for each [sources.NAME]",
    )


def main(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    services = app.services(config) | app.TUNNEL_SERVICES
    for name in arguments.services:
        if name not in services | app.DEMO_SERVICES:
            problem = f"{name!r} is no service.{did_you_mean(name, services)}"
            raise ConfigError(problem, path=config.path, accepted=", ".join(services))
    is_broker = "broker" in arguments.services
    user = process.service_user(config.broker, default=False) if is_broker else None
    with process.pid_file(config.broker.pid_file if is_broker else None):
        if user is not None:
            app.preload(config)
            process.become(user)
        logs.configure(config.broker.log)
        return app.run(config, arguments.services, services | app.DEMO_SERVICES, lambda: load_config(arguments))
