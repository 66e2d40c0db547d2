"""The command line: one module per command, imported only when its command is given.

A command's module has `add_arguments(parser)` and `main(arguments) -> int`, which gives the exit status.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from lockgate.config.errors import ConfigError

COMMANDS = {
    "run": "host services in this process",
    "up": "run every service as a child process, with restart",
    "check": "validate the configuration",
    "status": "what the running services say about themselves",
    "ledger": "what became of every message, in two books that have to close",
    "store": "look at what the broker keeps on disk: is it whole, what is in it",
    "pub": "publish messages to an MQTT server",
    "sub": "subscribe at an MQTT server and print messages",
    "explain": "why a client did not get a message",
    "scram": "add, change or remove a user of enhanced authentication (SCRAM-SHA-256)",
    "version": "print the version",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: of this process); gives the exit status, 3 for what a person must correct."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="lockgate", description="The IoT edge gateway in one package.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        if name in words[:1]:
            module = importlib.import_module(f"lockgate.cli.{name}")
            module.add_arguments(command)
    arguments = parser.parse_args(words)
    try:
        return int(module.main(arguments))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 3
    except BrokenPipeError:  # `lockgate status | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # a folder or a log file that cannot be written
        place = f"{os.fspath(error.filename)}: " if error.filename is not None else ""
        print(f"Error: {place}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
