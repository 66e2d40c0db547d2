"""`lockgate run SERVICE…`."""

from __future__ import annotations

import argparse

from lockgate import app
from lockgate.cli import process
from lockgate.cli.common import add_config_argument, load_config
from lockgate.telemetry import logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "services",
        nargs="+",
        metavar="SERVICE",
        choices=(*app.SERVICES, *app.DEMO_SERVICES),
        help=f"one or more of {', '.join(app.SERVICES)}",
    )


def main(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    is_broker = "broker" in arguments.services
    user = process.service_user(config.broker, default=False) if is_broker else None
    with process.pid_file(config.broker.pid_file if is_broker else None):
        if user is not None:
            app.preload(config)
            process.become(user)
        logs.configure(config.broker.log)
        services = app.SERVICES | app.DEMO_SERVICES
        return app.run(config, arguments.services, services, lambda: load_config(arguments))
