"""`lockgate connector`: the end of a tunnel that dials out, with cloudflared's options."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from lockgate import app
from lockgate.cli.common import add_config_argument, load_config
from lockgate.config import values
from lockgate.config.errors import ConfigError
from lockgate.config.model import Config
from lockgate.config.values import BadValue, Kind
from lockgate.telemetry import logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "--token", default="", metavar="TOKEN", help="of the tunnel; better in a file or the environment"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="where the token is")
    parser.add_argument(
        "--edge", action="append", metavar="HOST:PORT", help="where to dial (default: what the token says)"
    )
    parser.add_argument("--cacert", type=Path, metavar="FILE", help="authorities of the edge's certificate, in PEM")
    parser.add_argument("--url", metavar="SERVICE", help="where everything goes, as ws://127.0.0.1:9001")
    parser.add_argument(
        "--cloudflared-config", type=Path, metavar="FILE", help="config.yml of cloudflared, whose rules are used"
    )
    parser.add_argument("--metrics", metavar="HOST:PORT", help="where /metrics and /ready are")
    parser.add_argument("--grace-period", metavar="TIME", help="how long open requests may go on when it stops, as 30s")


def main(arguments: argparse.Namespace) -> int:
    from lockgate.tunnel import token

    if arguments.token and not token.hide(arguments.token):
        token.start_again_without(arguments.token)
    config = _with_options(load_config(arguments), arguments)
    logs.configure(config.broker.log)
    registry: dict[str, app.Build] = {"connector": lambda one: app.connector(one, arguments.token)}
    return app.run(config, ["connector"], registry, lambda: config)


def _with_options(config: Config, arguments: argparse.Namespace) -> Config:
    said: dict[str, object] = {}
    if arguments.token_file is not None:
        said["token_file"] = arguments.token_file
    if arguments.edge:
        said["edges"] = _checked("--edge", values.ADDRESSES, arguments.edge)
    if arguments.cacert is not None:
        said["ca_file"] = arguments.cacert
    if arguments.cloudflared_config is not None:
        said["cloudflared_config"] = arguments.cloudflared_config
    if arguments.url:
        said["ingress"] = ({"service": arguments.url},)
    if arguments.metrics:
        said["metrics"] = _checked("--metrics", values.ADDRESS, arguments.metrics)
    if arguments.grace_period:
        said["grace_seconds"] = _checked("--grace-period", values.duration(0, 180), arguments.grace_period)
    return dataclasses.replace(config, connector=dataclasses.replace(config.connector, **said))  # type: ignore[arg-type]


def _checked(option: str, kind: Kind, text: object) -> object:
    try:
        return kind.read(text)
    except BadValue as error:
        raise ConfigError(f"{error or f'{text!r} cannot be used'}", key=option, accepted=kind.accepted) from None
