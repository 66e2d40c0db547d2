"""The command line: one module per command, imported only when its command is given.

A command's module has `add_arguments(parser)` and `main(arguments) -> int`, which gives the exit status. A program of
others, Mosquitto's or cloudflared, is called by a link of its name or as a command; its module has
`main(words) -> int`, and reads them itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

# Each in the module of its name.
PROGRAMS = frozenset(
    {
        "cloudflared",
        "mosquitto",
        "mosquitto_ctrl",
        "mosquitto_passwd",
        "mosquitto_pub",
        "mosquitto_rr",
        "mosquitto_signal",
        "mosquitto_sub",
    }
)

# The name the container image starts with, that of a script in Mosquitto's image
ENTRY_POINT = "docker-entrypoint.sh"

COMMANDS = {
    "run": "host services in this process",
    "up": "run every service as a child process, with restart",
    "init": "write a compose stack of one's own, with its passwords and certificates",
    "check": "validate the configuration",
    "migrate": "what a configuration of Mosquitto will mean here, and what is unsafe in it",
    "status": "what the running services say about themselves",
    "healthcheck": "whether the services of this container are well, by its exit status",
    "rules": "try rules: their tests, what they read and cost, what they would have made of the log",
    "sources": "try sources: read their devices once and show what they say, browse an OPC UA server",
    "ledger": "what became of every message, in two books that have to close",
    "buffer": "what lies in the buffer and waits for whom; look at it, export it, ask it in SQL",
    "store": "look at what the broker keeps on disk: is it whole, what is in it",
    "session": "look at the sessions of clients, give one to a user, or end it",
    "explain": "why a client did not get a message",
    "doctor": "what is wrong with this gateway, where, why it matters, and what to do",
    "deploy": "a new version for the containers of a Compose project, and back by itself where it is not well",
    "verify": "publish and receive a message through every listener, as a client would",
    "connector": "carry devices and people in from an edge, with no port open",
    "edge": "who may come in through this edge, and who did: tunnels, tokens, host names",
    "scram": "add, change or remove a user of enhanced authentication (SCRAM-SHA-256)",
    "version": "print the version",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: of this process); gives the exit status, 3 for what a person must correct."""
    try:
        return _main(argv)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("lockgate."):
            raise
        print(f"Error: {error.name} is not here: this image holds the broker alone.", file=sys.stderr)
        return 1


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    called = os.path.basename(sys.argv[0]) if argv is None else ""
    if called == ENTRY_POINT:
        return int(_module("container").main(words))
    if called not in PROGRAMS and words[:1] and words[0] in PROGRAMS:
        called = words.pop(0)
    if called in PROGRAMS:
        return int(_module(called).main(words))
    return _command(words)


def _module(name: str) -> Any:
    import importlib

    return importlib.import_module(f"lockgate.cli.{name}")


def _command(words: list[str]) -> int:
    import argparse

    from lockgate.config.errors import ConfigError

    parser = argparse.ArgumentParser(
        prog="lockgate",
        description="The IoT edge gateway in one package.",
        epilog=f"Programs of others are commands too, or links to lockgate: {', '.join(sorted(PROGRAMS))}.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        if name in words[:1]:
            module = _module(name)
            module.add_arguments(command)
    arguments = parser.parse_args(words)
    try:
        return int(module.main(arguments))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `lockgate status | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # a folder or a log file that cannot be written
        place = f"{os.fspath(error.filename)}: " if error.filename is not None else ""
        print(f"Error: {place}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
