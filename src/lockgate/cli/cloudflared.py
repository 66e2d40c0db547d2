"""cloudflared's command line as far as it runs a tunnel by its token, so that our image takes the place of its own.

`cloudflared tunnel run` is `lockgate connector`; `cloudflared tunnel ready` asks whether one is connected.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lockgate import __version__
from lockgate.config.errors import ConfigError

_METRICS: Final = "127.0.0.1:20241"
_READY_SECONDS: Final = 5.0
_SPOKEN: Final = ("http2", "h2mux", "auto")
# What changes nothing here, or has no counterpart; said, so that nobody believes otherwise
_PASSED_OVER: Final = ("--loglevel", "--transport-loglevel", "--logfile", "--retries", "--edge-ip-version", "--label")
_FOR: Final = {
    "token_file": "TUNNEL_TOKEN_FILE",
    "edge": "TUNNEL_EDGE",
    "cacert": "TUNNEL_CACERT",
    "metrics": "TUNNEL_METRICS",
    "grace_period": "TUNNEL_GRACE_PERIOD",
    "url": "TUNNEL_URL",
    "protocol": "TUNNEL_TRANSPORT_PROTOCOL",
}


def main(words: Sequence[str]) -> int:
    """Do what cloudflared's words say; gives the exit status."""
    parser = _parser()
    said, plain = parser.parse_known_args(list(words))  # its options stand anywhere between its words
    if unknown := [word for word in plain if word.startswith("-")]:
        parser.error(f"{unknown[0]} is not known here")
    if said.version or plain[:1] == ["version"]:
        print(f"lockgate version {__version__} (in the place of cloudflared)")
        return 0
    for name, variable in _FOR.items():
        if getattr(said, name) is None and os.environ.get(variable):
            setattr(said, name, os.environ[variable])
    try:
        if plain[:2] == ["tunnel", "run"]:
            return _run(said)
        if plain == ["tunnel", "ready"]:
            return _ready(said.metrics or _METRICS)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    asked = " ".join(plain) or "nothing"
    print(f"cloudflared: {asked}: only `tunnel run`, `tunnel ready` and `version` are offered", file=sys.stderr)
    return 2


def is_run(words: Sequence[str]) -> bool:
    """Say whether cloudflared's words run a tunnel."""
    plain = [word for word in words if not word.startswith("-")]
    return "tunnel" in plain and "run" in plain


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudflared",
        usage="%(prog)s [OPTION…] tunnel [OPTION…] run [OPTION…] [NAME] | tunnel ready | version",
        description="cloudflared's words for `lockgate connector`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--token", default="", metavar="TOKEN")
    parser.add_argument("--token-file", metavar="FILE")
    parser.add_argument("--edge", action="append", metavar="HOST:PORT")
    parser.add_argument("--cacert", metavar="FILE")
    parser.add_argument("--protocol", metavar="|".join(_SPOKEN))
    parser.add_argument("--metrics", metavar="HOST:PORT")
    parser.add_argument("--grace-period", metavar="TIME")
    parser.add_argument("--url", metavar="SERVICE")
    parser.add_argument("--config", metavar="FILE", help="config.yml of cloudflared, for its rules")
    for flag in ("--no-autoupdate", "--no-prechecks"):
        parser.add_argument(flag, action="store_true", help="always so")
    for option in _PASSED_OVER:
        parser.add_argument(option, metavar="…", help="passed over")
    return parser


def _run(said: argparse.Namespace) -> int:
    from lockgate.cli import connector

    if said.protocol is not None and said.protocol not in _SPOKEN:
        raise ConfigError(f"{said.protocol!r} is not spoken here", key="--protocol", accepted=", ".join(_SPOKEN))
    for option in _PASSED_OVER:
        if getattr(said, option.removeprefix("--").replace("-", "_")) is not None:
            print(f"Warning: {option} is passed over", file=sys.stderr)
    edges = said.edge.split(",") if isinstance(said.edge, str) else said.edge
    words = argparse.ArgumentParser()
    connector.add_arguments(words)
    arguments = words.parse_args([])
    arguments.token = said.token
    arguments.token_file = Path(said.token_file) if said.token_file else None
    arguments.edge = list(dict.fromkeys(edges)) if edges else None  # cloudflared wants one address several times
    arguments.cacert = Path(said.cacert) if said.cacert else None
    arguments.cloudflared_config = Path(said.config) if said.config else None
    arguments.metrics, arguments.grace_period, arguments.url = said.metrics, said.grace_period, said.url
    return connector.main(arguments)


def _ready(address: str) -> int:
    """Exit status 1 where no connection stands."""
    import http.client

    host, _, port = address.removeprefix("http://").rpartition(":")
    try:
        asked = http.client.HTTPConnection(host or "127.0.0.1", int(port), timeout=_READY_SECONDS)
        asked.request("GET", "/ready")
        answer = asked.getresponse()
        print(answer.read().decode("ascii", "replace"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"http://{address}/ready: {error}", file=sys.stderr)
        return 1
    return 0 if answer.status == 200 else 1
