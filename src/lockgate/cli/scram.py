"""`lockgate scram FILE USER`: users of enhanced authentication."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

from lockgate.access.scram import ITERATIONS, METHOD, ScramFileError, Verifier, saslprep, write_user
from lockgate.config.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the file named by broker.scram_file; made if absent")
    parser.add_argument("user", metavar="USER")
    parser.add_argument("--delete", action="store_true", help="remove the user")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help=f"at least 4096 (default: {ITERATIONS})")


def main(arguments: argparse.Namespace) -> int:
    """The password comes from the terminal, asked for twice, or is the first line of standard input."""
    file: Path = arguments.file
    if arguments.iterations < 4096:
        raise ConfigError(f"--iterations {arguments.iterations} is too few", accepted="4096 or more")
    try:
        user = saslprep(arguments.user)
        if not user or user != user.strip() or user.startswith("#") or len(user.splitlines()) > 1:
            raise ValueError("it must not be empty, begin with # or a space, end with one, or hold a line break")
    except ValueError as error:
        raise ConfigError(f"{arguments.user!r} cannot be a user name: {error}") from None
    verifier = None
    if not arguments.delete:
        try:
            verifier = Verifier.of_password(_password(), arguments.iterations)
        except ValueError as error:
            raise ConfigError(f"the password cannot be used: {error}") from None
    try:
        known = write_user(file, user, verifier)
    except ScramFileError as error:
        raise ConfigError(str(error), path=file, line=error.line) from None
    if arguments.delete and not known:
        print(f"{file}: there is no user {user!r}", file=sys.stderr)
        return 1
    print(f"{file}: user {user!r} {'removed' if arguments.delete else 'changed' if known else 'added'} ({METHOD})")
    return 0


def _password() -> str:
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise ValueError("the two are not the same")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise ValueError("it is empty")
    return password
