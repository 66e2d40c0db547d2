"""`lockgate run SERVICE…`."""

from __future__ import annotations

import argparse

from lockgate import app
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
    logs.configure(config.broker.log)
    return app.run(config, arguments.services, app.SERVICES | app.DEMO_SERVICES, lambda: load_config(arguments))
