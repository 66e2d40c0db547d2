"""`mosquitto_passwd`: users of a password file, with Mosquitto's flags, texts and exit status."""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lockgate.access import hashes, password_file, secret_file
from lockgate.access.hashes import ALGORITHMS, Algorithm
from lockgate.config.errors import ConfigError

FAILED: Final = 1
DIFFERENT: Final = 2  # the two passwords given
_STDOUT: Final = "-"

USAGE: Final = """\
mosquitto_passwd is a tool for managing password files for mosquitto.

Usage: mosquitto_passwd [-H argon2id | -H sha512-pbkdf2 | -H sha512] [-I iterations] [-c | -D] passwordfile username
       mosquitto_passwd [-H argon2id | -H sha512-pbkdf2 | -H sha512] [-I iterations] [-c] -b passwordfile username password
       mosquitto_passwd -U passwordfile
 -b : run in batch mode to allow passing passwords on the command line.
 -c : create a new password file. This will overwrite existing files. With - as the file, print the line.
 -D : delete the username rather than adding/updating its password.
 -H : specify the hashing algorithm. Defaults to argon2id, which is recommended. Mosquitto 2.0 reads the other
      two only, Mosquitto 1.6 and earlier only sha512.
 -I : the number of iterations: of sha512-pbkdf2 (default 1000) or argon2id (default 1).
 -U : update a plain text password file to use hashed passwords. Lines that hold a hash already stay as they are.
"""  # noqa: E501


class _Failed(Exception):
    """What is said to the person; `status` is the exit status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


class _Usage(Exception):
    """The words make no command."""


@dataclass
class _Options:
    create: bool = False
    batch: bool = False
    delete: bool = False
    upgrade: bool = False
    algorithm: Algorithm = "argon2id"
    rounds: int | None = None
    file: str = ""
    username: str = ""
    password: str | None = None


def main(arguments: list[str]) -> int:
    """Exit status 0 when it is done, 2 when the two passwords given are not the same, else 1."""
    try:
        options = _parse(arguments)
        if options.upgrade:
            _upgrade(options)
        else:
            _set_user(options)
    except _Usage:
        print(USAGE)
        return FAILED
    except _Failed as error:
        print(error, file=sys.stderr)
        return error.status
    except ConfigError as error:
        print(f"Error: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(f"Error: Unable to open file {options.file} for writing. {error.strerror}.", file=sys.stderr)
        return FAILED
    return 0


def _parse(words: list[str]) -> _Options:
    options = _Options()
    words = list(words)
    while words and words[0] in ("-b", "-c", "-D", "-U", "-H", "-I"):
        flag = words.pop(0)
        if flag == "-b":
            options.batch = True
        elif flag == "-c":
            options.create = True
        elif flag == "-D":
            options.delete = True
        elif flag == "-U":
            options.upgrade = True
        elif not words:
            raise _Failed(f"Error: {flag} argument given but not enough other arguments.")
        elif flag == "-H":
            options.algorithm = _algorithm(words.pop(0))
        else:
            options.rounds = _rounds(words.pop(0))
    most = hashes.MAXIMUM_PASSES if options.algorithm == "argon2id" else hashes.MAXIMUM_ROUNDS
    if options.rounds is not None and options.rounds > most:
        raise _Failed(f"Error: Number of iterations must be at most {most}.")
    for one, other, flags in (
        (options.create, options.delete, "-c and -D"),
        (options.create, options.upgrade, "-c and -U"),
        (options.batch, options.delete, "-b and -D"),
        (options.delete, options.upgrade, "-D and -U"),
        (options.batch, options.upgrade, "-b and -U"),
    ):
        if one and other:
            raise _Failed(f"Error: {flags} cannot be used together.")
    if not words or words[0] in ("-h", "--help"):
        if options.create or options.delete:
            flag = "-c" if options.create else "-D"
            raise _Failed(f"Error: {flag} argument given but password file or username missing.")
        raise _Usage
    wanted = 1 if options.upgrade else 3 if options.batch else 2
    if len(words) != wanted:
        if len(words) < 2 and (options.create or options.delete):
            flag = "-c" if options.create else "-D"
            raise _Failed(f"Error: {flag} argument given but password file or username missing.")
        raise _Usage
    options.file = words[0]
    if not options.upgrade:
        options.username = _username(words[1])
    if options.batch:
        options.password = words[2]
    return options


def _algorithm(name: str) -> Algorithm:
    for algorithm in ALGORITHMS:
        if name == algorithm:
            return algorithm
    raise _Failed(f"Error: Unknown hash type '{name}'")


def _rounds(text: str) -> int:
    rounds = int(text) if text.isascii() and text.isdigit() else 0
    if not 0 < rounds < 2**31:
        raise _Failed("Error: Number of iterations must be > 0.")
    return rounds


def _username(name: str) -> str:
    if ":" in name:
        raise _Failed("Error: Username must not contain the ':' character.")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in name):
        raise _Failed("Error: Username must not contain control characters.")
    try:
        password_file.check_username(name)
    except ValueError as error:  # UnicodeEncodeError too: what is not UTF-8 arrives as surrogates
        detail = "Username must be UTF-8" if isinstance(error, UnicodeEncodeError) else str(error).capitalize()
        raise _Failed(f"Error: {detail}.") from None
    return name


def _set_user(options: _Options) -> None:
    path = Path(options.file)
    text = "" if options.create else _read(path)
    hashed = None
    if not options.delete:
        password = os.fsencode(options.password) if options.password is not None else _ask()
        if not password:
            raise _Failed("Error: Empty password.")
        hashed = hashes.make(password, options.algorithm, options.rounds)
    text, known = password_file.set_user(text, options.username, hashed)
    if options.delete and not known:
        raise _Failed(f"Warning: User {options.username} not found in password file.")
    if options.create and options.file == _STDOUT:
        sys.stdout.write(text)
    else:
        secret_file.replace(path, text.encode())


def _upgrade(options: _Options) -> None:
    path = Path(options.file)
    lines: list[str] = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        name, colon, password = line.partition(":")
        if line.strip() and not line.startswith("#"):
            if not colon or not name.strip() or not password:
                raise _Failed(f"Error: Corrupt password file at line {number}.")
            try:
                hashes.parse(password.strip())
            except ValueError:
                line = f"{name}:{hashes.make(password.encode(), options.algorithm, options.rounds)}"
        lines.append(f"{line}\n")
    secret_file.replace(path, "".join(lines).encode())


def _read(path: Path) -> str:
    try:
        path.stat()
    except OSError as error:
        raise _Failed(f"Error: Unable to open password file {path}. {error.strerror}.") from None
    return secret_file.read_text(path)


def _ask() -> bytes:
    """Ask for a password twice: at the terminal, without showing it, or as two lines of standard input."""
    password = _line("Password: ")
    if not password:
        raise _Failed("Error: Empty password.")
    if _line("Reenter password: ") != password:
        raise _Failed("Error: Passwords do not match.", DIFFERENT)
    return password


def _line(prompt: str) -> bytes:
    if sys.stdin.isatty():
        return os.fsencode(getpass.getpass(prompt))
    print(prompt, end="", flush=True)
    line = sys.stdin.buffer.readline().rstrip(b"\r\n")
    if line:
        print()
    return line
